"""Native CPU kernels, single precision: what kernels.c does, on torch tensors.

This is the lowest floor: arguments were validated by the operators above, and nothing here knows of rules,
plans or gradients. An index is given as its arrays `(offsets, indices, values)`:

offsets: (blocks + 1,) int64; indices: (entries,) int32, ascending in each block; values: (entries, size) float32.

`available()` says whether a compiler was there; `threads` is torch's own setting (`torch.set_num_threads`), and
never changes a bit of a result.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from systems import native

SOURCE = Path(__file__).with_name("kernels.c")
SIGNATURES = {  # p: pointer, i: 64-bit integer
    "lanes": "",
    "panel_width": "i",
    "detect_k": "piiiiiipppp",
    "flag_m": "piiiiiip",
    "list_m": "piiiiiipppp",
    "pack": "piiiiiippp",
    "elements": "pppiiipppp",
    "profile": "piiiipp",
    "k_gather": "pppiipipiiiiiipp",
    "m_gather": "pppiipipiiiipp",
    "grouped": "ppipipiipiipp",
    "sampled": "pppiipipipiiiiiiip",
}
RETURNING = ("lanes", "panel_width")
ROWS_A_THREAD = 64  # fewer are detected by one thread: starting another would cost more
REUSE = 3  # a panel is copied where its rows are used more often than this on average
SAMPLED_BYTES = 384 * 1024  # of the second operand of `sampled`, kept in the second-level cache


Form = Literal["dense", "transposed", "packed"]
"""How `sampled` gives its result."""


class Arrays(NamedTuple):
    """The arrays of an index; see the module."""

    offsets: Tensor
    indices: Tensor
    values: Tensor | None
    ends: Tensor | None = None  # where a list ends before the next one begins; see `gpu`


class Counts(NamedTuple):
    """Share of kept micro-tiles, by shape, in a sample of rows: each 0 to 1."""

    elements: float
    pairs: float
    fours: float
    eights: float
    strips16: float
    strips32: float
    strips64: float
    rows: float


@functools.cache
def _library() -> ctypes.CDLL | None:
    library = native.load(SOURCE, name="spider", openmp=False)
    if library is not None:
        for name, signature in SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes = [ctypes.c_void_p if kind == "p" else ctypes.c_int64 for kind in signature]
            function.restype = ctypes.c_int64 if name in RETURNING else None
    return library


def available() -> bool:
    """Whether the kernels are there; the first call builds them (about 3 s, once per machine)."""
    return _library() is not None


def _kernels() -> ctypes.CDLL:
    library = _library()
    if library is None:
        raise native.NoCompiler("the native kernels of Spider are not available: check cpu.available() first")
    return library


@functools.cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    # A forked child inherits the cache but not the threads: the process is part of the key.
    return ThreadPoolExecutor(threads, thread_name_prefix="spider")


def _everywhere(work: Callable[[int], None], most: int) -> None:
    """Call work(0) ... work(n - 1) at once, for n threads but no more than `most` items of work."""
    n = min(torch.get_num_threads(), most)
    others = [_pool(os.getpid(), n - 1).submit(work, i) for i in range(1, n)] if n > 1 else []
    try:
        work(0)
    finally:
        for other in others:
            other.result()


def _shared(items: int, floats: int, kernel: Callable[[ctypes.c_void_p, ctypes.c_void_p], None]) -> None:
    """Run a kernel on all threads: they share a counter of items; each has a buffer of `floats`."""
    counter = ctypes.c_int64(0)
    address = ctypes.c_void_p(ctypes.addressof(counter))

    def work(_: int) -> None:
        buffer = torch.empty(floats)
        kernel(address, ctypes.c_void_p(buffer.data_ptr()))

    _everywhere(work, items)


# ------------------------------------------------------------------------------------------------ detection


def detect_columns(x: Tensor, size: int, pack: bool) -> Arrays:
    """Micro-tiles size x 1: for each group of `size` rows the columns that hold a non-zero.

    x: (rows, columns) float32, unit stride along columns.
    """
    rows, columns = x.shape
    groups = -(-rows // size)
    offsets = torch.zeros(groups + 1, dtype=torch.int64)
    # Room for all, of which only what is found is ever touched.
    indices = torch.empty(groups * columns, dtype=torch.int32)
    values = torch.empty(groups * columns, size) if pack else None
    parts = max(1, min(torch.get_num_threads(), rows // ROWS_A_THREAD))
    bounds = [groups * part // parts for part in range(parts + 1)]
    kernel = _kernels().detect_k

    def work(part: int) -> None:
        begin, end = bounds[part], bounds[part + 1]
        room = torch.empty(columns + 8, dtype=torch.uint8)
        kernel(
            x.data_ptr(), x.stride(0), rows, columns, size, begin, end, room.data_ptr(),
            indices.data_ptr() + 4 * begin * columns,
            values.data_ptr() + 4 * begin * columns * size if values is not None else None,
            offsets.data_ptr() + 8,
        )  # fmt: skip

    if groups and columns:
        if parts > 1:
            _everywhere(work, parts)
        else:
            work(0)
    torch.cumsum(offsets, 0, out=offsets)
    ends = [int(offsets[bound]) for bound in bounds] if parts > 1 else [0, int(offsets[-1])]
    for part in range(1, parts):  # close the gaps between the parts; each moves towards the start
        here, start, n = bounds[part] * columns, ends[part], ends[part + 1] - ends[part]
        ctypes.memmove(indices.data_ptr() + 4 * start, indices.data_ptr() + 4 * here, 4 * n)
        if values is not None:
            ctypes.memmove(values.data_ptr() + 4 * start * size, values.data_ptr() + 4 * here * size, 4 * n * size)
    return Arrays(offsets, indices[: ends[-1]], values[: ends[-1]] if values is not None else None)


def detect_rows(x: Tensor, size: int, pack: bool) -> Arrays:
    """Micro-tiles 1 x size: for each block of `size` columns the rows that hold a non-zero; x as above."""
    rows, columns = x.shape
    blocks = -(-columns // size)
    found = torch.empty(blocks, rows, dtype=torch.uint8)
    offsets = torch.zeros(blocks + 1, dtype=torch.int64)
    library = _kernels()
    parts = max(1, min(torch.get_num_threads(), rows // ROWS_A_THREAD))

    def flag(part: int) -> None:
        begin, end = rows * part // parts, rows * (part + 1) // parts
        library.flag_m(x.data_ptr(), x.stride(0), rows, columns, size, begin, end, found.data_ptr())

    _everywhere(flag, parts)
    if blocks and rows:
        torch.cumsum(found.sum(1), 0, out=offsets[1:])
    entries = int(offsets[-1])
    indices = torch.empty(entries, dtype=torch.int32)
    values = torch.empty(entries, size) if pack else None

    def write(part: int) -> None:
        begin, end = blocks * part // parts, blocks * (part + 1) // parts
        library.list_m(
            x.data_ptr(), x.stride(0), rows, columns, size, begin, end, found.data_ptr(), offsets.data_ptr(),
            indices.data_ptr(), values.data_ptr() if values is not None else None,
        )  # fmt: skip

    _everywhere(write, parts)
    return Arrays(offsets, indices, values)


def pack(index: Arrays, size: int, x: Tensor) -> Tensor:
    """(entries, size): the values of x, (rows, columns) float32 with any strides, at an index of it in size x 1
    micro-tiles. For micro-tiles 1 x size give the transposed view."""
    values = torch.empty(index.indices.numel(), size)
    kernel = _kernels().pack
    groups = index.offsets.numel() - 1
    parts = max(1, min(torch.get_num_threads(), groups, values.numel() // 2**16))

    def work(part: int) -> None:
        begin, end = groups * part // parts, groups * (part + 1) // parts
        kernel(
            x.data_ptr(), x.stride(0), x.stride(1), x.shape[0], size, begin, end, index.offsets.data_ptr(),
            index.indices.data_ptr(), values.data_ptr(),
        )  # fmt: skip

    _everywhere(work, parts)
    return values


def elements(index: Arrays, size: int, columns: int) -> Arrays:
    """From size x 1 micro-tiles of S to 1 x 1 micro-tiles of its transpose: each column's non-zero rows."""
    assert index.values is not None
    assert index.values.dtype == torch.float32, index.values.dtype  # or what lies behind them would be read
    kernel = _kernels().elements
    offsets = torch.zeros(columns + 1, dtype=torch.int64)
    place = torch.empty(columns, dtype=torch.int64)
    arguments = (
        index.offsets.data_ptr(), index.indices.data_ptr(), index.values.data_ptr(), size,
        index.offsets.numel() - 1, columns, offsets.data_ptr(), place.data_ptr(),
    )  # fmt: skip
    kernel(*arguments, None, None)
    entries = int(offsets[-1])
    # One spare entry: an empty tensor has no address, and NULL asks for the count.
    indices, values = torch.empty(entries + 1, dtype=torch.int32), torch.empty(entries + 1, 1)
    kernel(*arguments, indices.data_ptr(), values.data_ptr())
    return Arrays(offsets, indices[:entries], values[:entries])


_NINE = ctypes.c_int64 * 9


def profile(x: Tensor, blocks: int) -> Counts:
    """The densities of all micro-tile shapes, counted in one pass over `blocks` spread blocks of 8 rows of x."""
    rows, columns = x.shape
    counts = _NINE()
    blocks = min(blocks, -(-rows // 8))
    room = torch.empty(columns + 64, dtype=torch.uint8)
    _kernels().profile(x.data_ptr(), x.stride(0), rows, columns, blocks, room.data_ptr(), ctypes.addressof(counts))
    seen, groups = max(counts[8], 1), max(blocks, 1)
    columns = max(columns, 1)
    return Counts(
        counts[0] / (seen * columns),
        counts[1] / (-(-seen // 2) * columns),
        counts[2] / (-(-seen // 4) * columns),
        counts[3] / (groups * columns),
        counts[4] / (seen * -(-columns // 16)),
        counts[5] / (seen * -(-columns // 32)),
        counts[6] / (seen * -(-columns // 64)),
        counts[7] / seen,
    )


# ------------------------------------------------------------------------------------------------- products


def k_gather(index: Arrays, size: int, b: Tensor, rows: int) -> Tensor:
    """S @ b for S of shape (rows, depth), indexed in size x 1 micro-tiles; b: (depth, columns) float32.

    b needs a unit stride along columns. Returns (rows, columns) float32.
    """
    assert index.values is not None
    library = _kernels()
    depth, columns = b.shape
    out = torch.empty(rows, columns)
    groups = index.offsets.numel() - 1
    width = library.panel_width(size)
    panels = -(-columns // width)
    if not rows or not columns:
        return out
    threads = torch.get_num_threads()
    # Whole panels to a thread where there are enough of them; else groups are split too.
    parts = 1 if threads == 1 or panels >= 4 * threads else min(groups, -(-4 * threads // panels))
    entries = index.indices.numel() * max(1, size // 8)
    packed = entries > REUSE * depth * parts
    arguments = (
        index.offsets.data_ptr(), index.indices.data_ptr(), index.values.data_ptr(), size, groups,
        b.data_ptr(), b.stride(0), out.data_ptr(), out.stride(0), rows, columns, depth, parts, int(packed),
    )  # fmt: skip
    _shared(panels * parts, depth * width, lambda counter, buffer: library.k_gather(*arguments, counter, buffer))
    return out


def m_gather(index: Arrays, size: int, b: Tensor, rows: int) -> Tensor:
    """S @ b for S of shape (rows, depth), indexed in 1 x size micro-tiles; b and the result as in k_gather."""
    assert index.values is not None
    library = _kernels()
    depth, columns = b.shape
    out = torch.empty(rows, columns)
    width = library.panel_width(8)
    if not rows or not columns:
        return out
    arguments = (
        index.offsets.data_ptr(), index.indices.data_ptr(), index.values.data_ptr(), size,
        index.offsets.numel() - 1, b.data_ptr(), b.stride(0), out.data_ptr(), out.stride(0), rows, columns, depth,
    )  # fmt: skip
    items = -(-columns // width) * -(-rows // 1024)
    floats = (depth + 1024) * width
    _shared(items, floats, lambda counter, buffer: library.m_gather(*arguments, counter, buffer))
    return out


def sampled(index: Arrays, size: int, x: Tensor, y: Tensor, form: Form) -> Tensor:
    """x @ y.T at the non-zeros of S, zero elsewhere.

    x: (rows, depth), y: (others, depth), unit strides along depth; S of shape (rows, others) is indexed in
    size x 1 micro-tiles. Returns (rows, others); "transposed": (others, rows); "packed": (entries, size), in the
    order of the index.
    """
    assert index.values is not None
    library = _kernels()
    (rows, depth), others = x.shape, y.shape[0]
    if form == "packed":
        # The last block may be cut by the edge of S: what lies past it is not written, and must count as zero.
        out = torch.zeros(index.indices.numel(), size)
    else:
        out = torch.zeros((others, rows) if form == "transposed" else (rows, others))
    strides = (1, rows) if form == "transposed" else (others, 1)
    parts = max(1, -(-others * depth * 4 // SAMPLED_BYTES))
    parts = min(others, -(-parts // torch.get_num_threads()) * torch.get_num_threads())
    arguments = (
        index.offsets.data_ptr(), index.indices.data_ptr(), index.values.data_ptr(), size,
        index.offsets.numel() - 1, x.data_ptr(), x.stride(0), y.data_ptr(), y.stride(0), out.data_ptr(), *strides,
        rows, others, depth, parts, int(form == "packed"),
    )  # fmt: skip
    if out.numel():
        _shared(parts, 1, lambda counter, buffer: library.sampled(*arguments, counter))
    return out


def grouped(offsets: Tensor, rows: Tensor, x: Tensor, w: Tensor) -> Tensor:
    """out[j] = x[rows[j]] @ w[e] for the entries j of offsets[e] .. offsets[e + 1].

    offsets: (E + 1,) int64; rows: (n,) int32; x: (T, depth); w: (E, depth, columns) with a unit last stride.
    """
    library = _kernels()
    experts, depth, columns = w.shape
    out = torch.empty(rows.numel(), columns)
    width = library.panel_width(8)
    arguments = (
        offsets.data_ptr(), rows.data_ptr(), experts, x.data_ptr(), x.stride(0), w.data_ptr(), w.stride(0),
        w.stride(1), out.data_ptr(), columns, depth,
    )  # fmt: skip
    items = experts * -(-columns // width)
    floats = (depth + 8) * width
    if out.numel():
        _shared(items, floats, lambda counter, buffer: library.grouped(*arguments, counter, buffer))
    return out
