"""Attention over gathered key lists on a GPU: FlashAttention's loop (Dao, arXiv 2307.08691) over what a block may see.

Queries are cut into blocks, each with the list of the keys that any of them may see; the backward pass of keys and
values walks the transposed lists (for a block of keys, the queries that see any of them), so that each gradient is
one sum in one order and needs no atomics. Importing this module imports triton.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from systems.spider import gpu

LOG2E = 1.4426950408889634


@dataclass(frozen=True, eq=False)
class Seen:
    """Which keys a query may see, as `attention` states it. spread: (S,) bool; mask: (1 or B, S, S) bool or None."""

    size: int
    window: int | None
    spread: Tensor
    mask: Tensor | None
    lengths: Tensor | None
    causal: bool


@dataclass(frozen=True, eq=False)
class Lists:
    """blocks: (n, rows) int32 positions, -1 past the end; starts, ends: (items * n,) int64 into `listed`, int32."""

    blocks: Tensor
    starts: Tensor
    ends: Tensor
    listed: Tensor
    per_item: bool


def tile(dtype: torch.dtype) -> tuple[int, int, int, int]:
    """Queries (in the transposed lists keys) that share a list, entries of a list taken at once, warps and stages.

    float32 is multiplied without the matrix units, element by element in registers, of which larger tiles run out.
    """
    return (32, 16, 8, 1) if dtype == torch.float32 else (64, 32, 4, 2)


@triton.jit
def visible(
    i: tl.tensor,
    j: tl.tensor,
    spread: tl.tensor,
    mask: tl.tensor,
    length: tl.tensor,
    window: tl.tensor,
    size: tl.tensor,
    WINDOW: tl.constexpr,
    CAUSAL: tl.constexpr,
    MASKED: tl.constexpr,
) -> tl.tensor:
    # (queries, keys): whether query i may see key j; -1 pads both.
    real_i, real_j = (i >= 0) & (i < length), (j >= 0) & (j < length)
    ok = real_i[:, None] & real_j[None, :]
    if WINDOW:
        apart = i[:, None] - j[None, :]
        wide_i = tl.load(spread + i, mask=real_i, other=0) != 0
        wide_j = tl.load(spread + j, mask=real_j, other=0) != 0
        ok = ok & (((apart <= window) & (apart >= -window)) | wide_i[:, None] | wide_j[None, :])
    if CAUSAL:
        ok = ok & (j[None, :] <= i[:, None])
    if MASKED:
        ok = ok & (tl.load(mask + i[:, None].to(tl.int64) * size + j[None, :], mask=ok, other=0) != 0)
    return ok


@triton.jit
def rows_of(
    x: tl.tensor, at: tl.tensor, live: tl.tensor, width: tl.tensor, WIDTH: tl.constexpr, UPCAST: tl.constexpr
) -> tl.tensor:
    column = tl.arange(0, WIDTH)
    inside = live[:, None] & (column < width)[None, :]
    rows = tl.load(x + at[:, None].to(tl.int64) * width + column[None, :], mask=inside, other=0)
    return rows.to(tl.float32) if UPCAST else rows


@triton.jit
def attention_kernel(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    out: tl.tensor,
    logs: tl.tensor,
    blocks: tl.tensor,
    starts: tl.tensor,
    ends: tl.tensor,
    listed: tl.tensor,
    spread: tl.tensor,
    mask: tl.tensor,
    mask_stride: tl.tensor,
    lengths: tl.tensor,
    number: tl.tensor,
    heads: tl.tensor,
    size: tl.tensor,
    width: tl.tensor,
    value_width: tl.tensor,
    window: tl.tensor,
    scale: tl.tensor,
    ROWS: tl.constexpr,
    LISTED: tl.constexpr,
    WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    PER_ITEM: tl.constexpr,
    WINDOW: tl.constexpr,
    CAUSAL: tl.constexpr,
    MASKED: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    block = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    item = head // heads if PER_ITEM else head * 0
    length = tl.load(lengths + head // heads).to(tl.int32)
    i = tl.load(blocks + block * ROWS + tl.arange(0, ROWS))
    start = tl.load(starts + item * number + block)
    count = (tl.load(ends + item * number + block) - start).to(tl.int32)
    queries = rows_of(q + head * size * width, i, i >= 0, width, WIDTH, UPCAST)
    most = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, VALUE_WIDTH], tl.float32)
    for first in tl.range(0, count, LISTED):
        entry = first + tl.arange(0, LISTED)
        j = tl.load(listed + start + entry, mask=entry < count, other=-1)
        ok = visible(i, j, spread, mask + (head // heads) * mask_stride, length, window, size, WINDOW, CAUSAL, MASKED)
        seen = tl.max(ok.to(tl.int32), 0) != 0  # NaN in what nobody sees must not reach the sums
        keys = rows_of(k + head * size * width, j, seen, width, WIDTH, UPCAST)
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
        scores = tl.where(ok, scores, float("-inf"))
        higher = tl.maximum(most, tl.max(scores, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(most - base)
        values = rows_of(v + head * size * value_width, j, seen, value_width, VALUE_WIDTH, UPCAST)
        sums = tl.dot(weights.to(values.dtype), values, sums * shrink[:, None], input_precision=PRECISION)
        total = total * shrink + tl.sum(weights, 1)
        most = higher
    some = total > 0
    sums = tl.where(some[:, None], sums / tl.where(some, total, 1.0)[:, None], 0.0)
    column = tl.arange(0, VALUE_WIDTH)
    at = out + (head * size + i[:, None]) * value_width + column[None, :]
    tl.store(at, sums.to(out.dtype.element_ty), mask=(i >= 0)[:, None] & (column < value_width)[None, :])
    # +inf where nothing is seen: its weights vanish in the backward pass.
    tl.store(logs + head * size + i, tl.where(some, most + tl.log2(total), float("inf")), mask=i >= 0)


@triton.jit
def query_gradient_kernel(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    dout: tl.tensor,
    logs: tl.tensor,
    delta: tl.tensor,
    dq: tl.tensor,
    blocks: tl.tensor,
    starts: tl.tensor,
    ends: tl.tensor,
    listed: tl.tensor,
    spread: tl.tensor,
    mask: tl.tensor,
    mask_stride: tl.tensor,
    lengths: tl.tensor,
    number: tl.tensor,
    heads: tl.tensor,
    size: tl.tensor,
    width: tl.tensor,
    value_width: tl.tensor,
    window: tl.tensor,
    scale: tl.tensor,
    ROWS: tl.constexpr,
    LISTED: tl.constexpr,
    WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    PER_ITEM: tl.constexpr,
    WINDOW: tl.constexpr,
    CAUSAL: tl.constexpr,
    MASKED: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    block = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    item = head // heads if PER_ITEM else head * 0
    length = tl.load(lengths + head // heads).to(tl.int32)
    i = tl.load(blocks + block * ROWS + tl.arange(0, ROWS))
    start = tl.load(starts + item * number + block)
    count = (tl.load(ends + item * number + block) - start).to(tl.int32)
    queries = rows_of(q + head * size * width, i, i >= 0, width, WIDTH, UPCAST)
    above = rows_of(dout + head * size * value_width, i, i >= 0, value_width, VALUE_WIDTH, UPCAST)
    log = tl.load(logs + head * size + i, mask=i >= 0, other=float("inf"))
    d = tl.load(delta + head * size + i, mask=i >= 0, other=0)
    sums = tl.zeros([ROWS, WIDTH], tl.float32)
    for first in tl.range(0, count, LISTED):
        entry = first + tl.arange(0, LISTED)
        j = tl.load(listed + start + entry, mask=entry < count, other=-1)
        ok = visible(i, j, spread, mask + (head // heads) * mask_stride, length, window, size, WINDOW, CAUSAL, MASKED)
        seen = tl.max(ok.to(tl.int32), 0) != 0
        keys = rows_of(k + head * size * width, j, seen, width, WIDTH, UPCAST)
        values = rows_of(v + head * size * value_width, j, seen, value_width, VALUE_WIDTH, UPCAST)
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
        weights = tl.where(ok, tl.exp2(scores - log[:, None]), 0.0)
        slope = tl.dot(above, tl.trans(values), input_precision=PRECISION)
        ds = weights * (slope - d[:, None])
        sums = tl.dot(ds.to(keys.dtype), keys, sums, input_precision=PRECISION)
    column = tl.arange(0, WIDTH)
    at = dq + (head * size + i[:, None]) * width + column[None, :]
    inside = (i >= 0)[:, None] & (column < width)[None, :]
    tl.store(at, (sums * (scale * 0.6931471805599453)).to(dq.dtype.element_ty), mask=inside)


@triton.jit
def key_gradient_kernel(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    dout: tl.tensor,
    logs: tl.tensor,
    delta: tl.tensor,
    dk: tl.tensor,
    dv: tl.tensor,
    blocks: tl.tensor,
    starts: tl.tensor,
    ends: tl.tensor,
    listed: tl.tensor,
    spread: tl.tensor,
    mask: tl.tensor,
    mask_stride: tl.tensor,
    lengths: tl.tensor,
    number: tl.tensor,
    heads: tl.tensor,
    size: tl.tensor,
    width: tl.tensor,
    value_width: tl.tensor,
    window: tl.tensor,
    scale: tl.tensor,
    ROWS: tl.constexpr,
    LISTED: tl.constexpr,
    WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    PER_ITEM: tl.constexpr,
    WINDOW: tl.constexpr,
    CAUSAL: tl.constexpr,
    MASKED: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    # A block of keys over the list of the queries that see any of them.
    block = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    item = head // heads if PER_ITEM else head * 0
    length = tl.load(lengths + head // heads).to(tl.int32)
    j = tl.load(blocks + block * ROWS + tl.arange(0, ROWS))
    start = tl.load(starts + item * number + block)
    count = (tl.load(ends + item * number + block) - start).to(tl.int32)
    real = (j >= 0) & (j < length)
    keys = rows_of(k + head * size * width, j, real, width, WIDTH, UPCAST)
    values = rows_of(v + head * size * value_width, j, real, value_width, VALUE_WIDTH, UPCAST)
    key_sums = tl.zeros([ROWS, WIDTH], tl.float32)
    value_sums = tl.zeros([ROWS, VALUE_WIDTH], tl.float32)
    for first in tl.range(0, count, LISTED):
        entry = first + tl.arange(0, LISTED)
        i = tl.load(listed + start + entry, mask=entry < count, other=-1)
        ok = visible(i, j, spread, mask + (head // heads) * mask_stride, length, window, size, WINDOW, CAUSAL, MASKED)
        seeing = tl.max(ok.to(tl.int32), 1) != 0
        queries = rows_of(q + head * size * width, i, seeing, width, WIDTH, UPCAST)
        above = rows_of(dout + head * size * value_width, i, seeing, value_width, VALUE_WIDTH, UPCAST)
        log = tl.load(logs + head * size + i, mask=seeing, other=float("inf"))
        d = tl.load(delta + head * size + i, mask=seeing, other=0)
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
        weights = tl.where(ok, tl.exp2(scores - log[:, None]), 0.0)
        value_sums = tl.dot(tl.trans(weights.to(above.dtype)), above, value_sums, input_precision=PRECISION)
        slope = tl.where(ok, tl.dot(above, tl.trans(values), input_precision=PRECISION), 0.0)
        ds = weights * (slope - d[:, None])
        key_sums = tl.dot(tl.trans(ds.to(queries.dtype)), queries, key_sums, input_precision=PRECISION)
    column = tl.arange(0, WIDTH)
    inside = (j >= 0)[:, None] & (column < width)[None, :]
    at = dk + (head * size + j[:, None]) * width + column[None, :]
    tl.store(at, (key_sums * (scale * 0.6931471805599453)).to(dk.dtype.element_ty), mask=inside)
    column = tl.arange(0, VALUE_WIDTH)
    inside = (j >= 0)[:, None] & (column < value_width)[None, :]
    at = dv + (head * size + j[:, None]) * value_width + column[None, :]
    tl.store(at, value_sums.to(dv.dtype.element_ty), mask=inside)


# --------------------------------------------------------------------------------------------------------- lists


def lists(seen: Seen, items: int, size: int, transposed: bool) -> Lists:
    """For each block of `size` queries the keys that any of them may see; transposed: for blocks of keys the queries.

    Global positions, which see everything, are in blocks of their own.
    """
    device = seen.spread.device
    # Stable, so that both kinds stay in order; blocks of the two kinds are kept apart by padding.
    at = torch.arange(seen.size, device=device)
    everywhere = seen.spread if seen.window is not None else torch.zeros_like(seen.spread)
    parts = [at[~everywhere], at[everywhere]]
    padded = [torch.nn.functional.pad(p, (0, -p.numel() % size), value=-1).view(-1, size) for p in parts]
    blocks = torch.cat(padded)
    live = blocks >= 0
    low = torch.where(live, blocks, seen.size).amin(1)[:, None]
    high = blocks.amax(1)[:, None]
    kept = torch.ones(blocks.shape[0], seen.size, dtype=torch.bool, device=device)
    if seen.window is not None:
        wide = (seen.spread[blocks.clamp(min=0)] & live).any(1)[:, None]
        kept = ((at >= low - seen.window) & (at <= high + seen.window)) | seen.spread | wide
    if seen.causal:
        kept = kept & ((at >= low) if transposed else (at <= high))
    per_item = seen.lengths is not None or (seen.mask is not None and seen.mask.shape[0] > 1)
    kept = kept[None].expand(items if per_item else 1, -1, -1)
    if seen.lengths is not None:
        real = at < seen.lengths[:, None]
        kept = kept & real[:, None] & (low < seen.lengths).t()[:, :, None]
    if seen.mask is not None:
        mask = seen.mask.transpose(1, 2) if transposed else seen.mask
        rows = mask[:, blocks.clamp(min=0)] & live[:, :, None]
        kept = kept & rows.any(2)
    found = gpu.detect(kept.reshape(-1, seen.size), 1, 1, False)
    starts, ends = gpu.spans(found)
    return Lists(blocks.int(), starts, ends, found.indices, per_item)


# ----------------------------------------------------------------------------------------------------- launching


def attention(q: Tensor, k: Tensor, v: Tensor, seen: Seen) -> Tensor:
    """As `spider.attention`, of checked arguments; differentiable once."""
    return _Attention.apply(q, k, v, seen)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, seen: Seen) -> Tensor:
        q, k, v = (x.contiguous() for x in (q, k, v))
        out = torch.empty_like(v)
        logs = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
        _launch(attention_kernel, (q, k, v, out, logs), q, v, seen, False)
        ctx.save_for_backward(q, k, v, out, logs)
        ctx.seen = seen
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, logs = ctx.saved_tensors
        dout, seen = grads[0].contiguous(), ctx.seen
        delta = (out.float() * dout.float()).sum(-1)
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        both = (q, k, v, dout, logs, delta)
        if ctx.needs_input_grad[0]:
            _launch(query_gradient_kernel, (*both, dq), q, v, seen, False)
        if any(ctx.needs_input_grad[1:3]):
            _launch(key_gradient_kernel, (*both, dk, dv), q, v, seen, True)
        return dq, dk, dv, None


def _launch(kernel: Any, tensors: tuple[Tensor, ...], q: Tensor, v: Tensor, seen: Seen, transposed: bool) -> None:
    rows, listed, warps, stages = tile(q.dtype)
    found = lists(seen, q.shape[0], rows, transposed)
    batch, heads, size, width = q.shape
    lengths = seen.lengths if seen.lengths is not None else torch.full((batch,), size, device=q.device)
    mask = found.listed if seen.mask is None else seen.mask.contiguous().view(torch.uint8)
    mask_stride = size * size if seen.mask is not None and seen.mask.shape[0] > 1 else 0
    number = found.blocks.shape[0]
    with gpu.on(q):
        kernel[(number, batch * heads)](
            *tensors, found.blocks, found.starts, found.ends, found.listed, seen.spread.view(torch.uint8), mask,
            mask_stride, lengths, number, heads, size, width, v.shape[3], seen.window or 0, LOG2E / math.sqrt(width),
            ROWS=rows, LISTED=listed, WIDTH=max(16, triton.next_power_of_2(width)),
            VALUE_WIDTH=max(16, triton.next_power_of_2(v.shape[3])), PER_ITEM=found.per_item,
            WINDOW=seen.window is not None, CAUSAL=seen.causal, MASKED=seen.mask is not None,
            UPCAST=gpu.upcast(q.dtype), PRECISION=gpu.precision(), num_warps=warps, num_stages=stages,
        )  # fmt: skip
