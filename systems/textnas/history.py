"""What a search did: one record an evaluation, kept on disk after each, and replayed to go on where it stopped.

A search is a function of its seed and of what its evaluations returned. So it is resumed by running it again: as long
as the file holds a next record, its outcome is taken from there instead of being computed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from systems.textnas.space import Arch, BudgetError, TextNASError

FILE, BEST_FILE = "history.jsonl", "best.safetensors"


@dataclass(frozen=True)
class Outcome:
    """What one evaluation found. cost: in examples seen in training, those seen forward only counted as a third."""

    valid_acc: float
    cost: float
    parameters: int = 0
    seconds: float = 0.0
    diverged: bool = False
    milliseconds: float = 0.0


@dataclass(frozen=True)
class Record:
    """One line of a history.

    kind: "trial" (trained from scratch for `fidelity` examples), "supernet" (a stretch of its training), "shared"
    (evaluated with shared weights), "proxy" (scored without training) or "final". total: the cost so far.
    """

    index: int
    kind: str
    arch: Arch | None
    fidelity: float
    valid_acc: float
    cost: float
    total: float
    parameters: int = 0
    seconds: float = 0.0
    diverged: bool = False
    milliseconds: float = 0.0
    note: str = ""

    def to_json(self) -> str:
        """One line; NaN stands as null."""
        row = asdict(self)
        row["arch"] = json.loads(self.arch.to_json())["layers"] if self.arch is not None else None
        row["valid_acc"] = None if math.isnan(self.valid_acc) else self.valid_acc
        return json.dumps(row)

    @staticmethod
    def from_json(line: str, reach: int) -> Record:
        """Reads what `to_json` writes. Raises ValueError, KeyError, TypeError or ArchError on anything else."""
        row: dict[str, Any] = json.loads(line)
        arch = Arch.from_json({"layers": row["arch"]}, reach) if row["arch"] is not None else None
        score = math.nan if row["valid_acc"] is None else float(row["valid_acc"])
        return Record(**{**row, "arch": arch, "valid_acc": score})


@dataclass
class History:
    """A search as it stands: its settings, records, and the weights of its best network."""

    settings: dict[str, Any]
    records_list: list[Record] = field(default_factory=list)
    state: dict[str, Tensor] | None = field(default=None, repr=False)
    test_acc: float | None = None
    test_reads: int = 0

    @property
    def records(self) -> pd.DataFrame:
        """The records, a row each; `arch` as JSON."""
        rows = [
            {**vars(record), "arch": record.arch.to_json() if record.arch is not None else None}
            for record in self.records_list
        ]
        return pd.DataFrame(rows)

    @property
    def finals(self) -> list[Record]:
        """The networks trained at the end."""
        return [record for record in self.records_list if record.kind == "final"]

    @property
    def best(self) -> Arch:
        """The architecture chosen: by validation accuracy of the final trainings, else by the search's own estimate."""
        return self.best_record.arch  # type: ignore[return-value]

    @property
    def best_record(self) -> Record:
        """The record that `best` comes from. Raises TextNASError where nothing was evaluated."""
        pool = self.finals or [r for r in self.records_list if r.kind in ("trial", "shared")]
        scored = [record for record in pool if record.arch is not None and not math.isnan(record.valid_acc)]
        if not scored:
            raise TextNASError("the history holds no evaluated architecture")
        return max(scored, key=lambda record: (record.kind == "final", record.fidelity, record.valid_acc))

    @property
    def total(self) -> float:
        """The cost of the search, its final trainings left out."""
        return max((record.total for record in self.records_list if record.kind != "final"), default=0.0)

    def curve(self) -> list[tuple[float, float]]:
        """(cost so far, best validation accuracy so far) of the architectures trained from scratch or shared."""
        points, best = [], -math.inf
        for record in self.records_list:
            if record.kind in ("trial", "shared") and not math.isnan(record.valid_acc):
                best = max(best, record.valid_acc)
                points.append((record.total, best))
        return points

    def pareto(self, cost: str = "parameters") -> list[Record]:
        """The trained architectures that no other beats in accuracy and in `cost` ("parameters", "milliseconds")."""
        pool = self.finals or [record for record in self.records_list if record.kind == "trial"]
        pool = [record for record in pool if not math.isnan(record.valid_acc)]
        front = pareto_front([(record.valid_acc, -float(getattr(record, cost))) for record in pool])
        return sorted((pool[i] for i in front), key=lambda record: float(getattr(record, cost)))

    def digest(self) -> str:
        """A hash of all that a seed decides: everything but the seconds."""
        sha = hashlib.sha256()
        for record in self.records_list:
            row = json.loads(record.to_json())
            del row["seconds"], row["milliseconds"]
            sha.update(json.dumps(row, sort_keys=True).encode())
        return sha.hexdigest()


def pareto_front(points: Sequence[tuple[float, ...]]) -> list[int]:
    """The numbers of the points that no other is at least as good as in all, and better in one. Larger is better."""

    def beats(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
        return all(x >= y for x, y in zip(a, b, strict=True)) and any(x > y for x, y in zip(a, b, strict=True))

    return [i for i, point in enumerate(points) if not any(beats(other, point) for other in points)]


class Journal:
    """The history of a running search, on disk in `folder` after every record, and read back from there."""

    def __init__(self, settings: dict[str, Any], budget: float, reach: int, folder: Path | None = None) -> None:
        self.history = History(settings)
        self.budget, self.folder = budget, folder
        self.spent = 0.0
        self._recorded: list[Record] = []
        self._lines: list[str] = [json.dumps(settings, sort_keys=True)]
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / FILE).exists():
                self._recorded = self._read(folder / FILE, settings, reach)

    @property
    def left(self) -> float:
        """What the budget still pays for."""
        return self.budget - self.spent

    @property
    def next(self) -> int:
        """The number of the next record."""
        return len(self.history.records_list)

    @property
    def ahead(self) -> int:
        """How many records of an earlier run are still to come."""
        return max(len(self._recorded) - self.next, 0)

    def peek(self) -> Record | None:
        """The next record of an earlier run."""
        return self._recorded[self.next] if self.ahead else None

    def replayed(self, kind: str, arch: Arch | None, fidelity: float) -> Outcome | None:
        """The outcome of the next record, where an earlier run of the same search wrote it down."""
        if self.next >= len(self._recorded):
            return None
        record = self._recorded[self.next]
        if (record.kind, record.arch, record.fidelity) != (kind, arch, fidelity):
            raise BudgetError(
                f"record {self.next} in {self.folder} is of another search (a {record.kind}, here a {kind}); "
                f"give a new folder, or the same space, seed and budget"
            )
        return Outcome(
            record.valid_acc, record.cost, record.parameters, record.seconds, record.diverged, record.milliseconds
        )

    def add(self, kind: str, arch: Arch | None, fidelity: float, outcome: Outcome, note: str = "") -> Record:
        """Append a record; it is on disk when this returns."""
        if kind != "final":
            self.spent += outcome.cost
        record = Record(
            self.next, kind, arch, fidelity, outcome.valid_acc, outcome.cost, self.spent, outcome.parameters,
            outcome.seconds, outcome.diverged, outcome.milliseconds, note,
        )  # fmt: skip
        replay = self.ahead > 0
        self.history.records_list.append(record)
        if self.folder is not None:
            self._lines.append(record.to_json())
            if not replay:
                write(self.folder / FILE, "\n".join(self._lines) + "\n")
        return record

    def _read(self, file: Path, settings: dict[str, Any], reach: int) -> list[Record]:
        lines = file.read_text(encoding="utf-8").splitlines()
        before = json.loads(lines[0]) if lines else None
        if before != json.loads(self._lines[0]):
            raise BudgetError(
                f"{file} is the history of another search ({before}); this one is {settings}: give a new folder"
            )
        records = []
        for number, line in enumerate(lines[1:], 2):
            try:
                records.append(Record.from_json(line, reach))
            except (ValueError, KeyError, TypeError) as error:
                raise TextNASError(f"{file}, line {number}: not a record: {error!r}") from error
        return records


def read_history(folder: Path | str) -> History:
    """The history in a folder, finished or not. Raises TextNASError naming the file where there is none."""
    file = Path(folder) / FILE
    if not file.is_file():
        raise TextNASError(f"{file} does not exist; expected the folder of a search")
    settings = json.loads(file.read_text(encoding="utf-8").split("\n", 1)[0])
    journal = Journal(settings, math.inf, reach=10**6, folder=Path(folder))
    return History(settings, journal._recorded)


def write(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name, then rename it: it is there whole or not at all."""
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def save(path: Path, content: Any) -> None:
    """Tensors, numbers and containers of them into a file that `load` reads without executing anything."""
    import io

    buffer = io.BytesIO()
    torch.save(content, buffer)
    write(path, buffer.getvalue())


def load(path: Path) -> Any:
    """What `save` wrote. Raises TextNASError where the file is damaged."""
    try:
        return torch.load(path, weights_only=True)
    except Exception as error:  # torch names no exception of its own for a damaged file
        raise TextNASError(f"{path} is damaged: {error}; delete it to begin anew") from error
