"""Row orders of a population, and total distances from them: the hot loop of learning, compiled where it can be.

`ordering.c` sorts a row of doubles in two counting passes instead of by comparisons, and takes the running sums in
one more. Without a compiler numpy does the same, a few times slower; both are exact orders, and their totals agree
to rounding.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from systems import native

Floats = NDArray[np.float64]
Orders = NDArray[np.int32]

BLOCK = 1 << 15
"""Numbers handled at a time by numpy: temporaries stay in the cache, however large the fleet."""


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled loops, or None on a machine without a compiler."""
    loaded = native.load(Path(__file__).with_name("ordering.c"), name="anubis_ordering", openmp=False)
    if loaded is not None:
        pointer, long = ctypes.c_void_p, ctypes.c_int64
        loaded.maat_row_orders.argtypes = [pointer, long, long, pointer]
        loaded.maat_row_orders.restype = ctypes.c_int
        loaded.maat_add_totals.argtypes = [pointer, pointer, long, long, long, pointer]
        loaded.maat_add_totals.restype = None
    return loaded


def row_orders(X: NDArray[Any]) -> Orders:
    """Per row of X (q, n), the columns in ascending order, (q, n): the only sort that learning does.

    Columns of equal values come in any order. X holds no NaN.
    """
    compiled = library()
    if compiled is None:
        return row_orders_by_numpy(X)
    X = _doubles(X)
    orders = np.empty(X.shape, dtype=np.int32)
    if compiled.maat_row_orders(X.ctypes.data, *X.shape, orders.ctypes.data) != 0:
        raise MemoryError(f"no memory to sort rows of {X.shape[1]} nodes")
    return orders


def totals_of(X: NDArray[Any], orders: Orders) -> Floats:
    """(n,): total distance of every column in `orders` (q, members) to all columns in it; 0 for the others.

    In a sorted row y of m values, sum_j |y_i - y_j| = y_i (2 i + 2 - m) + S - 2 C_i, with i the rank from 0, C the
    inclusive prefix sums and S the last of them; the mean over the q rows is the distance.
    """
    compiled = library()
    if compiled is None:
        return totals_by_numpy(X, orders)
    X, orders = _doubles(X), np.ascontiguousarray(orders)
    q, n = X.shape
    totals = np.zeros(n)
    compiled.maat_add_totals(X.ctypes.data, orders.ctypes.data, q, n, orders.shape[1], totals.ctypes.data)
    return totals / q


def row_orders_by_numpy(X: NDArray[Any]) -> Orders:
    """`row_orders` where nothing can be compiled."""
    orders = np.empty(X.shape, dtype=np.int32)
    for rows in _row_blocks(X):
        orders[rows] = np.argsort(X[rows], axis=1)
    return orders


def totals_by_numpy(X: NDArray[Any], orders: Orders) -> Floats:
    """`totals_of` where nothing can be compiled."""
    q, n = orders.shape
    totals = np.zeros(X.shape[1])
    weight = 2.0 * np.arange(n) + 2.0 - n
    for rows in _row_blocks(orders):
        order = orders[rows]
        start_of_row = np.arange(len(order))[:, None] * X.shape[1]
        y = X[rows].ravel().take(order + start_of_row).astype(np.float64, copy=False)
        y -= y[:, n // 2, None]  # the distances stay, and are no longer small differences of large sums
        prefix = np.cumsum(y, axis=1)
        y *= weight
        y += prefix[:, -1:]
        prefix *= 2.0
        y -= prefix
        totals += np.bincount(order.ravel(), weights=y.ravel(), minlength=len(totals))
    return totals / q


def _doubles(X: NDArray[Any]) -> Floats:
    return np.ascontiguousarray(X, dtype=np.float64)


def _row_blocks(array: NDArray[Any]) -> Iterator[slice]:
    q, n = array.shape
    rows = max(1, BLOCK // n)
    return (slice(start, start + rows) for start in range(0, q, rows))
