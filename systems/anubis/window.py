"""The fewest steps of a series that judge as all of them do: warm-up left out, whole periods kept, the rest saved.

    found = window(series)                   # series: (healthy nodes, steps) in the order they were taken
    series[:, found.part]                    # what the next run needs to measure

Anubis (arXiv 2402.06194) searches warm-up and step counts offline; the two conditions here are this project's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from systems.anubis.samples import (
    NotEnoughNodes,
    ValidatorError,
    pair_similarity,
    population,
    similarity,
)

LEAST_SIMILARITY = 0.99
MOST_REPEATABILITY_LOST = 0.002
LEAST_AUTOCORRELATION = 0.5
LEAST_PERIODS = 4
"""A window holds this many periods at least: fewer do not show how much one differs from the next."""


@dataclass(frozen=True)
class Window:
    """Which steps of a series to measure: `steps` of them after `warmup`; `saving`: share of all steps not run.

    period: steps after which the series repeats itself, 1 where it does not.
    """

    warmup: int
    steps: int
    period: int
    saving: float

    @property
    def part(self) -> slice:
        """The window's place in a series."""
        return slice(self.warmup, self.warmup + self.steps)


def window(series: NDArray[np.float64], healthy: NDArray[np.bool_] | None = None) -> Window:
    """The smallest warm-up and number of steps that judge as the full series does.

    series: (nodes, steps) in the order that steps were taken, positive; healthy: (nodes,) bool, which nodes count
    (default: those that are finite and positive throughout). A window is accepted when

    - on every healthy node its distribution is at least 0.99 similar (two-sided) to that of all steps after the
      longest warm-up tried: so a warm-up that the window still holds is seen, and
    - its repeatability between nodes is at most 0.002 below that of those steps.

    Where nothing shorter is accepted, the window is the whole series. Raises NotEnoughNodes with fewer than three
    nodes, ValidatorError where the series is not (nodes, steps).
    """
    X = np.asarray(series, dtype=np.float64)
    if X.ndim != 2 or X.shape[1] == 0:
        raise ValidatorError(f"a window is sought in series (nodes, steps), not in an array of shape {X.shape}")
    usable = np.all(np.isfinite(X) & (X > 0), axis=1)
    if healthy is not None:
        usable &= healthy
    if usable.sum() < 3:
        raise NotEnoughNodes(int(usable.sum()), len(X))
    X = X[usable]
    steps = X.shape[1]
    p = period(X)
    longest = max(_warmups(p, steps))
    settled = X[:, longest:]
    floor = _repeatability(settled) - MOST_REPEATABILITY_LOST
    for warmup, k in _candidates(p, steps):
        part = X[:, warmup : warmup + k]
        alike = all(similarity(a, b) >= LEAST_SIMILARITY for a, b in zip(part, settled, strict=True))
        if alike and _repeatability(part) >= floor:
            return Window(warmup, k, p, 1.0 - (warmup + k) / steps)
    return Window(0, steps, p, 0.0)


def period(series: NDArray[np.float64]) -> int:
    """Steps after which the median series of (nodes, steps) repeats itself; 1 where it does not.

    The lag in 2..steps/4 of the largest autocorrelation, if that is above 0.5, of the median series without its
    trend. A series with a period p also repeats after 2 p; the shortest lag within rounding of the largest is taken.
    """
    median = np.median(series, axis=0)
    steps = len(median)
    if steps < 8:
        return 1
    at = np.arange(steps)
    residual = median - np.polyval(np.polyfit(at, median, 1), at)
    power = float(residual @ residual)
    if power <= (1e-9 * median.mean()) ** 2 * steps:
        return 1
    lags = np.arange(2, steps // 4 + 1)
    # Each sum has steps - lag terms: without the correction a longer lag could not win however well it fits.
    correlation = np.array([residual[lag:] @ residual[:-lag] / (steps - lag) for lag in lags]) / (power / steps)
    largest = correlation.max()
    if largest <= LEAST_AUTOCORRELATION:
        return 1
    peaks = [
        i
        for i in range(len(lags))
        if correlation[i] >= correlation[max(i - 1, 0)] and correlation[i] >= correlation[min(i + 1, len(lags) - 1)]
    ]
    return int(lags[next(i for i in peaks if correlation[i] >= 0.9 * largest)])


def _warmups(p: int, steps: int) -> list[int]:
    """0, p, 2p, 4p, ... as long as half of the series remains."""
    found, w = [0], p
    while w <= steps // 2:
        found.append(w)
        w *= 2
    return found


def _candidates(p: int, steps: int) -> Iterator[tuple[int, int]]:
    """(warm-up, steps) by what they cost in all; of equal cost, the shorter warm-up first."""
    found = []
    for warmup in _warmups(p, steps):
        k = LEAST_PERIODS * p
        while warmup + k < steps:
            found.append((warmup, k))
            k *= 2
    yield from sorted(found, key=lambda pair: (sum(pair), pair[0]))


def _repeatability(part: NDArray[np.float64]) -> float:
    return pair_similarity(population(part)[0])
