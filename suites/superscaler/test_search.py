"""The search against references that know nothing of it: an integer program, and every cut by brute force."""

import dataclasses
import functools
import itertools
import re
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from suites.superscaler.equality import in_memory_equals, serial
from systems.superscaler import InvalidPlan, Layout, OutOfMemory, PlanMismatch, capture, models, path
from systems.superscaler.cluster import Cluster
from systems.superscaler.elimination import Problem, by_program, solve, within
from systems.superscaler.interop import Variant, cut
from systems.superscaler.intraop import Choices, Spread, units_of
from systems.superscaler.recipes import Recipe, StageRecipe, by_key
from systems.superscaler.search import search
from systems.superscaler.simulate import simulate
from systems.superscaler.spaces import SPACES, divide, microbatches, only, together
from systems.superscaler.steps import Prices

QUICK = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def problems(draw, most=7):
    """A random graph of choices; a tenth of the pairs are forbidden, though never all of a table."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    problem = Problem()
    for _ in range(draw(st.integers(1, most))):
        problem.variable(rng.integers(0, 20, rng.integers(1, 5)))
    for i in range(len(problem.unary)):
        for j in range(i):
            if rng.random() < 0.5:
                costs = rng.integers(0, 20, (len(problem.unary[i]), len(problem.unary[j]))).astype(float)
                costs[1:][rng.random(costs[1:].shape) < 0.1] = np.inf
                problem.couple(i, j, costs)
    weights = [rng.integers(0, 10, len(u)).astype(float) for u in problem.unary]
    return problem, weights


@QUICK
@given(problems())
def test_elimination_equals_ilp(case):
    problem, _ = case
    found, reference = solve(problem), by_program(problem)
    assert found.cost == pytest.approx(problem.cost(found.choice))
    assert found.cost == pytest.approx(reference.cost)
    assert found.gap == 0.0


@QUICK
@given(problems(most=5), st.floats(0.0, 1.0))
def test_memory_as_a_constraint_keeps_its_limit_and_its_bound(case, share):
    problem, weights = case
    least, most = (sum(float(f(w)) for w in weights) for f in (np.min, np.max))
    limit = least + share * (most - least)
    try:
        best = by_program(problem, weights, limit)
    except InvalidPlan:
        with pytest.raises(InvalidPlan, match="nothing weighs less"):
            within(problem, weights, limit)
        return
    found = within(problem, weights, limit)
    assert found.weight <= limit
    assert found.bound - 1e-9 <= best.cost <= found.cost + 1e-9
    assert found.cost == pytest.approx(problem.cost(found.choice))


def every_cut(variants, devices, microbatches, memory):
    """The least objective over all cuts, all numbers of stages and all variants of each."""
    count, best = len(variants[0].seconds), np.inf
    for picked in range(2 ** (count - 1)):
        ends = [i + 1 for i in range(count - 1) if picked >> i & 1] + [count]
        spans = list(itertools.pairwise([0, *ends]))
        for chosen in itertools.product(variants, repeat=len(spans)):
            if sum(v.devices for v in chosen) > devices:
                continue
            needed = [
                v.fixed[a:b].sum() + min(len(spans) - i, microbatches) * v.flying[a:b].sum() + v.transient[a:b].max()
                for i, (v, (a, b)) in enumerate(zip(chosen, spans, strict=True))
            ]
            if max(needed) <= memory:
                times = [v.seconds[a:b].sum() for v, (a, b) in zip(chosen, spans, strict=True)]
                best = min(best, (microbatches - 1) * max(times) + sum(times))
    return best


@QUICK
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 8), st.integers(1, 5))
def test_cut_equals_brute_force(seed, count, devices, microbatches):
    rng = np.random.default_rng(seed)
    sizes = [m for m in (1, 2, 3, 4) if m <= devices][: 1 + rng.integers(3)]
    variants = [Variant(m, *(rng.integers(1, 9, count).astype(float) / m for _ in range(4))) for m in sizes]
    memory = float(rng.integers(8, 60))
    wanted = every_cut(variants, devices, microbatches, memory)
    found = cut(variants, devices, microbatches, memory, gap=0.0, most=10_000)
    if found is None:
        assert wanted == np.inf
        return
    assert found.objective == pytest.approx(wanted)
    assert found.bound <= wanted * (1 + 1e-9)
    assert [s.first for s in found.stages] == [0, *(s.last for s in found.stages[:-1])]
    assert found.stages[-1].last == count


# ------------------------------------------------------------------------------------------------ whole searches


def cluster(**changes):
    """Four small devices on two nodes; kernels and links of one speed, so that plans matter."""
    fields = {"nodes": 2, "per_node": 2, "memory": 1e12, "flops": 1e9, "memory_bandwidth": 1e9, "inside": 1e9,
              "between": 1e8, "inside_latency": 1e-6, "between_latency": 1e-6, "launch": 1e-6}  # fmt: skip
    return Cluster(**{**fields, **changes})


SIZES = {
    "gpt": lambda: models.gpt(layers=4, width=32, vocabulary=64, length=16),
    "multilingual": lambda: models.multilingual(layers=2, width=32, vocabulary=512, length=16),
    "swin": models.swin,
    "evoformer": lambda: models.evoformer(recycles=1, residues=4),
}


@functools.cache
def sample_of(name):
    return SIZES[name]()


@functools.cache
def graph_of(name):
    return capture(sample_of(name).model, sample_of(name).batch)


@functools.cache
def reference_of(name):
    return serial(sample_of(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swin", "gpt", "multilingual"])
def test_intra_op_choices_of_a_model_equal_ilp(name):
    graph = graph_of(name)
    choices = Choices(graph, cluster(), Spread(1, 2, 4), units_of(graph))
    problem, _ = choices.problem()
    assert solve(problem).cost == pytest.approx(by_program(problem).cost)


def test_a_move_over_one_digit_is_the_shortest_path():
    """What two neighbours cost together is what `path` finds between their layouts."""
    graph, machine = graph_of("gpt"), cluster()
    choices = Choices(graph, machine, Spread(1, 4, 4), units_of(graph))
    slots = ((4,), (4,))
    for a, b in itertools.product(("R", "V", 0, 1), ("R", 0, 1)):
        source, target = (Layout((4,), slots, (x if isinstance(x, str) else (x, 0),)) for x in (a, b))
        elements = 4096.0
        found = path(source, target, (64, 64), lambda kind, n, x: machine.collective_seconds(kind, range(n), 4 * x))
        assert choices.moved(4 * elements, a, b) == pytest.approx(found.cost)


def stages_of(graph, prices, dp, tp, pp, m, how, kept, zero, interlaced):
    probe = Recipe(tuple(StageRecipe(i, i + 1, dp, tp) for i in range(pp)), m, zero, interlaced)
    prices = prices.shared(probe) if interlaced else prices
    n, spread = len(prices.units), Spread(dp, tp, graph.samples // m // dp)
    chosen, parts = prices.co_sharded(spread, m, 2) if how == "co-shard" else (prices.chosen(spread, m, how), {})
    return Recipe(
        tuple(
            StageRecipe(n * i // pp, n * (i + 1) // pp, dp, tp, by_key(prices.units, chosen), kept,
                        by_key(prices.units, parts))
            for i in range(pp)
        ), m, zero, interlaced,
    )  # fmt: skip


RECIPES = [
    (4, 1, 1, 1, "megatron", "none", 0, False), (4, 1, 1, 1, "megatron", "none", 3, False),
    (1, 4, 1, 1, "megatron", "none", 0, False), (2, 2, 1, 1, "best", "none", 1, False),
    (1, 1, 4, 4, "megatron", "segment", 0, False), (1, 2, 2, 4, "best", "none", 0, False),
    (2, 1, 2, 4, "megatron", "none", 1, False), (1, 2, 2, 4, "megatron", "none", 0, True),
    (1, 2, 2, 4, "co-shard", "segment", 0, False),
]  # fmt: skip


@pytest.mark.parametrize("name", ["gpt", *(pytest.param(n, marks=pytest.mark.slow) for n in ("swin", "multilingual"))])
def test_compressed_simulation_equals_full(name):
    """Stages as one device each against every device of the built programs: seconds and peaks."""
    graph, machine = graph_of(name), cluster()
    prices = Prices(graph, machine)
    times, peaks = [], []
    for case in RECIPES:
        dp, m = case[0], case[3]
        if graph.samples < dp * m:
            continue
        recipe = stages_of(graph, prices, *case)
        trace, estimate = simulate(recipe.program(graph).build(verify=False), machine), prices.estimate(recipe)
        times.append(estimate.seconds / trace.step_seconds)
        peaks.append(estimate.peak / max(trace.peak_bytes))
    print([round(t, 3) for t in times], [round(p, 3) for p in peaks])
    assert np.median(np.abs(np.array(times) - 1)) <= 0.1
    assert max(abs(t - 1) for t in times) <= 0.25
    assert max(abs(p - 1) for p in peaks) <= 0.35


@pytest.mark.parametrize("name", ["gpt", *(pytest.param(n, marks=pytest.mark.slow) for n in ("swin", "multilingual"))])
@pytest.mark.parametrize("memory", [9e5, pytest.param(1e12, marks=pytest.mark.slow)])
@pytest.mark.claim("superscaler/speedup-max-ordering")
def test_full_space_never_loses(claim, name, memory):
    graph = graph_of(name)
    for per_node in (1, 4):
        machine = cluster(nodes=4 // per_node, per_node=per_node, memory=memory, fused_attention=False)
        prices = Prices(graph, machine)
        best = {}
        for space in SPACES:
            try:
                best[space] = search(graph, machine, space=space, prices=prices).best.seconds
            except OutOfMemory as error:
                print(error)
        assert "full" in best
        for space, seconds in best.items():
            assert claim.holds(seconds / best["full"]), (space, best)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "gpt")) for n in SIZES])
def test_found_plans_are_built_verified_and_run_equal_to_serial(name):
    graph, machine = graph_of(name), cluster(between=1e7)
    found = search(graph, machine, simulated=1, constraints=[microbatches(2, 4)])
    plans = [found.recipe, *(c.recipe for c in found.runners_up[:2])]
    assert found.best.seconds == simulate(found.build(graph), machine).step_seconds
    for recipe in plans:
        in_memory_equals(recipe.program(graph).build(), sample_of(name), reference_of(name))


def tight(graph, space="full"):
    """The least memory, within a few per cent, for which there is a plan."""
    with pytest.raises(OutOfMemory, match=r"the closest needs .* MiB, .* MiB more: .* micro-batches") as caught:
        search(graph, cluster(memory=1e4), space=space, constraints=[microbatches(4, 8)])
    return float(re.search(r"closest needs ([\d.]+) MiB", str(caught.value))[1]) * 2**20


def test_spaces_contain_each_other_as_the_systems_do():
    assert all(space.within(SPACES["full"]) for space in SPACES.values())
    assert SPACES["megatron"].within(SPACES["alpa"])
    assert SPACES["deepspeed"].within(SPACES["alpa"])
    assert not SPACES["full"].within(SPACES["alpa"])
    assert not SPACES["alpa"].within(SPACES["megatron"])
    with pytest.raises(InvalidPlan, match="none, uniform or free"):
        dataclasses.replace(SPACES["full"], pipeline="twisted")


def test_no_feasible_plan_names_the_closest_and_what_is_missing():
    graph = graph_of("gpt")
    least = tight(graph)
    rules = [microbatches(4, 8)]
    assert search(graph, cluster(memory=1.01 * least), constraints=rules).best.estimate.peak <= 1.01 * least
    with pytest.raises(OutOfMemory, match="more"):
        search(graph, cluster(memory=0.9 * least), constraints=rules)


@pytest.mark.claim("superscaler/new-plans-outside")
def test_searches_of_earlier_spaces_do_not_find_the_new_plans(claim):
    graph = graph_of("multilingual")
    new = 0
    for space in ("megatron", "alpa", "deepspeed"):
        found = search(graph, cluster(memory=3e6, fused_attention=False), space=space)
        recipes = [found.recipe, *(c.recipe for c in found.runners_up)]
        new += sum(r.co_sharded or r.interlaced for r in recipes)
    assert claim.holds(new)


def test_new_plans_are_found_where_memory_is_short():
    """With attention that keeps its scores, on as little memory as there is any plan for, the best one is a new one."""
    sample = models.gpt(layers=4, width=16, heads=8, length=64, vocabulary=16, samples=4)
    graph = capture(sample.model, sample.batch)
    machine = cluster(nodes=1, per_node=2, fused_attention=False)
    least = {}
    for space in ("megatron", "full"):
        with pytest.raises(OutOfMemory) as caught:
            search(graph, cluster(nodes=1, per_node=2, fused_attention=False, memory=1e4), space=space)
        least[space] = float(re.search(r"closest needs ([\d.]+) MiB", str(caught.value))[1]) * 2**20
    assert least["full"] < 0.8 * least["megatron"]
    found = search(graph, dataclasses.replace(machine, memory=1.02 * least["full"]))
    assert found.recipe.co_sharded or found.recipe.interlaced


# --------------------------------------------------------------------------------------------------- constraints


@pytest.mark.claim("superscaler/search-pruning-cost")
def test_constraints_remove_candidates_and_lose_nothing(claim):
    graph, machine = graph_of("gpt"), cluster()
    free = search(graph, machine)
    best = free.recipe
    rules = [microbatches(best.microbatches), divide(tp=sorted({s.tp for s in best.stages}),
                                                     dp=sorted({s.dp for s in best.stages}))]  # fmt: skip
    pruned = search(graph, machine, constraints=rules)
    assert sum(pruned.tried.values()) < sum(free.tried.values()) / 2
    assert all(n > 0 for n in pruned.removed.values())
    assert claim.holds(pruned.best.seconds / free.best.seconds)


@pytest.mark.claim("superscaler/search-pruning")
def test_constraints_make_the_search_cheaper(claim):
    """What a user knows here: how many micro-batches, and that a stage is at most two devices wide."""
    graph, machine = graph_of("gpt"), cluster()
    seconds, tried = [], []
    for rules in ([], [microbatches(4), divide(tp=[1, 2], dp=[1])]):
        start = time.perf_counter()
        found = search(graph, machine, constraints=rules)
        seconds.append(time.perf_counter() - start)
        tried.append(sum(found.tried.values()))
    assert tried[1] < tried[0]
    claim.report(seconds[0] / seconds[1], f"{tried[0]} variants, cuts and candidates without, {tried[1]} with")


def test_constraints_hold():
    graph, machine = graph_of("gpt"), cluster()
    found = search(graph, machine, constraints=[only("feedforward", ["", "b"]), together("layers.0", "layers.2")])
    for stage in found.recipe.stages:
        units = units_of(graph)
        for unit in units[stage.first : stage.last]:
            for i, op in enumerate(unit.ops):
                if "feedforward" in op.module:
                    assert stage.cuts.get(f"{unit.kind}.{i}", "") in ("", "b")
    assert not any(stage.first in (1, 2) for stage in found.recipe.stages)
    with pytest.raises(InvalidPlan, match=r"no block 'layers\.9'"):
        search(graph, machine, constraints=[together("layers.0", "layers.9")])
    with pytest.raises(InvalidPlan, match="no regular expression"):
        only("(", ["b"])
    with pytest.raises(InvalidPlan, match="megatron, alpa, deepspeed, full"):
        search(graph, machine, space="everything")


# --------------------------------------------------------------------------------------------------- plan files


def test_a_saved_plan_applies_to_another_length_and_batch(tmp_path):
    graph = graph_of("gpt")
    recipe = search(graph, cluster(), constraints=[microbatches(2)]).recipe
    recipe.save(tmp_path / "plan.json", graph)
    longer = models.gpt(layers=4, width=32, vocabulary=64, length=24, samples=12)
    other = capture(longer.model, longer.batch)
    again = Recipe.load(tmp_path / "plan.json", other)
    assert again == recipe
    in_memory_equals(again.program(other).build(), longer, serial(longer))


def test_plan_files_that_do_not_fit_are_refused(tmp_path):
    graph, file = graph_of("gpt"), tmp_path / "plan.json"
    Recipe((StageRecipe(0, 4, 1, 1),), 1).save(file, graph)
    assert Recipe.load(file, graph, exactly=True).devices == 1
    text = file.read_text()
    with pytest.raises(PlanMismatch, match=r"is for blocks \w+, this graph has \w+"):
        Recipe.load(file, graph_of("swin"))
    other = models.gpt(layers=4, width=32, vocabulary=64, length=24)
    with pytest.raises(PlanMismatch, match=r"is for graph \w+, this is \w+"):
        Recipe.load(file, capture(other.model, other.batch), exactly=True)
    for old, new, said in (
        ('"version": 1', '"version": 2', "has version 2, this is version 1"),
        ('"microbatches": 1', '"microbatches": 8', "was changed"),
        ('"stages"', '"phases"', "was changed"),
        (text, "{}", "is no plan file"),
        (text, "\x00", "is no plan file"),
        (text, "[1, 2]", "is no plan file"),
    ):
        file.write_text(text.replace(old, new))
        with pytest.raises(PlanMismatch, match=said):
            Recipe.load(file, graph)
