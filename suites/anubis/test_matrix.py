"""The fault matrix: its rates on trials made by hand, and real gates under real faults."""

import math
import os
import subprocess
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from systems.anubis import matrix
from systems.anubis.faults import UnknownFault, fault_named
from systems.anubis.machine import Machine
from systems.anubis.matrix import HEALTHY, Matrix, MatrixError, Trial
from systems.anubis.records import Run, write_run

DISK = "disk_throttle(50000000)"
BOTH = ("gemm", "write")


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_agrees_with_scipy(counts):
    low, high = matrix.wilson(*counts)
    peer = binomtest(*counts).proportion_ci(0.95, "wilson")
    assert math.isclose(low, peer.low, abs_tol=1e-6)
    assert math.isclose(high, peer.high, abs_tol=1e-6)


def test_wilson_of_nothing_says_nothing():
    assert matrix.wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError):
        matrix.wilson(2, 1)


TRIALS = (
    Trial("cpu_quota(0.3)", 0, 10, ("gemm", "write"), (), ("compute", "disk"), BOTH),
    Trial(HEALTHY, 0, 0, (), (), (), BOTH),
    Trial("cpu_quota(0.3)", 1, 10, ("gemm",), (), ("memory", "compute"), BOTH),
    Trial(HEALTHY, 1, 11, (), ("gemm",), ("compute",), BOTH),
    Trial(DISK, 0, 11, (), ("write",), ("disk",), BOTH),
    Trial(HEALTHY, 2, 10, ("write",), (), ("disk",), BOTH),
)


def test_rates_count_what_gates_found():
    seen = Matrix(TRIALS)
    assert str(seen.detection("cpu_quota(0.3)")).startswith("2/2")
    assert (seen.detection().found, seen.detection().of) == (2, 3)
    assert (seen.localisation().found, seen.localisation().of) == (1, 2)
    assert (seen.false_alarms.found, seen.false_alarms.of) == (1, 3)
    assert (seen.caught_by("cpu_quota(0.3)", "write").found, seen.caught_by(DISK, "write").found) == (1, 0)
    assert len(list(seen.lines())) == 1 + 2 + 2 + 2


def test_history_has_one_defect_a_faulty_trial_and_none_a_healthy_one():
    history = Matrix(TRIALS).history()
    assert history.total == 3
    assert history.patterns == {frozenset({"gemm", "write"}): 1, frozenset({"gemm"}): 1, frozenset(): 1}


def test_an_interrupted_matrix_goes_on_where_it_stopped(tmp_path, monkeypatch):
    made = []

    def gate(selection, fault, repetition, criteria, root):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append((fault, repetition))
        return replace(TRIALS[0], fault=fault, repetition=repetition)

    monkeypatch.setattr(matrix, "_gate", gate)
    faults = ["bit_flip(1)", "slow_steps(0.3,1.5)"]
    with pytest.raises(KeyboardInterrupt):
        matrix.run(["x"], faults, tmp_path, repetitions=2, criteria=tmp_path)
    with (tmp_path / "trials.jsonl").open("a", encoding="utf-8") as journal:
        journal.write('{"fault": "cut sho')
        journal.write("\n")
    before, made[:] = list(made), []
    with pytest.raises(KeyboardInterrupt):
        matrix.run(["x"], faults, tmp_path, repetitions=2, criteria=tmp_path)
    assert not set(before) & set(made)
    monkeypatch.setattr(matrix, "_gate", lambda s, fault, n, c, r: replace(TRIALS[0], fault=fault, repetition=n))
    trials = matrix.run(["x"], faults, tmp_path, repetitions=2, criteria=tmp_path)
    assert [sum(trial.fault == name for trial in trials) for name in (*faults, HEALTHY)] == [2, 2, 4]
    assert len({(trial.fault, trial.repetition) for trial in trials}) == 8


def test_a_matrix_of_nonsense_is_refused(tmp_path):
    with pytest.raises(UnknownFault):
        matrix.run(["x"], ["gremlin(1)"], tmp_path)
    with pytest.raises(MatrixError):
        matrix.run(["x"], ["bit_flip(1)"], tmp_path, repetitions=0)


SELECTION = [
    "suites/hardware/bench_compute.py::test_peak",
    "suites/hardware/bench_disk.py::test_sequential_write",
    "suites/hardware/bench_network.py::test_veth",
]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_gates_find_real_faults_and_name_the_part(tmp_path):
    repetitions = int(os.environ.get("MAAT_MATRIX_REPETITIONS", "2"))
    faults = ["cpu_quota(0.3)", "disk_throttle(50000000)", "link_rate(100)"]
    if missing := [reason for name in faults if (reason := fault_named(name).available())]:
        pytest.skip("; ".join(missing))
    trials = matrix.run(SELECTION, faults, tmp_path, repetitions=repetitions, report=print)
    seen = Matrix(tuple(trials))
    print("\n".join(seen.lines()))
    assert seen.detection().value >= 0.9
    assert seen.localisation().value >= 0.8
    assert seen.false_alarms.found <= 0.02 * seen.false_alarms.of  # of few healthy gates, none
    assert seen.history().coverage(seen.benchmarks) > 0


def test_the_benchmarks_that_are_gated_by_default_are_there():
    for name in matrix.SELECTION:
        path, _, function = name.partition("::")
        text = (matrix.ROOT / path).read_text(encoding="utf-8")
        assert f"def {function.partition('[')[0]}(" in text


def test_an_interrupted_learning_goes_on_where_it_stopped(tmp_path, monkeypatch):
    commands = []

    def pytest_run(arguments, root):
        arguments = list(arguments)
        if len(commands) == 2:
            raise KeyboardInterrupt
        commands.append(arguments)
        write_run(Run.begin(Machine(kind="x", node="0" * 16, stack="s")), tmp_path / "learned")
        return subprocess.CompletedProcess(arguments, 0, "", "")

    monkeypatch.setattr(matrix, "_pytest", pytest_run)
    with pytest.raises(KeyboardInterrupt):
        matrix.run(["x"], ["bit_flip(1)"], tmp_path, repetitions=1)
    monkeypatch.setattr(matrix, "_gate", lambda *_: TRIALS[0])
    commands[:] = commands[:1]  # room for one more before the interruption, which does not come again
    monkeypatch.setattr(matrix, "_pytest", lambda a, root: commands.append(list(a)) or _done(tmp_path, a))
    matrix.run(["x"], ["bit_flip(1)"], tmp_path, repetitions=1)
    assert len(commands) - 1 == matrix.LEARNED - 2
    assert "--learn" in commands[-1]


def _done(folder, arguments):
    write_run(Run.begin(Machine(kind="x", node="0" * 16, stack="s")), folder / "learned")
    return subprocess.CompletedProcess(arguments, 0, "", "")
