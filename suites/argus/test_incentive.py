"""The incentive function: the theorem in exact arithmetic, and the rules that it beats."""

from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from systems.argus import best_response, payouts, penalty, reward
from systems.argus.incentive import RULES, share, simulate

pytestmark = pytest.mark.component("compute")

counts = st.lists(st.integers(0, 4), min_size=1, max_size=5)
earliness = st.integers(0, 128)


@pytest.mark.claim("argus/sybil")
def test_no_split_pays(claim):
    """All honest counts of up to 3 periods and 2 reports each, every period of discovery, up to 4 names."""
    largest = Fraction(-1)
    for x256 in (0, 32, 64, 96, 128):
        for periods in (1, 2, 3):
            for number in range(3**periods):
                honest = [number // 3**t % 3 for t in range(periods)]
                for found in range(periods):
                    attack = best_response(honest, found, x256, 4)
                    # one report at once earns as much: nothing later, nothing more
                    largest = max(largest, attack.gain)
    assert claim.holds(float(largest))


@settings(max_examples=60, deadline=None)
@given(honest=counts, x256=earliness, names=st.integers(1, 5), data=st.data())
@example(honest=[0, 0], x256=128, names=4, data=None)
def test_splits_of_random_campaigns_never_pay(honest, x256, names, data):
    found = data.draw(st.integers(0, len(honest) - 1)) if data else 0
    assert best_response(honest, found, x256, names).gain == 0


@given(honest=counts, x256=earliness, data=st.data())
def test_earlier_is_never_worse(honest, x256, data):
    early = data.draw(st.integers(0, len(honest) - 1))
    late = data.draw(st.integers(early, len(honest) - 1))

    def alone(t):
        return share(x256, [m + (u == t) for u, m in enumerate(honest)], t)

    assert alone(early) >= alone(late)


@given(m=counts, x256=earliness, bounty=st.integers(0, 2**94))
def test_payouts_never_exceed_the_bounty(m, x256, bounty):
    each = payouts(bounty, x256, m)
    assert sum(number * value for number, value in zip(m, each, strict=True)) <= bounty
    assert all(value == 0 for number, value in zip(m, each, strict=True) if number == 0)


@given(m=counts.filter(any), bounty=st.integers(0, 2**94), x256=earliness, data=st.data())
def test_a_reward_is_the_floor_of_the_definition(m, bounty, x256, data):
    t = data.draw(st.sampled_from([t for t, number in enumerate(m) if number]))
    x = Fraction(x256, 256)
    exact = bounty * x ** sum(m[:t]) * (1 - x) ** sum(m[t + 1 :]) / 2 ** (m[t] - 1)
    assert reward(bounty, x256, m, t) == exact.numerator // exact.denominator


@given(first=st.integers(1, 2**94), number=st.integers(1, 400))
def test_the_penalty_never_falls_and_stays_below_twice_the_first(first, number):
    assert penalty(first, 0) == 0
    assert penalty(first, 1) == first
    assert penalty(first, number) <= penalty(first, number + 1) <= 2 * first
    assert payouts(first, 64, [min(number, 31)])[0] <= penalty(first, number)


@given(first=st.integers(2, 10**6), names=st.integers(1, 12))
def test_an_infringer_who_reports_himself_makes_no_profit(first, names):
    bounty = first  # the most that the terms allow
    assert sum(names * value for value in payouts(bounty, 64, [names])) <= penalty(first, names)


@given(own=st.integers(0, 6))
def test_a_first_informer_keeps_a_share_whatever_the_infringer_reports_later(own):
    x = Fraction(1, 4)
    assert share(64, [1, own], 0) == (1 - x) ** own


def test_the_search_finds_the_split_that_a_larger_order_free_rule_allows():
    """Halving is the largest: a rule that pays r(n) > r(n - 1) / 2 is split."""
    for n in range(2, 5):
        raised = {k: Fraction(1, 2 ** (k - 1)) for k in range(1, 8)}
        raised[n] += Fraction(1, 1000)
        attack = best_response([n - 2], 0, 128, 2, lambda m, t, r=raised: r[sum(m)])
        assert attack.gain > 0, n


def test_rules_compared_under_attack():
    """Ours pays within the bounty and cannot be split; sharing alike can be."""
    outcomes = {name: simulate(name, runs=60) for name in RULES}
    assert outcomes["argus"].sybil_gain == outcomes["order-free"].sybil_gain == 0
    assert outcomes["equal split"].sybil_gain > 0.1
    assert outcomes["argus"].paid <= 1
    assert outcomes["argus"].reports > outcomes["first takes all"].reports


@pytest.mark.parametrize(("x256", "m", "t"), [(129, [1], 0), (-1, [1], 0), (64, [0], 0), (64, [1], 1), (64, [], 0)])
def test_what_is_no_report_is_refused(x256, m, t):
    with pytest.raises(ValueError, match=r"expected|no report"):
        share(x256, m, t)


def test_an_unknown_rule_is_named_with_those_there_are():
    with pytest.raises(ValueError, match="argus, order-free"):
        simulate("lottery")
