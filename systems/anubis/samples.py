"""Samples as distributions: quantile vectors, their similarity, and the centre of a population of them.

A *sample* is what one metric gave on one node in one run: a positive scalar, or a series of step values whose
order does not matter here. A *population* is a matrix X (q, n), one quantile per row and one node per column,
so that one quantile of all nodes is contiguous. `systems.anubis.validator` learns and judges with these
functions, and exports those that are of use alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from systems.anubis.ordering import BLOCK, row_orders, totals_of

Better = Literal["higher", "lower", "target"]
Floats = NDArray[np.float64]
Samples = NDArray[Any] | Sequence[ArrayLike]

QUANTILES = 64
"""Length of the quantile vector of a series, unless all series of a population are shorter."""

TIE = 1e-12
"""Similarities, and relative totals, no further apart than this differ by rounding only: they are equal."""

EXHAUSTIVE_PAIRS = 2_000
"""Up to this many nodes repeatability is the mean over all pairs; beyond, over `SAMPLED_PAIRS` of them."""

SAMPLED_PAIRS = 200_000


class ValidatorError(ValueError):
    """Anything that the Validator cannot learn from or judge."""


class InvalidSample(ValidatorError):
    """A sample that is empty, not one-dimensional, not finite or not positive."""


class NotEnoughNodes(ValidatorError):
    """Fewer valid samples than a population needs; `.valid` of `.given`, `.needed`."""

    def __init__(self, valid: int, given: int, needed: int = 3) -> None:
        self.valid, self.given, self.needed = valid, given, needed
        super().__init__(
            f"{valid} valid samples of {given} given, {needed} needed: run the benchmark on more nodes, or more often"
        )


# --- samples and their distance ---------------------------------------------------------------------------


def quantiles(values: ArrayLike, q: int = QUANTILES) -> Floats:
    """The quantile vector of a sample.

    values: a scalar or (m,), positive. Result: (q,) float64, non-decreasing, in the unit of the values: entry
    k is the mean of the step quantile function over [k/q, (k+1)/q]. These averages keep the mean exactly, and
    the whole sample whenever q is a multiple of m. Raises InvalidSample; ValidatorError when q < 1.
    """
    if q < 1:
        raise ValidatorError(f"a quantile vector has at least one entry, not {q}")
    return _bin_rows(np.sort(valid_vector(values))[None, :], q)[0]


def similarity(S: ArrayLike, C: ArrayLike) -> float:
    """Two-sided similarity of two samples (or quantile vectors) of any lengths, in (0, 1].

    With F the distribution functions, it is the integral of min(1-F_S, 1-F_C) over that of max(1-F_S, 1-F_C).
    This equals (mu_S + mu_C - W) / (mu_S + mu_C + W), W being the 1-Wasserstein distance, and min/max for
    scalars. Its complement is a metric. Nothing is binned. Raises InvalidSample.
    """
    s, c, width = _paired(S, C)
    return float((np.minimum(s, c) * width).sum() / (np.maximum(s, c) * width).sum())


def one_sided(S: ArrayLike, C: ArrayLike, better: Better) -> float:
    """Similarity of a sample to a criterion where only worse counts, in (0, 1].

    With `better="higher"`, the share of C that S reaches, 1 - mean max(C - S, 0) / mu_C; with "lower", that
    of S that C needs, mu_C / (mu_C + mean max(S - C, 0)); with "target", the two-sided similarity.
    Positions are matched by quantile. For scalars: S/C and C/S, so a latency and its reciprocal rate are
    equally similar. Raises InvalidSample; ValidatorError for another `better`.
    """
    check_better(better)
    s, c, width = _paired(S, C)
    low, high = (np.minimum(s, c) * width).sum(), (np.maximum(s, c) * width).sum()
    return float(toward(low, high, float((c * width).sum()), better))


def toward(low: Floats, high: Floats, centre: float, better: Better) -> Floats:
    """One-sided similarities of samples S from the means of min(S, C), (n,), of max(S, C), (n,), and of C."""
    if better == "higher":
        return np.minimum(low / centre, 1.0)
    if better == "lower":
        return np.minimum(centre / high, 1.0)
    return low / high


def _overlaps(m: int, q: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int64]]:
    """The pieces on which both an m-step and a q-step function on [0, 1] are constant.

    Gives, per piece: the step of the first, the step of the second, the width in units of 1/(m q). Integers,
    so that no width is lost to rounding.
    """
    starts = np.union1d(np.arange(m, dtype=np.int64) * q, np.arange(q, dtype=np.int64) * m)
    return starts // q, starts // m, np.diff(starts, append=m * q)


def _bin_rows(rows: Floats, q: int) -> Floats:
    """Quantile vectors (n, q) of n sorted samples (n, m) of one length."""
    m = rows.shape[1]
    if m == q:
        return rows
    if m == 2 * q:
        return (rows[:, 0::2] + rows[:, 1::2]) / 2
    step, entry, width = _overlaps(m, q)
    pieces = rows[:, step] * width
    binned: Floats = np.add.reduceat(pieces, np.searchsorted(entry, np.arange(q)), axis=1) / m
    # Averages of equal values may differ in the last bit, and a quantile function does not decrease.
    return np.maximum.accumulate(binned, axis=1)


def _paired(S: ArrayLike, C: ArrayLike) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Both samples' quantile functions on the pieces where both are constant, and the pieces' widths."""
    s, c = np.sort(valid_vector(S)), np.sort(valid_vector(C))
    at_s, at_c, width = _overlaps(len(s), len(c))
    return s[at_s], c[at_c], width


def valid_vector(values: ArrayLike, what: str = "a sample") -> Floats:
    """`values` as (m,) float64, m >= 1. Raises InvalidSample, naming `what`, the value and its index."""
    vector = np.atleast_1d(np.asarray(values, dtype=np.float64))
    if vector.ndim != 1 or vector.size == 0:
        raise InvalidSample(f"{what} is a number or a series of numbers, not of shape {vector.shape}")
    bad = ~(np.isfinite(vector) & (vector > 0))
    if bad.any():
        at = int(bad.argmax())
        raise InvalidSample(f"{what} holds {vector[at]} at index {at}: values must be finite and above 0")
    return vector


def check_better(better: str) -> None:
    """Raise ValidatorError unless `better` is one of the three."""
    if better not in get_args(Better):
        raise ValidatorError(f"better must be one of {', '.join(get_args(Better))}, not {better!r}")


# --- populations: one column per node ---------------------------------------------------------------------


def distance_totals(X: NDArray[Any]) -> Floats:
    """Every node's total distance to all nodes, exactly, in O(q n log n).

    X: (q, n) float, one quantile vector per column. Result: (n,) float64, entry i = sum over j of
    W(i, j) = sum over j of mean over k of |X[k, i] - X[k, j]|, in the unit of X.

    The sum separates over quantiles, and in a sorted row y of n values
    sum_j |y_i - y_j| = y_i (2 i + 2 - n) + S - 2 C_i, with i the rank from 0, C the inclusive prefix sums and
    S the last of them. Raises ValidatorError when X is not 2-D or is empty.
    """
    _check_population(X)
    return totals_of(X, row_orders(X))


def medoid(X: NDArray[Any], healthy: NDArray[np.bool_] | None = None) -> int:
    """The column of X (q, n) with the least total distance to all columns, or of and to those in `healthy`.

    healthy: (n,) bool. Of several equally central columns it takes that with the smallest vector (first
    quantile first), so the answer does not depend on the order of nodes; of identical ones, the first.
    Raises ValidatorError when X is not 2-D, is empty, or `healthy` selects nothing.
    """
    _check_population(X)
    if healthy is None:
        return most_central(X, row_orders(X))
    members = np.flatnonzero(healthy)
    if len(members) == 0:
        raise ValidatorError("a medoid needs at least one healthy node, none was given")
    return int(members[medoid(X[:, members])])


def repeatability(samples: Samples) -> float:
    """Mean two-sided similarity over pairs of samples, in (0, 1]: 1 is a metric that always gives the same.

    samples: as in `learn`; invalid ones are left out. All pairs up to 2,000 nodes (scalars: always), else
    200,000 pairs drawn with a fixed seed. Raises NotEnoughNodes with fewer than two valid samples.
    """
    X, valid = population(samples)
    if X.shape[1] < 2:
        raise NotEnoughNodes(X.shape[1], len(valid), needed=2)
    return pair_similarity(X)


def _check_population(X: NDArray[Any]) -> None:
    if X.ndim != 2 or X.size == 0:
        raise ValidatorError(f"a population is an array (quantiles, nodes), not one of shape {X.shape}")


def population(samples: Samples) -> tuple[Floats, NDArray[np.bool_]]:
    """The quantile vectors X (q, v) of the v valid samples, and (n,) bool: which of the n samples are valid.

    q is 1 for scalars, the length of the series where all have the same and it is at most 64, else 64.
    Raises InvalidSample where a sample is neither a number nor a series.
    """
    if isinstance(samples, np.ndarray) and samples.dtype != object:
        return _equal_lengths(samples)
    rows = [np.asarray(row, dtype=np.float64) for row in samples]
    if len({row.shape for row in rows}) <= 1:
        return _equal_lengths(np.array(rows, dtype=np.float64))
    for at, row in enumerate(rows):
        if row.ndim > 1:
            raise InvalidSample(f"sample {at} has shape {row.shape}: give one number or one series per node")
    return _mixed_lengths([np.atleast_1d(row) for row in rows])


def _equal_lengths(table: NDArray[Any]) -> tuple[Floats, NDArray[np.bool_]]:
    if table.ndim == 1:
        table = table[:, None]
    if table.ndim != 2:
        raise InvalidSample(f"samples are (nodes,) or (nodes, steps), not an array of shape {table.shape}")
    n, m = table.shape
    q = min(m, QUANTILES)
    valid = np.zeros(n, dtype=bool)
    if m == 0:
        return np.empty((1, 0)), valid
    X = np.empty((q, n))
    filled = 0
    rows = max(1, BLOCK // m)
    for start in range(0, n, rows):
        block = np.sort(table[start : start + rows].astype(np.float64), axis=1)
        good = (block[:, 0] > 0) & np.isfinite(block[:, -1])  # NaN sorts last
        valid[start : start + rows] = good
        vectors = _bin_rows(block if good.all() else block[good], q)
        X[:, filled : filled + len(vectors)] = vectors.T
        filled += len(vectors)
    return X if filled == n else np.ascontiguousarray(X[:, :filled]), valid


def _mixed_lengths(rows: list[Floats]) -> tuple[Floats, NDArray[np.bool_]]:
    valid = np.array([row.size > 0 and bool(np.all(np.isfinite(row) & (row > 0))) for row in rows])
    lengths = np.array([row.size for row in rows])
    X = np.empty((QUANTILES, len(rows)))
    for m in np.unique(lengths[valid]):
        nodes = np.flatnonzero(valid & (lengths == m))
        X[:, nodes] = _bin_rows(np.sort(np.stack([rows[i] for i in nodes]), axis=1), QUANTILES).T
    return np.ascontiguousarray(X[:, valid]), valid


def members_only(orders: NDArray[np.int32], member: NDArray[np.bool_]) -> NDArray[np.int32]:
    """The row orders (q, members) among the columns in `member` (n,) bool, without sorting again."""
    return orders[member[orders]].reshape(len(orders), -1)


def most_central(X: NDArray[Any], orders: NDArray[np.int32]) -> int:
    """The medoid among the columns in `orders`, as `medoid` says."""
    members = orders[0]
    totals = totals_of(X, orders)[members]
    central = np.sort(members[totals <= totals.min() * (1 + TIE)])
    for row in X:
        if len(central) == 1:
            break
        values = row[central]
        central = central[values == values.min()]
    return int(central[0])


def min_max_means(X: NDArray[Any], centre: NDArray[Any]) -> tuple[Floats, Floats]:
    """Per column of X (q, n), the means over quantiles of min(X, centre) and max(X, centre); centre: (q,)."""
    q, n = X.shape
    low, high = np.empty(n), np.empty(n)
    columns = max(1, BLOCK // q)
    for start in range(0, n, columns):
        part = slice(start, start + columns)
        low[part] = np.minimum(X[:, part], centre[:, None]).sum(axis=0)
        high[part] = np.maximum(X[:, part], centre[:, None]).sum(axis=0)
    return low / q, high / q


def pair_similarity(X: Floats) -> float:
    """`repeatability` of a population X (q, n), n >= 2."""
    q, n = X.shape
    if q == 1:
        # Exact for any n: in sorted order, the sum of x_i / x_j over i < j is a prefix sum over x_j.
        y = np.sort(X[0])
        pairs = n * (n - 1) / 2
        return float(min(1.0, (np.cumsum(y)[:-1] / y[1:]).sum() / pairs))
    sums = X.sum(axis=0)
    if n <= EXHAUSTIVE_PAIRS:
        total = 0.0
        for i in range(n - 1):
            low = np.minimum(X[:, i, None], X[:, i + 1 :]).sum(axis=0)
            total += float((low / (sums[i] + sums[i + 1 :] - low)).sum())
        return min(1.0, total / (n * (n - 1) / 2))
    generator = np.random.default_rng(n)
    first = generator.integers(n, size=SAMPLED_PAIRS)
    second = (first + generator.integers(1, n, size=SAMPLED_PAIRS)) % n  # never the same node
    low = np.zeros(SAMPLED_PAIRS)
    for row in X:
        low += np.minimum(row[first], row[second])
    return float(min(1.0, (low / (sums[first] + sums[second] - low)).mean()))
