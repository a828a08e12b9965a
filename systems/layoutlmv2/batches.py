"""From pages to batches: word pieces, windows over long pages, padding; and back from windows to words.

    tokenizer = Tokenizer.from_vocab("vocab.txt")
    parts = windows(page, tokenizer, length=512, stride=128)
    logits = model(collate(parts))
    merge(parts, [row.numpy() for row in logits])        # (words, labels): every word has one answer
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from systems.layoutlmv2.config import InputError
from systems.layoutlmv2.model import Batch
from systems.layoutlmv2.pages import Page, pixels

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
STEP = 8
"""Batches are padded to a multiple of this many tokens."""


class Tokenizer:
    """Uncased WordPiece, as BERT's: `from_vocab` reads a vocabulary, `train` makes one."""

    def __init__(self, pieces: Sequence[str]) -> None:
        from tokenizers import Tokenizer as Fast
        from tokenizers import models, normalizers, pre_tokenizers

        self.pieces = list(pieces)
        index = {piece: k for k, piece in enumerate(self.pieces)}
        missing = [name for name in SPECIAL if name not in index]
        if missing:
            raise InputError(f"a vocabulary of {len(self.pieces)} pieces without {', '.join(missing)}")
        self.pad, self.unk, self.cls, self.sep, self.mask = (index[name] for name in SPECIAL)
        self._fast: Any = Fast(models.WordPiece(index, unk_token="[UNK]", max_input_chars_per_word=100))
        self._fast.normalizer = normalizers.BertNormalizer(lowercase=True)
        self._fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()

    @classmethod
    def from_vocab(cls, path: Path | str) -> Tokenizer:
        """A vocabulary file, a piece a line. Raises InputError."""
        try:
            lines = Path(path).read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read as a vocabulary: {error}") from error
        return cls(lines[:-1] if lines and not lines[-1] else lines)

    @classmethod
    def train(cls, texts: Iterable[str], size: int = 4096) -> Tokenizer:
        """A vocabulary of at most `size` pieces from text; the same for the same text."""
        from tokenizers import Tokenizer as Fast
        from tokenizers import models, normalizers, pre_tokenizers, trainers

        fast: Any = Fast(models.WordPiece(unk_token="[UNK]"))
        fast.normalizer = normalizers.BertNormalizer(lowercase=True)
        fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        letters = [*"abcdefghijklmnopqrstuvwxyz0123456789", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789")]
        trainer = trainers.WordPieceTrainer(
            vocab_size=size, special_tokens=list(SPECIAL), initial_alphabet=[c for c in letters if len(c) == 1],
            show_progress=False,
        )  # fmt: skip
        fast.train_from_iterator(texts, trainer)
        vocabulary = fast.get_vocab()
        return cls(sorted(vocabulary, key=vocabulary.__getitem__))

    def save(self, path: Path | str) -> None:
        """Write the vocabulary file."""
        from systems.layoutlmv2.checkpoint import written_whole

        with written_whole(Path(path)) as file:
            file.write_text("".join(f"{piece}\n" for piece in self.pieces), encoding="utf-8")

    def words(self, words: Sequence[str]) -> list[list[int]]:
        """The pieces of each word; a word of which nothing is left is one unknown piece."""
        found: list[list[int]] = [[] for _ in words]
        encoded = self._fast.encode(list(words), is_pretokenized=True, add_special_tokens=False)
        for piece, word in zip(encoded.ids, encoded.word_ids, strict=True):
            found[word].append(piece)
        return [pieces or [self.unk] for pieces in found]

    def __len__(self) -> int:
        return len(self.pieces)


@dataclass(frozen=True)
class Window:
    """A run of whole words of one page that fits into a model.

    ids, segment, word: (T,) int64, word -1 for what is no word of the page; first: (T,) bool, a word's first piece;
    box: (T, 4) int64; image: (3, S, S) uint8; start, stop: its words; words: those of the whole page.
    """

    ids: np.ndarray
    segment: np.ndarray
    box: np.ndarray
    word: np.ndarray
    first: np.ndarray
    image: np.ndarray
    start: int
    stop: int
    words: int
    pad: int

    def depth(self) -> np.ndarray:
        """(stop - start,): how far each word lies from the nearest edge at which its page was cut."""
        at = np.arange(self.start, self.stop)
        before = at - self.start if self.start else np.full(at.shape, self.words)
        after = self.stop - 1 - at if self.stop < self.words else np.full(at.shape, self.words)
        return np.minimum(before, after)


def windows(
    page: Page, tokenizer: Tokenizer, length: int = 512, stride: int = 128, question: str = "", size: int = 224,
    sep_box: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> list[Window]:  # fmt: skip
    """Cut a page into windows of at most `length` tokens that share about `stride` tokens with the next.

    Every word lies whole in some window; only a word of more pieces than a window holds loses its last ones. An empty
    page has one window without words. Raises InputError when question and stride leave no room.
    """
    asked = [piece for pieces in tokenizer.words(question.split()) for piece in pieces] if question else []
    room = length - 2 - (len(asked) + 1 if asked else 0)
    if room <= stride or stride < 0:
        raise InputError(
            f"length {length} holds {room} pieces beside the question, expected more than the stride {stride}"
        )
    pieces = [found[:room] for found in tokenizer.words(page.texts)]
    counts = np.array([len(found) for found in pieces], np.int64)
    image = pixels(page, size)
    found = []
    start = 0
    while True:
        stop, used = start, 0
        while stop < len(pieces) and used + counts[stop] <= room:
            used += int(counts[stop])
            stop += 1
        found.append(_window(page, pieces, start, stop, tokenizer, asked, image, sep_box))
        if stop >= len(pieces):
            return found
        shared, back = 0, stop
        while back - 1 > start and shared + counts[back - 1] <= stride:
            back -= 1
            shared += int(counts[back])
        start = back


def _window(
    page: Page, pieces: Sequence[Sequence[int]], start: int, stop: int, tokenizer: Tokenizer, asked: Sequence[int],
    image: np.ndarray, sep_box: tuple[int, int, int, int],
) -> Window:  # fmt: skip
    nowhere = (0, 0, 0, 0)
    ids, box, word, first = [tokenizer.cls], [nowhere], [-1], [False]
    if asked:
        ids += [*asked, tokenizer.sep]
        box += [nowhere] * len(asked) + [sep_box]
        word += [-1] * (len(asked) + 1)
        first += [False] * (len(asked) + 1)
    head = len(ids) if asked else 0
    for number in range(start, stop):
        found = pieces[number]
        ids += found
        box += [page.words[number].box] * len(found)
        word += [number] * len(found)
        first += [True] + [False] * (len(found) - 1)
    ids.append(tokenizer.sep)
    box.append(sep_box)
    word.append(-1)
    first.append(False)
    segment = np.zeros(len(ids), np.int64)
    if asked:
        segment[head:] = 1
    return Window(
        np.array(ids, np.int64), segment, np.array(box, np.int64), np.array(word, np.int64), np.array(first, bool),
        image, start, stop, len(page.words), tokenizer.pad,
    )  # fmt: skip


def collate(parts: Sequence[Window], step: int = STEP) -> Batch:
    """One batch, padded to the longest window, rounded up to a multiple of `step`. Raises InputError on none."""
    if not parts:
        raise InputError("no windows to collate, expected at least one")
    length = -(-max(len(part.ids) for part in parts) // step) * step

    def padded(name: str, fill: int) -> torch.Tensor:
        first = getattr(parts[0], name)
        out = np.full((len(parts), length, *first.shape[1:]), fill, np.int64)
        for row, part in zip(out, parts, strict=True):
            row[: len(part.ids)] = getattr(part, name)
        return torch.from_numpy(out)

    mask = torch.zeros(len(parts), length, dtype=torch.bool)
    for row, part in enumerate(parts):
        mask[row, : len(part.ids)] = True
    return Batch(
        ids=padded("ids", parts[0].pad),
        segment=padded("segment", 0),
        pos=torch.arange(length).expand(len(parts), -1).contiguous(),
        box=padded("box", 0),
        mask=mask,
        image=torch.from_numpy(np.stack([part.image for part in parts])),
    )


def merge(parts: Sequence[Window], values: Sequence[np.ndarray]) -> np.ndarray:
    """(words, K): for each word of a page the values at its first piece, from the window that shows most around it.

    values: (T or more, K) a window. The order of the windows does not matter.
    """
    order = sorted(range(len(parts)), key=lambda k: parts[k].start)
    total = parts[0].words
    out = np.zeros((total, values[0].shape[-1]), values[0].dtype)
    best = np.full(total, -1)
    for k in order:
        part = parts[k]
        depth = part.depth()
        better = depth > best[part.start : part.stop]
        rows = values[k][: len(part.ids)][part.first]
        out[part.start : part.stop][better] = rows[better]
        best[part.start : part.stop] = np.maximum(best[part.start : part.stop], depth)
    return out


def augment(batch: Batch, random: np.random.Generator, low: float = 0.8, high: float = 1.1, shift: int = 80) -> Batch:
    """Scale and move the boxes of each page at random, and its picture the same way; what leaves the page is clipped.

    low, high: of the scale; shift: the most that a page moves, in steps of the grid. Boxes (0, 0, 0, 0) stay.
    """
    from PIL import Image

    box, image = batch.box.numpy().copy(), batch.image.numpy().copy()
    size = image.shape[-1]
    for row in range(len(batch)):
        scale = random.uniform(low, high)
        dx, dy = random.uniform(-shift, shift, 2) + 500 * (1 - scale)
        real = box[row].any(-1)
        moved = np.floor(box[row] * scale + np.array([dx, dy, dx, dy]))
        box[row][real] = np.clip(moved, 0, 1000).astype(np.int64)[real]
        a, b, c = 1 / scale, -dx * size / 1000 / scale, -dy * size / 1000 / scale
        picture = Image.fromarray(image[row].transpose(1, 2, 0))
        picture = picture.transform(
            (size, size), Image.Transform.AFFINE, (a, 0, b, 0, a, c), Image.Resampling.BILINEAR,
            fillcolor=(255, 255, 255),
        )  # fmt: skip
        image[row] = np.asarray(picture).transpose(2, 0, 1)
    return batch.with_(box=torch.from_numpy(box), image=torch.from_numpy(image))
