"""Properties that hold for every sample and every population: of similarity, of one-sided similarity, of learning."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from systems.anubis import validator
from systems.anubis.validator import NoMajority, learn, one_sided, quantiles, similarity

value = st.floats(1e-6, 1e9, allow_subnormal=False)
sample = st.lists(value, min_size=1, max_size=24)
better = st.sampled_from(["higher", "lower", "target"])
direction = st.sampled_from(["higher", "lower"])


@st.composite
def populations(draw, most_steps=5, most_nodes=14):
    """(nodes, steps) samples: healthy within a few per cent of each other, some far off, some exactly alike."""
    n = draw(st.integers(3, most_nodes))
    steps = draw(st.integers(1, most_steps))
    near = st.floats(0.9, 1.1) | st.sampled_from([0.95, 1.0, 1.0, 1.05])
    speed = draw(st.lists(near | st.floats(0.3, 3.0), min_size=n, max_size=n))
    noise = draw(st.lists(st.lists(near, min_size=steps, max_size=steps), min_size=n, max_size=n))
    return np.array(speed)[:, None] * np.array(noise)


# --- oracles: the definitions, one pair of samples and one node at a time


def exact_similarity(s, c):
    """(mu_S + mu_C - W) / (mu_S + mu_C + W), with the integral of |F_S - F_C| taken over the values' own grid."""
    grid = np.unique(np.concatenate([s, c]))
    below_s = np.searchsorted(np.sort(s), grid[:-1], side="right") / len(s)
    below_c = np.searchsorted(np.sort(c), grid[:-1], side="right") / len(c)
    distance = float(np.sum(np.abs(below_s - below_c) * np.diff(grid)))
    total = np.mean(s) + np.mean(c)
    return (total - distance) / (total + distance)


def learn_by_brute_force(samples, better, alpha=0.95, adaptive=True):
    """Section 2 of the method, literally and in O(n^2): (verdicts, healthy, medoid), or None without a majority."""
    rows = np.sort(samples, axis=1)
    n = len(rows)
    distance = np.array([[np.abs(a - b).mean() for b in rows] for a in rows])
    near = np.array([[exact_similarity(a, b) for b in rows] for a in rows])
    healthy = np.ones(n, dtype=bool)
    while True:
        totals = np.where(healthy, distance[:, healthy].sum(axis=1), np.inf)
        central = np.flatnonzero(totals <= totals.min() * (1 + 1e-12) + 1e-300)
        medoid = min(central, key=lambda i: (tuple(rows[i]), i))
        cut = alpha
        if adaptive:
            far = 1 - near[medoid, healthy]
            cut = min(alpha, 1 - np.median(far) - 6 * 1.4826 * np.median(np.abs(far - np.median(far))))
        kept = healthy & (near[medoid] > cut + 1e-12)
        if 2 * kept.sum() < n:
            return None
        if np.array_equal(kept, healthy):
            break
        healthy = kept
    c = rows[medoid]
    verdicts = []
    for i, row in enumerate(rows):
        loss, gain = np.maximum(c - row, 0).mean(), np.maximum(row - c, 0).mean()
        one = {"higher": 1 - loss / c.mean(), "lower": c.mean() / (c.mean() + gain), "target": near[i, medoid]}[better]
        worse = side_is_worse(loss, gain, better) or one <= cut + 1e-12
        verdicts.append("pass" if healthy[i] else "defect" if worse else "suspect")
    return np.array(verdicts), healthy, medoid


def side_is_worse(loss, gain, better):
    """Whether a sample is worse on balance than the criterion, from what it is below and above it."""
    return {"higher": loss >= gain - 1e-12, "lower": gain >= loss - 1e-12, "target": True}[better]


# --- quantile vectors


@given(sample, st.integers(1, 80))
def test_a_quantile_vector_keeps_the_mean_and_does_not_decrease(values, q):
    vector = quantiles(values, q)
    assert vector.shape == (q,)
    assert vector.mean() == pytest.approx(np.mean(values), rel=1e-12)
    assert np.all(np.diff(vector) >= 0)


@given(sample, st.integers(1, 5))
def test_a_quantile_vector_holds_the_whole_sample_when_its_length_is_a_multiple(values, times):
    np.testing.assert_allclose(quantiles(values, times * len(values)), np.repeat(np.sort(values), times), rtol=1e-12)


@given(sample, st.integers(1, 80))
def test_a_quantile_vector_holds_the_bin_averages_of_the_quantile_function(values, q):
    fine = np.repeat(np.sort(values), q)  # constant on every bin of both
    np.testing.assert_allclose(quantiles(values, q), fine.reshape(q, len(values)).mean(axis=1), rtol=1e-12)


# --- two-sided similarity


@given(sample, sample)
def test_similarity_is_what_the_areas_between_the_distribution_functions_give(s, c):
    assert similarity(s, c) == pytest.approx(exact_similarity(s, c), abs=1e-9)


@given(sample, sample)
def test_similarity_is_symmetric_and_in_0_to_1(s, c):
    near = similarity(s, c)
    assert 0 < near <= 1
    assert near == pytest.approx(similarity(c, s), rel=1e-12)


@given(sample, st.randoms(use_true_random=False), st.integers(1, 3))
def test_similarity_is_1_for_samples_of_one_distribution(values, random, times):
    other = values * times
    random.shuffle(other)
    assert similarity(values, other) == pytest.approx(1, abs=1e-12)


@given(sample, st.data(), st.floats(1.001, 10))
def test_similarity_is_below_1_for_samples_that_differ(values, data, factor):
    at = data.draw(st.integers(0, len(values) - 1))
    other = list(values)
    other[at] = max(values) * factor
    assert similarity(values, other) < 1


@given(sample, sample, sample)
def test_the_complement_of_similarity_obeys_the_triangle_inequality(a, b, c):
    assert 1 - similarity(a, c) <= (1 - similarity(a, b)) + (1 - similarity(b, c)) + 1e-12


@given(sample, sample, st.floats(1e-9, 1e9), better)
def test_units_cancel(s, c, unit, side):
    s, c = np.array(s), np.array(c)
    assert similarity(s * unit, c * unit) == pytest.approx(similarity(s, c), rel=1e-9)
    assert one_sided(s * unit, c * unit, side) == pytest.approx(one_sided(s, c, side), rel=1e-9)


@given(value, value)
def test_the_similarity_of_scalars_is_the_smaller_over_the_larger(x, y):
    assert similarity(x, y) == pytest.approx(min(x, y) / max(x, y), rel=1e-12)


# --- one-sided similarity


@given(sample, sample, better)
def test_one_sided_similarity_lies_between_two_sided_and_1(s, c, side):
    assert similarity(s, c) - 1e-12 <= one_sided(s, c, side) <= 1


@given(sample, sample, direction, st.data())
def test_making_a_sample_worse_never_raises_it(s, c, side, data):
    factors = data.draw(st.lists(st.floats(0.1, 1), min_size=len(s), max_size=len(s)))
    worse = np.array(s) * factors if side == "higher" else np.array(s) / factors
    assert one_sided(worse, c, side) <= one_sided(s, c, side) + 1e-12


@given(sample, st.lists(st.floats(1, 10), min_size=24, max_size=24), direction)
def test_a_sample_that_is_nowhere_worse_is_fully_similar(c, factors, side):
    gain = np.array(factors[: len(c)])
    better_sample = np.sort(c) * gain if side == "higher" else np.sort(c) / gain
    assert one_sided(better_sample, c, side) == pytest.approx(1, abs=1e-12)


@given(value, value)
def test_a_latency_and_its_reciprocal_rate_are_equally_similar(rate, criterion):
    assert one_sided(1 / rate, 1 / criterion, "lower") == pytest.approx(one_sided(rate, criterion, "higher"), rel=1e-12)


# --- populations


@given(populations())
def test_distance_totals_are_those_of_brute_force(samples):
    X = np.sort(samples, axis=1).T
    expected = [np.abs(X - X[:, i, None]).mean(axis=0).sum() for i in range(X.shape[1])]
    np.testing.assert_allclose(validator.distance_totals(X), expected, rtol=1e-11, atol=1e-13)
    narrow = validator.distance_totals(X.astype(np.float32))
    np.testing.assert_allclose(narrow, expected, rtol=1e-4, atol=1e-5)


@given(populations(), st.data())
def test_the_medoid_among_the_healthy_is_that_of_the_healthy_alone(samples, data):
    X = np.sort(samples, axis=1).T
    healthy = np.array(data.draw(st.lists(st.booleans(), min_size=X.shape[1], max_size=X.shape[1])))
    healthy[0] = True
    chosen = validator.medoid(X, healthy)
    assert healthy[chosen]
    np.testing.assert_array_equal(X[:, chosen], X[:, healthy][:, validator.medoid(X[:, healthy])])


@given(populations())
def test_repeatability_is_the_mean_over_all_pairs(samples):
    n = len(samples)
    pairs = [exact_similarity(samples[i], samples[j]) for i in range(n) for j in range(i)]
    assert validator.repeatability(samples) == pytest.approx(np.mean(pairs), rel=1e-9)


# --- learning


@settings(max_examples=300)
@given(populations(), better, st.booleans())
def test_learning_gives_what_brute_force_gives(samples, side, adaptive):
    expected = learn_by_brute_force(samples, side, adaptive=adaptive)
    if expected is None:
        with pytest.raises(NoMajority):
            learn(samples, side, adaptive=adaptive)
        return
    learned = learn(samples, side, adaptive=adaptive)
    verdicts, healthy, medoid = expected
    np.testing.assert_array_equal(learned.verdicts, verdicts)
    np.testing.assert_array_equal(learned.healthy, healthy)
    np.testing.assert_array_equal(learned.criterion.quantiles, np.sort(samples[medoid]))


def learned_or_none(samples, side):
    try:
        return learn(samples, side)
    except NoMajority:
        return None


@given(populations(), better, st.randoms(use_true_random=False))
def test_the_order_of_nodes_does_not_matter(samples, side, random):
    order = list(range(len(samples)))
    random.shuffle(order)
    one, other = learned_or_none(samples, side), learned_or_none(samples[order], side)
    assert (one is None) == (other is None)
    if one is not None:
        np.testing.assert_array_equal(other.verdicts, one.verdicts[order])
        np.testing.assert_array_equal(other.criterion.quantiles, one.criterion.quantiles)
        assert other.criterion.alpha == pytest.approx(one.criterion.alpha, abs=2e-6)


@given(populations(most_nodes=9), better)  # from 20 nodes on, learning may see two modes where it cannot before
def test_duplicating_every_node_changes_no_verdict(samples, side):
    one, twice = learned_or_none(samples, side), learned_or_none(np.repeat(samples, 2, axis=0), side)
    assert (one is None) == (twice is None)
    if one is not None:
        np.testing.assert_array_equal(twice.verdicts, np.repeat(one.verdicts, 2))
        np.testing.assert_array_equal(twice.criterion.quantiles, one.criterion.quantiles)


@given(populations(), better)
def test_the_healthy_nodes_are_a_fixed_point(samples, side):
    learned = learned_or_none(samples, side)
    if learned is not None and learned.healthy.sum() >= 3:
        again = learn(samples[learned.healthy], side)
        assert again.healthy.all()
        np.testing.assert_array_equal(again.criterion.quantiles, learned.criterion.quantiles)


@given(populations(), better, st.floats(1e-6, 1e6))
def test_learning_does_not_depend_on_the_unit(samples, side, unit):
    one, other = learned_or_none(samples, side), learned_or_none(samples * unit, side)
    assert (one is None) == (other is None)
    if one is not None:
        np.testing.assert_array_equal(other.verdicts, one.verdicts)
        np.testing.assert_allclose(other.criterion.quantiles, one.criterion.quantiles * unit, rtol=1e-12)
        assert other.criterion.alpha == pytest.approx(one.criterion.alpha, abs=2e-6)


@given(populations(), better)
def test_the_medoid_passes_and_a_suspect_is_better_than_it(samples, side):
    learned = learned_or_none(samples, side)
    if learned is not None:
        criterion = learned.criterion
        assert criterion.judge(samples[learned.medoid]).similarity == 1
        assert learned.verdicts[learned.medoid] == "pass"
        for row in samples[learned.verdicts == "suspect"]:
            assert (row.mean() > criterion.quantiles.mean()) == (side == "higher")
            assert one_sided(row, criterion.quantiles, side) > similarity(row, criterion.quantiles)


@given(populations(most_steps=1), better)
def test_scalars_and_series_of_one_step_are_the_same(samples, side):
    one, other = learned_or_none(samples, side), learned_or_none(samples[:, 0], side)
    assert (one is None) == (other is None)
    if one is not None:
        np.testing.assert_array_equal(one.verdicts, other.verdicts)
        assert one.criterion.alpha == other.criterion.alpha


@given(populations(), better)
def test_series_of_unequal_lengths_with_equal_distributions_are_judged_alike(samples, side):
    # 64 is a multiple of 1, 2 and 4 steps, so that repeating a series leaves its vector of 64 as it is.
    samples = samples[:, : {1: 1, 2: 2, 3: 2}.get(samples.shape[1], 4)]
    ragged = [np.tile(row, 1 + i % 2) for i, row in enumerate(samples)]
    one, other = learned_or_none(samples, side), learned_or_none(ragged, side)
    assert (one is None) == (other is None)
    if one is not None:
        np.testing.assert_array_equal(one.verdicts, other.verdicts)
        assert other.criterion.quantiles.shape == (64,)


# --- many nodes judged at once


@settings(max_examples=80, deadline=None)
@given(
    st.lists(sample | value.map(lambda v: [v]), min_size=0, max_size=8),
    sample,
    better,
    st.floats(0.05, 0.99),
    st.booleans(),
)
def test_judging_many_nodes_at_once_is_judging_each(samples, healthy, direction, alpha, spoiled):
    criterion = validator.Criterion(quantiles(healthy, len(healthy)), direction, alpha, False, 0.99, 3, 0)
    samples = [*samples, [float("nan")], []] if spoiled else samples
    defect, near = criterion.judge_all(samples)
    assert len(defect) == len(near) == len(samples)
    for at, one in enumerate(samples):
        if one and np.isfinite(one).all():
            verdict = criterion.judge(one)
            assert near[at] == pytest.approx(verdict.similarity, rel=1e-12)
            assert defect[at] == (verdict.status == "defect")
        else:
            assert np.isnan(near[at])
            assert not defect[at]


@pytest.mark.parametrize("steps", [1, 64, 100])
@pytest.mark.parametrize("kept", [1, 24, 64])
def test_tables_of_many_nodes_are_judged_as_each_node(steps, kept):
    table = 100 * (1 + 0.05 * np.random.default_rng(0).standard_normal((50, steps)))
    table[7] = np.nan
    criterion = validator.Criterion(quantiles(table[0], kept), "higher", 0.97, False, 0.99, 3, 0)
    defect, near = criterion.judge_all(table[:, 0] if steps == 1 else table)
    for row, is_defect, similarity_of_row in zip(table, defect, near, strict=True):
        if np.isfinite(row).all():
            verdict = criterion.judge(row)
            assert similarity_of_row == pytest.approx(verdict.similarity, rel=1e-12)
            assert is_defect == (verdict.status == "defect")
    assert np.isnan(near[7])
