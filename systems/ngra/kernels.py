"""Kernels: one compiled C function each, generated from the expressions of what it accumulates, and their running.

A kernel visits every arc of every row once. Per arc it reads the columns of the row (loaded once), those of the
neighbour (gathered) and those of the arc, evaluates its expressions in registers, and accumulates. Nothing of the
size of the arcs is stored, except what an output asks for. This module knows nothing of gradients or programs.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from systems import native
from systems.ngra.expression import ELEMENTWISE, LAYOUT, Node, walk
from systems.ngra.generation import Column, Output, generate
from systems.ngra.graph import Grid, Rows
from systems.ngra.workspace import workspace

MOST_STACK = 16_384  # numbers per row and kernel that live on the stack
TASKS_A_THREAD = 8


@dataclass(frozen=True)
class Chunk:
    """An arc chunk by itself, as in `Grid`: rows: (r,) uint16; ends: (r + 1,) uint32; locals: (arcs + PADDING,)
    uint16; arcs: (arcs,) int32 canonical ids, or None."""

    rows: Tensor
    ends: Tensor
    locals: Tensor
    arcs: Tensor | None


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel and what it expects."""

    columns: tuple[Column, ...]
    outputs: tuple[Output, ...]
    dtype: torch.dtype
    source: str
    library: ctypes.CDLL


def supported(*nodes: Node) -> bool:
    """Whether expressions can be generated: elementwise operations and sums over axes, of at most two axes."""
    found = list(walk(*nodes))
    return (
        all(
            (node.op in ELEMENTWISE or node.op in LAYOUT or node.op in {"leaf", "const", "wins", "pick"})
            and len(node.shape) <= 2
            for node in found
        )
        and sum(node.width for node in found) <= MOST_STACK
    )


def compiled(columns: Sequence[Column], outputs: Sequence[Output], dtype: torch.dtype) -> Kernel | None:
    """The kernel, built or from the cache; None without a compiler."""
    source = generate(columns, outputs, dtype)
    library = _load(source)
    if library is None:
        return None
    return Kernel(tuple(columns), tuple(outputs), dtype, source, library)


@functools.lru_cache(maxsize=1024)
def _load(source: str) -> ctypes.CDLL | None:
    flags = (
        "-mprefer-vector-width=512",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-ffp-contract=fast",
        "-fopenmp-simd",
    )
    library = native.load(source, name="ngra", openmp=False, flags=flags)
    if library is not None:
        p, i = ctypes.c_void_p, ctypes.c_int64
        library.by_rows.argtypes = [p, p, p, p, p, p, p, i, p]
        library.by_chunks.argtypes = [p, p, p, i, i, p, p, p, p, p, p, p, i, p]
        library.by_chunk.argtypes = [p, p, p, p, p, p, p, i, i]
        library.by_rows.restype = library.by_chunks.restype = library.by_chunk.restype = None
    return library


# ------------------------------------------------------------------------------------------------------- running


@functools.cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    # A forked child inherits the cache but not the threads: the process is part of the key.
    return ThreadPoolExecutor(threads, thread_name_prefix="ngra")


def run(
    kernel: Kernel, tensors: Sequence[Tensor], rows: Rows, grid: Grid | None, threads: int, arcs: int
) -> list[list[Tensor]]:
    """Run a kernel over all rows; the arrays of each output, (rows, *shape), or (arcs, *shape) for form "arc".

    tensors: one per column, (n, *shape) with its last axes contiguous, or a parameter (*shape) where its column is
    marked by a stride of 0 (an expanded tensor).
    """
    count = rows.offsets.numel() - 1
    results: list[list[Tensor]] = []
    memory = workspace()
    for output in kernel.outputs:
        length = arcs if output.form == "arc" else count
        results.append([memory.empty((length, *shape), kind) for shape, kind, _ in output.states(kernel.dtype)])
    if count == 0:
        return results
    columns, steps = _addresses(tensors)
    flat = [state.data_ptr() for states in results for state in states]
    outputs = (ctypes.c_void_p * len(flat))(*flat)
    bounds = task_bounds(rows.offsets, threads)
    counter = ctypes.c_int64(0)
    data = (ctypes.addressof(columns), ctypes.addressof(steps), ctypes.addressof(outputs))
    tail = (bounds.data_ptr(), bounds.numel() - 1, ctypes.addressof(counter))
    library = kernel.library

    if grid is None:
        ids = None if rows.arcs is None else rows.arcs.data_ptr()

        def work() -> None:
            library.by_rows(*data, rows.offsets.data_ptr(), rows.ids.data_ptr(), ids, *tail)
    else:

        def work() -> None:
            library.by_chunks(
                *data, grid.side, grid.intervals, grid.arc_begin.data_ptr(), grid.row_begin.data_ptr(),
                grid.rows.data_ptr(), grid.row_ends.data_ptr(), grid.locals.data_ptr(), grid.arcs.data_ptr(), *tail,
            )  # fmt: skip

    everywhere(work, min(threads, bounds.numel() - 1))
    return results


def fresh_states(kernel: Kernel, rows: int) -> list[list[Tensor]]:
    """The arrays of each output of a kernel before the first arc, each (rows, *shape)."""
    memory = workspace()
    return [
        [memory.empty((rows, *shape), kind).fill_(initial) for shape, kind, initial in output.states(kernel.dtype)]
        for output in kernel.outputs
    ]


def run_chunk(
    kernel: Kernel, tensors: Sequence[Tensor], states: Sequence[Sequence[Tensor]], chunk: Chunk, threads: int
) -> None:
    """Go on accumulating into `states` with the arcs of one chunk; tensors: the columns of its two intervals.

    Where the kernel needs arc ids, the chunk must have them.
    """
    count = chunk.rows.numel()
    columns, steps = _addresses(tensors)
    flat = [state.data_ptr() for parts in states for state in parts]
    outputs = (ctypes.c_void_p * len(flat))(*flat)
    threads = min(threads, count)
    marks = torch.arange(1, threads) * (int(chunk.ends[-1]) // max(1, threads))
    cuts = [0, *torch.searchsorted(chunk.ends.long(), marks).clamp(max=count).tolist(), count]
    parts = iter(range(threads))
    arcs = None if chunk.arcs is None else chunk.arcs.data_ptr()

    def work() -> None:
        part = next(parts)
        kernel.library.by_chunk(
            ctypes.addressof(columns), ctypes.addressof(steps), ctypes.addressof(outputs), chunk.rows.data_ptr(),
            chunk.ends.data_ptr(), chunk.locals.data_ptr(), arcs, cuts[part], cuts[part + 1],
        )  # fmt: skip

    everywhere(work, threads)


def _addresses(tensors: Sequence[Tensor]) -> tuple[Any, Any]:
    """(pointers, strides of the first axis) of columns, as C arrays."""
    columns = (ctypes.c_void_p * max(1, len(tensors)))(*(tensor.data_ptr() for tensor in tensors))
    steps = (ctypes.c_int64 * max(1, len(tensors)))(*(tensor.stride(0) if tensor.dim() else 0 for tensor in tensors))
    return columns, steps


def everywhere(work: Callable[[], None], threads: int) -> None:
    """Call `work` on `threads` threads at once."""
    others = [_pool(os.getpid(), threads - 1).submit(work) for _ in range(threads - 1)] if threads > 1 else []
    try:
        work()
    finally:
        for other in others:
            other.result()


def task_bounds(offsets: Tensor, threads: int) -> Tensor:
    """(tasks + 1,) int64 row bounds of about equal arcs; one task for one thread."""
    count = offsets.numel() - 1
    if threads == 1:
        return torch.tensor([0, count])
    work = offsets + torch.arange(count + 1)  # a row costs something even without arcs
    tasks = max(1, min(count, threads * TASKS_A_THREAD))
    marks = torch.arange(1, tasks) * (int(work[-1]) / tasks)
    inner = torch.searchsorted(work, marks.long())
    return torch.unique(torch.cat([torch.tensor([0]), inner, torch.tensor([count])]))
