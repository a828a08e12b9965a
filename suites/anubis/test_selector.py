"""The Selector against brute force, and the simulator against the case that can be solved by hand."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from systems.anubis.selector import (
    BudgetTooSmall,
    History,
    SelectorError,
    UnknownBenchmark,
    coverage_needed,
    decide,
    plan,
    risk,
)
from systems.anubis.simulator import ImpossibleScenario, Scenario, interval, simulate, sweep

NAMES = "abcdefgh"


@st.composite
def cases(draw, most=6):
    """A history over a few benchmarks, and their minutes."""
    names = NAMES[: draw(st.integers(1, most))]
    total = draw(st.integers(1, 14))
    caught = {name: draw(st.sets(st.integers(0, total - 1))) for name in names}
    minutes = {name: draw(st.integers(1, 20)) / 2 for name in names}
    return History.of(caught, total), minutes


def subsets(minutes):
    return (chosen for k in range(len(minutes) + 1) for chosen in itertools.combinations(sorted(minutes), k))


def cost(chosen, minutes):
    return sum(minutes[name] for name in chosen)


chances = st.lists(st.floats(0, 0.3), min_size=1, max_size=8)


@settings(max_examples=150)
@given(cases(), chances, st.floats(0.01, 0.6))
def test_the_exact_plan_costs_what_brute_force_finds(case, p, p0):
    history, minutes = case
    found = plan(p, history, minutes, p0=p0)
    feasible = [cost(s, minutes) for s in subsets(minutes) if risk(p, history.coverage(s)) <= p0 + 1e-9]
    assert found.reached == bool(feasible)
    if feasible:
        assert found.minutes == pytest.approx(min(feasible))
        assert found.residual <= p0 + 1e-9
        assert plan(p, history, minutes, p0=p0, method="greedy").minutes >= found.minutes - 1e-9
    else:
        assert found.coverage == pytest.approx(history.coverage(minutes))


@settings(max_examples=150)
@given(cases(), st.floats(0.5, 30))
def test_within_a_budget_the_exact_plan_covers_what_brute_force_finds(case, budget):
    history, minutes = case
    if budget < min(minutes.values()):
        with pytest.raises(BudgetTooSmall, match="cheapest is"):
            plan([0.9], history, minutes, p0=0.01, budget=budget)
        return
    found = plan([0.9], history, minutes, p0=0.01, budget=budget)
    most = max(history.coverage(s) for s in subsets(minutes) if cost(s, minutes) <= budget)
    assert found.minutes <= budget + 1e-6
    assert found.coverage == pytest.approx(most)
    greedy = plan([0.9], history, minutes, p0=0.01, budget=budget, method="greedy")
    assert greedy.minutes <= budget + 1e-6
    assert greedy.coverage <= found.coverage + 1e-9


@settings(max_examples=60)
@given(cases(), chances, st.floats(0.1, 100))
def test_the_decision_costs_what_brute_force_finds(case, p, lost):
    history, minutes = case

    def expected(chosen):
        return len(p) * (cost(chosen, minutes) / 60 + risk(p, history.coverage(chosen)) * lost)

    found = decide(p, history, minutes, hours_lost_per_incident=lost)
    assert expected(found.benchmarks) == pytest.approx(min(map(expected, subsets(minutes))), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_twelve_benchmarks_are_planned_as_by_brute_force(seed):
    generator = np.random.default_rng(seed)
    names = [f"b{i:02d}" for i in range(12)]
    caught = {name: set(generator.choice(400, generator.integers(20, 120), replace=False).tolist()) for name in names}
    history, minutes = History.of(caught, 400), {name: float(generator.integers(1, 30)) for name in names}
    p, p0 = [0.01] * 20, 0.1
    best = min(cost(s, minutes) for s in subsets(minutes) if risk(p, history.coverage(s)) <= p0)
    assert plan(p, history, minutes, p0=p0).minutes == best


@settings(max_examples=40)
@given(cases(), st.floats(0.02, 0.9))
def test_the_integer_program_gives_what_looking_at_every_subset_gives(case, p0):
    history, minutes = case
    enumerated = plan([0.9], history, minutes, p0=p0), plan([0.9], history, minutes, p0=0.01, budget=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("systems.anubis.selector.ENUMERATED", 0)
        by_program = plan([0.9], history, minutes, p0=p0), plan([0.9], history, minutes, p0=0.01, budget=20)
    for one, other in zip(enumerated, by_program, strict=True):
        assert other.reached == one.reached
        assert other.minutes == pytest.approx(one.minutes)
        assert other.coverage == pytest.approx(one.coverage)


@given(cases(), chances, st.floats(0.01, 0.5), st.floats(0.0, 0.4))
def test_a_looser_target_never_costs_more(case, p, p0, more):
    history, minutes = case
    tight, loose = plan(p, history, minutes, p0=p0), plan(p, history, minutes, p0=p0 + more)
    if tight.reached:
        assert loose.reached
        assert loose.minutes <= tight.minutes + 1e-9


@given(chances, st.floats(0, 1))
def test_the_risk_is_that_of_independent_nodes(p, coverage):
    assert risk(p, coverage) == pytest.approx(1 - math.prod(1 - x * (1 - coverage) for x in p), abs=1e-12)


@given(chances, st.floats(0.001, 0.9))
def test_the_needed_coverage_is_the_least_that_meets_the_target(p, p0):
    needed = coverage_needed(p, p0)
    assert risk(p, needed) <= p0 + 1e-9
    assert needed == 0 or risk(p, max(needed - 1e-6, 0)) > p0 - 1e-9


def test_a_short_history_claims_less_than_it_saw():
    history = History.of({"a": {1, 2, 3}, "b": {4}}, 4)
    assert history.unseen == 0.25  # one pattern of the four defects was seen once
    assert history.coverage("ab") == 0.75


def test_no_validation_where_the_risk_is_low_already():
    history = History.of({"a": {1, 2}}, 2)
    assert plan([0.001] * 4, history, {"a": 5.0}).benchmarks == ()


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ({"minutes": {"z": 1.0}}, UnknownBenchmark, "z"),
    ({"minutes": {}}, SelectorError, "minutes"),
    ({"minutes": {"a": 0.0}}, SelectorError, "minutes"),
    ({"p": []}, SelectorError, "at least one node"),
    ({"p": [1.2]}, SelectorError, r"\[0, 1\]"),
    ({"p": [float("nan")]}, SelectorError, r"\[0, 1\]"),
    ({"p0": 0.0}, SelectorError, "p0"),
    ({"budget": -1.0}, SelectorError, "budget"),
    ({"budget": 0.5}, BudgetTooSmall, "cheapest is a with 1"),
    ({"method": "best"}, SelectorError, "method"),
])
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        plan(**{"p": [0.5], "history": History.of({"a": {1, 2}}, 2), "minutes": {"a": 1.0}, **arguments})


def test_an_empty_or_inconsistent_history_is_refused(tmp_path):
    with pytest.raises(SelectorError, match="empty history"):
        History.of({"a": set()}, 0)
    with pytest.raises(SelectorError, match="inconsistent"):
        History.of({"a": {1, 2, 3}}, 2)
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(SelectorError, match="not a history"):
        History.load(tmp_path / "bad.json")


@given(cases())
def test_a_history_survives_its_file(tmp_path_factory, case):
    path = tmp_path_factory.mktemp("history") / "history.json"
    path.write_text(case[0].to_json())
    assert History.load(path) == case[0]


# --- the simulator

SOLVABLE = {"nodes": 400, "days": 240.0, "first": 400.0, "twentieth": 400.0, "sudden": 0.0, "imperfect": 0.0,
            "latency": 0.01, "repair_day": 0.02, "repair_two_weeks": 0.001}
"""Every defect lies latent, breaks the very next job, is repaired for good, and nodes do not wear: gain 1 / (1 - c)."""


def covered(share):
    defects = set(range(round(share * 1000)))
    return {"history": History.of({"only": defects}, 1000), "minutes": {"only": 1.0}, "random_count": 1}


@pytest.mark.parametrize("c", [0.5, 0.8])
def test_the_simulated_gain_of_full_validation_is_the_closed_form(c):
    scenario = Scenario(**SOLVABLE, **covered(c))
    outcomes = sweep(scenario, ("none", "full"), seeds=3)
    gain = np.mean([o.mtbi for o in outcomes["full"]]) / np.mean([o.mtbi for o in outcomes["none"]])
    assert gain == pytest.approx(1 / (1 - c), rel=0.05)


@pytest.mark.claim("anubis/mtbi-gain-closed-form")
def test_the_closed_form_at_the_reference_coverage(claim):
    scenario = Scenario(**{**SOLVABLE, "nodes": 800}, **covered(0.9))
    outcomes = sweep(scenario, ("none", "full"), seeds=4)
    gain = np.mean([o.mtbi for o in outcomes["full"]]) / np.mean([o.mtbi for o in outcomes["none"]])
    assert claim.holds(abs(gain * 0.1 - 1))


def test_a_simulation_is_repeatable_and_its_policies_are_in_order():
    scenario = Scenario(nodes=128, days=45)
    assert simulate(scenario, "full", 3) == simulate(scenario, "full", 3)
    assert simulate(scenario, "full", 3) != simulate(scenario, "full", 4)
    mtbi = {policy: simulate(scenario, policy).mtbi for policy in ("none", "random", "full", "oracle")}
    assert mtbi["none"] < mtbi["random"] < mtbi["full"] < mtbi["oracle"]


@pytest.fixture(scope="module")
def reference():
    return sweep(Scenario(nodes=256, days=60), ("none", "full", "selector"), seeds=12)


def ratios(reference, name, of, over):
    return [getattr(a, name) / getattr(b, name) for a, b in zip(reference[of], reference[over], strict=True)]


@pytest.mark.claim("anubis/mtbi-gain")
def test_the_selector_lengthens_the_time_between_incidents(claim, reference):
    assert claim.holds(interval(ratios(reference, "mtbi", "selector", "none")).low)


@pytest.mark.claim("anubis/gpu-hours")
def test_the_selector_gives_more_useful_hours_than_no_validation(claim, reference):
    assert claim.holds(interval(ratios(reference, "utilisation", "selector", "none")).low)


@pytest.mark.claim("anubis/gpu-hours-vs-full")
def test_the_selector_gives_about_the_useful_hours_of_the_full_set(claim, reference):
    x = interval(ratios(reference, "utilisation", "selector", "full"))
    claim.report(x.mean, "256 nodes, gangs of 32: validation saved, incidents lose; the bar of 1 is open")
    assert x.low > 0.95


@pytest.mark.claim("anubis/mtbi-vs-full")
def test_the_selector_keeps_most_of_the_full_sets_time_between_incidents(claim, reference):
    x = interval(ratios(reference, "mtbi", "selector", "full")).mean
    claim.report(x, "256 nodes, gangs of 32, p0 = 0.05: the bar of 0.95 is not reached at this target risk")
    assert 0.75 < x < 1.1


@pytest.mark.claim("anubis/validation-time")
def test_the_selector_saves_validation_time(claim, reference):
    saved = 100 * (1 - interval(ratios(reference, "validation_hours", "selector", "full")).mean)
    claim.report(saved, "256 nodes, gangs of 32, p0 = 0.05: the bar of 60 % is not reached in this scenario")
    assert saved > 5


@pytest.mark.parametrize(("change", "message"), [
    ({"gang": 9, "nodes": 8}, "gangs of 9"), ({"days": 0.0}, "days"), ({"sudden": 1.5}, "sudden"),
    ({"first": float("nan")}, "first"), ({"repair_day": 0.1, "repair_two_weeks": 0.2}, "two weeks"),
    ({"minutes": {"unheard": 1.0}}, "unheard"), ({"random_count": 99}, "random_count"),
])
def test_an_impossible_scenario_is_refused_by_name(change, message):
    with pytest.raises(ImpossibleScenario, match=message):
        Scenario(**change)


def test_an_unknown_policy_is_refused():
    with pytest.raises(ImpossibleScenario, match="oracle"):
        simulate(Scenario(), "best")
