"""GPU probes: launches, memory, copies and matrix products of one NVIDIA GPU, timed by CUDA events.

`unavailable()` says why there is nothing to probe; every other function needs the GPU, except where it takes
a device that may be "cpu". A probe verifies what the GPU computed before it returns what it measured: a fast
wrong answer raises `WrongResult`. Series are per round, in order, in base SI units.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Direction = Literal["h2d", "d2h", "d2d"]
LINE_BYTES = 128
"""A cache line of every NVIDIA GPU since Fermi."""


class GpuProbeError(Exception):
    """A GPU probe cannot run as asked."""


class WrongResult(GpuProbeError):
    """The GPU computed or copied something wrongly: silent data corruption."""


def unavailable(count: int = 1) -> str | None:
    """Why `count` GPUs cannot be probed here, or None when they can."""
    if not torch.backends.cuda.is_built():
        return f"no GPU: torch {torch.__version__} is built without CUDA"
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found < count:
        return f"no GPU: torch sees {found}, {count} needed"
    return None


# ---- timing


def event_seconds(
    work: Callable[[], object], *, device: str = "cuda", rounds: int = 16, flush: bool = True
) -> np.ndarray:
    """Seconds of one `work()` on the GPU, (rounds,), between CUDA events on the device's current stream.

    The L2 cache is flushed before each round. Work of less than 50 us is launched in batches of about 200 us,
    or the events' own resolution (0.5 us) would show; only the first call of a batch then finds the cache
    cold.
    """
    with torch.cuda.device(device):
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        flushed = torch.empty(max(64 * 2**20, 2 * cache), dtype=torch.uint8, device=device)
        work()  # compiles and allocates
        once = _between_events(work, 1)
        calls = 1 if once >= 50e-6 else math.ceil(200e-6 / max(once, 1e-6))
        seconds = np.empty(rounds)
        for index in range(rounds):
            if flush:
                flushed.zero_()
            seconds[index] = _between_events(work, calls) / calls
    return seconds


def _between_events(work: Callable[[], object], calls: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(calls):
        work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def _together(*works: Callable[[], object]) -> Callable[[], None]:
    """One callable that runs the works side by side on streams of their own, joined to the current stream."""
    streams = [torch.cuda.Stream() for _ in works]

    def run() -> None:
        current = torch.cuda.current_stream()
        for stream, work in zip(streams, works, strict=True):
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                work()
        for stream in streams:
            current.wait_stream(stream)

    return run


# ---- launches


@dataclass(frozen=True)
class Launches:
    """Seconds of one kernel launch, (rounds,) each.

    asynchronous: what the host spends to queue a kernel
    round_trip: from the launch until the host knows that the kernel is done
    replayed: a kernel's share of replaying a CUDA graph
    """

    asynchronous: np.ndarray
    round_trip: np.ndarray
    replayed: np.ndarray


def launches(*, device: str = "cuda", kernels: int = 256, rounds: int = 64) -> Launches:
    """Launch overheads of a kernel that adds 1 to one integer. Raises WrongResult when launches got lost.

    kernels: launches in a round; fewer than the 1024 that the driver queues, or the host would wait for the
    GPU.
    """
    asynchronous, round_trip = np.empty(rounds), np.empty(rounds)
    with torch.cuda.device(device):
        counter = torch.zeros(1, dtype=torch.int64, device=device)
        counter.add_(1)
        for index in range(rounds):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(kernels):
                counter.add_(1)
            asynchronous[index] = (time.perf_counter() - start) / kernels
            torch.cuda.synchronize()
            start = time.perf_counter()
            counter.add_(1)
            torch.cuda.synchronize()
            round_trip[index] = time.perf_counter() - start
        _expect_count(counter, 1 + rounds * (kernels + 1), "launches")
        counter.zero_()
        graph, replays = torch.cuda.CUDAGraph(), 0
        with torch.cuda.graph(graph):
            for _ in range(kernels):
                counter.add_(1)

        def replay() -> None:
            nonlocal replays
            replays += 1
            graph.replay()

        replayed = event_seconds(replay, device=device, rounds=rounds, flush=False) / kernels
        _expect_count(counter, replays * kernels, "graph replays")
    return Launches(asynchronous, round_trip, replayed)


def _expect_count(counter: Tensor, expected: int, of: str) -> None:
    if (count := int(counter.item())) != expected:
        raise WrongResult(f"{expected} {of} counted to {count}")


# ---- device memory


def stream_bandwidth(
    kernel: str,
    *,
    device: str = "cuda",
    nbytes: int = 2**30,
    dtype: torch.dtype = torch.float32,
    rounds: int = 32,
) -> np.ndarray:
    """Bytes per second of STREAM's copy, scale, add or triad in Triton, (rounds,), counting reads and writes.

    nbytes: size of one array. Raises WrongResult when an element is wrong.
    """
    from systems.anubis.probes import gpu_kernels

    elements = nbytes // dtype.itemsize
    first, second = stream_operands(elements, dtype, device)
    out = torch.empty_like(first)
    seconds = event_seconds(lambda: gpu_kernels.stream(kernel, first, second, out, 3.0), device=device, rounds=rounds)
    if wrong := count_mismatches(stream_reference(kernel, first, second, 3.0), out):
        raise WrongResult(f"{kernel}: {wrong} of {elements} elements are wrong")
    return stream_bytes(kernel, elements, dtype) / seconds


def stream_operands(elements: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """Two (elements,) arrays of small integers, which every kernel treats exactly in every dtype."""
    generator = torch.Generator(device).manual_seed(0)
    first = torch.randint(-16, 17, (elements,), device=device, generator=generator, dtype=torch.int8)
    second = torch.randint(-16, 17, (elements,), device=device, generator=generator, dtype=torch.int8)
    return first.to(dtype), second.to(dtype)


def stream_reference(kernel: str, first: Tensor, second: Tensor, scalar: float) -> Tensor:
    """What torch's own kernels give for a STREAM kernel. Raises GpuProbeError for an unknown one."""
    match kernel:
        case "copy":
            return first.clone()
        case "scale":
            return first * scalar
        case "add":
            return first + second
        case "triad":
            return torch.add(second, first, alpha=scalar)
    raise GpuProbeError(f"no stream kernel {kernel!r}; choose copy, scale, add or triad")


def stream_bytes(kernel: str, elements: int, dtype: torch.dtype) -> int:
    """Bytes that a STREAM kernel moves: two arrays for copy and scale, three for add and triad."""
    return (3 if kernel in ("add", "triad") else 2) * elements * dtype.itemsize


@dataclass(frozen=True)
class PointerChain:
    """A random cycle through every cache line of a buffer.

    successor: (elements,) int64, defined at the first element of each line; order: (lines,) int64, the
    elements in the cycle's order, so that order[k % lines] is where k loads from order[0] must end
    """

    successor: Tensor
    order: Tensor


def pointer_chain(nbytes: int, device: str) -> PointerChain:
    """A chain through nbytes, one pointer in each line, so that no load is helped by the one before."""
    per_line = LINE_BYTES // 8
    lines = nbytes // LINE_BYTES
    generator = torch.Generator(device).manual_seed(0)
    order = torch.randperm(lines, device=device, generator=generator) * per_line
    successor = torch.zeros(lines * per_line, dtype=torch.int64, device=device)
    successor[order] = order.roll(-1)
    return PointerChain(successor, order)


def load_latency(nbytes: int, *, device: str = "cuda", steps: int = 2**14, rounds: int = 16) -> np.ndarray:
    """Seconds of one dependent load from a buffer of nbytes, (rounds,).

    Choose less than the L2 cache for its latency, or many times its size for that of device memory (with its
    misses in the translation cache). Raises WrongResult when the walk ends on a wrong element.
    """
    from systems.anubis.probes import gpu_kernels

    chain = pointer_chain(nbytes, device)
    position = chain.order[:1].clone()
    walked = 0

    def walk(loads: int = steps) -> None:
        nonlocal walked
        walked += loads
        gpu_kernels.chase(chain.successor, position, loads)

    cached = nbytes <= torch.cuda.get_device_properties(device).L2_cache_size
    if cached:
        walk(len(chain.order))  # bring every line in
    seconds = event_seconds(walk, device=device, rounds=rounds, flush=not cached)
    expected = int(chain.order[walked % len(chain.order)].item())
    if (arrived := int(position.item())) != expected:
        raise WrongResult(f"after {walked} loads the walk is at element {arrived}, not {expected}")
    return seconds / steps


# ---- copies


def copy_bandwidth(
    direction: Direction, *, device: str = "cuda", pinned: bool = True, nbytes: int = 2**28, rounds: int = 16
) -> np.ndarray:
    """Bytes per second of a copy, (rounds,); on the device both the read and the write of a byte count.

    pinned: the host's side is page-locked, else pageable. Raises WrongResult when the copy differs.
    """
    source, target = _copy_ends(direction, device, pinned, nbytes)
    seconds = event_seconds(lambda: target.copy_(source, non_blocking=True), device=device, rounds=rounds)
    _expect_equal(source, target, direction)
    return (2 if direction == "d2d" else 1) * nbytes / seconds


def bidirectional_bandwidth(*, device: str = "cuda", nbytes: int = 2**28, rounds: int = 16) -> np.ndarray:
    """Bytes per second, (rounds,), both ways together, of a pinned copy to the device beside one from it."""
    up, into = _copy_ends("h2d", device, True, nbytes)
    down, back = _copy_ends("d2h", device, True, nbytes)
    with torch.cuda.device(device):
        both = _together(lambda: into.copy_(up, non_blocking=True), lambda: back.copy_(down, non_blocking=True))
        seconds = event_seconds(both, device=device, rounds=rounds)
    _expect_equal(up, into, "h2d")
    _expect_equal(down, back, "d2h")
    return 2 * nbytes / seconds


def peer_bandwidths(*, nbytes: int = 2**28, rounds: int = 16) -> np.ndarray:
    """Median bytes per second from GPU i to GPU j, (gpus, gpus); NaN from a GPU to itself."""
    gpus = torch.cuda.device_count()
    rates = np.full((gpus, gpus), np.nan)
    for i in range(gpus):
        source = _bytes(nbytes, f"cuda:{i}", seed=i)
        for j in range(gpus):
            if i == j:
                continue
            target = torch.empty_like(source, device=f"cuda:{j}")
            rates[i, j] = nbytes / np.median(_copy_seconds(source, target, rounds))
            _expect_equal(source, target, f"GPU {i} to GPU {j}")
    return rates


def _copy_seconds(source: Tensor, target: Tensor, rounds: int) -> np.ndarray:
    # torch runs a copy between GPUs on the source's current stream.
    return event_seconds(lambda: target.copy_(source, non_blocking=True), device=str(source.device), rounds=rounds)


def _copy_ends(direction: Direction, device: str, pinned: bool, nbytes: int) -> tuple[Tensor, Tensor]:
    if direction not in ("h2d", "d2h", "d2d"):
        raise GpuProbeError(f"no copy direction {direction!r}; choose h2d, d2h or d2d")
    source = _bytes(nbytes, "cpu" if direction == "h2d" else device, seed=1)
    target = torch.zeros(nbytes, dtype=torch.uint8, device="cpu" if direction == "d2h" else device)
    if pinned:
        source = source.pin_memory() if direction == "h2d" else source
        target = target.pin_memory() if direction == "d2h" else target
    return source, target


def _bytes(nbytes: int, device: str, seed: int) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randint(0, 256, (nbytes,), dtype=torch.uint8, device=device, generator=generator)


def _expect_equal(source: Tensor, target: Tensor, name: str) -> None:
    if wrong := count_mismatches(source.cpu(), target.cpu()):
        raise WrongResult(f"copy {name}: {wrong} of {source.numel()} bytes differ")


# ---- matrix products


@dataclass(frozen=True)
class Precision:
    """What a GEMM of some name multiplies; `error` bounds |computed - exact| / (|A| |B|), elementwise."""

    dtype: torch.dtype
    unit: Literal["FLOP/s", "op/s"]
    error: float


PRECISIONS: Mapping[str, Precision] = {
    # Float sums are rounded to the output's precision, int8 sums are exact in int32; fp8 gives bfloat16.
    "fp64": Precision(torch.float64, "FLOP/s", 1e-13),
    "fp32": Precision(torch.float32, "FLOP/s", 1e-5),
    "tf32": Precision(torch.float32, "FLOP/s", 2.0**-10),
    "fp16": Precision(torch.float16, "FLOP/s", 2.0**-10),
    "bf16": Precision(torch.bfloat16, "FLOP/s", 2.0**-7),
    "fp8": Precision(torch.float8_e4m3fn, "FLOP/s", 2.0**-7),
    "int8": Precision(torch.int8, "op/s", 0.0),
}


@dataclass(frozen=True)
class Gemm:
    """A square product: multiply() gives a @ b, always to the same bits on healthy hardware.

    a, b: (n, n); b is stored column by column where the precision demands it; work: operations in one product
    """

    precision: str
    a: Tensor
    b: Tensor
    multiply: Callable[[], Tensor]
    work: int
    unit: Literal["FLOP/s", "op/s"]


def gemm(precision: str, n: int, *, device: str = "cuda", seed: int = 0) -> Gemm:
    """A product of two seeded (n, n) matrices in one of PRECISIONS.

    fp8 and int8 need n to be a multiple of 16. Raises GpuProbeError for an unknown precision.
    """
    if precision not in PRECISIONS:
        raise GpuProbeError(f"no precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    kind = PRECISIONS[precision]
    generator = torch.Generator(device).manual_seed(seed)
    if kind.dtype == torch.int8:
        a, b = torch.randint(-128, 128, (2, n, n), dtype=torch.int8, device=device, generator=generator)
    else:
        operands = torch.randn(2, n, n, dtype=torch.float32, device=device, generator=generator)
        a, b = operands.to(kind.dtype)
    if precision in ("fp8", "int8"):
        b = b.t()  # tensor cores take these column by column only
    return Gemm(precision, a, b, _product(precision, a, b), 2 * n**3, kind.unit)


def gemm_unsupported(precision: str, device: str = "cuda") -> str | None:
    """Why this device has no such products, or None when it has."""
    if precision != "fp8":
        return None
    if torch.device(device).type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if (major, minor) < (8, 9):
            return f"fp8 GEMM needs compute capability 8.9, and this GPU has {major}.{minor}"
        return None
    try:
        gemm(precision, 16, device=device).multiply()
    except NotImplementedError:
        return f"torch {torch.__version__} has no fp8 GEMM for {device}"
    return None


def _product(precision: str, a: Tensor, b: Tensor) -> Callable[[], Tensor]:
    match precision:
        case "int8":
            return lambda: torch._int_mm(a, b)
        case "fp8":
            one = torch.ones((), device=a.device)
            scale = torch.nn.functional.ScalingType.TensorWise
            return lambda: torch.nn.functional.scaled_mm(a, b, one, scale, one, scale)
        case "tf32":
            return lambda: _with_tf32(True, a, b)
        case "fp32":
            return lambda: _with_tf32(False, a, b)
    return lambda: a @ b


def _with_tf32(allowed: bool, a: Tensor, b: Tensor) -> Tensor:
    with matmul_precision("tf32" if allowed else "ieee"):
        return a @ b


@contextmanager
def matmul_precision(precision: Literal["tf32", "ieee"]) -> Iterator[None]:
    """Sets how CUDA multiplies float32 matrices, and sets it back."""
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    try:
        settings.fp32_precision = precision
        yield
    finally:
        settings.fp32_precision = before


def gemm_error(product: Gemm, rows: int = 16) -> float:
    """Largest |computed - exact| / (|A| |B|) in `rows` evenly spread rows; exact means in float64."""
    n = len(product.a)
    chosen = torch.linspace(0, n - 1, min(rows, n), dtype=torch.float64).long()
    a, b = product.a.cpu()[chosen].double(), product.b.cpu().double()
    computed = product.multiply().cpu()[chosen].double()
    return float(((computed - a @ b).abs() / (a.abs() @ b.abs())).max())


def verify_gemm(product: Gemm) -> None:
    """Raises WrongResult when the product errs by more than its precision may."""
    error, allowed = gemm_error(product), PRECISIONS[product.precision].error
    n = len(product.a)
    if not error <= allowed:
        raise WrongResult(f"{product.precision} GEMM of {n}: relative error {error:.2e} > {allowed:.2e}")


def gemm_throughput(precision: str, n: int, *, device: str = "cuda", rounds: int = 32) -> np.ndarray:
    """FLOP/s (op/s for int8) of a square GEMM, (rounds,). Raises WrongResult when the product is wrong."""
    product = gemm(precision, n, device=device)
    verify_gemm(product)
    return product.work / event_seconds(product.multiply, device=device, rounds=rounds)


def gemm_copy_overlap(n: int = 8192, *, device: str = "cuda", rounds: int = 16) -> np.ndarray:
    """How well a copy from the host hides behind a GEMM, (rounds,): 1 if it does, 1/2 if it has to wait.

    The pinned copy is sized to last about as long as the bfloat16 GEMM; the value is the longer of the two
    alone over both together.
    """
    product = gemm("bf16", n, device=device)
    source, target = _copy_ends("h2d", device, True, 2**26)

    def copy() -> Tensor:
        return target.copy_(source, non_blocking=True)

    alone = float(np.median(event_seconds(product.multiply, device=device, rounds=rounds)))
    probe = float(np.median(event_seconds(copy, device=device, rounds=rounds)))
    source, target = _copy_ends("h2d", device, True, max(2**20, int(2**26 * alone / probe)))
    copying = float(np.median(event_seconds(copy, device=device, rounds=rounds)))
    with torch.cuda.device(device):
        together = event_seconds(_together(product.multiply, copy), device=device, rounds=rounds)
    _expect_equal(source, target, "h2d")
    return max(alone, copying) / together


# ---- burn


@dataclass(frozen=True)
class Mismatch:
    """A repetition of a burn (from 1) that was not the first product to the bit, in how many elements."""

    repetition: int
    elements: int


@dataclass(frozen=True)
class Burn:
    """A sustained load: operations per second, (repetitions,), and the product that all should have given."""

    rates: np.ndarray
    product: Tensor
    mismatches: tuple[Mismatch, ...]


def burn(product: Gemm, seconds: float) -> Burn:
    """Repeats one product for `seconds`, at least twice, and compares all results with the first to the bit.

    The same kernel on the same input has one right answer, so a single mismatch is silent data corruption; a
    falling rate is heat. Works on any device. Raises GpuProbeError when seconds is not positive.
    """
    if not seconds > 0:
        raise GpuProbeError(f"a burn of {seconds} s was asked for; expected a positive number of seconds")
    reference = product.multiply().clone()
    rates: list[float] = []
    mismatches: list[Mismatch] = []
    _wait(reference)
    deadline = time.perf_counter() + seconds
    while len(rates) < 2 or time.perf_counter() < deadline:
        start = time.perf_counter()
        result = product.multiply()
        _wait(result)
        rates.append(product.work / (time.perf_counter() - start))
        if wrong := count_mismatches(reference, result):
            mismatches.append(Mismatch(len(rates), wrong))
    return Burn(np.array(rates), reference, tuple(mismatches))


def queue_products(product: Gemm, seconds: float) -> None:
    """Gives the GPU about `seconds` of products to work on, at most 1,000, and returns at once."""
    with torch.cuda.device(product.a.device):
        product.multiply()
        once = _between_events(product.multiply, 1)
        for _ in range(min(1000, math.ceil(seconds / once))):
            product.multiply()


def uuid(device: str) -> str:
    """The name by which NVML knows a CUDA device, whatever CUDA_VISIBLE_DEVICES makes of its number."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def count_mismatches(expected: Tensor, actual: Tensor) -> int:
    """How many elements differ in any bit, so that NaN equals itself and 0.0 is not -0.0.

    Raises GpuProbeError when shape, dtype or device differ, since bits then mean different things.
    """
    if (expected.shape, expected.dtype, expected.device) != (actual.shape, actual.dtype, actual.device):
        raise GpuProbeError(
            f"cannot compare {tuple(actual.shape)} {actual.dtype} on {actual.device} "
            f"with {tuple(expected.shape)} {expected.dtype} on {expected.device}"
        )
    pattern = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[expected.element_size()]
    return int((expected.view(pattern) != actual.view(pattern)).sum().item())


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
