"""A plan as the search finds it: stages, how each spreads its operators, micro-batches, what is kept. Data that can be
saved, read back, and applied to any graph whose blocks have the same structure, at other lengths and batch sizes too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from systems.superscaler.errors import InvalidPlan, PlanMismatch
from systems.superscaler.following import columns_and_rows
from systems.superscaler.graph import Graph, Op
from systems.superscaler.intraop import Unit, units_of
from systems.superscaler.sprogram import SProgram

__all__ = ["Recipe", "StageRecipe", "shape_of", "shared_layers"]

VERSION = 1


@dataclass(frozen=True)
class StageRecipe:
    """Units first to last - 1 on dp x tp devices.

    cuts: "kind.position" of an operator -> the identifier that it is cut by over tp devices; others are replicated.
    recompute: "none", "segment" (keep what enters each run of operators between communications) or "block".
    parts: "kind.position" -> how many colocated parts each device runs one after another (co-shard).
    """

    first: int
    last: int
    dp: int
    tp: int
    cuts: Mapping[str, str] = field(default_factory=dict, hash=False)
    recompute: str = "none"
    parts: Mapping[str, int] = field(default_factory=dict, hash=False)

    @property
    def devices(self) -> int:
        """How many it runs on."""
        return self.dp * self.tp


@dataclass(frozen=True)
class Recipe:
    """space: whose search found it; zero: stage of ZeRO; interlaced: embedding and head are cut over all devices."""

    stages: tuple[StageRecipe, ...]
    microbatches: int
    zero: int = 0
    interlaced: bool = False
    space: str = ""

    @property
    def devices(self) -> int:
        """How many it needs."""
        return sum(stage.devices for stage in self.stages)

    @property
    def co_sharded(self) -> bool:
        """Whether some operators run in colocated parts."""
        return any(n > 1 for stage in self.stages for n in stage.parts.values())

    def __str__(self) -> str:
        found = []
        for stage in self.stages:
            text = f"{stage.first}-{stage.last - 1} on {stage.dp}x{stage.tp}"
            parts = max(stage.parts.values(), default=1)
            found.append(text + (f" co-shard {parts}" if parts > 1 else "") +
                         (f" recompute {stage.recompute}" if stage.recompute != "none" else ""))  # fmt: skip
        extras = (", interlaced" if self.interlaced else "") + (f", ZeRO {self.zero}" if self.zero else "")
        return f"{self.microbatches} micro-batches, {len(found)} stages ({'; '.join(found)}){extras}"

    def program(self, graph: Graph) -> SProgram:
        """The plan, over the three primitives. Raises InvalidPlan where the graph has other blocks."""
        from systems.superscaler.plans import lockstep_order, one_f_one_b_order, order, shared_chunks, spread

        s = SProgram(graph, self.devices)
        s.microbatch(self.microbatches)
        s.zero(self.zero)
        wide = shared_layers(graph, self.devices // self.stages[0].dp) if self.interlaced else {}
        units = units_of(graph, apart=wide)
        if self.stages[-1].last != len(units):
            raise InvalidPlan(f"the plan is for {self.stages[-1].last} blocks, the graph has {len(units)}")
        at: dict[int, int] = {}
        for number, (stage, base) in enumerate(zip(self.stages, self.bases, strict=True)):
            for unit in units[stage.first : stage.last]:
                kept: list[Op] = []
                for i, op in enumerate(unit.ops):
                    at[op.id] = number
                    key = f"{unit.kind}.{i}"
                    name, parts = stage.cuts.get(key), stage.parts.get(key, 1)
                    spread(s, op, range(base, base + stage.devices), stage.dp, name, parts=parts)
                    if op.block >= 0:
                        kept.append(op)
                if stage.recompute != "none" and kept:
                    s.recompute(kept)
        for i, name in wide.items():
            spread(s, graph.ops[i], self._everywhere(), self.stages[0].dp, name)
        if len(self.stages) > 1:
            lines = lockstep_order if self.interlaced else one_f_one_b_order
            chunks = shared_chunks(graph, at, wide) if self.interlaced else at
            order(s, chunks, lines(len(self.stages), self.microbatches))
        return s

    @property
    def bases(self) -> tuple[int, ...]:
        """The first device of each stage: larger stages first, so groups of a power of two straddle no node."""
        found, base = [0] * len(self.stages), 0
        for i in sorted(range(len(self.stages)), key=lambda i: -self.stages[i].devices):
            found[i] = base
            base += self.stages[i].devices
        return tuple(found)

    def _everywhere(self) -> list[int]:
        """All devices, the copies of the batch from the first: stage by stage within each."""
        dp, tp = self.stages[0].dp, self.stages[0].tp
        return [s * dp * tp + d * tp + t for d in range(dp) for s in range(len(self.stages)) for t in range(tp)]

    def save(self, path: str | Path, graph: Graph) -> None:
        """Write it as JSON, whole or not at all."""
        from systems.superscaler.drawing import write_text

        content = {"plan": asdict(self), "structure": shape_of(graph), "graph": graph.hash}
        write_text(Path(path), json.dumps({"version": VERSION, **content, "sha256": _digest(content)}, indent=1))

    @classmethod
    def load(cls, path: str | Path, graph: Graph | None = None, *, exactly: bool = False) -> Recipe:
        """A plan that `save` wrote; for `graph`, whose blocks must be those of the plan's.

        exactly: the graph must be the very same. Raises PlanMismatch with what was expected and what was found.
        """
        try:
            content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
            version, digest = content.pop("version"), content.pop("sha256")
            plan, structure, known = content["plan"], content["structure"], content["graph"]
        except (ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
            raise PlanMismatch(f"{path} is no plan file: {error!r}") from error
        if version != VERSION:
            raise PlanMismatch(f"{path} has version {version}, this is version {VERSION}: search again")
        if digest != _digest(content):
            raise PlanMismatch(f"{path} was changed: its hash is {_digest(content)}, it says {digest}")
        if graph is not None and structure != shape_of(graph):
            raise PlanMismatch(f"{path} is for blocks {structure[:12]}, this graph has {shape_of(graph)[:12]}")
        if graph is not None and exactly and known != graph.hash:
            raise PlanMismatch(f"{path} is for graph {known[:12]}, this is {graph.hash[:12]}")
        try:
            stages = tuple(StageRecipe(**stage) for stage in plan.pop("stages"))
            return cls(stages, **plan)
        except (TypeError, KeyError) as error:
            raise PlanMismatch(f"{path} holds no plan: {error}") from error


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def shape_of(graph: Graph) -> str:
    """A digest of which operators follow each other, without sizes: the same at another length or batch size."""
    words = [
        (op.target, tuple(_made_before(graph, op, v.tensor) for v in op.inputs), op.block) for op in graph.ops
    ]
    return hashlib.sha256(repr(words).encode()).hexdigest()


def _made_before(graph: Graph, op: Op, tensor: int) -> int:
    producer = graph.producer.get(tensor)
    return -1 if producer is None else op.id - producer.id


def shared_layers(graph: Graph, parts: int) -> dict[int, str]:
    """Operators outside of the blocks that may be cut over all devices (embedding, output head), each with how."""
    return {i: n for i, n in columns_and_rows(graph, parts).items() if graph.ops[i].block < 0}


T = TypeVar("T")


def by_key(units: Sequence[Unit], chosen: Mapping[int, T]) -> dict[str, T]:
    """What is given by operator as a recipe has it; nothings are left out."""
    return {
        f"{unit.kind}.{i}": chosen[op.id]
        for unit in units
        for i, op in enumerate(unit.ops)
        if chosen.get(op.id)
    }
