"""The matrix fault x benchmark: gates under real faults and healthy ones in turn, and what they found.

    trials = run(["suites/hardware"], ["cpu_quota(0.3)", "disk_throttle(50e6)"], folder, repetitions=5)
    matrix = Matrix(tuple(trials))
    matrix.detection("cpu_quota(0.3)")           # Rate(found=5, of=5), .interval (0.57, 1.0)
    matrix.history().to_json()                   # what caught what: the Selector's first history

Each gate is a process of its own, as a user's would be. Healthy and faulty ones alternate, so that a drift of the
machine is in both. A gate that could not decide (contended) counts as a miss under a fault and as no false alarm
without one, and is shown apart. Trials are kept in `trials.jsonl` as they end: an interrupted matrix goes on where it
stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from systems.anubis.criteria import HISTORY
from systems.anubis.faults import FaultError, fault_named
from systems.anubis.machine import fingerprint
from systems.anubis.records import read_runs, write_atomically
from systems.anubis.selector import History
from systems.anubis.suspects import is_metric

HEALTHY = "healthy"

STRONG = ("cpu_quota(0.3)", "memory_hog(2)", "disk_throttle(50e6)", "link_rate(100)")
"""Faults that a gate must find: one for each part of a machine without a GPU."""

SELECTION = (
    "suites/hardware/bench_compute.py::test_peak",
    "suites/hardware/bench_memory.py::test_stream[triad]",
    "suites/hardware/bench_memory.py::test_latency",
    "suites/hardware/bench_disk.py::test_sequential_write",
    "suites/hardware/bench_disk.py::test_sequential_read",
    "suites/hardware/bench_disk.py::test_durable_append",
    "suites/hardware/bench_network.py::test_loopback",
    "suites/hardware/bench_network.py::test_veth",
    "suites/hardware/bench_models.py::test_infer[cpu-lstm]",
)
"""Quick benchmarks of every part, gated by default: about a dozen seconds on a healthy machine."""

LEARNED = 6
"""Gate-like runs that criteria are learned from where the folder has none."""

ROOT = Path(__file__).resolve().parents[2]

_JUDGED = frozenset({0, 10, 11})  # exit statuses of a gate that has judged: fit, defect, contended or flaky


class MatrixError(RuntimeError):
    """A gate or a learning run ended as no verdict."""


@dataclass(frozen=True)
class Trial:
    """One gate. fault: its name, or `HEALTHY`; status: the gate's exit status; caught: benchmarks with a defect;
    undecided: those that were contended or flaky; suspects: components, most suspect first; seconds: what it took.
    """

    fault: str
    repetition: int
    status: int
    caught: tuple[str, ...]
    undecided: tuple[str, ...]
    suspects: tuple[str, ...]
    benchmarks: tuple[str, ...]
    seconds: float = 0.0


@dataclass(frozen=True)
class Rate:
    """`found` of `of` trials."""

    found: int
    of: int

    @property
    def value(self) -> float:
        """The share, NaN of no trials."""
        return self.found / self.of if self.of else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval of the share, 95 %; (0, 1) of no trials."""
        return wilson(self.found, self.of)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.found}/{self.of} [{low:.2f}, {high:.2f}]"


def wilson(found: int, of: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share (E. B. Wilson, JASA 22, 1927): the shares p with
    |found / of - p| <= z sqrt(p (1 - p) / of). Raises ValueError unless 0 <= found <= of.
    """
    if not 0 <= found <= of:
        raise ValueError(f"{found} of {of}: expected 0 <= found <= of")
    if of == 0:
        return 0.0, 1.0
    share = found / of
    middle = share + z * z / (2 * of)
    spread = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    scale = 1 + z * z / of
    return max((middle - spread) / scale, 0.0), min((middle + spread) / scale, 1.0)


@dataclass(frozen=True)
class Matrix:
    """Trials of faults and healthy ones between them."""

    trials: tuple[Trial, ...]

    @property
    def faults(self) -> tuple[str, ...]:
        """Their names, in the order of trial."""
        return tuple(dict.fromkeys(trial.fault for trial in self.trials if trial.fault != HEALTHY))

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """All that any gate ran, in order."""
        return tuple(dict.fromkeys(name for trial in self.trials for name in trial.benchmarks))

    def of(self, fault: str) -> tuple[Trial, ...]:
        """The trials under a fault, or the healthy ones."""
        return tuple(trial for trial in self.trials if trial.fault == fault)

    def detection(self, *faults: str) -> Rate:
        """Gates under these faults, by default under any, that found a defect."""
        trials = [trial for name in faults or self.faults for trial in self.of(name)]
        return Rate(sum(bool(trial.caught) for trial in trials), len(trials))

    @property
    def false_alarms(self) -> Rate:
        """Healthy gates that found a defect."""
        trials = self.of(HEALTHY)
        return Rate(sum(bool(trial.caught) for trial in trials), len(trials))

    def localisation(self, *faults: str) -> Rate:
        """Gates that found a defect and suspect first the component that the fault hits first."""
        trials = [trial for name in faults or self.faults for trial in self.of(name) if trial.caught]
        right = sum(trial.suspects[:1] == fault_named(trial.fault).hits[:1] for trial in trials)
        return Rate(right, len(trials))

    def caught_by(self, fault: str, benchmark: str) -> Rate:
        """Gates under the fault in which the benchmark ran and showed a defect: one cell of the matrix."""
        trials = [trial for trial in self.of(fault) if benchmark in trial.benchmarks]
        return Rate(sum(benchmark in trial.caught for trial in trials), len(trials))

    def history(self, where: str = "") -> History:
        """Each trial under a fault as one defect, with the benchmarks that caught it. Raises SelectorError of none.

        where: the kind of machine and the day, for the history's source.
        """
        defects = [trial for trial in self.trials if trial.fault != HEALTHY]
        caught = {
            name: [number for number, trial in enumerate(defects) if name in trial.caught] for name in self.benchmarks
        }
        source = f"fault matrix{' on ' * bool(where)}{where}: {', '.join(self.faults)}"
        return History.of(caught, len(defects), source=source)

    def lines(self) -> Iterator[str]:
        """The table, for a terminal: rates with Wilson's 95 % intervals."""
        yield f"{'fault':28} {'detected':>20} {'component first':>20} {'undecided':>10}"
        for name in self.faults:
            unsure = sum(bool(trial.undecided) and not trial.caught for trial in self.of(name))
            yield f"{name:28} {self.detection(name)!s:>20} {self.localisation(name)!s:>20} {unsure:>10}"
        yield f"{'all faults':28} {self.detection()!s:>20} {self.localisation()!s:>20}"
        unsure = sum(bool(trial.undecided) and not trial.caught for trial in self.of(HEALTHY))
        yield f"{'healthy: false alarms':28} {self.false_alarms!s:>20} {'':20} {unsure:>10}"
        for benchmark in self.benchmarks:
            cells = ", ".join(f"{name} {self.caught_by(name, benchmark)}" for name in (*self.faults, HEALTHY))
            yield f"{benchmark}: {cells}"


def run(
    selection: Sequence[str],
    faults: Sequence[str],
    folder: Path,
    *,
    repetitions: int = 5,
    criteria: Path | None = None,
    root: Path | None = None,
    report: Callable[[str], object] = lambda line: None,
) -> list[Trial]:
    """Gate `selection` (pytest's arguments) under each fault and healthy in turn, `repetitions` times.

    Criteria come from `criteria`, else are learned into `folder` from `LEARNED` healthy runs. Trials that `folder`
    holds from before are kept and not made again. A fault that cannot be injected here is left out, and reported.
    Raises UnknownFault, MatrixError.
    """
    if repetitions < 1:
        raise MatrixError(f"repetitions {repetitions}: expected 1 at least")
    possible = []
    for fault in map(fault_named, faults):
        if reason := fault.available():
            report(f"{fault.name} is left out: {reason}")
        else:
            possible.append(fault.name)
    folder.mkdir(parents=True, exist_ok=True)
    root = root or ROOT
    if criteria is None:
        criteria = folder / "criteria"
        if not any(criteria.rglob("*.json")):
            _learn(selection, folder, criteria, root, report)
    journal = folder / "trials.jsonl"
    trials = read_trials(journal)
    done = {(trial.fault, trial.repetition) for trial in trials}
    plan = [
        (kind, repetition if kind != HEALTHY else repetition * len(possible) + number)
        for repetition in range(repetitions)
        for number, name in enumerate(possible)
        for kind in ((name, HEALTHY) if (repetition + number) % 2 else (HEALTHY, name))
    ]
    for number, (name, repetition) in enumerate(plan, start=1):
        if (name, repetition) in done:
            continue
        began = time.monotonic()
        trial = _gate(selection, name, repetition, criteria, root)
        trial = replace(trial, seconds=time.monotonic() - began)
        with journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(trial)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        trials.append(trial)
        spent = [each.seconds for each in trials if each.seconds]
        left = sum(each not in {(t.fault, t.repetition) for t in trials} for each in plan)
        found = f"caught by {len(trial.caught)} of {len(trial.benchmarks)}" if trial.caught else "nothing caught"
        report(
            f"gate {number} of {len(plan)}, {name}: status {trial.status}, {found}, {trial.seconds:.0f} s; about "
            f"{left * sum(spent) / len(spent) / 60:.1f} minutes left"
        )
    return trials


def read_trials(journal: Path) -> list[Trial]:
    """The trials in a `trials.jsonl`; a line that a crash cut short is left out."""
    if not journal.exists():
        return []
    trials = []
    for line in journal.read_text(encoding="utf-8").splitlines():
        try:
            data: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError:
            continue
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        trials.append(Trial(**fields))
    return trials


def _learn(selection: Sequence[str], folder: Path, criteria: Path, root: Path, report: Callable[[str], object]) -> None:
    begun = len(read_runs(folder / "learned").runs)  # an interrupted matrix has some already
    for number in range(min(begun, LEARNED - 1) + 1, LEARNED + 1):
        mode = "--learn" if number == LEARNED else "--record"
        arguments = [*selection, mode, "--runs", str(folder / "learned"), "--criteria", str(criteria)]
        done = _pytest(arguments, root)
        report(f"learning run {number} of {LEARNED}: status {done.returncode}")
        if done.returncode != 0:
            raise MatrixError(f"learning run {number} gave exit status {done.returncode}:\n{done.stdout[-4000:]}")


def _gate(selection: Sequence[str], fault: str, repetition: int, criteria: Path, root: Path) -> Trial:
    with tempfile.TemporaryDirectory(prefix="maat-matrix-") as runs:
        arguments = [*selection, "--gate", "--criteria", str(criteria), "--runs", runs]
        done = _pytest([*arguments, *([] if fault == HEALTHY else ["--fault", fault])], root)
        found = read_runs(Path(runs)).runs
    if done.returncode not in _JUDGED or len(found) != 1:
        text = done.stdout[-4000:] + done.stderr[-2000:]
        raise MatrixError(f"the gate under {fault} gave exit status {done.returncode} and {len(found)} runs:\n{text}")
    rows = [row for row in found[0].rows if is_metric(row)]

    def tests(*statuses: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.benchmark for row in rows if not statuses or row.status in statuses))

    suspects = tuple(str(name) for name, _ in found[0].facts["suspects"])
    undecided = tests("contended", "flaky")
    return Trial(fault, repetition, done.returncode, tests("defect"), undecided, suspects, tests())


def _pytest(arguments: Iterable[str], root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "MAAT_SELECTION": "gate"}  # learn from what the gate runs, and no more
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, env=environment)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m systems.anubis.matrix`."""
    parser = argparse.ArgumentParser(
        prog="python -m systems.anubis.matrix",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Gate this machine under real faults and without them in turn, and say what was found.\n\n"
            "  python -m systems.anubis.matrix -o matrix/\n"
            '  python -m systems.anubis.matrix suites/hardware -o matrix/ --fault "cpu_quota(0.5)" --repetitions 5\n\n'
            "Six healthy runs are learned from first, unless --criteria says by what to judge. Writes trials.jsonl as\n"
            "it goes, and history.json at its end: put that into criteria/KIND/ for `pytest --gate --select`. Stopped\n"
            "and started again with the same folder, it goes on. Run it on a quiet machine, as root; the defaults\n"
            "take about a quarter of an hour on two cores."
        ),
    )
    parser.add_argument("selection", nargs="*", help="what to gate, as for pytest (default: quick ones of each part)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="where trials are kept")
    parser.add_argument(
        "--fault",
        action="append",
        metavar="NAME",
        help=f"a fault; give several times (default: {', '.join(STRONG)})",
    )
    parser.add_argument("--repetitions", type=int, default=2, metavar="N", help="gates under each fault (default 2)")
    parser.add_argument("--criteria", type=Path, metavar="DIR", help="judge by these (default: learn here first)")
    given = parser.parse_args(arguments)
    try:
        trials = run(
            given.selection or SELECTION,
            given.fault or STRONG,
            given.output,
            repetitions=given.repetitions,
            criteria=given.criteria,
            report=lambda line: print(line, flush=True),
        )
    except (FaultError, MatrixError) as error:
        print(f"matrix: {error}", file=sys.stderr)
        return 2
    matrix = Matrix(tuple(trials))
    print("\n".join(matrix.lines()))
    if matrix.faults:
        where = f"{fingerprint(ROOT).kind}, {datetime.now(UTC):%Y-%m-%d}"
        write_atomically(given.output / HISTORY, matrix.history(where).to_json().encode())
        print(f"history: {given.output / HISTORY}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
