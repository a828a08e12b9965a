"""Criteria files: what healthy means for each metric of a hardware kind, as plain JSON with content hashes.

`<folder>/<kind>/<suite>.json` holds one object a metric. A value that was changed by hand, or damaged, no longer fits
its hash and is refused; nothing that is read here is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from systems.anubis.records import (
    SCHEMA_VERSION,
    Measurement,
    RecordsError,
    check_version,
    first_line,
    write_atomically,
)
from systems.anubis.validator import Criterion

QUANTILE_DIGITS = 6

HISTORY = "history.json"
"""Beside the criteria of a kind: which benchmarks caught which defects (`selector.History`)."""


class CriteriaDamaged(RecordsError):
    """A criteria file that does not parse, or whose content was changed without its hash."""


@dataclass(frozen=True)
class StoredCriterion:
    """A learned criterion with where it came from.

    seconds: what one measurement costs; window: which steps of a series it was learned from, and are all that the
    next gate measures: `steps` of them after `warmup`, counted from the very first step.
    """

    criterion: Criterion
    unit: str
    component: str = "harness"
    runs: tuple[str, ...] = ()
    stack: str = ""
    seconds: float = 0.0
    learned_at: str = ""
    window: Mapping[str, int] | None = None

    def part(self, row: Measurement) -> tuple[float, ...]:
        """The values of `row` that this criterion is about: its window of a step series, else all.

        A series that lacks the window's steps (it ended early on a slow machine) is taken as far as it goes.
        """
        if self.window is None or not row.series:
            return row.values
        first = max(self.window["warmup"] - row.warmup, 0)
        return row.values[first : first + self.window["steps"]] or row.values

    @cached_property
    def hash(self) -> str:
        """Twelve hexadecimal digits over the content as stored."""
        return _digest(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """JSON-able content, without its hash; quantiles with six significant digits."""
        c = self.criterion
        exact = c.better == "target"  # a target may be a digest, of which every digit counts
        return {
            "alpha": c.alpha if exact else _rounded(c.alpha),
            "better": c.better,
            "calibrated": c.calibrated,
            "component": self.component,
            "excluded": c.excluded,
            "learned_at": self.learned_at,
            "nodes": c.nodes,
            "quantiles": [float(value) if exact else _rounded(value) for value in c.quantiles],
            "repeatability": _rounded(c.repeatability),
            "runs": list(self.runs),
            "seconds": _rounded(self.seconds),
            "stack": self.stack,
            "unit": self.unit,
            "window": dict(self.window) if self.window else None,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StoredCriterion:
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError on anything else."""
        criterion = Criterion(
            quantiles=np.array([_positive(value) for value in data["quantiles"]]),
            better=data["better"],
            alpha=_fraction(data["alpha"]),
            calibrated=bool(data["calibrated"]),
            repeatability=_fraction(data["repeatability"]),
            nodes=int(data["nodes"]),
            excluded=int(data["excluded"]),
        )
        return cls(
            criterion=criterion,
            unit=str(data["unit"]),
            component=str(data["component"]),
            runs=tuple(map(str, data["runs"])),
            stack=str(data["stack"]),
            seconds=float(data["seconds"]),
            learned_at=str(data["learned_at"]),
            window=_window(data.get("window")),
        )


Criteria = Mapping[str, StoredCriterion]


def save_criteria(folder: Path, kind: str, criteria: Criteria) -> list[Path]:
    """Write `<folder>/<kind>/<suite>.json`, one file a suite, sorted, one metric a block; returns the paths.

    Criteria of the same suite that are not in `criteria` are dropped: the files hold what was learned last.
    """
    suites: dict[str, dict[str, Any]] = {}
    for name in sorted(criteria):
        stored = criteria[name]
        suites.setdefault(name.partition("/")[0], {})[name] = {**stored.to_json(), "hash": stored.hash}
    paths = []
    for suite, metrics in suites.items():
        content = {"kind": kind, "metrics": metrics, "schema": SCHEMA_VERSION}
        path = folder / kind / f"{suite}.json"
        write_atomically(path, _criteria_text(content).encode())
        paths.append(path)
    return paths


def load_criteria(folder: Path, kind: str) -> dict[str, StoredCriterion]:
    """All criteria for `kind`; empty when there are none.

    Raises SchemaTooNew, or CriteriaDamaged with the file, the metric and what to do.
    """
    found: dict[str, StoredCriterion] = {}
    for path in sorted((folder / kind).glob("*.json")):
        if path.name == HISTORY:
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            check_version(int(content["schema"]), path)
            if content["kind"] != kind:
                raise CriteriaDamaged(f"{path}: holds criteria of kind {content['kind']!r}, expected {kind!r}")
            metrics = content["metrics"].items()
        except (ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
            raise CriteriaDamaged(
                f"{path}: not a criteria file ({first_line(error)}); learn again with --learn, or restore it"
            ) from error
        for name, data in metrics:
            try:
                stored = StoredCriterion.from_json(data)
                given = data["hash"]
            except (ValueError, KeyError, TypeError) as error:
                raise CriteriaDamaged(f"{path}: {name}: {error!r}; learn again with --learn, or restore it") from error
            if given != stored.hash:
                raise CriteriaDamaged(
                    f"{path}: {name}: content hash is {stored.hash}, the file says {given}: it was "
                    "changed by hand or damaged; learn again with --learn, or restore it"
                )
            found[name] = stored
    return found


def _criteria_text(content: Mapping[str, Any]) -> str:
    """JSON in which a metric's quantiles stand on one line, so that a diff reads as "which metric moved"."""
    lines = json.dumps(content, indent=1, sort_keys=True).splitlines()
    out: list[str] = []
    inside = False
    for line in lines:
        text = line.strip()
        if inside:
            out[-1] += text + (" " if text.endswith(",") and text != "]," else "")
            inside = text not in {"]", "],"}
        else:
            out.append(line)
            inside = text.endswith("[")
    return "\n".join(out) + "\n"


def _window(data: Any) -> dict[str, int] | None:
    if data is None:
        return None
    window = {"warmup": int(data["warmup"]), "steps": int(data["steps"])}
    if window["warmup"] < 0 or window["steps"] < 1:
        raise ValueError(f"a window has a warm-up of 0 or more and at least one step, not {window}")
    return window


def _digest(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]


def _rounded(value: float) -> float:
    return float(f"{float(value):.{QUANTILE_DIGITS}g}")


def _positive(value: Any) -> float:
    number = float(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"a quantile must be a positive number, not {value!r}")
    return number


def _fraction(value: Any) -> float:
    number = float(value)
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"expected a number in [0, 1], not {value!r}")
    return number
