"""Generated fleets with planted defects: what the Validator is tested on, with or without real data.

A fleet is healthy noise around the mean of each metric, and defects planted on nodes that are known. The
noise of a metric is the spread that its kind of benchmark shows between healthy GPUs or nodes; the means are
invented, or read from a file of SuperBench's published ones (`golden_metrics`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from systems.anubis.samples import Better, Floats

Nodes = NDArray[np.intp]
Defect = Callable[[Floats, Better, np.random.Generator], Floats]
"""What a fault does to healthy samples (nodes, steps) of a metric: the samples of the nodes that have it."""

SPREADS: Mapping[str, float] = {
    "gemm-flops": 0.004,
    "cublas": 0.0035,
    "mem-bw": 0.009,
    "kernel-launch": 0.024,
}
"""Coefficients of variation between the healthy GPUs of a node in SuperBench's published results."""

OTHER_SPREAD = 0.006
"""Assumed for benchmarks of which no spread is published."""

BUILDOUT: Mapping[str, tuple[float, float]] = {
    "ib-loopback": (0.0604, 0.9996),
    "h2d-d2h": (0.0203, 0.9968),
    "bert": (0.0159, 0.9939),
    "cpu-latency": (0.0133, 0.9960),
    "ib-allreduce": (0.0110, 0.9990),
    "resnet": (0.0073, 0.9921),
    "gpt2": (0.0053, 0.9919),
    "lstm": (0.0046, 0.9966),
    "densenet": (0.0040, 0.9770),
    "overlap": (0.0033, 0.9788),
    "nvlink-allreduce": (0.0030, 0.9989),
    "gemm": (0.0023, 0.9944),
}
"""The share of nodes that each benchmark finds defective, and its repeatability, in the paper's build-out."""

BUILDOUT_DEFECTIVE = 0.1036
"""Share of nodes in that build-out with any defect: less than the sum of the above, since defects overlap."""


@dataclass(frozen=True)
class Metric:
    """One metric of a generated fleet.

    mean in the metric's unit; cv: coefficient of variation between healthy nodes; steps: 1 for a scalar,
    else the length of the series; step_cv: that of the steps of one node.
    """

    name: str
    mean: float
    better: Better
    cv: float
    steps: int = 1
    step_cv: float = 0.01


@dataclass(frozen=True, eq=False)
class Fleet:
    """Samples by metric name, (nodes,) or (nodes, steps), and the truth by metric name, (nodes,) bool."""

    metrics: tuple[Metric, ...]
    samples: Mapping[str, Floats]
    defective: Mapping[str, NDArray[np.bool_]]

    def defective_nodes(self) -> NDArray[np.bool_]:
        """(nodes,) bool: which nodes have a defect in any metric."""
        return np.any(list(self.defective.values()), axis=0)


# --- defects ----------------------------------------------------------------------------------------------


def slowdown(least: float = 0.08, most: float = 0.45) -> Defect:
    """A node whose every step loses the same share of its performance, drawn uniformly between the two."""

    def apply(samples: Floats, better: Better, generator: np.random.Generator) -> Floats:
        kept = 1.0 - generator.uniform(least, most, (len(samples), 1))
        return _at_speed(samples, kept, better)

    return apply


def masked(swing: float = 0.14) -> Defect:
    """A node with half of its steps better and half worse by `swing`: its mean is that of a healthy one."""

    def apply(samples: Floats, better: Better, generator: np.random.Generator) -> Floats:
        sign = np.where(np.arange(samples.shape[1]) % 2 == 0, 1.0, -1.0)
        return samples * (1.0 + swing * generator.permuted(np.tile(sign, (len(samples), 1)), axis=1))

    return apply


def stalled(share: float = 0.08, factor: float = 10.0) -> Defect:
    """A node that in a share of its steps, at random places, is `factor` times slower."""

    def apply(samples: Floats, better: Better, generator: np.random.Generator) -> Floats:
        steps = samples.shape[1]
        speed = np.ones(steps)
        speed[: math.ceil(share * steps)] = 1.0 / factor
        return _at_speed(samples, generator.permuted(np.tile(speed, (len(samples), 1)), axis=1), better)

    return apply


def _at_speed(samples: Floats, speed: Floats, better: Better) -> Floats:
    return samples / speed if better == "lower" else samples * speed


# --- fleets -----------------------------------------------------------------------------------------------


def fleet(
    metrics: Sequence[Metric],
    nodes: int,
    *,
    planted: float | Mapping[str, Nodes] = 0.03,
    defect: Defect | None = None,
    seed: int = 0,
) -> Fleet:
    """A fleet of `nodes` nodes with normal noise between them and between their steps.

    planted: share of nodes with a defect, drawn anew for every metric; or the nodes themselves, by metric
    name. defect: what they have, a `slowdown()` unless given.
    """
    generator = np.random.default_rng(seed)
    defect = defect or slowdown()
    samples, defective = {}, {}
    for metric in metrics:
        values = metric.mean * (1.0 + metric.cv * generator.standard_normal((nodes, 1)))
        if metric.steps > 1:
            values = values * (1.0 + metric.step_cv * generator.standard_normal((nodes, metric.steps)))
        values = np.maximum(values, metric.mean * 1e-3)
        if isinstance(planted, Mapping):
            chosen = planted.get(metric.name, np.empty(0, dtype=np.intp))
        else:
            chosen = generator.choice(nodes, size=round(planted * nodes), replace=False)
        values[chosen] = defect(values[chosen], metric.better, generator)
        samples[metric.name] = values if metric.steps > 1 else values[:, 0]
        defective[metric.name] = np.isin(np.arange(nodes), chosen)
    return Fleet(tuple(metrics), samples, defective)


def buildout(nodes: int, *, seed: int = 0) -> Fleet:
    """A fleet whose defects are found in the shares that Anubis reports of a build-out of A100 nodes.

    Scalars, one per benchmark, with the noise that its repeatability means; slowdowns of 8 to 45 %.
    """
    generator = np.random.default_rng(seed)
    metrics = [
        Metric(name, 100.0, "lower" if name == "cpu-latency" else "higher", spread_of(repeatability))
        for name, (_, repeatability) in BUILDOUT.items()
    ]
    # Dealt round the defective nodes in turn: every one of them gets a defect, none gets the same one twice.
    defective = generator.choice(nodes, size=round(BUILDOUT_DEFECTIVE * nodes), replace=False)
    planted, dealt = {}, 0
    for name, (share, _) in BUILDOUT.items():
        count = round(share * nodes)
        planted[name] = defective[np.arange(dealt, dealt + count) % len(defective)]
        dealt += count
    return fleet(metrics, nodes, planted=planted, seed=seed + 1)


def spread_of(repeatability: float) -> float:
    """The coefficient of variation of normal noise with this mean similarity between pairs of scalars.

    For small noise 1 - min/max is |x - y| / mean, and E|x - y| = 2 sigma / sqrt(pi).
    """
    return (1.0 - repeatability) * math.sqrt(math.pi) / 2.0


def invented_metrics(count: int, *, seed: int = 0) -> tuple[Metric, ...]:
    """`count` scalar metrics with means over many orders of magnitude and spreads of 0.2 to 1 %."""
    generator = np.random.default_rng(seed)
    return tuple(
        Metric(
            f"invented/{i:03d}",
            float(10.0 ** generator.uniform(-6, 12)),
            "lower" if i % 3 == 0 else "higher",
            float(generator.uniform(0.002, 0.01)),
        )
        for i in range(count)
    )


def golden_metrics(path: Path) -> tuple[Metric, ...]:
    """Metrics from a SuperBench baseline file: JSON, `benchmark/metric` -> mean over a fleet.

    Entries that say neither how fast nor how slow (return codes, block sizes) and means that are not
    positive are left out. Spreads are those of `SPREADS`, else `OTHER_SPREAD`. Raises ValueError when
    nothing is left.
    """
    metrics = []
    content = json.loads(path.read_text(encoding="utf-8"))
    for name, mean in content.items() if isinstance(content, dict) else ():
        better = _better_by_name(name)
        if better is not None and isinstance(mean, int | float) and math.isfinite(mean) and mean > 0:
            spread = next((cv for prefix, cv in SPREADS.items() if name.startswith(prefix)), OTHER_SPREAD)
            metrics.append(Metric(name, float(mean), better, spread))
    if not metrics:
        raise ValueError(f"{path}: no metric with a positive mean; expected JSON, benchmark/metric -> mean")
    return tuple(metrics)


def _better_by_name(name: str) -> Better | None:
    words = name.rpartition("/")[2].split("_")
    if "return" in words or words[-1] == "bs":
        return None
    if "time" in words or "lat" in words:
        return "lower"
    return "higher" if {"bw", "algbw", "busbw", "iops", "flops", "throughput"} & set(words) else None
