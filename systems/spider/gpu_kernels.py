"""Triton kernels of Spider for the products: detection, packing, gathers, sampled outputs, experts.

`gpu` launches them and says what they share. Importing this module imports triton.

The narrow side of a micro-tile is the N side of the matrix instruction, acc[columns of b, rows of S]: 32 rows then run
as wgmma.m64n32k16, while rows on the M side would have to be 64 or fall back to mma.sync. No kernel uses atomics: each
element of a result is one sum in one order. Addresses are computed in 64 bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

# --------------------------------------------------------------------------------------------------- detection


@triton.jit
def detect_kernel(
    x: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    indices: tl.tensor,
    values: tl.tensor,
    ends: tl.tensor,
    SIZE: tl.constexpr,
    LANES: tl.constexpr,
    COLUMNS: tl.constexpr,
    PACK: tl.constexpr,
    UPCAST: tl.constexpr,
) -> None:
    # One program owns a group of rows and walks it once, so its list ascends without atomics.
    q = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    row = q * SIZE + lane
    inside_rows = (lane < SIZE) & (row < rows)
    start = q * columns
    found = tl.program_id(0) * 0
    for first in tl.range(0, columns, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        inside = inside_rows[:, None] & (column < columns)[None, :]
        at = x + row[:, None] * row_stride + column[None, :].to(tl.int64) * column_stride
        tile = tl.load(at, mask=inside, other=0)
        # The interpreter compares the raw bits of bfloat16, where -0.0 is not zero.
        flags = tl.max((tile.to(tl.float32) != 0 if UPCAST else tile != 0).to(tl.int32), axis=0)
        place = start + found + tl.cumsum(flags, 0) - flags
        tl.store(indices + place, column, mask=flags != 0)
        if PACK:
            kept = (flags != 0)[None, :] & (lane < SIZE)[:, None]
            tl.store(values + place[None, :] * SIZE + lane[:, None], tile, mask=kept)
        found += tl.sum(flags, 0)
    tl.store(ends + q, start + found)


@triton.jit
def flag_kernel(
    x: tl.tensor,
    place_stride: tl.tensor,
    lane_stride: tl.tensor,
    places: tl.tensor,
    extent: tl.tensor,
    size: tl.tensor,
    flags: tl.tensor,
    PLACES: tl.constexpr,
    LANES: tl.constexpr,
    UPCAST: tl.constexpr,
) -> None:
    q = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0).to(tl.int64) * PLACES + tl.arange(0, PLACES)
    some = tl.zeros([PLACES], tl.int32)
    for first in tl.range(0, size, LANES):
        lane = first + tl.arange(0, LANES)
        along = q * size + lane
        inside = (place < places)[:, None] & ((lane < size) & (along < extent))[None, :]
        at = x + place[:, None] * place_stride + along[None, :] * lane_stride
        tile = tl.load(at, mask=inside, other=0)
        some = tl.maximum(some, tl.max((tile.to(tl.float32) != 0 if UPCAST else tile != 0).to(tl.int32), axis=1))
    tl.store(flags + q * places + place, some, mask=place < places)


@triton.jit
def list_kernel(
    x: tl.tensor,
    place_stride: tl.tensor,
    lane_stride: tl.tensor,
    places: tl.tensor,
    extent: tl.tensor,
    size: tl.tensor,
    flags: tl.tensor,
    sums: tl.tensor,
    indices: tl.tensor,
    values: tl.tensor,
    PLACES: tl.constexpr,
    LANES: tl.constexpr,
    PACK: tl.constexpr,
) -> None:
    # sums: the inclusive sums of the flags of a block; a kept place goes where its sum says.
    q = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0).to(tl.int64) * PLACES + tl.arange(0, PLACES)
    here = q * places + place
    kept = tl.load(flags + here, mask=place < places, other=0) != 0
    to = q * places + tl.load(sums + here, mask=kept, other=1).to(tl.int64) - 1
    tl.store(indices + to, place.to(tl.int32), mask=kept)
    if PACK:
        for first in tl.range(0, size, LANES):
            lane = first + tl.arange(0, LANES)
            along = q * size + lane
            wanted = kept[:, None] & (lane < size)[None, :]
            at = x + place[:, None] * place_stride + along[None, :] * lane_stride
            tile = tl.load(at, mask=wanted & (along < extent)[None, :], other=0)
            tl.store(values + to[:, None] * size + lane[None, :], tile, mask=wanted)


@triton.jit
def pack_kernel(
    starts: tl.tensor,
    ends: tl.tensor,
    indices: tl.tensor,
    x: tl.tensor,
    lane_stride: tl.tensor,
    place_stride: tl.tensor,
    extent: tl.tensor,
    size: tl.tensor,
    values: tl.tensor,
    ENTRIES: tl.constexpr,
    LANES: tl.constexpr,
) -> None:
    q = tl.program_id(1).to(tl.int64)
    start = tl.load(starts + q)
    entry = start + tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    listed = entry < tl.load(ends + q)
    place = tl.load(indices + entry, mask=listed, other=0).to(tl.int64)
    for first in tl.range(0, size, LANES):
        lane = first + tl.arange(0, LANES)
        along = q * size + lane
        wanted = listed[:, None] & (lane < size)[None, :]
        at = x + along[None, :] * lane_stride + place[:, None] * place_stride
        tile = tl.load(at, mask=wanted & (along < extent)[None, :], other=0)
        tl.store(values + entry[:, None] * size + lane[None, :], tile, mask=wanted)


# ---------------------------------------------------------------------------------------------------- products


@triton.jit
def k_gather_kernel(
    starts: tl.tensor,
    ends: tl.tensor,
    indices: tl.tensor,
    values: tl.tensor,
    b: tl.tensor,
    out: tl.tensor,
    size: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    ldb: tl.tensor,
    parts: tl.tensor,
    COLUMNS: tl.constexpr,
    LANES: tl.constexpr,
    STEPS: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    # Neighbouring programs share a panel of b, which then stays in the second-level cache.
    q = (tl.program_id(0) // parts).to(tl.int64)
    lane = (tl.program_id(0) % parts) * LANES + tl.arange(0, LANES)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    start = tl.load(starts + q)
    count = (tl.load(ends + q) - start).to(tl.int32)
    sums = tl.zeros([COLUMNS, LANES], tl.float32)
    for first in tl.range(0, count, STEPS):
        entry = first + tl.arange(0, STEPS)
        listed = entry < count
        k = tl.load(indices + start + entry, mask=listed, other=0).to(tl.int64)
        inside = listed[:, None] & (column < columns)[None, :]
        panel = tl.load(b + k[:, None] * ldb + column[None, :], mask=inside, other=0)
        kept = listed[:, None] & (lane < size)[None, :]
        tile = tl.load(values + (start + entry)[:, None] * size + lane[None, :], mask=kept, other=0)
        if UPCAST:
            panel, tile = panel.to(tl.float32), tile.to(tl.float32)
        sums = tl.dot(tl.trans(panel), tile, sums, input_precision=PRECISION)
    row = q * size + lane
    inside = ((lane < size) & (row < rows))[:, None] & (column < columns)[None, :]
    tl.store(out + row[:, None] * columns + column[None, :], tl.trans(sums).to(out.dtype.element_ty), mask=inside)


@triton.jit
def bounds_kernel(
    starts: tl.tensor,
    ends: tl.tensor,
    indices: tl.tensor,
    bounds: tl.tensor,
    chunks: tl.tensor,
    ROWS: tl.constexpr,
    CHUNKS: tl.constexpr,
    HALVINGS: tl.constexpr,
) -> None:
    # Where each chunk of rows begins in a list: all chunks search the ascending list at once.
    q = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1) * CHUNKS + tl.arange(0, CHUNKS)
    start = tl.load(starts + q)
    low = tl.zeros([CHUNKS], tl.int32)
    left = low + (tl.load(ends + q) - start).to(tl.int32)
    for _ in tl.static_range(HALVINGS):
        half = left // 2
        here = tl.load(indices + start + low + half, mask=left > 0, other=0)
        smaller = (left > 0) & (here < chunk * ROWS)
        low = tl.where(smaller, low + half + 1, low)
        left = tl.where(smaller, left - half - 1, half)
    tl.store(bounds + q * (chunks + 1) + chunk, low, mask=chunk <= chunks)


@triton.jit
def m_gather_kernel(
    starts: tl.tensor,
    ends: tl.tensor,
    indices: tl.tensor,
    values: tl.tensor,
    bounds: tl.tensor,
    b: tl.tensor,
    out: tl.tensor,
    blocks: tl.tensor,
    size: tl.tensor,
    columns: tl.tensor,
    depth: tl.tensor,
    ldb: tl.tensor,
    chunks: tl.tensor,
    WHOLE: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    STEPS: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    # A program owns ROWS rows of the result, so that blocks can add to them one after the other without atomics. With
    # a single block (WHOLE) nothing is added twice, and a program takes ROWS entries of the list instead: full tiles.
    chunk = tl.program_id(0)
    zero = (chunk * 0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    for number in tl.range(0, blocks):
        q = zero + number
        start = tl.load(starts + q)
        if WHOLE:
            low = chunk * ROWS
            high = tl.minimum(low + ROWS, (tl.load(ends + q) - start).to(tl.int32))
        else:
            low = tl.load(bounds + q * (chunks + 1) + chunk)
            high = tl.load(bounds + q * (chunks + 1) + chunk + 1)
        for first in tl.range(low, high, LANES):
            entry = first + tl.arange(0, LANES)
            listed = entry < high
            row = tl.load(indices + start + entry, mask=listed, other=0).to(tl.int64)
            sums = tl.zeros([COLUMNS, LANES], tl.float32)
            for k in tl.range(0, size, STEPS):
                step = k + tl.arange(0, STEPS)
                along = q * size + step
                live = (step < size) & (along < depth)
                inside = live[:, None] & (column < columns)[None, :]
                panel = tl.load(b + along[:, None] * ldb + column[None, :], mask=inside, other=0)
                at = values + (start + entry)[None, :] * size + step[:, None]
                tile = tl.load(at, mask=live[:, None] & listed[None, :], other=0)
                if UPCAST:
                    panel, tile = panel.to(tl.float32), tile.to(tl.float32)
                sums = tl.dot(tl.trans(panel), tile, sums, input_precision=PRECISION)
            to = out + row[:, None] * columns + column[None, :]
            inside = listed[:, None] & (column < columns)[None, :]
            total = tl.trans(sums)
            if not WHOLE:
                total += tl.load(to, mask=inside, other=0)
            tl.store(to, total.to(out.dtype.element_ty), mask=inside)
        tl.debug_barrier()  # the next block may hand a row to another thread


@triton.jit
def sampled_kernel(
    starts: tl.tensor,
    ends: tl.tensor,
    indices: tl.tensor,
    values: tl.tensor,
    x: tl.tensor,
    y: tl.tensor,
    out: tl.tensor,
    size: tl.tensor,
    rows: tl.tensor,
    depth: tl.tensor,
    ldx: tl.tensor,
    ldy: tl.tensor,
    row_stride: tl.tensor,
    other_stride: tl.tensor,
    parts: tl.tensor,
    PACKED: tl.constexpr,
    ENTRIES: tl.constexpr,
    LANES: tl.constexpr,
    STEPS: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    q = (tl.program_id(0) // parts).to(tl.int64)
    lane = (tl.program_id(0) % parts) * LANES + tl.arange(0, LANES)
    row = q * size + lane
    inside_rows = (lane < size) & (row < rows)
    start = tl.load(starts + q)
    count = (tl.load(ends + q) - start).to(tl.int32)
    first = tl.program_id(1) * ENTRIES
    if first < count:  # the grid is for the longest list there could be
        entry = first + tl.arange(0, ENTRIES)
        listed = entry < count
        other = tl.load(indices + start + entry, mask=listed, other=0).to(tl.int64)
        sums = tl.zeros([ENTRIES, LANES], tl.float32)
        for d in tl.range(0, depth, STEPS):
            step = d + tl.arange(0, STEPS)
            live = step < depth
            panel = tl.load(y + other[:, None] * ldy + step[None, :], mask=listed[:, None] & live[None, :], other=0)
            tile = tl.load(x + row[None, :] * ldx + step[:, None], mask=live[:, None] & inside_rows[None, :], other=0)
            if UPCAST:
                panel, tile = panel.to(tl.float32), tile.to(tl.float32)
            sums = tl.dot(panel, tile, sums, input_precision=PRECISION)
        place = (start + entry)[:, None] * size + lane[None, :]
        inside = listed[:, None] & inside_rows[None, :]
        kept = tl.load(values + place, mask=inside, other=0).to(tl.float32) != 0
        dots = tl.where(kept, sums, 0).to(out.dtype.element_ty)
        if PACKED:
            tl.store(out + place, dots, mask=inside)
        else:
            tl.store(out + row[None, :] * row_stride + other[:, None] * other_stride, dots, mask=inside & kept)


# ----------------------------------------------------------------------------------------------------- experts


@triton.jit
def expert_tile(
    offsets: tl.tensor, tile: tl.tensor, experts: tl.tensor, ROWS: tl.constexpr, EXPERTS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    # The expert of a tile of rows, its first entry and its end: found on the device, so that no size is ever asked.
    e = tl.arange(0, EXPERTS)
    begin = tl.load(offsets + e, mask=e < experts, other=0)
    end = tl.load(offsets + e + 1, mask=e < experts, other=0)
    tiles = (end - begin + ROWS - 1) // ROWS
    last = tl.cumsum(tiles, 0)
    expert = tl.sum(((last <= tile) & (e < experts)).to(tl.int32), 0)
    here = e == expert
    first = tl.sum(tl.where(here, begin + (tile - last + tiles) * ROWS, 0), 0)
    return expert, first, tl.sum(tl.where(here, end, 0), 0)


@triton.jit
def grouped_kernel(
    offsets: tl.tensor,
    rows: tl.tensor,
    x: tl.tensor,
    w: tl.tensor,
    out: tl.tensor,
    experts: tl.tensor,
    columns: tl.tensor,
    depth: tl.tensor,
    ldx: tl.tensor,
    expert_stride: tl.tensor,
    depth_stride: tl.tensor,
    column_stride: tl.tensor,
    EXPERTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    expert, first, end = expert_tile(offsets, tl.program_id(1), experts, ROWS, EXPERTS)
    if expert < experts:
        column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        entry = first + tl.arange(0, ROWS)
        listed = entry < end
        row = tl.load(rows + entry, mask=listed, other=0).to(tl.int64)
        matrix = w + expert.to(tl.int64) * expert_stride
        sums = tl.zeros([ROWS, COLUMNS], tl.float32)
        for k in tl.range(0, depth, STEPS):
            step = k + tl.arange(0, STEPS)
            live = step < depth
            tile = tl.load(x + row[:, None] * ldx + step[None, :], mask=listed[:, None] & live[None, :], other=0)
            at = matrix + step[:, None].to(tl.int64) * depth_stride + column[None, :].to(tl.int64) * column_stride
            panel = tl.load(at, mask=live[:, None] & (column < columns)[None, :], other=0)
            if UPCAST:
                tile, panel = tile.to(tl.float32), panel.to(tl.float32)
            sums = tl.dot(tile, panel, sums, input_precision=PRECISION)
        inside = listed[:, None] & (column < columns)[None, :]
        tl.store(out + entry[:, None] * columns + column[None, :], sums.to(out.dtype.element_ty), mask=inside)


@triton.jit
def grouped_outer_kernel(
    offsets: tl.tensor,
    rows: tl.tensor,
    x: tl.tensor,
    dy: tl.tensor,
    out: tl.tensor,
    depth: tl.tensor,
    columns: tl.tensor,
    ldx: tl.tensor,
    DEPTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEPS: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    expert = tl.program_id(2).to(tl.int64)
    k = tl.program_id(1) * DEPTH + tl.arange(0, DEPTH)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    begin = tl.load(offsets + expert)
    count = (tl.load(offsets + expert + 1) - begin).to(tl.int32)
    sums = tl.zeros([DEPTH, COLUMNS], tl.float32)
    for first in tl.range(0, count, STEPS):
        entry = first + tl.arange(0, STEPS)
        listed = entry < count
        row = tl.load(rows + begin + entry, mask=listed, other=0).to(tl.int64)
        tile = tl.load(x + row[:, None] * ldx + k[None, :], mask=listed[:, None] & (k < depth)[None, :], other=0)
        at = dy + (begin + entry)[:, None] * columns + column[None, :]
        panel = tl.load(at, mask=listed[:, None] & (column < columns)[None, :], other=0)
        if UPCAST:
            tile, panel = tile.to(tl.float32), panel.to(tl.float32)
        sums = tl.dot(tl.trans(tile), panel, sums, input_precision=PRECISION)
    inside = (k < depth)[:, None] & (column < columns)[None, :]
    at = out + (expert * depth + k)[:, None] * columns + column[None, :]
    tl.store(at, sums.to(out.dtype.element_ty), mask=inside)
