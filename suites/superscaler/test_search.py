"""The search against references that know nothing of it: an integer program, and every cut by brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from systems.superscaler import InvalidPlan
from systems.superscaler.elimination import Problem, by_program, solve, within
from systems.superscaler.interop import Variant, cut

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
