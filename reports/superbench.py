"""Import of SuperBench results: `results-summary.jsonl`, one JSON object a node, to run files.

Keys are `benchmark/metric:rank`; the rank becomes a parameter. SuperBench writes no units and no hardware
kind, so units are inferred from the names by `UNITS`, which follows the unit columns of its documentation
(user tutorial, micro-benchmarks and model-benchmarks), and the kind is the caller's to give. A metric that no
rule knows gets unit `1` and better `target`: which way it is worse is unknown, so a move in either direction
is shown, and none passes unseen.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from systems.anubis.machine import Machine
from systems.anubis.records import Measurement, Run, write_run


class ImportFailed(ValueError):
    """The file is not SuperBench's results-summary; nothing was written."""


@dataclass(frozen=True)
class Rule:
    """Names matching `pattern` (case ignored, anywhere in `benchmark/metric`) are in `scale` x `unit`."""

    pattern: str
    unit: str
    scale: float
    better: str


@dataclass(frozen=True)
class Imported:
    """`runs`: as written; `unknown`: metric names without a rule; `ignored`: (name, reason) of the rest."""

    runs: tuple[Run, ...]
    unknown: tuple[str, ...]
    ignored: tuple[tuple[str, str], ...]


# The first rule that matches counts, so the special ones of a benchmark stand before the general ones.
UNITS: tuple[Rule, ...] = (
    # latencies and times with their unit in the name
    Rule(r"lat_ns", "s", 1e-9, "lower"),
    Rule(r"_us$", "s", 1e-6, "lower"),
    Rule(r"_mkps$", "op/s", 1e6, "higher"),
    # benchmarks whose unit differs from the general rule
    Rule(r"^cpu-memory-bw-latency/.*_lat$", "s", 1e-9, "lower"),
    Rule(r"^cpu-memory-bw-latency/.*_bw$", "B/s", 1e6, "higher"),
    Rule(r"^cpu-stream/.*_throughput$", "B/s", 1e6, "higher"),
    Rule(r"^(cpu-stream|gpu-stream|cpu-hpl|gpu-burn|gpu-hpcg)/.*time", "s", 1.0, "lower"),
    Rule(r"^cpu-hpl/throughput$", "FLOP/s", 1e9, "higher"),
    Rule(r"^gpu-hpcg/.*_gflops", "FLOP/s", 1e9, "higher"),
    Rule(r"^gpu-hpcg/.*_bandwidth", "B/s", 1e9, "higher"),
    Rule(r"^(cublaslt|hipblaslt)-gemm/.*_flops$", "FLOP/s", 1e12, "higher"),
    Rule(r"^gemm-flops/(.*_iops|int\d+.*)$", "op/s", 1e9, "higher"),
    Rule(r"^gemm-flops/(.*_flops|(fp|tf|bf)\d+(_tc)?)$", "FLOP/s", 1e9, "higher"),
    Rule(r"^disk-benchmark/.*_iops$", "op/s", 1.0, "higher"),
    Rule(r"^disk-benchmark/.*_bs$", "B", 1.0, "target"),
    Rule(r"^(cublas|cudnn)-function/.*_time$", "s", 1e-6, "lower"),
    Rule(r"^(nccl|rccl)-bw[^/]*/.*_time$", "s", 1e-6, "lower"),
    Rule(r"^ib-loopback/ib_(write|read|send)_\d+_avg", "B/s", 1e6, "higher"),  # before 0.3: perftest's MB/s
    Rule(r"^ib-traffic[^/]*/.*_lat", "s", 1e-6, "lower"),
    Rule(r"^(gpu|tcp)-[^/]*/.*(count|rate)$", "1", 1.0, "target"),
    # general rules
    Rule(r"(bus|alg)bw$|_bw(_|$)|^gpu-sm-copy-bw/|_bw:", "B/s", 1e9, "higher"),
    Rule(r"_flops$", "FLOP/s", 1e9, "higher"),
    Rule(r"steptime", "s", 1e-3, "lower"),
    Rule(r"throughput", "sample/s", 1.0, "higher"),
    Rule(r"^kernel-launch/|^pytorch-(sharding-)?matmul/|_time(_|$)|_cost$", "s", 1e-3, "lower"),
)

# Which part of a machine a benchmark exercises; the first match counts.
COMPONENTS: tuple[tuple[str, str], ...] = (
    (r"_models/|^model-benchmarks|inference|megatron", "model"),
    (r"^disk-", "disk"),
    (r"^(ib-|tcp-|nccl-|rccl-|gpcnet)", "network"),
    (r"^cpu-(stream|memory)", "memory"),
    (r"^cpu-", "compute"),
)


def rule_of(name: str) -> Rule | None:
    """The unit rule for `benchmark/metric`, None where no rule knows the name."""
    return next((rule for rule in UNITS if re.search(rule.pattern, name, flags=re.IGNORECASE)), None)


def component_of(name: str) -> str:
    """The component that `benchmark/metric` exercises; `gpu` for what is left."""
    return next((component for pattern, component in COMPONENTS if re.search(pattern, name)), "gpu")


def import_results(path: Path, folder: Path, *, kind: str = "superbench") -> Imported:
    """Write one run file into `folder` for each node (line) of `path`. Importing again writes the same files.

    Raises ImportFailed with the line at fault, before anything is written; OSError when the disk refuses.
    """
    started = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    records = _records(path)
    empty = _always_zero(records)
    unknown: dict[str, None] = {}
    ignored: dict[str, str] = dict.fromkeys(sorted(empty), "zero on every node: nothing was measured")
    runs = []
    for number, (node, values) in enumerate(records, 1):
        rows = []
        for key, value in values.items():
            row = _row(key, value, empty, unknown, ignored)
            if row is not None:
                rows.append(row)
        content = json.dumps([node, values, number], sort_keys=True).encode()
        machine = Machine(
            kind=kind,
            node=hashlib.sha256(node.encode()).hexdigest()[:16],
            stack="",
            facts={"hostname": node, "source": path.name},
        )
        runs.append(
            Run(
                machine=machine,
                started=started,
                run_id=hashlib.sha256(content).hexdigest()[:16],
                command=f"import-superbench {path.name}",
                facts={"options": ["import-superbench"]},
                rows=tuple(rows),
            )
        )
    for run in runs:
        write_run(run, folder)
    return Imported(tuple(runs), tuple(unknown), tuple(ignored.items()))


def _records(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    found: list[tuple[str, Mapping[str, Any]]] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ImportFailed(
            f"{path}: not a text file ({error}); expected results-summary.jsonl of SuperBench"
        ) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except ValueError as error:
            raise ImportFailed(
                f"{path}, line {number}: not JSON ({error}); expected one JSON object a line, as "
                "results-summary.jsonl holds them"
            ) from error
        if not isinstance(data, dict) or not isinstance(data.get("node"), str):
            raise ImportFailed(
                f'{path}, line {number}: expected an object with a "node" name and "benchmark/metric:rank" keys'
            )
        found.append((data["node"], {str(key): value for key, value in data.items() if key != "node"}))
    if not found:
        raise ImportFailed(f"{path}: holds no results; expected one JSON object a line, one line a node")
    return found


def _always_zero(records: list[tuple[str, Mapping[str, Any]]]) -> set[str]:
    """Names that are zero on every node and rank, such as the writes of a read-only disk test."""
    seen: dict[str, bool] = {}
    for _, values in records:
        for key, value in values.items():
            name = split_key(key)[0]
            if not name.endswith("return_code"):
                seen[name] = seen.get(name, True) and value == 0
    return {name for name, zero in seen.items() if zero}


def split_key(key: str) -> tuple[str, str | None]:
    """`kernel-launch/event_time:3` -> (`kernel-launch/event_time`, `3`); rank None without one."""
    match = re.fullmatch(r"(.*):(\d+)", key)
    return (match.group(1), match.group(2)) if match else (key, None)


def _row(
    key: str, value: Any, empty: set[str], unknown: dict[str, None], ignored: dict[str, str]
) -> Measurement | None:
    name, rank = split_key(key)
    if name in empty:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        ignored[name] = f"not a number: {value!r}"
        return None
    benchmark, _, _ = name.rpartition("/")
    params = {} if rank is None else {"rank": rank}
    test = f"superbench/{benchmark or name}"
    component = component_of(name)
    if name.endswith("return_code"):
        if value == 0:
            return None
        return Measurement(
            suite="superbench",
            test=test,
            component=component,
            metric=f"superbench/{name}",
            unit="1",
            better="target",
            values=(),
            params=params,
            status="error",
            error=f"the benchmark ended with return code {value:g}",
        )
    rule = rule_of(name)
    if rule is None:
        unknown[name] = None
        rule = Rule("", "1", 1.0, "target")
    scaled = float(value) * rule.scale
    valid = math.isfinite(scaled) and scaled > 0
    return Measurement(
        suite="superbench",
        test=test,
        component=component,
        metric=f"superbench/{name}",
        unit=rule.unit,
        better=rule.better,
        values=(scaled,),
        params=params,
        rounds=1,
        status="recorded" if valid else "invalid",
        error=None if valid else f"{value:g} is not a positive finite number",
    )
