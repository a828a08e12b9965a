"""Fine-tuning and prediction: tags for words, labels for pages, answers to questions.

    reader = Reader(TokenTagger(TINY, len(names)), tokenizer, names)
    fit(reader, examples, steps=400)
    predict_tags(reader, pages)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from systems.layoutlmv2 import training
from systems.layoutlmv2.batches import Tokenizer, Window, augment, collate, merge, windows
from systems.layoutlmv2.checkpoint import label_names, load, save
from systems.layoutlmv2.config import CheckpointError, Config, InputError
from systems.layoutlmv2.metrics import accuracy, anls, entity_f1
from systems.layoutlmv2.model import Batch, PageClassifier, QuestionAnswerer, TokenTagger
from systems.layoutlmv2.pages import Page
from systems.layoutlmv2.sheet import Example

LONGEST_ANSWER = 30
IGNORED = -100


@dataclass
class Reader:
    """A model with a head, its vocabulary, and the names of its labels, in order."""

    model: TokenTagger | PageClassifier | QuestionAnswerer
    tokenizer: Tokenizer
    names: list[str]

    @property
    def cfg(self) -> Config:
        """Sizes of the model."""
        return self.model.layoutlmv2.cfg

    @property
    def length(self) -> int:
        """Most tokens of a window."""
        return min(512, self.cfg.max_positions)

    def save(self, folder: Path | str, dtype: torch.dtype | None = None) -> None:
        """Write config.json, model.safetensors and vocab.txt into a folder."""
        save(self.model, folder, self.names, dtype)
        self.tokenizer.save(Path(folder) / "vocab.txt")

    @classmethod
    def load(cls, folder: Path | str, task: str = "tag", names: Sequence[str] | None = None) -> Reader:
        """Read such a folder. names: of the labels of a new head. Raises CheckpointError or InputError."""
        folder = Path(folder)
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no folder there, expected config.json, model.safetensors and vocab.txt")
        found = list(names) if names is not None else label_names(folder)
        vocabulary = folder / "vocab.txt"
        tokenizer = Tokenizer.from_vocab(vocabulary)
        model: Any = load(folder, task, labels=len(found) or None)  # type: ignore[call-overload]
        rows = model.layoutlmv2.cfg.vocab_size
        if len(tokenizer) > rows:
            raise CheckpointError(f"{vocabulary}: {len(tokenizer)} pieces for a model of {rows}: another vocabulary")
        return cls(model, tokenizer, found)


def bio(names: Sequence[str]) -> list[str]:
    """O, and B- and I- of each name: the labels of a tagger."""
    return ["O", *(f"{part}-{name}" for name in names for part in "BI")]


# ------------------------------------------------------------------------------------------------ examples


@dataclass(frozen=True)
class Item:
    """A window with its target: (T,) labels, a label, or (start, end) tokens."""

    window: Window
    target: Any


def prepare(reader: Reader, examples: Sequence[Example]) -> list[Item]:
    """Windows and targets of labelled examples, as the reader's model takes them. Raises InputError on unknown tags."""
    index = {name: k for k, name in enumerate(reader.names)}
    size, stride = reader.cfg.image_size, min(128, reader.length // 4)
    items = []
    for example in examples:
        if isinstance(reader.model, QuestionAnswerer):
            for question in example.questions:
                parts = windows(example.page, reader.tokenizer, reader.length, stride, question.text, size)
                items += [Item(part, _span(part, question.span)) for part in parts]
            continue
        parts = windows(example.page, reader.tokenizer, reader.length, stride, size=size)
        if isinstance(reader.model, PageClassifier):
            if example.label not in index:
                raise InputError(f"{example.name}: label {example.label!r}, expected one of {', '.join(index)}")
            items.append(Item(parts[0], index[example.label]))
            continue
        if len(example.tags) != len(example.page.words):
            raise InputError(f"{example.name}: {len(example.page.words)} words and {len(example.tags)} tags")
        unknown = sorted(set(example.tags) - set(index))
        if unknown:
            raise InputError(f"{example.name}: tags {', '.join(unknown)}, expected only {', '.join(index)}")
        labels = np.array([index[tag] for tag in example.tags], np.int64)
        for part in parts:
            target = np.full(len(part.ids), IGNORED, np.int64)
            target[part.first] = labels[part.start : part.stop]
            items.append(Item(part, target))
    return items


def _span(part: Window, span: tuple[int, int] | None) -> tuple[int, int]:
    """First and last token of words `span`; (0, 0), the [CLS] token, where the window does not hold them."""
    if span is None or span[0] < part.start or span[1] >= part.stop:
        return 0, 0
    return int(np.flatnonzero(part.word == span[0])[0]), int(np.flatnonzero(part.word == span[1])[-1])


def class_weights(reader: Reader, items: Sequence[Item]) -> Tensor:
    """(labels,): the inverse square root of how often each label is there, with mean 1 over what is there."""
    counts = np.zeros(len(reader.names))
    for item in items:
        labels = np.atleast_1d(np.asarray(item.target))
        counts += np.bincount(labels[labels >= 0], minlength=len(counts))
    weight = np.where(counts > 0, 1 / np.sqrt(np.maximum(counts, 1)), 0.0)
    return torch.tensor(weight / max(weight[counts > 0].mean(), 1e-12), dtype=torch.float32)


def loss_of(model: nn.Module, task: str, batch: Batch, targets: Sequence[Any], weight: Tensor | None = None) -> Tensor:
    """The loss of a batch; task as on the heads: "tag", "classify", "answer"."""
    device = batch.ids.device
    if task == "tag":
        goal = torch.full(batch.ids.shape, IGNORED, dtype=torch.int64)
        for row, target in zip(goal, targets, strict=True):
            row[: len(target)] = torch.from_numpy(target)
        logits = model(batch)
        return F.cross_entropy(logits.float().flatten(0, 1), goal.flatten().to(device), weight, ignore_index=IGNORED)
    if task == "classify":
        return F.cross_entropy(model(batch).float(), torch.tensor(targets, device=device), weight)
    goal = torch.tensor(targets, device=device)
    start, end = (logits.float().masked_fill(~batch.mask, -1e4) for logits in model(batch))
    return (F.cross_entropy(start, goal[:, 0]) + F.cross_entropy(end, goal[:, 1])) / 2


def fit(
    reader: Reader, examples: Sequence[Example], *, steps: int = 1000, lr: float = 5e-4, batch: int = 8,
    seed: int = 0, moved: bool = True, weighted: bool = False, dev: Sequence[Example] = (), patience: int | None = None,
    refresh: Callable[[int], Sequence[Example]] | None = None, **settings: Any,
) -> training.History:  # fmt: skip
    """Train a reader on labelled examples. moved: with box augmentation; weighted: by `class_weights`.

    dev: examples to score every `evaluate_every` steps, kept best with `patience`. refresh: new examples for each
    pass over 64 batches, from its number (for data without end). settings: as of `training.train`.
    """
    items = prepare(reader, examples)
    if not items:
        raise InputError("no examples to train on")
    device = next(reader.model.parameters()).device
    weight = class_weights(reader, items).to(device) if weighted and reader.model.task != "answer" else None
    task = reader.model.task
    held = {"pass": 0, "items": items}

    def loss_at(model: nn.Module, step: int, rank: int, world: int) -> Tensor:
        if refresh is not None and step // REFRESH_STEPS != held["pass"]:
            held["pass"] = step // REFRESH_STEPS
            held["items"] = prepare(reader, refresh(step // REFRESH_STEPS))
        pool: Any = held["items"]
        lengths = [len(item.window.ids) for item in pool]
        part = [pool[k] for k in training.picks(lengths, batch, step, seed)[rank::world]]
        pages = collate([item.window for item in part])
        if moved:
            pages = augment(pages, np.random.default_rng([seed, 5, step, rank]))
        return loss_of(model, task, pages.to(device), [item.target for item in part], weight)

    evaluate = (lambda: evaluate_reader(reader, dev)[0]) if dev else None
    return training.train(
        reader.model, loss_at, steps=steps, lr=lr, seed=seed, evaluate=evaluate, patience=patience, **settings
    )


REFRESH_STEPS = 64


# ------------------------------------------------------------------------------------------------ prediction


def _batches(parts: Sequence[Window], size: int) -> Iterator[list[int]]:
    """Indexes of windows of like length, so that little of a batch is padding."""
    order = sorted(range(len(parts)), key=lambda k: (len(parts[k].ids), k))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _outputs(reader: Reader, parts: Sequence[Window], size: int) -> list[Any]:
    """What the model gives for each window, on the CPU, in order."""
    found: list[Any] = [None] * len(parts)
    device = next(reader.model.parameters()).device
    reader.model.eval()
    with torch.inference_mode():
        for chosen in _batches(parts, size):
            given = reader.model(collate([parts[k] for k in chosen]).to(device))
            rows = torch.stack(given, -1) if isinstance(given, tuple) else given
            for k, row in zip(chosen, rows.float().cpu().numpy(), strict=True):
                found[k] = row
    return found


def predict_odds(reader: Reader, pages: Sequence[Page], batch: int = 8, stride: int = 128) -> list[np.ndarray]:
    """(words, labels) a page: the probability of each label for each word."""
    stride = min(stride, reader.length // 4)
    cut = [windows(page, reader.tokenizer, reader.length, stride, size=reader.cfg.image_size) for page in pages]
    outputs = iter(_outputs(reader, [part for parts in cut for part in parts], batch))
    found = []
    for parts in cut:
        logits = merge(parts, [next(outputs) for _ in parts])
        odds = np.exp(logits - logits.max(-1, keepdims=True, initial=-np.inf))
        found.append(odds / odds.sum(-1, keepdims=True))
    return found


def predict_tags(
    reader: Reader, pages: Sequence[Page], batch: int = 8, stride: int = 128
) -> list[tuple[list[str], np.ndarray]]:
    """(tags, scores) a page: a tag a word, and its probability (words,)."""
    found = []
    for odds in predict_odds(reader, pages, batch, stride):
        best = odds.argmax(-1)
        found.append(([reader.names[k] for k in best], odds[np.arange(len(best)), best]))
    return found


def predict_labels(reader: Reader, pages: Sequence[Page], batch: int = 8) -> list[str]:
    """The label of each page, read from its first window."""
    stride = min(128, reader.length // 4)
    parts = [windows(page, reader.tokenizer, reader.length, stride, size=reader.cfg.image_size)[0] for page in pages]
    return [reader.names[int(row.argmax())] for row in _outputs(reader, parts, batch)]


def predict_answers(reader: Reader, asked: Sequence[tuple[Page, str]], batch: int = 8) -> list[str]:
    """The answer to each (page, question), as words of the page; empty where none fits."""
    stride = min(128, reader.length // 4)
    cut = [
        windows(page, reader.tokenizer, reader.length, stride, question, reader.cfg.image_size)
        for page, question in asked
    ]
    outputs = iter(_outputs(reader, [part for parts in cut for part in parts], batch))
    answers = []
    for (page, _), parts in zip(asked, cut, strict=True):
        best, span = -np.inf, None
        for part in parts:
            value, words = best_span(part, next(outputs))
            if value > best:
                best, span = value, words
        answers.append(" ".join(page.texts[span[0] : span[1] + 1]) if span else "")
    return answers


def best_span(part: Window, logits: np.ndarray, longest: int = LONGEST_ANSWER) -> tuple[float, tuple[int, int] | None]:
    """(score, words (first, last)) of the best answer of at most `longest` pieces inside the page's part.

    logits: (T or more, 2) of start and end.
    """
    inside = np.flatnonzero(part.word >= 0)
    if not inside.size:
        return -np.inf, None
    start, end = logits[inside, 0], logits[inside, 1]
    total = start[:, None] + end[None, :]
    gap = np.arange(inside.size)[None, :] - np.arange(inside.size)[:, None]
    total[(gap < 0) | (gap >= longest)] = -np.inf
    first, last = np.unravel_index(int(total.argmax()), total.shape)
    return float(total[first, last]), (int(part.word[inside[first]]), int(part.word[inside[last]]))


def evaluate_reader(reader: Reader, examples: Sequence[Example]) -> tuple[float, Mapping[str, float]]:
    """(main score, all scores) on labelled examples: entity F1, accuracy or ANLS."""
    pages = [example.page for example in examples]
    if reader.model.task == "tag":
        found = entity_f1([example.tags for example in examples], [tags for tags, _ in predict_tags(reader, pages)])
        return found.f1, {"f1": found.f1, "precision": found.precision, "recall": found.recall}
    if reader.model.task == "classify":
        value = accuracy([example.label for example in examples], predict_labels(reader, pages))
        return value, {"accuracy": value}
    asked = [(example.page, question) for example in examples for question in example.questions]
    said = predict_answers(reader, [(page, question.text) for page, question in asked])
    value = anls([question.answers for _, question in asked], said)
    return value, {"anls": value}


def read_json(path: Path) -> Any:
    """A JSON file. Raises InputError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from error
