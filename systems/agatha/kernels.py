"""Triton kernels of both profiles, NHWC: exact int8 convolutions, and chains of binary32 fused multiply-adds.

Importing this module imports triton, so `gpu` is imported only where the back end `triton` is asked for. Extents of a
node are constants of its kernel: they never change, and loops over them have known ends.

int8: `(q - 128)` is a signed byte, so products go through the integer units (`tl.dot` to int32, exact in any order);
what the shift by 128 adds is the same for every pixel and sits in the bias. The epilogue is integer too: one rounding
on a grid of 2^-16, half to even. ieee32: every output has its own accumulator, and the taps of its sum follow each
other as (kh, kw, c); `tl.fma` rounds once.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _pixel(
    rows: tl.tensor,
    pixels: tl.tensor,
    H_OUT: tl.constexpr,
    W_OUT: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Image, row and column of output pixels, and which of them exist."""
    column = rows % W_OUT
    row = rows // W_OUT % H_OUT
    return (rows // (W_OUT * H_OUT)).to(tl.int64), row, column, rows < pixels


@triton.jit
def _codes(
    total: tl.tensor,
    shift: tl.tensor,
    residual: tl.tensor,
    SHIFT_R: tl.constexpr,
    ZERO: tl.constexpr,
    LO: tl.constexpr,
    HI: tl.constexpr,
) -> tl.tensor:
    """rne(total 2^-shift + residual 2^-SHIFT_R) + ZERO, clamped; total, shift, residual: int64, -8 <= shifts <= 16."""
    grid = (total << (16 - shift)) + (residual << (16 - SHIFT_R))
    down = grid >> 16
    rest = grid - (down << 16)
    up = (rest > 32768) | ((rest == 32768) & ((down & 1) == 1))
    code = down + up.to(tl.int64) + ZERO
    return tl.minimum(tl.maximum(code, LO), HI).to(tl.uint8)


@triton.jit
def _numbers(
    total: tl.tensor,
    lo: tl.tensor,
    hi: tl.tensor,
) -> tl.tensor:
    """Clamped binary32 numbers, NaN as it is, no negative zero."""
    up = tl.maximum(total, lo, propagate_nan=tl.PropagateNan.ALL)
    cut = tl.minimum(up, hi, propagate_nan=tl.PropagateNan.ALL)
    return tl.where(cut == 0.0, 0.0, cut)


@triton.jit
def conv8_kernel(
    x: tl.tensor,
    w: tl.tensor,
    bias: tl.tensor,
    shift: tl.tensor,
    residual: tl.tensor,
    y: tl.tensor,
    pixels: tl.tensor,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    H_OUT: tl.constexpr,
    W_OUT: tl.constexpr,
    C_OUT: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE: tl.constexpr,
    PAD: tl.constexpr,
    DILATION: tl.constexpr,
    GROUPS: tl.constexpr,
    ZERO_X: tl.constexpr,
    ZERO_R: tl.constexpr,
    ZERO_Y: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SHIFT_R: tl.constexpr,
    LO: tl.constexpr,
    HI: tl.constexpr,
    PIXELS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> None:
    """A tile of PIXELS x OUTPUTS of one group. x: (n, H, W, C) uint8; w: (C_OUT, KH, KW, C / GROUPS) int8."""
    per_group: tl.constexpr = C // GROUPS
    outputs: tl.constexpr = C_OUT // GROUPS
    chunks: tl.constexpr = (per_group + DEPTH - 1) // DEPTH
    group = tl.program_id(2)
    rows = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    columns = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    image, row, column, there = _pixel(rows, pixels, H_OUT, W_OUT)
    mine = columns < outputs
    channel = group * outputs + columns
    lanes = tl.arange(0, DEPTH)
    total = tl.zeros((PIXELS, OUTPUTS), tl.int32)
    for step in range(KH * KW * chunks):
        tap = step // chunks
        depth = step % chunks * DEPTH + lanes
        inside = depth < per_group
        down = row * STRIDE + tap // KW * DILATION - PAD
        right = column * STRIDE + tap % KW * DILATION - PAD
        seen = there & (down >= 0) & (down < H) & (right >= 0) & (right < W)
        start = ((image * H + down) * W + right) * C + group * per_group
        codes = tl.load(x + start[:, None] + depth[None, :], seen[:, None] & inside[None, :], other=ZERO_X)
        left = (codes ^ 128).to(tl.int8, bitcast=True)
        place = (channel[None, :] * (KH * KW) + tap) * per_group + depth[:, None]
        weights = tl.load(w + place, inside[:, None] & mine[None, :], other=0)
        total = tl.dot(left, weights, total)
    b = tl.load(bias + channel, mine, other=0).to(tl.int64)
    k = tl.load(shift + channel, mine, other=0).to(tl.int64)
    at = rows.to(tl.int64)[:, None] * C_OUT + channel[None, :]
    mask = there[:, None] & mine[None, :]
    other = tl.zeros((PIXELS, OUTPUTS), tl.int64)
    if RESIDUAL:
        other = tl.load(residual + at, mask, other=ZERO_R).to(tl.int64) - ZERO_R
    tl.store(y + at, _codes(total.to(tl.int64) + b[None, :], k[None, :], other, SHIFT_R, ZERO_Y, LO, HI), mask)


@triton.jit
def chain_kernel(
    x: tl.tensor,
    w: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor,
    y: tl.tensor,
    pixels: tl.tensor,
    lo: tl.tensor,
    hi: tl.tensor,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    H_OUT: tl.constexpr,
    W_OUT: tl.constexpr,
    C_OUT: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE: tl.constexpr,
    PAD: tl.constexpr,
    DILATION: tl.constexpr,
    GROUPS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    PIXELS: tl.constexpr,
    OUTPUTS: tl.constexpr,
) -> None:
    """PIXELS x OUTPUTS chains of one group. x: (n, H, W, C) float32; w: (KH, KW, C / GROUPS, C_OUT) float32."""
    per_group: tl.constexpr = C // GROUPS
    outputs: tl.constexpr = C_OUT // GROUPS
    group = tl.program_id(2)
    rows = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    columns = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    image, row, column, there = _pixel(rows, pixels, H_OUT, W_OUT)
    mine = columns < outputs
    channel = group * outputs + columns
    total = tl.zeros((PIXELS, OUTPUTS), tl.float32)
    for step in range(KH * KW * per_group):
        tap = step // per_group
        down = row * STRIDE + tap // KW * DILATION - PAD
        right = column * STRIDE + tap % KW * DILATION - PAD
        seen = there & (down >= 0) & (down < H) & (right >= 0) & (right < W)
        place = ((image * H + down) * W + right) * C + group * per_group + step % per_group
        left = tl.load(x + place, seen, other=0.0)
        weights = tl.load(w + step * C_OUT + channel, mine, other=0.0)
        a, b = tl.broadcast(left[:, None], weights[None, :])
        total = tl.fma(a, b, total)
    total = total + tl.load(bias + channel, mine, other=0.0)[None, :]
    at = rows.to(tl.int64)[:, None] * C_OUT + channel[None, :]
    mask = there[:, None] & mine[None, :]
    if RESIDUAL:
        total = total + tl.load(residual + at, mask, other=0.0)
    tl.store(y + at, _numbers(total, lo, hi), mask)


@triton.jit
def depthwise_kernel(
    x: tl.tensor,
    w: tl.tensor,
    bias: tl.tensor,
    shift: tl.tensor,
    residual: tl.tensor,
    y: tl.tensor,
    pixels: tl.tensor,
    lo: tl.tensor,
    hi: tl.tensor,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    H_OUT: tl.constexpr,
    W_OUT: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE: tl.constexpr,
    PAD: tl.constexpr,
    DILATION: tl.constexpr,
    ZERO_X: tl.constexpr,
    ZERO_R: tl.constexpr,
    ZERO_Y: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SHIFT_R: tl.constexpr,
    LO: tl.constexpr,
    HI: tl.constexpr,
    EXACT: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    """A tile of PIXELS x CHANNELS, one input channel an output channel, both profiles (EXACT: int8). w: (KH, KW, C)."""
    rows = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    image, row, column, there = _pixel(rows, pixels, H_OUT, W_OUT)
    mine = channel < C
    mask = there[:, None] & mine[None, :]
    total = tl.zeros((PIXELS, CHANNELS), tl.int32 if EXACT else tl.float32)
    for tap in range(KH * KW):
        down = row * STRIDE + tap // KW * DILATION - PAD
        right = column * STRIDE + tap % KW * DILATION - PAD
        seen = there & (down >= 0) & (down < H) & (right >= 0) & (right < W)
        start = ((image * H + down) * W + right) * C
        left = tl.load(x + start[:, None] + channel[None, :], seen[:, None] & mine[None, :], other=ZERO_X)
        weights = tl.load(w + tap * C + channel, mine, other=0)
        if EXACT:
            total += (left.to(tl.int32) - ZERO_X) * weights.to(tl.int32)[None, :]
        else:
            _, b = tl.broadcast(left, weights[None, :])
            total = tl.fma(left, b, total)
    at = rows.to(tl.int64)[:, None] * C + channel[None, :]
    b = tl.load(bias + channel, mine, other=0)
    if EXACT:
        k = tl.load(shift + channel, mine, other=0).to(tl.int64)
        other = tl.zeros((PIXELS, CHANNELS), tl.int64)
        if RESIDUAL:
            other = tl.load(residual + at, mask, other=ZERO_R).to(tl.int64) - ZERO_R
        codes = _codes(total.to(tl.int64) + b.to(tl.int64)[None, :], k[None, :], other, SHIFT_R, ZERO_Y, LO, HI)
        tl.store(y + at, codes, mask)
    else:
        total = total + b[None, :]
        if RESIDUAL:
            total = total + tl.load(residual + at, mask, other=0.0)
        tl.store(y + at, _numbers(total, lo, hi), mask)
