"""What the Validator is for: planted defects are found, healthy nodes are not accused, beside what others use."""

from dataclasses import replace

import numpy as np
import pytest

from systems.anubis import synthetic
from systems.anubis.probes.gpu_health import HealthFacts, health_findings
from systems.anubis.simulator import Scenario
from systems.anubis.validator import learn

NODES = 600


# --- peers: each scores how far a node (nodes,) is on the worse side; a threshold on the score is theirs to tune


def mean_fix_threshold(worse):
    """SuperBench's rule: the relative deficit against the mean of all nodes."""
    return 1 - worse / worse.mean()


def tukey_fences(worse):
    low, high = np.quantile(worse, [0.25, 0.75])
    return (low - worse) / (high - low)


def median_absolute_deviations(worse):
    deviation = np.median(worse) - worse
    return deviation / np.median(np.abs(deviation))


def isolation_forest(worse):
    from sklearn.ensemble import IsolationForest

    scores = -IsolationForest(n_estimators=100, random_state=0).fit(worse[:, None]).score_samples(worse[:, None])
    return np.where(worse < np.median(worse), scores, 0)


def local_outlier_factor(worse):
    from sklearn.neighbors import LocalOutlierFactor

    # More neighbours than there are defects, or the defects are each other's neighbours.
    model = LocalOutlierFactor(n_neighbors=len(worse) // 10).fit(worse[:, None])
    return np.where(worse < np.median(worse), -model.negative_outlier_factor_, 0)


PEERS = {
    "mean fix threshold": mean_fix_threshold,
    "Tukey IQR": tukey_fences,
    "MAD": median_absolute_deviations,
    "IsolationForest": isolation_forest,
    "LOF": local_outlier_factor,
}


def speed(fleet, metric):
    """(nodes,) what a peer sees: higher is better."""
    values = fleet.samples[metric.name]
    return 1 / values if metric.better == "lower" else values


def score(fleet, peer):
    return np.stack([peer(speed(fleet, metric)) for metric in fleet.metrics])


def truth(fleet):
    """(metrics, nodes) bool."""
    return np.stack([fleet.defective[metric.name] for metric in fleet.metrics])


def rates(found, planted):
    """(recall, precision, F1)."""
    hits = (found & planted).sum()
    return hits / planted.sum(), hits / max(found.sum(), 1), 2 * hits / (found.sum() + planted.sum())


def best_threshold(scores, planted):
    """The threshold with the best F1 on labelled scores, midway to the next score; labels are the peers' alone."""
    order = np.argsort(-scores, axis=None)
    ordered, hits = scores.ravel()[order], np.cumsum(planted.ravel()[order])
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + planted.sum())
    best = int(f1.argmax())
    return (ordered[best] + ordered[min(best + 1, len(ordered) - 1)]) / 2


def found_by_learning(fleet):
    return np.stack([learn(fleet.samples[m.name], m.better).verdicts == "defect" for m in fleet.metrics])


# --- planted defects


@pytest.mark.parametrize("means", ["invented", "golden"])
def test_recovers_planted_defects(means, data):
    pytest.importorskip("sklearn", reason="two of the peers are scikit-learn's: pip install maat[peers]")
    if means == "golden":
        metrics = [
            metric
            for machine in ("ndv4", "ndmv4")
            for metric in synthetic.golden_metrics(data(f"anubis/superbench_{machine}_a100_v0.4_golden.json"))
        ]
        metrics = metrics[:: len(metrics) // 24]
    else:
        metrics = synthetic.invented_metrics(24)
    metrics = [replace(metric, cv=min(metric.cv, 0.01)) for metric in metrics]
    fleet = synthetic.fleet(metrics, NODES, planted=0.03, defect=synthetic.slowdown(0.08, 0.45), seed=1)
    labelled = synthetic.fleet(metrics, NODES, planted=0.03, defect=synthetic.slowdown(0.08, 0.45), seed=2)

    recall, precision, f1 = rates(found_by_learning(fleet), truth(fleet))
    assert recall >= 0.99
    assert precision >= 0.99
    # The peers are given what learning does without: a labelled fleet of the same kind to tune their threshold on.
    peers = {
        name: rates(score(fleet, peer) > best_threshold(score(labelled, peer), truth(labelled)), truth(fleet))[2]
        for name, peer in PEERS.items()
    }
    assert f1 >= max(peers.values()), f"F1 {f1:.4f}, peers {peers}"


def test_finds_a_defect_in_a_series_as_in_a_scalar():
    metrics = [synthetic.Metric("series", 40.0, better, 0.005, steps=64) for better in ("higher", "lower")]
    for metric in metrics:
        fleet = synthetic.fleet([metric], NODES, planted=0.03, seed=4)
        recall, precision, _ = rates(found_by_learning(fleet), truth(fleet))
        assert recall >= 0.99
        assert precision >= 0.99


# --- what a mean does not see


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_mean_is_blind_to_steps_that_swing(better):
    metric = synthetic.Metric("swinging", 40.0, better, 0.005, steps=64)
    fleet = synthetic.fleet([metric], 400, planted=0.03, defect=synthetic.masked(0.14), seed=5)
    planted = fleet.defective[metric.name]
    means = fleet.samples[metric.name].mean(axis=1)
    deviation = np.abs(means / means.mean() - 1)
    assert not np.any(deviation[planted] > 0.05)  # the usual rule of 5 % finds none,
    assert deviation[planted].max() < deviation[~planted].max()  # nor does any tighter one without false alarms
    recall, precision, _ = rates(found_by_learning(fleet), truth(fleet))
    assert recall >= 0.95
    assert precision >= 0.99


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_finds_nodes_of_which_8_percent_of_the_steps_stall(better):
    metric = synthetic.Metric("stalling", 40.0, better, 0.005, steps=128)
    fleet = synthetic.fleet([metric], 400, planted=0.03, defect=synthetic.stalled(0.08), seed=6)
    recall, precision, _ = rates(found_by_learning(fleet), truth(fleet))
    assert recall >= 0.95
    assert precision >= 0.99
    # The median step of such a node is a healthy one's.
    medians = np.median(fleet.samples[metric.name], axis=1)
    assert np.all(np.abs(medians[fleet.defective[metric.name]] / np.median(medians) - 1) < 0.05)


# --- the build-out: 24,000 GPUs in nodes of eight


@pytest.fixture(scope="module")
def buildout():
    """The generated build-out and (benchmarks, nodes) bool: found defective."""
    fleet = synthetic.buildout(3000, seed=0)
    return fleet, found_by_learning(fleet)


@pytest.mark.claim("anubis/buildout")
def test_the_share_of_defective_nodes_in_a_buildout_is_found(claim, buildout):
    fleet, found = buildout
    share = 100 * found.any(axis=0).mean()
    assert share == pytest.approx(100 * fleet.defective_nodes().mean(), abs=0.3)
    assert claim.holds(share)


@pytest.mark.claim("anubis/buildout-false-alarms")
def test_no_healthy_node_of_a_buildout_is_accused(claim, buildout):
    fleet, found = buildout
    assert claim.holds(int((found & ~truth(fleet)).any(axis=0).sum()))


def test_each_benchmark_of_a_buildout_finds_its_share_and_repeats_as_well_as_in_the_paper(buildout):
    fleet, found = buildout
    for metric, nodes in zip(fleet.metrics, found, strict=True):
        share, repeatability = synthetic.BUILDOUT[metric.name]
        assert nodes.mean() == pytest.approx(share, abs=0.003)
        learned = learn(fleet.samples[metric.name], metric.better).criterion
        assert learned.repeatability == pytest.approx(repeatability, abs=0.001)
        assert learned.calibrated
        assert learned.gates


# --- what the paper saw of its own hardware, and what is made of it here


@pytest.mark.claim("anubis/by-benchmark-shares")
def test_the_shares_of_the_buildout_are_the_generated_fleets(claim, buildout):
    fleet, found = buildout
    shares = {metric.name: 100 * nodes.mean() for metric, nodes in zip(fleet.metrics, found, strict=True)}
    worst = max(abs(share - 100 * synthetic.BUILDOUT[name][0]) for name, share in shares.items())
    claim.report(max(shares.values()), f"largest share, ib-loopback; each within {worst:.2f} points of the paper's")
    assert worst < 0.3


@pytest.mark.claim("anubis/repair-time")
def test_repairs_take_as_long_as_in_the_paper(claim):
    mu, sigma = Scenario().repair_parameters()
    hours = np.random.default_rng(0).lognormal(mu, sigma, 200_000)
    over_a_day, over_two_weeks = 100 * np.mean(hours > 24), 100 * np.mean(hours > 24 * 14)
    claim.report(over_a_day, f"drawn by the simulator: over a day; over two weeks {over_two_weeks:.1f} %")
    assert over_a_day == pytest.approx(38.1, abs=0.5)
    assert over_two_weeks == pytest.approx(10.3, abs=0.5)


@pytest.mark.claim("anubis/row-remap")
def test_more_than_ten_remapped_rows_are_a_defect_and_fewer_are_evidence(claim):
    """The rule itself, on counters as NVML gives them; whether a GPU has any is for `test_health` on one."""
    wrong = 0
    for correctable in range(16):
        for uncorrectable in range(16):
            facts = HealthFacts(0, rows_remapped_correctable=correctable, rows_remapped_uncorrectable=uncorrectable)
            severities = {finding.severity for finding in health_findings(facts)}
            rows = correctable + uncorrectable
            expected = {"defect"} if rows > 10 else {"evidence"} if rows else set()
            wrong += severities != expected
    assert claim.holds(wrong)
