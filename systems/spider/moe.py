"""Mixtures of experts that pad nothing and drop no token: `moe_ffn` and the `MoE` module.

Routing is the sparse operand of "et,tk,ekn->tn": for each expert the tokens that it was given are a list, the
condensed axis is that of the tokens, and the result is scattered back to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from systems.spider import cpu, torch_backend
from systems.spider.index import TileIndex
from systems.spider.rules import DtypeError, PatternError, ShapeError

__all__ = ["MoE", "moe_ffn"]

Activation = Literal["relu", "gelu", "silu", "swiglu"]


def _swiglu(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "swiglu": _swiglu,
}
NATIVE_ROWS = 4096  # tokens of all experts up to which gathering inside the kernel beats a product an expert


def moe_ffn(
    x: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    expert_ids: Tensor,
    weights: Tensor,
    activation: Activation = "relu",
) -> Tensor:
    """Each token through its experts: sum over j of weights[t, j] * act(x[t] w_in[e]) w_out[e], e = ids[t, j].

    x: (T, D); w_in: (E, D, H), for swiglu (E, D, 2H) as gate and up; w_out: (E, H, D); expert_ids: (T, k) int;
    weights: (T, k). Returns (T, D). Differentiable in x, w_in, w_out and weights; sums are in a fixed order.
    Raises ShapeError, DtypeError, PatternError for an unknown activation, RoutingError for an expert that is not there.
    """
    if activation not in ACTIVATIONS:
        raise PatternError(f"activation is {activation!r}, expected one of {', '.join(ACTIVATIONS)}")
    experts, d, wide = w_in.shape if w_in.ndim == 3 else (0, 0, 0)
    hidden = wide // 2 if activation == "swiglu" else wide
    fits = x.ndim == 2 and x.shape[1] == d and tuple(w_out.shape) == (experts, hidden, d)
    if not fits or expert_ids.ndim != 2 or expert_ids.shape != weights.shape or expert_ids.shape[0] != x.shape[0]:
        raise ShapeError(
            f"x {tuple(x.shape)}, w_in {tuple(w_in.shape)}, w_out {tuple(w_out.shape)}, ids "
            f"{tuple(expert_ids.shape)}, weights {tuple(weights.shape)}: expected (T, D), (E, D, H), (E, H, D), (T, k)"
        )
    if not x.dtype == w_in.dtype == w_out.dtype or not x.is_floating_point():
        raise DtypeError(f"x is {x.dtype}, w_in {w_in.dtype}, w_out {w_out.dtype}, expected one floating dtype")
    index = TileIndex.from_experts(expert_ids, experts)
    choices = expert_ids.shape[1]
    slots = index.indices
    if not slots.numel():
        return x.new_zeros(x.shape) + 0 * x
    tokens = (slots // choices).to(torch.int32)
    own = torch.arange(slots.numel(), dtype=torch.int32, device=x.device)
    inner = ACTIVATIONS[activation](_Grouped.apply(x, w_in, index.offsets, tokens))
    outer = _Grouped.apply(inner, w_out, index.offsets, own)
    # Back to the order of the tokens; the choices of one token are added in their own order.
    back = torch.empty_like(slots, dtype=torch.int64)
    back[slots.long()] = torch.arange(slots.numel(), device=x.device)
    chosen = outer.index_select(0, back).view(x.shape[0], choices, d)
    return (chosen * weights.to(x.dtype)[:, :, None]).sum(1)


class _Grouped(torch.autograd.Function):
    """out[j] = x[rows[j]] @ w[e] for the entries j of expert e."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, offsets: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(x, w, offsets, rows)
        return _grouped(x, w, offsets, rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        x, w, offsets, rows = ctx.saved_tensors
        dx = dw = None
        dy = dy.contiguous()
        if ctx.needs_input_grad[0]:
            own = torch.arange(rows.numel(), dtype=torch.int32, device=x.device)
            dx = torch.zeros_like(x).index_add_(0, rows, torch_backend.grouped(offsets, own, dy, w.transpose(1, 2)))
        if ctx.needs_input_grad[1]:
            dw = torch.zeros_like(w)
            gathered = x.index_select(0, rows)
            bounds = offsets.tolist()
            for expert in range(w.shape[0]):
                begin, end = bounds[expert], bounds[expert + 1]
                if begin < end:
                    torch.mm(gathered[begin:end].t(), dy[begin:end], out=dw[expert])
        return dx, dw, None, None


def _grouped(x: Tensor, w: Tensor, offsets: Tensor, rows: Tensor) -> Tensor:
    native = x.dtype == torch.float32 and x.device.type == "cpu" and cpu.available()
    if native and rows.numel() <= NATIVE_ROWS and x.stride(1) == 1 and w.stride(2) == 1:
        return cpu.grouped(offsets, rows, x.detach(), w.detach())
    return torch_backend.grouped(offsets, rows, x, w)


class MoE(nn.Module):
    """A router and its experts: (T, d) to (T, d) and the load of each expert. No token is dropped."""

    def __init__(self, d: int, hidden: int, experts: int, top_k: int = 1, activation: Activation = "relu") -> None:
        super().__init__()
        if not 1 <= top_k <= experts:
            raise ShapeError(f"top_k is {top_k}, expected 1 to the {experts} experts")
        self.top_k, self.activation = top_k, activation
        self.router = nn.Linear(d, experts, bias=False)
        self.w_in = nn.Parameter(torch.randn(experts, d, 2 * hidden if activation == "swiglu" else hidden) / d**0.5)
        self.w_out = nn.Parameter(torch.randn(experts, hidden, d) / hidden**0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: (..., d). Returns y of that shape and the (experts,) int64 number of tokens that each was given."""
        flat = x.reshape(-1, x.shape[-1])
        weights, ids = torch.softmax(self.router(flat), -1).topk(self.top_k, -1)
        y = moe_ffn(flat, self.w_in, self.w_out, ids, weights, self.activation)
        return y.view(x.shape), torch.bincount(ids.reshape(-1), minlength=self.w_in.shape[0])
