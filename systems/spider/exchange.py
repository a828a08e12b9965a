"""Rows that travel to the ranks of their experts and back: all-to-alls of variable size, nothing padded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from systems.spider.rules import ShapeError

__all__ = ["Trip", "own_experts", "plan_trip", "travel"]


@dataclass(frozen=True, eq=False)
class Trip:
    """Who sends how many rows to whom. sent, received: rows per rank; offsets: (E here + 1,) int64 of the rows that
    arrived, by expert; order: (received,) for each of those where it stood among what arrived, which is by sender."""

    group: ProcessGroup
    sent: list[int]
    received: list[int]
    offsets: Tensor
    order: Tensor


def own_experts(experts: int, group: ProcessGroup) -> slice:
    """The experts of this rank. Raises ShapeError where they cannot be shared evenly."""
    ranks = group.size()
    if experts % ranks:
        raise ShapeError(f"{experts} experts cannot be shared evenly by {ranks} ranks")
    each = experts // ranks
    return slice(group.rank() * each, (group.rank() + 1) * each)


def plan_trip(counts: Tensor, group: ProcessGroup) -> Trip:
    """counts: (E,) int64, the rows of this rank for every expert, which leave in the order of the experts."""
    ranks = group.size()
    arriving = torch.empty_like(counts)
    dist.all_to_all_single(arriving, counts.contiguous(), group=group)
    by_sender = arriving.view(ranks, -1)
    loads = by_sender.sum(0)
    offsets = torch.zeros(loads.numel() + 1, dtype=torch.int64, device=counts.device)
    torch.cumsum(loads, 0, out=offsets[1:])
    expert = torch.arange(loads.numel(), device=counts.device).repeat(ranks).repeat_interleave(arriving)
    return Trip(
        group,
        counts.view(ranks, -1).sum(1).tolist(),
        by_sender.sum(1).tolist(),
        offsets,
        torch.argsort(expert, stable=True),
    )


def travel(x: Tensor, trip: Trip, *, home: bool = False) -> Tensor:
    """Rows of this rank to their experts' ranks, where they are ordered by expert, then by sender; home: the way back.

    x: (rows, D); differentiable: gradients travel the other way.
    """
    return _Travel.apply(x, trip, home)


class _Travel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, trip: Trip, home: bool) -> Tensor:
        ctx.trip, ctx.home = trip, home
        return _move(x, trip, home)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _move(grads[0], ctx.trip, not ctx.home), None, None


def _move(x: Tensor, trip: Trip, home: bool) -> Tensor:
    if home:
        x = torch.empty_like(x).index_copy_(0, trip.order, x)
    out_sizes, in_sizes = (trip.sent, trip.received) if home else (trip.received, trip.sent)
    out = x.new_empty(sum(out_sizes), *x.shape[1:])
    dist.all_to_all_single(out, x.contiguous(), out_sizes, in_sizes, group=trip.group)
    return out if home else out.index_select(0, trip.order)
