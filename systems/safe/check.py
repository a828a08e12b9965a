"""Names, types, modes and mutability: what rustc and Verus refuse before anything is proved."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from systems.safe import syntax as s
from systems.safe.calls import Calls
from systems.safe.scopes import ARITY, fits
from systems.safe.syntax import ModeProblem, ProgramProblem, TypeProblem, Unsupported
from systems.safe.types import (
    BOOL,
    INTEGERS,
    NEVER,
    UNIT,
    Callee,
    Local,
    Signature,
    Ty,
    Type,
    Typing,
    Var,
    find,
    strip,
    unify,
)  # fmt: skip
from systems.safe.vstd import operations

_TRUST = ("external", "assume_specification", "axiom", "verifier::truncate", "verifier::assume")


def check(program: s.Program, edition: str = "current") -> Typing:
    """Resolve and type every node. Raises TypeProblem, ModeProblem or Unsupported at the first offence."""
    return Checker(program, edition).run()


def refused(program: s.Program, edition: str, optional: Callable[[int], bool]) -> set[int]:
    """The places of clauses and proof statements for which `optional` holds and that do not type-check, in one go.
    Raises as `check` does for anything else."""
    checker = _Tolerant(program, edition, optional)
    checker.run()
    return checker.refused


class Checker(Calls):
    """Statements, functions and programs."""

    def run(self) -> Typing:
        program = self.typing.program
        for item in program.items:
            if isinstance(item, s.Datatype):
                if item.name in self.typing.datatypes or item.name in ARITY:
                    raise TypeProblem(f"the name `{item.name}` is defined multiple times", item.span)
                self.typing.datatypes[item.name] = item
        for item in program.items:
            self.declare(item)
        for fn, generics, own in self.functions:
            self.generics, self.own = generics, own
            self.function(self.typing.functions[self.full_name(fn, own)])
        return self.typing

    def declare(self, item: s.Item) -> None:
        match item:
            case s.Fn():
                self.declare_function(item, (), None)
            case s.Impl():
                self.generics = item.generics
                own = self.type(item.type)
                for fn in item.functions:
                    self.declare_function(fn, item.generics, own)
            case s.Const():
                value = item.value
                type_ = self.type(item.type)
                if not isinstance(value, s.Lit) or value.kind != "int" or type_.name not in INTEGERS:
                    raise Unsupported("constants that are not integer literals", item.span)
                if not fits(int(value.value), type_.name):
                    raise TypeProblem(f"literal out of range for `{type_}`", value.span)
                self.typing.constants[item.name] = (type_, int(value.value))
            case s.OtherItem():
                raise Unsupported(f"`{item.what}` items", item.span)
            case s.Use():
                if item.text.startswith("broadcast") or "broadcast use" in item.text:
                    raise Unsupported("`broadcast use`", item.span)
            case s.Datatype():
                self.generics = item.generics
                for variant in item.variants:
                    for _, type_expr in variant.fields:
                        self.type(type_expr)

    def declare_function(self, fn: s.Fn, generics: tuple[str, ...], own: Ty | None) -> None:
        name = self.full_name(fn, own)
        if name in self.typing.functions:
            raise TypeProblem(f"the name `{name}` is defined multiple times", fn.span)
        for attribute in fn.attributes:
            if any(word in attribute for word in _TRUST):
                raise Unsupported(f"trusted code: #[{attribute}]", fn.span)
            plain = attribute.split("(")[0]
            if plain.startswith("verifier") and plain not in (
                "verifier::loop_isolation", "verifier::opaque", "verifier::inline", "verifier::spinoff_prover",
                "verifier::rlimit", "verifier::exec_allows_no_decreases_clause", "verifier::integer_ring",
                "verifier::nonlinear", "verifier",
            ):  # fmt: skip
                raise Unsupported(f"attribute #[{attribute}]", fn.span)
            if plain in ("verifier::integer_ring", "verifier::nonlinear", "verifier") or plain in (
                "spec", "proof", "spec_static", "specfn",
            ):  # fmt: skip
                raise Unsupported(f"attribute #[{attribute}]", fn.span)
        if fn.mode == "axiom" or "broadcast" in fn.qualifiers:
            raise Unsupported("`axiom` and `broadcast` functions", fn.span)
        if fn.body is None and fn.mode != "spec":
            raise TypeProblem("free function without a body", fn.span)
        self.generics = (*generics, *fn.generics)
        self.own = own
        params: list[Local] = []
        for param in fn.params:
            if any(param.name == earlier.name for earlier in params):
                raise TypeProblem(
                    f"identifier `{param.name}` is bound more than once in this parameter list", param.span
                )
            assert param.type is not None
            type_ = self.type(param.type)
            if fn.mode != "exec" and type_.name == "&mut":
                raise Unsupported("`&mut` parameters of proof and spec functions", param.span)
            mode = "exec" if fn.mode == "exec" and not param.mode else "spec"
            if fn.mode == "spec" and param.mutable:
                raise ModeProblem("mutable parameters are not allowed in spec functions", param.span)
            params.append(self.local(param.name, type_, mode, param.mutable, param))
        result = self.type(fn.result[1]) if fn.result[1] is not None else UNIT
        if fn.mode == "spec" and fn.result[1] is None:
            raise TypeProblem("spec functions must return a value", fn.span)
        if fn.mode == "spec" and (fn.requires or fn.ensures):
            raise ModeProblem("spec functions cannot have requires or ensures", fn.span)
        if result.name == "&mut":
            raise Unsupported("functions that return `&mut`", fn.span)
        result_local = self.local(
            fn.result[0] or "result%", result, fn.mode if fn.mode == "exec" else "spec", False, None
        )
        signature = Signature(name, fn, self.generics, tuple(params), result, result_local)
        self.typing.functions[name] = signature
        self.functions.append((fn, self.generics, own))

    def function(self, signature: Signature) -> None:
        fn = signature.fn
        self.scopes = [{param.name: param for param in signature.params}]
        self.result = signature.result
        self.loops = 0
        references = frozenset(
            param.name for param in signature.params if isinstance(param.type, Ty) and param.type.name == "&mut"
        )
        self.mode = "spec"
        self.before_call = references
        for clause in (*fn.requires, *fn.recommends):
            self.coerce(self.expr(clause), BOOL, clause.span)
        for clause in fn.decreases:
            self.expr(clause)
        if fn.when is not None:
            self.coerce(self.expr(fn.when), BOOL, fn.when.span)
        self.before_call = frozenset()
        if fn.result[0]:
            if any(fn.result[0] == param.name for param in signature.params):
                raise TypeProblem(f"identifier `{fn.result[0]}` is bound more than once", fn.span)
            self.scopes.append({fn.result[0]: signature.result_local})
        for clause in fn.ensures:
            self.coerce(self.expr(clause), BOOL, clause.span)
        if fn.result[0]:
            self.scopes.pop()
        self.mode = fn.mode
        if fn.body is not None:
            found = self.block(fn.body, signature.result)
            self.coerce(found, signature.result, (fn.body.tail or fn.body).span)
        for variable in self.untyped:
            if isinstance(found := find(variable), Var):
                found.value = Ty("i32")
        self.untyped = []
        self.mode = "spec"
        waiting, self.later = self.later, []
        for left, right, expr in waiting:
            self.equality(expr, strip(left), strip(right))
        self.later = []

    def block(self, block: s.Block, expected: Type | None = None) -> Type:
        with self.scope():
            diverges = False
            for statement in block.statements:
                diverges = self.statement(statement) or diverges
            value = self.expr(block.tail, expected) if block.tail is not None else UNIT
            found = NEVER if diverges and block.tail is None else value
        return self.note(block, found)

    def statement(self, statement: s.Statement) -> bool:
        """Whether control never passes it."""
        if isinstance(statement, s.ItemStatement):
            raise Unsupported("items inside functions", statement.span)
        if isinstance(statement, s.Let):
            self.let(statement)
            return False
        expr = statement.expr
        found = find(self.expr(expr, UNIT if isinstance(expr, s.If | s.Match | s.Block) else None))
        if isinstance(expr, s.If | s.Match) and not (isinstance(found, Ty) and found in (UNIT, NEVER)):
            self.coerce(found, UNIT, expr.span)
        return isinstance(found, Ty) and found == NEVER

    def let(self, let: s.Let) -> None:
        if let.orelse is not None:
            raise Unsupported("`let ... else`", let.span)
        if self.mode == "spec" and isinstance(let.pattern, s.Bind) and let.pattern.mutable:
            raise ModeProblem("`let mut` is not allowed in spec code", let.span)
        ghost = bool(let.ghost) or self.mode != "exec"
        mode = "spec" if ghost else "exec"
        expected = self.any_type(let.type) if let.type is not None else None
        inner = "proof" if let.ghost and self.mode == "exec" else self.mode
        if let.value is not None:
            with self.in_mode(inner):
                found = self.expr(let.value, expected)
            if expected is not None:
                self.coerce(found, expected, let.value.span)
                found = expected
        else:
            found = expected if expected is not None else Var()
        shown = find(found)
        if not ghost and isinstance(shown, Ty):
            if shown.name == "&mut":
                raise Unsupported("local `&mut` references", let.span)
            if shown.name in ("int", "nat", "Seq", "Set", "Map"):
                raise ModeProblem(f"`{shown}` values are only allowed in ghost variables", let.span)
        self.pattern(let.pattern, found, mode, let.value is None)

    def expr(self, expr: s.Expr, expected: Type | None = None) -> Type:
        return self.note(expr, self.infer(expr, expected))

    def infer(self, expr: s.Expr, expected: Type | None) -> Type:
        match expr:
            case s.Lit():
                return self.literal(expr)
            case s.Path():
                return self.path(expr, expected)
            case s.Unary():
                return self.unary(expr, expected)
            case s.Binary():
                return self.binary(expr, expected)
            case s.Chain():
                kinds = [self.expr(operand) for operand in expr.operands]
                if self.mode == "exec":
                    raise TypeProblem("comparison operators cannot be chained", expr.span)
                for kind, operand in zip(kinds, expr.operands, strict=True):
                    self.integer(kind, operand.span)
                return BOOL
            case s.Cast():
                return self.cast(expr)
            case s.Call():
                return self.call(expr, expected)
            case s.Method():
                return self.method(expr, expected)
            case s.Field():
                return self.field(expr)
            case s.Index():
                return self.index(expr)
            case s.View():
                return self.view(expr)
            case s.Is():
                if self.mode == "exec":
                    raise ModeProblem("`is` and `matches` are only allowed in ghost code", expr.span)
                if expr.binds:
                    raise Unsupported("`matches`", expr.span)
                subject = self.expr(expr.operand)
                if not isinstance(expr.pattern, s.VariantPattern) or expr.pattern.items:
                    raise TypeProblem("expected a variant after `is`", expr.span)
                path = expr.pattern.path
                shown = strip(subject)
                if len(path) == 1 and isinstance(shown, Ty) and shown.name in self.typing.datatypes:
                    path = (shown.name, *path)
                owner, _ = self.variant(path, expr.span)
                if not unify(shown, owner):
                    raise TypeProblem(f"mismatched types: expected `{subject}`, found `{owner}`", expr.span)
                self.typing.callees[id(expr)] = Callee("variant", path[-1], (owner,))
                return BOOL
            case s.If():
                return self.conditional(expr, expected)
            case s.Match():
                subject = self.expr(expr.subject)
                result: Type = NEVER
                for arm in expr.arms:
                    with self.scope():
                        self.pattern(arm.pattern, subject, "exec" if self.mode == "exec" else "spec")
                        if arm.guard is not None:
                            self.boolean(arm.guard)
                        found = self.expr(arm.body, expected)
                        result = self.join(result, found, arm.body.span)
                return result
            case s.Block():
                return self.block(expr, expected)
            case s.Quantifier():
                return self.quantifier(expr)
            case s.Closure():
                return self.closure(expr, expected)
            case s.Tuple():
                wanted = strip(expected) if expected is not None else None
                hints: Sequence[Type | None] = [None] * len(expr.items)
                if isinstance(wanted, Ty) and wanted.name == "tuple" and len(wanted.args) == len(expr.items):
                    hints = wanted.args
                return Ty("tuple", tuple(self.expr(item, hint) for item, hint in zip(expr.items, hints, strict=True)))
            case s.ListLiteral():
                return self.list_literal(expr)
            case s.StructLiteral():
                return self.struct_literal(expr)
            case s.Trigger():
                if self.mode == "exec":
                    raise ModeProblem("`#[trigger]` is only allowed in ghost code", expr.span)
                return self.expr(expr.operand, expected)
            case _:
                return self.infer_statement(expr, expected)

    def infer_statement(self, expr: s.Expr, expected: Type | None) -> Type:
        if self.mode == "spec" and not isinstance(expr, s.LetCondition | s.Range | s.Try | s.MacroCall):
            raise ModeProblem("statements are not allowed in spec code", expr.span)
        match expr:
            case s.Return():
                if self.mode == "proof":
                    raise Unsupported("`return` in proof code", expr.span)
                found = self.expr(expr.value, self.result) if expr.value is not None else UNIT
                self.coerce(found, self.result, expr.span)
                return NEVER
            case s.Break() | s.Continue():
                if not self.loops:
                    raise TypeProblem("`break` and `continue` are only allowed inside a loop", expr.span)
                if expr.label:
                    raise Unsupported("labelled `break` and `continue`", expr.span)
                return NEVER
            case s.Assert():
                with self.in_mode("spec"):
                    self.boolean(expr.condition)
                    for clause in expr.requires:
                        self.boolean(clause)
                if expr.body is not None:
                    with self.in_mode("proof"):
                        self.block(expr.body)
                return UNIT
            case s.AssertForall():
                with self.scope():
                    with self.in_mode("spec"):
                        self.bind_all(expr.params)
                        for group in expr.triggers:
                            for trigger in group:
                                self.expr(trigger)
                        if expr.premise is not None:
                            self.boolean(expr.premise)
                        self.boolean(expr.conclusion)
                    with self.in_mode("proof"):
                        self.block(expr.body)
                return UNIT
            case s.Assume():
                if expr.condition is not None:
                    with self.in_mode("spec"):
                        self.boolean(expr.condition)
                return UNIT
            case s.Reveal():
                name = expr.path[-1]
                if len(expr.path) == 1 and (signature := self.typing.functions.get(name)) is not None:
                    if signature.mode != "spec":
                        raise ModeProblem("reveal/fuel statements require a spec-mode function", expr.span)
                elif expr.path[-2:] != ("Seq", "filter") and "::".join(expr.path) not in self.typing.functions:
                    if ".".join(expr.path) in operations():
                        return UNIT
                    raise TypeProblem(f"cannot find function `{'::'.join(expr.path)}` in this scope", expr.span)
                return UNIT
            case s.ProofBlock():
                with self.in_mode("proof"):
                    self.block(expr.body)
                return UNIT
            case s.While():
                return self.loop(expr)
            case s.For():
                return self.for_loop(expr)
            case s.Assign():
                return self.assign(expr)
            case s.MacroCall():
                if expr.name in (
                    "panic",
                    "unreachable",
                    "unimplemented",
                    "todo",
                    "assert",
                    "assert_eq",
                    "println",
                    "calc",
                ):
                    raise Unsupported(f"`{expr.name}!`", expr.span)
                raise TypeProblem(f"cannot find macro `{expr.name}` in this scope", expr.span)
            case s.Range():
                raise Unsupported("ranges outside `for`", expr.span)
            case s.Try():
                raise Unsupported("`?`", expr.span)
        raise Unsupported(type(expr).__name__, expr.span)

    def conditional(self, expr: s.If, expected: Type | None) -> Type:
        with self.scope():
            if isinstance(expr.condition, s.LetCondition):
                subject = self.expr(expr.condition.value)
                self.pattern(expr.condition.pattern, subject, "exec" if self.mode == "exec" else "spec")
            else:
                self.boolean(expr.condition)
            then = self.block(expr.then, expected)
        if expr.orelse is None:
            if self.mode == "spec":
                raise TypeProblem("`if` may be missing an `else` clause", expr.span)
            self.coerce(then, UNIT, expr.then.span)
            return UNIT
        orelse = self.expr(expr.orelse, expected)
        return self.join(then, orelse, expr.orelse.span)

    def loop(self, expr: s.While) -> Type:
        if self.mode != "exec":
            raise ModeProblem("loops are only allowed in executable code", expr.span)
        if isinstance(expr.condition, s.LetCondition):
            raise Unsupported("`while let`", expr.span)
        if expr.label:
            raise Unsupported("loop labels", expr.span)
        if expr.condition is not None:
            self.boolean(expr.condition)
        self.loop_spec(expr.spec)
        self.loops += 1
        found = self.block(expr.body, UNIT)
        self.coerce(found, UNIT, expr.body.span)
        self.loops -= 1
        if expr.condition is None and not contains_break(expr.body):
            return NEVER
        return UNIT

    def loop_spec(self, spec: s.LoopSpec) -> None:
        with self.in_mode("spec"):
            for clause in (*spec.invariant, *spec.invariant_except_break, *spec.ensures):
                self.boolean(clause)
            for clause in spec.decreases:
                self.expr(clause)

    def for_loop(self, expr: s.For) -> Type:
        if self.mode != "exec":
            raise ModeProblem("loops are only allowed in executable code", expr.span)
        iterator = expr.iterator
        if not isinstance(iterator, s.Range) or iterator.inclusive or iterator.low is None or iterator.high is None:
            raise Unsupported("`for` over anything but a half-open range", expr.span)
        low, high = self.expr(iterator.low), self.expr(iterator.high)
        self.same(low, high, iterator.span)
        self.integer(low, iterator.span)
        with self.scope():
            self.bind(expr.name, low, "exec", False, expr)
            self.loop_spec(expr.spec)
            self.loops += 1
            self.coerce(self.block(expr.body, UNIT), UNIT, expr.body.span)
            self.loops -= 1
        return UNIT

    def assign(self, expr: s.Assign) -> Type:
        target = self.expr(expr.target)
        local = self.assignable(expr.target)
        if self.mode == "proof" and local.mode == "exec":
            raise ModeProblem(f"cannot assign to exec variable `{local.name}` from proof mode", expr.span)
        shown = find(target)
        if isinstance(expr.target, s.Path) and isinstance(shown, Ty) and shown.name == "&mut":
            raise TypeProblem(f"mismatched types: assign through `*{local.name}`", expr.span)
        if expr.op == "=":
            self.coerce(self.expr(expr.value, target), target, expr.value.span)
            return UNIT
        operator = s.Binary(expr.op[:-1], expr.target, expr.value, span=expr.span)
        found = self.binary(operator, None)
        self.coerce(found, strip(target), expr.value.span)
        return UNIT

    def assignable(self, expr: s.Expr) -> Local:
        if isinstance(expr, s.Index) and self.mode == "proof":
            raise TypeProblem("cannot assign to an element in proof code", expr.span)
        return self.place(expr)


def contains_break(node: object) -> bool:
    """Whether a `break` belongs to the loop whose body `node` is."""
    if isinstance(node, s.Break):
        return True
    if isinstance(node, s.While | s.For):
        return False
    if isinstance(node, tuple):
        return any(map(contains_break, node))
    if isinstance(node, s.Node):
        return any(contains_break(getattr(node, name)) for name in node.__dataclass_fields__ if name != "span")
    return False


class _Tolerant(Checker):
    """Goes on after a refused clause or proof statement that may as well be left out."""

    def __init__(self, program: s.Program, edition: str, optional: Callable[[int], bool]) -> None:
        super().__init__(program, edition)
        self.optional = optional
        self.refused: set[int] = set()

    def boolean(self, expr: s.Expr) -> None:
        if self.optional(expr.span.start):
            self.attempt(expr.span.start, lambda: super(_Tolerant, self).boolean(expr))
        else:
            super().boolean(expr)

    def statement(self, statement: s.Statement) -> bool:
        if not self.optional(statement.span.start):
            return super().statement(statement)
        return bool(self.attempt(statement.span.start, lambda: super(_Tolerant, self).statement(statement)))

    def attempt(self, place: int, action: Callable[[], object]) -> object:
        scopes, mode, later = list(self.scopes), self.mode, len(self.later)
        try:
            return action()
        except ProgramProblem:
            self.refused.add(place)
            self.scopes, self.mode = scopes, mode
            del self.later[later:]
            return None
