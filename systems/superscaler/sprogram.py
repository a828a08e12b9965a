"""A plan as a program over three primitives: `op_trans` splits, `op_assign` places, `op_order` orders.

    s = SProgram(graph, devices=4)
    s.microbatch(2)
    for op in graph.ops:
        s.op_assign(s.op_trans(op, {"b": 2}), [0, 1] if op.block < 2 else [2, 3])
    plan = s.build()

An operator starts as one part. `op_trans` replaces a part by several; masks follow from the annotation, and who needs
what from whom follows from the masks, so a transformation never rewires anything. `build` checks that the plan is
valid, puts in the communication, and verifies the programs of all ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from systems.superscaler.errors import InvalidPlan, Unassigned, Unsupported
from systems.superscaler.graph import Graph, Op
from systems.superscaler.mask import Interval, Mask, cut
from systems.superscaler.operators import skipped_inputs

if TYPE_CHECKING:
    from systems.superscaler.cluster import Cluster
    from systems.superscaler.plan import Plan

__all__ = ["Part", "Replicate", "SProgram", "Split", "Task"]

Direction = Literal["F", "B"]


@dataclass(frozen=True)
class Replicate:
    """`count` equal copies of an operator: redundant work on purpose."""

    count: int


@dataclass(frozen=True)
class Split:
    """`count` parts along an identifier; `colocate`: for one device, one after another (co-shard)."""

    ident: str
    count: int
    colocate: bool = False


@dataclass(frozen=True, eq=False)
class Part:
    """A part of an operator.

    ranges: interval per identifier that was cut; cuts: (identifier, index, of) from the first; copy: index among
    replicas; slot: which of the colocated parts it is, -1 for none.
    """

    id: int
    op: Op
    ranges: Mapping[str, Interval] = field(default_factory=dict)
    cuts: tuple[tuple[str, int, int], ...] = ()
    copy: int = 0
    slot: int = -1

    def local(self, samples: Interval | None) -> dict[str, Interval]:
        """The intervals for the samples of a micro-batch; None is the whole batch."""
        op = self.op
        ranges = dict(self.ranges)
        if samples is None or "b" not in op.annotation.units or op.prologue:
            return ranges
        unit = op.annotation.units["b"]
        lo, hi = samples
        index, of = 0, 1
        for name, i, n in self.cuts:
            if name == "b":
                index, of = index * n + i, of * n
        if hi - lo < of:
            raise InvalidPlan(f"{op}: a micro-batch of {hi - lo} samples cannot be cut into {of} parts")
        ranges["b"] = _nested(lo, hi, self.cuts, unit)
        return ranges

    def output(self, samples: Interval | None = None) -> Mask:
        """The mask of the output."""
        annotation = self.op.annotation
        dims = annotation.outputs[0]
        lost = [c for c in self.cuts if not annotation.has(dims, c[0])]
        return Mask(annotation.box(dims, self.local(samples)), _addend(lost))

    def input(self, index: int, samples: Interval | None = None) -> Mask:
        """The mask of an input that this part reads: a value, never an addend."""
        annotation = self.op.annotation
        dims = annotation.inputs[index]
        box = annotation.box(dims or (), self.local(samples))
        base = self.op.inputs[index].box
        return Mask(tuple((b + lo, b + hi) for (b, _), (lo, hi) in zip(base, box, strict=True)))

    def gradient(self, index: int) -> tuple[int, int]:
        """Which addend of the gradient this part gives to an input: (0, 1) where the input was cut with it.

        An input that later parts of a contraction skip gets its gradient whole from the first.
        """
        annotation = self.op.annotation
        dims = annotation.inputs[index] or ()
        lost = []
        for name, i, n in self.cuts:
            if annotation.has(dims, name):
                continue
            if index in skipped_inputs(self.op, {name: (1, 2)}):
                continue
            lost.append((name, i, n))
        return _addend(lost)

    @property
    def skipped(self) -> frozenset[int]:
        """Inputs that this part does not read."""
        return skipped_inputs(self.op, self.ranges)

    def __str__(self) -> str:
        cuts = ", ".join(f"{n} {i + 1}/{of}" for n, i, of in self.cuts)
        copy = f", copy {self.copy}" if self.copy else ""
        return f"{self.op}" + (f" [{cuts}{copy}]" if cuts or copy else "")


def _addend(cuts: Iterable[tuple[str, int, int]]) -> tuple[int, int]:
    v, n = 0, 1
    for _, i, of in cuts:
        v, n = v * of + i, n * of
    return v, n


def _nested(lo: int, hi: int, cuts: Sequence[tuple[str, int, int]], unit: int) -> Interval:
    for name, i, n in cuts:
        if name == "b":
            a, b = cut(hi - lo, n)[i]
            lo, hi = lo + a, lo + b
    return lo * unit, hi * unit


@dataclass(frozen=True)
class Task:
    """What `op_order` orders: the work of some operators for one micro-batch in one direction."""

    ops: tuple[Op, ...]
    microbatch: int = 0
    direction: Direction = "F"

    def __str__(self) -> str:
        names = self.ops[0].name if len(self.ops) == 1 else f"{self.ops[0].name} to {self.ops[-1].name}"
        return f"{'forward' if self.direction == 'F' else 'backward'} of {names}, micro-batch {self.microbatch}"


class SProgram:
    """A graph with a plan on it that grows by the primitives. devices: how many; ranks are 0 to devices - 1."""

    def __init__(self, graph: Graph, devices: int) -> None:
        if devices < 1:
            raise InvalidPlan(f"devices is {devices}, expected at least 1")
        self.graph = graph
        self.devices = devices
        self.microbatches = 1
        self.orders: list[tuple[Task, Task]] = []
        self.groups: dict[int, int] = {}
        self.zero_stage = 0
        self._parts: dict[int, list[Part]] = {}
        self._device: dict[int, int] = {}
        self._made = 0
        for op in graph.ops:
            self._parts[op.id] = [self._part(op)]

    def _part(self, op: Op, **fields: object) -> Part:
        self._made += 1
        return Part(self._made - 1, op, **fields)  # type: ignore[arg-type]

    # --------------------------------------------------------------------------------------- primitives

    def op_trans(self, target: Op | Part, how: Mapping[str, int] | Split | Replicate) -> list[Part]:
        """Replace an operator's only part, or one part, by several; returns the new parts in order.

        how: {identifier: parts, ...}, nested in that order; or `Split`, or `Replicate`. `{"b": n}` on an operator
        that has no batch replicates it. Raises InvalidPlan listing the identifiers that may be cut.
        """
        part = self._only(target)
        if isinstance(how, Replicate):
            if how.count < 1:
                raise InvalidPlan(f"Replicate({how.count}) of {part}: expected at least 1")
            return self._replace(part, [
                self._part(part.op, ranges=part.ranges, cuts=part.cuts, copy=part.copy * how.count + i, slot=part.slot)
                for i in range(how.count)
            ])  # fmt: skip
        if isinstance(how, Split):
            return self._replace(part, self._cut(part, how.ident, how.count, colocate=how.colocate))
        found = [part]
        for name, n in how.items():
            found = [new for old in found for new in self._cut(old, name, n)]
        return self._replace(part, found)

    def op_assign(self, target: Op | Part | Sequence[Part], devices: int | Sequence[int]) -> None:
        """Put a part, or each of several parts, on a device. Raises InvalidPlan for an unknown device or a second one.

        An operator with one part may get several devices: it is replicated on them.
        """
        parts = list(target) if isinstance(target, Sequence) else [self._only(target)]
        places = [devices] * len(parts) if isinstance(devices, int) else list(devices)
        if len(parts) == 1 and len(places) > 1:
            parts = self.op_trans(parts[0], Replicate(len(places)))
        if len(parts) != len(places):
            raise InvalidPlan(f"{parts[0].op} has {len(parts)} parts, and {len(places)} devices were given")
        for part, device in zip(parts, places, strict=True):
            if not 0 <= device < self.devices:
                raise InvalidPlan(f"{part} on device {device}: there are {self.devices}, numbered from 0")
            if part not in self._parts[part.op.id]:
                raise InvalidPlan(f"{part} has been split since: assign its parts")
            if part.id in self._device:
                raise InvalidPlan(f"{part} is on device {self._device[part.id]} already, and was given {device} too")
            self._device[part.id] = device

    def op_order(self, first: Task | Op, second: Task | Op) -> None:
        """`first` is done before `second` starts; an operator stands for its forward of micro-batch 0."""
        tasks = [t if isinstance(t, Task) else Task((t,)) for t in (first, second)]
        for task in tasks:
            if not task.ops:
                raise InvalidPlan("op_order of no operators")
            if not 0 <= task.microbatch < self.microbatches:
                raise InvalidPlan(f"{task}: there are {self.microbatches} micro-batches, numbered from 0")
        self.orders.append((tasks[0], tasks[1]))

    # ------------------------------------------------------------------------------------------ helpers

    def sequence(self, tasks: Sequence[Task]) -> None:
        """Order tasks one after another."""
        for a, b in pairwise(tasks):
            self.op_order(a, b)

    def microbatch(self, count: int) -> None:
        """Run the batch as `count` micro-batches of almost equal size; gradients add up.

        Raises InvalidPlan for more than there are samples, Unsupported for a model that mixes samples.
        """
        if not 1 <= count <= self.graph.samples:
            raise InvalidPlan(f"{count} micro-batches of {self.graph.samples} samples")
        if count > 1:
            for op in self.graph.ops:
                if op.blocked:
                    raise Unsupported(f"micro-batches: {op} mixes samples: {op.blocked}")
        self.microbatches = count

    def recompute(self, ops: Iterable[Op], group: int | None = None) -> None:
        """Keep only what enters these operators, and compute them again before their backward."""
        ops = list(ops)
        number = max(self.groups.values(), default=-1) + 1 if group is None else group
        for op in ops:
            self.groups[op.id] = number

    def zero(self, stage: int) -> None:
        """Split optimizer state (1), gradients too (2), parameters too (3) over the devices that share a parameter."""
        if stage not in (0, 1, 2, 3):
            raise InvalidPlan(f"zero stage {stage}, expected 0 to 3")
        self.zero_stage = stage

    def parts(self, op: Op) -> tuple[Part, ...]:
        """The parts that an operator has now."""
        return tuple(self._parts[op.id])

    def device(self, part: Part) -> int:
        """Where a part is. Raises Unassigned."""
        if part.id not in self._device:
            raise Unassigned(f"{part} has no device: give it one by op_assign")
        return self._device[part.id]

    def samples(self, microbatch: int) -> Interval | None:
        """The samples of a micro-batch; None where there is one only."""
        if self.microbatches == 1:
            return None
        return cut(self.graph.samples, self.microbatches)[microbatch]

    def stage_ops(self) -> Mapping[int, tuple[Op, ...]]:
        """Device -> the operators that have a part on it, in the order of the graph."""
        found: dict[int, list[Op]] = {d: [] for d in range(self.devices)}
        for op in self.graph.ops:
            for device in {self.device(p) for p in self.parts(op)}:
                found[device].append(op)
        return {d: tuple(ops) for d, ops in found.items()}

    def build(self, cluster: Cluster | None = None, *, verify: bool = True) -> Plan:
        """The programs of all ranks, verified.

        Raises Unassigned, InvalidPlan, CyclicOrder (with the shortest cycle), OutOfMemory (with a cluster).
        """
        from systems.superscaler.materialize import materialize

        return materialize(self, cluster, verified=verify)

    # ------------------------------------------------------------------------------------------- inside

    def _only(self, target: Op | Part) -> Part:
        if isinstance(target, Part):
            if target not in self._parts[target.op.id]:
                raise InvalidPlan(f"{target} has been split already: split its parts")
            return target
        if target.id not in self._parts or self.graph.ops[target.id] is not target:
            raise InvalidPlan(f"{target} is not an operator of this graph")
        parts = self._parts[target.id]
        if len(parts) != 1:
            raise InvalidPlan(f"{target} has {len(parts)} parts: name one of them")
        return parts[0]

    def _replace(self, part: Part, new: list[Part]) -> list[Part]:
        if part.id in self._device:
            raise InvalidPlan(f"{part} is on device {self._device[part.id]} already: split it before assigning")
        own = self._parts[part.op.id]
        at = own.index(part)
        own[at : at + 1] = new
        return new

    def _cut(self, part: Part, name: str, count: int, *, colocate: bool = False) -> list[Part]:
        annotation = part.op.annotation
        if name == "b" and "b" not in annotation.units:
            return [
                self._part(part.op, ranges=part.ranges, cuts=part.cuts, copy=part.copy * count + i, slot=part.slot)
                for i in range(count)
            ]
        legal = annotation.divisible
        if name not in legal:
            why = "may not be cut" if name in annotation.sizes else "is no identifier"
            raise InvalidPlan(
                f"{name!r} {why} of {part.op}: {annotation}; these may be cut: "
                f"{', '.join(f'{k} (up to {v})' for k, v in sorted(legal.items())) or 'none'}"
            )
        lo, hi = part.ranges.get(name, (0, annotation.sizes[name]))
        unit = annotation.units.get(name, 1)
        if count < 1 or (hi - lo) // unit < count:
            raise InvalidPlan(
                f"{part.op}: {name!r} has {(hi - lo) // unit} elements left to cut, not {count}; "
                f"these may be cut: {', '.join(f'{k} (up to {v})' for k, v in sorted(legal.items()))}"
            )
        found = []
        for i, (a, b) in enumerate(cut(hi - lo, count, unit)):
            slot = part.slot if not colocate else max(part.slot, 0) * count + i
            found.append(
                self._part(
                    part.op, ranges={**part.ranges, name: (lo + a, lo + b)}, cuts=(*part.cuts, (name, i, count)),
                    copy=part.copy, slot=slot,
                )
            )  # fmt: skip
        return found
