"""How metrics went over many runs: one value a run, steps where they changed for good, and slow drifts.

    for trend in trends(runs.runs):
        trend.id, trend.steps, trend.drift

A series belongs to one metric on one node. Runs under an injected fault, and what others pressed on, do not count: a
busy night is no step of the machine.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from systems.anubis.judging import under_pressure
from systems.anubis.records import Run
from systems.anubis.steps import SHORTEST, detect
from systems.anubis.suspects import is_metric
from systems.anubis.units import quantity

FEWEST_RUNS = 2 * SHORTEST
"""Fewer runs of a metric on a node hold no step that could be told from noise."""

DAY = 86400.0


@dataclass(frozen=True)
class Change:
    """A step: the first run after it, medians before and after, `worse` None for metrics without a better side."""

    at: int
    started: str
    run_id: str
    before: float
    after: float
    p: float
    worse: bool | None

    @property
    def change(self) -> float:
        """Relative to before."""
        return self.after / self.before - 1.0


@dataclass(frozen=True)
class Trend:
    """One metric on one node over its runs, oldest first.

    values: (runs,) medians in `unit`; started: (runs,) ISO times; levels: (start, end, median) of each segment;
    drift: relative change per 30 days where it creeps, None where it does not; worse: whether that is for the worse.
    """

    kind: str
    node: str
    host: str
    id: str
    component: str
    unit: str
    better: str
    started: tuple[str, ...]
    values: tuple[float, ...]
    levels: tuple[tuple[int, int, float], ...]
    noise: float
    steps: tuple[Change, ...]
    drift: float | None
    worse: bool | None

    @property
    def moved(self) -> bool:
        """Whether there is anything to say."""
        return bool(self.steps) or self.drift is not None

    def __str__(self) -> str:
        head = f"{self.host} {self.id}"
        said = [
            f"{head}: {quantity(step.before, self.unit)} -> {quantity(step.after, self.unit)} ({step.change:+.1%}) "
            f"since {step.started[:16].replace('T', ' ')}, run {step.run_id[:8]}{_word(step.worse)}"
            for step in self.steps
        ]
        if self.drift is not None:
            said.append(
                f"{head}: drifts by {self.drift:+.1%} in 30 days over {len(self.values)} runs{_word(self.worse)}"
            )
        return "\n".join(said) or f"{head}: steady over {len(self.values)} runs"


def _word(worse: bool | None) -> str:
    return "" if worse is None else ", worse" if worse else ", better"


def trends(runs: Iterable[Run], *, fewest: int = FEWEST_RUNS) -> tuple[Trend, ...]:
    """Every metric on every node with `fewest` runs at least; what moved for the worse first, then by size."""
    series: dict[tuple[str, str, str], list[tuple[Run, float]]] = {}
    last = {}
    for run in sorted(runs, key=lambda run: run.started):
        if run.facts.get("fault"):
            continue
        for row in run.rows:
            if is_metric(row) and row.values and row.unit != "digest" and not under_pressure(row.noise):
                key = (run.machine.kind, run.machine.node, row.id)
                series.setdefault(key, []).append((run, float(statistics.median(row.values))))
                last[key] = row
    found = [
        _trend(key, points, last[key].component, last[key].unit, last[key].better)
        for key, points in series.items()
        if len(points) >= fewest
    ]
    return tuple(sorted(found, key=_order))


def _trend(
    key: tuple[str, str, str], points: Sequence[tuple[Run, float]], component: str, unit: str, better: str
) -> Trend:
    kind, node, name = key
    values = [value for _, value in points]
    found = detect(values)
    dates = [run.started for run, _ in points]
    host = str(points[-1][0].machine.facts.get("hostname") or node[:8])
    return Trend(
        kind=kind,
        node=node,
        host=host,
        id=name,
        component=component,
        unit=unit,
        better=better,
        started=tuple(date.isoformat(timespec="seconds") for date in dates),
        values=tuple(values),
        levels=tuple(zip(found.bounds[:-1], found.bounds[1:], found.levels, strict=True)),
        noise=found.noise,
        steps=tuple(
            Change(
                step.at,
                dates[step.at].isoformat(timespec="seconds"),
                points[step.at][0].run_id,
                step.before,
                step.after,
                step.p,
                _worse(step.after - step.before, better),
            )
            for step in found.steps
        ),
        drift=None if found.drift is None else found.drift * _runs_in_30_days(dates),
        worse=None if found.drift is None else _worse(found.drift, better),
    )


def _runs_in_30_days(dates: Sequence[datetime]) -> float:
    days = (dates[-1] - dates[0]).total_seconds() / DAY
    return 30.0 * (len(dates) - 1) / days if days > 0 else float(len(dates))


def _worse(change: float, better: str) -> bool | None:
    return None if better == "target" else change > 0 if better == "lower" else change < 0


def _order(trend: Trend) -> tuple[bool, bool, float, str, str]:
    worse = any(step.worse for step in trend.steps) or bool(trend.worse)
    size = max([abs(step.change) for step in trend.steps] + [abs(trend.drift or 0.0)])
    return not worse, not trend.moved, -size, trend.id, trend.node
