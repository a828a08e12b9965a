"""Adversaries of the games, for the suites and for drills against faulty hardware.

Cheats of the submitter return a `Submitter` (and the trace that it defends); cheats of the challenger a `Challenger`.
None of them knows more than a player could: they hold the model and a trace, and answer by the protocol, or not.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from systems import evm
from systems.agatha.arbiter import Node
from systems.agatha.commit import Model, Trace
from systems.agatha.court import Court
from systems.agatha.descriptor import LEAF_BYTES, NotYourMove
from systems.agatha.game import Claim, Game
from systems.agatha.players import Challenger, Submitter


def changed(model: Model, tensors: Sequence[bytes], node: int, element: int, by: int = 1, *, onward: bool) -> Trace:
    """The trace in which one element of one node is another one; `onward`: the nodes after it are computed from it.

    `by` is added to the code (or to the bits of a binary32 number), wrapping around; multiples of 256 change nothing.
    """
    width = model.descriptors[node].profile.width
    at = element * width
    wrong = bytearray(tensors[node])
    value = (int.from_bytes(wrong[at : at + width], "big") + by) % (1 << 8 * width)
    wrong[at : at + width] = value.to_bytes(width, "big")
    forged = [*tensors[:node], bytes(wrong), *tensors[node + 1 :]]
    if onward:
        for later in range(node + 1, len(forged)):
            forged[later] = Node.of(model, forged, later).output()
    return Trace(forged)


def flip_element(
    court: Court, account: str, model: Model, tensors: Sequence[bytes], node: int, element: int
) -> Submitter:
    """One element is off by one, and all that follows is computed from it."""
    return Submitter(court, account, model, changed(model, tensors, node, element, onward=True))


def wrong_rounding(
    court: Court, account: str, model: Model, tensors: Sequence[bytes], node: int, element: int
) -> Submitter:
    """Right accumulators, one element rounded the other way: off by one, with nothing after it recomputed."""
    by = -1 if tensors[node][element] else 1
    return Submitter(court, account, model, changed(model, tensors, node, element, by, onward=False))


def wrong_weights(court: Court, account: str, model: Model, data: bytes, node: int, seed: int) -> Submitter:
    """Runs another network than the one committed: some weights of a node are others."""
    rng = random.Random(seed)
    weights = bytearray(model.weights[node])
    width = model.descriptors[node].profile.width
    for _ in range(1 + len(weights) // 16):
        weights[rng.randrange(len(weights) // width) * width] ^= 0x40 if width == 1 else 0x80
    tensors = [data]
    for i in range(1, len(model.descriptors)):
        operands = Node.of(model, tensors, i)
        tensors.append((replace(operands, weights=bytes(weights)) if i == node else operands).output())
    return Submitter(court, account, model, Trace(tensors))


def other_input(court: Court, account: str, model: Model, data: bytes) -> Submitter:
    """Computes rightly, on another input than the job's."""
    tensors = [bytes([data[0] ^ 1]) + data[1:]]
    for i in range(1, len(model.descriptors)):
        tensors.append(Node.of(model, tensors, i).output())
    return Submitter(court, account, model, Trace(tensors))


def junk_tail(court: Court, account: str, model: Model, tensors: Sequence[bytes], node: int) -> Submitter | None:
    """Hides bytes behind the end of a tensor, in its last leaf, where no element is; None where the leaf is full."""
    spare = -len(tensors[node]) % LEAF_BYTES
    if not spare:
        return None
    forged = [*tensors[:node], tensors[node] + bytes(spare - 1) + b"\x07", *tensors[node + 1 :]]
    return Submitter(court, account, model, Trace(forged))


@dataclass
class WrongSums(Submitter):
    """Bends the partial sums of whatever it is asked for, at one step, to confuse the search."""

    at: int = 0

    def next_move(self, claim: Claim, game: Game) -> tuple[str, tuple[Any, ...]]:
        name, args = super().next_move(claim, game)
        if name == "post_sums" and args[2]:
            sums = bytearray(args[2])
            sums[4 * (self.at % (len(sums) // 4)) + 3] ^= 1
            args = (*args[:2], bytes(sums))
        return name, args


@dataclass
class ShortSums(Submitter):
    """Posts one partial sum too few or too many."""

    extra: int = -1

    def next_move(self, claim: Claim, game: Game) -> tuple[str, tuple[Any, ...]]:
        name, args = super().next_move(claim, game)
        if name == "post_sums":
            args = (*args[:2], args[2] + b"\x00" * 4 if self.extra > 0 else args[2][:-4])
        return name, args


@dataclass
class SilentSubmitter(Submitter):
    """Stops answering after some moves."""

    after: int = 0

    def move(self, claim: Claim, challenger: str) -> tuple[str, evm.Receipt]:
        self.after -= 1
        if self.after < 0:
            raise NotYourMove("keeps silent")
        return super().move(claim, challenger)


@dataclass
class SilentChallenger(Challenger):
    """Opens games and stops answering after some moves."""

    after: int = 0

    def move(self, claim: Claim) -> tuple[str, evm.Receipt]:
        self.after -= 1
        if self.after < 0:
            raise NotYourMove("keeps silent")
        return super().move(claim)


@dataclass
class GarbageSubmitter(Submitter):
    """From one move on, sends malformed calldata of its own making."""

    after: int = 0
    seed: int = 0

    def move(self, claim: Claim, challenger: str) -> tuple[str, evm.Receipt]:
        self.after -= 1
        if self.after >= 0:
            return super().move(claim, challenger)
        name, args = self.next_move(claim, self.court.game(claim, challenger))
        return name, send_garbage(self.court, self.account, name, args, self.seed)


@dataclass
class GarbageChallenger(Challenger):
    """From one move on, sends malformed calldata of its own making."""

    after: int = 0
    seed: int = 0

    def move(self, claim: Claim) -> tuple[str, evm.Receipt]:
        self.after -= 1
        if self.after >= 0:
            return super().move(claim)
        name, args = self.next_move(claim, self.court.game(claim, self.account))
        return name, send_garbage(self.court, self.account, name, args, self.seed)


@dataclass
class LiarChallenger(Challenger):
    """Challenges an honest claim and picks at random: the sham game of a second account."""

    seed: int = 0

    def _differing_child(self, theirs: Sequence[bytes], mine: Sequence[bytes]) -> int:
        return random.Random(self.seed).randrange(len(theirs))

    def _differing_element(self, game: Game) -> int:
        focus, d = game.focus, self.model.descriptors[game.node or 0]
        assert focus is not None
        first = (focus.index << focus.depth) * LEAF_BYTES // d.profile.width
        rest = min(len(game.opened) // d.profile.width, max(d.elements - first, 1))
        return first + random.Random(self.seed).randrange(rest)

    def _differing_step(self, game: Game) -> int:
        return random.Random(self.seed).randrange(self.model.descriptors[game.node or 0].steps + 1)


def send_garbage(court: Court, account: str, name: str, args: Sequence[Any], seed: int) -> evm.Receipt:
    """Send a call after damaging its calldata: cut, lengthened, or with bytes changed. Raises evm.Reverted."""
    rng = random.Random(seed)
    data = bytearray(court.chain.encode(court.contract, name, *args))
    kind = rng.randrange(3)
    if kind == 0:
        del data[rng.randrange(4, len(data)) :]
    elif kind == 1:
        data = data[:4] + rng.randbytes(rng.randrange(300))
    else:
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(4, len(data))] ^= rng.randint(1, 255)
    return court.send_bytes(bytes(data), sender=account)
