"""What moves cost on eth-tester, and that the bond's constants follow from it."""

import random

import pytest

from suites.agatha.networks import random_input, random_model
from suites.agatha.test_refusals import wide
from systems import evm
from systems.agatha import Challenger, Doubter, Profile, Submitter, Trace, bond, deploy
from systems.agatha.arbiter import execute
from systems.agatha.cheats import changed

CARRIED = {"post_trace": (4, 5), "reveal": (2,), "open": (2,), "post_sums": (2,), "pick": (3,), "pick_node": (5,),
           "doubt": (3,), "describe": (6,), "prove": (3, 6), "arbitrate": (4,), "arbitrate_step": (3, 6)}  # fmt: skip


def carried(name, args):
    """Bytes of children, leaves, sums and evidence among the arguments of a move: what grows with the model."""
    lengths = (args[i] for i in CARRIED.get(name, ()))
    return sum(len(value) if isinstance(value, bytes) else 32 * len(value) for value in lengths)


def game(court, alice, bob, model, good, node, element, *, whole=None, doubts=False):
    """(move, bytes carried, gas) of every transaction of a game; `doubts`: of one against an honest submitter."""
    wrong = Trace(good) if doubts else changed(model, good, node, element, onward=True)
    submitter = Submitter(court, alice, model, wrong)
    challenger = Challenger(court, bob, model, Trace(good), whole)
    if doubts:
        challenger = Doubter(court, bob, node, element, model.descriptors[node].steps)
    claim = submitter.claim()
    told = [("submit", 0, submitter.submit(claim).gas), ("challenge", 0, challenger.challenge(claim).gas)]
    while not (phase := court.state(claim.id, bob)[0]).over:
        player = submitter if phase.submitter_moves else challenger
        name, args = player.next_move(claim, court.game(claim, bob))
        told.append((name, carried(name, args), court.send(name, *args, sender=player.account).gas))
    return told


def games():
    """Games over small and large outputs, few and many nodes, both profiles, by steps, as a whole and by doubt."""
    cases = [(*wide(), 1, 700)]
    for seed, nodes, profile in ((4, 9, Profile.INT8), (4, 6, Profile.IEEE32), (3, 70, Profile.INT8)):
        model = random_model(seed, nodes, profile, size=3, channels=2)
        cases.append((model, execute(model, random_input(random.Random(seed), model)), nodes - 1, 0))
    for case in cases:
        chain = evm.TesterChain()  # a new one: eth-tester reads all its blocks whenever it is asked for events
        court, accounts = deploy(chain), chain.accounts
        for i, options in enumerate(({"whole": True}, {"whole": False}, {"doubts": True})):
            yield from game(court, *accounts[2 * i + 1 : 2 * i + 3], *case, **options)


@pytest.fixture(scope="module")
def moves():
    return list(games())


def test_a_move_costs_what_the_bond_counts_with(moves):
    """Beside the arithmetic of arbitration, every move stays below the constants, and the dearest one near them."""
    judged = {"arbitrate", "arbitrate_step", "prove"}
    beside = {}
    for name, size, gas in moves:
        if name not in judged:
            beside[name] = max(beside.get(name, 0), gas - bond.GAS_OF_A_BYTE * size)
    print(", ".join(f"{name} {gas}" for name, gas in sorted(beside.items(), key=lambda move: -move[1])))
    posted, described = beside.pop("post_trace"), beside.pop("describe")
    dearest = max(beside.values())
    assert dearest <= bond.GAS_OF_A_MOVE <= 1.1 * dearest
    assert posted <= bond.GAS_OF_A_MOVE + bond.GAS_OF_POSTING <= 1.1 * posted
    assert described <= bond.GAS_OF_A_MOVE + 2 * bond.GAS_OF_A_DESCRIPTOR <= 1.2 * described
    assert set(beside) >= {"pick", "reveal", "pick_node", "open", "pick_element", "post_sums", "doubt", "demand"}


def test_a_byte_costs_what_the_bond_counts_with(chain, moves):
    """The slopes of the dearest bytes: hashes, which are put together to a root; and sums, hashed and logged."""
    posted = sorted((size, gas) for name, size, gas in moves if name == "post_trace")
    (few, low), (many, high) = posted[0], posted[-1]
    slopes = [(high - low) / (many - few)]
    model, good = wide()
    court, gas = deploy(chain), {}
    for i, size in enumerate((400, 4000)):
        alice, bob = chain.accounts[2 * i + 1 : 2 * i + 3]
        submitter = Submitter(court, alice, model, changed(model, good, 1, 700, onward=True))
        submitter.sums = lambda submitter, node, element, size=size: b"\xff" * size
        challenger = Challenger(court, bob, model, Trace(good), whole=False)
        claim = submitter.claim()
        submitter.submit(claim)
        challenger.challenge(claim)
        while size not in gas:
            submits = court.state(claim.id, bob)[0].submitter_moves
            name, receipt = submitter.move(claim, bob) if submits else challenger.move(claim)
            if name == "post_sums":
                gas[size] = receipt.gas
    slopes.append((gas[4000] - gas[400]) / 3600)
    print("gas a byte: " + ", ".join(f"{slope:.1f}" for slope in slopes))
    assert max(slopes) <= bond.GAS_OF_A_BYTE <= 1.1 * max(slopes)


@pytest.mark.parametrize("node", [1, 2])
def test_no_doubt_costs_more_than_the_bond_counts_with(chain, node):
    model, good = wide()
    told = game(deploy(chain), *chain.accounts[1:3], model, good, node, 3, doubts=True)
    assert [name for name, _, _ in told][-2:] == ["demand", "prove"]
    assert sum(gas for _, _, gas in told) <= bond.worst_gas(model)
