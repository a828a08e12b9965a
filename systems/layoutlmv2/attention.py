"""Spatial-aware attention: relative buckets as an exact integer table, the bias built once, and four ways to attend.

    spatial = SpatialBias(cfg)
    bias = spatial(pos, box, mask)                  # (B, H, L, L), shared by all layers; its tables are trained
    attend(q, k, v, bias)                           # (B, H, L, d)
    attend(q, k, v, spatial.relative(pos, box, mask), backend="flex")   # no (B, H, L, L) tensor exists

The score of query i and key j is q_i.k_j / sqrt(d) + one[p_j - p_i] + x[x_j - x_i] + y[y_j - y_i], where p is the
position, x the left edge and y the bottom edge (section 2.2 of the paper; the public weights use the bottom).
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from systems import native
from systems.layoutlmv2.config import GRID, Config, InputError

Backend = Literal["auto", "sdpa", "math", "flex", "triton"]
BACKENDS = ("auto", "sdpa", "math", "flex", "triton")


def bucket_table(buckets: int, farthest: int, reach: int) -> Tensor:
    """(2 * reach + 1,) int64: the bucket of every difference -reach..reach, by exact integer arithmetic.

    Half of the buckets are for positive differences. A quarter hold one distance each, from there on their edges grow
    as powers up to `farthest`: n lies in bucket `exact + k` when (n / exact)^steps >= (farthest / exact)^k, which is
    compared in whole numbers, so no rounding of a logarithm can move an edge. Raises InputError.
    """
    if buckets < 4 or buckets % 4 or farthest <= buckets // 4 or reach < 1:
        raise InputError(
            f"{buckets} buckets up to {farthest} with reach {reach}: expected a multiple of 4 buckets, and more "
            "distances than a quarter of them"
        )
    half, exact = buckets // 2, buckets // 4
    steps = half - exact
    found = []
    k = 0
    for n in range(reach + 1):
        if n < exact:
            found.append(n)
            continue
        while k < steps - 1 and n**steps * exact ** (k + 1) >= farthest ** (k + 1) * exact**steps:
            k += 1
        found.append(exact + k)
    sizes = torch.tensor(found, dtype=torch.int64)
    return torch.cat([sizes[1:].flip(0), sizes[:1], sizes[1:] + half])


@lru_cache(maxsize=32)
def _cached_buckets(buckets: int, farthest: int, reach: int) -> Tensor:
    return bucket_table(buckets, farthest, reach)


class RelativeTable(nn.Module):
    """weight: (heads, buckets), the bias of a head by the bucket of a difference."""

    bucket: Tensor

    def __init__(self, heads: int, buckets: int, farthest: int, reach: int, std: float) -> None:
        super().__init__()
        self.reach = reach
        self.weight = nn.Parameter(torch.randn(heads, buckets) * std)
        self.register_buffer("bucket", _cached_buckets(buckets, farthest, reach).clone(), persistent=False)

    def forward(self) -> Tensor:
        """(heads, 2 * reach + 1): the bias by the difference itself."""
        return self.weight[:, self.bucket]


@dataclass(frozen=True)
class RelativeBias:
    """The bias as coordinates and tables by difference; a part that a model lacks is None.

    one: (H, 2 * reach + 1); x, y: (H, 2 * reach + 1); pos, left, low: (B, L) int; mask: (B, L) bool, True for keys.
    """

    pos: Tensor
    left: Tensor
    low: Tensor
    mask: Tensor
    heads: int
    one: Tensor | None
    x: Tensor | None
    y: Tensor | None

    def parts(self) -> list[tuple[Tensor, Tensor]]:
        """(table by difference, coordinates) of each part that there is."""
        pairs = [(self.one, self.pos), (self.x, self.left), (self.y, self.low)]
        return [(table, at) for table, at in pairs if table is not None]

    def dense(self) -> Tensor:
        """(B, H, L, L), -inf at padding keys, by plain indexing. The reference of the faster ways."""
        total: Tensor | None = None
        for table, at in self.parts():
            difference = at[:, None, :] - at[:, :, None] + table.shape[1] // 2
            part = table[:, difference].transpose(0, 1)
            total = part if total is None else total + part
        if total is None:
            batch, length = self.mask.shape
            total = torch.zeros(batch, 1, length, length, device=self.mask.device)
        return total.masked_fill(~self.mask[:, None, None, :], -math.inf)


class SpatialBias(nn.Module):
    """The three tables of a model and the bias that they make for a batch; see `RelativeBias` for the parts."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.heads = cfg.heads
        std = cfg.initializer_range
        if cfg.relative_bias:
            reach = max(cfg.max_positions, cfg.visual_tokens)
            self.rel_pos_bias = RelativeTable(cfg.heads, cfg.rel_pos_bins, cfg.max_rel_pos, reach, std)
        if cfg.spatial_bias and cfg.layout:
            sizes = (cfg.heads, cfg.rel_2d_pos_bins, cfg.max_rel_2d_pos, GRID, std)
            self.rel_pos_x_bias = RelativeTable(*sizes)
            self.rel_pos_y_bias = RelativeTable(*sizes)

    def relative(self, pos: Tensor, box: Tensor, mask: Tensor) -> RelativeBias:
        """The bias without its (B, H, L, L) tensor. pos: (B, L) int; box: (B, L, 4) int; mask: (B, L) bool."""
        tables = [self._table(name)() if self._table(name) else None for name in ("pos", "pos_x", "pos_y")]
        return RelativeBias(pos, box[..., 0], box[..., 3], mask, self.heads, *tables)

    def _table(self, name: str) -> Any:
        return getattr(self, f"rel_{name}_bias", None)

    def forward(self, pos: Tensor, box: Tensor, mask: Tensor) -> Tensor:
        """(B, H, L, L), -inf at the keys that `mask` leaves out; H is 1 in a model without any table."""
        tables = [self._table(name) for name in ("pos", "pos_x", "pos_y")]
        if not all(tables) or torch.compiler.is_compiling():
            return self.relative(pos, box, mask).dense()
        one, x, y = tables
        bias: Tensor = _Bias.apply(
            pos, box[..., 0], box[..., 3], mask, one.weight, x.weight, y.weight, one.bucket, x.bucket
        )
        return bias


class _Bias(torch.autograd.Function):
    """The dense bias from three tables, with gradients for the tables.

    Indexing's own backward scatters each of the B x H x L x L gradients three times. Here they are summed by
    difference in one pass (a kernel on the CPU, `bincount` elsewhere), and the sums folded by bucket.
    """

    @staticmethod
    def forward(
        ctx: Any, pos: Tensor, left: Tensor, low: Tensor, mask: Tensor, one: Tensor, x: Tensor, y: Tensor,
        bucket1: Tensor, bucket2: Tensor,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(pos, left, low, mask, bucket1, bucket2)
        ctx.buckets, ctx.dtype = (one.shape[1], x.shape[1]), one.dtype
        return dense_bias(pos, left, low, mask, one[:, bucket1], x[:, bucket2], y[:, bucket2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        pos, left, low, mask, bucket1, bucket2 = ctx.saved_tensors
        sums = difference_sums(grads[0], pos, left, low, mask, bucket1.numel() // 2, bucket2.numel() // 2)
        tables = []
        for total, bucket, count in zip(
            sums, (bucket1, bucket2, bucket2), (ctx.buckets[0], ctx.buckets[1], ctx.buckets[1]), strict=True
        ):
            grad = total.new_zeros(total.shape[0], count).index_add_(1, bucket, total)
            tables.append(grad.to(ctx.dtype))
        return None, None, None, None, *tables, None, None


def dense_bias(
    pos: Tensor, left: Tensor, low: Tensor, mask: Tensor, one: Tensor, x: Tensor, y: Tensor, use_kernel: bool = True
) -> Tensor:
    """(B, H, L, L) of `one`, `x`, `y` (H, differences): by the kernel on a CPU in float32, else by indexing."""
    kernels = _kernels() if use_kernel and one.device.type == "cpu" and one.dtype == torch.float32 else None
    if kernels is None:
        return RelativeBias(pos, left, low, mask, one.shape[0], one, x, y).dense()
    batch, length = pos.shape
    out = torch.empty(batch, one.shape[0], length, length)
    at = [_ints(t) for t in (pos, left, low)]
    keep = mask.to(torch.uint8).contiguous()
    tables = [t.contiguous() for t in (one, x, y)]
    kernels.bias_forward(
        *map(_pointer, (*tables, *at, keep, out)), batch, one.shape[0], length, one.shape[1] // 2, x.shape[1] // 2,
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def difference_sums(
    grad: Tensor, pos: Tensor, left: Tensor, low: Tensor, mask: Tensor, reach1: int, reach2: int,
    use_kernel: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients (B, H, L, L) summed by difference: (H, 2 * reach + 1) float64 for positions, left and bottom edges."""
    batch, heads, length, _ = grad.shape
    widths = (2 * reach1 + 1, 2 * reach2 + 1, 2 * reach2 + 1)
    kernels = _kernels() if use_kernel and grad.device.type == "cpu" and grad.dtype == torch.float32 else None
    if kernels is not None:
        one, x, y = (torch.empty(heads, width, dtype=torch.float64) for width in widths)
        at = [_ints(t) for t in (pos, left, low)]
        values, keep = grad.contiguous(), mask.to(torch.uint8).contiguous()
        kernels.bias_backward(
            *map(_pointer, (values, *at, keep, one, x, y)), batch, heads, length, reach1, reach2,
            torch.get_num_threads(),
        )  # fmt: skip
        return one, x, y
    kept = grad.masked_fill(~mask[:, None, None, :], 0.0)
    values = kept.transpose(0, 1).reshape(heads, -1).to(torch.float64)
    sums = []
    for at_, width in zip((pos, left, low), widths, strict=True):
        index = (at_[:, None, :] - at_[:, :, None] + width // 2).reshape(-1)
        sums.append(torch.stack([torch.bincount(index, weights=row, minlength=width) for row in values]))
    return sums[0], sums[1], sums[2]


@lru_cache(maxsize=1)
def _kernels() -> ctypes.CDLL | None:
    library = native.load(Path(__file__).with_name("kernels.c"), name="layoutlmv2", contract=False)
    if library is not None:
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        for kernel in (library.bias_forward, library.bias_backward):
            kernel.argtypes = [pointer] * 8 + [size] * 5 + [ctypes.c_int]
            kernel.restype = None
    return library


def _ints(at: Tensor) -> Tensor:
    return at.to(torch.int32).contiguous()


def _pointer(tensor: Tensor) -> int:
    return tensor.data_ptr()


# ------------------------------------------------------------------------------------------------ attending


def attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | RelativeBias, backend: Backend = "auto", dropout: float = 0.0
) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v. q, k, v: (B, H, L, d); bias: (B, H or 1, L, L), or a `RelativeBias`.

    "auto" is "sdpa". "flex" and "triton" never hold a (B, H, L, L) tensor, so they take a `RelativeBias`, without
    dropout. Raises InputError on an unknown backend, or a bias that the backend cannot take.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend {backend!r}, expected one of {', '.join(BACKENDS)}")
    if backend in ("flex", "triton"):
        if not isinstance(bias, RelativeBias):
            raise InputError(f"backend {backend!r} reads the tables by difference: give it SpatialBias.relative(...)")
        if dropout:
            raise InputError(f"backend {backend!r} has no dropout: use 'sdpa', or set attention_dropout to 0")
        if backend == "flex":
            return _flex(q, k, v, bias)
        from systems.layoutlmv2.fused import fused_attention

        return fused_attention(q, k, v, bias)
    dense = bias.dense() if isinstance(bias, RelativeBias) else bias
    dense = dense.to(q.dtype)
    if backend == "math":
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + dense, -1)
        return F.dropout(weights, dropout) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=dense, dropout_p=dropout)


def score_modification(bias: RelativeBias) -> Any:
    """FlexAttention's `score_mod` that reads the tables by coordinate difference."""
    parts = [(table.contiguous(), at.contiguous()) for table, at in bias.parts()]
    mask = bias.mask.contiguous()

    def modify(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        for table, at in parts:
            score = score + table[h, at[b, j] - at[b, i] + table.shape[1] // 2]
        return torch.where(mask[b, j], score, -math.inf)

    return modify


def _flex(q: Tensor, k: Tensor, v: Tensor, bias: RelativeBias) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    run = flex_attention if torch.compiler.is_compiling() else _compiled_flex()
    out = run(q, k, v, score_mod=score_modification(bias))
    assert isinstance(out, Tensor)
    return out


@lru_cache(maxsize=1)
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)
