"""Steps and drifts of a metric over time: when did it change for good, and does it creep?

    found = detect(medians)                  # (n,) one value a night, in order
    found.steps[0].at, found.steps[0].change
    found.drift                              # None, or the share that it changes by per value

A series is fitted by constants between steps, least in absolute error (so that a night gone wrong counts little), with
a charge for each step that grows with the noise and with the length, as Schwarz's criterion does. A step then has to
be one for a rank test too, and to be worth a word. Where one straight line explains the series better than steps
do, it drifts.

Exact dynamic programming for the L1 Potts functional (Friedrich, Kempe, Liebscher, Winkler, JCGS 2008), with the
medians of all segments from a sorted list that loses one member at a time (Storath, Weinmann, Unser, 2017).
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from systems import native

Floats = NDArray[np.float64]

SHORTEST = 5
"""Values of a segment at least: fewer are a bad week, or the newest ones, of which time will tell."""

CHARGE = 2.5
"""Charge for a step, in units of noise x log(length); chosen on generated series, of other seeds than any test's."""

LEVEL = 0.001
LEAST_CHANGE = 0.01
NOISE_WIDTHS = 3.0

UNREACHABLE = 1e300


class UnusableSeries(ValueError):
    """Not a series of finite numbers."""


@dataclass(frozen=True)
class Step:
    """The value changed for good at index `at`: medians before and after, p of the rank test between both sides."""

    at: int
    before: float
    after: float
    p: float

    @property
    def change(self) -> float:
        """Relative to before: 0.05 is five percent more."""
        return self.after / self.before - 1.0 if self.before else math.inf


@dataclass(frozen=True)
class Detected:
    """steps: in order; bounds: (segments + 1,) indices, the first 0 and the last n; levels: (segments,) medians;
    noise: standard deviation of the values about their level; drift: None, or the change per value as a share of the
    median, where a line explains the series better than steps (`steps` is then empty).
    """

    steps: tuple[Step, ...]
    bounds: tuple[int, ...]
    levels: tuple[float, ...]
    noise: float
    drift: float | None


def detect(values: ArrayLike, *, shortest: int = SHORTEST, charge: float = CHARGE) -> Detected:
    """Steps and drift of a series (n,), in the order of time.

    A step lies between two segments of `shortest` values at least, has p < 0.001 by the Mann-Whitney test, and is
    larger than 1 % and than three standard errors of the two medians. Raises UnusableSeries for NaN or infinity.
    """
    y = np.asarray(values, dtype=np.float64)
    if y.ndim != 1 or not np.all(np.isfinite(y)):
        raise UnusableSeries(f"steps are sought in a series of finite numbers, not in shape {y.shape} with NaN or inf")
    if shortest < 1 or charge < 0:
        raise UnusableSeries(f"segments hold one value at least and a charge is not negative: {shortest}, {charge}")
    n = len(y)
    noise = noise_of(y)
    if n < 2 * shortest:
        return Detected((), (0, n), (float(np.median(y)),) if n else (), noise, None)
    # Where no two values differ by chance, any difference is a step; the charge only keeps rounding out.
    scale = max(noise, 1e-9 * float(np.abs(y).max()))
    penalty = charge * scale * math.log(n)
    cost, bounds = fit(y, penalty, shortest)
    slope = _drift(y, cost, penalty)
    if slope is not None:
        return Detected((), (0, n), (float(np.median(y)),), noise, slope)
    steps, kept = _worth_a_word(y, bounds, noise)
    levels = tuple(float(np.median(y[a:b])) for a, b in pairwise(kept))
    return Detected(steps, kept, levels, noise, None)


def noise_of(y: Floats) -> float:
    """Standard deviation of the values about their level, from the differences of neighbours: steps hardly count."""
    if len(y) < 2:
        return 0.0
    return float(1.4826 * np.median(np.abs(np.diff(y))) / math.sqrt(2.0))


def _worth_a_word(y: Floats, bounds: tuple[int, ...], noise: float) -> tuple[tuple[Step, ...], tuple[int, ...]]:
    """Without steps that no rank test sees or that are too small; the weakest goes first, as its sides then merge."""
    kept = list(bounds)
    while len(kept) > 2:
        steps = [_step(y, *kept[i : i + 3]) for i in range(len(kept) - 2)]
        weak = [i for i, step in enumerate(steps) if not _holds(step, kept[i : i + 3], noise)]
        if not weak:
            return tuple(steps), tuple(kept)
        worst = max(weak, key=lambda i: (steps[i].p, -abs(steps[i].after - steps[i].before)))
        del kept[worst + 1]
    return (), tuple(kept)


def _step(y: Floats, begin: int, at: int, end: int) -> Step:
    from scipy.stats import mannwhitneyu

    left, right = y[begin:at], y[at:end]
    p = float(mannwhitneyu(left, right, alternative="two-sided").pvalue)
    return Step(at, float(np.median(left)), float(np.median(right)), p)


def _holds(step: Step, bounds: list[int], noise: float) -> bool:
    begin, at, end = bounds
    # The standard error of a median is 1.2533 that of a mean.
    error = 1.2533 * noise * math.sqrt(1.0 / (at - begin) + 1.0 / (end - at))
    size = abs(step.after - step.before)
    return step.p < LEVEL and size > NOISE_WIDTHS * error and size > LEAST_CHANGE * abs(step.before)


def _drift(y: Floats, cost: float, penalty: float) -> float | None:
    """The Theil-Sen slope as a share of the median, where a line costs less than the steps, and is worth a word."""
    from scipy.stats import kendalltau, theilslopes

    at = np.arange(len(y), dtype=np.float64)
    slope, intercept, *_ = theilslopes(y, at)
    line = float(np.abs(y - (intercept + slope * at)).sum()) + penalty
    typical = abs(float(np.median(y)))
    if line >= cost or abs(slope) * len(y) <= LEAST_CHANGE * typical or not typical:
        return None
    return float(slope) / typical if kendalltau(at, y).pvalue < LEVEL else None


# --- the fit --------------------------------------------------------------------------------------------------


def fit(y: Floats, penalty: float, shortest: int = 1) -> tuple[float, tuple[int, ...]]:
    """The least sum of |y - level| + penalty x steps, and the bounds of its segments: (0, ..., n).

    y: (n,) with n >= shortest. Ties between fits are broken in favour of the earliest begin of the last segment.
    """
    y = np.ascontiguousarray(y, dtype=np.float64)
    n = len(y)
    order = np.argsort(y, kind="stable").astype(np.int32)
    rank = np.empty(n, dtype=np.int32)
    rank[order] = np.arange(n, dtype=np.int32)
    best, start = np.empty(n + 1), np.zeros(n + 1, dtype=np.int32)
    compiled = library()
    if compiled is None:
        best, start = fit_by_numpy(y, penalty, shortest)
    elif compiled.maat_fit_steps(
        y.ctypes.data, rank.ctypes.data, order.ctypes.data, n, penalty, shortest, best.ctypes.data, start.ctypes.data
    ):
        raise MemoryError(f"no memory to fit a series of {n} values")
    bounds = [n]
    while bounds[-1] > 0:
        bounds.append(int(start[bounds[-1]]))
    return float(best[n]), tuple(reversed(bounds))


def fit_by_numpy(y: Floats, penalty: float, shortest: int) -> tuple[Floats, NDArray[np.int32]]:
    """The tables of `fit` where nothing can be compiled: the same recursion, its segments' costs by sorting."""
    n = len(y)
    best, start = np.full(n + 1, UNREACHABLE), np.zeros(n + 1, dtype=np.int32)
    best[0] = -penalty
    for end in range(shortest, n + 1):
        starts = range(end - shortest + 1)
        costs = np.array([best[begin] + penalty + _cost(y[begin:end]) for begin in starts])
        start[end] = int(costs.argmin())
        best[end] = costs[start[end]]
    return best, start


def _cost(part: Floats) -> float:
    return float(np.abs(part - np.median(part)).sum())


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled recursion, or None on a machine without a compiler."""
    loaded = native.load(Path(__file__).with_name("steps.c"), name="anubis_steps", openmp=False)
    if loaded is not None:
        pointer, long = ctypes.c_void_p, ctypes.c_int64
        loaded.maat_fit_steps.argtypes = [pointer, pointer, pointer, long, ctypes.c_double, long, pointer, pointer]
        loaded.maat_fit_steps.restype = ctypes.c_int
    return loaded
