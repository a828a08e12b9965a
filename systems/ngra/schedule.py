"""How a sweep over the chunks of a store goes: what is held, what is loaded when, and how many bytes that reads.

Destination-major: `group` row intervals are held with what they accumulate, and the neighbour intervals stream past
them; then the next group. In zig-zag the direction turns at every pass, so that the intervals loaded last are used
again at once. `plan_schedule` finds the group and the number of reusable slots that read least within a budget; what
it predicts is what is read, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from systems.ngra.graph import BudgetError
from systems.ngra.store import USED_ROWS, ChunkStore

TRAVERSALS = ("zigzag", "ascending")
LEAST_EXTENT = 64 << 10  # bytes: reading a gap shorter than that costs less than another read


@dataclass(frozen=True)
class Sweep:
    """What one sweep reads, holds and writes, in bytes per vertex.

    direction: of the chunks, "forward" or "backward", or "" for a sweep over rows alone; row_bytes: read once for
    each row; neighbour_bytes: read for each row of a neighbour interval, at each load; written_bytes: once for each
    row; state_bytes: held for each row of the group beside what was read; column_bytes: held for each row of a slot
    beside what was read; stage_bytes: for each row of one interval, while its stage is evaluated; arcs: whether the
    canonical ids of arcs are read.
    """

    name: str
    direction: str
    row_bytes: int
    neighbour_bytes: int
    written_bytes: int
    state_bytes: int
    column_bytes: int
    stage_bytes: int
    arcs: bool = False


@dataclass(frozen=True)
class Schedule:
    """A planned sweep. passes: groups of row intervals; slots: neighbour intervals that stay to be used again, beside
    the one that is being loaded; selective: (pass, neighbour) pairs of which only used rows are read."""

    sweep: Sweep
    traversal: str
    passes: int
    group: int
    slots: int
    bytes_read: int
    bytes_written: int
    peak_bytes: int
    interval_loads: int
    selective: frozenset[tuple[int, int]]

    def groups(self, intervals: int) -> Iterator[list[int]]:
        """The row intervals of each pass."""
        for first in range(0, intervals, self.group):
            yield list(range(first, min(intervals, first + self.group)))

    def neighbours(self, turn: int, intervals: int) -> list[int]:
        """The order of the neighbour intervals in a pass."""
        return order_of(self.traversal, turn, intervals)


def order_of(traversal: str, turn: int, intervals: int) -> list[int]:
    """Ascending, or turning round at every pass."""
    ascending = list(range(intervals))
    return ascending[::-1] if traversal == "zigzag" and turn % 2 else ascending


def interval_loads(intervals: int, passes: int, slots: int, traversal: str) -> int:
    """How many neighbour intervals are loaded: P at first, then P less those that stayed."""
    if intervals <= slots:
        return intervals
    kept = slots if traversal == "zigzag" else 0
    return intervals + (passes - 1) * (intervals - kept)


def rows_loaded(store: ChunkStore, passes: int, slots: int, traversal: str) -> int:
    """The vertices of those loads; only the last interval is shorter than the others."""
    n, count = store.num_vertices, store.intervals
    if count <= slots:
        return n
    if traversal != "zigzag":
        return n * passes
    low = slots * store.side
    high = n - (count - slots) * store.side
    turns_high, turns_low = passes // 2, (passes - 1) // 2
    return n * passes - turns_high * high - turns_low * low


def plan_schedule(
    store: ChunkStore, sweep: Sweep, memory: int, traversal: str = "zigzag", rates: tuple[float, float] | None = None
) -> Schedule:
    """The schedule that reads least within `memory` bytes.

    rates: bytes a second of (sequential, scattered) reads; where given, intervals are read in part where
    `is_selective` says that this is faster. Raises BudgetError with the smallest budget that would do.
    """
    count, side, n = store.intervals, min(store.side, max(1, store.num_vertices)), store.num_vertices
    fixed = store.resident_bytes + side * sweep.stage_bytes
    chunks = 0
    if sweep.direction:
        fixed += 2 * store.largest_chunk(sweep.direction, sweep.arcs)
        chunks = sum(store.chunk_bytes(sweep.direction, i, j, sweep.arcs) for i in range(count) for j in range(count))
    # The interval that is loaded next, and one that was read in part and does not stay.
    beside = 1 if rates is None else 2
    a_row, a_slot = side * (sweep.row_bytes + sweep.state_bytes), side * (sweep.neighbour_bytes + sweep.column_bytes)
    best: tuple[int, int, int, int] | None = None
    for group in range(1, max(1, count) + 1):
        passes = -(-count // group)
        for slots in range(1, max(1, count) + 1) if sweep.direction else (0,):
            peak = fixed + group * a_row + ((slots + beside) * a_slot if sweep.direction else 0)
            if peak > memory:
                break
            loaded = rows_loaded(store, passes, slots, traversal) if sweep.direction else 0
            read = n * sweep.row_bytes + loaded * sweep.neighbour_bytes + chunks
            candidate = (read, peak, group, slots)
            best = candidate if best is None or candidate < best else best
        if not sweep.direction:
            break
    if best is None:
        least = fixed + a_row + ((1 + beside) * a_slot if sweep.direction else 0)
        raise BudgetError(
            f"{sweep.name} needs {least:,} bytes at least, {memory:,} were granted: grant that, or build the store "
            f"with smaller chunks than {store.side} vertices",
            least,
        )
    read, peak, group, slots = best
    passes = -(-count // group)
    schedule = Schedule(
        sweep, traversal, passes, group, slots, read, n * sweep.written_bytes, peak,
        interval_loads(count, passes, slots, traversal) if sweep.direction else 0, frozenset(),
    )  # fmt: skip
    if rates is None or not sweep.direction:
        return schedule
    return _in_parts(store, schedule, rates, chunks)


def _in_parts(store: ChunkStore, schedule: Schedule, rates: tuple[float, float], chunks: int) -> Schedule:
    """The schedule with the loads marked that are better made in part; such an interval does not stay in its slot."""
    sweep, width = schedule.sweep, schedule.sweep.neighbour_bytes
    chosen, rows, loads = set(), 0, 0
    kept: list[int] = []
    for turn, group in enumerate(schedule.groups(store.intervals)):
        for j in schedule.neighbours(turn, store.intervals):
            if j in kept:
                kept.remove(j)
                kept.append(j)
                continue
            first, last = store.rows_of(j)
            parts = extents(store, sweep.direction, group, j, width)
            part = sum(stop - start for start, stop in parts)
            loads += 1
            if is_selective(part / (last - first), *rates):
                chosen.add((turn, j))
                rows += part
            else:
                rows += last - first
                kept.append(j)
                kept = kept[-schedule.slots :]
    read = store.num_vertices * sweep.row_bytes + rows * width + chunks
    if read >= schedule.bytes_read:
        return schedule
    return Schedule(
        sweep, schedule.traversal, schedule.passes, schedule.group, schedule.slots, read, schedule.bytes_written,
        schedule.peak_bytes, loads, frozenset(chosen),
    )  # fmt: skip


def is_selective(theta: float, sequential: float, scattered: float) -> bool:
    """Whether reading a share `theta` of an interval at the rate of scattered reads takes less time than all of it
    at that of sequential ones: theta < scattered / sequential."""
    return theta * sequential < scattered


def selective_on_host(theta: float, gather: float, transfer: float) -> bool:
    """The paper's rule for a device: gathering used rows on the host and sending those takes less time than sending
    all: theta / gather + theta / transfer < 1 / transfer, so theta < gather / (gather + transfer)."""
    return theta < gather / (gather + transfer)


def extents(
    store: ChunkStore, direction: str, rows: Sequence[int], neighbour: int, row_bytes: int
) -> list[tuple[int, int]]:
    """(first, last + 1) row ranges of a neighbour interval that some row intervals use, near ones merged."""
    first, last = store.rows_of(neighbour)
    gap = LEAST_EXTENT // max(1, row_bytes)
    found: list[tuple[int, int]] = []
    for k in store.used(direction, rows, neighbour).nonzero()[0].tolist():
        start, stop = first + k * USED_ROWS, min(last, first + (k + 1) * USED_ROWS)
        if found and start - found[-1][1] <= gap:
            found[-1] = (found[-1][0], stop)
        else:
            found.append((start, stop))
    return found
