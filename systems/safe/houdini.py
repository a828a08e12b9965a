"""Which candidates hold: the greatest set that proves itself (Houdini), and the least part of it that a proof needs.

A program is translated once, with every candidate in it. Each command of the script knows the candidate that it is
there for, so a round leaves out the commands of dropped ones, and only regions that used one of them are run again."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from systems.safe.check import check, refused
from systems.safe.parser import parse
from systems.safe.sketch import Candidate, Sketch, write
from systems.safe.spec import Encoder
from systems.safe.syntax import NOWHERE, ProgramProblem
from systems.safe.theory import OPTIONS
from systems.safe.types import Typing
from systems.safe.vc import obligations
from systems.safe.walk import Goal, Region

_NAME = re.compile(r"h!(\d+)!")
_MOST_REFUSED = 200
_FEW = 4


@dataclass(frozen=True)
class Translated:
    """A sketch that type-checks, with its regions. `owner[place]` numbers the candidate that starts at a place."""

    sketch: Sketch
    typing: Typing
    regions: tuple[Region, ...] = ()
    preludes: tuple[str, ...] = ()
    owner: dict[int, int] = field(default_factory=dict)


@dataclass
class Outcome:
    """What a run of one region told: failed candidates, failed goals of the program, and per goal what it used."""

    dropped: set[int] = field(default_factory=set)
    failed: list[Goal] = field(default_factory=list)
    used: dict[int, frozenset[int]] = field(default_factory=dict)


def typed(source: str, candidates: Iterable[Candidate], edition: str) -> Translated:
    """Write candidates into the source and check it, leaving out those that are refused. Raises ProgramProblem where
    the program itself is at fault."""
    kept = list(dict.fromkeys(candidates))
    if len(kept) > _FEW:
        sketch = write(source, kept)
        starts = set(sketch.starts)
        bad = refused(parse(sketch.text), edition, starts.__contains__)
        kept = [one for one, start in zip(sketch.candidates, sketch.starts, strict=True) if start not in bad]
    for _ in range(_MOST_REFUSED):
        sketch = write(source, kept)
        try:
            return Translated(sketch, check(parse(sketch.text), edition))
        except ProgramProblem as problem:
            kept = _without(sketch, problem, kept)
    raise ProgramProblem("too many candidates are refused", NOWHERE)


def _without(sketch: Sketch, problem: ProgramProblem, kept: list[Candidate]) -> list[Candidate]:
    bad = sketch.at(problem.span.start)
    if bad is None:
        raise problem
    return [one for one in kept if bad not in (one, one.support)]


def translated(source: str, candidates: Iterable[Candidate], edition: str) -> Translated:
    """As `typed`, with the obligations of every region."""
    kept = list(dict.fromkeys(candidates))
    while True:
        found = typed(source, kept, edition)
        kept = list(found.sketch.candidates)
        encoder = Encoder(found.typing, edition)
        try:
            regions = obligations(encoder)
        except ProgramProblem as problem:
            kept = _without(found.sketch, problem, kept)
            continue
        preludes = tuple("\n".join(encoder.theory.without(region.without)) for region in regions)
        owner: dict[int, int] = {}
        for region in regions:
            for place in {place for place in region.owners if place is not None}:
                candidate = found.sketch.at(place)
                if candidate is not None:
                    owner[place] = found.sketch.candidates.index(candidate)
        return Translated(found.sketch, found.typing, tuple(regions), preludes, owner)


class Solver:
    """Runs regions of one translated sketch under sets of candidates. Counts the checks that it made."""

    def __init__(self, program: Translated, rlimit: int) -> None:
        self.program = program
        self.rlimit = rlimit
        self.checks = 0
        self.owners: list[list[int | None]] = []
        for region in program.regions:
            item = program.sketch.at(region.span.start)
            whole = program.sketch.candidates.index(item) if item is not None and item.place.kind == "item" else None
            self.owners.append(
                [program.owner.get(place, whole) if place is not None else whole for place in region.owners]
            )
        numbers = {one: number for number, one in enumerate(program.sketch.candidates)}
        self.supports = {
            number: numbers[one.support]
            for number, one in enumerate(program.sketch.candidates)
            if one.support is not None and one.support in numbers
        }
        self.users: list[frozenset[int]] = [
            frozenset(owner for owner in owners if owner is not None) for owners in self.owners
        ]

    def run(
        self, number: int, active: set[int], *, wanted: frozenset[int] | None = None, cores: bool = False,
        stop: bool = False, settled: frozenset[int] = frozenset(),
    ) -> Outcome:  # fmt: skip
        """Run one region with the `active` candidates. `wanted` are the candidates whose own goals are posed (all by
        default); goals numbered in `settled` are taken as proved. With `cores`, what each goal used is told; with
        `stop`, the first failure ends the run."""
        import z3

        region, owners = self.program.regions[number], self.owners[number]
        outcome = Outcome()
        context = z3.Context()
        options = OPTIONS
        if region.nonlinear:
            options = options.replace("(set-option :smt.arith.nl false)", "(set-option :smt.arith.nl true)")
        if cores:
            options += "(set-option :produce-unsat-cores true)\n"
        pending = [
            options,
            f"(set-option :rlimit {self.rlimit})\n(set-option :timeout 20000)",
            self.program.preludes[number],
        ]
        opened: list[bool] = []
        named = 0
        skip = False
        for place, command in enumerate(region.commands):
            owner = owners[place]
            live = owner is None or (owner in active and owner not in outcome.dropped)
            if command == "(push)":
                opened.append(live)
                if live:
                    pending.append(command)
                continue
            if command == "(pop)":
                if opened.pop():
                    pending.append(command)
                continue
            if skip:
                skip = False
                continue
            if not live:
                continue
            goal = region.checks.get(place)
            if goal is None:
                if cores and owner is not None and command.startswith("(assert "):
                    named += 1
                    command = f"(assert (! {command[8:-1]} :named h!{owner}!{named}))"
                pending.append(command)
                continue
            if goal in settled or (owner is not None and wanted is not None and owner not in wanted):
                continue
            if cores:
                command = command.replace("(get-info :rlimit)", "(get-unsat-core)")
            self.checks += 1
            text = "\n".join([*pending, command])
            pending = []
            try:
                output = z3.Z3_eval_smtlib2_string(context.ref(), text)
            except z3.Z3Exception as error:
                output = str(error)
            answer = next((line for line in output.splitlines() if line in ("unsat", "sat", "unknown")), "unknown")
            if answer == "unsat":
                if cores:
                    outcome.used[goal] = frozenset(int(match) for match in _NAME.findall(output))
                continue
            if owner is not None:
                outcome.dropped.add(owner)
                skip = True
            else:
                outcome.failed.append(region.goals[goal])
            if stop:
                break
        return outcome

    def greatest(self, active: set[int], *, stop: bool = True) -> tuple[set[int], list[Goal]]:
        """The greatest set of candidates within `active` that proves itself, and the goals of the program that fail
        even so. With `stop`, gives up when such a goal fails in a round that assumed at least as much."""
        active = set(active)
        failures: dict[int, list[Goal]] = {}
        dirty = set(range(len(self.program.regions)))
        while dirty:
            dropped: set[int] = set()
            for number in sorted(dirty):
                found = self.run(number, active - dropped)
                dropped |= found.dropped
                failures[number] = found.failed
                if found.failed and stop:
                    return active - dropped, found.failed
            active -= dropped
            dropped |= {one for one, support in self.supports.items() if support in dropped and one in active}
            active -= dropped
            dirty = {number for number, users in enumerate(self.users) if users & dropped}
        return active, [goal for goals in failures.values() for goal in goals]

    def needed(self, active: set[int]) -> set[int]:
        """The candidates that the program's goals use, and those that their own goals use in turn (unsat cores)."""
        wanted: frozenset[int] = frozenset()
        posed: dict[int, set[int]] = {}
        while True:
            reached: set[int] = set(wanted)
            for number, region in enumerate(self.program.regions):
                done = posed.setdefault(number, set())
                goals = {
                    goal for place, goal in region.checks.items()
                    if (owner := self.owners[number][place]) is None or owner in wanted
                }  # fmt: skip
                if not goals - done:
                    continue
                found = self.run(number, active, wanted=wanted, cores=True, settled=frozenset(done))
                done |= goals
                for used in found.used.values():
                    reached |= used
            reached |= {self.supports[one] for one in reached if one in self.supports}
            if reached == wanted:
                return set(wanted)
            wanted = frozenset(reached)

    def proves(self, active: set[int]) -> bool:
        """Whether everything holds with exactly these candidates."""
        for number in range(len(self.program.regions)):
            found = self.run(number, active, stop=True)
            if found.failed or found.dropped & active:
                return False
        return True

    def least(self, active: set[int]) -> set[int]:
        """A part of `active` from which no single candidate can be taken away, long texts tried first."""
        kept = set(active)
        texts = self.program.sketch.candidates
        for one in sorted(active, key=lambda number: (-len(texts[number].text), number)):
            trial = kept - {one}
            if any(self.supports.get(other) == one for other in kept):
                continue
            touched = [number for number, users in enumerate(self.users) if one in users]
            outcomes = (self.run(number, trial, stop=True) for number in touched)
            if all(not found.failed and not found.dropped & trial for found in outcomes):
                kept = trial
        return kept
