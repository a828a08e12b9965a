"""Whole disputes over compiled networks: what an executor computed, a contract settles; gas as eth-tester has it."""

import functools
import random
import warnings

import pytest
import torch

from suites.agatha.contenders import parting
from systems.agatha import Challenger, Op, Profile, ProofError, Submitter, Trace, deploy, localise, models, play, xce
from systems.agatha import graph as graphs
from systems.agatha.descriptor import tensor_bytes

NETWORKS = list(models.MODELS)


def small():
    """A convolution with a stride, an inverted residual with its depthwise layer, a bottleneck, and a classifier."""
    return models._seeded(
        torch.nn.Sequential(
            models._conv(3, 16, 3, 2), models.InvertedResidual(16, 16, 1, 6), models.Bottleneck(16, 8, 2),
            torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(32, 10),
        ), 3)  # fmt: skip


class Case:
    """A compiled network, its commitment, and the honest outputs of one image. x: (1, h, w, c)."""

    def __init__(self, model, profile, side):
        images = models.calibration(4, (3, side, side))
        exported = torch.export.export(model, (images[:1],))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # four samples are enough for random weights
            self.graph = graphs.compile(exported, profile, images if profile == "int8" else None)
        self.model = self.graph.commitment
        self.values = xce.trace(self.graph, xce.encode(self.graph, models.calibration(1, (3, side, side), seed=5)))
        self.right = as_trace(self.values)

    def wrong(self, node, element, by=1):
        """The trace of a submitter whose operator `node` got one element wrong and who went on from there."""
        values = [value.clone() for value in self.values]
        flat = values[node].reshape(-1)
        flat.view(torch.uint8)[element * flat.element_size()] ^= by
        executor, changed = xce.prepare(self.graph, xce.backends(self.graph.profile)[0]), {node}
        if self.graph.profile is Profile.INT8:
            for i, inputs, step, _ in executor._nodes:
                if i > node and changed & set(inputs):
                    values[i] = step(*(values[j].clone().permute(0, 3, 1, 2) for j in inputs)).permute(0, 2, 3, 1)
                    changed.add(i)
        if torch.equal(values[-1], self.values[-1]):  # the error was rounded away: lie about the output as well
            values[-1].reshape(-1).view(torch.uint8)[0] ^= 1
        return as_trace(values)


def as_trace(values):
    return Trace([tensor_bytes(value.numpy()) for value in values])


@functools.lru_cache(maxsize=1)
def case(name):
    """One of the paper's networks; only the last one is kept."""
    return Case(models.MODELS[name](), "int8", 224)


def place(it, rng):
    """A node, an element of it."""
    node = rng.randrange(1, len(it.graph.nodes))
    return node, rng.randrange(it.values[node].numel())


def dispute(chain, it, node, element):
    """Play it to the end: the gas by move, with the two openings."""
    court = deploy(chain)
    alice, bob = chain.accounts[1:3]
    submitter = Submitter(court, alice, it.model, it.wrong(node, element))
    challenger = Challenger(court, bob, it.model, it.right)
    claim = submitter.claim()
    opened = [("submit", submitter.submit(claim).gas), ("challenge", challenger.challenge(claim).gas)]
    assert challenger.disagrees(claim)
    verdict = play(submitter, challenger, claim)
    assert verdict.winner.lower() == bob.lower()
    assert (verdict.node, verdict.element) == (node, element)
    return [*opened, *verdict.gas_by_move]


def fraud_proof(chain, it, node, element):
    """The gas of announcing and proving, where the claim names its trace."""
    court = deploy(chain)
    alice, bob = chain.accounts[1:3]
    theirs = it.wrong(node, element)
    submitter, challenger = Submitter(court, alice, it.model, theirs), Challenger(court, bob, it.model, it.right)
    claim = submitter.claim(eager=True)
    submitter.submit(claim)
    assert localise(theirs, it.right, it.model) == (node, element)
    if theirs.output_root != it.right.output_root:
        assert challenger.disagrees(claim)
    return [receipt.gas for receipt in challenger.fraud_proof(claim, theirs)]


@pytest.mark.parametrize("profile", ["int8", "ieee32"])
def test_a_wrong_operator_of_a_compiled_network_is_pinpointed(chain, profile):
    it = Case(small(), profile, 16)
    rng = random.Random(profile)
    node, element = place(it, rng)
    dispute(chain, it, node, element)
    fraud_proof(chain, it, *place(it, rng))


def test_two_runs_that_part_are_told_apart_by_operator_and_element():
    """What the gate's evidence says of a machine that computes two digests."""
    it = Case(small(), "int8", 16)
    other = [value.clone() for value in it.values]
    other[3].reshape(-1)[17] ^= 4
    assert parting(it.graph, it.values, other).endswith("at node 3 (CONV), element 17")
    assert parting(it.graph, it.values, it.values) == "two runs give the same bits"


@pytest.mark.slow
@pytest.mark.claim("agatha/models")
def test_the_three_networks_run_and_are_disputed(chain, claim):
    rng = random.Random(0)
    settled = 0
    for name in NETWORKS:
        it = case(name)
        assert dispute(chain, it, *place(it, rng))
        settled += 1
    assert claim.holds(settled)


@pytest.mark.slow
@pytest.mark.claim("agatha/onchain-dispute")
def test_a_whole_dispute_over_resnet50(chain, claim):
    """The worst of eight places: random ones, and the convolution with the most multiply-adds."""
    it, rng = case("resnet50"), random.Random(1)
    heaviest = max(range(1, len(it.graph.nodes)), key=lambda i: it.graph.nodes[i].multiply_adds)
    places = [(heaviest, rng.randrange(it.values[heaviest].numel())), *(place(it, rng) for _ in range(7))]
    assert claim.holds(max(sum(gas for _, gas in dispute(chain, it, *where)) for where in places))


@pytest.mark.slow
@pytest.mark.claim("agatha/onchain-fraud-proof")
def test_a_fraud_proof_over_resnet50(chain, claim):
    """Sixteen random places; an element whose evidence is too large for a transaction is for the game."""
    it, rng = case("resnet50"), random.Random(1)
    gas = []
    for node, element in (place(it, rng) for _ in range(16)):
        try:
            gas.append(sum(fraud_proof(chain, it, node, element)))
        except ProofError:
            assert it.graph.nodes[node].op is Op.AVGPOOL  # 49 taps in 49 leaves; every other node fits
    assert len(gas) >= 12
    assert claim.holds(max(gas))


@pytest.mark.slow
def test_evidence_too_large_for_a_transaction_is_refused_before_anything_is_sent(chain):
    it = case("resnet50")
    pool = next(i for i, node in enumerate(it.graph.nodes) if node.op is Op.AVGPOOL)
    before = chain.balance(chain.accounts[2])
    with pytest.raises(ProofError, match="bytes of evidence"):
        fraud_proof(chain, it, pool, 0)
    assert chain.balance(chain.accounts[2]) == before


@pytest.mark.slow
@pytest.mark.claim("agatha/onchain-moves")
@pytest.mark.parametrize("network", NETWORKS)
def test_the_gas_of_every_move(chain, claim, network):
    it, rng = case(network), random.Random(2)
    moves = dispute(chain, it, *place(it, rng))
    table = ", ".join(f"{name} {gas}" for name, gas in moves)
    claim.report(max(gas for _, gas in moves), f"{network}: {table}; in all {sum(gas for _, gas in moves)}")
