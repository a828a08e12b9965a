"""Dense products and permutations of vertex data whose results live in the workspace."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from systems.ngra.workspace import LEAST_BYTES, workspace


def product(x: Tensor, weight: Tensor) -> Tensor:
    """(rows, out): x @ weight.T, under autograd; x: (rows, in), weight: (out, in). Any other x as `F.linear`."""
    large = x.dim() == 2 and len(x) * max(weight.shape) * x.element_size() >= LEAST_BYTES
    if not large or x.dtype != weight.dtype or x.device.type != "cpu" or weight.dim() != 2:
        return F.linear(x, weight)
    return _Product.apply(x, weight)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)
        return torch.mm(x, weight.t(), out=workspace().empty((len(x), len(weight)), x.dtype))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        given = upstream[0]
        by_x = None
        if weight is not None:
            by_x = torch.mm(given, weight, out=workspace().empty((len(given), weight.shape[1]), given.dtype))
        return by_x, None if x is None else torch.mm(given.t(), x)


def permuted(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """(rows, ...): row k is x[order[k]], under autograd; inverse: where each row of x went. Both (rows,) int64."""
    if x.device != order.device:
        order, inverse = order.to(x.device), inverse.to(x.device)
    if not x.is_floating_point() or x.device.type != "cpu":
        return x.index_select(0, order)
    return _Permuted.apply(x, order, inverse)


class _Permuted(torch.autograd.Function):
    """The gradient of a permutation is the other permutation: no rows are added up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.inverse = inverse
        return torch.index_select(x, 0, order, out=workspace().like(x))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        given = upstream[0].contiguous()
        return torch.index_select(given, 0, ctx.inverse, out=workspace().like(given)), None, None
