"""One table a data set: linear models first, then networks by hand, the published one, and what searches found.

    table = compare(splits, ("random", "spos"), Budget(epochs=40), seeds=(0, 1, 2), embedding=Embedding.best())
    print(table.text())
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from systems.textnas.baselines import LINEAR, linear, make
from systems.textnas.data import Splits
from systems.textnas.history import History
from systems.textnas.preset import PAPER
from systems.textnas.search import Strategy, evaluate_best, search
from systems.textnas.space import Arch, Space
from systems.textnas.task import Task
from systems.textnas.train import Budget, evaluate, evaluate_test, fit
from systems.textnas.vocabulary import Embedding

Z = 1.959963984540054  # of a 95 % interval


@dataclass(frozen=True)
class Row:
    """One line of a table. Accuracies in [0, 1]; spread: standard deviation over seeds, 0 for one."""

    name: str
    valid: float
    test: float
    spread: float
    parameters: int
    cpu_seconds: float
    budget: float


@dataclass
class Table:
    """Rows in order, the test set's size, and the histories behind them."""

    rows: list[Row]
    test_rows: int
    histories: dict[str, list[History]] = field(default_factory=dict, repr=False)
    test_reads: int = 0

    def text(self) -> str:
        """The table as text, with Wilson's 95 % interval of each test accuracy."""
        titles = f"{'95 % of test':>16}{'sd':>6}{'weights':>10}{'CPU s':>8}{'examples':>10}"
        lines = [f"{'':<16}{'valid':>7}{'test':>7}{titles}"]
        for row in self.rows:
            low, high = wilson(row.test, self.test_rows)
            lines.append(
                f"{row.name:<16}{100 * row.valid:>7.1f}{100 * row.test:>7.1f}{100 * low:>9.1f} - {100 * high:.1f}"
                f"{100 * row.spread:>6.1f}{row.parameters:>10,}{row.cpu_seconds:>8.1f}{row.budget:>10,.0f}"
            )
        return "\n".join(lines)


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `n`."""
    if n == 0 or math.isnan(share):
        return (math.nan, math.nan)
    middle = share + Z * Z / (2 * n)
    width = Z * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    scale = 1 + Z * Z / n
    return ((middle - width) / scale, (middle + width) / scale)


def compare(
    splits: Splits, strategies: Sequence[Strategy], budget: Budget, seeds: Sequence[int] = (0, 1, 2),
    embedding: Embedding | None = None, space: Space | None = None, final: Budget | None = None,
    networks: Sequence[str] = ("fasttext", "textcnn", "bigru", "transformer"), trial: Budget | None = None,
    folder: Path | None = None, workers: int = 1, progress: Callable[[str], None] | None = None, **settings: object,
) -> Table:  # fmt: skip
    """Everything on one data set with one budget, tested once each, after its own selection on validation.

    final: of every last training, the published network's and the baselines' too. The test set is one file, read once
    a row of the table: `test_reads` says how often.
    """
    embedding, space = embedding or Embedding.best(), space or Space(8)
    final = final or Budget(epochs=8)
    task = Task.of(splits, embedding, **settings)
    assert task.vocabulary is not None
    tell = progress or (lambda line: None)
    rows: list[Row] = []
    test_rows = 0

    def finished(row: Row) -> None:
        rows.append(row)
        tell(f"{row.name}: validation {100 * row.valid:.1f}")

    for name in LINEAR:
        model = linear(splits.train, splits.valid, name)  # type: ignore[arg-type]
        data = splits.test.read()
        test_rows = len(data)
        test, seen = model.accuracy(data), len(task.train)
        finished(Row(name, model.valid_acc, test, 0.0, model.parameters, model.cpu_seconds, seen))
    for name in networks:
        net = make(name, task.vectors, task.classes, task.train.pair, task.dropout)
        result = fit(net, task.train_batches, task.valid_batches, final, task.lr)
        test = evaluate(net, task.vocabulary.encode(splits.test.read()))
        finished(Row(name, result.valid_acc, test, 0.0, net.count(), result.cpu_seconds, result.examples))
    finished(_trained(task, splits, space.cut(PAPER), f"paper, {len(space.cut(PAPER))} layers", final, seeds))
    histories: dict[str, list[History]] = {}
    for strategy in strategies:
        histories[strategy] = []
        for seed in seeds:
            place = folder / f"{strategy}-{seed}" if folder is not None else None
            history = search(space, task, strategy, budget, seed, workers, place, trial, final)
            evaluate_best(history, task, splits.test)
            histories[strategy].append(history)
            tell(f"{strategy}, seed {seed}: validation {100 * history.best_record.valid_acc:.1f}")
        finished(_searched(task, strategy, histories[strategy]))
    return Table(rows, test_rows, histories, splits.test.reads)


def _trained(task: Task, splits: Splits, arch: Arch, name: str, final: Budget, seeds: Sequence[int]) -> Row:
    """One architecture, trained with every seed."""
    assert task.vocabulary is not None
    valid, test, seconds, examples = [], [], 0.0, 0
    for seed in seeds:
        net = task.network(arch, seed)
        result = fit(net, task.train_batches, task.valid_batches, final, task.lr, seed, select="last")
        valid.append(result.valid_acc)
        test.append(evaluate_test(net, result, splits.test, task.vocabulary, task.embedding))
        seconds, examples = seconds + result.cpu_seconds / len(seeds), result.examples
    spread = float(np.std(test, ddof=1)) if len(seeds) > 1 else 0.0
    return Row(name, float(np.mean(valid)), float(np.mean(test)), spread, task.parameters(arch), seconds, examples)


def _searched(task: Task, name: str, histories: Sequence[History]) -> Row:
    valid = [history.best_record.valid_acc for history in histories]
    test = [history.test_acc or 0.0 for history in histories]
    spread = float(np.std(test, ddof=1)) if len(test) > 1 else 0.0
    size = round(float(np.mean([task.parameters(history.best) for history in histories])))
    seconds = float(np.mean([sum(r.seconds for r in history.records_list) for history in histories]))
    total = float(np.mean([history.total for history in histories]))
    return Row(name, float(np.mean(valid)), float(np.mean(test)), spread, size, seconds, total)
