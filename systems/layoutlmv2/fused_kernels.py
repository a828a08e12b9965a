"""Triton kernels of spatial-aware attention, forward and backward, launched by `fused`. Importing this imports triton.

A program of the forward kernel owns a tile of queries of one head and walks the keys; one of the backward kernel owns a
tile of keys and walks the queries. Addresses are computed in 64 bits.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def forward_kernel(
    q: tl.tensor, k: tl.tensor, v: tl.tensor, one: tl.tensor, x: tl.tensor, y: tl.tensor, pos: tl.tensor,
    left: tl.tensor, low: tl.tensor, keep: tl.tensor, out: tl.tensor, norm: tl.tensor, scale: tl.tensor,
    length: tl.tensor, heads: tl.tensor, width1: tl.tensor, width2: tl.tensor, SIZE: tl.constexpr,
    TILE: tl.constexpr, NEVER: tl.constexpr,
) -> None:  # fmt: skip
    row = tl.program_id(1).to(tl.int64)
    page, head = row // heads, row % heads
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    d = tl.arange(0, SIZE)
    inside = i < length
    base = row * length * SIZE
    tile_q = tl.load(q + base + i[:, None] * SIZE + d[None, :], mask=inside[:, None], other=0.0)
    pi = tl.load(pos + page * length + i, mask=inside, other=0)
    xi = tl.load(left + page * length + i, mask=inside, other=0)
    yi = tl.load(low + page * length + i, mask=inside, other=0)
    best = tl.full([TILE], NEVER, tl.float32)
    total = tl.zeros([TILE], tl.float32)
    acc = tl.zeros([TILE, SIZE], tl.float32)
    for start in range(0, length, TILE):
        j = start + tl.arange(0, TILE)
        there = j < length
        tile_k = tl.load(k + base + j[:, None] * SIZE + d[None, :], mask=there[:, None], other=0.0)
        tile_v = tl.load(v + base + j[:, None] * SIZE + d[None, :], mask=there[:, None], other=0.0)
        pj = tl.load(pos + page * length + j, mask=there, other=0)
        xj = tl.load(left + page * length + j, mask=there, other=0)
        yj = tl.load(low + page * length + j, mask=there, other=0)
        kept = tl.load(keep + page * length + j, mask=there, other=0) != 0
        s = tl.dot(tile_q, tl.trans(tile_k), input_precision="ieee").to(tl.float32) * scale
        s += tl.load(one + head * width1 + width1 // 2 + pj[None, :] - pi[:, None]).to(tl.float32)
        s += tl.load(x + head * width2 + width2 // 2 + xj[None, :] - xi[:, None]).to(tl.float32)
        s += tl.load(y + head * width2 + width2 // 2 + yj[None, :] - yi[:, None]).to(tl.float32)
        s = tl.where(kept[None, :], s, NEVER)
        high = tl.maximum(best, tl.max(s, 1))
        p = tl.where(kept[None, :], tl.exp(s - high[:, None]), 0.0)
        fade = tl.exp(best - high)
        total = total * fade + tl.sum(p, 1)
        acc = acc * fade[:, None] + tl.dot(p.to(tile_v.dtype), tile_v, input_precision="ieee").to(tl.float32)
        best = high
    safe = tl.where(total > 0, total, 1.0)
    tl.store(
        out + base + i[:, None] * SIZE + d[None, :], (acc / safe[:, None]).to(tile_q.dtype), mask=inside[:, None]
    )
    tl.store(norm + row * length + i, best + tl.log(safe), mask=inside)

@triton.jit
def backward_kernel(
    q: tl.tensor, k: tl.tensor, v: tl.tensor, one: tl.tensor, x: tl.tensor, y: tl.tensor, pos: tl.tensor,
    left: tl.tensor, low: tl.tensor, keep: tl.tensor, grad: tl.tensor, norm: tl.tensor, delta: tl.tensor,
    dq: tl.tensor, dk: tl.tensor, dv: tl.tensor, done: tl.tensor, dx: tl.tensor, dy: tl.tensor, scale: tl.tensor,
    length: tl.tensor, heads: tl.tensor, width1: tl.tensor, width2: tl.tensor, SIZE: tl.constexpr,
    TILE: tl.constexpr, NEVER: tl.constexpr,
) -> None:  # fmt: skip
    row = tl.program_id(1).to(tl.int64)
    page, head = row // heads, row % heads
    j = tl.program_id(0) * TILE + tl.arange(0, TILE)
    d = tl.arange(0, SIZE)
    there = j < length
    base = row * length * SIZE
    tile_k = tl.load(k + base + j[:, None] * SIZE + d[None, :], mask=there[:, None], other=0.0)
    tile_v = tl.load(v + base + j[:, None] * SIZE + d[None, :], mask=there[:, None], other=0.0)
    pj = tl.load(pos + page * length + j, mask=there, other=0)
    xj = tl.load(left + page * length + j, mask=there, other=0)
    yj = tl.load(low + page * length + j, mask=there, other=0)
    kept = tl.load(keep + page * length + j, mask=there, other=0) != 0
    acc_k = tl.zeros([TILE, SIZE], tl.float32)
    acc_v = tl.zeros([TILE, SIZE], tl.float32)
    for start in range(0, length, TILE):
        i = start + tl.arange(0, TILE)
        inside = i < length
        tile_q = tl.load(q + base + i[:, None] * SIZE + d[None, :], mask=inside[:, None], other=0.0)
        tile_g = tl.load(grad + base + i[:, None] * SIZE + d[None, :], mask=inside[:, None], other=0.0)
        pi = tl.load(pos + page * length + i, mask=inside, other=0)
        xi = tl.load(left + page * length + i, mask=inside, other=0)
        yi = tl.load(low + page * length + i, mask=inside, other=0)
        high = tl.load(norm + row * length + i, mask=inside, other=0.0)
        mean = tl.load(delta + row * length + i, mask=inside, other=0.0)
        at1 = head * width1 + width1 // 2 + pj[None, :] - pi[:, None]
        at2 = head * width2 + width2 // 2 + xj[None, :] - xi[:, None]
        at3 = head * width2 + width2 // 2 + yj[None, :] - yi[:, None]
        s = tl.dot(tile_q, tl.trans(tile_k), input_precision="ieee").to(tl.float32) * scale
        s += tl.load(one + at1).to(tl.float32)
        s += tl.load(x + at2).to(tl.float32)
        s += tl.load(y + at3).to(tl.float32)
        both = inside[:, None] & kept[None, :]
        p = tl.where(both, tl.exp(tl.where(both, s - high[:, None], 0.0)), 0.0)
        acc_v += tl.dot(tl.trans(p.to(tile_g.dtype)), tile_g, input_precision="ieee").to(tl.float32)
        dp = tl.dot(tile_g, tl.trans(tile_v), input_precision="ieee").to(tl.float32)
        ds = p * (dp - mean[:, None])
        tl.atomic_add(done + at1, ds, mask=both)
        tl.atomic_add(dx + at2, ds, mask=both)
        tl.atomic_add(dy + at3, ds, mask=both)
        acc_k += tl.dot(tl.trans(ds.to(tile_q.dtype)), tile_q, input_precision="ieee").to(tl.float32) * scale
        step = tl.dot(ds.to(tile_k.dtype), tile_k, input_precision="ieee").to(tl.float32) * scale
        tl.atomic_add(dq + base + i[:, None] * SIZE + d[None, :], step, mask=inside[:, None])
    tl.store(dk + base + j[:, None] * SIZE + d[None, :], acc_k.to(tile_k.dtype), mask=there[:, None])
    tl.store(dv + base + j[:, None] * SIZE + d[None, :], acc_v.to(tile_v.dtype), mask=there[:, None])
