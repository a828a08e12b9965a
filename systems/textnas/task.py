"""What a search searches for: data, vectors and the way a network is trained on them.

    task = Task.of(load_splits(folder, "label-text"), Embedding.best(), hidden=32)
    task.trial(arch, examples=8_000, seed=0)         # train from scratch, give an Outcome
"""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from systems.textnas.data import Splits
from systems.textnas.history import Outcome
from systems.textnas.network import NormOption, Pool, Supernet, TextNet, parameters_of
from systems.textnas.space import Arch, Space
from systems.textnas.train import BATCH, EVALUATION_BATCH, Budget, Result, fit
from systems.textnas.vocabulary import Batches, Embedding, Encoded, Vocabulary

FORWARD_SHARE = 1.0 / 3.0
LATENCY_ROWS, LATENCY_ROUNDS = 64, 5


@dataclass
class Task:
    """Encoded training and validation data, word vectors, and the settings of every training."""

    train: Encoded
    valid: Encoded
    vectors: Tensor
    hidden: int = 32
    batch: int = BATCH
    lr: float = 2e-3
    dropout: float = 0.2
    frozen: bool = False
    norm: NormOption = "skip"
    pool: Pool = "mean"
    vocabulary: Vocabulary | None = None
    embedding: Embedding | None = None
    latency: bool = False
    """Whether trials also measure milliseconds a sentence on this machine."""

    @staticmethod
    def of(splits: Splits, embedding: Embedding, **settings: object) -> Task:
        """The task of some splits, whose test set stays closed. Raises DataError where there is too little of it."""
        splits.train.check_trainable()
        vocabulary = Vocabulary.of(splits.train, splits.valid)
        return Task(
            vocabulary.encode(splits.train), vocabulary.encode(splits.valid), embedding.matrix(vocabulary),
            vocabulary=vocabulary, embedding=embedding, **settings,  # type: ignore[arg-type]
        )  # fmt: skip

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return self.train.classes

    @property
    def validation_cost(self) -> float:
        """What one pass over the validation data costs, in examples."""
        return len(self.valid) * FORWARD_SHARE

    def describe(self) -> str:
        """A hash of data, vectors and settings: what a history on disk must have in common with a search."""
        sha = hashlib.sha256()
        for array in (self.train.words, self.train.labels, self.valid.words, self.valid.labels, self.vectors.numpy()):
            sha.update(np.ascontiguousarray(array).tobytes())
        settings = (self.hidden, self.batch, self.lr, self.dropout, self.frozen, self.norm, self.pool)
        sha.update(repr(settings).encode())
        return sha.hexdigest()[:16]

    @cached_property
    def train_batches(self) -> Batches:
        """The training batches; with frozen vectors they are looked up once."""
        batches = Batches(self.train, self.batch)
        return batches.looked_up(self.vectors) if self.frozen else batches

    @cached_property
    def valid_batches(self) -> Batches:
        """The validation batches, likewise."""
        batches = Batches(self.valid, EVALUATION_BATCH)
        return batches.looked_up(self.vectors) if self.frozen else batches

    def network(self, arch: Arch, seed: int) -> TextNet:
        """A new network of `arch`."""
        return TextNet(
            arch, self.vectors, self.hidden, self.classes, self.train.pair, self.dropout, self.norm, self.pool,
            self.frozen, seed,
        )  # fmt: skip

    def supernet(self, space: Space, seed: int) -> Supernet:
        """A new supernet."""
        return Supernet(
            space, self.vectors, self.hidden, self.classes, self.train.pair, self.dropout, self.norm, self.pool,
            self.frozen, seed,
        )  # fmt: skip

    def parameters(self, arch: Arch) -> int:
        """Weights of the network of `arch`, the embedding left out; a pair head is the same for all and not counted."""
        return parameters_of(arch, self.hidden, self.vectors.shape[1], self.classes, self.norm)

    def trial_cost(self, examples: int) -> float:
        """What a trial of so many examples costs: whole batches, and one pass over the validation data."""
        return -(-examples // self.batch) * self.batch + self.validation_cost

    def trained(self, arch: Arch, examples: int, seed: int) -> tuple[TextNet, Result]:
        """A network of `arch` trained from scratch, validated once, at the end."""
        net = self.network(arch, seed)
        budget = Budget(examples=examples)
        result = fit(
            net, self.train_batches, self.valid_batches, budget, self.lr, seed, select="last", checks=(math.inf,)
        )
        return net, result

    def trial(self, arch: Arch, examples: int, seed: int) -> Outcome:
        """Train `arch` from scratch and validate it."""
        net, result = self.trained(arch, examples, seed)
        cost = result.examples + (0.0 if result.diverged else self.validation_cost)
        return Outcome(
            result.valid_acc, cost, self.parameters(arch), result.cpu_seconds, result.diverged,
            self.milliseconds(net) if self.latency else 0.0,
        )  # fmt: skip

    @torch.no_grad()
    def milliseconds(self, net: TextNet) -> float:
        """Milliseconds a sentence of the validation data, forward, the median of a few rounds."""
        net.eval()
        rows = np.arange(min(LATENCY_ROWS, len(self.valid)))
        batch = Batches(self.valid, LATENCY_ROWS).batch(rows)
        seconds = []
        for _ in range(LATENCY_ROUNDS + 1):
            start = time.perf_counter()
            net(batch.tokens, batch.lengths)
            seconds.append(time.perf_counter() - start)
        return 1e3 * float(np.median(seconds[1:])) / len(rows)
