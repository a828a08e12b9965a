"""`--select` as a user meets it: a plan made at collection, said before the first test, and nothing else run."""

import json
import re

import pytest

from suites.harness.test_gate import machine  # noqa: F401
from systems.anubis.criteria import HISTORY, StoredCriterion, load_criteria, save_criteria
from systems.anubis.machine import fingerprint
from systems.anubis.matrix import HEALTHY, Matrix, Trial
from systems.anubis.selection import HAZARD_PRIOR, PRIOR, history_for, minutes_of, select
from systems.anubis.selector import BudgetTooSmall, History, SelectorError, UnknownBenchmark
from systems.anubis.survival import Exponential
from systems.anubis.validator import learn

BENCH = """
import pytest
from pathlib import Path

@pytest.fixture
def costly(request):
    with (Path(__file__).parents[2] / "fixtures_set_up").open("a") as log:
        log.write(request.node.name + "\\n")

PARTS = {"compute": ["gemm", "peak"], "memory": ["triad"], "disk": ["read", "append"], "network": ["veth", "tcp"],
         "model": ["train"]}

def make(part, name):
    @pytest.mark.component(part)
    def test(measure, costly):
        measure.record("time", [0.010, 0.0101], "s")
    return test

for part, names in PARTS.items():
    for name in names:
        globals()[f"test_{name}"] = make(part, name)
"""
MINUTES = {"gemm": 1.0, "peak": 0.5, "triad": 0.75, "read": 1.0, "append": 0.6, "veth": 0.7, "tcp": 0.4, "train": 4.0}
CAUGHT = {
    "cpu_quota(0.3)": ("gemm", "peak", "tcp", "train"),
    "cpu_burner(2)": ("gemm", "peak"),
    "memory_hog(2)": ("triad", "train"),
    "disk_throttle(50000000)": ("read", "append"),
    "link_rate(100)": ("veth",),
}


def benchmark(name):
    return f"demo/bench/{name}"


def matrix(repetitions=3):
    everything = tuple(map(benchmark, MINUTES))
    trials = []
    for fault, names in CAUGHT.items():
        for repetition in range(repetitions):
            caught = tuple(map(benchmark, names))
            trials.append(Trial(fault, repetition, 10, caught, (), ("compute",), everything))
            trials.append(Trial(HEALTHY, len(trials), 0, (), (), (), everything))
    return Matrix(tuple(trials))


@pytest.fixture
def learned(machine):  # noqa: F811
    """A project of eight benchmarks, with criteria, minutes as in `MINUTES`, and a history from a fault matrix."""
    folder = machine.pytester.path / "suites" / "demo"
    (folder / "bench_demo.py").unlink()
    (folder / "test_bench.py").write_text(BENCH)
    here = fingerprint(machine.pytester.path)
    criterion = learn([[0.010, 0.0101]] * 6, "lower").criterion
    criteria = {
        f"{benchmark(name)}/time": StoredCriterion(criterion, "s", stack=here.stack, seconds=60 * minutes)
        for name, minutes in MINUTES.items()
    }
    save_criteria(machine.pytester.path / "criteria", here.kind, criteria)
    (machine.pytester.path / "criteria" / here.kind / HISTORY).write_text(matrix().history().to_json())
    (machine.pytester.path / "runs").mkdir()
    return machine


def test_what_a_benchmark_costs_is_what_a_gate_has_learned_that_it_took(machine):  # noqa: F811
    bench = machine.pytester.path / "suites/demo/bench_demo.py"
    slow = "def test_slow(measure):\n    time.sleep(0.3)\n    measure.record('a', 1.0, 's')\n"
    bench.write_text(bench.read_text() + slow + "    measure.record('b', 2.0, 's')\n")
    machine.learn()
    minutes = minutes_of(load_criteria(machine.pytester.path / "criteria", fingerprint().kind))
    assert 0.3 <= 60 * minutes["demo/demo/slow"] < 3
    assert set(minutes) == {
        "demo/demo/read{size=4k}", "demo/demo/read{size=1m}", "demo/demo/steady", "demo/demo/digest", "demo/demo/slow"
    }  # fmt: skip


def chosen(result):
    return set(re.findall(r"min  demo/bench/(\w+)", result.stdout.str()))


def ran(project):
    log = project.pytester.path / "fixtures_set_up"
    return {name.removeprefix("test_") for name in log.read_text().split()} if log.exists() else set()


def runs(project):
    return len(project.runs)


def test_three_minutes_hold_one_benchmark_for_each_kind_of_fault(learned):
    result = learned.run("--gate", "--select", "--budget", "3")
    assert result.ret == 0
    names = ran(learned)
    assert names == chosen(result)
    for fault, catching in CAUGHT.items():
        assert names & set(catching), fault
    assert names == {"peak", "triad", "append", "veth"}  # each fault's cheapest: 2.55 minutes
    result.assert_outcomes(passed=4, deselected=4)
    result.stdout.fnmatch_lines(
        [
            "*maat: plan for at most 3 minutes: 4 of 8 benchmarks, 2.55 minutes, coverage 100.0% of defects, risk of*",
            f"*maat: history: *{HISTORY} (fault matrix: *), 15 defects",
            "*maat: chance of an incident: of a job of 24 h on 1 node, by the prior that ships with Maat*",
        ]
    )


def test_the_plan_is_made_before_any_fixture_and_is_kept_in_the_run_file(learned):
    result = learned.run("--gate", "--select", "--budget", "0.5")
    assert ran(learned) == chosen(result) == {"peak"}  # 2 of 5 faults; tcp is cheaper, and sees one
    kept = learned.runs[-1].facts["selection"]
    assert kept["benchmarks"] == ["demo/bench/peak"]
    assert kept["coverage"] == pytest.approx(0.4)
    assert kept["minutes"] == pytest.approx(0.5)
    assert {row.benchmark for row in learned.runs[-1].rows} == {"demo/bench/peak"}


def test_a_risk_target_takes_the_cheapest_benchmarks_that_reach_it(learned):
    result = learned.run("--gate", "--select", "--p0", "0.02", "--incident-probability", "0.05")
    assert ran(learned) == {"peak", "append"}  # three fifths of the defects leave 5 % at 2 %
    result.stdout.fnmatch_lines(["*risk of an incident 5.00% -> 2.00%*", "*chance of an incident: as given*"])


def test_a_target_that_no_plan_reaches_is_said_and_all_that_helps_runs(learned):
    result = learned.run("--gate", "--select", "--p0", "0.02", "--incident-probability", "0.05", "--budget", "1.05")
    assert ran(learned) == {"peak"}
    result.stdout.fnmatch_lines(["*risk at most 0.02 and at most 1.05 minutes*(target out of reach)*"])


def test_past_incidents_raise_the_risk_and_with_it_what_runs(learned):
    few = learned.run("--gate", "--select", "--p0", "0.03", "--incidents", "0,0,0,0,5")
    assert ran(learned) == set()
    assert few.ret == 0
    learned.run("--gate", "--select", "--p0", "0.03", "--incidents", "5,5,5,5,5", "--job", "3d")
    assert ran(learned)


def test_where_the_risk_is_low_already_nothing_runs_or_is_written_and_the_machine_passes(learned):
    before = runs(learned)
    result = learned.run("--gate", "--select")
    assert result.ret == 0
    assert ran(learned) == set()
    assert runs(learned) == before
    assert not list((learned.pytester.path / "runs").glob("*.jsonl"))
    result.stdout.fnmatch_lines(["*no validation needed: the risk of an incident is 0.25%, the target 0.05*"])
    result.stdout.fnmatch_lines(["*verdict: NOT NEEDED*"])


def test_collect_only_shows_the_plan(learned):
    result = learned.run("--gate", "--select", "--budget", "3", "--collect-only", "-q")
    assert chosen(result) == {"peak", "triad", "append", "veth"}
    assert ran(learned) == set()


def test_without_a_history_of_its_own_the_prior_is_used_and_named(learned):
    (learned.pytester.path / "criteria" / fingerprint().kind / HISTORY).unlink()
    result = learned.run("--gate", "--select", "--budget", "3")
    assert result.ret == 4  # the prior knows Maat's own benchmarks, and none of this project's
    assert "no history knows demo/bench/append" in result.stderr.str()
    found = history_for(learned.pytester.path, "x")
    assert "the prior that ships with Maat" in found.source
    assert "not of this kind of machine" in found.source


def test_benchmarks_without_minutes_or_history_are_left_out_by_name_and_strict_refuses(learned):
    bench = learned.pytester.path / "suites/demo/test_more.py"
    bench.write_text(
        "import pytest\n@pytest.mark.parametrize('n', [1, 2])\n"
        "def test_new(measure, n):\n    measure.record('time', 1.0, 's')\n"
    )
    history = learned.pytester.path / "other.json"
    some = {"demo/bench/peak": {1, 2}, "demo/bench/read": {3, 4}}
    history.write_text(History.of(some, 4, "repairs").to_json())
    arguments = ("--select", "--budget", "3", "--history", str(history))
    result = learned.run("--gate", *arguments)
    assert ran(learned) == {"peak", "read"}
    text = result.stdout.str()
    assert "left out, no criterion says what they cost: demo/more/new (2)" in text
    assert "left out, unknown to the history: demo/bench/append, demo/bench/gemm" in text
    assert f"history: {history} (repairs), 4 defects" in text
    before = runs(learned)
    strict = learned.run("--gate=strict", *arguments)
    assert strict.ret == 4
    assert "no history knows demo/bench/append" in strict.stderr.str()
    assert runs(learned) == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--gate", "--select", "--budget", "0.2"], "the cheapest is demo/bench/tcp with 0.4"),
        (["--gate", "--select", "--budget", "0"], "expected minutes above 0"),
        (["--gate", "--select", "--budget", "soon"], "expected minutes above 0"),
        (["--gate", "--select", "--p0", "1"], "expected a probability in"),
        (["--gate", "--select", "--incidents", "1,-2"], "expected numbers of past incidents"),
        (["--gate", "--select", "--incident-probability", "0.1", "--job", "3h"], "takes the place of --job"),
        (["--gate", "--select", "--history", "absent.json"], "absent.json: not a history of defects"),
        (["--gate", "--select", "--incident-model", "absent.json"], "absent.json: not an incident model"),
        (["--record", "--select"], "give --gate too"),
        (["--gate", "--budget", "3"], "give --select too"),
    ],
)
def test_what_cannot_be_selected_by_is_a_usage_error_and_nothing_is_written(learned, args, message):
    before = runs(learned)
    result = learned.run(*args)
    assert result.ret == 4
    assert message in result.stderr.str() + result.stdout.str()
    assert ran(learned) == set()
    assert runs(learned) == before
    assert not list((learned.pytester.path / "runs").glob("*.jsonl"))


def test_before_anything_is_learned_nothing_can_be_selected(machine):  # noqa: F811
    result = machine.run("--gate", "--select", "--budget", "3")
    assert result.ret == 4
    assert "nothing learned yet" in result.stderr.str()
    assert not (machine.pytester.path / "runs").exists()


def test_a_damaged_history_is_refused_by_name(learned):
    path = learned.pytester.path / "criteria" / fingerprint().kind / HISTORY
    path.write_text(path.read_text().replace("demo/bench/peak", "demo/bench/pique", 1))
    result = learned.run("--gate", "--select", "--budget", "3")
    assert result.ret == 4
    assert "inconsistent history" in result.stderr.str()


# --- the pure half: what is chosen, without pytest

HISTORY_OF_TWO = History.of({"a": {1, 2}, "b": {3, 4}}, 4)


def test_the_prior_that_ships_covers_within_three_minutes_what_all_of_it_covers():
    history = History.load(PRIOR)
    assert "fault matrix" in history.source
    if history.total < 4:
        pytest.skip(f"the prior stands on {history.total} defects only")
    for part in ("compute", "memory", "disk", "network", "model"):
        assert any(name.startswith(f"hardware/{part}") for name in history.benchmarks), part
    minutes = dict.fromkeys(sorted(history.benchmarks), 0.25)
    found = select(minutes, minutes, history, [0.1], budget=3)
    assert found.plan.minutes <= 3
    assert found.plan.coverage == pytest.approx(history.coverage(history.benchmarks))
    assert found.plan.coverage > 0


def test_the_prior_of_incidents_fails_repeat_offenders_sooner():
    model, source = Exponential.load(HAZARD_PRIOR)
    assert "InfiniteHBD" in source
    assert list(model.chances([0, 1, 2], 24)) == sorted(model.chances([0, 1, 2], 24))
    assert model.chances([0], 24)[0] == pytest.approx(1 - 2.718281828 ** (-24 * model.rates[0]))
    assert model.chances([99], 24)[0] == model.chances([len(model.rates) - 1], 24)[0]


def test_incident_models_survive_a_file_and_refuse_nonsense(tmp_path):
    path = tmp_path / "rates.json"
    model, _ = Exponential.load(HAZARD_PRIOR)
    path.write_text(model.to_json("again"))
    again, where = Exponential.load(path)
    assert (list(again.rates), where) == (list(model.rates), "again")
    for text in ("", "[]", "{}", json.dumps({"incidents_per_hour": [0.0], "source": ""}),
                 json.dumps({"incidents_per_hour": [], "source": ""})):  # fmt: skip
        path.write_text(text)
        with pytest.raises(ValueError, match=r"rates\.json"):
            Exponential.load(path)


def test_select_names_what_is_missing():
    minutes = {"a": 1.0, "b": 2.0}
    with pytest.raises(SelectorError, match="nothing learned yet of c"):
        select(["c"], minutes, HISTORY_OF_TWO, [0.5])
    with pytest.raises(UnknownBenchmark, match="no history knows c"):
        select(["c"], {"c": 1.0}, HISTORY_OF_TWO, [0.5])
    with pytest.raises(UnknownBenchmark, match="no history knows c"):
        select(["a", "c"], {"a": 1.0, "c": 1.0}, HISTORY_OF_TWO, [0.5], strict=True)
    with pytest.raises(BudgetTooSmall, match="cheapest is a with 1"):
        select(["a", "b"], minutes, HISTORY_OF_TWO, [0.5], budget=0.5)
    with pytest.raises(SelectorError, match="measures nothing"):
        select([], minutes, HISTORY_OF_TWO, [0.5])
    with pytest.raises(SelectorError, match="nothing to gain"):
        select(["a"], minutes, History.of({"a": set(), "b": {1}}, 1), [0.5])


def test_a_target_and_a_budget_together_take_the_target_where_it_fits():
    minutes = {"a": 1.0, "b": 2.0}
    fits = select(minutes, minutes, HISTORY_OF_TWO, [0.5], p0=0.3, budget=5)
    assert (fits.plan.benchmarks, fits.plan.reached) == (("a",), True)
    short = select(minutes, minutes, HISTORY_OF_TWO, [0.5], p0=0.01, budget=1.5)
    assert (short.plan.benchmarks, short.plan.reached) == (("a",), False)
    assert select(minutes, minutes, HISTORY_OF_TWO, [0.001], p0=0.05, budget=0.1).plan.benchmarks == ()
