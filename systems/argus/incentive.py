"""What reports earn and an infringer pays: a Sybil-proof, timely family of rules with one parameter.

With m_t valid reports in period t and an earliness x of 0 to 1/2, a report made in period t earns

    R(t, m) = B x^(reports of earlier periods) (1 - x)^(reports of later periods) 2^-(m_t - 1).

Theorem. For honest reports h, a secret learned in period g and any multiset J of periods from g on, the rewards of J
add up to no more than one report in period g: sum over u in J of R(u, h + J) <= R(g, h + {g}). Moving a report to g
never lowers its reward; merging the last two of an attacker's reports raises what all others earn by 1 / (1 - x) or 2,
which makes up for the one that is gone. x = 1/2 is the largest order-free rule of this kind; x = 0 pays only the first
period. An infringer pays P(n) = P0 (2 - 2^(1 - n)) for n reports, which never falls.

x is X / 256 with an integer X of 0 to 128. Amounts are wei; what the contract pays is the exact floor, or 1 wei less.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

__all__ = ["RULES", "Attack", "Outcome", "best_response", "payouts", "penalty", "reward", "share", "simulate"]

EARLINESS = 64
"""X, where nothing else is said: x = 1/4."""
MOST_EARLINESS = 128
MOST_COUNTED = 31
"""Reports of one period that count; a further one would earn less than B / 2^31 and earns nothing."""


def share(x256: int, counts: Sequence[int], period: int) -> Fraction:
    """R / B, exactly, of one report in `period`, an index from 0 into counts. Raises ValueError."""
    if not 0 <= x256 <= MOST_EARLINESS:
        raise ValueError(f"x256 is {x256}, expected 0 to {MOST_EARLINESS}: above 1/2 a split pays")
    if not 0 <= period < len(counts) or counts[period] < 1 or min(counts) < 0:
        raise ValueError(f"there is no report in period {period} of {list(counts)}")
    before, after = sum(counts[:period]), sum(counts[period + 1 :])
    x = Fraction(x256, 256)
    return x**before * (1 - x) ** after / 2 ** (counts[period] - 1)


def reward(bounty: int, x256: int, counts: Sequence[int], period: int) -> int:
    """Wei that one report of `period` (an index from 0 into counts) earns: the exact floor. Raises ValueError."""
    exact = bounty * share(x256, counts, period)
    return exact.numerator // exact.denominator


def payouts(bounty: int, x256: int, counts: Sequence[int]) -> tuple[int, ...]:
    """Wei that one report of each period earns, 0 where a period has none."""
    return tuple(reward(bounty, x256, counts, t) if m else 0 for t, m in enumerate(counts))


def penalty(first: int, reports: int) -> int:
    """Wei that an infringer pays for so many reports, `first` for one of them: 2 `first` is the limit."""
    return 2 * first - (2 * first >> reports) if reports else 0


# --- adversaries ---------------------------------------------------------------------------------------------

Rule = Callable[[Sequence[int], int], Fraction]
"""Share of the bounty that a report of a period (index from 0) earns, by all counts."""


@dataclass(frozen=True)
class Attack:
    """Periods that an attacker reports in, and what that earns beyond one report as early as it can, over B."""

    periods: tuple[int, ...]
    earned: Fraction
    gain: Fraction


def best_response(counts: Sequence[int], period: int, x256: int, identities: int, rule: Rule | None = None) -> Attack:
    """The best of all ways to report with up to `identities` names from `period` on, against honest `counts`.

    Exhaustive, in exact arithmetic. rule: another than ours, to be attacked in its place.
    """
    pay = rule or (lambda m, t: share(x256, m, t))
    honest = _earned(pay, counts, (period,))
    best = Attack((period,), honest, Fraction(0))
    for number in range(1, identities + 1):
        for periods in itertools.combinations_with_replacement(range(period, len(counts)), number):
            earned = _earned(pay, counts, periods)
            if earned > best.earned:
                best = Attack(periods, earned, earned - honest)
    return best


def _earned(pay: Rule, counts: Sequence[int], periods: Sequence[int]) -> Fraction:
    together = list(counts)
    for t in periods:
        together[t] += 1
    return sum((pay(together, t) for t in periods), Fraction(0))


# --- rules against one another -------------------------------------------------------------------------------


def first_takes_all(counts: Sequence[int], period: int) -> Fraction:
    """The first period's reporters share all, as in Custos."""
    first = next(t for t, m in enumerate(counts) if m)
    return Fraction(1, counts[first]) if period == first else Fraction(0)


def equal_split(counts: Sequence[int], period: int) -> Fraction:
    """All reports share alike."""
    return Fraction(1, sum(counts))


def opaque_lottery(counts: Sequence[int], period: int) -> Fraction:
    """What a report may hope for where an authority pays at its discretion: here half of an equal share."""
    return Fraction(1, 2 * sum(counts))


RULES: dict[str, Rule] = {
    "argus": lambda counts, t: share(EARLINESS, counts, t),
    "order-free": lambda counts, t: share(MOST_EARLINESS, counts, t),
    "first takes all": first_takes_all,
    "equal split": equal_split,
    "opaque lottery": opaque_lottery,
}


@dataclass(frozen=True)
class Outcome:
    """Of many campaigns under one rule, means: paid over B, gain of the best Sybil attack over B, period of the first
    report, reports."""

    paid: float
    sybil_gain: float
    first_period: float
    reports: float


def simulate(
    rule: str, *, informers: int = 5, periods: int = 8, cost: float = 0.05, runs: int = 200, identities: int = 3,
    seed: int = 0,
) -> Outcome:  # fmt: skip
    """Campaigns in which informers find a leak at random times and report where that pays.

    Each informer finds the leak in a uniformly drawn period or never (one in four), knows the reports of earlier
    periods, and reports at once if its share so far is above `cost`, in parts of the bounty. The last of them tries
    every way to report under several names. Raises ValueError for an unknown rule.
    """
    if rule not in RULES:
        raise ValueError(f"rule is {rule!r}, expected one of {', '.join(RULES)}")
    pay = RULES[rule]
    generator = np.random.default_rng(seed)
    paid, gains, firsts, numbers = [], [], [], []
    for _ in range(runs):
        found = np.sort(generator.integers(0, periods, informers)[generator.random(informers) > 0.25])
        counts = [0] * periods
        attacker = None
        for number, t in enumerate(found):
            after = [m + (u == t) for u, m in enumerate(counts)]
            if pay(after, int(t)) > cost:
                if number == len(found) - 1:
                    attacker = best_response(counts, int(t), EARLINESS, identities, pay)
                counts = after
        if not sum(counts):
            continue
        paid.append(float(sum(m * pay(counts, t) for t, m in enumerate(counts) if m)))
        gains.append(float(attacker.gain) if attacker else 0.0)
        firsts.append(next(t for t, m in enumerate(counts) if m))
        numbers.append(sum(counts))
    means = (float(np.mean(values)) if values else 0.0 for values in (paid, gains, firsts, numbers))
    return Outcome(*means)
