"""A plan: the programs of all ranks, with what their numbers mean. Immutable; printed, verified, simulated and run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from systems.superscaler.graph import Graph
from systems.superscaler.mask import Box
from systems.superscaler.program import Buffer, Collective, Compute, Flat, Free, Instruction, Update, Work

__all__ = ["Parameter", "Plan"]


@dataclass(frozen=True)
class Parameter:
    """What a rank stores of a parameter: a box, in `buffer`; `shard` is set where ZeRO splits it over `group`.

    The optimizer steps on `shard` if there is one, else on `buffer`; `gradient` is the buffer with its gradient.
    """

    tensor: int
    device: int
    box: Box
    buffer: int
    gradient: int | None
    shard: int | None = None
    group: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Plan:
    """The programs of all ranks, with what their numbers mean. `hash` is the same for equal plans of equal graphs."""

    graph: Graph
    devices: int
    microbatches: int
    programs: tuple[tuple[Instruction, ...], ...]
    buffers: tuple[Buffer, ...]
    works: Mapping[int, Work]
    parameters: tuple[Parameter, ...]
    parts: Mapping[int, str] = field(default_factory=dict)
    zero: int = 0

    @cached_property
    def hash(self) -> str:
        """SHA-256 of graph and programs."""
        digest = hashlib.sha256(self.graph.hash.encode())
        for program in self.programs:
            digest.update(repr(program).encode())
        digest.update(repr([(w.id, w.calls, w.leaves, w.outputs) for w in self.works.values()]).encode())
        return digest.hexdigest()

    def describe(self, rank: int | None = None) -> str:
        """The programs in words, one instruction a line."""
        lines = []
        for r, program in enumerate(self.programs):
            if rank is None or r == rank:
                lines.append(f"rank {r}")
                lines += [f"  {i:4} {self.say(instruction)}" for i, instruction in enumerate(program)]
        return "\n".join(lines)

    def say(self, instruction: Instruction) -> str:
        """An instruction in words."""
        match instruction:
            case Compute(kind, number):
                work = self.works[number]
                names = [self.graph.ops[c.op].name for c in work.calls]
                shown = names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]} ({len(names)} operators)"
                return f"{kind} {shown}, micro-batch {work.microbatch}"
            case Collective(kind, task, group, sources, results):
                return f"{kind} {self._named(results)} in {list(group)}, task {task}, from {list(sources)}"
            case Flat(kind, task, group, source, result):
                return f"{kind} {self._named((result,))} in {list(group)}, task {task}, from {source}"
            case Free(buffers):
                return f"free {list(buffers)}"
            case Update(pairs):
                return f"update {len(pairs)} parameters"
            case _:
                return repr(instruction)

    def _named(self, buffers: Sequence[int]) -> str:
        b = self.buffers[buffers[0]]
        more = f" and {len(buffers) - 1} more" if len(buffers) > 1 else ""
        return f"{b.kind} of {self.graph.tensors[b.tensor].name}{list(b.shape)}{more}"

    def sent(self, rank: int) -> dict[str, int]:
        """Elements that a rank sends in a step, by primitive (ring algorithms)."""
        from systems.superscaler.layout import elements_sent

        found: dict[str, int] = {}
        for instruction in self.programs[rank]:
            if isinstance(instruction, Collective):
                n = sum(self.buffers[s].elements for s in instruction.sources)
                found[instruction.kind] = found.get(instruction.kind, 0) + int(
                    elements_sent(instruction.kind, len(instruction.group), n)
                )
            elif type(instruction).__name__ == "Send":
                place = instruction.place  # type: ignore[union-attr]
                source = self.buffers[instruction.source]  # type: ignore[union-attr]
                n = source.elements if place is None else _elements(place)
                found["send"] = found.get("send", 0) + n
            elif isinstance(instruction, Flat):
                kind = "reduce_scatter" if "reduce" in instruction.kind else "all_gather"
                n = self.buffers[instruction.source].elements
                found[kind] = found.get(kind, 0) + int(elements_sent(kind, len(instruction.group), n))  # type: ignore[arg-type]
        return found

    def __repr__(self) -> str:
        return (
            f"Plan({self.devices} devices, {self.microbatches} micro-batches, "
            f"{sum(map(len, self.programs))} instructions, {self.hash[:12]})"
        )


def _elements(region: Any) -> int:
    n = 1
    for dim in region:
        n *= sum(hi - lo for lo, hi in dim)
    return n
