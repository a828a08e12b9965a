"""The measure fixture: what it times, records, refuses and compares; each on a real pytest run."""

import base64
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fixtures.measuring import MOST_VALUES, thin
from fixtures.ratio import Ratio, Versus, paired_ratio
from fixtures.timing import Budget, CpuTimer, ZeroTimer, calibrate, interleave
from suites.harness.test_gate import CONFTEST, ROOT
from systems.anubis.records import read_runs


@pytest.fixture(scope="module", autouse=True)
def torch_whole():
    """pytester forgets modules that were imported inside it, and torch's comparison loads parts that load only once."""
    torch.testing.assert_close(torch.ones(1), torch.ones(1))


@pytest.fixture
def project(pytester, monkeypatch):
    pytester.makeconftest(CONFTEST)
    pytester.makeini(
        "[pytest]\npython_files = test_*.py bench_*.py\n"
        "markers =\n    component(name)\n    claim(id)\n    gpu\n    slow\n"
    )
    pytester.syspathinsert(ROOT)
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    (pytester.path / "suites" / "demo").mkdir(parents=True)

    def run(body, *args):
        (pytester.path / "suites/demo/bench_demo.py").write_text("import time\nimport pytest\nimport torch\n" + body)
        result = pytester.runpytest_inprocess("suites", "--quiet-wait", "0s", "-p", "no:cacheprovider", *args)
        runs = read_runs(pytester.path / "runs").runs
        return result, {(row.id, row.rival): row for row in (runs[-1].rows if runs else ())}

    return run


def test_a_call_is_timed_in_seconds_and_its_result_returned(project):
    result, rows = project(
        "def test_x(measure):\n    assert measure(lambda: (time.sleep(0.01), 7)[1]) == 7\n", "--record"
    )
    assert result.ret == 0
    row = rows["demo/demo/x/time", None]
    assert row.unit == "s"
    assert row.better == "lower"
    assert row.rounds >= 7
    assert 0.010 <= statistics.median(row.values) < 0.1


def test_work_makes_a_rate(project):
    _, rows = project("def test_x(measure):\n    measure(lambda: time.sleep(0.01), work=100, unit='B/s')\n", "--record")
    row = rows["demo/demo/x/throughput", None]
    assert row.better == "higher"
    assert row.work == 100
    assert 1e3 < statistics.median(row.values) <= 1e4


def test_several_calls_in_one_test_have_names_of_their_own(project):
    body = "def test_x(measure):\n    measure(lambda: 1, metric='a')\n    measure(lambda: 2, metric='b')\n"
    result, rows = project(body, "--record")
    assert result.ret == 0
    assert {name for name, _ in rows} == {"demo/demo/x/a", "demo/demo/x/b"}
    result, _ = project(body.replace("'b'", "'a'"), "--record")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*demo/demo/x/a: measured twice in one test*"])


def test_steps_keep_their_order_and_leave_the_warm_up_out(project):
    body = """
def test_x(measure):
    done = [time.sleep(0.003 * 2**i) or i for i in measure.steps(6, work=4, unit="sample/s", warmup=2)]
    assert done == list(range(8 if measure.full else 4))
"""
    result, rows = project(body, "--record")
    assert result.ret == 0
    row = rows["demo/demo/x/step", None]
    assert len(row.values) == 6
    assert row.warmup == 2
    assert list(row.values) == sorted(row.values, reverse=True)
    assert project(body)[0].ret == 0


@pytest.mark.parametrize(
    ("values", "index"),
    [
        ([], "empty"),
        ([1.0, float("nan")], "value 1"),
        ([float("inf")], "value 0"),
        ([1.0, 2.0, 0.0], "value 2"),
        ([-1.0], "value 0"),
    ],
)
def test_a_bad_value_is_refused_with_metric_and_index(project, values, index):
    text = repr(values).replace("nan", "float('nan')").replace("inf", "float('inf')")
    result, rows = project(f"def test_x(measure):\n    measure.record('m', {text}, 's')\n", "--record")
    assert result.ret == 1
    result.stdout.fnmatch_lines([f"*demo/demo/x/m: *{index}*"])
    assert all(row.status == "error" for row in rows.values())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("measure.record('m', 1.0, 'MB/s')", "unknown unit 'MB/s'"),
        ("measure.record('m', 1.0, '1')", "says nothing about which way is better"),
        ("measure.record('m', 1.0, 's', better='up')", "better must be one of"),
        ("measure(lambda: 1, work=3, unit='s')", "work= makes a rate"),
        ("measure(lambda: 1, work=0, unit='B/s')", "work must be a positive number"),
        ("measure.versus({'ours': lambda: 1})", "at least two contenders"),
        ("measure.versus({'ours': lambda: None, 'peer': lambda: None})", "returns nothing to compare"),
        ("list(measure.steps(0))", "n must be at least 1"),
    ],
)
def test_a_wrong_call_says_what_was_expected(project, call, message):
    result, _ = project(f"def test_x(measure):\n    {call}\n")
    assert result.ret == 1
    assert message in result.stdout.str()


def test_contenders_are_compared_before_they_are_timed(project):
    body = """
def test_x(measure):
    measure.versus({"ours": lambda: torch.ones(3), "wrong": lambda: torch.tensor([1.0, 1.0, 1.1])})
"""
    result, rows = project(body, "--record")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*wrong disagrees with ours*"])
    assert not [row for row in rows.values() if row.rival]


@pytest.mark.parametrize(
    ("a", "b", "agree"),
    [
        ("1.0", "1.0 + 1e-12", True),
        ("1.0", "1.001", False),
        ("[1.0, {'k': 2}]", "[1.0, {'k': 2}]", True),
        ("[1.0]", "[1.0, 2.0]", False),
        ("'text'", "'text'", True),
        ("'text'", "'other'", False),
        ("torch.ones(2)", "torch.ones(2).numpy()", True),
        ("torch.tensor([float('nan')])", "torch.tensor([0.0])", False),
        ("{'a': 1}", "{'b': 1}", False),
        ("True", "False", False),
    ],
)
def test_results_agree_by_value_whatever_holds_them(project, a, b, agree):
    result, _ = project(f"def test_x(measure):\n    measure.versus({{'ours': lambda: {a}, 'peer': lambda: {b}}})\n")
    assert result.ret == (0 if agree else 1)


def test_a_ratio_is_reported_in_a_plain_run_and_judged_in_a_recording_one(project):
    body = """
def test_x(measure):
    speed = measure.versus({"slow": lambda: time.sleep(0.004) or 1, "fast": lambda: time.sleep(0.001) or 1})
    speed.over("fast").at_least(2.0)
"""
    plain, rows = project(body)
    assert plain.ret == 0
    assert not rows
    plain.stdout.fnmatch_lines(["*ratios (reported, not judged)*", "*SHORT: slow over fast: *expected at least 2x*"])
    recorded, rows = project(body, "--record")
    assert recorded.ret == 1
    recorded.stdout.fnmatch_lines(["*AssertionError: slow over fast: 0.*expected at least 2x*"])
    value, low, high = rows["demo/demo/x/ratio{of=slow,over=fast}", "slow"].values
    assert 0.1 < low <= value <= high < 0.6
    assert {rival for _, rival in rows if rival} == {"slow", "fast"}


def test_parameters_are_part_of_the_metric_id_whatever_their_type(project):
    body = """
class Named:
    name = "named"
@pytest.mark.parametrize("n", [3])
@pytest.mark.parametrize("thing", [Named(), torch.float32, object()])
def test_x(measure, n, thing, device):
    measure.record("m", 1.0, "s")
"""
    _, rows = project(body, "--record", "-m", "not gpu")
    assert {name for name, _ in rows} == {
        "demo/demo/x/m{device=cpu,n=3,thing=named}",
        "demo/demo/x/m{device=cpu,n=3,thing=1}",
        "demo/demo/x/m{device=cpu,n=3,thing=2}",
    }


def test_digests_of_equal_data_are_equal_and_of_different_data_are_not(project):
    body = """
import numpy as np
def test_x(measure):
    x = torch.arange(6).reshape(2, 3)
    a = measure.digest("a", x)
    assert a == measure.digest("b", x.T.contiguous().T)
    assert a != measure.digest("c", x.reshape(3, 2))
    assert a != measure.digest("d", x.float())
    assert measure.digest("e", [x, b"tail"]) != a
    assert measure.digest("f", np.arange(3)) == measure.digest("g", np.arange(3))
    assert measure.digest("h", torch.tensor(2.5, dtype=torch.bfloat16))
"""
    result, rows = project(body, "--record")
    assert result.ret == 0, result.stdout.str()
    assert rows["demo/demo/x/a", None].values == rows["demo/demo/x/b", None].values
    assert rows["demo/demo/x/a", None].better == "target"


def test_pytest_benchmarks_own_options_still_hold(project, pytester):
    result, _ = project(
        "def test_x(measure):\n    measure(lambda: time.sleep(0.001))\n",
        "--benchmark-min-rounds=11",
        "--benchmark-max-time=0.001",
        "--benchmark-json=b.json",
    )
    assert result.ret == 0
    import json

    content = json.loads((pytester.path / "b.json").read_text())
    assert content["benchmarks"][0]["stats"]["rounds"] == 11
    assert content["machine_info"]["maat"]["kind"]
    assert (
        project(
            "def test_x(measure):\n    assert measure(lambda: 5) == 5\n    list(measure.steps(3))\n"
            "    measure.versus({'a': lambda: 1, 'b': lambda: 1}).over('b').at_least(9)\n",
            "--benchmark-disable",
        )[0].ret
        == 0
    )


# --- the pure parts ---


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=2000))
def test_thinning_keeps_the_mean_and_the_range(values):
    thinned = thin(values)
    assert len(thinned) <= MOST_VALUES
    assert min(values) * (1 - 1e-9) <= min(thinned) <= max(thinned) <= max(values) * (1 + 1e-9)
    if len(values) <= MOST_VALUES:
        assert thinned == tuple(values)
    elif len(values) % MOST_VALUES == 0:
        assert np.mean(thinned) == pytest.approx(np.mean(values))


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=40), st.floats(0.01, 100))
def test_a_paired_ratio_of_a_multiple_is_that_multiple_exactly(times, factor):
    value, low, high = paired_ratio(times, [factor * t for t in times])
    assert value == pytest.approx(factor)
    assert low <= value <= high
    backwards = paired_ratio([factor * t for t in times], times)[0]
    assert backwards == pytest.approx(1 / factor)


def test_the_interval_covers_the_true_ratio_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(300):
        drift = 1 + 0.2 * generator.random(25)  # slows both contenders of a round alike
        ours, peer = drift * generator.normal(1.0, 0.03, 25), drift * generator.normal(1.5, 0.03, 25)
        _, low, high = paired_ratio(ours, peer, seed=seed)
        covered += low <= 1.5 <= high
    assert covered >= 0.88 * 300


def test_a_comparison_uses_the_bound_that_counts_against_it():
    ratio = Ratio(2.0, 1.5, 2.5)
    assert ratio > 1.4
    assert not ratio > 1.6
    assert ratio < 2.6
    assert not ratio < 2.2
    assert ratio >= 1.5
    assert ratio <= 2.5
    with pytest.raises(AssertionError, match=r"expected at least 1\.6x"):
        ratio.at_least(1.6)
    ratio.at_least(1.5)
    ratio.at_most(2.5)
    with pytest.raises(AssertionError, match="at most"):
        ratio.at_most(2.4)
    unjudged = Ratio(2.0, 1.5, 2.5, judged=False)
    unjudged.at_least(100.0)


def test_paired_rounds_must_match():
    with pytest.raises(ValueError, match="same rounds"):
        paired_ratio([1.0], [1.0, 2.0])
    with pytest.raises(KeyError, match="no contender 'nobody'"):
        Versus({"a": [1.0]}, lambda *args: None).over("nobody")


def test_rounds_are_interleaved_in_abba_order():
    seen = []
    timer = CpuTimer()
    budget = Budget(min_rounds=4, max_seconds=0.0, precision=None, min_round=0.0)
    interleave(timer, {"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, budget)
    assert "".join(seen[2:]) == "abbaabba"  # the first two are the calibration


def test_a_clock_that_stands_still_is_an_error():
    with pytest.raises(ZeroTimer, match="the clock stands still"):
        calibrate(lambda fn, loops: 0.0, lambda: None, 1e-4)
    with pytest.raises(ZeroTimer, match="took 0 s"):
        interleave(lambda fn, loops: 0.0, {"a": lambda: None}, Budget(min_round=0.0))


def test_thread_counts_and_dtypes_are_given_back_after_each_test(project):
    body = """
def test_first(measure):
    torch.set_num_threads(1); torch.set_default_dtype(torch.float64); torch.set_grad_enabled(False)
def test_second(measure):
    assert torch.get_num_threads() == THREADS and torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()
def test_seeded_alike():
    assert torch.rand(1).item() == torch.manual_seed(20240206) and False or True
""".replace("THREADS", str(torch.get_num_threads()))
    assert project(body)[0].ret == 0


def test_a_series_that_takes_too_long_ends_early(project, monkeypatch):
    monkeypatch.setattr("fixtures.measuring.MOST_SECONDS", 0.05)
    body = "def test_x(measure):\n    assert len([time.sleep(0.01) for i in measure.steps(64, warmup=2)]) < 30\n"
    result, rows = project(body, "--record")
    assert result.ret == 0
    assert 8 <= len(rows["demo/demo/x/step", None].values) < 30


DRAWING = """
from pathlib import Path
def test_x(measure, tmp_path):
    path = tmp_path / "a.svg"
    path.write_text("<svg/>")
    measure.picture("first", path)
    path.write_text("<svg id='2'/>")
    measure.picture("first", path)
    with pytest.raises(ValueError, match="neither"):
        measure.picture("text", tmp_path / "a.txt")
    path.write_bytes(bytes((1 << 20) + 1))
    with pytest.raises(ValueError, match="at most"):
        measure.picture("huge", path)
    measure(lambda: 1)
"""


def test_what_a_test_draws_is_kept_in_the_run(project, pytester):
    result, _ = project(DRAWING, "--record")
    assert result.ret == 0
    (picture,) = read_runs(pytester.path / "runs").runs[-1].facts["pictures"]
    assert (picture["suite"], picture["title"]) == ("demo", "first")
    assert picture["image"] == "data:image/svg+xml;base64," + base64.b64encode(b"<svg id='2'/>").decode()


def test_a_plain_run_keeps_no_drawings(project):
    result, _ = project(DRAWING)
    assert result.ret == 0
