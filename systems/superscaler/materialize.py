"""From parts, places and orders to the programs of all ranks.

Parts of one level (no communication between them) form segments; producers and consumers of each tensor are joined by
`Mover.move`, forward and backward apart, since a gradient's masks are not those of its tensor; tasks are ordered
globally; parameters get their reductions and updates. A plan is an immutable record that can be printed, verified,
simulated and run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from systems.superscaler.errors import CyclicOrder, InvalidPlan
from systems.superscaler.graph import Graph, Op, PTensor
from systems.superscaler.mask import Box, Mask, contains, hull, intersect, places, region_of
from systems.superscaler.program import (
    Assemble,
    Buffer,
    Call,
    Collective,
    Compute,
    Flat,
    Free,
    Instruction,
    Leaf,
    Output,
    Return,
    Slice,
    Update,
    Work,
    reads,
    writes,
)
from systems.superscaler.redistribute import Emitted, Mover, Piece, covered_locally
from systems.superscaler.taskgraph import TaskGraph

if TYPE_CHECKING:
    from systems.superscaler.cluster import Cluster
    from systems.superscaler.sprogram import Part, SProgram

__all__ = ["Parameter", "Plan", "materialize"]

PROLOGUE = -1
Entry = tuple[int, Box, tuple[int, int]]


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


def materialize(s: SProgram, cluster: Cluster | None = None, *, verified: bool = True) -> Plan:
    """The plan of a program. Raises PlanError; see `SProgram.build`."""
    for op in s.graph.ops:
        _check_places(s, op)
    try:
        plan = _Materializer(s, cluster, fine=False).plan()
    except CyclicOrder:
        # Segments may close a circle that single operators do not: try again with one operator a segment.
        plan = _Materializer(s, cluster, fine=True).plan()
    if verified:
        from systems.superscaler.verify import verify

        report = verify(plan)
        if not report.ok:
            raise InvalidPlan("the programs are wrong, which is a fault of ours: " + "; ".join(report.findings[:5]))
    if cluster is not None:
        from systems.superscaler.simulate import check_memory

        check_memory(plan, cluster)
    return plan


def _check_places(s: SProgram, op: Op) -> None:
    held: dict[int, Part] = {}
    for part in s.parts(op):
        device = s.device(part)
        other = held.get(device)
        if other is not None and (part.slot < 0 or other.slot < 0 or (part.cuts == other.cuts)):
            raise InvalidPlan(
                f"{other} and {part} are both on device {device}: give them two devices, or split with "
                "Split(ident, n, colocate=True)"
            )
        held[device] = part


class _Materializer:
    """One pass over a program; `fine` puts every operator into a segment of its own."""

    def __init__(self, s: SProgram, cluster: Cluster | None, *, fine: bool) -> None:
        self.s, self.graph, self.fine, self.cluster = s, s.graph, fine, cluster
        self.mover = Mover()
        self.cost = None if cluster is None else cluster.cost
        self.tensors = s.graph.tensors
        self.placed: dict[int, list[tuple[Part, int]]] = {
            op.id: [(p, s.device(p)) for p in s.parts(op)] for op in s.graph.ops
        }
        self.groups: dict[int, dict[Hashable, list[tuple[Op, int]]]] = {}
        self.group_of: dict[tuple[int, int], Hashable] = {}
        self.easy: dict[tuple[int, Hashable], bool] = {}
        self.level: dict[int, int] = {}
        self.segment: dict[int, int] = {}
        self.segments: dict[int, list[tuple[Part, int]]] = {}
        self.works: dict[int, Work] = {}
        self.tasks = TaskGraph()
        self.emit: dict[Hashable, Emitted] = {}
        self.values: dict[tuple[int, int], list[Piece]] = {}
        self.delivered: dict[tuple[int, int], list[Piece]] = {}
        self.external: dict[tuple[int, int], list[tuple[Part, int, int]]] = {}
        self.weight_grads: dict[tuple[int, Hashable], dict[Entry, int]] = {}
        self.stores: dict[tuple[int, int], list[tuple[Box, int]]] = {}
        self.origin: dict[int, Hashable] = {}
        self.marks: dict[int, frozenset[int]] = {}

    # ------------------------------------------------------------------------------------------- plan

    def plan(self) -> Plan:
        self._order_sets()
        for t in self.tensors:
            self._group(t)
        self._levels()
        self._stores()
        for mb in (PROLOGUE, *range(self.s.microbatches)):
            self._values(mb)
        for mb in (PROLOGUE, *range(self.s.microbatches)):
            self._forward_moves(mb)
        for mb in (PROLOGUE, *range(self.s.microbatches)):
            self._works(mb)
        for mb in range(self.s.microbatches):
            self._gradient_moves(mb)
        self._finish_works()
        self._edges()
        programs: list[list[Instruction]] = [[] for _ in range(self.s.devices)]
        gathers = self._zero_gathers()
        for key in self.tasks.order(self._name):
            if key in gathers:
                self._append(programs, gathers[key])
            elif key in self.emit:
                self._append(programs, self.emit[key])
            elif isinstance(key, tuple) and key[0] in ("F", "B"):
                self._append_work(programs, key)
        parameters = self._updates(programs)
        self._loss(programs)
        self._free(programs)
        names = {p.id: str(p) for placed in self.placed.values() for p, _ in placed}
        return Plan(
            self.graph, self.s.devices, self.s.microbatches, tuple(map(tuple, programs)), tuple(self.mover.buffers),
            self.works, tuple(parameters), names, self.s.zero_stage,
        )  # fmt: skip

    def _append(self, programs: list[list[Instruction]], events: Emitted) -> None:
        for event in events:
            for device, instruction in event.items():
                programs[device].append(instruction)

    def _append_work(self, programs: list[list[Instruction]], key: tuple[Any, ...]) -> None:
        work = self.works[self.work_of[key[1], key[2]]]
        swapped = tuple(self.gathered.get((key[0], work.id), ()))
        if key[0] == "F":
            programs[work.device].append(Compute("forward", work.id, swapped))
            return
        if work.recompute:
            programs[work.device].append(Compute("recompute", work.id, swapped))
        programs[work.device].append(Compute("backward", work.id, swapped))

    # --------------------------------------------------------------------------------------- analysis

    def _order_sets(self) -> None:
        """Operators of different ordered sets must not share a segment."""
        sets: dict[tuple[int, ...], int] = {}
        marks: dict[int, set[int]] = {op.id: set() for op in self.graph.ops}
        for a, b in self.s.orders:
            for task in (a, b):
                ids = tuple(op.id for op in task.ops)
                number = sets.setdefault(ids, len(sets))
                for i in ids:
                    marks[i].add(number)
        self.marks = {i: frozenset(m) for i, m in marks.items()}

    def _group(self, t: PTensor) -> None:
        """Consumers of a tensor whose gradients have the same masks on the same devices, since those add locally."""
        groups: dict[Hashable, list[tuple[Op, int]]] = {}
        entries_of: dict[Hashable, list[Entry]] = {}
        samples = self.s.samples(0)
        for op, i in self.graph.consumers[t.id]:
            entries = []
            for part, device in self.placed[op.id]:
                if i not in part.skipped:
                    entries.append((device, part.input(i, self._range(op, samples)).box, part.gradient(i)))
            grad = t.grad and op.grad
            key: Hashable = tuple(sorted(set(entries))) if grad else None
            groups.setdefault(key, []).append((op, i))
            entries_of[key] = entries
            self.group_of[op.id, i] = key
        self.groups[t.id] = groups
        producer = self.graph.producer.get(t.id)
        for key in groups:
            if key is None or producer is None:
                self.easy[t.id, key] = True
                continue
            wanted = [Piece(d, Mask(p.output(self._range(producer, samples)).box)) for p, d in self.placed[producer.id]]
            held = [Piece(d, Mask(box, part)) for d, box, part in entries_of[key]]
            self.easy[t.id, key] = covered_locally(held, wanted)

    def _range(self, op: Op, samples: tuple[int, int] | None) -> tuple[int, int] | None:
        return None if op.prologue else samples

    def _signature(self, part: Part) -> Hashable:
        op = part.op
        return (self.s.groups.get(op.id, -1), part.slot, self.marks[op.id], op.prologue)

    def _internal(self, part: Part, device: int, index: int) -> Part | None:
        """The local producer that an input comes from inside a segment, if it may."""
        t = part.op.inputs[index].tensor
        producer = self.graph.producer.get(t)
        if producer is None or self.fine or not self.easy[t, self.group_of[part.op.id, index]]:
            return None
        samples = self.s.samples(0)
        need = part.input(index, self._range(part.op, samples))
        for p, d in self.placed[producer.id]:
            made = p.output(self._range(producer, samples))
            if d == device and not made.is_addend and contains(made.box, need.box):
                if self._signature(p) != self._signature(part):
                    return None
                # The gradient that a trivial group gives is of the whole box: so must be what is read.
                return p if made.box == need.box or self.group_of[part.op.id, index] is None else None
        return None

    def _levels(self) -> None:
        keys: dict[Hashable, int] = {}
        for op in self.graph.ops:
            for part, device in self.placed[op.id]:
                level = 0
                for i, v in enumerate(op.inputs):
                    producer = self.graph.producer.get(v.tensor)
                    if producer is None or i in part.skipped:
                        continue
                    inside = self._internal(part, device, i)
                    if inside is not None:
                        level = max(level, self.level[inside.id])
                    else:
                        level = max([level, *(self.level[p.id] + 1 for p, _ in self.placed[producer.id])])
                self.level[part.id] = level
                key = (device, level, self._signature(part), op.id if self.fine else 0)
                number = keys.setdefault(key, len(keys))
                self.segment[part.id] = number
                self.segments.setdefault(number, []).append((part, device))

    def _inside(self, part: Part, device: int, index: int) -> Part | None:
        p = self._internal(part, device, index)
        return p if p is not None and self.segment[p.id] == self.segment[part.id] else None

    # ----------------------------------------------------------------------------------------- values

    def _stores(self) -> None:
        """What each device stores of each parameter: disjoint boxes around what is read."""
        for t in self.graph.parameters:
            needed: dict[int, list[Box]] = {}
            for op, i in self.graph.consumers[t.id]:
                for part, device in self.placed[op.id]:
                    if i not in part.skipped:
                        needed.setdefault(device, []).append(part.input(i).box)
            for device, boxes in needed.items():
                disjoint: list[Box] = []
                for box in boxes:
                    meeting = [b for b in disjoint if intersect(b, box) is not None or b == box]
                    disjoint = [b for b in disjoint if b not in meeting]
                    disjoint.append(hull([box, *meeting]))
                self.stores[t.id, device] = [
                    (box, self.mover.buffer(t.id, "param", 0, device, region_of(box))) for box in sorted(set(disjoint))
                ]

    def _microbatch(self, op: Op) -> int | None:
        return PROLOGUE if op.prologue else None

    def _values(self, mb: int) -> None:
        """Buffers of what parts write in a micro-batch, for tensors that leave their segment."""
        for op in self.graph.ops:
            if op.prologue != (mb == PROLOGUE):
                continue
            samples = None if mb == PROLOGUE else self.s.samples(mb)
            leaves = op.output == self.graph.loss or any(
                self._inside(part, device, i) is None
                for user, i in self.graph.consumers[op.output]
                for part, device in self.placed[user.id]
                if i not in part.skipped
            )
            if leaves:
                self.values[op.output, mb] = [
                    Piece(
                        d,
                        (m := p.output(samples)),
                        self.mover.buffer(op.output, "value", mb, d, region_of(m.box), m.part),
                    )
                    for p, d in self.placed[op.id]
                ]
                for piece, (p, _) in zip(self.values[op.output, mb], self.placed[op.id], strict=True):
                    self.origin[piece.buffer] = ("F", self.segment[p.id], mb)

    def _source_microbatch(self, tensor: int, mb: int) -> int:
        producer = self.graph.producer[tensor]
        return PROLOGUE if producer.prologue else mb

    def _forward_moves(self, mb: int) -> None:
        """Bring values to the devices of their consumers."""
        wanted: dict[tuple[int, int], list[Piece]] = {}
        for op in self.graph.ops:
            if op.prologue != (mb == PROLOGUE):
                continue
            samples = None if mb == PROLOGUE else self.s.samples(mb)
            for part, device in self.placed[op.id]:
                for i, v in enumerate(op.inputs):
                    if v.tensor not in self.graph.producer or i in part.skipped:
                        continue
                    if self._inside(part, device, i) is not None:
                        continue
                    source = self._source_microbatch(v.tensor, mb)
                    need = Piece(device, part.input(i, samples))
                    own = wanted.setdefault((v.tensor, source), [])
                    if need not in own:
                        own.append(need)
        for (t, source), pieces in wanted.items():
            known = self.delivered.setdefault((t, source), [])
            # A leaf takes its place in whatever local value covers it: only what is not there has to be brought.
            there = known + [v for v in self.values[t, source] if not v.mask.is_addend]
            new = [
                p for p in pieces if not any(k.device == p.device and contains(k.mask.box, p.mask.box) for k in there)
            ]
            largest = [
                p for p in new
                if not any(q is not p and q.device == p.device and contains(q.mask.box, p.mask.box) and
                           (q.mask.box != p.mask.box) for q in new)
            ]  # fmt: skip
            if not largest:
                continue
            held = self.values[t, source] + [k for k in known if k not in self.values[t, source]]
            made, events = self.mover.move(held, largest, self.tensors[t].shape, (t, "value", source), self.cost)
            key = ("A", t, mb) if source == mb else ("A", t, source, mb)
            if events:
                self.emit[key] = events
            values = {p.buffer for p in held}
            for p in made:
                if p.buffer not in values:
                    self.origin[p.buffer] = key
            known += made

    def _works(self, mb: int) -> None:
        """The works of all segments for a micro-batch, but for the gradients of their outputs."""
        for number, members in self.segments.items():
            prologue = members[0][0].op.prologue
            if prologue != (mb == PROLOGUE):
                continue
            self._work(number, members, mb)

    def _work(self, number: int, members: list[tuple[Part, int]], mb: int) -> None:
        samples = None if mb == PROLOGUE else self.s.samples(mb)
        device = members[0][1]
        slots: dict[Hashable, int] = {}
        leaves: list[Leaf] = []
        calls: list[Call] = []
        outputs: list[Output] = []
        for part, _ in members:
            op = part.op
            inputs: list[tuple[int, Any] | None] = []
            for i, v in enumerate(op.inputs):
                if i in part.skipped:
                    inputs.append(None)
                    continue
                need = part.input(i, samples)
                inside = self._inside(part, device, i)
                if inside is not None:
                    made = inside.output(samples)
                    where = None if made.box == need.box else places(region_of(need.box), region_of(made.box))
                    inputs.append((slots["part", inside.id], where))
                    continue
                group = self.group_of[op.id, i]
                entry: Entry = (device, need.box, part.gradient(i) if group is not None else (0, 1))
                key = ("leaf", v.tensor, group, entry)
                if key not in slots:
                    slots[key] = len(slots)
                    leaves.append(self._leaf(slots[key], v.tensor, group, entry, mb, number))
                inputs.append((slots[key], None))
            slots["part", part.id] = len(slots)
            calls.append(Call(op.id, part.local(samples), tuple(inputs), slots["part", part.id], part.id))
        for part, _ in members:
            for piece, (p, _) in zip(self.values.get((part.op.output, mb), []), self.placed[part.op.id], strict=False):
                if p is part:
                    outputs.append(Output(slots["part", part.id], piece.buffer, None))
        flops = sum(
            p.op.flops * p.output(samples).elements / max(self.tensors[p.op.output].elements, 1) for p, _ in members
        )
        work = Work(
            len(self.works), number, device, mb, tuple(calls), tuple(leaves), tuple(outputs),
            self.s.groups.get(members[0][0].op.id, -1) >= 0, flops,
        )  # fmt: skip
        self.works[work.id] = work
        self.work_of[number, mb] = work.id

    @cached_property
    def work_of(self) -> dict[tuple[int, int], int]:
        return {}

    def _leaf(self, slot: int, tensor: int, group: Hashable, entry: Entry, mb: int, segment: int) -> Leaf:
        t = self.tensors[tensor]
        device, box, part = entry
        if t.kind in ("input", "buffer"):
            buffer = self.mover.buffer(tensor, "given", mb, device, region_of(box))
            return Leaf(slot, buffer, None, None)
        if t.kind == "param":
            grad = None
            if group is not None:
                known = self.weight_grads.setdefault((tensor, group), {})
                if entry not in known:
                    known[entry] = self.mover.buffer(tensor, "weight_grad", 0, device, region_of(box), part)
                grad = known[entry]
            around, buffer = next((b, n) for b, n in self.stores[tensor, device] if contains(b, box))
            return Leaf(slot, buffer, _place(box, around), grad)
        source = self._source_microbatch(tensor, mb)
        held = self.values[tensor, source] + self.delivered.get((tensor, source), [])
        near = next(p for p in held if p.device == device and not p.mask.is_addend and contains(p.mask.box, box))
        grad = None
        if group is not None:
            grad = self.mover.buffer(tensor, "grad", mb, device, region_of(box), part)
            self.arrivals.setdefault((tensor, mb, group), {}).setdefault(entry, []).append((grad, segment))
        return Leaf(slot, near.buffer, _place(box, near.mask.box), grad)

    @cached_property
    def arrivals(self) -> dict[tuple[int, int, Hashable], dict[Entry, list[tuple[int, int]]]]:
        return {}

    # -------------------------------------------------------------------------------------- gradients

    def _gradient_moves(self, mb: int) -> None:
        """Bring the gradients that consumers give to the producers, added up over groups."""
        for op in self.graph.ops:
            t = op.output
            if op.prologue or (t, mb) not in self.values or not self.tensors[t].grad:
                continue
            producers = self.values[t, mb]
            if t == self.graph.loss:
                for piece in producers:
                    self.output_grads[piece.buffer] = -1
                continue
            events: Emitted = []
            sums: dict[int, list[int]] = {}
            like = (t, "grad", mb)
            for group in self.groups[t]:
                entries = self.arrivals.get((t, mb, group))
                if group is None or not entries:
                    continue
                held = []
                for (device, box, part), arrived in entries.items():
                    buffer = arrived[0][0]
                    if len(arrived) > 1:
                        buffer = self.mover.buffer(t, "grad", mb, device, region_of(box), part)
                        events.append({device: Assemble(tuple((b, None) for b, _ in arrived), buffer)})
                    held.append(Piece(device, Mask(box, part), buffer))
                inside = self._held_inside(op, group)
                wanted = [
                    Piece(p.device, Mask(p.mask.box)) for p in producers if p.device not in inside or
                    any(h.device == p.device for h in held)
                ]  # fmt: skip
                made, more = self.mover.move(held, wanted, self.tensors[t].shape, like, self.cost)  # type: ignore[arg-type]
                events += more
                at = {(w.device, w.mask.box): m.buffer for w, m in zip(wanted, made, strict=True)}
                for piece in producers:
                    found = at.get((piece.device, piece.mask.box))
                    if found is not None:
                        sums.setdefault(piece.buffer, []).append(found)
            for piece in producers:
                found_all = sums.get(piece.buffer, [])
                if not found_all:
                    continue
                total = found_all[0]
                if len(found_all) > 1:
                    total = self.mover.buffer(t, "grad", mb, piece.device, region_of(piece.mask.box))
                    events.append({piece.device: Assemble(tuple((b, None) for b in found_all), total)})
                self.output_grads[piece.buffer] = total
            if events:
                self.emit["G", t, mb] = events

    @cached_property
    def output_grads(self) -> dict[int, int]:
        return {}

    def _held_inside(self, op: Op, group: Hashable) -> set[int]:
        """Devices on which all of a group's consumers are inside the producer's segment."""
        found: set[int] = set()
        outside: set[int] = set()
        for user, i in self.groups[op.output][group]:
            for part, device in self.placed[user.id]:
                (found if self._inside(part, device, i) is not None else outside).add(device)
        return found - outside

    def _finish_works(self) -> None:
        from dataclasses import replace

        for number, work in self.works.items():
            outputs = tuple(Output(o.slot, o.buffer, self.output_grads.get(o.buffer)) for o in work.outputs)
            self.works[number] = replace(work, outputs=outputs)

    # ------------------------------------------------------------------------------------------ order

    def _edges(self) -> None:
        tasks = self.tasks
        for work in self.works.values():
            level = self.level[self.segments[work.segment][0][0].id]
            seconds = max(work.flops, 1.0)
            tasks.add(("F", work.segment, work.microbatch), [work.device], seconds, (1, work.microbatch, level))
            if work.has_backward:
                longer = 3.0 if work.recompute else 2.0
                tasks.add(
                    ("B", work.segment, work.microbatch), [work.device], longer * seconds, (0, work.microbatch, -level)
                )
        for key, events in self.emit.items():
            devices = sorted({d for event in events for d in event})
            assert isinstance(key, tuple)
            tasks.add(key, devices, 1e-3, (-1, int(key[2]), 0), loose=True)
        for work in self.works.values():
            me: Hashable = ("F", work.segment, work.microbatch)
            for leaf in work.leaves:
                origin = self.origin.get(leaf.buffer)
                if origin is not None and origin != me:
                    tasks.before(origin, me, "data")
            back: Hashable = ("B", work.segment, work.microbatch)
            if work.has_backward:
                tasks.before(me, back, "backward")
        written: dict[int, Hashable] = {}
        for work in self.works.values():
            if work.has_backward:
                for leaf in work.leaves:
                    if leaf.grad is not None and self.mover.buffers[leaf.grad].kind == "grad":
                        written[leaf.grad] = ("B", work.segment, work.microbatch)
        for key, events in self.emit.items():
            for event in events:
                for instruction in event.values():
                    for b in writes(instruction, self.works):
                        written.setdefault(b, key)
        for key, events in self.emit.items():
            for event in events:
                for instruction in event.values():
                    for b in reads(instruction, self.works):
                        origin = written.get(b, self.origin.get(b))
                        if origin is not None and origin != key:
                            tasks.before(origin, key, "data")
        for work in self.works.values():
            if work.has_backward:
                for o in work.outputs:
                    if o.grad is not None and o.grad >= 0 and o.grad in written:
                        tasks.before(written[o.grad], ("B", work.segment, work.microbatch), "gradient")
        self._order_edges()

    def _order_edges(self) -> None:
        """Orders that the user gave; each goes through a barrier, so their number stays linear."""
        members: dict[tuple[int, ...], list[int]] = {}
        for number, (first, second) in enumerate(self.s.orders):
            barrier = ("order", number)
            self.tasks.add(barrier, (), 0.0, (0, 0, 0))
            for task, ahead in ((first, True), (second, False)):
                ids = tuple(op.id for op in task.ops)
                if ids not in members:
                    members[ids] = sorted({self.segment[p.id] for i in ids for p, _ in self.placed[i]})
                for segment in members[ids]:
                    for mb in (task.microbatch, PROLOGUE):
                        key = (task.direction, segment, mb)
                        if key in self.tasks.devices:
                            if ahead:
                                self.tasks.before(key, barrier, "op_order")
                            else:
                                self.tasks.before(barrier, key, "op_order")

    def _name(self, key: Hashable) -> str:
        assert isinstance(key, tuple)
        if key[0] == "order":
            first, second = self.s.orders[key[1]]
            return f"op_order({first}; {second})"
        if key[0] in ("F", "B"):
            work = self.works[self.work_of[key[1], key[2]]]
            ops = [self.graph.ops[c.op] for c in work.calls]
            names = str(ops[0]) if len(ops) == 1 else f"{ops[0]} to {ops[-1]}"
            way = "forward" if key[0] == "F" else "backward"
            return f"{way} of {names}, micro-batch {work.microbatch}, device {work.device}"
        what = {"A": "moving", "G": "moving the gradient of", "P": "gathering"}[key[0]]
        devices = ", ".join(map(str, self.tasks.devices[key]))
        return f"{what} {self.tensors[key[1]].name}, micro-batch {key[2]}, devices {devices}"

    # ----------------------------------------------------------------------------------------- updates

    def _holders(self, t: int) -> dict[Box, list[tuple[int, int]]]:
        """Box -> (device, buffer) of those that store it."""
        found: dict[Box, list[tuple[int, int]]] = {}
        for device in range(self.s.devices):
            for box, buffer in self.stores.get((t, device), []):
                found.setdefault(box, []).append((device, buffer))
        return found

    @cached_property
    def shards(self) -> dict[int, int]:
        """Parameter buffer -> the buffer of this device's shard, where ZeRO splits it."""
        found = {}
        if self.s.zero_stage:
            for t in self.graph.parameters:
                if not t.grad or not any(op.grad for op, _ in self.graph.consumers[t.id]):
                    continue
                for box, holders in self._holders(t.id).items():
                    if len(holders) > 1:
                        for i, (device, buffer) in enumerate(holders):
                            found[buffer] = self.mover.buffer(
                                t.id, "shard", 0, device, region_of(box), flat=(i, len(holders))
                            )
        return found

    @cached_property
    def gathered(self) -> dict[tuple[str, int], list[tuple[int, int]]]:
        """("F" or "B", work) -> (parameter buffer, the buffer that it was gathered into)."""
        return {}

    def _zero_gathers(self) -> dict[Hashable, Emitted]:
        """ZeRO 3: before works that read a split parameter all its holders gather it."""
        found: dict[Hashable, Emitted] = {}
        if self.s.zero_stage < 3:
            return found
        groups: dict[int, list[tuple[int, int]]] = {}
        for t in self.graph.parameters:
            for holders in self._holders(t.id).values():
                for _, buffer in holders:
                    groups[buffer] = holders
        users: dict[tuple[Any, ...], list[Work]] = {}
        for work in self.works.values():
            for leaf in work.leaves:
                if leaf.buffer in self.shards:
                    tensor = self.mover.buffers[leaf.buffer].tensor
                    level = self.level[self.segments[work.segment][0][0].id]
                    key = (
                        "P",
                        tensor,
                        work.microbatch,
                        tuple(d for d, _ in groups[leaf.buffer]),
                        level,
                        groups[leaf.buffer][0][1],
                    )
                    users.setdefault(key, []).append(work)
        for key, works in users.items():
            for direction in ("F", "B"):
                chosen = [w for w in works if direction == "F" or w.has_backward]
                if not chosen:
                    continue
                task = (*key, direction)
                holders = groups[key[5]]
                event: dict[int, Instruction] = {}
                ranks = tuple(d for d, _ in holders)
                number = self.mover.task()
                full = {}
                for device, buffer in holders:
                    region = self.mover.buffers[buffer].region
                    full[device] = self.mover.buffer(key[1], "param", key[2], device, region)
                    event[device] = Flat("flat_all_gather", number, ranks, self.shards[buffer], full[device])
                found[task] = [event]
                self.tasks.add(task, ranks, 1e-3, (-1, int(key[2]), -1), loose=True)
                own = dict(holders)
                for work in {w.id: w for w in chosen}.values():
                    pairs = self.gathered.setdefault((direction, work.id), [])
                    pairs.append((own[work.device], full[work.device]))
                    me = (direction, work.segment, work.microbatch)
                    self.tasks.before(task, me, "parameters")
                    for origin in self.tasks.reversed_edges_of(me):
                        if origin != task and self.tasks.devices[origin]:
                            self.tasks.before(origin, task, "just in time")
        return found

    def _updates(self, programs: list[list[Instruction]]) -> list[Parameter]:
        """Reduce gradients, step, gather; all-reduces of one group go together."""
        parameters: list[Parameter] = []
        reductions: list[Emitted] = []
        pairs: dict[int, list[tuple[int, int]]] = {}
        closing: list[dict[int, Instruction]] = []
        for t in self.graph.parameters:
            holders = self._holders(t.id)
            everyone = [Piece(d, Mask(box), buffer) for box, own in holders.items() for d, buffer in own]
            sums: dict[int, list[int]] = {p.buffer: [] for p in everyone}
            shard_grads: dict[int, int] = {}
            by_group = [
                [Piece(d, Mask(box, part), buffer) for (d, box, part), buffer in entries.items()]
                for (tensor, _), entries in self.weight_grads.items()
                if tensor == t.id
            ]
            left = dict(holders)
            for box, own in holders.items():
                meeting = [[h for h in held if intersect(h.mask.box, box) is not None] for held in by_group]
                meeting = [held for held in meeting if held]
                scattered = self._scattered(meeting[0], box, own) if len(meeting) == 1 and self.s.zero_stage else None
                if scattered is not None:
                    reductions.append(scattered[0])
                    shard_grads.update(scattered[1])
                    del left[box]
            rest = [Piece(d, Mask(box), buffer) for box, own in left.items() for d, buffer in own]
            for held in by_group:
                touched = [p for p in rest if any(intersect(h.mask.box, p.mask.box) is not None for h in held)]
                made, events = self.mover.move(held, touched, t.shape, (t.id, "weight_grad", 0), self.cost)
                reductions.append(events)
                for want, got in zip(touched, made, strict=True):
                    sums[want.buffer].append(got.buffer)
            for piece in everyone:
                shard = self.shards.get(piece.buffer)
                found = sums[piece.buffer]
                grad: int | None = shard_grads.get(piece.buffer)
                if grad is None and found:
                    grad = found[0]
                    if len(found) > 1:
                        grad = self.mover.buffer(t.id, "weight_grad", 0, piece.device, region_of(piece.mask.box))
                        reductions.append([{piece.device: Assemble(tuple((b, None) for b in found), grad)}])
                    if shard is not None:
                        like = self.mover.buffers[shard]
                        cutting = self.mover.buffer(t.id, "weight_grad", 0, piece.device, like.region, flat=like.flat)
                        reductions.append([{piece.device: Slice(grad, cutting, None, like.flat)}])
                        grad = cutting
                if grad is None and t.grad:
                    shard = None
                if grad is not None and t.grad:
                    pairs.setdefault(piece.device, []).append((piece.buffer if shard is None else shard, grad))
                group = tuple(d for d, _ in holders[piece.mask.box])
                parameters.append(
                    Parameter(
                        t.id,
                        piece.device,
                        piece.mask.box,
                        piece.buffer,
                        grad,
                        shard,
                        group if shard is not None else (),
                    )
                )
            if self.s.zero_stage in (1, 2):
                for own_holders in holders.values():
                    if len(own_holders) > 1 and all(b in self.shards for _, b in own_holders) and pairs:
                        if not any(p.shard is not None for p in parameters if p.tensor == t.id):
                            continue
                        number = self.mover.task()
                        ranks = tuple(d for d, _ in own_holders)
                        closing.append({
                            d: Flat("flat_all_gather", number, ranks, self.shards[b], b) for d, b in own_holders
                        })  # fmt: skip
        for event in self._bucketed(reductions):
            for device, instruction in event.items():
                programs[device].append(instruction)
        for device, own_pairs in pairs.items():
            programs[device].append(Update(tuple(own_pairs)))
        for event in closing:
            for device, instruction in event.items():
                programs[device].append(instruction)
        return parameters

    def _scattered(
        self, held: Sequence[Piece], box: Box, own: Sequence[tuple[int, int]]
    ) -> tuple[Emitted, dict[int, int]] | None:
        """One reduce-scatter instead of all-reduce and slice, where each holder of a box has one addend of it."""
        at = {h.device: h for h in held}
        if len(at) != len(held) or set(at) != {d for d, _ in own} or any(b not in self.shards for _, b in own):
            return None
        if any(h.mask.box != box or h.mask.part[1] != len(held) for h in held):
            return None
        if len({h.mask.part for h in held}) != len(held):
            return None
        number = self.mover.task()
        event: dict[int, Instruction] = {}
        made: dict[int, int] = {}
        ranks = tuple(d for d, _ in own)
        for device, buffer in own:
            shard = self.mover.buffers[self.shards[buffer]]
            result = self.mover.buffer(shard.tensor, "weight_grad", 0, device, shard.region, flat=shard.flat)
            event[device] = Flat("flat_reduce_scatter", number, ranks, at[device].buffer, result)
            made[buffer] = result
        return [event], made

    def _bucketed(self, reductions: Iterable[Emitted]) -> Emitted:
        """All-reduces of one group that come first in their chains as one instruction each; the rest behind."""
        buckets: dict[tuple[tuple[int, ...], str], list[dict[int, Collective]]] = {}
        rest: Emitted = []
        for chain in reductions:
            made: set[int] = set()
            for event in chain:
                first = next(iter(event.values()))
                own = {b for i in event.values() for b in reads(i, self.works)}
                if isinstance(first, Collective) and first.kind == "all_reduce" and not own & made:
                    dtype = self.tensors[self.mover.buffers[first.sources[0]].tensor].dtype
                    buckets.setdefault((first.group, dtype), []).append(event)  # type: ignore[arg-type]
                else:
                    rest.append(event)
                made |= {b for i in event.values() for b in writes(i, self.works)}
        found: Emitted = []
        for (group, _), events in buckets.items():
            number = self.mover.task()
            joined: dict[int, Instruction] = {}
            # Each step of a path may have several groups in one event list, but one event has one group.
            for device in group:
                sources = tuple(s for e in events for s in e[device].sources)
                results = tuple(r for e in events for r in e[device].results)
                joined[device] = Collective("all_reduce", number, group, sources, results)
            found.append(joined)
        return found + rest

    def _loss(self, programs: list[list[Instruction]]) -> None:
        t = self.tensors[self.graph.loss]
        held: dict[tuple[int, Mask], list[int]] = {}
        for mb in range(self.s.microbatches):
            for piece in self.values[t.id, mb]:
                held.setdefault((piece.device, piece.mask), []).append(piece.buffer)
        pieces = []
        events: Emitted = []
        for (device, mask), buffers in held.items():
            total = buffers[0]
            if len(buffers) > 1:
                total = self.mover.buffer(t.id, "value", -2, device, (), mask.part)
                events.append({device: Assemble(tuple((b, None) for b in buffers), total)})
            pieces.append(Piece(device, mask, total))
        wanted = [Piece(d, Mask(())) for d in range(self.s.devices)]
        made, more = self.mover.move(pieces, wanted, (), (t.id, "value", -2), self.cost)
        self._append(programs, events + more)
        for piece in made:
            programs[piece.device].append(Return(piece.buffer))

    def _free(self, programs: list[list[Instruction]]) -> None:
        """Forget every buffer after its last use; parameters and shards stay."""
        kept = {b for own in self.stores.values() for _, b in own} | set(self.shards.values())
        for device, program in enumerate(programs):
            last: dict[int, int] = {}
            for i, instruction in enumerate(program):
                for b in (*reads(instruction, self.works), *writes(instruction, self.works)):
                    last[b] = i
                if isinstance(instruction, Compute):
                    work = self.works[instruction.work]
                    swapped = dict(instruction.gathered)
                    if instruction.kind == "backward":  # what forward read may be needed to compute again
                        for leaf in work.leaves:
                            if leaf.buffer not in swapped:
                                last[leaf.buffer] = i
            ends: dict[int, list[int]] = {}
            for b, i in last.items():
                if b not in kept and self.mover.buffers[b].kind != "given":
                    ends.setdefault(i, []).append(b)
            made: list[Instruction] = []
            for i, instruction in enumerate(program):
                made.append(instruction)
                if i in ends:
                    made.append(Free(tuple(sorted(ends[i]))))
            programs[device] = made


def _place(box: Box, around: Box) -> Any:
    return None if box == around else places(region_of(box), region_of(around))
