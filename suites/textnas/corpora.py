"""Small labelled sets made here: sentences whose class depends on words, on their order, or on both."""

import numpy as np
import torch

from systems.textnas import Task, TextData
from systems.textnas.vocabulary import Embedding, Vocabulary

CLASSES = ("a", "b")
WORDS = 24


def sentences(rows, seed=0, order=True):
    """Two classes: which of two marker words comes first, among random others; without `order`, which one is there."""
    rng = np.random.default_rng(seed)
    texts, labels = [], []
    for _ in range(rows):
        words = [f"w{i}" for i in rng.integers(WORDS, size=int(rng.integers(4, 9)))]
        label = int(rng.integers(2))
        at = sorted(rng.choice(len(words) + 1, 2, replace=False))
        markers = ("first", "second") if label else ("second", "first")
        if not order:
            markers = (markers[0],) * 2
        words.insert(int(at[1]), markers[1])
        words.insert(int(at[0]), markers[0])
        texts.append(" ".join(words))
        labels.append(label)
    return TextData(tuple(texts), np.array(labels), CLASSES, "made here")


def task(rows=192, seed=0, order=True, **settings):
    """A task of such sentences, small enough to search on in seconds."""
    train, valid = sentences(rows, seed, order), sentences(64, seed + 1, order)
    vocabulary = Vocabulary.of(train, valid)
    settings = {"hidden": 16, "batch": 32, "lr": 5e-3, **settings}
    return Task(
        vocabulary.encode(train), vocabulary.encode(valid), Embedding.random(16).matrix(vocabulary),
        vocabulary=vocabulary, **settings,
    )  # fmt: skip


def label_lines(folder, rows=240, seed=0):
    """A folder with a train.txt in the layout of label and text."""
    data = sentences(rows, seed)
    lines = [f"{label} {text}" for label, text in zip(data.labels, data.texts, strict=True)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.txt").write_text("\n".join(lines) + "\n")
    return folder


def one_thread():
    """Sums in one order."""
    torch.set_num_threads(1)
