"""The tasks of a plan, what must come before what and why, and when a buffer is used last."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

from systems.superscaler.program import Compute, Free, Instruction, reads, writes

if TYPE_CHECKING:
    from systems.superscaler.materialize import Materializer

__all__ = ["add_edges", "add_frees", "task_name"]

PROLOGUE = -1
"""The micro-batch of what runs once a step, before all others."""


def add_edges(m: Materializer) -> None:
    tasks = m.tasks
    for work in m.works.values():
        level = m.level[m.segments[work.segment][0][0].id]
        seconds = max(work.flops, 1.0)
        tasks.add(("F", work.segment, work.microbatch), [work.device], seconds, (1, work.microbatch, level))
        if work.has_backward:
            longer = 3.0 if work.recompute else 2.0
            tasks.add(
                ("B", work.segment, work.microbatch), [work.device], longer * seconds, (0, work.microbatch, -level)
            )
    for key, events in m.emit.items():
        devices = sorted({d for event in events for d in event})
        assert isinstance(key, tuple)
        tasks.add(key, devices, 1e-3, (-1, int(key[2]), 0), loose=True)
    for work in m.works.values():
        me: Hashable = ("F", work.segment, work.microbatch)
        for leaf in work.leaves:
            origin = m.origin.get(leaf.buffer)
            if origin is not None and origin != me:
                tasks.before(origin, me, "data")
        back: Hashable = ("B", work.segment, work.microbatch)
        if work.has_backward:
            tasks.before(me, back, "backward")
    written: dict[int, Hashable] = {}
    for work in m.works.values():
        if work.has_backward:
            for leaf in work.leaves:
                if leaf.grad is not None and m.mover.buffers[leaf.grad].kind == "grad":
                    written[leaf.grad] = ("B", work.segment, work.microbatch)
    for key, events in m.emit.items():
        for event in events:
            for instruction in event.values():
                for b in writes(instruction, m.works):
                    written.setdefault(b, key)
    for key, events in m.emit.items():
        for event in events:
            for instruction in event.values():
                for b in reads(instruction, m.works):
                    origin = written.get(b, m.origin.get(b))
                    if origin is not None and origin != key:
                        tasks.before(origin, key, "data")
    for work in m.works.values():
        if work.has_backward:
            for o in work.outputs:
                if o.grad is not None and o.grad >= 0 and o.grad in written:
                    tasks.before(written[o.grad], ("B", work.segment, work.microbatch), "gradient")
    add_orders(m)


def add_orders(m: Materializer) -> None:
    """Orders that the user gave; each goes through a barrier, so their number stays linear."""
    members: dict[tuple[int, ...], list[int]] = {}
    for number, (first, second) in enumerate(m.s.orders):
        barrier = ("order", number)
        m.tasks.add(barrier, (), 0.0, (0, 0, 0))
        for task, ahead in ((first, True), (second, False)):
            ids = tuple(op.id for op in task.ops)
            if ids not in members:
                members[ids] = sorted({m.segment[p.id] for i in ids for p, _ in m.placed[i]})
            for segment in members[ids]:
                for mb in (task.microbatch, PROLOGUE):
                    key = (task.direction, segment, mb)
                    if key in m.tasks.devices:
                        if ahead:
                            m.tasks.before(key, barrier, "op_order")
                        else:
                            m.tasks.before(barrier, key, "op_order")


def task_name(m: Materializer, key: Hashable) -> str:
    assert isinstance(key, tuple)
    if key[0] == "order":
        first, second = m.s.orders[key[1]]
        return f"op_order({first}; {second})"
    if key[0] in ("F", "B"):
        work = m.works[m.work_of[key[1], key[2]]]
        ops = [m.graph.ops[c.op] for c in work.calls]
        names = str(ops[0]) if len(ops) == 1 else f"{ops[0]} to {ops[-1]}"
        way = "forward" if key[0] == "F" else "backward"
        return f"{way} of {names}, micro-batch {work.microbatch}, device {work.device}"
    what = {"A": "moving", "G": "moving the gradient of", "P": "gathering"}[key[0]]
    devices = ", ".join(map(str, m.tasks.devices[key]))
    return f"{what} {m.tensors[key[1]].name}, micro-batch {key[2]}, devices {devices}"


def add_frees(m: Materializer, programs: list[list[Instruction]]) -> None:
    """Forget every buffer after its last use; parameters and shards stay."""
    kept = {b for own in m.stores.values() for _, b in own} | set(m.shards.values())
    for device, program in enumerate(programs):
        last: dict[int, int] = {}
        for i, instruction in enumerate(program):
            for b in (*reads(instruction, m.works), *writes(instruction, m.works)):
                last[b] = i
            if isinstance(instruction, Compute):
                work = m.works[instruction.work]
                swapped = dict(instruction.gathered)
                if instruction.kind == "backward":  # what forward read may be needed to compute again
                    for leaf in work.leaves:
                        if leaf.buffer not in swapped:
                            last[leaf.buffer] = i
        ends: dict[int, list[int]] = {}
        for b, i in last.items():
            if b not in kept and m.mover.buffers[b].kind != "given":
                ends.setdefault(i, []).append(b)
        made: list[Instruction] = []
        for i, instruction in enumerate(program):
            made.append(instruction)
            if i in ends:
                made.append(Free(tuple(sorted(ends[i]))))
        programs[device] = made
