"""From run files, criteria and seeds to an `Overview`.

Data flows one way: `gather` reads, and `summarise` is a pure function of what was read. Nothing here judges a
metric: statuses, similarities and margins are those that the run files hold.
"""

from __future__ import annotations

import hashlib
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reports.claims import Paper, read_seeds, results
from reports.overview import (
    CriterionLine,
    Curve,
    Distribution,
    Heat,
    Line,
    Metric,
    Node,
    Overview,
    PastRun,
    Peer,
    Picture,
    Provenance,
    RunRef,
    Suspect,
    component_rank,
)
from reports.trend import trends
from reports.verdict import fleet_words, is_metric, is_ratio, severity, suspects_of, verdict_of
from systems.anubis.criteria import Criteria, StoredCriterion, load_criteria
from systems.anubis.machine import Noise
from systems.anubis.records import Measurement, RecordsError, Run, Runs, iter_journals, metric_id, read_runs
from systems.anubis.suspects import deficit
from systems.anubis.validator import InvalidSample, quantiles

CURVE_POINTS = 64
CURVES_DRAWN = 6

_IMAGE = re.compile(r"data:image/(svg\+xml|png);base64,[A-Za-z0-9+/]+={0,2}")
_MODES = {"record": "--record", "gate": "--gate", "strict": "--gate strict", "learn": "--learn"}


@dataclass(frozen=True)
class Sources:
    """What `gather` read: runs (oldest first), criteria by kind, papers, and what could not be read."""

    runs: Runs
    criteria: Mapping[str, Criteria]
    papers: tuple[Paper, ...]
    skipped: tuple[tuple[str, str], ...]
    journals: tuple[str, ...]


# --- reading ------------------------------------------------------------------------------------------------


def gather(folder: Path, criteria: Path, seeds: Path) -> Sources:
    """Read the run files, criteria and seeds; whatever is bad is listed in `skipped` and stops nothing."""
    runs = read_runs(folder)
    skipped = [(str(path), reason) for path, reason in runs.skipped]
    found: dict[str, Criteria] = {}
    for kind in sorted({run.machine.kind for run in runs.runs}):
        try:
            found[kind] = load_criteria(criteria, kind)
        except RecordsError as error:
            skipped.append((str(criteria / kind), str(error)))
    papers, bad_seeds = read_seeds(seeds)
    skipped += [(str(path), reason) for path, reason in bad_seeds]
    return Sources(runs, found, papers, tuple(skipped), tuple(path.name for path in iter_journals(folder)))


# --- summarising --------------------------------------------------------------------------------------------


def summarise(sources: Sources) -> Overview:
    """Everything that the page shows, from what was read. Pure: the same sources give the same overview."""
    runs = sources.runs.runs
    latest = {run.machine.node: run for run in runs}  # oldest first, so the latest of each node stays
    tally = Counter(run.machine.node for run in runs)
    in_force = {
        kind: {name: _in_force(stored) for name, stored in metrics.items()}
        for kind, metrics in sources.criteria.items()
    }
    nodes = sorted(
        (_node(run, in_force.get(run.machine.kind, {}), tally[run.machine.node]) for run in latest.values()),
        key=lambda node: (
            severity(node.verdict.status),
            1.0 if node.lowest_margin is None else node.lowest_margin,
            node.ref.host,
            node.ref.node,
        ),
    )
    metrics = _metrics(nodes)
    criteria = _criteria_lines(sources.criteria, in_force, nodes)
    if len(nodes) == 1:
        verdict = nodes[0].verdict
        status, headline, meaning, steps = verdict.status, verdict.headline, verdict.meaning, verdict.next_steps
    elif nodes:
        status, headline, meaning, steps = fleet_words((node.ref.host, node.verdict) for node in nodes)
    else:
        status, headline, meaning = "recorded", "No runs yet", "This folder holds no run file that can be read."
        steps = ("Run make gate, or pytest suites --gate: it writes a run file, and this page then has a verdict.",)
    return Overview(
        status=status,
        headline=headline,
        meaning=meaning,
        next_steps=steps,
        nodes=tuple(nodes),
        metrics=metrics,
        heats=_heats(nodes),
        distributions=_distributions(metrics, nodes, sources),
        papers=sources.papers,
        claims=results(sources.papers, runs),
        peers=_peers(runs),
        criteria=criteria,
        provenance=_provenance(sources.criteria, nodes),
        unmeasured=tuple(line.id for line in criteria if line.use == "orphaned"),
        runs=tuple(_past(run) for run in reversed(runs)),
        skipped=sources.skipped,
        journals=sources.journals,
        trends=trends(runs),
        pictures=_pictures(runs),
    )


@dataclass(frozen=True)
class _InForce:
    """What every line needs of its criterion, worked out once: hashing a criterion costs more than reading a row."""

    median: float
    hash: str


def _in_force(stored: StoredCriterion) -> _InForce:
    return _InForce(float(np.median(np.asarray(stored.criterion.quantiles, dtype=np.float64))), stored.hash)


def anchor_of(kind: str, name: str) -> str:
    """A stable HTML id for a metric of a kind."""
    return "m" + hashlib.sha256(f"{kind}\0{name}".encode()).hexdigest()[:10]


def ref_of(run: Run) -> RunRef:
    """The reference that signs numbers of `run`."""
    host = str(run.machine.facts.get("hostname") or run.machine.node[:8])
    return RunRef(run.run_id, run.machine.node, host, run.started.isoformat(timespec="seconds"))


def _node(run: Run, in_force: Mapping[str, _InForce], runs: int) -> Node:
    ref = ref_of(run)
    lines = _lines(run, in_force, ref)
    counts = Counter(line.status for line in lines)
    suspects = suspects_of(run)
    code, provisional = run.facts.get("exit_code"), run.facts.get("provisional")
    return Node(
        ref=ref,
        kind=run.machine.kind,
        stack=run.machine.stack,
        verdict=verdict_of(run, counts, suspects),
        exit_code=code if isinstance(code, int) else None,
        provisional=provisional if isinstance(provisional, bool) else None,
        seconds=_cost(run),
        tests=len({row.test for row in run.rows}),
        counts=dict(sorted(counts.items())),
        suspects=tuple(Suspect(component, score, _findings(lines, component)) for component, score in suspects),
        lines=lines,
        lowest_margin=min((line.margin for line in lines if line.margin is not None), default=None),
        commit=run.commit,
        command=run.command,
        options=_options(run),
        recovered=bool(run.facts.get("recovered")),
        runs=runs,
        noise=_noise_over(run),
    )


def _lines(run: Run, in_force: Mapping[str, _InForce], ref: RunRef) -> tuple[Line, ...]:
    retries: dict[str, list[float]] = {}
    for row in run.rows:
        if row.attempt > 0 and row.similarity is not None and row.rival is None:
            retries.setdefault(row.id, []).append(row.similarity)
    lines = [
        _line(run, row, in_force.get(row.id), tuple(retries.get(row.id, ())), ref) for row in run.rows if is_metric(row)
    ]
    return tuple(sorted(lines, key=_line_order))


def _line(run: Run, row: Measurement, in_force: _InForce | None, retries: tuple[float, ...], ref: RunRef) -> Line:
    return Line(
        id=row.id,
        anchor=anchor_of(run.machine.kind, row.id),
        kind=run.machine.kind,
        component=row.component,
        unit=row.unit,
        better=row.better,
        test=row.test,
        status=row.status,
        median=statistics.median(row.values) if row.values else None,
        samples=len(row.values),
        criterion_median=None if in_force is None else in_force.median,
        similarity=row.similarity,
        alpha=row.alpha,
        margin=_margin(row),
        noise=row.noise,
        seconds=row.seconds,
        evidence=row.evidence,
        error=row.error,
        retries=retries,
        criterion=row.criterion,
        changed=in_force is not None and row.criterion is not None and row.criterion != in_force.hash,
        run=ref,
    )


def _margin(row: Measurement) -> float | None:
    if row.margin is not None or row.similarity is None or row.alpha is None:
        return row.margin
    return row.similarity - row.alpha


def _line_order(line: Line) -> tuple[int, float, int, str]:
    return (
        severity(line.status),
        line.margin if line.margin is not None else 1.0,
        component_rank(line.component),
        line.id,
    )


def _findings(lines: Iterable[Line], component: str) -> tuple[Line, ...]:
    return tuple(
        line for line in lines if line.component == component and line.status in {"defect", "contended", "flaky"}
    )


def _options(run: Run) -> tuple[str, ...]:
    options: Any = run.facts.get("options") or _MODES.get(str(run.facts.get("mode")), ())
    return (options,) if isinstance(options, str) else tuple(map(str, options))


def _cost(run: Run) -> float:
    """Seconds that the tests took: several metrics of one try of a test share its cost."""
    costs: dict[tuple[str, int], float] = {}
    for row in run.rows:
        key = (row.test, row.attempt)
        costs[key] = max(costs.get(key, 0.0), row.seconds)
    return sum(costs.values())


def _noise_over(run: Run) -> tuple[tuple[float, Noise], ...]:
    """(seconds since the first test began, noise) at the end of each try of a test, in the order they ran."""
    elapsed, points = 0.0, []
    seen: set[tuple[str, int]] = set()
    for row in run.rows:
        if (row.test, row.attempt) not in seen:
            seen.add((row.test, row.attempt))
            elapsed += row.seconds
            if row.noise != Noise():
                points.append((elapsed, row.noise))
    return tuple(points)


def _metrics(nodes: Sequence[Node]) -> tuple[Metric, ...]:
    by_metric: dict[tuple[str, str], list[Line]] = {}
    for node in nodes:
        for line in node.lines:
            by_metric.setdefault((node.kind, line.id), []).append(line)
    found = []
    for lines in by_metric.values():
        medians = [line.median for line in lines if line.median is not None]
        found.append(
            Metric(
                worst=min(lines, key=_line_order),
                nodes=len(lines),
                statuses=dict(sorted(Counter(line.status for line in lines).items())),
                medians=(min(medians), max(medians)) if medians else None,
            )
        )
    return tuple(sorted(found, key=lambda metric: (_line_order(metric.worst), metric.worst.kind)))


def _heats(nodes: Sequence[Node]) -> tuple[Heat, ...]:
    heats = []
    for kind in sorted({node.kind for node in nodes}):
        members = [node for node in nodes if node.kind == kind]
        columns = sorted(
            {
                (component_rank(line.component), line.component, line.id)
                for node in members
                for line in node.lines
                if line.similarity is not None
            }
        )
        if not columns:
            continue
        cells = [{line.id: line for line in node.lines} for node in members]
        names = [name for _, _, name in columns]
        heats.append(
            Heat(
                kind=kind,
                nodes=tuple(node.ref for node in members),
                metrics=tuple(names),
                components=tuple(component for _, component, _ in columns),
                similarity=tuple(
                    tuple(row[name].similarity if name in row else None for name in names) for row in cells
                ),
                alpha=tuple(tuple(row[name].alpha if name in row else None for name in names) for row in cells),
                status=tuple(tuple(row[name].status if name in row else None for name in names) for row in cells),
            )
        )
    return tuple(heats)


def _distributions(metrics: Sequence[Metric], nodes: Sequence[Node], sources: Sources) -> tuple[Distribution, ...]:
    judged = [metric for metric in metrics if metric.worst.drawn]
    latest = {node.ref.run_id for node in nodes}
    samples: dict[tuple[str, str], list[tuple[Run, Measurement]]] = {}
    wanted = {(metric.worst.kind, metric.worst.id) for metric in judged}
    for run in sources.runs.runs:
        for row in run.rows:
            key = (run.machine.kind, row.id)
            if key in wanted and is_metric(row) and row.values:
                samples.setdefault(key, []).append((run, row))
    return tuple(
        _distribution(metric, samples.get((metric.worst.kind, metric.worst.id), ()), latest, sources)
        for metric in judged
    )


def _distribution(
    metric: Metric, samples: Sequence[tuple[Run, Measurement]], latest: set[str], sources: Sources
) -> Distribution:
    stored = sources.criteria.get(metric.worst.kind, {}).get(metric.worst.id)
    newest = [(run, row) for run, row in samples if run.run_id in latest]
    newest.sort(key=lambda pair: (severity(pair[1].status), -deficit(pair[1])))
    drawn = newest[:CURVES_DRAWN]
    drawn_ids = {run.run_id for run, _ in drawn}
    curves = [Curve(ref_of(run), row.status, _six_digits(vector)) for run, row in drawn if len(vector := _vector(row))]
    rest = [vector for run, row in samples if run.run_id not in drawn_ids and len(vector := _vector(row, CURVE_POINTS))]
    span = None
    if rest:
        table = np.asarray(rest)
        span = (_six_digits(table.min(axis=0)), _six_digits(table.max(axis=0)))
    return Distribution(
        metric=metric,
        curves=tuple(curves),
        span=span,
        others=len(rest),
        criterion=() if stored is None else _six_digits(stored.criterion.quantiles),
    )


def _vector(row: Measurement, points: int | None = None) -> NDArray[np.float64]:
    """At most `CURVE_POINTS` quantiles of the row's sample; empty for a sample that cannot be drawn."""
    try:
        return quantiles(row.values, points or min(CURVE_POINTS, len(row.values)))
    except InvalidSample:
        return np.empty(0)


def _six_digits(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values)


def _peers(runs: Sequence[Run]) -> tuple[Peer, ...]:
    """Each ratio, from the newest run of its kind of hardware that holds it, by test."""
    newest: dict[tuple[str, str], Peer] = {}
    for run in runs:
        rows = [row for row in run.rows if row.attempt == 0]
        by_test: dict[str, list[Measurement]] = {}
        for row in rows:
            by_test.setdefault(row.test, []).append(row)
        for row in rows:
            if is_ratio(row):
                newest[run.machine.kind, row.id] = _peer(row, by_test[row.test], ref_of(run))
    return tuple(sorted(newest.values(), key=lambda peer: (peer.test, peer.id)))


def _pictures(runs: Sequence[Run]) -> tuple[Picture, ...]:
    """The newest drawing of each suite and title. What is not an image, or not whole, is left out."""
    newest: dict[tuple[str, str], Picture] = {}
    for run in runs:
        drawn = run.facts.get("pictures")
        for entry in drawn if isinstance(drawn, list) else ():
            named = entry if isinstance(entry, Mapping) else {}
            suite, title, test, image = (str(named.get(name, "")) for name in ("suite", "title", "test", "image"))
            if _IMAGE.fullmatch(image):
                newest[suite, title] = Picture(suite, title, test, image, ref_of(run))
    return tuple(newest[key] for key in sorted(newest))


def _peer(row: Measurement, beside: Sequence[Measurement], ref: RunRef) -> Peer:
    of, over = row.params["of"], row.params["over"]
    params = {name: value for name, value in row.params.items() if name not in {"of", "over"}}
    rivals = [other for other in beside if other.values and not is_ratio(other) and dict(other.params) == params]
    theirs = next((other for other in rivals if other.rival == over), None)
    ours = next((other for other in rivals if other.rival == of), None)
    if ours is None and theirs is not None:  # the first contender is the test's own metric, and no one's rival
        ours = next((other for other in rivals if other.rival is None and other.unit == theirs.unit), None)
    shown = theirs or ours
    return Peer(
        id=row.id,
        metric=metric_id(row.metric.removesuffix("/ratio"), params),
        test=row.test,
        of=of,
        over=over,
        ratio=row.values[0],
        low=row.values[1],
        high=row.values[2],
        of_median=statistics.median(ours.values) if ours else None,
        over_median=statistics.median(theirs.values) if theirs else None,
        unit=shown.unit if shown else "",
        status=row.status,
        evidence=row.evidence,
        run=ref,
    )


def _criteria_lines(
    criteria: Mapping[str, Criteria], in_force: Mapping[str, Mapping[str, _InForce]], nodes: Sequence[Node]
) -> tuple[CriterionLine, ...]:
    used: dict[tuple[str, str], bool] = {}
    for node in nodes:
        for line in node.lines:
            key = (node.kind, line.id)
            used[key] = used.get(key, False) or line.changed
    lines = []
    for kind, metrics in sorted(criteria.items()):
        for name, stored in metrics.items():
            c = stored.criterion
            use = "orphaned" if (kind, name) not in used else "changed since" if used[kind, name] else "in use"
            lines.append(
                CriterionLine(
                    kind=kind,
                    id=name,
                    anchor=anchor_of(kind, name),
                    component=stored.component,
                    unit=stored.unit,
                    better=c.better,
                    median=in_force[kind][name].median,
                    alpha=c.alpha,
                    calibrated=c.calibrated,
                    gates=c.gates,
                    repeatability=c.repeatability,
                    nodes=c.nodes,
                    excluded=c.excluded,
                    runs=len(stored.runs),
                    learned_at=stored.learned_at,
                    stack=stored.stack,
                    hash=in_force[kind][name].hash,
                    use=use,
                )
            )
    return tuple(sorted(lines, key=lambda line: (line.kind, component_rank(line.component), line.id)))


def _provenance(criteria: Mapping[str, Criteria], nodes: Sequence[Node]) -> tuple[Provenance, ...]:
    found = []
    for kind in sorted({node.kind for node in nodes}):
        stored = list(criteria.get(kind, {}).values())
        runs = {run for one in stored for run in one.runs}
        calibrated = sum(one.criterion.calibrated for one in stored)
        days = sorted(one.learned_at[:10] for one in stored if one.learned_at)
        provisional = any(node.provisional for node in nodes if node.kind == kind)
        if not stored:
            words = "none for this kind of hardware"
        else:
            base = f"learned from {len(runs)} run{'' if len(runs) == 1 else 's'}"
            words = (
                f"provisional: {base} of this machine itself"
                if provisional
                else f"{base}, calibrated"
                if calibrated == len(stored)
                else f"{base}, not calibrated"
                if not calibrated
                else f"{base}, {calibrated} of {len(stored)} calibrated"
            )
        found.append(
            Provenance(
                kind=kind,
                metrics=len(stored),
                calibrated=calibrated,
                runs=len(runs),
                learned=(days[0], days[-1]) if days else ("", ""),
                words=words,
            )
        )
    return tuple(found)


def _past(run: Run) -> PastRun:
    rows = [row for row in run.rows if is_metric(row)]
    counts = Counter(row.status for row in rows)
    code = run.facts.get("exit_code")
    return PastRun(
        ref=ref_of(run),
        kind=run.machine.kind,
        status=verdict_of(run, counts, suspects_of(run)).status,
        exit_code=code if isinstance(code, int) else None,
        seconds=_cost(run),
        metrics=len(rows),
        options=_options(run),
        file=run.filename,
    )
