"""Disk probes: direct sequential and random transfers and the latency of a durable append, every byte
verified.

A probe works on a `Scratch` (`scratch.py`). Stamping and comparing happen between the timed segments, never
inside them. A queue depth d is d threads, each with one synchronous transfer at a time (`transfer.py`):
compiled ones, or Python's where there is no compiler, which `Transfer.engine` tells. """

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from systems.anubis.probes.scratch import (
    BLOCK,
    SECTOR,
    Buffer,
    CorruptBlock,
    DiskError,
    Mode,
    NoDisk,
    NoSpace,
    Scratch,
    exchange,
    io_mode,
    nameless_file,
    require_whole,
    scratch_folder,
)
from systems.anubis.probes.transfer import Engine

__all__ = [
    "BLOCK",
    "SECTOR",
    "CorruptBlock",
    "DiskError",
    "NoDisk",
    "NoSpace",
    "Scratch",
    "Transfer",
    "durable_append",
    "io_mode",
    "random_access",
    "scratch_folder",
    "sequential_read",
    "sequential_write",
]

_SEQUENTIAL_SEGMENT = 64  # blocks between two verifications; 64 MiB of buffers average over their placement
_SEQUENTIAL_CHUNK = 16  # blocks per rate
_RANDOM_SEGMENT = 4096  # sectors between two verifications
_RANDOM_CHUNK = 512  # sectors per rate
_ACCESS_SEED = 20240206  # the order of random accesses is the same in every run, so that runs are comparable


@dataclass(frozen=True)
class Transfer:
    """What one probe measured.

    operation: "sequential_write", "random_read", ...; mode: how the page cache was avoided;
    engine: whose threads made the transfers.
    block: bytes per transfer; depth: transfers in flight.
    seconds: (chunks,) wall seconds of each chunk; operations: (chunks,) transfers that ended in it.
    latencies: (transfers,) seconds from submission to completion, in the order of submission.
    """

    operation: str
    mode: Mode
    engine: Engine
    block: int
    depth: int
    seconds: npt.NDArray[np.float64]
    operations: npt.NDArray[np.int64]
    latencies: npt.NDArray[np.float64]

    @property
    def bandwidth(self) -> npt.NDArray[np.float64]:
        """(chunks,) bytes per second."""
        return self.iops * self.block

    @property
    def iops(self) -> npt.NDArray[np.float64]:
        """(chunks,) transfers per second."""
        rates: npt.NDArray[np.float64] = self.operations / self.seconds
        return rates


def _transfer(
    scratch: Scratch,
    operation: str,
    segments: Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]],
    *,
    block: int,
    depth: int,
    chunk: int,
    limit: float,
) -> Transfer:
    """Run segments of (offsets, writes) until they end or `limit` seconds have passed, and cut them into
    chunks.
    """
    if depth < 1:
        raise ValueError(f"depth {depth}: expected one transfer in flight at least")
    deadline = time.perf_counter() + limit
    seconds: list[float] = []
    operations: list[int] = []
    latencies: list[npt.NDArray[np.float64]] = []
    buffer: Buffer | None = None
    for offsets, writes in segments:
        buffer = buffer or Buffer(len(offsets) * block)
        started, finished = exchange(scratch, buffer, offsets, writes, block, depth, deadline)
        latencies.append((finished - started) / 1e9)
        ends = np.sort(finished)
        # Whole chunks only, except where the deadline left less than one.
        cuts = np.arange(chunk, len(ends) + 1, chunk) if len(ends) >= chunk else np.array([len(ends)])
        moments = np.concatenate([[started.min()], ends[cuts - 1]])
        seconds += (np.diff(moments) / 1e9).tolist()
        operations += [int(size) for size in np.diff(cuts, prepend=0)]
        if time.perf_counter() > deadline:
            break
    return Transfer(
        operation=operation,
        mode=scratch.mode,
        engine=scratch.engine,
        block=block,
        depth=depth,
        seconds=np.array(seconds),
        operations=np.array(operations, dtype=np.int64),
        latencies=np.concatenate(latencies),
    )


def _sequential(scratch: Scratch, write: bool, depth: int, blocks: int, limit: float) -> Transfer:
    total = scratch.size // BLOCK
    length = min(_SEQUENTIAL_SEGMENT, total)
    starts = itertools.islice(itertools.cycle(range(0, total - length + 1, length)), max(1, blocks // length))

    def segments() -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]]:
        for start in starts:
            yield np.arange(start, start + length, dtype=np.int64) * BLOCK, np.full(length, write)

    return _transfer(
        scratch,
        "sequential_write" if write else "sequential_read",
        segments(),
        block=BLOCK,
        depth=depth,
        chunk=_SEQUENTIAL_CHUNK,
        limit=limit,
    )


def sequential_write(scratch: Scratch, *, depth: int = 4, blocks: int = 768, limit: float = 5.0) -> Transfer:
    """Write `blocks` of 1 MiB in order, wrapping around; stop after `limit` seconds. Raises DiskError."""
    return _sequential(scratch, True, depth, blocks, limit)


def sequential_read(scratch: Scratch, *, depth: int = 4, blocks: int = 768, limit: float = 5.0) -> Transfer:
    """Read `blocks` of 1 MiB in order, wrapping around, and verify them. Raises CorruptBlock, DiskError."""
    return _sequential(scratch, False, depth, blocks, limit)


def random_access(
    scratch: Scratch, *, reads: float, depth: int = 4, transfers: int = 32768, limit: float = 5.0
) -> Transfer:
    """4 KiB transfers at random places, a share `reads` in [0, 1] of them reads, which are verified; a
    place is used once per 4096 transfers at most. Stops after `limit` seconds. Raises CorruptBlock,
    DiskError, ValueError.
    """
    if not 0 <= reads <= 1:
        raise ValueError(f"reads {reads}: expected a share between 0 (all writes) and 1 (all reads)")
    places = scratch.size // SECTOR
    length = min(_RANDOM_SEGMENT, places, transfers)
    rng = np.random.default_rng(_ACCESS_SEED)

    def segments() -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]]:
        for _ in range(max(1, transfers // length)):
            yield rng.choice(places, length, replace=False) * SECTOR, rng.random(length) >= reads

    names = {0.0: "random_write", 1.0: "random_read"}
    return _transfer(
        scratch,
        names.get(float(reads), "random_mixed"),
        segments(),
        block=SECTOR,
        depth=depth,
        chunk=_RANDOM_CHUNK,
        limit=limit,
    )


@contextmanager
def _append_file(folder: Path) -> Iterator[int]:
    try:
        descriptor = nameless_file(folder, 0)
    except OSError as error:
        raise DiskError(f"cannot create a file in {folder}: {error.strerror}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def durable_append(
    folder: str | Path | None = None, *, appends: int = 512, limit: float = 5.0
) -> npt.NDArray[np.float64]:
    """Append 4 KiB and fsync, as a write-ahead log does; then read everything back from the disk and compare.

    Returns (done,) seconds from the start of each write to the return of its fsync, in order; stops after
    `limit` seconds, with one append at least. Raises NoDisk, CorruptBlock, DiskError, ValueError.
    """
    if appends < 1:
        raise ValueError(f"appends {appends}: expected one at least")
    path = scratch_folder(folder)
    content = np.random.default_rng(int.from_bytes(os.urandom(8), "little")).bytes(appends * SECTOR)
    seconds: list[float] = []
    try:
        with _append_file(path) as descriptor:
            deadline = time.perf_counter() + limit
            for index in range(appends):
                record = content[index * SECTOR : (index + 1) * SECTOR]
                began = time.perf_counter()
                require_whole(os.write(descriptor, record), SECTOR, index * SECTOR)
                os.fsync(descriptor)
                seconds.append(time.perf_counter() - began)
                if time.perf_counter() > deadline:
                    break
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            for index in range(len(seconds)):
                found = os.pread(descriptor, SECTOR, index * SECTOR)
                if found != content[index * SECTOR : (index + 1) * SECTOR]:
                    raise CorruptBlock(
                        index * SECTOR,
                        f"append {index}, at byte {index * SECTOR} of a file in {path}, reads back altered",
                    )
    except OSError as error:
        raise DiskError(f"a durable append in {path} failed: {error.strerror}") from error
    return np.array(seconds)
