"""Which component of a machine to look at first: deficits ranked, workloads behind the parts that explain them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from systems.anubis.records import Measurement

WORKLOADS = frozenset({"model", "harness"})
"""Components that run on all the others: a deficit of theirs is explained by a deficit of a part."""

QUOTA = "held back by its CPU quota"
"""How evidence of a control group's CPU quota begins."""


@dataclass(frozen=True)
class Suspect:
    """A component with what speaks against it. score: mean normalised deficit of its judged metrics, 0 = healthy."""

    component: str
    score: float
    metrics: tuple[str, ...]
    evidence: tuple[str, ...]


def is_metric(row: Measurement) -> bool:
    """Whether the row is a metric of the machine: no claim, no contender of a `versus`, no error, not a retry."""
    return row.component != "claim" and row.rival is None and row.error is None and row.attempt == 0


def deficit(row: Measurement) -> float:
    """(alpha - similarity) / (1 - alpha): 0 at the threshold, 1 at as far below it as it is below a perfect match.

    0 for a row that was not judged.
    """
    if row.similarity is None or row.alpha is None:
        return 0.0
    return min((row.alpha - row.similarity) / max(1.0 - row.alpha, 1e-6), 1e3)


def rank_suspects(rows: Iterable[Measurement]) -> list[Suspect]:
    """Components with defects or contended metrics, most suspect first.

    A component's score is the mean over its judged metrics, so that one with many is no more suspect than one with
    few. Parts come before workloads, whose deficits they explain, and a CPU quota that the kernel reports names the
    compute component outright: everything that computes is slower then.
    """
    judged: dict[str, list[Measurement]] = {}
    for row in rows:
        if is_metric(row) and row.similarity is not None and row.status != "recorded":
            judged.setdefault(row.component, []).append(row)
    found = []
    for component, metrics in judged.items():
        bad = [row for row in metrics if row.status in {"defect", "contended"}]
        if bad:
            evidence = dict.fromkeys(line for row in bad for line in row.evidence)
            score = sum(map(deficit, bad)) / len(metrics)
            found.append(Suspect(component, score, tuple(row.id for row in bad), tuple(evidence)))

    def rank(suspect: Suspect) -> tuple[bool, bool, float, str]:
        throttled = suspect.component == "compute" and any(line.startswith(QUOTA) for line in suspect.evidence)
        return not throttled, suspect.component in WORKLOADS, -suspect.score, suspect.component

    return sorted(found, key=rank)
