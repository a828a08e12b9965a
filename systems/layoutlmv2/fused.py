"""Attention with the relative bias in one Triton kernel each way: no (B, H, L, L) tensor is ever held.

Scores are made a tile at a time, as in FlashAttention; each adds three entries of the expanded tables, found by the
difference of two coordinates. Going back, a tile's score gradients are added into the tables' gradients by the same
differences, atomically, so the last bits of the tables' gradients may differ from run to run.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from systems.layoutlmv2.attention import RelativeBias
from systems.layoutlmv2.config import InputError

TILE = 32
NEVER = -1.0e30


def fused_attention(q: Tensor, k: Tensor, v: Tensor, bias: RelativeBias) -> Tensor:
    """q, k, v: (B, H, L, d), d a power of two of at least 16 -> (B, H, L, d). Raises InputError.

    Every row needs a key that its mask keeps. Gradients flow to q, k, v and the tables. Runs on a GPU, or anywhere
    with TRITON_INTERPRET=1.
    """
    size = q.shape[-1]
    if bias.one is None or bias.x is None or bias.y is None:
        raise InputError("the fused kernel needs all three tables: use 'flex' or 'sdpa' for a model that lacks one")
    if size < 16 or size & (size - 1):
        raise InputError(f"heads of {size} values, expected a power of two of at least 16 for the fused kernel")
    out: Tensor = _Fused.apply(
        q, k, v, bias.one, bias.x, bias.y, *(at.to(torch.int32).contiguous() for at in (bias.pos, bias.left, bias.low)),
        bias.mask.to(torch.int8).contiguous(),
    )  # fmt: skip
    return out


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, one: Tensor, x: Tensor, y: Tensor, pos: Tensor, left: Tensor,
        low: Tensor, keep: Tensor,
    ) -> Tensor:  # fmt: skip
        q, k, v, one, x, y = (t.contiguous() for t in (q, k, v, one, x, y))
        batch, heads, length, size = q.shape
        out = torch.empty_like(q)
        norm = torch.empty(batch, heads, length, dtype=torch.float32, device=q.device)
        from systems.layoutlmv2.fused_kernels import forward_kernel

        forward_kernel[(-(-length // TILE), batch * heads)](
            q, k, v, one, x, y, pos, left, low, keep, out, norm, 1 / math.sqrt(size), length, heads, one.shape[1],
            x.shape[1], SIZE=size, TILE=TILE, NEVER=NEVER,
        )  # fmt: skip
        ctx.save_for_backward(q, k, v, one, x, y, pos, left, low, keep, out, norm)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        q, k, v, one, x, y, pos, left, low, keep, out, norm = ctx.saved_tensors
        grad = grads[0].contiguous()
        batch, heads, length, size = q.shape
        dq = torch.zeros_like(q, dtype=torch.float32)
        dk, dv = torch.empty_like(k), torch.empty_like(v)
        tables = [torch.zeros_like(t, dtype=torch.float32) for t in (one, x, y)]
        delta = (grad.float() * out.float()).sum(-1).contiguous()
        from systems.layoutlmv2.fused_kernels import backward_kernel

        backward_kernel[(-(-length // TILE), batch * heads)](
            q, k, v, one, x, y, pos, left, low, keep, grad, norm, delta, dq, dk, dv, *tables, 1 / math.sqrt(size),
            length, heads, one.shape[1], x.shape[1], SIZE=size, TILE=TILE, NEVER=NEVER,
        )  # fmt: skip
        dtables = [total.to(t.dtype) for total, t in zip(tables, (one, x, y), strict=True)]
        return dq.to(q.dtype), dk, dv, *dtables, None, None, None, None
