"""Which parts of operators run together: segments without communication inside, level by level."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

from systems.superscaler.graph import Op, PTensor
from systems.superscaler.mask import Box, Mask, contains
from systems.superscaler.redistribute import Piece, covered_locally

if TYPE_CHECKING:
    from systems.superscaler.materialize import Materializer
    from systems.superscaler.sprogram import Part

__all__ = ["Entry", "group_consumers", "inside_producer", "level", "mark_ordered"]

Entry = tuple[int, Box, tuple[int, int]]
"""A consumer of a tensor, as far as its gradient goes: device, box, which addend."""


def mark_ordered(m: Materializer) -> None:
    """Operators of different ordered sets must not share a segment."""
    sets: dict[tuple[int, ...], int] = {}
    marks: dict[int, set[int]] = {op.id: set() for op in m.graph.ops}
    for a, b in m.s.orders:
        for task in (a, b):
            ids = tuple(op.id for op in task.ops)
            number = sets.setdefault(ids, len(sets))
            for i in ids:
                marks[i].add(number)
    m.marks = {i: frozenset(m) for i, m in marks.items()}


def group_consumers(m: Materializer, t: PTensor) -> None:
    """Consumers of a tensor whose gradients have the same masks on the same devices, since those add locally."""
    groups: dict[Hashable, list[tuple[Op, int]]] = {}
    entries_of: dict[Hashable, list[Entry]] = {}
    samples = m.s.samples(0)
    for op, i in m.graph.consumers[t.id]:
        entries = []
        for part, device in m.placed[op.id]:
            if i not in part.skipped:
                entries.append((device, part.input(i, m.range_of(op, samples)).box, part.gradient(i)))
        grad = t.grad and op.grad
        key: Hashable = tuple(sorted(set(entries))) if grad else None
        groups.setdefault(key, []).append((op, i))
        entries_of[key] = entries
        m.group_of[op.id, i] = key
    m.groups[t.id] = groups
    producer = m.graph.producer.get(t.id)
    for key in groups:
        if key is None or producer is None:
            m.easy[t.id, key] = True
            continue
        wanted = [Piece(d, Mask(p.output(m.range_of(producer, samples)).box)) for p, d in m.placed[producer.id]]
        held = [Piece(d, Mask(box, part)) for d, box, part in entries_of[key]]
        m.easy[t.id, key] = covered_locally(held, wanted)


def signature(m: Materializer, part: Part) -> Hashable:
    op = part.op
    return (m.s.groups.get(op.id, -1), part.slot, m.marks[op.id], op.prologue)


def inside_producer(m: Materializer, part: Part, device: int, index: int) -> Part | None:
    """The local producer that an input comes from inside a segment, if it may."""
    t = part.op.inputs[index].tensor
    producer = m.graph.producer.get(t)
    if producer is None or m.fine or not m.easy[t, m.group_of[part.op.id, index]]:
        return None
    samples = m.s.samples(0)
    need = part.input(index, m.range_of(part.op, samples))
    for p, d in m.placed[producer.id]:
        made = p.output(m.range_of(producer, samples))
        if d == device and not made.is_addend and contains(made.box, need.box):
            if signature(m, p) != signature(m, part):
                return None
            # The gradient that a trivial group gives is of the whole box: so must be what is read.
            return p if made.box == need.box or m.group_of[part.op.id, index] is None else None
    return None


def level(m: Materializer) -> None:
    keys: dict[Hashable, int] = {}
    for op in m.graph.ops:
        for part, device in m.placed[op.id]:
            level = 0
            for i, v in enumerate(op.inputs):
                producer = m.graph.producer.get(v.tensor)
                if producer is None or i in part.skipped:
                    continue
                inside = inside_producer(m, part, device, i)
                if inside is not None:
                    level = max(level, m.level[inside.id])
                else:
                    level = max([level, *(m.level[p.id] + 1 for p, _ in m.placed[producer.id])])
            m.level[part.id] = level
            key = (device, level, signature(m, part), op.id if m.fine else 0)
            number = keys.setdefault(key, len(keys))
            m.segment[part.id] = number
            m.segments.setdefault(number, []).append((part, device))
