"""`--resume` as a user meets it: a recording that Ctrl-C or a kill cut short is taken up, and ends as one run."""

import re
import subprocess
import sys

import pytest

from suites.harness.test_gate import machine  # noqa: F401
from systems.anubis.records import progress_of, read_runs, recover

BENCH = """
import os
import signal
from pathlib import Path

HERE = Path(__file__).parent

def ran(name):
    with (HERE / "ran").open("a") as file:
        file.write(name + " ")

def test_first(measure):
    ran("first")
    measure.record("time", [0.010] * 4, "s")

def test_measures_nothing():
    ran("nothing")

def test_breaks():
    ran("breaks")
    assert not (HERE / "broken").exists()

def test_cut(measure):
    ran("cut")
    measure.record("time", [0.020] * 4, "s")
    if (HERE / "cut").exists():
        how = (HERE / "cut").read_text()
        (HERE / "cut").unlink()
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise KeyboardInterrupt

def test_last(measure):
    ran("last")
    measure.record("time", [0.030] * 4, "s")
"""
ALL = {"demo/demo/first/time", "demo/demo/cut/time", "demo/demo/last/time"}


@pytest.fixture
def project(machine):  # noqa: F811
    (machine.pytester.path / "suites/demo/bench_demo.py").write_text(BENCH)
    return machine


def run(project, *args):
    return project.pytester.run(sys.executable, "-m", "pytest", "suites", "--quiet-wait", "0s", "--record", *args)


def record(project, *args, cut=None):
    folder = project.pytester.path / "suites/demo"
    if cut:
        (folder / "cut").write_text(cut)
    result = run(project, *args)
    ran = (folder / "ran").read_text().split()
    (folder / "ran").unlink()
    return result, ran


@pytest.mark.parametrize("cut", ["ctrl-c", "kill"])
def test_an_interrupted_recording_is_taken_up_and_ends_as_one_run(project, cut):
    interrupted, ran = record(project, cut=cut)
    assert interrupted.ret != 0
    assert ran == ["first", "nothing", "breaks", "cut"]
    rest, ran = record(project, "--resume")
    assert rest.ret == 0
    rest.stdout.fnmatch_lines(["*maat: the run of * UTC is taken up after 3 tests*"])
    assert ran == ["cut", "last"]
    (kept,) = project.runs
    assert not list((project.pytester.path / "runs").glob("*.jsonl"))
    assert sorted(row.id for row in kept.rows) == sorted(ALL)
    assert progress_of(kept) is None
    assert kept.facts["exit_code"] == 0
    again, ran = record(project, "--resume")
    again.stdout.fnmatch_lines(["*had ended: a new one begins*"])
    assert len(ran) == 5
    assert len(project.runs) == 2


def test_an_interruption_may_come_twice_and_its_run_file_says_how_far_it_came(project):
    record(project, cut="ctrl-c")
    assert len(progress_of(project.runs[0]).tests) == 3
    record(project, "--resume", cut="kill")
    result, ran = record(project, "--resume")
    assert result.ret == 0
    assert ran == ["cut", "last"]
    assert sorted(row.id for row in project.runs[0].rows) == sorted(ALL)


def test_what_broke_before_the_interruption_is_not_forgotten(project):
    (project.pytester.path / "suites/demo/broken").touch()
    record(project, cut="kill")
    result, ran = record(project, "--resume")
    assert ran == ["cut", "last"]
    assert result.ret == 1
    assert project.runs[0].facts["exit_code"] == 1


def test_a_recording_cut_after_its_last_test_has_nothing_left_to_run(project):
    record(project, cut="kill")
    (journal,) = (project.pytester.path / "runs").glob("*.jsonl")
    ended = journal.read_text().splitlines()[-1]
    names = [f"suites/demo/bench_demo.py::test_{name}" for name in ("cut", "last")]
    journal.write_text(journal.read_text() + re.sub(r"\[.*\]", str(names).replace("'", '"'), ended) + "\n")
    result = run(project, "--resume")
    assert result.ret == 0
    assert project.runs[0].facts["exit_code"] == 0


def test_a_torn_or_recovered_journal_is_taken_up_as_far_as_it_is_whole(project):
    record(project, cut="kill")
    (journal,) = (project.pytester.path / "runs").glob("*.jsonl")
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])
    recover(journal)
    _, ran = record(project, "--resume")
    assert ran == ["breaks", "cut", "last"]
    (kept,) = read_runs(project.pytester.path / "runs").runs
    assert sorted(row.id for row in kept.rows) == sorted(ALL)
    assert "recovered" not in kept.facts


def test_other_code_another_command_or_no_run_begin_anew(project):
    result, ran = record(project, "--resume")
    result.stdout.fnmatch_lines(["*no run of this command in *: a new one begins*"])
    assert len(ran) == 5
    record(project, "-v", cut="kill")
    _, ran = record(project, "--resume")
    assert len(ran) == 5
    git = ["git", "-c", "user.name=a", "-c", "user.email=a"]
    for command in (["init", "-q"], ["add", "suites"], ["commit", "-qm", "b"]):
        subprocess.run([*git, *command], cwd=project.pytester.path, check=True)
    result, ran = record(project, "-v", "--resume")
    result.stdout.fnmatch_lines(["*stays as it is: the code has changed (- then, *"])
    assert len(ran) == 5


def test_a_run_that_is_still_going_on_is_left_alone(project):
    record(project, cut="kill")
    (journal,) = (project.pytester.path / "runs").glob("*.jsonl")
    before = journal.read_bytes()
    writer = subprocess.Popen(
        [sys.executable, "-c", "import sys; file = open(sys.argv[1], 'a'); print(flush=True); input()", journal],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        writer.stdout.readline()
        _, ran = record(project, "--resume")
    finally:
        writer.communicate(b"\n")
    assert len(ran) == 5
    assert journal.read_bytes() == before


@pytest.mark.parametrize("options", [["--resume"], ["--gate", "--resume"], ["--learn", "--resume"]])
def test_only_a_recording_is_taken_up(project, options):
    result = project.run(*options)
    assert result.ret == 4
    assert "--resume takes up a recording: give it with --record" in result.stderr.str()
