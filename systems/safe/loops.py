"""Obligations of loops, isolated or not."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

from systems.safe import syntax as s
from systems.safe.check import contains_break
from systems.safe.operations import Operations
from systems.safe.spec import Env, nodes, value_type
from systems.safe.syntax import Span, TypeProblem
from systems.safe.terms import FALSE, TRUE, Term, conj, disj, equal, negate
from systems.safe.types import Ty
from systems.safe.vstd import operations
from systems.safe.walk import (
    BEFORE_LOOP,
    DECREASES,
    END_OF_LOOP,
    LOOP_ENSURES,
    NO_DECREASES,
    OpenLoop,
    Region,
    decreased,
    is_mutable_reference,
)

_NO_ISOLATION = "verifier::loop_isolation(false)"


class Loops(Operations):
    """Loops: isolated ones are regions of their own."""

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
                    places += [arg for arg, param in zip(args, params, strict=True) if is_mutable_reference(param)]
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
        def condition(walk: Loops) -> Term:
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

        def prepare(walk: Loops) -> None:
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

        def condition(walk: Loops) -> Term:
            return ("<", walk.vars[local.unique], ends[id(walk)][1])

        def step(walk: Loops) -> None:
            walk.vars[local.unique] = walk.named(local.name, kind, ("+", walk.vars[local.unique], "1"))

        self.iterate(expr, condition, [*changed, local.unique], prepare, step)
        return self.unit()

    def iterate(
        self, expr: s.While | s.For, condition: Callable[[Loops], Term], changed: list[str],
        prepare: Callable[[Loops], None], step: Callable[[Loops], None] | None,
    ) -> None:  # fmt: skip
        """Prove the invariants, walk the body once from an arbitrary state that meets them, and go on after it."""
        spec = expr.spec
        for clause in self.invariants(spec):
            with self.region.owned(clause.span):
                self.goal(self.clause(clause, self.env, True), BEFORE_LOOP, clause.span)
        if (
            isinstance(expr, s.While)
            and not spec.decreases
            and self.must_decrease()
            and NO_DECREASES not in expr.attributes
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
                with self.region.owned(clause.span):
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
            with self.region.owned(clause.span):
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

    def forget(self, outer: Loops) -> None:
        """Take over the variables of the walk around this one, knowing of each but its type. Parameters that nothing
        can have changed keep the value that they had at entry."""
        params = {param.unique: param for param in self.signature.params}
        for unique in outer.vars:
            param = params.get(unique)
            if param is None or param.mutable or is_mutable_reference(param):
                self.havoc(outer.locals[unique])

    def isolated_body(
        self, expr: s.While | s.For, condition: Callable[[Loops], Term], changed: list[str],
        prepare: Callable[[Loops], None], step: Callable[[Loops], None] | None,
    ) -> None:  # fmt: skip
        region = Region(self.signature.name, "loop", expr.span)
        self.regions.append(region)
        inner = type(self)(self.encoder, self.signature, region, self.regions)
        inner.forget(self)
        if self.signature.fn.decreases:
            entry = Env({**inner.vars, **inner.entry}, inner.olds)
            inner.own_measure = inner.measure(self.signature.fn.decreases, entry)
        prepare(inner)
        for clause in inner.invariants(expr.spec):
            with inner.region.owned(clause.span):
                inner.assume(inner.encoder.term(clause, inner.env))
        inner.body(expr, condition, step, isolated=True)

    def body(
        self,
        expr: s.While | s.For,
        condition: Callable[[Loops], Term],
        step: Callable[[Loops], None] | None,
        isolated: bool,
    ) -> OpenLoop:
        spec = expr.spec
        measure = [self.named("measure", Ty("int"), part) for part in self.measure(spec.decreases, self.env)]
        guard = self.guard
        held = self.named("cond", Ty("bool"), condition(self))
        self._last_condition, self._values_at_exit = held, dict(self.vars)
        loop = OpenLoop(
            spec, isolated, measure, frozenset(self.vars), (lambda: step(self)) if step is not None else None
        )
        if spec.ensures:
            self.guard = conj(guard, negate(held))
            for clause in spec.ensures:
                self.goal(self.clause(clause, self.env, True), LOOP_ENSURES, clause.span)
        last = (self._last_condition, self._values_at_exit)
        self.guard = conj(guard, held)
        self.loops.append(loop)
        scoped = isolated or not contains_break(expr.body)
        if scoped:
            self.region.emit("(push)")
        self.block(expr.body)
        if self.guard != FALSE:
            self.again(loop)
        if scoped:
            self.region.emit("(pop)")
        self.loops.pop()
        self._last_condition, self._values_at_exit = last
        return loop

    def again(self, loop: OpenLoop) -> None:
        """The end of a loop's body, or `continue`."""
        values = dict(self.vars)
        if loop.step is not None:
            loop.step()
        for clause in self.invariants(loop.spec):
            with self.region.owned(clause.span):
                self.goal(self.clause(clause, self.env, True), END_OF_LOOP, clause.span)
        if loop.measure:
            new = self.measure(loop.spec.decreases, self.env)
            self.goal(decreased(new, loop.measure), DECREASES, loop.spec.decreases[0].span)
        self.vars = values

    def leave(self, span: Span) -> None:
        loop = self.loops[-1]
        if loop.isolated:
            for clause in loop.spec.invariant:
                with self.region.owned(clause.span):
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

    @abstractmethod
    def block(self, block: s.Block) -> Term:
        raise NotImplementedError
