"""Bad input: each mistake gets an error that says what was given, what was expected, and where."""

import pytest
import torch
from torch.nn import functional as F

from systems.ngra import Graph, GraphError, Layer, ProgramError, reference, rmat, settings
from systems.ngra.data import load


@pytest.mark.parametrize(
    ("src", "dst", "vertices", "words"),
    [
        ([0, 5], [1, 1], 3, r"src\[1\] is 5"),
        ([0, 1], [1, -2], None, r"dst\[1\] is -2"),
        ([0.5], [1], None, "float64"),
        ([0, 1], [1], None, "2 arcs and dst 1"),
        ([[0]], [[1]], None, r"shape \(1, 1\)"),
        ([0], [1], -1, "vertices is -1"),
        ([0], [1], 2.5, r"vertices is 2\.5"),
    ],
)
def test_arcs_that_make_no_graph_are_named(src, dst, vertices, words):
    with pytest.raises(GraphError, match=words):
        Graph(src, dst, vertices=vertices)


@pytest.mark.parametrize(("size", "order"), [(0, "degree"), (65_537, "degree"), (4, "best"), (4, [0, 0, 1])])
def test_chunks_that_cannot_be_are_refused(size, order):
    with pytest.raises(GraphError, match=r"expected|permutation"):
        Graph([0, 1], [1, 2]).chunked(size, order)


def run(edge, x=None, arc=None, accumulator="sum"):
    class Wrong(Layer):
        apply_edge = edge

    layer = Wrong()
    layer.accumulator = accumulator
    graph = rmat(3, 20, 1)
    return layer(graph, torch.randn(8, 4) if x is None else x, arc)


def branch(self, src, dst, edge):
    return src if src.sum() > 0 else dst


def item(self, src, dst, edge):
    return src * src.max().item()


def in_place(self, src, dst, edge):
    return src.mul_(2.0)


def random(self, src, dst, edge):
    return F.dropout(src, 0.5)


def noise(self, src, dst, edge):
    return src + torch.randn_like(src)


def misfit(self, src, dst, edge):
    return src @ torch.ones(3, 3)


def no_arc_data(self, src, dst, edge):
    return src * edge


def mixing(self, src, dst, edge):
    return src @ dst.T


@pytest.mark.parametrize(
    ("edge", "words"),
    [
        (branch, "cannot be captured"),
        (item, r"item\(\)"),
        (in_place, "in place"),
        (random, "random numbers"),
        (noise, "random numbers"),
        (misfit, "does not fit"),
        (no_arc_data, "cannot be captured|does not fit"),
        (mixing, "rows must not meet|does not fit"),
    ],
)
def test_programs_that_cannot_be_captured_name_the_users_line(edge, words):
    with pytest.raises(ProgramError, match=words) as found:
        run(edge)
    assert "test_refusals.py:" in str(found.value)


def test_an_unknown_operation_runs_in_blocks_and_the_plan_says_so():
    class Unusual(Layer):
        def apply_edge(self, src, dst, edge):
            return torch.cumsum(src * dst, -1)

    layer, graph, x = Unusual(), rmat(4, 60, 1), torch.randn(16, 4)
    assert layer.plan(graph, x).kernel == "blocked"
    assert "cumsum" in " ".join(layer.plan(graph, x).notes) or "call" in " ".join(layer.plan(graph, x).notes)
    torch.testing.assert_close(layer(graph, x), reference(layer, graph, x), rtol=1e-4, atol=1e-5)


def test_a_network_on_arcs_runs_in_blocks_with_its_gradients():
    class Deep(Layer):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Sequential(
                torch.nn.Linear(8, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3), torch.nn.GELU()
            )

        def apply_edge(self, src, dst, edge):
            return self.net(torch.cat([src, dst], -1))

    layer, graph, x = Deep().double(), rmat(4, 60, 1), torch.randn(16, 4, dtype=torch.float64)
    got = torch.autograd.grad(layer(graph, x).square().sum(), list(layer.parameters()))
    want = torch.autograd.grad(reference(layer, graph, x).square().sum(), list(layer.parameters()))
    torch.testing.assert_close(got, want)


def test_data_that_do_not_fit_the_graph_are_named_with_both_shapes():
    with pytest.raises(GraphError, match=r"x has shape \(7, 4\), expected \(8"):
        run(lambda self, src, dst, edge: src, torch.randn(7, 4))
    with pytest.raises(GraphError, match=r"edge has shape \(3, 1\), expected \(20"):
        run(lambda self, src, dst, edge: src, arc=torch.randn(3, 1))
    with pytest.raises(ProgramError, match="float64"):
        run(lambda self, src, dst, edge: src * edge, arc=torch.randn(20, 1, dtype=torch.float64))
    with pytest.raises(ProgramError, match="float16"):
        run(lambda self, src, dst, edge: src, torch.randn(8, 4).half())
    with pytest.raises(GraphError, match="list"):
        run(lambda self, src, dst, edge: src, {"a": [1, 2]})
    with pytest.raises(ProgramError, match="no 'b' among"):
        run(lambda self, src, dst, edge: src["b"], {"a": torch.randn(8, 4)})


def test_accumulators_that_do_not_exist_or_fit_are_refused():
    def plain(self, src, dst, edge):
        return src

    with pytest.raises(ProgramError, match="expected one of sum, mean, max, min, softmax"):
        run(plain, accumulator="median")
    with pytest.raises(ProgramError, match="expected a score"):
        run(plain, accumulator="softmax")
    with pytest.raises(ProgramError, match="2 results, expected one"):
        run(lambda self, src, dst, edge: (src, dst))


def test_settings_and_names_that_do_not_exist_are_refused(tmp_path):
    with pytest.raises(ProgramError, match="backend"), settings(backend="cuda"):
        pass
    with pytest.raises(ProgramError, match="threads"), settings(threads=0):
        pass
    with pytest.raises(GraphError, match="expected one of cora"):
        load("karate")
    with pytest.raises(FileNotFoundError, match="README"):
        load("cora", tmp_path)
