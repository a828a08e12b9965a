"""What validation is worth: a fleet under a policy, event by event.

    outcome = simulate(Scenario(), "selector", seed=0)
    outcome.mtbi, outcome.utilisation, outcome.validation_hours

Nodes grow defects that lie latent until the next job, or break the running one at once. Jobs run on gangs; one
incident aborts the gang, and the work since its last checkpoint is lost. A policy chooses what to validate a gang by
before it starts: "none", "full", "random", "selector" or "oracle" (knows every latent defect, and takes no time).

Model and figures: Anubis (arXiv 2402.06194), section on simulation, as far as known; `Scenario` holds all defaults.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from systems.anubis.selector import Front, History, front, picks, price_of_risk
from systems.anubis.survival import Exponential, Intervals

Policy = Literal["none", "full", "random", "selector", "oracle"]
POLICIES: tuple[Policy, ...] = ("none", "full", "random", "selector", "oracle")


class ImpossibleScenario(ValueError):
    """A scenario whose parameters contradict each other or lie out of range."""


def reference_history() -> History:
    """1,000 generated defects over the paper's twelve benchmarks, in the shares of its build-out; 3 % caught by none.

    Each benchmark also catches what two others do now and then, so that sets overlap.
    """
    shares = {
        "ib-loopback": 604, "h2d-d2h": 203, "bert": 159, "cpu-latency": 133, "ib-allreduce": 110, "resnet": 73,
        "gpt2": 53, "lstm": 46, "densenet": 40, "overlap": 33, "nvlink-allreduce": 30, "gemm": 23,
    }  # fmt: skip
    names, weights = list(shares), np.array(list(shares.values()), dtype=float)
    generator = np.random.default_rng(2402)
    patterns: Counter[frozenset[str]] = Counter({frozenset(): 30})
    for first in generator.choice(len(names), size=970, p=weights / weights.sum()):
        also = (first + 1) % len(names) if generator.random() < 0.35 else first
        patterns[frozenset({names[first], names[also]})] += 1
    # A pattern seen once tells of others never seen; the reference history is long enough to hold none.
    single = [pattern for pattern, count in patterns.items() if count == 1]
    for pattern in single:
        patterns[frozenset()] += patterns.pop(pattern)
    return History(dict(patterns), frozenset(names), "reference scenario")


REFERENCE_MINUTES: Mapping[str, float] = {
    "ib-loopback": 4, "h2d-d2h": 3, "bert": 12, "cpu-latency": 2, "ib-allreduce": 6, "resnet": 10,
    "gpt2": 14, "lstm": 9, "densenet": 11, "overlap": 6, "nvlink-allreduce": 5, "gemm": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Scenario:
    """A fleet and its work. Times in hours, unless named otherwise.

    first, twentieth   mean time in use to the first, and to the twentieth incident's, defect of a node; geometric
                       between them and constant beyond
    sudden             share of defects that break the running job at once: no validation can prevent those
    latency            mean time in the next job until a latent defect breaks it
    imperfect          chance that a repair leaves the defect in, found only by validating after repair
    repair_day, repair_two_weeks   shares of repairs longer than that; the log-normal repair time is fitted to both
    p0                 the selector's target risk of a job; random_count: benchmarks of the random policy
    trace              where given, nodes fail as its nodes did: each simulated node relives one of them, drawn at
                       random, up-time by up-time, and goes on at the rate of its count where the trace ends
                       (`first` and `twentieth` then say nothing)
    """

    nodes: int = 512
    days: float = 90.0
    gang: int = 32
    job: float = 24.0
    checkpoint: float = 4.0
    first: float = 719.4
    twentieth: float = 151.7
    sudden: float = 0.02
    latency: float = 6.0
    imperfect: float = 0.15
    repair_day: float = 0.381
    repair_two_weeks: float = 0.103
    p0: float = 0.05
    random_count: int = 3
    history: History = field(default_factory=reference_history)
    minutes: Mapping[str, float] = field(default_factory=lambda: dict(REFERENCE_MINUTES))
    trace: Intervals | None = None

    def __post_init__(self) -> None:
        def refuse(text: str) -> None:
            raise ImpossibleScenario(f"{text}; see Scenario")

        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, int | float) and not math.isfinite(value):
                refuse(f"{each.name} is {value}")
        if not 1 <= self.gang <= self.nodes:
            refuse(f"gangs of {self.gang} do not fit a fleet of {self.nodes} nodes")
        for name in ("days", "job", "checkpoint", "first", "twentieth", "latency"):
            if getattr(self, name) <= 0:
                refuse(f"{name} must be positive, not {getattr(self, name)}")
        for name in ("sudden", "imperfect"):
            if not 0 <= getattr(self, name) <= 1:
                refuse(f"{name} is a share in [0, 1], not {getattr(self, name)}")
        if not 0 < self.repair_two_weeks < self.repair_day < 1:
            refuse(
                f"repairs over two weeks ({self.repair_two_weeks}) must be rarer than those over a day "
                f"({self.repair_day}), and both shares lie in (0, 1)"
            )
        if unknown := set(self.minutes) - self.history.benchmarks:
            refuse(f"minutes are given for {sorted(unknown)}, which the history does not know")
        if not 0 <= self.random_count <= len(self.minutes):
            refuse(f"random_count is {self.random_count}, of {len(self.minutes)} benchmarks")

    def rate(self, incidents: int) -> float:
        """Defects per hour in use of a node after so many incidents: the trace's rates, where there is one."""
        if self.trace is not None:
            return float(self._rates[min(incidents, len(self._rates) - 1)])
        return 1.0 / (self.first * (self.twentieth / self.first) ** (min(incidents, 19) / 19))

    @cached_property
    def _rates(self) -> NDArray[np.float64]:
        assert self.trace is not None
        return Exponential(most=6).fit(self.trace).rates

    @cached_property
    def choices(self) -> Front:
        """The sets of benchmarks worth considering."""
        return front(self.history, self.minutes)

    def repair_parameters(self) -> tuple[float, float]:
        """(mu, sigma) of the log of the repair time in hours."""
        from scipy.special import ndtri

        day, weeks = -float(ndtri(self.repair_day)), -float(ndtri(self.repair_two_weeks))
        sigma = math.log(14.0) / (weeks - day)
        return math.log(24.0) - day * sigma, sigma


@dataclass(frozen=True)
class Outcome:
    """What a policy gave. mtbi: node-hours in jobs per incident; utilisation: share of all node-hours that was work
    kept; validation_hours: per node; incidents: per node; found: defects by one benchmark that caught each."""

    policy: Policy
    mtbi: float
    utilisation: float
    validation_hours: float
    incidents: float
    found: Mapping[str, int]


class _Fleet:
    """State of one simulation, and its events in time."""

    def __init__(self, scenario: Scenario, policy: Policy, seed: int) -> None:
        self.s, self.policy, self.random = scenario, policy, np.random.default_rng(seed)
        patterns = sorted(scenario.history.patterns.items(), key=lambda pair: sorted(pair[0]))
        self.patterns = [pattern for pattern, _ in patterns]
        self.up_to = np.cumsum([count for _, count in patterns]) / scenario.history.total
        self.defect: list[frozenset[str] | None] = [None] * scenario.nodes
        self.incidents = np.zeros(scenario.nodes, dtype=int)
        self.exposed = np.zeros(scenario.nodes)  # hours in use since a validation or repair
        self.free = list(range(scenario.nodes))
        self.mu, self.sigma = scenario.repair_parameters()
        self.events: list[tuple[float, int, str, tuple[int, ...]]] = []
        self.count = 0
        self.in_jobs = self.kept = self.validated = 0.0
        self.broken = 0
        self.found: Counter[str] = Counter()
        self.everything = frozenset(scenario.minutes)
        self.hours_of: dict[frozenset[str], float] = {}
        self.coverage_of: dict[frozenset[str], float] = {}
        self.relived = self._relived()
        self.until = [self._next_defect(node) for node in range(scenario.nodes)]

    def run(self) -> Outcome:
        end = self.s.days * 24
        now = 0.0
        self._start_jobs(now, end)
        while self.events and self.events[0][0] <= end:
            now, _, what, nodes = heapq.heappop(self.events)
            if what == "repaired":
                self._return_from_repair(nodes[0], now)
            else:
                self.free += nodes
            self._start_jobs(now, end)
        hours = self.s.nodes * end
        return Outcome(
            self.policy,
            self.in_jobs / self.broken if self.broken else math.inf,
            self.kept / hours,
            self.validated / self.s.nodes,
            self.broken / self.s.nodes,
            dict(sorted(self.found.items())),
        )

    def _push(self, at: float, what: str, nodes: tuple[int, ...]) -> None:
        self.count += 1
        heapq.heappush(self.events, (at, self.count, what, nodes))

    def _start_jobs(self, now: float, end: float) -> None:
        while len(self.free) >= self.s.gang and now < end:
            self.random.shuffle(self.free)
            gang: list[int] = []
            price = self._price(self.free[-self.s.gang :])
            waits = 0.0
            while self.free and len(gang) < self.s.gang:
                node = self.free.pop()
                chosen = self._choice(node, price)
                waits = max(waits, self._hours(chosen))
                if self._caught(node, chosen):
                    self._repair(node, now + self._hours(chosen))
                else:
                    gang.append(node)
            if len(gang) < self.s.gang:
                self._push(now + max(waits, 1.0), "back", tuple(gang))
                return
            self._job(gang, now + waits, end)

    def _job(self, gang: list[int], start: float, end: float) -> None:
        """Run a job on validated nodes; everything that will happen in it is drawn at its start."""
        s = self.s
        strike, victim = min(s.job, max(end - start, 0.0)), None
        planned = strike
        arisen: list[tuple[float, int]] = []
        for node in gang:
            if self.defect[node] is not None:
                at = self.random.exponential(s.latency)
            else:
                at = self.until[node]
                if self.random.random() >= s.sudden:
                    arisen.append((at, node))
                    continue
            if at < strike:
                strike, victim = at, node
        fresh = {node for at, node in arisen if at < strike}
        for node in sorted(fresh):
            self.defect[node] = self._kind_of_defect()
        self.exposed[gang] += strike
        for node in gang:
            if self.defect[node] is None or node in fresh:
                at = self.until[node]
                self.until[node] = at - strike if at >= strike and node != victim else self._next_defect(node)
        self.in_jobs += strike * s.gang
        kept = strike if victim is None and planned == s.job else math.floor(strike / s.checkpoint) * s.checkpoint
        self.kept += kept * s.gang
        rest = tuple(node for node in gang if node != victim)
        if victim is not None:
            self.broken += 1
            self.incidents[victim] += 1
            if self.defect[victim] is None:
                self.defect[victim] = self._kind_of_defect()
            self._repair(victim, start + strike)
        self._push(start + strike, "back", rest)

    def _relived(self) -> list[list[float]]:
        """(nodes,) what each node has before it of a node of the trace, the next up-time last; all empty without."""
        trace = self.s.trace
        if trace is None:
            return [[] for _ in range(self.s.nodes)]
        # A last up-time that was cut off by the end of the trace tells of no failure, and is not relived.
        pasts = [list(trace.stop[(trace.node == node) & trace.event])[::-1] for node in np.unique(trace.node)]
        return [list(pasts[drawn]) for drawn in self.random.integers(len(pasts), size=self.s.nodes)]

    def _next_defect(self, node: int) -> float:
        """Hours in use until the next defect of a node."""
        if self.relived[node]:
            return float(self.relived[node].pop())
        return float(self.random.exponential(1.0 / self.s.rate(int(self.incidents[node]))))

    def _kind_of_defect(self) -> frozenset[str]:
        return self.patterns[int(np.searchsorted(self.up_to, self.random.random(), side="right"))]

    def _repair(self, node: int, now: float) -> None:
        self._push(now + float(self.random.lognormal(self.mu, self.sigma)), "repaired", (node,))

    def _return_from_repair(self, node: int, now: float) -> None:
        """A repair may have left the defect in; who validates then finds it, and repairs again."""
        left = self.random.random() < self.s.imperfect
        if not left or self.policy == "oracle":
            self.defect[node] = None
        elif self.policy in {"full", "selector"} and self._caught(node, self.everything):
            self._repair(node, now + self._hours(self.everything))
            return
        self.exposed[node] = 0.0
        if self.s.trace is None:  # it may have failed once more since this was drawn
            self.until[node] = self._next_defect(node)
        self.free.append(node)

    def _hours(self, chosen: frozenset[str]) -> float:
        hours = self.hours_of.get(chosen)
        if hours is None:
            hours = self.hours_of[chosen] = sum(self.s.minutes[name] for name in chosen) / 60
        return hours

    def _coverage(self, chosen: frozenset[str]) -> float:
        covered = self.coverage_of.get(chosen)
        if covered is None:
            covered = self.coverage_of[chosen] = self.s.history.coverage(chosen)
        return covered

    def _caught(self, node: int, chosen: frozenset[str]) -> bool:
        """Validate a node: what it takes is spent, and whether its defect shows."""
        pattern = self.defect[node]
        if self.policy == "oracle":
            return pattern is not None
        self.validated += self._hours(chosen)
        if chosen and not (pattern or frozenset()) & chosen:
            self.exposed[node] *= 1.0 - self._coverage(chosen)
        if pattern is None or not pattern & chosen:
            return False
        self.found[min(pattern & chosen)] += 1
        return True

    def _price(self, gang: Sequence[int]) -> float:
        """What a job's risk is worth in minutes of validation, for the nodes that are to run it."""
        if self.policy != "selector":
            return 0.0
        return price_of_risk([self._chance(node) for node in gang], self.s.choices, self.s.p0)

    def _chance(self, node: int) -> float:
        return 1.0 - math.exp(-self.s.rate(int(self.incidents[node])) * float(self.exposed[node]))

    def _choice(self, node: int, price: float) -> frozenset[str]:
        if self.policy == "full":
            return self.everything
        if self.policy == "random":
            names = sorted(self.s.minutes)
            return frozenset(self.random.choice(names, self.s.random_count, replace=False).tolist())
        if self.policy != "selector" or price == 0.0:
            return frozenset()
        if math.isinf(price):
            return self.s.choices.sets[-1]
        return self.s.choices.sets[int(picks([self._chance(node)], self.s.choices, price)[0])]


def simulate(scenario: Scenario, policy: Policy, seed: int = 0) -> Outcome:
    """Run `scenario` under `policy`; the same seed gives the same outcome. Raises ImpossibleScenario."""
    if policy not in POLICIES:
        raise ImpossibleScenario(f"no policy {policy!r}; there are {', '.join(POLICIES)}")
    return _Fleet(scenario, policy, seed).run()


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95 % interval (Student's t)."""

    mean: float
    low: float
    high: float


def interval(values: Iterable[float]) -> Interval:
    """Mean and 95 % interval of independent values; at least two. Raises ValueError with fewer."""
    from scipy.special import stdtrit

    x = np.asarray(list(values), dtype=np.float64)
    if len(x) < 2:
        raise ValueError("an interval needs two seeds at least")
    if np.isinf(x).any():  # a policy under which some seed saw no incident: there is no mean, and no upper end
        return Interval(math.inf, float(x.min()), math.inf)
    half = float(stdtrit(len(x) - 1, 0.975) * x.std(ddof=1) / math.sqrt(len(x)))
    return Interval(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half)


def sweep(scenario: Scenario, policies: Iterable[Policy] = POLICIES, seeds: int = 5) -> dict[Policy, list[Outcome]]:
    """Outcomes by policy, one per seed."""
    return {policy: [simulate(scenario, policy, seed) for seed in range(seeds)] for policy in policies}
