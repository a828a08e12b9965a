"""The map of simulated speed-ups: for published models, the best step of each earlier space over the full space's.

One search, one cost model; only the space differs. A cell is a model at the size published for a number of devices, on
nodes of some size with some memory. No constant is fitted to it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from systems.superscaler.capture import capture
from systems.superscaler.cluster import GIB, Cluster
from systems.superscaler.errors import OutOfMemory
from systems.superscaler.graph import Graph
from systems.superscaler.published import STATE_BYTES, published
from systems.superscaler.search import search
from systems.superscaler.spaces import SPACES
from systems.superscaler.steps import Prices

__all__ = ["Cell", "cell", "speed_up_map"]

PRESETS = {8: "v100_dgx1", 16: "v100_dgx2"}
"""Devices a node -> cluster."""


@dataclass(frozen=True)
class Cell:
    """seconds: space -> seconds of its best step, None where nothing fits; plan: what the full space found."""

    model: str
    devices: int
    per_node: int
    memory: float
    seconds: dict[str, float | None]
    plan: str

    def over(self, space: str) -> float | None:
        """How many times faster the full space is than another; None where either has no plan."""
        theirs, ours = self.seconds[space], self.seconds["full"]
        return None if theirs is None or ours is None else theirs / ours

    @property
    def over_best(self) -> float | None:
        """Over the best of all earlier spaces."""
        earlier = [self.over(s) for s in SPACES if s != "full"]
        return min((x for x in earlier if x is not None), default=None)

    @property
    def over_worst(self) -> float | None:
        """Over the slowest of the earlier spaces that has a plan: the most that can be said."""
        earlier = [self.over(s) for s in SPACES if s != "full"]
        return max((x for x in earlier if x is not None), default=None)

    def __str__(self) -> str:
        shown = ", ".join(
            f"{s} {'no plan' if t is None else f'{t:.1f} s ({self.over(s) or 0:.2f}x)'}"
            for s, t in self.seconds.items()
        )
        return (
            f"{self.model}, {self.devices} devices, {self.per_node} a node, {self.memory / GIB:.0f} GiB: {shown}; "
            f"{self.plan}"
        )


def cell(
    name: str, graph: Graph, devices: int, per_node: int, memory: float, *, spaces: Iterable[str] = tuple(SPACES)
) -> Cell:
    """A cell of the map; graph: the published model, captured."""
    preset = Cluster.preset(PRESETS[per_node], -(-devices // per_node))
    cluster = replace(preset, memory=memory)
    prices = Prices(graph, cluster, state=STATE_BYTES, others=True)
    seconds: dict[str, float | None] = {}
    plan = "none"
    for space in spaces:
        try:
            found = search(
                graph, cluster, devices=devices, space=space, recompute=("none", "block"), prices=prices, closest=False
            )
        except OutOfMemory:
            seconds[space] = None
            continue
        seconds[space] = found.best.seconds
        if space == "full":
            plan = str(found.recipe)
    return Cell(name, devices, per_node, memory, seconds, plan)


def speed_up_map(
    names: Sequence[str], sizes: Sequence[int], *, per_node: Sequence[int] = (8, 16),
    memories: Sequence[float] = (32 * GIB,), path: str | Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[Cell]:  # fmt: skip
    """All cells; those that `path` (a JSON line each) has already are read from it, new ones are added to it."""
    known = {} if path is None else _read(Path(path))
    found = []
    for name in names:
        for devices in sizes:
            wanted = [(name, devices, per, memory) for per in per_node for memory in memories]
            graph = None
            for key in wanted:
                if key not in known:
                    if graph is None:
                        sample = published(name, devices)
                        graph = capture(sample.model, sample.batch)
                    known[key] = cell(name, graph, *key[1:])
                    if path is not None:
                        with Path(path).open("a", encoding="utf-8") as file:
                            file.write(json.dumps(asdict(known[key])) + "\n")
                say(str(known[key]))
                found.append(known[key])
    return found


def _read(path: Path) -> dict[tuple[str, int, int, float], Cell]:
    if not path.exists():
        return {}
    cells = [Cell(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return {(c.model, c.devices, c.per_node, c.memory): c for c in cells}
