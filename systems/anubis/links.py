"""Is it the node or the link? Pair bandwidths of a fleet, explained by what each node and each link can carry.

    found = attribute(bandwidth)             # bandwidth: (nodes, nodes) B/s, NaN where a pair was not measured
    found.slow_nodes, found.slow_links, found.node, found.expected

A pair carries what the weakest of its two nodes and of the link between them does: min(node_i, node_j, link_ij). A
node that is slow to all of its partners is slow itself; one slow to a few has slow links. The tournament that measures
all pairs without disturbing any is `probes.network.pairwise`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

ALPHA = 0.95
"""What keeps less than this share of what it should is slow, unless the noise of the pairs reaches further."""

BEST_QUARTER = 0.75
"""A node's own capacity is the upper quartile of what it carries: up to that share of its partners may be slow."""

ROUNDS = 20


class UnusablePairs(ValueError):
    """Bandwidths that are no square matrix of positive numbers, or too few of them."""


@dataclass(frozen=True, eq=False)
class Attribution:
    """node: (nodes,) B/s that each can carry, NaN for one that no pair measured; expected: (nodes, nodes) B/s by the
    nodes alone; slow_nodes: indices; slow_links: pairs (i, j), i < j; cut: share of the expected below which a pair
    is slow; unmeasured: nodes of which no pair was measured.
    """

    node: Floats
    expected: Floats
    slow_nodes: tuple[int, ...]
    slow_links: tuple[tuple[int, int], ...]
    cut: float
    unmeasured: tuple[int, ...]


def attribute(bandwidth: ArrayLike, *, alpha: float = ALPHA) -> Attribution:
    """Fit pair = min(node_i, node_j, link_ij) to measured pairs, and name the nodes and the links that are slow.

    bandwidth: (nodes, nodes) B/s, NaN where not measured; both directions of a pair are averaged. Links found slow are
    left out of their nodes' fit, until nothing changes. A node is slow against the median node, a link against what
    its two nodes carry with others. Of two nodes and their one link nothing can be told apart: three nodes at least.
    Raises UnusablePairs.
    """
    B = np.array(bandwidth, dtype=np.float64)
    n = len(B) if B.ndim == 2 else 0
    if B.ndim != 2 or B.shape != (n, n) or n < 3:
        raise UnusablePairs(f"expected a square matrix of three nodes at least, not shape {B.shape}")
    np.fill_diagonal(B, np.nan)
    if np.any(np.isinf(B)) or np.any(B <= 0):
        raise UnusablePairs("bandwidths are positive and finite, NaN where a pair was not measured")
    if not 0 < alpha < 1:
        raise UnusablePairs(f"alpha is a share in (0, 1), not {alpha}")
    both = np.isfinite(B) & np.isfinite(B.T)
    B = np.where(both, (B + B.T) / 2, np.where(np.isfinite(B), B, B.T))
    seen = np.isfinite(B)
    unmeasured = tuple(np.flatnonzero(~seen.any(axis=1)).tolist())
    if len(unmeasured) > n - 3:
        raise UnusablePairs(f"pairs of {n - len(unmeasured)} nodes were measured, three are needed to tell them apart")
    slow = np.zeros_like(seen)
    cut = alpha
    for _ in range(ROUNDS):
        node = _capacities(B, seen & ~slow)
        expected = np.minimum(node[:, None], node[None, :])
        share = np.divide(B, expected, out=np.ones_like(B), where=seen)
        cut = _cut(share[seen & ~slow], alpha)
        now = seen & (share < cut)
        # A node all of whose links look slow would have none left to be fitted by.
        now &= ~(now.sum(axis=1) >= seen.sum(axis=1))[:, None] & ~(now.sum(axis=1) >= seen.sum(axis=1))[None, :]
        if np.array_equal(now, slow):
            break
        slow = now
    typical = float(np.nanmedian(node))
    slow_nodes = np.flatnonzero(node < _cut(node[np.isfinite(node)] / typical, alpha) * typical)
    links = [(int(i), int(j)) for i, j in np.argwhere(slow) if i < j]
    return Attribution(node, expected, tuple(slow_nodes.tolist()), tuple(links), cut, unmeasured)


def _capacities(B: Floats, counted: NDArray[np.bool_]) -> Floats:
    """(nodes,): upper quartile of what each carries with others; a value that was measured, not one between two."""
    node = np.full(len(B), np.nan)
    for i, row in enumerate(counted):
        if row.any():
            node[i] = np.quantile(B[i, row], BEST_QUARTER, method="higher")
    return node


def _cut(share: Floats, alpha: float) -> float:
    """`alpha`, or less where the noise of most pairs reaches further: about four standard deviations, by MAD."""
    far = np.maximum(1.0 - share, 0.0)
    typical = float(np.median(far))
    spread = 1.4826 * float(np.median(np.abs(far - typical)))
    return min(alpha, 1.0 - typical - 6.0 * spread)
