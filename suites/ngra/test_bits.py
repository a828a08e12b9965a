"""What must not change a single bit: threads, chunks, a fresh compiler, the order in which arcs are given.

And what may change none but where it should: an infinity, a NaN, a relabelling.
"""

import ctypes

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from suites.ngra.programs import graphs
from systems import native
from systems.ngra import Graph, Layer, reference, rmat
from systems.ngra import settings as how
from systems.ngra.models import GAT, GatedGCN, GraphSAGE, MaxPoolGCN
from systems.ngra.workspace import Workspace

MODELS = {
    "sum": lambda: GatedGCN(5, 5),
    "mean": lambda: GraphSAGE(5, 5),
    "max": lambda: MaxPoolGCN(5, 5),
    "softmax": lambda: GAT(5, 3, 2),
}
WIDE = {"wide": lambda: Copy()}


class Copy(Layer):
    """The source's data as they are."""


def outcome(layer, graph, x, edge=None):
    """Result and gradients, as one list of tensors."""
    x = x.clone().requires_grad_()
    out = layer(graph, x, edge)
    if not out.requires_grad:
        return [out]
    weights = torch.cos(torch.arange(out.numel(), dtype=out.dtype)).reshape(out.shape)
    leaves = [x, *layer.parameters()]
    return [out, *torch.autograd.grad((out * weights).sum(), leaves, allow_unused=True)]


def same_bits(a, b):
    for left, right in zip(a, b, strict=True):
        if left is None or right is None:
            assert left is right
            continue
        kind = torch.int32 if left.dtype == torch.float32 else torch.int64
        assert torch.equal(left.contiguous().view(kind), right.contiguous().view(kind))


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=12, phases=(Phase.explicit, Phase.generate))
@given(
    graph=graphs(most_vertices=30, most_arcs=200),
    side=st.sampled_from([1, 3, 7, 64]),
    threads=st.integers(1, 4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
def test_threads_and_chunks_change_no_bit(name, graph, side, threads, dtype, seed):
    torch.manual_seed(seed)
    layer, x = MODELS[name]().to(dtype), torch.randn(graph.num_vertices, 5, dtype=dtype)
    with how(threads=1):
        whole = outcome(layer, graph, x)
    with how(threads=threads):
        same_bits(outcome(layer, graph.chunked(side, "natural"), x), whole)
        same_bits(outcome(layer, graph, x), whole)


@pytest.mark.parametrize("width", [1, 64, 127, 128, 129, 300])
def test_large_chunks_and_many_threads_change_no_bit(width):
    graph = rmat(11, 60_000, 5)
    layer, x = Copy(), torch.randn(graph.num_vertices, width)
    with how(threads=1):
        whole = outcome(layer, graph, x)
    for side in (65_536, 1000, 128):
        for threads in (1, 3):
            with how(threads=threads):
                same_bits(outcome(layer, graph.chunked(side, "natural"), x), whole)


def test_one_huge_row_is_summed_in_one_order_by_any_number_of_threads():
    count = 50_000
    graph = Graph(torch.randint(100, (count,)), torch.zeros(count, dtype=torch.int64), vertices=100)
    x = torch.randn(100, 33)
    with how(threads=1):
        whole = outcome(Copy(), graph, x)
    with how(threads=4):
        same_bits(outcome(Copy(), graph.chunked(16, "natural"), x), whole)


@pytest.mark.parametrize("name", MODELS)
def test_the_input_order_of_arcs_changes_no_bit(name):
    graph = rmat(6, 500, 2)
    src, dst = graph.arcs()
    order = torch.randperm(graph.num_arcs, generator=torch.Generator().manual_seed(3))
    shuffled = Graph(src[order], dst[order], vertices=graph.num_vertices)
    torch.manual_seed(0)
    layer, x = MODELS[name](), torch.randn(graph.num_vertices, 5)
    same_bits(outcome(layer, shuffled, x), outcome(layer, graph, x))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("order", ["degree", "rcm", "random"])
def test_another_vertex_order_gives_the_same_results_in_the_users(name, order):
    graph = rmat(6, 500, 2)
    torch.manual_seed(0)
    layer, x = MODELS[name]().double(), torch.randn(graph.num_vertices, 5, dtype=torch.float64)
    chosen = torch.randperm(graph.num_vertices) if order == "random" else order
    for got, want in zip(outcome(layer, graph.chunked(16, chosen), x), outcome(layer, graph, x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_relabelled_vertices_give_relabelled_results(name):
    graph = rmat(6, 500, 2)
    label = torch.randperm(graph.num_vertices, generator=torch.Generator().manual_seed(1))
    src, dst = graph.arcs()
    renamed = Graph(label[src], label[dst], vertices=graph.num_vertices)
    torch.manual_seed(0)
    layer, x = MODELS[name]().double(), torch.randn(graph.num_vertices, 5, dtype=torch.float64)
    moved = torch.empty_like(x)
    moved[label] = x
    torch.testing.assert_close(layer(renamed, moved)[label], layer(graph, x), rtol=1e-9, atol=1e-10)


def test_a_freshly_compiled_kernel_gives_the_bits_of_a_cached_one(tmp_path, monkeypatch):
    from systems.ngra import kernels

    graph = rmat(6, 500, 2)
    torch.manual_seed(0)
    x = torch.randn(graph.num_vertices, 5)
    layer = GatedGCN(5, 5)
    first = outcome(layer, graph, x)
    kernels._load.cache_clear()
    monkeypatch.setenv("MAAT_CACHE", str(tmp_path))
    layer._prepared.clear()
    same_bits(outcome(layer, graph, x), first)
    assert list((tmp_path / "native").glob("ngra-*.so"))
    kernels._load.cache_clear()


# ------------------------------------------------------------------------------------------- odd numbers


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [*MODELS, *WIDE])
def test_what_is_not_finite_reaches_only_its_neighbours(name, value):
    graph = rmat(5, 90, 7)
    torch.manual_seed(0)
    layer, x = {**MODELS, **WIDE}[name](), torch.randn(graph.num_vertices, 5)
    clean = layer(graph, x)
    x[3] = value
    dirty = layer(graph, x)
    src, dst = graph.arcs()
    touched = torch.zeros(graph.num_vertices, dtype=torch.bool)
    touched[3] = True
    touched[dst[src == 3]] = True
    assert torch.equal(dirty[~touched], clean[~touched])
    want = reference(layer, graph, x)
    torch.testing.assert_close(dirty, want, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("accumulator", ["sum", "max", "min"])
def test_zeros_keep_their_sign_as_far_as_the_reference_does(accumulator):
    layer = Copy()
    layer.accumulator = accumulator
    x = torch.tensor([[-0.0], [0.0], [-0.0]])
    for src in ([0], [0, 1], [1, 0], [0, 2]):
        graph = Graph(src, [1] * len(src), vertices=3)
        got, want = layer(graph, x), reference(layer, graph, x)
        assert torch.equal(got, want)
        if accumulator != "sum":  # a sum begins at +0
            assert torch.equal(torch.signbit(got[1]), torch.signbit(want[1]))


def test_subnormal_numbers_survive_the_loading_of_kernels():
    graph = Graph([0], [1], vertices=2)
    tiny = torch.full((2, 4), 1e-40)
    assert (Copy()(graph, tiny)[1] == tiny[0]).all()
    assert (torch.full((4,), 1e-40) * 0.5 != 0).all()
    native.load("int nothing(void) { return 0; }\n", name="nothing")
    assert ctypes.c_float(1e-40).value * 0.5 != 0


# --------------------------------------------------------------------------------------------- derivatives

POSITIVE = {"log", "sqrt", "rsqrt"}
ONE = {
    "neg": torch.neg, "abs": torch.abs, "exp": torch.exp, "log": torch.log, "sqrt": torch.sqrt, "rsqrt": torch.rsqrt,
    "sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu, "square": torch.square,
    "reciprocal": torch.reciprocal, "leaky_relu": lambda x: F.leaky_relu(x, 0.3), "elu": F.elu,
}  # fmt: skip
TWO = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "minimum": torch.minimum,
    "maximum": torch.maximum, "where": lambda a, b: torch.where(a > b, a * b, b),
}  # fmt: skip


class Operation(Layer):
    """One operation on mixed data, so that it stays on the arcs."""

    def __init__(self, name, accumulator):
        super().__init__()
        self.name, self.accumulator = name, accumulator

    def apply_edge(self, src, dst, edge):
        mixed = torch.sigmoid(src["h"] * dst["h"]) + 0.5 if self.name in POSITIVE else src["h"] * dst["h"] + 0.1
        return ONE[self.name](mixed) if self.name in ONE else TWO[self.name](mixed, edge)


@pytest.mark.parametrize("accumulator", ["sum", "max"])
@pytest.mark.parametrize("name", [*ONE, *TWO])
def test_derivatives_agree_with_differences(name, accumulator):
    graph = Graph([0, 1, 2, 2, 3], [1, 1, 0, 3, 3], vertices=4)
    generator = torch.Generator().manual_seed(4)
    h = torch.randn(4, 2, generator=generator, dtype=torch.float64).requires_grad_()
    edge = torch.randn(5, 2, generator=generator, dtype=torch.float64).requires_grad_()
    layer = Operation(name, accumulator)
    assert layer.plan(graph, {"h": h}, edge).kernel != "blocked"
    assert torch.autograd.gradcheck(lambda a, b: layer(graph, {"h": a}, b), (h, edge))


def test_the_transposed_graph_has_the_transposed_sum():
    graph = rmat(7, 900, 3)
    x, y = torch.randn(2, graph.num_vertices, 6, dtype=torch.float64)
    layer = Copy()
    torch.testing.assert_close((layer(graph, x) * y).sum(), (x * layer(graph.transposed(), y)).sum())


# ------------------------------------------------------------------------------------------------ workspace


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 40)), max_size=60))
def test_the_workspace_never_hands_out_memory_that_is_in_use(steps):
    memory, live = Workspace(), {}
    for slot, (place, blocks) in enumerate(steps):
        if place in live:
            tensor, value = live.pop(place)
            assert (tensor == value).all()
            del tensor
        live[place] = (memory.empty((blocks, 70_000), torch.float32).fill_(slot), slot)
    assert all((tensor == value).all() for tensor, value in live.values())
    live.clear()
    assert memory.live_bytes == 0
    assert sum(size for size, _, _ in memory._by_size) == memory.held_bytes


def test_a_step_leaves_no_memory_behind():
    """Values once lived in a cycle of closures until the garbage collector came."""
    import gc

    from systems.ngra.workspace import workspace

    graph = rmat(13, 40_000, 1)
    layer, x = GatedGCN(64, 64), torch.randn(graph.num_vertices, 64, requires_grad=True)
    gc.collect()
    gc.disable()
    try:
        before = workspace().live_bytes
        layer(graph, x).sum().backward()
        x.grad = None
        assert workspace().live_bytes == before
    finally:
        gc.enable()
