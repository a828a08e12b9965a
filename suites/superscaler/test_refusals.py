"""Bad input: refused with its reason before anything starts."""

import functools

import pytest
import torch
from torch import nn

from systems.superscaler import (
    CyclicOrder,
    InvalidPlan,
    Layout,
    RankFailure,
    Replicate,
    SProgram,
    Task,
    Unassigned,
    Unsupported,
    capture,
    models,
    path,
    plans,
)
from systems.superscaler.runtime import Runner, launch


@pytest.fixture(scope="module")
def graph():
    sample = models.gpt(layers=1)
    return capture(sample.model, sample.batch)


class Branching(nn.Module):
    def forward(self, x):
        return x.sum() if x.sum() > 0 else -x.sum()


class Vector(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Linear(2, 2)

    def forward(self, x):
        return self.w(x)


class OverBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Linear(2, 2)

    def forward(self, x):
        return self.w(x).softmax(0).pow(2).sum()


def test_control_flow_that_depends_on_data():
    with pytest.raises(Unsupported, match="control flow"):
        capture(Branching(), (torch.ones(3, requires_grad=True),))


def test_no_scalar_loss():
    with pytest.raises(Unsupported, match="scalar loss"):
        capture(Vector(), (torch.ones(3, 2),))


def test_a_model_that_mixes_samples_has_no_micro_batches():
    graph = capture(OverBatch(), (torch.ones(4, 2),))
    with pytest.raises(Unsupported, match="softmax"):
        SProgram(graph, 1).microbatch(2)


def test_identifiers_that_may_not_be_cut_are_listed_with_those_that_may(graph):
    s = SProgram(graph, 2)
    norm = next(op for op in graph.ops if "layer_norm" in op.target)
    with pytest.raises(InvalidPlan, match=r"'n0' may not be cut.*b \(up to 8\)"):
        s.op_trans(norm, {"n0": 2})
    with pytest.raises(InvalidPlan, match="'nonsense' is no identifier"):
        s.op_trans(norm, {"nonsense": 2})
    with pytest.raises(InvalidPlan, match="8 elements left to cut, not 9"):
        s.op_trans(norm, {"b": 9})


def test_assigning_twice_nowhere_or_on_an_unknown_device(graph):
    s = SProgram(graph, 2)
    with pytest.raises(Unassigned, match="embedding"):
        s.build()
    s.op_assign(graph.ops[0], 1)
    with pytest.raises(InvalidPlan, match="is on device 1 already"):
        s.op_assign(graph.ops[0], 0)
    with pytest.raises(InvalidPlan, match="there are 2, numbered from 0"):
        s.op_assign(graph.ops[1], 2)
    with pytest.raises(InvalidPlan, match="split it before assigning"):
        s.op_trans(graph.ops[0], Replicate(2))


def test_two_parts_on_one_device(graph):
    s = SProgram(graph, 1)
    for op in graph.ops:
        s.op_assign(s.op_trans(op, {"b": 2}), 0)
    with pytest.raises(InvalidPlan, match="colocate=True"):
        s.build()


def test_a_circle_is_shown_with_its_edges(graph):
    s = plans.one_f_one_b(graph, 1, microbatches=2)
    first, last = graph.ops[2], next(op for op in graph.ops if "head" in op.module)
    s.op_order(Task((last,), 0), Task((first,), 0))
    with pytest.raises(CyclicOrder, match="circle") as caught:
        s.build()
    assert "op_order" in [why for _, why in caught.value.cycle]
    assert "data" in [why for _, why in caught.value.cycle]
    assert len(caught.value.cycle) <= 30


def test_backward_before_forward_is_a_circle(graph):
    s = plans.serial(graph)
    s.op_order(Task((graph.ops[3],), 0, "B"), Task((graph.ops[3],), 0, "F"))
    with pytest.raises(CyclicOrder, match="backward"):
        s.build()


def test_more_micro_batches_than_samples(graph):
    with pytest.raises(InvalidPlan, match="9 micro-batches of 8 samples"):
        SProgram(graph, 1).microbatch(9)


def test_more_stages_than_blocks(graph):
    with pytest.raises(InvalidPlan, match="fewer stages"):
        plans.gpipe(graph, 2)


def test_layouts_without_a_common_mesh():
    a, b = Layout((4,), ((4,),), ((0, 0),)), Layout((2,), ((2,),), ((0, 0),))
    with pytest.raises(InvalidPlan, match="one mesh"):
        path(a, b, (8,))
    with pytest.raises(InvalidPlan, match="no slot twice"):
        Layout((2, 2), ((2,),), ((0, 0), (0, 0)))


def start(plan):
    sample = models.gpt(layers=1)
    return Runner(plan, sample.model, torch.optim.SGD).step(sample.batch)


def differing():
    import os

    sample = models.gpt(layers=1)
    graph = capture(sample.model, sample.batch)
    plan = plans.data_parallel(graph, 2, microbatches=1 + int(os.environ["RANK"])).build()
    return Runner(plan, sample.model, torch.optim.SGD).step(sample.batch)


def dies():
    import os

    if os.environ["RANK"] == "1":
        os._exit(7)
    return start(plans.data_parallel(capture(*_parts()), 2).build())


def _parts():
    sample = models.gpt(layers=1)
    return sample.model, sample.batch


def test_a_world_of_another_size(graph):
    with pytest.raises(RankFailure, match="the plan is for 1 ranks, the world has 2"):
        launch(functools.partial(start, plans.serial(graph).build()), 2)


def test_ranks_with_different_plans():
    with pytest.raises(RankFailure, match="have another"):
        launch(differing, 2)


def test_a_rank_that_dies_stops_the_others():
    with pytest.raises(RankFailure, match=r"rank [01] of 2 failed"):
        launch(dies, 2, timeout=60)
