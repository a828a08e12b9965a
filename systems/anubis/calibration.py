"""Criteria for all metrics of a fleet at once, with one false-alarm rate for the whole gate.

`learn` holds a false-alarm rate for one metric. A gate judges a node by thirty or more, and noise that is shared
between metrics makes any fixed division of the rate wrong. `learn_fleet` calibrates on whole nodes instead: a node's
score is its worst deviation over all metrics, each in units of that metric's own noise, and one factor on those
noises is chosen so that one more healthy node is accused, by any metric, with probability delta at most.

    fleet = learn_fleet({"triad": bandwidths, "fsync": latencies}, {"triad": "higher", "fsync": "lower"})
    fleet.verdicts("triad")                      # (nodes,) "pass", "defect", "suspect" or "invalid"
    fleet.judge({"triad": 11.2e9, "fsync": 4e-4})

The method is split conformal prediction with the maximum over metrics as its score; it assumes nothing about the
noise or its dependence but that healthy nodes are exchangeable. Anubis (arXiv 2402.06194) fixes 0.95 instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from systems.anubis.ordering import row_orders
from systems.anubis.samples import (
    TIE,
    Better,
    Floats,
    Samples,
    ValidatorError,
    members_only,
    min_max_means,
    most_central,
    population,
    toward,
)
from systems.anubis.validator import Learned, NoMajority, NotEnoughNodes, Verdict, learn, threshold

LEAST_SCALE = 1e-6
"""A metric's noise is taken to be at least this share of its value, so that an exact metric has a scale."""

SCALE_QUANTILE = 0.95


@dataclass(frozen=True, eq=False)
class FleetCriteria:
    """Criteria of one fleet, by metric, and what became of its nodes.

    learned     metric -> its `Learned`, with thresholds that hold together; judged by them, not by the exclusion cut
    refused     metric -> why it has no criterion
    factor      tau: how many times its own noise a metric may deviate; 0 where nothing healthy deviates by 1 - alpha
    delta       false-alarm rate of judging one more healthy node by all metrics
    calibrated  whether there were enough nodes to hold it whatever the noise; else each metric's share of delta is
                held for noise that is roughly normal
    nodes       nodes that the calibration stands on
    """

    learned: Mapping[str, Learned]
    refused: Mapping[str, str]
    factor: float
    delta: float
    calibrated: bool
    nodes: int

    def verdicts(self, metric: str) -> NDArray[np.str_]:
        """(nodes,) str, as `Learned.verdicts`. Raises KeyError for a metric without a criterion."""
        return self.learned[metric].verdicts

    def defective(self) -> NDArray[np.bool_]:
        """(nodes,) bool: nodes with a defect in any metric."""
        return np.any([one.verdicts == "defect" for one in self.learned.values()], axis=0)

    def judge(self, run: Mapping[str, ArrayLike]) -> dict[str, Verdict]:
        """Verdict by metric, for the metrics of a run that have a criterion. Raises InvalidSample."""
        return {name: self.learned[name].judge(sample) for name, sample in run.items() if name in self.learned}


@dataclass(frozen=True, eq=False)
class _Deviation:
    """One metric against the medoid of one half: `deficits` (n,), NaN where invalid, and the noise `scale`."""

    deficits: Floats
    scale: float


def learn_fleet(
    samples: Mapping[str, Samples],
    better: Mapping[str, Better],
    *,
    alpha: float = 0.95,
    delta: float = 0.01,
    adaptive: bool = True,
    workers: int = 1,
) -> FleetCriteria:
    """Learn every metric's criterion from the same nodes, and thresholds that hold together.

    samples   metric -> one sample per node, as in `learn`; node i is the same node in all of them. A node that lacks
              a metric holds NaN or an empty series there, and is left out of that metric alone.
    better    metric -> "higher", "lower" or "target"
    alpha     no healthy node is accused of losing less than 1 - alpha
    delta     the family-wise false-alarm rate
    adaptive  False: exclude at alpha itself, as the paper does
    workers   metrics learned at a time

    A metric with too few nodes, or without a majority, is refused by name and the others go on. Raises
    ValidatorError when there are no metrics, they disagree in their number of nodes, or one has no `better`.
    """
    if not samples:
        raise ValidatorError("learn_fleet needs at least one metric, none was given")
    missing = sorted(set(samples) - set(better))
    if missing:
        raise ValidatorError(f"no direction given for {', '.join(missing)}: say higher, lower or target in `better`")
    sizes = {name: len(values) for name, values in samples.items()}
    if len(set(sizes.values())) > 1:
        raise ValidatorError(
            f"metrics of one fleet have one sample per node, but their numbers differ: {sizes}; give NaN where a "
            "node lacks a metric"
        )
    n = next(iter(sizes.values()))
    names = list(samples)

    def one(name: str) -> Learned | str:
        try:
            return learn(samples[name], better[name], alpha=alpha, delta=delta, adaptive=adaptive, family=len(names))
        except (NotEnoughNodes, NoMajority) as error:
            return str(error)

    with ThreadPoolExecutor(max(1, workers)) as pool:
        outcomes = dict(zip(names, pool.map(one, names), strict=True))
        learned = {name: found for name, found in outcomes.items() if isinstance(found, Learned)}
        refused = {name: found for name, found in outcomes.items() if isinstance(found, str)}
        spared = _spared(learned, n)
        calibrated = bool(learned) and int(spared.sum()) * delta >= 2 - 1e-9
        factor = 0.0
        if calibrated:
            bounds, factor = _bounds({name: samples[name] for name in learned}, learned, spared, alpha, delta, pool)
            learned = {name: _with_bound(found, bounds[name], alpha) for name, found in learned.items()}
        judged = pool.map(lambda name: _judged_by_alpha(learned[name], samples[name]), learned)
        learned = dict(zip(learned, judged, strict=True))
    return FleetCriteria(learned, refused, factor, delta, calibrated, int(spared.sum()))


def _spared(learned: Mapping[str, Learned], n: int) -> NDArray[np.bool_]:
    """The nodes that no metric excludes: what the calibration takes for healthy."""
    spared = np.ones(n, dtype=bool)
    seen = np.zeros(n, dtype=bool)
    for one in learned.values():
        spared &= one.healthy | (one.verdicts == "invalid")
        seen |= one.healthy
    return spared & seen


def _bounds(
    samples: Mapping[str, Samples],
    learned: Mapping[str, Learned],
    spared: NDArray[np.bool_],
    alpha: float,
    delta: float,
    pool: ThreadPoolExecutor,
) -> tuple[dict[str, float], float]:
    """The deficit that each metric may reach, and the larger factor of the two halves.

    Medoid and scale come from one half, scores from the other, then the halves are swapped; each metric keeps the
    larger of its two bounds. Deviations below 1 - alpha must not enter a score: small real losses on a steady metric
    would inflate the factor and blind the noisy ones.
    """
    members = np.flatnonzero(spared)
    shuffled = members[np.random.default_rng(len(members)).permutation(len(members))]
    first = np.isin(np.arange(len(spared)), shuffled[: len(members) // 2])
    fit, held_out = first, spared & ~first
    bounds = dict.fromkeys(learned, 0.0)
    largest = 0.0
    for _ in range(2):
        deviations = pool.map(partial(_deviation, half=fit), samples.values(), learned.values())
        found = dict(zip(learned, deviations, strict=True))
        scores = np.zeros(int(held_out.sum()))
        for one in found.values():
            deficits = one.deficits[held_out]
            beyond = np.nan_to_num(deficits, nan=0.0) >= 1 - alpha
            scores = np.maximum(scores, np.where(beyond, deficits / one.scale, 0.0))
        rank = math.ceil((len(scores) + 1) * (1.0 - delta) - 1e-9)
        factor = float(np.sort(scores)[min(rank, len(scores)) - 1])
        largest = max(largest, factor)
        for name, one in found.items():
            bounds[name] = max(bounds[name], factor * one.scale)
        fit, held_out = held_out, fit
    return bounds, largest


def _deviation(samples: Samples, learned: Learned, half: NDArray[np.bool_]) -> _Deviation:
    """Every node's deficit to the medoid of the healthy nodes in `half`, and the 95th percentile of theirs."""
    X, valid = population(samples)
    places = np.flatnonzero(valid)
    member = (learned.healthy & half)[places]
    if not member.any():  # no node of this half has the metric: measure against the whole fleet's medoid
        member = learned.healthy[places]
    centre = X[:, most_central(X, members_only(row_orders(X), member))]
    low, high = min_max_means(X, centre)
    near = toward(low, high, float(centre.mean()), learned.criterion.better)
    deficits = np.full(len(valid), np.nan)
    deficits[places] = 1.0 - near
    return _Deviation(deficits, max(float(np.quantile(1.0 - near[member], SCALE_QUANTILE)), LEAST_SCALE))


def _with_bound(learned: Learned, bound: float, alpha: float) -> Learned:
    criterion = replace(learned.criterion, alpha=threshold(bound, alpha), calibrated=True)
    return replace(learned, criterion=criterion)


def _judged_by_alpha(learned: Learned, samples: Samples) -> Learned:
    """Verdicts by the threshold that holds for the family: the exclusion cut alone holds no rate."""
    X, valid = population(samples)
    criterion = learned.criterion
    low, high = min_max_means(X, criterion.quantiles)
    near = toward(low, high, float(criterion.quantiles.mean()), criterion.better)
    verdicts = learned.verdicts.copy()
    places = np.flatnonzero(valid)
    defect = near <= criterion.alpha + TIE
    verdicts[places] = np.where(defect, "defect", np.where(verdicts[places] == "suspect", "suspect", "pass"))
    return replace(learned, verdicts=verdicts)
