"""From runs to criteria: which samples count, and thresholds that hold over all metrics of a run."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from systems.anubis.judging import judge
from systems.anubis.learning import learn_criteria, series_window
from systems.anubis.machine import Machine, Noise
from systems.anubis.records import Measurement, Run, Runs

METRICS = 30
MACHINE = Machine(kind="x", node="0" * 16, stack="one")


def row(metric, value, **fields):
    return Measurement(
        suite="hardware", test="t", component="compute", metric=f"hardware/x/{metric}", unit="op/s", better="higher",
        values=(float(value),), **fields,
    )  # fmt: skip


def runs_of(table, **fields):
    """table: (runs, metrics)."""
    began = datetime(2026, 1, 1, tzinfo=UTC)
    return Runs(
        tuple(
            Run(
                MACHINE,
                began + timedelta(hours=i),
                f"{i:016x}",
                rows=tuple(row(m, v, **fields) for m, v in enumerate(values)),
            )
            for i, values in enumerate(table)
        )
    )


def noise(random, runs, together):
    """(runs, metrics) around 100 with spreads of 0.5 to 12 %, and one correlation between any two metrics."""
    shared = random.standard_normal((runs, 1)) * np.sqrt(together)
    own = random.standard_normal((runs, METRICS)) * np.sqrt(1 - together)
    return 100 * np.exp(np.geomspace(0.005, 0.12, METRICS) * (shared + own))


@pytest.mark.parametrize("together", [0.0, 0.9])
def test_with_enough_runs_the_thresholds_hold_for_a_whole_run(together):
    """A tenth of healthy runs may fail in one try, whichever metrics they fail in: three tries make a hundredth."""
    random = np.random.default_rng(0)
    alarms = []
    for _ in range(4):
        outcome = learn_criteria(runs_of(noise(random, 120, together)), "one")
        assert len(outcome.criteria) == METRICS
        assert all(stored.criterion.calibrated for stored in outcome.criteria.values())
        for fresh in noise(random, 1000, together):
            verdicts = [outcome.criteria[f"hardware/x/{m}"].criterion.judge([v]) for m, v in enumerate(fresh)]
            alarms.append(any(verdict.status == "defect" for verdict in verdicts))
    assert np.mean(alarms) <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / 480)  # the quantile itself stands on 480 runs


def test_with_few_runs_each_metric_has_its_share_and_says_that_it_is_provisional():
    outcome = learn_criteria(runs_of(noise(np.random.default_rng(1), 6, 0.5)), "one")
    assert outcome.criteria
    assert not any(stored.criterion.calibrated for stored in outcome.criteria.values())


def test_a_metric_that_some_runs_lack_is_learned_from_the_others():
    table = noise(np.random.default_rng(2), 60, 0.0)
    runs = runs_of(table)
    short = Runs((*runs.runs[:50], *(Run(MACHINE, r.started, r.run_id, rows=r.rows[1:]) for r in runs.runs[50:])))
    outcome = learn_criteria(short, "one")
    assert len(outcome.criteria) == METRICS
    assert outcome.criteria["hardware/x/0"].criterion.nodes == 50


def test_runs_of_another_stack_and_samples_under_pressure_do_not_count():
    quiet = runs_of(noise(np.random.default_rng(3), 30, 0.0)).runs
    busy = runs_of(noise(np.random.default_rng(4), 30, 0.0) / 2, noise=Noise(foreign=0.8)).runs
    other = [Run(Machine(kind="x", node="0" * 16, stack="two"), r.started, r.run_id, rows=r.rows) for r in quiet]
    busy = tuple(Run(MACHINE, r.started, f"b{r.run_id[1:]}", rows=r.rows) for r in busy)
    outcome = learn_criteria(Runs((*quiet, *busy, *other)), "one")
    assert (outcome.runs, outcome.left_out, outcome.pressed) == (60, 30, 0)
    assert all(95 < np.median(stored.criterion.quantiles) < 106 for stored in outcome.criteria.values())


def test_runs_under_an_injected_fault_teach_nothing():
    healthy = runs_of(noise(np.random.default_rng(5), 30, 0.0)).runs
    slow = [
        Run(MACHINE, r.started, f"f{r.run_id[1:]}", facts={"fault": "cpu_quota(0.3)"}, rows=r.rows)
        for r in runs_of(noise(np.random.default_rng(6), 30, 0.0) / 2).runs
    ]
    outcome = learn_criteria(Runs((*healthy, *slow)), "one")
    assert (outcome.runs, outcome.left_out) == (30, 0)
    assert all(stored.criterion.nodes == 30 for stored in outcome.criteria.values())


# --- windows of step series

STEPS, BEFORE = 64, 6


def series(random, nodes=8):
    """(nodes, steps) rates: slow for eight steps after the test's own warm-up, then steady within half a percent."""
    warm = np.where(np.arange(STEPS) < 8, 0.7, 1.0)
    return 100 * warm * (1 + 0.002 * random.standard_normal((nodes, 1))) * np.exp(
        0.002 * random.standard_normal((nodes, STEPS))
    )  # fmt: skip


def step_rows(values, warmup=BEFORE, step_number=0):
    began = datetime(2026, 1, 1, tzinfo=UTC)
    return [
        Run(
            MACHINE,
            began + timedelta(hours=i, days=step_number),
            f"{step_number}{i:015x}",
            rows=(replace(row("step", 1), values=tuple(v), series=True, warmup=warmup, rounds=len(v)),),
        )
        for i, v in enumerate(values)
    ]


def test_a_step_series_is_judged_by_a_window_that_leaves_its_warm_up_out():
    random = np.random.default_rng(7)
    outcome = learn_criteria(Runs(tuple(step_rows(series(random)))), "one")
    (stored,) = outcome.criteria.values()
    assert outcome.windows == 1
    assert stored.window["warmup"] >= BEFORE + 8
    assert stored.window["steps"] + stored.window["warmup"] <= BEFORE + STEPS // 2
    assert stored.criterion.quantiles.min() > 95  # nothing of the warm-up

    whole = step_rows(series(random))
    first = stored.window["warmup"] - BEFORE
    for run in whole:
        part = run.rows[0].values[first : first + stored.window["steps"]]
        windowed = replace(run.rows[0], values=part, warmup=stored.window["warmup"], rounds=len(part))
        assert stored.part(run.rows[0]) == part == stored.part(windowed)
        slow = replace(windowed, values=tuple(0.8 * v for v in part))
        slow_whole = replace(run.rows[0], values=tuple(0.8 * v for v in run.rows[0].values))
        for healthy in (windowed, run.rows[0]):
            assert judge(healthy, stored).status == "pass"
        for ill in (slow, slow_whole):
            assert judge(ill, stored).status == "defect"
        assert judge(slow, stored).similarity == judge(slow_whole, stored).similarity


def test_runs_of_a_window_and_of_all_steps_are_learned_together_and_the_window_stays():
    random = np.random.default_rng(8)
    full = step_rows(series(random))
    window = series_window([(run, run.rows[0]) for run in full])
    first = window["warmup"] - BEFORE
    gates = step_rows(series(random, 20)[:, first : first + window["steps"]], window["warmup"], 1)
    both = learn_criteria(Runs((*full, *gates)), "one").criteria["hardware/x/step"]
    assert both.window == window
    assert both.criterion.nodes == 28
    few = learn_criteria(Runs((*full[:2], *gates)), "one").criteria["hardware/x/step"]
    assert few.window == window  # not sought within itself, which would shrink it time and again
    assert few.criterion.nodes == 22


def test_a_series_without_a_shorter_window_and_rounds_of_a_call_keep_all_of_their_values():
    random = np.random.default_rng(9)
    drifting = 100 * np.linspace(1, 2, STEPS) * (1 + 0.001 * random.standard_normal((8, STEPS)))
    stored = learn_criteria(Runs(tuple(step_rows(drifting))), "one").criteria["hardware/x/step"]
    assert stored.window is None
    rounds = [Run(r.machine, r.started, r.run_id, rows=(replace(r.rows[0], series=False),))
              for r in step_rows(series(random))]  # fmt: skip
    assert learn_criteria(Runs(tuple(rounds)), "one").criteria["hardware/x/step"].window is None


def test_a_series_that_ended_before_its_window_is_judged_as_far_as_it_goes():
    stored = learn_criteria(Runs(tuple(step_rows(series(np.random.default_rng(10))))), "one").criteria[
        "hardware/x/step"
    ]
    short = replace(row("step", 1), values=(50.0, 50.0), series=True, warmup=BEFORE, rounds=2)
    assert stored.part(short) == (50.0, 50.0)
    assert judge(short, stored).status == "defect"
