"""Data sets in their official layouts, read as examples.

    for example in funsd("FUNSD", "train"):
        example.page.words, example.tags

Each loader takes the folder that the official archive unpacks to and a split. Files that the layout promises and that
are not there raise MissingData naming the path. `DATASETS` lists the loaders by name.
"""

from __future__ import annotations

import json
import lzma
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image
from rapidfuzz import fuzz

from systems.layoutlmv2.config import InputError, MissingData
from systems.layoutlmv2.metrics import encode
from systems.layoutlmv2.pages import Page, Word, normalise, order_lines, read, split_line, upright_rgb
from systems.layoutlmv2.sheet import Example, Question

FUZZY = 85.0
"""Least similarity, in percent, at which a given value counts as found among the words."""
RVL_LABELS = (
    "letter", "form", "email", "handwritten", "advertisement", "scientific report", "scientific publication",
    "specification", "file folder", "news article", "budget", "invoice", "presentation", "questionnaire", "resume",
    "memo",
)  # fmt: skip


@dataclass
class Matched:
    """How given values were found among the words of pages."""

    exact: int = 0
    normalised: int = 0
    fuzzy: int = 0
    unmatched: list[tuple[str, str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        found = self.exact + self.normalised + self.fuzzy
        return (
            f"{found} of {found + len(self.unmatched)} values found: {self.exact} exact, {self.normalised} "
            f"normalised, {self.fuzzy} fuzzy"
        )


def _file(path: Path, what: str) -> Path:
    if not path.exists():
        raise MissingData(f"{path} is not there: the official layout of {what} has it")
    return path


def _files(folder: Path, pattern: str, what: str) -> list[Path]:
    found = sorted(_file(folder, what).glob(pattern))
    if not found:
        raise MissingData(f"{folder / pattern}: no such files, and the official layout of {what} has some")
    return found


def _json(path: Path, what: str) -> Any:
    try:
        return json.loads(_file(path, what).read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise MissingData(f"{path}: not the JSON of {what}: {error}") from error


def _split(split: str, names: Mapping[str, str], what: str) -> str:
    if split not in names:
        raise InputError(f"{what} has the splits {', '.join(names)}, not {split!r}")
    return names[split]


def _image(path: Path, what: str) -> Image.Image:
    return upright_rgb(Image.open(_file(path, what)))


def _tagged(
    entries: Sequence[tuple[str, Sequence[tuple[str, Sequence[float]]]]], image: Image.Image, name: str, label: str = ""
) -> Example:  # fmt: skip
    """entries: (label or "", words with boxes in pixels), in the annotation's order, which is kept."""
    size = (float(image.width), float(image.height))
    words, tags = [], []
    for line, (kind, found) in enumerate(entries):
        for number, (text, box) in enumerate(found):
            words.append(Word(text, normalise(box, size), line))
            tags.append(f"{'I' if number else 'B'}-{kind}" if kind else "O")
    return Example(Page(tuple(words), size, image), tuple(tags), label or None, name=name)


def _quad(values: Sequence[float]) -> tuple[float, float, float, float]:
    return min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])


def _form(entries: Sequence[Mapping[str, Any]], image: Image.Image, name: str) -> Example:
    found = []
    for one in entries:
        words = [(word["text"], word["box"]) for word in one["words"] if word["text"].strip()]
        found.append(("" if one["label"] == "other" else one["label"].upper(), words))
    return _tagged(found, image, name)


def funsd(folder: Path | str, split: str = "train") -> Iterator[Example]:
    """FUNSD: `dataset/{training_data,testing_data}/{annotations/*.json,images/*.png}`. Splits train, test."""
    root = Path(folder)
    root = root / "dataset" if (root / "dataset").is_dir() else root
    part = root / _split(split, {"train": "training_data", "test": "testing_data"}, "FUNSD")
    for path in _files(part / "annotations", "*.json", "FUNSD"):
        image = _image(part / "images" / f"{path.stem}.png", "FUNSD")
        yield _form(_json(path, "FUNSD")["form"], image, path.stem)


def xfund(folder: Path | str, split: str = "train", language: str = "de") -> Iterator[Example]:
    """XFUND: `<language>.{train,val}.json` and its images beside it or in a folder of that name. Splits train, test."""
    root = Path(folder)
    stem = f"{language}.{_split(split, {'train': 'train', 'test': 'val'}, 'XFUND')}"
    for one in _json(root / f"{stem}.json", "XFUND")["documents"]:
        name = one["img"]["fname"]
        inside = root / stem / name
        image = _image(inside if inside.exists() else root / name, "XFUND")
        yield _form(one["document"], image, one["id"])


def cord(folder: Path | str, split: str = "train") -> Iterator[Example]:
    """CORD: `{train,dev,test}/{image/*.png,json/*.json}`. Splits train, dev, test."""
    part = Path(folder) / _split(split, {"train": "train", "dev": "dev", "test": "test"}, "CORD")
    for path in _files(part / "json", "*.json", "CORD"):
        entries = []
        for line in _json(path, "CORD")["valid_line"]:
            words = []
            for word in line["words"]:
                quad = word["quad"]
                corners = [quad[f"{axis}{k}"] for k in range(1, 5) for axis in "xy"]
                if word["text"].strip():
                    words.append((word["text"], _quad(corners)))
            entries.append((line["category"].upper(), words))
        yield _tagged(entries, _image(part / "image" / f"{path.stem}.png", "CORD"), path.stem)


def sroie(folder: Path | str, split: str = "train", matched: Matched | None = None) -> Iterator[Example]:
    """SROIE: `{train,test}/{img/*.jpg,box/*.txt,entities/*.txt}`. Splits train, test.

    A box line is a whole text line, parted here into words; the four given values are found among them.
    """
    part = Path(folder) / _split(split, {"train": "train", "test": "test"}, "SROIE")
    matched = matched if matched is not None else Matched()
    for path in _files(part / "box", "*.txt", "SROIE"):
        image = _image(part / "img" / f"{path.stem}.jpg", "SROIE")
        size = (float(image.width), float(image.height))
        words = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            cells = line.split(",", 8)
            if len(cells) != 9:
                continue
            corners = [[float(cells[2 * k]), float(cells[2 * k + 1])] for k in range(4)]
            words += [Word(text, normalise(box, size)) for text, box in split_line(cells[8], corners)]
        fields = {
            name: str(value)
            for name, value in _json(part / "entities" / path.name, "SROIE").items()
            if name in ("company", "date", "address", "total") and str(value).strip()
        }
        page = Page(tuple(order_lines(words)), size, image)
        yield labelled(page, fields, path.stem, matched)


def kleister_nda(folder: Path | str, split: str = "train", matched: Matched | None = None) -> Iterator[Example]:
    """Kleister-NDA: `{train,dev-0,test-A}/{in.tsv.xz,expected.tsv}`, `documents/*.pdf`. Splits train, dev, test.

    A page of a document is an example, and a value is marked on each page that holds it; values without words (dates
    in another form) are counted in `matched`. The test split has no expected values.
    """
    names = {"train": "train", "dev": "dev-0", "test": "test-A"}
    root = Path(folder)
    part = root / _split(split, names, "Kleister-NDA")
    matched = matched if matched is not None else Matched()
    with lzma.open(_file(part / "in.tsv.xz", "Kleister-NDA"), "rt", encoding="utf-8", newline="\n") as file:
        documents = [line.split("\t", 1)[0] for line in file if line.strip()]
    expected: list[str] = [""] * len(documents)
    if split != "test" or (part / "expected.tsv").exists():
        expected = _file(part / "expected.tsv", "Kleister-NDA").read_text(encoding="utf-8").split("\n")
        expected = expected[:-1] if expected and not expected[-1] else expected
        if len(expected) != len(documents):
            raise MissingData(f"{part}: {len(documents)} documents and {len(expected)} lines of expected.tsv")
    for name, line in zip(documents, expected, strict=True):
        values: list[tuple[str, str]] = []
        for cell in line.split():
            key, _, value = cell.partition("=")
            values.append((key, value.replace("_", " ")))
        document = read(_file(root / "documents" / name, "Kleister-NDA"))
        spans: list[list[tuple[str, int, int]]] = [[] for _ in document.pages]
        for key, value in values:
            found = [(k, *span) for k, page in enumerate(document.pages) if (span := find_value(page.words, value))]
            if not found:
                matched.unmatched.append((name, key, value))
            for k, first, last, _ in found:
                if not any(a <= last and first <= b for _, a, b in spans[k]):
                    spans[k].append((key, first, last))
            if found:
                _count(matched, found[0][3])
        for k, page in enumerate(document.pages):
            tags = encode(spans[k], len(page.words))
            yield Example(page, tuple(tags), None, dict(values), (), f"{name}#{k + 1}")


def rvl_cdip(folder: Path | str, split: str = "train", ocr: str = "auto") -> Iterator[Example]:
    """RVL-CDIP: `labels/{train,val,test}.txt` and `images/`. Splits train, dev, test.

    The set has pictures alone: words come from `<image>.json` beside an image where it is there
    (`{"words": [{"text", "box": [x0, y0, x1, y1] in pixels}]}`), else from OCR.
    """
    root = Path(folder)
    name = _split(split, {"train": "train", "dev": "val", "test": "test"}, "RVL-CDIP")
    for line in _file(root / "labels" / f"{name}.txt", "RVL-CDIP").read_text(encoding="utf-8").splitlines():
        if not line.strip():
            continue
        where, _, number = line.rpartition(" ")
        path = _file(root / "images" / where, "RVL-CDIP")
        beside = path.with_suffix(".json")
        if beside.exists():
            image = _image(path, "RVL-CDIP")
            size = (float(image.width), float(image.height))
            words = [Word(one["text"], normalise(one["box"], size)) for one in _json(beside, "RVL-CDIP")["words"]]
            page = Page(tuple(order_lines(words)), size, image)
        else:
            page = read(path, ocr).pages[0]  # type: ignore[arg-type]
        yield Example(page, label=RVL_LABELS[int(number)], name=where)


def docvqa(folder: Path | str, split: str = "train", matched: Matched | None = None) -> Iterator[Example]:
    """DocVQA: `{train,val,test}_v1.0.json`, `documents/`, `ocr_results/`. Splits train, dev, test.

    An example is a page with one question. Its answer is found among the words; the first accepted one counts.
    """
    root = Path(folder)
    matched = matched if matched is not None else Matched()
    name = _split(split, {"train": "train", "dev": "val", "test": "test"}, "DocVQA")
    pages: dict[str, Page] = {}
    for one in _json(root / f"{name}_v1.0.json", "DocVQA")["data"]:
        where = one["image"]
        if where not in pages:
            pages = {where: _docvqa_page(root, where)}  # questions of a page stand together: one page is enough
        page = pages[where]
        answers = tuple(one.get("answers") or ())
        span = None
        for answer in answers:
            found = find_value(page.words, answer)
            if found:
                span = (found[0], found[1])
                _count(matched, found[2])
                break
        else:
            if answers:
                matched.unmatched.append((str(one["questionId"]), one["question"], answers[0]))
        asked = Question(one["question"], answers, span)
        yield Example(page, ("O",) * len(page.words), None, {}, (asked,), str(one["questionId"]))


def _docvqa_page(root: Path, where: str) -> Page:
    image = _image(root / where, "DocVQA")
    found = _json(root / "ocr_results" / f"{Path(where).stem}.json", "DocVQA")["recognitionResults"][0]
    size = (float(found["width"]), float(found["height"]))
    words = [
        Word(word["text"], normalise(_quad(word["boundingBox"]), size), line)
        for line, one in enumerate(found["lines"])
        for word in one["words"]
    ]
    return Page(tuple(order_lines(words)), size, image)


DATASETS: Mapping[str, Callable[..., Iterator[Example]]] = {
    "funsd": funsd, "cord": cord, "sroie": sroie, "kleister-nda": kleister_nda, "xfund": xfund, "rvl-cdip": rvl_cdip,
    "docvqa": docvqa,
}  # fmt: skip


# ------------------------------------------------------------------------------------------------ values among words


def labelled(page: Page, fields: Mapping[str, str], name: str, matched: Matched) -> Example:
    """An example whose tags mark where the values of `fields` stand; what is not found is counted."""
    spans: list[tuple[str, int, int]] = []
    for key, value in fields.items():
        taken = [(a, b) for _, a, b in spans]
        found = find_value(page.words, value, taken, key)
        if found is None:
            matched.unmatched.append((name, key, value))
            continue
        _count(matched, found[2])
        spans.append((key, found[0], found[1]))
    return Example(page, tuple(encode(spans, len(page.words))), None, dict(fields), (), name)


def _count(matched: Matched, how: str) -> None:
    setattr(matched, how, getattr(matched, how) + 1)


def _letters(text: str) -> str:
    return re.sub(r"[^0-9a-z]", "", text.lower())


def find_value(
    words: Sequence[Word], value: str, taken: Sequence[tuple[int, int]] = (), key: str = ""
) -> tuple[int, int, str] | None:  # fmt: skip
    """(first, last, how) of the words that say `value`: exact, then normalised (letters and digits), then fuzzy.

    taken: spans that are not free. Of several exact places the one on a line that names `key` wins, the last of them;
    without such a line the first for text, the last for an amount.
    """
    wanted = value.split()
    free = [True] * len(words)
    for a, b in taken:
        free[a : b + 1] = [False] * (b + 1 - a)
    if not wanted or not words:
        return None
    length = len(wanted)
    places = [
        k
        for k in range(len(words) - length + 1)
        if all(free[k : k + length]) and [word.text for word in words[k : k + length]] == wanted
    ]
    if places:
        k = _choose(words, places, key, value)
        return k, k + length - 1, "exact"
    target = _letters(value)
    if not target:
        return None
    starts: list[tuple[int, int]] = []
    for k in range(len(words)):
        text = ""
        for last in range(k, min(k + 3 * length + 4, len(words))):
            if not free[last]:
                break
            text += _letters(words[last].text)
            if text == target:
                starts.append((k, last))
                break
            if len(text) > len(target):
                break
    if starts:
        k = _choose(words, [a for a, _ in starts], key, value)
        # Words without a letter at the edges, such as a lone comma, do not belong to the value.
        return k, dict(starts)[k], "normalised"
    if len(target) < 6:
        return None
    best, span = FUZZY, None
    for k in range(len(words)):
        for last in range(k + max(0, length - 3), min(k + length + 3, len(words))):
            if not all(free[k : last + 1]):
                break
            text = "".join(_letters(word.text) for word in words[k : last + 1])
            score = fuzz.ratio(text, target, score_cutoff=best)
            if score > best or (score == best and span is None):
                best, span = score, (k, last)
    return (*span, "fuzzy") if span else None


def _choose(words: Sequence[Word], places: Sequence[int], key: str, value: str) -> int:
    """Which of several places of a value is meant."""
    if key:
        named = [k for k in places if any(key in w.text.lower() for w in words if w.line == words[k].line)]
        if named:
            return named[-1]
    return places[-1] if re.fullmatch(r"\D{0,3}[\d,]+\.\d\d", value) else places[0]


def thin_pictures(examples: Iterator[Example], longest: int = 448) -> Iterator[Example]:
    """The same examples with pictures no larger than a model needs, to hold many in memory."""
    for example in examples:
        image = example.page.image
        if image is not None and max(image.size) > longest:
            image = image.copy()
            image.thumbnail((longest, longest))
        yield replace(example, page=replace(example.page, image=image))


def warn_unmatched(matched: Matched) -> None:
    """Say which values were not found."""
    if matched.unmatched:
        name, key, value = matched.unmatched[0]
        warnings.warn(f"{matched}; the first that is not: {key} {value!r} of {name}", UserWarning, stacklevel=2)
