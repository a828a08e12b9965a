"""A graph on disk, cut into chunks: built without holding its arcs, checksummed, renamed into place.

A `ChunkStore` is a folder:

- `meta.json`: version, sizes, and the CRC32 of every part of every file;
- `forward.bin`, `backward.bin`: the arc chunks by destination and by source, with `chunks.npz` as table of contents;
- `forward.arcs`, `backward.arcs`: canonical arc ids of those arcs, which only max and min read;
- `vertices.npz`: the vertex order, and in- and out-degrees; `x.bin`: vertex data in that order, row by row.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from systems.ngra.graph import DEFAULT_CHUNK, MOST_CHUNK, MOST_VERTICES, PADDING, GraphError, StoreError
from systems.ngra.kernels import Chunk

VERSION = 1
USED_ROWS = 64  # vertices that one bit of a chunk's map of used sources stands for
ALIGN = 64
BLOCK = 1 << 20  # arcs that are held at a time while building
Array = np.ndarray[Any, Any]


def _layout(rows: int, arcs: int) -> tuple[int, int, int]:
    """(where row ends begin, where local ids begin, bytes of the chunk)."""
    ends = -(-2 * rows // ALIGN) * ALIGN
    ids = ends + -(-4 * (rows + 1) // ALIGN) * ALIGN
    return ends, ids, ids + -(-2 * arcs // ALIGN) * ALIGN


class ChunkStore:
    """An open store; see the module. Reads go into the caller's buffers by `preadv`, and are counted by the caller."""

    def __init__(
        self, folder: Path, meta: dict[str, Any], tables: dict[str, Array], vertices: dict[str, Array]
    ) -> None:
        self.folder, self.meta = folder, meta
        self.num_vertices: int = meta["vertices"]
        self.num_arcs: int = meta["arcs"]
        self.side: int = meta["chunk_vertices"]
        self.width: int = meta["features"]
        self.intervals = -(-self.num_vertices // self.side)
        self.tables = tables
        self.order = torch.from_numpy(vertices["order"]) if len(vertices["order"]) else None
        self.in_degree = torch.from_numpy(vertices["in_degree"])
        self.out_degree = torch.from_numpy(vertices["out_degree"])
        self._files = {name: os.open(folder / name, os.O_RDONLY) for name in FILES}

    def close(self) -> None:
        """Close the files; the store cannot be read after."""
        for file in self._files.values():
            os.close(file)
        self._files = {}

    def __enter__(self) -> ChunkStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def resident_bytes(self) -> int:
        """What stays in memory while the store is open: degrees, the vertex order and the table of contents."""
        held = [self.in_degree, self.out_degree, *([] if self.order is None else [self.order])]
        tables = sum(int(table.nbytes) for table in self.tables.values())
        return tables + sum(part.numel() * part.element_size() for part in held)

    def rows_of(self, interval: int) -> tuple[int, int]:
        """The vertices (first, last + 1) of an interval."""
        return interval * self.side, min(self.num_vertices, (interval + 1) * self.side)

    # ---------------------------------------------------------------------------------------------- reading

    def chunk_bytes(self, direction: str, row: int, neighbour: int, arcs: bool = False) -> int:
        """Bytes that `read_chunk` reads."""
        k = row * self.intervals + neighbour
        count = int(self.tables[f"{direction}_arcs"][k])
        if not count:
            return 0
        return _layout(int(self.tables[f"{direction}_rows"][k]), count)[2] + (4 * count if arcs else 0)

    def largest_chunk(self, direction: str, arcs: bool = False) -> int:
        """The most bytes that one chunk takes in memory."""
        pairs = ((i, j) for i in range(self.intervals) for j in range(self.intervals))
        return 2 * PADDING + max((self.chunk_bytes(direction, i, j, arcs) for i, j in pairs), default=0)

    def read_chunk(self, direction: str, row: int, neighbour: int, buffer: Tensor, arcs: bool = False) -> Chunk | None:
        """Read a chunk into `buffer` (bytes), which its parts then lie in; None where it has no arcs.

        Raises StoreError naming file and chunk where the file ends early.
        """
        k = row * self.intervals + neighbour
        count, rows = (int(self.tables[f"{direction}_{what}"][k]) for what in ("arcs", "rows"))
        if not count:
            return None
        ends, ids, size = _layout(rows, count)
        name = f"{direction}.bin"
        self._read(name, int(self.tables[f"{direction}_at"][k]), buffer[:size], f"chunk ({row}, {neighbour})")
        numbers = None
        if arcs:
            tail = -(-(size + 2 * PADDING) // ALIGN) * ALIGN
            numbers = buffer[tail : tail + 4 * count]
            at = 4 * int(self.tables[f"{direction}_first"][k])
            self._read(f"{direction}.arcs", at, numbers, f"chunk ({row}, {neighbour})")
            numbers = numbers.view(torch.int32)
        return Chunk(
            buffer[: 2 * rows].view(torch.uint16),
            buffer[ends : ends + 4 * (rows + 1)].view(torch.uint32),
            buffer[ids : ids + 2 * (count + PADDING)].view(torch.uint16),
            numbers,
        )

    def read_rows(self, first: int, last: int, out: Tensor) -> None:
        """Vertex data of the internal ids `first` to `last` into out: (last - first, features) float32."""
        size = 4 * self.width
        self._read("x.bin", first * size, out, f"rows {first} to {last}")

    def _read(self, name: str, at: int, out: Tensor, what: str) -> None:
        read_into(self._files[name], at, out, f"{self.folder / name}: {what}")

    def used(self, direction: str, rows: Iterable[int], neighbour: int) -> Array:
        """(groups of `USED_ROWS`,) bool: the parts of a neighbour interval that chunks of some row intervals use."""
        table = self.tables[f"{direction}_used"]
        found = np.zeros(table.shape[1] * 8, bool)
        for row in rows:
            found |= np.unpackbits(table[row * self.intervals + neighbour]).astype(bool)
        return found

    # ---------------------------------------------------------------------------------------------- opening

    @classmethod
    def open(cls, folder: str | Path, verify: bool = False) -> ChunkStore:
        """Open a folder that `build` made; verify: read all of it and compare the checksums.

        Raises StoreError naming the file (and chunk) that is missing, of another version, cut short or damaged.
        """
        root = Path(folder)
        try:
            meta = json.loads((root / "meta.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StoreError(f"{root / 'meta.json'}: no store, or a damaged one ({error}); build it anew") from error
        if not isinstance(meta, dict) or meta.get("version") != VERSION:
            found = meta.get("version") if isinstance(meta, dict) else None
            raise StoreError(f"{root / 'meta.json'}: version {found!r}, expected {VERSION}; build the store anew")
        for name, size in meta["sizes"].items():
            path = root / name
            if not path.exists() or path.stat().st_size != size:
                has = path.stat().st_size if path.exists() else "no"
                raise StoreError(f"{path}: {has} bytes, expected {size}: damaged, or of another store")
        for name in ("chunks.npz", "vertices.npz"):
            if _crc_of(root / name) != meta["crc"][name]:
                raise StoreError(f"{root / name}: damaged: its checksum is not that of meta.json")
        with np.load(root / "chunks.npz", allow_pickle=False) as held:
            tables = {name: held[name] for name in held.files}
        with np.load(root / "vertices.npz", allow_pickle=False) as held:
            vertices = {name: held[name] for name in held.files}
        store = cls(root, meta, tables, vertices)
        if verify:
            try:
                store.verify()
            except StoreError:
                store.close()
                raise
        return store

    def verify(self) -> None:
        """Compare every checksum. Raises StoreError naming the file and chunk."""
        for direction in ("forward", "backward"):
            for k in range(self.intervals**2):
                i, j = divmod(k, self.intervals)
                count = int(self.tables[f"{direction}_arcs"][k])
                if not count:
                    continue
                size = _layout(int(self.tables[f"{direction}_rows"][k]), count)[2]
                parts = (
                    (f"{direction}.bin", int(self.tables[f"{direction}_at"][k]), size, f"{direction}_crc"),
                    (f"{direction}.arcs", 4 * int(self.tables[f"{direction}_first"][k]), 4 * count, f"{direction}_ids"),
                )
                for name, at, length, table in parts:
                    out = torch.empty(length, dtype=torch.uint8)
                    self._read(name, at, out, f"chunk ({i}, {j})")
                    if zlib.crc32(out.numpy().data) != int(self.tables[table][k]):
                        raise StoreError(f"{self.folder / name}: chunk ({i}, {j}) is damaged: its checksum differs")
        for k, crc in enumerate(self.meta["crc"]["x.bin"]):
            first, last = self.rows_of(k)
            rows = torch.empty(last - first, self.width)
            self.read_rows(first, last, rows)
            if zlib.crc32(rows.numpy().view(np.uint8).reshape(-1).data) != crc:
                raise StoreError(f"{self.folder / 'x.bin'}: rows {first} to {last} are damaged: their checksum differs")

    # --------------------------------------------------------------------------------------------- building

    @classmethod
    def build(
        cls, folder: str | Path, blocks: Iterable[tuple[Any, Any]], vertices: int,
        features: Any = None, *, chunk_vertices: int = DEFAULT_CHUNK, order: str = "degree",
        self_loops: bool = False, progress: Callable[[str], None] = lambda line: None,
    ) -> ChunkStore:  # fmt: skip
        """Build a store at `folder`, which must not exist, and open it.

        blocks: an iterable of (src, dst), each (k,) integers: never more than one of them, and one chunk, is held;
        features: (vertices, width) float32 as an array, the path of an .npy file, or an iterable of blocks of rows;
        order: "degree" or "natural"; self_loops: drop those that are there and add one for each vertex.
        Raises GraphError for ids out of range, StoreError where the disk is full or the folder exists.
        """
        if not 1 <= chunk_vertices <= MOST_CHUNK:
            raise GraphError(f"chunk_vertices is {chunk_vertices!r}, expected 1 to {MOST_CHUNK}")
        if order not in {"degree", "natural"}:
            raise GraphError(f"order is {order!r}, expected degree or natural: others need the whole graph in memory")
        if not 0 <= vertices <= MOST_VERTICES:
            raise GraphError(f"vertices is {vertices}, expected 0 to {MOST_VERTICES}")
        target = Path(folder)
        if target.exists():
            raise StoreError(f"{target} exists; remove it, or build elsewhere")
        target.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f".{target.name}.building-", dir=target.parent))
        try:
            _Building(place, vertices, chunk_vertices, progress).run(blocks, features, order, self_loops)
            _flush(place)
            place.rename(target)
            _flush(target.parent)
        except OSError as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"{target} was not built: {error}; nothing is left of it") from error
        finally:
            shutil.rmtree(place, ignore_errors=True)
        return cls.open(target)


FILES = ("forward.bin", "backward.bin", "forward.arcs", "backward.arcs", "x.bin")


class _Building:
    """The passes of `ChunkStore.build`, in a folder of its own."""

    def __init__(self, place: Path, vertices: int, side: int, progress: Callable[[str], None]) -> None:
        self.place, self.n, self.side, self.progress = place, vertices, side, progress
        self.intervals = -(-vertices // side)

    def run(self, blocks: Iterable[tuple[Any, Any]], features: Any, order: str, loops: bool) -> None:
        """All of it."""
        in_degree, out_degree = self._gather(blocks, loops)
        self.progress(f"{self.arcs} arcs of {self.n} vertices read")
        permutation = np.argsort(-(in_degree + out_degree), kind="stable") if order == "degree" else None
        rank = None
        if permutation is not None:
            rank = np.empty(self.n, np.int32)
            rank[permutation] = np.arange(self.n, dtype=np.int32)
            in_degree, out_degree = in_degree[permutation], out_degree[permutation]
        counts = self._partition(rank)
        self.progress(f"{self.intervals} x {self.intervals} chunks counted and filled")
        tables = self._chunks(counts, in_degree)
        width, crc = self._features(features, rank)
        empty = np.empty(0, np.int64)
        np.savez(self.place / "chunks.npz", allow_pickle=False, **tables)
        np.savez(
            self.place / "vertices.npz", order=empty if permutation is None else permutation.astype(np.int64),
            in_degree=in_degree.astype(np.int32), out_degree=out_degree.astype(np.int32),
        )  # fmt: skip
        (self.place / "raw").unlink()
        (self.place / "parts").unlink()
        names = (*FILES, "chunks.npz", "vertices.npz")
        meta = {
            "version": VERSION, "vertices": self.n, "arcs": self.arcs, "chunk_vertices": self.side, "order": order,
            "features": width, "self_loops": loops,
            "sizes": {name: (self.place / name).stat().st_size for name in names},
            "crc": {"x.bin": crc} | {name: _crc_of(self.place / name) for name in ("chunks.npz", "vertices.npz")},
        }  # fmt: skip
        (self.place / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
        for name in (*names, "meta.json"):
            _flush(self.place / name)

    def _gather(self, blocks: Iterable[tuple[Any, Any]], loops: bool) -> tuple[Array, Array]:
        """Arcs to one file of pairs, and the degrees."""
        in_degree, out_degree = np.zeros(self.n, np.int64), np.zeros(self.n, np.int64)
        self.arcs = 0
        with (self.place / "raw").open("wb") as raw:
            for src, dst in self._and_loops(blocks, loops):
                out_degree += np.bincount(src, minlength=self.n)
                in_degree += np.bincount(dst, minlength=self.n)
                np.stack([src, dst], 1).astype(np.int32).tofile(raw)
                self.arcs += len(src)
        if self.arcs >= MOST_VERTICES:
            raise GraphError(f"{self.arcs} arcs: canonical ids are 32 bits, so at most {MOST_VERTICES - 1} fit")
        return in_degree, out_degree

    def _and_loops(self, blocks: Iterable[tuple[Any, Any]], loops: bool) -> Iterator[tuple[Array, Array]]:
        first = 0
        for src, dst in blocks:
            source, destination = _ids("src", src, self.n, first), _ids("dst", dst, self.n, first)
            if len(source) != len(destination):
                raise GraphError(f"a block holds {len(source)} sources and {len(destination)} destinations")
            first += len(source)
            if loops:
                kept = source != destination
                source, destination = source[kept], destination[kept]
            yield source, destination
        if loops:
            for begin in range(0, self.n, BLOCK):
                ids = np.arange(begin, min(self.n, begin + BLOCK))
                yield ids, ids

    def _pairs(self, rank: Array | None) -> Iterator[tuple[Array, Array, Array]]:
        """(chunk, src, dst) of blocks of arcs, in internal ids."""
        with (self.place / "raw").open("rb") as raw:
            while len(pairs := np.fromfile(raw, np.int32, 2 * BLOCK)):
                src, dst = pairs[0::2], pairs[1::2]
                if rank is not None:
                    src, dst = rank[src], rank[dst]
                yield (dst // self.side).astype(np.int64) * self.intervals + src // self.side, src, dst

    def _partition(self, rank: Array | None) -> Array:
        """Pairs to a file, chunk by chunk, in input order within each; the arcs of each chunk."""
        counts = np.zeros(self.intervals**2, np.int64)
        for chunk, _, _ in self._pairs(rank):
            counts += np.bincount(chunk, minlength=len(counts))
        cursor = np.concatenate([[0], np.cumsum(counts)])[:-1]
        with (self.place / "parts").open("wb") as parts:
            for chunk, src, dst in self._pairs(rank):
                order = np.argsort(chunk, kind="stable")
                pairs = np.stack([src[order], dst[order]], 1).astype(np.int32)
                here, begins = np.unique(chunk[order], return_index=True)
                for k, begin, end in zip(here, begins, [*begins[1:], len(order)], strict=True):
                    parts.seek(8 * int(cursor[k]))
                    pairs[begin:end].tofile(parts)
                    cursor[k] += end - begin
        return counts

    def _chunks(self, counts: Array, in_degree: Array) -> dict[str, Array]:
        total = self.intervals**2
        groups = -(-self.side // (8 * USED_ROWS))
        tables: dict[str, Array] = {}
        for direction in ("forward", "backward"):
            for what, kind in (("at", np.int64), ("first", np.int64), ("rows", np.int64), ("arcs", np.int64)):
                tables[f"{direction}_{what}"] = np.zeros(total, kind)
            for what in ("crc", "ids"):
                tables[f"{direction}_{what}"] = np.zeros(total, np.uint32)
            tables[f"{direction}_used"] = np.zeros((total, groups), np.uint8)
        starts = np.concatenate([[0], np.cumsum(counts)])
        offsets = np.concatenate([[0], np.cumsum(in_degree)])
        names = [self.place / name for name in FILES[:4]]
        with (
            names[0].open("wb") as forth,
            names[1].open("wb") as back,
            names[2].open("wb") as forth_ids,
            names[3].open("wb") as back_ids,
            (self.place / "parts").open("rb") as parts,
        ):
            for i in range(self.intervals):
                first = i * self.side
                base = offsets[first : min(self.n, first + self.side)].copy()  # the next canonical id of each row
                for j in range(self.intervals):
                    k = i * self.intervals + j
                    if not counts[k]:
                        continue
                    parts.seek(8 * int(starts[k]))
                    pairs = np.fromfile(parts, np.int32, 2 * int(counts[k]))
                    src, dst = pairs[0::2] - j * self.side, pairs[1::2] - first
                    order = np.lexsort((src, dst))
                    src, dst = src[order], dst[order]
                    per_row = np.bincount(dst, minlength=len(base))
                    within = np.arange(len(dst)) - np.repeat(np.cumsum(per_row) - per_row, per_row)
                    ids = (base[dst] + within).astype(np.int32)
                    base += per_row
                    self._write(tables, "forward", k, forth, forth_ids, dst, src, ids)
                    order = np.lexsort((ids, dst, src))
                    back_k = j * self.intervals + i
                    self._write(tables, "backward", back_k, back, back_ids, src[order], dst[order], ids[order])
                self.progress(f"interval {i + 1} of {self.intervals} sorted")
        return tables

    def _write(
        self, tables: dict[str, Array], direction: str, k: int, file: Any, ids_file: Any, rows: Array,
        neighbours: Array, ids: Array,
    ) -> None:  # fmt: skip
        """One chunk; its arcs are sorted by row, then neighbour."""
        distinct, begins = np.unique(rows, return_index=True)
        ends_at, ids_at, size = _layout(len(distinct), len(rows))
        content = np.zeros(size, np.uint8)
        content[: 2 * len(distinct)] = distinct.astype(np.uint16).view(np.uint8)
        ends = np.append(begins, len(rows)).astype(np.uint32)
        content[ends_at : ends_at + 4 * len(ends)] = ends.view(np.uint8)
        content[ids_at : ids_at + 2 * len(rows)] = neighbours.astype(np.uint16).view(np.uint8)
        tables[f"{direction}_at"][k], tables[f"{direction}_first"][k] = file.tell(), ids_file.tell() // 4
        tables[f"{direction}_rows"][k], tables[f"{direction}_arcs"][k] = len(distinct), len(rows)
        tables[f"{direction}_crc"][k] = zlib.crc32(content.data)
        tables[f"{direction}_ids"][k] = zlib.crc32(ids.view(np.uint8).data)
        used = np.zeros(tables[f"{direction}_used"].shape[1] * 8, bool)
        used[neighbours // USED_ROWS] = True
        tables[f"{direction}_used"][k] = np.packbits(used)
        content.tofile(file)
        ids.tofile(ids_file)

    def _features(self, features: Any, rank: Array | None) -> tuple[int, list[int]]:
        """Vertex data to x.bin in internal order; (width, the checksum of each interval)."""
        path = self.place / "x.bin"
        if features is None:
            path.touch()
            return 0, []
        first, width = 0, -1
        out: Any = None
        for block in _row_blocks(features):
            rows = np.ascontiguousarray(block, np.float32)
            if rows.ndim != 2 or first + len(rows) > self.n or (width >= 0 and rows.shape[1] != width):
                raise GraphError(f"features: a block of shape {rows.shape} at row {first} of {self.n}, width {width}")
            if out is None:
                width = rows.shape[1]
                with path.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, max(1, 4 * width * self.n))
                    file.truncate(4 * width * self.n)
                out = np.memmap(path, np.float32, "r+", shape=(self.n, width)) if self.n and width else rows
            places = np.arange(first, first + len(rows)) if rank is None else rank[first : first + len(rows)]
            out[places] = rows
            first += len(rows)
        if first != self.n:
            raise GraphError(f"features hold {first} rows, expected one for each of the {self.n} vertices")
        if out is None:
            path.touch()
            return 0, []
        if isinstance(out, np.memmap):
            out.flush()
        crc = [
            zlib.crc32(np.ascontiguousarray(out[k * self.side : (k + 1) * self.side]).view(np.uint8).reshape(-1).data)
            for k in range(self.intervals)
        ]
        return width, crc


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.numpy().reshape(-1).view(np.uint8).data if tensor.numel() else memoryview(b"")


def read_into(file: int, at: int, out: Tensor, what: str) -> None:
    """Fill a contiguous tensor from a file. Raises StoreError naming `what` where the file ends early."""
    view = _bytes_of(out)
    done = 0
    while done < len(view):
        got = os.preadv(file, [view[done:]], at + done)
        if got == 0:
            raise StoreError(f"{what}: the file ends {len(view) - done} bytes early")
        done += got


def write_from(file: int, at: int, data: Tensor) -> None:
    """Write a contiguous tensor to a file."""
    view = _bytes_of(data)
    done = 0
    while done < len(view):
        done += os.pwritev(file, [view[done:]], at + done)


def _row_blocks(features: Any) -> Iterator[Array]:
    if isinstance(features, str | Path):
        features = np.load(features, mmap_mode="r", allow_pickle=False)
    if isinstance(features, Tensor):
        features = features.detach().numpy()
    if isinstance(features, np.ndarray):
        for begin in range(0, max(1, len(features)), 1 << 16):
            yield features[begin : begin + (1 << 16)]
    else:
        for block in features:
            yield block.detach().numpy() if isinstance(block, Tensor) else np.asarray(block)


def _ids(name: str, given: Any, vertices: int, first: int) -> Array:
    ids = given.detach().numpy() if isinstance(given, Tensor) else np.asarray(given)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise GraphError(f"{name} has shape {ids.shape} and type {ids.dtype}, expected (arcs,) integers")
    wrong = np.flatnonzero((ids < 0) | (ids >= vertices))
    if len(wrong):
        value = ids[wrong[0]]
        raise GraphError(f"{name}[{first + int(wrong[0])}] is {value}, expected 0 to {vertices - 1}")
    return ids.astype(np.int64)


def _crc_of(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
