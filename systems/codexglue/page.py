"""The leaderboard as Markdown, and as one HTML page with the worst rows of each submission as differences."""

from __future__ import annotations

import difflib
import html
from collections.abc import Mapping, Sequence

from systems.codexglue.baselines import code_tokens
from systems.codexglue.board import Line
from systems.codexglue.tasks import TASKS

Boards = Mapping[str, Sequence[tuple[int, Line]]]


def _metrics(lines: Sequence[tuple[int, Line]]) -> list[str]:
    return list(dict.fromkeys(key for _, line in lines for key in line.values))


def _cell(line: Line, metric: str) -> str:
    value = line.values.get(metric)
    return "" if value is None else f"{value:.2f}"


def markdown(boards: Boards, total: Mapping[str, float], complaints: Sequence[str]) -> str:
    """A table a task. total: overall score by model; complaints: what was left out."""
    out = []
    for name, lines in boards.items():
        metrics = _metrics(lines)
        out += [f"## {TASKS[name].title}", "", f"| # | model | date | {' | '.join(metrics)} | scored by |"]
        out.append("|---" * (4 + len(metrics)) + "|")
        for rank, line in lines:
            model = f"**{line.model}**" if line.ours else line.model
            cells = " | ".join(_cell(line, metric) for metric in metrics)
            out.append(f"| {rank} | {model} | {line.when} | {cells} | {line.definition or line.compares} |")
        out.append("")
    for model, score in total.items():
        out.append(f"Overall score of **{model}**: {score:.2f}")
    out += [f"- left out: {complaint}" for complaint in complaints]
    return "\n".join(out).rstrip() + "\n"


_STYLE = """
:root { color-scheme: light dark; --line: #8884; --ours: #2a78d622; --wanted: #2e9e4f40; --given: #d0433f40; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:nth-child(2), td:nth-child(2), th:last-child, td:last-child { text-align: left; }
tr.ours { background: var(--ours); font-weight: 600; } tr.other td { border-top: 2px solid var(--line); }
small { opacity: .75; } details { margin: .4rem 0; } pre { white-space: pre-wrap; margin: .2rem 0 .8rem; }
ins { background: var(--wanted); text-decoration: none; } del { background: var(--given); }
"""


def difference(wanted: str, given: str) -> str:
    """Two texts as one of HTML, token by token: <del> what was given, <ins> what was wanted instead."""
    a, b = code_tokens(given), code_tokens(wanted)
    parts = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if kind == "equal":
            parts.append(html.escape(" ".join(a[i:j])))
            continue
        parts += [f"<del>{html.escape(' '.join(a[i:j]))}</del>"] if j > i else []
        parts += [f"<ins>{html.escape(' '.join(b[k:m]))}</ins>"] if m > k else []
    return " ".join(parts)


def _worst(line: Line) -> str:
    """The worst rows of a submission, by metric, folded away."""
    out = []
    for metric, rows in line.worst.items():
        if rows:
            shown = "".join(
                f"<p><small>row {row.row}, {row.score:g}</small></p><pre>{difference(row.wanted, row.given)}</pre>"
                for row in rows
            )
            title = html.escape(f"{line.model}: worst rows by {metric}")
            out.append(f"<details><summary>{title}</summary>{shown}</details>")
    return "".join(out)


def html_page(boards: Boards, total: Mapping[str, float], complaints: Sequence[str]) -> str:
    """One page that needs nothing else. total: overall score by model; complaints: what was left out."""
    parts = []
    for name, lines in boards.items():
        metrics = _metrics(lines)
        head = "".join(f"<th>{html.escape(text)}</th>" for text in ("#", "model", "date", *metrics, "scored by"))
        body, before = [], lines[0][1].compares
        for rank, line in lines:
            cells = [str(rank), line.model, line.when, *(_cell(line, metric) for metric in metrics)]
            row = "".join(f"<td>{html.escape(cell)}</td>" for cell in (*cells, line.definition or line.compares))
            kinds = [kind for kind, holds in (("ours", line.ours), ("other", line.compares != before)) if holds]
            body.append(f"<tr class='{' '.join(kinds)}'>{row}</tr>" if kinds else f"<tr>{row}</tr>")
            before = line.compares
        parts.append(
            f"<h2 id='{name}'>{html.escape(TASKS[name].title)}</h2><div class='scroll'><table><thead><tr>{head}</tr>"
            f"</thead><tbody>{''.join(body)}</tbody></table></div>{''.join(_worst(line) for _, line in lines)}"
        )
    overall = "".join(f"<p>Overall score of <b>{html.escape(m)}</b>: {score:.2f}</p>" for m, score in total.items())
    left_out = "".join(f"<li>left out: {html.escape(text)}</li>" for text in complaints)
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' "
        f"content='width=device-width, initial-scale=1'><title>CodeXGLUE leaderboard</title><style>{_STYLE}</style>"
        f"</head><body><h1>CodeXGLUE leaderboard</h1><p><small>Percent. Rows of this store are marked; the others are "
        "those of the public board. Where scores depend on grammars or on an edit algorithm, each has a ranking of its "
        f"own.</small></p>{overall}{''.join(parts)}<ul>{left_out}</ul></body></html>\n"
    )
