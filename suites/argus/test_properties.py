"""Any sequence of moves by anyone, right or wrong, against the real contract, with a plain ledger as its model.

The model knows the rules and nothing of the contract. After every step: no wei is created or lost, the contract can pay
what it owes, states only move forward, and the audit from events alone agrees with both.
"""

from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from suites.argus.campaigns import SMALL, Campaign, Deal
from systems import evm
from systems.argus import OwnerKey, Reverted, reward
from systems.argus.audit import bond, replay
from systems.argus.court import State
from systems.argus.tokens import commitment

pytest.importorskip("pyrevm", reason="pyrevm is not installed: pip install 'maat[test]'")
pytestmark = pytest.mark.component("compute")
SETTINGS = replace(SMALL, periods=3, period=1000, contest=1200, patience=800)
ACCOUNTS = st.integers(0, 6)
NAMES = [b"film", b"song"]
KEY = OwnerKey.new()
SECRETS: dict[bytes, Deal] = {}


@dataclass
class Model:
    """One licence by the rules."""

    deal: Deal
    state: State = State.REQUESTED
    since: int = 0
    accused: int | None = None
    counts: list[int] = field(default_factory=lambda: [0] * SETTINGS.periods)
    final: tuple[int, ...] = ()


class Market(RuleBasedStateMachine):
    """All roles, random times."""

    def chain(self):
        return evm.RevmChain()

    @initialize()
    def open(self):
        self.campaign = Campaign(self.chain(), SETTINGS, KEY)
        self.accounts = self.campaign.chain.accounts
        self.licences: dict[bytes, Model] = {}
        self.deals = {name: self.deal(n, name) for n, name in enumerate(NAMES)}
        self.commits: dict[bytes, tuple[int, str, bytes, int, int]] = {}  # period, informer, film, version, token's
        self.reports: dict[bytes, bool] = {}  # commitment -> counted
        self.claimed: set[bytes] = set()
        self.owed: Counter[str] = Counter()
        self.held = 0
        self.start = self.campaign.start

    def deal(self, number, name):
        """The secrets of a licence are the same in every example: what is drawn must not depend on chance."""
        if name not in SECRETS:
            SECRETS[name] = self.campaign.new_deal(name)
        deal = SECRETS[name]
        return replace(deal, terms=replace(deal.terms, licensee=self.accounts[1 + number], root=bytes(32)))

    # what the rules say --------------------------------------------------------------------------------------

    def now(self):
        return self.campaign.chain.now() + 1  # a transaction is in a block of its own, a second later

    def period(self):
        return (self.now() - self.start) // SETTINGS.period + 1

    def tried(self, legal, move):
        """A move goes through if and only if the rules allow it."""
        if legal:
            return move()
        with pytest.raises(Reverted, match=r"\w"):  # with a reason
            move()
        return None

    def model(self, name):
        return self.licences.get(name)

    def in_state(self, name, *states):
        model = self.model(name)
        return model is not None and model.state in states

    # moves ---------------------------------------------------------------------------------------------------

    @rule(name=st.sampled_from(NAMES), short=st.sampled_from([0, 0, 0, 1]))
    def request(self, name, short):
        deal = self.deals[name]
        value = 2 * deal.terms.penalty - short
        legal = name not in self.licences and not short and self.period() <= SETTINGS.periods
        if self.tried(legal, lambda: self.campaign.request(deal, value=value)):
            self.licences[name] = Model(deal, since=self.campaign.chain.now())
            self.held += value

    @rule(name=st.sampled_from(NAMES), by=st.sampled_from([0, 0, 0, 2]))
    def deliver(self, name, by):
        deal = self.deals[name]
        legal = self.in_state(name, State.REQUESTED) and by == 0
        if self.tried(legal, lambda: self.campaign.deliver(deal, sender=self.accounts[by])):
            self.licences[name].state, self.licences[name].since = State.DELIVERED, self.campaign.chain.now()
            self.held += bond(deal.terms.penalty, SETTINGS)

    @rule(name=st.sampled_from(NAMES), stranger=st.sampled_from([False, False, True]))
    def accept(self, name, stranger):
        deal = self.deals[name]
        sender = self.accounts[5] if stranger else deal.terms.licensee
        legal = self.in_state(name, State.DELIVERED) and not stranger
        if self.tried(legal, lambda: self.campaign.accept(deal, sender=sender)):
            self.licences[name].state, self.licences[name].since = State.ACTIVE, self.campaign.chain.now()

    @rule(name=st.sampled_from(NAMES), by=ACCOUNTS)
    def refund(self, name, by):
        deal, model = self.deals[name], self.model(name)
        legal = self.in_state(name, State.REQUESTED, State.DELIVERED) and self.now() > model.since + SETTINGS.patience
        words = deal.terms.words
        if self.tried(legal, lambda: self.campaign.court.send("refund", deal.name, words, sender=self.accounts[by])):
            self.owed[deal.terms.licensee] += 2 * deal.terms.penalty
            if model.state is State.DELIVERED:
                self.owed[self.accounts[0]] += bond(deal.terms.penalty, SETTINGS)
            model.state = State.SETTLED

    @rule(name=st.sampled_from(NAMES), by=ACCOUNTS, copier=st.sampled_from([None, None, None, 4]),
          other=st.sampled_from([0, 0, 0, 1, 7]), late=st.sampled_from([0, 0, 0, 1, -1]))  # fmt: skip
    def commit(self, name, by, copier, other, late):
        """copier: another account sends the same commitment; late: a token of another period."""
        deal = self.deals[name]
        period = self.period()
        of = min(max(1, period + late), SETTINGS.periods)
        version = (deal.version + other) % SETTINGS.versions
        informer = self.accounts[by]
        what = commitment(deal.name, self.campaign.held(deal, of, version), informer)
        legal = period <= SETTINGS.periods and what not in self.commits
        sender = self.accounts[copier] if copier else informer
        value = SETTINGS.deposit
        if self.tried(legal, lambda: self.campaign.court.send("commit", what, sender=sender, value=value)):
            self.commits[what] = (period, informer, name, version, of)
            self.held += value

    @precondition(lambda self: self.commits)
    @rule(data=st.data(), thief=st.sampled_from([False, False, False, True]), wrong=st.sampled_from([0, 0, 0, 1]))
    def reveal(self, data, thief, wrong):
        what = data.draw(st.sampled_from(sorted(self.commits)))
        period, informer, name, version, of = self.commits[what]
        deal, model = self.deals[name], self.model(name)
        sender = next(a for a in self.accounts if a != informer) if thief else informer
        shown = (version + wrong) % SETTINGS.versions
        legal = (
            not thief
            and not wrong
            and what not in self.reports
            and of == period
            and self.period() == period + 1
            and self.in_state(name, State.ACTIVE, State.ACCUSED, State.CLEARED)
        )

        def move():
            held, proof = self.campaign.held(deal, of, version), deal.tree.proof(shown)
            return self.campaign.court.send("reveal", deal.name, deal.terms.words, held, shown, proof, sender=sender)

        if thief and commitment(deal.name, self.campaign.held(deal, of, version), sender) in self.commits:
            return  # the thief holds a commitment of its own, which is no theft
        receipt = self.tried(legal, move)
        if receipt:
            if model.state is State.ACTIVE:
                model.state, model.accused, model.since = State.ACCUSED, version, self.campaign.chain.now()
            counted = model.state is State.ACCUSED and version == model.accused
            model.counts[period - 1] += counted
            assert receipt.events[0].args["counted"] == counted
            self.reports[what] = counted

    @rule(name=st.sampled_from(NAMES), segment=st.integers(0, 3), stranger=st.sampled_from([False, False, True]))
    def repudiate(self, name, segment, stranger):
        deal, model = self.deals[name], self.model(name)
        place = min(segment, 2)
        legal = (
            not stranger
            and segment < 3
            and self.in_state(name, State.ACCUSED)
            and self.now() <= model.since + SETTINGS.contest
            and model.accused // 4**place % 4 + 1 != deal.choice.opening.chosen[place]
        )
        opening = deal.choice.opening
        sender = self.accounts[6] if stranger else None

        def move():
            return self.campaign.repudiate(
                deal, segment, opening.chosen[place], opening.blindings[place], sender=sender
            )

        if self.tried(legal, move):
            model.state = State.CLEARED
            self.held -= 2 * deal.terms.penalty + bond(deal.terms.penalty, SETTINGS)

    @rule(name=st.sampled_from(NAMES), by=ACCOUNTS)
    def settle(self, name, by):
        deal, model = self.deals[name], self.model(name)
        legal = (
            self.in_state(name, State.ACTIVE, State.ACCUSED, State.CLEARED)
            and self.period() > SETTINGS.periods + 1
            and (model.state is not State.ACCUSED or self.now() > model.since + SETTINGS.contest)
        )
        receipt = self.tried(legal, lambda: self.campaign.settle(deal, sender=self.accounts[by]))
        if receipt:
            args = receipt.events[0].args
            penalty, bonded = deal.terms.penalty, bond(deal.terms.penalty, SETTINGS)
            whole = 0 if model.state is State.CLEARED else 2 * penalty + bonded
            number = sum(model.counts) if model.state is State.ACCUSED else 0
            due = 2 * penalty - 2 * penalty // 2**number
            rewards = sum(
                m * reward(deal.terms.bounty, SETTINGS.earliness, model.counts, t)
                for t, m in enumerate(model.counts)
                if m and number
            )
            if model.state is State.CLEARED:
                assert args["to_owner"] == args["to_licensee"] == 0
            else:
                assert args["to_licensee"] == 2 * penalty - due
                assert 0 <= args["to_owner"] - (bonded + due - rewards) <= number
                assert args["to_owner"] + args["to_licensee"] + rewards - number <= whole
            model.final = tuple(model.counts) if number else ()
            model.state = State.SETTLED
            self.owed[self.accounts[0]] += args["to_owner"]
            self.owed[deal.terms.licensee] += args["to_licensee"]

    @precondition(lambda self: self.reports)
    @rule(data=st.data(), many=st.booleans(), thief=st.sampled_from([False, False, True]))
    def claim(self, data, many, thief):
        what = data.draw(st.sampled_from(sorted(self.reports)))
        period, informer, name, version, of = self.commits[what]
        deal, model = self.deals[name], self.licences[name]
        held = self.campaign.held(deal, of, version)
        legal = model.state is State.SETTLED and what not in self.claimed
        send = self.campaign.court.send
        if many:
            receipt = self.tried(
                legal, lambda: send("claim_many", deal.name, [held], [informer], sender=self.accounts[6])
            )
        elif thief:
            other = next(a for a in self.accounts if a != informer)
            if commitment(deal.name, held, other) not in self.reports:
                self.tried(False, lambda: send("claim", deal.name, held, sender=other))
            return
        else:
            receipt = self.tried(legal, lambda: send("claim", deal.name, held, sender=informer))
        if receipt:
            amount = receipt.events[0].args["amount"]
            exact = 0
            if self.reports[what] and model.final:
                exact = reward(deal.terms.bounty, SETTINGS.earliness, model.final, period - 1)
            assert exact - 1 <= amount - SETTINGS.deposit <= exact
            self.claimed.add(what)
            self.held -= amount

    @rule(by=ACCOUNTS)
    def withdraw(self, by):
        account = self.accounts[by]
        before = self.campaign.chain.balance(account)
        if self.tried(self.owed[account] > 0, lambda: self.campaign.court.send("withdraw", sender=account)):
            assert self.campaign.chain.balance(account) - before <= self.owed[account]  # gas aside
            self.held -= self.owed.pop(account)

    @rule(seconds=st.sampled_from([1, 100, 500, 1000, 1000, 1000, 2500]))
    def wait(self, seconds):
        self.campaign.chain.advance(seconds)

    # what always holds ---------------------------------------------------------------------------------------

    @invariant()
    def nothing_is_created_or_lost(self):
        if not hasattr(self, "campaign"):
            return
        court = self.campaign.court
        assert court.balance == self.held
        assert court.balance >= sum(self.owed.values())
        for account in self.accounts:
            assert court.call("owed", account) == self.owed[account]
        for name, model in self.licences.items():
            state, version, *_, settled = court.call("state_of", self.deals[name].name)
            assert (State.SETTLED if settled else State(state)) is model.state
            if model.state is State.ACCUSED:
                assert version == model.accused

    def teardown(self):
        """The audit agrees; after the end everybody takes what is his, and only burned deposits stay."""
        if not hasattr(self, "campaign"):
            return
        self.campaign.finish()
        self.campaign.chain.advance(SETTINGS.patience + SETTINGS.contest)
        for name, model in self.licences.items():
            if model.state in {State.REQUESTED, State.DELIVERED}:
                self.refund(name, 3)
            elif model.state is not State.SETTLED:
                self.settle(name, 3)
        for what, (_, informer, name, version, of) in self.commits.items():
            if what in self.reports and what not in self.claimed:
                deal = self.deals[name]
                held = self.campaign.held(deal, of, version)
                self.held -= (
                    self.campaign.court.send("claim", deal.name, held, sender=informer).events[0].args["amount"]
                )
        for by in range(7):
            self.withdraw(by)
        ledger = replay(self.campaign.court.events())
        assert not ledger.flaws
        assert ledger.balance == self.campaign.court.balance == ledger.burned == self.held
        never = {what for what in self.commits if what not in self.reports}
        assert ledger.burned == SETTINGS.deposit * len(never)


class MarketOnTheTester(Market):
    """The same on another EVM: pyrevm and py-evm agree on every state."""

    def chain(self):
        return evm.TesterChain()

    def now(self):
        return self.campaign.chain.now() + 1


TestMarket = Market.TestCase
TestMarket.settings = settings(
    max_examples=200, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
TestMarketOnTheTester = MarketOnTheTester.TestCase
TestMarketOnTheTester.settings = settings(
    max_examples=5, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
