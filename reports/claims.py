"""The papers' claims (`seeds/<system>.toml`) beside what the runs measured.

A claim is `met` or `short` when a run measured and judged it, `reported` when a run measured it only, `open`
when no test measures it yet, and `not measured` when a test exists but none of these runs holds its value. A
number that a paper measured on other hardware never stands in the measured column.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reports.quantity import stated
from systems.anubis.records import Measurement, Run

_SIGNS = {">=": "≥", "<=": "≤", "==": "="}

STATUSES = ("short", "met", "reported", "not measured", "open")


class SeedDamaged(ValueError):
    """A seeds file that does not parse, or lacks what every claim must have."""


@dataclass(frozen=True)
class Claim:
    """One claim as its paper states it; `here` is what this project checks: `op`, `value`, `why`, `goal`,
    `stretch`, and `metric` and `unit` where it checks another quantity than the paper measured.
    """

    system: str
    id: str
    statement: str
    metric: str
    value: Any
    unit: str
    better: str
    condition: str
    status: str
    here: Mapping[str, Any]

    @property
    def here_unit(self) -> str:
        """The unit of what is measured here: `here.unit` where the check measures another quantity than the
        paper.
        """
        return str(self.here.get("unit", self.unit))


@dataclass(frozen=True)
class Paper:
    """One seeds file: whose paper it is and what it claims."""

    system: str
    name: str
    title: str
    source: str
    claims: tuple[Claim, ...]


@dataclass(frozen=True)
class ClaimResult:
    """A claim and what became of it in the run `run_id`.

    measured and interval (low, high) in the claim's `here_unit`; condition: how the test measured it.
    """

    claim: Claim
    status: str
    measured: float | None = None
    interval: tuple[float, float] | None = None
    condition: str = ""
    run_id: str | None = None
    test: str | None = None
    note: str = ""


def read_seeds(folder: Path) -> tuple[tuple[Paper, ...], tuple[tuple[Path, str], ...]]:
    """Every paper in `folder`, by file name, and the files that cannot be read, each with its reason."""
    papers: list[Paper] = []
    skipped: list[tuple[Path, str]] = []
    for path in sorted(folder.glob("*.toml")) if folder.is_dir() else ():
        try:
            papers.append(read_seed(path))
        except SeedDamaged as error:
            skipped.append((path, str(error)))
    return tuple(papers), tuple(skipped)


def read_seed(path: Path) -> Paper:
    """One seeds file. Raises SeedDamaged with the file, what is wrong and what was expected."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SeedDamaged(f"{path}: not a readable TOML file ({error})") from error
    paper = data.get("paper")
    entries = data.get("claim", [])
    if not isinstance(paper, dict) or not isinstance(entries, list):
        raise SeedDamaged(f"{path}: expected a [paper] table and [[claim]] tables")
    system = str(paper.get("system", path.stem))
    source = f"arXiv {paper['arxiv']}" if "arxiv" in paper else str(paper.get("venue") or paper.get("url") or "")
    return Paper(
        system=system,
        name=str(paper.get("name", system)),
        title=str(paper.get("title", system)),
        source=source,
        claims=tuple(_claim(system, entry, path) for entry in entries),
    )


def _claim(system: str, entry: Any, path: Path) -> Claim:
    if not isinstance(entry, dict) or "id" not in entry or "statement" not in entry:
        raise SeedDamaged(f"{path}: a [[claim]] needs `id` and `statement`, given {entry!r}")
    here = entry.get("here", {})
    if not isinstance(here, dict):
        raise SeedDamaged(f"{path}: claim {entry['id']}: `here` must be a table like {{op = '>=', value = 5.0}}")
    return Claim(
        system=system,
        id=str(entry["id"]),
        statement=str(entry["statement"]),
        metric=str(entry.get("metric", "")),
        value=entry.get("value"),
        unit=str(entry.get("unit", "")),
        better=str(entry.get("better", "")),
        condition=str(entry.get("condition", "")),
        status=str(entry.get("status", "to-be-confirmed")),
        here=here,
    )


def bound(here: Mapping[str, Any]) -> str:
    """The bound as text: `≥ 5`, `0.2 … 0.4`, `reported` where a claim is only shown; empty without one."""
    op, value = str(here.get("op", "")), here.get("value")
    if op == "report":
        return "reported"
    if op == "in" and isinstance(value, Sequence) and len(value) == 2:
        return f"{stated(value[0], '')} … {stated(value[1], '')}"
    return "" if value is None else f"{_SIGNS.get(op, op)} {stated(value, '')}"


def holds(value: float, here: Mapping[str, Any]) -> bool | None:
    """Whether `value` keeps the bound `here`; None where it states no numeric bound."""
    op, limit = here.get("op"), here.get("value")
    if op == "in" and isinstance(limit, Sequence) and len(limit) == 2:
        return bool(limit[0] <= value <= limit[1])
    if not isinstance(limit, int | float) or isinstance(limit, bool):
        return None
    outcomes = {
        ">=": value >= limit,
        "<=": value <= limit,
        "==": value == limit,
        ">": value > limit,
        "<": value < limit,
    }
    return outcomes.get(str(op))


def results(papers: Iterable[Paper], runs: Sequence[Run]) -> tuple[ClaimResult, ...]:
    """Each claim with the newest measured value in `runs` (oldest first), and its status."""
    measured: dict[str, tuple[Run, Measurement]] = {}
    tests: dict[str, str] = {}
    tests_known = False
    for run in runs:
        tested = run.facts.get("claims_tested")
        if isinstance(tested, Mapping):
            tests_known = True
            tests.update({str(claim): str(test) for claim, test in tested.items()})
        for row in run.rows:
            if row.claim and row.component == "claim" and row.values:
                measured[row.claim] = (run, row)
    found = []
    for paper in papers:
        for claim in paper.claims:
            key = f"{claim.system}/{claim.id}"
            if key in measured:
                found.append(_measured(claim, *measured[key]))
            elif key in tests:
                found.append(ClaimResult(claim, "not measured", test=tests[key]))
            elif tests_known:
                found.append(ClaimResult(claim, "open"))
            else:
                found.append(ClaimResult(claim, "not measured", note="these runs do not say whether a test exists"))
    return tuple(found)


def _measured(claim: Claim, run: Run, row: Measurement) -> ClaimResult:
    value = row.values[0]
    outcome = {"pass": "met", "defect": "short", "recorded": "reported"}.get(row.status)
    note = "" if outcome else f"its measurement is {row.status}"
    interval = (row.values[1], row.values[2]) if len(row.values) == 3 else None
    low, high = interval or (value, value)
    # Of an interval, the end counts that speaks against the claim.
    now = holds(low if claim.here.get("op") in {">=", ">"} else high, claim.here)
    if outcome in {"met", "short"} and now is not None and now != (outcome == "met"):
        note = f"by the seeds as they are now, this value {'keeps' if now else 'misses'} the bound"
    return ClaimResult(
        claim,
        outcome or "not measured",
        measured=value,
        interval=interval,
        condition="; ".join(row.evidence),
        run_id=run.run_id,
        test=row.test,
        note=note,
    )
