"""What learning costs: by size of the fleet, and beside the forms that compare every pair of nodes."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cdist

from systems.anubis import synthetic
from systems.anubis.machine import Machine, Noise
from systems.anubis.records import Measurement, Run, compact, read_runs, write_run
from systems.anubis.validator import distance_totals, learn

# Slow: what the judge costs is no part of judging a machine.
pytestmark = [pytest.mark.component("harness"), pytest.mark.slow]


def samples_of(nodes, steps, *, seed=0):
    """A metric of a fleet with 3 % of slow nodes: (nodes,) where steps is 1, else (nodes, steps)."""
    metric = synthetic.Metric("learned", 100.0, "higher", 0.005, steps=steps)
    return synthetic.fleet([metric], nodes, seed=seed).samples["learned"]


def cpu_seconds(fn, rounds):
    """(rounds,) CPU seconds of this process, after one call to warm up: other load does not count."""
    fn()
    taken = []
    for _ in range(rounds):
        start = time.process_time()
        fn()
        taken.append(time.process_time() - start)
    return taken


def judge(claim, measure, value):
    """Judged at full size only, which is what a recording run has."""
    if measure.full:
        assert claim.holds(value)
    else:
        claim.report(value, "at a smaller size")


@pytest.mark.parametrize("steps", [1, 128])
@pytest.mark.parametrize("nodes", [100, 10_000])
def test_learn(measure, nodes, steps):
    samples = samples_of(nodes, steps)
    measure(lambda: learn(samples, "higher"))


@pytest.mark.claim("anubis/scale-series")
def test_learn_a_series_of_100000_nodes(measure, claim):
    nodes = 100_000 if measure.full else 5_000
    samples = samples_of(nodes, 128)
    taken = cpu_seconds(lambda: learn(samples, "higher"), 5 if measure.full else 1)
    measure.record("cpu", taken, "s")
    judge(claim, measure, float(np.median(taken)))


@pytest.mark.claim("anubis/scale")
def test_learn_30_scalars_of_100000_nodes(measure, claim):
    nodes = 100_000 if measure.full else 5_000
    metrics = [samples_of(nodes, 1, seed=seed) for seed in range(30)]
    taken = cpu_seconds(lambda: [learn(samples, "higher") for samples in metrics], 5 if measure.full else 1)
    measure.record("cpu", taken, "s")
    judge(claim, measure, float(np.median(taken)))


@pytest.mark.claim("anubis/scale-slope")
@pytest.mark.parametrize("steps", [1, 64, 128])
def test_growth(measure, claim, steps):
    """The slope of log CPU seconds over log nodes: 1 is linear."""
    sizes = [100, 1_000, 10_000, 100_000] if measure.full else [100, 1_000]
    taken = []
    for nodes in sizes:
        samples = samples_of(nodes, steps)
        taken.append(min(cpu_seconds(lambda samples=samples: learn(samples, "higher"), 5)))
    slope = float(np.polyfit(np.log(sizes), np.log(taken), 1)[0])
    measure.record("slope", slope, "1", better="lower")
    judge(claim, measure, slope)


@pytest.mark.timeout(900)
def test_learn_30_scalars_of_a_million_nodes(measure):
    """The stretch: seconds by the clock, two metrics at a time, on two cores."""
    nodes = 1_000_000 if measure.full else 20_000
    metrics = {f"m{seed:02d}": samples_of(nodes, 1, seed=seed) for seed in range(30)}
    taken = []
    for _ in range(2 if measure.full else 1):
        start = time.perf_counter()
        with ThreadPoolExecutor(2) as pool:
            learned = list(pool.map(lambda samples: learn(samples, "higher"), metrics.values()))
        taken.append(time.perf_counter() - start)
        assert all((one.verdicts == "defect").mean() > 0.02 for one in learned)
    measure.record("wall", taken, "s")
    if measure.full:
        assert min(taken) < 10.0, f"{min(taken):.1f} s, expected less than 10 on two quiet cores"


# --- run files: as many as a fleet leaves, and merged


@pytest.mark.timeout(900)
def test_read_run_files(measure, tmp_path):
    """Files of 30 series of 16 values each: one by one, and merged into one."""
    count = 2_000 if measure.full else 20
    random = np.random.default_rng(0)
    rows = tuple(
        Measurement(suite="h", test="t", component="c", metric=f"h/x/m{k}/time", unit="s", better="lower",
                    values=tuple(random.random(16) + 1), params={"n": str(k)}, noise=Noise(psi=0.1, load=1.0))
        for k in range(30)
    )  # fmt: skip
    for number in range(count):
        run = Run.begin(Machine(kind="x", node=f"{number:016x}", stack="s"))
        write_run(replace(run, rows=rows), tmp_path)
    apart = cpu_seconds(lambda: read_runs(tmp_path), 2)
    before = read_runs(tmp_path)
    compact(tmp_path)
    assert len(list(tmp_path.glob("*.parquet"))) == 1
    merged = cpu_seconds(lambda: read_runs(tmp_path), 2)
    assert read_runs(tmp_path).runs == before.runs
    assert len(before.runs) == count
    measure.record("apart", np.array(apart) / count, "s")
    measure.record("merged", np.array(merged) / count, "s")


# --- a rule engine that goes row by row, as rule-based tools do


def rules_by_row(frame, rules):
    """Pairs (node, metric) that break a rule: a function a value, row after row of a pandas table."""
    broken = []

    def diagnose(row):
        for metric, (baseline, broken_by) in rules.items():
            value = row[metric]
            if value is not None and value == value and broken_by((value - baseline) / baseline):
                broken.append((row.name, metric))
        return len(broken)

    frame.apply(diagnose, axis=1)
    return sorted(broken)


def rules_by_value(frame, rules):
    """The same by `DataFrame.loc`, a value at a time: how such engines look values up by name."""
    broken = []
    for metric, (baseline, broken_by) in rules.items():
        for node in frame.index:
            value = frame.loc[node, metric]
            if value == value and broken_by((value - baseline) / baseline):
                broken.append((node, metric))
    return sorted(broken)


def criteria_at_once(columns, criteria):
    """Learned criteria on the same table, a metric at a time: the nodes that fail each."""
    return {metric: np.flatnonzero(criteria[metric].judge_all(values)[0]) for metric, values in columns.items()}


def pairs(nodes_of):
    """What `criteria_at_once` gives, in the form that the rule engines give."""
    return sorted((int(node), metric) for metric, nodes in nodes_of.items() for node in nodes)


@pytest.mark.claim("anubis/scale-rule-engine")
def test_judge_beside_a_rule_engine(measure, claim):
    nodes = 20_000 if measure.full else 200
    columns = {f"m{seed:02d}": samples_of(nodes, 1, seed=seed) for seed in range(30)}
    frame = pd.DataFrame(columns)
    learned = {metric: learn(values, "higher").criterion for metric, values in columns.items()}
    rules = {
        metric: (float(one.quantiles[0]), lambda change, alpha=one.alpha: change <= alpha - 1 + 1e-9)
        for metric, one in learned.items()
    }
    few = frame.head(nodes // 10)
    few_columns = {metric: values[: len(few)] for metric, values in columns.items()}
    assert pairs(criteria_at_once(few_columns, learned)) == rules_by_row(few, rules) == rules_by_value(few, rules)
    ours, by_row, by_value = [], [], []
    for _ in range(5):
        ours += [nodes / taken for taken in cpu_seconds(lambda: criteria_at_once(columns, learned), 3)]
        by_row += [len(few) / taken for taken in cpu_seconds(lambda: rules_by_row(few, rules), 1)]
        by_value += [len(few) / taken for taken in cpu_seconds(lambda: rules_by_value(few, rules), 1)]
    measure.record("by_value", np.array(by_value) * len(rules), "op/s")
    measure.record("by_row", np.array(by_row) * len(rules), "op/s")
    measure.record("at_once", np.array(ours) * len(rules), "op/s")
    measure.record("over_by_row", np.median(ours) / np.median(by_row), "1", better="higher")
    judge(claim, measure, float(np.median(ours) / np.median(by_value)))


# --- the O(n^2 q) forms of the totals, each as fast as it gets: one node against all in cache, and scipy's own loop


def totals_by_numpy(rows):
    totals, differences = np.empty(len(rows)), np.empty_like(rows)
    for i, row in enumerate(rows):
        np.subtract(rows, row, out=differences)
        np.abs(differences, out=differences)
        totals[i] = differences.sum()
    return totals / rows.shape[1]


def totals_by_scipy(rows):
    return cdist(rows, rows, "cityblock").sum(axis=1) / rows.shape[1]


@pytest.mark.claim("anubis/scale-brute-force")
@pytest.mark.parametrize("nodes", [2_000, 8_000])
def test_totals(measure, claim, nodes):
    """All total distances of a fleet at q = 64; the peers' cost grows with the square of the nodes."""
    rows = np.sort(samples_of(nodes if measure.full else 500, 64), axis=1)
    X = np.ascontiguousarray(rows.T)
    speed = measure.versus(
        {
            "sorted": lambda: distance_totals(X),
            "numpy": lambda: totals_by_numpy(rows),
            "scipy": lambda: totals_by_scipy(rows),
        }
    )
    judge(claim, measure, speed.over("numpy"))
    speed.over("scipy").at_least(50)
