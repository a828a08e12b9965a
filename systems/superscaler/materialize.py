"""From parts, places and orders to the programs of all ranks.

Parts of one level (no communication between them) form segments; producers and consumers of each tensor are joined by
`Mover.move`, forward and backward apart, since a gradient's masks are not those of its tensor; tasks are ordered
globally; parameters get their reductions and updates. A plan is an immutable record that can be printed, verified,
simulated and run.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from systems.superscaler.errors import CyclicOrder, InvalidPlan
from systems.superscaler.graph import Op
from systems.superscaler.mask import Box, Mask, contains, hull, intersect, places, region_of
from systems.superscaler.ordering import PROLOGUE, add_edges, add_frees, task_name
from systems.superscaler.plan import Plan
from systems.superscaler.program import (
    Assemble,
    BufferKind,
    Call,
    Compute,
    Instruction,
    Leaf,
    Output,
    Return,
    Work,
)
from systems.superscaler.redistribute import Emitted, Mover, Piece
from systems.superscaler.segments import Entry, group_consumers, inside_producer, level, mark_ordered
from systems.superscaler.taskgraph import TaskGraph
from systems.superscaler.weights import holders_of, updates, zero_gathers

if TYPE_CHECKING:
    from systems.superscaler.cluster import Cluster
    from systems.superscaler.sprogram import Part, SProgram

__all__ = ["Materializer", "materialize"]


def materialize(s: SProgram, cluster: Cluster | None = None, *, verified: bool = True) -> Plan:
    """The plan of a program. Raises PlanError; see `SProgram.build`."""
    for op in s.graph.ops:
        _check_places(s, op)
    try:
        plan = Materializer(s, cluster, fine=False).plan()
    except CyclicOrder:
        # Segments may close a circle that single operators do not: try again with one operator a segment.
        plan = Materializer(s, cluster, fine=True).plan()
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


class Materializer:
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
        self.weight_grads: dict[tuple[int, Hashable], dict[Entry, int]] = {}
        self.stores: dict[tuple[int, int], list[tuple[Box, int]]] = {}
        self.origin: dict[int, Hashable] = {}
        self.marks: dict[int, frozenset[int]] = {}

    # ------------------------------------------------------------------------------------------- plan

    def plan(self) -> Plan:
        mark_ordered(self)
        for t in self.tensors:
            group_consumers(self, t)
        level(self)
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
        add_edges(self)
        programs: list[list[Instruction]] = [[] for _ in range(self.s.devices)]
        gathers = zero_gathers(self)
        for key in self.tasks.order(functools.partial(task_name, self)):
            if key in gathers:
                self._append(programs, gathers[key])
            elif key in self.emit:
                self._append(programs, self.emit[key])
            elif isinstance(key, tuple) and key[0] in ("F", "B"):
                self._append_work(programs, key)
        parameters = updates(self, programs)
        self._loss(programs)
        add_frees(self, programs)
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

    def range_of(self, op: Op, samples: tuple[int, int] | None) -> tuple[int, int] | None:
        return None if op.prologue else samples

    def inside(self, part: Part, device: int, index: int) -> Part | None:
        p = inside_producer(self, part, device, index)
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

    def _values(self, mb: int) -> None:
        """Buffers of what parts write in a micro-batch, for tensors that leave their segment."""
        for op in self.graph.ops:
            if op.prologue != (mb == PROLOGUE):
                continue
            samples = None if mb == PROLOGUE else self.s.samples(mb)
            leaves = op.output == self.graph.loss or any(
                self.inside(part, device, i) is None
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
                    if self.inside(part, device, i) is not None:
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
                inside = self.inside(part, device, i)
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
                held = self._padded(t, group, held, events, like)  # type: ignore[arg-type]
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

    def _padded(
        self, t: int, group: Hashable, held: list[Piece], events: Emitted, like: tuple[int, BufferKind, int]
    ) -> list[Piece]:
        """Of a tensor without batch that consumers read by samples: what a micro-batch does not read has gradient 0."""
        user, i = self.groups[t][group][0]
        dims = user.annotation.inputs[i] or ()
        k = next((k for k, dim in enumerate(dims) if dim and dim[0] == "b"), None)
        batched = "b" in user.annotation.units and not user.prologue and self.tensors[t].batch is None
        if self.s.microbatches == 1 or k is None or not batched:
            return held
        spans = sorted({h.mask.box[k] for h in held})
        found = []
        for h in held:
            box = (*h.mask.box[:k], user.inputs[i].box[k], *h.mask.box[k + 1 :])
            part = (h.mask.part[0] * len(spans) + spans.index(h.mask.box[k]), h.mask.part[1] * len(spans))
            buffer = self.mover.buffer(*like, h.device, region_of(box), part)
            events.append({h.device: Assemble(((h.buffer, _place(h.mask.box, box)),), buffer)})
            found.append(Piece(h.device, Mask(box, part), buffer))
        return found

    @cached_property
    def output_grads(self) -> dict[int, int]:
        return {}

    def _held_inside(self, op: Op, group: Hashable) -> set[int]:
        """Devices on which all of a group's consumers are inside the producer's segment."""
        found: set[int] = set()
        outside: set[int] = set()
        for user, i in self.groups[op.output][group]:
            for part, device in self.placed[user.id]:
                (found if self.inside(part, device, i) is not None else outside).add(device)
        return found - outside

    def _finish_works(self) -> None:
        from dataclasses import replace

        for number, work in self.works.items():
            outputs = tuple(Output(o.slot, o.buffer, self.output_grads.get(o.buffer)) for o in work.outputs)
            self.works[number] = replace(work, outputs=outputs)

    # ----------------------------------------------------------------------------------------- updates

    @cached_property
    def shards(self) -> dict[int, int]:
        """Parameter buffer -> the buffer of this device's shard, where ZeRO splits it."""
        found = {}
        if self.s.zero_stage:
            for t in self.graph.parameters:
                if not t.grad or not any(op.grad for op, _ in self.graph.consumers[t.id]):
                    continue
                for box, holders in holders_of(self, t.id).items():
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


def _place(box: Box, around: Box) -> Any:
    return None if box == around else places(region_of(box), region_of(around))
