"""The Selector: which benchmarks to run, and whether to run any, so that the risk of an incident stays below a target.

    history = History.of({"triad": {0, 1, 2}, "fsync": {2, 3}}, total=5)     # which defects each one caught
    chosen = plan(p, history, {"triad": 2.0, "fsync": 0.5}, p0=0.05)         # p: (nodes,) chance of an incident
    chosen.benchmarks, chosen.minutes, chosen.residual

Nodes fail on their own with chance p_i; a validation that covers a share C of defects leaves p_i (1 - C), and the job
sees an incident with P = 1 - prod_i (1 - p_i (1 - C)). P falls in C, so a risk target is a coverage target, and the
least minutes for it are a weighted partial set cover (Anubis, arXiv 2402.06194, Selector; solved there greedily).

    SelectorError(ValueError)
    ├── UnknownBenchmark     a benchmark that no history knows, or that has no minutes
    └── BudgetTooSmall       the budget buys not even the cheapest benchmark
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Method = Literal["exact", "greedy"]

ROUNDING = 1e-9

ENUMERATED = 16
"""Up to this many benchmarks an exact plan looks at every subset, in milliseconds; beyond, at an integer program."""


class SelectorError(ValueError):
    """Arguments that no plan can be made of."""


class UnknownBenchmark(SelectorError):
    """A benchmark without history or without minutes."""


class BudgetTooSmall(SelectorError):
    """The budget buys not even the cheapest benchmark; `.cheapest`: (name, minutes)."""

    def __init__(self, budget: float, cheapest: tuple[str, float]) -> None:
        self.cheapest = cheapest
        super().__init__(
            f"a budget of {budget:g} minutes buys no benchmark: the cheapest is {cheapest[0]} with {cheapest[1]:.3g}"
        )


@dataclass(frozen=True)
class History:
    """Labelled defects by catch pattern: which benchmarks caught them, and how many defects were caught so.

    patterns: set of benchmarks -> number of defects; the empty set counts the defects that nothing caught.
    source: where they come from, for headers: "prior" is the one that ships with Maat.
    """

    patterns: Mapping[frozenset[str], int]
    benchmarks: frozenset[str]
    source: str = ""

    def __post_init__(self) -> None:
        if self.total < 1:
            raise SelectorError("an empty history: at least one labelled defect is needed to know what catches what")
        for pattern, count in self.patterns.items():
            if count < 0 or not pattern <= self.benchmarks:
                raise SelectorError(
                    f"an inconsistent history: {count} defects caught by {sorted(pattern)}, of the benchmarks "
                    f"{sorted(self.benchmarks)}"
                )

    @classmethod
    def of(cls, caught: Mapping[str, Iterable[int | str]], total: int, source: str = "") -> History:
        """From the set of defects that each benchmark caught, of `total` defects known (also those never caught)."""
        by_defect: dict[int | str, set[str]] = {}
        for name, defects in caught.items():
            for defect in defects:
                by_defect.setdefault(defect, set()).add(name)
        if total < len(by_defect):
            raise SelectorError(f"an inconsistent history: {len(by_defect)} defects were caught of a total of {total}")
        patterns = Counter(frozenset(names) for names in by_defect.values())
        if total > len(by_defect):
            patterns[frozenset()] += total - len(by_defect)
        return cls(dict(patterns), frozenset(caught), source)

    @classmethod
    def load(cls, path: Path) -> History:
        """From the JSON that `to_json` gives. Raises SelectorError for anything else."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            patterns = {frozenset(map(str, row["caught_by"])): int(row["defects"]) for row in data["patterns"]}
            return cls(patterns, frozenset(map(str, data["benchmarks"])), str(data["source"]))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise SelectorError(f"{path}: not a history of defects: {error}") from error

    def to_json(self) -> str:
        """Sorted, one pattern a line."""
        rows = sorted((sorted(pattern), count) for pattern, count in self.patterns.items())
        lines = ",\n  ".join(json.dumps({"caught_by": names, "defects": count}) for names, count in rows)
        names = json.dumps(sorted(self.benchmarks))
        return f'{{"benchmarks": {names},\n "patterns": [\n  {lines}\n ],\n "source": {json.dumps(self.source)}}}\n'

    @property
    def total(self) -> int:
        """Defects in all."""
        return sum(self.patterns.values())

    @property
    def unseen(self) -> float:
        """Good-Turing's estimate of the mass of catch patterns never seen: patterns seen once over all defects."""
        return sum(count == 1 for count in self.patterns.values()) / self.total

    def coverage(self, subset: Iterable[str]) -> float:
        """C(B): the share of defects that benchmarks B catch, with the unseen mass taken for not caught."""
        chosen = frozenset(subset)
        if unknown := chosen - self.benchmarks:
            raise UnknownBenchmark(f"no history knows {', '.join(sorted(unknown))}: run the fault matrix with it first")
        caught = sum(count for pattern, count in self.patterns.items() if pattern & chosen)
        return (1.0 - self.unseen) * caught / self.total


@dataclass(frozen=True)
class Plan:
    """Benchmarks to run, in the order of coverage gained per minute; `residual`: P of an incident after passing them.

    before: P without validation; reached: whether the target, or the budget, was met.
    """

    benchmarks: tuple[str, ...]
    minutes: float
    coverage: float
    residual: float
    before: float
    reached: bool
    method: Method

    def __str__(self) -> str:
        names = ", ".join(self.benchmarks) or "no validation"
        return (
            f"{names}: {self.minutes:.1f} minutes, coverage {self.coverage:.1%}, risk {self.before:.2%} -> "
            f"{self.residual:.2%}" + ("" if self.reached else " (target out of reach)")
        )


def risk(p: ArrayLike, coverage: float = 0.0) -> float:
    """P of an incident on any node; p (nodes,) in [0, 1], after a validation with `coverage`."""
    chances = _chances(p)
    return float(-math.expm1(np.log1p(-np.minimum(chances * (1.0 - coverage), 1 - 1e-15)).sum()))


def coverage_needed(p: ArrayLike, p0: float) -> float:
    """The least coverage with `risk(p, coverage) <= p0`, by bisection; in [0, 1]."""
    if risk(p) <= p0:
        return 0.0
    low, high = 0.0, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (low, middle) if risk(p, middle) <= p0 else (middle, high)
    return high


def plan(
    p: ArrayLike,
    history: History,
    minutes: Mapping[str, float],
    *,
    p0: float = 0.05,
    budget: float | None = None,
    method: Method = "exact",
) -> Plan:
    """The cheapest benchmarks after which the risk is at most `p0`; or, with a budget, the most coverage within it.

    p        (nodes,) chance of an incident of each node during the job, in [0, 1]
    history  which defects each benchmark catches
    minutes  what each benchmark that may be chosen costs
    p0       target risk; where no choice reaches it, the plan with the most coverage says `reached=False`
    budget   minutes; the plan with the most coverage, and of those the cheapest (p0 only decides whether to run any)
    method   "exact" (mixed-integer program) or "greedy" (most coverage gained per minute, as in the paper)

    Raises UnknownBenchmark, BudgetTooSmall, and SelectorError for numbers out of range.
    """
    _check(history, minutes, p0, budget, method)
    if risk(p) <= p0:
        return _plan_of((), history, minutes, p, True, method)
    useful = {name: cost for name, cost in minutes.items() if budget is None or cost <= budget + ROUNDING}
    if not useful:
        raise BudgetTooSmall(float(budget or 0), min(minutes.items(), key=lambda pair: pair[1]))
    if budget is not None:
        chosen = _within(history, useful, budget, method)
        return _plan_of(chosen, history, minutes, p, True, method)
    target = coverage_needed(p, p0)
    needed = target * history.total / (1.0 - history.unseen) if history.unseen < 1 else math.inf
    most = sum(count for pattern, count in history.patterns.items() if pattern & frozenset(useful))
    reached = needed <= most + ROUNDING
    chosen = _cover(history, useful, min(math.ceil(needed - ROUNDING), most) if reached else most, method)
    return _plan_of(chosen, history, minutes, p, reached, method)


@dataclass(frozen=True, eq=False)
class Front:
    """The choices that no other beats: sets of benchmarks, from none on, with rising minutes (k,) and coverage (k,)."""

    sets: tuple[frozenset[str], ...]
    minutes: NDArray[np.float64]
    coverage: NDArray[np.float64]


def front(history: History, minutes: Mapping[str, float]) -> Front:
    """Every set of benchmarks that covers more than all cheaper ones. Raises UnknownBenchmark, SelectorError."""
    _check(history, minutes, 0.5, None, "exact")
    sets = [frozenset[str]()]
    caught = 0
    most = sum(count for pattern, count in history.patterns.items() if pattern & frozenset(minutes))
    if len(minutes) <= ENUMERATED:
        names, costs, catches = _subsets(history, minutes)
        for subset in np.lexsort((-catches, costs)):
            if catches[subset] > caught:
                caught = int(catches[subset])
                sets.append(frozenset(_members(names, int(subset))))
    while caught < most:
        chosen = _cover(history, minutes, caught + 1, "exact")
        caught = _caught(history, chosen)
        sets.append(frozenset(chosen))
    cost = np.array([sum(minutes[name] for name in each) for each in sets])
    return Front(tuple(sets), cost, np.array([history.coverage(each) for each in sets]))


def picks(p: ArrayLike, choices: Front, price: float) -> NDArray[np.intp]:
    """(nodes,): for each node the choice of least minutes + price x risk, the risk being -log(1 - p (1 - C))."""
    left = _log_risk(_chances(p), choices)
    return np.argmin(choices.minutes[None, :] + price * left, axis=1)


def price_of_risk(p: ArrayLike, choices: Front, p0: float) -> float:
    """The least price of risk at which the nodes' own choices (`picks`) bring a job's risk down to `p0`.

    0 where no validation is needed, infinity where everything is not enough. The risk of a job adds up over its nodes
    in logarithms, so one price makes each node's choice its own (Lagrange).
    """
    chances = _chances(p)
    if not 0 < p0 < 1:
        raise SelectorError(f"p0 is a probability in (0, 1), not {p0}")
    left, target = _log_risk(chances, choices), -math.log1p(-p0) + ROUNDING
    rows = np.arange(len(chances))

    def reached(price: float) -> bool:
        chosen = np.argmin(choices.minutes[None, :] + price * left, axis=1)
        return bool(left[rows, chosen].sum() <= target)

    if left[:, 0].sum() <= target:
        return 0.0
    if left[:, -1].sum() > target:
        return math.inf
    low, high = 0.0, 1.0
    while not reached(high):
        low, high = high, 4.0 * high
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def plan_nodes(p: ArrayLike, choices: Front, p0: float) -> NDArray[np.intp]:
    """(nodes,): what each node of a job is validated by, as indices of `choices`, for a risk of `p0` at most.

    The minutes in all are close to the least: what the price of risk overshoots is taken back node by node, and they
    are never more than those of the best set that is the same for all. Where p0 is out of reach, everything runs.
    """
    chances = _chances(p)
    price = price_of_risk(chances, choices, p0)
    if price == 0.0 or math.isinf(price):
        return np.full(len(chances), 0 if price == 0.0 else len(choices.sets) - 1)
    left, target = _log_risk(chances, choices), -math.log1p(-p0) + ROUNDING
    chosen = picks(chances, choices, price)
    spare = target - left[np.arange(len(chances)), chosen].sum()
    # Cheaper choices, most minutes first, as long as the target holds.
    saved = choices.minutes[chosen][:, None] - choices.minutes[None, :]
    for node, choice in zip(*np.unravel_index(np.argsort(-saved, axis=None), saved.shape), strict=True):
        gain = choices.minutes[chosen[node]] - choices.minutes[choice]
        more = left[node, choice] - left[node, chosen[node]]
        if gain > 0 and more <= spare:
            spare -= more
            chosen[node] = choice
    same = int(np.argmax(left.sum(axis=0) <= target))
    if choices.minutes[chosen].sum() > len(chances) * choices.minutes[same]:
        chosen = np.full(len(chances), same)
    return chosen


def _log_risk(chances: NDArray[np.float64], choices: Front) -> NDArray[np.float64]:
    return -np.log1p(-np.minimum(chances[:, None] * (1.0 - choices.coverage[None, :]), 1 - 1e-15))


def decide(p: ArrayLike, history: History, minutes: Mapping[str, float], *, hours_lost_per_incident: float) -> Plan:
    """The plan of least expected cost in node-hours: n T(B) + P(B) n hours_lost_per_incident.

    Every coverage on the exact cost-coverage front is tried, so the answer is exact.
    """
    n = len(_chances(p))
    choices = front(history, minutes)
    risks = np.array([risk(p, covered) for covered in choices.coverage])
    cost = n * choices.minutes / 60 + risks * n * hours_lost_per_incident
    return _plan_of(choices.sets[int(np.argmin(cost))], history, minutes, p, True, "exact")


def _chances(p: ArrayLike) -> NDArray[np.float64]:
    chances = np.atleast_1d(np.asarray(p, dtype=np.float64))
    if chances.ndim != 1 or len(chances) == 0 or not np.all((chances >= 0) & (chances <= 1)):
        raise SelectorError("p holds one probability in [0, 1] per node, and there is at least one node")
    return chances


def _check(history: History, minutes: Mapping[str, float], p0: float, budget: float | None, method: Method) -> None:
    if unknown := set(minutes) - history.benchmarks:
        raise UnknownBenchmark(f"no history knows {', '.join(sorted(unknown))}: run the fault matrix with it first")
    if not minutes or any(not (math.isfinite(cost) and cost > 0) for cost in minutes.values()):
        raise SelectorError(f"each benchmark needs positive minutes, not {dict(minutes)}")
    if not 0 < p0 < 1:
        raise SelectorError(f"p0 is a probability in (0, 1), not {p0}")
    if method not in ("exact", "greedy"):
        raise SelectorError(f"method is exact or greedy, not {method!r}")
    if budget is not None and not budget > 0:
        raise SelectorError(f"a budget is positive minutes, not {budget}")


def _plan_of(
    chosen: Iterable[str], history: History, minutes: Mapping[str, float], p: ArrayLike, reached: bool, method: Method
) -> Plan:
    chosen = frozenset(chosen)
    ordered = tuple(_by_gain(history, {name: minutes[name] for name in sorted(chosen)}))
    covered = history.coverage(chosen)
    total = sum(minutes[name] for name in ordered)
    return Plan(ordered, total, covered, risk(p, covered), risk(p), reached, method)


def _by_gain(history: History, minutes: Mapping[str, float]) -> list[str]:
    """Greedy order: most defects newly caught per minute first; of equal ones the cheaper, then by name."""
    left, ordered = dict(minutes), list[str]()
    while left:
        have = _caught(history, ordered)
        gains = {name: _caught(history, [*ordered, name]) - have for name in left}
        best = _most_per_minute(gains, left)
        ordered.append(best)
        del left[best]
    return ordered


def _most_per_minute(gains: Mapping[str, int], minutes: Mapping[str, float]) -> str:
    return min(minutes, key=lambda name: (-gains[name] / minutes[name], minutes[name], name))


def _caught(history: History, chosen: Iterable[str]) -> int:
    names = frozenset(chosen)
    return sum(count for pattern, count in history.patterns.items() if pattern & names)


def _cover(history: History, minutes: Mapping[str, float], needed: int, method: Method) -> tuple[str, ...]:
    """The cheapest benchmarks that catch `needed` defects (which all of them together do)."""
    if needed <= 0:
        return ()
    if method == "exact" and len(minutes) <= ENUMERATED:
        names, costs, caught = _subsets(history, minutes)
        return _members(names, int(np.argmin(np.where(caught >= needed, costs, np.inf))))
    if method == "exact":
        names, weights, patterns = _program(history, minutes)
        cost = np.concatenate([[minutes[name] for name in names], np.zeros(len(weights))])
        caught_in_all = np.concatenate([np.zeros(len(names)), weights])
        return _solve(cost, names, patterns, extra=(caught_in_all, needed - 0.5, np.inf))
    chosen: list[str] = []
    for name in _by_gain(history, minutes):
        if _caught(history, chosen) >= needed:
            break
        chosen.append(name)
    return tuple(chosen)


def _within(history: History, minutes: Mapping[str, float], budget: float, method: Method) -> tuple[str, ...]:
    """The benchmarks that catch most within the budget."""
    if method == "exact" and len(minutes) <= ENUMERATED:
        names, costs, caught = _subsets(history, minutes)
        affordable = np.where(costs <= budget + ROUNDING, caught, -1)
        best = affordable == affordable.max()
        return _members(names, int(np.argmin(np.where(best, costs, np.inf))))
    if method == "exact":
        names, weights, patterns = _program(history, minutes)
        cost = np.array([minutes[name] for name in names])
        # Of equal coverage the cheapest: all minutes together weigh less than one defect.
        objective = np.concatenate([0.5 * cost / cost.sum(), -weights])
        spent_in_all = np.concatenate([cost, np.zeros(len(weights))])
        return _solve(objective, names, patterns, extra=(spent_in_all, -np.inf, budget + ROUNDING))
    chosen, spent = list[str](), 0.0
    left = dict(minutes)
    while left:
        have = _caught(history, chosen)
        gains = {name: _caught(history, [*chosen, name]) - have for name in left}
        name = _most_per_minute(gains, left)
        if gains[name] and spent + left[name] <= budget + ROUNDING:
            chosen.append(name)
            spent += left[name]
        del left[name]
    return tuple(chosen)


def _subsets(
    history: History, minutes: Mapping[str, float]
) -> tuple[list[str], NDArray[np.float64], NDArray[np.int64]]:
    """Benchmarks, and by subset (bit i: benchmark i) its minutes and the defects that it catches.

    A subset misses the patterns that lie within its complement; their sums for all subsets are one zeta transform.
    """
    names = sorted(minutes)
    k = len(names)
    within = np.zeros(1 << k, dtype=np.int64)
    for pattern, count in history.patterns.items():
        within[sum(1 << i for i, name in enumerate(names) if name in pattern)] += count
    costs = np.zeros(1 << k)
    for i, name in enumerate(names):
        halves = within.reshape(-1, 2, 1 << i)
        halves[:, 1] += halves[:, 0]
        costs.reshape(-1, 2, 1 << i)[:, 1] += minutes[name]
    return names, costs, history.total - within[::-1]


def _members(names: list[str], subset: int) -> tuple[str, ...]:
    return tuple(name for i, name in enumerate(names) if subset >> i & 1)


def _program(
    history: History, minutes: Mapping[str, float]
) -> tuple[list[str], NDArray[np.float64], list[frozenset[str]]]:
    """Benchmarks, and the catch patterns that they can catch with their weights: equal patterns are one variable."""
    names = sorted(minutes)
    merged: Counter[frozenset[str]] = Counter()
    for pattern, count in history.patterns.items():
        if seen := pattern & frozenset(names):
            merged[seen] += count
    patterns = sorted(merged, key=sorted)
    return names, np.array([merged[pattern] for pattern in patterns], dtype=np.float64), patterns


def _solve(
    objective: NDArray[np.float64],
    names: list[str],
    patterns: list[frozenset[str]],
    extra: tuple[NDArray[np.float64], float, float],
) -> tuple[str, ...]:
    """The benchmarks of the optimum; a pattern is caught only when one of its benchmarks runs."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    caught_by = np.zeros((len(patterns), len(objective)))
    for at, pattern in enumerate(patterns):
        caught_by[at, [names.index(name) for name in pattern]] = -1.0
        caught_by[at, len(names) + at] = 1.0
    row, least, most = extra
    result = milp(
        objective,
        # Patterns would be whole by themselves; said so, the solver needs no second program to make them so.
        integrality=np.ones(len(objective)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(caught_by, -np.inf, 0), LinearConstraint(row[None, :], least, most)],
        options={"mip_rel_gap": 0.0},
    )
    if not result.success:
        raise SelectorError(f"the integer program was not solved: {result.message}")
    return tuple(name for name, x in zip(names, result.x, strict=False) if x > 0.5)
