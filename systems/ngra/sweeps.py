"""One sweep over the chunks of a store: files of vertex data, the loads ahead, and what is called for each interval."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from systems.ngra.expression import Node
from systems.ngra.kernels import Chunk
from systems.ngra.schedule import Schedule, Sweep, extents
from systems.ngra.store import ChunkStore, read_into, write_from
from systems.ngra.workspace import workspace


@dataclass
class Traffic:
    """What went to and from the disk, and how long that and the computing took."""

    read: int = 0
    written: int = 0
    chunks: int = 0
    held: int = 0
    peak: int = 0
    load_seconds: float = 0.0
    compute_seconds: float = 0.0

    def hold(self, size: int) -> None:
        self.held += size
        self.peak = max(self.peak, self.held)


class VertexArray:
    """A vertex array on disk, (vertices, *shape), row by row."""

    def __init__(self, path: Path | None, shape: tuple[int, ...], dtype: torch.dtype, traffic: Traffic) -> None:
        self.shape, self.dtype, self._traffic = shape, dtype, traffic
        self.row_bytes = dtype.itemsize
        for extent in shape:
            self.row_bytes *= extent
        self._path = path
        self._file = -1 if path is None else os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def read(self, first: int, last: int, out: Tensor | None = None) -> Tensor:
        """Rows `first` to `last`."""
        if out is None:
            out = workspace().empty((last - first, *self.shape), self.dtype)
        begun = time.perf_counter()
        self._fill(first, last, out)
        self._traffic.read += (last - first) * self.row_bytes
        self._traffic.load_seconds += time.perf_counter() - begun
        return out

    def _fill(self, first: int, last: int, out: Tensor) -> None:
        read_into(self._file, first * self.row_bytes, out, f"{self._path}: rows {first} to {last}")

    def write(self, first: int, data: Tensor) -> None:
        """Rows from `first` on."""
        begun = time.perf_counter()
        write_from(self._file, first * self.row_bytes, data.detach().to(self.dtype).contiguous())
        self._traffic.written += len(data) * self.row_bytes
        self._traffic.load_seconds += time.perf_counter() - begun

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class InputArray(VertexArray):
    """The store's own vertex data."""

    def __init__(self, store: ChunkStore, traffic: Traffic) -> None:
        super().__init__(None, (store.width,), torch.float32, traffic)
        self._store = store

    def _fill(self, first: int, last: int, out: Tensor) -> None:
        self._store.read_rows(first, last, out)


@dataclass(frozen=True)
class Interval:
    """One interval as `Leaves` want a graph."""

    num_vertices: int
    internal_in_degree: Tensor
    internal_out_degree: Tensor
    num_arcs: int = 0

    @staticmethod
    def enter(x: Tensor) -> Tensor:
        """Data are in internal order already."""
        return x


@dataclass
class SweepPass:
    """One sweep, ready to run: what is read for rows and neighbours, and what is done.

    begin(i, arrays): the state of a row interval; columns(j, arrays): a neighbour's columns by leaf;
    visit(state, columns, chunk); end(i, state).
    """

    sweep: Sweep
    schedule: Schedule
    row_arrays: Sequence[VertexArray]
    neighbour_arrays: Sequence[VertexArray]
    begin: Callable[[int, list[Tensor]], Any]
    columns: Callable[[int, list[Tensor]], dict[Node, Tensor]]
    visit: Callable[[Any, dict[Node, Tensor], Chunk], None]
    end: Callable[[int, Any], None]


class Runner:
    """Runs passes: one thread loads ahead while this one computes."""

    def __init__(self, store: ChunkStore, traffic: Traffic, prefetch: bool) -> None:
        self.store, self.traffic = store, traffic
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="ngra-load") if prefetch else None

    def close(self) -> None:
        """Stop the loading thread."""
        if self._loader is not None:
            self._loader.shutdown()

    def rows(self, todo: SweepPass) -> None:
        """A pass over rows alone."""
        for i in range(self.store.intervals):
            arrays = [array.read(*self.store.rows_of(i)) for array in todo.row_arrays]
            begun = time.perf_counter()
            waited = self.traffic.load_seconds
            todo.end(i, todo.begin(i, arrays))
            self.traffic.compute_seconds += time.perf_counter() - begun - (self.traffic.load_seconds - waited)

    def run(self, todo: SweepPass) -> None:
        """A pass over chunks."""
        store, sweep, schedule = self.store, todo.sweep, todo.schedule
        size = store.largest_chunk(sweep.direction, sweep.arcs)
        buffers = [workspace().empty((size + 4096,), torch.uint8) for _ in range(2)]
        held: dict[int, dict[Node, Tensor]] = {}
        side = min(store.side, store.num_vertices)
        bytes_of_slot = side * (sweep.neighbour_bytes + sweep.column_bytes)
        bytes_of_row = side * (sweep.row_bytes + sweep.state_bytes)
        fixed = 2 * size + store.resident_bytes + side * sweep.stage_bytes
        self.traffic.hold(fixed)
        for turn, group in enumerate(schedule.groups(store.intervals)):
            states = {}
            for i in group:
                arrays = [array.read(*store.rows_of(i)) for array in todo.row_arrays]
                self.traffic.hold(bytes_of_row)
                states[i] = self._timed(todo.begin, i, arrays)
            order = schedule.neighbours(turn, store.intervals)
            items = [(j, i) for j in order for i in group]

            def load(k: int, fresh: bool, group: list[int] = group, items: Any = items, turn: int = turn) -> Any:
                j, i = items[k]
                arrays = self._neighbour(todo, turn, group, j) if fresh else None
                begun = time.perf_counter()
                chunk = store.read_chunk(sweep.direction, i, j, buffers[k % 2], sweep.arcs)
                self.traffic.read += store.chunk_bytes(sweep.direction, i, j, sweep.arcs)
                self.traffic.chunks += chunk is not None
                self.traffic.load_seconds += time.perf_counter() - begun
                return arrays, chunk

            ahead = self._ahead(load, 0, items[0][0] not in held)
            current: dict[Node, Tensor] = {}
            for k, (j, i) in enumerate(items):
                arrays, chunk = ahead()
                if arrays is not None:
                    self.traffic.hold(bytes_of_slot)
                    held[j] = self._timed(todo.columns, j, arrays)
                elif i == group[0]:
                    held[j] = held.pop(j)  # now the last one used
                if i == group[0]:
                    current = held[j]
                if i == group[-1]:
                    # Before the next load is decided on, so that it never depends on which thread is faster.
                    gone = [j] if (turn, j) in schedule.selective else []
                    gone += [old for old in held if old not in gone][: max(0, len(held) - len(gone) - schedule.slots)]
                    for old in gone:
                        del held[old]
                if k + 1 < len(items):
                    following, first_row = items[k + 1]
                    ahead = self._ahead(load, k + 1, first_row == group[0] and following not in held)
                if chunk is not None:
                    self._timed(todo.visit, states[i], current, chunk)
                if i == group[-1]:
                    self.traffic.held -= len(gone) * bytes_of_slot
            for i in group:
                begun, waited = time.perf_counter(), self.traffic.load_seconds
                todo.end(i, states.pop(i))
                self.traffic.compute_seconds += time.perf_counter() - begun - (self.traffic.load_seconds - waited)
                self.traffic.held -= bytes_of_row
        self.traffic.held -= fixed + len(held) * bytes_of_slot

    def _neighbour(self, todo: SweepPass, turn: int, group: list[int], j: int) -> list[Tensor]:
        first, last = self.store.rows_of(j)
        if (turn, j) not in todo.schedule.selective:
            return [array.read(first, last) for array in todo.neighbour_arrays]
        parts = extents(self.store, todo.sweep.direction, group, j, todo.sweep.neighbour_bytes)
        found = []
        for array in todo.neighbour_arrays:
            whole = workspace().empty((last - first, *array.shape), array.dtype)
            whole.zero_()  # what is not read is not used, but must be a number
            for start, stop in parts:
                array.read(start, stop, whole[start - first : stop - first])
            found.append(whole)
        return found

    def _ahead(self, load: Callable[[int, bool], Any], k: int, fresh: bool) -> Callable[[], Any]:
        if self._loader is None:
            return lambda: load(k, fresh)
        return self._loader.submit(load, k, fresh).result

    def _timed(self, call: Callable[..., Any], *arguments: Any) -> Any:
        begun = time.perf_counter()
        found = call(*arguments)
        self.traffic.compute_seconds += time.perf_counter() - begun
        return found
