"""Thresholds that hold together over a family of metrics, windows of series, and the compiled sort behind them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from systems.anubis import ordering, synthetic
from systems.anubis.calibration import learn_fleet
from systems.anubis.samples import ValidatorError
from systems.anubis.validator import learn
from systems.anubis.window import period, window

METRICS = 30
SPREADS = np.geomspace(0.002, 0.04, METRICS)


def noise(nodes, rho, generator):
    """(metrics, nodes) normal, each pair of metrics correlated by rho."""
    shared = generator.standard_normal(nodes)
    own = generator.standard_normal((METRICS, nodes))
    return np.sqrt(rho) * shared + np.sqrt(1 - rho) * own


def healthy(nodes, rho, generator):
    values = np.maximum(100 * (1 + SPREADS[:, None] * noise(nodes, rho, generator)), 1)
    return {f"m{i}": row for i, row in enumerate(values)}


@pytest.mark.parametrize("rho", [0.0, 0.9])
def test_the_family_of_30_metrics_accuses_one_healthy_node_in_a_hundred_at_most(rho):
    generator = np.random.default_rng(7)
    better = {f"m{i}": "higher" if i % 2 else "lower" for i in range(METRICS)}
    alarms, fixed = [], []
    for _ in range(3):
        fleet = learn_fleet(healthy(2000, rho, generator), better, workers=2)
        assert fleet.calibrated
        fresh = healthy(4000, rho, generator)
        accused, by_fixed = np.zeros(4000, bool), np.zeros(4000, bool)
        for name, values in fresh.items():
            c = fleet.learned[name].criterion
            near = np.minimum(values / c.quantiles[0] if c.better == "higher" else c.quantiles[0] / values, 1)
            accused |= near <= c.alpha
            by_fixed |= near <= 0.95
        alarms.append(accused.mean())
        fixed.append(by_fixed.mean())
    sigma = np.sqrt(0.01 * 0.99 / 2000)  # of the calibration set
    assert np.mean(alarms) <= 0.01 + 3 * sigma, (alarms, fixed)
    assert np.mean(fixed) > 0.1  # what a fixed 0.95 does to the same nodes


def test_planted_defects_are_found_by_thresholds_that_hold_for_the_family():
    metrics = synthetic.invented_metrics(METRICS, seed=3)
    fleet = synthetic.fleet(metrics, 2000, planted=0.003, seed=3)
    found = learn_fleet(fleet.samples, {m.name: m.better for m in metrics}, workers=2)
    accused = np.stack([found.verdicts(m.name) == "defect" for m in metrics])
    truth = np.stack([fleet.defective[m.name] for m in metrics])
    assert (accused & truth).sum() >= 0.99 * truth.sum()
    assert (accused & ~truth).any(axis=0).mean() <= 0.01
    np.testing.assert_array_equal(found.defective(), accused.any(axis=0))


def test_one_metric_alone_is_the_family_of_one():
    values = 100 * (1 + 0.03 * np.random.default_rng(0).standard_normal(3000))
    alone, family = learn(values, "higher").criterion, learn_fleet({"m": values}, {"m": "higher"})
    assert family.learned["m"].criterion.alpha == pytest.approx(alone.alpha, abs=0.015)
    np.testing.assert_array_equal(family.learned["m"].criterion.quantiles, alone.quantiles)


def test_too_few_nodes_for_calibration_say_so_and_hold_each_share_of_the_rate():
    values = {f"m{i}": 100 * (1 + 0.01 * np.random.default_rng(i).standard_normal(50)) for i in range(4)}
    fleet = learn_fleet(values, dict.fromkeys(values, "higher"))
    assert not fleet.calibrated
    for name, samples in values.items():
        assert fleet.learned[name].criterion.alpha == learn(samples, "higher", family=4).criterion.alpha


def test_a_metric_that_cannot_be_learned_leaves_the_others_alone():
    good = 100 * (1 + 0.01 * np.random.default_rng(0).standard_normal(400))
    fleet = learn_fleet({"good": good, "absent": np.full(400, np.nan)}, {"good": "higher", "absent": "higher"})
    assert set(fleet.learned) == {"good"}
    assert "3 needed" in fleet.refused["absent"]
    assert fleet.judge({"good": 60.0, "absent": 1.0})["good"].status == "defect"


def test_inconsistent_fleets_are_refused():
    with pytest.raises(ValidatorError, match="at least one metric"):
        learn_fleet({}, {})
    with pytest.raises(ValidatorError, match="no direction given for m"):
        learn_fleet({"m": np.ones(5)}, {})
    with pytest.raises(ValidatorError, match="numbers differ"):
        learn_fleet({"a": np.ones(5), "b": np.ones(6)}, {"a": "higher", "b": "higher"})


# --- windows


def series(nodes, steps, *, p=1, warmup=0, seed=0):
    generator = np.random.default_rng(seed)
    at = np.arange(steps)
    shape = 1 + 0.2 * (at % p == 0) if p > 1 else np.ones(steps)
    shape = shape * (1 + 0.5 * (at < warmup))
    return (
        shape
        * (1 + 0.004 * generator.standard_normal((nodes, 1)))
        * (1 + 0.005 * generator.standard_normal((nodes, steps)))
    )


@pytest.mark.parametrize("p", [3, 5, 8])
def test_the_period_of_a_series_is_found(p):
    assert period(series(20, 128, p=p)) == p


def test_noise_and_constants_have_no_period():
    assert period(series(20, 128)) == 1
    assert period(np.ones((5, 64))) == 1


def test_a_window_leaves_out_the_warmup_saves_half_and_gives_the_same_verdicts():
    metric = synthetic.Metric("m", 40.0, "lower", 0.004, steps=128)
    fleet = synthetic.fleet([metric], 300, planted=0.03, seed=2)
    X = fleet.samples["m"].copy()
    X[:, :10] *= 1.6
    full = learn(X, "lower")
    found = window(X, full.healthy)
    assert found.warmup >= 10
    assert found.saving >= 0.5
    part = learn(X[:, found.part], "lower")
    np.testing.assert_array_equal(part.verdicts, full.verdicts)
    np.testing.assert_array_equal(part.verdicts == "defect", fleet.defective["m"])


def test_a_slow_warmup_of_one_node_is_no_defect_once_the_window_is_learned():
    X = series(200, 128, warmup=4)
    X[17, :4] *= 8
    assert learn(X, "lower").verdicts[17] == "defect"
    assert learn(X[:, window(X).part], "lower").verdicts[17] == "pass"


def test_a_series_that_never_settles_is_kept_whole():
    X = np.linspace(1, 3, 64) * (1 + 0.002 * np.random.default_rng(0).standard_normal((20, 64)))
    assert window(X).saving == 0


# --- the compiled sort

numbers = st.floats(allow_nan=False, allow_infinity=True, width=64) | st.sampled_from([0.0, -0.0, 1.0, 5e-324, 1e308])


@given(arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=40), elements=numbers))
def test_row_orders_sort_every_row(X):
    orders = ordering.row_orders(X)
    np.testing.assert_array_equal(np.take_along_axis(X, orders, 1), np.sort(X, axis=1))
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.broadcast_to(np.arange(X.shape[1]), X.shape))


@pytest.mark.parametrize("far", [1e300, 1e-300, -1.0])
def test_one_far_value_does_not_spoil_the_order(far):
    X = 1 + 1e-3 * np.random.default_rng(0).standard_normal((3, 5000))
    X[:, 7] = far
    np.testing.assert_array_equal(np.take_along_axis(X, ordering.row_orders(X), 1), np.sort(X, axis=1))


def test_compiled_and_numpy_totals_agree():
    X = np.random.default_rng(0).lognormal(size=(16, 999))
    orders = ordering.row_orders_by_numpy(X)
    np.testing.assert_allclose(ordering.totals_of(X, orders), ordering.totals_by_numpy(X, orders), rtol=1e-12)
