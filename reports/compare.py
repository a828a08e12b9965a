"""Two runs side by side: which metrics moved, by how much, and how similar their distributions still are."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

from reports.quantity import similarity
from reports.verdict import is_metric
from systems.anubis import validator
from systems.anubis.records import Measurement, Run, read_run_file
from systems.anubis.units import quantity, significant

MOVED_BELOW = 0.95


class RunNotNamed(ValueError):
    """The argument names no single run."""


@dataclass(frozen=True)
class Move:
    """One metric in both runs: medians in `unit`, similarity, direction (better, worse, changed)."""

    id: str
    unit: str
    before: float
    after: float
    similarity: float
    direction: str


@dataclass(frozen=True)
class Comparison:
    """`moves`: metrics of both runs, least similar first; the others: ids that cannot be compared."""

    moves: tuple[Move, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    incomparable: tuple[str, ...]


def read_one(name: str) -> Run:
    """The run that `name` names: a run file, or `FILE@RUN_ID` (a prefix will do) in a file with several.

    Raises RunNotNamed with what was given and what would do; RecordsError for a file that is no run file.
    """
    text, at, wanted = name.rpartition("@")
    path, wanted = (Path(text), wanted) if at and not Path(name).exists() else (Path(name), "")
    if not path.is_file():
        raise RunNotNamed(f"{path}: no such run file; give the path of a .parquet file that a recording run wrote")
    runs = [run for run in read_run_file(path) if run.run_id.startswith(wanted)]
    if len(runs) != 1:
        known = ", ".join(run.run_id for run in read_run_file(path)[:5])
        raise RunNotNamed(
            f"{name}: names {len(runs)} runs, expected one; write {path}@RUN_ID with an id of {known}, ..."
        )
    return runs[0]


def compare(before: Run, after: Run) -> Comparison:
    """Every metric that both runs hold; one whose unit changed or whose values are invalid is not."""
    a, b = _rows(before), _rows(after)
    moves, incomparable = [], []
    for name in sorted(a.keys() & b.keys()):
        try:
            moves.append(_move(a[name], b[name]))
        except ValueError as error:  # a unit that changed, or a sample that the Validator refuses
            incomparable.append(f"{name}: {error}")
    moves.sort(key=lambda move: (move.similarity, move.id))
    return Comparison(
        tuple(moves),
        tuple(sorted(a.keys() - b.keys())),
        tuple(sorted(b.keys() - a.keys())),
        tuple(incomparable),
    )


def _rows(run: Run) -> dict[str, Measurement]:
    return {row.id: row for row in run.rows if is_metric(row) and row.values}


def _move(a: Measurement, b: Measurement) -> Move:
    if a.unit != b.unit:
        raise ValueError(f"measured in {a.unit} before and in {b.unit} after")
    before, after = statistics.median(a.values), statistics.median(b.values)
    near = validator.similarity(a.values, b.values)
    if a.better not in {"higher", "lower"} or near == 1.0:
        direction = "same" if near == 1.0 else "changed"
    else:
        mean_before, mean_after = statistics.fmean(a.values), statistics.fmean(b.values)
        direction = "better" if (mean_after > mean_before) == (a.better == "higher") else "worse"
    return Move(id=a.id, unit=a.unit, before=before, after=after, similarity=near, direction=direction)


def table(
    comparison: Comparison, before: Run, after: Run, *, below: float = MOVED_BELOW, everything: bool = False
) -> str:
    """The comparison as text for a terminal: the metrics with similarity under `below`, or all of them."""
    shown = [move for move in comparison.moves if everything or move.similarity < below]
    lines = [f"before  {_title(before)}", f"after   {_title(after)}"]
    if before.machine.kind != after.machine.kind:
        lines.append("note    the runs are of different hardware kinds: their numbers are not one population")
    elif before.machine.stack != after.machine.stack:
        lines += [
            f"note    the software stacks differ: {before.machine.stack}",
            f"        {after.machine.stack}",
        ]
    lines.append("")
    if shown:
        cells = [("metric", "before", "after", "change", "similarity", "")]
        cells += [
            (
                move.id,
                quantity(move.before, move.unit),
                quantity(move.after, move.unit),
                _change(move),
                similarity(move.similarity),
                move.direction,
            )
            for move in shown
        ]
        widths = [max(len(row[column]) for row in cells) for column in range(6)]
        lines += [
            "  ".join(
                text.ljust(width) if column in {0, 5} else text.rjust(width)
                for column, (text, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in cells
        ]
        lines.append("")
    if everything:
        lines.append(f"{len(comparison.moves)} metrics in both runs.")
    else:
        lines.append(f"{len(shown)} of {len(comparison.moves)} metrics moved (similarity below {below:g}).")
    for label, names in (
        ("only before", comparison.only_before),
        ("only after", comparison.only_after),
        ("not comparable", comparison.incomparable),
    ):
        if names:
            lines.append(f"{label} ({len(names)}): {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}")
    return "\n".join(lines)


def _title(run: Run) -> str:
    host = run.machine.facts.get("hostname") or run.machine.node[:8]
    return f"{run.run_id}  {run.started:%Y-%m-%d %H:%M} UTC  {host}  {run.machine.kind}"


def _change(move: Move) -> str:
    if move.before == 0:
        return "–"
    change = (move.after - move.before) / abs(move.before) * 100
    return f"{'+' if change >= 0 else '−'}{significant(abs(change), 3)} %"
