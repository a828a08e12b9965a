"""Patterns as they occur: masks of a granularity, skewed routing, bars of music. Seeded: a run can be repeated."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["block_mask", "related_bars", "skewed_routing"]

RELATED = (1, 2, 4, 8, 12, 16, 24, 32)


def block_mask(rows: int, columns: int, tile: tuple[int, int], sparsity: float, seed: int = 0) -> Tensor:
    """(rows, columns) bool: blocks of `tile` kept independently with probability 1 - sparsity."""
    r, c = tile
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.rand(-(-rows // r), -(-columns // c), generator=generator) >= sparsity
    return blocks.repeat_interleave(r, 0)[:rows].repeat_interleave(c, 1)[:, :columns].contiguous()


def skewed_routing(tokens: int, experts: int, skew: float, seed: int = 0) -> Tensor:
    """(tokens, 1) expert ids: the largest load is `skew` times the mean, the rest falls off evenly.

    skew: from 1 (all alike) to `experts`.
    """
    generator = torch.Generator().manual_seed(seed)
    first = skew / experts
    rest = torch.linspace(2.0, 0.0, experts + 1)[1:experts] if experts > 1 else torch.zeros(0)
    shares = torch.cat([torch.tensor([first]), (1 - first) * rest / rest.sum().clamp(min=1e-9)])
    # Whole numbers of tokens, so that the skew is what was asked for.
    ids = torch.searchsorted(shares.cumsum(0), (torch.arange(tokens) + 0.5) / tokens).clamp(max=experts - 1)
    return ids[torch.randperm(tokens, generator=generator)][:, None]


def related_bars(lengths: Tensor, related: tuple[int, ...] = RELATED) -> Tensor:
    """(S, S) bool of music attention as Museformer's (arXiv 2210.10349): row i may attend to column j.

    lengths: (bars,) tokens of each bar; each bar is followed by one token that sums it up, so S is sum(lengths) + bars.
    A token sees what came before in its own bar, all of the bars that lie `related` bars back, and of every other
    earlier bar only the summary; a summary sees its own bar and the earlier summaries.
    """
    bars = torch.arange(lengths.numel())
    bar = bars.repeat_interleave(lengths + 1)
    at = torch.arange(bar.numel())
    summary = at == (lengths + 1).cumsum(0)[bar] - 1
    back = bar[:, None] - bar
    near = (back == 0) | (torch.isin(back, torch.tensor(related)) & ~summary[:, None])
    return (at[:, None] >= at) & torch.where(summary & (back > 0), True, near)
