"""Oblivious transfer of one of N versions for q times the bandwidth of one (Chou-Orlandi's kind, on secp256k1).

The content is cut into m segments with q watermarked variants each. The owner's key is A = aG. A licensee hides a
digit b_j for each segment in C_j = b_j A + r_j G, which fits every digit with some r_j, and proves that 1 <= b_j <= q
without telling which. Variant v of segment j is sealed under a key from a (C_j - vA), which is r_j A for v = b_j alone.
Who knows no a cannot open C_j to another digit: that clears the innocent, and only the innocent. Scalars are integers
modulo the group order, points are 33 bytes (compressed).
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from coincurve import PublicKey
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from systems.argus.errors import BadBundle, BadChoice
from systems.argus.tokens import keccak

__all__ = [
    "ORDER",
    "Bundle",
    "Choice",
    "ChoiceProof",
    "Offer",
    "Opening",
    "OwnerKey",
    "address_of",
    "check_choice",
    "check_key",
    "choice_hash",
    "choose",
    "open_bundle",
    "seal",
]

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
NONCE = bytes(12)  # every key seals one message


def _scalar() -> int:
    return 1 + secrets.randbelow(ORDER - 1)


def _times(scalar: int, point: bytes) -> PublicKey:
    return PublicKey(point).multiply((scalar % ORDER).to_bytes(32, "big"))


def _base(scalar: int) -> PublicKey:
    return PublicKey.from_secret((scalar % ORDER).to_bytes(32, "big"))


def _sum(*points: PublicKey) -> PublicKey:
    return PublicKey.combine_keys(list(points))


def _challenge(*parts: bytes) -> int:
    digest = hashlib.sha256(b"argus proof 1")
    for part in parts:
        digest.update(len(part).to_bytes(4, "big") + part)
    return int.from_bytes(digest.digest(), "big") % ORDER


def address_of(point: bytes) -> str:
    """The Ethereum address of a point: what `ecrecover` returns for it."""
    return "0x" + keccak(PublicKey(point).format(compressed=False)[1:])[12:].hex()


def choice_hash(points: Sequence[bytes]) -> bytes:
    """What a licensee puts on the chain of its choice: the hash of the addresses of its points."""
    return keccak(b"".join(bytes(12) + bytes.fromhex(address_of(point)[2:]) for point in points))


# --- the owner's key -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OwnerKey:
    """a, A = aG and a proof that its maker knows a. Its repr does not show a."""

    point: bytes
    proof: tuple[int, int]
    _secret: int = 0

    @classmethod
    def new(cls) -> OwnerKey:
        """A fresh key."""
        return cls.of(_scalar())

    @classmethod
    def of(cls, secret: int) -> OwnerKey:
        """The key of a secret, 1 to the order of the group. Raises ValueError."""
        if not 0 < secret < ORDER:
            raise ValueError("a secret is an integer from 1 to the order of the group")
        nonce = _scalar()
        point, commitment = _base(secret).format(), _base(nonce).format()
        challenge = _challenge(b"key", point, commitment)
        return cls(point, (challenge, (nonce + challenge * secret) % ORDER), secret)

    def __repr__(self) -> str:
        return f"OwnerKey({self.point.hex()})"

    @property
    def secret(self) -> int:
        """a, which the owner keeps."""
        return self._secret

    @property
    def x(self) -> int:
        """The coordinate that the contract checks openings with."""
        return int(PublicKey(self.point).point()[0])

    @property
    def odd(self) -> bool:
        """Whether the other coordinate is odd."""
        return self.point[0] == 3


def check_key(point: bytes, proof: tuple[int, int]) -> bool:
    """Whether the maker of A knows a (Schnorr)."""
    challenge, answer = proof
    if not 0 < answer < ORDER or not 0 < challenge < ORDER:
        return False
    try:
        commitment = _sum(_base(answer), _times(-challenge, point)).format()
    except ValueError:
        return False
    return _challenge(b"key", point, commitment) == challenge


# --- the licensee's choice -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChoiceProof:
    """For one point: a challenge and an answer for each digit; the challenges add up to the hash of everything."""

    challenges: tuple[int, ...]
    answers: tuple[int, ...]


@dataclass(frozen=True)
class Opening:
    """What a licensee keeps: the digit and the blinding of each segment. Its repr shows neither."""

    chosen: tuple[int, ...]
    blindings: tuple[int, ...]

    def __repr__(self) -> str:
        return f"Opening of {len(self.chosen)} segments"


@dataclass(frozen=True)
class Offer:
    """What a licensee sends: points and proofs, one a segment."""

    points: tuple[bytes, ...]
    proofs: tuple[ChoiceProof, ...]


@dataclass(frozen=True)
class Choice:
    """A choice: the public half and the private one."""

    offer: Offer
    opening: Opening


def choose(key: bytes, licence: bytes, segments: int, variants: int, chosen: Sequence[int] | None = None) -> Choice:
    """A choice of one version: random digits, or those given (for tests). Raises ValueError for a digit out of range.

    key: A; licence: its 32-byte name, which every proof and every key is bound to.
    """
    picked = tuple(chosen) if chosen is not None else tuple(1 + secrets.randbelow(variants) for _ in range(segments))
    if len(picked) != segments or not all(1 <= digit <= variants for digit in picked):
        raise ValueError(f"digits {picked}: expected {segments} of 1 to {variants}")
    blindings = tuple(_scalar() for _ in picked)
    points = tuple(_sum(_times(b, key), _base(r)).format() for b, r in zip(picked, blindings, strict=True))
    proofs = tuple(
        _prove(key, licence, points, j, digit, blinding, variants)
        for j, (digit, blinding) in enumerate(zip(picked, blindings, strict=True))
    )
    return Choice(Offer(points, proofs), Opening(picked, blindings))


def _statement(key: bytes, licence: bytes, points: Sequence[bytes], segment: int, commitments: Sequence[bytes]) -> int:
    return _challenge(b"choice", licence, key, *points, segment.to_bytes(4, "big"), *commitments)


def _shifted(key: bytes, point: bytes, digit: int) -> PublicKey:
    """C - digit A. Raises ValueError where that is the neutral point."""
    return _sum(PublicKey(point), _times(-digit, key))


def _prove(
    key: bytes, licence: bytes, points: Sequence[bytes], segment: int, digit: int, blinding: int, variants: int
) -> ChoiceProof:
    # One of q discrete logarithms is known; the proofs of the others are made from the challenge backwards.
    nonce = _scalar()
    challenges = [_scalar() for _ in range(variants)]
    answers = [_scalar() for _ in range(variants)]
    commitments = []
    for v in range(1, variants + 1):
        if v == digit:
            commitments.append(_base(nonce).format())
            continue
        own = _shifted(key, points[segment], v).format()
        commitments.append(_sum(_base(answers[v - 1]), _times(-challenges[v - 1], own)).format())
    total = _statement(key, licence, points, segment, commitments)
    rest = sum(c for v, c in enumerate(challenges, 1) if v != digit)
    challenges[digit - 1] = (total - rest) % ORDER
    answers[digit - 1] = (nonce + challenges[digit - 1] * blinding) % ORDER
    return ChoiceProof(tuple(challenges), tuple(answers))


def check_choice(key: bytes, licence: bytes, offer: Offer, segments: int, variants: int) -> None:
    """Raises BadChoice unless every point hides a digit of 1 to `variants`."""
    if len(offer.points) != segments or len(offer.proofs) != segments:
        raise BadChoice(f"the choice has {len(offer.points)} points and {len(offer.proofs)} proofs for {segments}")
    for segment, proof in enumerate(offer.proofs):
        if not _holds(key, licence, offer.points, segment, proof, variants):
            raise BadChoice(f"segment {segment}: the point is not shown to hide a digit of 1 to {variants}")


def _holds(
    key: bytes, licence: bytes, points: Sequence[bytes], segment: int, proof: ChoiceProof, variants: int
) -> bool:
    if len(proof.challenges) != variants or len(proof.answers) != variants:
        return False
    if not all(0 < value < ORDER for value in (*proof.challenges, *proof.answers)):
        return False
    try:
        commitments = []
        for v, (challenge, answer) in enumerate(zip(proof.challenges, proof.answers, strict=True), 1):
            own = _shifted(key, points[segment], v).format()
            commitments.append(_sum(_base(answer), _times(-challenge, own)).format())
    except ValueError:  # no point of the curve, or the neutral one
        return False
    return sum(proof.challenges) % ORDER == _statement(key, licence, points, segment, commitments)


# --- the bundle ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bundle:
    """Sealed variants, (segments, variants) byte strings."""

    sealed: tuple[tuple[bytes, ...], ...]

    @property
    def digest(self) -> bytes:
        """The 32 bytes that it is published under."""
        return keccak(b"".join(len(part).to_bytes(8, "big") + keccak(part) for row in self.sealed for part in row))


def _key(shared: bytes, licence: bytes, key: bytes, point: bytes, segment: int, digit: int) -> bytes:
    context = licence + key + point + segment.to_bytes(4, "big") + digit.to_bytes(4, "big")
    return HKDF(SHA256(), 32, salt=b"argus transfer 1", info=context).derive(shared)


def seal(key: OwnerKey, licence: bytes, offer: Offer, variants: Sequence[Sequence[bytes]]) -> Bundle:
    """Seal all variants, (m, q) byte strings, so that only the chosen one of each segment can be opened.

    Raises BadChoice where the offer does not prove itself.
    """
    check_choice(key.point, licence, offer, len(variants), len(variants[0]))
    rows = []
    for segment, (point, parts) in enumerate(zip(offer.points, variants, strict=True)):
        row = []
        for digit, part in enumerate(parts, 1):
            shared = _shifted(key.point, point, digit).multiply(key.secret.to_bytes(32, "big")).format()
            one_time = _key(shared, licence, key.point, point, segment, digit)
            row.append(ChaCha20Poly1305(one_time).encrypt(NONCE, part, licence))
        rows.append(tuple(row))
    return Bundle(tuple(rows))


def open_bundle(key: bytes, licence: bytes, choice: Choice, bundle: Bundle) -> tuple[bytes, ...]:
    """The chosen variant of each segment. Raises BadBundle, naming the segment that does not open."""
    points, opening = choice.offer.points, choice.opening
    if len(bundle.sealed) != len(points):
        raise BadBundle(f"the bundle has {len(bundle.sealed)} segments, the choice {len(points)}")
    parts = []
    for segment, (digit, blinding) in enumerate(zip(opening.chosen, opening.blindings, strict=True)):
        if digit > len(bundle.sealed[segment]):
            raise BadBundle(f"segment {segment} has {len(bundle.sealed[segment])} variants, {digit} was chosen")
        one_time = _key(_times(blinding, key).format(), licence, key, points[segment], segment, digit)
        try:
            parts.append(ChaCha20Poly1305(one_time).decrypt(NONCE, bundle.sealed[segment][digit - 1], licence))
        except InvalidTag as error:
            raise BadBundle(
                f"segment {segment} does not open: the bundle was tampered with, or is another's"
            ) from error
    return tuple(parts)
