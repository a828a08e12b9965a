"""Compute probes: matrix products, convolution, a Linpack-like solve, and the peak rate of the arithmetic
units.

A probe builds its inputs once and gives a `Workload`: a call to be timed, the operations that it does (a
multiply and an add count as two, as everywhere), and `verify`, which raises `WrongResult` unless the result
agrees with an independent float64 (for integers: int64) computation. On one core, `one_core` keeps torch to a
single thread on a single CPU. Everything here runs on the device it is given; only `Peak` and the peers are
of the CPU.
"""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from systems import native
from systems.anubis.probes import topology

if TYPE_CHECKING:
    import torch

HERE = Path(__file__).parent
SEED = 20240206
HPL_LIMIT = 16.0  # the largest residual that HPL accepts

# dtype name -> (name in torch, unit roundoff of the result, unit roundoff of the sums; 0 is exact)
DTYPES: Mapping[str, tuple[str, float, float]] = {
    "fp64": ("float64", 2.0**-53, 2.0**-53),
    "fp32": ("float32", 2.0**-24, 2.0**-24),
    "bf16": ("bfloat16", 2.0**-8, 2.0**-24),
    # Without half-precision units a CPU may well keep fp16 sums in fp16.
    "fp16": ("float16", 2.0**-11, 2.0**-11),
    "int8": ("int8", 0.0, 0.0),
}


class ComputeError(RuntimeError):
    """A compute probe could not run, or gave a wrong result."""


class NoProbe(ComputeError):
    """The probe needs what this machine has not; the message says what."""


class WrongResult(ComputeError):
    """Arithmetic gave a result that rounding cannot explain; the message says where."""


@dataclass(frozen=True)
class Workload:
    """`run()` does `work` operations and returns its result; `verify(result)` raises WrongResult if it is
    wrong."""

    run: Callable[[], Any]
    work: float
    unit: str
    verify: Callable[[Any], None]


@contextmanager
def one_core(cpu: int | None = None) -> Iterator[None]:
    """Keep torch to one thread on one CPU (by default the first core's), and restore both at the end."""
    import torch

    threads = torch.get_num_threads()
    with topology.pinned([topology.cores()[0] if cpu is None else cpu]):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


# ------------------------------------------------------------------------------------------- matrix products


def gemm(n: int, dtype: str = "fp32", device: str = "cpu", batch: int | None = None) -> Workload:
    """C = A B for square matrices of side n, one product or a batch of them.

    dtype: a key of `DTYPES`; int8 gives int32. Inputs are standard normal (int8: uniform). The result of
    `run` is written to the same memory each time: (n, n), or (batch, n, n).
    Raises NoProbe where torch has no such product on that device, ValueError for a dtype not in `DTYPES`.
    """
    import torch

    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    if n < 1 or (batch is not None and batch < 1):
        raise ValueError(f"n is {n} and batch {batch}, expected at least 1")
    if dtype == "int8" and batch is not None:
        raise NoProbe("torch has no batched int8 product")
    shape = (n, n) if batch is None else (batch, n, n)
    generator = torch.Generator().manual_seed(SEED)
    kind = getattr(torch, DTYPES[dtype][0])
    if dtype == "int8":
        a, b = (
            torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8).to(device)
            for _ in range(2)
        )
        out = torch.empty(shape, dtype=torch.int32, device=device)
    else:
        a, b = (torch.randn(shape, generator=generator).to(device, kind) for _ in range(2))
        out = torch.empty(shape, dtype=kind, device=device)
    product = _product(dtype, batch)

    def run() -> torch.Tensor:
        product(a, b, out=out)
        return out

    try:
        run()
    except (RuntimeError, NotImplementedError) as error:
        raise NoProbe(f"torch {torch.__version__} has no {dtype} product on {device}: {error}") from error
    work = 2.0 * n**3 * (batch or 1)
    return Workload(
        run, work, "op/s" if dtype == "int8" else "FLOP/s", lambda c: verify_product(a, b, c, dtype)
    )


def _product(dtype: str, batch: int | None) -> Callable[..., Any]:
    import torch

    if batch is not None:
        return torch.bmm
    if dtype != "int8":
        return torch.mm
    if not hasattr(torch, "_int_mm"):
        raise NoProbe(f"torch {torch.__version__} has no int8 product")
    # The only plain int8 product that torch has; its underscore notwithstanding, quantised models rest on it.
    return torch._int_mm


def verify_product(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, dtype: str) -> None:
    """Raise WrongResult unless c is a @ b, by a random projection (R. Freivalds, 1977): c x = a (b x).

    a, b, c: (..., n, n). x is a vector of +-1, so that each row's difference is a sum of that row's errors
    with random signs; it is computed in float64, in int64 for integers, where it must be 0. Costs O(n^2).
    Rounding errors of a row have a standard deviation of about u |c_row|; eight times that is allowed.
    """
    n = a.shape[-1]
    _, u_result, u_sum = DTYPES[dtype]
    exact = dtype == "int8"
    wide: Any = np.int64 if exact else np.float64
    x = np.random.default_rng(SEED).choice(np.array([-1, 1]), n).astype(wide)
    left, right, result = (_wide(t, exact) for t in (a, b, c))
    projected = left @ (right @ x)[..., None]
    difference = np.abs(result @ x - projected[..., 0])
    if exact:
        allowed = np.zeros(difference.shape)
    else:
        scale = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=(-2, -1))[..., None] / math.sqrt(n)
        allowed = 8.0 * (u_result + math.sqrt(n) * u_sum) * scale
    wrong = np.argwhere(~(difference <= allowed))  # NaN counts as wrong
    if wrong.size:
        place = tuple(int(index) for index in wrong[0])
        raise WrongResult(
            f"{dtype} product of side {n}: {len(wrong)} rows are wrong, the first is row {place}: off by "
            f"{difference[place]:.3g}, where rounding explains {allowed[place]:.3g}"
        )


def _wide(tensor: torch.Tensor, exact: bool) -> npt.NDArray[Any]:
    import torch

    return tensor.detach().to("cpu", torch.int64 if exact else torch.float64).numpy()


def conv(
    batch: int = 8, channels: int = 64, side: int = 56, device: str = "cpu", dtype: str = "fp32"
) -> Workload:
    """A 3 x 3 convolution with padding 1, as in the first stage of a ResNet.

    The result is (batch, channels, side, side). `verify` computes 64 of its values by the definition, in
    float64.
    """
    import torch

    name, u_result, u_sum = DTYPES[dtype]
    generator = torch.Generator().manual_seed(SEED)
    kind = getattr(torch, name)
    x = torch.randn(batch, channels, side, side, generator=generator).to(device, kind)
    w = torch.randn(channels, channels, 3, 3, generator=generator).to(device, kind)

    def run() -> torch.Tensor:
        return torch.nn.functional.conv2d(x, w, padding=1)

    def verify(y: torch.Tensor) -> None:
        image = np.pad(_wide(x, False), ((0, 0), (0, 0), (1, 1), (1, 1)))
        kernel, result = _wide(w, False), _wide(y, False)
        if result.shape != (batch, channels, side, side):
            raise WrongResult(f"convolution: shape {result.shape}, expected {(batch, channels, side, side)}")
        random = np.random.default_rng(SEED)
        for place in random.integers(0, result.shape, (64, 4)):
            i, k, r, q = (int(v) for v in place)
            window = image[i, :, r : r + 3, q : q + 3]
            expected = float((window * kernel[k]).sum())
            size = float(np.linalg.norm(window) * np.linalg.norm(kernel[k]))
            allowed = 2.0 * u_result * abs(expected) + 8.0 * u_sum * math.sqrt(9 * channels) * size
            if not abs(result[i, k, r, q] - expected) <= allowed:
                raise WrongResult(
                    f"{dtype} convolution: value {(i, k, r, q)} is {result[i, k, r, q]!r}, "
                    f"expected {expected!r}"
                )

    return Workload(run, 2.0 * batch * channels * channels * 9 * side * side, "FLOP/s", verify)


# ------------------------------------------------------------------------------------------------ Linpack


def linpack(n: int = 1024, library: str = "torch") -> Workload:
    """Solve A x = b of side n in float64 by LU with partial pivoting, as HPL does, with the LAPACK of
    `library`.

    library: `torch` or `scipy`. The result of `run` is x, (n,) float64 numpy. Work: 2/3 n^3 + 3/2 n^2, HPL's
    count.
    `verify` raises WrongResult unless HPL's residual is below 16.
    """
    random = np.random.default_rng(SEED)
    a, b = random.uniform(-0.5, 0.5, (n, n)), random.uniform(-0.5, 0.5, n)
    if library == "torch":
        import torch

        ta, tb = torch.from_numpy(a), torch.from_numpy(b)[:, None]

        def run() -> npt.NDArray[np.float64]:
            lu, pivots = torch.linalg.lu_factor(ta)
            return torch.linalg.lu_solve(lu, pivots, tb)[:, 0].numpy()

    elif library == "scipy":
        from scipy import linalg

        def run() -> npt.NDArray[np.float64]:
            return np.asarray(linalg.lu_solve(linalg.lu_factor(a, check_finite=False), b, check_finite=False))

    else:
        raise ValueError(f"library is {library!r}, expected 'torch' or 'scipy'")

    def verify(x: npt.NDArray[np.float64]) -> None:
        residual = hpl_residual(a, x, b)
        if not residual < HPL_LIMIT:
            raise WrongResult(f"solve of side {n}: residual {residual:.3g}, expected below {HPL_LIMIT:g}")

    return Workload(run, 2.0 / 3.0 * n**3 + 1.5 * n**2, "FLOP/s", verify)


def hpl_residual(a: npt.NDArray[np.float64], x: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """|A x - b| / (eps n (|A| |x| + |b|)), all norms the maximum norm: HPL's scaled residual.

    a: (n, n), x, b: (n,). eps is LAPACK's for rounding arithmetic, 2**-53.
    """
    norm_a = float(np.abs(a).sum(axis=1).max())
    scale = 2.0**-53 * a.shape[0] * (norm_a * float(np.abs(x).max()) + float(np.abs(b).max()))
    return float(np.abs(a @ x - b).max()) / scale


# --------------------------------------------------------------------------------------------------- peak


class Peak:
    """The peak rate of fused multiply-adds, by a compiled loop that stays in registers (fma.c).

    dtype: `fp64` or `fp32`. Raises NoProbe without a compiler, ValueError for another dtype.
    """

    def __init__(self, dtype: str = "fp64") -> None:
        if dtype not in {"fp64", "fp32"}:
            raise ValueError(f"dtype is {dtype!r}, expected 'fp64' or 'fp32'")
        library = native.load(HERE / "fma.c")
        if library is None:
            raise NoProbe("the peak rate is measured by compiled code, and there is no compiler")
        self.dtype = np.dtype(np.float64 if dtype == "fp64" else np.float32)
        self._loop = library.fma64 if dtype == "fp64" else library.fma32
        width = library.fma64_values if dtype == "fp64" else library.fma32_values
        number = ctypes.c_double if dtype == "fp64" else ctypes.c_float
        array, cpus = np.ctypeslib.ndpointer(self.dtype), np.ctypeslib.ndpointer(np.int32)
        self._loop.argtypes = (ctypes.c_long, number, number, array, cpus, ctypes.c_int)
        self._loop.restype = None
        self.width = int(width())

    def run(self, values: npt.NDArray[Any], steps: int, x: float, y: float, cpus: Sequence[int]) -> None:
        """Replace each value `steps` times by value * x + y. values: (len(cpus), width), row m on CPU
        cpus[m]."""
        expected = (len(cpus), self.width)
        if values.shape != expected or values.dtype != self.dtype or not values.flags.c_contiguous:
            raise ValueError(
                f"values is {values.shape} {values.dtype}, expected {expected} {self.dtype}, contiguous"
            )
        self._loop(steps, x, y, values, np.array(cpus, np.int32), len(cpus))

    def workload(self, cpus: Sequence[int] | None = None, steps: int = 1_000_000) -> Workload:
        """All `cpus` (by default one of each core) at once; the result is (len(cpus), width) values."""
        chosen = tuple(topology.cores() if cpus is None else cpus)
        places = topology.placement(chosen)
        # v -> 3 - v -> v: exact on multiples of 2**-10, so a single wrong bit stays until the end and is
        # seen.
        start = np.tile(1.0 + np.arange(self.width) / 1024.0, (len(chosen), 1)).astype(self.dtype)
        expected = start if steps % 2 == 0 else 3.0 - start
        values = start.copy()

        def run() -> npt.NDArray[Any]:
            values[:] = start
            self.run(values, steps, -1.0, 3.0, places)
            return values

        def verify(result: npt.NDArray[Any]) -> None:
            wrong = np.argwhere(result != expected)
            if wrong.size:
                member, value = (int(index) for index in wrong[0])
                raise WrongResult(
                    f"fma on CPU {chosen[member]}: value {value} is {result[member, value]!r}, expected "
                    f"{expected[member, value]!r}"
                )

        return Workload(run, 2.0 * steps * values.size, "FLOP/s", verify)

    def rates(self, cpus: Sequence[int] | None = None, seconds: float = 0.02) -> npt.NDArray[np.float64]:
        """(cores,) FLOP/s of each core by itself, one after the other: the best of five bursts of `seconds` /
        5."""
        found = []
        for cpu in topology.cores() if cpus is None else cpus:
            trial = self.workload([cpu], 20_000)
            trial.run()
            begin = time.perf_counter()
            trial.run()
            elapsed = time.perf_counter() - begin
            burst = self.workload([cpu], max(int(20_000 * seconds / 5 / elapsed), 1000))
            with topology.pinned([cpu]):
                spans = []
                for _ in range(5):
                    begin = time.perf_counter()
                    burst.run()
                    spans.append(time.perf_counter() - begin)
            burst.verify(burst.run())
            found.append(burst.work / min(spans))
        return np.array(found)


# --------------------------------------------------------------------------------------------------- peers


def numpy_gemm(n: int, dtype: str = "fp32") -> Workload:
    """The same product as `gemm(n, dtype)` by numpy's BLAS, for fp32 and fp64. The result is (n, n) numpy."""
    import torch

    if dtype not in {"fp32", "fp64"}:
        raise ValueError(f"dtype is {dtype!r}: numpy's BLAS has fp32 and fp64")
    generator = torch.Generator().manual_seed(SEED)
    kind = getattr(torch, DTYPES[dtype][0])
    a, b = (torch.randn((n, n), generator=generator).to(kind) for _ in range(2))
    left, right = a.numpy(), b.numpy()
    out = np.empty_like(left)

    def run() -> npt.NDArray[Any]:
        np.matmul(left, right, out=out)
        return out

    return Workload(run, 2.0 * n**3, "FLOP/s", lambda c: verify_product(a, b, torch.from_numpy(c), dtype))
