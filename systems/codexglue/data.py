"""Data sets in the official layouts, a row at a time.

    for row in load("defect_detection", "train", root="data/codexglue"):
        row["func"], row["target"]

A data set can be gone through again and again, each time the same, and holds no more than a row in memory (clone
pairs also hold the functions that they are of).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from systems.codexglue.tasks import MissingData, Task, ValidationError, task
from systems.codexglue.tasks import Problem as _Problem

Row = dict[str, Any]
Layout = tuple[list[Path], Callable[[], Iterator[Row]]]
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Dataset:
    """Rows of one split. files: what they are read from."""

    task: Task
    split: str
    variant: str | None
    files: tuple[Path, ...]
    _rows: Callable[[], Iterator[Row]]

    def __iter__(self) -> Iterator[Row]:
        return self._rows()

    def __len__(self) -> int:
        """Goes through all rows."""
        return sum(1 for _ in self)


def load(name: str, split: str, variant: str | None = None, root: Path | str | None = None) -> Dataset:
    """A split of a task from a folder of the official layout. root: $CODEXGLUE_DATA by default.

    split: train, valid or test. Raises KeyError for an unknown task or variant, ValueError for another split, and
    MissingData that says which file was looked for, and where the data can be had.
    """
    one = task(name)
    files, rows = _layout(name, split, variant, root)
    for file in files:
        if not file.exists():
            where = f"huggingface.co/datasets/google/{one.hub}" if one.hub else "github.com/microsoft/CodeXGLUE"
            raise MissingData(
                f"{name}, {split}: no {file}; give the folder of the data as root or $CODEXGLUE_DATA ({where})"
            )
    return Dataset(one, split, variant, tuple(files), rows)


def files_of(name: str, split: str, variant: str | None = None, root: Path | str | None = None) -> tuple[Path, ...]:
    """Where `load` looks for a split, whether it is there or not. Raises as `load` does for names."""
    return tuple(_layout(name, split, variant, root)[0])


def _layout(name: str, split: str, variant: str | None, root: Path | str | None) -> Layout:
    task(name).check_variant(variant)
    if split not in SPLITS:
        raise ValueError(f"split {split!r}, expected {', '.join(SPLITS)}")
    return _LAYOUTS[name](Path(root or os.environ.get("CODEXGLUE_DATA") or "data/codexglue"), split, variant)


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8", newline=None) as file:
        for line in file:
            yield line.rstrip("\n")


def _json_lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            try:
                yield orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise ValidationError([_Problem(number, "", "json", f"{path.name}: not JSON: {error}")]) from error


def _json_list(path: Path) -> Iterator[Row]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValidationError([_Problem(0, "", "json", f"{path.name}: not JSON: {error}")]) from error
    yield from rows


def _jsonl(folder_name: str) -> Callable[[Path, str, str | None], Layout]:
    def layout(root: Path, split: str, variant: str | None) -> Layout:
        path = root / folder_name / f"{split}.jsonl"
        return [path], lambda: _json_lines(path)

    return layout


def _clones(root: Path, split: str, variant: str | None) -> Layout:
    pairs, code = root / "clone_detection_bcb" / f"{split}.txt", root / "clone_detection_bcb" / "data.jsonl"

    def rows() -> Iterator[Row]:
        functions = {str(row["idx"]): row["func"] for row in _json_lines(code)}
        for line in _lines(pairs):
            one, other, label = line.split("\t")
            yield {"id1": one, "id2": other, "func1": functions[one], "func2": functions[other], "label": int(label)}

    return [pairs, code], rows


def _cloze(folder_name: str) -> Callable[[Path, str, str | None], Layout]:
    def layout(root: Path, split: str, variant: str | None) -> Layout:
        path = root / folder_name / (variant or "python") / "clozeTest.json"
        return [path], lambda: _json_list(path)

    return layout


def _parallel(folder_name: str, file: Callable[[str, str | None], tuple[str, str]]) -> Callable[..., Layout]:
    def layout(root: Path, split: str, variant: str | None) -> Layout:
        source, target = (root / folder_name / part for part in file(split, variant))

        def rows() -> Iterator[Row]:
            for number, (a, b) in enumerate(zip(_lines(source), _lines(target), strict=True)):
                yield {"id": number, "source": a, "target": b}

        return [source, target], rows

    return layout


def _translation(split: str, variant: str | None) -> tuple[str, str]:
    sides = ("java", "cs") if variant != "cs-java" else ("cs", "java")
    return f"{split}.java-cs.txt.{sides[0]}", f"{split}.java-cs.txt.{sides[1]}"


def _refinement(split: str, variant: str | None) -> tuple[str, str]:
    size = variant or "small"
    return f"{size}/{split}.buggy-fixed.buggy", f"{size}/{split}.buggy-fixed.fixed"


def _documents(split: str, variant: str | None) -> tuple[str, str]:
    source, target = (variant or "lv-en").split("-")
    pair, part = (f"{source}-{target}" if target == "en" else f"{target}-{source}"), split.replace("valid", "dev")
    return f"{part}/{pair}.{part}.{source}", f"{part}/{pair}.{part}.{target}"


def _completion_tokens(root: Path, split: str, variant: str | None) -> Layout:
    path = root / "code_completion" / (variant or "py150") / "token_completion" / f"{split.replace('valid', 'dev')}.txt"
    return [path], lambda: ({"id": k, "code": line.split()} for k, line in enumerate(_lines(path)))


def _completion_lines(root: Path, split: str, variant: str | None) -> Layout:
    path = root / "code_completion" / (variant or "py150") / "line_completion" / "test.json"
    return [path], lambda: _json_lines(path)


def _web_query(root: Path, split: str, variant: str | None) -> Layout:
    names = {"train": "cosqa-train.json", "valid": "cosqa-dev.json", "test": "test_webquery.json"}
    path = root / "code_search_webquery" / names[split]
    return [path], lambda: _json_list(path)


def _concode(root: Path, split: str, variant: str | None) -> Layout:
    path = root / "text_to_code" / f"{split.replace('valid', 'dev')}.json"
    return [path], lambda: _json_lines(path)


def _summaries(root: Path, split: str, variant: str | None) -> Layout:
    path = root / "code_summarization" / (variant or "python") / f"{split}.jsonl"
    return [path], lambda: _json_lines(path)


_LAYOUTS: dict[str, Callable[[Path, str, str | None], Layout]] = {
    "clone_detection_bcb": _clones,
    "clone_detection_poj104": _jsonl("clone_detection_poj104"),
    "defect_detection": _jsonl("defect_detection"),
    "cloze_all": _cloze("cloze_all"),
    "cloze_maxmin": _cloze("cloze_maxmin"),
    "code_completion_token": _completion_tokens,
    "code_completion_line": _completion_lines,
    "code_translation": _parallel("code_translation", _translation),
    "code_refinement": _parallel("code_refinement", _refinement),
    "code_search_adv": _jsonl("code_search_adv"),
    "code_search_webquery": _web_query,
    "text_to_code": _concode,
    "code_summarization": _summaries,
    "doc_translation": _parallel("doc_translation", _documents),
    "method_generation": _jsonl("method_generation"),
    "type_prediction": _jsonl("type_prediction"),
}
