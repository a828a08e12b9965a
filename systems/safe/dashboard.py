"""The rounds of an evolution as one page: accuracy by round with its intervals, draws, and what fails most."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from systems.safe.syntax import SafeError

_COLOURS = ("#2a78d6", "#eb6834", "#1baf7a", "#8a63d2", "#c2407e", "#7a7a2a")


@dataclass(frozen=True)
class RoundData:
    """What a round's folder holds. shares: by (test set, column) the solved, total, draws and interval in percent;
    failures: by message how many judged programs it failed; judged, right: programs verified, and those that held.
    """

    number: int
    shares: Mapping[tuple[str, str], tuple[int, int, int, tuple[float, float]]]
    proofs: int
    repairs: int
    judged: int
    right: int
    failures: Mapping[str, int]


def read_rounds(folder: Path) -> list[RoundData]:
    """The finished rounds of `evolve`'s folder, in order. Raises SafeError where there is none."""
    found = []
    for place in sorted(folder.glob("round-*"), key=_number):
        metrics = place / "metrics.json"
        if not metrics.exists():
            continue
        try:
            row = json.loads(metrics.read_text(encoding="utf-8").splitlines()[0])
            shares = {
                (name, column): (one["solved"], one["total"], one["draws"], tuple(one["interval"]))
                for name, columns in row["tables"].items()
                for column, one in columns.items()
            }
            judged = list(_attempts(place))
            failures: Counter[str] = Counter()
            for attempt in judged:
                failures.update({str(problem["message"]) for problem in attempt["problems"]})
            right = sum(bool(attempt["ok"]) for attempt in judged)
            found.append(
                RoundData(row["number"], shares, row["proofs"], row["repairs"], len(judged), right, failures)
            )
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise SafeError(f"{metrics}: not what a round writes: {error}") from error
    if not found:
        raise SafeError(f"{folder}: no finished round in it; `evolve --out {folder}` makes them")
    return found


def _number(place: Path) -> tuple[int, str]:
    tail = place.name.partition("-")[2]
    return (int(tail), "") if tail.isdigit() else (10**9, tail)


def _attempts(place: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(place.glob("*.jsonl")):
        if path.name in {"search.jsonl", "sft.jsonl"}:
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the line at which a run was cut short
            if isinstance(entry, dict) and "ok" in entry:
                yield entry


_STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } .scroll { overflow-x: auto; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; } svg { max-width: 100%; height: auto; }
svg text { fill: currentColor; font: 12px system-ui, sans-serif; } .key { display: inline-block; margin-right: 1.2rem; }
.key::before { content: ""; display: inline-block; width: .8em; height: .8em; margin-right: .4em; }
.key::before { background: var(--c); }
"""


def dashboard(rounds: Sequence[RoundData], title: str = "Self-evolution") -> str:
    """One HTML page that needs nothing else."""
    sets = list(dict.fromkeys(name for one in rounds for name, _ in one.shares))
    charts = "".join(f"<h2>{html.escape(name)}</h2>{_chart(rounds, name)}{_table(rounds, name)}" for name in sets)
    rows = "".join(
        f"<tr><td>{one.number}</td><td>{one.judged}</td><td>{one.right}</td><td>{one.proofs}</td>"
        f"<td>{one.repairs}</td></tr>"
        for one in rounds
    )
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' "
        f"content='width=device-width, initial-scale=1'><title>{html.escape(title)}</title><style>{_STYLE}</style>"
        f"</head><body><h1>{html.escape(title)}</h1>{charts}<h2>Rounds</h2><div class='scroll'><table><tr><th>round"
        "</th><th>programs judged</th><th>right</th><th>programs with a proof</th><th>repairs to learn from</th></tr>"
        f"{rows}</table></div><h2>What fails most</h2>{_failures(rounds)}</body></html>\n"
    )


def _columns(rounds: Sequence[RoundData], name: str) -> list[str]:
    return list(dict.fromkeys(column for one in rounds for test, column in one.shares if test == name))


def _chart(rounds: Sequence[RoundData], name: str) -> str:
    """Accuracy in percent over rounds, a line a column, with 95 % intervals."""
    width, height, left, low = 640, 240, 44, 26
    columns = _columns(rounds, name)
    step = (width - left - 40) / max(1, len(rounds) - 1) if len(rounds) > 1 else 0.0

    def y(percent: float) -> float:
        return 12 + (height - 12 - low) * (1 - percent / 100)

    parts = [
        f"<line x1='{left}' x2='{width - 8}' y1='{y(p):.1f}' y2='{y(p):.1f}' stroke='currentColor' "
        f"stroke-opacity='.15'/><text x='{left - 6}' y='{y(p) + 4:.1f}' text-anchor='end'>{p} %</text>"
        for p in (0, 25, 50, 75, 100)
    ]
    parts += [
        f"<text x='{left + 20 + k * step:.1f}' y='{height - 6}' text-anchor='middle'>round {one.number}</text>"
        for k, one in enumerate(rounds)
    ]
    for number, column in enumerate(columns):
        colour, shift = _COLOURS[number % len(_COLOURS)], 5 * (number - (len(columns) - 1) / 2)
        points = []
        for k, one in enumerate(rounds):
            if (name, column) not in one.shares:
                continue
            solved, total, _, (bottom, top) = one.shares[name, column]
            x, middle = left + 20 + k * step + shift, y(100 * solved / total if total else 0)
            points.append(f"{x:.1f},{middle:.1f}")
            parts.append(
                f"<line x1='{x:.1f}' x2='{x:.1f}' y1='{y(bottom):.1f}' y2='{y(top):.1f}' stroke='{colour}' "
                f"stroke-width='2' stroke-opacity='.45'/><circle cx='{x:.1f}' cy='{middle:.1f}' r='4' fill='{colour}'>"
                f"<title>{html.escape(column)}: {solved} of {total}</title></circle>"
            )
        parts.append(f"<polyline points='{' '.join(points)}' fill='none' stroke='{colour}' stroke-width='2'/>")
    keys = "".join(
        f"<span class='key' style='--c: {_COLOURS[k % len(_COLOURS)]}'>{html.escape(column)}</span>"
        for k, column in enumerate(columns)
    )
    label = html.escape(f"Accuracy by round on {name}")
    return f"<svg viewBox='0 0 {width} {height}' role='img' aria-label='{label}'>{''.join(parts)}</svg><p>{keys}</p>"


def _table(rounds: Sequence[RoundData], name: str) -> str:
    columns = _columns(rounds, name)
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    rows = ""
    for one in rounds:
        cells = ""
        for column in columns:
            share = one.shares.get((name, column))
            if share is None:
                cells += "<td></td>"
                continue
            solved, total, draws, (bottom, top) = share
            percent = 100 * solved / total if total else 0.0
            cells += f"<td>{percent:.1f} % [{bottom:.1f}, {top:.1f}]<br><small>{draws} verified</small></td>"
        rows += f"<tr><td>round {one.number}</td>{cells}</tr>"
    return f"<div class='scroll'><table><tr><th></th>{head}</tr>{rows}</table></div>"


def _failures(rounds: Iterable[RoundData], most: int = 12) -> str:
    total: Counter[str] = Counter()
    by_round = list(rounds)
    for one in by_round:
        total.update(one.failures)
    head = "".join(f"<th>round {one.number}</th>" for one in by_round)
    rows = "".join(
        f"<tr><td>{html.escape(message)}</td>"
        + "".join(f"<td>{one.failures.get(message, 0)}</td>" for one in by_round)
        + "</tr>"
        for message, _ in total.most_common(most)
    )
    return f"<div class='scroll'><table><tr><th>programs that failed it</th>{head}</tr>{rows}</table></div>"
