"""Labelled texts: readers of the official layouts, and splits that do not leak.

    data = load_text("shared/data/textnas/sst", "sst2", "train", phrases=True)
    splits = load_splits("shared/data/textnas/trec", "label-text")
    splits.train, splits.valid               # read now
    splits.test.read()                       # read when asked for, and counted

A text is its words with one ASCII space between; a pair of texts is a tuple of two. Where a set has no test file of its
own, a tenth of its training file is held back, chosen by a hash of the text: equal texts fall on the same side.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from systems.textnas.space import DataError

Kind = Literal["sst5", "sst2", "label-text", "csv", "snli", "multinli", "sick"]
KINDS = ("sst5", "sst2", "label-text", "csv", "snli", "multinli", "sick")
PAIRS = ("snli", "multinli", "sick")
UNKNOWN = "<unk>"
LEAST_PER_CLASS = 10
_WORD = re.compile(r"\w+|[^\w\s]")
_NLI = ("contradiction", "entailment", "neutral")
_UNESCAPED = {"-lrb-": "(", "-rrb-": ")", "-LRB-": "(", "-RRB-": ")"}

Text = str | tuple[str, str]


@dataclass(frozen=True)
class TextData:
    """Labelled texts. texts: words with one space between, or pairs of them; labels: (n,) int64 into `classes`."""

    texts: tuple[Text, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    source: str = ""
    empty: int = 0
    """How many texts had no word; each is kept as one unknown word."""

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def pair(self) -> bool:
        """Whether each text is a pair."""
        return bool(self.texts) and isinstance(self.texts[0], tuple)

    def take(self, rows: Sequence[int] | np.ndarray) -> TextData:
        """Some of the rows, in the order given."""
        return replace(self, texts=tuple(self.texts[int(i)] for i in rows), labels=self.labels[np.asarray(rows, int)])

    def check_trainable(self) -> None:
        """Raises DataError unless there are at least two classes and ten rows of each."""
        counts = np.bincount(self.labels, minlength=len(self.classes))
        if len(self.classes) < 2:
            raise DataError(f"{self.source}: {len(self.classes)} class; training needs at least 2")
        few = [f"{name!r} has {n}" for name, n in zip(self.classes, counts, strict=True) if n < LEAST_PER_CLASS]
        if few:
            raise DataError(f"{self.source}: class {', '.join(few)} rows; training needs at least {LEAST_PER_CLASS}")

    def digest(self) -> str:
        """A hash of texts and labels."""
        sha = hashlib.sha256()
        for text, label in zip(self.texts, self.labels, strict=True):
            sha.update(f"{label}\t{_joined(text)}\n".encode())
        return sha.hexdigest()[:16]


@dataclass
class HeldOut:
    """A test set behind a counter: nothing reads it but `read`, and `reads` says how often that was."""

    _load: Callable[[], TextData]
    reads: int = 0
    rows: int = 0
    """How many rows it has; known once it was read."""

    def read(self) -> TextData:
        """The test set, read now."""
        data = self._load()
        self.reads += 1
        self.rows = len(data)
        return data


@dataclass(frozen=True)
class Splits:
    """What search and training may see, and the test set that they may not. Unpacks into its three parts."""

    train: TextData
    valid: TextData
    test: HeldOut = field(repr=False)

    def __iter__(self) -> Iterator[TextData | HeldOut]:
        return iter((self.train, self.valid, self.test))


def _joined(text: Text) -> str:
    return text if isinstance(text, str) else "\t".join(text)


def share(text: Text) -> float:
    """A number in [0, 1) that depends on the lower-cased text alone."""
    digest = hashlib.blake2b(_joined(text).lower().encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def split(data: TextData, low: float, high: float) -> tuple[TextData, TextData]:
    """(the texts whose share is in [low, high), the others): equal texts always on the same side."""
    shares = np.array([share(text) for text in data.texts])
    inside = (shares >= low) & (shares < high)
    return data.take(np.flatnonzero(inside)), data.take(np.flatnonzero(~inside))


# --------------------------------------------------------------------------------------------------------- reading


def load_text(
    path: Path | str, kind: Kind, split: str = "train", lower: bool = True, phrases: bool = False,
    classes: Sequence[str] | None = None,
) -> TextData:  # fmt: skip
    """One split of a data set: `path` is its folder, or the file itself.

    kind: "sst5" and "sst2" read Penn trees (with `phrases` every distinct labelled phrase, else whole sentences; sst2
    leaves neutral ones out); "label-text" reads Latin-1 lines of a label, a space and words; "csv" quoted columns,
    label first, counted from 1, the others joined; "snli", "multinli" and "sick" pairs. classes: the labels that may
    occur, where a file of few rows does not show them all. Raises DataError with file and line.
    """
    if kind not in KINDS:
        raise DataError(f"kind is {kind!r}; expected one of {', '.join(KINDS)}")
    file = _file(Path(path), kind, split)
    if kind in ("sst5", "sst2"):
        rows = _trees(file, phrases, kind == "sst2", lower)
        names: Sequence[str] = ("negative", "positive") if kind == "sst2" else tuple("01234")
    elif kind == "label-text":
        rows, names = _label_lines(file), classes or ()
    elif kind == "csv":
        rows, names = _csv_rows(file), classes or ()
    else:
        rows, names = (_sick_rows if kind == "sick" else _nli_rows)(file), _NLI
    return _collected(rows, names, file, lower)


Row = tuple[int, str, Text]  # line, label, text


def _file(path: Path, kind: str, split: str) -> Path:
    """The file of a split in the official layout, or `path` itself where it is a file."""
    if not path.is_dir():
        if not path.exists():
            raise DataError(f"{path} does not exist; expected a data file or its folder")
        return path
    of_split = {"valid": "dev"}.get(split, split)
    candidates = {
        "sst5": [f"trees/{of_split}.txt", f"{of_split}.txt"], "sst2": [f"trees/{of_split}.txt", f"{of_split}.txt"],
        "label-text": [f"{split}.txt", f"{of_split}.txt"], "csv": [f"{split}.csv"],
        "snli": [f"snli_1.0_{of_split}.jsonl"],
        "multinli": [f"multinli_1.0_{split}.jsonl", f"multinli_1.0_{of_split}_matched.jsonl"],
        "sick": [f"SICK_{'trial' if of_split == 'dev' else of_split}.txt"],
    }[kind]  # fmt: skip
    for name in candidates:
        if (path / name).is_file():
            return path / name
    raise DataError(f"{path} has no {split} file of kind {kind!r}; expected {' or '.join(candidates)} in it")


def _decoded(file: Path, encoding: str = "utf-8") -> str:
    content = file.read_bytes()
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = f"byte {content[error.start]:#04x}"
        raise DataError(f"{file}, line {line}: {byte} is not UTF-8 ({error.reason})") from error


def _lines(file: Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """Numbered lines, cut at \\n alone: other line ends of Unicode occur inside texts."""
    for number, line in enumerate(_decoded(file, encoding).split("\n"), 1):
        line = line.removesuffix("\r")
        if line:
            yield number, line


def _collected(rows: Iterator[Row], names: Sequence[str], file: Path, lower: bool) -> TextData:
    found = list(rows)
    if not found:
        raise DataError(f"{file}: no labelled text in it")
    if not names:
        names = sorted({label for _, label, _ in found}, key=lambda name: (len(name), name))
    numbers = {name: i for i, name in enumerate(names)}
    texts: list[Text] = []
    labels = np.empty(len(found), dtype=np.int64)
    empty = 0
    for i, (line, label, text) in enumerate(found):
        if label not in numbers:
            raise DataError(f"{file}, line {line}: label {label!r}; allowed: {', '.join(names)}")
        labels[i] = numbers[label]
        parts = [part.lower() if lower else part for part in ((text,) if isinstance(text, str) else text)]
        empty += not all(parts)
        parts = [part or UNKNOWN for part in parts]
        texts.append(parts[0] if isinstance(text, str) else (parts[0], parts[1]))
    return TextData(tuple(texts), labels, tuple(names), str(file), empty)


def _trees(file: Path, phrases: bool, binary: bool, lower: bool) -> Iterator[Row]:
    """Labelled sentences, or distinct labelled phrases, the first label of each text counting."""
    seen: set[str] = set()
    labels = {label: label for label in "01234"}
    if binary:
        labels = {"0": "negative", "1": "negative", "3": "positive", "4": "positive"}
    for number, line in _lines(file):
        spans, words = _spans(line, number, file)
        if not phrases:
            spans = spans[-1:]
        for label, start, end in spans:
            if label in labels:
                text = " ".join(words[start:end])
                text = text.lower() if lower else text
                if not phrases or text not in seen:
                    seen.add(text)
                    yield number, labels[label], text


def _spans(line: str, number: int, file: Path) -> tuple[list[tuple[str, int, int]], list[str]]:
    """Every node of a tree as (label, first word, end), the root last; and the words.

    The only separators are the ASCII space and parentheses: a leaf may hold a no-break space.
    """
    words: list[str] = []
    open_: list[tuple[str, int]] = []
    spans: list[tuple[str, int, int]] = []
    for piece in line.strip(" ").split(" "):
        if piece.startswith("("):
            label = piece[1:]
            if len(label) != 1 or label not in "01234" or (spans and not open_):
                raise _tree_error(line, number, file)
            open_.append((label, len(words)))
        else:
            word = piece.rstrip(")")
            closing = len(piece) - len(word)
            if not word or "(" in word or ")" in word or not 0 < closing <= len(open_):
                raise _tree_error(line, number, file)
            words.append(_UNESCAPED.get(word) or word.replace("\\/", "/"))
            for _ in range(closing):
                label, start = open_.pop()
                spans.append((label, start, len(words)))
    if open_ or not spans:
        raise _tree_error(line, number, file)
    return spans, words


def _tree_error(line: str, number: int, file: Path) -> DataError:
    """What is wrong with a tree, and at which column: read again slowly."""
    depth, column, what = 0, len(line), "the line ends before the tree does"
    for at, letter in enumerate(line, 1):
        if letter == "(":
            label = line[at : at + 1]
            if label not in tuple("01234") or line[at + 1 : at + 2] != " ":
                column, what = at + 1, f"label {line[at:].split(' ')[0]!r}; allowed: 0 to 4, then a space"
                break
            if depth == 0 and at > 1 and line[: at - 1].strip(" "):
                column, what = at, "a second tree begins"
                break
            depth += 1
        elif letter == ")":
            depth -= 1
            if depth < 0:
                column, what = at, "a parenthesis closes that was not opened"
                break
    if column == len(line) and depth == 0:
        what = "expected (label word) or (label tree tree) with one space between"
    return DataError(f"{file}, line {number}, column {column}: {what}")


def _label_lines(file: Path) -> Iterator[Row]:
    for number, line in _lines(file, "latin-1"):
        label, _, text = line.partition(" ")
        yield number, label, " ".join(word for word in text.split(" ") if word)


def _words(text: str) -> str:
    return " ".join(_WORD.findall(text))


def _csv_rows(file: Path) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(_decoded(file), newline=""), doublequote=True, strict=True)
    try:
        for row in reader:
            if len(row) < 2:
                raise DataError(f"{file}, line {reader.line_num}: {len(row)} columns; expected a label and its texts")
            yield reader.line_num, row[0].strip(), _words(" ".join(row[1:]).replace("\\n", " "))
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: {error}") from error


def _nli_rows(file: Path) -> Iterator[Row]:
    for number, line in _lines(file):
        try:
            row = json.loads(line)
            label, left, right = row["gold_label"], row["sentence1"], row["sentence2"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(
                f"{file}, line {number}: expected an object with gold_label, sentence1 and sentence2 ({error!r})"
            ) from error
        if label != "-":  # no agreement among those who labelled it
            yield number, label, (_words(left), _words(right))


def _sick_rows(file: Path) -> Iterator[Row]:
    for number, line in _lines(file):
        columns = line.split("\t")
        if number == 1 and columns[0] == "pair_ID":
            continue
        if len(columns) != 5:
            raise DataError(f"{file}, line {number}: {len(columns)} columns; expected 5 with a TAB between")
        yield number, columns[4].strip().lower(), (_words(columns[1]), _words(columns[2]))


# --------------------------------------------------------------------------------------------------------- splits


def load_splits(
    path: Path | str, kind: Kind, lower: bool = True, phrases: bool = True, classes: Sequence[str] | None = None,
    valid: float = 0.1, test: float = 0.1,
) -> Splits:  # fmt: skip
    """Train, validation and a test set that is not read yet.

    Where there is a test file it is the test set, else the texts of the training file with a share below `test`. The
    validation file is used where there is one, else the next `valid` of shares. No text of validation or test stays in
    the training set; of Penn trees, phrases are for training alone. Raises DataError.
    """
    path = Path(path)
    whole = load_text(path, kind, "train", lower, classes=classes)
    official = _exists(path, kind, "test")

    def read_test() -> TextData:
        if official:
            return load_text(path, kind, "test", lower, classes=whole.classes)
        return split(load_text(path, kind, "train", lower, classes=whole.classes), 0.0, test)[0]

    low = 0.0 if official else test
    if _exists(path, kind, "valid"):
        held, high = load_text(path, kind, "valid", lower, classes=whole.classes), low
    else:
        held, high = split(whole, low, low + valid)[0], low + valid
    rest = split(whole, high, 1.0)[0]
    if kind in ("sst5", "sst2") and phrases:
        sentences = split(load_text(path, "sst5", "train", lower), high, 1.0)[0]
        rest = _phrases_of(sentences, load_text(path, kind, "train", lower, phrases=True))
    hidden = {share(text) for text in held.texts} | {at for text in whole.texts if (at := share(text)) < low}
    kept = [i for i, text in enumerate(rest.texts) if share(text) not in hidden]
    return Splits(rest.take(kept), held, HeldOut(read_test))


def _phrases_of(sentences: TextData, phrases: TextData) -> TextData:
    """The phrases that occur in the sentences given, and not only in sentences that are held back."""
    inside: set[str] = set()
    for text in sentences.texts:
        words = _joined(text).split(" ")
        inside.update(" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1))
    return phrases.take([i for i, text in enumerate(phrases.texts) if text in inside])


def _exists(path: Path, kind: str, name: str) -> bool:
    if not path.is_dir():
        return False
    try:
        return _file(path, kind, name).is_file()
    except DataError:
        return False
