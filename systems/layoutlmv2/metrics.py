"""Scores: entities, receipts' fields, answers, labels. All in [0, 1]."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from systems.layoutlmv2.config import InputError

ANLS_THRESHOLD = 0.5


class F1(NamedTuple):
    """f1, precision, recall; found: (correct, predicted, expected) entities."""

    f1: float
    precision: float
    recall: float
    found: tuple[int, int, int]


def entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """(name, first, last) of each entity in BIO tags; an I- of another name, or after O, starts one too."""
    spans: list[tuple[str, int, int]] = []
    name, start = "", 0
    for k, tag in enumerate([*tags, "O"]):
        kind, _, here = tag.partition("-")
        if name and (kind != "I" or here != name):
            spans.append((name, start, k - 1))
            name = ""
        if kind in ("B", "I") and not name:
            name, start = here, k
    return spans


def encode(spans: Sequence[tuple[str, int, int]], length: int) -> list[str]:
    """BIO tags of entities that do not overlap: the inverse of `entities`. Raises InputError on an overlap."""
    tags = ["O"] * length
    for name, first, last in spans:
        if any(tag != "O" for tag in tags[first : last + 1]):
            raise InputError(f"entity {name!r} of words {first} to {last} overlaps another")
        tags[first : last + 1] = [f"B-{name}"] + [f"I-{name}"] * (last - first)
    return tags


def score(correct: int, predicted: int, expected: int) -> F1:
    """F1 from counts; 0 where there is nothing to divide by."""
    precision = correct / predicted if predicted else 0.0
    recall = correct / expected if expected else 0.0
    both = precision + recall
    return F1(2 * precision * recall / both if both else 0.0, precision, recall, (correct, predicted, expected))


def entity_f1(gold: Sequence[Sequence[str]], said: Sequence[Sequence[str]]) -> F1:
    """Micro F1 over entities that agree in name, first and last word. gold, said: BIO tags, a list a page."""
    correct = predicted = expected = 0
    if len(gold) != len(said):
        raise InputError(f"{len(gold)} pages of tags and {len(said)} of predictions")
    for number, (one, other) in enumerate(zip(gold, said, strict=True)):
        if len(one) != len(other):
            raise InputError(f"page {number}: {len(one)} tags and {len(other)} predictions")
        wanted, found = set(entities(one)), set(entities(other))
        correct += len(wanted & found)
        predicted += len(found)
        expected += len(wanted)
    return score(correct, predicted, expected)


def sroie_f1(gold: Sequence[Mapping[str, str]], said: Sequence[Mapping[str, str]]) -> F1:
    """Micro F1 over fields whose texts are equal but for white space, as SROIE's task 3 counts them."""
    correct = predicted = expected = 0
    for one, other in zip(gold, said, strict=True):
        wanted = {(name, " ".join(text.split())) for name, text in one.items() if text.strip()}
        found = {(name, " ".join(text.split())) for name, text in other.items() if text.strip()}
        correct += len(wanted & found)
        predicted += len(found)
        expected += len(wanted)
    return score(correct, predicted, expected)


def similarity(one: str, other: str) -> float:
    """1 - edit distance / longer length, of texts in lower case with single spaces; 1 for two empty ones."""
    from rapidfuzz.distance import Levenshtein

    return float(Levenshtein.normalized_similarity(plain(one), plain(other)))


def plain(text: str) -> str:
    """Lower case, single spaces."""
    return re.sub(r"\s+", " ", text.strip().lower())


def anls(answers: Sequence[Sequence[str]], said: Sequence[str], threshold: float = ANLS_THRESHOLD) -> float:
    """Average normalised Levenshtein similarity (Biten et al., 2019): the best answer counts, below 0.5 none does."""
    if len(answers) != len(said):
        raise InputError(f"{len(answers)} questions and {len(said)} answers")
    total = 0.0
    for accepted, text in zip(answers, said, strict=True):
        best = max((similarity(one, text) for one in accepted), default=0.0)
        total += best if best >= threshold else 0.0
    return total / len(said) if said else 0.0


def accuracy(gold: Sequence[object], said: Sequence[object]) -> float:
    """The share that agrees."""
    if len(gold) != len(said):
        raise InputError(f"{len(gold)} labels and {len(said)} predictions")
    return sum(one == other for one, other in zip(gold, said, strict=True)) / len(gold) if gold else 0.0


def auc(scores: Sequence[float], labels: Sequence[bool]) -> float:
    """Area under the ROC curve: how often a positive scores above a negative, ties counting half. NaN without both."""
    import numpy as np
    from scipy.stats import rankdata

    marks = np.asarray(labels, bool)
    positive, negative = int(marks.sum()), int((~marks).sum())
    if not positive or not negative:
        return float("nan")
    ranks = rankdata(np.asarray(scores, float))
    return float((ranks[marks].sum() - positive * (positive + 1) / 2) / (positive * negative))
