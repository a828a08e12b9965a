"""What to run on this machine now: the Selector's plan from what was learned here, and how to say it.

    found = select(benchmarks, minutes_of(criteria), history_for(folder, kind), p=[0.02] * 32, p0=0.05, budget=10)
    found.plan.benchmarks, found.lines()

A benchmark costs what its criteria say that it took; what it catches is in `criteria/<kind>/history.json`, made by the
fault matrix (`python -m systems.anubis.matrix`) or from repairs, else in the prior that ships with Maat.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from systems.anubis.criteria import HISTORY, StoredCriterion
from systems.anubis.records import benchmark_of
from systems.anubis.selector import BudgetTooSmall, History, Plan, SelectorError, UnknownBenchmark, plan
from systems.anubis.survival import Exponential

PRIOR = Path(__file__).with_name("prior_history.json")
HAZARD_PRIOR = Path(__file__).with_name("prior_incidents.json")
RISK = 0.05
"""Target risk where neither a target nor a budget is given."""


@dataclass(frozen=True)
class Selection:
    """A plan with what it stands on.

    minutes: what each benchmark of the plan costs; candidates: how many could be planned; untimed: benchmarks left
    out since no criterion says what they cost; unknown: left out since the history has never seen them; p0, budget:
    as asked for, None where not.
    """

    plan: Plan
    minutes: Mapping[str, float]
    history: History
    candidates: int
    untimed: tuple[str, ...]
    unknown: tuple[str, ...]
    p0: float | None
    budget: float | None

    def lines(self) -> list[str]:
        """For a terminal: what runs, for how long, what it covers, the risk before and after, what was left out."""
        chosen = self.plan
        asked = [f"risk at most {self.p0:.3g}"] if self.p0 is not None else []
        asked += [f"at most {self.budget:.3g} minutes"] if self.budget is not None else []
        if chosen.benchmarks:
            lines = [
                f"plan for {' and '.join(asked)}: {len(chosen.benchmarks)} of {self.candidates} benchmarks, "
                f"{chosen.minutes:.2f} minutes, coverage {chosen.coverage:.1%} of defects, risk of an incident "
                f"{chosen.before:.2%} -> {chosen.residual:.2%}" + ("" if chosen.reached else " (target out of reach)")
            ]
            lines += [f"  {self.minutes[name]:6.2f} min  {name}" for name in chosen.benchmarks]
        else:
            lines = [f"no validation needed: the risk of an incident is {chosen.before:.2%}, the target {self.p0:.3g}"]
        lines.append(f"history: {self.history.source}, {self.history.total} defects")
        if self.untimed:
            lines.append(f"left out, no criterion says what they cost: {_grouped(self.untimed)}")
        if self.unknown:
            lines.append(f"left out, unknown to the history: {_grouped(self.unknown)}")
        return lines

    def facts(self) -> dict[str, object]:
        """JSON-able, for the run file."""
        return {
            "benchmarks": list(self.plan.benchmarks),
            "minutes": self.plan.minutes,
            "coverage": self.plan.coverage,
            "risk_before": self.plan.before,
            "risk_after": self.plan.residual,
            "reached": self.plan.reached,
            "history": self.history.source,
        }


def _grouped(names: Iterable[str]) -> str:
    """Names without parameters, and how often each."""
    counts = Counter(name.partition("{")[0] for name in names)
    return ", ".join(f"{name} ({count})" if count > 1 else name for name, count in sorted(counts.items()))


def minutes_of(criteria: Mapping[str, StoredCriterion]) -> dict[str, float]:
    """Minutes by benchmark. All metrics of a benchmark were taken in one test, and cost what it cost together."""
    minutes: dict[str, float] = {}
    for name, stored in criteria.items():
        if stored.seconds > 0:
            benchmark = benchmark_of(name)
            minutes[benchmark] = max(minutes.get(benchmark, 0.0), stored.seconds / 60)
    return minutes


def history_for(folder: Path, kind: str, given: Path | None = None) -> History:
    """The history of defects: the file given, else that of the kind in the criteria `folder`, else the prior.

    Raises SelectorError where the file is none.
    """
    own = given or folder / kind / HISTORY
    if given is not None or own.exists():
        found = History.load(own)
        return replace(found, source=f"{own} ({found.source})")
    found = History.load(PRIOR)
    return replace(found, source=f"the prior that ships with Maat ({found.source}): not of this kind of machine")


def incident_model(given: Path | None = None) -> tuple[Exponential, str]:
    """Rates by past incidents, and where they come from: the file given, else those that ship. Raises BadHistory."""
    if given is not None:
        return Exponential.load(given)
    model, source = Exponential.load(HAZARD_PRIOR)
    return model, f"the prior that ships with Maat ({source})"


def select(
    benchmarks: Collection[str],
    minutes: Mapping[str, float],
    history: History,
    p: Sequence[float],
    *,
    p0: float | None = None,
    budget: float | None = None,
    strict: bool = False,
) -> Selection:
    """Which of `benchmarks` to run, for a job whose nodes have an incident with chances `p` (nodes,).

    p0      target risk: the cheapest plan that reaches it. With `budget` too, that plan where it fits, else as below
    budget  minutes: the plan that covers most within them
    strict  a benchmark without minutes or without history is an error instead of left out

    With neither, p0 is 0.05. Raises UnknownBenchmark, BudgetTooSmall (naming the cheapest benchmark), SelectorError.
    """
    if p0 is None and budget is None:
        p0 = RISK
    wanted = sorted(set(benchmarks))
    untimed = tuple(name for name in wanted if name not in minutes)
    unknown = tuple(name for name in wanted if name in minutes and name not in history.benchmarks)
    costs = {name: minutes[name] for name in wanted if name in minutes and name in history.benchmarks}
    if not wanted:
        raise SelectorError("no benchmark to choose from: this selection of tests measures nothing")
    if len(untimed) == len(wanted):
        raise SelectorError(f"nothing learned yet of {_grouped(wanted)}: run with --learn, or --gate alone, first")
    if not costs or (strict and (unknown or untimed)):
        raise UnknownBenchmark(
            f"no history knows {_grouped(unknown)}: run the fault matrix with it first"
            if unknown
            else f"nothing learned yet of {_grouped(untimed)}: run with --learn first"
        )
    if not any(pattern & costs.keys() for pattern in history.patterns):
        raise SelectorError(f"no defect in the history was caught by {_grouped(costs)}: there is nothing to gain")
    chosen: Plan | None = None
    if p0 is not None:
        chosen = plan(p, history, costs, p0=p0)
    if budget is not None and (chosen is None or not chosen.reached or chosen.minutes > budget):
        if budget < min(costs.values()):
            raise BudgetTooSmall(budget, min(costs.items(), key=lambda pair: pair[1]))
        # Without a target some risk is always worth the minutes that are there.
        chosen = plan(p, history, costs, p0=p0 or 1e-12, budget=budget)
        if p0 is not None:
            chosen = replace(chosen, reached=chosen.residual <= p0)
    assert chosen is not None
    return Selection(
        chosen, {n: costs[n] for n in chosen.benchmarks}, history, len(costs), untimed, unknown, p0, budget
    )
