"""Random graphs, random transformations, random orders: equal to the serial graph, or refused with a reason."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from suites.superscaler.random_graphs import graphs, programs
from systems.superscaler import InMemory, PlanError, SProgram, Task, verify
from systems.superscaler.errors import CyclicOrder

SLOW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def reference(graph, values, batch):
    """Loss and gradients of the whole graph on one device, by autograd."""
    leaves = {n: v.clone().requires_grad_() for n, v in values.items()}
    loss = graph.run(leaves, batch)
    names = [t.name for t in graph.parameters if any(op.grad for op, _ in graph.consumers[t.id])]
    grads = torch.autograd.grad(loss, [leaves[n] for n in names], allow_unused=True)
    return loss.detach(), {n: torch.zeros_like(values[n]) if g is None else g for n, g in zip(names, grads, strict=True)}


def agree(plan, graph, values, batch):
    """Run a plan on simulated ranks, and compare loss and gradients with the serial graph."""
    loss, grads = reference(graph, values, batch)
    ranks = InMemory(plan, values, lambda p: torch.optim.SGD(p, lr=0.1))
    for own in ranks.step(batch):
        torch.testing.assert_close(own, loss, rtol=1e-9, atol=1e-11)
    found = ranks.parameter_gradients()
    for name, grad in grads.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-8, atol=1e-10, msg=lambda text, n=name: f"{n}: {text}")
    after = ranks.parameters()
    for name, grad in grads.items():
        torch.testing.assert_close(after[name], values[name] - 0.1 * grad, rtol=1e-8, atol=1e-10)


@SLOW
@given(st.data())
def test_random_transforms_of_random_graphs_equal_serial(data):
    graph, values, batch = data.draw(graphs())
    s = data.draw(programs(graph))
    agree(s.build(), graph, values, batch)


@settings(SLOW, max_examples=40)
@given(st.data())
def test_random_orders_run_or_are_refused_with_a_cycle(data):
    graph, values, batch = data.draw(graphs(most=5))
    s = data.draw(programs(graph))
    for _ in range(data.draw(st.integers(1, 4))):
        tasks = [
            Task(tuple(data.draw(st.lists(st.sampled_from(graph.ops), min_size=1, max_size=3, unique=True))),
                 data.draw(st.integers(0, s.microbatches - 1)), data.draw(st.sampled_from(["F", "B"])))
            for _ in range(2)
        ]  # fmt: skip
        s.op_order(*tasks)
    try:
        plan = s.build()
    except CyclicOrder as error:
        kinds = [why for _, why in error.cycle]
        assert "op_order" in kinds
        return
    agree(plan, graph, values, batch)


@settings(SLOW, max_examples=40)
@given(st.data())
def test_arbitrary_calls_build_and_run_or_raise_a_plan_error(data):
    graph, values, batch = data.draw(graphs(most=4))
    s = SProgram(graph, data.draw(st.integers(1, 3)))
    names = st.sampled_from(["b", "k", "n", "d0", "d1", "d2", "x1", "nonsense"])
    try:
        if data.draw(st.booleans()):
            s.microbatch(data.draw(st.integers(0, 8)))
        for op in graph.ops:
            if data.draw(st.integers(0, 2)) == 0:
                s.op_trans(op, {data.draw(names): data.draw(st.integers(0, 4))})
            for part in s.parts(op):
                if data.draw(st.integers(0, 40)):
                    s.op_assign(part, data.draw(st.integers(0, s.devices - (data.draw(st.integers(0, 30)) > 0))))
        plan = s.build()
    except PlanError as error:
        assert len(str(error)) > 10
        return
    assert verify(plan).ok
    agree(plan, graph, values, batch)
