"""Submissions and the leaderboard: one immutable file a submission, published rows beside them, tests between them.

    path = submit(store, "code_translation", "test.cs", "my.output", model="ours", variant="java-cs")
    print(leaderboard(store, "code_translation", fmt="md"))

A submission is validated and scored first, written under a temporary name and renamed; its name is the hash of what it
says, so that the same submission is one file, and nothing that is there is ever changed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
import pandas as pd

from systems.codexglue.metrics import EditBackend
from systems.codexglue.platform import evaluate
from systems.codexglue.tasks import TASKS, CodexError, MissingData, overall_score, published, task, task_value

SCHEMA = 1
Format = Literal["md", "html", "json"]
UNITS = {"accuracy": 100.0, "f1": 100.0, "precision": 100.0, "recall": 100.0, "map@r": 100.0, "mrr": 100.0}
"""What fractions are multiplied by on the board; all other metrics are percent already."""
PUBLISHED_FRACTIONS = frozenset({"f1", "precision", "recall"})
"""Metrics that the public board shows as fractions for clone detection."""


LONGEST = 2000
WORST = 5
"""Rows a metric whose texts a submission keeps."""


DEFINED = frozenset({"codebleu", "edit_sim"})
"""Metrics that depend on more than the files: grammars, and the algorithm of the edit similarity."""
PUBLIC = "the public board's own"


class SubmissionError(CodexError):
    """A submission lacks something, or a file of the store is no submission."""


@dataclass(frozen=True)
class WorstRow:
    """A row (from 1) with its score, what was wanted and what was given, each cut at `LONGEST` characters."""

    row: int
    score: float
    wanted: str
    given: str


@dataclass(frozen=True)
class Submission:
    """One scored prediction file. scores: by metric, percent; rows: by metric the score of each row, fractions or
    percent as the metric has them; meta: versions, grammars, counts, hashes of both files; worst: by metric the rows
    with the lowest scores and their texts, of tasks whose answers are texts.
    """

    task: str
    variant: str
    model: str
    organisation: str
    url: str
    when: str
    scores: Mapping[str, float]
    rows: Mapping[str, Sequence[float]]
    meta: Mapping[str, Any]
    worst: Mapping[str, Sequence[WorstRow]] = field(default_factory=dict)


def submit(
    store: Path | str, name: str, answers: Path | str, predictions: Path | str, model: str, *,
    variant: str | None = None, organisation: str = "", url: str = "", when: str | None = None,
    edit_backend: EditBackend = "difflib", jobs: int = 1,
) -> Path:  # fmt: skip
    """Validate, score and store a prediction file; returns the path of the submission.

    when: ISO date, today by default. Raises ValidationError with everything that is wrong (nothing is written then),
    KeyError for an unknown task or variant, SubmissionError without a model's name or for a date that is none.
    """
    if not model.strip():
        raise SubmissionError("a submission needs the name of a model")
    when = when or datetime.now(UTC).date().isoformat()
    try:
        datetime.fromisoformat(when)
    except ValueError as error:
        raise SubmissionError(f"the date {when!r} is none; expected one like 2026-01-31") from error
    scores = evaluate(name, answers, predictions, variant, edit_backend=edit_backend, jobs=jobs)
    record = {
        "schema": SCHEMA, "task": name, "variant": variant or "", "model": model, "organisation": organisation,
        "url": url, "when": when, "scores": {key: value * UNITS.get(key, 1.0) if name != "code_completion_token"
        else value for key, value in scores.exact.items()},
        "rows": {key: list(map(float, values)) for key, values in scores.rows.items()}, "meta": dict(scores.meta),
        "worst": _worst_texts(name, Path(answers), Path(predictions), scores.rows),
    }  # fmt: skip
    content = orjson.dumps(record, option=orjson.OPT_SORT_KEYS)
    folder = Path(store)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{hashlib.sha256(content).hexdigest()[:24]}.parquet"
    if not path.exists():
        rows = record.pop("rows")
        frame = pd.DataFrame({"record": [json.dumps(record, sort_keys=True)], "rows": [json.dumps(rows)]})
        handle, temporary = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=folder)
        os.close(handle)
        try:
            frame.to_parquet(temporary, index=False)
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    return path


def _worst_texts(
    name: str, answers: Path, predictions: Path, rows: Mapping[str, Sequence[float]]
) -> dict[str, list[tuple[int, float, str, str]]]:
    """By metric, the rows with the lowest scores and their texts; nothing for tasks whose answers are no texts."""
    if name not in _TEXTS:
        return {}
    wanted, given = (path.read_text(encoding="utf-8").splitlines() for path in (answers, predictions))
    if name == "text_to_code":
        wanted = [orjson.loads(line)["code"] for line in wanted if line.strip()]
    elif name == "code_summarization":
        wanted, given = ([line.partition("\t")[2] for line in sorted(lines)] for lines in (wanted, given))
    found: dict[str, list[tuple[int, float, str, str]]] = {}
    for metric, scores in rows.items():
        if len(scores) == len(wanted) == len(given):
            order = np.argsort(np.asarray(scores, float), kind="stable")[:WORST]
            found[metric] = [
                (int(k) + 1, float(scores[k]), wanted[k][:LONGEST], given[k][:LONGEST])
                for k in order.tolist()
                if wanted[k] != given[k]
            ]
    return found


_TEXTS = frozenset({"code_translation", "code_refinement", "doc_translation", "text_to_code", "method_generation"})


def read_submission(path: Path | str) -> Submission:
    """A stored submission. Raises SubmissionError for a file that is none, or of a schema that is not known."""
    try:
        frame = pd.read_parquet(path)
        record, rows = json.loads(frame["record"][0]), json.loads(frame["rows"][0])
        schema = record.pop("schema")
        if schema == SCHEMA:
            worst = {key: [WorstRow(*row) for row in found] for key, found in record.pop("worst", {}).items()}
            return Submission(rows=rows, worst=worst, **record)
    except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's errors are ValueErrors and OSErrors
        raise SubmissionError(f"{path} is no submission: {error}") from error
    raise SubmissionError(f"{path}: schema {schema}, this version reads {SCHEMA}")


def submissions(store: Path | str, name: str | None = None) -> tuple[list[Submission], list[str]]:
    """(submissions of a store, complaints about files that are none), newest last. Raises MissingData without one."""
    folder = Path(store)
    if not folder.is_dir():
        raise MissingData(f"{folder} is no store of submissions; `submit` makes one")
    found, complaints = [], []
    for path in sorted(folder.glob("*.parquet")):
        try:
            one = read_submission(path)
        except SubmissionError as error:
            complaints.append(str(error))
            continue
        if name is None or one.task == name:
            found.append(one)
    return sorted(found, key=lambda one: (one.when, one.model)), complaints


# ------------------------------------------------------------------------------------------------ between two rows


@dataclass(frozen=True)
class Difference:
    """Of two submissions on the same rows: mean difference, its 95 % interval by the paired bootstrap, and p of
    approximate randomisation, two-sided."""

    difference: float
    low: float
    high: float
    p: float


def compare(one: Submission, other: Submission, metric: str, *, samples: int = 10_000, seed: int = 0) -> Difference:
    """Is the difference of two submissions one, in a metric that has a score a row?

    Raises SubmissionError where they are not of the same answers, or have no such rows.
    """
    if one.task != other.task or one.meta["sha256"]["answers"] != other.meta["sha256"]["answers"]:
        raise SubmissionError("the two were not scored on the same answers")
    if metric not in one.rows or metric not in other.rows:
        common = ", ".join(sorted(set(one.rows) & set(other.rows))) or "none"
        raise SubmissionError(f"no scores by row for {metric!r}; there are {common}")
    delta = np.asarray(one.rows[metric], float) - np.asarray(other.rows[metric], float)
    random = np.random.default_rng(seed)
    means, flipped = np.empty(samples), np.empty(samples)
    for k in range(samples):
        means[k] = delta[random.integers(0, len(delta), len(delta))].mean()
        flipped[k] = (delta * random.choice((-1.0, 1.0), len(delta))).mean()
    p = (1 + int((np.abs(flipped) >= abs(delta.mean()) - 1e-15).sum())) / (samples + 1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Difference(float(delta.mean()), float(low), float(high), p)


def worst_rows(one: Submission, metric: str, count: int = 10) -> list[tuple[int, float]]:
    """(row from 1, score) of the rows with the lowest scores. Raises SubmissionError without scores by row."""
    if metric not in one.rows:
        raise SubmissionError(f"no scores by row for {metric!r}; there are {', '.join(one.rows) or 'none'}")
    scores = np.asarray(one.rows[metric])
    return [(int(k) + 1, float(scores[k])) for k in np.argsort(scores, kind="stable")[:count]]


# ------------------------------------------------------------------------------------------------------- the board


@dataclass(frozen=True)
class Line:
    """A line of the board: values by metric, percent; ours: of the store, with the definition that it was scored by;
    compares: the part of the definition that a main metric depends on; lines with the same one are ranked together.
    """

    model: str
    organisation: str
    when: str
    values: Mapping[str, float]
    ours: bool
    definition: str = ""
    compares: str = ""
    worst: Mapping[str, Sequence[WorstRow]] = field(default_factory=dict)


def lines_of(name: str, found: Sequence[Submission], *, with_published: bool = True) -> list[Line]:
    """The lines of a task, best first by the mean of its main metrics; what lacks one of them comes last."""
    one = task(name)
    lines = []
    for entry in found:
        suffix = f"[{entry.variant}]" if entry.variant else ""
        grammar = entry.meta.get("grammar")
        told = [f"{package} {version}" for package, version in (grammar or {}).items()]
        told += [entry.meta["edit_backend"]] if "edit_backend" in entry.meta else []
        values = {key if key.endswith("]") else f"{key}{suffix}": value for key, value in entry.scores.items()}
        compares = ", ".join(told) if set(one.main) & DEFINED else ""
        lines.append(
            Line(entry.model, entry.organisation, entry.when, values, True, ", ".join(told), compares, entry.worst)
        )
    if with_published:
        for row in published():
            values = {
                key.partition("/")[2]: value * (100.0 if key.partition("/")[2] in PUBLISHED_FRACTIONS else 1.0)
                for key, value in row.values.items()
                if key.partition("/")[0] == name
            }
            if values:
                compares = PUBLIC if set(one.main) & DEFINED else ""
                lines.append(Line(row.model, row.organisation, row.date, values, False, "", compares))
    return sorted(lines, key=lambda line: (-_standing(one.main, line), line.model))


def _standing(main: Sequence[str], line: Line) -> float:
    values = []
    for metric in main:
        own = [value for key, value in line.values.items() if key.partition("[")[0] == metric]
        if not own:
            return -math.inf
        values.append(sum(own) / len(own))
    return sum(values) / len(values)


def ranked(lines: Sequence[Line], *, mixed: bool = False) -> list[tuple[int, Line]]:
    """(rank, line), best first: a ranking for each definition, or with `mixed` one over all."""
    if mixed:
        return list(enumerate(lines, 1))
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(line.compares, []).append(line)
    return [pair for group in groups.values() for pair in enumerate(group, 1)]


def leaderboard(
    store: Path | str | None, name: str | None = None, *, with_published: bool = True, fmt: Format = "md",
    mixed: bool = False,
) -> str:  # fmt: skip
    """The board of a task, or of all: local submissions beside the public rows, as Markdown, HTML or JSON.

    Lines whose main metrics come from other grammars or edit back ends do not compare: each definition has a ranking
    of its own, unless they are asked for `mixed`. Raises KeyError for an unknown task, ValueError for an unknown
    format, MissingData without a store.
    """
    if fmt not in {"md", "html", "json"}:
        raise ValueError(f"format {fmt!r}, expected md, html or json")
    found, complaints = submissions(store, name) if store is not None else ([], [])
    boards = {}
    for one in [task(name)] if name else TASKS.values():
        lines = lines_of(one.name, [entry for entry in found if entry.task == one.name], with_published=with_published)
        if lines:
            boards[one.name] = lines
    total = _overall(boards)
    if fmt == "json":
        record: dict[str, Any] = {
            key: [
                {"rank": rank, **asdict(line), "values": dict(line.values)}
                for rank, line in ranked(lines, mixed=mixed)
            ]
            for key, lines in boards.items()
        }
        return json.dumps({"boards": record, "overall": total, "complaints": complaints}, indent=1)
    from systems.codexglue import page

    render = page.markdown if fmt == "md" else page.html_page
    return render({key: ranked(lines, mixed=mixed) for key, lines in boards.items()}, total, complaints)


def _overall(boards: Mapping[str, Sequence[Line]]) -> dict[str, float]:
    """Overall score of each local model that has all ten tasks."""
    values: dict[str, dict[str, float]] = {}
    for name, lines in boards.items():
        for line in lines:
            if line.ours:
                own = values.setdefault(line.model, {})
                own.update({f"{name}/{key}": value for key, value in line.values.items()})
    found = {}
    for model, own in values.items():
        try:
            found[model] = overall_score({one.board: task_value(one.board, own) for one in TASKS.values() if one.board})
        except KeyError:
            continue
    return found
