"""The Validator: learn from a population of runs what healthy means for a metric, and judge a run by it.

A *sample* is what one metric gave on one node in one run: a positive scalar, or a series of step values. Two
samples are compared as distributions, so a node whose mean is right and whose steps are not is seen. `learn`
takes one sample per node, needs no labels and no hand-set threshold, and gives a `Criterion`, which then
judges single samples.

    learned = learn(bandwidths, better="higher")          # bandwidths: (nodes,) or (nodes, steps)
    learned.verdicts[17]                                  # "pass", "defect", "suspect" or "invalid"
    learned.criterion.judge(new_run).status               # "pass" or "defect"

The method is that of Anubis (arXiv 2402.06194, Validator); the normaliser of the similarity, the exclusion
cut that spares noise and the thresholds with a false-alarm rate are this project's own.

Everything here works on one metric at a time. Calibrating a family of metrics on one fleet would take the
place of `_conformal_bound`, and choosing a window of a series would come before `learn`.

Errors:
    ValidatorError(ValueError)
    ├── InvalidSample     what is judged is empty, not a series, not finite or not positive
    ├── NotEnoughNodes    fewer than three valid samples
    └── NoMajority        no population holds more than half of the nodes
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from systems.anubis.ordering import row_orders
from systems.anubis.samples import (
    QUANTILES,
    TIE,
    Better,
    Floats,
    InvalidSample,
    NotEnoughNodes,
    Samples,
    ValidatorError,
    check_better,
    distance_totals,
    medoid,
    members_only,
    min_max_means,
    most_central,
    one_sided,
    pair_similarity,
    population,
    quantiles,
    repeatability,
    similarity,
    toward,
    valid_vector,
)

__all__ = [
    "QUANTILES",
    "Better",
    "Criterion",
    "InvalidSample",
    "Learned",
    "NoMajority",
    "NotEnoughNodes",
    "ValidatorError",
    "Verdict",
    "distance_totals",
    "learn",
    "medoid",
    "one_sided",
    "quantiles",
    "repeatability",
    "similarity",
]

LEAST_ALPHA = 0.05
"""No threshold is below this: a sample that keeps less than a twentieth of the criterion is never noise."""


class NoMajority(ValidatorError):
    """No population holds more than half of the nodes, or two are about equally large.

    `.sizes` and `.medians` (of the samples' means, in the metric's unit) describe the population around the
    medoid and the rest, in this order.
    """

    def __init__(self, sizes: tuple[int, int], medians: tuple[float, float]) -> None:
        self.sizes, self.medians = sizes, medians
        super().__init__(
            f"no majority: {sizes[0]} nodes near {medians[0]:.6g}, {sizes[1]} others near {medians[1]:.6g}; "
            "usually two kinds of hardware, or a metric with two modes: learn them apart"
        )


@dataclass(frozen=True)
class Verdict:
    """How one sample compares with a criterion.

    `similarity` is one-sided and in (0, 1]; `margin = similarity - alpha`: how much of the criterion the
    sample may still lose, negative in a defect.
    """

    status: Literal["pass", "defect"]
    similarity: float
    alpha: float
    margin: float


@dataclass(frozen=True, eq=False)
class Criterion:
    """What healthy means for one metric, as it is kept in a criteria file.

    quantiles      (q,) float64, in the metric's unit: the sample of the most central healthy node
    better         which deviation counts as worse
    alpha          a sample with one-sided similarity <= alpha is a defect
    calibrated     True: alpha keeps its false-alarm rate whatever the noise is like (conformal); False: there
                   were too few nodes for that, and alpha keeps it for noise that is roughly normal
    repeatability  mean two-sided similarity between healthy samples
    nodes          valid samples that it was learned from
    excluded       how many of them were left out as not healthy
    """

    quantiles: Floats
    better: Better
    alpha: float
    calibrated: bool
    repeatability: float
    nodes: int
    excluded: int

    def __post_init__(self) -> None:
        vector = np.array(valid_vector(self.quantiles, "a criterion's quantiles"))
        if np.any(np.diff(vector) < 0):
            raise ValidatorError("a criterion's quantiles must not decrease: it is damaged, learn it again")
        vector.flags.writeable = False
        object.__setattr__(self, "quantiles", vector)
        check_better(self.better)
        for name, value in (("alpha", self.alpha), ("repeatability", self.repeatability)):
            if not 0 < value <= 1:
                raise ValidatorError(f"a criterion's {name} must be in (0, 1], not {value}: learn it again")

    @property
    def gates(self) -> bool:
        """False where the metric is too noisy to fail a machine by: its noise reaches any deficit.

        A noisy metric with a loose alpha still gates: what falls below it is beyond noise all the same. On a machine
        whose neighbours can be heard, that is how a disk at a thirtieth of its rate is found by a metric that
        varies by a fifth.
        """
        return self.alpha > LEAST_ALPHA

    def judge(self, sample: ArrayLike) -> Verdict:
        """Compare a sample, a scalar or (m,) in the metric's unit, with this criterion; only worse counts.

        Raises InvalidSample.
        """
        vector = quantiles(sample, len(self.quantiles))
        near = one_sided(vector, self.quantiles, self.better)
        status: Literal["pass", "defect"] = "defect" if near <= self.alpha + TIE else "pass"
        return Verdict(status, near, self.alpha, near - self.alpha)

    def judge_all(self, samples: Samples) -> tuple[NDArray[np.bool_], Floats]:
        """Judge the samples of many nodes at once, as `judge` does one: (n,) whether each is a defect, and (n,) its
        one-sided similarity, NaN (and no defect) where the sample is invalid. Samples are as in `learn`.
        """
        C = self.quantiles
        if isinstance(samples, np.ndarray) and samples.ndim == 1 and samples.dtype.kind == "f" and len(C) == 1:
            return self._judge_scalars(samples.astype(np.float64, copy=False), float(C[0]))
        X, valid = population(samples)
        if len(X) != len(C) and len(X) < QUANTILES:  # whole samples, which any number of quantiles can be taken of
            X = np.array([quantiles(column, len(C)) for column in X.T]).reshape(-1, len(C)).T
        elif len(X) != len(C):
            whole = [quantiles(row, len(C)) for row, good in zip(samples, valid, strict=True) if good]
            X = np.array(whole).reshape(-1, len(C)).T
        low, high = min_max_means(X, C)
        near = np.full(len(valid), np.nan)
        near[valid] = toward(low, high, float(C.mean()), self.better)
        with np.errstate(invalid="ignore"):
            return near <= self.alpha + TIE, near

    def _judge_scalars(self, x: Floats, centre: float) -> tuple[NDArray[np.bool_], Floats]:
        """`judge_all` of one number a node: ratios, in as few passes over memory as they take."""
        with np.errstate(invalid="ignore", divide="ignore"):
            near = np.divide(x, centre) if self.better != "lower" else np.divide(centre, x)
            if self.better == "target":
                np.minimum(near, np.divide(centre, x), out=near)
            np.minimum(near, 1.0, out=near)
            good = x > 0
            good &= x < np.inf
            if not good.all():
                near[~good] = np.nan
            return near <= self.alpha + TIE, near


@dataclass(frozen=True, eq=False)
class Learned:
    """The outcome of learning: the criterion, and what became of each node, in the order given.

    verdicts  (n,) str: "pass", "defect" (dropped, and worse), "suspect" (dropped, but better: a wrong clock or
              part is likelier than a fault), "invalid" (no usable sample)
    healthy   (n,) bool: the nodes that the criterion stands on
    medoid    index of the node whose sample is the criterion
    """

    criterion: Criterion
    verdicts: NDArray[np.str_]
    healthy: NDArray[np.bool_]
    medoid: int

    def judge(self, sample: ArrayLike) -> Verdict:
        """`criterion.judge`."""
        return self.criterion.judge(sample)


# --- learning ---------------------------------------------------------------------------------------------


def learn(
    samples: Samples,
    better: Better,
    *,
    alpha: float = 0.95,
    delta: float = 0.01,
    adaptive: bool = True,
    family: int = 1,
) -> Learned:
    """Learn one metric's criterion from one sample per node (or per run of one node).

    samples   (n,) scalars, (n, m) series, or n series of any lengths; positive, in the metric's unit. A node
              whose sample is empty or holds NaN, inf or a value <= 0 is "invalid", the others go on.
    better    "higher", "lower" or "target": which deviation from the criterion is worse
    alpha     a healthy sample is more similar to the criterion than this, unless the metric is too noisy
    delta     false-alarm rate of judging one more healthy run on all metrics of the family
    adaptive  False: exclude at alpha itself, as the paper does, whatever the noise
    family    number of metrics that are judged together; each gets delta / family (Bonferroni)

    Until nothing changes: the criterion is the healthy node with the least total distance to the healthy
    ones, and every node too dissimilar from it is dropped. A dropped node is a "suspect" when it gains more
    than it loses and its losses alone would not have it dropped, else a "defect".

    Raises NotEnoughNodes with fewer than three valid samples; NoMajority when more than half are dropped, or
    when what looks like noise is two separate modes; ValidatorError for arguments out of range.
    """
    check_better(better)
    if not (0 < alpha < 1 and 0 < delta < 0.5 and family >= 1):
        raise ValidatorError(
            "expected alpha in (0, 1), delta in (0, 0.5) and family >= 1, "
            f"not alpha={alpha}, delta={delta} and family={family}"
        )
    X, valid = population(samples)
    n = X.shape[1]
    if n < 3:
        raise NotEnoughNodes(n, len(valid))
    healthy, centre, cut, orders = _exclude(X, alpha, adaptive)
    if adaptive and cut < alpha:
        _refuse_two_modes(X, healthy, centre, alpha)
    criterion = X[:, centre].copy()
    low, high = min_max_means(X, criterion)
    mean = float(criterion.mean())
    loss, gain = _loss_and_gain(low, high, mean, better)
    worse = (loss >= gain - TIE * mean) | (toward(low, high, mean, better) <= cut + TIE)
    verdicts = np.where(healthy, "pass", np.where(worse, "defect", "suspect"))
    delta /= family
    calibrated = orders.shape[1] * delta >= 2 - 1e-9
    if calibrated:
        bound = _conformal_bound(X, healthy, orders, better, delta)
    else:
        # Among few runs, one far out may be noise all the same: it is kept out of the criterion, but the
        # threshold must allow for it.
        near = low / high
        noise = near > _exclusion_cut(near, alpha, _widening(n)) + TIE if adaptive else healthy
        bound = _prediction_bound(_signed_deficits(X, criterion, better)[:, noise], delta)
    everyone = np.flatnonzero(valid)
    all_verdicts = np.full(len(valid), "invalid")
    all_verdicts[everyone] = verdicts
    all_healthy = np.zeros(len(valid), dtype=bool)
    all_healthy[everyone] = healthy
    return Learned(
        criterion=Criterion(
            quantiles=criterion,
            better=better,
            alpha=threshold(bound, alpha),
            calibrated=calibrated,
            repeatability=pair_similarity(X[:, healthy]),
            nodes=n,
            excluded=int(n - healthy.sum()),
        ),
        verdicts=all_verdicts,
        healthy=all_healthy,
        medoid=int(everyone[centre]),
    )


def _exclude(X: Floats, alpha: float, adaptive: bool) -> tuple[NDArray[np.bool_], int, float, NDArray[np.int32]]:
    """The healthy nodes, their medoid, the last exclusion cut, and the row orders of the healthy."""
    n = X.shape[1]
    orders = row_orders(X)
    healthy = np.ones(n, dtype=bool)
    while True:
        centre = most_central(X, orders)
        low, high = min_max_means(X, X[:, centre])
        near = low / high
        cut = _exclusion_cut(near[healthy], alpha) if adaptive else alpha
        kept = healthy & (near > cut + TIE)
        if 2 * kept.sum() < n:
            raise _no_majority(X, kept)
        if kept.sum() == healthy.sum():
            return healthy, centre, cut, orders
        healthy = kept
        orders = members_only(orders, healthy)


def _exclusion_cut(near: Floats, alpha: float, widening: float = 1.0) -> float:
    """The similarity to the medoid at which a node is dropped: alpha, or lower where noise itself reaches it.

    near: two-sided similarities of the current healthy nodes. About 4.2 standard deviations for normal
    noise; median and MAD, so that the defects still among the nodes do not widen it.
    """
    far = 1.0 - near
    typical = np.median(far)
    spread = 1.4826 * np.median(np.abs(far - typical))
    return float(min(alpha, 1.0 - typical - 6.0 * widening * spread))


def _refuse_two_modes(X: Floats, healthy: NDArray[np.bool_], centre: int, alpha: float) -> None:
    """Raise NoMajority where the healthy are two modes of like size, which median and MAD take for noise.

    Otsu's criterion: of all splits of the sorted means into two parts of a quarter of the nodes at least, the
    best explains more than 0.9 of the variance (normal noise: 0.64, uniform: 0.75), and the parts are further
    apart than alpha allows. Fewer than 20 nodes can look like that by chance, and are not refused.
    """
    means = X.mean(axis=0)
    y = np.sort(means[healthy])
    n = len(y)
    if n < 20:
        return
    k = np.arange(n // 4, n - n // 4)
    prefix = np.cumsum(y)
    lower, upper = prefix[k - 1] / k, (prefix[-1] - prefix[k - 1]) / (n - k)
    explained = k * (n - k) / n**2 * (upper - lower) ** 2
    best = int(explained.argmax())
    if explained[best] > 0.9 * y.var() and lower[best] / upper[best] <= alpha:
        upper_mode = means >= y[k[best]]
        raise _no_majority(X, upper_mode == upper_mode[centre])


def _no_majority(X: Floats, kept: NDArray[np.bool_]) -> NoMajority:
    means = X.mean(axis=0)
    return NoMajority(
        (int(kept.sum()), int((~kept).sum())), (float(np.median(means[kept])), float(np.median(means[~kept])))
    )


# --- the threshold of a criterion -------------------------------------------------------------------------


def threshold(bound: float, alpha: float) -> float:
    """`alpha`, or less where the noise of healthy runs reaches a deficit `bound` beyond it.

    Rounded down to six decimals, which is what criteria files keep: a run exactly at the bound stays a pass.
    """
    return min(alpha, max(math.floor((1.0 - bound) * 1e6 - 1e-3) / 1e6, LEAST_ALPHA))


def _widening(n: int) -> float:
    """How much further out than among many nodes a node must lie to be told from the noise of n.

    Student's t over the normal quantile, at the tail beyond the 4.2 standard deviations of the exclusion cut.
    """
    tail = special.ndtr(-4.2)
    return float(special.stdtrit(n - 2, 1.0 - tail) / 4.2)


def _loss_and_gain(low: Floats, high: Floats, mean: float, better: Better) -> tuple[Floats, Floats]:
    """What samples lose and gain against a criterion, quantile by quantile; against a target all is loss.

    low, high, mean: the means of min(sample, criterion), of max(sample, criterion) and of the criterion.
    """
    below, above = mean - low, high - mean
    if better == "target":
        return high - low, np.zeros_like(low)
    return (below, above) if better == "higher" else (above, below)


def _signed_deficits(X: Floats, criterion: Floats, better: Better) -> Floats:
    """(1, n), for targets (2, n): each column's deficit to the criterion, continued below 0 where better.

    A deficit is 1 - one-sided similarity. A prediction bound needs the sign: cut off at 0, the deficits of
    normal noise look half as wide as they are. With l and g the means of what a sample loses and gains,
    quantile by quantile, let m = (l - g) + min(l, g), the shift and the change of shape, which is l itself
    where l >= g. The deficit is m / mu_C where higher is better, and m / (mu_C + m) where lower is. For scalars these
    are 1 - x/C and 1 - C/x: the same for a latency and for its reciprocal rate. For targets one row for the
    shift to either side; the larger of the two is 1 - two-sided similarity.
    """
    low, high = min_max_means(X, criterion)
    mean = float(criterion.mean())
    if better == "target":
        below, above = mean - low, high - mean
        shape = 2.0 * np.minimum(below, above)
        return np.stack([below - above + shape, above - below + shape]) / high
    loss, gain = _loss_and_gain(low, high, mean, better)
    m = loss - gain + np.minimum(loss, gain)
    deficits: Floats = m / mean if better == "higher" else m / (mean + m)
    return deficits[None, :]


def _prediction_bound(signed: Floats, delta: float) -> float:
    """The deficit that one more healthy run exceeds with probability delta, from few; signed: (sides, n).

    One-sided Student-t prediction bound (Hahn and Meeker, Statistical Intervals): with a_1..a_n and the
    next a normal and independent, (a - mean) / (s sqrt(1 + 1/n)) is t-distributed with n - 1 degrees of
    freedom, so mean + t(n-1, 1-delta) s sqrt(1 + 1/n) is exceeded with probability delta exactly. Measuring
    the deficits from the medoid, itself one of the runs, shifts all of them and the next alike and cancels
    in a - mean. A mean below 0 (the medoid is one of the worse runs) is not used to tighten the bound. Of
    two sides each gets half of delta.
    """
    sides, n = signed.shape
    t = special.stdtrit(n - 1, 1.0 - delta / sides)
    spread = signed.std(axis=1, ddof=1) * math.sqrt(1.0 + 1.0 / n)
    return float((np.maximum(signed.mean(axis=1), 0.0) + t * spread).max())


def _conformal_bound(
    X: Floats, healthy: NDArray[np.bool_], orders: NDArray[np.int32], better: Better, delta: float
) -> float:
    """The deficit that one more healthy run exceeds with probability at most delta, whatever its noise.

    Split conformal prediction: the medoid from one half of the healthy nodes, the conformal quantile of the
    deficits to it from the other half; then the halves swapped, and the larger kept. Healthy runs so far out
    in a heavy tail that the exclusion cut drops them come on top of delta.
    """
    largest = 0.0
    fit, held_out = _halves(X, healthy, orders)
    for _ in range(2):
        centre = X[:, most_central(X, members_only(orders, fit))]
        low, high = min_max_means(X, centre)
        scores = 1.0 - toward(low, high, float(centre.mean()), better)[held_out]
        rank = math.ceil((len(scores) + 1) * (1.0 - delta) - 1e-9)
        largest = max(largest, float(np.partition(scores, rank - 1)[rank - 1]))
        fit, held_out = held_out, fit
    return largest


def _halves(
    X: Floats, healthy: NDArray[np.bool_], orders: NDArray[np.int32]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Two random halves of the healthy nodes, drawn over ranks: the order of nodes does not change them.

    orders: the row orders of the healthy; scalars are in the order of their ranks there already.
    """
    members = orders[0]
    if len(X) > 1:
        members = np.flatnonzero(healthy)
        members = members[np.argsort(X[:, members].mean(axis=0), kind="stable")]
    shuffled = members[np.random.default_rng(len(members)).permutation(len(members))]
    first = np.zeros(len(healthy), dtype=bool)
    first[shuffled[: len(members) // 2]] = True
    return first, healthy & ~first
