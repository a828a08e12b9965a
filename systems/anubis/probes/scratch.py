"""A scratch file on the disk under test, whose every sector can be told from every other and from its own
past.

The file is nameless, preallocated and pre-written: nothing of it remains after a crash, because it never
has a name. I/O bypasses the page cache (`O_DIRECT`); where the filesystem refuses that, `Scratch.mode` says
so and I/O falls back to synchronous buffered writes (`O_DSYNC`) and to reads after dropping the cache. A
folder in memory (tmpfs) is refused: it is no disk.

**Verification.** Each 4 KiB sector carries a stamp that is a function of a per-run seed, its place in the
file and how often it was written. Every read is compared with what must be there, so that a flipped bit, a
misdirected write, a lost write and another run's stale data are all reported, with the offset. """

from __future__ import annotations

import errno
import mmap
import os
import re
import shutil
import time
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from systems.anubis.probes import transfer
from systems.anubis.probes.transfer import Engine

Mode = Literal["direct", "buffered"]

SECTOR = 4096  # bytes: the unit of stamping and of random access; a multiple of any logical block size
BLOCK = 1 << 20  # bytes: one sequential transfer
SIZE = 256 << 20  # bytes: a scratch file
SPARE = 64 << 20  # bytes: left free on the disk, so that a probe never fills it

_WORDS = SECTOR // 8
_VERIFIED = 64 * BLOCK  # bytes read at a time by `Scratch.verify`
_MEMORY_FILESYSTEMS = frozenset({"tmpfs", "ramfs", "hugetlbfs", "devtmpfs"})


class DiskError(RuntimeError):
    """A disk probe could not run, or found wrong data."""


class NoDisk(DiskError):
    """The folder is missing, not writable, or not on a disk at all."""


class NoSpace(DiskError):
    """The folder's filesystem has too little free space."""


class CorruptBlock(DiskError):
    """A sector read back differs from what was written. `offset`: bytes into the file, of the first wrong
    byte.
    """

    def __init__(self, offset: int, message: str) -> None:
        super().__init__(message)
        self.offset = offset


def scratch_folder(folder: str | Path | None = None) -> Path:
    """The folder to probe: the one given, else $MAAT_SCRATCH, else the current one.

    Raises NoDisk when it is no writable folder, or lies in memory.
    """
    path = Path(folder or os.environ.get("MAAT_SCRATCH") or Path.cwd()).resolve()
    if not path.is_dir() or not os.access(path, os.W_OK | os.X_OK):
        raise NoDisk(f"cannot write in {path}: a disk probe needs a writable folder; set MAAT_SCRATCH to one")
    kind = _filesystem(path)
    if kind in _MEMORY_FILESYSTEMS:
        raise NoDisk(
            f"{path} is on {kind}, which is memory and no disk; set MAAT_SCRATCH to a folder on a disk"
        )
    return path


def _filesystem(path: Path) -> str:
    """Type of the filesystem that holds `path`: that of the longest mount point above it, the last one
    mounted.
    """
    best, kind = -1, "unknown"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, tail = line.partition(" - ")
        # A blank in a path is written \040.
        point = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields.split()[4]))
        if path.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), tail.split()[0]
    return kind


def nameless_file(folder: Path, flags: int) -> int:
    """A descriptor of a new file without a name. Raises OSError as os.open does."""
    try:
        return os.open(folder, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC | flags, 0o600)
    except OSError as error:
        # A filesystem without O_TMPFILE says EOPNOTSUPP, an old kernel EISDIR; EINVAL is about O_DIRECT.
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT):
            raise
    name = folder / f".maat-scratch-{os.getpid()}-{os.urandom(8).hex()}"
    descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | flags, 0o600)
    name.unlink()
    return descriptor


def io_mode(folder: str | Path | None = None) -> Mode:
    """ "direct" when the folder's filesystem accepts O_DIRECT transfers, else "buffered". Raises NoDisk."""
    path = scratch_folder(folder)
    try:
        descriptor = nameless_file(path, os.O_DIRECT)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return "buffered"
        raise NoDisk(
            f"cannot create a file in {path}: {error.strerror}; set MAAT_SCRATCH to another"
        ) from error
    try:
        with mmap.mmap(-1, SECTOR) as page:  # some filesystems accept the flag and refuse the transfer
            os.pwrite(descriptor, page, 0)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return "buffered"
        raise NoDisk(
            f"cannot write in {path}: {error.strerror}; set MAAT_SCRATCH to another folder"
        ) from error
    finally:
        os.close(descriptor)
    return "direct"


class Scratch:
    """A preallocated, pre-written, nameless file whose every sector is stamped. A context manager.

    `size` bytes, a multiple of BLOCK; `mode` says how the page cache is avoided; `descriptor` is the open
    file. Invariant between probes: sector s of the file holds the stamp of (seed, s, generation[s]).
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        size: int = SIZE,
        mode: Mode | None = None,
        compiled: bool = True,
        limit: float = 20.0,
    ) -> None:
        """Create and fill the file. At most `limit` seconds: a slow disk gets a smaller file, of 16 MiB at
        least.

        Raises NoDisk, NoSpace, ValueError (size), DiskError (I/O error).
        """
        if size < 16 * BLOCK or size % BLOCK:
            raise ValueError(f"size {size}: expected a multiple of {BLOCK} bytes, {16 * BLOCK} at least")
        self.folder = scratch_folder(folder)
        free = shutil.disk_usage(self.folder).free
        if free < size + SPARE:
            raise NoSpace(
                f"{self.folder} has {free >> 20} MiB free; a disk probe needs {(size + SPARE) >> 20} MiB: "
                "free some, or set MAAT_SCRATCH to a folder on another disk"
            )
        self.mode: Mode = mode or io_mode(self.folder)
        self.compiled = transfer.library() if compiled else None
        self.engine: Engine = "interpreted" if self.compiled is None else "compiled"
        self.seed = int.from_bytes(os.urandom(8), "little")
        self.size = size
        self.generation = np.zeros(size // SECTOR, dtype=np.uint64)
        self._pattern = np.random.default_rng(self.seed).integers(0, 2**64, _WORDS, dtype=np.uint64)
        try:
            # O_DSYNC: without direct I/O, a write must still have reached the device when it returns.
            self.descriptor = nameless_file(self.folder, os.O_DIRECT if self.mode == "direct" else os.O_DSYNC)
        except OSError as error:
            raise DiskError(f"cannot create a scratch file in {self.folder}: {error.strerror}") from error
        try:
            self._fill(limit)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the file's space back. Further calls do nothing."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def stamp(self, sectors: npt.NDArray[np.uint64], out: npt.NDArray[np.uint64]) -> None:
        """Write the current stamps of `sectors` (n,) into `out` (n, 512) words."""
        np.bitwise_xor(
            self._pattern[None, :], self._marks(sectors, self.generation[sectors])[:, None], out=out
        )

    def check(self, sectors: npt.NDArray[np.uint64], found: npt.NDArray[np.uint64]) -> None:
        """Compare `found` (n, 512) words with the stamps of `sectors` (n,). Raises CorruptBlock at a
        difference.
        """
        step = 1024  # sectors at a time: the temporaries stay in the cache
        for low in range(0, len(sectors), step):
            part = sectors[low : low + step]
            marks = found[low : low + step] ^ self._pattern
            wrong = marks != self._marks(part, self.generation[part])[:, None]
            if wrong.any():
                row = int(wrong.any(axis=1).argmax())
                raise self._corruption(int(part[row]), found[low + row], marks[row])

    def verify(self) -> None:
        """Read the whole file and compare it. Raises CorruptBlock, DiskError."""
        buffer = Buffer(_VERIFIED)
        for low in range(0, self.size, _VERIFIED):
            offsets = np.arange(low, min(low + _VERIFIED, self.size), BLOCK, dtype=np.int64)
            exchange(self, buffer, offsets, np.zeros(len(offsets), dtype=bool), BLOCK, 4, float("inf"))

    def _marks(
        self, sectors: npt.NDArray[np.uint64], generation: npt.NDArray[np.uint64]
    ) -> npt.NDArray[np.uint64]:
        """(n,) words, one per (seed, sector, generation): the splitmix64 finaliser, a bijection, so none
        collide between two places of one generation.
        """
        mixed = (sectors << np.uint64(24)) + generation + np.uint64(self.seed)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))

    def _corruption(
        self, sector: int, found: npt.NDArray[np.uint64], marks: npt.NDArray[np.uint64]
    ) -> CorruptBlock:
        place, written = np.array([sector], dtype=np.uint64), self.generation[sector : sector + 1]
        expected = (self._pattern ^ self._marks(place, written)).view(np.uint8)
        wrong = np.flatnonzero(found.view(np.uint8) != expected)
        offset = sector * SECTOR + int(wrong[0])
        if written[0] and (marks == self._marks(place, written - np.uint64(1))).all():
            cause = "it still holds what an earlier write put there: the last write was acknowledged and lost"
        else:
            cause = f"{len(wrong)} of its {SECTOR} bytes differ from what was written"
        return CorruptBlock(
            offset,
            f"corrupt block at byte {offset} of a scratch file in {self.folder} ({self.mode} I/O): {cause}",
        )

    def _fill(self, limit: float) -> None:
        """Allocate and write every sector once, so that no probe times the allocation of an extent."""
        try:
            os.posix_fallocate(self.descriptor, 0, self.size)
            deadline = time.perf_counter() + limit
            buffer = Buffer(16 * BLOCK)
            for low in range(0, self.size, 16 * BLOCK):
                if low and time.perf_counter() > deadline:
                    self.size = low
                    self.generation = self.generation[: low // SECTOR].copy()
                    os.ftruncate(self.descriptor, low)
                    break
                length = min(16 * BLOCK, self.size - low)
                sectors = np.arange(low // SECTOR, (low + length) // SECTOR, dtype=np.uint64)
                self.stamp(sectors, buffer.words[: len(sectors)])
                for at in range(0, length, BLOCK):
                    require_whole(
                        os.pwritev(self.descriptor, [buffer.bytes[at : at + BLOCK]], low + at),
                        BLOCK,
                        low + at,
                    )
            os.fsync(self.descriptor)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpace(
                    f"no space for {self.size >> 20} MiB in {self.folder} ({error.strerror}): free some, "
                    "or set MAAT_SCRATCH to a folder on another disk"
                ) from error
            raise DiskError(f"cannot fill a scratch file in {self.folder}: {error.strerror}") from error


class Buffer:
    """Page-aligned memory as O_DIRECT demands, touched once, in huge pages where the kernel grants them:
    then the device sees few, long segments in every run instead of as many as memory happens to be
    fragmented into.
    """

    def __init__(self, size: int) -> None:
        memory = mmap.mmap(-1, size)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            try:
                memory.madvise(mmap.MADV_HUGEPAGE)
            except OSError as error:  # a kernel without transparent huge pages
                if error.errno != errno.EINVAL:
                    raise
        self.bytes = memoryview(memory)
        self.words = np.frombuffer(memory, dtype=np.uint64).reshape(-1, _WORDS)
        self.words[:] = 0


def require_whole(transferred: int, block: int, offset: int) -> None:
    """Raise DiskError where fewer than `block` bytes were transferred at `offset`."""
    if transferred != block:
        raise DiskError(f"short transfer at byte {offset}: {transferred} of {block} bytes; is the disk full?")


def _sectors(offsets: npt.NDArray[np.int64], block: int) -> npt.NDArray[np.uint64]:
    """Sector numbers (transfers * sectors per block,) covered by transfers at `offsets`."""
    within = np.arange(block // SECTOR, dtype=np.int64)
    return (offsets[:, None] // SECTOR + within[None, :]).reshape(-1).astype(np.uint64)


def exchange(
    scratch: Scratch,
    buffer: Buffer,
    offsets: npt.NDArray[np.int64],
    writes: npt.NDArray[np.bool_],
    block: int,
    depth: int,
    deadline: float,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Stamp, transfer (timed), verify. `offsets` (transfers,) must not overlap.

    Returns submission and completion times (done,) in ns, in the order of submission; fewer than asked for
    only when the `deadline` (on the perf_counter clock) passed. Raises CorruptBlock, DiskError.
    """
    count, rows = len(offsets), block // SECTOR
    written = _sectors(offsets[writes], block)
    scratch.generation[written] += np.uint64(1)
    stamps = buffer.words[: count * rows].reshape(count, rows * _WORDS)
    stamps[~writes] = 0  # what an earlier segment left here must not pass for what this one reads
    if writes.all():
        scratch.stamp(written, stamps.reshape(-1, _WORDS))
    elif writes.any():
        content = np.empty((len(written), _WORDS), dtype=np.uint64)
        scratch.stamp(written, content)
        stamps[writes] = content.reshape(-1, rows * _WORDS)
    if scratch.mode == "buffered" and not writes.all():
        os.fdatasync(scratch.descriptor)
        os.posix_fadvise(scratch.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    try:
        started, ended = transfer.run(
            scratch.descriptor,
            offsets,
            writes,
            stamps,
            block=block,
            depth=depth,
            deadline=deadline,
            compiled=scratch.compiled,
        )
    except OSError as error:
        raise DiskError(f"the disk under {scratch.folder} failed a transfer: {error.strerror}") from error
    completed = ended > 0
    lost = _sectors(offsets[writes & ~completed], block)
    scratch.generation[lost] -= np.uint64(1)
    read = np.flatnonzero(~writes & completed)
    for index in range(0, len(read), max(1, 1024 // rows)):
        some = read[index : index + max(1, 1024 // rows)]
        scratch.check(_sectors(offsets[some], block), stamps[some].reshape(-1, _WORDS))
    return started[completed], ended[completed]
