"""The Triton kernels without a GPU: bit for bit in Triton's interpreter, and compiled for the H100; with one, on it."""

import multiprocessing
import os
import re
import subprocess
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings

from suites.agatha.test_graph import CASES, IMAGE, SHAPES, compiled, randomised
from suites.agatha.test_xce import random_graphs
from systems.agatha import graph as graphs
from systems.agatha import models, reference, trials, xce
from systems.agatha.descriptor import ExactnessError, Op, Profile

pytest.importorskip("triton", reason="triton is not installed")
few = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])

# --- Triton decides at its import whether it interprets, so each way has a process of its own


@contextmanager
def worker(**environment):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("TRITON_INTERPRET", raising=False)
            for name, value in environment.items():
                patch.setenv(name, value)
            pool.submit(os.getpid).result(timeout=120)  # the environment is read when the process starts
        yield pool


def _fused():
    """Whether this triton's interpreter rounds a fused multiply-add once: (1 + 2^-12)^2 - 1 - 2^-11 is 2^-24."""
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    one, minus = (
        interpreter.TensorHandle(np.array([value], np.float32), interpreter.tl.float32)
        for value in (1 + 2**-12, -1 - 2**-11)
    )
    return float(builder.create_fma(one, one, minus).data[0]) == 2.0**-24


def _digests(graph, x):
    torch.set_num_threads(1)
    from systems.agatha import gpu

    return [xce.digest(value) for value in gpu.Executor(graph).outputs(torch.from_numpy(x))]


def _run(graph, x):
    assert "triton" in xce.backends(graph.profile)
    return xce.digest(xce.run(graph, x, "triton")), [xce.digest(value) for value in xce.trace(graph, x, "triton")]


@pytest.fixture(scope="module")
def interpreter():
    with worker(TRITON_INTERPRET="1") as pool:
        yield pool


@pytest.fixture(scope="module")
def fused(interpreter):
    if not interpreter.submit(_fused).result(timeout=120):
        pytest.skip("this triton's interpreter rounds a fused multiply-add twice; it needs 3.9")


def agree(interpreter, graph, x):
    expected = [xce.digest(value) for value in reference.outputs(graph, x)]
    assert interpreter.submit(_digests, graph, x).result(timeout=300) == expected


def refused(graph):
    try:
        graphs.check(graph)
    except ExactnessError:
        return True
    return False


@settings(few, max_examples=40)
@given(random_graphs(Profile.INT8))
def test_random_graphs_int8(interpreter, case):
    graph, x = case
    assume(not refused(graph))
    agree(interpreter, graph, x)


@settings(few, max_examples=10)
@given(random_graphs(Profile.IEEE32))
def test_random_graphs_ieee32(interpreter, fused, case):
    graph, x = case
    chains = sum(np.prod(node.kernel) * node.input_shape[2] // node.groups for node in graph.nodes[1:])
    assume(not refused(graph) and chains < 300)  # the interpreter takes a millisecond for each link of a chain
    agree(interpreter, graph, x)


@pytest.mark.slow
@settings(few, max_examples=200)
@given(random_graphs(Profile.IEEE32))
def test_random_graphs_ieee32_at_length(interpreter, fused, case):
    graph, x = case
    assume(not refused(graph))
    agree(interpreter, graph, x)


def test_the_worst_cases_of_the_self_test_int8(interpreter):
    for graph, x in trials.trials(Profile.INT8, np.random.default_rng(11)):
        agree(interpreter, graph, x)


@pytest.mark.slow
def test_the_worst_cases_of_the_self_test_ieee32(interpreter, fused):
    for graph, x in trials.trials(Profile.IEEE32, np.random.default_rng(11)):
        agree(interpreter, graph, x)


@pytest.mark.parametrize("name", ["depthwise", "residual", "squeeze and excite", "concat", "matrix product"])
def test_compiled_networks_int8(interpreter, name):
    graph = compiled(randomised(CASES[name]), SHAPES.get(name, IMAGE))
    agree(interpreter, graph, xce.encode(graph, torch.randn(2, *IMAGE[1:], generator=torch.Generator().manual_seed(3))))


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["int8", "ieee32"])
def test_it_is_a_back_end_like_the_others(interpreter, fused, profile):
    """Through `run` and `trace`, self-test included."""
    graph = compiled(models.digits_cnn(), (1, 1, 8, 8), profile)
    x = xce.encode(graph, models.calibration(2, (1, 8, 8)))
    expected = [xce.digest(value) for value in xce.trace(graph, x)]
    assert interpreter.submit(_run, graph, x).result(timeout=500) == (expected[-1], expected)


def test_a_wrong_bit_is_seen(interpreter):
    """The comparison can fail: one weight of the reference is another one."""
    graph = compiled(randomised(CASES["conv"]), IMAGE)
    x = xce.encode(graph, torch.randn(IMAGE, generator=torch.Generator().manual_seed(3)))
    found = interpreter.submit(_digests, graph, x).result(timeout=300)
    node = graph.nodes[1]
    node.weight.reshape(-1)[:9] ^= 8
    assert found != [xce.digest(value) for value in reference.outputs(graph, x)]


# --- compiled for the H100

POINTERS = {"int8": {"x": "*u8", "residual": "*u8", "y": "*u8", "w": "*i8", "bias": "*i64", "shift": "*i8"}}
POINTERS["depthwise8"] = POINTERS["int8"] | {"bias": "*i32"}
WINDOW = {"H": 28, "W": 28, "C": 128, "H_OUT": 28, "W_OUT": 28, "KH": 3, "KW": 3, "STRIDE": 1, "PAD": 1, "DILATION": 1}
CODES = {"ZERO_X": 128, "ZERO_R": 128, "ZERO_Y": 0, "RESIDUAL": 1, "SHIFT_R": 3, "LO": 0, "HI": 255}
KERNELS = {
    "conv8_kernel": (
        "int8", WINDOW | CODES | {"C_OUT": 128, "GROUPS": 1, "PIXELS": 128, "OUTPUTS": 128, "DEPTH": 64}, 8, 3
    ),
    "chain_kernel": (
        "ieee32", WINDOW | {"C_OUT": 128, "GROUPS": 1, "RESIDUAL": 1, "PIXELS": 64, "OUTPUTS": 64}, 4, 3
    ),
    "depthwise_kernel-int8": ("depthwise8", WINDOW | CODES | {"EXACT": True, "PIXELS": 32, "CHANNELS": 64}, 4, 3),
    "depthwise_kernel-ieee32": (
        "ieee32", WINDOW | CODES | {"ZERO_X": 0, "EXACT": False, "PIXELS": 32, "CHANNELS": 64}, 4, 3,
    ),
}  # fmt: skip


def _compiled(name, kind, constants, warps, stages):
    """PTX, bytes of shared memory, and what cuobjdump says of registers, of a kernel for the H100."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from systems.agatha import kernels

    function = getattr(kernels, name)
    signature = dict.fromkeys(function.arg_names, "*fp32") | POINTERS.get(kind, {})
    signature |= {name: kind for name, kind in (("pixels", "i32"), ("lo", "fp32"), ("hi", "fp32")) if name in signature}
    signature |= dict.fromkeys(constants, "constexpr")
    attributes = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(function.arg_names) if signature[n][0] == "*"}
    source = ASTSource(function, {n: signature[n] for n in function.arg_names}, constants, attributes)
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps, "num_stages": stages})
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return built.asm["ptx"], built.metadata.shared, usage


QUICK = ("conv8_kernel", "chain_kernel")


@pytest.mark.parametrize("kernel", [pytest.param(k, marks=() if k in QUICK else pytest.mark.slow) for k in KERNELS])
def test_sm90_compile(kernel, tmp_path):
    kind, constants, warps, stages = KERNELS[kernel]
    with worker(TRITON_CACHE_DIR=str(tmp_path)) as pool:
        name = kernel.partition("-")[0]
        ptx, shared, usage = pool.submit(_compiled, name, kind, constants, warps, stages).result(timeout=300)
    assert ".target sm_90a" in ptx
    assert shared <= 227 * 1024
    # Nothing spills: no stack, no local memory, and at most the registers that a thread has.
    assert re.search(r"STACK:0\b", usage), usage
    assert re.search(r"LOCAL:0\b", usage), usage
    assert int(re.search(r"REG:(\d+)", usage)[1]) <= 255
    if kernel == "conv8_kernel":
        assert re.search(r"wgmma\.mma_async\S*\.s32\.s8\.s8", ptx), "not the integer matrix units of the H100"
    if kind == "ieee32":
        assert "fma.rn.f32" in ptx
        assert not re.search(r"\.ftz|mul\.(rn\.)?f32|tf32|fma\.rz|approx", ptx), "rounds otherwise than one chain"


# --- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("profile", list(Profile))
def test_the_gpu_computes_the_references_bits(profile):
    """Every trial, and a small network of every kind of layer, on the device itself."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    xce.self_test("triton", profile)
    model = models._seeded(
        torch.nn.Sequential(
            models._conv(3, 16, 3, 2), models.InvertedResidual(16, 16, 1, 6), models.Bottleneck(16, 8, 2),
            torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(32, 10),
        ), 3)  # fmt: skip
    graph = compiled(model, (1, 3, 32, 32), profile.name.lower(), models.calibration(8, (3, 32, 32)))
    assert Op.CONV in {node.op for node in graph.nodes}
    x = xce.encode(graph, models.calibration(5, (3, 32, 32), seed=4))
    expected = [xce.digest(value) for value in reference.outputs(graph, x)]
    assert [xce.digest(value) for value in xce.trace(graph, x, "triton")] == expected
    assert xce.digest(xce.run(graph, torch.from_numpy(np.asarray(x)).cuda())) == expected[-1]
