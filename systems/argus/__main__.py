"""Argus as a tool: every role a process of its own, over a node and a shared store of files.

A campaign on a local node (start one by `anvil --port 8545`); each role has an account and a directory of its own:

  python -m systems.argus owner open --folder owner --account 0 --period 60     # prints the campaign's address
  export ARGUS_CAMPAIGN=0x...

  python -m systems.argus licensee request film --folder alice --account 1 --bounty 1 --penalty 2
  python -m systems.argus owner deliver film picture.png --folder owner --account 0
  python -m systems.argus licensee accept film copy.png --folder alice --account 1

  python -m systems.argus informer inspect found.jpg --folder bob --account 2   # whose copy is it?
  python -m systems.argus informer report found.jpg --folder bob --account 2    # commit in this period
  python -m systems.argus informer reveal --folder bob --account 2              # in the next one
  python -m systems.argus licensee repudiate film --folder alice --account 1    # if the copy was not alice's
  python -m systems.argus settle film --account 2                               # when the campaign is over
  python -m systems.argus informer claim --folder bob --account 2
  python -m systems.argus withdraw --account 0
  python -m systems.argus audit --page campaign.html                            # everything, from events alone

  python -m systems.argus simulate                                              # reward rules under attack, no node

The store (--store, default ./store) is a directory of files by their hash; roles on several machines share it by any
means. Amounts are ether. Every step can be repeated after an interruption. Exit status: 0 done, 1 nothing was found (no
watermark, a flaw in the books), 2 refused.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from systems import evm
from systems.argus.audit import replay
from systems.argus.campaign import Informer, Licensee, Owner, terms_of
from systems.argus.content import Store, load_image, read_json, write_image, write_json, write_text
from systems.argus.court import Court, Settings, State, court_at, deploy
from systems.argus.errors import ArgusError, NotWatermarked
from systems.argus.incentive import RULES, simulate
from systems.argus.page import page
from systems.argus.tokens import keccak
from systems.argus.transfer import ChoiceProof, Offer, OwnerKey

ETHER = 10**18


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    given = _parser().parse_args(arguments)
    try:
        return int(given.act(given))
    except NotWatermarked as error:
        print(f"argus: {error}", file=sys.stderr)
        return 1
    except (ArgusError, evm.ChainError, ValueError, OSError) as error:
        print(f"argus: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m systems.argus", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    roles = parser.add_subparsers(dest="role", required=True, metavar="role")

    owner = roles.add_parser("owner", help="open a campaign, deliver copies").add_subparsers(required=True, dest="step")
    opening = _step(owner, "open", _open, "put a campaign on the chain; prints its address", campaign=False)
    standard = Settings()
    for name, what in (
        ("period", "seconds of a period"), ("periods", "number of periods, to 32"),
        ("contest", "seconds in which an accused licensee may clear itself"),
        ("patience", "seconds for delivery, and again for acceptance"), ("deposit", "wei, with every commitment"),
        ("segments", "parts of an image that are chosen apart"), ("variants", "watermarks of each part"),
        ("earliness", "what later reports take from earlier ones, in parts of 256, to 128"),
    ):  # fmt: skip
        default = getattr(standard, name)
        opening.add_argument(f"--{name}", type=int, default=default, help=f"{what} (default {default})")
    delivering = _step(owner, "deliver", _deliver, "mark and seal all versions for a request")
    delivering.add_argument("licence", help="its name, as it was requested")
    delivering.add_argument("image", type=Path, help="the original")

    licensee = roles.add_parser("licensee", help="request, accept, clear one's name").add_subparsers(
        required=True, dest="step"
    )
    requesting = _step(licensee, "request", _request, "ask for a licence, with the collateral of twice the penalty")
    requesting.add_argument("licence", help="any name that is not taken")
    requesting.add_argument(
        "--bounty", type=_ether, required=True, help="ether that reports share, at most the penalty"
    )
    requesting.add_argument("--penalty", type=_ether, required=True, help="ether that a first report costs")
    accepting = _step(licensee, "accept", _accept, "check what was delivered, keep the copy, accept")
    accepting.add_argument("licence")
    accepting.add_argument("copy", type=Path, help="the PNG file to write the copy to")
    _step(licensee, "repudiate", _repudiate, "show that the accused version is not one's own").add_argument("licence")

    informer = roles.add_parser("informer", help="recognise and report copies").add_subparsers(
        required=True, dest="step"
    )
    for name, act, what in (
        ("inspect", _inspect, "say whose copy an image is; sends nothing"),
        ("report", _report, "commit to a report in the current period"),
    ):
        _step(informer, name, act, what).add_argument("image", type=Path)
    _step(informer, "reveal", _reveal, "reveal what was committed to in the last period")
    _step(informer, "claim", _claim, "take the rewards of settled licences")

    settling = _step(roles, "settle", _settle, "end a licence when all reports and contests are over", folder=False)
    settling.add_argument("licence")
    _step(roles, "withdraw", _withdraw, "take what the campaign owes to an account", folder=False)
    auditing = _step(roles, "audit", _audit, "rebuild every balance from events alone", folder=False)
    auditing.add_argument("--page", type=Path, help="write the campaign's timeline and books as an HTML page too")

    comparing = roles.add_parser("simulate", help="reward rules beside one another under Sybil attacks")
    comparing.add_argument("--informers", type=int, default=5, help="who may find the leak (default 5)")
    comparing.add_argument("--periods", type=int, default=8, help="of a campaign (default 8)")
    comparing.add_argument("--runs", type=int, default=200, help="campaigns a rule (default 200)")
    comparing.add_argument("--seed", type=int, default=0, help="of the campaigns (default 0)")
    comparing.set_defaults(act=_simulate)
    return parser


def _step(
    parent: argparse._SubParsersAction[argparse.ArgumentParser], name: str, act: object, what: str, *,
    campaign: bool = True, folder: bool = True,
) -> argparse.ArgumentParser:  # fmt: skip
    parser = parent.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".")
    parser.add_argument("--url", default="http://127.0.0.1:8545", help="the node (default %(default)s)")
    parser.add_argument("--account", type=int, default=0, help="which of the node's accounts, from 0 (default 0)")
    parser.add_argument("--key", type=Path, help="file of a private key, in place of the node's accounts")
    if campaign:
        address = os.environ.get("ARGUS_CAMPAIGN")
        parser.add_argument("--campaign", default=address, help="its address (default $ARGUS_CAMPAIGN)")
    if folder:
        parser.add_argument("--folder", type=Path, required=True, help="the role's own directory, kept to itself")
        parser.add_argument("--store", type=Path, default=Path("store"), help="shared files (default ./store)")
    parser.set_defaults(act=act)
    return parser


def _ether(text: str) -> int:
    from decimal import Decimal, InvalidOperation

    try:
        wei = Decimal(text) * ETHER
    except InvalidOperation as error:
        raise argparse.ArgumentTypeError(f"expected ether such as 0.5, not {text!r}") from error
    if wei != int(wei) or wei < 0:
        raise argparse.ArgumentTypeError(f"expected 0 ether or more in whole wei, not {text!r}")
    return int(wei)


# --- what the steps share ------------------------------------------------------------------------------------


def _chain(given: argparse.Namespace) -> tuple[evm.Chain, str]:
    if given.key is not None:
        chain: evm.Chain = evm.RpcChain(given.url, [given.key.read_text(encoding="utf-8").strip()])
        return chain, chain.accounts[0]
    chain = evm.RpcChain(given.url)
    if not 0 <= given.account < len(chain.accounts):
        raise ArgusError(f"--account {given.account}: the node at {given.url} has {len(chain.accounts)} accounts")
    return chain, chain.accounts[given.account]


def _court(given: argparse.Namespace) -> tuple[Court, str]:
    if not given.campaign:
        raise ArgusError("which campaign? Give --campaign ADDRESS, or set $ARGUS_CAMPAIGN; `owner open` prints it")
    chain, account = _chain(given)
    return court_at(chain, given.campaign), account


def _licence(name: str) -> bytes:
    return keccak(b"licence " + name.encode())


def _amount(wei: int) -> str:
    return f"{wei / ETHER:.9g} ether"


def _owner(given: argparse.Namespace) -> Owner:
    court, account = _court(given)
    secret = int(read_json(given.folder / "key.json")["secret"], 16)
    return Owner(court, account, given.folder / "licences", Store(given.store), OwnerKey.of(secret))


def _licensee(given: argparse.Namespace) -> Licensee:
    court, account = _court(given)
    args = court.events()[0].args
    point = bytes([3 if args["key_odd"] else 2]) + int(args["key_x"]).to_bytes(32, "big")
    return Licensee(court, account, given.folder, Store(given.store), point)


def _informer(given: argparse.Namespace) -> Informer:
    court, account = _court(given)
    return Informer(court, account, given.folder, Store(given.store))


# --- owner ---------------------------------------------------------------------------------------------------


def _open(given: argparse.Namespace) -> int:
    chain, account = _chain(given)
    path = given.folder / "key.json"
    if path.exists():
        key = OwnerKey.of(int(read_json(path)["secret"], 16))
    else:
        key = OwnerKey.new()
        write_json(path, {"secret": f"{key.secret:064x}"})
        path.chmod(0o600)
    names = ("period", "periods", "earliness", "contest", "patience", "deposit", "segments", "variants")
    court = deploy(chain, key, Settings(*(getattr(given, name) for name in names)), sender=account)
    print(court.contract.address)
    return 0


def _deliver(given: argparse.Namespace) -> int:
    owner = _owner(given)
    licence = _licence(given.licence)
    offer = _offer_of(read_json(given.store / "offers" / f"{licence.hex()}.json"))
    image = load_image(given.image)
    s = owner.settings
    print(f"marking {s.segments} segments with {s.variants} watermarks each, sealing {s.versions} versions")
    owner.deliver(licence, offer, image)
    print(f"delivered; the licensee has {s.patience} s to accept")
    return 0


def _offer_record(offer: Offer) -> dict[str, object]:
    return {
        "points": [point.hex() for point in offer.points],
        "proofs": [
            {"challenges": [f"{c:064x}" for c in proof.challenges], "answers": [f"{a:064x}" for a in proof.answers]}
            for proof in offer.proofs
        ],
    }


def _offer_of(record: dict[str, list[dict[str, list[str]]]]) -> Offer:
    try:
        points = tuple(bytes.fromhex(str(point)) for point in record["points"])
        proofs = tuple(
            ChoiceProof(tuple(int(c, 16) for c in proof["challenges"]), tuple(int(a, 16) for a in proof["answers"]))
            for proof in record["proofs"]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ArgusError(f"the offer in the store is damaged: {error}") from error
    return Offer(points, proofs)


# --- licensee ------------------------------------------------------------------------------------------------


def _request(given: argparse.Namespace) -> int:
    licensee = _licensee(given)
    licence = _licence(given.licence)
    offer = licensee.request(licence, given.bounty, given.penalty)
    write_json(given.store / "offers" / f"{licence.hex()}.json", _offer_record(offer))
    print(f"requested with {_amount(2 * given.penalty)} of collateral; the owner has {licensee.settings.patience} s")
    return 0


def _accept(given: argparse.Namespace) -> int:
    licensee = _licensee(given)
    licence = _licence(given.licence)
    copy = licensee.open(licence)
    write_image(given.copy, copy)
    licensee.accept(licence)
    print(f"accepted; {given.copy} is yours alone")
    return 0


def _repudiate(given: argparse.Namespace) -> int:
    licensee = _licensee(given)
    licensee.repudiate(_licence(given.licence))
    print("cleared: collateral and the owner's bond are paid out")
    return 0


# --- informer ------------------------------------------------------------------------------------------------


def _inspect(given: argparse.Namespace) -> int:
    found = _informer(given).inspect(load_image(given.image))
    print(f"version {found.version} of licence {found.licence.hex()}")
    return 0


def _report(given: argparse.Namespace) -> int:
    informer = _informer(given)
    found = informer.inspect(load_image(given.image))
    sent = informer.commit(found)
    period, s = informer.court.period(), informer.settings
    done = "committed" if sent else "committed before"
    print(f"{done} in period {period} of {s.periods}; reveal in period {period + 1}")
    return 0


def _reveal(given: argparse.Namespace) -> int:
    for receipt in _informer(given).reveal():
        args = receipt.events[0].args
        note = "" if args["counted"] else ": it does not count, the deposit comes back"
        print(f"revealed version {args['version']}, reported in period {args['period']}{note}")
    return 0


def _claim(given: argparse.Namespace) -> int:
    receipts = _informer(given).claim()
    for receipt in receipts:
        print(f"claimed {_amount(receipt.events[0].args['amount'])}")
    if not receipts:
        print("nothing to claim: no report of this account is settled and open")
    return 0


# --- anyone --------------------------------------------------------------------------------------------------


def _settle(given: argparse.Namespace) -> int:
    court, account = _court(given)
    licence = _licence(given.licence)
    args = court.send("settle", licence, terms_of(court, licence)[0].words, sender=account).events[0].args
    print(f"{args['reports']} reports; {_amount(args['to_owner'])} to the owner, {_amount(args['to_licensee'])} back")
    return 0


def _withdraw(given: argparse.Namespace) -> int:
    court, account = _court(given)
    receipt = court.send("withdraw", sender=account)
    print(f"withdrew {_amount(receipt.events[0].args['amount'])}")
    return 0


def _audit(given: argparse.Namespace) -> int:
    court, _ = _court(given)
    ledger = replay(court.events())
    for licence, held in ledger.licences.items():
        accused = f", version {held.version} accused" if held.version is not None else ""
        reports = sum(report.licence == licence for report in ledger.reports.values())
        print(f"licence {licence.hex()[:16]}: {State(held.state).name.lower()}, {reports} reports{accused}")
    for account, wei in sorted(ledger.owed.items()):
        if wei:
            print(f"owed to {account}: {_amount(wei)}")
    apart = ledger.balance - court.balance
    print(f"holds {_amount(court.balance)}, of which {_amount(ledger.burned)} are deposits of reports never revealed")
    if given.page is not None:
        write_text(given.page, page(court.events(), court.times()))
        print(f"timeline: {given.page}")
    for flaw in ledger.flaws:
        print(f"FLAW: {flaw}")
    if apart:
        print(f"FLAW: by its events the contract holds {_amount(ledger.balance)}")
    return 1 if ledger.flaws or apart else 0


def _simulate(given: argparse.Namespace) -> int:
    print(f"{'rule':16} {'paid / B':>9} {'Sybil gain':>11} {'first report':>13} {'reports':>8}")
    for rule in RULES:
        found = simulate(rule, informers=given.informers, periods=given.periods, runs=given.runs, seed=given.seed)
        print(
            f"{rule:16} {found.paid:9.3f} {found.sybil_gain:11.3f} {found.first_period + 1:13.2f} {found.reports:8.2f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
