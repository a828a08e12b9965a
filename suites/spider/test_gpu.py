"""Triton kernels without a GPU: in Triton's interpreter against float64, and compiled for the H100."""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from systems.spider import DtypeError, SpiderError, TileIndex, matmul, moe_ffn, torch_backend
from systems.spider.cpu import Arrays

pytest.importorskip("triton", reason="triton is not installed")
ROOT = Path(__file__).resolve().parents[2]
few = settings(max_examples=20, deadline=None)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}

# ---- Triton decides at its import whether it interprets, so each way has a process of its own


@contextmanager
def worker(**environment):
    """A process that imports triton under an environment, which is put back at once."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("TRITON_INTERPRET", raising=False)
            for name, value in environment.items():
                patch.setenv(name, value)
            pool.submit(os.getpid).result(timeout=120)  # the environment is read when the process starts
        yield pool


@pytest.fixture(scope="module")
def interpreter():
    with worker(TRITON_INTERPRET="1") as pool:
        try:
            run(pool, "detect", torch.ones(2, 2), 1, 0, True)
        except Exception as error:
            if "only 0-dimensional arrays" not in str(error):
                raise
            pytest.skip("this triton's interpreter cannot loop to a bound of run time under numpy 2.4; it needs 2.3")
        yield pool


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    with worker(TRITON_CACHE_DIR=str(tmp_path_factory.mktemp("triton"))) as pool:
        yield pool


def _call(name, *arguments):
    from systems.spider import gpu

    torch.set_num_threads(1)
    return getattr(gpu, name)(*arguments)


def run(pool, name, *arguments):
    return pool.submit(_call, name, *arguments).result(timeout=120)


# ------------------------------------------------------------------------------------------------ strategies

extent = st.sampled_from([1, 2, 15, 16, 17, 33, 64, 65, 130]) | st.integers(1, 140)
sizes = st.sampled_from([1, 3, 16, 17, 32, 64, 128, 200])


@st.composite
def sparse(draw, rows=extent, columns=extent):
    """A float64 matrix of any sparsity whose values every dtype holds exactly."""
    m, k = draw(rows), draw(columns)
    r, c = draw(st.sampled_from([(1, 1), (16, 1), (1, 16), (1000, 1), (1, 1000)]))
    sparsity = draw(st.sampled_from([0.0, 0.5, 0.9, 1.0]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kept = (random.random((-(-m // r), -(-k // c))) >= sparsity).repeat(r, 0).repeat(c, 1)[:m, :k]
    return torch.from_numpy(np.where(kept, random.integers(1, 9, (m, k)) / 4, 0.0))


def dense_of(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(-8, 9, shape) / 4)


def index_of(a, size, axis, dtype):
    """The index that plain torch finds, with values in a dtype."""
    found = torch_backend.detect(a, size, axis, True)
    return found._replace(values=found.values.to(dtype))


def close(y, expected, scale, dtype):
    assert y.dtype == dtype
    assert bool(((y.double() - expected).abs() <= TOLERANCE[dtype] * scale + 1e-6).all())


def lists(found):
    ends = found.offsets[1:] if found.ends is None else found.ends
    spans = zip(found.offsets[:-1].tolist(), ends.tolist(), strict=True)
    return [(found.indices[a:b].tolist(), None if found.values is None else found.values[a:b]) for a, b in spans]


# ------------------------------------------------------------------------------------------------- detection


@few
@given(sparse(), sizes, st.sampled_from([0, 1]), st.sampled_from([*DTYPES, torch.int32, torch.bool]), st.booleans())
@example(torch.tensor([[-0.0, float("nan")], [0.0, 1e-45]]), 1, 1, torch.float32, True)
@example(torch.tensor([[-0.0, float("inf")], [0.0, 0.0]]), 2, 1, torch.bfloat16, True)
@example(torch.tensor([[-0.0, float("inf")], [0.0, 0.0]]), 1, 0, torch.float16, True)
def test_detection_lists_what_plain_torch_lists(interpreter, x, size, axis, dtype, pack):
    x = x.to(dtype)
    found = run(interpreter, "detect", x, size, axis, pack)
    expected = torch_backend.detect(x, size, axis, pack)
    for (places, values), (others, wanted) in zip(lists(Arrays(*found)), lists(expected), strict=True):
        assert places == others
        if pack:
            assert torch.equal(values.to(dtype).nan_to_num(7), wanted.nan_to_num(7))


@few
@given(sparse(), sizes, st.sampled_from([0, 1]))
def test_room_behind_the_lists_is_dropped_on_request(interpreter, x, size, axis):
    found = run(interpreter, "detect", x.float(), size, axis, True)
    tile = (size, 1) if axis == 1 else (1, size)
    index = TileIndex(tuple(x.shape), torch.float32, axis, tile, *found)
    expected = torch_backend.detect(x.float(), size, axis, True)
    tight = index.tight()
    assert torch.equal(tight.indices, expected.indices)
    assert torch.equal(tight.offsets, expected.offsets)
    assert torch.equal(tight.values, expected.values)
    assert torch.equal(index.to_mask(), tight.to_mask())
    assert (index.density, index.coverage) == (tight.density, tight.coverage)


@few
@given(sparse(), sizes, st.sampled_from(DTYPES))
def test_packing_reads_the_listed_values(interpreter, x, size, dtype):
    index = index_of(x, size, 1, dtype)
    other = dense_of(*x.shape).to(dtype)
    assert torch.equal(run(interpreter, "pack", index, size, other), torch_backend.pack(index, size, other))


# -------------------------------------------------------------------------------------------------- products


@few
@given(sparse(), extent, sizes, st.sampled_from([0, 1]), st.sampled_from(DTYPES))
def test_gathers_equal_float64(interpreter, a, columns, size, axis, dtype):
    b = dense_of(a.shape[1], columns)
    name = "k_gather" if axis == 1 else "m_gather"
    y = run(interpreter, name, index_of(a, size, axis, dtype), size, b.to(dtype), a.shape[0])
    close(y, a @ b, a.abs() @ b.abs(), dtype)


def test_many_rows_are_added_in_order_by_the_programs_that_own_them(interpreter):
    """Several chunks of rows, several blocks: the bounds of each chunk in each list are searched."""
    random = np.random.default_rng(0)
    a = torch.from_numpy(np.where(random.random((700, 90)) < 0.2, random.integers(1, 9, (700, 90)) / 4, 0.0))
    b = dense_of(90, 70)
    index = index_of(a, 16, 0, torch.float32)
    first = run(interpreter, "m_gather", index, 16, b.float(), 700)
    close(first, a @ b, a @ b.abs(), torch.float32)
    assert torch.equal(first, run(interpreter, "m_gather", index, 16, b.float(), 700))


@few
@given(sparse(), extent, sizes, st.sampled_from(["dense", "transposed", "packed"]), st.sampled_from(DTYPES))
def test_sampled_outputs_equal_float64(interpreter, mask, depth, size, form, dtype):
    x, y = dense_of(mask.shape[0], depth), dense_of(mask.shape[1], depth, seed=1)
    index = index_of(mask, size, 1, dtype)
    got = run(interpreter, "sampled", index, size, x.to(dtype), y.to(dtype), form)
    exact = index._replace(values=index.values.double())
    close(got, torch_backend.sampled(exact, size, x, y, form), depth * 8.0, dtype)
    if form == "dense":
        assert bool((got[mask == 0] == 0).all())
        close(got, torch.where(mask != 0, x @ y.T, 0), depth * 8.0, dtype)


def test_what_is_not_listed_is_not_read(interpreter):
    a = torch.zeros(40, 50, dtype=torch.float64)
    a[3, 7] = 2.0
    b = torch.full((50, 20), float("nan"), dtype=torch.float64)
    b[7] = 1.0
    for axis, name in ((1, "k_gather"), (0, "m_gather")):
        size = 16 if axis == 1 else 1
        y = run(interpreter, name, index_of(a, size, axis, torch.float32), size, b.float(), 40)
        assert torch.equal(y[3], torch.full((20,), 2.0))
        assert not bool(y[:3].any())


# --------------------------------------------------------------------------------------------------- experts


@few
@given(st.lists(st.integers(0, 70), min_size=1, max_size=6), extent, extent, st.sampled_from(DTYPES), st.booleans())
@example([0, 0, 0], 3, 5, torch.float32, False)
@example([0, 129, 0, 1], 17, 33, torch.bfloat16, True)
def test_experts_equal_float64(interpreter, loads, depth, columns, dtype, flipped):
    experts, entries = len(loads), sum(loads)
    offsets = torch.tensor([0, *loads]).cumsum(0)
    rows = torch.from_numpy(np.random.default_rng(0).integers(0, 9, entries)).int()
    x, w = dense_of(9, depth), dense_of(experts, columns, depth).transpose(1, 2)
    dy = dense_of(entries, columns, seed=2)
    w = w if flipped else w.contiguous()
    y = run(interpreter, "grouped", offsets, rows, x.to(dtype), w.to(dtype))
    exact = torch_backend.grouped(offsets, rows, x, w)
    close(y, exact, depth * 4.0, dtype)
    dw = run(interpreter, "grouped_outer", offsets, rows, x.to(dtype), dy.to(dtype))
    close(dw, torch_backend.grouped_outer(offsets, rows, x, dy), max(loads) * 4.0 + 1, dtype)


# -------------------------------------------------------------------------------------------- through the operators


def _gradients(rule, dtype, grad, masked):
    """matmul by the triton backend and its gradients, beside float64's."""
    from systems.spider import plan

    torch.manual_seed(0)
    a = torch.where(torch.rand(70, 90) > 0.8, torch.randn(70, 90), 0).to(dtype)
    b, dy = torch.randn(90, 50).to(dtype), torch.randn(70, 50).to(dtype)
    mask = torch.rand(70, 50) > 0.7
    ours, theirs = ([t.detach().to(d).requires_grad_() for t in (a, b)] for d in (dtype, torch.float64))
    if masked:
        y = matmul(*ours, sparse="out", mask=mask, backend="triton")
        exact = torch.where(mask, theirs[0] @ theirs[1], 0)
    else:
        y = matmul(*ours, grad=grad, plan=plan("mk,kn->mn", a, b).forced(rule, "triton"))
        exact = theirs[0] @ theirs[1]
    y.backward(dy)
    exact.backward(dy.double())
    wanted = theirs[0].grad if grad == "exact" else torch.where(a != 0, theirs[0].grad, 0)
    return [(y.detach(), exact.detach()), (ours[0].grad, wanted), (ours[1].grad, theirs[1].grad)]


@pytest.mark.parametrize("rule", ["k 16x1", "k 32x1", "m 1x32", "m rows"])
@pytest.mark.parametrize(("dtype", "grad"), [(torch.float32, "exact"), (torch.bfloat16, "pattern")])
def test_products_and_gradients_by_the_triton_backend(interpreter, rule, dtype, grad):
    for got, wanted in interpreter.submit(_gradients, rule, dtype, grad, False).result(timeout=120):
        close(got, wanted, 90.0, dtype)


def test_a_masked_output_and_its_gradients_by_the_triton_backend(interpreter):
    for got, wanted in interpreter.submit(_gradients, "", torch.float32, "exact", True).result(timeout=120):
        close(got, wanted, 90.0, torch.float32)


def _planned():
    from systems.spider import ops

    a = torch.where(torch.rand(300, 256) > 0.95, 1.0, 0.0)
    chosen = ops.make_plan(a, torch.ones(256, 200), backend="triton")
    return chosen.backend, chosen.rule, [c.name for c in chosen.candidates], chosen.table


def test_a_plan_for_a_gpu_has_the_rules_of_a_gpu(interpreter):
    backend, rule, names, table = interpreter.submit(_planned).result(timeout=120)
    assert backend == "triton"
    assert rule in names
    assert {"dense", "k 32x1", "m rows", "m 1x128"} <= set(names)
    assert table in ("estimated", "cached")


def test_the_triton_backend_is_refused_where_it_cannot_run():
    a, b = torch.ones(8, 8), torch.ones(8, 8)
    with pytest.raises(SpiderError, match="TRITON_INTERPRET"):
        matmul(a, b, backend="triton")


def test_the_triton_backend_refuses_float64(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(DtypeError, match="float64"):
        matmul(torch.ones(8, 8).double(), torch.ones(8, 8).double(), backend="triton")


def test_triton_is_imported_only_for_its_kernels():
    program = (
        "import sys, torch\n"
        "from systems.spider import matmul, moe_ffn, attention\n"
        "a = torch.eye(300); matmul(a, a)\n"
        "sys.exit('triton' in sys.modules)"
    )
    child = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert child.returncode == 0, child.stderr


# ------------------------------------------------------------------------------------------------- attention


def _attention(size, width, window, spread, causal, with_lengths, with_mask, dtype):
    """Output and gradients of the kernels, and those of the definition in float64."""
    from systems.spider import attention

    torch.manual_seed(size)
    exact = [torch.randn(2, 2, size, w).to(dtype).double().requires_grad_() for w in (width, width, width + 3)]
    ours = [x.detach().to(dtype).requires_grad_() for x in exact]
    i = torch.arange(size)
    allowed = torch.ones(2, 1, size, size, dtype=torch.bool)
    options = {"causal": causal}
    if window is not None:
        options |= {"window": window, "global_tokens": torch.randperm(size)[:spread]}
        wide = torch.zeros(size, dtype=torch.bool)
        wide[options["global_tokens"]] = True
        allowed &= ((i[:, None] - i).abs() <= window) | wide[:, None] | wide
    if causal:
        allowed &= i <= i[:, None]
    if with_mask:
        options["mask"] = torch.rand((size, size) if with_mask == "shared" else (2, size, size)) > 0.7
        allowed &= options["mask"] if with_mask == "shared" else options["mask"][:, None]
    if with_lengths:
        options["lengths"] = torch.tensor([size, size // 2])
        real = i < options["lengths"][:, None]
        allowed &= real[:, None, None, :] & real[:, None, :, None]
    q, k, v = exact
    scores = (q @ k.transpose(-1, -2) / width**0.5).masked_fill(~allowed, -1e300)
    wanted = torch.where(allowed.any(-1, keepdim=True), torch.softmax(scores, -1), 0) @ v
    y = attention(*ours, **options, backend="triton")
    dy = torch.randn_like(y)
    wanted.backward(dy.double())
    y.backward(dy)
    pairs = [(y, wanted), *((x.grad, e.grad) for x, e in zip(ours, exact, strict=True))]
    return [(a.detach(), b.detach()) for a, b in pairs]


@settings(max_examples=15, deadline=None)
@given(
    size=st.integers(1, 150),
    width=st.sampled_from([5, 16, 33]),
    window=st.none() | st.integers(0, 40),
    spread=st.integers(0, 3),
    causal=st.booleans(),
    with_lengths=st.booleans(),
    with_mask=st.sampled_from([None, "shared", "own"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@example(130, 16, 9, 3, False, True, None, torch.float32)
@example(70, 5, None, 0, True, True, "own", torch.bfloat16)
@example(2, 5, None, 0, False, True, "shared", torch.float32)  # once read the mask of an item that had none
def test_attention_equals_its_definition_with_gradients(
    interpreter, size, width, window, spread, causal, with_lengths, with_mask, dtype
):
    task = interpreter.submit(_attention, size, width, window, spread, causal, with_lengths, with_mask, dtype)
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    for got, wanted in task.result(timeout=120):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=tolerance)


# ------------------------------------------------------------------------------------------------ compiled for sm_90

INTEGERS = ("size", "rows", "columns", "depth", "ldb", "ldx", "ldy", "parts", "blocks", "chunks", "experts")
ATTENTION = {
    "logs": "*fp32", "delta": "*fp32", "blocks": "*i32", "listed": "*i32", "spread": "*u8", "mask": "*u8",
    "lengths": "*i64", "number": "i32", "heads": "i32", "width": "i32", "value_width": "i32", "window": "i32",
    "scale": "fp32", "mask_stride": "i32",
}  # fmt: skip
UNEVEN = ("parts", "blocks", "chunks", "experts", "number", "heads", "window", "scale")
LONG_POINTERS = ("starts", "ends", "offsets")
SHORT_POINTERS = ("indices", "bounds")


def _compiled(kernel, constants, dtype, warps, stages):
    """PTX, bytes of shared memory, and what cuobjdump says of registers, of a kernel for the H100."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from systems.spider import gpu_attention, gpu_kernels

    function = getattr(gpu_kernels, kernel, None) or getattr(gpu_attention, kernel)
    signature = {}
    for name in function.arg_names:
        if name.isupper():
            signature[name] = "constexpr"
        elif hasattr(gpu_attention, kernel) and name in ATTENTION:
            signature[name] = ATTENTION[name]
        elif name in LONG_POINTERS:
            signature[name] = "*i64"
        elif name in SHORT_POINTERS or (name == "rows" and kernel.startswith("grouped")):
            signature[name] = "*i32"
        elif name in INTEGERS or name.endswith("stride") or name in ("extent", "places"):
            signature[name] = "i32"
        else:
            signature[name] = "*fp32" if kernel == "m_gather_kernel" and name == "out" else f"*{dtype}"
    units = {name for name in ("column_stride", "other_stride") if name in signature}
    constants = dict(constants) | dict.fromkeys(units, 1) if kernel != "sampled_kernel" else dict(constants)
    signature |= dict.fromkeys(constants, "constexpr")
    # What a launch finds out about torch's aligned arrays of round sizes.
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(function.arg_names)
        if signature[name] != "constexpr" and name not in UNEVEN
    }
    source = ASTSource(function, signature, constants, attributes)
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps, "num_stages": stages})
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return built.asm["ptx"], built.metadata.shared, usage


def _tiles(dtype, size):
    from systems.spider import gpu

    return gpu.config(torch.bfloat16 if dtype == "bf16" else torch.float32, size)


def _attention_tile(dtype):
    from systems.spider import gpu_attention

    return gpu_attention.tile(torch.bfloat16 if dtype == "bf16" else torch.float32)


def configuration(pool, kernel, dtype, size):
    """The constants, warps and stages that a launch takes."""
    c = pool.submit(_tiles, dtype, size).result(timeout=120)
    shared = {"STEPS": c.steps, "UPCAST": False, "PRECISION": "ieee"}
    flags = {"PER_ITEM": False, "WINDOW": True, "CAUSAL": True, "MASKED": True, "UPCAST": False, "PRECISION": "ieee"}
    rows, listed, warps, stages = pool.submit(_attention_tile, dtype).result(timeout=120)
    heads = ({**flags, "ROWS": rows, "LISTED": listed, "WIDTH": size, "VALUE_WIDTH": size}, warps, stages)
    if kernel in HEADS:
        return heads
    return {
        "k_gather_kernel": ({**shared, "COLUMNS": c.columns, "LANES": c.lanes}, c.warps, c.stages),
        "m_gather_kernel": (
            {**shared, "WHOLE": size == 128, "COLUMNS": c.columns, "ROWS": 128, "LANES": c.lanes}, c.warps, c.stages,
        ),
        "sampled_kernel": ({**shared, "PACKED": False, "ENTRIES": 64, "LANES": c.lanes}, 4, c.stages),
        "grouped_kernel": ({**shared, "EXPERTS": 128, "COLUMNS": c.columns, "ROWS": 128}, 8, 3),
        "grouped_outer_kernel": ({**shared, "DEPTH": 64, "COLUMNS": c.columns}, 4, 3),
        "detect_kernel": ({"SIZE": size, "LANES": size, "COLUMNS": 128, "PACK": True, "UPCAST": False}, 4, 3),
    }[kernel]  # fmt: skip


HEADS = ("attention_kernel", "query_gradient_kernel", "key_gradient_kernel")
COMPILED = [
    *[(name, dtype, 64) for name in HEADS for dtype in ("bf16", "fp32")],
    *[("k_gather_kernel", dtype, size) for dtype in ("bf16", "fp32") for size in (16, 32, 64, 128)],
    *[("m_gather_kernel", dtype, size) for dtype in ("bf16", "fp32") for size in (32, 128)],
    *[(f"{name}_kernel", dtype, 32) for name in ("sampled", "grouped", "grouped_outer", "detect")
      for dtype in ("bf16", "fp32")],
]  # fmt: skip
QUICK = [("k_gather_kernel", "bf16", 32), ("detect_kernel", "bf16", 32)]
WGMMA = {16: "m64n16k16", 32: "m64n32k16", 64: "m64n64k16", 128: "m64n128k16"}


@pytest.mark.parametrize(
    ("kernel", "dtype", "size"),
    [pytest.param(*c, marks=() if c in QUICK else pytest.mark.slow, id="-".join(map(str, c))) for c in COMPILED],
)
def test_sm90_compile(compiler, kernel, dtype, size):
    constants, warps, stages = configuration(compiler, kernel, dtype, size)
    ptx, shared, usage = compiler.submit(_compiled, kernel, constants, dtype, warps, stages).result(timeout=300)
    assert ".target sm_90a" in ptx
    assert shared <= 227 * 1024
    # Nothing spills: no stack, no local memory, and at most the registers that a thread has.
    assert re.search(r"STACK:0\b", usage), usage
    assert re.search(r"LOCAL:0\b", usage), usage
    assert int(re.search(r"REG:(\d+)", usage)[1]) <= 255
    if kernel == "detect_kernel":
        return
    if stages > 1:
        assert "cp.async" in ptx, "the loads are not asynchronous"
    if dtype == "bf16":
        assert "wgmma.mma_async" in ptx, "not the matrix instruction of the H100"
        if kernel == "k_gather_kernel":
            assert WGMMA[size] in ptx
    else:
        assert "tf32" not in ptx, "float32 is to be exact"


def test_an_expert_that_is_not_there_is_refused_before_anything_runs():
    with pytest.raises(IndexError, match="0 to 1"):
        moe_ffn(torch.ones(2, 3), torch.ones(2, 3, 4), torch.ones(2, 4, 3), torch.tensor([[0], [2]]), torch.ones(2, 1))
