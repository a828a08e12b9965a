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
from torch.distributed import ProcessGroup

from systems.spider import cpu, exchange, torch_backend
from systems.spider.index import TileIndex, row_major
from systems.spider.ops import kernels, runnable
from systems.spider.rules import DtypeError, PatternError, ShapeError

__all__ = ["MoE", "distributed_moe_ffn", "moe_ffn"]

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
    # Where each choice of each token stands among the entries.
    places = torch.empty_like(slots, dtype=torch.int64)
    places[slots.long()] = torch.arange(slots.numel(), device=x.device)
    places = places.view(-1, choices)
    inner = ACTIVATIONS[activation](_Grouped.apply(x, w_in, index.offsets, tokens, places))
    outer = each_with_its_expert(inner, w_out, index.offsets)
    # Back to the order of the tokens; the choices of one token are added in their own order.
    chosen = outer.index_select(0, places.view(-1)).view(x.shape[0], choices, d)
    return (chosen * weights.to(x.dtype)[:, :, None]).sum(1)


def each_with_its_expert(x: Tensor, w: Tensor, offsets: Tensor) -> Tensor:
    """x[j] @ w[e] for the rows j of offsets[e] .. offsets[e + 1]; differentiable once. x: (n, D), w: (E, D, H)."""
    own = torch.arange(x.shape[0], device=x.device)
    return _Grouped.apply(x, w, offsets, own.to(torch.int32), own[:, None])


class _Grouped(torch.autograd.Function):
    """out[j] = x[rows[j]] @ w[e] for the entries j of expert e. places: (len(x), c), the c entries that use a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, offsets: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(x, w, offsets, rows, places)
        return grouped(offsets, rows, x, w)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dy = grads[0].contiguous()
        x, w, offsets, rows, places = ctx.saved_tensors
        dx = dw = None
        if ctx.needs_input_grad[0]:
            own = torch.arange(rows.numel(), dtype=torch.int32, device=x.device)
            # A gather and a sum, not index_add, whose order on a GPU is open.
            each = grouped(offsets, own, dy, w.transpose(1, 2))
            dx = each.index_select(0, places.view(-1)).view(*places.shape, -1).sum(1)
        if ctx.needs_input_grad[1]:
            dw = _outer(offsets, rows, x, dy)
        return dx, dw, None, None, None


def grouped(offsets: Tensor, rows: Tensor, x: Tensor, w: Tensor) -> Tensor:
    """out[j] = x[rows[j]] @ w[e] for the entries j of offsets[e] .. offsets[e + 1], by the device and dtype of x.

    offsets: (E + 1,) int64; rows: (n,) int32; x: (T, depth); w: (E, depth, columns). Returns (n, columns). No gradient.
    """
    x, w = x.detach(), w.detach()
    if _on_gpu(x):
        return kernels("triton").grouped(offsets, rows, row_major(x), w)
    if x.dtype == torch.float16 and x.device.type == "cpu":  # there a product in float16 takes twenty times as long
        return grouped(offsets, rows, x.float(), w.float()).to(x.dtype)
    native = x.dtype == torch.float32 and x.device.type == "cpu" and cpu.available()
    if native and rows.numel() <= NATIVE_ROWS and x.stride(1) == 1 and w.stride(2) == 1:
        return cpu.grouped(offsets, rows, x, w)
    return torch_backend.grouped(offsets, rows, x, w)


def _outer(offsets: Tensor, rows: Tensor, x: Tensor, dy: Tensor) -> Tensor:
    """(E, depth, columns): the gradient of w."""
    if _on_gpu(x):
        return kernels("triton").grouped_outer(offsets, rows, row_major(x), dy)
    if x.dtype == torch.float16 and x.device.type == "cpu":
        return _outer(offsets, rows, x.float(), dy.float()).to(x.dtype)
    return torch_backend.grouped_outer(offsets, rows, x, dy)


def _on_gpu(x: Tensor) -> bool:
    return x.is_cuda and runnable(x.dtype)


def distributed_moe_ffn(
    x: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    expert_ids: Tensor,
    weights: Tensor,
    activation: Activation,
    group: ProcessGroup,
) -> Tensor:
    """`moe_ffn` over ranks: w_in and w_out are the E / ranks experts of this one, expert_ids count all E.

    x: (T, D) this rank's tokens, of which each rank may have another number. Rows travel to their experts and back by
    two all-to-alls of exactly those rows. Differentiable; every rank must call it, and its backward, alike.
    Raises as `moe_ffn` does.
    """
    if activation not in ACTIVATIONS:
        raise PatternError(f"activation is {activation!r}, expected one of {', '.join(ACTIVATIONS)}")
    choices = expert_ids.shape[1]
    index = TileIndex.from_experts(expert_ids, w_in.shape[0] * group.size())
    slots = index.indices.long()
    trip = exchange.plan_trip(index.offsets.diff(), group)
    arrived = exchange.travel(x.index_select(0, slots // choices), trip)
    inner = ACTIVATIONS[activation](each_with_its_expert(arrived, w_in, trip.offsets))
    back = exchange.travel(each_with_its_expert(inner, w_out, trip.offsets), trip, home=True)
    places = torch.empty_like(slots)
    places[slots] = torch.arange(slots.numel(), device=x.device)
    chosen = back.index_select(0, places).view(x.shape[0], choices, x.shape[1])
    return (chosen * weights.to(x.dtype)[:, :, None]).sum(1)


class MoE(nn.Module):
    """A router and its experts: (T, d) to (T, d) and the load of each expert. No token is dropped.

    process_group: the ranks that share the experts evenly, each with tokens of its own; the load is of these tokens.
    The router is on every rank, so its gradients are to be summed as those of any replicated layer.
    """

    def __init__(
        self,
        d: int,
        hidden: int,
        experts: int,
        top_k: int = 1,
        activation: Activation = "relu",
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= top_k <= experts:
            raise ShapeError(f"top_k is {top_k}, expected 1 to the {experts} experts")
        self.top_k, self.activation, self.experts, self.group = top_k, activation, experts, process_group
        self.router = nn.Linear(d, experts, bias=False)
        # All are drawn on every rank, so that one seed gives one layer however many share it.
        here = exchange.own_experts(experts, process_group) if process_group is not None else slice(None)
        wide = 2 * hidden if activation == "swiglu" else hidden
        self.w_in = nn.Parameter(torch.randn(experts, d, wide)[here] / d**0.5)
        self.w_out = nn.Parameter(torch.randn(experts, hidden, d)[here] / hidden**0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: (..., d). Returns y of that shape and the (experts,) int64 number of tokens that each was given."""
        flat = x.reshape(-1, x.shape[-1])
        weights, ids = torch.softmax(self.router(flat), -1).topk(self.top_k, -1)
        if self.group is None:
            y = moe_ffn(flat, self.w_in, self.w_out, ids, weights, self.activation)
        else:
            y = distributed_moe_ffn(flat, self.w_in, self.w_out, ids, weights, self.activation, self.group)
        flat_ids = ids.reshape(-1)
        load = torch.zeros(self.experts, dtype=torch.int64, device=x.device)
        return y.view(x.shape), load.index_add_(0, flat_ids, torch.ones_like(flat_ids))
