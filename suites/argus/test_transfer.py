"""Oblivious transfer and tokens: what each side learns, what it can prove, what tampering gets."""

import statistics
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from systems.argus import (
    BadBundle,
    BadChoice,
    DuplicateVersions,
    OwnerKey,
    VersionTree,
    WrongPeriod,
    anchor,
    check_choice,
    choose,
    open_bundle,
    seal,
    token,
    transfer,
)
from systems.argus.tokens import depth_of, digits, keccak, ladder, new_payloads, secret_of, version_of
from systems.argus.transfer import Bundle, Choice, Offer

pytestmark = pytest.mark.component("compute")
LICENCE = keccak(b"licence")
few = settings(max_examples=15, deadline=None)


@pytest.fixture(scope="module")
def key():
    return OwnerKey.new()


def parts(m, q):
    return [[f"segment {j} variant {v}".encode() for v in range(1, q + 1)] for j in range(m)]


@few
@given(m=st.integers(1, 5), q=st.integers(2, 5))
def test_a_licensee_opens_its_version_and_no_other(m, q):
    key = OwnerKey.new()
    choice = choose(key.point, LICENCE, m, q)
    bundle = seal(key, LICENCE, choice.offer, parts(m, q))
    chosen = choice.opening.chosen
    assert open_bundle(key.point, LICENCE, choice, bundle) == tuple(
        f"segment {j} variant {v}".encode() for j, v in enumerate(chosen)
    )
    for j in range(m):
        other = chosen[j] % q + 1
        wrong = tuple(other if i == j else v for i, v in enumerate(chosen))
        with pytest.raises(BadBundle, match=f"segment {j} does not open"):
            open_bundle(key.point, LICENCE, Choice(choice.offer, replace(choice.opening, chosen=wrong)), bundle)


def test_a_tampered_bundle_names_its_segment(key):
    choice = choose(key.point, LICENCE, 3, 4)
    bundle = seal(key, LICENCE, choice.offer, parts(3, 4))
    rows = [list(row) for row in bundle.sealed]
    rows[1] = [bytes([cell[0] ^ 1]) + cell[1:] for cell in rows[1]]
    broken = Bundle(tuple(tuple(row) for row in rows))
    assert broken.digest != bundle.digest
    with pytest.raises(BadBundle, match="segment 1"):
        open_bundle(key.point, LICENCE, choice, broken)
    with pytest.raises(BadBundle, match="segments"):
        open_bundle(key.point, LICENCE, choice, Bundle(bundle.sealed[:2]))
    with pytest.raises(BadBundle, match="segment 0"):
        open_bundle(key.point, keccak(b"another"), choice, bundle)


def test_out_of_range_choice_is_refused(key):
    """Else a licensee could open all segments but one, and deny any version."""
    for digit in (0, 5, -1):
        with pytest.raises(ValueError, match="digits"):
            choose(key.point, LICENCE, 2, 4, (1, digit))
    honest = choose(key.point, LICENCE, 2, 4)
    outside = transfer._sum(transfer._times(5, key.point), transfer._base(77)).format()
    forged = Offer((honest.offer.points[0], outside), honest.offer.proofs)
    with pytest.raises(BadChoice, match="segment 0"):  # the proofs are bound to all points
        check_choice(key.point, LICENCE, forged, 2, 4)
    wide = choose(key.point, LICENCE, 2, 5, (1, 5))
    with pytest.raises(BadChoice):
        check_choice(key.point, LICENCE, wide.offer, 2, 4)


@few
@given(data=st.data())
def test_a_proof_with_any_number_changed_is_refused(data):
    key = OwnerKey.of(7)
    offer = choose(key.point, LICENCE, 2, 3).offer
    check_choice(key.point, LICENCE, offer, 2, 3)
    segment, place = data.draw(st.integers(0, 1)), data.draw(st.integers(0, 2))
    name = data.draw(st.sampled_from(["challenges", "answers"]))
    value = data.draw(st.sampled_from([0, 1, transfer.ORDER - 1, transfer.ORDER]))
    numbers = list(getattr(offer.proofs[segment], name))
    numbers[place] = value
    proofs = list(offer.proofs)
    proofs[segment] = replace(proofs[segment], **{name: tuple(numbers)})
    with pytest.raises(BadChoice, match=f"segment {segment}"):
        check_choice(key.point, LICENCE, replace(offer, proofs=tuple(proofs)), 2, 3)


def test_a_proof_is_of_no_use_for_another_licence_key_or_order(key):
    offer = choose(key.point, LICENCE, 2, 4).offer
    for point, licence, given_offer in (
        (key.point, keccak(b"another"), offer),
        (OwnerKey.new().point, LICENCE, offer),
        (key.point, LICENCE, Offer(offer.points[::-1], offer.proofs[::-1])),
        (key.point, LICENCE, Offer(offer.points, offer.proofs[::-1])),
        (key.point, LICENCE, Offer((b"\x02" + bytes(32), offer.points[1]), offer.proofs)),
    ):
        with pytest.raises(BadChoice):
            check_choice(point, licence, given_offer, 2, 4)
    with pytest.raises(BadChoice, match="1 points"):
        check_choice(key.point, LICENCE, Offer(offer.points[:1], offer.proofs[:1]), 2, 4)


def test_a_key_proves_itself(key):
    assert transfer.check_key(key.point, key.proof)
    assert not transfer.check_key(OwnerKey.new().point, key.proof)
    assert not transfer.check_key(key.point, (key.proof[0], key.proof[1] + 1))
    assert not transfer.check_key(key.point, (0, 0))
    assert not transfer.check_key(b"\x02" + bytes(32), key.proof)
    assert str(key.secret) not in repr(key)
    with pytest.raises(ValueError, match="integer from 1"):
        OwnerKey.of(0)


@pytest.mark.claim("argus/framing-distinguisher")
def test_the_owner_learns_nothing_of_the_choice(claim):
    """The owner's best guess from all that it sees, bit by bit: a fixed one for a point that fits every digit."""
    key = OwnerKey.new()
    games = 400
    right = 0
    for number in range(games):
        bit = number % 2
        offer = choose(key.point, LICENCE, 1, 2, (1 + bit,)).offer
        seen = offer.points[0] + b"".join(
            value.to_bytes(32, "big") for proof in offer.proofs for value in (*proof.challenges, *proof.answers)
        )
        guess = sum(seen) & 1
        right += guess == bit
    share = 100 * right / games
    spread = 100 * 4 * 0.5 / games**0.5  # four sigma
    assert abs(share - 50) <= spread
    claim.report(share, f"{games} games, the parity of all that the owner sees; band {spread:.1f}")


def test_every_digit_fits_a_point_with_some_blinding():
    """Perfect hiding, with the secret in hand: C = bA + rG is also b'A + (r + (b - b') a) G."""
    key = OwnerKey.new()
    choice = choose(key.point, LICENCE, 1, 4, (2,))
    r = choice.opening.blindings[0]
    for digit in range(1, 5):
        other = transfer._base(r + (2 - digit) * key.secret)
        assert transfer._sum(transfer._times(digit, key.point), other).format() == choice.offer.points[0]


def test_points_do_not_favour_a_digit():
    key = OwnerKey.new()
    first = [choose(key.point, LICENCE, 1, 2, (1 + n % 2,)).offer.points[0][1] for n in range(300)]
    assert abs(statistics.mean(first[::2]) - statistics.mean(first[1::2])) < 4 * 74 * (2 / 150) ** 0.5


# ------------------------------------------------------------------------------------------------------ tokens


@given(periods=st.integers(1, 32), data=st.data())
def test_a_token_leads_to_the_anchor_and_to_earlier_tokens_only(periods, data):
    secret = keccak(b"secret")
    t = data.draw(st.integers(1, periods))
    assert ladder(token(secret, t, periods), t) == anchor(secret, periods)
    for earlier in range(1, t):
        assert token(secret, earlier, periods) == ladder(token(secret, t, periods), t - earlier)
    reachable = {ladder(token(secret, t, periods), n) for n in range(periods + 1)}
    assert not any(token(secret, later, periods) in reachable for later in range(t + 1, periods + 1))


def test_the_first_token_is_not_public():
    secret = keccak(b"secret")
    assert token(secret, 1, 1) != anchor(secret, 1)
    for t in (0, -1, 5, 33):
        with pytest.raises(WrongPeriod):
            token(secret, t, 4)
    with pytest.raises(WrongPeriod):
        token(secret, 1, 33)


@few
@given(m=st.integers(1, 3), q=st.integers(2, 4), periods=st.integers(1, 4), data=st.data())
def test_every_version_is_found_by_its_watermarks_and_proved(m, q, periods, data):
    payloads = new_payloads(m, q)
    tree = VersionTree.of(LICENCE, payloads, periods)
    version = data.draw(st.integers(0, q**m - 1))
    chosen = digits(version, m, q)
    assert version_of(chosen, q) == version
    secret = secret_of(LICENCE, [payloads[j][v - 1] for j, v in enumerate(chosen)])
    assert tree.index[anchor(secret, periods)] == version
    node, proof = tree.anchors[version], tree.proof(version)
    assert len(proof) == depth_of(q**m)
    for level, sibling in enumerate(proof):
        node = keccak(sibling + node if version >> level & 1 else node + sibling)
    assert node == tree.root


def test_equal_versions_and_places_that_are_not_there_are_refused():
    with pytest.raises(DuplicateVersions):
        VersionTree((keccak(b"a"), keccak(b"a")))
    with pytest.raises(IndexError, match="there are 2"):
        VersionTree((keccak(b"a"), keccak(b"b"))).proof(2)
    with pytest.raises(ValueError, match="at least one"):
        VersionTree(())
