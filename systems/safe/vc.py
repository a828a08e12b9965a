"""From code to obligations: one forward walk per function, with the meaning that Verus gives to each construct.

A region is a body that is proved on its own: a function's, or an isolated loop's. Walking it appends facts and goals
to a script; every fact and goal stands under the guard of the branches around it, and a goal is a fact afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from systems.safe import syntax as s
from systems.safe.check import contains_break
from systems.safe.spec import Encoder, Env, compare, depth_name, fuel_name, nodes, value_type
from systems.safe.syntax import Span, TypeProblem, Unsupported
from systems.safe.terms import FALSE, TRUE, Term, conj, disj, equal, forall, implies, negate, number, show
from systems.safe.theory import bounds
from systems.safe.types import LISTS, SIGNED, UNIT, Local, Signature, Ty, find, settled, strip, substitute
from systems.safe.vstd import operations

OVERFLOW = "possible arithmetic underflow/overflow"
DIVISION = "possible division by zero"
PRECONDITION = "precondition not satisfied"
POSTCONDITION = "postcondition not satisfied"
BEFORE_LOOP = "invariant not satisfied before loop"
END_OF_LOOP = "invariant not satisfied at end of loop body"
LOOP_ENSURES = "loop ensures not satisfied"
ASSERTION = "assertion failed"
DECREASES = "decreases not satisfied"
_NO_ISOLATION = "verifier::loop_isolation(false)"
_NO_DECREASES = "verifier::exec_allows_no_decreases_clause"


@dataclass(frozen=True)
class Goal:
    """One obligation: what it is called when it fails, where, and further places with a word each."""

    kind: str
    span: Span
    labels: tuple[tuple[Span, str], ...] = ()


@dataclass
class Region:
    """The script of one separately proved body: SMT-LIB commands, with an entry of `goals` for each check in it."""

    function: str
    what: str
    span: Span
    commands: list[str] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    nonlinear: bool = False
    without: frozenset[str] = frozenset()
    """Recursive spec functions whose definitions may not be used here."""

    def declare(self, name: str, sort: str) -> None:
        self.commands.append(f"(declare-const {name} {sort})")

    def fact(self, term: Term) -> None:
        if term != TRUE:
            self.commands.append(f"(assert {show(term)})")

    def goal(self, term: Term, goal: Goal) -> None:
        if term == TRUE:
            return
        self.goals.append(goal)
        self.commands.append(f"(push)\n(assert (not {show(term)}))\n(check-sat)\n(get-info :rlimit)\n(pop)")
        self.fact(term)


@dataclass
class _Loop:
    """A loop that the walk is inside of. `exits` collects guard and values at each break of a loop not isolated."""

    spec: s.LoopSpec
    isolated: bool
    measure: list[Term]
    locals: frozenset[str]
    step: Callable[[], None] | None = None
    exits: list[tuple[Term, dict[str, Term]]] = field(default_factory=list)


def obligations(encoder: Encoder) -> list[Region]:
    """Every region of the program, functions in their order, a function's loops after it."""
    regions: list[Region] = []
    for signature in encoder.typing.functions.values():
        if signature.mode == "spec":
            regions.extend(_spec_function(encoder, signature))
        else:
            walk = _Walk(encoder, signature, Region(signature.name, "function", signature.fn.span), regions)
            walk.function()
    return regions


def _spec_function(encoder: Encoder, signature: Signature) -> list[Region]:
    """Termination of a recursive spec function; also translates its body, so that every problem in it is found."""
    fn = signature.fn
    types = {name: Ty(name) for name in signature.generics}
    encoder.spec_symbol(signature, [Ty(name) for name in signature.generics])
    if fn.body is None or not encoder.recursive(signature.name):
        return []
    if not fn.decreases:
        raise TypeProblem("recursive function must have a decreases clause", fn.span)
    knot = encoder.knot(signature.name)
    mentioned = (encoder.typing.callees.get(id(node)) for node in nodes(fn.decreases))
    if any(callee is not None and callee.name in knot for callee in mentioned):
        raise TypeProblem("a decreases clause may not call the function that it is for", fn.decreases[0].span)
    region = Region(signature.name, "termination", fn.span, without=knot)
    walk = _Walk(encoder, signature, region, [])
    env = Env(dict(walk.vars), {}, types)
    own = walk.measure(fn.decreases, env)
    watch: list[tuple[str, tuple[Term, ...], Term, Span, Env]] = []
    binders_before = set(encoder.kinds)
    encoder.watch_calls.append((encoder.knot(signature.name), watch))
    encoder.term(fn.body, env)
    encoder.watch_calls.pop()
    for name in [name for name in encoder.kinds if name not in binders_before]:
        region.declare(name, encoder.theory.sort(encoder.kinds[name]))
    for callee_name, values, path, span, callee_env in watch:
        callee = encoder.typing.functions[callee_name]
        inner = Env(dict(zip((param.unique for param in callee.params), values, strict=True)), {}, callee_env.types)
        region.goal(implies(path, _decreased(walk.measure(callee.fn.decreases, inner), own)), Goal(DECREASES, span))
    return [region]


def _decreased(new: Sequence[Term], old: Sequence[Term]) -> Term:
    """Lexicographically smaller, each part bounded below by zero where it falls."""
    found: Term = FALSE
    prefix: Term = TRUE
    for less, more in zip(new, old, strict=False):
        found = disj(found, conj(prefix, ("<=", "0", less), ("<", less, more)))
        prefix = conj(prefix, equal(less, more))
    return found


class _Walk:
    """The walk through one region. `vars` are current values by unique name, `olds` those at entry of `&mut`
    parameters, `entry` those of by-value parameters; `guard` is the condition of the path."""

    def __init__(self, encoder: Encoder, signature: Signature, region: Region, regions: list[Region]) -> None:
        self.encoder = encoder
        self.signature = signature
        self.region = region
        self.regions = regions
        self.vars: dict[str, Term] = {}
        self.olds: dict[str, Term] = {}
        self.entry: dict[str, Term] = {}
        self.locals: dict[str, Local] = {}
        self.guard: Term = TRUE
        self.quiet = False
        self.ghost = signature.mode != "exec"
        self.loops: list[_Loop] = []
        self.own_measure: list[Term] = []
        for param in signature.params:
            value = self.havoc(param)
            self.entry[param.unique] = value
            if _is_mutable_reference(param):
                self.olds[param.unique] = value

    # facts and goals

    @property
    def env(self) -> Env:
        return Env(self.vars, self.olds)

    def fresh(self, stem: str, kind: Ty) -> str:
        name = self.encoder.symbol(stem, kind)
        self.region.declare(name, self.encoder.theory.sort(kind))
        return name

    def havoc(self, local: Local) -> Term:
        """A new unknown value for a variable."""
        kind = value_type(local, Env({}))
        name = self.fresh(local.name, kind)
        self.region.fact(self.encoder.theory.typed(kind, name))
        if kind.name in LISTS | {"String", "str"}:
            self.region.fact(("<=", "0", self.length(kind, name)))
        self.vars[local.unique] = name
        self.locals[local.unique] = local
        return name

    def unknown(self, stem: str, kind: Ty) -> Term:
        name = self.fresh(stem, kind)
        self.region.fact(self.encoder.theory.typed(kind, name))
        return name

    def named(self, stem: str, kind: Ty, value: Term) -> Term:
        """A constant equal to `value`, so that terms stay small and ground terms exist to match."""
        if isinstance(value, str) or (value[0] == "-" and len(value) == 2 and isinstance(value[1], str)):
            return value
        name = self.fresh(stem, kind)
        self.region.fact(("=", name, value))
        return name

    def assume(self, term: Term) -> None:
        self.region.fact(implies(self.guard, term))

    def goal(self, term: Term, kind: str, span: Span, *labels: tuple[Span, str]) -> None:
        if self.guard == FALSE:
            return
        if self.quiet:
            self.assume(term)
        else:
            self.region.goal(implies(self.guard, term), Goal(kind, span, labels))

    def length(self, kind: Ty, value: Term) -> Term:
        element = kind.args[0] if kind.name in LISTS else Ty("char")
        sequence = Ty("Seq", (element,))
        return self.encoder.theory.seq("len", sequence, self.encoder.theory.view(kind, value))

    def type_of(self, node: s.Node) -> Ty:
        return self.encoder.type_of(node, self.env)

    def clause(self, clause: s.Expr, env: Env, proved: bool) -> Term:
        """A condition of a specification; `==` means `=~=` where this edition says so and it is to be proved."""
        return self.encoder.prop(clause, env, promote=proved and self.encoder.edition != "2024-08")

    # functions

    def function(self) -> None:
        fn = self.signature.fn
        self.regions.append(self.region)
        before = Env(self.vars, self.olds)
        for clause in fn.requires:
            self.assume(self.encoder.term(clause, before))
        for clause in fn.ensures:
            self.encoder.term(clause, self.post_env(self.vars, self.unknown("result", _result(self.signature, {}))))
        self.start_measure()
        assert fn.body is not None
        value = self.block(fn.body)
        if self.guard != FALSE:
            self.returning(value, (fn.body.tail or fn.body).span if fn.body.tail else _closing(fn.body.span))

    def start_measure(self) -> None:
        fn = self.signature.fn
        circular = self.encoder.recursive(self.signature.name)
        if circular and not fn.decreases and (self.signature.mode == "proof" or self.must_decrease()):
            raise TypeProblem("recursive function must have a decreases clause", fn.span)
        if fn.decreases:
            self.own_measure = self.measure(fn.decreases, Env({**self.vars, **self.entry}, self.olds))

    def must_decrease(self) -> bool:
        attributes = (*self.signature.fn.attributes, *self.encoder.typing.program.attributes)
        return self.encoder.edition != "2024-08" and _NO_DECREASES not in attributes

    def measure(self, clauses: Sequence[s.Expr], env: Env) -> list[Term]:
        found = []
        for clause in clauses:
            kind = self.encoder.type_of(clause, env)
            if self.encoder.theory.sort(kind) != "Int":
                raise Unsupported(f"`decreases` of type `{kind}`", clause.span)
            found.append(self.encoder.term(clause, env))
        return found

    def post_env(self, variables: dict[str, Term], result: Term) -> Env:
        values = {**variables}
        for param in self.signature.params:
            if not _is_mutable_reference(param):
                values[param.unique] = self.entry[param.unique]
        values[self.signature.result_local.unique] = result
        return Env(values, self.olds)

    def returning(self, value: Term, span: Span) -> None:
        if self.signature.fn.ensures:
            result = self.named("result", _result(self.signature, {}), value)
            env = self.post_env(self.vars, result)
            for clause in self.signature.fn.ensures:
                self.goal(
                    self.clause(clause, env, True), POSTCONDITION, span, (clause.span, "failed this postcondition")
                )

    # blocks and statements

    def unit(self) -> Term:
        return self.encoder.theory.make(UNIT, "mk", ())

    def block(self, block: s.Block) -> Term:
        for statement in block.statements:
            if isinstance(statement, s.Let):
                self.let(statement)
            elif isinstance(statement, s.Do):
                self.value(statement.expr)
        return self.value(block.tail) if block.tail is not None else self.unit()

    def let(self, let: s.Let) -> None:
        ghost, self.ghost = self.ghost, self.ghost or bool(let.ghost)
        if let.value is None:
            for node in nodes(let.pattern):
                local = self.encoder.typing.locals.get(id(node))
                if local is not None:
                    self.havoc(local)
        else:
            kind = self.encoder.type_of(let.pattern, self.env)
            value = self.named("let", kind, self.value(let.value))
            self.bind(let.pattern, kind, value)
        self.ghost = ghost

    def bind(self, pattern: s.Pattern, kind: Ty, value: Term) -> None:
        if not isinstance(pattern, s.Bind | s.TuplePattern):
            raise Unsupported("refutable `let` patterns", pattern.span)
        test, names = self.encoder.matches(pattern, kind, value, self.env)
        if test != TRUE:
            raise Unsupported("refutable `let` patterns", pattern.span)
        self.adopt(pattern, names)

    def adopt(self, pattern: s.Pattern, names: dict[str, Term]) -> None:
        for node in nodes(pattern):
            local = self.encoder.typing.locals.get(id(node))
            if local is not None and local.unique in names:
                self.locals[local.unique] = local
                self.vars[local.unique] = names[local.unique]

    def spec(self, expr: s.Expr) -> Term:
        return self.encoder.term(expr, self.env)

    def value(self, expr: s.Expr) -> Term:
        """Walk an expression of this region's code and give its value."""
        match expr:
            case s.Block():
                return self.block(expr)
            case s.If():
                return self.conditional(expr)
            case s.Match():
                return self.match(expr)
            case s.Assert():
                self.assertion(expr)
                return self.unit()
            case s.AssertForall():
                self.assert_forall(expr)
                return self.unit()
            case s.Assume():
                self.assume(FALSE if expr.condition is None else self.spec(expr.condition))
                return self.unit()
            case s.Reveal():
                self.reveal(expr)
                return self.unit()
            case s.ProofBlock():
                ghost, self.ghost = self.ghost, True
                self.block(expr.body)
                self.ghost = ghost
                return self.unit()
            case s.Assign():
                return self.assign(expr)
            case s.Call() | s.Method():
                callee = self.encoder.typing.callees[id(expr)]
                if callee.kind == "fn" and self.encoder.typing.functions[callee.name].mode == "proof":
                    return self.call(expr)
                if not self.ghost:
                    return self.executable(expr)
                return self.spec(expr)
        return self.spec(expr) if self.ghost else self.executable(expr)

    def executable(self, expr: s.Expr) -> Term:
        match expr:
            case s.Lit() | s.Path():
                return self.spec(expr)
            case s.Unary():
                inner = self.value(expr.operand)
                if expr.op == "!":
                    return negate(inner)
                if expr.op == "-":
                    found = number(-int(inner)) if isinstance(inner, str) and inner.isdigit() else ("-", inner)
                    self.in_range(found, self.type_of(expr), expr.span)
                    return found
                return inner
            case s.Binary():
                return self.binary(expr)
            case s.Cast():
                inner = self.value(expr.operand)
                target, given = self.type_of(expr), self.type_of(expr.operand)
                if isinstance(inner, str) and inner.isdigit():
                    return self.spec(expr)
                return self.encoder.theory.clip(given, target, inner)
            case s.Call():
                callee = self.encoder.typing.callees[id(expr)]
                if callee.kind == "variant":
                    parts = [self.value(arg) for arg in expr.args]
                    return self.encoder.theory.make(self.type_of(expr), callee.name, parts)
                if callee.kind == "operation":
                    return self.operation(expr, callee.name, list(expr.args))
                return self.call(expr)
            case s.Method():
                callee = self.encoder.typing.callees[id(expr)]
                if callee.kind == "operation":
                    return self.operation(expr, callee.name, [expr.receiver, *expr.args])
                return self.call(expr)
            case s.Index():
                return self.element(expr)
            case s.Field():
                kind = self.type_of(expr.receiver)
                value = self.value(expr.receiver)
                if kind.name == "tuple":
                    return self.encoder.theory.part(kind, "mk", int(expr.name), value)
                variant = self.encoder.typing.datatypes[kind.name].variants[0]
                place = [name for name, _ in variant.fields].index(expr.name)
                return self.encoder.theory.part(kind, variant.name, place, value)
            case s.Tuple():
                return self.encoder.theory.make(self.type_of(expr), "mk", [self.value(item) for item in expr.items])
            case s.StructLiteral():
                values = [self.value(value) for _, value in expr.fields]
                base = self.value(expr.base) if expr.base is not None else None
                return self.encoder.struct(expr, self.env, values, base)
            case s.ListLiteral(kind="vec"):
                return self.vector_literal(expr)
            case s.While():
                return self.loop(expr)
            case s.For():
                return self.for_loop(expr)
            case s.Return():
                value = self.value(expr.value) if expr.value is not None else self.unit()
                if self.guard != FALSE:
                    self.returning(value, expr.span)
                self.guard = FALSE
                return self.unit()
            case s.Break():
                self.leave(expr.span)
                return self.unit()
            case s.Continue():
                self.again(self.loops[-1])
                self.guard = FALSE
                return self.unit()
        raise Unsupported(f"{type(expr).__name__.lower()} in executable code", expr.span)

    # arithmetic

    def in_range(self, value: Term, kind: Ty, span: Span) -> None:
        if kind.name in ("int", "nat", "bool", "char"):
            return
        low, high = bounds(kind.name)
        self.goal(conj(("<=", low, value), ("<=", value, high) if high is not None else TRUE), OVERFLOW, span)

    def binary(self, expr: s.Binary) -> Term:
        op = expr.op
        if op in ("&&", "||"):
            left = self.value(expr.left)
            right = self.under(left if op == "&&" else negate(left), lambda: self.value(expr.right))
            return conj(left, right) if op == "&&" else disj(left, right)
        left, right = self.value(expr.left), self.value(expr.right)
        if op in ("==", "!="):
            return equal(left, right) if op == "==" else negate(equal(left, right))
        if op in ("<", "<=", ">", ">="):
            return compare(op, left, right)
        return self.arithmetic(op, left, right, self.type_of(expr.left), expr.span)

    def arithmetic(self, op: str, left: Term, right: Term, kind: Ty, span: Span) -> Term:
        if op in ("&", "|", "^"):
            return self.encoder.theory.bits(op, kind, left, right)
        if op in ("<<", ">>"):
            width = "32" if kind.name.endswith("size") else kind.name[1:]
            self.goal(conj(("<=", "0", right), ("<", right, width)), "possible bit shift underflow/overflow", span)
            return self.encoder.theory.bits(op, kind, left, right)
        if op in ("/", "%"):
            if kind.name in SIGNED or kind.name == "isize":
                raise Unsupported("div/mod on signed finite-width integers", span)
            self.goal(negate(equal(right, "0")), DIVISION, span)
            return self.encoder.theory.arithmetic(op, left, right)
        found = self.encoder.theory.arithmetic(op, left, right)
        self.in_range(found, kind, span)
        return found

    def under(self, condition: Term, walk: Callable[[], Term]) -> Term:
        """Walk under a further condition of the path, where nothing is assigned."""
        before, values = self.guard, dict(self.vars)
        self.guard = conj(self.guard, condition)
        found = walk()
        if self.vars != values or (self.guard == FALSE) != (conj(before, condition) == FALSE):
            raise Unsupported("assignment or jump inside an operand of `&&` or `||`", self.signature.fn.span)
        self.guard = before
        return found

    # places

    def element(self, expr: s.Index) -> Term:
        kind = self.type_of(expr.receiver)
        value, index = self.value(expr.receiver), self.value(expr.index)
        self.goal(
            conj(("<=", "0", index), ("<", index, self.length(kind, value))), PRECONDITION, expr.span,
            (expr.index.span, "index out of bounds"),
        )  # fmt: skip
        found = self.encoder.theory.seq("index", Ty("Seq", kind.args), self.encoder.theory.view(kind, value), index)
        return self.read(found, kind.args[0])

    def read(self, found: Term, kind: object) -> Term:
        """A value read from a collection, bound to a constant so that its term exists to match."""
        assert isinstance(kind, Ty)
        name = self.fresh("read", kind)
        self.region.fact(("=", name, found))
        self.region.fact(self.encoder.theory.typed(kind, name))
        return found

    def assign(self, expr: s.Assign) -> Term:
        if expr.op == "=":
            value = self.value(expr.value)
        else:
            kind = self.type_of(expr.target)
            left = self.value(expr.target)
            right = self.value(expr.value)
            if self.ghost:
                value = self.encoder.theory.arithmetic(expr.op[:-1], left, right)
            else:
                value = self.arithmetic(expr.op[:-1], left, right, kind, expr.span)
        self.store(expr.target, value)
        return self.unit()

    def store(self, place: s.Expr, value: Term) -> None:
        match place:
            case s.Path():
                local = self.encoder.typing.locals[id(place)]
                self.vars[local.unique] = self.named(local.name, value_type(local, Env({})), value)
                return
            case s.Unary(op="*"):
                self.store(place.operand, value)
                return
            case s.Index():
                kind = self.type_of(place.receiver)
                base, index = self.value(place.receiver), self.value(place.index)
                self.goal(
                    conj(("<=", "0", index), ("<", index, self.length(kind, base))), PRECONDITION, place.span,
                    (place.index.span, "index out of bounds"),
                )  # fmt: skip
                self.store(place.receiver, self.rebuilt(kind, "update", base, index, value))
                return
            case s.Field():
                kind = self.type_of(place.receiver)
                base = self.value(place.receiver)
                if kind.name == "tuple":
                    variant, names = "mk", [str(number_) for number_ in range(len(kind.args))]
                else:
                    datatype = self.encoder.typing.datatypes[kind.name].variants[0]
                    variant, names = datatype.name, [name for name, _ in datatype.fields]
                parts = [value if name == place.name else self.encoder.theory.part(kind, variant, at, base)
                         for at, name in enumerate(names)]  # fmt: skip
                self.store(place.receiver, self.encoder.theory.make(kind, variant, parts))
                return
        raise Unsupported("assignment to this kind of place", place.span)

    def rebuilt(self, kind: Ty, operation: str, base: Term, *args: Term) -> Term:
        """A vector whose view is `operation` of the view of `base`."""
        theory = self.encoder.theory
        sequence = Ty("Seq", kind.args)
        made = theory.seq(operation, sequence, theory.view(kind, base), *args)
        return self.vector(kind, made)

    def vector(self, kind: Ty, view: Term) -> Term:
        name = self.fresh("vec", kind)
        self.region.fact(implies(self.guard, ("=", self.encoder.theory.view(kind, name), view)))
        return name

    def vector_literal(self, expr: s.ListLiteral) -> Term:
        kind = self.type_of(expr)
        theory = self.encoder.theory
        sequence = Ty("Seq", kind.args)
        if expr.repeat is not None:
            item, count = self.value(expr.items[0]), self.value(expr.repeat)
            name = self.fresh("vec", kind)
            view = theory.view(kind, name)
            at = theory.seq("index", sequence, view, "i")
            self.assume(("=", theory.seq("len", sequence, view), count))
            self.assume(
                forall([("i", "Int")], implies(conj(("<=", "0", "i"), ("<", "i", count)), ("=", at, item)), [[at]])
            )
            return name
        view = theory.seq("empty", sequence)
        for value in [self.value(item) for item in expr.items]:
            view = theory.seq("push", sequence, view, value)
        return self.vector(kind, view)

    # calls

    def call(self, expr: s.Call | s.Method) -> Term:
        typing = self.encoder.typing
        callee = typing.callees[id(expr)]
        if callee.kind != "fn":
            return self.spec(expr)
        signature = typing.functions[callee.name]
        types = dict(zip(signature.generics, self.encoder.callee_types(callee, self.env), strict=True))
        args = [*([expr.receiver] if isinstance(expr, s.Method) else []), *expr.args]
        ghost, self.ghost = self.ghost, self.ghost or signature.mode == "proof"
        values = [self.value(arg) for arg in args]
        self.ghost = ghost
        before = dict(zip((param.unique for param in signature.params), values, strict=True))
        env = Env(before, before, types)
        for clause in signature.fn.requires:
            self.goal(self.clause(clause, env, True), PRECONDITION, expr.span, (clause.span, "failed precondition"))
        if callee.name in self.encoder.knot(self.signature.name) and signature.fn.decreases and self.own_measure:
            new = self.measure(signature.fn.decreases, env)
            self.goal(_decreased(new, self.own_measure), DECREASES, expr.span)
        after = dict(before)
        for param, arg in zip(signature.params, args, strict=True):
            if _is_mutable_reference(param):
                place = arg.operand if isinstance(arg, s.Unary) and arg.op == "&mut" else arg
                after[param.unique] = self.unknown(param.name, settled(substitute(strip(param.type), types), "int"))
                self.store(place, after[param.unique])
        result = self.unknown("result", _result(signature, types))
        after[signature.result_local.unique] = result
        for clause in signature.fn.ensures:
            self.assume(self.encoder.term(clause, Env(after, before, types)))
        if settled(find(typing.types[id(expr)]), "int").name == "!":
            self.guard = FALSE
        return result

    def operation(self, expr: s.Call | s.Method, name: str, args: list[s.Expr]) -> Term:
        """A library operation in executable code."""
        theory = self.encoder.theory
        operation = operations()[name]
        callee = self.encoder.typing.callees[id(expr)]
        kind = self.encoder.callee_types(callee, self.env)[0]
        values = [self.value(arg) for arg in args]
        span = expr.span
        if name in ("Vec.new", "Vec.with_capacity"):
            return self.vector(kind, theory.seq("empty", Ty("Seq", kind.args)))
        if kind.name == "Option":
            test = theory.made_by(kind, "Some", values[0])
            if name == "Option.unwrap":
                self.goal(test, PRECONDITION, span)
                return theory.part(kind, "Some", 0, values[0])
            return test if name == "Option.is_some" else negate(test)
        if kind.name in ("String", "str"):
            if name == "String.as_str":
                return values[0]
            if name == "str.unicode_len":
                return self.named("len", Ty("usize"), self.length(kind, values[0]))
            characters = Ty("Seq", (Ty("char"),))
            self.goal(conj(("<=", "0", values[1]), ("<", values[1], self.length(kind, values[0]))), PRECONDITION, span)
            return self.read(theory.seq("index", characters, theory.view(kind, values[0]), values[1]), Ty("char"))
        sequence = Ty("Seq", kind.args)
        view = theory.view(kind, values[0])
        size = theory.seq("len", sequence, view)
        action = name.split(".")[1]
        if action == "len":
            self.assume(conj(("<=", "0", size), ("<=", size, "usize.max")))
            return size
        if action in ("as_slice", "to_vec"):
            target = Ty("slice" if action == "as_slice" else "Vec", kind.args)
            return self.vector(target, view)
        assert operation.receiver == "&mut"
        result: Term = self.unit()
        index: Term = values[1] if len(values) > 1 else "0"
        inside = conj(("<=", "0", index), ("<", index, size))
        match action:
            case "push":
                new = theory.seq("push", sequence, view, values[1])
            case "set":
                self.goal(inside, PRECONDITION, span)
                new = theory.seq("update", sequence, view, index, values[2])
            case "insert":
                self.goal(conj(("<=", "0", index), ("<=", index, size)), PRECONDITION, span)
                new = theory.seq("insert", sequence, view, index, values[2])
            case "remove":
                self.goal(inside, PRECONDITION, span)
                result = self.read(theory.seq("index", sequence, view, index), kind.args[0])
                new = theory.seq("remove", sequence, view, index)
            case "swap":
                other = values[2]
                self.goal(conj(inside, ("<=", "0", other), ("<", other, size)), PRECONDITION, span)
                one, two = (theory.seq("index", sequence, view, place) for place in (index, other))
                new = theory.seq("update", sequence, theory.seq("update", sequence, view, index, two), other, one)
            case "clear":
                new = theory.seq("empty", sequence)
            case "truncate":
                new = ("ite", ("<=", index, size), theory.seq("take", sequence, view, index), view)
            case "pop":
                element = kind.args[0]
                assert isinstance(element, Ty)
                option = Ty("Option", (element,))
                some = theory.make(option, "Some", [theory.seq("last", sequence, view)])
                result = self.named("popped", option, ("ite", ("<", "0", size), some, theory.make(option, "None", ())))
                new = ("ite", ("<", "0", size), theory.seq("drop_last", sequence, view), view)
            case _:
                raise Unsupported(f"`{name}`", span)
        self.store(args[0], self.vector(kind, new))
        return result

    # branches

    def branches(self, tests: Sequence[Term], arms: Sequence[Callable[[], Term]], kind: Ty) -> Term:
        """Walk each arm under its test (they exclude each other and cover the guard), then join."""
        guard, values = self.guard, dict(self.vars)
        ends: list[tuple[Term, dict[str, Term], Term, Term]] = []
        alive = False
        for test, arm in zip(tests, arms, strict=True):
            self.guard, self.vars = conj(guard, test), dict(values)
            entered = self.guard
            found = arm()
            if self.guard != FALSE:
                ends.append((test, self.vars, found, self.guard))
            alive = alive or self.guard != entered
        if not ends:
            self.guard, self.vars = FALSE, values
            return self.unit()
        if not alive:
            self.guard = guard
        elif len(ends) == 1:
            self.guard = ends[0][3]
        else:
            self.guard = self.fresh("path", Ty("bool"))
            self.region.fact(("=", self.guard, disj(*(end[3] for end in ends))))
        merged = dict(values)
        for unique in values:
            options = [end[1][unique] for end in ends]
            if any(option != options[0] for option in options):
                local = self.locals[unique]
                merged[unique] = self.joined(local.name, value_type(local, Env({})), [end[0] for end in ends], options)
            else:
                merged[unique] = options[0]
        self.vars = merged
        if kind.name == "!" or kind == UNIT:
            return self.unit()
        return self.joined("if", kind, [end[0] for end in ends], [end[2] for end in ends])

    def joined(self, stem: str, kind: Ty, tests: Sequence[Term], options: Sequence[Term]) -> Term:
        found = options[-1]
        for test, option in zip(reversed(tests[:-1]), reversed(options[:-1]), strict=True):
            found = option if option == found else ("ite", test, option, found)
        return self.named(stem, kind, found)

    def conditional(self, expr: s.If) -> Term:
        names: dict[str, Term] = {}
        if isinstance(expr.condition, s.LetCondition):
            kind = self.type_of(expr.condition.value)
            subject = self.named("subject", kind, self.value(expr.condition.value))
            condition, names = self.encoder.matches(expr.condition.pattern, kind, subject, self.env)
        else:
            condition = self.value(expr.condition)
        condition = self.named("cond", Ty("bool"), condition)

        def then() -> Term:
            if isinstance(expr.condition, s.LetCondition):
                self.adopt(expr.condition.pattern, names)
            return self.block(expr.then)

        def orelse() -> Term:
            return self.value(expr.orelse) if expr.orelse is not None else self.unit()

        return self.branches([condition, negate(condition)], [then, orelse], self.type_of(expr))

    def match(self, expr: s.Match) -> Term:
        kind = self.type_of(expr.subject)
        if not self.encoder.exhaustive(expr, kind):
            raise Unsupported("matches that are not exhaustive at their first level", expr.span)
        if any(arm.guard is not None for arm in expr.arms):
            raise Unsupported("match guards in code", expr.span)
        subject = self.named("subject", kind, self.value(expr.subject))
        tests: list[Term] = []
        arms: list[Callable[[], Term]] = []
        earlier: Term = TRUE
        for arm in expr.arms:
            test, names = self.encoder.matches(arm.pattern, kind, subject, self.env)

            def walk(arm: s.Arm = arm, names: dict[str, Term] = names) -> Term:
                self.adopt(arm.pattern, names)
                return self.value(arm.body)

            tests.append(self.named("arm", Ty("bool"), conj(earlier, test)))
            arms.append(walk)
            earlier = conj(earlier, negate(test))
        return self.branches(tests, arms, self.type_of(expr))

    # assertions

    def aside(self, walk: Callable[[], None]) -> None:
        """Walk a proof whose facts do not last."""
        guard, values = self.guard, dict(self.vars)
        ghost, self.ghost = self.ghost, True
        self.region.commands.append("(push)")
        walk()
        self.region.commands.append("(pop)")
        self.ghost = ghost
        self.guard, self.vars = guard, values

    def assertion(self, expr: s.Assert) -> None:
        edition_promotes = not expr.by or self.encoder.edition != "2024-08"
        proved = self.encoder.prop(expr.condition, self.env, promote=edition_promotes)
        if expr.by == "block":

            def proof() -> None:
                assert expr.body is not None
                self.block(expr.body)
                self.goal(proved, ASSERTION, expr.condition.span)

            self.aside(proof)
            self.assume(proved)
        elif expr.by == "nonlinear_arith":
            self.nonlinear(expr)
            self.assume(self.spec(expr.condition))
        elif expr.by:
            raise Unsupported(f"`by({expr.by})`", expr.span)
        else:
            self.goal(proved, ASSERTION, expr.span)
            self.assume(self.spec(expr.condition))

    def nonlinear(self, expr: s.Assert) -> None:
        """Prove the requirements here, then the claim from them alone, with non-linear arithmetic on."""
        for clause in expr.requires:
            self.goal(self.spec(clause), "requires not satisfied", clause.span)
        region = Region(self.signature.name, "nonlinear", expr.span, nonlinear=True)
        walk = _Walk(self.encoder, self.signature, region, self.regions)
        walk.forget(self)
        for clause in expr.requires:
            walk.assume(walk.spec(clause))
        walk.ghost = True
        if expr.body is not None:
            walk.block(expr.body)
        walk.goal(walk.spec(expr.condition), ASSERTION, expr.condition.span)
        self.regions.append(region)

    def assert_forall(self, expr: s.AssertForall) -> None:
        binders, typed, inner = self.encoder.binders(expr.params, self.env)

        def proof() -> None:
            names = {}
            for param in expr.params:
                local = self.encoder.typing.locals[id(param)]
                self.locals[local.unique] = local
                kind = value_type(local, Env({}))
                names[local.unique] = self.unknown(local.name, kind)
            self.vars = {**self.vars, **names}
            self.encoder._triggers.append([])
            if expr.premise is not None:
                premise = self.spec(expr.premise)
                self.guard = conj(self.guard, premise)
            self.block(expr.body)
            self.goal(self.encoder.prop(expr.conclusion, self.env, promote=True), ASSERTION, expr.conclusion.span)
            self.encoder._triggers.pop()

        self.aside(proof)

        def body() -> Term:
            conclusion = self.encoder.term(expr.conclusion, inner)
            return conclusion if expr.premise is None else implies(self.encoder.term(expr.premise, inner), conclusion)

        self.assume(self.encoder.close(expr, binders, typed, inner, body))

    def reveal(self, expr: s.Reveal) -> None:
        name = expr.path[-1] if len(expr.path) == 1 else "::".join(expr.path)
        theory = self.encoder.theory
        if expr.path[-2:] == ("Seq", "filter"):
            if theory.once("fuel filter"):
                theory.lines.append("(declare-const fuel.filter Bool)\n(declare-const depth.filter Fuel)")
            self.assume("fuel.filter")
            return
        if expr.fuel == 0:
            raise Unsupported("`hide`", expr.span)
        signature = self.encoder.typing.functions.get(name)
        if signature is None:
            return
        if "verifier::opaque" in signature.fn.attributes:
            if theory.once(fuel_name(name)):
                theory.lines.append(f"(declare-const {fuel_name(name)} Bool)")
            self.assume(fuel_name(name))
        if expr.fuel > 1:
            if theory.once(depth_name(name)):
                theory.lines.append(f"(declare-const {depth_name(name)} Fuel)")
            deep: Term = self.encoder.symbol("fuel", Ty("Fuel"))
            self.region.declare(str(deep), "Fuel")
            for _ in range(expr.fuel - 1):
                deep = ("fuel.succ", deep)
            self.assume(("=", depth_name(name), deep))

    # loops

    def isolated(self, expr: s.While | s.For) -> bool:
        around = (*self.signature.fn.attributes, *self.encoder.typing.program.attributes, *expr.attributes)
        return _NO_ISOLATION not in around

    def changed(self, *parts: object) -> list[str]:
        """The variables in scope that the code may assign."""
        typing = self.encoder.typing
        found: dict[str, None] = {}
        for node in nodes(tuple(part for part in parts if part is not None)):
            places: list[s.Expr] = []
            if isinstance(node, s.Assign):
                places.append(node.target)
            elif isinstance(node, s.Unary) and node.op == "&mut":
                places.append(node.operand)
            elif isinstance(node, s.Call | s.Method):
                callee = typing.callees.get(id(node))
                if callee is not None and callee.kind == "operation" and isinstance(node, s.Method):
                    if operations()[callee.name].receiver == "&mut":
                        places.append(node.receiver)
                elif callee is not None and callee.kind == "fn":
                    args = [*([node.receiver] if isinstance(node, s.Method) else []), *node.args]
                    params = typing.functions[callee.name].params
                    places += [arg for arg, param in zip(args, params, strict=True) if _is_mutable_reference(param)]
            for place in places:
                while isinstance(place, s.Index | s.Field | s.Unary):
                    place = place.operand if isinstance(place, s.Unary) else place.receiver
                local = typing.locals.get(id(place))
                if local is not None and local.unique in self.vars:
                    found[local.unique] = None
        return list(found)

    def invariants(self, spec: s.LoopSpec) -> tuple[s.Expr, ...]:
        return (*spec.invariant, *spec.invariant_except_break)

    def loop(self, expr: s.While) -> Term:
        def condition(walk: _Walk) -> Term:
            return TRUE if expr.condition is None else walk.value(expr.condition)

        self.iterate(expr, condition, self.changed(expr.condition, expr.body), lambda walk: None, None)
        if expr.condition is None and not contains_break(expr.body):
            self.guard = FALSE
        return self.unit()

    def for_loop(self, expr: s.For) -> Term:
        iterator = expr.iterator
        assert isinstance(iterator, s.Range)
        assert iterator.low is not None
        assert iterator.high is not None
        local = self.encoder.typing.locals[id(expr)]
        kind = value_type(local, Env({}))
        low, high = (
            self.named("low", kind, self.value(iterator.low)),
            self.named("high", kind, self.value(iterator.high)),
        )
        self.vars[local.unique] = low
        self.locals[local.unique] = local
        changed = self.changed(expr.body)
        stable = not any(
            self.encoder.typing.locals[id(node)].unique in changed
            for node in nodes(iterator) if id(node) in self.encoder.typing.locals
        )  # fmt: skip
        ends: dict[int, tuple[Term, Term]] = {id(self): (low, high)}

        def prepare(walk: _Walk) -> None:
            if walk is not self:
                own = walk.unknown("low", kind), walk.unknown("high", kind)
                ends[id(walk)] = own
                if stable:
                    walk.quiet = True
                    assert iterator.low is not None
                    assert iterator.high is not None
                    walk.assume(equal(own[0], walk.value(iterator.low)))
                    walk.assume(equal(own[1], walk.value(iterator.high)))
                    walk.quiet = False
            begin, end = ends[id(walk)]
            place = walk.vars[local.unique]
            walk.assume(conj(("<=", begin, place), disj(("<=", place, end), equal(place, begin))))

        def condition(walk: _Walk) -> Term:
            return ("<", walk.vars[local.unique], ends[id(walk)][1])

        def step(walk: _Walk) -> None:
            walk.vars[local.unique] = walk.named(local.name, kind, ("+", walk.vars[local.unique], "1"))

        self.iterate(expr, condition, [*changed, local.unique], prepare, step)
        return self.unit()

    def iterate(
        self, expr: s.While | s.For, condition: Callable[[_Walk], Term], changed: list[str],
        prepare: Callable[[_Walk], None], step: Callable[[_Walk], None] | None,
    ) -> None:  # fmt: skip
        """Prove the invariants, walk the body once from an arbitrary state that meets them, and go on after it."""
        spec = expr.spec
        for clause in self.invariants(spec):
            self.goal(self.clause(clause, self.env, True), BEFORE_LOOP, clause.span)
        if (
            isinstance(expr, s.While)
            and not spec.decreases
            and self.must_decrease()
            and _NO_DECREASES not in expr.attributes
        ):
            raise TypeProblem("loop must have a decreases clause", expr.span)
        if self.isolated(expr):
            if not self.quiet:
                self.isolated_body(expr, condition, changed, prepare, step)
            for unique in changed:
                self.havoc(self.locals[unique])
            prepare(self)
            breaks = contains_break(expr.body)
            for clause in (*spec.invariant, *spec.ensures, *(() if breaks else spec.invariant_except_break)):
                self.assume(self.encoder.term(clause, self.env))
            if not breaks:
                before, self.quiet = self.quiet, True
                held = condition(self)
                self.quiet = before
                self.assume(negate(held))
            return
        for unique in changed:
            self.havoc(self.locals[unique])
        prepare(self)
        for clause in self.invariants(spec):
            self.assume(self.encoder.term(clause, self.env))
        values, guard = dict(self.vars), self.guard
        loop = self.body(expr, condition, step, isolated=False)
        done = negate(self._last_condition)
        exits = [(conj(guard, done), self._values_at_exit), *loop.exits]
        live = [exit_ for exit_ in exits if exit_[0] != FALSE]
        if not live:
            self.guard, self.vars = FALSE, values
            return
        if len(live) == 1:
            self.guard, merged = live[0]
        else:
            self.guard = self.fresh("path", Ty("bool"))
            self.region.fact(("=", self.guard, disj(*(exit_[0] for exit_ in live))))
            merged = {}
            for unique in values:
                options = [exit_[1][unique] for exit_ in live]
                local = self.locals[unique]
                merged[unique] = self.joined(
                    local.name, value_type(local, Env({})), [exit_[0] for exit_ in live], options
                )
        self.vars = {unique: merged[unique] for unique in values}

    def forget(self, outer: _Walk) -> None:
        """Take over the variables of the walk around this one, knowing of each but its type. Parameters that nothing
        can have changed keep the value that they had at entry."""
        params = {param.unique: param for param in self.signature.params}
        for unique in outer.vars:
            param = params.get(unique)
            if param is None or param.mutable or _is_mutable_reference(param):
                self.havoc(outer.locals[unique])

    def isolated_body(
        self, expr: s.While | s.For, condition: Callable[[_Walk], Term], changed: list[str],
        prepare: Callable[[_Walk], None], step: Callable[[_Walk], None] | None,
    ) -> None:  # fmt: skip
        region = Region(self.signature.name, "loop", expr.span)
        self.regions.append(region)
        inner = _Walk(self.encoder, self.signature, region, self.regions)
        inner.forget(self)
        if self.signature.fn.decreases:
            entry = Env({**inner.vars, **inner.entry}, inner.olds)
            inner.own_measure = inner.measure(self.signature.fn.decreases, entry)
        prepare(inner)
        for clause in inner.invariants(expr.spec):
            inner.assume(inner.encoder.term(clause, inner.env))
        inner.body(expr, condition, step, isolated=True)

    def body(
        self,
        expr: s.While | s.For,
        condition: Callable[[_Walk], Term],
        step: Callable[[_Walk], None] | None,
        isolated: bool,
    ) -> _Loop:
        spec = expr.spec
        measure = [self.named("measure", Ty("int"), part) for part in self.measure(spec.decreases, self.env)]
        guard = self.guard
        held = self.named("cond", Ty("bool"), condition(self))
        self._last_condition, self._values_at_exit = held, dict(self.vars)
        loop = _Loop(spec, isolated, measure, frozenset(self.vars), (lambda: step(self)) if step is not None else None)
        if spec.ensures:
            self.guard = conj(guard, negate(held))
            for clause in spec.ensures:
                self.goal(self.clause(clause, self.env, True), LOOP_ENSURES, clause.span)
        last = (self._last_condition, self._values_at_exit)
        self.guard = conj(guard, held)
        self.loops.append(loop)
        scoped = isolated or not contains_break(expr.body)
        if scoped:
            self.region.commands.append("(push)")
        self.block(expr.body)
        if self.guard != FALSE:
            self.again(loop)
        if scoped:
            self.region.commands.append("(pop)")
        self.loops.pop()
        self._last_condition, self._values_at_exit = last
        return loop

    def again(self, loop: _Loop) -> None:
        """The end of a loop's body, or `continue`."""
        values = dict(self.vars)
        if loop.step is not None:
            loop.step()
        for clause in self.invariants(loop.spec):
            self.goal(self.clause(clause, self.env, True), END_OF_LOOP, clause.span)
        if loop.measure:
            new = self.measure(loop.spec.decreases, self.env)
            self.goal(_decreased(new, loop.measure), DECREASES, loop.spec.decreases[0].span)
        self.vars = values

    def leave(self, span: Span) -> None:
        loop = self.loops[-1]
        if loop.isolated:
            for clause in loop.spec.invariant:
                self.goal(
                    self.clause(clause, self.env, True),
                    "invariant not satisfied at break",
                    span,
                    (clause.span, "this one"),
                )
        for clause in loop.spec.ensures:
            self.goal(self.clause(clause, self.env, True), LOOP_ENSURES, span, (clause.span, "this one"))
        if not loop.isolated:
            loop.exits.append((self.guard, {name: self.vars[name] for name in loop.locals}))
        self.guard = FALSE


def _is_mutable_reference(local: Local) -> bool:
    type_ = find(local.type)
    return isinstance(type_, Ty) and type_.name == "&mut"


def _result(signature: Signature, types: dict[str, Ty]) -> Ty:
    return settled(substitute(strip(signature.result), types), "int")


def _closing(span: Span) -> Span:
    return Span(max(span.start, span.end - 1), span.end)
