"""Executable code on concrete values, with the checks of Rust: how runs end, and what is so at each loop's head."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from systems.safe import syntax as s
from systems.safe.evaluate import Environment, Evaluator, Made, Unknown, Value, integer_range, wrapped
from systems.safe.spec import nodes
from systems.safe.syntax import SafeError
from systems.safe.types import LISTS, Local, Signature, Ty, Typing, settled, strip
from systems.safe.vstd import operations

STEPS = 4000
"""Statements and loop turns after which a run is given up."""
_TRIES = 40


class Fault(SafeError):
    """A run that breaks a rule: what Rust would panic with, or a condition that does not hold."""


class Abandoned(SafeError):
    """A run that tells nothing: too long, outside what is interpreted, or against an assumption."""


class _Leave(Exception):
    """Control flow, never an error."""

    def __init__(self, how: str, value: Value = None) -> None:
        super().__init__(how)
        self.how = how
        self.value = value


@dataclass(frozen=True)
class Run:
    """One call: values at entry, the result and values at the end, and the state at each visit of a loop's head as
    (place of the loop, turns before, environment). `fault` says what broke, empty for a run that ends well."""

    entry: Environment
    final: Environment
    heads: tuple[tuple[int, int, Environment], ...]
    fault: str = ""


class Interpreter:
    """Runs the functions of one checked program."""

    def __init__(self, typing: Typing) -> None:
        self.typing = typing
        self.evaluator = Evaluator(typing)
        self._heads: list[tuple[int, int, Environment]] = []
        self._steps = 0
        self._depth = 0

    def run(self, signature: Signature, values: Sequence[Value]) -> Run | None:
        """Call a function. None where the run tells nothing."""
        entry = dict(zip((param.unique for param in signature.params), values, strict=True))
        for param in signature.params:
            entry[f"old {param.unique}"] = entry[param.unique]
        if any(self.evaluator.holds(clause, entry) is False for clause in signature.fn.requires):
            return None
        self._heads, self._steps, self._depth = [], 0, 0
        try:
            env = dict(entry)
            result = self._body(signature, env)
        except Fault as fault:
            return Run(entry, dict(entry), tuple(self._heads), str(fault))
        except (Abandoned, Unknown, RecursionError):
            return None
        for param in signature.params:
            if not (isinstance(param.type, Ty) and param.type.name == "&mut"):
                env[param.unique] = entry[param.unique]
        env[signature.result_local.unique] = result
        return Run(entry, env, tuple(self._heads))

    def _body(self, signature: Signature, env: Environment) -> Value:
        if signature.fn.body is None or self._depth > 40:
            raise Abandoned("no body, or recursion too deep")
        self._depth += 1
        try:
            return self.value(signature.fn.body, env)
        except _Leave as leave:
            return leave.value
        finally:
            self._depth -= 1

    def step(self) -> None:
        self._steps += 1
        if self._steps > STEPS:
            raise Abandoned("too many steps")

    # statements

    def block(self, block: s.Block, env: Environment) -> Value:
        for statement in block.statements:
            self.step()
            if isinstance(statement, s.Let):
                if statement.value is not None:
                    if statement.ghost:
                        self.ghost_let(statement, env)
                    elif not self.evaluator.matches(statement.pattern, self.value(statement.value, env), env):
                        raise Abandoned("a pattern that does not match")
            elif isinstance(statement, s.Do):
                self.value(statement.expr, env)
        return self.value(block.tail, env) if block.tail is not None else ()

    def ghost_let(self, let: s.Let, env: Environment) -> None:
        assert let.value is not None
        try:
            self.evaluator.matches(let.pattern, self.evaluator.function(let.value)(env), env)
        except Unknown:
            return

    def value(self, expr: s.Expr, env: Environment) -> Value:
        match expr:
            case s.Block():
                return self.block(expr, env)
            case s.Lit() | s.Path():
                return self.evaluator.function(expr)(env)
            case s.Binary():
                return self.binary(expr, env)
            case s.Index():
                return self.element(self.value(expr.receiver, env), self.value(expr.index, env))
            case s.If():
                return self.conditional(expr, env)
            case s.Assign():
                return self.assign(expr, env)
            case s.Method() | s.Call():
                return self.call(expr, env)
            case s.While() | s.For():
                return self.loop(expr, env)
            case s.Unary():
                inner = self.value(expr.operand, env)
                if expr.op == "!":
                    limits = integer_range(self.type_of(expr).name)
                    return sum(limits) - inner if limits is not None else not inner
                return self.in_range(-inner, expr) if expr.op == "-" else inner
            case s.Cast():
                inner = self.value(expr.operand, env)
                return wrapped(int(inner), self.type_of(expr).name)
            case s.Tuple():
                return tuple(self.value(item, env) for item in expr.items)
            case s.Field():
                return self.field(expr, env)
            case s.ListLiteral():
                items = [self.value(item, env) for item in expr.items]
                count = self.value(expr.repeat, env) if expr.repeat is not None else 1
                if count > STEPS:
                    raise Abandoned("a long list")
                return tuple(items) * count
            case s.Return():
                raise _Leave("return", self.value(expr.value, env) if expr.value is not None else ())
            case s.Break() | s.Continue():
                raise _Leave("break" if isinstance(expr, s.Break) else "continue")
            case s.Match():
                subject = self.value(expr.subject, env)
                for arm in expr.arms:
                    if arm.guard is None and self.evaluator.matches(arm.pattern, subject, env):
                        return self.value(arm.body, env)
                raise Abandoned("no arm matches")
            case s.Assert():
                if expr.by == "" and self.evaluator.holds(expr.condition, env) is False:
                    raise Fault("assertion failed")
                return ()
            case s.Assume():
                if expr.condition is None or self.evaluator.holds(expr.condition, env) is not True:
                    raise Abandoned("an assumption")
                return ()
            case s.AssertForall() | s.Reveal():
                return ()
            case s.ProofBlock():
                return self.ghost_block(expr.body, env)
        raise Abandoned(type(expr).__name__)

    def ghost_block(self, block: s.Block, env: Environment) -> Value:
        for statement in block.statements:
            if isinstance(statement, s.Do) and isinstance(statement.expr, s.Assert | s.Assume):
                self.value(statement.expr, env)
        if isinstance(block.tail, s.Assert):
            self.value(block.tail, env)
        return ()

    def conditional(self, expr: s.If, env: Environment) -> Value:
        if isinstance(expr.condition, s.LetCondition):
            held = self.evaluator.matches(expr.condition.pattern, self.value(expr.condition.value, env), env)
        else:
            held = self.value(expr.condition, env)
        if held:
            return self.block(expr.then, env)
        return self.value(expr.orelse, env) if expr.orelse is not None else ()

    def loop(self, expr: s.While | s.For, env: Environment) -> Value:
        counter, turns, high = "", 0, 0
        if isinstance(expr, s.For):
            if not isinstance(expr.iterator, s.Range) or expr.iterator.low is None or expr.iterator.high is None:
                raise Abandoned("an iterator")
            counter = self.typing.locals[id(expr)].unique
            env[counter], high = self.value(expr.iterator.low, env), self.value(expr.iterator.high, env)
        while True:
            self.step()
            self._heads.append((expr.span.start, turns, dict(env)))
            if isinstance(expr, s.For):
                if env[counter] >= high:
                    return ()
            elif expr.condition is not None and not self.value(expr.condition, env):
                return ()
            try:
                self.block(expr.body, env)
            except _Leave as leave:
                if leave.how == "return":
                    raise
                if leave.how == "break":
                    return ()
            if counter:
                env[counter] += 1
            turns += 1

    # values and places

    def type_of(self, node: s.Node) -> Ty:
        return settled(strip(self.typing.types[id(node)]), "int")

    def in_range(self, value: int, expr: s.Expr) -> int:
        bounds = integer_range(self.type_of(expr).name)
        if bounds is not None and not bounds[0] <= value <= bounds[1]:
            raise Fault("possible arithmetic underflow/overflow")
        return value

    def binary(self, expr: s.Binary, env: Environment) -> Value:
        left = self.value(expr.left, env)
        if expr.op == "&&":
            return left and self.value(expr.right, env)
        if expr.op == "||":
            return left or self.value(expr.right, env)
        return self.operate(expr.op, left, self.value(expr.right, env), expr)

    def operate(self, op: str, left: Value, right: Value, expr: s.Expr) -> Value:
        match op:
            case "==":
                return left == right
            case "!=":
                return left != right
            case "<":
                return left < right
            case "<=":
                return left <= right
            case ">":
                return left > right
            case ">=":
                return left >= right
            case "+":
                return self.in_range(left + right, expr)
            case "-":
                return self.in_range(left - right, expr)
            case "*":
                return self.in_range(left * right, expr)
            case "/" | "%":
                if right == 0:
                    raise Fault("possible division by zero")
                return left // right if op == "/" else left % right
            case "&":
                return left & right
            case "|":
                return left | right
            case "^":
                return left ^ right
        raise Abandoned(op)

    def element(self, base: Value, index: int) -> Value:
        if not 0 <= index < len(base):
            raise Fault("precondition not satisfied")
        return base[index]

    def field(self, expr: s.Field, env: Environment) -> Value:
        base, kind = self.value(expr.receiver, env), self.type_of(expr.receiver)
        if kind.name == "tuple":
            return base[int(expr.name)]
        names = [name for name, _ in self.typing.datatypes[kind.name].variants[0].fields]
        return base.fields[names.index(expr.name)]

    def assign(self, expr: s.Assign, env: Environment) -> Value:
        value = self.value(expr.value, env)
        if expr.op != "=":
            value = self.operate(expr.op[:-1], self.value(expr.target, env), value, expr.target)
        self.store(expr.target, value, env)
        return ()

    def store(self, place: s.Expr, value: Value, env: Environment) -> None:
        match place:
            case s.Path():
                env[self.typing.locals[id(place)].unique] = value
            case s.Unary():
                self.store(place.operand, value, env)
            case s.Index():
                base, index = self.value(place.receiver, env), self.value(place.index, env)
                self.element(base, index)
                self.store(place.receiver, (*base[:index], value, *base[index + 1 :]), env)
            case s.Field() if self.type_of(place.receiver).name == "tuple":
                base, at = self.value(place.receiver, env), int(place.name)
                self.store(place.receiver, (*base[:at], value, *base[at + 1 :]), env)
            case _:
                raise Abandoned("assignment to this kind of place")

    # calls

    def call(self, expr: s.Call | s.Method, env: Environment) -> Value:
        callee = self.typing.callees[id(expr)]
        args = [*([expr.receiver] if isinstance(expr, s.Method) else []), *expr.args]
        if callee.kind == "fn":
            signature = self.typing.functions[callee.name]
            if signature.mode != "exec":
                return ()
            self.step()
            inner = {}
            for param, arg in zip(signature.params, args, strict=True):
                inner[param.unique] = inner[f"old {param.unique}"] = self.value(arg, env)
            if any(self.evaluator.holds(clause, inner) is False for clause in signature.fn.requires):
                raise Fault("precondition not satisfied")
            heads, self._heads = self._heads, []
            try:
                result = self._body(signature, inner)
            finally:
                self._heads = heads
            for param, arg in zip(signature.params, args, strict=True):
                if isinstance(param.type, Ty) and param.type.name == "&mut":
                    self.store(arg.operand if isinstance(arg, s.Unary) else arg, inner[param.unique], env)
            return result
        if callee.kind == "variant":
            return Made(callee.name, tuple(self.value(arg, env) for arg in args))
        if callee.kind != "operation":
            raise Abandoned(callee.kind)
        values = [self.value(arg, env) for arg in args]
        result, changed = self.operation(callee.name, values)
        if operations()[callee.name].receiver == "&mut":
            self.store(args[0], changed, env)
        return result

    def operation(self, name: str, values: list[Value]) -> tuple[Value, Value]:
        """The result of a library operation, and its receiver afterwards."""
        action = name.split(".")[1]
        if action in ("new", "with_capacity"):
            return (), ()
        base = values[0]
        match action:
            case "len" | "unicode_len":
                return len(base), base
            case "as_slice" | "to_vec" | "as_str":
                return base, base
            case "get_char":
                return self.element(base, values[1]), base
            case "push":
                return (), (*base, values[1])
            case "set":
                self.element(base, values[1])
                return (), (*base[: values[1]], values[2], *base[values[1] + 1 :])
            case "pop":
                return (Made("Some", (base[-1],)), base[:-1]) if base else (Made("None"), base)
            case "insert":
                if values[1] > len(base):
                    raise Fault("precondition not satisfied")
                return (), (*base[: values[1]], values[2], *base[values[1] :])
            case "remove":
                return self.element(base, values[1]), (*base[: values[1]], *base[values[1] + 1 :])
            case "swap":
                one, two = self.element(base, values[1]), self.element(base, values[2])
                changed = list(base)
                changed[values[1]], changed[values[2]] = two, one
                return (), tuple(changed)
            case "clear":
                return (), ()
            case "truncate":
                return (), base[: values[1]]
            case "is_some" | "is_none":
                return (base.variant == "Some") == (action == "is_some"), base
            case "unwrap":
                if base.variant != "Some":
                    raise Fault("precondition not satisfied")
                return base.fields[0], base
        raise Abandoned(name)


# inputs


def constants(program: s.Program) -> list[int]:
    """The integer literals of a program, in order and once each."""
    found = {
        int(node.value): None
        for node in nodes(program.items)
        if isinstance(node, s.Lit) and node.kind in ("int", "char") and not isinstance(node.value, bool)
    }
    return sorted(found)


class Inputs:
    """Makes arguments for a function: small ones, near the program's own constants, of lengths that fit together."""

    def __init__(self, interpreter: Interpreter, seed: int) -> None:
        self.interpreter = interpreter
        self.random = random.Random(seed)
        literals = [value for value in constants(interpreter.typing.program) if value < 2**16]
        self.near: list[int] = [0]
        self.pool = sorted({near for value in literals for near in (value - 1, value, value + 1)} | set(range(-3, 8)))

    def integer(self, kind: str, size: int) -> int:
        low, high = integer_range(kind) or (0, 9)
        draw = self.random.random()
        if draw < 0.3:
            value = size
        elif draw < 0.45:
            value = self.random.choice(self.near)
        elif draw < 0.65:
            value = self.random.randint(-3, 7)
        elif draw < 0.97:
            value = self.random.choice(self.pool)
        else:
            value = self.random.choice((low, high))
        return min(max(value, low), high)

    def element(self, kind: Ty) -> Value:
        if kind.name in LISTS:
            return tuple(self.element(kind.args[0]) for _ in range(self.random.randint(0, 3)))  # type: ignore[arg-type]
        bounds = integer_range(kind.name)
        if bounds is None:
            return self.value(kind, 2)
        value = self.random.choice(self.near if self.random.random() < 0.75 else self.pool)
        return min(max(value, bounds[0]), bounds[1])

    def value(self, kind: Ty, size: int) -> Value:
        args = [arg for arg in kind.args if isinstance(arg, Ty)]
        match kind.name:
            case "bool":
                return self.random.random() < 0.5
            case "Vec" | "slice" | "array" | "String" | "str":
                length = size if self.random.random() < 0.75 else self.random.randint(0, 6)
                items = [self.element(args[0] if args else Ty("u8")) for _ in range(length)]
                if self.random.random() < 0.3 and items and isinstance(items[0], int):
                    items.sort()
                return tuple(items)
            case "tuple":
                return tuple(self.value(arg, size) for arg in args)
            case "Option":
                return Made("None") if self.random.random() < 0.3 else Made("Some", (self.value(args[0], size),))
            case name if integer_range(name) is not None:
                return self.integer(name, size)
        raise Abandoned(f"inputs of type {kind}")

    def arguments(self, signature: Signature) -> list[Value]:
        size = self.random.choice((0, 1, 2, 3, 4, 5, 6))
        self.near = [self.random.choice(self.pool) for _ in range(self.random.choice((1, 2, 3)))]
        return [self.value(_kind(param), size) for param in signature.params]

    def runs(self, signature: Signature, count: int) -> Iterator[Run]:
        """Up to `count` runs on different inputs that meet `requires`."""
        seen: set[tuple[Value, ...]] = set()
        for _ in range(count * _TRIES):
            try:
                values = self.arguments(signature)
            except Abandoned:
                return
            key = tuple(values)
            if key in seen:
                continue
            seen.add(key)
            run = self.interpreter.run(signature, values)
            if run is not None:
                count -= 1
                yield run
            if count <= 0:
                return


def _kind(local: Local) -> Ty:
    return settled(strip(local.type), "int")
