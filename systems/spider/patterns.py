"""Patterns as they occur: masks of a granularity, skewed routing. Seeded, so a run can be repeated."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["block_mask", "skewed_routing"]


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
