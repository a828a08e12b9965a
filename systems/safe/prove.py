"""From a task to a proved program: candidates, runs that refute them, the solver that keeps what holds, and the least
part of it, written into the task's own text, verified again from that text and passed by the gate."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

from systems.safe.candidates import invariants, measures
from systems.safe.check import check
from systems.safe.contexts import context
from systems.safe.evaluate import Environment, Unknown
from systems.safe.gate import gate
from systems.safe.hints import hints
from systems.safe.houdini import Solver, Translated, translated, typed
from systems.safe.interp import Inputs, Interpreter, Run
from systems.safe.parser import parse
from systems.safe.sketch import Candidate, Sketch, loops, write
from systems.safe.syntax import ProgramProblem, SafeError
from systems.safe.types import Typing
from systems.safe.verifier import EDITIONS, Limits, Report, verify

RUNS = 40
"""Runs of each function that candidates have to survive."""
_MOST_STATES = 80
EXPLORING = 3_000_000
"""Resource units for an obligation while candidates are sorted; the proof itself gets the caller's limits."""


@dataclass(frozen=True)
class Proof:
    """What became of a task. `program` is the proved text, or the task's own where there is no proof; `added` are the
    candidates in it; `checks` counts the solver's answers on the way; `minimal` says that none can be taken out."""

    ok: bool
    program: str
    report: Report
    added: tuple[Candidate, ...] = ()
    candidates: int = 0
    checks: int = 0
    seconds: float = 0.0
    minimal: bool = False
    why: str = ""


@dataclass
class _Trace:
    """Runs of every function of one checked program."""

    interpreter: Interpreter
    runs: dict[str, list[Run]] = field(default_factory=dict)

    def states(self, name: str) -> dict[int, list[Environment]]:
        found: dict[int, list[Environment]] = {}
        for run in self.runs.get(name, ()):
            if not run.fault:
                for place, _, env in run.heads:
                    found.setdefault(place, []).append(env)
        return {place: envs[:: max(1, len(envs) // _MOST_STATES)] for place, envs in found.items()}


def _trace(typing: Typing, seed: int) -> _Trace:
    trace = _Trace(Interpreter(typing))
    for name, signature in typing.functions.items():
        if signature.mode == "exec" and loops(signature.fn.body):
            trace.runs[name] = list(Inputs(trace.interpreter, seed).runs(signature, RUNS))
    return trace


def prove(task: str, *, edition: str = "current", limits: Limits | None = None, seed: int = 0) -> Proof:
    """Search for a proof of a task: a program with its specification. Raises SafeError for an unknown edition only;
    a task that cannot be read is reported."""
    started = time.perf_counter()
    if edition not in EDITIONS:
        raise SafeError(f"edition {edition!r} is not known: expected one of {', '.join(EDITIONS)}")
    limits = limits or Limits()
    bare = verify(task, edition=edition, limits=limits)
    if bare.ok:
        return Proof(True, task, bare, seconds=time.perf_counter() - started, minimal=True, why="needs no proof")
    try:
        check(parse(task), edition)
        found = _search(task, edition, limits, seed)
    except (ProgramProblem, RecursionError) as problem:
        return Proof(False, task, bare, seconds=time.perf_counter() - started, why=str(problem))
    return replace(found, seconds=time.perf_counter() - started)


def prove_many(
    tasks: Sequence[str], *, edition: str = "current", limits: Limits | None = None, seed: int = 0
) -> Iterator[Proof]:
    """Proofs of several tasks, in their order, from `limits.workers` processes."""
    limits = limits or Limits()
    work = partial(prove, edition=edition, limits=limits, seed=seed)
    if limits.workers <= 1 or len(tasks) <= 1:
        yield from map(work, tasks)
        return
    with ProcessPoolExecutor(limits.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, tasks)


def _search(task: str, edition: str, limits: Limits, seed: int) -> Proof:
    checks = proposed = 0
    why = ""
    for stage in range(2):
        pool = _surviving(task, edition, seed)
        if stage:
            typing = check(parse(task), edition)
            pool += [one for signature in typing.functions.values() for one in hints(context(task, typing, signature))]
        program = translated(task, pool, edition)
        proposed = len(program.sketch.candidates)
        solver = Solver(program, min(limits.rlimit, EXPLORING))
        held, failed = solver.greatest(set(range(proposed)))
        if not failed:
            held = _smallest(solver, held)
            checks += solver.checks
            return _finished(task, program, held, edition, limits, proposed, checks)
        checks += solver.checks
        why = "; ".join(dict.fromkeys(goal.kind for goal in failed))
    report = verify(task, edition=edition, limits=limits)
    return Proof(False, task, report, candidates=proposed, checks=checks, why=why)


def proposals(task: str, *, edition: str = "current", seed: int = 0) -> Sketch:
    """Every candidate for a task that type-checks and that no run refutes, hints included, in the task's text. Raises
    ProgramProblem for a task that cannot be read."""
    pool = _surviving(task, edition, seed)
    typing = check(parse(task), edition)
    pool += [one for signature in typing.functions.values() for one in hints(context(task, typing, signature))]
    return translated(task, pool, edition).sketch


def inductive(task: str, candidates: Sequence[Candidate], *, edition: str = "current") -> list[Candidate]:
    """The greatest part of the candidates that proves itself, whether or not it proves the task."""
    program = translated(task, candidates, edition)
    held, _ = Solver(program, EXPLORING).greatest(set(range(len(program.sketch.candidates))), stop=False)
    return [program.sketch.candidates[number] for number in sorted(held)]


def smallest(task: str, added: Sequence[Candidate], *, edition: str = "current") -> list[Candidate] | None:
    """The least part of a proof that still proves the task; None where it does not."""
    program = translated(task, added, edition)
    solver = Solver(program, EXPLORING)
    held, failed = solver.greatest(set(range(len(program.sketch.candidates))))
    if failed:
        return None
    kept = _smallest(solver, held)
    measures_ = [one for one in program.sketch.candidates if one.place.kind == "decreases"]
    return [program.sketch.candidates[number] for number in sorted(kept)] + measures_


def _smallest(solver: Solver, held: set[int]) -> set[int]:
    """The least set, by what the proof used where that proves it as well."""
    used = solver.needed(held)
    return solver.least(used if solver.proves(used) else held)


def _finished(
    task: str, program: Translated, held: Iterable[int], edition: str, limits: Limits, proposed: int, checks: int
) -> Proof:
    added = [program.sketch.candidates[number] for number in sorted(held)]
    added += [one for one in program.sketch.candidates if one.place.kind == "decreases"]
    text = write(task, added).text
    report = verify(text, edition=edition, limits=limits)
    violations = gate(task, text)
    ok = report.ok and not violations
    why = "" if ok else "; ".join([*(v.message for v in violations), *(d.message for d in report.diagnostics)])
    return Proof(
        ok, text if ok else task, report, tuple(added) if ok else (), proposed, checks, minimal=ok, why=why
    )  # fmt: skip


def _surviving(task: str, edition: str, seed: int) -> list[Candidate]:
    """Candidates that no run refutes, and for each loop the first measure that falls in every run."""
    typing = check(parse(task), edition)
    trace = _trace(typing, seed)
    pool: list[Candidate] = []
    falling: list[Candidate] = []
    for name, signature in typing.functions.items():
        if signature.mode == "exec" and loops(signature.fn.body):
            where = context(task, typing, signature)
            pool += invariants(where, trace.states(name))
            falling += measures(where)
    program = typed(task, pool, edition)
    refuted = _refuted(program, _trace(program.typing, seed))
    kept = [one for number, one in enumerate(program.sketch.candidates) if number not in refuted]
    return [*kept, *_measured(task, falling, edition, seed)]


def _refuted(program: Translated, trace: _Trace) -> set[int]:
    """The clauses that are false in some state seen at their loop's head."""
    found: set[int] = set()
    for name, runs in trace.runs.items():
        signature = program.typing.functions[name]
        states = trace.states(name)
        if not runs:
            continue
        for loop in loops(signature.fn.body):
            seen = states.get(loop.span.start, [])
            for clause in loop.spec.invariant:
                candidate = program.sketch.at(clause.span.start)
                if candidate is None:
                    continue
                if any(trace.interpreter.evaluator.holds(clause, env) is False for env in seen):
                    found.add(program.sketch.candidates.index(candidate))
    return found


def _measured(task: str, falling: list[Candidate], edition: str, seed: int) -> list[Candidate]:
    """For each loop the first measure that falls and stays above zero in every run."""
    kept: list[Candidate] = []
    waiting = list(falling)
    while waiting:
        first = list({one.place.offset: one for one in reversed(waiting)}.values())
        program = typed(task, first, edition)
        refused = [one for one in first if one not in program.sketch.candidates]
        trace = _trace(program.typing, seed)
        good = [one for one in program.sketch.candidates if _falls(program, trace, one)]
        kept += good
        done = {one.place.offset for one in good}
        tried = {*refused, *program.sketch.candidates}
        waiting = [one for one in waiting if one not in tried and one.place.offset not in done]
    return kept


def _falls(program: Translated, trace: _Trace, candidate: Candidate) -> bool:
    for name, runs in trace.runs.items():
        for loop in loops(program.typing.functions[name].fn.body):
            for clause in loop.spec.decreases:
                if program.sketch.at(clause.span.start) != candidate:
                    continue
                value = trace.interpreter.evaluator.function(clause)
                for run in runs:
                    before: int | None = None
                    for place, turn, env in run.heads:
                        if place != loop.span.start:
                            continue
                        try:
                            now = value(dict(env))
                        except Unknown:
                            return False
                        if turn and before is not None and not now < before:
                            return False
                        if turn and now < 0:
                            return False
                        before = now
    return True
