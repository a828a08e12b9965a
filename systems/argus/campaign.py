"""The roles of a campaign: `Owner`, `Licensee`, `Informer`. Each has an account, a directory and a journal.

They share a chain and a store of files by their hash, nothing else; whatever a role must not forget is on disk before
the transaction that needs it is sent, so that every step can be repeated after an interruption.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from systems.argus.content import Store, join, make_versions, read_json, segments, unpng, write_json
from systems.argus.court import Court, Settings, State, Terms
from systems.argus.errors import ArgusError, BadBundle, NotWatermarked, Reverted, WrongPeriod
from systems.argus.tokens import (
    VersionTree,
    anchor,
    commitment,
    digits,
    new_payloads,
    secret_of,
    token,
    version_of,
)
from systems.argus.transfer import (
    Bundle,
    Choice,
    Offer,
    Opening,
    OwnerKey,
    address_of,
    check_choice,
    choice_hash,
    choose,
    open_bundle,
    seal,
)
from systems.argus.watermark import Image, extract
from systems.evm import Receipt

__all__ = ["Found", "Informer", "Licensee", "Owner", "Package", "settings_of", "terms_of"]


def settings_of(court: Court) -> Settings:
    """The terms of a campaign, from its opening."""
    args = court.events()[0].args
    names = ("period", "periods", "earliness", "contest", "patience", "deposit", "segments", "variants")
    return Settings(*(int(args[name]) for name in names))


def terms_of(court: Court, licence: bytes) -> tuple[Terms, bytes]:
    """The terms of a licence as far as they are, and the name of its package. Raises ArgusError where it has none."""
    terms, package = None, b""
    for event in court.events():
        if event.args.get("licence") != licence:
            continue
        if event.name == "Requested":
            args = event.args
            terms = Terms(args["licensee"], int(args["bounty"]), int(args["penalty"]), args["choice"])
        elif event.name == "Delivered" and terms is not None:
            terms, package = terms.delivered(event.args["root"]), event.args["bundle"]
    if terms is None:
        raise ArgusError(f"nobody requested the licence {licence.hex()}")
    return terms, package


@dataclass(frozen=True)
class Package:
    """What an owner publishes of a licence: the anchors of all versions, and the sealed variants."""

    anchors: tuple[bytes, ...]
    bundle: Bundle

    def to_bytes(self) -> bytes:
        """One file."""
        rows = self.bundle.sealed
        head = b"".join(number.to_bytes(4, "big") for number in (len(self.anchors), len(rows), len(rows[0])))
        parts = b"".join(len(part).to_bytes(8, "big") + part for row in rows for part in row)
        return head + b"".join(self.anchors) + parts

    @classmethod
    def from_bytes(cls, data: bytes) -> Package:
        """The other way round. Raises BadBundle."""
        if len(data) < 12:
            raise BadBundle("the package is cut off")
        versions, m, q = (int.from_bytes(data[i : i + 4], "big") for i in (0, 4, 8))
        at = 12 + 32 * versions
        anchors = tuple(data[12 + 32 * i : 44 + 32 * i] for i in range(versions))
        parts = []
        for _ in range(m * q):
            size = int.from_bytes(data[at : at + 8], "big")
            parts.append(data[at + 8 : at + 8 + size])
            at += 8 + size
        if at != len(data) or not m or not q:
            raise BadBundle("the package is cut off or too long")
        return cls(anchors, Bundle(tuple(tuple(parts[j * q : (j + 1) * q]) for j in range(m))))


@dataclass
class _Role:
    """A role at a court. folder: its own directory, for journals and copies; store: shared."""

    court: Court
    account: str
    folder: Path
    store: Store

    @property
    def settings(self) -> Settings:
        return settings_of(self.court)

    def _journal(self, name: str) -> Path:
        return self.folder / f"{name}.json"


@dataclass
class Owner(_Role):
    """Makes versions, seals them, puts up bonds. It does not know which version a licensee can open."""

    key: OwnerKey

    def deliver(self, licence: bytes, offer: Offer, image: Image) -> Package:
        """Answer a request: check the choice, mark and seal all variants, publish, post root and bond.

        Raises BadChoice, CapacityError, Reverted; ArgusError where the offer is not the one that was requested with.
        """
        s = self.settings
        terms, _ = terms_of(self.court, licence)
        check_choice(self.key.point, licence, offer, s.segments, s.variants)
        if choice_hash(offer.points) != terms.choice:
            raise ArgusError("the offer has other points than the request on the chain")
        journal = self._journal(licence.hex())
        if journal.exists():  # after an interruption: the same versions again
            payloads = tuple(tuple(bytes.fromhex(p) for p in row) for row in read_json(journal)["payloads"])
        else:
            payloads = new_payloads(s.segments, s.variants)
            write_json(journal, {"payloads": [[payload.hex() for payload in row] for row in payloads]})
        tree = VersionTree.of(licence, payloads, s.periods)
        package = Package(tree.anchors, seal(self.key, licence, offer, make_versions(image, payloads)))
        name = self.store.put(package.to_bytes())
        bond = self.court.call("bond_of", terms.penalty)
        self.court.send("deliver", licence, terms.words, tree.root, name, sender=self.account, value=bond)
        return package


@dataclass
class Licensee(_Role):
    """Chooses a version that only it can open, checks what it got, and clears its name where it is accused wrongly."""

    owner_key: bytes

    def request(self, licence: bytes, bounty: int, penalty: int) -> Offer:
        """Ask for a licence; wei. The offer goes to the owner. Raises Reverted."""
        s = self.settings
        choice = choose(self.owner_key, licence, s.segments, s.variants)
        opening = choice.opening
        record = {
            "chosen": list(opening.chosen),
            "blindings": [f"{blinding:064x}" for blinding in opening.blindings],
            "points": [point.hex() for point in choice.offer.points],
        }
        write_json(self._journal(licence.hex()), record)
        hidden = choice_hash(choice.offer.points)
        self.court.send("request", licence, hidden, bounty, penalty, sender=self.account, value=2 * penalty)
        return choice.offer

    def _choice(self, licence: bytes) -> Choice:
        record = read_json(self._journal(licence.hex()))
        opening = Opening(tuple(record["chosen"]), tuple(int(value, 16) for value in record["blindings"]))
        return Choice(Offer(tuple(bytes.fromhex(point) for point in record["points"]), ()), opening)

    def open(self, licence: bytes) -> Image:
        """The copy that was chosen, if all that was promised holds; nothing is accepted yet.

        Raises BadBundle, saying what is wrong: the package, the tree, a watermark, or the place of the version in it.
        """
        s = self.settings
        terms, name = terms_of(self.court, licence)
        if not name:
            raise WrongPeriod("the licence was not delivered yet")
        package = Package.from_bytes(self.store.get(name))
        if len(package.anchors) != s.versions:
            raise BadBundle(f"the package has {len(package.anchors)} versions, the campaign {s.versions}")
        tree = VersionTree(package.anchors)  # refuses equal ones
        if tree.root != terms.root:
            raise BadBundle("the anchors are not those of the root on the chain")
        choice = self._choice(licence)
        parts = [unpng(part) for part in open_bundle(self.owner_key, licence, choice, package.bundle)]
        payloads = []
        for segment, part in enumerate(parts):
            payload = extract(part).payload
            if payload is None:
                raise BadBundle(f"segment {segment} carries no watermark")
            payloads.append(payload)
        version = version_of(choice.opening.chosen, s.variants)
        if tree.anchors[version] != anchor(secret_of(licence, payloads), s.periods):
            raise BadBundle(f"the watermarks are not those of version {version}, which was chosen")
        return join(parts)

    def accept(self, licence: bytes) -> Receipt:
        """After `open`. Raises Reverted."""
        terms, _ = terms_of(self.court, licence)
        return self.court.send("accept", licence, terms.words, sender=self.account)

    def repudiate(self, licence: bytes) -> Receipt:
        """Open a segment in which the accused version differs from one's own.

        Raises ArgusError where there is none: then it is one's own version that was found. Raises Reverted.
        """
        s = self.settings
        terms, _ = terms_of(self.court, licence)
        accused = digits(int(self.court.call("state_of", licence)[1]), s.segments, s.variants)
        choice = self._choice(licence)
        for segment, (mine, theirs) in enumerate(zip(choice.opening.chosen, accused, strict=True)):
            if mine != theirs:
                points = [address_of(point) for point in choice.offer.points]
                blinding = choice.opening.blindings[segment]
                return self.court.send(
                    "repudiate", licence, terms.words, segment, mine, blinding, points, sender=self.account
                )
        raise ArgusError("the accused version is the one that this licensee opened: there is nothing to repudiate")


@dataclass(frozen=True)
class Found:
    """Whose copy an image is: the licence, the version, and the secret that proves it."""

    licence: bytes
    version: int
    secret: bytes


@dataclass
class Informer(_Role):
    """Recognises leaked copies and reports them. The journal holds every report from before its first transaction."""

    def inspect(self, image: Image) -> Found:
        """Raises NotWatermarked where a segment carries nothing, or nothing that a licence of this campaign knows."""
        s = self.settings
        payloads = []
        for segment, part in enumerate(segments(image, s.segments)):
            payload = extract(part).payload
            if payload is None:
                raise NotWatermarked(f"segment {segment + 1} of {s.segments} carries no watermark")
            payloads.append(payload)
        for event in self.court.events():
            if event.name != "Delivered":
                continue
            licence = event.args["licence"]
            secret = secret_of(licence, payloads)
            package = Package.from_bytes(self.store.get(event.args["bundle"]))
            version = VersionTree(package.anchors).index.get(anchor(secret, s.periods))
            if version is not None:
                return Found(licence, version, secret)
        raise NotWatermarked("the watermark is of no licence of this campaign")

    def commit(self, found: Found) -> Receipt | None:
        """Commit in the current period; None where that was done before, by whomever. Raises Reverted."""
        s = self.settings
        period = self.court.period()
        held = token(found.secret, period, s.periods)
        name = commitment(found.licence, held, self.account)
        record = {
            "licence": found.licence.hex(),
            "version": found.version,
            "secret": found.secret.hex(),
            "period": period,
        }
        write_json(self._journal(name.hex()), record)
        try:
            return self.court.send("commit", name, sender=self.account, value=s.deposit)
        except Reverted as error:
            if error.reason == "already committed":  # it binds us alone, whoever paid the deposit
                return None
            raise

    def _records(self) -> list[dict[str, object]]:
        return [read_json(path) for path in sorted(self.folder.glob("*.json"))]

    def reveal(self) -> list[Receipt]:
        """Reveal what was committed to in the last period. Raises WrongPeriod where there is nothing, Reverted."""
        s = self.settings
        due = [record for record in self._records() if record["period"] == self.court.period() - 1]
        if not due:
            raise WrongPeriod("nothing was committed to in the last period: commit, then reveal one period later")
        receipts = []
        for record in due:
            licence, version, held = self._held(record, s.periods)
            terms, name = terms_of(self.court, licence)
            proof = VersionTree(Package.from_bytes(self.store.get(name)).anchors).proof(version)
            receipts.append(self.court.send("reveal", licence, terms.words, held, version, proof, sender=self.account))
        return receipts

    def claim(self) -> list[Receipt]:
        """Take the rewards of all reports whose licences are settled. Raises Reverted."""
        receipts = []
        for record in self._records():
            licence, _, held = self._held(record, self.settings.periods)
            report = self.court.call("report_of", commitment(licence, held, self.account))
            if report >= 2**64 and self.court.state(licence) is State.SETTLED:
                receipts.append(self.court.send("claim", licence, held, sender=self.account))
        return receipts

    @staticmethod
    def _held(record: dict[str, object], periods: int) -> tuple[bytes, int, bytes]:
        period, version = record["period"], record["version"]
        assert isinstance(period, int)
        assert isinstance(version, int)
        held = token(bytes.fromhex(str(record["secret"])), period, periods)
        return bytes.fromhex(str(record["licence"])), version, held
