"""Generated Triton kernels, run by Triton's interpreter on the CPU: values and gradients of the reference."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from suites.ngra.programs import assert_equal_results, data, expressions, gradients, graphs, nearly_tied, products_in
from systems.ngra import Graph, ProgramError, gcn_norm, reference, rmat
from systems.ngra import settings as how
from systems.ngra.models import GAT, GCN, GGNN, CommNet, GatedGCN, GraphSAGE, MaxPoolGCN

pytest.importorskip("triton", reason="triton is not installed")
APPS = ["CommNet", "GCN", "MaxPoolGCN", "GatedGCN", "GGNN", "GAT", "GraphSAGE"]


@pytest.fixture(scope="module")
def interpreter():
    """A process whose triton interprets; it decides so at its import."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            pool.submit(os.getpid).result(timeout=120)  # the environment is read when the process starts
        yield pool


def run(pool, function, *arguments):
    return pool.submit(function, *arguments).result(timeout=300)


def _same_as_the_reference(tree, accumulator, arcs, width, seed, whole):
    from suites.ngra.programs import Program

    torch.set_num_threads(1)
    graph = Graph(*arcs)
    layer = Program(tree, accumulator, width).double()
    x, edge = data(graph, width, seed, whole=whole)
    want = gradients(layer, lambda: reference(layer, graph, x, edge), x, edge)
    with how(backend="triton"):
        got = gradients(layer, lambda: layer(graph, x, edge), x, edge)
        kernel = layer.plan(graph, x, edge).kernel
    if accumulator in {"max", "min"} and products_in(tree) and nearly_tied(layer, graph, x, edge):
        got, want = (got[0], ()), (want[0], ())
    assert_equal_results(got, want, 1e-9, 1e-10)
    return kernel


@settings(max_examples=25, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(
    tree=expressions(2), accumulator=st.sampled_from(["sum", "mean", "max", "min", "softmax"]),
    graph=graphs(10, 24), width=st.sampled_from([1, 2, 5]), seed=st.integers(0, 99), whole=st.booleans(),
)  # fmt: skip
def test_any_program_equals_the_reference(interpreter, tree, accumulator, graph, width, seed, whole):
    arcs = (*(part.tolist() for part in graph.arcs()),)
    if graph.num_vertices and (not arcs[0] or max(*arcs[0], *arcs[1]) + 1 == graph.num_vertices):
        run(interpreter, _same_as_the_reference, tree, accumulator, arcs, width, seed, whole)


def _made(name, width=6, dtype=torch.float64):
    """(layer, graph, vertex data, arc data) of an application."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    graph, weight = gcn_norm(rmat(4, 60, seed=3))
    edge = {"GCN": weight, "GGNN": torch.arange(graph.num_arcs) % 3}.get(name)
    makers = {
        "CommNet": lambda: CommNet(width, 5), "GCN": lambda: GCN(width, 5), "MaxPoolGCN": lambda: MaxPoolGCN(width, 5),
        "GatedGCN": lambda: GatedGCN(width, 5), "GGNN": lambda: GGNN(width, 3), "GAT": lambda: GAT(width, 3, heads=2),
        "GraphSAGE": lambda: GraphSAGE(width, 5),
    }  # fmt: skip
    x = torch.randn(graph.num_vertices, width, dtype=dtype, requires_grad=True)
    return makers[name]().to(dtype), graph, x, edge


def _app(name, chunked):
    layer, graph, x, edge = _made(name)
    if chunked:
        graph = graph.chunked(8)
    results = []
    for backend in ("reference", "triton", "c"):
        with how(backend="c" if backend == "reference" else backend):
            y = reference(layer, graph, x, edge) if backend == "reference" else layer(graph, x, edge)
        slope = torch.autograd.grad((y * torch.cos(torch.arange(y.numel()).reshape(y.shape))).sum(),
                                    [x, *layer.parameters()])  # fmt: skip
        results.append([y.detach(), *slope])
    for others in results[1:]:
        for a, b in zip(results[0], others, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    with how(backend="triton"):
        return layer.plan(graph, x, edge).kernel


@pytest.mark.parametrize("chunked", [False, True], ids=["rows", "ordered"])
@pytest.mark.parametrize("name", APPS)
def test_the_applications_equal_the_reference(interpreter, name, chunked):
    assert run(interpreter, _app, name, chunked) in {"spmm", "fused"}


def _long_rows(form):
    """Rows of more than a segment, joined, beside rows of one."""
    from systems.ngra import gpu
    from systems.ngra.expression import Book
    from systems.ngra.generation import Column, Output
    from systems.ngra.kernels import compiled
    from systems.ngra.kernels import run as run_c

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(5)
    dst = torch.cat([torch.zeros(23), torch.full((9,), 2), torch.full((2,), 3)]).long()
    graph = Graph(torch.randint(6, (34,), generator=generator), dst, vertices=6)
    book = Book()
    score, value = book.leaf("S", "score", (2,)), book.leaf("S", "value", (2, 3))
    columns = [Column(score, "neighbour", torch.float64), Column(value, "neighbour", torch.float64)]
    nodes = (score, value) if form == "softmax" else (value,)
    outputs = [Output(form, nodes, (2, 3))]
    used = columns if form == "softmax" else columns[1:]
    tensors = [torch.randn(6, *column.leaf.shape, generator=generator, dtype=torch.float64) for column in used]
    want = run_c(compiled(used, outputs, torch.float64), tensors, graph.incoming, None, 1, 34)
    for segment in (4, 9, 1024):
        tasks = gpu.cut(graph.incoming, torch.device("cpu"), segment)
        got = gpu.run(gpu.compiled(used, outputs, torch.float64), tensors, tasks, 34)
        for a, b in zip(got[0], want[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
    return len(gpu.cut(graph.incoming, torch.device("cpu"), 4).row)


@pytest.mark.parametrize("form", ["sum", "max", "min", "softmax"])
def test_segments_of_a_long_row_are_joined_in_their_order(interpreter, form):
    assert run(interpreter, _long_rows, form) == 6 + 3 + 1 + 3  # 23 arcs, 9, 2, and three rows without


def _machine_code(name):
    """Every kernel that an application's step generates, as PTX for the H100."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from systems.ngra import gpu

    layer, graph, x, edge = _made(name, 64, torch.float32)
    found = []

    def noted(kernel, tensors, tasks, arcs):
        found.append(kernel)
        lengths = [arcs if output.form == "arc" else graph.num_vertices for output in kernel.outputs]
        return [
            [torch.zeros((length, *shape), dtype=kind) for shape, kind, _ in output.states(kernel.dtype)]
            for output, length in zip(kernel.outputs, lengths, strict=True)
        ]

    with pytest.MonkeyPatch.context() as patch, how(backend="triton"):
        patch.setattr(gpu, "available", lambda device: True)
        patch.setattr(gpu, "run", noted)
        layer(graph, x, edge).sum().backward()
    kinds = {torch.float32: "*fp32", torch.float64: "*fp64", torch.int32: "*i32", torch.int64: "*i64"}
    code = []
    for kernel in found:
        states = [kind for output in kernel.outputs for _, kind, _ in output.states(kernel.dtype)]
        signature = {"task_row": "*i32", "task_begin": "*i64", "task_end": "*i64", "ids": "*i32", "arcs": "*i32"}
        for k, column in enumerate(kernel.columns):
            signature |= {f"c{k}": kinds[column.dtype], f"step{k}": "i32"}
        signature |= {f"o{k}": kinds[kind] for k, kind in enumerate(states)}
        signature = {n: signature.get(n, "constexpr") for n in kernel.launch.arg_names}
        source = ASTSource(kernel.launch, signature, {"HAS_ARCS": True, "ARCS": 8})
        built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1})
        code.append(built.asm["ptx"])
    return code


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("TRITON_INTERPRET", raising=False)
            patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
            pool.submit(os.getpid).result(timeout=120)
        yield pool


@pytest.mark.parametrize("name", APPS)
def test_kernels_compile_for_the_h100_without_atomics_and_spills(compiler, name):
    code = run(compiler, _machine_code, name)
    assert code
    for ptx in code:
        assert ".target sm_90" in ptx
        assert not any(word in ptx for word in ("atom.", "red.global", ".local"))


def _no_number(accumulator):
    torch.set_num_threads(1)
    graph = Graph([0, 1, 2, 0, 1], [1, 1, 1, 2, 2], vertices=4)
    from suites.ngra.programs import Program

    layer = Program(("relu", "src"), accumulator, 3).double()
    x, edge = data(graph, 3, 0)
    x["h"][1, 0] = float("nan")
    x["h"][2, 1] = float("-inf")
    found = []
    for backend in ("triton", "c"):
        with how(backend=backend):
            found.append(layer(graph, x, edge))
    return bool(torch.equal(*(part.nan_to_num(nan=-7e5) for part in found)))


@pytest.mark.parametrize("accumulator", ["sum", "max", "min"])
def test_what_is_no_number_goes_where_it_goes_in_c(interpreter, accumulator):
    assert run(interpreter, _no_number, accumulator)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this process interprets")
def test_without_a_gpu_or_an_interpreter_triton_is_refused():
    layer = GCN(3, 2)
    graph, weight = gcn_norm(rmat(3, 10, seed=0))
    with how(backend="triton"), pytest.raises(ProgramError, match="TRITON_INTERPRET=1"):
        layer(graph, torch.randn(graph.num_vertices, 3), weight)
    with pytest.raises(ProgramError, match='"triton"'), how(backend="cuda"):
        pass


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["GCN", "GatedGCN", "MaxPoolGCN", "GAT"])
def test_a_gpu_gives_what_the_cpu_gives(name, device):
    if device.type != "cuda":
        pytest.skip("no GPU")
    torch.manual_seed(0)
    graph, weight = gcn_norm(rmat(12, 60_000, seed=3))
    makers = {"GCN": GCN, "GatedGCN": GatedGCN, "MaxPoolGCN": MaxPoolGCN, "GAT": GAT}
    layer = makers[name](32, 16)
    x = torch.randn(graph.num_vertices, 32)
    edge = weight if name == "GCN" else None
    found = []
    for where in ("cpu", "cuda"):
        own = layer.to(where)
        given = x.to(where).requires_grad_()
        y = own(graph, given, edge)
        slopes = torch.autograd.grad(y.square().sum(), [given, *own.parameters()])
        found.append([part.cpu() for part in (y.detach(), *slopes)])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(b.numpy(), a.numpy(), rtol=2e-4, atol=2e-4 * float(a.abs().max()))
