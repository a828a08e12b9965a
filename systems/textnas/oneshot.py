"""A supernet in training: paths drawn evenly or by a controller, and architectures judged with its shared weights.

    shop = OneShot(task, space, seed=0)
    shop.train(fair_paths(space, rng), examples=10_000)
    shop.judge(arch)                                     # Outcome, with batch statistics of that architecture alone

All that its further course depends on is in `state_dict`, so that a search goes on from a file to the bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from systems.textnas.history import Outcome
from systems.textnas.network import Supernet
from systems.textnas.space import Arch, Layer, Space
from systems.textnas.task import FORWARD_SHARE, Task
from systems.textnas.train import Adam, accuracy, evaluate, rate, seeded
from systems.textnas.vocabulary import Batch, Batches

SEARCH_LR, SEARCH_LEAST_LR, SEARCH_L2 = 5e-3, 1e-4, 2e-5
CALIBRATION_BATCHES = 4


def fair_paths(space: Space, rng: np.random.Generator) -> Iterator[Arch]:
    """Endless random architectures; of each len(ops) in a row, every layer has each operation exactly once."""
    while True:
        orders = [rng.permutation(len(space.ops)) for _ in range(space.layers)]
        for turn in range(len(space.ops)):
            arch = space.sample(rng)
            yield Arch(
                tuple(
                    Layer(layer.input, space.ops[int(order[turn])], layer.skips)
                    for layer, order in zip(arch.layers, orders, strict=True)
                )
            )


class OneShot:
    """A supernet and its optimiser on a task. schedule: "restarts" as published, or "cosine" over `total` examples."""

    def __init__(self, task: Task, space: Space, seed: int, total: float | None = None) -> None:
        self.task, self.space, self.seed, self.total = task, space, seed, total
        self.net: Supernet = task.supernet(space, seed)
        self.optimizer = Adam(self.net, SEARCH_LR, SEARCH_L2)
        self.examples = 0
        self.epoch = 0
        self._calibration: list[Batch] | None = None

    def train(self, paths: Iterator[Arch], most: float = math.inf) -> Outcome:
        """One pass over the training data, a path a batch, or less where that costs more than `most`.

        The outcome's accuracy is the mean over batches of their own, before the step.
        """
        start, before = time.process_time(), self.examples
        right: list[float] = []
        diverged = False
        with seeded(self.seed, self.epoch):
            self.net.train()
            for batch in self.task.train_batches.epoch(self.seed * 1_000_003 + self.epoch):
                if self.examples - before + len(batch) > most:
                    break
                logits = self.net(batch.tokens, batch.lengths, next(paths))
                loss = F.cross_entropy(logits, batch.labels)
                if not math.isfinite(float(loss.detach())):
                    diverged = True
                    break
                loss.backward()
                self.optimizer.step(self._rate())
                self.examples += len(batch)
                right.append(accuracy(logits.detach(), batch.labels))
        self.epoch += 1
        score = float(np.mean(right)) if right else math.nan
        return Outcome(score, self.examples - before, seconds=time.process_time() - start, diverged=diverged)

    def _rate(self) -> float:
        if self.total is not None:
            return rate("cosine", SEARCH_LR, self.examples / self.total, least=SEARCH_LEAST_LR)
        return rate("restarts", SEARCH_LR, 0.0, self.examples / len(self.task.train), SEARCH_LEAST_LR)

    def reward(self, arch: Arch, batch: Batch) -> float:
        """Accuracy of `arch` on one validation batch, with the statistics that the supernet has gathered."""
        self.net.eval()
        with torch.no_grad():
            return accuracy(self.net(batch.tokens, batch.lengths, arch), batch.labels)

    def judge_cost(self) -> float:
        """What `judge` costs, in examples."""
        rows = sum(map(len, self._calibration_batches()))
        return rows * FORWARD_SHARE + self.task.validation_cost

    def judge(self, arch: Arch) -> Outcome:
        """Validation accuracy of `arch` with shared weights, its batch statistics recomputed on a few batches."""
        start = time.process_time()
        batches = self._calibration_batches()
        with recomputed_statistics(self.net), seeded(self.seed, -1), torch.no_grad():
            for batch in batches:
                self.net(batch.tokens, batch.lengths, arch)
            score = evaluate(self.net, self.task.valid_batches, arch)
        return Outcome(
            score, self.judge_cost(), self.task.parameters(arch), time.process_time() - start, math.isnan(score)
        )

    def _calibration_batches(self) -> list[Batch]:
        if self._calibration is None:
            rng = np.random.default_rng(self.seed)
            rows = rng.permutation(len(self.task.train))[: CALIBRATION_BATCHES * self.task.batch]
            some = Batches(self.task.train.take(rows), self.task.batch)
            if self.task.frozen:
                some = some.looked_up(self.task.vectors)
            self._calibration = [batch for _, batch in some.in_order()]
        return self._calibration

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on."""
        return {
            "net": self.net.state_dict(), "optimizer": self.optimizer.state_dict(), "examples": self.examples,
            "epoch": self.epoch,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.examples, self.epoch = int(state["examples"]), int(state["epoch"])


@contextmanager
def recomputed_statistics(net: nn.Module) -> Iterator[None]:
    """Within, running statistics are plain means of the batches passed, and there is no dropout; then as before."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm1d)]
    kept = [({name: value.clone() for name, value in norm.named_buffers()}, norm.momentum) for norm in norms]
    was = net.training
    net.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        yield
    finally:
        for norm, (buffers, momentum) in zip(norms, kept, strict=True):
            norm.momentum = momentum
            for name, value in norm.named_buffers():
                value.copy_(buffers[name])
        net.train(was)
