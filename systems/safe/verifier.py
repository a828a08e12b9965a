"""`verify`: from a program's text to a report, by the embedded verifier."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from typing import Protocol

from systems.safe import solve
from systems.safe.check import check
from systems.safe.parser import parse
from systems.safe.solve import Answer, Cache, Script
from systems.safe.spec import Encoder
from systems.safe.syntax import ProgramProblem, SafeError, Source, Span
from systems.safe.vc import Goal, Region, obligations

EDITIONS = ("2024-08", "current")


@dataclass(frozen=True)
class Limits:
    """Per obligation: `rlimit` resource units, and `seconds` of wall time as a safety net. `workers` processes."""

    rlimit: int = 30_000_000
    seconds: float = 120.0
    workers: int = 2


@dataclass(frozen=True)
class Diagnostic:
    """One problem, placed from 1. `status` is failed, resource_limit or error; labels are (line, text)."""

    kind: str
    line: int
    column: int
    function: str
    message: str
    labels: tuple[tuple[int, str], ...] = ()
    status: str = "failed"


@dataclass(frozen=True)
class Report:
    """The outcome for one program. `verified` and `errors` count functions and isolated loops, as Verus does."""

    ok: bool
    verified: int
    errors: int
    compile_error: bool
    diagnostics: tuple[Diagnostic, ...]
    obligations: int
    seconds: float
    rlimit_used: int
    backend: str = "embedded"
    edition: str = "current"


class Verifier(Protocol):
    """Whatever gives reports on programs: `Embedded`, or `VerusBinary` where the real one is installed."""

    def verify(self, source: str, *, limits: Limits = ...) -> Report: ...


@dataclass(frozen=True)
class Embedded:
    """The verifier of this package under the rules of an edition, with a verdict cache if one is given."""

    edition: str = "current"
    cache: Cache | None = None

    def verify(self, source: str, *, limits: Limits = Limits()) -> Report:
        return verify(source, edition=self.edition, limits=limits, cache=self.cache)


@dataclass(frozen=True)
class Plan:
    """Everything to be decided about a program: its regions and, for each, the script that decides it."""

    source: Source
    edition: str
    regions: tuple[Region, ...] = ()
    scripts: tuple[Script, ...] = ()
    problem: Diagnostic | None = None
    functions: tuple[str, ...] = field(default=())


def plan(source: str, *, edition: str = "current", limits: Limits = Limits()) -> Plan:
    """Read, check and translate a program. Problems of the program are in `problem`."""
    if edition not in EDITIONS:
        raise SafeError(f"edition {edition!r} is not known: expected one of {', '.join(EDITIONS)}")
    text = Source(source)
    try:
        encoder = Encoder(check(parse(source), edition), edition)
        regions = obligations(encoder)
    except ProgramProblem as problem:
        return Plan(text, edition, problem=_diagnose(problem, text))
    except RecursionError:
        return Plan(text, edition, problem=Diagnostic("unsupported", 1, 1, "", "nesting too deep", status="error"))
    scripts = tuple(
        solve.script(
            encoder.theory.without(region.without),
            region.commands,
            len(region.goals),
            limits.rlimit,
            limits.seconds,
            region.nonlinear,
        )
        for region in regions
    )
    return Plan(text, edition, tuple(regions), scripts, functions=tuple(encoder.typing.functions))


def _diagnose(problem: ProgramProblem, source: Source) -> Diagnostic:
    line, column = source.position(problem.span.start)
    message = problem.message if problem.kind != "unsupported" else f"not supported: {problem.message}"
    return Diagnostic(problem.kind, line, column, "", message, status="error")


def verify(
    source: str, *, edition: str = "current", limits: Limits = Limits(), cache: Cache | None = None,
) -> Report:  # fmt: skip
    """Decide whether every obligation of the program holds. Never raises for bad programs: they are reported."""
    started = time.perf_counter()
    key = cache.key(f"{edition} {limits.rlimit} {limits.seconds}\n{source}") if cache is not None else ""
    if cache is not None and (known := _restored(cache.load(key))) is not None:
        return replace(known, seconds=time.perf_counter() - started)
    found = _verify(source, edition, limits, cache, started)
    if cache is not None:
        cache.store(key, asdict(found))
    return found


def _restored(entry: object) -> Report | None:
    """A report as the cache keeps it, or None where that is damaged."""
    try:
        assert isinstance(entry, dict)
        diagnostics = tuple(
            Diagnostic(**{**problem, "labels": tuple((int(line), str(text)) for line, text in problem["labels"])})
            for problem in entry["diagnostics"]
        )
        found = Report(**{**entry, "diagnostics": diagnostics})
        consistent = found.ok == (not diagnostics and found.errors == 0 and not found.compile_error)
    except (AssertionError, KeyError, TypeError, ValueError):
        return None
    return found if consistent and isinstance(found.ok, bool) else None


def _verify(source: str, edition: str, limits: Limits, cache: Cache | None, started: float) -> Report:
    made = plan(source, edition=edition, limits=limits)
    if made.problem is not None:
        return Report(False, 0, 0, True, (made.problem,), 0, time.perf_counter() - started, 0, edition=edition)
    return report(made, decide(made.scripts, limits, cache), time.perf_counter() - started)


def verify_many(
    sources: Sequence[str], *, edition: str = "current", limits: Limits = Limits(), cache: Cache | None = None,
) -> Iterator[Report]:  # fmt: skip
    """Reports of several programs, in their order, from `limits.workers` processes. A worker that dies costs the
    program at hand its verdict (`resource_limit`), not the others theirs."""
    if limits.workers <= 1 or len(sources) <= 1:
        for source in sources:
            yield verify(source, edition=edition, limits=limits, cache=cache)
        return
    position = 0
    while position < len(sources):
        with ProcessPoolExecutor(limits.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            waiting = [pool.submit(_verify_one, source, edition, limits, cache) for source in sources[position:]]
            for future in waiting:
                try:
                    yield future.result()
                except BrokenProcessPool:
                    yield _crashed(edition)
                    position += 1
                    break
                position += 1


def _verify_one(source: str, edition: str, limits: Limits, cache: Cache | None) -> Report:
    return verify(source, edition=edition, limits=limits, cache=cache)


def _crashed(edition: str) -> Report:
    problem = Diagnostic("resource limit exceeded", 1, 1, "", "the solver's process died", status="resource_limit")
    return Report(False, 0, 1, False, (problem,), 0, 0.0, 0, edition=edition)


def decide(scripts: Iterable[Script], limits: Limits, cache: Cache | None = None) -> list[Answer]:
    """The answers to scripts, from the cache where it has them."""
    answers = []
    for script in scripts:
        key = cache.key(script.text) if cache is not None else ""
        answer = cache.get(key, script.goals) if cache is not None else None
        if answer is None:
            answer = solve.solve(script, limits.rlimit)
            if cache is not None:
                cache.put(key, answer)
        answers.append(answer)
    return answers


def report(made: Plan, answers: Sequence[Answer], seconds: float) -> Report:
    """Put answers and places together."""
    diagnostics: list[Diagnostic] = []
    verified = errors = total = used = 0
    failed_before: set[str] = set()
    for region, answer in zip(made.regions, answers, strict=True):
        bad = [
            (goal, verdict) for goal, verdict in zip(region.goals, answer.verdicts, strict=True) if verdict != "proved"
        ]
        total += len(region.goals)
        used += sum(answer.rlimits)
        diagnostics += [_failure(region, goal, verdict, made.source) for goal, verdict in bad]
        if region.what in ("nonlinear", "bit_vector"):
            if bad:
                failed_before.add(region.function)
                errors += 1
        elif bad:
            errors += 1
        else:
            verified += 1
    return Report(
        errors == 0,
        verified,
        errors,
        False,
        tuple(dict.fromkeys(diagnostics)),
        total,
        seconds,
        used,
        edition=made.edition,
    )


def _failure(region: Region, goal: Goal, verdict: str, source: Source) -> Diagnostic:
    line, column = source.position(goal.span.start)
    labels = tuple((_line(source, span), text) for span, text in goal.labels)
    message = goal.kind if verdict == "failed" else f"{goal.kind}: resource limit exceeded"
    return Diagnostic(goal.kind, line, column, region.function, message, labels, verdict)


def _line(source: Source, span: Span) -> int:
    return source.position(span.start)[0]
