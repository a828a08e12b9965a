"""What learning costs: by size of the fleet, and beside the forms that compare every pair of nodes."""

import time

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from systems.anubis import synthetic
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
