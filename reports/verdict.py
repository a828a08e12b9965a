"""What a run says about its machine, in words: the verdict, the suspects, what to do next.

The gate stores its verdict and suspects in the run's facts; a run without them (recovered after a crash,
imported) is judged here from its rows, by the order that the gate's exit codes follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from systems.anubis.records import Measurement, Run
from systems.anubis.suspects import rank_suspects

# Worst first: this is the order in which one row, or one node, stands for many.
SEVERITY = (
    "failed",
    "error",
    "defect",
    "incomplete",
    "invalid",
    "contended",
    "flaky",
    "new",
    "recorded",
    "pass",
)

# The page's four tones; each also has its own sign and word, so nothing is told by colour alone.
TONES = {
    "pass": "good",
    "defect": "bad",
    "failed": "bad",
    "error": "bad",
    "contended": "warn",
    "flaky": "warn",
    "incomplete": "warn",
    "invalid": "warn",
    "new": "info",
    "recorded": "info",
}
SIGNS = {
    "pass": "✓",
    "defect": "✕",
    "failed": "✕",
    "error": "✕",
    "contended": "≈",
    "flaky": "≈",
    "incomplete": "…",
    "invalid": "!",
    "new": "?",
    "recorded": "·",
}

EXIT_CODES = {
    0: "no defect found",
    1: "a test failed as code",
    2: "interrupted",
    3: "internal error",
    4: "usage error",
    5: "no tests were collected",
    10: "defect",
    11: "contended or flaky only",
    12: "strict, and a metric has no criterion",
}
_INTERRUPTED = range(2, 6)

# A model workload that is slow because a component is slow must not be blamed before that component.

_TOLD = 4  # nodes that a fleet's headline names

LOOK_AT = {
    "compute": "clock and thermal limits, a CPU quota, the power profile, cores taken by other processes",
    "memory": "missing or mismatched modules and channels, NUMA placement, another process streaming memory",
    "disk": "SMART and wear, how full it is, an I/O limit on the control group, another process that writes",
    "network": "negotiated link speed, cable and switch port, a rate limit, errors on the interface",
    "gpu": "ECC and remapped rows, PCIe width and generation, throttling, foreign processes",
    "model": "the software stack first: every component probe that explains this workload passed",
    "harness": "the judge's own benchmarks: rule out a busy machine before the hardware",
}


@dataclass(frozen=True)
class Verdict:
    """A node's verdict. `stated`: the run itself says so; otherwise it was derived from its rows."""

    status: str
    headline: str
    meaning: str
    next_steps: tuple[str, ...]
    stated: bool


def is_claim(row: Measurement) -> bool:
    """Whether the row is a claim's measured value, not a metric of the machine."""
    return row.claim is not None and row.component == "claim"


def is_ratio(row: Measurement) -> bool:
    """Whether the row is the ratio of a `versus`: values are (ratio, low, high)."""
    return row.metric.endswith("/ratio") and {"over", "of"} <= set(row.params) and len(row.values) == 3


def is_metric(row: Measurement) -> bool:
    """Whether the row is a metric of the machine: no claim, no ratio, no rival, not a retry."""
    return not (is_claim(row) or is_ratio(row) or row.rival is not None or row.attempt > 0)


def severity(status: str) -> int:
    """Rank in `SEVERITY`; an unknown status of a later version ranks as worst."""
    return SEVERITY.index(status) if status in SEVERITY else 0


def status_of(run: Run) -> tuple[str, bool]:
    """(verdict, stated by the run): its own, or that of its rows. An interrupted run never passes."""
    code, given = run.facts.get("exit_code"), run.facts.get("verdict")
    rows = _from_rows(run)
    # A run that only records ends well, and its verdict then says "pass": that is not a pass of the machine.
    if given == "pass" and rows in {"recorded", "new"}:
        return rows, False
    status = str(given) if given else rows
    cut = (isinstance(code, int) and code in _INTERRUPTED) or (run.facts.get("recovered") and code is None)
    if cut and status not in {"defect", "failed"}:
        return "incomplete", False
    return status, bool(given)


def _from_rows(run: Run) -> str:
    rows = [row for row in run.rows if row.attempt == 0 and row.rival is None]
    metrics = {row.status for row in rows if is_metric(row)}
    if any(row.status == "error" or (row.status == "defect" and not is_metric(row)) for row in rows):
        return "failed"
    for status in ("defect", "invalid", "contended", "flaky"):
        if status in metrics:
            return status
    if "pass" in metrics:
        return "pass"
    return "new" if "new" in metrics else "recorded"


def suspects_of(run: Run) -> tuple[tuple[str, float], ...]:
    """(component, score), first suspect first: as the run ranked them, else ranked from its rows."""
    given = run.facts.get("suspects")
    if isinstance(given, Sequence) and not isinstance(given, str):
        pairs = [
            (str(entry[0]), float(entry[1]))
            for entry in given
            if isinstance(entry, Sequence) and not isinstance(entry, str) and len(entry) == 2
        ]
        if pairs:
            return tuple(pairs)
    return tuple((suspect.component, suspect.score) for suspect in rank_suspects(run.rows))


def verdict_of(run: Run, counts: Mapping[str, int], suspects: Sequence[tuple[str, float]]) -> Verdict:
    """The verdict on a run's machine, in words. `counts`: how many of its metrics have each status."""
    status, stated = status_of(run)
    facts = run.facts
    headline, meaning = _WORDS.get(
        status, ("Not judged", f"The run says “{status}”, which this version does not know.")
    )
    steps = list(_NEXT.get(status, ()))
    if status == "defect":
        first = suspects[0][0] if suspects else None
        headline = f"Not fit: {first} is the first suspect" if first else "Not fit"
        steps = _after_a_defect(first)
    elif status == "pass" and facts.get("provisional"):
        headline = "Fit, by provisional criteria"
        meaning = (
            "Every judged metric behaves as this same machine did a moment ago. Criteria from one machine "
            "can tell that it changed, not that it was good to begin with."
        )
        steps = [_LEARN_FROM_MORE]
    elif status == "recorded" and facts.get("mode") in {"gate", "strict"}:
        headline = "Not judged: the criteria are too noisy"
        meaning = (
            "These metrics vary so much between the runs that they were learned from that no verdict on them would "
            "mean anything. This is no pass."
        )
        steps = ["Learn again with --learn on a quiet machine; what stays noisy there needs a better benchmark."]
    elif status == "incomplete":
        meaning = f"{meaning} {_why_incomplete(facts)}"
    if status == "pass" and counts.get("new"):
        steps.append(f"{counts['new']} metrics have no criterion yet and were not judged: --learn adds them.")
    if status == "pass" and counts.get("recorded"):
        steps.append(
            f"{counts['recorded']} metrics were recorded and not judged: their criteria are too noisy to gate."
        )
    return Verdict(status=status, headline=headline, meaning=meaning, next_steps=tuple(steps), stated=stated)


def _why_incomplete(facts: Mapping[str, Any]) -> str:
    code = facts.get("exit_code")
    if isinstance(code, int) and code in EXIT_CODES:
        return f"Exit code {code}: {EXIT_CODES[code]}."
    return "It was recovered from its journal: the session ended before it could say how it went."


def _after_a_defect(component: str | None) -> list[str]:
    steps = ["Take the machine out of service: jobs on it would run slowly, or wrongly."]
    if component in LOOK_AT:
        steps.append(f"Look at {component} first: {LOOK_AT[component]}.")
    steps.append("After the repair, run the gate again; the defect is gone only when it passes.")
    return steps


_WORDS = {
    "pass": ("Fit", "Every judged metric is as similar to the healthy population as its criterion asks."),
    "defect": (
        "Not fit",
        "At least one metric is worse than in the healthy population, in every confirming run.",
    ),
    "contended": (
        "Not validated: the machine was busy",
        "Metrics fell short while other work pressed on the machine, so neither health nor defect is shown.",
    ),
    "flaky": (
        "Not validated: results did not repeat",
        "Metrics fell short in one try and passed in another: noise, or a fault that comes and goes.",
    ),
    "failed": (
        "Not validated: a test failed as code",
        "A test raised an error or a stated bound was missed. It says nothing about the hardware's speed.",
    ),
    "new": (
        "Not judged: no criteria yet",
        "This kind of hardware, or these metrics, have no learned criteria so far.",
    ),
    "invalid": (
        "Not validated: a measurement was invalid",
        "A metric gave values that cannot be judged, such as zero, infinity or no sample at all.",
    ),
    "incomplete": (
        "Not validated: the run was cut short",
        "What was measured is shown; what is missing is unknown.",
    ),
    "recorded": ("Recorded, not judged", "The run measured this machine and did not ask for a verdict."),
}

_LEARN_FROM_MORE = (
    "Run the gate on more machines of this kind, put their run files in one folder, and learn again with "
    "--learn: from three nodes on, the criteria know what healthy means."
)

_NEXT: Mapping[str, tuple[str, ...]] = {
    "contended": (
        "Drain the machine, or wait until it is idle, and run the gate again.",
        "The noise section below shows when the pressure came, and of which kind.",
    ),
    "flaky": ("Run the gate again with --confirm 4. A metric that stays flaky on a quiet machine deserves a look.",),
    "failed": ("Read the errors among the metrics below, mend the test or its environment, and run again.",),
    "new": ("Run the gate with --learn, on at least three healthy machines of this kind if you can.",),
    "invalid": ("Read the invalid metrics below: the benchmark itself needs a look before the machine does.",),
    "incomplete": ("Run the gate again, and let it end.",),
    "recorded": ("Judge it with the gate: make gate, or pytest suites --gate.",),
}


def fleet_words(verdicts: Iterable[tuple[str, Verdict]]) -> tuple[str, str, str, tuple[str, ...]]:
    """(status, headline, meaning, next steps) over nodes, given as (name, verdict), worst first."""
    named = list(verdicts)
    fit = [name for name, verdict in named if verdict.status == "pass"]
    others = sorted(
        ((name, verdict) for name, verdict in named if verdict.status != "pass"),
        key=lambda item: severity(item[1].status),  # stable: among equals, the order given
    )
    if not others:
        return "pass", f"Fit: all {len(named)} nodes", "Every node's latest run passes.", ()
    told = "; ".join(f"{name}: {_lower_first(verdict.headline)}" for name, verdict in others[:_TOLD])
    more = f"; and {len(others) - _TOLD} more" if len(others) > _TOLD else ""
    asked: dict[str, list[str]] = {}
    for name, verdict in others:
        if verdict.next_steps:
            asked.setdefault(verdict.next_steps[0], []).append(name)
    steps = tuple(f"{_listed(names)}: {_lower_first(step)}" for step, names in asked.items())
    return others[0][1].status, f"{len(fit)} of {len(named)} nodes fit", f"{told}{more}.", steps


def _listed(names: Sequence[str], shown: int = 8) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def _lower_first(text: str) -> str:
    return text[0].lower() + text[1:]
