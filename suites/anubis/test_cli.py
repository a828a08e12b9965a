"""The judge as a tool: `python -m systems.anubis`, over run files, without pytest inside."""

import json
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from systems.anubis.__main__ import main
from systems.anubis.criteria import HISTORY, load_criteria
from systems.anubis.machine import Machine, Noise
from systems.anubis.records import Measurement, Run, write_run
from systems.anubis.selector import History
from systems.anubis.survival import Exponential

KIND = "x86_64-demo"
TRIAD, FSYNC = "hardware/memory/triad/throughput", "hardware/disk/fsync/time"


def run_of(random, node, hours=0, slow=1.0, noise=None, kind=KIND, stack="s1"):
    def row(metric, component, value, unit, better):
        values = value * (1 + 0.004 * random.standard_normal(6))
        return Measurement(
            suite="hardware", test="t", component=component, metric=metric, unit=unit, better=better,
            values=tuple(values), seconds=30.0 if component == "memory" else 6.0, noise=noise or Noise(),
        )  # fmt: skip

    rows = (row(TRIAD, "memory", 100e9 / slow, "B/s", "higher"), row(FSYNC, "disk", 1e-3, "s", "lower"))
    begun = Run.begin(Machine(kind=kind, node=node * 16, stack=stack))
    return replace(begun, started=begun.started + timedelta(hours=hours), rows=rows)


@pytest.fixture
def folder(tmp_path):
    """Runs of ten nodes, one of them with slow memory."""
    random = np.random.default_rng(0)
    runs = tmp_path / "runs"
    for number in range(10):
        write_run(run_of(random, f"{number:x}", slow=1.25 if number == 7 else 1.0), runs)
    return runs


def test_what_is_learned_is_judged_by(folder, tmp_path, capsys):
    criteria = tmp_path / "criteria"
    assert main(["learn", str(folder), "--criteria", str(criteria), "--dry-run"]) == 0
    assert not criteria.exists()
    assert main(["learn", str(folder), "--criteria", str(criteria)]) == 0
    said = capsys.readouterr().out
    assert "learned 2 criteria from 10 runs" in said
    assert str(criteria / KIND / "hardware.json") in said
    assert load_criteria(criteria, KIND)[TRIAD].criterion.excluded == 1
    assert main(["judge", str(folder), "--criteria", str(criteria)]) == 10
    said = capsys.readouterr().out
    assert said.count("PASS") == 9
    assert "77777777" in next(line for line in said.splitlines() if "DEFECT" in line)
    assert f"defect    {TRIAD}: similarity 0.8" in said
    assert "suspects memory" in said


def test_a_fleet_is_judged_by_itself(folder, capsys):
    assert main(["judge", str(folder), "--peers"]) == 10
    said = capsys.readouterr().out
    assert "judged by 2 criteria learned from 10 runs of this fleet" in said
    assert said.count("DEFECT") == 1


def test_the_newest_run_of_a_node_is_judged_unless_all_are_asked_for(folder, capsys):
    write_run(run_of(np.random.default_rng(1), "7", hours=5), folder)  # repaired since
    assert main(["judge", str(folder), "--peers"]) == 0
    assert main(["judge", str(folder), "--peers", "--all"]) == 10
    capsys.readouterr()


def test_a_deficit_under_the_load_of_others_is_contended(folder, capsys):
    write_run(run_of(np.random.default_rng(1), "7", hours=5, slow=1.3, noise=Noise(foreign=0.7)), folder)
    assert main(["judge", str(folder), "--peers"]) == 11
    assert "CONTENDED" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "message"), [
    (["learn"], "give a folder of run files"),
    (["learn", "absent"], "no such folder"),
    (["learn", "--trace", "t.json"], "say where it goes with -o"),
    (["judge", "{runs}", "--criteria", "none"], "learn some, or judge by --peers"),
    (["judge", "{runs}", "--kind", "y"], "no run of kind y; there are x86_64-demo"),
    (["select", "--criteria", "none", "--budget", "1"], "holds 0 kinds of hardware: give --kind, or --minutes"),
    (["select", "--minutes", "a", "--budget", "1"], "--minutes takes NAME=M"),
    (["select", "--minutes", "a=1", "--budget", "1"], "no history knows a"),
    (["select", "--minutes", "a=1", "--history", "absent.json"], "absent.json: not a history"),
    (["simulate", "--gang", "9", "--nodes", "8"], "gangs of 9 do not fit"),
    (["simulate", "--seeds", "1"], "--seeds takes 2 at least"),
    (["simulate", "--trace", "absent.json"], "absent.json"),
])  # fmt: skip
def test_what_cannot_be_done_is_said_with_exit_status_2(folder, capsys, arguments, message):
    assert main([text.format(runs=folder) for text in arguments]) == 2
    assert message in capsys.readouterr().err


def test_several_kinds_have_to_be_told_apart(folder, capsys):
    write_run(run_of(np.random.default_rng(1), "f", kind="other"), folder)
    assert main(["judge", str(folder), "--peers"]) == 2
    assert "give one with --kind: other (1), x86_64-demo (10)" in capsys.readouterr().err
    assert main(["judge", str(folder), "--peers", "--kind", KIND]) == 10


def test_a_plan_from_criteria_and_from_minutes_by_hand(folder, tmp_path, capsys):
    criteria = tmp_path / "criteria"
    main(["learn", str(folder), "--criteria", str(criteria)])
    history = History.of({"hardware/memory/triad": {1, 2, 3}, "hardware/disk/fsync": {3, 4, 5, 6}}, 6, "repairs")
    (criteria / KIND / HISTORY).write_text(history.to_json())
    capsys.readouterr()
    assert main(["select", "--criteria", str(criteria), "--budget", "0.2"]) == 0
    said = capsys.readouterr().out
    assert "1 of 2 benchmarks, 0.10 minutes" in said
    assert "hardware/disk/fsync" in said
    job = ["--nodes", "32", "--incidents", "5", "--job", "48", "--p0", "0.3", "--json"]
    assert main(["select", "--criteria", str(criteria), *job]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["benchmarks"] == ["hardware/disk/fsync", "hardware/memory/triad"]
    assert plan["risk_after"] <= 0.3 < plan["risk_before"]
    by_hand = ["--minutes", "hardware/disk/fsync=1", "--minutes", "hardware/memory/triad=9"]
    given = ["select", "--history", str(criteria / KIND / HISTORY), *by_hand, "--incident-probability", "0.2"]
    assert main([*given, "--p0", "0.1"]) == 0
    assert "1 of 2 benchmarks, 1.00 minutes" in capsys.readouterr().out
    assert main([*given, "--hours-lost", "0.5"]) == 0
    assert "hardware/disk/fsync: 1.0 minutes" in capsys.readouterr().out


def test_an_incident_model_is_made_from_a_trace_and_planned_by(tmp_path, capsys):
    events = []
    for node in range(6):  # one fails once, late; the others again and again, ever sooner
        for day in [50.0] if node == 0 else [20.0, 28.0, 34.0, 38.0]:
            fault = {"Level": "node", "Class": "gpu", "Desc": str(day)}
            for what, at in (("fault_start", day + node), ("fault_end", day + node + 1)):
                events.append({"event_time": at, "event_type": what, "node_id": f"n{node}", "fault_type": fault})
    trace, output = tmp_path / "trace.json", tmp_path / "rates.json"
    trace.write_text(json.dumps(events))
    assert main(["learn", "--trace", str(trace), "-o", str(output)]) == 0
    assert "0 past incidents: one in" in capsys.readouterr().out
    model, source = Exponential.load(output)
    assert model.rates[0] < model.rates[2]
    assert "fitted to 21 incidents in trace.json" in source


def test_simulated_policies_are_told_with_intervals(capsys):
    small = ["--nodes", "96", "--days", "30", "--gang", "16", "--seeds", "3"]
    assert main(["simulate", "--policy", "none", "--policy", "full", *small]) == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines()] == ["policy", "none", "full", "full"]
    assert "full over none: MTBI " in said
    assert main(["simulate", "--policy", "none", "--policy", "oracle", "--sudden", "0", *small]) == 0
    assert "inf" in capsys.readouterr().out  # an oracle sees no incident at all


@pytest.mark.parametrize("command", ["learn", "judge", "select", "simulate", "fleet"])
def test_help_teaches(capsys, command):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert said.count("\n") > 12
    with pytest.raises(SystemExit):
        main(["--help"])
    assert f"python -m systems.anubis {command}" in capsys.readouterr().out
