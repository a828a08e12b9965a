"""A campaign at test size on some chain: keys, versions, and the moves of its roles."""

from __future__ import annotations

from dataclasses import dataclass

from systems.argus import transfer
from systems.argus.court import Court, Settings, Terms, deploy
from systems.argus.tokens import VersionTree, commitment, keccak, new_payloads, secret_of, token, version_of
from systems.argus.transfer import Choice, OwnerKey, choose

ETHER = 10**18
SMALL = Settings(period=3600, periods=4, contest=5000, patience=4000, segments=3, variants=4)


@dataclass
class Deal:
    """One licence: what licensee and owner know of it together."""

    name: bytes
    choice: Choice
    payloads: tuple[tuple[bytes, ...], ...]
    tree: VersionTree
    terms: Terms

    @property
    def version(self) -> int:
        """The one that the licensee can open."""
        return version_of(self.choice.opening.chosen, len(self.payloads[0]))

    def secret(self, version: int | None = None) -> bytes:
        """Of a version, by default the licensee's."""
        v, q = self.version if version is None else version, len(self.payloads[0])
        return secret_of(self.name, [row[v // q**j % q] for j, row in enumerate(self.payloads)])

    @property
    def points(self) -> list[str]:
        return [transfer.address_of(point) for point in self.choice.offer.points]


class Campaign:
    """The contract, the owner's key, and moves by name of licence and account."""

    def __init__(self, chain, settings=SMALL, key=None):
        self.chain, self.settings, self.key = chain, settings, key or OwnerKey.new()
        self.owner, self.licensee, *self.informers = chain.accounts
        self.court: Court = deploy(chain, self.key, settings, sender=self.owner)

    def new_deal(self, name=b"film", bounty=ETHER, penalty=2 * ETHER, licensee=None) -> Deal:
        """A licence that nobody has asked for yet."""
        licence, s = keccak(name), self.settings
        choice = choose(self.key.point, licence, s.segments, s.variants)
        payloads = new_payloads(s.segments, s.variants)
        tree = VersionTree.of(licence, payloads, s.periods)
        hidden = transfer.choice_hash(choice.offer.points)
        return Deal(licence, choice, payloads, tree, Terms(licensee or self.licensee, bounty, penalty, hidden))

    def request(self, deal, **changed):
        t = deal.terms
        value = changed.pop("value", 2 * t.penalty)
        sender = changed.pop("sender", t.licensee)
        return self.court.send("request", deal.name, t.choice, t.bounty, t.penalty, sender=sender, value=value)

    def deliver(self, deal, *, sender=None, value=None):
        bond = self.court.call("bond_of", deal.terms.penalty) if value is None else value
        receipt = self.court.send(
            "deliver", deal.name, deal.terms.words, deal.tree.root, keccak(b"bundle"), sender=sender or self.owner,
            value=bond,
        )  # fmt: skip
        deal.terms = deal.terms.delivered(deal.tree.root)
        return receipt

    def accept(self, deal, *, sender=None):
        return self.court.send("accept", deal.name, deal.terms.words, sender=sender or deal.terms.licensee)

    def active(self, **given) -> Deal:
        """A licence that was requested, delivered and accepted."""
        deal = self.new_deal(**given)
        self.request(deal)
        self.deliver(deal)
        self.accept(deal)
        return deal

    def held(self, deal, period, version=None):
        return token(deal.secret(version), period, self.settings.periods)

    def commit(self, deal, informer, *, version=None, period=None):
        held = self.held(deal, period or self.court.period(), version)
        name = commitment(deal.name, held, informer)
        return self.court.send("commit", name, sender=informer, value=self.settings.deposit)

    def reveal(self, deal, informer, *, version=None, period=None):
        period = period or self.court.period() - 1
        shown = deal.version if version is None else version
        return self.court.send(
            "reveal", deal.name, deal.terms.words, self.held(deal, period, version), shown, deal.tree.proof(shown),
            sender=informer,
        )  # fmt: skip

    def report(self, deal, *informers, version=None):
        """Commit, wait for the next period, reveal."""
        for informer in informers:
            self.commit(deal, informer, version=version)
        self.next_period()
        return [self.reveal(deal, informer, version=version) for informer in informers]

    def next_period(self):
        # one second into it: transactions of a test take seconds of their own
        now, start = self.chain.now(), self.start
        into = (now - start) % self.settings.period
        self.chain.advance(self.settings.period - into + 1)

    @property
    def start(self) -> int:
        return int(self.court.events()[0].args["start"])

    def finish(self):
        """Go to when everything can be settled."""
        s = self.settings
        end = self.start + s.period * (s.periods + 1) + s.contest + s.patience + 10
        self.chain.advance(max(1, end - self.chain.now()))

    def settle(self, deal, *, sender=None):
        return self.court.send("settle", deal.name, deal.terms.words, sender=sender or self.informers[0])

    def claim(self, deal, informer, period, *, version=None):
        return self.court.send("claim", deal.name, self.held(deal, period, version), sender=informer)

    def repudiate(self, deal, segment, digit=None, blinding=None, *, sender=None):
        opening = deal.choice.opening
        return self.court.send(
            "repudiate", deal.name, deal.terms.words, segment,
            opening.chosen[segment] if digit is None else digit,
            opening.blindings[segment] if blinding is None else blinding, deal.points,
            sender=sender or deal.terms.licensee,
        )  # fmt: skip
