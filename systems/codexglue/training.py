"""The training loop of all three families: batches of like length, a schedule, checkpoints that resume bit for bit."""

from __future__ import annotations

import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from systems.codexglue.tasks import CodexError

CHECKPOINT = "training.pt"
BUCKET = 50
"""Batches whose rows are sorted by length together: less padding, and still shuffled."""


class TrainingError(CodexError):
    """Training cannot go on: nothing to train on, a loss that is no number, or a checkpoint of another training."""


@dataclass(frozen=True)
class Budget:
    """How long to train: steps (the same result each time) or minutes by the clock, whichever ends first."""

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise ValueError("a budget needs steps or minutes")
        if (self.steps is not None and self.steps < 1) or (self.minutes is not None and not self.minutes > 0):
            raise ValueError(f"a budget of {self.steps} steps, {self.minutes} minutes: expected more than none")

    def spent(self, step: int, seconds: float) -> float:
        """The share that is used up, 0 to 1 and beyond."""
        by_step = step / self.steps if self.steps is not None else 0.0
        by_clock = seconds / (60.0 * self.minutes) if self.minutes is not None else 0.0
        return max(by_step, by_clock)


@dataclass(frozen=True)
class Recipe:
    """lr: the highest rate, AdamW; warmup: share of the budget until it is reached, then linearly to zero; batch: rows
    a step; length: subwords a row at most; clip: norm of the gradient.
    """

    lr: float = 5e-5
    batch: int = 32
    length: int = 256
    weight_decay: float = 0.0
    warmup: float = 0.1
    clip: float = 1.0


@dataclass(frozen=True)
class Training:
    """What came of it. losses: of each step; tokens: subwords seen, padding not counted."""

    losses: tuple[float, ...]
    tokens: int
    seconds: float

    @property
    def steps(self) -> int:
        return len(self.losses)

    def mean_loss(self, part: float) -> float:
        """Of the first (part > 0) or last (part < 0) share of the steps."""
        count = max(1, round(abs(part) * len(self.losses)))
        return float(np.mean(self.losses[:count] if part > 0 else self.losses[-count:]))


def batches(lengths: Sequence[int], size: int, seed: int, epoch: int) -> Iterator[list[int]]:
    """Rows of each batch of an epoch: every row once, shuffled, and those of a batch of like length."""
    order = np.random.default_rng((seed, epoch)).permutation(len(lengths)).tolist()
    parts = []
    for first in range(0, len(order), BUCKET * size):
        bucket = sorted(order[first : first + BUCKET * size], key=lambda row: lengths[row])
        parts += [bucket[k : k + size] for k in range(0, len(bucket), size)]
    random.Random(f"{seed} {epoch}").shuffle(parts)
    yield from parts


def train(
    model: nn.Module,
    loss_of: Callable[[list[int]], tuple[torch.Tensor, int]],
    lengths: Sequence[int],
    budget: Budget,
    recipe: Recipe,
    *,
    seed: int = 0,
    folder: Path | None = None,
    every: float = 60.0,
    progress: bool = False,
) -> Training:
    """Train `model` by AdamW. loss_of(rows) -> (loss, subwords); lengths: of each row.

    folder: where a checkpoint is kept, every `every` seconds and at the end; one that is there is gone on from, and
    with a budget in steps the result is that of a training that never stopped, bit for bit on a CPU. Raises
    TrainingError without rows, where the loss is no number, and for a checkpoint of another training.
    """
    if not len(lengths):
        raise TrainingError("no row to train on")
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    torch.manual_seed(seed)
    state = _resumed(folder, model, optimizer, seed, len(lengths))
    losses: list[float] = state["losses"]
    tokens, before = state["tokens"], state["seconds"]
    per_epoch = math.ceil(len(lengths) / recipe.batch)
    begun = saved = shown = time.monotonic()
    model.train()
    while (spent := budget.spent(len(losses), before + time.monotonic() - begun)) < 1.0:
        epoch, at = divmod(len(losses), per_epoch)
        if at == 0 or not losses or len(losses) == state["step"]:
            plan = list(batches(lengths, recipe.batch, seed, epoch))
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * _schedule(spent, recipe.warmup)
        optimizer.zero_grad(set_to_none=True)
        loss, seen = loss_of(plan[at])
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(f"step {len(losses) + 1}: the loss is {value}; try a lower rate than {recipe.lr:g}")
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        losses.append(value)
        tokens += seen
        now = time.monotonic()
        if folder is not None and now - saved >= every:
            _save(folder, model, optimizer, seed, losses, tokens, before + now - begun, len(lengths))
            saved = now
        if progress and now - shown >= 1.0:
            _show(spent, len(losses), losses, tokens, before + now - begun)
            shown = now
    seconds = before + time.monotonic() - begun
    if folder is not None:
        _save(folder, model, optimizer, seed, losses, tokens, seconds, len(lengths))
    if progress:
        _show(1.0, len(losses), losses, tokens, seconds)
        print(file=sys.stderr)
    model.eval()
    return Training(tuple(losses), tokens, seconds)


def _schedule(spent: float, warmup: float) -> float:
    if spent < warmup:
        return max(spent / warmup, 0.02)
    return max((1.0 - spent) / (1.0 - warmup), 0.0)


def _show(spent: float, step: int, losses: Sequence[float], tokens: int, seconds: float) -> None:
    done = min(spent, 1.0)
    bar = "#" * round(24 * done)
    rate = tokens / seconds if seconds else 0.0
    recent = float(np.mean(losses[-20:]))
    print(f"\r[{bar:<24}] {done:4.0%}  step {step}  loss {recent:.3f}  {rate:,.0f} token/s ", end="", file=sys.stderr)


def _resumed(
    folder: Path | None, model: nn.Module, optimizer: torch.optim.Optimizer, seed: int, rows: int
) -> dict[str, Any]:
    fresh: dict[str, Any] = {"losses": [], "tokens": 0, "seconds": 0.0, "step": 0}
    path = folder / CHECKPOINT if folder is not None else None
    if path is None or not path.exists():
        return fresh
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if (state["seed"], state["rows"]) != (seed, rows):
            raise TrainingError(
                f"{path}: of a training with seed {state['seed']} on {state['rows']} rows, not seed {seed} on {rows}; "
                "give another folder, or remove it"
            )
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
    except TrainingError:
        raise
    except Exception as error:  # whatever a damaged or foreign file makes torch raise
        raise TrainingError(f"{path}: not a checkpoint of this model: {error}") from error
    losses = state["losses"].tolist()
    return {"losses": losses, "tokens": state["tokens"], "seconds": state["seconds"], "step": len(losses)}


def _save(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, seed: int, losses: list[float], tokens: int,
    seconds: float, rows: int,
) -> None:  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{CHECKPOINT}.", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(
                {
                    "model": model.state_dict(), "optimizer": optimizer.state_dict(), "random": torch.get_rng_state(),
                    "seed": seed, "rows": rows, "losses": torch.tensor(losses, dtype=torch.float64), "tokens": tokens,
                    "seconds": seconds,
                },
                file,
            )  # fmt: skip
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(folder / CHECKPOINT)
    finally:
        Path(temporary).unlink(missing_ok=True)
