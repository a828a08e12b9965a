"""The contract of a campaign on a chain: its settings, the terms of a licence, calls with reasons."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

from systems import evm
from systems.argus.errors import Reverted
from systems.argus.incentive import EARLINESS
from systems.argus.transfer import OwnerKey

__all__ = ["CONTRACT", "Court", "Settings", "State", "Terms", "counts_of", "court_at", "deploy", "packed"]

CONTRACT = Path(__file__).with_name("contracts") / "argus.vy"
NO_ROOT = bytes(32)
DAY = 86_400


class State(IntEnum):
    """Of a licence. SETTLED and EXPIRED are one on the chain: nothing is left to do but claims."""

    NONE = 0
    REQUESTED = 1
    DELIVERED = 2
    ACTIVE = 3
    ACCUSED = 4
    CLEARED = 5
    SETTLED = 6


@dataclass(frozen=True)
class Settings:
    """What a campaign fixes when it opens. Times in seconds, deposit in wei, earliness in parts of 256."""

    period: int = DAY
    periods: int = 16
    earliness: int = EARLINESS
    contest: int = 3 * DAY
    patience: int = 2 * DAY
    deposit: int = 10**15
    segments: int = 4
    variants: int = 4

    @property
    def versions(self) -> int:
        """N = q^m."""
        return int(self.variants**self.segments)


@dataclass(frozen=True)
class Terms:
    """Of a licence: wei, and the two hashes that bind licensee and owner. root: zero until delivery."""

    licensee: str
    bounty: int
    penalty: int
    choice: bytes
    root: bytes = NO_ROOT

    def delivered(self, root: bytes) -> Terms:
        """With the root of the owner's tree."""
        return replace(self, root=root)

    @property
    def words(self) -> tuple[Any, ...]:
        """As the contract takes them."""
        return astuple(self)


@dataclass(frozen=True)
class Court:
    """A contract on a chain. Calls raise Reverted with the contract's reason."""

    chain: evm.Chain
    contract: evm.Contract

    def send(self, function: str, *args: Any, sender: str, value: int = 0) -> evm.Receipt:
        """A transaction."""
        try:
            return self.chain.send(self.contract, function, *args, sender=sender, value=value)
        except evm.Reverted as error:
            raise Reverted(error.reason) from error

    def call(self, function: str, *args: Any) -> Any:
        """The value of a view."""
        try:
            return self.chain.call(self.contract, function, *args)
        except evm.Reverted as error:
            raise Reverted(error.reason) from error

    def events(self, since: int = 0) -> tuple[evm.Event, ...]:
        """All events from a block on, oldest first."""
        return self.chain.events(self.contract, since)

    def times(self) -> dict[int, int]:
        """By block with an event, when it was mined, in seconds since 1970."""
        return {block: self.chain.time_of(block) for block in {event.block for event in self.events()}}

    def state(self, licence: bytes) -> State:
        """Of a licence."""
        state, *_, settled = self.call("state_of", licence)
        return State.SETTLED if settled else State(state)

    def period(self) -> int:
        """The current period, from 1 on."""
        return int(self.call("now_period"))

    @property
    def balance(self) -> int:
        """Wei that the contract holds."""
        return self.chain.balance(self.contract.address)


def deploy(chain: evm.Chain, key: OwnerKey, settings: Settings | None = None, *, sender: str | None = None) -> Court:
    """Open a campaign. Raises Reverted for settings that cannot be."""
    s = settings or Settings()
    arguments = (s.period, s.periods, s.earliness, s.contest, s.patience, s.deposit, s.segments, s.variants)
    try:
        contract = chain.deploy(evm.compile_contract(CONTRACT), *arguments, key.x, key.odd, sender=sender)
    except evm.Reverted as error:
        raise Reverted(error.reason) from error
    return Court(chain, contract)


def court_at(chain: evm.Chain, address: str) -> Court:
    """The campaign that stands at an address."""
    return Court(chain, evm.Contract(address, evm.compile_contract(CONTRACT)))


def packed(counts: Iterable[int]) -> int:
    """Counts of all periods in one word, 5 bits each."""
    return sum(min(count, 31) << (5 * t) for t, count in enumerate(counts))


def counts_of(word: int, periods: int) -> tuple[int, ...]:
    """The other way round."""
    return tuple((word >> (5 * t)) & 31 for t in range(periods))
