"""Streaming: the results of a run in memory, within the budget, reading exactly what was predicted."""

import os

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from suites.ngra.programs import graphs
from systems.ngra import BudgetError, Graph, GraphError, Layer, ProgramError, StoreError, gcn_norm, rmat
from systems.ngra.models import GAT, GCN, CommNet, GatedGCN, GraphSAGE, MaxPoolGCN, Network, identity
from systems.ngra.schedule import (
    Sweep,
    interval_loads,
    is_selective,
    order_of,
    plan_schedule,
    rows_loaded,
    selective_on_host,
)
from systems.ngra.store import ChunkStore
from systems.ngra.stream import StreamTrainer

AMPLE = 1 << 30
MODELS = {
    "CommNet": lambda: Network([CommNet(6, 8), CommNet(8, 3, identity)]),
    "GCN": lambda: Network([GCN(6, 8), GCN(8, 3, identity)]),
    "MP-GCN": lambda: Network([MaxPoolGCN(6, 5), MaxPoolGCN(5, 3, activation=identity)]),
    "G-GCN": lambda: Network([GatedGCN(6, 8), GatedGCN(8, 3, identity)]),
    "GAT": lambda: Network([GAT(6, 4, 2), GAT(8, 3, 1, activation=identity)]),
    "GraphSAGE": lambda: Network([GraphSAGE(6, 8), GraphSAGE(8, 3, identity)]),
}


def stored(path, graph, x=None, side=16, **options):
    return ChunkStore.build(path, [graph.arcs()], graph.num_vertices, x, chunk_vertices=side, **options)


def problem(graph, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(graph.num_vertices, 6, generator=generator)
    labels = torch.randint(3, (graph.num_vertices,), generator=generator)
    mask = torch.rand(graph.num_vertices, generator=generator) < 0.6
    mask[:1] = True
    return x, labels, mask


def in_memory(name, net, graph, x, labels, mask):
    """(loss, results, gradients), the graph in the order of the store."""
    weight = None
    if name == "GCN":
        graph, weight = gcn_norm(graph)
    net.zero_grad()
    out = net(graph.chunked(16, "degree"), x, weight)
    loss = F.cross_entropy(out[mask], labels[mask])
    loss.backward()
    return loss.item(), out.detach(), [p.grad.clone() for p in net.parameters()]


@pytest.mark.parametrize("traversal", ["zigzag", "ascending"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("tight", [True, False])
def test_a_streamed_epoch_equals_one_in_memory(tmp_path, name, traversal, tight):
    graph = rmat(7, 900, 3)
    x, labels, mask = problem(graph)
    torch.manual_seed(0)
    net = MODELS[name]()
    loss, out, want = in_memory(name, net, graph, x, labels, mask)
    gcn = name == "GCN"
    with stored(tmp_path / "s", graph, x, self_loops=gcn) as store:
        memory = smallest(net, store, norm=gcn, traversal=traversal, selective="never") if tight else AMPLE
        with StreamTrainer(net, store, memory, norm=gcn, traversal=traversal, selective="never") as trainer:
            result = trainer.predict()
            stats = trainer.epoch(labels, mask)
            assert (stats.bytes_read, stats.bytes_written) == trainer.predicted
            assert stats.peak_bytes <= memory
            place = trainer.scratch
            assert place.exists()
    assert not place.exists()
    assert stats.loss == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(result, out, rtol=1e-5, atol=1e-5)
    for parameter, gradient in zip(net.parameters(), want, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)


def smallest(net, store, **options):
    """The least budget, which the refusals of smaller ones name: each sweep may ask for more."""
    least = 1
    for _ in range(20):
        try:
            StreamTrainer(net, store, least, **options).close()
        except BudgetError as error:
            asked = error.minimum
        else:
            return least
        assert asked > least
        least = asked
    raise AssertionError("the budgets that are asked for never do")


class Sum(Layer):
    """The aggregation by itself."""


@settings(max_examples=25, phases=(Phase.explicit, Phase.generate), deadline=None)
@given(
    graph=graphs(most_vertices=40, most_arcs=200),
    side=st.sampled_from([1, 4, 16, 64]),
    accumulator=st.sampled_from(["sum", "mean", "max", "min"]),
    budget=st.integers(0, 20_000),
    seed=st.integers(0, 9),
)
def test_ascending_streams_have_the_bits_of_memory_for_any_budget(
    tmp_path_factory, graph, side, accumulator, budget, seed
):
    x = torch.randn(graph.num_vertices, 6, generator=torch.Generator().manual_seed(seed))
    layer = Sum()
    layer.accumulator = accumulator
    net = Network([layer])
    whole = net(graph.chunked(side, "degree"), x)
    with stored(tmp_path_factory.mktemp("s") / "s", graph, x, side) as store:
        memory = smallest(net, store, traversal="ascending", selective="never") + budget
        with StreamTrainer(net, store, memory, traversal="ascending", selective="never") as trainer:
            assert torch.equal(trainer.predict(), whole)


def test_reading_only_used_rows_changes_nothing_but_the_bytes(tmp_path):
    graph = Graph([0, 1, 700, 900, 901], [1, 0, 2, 3, 3], vertices=1024)
    x = torch.randn(1024, 6)
    net = Network([GraphSAGE(6, 8), GraphSAGE(8, 3, identity)])
    _, labels, mask = problem(graph)
    with stored(tmp_path / "s", graph, x, 256, order="natural") as store:
        memory = smallest(net, store, selective="always")
        with StreamTrainer(net, store, memory, selective="never") as trainer:
            whole, all_bytes = trainer.predict(), trainer.epoch(labels, mask)
        with StreamTrainer(net, store, memory, selective="always") as trainer:
            assert torch.equal(trainer.predict(), whole)
            stats = trainer.epoch(labels, mask)
            assert (stats.bytes_read, stats.bytes_written) == trainer.predicted
        assert stats.bytes_read < all_bytes.bytes_read
        assert stats.loss == pytest.approx(all_bytes.loss, rel=1e-6)


@pytest.mark.parametrize("prefetch", [True, False])
def test_loading_ahead_changes_no_bit(tmp_path, prefetch):
    graph = rmat(7, 900, 3)
    x, labels, mask = problem(graph)
    torch.manual_seed(0)
    net = MODELS["G-GCN"]()
    with stored(tmp_path / "s", graph, x) as store:
        with StreamTrainer(net, store, AMPLE, selective="never", prefetch=prefetch) as trainer:
            first = trainer.epoch(labels, mask)
            gradients = [p.grad.clone() for p in net.parameters()]
        with StreamTrainer(net, store, AMPLE, selective="never") as trainer:
            assert trainer.epoch(labels, mask).loss == first.loss
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), gradients, strict=True))


def test_training_by_streams_learns(tmp_path):
    from systems.ngra.data import planted

    dataset = planted()
    net = Network([GraphSAGE(32, 16), GraphSAGE(16, 4, identity)], dropout=0.2)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    with stored(tmp_path / "s", dataset.graph, dataset.x, 256) as store, StreamTrainer(net, store, AMPLE) as trainer:
        losses = [trainer.epoch(dataset.y, dataset.train, optimizer).loss for _ in range(25)]
        right = trainer.predict().argmax(1) == dataset.y
    assert losses[-1] < losses[0] / 2
    assert right[dataset.test].float().mean() > 0.7


# ---------------------------------------------------------------------------------------------- schedules


@pytest.mark.claim("ngra/destination-major")
def test_schedule_loads_match_the_formula(claim, tmp_path):
    """Counted by walking every schedule of a sweep over grids, groups and slots."""
    beyond = 0
    for count in (1, 2, 3, 5, 8):
        for group in range(1, count + 1):
            passes = -(-count // group)
            for slots in range(1, count + 1):
                for traversal in ("zigzag", "ascending"):
                    held, loads = [], 0
                    for turn in range(passes):
                        for j in order_of(traversal, turn, count):
                            loads += j not in held
                            held = [*(k for k in held if k != j), j][-slots:]
                    beyond += abs(loads - interval_loads(count, passes, slots, traversal))
            assert interval_loads(count, passes, 1, "zigzag") == passes * count - (passes - 1) or count == 1
    assert claim.holds(beyond)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9))
def test_rows_of_loads_are_those_of_their_intervals(vertices, side, passes, slots):
    class Shape:
        num_vertices, intervals = vertices, -(-vertices // side)

    Shape.side = side
    for traversal in ("zigzag", "ascending"):
        held, rows = [], 0
        for turn in range(passes):
            for j in order_of(traversal, turn, Shape.intervals):
                if j not in held:
                    rows += min(vertices, (j + 1) * side) - j * side
                held = [*(k for k in held if k != j), j][-slots:]
        assert rows == rows_loaded(Shape, passes, slots, traversal)


def test_more_memory_never_reads_more(tmp_path):
    graph = rmat(8, 3000, 2)
    with stored(tmp_path / "s", graph, torch.randn(256, 4)) as store:
        sweep = Sweep("a sweep", "forward", 16, 16, 16, 16, 16, 16)
        with pytest.raises(BudgetError) as found:
            plan_schedule(store, sweep, 0)
        least, read = found.value.minimum, float("inf")
        for memory in range(least, least + 40_000, 1000):
            schedule = plan_schedule(store, sweep, memory)
            assert schedule.peak_bytes <= memory
            assert schedule.bytes_read <= read
            read = schedule.bytes_read
        with pytest.raises(BudgetError):
            plan_schedule(store, sweep, least - 1)


@pytest.mark.claim("ngra/selective-rule")
def test_the_selective_rule_picks_the_faster_way(claim):
    """Over shares and rates: the time of both ways, counted row by row on a clock that the rates drive."""
    right = cases = 0
    for theta in (k / 40 for k in range(1, 40)):
        for gather in (0.3, 1.0, 2.0, 5.0):
            for transfer in (0.5, 1.0, 3.0):
                rows = range(1000)
                used = [row for row in rows if row < 1000 * theta]
                partly = sum(1 / gather for _ in used) + sum(1 / transfer for _ in used)
                whole = sum(1 / transfer for _ in rows)
                right += selective_on_host(theta, gather, transfer) == (partly < whole)
                partly, whole = sum(1 / gather for _ in used), sum(1 / transfer for _ in rows)
                right += is_selective(theta, transfer, gather) == (partly < whole)
                cases += 2
    assert claim.holds(100 * right / cases)


# ------------------------------------------------------------------------------------------------- stores


@settings(max_examples=40, deadline=None)
@given(graph=graphs(most_vertices=40, most_arcs=200), side=st.sampled_from([1, 3, 16]), loops=st.booleans())
def test_a_store_gives_back_the_chunks_of_the_graph(tmp_path_factory, graph, side, loops):
    """Against the grid in memory, which is built another way."""
    src, dst = graph.arcs()
    cut = len(src) // 2
    blocks = [(src[:cut], dst[:cut]), (src[cut:], dst[cut:])]
    place = tmp_path_factory.mktemp("s") / "s"
    wanted = (graph.with_self_loops() if loops else graph).chunked(side, "degree")
    options = {"chunk_vertices": side, "self_loops": loops}
    with ChunkStore.build(place, blocks, graph.num_vertices, torch.zeros(graph.num_vertices, 2), **options) as store:
        store.verify()
        assert (store.num_vertices, store.num_arcs) == (wanted.num_vertices, wanted.num_arcs)
        assert torch.equal(store.in_degree.long(), wanted.internal_in_degree)
        for direction, grid in (("forward", wanted.incoming_grid), ("backward", wanted.outgoing_grid)):
            size = store.largest_chunk(direction, True) + 4096
            for i in range(store.intervals):
                for j in range(store.intervals):
                    chunk = store.read_chunk(direction, i, j, torch.zeros(size, dtype=torch.uint8), arcs=True)
                    k = i * store.intervals + j
                    begin, end = grid.arc_begin[k : k + 2].tolist()
                    if chunk is None:
                        assert begin == end
                        continue
                    first, last = grid.row_begin[k : k + 2].tolist()
                    assert torch.equal(chunk.locals[: end - begin].int(), grid.locals[begin:end].int())
                    assert torch.equal(chunk.rows.int(), grid.rows[first:last].int())
                    assert torch.equal(chunk.ends.long(), grid.row_ends[first + k : last + k + 1].long())
                    assert torch.equal(chunk.arcs, grid.arcs[begin:end])


@pytest.mark.parametrize("name", ["forward.bin", "backward.bin", "forward.arcs", "backward.arcs", "x.bin",
                                  "chunks.npz", "vertices.npz", "meta.json"])  # fmt: skip
def test_any_damage_is_found(tmp_path, name):
    graph = rmat(6, 300, 1)
    stored(tmp_path / "s", graph, torch.randn(64, 3)).close()
    path = tmp_path / "s" / name
    whole = path.read_bytes()
    for place in (0, len(whole) // 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path.write_bytes(bytes(damaged))
        with pytest.raises(StoreError, match=name.replace(".", r"\.")):
            ChunkStore.open(tmp_path / "s", verify=True)
    path.write_bytes(whole[:-1])
    with pytest.raises(StoreError):
        ChunkStore.open(tmp_path / "s")
    path.write_bytes(whole)
    ChunkStore.open(tmp_path / "s", verify=True).close()


def test_a_store_of_another_version_or_none_is_refused(tmp_path):
    with pytest.raises(StoreError, match="no store"):
        ChunkStore.open(tmp_path)
    (tmp_path / "meta.json").write_text('{"version": 99}')
    with pytest.raises(StoreError, match="version 99, expected 1"):
        ChunkStore.open(tmp_path)


@pytest.mark.parametrize(
    ("blocks", "features", "words"),
    [
        ([([0, 9], [1, 1])], None, r"src\[1\] is 9"),
        ([([0], [1]), ([1, 2], [0, -1])], None, r"dst\[2\] is -1"),
        ([([0, 1], [1])], None, "2 sources and 1"),
        ([([0.5], [1])], None, "float64"),
        ([([0], [1])], torch.zeros(3, 2), "3 rows, expected one for each of the 4"),
        ([([0], [1])], [torch.zeros(2, 2), torch.zeros(2, 3)], r"shape \(2, 3\)"),
    ],
)
def test_a_build_that_fails_leaves_nothing(tmp_path, blocks, features, words):
    with pytest.raises(GraphError, match=words):
        ChunkStore.build(tmp_path / "s", blocks, 4, features)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_store_error_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StoreError, match="No space left"):
        stored(tmp_path / "s", rmat(5, 60, 1), torch.zeros(32, 2))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    stored(tmp_path / "s", rmat(5, 60, 1), torch.zeros(32, 2)).close()
    with pytest.raises(StoreError, match="exists"):
        stored(tmp_path / "s", rmat(5, 60, 1), torch.zeros(32, 2))


def test_what_cannot_be_streamed_is_refused(tmp_path):
    class Deep(Layer):
        def apply_edge(self, src, dst, edge):
            return torch.cumsum(src * dst, -1)

    with stored(tmp_path / "s", rmat(5, 60, 1), torch.zeros(32, 2)) as store:
        with pytest.raises(ProgramError, match="cannot be streamed"):
            StreamTrainer(Network([Deep()]), store, AMPLE)
        with pytest.raises(ProgramError, match="zigzag or ascending"):
            StreamTrainer(Network([Sum()]), store, AMPLE, traversal="spiral")
        with StreamTrainer(Network([Sum()]), store, AMPLE) as trainer, pytest.raises(GraphError, match="expected"):
            trainer.epoch(torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.bool))
    with stored(tmp_path / "t", rmat(5, 60, 1)) as store, pytest.raises(GraphError, match="features"):
        StreamTrainer(Network([Sum()]), store, AMPLE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "t"]
