"""Training a network on labelled sentences within a budget, and testing it once.

    result = fit(net, train, valid, Budget(epochs=3), lr=2e-3, seed=0)
    result.valid_acc, result.curve, result.cpu_seconds
    evaluate_test(net, result, splits.test, vocabulary)      # reads the test set; result.test_reads says how often

Nothing here sees a test set but `evaluate_test`.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from systems.textnas import kernels
from systems.textnas.data import HeldOut
from systems.textnas.network import TextNet
from systems.textnas.space import BudgetError, DataError
from systems.textnas.vocabulary import Batch, Batches, Embedding, Encoded, Vocabulary

BATCH = 128
EVALUATION_BATCH = 256
ADAM_EPS = 1e-3
L2 = 1e-6
LEAST_LR = 5e-6
RESTART_EPOCHS = 10
TEMPERATURE = 2.0

Schedule = Literal["cosine", "restarts", "constant"]


@dataclass(frozen=True)
class Budget:
    """What a training may take: exactly one of optimiser steps, examples, passes over the data, or CPU seconds.

    All but seconds give the same training twice. Seconds are of this process's CPU on the CPU, of the wall on a GPU.
    """

    steps: int | None = None
    examples: int | None = None
    epochs: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1 or next(iter(given.values())) <= 0:
            raise BudgetError(f"the budget is {given}; expected one of steps, examples, epochs or seconds, above 0")

    def total(self, rows: int, batch: int) -> int | None:
        """How many examples it pays for, of a set of `rows`; None where it counts seconds. Raises BudgetError."""
        if self.seconds is not None:
            return None
        paid = (
            self.steps * batch if self.steps is not None
            else self.examples if self.examples is not None
            else round(float(self.epochs or 0) * rows)
        )  # fmt: skip
        least = min(batch, rows)
        if paid < least:
            raise BudgetError(f"a budget of {paid} examples is below one batch of {least}")
        return paid


@dataclass(frozen=True)
class Point:
    """Where a training stood: examples and CPU seconds so far, and validation accuracy.

    loss, train_acc: means since the last point, over the batches trained on, each before its step.
    """

    examples: int
    seconds: float
    loss: float
    train_acc: float
    valid_acc: float


@dataclass
class Result:
    """What a training gave. state: the weights that were selected, on the CPU."""

    valid_acc: float
    curve: list[Point]
    seconds: float
    cpu_seconds: float
    examples: int
    state: dict[str, Tensor] = field(repr=False)
    diverged: bool = False
    test_acc: float | None = None
    test_reads: int = 0


class Adam:
    """Adam on whatever has a gradient: one fused call for the dense weights, the used rows alone of an embedding.

    A weight without a gradient is not moved, its moments rest: that is what an architecture of a supernet needs.
    """

    def __init__(self, net: nn.Module, lr: float = 2e-3, l2: float = L2, eps: float = ADAM_EPS) -> None:
        embedding = net.get_parameter("encoder.embedding")
        self.sparse = embedding if embedding.requires_grad else None
        dense = [p for p in net.parameters() if p.requires_grad and p is not embedding]
        self.l2, self.eps, self.steps = l2, eps, 0
        self.dense = torch.optim.Adam(dense, lr=lr, eps=eps, weight_decay=l2, fused=True)
        self.first = self.second = torch.empty(0)
        if self.sparse is not None:
            self.first, self.second = torch.zeros_like(self.sparse.data), torch.zeros_like(self.sparse.data)

    def step(self, lr: float) -> None:
        """Move the weights by their gradients, and drop those."""
        self.steps += 1
        self.dense.param_groups[0]["lr"] = lr
        self.dense.step()
        self.dense.zero_grad(set_to_none=True)
        if self.sparse is not None and self.sparse.grad is not None:
            kernels.lazy_adam(
                self.sparse.data, self.first, self.second, self.sparse.grad, lr, self.steps, self.eps, self.l2
            )
            self.sparse.grad = None

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on."""
        return {"dense": self.dense.state_dict(), "first": self.first, "second": self.second, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.dense.load_state_dict(state["dense"])
        self.first, self.second, self.steps = state["first"], state["second"], state["steps"]


def rate(schedule: Schedule, lr: float, progress: float, epochs: float = 0.0, least: float = LEAST_LR) -> float:
    """The learning rate after a share of the budget ("cosine") or after `epochs` ("restarts", of 10, 20, 40... )."""
    if schedule == "constant":
        return lr
    if schedule == "restarts":
        length = float(RESTART_EPOCHS)
        while epochs >= length:
            epochs -= length
            length *= 2
        progress = epochs / length
    return least + (lr - least) * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share of rows whose largest logit is the label's."""
    return float((logits.argmax(1) == labels).float().mean())


@torch.no_grad()
def predict(net: nn.Module, data: Encoded | Batches, *arguments: Any) -> Tensor:
    """(rows, classes) logits, in the order of the rows. arguments: further ones of the network (an architecture)."""
    batches = data if isinstance(data, Batches) else Batches(data, EVALUATION_BATCH)
    device = next(net.parameters()).device
    was = net.training
    net.eval()
    parts, places = [], []
    for rows, batch in batches.in_order():
        there = batch.to(device)
        parts.append(net(there.tokens, there.lengths, *arguments).float().cpu())
        places.append(torch.from_numpy(rows))
    net.train(was)
    logits = torch.cat(parts)
    return torch.empty_like(logits).index_copy_(0, torch.cat(places), logits)


def evaluate(net: nn.Module, data: Encoded | Batches, *arguments: Any) -> float:
    """Accuracy on some data, without dropout, with running statistics."""
    labels = (data.data if isinstance(data, Batches) else data).labels
    return accuracy(predict(net, data, *arguments), torch.from_numpy(labels))


@contextmanager
def seeded(seed: int, turn: int = 0) -> Iterator[None]:
    """Within, torch draws on the CPU from a seed of its own; afterwards its generator is as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed((seed * 1_000_003 + turn) % 2**63)
        yield


def endless(batches: Batches, seed: int) -> Iterator[Batch]:
    """Epoch after epoch, each in an order of its own."""
    epoch = 0
    while True:
        yield from batches.epoch(seed * 1_000_003 + epoch)
        epoch += 1


def fit(
    net: nn.Module, data: Encoded | Batches, valid: Encoded | Batches | None, budget: Budget, lr: float = 2e-3,
    seed: int = 0, schedule: Schedule = "cosine", device: torch.device | str | None = None, batch: int = BATCH,
    l2: float = L2, select: Literal["best", "last"] = "best", checks: Iterable[float] | None = None,
    half: bool = False, watch: Callable[[], object] | None = None, teacher: nn.Module | None = None,
    eps: float = ADAM_EPS,
) -> Result:  # fmt: skip
    """Train `net` in place, and leave it with the weights that were selected.

    data, valid: encoded sets, or batches made before. select: the weights of the best validation accuracy, or the
    last. checks: after which examples to validate, by default after each pass and at the end; `watch` is called then.
    half: bfloat16 on a GPU. teacher: a network whose softened answers count as much as the labels. eps: of Adam, by
    default as published. One seed decides the order of batches and dropout. A loss that is not finite ends the
    training; the result says `diverged`. Raises BudgetError where the budget is below one batch, DataError where there
    is nothing to learn.
    """
    batches = data if isinstance(data, Batches) else Batches(data, batch)
    rows = len(batches.data)
    if rows == 0:
        raise DataError("there is nothing to train on: the data is empty")
    total = budget.total(rows, batches.size)
    place = torch.device(device) if device is not None else next(net.parameters()).device
    net.to(place)
    pending = iter(sorted(checks)) if checks is not None else itertools.count(rows, rows)
    wall, cpu = time.perf_counter(), time.process_time()

    def spent() -> float:
        return time.process_time() - cpu if place.type == "cpu" else time.perf_counter() - wall

    optimizer = Adam(net, lr, l2, eps)
    curve: list[Point] = []
    best: tuple[float, dict[str, Tensor]] | None = None
    examples, diverged = 0, False
    losses: list[float] = []
    right: list[float] = []
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        torch.manual_seed(seed)
        net.train()
        stream = endless(batches, seed)
        next_check = next(pending, math.inf)
        while not diverged:
            part = next(stream).to(place)
            progress = examples / total if total is not None else spent() / float(budget.seconds or 1.0)
            with torch.autocast(place.type, torch.bfloat16, enabled=half and place.type == "cuda"):
                logits = net(part.tokens, part.lengths).float()
            loss = F.cross_entropy(logits, part.labels)
            if teacher is not None:
                loss = 0.5 * loss + 0.5 * _distance(teacher, part, logits)
            loss.backward()
            optimizer.step(rate(schedule, lr, progress, examples / rows))
            examples += len(part)
            losses.append(float(loss.detach()))
            right.append(accuracy(logits.detach(), part.labels))
            diverged = not math.isfinite(losses[-1])
            over = examples >= total if total is not None else spent() >= float(budget.seconds or 0.0)
            if over or diverged or examples >= next_check:
                next_check = next(pending, math.inf)
                score = evaluate(net, valid) if valid is not None and not diverged else math.nan
                curve.append(
                    Point(examples, spent(), sum(losses) / len(losses), sum(right) / len(right), score)
                )
                losses, right = [], []
                if watch is not None:
                    watch()
                if select == "best" and (best is None or score > best[0]):
                    best = (score, _copy(net))
            if over:
                break
    if select == "best" and best is not None and not math.isnan(best[0]):
        score, state = best
        net.load_state_dict(state)
    else:
        score, state = curve[-1].valid_acc, _copy(net)
    return Result(
        score, curve, time.perf_counter() - wall, time.process_time() - cpu, examples, state, diverged
    )


def _distance(teacher: nn.Module, batch: Batch, logits: Tensor) -> Tensor:
    """How far answers are from a teacher's, both softened (arXiv 1503.02531)."""
    with torch.no_grad():
        wanted = F.softmax(teacher(batch.tokens, batch.lengths) / TEMPERATURE, 1)
    said = F.log_softmax(logits / TEMPERATURE, 1)
    return TEMPERATURE**2 * F.kl_div(said, wanted, reduction="batchmean")


def _copy(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in net.state_dict().items()}


def extend_vocabulary(net: nn.Module, vocabulary: Vocabulary, larger: Vocabulary, embedding: Embedding) -> None:
    """Give `net` the vectors of the words that `larger` has beyond `vocabulary`; those it has stay as trained."""
    new = len(larger) - len(vocabulary)
    if new:
        rows = embedding.matrix(larger)[len(vocabulary) :]
        encoder = net.get_submodule("encoder")
        old = net.get_parameter("encoder.embedding")
        joined = torch.cat((old.detach(), rows.to(old.device)))
        encoder.embedding = nn.Parameter(joined, requires_grad=old.requires_grad)


def evaluate_test(
    net: TextNet, result: Result, test: HeldOut, vocabulary: Vocabulary, embedding: Embedding | None = None
) -> float:
    """Accuracy on the test set, which is read here and counted in `result.test_reads`; call it once, at the very end.

    embedding: where given, words that training never saw get their vectors from it. The network keeps its own words.
    """
    data = test.read()
    result.test_reads = test.reads
    net.load_state_dict(result.state)
    own = net.encoder.embedding
    if embedding is not None:
        larger = vocabulary.extended(data)
        extend_vocabulary(net, vocabulary, larger, embedding)
        vocabulary = larger
    result.test_acc = evaluate(net, vocabulary.encode(data))
    net.encoder.embedding = own
    return result.test_acc
