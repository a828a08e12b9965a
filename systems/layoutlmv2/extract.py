"""From a document to named fields: read it, tag its words, gather the words of each field.

    for field in extract("invoice.pdf"):
        field.name, field.text, field.page, field.box, field.score
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from systems.layoutlmv2.config import DocumentError, LayoutError
from systems.layoutlmv2.finetune import Reader, predict_tags
from systems.layoutlmv2.pages import IMAGES, Box, Document, Engine, Page, read

WEIGHTS = Path(__file__).with_name("weights")
"""The checkpoint that ships, made by `python -m systems.layoutlmv2.make_weights`."""


@dataclass(frozen=True)
class Field:
    """A named piece of a page. page: from 0; box: around its words, in 0..1000; score: least probability of a word."""

    name: str
    text: str
    page: int
    box: Box
    score: float
    words: tuple[int, ...] = ()


@dataclass(frozen=True)
class Found:
    """What extraction gives for one file: its document and fields, or the one-line reason why there is none."""

    path: str
    document: Document | None
    fields: tuple[Field, ...]
    error: str = ""
    notes: tuple[str, ...] = ()


@lru_cache(maxsize=1)
def shipped() -> Reader:
    """The reader of the checkpoint that ships with the project."""
    return Reader.load(WEIGHTS)


def extract(path: Path | str, model: Reader | None = None, ocr: Engine = "auto") -> list[Field]:
    """The fields of a document, page by page, in reading order. model: default the shipped one.

    A field that is absent is left out; where a page names one twice, the surest stays. Raises DocumentError.
    """
    return list(fields_of(read(path, ocr), model or shipped()))


def fields_of(document: Document, model: Reader) -> Iterator[Field]:
    """The fields of a document that was read already."""
    for number, (page, (tags, scores)) in enumerate(
        zip(document.pages, predict_tags(model, document.pages), strict=True)
    ):
        yield from gather(page, number, tags, scores)


def gather(page: Page, number: int, tags: Sequence[str], scores: np.ndarray) -> list[Field]:
    """Fields from tags and their probabilities, one of each name.

    An I- tag goes on with the last field of its name even where other words stand between in reading order, as they
    do between the lines of an address beside a column.
    """
    spans: dict[str, list[list[int]]] = {}
    for k, tag in enumerate(tags):
        kind, _, name = tag.partition("-")
        if not name:
            continue
        known = spans.setdefault(name, [])
        if kind == "B" or not known:
            known.append([k])
        else:
            known[-1].append(k)
    fields = []
    for name, candidates in spans.items():
        best = max(candidates, key=lambda at: (float(np.mean(scores[at])), -at[0]))
        boxes = np.array([page.words[k].box for k in best])
        low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
        text = " ".join(page.words[k].text for k in best)
        box = (int(low[0]), int(low[1]), int(high[0]), int(high[1]))
        fields.append(Field(name, text, number, box, float(scores[best].min()), tuple(best)))
    return sorted(fields, key=lambda one: one.words)


def documents(paths: Sequence[Path | str]) -> list[Path]:
    """Files to read: those named, and in a folder every PDF and picture, in order. Raises DocumentError."""
    found: list[Path] = []
    for given in map(Path, paths):
        if given.is_dir():
            inside = [p for p in sorted(given.rglob("*")) if p.suffix.lower() in (".pdf", *IMAGES) and p.is_file()]
            found += inside
        elif given.exists():
            found.append(given)
        else:
            raise DocumentError(f"{given}: no file or folder there")
    if not found:
        raise DocumentError(f"{', '.join(map(str, paths))}: no PDF or picture there")
    return found


def extract_many(
    paths: Sequence[Path], model: Reader | None = None, ocr: Engine = "auto", jobs: int = 1,
    folder: Path | str | None = None, progress: Callable[[int], None] | None = None,
) -> Iterator[Found]:  # fmt: skip
    """`Found` of every file, in order; a file that cannot be read is told and stops nothing.

    jobs: processes, which share the files out; each loads the model of `folder` (default: the shipped one).
    """
    if jobs > 1 and len(paths) > 1:
        import multiprocessing

        where = str(folder or WEIGHTS)
        context = multiprocessing.get_context("spawn")
        with context.Pool(min(jobs, len(paths)), _start, (where,)) as pool:
            for number, found in enumerate(pool.imap(_one, [(str(path), ocr) for path in paths])):
                if progress is not None:
                    progress(number + 1)
                yield found
        return
    reader = model or (Reader.load(folder) if folder else shipped())
    for number, path in enumerate(paths):
        yield _found(path, reader, ocr)
        if progress is not None:
            progress(number + 1)


def _found(path: Path | str, reader: Reader, ocr: Engine) -> Found:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            document = read(path, ocr)
            fields = tuple(fields_of(document, reader))
        except LayoutError as error:
            return Found(str(path), None, (), str(error))
    notes = [str(one.message) for one in caught if one.category.__name__ == "ReadingNote"]
    notes += [f"{path}: page {k + 1} is empty" for k, page in enumerate(document.pages) if not page.words]
    return Found(str(path), document, fields, "", tuple(notes))


_READER: list[Reader] = []  # of a worker process


def _start(folder: str) -> None:
    import torch

    torch.set_num_threads(1)
    _READER.append(Reader.load(folder))


def _one(job: tuple[str, Engine]) -> Found:
    try:
        return _found(job[0], _READER[0], job[1])
    except Exception as error:  # a crash on one file must not lose the others
        print(f"layoutlmv2: {job[0]}: {error}", file=sys.stderr)
        return Found(job[0], None, (), str(error))
