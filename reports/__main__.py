"""`python -m reports`: pages and tables from run files."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from reports.compare import MOVED_BELOW, RunNotNamed, compare, read_one, table
from reports.superbench import ImportFailed, import_results
from reports.trend import FEWEST_RUNS, trends
from systems.anubis.records import RecordsError, compact, iter_journals, read_runs, recover, writer_of

GUIDE = """\
A run file holds one run of the suite on one node; a folder of run files is a fleet. These commands read such
folders, and never change what was measured.

  the page, from any folder of run files     python -m reports build runs/ -o report/
  what moved between two runs                python -m reports compare runs/A.parquet runs/B.parquet
  what changed for good over many runs       python -m reports trend runs/
  after a crash: journals to run files       python -m reports recover runs/
  many small files to one                    python -m reports compact runs/
  results of SuperBench, to judge them here  python -m reports import-superbench results-summary.jsonl -o runs/

Exit status: 0 done, 2 the command cannot be done as it was given. What a report says about a machine, and run
files that cannot be read, never change it: the gate's own exit status is for that."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status, 0 or 2. Raises SystemExit for --help and malformed arguments."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except (UsageError, RunNotNamed, ImportFailed, RecordsError, OSError) as error:
        print(f"reports {options.name}: {error}", file=sys.stderr)
        return 2
    return 0


class UsageError(Exception):
    """What was given cannot be used; the message says what would do."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m reports",
        description="Pages and tables from run files.",
        epilog=GUIDE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="name", metavar="COMMAND", required=True)

    build = commands.add_parser(
        "build",
        help="build the report folder: HTML, JSON, JUnit",
        description="Build one self-contained folder from the run files in RUNS. The page needs no "
        "network and no JavaScript. An earlier report in OUT is replaced in one step; "
        "any other non-empty folder is left alone.",
    )
    build.add_argument("runs", type=Path, metavar="RUNS", help="folder of run files (*.parquet)")
    build.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="folder of the report")
    build.add_argument(
        "--criteria",
        type=Path,
        default=Path("criteria"),
        metavar="DIR",
        help="folder of learned criteria (default: %(default)s)",
    )
    build.add_argument(
        "--seeds",
        type=Path,
        default=Path("seeds"),
        metavar="DIR",
        help="folder of the papers' claims (default: %(default)s)",
    )
    build.set_defaults(command=_build)

    both = commands.add_parser(
        "compare",
        help="which metrics moved between two runs",
        description="Compare two runs, metric by metric: medians, change, two-sided similarity of "
        "their distributions (1 is equal; for single numbers it is the smaller over the "
        "larger). In a file with several runs, name one as FILE@RUN_ID.",
    )
    both.add_argument("before", metavar="RUN_A")
    both.add_argument("after", metavar="RUN_B")
    both.add_argument(
        "--below",
        type=_share,
        default=MOVED_BELOW,
        metavar="S",
        help="show metrics with a similarity below S (default: %(default)s)",
    )
    both.add_argument("--all", action="store_true", help="show every metric that both runs hold")
    both.set_defaults(command=_compare)

    slow = commands.add_parser(
        "trend",
        help="steps and drifts of each metric over many runs",
        description="Say which metrics changed for good, when, and which creep, one node at a time. Ten quiet "
        "runs of a metric at least; runs under --fault and what others pressed on do not count.",
    )
    slow.add_argument("runs", type=Path, metavar="RUNS", help="folder of run files")
    slow.add_argument("--all", action="store_true", help="also what is steady")
    slow.add_argument("--json", action="store_true", help="every series with its values, as JSON")
    slow.set_defaults(command=_trend)

    journals = commands.add_parser(
        "recover",
        help="turn journals of crashed runs into run files",
        description="Turn each journal (*.jsonl) that a crashed run left in RUNS into a run file. "
        "A journal that a process of this machine still writes is left alone.",
    )
    journals.add_argument("runs", type=Path, metavar="RUNS")
    journals.set_defaults(command=_recover)

    merge = commands.add_parser(
        "compact",
        help="merge run files into one",
        description="Merge all run files of RUNS into one, then remove the merged ones. Files that "
        "cannot be read stay.",
    )
    merge.add_argument("runs", type=Path, metavar="RUNS")
    merge.set_defaults(command=_compact)

    results = commands.add_parser(
        "import-superbench",
        help="import SuperBench's results-summary.jsonl",
        description="Write one run file for each node of FILE. Units are inferred from the metrics' "
        "names; names that no rule knows are listed, and get unit 1.",
    )
    results.add_argument("file", type=Path, metavar="FILE.jsonl")
    results.add_argument("-o", "--out", type=Path, required=True, metavar="RUNS", help="folder for the run files")
    results.add_argument(
        "--kind",
        default="superbench",
        metavar="KIND",
        help="hardware kind of these nodes, e.g. azure-ndv4-8xa100; only nodes of one kind are "
        "comparable (default: %(default)s)",
    )
    results.set_defaults(command=_import)
    return parser


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a similarity; expected a number in (0, 1]")
    return value


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise UsageError(
            f"{path}: no such folder; give the folder that recording runs write to (--runs, by default runs/)"
        )
    return path


def _build(options: argparse.Namespace) -> None:
    from reports.page import ReportError, build  # jinja2 and plotly are of no use to the other commands

    try:
        overview = build(_folder(options.runs), options.out, criteria=options.criteria, seeds=options.seeds)
    except ReportError as error:
        raise UsageError(str(error)) from error
    for path, reason in overview.skipped:
        print(f"skipped: {reason if path in reason else f'{path}: {reason}'}", file=sys.stderr)
    for name in overview.journals:
        print(
            f"not a run file yet: {name} (in progress or crashed; recover makes a run file of it)",
            file=sys.stderr,
        )
    print(f"{overview.headline}\n{options.out / 'index.html'}")


def _compare(options: argparse.Namespace) -> None:
    before, after = read_one(options.before), read_one(options.after)
    print(table(compare(before, after), before, after, below=options.below, everything=options.all))


def _trend(options: argparse.Namespace) -> None:
    runs = read_runs(_folder(options.runs))
    for path, reason in runs.skipped:
        print(f"skipped: {path}: {reason}", file=sys.stderr)
    found = trends(runs.runs)
    if options.json:
        print(json.dumps([asdict(trend) for trend in found], indent=1))
        return
    for trend in found:
        if trend.moved or options.all:
            print(trend)
    moved = sum(trend.moved for trend in found)
    print(f"{moved} of {len(found)} series of {FEWEST_RUNS} runs and more moved, in {len(runs.runs)} runs")


def _recover(options: argparse.Namespace) -> None:
    found = 0
    for path in iter_journals(_folder(options.runs)):
        writer = writer_of(path)
        if writer is not None:
            print(f"{path}: left alone, process {writer} is still writing it", file=sys.stderr)
            continue
        try:
            print(recover(path))
            found += 1
        except RecordsError as error:
            print(f"skipped: {error}", file=sys.stderr)
    if not found:
        print(f"{options.runs}: no journals to recover")


def _compact(options: argparse.Namespace) -> None:
    print(compact(_folder(options.runs)))


def _import(options: argparse.Namespace) -> None:
    if not options.file.is_file():
        raise UsageError(f"{options.file}: no such file; give SuperBench's results-summary.jsonl")
    imported = import_results(options.file, options.out, kind=options.kind)
    metrics = len({row.id for run in imported.runs for row in run.rows})
    for name in imported.unknown:
        print(f"unit unknown, kept as it is (unit 1, must match): {name}", file=sys.stderr)
    for name, reason in imported.ignored:
        print(f"left out: {name}: {reason}", file=sys.stderr)
    print(f"{len(imported.runs)} runs with {metrics} metrics of kind {options.kind} written to {options.out}")


if __name__ == "__main__":
    sys.exit(main())
