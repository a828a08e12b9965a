"""Run files and journals: what Maat remembers, readable years later without this code.

One run of the suite on one node is one immutable Parquet file (`<utc>-<node8>-<run_id8>.parquet`); a folder of
them is a fleet. While a run is going on, each test's rows are appended to a journal (JSON lines, fsynced), which
`Journal.finish` or `recover` turns into the run file. Every file is written to a temporary name, fsynced and
renamed, so a reader never sees half of one; nothing that is read here is ever executed.

    RecordsError
    ├── SchemaTooNew        the file was written by a newer Maat
    ├── NotARunFile         truncated, foreign or damaged
    └── CriteriaDamaged     of `systems.anubis.criteria`
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from systems.anubis.machine import Machine, Noise
from systems.anubis.machine import from_json as machine_from_json
from systems.anubis.machine import to_json as machine_to_json

SCHEMA_VERSION = 1

READERS = 4
"""Run files read at a time: decoding one leaves the interpreter free for another's rows."""

STATUSES = ("pass", "defect", "flaky", "contended", "new", "invalid", "recorded", "error")


class RecordsError(Exception):
    """Base of the errors of this module."""


class SchemaTooNew(RecordsError):
    """The file's schema version is above the newest that this version reads."""


class NotARunFile(RecordsError):
    """Truncated, foreign or damaged: not a run file."""


@dataclass(frozen=True)
class Measurement:
    """One metric of one test: one row of a run file.

    values: the samples in the order they were taken, in `unit`; seconds: what the test cost;
    status: one of `STATUSES`; similarity, alpha, margin: in [0, 1], None if not judged;
    series: whether the values are steps in order, of which a window may do; warmup: steps before the first of them;
    criterion: content hash of the criterion it was judged by; rival: the contender's name in a `versus`;
    claim: `<system>/<id>` of the paper's claim that it measures; evidence: what was seen to explain a verdict.
    """

    suite: str
    test: str
    component: str
    metric: str
    unit: str
    better: str
    values: tuple[float, ...]
    params: Mapping[str, str] = field(default_factory=dict)
    work: float | None = None
    seconds: float = 0.0
    rounds: int = 0
    warmup: int = 0
    series: bool = False
    attempt: int = 0
    status: str = "recorded"
    similarity: float | None = None
    alpha: float | None = None
    margin: float | None = None
    criterion: str | None = None
    rival: str | None = None
    claim: str | None = None
    noise: Noise = field(default_factory=Noise)
    evidence: tuple[str, ...] = ()
    error: str | None = None

    @property
    def id(self) -> str:
        """The metric id, the join key everywhere: `hardware/compute/gemm/throughput{device=cpu,n=2048}`."""
        return metric_id(self.metric, self.params)

    @property
    def benchmark(self) -> str:
        """The test that measured it, without the metric: `hardware/compute/gemm{device=cpu,n=2048}`."""
        return benchmark_of(self.id)


def metric_id(metric: str, params: Mapping[str, str]) -> str:
    """`metric` with its parameters in sorted order; without parameters, `metric` alone."""
    inside = ",".join(f"{name}={params[name]}" for name in sorted(params))
    return f"{metric}{{{inside}}}" if inside else metric


def benchmark_of(name: str) -> str:
    """The benchmark of a metric id: suite, file and function, with its parameters; the metric's own name goes."""
    metric, brace, params = name.partition("{")
    return "/".join(metric.split("/")[:3]) + brace + params


@dataclass(frozen=True)
class Run:
    """One run of the suite on one node. `started` in UTC; `facts` holds the session's own notes (JSON-able)."""

    machine: Machine
    started: datetime
    run_id: str
    commit: str = ""
    command: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    rows: tuple[Measurement, ...] = ()

    @classmethod
    def begin(
        cls, machine: Machine, *, commit: str = "", command: str = "", facts: Mapping[str, Any] | None = None
    ) -> Run:
        """A new, empty run that starts now."""
        return cls(
            machine=machine,
            started=datetime.now(UTC),
            run_id=secrets.token_hex(8),
            commit=commit,
            command=command,
            facts=facts or {},
        )

    @property
    def filename(self) -> str:
        """`<utc>-<node8>-<run_id8>.parquet`."""
        return f"{self.started:%Y%m%dT%H%M%SZ}-{self.machine.node[:8]}-{self.run_id[:8]}.parquet"


_MEASUREMENT_FIELDS = tuple(f.name for f in fields(Measurement))
_NOISE_FIELDS = tuple(f.name for f in fields(Noise))

NOISE_TYPE = pa.struct([(name, pa.float64()) for name in _NOISE_FIELDS])

RUN_SCHEMA = pa.schema(
    [
        ("run_id", pa.string()),
        ("node", pa.string()),
        ("kind", pa.string()),
        ("stack", pa.string()),
        ("started", pa.timestamp("us", tz="UTC")),
        ("suite", pa.string()),
        ("test", pa.string()),
        ("component", pa.string()),
        ("metric", pa.string()),
        ("params", pa.string()),
        ("unit", pa.string()),
        ("better", pa.string()),
        ("values", pa.list_(pa.float64())),
        ("work", pa.float64()),
        ("seconds", pa.float64()),
        ("rounds", pa.int32()),
        ("warmup", pa.int32()),
        ("series", pa.bool_()),
        ("attempt", pa.int32()),
        ("status", pa.string()),
        ("similarity", pa.float64()),
        ("alpha", pa.float64()),
        ("margin", pa.float64()),
        ("criterion", pa.string()),
        ("rival", pa.string()),
        ("claim", pa.string()),
        ("noise", NOISE_TYPE),
        ("evidence", pa.list_(pa.string())),
        ("error", pa.string()),
    ]
)


# --- writing -------------------------------------------------------------------------------------------------


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old file or the whole new one, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:  # after the rename there is nothing to remove; after an error or Ctrl-C no half-written file stays
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_run(run: Run, folder: Path) -> Path:
    """Write `run` as one Parquet file into `folder`; returns its path. Raises OSError when the disk refuses."""
    path = folder / run.filename
    sink = pa.BufferOutputStream()
    pq.write_table(to_table([run]), sink, compression="zstd")
    write_atomically(path, sink.getvalue().to_pybytes())
    return path


def to_table(runs: Iterable[Run]) -> pa.Table:
    """Runs as one Arrow table in `RUN_SCHEMA`; the schema's metadata holds each run's header."""
    runs = list(runs)
    records = [_record(run, row) for run in runs for row in run.rows]
    metadata = {"maat.schema": str(SCHEMA_VERSION), "maat.runs": json.dumps([_header(run) for run in runs])}
    return pa.Table.from_pylist(records, schema=RUN_SCHEMA.with_metadata(metadata))


def _record(run: Run, row: Measurement) -> dict[str, Any]:
    return {
        **{name: getattr(row, name) for name in _MEASUREMENT_FIELDS},
        "params": json.dumps(dict(row.params), sort_keys=True),
        "values": list(row.values),
        "evidence": list(row.evidence),
        "noise": asdict(row.noise),
        "run_id": run.run_id,
        "node": run.machine.node,
        "kind": run.machine.kind,
        "stack": run.machine.stack,
        "started": run.started,
    }


def _header(run: Run) -> dict[str, Any]:
    return {
        "schema": SCHEMA_VERSION,
        "run_id": run.run_id,
        "started": run.started.isoformat(),
        "commit": run.commit,
        "command": run.command,
        "facts": dict(run.facts),
        "machine": machine_to_json(run.machine),
    }


def _run_of_header(header: Mapping[str, Any]) -> Run:
    return Run(
        machine=machine_from_json(header["machine"]),
        started=datetime.fromisoformat(header["started"]),
        run_id=header["run_id"],
        commit=header["commit"],
        command=header["command"],
        facts=header["facts"],
    )


# --- the journal ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Progress:
    """How far an unfinished run came: the tests that ended, how many of its rows are theirs, whether one broke."""

    tests: tuple[str, ...] = ()
    rows: int = 0
    failed: bool = False


UNFINISHED = "unfinished"
"""The fact that holds the `Progress` of a run that was interrupted; a run that ended has none."""


def progress_of(run: Run) -> Progress | None:
    """How far an unfinished run came; None for a run that ended, or whose fact is not understood."""
    try:
        fact = run.facts[UNFINISHED]
        return Progress(tuple(map(str, fact["tests"])), int(fact["rows"]), bool(fact["failed"]))
    except (KeyError, TypeError, ValueError):
        return None


class Journal:
    """The rows of a run in progress: one JSON line per test, on disk before the next test begins.

    The first line is the run's header. A journal that was cut in the middle of a line loses that line only.
    """

    def __init__(self, run: Run, folder: Path, *, again: bool = False) -> None:
        """Start the journal of `run` in `folder`, or with `again` take up an unfinished run: its journal, if it has
        one, is replaced by one with the rows of the tests that ended. Raises OSError where it cannot be written."""
        folder.mkdir(parents=True, exist_ok=True)
        reached = progress_of(run) or Progress()
        facts = {name: fact for name, fact in run.facts.items() if name not in {UNFINISHED, "recovered"}}
        self.run = replace(run, rows=(), facts=facts)
        self.folder = folder
        self.path = folder / f"{Path(run.filename).stem}.jsonl"
        self._rows = list(run.rows[: reached.rows]) if again else []
        self._reached = reached if again else Progress()
        if again:  # never without the rows on disk
            rows = {"rows": [_row_to_json(row) for row in self._rows]}
            lines = (_header(self.run), rows, {"ended": reached.tests, "failed": reached.failed})
            write_atomically(self.path, "".join(map(_line, lines)).encode())
        self._file = self.path.open("a" if again else "x", encoding="utf-8")
        if not again:
            self._write(_header(run))

    @property
    def rows(self) -> tuple[Measurement, ...]:
        """What was appended so far."""
        return tuple(self._rows)

    @property
    def progress(self) -> Progress:
        """Which tests have ended so far."""
        return self._reached

    def end(self, *tests: str, failed: bool) -> None:
        """Note that tests have ended, `failed` telling whether any broke so far: the rows up to here are theirs.

        Not waited for: what a power cut takes from here is measured again. Raises OSError."""
        self._reached = Progress((*self._reached.tests, *tests), len(self._rows), failed)
        self._write({"ended": tests, "failed": failed}, wait=False)

    def append(self, rows: Sequence[Measurement]) -> None:
        """Add the rows of one test and wait until they are on disk; raises OSError (disk full) and keeps the rest."""
        self._rows.extend(rows)
        self._write({"rows": [_row_to_json(row) for row in rows]})

    def finish(self, facts: Mapping[str, Any] | None = None) -> Path:
        """Write the run file, then remove the journal. On an OSError the journal stays where it is."""
        run = replace(self.run, rows=tuple(self._rows), facts={**self.run.facts, **(facts or {})})
        path = write_run(run, self.folder)
        self.close()
        self.path.unlink()
        return path

    def close(self) -> None:
        """Close the journal and leave it on disk, to be recovered."""
        self._file.close()

    def _write(self, data: Mapping[str, Any], *, wait: bool = True) -> None:
        self._file.write(_line(data))
        self._file.flush()
        if wait:
            os.fsync(self._file.fileno())


def _line(data: Mapping[str, Any]) -> str:
    return json.dumps(data, sort_keys=True) + "\n"


def read_journal(path: Path) -> Run:
    """The run that a journal holds so far, unfinished. Raises NotARunFile if not even its header can be read."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    try:
        header = json.loads(lines[0])
        check_version(int(header["schema"]), path)
        run = _run_of_header(header)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise NotARunFile(f"{path}: not a journal: its first line is no header ({error})") from error
    rows: list[Measurement] = []
    reached, tests = Progress(), []
    for line in lines[1:]:
        try:
            entry = json.loads(line)
            if "ended" in entry:
                tests += entry["ended"]
                reached = Progress((), len(rows), bool(entry["failed"]))
            else:
                rows.extend(_row_from_json(row) for row in entry["rows"])
        except (ValueError, KeyError, TypeError):  # the line that a crash cut short
            continue
    unfinished = {**asdict(reached), "tests": tests}
    return replace(run, rows=tuple(rows), facts={**run.facts, UNFINISHED: unfinished})


def writer_of(path: Path) -> int | None:
    """The id of a process of this machine that has `path` open, None if this user sees none."""
    target = path.resolve()
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(descriptor) == str(target):
                return int(descriptor.parts[2])
        except OSError:  # closed meanwhile, or not ours to see
            continue
    return None


def newest_run(folder: Path, node: str, command: str) -> Run | None:
    """The newest run in `folder` that `command` made on `node`, unfinished or not: a run file, or a journal that no
    process writes any more. Files that cannot be read are passed over, and those of `compact`."""
    paths = [*folder.glob(f"*-{node[:8]}-*.parquet"), *folder.glob(f"*-{node[:8]}-*.jsonl")]
    for path in sorted(paths, key=lambda path: path.stem, reverse=True):
        try:
            if path.suffix == ".parquet":
                (run,) = read_run_file(path)
            elif writer_of(path) is None:
                run = read_journal(path)
            else:
                continue
        except (RecordsError, OSError, ValueError):
            continue
        if run.machine.node == node and run.command == command:
            return run
    return None


def recover(path: Path) -> Path:
    """Turn a journal that a crash left behind into a run file beside it, and remove the journal."""
    run = read_journal(path)
    run = replace(run, facts={**run.facts, "recovered": True})
    written = write_run(run, path.parent)
    path.unlink()
    return written


def _row_to_json(row: Measurement) -> dict[str, Any]:
    data = asdict(row)
    data["params"] = dict(row.params)
    return data


def _row_from_json(data: Mapping[str, Any]) -> Measurement:
    given = {name: data[name] for name in _MEASUREMENT_FIELDS if name in data}
    given["values"] = tuple(given["values"])
    given["evidence"] = tuple(given.get("evidence") or ())
    given["noise"] = _noise_from(given.get("noise"))
    given["series"] = bool(given.get("series"))  # files of before windows have none
    return Measurement(**given)


def _noise_from(data: Mapping[str, Any] | None) -> Noise:
    return Noise(**{name: data[name] for name in _NOISE_FIELDS if name in data}) if data else Noise()


# --- reading -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Runs:
    """Runs read from a folder, oldest first, and the files that could not be read, each with its reason."""

    runs: tuple[Run, ...]
    skipped: tuple[tuple[Path, str], ...] = ()

    def of_kind(self, kind: str) -> Runs:
        """Only the runs of one hardware kind."""
        return replace(self, runs=tuple(run for run in self.runs if run.machine.kind == kind))

    def frame(self) -> pd.DataFrame:
        """All rows as one pandas table with the columns of `RUN_SCHEMA` and `id`, the metric id."""
        frame = to_table(self.runs).to_pandas()
        frame["id"] = [row.id for run in self.runs for row in run.rows]
        return frame

    def samples(self) -> dict[str, list[tuple[Run, Measurement]]]:
        """For each metric id that is gated (no rivals, no errors), the measurement of each run, first attempt only."""
        found: dict[str, list[tuple[Run, Measurement]]] = {}
        for run in self.runs:
            for row in run.rows:
                if row.rival is None and row.component != "claim" and not row.attempt and not row.error and row.values:
                    found.setdefault(row.id, []).append((run, row))
        return found


def read_run_file(path: Path) -> list[Run]:
    """The runs in one Parquet file (several after `compact`).

    Raises SchemaTooNew for a file of a newer version, NotARunFile for anything that is not a run file.
    """
    try:
        # A run file is small: what readers of data sets do around one costs more than the file itself.
        table = pq.ParquetFile(pa.BufferReader(path.read_bytes()), pre_buffer=False).read(use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise NotARunFile(f"{path}: not a readable Parquet file ({first_line(error)})") from error
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    if "maat.schema" not in metadata:
        raise NotARunFile(f"{path}: a Parquet file, but not a run file of Maat (no maat.schema in its metadata)")
    try:
        check_version(int(metadata["maat.schema"]), path)
        headers = [_run_of_header(header) for header in json.loads(metadata["maat.runs"])]
        rows: dict[str, list[Measurement]] = {run.run_id: [] for run in headers}
        params: dict[str, dict[str, str]] = {}
        for record in table.to_pylist():
            text = record["params"]
            if text not in params:
                params[text] = json.loads(text)
            record["params"] = params[text].copy()
            rows[record["run_id"]].append(_row_from_json(record))
    except (KeyError, TypeError, ValueError) as error:
        raise NotARunFile(f"{path}: its metadata and rows do not fit together ({first_line(error)})") from error
    return [replace(run, rows=tuple(rows[run.run_id])) for run in headers]


def read_runs(folder: Path, *, workers: int = READERS) -> Runs:
    """Every run in `folder`, oldest first. A bad file is skipped with its reason, and never deleted.

    workers: files read at a time. Thousands of files are better merged first (`compact`).
    """
    found: dict[str, Run] = {}
    skipped: list[tuple[Path, str]] = []
    paths = sorted(folder.glob("*.parquet")) if folder.is_dir() else []
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for path, runs in zip(paths, pool.map(_runs_or_reason, paths), strict=True):
            if isinstance(runs, str):
                skipped.append((path, runs))
                continue
            for run in runs:
                if run.run_id in found:
                    skipped.append((path, f"run {run.run_id} is there already, from another file"))
                found.setdefault(run.run_id, run)
    return Runs(tuple(sorted(found.values(), key=lambda run: run.started)), tuple(skipped))


def _runs_or_reason(path: Path) -> list[Run] | str:
    try:
        return read_run_file(path)
    except RecordsError as error:
        return str(error)


def compact(folder: Path) -> Path:
    """Merge all run files of `folder` into one, `compact-<hash8>.parquet`, then remove the merged ones.

    Raises NotARunFile if there is nothing to merge. Files that cannot be read stay.
    """
    paths, runs = [], {}
    for path in sorted(folder.glob("*.parquet")):
        try:
            for run in read_run_file(path):
                runs[run.run_id] = run
            paths.append(path)
        except RecordsError:  # reported by read_runs; never touched here
            continue
    if not runs:
        raise NotARunFile(f"{folder}: no run files to compact")
    ordered = sorted(runs.values(), key=lambda run: run.started)
    name = hashlib.sha256("".join(run.run_id for run in ordered).encode()).hexdigest()[:8]
    target = folder / f"compact-{name}.parquet"
    sink = pa.BufferOutputStream()
    pq.write_table(to_table(ordered), sink, compression="zstd")
    write_atomically(target, sink.getvalue().to_pybytes())
    for path in paths:
        if path != target:
            path.unlink()
    return target


def check_version(version: int, path: Path) -> None:
    """Raise SchemaTooNew for a file at `path` whose schema version is above ours."""
    if version > SCHEMA_VERSION:
        raise SchemaTooNew(
            f"{path}: schema version {version}, and this Maat reads up to {SCHEMA_VERSION}; "
            "update Maat, or leave the file to the version that wrote it"
        )


def first_line(error: Exception) -> str:
    """The first line of an error's text: enough for a reason in a list."""
    return str(error).partition("\n")[0]


def iter_journals(folder: Path) -> Iterator[Path]:
    """Journals that crashed or still running sessions left in `folder`."""
    yield from sorted(folder.glob("*.jsonl")) if folder.is_dir() else ()
