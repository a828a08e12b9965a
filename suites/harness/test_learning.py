"""From runs to criteria: which samples count, and thresholds that hold over all metrics of a run."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from fixtures.learning import learn_criteria
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
