"""Everything about a campaign from its events alone: who may take what, and whether the contract can pay it.

    ledger = replay(court.events())
    ledger.balance == court.balance and ledger.owed[account] == court.call("owed", account)

Nothing is asked of the chain and nothing is taken on trust: tokens are checked against the root by whoever has
the versions, amounts are computed here by the published rules and compared with those that the contract paid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from systems.argus.court import Settings, State, Terms
from systems.argus.incentive import MOST_COUNTED, penalty, reward
from systems.argus.tokens import commitment
from systems.evm import Event

__all__ = ["Ledger", "Licence", "Report", "bond", "replay"]


@dataclass
class Report:
    """One report, by its commitment. paid: wei that were claimed, None so far."""

    informer: str
    licence: bytes
    period: int
    version: int
    counted: bool
    paid: int | None = None


@dataclass
class Licence:
    """As the events tell of it."""

    terms: Terms
    state: State = State.REQUESTED
    version: int | None = None
    counts: list[int] = field(default_factory=list)
    bundle: bytes = b""
    settled_counts: tuple[int, ...] = ()


@dataclass
class Ledger:
    """What the contract holds and owes. wei throughout.

    flaws: sentences about events that contradict the rules; none on an honest contract.
    """

    owner: str
    start: int
    settings: Settings
    licences: dict[bytes, Licence] = field(default_factory=dict)
    committed: set[bytes] = field(default_factory=set)
    reports: dict[bytes, Report] = field(default_factory=dict)
    owed: Counter[str] = field(default_factory=Counter)
    balance: int = 0
    flaws: list[str] = field(default_factory=list)

    @property
    def burned(self) -> int:
        """Deposits of commitments that were not revealed. Final once the campaign is over."""
        return self.settings.deposit * len(self.committed - self.reports.keys())

    @property
    def claimable(self) -> int:
        """Rewards and deposits of revealed reports that nobody claimed yet, as far as licences are settled."""
        return sum(self.worth(report) for report in self.reports.values() if report.paid is None and self._over(report))

    @property
    def locked(self) -> int:
        """Collateral, bonds and deposits of what is still open."""
        deposits = self.settings.deposit * sum(
            report.paid is None and not self._over(report) for report in self.reports.values()
        )
        money = 0
        for licence in self.licences.values():
            if licence.state in {State.REQUESTED, State.DELIVERED, State.ACTIVE, State.ACCUSED}:
                money += 2 * licence.terms.penalty
            if licence.state in {State.DELIVERED, State.ACTIVE, State.ACCUSED}:
                money += bond(licence.terms.penalty, self.settings)
        return deposits + money

    def worth(self, report: Report) -> int:
        """Wei that a report brings in once its licence is settled: the exact floor, and its deposit."""
        licence = self.licences[report.licence]
        if not report.counted or licence.version is None or not any(licence.settled_counts):
            return self.settings.deposit
        exact = reward(licence.terms.bounty, self.settings.earliness, licence.settled_counts, report.period - 1)
        return self.settings.deposit + exact

    def rounding(self) -> int:
        """Wei by which unclaimed rewards may be below the exact floor: one for each."""
        return sum(report.counted and report.paid is None for report in self.reports.values())

    def _over(self, report: Report) -> bool:
        return self.licences[report.licence].state is State.SETTLED


def bond(first: int, settings: Settings) -> int:
    """Wei that the owner puts up against framing, by the penalty of a first report."""
    return -(-first // min(16, (settings.versions - 1) // 2))


def replay(events: Iterable[Event]) -> Ledger:
    """The ledger of a campaign. Raises ValueError where the first event does not open one."""
    ledger: Ledger | None = None
    for event in events:
        args = event.args
        if event.name == "Opened":
            names = ("period", "periods", "earliness", "contest", "patience", "deposit", "segments", "variants")
            settings = Settings(*(int(args[name]) for name in names))
            ledger = Ledger(args["owner"].lower(), int(args["start"]), settings)
        elif ledger is None:
            raise ValueError(f"the first event is {event.name}: give all events of a campaign, from its opening on")
        else:
            _after(ledger, event.name, args)
    if ledger is None:
        raise ValueError("no events: is this the address of a campaign?")
    return ledger


def _after(ledger: Ledger, name: str, args: Mapping[str, object]) -> None:
    key = _bytes(args["licence"]) if "licence" in args else b""
    licence = ledger.licences.get(key)
    get = args.__getitem__
    match name:
        case "Requested":
            terms = Terms(_account(get("licensee")), _wei(get("bounty")), _wei(get("penalty")), _bytes(get("choice")))
            ledger.licences[key] = Licence(terms, counts=[0] * ledger.settings.periods)
            ledger.balance += 2 * terms.penalty
        case "Committed":
            ledger.committed.add(_bytes(get("commitment")))
            ledger.balance += ledger.settings.deposit
        case "Withdrawn":
            account, amount = _account(get("account")), _wei(get("amount"))
            if ledger.owed[account] != amount:
                ledger.flaws.append(f"{account} withdrew {amount} wei, but {ledger.owed[account]} were owed")
            ledger.owed[account] -= amount
            ledger.balance -= amount
        case _ if licence is None:
            ledger.flaws.append(f"{name} of a licence that nobody requested: {key.hex()}")
        case "Delivered":
            licence.terms = licence.terms.delivered(_bytes(get("root")))
            licence.bundle, licence.state = _bytes(get("bundle")), State.DELIVERED
            ledger.balance += bond(licence.terms.penalty, ledger.settings)
        case "Accepted":
            licence.state = State.ACTIVE
        case "Expired":
            ledger.owed[licence.terms.licensee] += 2 * licence.terms.penalty
            if get("delivered"):
                ledger.owed[ledger.owner] += bond(licence.terms.penalty, ledger.settings)
            licence.state = State.SETTLED
        case "Revealed":
            _revealed(ledger, key, licence, args)
        case "Repudiated" | "Exposed":
            whole = 2 * licence.terms.penalty + bond(licence.terms.penalty, ledger.settings)
            if name == "Exposed":  # by anyone: the licensee is owed; who repudiates is paid at once
                ledger.owed[licence.terms.licensee] += whole
            else:
                ledger.balance -= whole
            licence.state = State.CLEARED
        case "Settled":
            _settled(ledger, licence, args)
        case "Claimed":
            _claimed(ledger, key, args)


def _revealed(ledger: Ledger, key: bytes, licence: Licence, args: Mapping[str, object]) -> None:
    informer, period, version = _account(args["informer"]), _wei(args["period"]), _wei(args["version"])
    name = commitment(key, _bytes(args["token"]), informer)
    if name not in ledger.committed:
        ledger.flaws.append(f"{informer} revealed what was never committed")
    if licence.state is State.ACTIVE:
        licence.state, licence.version = State.ACCUSED, version
    counts = licence.state is State.ACCUSED and version == licence.version
    counts = counts and licence.counts[period - 1] < MOST_COUNTED
    if counts != bool(args["counted"]):
        ledger.flaws.append(f"the report of {informer} in period {period} should{'' if counts else ' not'} count")
    licence.counts[period - 1] += counts
    ledger.reports[name] = Report(informer, key, period, version, counts)


def _settled(ledger: Ledger, licence: Licence, args: Mapping[str, object]) -> None:
    bonded = bond(licence.terms.penalty, ledger.settings)
    to_owner, to_licensee = (0, 0) if licence.state is State.CLEARED else (bonded, 2 * licence.terms.penalty)
    rounding = 0
    if licence.state is State.ACCUSED:
        licence.settled_counts = tuple(licence.counts)
        number = sum(licence.counts)
        due = penalty(licence.terms.penalty, number)
        each = (
            reward(licence.terms.bounty, ledger.settings.earliness, licence.counts, t) * count
            for t, count in enumerate(licence.counts)
            if count
        )
        to_owner, to_licensee, rounding = to_owner + due - sum(each), to_licensee - due, number
    claimed_owner, claimed_licensee = _wei(args["to_owner"]), _wei(args["to_licensee"])
    # Rewards may be a wei below the floor, which the owner then has.
    if not (to_owner <= claimed_owner <= to_owner + rounding and claimed_licensee == to_licensee):
        ledger.flaws.append(
            f"settled {claimed_owner} to the owner and {claimed_licensee} to the licensee, due were {to_owner} and "
            f"{to_licensee}"
        )
    ledger.owed[ledger.owner] += claimed_owner
    ledger.owed[licence.terms.licensee] += claimed_licensee
    licence.state = State.SETTLED


def _claimed(ledger: Ledger, key: bytes, args: Mapping[str, object]) -> None:
    informer, amount = _account(args["informer"]), _wei(args["amount"])
    report = ledger.reports.get(commitment(key, _bytes(args["token"]), informer))
    if report is None or report.paid is not None:
        ledger.flaws.append(f"{informer} claimed {amount} wei for no open report")
        return
    worth = ledger.worth(report)
    if not worth - report.counted <= amount <= worth:
        ledger.flaws.append(f"{informer} was paid {amount} wei for a report that is worth {worth}")
    report.paid = amount
    if args["owed"]:
        ledger.owed[informer] += amount
    else:
        ledger.balance -= amount


def _account(value: object) -> str:
    return str(value).lower()


def _wei(value: object) -> int:
    assert isinstance(value, int)
    return value


def _bytes(value: object) -> bytes:
    assert isinstance(value, bytes)
    return value
