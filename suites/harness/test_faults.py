"""`--fault` and the fixture `fault` as a user meets them: on for the whole session, refused where it would mislead,
and gone afterwards."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from suites.harness.test_gate import ROOT, machine  # noqa: F401
from systems.anubis import control_groups, faults

SEES = """
import os
from pathlib import Path
import time

def groups():
    return Path("/proc/self/cgroup").read_text()

def test_sees(measure):
    Path(__file__).with_name("groups").write_text(groups())
    measure.record("time", 0.010, "s")

def test_spends(measure):
    end, used = time.monotonic() + 0.5, time.process_time()
    while time.monotonic() < end:
        pass
    measure.record("share", (time.process_time() - used) / 0.5, "1", better="higher")
"""


IS_HELD_BACK = """
import time

from systems.anubis.machine import sample_noise

def test_sees(measure):
    measure.record("time", 0.010, "s")

def test_spends(measure):
    before, end = sample_noise(), time.monotonic() + 0.5
    while time.monotonic() < end:
        pass
    held = (sample_noise().throttled_s or 0.0) - (before.throttled_s or 0.0)
    measure.record("share", max(1.0 - held / 0.5, 0.02), "1", better="higher")
"""
"""As SEES, but blind to neighbours: of the time it would have run, the share in which its quota let it. The kernel
counts a stop when it ends, so one that began before counts too, and the time held may exceed the time that passed."""


@pytest.fixture
def seeing(machine):  # noqa: F811
    """A project with one test that shows what it runs under."""
    folder = machine.pytester.path / "suites" / "demo"
    (folder / "bench_demo.py").write_text(SEES)
    return machine


def seen(project):
    return (project.pytester.path / "suites/demo/groups").read_text()


def injectable(name):
    if reason := faults.fault_named(name).available():
        pytest.skip(f"{name} cannot be injected here: {reason}")
    if control_groups.available("cpu"):
        pytest.skip("without control groups a quota is held by stopping the process, which its groups do not show")


def test_a_session_runs_under_its_fault_says_so_and_leaves_nothing(seeing):
    injectable("cpu_quota(0.3)")
    before = Path("/proc/self/cgroup").read_text(encoding="utf-8")
    result = seeing.run("--record", "--fault", "cpu_quota(0.3)", "-s")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*maat: under the fault cpu_quota(0.3)*"])
    assert control_groups.PREFIX in seen(seeing)
    assert Path("/proc/self/cgroup").read_text(encoding="utf-8") == before
    (run,) = seeing.runs
    assert run.facts["fault"] == "cpu_quota(0.3)"
    share = next(row.values[0] for row in run.rows if row.metric.endswith("share"))
    assert share < 0.45


def test_a_gate_under_a_fault_finds_it_and_the_next_one_passes(seeing):
    injectable("cpu_quota(0.2)")
    (seeing.pytester.path / "suites/demo/bench_demo.py").write_text(IS_HELD_BACK)
    seeing.learn()
    assert seeing.run("--gate", "-k", "spends", "--fault", "cpu_quota(0.1)").ret == 10
    assert seeing.run("--gate").ret == 0


def test_nothing_is_learned_under_a_fault(seeing):
    result = seeing.run("--learn", "--fault", "slow_steps(0.3,1.5)")
    assert result.ret == 4
    assert "would learn that the fault is healthy" in result.stderr.str()
    first = seeing.run("--gate", "--fault", "slow_steps(0.3,1.5)")
    assert first.ret == 4
    assert "run with --learn and without --fault first" in first.stderr.str()
    assert not (seeing.pytester.path / "runs").exists()
    for _ in range(3):
        assert seeing.run("--record").ret == 0
    assert seeing.run("--record", "--fault", "slow_steps(0.3,1.5)").ret == 0
    result = seeing.run("--learn")
    result.stdout.fnmatch_lines(["*learned 2 criteria from 4 runs"])


@pytest.mark.parametrize(
    ("name", "message"),
    [("gremlin(1)", "no fault 'gremlin(1)'; there are bit_flip, cpu_burner"), ("cpu_quota(0)", "share 0: expected")],
)
def test_an_unknown_fault_is_a_usage_error_that_says_what_there_is(seeing, name, message):
    result = seeing.run("--record", "--fault", name)
    assert result.ret == 4
    assert message in result.stderr.str()
    assert not (seeing.pytester.path / "runs").exists()


def test_a_fault_that_cannot_be_injected_stops_the_session_with_its_reason(seeing, monkeypatch):
    monkeypatch.setattr(control_groups, "available", lambda *_: "not allowed here")
    result = seeing.run("--record", "--fault", "cpu_quota(1.5)")
    assert result.ret == 4
    assert "cpu_quota(1.5): not allowed here" in result.stderr.str()


def test_help_and_collection_inject_nothing(seeing):
    result = seeing.run("--collect-only", "-q", "--fault", "cpu_quota(0.3)")
    assert result.ret == 0
    assert "under the fault" not in result.stdout.str()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_a_session_ends_the_fault_and_keeps_what_was_measured(seeing, number):
    injectable("cpu_quota(0.5)")
    bench = seeing.pytester.path / "suites/demo/bench_demo.py"
    waits = "def test_waits(measure):\n    Path('reached').touch()\n    time.sleep(60)\n"
    restored = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    bench.write_text(restored + SEES + waits)
    arguments = ["--record", "--quiet-wait", "0s", "--fault", "cpu_quota(0.5)"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "suites", *arguments],
        cwd=seeing.pytester.path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    while not (seeing.pytester.path / "reached").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(30) == (2 if number == signal.SIGINT else 128 + number)
    assert not list(control_groups.ROOT.glob(f"*/{control_groups.PREFIX}{process.pid}-*"))
    (run,) = seeing.runs
    assert {row.test.rpartition("::")[2] for row in run.rows if not row.error} == {"test_sees", "test_spends"}


def test_the_fixture_skips_with_its_reason_where_a_fault_cannot_be(seeing):
    bench = seeing.pytester.path / "suites/demo/bench_demo.py"
    bench.write_text("def test_gpu(fault):\n    with fault('link_delay(5)'):\n        pass\n")
    seeing.monkeypatch.setattr("systems.anubis.probes.namespaces.available", lambda: "no namespaces")
    result = seeing.run("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*link_delay(5) cannot be injected here: no namespaces*"])
