"""Regions, their goals and facts, and the state of the walk that finds them.

A region is a body that is proved on its own: a function's, or an isolated loop's. Walking it appends facts and goals
to a script; every fact and goal stands under the guard of the branches around it, and a goal is a fact afterwards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from systems.safe import syntax as s
from systems.safe.spec import Encoder, Env, nodes, value_type
from systems.safe.syntax import Span, Unsupported
from systems.safe.terms import FALSE, TRUE, Term, conj, disj, equal, implies, show
from systems.safe.types import LISTS, UNIT, Local, Signature, Ty, find, settled, strip, substitute

OVERFLOW = "possible arithmetic underflow/overflow"


DIVISION = "possible division by zero"


PRECONDITION = "precondition not satisfied"


POSTCONDITION = "postcondition not satisfied"


BEFORE_LOOP = "invariant not satisfied before loop"


END_OF_LOOP = "invariant not satisfied at end of loop body"


LOOP_ENSURES = "loop ensures not satisfied"


ASSERTION = "assertion failed"


DECREASES = "decreases not satisfied"


NO_DECREASES = "verifier::exec_allows_no_decreases_clause"


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

    owners: list[int | None] = field(default_factory=list)
    """For each command the place of the clause or proof block that it is there for, if it is for one of those."""
    checks: dict[int, int] = field(default_factory=dict)
    """For the commands that check, the goal's number; the command after a check states the goal as a fact."""
    owner: int | None = None

    @contextmanager
    def owned(self, span: Span) -> Iterator[None]:
        """Say of the commands within that they are there for the clause or proof block at `span`."""
        before = self.owner
        self.owner = span.start if before is None else before
        yield
        self.owner = before

    def emit(self, command: str) -> None:
        self.commands.append(command)
        self.owners.append(self.owner)

    def declare(self, name: str, sort: str) -> None:
        self.emit(f"(declare-const {name} {sort})")

    def fact(self, term: Term) -> None:
        if term != TRUE:
            self.emit(f"(assert {show(term)})")

    def goal(self, term: Term, goal: Goal) -> None:
        if term == TRUE:
            return
        self.checks[len(self.commands)] = len(self.goals)
        self.goals.append(goal)
        self.emit(f"(push)\n(assert (not {show(term)}))\n(check-sat)\n(get-info :rlimit)\n(pop)")
        self.fact(term)


@dataclass
class OpenLoop:
    """A loop that the walk is inside of. `exits` collects guard and values at each break of a loop not isolated."""

    spec: s.LoopSpec
    isolated: bool
    measure: list[Term]
    locals: frozenset[str]
    step: Callable[[], None] | None = None
    exits: list[tuple[Term, dict[str, Term]]] = field(default_factory=list)


def decreased(new: Sequence[Term], old: Sequence[Term]) -> Term:
    """Lexicographically smaller, each part bounded below by zero where it falls."""
    found: Term = FALSE
    prefix: Term = TRUE
    for less, more in zip(new, old, strict=False):
        found = disj(found, conj(prefix, ("<=", "0", less), ("<", less, more)))
        prefix = conj(prefix, equal(less, more))
    return found


class Walk(ABC):
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
        self.loops: list[OpenLoop] = []
        self.own_measure: list[Term] = []
        for param in signature.params:
            value = self.havoc(param)
            self.entry[param.unique] = value
            if is_mutable_reference(param):
                self.olds[param.unique] = value

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

    def must_decrease(self) -> bool:
        attributes = (*self.signature.fn.attributes, *self.encoder.typing.program.attributes)
        return self.encoder.edition != "2024-08" and NO_DECREASES not in attributes

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
            if not is_mutable_reference(param):
                values[param.unique] = self.entry[param.unique]
        values[self.signature.result_local.unique] = result
        return Env(values, self.olds)

    def returning(self, value: Term, span: Span) -> None:
        if self.signature.fn.ensures:
            result = self.named("result", result_type(self.signature, {}), value)
            env = self.post_env(self.vars, result)
            for clause in self.signature.fn.ensures:
                self.goal(
                    self.clause(clause, env, True), POSTCONDITION, span, (clause.span, "failed this postcondition")
                )

    def unit(self) -> Term:
        return self.encoder.theory.make(UNIT, "mk", ())

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

    def under(self, condition: Term, walk: Callable[[], Term]) -> Term:
        """Walk under a further condition of the path, where nothing is assigned."""
        before, values = self.guard, dict(self.vars)
        self.guard = conj(self.guard, condition)
        found = walk()
        if self.vars != values or (self.guard == FALSE) != (conj(before, condition) == FALSE):
            raise Unsupported("assignment or jump inside an operand of `&&` or `||`", self.signature.fn.span)
        self.guard = before
        return found

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

    def aside(self, walk: Callable[[], None]) -> None:
        """Walk a proof whose facts do not last."""
        guard, values = self.guard, dict(self.vars)
        ghost, self.ghost = self.ghost, True
        self.region.emit("(push)")
        walk()
        self.region.emit("(pop)")
        self.ghost = ghost
        self.guard, self.vars = guard, values

    @abstractmethod
    def value(self, expr: s.Expr) -> Term:
        raise NotImplementedError


def is_mutable_reference(local: Local) -> bool:
    type_ = find(local.type)
    return isinstance(type_, Ty) and type_.name == "&mut"


def result_type(signature: Signature, types: dict[str, Ty]) -> Ty:
    return settled(substitute(strip(signature.result), types), "int")
