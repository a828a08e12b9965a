"""The kernels in plain torch, for every dtype and device: the fallback, and the reference of the native ones.

Arguments and results are those of `cpu`. Sums are torch's own, so they do not add in the order of the native
kernels: results agree, bit for bit only for integers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from systems.spider.cpu import Arrays, Form


def detect(x: Tensor, size: int, axis: int, pack: bool) -> Arrays:
    """axis 1: micro-tiles size x 1, axis 0: 1 x size. x: (rows, columns); values keep its dtype."""
    along = x if axis == 1 else x.t()
    extent, places = along.shape
    blocks = -(-extent // size)
    if blocks * size != extent:
        along = torch.cat([along, along.new_zeros(blocks * size - extent, places)])
    tiles = along.reshape(blocks, size, places)
    kept = (tiles != 0).any(1)
    block, place = kept.nonzero(as_tuple=True)
    offsets = torch.zeros(blocks + 1, dtype=torch.int64, device=x.device)
    torch.cumsum(kept.sum(1), 0, out=offsets[1:])
    values = tiles[block, :, place] if pack else None
    return Arrays(offsets, place.to(torch.int32), values)


def k_gather(index: Arrays, size: int, b: Tensor, rows: int) -> Tensor:
    """As `cpu.k_gather`: for each group, packed values times gathered rows of b."""
    assert index.values is not None
    groups = index.offsets.numel() - 1
    out = b.new_zeros(groups * size, b.shape[1])
    bounds = index.offsets.tolist()
    for q in range(groups):
        begin, end = bounds[q], bounds[q + 1]
        if begin < end:
            gathered = b.index_select(0, index.indices[begin:end])
            torch.mm(index.values[begin:end].t(), gathered, out=out[q * size : (q + 1) * size])
    return out[:rows]


def m_gather(index: Arrays, size: int, b: Tensor, rows: int) -> Tensor:
    """As `cpu.m_gather`: for each block, packed strips times a slice of b, added to the listed rows."""
    assert index.values is not None
    out = b.new_zeros(rows, b.shape[1])
    bounds = index.offsets.tolist()
    for q in range(len(bounds) - 1):
        begin, end = bounds[q], bounds[q + 1]
        if begin < end:
            part = b[q * size : (q + 1) * size]
            out.index_add_(0, index.indices[begin:end], index.values[begin:end, : part.shape[0]] @ part)
    return out


def pack(index: Arrays, size: int, x: Tensor) -> Tensor:
    """As `cpu.pack`."""
    rows, columns = x.shape
    groups = index.offsets.numel() - 1
    padded = torch.cat([x, x.new_zeros(groups * size - rows, columns)]) if groups * size != rows else x
    numbers = torch.arange(groups, device=x.device).repeat_interleave(index.offsets.diff())
    return padded.reshape(groups, size, columns)[numbers, :, index.indices.long()]


def elements(index: Arrays, size: int, columns: int) -> Arrays:
    """As `cpu.elements`."""
    assert index.values is not None
    numbers = torch.arange(index.offsets.numel() - 1, device=index.indices.device)
    groups = numbers.repeat_interleave(index.offsets.diff())
    entry, lane = (index.values != 0).nonzero(as_tuple=True)
    row, column = groups[entry] * size + lane, index.indices[entry].long()
    order = torch.argsort(row, stable=True)
    order = order[torch.argsort(column[order], stable=True)]
    offsets = torch.zeros(columns + 1, dtype=torch.int64, device=row.device)
    torch.cumsum(torch.bincount(column, minlength=columns), 0, out=offsets[1:])
    return Arrays(offsets, row[order].to(torch.int32), index.values[entry, lane][order, None])


def sampled(index: Arrays, size: int, x: Tensor, y: Tensor, form: Form) -> Tensor:
    """As `cpu.sampled`."""
    assert index.values is not None
    rows, others = x.shape[0], y.shape[0]
    dots = x.new_zeros(index.indices.numel(), size)
    out = x.new_zeros(others, -(-rows // size) * size) if form != "packed" else None
    bounds = index.offsets.tolist()
    for q in range(len(bounds) - 1):
        begin, end = bounds[q], bounds[q + 1]
        if begin == end:
            continue
        part = x[q * size : (q + 1) * size]
        kept = index.values[begin:end, : part.shape[0]] != 0
        # where, not a product with the mask: 0 * inf would be NaN
        wanted = torch.where(kept, y.index_select(0, index.indices[begin:end]) @ part.t(), 0)
        dots[begin:end, : part.shape[0]] = wanted
        if out is not None:
            out[:, q * size : (q + 1) * size].index_copy_(0, index.indices[begin:end].long(), dots[begin:end])
    if out is None:
        return dots
    return out[:, :rows].contiguous() if form == "transposed" else out[:, :rows].t().contiguous()


def grouped(offsets: Tensor, rows: Tensor, x: Tensor, w: Tensor) -> Tensor:
    """As `cpu.grouped`: one product an expert."""
    out = x.new_empty(rows.numel(), w.shape[2])
    gathered = x.index_select(0, rows)
    bounds = offsets.tolist()
    for expert in range(w.shape[0]):
        begin, end = bounds[expert], bounds[expert + 1]
        if begin < end:
            torch.mm(gathered[begin:end], w[expert], out=out[begin:end])
    return out


def grouped_outer(offsets: Tensor, rows: Tensor, x: Tensor, dy: Tensor) -> Tensor:
    """(E, depth, columns): for each expert the sum over its entries j of x[rows[j]] outer dy[j]."""
    experts = offsets.numel() - 1
    out = x.new_zeros(experts, x.shape[1], dy.shape[1])
    gathered = x.index_select(0, rows)
    bounds = offsets.tolist()
    for expert in range(experts):
        begin, end = bounds[expert], bounds[expert + 1]
        if begin < end:
            torch.mm(gathered[begin:end].t(), dy[begin:end], out=out[expert])
    return out
