"""Pre-training by three objectives at once (section 2.3 of the paper), on pages without labels.

    corrupted = corrupt(batch, np.random.default_rng(0), tokenizer)
    pretrain(Pretrainer(TINY), pages, tokenizer, steps=1000)

Masked words (MVLM): 15 % of the tokens are asked for, and their place in the picture is blanked. Covered lines (TIA):
15 % of the lines are painted over, and each token says whether its own is. Matching (TIM): 15 % of the pages get
another page's picture and 5 % none, and the first token says whether it is the page's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from systems.layoutlmv2 import training
from systems.layoutlmv2.batches import Tokenizer, Window, collate, windows
from systems.layoutlmv2.config import GRID, InputError
from systems.layoutlmv2.metrics import auc
from systems.layoutlmv2.model import Batch, Pretrainer
from systems.layoutlmv2.pages import Page

IGNORED = -100
BLANK, COVER = 255, 0
"""Grey of a blanked word (white, as paper) and of a covered line (black)."""


@dataclass(frozen=True)
class Shares:
    """How much is corrupted; the defaults are the paper's."""

    masked: float = 0.15
    covered: float = 0.15
    other_picture: float = 0.15
    no_picture: float = 0.05


@dataclass(frozen=True)
class CorruptedBatch:
    """batch: as the model sees it. asked: (B, T) bool, the tokens of MVLM; words: (B, T) int64, their true ids.

    covered: (B, T) int64, 1 covered, 0 not, -100 left out; matching: (B,) int64, 1 for a page's own picture.
    blank: (B,) bool, pages without a picture.
    """

    batch: Batch
    asked: Tensor
    words: Tensor
    covered: Tensor
    matching: Tensor
    blank: Tensor


def corrupt(
    batch: Batch, random: np.random.Generator, tokenizer: Tokenizer, shares: Shares = Shares()
) -> CorruptedBatch:
    """Corrupt a batch for the three objectives. Lines are told apart by the vertical extent of the boxes.

    The picture that a page ends up with, its own or another's, is blanked at its masked words and covered at its
    covered lines, so nothing but the picture's content tells a match. Raises InputError on a batch of one page.
    """
    rows, length = batch.ids.shape
    if rows < 2 and shares.other_picture:
        raise InputError("a batch of one page: mismatched pictures need at least two")
    ids, box = batch.ids.numpy().copy(), batch.box.numpy()
    text = batch.mask.numpy() & box.any(-1)
    original = ids.copy()
    asked = text & (random.random((rows, length)) < shares.masked)
    fate = random.random((rows, length))
    ids[asked & (fate < 0.8)] = tokenizer.mask
    strange = asked & (fate >= 0.8) & (fate < 0.9)
    ids[strange] = random.integers(len(_specials(tokenizer)), len(tokenizer), int(strange.sum()))

    image = batch.image.numpy().copy()
    draw = random.random(rows)
    other = draw < shares.other_picture
    blank = ~other & (draw < shares.other_picture + shares.no_picture)
    for row in np.flatnonzero(other).tolist():
        donor = int(random.integers(0, rows - 1))
        image[row] = batch.image[donor + (donor >= row)].numpy()
    image[blank] = BLANK
    covered = np.full((rows, length), IGNORED, np.int64)
    for row in range(rows):
        lines = _lines(box[row], text[row])
        count = int(lines.max(initial=-1)) + 1
        hidden = np.flatnonzero(random.random(count) < shares.covered)
        under = np.isin(lines, hidden) & text[row]
        covered[row, text[row]] = under[text[row]] | other[row] | blank[row]
        covered[row, asked[row]] = IGNORED
        if not blank[row]:
            paint(image[row], box[row][under], COVER)
            paint(image[row], box[row][asked[row]], BLANK)
    return CorruptedBatch(
        batch.with_(ids=torch.from_numpy(ids), image=torch.from_numpy(image)),
        torch.from_numpy(asked),
        torch.from_numpy(original),
        torch.from_numpy(covered),
        torch.from_numpy((~(other | blank)).astype(np.int64)),
        torch.from_numpy(blank),
    )


def paint(image: np.ndarray, boxes: np.ndarray, grey: int) -> None:
    """Fill boxes (N, 4) in 0..1000 of an image (3, S, S) with a grey, every pixel that they touch."""
    size = image.shape[-1]
    for x0, y0, x1, y1 in boxes:
        left, top = int(x0 * size // GRID), int(y0 * size // GRID)
        right, bottom = int(-(-int(x1) * size // GRID)), int(-(-int(y1) * size // GRID))
        image[:, top : max(bottom, top + 1), left : max(right, left + 1)] = grey


def _lines(box: np.ndarray, text: np.ndarray) -> np.ndarray:
    """(T,) the line of each text token, from 0; -1 for others. Tokens in a row whose middles agree share a line."""
    lines = np.full(len(box), -1)
    current, middle, half, right = -1, 0.0, 0.0, 0
    for k in np.flatnonzero(text):
        x0, y0, x1, y1 = box[k].tolist()
        centre = (y0 + y1) / 2
        if current < 0 or abs(centre - middle) > max(half, (y1 - y0) / 2) or x0 < right - GRID // 4:
            current += 1
            middle, half = centre, (y1 - y0) / 2
        lines[k], right = current, x1
    return lines


def _specials(tokenizer: Tokenizer) -> range:
    return range(max(tokenizer.pad, tokenizer.unk, tokenizer.cls, tokenizer.sep, tokenizer.mask) + 1)


@dataclass(frozen=True)
class Losses:
    """The three losses of a batch."""

    words: Tensor
    covered: Tensor
    matching: Tensor

    def total(self, weights: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Tensor:
        """Their weighted sum; a weight of 0 leaves an objective out."""
        parts = zip((self.words, self.covered, self.matching), weights, strict=True)
        return torch.stack([weight * loss for loss, weight in parts if weight]).sum()


def losses_of(model: nn.Module, corrupted: CorruptedBatch) -> Losses:
    """Mean cross-entropies; 0 where a batch has nothing to ask for."""
    words, covered, matching = model(corrupted.batch, corrupted.asked)
    gold = corrupted.words[corrupted.asked]
    flat, labels = covered.float().flatten(0, 1), corrupted.covered.flatten()
    some = bool((labels >= 0).any())
    return Losses(
        F.cross_entropy(words.float(), gold) if len(gold) else words.sum() * 0.0,
        F.cross_entropy(flat, labels, ignore_index=IGNORED) if some else flat.sum() * 0.0,
        F.cross_entropy(matching.float(), corrupted.matching),
    )


def on(corrupted: CorruptedBatch, device: torch.device) -> CorruptedBatch:
    """The same on another device."""
    moved = {name: getattr(corrupted, name).to(device) for name in ("asked", "words", "covered", "matching", "blank")}
    return CorruptedBatch(corrupted.batch.to(device), **moved)


def pretrain(
    model: Pretrainer, pages: Sequence[Page], tokenizer: Tokenizer, *, steps: int, lr: float = 5e-4, batch: int = 16,
    seed: int = 0, shares: Shares = Shares(), weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
    losses: Callable[[int, Losses], None] | None = None, **settings: Any,
) -> training.History:  # fmt: skip
    """Train the model and its three heads on pages. A longer page shows one random window of it a visit.

    weights: of the objectives. losses: told the three losses of each step. settings: as of `training.train` (state,
    precision, progress, ...). At most `batch` pages a step over all processes.
    """
    if len(pages) < 2:
        raise InputError(f"{len(pages)} pages, expected at least two")
    cfg = model.layoutlmv2.cfg
    length = min(512, cfg.max_positions)
    cut = [windows(page, tokenizer, length, length // 4, size=cfg.image_size) for page in pages]
    lengths = [max(len(part.ids) for part in parts) for parts in cut]
    device = next(model.parameters()).device

    def loss_at(module: nn.Module, step: int, rank: int, world: int) -> Tensor:
        random = np.random.default_rng([seed, 6, step, rank])
        mine = training.picks(lengths, batch, step, seed)[rank::world]
        parts: list[Window] = [cut[k][int(random.integers(0, len(cut[k])))] for k in mine]
        found = losses_of(module, on(corrupt(collate(parts), random, tokenizer, shares), device))
        if losses is not None:
            losses(step, found)
        return found.total(weights)

    return training.train(model, loss_at, steps=steps, lr=lr, seed=seed, **settings)


@dataclass(frozen=True)
class Judged:
    """What a pre-trained model does on unseen pages.

    words: MVLM loss; covered: AUC over tokens of matching pages; matching: AUC of own against other pictures; blank:
    AUC of own against no picture. An AUC that a batch cannot tell is NaN.
    """

    words: float
    covered: float
    matching: float
    blank: float


@torch.no_grad()
def judge(
    model: Pretrainer, pages: Sequence[Page], tokenizer: Tokenizer, *, batch: int = 16, seed: int = 1,
    shares: Shares | None = None,
) -> Judged:  # fmt: skip
    """Judge the three objectives on pages; by default half of them with another picture or none."""
    shares = shares or replace(Shares(), other_picture=0.3, no_picture=0.2)
    cfg = model.layoutlmv2.cfg
    length = min(512, cfg.max_positions)
    model.eval()
    device = next(model.parameters()).device
    random = np.random.default_rng(seed)
    order = random.permutation(len(pages))
    words, counts = 0.0, 0
    cover_scores: list[float] = []
    cover_marks: list[bool] = []
    own: list[float] = []
    foreign: list[float] = []
    none: list[float] = []
    for start in range(0, len(order) - 1, batch):
        chosen = [pages[k] for k in order[start : start + batch]]
        if len(chosen) < 2:
            continue
        parts = [windows(page, tokenizer, length, length // 4, size=cfg.image_size)[0] for page in chosen]
        corrupted = on(corrupt(collate(parts), random, tokenizer, shares), device)
        logits, covered, matching = model(corrupted.batch, corrupted.asked)
        gold = corrupted.words[corrupted.asked]
        words += float(F.cross_entropy(logits, gold, reduction="sum"))
        counts += len(gold)
        told = (corrupted.covered >= 0) & (corrupted.matching == 1)[:, None]
        cover_scores += (covered[..., 1] - covered[..., 0])[told].tolist()
        cover_marks += (corrupted.covered[told] == 1).tolist()
        match = (matching[:, 1] - matching[:, 0]).tolist()
        for score, right, blank in zip(match, corrupted.matching.tolist(), corrupted.blank.tolist(), strict=True):
            (own if right else none if blank else foreign).append(score)
    labels = [True] * len(own)
    return Judged(
        words / max(counts, 1),
        auc(cover_scores, cover_marks),
        auc(own + foreign, labels + [False] * len(foreign)),
        auc(own + none, labels + [False] * len(none)),
    )
