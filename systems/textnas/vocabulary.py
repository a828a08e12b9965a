"""Words to numbers, numbers to vectors, and batches of sentences of like length.

    vocabulary = Vocabulary.of(train, valid)
    vectors = Embedding.wordllama().matrix(vocabulary)          # (words, 256) float32
    for batch in Batches(vocabulary.encode(train), 128).epoch(seed=0): batch.tokens, batch.lengths, batch.labels
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from systems.textnas.data import UNKNOWN, TextData
from systems.textnas.space import DataError

PADDING_ID, UNKNOWN_ID = 0, 1
LONGEST = 64
STANDARD_DEVIATION = 0.1
GLOVE_FILE = "glove.840B.300d.txt"


Find = Callable[[Sequence[str]], dict[str, np.ndarray]]
"""Words to the vectors of those that have one."""


@dataclass(frozen=True)
class Encoded:
    """Sentences as numbers, one after the other. words: (total,) int64; starts: (sentences + 1,) int64.

    A set of n pairs has 2 n sentences: the left and right one of pair i are 2 i and 2 i + 1.
    """

    words: np.ndarray
    starts: np.ndarray
    labels: np.ndarray
    classes: int
    pair: bool

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        """(sentences,) int64."""
        return np.diff(self.starts)

    def take(self, rows: np.ndarray) -> Encoded:
        """Some of the rows, in the order given."""
        sentences = np.stack((2 * rows, 2 * rows + 1), 1).ravel() if self.pair else rows
        parts = [self.words[self.starts[i] : self.starts[i + 1]] for i in sentences]
        starts = np.concatenate(([0], np.cumsum(self.lengths[sentences])))
        words = np.concatenate(parts) if parts else self.words[:0]
        return Encoded(words, starts, self.labels[rows], self.classes, self.pair)


class Vocabulary:
    """Words and their numbers: 0 pads, 1 stands for words it does not hold."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = ("<pad>", UNKNOWN, *words)
        self.numbers = {word: i for i, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    @staticmethod
    def of(*parts: TextData) -> Vocabulary:
        """All words of some sets, in order of their first occurrence."""
        found: dict[str, None] = {}
        for part in parts:
            for text in part.texts:
                for side in (text,) if isinstance(text, str) else text:
                    found.update(dict.fromkeys(side.split(" ")))
        found.pop(UNKNOWN, None)
        found.pop("<pad>", None)
        return Vocabulary(tuple(found))

    def extended(self, *parts: TextData) -> Vocabulary:
        """With the new words of some sets behind those that it has."""
        new = [word for word in Vocabulary.of(*parts).words[2:] if word not in self.numbers]
        return Vocabulary((*self.words[2:], *new))

    def encode(self, data: TextData, longest: int = LONGEST) -> Encoded:
        """Sentences as numbers, cut after `longest` words."""
        numbers = self.numbers
        sides = [side for text in data.texts for side in ((text,) if isinstance(text, str) else text)]
        rows = [[numbers.get(word, UNKNOWN_ID) for word in side.split(" ")[:longest]] for side in sides]
        starts = np.concatenate(([0], np.cumsum([len(row) for row in rows]))).astype(np.int64)
        words = np.fromiter((number for row in rows for number in row), np.int64, int(starts[-1]))
        return Encoded(words, starts, data.labels, len(data.classes), data.pair)


# --------------------------------------------------------------------------------------------------------- vectors


class Embedding:
    """Where word vectors come from; `matrix` gives those of a vocabulary, `coverage` the share of it that had one."""

    def __init__(self, name: str, width: int, find: Find, seed: int) -> None:
        self.name, self.width, self.seed = name, width, seed
        self.coverage = 0.0
        self._find = find

    @staticmethod
    def random(dim: int = 300, seed: int = 0) -> Embedding:
        """Normal vectors, a word's own wherever it stands in a vocabulary."""
        return Embedding(f"random {dim}", dim, lambda words: {}, seed)

    @staticmethod
    def glove(path: Path | str, seed: int = 0) -> Embedding:
        """Vectors of a text file, a word and its numbers a line. Raises DataError naming the line of a wrong width."""
        path = Path(path)
        if not path.is_file():
            raise DataError(f"{path} does not exist; expected word vectors, a word and its numbers a line")
        with path.open(encoding="utf-8") as file:
            width = len(file.readline().rstrip("\n").split(" ")) - 1
        if width < 1:
            raise DataError(f"{path}, line 1: no numbers after the word; expected a word and its vector")
        return Embedding(f"glove {width}", width, lambda words: _glove_rows(path, width, set(words)), seed)

    @staticmethod
    def wordllama(dim: int = 256, seed: int = 0) -> Embedding:
        """The token embeddings inside the package wordllama: a word is the mean of its pieces, scaled to 0.1."""
        folder = _wordllama_folder()
        if folder is None:
            raise DataError("the package wordllama is not installed: pip install wordllama, or take Embedding.random")
        return Embedding(f"wordllama {dim}", dim, lambda words: _wordllama_rows(folder, dim, words), seed)

    @staticmethod
    def best(folder: Path | str | None = None, seed: int = 0) -> Embedding:
        """GloVe where its file is in `folder`, else those of wordllama where it is installed, else random ones."""
        if folder is not None and (Path(folder) / GLOVE_FILE).is_file():
            return Embedding.glove(Path(folder) / GLOVE_FILE, seed)
        return Embedding.wordllama(seed=seed) if _wordllama_folder() else Embedding.random(seed=seed)

    def matrix(self, vocabulary: Vocabulary) -> Tensor:
        """(words, width) float32; words without a vector get a random one of standard deviation 0.1, padding zeros."""
        generator = np.random.default_rng(self.seed)
        found = self._find(vocabulary.words)
        matrix = generator.normal(0.0, STANDARD_DEVIATION, (len(vocabulary), self.width)).astype(np.float32)
        for i, word in enumerate(vocabulary.words):
            if word in found:
                matrix[i] = found[word]
        matrix[PADDING_ID] = 0.0
        self.coverage = sum(word in found for word in vocabulary.words[2:]) / max(len(vocabulary) - 2, 1)
        return torch.from_numpy(matrix)


def _glove_rows(path: Path, width: int, wanted: set[str]) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    with path.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, 1):
            word, *values = line.rstrip("\n").rsplit(" ", width)
            if len(values) != width:
                raise DataError(f"{path}, line {number}: {len(values)} numbers after {word[:20]!r}; expected {width}")
            if word in wanted:
                try:
                    found[word] = np.array(values, dtype=np.float32)
                except ValueError as error:
                    raise DataError(f"{path}, line {number}: not all of {width} values are numbers") from error
    return found


def _wordllama_folder() -> Path | None:
    """Where the package keeps its files; it is not imported, since only the files are wanted."""
    spec = importlib.util.find_spec("wordllama")
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _wordllama_rows(folder: Path, dim: int, words: Sequence[str]) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    weights = sorted((folder / "weights").glob("*.safetensors"))
    tokenizers = sorted((folder / "tokenizers").glob("*tokenizer*.json"))
    if not weights or not tokenizers:
        raise DataError(f"{folder} holds no weights and tokenizer; expected wordllama 0.4, which carries both")
    table = load_file(weights[0])["embedding.weight"].astype(np.float32)
    if table.shape[1] < dim:
        raise DataError(f"the vectors of wordllama have {table.shape[1]} numbers; {dim} were asked for")
    tokenizer = Tokenizer.from_file(str(tokenizers[0]))
    tokenizer.no_padding()
    found = {}
    for word, pieces in zip(words, tokenizer.encode_batch(list(words), add_special_tokens=False), strict=True):
        if pieces.ids:
            found[word] = table[pieces.ids, :dim].mean(0)
    scale = STANDARD_DEVIATION / np.concatenate(list(found.values())).std() if found else 1.0
    return {word: vector * scale for word, vector in found.items()}


# --------------------------------------------------------------------------------------------------------- batches


@dataclass(frozen=True)
class Batch:
    """tokens: (B, T) int64, or (2 B, T) with all left sentences first; lengths: of its rows; labels: (B,) int64."""

    tokens: Tensor
    lengths: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Batch:
        """The same on another device."""
        return Batch(self.tokens.to(device), self.lengths.to(device), self.labels.to(device))


class Batches:
    """Batches of `size` rows of like length, so that little is padding. `fixed`: the same batches every epoch."""

    def __init__(self, data: Encoded, size: int, fixed: bool = False) -> None:
        self.data, self.size, self.fixed = data, size, fixed
        lengths = data.lengths
        self._longest = lengths.reshape(-1, 2).max(1) if data.pair else lengths
        self._kept: list[Batch] = []

    def __len__(self) -> int:
        return -(-len(self.data) // self.size)

    def epoch(self, seed: int) -> Iterator[Batch]:
        """Every row once. Rows of equal length are mixed, and so is the order of the batches, both by `seed`."""
        generator = np.random.default_rng(seed)
        if self.fixed:
            if not self._kept:
                self._kept = [self.batch(rows) for rows in self._cut(np.arange(len(self.data)))]
            for i in generator.permutation(len(self._kept)):
                yield self._kept[i]
            return
        cut = self._cut(generator.permutation(len(self.data)))
        for i in generator.permutation(len(cut)):
            yield self.batch(cut[i])

    def looked_up(self, matrix: Tensor) -> Batches:
        """The same batches every epoch, with the vectors of their words in place of the numbers, looked up once."""
        made = Batches(self.data, self.size, fixed=True)
        for rows in made._cut(np.arange(len(self.data))):
            batch = made.batch(rows)
            made._kept.append(Batch(matrix[batch.tokens], batch.lengths, batch.labels))
        return made

    def in_order(self) -> Iterator[tuple[np.ndarray, Batch]]:
        """Every row once, by length: (rows, batch), kept for the next time."""
        cut = self._cut(np.arange(len(self.data)))
        if not self._kept:
            self._kept = [self.batch(rows) for rows in cut]
        yield from zip(cut, self._kept, strict=True)

    def _cut(self, order: np.ndarray) -> list[np.ndarray]:
        by_length = order[np.argsort(self._longest[order], kind="stable")]
        return [by_length[at : at + self.size] for at in range(0, len(by_length), self.size)]

    def batch(self, rows: np.ndarray) -> Batch:
        """The batch of some rows."""
        data = self.data
        sentences = np.concatenate((2 * rows, 2 * rows + 1)) if data.pair else rows
        starts, lengths = data.starts[sentences], data.starts[sentences + 1] - data.starts[sentences]
        places = np.arange(int(lengths.max()))
        inside = places < lengths[:, None]
        at = np.where(inside, starts[:, None] + places, 0)
        tokens = np.where(inside, data.words[at], PADDING_ID)
        return Batch(torch.from_numpy(tokens), torch.from_numpy(lengths), torch.from_numpy(data.labels[rows]))
