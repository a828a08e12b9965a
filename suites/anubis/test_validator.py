"""Learning and judging, case by case: verdicts, thresholds, what is refused and how."""

import numpy as np
import pytest
from scipy import stats

from systems.anubis import validator
from systems.anubis.validator import (
    LEAST_ALPHA,
    Criterion,
    InvalidSample,
    NoMajority,
    NotEnoughNodes,
    ValidatorError,
    learn,
)


def nodes(n, cv, *, seed=0, steps=None):
    """Healthy samples around 100 with a coefficient of variation `cv` between nodes, 1 % between steps."""
    generator = np.random.default_rng(seed)
    values = 100 * (1 + cv * generator.standard_normal((n, 1)))
    if steps:
        return values * (1 + 0.01 * generator.standard_normal((n, steps)))
    return values[:, 0]


# --- verdicts


def test_a_slow_node_is_a_defect_and_a_fast_one_a_suspect():
    samples = nodes(50, 0.003)
    samples[7] *= 0.8
    samples[9] *= 1.3
    learned = learn(samples, "higher")
    assert learned.verdicts[7] == "defect"
    assert learned.verdicts[9] == "suspect"
    assert np.all(np.delete(learned.verdicts, [7, 9]) == "pass")
    assert learned.healthy.sum() == 48
    assert learned.criterion.nodes == 50
    assert learned.criterion.excluded == 2


def test_for_a_latency_the_high_node_is_the_defect():
    samples = nodes(50, 0.003)
    samples[7] *= 0.8
    samples[9] *= 1.3
    learned = learn(samples, "lower")
    assert learned.verdicts[7] == "suspect"
    assert learned.verdicts[9] == "defect"


def test_for_a_target_both_sides_are_defects():
    samples = nodes(50, 0.003)
    samples[7] *= 0.8
    samples[9] *= 1.3
    assert list(np.flatnonzero(learn(samples, "target").verdicts == "defect")) == [7, 9]


def test_the_criterion_is_the_sample_of_the_medoid():
    samples = nodes(31, 0.01, steps=48)
    learned = learn(samples, "higher")
    np.testing.assert_array_equal(learned.criterion.quantiles, np.sort(samples[learned.medoid]))
    assert learned.healthy[learned.medoid]


def test_a_criterion_judges_new_samples_of_any_length():
    criterion = learn(nodes(50, 0.003, steps=32), "higher").criterion
    for steps in (1, 7, 32, 100):
        sample = nodes(1, 0.0, seed=1, steps=steps)[0]
        assert criterion.judge(sample).status == "pass"
        verdict = criterion.judge(sample * 0.9)
        assert verdict.status == "defect"
        assert verdict.margin == pytest.approx(verdict.similarity - criterion.alpha)
        assert verdict.margin < 0


def test_a_sample_that_is_better_is_never_a_defect():
    learned = learn(nodes(50, 0.003), "higher")
    assert learned.judge(1000.0).similarity == 1.0
    assert learned.judge(1000.0).status == "pass"


def test_a_fixed_cut_excludes_healthy_nodes_of_a_noisy_metric_and_the_adaptive_one_spares_them():
    samples = nodes(2000, 0.024)
    fixed, adaptive = learn(samples, "higher", adaptive=False), learn(samples, "higher")
    assert fixed.criterion.excluded > 0.02 * len(samples)
    assert adaptive.criterion.excluded <= 2


def test_a_noisy_metric_says_that_it_does_not_gate():
    assert learn(nodes(100, 0.005), "higher").criterion.gates
    assert learn(nodes(50, 0.15), "higher").criterion.gates
    assert not learn([1.0, 1.9, 0.5, 1.4, 0.7], "higher").criterion.gates


# --- thresholds

FEW = (4, 5, 8, 20, 100)
SPREADS = (0.002, 0.01, 0.02, 0.04, 0.08)


def false_alarm_rates(n, cv, better, *, family=1, trials=300):
    """Per trial: the exact probability that one more healthy run, with normal noise, is called a defect."""
    generator = np.random.default_rng([n, round(1e4 * cv), family, len(better)])
    rates = []
    for _ in range(trials):
        healthy = np.maximum(1 + cv * generator.standard_normal(n), 1e-3)
        criterion = learn(healthy, better, family=family, delta=0.01).criterion
        if better == "higher":
            rates.append(stats.norm.cdf((criterion.quantiles[0] * criterion.alpha - 1) / cv))
        else:
            rates.append(stats.norm.sf((criterion.quantiles[0] / criterion.alpha - 1) / cv))
    return np.array(rates)


def assert_at_most(rates, bound):
    error = rates.std(ddof=1) / np.sqrt(len(rates))
    assert rates.mean() <= bound + 3 * error, f"{rates.mean():.6f} +- {error:.6f}, expected {bound} at most"


@pytest.mark.parametrize("better", ["higher", "lower"])
@pytest.mark.parametrize("n", FEW)
def test_few_runs_hold_the_false_alarm_rate_of_one_more_run(n, better):
    for cv in SPREADS:
        assert_at_most(false_alarm_rates(n, cv, better), 0.01)


@pytest.mark.parametrize("better", ["higher", "lower"])
@pytest.mark.parametrize("n", FEW)
def test_few_runs_hold_the_false_alarm_rate_of_a_family_of_metrics(n, better):
    for cv in SPREADS:
        # By the union bound, the family's rate is at most the sum of its metrics' rates, however they depend.
        assert_at_most(30 * false_alarm_rates(n, cv, better, family=30), 0.01)


@pytest.mark.parametrize("side", ["higher", "lower", "target"])
@pytest.mark.parametrize(
    ("cv", "step_cv"), [(0.04, 0.05), (0.002, 0.3), (0.03, 0.3)], ids=["runs differ", "steps differ", "both differ"]
)
def test_few_runs_of_a_series_hold_the_false_alarm_rate(cv, step_cv, side):
    generator = np.random.default_rng(3)
    for n in (4, 6, 20):
        alarms = []
        for _ in range(200):
            runs = 1 + cv * generator.standard_normal((n + 20, 1))
            runs = np.maximum(runs * (1 + step_cv * generator.standard_normal((n + 20, 16))), 0.05)
            criterion = learn(runs[:n], side).criterion
            alarms.append(np.mean([criterion.judge(run).status == "defect" for run in runs[n:]]))
        assert_at_most(np.array(alarms), 0.01)


@pytest.mark.parametrize(
    "noise", [stats.norm, stats.laplace, stats.t(4), stats.uniform(-2, 4)], ids=["normal", "laplace", "t4", "uniform"]
)
def test_many_runs_hold_the_false_alarm_rate_whatever_the_noise(noise):
    generator = np.random.default_rng(5)
    for n in (300, 1000):
        rates, dropped = [], []
        for _ in range(60):
            learned = learn(np.maximum(1 + 0.03 * noise.rvs(size=n, random_state=generator), 1e-3), "higher")
            bound = learned.criterion.quantiles[0] * learned.criterion.alpha
            rates.append(noise.cdf((bound - 1) / 0.03))
            dropped.append(np.mean(learned.verdicts == "defect"))
            assert learned.criterion.calibrated
        # What the exclusion cut drops from the healthy nodes themselves, in heavy tails, comes on top of delta.
        assert_at_most(np.array(rates), 0.01 + np.mean(dropped))
        assert np.mean(dropped) < 0.006


@pytest.mark.parametrize("family", [1, 30])
def test_the_threshold_of_few_runs_is_students_prediction_bound(family):
    rates = np.array([88.0, 101.0, 97.0, 108.0, 95.0, 104.0, 92.0])
    deficits = 1 - rates / 97.0
    t = stats.t.ppf(1 - 0.01 / family, len(rates) - 1)
    bound = max(deficits.mean(), 0) + t * deficits.std(ddof=1) * np.sqrt(1 + 1 / len(rates))
    learned = learn(rates, "higher", family=family)
    assert learned.healthy.all()
    assert learned.criterion.quantiles == [97.0]
    assert learned.criterion.alpha == pytest.approx(1 - bound, abs=2e-6)
    assert learn(1 / rates, "lower", family=family).criterion.alpha == pytest.approx(1 - bound, abs=2e-6)


def test_a_target_fails_on_both_sides_no_oftener_than_delta():
    generator = np.random.default_rng(1)
    rates = []
    for _ in range(300):
        criterion = learn(np.maximum(1 + 0.04 * generator.standard_normal(8), 1e-3), "target").criterion
        c = criterion.quantiles[0]
        low, high = (c * criterion.alpha - 1) / 0.04, (c / criterion.alpha - 1) / 0.04
        rates.append(stats.norm.cdf(low) + stats.norm.sf(high))
    assert_at_most(np.array(rates), 0.01)


def test_a_criterion_says_whether_it_is_calibrated():
    assert not learn(nodes(199, 0.003), "higher").criterion.calibrated
    assert learn(nodes(200, 0.003), "higher").criterion.calibrated
    assert not learn(nodes(200, 0.003), "higher", family=30).criterion.calibrated
    assert learn(nodes(200, 0.003), "higher", delta=0.05, family=5).criterion.calibrated


def test_steady_runs_keep_the_default_alpha_and_noisy_ones_lower_it():
    assert learn(nodes(5, 0.001), "higher").criterion.alpha == 0.95
    assert learn(nodes(5, 0.05), "higher").criterion.alpha < 0.93
    assert learn(nodes(5, 0.4, seed=2), "higher").criterion.alpha == LEAST_ALPHA


def test_a_latency_and_its_reciprocal_rate_get_the_same_threshold():
    rates = nodes(9, 0.04)  # an odd number: the median of the reciprocals is the reciprocal of the median
    by_rate, by_latency = learn(rates, "higher").criterion, learn(1 / rates, "lower").criterion
    assert by_rate.alpha < 0.95
    assert by_latency.alpha == pytest.approx(by_rate.alpha, abs=2e-6)


def test_a_run_exactly_at_a_noise_bound_passes():
    # A metric with few possible values: many runs sit on the bound, and would all fail if it did not count as noise.
    learned = learn(np.repeat([104.0, 100.0, 97.0, 93.0], [200, 400, 200, 200]), "higher")
    assert learned.criterion.quantiles == [100.0]
    assert learned.criterion.alpha == pytest.approx(0.93, abs=2e-6)
    assert learned.judge(93.0).status == "pass"


# --- populations that are not one


def test_three_kinds_of_hardware_without_a_majority_are_refused_with_their_sizes_and_medians():
    samples = np.concatenate([nodes(40, 0.003), 1.5 * nodes(30, 0.003), 2 * nodes(30, 0.003)])
    with pytest.raises(NoMajority, match="two kinds of hardware") as caught:
        learn(samples, "higher", adaptive=False)
    kept, others = caught.value.sizes
    assert kept + others == 100
    assert kept < 50
    assert caught.value.medians[0] == pytest.approx(150, rel=0.01)


def test_two_kinds_in_equal_parts_are_refused_rather_than_taken_for_noise():
    samples = np.concatenate([nodes(50, 0.005), 0.85 * nodes(50, 0.005)])
    with pytest.raises(NoMajority) as caught:
        learn(samples, "higher")
    assert sorted(caught.value.sizes) == [50, 50]
    assert sorted(round(median) for median in caught.value.medians) == [85, 100]


@pytest.mark.parametrize(
    "noise", [stats.norm, stats.uniform(-2, 4), stats.laplace], ids=["normal", "uniform", "laplace"]
)
def test_wide_noise_is_not_taken_for_two_kinds(noise):
    for seed in range(20):
        learn(np.maximum(1 + 0.08 * noise.rvs(size=200, random_state=seed), 1e-3), "higher")


def test_a_minority_of_another_kind_is_named_node_by_node():
    samples = np.concatenate([nodes(60, 0.005), 0.85 * nodes(40, 0.005)])
    assert list(np.flatnonzero(learn(samples, "higher").verdicts == "defect")) == list(range(60, 100))


# --- bad input


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 0.0, -1.0])
def test_a_node_with_an_unusable_value_is_invalid_and_the_others_go_on(bad):
    scalars, series = nodes(20, 0.003), nodes(20, 0.003, steps=10)
    scalars[4] = bad
    series[4, 3] = bad
    ragged = [row if i != 4 else row[:6] for i, row in enumerate(series)]
    for samples in (scalars, series, ragged):
        learned = learn(samples, "higher")
        assert list(np.flatnonzero(learned.verdicts == "invalid")) == [4]
        assert not learned.healthy[4]
        assert learned.criterion.nodes == 19


def test_an_empty_or_missing_sample_is_invalid():
    samples = [*nodes(10, 0.003, steps=5), np.array([]), None]
    learned = learn(samples, "higher")
    assert list(learned.verdicts[-2:]) == ["invalid", "invalid"]
    assert learned.criterion.nodes == 10


def test_fewer_than_three_valid_nodes_are_not_enough():
    with pytest.raises(NotEnoughNodes, match="2 valid samples of 4 given, 3 needed") as caught:
        learn([1.0, np.nan, 1.0, 0.0], "higher")
    assert (caught.value.valid, caught.value.given) == (2, 4)
    with pytest.raises(NotEnoughNodes):
        learn([], "higher")
    with pytest.raises(NotEnoughNodes):
        learn(np.empty((5, 0)), "higher")


@pytest.mark.parametrize(
    "arguments",
    [
        {"better": "up"},
        {"alpha": 0.0},
        {"alpha": 1.0},
        {"delta": 0.0},
        {"delta": 0.7},
        {"family": 0},
    ],
)
def test_an_argument_out_of_range_is_named(arguments):
    with pytest.raises(ValidatorError, match=next(iter(arguments))):
        learn(nodes(5, 0.01), **{"better": "higher", **arguments})


def test_samples_of_higher_dimension_are_refused():
    with pytest.raises(InvalidSample, match=r"\(4, 3, 2\)"):
        learn(np.ones((4, 3, 2)), "higher")
    with pytest.raises(InvalidSample, match="sample 1"):
        learn([1.0, np.ones((2, 2)), 1.0, 1.0], "higher")


@pytest.mark.parametrize("sample", [[], [1.0, np.nan], [1.0, 0.0], [[1.0, 2.0]], np.inf, -3.0])
def test_an_unusable_sample_is_not_judged(sample):
    with pytest.raises(InvalidSample):
        learn(nodes(5, 0.01), "higher").judge(sample)


def test_an_unusable_value_is_named_with_its_index():
    with pytest.raises(InvalidSample, match=r"nan at index 2"):
        validator.similarity([1.0, 2.0, np.nan], [1.0])


@pytest.mark.parametrize(
    "damage",
    [
        {"quantiles": [1.0, -1.0]},
        {"quantiles": [2.0, 1.0]},
        {"quantiles": []},
        {"better": "best"},
        {"alpha": 1.5},
        {"alpha": float("nan")},
        {"repeatability": 0.0},
    ],
)
def test_a_damaged_criterion_cannot_be_built(damage):
    whole = {
        "quantiles": [1.0, 2.0],
        "better": "higher",
        "alpha": 0.95,
        "calibrated": False,
        "repeatability": 0.99,
        "nodes": 5,
        "excluded": 0,
    }
    Criterion(**whole)
    with pytest.raises(ValidatorError):
        Criterion(**{**whole, **damage})


def test_a_criterion_cannot_be_changed():
    criterion = learn(nodes(5, 0.01), "higher").criterion
    with pytest.raises(ValueError, match="read-only"):
        criterion.quantiles[0] = 1.0


# --- scale


def test_the_medoid_of_3000_nodes_is_that_of_brute_force():
    X = np.ascontiguousarray(np.sort(nodes(3000, 0.01, steps=64), axis=1).T)
    totals = np.array([np.abs(X - X[:, i, None]).sum() / len(X) for i in range(X.shape[1])])
    assert validator.medoid(X) == totals.argmin()
    np.testing.assert_allclose(validator.distance_totals(X), totals, rtol=1e-12)


def test_a_small_spread_on_a_large_mean_keeps_its_medoid():
    generator = np.random.default_rng(0)
    X = 1e9 + generator.integers(0, 1000, (8, 2001)).astype(float)  # exact in float64, lost in float32
    exact = [sum(int(np.abs(row.astype(int) - int(row[i])).sum()) for row in X) for i in range(X.shape[1])]
    np.testing.assert_array_equal(np.round(validator.distance_totals(X) * len(X)).astype(int), exact)
    assert validator.medoid(X) == int(np.argmin(exact))


def test_sampled_pairs_estimate_the_repeatability_of_all_pairs(monkeypatch):
    series = nodes(2000, 0.02, steps=16)
    exact = validator.repeatability(series)
    monkeypatch.setattr("systems.anubis.samples.EXHAUSTIVE_PAIRS", 10)
    assert validator.repeatability(series) == pytest.approx(exact, abs=2e-4)
