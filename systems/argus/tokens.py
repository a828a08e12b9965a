"""Secrets of versions, their tokens over the periods of a campaign, and the tree that a licence commits to.

A version's secret s gives one token a period, each the hash of the next: token(s, t) = H^(T - t)(s) for t of 1 to T,
and the public anchor is H^T(s) = H^t(token(s, t)). Revealing the token of period t gives away those of the periods
before it, which are closed, and none of a later one.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import sha3

from systems.argus.errors import DuplicateVersions, WrongPeriod

__all__ = ["MOST_PERIODS", "VersionTree", "anchor", "commitment", "digits", "keccak", "ladder", "new_payloads",
           "secret_of", "token", "version_of"]  # fmt: skip

DOMAIN = b"argus version 1"
MOST_PERIODS = 32


def keccak(data: bytes) -> bytes:
    """Keccak-256, 32 bytes."""
    return bytes(sha3.keccak_256(data).digest())


def ladder(value: bytes, steps: int) -> bytes:
    """H^steps(value)."""
    for _ in range(steps):
        value = keccak(value)
    return value


def token(secret: bytes, period: int, periods: int) -> bytes:
    """What proves, in `period` of 1 to `periods`, that one holds the secret. Raises WrongPeriod."""
    if not 1 <= period <= periods <= MOST_PERIODS:
        raise WrongPeriod(f"period {period} of {periods}: expected 1 to {periods}, of at most {MOST_PERIODS}")
    return ladder(secret, periods - period)


def anchor(secret: bytes, periods: int) -> bytes:
    """The public end of the ladder of a campaign of so many periods."""
    return ladder(secret, periods)


def commitment(licence: bytes, held: bytes, informer: str) -> bytes:
    """What an informer commits to: licence, token and its own address, so that a copy is of no use to others."""
    return keccak(licence + held + bytes(12) + bytes.fromhex(informer.removeprefix("0x")))


# --- versions ------------------------------------------------------------------------------------------------


def new_payloads(segments: int, variants: int) -> tuple[tuple[bytes, ...], ...]:
    """Fresh random watermarks of a licence, 16 bytes for each variant of each segment."""
    return tuple(tuple(secrets.token_bytes(16) for _ in range(variants)) for _ in range(segments))


def digits(version: int, segments: int, variants: int) -> tuple[int, ...]:
    """The variant, 1 to `variants`, of each segment of a version."""
    return tuple(version // variants**j % variants + 1 for j in range(segments))


def version_of(chosen: Sequence[int], variants: int) -> int:
    """The version with these variants, the other way round."""
    return sum((digit - 1) * variants**j for j, digit in enumerate(chosen))


def secret_of(licence: bytes, payloads: Sequence[bytes]) -> bytes:
    """The secret of a version: of its watermarks, segment by segment."""
    return keccak(DOMAIN + licence + b"".join(payloads))


@dataclass(frozen=True)
class VersionTree:
    """Merkle tree over the anchors of all versions of a licence, in their order; missing leaves are zero."""

    anchors: tuple[bytes, ...]

    def __post_init__(self) -> None:
        if not self.anchors:
            raise ValueError("a licence has at least one version")
        if len(set(self.anchors)) != len(self.anchors):
            raise DuplicateVersions("two versions have the same anchor, which anyone can show and be paid for")

    @classmethod
    def of(cls, licence: bytes, payloads: Sequence[Sequence[bytes]], periods: int) -> VersionTree:
        """The tree of a licence with these watermarks, (segments, variants) of 16 bytes."""
        first_changes_fastest = itertools.product(*reversed(payloads))
        secrets_ = (secret_of(licence, chosen[::-1]) for chosen in first_changes_fastest)
        return cls(tuple(anchor(secret, periods) for secret in secrets_))

    @cached_property
    def layers(self) -> tuple[tuple[bytes, ...], ...]:
        """From the leaves to the root."""
        depth = depth_of(len(self.anchors))
        row = self.anchors + (bytes(32),) * (2**depth - len(self.anchors))
        layers = [row]
        while len(row) > 1:
            row = tuple(keccak(row[i] + row[i + 1]) for i in range(0, len(row), 2))
            layers.append(row)
        return tuple(layers)

    @property
    def root(self) -> bytes:
        """32 bytes."""
        return self.layers[-1][0]

    @cached_property
    def index(self) -> dict[bytes, int]:
        """The version of each anchor."""
        return {value: version for version, value in enumerate(self.anchors)}

    def proof(self, version: int) -> tuple[bytes, ...]:
        """The siblings on the way from a leaf to the root. Raises IndexError."""
        if not 0 <= version < len(self.anchors):
            raise IndexError(f"version {version}: there are {len(self.anchors)}")
        return tuple(layer[(version >> level) ^ 1] for level, layer in enumerate(self.layers[:-1]))


def depth_of(versions: int) -> int:
    """Levels of the tree above so many leaves."""
    return (versions - 1).bit_length()
