"""Games on pyrevm: any single corruption is found, the honest player never loses, no Ether is made or lost."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suites.agatha.networks import random_input, random_model
from systems.agatha import Challenger, Profile, Reverted, Submitter, Trace, deploy, play
from systems.agatha.arbiter import Node, execute
from systems.agatha.cheats import (
    GarbageChallenger,
    GarbageSubmitter,
    LiarChallenger,
    ShortSums,
    SilentChallenger,
    SilentSubmitter,
    WrongSums,
    changed,
    junk_tail,
    other_input,
    wrong_rounding,
    wrong_weights,
)
from systems.agatha.descriptor import Op
from systems.evm import RevmChain

MAX_MOVES = 16
PENDING = 1


class World:
    """One chain and court for many games, each on a snapshot; `ether` is checked after every one."""

    def __init__(self):
        self.chain = RevmChain()
        self.court = deploy(self.chain)
        self.alice, self.bob, self.carol = self.chain.accounts[1:4]

    def network(self, seed, nodes, profile):
        """A random model, and an honest run of it."""
        size, channels = (7, 6) if profile is Profile.INT8 else (4, 3)
        model = random_model(seed, nodes, profile, size=size, channels=channels)
        return model, execute(model, random_input(random.Random(seed), model))

    def game(self, submitter, challenger, claim):
        submitter.submit(claim)
        challenger.challenge(claim)
        verdict = play(submitter, challenger, claim)
        self.check_ether()
        assert verdict.moves <= MAX_MOVES
        return verdict

    def check_ether(self):
        """The contract holds the bonds of open claims and games, credits, and what was burned: no more, no less."""
        court, bond = self.court, self.court.bond
        events = court.events()
        held = self.chain.balance(court.contract.address)
        claimed = [event.args for event in events if event.name == "Claimed"]
        challenged = [event.args for event in events if event.name == "Challenged"]
        settled = [event.args for event in events if event.name == "Settled"]
        for account in {args["submitter"] for args in claimed} | {args["challenger"] for args in challenged}:
            if credit := self.chain.call(court.contract, "credit", account):
                before = self.chain.balance(account)
                court.send("withdraw", sender=account)
                assert self.chain.balance(account) == before + credit
                held -= credit
        assert self.chain.balance(court.contract.address) == held
        pending = sum(self.chain.call(court.contract, "claim_of", args["claim"])[3] == PENDING for args in claimed)
        burned = sum(args["burned"] for args in settled)
        assert held == bond * (pending + len(challenged) - len(settled)) + burned


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def on_a_snapshot(world):
    def run(game):
        point = world.chain.snapshot()
        try:
            return game()
        finally:
            world.chain.revert(point)

    return run


SEEDS = st.integers(0, 2**32)
PROFILES = st.sampled_from([Profile.INT8, Profile.INT8, Profile.INT8, Profile.IEEE32])


def pinpoint(world, seed, nodes, profile, whole):
    rng = random.Random(seed)
    model, good = world.network(seed, nodes, profile)
    node = rng.randrange(1, nodes)
    element = rng.randrange(model.descriptors[node].elements)
    wrong = changed(model, good, node, element, rng.choice([1, -1]), onward=rng.random() < 0.7)
    if wrong.tensors[node][element * profile.width :][: profile.width] == b"\x80\x00\x00\x00":
        return  # -0 is no committed number
    if wrong.output_root == Trace(good).output_root:  # without a wrong output there is nothing to dispute
        last = nodes - 1
        wrong = changed(model, wrong.tensors, last, 0, 1, onward=False)
    submitter = Submitter(world.court, world.alice, model, wrong)
    challenger = Challenger(world.court, world.bob, model, Trace(good), whole)
    verdict = world.game(submitter, challenger, submitter.claim())
    assert verdict.winner.lower() == world.bob.lower()
    assert (verdict.node, verdict.element) == (node, element)


@settings(max_examples=600)
@given(SEEDS, st.integers(2, 12), PROFILES, st.sampled_from([None, True, False]))
def test_any_single_corruption_is_pinpointed(world, on_a_snapshot, seed, nodes, profile, whole):
    on_a_snapshot(lambda: pinpoint(world, seed, nodes, profile, whole))


@pytest.mark.slow
@settings(max_examples=10_000)
@given(SEEDS, st.integers(2, 12), PROFILES, st.sampled_from([None, True, False]))
def test_any_single_corruption_is_pinpointed_in_ten_thousand_games(world, on_a_snapshot, seed, nodes, profile, whole):
    on_a_snapshot(lambda: pinpoint(world, seed, nodes, profile, whole))


def cheating_submitter(world, kind, model, good, seed):
    rng = random.Random(seed)
    node = rng.randrange(1, len(good))
    element = rng.randrange(model.descriptors[node].elements)
    court, alice = world.court, world.alice
    wrong = changed(model, good, node, element, 1, onward=True)
    if kind == "wrong rounding":
        return wrong_rounding(court, alice, model, good, len(good) - 1, 0)
    if kind == "wrong weights":
        node = next((i for i, d in enumerate(model.descriptors) if d.op in {Op.CONV, Op.LINEAR}), 0)
        return wrong_weights(court, alice, model, good[0], node, seed) if node else None
    if kind == "other input":
        return other_input(court, alice, model, good[0])
    if kind == "junk tail":
        return junk_tail(court, alice, model, good, len(good) - 1)
    if kind == "wrong sums":
        return WrongSums(court, alice, model, wrong, at=seed % 7)
    if kind == "short sums":
        return ShortSums(court, alice, model, wrong, extra=rng.choice([-1, 1]))
    if kind == "silence":
        return SilentSubmitter(court, alice, model, wrong, after=seed % 5)
    return GarbageSubmitter(court, alice, model, wrong, after=seed % 5, seed=seed)


CHEATS = [
    "wrong rounding",
    "wrong weights",
    "other input",
    "junk tail",
    "wrong sums",
    "short sums",
    "silence",
    "garbage",
]


@settings(max_examples=160)
@given(st.sampled_from(CHEATS), SEEDS, st.integers(2, 9), PROFILES, st.booleans())
def test_an_honest_challenger_never_loses(world, on_a_snapshot, kind, seed, nodes, profile, whole):
    def game():
        model, good = world.network(seed, nodes, profile)
        submitter = cheating_submitter(world, kind, model, good, seed)
        job = model.job(Trace(good).tree(0).root)
        if submitter is None or submitter.trace.output_root == Trace(good).output_root:
            return
        challenger = Challenger(world.court, world.bob, model, Trace(good), whole)
        before = world.chain.balance(world.bob)
        verdict = world.game(submitter, challenger, submitter.claim(job=job))
        assert verdict.winner.lower() == world.bob.lower(), verdict
        assert world.chain.balance(world.bob) == before + world.court.bond // 2

    on_a_snapshot(game)


@settings(max_examples=120)
@given(st.sampled_from(["liar", "silence", "garbage"]), SEEDS, st.integers(1, 9), PROFILES, st.booleans())
def test_an_honest_submitter_never_loses(world, on_a_snapshot, kind, seed, nodes, profile, whole):
    def game():
        model, good = world.network(seed, nodes, profile)
        submitter = Submitter(world.court, world.alice, model, Trace(good))
        arguments = (world.court, world.bob, model, Trace(good), whole)
        challenger = {
            "liar": lambda: LiarChallenger(*arguments, seed=seed),
            "silence": lambda: SilentChallenger(*arguments, after=seed % 5),
            "garbage": lambda: GarbageChallenger(*arguments, after=seed % 5, seed=seed),
        }[kind]()
        before = world.chain.balance(world.alice)
        claim = submitter.claim()
        verdict = world.game(submitter, challenger, claim)
        assert verdict.winner.lower() == world.alice.lower(), verdict
        world.chain.advance(world.court.window + 1)
        submitter.collect(claim)
        assert world.chain.balance(world.alice) == before + world.court.bond // 2
        assert bytes(world.chain.call(world.court.contract, "result", claim.job.id)) == claim.output_root

    on_a_snapshot(game)


@settings(max_examples=60)
@given(SEEDS, st.integers(2, 8), PROFILES)
def test_a_fraud_proof_wins_in_one_call_and_its_copy_earns_nothing(world, on_a_snapshot, seed, nodes, profile):
    def game():
        model, good = world.network(seed, nodes, profile)
        rng = random.Random(seed)
        node = rng.randrange(0, nodes)
        wrong = changed(model, good, node, rng.randrange(model.descriptors[node].elements), 1, onward=True)
        if wrong.output_root == Trace(good).output_root or wrong.tree(node).root == Trace(good).tree(node).root:
            return
        submitter = Submitter(world.court, world.alice, model, wrong)
        claim = submitter.claim(eager=True, job=model.job(Trace(good).tree(0).root))
        submitter.submit(claim)
        challenger = Challenger(world.court, world.bob, model, Trace(good))
        arguments = challenger.fraud_proof_arguments(claim, wrong)
        with pytest.raises(Reverted, match="announce"):
            world.court.send("fraud_proof", *arguments, sender=world.carol)
        challenger.fraud_proof(claim, wrong)
        with pytest.raises(Reverted, match="no pending claim"):
            world.court.send("fraud_proof", *arguments, sender=world.carol)
        assert world.chain.call(world.court.contract, "credit", world.carol) == 0
        assert world.chain.call(world.court.contract, "credit", world.bob) == world.court.bond // 2

    on_a_snapshot(game)


@settings(max_examples=60)
@given(SEEDS, st.integers(2, 8), PROFILES)
def test_no_fraud_proof_of_an_honest_claim_is_accepted(world, on_a_snapshot, seed, nodes, profile):
    def game():
        model, good = world.network(seed, nodes, profile)
        rng = random.Random(seed)
        node = rng.randrange(1, nodes)
        wrong = changed(model, good, node, rng.randrange(model.descriptors[node].elements), 1, onward=True)
        submitter = Submitter(world.court, world.alice, model, Trace(good))
        claim = submitter.claim(eager=True)
        submitter.submit(claim)
        if wrong.tree(node).root == Trace(good).tree(node).root:
            return
        liar = Challenger(world.court, world.bob, model, wrong)
        if wrong.tensors[: node + 1] == Trace(good).tensors[: node + 1]:
            return
        with pytest.raises(Reverted):
            liar.fraud_proof(claim, Trace(good))

    on_a_snapshot(game)


@settings(max_examples=60)
@given(SEEDS, st.integers(2, 10), PROFILES)
def test_the_steps_of_an_element_lead_to_it(seed, nodes, profile):
    """The partial sums, chunk by chunk, end in the same element as the sum in one go."""
    model = random_model(seed, nodes, profile, size=4, channels=3)
    good = execute(model, random_input(random.Random(seed), model))
    for node in range(1, nodes):
        operands = Node.of(model, good, node)
        sums = operands.sums(0)
        assert len(sums) == model.descriptors[node].steps
        last = sums[-1] if sums else operands.start()
        width = profile.width
        assert operands.finish(0, last).to_bytes(width, "big") == good[node][:width]
