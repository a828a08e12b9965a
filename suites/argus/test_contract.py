"""The contract move by move: what it takes, what it refuses and why, who wins which game. On pyrevm, without gas."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suites.argus.campaigns import ETHER, SMALL, Campaign
from systems.argus import OwnerKey, Reverted, reward
from systems.argus.audit import replay
from systems.argus.court import State, Terms, counts_of, deploy, packed
from systems.argus.tokens import commitment, keccak
from systems.evm import RevmChain, compile_contract

pytest.importorskip("pyrevm", reason="pyrevm is not installed: pip install 'maat[test]'")
pytestmark = pytest.mark.component("compute")


@pytest.fixture
def campaign():
    return Campaign(RevmChain())


def audited(campaign):
    """The ledger from the events, checked against the chain."""
    ledger = replay(campaign.court.events())
    assert not ledger.flaws
    assert ledger.balance == campaign.court.balance
    for account in campaign.chain.accounts:
        assert ledger.owed[account.lower()] == campaign.court.call("owed", account), account
    return ledger


def test_a_campaign_from_request_to_last_claim(campaign):
    deal = campaign.active()
    first, second, third = campaign.informers[:3]
    campaign.report(deal, first, second)
    campaign.report(deal, third)
    state, version, _, counts, settled = campaign.court.call("state_of", deal.name)
    assert (State(state), version, settled) == (State.ACCUSED, deal.version, False)
    assert counts_of(counts, 4) == (2, 1, 0, 0)
    campaign.finish()
    campaign.settle(deal)
    assert campaign.court.state(deal.name) is State.SETTLED
    for informer, period in ((first, 1), (second, 1), (third, 2)):
        before = campaign.chain.balance(informer)
        campaign.claim(deal, informer, period)
        exact = reward(deal.terms.bounty, 64, [2, 1, 0, 0], period - 1)
        gained = campaign.chain.balance(informer) - before
        assert exact + SMALL.deposit - 1 <= gained <= exact + SMALL.deposit
    for account in (campaign.owner, deal.terms.licensee):
        campaign.court.send("withdraw", sender=account)
    ledger = audited(campaign)
    assert campaign.court.balance == ledger.burned == 0


def test_nobody_reports_and_everyone_gets_back_what_he_put_in(campaign):
    deal = campaign.active()
    campaign.finish()
    campaign.settle(deal)
    assert campaign.court.call("owed", deal.terms.licensee) == 2 * deal.terms.penalty
    assert campaign.court.call("owed", campaign.owner) == campaign.court.call("bond_of", deal.terms.penalty)
    audited(campaign)


@pytest.mark.parametrize("delivered", [False, True])
def test_an_overdue_licence_is_refunded_by_anyone(campaign, delivered):
    deal = campaign.new_deal()
    campaign.request(deal)
    if delivered:
        campaign.deliver(deal)
    stranger = campaign.informers[4]
    with pytest.raises(Reverted, match="not overdue"):
        campaign.court.send("refund", deal.name, deal.terms.words, sender=stranger)
    campaign.chain.advance(SMALL.patience + 2)
    campaign.court.send("refund", deal.name, deal.terms.words, sender=stranger)
    audited(campaign)
    assert campaign.court.call("owed", deal.terms.licensee) == 2 * deal.terms.penalty
    with pytest.raises(Reverted, match="settled"):
        campaign.accept(deal)
    with pytest.raises(Reverted, match="taken"):
        campaign.request(deal)


# -------------------------------------------------------------------------------------------------- reporting


def test_token_of_one_period_is_useless_in_the_next(campaign):
    """Whoever sees a reveal has the token of a period that is closed."""
    deal = campaign.active()
    honest, thief = campaign.informers[:2]
    campaign.report(deal, honest)
    seen = campaign.held(deal, 1)
    campaign.court.send("commit", commitment(deal.name, seen, thief), sender=thief, value=SMALL.deposit)
    campaign.next_period()
    with pytest.raises(Reverted, match="not a version"):
        campaign.court.send(
            "reveal", deal.name, deal.terms.words, seen, deal.version, deal.tree.proof(deal.version), sender=thief
        )
    audited(campaign)


def test_a_copied_commitment_only_pays_its_victims_deposit(campaign):
    deal = campaign.active()
    honest, copier = campaign.informers[:2]
    name = commitment(deal.name, campaign.held(deal, 1), honest)
    campaign.court.send("commit", name, sender=copier, value=SMALL.deposit)
    with pytest.raises(Reverted, match="already committed"):
        campaign.commit(deal, honest)
    campaign.next_period()
    with pytest.raises(Reverted, match="not committed"):
        campaign.reveal(deal, copier)
    campaign.reveal(deal, honest)
    campaign.finish()
    campaign.settle(deal)
    campaign.claim(deal, honest, 1)
    audited(campaign)


def test_a_commitment_cannot_be_moved_to_a_later_period(campaign):
    """Repeating an honest commitment in the next period must not make its reveal come too early."""
    deal = campaign.active()
    honest, copier = campaign.informers[:2]
    campaign.commit(deal, honest)
    name = commitment(deal.name, campaign.held(deal, 1), honest)
    campaign.next_period()
    with pytest.raises(Reverted, match="already committed"):
        campaign.court.send("commit", name, sender=copier, value=SMALL.deposit)
    campaign.reveal(deal, honest)


@pytest.mark.parametrize("wait", [0, 2])
def test_a_reveal_is_due_in_the_next_period_only(campaign, wait):
    deal = campaign.active()
    informer = campaign.informers[0]
    campaign.commit(deal, informer)
    for _ in range(wait):
        campaign.next_period()
    with pytest.raises(Reverted, match="period after"):
        campaign.reveal(deal, informer, period=1)


def test_a_report_counts_once_and_is_paid_once(campaign):
    deal = campaign.active()
    informer = campaign.informers[0]
    campaign.report(deal, informer)
    with pytest.raises(Reverted, match="already revealed"):
        campaign.reveal(deal, informer, period=1)
    with pytest.raises(Reverted, match="not settled"):
        campaign.claim(deal, informer, 1)
    campaign.finish()
    campaign.settle(deal)
    with pytest.raises(Reverted, match="settled"):
        campaign.settle(deal)
    campaign.claim(deal, informer, 1)
    with pytest.raises(Reverted, match="claimed"):
        campaign.claim(deal, informer, 1)


def test_another_version_brings_back_its_deposit_and_no_more(campaign):
    deal = campaign.active()
    first, second = campaign.informers[:2]
    other = (deal.version + 1) % SMALL.versions
    campaign.commit(deal, first)
    campaign.commit(deal, second, version=other)
    campaign.next_period()
    campaign.reveal(deal, first)
    campaign.reveal(deal, second, version=other)
    campaign.finish()
    campaign.settle(deal)
    before = campaign.chain.balance(second)
    campaign.claim(deal, second, 1, version=other)
    assert campaign.chain.balance(second) - before == SMALL.deposit
    audited(campaign)


def test_reports_beyond_what_a_count_holds_get_their_deposit_back():
    campaign = Campaign(RevmChain(accounts=40))
    deal = campaign.active()
    informers = campaign.informers[:33]
    for informer in informers:
        campaign.commit(deal, informer)
    campaign.next_period()
    counted = [campaign.reveal(deal, informer).events[0].args["counted"] for informer in informers]
    assert counted == [True] * 31 + [False] * 2
    campaign.finish()
    campaign.settle(deal)
    for batch in (informers[:20], informers[20:]):
        tokens = [campaign.held(deal, 1)] * len(batch)
        campaign.court.send("claim_many", deal.name, tokens, list(batch), sender=campaign.owner)
    for account in (campaign.owner, deal.terms.licensee):
        campaign.court.send("withdraw", sender=account)
    audited(campaign)
    assert campaign.court.balance == 0


def test_one_receiver_that_fails_does_not_block_the_others(campaign):
    """A contract that takes no money is paid into `owed`; the rest of the batch is paid."""
    deal = campaign.active()
    wall = campaign.chain.deploy(compile_contract(Path(__file__).with_name("contracts") / "wall.vy"))
    honest = campaign.informers[0]

    def through_the_wall(function, *args, value=0):
        data = campaign.chain.encode(campaign.court.contract, function, *args)
        campaign.chain.send(wall, "act", campaign.court.contract.address, data, sender=honest, value=value)

    held = campaign.held(deal, 1)
    through_the_wall("commit", commitment(deal.name, held, wall.address), value=SMALL.deposit)
    campaign.report(deal, honest)
    proof = deal.tree.proof(deal.version)
    through_the_wall("reveal", deal.name, deal.terms.words, held, deal.version, proof)
    campaign.finish()
    campaign.settle(deal)
    receipt = campaign.court.send("claim_many", deal.name, [held, held], [wall.address, honest], sender=campaign.owner)
    assert [event.args["owed"] for event in receipt.events] == [True, False]
    assert campaign.court.call("owed", wall.address) == receipt.events[0].args["amount"]
    assert campaign.court.balance == replay(campaign.court.events()).balance


# --------------------------------------------------------------------------------------------------- contests


@pytest.mark.claim("argus/framing")
def test_framing_fails(claim):
    """The owner, who has all secrets, accuses every version there is: it wins only with the one it cannot know."""
    settings_ = SMALL
    campaign = Campaign(RevmChain(accounts=60), settings_)
    deal = campaign.active()
    won = 0
    for version in range(settings_.versions):
        point = campaign.chain.snapshot()
        campaign.report(deal, campaign.owner, version=version)
        segments = [j for j in range(3) if version // 4**j % 4 + 1 != deal.choice.opening.chosen[j]]
        if not segments:
            with pytest.raises(Reverted):
                campaign.repudiate(deal, 0)
        else:
            before = campaign.chain.balance(deal.terms.licensee)
            campaign.repudiate(deal, segments[-1])
            bond = campaign.court.call("bond_of", deal.terms.penalty)
            assert campaign.chain.balance(deal.terms.licensee) - before == 2 * deal.terms.penalty + bond
            audited(campaign)
            campaign.finish()
            campaign.settle(deal)
            won += campaign.court.call("owed", campaign.owner) > 0
            before = campaign.chain.balance(campaign.owner)
            campaign.claim(deal, campaign.owner, 1, version=version)
            assert campaign.chain.balance(campaign.owner) - before == settings_.deposit
            # F (N - 1) >= 2 P0: a guess loses on average
            assert bond * (settings_.versions - 1) >= 2 * deal.terms.penalty
        campaign.chain.revert(point)
    assert claim.holds(won)


@pytest.mark.claim("argus/repudiation")
def test_guilty_cannot_open_another_digit(claim):
    campaign = Campaign(RevmChain())
    deal = campaign.active()
    campaign.report(deal, campaign.informers[0])
    cleared = 0
    opening = deal.choice.opening
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    for segment in range(3):
        for digit in range(7):
            for blinding in (opening.blindings[segment], 0, 1, order - 1, order, 2**256 - 1, opening.blindings[0] + 1):
                try:
                    campaign.repudiate(deal, segment, digit, blinding)
                    cleared += 1
                except Reverted:
                    pass
    assert claim.holds(cleared)
    # with the owner's secret it would work: that is what the binding stands on
    segment, mine = 0, opening.chosen[0]
    other = mine % 4 + 1
    forged = (opening.blindings[0] + (mine - other) * campaign.key.secret) % order
    campaign.repudiate(deal, segment, other, forged)
    assert campaign.court.state(deal.name) is State.CLEARED


def test_a_contest_has_an_end_and_only_the_accused_can_bring_one(campaign):
    deal = campaign.active()
    other = next(v for v in range(SMALL.versions) if v % 4 + 1 != deal.choice.opening.chosen[0])
    with pytest.raises(Reverted, match="not accused"):
        campaign.repudiate(deal, 0)
    campaign.report(deal, campaign.owner, version=other)
    with pytest.raises(Reverted, match="not the licensee"):
        campaign.repudiate(deal, 0, sender=campaign.informers[0])
    campaign.chain.advance(SMALL.contest + 2)
    with pytest.raises(Reverted, match="too late"):
        campaign.repudiate(deal, 0)


def test_equal_versions_cost_the_owner_its_bond(campaign):
    deal = campaign.new_deal()
    campaign.request(deal)
    anchors = list(deal.tree.anchors)
    anchors[5] = anchors[2]
    object.__setattr__(deal.tree, "anchors", tuple(anchors))
    deal.tree.__dict__.pop("layers", None)
    campaign.deliver(deal)
    stranger = campaign.informers[3]
    arguments = (deal.name, deal.terms.words, anchors[2], 2, deal.tree.proof(2), 5, deal.tree.proof(5))
    with pytest.raises(Reverted, match="not two versions"):
        campaign.court.send("expose", *arguments[:3], 2, deal.tree.proof(2), 2, deal.tree.proof(2), sender=stranger)
    campaign.court.send("expose", *arguments, sender=stranger)
    assert campaign.court.state(deal.name) is State.CLEARED
    bond = campaign.court.call("bond_of", deal.terms.penalty)
    assert campaign.court.call("owed", deal.terms.licensee) == 2 * deal.terms.penalty + bond
    audited(campaign)


# ---------------------------------------------------------------------------------------------------- refusals


def test_what_cannot_be_a_campaign_is_refused():
    chain, key = RevmChain(), OwnerKey.new()
    for change, words in (
        ({"period": 0}, "no time"),
        ({"periods": 0}, "1 to 32"),
        ({"periods": 33}, "1 to 32"),
        ({"earliness": 129}, "above one half"),
        ({"segments": 0}, "1 to 10"),
        ({"segments": 2}, "33 to"),
        ({"segments": 10, "variants": 5}, "1048576"),
        ({"variants": 1}, "less than 2"),
    ):
        with pytest.raises(Reverted, match=words):
            deploy(chain, key, replace(SMALL, **change))


def test_what_cannot_be_a_licence_is_refused(campaign):
    deal = campaign.new_deal()
    t = deal.terms
    send = campaign.court.send
    for arguments, value, words in (
        ((t.choice, t.penalty + 1, t.penalty), 2 * t.penalty, "above the penalty"),
        ((t.choice, 0, 0), 0, "no penalty"),
        ((t.choice, 0, 2**94), 0, "too large"),
        ((t.choice, t.bounty, t.penalty), 2 * t.penalty - 1, "collateral"),
        ((bytes(32), t.bounty, t.penalty), 2 * t.penalty, "no choice"),
    ):
        with pytest.raises(Reverted, match=words):
            send("request", deal.name, *arguments, sender=t.licensee, value=value)
    campaign.request(deal)
    with pytest.raises(Reverted, match="taken"):
        campaign.request(deal)
    with pytest.raises(Reverted, match="not the owner"):
        campaign.deliver(deal, sender=campaign.informers[0])
    with pytest.raises(Reverted, match="not the bond"):
        campaign.deliver(deal, value=1)
    with pytest.raises(Reverted, match="not delivered"):
        campaign.accept(deal)
    changed = Terms(t.licensee, t.bounty, t.penalty + 1, t.choice)
    with pytest.raises(Reverted, match="not the terms"):
        send("deliver", deal.name, changed.words, keccak(b"root"), keccak(b"b"), sender=campaign.owner, value=0)
    campaign.deliver(deal)
    with pytest.raises(Reverted, match="not requested"):
        campaign.deliver(deal)
    with pytest.raises(Reverted, match="not the licensee"):
        campaign.accept(deal, sender=campaign.informers[0])
    with pytest.raises(Reverted, match="not active"):
        campaign.settle(deal)
    campaign.accept(deal)
    with pytest.raises(Reverted, match="can still come"):
        campaign.settle(deal)


def test_reports_that_prove_nothing_are_refused(campaign):
    deal = campaign.active()
    informer = campaign.informers[0]
    with pytest.raises(Reverted, match="not the deposit"):
        campaign.court.send("commit", keccak(b"c"), sender=informer, value=1)
    campaign.commit(deal, informer)
    campaign.next_period()
    held, proof = campaign.held(deal, 1), deal.tree.proof(deal.version)
    send = campaign.court.send
    for version, siblings, words in (
        (deal.version ^ 1, proof, "not a version"),
        (SMALL.versions, proof, "no such version"),
        (2**255, proof, "no such version"),
        (deal.version, proof[:-1], "too short or too long"),
        (deal.version, (*proof, bytes(32)), "too short or too long"),
        (deal.version, (keccak(b"x"), *proof[1:]), "not a version"),
    ):
        with pytest.raises(Reverted, match=words):
            send("reveal", deal.name, deal.terms.words, held, version, siblings, sender=informer)
    campaign.finish()
    with pytest.raises(Reverted, match="over"):
        send("commit", keccak(b"late"), sender=informer, value=SMALL.deposit)
    with pytest.raises(Reverted, match="nothing is owed"):
        send("withdraw", sender=informer)
    campaign.settle(deal)
    with pytest.raises(Reverted, match="as many tokens"):
        send("claim_many", deal.name, [held], [], sender=informer)


def test_calldata_of_any_shape_changes_nothing(campaign):
    from systems.evm import Reverted as Refused

    deal = campaign.active()
    before = campaign.court.call("state_of", deal.name), campaign.court.balance
    whole = campaign.chain.encode(campaign.court.contract, "accept", deal.name, deal.terms.words)
    for data in (b"", whole[:3], whole[:4], whole[:-1], b"\xff" * len(whole), whole + b"\x00"):
        with pytest.raises(Refused):
            campaign.chain.send_bytes(campaign.court.contract, data, campaign.informers[0])
    assert (campaign.court.call("state_of", deal.name), campaign.court.balance) == before


# ----------------------------------------------------------------------------------------------------- rewards


@pytest.fixture(scope="module")
def courts():
    chain, key = RevmChain(), OwnerKey.new()
    return {x: deploy(chain, key, replace(SMALL, periods=32, earliness=x)) for x in (0, 1, 64, 127, 128)}


@settings(max_examples=150, deadline=None)
@given(
    m=st.lists(st.integers(0, 31), min_size=1, max_size=32).filter(any),
    bounty=st.integers(0, 2**94) | st.sampled_from([0, 1, 2**94 - 1, ETHER]),
    x256=st.sampled_from([0, 1, 64, 127, 128]),
    data=st.data(),
)
def test_contract_reward_is_floor_or_one_wei_less(courts, m, bounty, x256, data):
    t = data.draw(st.sampled_from([t for t, number in enumerate(m) if number]))
    found = courts[x256].call("reward_of", bounty, packed(m), t + 1)
    exact = reward(bounty, x256, m, t)
    assert exact - 1 <= found <= exact
    assert counts_of(packed(m), len(m)) == tuple(m)
