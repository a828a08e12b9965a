"""What must not be taken: surplus evidence, impossible nodes, oversized arrays; and the bond that a game asks for."""

import random
from dataclasses import astuple, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suites.agatha.networks import Builder, random_input, random_model
from systems import evm
from systems.agatha import Challenger, Descriptor, Op, Profile, Reverted, Submitter, Trace, deploy, min_bond, play
from systems.agatha.arbiter import execute
from systems.agatha.bond import worst_gas
from systems.agatha.cheats import changed
from systems.agatha.commit import Model, keccak
from systems.agatha.court import CONTRACTS
from systems.agatha.descriptor import DescriptorError, float_bits
from systems.evm import RevmChain, compile_contract


class Table:
    """An open game about one wrong element."""

    def __init__(self, chain, model, good, node, element, *, whole=None, eager=False):
        self.chain, self.court = chain, deploy(chain)
        alice, bob = chain.accounts[1:3]
        self.wrong = changed(model, good, node, element, onward=True)
        if self.wrong.output_root == Trace(good).output_root:
            self.wrong = changed(model, self.wrong.tensors, len(good) - 1, 0, onward=False)
        self.submitter = Submitter(self.court, alice, model, self.wrong)
        self.challenger = Challenger(self.court, bob, model, Trace(good), whole)
        self.claim = self.submitter.claim(eager=eager)
        self.gas = self.submitter.submit(self.claim).gas
        if not eager:
            self.gas += self.challenger.challenge(self.claim).gas

    def state(self):
        return self.chain.call(self.court.contract, "game_of", self.claim.id, self.challenger.account)

    def due(self):
        """The player to move, its function and arguments; None when the game is over."""
        phase, _ = self.court.state(self.claim.id, self.challenger.account)
        if phase.over:
            return None
        player = self.submitter if phase.submitter_moves else self.challenger
        game = self.court.game(self.claim, self.challenger.account)
        return player, *player.next_move(self.claim, game)


def network(seed, nodes, profile):
    model = random_model(seed, nodes, profile, size=4, channels=4)
    return model, execute(model, random_input(random.Random(seed), model))


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(2, 9), st.sampled_from(list(Profile)), st.booleans(), st.data())
def test_evidence_too_long_or_too_short_reverts_at_every_move(seed, nodes, profile, whole, data):
    """Whatever a player shows is read to its last byte, and nothing beyond it."""
    model, good = network(seed, nodes, profile)
    node = data.draw(st.integers(1, nodes - 1))
    table = Table(RevmChain(), model, good, node, 0, whole=whole)
    witnessed = {"post_trace", "pick", "pick_node", "arbitrate", "arbitrate_step"}
    seen = set()
    while (due := table.due()) is not None:
        player, name, args = due
        if name in witnessed:
            before = table.state()
            seen.add(name)
            longer = [args[-1] + bytes(data.draw(st.sampled_from([1, 31, 32, 256]))), args[-1] + args[-1][-32:]]
            for witness in {longer[0], *([longer[1], args[-1][:-1], args[-1][:-32]] if args[-1] else [])}:
                with pytest.raises(Reverted):
                    table.court.send(name, *args[:-1], witness, sender=player.account)
            assert table.state() == before
        table.court.send(name, *args, sender=player.account)
    assert {"post_trace", "pick_node"} < seen


def test_a_fraud_proof_with_surplus_bytes_reverts():
    model, good = network(3, 4, Profile.INT8)
    for node, spoil in ((2, False), (0, False), (3, True)):
        tensors = list(good)
        table = Table(RevmChain(), model, tensors, max(node, 1), 0, eager=True)
        theirs, claim = table.wrong, table.claim
        if node == 0:  # a trace of another input under the right job
            theirs = Trace([bytes([good[0][0] ^ 1]) + good[0][1:], *good[1:]])
            table.submitter.trace = theirs
            claim = table.submitter.claim(eager=True, job=model.job(Trace(good).tree(0).root))
            table.submitter.submit(claim)
        elif spoil:  # the claimed output is not the last one of the trace
            claim = replace(claim, output_root=bytes(31) + b"\1")
            table.submitter.submit(claim)
        bob = table.challenger.account
        *args, witness = table.challenger.fraud_proof_arguments(claim, theirs)
        for surplus in (b"\0", bytes(32)):
            forged = witness + surplus
            digest = keccak(claim.id + keccak(forged) + int(bob, 16).to_bytes(32, "big"))
            table.court.send("announce", digest, sender=bob)
            with pytest.raises(Reverted, match="too short or too long"):
                table.court.send("fraud_proof", *args, forged, sender=bob)
        table.challenger.fraud_proof(claim, theirs)


# --- impossible nodes ---


@pytest.fixture(scope="module")
def check():
    """The contract's own verdict on a descriptor: its reason, or nothing."""
    chain = RevmChain()
    arbiter = chain.deploy(compile_contract(CONTRACTS / "arbiter.vy"))

    def verdict(descriptor, node=5):
        try:
            chain.call(arbiter, "check", astuple(descriptor), node)
        except evm.Reverted as error:
            return error.reason or "overflow"
        return ""

    return verdict


def refused_by_python(descriptor):
    try:
        descriptor.checked()
    except DescriptorError:
        return True
    return False


CONV = Descriptor(Op.CONV, Profile.INT8, 4, 4, 6, 1, 0, 8, 8, 4, 3, 3, 2, 1, 1, 2)
ADD = Descriptor(Op.ADD, Profile.INT8, 4, 4, 6, 1, 2, 4, 4, 6)
FLOAT = replace(ADD, profile=Profile.IEEE32, lo=0, hi=float_bits(6.0))
POOL = Descriptor(Op.MAXPOOL, Profile.INT8, 3, 3, 6, 1, 0, 6, 6, 6, 2, 2, 2)
MATMUL = Descriptor(Op.MATMUL, Profile.INT8, 1, 4, 6, 1, 2, 1, 4, 6)
CONCAT = Descriptor(Op.CONCAT, Profile.INT8, 4, 4, 6, 1, 2, 4, 4, 4)


@pytest.mark.parametrize(
    ("base", "change"),
    [
        *((CONV, {name: value}) for name in ("h_out", "w_out", "c_out", "h", "w", "c_in") for value in (0, 1 << 24)),
        *((CONV, {name: 0}) for name in ("kh", "kw", "stride", "dilation", "groups")),
        *((CONV, {name: 1 << 24}) for name in ("kh", "stride", "pad", "dilation", "groups")),
        (CONV, {"groups": 3}), (CONV, {"h_out": 5}), (CONV, {"w_out": 5}), (CONV, {"kh": 1500, "pad": 1000}),
        (CONV, {"z_x": 256}), (CONV, {"z_r": 256}), (CONV, {"z_y": 256}), (CONV, {"lo": 256}), (CONV, {"hi": 256}),
        (CONV, {"lo": 9, "hi": 8}), (CONV, {"residual": 2}), (ADD, {"broadcast": 2}), (CONV, {"scale": 1 << 32}),
        (ADD, {"shift": 33}), (ADD, {"shift_r": -33}), (ADD, {"h": 5}), (ADD, {"c_in": 5}),
        (FLOAT, {"lo": float_bits(7.0)}), (FLOAT, {"hi": 0x7FC00000}), (FLOAT, {"lo": 0xFFC00000}),
        (FLOAT, {"op": Op.LUT}), (POOL, {"c_out": 5}), (POOL, {"h_out": 4}), (CONCAT, {"c_in": 6}),
        (CONCAT, {"w": 5}), (MATMUL, {"kh": 2}), (MATMUL, {"stride": 2}), (MATMUL, {"groups": 2}),
        (replace(ADD, h=1 << 12, h_out=1 << 12, w=1 << 12, w_out=1 << 12), {"c_in": 256, "c_out": 256}),
    ],
)  # fmt: skip
def test_an_impossible_field_is_refused_by_contract_and_python(check, base, change):
    assert check(base) == ""
    assert not refused_by_python(base)
    impossible = replace(base, **change)
    assert refused_by_python(impossible)
    assert check(impossible).startswith("impossible node")


@settings(max_examples=400)
@given(st.data())
def test_contract_and_python_refuse_the_same_descriptors(check, data):
    base = data.draw(st.sampled_from([CONV, ADD, FLOAT, POOL, MATMUL, CONCAT]))
    numbers = ["h_out", "w_out", "c_out", "h", "w", "c_in", "kh", "kw", "stride", "pad", "dilation", "groups", "z_x",
               "z_r", "z_y", "lo", "hi", "scale", "residual", "broadcast", "shift", "shift_r"]  # fmt: skip
    values = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 8, 12, 255, 256, 2**24 - 1, 2**24, 2**31, 2**32 - 1, 2**32])
    changes = data.draw(st.dictionaries(st.sampled_from(numbers), values, max_size=3))
    changes |= {"op": data.draw(st.sampled_from([base.op, *list(Op)[1:]]))}
    other = replace(base, **changes)
    assert (check(other) != "") == refused_by_python(other), (check(other), other)


def test_a_node_reads_earlier_nodes_only(check):
    assert check(ADD, 3) == ""
    assert check(ADD, 2) == "impossible node: reads a later one"
    assert check(ADD, 0) == "impossible node: input"
    model = random_model(1, 3)
    descriptors = [*model.descriptors[:2], replace(model.descriptors[2], input_a=2)]
    with pytest.raises(DescriptorError, match="does not come before"):
        Model(tuple(descriptors), model.weights, model.epilogues)
    with pytest.raises(DescriptorError, match="expected 0 or 1"):
        Model((model.descriptors[0], replace(model.descriptors[1], residual=2)), model.weights[:2], model.epilogues[:2])


def test_nothing_is_disputed_over_an_impossible_node():
    """A model that no player would make: the contract does not let a game enter the node."""
    model, good = network(3, 4, Profile.INT8)
    table = Table(RevmChain(), model, good, 2, 0)
    while (due := table.due())[1] != "pick_node":
        table.court.send(due[1], *due[2], sender=due[0].account)
    player, name, args = due
    before = table.state()
    forged = list(args[4])
    forged[2] = 2**200
    with pytest.raises(Reverted):
        table.court.send(name, *args[:4], tuple(forged), args[5], sender=player.account)
    assert table.state() == before


# --- sizes ---


def test_oversized_arrays_and_wrong_tree_sizes_revert():
    model, good = network(5, 5, Profile.INT8)
    table = Table(RevmChain(), model, good, 2, 0, whole=False)
    before = table.state()
    player, name, args = table.due()
    challenger, context, output, committed, children, witness = args
    for nodes in (0, 4, 6, 2**24, 2**255):
        other = (*context[:2], nodes, context[3])
        with pytest.raises(Reverted):
            table.court.send(name, challenger, other, output, committed, children, witness, sender=player.account)
    for wrong in ([*children, children[0]], [bytes(32)] * 65, [bytes(32)] * 1000, []):
        with pytest.raises(Reverted):
            table.court.send(name, challenger, context, output, committed, wrong, witness, sender=player.account)
    with pytest.raises(Reverted):
        table.court.send(*(name, challenger, context, output, committed, children, bytes(2000)), sender=player.account)
    assert table.state() == before
    table = Table(RevmChain(), *wide(), 1, 700, whole=False)
    while (due := table.due())[1] != "post_sums":
        table.court.send(due[1], *due[2], sender=due[0].account)
    before = table.state()
    with pytest.raises(Reverted):
        table.court.send("post_sums", *due[2][:2], bytes(4097), sender=due[0].account)
    assert table.state() == before


# --- the bond ---


def test_the_bond_follows_the_model():
    small, large = (random_model(1, nodes, size=3, channels=2) for nodes in (3, 100))
    assert worst_gas(small) < worst_gas(large)
    assert min_bond(small, 10**9) == 2 * worst_gas(small) * 10**9


def wide():
    builder = Builder(random.Random(7), Profile.INT8, 12, 12, 16)
    builder.conv(builder.conv(0, 24, 3, 1, 1, 1, 1), 8, 3, 2, 1, 1, 1)
    model = builder.model()
    return model, execute(model, random_input(random.Random(1), model))


@pytest.mark.parametrize("whole", [None, False])
@pytest.mark.parametrize("case", [wide, lambda: network(4, 9, Profile.INT8), lambda: network(4, 6, Profile.IEEE32)])
def test_no_game_costs_more_than_the_bond_counts_with(chain, case, whole):
    model, good = case()
    rng = random.Random(2)
    node = rng.randrange(1, len(good))
    table = Table(chain, model, good, node, rng.randrange(model.descriptors[node].elements), whole=whole)
    verdict = play(table.submitter, table.challenger, table.claim)
    assert verdict.winner.lower() == table.challenger.account.lower()
    assert table.gas + verdict.gas <= worst_gas(model)
