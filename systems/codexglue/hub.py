"""Data sets from the Hugging Face hub, written into the official layout, from which `data.load` reads them.

    fetch("code_translation", Path("data/codexglue"))
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from systems.codexglue.data import SPLITS, Row, files_of, load
from systems.codexglue.tasks import MissingData, task

OWNER = "google"
_SPLIT_NAMES = {"train": ("train",), "valid": ("validation", "valid", "dev"), "test": ("test",)}


def fetch(name: str, root: Path, variant: str | None = None, progress: Callable[[str], None] = print) -> list[Path]:
    """Download every split of a task and write the official files below `root`; returns them.

    A split whose files are there already is left alone, so an interrupted fetch goes on. Raises MissingData where the
    hub cannot be reached, or holds no such data set; KeyError for an unknown task or variant.
    """
    one = task(name)
    one.check_variant(variant)
    if not one.hub:
        raise MissingData(f"{name}: not on the hub; see github.com/microsoft/CodeXGLUE for how to get it")
    written: list[Path] = []
    for chosen in (variant,) if variant or not one.variants else one.variants:
        for split in SPLITS:
            try:
                written += load(name, split, chosen, root).files
                progress(f"{name} {chosen or ''} {split}: already there")
                continue
            except MissingData:
                pass
            rows = list(_rows(one.hub, chosen, split))
            if rows:
                written += write_layout(name, split, chosen, rows, root)
                progress(f"{name} {chosen or ''} {split}: {len(rows):,} rows")
    return written


def _rows(hub: str, variant: str | None, split: str) -> Iterator[Row]:
    import pandas as pd
    from huggingface_hub import HfApi, hf_hub_download

    repository = f"{OWNER}/{hub}"
    try:
        files = HfApi().list_repo_files(repository, repo_type="dataset")
        chosen = [
            file
            for file in sorted(files)
            if file.endswith(".parquet")
            and Path(file).name.split("-")[0] in _SPLIT_NAMES[split]
            and (variant is None or variant in Path(file).parts)
        ]
        for file in chosen:
            path = hf_hub_download(repository, file, repo_type="dataset")
            for row in pd.read_parquet(path).to_dict("records"):
                yield {str(key): value for key, value in row.items()}
    except Exception as error:  # whatever a client makes of no network, no such set, no room
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MissingData(
            f"{repository}: cannot be fetched ({first}); go online, or put the official files in place by hand "
            "(`tasks` shows the layout)"
        ) from error


def write_layout(
    name: str, split: str, variant: str | None, rows: Iterable[Mapping[str, Any]], root: Path
) -> list[Path]:
    """Write rows, as the hub gives them, into the official files of a split. Raises KeyError for a missing field."""
    write = _WRITERS.get(name, _json_lines)
    files = files_of(name, split, variant, root)
    texts = write([{key: _plain(value) for key, value in row.items()} for row in rows], split, variant)
    written = []
    for path, text in zip(files, texts, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == "clone_detection_bcb" and path.name == "data.jsonl":
            text = _with_functions_of(path, text)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
        written.append(path)
    return written


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _json_lines(rows: list[Row], split: str, variant: str | None) -> list[str]:
    return ["".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)]


def _json_list(rows: list[Row], split: str, variant: str | None) -> list[str]:
    return [json.dumps(rows, ensure_ascii=False)]


def _defects(rows: list[Row], split: str, variant: str | None) -> list[str]:
    return _json_lines([{**r, "idx": r.get("idx", r["id"]), "target": int(r["target"])} for r in rows], split, variant)


def _programs(rows: list[Row], split: str, variant: str | None) -> list[str]:
    found = [{"index": str(row["id"]), "label": str(row["label"]), "code": row["code"]} for row in rows]
    return _json_lines(found, split, variant)


def _clones(rows: list[Row], split: str, variant: str | None) -> list[str]:
    pairs = "".join(f"{row['id1']}\t{row['id2']}\t{int(row['label'])}\n" for row in rows)
    functions = {row[f"id{side}"]: row[f"func{side}"] for row in rows for side in (1, 2)}
    return [pairs, "".join(json.dumps({"func": func, "idx": str(idx)}) + "\n" for idx, func in functions.items())]


def _with_functions_of(path: Path, text: str) -> str:
    """The functions of other splits stay: all splits share one file."""
    if not path.exists():
        return text
    old = path.read_text(encoding="utf-8")
    known = {json.loads(line)["idx"] for line in old.splitlines()}
    return old + "".join(f"{line}\n" for line in text.splitlines() if json.loads(line)["idx"] not in known)


def _parallel(*names: tuple[str, str]) -> Callable[[list[Row], str, str | None], list[str]]:
    def write(rows: list[Row], split: str, variant: str | None) -> list[str]:
        source, target = next((pair for pair in names if pair[0] in rows[0]), names[0])
        if variant == "cs-java":
            source, target = target, source
        return ["".join(" ".join(str(row[side]).split("\n")) + "\n" for row in rows) for side in (source, target)]

    return write


def _completion(rows: list[Row], split: str, variant: str | None) -> list[str]:
    return ["".join(" ".join(row["code"]) + "\n" for row in rows)]


_WRITERS: Mapping[str, Callable[[list[Row], str, str | None], list[str]]] = {
    "clone_detection_bcb": _clones,
    "clone_detection_poj104": _programs,
    "defect_detection": _defects,
    "cloze_all": _json_list,
    "cloze_maxmin": _json_list,
    "code_search_webquery": _json_list,
    "code_completion_token": _completion,
    "code_completion_line": _json_lines,
    "code_translation": _parallel(("java", "cs")),
    "code_refinement": _parallel(("buggy", "fixed")),
    "doc_translation": _parallel(("source", "target")),
}
