"""Trends over many run files: what is a step, what is none, and how the report and the command tell it."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from reports.__main__ import main
from reports.page import html, report_json
from reports.summary import gather, summarise
from reports.trend import FEWEST_RUNS, trends
from systems.anubis.machine import Machine, Noise
from systems.anubis.records import Measurement, Run, read_runs, write_run
from systems.anubis.units import quantity

BEGAN = datetime(2026, 1, 1, 3, tzinfo=UTC)
STEP = "hardware/memory/triad/throughput"
CREEPS = "hardware/disk/fsync/time"
STEADY = "hardware/compute/gemm/throughput{n=1024}"


def row(name, value, unit, better, **fields):
    metric, _, params = name.partition("{")
    spread = value * np.array([0.99, 1.0, 1.02])
    return Measurement(
        suite="hardware", test="t", component=name.split("/")[1], metric=metric, unit=unit, better=better,
        values=tuple(spread), params=dict([params.rstrip("}").split("=")]) if params else {}, **fields,
    )  # fmt: skip


def night(i, *rows, node="a" * 16, **facts):
    machine = Machine(kind="x", node=node, stack="s", facts={"hostname": f"host-{node[0]}"})
    return Run(machine, BEGAN + timedelta(days=i), f"{node[0]}{i:015x}", facts=facts, rows=tuple(rows))


@pytest.fixture(scope="module")
def nights():
    """Sixty nights: one metric loses 8 % in the thirty-first, one creeps up by 20 %, one is steady."""
    random = np.random.default_rng(0)
    level = np.where(np.arange(60) < 30, 100e9, 92e9)
    creep = 1e-3 * (1 + 0.2 * np.arange(60) / 59)
    return [
        night(
            i,
            row(STEP, level[i] * (1 + 0.01 * random.standard_normal()), "B/s", "higher"),
            row(CREEPS, creep[i] * (1 + 0.01 * random.standard_normal()), "s", "lower"),
            row(STEADY, 5e12 * (1 + 0.01 * random.standard_normal()), "FLOP/s", "higher"),
        )
        for i in range(60)
    ]


def by_id(runs):
    return {(trend.id, trend.node[0]): trend for trend in trends(runs)}


def test_a_step_and_a_drift_are_told_with_night_size_and_side(nights):
    found = by_id(nights)
    (step,) = found[STEP, "a"].steps
    assert (step.at, step.run_id) == (30, nights[30].run_id)
    assert step.started == "2026-01-31T03:00:00+00:00"
    assert step.change == pytest.approx(-0.08, abs=0.01)
    assert step.worse is True
    assert found[STEP, "a"].drift is None
    creeping = found[CREEPS, "a"]
    assert creeping.steps == ()
    assert creeping.drift == pytest.approx(0.1 * 59 / 60 / 1.1, rel=0.15)  # of the median, in 30 of 59 days
    assert creeping.worse is True
    assert not found[STEADY, "a"].moved
    assert [trend.id for trend in trends(nights)] == [CREEPS, STEP, STEADY] or trends(nights)[2].id == STEADY


def test_better_is_not_worse_and_a_target_has_no_side(nights):
    up = [
        replace(run, rows=(replace(run.rows[0], better="lower"), replace(run.rows[1], better="target")))
        for run in nights
    ]
    found = by_id(up)
    assert found[STEP, "a"].steps[0].worse is False
    assert found[CREEPS, "a"].worse is None


def test_each_node_has_its_own_series(nights):
    other = [night(i, row(STEP, 100e9, "B/s", "higher"), node="b" * 16) for i in range(60)]
    found = by_id([*nights, *other])
    assert found[STEP, "a"].moved
    assert not found[STEP, "b"].moved


def test_faults_busy_nights_rivals_digests_and_errors_do_not_count(nights):
    random = np.random.default_rng(1)

    def many(**fields):
        return [row(STEADY, v, "FLOP/s", "higher", **fields) for v in 1e12 * (1 + 0.01 * random.standard_normal(20))]

    healthy = [night(i, one) for i, one in enumerate(many())]
    ill = [night(20 + i, replace(one, values=(5e11,)), fault="cpu_quota(0.5)") for i, one in enumerate(many())]
    busy = [night(40 + i, replace(one, values=(5e11,), noise=Noise(foreign=0.8))) for i, one in enumerate(many())]
    broken = [night(60 + i, replace(one, error="boom")) for i, one in enumerate(many())]
    again = [night(80 + i, replace(one, attempt=1)) for i, one in enumerate(many())]
    rivals = [night(100 + i, replace(one, rival="numpy")) for i, one in enumerate(many())]
    digests = [night(120 + i, replace(one, unit="digest", metric="hardware/x/bits", better="target"))
               for i, one in enumerate(many())]  # fmt: skip
    (trend,) = trends([*healthy, *ill, *busy, *broken, *again, *rivals, *digests])
    assert len(trend.values) == 20
    assert not trend.moved


def test_too_few_runs_have_no_trend(nights):
    assert trends(nights[: FEWEST_RUNS - 1]) == ()
    assert len(trends(nights[:FEWEST_RUNS])) == 3


@pytest.fixture(scope="module")
def folder(nights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for run in nights:
        write_run(run, folder)
    return folder


def test_the_report_marks_what_moved(folder, tmp_path):
    overview = summarise(gather(folder, tmp_path, tmp_path))
    page = html(overview)
    assert 'id="trends"' in page
    assert "2 of 3 moved" in page
    assert '<line class="step worse"' in page
    assert "since 2026-01-31 03:00" in page
    assert page.count('class="night"') == 2 * 60
    shown = report_json(overview)["trends"]
    assert {trend["id"] for trend in shown} == {STEP, CREEPS, STEADY}
    json.dumps(shown)


def test_a_report_of_few_runs_has_no_section_of_trends(nights, tmp_path):
    write_run(nights[0], tmp_path)
    assert 'id="trends"' not in html(summarise(gather(tmp_path, tmp_path / "c", tmp_path / "s")))


def test_the_command_tells_what_moved_and_all_on_demand(folder, capsys):
    assert main(["trend", str(folder)]) == 0
    said = capsys.readouterr().out
    before = next(t for t in trends(read_runs(folder).runs) if t.id == STEP).steps[0].before
    assert f"host-a {STEP}: {quantity(before, 'B/s')} -> " in said
    assert "since 2026-01-31 03:00, run a000000" in said
    assert f"host-a {CREEPS}: drifts by +" in said
    assert ", worse" in said
    assert "2 of 3 series of 10 runs and more moved, in 60 runs" in said
    assert STEADY not in said
    main(["trend", str(folder), "--all"])
    assert f"{STEADY}: steady over 60 runs" in capsys.readouterr().out
    main(["trend", str(folder), "--json"])
    assert {trend["id"] for trend in json.loads(capsys.readouterr().out)} == {STEP, CREEPS, STEADY}


def test_the_command_refuses_what_is_no_folder(tmp_path, capsys):
    assert main(["trend", str(tmp_path / "absent")]) == 2
    assert "no such folder" in capsys.readouterr().err
