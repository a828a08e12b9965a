"""Where the non-zeros are: `TileIndex`, and `detect`, which finds them while the model runs (PIT, section 4)."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from systems.spider import cpu, torch_backend
from systems.spider.rules import DtypeError, PatternError, RoutingError, ShapeError

__all__ = ["TileIndex", "detect"]

# Converted to float32 exactly, and so found by the native detector.
EXACT_IN_FLOAT = (torch.float16, torch.bfloat16, torch.bool, torch.uint8, torch.int8, torch.int16)
LARGEST = 2**31 - 1


@dataclass(frozen=True, eq=False)
class TileIndex:
    """The micro-tiles of a matrix that hold a non-zero, listed along one axis.

    shape: (R, C) of the matrix; dtype: of its elements. axis: the condensed one. axis 1: the matrix is cut into
    groups of r rows (micro_tile (r, 1)), each with a list of columns; axis 0: into blocks of c columns
    (micro_tile (1, c)), each with a list of rows. offsets: (Q + 1,) int64 and indices: (n,) int32, a CSR over
    the Q groups or blocks. values: (n, r or c), zero past the edge, or None where it was not packed.
    Each list ascends. ends: (Q,) int64 where lists have room behind their ends, as the GPU leaves it so that the host
    need not wait for their lengths: list q is indices[offsets[q] : ends[q]], and what follows it is undefined.
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    axis: int
    micro_tile: tuple[int, int]
    offsets: Tensor
    indices: Tensor
    values: Tensor | None = None
    ends: Tensor | None = None

    @property
    def size(self) -> int:
        """Elements of a micro-tile."""
        return self.micro_tile[0] if self.axis == 1 else self.micro_tile[1]

    @property
    def counts(self) -> Tensor:
        """(Q,) int32: the length of each list."""
        return self._lengths().to(torch.int32)

    def _lengths(self) -> Tensor:
        return self.offsets.diff() if self.ends is None else self.ends - self.offsets[:-1]

    def tight(self) -> TileIndex:
        """The same lists without room behind their ends; on a GPU this waits for their lengths."""
        if self.ends is None:
            return self
        lengths = self._lengths()
        offsets = torch.zeros_like(self.offsets)
        torch.cumsum(lengths, 0, out=offsets[1:])
        total = int(offsets[-1])
        shift = (self.offsets - offsets)[:-1].repeat_interleave(lengths, output_size=total)
        taken = torch.arange(total, device=offsets.device) + shift
        values = None if self.values is None else self.values[taken]
        return replace(self, offsets=offsets, indices=self.indices[taken], values=values, ends=None)

    @property
    def density(self) -> float:
        """Kept micro-tiles over all; 0 for an empty matrix."""
        places = self.shape[1] if self.axis == 1 else self.shape[0]
        return int(self._lengths().sum()) / max(1, places * (self.offsets.numel() - 1))

    @property
    def coverage(self) -> float:
        """Kept elements over true non-zeros, at least 1; needs packed values, and is 1 where nothing is kept."""
        if self.values is None:
            raise PatternError("coverage needs the packed values: detect(..., pack=True)")
        if self.ends is not None:
            return self.tight().coverage
        return self._kept() / max(1, int((self.values != 0).sum())) if self.indices.numel() else 1.0

    def _kept(self) -> int:
        extent = self.shape[1 - self.axis]
        last = extent - (self.offsets.numel() - 2) * self.size
        tail = int(self.offsets[-1] - self.offsets[-2])
        return (self.indices.numel() - tail) * self.size + tail * last

    def arrays(self) -> cpu.Arrays:
        """The arrays as the kernels take them."""
        return cpu.Arrays(self.offsets, self.indices, self.values, self.ends)

    def blocks(self) -> Tensor:
        """(n,) int64: the group or block that each entry of a tight index belongs to."""
        assert self.ends is None
        numbers = torch.arange(self.offsets.numel() - 1, device=self.offsets.device)
        return numbers.repeat_interleave(self.offsets.diff(), output_size=self.indices.numel())

    def to_mask(self) -> Tensor:
        """(R, C) bool: the elements that lie in kept micro-tiles."""
        if self.ends is not None:
            return self.tight().to_mask()
        places, extent = (self.shape[1], self.shape[0]) if self.axis == 1 else self.shape
        mask = torch.zeros(self.offsets.numel() - 1, places, dtype=torch.bool, device=self.indices.device)
        mask[self.blocks(), self.indices.long()] = True
        if self.axis == 1:
            return mask.repeat_interleave(self.size, 0)[:extent]
        return mask.t().repeat_interleave(self.size, 1)[:, : self.shape[1]]

    def transpose(self) -> TileIndex:
        """The index of the transposed matrix: the same arrays, read the other way."""
        return replace(self, shape=self.shape[::-1], axis=1 - self.axis, micro_tile=self.micro_tile[::-1])

    @classmethod
    def from_mask(cls, mask: Tensor, micro_tile: tuple[int, int] = (8, 1), backend: str = "auto") -> TileIndex:
        """The index of a (R, C) bool mask, with packed ones and zeros. backend and errors are those of `find`."""
        if mask.dtype != torch.bool:
            raise PatternError(f"mask is {mask.dtype}, expected torch.bool")
        return find(mask, micro_tile, pack=True, backend=backend)

    @classmethod
    def from_lengths(cls, lengths: Tensor, size: int) -> TileIndex:
        """The real tokens of a padded batch: shape (B, size), micro-tiles 1x1, the first lengths[b] of row b.

        lengths: (B,) integers from 0 to size; raises PatternError else.
        """
        lengths = checked_lengths(lengths, size)
        offsets = torch.zeros(lengths.numel() + 1, dtype=torch.int64, device=lengths.device)
        torch.cumsum(lengths, 0, out=offsets[1:])
        total = int(offsets[-1])
        starts = offsets[:-1].repeat_interleave(lengths, output_size=total)
        indices = (torch.arange(total, device=lengths.device) - starts).to(torch.int32)
        return cls((lengths.numel(), size), torch.bool, 1, (1, 1), offsets, indices)

    @classmethod
    def from_experts(cls, ids: Tensor, experts: int) -> TileIndex:
        """The routing of tokens: shape (experts, slots), micro-tiles 1x1; row e lists the slots routed to e.

        ids: (T, k) or (T,) integers from 0 to experts - 1; slot t * k + j is the j-th choice of token t.
        Raises RoutingError for an expert that is not there; on CUDA, where no value is read, the device fails.
        """
        if ids.dtype not in (torch.int32, torch.int64):
            raise DtypeError(f"expert ids are {ids.dtype}, expected int32 or int64")
        flat = ids.reshape(-1).long()
        if flat.is_cuda:
            # Reading a value would make the host wait, and a CUDA graph impossible: the device itself refuses.
            torch._assert_async(((flat >= 0) & (flat < experts)).all(), f"an expert id is not of 0 to {experts - 1}")
        elif flat.numel() and (int(flat.min()) < 0 or int(flat.max()) >= experts):
            low, high = int(flat.min()), int(flat.max())
            raise RoutingError(f"expert ids span {low} to {high}, expected 0 to {experts - 1}")
        sorted_ids, order = torch.sort(flat, stable=True)
        offsets = torch.searchsorted(sorted_ids, torch.arange(experts + 1, device=ids.device))
        return cls((experts, flat.numel()), torch.bool, 1, (1, 1), offsets, order.to(torch.int32))


def checked_lengths(lengths: Tensor, size: int) -> Tensor:
    """`lengths` as (B,) int64, each from 0 to `size`. Raises PatternError that names the first that is not."""
    if lengths.ndim != 1 or lengths.dtype not in (torch.int32, torch.int64):
        raise PatternError(f"lengths is {tuple(lengths.shape)} {lengths.dtype}, expected (B,) int32 or int64")
    wrong = ((lengths < 0) | (lengths > size)).nonzero()
    if wrong.numel():
        place = int(wrong[0])
        raise PatternError(f"lengths[{place}] is {int(lengths[place])}, expected 0 to {size}")
    return lengths.long()


def detect(x: Tensor, micro_tile: tuple[int, int] = (8, 1), *, pack: bool = False) -> TileIndex:
    """Find the micro-tiles of x that hold any element other than zero.

    x: (R, C) of any float, integer or bool dtype. NaN, infinities and denormals count, -0.0 does not.
    micro_tile: (r, 1) lists columns of groups of r rows, (1, c) rows of blocks of c columns. pack: keep the
    values too; 16-bit floats are kept in float32, on a GPU as they are. The lists ascend, so the same matrix gives
    the same index.
    Raises ShapeError unless x is 2-D with at most 2**31 - 1 rows and columns, PatternError for a micro-tile of
    another kind, DtypeError for complex or quantised elements.
    """
    return find(x, micro_tile, pack=pack).tight()


def find(x: Tensor, micro_tile: tuple[int, int], *, pack: bool, backend: str = "auto") -> TileIndex:
    """As `detect`, but the index may have room behind its lists. backend: of `matmul`, "auto" by the device of x."""
    rows, columns = _matrix(x)
    r, c = micro_tile
    if min(r, c) != 1 or max(r, c) > LARGEST:
        raise PatternError(f"micro_tile is {micro_tile}, expected (r, 1) or (1, c) with positive extents")
    axis = 1 if c == 1 else 0
    size = r if axis == 1 else c
    x = x.detach()
    if backend == "triton" or (backend == "auto" and x.is_cuda and importlib.util.find_spec("triton")):
        from systems.spider import gpu

        arrays = gpu.detect(x, size, axis, pack)
    elif x.device.type == "cpu" and cpu.available() and (x.dtype == torch.float32 or x.dtype in EXACT_IN_FLOAT):
        dense = row_major(x if x.dtype == torch.float32 else x.float())
        arrays = cpu.detect_columns(dense, r, pack) if axis == 1 else cpu.detect_rows(dense, c, pack)
    else:
        arrays = torch_backend.detect(x, size, axis, pack)
    values = arrays.values
    if values is not None and x.dtype in (torch.bool, torch.uint8, torch.int8, torch.int16):
        values = values.to(x.dtype)
    offsets, indices, _, ends = arrays
    return TileIndex((rows, columns), x.dtype, axis, micro_tile, offsets, indices, values, ends)


def row_major(x: Tensor) -> Tensor:
    """x itself where its rows are contiguous and do not overlap, else a copy that is so."""
    return x if x.stride(1) == 1 and x.stride(0) >= x.shape[1] else x.contiguous()


def _matrix(x: Tensor) -> tuple[int, int]:
    if x.ndim != 2:
        raise ShapeError(f"x has shape {tuple(x.shape)}, expected two axes")
    if max(x.shape) > LARGEST:
        raise ShapeError(f"x has shape {tuple(x.shape)}, expected at most {LARGEST} rows and columns")
    if x.is_complex() or x.is_quantized or x.layout != torch.strided:
        raise DtypeError(f"x is {x.dtype}, {x.layout}; expected a strided tensor of a float, integer or bool dtype")
    return x.shape[0], x.shape[1]
