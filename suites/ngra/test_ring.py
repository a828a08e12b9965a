"""A ring of ranks gives what one process gives; threads stand for ranks here, and real processes at the end."""

import contextlib
import queue
import threading

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import multiprocessing
from torch.nn import functional as F

from suites.ngra.programs import graphs
from systems.ngra import GraphError, Layer, ProgramError, gcn_norm, rmat
from systems.ngra.models import GAT, GCN, CommNet, GatedGCN, GraphSAGE, MaxPoolGCN, Network, identity
from systems.ngra.ring import RingGraph, balanced_ranges

MODELS = {
    "CommNet": lambda: Network([CommNet(6, 8), CommNet(8, 3, identity)]),
    "GCN": lambda: Network([GCN(6, 8), GCN(8, 3, identity)]),
    "MP-GCN": lambda: Network([MaxPoolGCN(6, 5), MaxPoolGCN(5, 3, activation=identity)]),
    "G-GCN": lambda: Network([GatedGCN(6, 8), GatedGCN(8, 3, identity)]),
    "GAT": lambda: Network([GAT(6, 4, 2), GAT(8, 3, 1, activation=identity)]),
    "GraphSAGE": lambda: Network([GraphSAGE(6, 8), GraphSAGE(8, 3, identity)]),
}


@contextlib.contextmanager
def others_run(shared):
    """While a rank waits, another may run: one at a time, since torch.fx patches modules while it traces."""
    shared["turn"].release()
    try:
        yield
    finally:
        shared["turn"].acquire()


class Threads:
    """A transport between threads of this process."""

    def __init__(self, rank, shared):
        self.rank, self.world, self._shared = rank, shared["world"], shared

    def exchange(self, sent, received):
        self._shared["queues"][(self.rank + 1) % self.world].put([part.clone() for part in sent])

        def wait():
            with others_run(self._shared):
                parts = self._shared["queues"][self.rank].get(timeout=60)
            for out, part in zip(received, parts, strict=True):
                out.copy_(part)

        return wait

    def sum(self, x):
        shared = self._shared
        shared["sums"].append(x.clone())
        with others_run(shared):
            shared["barrier"].wait(60)
        total = sum(shared["sums"])
        with others_run(shared):
            shared["barrier"].wait(60)
        if self.rank == 0:
            shared["sums"].clear()
        with others_run(shared):
            shared["barrier"].wait(60)
        x.copy_(total)


def around(world, graph, job, side=65_536):
    """job(ring graph) on every rank at once; what each gives."""
    shared = {
        "world": world, "queues": [queue.Queue() for _ in range(world)], "turn": threading.Lock(), "sums": [],
        "barrier": threading.Barrier(world),
    }  # fmt: skip
    results, errors = [None] * world, []

    def run(rank):
        try:
            with shared["turn"]:
                results[rank] = job(RingGraph(graph, Threads(rank, shared), side))
        except BaseException as error:
            errors.append(error)
            shared["barrier"].abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    if errors:
        raise errors[0]
    return results


def step(build, state, graph, x, y, weight, scale):
    """(result, gradients) of one rank or of the whole."""
    net = build().double()
    net.load_state_dict(state)
    out = net(graph, x, weight)
    (F.cross_entropy(out, y, reduction="sum") / scale).backward()
    if isinstance(graph, RingGraph):
        graph.reduce_gradients(net)
        out = graph.gather(out)
    return out.detach(), [parameter.grad for parameter in net.parameters()]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("name", MODELS)
def test_ranks_in_a_ring_equal_one(name, world):
    graph, weight = rmat(6, 500, 3).chunked(16), None
    if name == "GCN":
        graph, weight = gcn_norm(graph)
    torch.manual_seed(0)
    x = torch.randn(graph.num_vertices, 6, dtype=torch.float64)
    y = torch.randint(3, (graph.num_vertices,))
    build = MODELS[name]
    state = build().double().state_dict()
    want = step(build, state, graph, x, y, weight, len(y))

    def job(ring):
        part = None if weight is None else ring.scatter(weight)
        return step(build, state, ring, ring.scatter(x), ring.scatter(y), part, len(y))

    for got in around(world, graph, job, side=10):
        torch.testing.assert_close(got[0], want[0], rtol=1e-9, atol=1e-10)
        for left, right in zip(got[1], want[1], strict=True):
            torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-10)


class Sum(Layer):
    """The aggregation by itself."""


@settings(max_examples=25, phases=(Phase.explicit, Phase.generate), deadline=None)
@given(
    graphs(most_vertices=30, most_arcs=120),
    st.integers(1, 4),
    st.sampled_from(["sum", "mean", "max", "min"]),
    st.sampled_from([1, 3, 64]),
)
def test_any_graph_in_any_ring_equals_itself(graph, world, accumulator, side):
    layer = Sum().double()
    layer.accumulator = accumulator
    # Integers: sums are exact in any order, and ties abound.
    x = torch.randint(-2, 3, (graph.num_vertices, 5), generator=torch.Generator().manual_seed(1)).double()

    def gradient(of, data):
        part = data.clone().requires_grad_()
        out = Sum.forward(layer_like(), of, part)
        (out * torch.arange(1.0, 6.0, dtype=torch.float64)).sum().backward()
        return out.detach(), part.grad

    def layer_like():
        made = Sum().double()
        made.accumulator = accumulator
        return made

    want = gradient(graph, x)

    def job(ring):
        out, by_x = gradient(ring, ring.scatter(x))
        return ring.gather(out), ring.gather(by_x)

    for got in around(world, graph, job, side):
        assert torch.equal(got[0], want[0])
        if accumulator == "mean":  # shares of degrees are no integers, and a ring adds them in another order
            torch.testing.assert_close(got[1], want[1], rtol=1e-12, atol=1e-12)
        else:
            assert torch.equal(got[1], want[1])


@pytest.mark.claim("ngra/ring-scaling")
def test_bytes_sent_are_those_of_the_formula(claim):
    """vertices x width x itemsize x (world - 1) / world per rank and layer, in sum over the ranks of unequal ranges."""
    graph, width = rmat(7, 900, 3), 6
    x, beyond = torch.randn(graph.num_vertices, width), 0
    for world in (2, 3, 4):

        def job(ring):
            with torch.no_grad():
                Sum()(ring, ring.scatter(x))
            return ring.bytes_sent

        sent = sum(around(world, graph, job))
        beyond += abs(sent - graph.num_vertices * width * 4 * (world - 1))
    assert claim.holds(beyond)


@settings(max_examples=50, deadline=None)
@given(graphs(most_vertices=40, most_arcs=200), st.integers(1, 6))
def test_ranges_cover_every_vertex_once(graph, world):
    ranges = balanced_ranges(graph, world)
    assert len(ranges) == world
    assert [vertex for first, last in ranges for vertex in range(first, last)] == list(range(graph.num_vertices))


def test_what_does_not_go_round_is_refused():
    graph = rmat(5, 80, 1)

    class Weighted(Layer):
        def apply_edge(self, src, dst, edge):
            return src * edge

    class Deep(Layer):
        def apply_edge(self, src, dst, edge):
            return torch.cumsum(src * dst, -1)

    def weighted(ring):
        return Weighted()(ring, torch.randn(ring.num_vertices, 4), torch.randn(ring.num_arcs, 1))

    with pytest.raises(ProgramError, match="arc data do not go round"):
        around(1, graph, weighted)
    with pytest.raises(ProgramError, match="does not fuse"):
        around(1, graph, lambda ring: Deep()(ring, torch.randn(ring.num_vertices, 4)))
    with pytest.raises(GraphError, match="whole vertex data"):
        around(2, graph, lambda ring: ring.scatter(torch.zeros(3, 2)))
    with pytest.raises(ProgramError, match="process group"):
        RingGraph.split(graph)


# ----------------------------------------------------------------------------------------------- processes


def of_a_process(rank, world, file, out):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    graph = rmat(6, 500, 3)
    torch.manual_seed(0)
    x, y = torch.randn(graph.num_vertices, 6, dtype=torch.float64), torch.randint(3, (graph.num_vertices,))
    build = MODELS["G-GCN"]
    state = torch.load(f"{out}.state", weights_only=True)
    ring = RingGraph.split(graph)
    found = step(build, state, ring, ring.scatter(x), ring.scatter(y), None, len(y))
    torch.save([found[0], found[1], ring.bytes_sent], f"{out}.{rank}")
    torch.distributed.destroy_process_group()


def test_two_processes_over_gloo_equal_one(tmp_path):
    graph = rmat(6, 500, 3)
    build = MODELS["G-GCN"]
    torch.manual_seed(7)
    state = build().double().state_dict()
    torch.save(state, tmp_path / "out.state")
    torch.manual_seed(0)
    x, y = torch.randn(graph.num_vertices, 6, dtype=torch.float64), torch.randint(3, (graph.num_vertices,))
    want = step(build, state, graph, x, y, None, len(y))
    multiprocessing.spawn(of_a_process, (2, str(tmp_path / "rendezvous"), str(tmp_path / "out")), nprocs=2)
    for rank in range(2):
        out, gradients, sent = torch.load(tmp_path / f"out.{rank}", weights_only=True)
        torch.testing.assert_close(out, want[0], rtol=1e-9, atol=1e-10)
        for left, right in zip(gradients, want[1], strict=True):
            torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-10)
        assert sent > 0
