"""Recorded attempts and reference proofs of the data folder."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from systems.safe import Limits, verify_many

EDITION = "2024-08"
"""The rules of the verifier that gave the recorded verdicts."""


def rows(path: Path) -> list[dict[str, Any]]:
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
    return [json.loads(line) for line in text.splitlines()]


@dataclass(frozen=True)
class Outcome:
    """Verdicts on recorded attempts: how many of each recorded verdict were accepted, and which wrongly."""

    total: Counter[str]
    accepted: Counter[str]
    refused_ok: tuple[str, ...]
    accepted_fail: tuple[str, ...]
    unsupported: Counter[str]
    equal_errors: int
    equal_verified: int
    counted: int

    def share_accepted(self, verdict: str) -> float:
        return 100 * self.accepted[verdict] / self.total[verdict]

    def share_rejected(self, verdict: str) -> float:
        return 100 - self.share_accepted(verdict)


def judge(attempts: Sequence[dict[str, Any]], workers: int = 2) -> Outcome:
    """Verify every attempt and compare with what was recorded."""
    total: Counter[str] = Counter()
    accepted: Counter[str] = Counter()
    unsupported: Counter[str] = Counter()
    refused_ok, accepted_fail = [], []
    equal = verified = counted = 0
    programs = [attempt["program"] for attempt in attempts]
    for attempt, report in zip(
        attempts, verify_many(programs, edition=EDITION, limits=Limits(workers=workers)), strict=True
    ):
        verdict = attempt["verdict"]
        total[verdict] += 1
        accepted[verdict] += report.ok
        if verdict == "ok" and not report.ok:
            refused_ok.append(attempt["attempt_id"])
        if verdict == "fail" and report.ok:
            accepted_fail.append(attempt["attempt_id"])
        for problem in report.diagnostics:
            if problem.kind == "unsupported":
                unsupported[problem.message] += 1
        if verdict != "compile_error" and not report.compile_error:
            counted += 1
            equal += report.errors == attempt["errors"]
            verified += report.verified == attempt["verified"]
    return Outcome(total, accepted, tuple(refused_ok), tuple(accepted_fail), unsupported, equal, verified, counted)
