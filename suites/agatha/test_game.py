"""One game in the open: every move, every refusal, its gas, and what can be rebuilt from its events."""

import random

import pytest

from suites.agatha.networks import Builder, random_input, random_model
from systems.agatha import (
    Challenger,
    NotYourMove,
    Phase,
    Profile,
    ProofError,
    Reverted,
    Submitter,
    Trace,
    deploy,
    localise,
    play,
    replay,
)
from systems.agatha.arbiter import execute
from systems.agatha.cheats import changed
from systems.agatha.game import Focus
from systems.evm import RevmChain


class Table:
    """A court with a submitter whose trace is wrong in one element, and an honest challenger."""

    def __init__(self, chain, model, good, node, element, **options):
        self.chain, self.model = chain, model
        self.court = deploy(chain, **options)
        self.alice, self.bob, self.carol = chain.accounts[1:4]
        self.good, self.wrong = Trace(good), changed(model, good, node, element, onward=True)
        self.submitter = Submitter(self.court, self.alice, model, self.wrong)
        self.challenger = Challenger(self.court, self.bob, model, self.good)
        self.claim = self.submitter.claim()

    def open(self):
        self.submitter.submit(self.claim)
        self.challenger.challenge(self.claim)
        return self

    def phase(self):
        return self.court.state(self.claim.id, self.bob)[0]

    def move(self):
        if self.phase().submitter_moves:
            return self.submitter.move(self.claim, self.bob)[0]
        return self.challenger.move(self.claim)[0]

    def until(self, phase):
        while self.phase() is not phase:
            self.move()
        return self


def small_network(profile=Profile.INT8):
    """Two convolutions with many taps over an image with several leaves."""
    builder = Builder(random.Random(7), profile, 12, 12, 16)
    first = builder.conv(0, 24, 3, 1, 1, 1, 1)
    builder.conv(first, 8, 3, 2, 1, 1, 1)
    model = builder.model()
    return model, execute(model, random_input(random.Random(1), model))


NETWORK = small_network()


@pytest.fixture
def table():
    model, good = NETWORK
    return Table(RevmChain(), model, good, 1, 700)


def test_a_whole_dispute_by_steps(table):
    table.challenger.whole = False
    table.open()
    moves = []
    while not table.phase().over:
        moves.append(table.move())
    assert moves == [
        "post_trace", "pick_node", "reveal", "pick", "open", "pick_element", "post_sums", "arbitrate_step",
    ]  # fmt: skip
    game = table.court.game(table.claim, table.bob)
    assert (game.phase, game.winner.lower(), game.node, game.element) == (Phase.WON, table.bob.lower(), 1, 700)
    table.court.send("withdraw", sender=table.bob)
    with pytest.raises(Reverted, match="nothing to withdraw"):
        table.court.send("withdraw", sender=table.bob)


def test_a_player_that_starts_again_goes_on_from_the_events(table):
    table.challenger.whole = False
    table.open()
    while not table.phase().over:
        submitter = Submitter(table.court, table.alice, table.model, table.wrong)
        challenger = Challenger(table.court, table.bob, table.model, table.good, whole=False)
        if table.phase().submitter_moves:
            submitter.move(table.claim, table.bob)
        else:
            challenger.move(table.claim)
    assert table.phase() is Phase.WON
    events = table.court.events()
    assert replay(events, table.claim) == replay(list(events), table.claim)


def test_no_move_is_taken_out_of_turn_twice_or_from_others(table):
    """At every point of a game, everything that was ever a move but the one that is due reverts and changes nothing."""
    table.challenger.whole = False
    table.open()
    seen = []
    while not table.phase().over:
        due = table.submitter if table.phase().submitter_moves else table.challenger
        name, args = due.next_move(table.claim, table.court.game(table.claim, table.bob))
        before = table.chain.call(table.court.contract, "game_of", table.claim.id, table.bob)
        for old_name, old_args, account in seen:
            with pytest.raises(Reverted):
                table.court.send(old_name, *old_args, sender=account)
        for stranger in {table.alice, table.bob, table.carol} - {due.account}:
            with pytest.raises(Reverted):
                table.court.send(name, *args, sender=stranger)
        assert table.chain.call(table.court.contract, "game_of", table.claim.id, table.bob) == before
        table.court.send(name, *args, sender=due.account)
        if name not in {"reveal", "pick"}:  # these come again, on another focus
            seen.append((name, args, due.account))


def test_damaged_arguments_revert(table):
    """Children, leaves, witnesses too short, too long or changed by one byte; children out of range."""
    table.challenger.whole = False
    table.open()
    refused = 0
    while not table.phase().over:
        due = table.submitter if table.phase().submitter_moves else table.challenger
        name, args = due.next_move(table.claim, table.court.game(table.claim, table.bob))
        for i, value in enumerate(args):
            damaged = []
            if isinstance(value, bytes) and len(value) not in {0, 32} and name not in {"post_sums", "arbitrate_step"}:
                damaged = [value[:-1], bytes([value[0] ^ 1]) + value[1:], b""]
            elif isinstance(value, list):
                damaged = [value[:-1], [*value, bytes(32)], [bytes(32), *value[1:]], list(reversed(value))]
            elif name == "pick" and i == 1:
                damaged = [value + 1, 64, 2**255]
            elif name == "pick_element" and i == 1:
                damaged = [1024, 2**31, 2**256 - 1]  # four leaves are open, the first of the tensor
            for other in damaged:
                with pytest.raises(Reverted):
                    table.court.send(name, *args[:i], other, *args[i + 1 :], sender=due.account)
                refused += 1
        table.court.send(name, *args, sender=due.account)
    assert refused >= 15
    assert table.phase() is Phase.WON


def test_a_proof_of_another_game_is_refused(table):
    table.challenger.whole = False
    table.open()
    other = Challenger(table.court, table.carol, table.model, table.good, whole=False)
    other.challenge(table.claim)
    table.until(Phase.STEP)
    game = table.court.game(table.claim, table.bob)
    name, args = table.challenger.next_move(table.claim, game)
    with pytest.raises(Reverted, match="not this move now"):
        table.court.send(name, *args, sender=table.carol)


@pytest.mark.parametrize("phase", [Phase.POST, Phase.PICK, Phase.REVEAL, Phase.ELEMENT, Phase.SUM, Phase.STEP])
def test_whoever_keeps_silent_loses_by_the_clock(table, phase):
    table.challenger.whole = False
    table.open().until(phase)
    with pytest.raises(Reverted, match="there is time left"):
        table.court.send("timeout", table.claim.id, table.bob, sender=table.carol)
    table.chain.advance(table.court.clock + 100)
    with pytest.raises(Reverted, match="out of time"):
        table.move()
    table.court.send("timeout", table.claim.id, table.bob, sender=table.carol)
    assert table.phase() is (Phase.WON if phase.submitter_moves else Phase.LOST)


def test_the_clock_counts_all_moves_of_a_player(table):
    table.challenger.whole = False
    table.open()
    table.chain.advance(table.court.clock - 100)
    table.move()  # in the last moment
    table.move()
    table.chain.advance(101)
    with pytest.raises(Reverted, match="out of time"):
        table.move()


def test_the_honest_path_is_claim_window_collect(table):
    honest = Submitter(table.court, table.alice, table.model, table.good)
    claim = honest.claim()
    honest.submit(claim)
    with pytest.raises(Reverted, match="claimed before"):
        honest.submit(claim)
    with pytest.raises(Reverted, match="the window is open"):
        honest.collect(claim)
    table.chain.advance(table.court.window + 1)
    with pytest.raises(Reverted, match="the window is over"):
        table.challenger.challenge(claim)
    honest.collect(claim)
    assert bytes(table.chain.call(table.court.contract, "result", claim.job.id)) == table.good.output_root
    with pytest.raises(Reverted, match="no pending claim"):
        honest.collect(claim)
    with pytest.raises(Reverted, match="the job has a result"):
        table.submitter.submit(table.claim)


def test_wrong_bonds_and_unknown_claims_are_refused(table):
    send = table.court.send
    with pytest.raises(Reverted, match="exactly the bond"):
        send("submit", table.claim.job.id, bytes(32), bytes(32), sender=table.alice, value=table.court.bond - 1)
    with pytest.raises(Reverted, match="no pending claim"):
        send("challenge", b"\x01" * 32, sender=table.bob, value=table.court.bond)
    table.open()
    with pytest.raises(Reverted, match="challenged before"):
        table.challenger.challenge(table.claim)
    with pytest.raises(Reverted, match="the claim is not void"):
        send("leave", table.claim.id, sender=table.bob)
    with pytest.raises(Reverted, match="no open game"):
        send("timeout", table.claim.id, table.carol, sender=table.carol)


def test_other_challengers_of_a_fallen_claim_get_their_bonds_back(table):
    table.open()
    other = Challenger(table.court, table.carol, table.model, table.good)
    other.challenge(table.claim)
    before = table.chain.balance(table.carol)
    assert play(table.submitter, table.challenger, table.claim).winner.lower() == table.bob.lower()
    with pytest.raises(Reverted, match="the claim is void"):
        table.submitter.move(table.claim, table.carol)
    table.court.send("leave", table.claim.id, sender=table.carol)
    table.court.send("withdraw", sender=table.carol)
    assert table.chain.balance(table.carol) == before + table.court.bond
    earned_and_burned = table.court.bond * 3 // 2 + table.court.bond // 2
    assert table.chain.balance(table.court.contract.address) == earned_and_burned


def test_a_claim_takes_at_most_64_games_at_once():
    model, good = NETWORK
    table = Table(RevmChain(accounts=70), model, good, 1, 0)
    table.submitter.submit(table.claim)
    for account in table.chain.accounts[2:66]:
        Challenger(table.court, account, model, table.good).challenge(table.claim)
    with pytest.raises(Reverted, match="too many open games"):
        Challenger(table.court, table.chain.accounts[66], model, table.good).challenge(table.claim)


def test_a_trace_of_more_than_64_nodes_is_searched_in_rounds():
    model = random_model(3, 150, size=3, channels=2)
    good = execute(model, random_input(random.Random(3), model))
    table = Table(RevmChain(), model, good, 117, 0)
    if table.wrong.output_root == table.good.output_root:
        table.wrong = changed(model, table.wrong.tensors, 149, 0, onward=False)
        table.submitter.trace, table.claim = (
            table.wrong,
            Submitter(table.court, table.alice, model, table.wrong).claim(),
        )
    table.open()
    verdict = play(table.submitter, table.challenger, table.claim)
    assert (verdict.winner.lower(), verdict.node, verdict.element) == (table.bob.lower(), 117, 0)
    assert [name for name, _ in verdict.gas_by_move][:4] == ["post_trace", "pick", "reveal", "pick_node"]


def test_rounds_grow_with_the_logarithm():
    for size in [1, 256, 257, 1024, 802_816, 4_000_000_000]:
        focus, reveals = Focus.on_output(size), 0
        while focus.levels():
            assert 1 <= focus.width(focus.levels()) <= 32
            focus, reveals = focus.child(focus.levels(), 0), reveals + 1
        assert focus.depth <= 2
        assert reveals <= max(0, -(-(Focus.on_output(size).depth - 2) // 5))


def test_players_without_a_move_say_so(table):
    with pytest.raises(NotYourMove, match="has not challenged"):
        table.challenger.move(table.claim)
    table.open()
    with pytest.raises(NotYourMove, match="POST"):
        table.challenger.move(table.claim)


def test_a_fraud_proof_needs_the_claimed_trace_and_a_difference(table):
    claim = table.submitter.claim(eager=True)
    with pytest.raises(ProofError, match="the trace has root"):
        table.challenger.fraud_proof(claim, table.good)
    with pytest.raises(ProofError, match="nothing to prove"):
        Challenger(table.court, table.bob, table.model, table.wrong).fraud_proof(claim, table.wrong)


def test_localise_names_the_node_and_the_element(table):
    assert localise(table.wrong, table.good, table.model) == (1, 700)
    assert localise(table.good, table.good, table.model) is None


# --- gas, as eth-tester has it ---


@pytest.mark.claim("agatha/onchain")
def test_the_honest_path_is_cheap(chain, claim):
    model, good = NETWORK
    table = Table(chain, model, good, 1, 700)
    honest = Submitter(table.court, table.alice, model, table.good)
    ours = honest.claim()
    gas = honest.submit(ours).gas
    chain.advance(table.court.window + 1)
    assert claim.holds(gas + honest.collect(ours).gas)
