"""What a proposer has to beat: from no proof at all to the search, each in one table with what it cost.

    for row in compare(tasks):
        print(row.name, row.share.value, row.share.interval)
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from systems.safe.candidates import invariants, measures
from systems.safe.check import check
from systems.safe.contexts import context
from systems.safe.evolve import TEMPERATURE, Share, Task
from systems.safe.gate import gate
from systems.safe.houdini import Solver, translated
from systems.safe.parser import parse
from systems.safe.policy import Policy
from systems.safe.policy import menu as menu_of
from systems.safe.policy import written as written_of
from systems.safe.prove import EXPLORING, proposals, prove
from systems.safe.sketch import Candidate, write
from systems.safe.syntax import SafeError
from systems.safe.verifier import Limits, verify

PLAIN = frozenset({"requires", "order"})
"""The rules whose candidates a beginner would write: what is required, and where counters lie."""


@dataclass(frozen=True)
class Line:
    """One baseline on all tasks. seconds: of one task on average."""

    name: str
    what: str
    share: Share
    seconds: float


def nothing(task: str, edition: str, seed: int) -> str:
    """The task as it is."""
    return task


def plain(task: str, edition: str, seed: int) -> str:
    """What is required and the bounds of counters as invariants, and a measure."""
    found = proposals(task, edition=edition, seed=seed).candidates
    return write(task, [one for one in found if one.why in PLAIN or one.place.kind == "decreases"]).text


def all_at_once(task: str, edition: str, seed: int) -> str:
    """Every candidate that no run refutes, none sorted out by the solver."""
    return proposals(task, edition=edition, seed=seed).text


def unpruned(task: str, edition: str, seed: int) -> str:
    """The greatest set of all invariants that proves itself, none refuted by runs beforehand; no hints."""
    typing = check(parse(task), edition)
    pool: list[Candidate] = []
    for signature in typing.functions.values():
        if signature.mode == "exec":
            where = context(task, typing, signature)
            pool += invariants(where, {})
            pool += {one.place.offset: one for one in reversed(measures(where))}.values()
    program = translated(task, pool, edition)
    held, _ = Solver(program, EXPLORING).greatest(set(range(len(program.sketch.candidates))), stop=False)
    kept = [program.sketch.candidates[number] for number in sorted(held)]
    kept += [one for one in program.sketch.candidates if one.place.kind == "decreases" and one not in kept]
    return write(task, kept).text


def at_random(task: str, edition: str, seed: int) -> str:
    """A draw of candidates by a network that learned nothing."""
    shown = menu_of(task, edition=edition, seed=seed)
    return written_of(shown, Policy(seed).draw(shown, temperature=TEMPERATURE, seed=seed)).text


def searched(task: str, edition: str, seed: int) -> str:
    """The search."""
    return prove(task, edition=edition, seed=seed).program


Baseline = Callable[[str, str, int], str]
BASELINES: dict[str, Baseline] = {
    "nothing": nothing,
    "requires and bounds": plain,
    "all candidates at once": all_at_once,
    "Houdini without pruning": unpruned,
    "random draw": at_random,
    "search": searched,
}


def compare(
    tasks: Sequence[Task], *, policy: Policy | None = None, names: Sequence[str] = (), edition: str = "current",
    seed: int = 0, limits: Limits | None = None, progress: Callable[[str], None] = lambda line: None,
) -> Iterator[Line]:  # fmt: skip
    """A line a baseline, `names` or all, and one for the policy's greedy draw where one is given. A program counts if
    it verifies from its text and passes the gate. Raises SafeError for a name that there is none of.
    """
    limits = limits or Limits()
    unknown = sorted(set(names) - {*BASELINES, "policy"})
    if unknown:
        raise SafeError(f"no baseline {', '.join(unknown)}; there are {', '.join(BASELINES)}, policy")
    chosen: dict[str, Baseline] = {name: make for name, make in BASELINES.items() if not names or name in names}
    if policy is not None:
        chosen["policy"] = partial(_greedy, policy)
    for name, make in chosen.items():
        started = time.perf_counter()
        work = partial(_tried, make=make, edition=edition, seed=seed, limits=replace(limits, workers=1))
        texts = [task.text for task in tasks]
        if limits.workers > 1 and len(tasks) > 1:
            with ProcessPoolExecutor(limits.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
                solved = sum(pool.map(work, texts))
        else:
            solved = sum(map(work, texts))
        taken = (time.perf_counter() - started) * max(1, min(limits.workers, len(tasks))) / max(1, len(tasks))
        progress(f"{name}: {solved} of {len(tasks)}")
        what = (make.__doc__ or "The trained policy's greedy draw.").splitlines()[0]
        yield Line(name, what, Share(solved, len(tasks), len(tasks)), taken)


def _greedy(policy: Policy, task: str, edition: str, seed: int) -> str:
    shown = menu_of(task, edition=edition, seed=seed)
    return written_of(shown, policy.draw(shown)).text


def _tried(task: str, *, make: Baseline, edition: str, seed: int, limits: Limits) -> bool:
    try:
        program = make(task, edition, seed)
        return verify(program, edition=edition, limits=limits).ok and gate(task, program) == []
    except (SafeError, RecursionError):
        return False
