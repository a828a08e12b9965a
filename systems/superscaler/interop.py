"""Where a row of units is cut into pipeline stages, and what each stage runs on.

With M micro-batches a step takes about (M - 1) t + the sum of the stages' times, t the slowest stage's. For a bound on
t, the least sum is a shortest path over (unit, devices left, stages left): a stage at position s from the end holds
min(s, M) micro-batches, so memory bounds its length as t does, and the best end of a stage is a minimum over a window.
The bound is found by splitting intervals: a plan whose slowest stage lies in (a, b] costs at least (M - 1) a plus the
least sum under b, so what is left of an interval is known, and its gap is reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, inf

import numpy as np
from numpy.typing import NDArray

__all__ = ["Cut", "Stage", "Variant", "cut"]

Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Variant:
    """A way to run units on `devices` devices; per unit: seconds a micro-batch, bytes that do not depend on the batch,
    bytes for each micro-batch in flight, bytes meanwhile (of which a stage needs the most, not the sum).
    """

    devices: int
    seconds: Numbers
    fixed: Numbers
    flying: Numbers
    transient: Numbers
    name: str = ""


@dataclass(frozen=True)
class Stage:
    """Units first to last - 1 on a variant."""

    first: int
    last: int
    variant: int


@dataclass(frozen=True)
class Cut:
    """stages in order; slowest, total: seconds; objective: (M - 1) slowest + total; bound: no cut has less."""

    stages: tuple[Stage, ...]
    slowest: float
    total: float
    objective: float
    bound: float
    bounds_tried: int

    @property
    def gap(self) -> float:
        """How far the objective may be above the least, as a share."""
        return max(0.0, 1.0 - self.bound / self.objective)


class _Row:
    """What does not depend on the bound of the slowest stage."""

    def __init__(
        self, variants: Sequence[Variant], devices: int, microbatches: int, memory: float, most: int, lockstep: bool
    ) -> None:
        self.variants, self.microbatches, self.lockstep = variants, microbatches, lockstep
        self.count = len(variants[0].seconds)
        self.grain = gcd(devices, *(v.devices for v in variants))
        self.devices = devices // self.grain
        self.stages = min(most, self.count, self.devices // min(v.devices // self.grain for v in variants))
        self.sums = [np.concatenate([[0.0], np.cumsum(v.seconds)]) for v in variants]
        depths = {self.flying(s) for s in range(1, self.stages + 1)}
        self.fitting = {(k, s): _fitting(v, s, memory) for k, v in enumerate(variants) for s in depths}

    def flying(self, s: int) -> int:
        """Micro-batches that the stage at position s from the end holds."""
        return min(2 * s - 1 if self.lockstep else s, self.microbatches)

    def ends(self, k: int, s: int, slowest: float) -> NDArray[np.intp]:
        """The last end of a stage that begins at each unit, by time and memory."""
        sums = self.sums[k]
        reach = np.searchsorted(sums, sums + slowest * (1 + 1e-12), side="right") - 1
        return np.minimum(reach[:-1], self.fitting[k, self.flying(s)])

    def least(self, slowest: float) -> tuple[float, list[Numbers], int, int]:
        """The least total with no stage slower; tables, stages and devices of where it is."""
        n, d = self.count, self.devices
        before = np.full((n + 1, d + 1), inf)
        before[n] = 0.0  # no units left: any devices may be left over
        tables = [before]
        best, at = inf, 0
        for s in range(1, self.stages + 1):
            found = np.full((n + 1, d + 1), inf)
            for k, v in enumerate(self.variants):
                m = v.devices // self.grain
                if m > d:
                    continue
                ends = self.ends(k, s, slowest)
                starts = np.arange(n)
                some = ends > starts
                if not some.any():
                    continue
                sums = self.sums[k]
                values = before[:, : d + 1 - m] + sums[:, None]
                least = _windows(values, starts[some] + 1, ends[some])
                rows = found[:n, m:]
                rows[some] = np.minimum(rows[some], least - sums[:-1][some][:, None])
            tables.append(found)
            if found[0, d] < best - 1e-15:
                best, at = float(found[0, d]), s
            before = found
        return best, tables, at, d

    def traced(self, slowest: float, tables: Sequence[Numbers], stages: int, devices: int) -> tuple[Stage, ...]:
        """The stages that reach the least total."""
        found, unit = [], 0
        for s in range(stages, 0, -1):
            choice = (inf, 0, 0)
            for k, v in enumerate(self.variants):
                m = v.devices // self.grain
                if m > devices:
                    continue
                end = int(self.ends(k, s, slowest)[unit])
                if end <= unit:
                    continue
                values = tables[s - 1][unit + 1 : end + 1, devices - m] + self.sums[k][unit + 1 : end + 1]
                j = int(values.argmin())
                cost = float(values[j] - self.sums[k][unit])
                if cost < choice[0]:
                    choice = (cost, k, unit + 1 + j)
            _, k, end = choice
            found.append(Stage(unit, end, k))
            devices -= self.variants[k].devices // self.grain
            unit = end
        return tuple(found)


def _fitting(v: Variant, flying: int, memory: float) -> NDArray[np.intp]:
    """The last end of a stage that begins at each unit and fits, by two pointers; the start itself where none does."""
    n = len(v.seconds)
    fixed = np.concatenate([[0.0], np.cumsum(v.fixed + flying * v.flying)])
    ends = np.zeros(n, dtype=np.intp)
    end = 0
    most: list[int] = []  # indices of decreasing transient bytes: the first is the window's largest
    for start in range(n):
        end = max(end, start)
        while most and most[0] < start:
            most.pop(0)
        while end < n:
            top = max(v.transient[most[0]] if most else 0.0, v.transient[end])
            if fixed[end + 1] - fixed[start] + top > memory:
                break
            while most and v.transient[most[-1]] <= v.transient[end]:
                most.pop()
            most.append(end)
            end += 1
        ends[start] = end
    return ends


def _windows(values: Numbers, starts: NDArray[np.intp], ends: NDArray[np.intp]) -> Numbers:
    """Minimum of rows starts[i] to ends[i] inclusive: of two overlapping windows whose lengths are powers of two."""
    longest = int((ends - starts).max()) + 1
    levels = [values]
    width = 1
    while 2 * width <= longest:
        last = levels[-1]
        levels.append(np.minimum(last[:-width], last[width:]))
        width *= 2
    power = np.frexp(ends - starts + 1)[1] - 1
    found = np.empty((len(starts), values.shape[1]))
    for p in np.unique(power):
        own = power == p
        table = levels[p]
        found[own] = np.minimum(table[starts[own]], table[ends[own] + 1 - (1 << p)])
    return found


def cut(
    variants: Sequence[Variant], devices: int, microbatches: int, memory: float = inf, *, most_stages: int = 64,
    gap: float = 0.01, known: float = inf, most: int = 60,
    lockstep: bool = False,
) -> Cut | None:  # fmt: skip
    """The stages with the least (M - 1) slowest + total on `devices` devices; None where nothing fits, or takes less
    than what is known.

    lockstep: stages hold 2 s - 1 micro-batches instead of s. known: an objective that is reached elsewhere, above which
    nothing is looked for. gap: stop when the bound is as near.
    """
    variants = [v for v in variants if v.devices <= devices]
    if not variants:
        return None
    row = _Row(variants, devices, microbatches, memory, most_stages, lockstep)
    weight = microbatches - 1
    # No stage is faster than the slowest unit's fastest variant, nor than an even share of the device-seconds.
    fastest = np.min([v.seconds for v in variants], 0)
    work = float(np.min([v.seconds * v.devices for v in variants], 0).sum())
    low = max(float(fastest.max()), work / devices)
    high = max(float(v.seconds.sum()) for v in variants) * (1 + 1e-9)
    if weight:  # a slower stage alone would take longer than what is known
        high = max(min(high, known / weight), low)
    best: Cut | None = None
    tried = 0

    def look(slowest: float) -> float:
        nonlocal best, tried
        tried += 1
        total, tables, stages, left = row.least(slowest)
        if total == inf:
            return inf
        found = row.traced(slowest, tables, stages, left)
        times = [float(row.sums[s.variant][s.last] - row.sums[s.variant][s.first]) for s in found]
        objective = weight * max(times) + sum(times)
        if best is None or objective < best.objective:
            best = Cut(found, max(times), sum(times), objective, -inf, 0)
        return total

    least = {high: look(high)}
    if least[high] == inf:
        return None
    intervals = [(low * (1 - 1e-9), high)]
    closed: list[float] = []
    while intervals and tried < most:
        intervals.sort(key=lambda i: weight * i[0] + least[i[1]], reverse=True)
        a, b = intervals.pop()
        bound = weight * a + least[b]
        goal = min(known, best.objective if best else inf)
        if bound >= goal * (1 - gap):
            intervals.append((a, b))
            break
        middle = (a * b) ** 0.5 if b > 2 * a else (a + b) / 2
        if b - a <= 1e-9 * b:
            closed.append(bound)
            continue
        least[middle] = look(middle)
        intervals.append((middle, b))
        if least[middle] < inf:
            intervals.append((a, middle))
    assert best is not None
    bound = min([weight * a + least[b] for a, b in intervals] + closed, default=best.objective)
    return Cut(best.stages, best.slowest, best.total, best.objective, min(bound, best.objective), tried)
