"""`python -m systems.anubis`: the judge as a tool, over run files, without pytest."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

from systems.anubis import fleet
from systems.anubis.criteria import StoredCriterion, load_criteria, save_criteria
from systems.anubis.judging import exit_status, judge, under_pressure, verdict_of
from systems.anubis.learning import learn_criteria
from systems.anubis.records import Measurement, RecordsError, Run, Runs, read_runs, write_atomically
from systems.anubis.selection import history_for, incident_model, minutes_of, select
from systems.anubis.selector import SelectorError, decide
from systems.anubis.simulator import POLICIES, ImpossibleScenario, Scenario, interval, sweep
from systems.anubis.survival import Exponential, SurvivalError, infinitehbd
from systems.anubis.suspects import is_metric, rank_suspects
from systems.anubis.validator import ValidatorError

GUIDE = """\
Run files come from `pytest suites --record` or `--gate`, one per run and node; a folder of them is a fleet.

  what healthy means, from a folder of runs     python -m systems.anubis learn runs/ --criteria criteria/
  judge runs by it, also of other machines      python -m systems.anubis judge runs/ --criteria criteria/
  judge a fleet by itself                       python -m systems.anubis judge runs/ --peers
  what to run in ten minutes                    python -m systems.anubis select --budget 10
  what to run before a job on 32 nodes          python -m systems.anubis select --p0 0.05 --nodes 32 --job 24
  what validation is worth                      python -m systems.anubis simulate --policy none --policy selector
  the gate on every node of a Ray cluster       python -m systems.anubis fleet suites/hardware --runs runs/
  which benchmark catches which fault           python -m systems.anubis.matrix -o matrix/

Exit status: 0 done (judge: fit), 2 the command cannot be done as it was given; judge and fleet also 10 defect,
11 contended, flaky or nothing to judge by, as the gate."""


class UsageError(Exception):
    """What was given cannot be used; the message says what would do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status. Raises SystemExit for --help and malformed arguments."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except (UsageError, RecordsError, ValidatorError, SelectorError, SurvivalError, ImpossibleScenario) as error:
        print(f"anubis {options.name}: {error}", file=sys.stderr)
    except (fleet.FleetError, OSError) as error:
        print(f"anubis {options.name}: {error}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m systems.anubis",
        description="Learn what healthy means, judge by it, choose what to run, simulate what that is worth.",
        epilog=GUIDE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="name", metavar="COMMAND", required=True)
    _learn_options(commands.add_parser("learn", help="criteria from run files, or an incident model from a trace"))
    _judge_options(commands.add_parser("judge", help="judge run files by criteria, or by each other"))
    _select_options(commands.add_parser("select", help="which benchmarks to run, by budget or by risk"))
    _simulate_options(commands.add_parser("simulate", help="a fleet under validation policies"))
    fleet.add_options(commands.add_parser("fleet", help="the gate on every node of a Ray cluster"))
    return parser


def _criteria_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--criteria", type=Path, default=Path("criteria"), metavar="DIR", help="folder of criteria (%(default)s)"
    )


def _runs_of(folder: Path, kind: str | None) -> Runs:
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; give the folder that recording runs write to")
    runs = read_runs(folder)
    for path, reason in runs.skipped:
        print(f"skipped: {reason if str(path) in reason else f'{path}: {reason}'}", file=sys.stderr)
    kinds = Counter(run.machine.kind for run in runs.runs)
    if not kinds:
        raise UsageError(f"{folder}: no run files; record some with `pytest suites --record --runs {folder}`")
    if kind is None and len(kinds) > 1:
        known = ", ".join(f"{name} ({count})" for name, count in sorted(kinds.items()))
        raise UsageError(f"{folder} holds several kinds of hardware, give one with --kind: {known}")
    kind = kind or next(iter(kinds))
    if not kinds[kind]:
        raise UsageError(f"{folder} holds no run of kind {kind}; there are {', '.join(sorted(kinds))}")
    return runs.of_kind(kind)


# --- learn ---------------------------------------------------------------------------------------------------


def _learn_options(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Learn one criterion a metric from all runs of one hardware kind and software stack in RUNS, and write "
        "criteria/KIND/. No labels and no thresholds: the healthy majority is found, the sample of its most central "
        "run kept, and the deviation that healthy noise reaches is the threshold. Runs under --fault teach nothing. "
        "With --trace: incidents per hour by past incidents, from an outage trace, for --select."
    )
    parser.add_argument("runs", type=Path, nargs="?", metavar="RUNS", help="folder of run files")
    _criteria_option(parser)
    parser.add_argument("--kind", metavar="KIND", help="hardware kind, where RUNS holds several")
    parser.add_argument("--stack", metavar="STACK", help="software stack (default: that of the newest run)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="metrics learned at a time (%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be learned, write nothing")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="an outage trace (JSON events, as InfiniteHBD's)")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="--trace: where the incident model goes")
    parser.set_defaults(command=_learn)


def _learn(options: argparse.Namespace) -> int:
    if (options.trace is None) == (options.runs is None):
        raise UsageError("give a folder of run files, or --trace FILE with -o")
    if options.trace is not None:
        if options.output is None:
            raise UsageError("--trace makes an incident model: say where it goes with -o FILE")
        data = infinitehbd(options.trace)
        model = Exponential(most=6).fit(data)
        source = f"rates by past incidents, fitted to {int(data.event.sum())} incidents in {options.trace.name}"
        write_atomically(options.output, model.to_json(source).encode())
        for count, rate in enumerate(model.rates):
            print(f"{count} past incidents: one in {1 / rate / 24:.0f} days up")
        print(options.output)
        return 0
    runs = _runs_of(options.runs, options.kind)
    machine = runs.runs[-1].machine
    before = load_criteria(options.criteria, machine.kind)
    outcome = learn_criteria(runs, options.stack or machine.stack, workers=options.workers)
    print("\n".join(outcome.lines(before)))
    if not outcome.criteria:
        raise UsageError("nothing was learned: three healthy runs of one software stack at least are needed")
    if not options.dry_run:
        for path in save_criteria(options.criteria, machine.kind, outcome.criteria):
            print(path)
    return 0


# --- judge ---------------------------------------------------------------------------------------------------


def _judge_options(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Judge the newest run of every node in RUNS (--all: every run) by the criteria of its kind, or by its peers: "
        "criteria learned from these very runs, which find the odd node of a fleet, and nothing where all are ill. "
        "What was recorded while others used the machine is contended: that machine was not validated."
    )
    parser.add_argument("runs", type=Path, metavar="RUNS", help="folder of run files")
    _criteria_option(parser)
    parser.add_argument("--kind", metavar="KIND", help="hardware kind, where RUNS holds several")
    parser.add_argument("--peers", action="store_true", help="learn from these runs themselves")
    parser.add_argument("--all", action="store_true", help="every run, not the newest of each node")
    parser.set_defaults(command=_judge)


def _judge(options: argparse.Namespace) -> int:
    runs = _runs_of(options.runs, options.kind)
    kind = runs.runs[-1].machine.kind
    if options.peers:
        outcome = learn_criteria(runs, runs.runs[-1].machine.stack)
        criteria = outcome.criteria
        print(f"judged by {len(criteria)} criteria learned from {outcome.runs} runs of this fleet")
    else:
        criteria = load_criteria(options.criteria, kind)
        print(f"judged by {len(criteria)} criteria of {kind} in {options.criteria}")
    if not criteria:
        raise UsageError(f"no criteria for {kind}: learn some, or judge by --peers (three runs at least)")
    chosen = runs.runs if options.all else tuple({run.machine.node: run for run in runs.runs}.values())
    statuses: set[str] = set()
    for run in chosen:
        judged = [_verdict(run, criteria, number) for number, row in enumerate(run.rows) if is_metric(row)]
        found = {row.status for row in judged}
        statuses |= found
        status = exit_status(0, False, found, "gate")
        bad = [row for row in judged if row.status in {"defect", "contended"}]
        suspects = ", ".join(f"{s.component} ({s.score:.1f})" for s in rank_suspects(judged))
        print(
            f"{run.machine.node[:8]} {run.started:%Y-%m-%d %H:%M} {verdict_of(status, found, 'gate').upper():9} "
            f"{len(judged)} metrics, {len(bad)} bad" + (f"; suspects {suspects}" if suspects else "")
        )
        for row in sorted(bad, key=lambda row: row.margin or 0.0):
            print(f"    {row.status:9} {row.id}: similarity {row.similarity:.3f}, must be above {row.alpha:.3f}")
    return exit_status(0, False, statuses, "gate")


def _verdict(run: Run, criteria: Mapping[str, StoredCriterion], number: int) -> Measurement:
    row = replace(run.rows[number], status="recorded", similarity=None, alpha=None, margin=None)
    judged = judge(row, criteria.get(row.id))
    return replace(judged, status="contended") if judged.status == "defect" and under_pressure(row.noise) else judged


# --- select --------------------------------------------------------------------------------------------------


def _select_options(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Say which benchmarks to run, from what each costs (criteria, or --minutes), which defects each has caught "
        "(--history, criteria/KIND/history.json, else the prior that ships) and how likely an incident is. With "
        "--budget the most coverage within the minutes, with --p0 the cheapest that leaves a job that risk, with "
        "--hours-lost the least expected cost in node-hours. `pytest --gate --select` plans likewise, and runs it."
    )
    _criteria_option(parser)
    parser.add_argument("--kind", metavar="KIND", help="hardware kind of the criteria (default: the only one there)")
    parser.add_argument(
        "--minutes", action="append", metavar="NAME=M", help="what a benchmark costs, instead of criteria; repeat"
    )
    parser.add_argument("--history", type=Path, metavar="FILE", help="a history of defects")
    parser.add_argument("--budget", type=float, metavar="MINUTES", help="cover as much as can be in so many minutes")
    parser.add_argument("--p0", type=float, metavar="P", help="risk of an incident to reach (0.05 without --budget)")
    parser.add_argument("--hours-lost", type=float, metavar="H", help="node-hours that an incident costs each node")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="nodes of the job (%(default)s)")
    parser.add_argument("--job", type=float, default=24.0, metavar="H", help="hours of the job (%(default)s)")
    parser.add_argument("--incidents", type=int, default=0, metavar="N", help="past incidents of each node")
    parser.add_argument("--incident-probability", type=float, metavar="P", help="of each node, instead of a model")
    parser.add_argument("--incident-model", type=Path, metavar="FILE", help="made by `learn --trace`")
    parser.add_argument("--json", action="store_true", help="the plan as JSON")
    parser.set_defaults(command=_select)


def _select(options: argparse.Namespace) -> int:
    kind = options.kind
    minutes = {}
    if options.minutes:
        for text in options.minutes:
            name, _, number = text.rpartition("=")
            try:
                minutes[name] = float(number)
            except ValueError:
                raise UsageError(f"--minutes takes NAME=M such as hardware/disk/fsync=0.5, not {text!r}") from None
    else:
        kinds = sorted(path.name for path in options.criteria.glob("*") if path.is_dir())
        if kind is None and len(kinds) != 1:
            raise UsageError(f"{options.criteria} holds {len(kinds)} kinds of hardware: give --kind, or --minutes")
        kind = kind or kinds[0]
        minutes = minutes_of(load_criteria(options.criteria, kind))
    if options.incident_probability is not None:
        chances, basis = [options.incident_probability] * options.nodes, "as given"
    else:
        model, basis = incident_model(options.incident_model)
        chances = list(map(float, model.chances([options.incidents] * options.nodes, options.job)))
    history = history_for(options.criteria, kind or "", options.history)
    if options.hours_lost is not None:
        known = {name: cost for name, cost in minutes.items() if options.minutes or name in history.benchmarks}
        print(decide(chances, history, known, hours_lost_per_incident=options.hours_lost))
        return 0
    strict = bool(options.minutes)  # what was given by hand is meant
    found = select(list(minutes), minutes, history, chances, p0=options.p0, budget=options.budget, strict=strict)
    if options.json:
        print(json.dumps(found.facts(), indent=1))
    else:
        print("\n".join([*found.lines(), f"chance of an incident: {basis}"]))
    return 0


# --- simulate ------------------------------------------------------------------------------------------------


def _simulate_options(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Simulate a fleet under validation policies, event by event, and print the mean time between incidents (node-"
        "hours), the share of node-hours that was work kept, validation hours and incidents per node, each with its "
        "95 %% interval over seeds, and the ratios to the first policy."
    )
    parser.add_argument("--policy", action="append", choices=POLICIES, help="repeat; default: all")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="simulations of each policy (%(default)s)")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="nodes fail as in this outage trace")
    defaults = Scenario()
    for each in fields(Scenario):
        value = getattr(defaults, each.name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            parser.add_argument(
                f"--{each.name.replace('_', '-')}", type=type(value), default=value, help=f"default {value}"
            )
    parser.set_defaults(command=_simulate)


def _simulate(options: argparse.Namespace) -> int:
    given = {each.name: getattr(options, each.name) for each in fields(Scenario) if hasattr(options, each.name)}
    if options.seeds < 2:
        raise UsageError("--seeds takes 2 at least: an interval over seeds needs as many")
    scenario = Scenario(**{**given, "trace": infinitehbd(options.trace) if options.trace else None})
    policies = options.policy or list(POLICIES)
    outcomes = sweep(scenario, policies, options.seeds)
    print(f"{'policy':10} {'MTBI h':>22} {'utilisation':>20} {'validation h/node':>22} {'incidents/node':>18}")
    for policy in policies:
        cells = [
            interval([getattr(one, name) for one in outcomes[policy]])
            for name in ("mtbi", "utilisation", "validation_hours", "incidents")
        ]
        print(f"{policy:10} " + " ".join(f"{c.mean:9.4g} [{c.low:.4g}, {c.high:.4g}]" for c in cells))
    first = policies[0]
    for policy in policies[1:]:
        pairs = list(zip(outcomes[policy], outcomes[first], strict=True))
        gain = interval([a.mtbi / b.mtbi if math.isfinite(b.mtbi) else math.inf for a, b in pairs])
        hours = interval([a.utilisation / b.utilisation for a, b in pairs])
        print(f"{policy} over {first}: MTBI {gain.mean:.2f}x [{gain.low:.2f}, {gain.high:.2f}], "
              f"useful hours {hours.mean:.3f}x [{hours.low:.3f}, {hours.high:.3f}]")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
