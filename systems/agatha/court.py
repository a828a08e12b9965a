"""The contract on a chain: put there, called, and asked where a game stands.

court = deploy(TesterChain())          # or court_at(chain, address) for one that stands
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from systems import evm
from systems.agatha.descriptor import NotYourMove, Reverted
from systems.agatha.game import Claim, Game, Phase, replay

CONTRACTS = Path(__file__).with_name("contracts")


@dataclass(frozen=True)
class Court:
    """The contract on a chain."""

    chain: evm.Chain
    contract: evm.Contract

    @cached_property
    def bond(self) -> int:
        """Wei."""
        return int(self.chain.call(self.contract, "BOND"))

    @cached_property
    def window(self) -> int:
        """Seconds in which a claim can be challenged."""
        return int(self.chain.call(self.contract, "WINDOW"))

    @cached_property
    def clock(self) -> int:
        """Seconds that a player has for all its moves of one game."""
        return int(self.chain.call(self.contract, "CLOCK"))

    def send(self, function: str, *args: Any, sender: str, value: int = 0) -> evm.Receipt:
        """A transaction. Raises Reverted with the contract's reason."""
        try:
            return self.chain.send(self.contract, function, *args, sender=sender, value=value)
        except evm.Reverted as error:
            raise Reverted(error.reason) from error

    def send_bytes(self, data: bytes, *, sender: str) -> evm.Receipt:
        """A transaction with calldata as given. Raises Reverted."""
        try:
            return self.chain.send_bytes(self.contract, data, sender)
        except evm.Reverted as error:
            raise Reverted(error.reason) from error

    def events(self, since: int = 0) -> tuple[evm.Event, ...]:
        """All events from a block on."""
        return self.chain.events(self.contract, since)

    def game(self, claim: Claim, challenger: str) -> Game:
        """A game as it stands. Raises NotYourMove where there is none."""
        found = replay(self.events(), claim).get(challenger.lower())
        if found is None:
            raise NotYourMove(f"{challenger} has not challenged {claim.id.hex()}")
        return found

    def state(self, claim: bytes, challenger: str) -> tuple[Phase, int]:
        """The phase of a game, and the seconds that the player to move has left."""
        fields, _ = self.chain.call(self.contract, "game_of", claim, challenger)
        phase = Phase(fields[0])
        left = fields[3] if phase.submitter_moves else fields[4]
        return phase, left - (self.chain.now() - fields[2])


def deploy(
    chain: evm.Chain,
    *,
    bond: int = evm.ETHER // 10,
    window: int = 86_400,
    clock: int = 3 * 86_400,
    sender: str | None = None,
) -> Court:
    """Put the contracts on a chain. `bond` in wei, `window` and `clock` in seconds. Raises evm.Reverted."""
    arbiter = chain.deploy(evm.compile_contract(CONTRACTS / "arbiter.vy"), sender=sender)
    gpp = evm.compile_contract(CONTRACTS / "gpp.vy")
    return Court(chain, chain.deploy(gpp, arbiter.address, bond, window, clock, sender=sender))


def court_at(chain: evm.Chain, address: str) -> Court:
    """The contract that stands at an address already."""
    return Court(chain, evm.Contract(address, evm.compile_contract(CONTRACTS / "gpp.vy")))
