"""A campaign on one page: the life of every licence as a timeline, and the books, from events alone.

    Path("campaign.html").write_text(page(court.events(), times))

The page stands alone: no script, no network. times: seconds since 1970 by block, where they are known; else events are
set out by block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from systems.argus.audit import Ledger, replay
from systems.argus.court import State
from systems.evm import Event

ETHER = 10**18
_MARKS: Mapping[str, tuple[str, str]] = {
    "Requested": ("asks", "the licensee asks and puts up the collateral"),
    "Delivered": ("gives", "the owner commits to all versions"),
    "Accepted": ("asks", "the licensee found its copy"),
    "Expired": ("ends", "overdue: everyone gets back what it put in"),
    "Revealed": ("tells", "an informer shows its token"),
    "Repudiated": ("clears", "the accused opens another digit: innocent"),
    "Exposed": ("clears", "two versions are the same: the owner pays"),
    "Settled": ("ends", "the collateral is divided"),
    "Claimed": ("pays", "an informer is paid"),
}
"""By event: its kind, which is its colour, and what it means."""

_WIDTH, _LEFT, _LANE = 960, 170, 34
_STYLE = """
:root{color-scheme:light dark}
:root{--asks:#2a78d6;--gives:#7a5cc7;--tells:#c98a12;--clears:#2d9d6b;--ends:#777;--pays:#d0517b}
body{font:15px/1.5 system-ui,sans-serif;max-width:66rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}.wide{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:.25rem .9rem .25rem 0;text-align:right;
border-bottom:1px solid #8884}td:first-child,th:first-child{text-align:left}
svg text{font:12px system-ui,sans-serif;fill:currentColor}.lane,.period{stroke:#8885}.late{opacity:.7}
.asks{fill:var(--asks)}.gives{fill:var(--gives)}.tells{fill:var(--tells)}.clears{fill:var(--clears)}.ends{fill:var(--ends)}
.pays{fill:var(--pays)}.key{display:inline-block;width:.8em;height:.8em;border-radius:50%;margin:0 .3em 0 1em}
.flaw{color:#c22;font-weight:600}
"""


def page(events: Sequence[Event], times: Mapping[int, int] | None = None) -> str:
    """The page as HTML. Raises ValueError where the events are not those of a campaign from its opening on."""
    ledger = replay(events)
    settled = sum(licence.state is State.SETTLED for licence in ledger.licences.values())
    counted = sum(report.counted for report in ledger.reports.values())
    head = (
        f"{len(ledger.licences)} licences, {settled} settled; {len(ledger.committed)} commitments, "
        f"{len(ledger.reports)} revealed, {counted} that count"
    )
    flaws = "".join(f"<p class='flaw'>{escape(flaw)}</p>" for flaw in ledger.flaws) or "<p>No event breaks a rule.</p>"
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width, "
        f"initial-scale=1'><title>Argus campaign</title><style>{_STYLE}</style></head><body>"
        f"<h1>Campaign of {escape(ledger.owner)}</h1><p>{head}</p>"
        f"<h2>The life of every licence</h2><div class='wide'>{_timeline(events, ledger, times or {})}</div>{_key()}"
        f"<h2>The books, from events alone</h2>{_books(ledger)}{flaws}</body></html>\n"
    )


def _timeline(events: Sequence[Event], ledger: Ledger, times: Mapping[int, int]) -> str:
    known = all(event.block in times for event in events)
    at = {event.block: times[event.block] if known else event.block for event in events}
    first, last = min(at.values()), max(at.values())
    scale = (_WIDTH - _LEFT - 70) / max(last - first, 1)

    def x(value: float) -> float:
        return _LEFT + (value - first) * scale

    lanes = list(ledger.licences)
    height = _LANE * (len(lanes) + 1) + 40
    box = f"viewBox='0 0 {_WIDTH} {height}' width='{_WIDTH}' height='{height}'"
    parts = [f"<svg {box} role='img' aria-label='timeline'>"]
    if known:
        for period in range(ledger.settings.periods + 1):
            edge = x(ledger.start + period * ledger.settings.period)
            if _LEFT <= edge <= _WIDTH - 20:
                parts.append(f"<line class='period' x1='{edge:.1f}' x2='{edge:.1f}' y1='16' y2='{height - 20}'/>")
                parts.append(f"<text x='{edge + 3:.1f}' y='14'>period {period + 1}</text>")
    names = ["commitments", *(f"licence {licence.hex()[:10]}" for licence in lanes)]
    for row, name in enumerate(names):
        y = 36 + row * _LANE
        parts.append(f"<line class='lane' x1='{_LEFT}' x2='{_WIDTH - 20}' y1='{y}' y2='{y}'/>")
        parts.append(f"<text x='0' y='{y + 4}'>{name}</text>")
    latest = [float("-inf")] * len(names)
    for event in events:
        if event.name == "Committed":
            row, kind, detail, size = 0, "tells", f"committed in block {event.block}", 4
        elif event.name in _MARKS:
            row, size = 1 + lanes.index(bytes(event.args["licence"])), 6
            kind, meaning = _MARKS[event.name]
            detail = f"{event.name}, block {event.block}: {meaning}{_detail(event)}"
        else:
            continue
        # What happened at almost the same time stands side by side.
        latest[row] = max(x(at[event.block]), latest[row] + 2 * size + 1)
        parts.append(_mark(latest[row], 36 + row * _LANE, kind, detail, size))
    unit = "time of the block" if known else "block number"
    parts.append(f"<text class='late' x='{_LEFT}' y='{height - 4}'>{unit} →</text></svg>")
    return "".join(parts)


def _mark(x: float, y: float, kind: str, words: str, radius: int) -> str:
    return f"<circle class='{kind}' cx='{x:.1f}' cy='{y}' r='{radius}'><title>{escape(words)}</title></circle>"


def _detail(event: Event) -> str:
    args = event.args
    if event.name == "Revealed":
        worth = "counts" if args["counted"] else "deposit only"
        return f"; version {args['version']}, period {args['period']}, {worth}"
    if event.name == "Settled":
        owner, licensee = _ether(args["to_owner"]), _ether(args["to_licensee"])
        return f"; {args['reports']} reports, {owner} to the owner, {licensee} back"
    if event.name == "Claimed":
        return f"; {_ether(args['amount'])}"
    return ""


def _key() -> str:
    words = {
        "asks": "licensee", "gives": "owner", "tells": "informer", "clears": "innocent", "pays": "paid", "ends": "end",
    }  # fmt: skip
    keys = (f"<span class='key' style='background:var(--{kind})'></span>{word}" for kind, word in words.items())
    return f"<p>{''.join(keys)}</p>"


def _books(ledger: Ledger) -> str:
    rows = [
        ("the contract holds", ledger.balance),
        ("of it collateral, bonds and deposits of what is open", ledger.locked),
        ("... rewards and deposits that nobody claimed yet", ledger.claimable),
        ("... deposits of reports that were never revealed", ledger.burned),
        *((f"... owed to {account}", wei) for account, wei in sorted(ledger.owed.items()) if wei),
    ]
    body = "".join(f"<tr><td>{escape(name)}</td><td>{_ether(wei)}</td></tr>" for name, wei in rows)
    licences = "".join(
        f"<tr><td>licence {licence.hex()[:10]}</td><td>{State(held.state).name.lower()}</td><td>{sum(held.counts)}</td>"
        f"<td>{'' if held.version is None else held.version}</td><td>{_ether(held.terms.bounty)}</td>"
        f"<td>{_ether(held.terms.penalty)}</td></tr>"
        for licence, held in ledger.licences.items()
    )
    return (
        f"<table><tbody>{body}</tbody></table><h2>Licences</h2><div class='wide'><table><thead><tr><th></th>"
        "<th>state</th><th>reports</th><th>accused version</th><th>bounty</th><th>penalty</th></tr></thead>"
        f"<tbody>{licences}</tbody></table></div>"
    )


def _ether(wei: object) -> str:
    return f"{int(str(wei)) / ETHER:.6g} ether"
