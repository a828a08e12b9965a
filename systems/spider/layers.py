"""Modules whose products are sparse: `ReluFFN`, `MaskedLinear`, `MoE`, `RaggedEncoderLayer`.

A layer detects its pattern once and uses it in the forward pass and in all of backward. Gradients are taken on
the pattern only where that is exact, because the layer itself multiplies by the mask.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from systems.spider import ops
from systems.spider.index import TileIndex, find
from systems.spider.moe import MoE, moe_ffn
from systems.spider.ragged import Ragged
from systems.spider.rules import PatternError, ShapeError

__all__ = ["MaskedLinear", "MoE", "RaggedEncoderLayer", "ReluFFN", "moe_ffn", "relu_ffn"]


# ------------------------------------------------------------------------------------------------------- ReLU


def relu_ffn(x: Tensor, w_in: Tensor, b_in: Tensor, w_out: Tensor, b_out: Tensor) -> Tensor:
    """relu(x w_in' + b_in) w_out + b_out, skipping the units that did not fire.

    x: (T, D); w_in: (H, D); b_in: (H,); w_out: (H, D2); b_out: (D2,). Returns (T, D2). Of the six products of a
    training step all but the first are sparse: the second, its two gradients, and the two of the first, whose
    incoming gradient is zero where relu is.
    """
    hidden = torch.relu(ops.linear(x.detach(), w_in.detach(), b_in.detach()))
    plan = ops.make_plan(hidden, w_out.detach())
    if plan.micro_tile is None:
        return ops.dense(torch.relu(ops.linear(x, w_in, b_in)), w_out) + b_out
    index = find(hidden, plan.micro_tile, pack=True, backend=plan.backend)
    return _ReluFFN.apply(x, w_in, b_in, w_out, b_out, index, plan.backend)


class _ReluFFN(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w_in: Tensor,
        b_in: Tensor,
        w_out: Tensor,
        b_out: Tensor,
        index: TileIndex,
        backend: str,
    ) -> Tensor:
        ctx.save_for_backward(x, w_in, w_out)
        ctx.index, ctx.backend = index, backend
        return ops.times(index, w_out, backend) + b_out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        x, w_in, w_out = ctx.saved_tensors
        index, backend, needs = ctx.index, ctx.backend, ctx.needs_input_grad
        dw_out = ops.times(ops.transposed(index, backend), dy, backend) if needs[3] else None
        db_out = dy.sum(0) if needs[4] else None
        if not any(needs[:3]):
            return None, None, None, dw_out, db_out, None, None
        # The gradient before relu: the same micro-tiles, other values.
        packed = ops.sample(index, dy, w_out, "packed", backend)
        before = replace(index, values=packed)
        dx = ops.times(before, w_in, backend) if needs[0] else None
        dw_in = ops.times(ops.transposed(before, backend), x, backend) if needs[1] else None
        db_in = _column_sums(before) if needs[2] else None
        return dx, dw_in, db_in, dw_out, db_out, None, None


def _column_sums(index: TileIndex) -> Tensor:
    """The sums over the rows of an indexed matrix, those of 16-bit values in float32."""
    index = index.tight()
    assert index.values is not None
    values = index.values.float() if index.values.dtype.itemsize == 2 else index.values
    sums = values.new_zeros(index.shape[1])
    if index.axis == 1:
        return sums.index_add(0, index.indices, values.sum(1)).to(index.values.dtype)
    wide = values.new_zeros(index.offsets.numel() - 1, index.size)
    return wide.index_add(0, index.blocks(), values).reshape(-1)[: index.shape[1]].to(index.values.dtype)


class ReluFFN(nn.Module):
    """Linear, ReLU, linear: (..., d) to (..., d). Both weights are (hidden, d): rows are units."""

    def __init__(self, d: int, hidden: int) -> None:
        super().__init__()
        self.w_in = nn.Parameter(torch.empty(hidden, d))
        self.b_in = nn.Parameter(torch.zeros(hidden))
        self.w_out = nn.Parameter(torch.empty(hidden, d))
        self.b_out = nn.Parameter(torch.zeros(d))
        nn.init.kaiming_uniform_(self.w_in, a=math.sqrt(5))
        nn.init.uniform_(self.w_out, -1 / math.sqrt(hidden), 1 / math.sqrt(hidden))

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., d)."""
        if x.shape[-1] != self.w_in.shape[1]:
            raise ShapeError(f"x is {tuple(x.shape)}, expected (..., {self.w_in.shape[1]})")
        rows = x.reshape(-1, x.shape[-1])
        return relu_ffn(rows, self.w_in, self.b_in, self.w_out, self.b_out).view(x.shape)


# --------------------------------------------------------------------------------------------- masked weights


class MaskedLinear(nn.Module):
    """A linear layer whose weight (d_out, d_in) counts only where a mask says; the mask may change at every step.

    granularity: (r, c), the blocks in which `prune` keeps or drops weights.
    """

    mask: Tensor

    def __init__(self, d_in: int, d_out: int, granularity: tuple[int, int] = (32, 1)) -> None:
        super().__init__()
        if min(granularity) < 1:
            raise PatternError(f"granularity is {granularity}, expected positive extents")
        self.granularity = granularity
        self.weight = nn.Parameter(torch.empty(d_out, d_in))
        self.bias = nn.Parameter(torch.zeros(d_out))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        self.register_buffer("mask", torch.ones(d_out, d_in, dtype=torch.bool))

    def set_mask(self, mask: Tensor) -> None:
        """mask: (d_out, d_in) bool. Raises PatternError."""
        if mask.shape != self.weight.shape or mask.dtype != torch.bool:
            expected = tuple(self.weight.shape)
            raise PatternError(f"mask is {tuple(mask.shape)} {mask.dtype}, expected {expected} torch.bool")
        self.mask = mask.to(self.weight.device)

    def prune(self, sparsity: float) -> None:
        """Keep the blocks of largest mean magnitude, a share 1 - sparsity of them. Raises PatternError."""
        if not 0 <= sparsity <= 1:
            raise PatternError(f"sparsity is {sparsity}, expected 0 to 1")
        r, c = self.granularity
        rows, columns = self.weight.shape
        size = self.weight.detach().abs()
        padded = F.pad(size, (0, -columns % c, 0, -rows % r))
        blocks = padded.view(padded.shape[0] // r, r, padded.shape[1] // c, c).sum((1, 3))
        keep = round(blocks.numel() * (1 - sparsity))
        kept = torch.zeros(blocks.numel(), dtype=torch.bool, device=size.device)
        kept[blocks.reshape(-1).topk(keep).indices] = True
        wide = kept.view(blocks.shape).repeat_interleave(r, 0).repeat_interleave(c, 1)
        self.set_mask(wide[:rows, :columns].contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., d_in); returns (..., d_out)."""
        if x.shape[-1] != self.weight.shape[1]:
            raise ShapeError(f"x is {tuple(x.shape)}, expected (..., {self.weight.shape[1]})")
        rows = x.reshape(-1, x.shape[-1])
        masked = torch.where(self.mask, self.weight.detach(), 0)
        # The product is taken transposed: the sparse weight on the left, tokens along contiguous columns.
        plan = ops.make_plan(masked, rows.detach().t())
        if plan.micro_tile is None:
            y = ops.linear(rows, torch.where(self.mask, self.weight, 0), self.bias)
        else:
            index = TileIndex.from_mask(self.mask, plan.micro_tile, plan.backend)
            y = _MaskedLinear.apply(rows, self.weight, self.bias, index, plan.backend)
        return y.view(*x.shape[:-1], -1)


class _MaskedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, index: TileIndex, backend: str) -> Tensor:
        columns = x.t().contiguous()
        valued = _masked_values(index, weight, backend)
        ctx.save_for_backward(columns, weight)
        ctx.index, ctx.valued, ctx.backend = index, valued, backend
        return ops.times(valued, columns, backend).t() + bias

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dy = grads[0]
        columns, _ = ctx.saved_tensors
        needs, backend = ctx.needs_input_grad, ctx.backend
        flat = dy.t().contiguous()
        dx = ops.times(ops.transposed(ctx.valued, backend), flat, backend).t() if needs[0] else None
        # By the mask's own ones: a weight that happens to be 0 inside the mask has a gradient.
        dw = ops.sample(ctx.index, flat, columns, "dense", backend) if needs[1] else None
        return dx, dw, dy.sum(0) if needs[2] else None, None, None


def _masked_values(index: TileIndex, weight: Tensor, backend: str) -> TileIndex:
    """The mask's index with the weights as values, zero where a micro-tile's element is masked."""
    assert index.values is not None
    valued = ops.with_values(index, weight, backend)
    assert valued.values is not None
    return replace(valued, values=torch.where(index.values.bool(), valued.values, 0))


# ------------------------------------------------------------------------------------------- ragged sequences


class RaggedEncoderLayer(nn.Module):
    """A post-norm transformer encoder layer, as BERT's, on the real tokens of a batch only.

    Same parameters and arithmetic as `nn.TransformerEncoderLayer(d, heads, hidden, activation="gelu")` without
    dropout; `load_dense` takes that module's weights.
    """

    def __init__(self, d: int, heads: int, hidden: int) -> None:
        super().__init__()
        if d % heads:
            raise ShapeError(f"d is {d}, expected a multiple of the {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(d, 3 * d)
        self.out = nn.Linear(d, d)
        self.w_in, self.w_out = nn.Linear(d, hidden), nn.Linear(hidden, d)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)

    @torch.no_grad()
    def load_dense(self, layer: nn.TransformerEncoderLayer) -> None:
        """Copy the weights of a dense layer of the same sizes."""
        attention_in = layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias
        for ours, theirs in (
            (self.out, layer.self_attn.out_proj),
            (self.w_in, layer.linear1),
            (self.w_out, layer.linear2),
            (self.norm1, layer.norm1),
            (self.norm2, layer.norm2),
        ):
            ours.weight.copy_(theirs.weight)
            ours.bias.copy_(theirs.bias)
        self.qkv.weight.copy_(attention_in[0])
        self.qkv.bias.copy_(attention_in[1])

    def forward(self, r: Ragged) -> Ragged:
        """r: a batch of items of d features."""
        x = r.values
        x = self.norm1(x + _through(self.out, self._attend(_through(self.qkv, x), r)))
        x = self.norm2(x + _through(self.w_out, F.gelu(_through(self.w_in, x))))
        return r.with_values(x)

    def _attend(self, qkv: Tensor, r: Ragged) -> Tensor:
        tokens, width = qkv.shape[0], qkv.shape[1] // 3
        if not tokens:
            return qkv[:, :width]
        parts = []
        # Items of one length are attended together; a score is never computed for padding.
        lengths = r.lengths
        values, inverse = torch.unique(lengths, return_inverse=True)
        offsets = r.offsets[:-1]
        places = []
        for number, length in enumerate(values.tolist()):
            if not length:
                continue
            starts = offsets[inverse == number]
            rows = (starts[:, None] + torch.arange(length, device=starts.device)).reshape(-1)
            taken = qkv.index_select(0, rows).view(starts.numel(), length, 3, self.heads, -1)
            q, k, v = taken.permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v)
            parts.append(y.transpose(1, 2).reshape(-1, width))
            places.append(rows)
        return torch.zeros_like(qkv[:, :width]).index_copy(0, torch.cat(places), torch.cat(parts))


def _through(layer: nn.Linear, x: Tensor) -> Tensor:
    return ops.linear(x, layer.weight, layer.bias)
