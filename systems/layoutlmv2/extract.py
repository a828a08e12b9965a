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
from systems.layoutlmv2.finetune import Reader, predict_odds
from systems.layoutlmv2.pages import IMAGES, Box, Document, Engine, Page, read

LEAST = 0.25
"""Least probability of a word that a field takes in."""
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
    for number, (page, odds) in enumerate(zip(document.pages, predict_odds(model, document.pages), strict=True)):
        yield from gather(page, number, odds, model.names)


def gather(page: Page, number: int, odds: np.ndarray, names: Sequence[str]) -> list[Field]:
    """Fields from the probabilities of labels, (words, labels), one field of each name.

    A word belongs to a name when B- and I- of it together are likelier than any other name and than none; a name
    without such words takes the likeliest word that belongs to no other, if it is `LEAST` likely. From its surest word
    a field grows over neighbours of its line that are `LEAST` likely, and past a single doubtful word between two of
    them; words that go on further down (I-), as the lines of an address do beside a column, are added in order.
    """
    fields = sorted({name[2:] for name in names if name != "O"})
    if not len(odds):
        return []
    columns = {name: k for k, name in enumerate(names)}
    starts = np.stack([odds[:, columns[f"B-{name}"]] for name in fields], 1)
    inner = np.stack([odds[:, columns[f"I-{name}"]] for name in fields], 1)
    likely = starts + inner
    owner = np.where(likely.max(1) > odds[:, columns["O"]], likely.argmax(1), -1)
    found = []
    for k, name in enumerate(fields):
        p = likely[:, k]
        free = (owner == -1) | (owner == k)
        candidates = np.flatnonzero(owner == k)
        if not candidates.size:
            candidates = np.flatnonzero(free & (p >= LEAST))
        if not candidates.size:
            continue
        surest = int(candidates[p[candidates].argmax()])
        at = _grown(page, surest, p, starts[:, k], free)
        if (owner == k).any():
            at = sorted({*at, *_going_on(page, at, owner == k, starts[:, k], inner[:, k])})
        boxes = np.array([page.words[w].box for w in at])
        low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
        text = " ".join(page.words[w].text for w in at)
        box = (int(low[0]), int(low[1]), int(high[0]), int(high[1]))
        found.append(Field(name, text, number, box, float(p[at].min()), tuple(at)))
    return sorted(found, key=lambda one: one.words)


def _grown(page: Page, middle: int, p: np.ndarray, starts: np.ndarray, free: np.ndarray) -> list[int]:
    """Words of one line around a sure one that belong to it."""
    line = page.words[middle].line
    at = [middle]
    for step in (-1, 1):
        k = middle
        while True:
            if step == -1 and starts[k] > 0.5:
                break  # a sure beginning
            near, beyond = k + step, k + 2 * step
            if not 0 <= near < len(p) or page.words[near].line != line:
                break
            if step == 1 and starts[near] > 0.5:
                break  # the beginning of another
            bridged = 0 <= beyond < len(p) and page.words[beyond].line == line and free[beyond] and p[beyond] >= 0.5
            if not bridged and (p[near] < LEAST or not free[near]):
                break
            at.append(near)
            k = near
    return at


def _going_on(page: Page, at: Sequence[int], mine: np.ndarray, starts: np.ndarray, inner: np.ndarray) -> list[int]:
    """Words further down, or further up before a beginning, that go on with a field."""
    more = []
    end, begins = max(at), mine & (starts > inner)
    for k in np.flatnonzero(mine & (inner > starts)).tolist():
        if k > end and not begins[end + 1 : k + 1].any():
            more += [k]
    if starts[min(at)] < 0.5:
        before = np.flatnonzero(mine[: min(at)] & (starts[: min(at)] > inner[: min(at)]))
        if before.size:
            more += [k for k in range(int(before[-1]), min(at)) if mine[k]]
    return more


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
