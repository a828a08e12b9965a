"""GPU probes without a GPU: kernels in Triton's interpreter and compiled for sm_90, rules on recorded counters, and
everything that does not need CUDA on the CPU. With a GPU, bench_gpu.py runs the rest."""

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from systems.anubis.probes import gpu, gpu_collectives, gpu_health
from systems.anubis.probes.gpu_health import HealthFacts, health_findings

ROOT = Path(__file__).parents[2]
STREAMS: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "copy": lambda first, second, scalar: first,
    "scale": lambda first, second, scalar: scalar * first,
    "add": lambda first, second, scalar: first + second,
    "triad": lambda first, second, scalar: scalar * first + second,
}

# ---- kernels; Triton decides at its import whether it interprets, so each way has a process of its own


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessPoolExecutor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        yield from _worker()


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessPoolExecutor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield from _worker()


def _worker() -> Iterator[ProcessPoolExecutor]:
    pytest.importorskip("triton", reason="triton is not installed")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(os.getpid).result(timeout=120)  # the environment is read when the process starts
        yield pool


def interpreted_stream(kernel: str, first: np.ndarray, second: np.ndarray, scalar: float) -> np.ndarray:
    from systems.anubis.probes import gpu_kernels

    a, b = torch.from_numpy(first), torch.from_numpy(second)
    padded = torch.full((len(a) + 8,), 77, dtype=a.dtype)  # what lies behind the array must survive
    gpu_kernels.stream(kernel, a, b, padded[: len(a)], scalar)
    return padded.numpy()


def interpreted_chase(nbytes: int, start: int, steps: int) -> int:
    from systems.anubis.probes import gpu_kernels

    chain = gpu.pointer_chain(nbytes, "cpu")
    return int(gpu_kernels.chase(chain.successor, chain.order[start : start + 1].clone(), steps).item())


def compiled(kernel: str, dtype: str) -> tuple[str, int]:
    """PTX text, and bytes of machine code, of a kernel for the H100."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from systems.anubis.probes import gpu_kernels

    if kernel == "chase":
        source = ASTSource(
            gpu_kernels.chase_kernel,
            {"successor": "*i64", "position": "*i64", "STEPS": "constexpr"},
            {"STEPS": 2**14},
        )
        warps = 1
    else:
        reads_second, scales = gpu_kernels.STREAMS[kernel]
        constants = {"READS_SECOND": reads_second, "SCALES": scales, "BLOCK": gpu_kernels.STREAM_BLOCK}
        pointers = dict.fromkeys(("first", "second", "out"), f"*{dtype}")
        source = ASTSource(
            gpu_kernels.stream_kernel,
            {**pointers, "scalar": "fp32", "elements": "i32", **dict.fromkeys(constants, "constexpr")},
            constants,
            # What a launch finds out about torch's aligned arrays of round sizes.
            {(index,): [["tt.divisibility", 16]] for index in (0, 1, 2, 4)},
        )
        warps = gpu_kernels.STREAM_WARPS
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    return built.asm["ptx"], len(built.asm["cubin"])


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.sampled_from(sorted(STREAMS)),
    elements=st.one_of(st.integers(1, 5), st.integers(2040, 2056), st.integers(1, 9000)),
    dtype=st.sampled_from(["float16", "float32", "float64"]),
    scalar=st.sampled_from([3.0, -0.5, 0.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_stream_kernels_agree_with_numpy_and_stay_within_their_array(
    interpreter: ProcessPoolExecutor, kernel: str, elements: int, dtype: str, scalar: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    first, second = random.standard_normal((2, elements)).astype(dtype)
    out = interpreter.submit(interpreted_stream, kernel, first, second, scalar).result(timeout=120)
    expected = STREAMS[kernel](first.astype(float), second.astype(float), scalar)
    # Two roundings, each of a value no larger than the sum of the terms' sizes.
    size = STREAMS[kernel](np.abs(first.astype(float)), np.abs(second.astype(float)), abs(scalar))
    bound = np.finfo(dtype).eps * size + np.finfo(dtype).smallest_subnormal
    exact = kernel == "copy"
    assert np.all(np.abs(out[:elements].astype(float) - expected) <= (0 if exact else bound))
    assert np.all(out[elements:] == 77)


@settings(max_examples=25, deadline=None)
@given(lines=st.integers(1, 300), start=st.integers(0, 10**6), steps=st.integers(0, 700))
def test_the_chase_ends_where_the_cycle_says(
    interpreter: ProcessPoolExecutor, lines: int, start: int, steps: int
) -> None:
    start %= lines
    arrived = interpreter.submit(interpreted_chase, lines * 128, start, steps).result(timeout=120)
    order = gpu.pointer_chain(lines * 128, "cpu").order.numpy()
    assert arrived == order[(start + steps) % lines]


@pytest.mark.parametrize("kernel", sorted(STREAMS))
@pytest.mark.parametrize("dtype", ["fp32", "fp64", "fp16", "bf16"])
def test_a_stream_kernel_compiles_for_the_h100_with_16_byte_accesses(
    compiler: ProcessPoolExecutor, kernel: str, dtype: str
) -> None:
    ptx, machine_code = compiler.submit(compiled, kernel, dtype).result(timeout=300)
    assert ".target sm_90" in ptx
    assert machine_code > 1000
    loads = [line for line in ptx.splitlines() if "ld.global" in line]
    stores = [line for line in ptx.splitlines() if "st.global" in line]
    width = ".v2.b64" if dtype == "fp64" else ".v4.b32"
    assert all(width in line for line in loads + stores)
    assert len(loads) == len(stores) * (2 if kernel in ("add", "triad") else 1)
    # 2,048 elements in 128 threads of 16 bytes an access.
    assert len(stores) == 2048 * {"fp32": 4, "fp64": 8}.get(dtype, 2) // (128 * 16)


def test_the_chase_compiles_to_one_dependent_load_per_step(compiler: ProcessPoolExecutor) -> None:
    ptx, machine_code = compiler.submit(compiled, "chase", "").result(timeout=300)
    assert machine_code > 1000
    # One load for the start, one in the loop: a kernel that loaded ahead would have more.
    assert sum("ld.global.b64" in line for line in ptx.splitlines()) == 2


def test_triton_is_imported_only_for_its_kernels() -> None:
    program = (
        "import sys, torch; "
        "from systems.anubis.probes import gpu, gpu_collectives, gpu_health, models; "
        "sys.exit('triton' in sys.modules)"
    )
    child = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert child.returncode == 0, child.stderr


# ---- operands, references and chains


@pytest.mark.parametrize("kernel", sorted(STREAMS))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_stream_references_are_exact_in_every_dtype(kernel: str, dtype: torch.dtype) -> None:
    first, second = gpu.stream_operands(1000, dtype, "cpu")
    reference = gpu.stream_reference(kernel, first, second, 3.0)
    expected = STREAMS[kernel](first.double().numpy(), second.double().numpy(), 3.0)
    assert reference.dtype == dtype
    assert np.array_equal(reference.double().numpy(), expected)
    assert len(np.unique(first.double().numpy())) > 16


def test_stream_bytes_count_as_stream_does() -> None:
    assert {kernel: gpu.stream_bytes(kernel, 10, torch.float64) for kernel in STREAMS} == {
        "copy": 160,
        "scale": 160,
        "add": 240,
        "triad": 240,
    }


def test_an_unknown_stream_kernel_is_refused() -> None:
    with pytest.raises(gpu.GpuProbeError, match=r"'tried'; choose copy, scale, add or triad"):
        gpu.stream_reference("tried", torch.ones(1), torch.ones(1), 1.0)


@settings(max_examples=30, deadline=None)
@given(lines=st.integers(1, 3000))
def test_a_chain_visits_every_cache_line_once(lines: int) -> None:
    chain = gpu.pointer_chain(lines * gpu.LINE_BYTES, "cpu")
    successor = chain.successor.numpy()
    assert successor.nbytes == lines * gpu.LINE_BYTES
    seen, here = [], int(chain.order[0])
    for _ in range(lines):
        seen.append(here)
        here = int(successor[here])
    assert here == seen[0]
    assert sorted(index * 8 // gpu.LINE_BYTES for index in seen) == list(range(lines))


# ---- matrix products


def cpu_gemm(precision: str, n: int, seed: int = 0) -> gpu.Gemm:
    if reason := gpu.gemm_unsupported(precision, "cpu"):
        pytest.skip(reason)
    return gpu.gemm(precision, n, device="cpu", seed=seed)


@pytest.mark.parametrize("precision", sorted(gpu.PRECISIONS))
def test_every_precision_multiplies_within_its_error(precision: str) -> None:
    product = cpu_gemm(precision, 64, seed=5)
    gpu.verify_gemm(product)
    exact = product.a.double().numpy() @ product.b.double().numpy()
    size = np.abs(product.a.double().numpy()) @ np.abs(product.b.double().numpy())
    error = np.max(np.abs(product.multiply().double().numpy() - exact) / size)
    assert error <= gpu.PRECISIONS[precision].error
    assert gpu.gemm_error(product, rows=64) == pytest.approx(error, rel=1e-6, abs=1e-17)
    assert product.work == 2 * 64**3
    assert product.unit == ("op/s" if precision == "int8" else "FLOP/s")


@pytest.mark.parametrize("precision", sorted(gpu.PRECISIONS))
def test_a_wrong_product_is_found(precision: str) -> None:
    healthy = cpu_gemm(precision, 64)

    def multiply() -> torch.Tensor:
        result = healthy.multiply()
        result[0, 0] += 64
        return result

    with pytest.raises(gpu.WrongResult, match=rf"{precision} GEMM of 64: relative error"):
        gpu.verify_gemm(replace(healthy, multiply=multiply))


def test_a_product_of_nan_is_wrong() -> None:
    healthy = gpu.gemm("fp32", 16, device="cpu")
    with pytest.raises(gpu.WrongResult, match="nan"):
        gpu.verify_gemm(replace(healthy, multiply=lambda: healthy.multiply() * math.nan))


def test_an_unknown_precision_is_answered_with_the_known_ones() -> None:
    with pytest.raises(gpu.GpuProbeError, match="'fp4'; choose one of fp64, fp32, tf32, fp16, bf16, fp8, int8"):
        gpu.gemm("fp4", 16, device="cpu")


def test_a_matmul_precision_is_set_only_inside() -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    seen = []

    def failing() -> None:
        with gpu.matmul_precision("ieee"):
            seen.append(matmul.fp32_precision)
            raise ZeroDivisionError

    with gpu.matmul_precision("tf32"):
        with pytest.raises(ZeroDivisionError):
            failing()
        seen.append(matmul.fp32_precision)
    assert seen == ["ieee", "tf32"]
    assert matmul.fp32_precision == before


# ---- burn


def test_a_healthy_burn_repeats_its_product_to_the_bit() -> None:
    product = gpu.gemm("fp32", 64, device="cpu")
    burn = gpu.burn(product, seconds=0.05)
    assert burn.mismatches == ()
    assert len(burn.rates) >= 2
    assert np.all(burn.rates > 0)
    exact = product.a.double() @ product.b.double()
    torch.testing.assert_close(burn.product.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_one_flipped_bit_in_a_burn_is_found_with_its_repetition(precision: str) -> None:
    healthy = gpu.gemm(precision, 32, device="cpu")
    calls = 0

    def multiply() -> torch.Tensor:
        nonlocal calls
        calls += 1
        result = healthy.multiply()
        if calls == 4:  # the first call gives the reference, so this is repetition 3
            bits = result.view(torch.int16 if result.element_size() == 2 else torch.int32)
            bits[7, 9] ^= 1
        return result

    burn = gpu.burn(replace(healthy, multiply=multiply), seconds=0.1)
    assert calls > 4
    assert burn.mismatches == (gpu.Mismatch(repetition=3, elements=1),)


@pytest.mark.parametrize("seconds", [0, -1.0, math.nan])
def test_a_burn_of_no_time_is_refused(seconds: float) -> None:
    with pytest.raises(gpu.GpuProbeError, match="positive number of seconds"):
        gpu.burn(gpu.gemm("fp32", 16, device="cpu"), seconds)


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(
        [torch.uint8, torch.int8, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64]
    ),
    data=st.data(),
)
def test_mismatches_are_counted_bit_by_bit(dtype: torch.dtype, data: st.DataObject) -> None:
    # Any bits are a value here, NaNs among them.
    raw = data.draw(st.binary(min_size=dtype.itemsize, max_size=40 * dtype.itemsize))
    raw = raw[: len(raw) // dtype.itemsize * dtype.itemsize]
    other = bytearray(raw)
    flips = data.draw(st.lists(st.integers(0, 8 * len(raw) - 1), unique=True, max_size=20))
    for bit in flips:
        other[bit // 8] ^= 1 << bit % 8
    expected = torch.frombuffer(bytearray(raw), dtype=dtype)
    actual = torch.frombuffer(other, dtype=dtype)
    assert gpu.count_mismatches(expected, actual) == len({bit // 8 // dtype.itemsize for bit in flips})


@pytest.mark.parametrize("other", [torch.zeros(3), torch.zeros(2, 2), torch.zeros(4, dtype=torch.int32)])
def test_tensors_that_cannot_be_compared_are_refused(other: torch.Tensor) -> None:
    with pytest.raises(gpu.GpuProbeError, match=r"cannot compare .* with \(4,\) torch\.float32 on cpu"):
        gpu.count_mismatches(torch.zeros(4), other)


# ---- collectives


@pytest.mark.parametrize(("collective", "factor"), [("all_reduce", 1.0), ("all_to_all", 0.5)])
def test_collectives_between_two_processes_are_right_and_counted_as_in_nccl_tests(
    collective: str, factor: float
) -> None:
    # A rank whose result differs from the expected one fails the call.
    rates = gpu_collectives.bus_bandwidth(collective, ranks=2, nbytes=2**16, backend="gloo", rounds=3)
    assert rates.shape == (3,)
    assert np.all(rates > 0)
    assert gpu_collectives.BUS_FACTORS[collective](2) == factor


@pytest.mark.parametrize("collective", ["all_gather", "reduce_scatter"])
def test_three_ranks_share_a_buffer_that_they_do_not_divide(collective: str) -> None:
    rates = gpu_collectives.bus_bandwidth(collective, ranks=3, nbytes=1000, backend="gloo", rounds=2)
    assert rates.shape == (2,)
    assert gpu_collectives.BUS_FACTORS[collective](3) == pytest.approx(2 / 3)


def test_a_rank_that_fails_is_reported_and_none_is_left() -> None:
    if torch.cuda.is_available():
        pytest.skip("NCCL works here, so its ranks do not fail")
    before = set(multiprocessing.active_children())
    with pytest.raises(gpu_collectives.CollectiveError, match=r"(?s)all_reduce between 2 ranks failed.*Traceback"):
        gpu_collectives.bus_bandwidth("all_reduce", ranks=2, nbytes=4096, backend="nccl")
    assert set(multiprocessing.active_children()) <= before


def test_a_wrong_result_fails_its_rank(tmp_path: Path) -> None:
    program = (
        "import sys; import torch.distributed as dist\n"
        "from systems.anubis.probes import gpu_collectives\n"
        "healthy = dist.all_reduce\n"
        "def corrupt(tensor):\n"
        "    healthy(tensor)\n"
        "    tensor[3] += 1\n"
        "dist.all_reduce = corrupt if sys.argv[1] == 'corrupt' else healthy\n"
        "gpu_collectives._rank(0, 'all_reduce', 1, 100, 'gloo', 1, 60.0, sys.argv[2])\n"
    )
    outcomes = {}
    for way in ("healthy", "corrupt"):
        (tmp_path / way).mkdir()
        outcomes[way] = subprocess.run(
            [sys.executable, "-c", program, way, str(tmp_path / way)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert outcomes["healthy"].returncode == 0, outcomes["healthy"].stderr
    assert outcomes["corrupt"].returncode != 0
    assert "rank 0: 1 of 100 elements of all_reduce are wrong" in outcomes["corrupt"].stderr


def test_ranks_that_do_not_end_in_time_are_ended() -> None:
    before = set(multiprocessing.active_children())
    with pytest.raises(gpu_collectives.CollectiveError, match=r"did not end within 0\.2 s"):
        gpu_collectives.bus_bandwidth("all_reduce", ranks=2, nbytes=4096, backend="gloo", timeout=0.2)
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.parametrize(
    ("collective", "ranks", "nbytes", "message"),
    [
        ("all_gathr", 2, 4096, "'all_gathr'; choose one of all_reduce, all_gather, reduce_scatter, all_to_all"),
        ("all_reduce", 1, 4096, "between 1 ranks; at least 2"),
        ("all_reduce", 4, 12, "12 bytes leaves none"),
    ],
)
def test_a_collective_that_makes_no_sense_is_refused(collective: str, ranks: int, nbytes: int, message: str) -> None:
    with pytest.raises(gpu_collectives.CollectiveError, match=message):
        gpu_collectives.bus_bandwidth(collective, ranks=ranks, nbytes=nbytes, backend="gloo")


# ---- health

HEALTHY = HealthFacts(  # an H100 at work, as NVML tells
    index=0,
    name="NVIDIA H100 80GB HBM3",
    uuid="GPU-0",
    ecc_enabled=True,
    ecc_corrected_volatile=0,
    ecc_uncorrected_volatile=0,
    ecc_corrected_aggregate=0,
    ecc_uncorrected_aggregate=0,
    rows_remapped_correctable=0,
    rows_remapped_uncorrectable=0,
    rows_pending=False,
    rows_failed=False,
    pcie_width=16,
    pcie_width_max=16,
    pcie_generation=5,
    pcie_generation_max=5,
    pcie_replays=0,
    nvlink_active=(True,) * 18,
    nvlink_errors={"flit CRC": 0, "data CRC": 0, "replay": 0, "recovery": 0},
    temperature_celsius=61,
    throttle=0x4,
    loaded=True,
)


def judged(**facts: Any) -> list[tuple[str, str]]:
    return [(found.severity, found.rule) for found in health_findings(replace(HEALTHY, **facts))]


def test_a_healthy_gpu_has_no_findings() -> None:
    assert judged() == []


def test_a_gpu_that_tells_nothing_has_no_findings() -> None:
    assert health_findings(HealthFacts(index=3)) == []


@pytest.mark.parametrize(
    ("correctable", "uncorrectable", "expected"),
    [
        (0, 0, []),
        (1, 0, [("evidence", "row-remap")]),
        (0, 1, [("evidence", "row-remap")]),
        (10, 0, [("evidence", "row-remap")]),
        (4, 6, [("evidence", "row-remap")]),
        (11, 0, [("defect", "row-remap")]),
        (5, 6, [("defect", "row-remap")]),
        (512, 0, [("defect", "row-remap")]),
    ],
)
def test_more_than_ten_remapped_rows_are_a_defect(
    correctable: int, uncorrectable: int, expected: list[tuple[str, str]]
) -> None:
    assert judged(rows_remapped_correctable=correctable, rows_remapped_uncorrectable=uncorrectable) == expected


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"rows_failed": True}, ("defect", "row-remap-failed")),
        ({"rows_pending": True}, ("evidence", "row-remap-pending")),
        ({"ecc_uncorrected_volatile": 1}, ("defect", "ecc-uncorrected")),
        ({"ecc_uncorrected_aggregate": 9}, ("evidence", "ecc-uncorrected")),
        ({"ecc_corrected_volatile": 40}, ("evidence", "ecc-corrected")),
        ({"ecc_enabled": False}, ("evidence", "ecc-off")),
        ({"pcie_width": 8}, ("defect", "pcie-width")),
        ({"pcie_generation": 4}, ("defect", "pcie-generation")),
        ({"pcie_replays": 2}, ("evidence", "pcie-replays")),
        ({"nvlink_active": (True,) * 17 + (False,)}, ("defect", "nvlink-down")),
        ({"nvlink_errors": {"replay": 3, "recovery": 0}}, ("evidence", "nvlink-errors")),
        ({"throttle": 0x40}, ("defect", "throttled")),
        ({"throttle": 0x80 | 0x4}, ("defect", "throttled")),
        ({"throttle": 0x20}, ("defect", "throttled")),
        ({"throttle": 0x8}, ("defect", "throttled")),
        ({"lost": True}, ("defect", "lost")),
    ],
)
def test_one_sick_counter_gives_its_one_finding(facts: dict[str, Any], expected: tuple[str, str]) -> None:
    assert judged(**facts) == [expected]


@pytest.mark.parametrize(
    "facts",
    [
        {"pcie_generation": 1, "loaded": False},  # an idle link slows down
        {"throttle": 0x1 | 0x2 | 0x4 | 0x10 | 0x100},  # idle, chosen clocks, power cap, synchronised boost, display
        {"nvlink_active": (False,) * 18},  # nobody wired the bridges
        {"nvlink_active": ()},
        {"ecc_corrected_aggregate": 1000},
        {"temperature_celsius": 90},
    ],
)
def test_what_healthy_gpus_do_is_no_finding(facts: dict[str, Any]) -> None:
    assert judged(**facts) == []


def test_a_finding_says_what_was_seen_and_what_to_do() -> None:
    (found,) = health_findings(replace(HEALTHY, index=5, rows_remapped_correctable=12))
    assert found.gpu == 5
    assert "12 remapped memory rows, more than 10: replace the GPU" in found.message
    (found,) = health_findings(replace(HEALTHY, throttle=0x40))
    assert "hardware thermal slowdown at 61 degrees" in found.message


@given(
    rows=st.integers(0, 1000),
    corrected=st.integers(0, 10**6),
    uncorrected=st.integers(0, 100),
    width=st.sampled_from([1, 4, 8, 16]),
    throttle=st.integers(0, 2**9 - 1),
)
def test_defects_come_first_and_a_worse_gpu_never_has_fewer(
    rows: int, corrected: int, uncorrected: int, width: int, throttle: int
) -> None:
    facts = replace(
        HEALTHY,
        rows_remapped_correctable=rows,
        ecc_corrected_volatile=corrected,
        ecc_uncorrected_volatile=uncorrected,
        pcie_width=width,
        throttle=throttle,
    )
    severities = [found.severity for found in health_findings(facts)]
    assert severities == sorted(severities)
    worse = replace(facts, rows_remapped_correctable=rows + 11, pcie_width=1, throttle=throttle | 0x80)
    assert [found.severity for found in health_findings(worse)].count("defect") >= severities.count("defect")


# The library below answers as a driver does, through the same C interface, with the counters of one sick H100 and
# one that has fallen off the bus. It stands in for libnvidia-ml.so.1 in a child process.
DRIVER = r"""
#include <stdint.h>
#include <string.h>
#define OK 0
#define NOT_SUPPORTED 3
#define GPU_IS_LOST 15
typedef struct { int32_t padding; } device;
static device gpus[2];
static int lost(device *gpu) { return gpu == &gpus[1]; }
int nvmlInitWithFlags(unsigned flags) { return OK; }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { return "told by the driver"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, device **gpu) { *gpu = &gpus[i]; return OK; }
int nvmlDeviceGetName(device *g, char *text, unsigned n) {
  if (lost(g)) return GPU_IS_LOST; strncpy(text, "NVIDIA H100", n); return OK; }
int nvmlDeviceGetUUID(device *g, char *text, unsigned n) { strncpy(text, "GPU-1234", n); return OK; }
int nvmlDeviceGetEccMode(device *g, unsigned *now, unsigned *later) {
  if (lost(g)) return GPU_IS_LOST; *now = 1; *later = 0; return OK; }
int nvmlDeviceGetTotalEccErrors(device *g, unsigned kind, unsigned counter, unsigned long long *n) {
  if (lost(g)) return GPU_IS_LOST; *n = 1 + kind + 10 * counter; return OK; }
int nvmlDeviceGetRemappedRows(device *g, unsigned *c, unsigned *u, unsigned *pending, unsigned *failed) {
  if (lost(g)) return GPU_IS_LOST; *c = 9; *u = 3; *pending = 1; *failed = 0; return OK; }
int nvmlDeviceGetCurrPcieLinkWidth(device *g, unsigned *n) { *n = 8; return OK; }
int nvmlDeviceGetMaxPcieLinkWidth(device *g, unsigned *n) { *n = 16; return OK; }
int nvmlDeviceGetCurrPcieLinkGeneration(device *g, unsigned *n) { *n = 4; return OK; }
int nvmlDeviceGetMaxPcieLinkGeneration(device *g, unsigned *n) { *n = 5; return OK; }
int nvmlDeviceGetPcieReplayCounter(device *g, unsigned *n) { return NOT_SUPPORTED; }
int nvmlDeviceGetNvLinkState(device *g, unsigned link, unsigned *up) {
  if (link >= 4) return NOT_SUPPORTED; *up = link != 2; return OK; }
typedef struct { uint32_t id, scope; int64_t time, latency; int32_t type, code; unsigned long long n; } value;
int nvmlDeviceGetFieldValues(device *g, int count, value *v) {
  for (int i = 0; i < count; i++) { v[i].type = 3; v[i].code = i == 1 ? NOT_SUPPORTED : OK; v[i].n = 100 + i; }
  return OK; }
typedef struct { unsigned version; unsigned sensor; int degrees; } temperature;
int nvmlDeviceGetTemperatureV(device *g, temperature *t) { t->degrees = 88; return OK; }
int nvmlDeviceGetCurrentClocksEventReasons(device *g, unsigned long long *bits) { *bits = 0x44; return OK; }
"""


def test_counters_are_read_through_the_drivers_c_interface(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build a driver that answers as recorded")
    (tmp_path / "driver.c").write_text(DRIVER)
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, tmp_path / "driver.c"], check=True, timeout=60)
    program = (
        "from dataclasses import asdict; from systems.anubis.probes.gpu_health import *; "
        "print(health_unavailable()); print([asdict(facts) for facts in read_health(loaded={'GPU-1234'})])"
    )
    child = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    sick = HealthFacts(
        index=0,
        name="NVIDIA H100",
        uuid="GPU-1234",
        ecc_enabled=True,
        ecc_corrected_volatile=1,
        ecc_uncorrected_volatile=2,
        ecc_corrected_aggregate=11,
        ecc_uncorrected_aggregate=12,
        rows_remapped_correctable=9,
        rows_remapped_uncorrectable=3,
        rows_pending=True,
        rows_failed=False,
        pcie_width=8,
        pcie_width_max=16,
        pcie_generation=4,
        pcie_generation_max=5,
        pcie_replays=None,
        nvlink_active=(True, True, False, True),
        nvlink_errors={"flit CRC": 100, "replay": 102, "recovery": 103},
        temperature_celsius=88,
        throttle=0x44,
        loaded=True,
    )
    lost = HealthFacts(index=1, lost=True)
    assert child.stdout.splitlines() == ["None", repr([asdict(sick), asdict(lost)])]
    assert {found.rule for found in health_findings(sick) if found.severity == "defect"} == {
        "ecc-uncorrected",
        "row-remap",
        "pcie-width",
        "pcie-generation",
        "nvlink-down",
        "throttled",
    }


def test_without_a_driver_the_reason_is_given_once_and_clearly() -> None:
    reason = gpu_health.health_unavailable()
    if reason is None:
        facts = gpu_health.read_health()
        assert [fact.index for fact in facts] == list(range(len(facts)))
        assert all(fact.lost or fact.name for fact in facts)
        return
    assert reason.startswith("no GPU health: ")
    with pytest.raises(gpu_health.HealthUnavailable, match="no GPU health"):
        gpu_health.read_health()


def test_the_reason_to_skip_names_what_is_missing() -> None:
    many = gpu.unavailable(count=10_000)
    assert many is not None
    assert many.startswith("no GPU: torch ")
    if not torch.cuda.is_available():
        assert gpu.unavailable() is not None
