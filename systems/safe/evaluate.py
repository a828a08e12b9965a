"""Specifications on concrete values: each expression becomes a function of an environment, once.

Integers are Python's; vectors, slices, sequences and strings are tuples, tuples are tuples, sets frozensets, and values
of enums and structs `Made`. What cannot be decided by looking at finitely many values is `Unknown`, never a guess: a
quantifier over an unbounded range is false when a counterexample turns up, and unknown otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

from systems.safe import syntax as s
from systems.safe.syntax import SafeError
from systems.safe.types import SIGNED, UNSIGNED, Local, Signature, Ty, Typing, settled, strip

Value: TypeAlias = Any
Environment: TypeAlias = dict[str, Value]
"""Values by the unique names of variables; those at entry of `&mut` parameters by `old ` and that name."""
Evaluate: TypeAlias = Callable[[Environment], Value]
_DEPTH = 200
_PROBES = range(-1, 9)
_MOST = 4000
"""Most values of one bound variable that are tried."""


class Unknown(SafeError):
    """The value of an expression that is not determined, or not by looking at finitely many values."""


class Made(NamedTuple):
    """A value of an enum or a struct."""

    variant: str
    fields: tuple[Value, ...] = ()


def integer_range(name: str) -> tuple[int, int] | None:
    """Least and greatest value of a machine integer type; `usize` and `isize` have 64 bits."""
    if name in UNSIGNED or name == "usize":
        return 0, 2 ** UNSIGNED.get(name, 64) - 1
    if name in SIGNED or name == "isize":
        bits = SIGNED.get(name, 64)
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if name == "char":
        return 0, 0x10FFFF
    return None


def wrapped(value: int, name: str) -> int:
    """`value as name`, as Rust computes it."""
    bounds = integer_range(name)
    if bounds is None or bounds[0] <= value <= bounds[1]:
        return value
    return (value - bounds[0]) % (bounds[1] - bounds[0] + 1) + bounds[0]


class Evaluator:
    """Evaluates the specification expressions of one checked program."""

    def __init__(self, typing: Typing) -> None:
        self.typing = typing
        self._made: dict[int, Evaluate] = {}
        self._known: dict[tuple[str, tuple[Value, ...]], Value] = {}
        self._depth = 0

    def type_of(self, node: s.Node) -> Ty:
        return settled(strip(self.typing.types[id(node)]), "int")

    def holds(self, clause: s.Expr, env: Environment) -> bool | None:
        """Whether a condition holds; None where that is not determined."""
        try:
            return bool(self.function(clause)(dict(env)))
        except (Unknown, RecursionError):
            return None

    def function(self, expr: s.Expr) -> Evaluate:
        """The function that evaluates `expr`; it raises Unknown."""
        found = self._made.get(id(expr))
        if found is None:
            found = self._made[id(expr)] = self._make(expr)
        return found

    def _make(self, expr: s.Expr) -> Evaluate:
        match expr:
            case s.Lit():
                return (
                    _constant(expr.value if expr.kind == "bool" else int(expr.value))
                    if expr.kind != "string"
                    else _undetermined
                )
            case s.Path():
                return self._path(expr)
            case s.Unary():
                inner = self.function(expr.operand)
                if expr.op == "!":
                    limits = integer_range(self.type_of(expr).name)
                    if limits is not None:
                        return lambda env: sum(limits) - inner(env)
                    return _not(inner) if self.type_of(expr).name == "bool" else _undetermined
                return (lambda env: -inner(env)) if expr.op == "-" else inner
            case s.Binary():
                return self._binary(expr)
            case s.Chain():
                return self._chain(expr)
            case s.Cast():
                inner, name = self.function(expr.operand), self.type_of(expr).name
                return lambda env: _clipped(inner(env), name)
            case s.Call() | s.Method():
                return self._call(expr)
            case s.Field():
                return self._field(expr)
            case s.Index():
                base, index = self.function(expr.receiver), self.function(expr.index)
                return lambda env: _element(base(env), index(env))
            case s.View():
                return self.function(expr.operand)
            case s.Trigger():
                return self.function(expr.operand)
            case s.Is() if isinstance(expr.pattern, s.VariantPattern):
                inner, variant = self.function(expr.operand), expr.pattern.path[-1]
                return lambda env: _variant(inner(env)).variant == variant
            case s.If():
                return self._conditional(expr)
            case s.Match():
                return self._match(expr)
            case s.Block():
                return self._block(expr)
            case s.Quantifier():
                return self._quantifier(expr)
            case s.Closure():
                return self._closure(expr)
            case s.Tuple():
                items = [self.function(item) for item in expr.items]
                return lambda env: tuple(item(env) for item in items)
            case s.ListLiteral(kind="seq"):
                items = [self.function(item) for item in expr.items]
                return lambda env: tuple(item(env) for item in items)
            case s.ListLiteral(kind="set"):
                items = [self.function(item) for item in expr.items]
                return lambda env: frozenset(item(env) for item in items)
        return _undetermined

    def _path(self, expr: s.Path) -> Evaluate:
        local = self.typing.locals.get(id(expr))
        if local is not None:
            return _variable(local.unique)
        callee = self.typing.callees.get(id(expr))
        if callee is not None and callee.kind == "variant":
            return _constant(Made(callee.name))
        if len(expr.names) == 1 and expr.names[0] in self.typing.constants:
            return _constant(self.typing.constants[expr.names[0]][1])
        if len(expr.names) == 2 and expr.names[1] in ("MIN", "MAX"):
            bounds = integer_range(expr.names[0])
            if bounds is not None:
                return _constant(bounds[expr.names[1] == "MAX"])
        return _undetermined

    def _binary(self, expr: s.Binary) -> Evaluate:
        left, right = self.function(expr.left), self.function(expr.right)
        match expr.op:
            case "&&" | "&&&":
                return lambda env: _both(left, right, env)
            case "||" | "|||":
                return lambda env: not _both(_not(left), _not(right), env)
            case "==>":
                return lambda env: not _both(left, _not(right), env)
            case "<==":
                return lambda env: not _both(right, _not(left), env)
        operation = _OPERATIONS.get(expr.op)
        if operation is None:
            return _undetermined
        return lambda env: operation(left(env), right(env))

    def _chain(self, expr: s.Chain) -> Evaluate:
        values = [self.function(operand) for operand in expr.operands]
        tests = [_OPERATIONS[op] for op in expr.ops]

        def chain(env: Environment) -> bool:
            before = values[0](env)
            for test, value in zip(tests, values[1:], strict=True):
                after = value(env)
                if not test(before, after):
                    return False
                before = after
            return True

        return chain

    def _field(self, expr: s.Field) -> Evaluate:
        inner, kind = self.function(expr.receiver), self.type_of(expr.receiver)
        if kind.name == "tuple":
            place = int(expr.name)
            return lambda env: inner(env)[place]
        names = [name for name, _ in self.typing.datatypes[kind.name].variants[0].fields]
        at = names.index(expr.name)
        return lambda env: _variant(inner(env)).fields[at]

    def _conditional(self, expr: s.If) -> Evaluate:
        assert expr.orelse is not None
        then, orelse = self.function(expr.then), self.function(expr.orelse)
        if isinstance(expr.condition, s.LetCondition):
            subject, pattern = self.function(expr.condition.value), expr.condition.pattern
            return lambda env: then(env) if self.matches(pattern, subject(env), env) else orelse(env)
        condition = self.function(expr.condition)
        return lambda env: then(env) if condition(env) else orelse(env)

    def _match(self, expr: s.Match) -> Evaluate:
        subject = self.function(expr.subject)
        arms = [
            (
                arm.pattern,
                self.function(arm.guard) if arm.guard is not None else _constant(True),
                self.function(arm.body),
            )
            for arm in expr.arms
        ]

        def match(env: Environment) -> Value:
            value = subject(env)
            for pattern, guard, body in arms:
                if self.matches(pattern, value, env) and guard(env):
                    return body(env)
            raise Unknown("no arm matches")

        return match

    def _block(self, expr: s.Block) -> Evaluate:
        if expr.tail is None:
            return _undetermined
        steps: list[tuple[s.Pattern, Evaluate]] = []
        for statement in expr.statements:
            if not isinstance(statement, s.Let) or statement.value is None:
                return _undetermined
            steps.append((statement.pattern, self.function(statement.value)))
        tail = self.function(expr.tail)
        if not steps:
            return tail

        def block(env: Environment) -> Value:
            for pattern, value in steps:
                self.matches(pattern, value(env), env)
            return tail(env)

        return block

    def matches(self, pattern: s.Pattern, value: Value, env: Environment) -> bool:
        """Whether the pattern fits; its names are bound in `env`."""
        match pattern:
            case s.Bind():
                local = self.typing.locals.get(id(pattern))
                if local is not None:
                    env[local.unique] = value
                return True
            case s.TuplePattern():
                return all(self.matches(item, part, env) for item, part in zip(pattern.items, value, strict=True))
            case s.VariantPattern():
                made = _variant(value)
                if made.variant != pattern.path[-1]:
                    return False
                parts = made.fields
                if pattern.fields is not None:
                    kind = settled(strip(self.typing.types[id(pattern)]), "int")
                    variants = self.typing.datatypes[kind.name].variants
                    names = [name for name, _ in next(v for v in variants if v.name == made.variant).fields]
                    parts = tuple(made.fields[names.index(name)] for name in pattern.fields)
                return all(self.matches(item, part, env) for item, part in zip(pattern.items, parts, strict=True))
            case s.LiteralPattern():
                return bool(self.function(pattern.value)(env) == value)

    # quantifiers and functions

    def _quantifier(self, expr: s.Quantifier) -> Evaluate:
        if expr.kind == "choose":
            return _undetermined
        locals_ = [self.typing.locals[id(param)] for param in expr.params]
        kinds = [settled(strip(local.type), "int") for local in locals_]
        known = list(_conjuncts(expr.body, expr.kind == "forall"))
        comparisons = self._followed([pair for part in known for pair in _comparisons(part)], locals_)
        domains: list[Callable[[Environment], tuple[Iterable[Value], bool]]] = []
        free = {local.unique for local in locals_}
        for local, kind in zip(locals_, kinds, strict=True):
            domains.append(self._domain(local, kind, comparisons, frozenset(free)))
            free.discard(local.unique)
        body = self.function(expr.body)
        wanted = expr.kind == "exists"

        def search(env: Environment, place: int) -> bool | None:
            """Whether some choice of the rest makes the body `wanted`; None where that is not determined."""
            if place == len(locals_):
                try:
                    return bool(body(env)) == wanted
                except Unknown:
                    return None
            values, whole = domains[place](env)
            found: bool | None = False if whole else None
            unique = locals_[place].unique
            for value in values:
                env[unique] = value
                inner = search(env, place + 1)
                if inner:
                    return True
                if inner is None:
                    found = None
            return found

        def quantifier(env: Environment) -> bool:
            found = search(env, 0)
            if found is None:
                raise Unknown("a quantifier without finite bounds")
            return found == wanted

        return quantifier

    def _domain(
        self, local: Local, kind: Ty, comparisons: Sequence[tuple[s.Expr, str, s.Expr]], free: frozenset[str]
    ) -> Callable[[Environment], tuple[Iterable[Value], bool]]:
        if kind.name == "bool":
            return lambda env: ((False, True), True)
        bounds = integer_range(kind.name)
        if bounds is None and kind.name not in ("int", "nat"):
            return lambda env: ((), False)
        lows: list[tuple[Evaluate, int]] = []
        highs: list[tuple[Evaluate, int]] = []
        for left, op, right in comparisons:
            if self._is(left, local) and not self._mentions(right, free):
                highs.append((self.function(right), 0 if op == "<" else 1))
            if self._is(right, local) and not self._mentions(left, free):
                lows.append((self.function(left), 1 if op == "<" else 0))
        low_default = 0 if kind.name == "nat" else bounds[0] if bounds is not None else None
        high_default = bounds[1] + 1 if bounds is not None else None

        def domain(env: Environment) -> tuple[Iterable[Value], bool]:
            low = [value(env) + step for value, step in lows] + ([low_default] if low_default is not None else [])
            high = [value(env) + step for value, step in highs] + ([high_default] if high_default is not None else [])
            if low and high and min(high) - max(low) <= _MOST:
                return range(max(low), min(high)), True
            if low:
                return range(max(low), max(low) + 9), False
            return _PROBES, False

        return domain

    def _followed(
        self, comparisons: list[tuple[s.Expr, str, s.Expr]], locals_: Sequence[Local]
    ) -> list[tuple[s.Expr, str, s.Expr]]:
        """With what follows through one bound variable: from `i < j` and `j < n` also `i < n`."""
        return comparisons + [
            (left, "<" if "<" in (op, then) else "<=", right)
            for middle in locals_
            for left, op, via in comparisons
            if self._is(via, middle)
            for again, then, right in comparisons
            if self._is(again, middle)
        ]

    def _is(self, expr: s.Expr, local: Local) -> bool:
        return isinstance(expr, s.Path) and self.typing.locals.get(id(expr)) is local

    def _mentions(self, expr: object, free: frozenset[str]) -> bool:
        if isinstance(expr, tuple):
            return any(self._mentions(part, free) for part in expr)
        if not isinstance(expr, s.Node):
            return False
        local = self.typing.locals.get(id(expr))
        if local is not None and local.unique in free:
            return True
        return any(self._mentions(getattr(expr, name), free) for name in expr.__dataclass_fields__ if name != "span")

    def _closure(self, expr: s.Closure) -> Evaluate:
        names = [self.typing.locals[id(param)].unique for param in expr.params]
        body = self.function(expr.body)
        return lambda env: lambda *values: body({**env, **dict(zip(names, values, strict=True))})

    def _call(self, expr: s.Call | s.Method) -> Evaluate:
        callee = self.typing.callees[id(expr)]
        if callee.kind == "old":
            return _variable(f"old {callee.name}")
        if callee.kind == "final":
            return _variable(callee.name)
        args = [self.function(arg) for arg in expr.args]
        if isinstance(expr, s.Method):
            args.insert(0, self.function(expr.receiver))
        match callee.kind:
            case "apply":
                assert isinstance(expr, s.Call)
                function = self.function(expr.function)
                return lambda env: function(env)(*(arg(env) for arg in args))
            case "variant":
                return lambda env: Made(callee.name, tuple(arg(env) for arg in args))
            case "fn":
                signature = self.typing.functions[callee.name]
                return lambda env: self.spec_call(signature, tuple(arg(env) for arg in args))
            case "operation":
                operation = _LIBRARY.get(
                    callee.name.split(".")[1] if not callee.name.startswith("Set.") else callee.name
                )
                if operation is not None:
                    return lambda env: operation(*(arg(env) for arg in args))
        return _undetermined

    def spec_call(self, signature: Signature, values: tuple[Value, ...]) -> Value:
        """A spec function on values."""
        if signature.fn.body is None or signature.fn.mode != "spec":
            raise Unknown("a function without a body")
        key = (signature.name, values)
        try:
            return self._known[key]
        except KeyError:
            pass
        except TypeError as error:
            raise Unknown("a function of functions") from error
        if self._depth > _DEPTH:
            raise Unknown("recursion too deep")
        self._depth += 1
        try:
            env = dict(zip((param.unique for param in signature.params), values, strict=True))
            found = self.function(signature.fn.body)(env)
        finally:
            self._depth -= 1
        self._known[key] = found
        return found


def _constant(value: Value) -> Evaluate:
    return lambda env: value


def _variable(name: str) -> Evaluate:
    def variable(env: Environment) -> Value:
        try:
            return env[name]
        except KeyError:
            raise Unknown(f"no value for {name}") from None

    return variable


def _undetermined(env: Environment) -> Value:
    raise Unknown("not evaluated")


def _not(value: Evaluate) -> Evaluate:
    return lambda env: not value(env)


def _both(left: Evaluate, right: Evaluate, env: Environment) -> bool:
    """Conjunction of which one false part is enough."""
    try:
        if not left(env):
            return False
    except Unknown:
        if not right(env):
            return False
        raise
    return bool(right(env))


def _conjuncts(expr: s.Expr, premises: bool) -> Iterable[s.Expr]:
    """What holds wherever the body of a quantifier matters: premises of a universal one, parts of an existential."""
    match expr:
        case s.Binary(op="==>") if premises:
            yield from _conjuncts(expr.left, False)
            yield from _conjuncts(expr.right, True)
        case s.Binary(op="&&" | "&&&") if not premises:
            yield from _conjuncts(expr.left, False)
            yield from _conjuncts(expr.right, False)
        case s.Trigger():
            yield from _conjuncts(expr.operand, premises)
        case s.Block(statements=(), tail=tail) if tail is not None:
            yield from _conjuncts(tail, premises)
        case _ if not premises:
            yield expr


def _comparisons(expr: s.Expr) -> Iterable[tuple[s.Expr, str, s.Expr]]:
    """Each `a < b` and `a <= b` that a condition says; of a chain, also those that follow."""
    if isinstance(expr, s.Binary) and expr.op in ("<", "<="):
        yield expr.left, expr.op, expr.right
    elif isinstance(expr, s.Binary) and expr.op in (">", ">="):
        yield expr.right, "<" if expr.op == ">" else "<=", expr.left
    elif isinstance(expr, s.Binary) and expr.op == "==":
        yield expr.left, "<=", expr.right
        yield expr.right, "<=", expr.left
    elif isinstance(expr, s.Chain) and all(op in ("<", "<=") for op in expr.ops):
        for start, left in enumerate(expr.operands):
            for end in range(start + 1, len(expr.operands)):
                yield left, "<" if "<" in expr.ops[start:end] else "<=", expr.operands[end]


def _clipped(value: Value, name: str) -> Value:
    bounds = integer_range(name)
    if isinstance(value, bool) or name == "bool":
        return int(value) if name != "bool" else value
    if (bounds is not None and not bounds[0] <= value <= bounds[1]) or (name == "nat" and value < 0):
        raise Unknown("a cast of a number that does not fit")
    return value


def _element(base: Value, index: Value) -> Value:
    if not isinstance(base, tuple) or not 0 <= index < len(base):
        raise Unknown("an element out of bounds")
    return base[index]


def _variant(value: Value) -> Made:
    if not isinstance(value, Made):
        raise Unknown("not a value of a data type")
    return value


def _quotient(left: int, right: int) -> int:
    if right == 0:
        raise Unknown("division by zero")
    return left // right if right > 0 else -(left // -right)


def _remainder(left: int, right: int) -> int:
    if right == 0:
        raise Unknown("remainder by zero")
    return left % abs(right)


def _slice(base: tuple[Value, ...], low: int, high: int) -> tuple[Value, ...]:
    if not 0 <= low <= high <= len(base):
        raise Unknown("a subrange out of bounds")
    return base[low:high]


def _end(base: tuple[Value, ...], last: bool, rest: bool) -> Value:
    if not base:
        raise Unknown("an end of an empty sequence")
    if rest:
        return base[:-1] if last else base[1:]
    return base[-1] if last else base[0]


def _updated(base: tuple[Value, ...], index: int, value: Value) -> tuple[Value, ...]:
    if not 0 <= index < len(base):
        raise Unknown("an update out of bounds")
    return (*base[:index], value, *base[index + 1 :])


def _folded(base: tuple[Value, ...], first: Value, step: Callable[[Value, Value], Value]) -> Value:
    for item in base:
        first = step(first, item)
    return first


def _unwrapped(value: Value) -> Value:
    made = _variant(value)
    if made.variant != "Some":
        raise Unknown("`unwrap` of `None`")
    return made.fields[0]


_OPERATIONS: dict[str, Callable[[Value, Value], Value]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": _quotient,
    "%": _remainder,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    **dict.fromkeys(("==", "===", "=~=", "=~~=", "<==>"), lambda a, b: a == b),
    **dict.fromkeys(("!=", "!==", "!~=", "!~~="), lambda a, b: a != b),
    "&": lambda a, b: a & b,
    "|": lambda a, b: a | b,
    "^": lambda a, b: a ^ b,
    "<<": lambda a, b: a << b if 0 <= b < 128 else _undetermined({}),
    ">>": lambda a, b: a >> b if 0 <= b < 128 else _undetermined({}),
}
_LIBRARY: dict[str, Callable[..., Value]] = {
    "len": len,
    "unicode_len": len,
    "view": lambda v: v,
    "is_ascii": lambda v: all(c < 128 for c in v),
    "index": _element,
    "spec_index": _element,
    "push": lambda v, x: (*v, x),
    "update": _updated,
    "subrange": _slice,
    "add": lambda v, w: v + w,
    "take": lambda v, n: _slice(v, 0, n),
    "skip": lambda v, n: _slice(v, n, len(v)),
    "first": lambda v: _end(v, False, False),
    "last": lambda v: _end(v, True, False),
    "drop_first": lambda v: _end(v, False, True),
    "drop_last": lambda v: _end(v, True, True),
    "contains": lambda v, x: x in v,
    "no_duplicates": lambda v: len(set(v)) == len(v),
    "insert": lambda v, i, x: (*_slice(v, 0, i), x, *v[i:]),
    "remove": lambda v, i: (*_slice(v, 0, i), *_slice(v, i + 1, len(v))),
    "reverse": lambda v: v[::-1],
    "map": lambda v, f: tuple(f(i, x) for i, x in enumerate(v)),
    "map_values": lambda v, f: tuple(f(x) for x in v),
    "filter": lambda v, f: tuple(x for x in v if f(x)),
    "fold_left": _folded,
    "to_set": frozenset,
    "empty": tuple,
    "new": lambda n, f: tuple(f(i) for i in range(min(n, _MOST))),
    "is_some": lambda v: _variant(v).variant == "Some",
    "is_none": lambda v: _variant(v).variant == "None",
    "unwrap": _unwrapped,
    "Set.contains": lambda v, x: x in v,
    "Set.insert": lambda v, x: v | {x},
    "Set.remove": lambda v, x: v - {x},
    "Set.union": lambda v, w: v | w,
    "Set.intersect": lambda v, w: v & w,
    "Set.difference": lambda v, w: v - w,
    "Set.subset_of": lambda v, w: v <= w,
    "Set.disjoint": lambda v, w: not v & w,
    "Set.finite": lambda v: True,
    "Set.len": len,
    "Set.is_empty": lambda v: not v,
    "Set.empty": frozenset,
}  # fmt: skip
