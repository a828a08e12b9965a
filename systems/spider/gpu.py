"""Spider on a GPU: what launches the Triton kernels of `gpu_kernels`; float32, float16 and bfloat16, on CUDA.

Importing this module imports triton, so `ops.kernels` does it only where a kernel is asked for. Under
TRITON_INTERPRET=1, set before triton is imported, the same kernels run on CPU tensors.

Arguments and results are those of `cpu`, except that values keep their 16-bit dtype (sums are float32, rounded once)
and that a list may have room behind its end: block q is indices[offsets[q] : ends[q]]. `detect` gives such an index,
because how much it finds is then never asked by the host: nothing here waits for the device.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from systems.spider.cpu import Arrays, Form
from systems.spider.gpu_kernels import (
    bounds_kernel,
    detect_kernel,
    flag_kernel,
    grouped_kernel,
    grouped_outer_kernel,
    k_gather_kernel,
    list_kernel,
    m_gather_kernel,
    pack_kernel,
    sampled_kernel,
)

MOST_LANES = 128  # rows of a micro-tile that one program takes; larger ones are cut
CHUNK = 128  # rows of the result that one program of m_gather owns


@dataclass(frozen=True)
class Config:
    """Extents of one program's tile: columns of the dense operand, rows of S, steps of the reduction."""

    columns: int
    lanes: int
    steps: int
    warps: int
    stages: int


def config(dtype: torch.dtype, size: int) -> Config:
    """The tile for micro-tiles of `size` elements."""
    lanes = max(16, min(MOST_LANES, triton.next_power_of_2(max(size, 1))))
    if dtype == torch.float32:
        return Config(64, min(lanes, 64), 16, 8 if lanes > 32 else 4, 3)
    return Config(128, lanes, 64, 8 if lanes > 64 else 4, 4)


def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter, on CPU tensors."""
    return isinstance(k_gather_kernel, InterpretedFunction)


def upcast(dtype: torch.dtype) -> bool:
    """Whether 16-bit operands must be widened first: the interpreter multiplies the raw bits of bfloat16."""
    return interpreted() and dtype.itemsize == 2


def precision() -> str:
    """How float32 is multiplied: as torch was told to do it."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"


def on(x: Tensor) -> AbstractContextManager[object]:
    """Launch on the device of x, whichever is current."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def spans(index: Arrays) -> tuple[Tensor, Tensor]:
    """(Q,) first entry and end of each list."""
    return index.offsets[:-1], index.offsets[1:] if index.ends is None else index.ends


def detect(x: Tensor, size: int, axis: int, pack: bool) -> Arrays:
    """Lists with room behind their ends; axis 1: micro-tiles size x 1, axis 0: 1 x size. x: (rows, columns)."""
    x = x.view(torch.uint8) if x.dtype == torch.bool else x
    extent, places = x.shape if axis == 1 else x.shape[::-1]
    blocks = -(-extent // size)
    device = x.device
    offsets = torch.arange(blocks + 1, device=device) * places
    indices = torch.empty(blocks * places, dtype=torch.int32, device=device)
    values = torch.empty(blocks * places if pack else 0, size, dtype=x.dtype, device=device)
    ends = offsets[:-1].clone()
    if not indices.numel():
        return Arrays(offsets, indices, values if pack else None, ends)
    wide = interpreted() and x.dtype.itemsize == 2
    place_stride, lane_stride = x.stride()[::-1] if axis == 1 else x.stride()
    with on(x):
        if axis == 1 and size <= MOST_LANES:
            lanes = triton.next_power_of_2(size)
            detect_kernel[(blocks,)](
                x, x.stride(0), x.stride(1), extent, places, indices, values, ends, SIZE=size, LANES=lanes,
                COLUMNS=max(32, min(1024, 4096 // lanes)), PACK=pack, UPCAST=wide, num_warps=4,
            )  # fmt: skip
            return Arrays(offsets, indices, values if pack else None, ends)
        lanes = max(16, min(MOST_LANES, triton.next_power_of_2(size)))
        flags = torch.empty(blocks, places, dtype=torch.int8, device=device)
        rows = 4096 // lanes
        grid = (triton.cdiv(places, rows), blocks)
        flag_kernel[grid](
            x, place_stride, lane_stride, places, extent, size, flags, PLACES=rows, LANES=lanes, UPCAST=wide
        )
        sums = flags.cumsum(1, dtype=torch.int32)
        list_kernel[grid](
            x, place_stride, lane_stride, places, extent, size, flags, sums, indices, values, PLACES=rows, LANES=lanes,
            PACK=pack,
        )  # fmt: skip
        return Arrays(offsets, indices, values if pack else None, ends + sums[:, -1])


def pack(index: Arrays, size: int, x: Tensor) -> Tensor:
    """As `cpu.pack`."""
    values = torch.empty(index.indices.numel(), size, dtype=x.dtype, device=x.device)
    starts, ends = spans(index)
    if values.numel():
        lanes = max(16, min(MOST_LANES, triton.next_power_of_2(size)))
        entries = 4096 // lanes
        with on(x):
            pack_kernel[(triton.cdiv(x.shape[1], entries), starts.numel())](
                starts, ends, index.indices, x, x.stride(0), x.stride(1), x.shape[0], size, values, ENTRIES=entries,
                LANES=lanes,
            )  # fmt: skip
    return values


def k_gather(index: Arrays, size: int, b: Tensor, rows: int) -> Tensor:
    """As `cpu.k_gather`."""
    assert index.values is not None
    (_, columns), groups = b.shape, index.offsets.numel() - 1
    out = torch.empty(rows, columns, dtype=b.dtype, device=b.device)
    starts, ends = spans(index)
    if not out.numel():
        return out
    c = config(b.dtype, size)
    parts = -(-size // c.lanes)
    with on(b):
        k_gather_kernel[(groups * parts, triton.cdiv(columns, c.columns))](
            starts, ends, index.indices, index.values, b, out, size, rows, columns, b.stride(0), parts,
            COLUMNS=c.columns, LANES=c.lanes, STEPS=c.steps, UPCAST=upcast(b.dtype), PRECISION=precision(),
            num_warps=c.warps, num_stages=c.stages,
        )  # fmt: skip
    return out


def m_gather(index: Arrays, size: int, b: Tensor, rows: int) -> Tensor:
    """As `cpu.m_gather`."""
    assert index.values is not None
    (depth, columns), blocks = b.shape, index.offsets.numel() - 1
    # Blocks add to one another in float32, and the sum is rounded once.
    out = torch.zeros(rows, columns, dtype=b.dtype if blocks == 1 else torch.float32, device=b.device)
    starts, ends = spans(index)
    if not out.numel() or not blocks or not index.indices.numel():
        return out.to(b.dtype)
    chunks = triton.cdiv(rows, CHUNK)
    bounds = torch.empty(blocks, chunks + 1, dtype=torch.int32, device=b.device)
    c = config(b.dtype, CHUNK if blocks == 1 else 32)
    with on(b):
        if blocks > 1:
            searched = min(64, triton.next_power_of_2(chunks + 1))
            bounds_kernel[(blocks, triton.cdiv(chunks + 1, searched))](
                starts, ends, index.indices, bounds, chunks, ROWS=CHUNK, CHUNKS=searched,
                HALVINGS=rows.bit_length() + 1,
            )  # fmt: skip
        m_gather_kernel[(chunks, triton.cdiv(columns, c.columns))](
            starts, ends, index.indices, index.values, bounds, b, out, blocks, size, columns, depth, b.stride(0),
            chunks, WHOLE=blocks == 1, COLUMNS=c.columns, ROWS=CHUNK, LANES=c.lanes, STEPS=c.steps,
            UPCAST=upcast(b.dtype), PRECISION=precision(), num_warps=c.warps, num_stages=c.stages,
        )  # fmt: skip
    return out.to(b.dtype)


def sampled(index: Arrays, size: int, x: Tensor, y: Tensor, form: Form) -> Tensor:
    """As `cpu.sampled`."""
    assert index.values is not None
    (rows, depth), others = x.shape, y.shape[0]
    if form == "packed":
        out = torch.zeros(index.indices.numel(), size, dtype=x.dtype, device=x.device)
    else:
        shape = (others, rows) if form == "transposed" else (rows, others)
        out = torch.zeros(shape, dtype=x.dtype, device=x.device)
    starts, ends = spans(index)
    if not out.numel() or not starts.numel():
        return out
    c = config(x.dtype, size)
    entries = min(c.columns, 64)
    parts = -(-size // c.lanes)
    strides = (1, rows) if form == "transposed" else (others, 1)
    with on(x):
        sampled_kernel[(starts.numel() * parts, triton.cdiv(others, entries))](
            starts, ends, index.indices, index.values, x, y, out, size, rows, depth, x.stride(0), y.stride(0), *strides,
            parts, PACKED=form == "packed", ENTRIES=entries, LANES=c.lanes, STEPS=c.steps, UPCAST=upcast(x.dtype),
            PRECISION=precision(), num_warps=4, num_stages=c.stages,
        )  # fmt: skip
    return out


def grouped(offsets: Tensor, rows: Tensor, x: Tensor, w: Tensor) -> Tensor:
    """As `cpu.grouped`, w with any strides. The grid is an upper bound, so the host never waits for the loads."""
    experts, depth, columns = w.shape
    entries = rows.numel()
    out = torch.empty(entries, columns, dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    c = config(x.dtype, 128)
    height = 64 if entries <= 128 * experts else 128
    with on(x):
        grouped_kernel[(triton.cdiv(columns, c.columns), triton.cdiv(entries, height) + experts)](
            offsets, rows, x, w, out, experts, columns, depth, x.stride(0), *w.stride(),
            EXPERTS=triton.next_power_of_2(experts), COLUMNS=c.columns, ROWS=height, STEPS=c.steps,
            UPCAST=upcast(x.dtype), PRECISION=precision(), num_warps=8 if height == 128 else 4, num_stages=3,
        )  # fmt: skip
    return out


def grouped_outer(offsets: Tensor, rows: Tensor, x: Tensor, dy: Tensor) -> Tensor:
    """(E, depth, columns): for each expert the sum over its entries j of x[rows[j]] outer dy[j]; dy contiguous."""
    experts, depth, columns = offsets.numel() - 1, x.shape[1], dy.shape[1]
    out = torch.empty(experts, depth, columns, dtype=x.dtype, device=x.device)
    if out.numel():
        c = config(x.dtype, 64)
        with on(x):
            grouped_outer_kernel[(triton.cdiv(columns, c.columns), triton.cdiv(depth, 64), experts)](
                offsets, rows, x, dy, out, depth, columns, x.stride(0), DEPTH=64, COLUMNS=c.columns, STEPS=c.steps,
                UPCAST=upcast(x.dtype), PRECISION=precision(), num_warps=4, num_stages=3,
            )  # fmt: skip
    return out
