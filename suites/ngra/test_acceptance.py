"""The paper's claims about programs and plans, and that training reaches what was published."""

import pytest
import torch
from torch.nn import functional as F

from suites.ngra.programs import assert_equal_results, gradients
from systems.ngra import Graph, gcn_norm, reference, rmat
from systems.ngra import settings as how
from systems.ngra.data import load, planted
from systems.ngra.models import GAT, GCN, GGNN, CommNet, GatedGCN, GraphSAGE, MaxPoolGCN, Network, identity

APPLICATIONS = {
    "CommNet": lambda d, out: CommNet(d, out),
    "GCN": lambda d, out: GCN(d, out),
    "MP-GCN": lambda d, out: MaxPoolGCN(d, out),
    "G-GCN": lambda d, out: GatedGCN(d, out),
    "GG-NN": lambda d, out: GGNN(d, 3),
}
OTHERS = {
    "GAT": lambda d, out: GAT(d, out, 2),
    "GAT, heads averaged": lambda d, out: GAT(d, out, 3, concat=False),
    "GraphSAGE": lambda d, out: GraphSAGE(d, out),
}


def situation(name, graph, width, dtype):
    """(layer, graph, x, edge) of an application."""
    torch.manual_seed(1)
    layer = {**APPLICATIONS, **OTHERS}[name](width, 3).to(dtype)
    x = torch.randn(graph.num_vertices, width, dtype=dtype)
    edge = None
    if name == "GCN":
        graph, edge = gcn_norm(graph)
    if name == "GG-NN":
        edge = torch.randint(3, (graph.num_arcs,), generator=torch.Generator().manual_seed(2))
    return layer, graph, x, edge


@pytest.mark.parametrize("name", [*APPLICATIONS, *OTHERS])
@pytest.mark.parametrize("cut", [None, 16], ids=["rows", "chunks"])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=["double", "single"])
def test_applications_equal_the_reference(name, cut, dtype, rtol):
    layer, graph, x, edge = situation(name, rmat(6, 400, 3), 5, dtype)
    want = gradients(layer, lambda: reference(layer, graph, x, edge), {"": x}, {})
    used = graph if cut is None else graph.chunked(cut)
    got = gradients(layer, lambda: layer(used, x, edge), {"": x}, {})
    assert_equal_results(got, want, rtol, rtol)


@pytest.mark.claim("ngra/operator-motion")
def test_no_matrix_product_stays_on_arcs(claim):
    graph = rmat(8, 4000, 1)
    left = 0
    for name in APPLICATIONS:
        layer, graph_of, x, edge = situation(name, graph, 8, torch.float32)
        plan = layer.plan(graph_of, x, edge)
        assert plan.kernel in {"spmm", "fused"}, (name, plan.notes)
        left += plan.arc_matmul_flops
    layer, graph_of, x, edge = situation("G-GCN", graph, 8, torch.float32)
    assert layer.plan(graph_of, x, edge).arc_matmul_flops_before == 2 * 2 * 8 * 8 * graph.num_arcs
    assert claim.holds(left)


def test_a_plan_explains_itself():
    layer, graph, x, edge = situation("G-GCN", rmat(6, 400, 3), 5, torch.float32)
    text = str(layer.plan(graph, x, edge))
    assert "sigmoid((dst['#0'] + src['#1'])) * src['#2']" in text
    assert "on arcs 40,000 -> 0 FLOP" in text
    assert "fused" in text


def test_the_narrower_side_of_a_linear_map_goes_over_the_arcs():
    graph, weight = gcn_norm(rmat(8, 4000, 1))
    narrowing, widening = GCN(64, 8), GCN(8, 64)
    x, y = torch.randn(graph.num_vertices, 64), torch.randn(graph.num_vertices, 8)
    assert narrowing.plan(graph, x.requires_grad_(), weight).width == 8
    assert widening.plan(graph, y.requires_grad_(), weight).width == 8
    # Without a gradient to hand back, summing first saves the backward pass over the arcs.
    same = GCN(64, 64)
    assert "aggregate first" in " ".join(same.plan(graph, x.detach(), weight).notes)


def test_sums_of_data_that_never_change_are_made_once_and_noticed_when_they_do():
    graph = rmat(6, 400, 3)
    layer, x = GraphSAGE(5, 4), torch.randn(graph.num_vertices, 5)
    first = layer(graph, x)
    layer(graph, x)  # planned anew: these data were seen before
    assert "computed once and reused" in " ".join(layer.plan(graph, x).notes)
    torch.testing.assert_close(layer(graph, x), first)
    x += 1.0
    torch.testing.assert_close(layer(graph, x), reference(layer, graph, x), rtol=1e-4, atol=1e-5)
    other = x.clone()
    torch.testing.assert_close(layer(graph, other), reference(layer, graph, other), rtol=1e-4, atol=1e-5)


def accuracy(dataset, seeds, epochs=200):
    """Mean test accuracy of a 2-layer GCN by the recipe of Kipf and Welling."""
    graph, weight = gcn_norm(dataset.graph)
    found = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        net = Network([GCN(dataset.x.shape[1], 16), GCN(16, dataset.classes, identity)], dropout=0.5)
        first, second = net.layers
        decay = {"params": list(first.parameters()), "weight_decay": 5e-4}
        optimizer = torch.optim.Adam([decay, {"params": list(second.parameters())}], lr=0.01)
        for _ in range(epochs):
            net.train()
            optimizer.zero_grad()
            out = net(graph, dataset.x, weight)
            F.cross_entropy(out[dataset.train], dataset.y[dataset.train]).backward()
            optimizer.step()
        net.eval()
        with torch.no_grad():
            right = net(graph, dataset.x, weight).argmax(1) == dataset.y
        found.append(right[dataset.test].float().mean().item())
    return 100 * sum(found) / len(found)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "seeds", "least"), [("cora", 5, 80.5), ("citeseer", 5, 69.5), ("pubmed", 2, 78.3)])
def test_gcn_reaches_published_accuracy(data, measure, name, seeds, least):
    """Published: 81.5, 70.3 and 79.0 %."""
    data(f"ngra/{name}.npz")
    reached = accuracy(load(name), seeds)
    measure.record("accuracy", [reached / 100], "1", better="higher")
    assert reached >= least


def test_a_network_learns_planted_classes():
    """Needs no data folder; features alone give about half of this accuracy's distance to 25 %."""
    dataset = planted()
    assert accuracy(dataset, 1, epochs=60) > 85


def test_facts_of_the_real_graphs(data):
    data("ngra/pubmed.npz")
    pubmed = load("pubmed")
    assert pubmed.graph.without_self_loops().num_arcs == 88_648
    assert pubmed.graph.with_self_loops().num_arcs == 108_365
    citeseer = load("citeseer")
    bare = citeseer.graph.without_self_loops()
    assert bare.num_arcs == 9_104
    assert int(((bare.in_degree + bare.out_degree) == 0).sum()) == 48
    assert int((citeseer.y == -1).sum()) == 15
    assert load("blogcatalog").graph.num_arcs == 667_966


def test_a_locality_order_lowers_theta(data):
    data("ngra/pubmed.npz")
    graph = load("pubmed").graph
    shuffled = graph.chunked(4096, torch.randperm(graph.num_vertices, generator=torch.Generator().manual_seed(0)))
    assert graph.chunked(4096, "degree").theta() < shuffled.theta()


def test_backward_keeps_nothing_of_the_size_of_the_arcs():
    """Tensors that autograd holds between forward and backward, at 8 times the arcs."""
    held = []
    for arcs in (2_000, 16_000):
        graph = rmat(8, arcs, 1)
        layer, x = GatedGCN(16, 8), torch.randn(graph.num_vertices, 16)
        kept: dict[int, int] = {}

        def keep(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            layer(graph, x.requires_grad_())
        held.append(sum(kept.values()))
    assert held[1] > 0
    assert held[1] <= held[0]


@pytest.mark.claim("ngra/small-graph-speedup")
def test_speed_on_small_graphs_over_dense_operators(claim, measure, data):
    """Against gather, index_add and autograd on torch, the same layer on BlogCatalog."""
    data("ngra/blogcatalog.npz")
    dataset = load("blogcatalog")
    graph = dataset.graph if measure.full else rmat(8, 2000, 1)
    chunked = graph.chunked()
    torch.manual_seed(0)
    layer = GatedGCN(64, 32)
    x = torch.randn(graph.num_vertices, 64)
    src, dst = graph.arcs()

    def step(run):
        layer.zero_grad()
        out = run()
        out.square().mean().backward()
        return out.detach(), [parameter.grad.clone() for parameter in layer.parameters()]

    def materialised():
        message = layer.apply_edge(x[src], x[dst], None)
        total = torch.zeros(graph.num_vertices, 64).index_add(0, dst, message)
        return layer.apply_vertex(x, total)

    def agree(a, b):
        torch.testing.assert_close(a[0], b[0], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(a[1], b[1], rtol=1e-3, atol=1e-3)

    with how(hoist=False):
        speed = measure.versus(
            {"ngra": lambda: step(lambda: layer(chunked, x)), "materialised": lambda: step(materialised)}, check=agree
        )
    assert claim.holds(speed.over("materialised"))


def test_an_empty_graph_and_a_single_vertex_give_results():
    for graph in (Graph([], [], vertices=0), Graph([], [], vertices=1), Graph([0], [0]), Graph([], [], vertices=3)):
        for name in ("GCN", "MP-GCN", "G-GCN", "GAT", "GraphSAGE"):
            layer, graph_of, x, edge = situation(name, graph, 5, torch.float32)
            out = layer(graph_of, x.requires_grad_(), edge)
            assert out.shape[0] == graph.num_vertices
            out.sum().backward()
            assert torch.isfinite(x.grad).all()
