"""Benchmarks: the aggregation alone, epochs and layers, beside PyG, DGL and torch on the same graph.

One thread each, malloc set alike for all to reuse memory; graphs are chunked and converted beforehand. Every result is
first compared with that of float64 or of ours. The gate measures steady sizes of 2^17 vertices and 2^21 arcs.
"""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from suites.ngra import peers
from systems.ngra import ChunkStore, Layer, StreamTrainer, gcn_norm, rmat
from systems.ngra import settings as how
from systems.ngra.models import GAT, GCN, GatedGCN, GraphSAGE, MaxPoolGCN, Network, identity

WIDTH = 64
GROUP = "single-gpu-vs-frameworks"  # of the claims about peers


@pytest.fixture(autouse=True)
def one_thread_and_one_allocator():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with peers.reusing_allocator(), how(threads=1, hoist=False):
        yield
    torch.set_num_threads(threads)


class Sum(Layer):
    """The aggregation by itself."""


def sizes(measure, vertices, arcs):
    """(log2 of the vertices, arcs) in a recording run; small ones in a plain run."""
    return (vertices, 2**arcs) if measure.full else (12, 2**15)


def features(graph, width=WIDTH):
    return torch.randn(graph.num_vertices, width, generator=torch.Generator().manual_seed(0))


def exact_sum(graph, x, weights=None):
    """(vertices, width) float64: a CSR product of doubles, by scipy."""
    from scipy.sparse import csr_matrix

    values = np.ones(graph.num_arcs) if weights is None else weights.double().numpy()
    rows = graph.incoming
    shape = (graph.num_vertices, graph.num_vertices)
    ids = rows.ids[: graph.num_arcs].numpy()
    return torch.from_numpy(csr_matrix((values, ids, rows.offsets.numpy()), shape=shape) @ x.double().numpy())


def like(exact, rtol=1e-4):
    """A check for `versus`: the result is that of float64, within `rtol` of its largest element."""

    def check(reference, result):
        torch.testing.assert_close(result.double(), exact, rtol=rtol, atol=rtol * exact.abs().max().item())

    return check


def aggregators(graph, x):
    """Contenders for the sum over in-arcs. What they run on is made beforehand; ours is in chunks of degree order."""
    chunked = graph.chunked()
    layer, inside = Sum(), chunked.enter(x)
    layer.inner(chunked, inside)
    return {"ngra": lambda: layer.inner(chunked, inside)}, chunked


@pytest.mark.component("model")
def test_aggregate(measure):
    """Bytes gathered a second; the measured streaming read beside it is the roofline of a gather without reuse."""
    scale, arcs = sizes(measure, 17, 21)
    graph = rmat(scale, arcs, 1)
    contenders, _ = aggregators(graph, features(graph))
    with torch.no_grad():
        measure(contenders["ngra"], work=4.0 * WIDTH * arcs, unit="B/s", metric="gather")


@pytest.mark.component("model")
def test_gcn_epoch(measure):
    """Steps of a 2-layer GCN, forward, backward and Adam."""
    scale, arcs = sizes(measure, 17, 21)
    graph, weight = gcn_norm(rmat(scale, arcs, 1))
    graph = graph.chunked()
    torch.manual_seed(0)
    net, x = Network([GCN(WIDTH, WIDTH), GCN(WIDTH, 16, identity)]), features(graph)
    y = torch.randint(16, (graph.num_vertices,), generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    losses = []
    for _ in measure.steps(16, warmup=4, metric="epoch"):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(graph, x, weight), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.claim(
    "ngra/single-gpu-vs-frameworks-aggregate-torch-csr",
    "ngra/single-gpu-vs-frameworks-aggregate-dgl",
)
def test_aggregation_beside_the_peers(measure, claim):
    """2^20 vertices, 2^24 arcs, 64 features."""
    scale, arcs = sizes(measure, 20, 24)
    graph = rmat(scale, arcs, 1)
    x = features(graph)
    contenders, chunked = aggregators(graph, x)
    matrix, _ = peers.csr(graph)
    bag = peers.bag_of(graph.incoming, graph.num_arcs)
    dgl, made = peers.needed("dgl.ops"), peers.dgl_graph(graph)
    contenders = {
        "ngra": contenders["ngra"],
        "torch csr": lambda: matrix @ x,
        "embedding_bag": lambda: peers.bags(bag, x),
        "dgl": lambda: dgl.copy_u_sum(made, x),
    }
    exact = exact_sum(graph, x)
    check = like(exact)
    inside = contenders["ngra"]
    with torch.no_grad():
        check(None, chunked.leave(inside()))  # in the order that the others use
        here = chunked.leave
        speed = measure.versus(contenders, check=lambda first, other: check(None, other) or check(None, here(first)))
    missed = claim.misses(
        {f"{GROUP}-aggregate-{name.replace(' ', '-')}": speed.over(name) for name in ("torch csr", "dgl")}
    )
    assert not missed
    speed.over("embedding_bag").at_least(1.0)
    gathered = 4.0 * WIDTH * graph.num_arcs / float(np.median(speed.seconds["ngra"]))
    read = streaming_read()
    measure.record("roofline share", gathered / read, "1", better="higher")
    measure.record("streaming read", read, "B/s")


def streaming_read(size=2**28):
    """Bytes a second that one thread reads from memory, best of five."""
    import time

    data = torch.ones(size // 4)
    best = float("inf")
    for _ in range(5):
        begun = time.perf_counter()
        data.sum()
        best = min(best, time.perf_counter() - begun)
    return size / best


@pytest.mark.slow
@pytest.mark.claim("ngra/single-gpu-vs-frameworks-aggregate-dgl-weighted")
def test_weighted_aggregation_beside_dgl(measure, claim):
    """A weight on every arc: ours multiplies in the kernel, DGL by u_mul_e_sum."""
    scale, arcs = sizes(measure, 20, 24)
    graph = rmat(scale, arcs, 1)
    x, weights = features(graph), torch.rand(graph.num_arcs, 1, generator=torch.Generator().manual_seed(2))
    chunked = graph.chunked()

    class Weighted(Layer):
        def apply_edge(self, src, dst, edge):
            return edge * src

    layer, inside = Weighted(), chunked.enter(x)
    dgl, made = peers.needed("dgl.ops"), peers.dgl_graph(graph)
    exact = exact_sum(graph, x, graph.enter_arcs(weights).squeeze(1))
    check = like(exact)
    with torch.no_grad():
        speed = measure.versus(
            {"ngra": lambda: layer.inner(chunked, inside, weights), "dgl": lambda: dgl.u_mul_e_sum(made, x, weights)},
            check=lambda first, other: check(None, other) or check(None, chunked.leave(first)),
        )
    assert claim.holds(speed.over("dgl"))


@pytest.mark.slow
@pytest.mark.claim("ngra/single-gpu-vs-frameworks-aggregate-index-add")
def test_aggregation_beside_gather_and_add(measure, claim):
    """2^18 vertices, 2^22 arcs: index_add materialises the arcs."""
    scale, arcs = sizes(measure, 18, 22)
    graph = rmat(scale, arcs, 1)
    x = features(graph)
    contenders, chunked = aggregators(graph, x)
    src, dst = graph.arcs()
    check = like(exact_sum(graph, x))
    contenders["index_add"] = lambda: torch.zeros_like(x).index_add_(0, dst, x[src])
    with torch.no_grad():
        speed = measure.versus(
            contenders, check=lambda first, other: check(None, other) or check(None, chunked.leave(first))
        )
    assert claim.holds(speed.over("index_add"))


# --------------------------------------------------------------------------------------------- whole epochs


def gcn_contenders(graph, weight, x, y):
    """name -> a call that runs forward and backward and returns (loss, gradient of the first weight)."""
    torch.manual_seed(0)
    net = Network([GCN(WIDTH, WIDTH), GCN(WIDTH, 16, identity)])
    first, second = net.layers[0].linear, net.layers[1].linear
    chunked = graph.chunked()
    values = weight.values(graph).float().squeeze(1)
    matrix, transposed = peers.csr(graph, weight)
    made, scale = peers.dgl_graph(graph), weight.source.float().unsqueeze(1)
    dgl, pyg = peers.needed("dgl.ops"), peers.needed("torch_geometric.nn")
    convolutions = [pyg.GCNConv(WIDTH, WIDTH, normalize=False), pyg.GCNConv(WIDTH, 16, normalize=False)]
    for convolution, linear in zip(convolutions, (first, second), strict=True):
        convolution.lin.weight, convolution.bias = linear.weight, linear.bias
    pairs = torch.stack(graph.arcs())

    def by_pyg(adjacency, weights=None):
        one, two = convolutions
        return two(torch.relu(one(x, adjacency, weights)), adjacency, weights)

    def by_dgl(h):
        return dgl.copy_u_sum(made, h * scale) * scale

    def step(forward):
        for parameter in net.parameters():
            parameter.grad = None
        loss = F.cross_entropy(forward(), y)
        loss.backward()
        return loss.detach(), first.weight.grad.clone()

    return {
        "ngra": lambda: step(lambda: net(chunked, x, weight)),
        "dgl": lambda: step(lambda: peers.two_layers(by_dgl, first, second, x)),
        "torch csr": lambda: step(
            lambda: peers.two_layers(lambda h: peers.Product.apply(matrix, transposed, h), first, second, x)
        ),
        "pyg csr": lambda: step(lambda: by_pyg(matrix)),
        "pyg": lambda: step(lambda: by_pyg(pairs, values)),
    }


def same_step(first, other):
    torch.testing.assert_close(other[0], first[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other[1], first[1], rtol=1e-2, atol=1e-5)


@pytest.mark.slow
@pytest.mark.claim(
    "ngra/single-gpu-vs-frameworks",
    "ngra/single-gpu-vs-frameworks-gcn-pyg",
    "ngra/single-gpu-vs-frameworks-gcn-pyg-csr",
    "ngra/single-gpu-vs-frameworks-gcn-torch-csr",
)
def test_gcn_epoch_beside_the_peers(measure, claim):
    """2^18 vertices, 2^22 arcs and loops; without reuse of the first layer's sum."""
    scale, arcs = sizes(measure, 18, 22)
    graph, weight = gcn_norm(rmat(scale, arcs, 1))
    x, y = features(graph), torch.randint(16, (graph.num_vertices,), generator=torch.Generator().manual_seed(1))
    speed = measure.versus(gcn_contenders(graph, weight, x, y), check=same_step)
    over = {f"{GROUP}-gcn-{name.replace(' ', '-')}": speed.over(name) for name in ("pyg", "pyg csr", "torch csr")}
    missed = claim.misses({GROUP: speed.over("dgl"), **over})
    assert not missed


@pytest.mark.slow
@pytest.mark.claim("ngra/single-gpu-vs-frameworks-gcn-dgl-hoisted")
def test_gcn_epoch_with_its_first_sum_reused(measure, claim):
    """Exact, and on by default: features that never change are summed once."""
    scale, arcs = sizes(measure, 18, 22)
    graph, weight = gcn_norm(rmat(scale, arcs, 1))
    x, y = features(graph), torch.randint(16, (graph.num_vertices,), generator=torch.Generator().manual_seed(1))
    every = gcn_contenders(graph, weight, x, y)
    with how(hoist=True):
        speed = measure.versus({"ngra": every["ngra"], "dgl": every["dgl"]}, check=same_step)
    assert claim.holds(speed.over("dgl"))


# --------------------------------------------------------------------------------------------- single layers


def step_of(parameters, x, run):
    """A call that runs forward and backward; gives (result, gradient of x)."""

    def step():
        x.grad = None
        for parameter in parameters:
            parameter.grad = None
        out = run()
        out.square().mean().backward()
        return out.detach(), x.grad.clone()

    return step


def close_step(first, other):
    for got, want in zip(other, first, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-4 * want.abs().max().item() + 1e-7)


@pytest.mark.slow
@pytest.mark.claim(
    "ngra/single-gpu-vs-frameworks-g-gcn-torch",
    "ngra/single-gpu-vs-frameworks-g-gcn-dgl",
)
def test_gated_layer_beside_torch_and_dgl(measure, claim):
    """G-GCN, 2^16 vertices, 2^20 arcs, 64 features."""
    scale, arcs = sizes(measure, 16, 20)
    graph = rmat(scale, arcs, 1)
    chunked, (src, dst) = graph.chunked(), graph.arcs()
    torch.manual_seed(0)
    layer, x = GatedGCN(WIDTH, WIDTH), features(graph).requires_grad_()
    dgl, made = peers.needed("dgl.ops"), peers.dgl_graph(graph)

    def materialised():
        message = layer.apply_edge(x[src], x[dst], None)
        return layer.apply_vertex(x, torch.zeros_like(x).index_add(0, dst, message))

    def by_dgl():  # the products once per vertex, as DGL's own gated layer has them
        gate = torch.sigmoid(dgl.u_add_v(made, layer.source(x), layer.target(x)))
        return layer.apply_vertex(x, dgl.u_mul_e_sum(made, x, gate))

    runs = {"ngra": lambda: layer(chunked, x), "torch": materialised, "dgl": by_dgl}
    steps = {name: step_of(list(layer.parameters()), x, run) for name, run in runs.items()}
    speed = measure.versus(steps, check=close_step)
    missed = claim.misses({f"{GROUP}-g-gcn-{name}": speed.over(name) for name in ("torch", "dgl")})
    assert not missed


@pytest.mark.slow
@pytest.mark.claim(
    "ngra/single-gpu-vs-frameworks-gat-pyg",
    "ngra/single-gpu-vs-frameworks-gat-dgl",
)
def test_attention_layer_beside_pyg_and_dgl(measure, claim):
    """GAT, 4 heads of 16, 2^16 vertices, 2^20 arcs."""
    scale, arcs = sizes(measure, 16, 20)
    graph = rmat(scale, arcs, 1)
    chunked = graph.chunked()
    torch.manual_seed(0)
    layer, x = GAT(WIDTH, 16, 4, activation=identity), features(graph).requires_grad_()
    pairs = torch.stack(graph.arcs())
    pyg = peers.needed("torch_geometric.nn").GATConv(WIDTH, 16, 4, add_self_loops=False)
    pyg.lin.weight, pyg.bias = layer.linear.weight, layer.bias
    pyg.att_src = torch.nn.Parameter(layer.from_source.detach()[None].clone())
    pyg.att_dst = torch.nn.Parameter(layer.from_target.detach()[None].clone())
    dgl, made = peers.needed("dgl.ops"), peers.dgl_graph(graph)

    def by_dgl():
        value = layer.linear(x).view(-1, 4, 16)
        left, right = (value * layer.from_source).sum(-1), (value * layer.from_target).sum(-1)
        score = F.leaky_relu(dgl.u_add_v(made, left, right), 0.2)
        share = dgl.edge_softmax(made, score)
        return dgl.u_mul_e_sum(made, value, share.unsqueeze(-1)).flatten(1) + layer.bias

    runs = {"ngra": lambda: layer(chunked, x), "pyg": lambda: pyg(x, pairs), "dgl": by_dgl}
    parameters = [*layer.parameters(), *pyg.parameters()]
    steps = {name: step_of(parameters, x, run) for name, run in runs.items()}
    speed = measure.versus(steps, check=close_step)
    missed = claim.misses({f"{GROUP}-gat-{name}": speed.over(name) for name in ("pyg", "dgl")})
    assert not missed


@pytest.mark.slow
@pytest.mark.claim("ngra/single-gpu-vs-frameworks-mp-gcn-pyg")
def test_max_pool_layer_beside_pyg(measure, claim):
    """MP-GCN, 2^16 vertices, 2^20 arcs, 64 features, against SAGEConv(max) of the same pooled values."""
    scale, arcs = sizes(measure, 16, 20)
    graph = rmat(scale, arcs, 1)
    chunked, pairs = graph.chunked(), torch.stack(graph.arcs())
    torch.manual_seed(0)
    layer, x = MaxPoolGCN(WIDTH, WIDTH), features(graph).requires_grad_()
    pyg = peers.needed("torch_geometric.nn").SAGEConv(WIDTH, WIDTH, aggr="max")
    with torch.no_grad():
        pyg.lin_l.weight.copy_(layer.linear.weight[:, :WIDTH])
        pyg.lin_l.bias.copy_(layer.linear.bias)
        pyg.lin_r.weight.copy_(layer.linear.weight[:, WIDTH:])

    def by_pyg():
        return torch.relu(pyg((torch.sigmoid(layer.pool(x)), x), pairs))

    runs = {"ngra": lambda: layer(chunked, x), "pyg": by_pyg}
    parameters = [*layer.parameters(), *pyg.parameters()]
    steps = {name: step_of(parameters, x, run) for name, run in runs.items()}
    speed = measure.versus(steps, check=close_step)
    assert claim.holds(speed.over("pyg"))


# ------------------------------------------------------------------------------- the machine's limits, and the passes


@pytest.mark.slow
@pytest.mark.claim("ngra/single-gpu-vs-frameworks-roofline")
def test_aggregation_beside_the_streaming_read(measure, claim):
    """Bytes gathered a second, over bytes read in order in the same run: a gather without reuse would move as many."""
    scale, arcs = sizes(measure, 20, 24)
    graph = rmat(scale, arcs, 1)
    contenders, _ = aggregators(graph, features(graph))
    array = torch.ones(4 * WIDTH * arcs // 16 if measure.full else 2**18)  # a quarter of what is gathered
    with torch.no_grad():
        speed = measure.versus(
            {"ngra": contenders["ngra"], "read": lambda: array.sum()}, check=lambda first, other: None
        )
    assert claim.holds(speed.over("read").scaled(WIDTH * arcs / array.numel()))


@pytest.mark.slow
@pytest.mark.claim("ngra/operator-motion-ablation")
def test_passes_beside_none(measure, claim):
    """A G-GCN layer, forward and backward: all passes, kernels without passes, and neither."""
    scale, arcs = sizes(measure, 15, 19)
    graph = rmat(scale, arcs, 1)
    chunked = graph.chunked()
    torch.manual_seed(0)
    x = features(graph).requires_grad_()
    layer = GatedGCN(WIDTH, WIDTH)

    def run(**chosen):
        with how(**chosen):
            return layer(chunked, x)

    runs = {
        "ngra": lambda: run(),
        "motion": lambda: run(backend="torch"),
        "off": lambda: run(optimize=False, backend="torch"),
    }
    steps = {name: step_of(list(layer.parameters()), x, one) for name, one in runs.items()}
    speed = measure.versus(steps, check=close_step)
    speed.over("motion").at_least(1.0)
    assert claim.holds(speed.over("off"))


@pytest.mark.slow
@pytest.mark.claim("ngra/beyond-device-memory-slowdown")
def test_streamed_epoch_beside_memory(measure, claim, tmp_path):
    """An epoch of two GraphSAGE layers from disk, in the page cache, within a quarter of what it holds in memory."""
    scale, arcs = sizes(measure, 17, 21)
    graph = rmat(scale, arcs, 1)
    n, x = graph.num_vertices, features(graph)
    y, mask = torch.randint(16, (n,), generator=torch.Generator().manual_seed(1)), torch.ones(n, dtype=torch.bool)
    torch.manual_seed(0)
    net = Network([GraphSAGE(WIDTH, WIDTH), GraphSAGE(WIDTH, 16, identity)])
    chunked = graph.chunked()
    # What training holds: both indices, features, of each layer its sum and its result, and the gradients of these.
    index = sum(part.numel() * part.element_size() for rows in (graph.incoming, graph.outgoing)
                for part in (rows.offsets, rows.ids, rows.arcs) if part is not None)  # fmt: skip
    held = index + 4 * n * (WIDTH + 2 * (WIDTH + WIDTH) + 2 * (WIDTH + 16))
    side = max(256, n // 32)
    with (
        ChunkStore.build(tmp_path / "store", [graph.arcs()], n, x, chunk_vertices=side) as store,
        StreamTrainer(net, store, memory=held // 4, selective="never") as trainer,
    ):

        def whole():
            net.zero_grad()
            loss = F.cross_entropy(net(chunked, x), y)
            loss.backward()
            return float(loss.detach())

        def streamed():
            net.zero_grad()
            return trainer.epoch(y, mask).loss

        def agree(first, other):
            assert abs(first - other) <= 1e-4 * abs(first)

        speed = measure.versus({"memory": whole, "streamed": streamed}, check=agree)
    assert claim.holds(speed.over("streamed", of="memory"))
