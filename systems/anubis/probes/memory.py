"""Memory probes: bandwidth of streams through all cores, and latency of dependent loads, level by level.

**Bandwidth** (`Stream`, kernels in stream.c) counts bytes as STREAM does: those that the loop names, 16 or 24
per element, whatever the caches add. Arrays are at least four times the last-level caches in sum. Each thread
first touches the part that it will work on, and is bound to a core where that keeps it near (`placement`).
Copy, scale, add and triad exist with ordinary and with streaming stores; the faster one here is chosen by a
short measurement. The mixes update in place, so that the ratio of reads to writes on the bus is exactly the
one named.

**Latency** (`Chase`, kernel in chase.c) is seconds per load along a random cycle through all lines of a
buffer: one buffer per cache level and one beyond the last, on huge pages where the system grants them. `tlb`
touches one line per small page instead, many more pages than a TLB holds, so that the page walk is what takes
the time.

Values are chosen so that every result is exact in float64: a wrong bit is a wrong bit, not a rounding.
Without a C compiler, `Stream` uses torch, one pass per kernel; latency has no equivalent and raises
`NoProbe`.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import math
import mmap
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from systems import native
from systems.anubis.probes import topology

HERE = Path(__file__).parent
LINE = 64  # bytes: a cache line; where lines are longer, some loads of a chase share one
HUGE = 2 << 20  # bytes: a huge page
# Values of the pattern that fills the arrays: prime, so that no shift by a power of two maps it to itself.
PERIOD = 4093
SCALAR = 3.0  # STREAM's own
SEED = 20240206  # the order of the chase is the same in every run, so that runs are comparable

Array = npt.NDArray[np.float64]


class ProbeError(RuntimeError):
    """A memory probe could not run, or gave a wrong result."""


class NoProbe(ProbeError):
    """The probe needs what this machine has not; the message says what."""


class WrongResult(ProbeError):
    """Memory or arithmetic gave a wrong value; the message says where."""


@dataclass(frozen=True)
class Kernel:
    """A stream kernel: its number in stream.c, bytes counted per element, and its meaning on whole arrays.

    `expected(a, b, c)` is what the array `a` holds afterwards (for `read`: the array whose sum is returned).
    `scalar` is the factor that the loop gets. `may_stream`: the written array is not read.
    """

    number: int
    bytes: int
    scalar: float
    may_stream: bool
    expected: Callable[[Array, Array, Array], Array]


KERNELS: Mapping[str, Kernel] = {
    "copy": Kernel(0, 16, SCALAR, True, lambda a, b, c: b),
    "scale": Kernel(1, 16, SCALAR, True, lambda a, b, c: SCALAR * b),
    "add": Kernel(2, 24, SCALAR, True, lambda a, b, c: b + c),
    "triad": Kernel(3, 24, SCALAR, True, lambda a, b, c: b + SCALAR * c),
    "read": Kernel(4, 8, SCALAR, False, lambda a, b, c: a),
    # The factor is -1, so that the values stay in range however often the pass is repeated.
    "read1_write1": Kernel(5, 16, -1.0, False, lambda a, b, c: -a),
    "read3_write1": Kernel(6, 32, SCALAR, False, lambda a, b, c: a + b * c),
}


# ------------------------------------------------------------------------------------------------- bandwidth


def stream_library() -> ctypes.CDLL | None:
    """The compiled kernels, or None without a compiler (one warning). No contraction: results equal
    numpy's."""
    library = native.load(HERE / "stream.c", contract=False)
    if library is not None:
        pointer, cpus = np.ctypeslib.ndpointer(np.float64), np.ctypeslib.ndpointer(np.int32)
        arrays = (pointer, pointer, pointer)
        library.stream_pass.restype = ctypes.c_double
        library.stream_pass.argtypes = (
            ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_double, *arrays, cpus, ctypes.c_int,
        )  # fmt: skip
        library.stream_fill.restype = None
        library.stream_fill.argtypes = (ctypes.c_long, *arrays, *arrays, ctypes.c_long, cpus, ctypes.c_int)
    return library


def stream_elements(cpus: Sequence[int]) -> int:
    """Elements per array: four times the last-level caches of these CPUs, within an eighth of the free
    memory.

    At least 8 MiB per array, at most 4 GiB; a whole number of huge pages.
    """
    wanted = max(4 * topology.last_level_bytes(cpus), 64 << 20)
    size = min(wanted, topology.available_bytes() // 8, 4 << 30)
    return max(size // HUGE, 4) * HUGE // 8


class Stream:
    """Three float64 arrays `a, b, c` of (elements,), and the threads that pass over them together.

    cpus: one CPU per thread, by default one of each allowed core. elements: per array, by default
    `stream_elements`. compiled: False takes torch's kernels even where there is a compiler.
    """

    def __init__(
        self,
        cpus: Sequence[int] | None = None,
        elements: int | None = None,
        *,
        compiled: bool = True,
    ) -> None:
        self.cpus = tuple(topology.cores() if cpus is None else cpus)
        if not self.cpus:
            raise ValueError("cpus is empty: give at least one CPU")
        self.elements = stream_elements(self.cpus) if elements is None else elements
        if self.elements < 1:
            raise ValueError(f"elements is {self.elements}, expected at least 1")
        self._library = stream_library() if compiled else None
        self._cpus = np.array(topology.placement(self.cpus), np.int32)
        self.a, self.b, self.c = (huge_array(self.elements) for _ in range(3))
        # Multiples of 2**-12 below 2: sums of 2**40 of them, and products, are exact in float64.
        steps = np.random.default_rng(SEED).integers(0, 4096, (3, PERIOD))
        self._tables: tuple[Array, ...] = tuple(1.0 + steps / 4096.0)
        self._streaming: dict[str, bool] = {}
        self.fill()

    @property
    def compiled(self) -> bool:
        """Whether the kernels are the compiled ones; else torch's."""
        return self._library is not None

    def fill(self) -> None:
        """Give the arrays their pattern again; on the first call this places their pages."""
        if self._library is not None:
            self._library.stream_fill(
                self.elements, self.a, self.b, self.c, *self._tables, PERIOD, self._cpus, len(self.cpus)
            )
            return
        for array, table in zip((self.a, self.b, self.c), self._tables, strict=True):
            whole = self.elements // PERIOD * PERIOD
            array[:whole].reshape(-1, PERIOD)[:] = table
            array[whole:] = table[: self.elements - whole]

    def bytes(self, kernel: str) -> int:
        """Bytes that one pass moves, counted as STREAM does."""
        return KERNELS[kernel].bytes * self.elements

    def run(self, kernel: str, *, streaming: bool | None = None) -> Array | float:
        """One pass. Returns the written array `a`, for `read` the sum of `a`.

        streaming: with streaming stores or without; by default whichever is faster here. Raises KeyError for
        a kernel not in `KERNELS`.
        """
        if streaming is None:
            streaming = self.prefers_streaming(kernel)
        kind = KERNELS[kernel]
        if self._library is None:
            return self._run_torch(kernel)
        total = self._library.stream_pass(
            kind.number,
            streaming,
            self.elements,
            kind.scalar,
            self.a,
            self.b,
            self.c,
            self._cpus,
            len(self.cpus),
        )
        return float(total) if kernel == "read" else self.a

    def prefers_streaming(self, kernel: str) -> bool:
        """Whether streaming stores are the faster ones for this kernel: the best of four passes each, asked
        once."""
        if self._library is None or not KERNELS[kernel].may_stream:
            return False
        if not self._library.stream_has_streaming_stores():
            return False
        if kernel not in self._streaming:
            best = {True: math.inf, False: math.inf}
            for _ in range(4):
                for streaming in best:
                    begin = time.perf_counter()
                    self.run(kernel, streaming=streaming)
                    best[streaming] = min(best[streaming], time.perf_counter() - begin)
            self._streaming[kernel] = best[True] < best[False]
        return self._streaming[kernel]

    def verify(self, kernel: str) -> None:
        """Run a kernel on fresh values and compare every element with numpy's float64 result.

        Raises WrongResult naming kernel, element and both values.
        """
        kind = KERNELS[kernel]
        streaming = self.prefers_streaming(kernel)
        self.fill()
        result = self.run(kernel, streaming=streaming)
        expected = kind.expected(*self._tables)
        whole, rest = divmod(self.elements, PERIOD)
        if kernel == "read":
            total = whole * math.fsum(expected) + math.fsum(expected[:rest])
            if result != total:
                raise WrongResult(
                    f"stream read: the sum of {self.elements} elements is {result!r}, not {total!r}"
                )
        body = self.a[: whole * PERIOD].reshape(-1, PERIOD)
        wrong = np.flatnonzero(body != expected)
        tail = np.flatnonzero(self.a[whole * PERIOD :] != expected[:rest]) + whole * PERIOD
        places = np.concatenate([wrong, tail])
        if places.size:
            first = int(places[0])
            raise WrongResult(
                f"stream {kernel}: {places.size} of {self.elements} elements are wrong, the first is element "
                f"{first}: {self.a[first]!r}, expected {expected[first % PERIOD]!r}"
            )

    def _run_torch(self, kernel: str) -> Array | float:
        import torch

        a, b, c = (torch.from_numpy(array) for array in (self.a, self.b, self.c))
        match kernel:
            case "copy":
                a.copy_(b)
            case "scale":
                torch.mul(b, SCALAR, out=a)
            case "add":
                torch.add(b, c, out=a)
            case "triad":
                torch.add(b, c, alpha=SCALAR, out=a)
            case "read":
                return float(a.sum())
            case "read1_write1":
                a.neg_()
            case "read3_write1":
                a.addcmul_(b, c)
        return self.a


class ReferenceTriad:
    """The peer: a plain C triad over its own arrays, built at run time with `-O3 -fopenmp` and no more.

    elements: per array. Raises NoProbe without a compiler and MemoryError where the arrays cannot be had.
    Use as a context manager: the arrays are freed at its end.
    """

    def __init__(self, elements: int) -> None:
        library = native.load(HERE / "stream_reference.c", tuned=False)
        if library is None:
            raise NoProbe("the reference triad is C, and there is no compiler")
        library.reference_open.argtypes = (ctypes.c_long,)
        library.reference_triad.argtypes = (ctypes.c_double,)
        library.reference_triad.restype = None
        library.reference_array.restype = ctypes.POINTER(ctypes.c_double)
        if library.reference_open(elements):
            raise MemoryError(f"three arrays of {elements} float64 are not to be had")
        self._library = library
        self.a, self.b, self.c = (
            np.ctypeslib.as_array(library.reference_array(which), (elements,)) for which in range(3)
        )

    def run(self) -> Array:
        """One pass of a = b + 3 c. Returns `a`, (elements,) float64, valid until the end of the context."""
        self._library.reference_triad(SCALAR)
        return self.a

    def __enter__(self) -> ReferenceTriad:
        return self

    def __exit__(self, *_: object) -> None:
        self._library.reference_close()


# --------------------------------------------------------------------------------------------------- latency


@dataclass(frozen=True)
class Region:
    """What a chase runs over: `nodes` lines, `stride` bytes apart on average, on huge pages or on small
    ones."""

    name: str
    nodes: int
    stride: int
    huge: bool

    @property
    def bytes(self) -> int:
        """Bytes of the buffer."""
        return self.nodes * self.stride


def latency_regions(cpu: int) -> tuple[Region, ...]:
    """One region per level of `cpu`: `L1`, `L2`, ..., `dram`.

    In L1 half its size; in a further level the geometric mean of it and the one below, far from both edges;
    beyond the last four times its size, within an eighth of the free memory.
    """
    levels = topology.caches(cpu)
    sizes = [levels[0].size // 2]
    sizes += [math.isqrt(below.size * level.size) for below, level in itertools.pairwise(levels)]
    names = [f"L{level.level}" for level in levels]
    dram = min(max(4 * levels[-1].size, 64 << 20), topology.available_bytes() // 8, 1 << 30)
    return tuple(
        Region(name, size // LINE, LINE, huge=True)
        for name, size in zip([*names, "dram"], [*sizes, dram], strict=True)
    )


def tlb_region() -> Region:
    """16,384 small pages with one line in use in each: eight times the largest TLBs, while 1 MiB of lines is
    cached."""
    return Region("tlb", 16_384, mmap.PAGESIZE, huge=False)


class Chase:
    """A random cycle of pointers through a region, from which the latency of a load is read.

    Every node lies in a slot of `stride` bytes, at a random line of it, and each is visited once in a round
    trip.
    Raises NoProbe without a compiler, ValueError for a region of fewer than 2 nodes.
    """

    def __init__(self, region: Region, cpu: int) -> None:
        if region.nodes < 2:
            raise ValueError(f"a cycle needs at least 2 nodes, not {region.nodes}")
        library = native.load(HERE / "chase.c", openmp=False)
        if library is None:
            raise NoProbe("latency is measured by compiled code, and there is no compiler")
        library.chase.restype = ctypes.c_double
        library.chase.argtypes = (ctypes.POINTER(ctypes.c_void_p), ctypes.c_long)
        self.region, self.cpu = region, cpu
        self._library = library
        random = np.random.default_rng(SEED)
        with topology.pinned([cpu]):  # so that the pages lie on this CPU's node
            self._memory = aligned_memory(region.bytes, huge=region.huge)
            slots = random.permutation(region.nodes) * region.stride
            within = random.integers(0, region.stride // LINE, region.nodes) * LINE
            self._offsets: npt.NDArray[np.int64] = slots + within
            words = self._memory.view(np.uint64)
            base = self._memory.ctypes.data
            words[self._offsets // 8] = base + np.roll(self._offsets, -1).astype(np.uint64)
        self._base = base
        self._place = ctypes.c_void_p(base + int(self._offsets[0]))
        self._taken = 0

    def step(self, steps: int) -> float:
        """Seconds per load over `steps` loads (at least 16), going on from where the last call ended.

        Raises WrongResult where the chain does not lead to where it must.
        """
        steps = max(steps // 16, 1) * 16
        with topology.pinned([self.cpu]):
            seconds = self._library.chase(ctypes.byref(self._place), steps)
        self._taken += steps
        expected = self._base + int(self._offsets[self._taken % self.region.nodes])
        if self._place.value != expected:
            raise WrongResult(f"chase through {self.region.name}: the chain leads to the wrong line")
        return float(seconds) / steps

    def latency(self, rounds: int = 21, seconds: float = 0.005) -> npt.NDArray[np.float64]:
        """(rounds,) seconds per load, each over about `seconds` of loads, after a warm-up of one round trip
        or less."""
        trip = min(self.region.nodes, 1 << 18)
        per_load = min(self.step(trip) for _ in range(2))
        steps = max(int(seconds / per_load), 16)
        return np.array([self.step(steps) for _ in range(rounds)])


# ---------------------------------------------------------------------------------------------------- memory


def aligned_memory(size: int, *, huge: bool) -> npt.NDArray[np.uint8]:
    """(size,) bytes of fresh memory that begins at a huge page, with huge pages asked for or refused.

    The system may grant small pages all the same; then only speed differs. Pages are placed when first
    touched.
    """
    buffer = mmap.mmap(-1, size + HUGE)
    with contextlib.suppress(OSError):  # a kernel built without huge pages knows no advice about them
        buffer.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
    whole = np.frombuffer(buffer, np.uint8)
    skip = -whole.ctypes.data % HUGE
    return whole[skip : skip + size]


def huge_array(elements: int) -> Array:
    """(elements,) float64 that begins at a huge page; untouched, so that who writes first places its
    pages."""
    return aligned_memory(elements * 8, huge=True).view(np.float64)


# ----------------------------------------------------------------------------------------------- other tools


def mbw(mebibytes: int = 256, runs: int = 5) -> npt.NDArray[np.float64]:
    """(runs,) bytes per second that `mbw` reports for memcpy on one core, over arrays of that size each.

    Raises NoProbe where mbw is not installed, ProbeError where it fails.
    """
    return parse_mbw(_tool("mbw", "-t0", "-n", str(runs), str(mebibytes)))


def parse_mbw(output: str) -> npt.NDArray[np.float64]:
    """The rates in mbw's lines, in bytes per second and in order; its averages are left out."""
    rates = re.findall(r"^\d+\s+Method: \w+\s.*Copy: ([\d.]+) MiB/s", output, re.MULTILINE)
    if not rates:
        raise ProbeError(f"mbw printed no rate: {output[-300:]!r}")
    return np.array(rates, float) * 2**20


def stress_ng(instances: int, seconds: int = 5) -> float:
    """Bytes per second, read and written, of `stress-ng --stream` with that many instances together.

    It reports nothing for less than 4.5 seconds. Raises NoProbe where it is not installed, ProbeError where
    it fails.
    """
    with tempfile.TemporaryDirectory(prefix="stress-ng-") as folder:
        report = Path(folder) / "report.yaml"
        _tool(
            "stress-ng", "--stream", str(instances), "--timeout", str(seconds), "--metrics",
            "--temp-path", folder, "--yaml", str(report),
        )  # fmt: skip
        return instances * parse_stress_ng(report.read_text(encoding="utf-8"))


def parse_stress_ng(report: str) -> float:
    """Bytes per second of one instance: the sum of the read and write rates in stress-ng's YAML (MB/s)."""
    rates = re.findall(r"^\s*memory-(?:read-|write-)?rate-mb-per-sec: ([\d.]+)", report, re.MULTILINE)
    if not rates:
        raise ProbeError(f"stress-ng reported no memory rate: {report[-300:]!r}")
    return sum(map(float, rates)) * 1e6


def _tool(program: str, *arguments: str) -> str:
    place = shutil.which(program)
    if place is None:
        raise NoProbe(f"{program} is not installed")
    done = subprocess.run([place, *arguments], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise ProbeError(
            f"{program} ended with status {done.returncode}: {(done.stdout + done.stderr)[-300:]}"
        )
    return done.stdout
