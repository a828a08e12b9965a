"""Every architecture of a small space, trained once: search strategies in milliseconds, and how good they are.

    bench = MiniBench.load()
    bench.query(arch, epoch=6, seed=0).valid_acc
    regret(bench, "evolution", queries=64, seeds=200)         # (seeds, queries)

Three layers in a chain, the eight published operations in each: 512 architectures, on TREC questions, 32 channels,
frozen word vectors, two seeds. The table was made by `python -m systems.textnas minibench build`; no text is in it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from systems.textnas import kernels
from systems.textnas.data import Splits
from systems.textnas.history import Outcome, write
from systems.textnas.space import Arch, ArchError, BudgetError, DataError, Space
from systems.textnas.task import Task
from systems.textnas.train import Budget, fit, predict, seeded
from systems.textnas.vocabulary import Batches, Embedding

SPACE = Space(layers=3, reach=1, skips="none")
EPOCHS, SEEDS = 6, 2
HIDDEN, BATCH, LR, DROPOUT = 32, 128, 2e-2, 0.2
FILE = Path(__file__).with_name("minibench.parquet")
SOURCES = ("kernels.cpp", "kernels.py", "network.py", "train.py", "vocabulary.py", "data.py", "space.py", "task.py")


@dataclass(frozen=True)
class Entry:
    """What one training had reached after an epoch. seconds: of CPU, for all epochs."""

    train_acc: float
    valid_acc: float
    test_acc: float
    seconds: float
    parameters: int


class MiniBench:
    """The table. `trial` makes it a thing that `search` can search: an example stands for an epoch."""

    def __init__(self, table: pd.DataFrame, about: dict[str, Any]) -> None:
        self.table, self.about = table, about
        size, shape = SPACE.size(), (SPACE.size(), SEEDS, EPOCHS)
        if len(table) != size * SEEDS * EPOCHS:
            raise DataError(f"the table has {len(table)} rows; expected {size} x {SEEDS} x {EPOCHS}")
        table = table.sort_values(["arch", "seed", "epoch"], kind="stable")
        columns = ("train_acc", "valid_acc", "test_acc", "seconds", "parameters")
        self._values = {name: table[name].to_numpy().reshape(shape) for name in columns}
        self._numbers = {arch: i for i, arch in enumerate(SPACE)}

    @staticmethod
    @functools.lru_cache(maxsize=2)
    def load(path: Path = FILE) -> MiniBench:
        """The table that is shipped, or another of the same form. Raises DataError."""
        import pyarrow.parquet as pq

        if not path.is_file():
            raise DataError(f"{path} does not exist; make it by: python -m systems.textnas minibench build DATA")
        content = pq.read_table(path)
        about = json.loads((content.schema.metadata or {}).get(b"about", b"{}"))
        return MiniBench(content.to_pandas(), about)

    def number(self, arch: Arch) -> int:
        """Which row group an architecture has. Raises ArchError where it is not in the small space."""
        if arch not in self._numbers:
            SPACE.check(arch)
        return self._numbers[arch]

    def query(self, arch: Arch, epoch: int = EPOCHS, seed: int = 0) -> Entry:
        """What training `arch` with `seed` (0 or 1) had reached after `epoch` epochs (1 to 6)."""
        if not 1 <= epoch <= EPOCHS or not 0 <= seed < SEEDS:
            raise BudgetError(f"epoch {epoch}, seed {seed}; the table has epochs 1 to {EPOCHS}, seeds 0 to {SEEDS - 1}")
        at = (self.number(arch), seed, epoch - 1)
        values = self._values
        return Entry(
            float(values["train_acc"][at]), float(values["valid_acc"][at]), float(values["test_acc"][at]),
            float(values["seconds"][at]), int(values["parameters"][at]),
        )  # fmt: skip

    def final(self, what: str = "valid_acc") -> np.ndarray:
        """(512,) the mean over seeds after the last epoch, in the order of the space."""
        return self._values[what][:, :, -1].mean(1)

    def trial(self, arch: Arch, examples: int, seed: int) -> Outcome:
        """As `Task.trial`: `examples` epochs, one of the two seeds."""
        entry = self.query(arch, min(max(examples, 1), EPOCHS), seed % SEEDS)
        return Outcome(entry.valid_acc, self.trial_cost(examples), entry.parameters)

    def trial_cost(self, examples: int) -> float:
        """An epoch costs one."""
        return float(min(max(examples, 1), EPOCHS))

    def describe(self) -> str:
        """Which table this is."""
        return "minibench " + str(self.about.get("data", ""))


def regret(bench: MiniBench, strategy: str, queries: int, seeds: int = 200, first: int = 0) -> np.ndarray:
    """(seeds, queries): after each query, how far below the best mean accuracy that of the incumbent is.

    The incumbent is the architecture with the best validation accuracy seen so far, each seen with one seed's noise.
    """
    from systems.textnas.search import search

    mean = bench.final()
    best = mean.max()
    lost = np.empty((seeds, queries))
    for i in range(seeds):
        history = search(
            SPACE, bench, strategy, Budget(examples=queries * EPOCHS), first + i,  # type: ignore[arg-type]
            trial=Budget(examples=EPOCHS),
        )  # fmt: skip
        seen, incumbent = -1.0, 0
        found = np.full(queries, np.nan)
        for record in history.records_list:
            if record.kind == "trial" and record.arch is not None and record.fidelity == EPOCHS:
                if record.valid_acc > seen:
                    seen, incumbent = record.valid_acc, bench.number(record.arch)
                found[min(round(record.total / EPOCHS), queries) - 1 :] = best - mean[incumbent]
        lost[i] = found
    return lost


def kendall(bench: MiniBench, score: np.ndarray) -> float:
    """Kendall's tau of a score of the 512 architectures with their final mean accuracy."""
    from scipy.stats import kendalltau

    return float(kendalltau(score, bench.final()).statistic)


def proxy_scores(splits: Splits, embedding: Embedding | None = None) -> dict[str, np.ndarray]:
    """Each zero-cost score of the 512 untrained networks on one batch, (512,), and the mean of their ranks."""
    from systems.textnas import proxies

    task = Task.of(splits, embedding or Embedding.best(), hidden=HIDDEN, batch=BATCH, dropout=DROPOUT)
    batch = next(iter(Batches(task.train, BATCH).epoch(0)))
    rows = []
    for arch in SPACE:
        with seeded(0):
            rows.append(proxies.scores(task.network(arch, 0), batch))
    found = {name: np.array([row[name] for row in rows]) for name in proxies.PROXIES}
    return {**found, "mean rank": proxies.mean_rank(rows)}


# -------------------------------------------------------------------------------------------------------- building


def code_version() -> str:
    """A hash of the sources that decide what a training gives."""
    sha = hashlib.sha256()
    for name in SOURCES:
        sha.update(Path(__file__).with_name(name).read_bytes())
    return sha.hexdigest()[:16]


def build(
    splits: Splits, out: Path = FILE, embedding: Embedding | None = None, limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:  # fmt: skip
    """Train all architectures and write the table. What was trained is kept beside it and taken up by the next call.

    limit: how many architectures to train in this call; the table is written when all are there.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    embedding = embedding or Embedding.best()
    settings = {"hidden": HIDDEN, "batch": BATCH, "lr": LR, "dropout": DROPOUT}
    task = Task.of(splits, embedding, frozen=True, **settings)
    assert task.vocabulary is not None
    vocabulary, test_texts = task.vocabulary, splits.test.read()
    larger = vocabulary.extended(test_texts)
    test = Batches(larger.encode(test_texts), 256).looked_up(embedding.matrix(larger))
    about = {
        "code": code_version(), "data": splits.train.digest(), "vectors": embedding.name, "epochs": EPOCHS,
        "rows": [len(splits.train), len(splits.valid), len(test_texts)], "native": kernels.library() is not None,
        "torch": torch.__version__, "command": "python -m systems.textnas minibench build", **settings,
    }  # fmt: skip
    parts = out.with_suffix(".parts")
    parts.mkdir(parents=True, exist_ok=True)
    marker = parts / "about.json"
    if marker.exists() and json.loads(marker.read_text()) != about:
        raise BudgetError(f"{parts} was begun with other code, data or settings; delete it to begin anew")
    write(marker, json.dumps(about))
    archs = list(SPACE)
    done = 0
    for i, arch in enumerate(archs):
        file = parts / f"{i:03}.json"
        if file.exists():
            continue
        if limit is not None and done >= limit:
            return parts
        write(file, json.dumps([row for seed in range(SEEDS) for row in _rows(task, test, i, arch, seed)]))
        done += 1
        if progress is not None:
            progress(i + 1, len(archs))
    rows = [row for i in range(len(archs)) for row in json.loads((parts / f"{i:03}.json").read_text())]
    frame = pd.DataFrame(rows).astype({
        "arch": "int16", "seed": "int8", "epoch": "int8", "train_acc": "float32", "valid_acc": "float32",
        "test_acc": "float32", "seconds": "float32", "parameters": "int32",
    })  # fmt: skip
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata({"about": json.dumps(about)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write(out, sink.getvalue().to_pybytes())
    return out


def _rows(task: Task, test: Batches, number: int, arch: Arch, seed: int) -> list[dict[str, Any]]:
    """One training, a row an epoch."""
    net = task.network(arch, seed)
    tested: list[float] = []
    start = time.process_time()

    result = fit(
        net, task.train_batches, task.valid_batches, Budget(epochs=EPOCHS), task.lr, seed, select="last",
        watch=lambda: tested.append(_accuracy(net, test)),
    )  # fmt: skip
    seconds = time.process_time() - start
    return [
        {
            "arch": number, "seed": seed, "epoch": epoch, "train_acc": point.train_acc, "valid_acc": point.valid_acc,
            "test_acc": test_acc, "seconds": seconds, "parameters": task.parameters(arch),
        }
        for epoch, (point, test_acc) in enumerate(zip(result.curve, tested, strict=True), 1)
    ]  # fmt: skip


def _accuracy(net: Any, data: Batches) -> float:
    return float((predict(net, data).argmax(1).numpy() == data.data.labels).mean())


def arch_of(number: int) -> Arch:
    """The architecture with a number of the table."""
    if not 0 <= number < SPACE.size():
        raise ArchError(f"architecture {number}; the table has 0 to {SPACE.size() - 1}")
    return list(SPACE)[number]
