"""A cluster: what computes, what connects, and how long both take.

A collective's time comes from a table where one was measured, else from a ring over the slowest link that its group
crosses: latency for each step, bytes over bandwidth. A table is a straight line between neighbouring sizes (latency and
bandwidth of its own in each piece), which follows the change of algorithm that one line cannot.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from systems.superscaler.errors import InvalidPlan
from systems.superscaler.layout import Kind, elements_sent

__all__ = ["Cluster", "Table"]

GIB = 2**30


@dataclass(frozen=True)
class Table:
    """Measured times of one primitive in one group size. sizes: bytes of a rank's input, ascending; seconds of each."""

    sizes: tuple[float, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.sizes) != len(self.seconds) or len(self.sizes) < 2 or min(*self.sizes, *self.seconds) <= 0:
            raise InvalidPlan("a table needs two or more sizes with their seconds, all positive")

    def at(self, size: float) -> float:
        """Seconds for a size: on the line through the two around it; outside, through the nearest two, not falling."""
        i = min(max(bisect_right(self.sizes, size), 1), len(self.sizes) - 1)
        x, y = self.sizes[i - 1 : i + 1], self.seconds[i - 1 : i + 1]
        slope = (y[1] - y[0]) / (x[1] - x[0])
        if size < x[0]:
            return max(y[0] + max(slope, 0.0) * (size - x[0]), y[0] / 2)
        if size > x[1]:
            return y[1] + max(slope, 0.0) * (size - x[1])
        return y[0] + slope * (size - x[0])


@dataclass(frozen=True)
class Cluster:
    """nodes of `per_node` devices each.

    memory: bytes a device; flops: a second, at the efficiency that kernels reach; memory_bandwidth and link bandwidths:
    bytes a second and direction; latencies and launch: seconds. `between` is a node's link, which its devices share.
    fused_attention: kernels that keep no scores. tables: (primitive, group size) -> measured times.
    """

    nodes: int
    per_node: int
    memory: float
    flops: float
    memory_bandwidth: float
    inside: float
    between: float
    inside_latency: float = 1e-5
    between_latency: float = 3e-5
    launch: float = 5e-6
    name: str = ""
    fused_attention: bool = True
    tables: Mapping[tuple[str, int], Table] = field(default_factory=dict, hash=False)

    @property
    def devices(self) -> int:
        """How many there are."""
        return self.nodes * self.per_node

    @classmethod
    def preset(cls, name: str, nodes: int) -> Cluster:
        """A known kind of machine. Raises InvalidPlan listing the names."""
        # Peak figures of vendors, times the half that kernels of training reach.
        known = {
            "v100_dgx2": (16, 32 * GIB, 62.5e12, 0.9e12, 120e9, 12.5e9),
            "v100_dgx1": (8, 32 * GIB, 62.5e12, 0.9e12, 60e9, 12.5e9),
            "a100": (8, 80 * GIB, 156e12, 2.0e12, 240e9, 100e9),
            "h100": (8, 80 * GIB, 495e12, 3.35e12, 360e9, 200e9),
            "h200": (8, 141 * GIB, 495e12, 4.8e12, 360e9, 200e9),
            "local_gloo": (4, 4 * GIB, 2e10, 1e10, 1e9, 1e9),
        }
        if name not in known:
            raise InvalidPlan(f"no cluster {name!r}: choose one of {', '.join(known)}, or describe one by Cluster(...)")
        per_node, memory, flops, bandwidth, inside, between = known[name]
        return cls(
            nodes, per_node, float(memory), flops, bandwidth, inside, between, name=name,
            fused_attention=not name.startswith("v100"),
        )  # fmt: skip

    @classmethod
    def calibrate(cls, ranks: int = 2, path: str | Path | None = None) -> Cluster:
        """This machine with so many local ranks, measured now; see `calibration`."""
        from systems.superscaler.calibration import calibrate

        return calibrate(ranks, path=path)

    def node(self, device: int) -> int:
        """The node that a device is in."""
        return device // self.per_node

    def crosses(self, group: Sequence[int]) -> bool:
        """Whether a group spans nodes."""
        return len({self.node(d) for d in group}) > 1

    def compute_seconds(self, flops: float, touched: float) -> float:
        """A kernel's time by the roofline. touched: bytes read and written."""
        return max(flops / self.flops, touched / self.memory_bandwidth) + self.launch

    def collective_seconds(self, kind: str, group: Sequence[int], size: float) -> float:
        """A collective's time. size: bytes of a rank's input."""
        count = len(group)
        if count < 2 or kind in ("slice", "to_addend"):
            return 0.0
        table = self.tables.get((kind, count))
        if table is not None:
            return table.at(size)
        wide = self.crosses(group)
        latency, bandwidth = (self.between_latency, self.between) if wide else (self.inside_latency, self.inside)
        sent = elements_sent(kind, count, size)  # type: ignore[arg-type]
        if wide:
            # A ring crosses into and out of each node once, so its slowest link carries what one device sends.
            latency = max(latency, self.inside_latency)
        steps = {"all_reduce": 2 * (count - 1), "permute": 1}.get(kind, count - 1)
        return steps * latency + sent / bandwidth

    def between_seconds(self, kind: str, group: Sequence[int], size: float) -> float:
        """How long a collective holds the links of its nodes; 0 inside a node."""
        if not self.crosses(group):
            return 0.0
        return elements_sent(kind, len(group), size) / self.between  # type: ignore[arg-type]

    def send_seconds(self, a: int, b: int, size: float) -> float:
        """A point-to-point transfer's time."""
        near = self.node(a) == self.node(b)
        latency, bandwidth = (self.inside_latency, self.inside) if near else (self.between_latency, self.between)
        return latency + size / bandwidth

    @property
    def cost(self) -> Callable[[Kind, int, float], float]:
        """For path search: seconds of (primitive, group size, local elements), 4 bytes an element, devices in order."""
        return lambda kind, count, x: self.collective_seconds(kind, range(count), 4 * x)

    def with_tables(self, tables: Mapping[tuple[str, int], Table]) -> Cluster:
        """The cluster with measured times."""
        return replace(self, tables={**self.tables, **tables})

    def save(self, path: str | Path) -> None:
        """Write all of it as JSON, whole or not at all."""
        from systems.superscaler.drawing import write_text

        content = {k: v for k, v in self.__dict__.items() if k != "tables"}
        content["tables"] = [[k, n, t.sizes, t.seconds] for (k, n), t in self.tables.items()]
        write_text(Path(path), json.dumps(content))

    @classmethod
    def load(cls, path: str | Path) -> Cluster:
        """A cluster that `save` wrote. Raises InvalidPlan where the file does not hold one."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            tables = {(k, int(n)): Table(tuple(s), tuple(t)) for k, n, s, t in content.pop("tables")}
            return cls(**content, tables=tables)
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidPlan(f"{path} describes no cluster: {error}") from error


def read_mi200(folder: str | Path) -> dict[tuple[str, int], Table]:
    """The measured MI200 tables of the data folder: `intra_<n>.json`, MiB of the whole float32 tensor -> seconds."""
    found = {}
    for path in sorted(Path(folder).glob("intra_*.json")):
        count = int(path.stem.partition("_")[2])
        for name, (sizes, seconds) in json.loads(path.read_text(encoding="utf-8")).items():
            kind = name.replace(" ", "_")
            share = 1.0 if kind in ("all_reduce", "reduce_scatter") else 1.0 / count
            found[kind, count] = Table(tuple(s * 2**20 * share for s in sizes), tuple(seconds))
    return found
