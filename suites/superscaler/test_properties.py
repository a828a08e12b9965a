"""Random graphs, random transformations, random orders: equal to the serial graph, or refused with a reason."""

import functools
import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from suites.superscaler.mutants import mutants
from suites.superscaler.random_graphs import graphs, programs
from systems.superscaler import InMemory, Layout, Mask, PlanError, SProgram, Task, capture, models, path, plans, verify
from systems.superscaler.annotations import bind
from systems.superscaler.errors import CyclicOrder
from systems.superscaler.executor import put, take
from systems.superscaler.graph import Ref
from systems.superscaler.layout import refine
from systems.superscaler.mask import places, subtract
from systems.superscaler.operators import Call, annotation_of, reshape_annotation
from systems.superscaler.probing import holds

SLOW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def reference(graph, values, batch):
    """Loss and gradients of the whole graph on one device, by autograd."""
    leaves = {n: v.clone().requires_grad_() for n, v in values.items()}
    loss = graph.run(leaves, batch)
    names = [t.name for t in graph.parameters if any(op.grad for op, _ in graph.consumers[t.id])]
    grads = torch.autograd.grad(loss, [leaves[n] for n in names], allow_unused=True)
    return loss.detach(), {
        n: torch.zeros_like(values[n]) if g is None else g for n, g in zip(names, grads, strict=True)
    }


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
        cycle = error.cycle
    else:
        agree(plan, graph, values, batch)
        return
    assert "op_order" in [why for _, why in cycle]


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
        refusal = str(error)
    else:
        assert verify(plan).ok
        agree(plan, graph, values, batch)
        return
    assert len(refusal) > 10


# ------------------------------------------------------------------------------------------------- verifier


@functools.cache
def small_plans():
    sample = models.gpt(layers=1, vocabulary=8, width=8, heads=2, length=4, samples=4)
    graph = capture(sample.model, sample.batch)
    s = plans.data_parallel(graph, 2)
    wide = plans.tensor_parallel(graph, 2, microbatches=2)
    return {
        "data": s, "tensor": wide, "zero1": plans.zero(graph, 2, stage=1), "zero3": plans.zero(graph, 2, stage=3),
        "sequence": plans.sequence_parallel(graph, 2), "dap": plans.dap(graph, 2),
        "interlaced": plans.interlaced(graph, 1, tp=2, microbatches=2), "co-shard": plans.co_shard(graph, 2, dp=2),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["data", "tensor", "zero1", "zero3", "sequence", "dap", "interlaced", "co-shard"])
def test_mutants_are_caught(name):
    plan = small_plans()[name].build()
    assert verify(plan).ok
    made, missed = 0, []
    for what, mutant in mutants(plan):
        made += 1
        if verify(mutant, most=1).ok:
            missed.append(what)
    assert made > 15
    assert not missed


# -------------------------------------------------------------------------------------------------- layouts


@st.composite
def layouts(draw, mesh, dims):
    roles = []
    free = [(k, j) for k in range(dims) for j in range(len(mesh))]
    for _ in mesh:
        role = draw(st.sampled_from(["R", "V", "D"]))
        if role == "D":
            used = [sum(r[0] == k for r in roles if r not in ("R", "V")) for k in range(dims)]
            k = draw(st.integers(0, dims - 1))
            roles.append((k, used[k]))
        else:
            roles.append(role)
    return Layout(mesh, tuple(tuple(mesh) for _ in range(dims)), tuple(roles)), free


def shards(layout, tensor):
    """What each device holds: the slice that its region says, split in random addends where it holds one."""
    generator = torch.Generator().manual_seed(1)
    found = []
    count = layout.part(0)[1]
    noise = torch.randn((count, *tensor.shape), generator=generator, dtype=tensor.dtype)
    noise[-1] = tensor - noise[:-1].sum(0)
    for device in range(np.prod(layout.mesh)):
        value = noise[layout.part(device)[0]]
        found.append(take(value, layout.region(tensor.shape, device)))
    return found


def apply(step, held, shape):
    """A move on real shards, by its meaning: what each device then has."""
    after = [None] * len(held)
    for device in range(len(held)):
        group = step.before.group(device, step.digits)
        region, wanted = step.before.region(shape, device), step.after.region(shape, device)
        whole = torch.full(shape, float("nan"), dtype=held[0].dtype)
        if step.kind == "all_reduce":
            after[device] = sum(held[g] for g in group)
        elif step.kind == "reduce_scatter":
            after[device] = take(sum(held[g] for g in group), places(wanted, region))
        elif step.kind in ("all_gather", "all_to_all"):
            for g in group:
                put(whole, held[g], step.before.region(shape, g), add=False)
            after[device] = take(whole, wanted)
        elif step.kind == "slice":
            after[device] = take(held[device], places(wanted, region))
        elif step.kind == "to_addend":
            first = min(step.after.part(g)[0] for g in group)
            after[device] = held[device] * (step.after.part(device)[0] == first)
        else:
            source = step.origin(device)
            assert step.before.region(shape, source) == wanted
            after[device] = held[source]
    return after


@settings(SLOW, max_examples=150)
@given(st.data())
def test_a_path_turns_real_shards_into_those_of_its_end(data):
    mesh = data.draw(st.sampled_from([(2,), (2, 2), (2, 2, 2), (3,), (3, 3)]))
    dims = data.draw(st.integers(1, 2))
    (a, _), (b, _) = data.draw(layouts(mesh, dims)), data.draw(layouts(mesh, dims))
    shape = (int(np.prod(mesh)),) * dims
    tensor = torch.arange(float(np.prod(shape)), dtype=torch.float64).reshape(shape)
    found = path(a, b, shape)
    held = shards(found.steps[0].before if found.steps else a, tensor)
    for step in found.steps:
        held = apply(step, held, shape)
    by_place = {}
    for device, value in enumerate(held):
        region = b.region(shape, device)
        assert value.shape == take(tensor, region).shape
        by_place.setdefault(region, {}).setdefault(b.part(device), value)
    for region, addends in by_place.items():
        torch.testing.assert_close(sum(addends.values()), take(tensor, region))
    assert found.cost == pytest.approx(sum(step.elements for step in found.steps))
    assert found.cost <= gather_all(a, b, shape) + 1e-9


def test_a_permute_may_renumber_addends():
    """Found by the property above: one digit changes its role with a replica's while two become addends."""
    a = Layout((2, 2, 2), ((2, 2, 2),), ("R", "R", (0, 0)))
    b = Layout((2, 2, 2), ((2, 2, 2),), ((0, 0), "V", "V"))
    tensor = torch.arange(8.0)
    held = shards(a, tensor)
    for step in path(a, b, (8,)).steps:
        assert sorted(map(step.origin, range(8))) == list(range(8)) or step.kind != "permute"
        held = apply(step, held, (8,))
    torch.testing.assert_close(sum(held[:4]), tensor[:4])


def gather_all(a, b, shape):
    """Elements sent by summing and gathering everything, then slicing."""
    v = np.prod([r for r, role in zip(a.mesh, a.roles, strict=True) if role == "V"])
    x = np.prod(shape) / a.pieces
    return 2 * (v - 1) / v * x + (a.pieces - 1) * x


@settings(SLOW, max_examples=40)
@given(st.data())
def test_path_cost_is_optimal(data):
    """Against Bellman-Ford over all states, whose moves are found by their definition alone."""
    mesh = data.draw(st.sampled_from([(2, 2), (3, 3), (2, 2, 2)]))
    (a, _), (b, _) = data.draw(layouts(mesh, 1)), data.draw(layouts(mesh, 1))
    shape = (24 * 24,)
    found = path(a, b, shape)
    assert found.cost == pytest.approx(brute_force(*refine(a, b), shape), rel=1e-6)


@functools.cache
def brute_edges(mesh, slots):
    names = ["R", "V", *((k, j) for k, own in enumerate(slots) for j in range(len(own)))]
    states = []
    for roles in itertools.product(names, repeat=len(mesh)):
        held = [r for r in roles if r not in ("R", "V")]
        if len(set(held)) == len(held) and all(
            r in ("R", "V") or slots[r[0]][r[1]] == n for n, r in zip(mesh, roles, strict=True)
        ):
            states.append(roles)
    edges = {}
    for p in states:
        pieces = np.prod([n for n, r in zip(mesh, p, strict=True) if r not in ("R", "V")])
        for q in states:
            moved = [d for d in range(len(mesh)) if p[d] != q[d]]
            if not moved:
                continue
            s = np.prod([mesh[d] for d in moved])
            kinds = {
                ("D" if p[d] not in ("R", "V") else p[d]) + ("D" if q[d] not in ("R", "V") else q[d]) for d in moved
            }
            taken = any(q[d] in p for d in moved if q[d] not in ("R", "V"))
            cost = {"DR": s - 1, "VR": 2 * (s - 1) / s, "VD": (s - 1) / s, "DD": (s - 1) / s, "RD": 0, "RV": 0}
            if len(kinds) == 1 and not taken and next(iter(kinds)) in cost:
                edges[p, q] = cost[kinds.pop()] / pieces
            elif sorted(map(str, p)) == sorted(map(str, q)):
                edges[p, q] = 1 / pieces
    return states, edges


def brute_force(a, b, shape):
    states, edges = brute_edges(a.mesh, a.slots)
    distance = dict.fromkeys(states, np.inf)
    distance[a.roles] = 0.0
    for _ in range(len(states)):
        changed = False
        for (p, q), cost in edges.items():
            if distance[p] + cost < distance[q] - 1e-15:
                distance[q] = distance[p] + cost
                changed = True
        if not changed:
            break
    return distance[b.roles] * np.prod(shape)


# ---------------------------------------------------------------------------------------- masks, annotations


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), min_size=2, max_size=2), st.data())
def test_mask_algebra(sizes, data):
    box = tuple((lo, lo + n) for lo, n in sizes)
    other = tuple((lo + data.draw(st.integers(-3, 3)), lo + n + data.draw(st.integers(0, 3))) for lo, n in sizes)
    other = tuple((lo, max(hi, lo + 1)) for lo, hi in other)
    grid = np.zeros((12, 12), int)
    mine, theirs = np.zeros_like(grid, bool), np.zeros_like(grid, bool)

    def fill(target, b):
        target[tuple(slice(lo + 3, hi + 3) for lo, hi in b)] = True

    fill(mine, box)
    fill(theirs, other)
    common = Mask(box).intersect(Mask(other))
    both = np.zeros_like(grid, bool)
    if common is not None:
        fill(both, common.box)
    assert (both == (mine & theirs)).all()
    rest = subtract(box, other)
    count = np.zeros_like(grid)
    for b in rest:
        count[tuple(slice(lo + 3, hi + 3) for lo, hi in b)] += 1
    assert (count == (mine & ~theirs)).all()


@given(st.integers(1, 4), st.integers(1, 4))
def test_addends_partition_unity(n, m):
    masks = [Mask((), (v * m + w, n * m)) for v in range(n) for w in range(m)]
    assert sum(b - a for a, b in (mask.share for mask in masks)) == 1
    assert all(masks[i].intersect(masks[j]) is None for i in range(len(masks)) for j in range(i))
    assert all(Mask((), (v, n)).covers(masks[v * m + w]) for v in range(n) for w in range(m))


@pytest.mark.parametrize("model", ["gpt", "swin", "evoformer"])
def test_annotations_hold(model):
    """Cutting any identifier of any operator of the models rebuilds its output, on random inputs."""
    made = {"gpt": lambda: models.gpt(layers=1, dropout=0.1), "swin": models.swin}
    sample = made.get(model, lambda: models.evoformer(layers=1))()
    graph = capture(sample.model, sample.batch)
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for op in graph.ops:
        shapes = tuple(tuple(hi - lo for lo, hi in v.box) for v in op.inputs)
        if (op.target, shapes) in seen or op.target == "superscaler.dropout":
            continue
        seen.add((op.target, shapes))
        dtypes = tuple(graph.tensors[v.tensor].dtype for v in op.inputs)
        tensors = [
            torch.randint(0, 4, s, generator=generator)
            if d == "int64"
            else torch.rand(s, generator=generator, dtype=torch.float64) + 0.1
            for s, d in zip(shapes, dtypes, strict=True)
        ]  # fmt: skip
        call = Call(op.target, shapes, dtypes, graph.tensors[op.output].shape, op.arguments, op.keywords)
        for name, most in annotation_of(call).divisible.items():
            for parts in {2, 3} & set(range(most + 1)):
                assert holds(call, tensors, name, parts), f"{op}: {annotation_of(call)} by {name} in {parts}"


def test_an_unknown_operator_is_probed():
    call = Call("aten.hypot.default", ((4, 6), (4, 6)), ("float64",) * 2, (4, 6), (Ref(0), Ref(1)), {})
    assert str(annotation_of(call)) == "p0 p1, p0 p1 -> p0 p1"
    call = Call("aten.kron.default", ((2, 2), (2, 2)), ("float64",) * 2, (4, 4), (Ref(0), Ref(1)), {})
    for name in annotation_of(call).divisible:
        assert holds(call, [torch.rand(2, 2, dtype=torch.float64) for _ in range(2)], name, 2)
    with pytest.warns(UserWarning, match="cannot be split"):
        assert not annotation_of(
            Call("aten.cdist.default", ((1, 1),), ("float64",), (1, 1), (Ref(0), Ref(0)), {})
        ).divisible


@pytest.mark.parametrize(
    ("source", "result", "text"),
    [
        ((8, 6), (8, 2, 3), "x0 (x1 x2) -> x0 x1 x2"),
        ((4, 5, 6), (20, 6), "x0 x1 x2 -> (x0 x1) x2"),
        ((4, 6), (6, 4), "x0^ x1^ -> x2^ x3^"),
    ],
)  # fmt: skip
def test_a_reshape_is_cut_by_its_outermost_factors(source, result, text):
    assert str(bind(*_two(reshape_annotation(source, result), source, result))) == text


def _two(found, source, result):
    return found[0], [source], [result], found[1]
