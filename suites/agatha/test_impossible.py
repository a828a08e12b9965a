"""Models that nobody can defend: impossible nodes, sizes that do not fit, hidden bytes. Their owner loses."""

import random
from dataclasses import astuple, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suites.agatha.networks import Builder, random_input, random_model
from suites.agatha.test_properties import World
from systems import evm
from systems.agatha import (
    Doubter,
    Op,
    Phase,
    Profile,
    Reverted,
    Submitter,
    Trace,
    Tree,
    UncheckedModel,
)
from systems.agatha.arbiter import execute
from systems.agatha.cheats import SilentSubmitter
from systems.agatha.commit import Model, leaf_hash
from systems.agatha.court import CONTRACTS
from systems.agatha.descriptor import DescriptorError, check_node, float_bits
from systems.evm import RevmChain, compile_contract


def network(profile=Profile.INT8):
    """input 6x6x4 -> 1 convolution -> 2 addition of both -> 3 pool -> 4 linear, and an honest run of it."""
    builder = Builder(random.Random(5), profile, 6, 6, 4)
    first = builder.conv(0, 4, 3, 1, 1, 1, 1)
    pooled = builder.pool(Op.MAXPOOL, builder.pair(Op.ADD, first, 0), 2, 2, 0)
    builder.linear(pooled, 12)
    model = builder.model()
    return model, execute(model, random_input(random.Random(2), model))


def committed(model, node, **changes):
    """The model with another node, unchecked."""
    descriptors = list(model.descriptors)
    descriptors[node] = replace(descriptors[node], **changes)
    return UncheckedModel(tuple(descriptors), model.weights, model.epilogues)


IMPOSSIBLE = {
    "a clamp with lo above hi": (1, {"lo": 9, "hi": 8}),
    "an input that comes later": (2, {"input_b": 3}),
    "itself as input": (3, {"input_a": 3}),
    "an image larger than there is": (1, {"h": 7, "h_out": 7}),
    "as many bytes in another number of leaves": (4, {"c_in": 300}),
    "a second input of another size": (2, {"input_b": 3, "broadcast": 0, "op": Op.MUL, "h": 3, "w": 3, "h_out": 3}),
    "a vector that is none": (2, {"broadcast": 1}),
    "another profile": (3, {"profile": Profile.IEEE32, "lo": 0, "hi": float_bits(1.0)}),
    "a window past the image": (3, {"h_out": 4}),
    "a number that no field holds": (1, {"stride": 2**200}),
    "groups that do not divide": (1, {"groups": 3}),
    "more steps than there may be": (1, {"kh": 2000, "pad": 1000}),
    "a second node of input": (1, {"op": Op.INPUT}),
    "an input that is none": (0, {"op": Op.CLAMP}),
    "an empty input": (0, {"c_out": 0}),
}


@pytest.fixture(scope="module")
def common():
    return World()


@pytest.fixture
def world(common):
    """The common chain and court, put back afterwards."""
    point = common.chain.snapshot()
    yield common
    common.chain.revert(point)


def trace_of(model, good):
    """What an owner may show for it: honest where it can be, and bytes of the described size elsewhere."""
    tensors = list(good)
    for i, (d, data) in enumerate(zip(model.descriptors, good, strict=True)):
        if d.output_bytes != len(data) and d.output_bytes < 1 << 16:
            tensors[i] = random.Random(i).randbytes(max(d.output_bytes, 1))
    return Trace(tensors)


@pytest.mark.parametrize("answer", ["its own node", "another node", "silence"])
@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_the_owner_of_an_impossible_node_loses(world, case, answer):
    node, changes = IMPOSSIBLE[case]
    possible, good = network()
    model = committed(possible, node, **changes)
    found, _ = model.fault
    assert found == node
    with pytest.raises(DescriptorError):
        Model(model.descriptors, model.weights, model.epilogues)
    owner = (SilentSubmitter if answer == "silence" else Submitter)(
        world.court, world.alice, model, trace_of(model, good)
    )
    if answer == "silence":
        owner.after = 1
    elif answer == "another node":  # a possible one, in the place of the doubted
        owner._described = lambda claim, game: Submitter._described(replace_model(owner, possible), claim, game)
    before = world.chain.balance(world.bob)
    verdict = world.game(owner, Doubter(world.court, world.bob, found), owner.claim())
    assert verdict.winner.lower() == world.bob.lower()
    assert [name for name, _ in verdict.gas_by_move] == ["post_trace", "doubt", "timeout"]
    assert world.chain.balance(world.bob) == before + world.court.bond // 2


def replace_model(owner, model):
    return Submitter(owner.court, owner.account, model, owner.trace)


HIDDEN = {
    "a descriptor that nobody has": 1,
    "weights that nobody has": 1,
    "weights too few": 4,
    "an epilogue that nobody has": 1,
    "an input that nobody has": 1,
}


@pytest.mark.parametrize("sums", ["honest", "of another number"])
@pytest.mark.parametrize("case", HIDDEN)
def test_the_owner_of_hidden_bytes_loses(world, case, sums):
    """The challenger knows nothing but roots, and asks: what the owner cannot show, it cannot defend."""
    node = HIDDEN[case]
    possible, good = network()
    model, job, step = UncheckedModel(possible.descriptors, possible.weights, possible.epilogues), None, 0
    if case == "a descriptor that nobody has":
        leaves = [leaf_hash(d.encode()) for d in model.descriptors]
        leaves[node] = bytes(31) + b"\1"
        vars(model)["tree"] = Tree(leaves)
    elif case == "weights that nobody has":
        model = committed(possible, node, weight_root=bytes(31) + b"\1")
    elif case == "weights too few":
        model = committed(
            possible, node, weight_root=Tree.over(possible.weights[node][:-300]).root
        )  # one leaf, not two
    elif case == "an epilogue that nobody has":
        model = committed(possible, node, epilogue_root=bytes(31) + b"\1")
        step = possible.descriptors[node].steps
    trace = Trace(good)
    if case == "an input that nobody has":  # the roots fit together, but the bytes behind one are missing
        tree = Tree([bytes(31) + b"\1"])
        trace._trees[0] = tree
        job = model.job(tree.root)
    element = model.descriptors[node].elements - 1
    answer = None if sums == "honest" else lambda submitter, node, element: bytes(4 * 9)
    owner = Submitter(world.court, world.alice, model, trace, sums=answer)
    verdict = world.game(owner, Doubter(world.court, world.bob, node, element, step), owner.claim(job=job))
    assert verdict.winner.lower() == world.bob.lower()
    assert verdict.gas_by_move[-1][0] == "timeout"


def doubted(world, seed, nodes, profile, data):
    model, good = world.network(seed, nodes, profile)
    node = data.draw(st.integers(0, nodes - 1))
    d = model.descriptors[node]
    element = data.draw(st.integers(0, d.elements - 1))
    step = data.draw(st.integers(0, d.steps) | st.just(d.steps))
    honest = Submitter(world.court, world.alice, model, Trace(good))
    before = world.chain.balance(world.alice)
    claim = honest.claim()
    verdict = world.game(honest, Doubter(world.court, world.bob, node, element, step), claim)
    assert verdict.winner.lower() == world.alice.lower(), verdict
    assert verdict.gas_by_move[-1][0] == ("prove" if node else "describe")
    assert (verdict.node, verdict.element, verdict.step) == ((node, element, step) if node else (0, 0, None))
    world.chain.advance(world.court.window + 1)
    honest.collect(claim)
    assert world.chain.balance(world.alice) == before + world.court.bond // 2


@settings(max_examples=150)
@given(st.integers(0, 2**32), st.integers(2, 9), st.sampled_from([*Profile, Profile.INT8]), st.data())
def test_an_honest_submitter_can_prove_whatever_is_doubted(common, seed, nodes, profile, data):
    """Any node, element and step: none is beyond what one transaction holds, and the doubter pays for asking."""
    point = common.chain.snapshot()
    try:
        doubted(common, seed, nodes, profile, data)
    finally:
        common.chain.revert(point)


def test_a_doubter_that_asks_for_what_is_not_there_is_refused(world):
    model, good = network()
    honest = Submitter(world.court, world.alice, model, Trace(good))
    claim = honest.claim()
    honest.submit(claim)
    doubter = Doubter(world.court, world.bob, 1, 143, 0)
    doubter.challenge(claim)
    while world.court.state(claim.id, world.bob)[0] is not Phase.STEP:
        player = honest if world.court.state(claim.id, world.bob)[0].submitter_moves else doubter
        player.move(claim, world.bob) if player is honest else player.move(claim)
    for step in (model.descriptors[1].steps + 1, 4095, 4096, 2**255):
        with pytest.raises(Reverted, match="step out of range"):
            world.court.send("demand", claim.id, step, sender=world.bob)
    for name in ("demand", "prove"):  # neither by a stranger
        args = doubter.next_move(claim, world.court.game(claim, world.bob))[1] if name == "demand" else None
        if args is not None:
            with pytest.raises(Reverted, match="not this move now"):
                world.court.send(name, *args, sender=world.carol)
            doubter.move(claim)
    name, args = honest.next_move(claim, world.court.game(claim, world.bob))
    assert name == "prove"
    with pytest.raises(Reverted, match="not your move"):
        world.court.send(name, *args, sender=world.carol)
    with pytest.raises(Reverted, match="not the posted sums"):
        world.court.send(name, *args[:3], args[3] + bytes(4), *args[4:], sender=world.alice)
    for witness in (args[-1] + bytes(32), args[-1][:-32], bytes(len(args[-1]))):
        with pytest.raises(Reverted):
            world.court.send(name, *args[:-1], witness, sender=world.alice)
    honest.move(claim, world.bob)
    assert world.court.state(claim.id, world.bob)[0] is Phase.LOST
    world.check_ether()


# --- the two checks agree


@pytest.fixture(scope="module")
def described():
    """The contract's verdict on a node of a model: its reason, or nothing."""
    chain = RevmChain()
    arbiter = chain.deploy(compile_contract(CONTRACTS / "arbiter.vy"))

    def verdict(model, node):
        d, count = model.descriptors[node], len(model.descriptors)
        a, b = (model.descriptors[min(i, count - 1)] for i in (d.input_a, d.input_b))
        shown = [node, *((d.input_a, d.input_b) if node else ())]
        witness = b"".join(b"".join(model.tree.proof(i, i)) for i in shown if i < count)
        context = (bytes(32), model.root, count, bytes(32))
        try:
            chain.call(arbiter, "described", astuple(d), astuple(a), astuple(b), context, node, witness)
        except evm.Reverted as error:
            return error.reason or "overflow"
        return ""

    return verdict


@settings(max_examples=400)
@given(st.integers(0, 2**32), st.integers(2, 8), st.sampled_from(list(Profile)), st.data())
def test_contract_and_python_refuse_the_same_nodes(described, seed, nodes, profile, data):
    model = random_model(seed, nodes, profile, size=5, channels=4)
    node = data.draw(st.integers(0, nodes - 1))
    assert described(model, node) == ""
    fields = ["h_out", "w_out", "c_out", "h", "w", "c_in", "input_a", "input_b", "broadcast", "residual", "profile"]
    names = data.draw(st.lists(st.sampled_from(fields), min_size=1, max_size=3, unique=True))
    changes = {name: data.draw(st.integers(0, 8 if name[0] in "hwci" else 1)) for name in names}
    if "profile" in changes:
        changes["profile"] = Profile(changes["profile"])
    victim = data.draw(st.sampled_from([node, *range(node)]))  # the node itself, or one that it may read
    other = committed(model, victim, **changes)
    try:
        check_node(other.descriptors, node)
        refused = False
    except DescriptorError:
        refused = True
    assert (described(other, node) != "") == refused, (described(other, node), node, victim, changes)
