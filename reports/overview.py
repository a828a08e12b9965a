"""Everything that the page shows, as plain numbers in base units: the records that `summarise` fills.

The page, the JSON and the JUnit file only format an `Overview`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from reports.claims import STATUSES as CLAIM_STATUSES
from reports.claims import ClaimResult, Paper
from reports.trend import Trend
from reports.verdict import Verdict
from systems.anubis.machine import Noise

COMPONENT_ORDER = ("compute", "memory", "disk", "network", "gpu", "model", "harness")


def component_rank(component: str) -> int:
    """Place of a component in `COMPONENT_ORDER`; unknown ones last."""
    return COMPONENT_ORDER.index(component) if component in COMPONENT_ORDER else len(COMPONENT_ORDER)


@dataclass(frozen=True)
class RunRef:
    """Which run a number comes from. `started`: ISO 8601, UTC."""

    run_id: str
    node: str
    host: str
    started: str

    @property
    def short(self) -> str:
        """`3f2a91bc on node01, 2026-03-01 06:00`: what every figure is signed with."""
        return f"{self.run_id[:8]} on {self.host}, {self.started[:16].replace('T', ' ')}"


@dataclass(frozen=True)
class Line:
    """One metric on one node, from the node's latest run.

    median in `unit`; criterion_median: of the criterion in force, None if there is none; retries:
    similarities of the confirming tries; changed: it was judged by another criterion than that.
    """

    id: str
    anchor: str
    kind: str
    component: str
    unit: str
    better: str
    test: str
    status: str
    median: float | None
    samples: int
    criterion_median: float | None
    similarity: float | None
    alpha: float | None
    margin: float | None
    noise: Noise
    seconds: float
    evidence: tuple[str, ...]
    error: str | None
    retries: tuple[float, ...]
    criterion: str | None
    changed: bool
    run: RunRef

    @property
    def drawn(self) -> bool:
        """Whether the page draws its distribution: it was judged, and is a quantity, not a digest."""
        return self.similarity is not None and self.unit != "digest"


@dataclass(frozen=True)
class Metric:
    """One metric over all nodes of a kind: the line of its worst node stands for it. `medians`: (lowest,
    highest).
    """

    worst: Line
    nodes: int
    statuses: Mapping[str, int]
    medians: tuple[float, float] | None


@dataclass(frozen=True)
class Suspect:
    """A component that may be at fault, its score (larger is worse) and the lines that speak against it."""

    component: str
    score: float
    findings: tuple[Line, ...]


@dataclass(frozen=True)
class Node:
    """One node by its latest run. `seconds`: cost of its tests; `runs`: how many runs of it are in the
    folder; `noise`: (seconds since the first test began, noise) at the end of each test.
    """

    ref: RunRef
    kind: str
    stack: str
    verdict: Verdict
    exit_code: int | None
    provisional: bool | None
    seconds: float
    tests: int
    counts: Mapping[str, int]
    suspects: tuple[Suspect, ...]
    lines: tuple[Line, ...]
    lowest_margin: float | None
    commit: str
    command: str
    options: tuple[str, ...]
    recovered: bool
    runs: int
    noise: tuple[tuple[float, Noise], ...]


@dataclass(frozen=True)
class Heat:
    """Node x metric of one kind. similarity, alpha: (nodes, metrics), None where none; so is status."""

    kind: str
    nodes: tuple[RunRef, ...]
    metrics: tuple[str, ...]
    components: tuple[str, ...]
    similarity: tuple[tuple[float | None, ...], ...]
    alpha: tuple[tuple[float | None, ...], ...]
    status: tuple[tuple[str | None, ...], ...]


@dataclass(frozen=True)
class Curve:
    """The empirical distribution of one sample: quantiles (q,) in the metric's unit, non-decreasing."""

    run: RunRef
    status: str
    quantiles: tuple[float, ...]


@dataclass(frozen=True)
class Distribution:
    """A judged metric's distributions: the criterion, the worst nodes' samples, the span of all other runs.

    criterion: (q,) quantiles in force, empty if there are none; span: lowest and highest quantiles (q,) over
    `others` further runs of the kind, empty if there are none.
    """

    metric: Metric
    criterion: tuple[float, ...]
    curves: tuple[Curve, ...]
    span: tuple[tuple[float, ...], tuple[float, ...]] | None
    others: int


@dataclass(frozen=True)
class Peer:
    """One ratio of a `versus`: how many times `of` is faster than `over`, with its 95 % interval.

    metric: the id of what was compared; the medians are in `unit`, None where the run lacks a contender.
    """

    id: str
    metric: str
    test: str
    of: str
    over: str
    ratio: float
    low: float
    high: float
    of_median: float | None
    over_median: float | None
    unit: str
    status: str
    evidence: tuple[str, ...]
    run: RunRef


@dataclass(frozen=True)
class CriterionLine:
    """One criterion in force and where it came from. `use`: in use, orphaned, or changed since it judged."""

    kind: str
    id: str
    anchor: str
    component: str
    unit: str
    better: str
    median: float
    alpha: float
    calibrated: bool
    gates: bool
    repeatability: float
    nodes: int
    excluded: int
    runs: int
    learned_at: str
    stack: str
    hash: str
    use: str


@dataclass(frozen=True)
class Provenance:
    """Where the criteria of one kind come from. `runs`: how many; `learned`: first and last day."""

    kind: str
    metrics: int
    calibrated: int
    runs: int
    learned: tuple[str, str]
    words: str


@dataclass(frozen=True)
class Picture:
    """What a test of `suite` has drawn in a run. image: a data URI of SVG or PNG."""

    suite: str
    title: str
    test: str
    image: str
    run: RunRef


@dataclass(frozen=True)
class PastRun:
    """One run of the folder, for the list of runs."""

    ref: RunRef
    kind: str
    status: str
    exit_code: int | None
    seconds: float
    metrics: int
    options: tuple[str, ...]
    file: str


@dataclass(frozen=True)
class Overview:
    """Everything that the page shows. `skipped`: (path, reason); `journals`: runs in progress or crashed."""

    status: str
    headline: str
    meaning: str
    next_steps: tuple[str, ...]
    nodes: tuple[Node, ...]
    metrics: tuple[Metric, ...]
    heats: tuple[Heat, ...]
    distributions: tuple[Distribution, ...]
    papers: tuple[Paper, ...]
    claims: tuple[ClaimResult, ...]
    peers: tuple[Peer, ...]
    criteria: tuple[CriterionLine, ...]
    provenance: tuple[Provenance, ...]
    unmeasured: tuple[str, ...]
    runs: tuple[PastRun, ...]
    skipped: tuple[tuple[str, str], ...]
    journals: tuple[str, ...]
    trends: tuple[Trend, ...]
    pictures: tuple[Picture, ...] = ()

    @property
    def claim_counts(self) -> Mapping[str, int]:
        """How many claims have each status, all statuses named."""
        counts = Counter(result.status for result in self.claims)
        return {status: counts[status] for status in CLAIM_STATUSES}
