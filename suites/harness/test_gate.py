"""The gate as a user meets it: options, verdicts, exit codes, JUnit, journals, xdist; each on a real pytest run.

The machines under test are imitated by workloads that sleep: their speed is a file's content, so that a slowdown is
exact, and the noise that the gate reads is given where a test is about verdicts (and real where it is about noise).
"""

import os
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

import fixtures.gate
import fixtures.measuring
import fixtures.session
import systems.anubis.learning
from systems.anubis import judging
from systems.anubis.criteria import load_criteria, save_criteria
from systems.anubis.machine import NoiseSample, fingerprint, noise_between, sample_noise
from systems.anubis.records import iter_journals, read_journal, read_runs

ROOT = Path(__file__).resolve().parents[2]

CONFTEST = """
pytest_plugins = ["fixtures.determinism", "fixtures.devices", "fixtures.data", "fixtures.measuring", "fixtures.claims",
                  "fixtures.gate", "fixtures.resuming", "fixtures.faults", "fixtures.selecting"]
"""
BENCH = """
import time
from pathlib import Path
import pytest
SPEED = Path(__file__).parents[2] / "seconds"

def slept():
    text = SPEED.read_text().split()
    if len(text) > 1:                      # a queue: each call of the test takes the next
        SPEED.write_text(" ".join(text[1:]))
    return float(text[0])

@pytest.mark.component("disk")
@pytest.mark.parametrize("size", ["4k", "1m"])
def test_read(measure, size):
    measure.record("time", [slept()] * 4, "s")

@pytest.mark.component("compute")
def test_steady(measure):
    measure.record("rate", [100.0, 101.0], "op/s")

@pytest.mark.component("compute")
def test_digest(measure):
    measure.digest("bits", b"the right answer")

def test_correct():
    assert True
"""


def reading(foreign: float = 0.0, throttled: float = 0.0) -> list[NoiseSample]:
    """Two readings of the counters, a second apart, in which others used a share of the CPUs."""
    first = NoiseSample(at=0.0, cpu=(0.0,) * 8, own=0.0, psi_us=0, throttled_s=0.0, gpu_processes=frozenset())
    busy = 100 * foreign
    second = NoiseSample(
        at=1.0,
        cpu=(busy, 0, 0, 100 - busy, 0, 0, 0, 0),
        own=0.0,
        psi_us=0,
        throttled_s=throttled,
        gpu_processes=frozenset(),
    )
    return [first, second]


@dataclass
class Machine:
    """A pytest project on which the gate runs, with its speed and its noise in the test's hand."""

    pytester: pytest.Pytester
    monkeypatch: pytest.MonkeyPatch
    readings: list[NoiseSample] = field(default_factory=reading)

    def set_speed(self, *seconds: float) -> None:
        (self.pytester.path / "seconds").write_text(" ".join(map(str, seconds)))

    def set_noise(self, **shares: float) -> None:
        self.readings[:] = reading(**shares)

    def run(self, *args: str) -> pytest.RunResult:
        turn = iter(range(10**9))
        for module in (fixtures.gate, fixtures.session):
            self.monkeypatch.setattr(module, "sample_noise", lambda: self.readings[next(turn) % 2])
        return self.pytester.runpytest_inprocess("suites", "--quiet-wait", "0s", "-p", "no:cacheprovider", *args)

    def learn(self) -> None:
        for args in (["--record"], ["--record"], ["--record"], ["--learn"]):
            assert self.run(*args).ret == 0

    @property
    def runs(self):
        return read_runs(self.pytester.path / "runs").runs

    def statuses(self) -> dict[str, str]:
        return {row.id: row.status for row in self.runs[-1].rows if row.attempt == 0}


@pytest.fixture
def machine(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Machine:
    pytester.makeconftest(CONFTEST)
    pytester.makeini(
        "[pytest]\npython_files = test_*.py bench_*.py\n"
        "markers =\n    component(name)\n    claim(id)\n    slow\n    gpu\n"
    )
    pytester.syspathinsert(ROOT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # the pytest inside is nobody's worker
    folder = pytester.path / "suites" / "demo"
    folder.mkdir(parents=True)
    (folder / "bench_demo.py").write_text(BENCH)
    found = Machine(pytester, monkeypatch)
    found.set_speed(0.010)
    return found


def test_a_plain_run_writes_nothing_and_runs_everything(machine):
    result = machine.run()
    result.assert_outcomes(passed=5)
    assert result.ret == 0
    assert not (machine.pytester.path / "runs").exists()
    assert not (machine.pytester.path / "criteria").exists()


def test_record_writes_one_run_file_with_the_metric_ids(machine):
    result = machine.run("--record")
    result.assert_outcomes(passed=5)
    (run,) = machine.runs
    assert {row.id for row in run.rows} == {
        "demo/demo/read/time{size=4k}",
        "demo/demo/read/time{size=1m}",
        "demo/demo/steady/rate",
        "demo/demo/digest/bits",
    }
    assert run.machine.kind == fingerprint().kind
    assert {row.component for row in run.rows} == {"disk", "compute"}
    assert run.facts["exit_code"] == 0
    assert not list(iter_journals(machine.pytester.path / "runs"))


def test_a_gate_on_a_healthy_machine_passes_and_runs_only_what_measures(machine):
    machine.learn()
    result = machine.run("--gate")
    result.assert_outcomes(passed=4, deselected=1)
    assert result.ret == 0
    assert set(machine.statuses().values()) == {"pass"}
    result.stdout.fnmatch_lines(["*verdict: PASS*4 pass*provisional*"])


def test_a_module_that_needs_an_absent_package_is_left_out_of_the_gate_by_name(machine):
    (machine.pytester.path / "suites/demo/test_extra.py").write_text("import no_such_package\n")
    result = machine.run("--learn", "-rs")
    result.assert_outcomes(passed=4, skipped=1, deselected=1)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*needs the package no_such_package, which is not installed*"])
    assert machine.run("--record").ret == 1  # anywhere else nothing may go missing unseen


def test_a_module_that_breaks_costs_only_its_own_measurements_and_the_exit_status(machine):
    machine.learn()
    (machine.pytester.path / "suites/demo/bench_broken.py").write_text("1 / 0\n")
    result = machine.run("--gate")
    result.assert_outcomes(passed=4, errors=1, deselected=1)
    assert result.ret == 1
    assert set(machine.statuses().values()) == {"pass"}


def test_a_papers_claim_is_no_part_of_the_gate(machine):
    (machine.pytester.path / "seeds").mkdir()
    (machine.pytester.path / "seeds/demo.toml").write_text(
        '[[claim]]\nid = "c"\nstatement = "s"\nmetric = "m"\nstatus = "stated"\nhere = { op = "report" }\n'
    )
    bench = machine.pytester.path / "suites/demo/bench_demo.py"
    claim = "@pytest.mark.claim('demo/c')\ndef test_claim(measure):\n    measure.record('x', 1.0, 's')\n"
    bench.write_text(bench.read_text() + "\n" + claim)
    machine.learn()
    machine.run("--gate").assert_outcomes(passed=4, deselected=2)
    machine.run("--record").assert_outcomes(passed=6)


def test_a_slow_disk_is_a_defect_that_names_metric_medians_and_suspects(machine):
    machine.learn()
    machine.set_speed(0.013)
    result = machine.run("--gate")
    assert result.ret == 10
    result.assert_outcomes(failed=2, passed=2, deselected=1)
    text = result.stdout.str()
    assert "demo/demo/read/time{size=4k}: defect" in text
    assert "similarity   0.7692, must be above 0.9500" in text
    assert "13 ms here, 10 ms in the criterion (1.30x)" in text
    assert "suspect: disk" in text
    assert "Traceback" not in text
    assert machine.runs[-1].facts["verdict"] == "defect"
    assert machine.runs[-1].facts["suspects"][0][0] == "disk"


def test_a_faster_machine_is_no_defect(machine):
    machine.learn()
    machine.set_speed(0.005)
    assert machine.run("--gate").ret == 0


def test_one_flipped_bit_in_a_digest_is_a_defect(machine):
    machine.learn()
    bench = machine.pytester.path / "suites/demo/bench_demo.py"
    bench.write_text(bench.read_text().replace("the right answer", "the right answes"))
    result = machine.run("--gate")
    assert result.ret == 10
    assert machine.statuses()["demo/demo/digest/bits"] == "defect"


def test_what_a_benchmark_says_of_a_digest_stands_in_the_message_of_the_defect(machine):
    machine.learn()
    bench = machine.pytester.path / "suites/demo/bench_demo.py"
    wrong = 'b"the right answes")\n    measure.evidence("bit 3 of byte 14 is set")'
    bench.write_text(bench.read_text().replace('b"the right answer")', wrong))
    result = machine.run("--gate", "-k", "digest")
    assert result.ret == 10
    result.stdout.fnmatch_lines(["*evidence*bit 3 of byte 14 is set*"])


def test_a_deficit_that_a_second_try_does_not_show_is_flaky_not_failed(machine):
    machine.learn()
    machine.set_speed(0.013, 0.010)
    result = machine.run("--gate", "-k", "read and 4k")
    assert result.ret == 11
    result.assert_outcomes(passed=1, deselected=4)
    assert machine.statuses() == {"demo/demo/read/time{size=4k}": "flaky"}
    assert [row.attempt for row in machine.runs[-1].rows] == [0, 1]
    result.stdout.fnmatch_lines(["*verdict: FLAKY*"])


def test_a_deficit_under_pressure_that_a_later_try_does_not_show_is_a_pass(machine):
    machine.learn()
    machine.set_noise(foreign=0.6)
    machine.set_speed(0.013, 0.013, 0.010)
    result = machine.run("--gate", "-k", "read and 4k")
    assert result.ret == 0
    assert machine.statuses() == {"demo/demo/read/time{size=4k}": "pass"}
    rows = machine.runs[-1].rows
    assert [(row.attempt, row.status, row.values[0]) for row in rows] == [
        (0, "pass", 0.010), (1, "defect", 0.013), (2, "defect", 0.013),
    ]  # fmt: skip


def test_confirm_runs_the_test_again_as_often_as_asked(machine):
    machine.learn()
    machine.set_speed(0.013, 0.013, 0.010)
    assert machine.run("--gate", "-k", "read and 4k", "--confirm", "1").ret == 10
    machine.set_speed(0.013, 0.010)
    assert machine.run("--gate", "-k", "read and 4k", "--confirm", "0").ret == 10


def test_a_deficit_while_others_use_the_machine_is_contended_never_pass_or_defect(machine):
    machine.learn()
    machine.set_speed(0.013)
    machine.set_noise(foreign=0.6)
    result = machine.run("--gate")
    assert result.ret == 11
    result.assert_outcomes(skipped=2, passed=2, deselected=1)
    assert machine.statuses()["demo/demo/read/time{size=4k}"] == "contended"
    assert any("other processes used 60%" in line for line in machine.runs[-1].rows[0].evidence)
    result.stdout.fnmatch_lines(["*verdict: CONTENDED*"])


def test_being_held_back_by_our_own_quota_is_a_finding_not_contention(machine):
    machine.learn()
    machine.set_speed(0.013)
    machine.set_noise(foreign=0.6, throttled=0.5)
    assert machine.run("--gate").ret == 10
    assert machine.statuses()["demo/demo/read/time{size=4k}"] == "defect"


def test_a_metric_without_criterion_is_new_and_strict_fails_it(machine):
    machine.learn()
    bench = machine.pytester.path / "suites/demo/bench_demo.py"
    bench.write_text(bench.read_text() + "\ndef test_more(measure):\n    measure.record('x', 1.0, 's')\n")
    assert machine.run("--gate").ret == 0
    assert machine.statuses()["demo/demo/more/x"] == "new"
    result = machine.run("--gate=strict")
    assert result.ret == 12
    result.stdout.fnmatch_lines(["*no criterion for demo/demo/more/x*"])


def test_strict_refuses_criteria_of_another_software_stack_and_plain_warns(machine):
    machine.learn()
    folder = machine.pytester.path / "criteria"
    kind = fingerprint().kind
    save_criteria(
        folder, kind, {name: replace(c, stack="torch 1.0") for name, c in load_criteria(folder, kind).items()}
    )
    result = machine.run("--gate")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*WARNING: criteria were learned on another software stack: torch 1.0*"])
    assert machine.run("--gate", "strict").ret == 12


def test_a_test_that_breaks_is_recorded_as_error_and_the_rest_goes_on(machine):
    machine.learn()
    bench = machine.pytester.path / "suites/demo/bench_demo.py"
    bench.write_text(
        "import pytest\n"
        + bench.read_text()
        + """
def test_breaks(measure):
    measure.record("before", 2.0, "s")
    raise RuntimeError("the driver is gone")

@pytest.fixture
def broken():
    raise OSError("no device")

def test_breaks_early(measure, broken):
    pass
"""
    )
    result = machine.run("--gate")
    assert result.ret == 1
    result.assert_outcomes(passed=4, failed=1, errors=1, deselected=1)
    errors = {row.metric: row.error for row in machine.runs[-1].rows if row.status == "error"}
    assert errors == {
        "demo/demo/breaks/call": "RuntimeError: the driver is gone",
        "demo/demo/breaks_early/setup": "OSError: no device",
    }
    assert "demo/demo/breaks/before" in machine.statuses()


def test_a_test_that_hangs_is_stopped_and_the_rest_goes_on(machine):
    bench = machine.pytester.path / "suites/demo/bench_demo.py"
    bench.write_text(
        "import pytest, time\n@pytest.mark.timeout(1)\ndef test_hangs(measure):\n    time.sleep(60)\n\n"
        + bench.read_text()
    )
    result = machine.run("--record")
    assert result.ret == 1
    result.assert_outcomes(passed=5, failed=1)
    assert "Timeout" in next(row.error for row in machine.runs[-1].rows if row.status == "error")


def test_worst_exit_code_wins(machine):
    s = judging.exit_status
    assert s(2, True, {"defect"}, "strict", True) == 2
    assert s(5, False, set(), "gate") == 5
    assert s(1, True, {"defect", "contended"}, "strict") == 1
    assert s(1, False, {"defect", "new", "contended"}, "strict") == 10
    assert s(1, False, {"new", "contended"}, "strict") == 12
    assert s(0, False, {"new", "contended"}, "gate") == 11
    assert s(0, False, {"flaky", "pass"}, "gate") == 11
    assert s(0, False, {"new", "pass", "recorded"}, "gate") == 0
    assert s(0, False, {"recorded"}, "gate") == 11
    assert s(0, False, {"recorded"}, "record") == 0
    assert s(0, False, {"pass"}, "gate", True) == 1


def test_a_gate_that_could_judge_nothing_has_not_validated_the_machine(machine):
    machine.learn()
    bench = machine.pytester.path / "suites/demo/bench_demo.py"
    bench.write_text(bench.read_text() + "\ndef test_more(measure):\n    measure.record('x', 1.0, 's')\n")
    result = machine.run("--gate", "-k", "more")
    assert result.ret == 11
    result.stdout.fnmatch_lines(["*verdict: INVALID*"])


def test_junit_carries_the_verdicts(machine):
    machine.learn()
    machine.set_speed(0.013)
    machine.run("--gate", "--junitxml=junit.xml")
    cases = {case.get("name"): case for case in ElementTree.parse(machine.pytester.path / "junit.xml").iter("testcase")}
    bad = {p.get("name"): p.get("value") for p in cases["test_read[4k]"].iter("property")}
    assert bad["verdict"] == "defect"
    assert bad["metric"] == "demo/demo/read/time{size=4k}"
    assert bad["similarity"] == "0.769231"
    assert bad["alpha"] == "0.95"
    assert bad["kind"] == fingerprint().kind
    assert bad["run_id"] == machine.runs[-1].run_id
    assert cases["test_read[4k]"].find("failure") is not None
    good = {p.get("name"): p.get("value") for p in cases["test_steady"].iter("property")}
    assert good["verdict"] == "pass"
    machine.set_noise(foreign=0.6)
    machine.run("--gate", "--junitxml=junit.xml")
    cases = {case.get("name"): case for case in ElementTree.parse(machine.pytester.path / "junit.xml").iter("testcase")}
    assert cases["test_read[4k]"].find("skipped") is not None


def test_a_plain_benchmark_test_of_anybody_is_recorded_and_gated(machine):
    bench = machine.pytester.path / "suites/demo/bench_theirs.py"
    bench.write_text(
        "import time\nfrom pathlib import Path\nSPEED = Path(__file__).parents[2] / 'seconds'\n"
        "def test_theirs(benchmark):\n    seconds = float(SPEED.read_text())\n"
        "    benchmark(time.sleep, seconds)\n"
    )
    machine.learn()
    assert machine.run("--gate", "-k", "theirs").ret == 0
    machine.set_speed(0.030)
    assert machine.run("--gate", "-k", "theirs").ret == 10
    assert machine.statuses() == {"demo/theirs/theirs/time": "defect"}
    assert [row.attempt for row in machine.runs[-1].rows] == [0, 1, 2]


def test_a_changed_unit_names_both_units_and_fails(machine):
    machine.learn()
    bench = machine.pytester.path / "suites/demo/bench_demo.py"
    bench.write_text(bench.read_text().replace('"op/s"', '"step/s"'))
    result = machine.run("--gate")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*demo/demo/steady/rate: measured in 'step/s', but its criterion is in 'op/s'*"])


def test_learning_needs_three_runs_and_says_so(machine):
    result = machine.run("--learn")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*refused*demo/demo/steady/rate*1 valid samples of 1 given, 3 needed*"])
    assert load_criteria(machine.pytester.path / "criteria", fingerprint().kind) == {}


def test_learning_tells_what_moved(machine):
    machine.learn()
    machine.set_speed(0.020)
    for _ in range(9):
        machine.run("--record")
    result = machine.run("--learn")
    result.stdout.fnmatch_lines(["*moved*demo/demo/read/time{size=4k}: 10 ms -> 20 ms*"])


STEPS = """
import pytest
from pathlib import Path
ROOT = Path(__file__).parents[2]

@pytest.mark.component("model")
def test_train(measure):
    done = list(measure.steps(64, warmup=2, work=8, unit="sample/s"))
    (ROOT / "steps").write_text(str(len(done)))
"""


class Clock:
    """Steps as long as the file `seconds` says; the first ten take half as long again."""

    def __init__(self, device):
        self.step = 0

    def start(self):
        pass

    def stop(self):
        self.step += 1
        seconds = float(Path("seconds").read_text())
        return seconds * (1.5 if self.step <= 10 else 1.0) * (1 + 0.001 * (self.step % 3))


def test_a_gate_runs_only_the_steps_that_judge_as_all_of_them_do(machine, monkeypatch):
    (machine.pytester.path / "suites/demo/bench_demo.py").write_text(STEPS)
    monkeypatch.setattr(fixtures.measuring, "Stopwatch", Clock)
    steps = machine.pytester.path / "steps"
    machine.learn()
    assert steps.read_text() == "66"
    folder, kind = machine.pytester.path / "criteria", fingerprint().kind
    (stored,) = load_criteria(folder, kind).values()
    found = {}
    for speed in (0.010, 0.0101, 0.012):
        machine.set_speed(speed)
        found[speed] = machine.run("--gate").ret
        assert int(steps.read_text()) == stored.window["warmup"] + stored.window["steps"] <= 33
        (row,) = [row for row in machine.runs[-1].rows if row.attempt == 0]
        assert (row.warmup, row.rounds) == (stored.window["warmup"], stored.window["steps"])
    assert found == {0.010: 0, 0.0101: 0, 0.012: 10}
    similarity = row.similarity
    machine.set_speed(0.010)
    assert machine.run("--learn").ret == 0
    assert steps.read_text() == "66"  # what is learned from is measured whole

    monkeypatch.setattr(systems.anubis.learning, "series_window", lambda measured: None)
    shutil.rmtree(machine.pytester.path / "runs")
    machine.learn()
    assert all(stored.window is None for stored in load_criteria(folder, kind).values())
    for speed, verdict in found.items():
        machine.set_speed(speed)
        assert machine.run("--gate").ret == verdict
        assert steps.read_text() == "66"
    assert machine.runs[-1].rows[0].similarity == pytest.approx(similarity, abs=0.005)


def test_an_unknown_kind_learns_provisional_criteria_from_runs_of_its_own(machine):
    result = machine.pytester.runpytest_subprocess("suites", "--gate", "--quiet-wait", "0s")
    assert result.ret in {0, 11}  # 11: this machine may be busy while the suite runs
    result.stdout.fnmatch_lines(
        ["*no criteria for*learning provisional ones from 6 runs*", "*run 6 of 6*", "*verdict: *provisional criteria*"]
    )
    assert len(machine.runs) == 7
    assert machine.runs[-1].facts["provisional"] is True
    assert len(load_criteria(machine.pytester.path / "criteria", fingerprint().kind)) == 4


def test_kill_in_the_middle_of_a_run_loses_no_finished_test(machine):
    bench = machine.pytester.path / "suites/demo/bench_demo.py"
    bench.write_text(
        bench.read_text() + "\ndef test_waits(measure):\n    Path('reached').touch()\n    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "suites", "--record", "--quiet-wait", "0s"],
        cwd=machine.pytester.path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    while not (machine.pytester.path / "reached").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    runs = machine.pytester.path / "runs"
    assert not machine.runs
    done = subprocess.run(
        [sys.executable, "-m", "reports", "recover", str(runs)], cwd=ROOT, check=True, text=True, capture_output=True
    )
    assert "1" in done.stdout
    (run,) = machine.runs
    assert {row.id for row in run.rows} == {
        "demo/demo/read/time{size=4k}",
        "demo/demo/read/time{size=1m}",
        "demo/demo/steady/rate",
        "demo/demo/digest/bits",
    }
    assert run.facts["recovered"] is True


def test_ctrl_c_keeps_what_was_measured(machine):
    bench = machine.pytester.path / "suites/demo/bench_demo.py"
    bench.write_text(bench.read_text() + "\ndef test_interrupted(measure):\n    raise KeyboardInterrupt\n")
    result = machine.pytester.runpytest_subprocess("suites", "--record", "--quiet-wait", "0s")
    assert result.ret == 2
    assert len(machine.runs[-1].rows) >= 4
    assert machine.runs[-1].facts["exit_code"] == 2


def test_a_full_disk_keeps_the_results_and_the_journal_elsewhere(machine, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    journal = fixtures.session.Journal

    class Full(journal):
        def _write(self, data, **how):
            if self.folder.name == "runs" and "rows" in data:
                raise OSError(28, "No space left on device")
            super()._write(data, **how)

    monkeypatch.setattr(fixtures.session, "Journal", Full)
    result = machine.run("--record")
    assert result.ret == 1
    result.assert_outcomes(passed=5)
    (kept,) = read_runs(tmp_path).runs
    assert len(kept.rows) == 4
    result.stdout.fnmatch_lines([f"*WARNING: cannot write to *No space left on device*{kept.filename}*"])
    assert not machine.runs


def test_with_no_disk_at_all_the_journal_stays_as_far_as_it_came(machine, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    journal = fixtures.session.Journal

    class NeverFinishes(journal):
        def finish(self, facts=None):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(fixtures.session, "Journal", NeverFinishes)
    result = machine.run("--record")
    assert result.ret == 1
    (kept,) = iter_journals(tmp_path)
    assert len(read_journal(kept).rows) == 4
    result.stdout.fnmatch_lines([f"*the journal is kept at {kept}*"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--gate", "--learn"], "give one of the two"),
        (["--record", "-n", "2"], "leave -n out"),
        (["--gate", "-n", "2"], "leave -n out"),
        (["--learn", "-n", "2"], "leave -n out"),
        (["--gate", "--benchmark-disable"], "leave --benchmark-disable"),
        (["--record", "--confirm", "-1"], "--confirm takes 0 or more"),
        (["--record", "--quiet-wait", "soon"], "expected a time such as 30s"),
    ],
)
def test_what_cannot_go_together_is_a_usage_error(machine, args, message):
    result = machine.run(*args)
    assert result.ret == 4
    assert message in result.stderr.str() + result.stdout.str()
    assert not (machine.pytester.path / "runs").exists()


def test_a_path_after_gate_is_explained(machine):
    result = machine.pytester.runpytest_inprocess("--gate", "suites")
    assert result.ret == 4
    result.stderr.fnmatch_lines(["*pytest suites --gate*"])


def test_damaged_criteria_stop_the_gate_before_anything_runs(machine):
    machine.learn()
    path = machine.pytester.path / "criteria" / fingerprint().kind / "demo.json"
    path.write_text(path.read_text().replace('"alpha": 0.95', '"alpha": 0.15', 1))
    before = len(machine.runs)
    result = machine.run("--gate")
    assert result.ret == 4
    assert "learn again with --learn, or restore it" in result.stderr.str()
    assert len(machine.runs) == before


def test_with_xdist_a_plain_run_checks_correctness_and_records_nothing(machine):
    result = machine.pytester.runpytest_subprocess("suites", "-n", "2", "-p", "xdist")
    result.assert_outcomes(passed=5)
    assert not (machine.pytester.path / "runs").exists()


def test_the_quiet_wait_ends_on_a_machine_that_never_calms_down(machine):
    machine.set_noise(foreign=0.9)
    begun = time.monotonic()
    result = machine.run("--record", "--quiet-wait", "1s")
    assert result.ret == 0
    assert time.monotonic() - begun < 30
    assert all(row.noise.foreign == pytest.approx(0.9, abs=0.05) for row in machine.runs[-1].rows)


def test_foreign_cpu_use_is_seen_and_our_own_is_not():
    code = "import time\nend = time.time() + 60\nwhile time.time() < end: pass"
    before = sample_noise()
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        pass
    own = noise_between(before, sample_noise())
    # setsid and a double fork: the burner is nobody's child, as another user's process would be
    subprocess.run(["setsid", "-f", "timeout", "20", sys.executable, "-c", code], check=True)
    time.sleep(0.3)
    before = sample_noise()
    time.sleep(1.0)
    foreign = noise_between(before, sample_noise())
    subprocess.run(["pkill", "-f", "end = time.time[(][)] . 60"], check=True)
    assert foreign.foreign >= (own.foreign or 0.0) or foreign.foreign > 0.3
    assert foreign.foreign > 0.3


def test_help_teaches_the_gate(machine):
    text = machine.pytester.runpytest_inprocess("--help").stdout.str()
    for option in ("--record", "--gate", "--learn", "--confirm", "--criteria", "--runs", "--quiet-wait"):
        assert option in text
    assert "is this machine fit for AI work?" in text
