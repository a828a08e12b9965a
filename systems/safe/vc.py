"""From code to obligations: one forward walk per function, with the meaning that Verus gives to each construct."""

from __future__ import annotations

from collections.abc import Callable

from systems.safe import syntax as s
from systems.safe.bitvectors import Bits
from systems.safe.evaluate import Evaluator
from systems.safe.loops import Loops
from systems.safe.spec import Encoder, Env, depth_name, fuel_name, nodes, value_type
from systems.safe.syntax import Span, TypeProblem, Unsupported
from systems.safe.terms import FALSE, TRUE, Term, conj, implies, negate, number
from systems.safe.theory import opposite
from systems.safe.types import Signature, Ty
from systems.safe.walk import ASSERTION, DECREASES, Goal, Region, decreased, result_type


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
        region.goal(implies(path, decreased(walk.measure(callee.fn.decreases, inner), own)), Goal(DECREASES, span))
    return [region]


class _Walk(Loops):
    """Functions, statements, branches and assertions."""

    def function(self) -> None:
        fn = self.signature.fn
        self.regions.append(self.region)
        before = Env(self.vars, self.olds)
        for clause in fn.requires:
            self.assume(self.encoder.term(clause, before))
        for clause in fn.ensures:
            self.encoder.term(clause, self.post_env(self.vars, self.unknown("result", result_type(self.signature, {}))))
        self.start_measure()
        assert fn.body is not None
        value = self.block(fn.body)
        if self.guard != FALSE:
            self.returning(value, (fn.body.tail or fn.body).span if fn.body.tail else closing(fn.body.span))

    def start_measure(self) -> None:
        fn = self.signature.fn
        circular = self.encoder.recursive(self.signature.name)
        if circular and not fn.decreases and (self.signature.mode == "proof" or self.must_decrease()):
            raise TypeProblem("recursive function must have a decreases clause", fn.span)
        if fn.decreases:
            self.own_measure = self.measure(fn.decreases, Env({**self.vars, **self.entry}, self.olds))

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
                with self.region.owned(expr.span):
                    self.assertion(expr)
                return self.unit()
            case s.AssertForall():
                with self.region.owned(expr.span):
                    self.assert_forall(expr)
                return self.unit()
            case s.Assume():
                self.assume(FALSE if expr.condition is None else self.spec(expr.condition))
                return self.unit()
            case s.Reveal():
                with self.region.owned(expr.span):
                    self.reveal(expr)
                return self.unit()
            case s.ProofBlock():
                ghost, self.ghost = self.ghost, True
                with self.region.owned(expr.span):
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
                    return opposite(self.type_of(expr), inner)
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
        elif expr.by == "bit_vector":
            self.bit_vector(expr)
            self.assume(self.spec(expr.condition))
        elif expr.by in ("compute", "compute_only"):
            self.compute(expr, proved)
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
        region = Region(self.signature.name, "nonlinear", expr.span, nonlinear=True, owner=self.region.owner)
        walk = _Walk(self.encoder, self.signature, region, self.regions)
        walk.forget(self)
        for clause in expr.requires:
            walk.assume(walk.spec(clause))
        walk.ghost = True
        if expr.body is not None:
            walk.block(expr.body)
        walk.goal(walk.spec(expr.condition), ASSERTION, expr.condition.span)
        self.regions.append(region)

    def bit_vector(self, expr: s.Assert) -> None:
        """Prove the requirements here, then the claim from them alone, over bit-vectors."""
        if expr.body is not None:
            raise Unsupported("a body of `by(bit_vector)`", expr.span)
        for clause in expr.requires:
            self.goal(self.spec(clause), "requires not satisfied", clause.span)
        region = Region(self.signature.name, "bit_vector", expr.span, owner=self.region.owner)
        locals_ = self.encoder.typing.locals
        bits = Bits(self.type_of, lambda path: local.unique if (local := locals_.get(id(path))) else None)
        facts = [bits.condition(clause) for clause in expr.requires]
        claim = expr.condition
        while isinstance(claim, s.Quantifier) and claim.kind == "forall":
            claim = claim.body  # what it binds is as free as any variable
        goal = bits.condition(claim)
        for name, sort in bits.declarations.items():
            region.declare(name, sort)
        for fact in facts:
            region.fact(fact)
        region.goal(goal, Goal(ASSERTION, expr.condition.span))
        self.regions.append(region)

    def compute(self, expr: s.Assert, proved: Term) -> None:
        """By evaluation, where nothing in the claim is unknown; else `by(compute)` leaves it to the solver."""
        known = None
        if not self.at_a_width(expr.condition):
            known = Evaluator(self.encoder.typing).holds(expr.condition, {})
        if known is None and expr.by == "compute_only":
            raise Unsupported("`by(compute_only)` of what evaluation does not decide", expr.span)
        if known is not True:
            self.goal(FALSE if known is False else proved, ASSERTION, expr.span)

    def at_a_width(self, claim: s.Expr) -> bool:
        """Whether a claim, or a spec function that it may call, looks at the width of a size or cuts what is shifted
        to the left: evaluation takes sizes for 64 bits and numbers as they are.
        """
        typing = self.encoder.typing
        bodies = [one.fn.body for one in typing.functions.values() if one.mode == "spec"]
        for node in nodes((claim, *bodies)):
            kind = typing.types.get(id(node))
            if isinstance(node, s.Binary) and node.op == "<<":
                return True
            if isinstance(node, s.Path) and node.names[0] in ("usize", "isize"):
                return True
            if isinstance(kind, Ty) and kind.name in ("usize", "isize"):
                return True
        return False

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


def closing(span: Span) -> Span:
    return Span(max(span.start, span.end - 1), span.end)
