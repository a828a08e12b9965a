"""Answer and prediction files: read once, with every mistake found and named.

    answers = read(task("defect_detection"), "answers", path)
    answers.rows["10611"], answers.problems

A reader never stops at a bad line: it notes a `Problem` and goes on, so that one look shows all that is wrong. Lines
end as the official scripts see them: at \\n, \\r\\n and \\r, and in documentation translation, which is read through
another door, also at the other line ends of Unicode.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import orjson

from systems.codexglue.tasks import MissingData, Problem, Task, ValidationError

Part = Literal["answers", "predictions"]
MOST_OF_A_KIND = 20
SEPARATOR = "<CODESPLIT>"
MISSING = object()


@dataclass
class Table:
    """What a file holds: rows by id, in order of first appearance; later rows of an id in `repeated`.

    Files of plain lines have their numbers from 1, as str, for ids. numbers: of the lines of the rows, in order.
    """

    path: Path
    rows: dict[str, Any] = field(default_factory=dict)
    numbers: list[int] = field(default_factory=list)
    repeated: list[tuple[str, Any]] = field(default_factory=list)
    matches: Any = None  # of predicted tokens: what `metrics.token_matches` found
    problems: list[Problem] = field(default_factory=list)

    def add(self, key: str, value: Any, line: int) -> None:
        """Keep a row; note a problem where its id is there already."""
        if key in self.rows:
            self.repeated.append((key, value))
            self.note(line, key, "duplicate", f"{key!r} is here again, first on line {self.line_of(key)}")
            return
        self.rows[key] = value
        self.numbers.append(line)

    def line_of(self, key: str) -> int:
        """The line of a row."""
        return self.numbers[list(self.rows).index(key)]

    def note(self, line: int, key: str, kind: str, message: str) -> None:
        """A problem of this file."""
        self.problems.append(Problem(line, key, kind, f"{self.path.name}: {message}"))


def at_most(problems: list[Problem]) -> list[Problem]:
    """At most 20 problems of a kind, and how many more there are."""
    counts = Counter(problem.kind for problem in problems)
    seen: Counter[str] = Counter()
    kept = []
    for problem in problems:
        seen[problem.kind] += 1
        if seen[problem.kind] <= MOST_OF_A_KIND:
            kept.append(problem)
    for kind, count in counts.items():
        if count > MOST_OF_A_KIND:
            kept.append(Problem(0, "", kind, f"{count - MOST_OF_A_KIND} more of kind {kind!r}"))
    return kept


# ---------------------------------------------------------------------------------------------------------- lines


def text_of(path: Path) -> str:
    """A file as text. Raises MissingData where it is absent, ValidationError where it is not UTF-8."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise MissingData(f"{path} does not exist; expected a file") from error
    except IsADirectoryError as error:
        raise MissingData(f"{path} is a folder; expected a file") from error
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValidationError(
            [Problem(line, "", "encoding", f"{path.name}: byte {error.start} is not UTF-8 ({error.reason})")]
        ) from error


def lines_of(path: Path, unicode_ends: bool = False) -> list[str]:
    """The lines of a file, without their ends. Raises as `text_of` does."""
    text = text_of(path)
    if unicode_ends:
        return text.splitlines()
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    lines = text.split("\n")
    if lines and not lines[-1]:
        lines.pop()
    return lines


def json_rows(table: Table) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, object) of a file of JSON lines; blank lines are passed over, others that are no object are noted."""
    for number, line in enumerate(lines_of(table.path), 1):
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            table.note(number, "", "json", f"not JSON: {error}")
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            table.note(number, "", "json", f"a JSON {type(row).__name__}, expected an object")


def _field(table: Table, line: int, row: dict[str, Any], name: str) -> Any:
    if name not in row:
        table.note(line, "", "columns", f"no field {name!r}; there are {', '.join(map(repr, islice(row, 6)))}")
        return MISSING
    return row[name]


# -------------------------------------------------------------------------------------------------------- readers


def _columns(table: Table, count: int) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(lines_of(table.path), 1):
        if not line.strip():
            continue
        columns = line.strip().split("\t")
        if len(columns) != count:
            table.note(number, "", "columns", f"{len(columns)} columns, expected {count} with a TAB between")
            continue
        yield number, columns


def _binary(table: Table, line: int, key: str, text: Any) -> int | None:
    if isinstance(text, bool) or str(text) not in {"0", "1"}:
        table.note(line, key, "label", f"label {text!r} of {key!r}, expected 0 or 1")
        return None
    return int(text)


def _pairs(table: Table) -> None:
    for line, (one, other, label) in _columns(table, 3):
        key = f"{one}\t{other}"
        value = _binary(table, line, key, label)
        if value is not None:
            table.add(key, value, line)


def _labels(table: Table) -> None:
    for line, (key, label) in _columns(table, 2):
        value = _binary(table, line, key, label)
        if value is not None:
            table.add(key, value, line)


def _names(table: Table) -> None:
    rows, numbers = table.rows, table.numbers
    lines = lines_of(table.path)
    pairs = [line.strip().split("\t") for line in lines]
    if set(map(len, pairs)) == {2}:
        table.rows = dict(pairs)
        if len(table.rows) == len(pairs):
            table.numbers = list(range(1, len(pairs) + 1))
            return
        table.rows = rows
    for number, line in enumerate(lines, 1):
        key, _, label = line.strip().partition("\t")
        if label and "\t" not in label and key not in rows:
            rows[key] = label
            numbers.append(number)
        elif label and "\t" not in label:
            table.add(key, label, number)
        elif key or label:
            columns = line.strip().count("\t") + 1
            table.note(number, "", "columns", f"{columns} columns, expected 2 with a TAB between")


def _targets(table: Table) -> None:
    for line, row in json_rows(table):
        key, label = _field(table, line, row, "idx"), _field(table, line, row, "target")
        if key is MISSING or label is MISSING:
            continue
        value = _binary(table, line, str(key), label)
        if value is not None:
            table.add(str(key), value, line)


def _rankings(key_name: str) -> Callable[[Table], None]:
    def read_rankings(table: Table) -> None:
        for line, row in json_rows(table):
            key, answers = _field(table, line, row, key_name), _field(table, line, row, "answers")
            if key is MISSING or answers is MISSING:
                continue
            if not isinstance(answers, list):
                table.note(line, str(key), "json", f"answers of {key!r} are no list")
                continue
            if set(map(type, answers)) != {str}:
                answers = [str(answer) for answer in answers]
            table.add(str(key), answers, line)

    return read_rankings


def _search_answers(table: Table) -> None:
    for line, row in json_rows(table):
        key, code = _field(table, line, row, "url"), _field(table, line, row, "idx")
        if key is not MISSING and code is not MISSING:
            table.add(str(key), str(code), line)


def _words(table: Table) -> None:
    for number, line in enumerate(lines_of(table.path), 1):
        if not line.strip():
            continue
        key, separator, word = line.strip().partition(SEPARATOR)
        if not separator:
            table.note(number, "", "columns", f"no {SEPARATOR} in {line.strip()[:40]!r}")
            continue
        table.add(key, word, number)


def _lines(table: Table) -> None:
    _number(table, lines_of(table.path))


def _any_lines(table: Table) -> None:
    _number(table, lines_of(table.path, unicode_ends=True))


def _number(table: Table, lines: list[str]) -> None:
    table.numbers = list(range(1, len(lines) + 1))
    table.rows = dict(zip(map(str, table.numbers), lines, strict=True))


def _json_text(name: str) -> Callable[[Table], None]:
    def read_text(table: Table) -> None:
        for number, (line, row) in enumerate(json_rows(table), 1):
            text = _field(table, line, row, name)
            if text is MISSING:
                continue
            if not isinstance(text, str):
                table.note(line, "", "json", f"{name!r} is a {type(text).__name__}, expected text")
                continue
            table.rows[str(number)] = text
            table.numbers.append(line)

    return read_text


def _sentences(strict_columns: bool) -> Callable[[Table], None]:
    def read_sentences(table: Table) -> None:
        for number, line in enumerate(lines_of(table.path), 1):
            columns = line.strip("\n").split("\t") if strict_columns else line.strip().split("\t")
            if strict_columns and len(columns) != 2:
                table.note(number, "", "columns", f"{len(columns)} columns, expected 2 with a TAB between")
                continue
            table.add(columns[0], columns[1] if len(columns) > 1 else "", number)

    return read_sentences


_READERS: dict[tuple[str, Part], Callable[[Table], None]] = {
    ("clone_detection_bcb", "answers"): _pairs,
    ("clone_detection_bcb", "predictions"): _pairs,
    ("clone_detection_poj104", "answers"): _rankings("index"),
    ("clone_detection_poj104", "predictions"): _rankings("index"),
    ("defect_detection", "answers"): _targets,
    ("defect_detection", "predictions"): _labels,
    ("cloze_all", "answers"): _words,
    ("cloze_all", "predictions"): _words,
    ("cloze_maxmin", "answers"): _words,
    ("cloze_maxmin", "predictions"): _words,
    ("code_completion_line", "answers"): _json_text("gt"),
    ("code_search_adv", "answers"): _search_answers,
    ("code_search_adv", "predictions"): _rankings("url"),
    ("code_search_webquery", "answers"): _labels,
    ("code_search_webquery", "predictions"): _labels,
    ("text_to_code", "answers"): _json_text("code"),
    ("code_summarization", "answers"): _sentences(True),
    ("code_summarization", "predictions"): _sentences(False),
    ("doc_translation", "answers"): _any_lines,
    ("doc_translation", "predictions"): _any_lines,
    ("type_prediction", "answers"): _names,
    ("type_prediction", "predictions"): _names,
}
"""All others are plain lines."""


def read(task: Task, part: Part, path: Path | str) -> Table:
    """A file of a task. Raises MissingData where it is absent, ValidationError where it is not UTF-8."""
    table = Table(Path(path))
    _READERS.get((task.name, part), _lines)(table)
    return table


def by_line(task: Task) -> bool:
    """Whether rows are matched by their number instead of an id."""
    return (task.name, "predictions") not in _READERS or task.name == "doc_translation"
