"""What a plan does with parameters: who holds them, ZeRO's shards and gathers, reductions, updates."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from systems.superscaler.mask import Box, Mask, intersect, region_of
from systems.superscaler.plan import Parameter
from systems.superscaler.program import Assemble, Collective, Flat, Instruction, Slice, Update, Work, reads, writes
from systems.superscaler.redistribute import Emitted, Piece

if TYPE_CHECKING:
    from systems.superscaler.materialize import Materializer

__all__ = ["holders_of", "updates", "zero_gathers"]


def holders_of(m: Materializer, t: int) -> dict[Box, list[tuple[int, int]]]:
    """Box -> (device, buffer) of those that store it."""
    found: dict[Box, list[tuple[int, int]]] = {}
    for device in range(m.s.devices):
        for box, buffer in m.stores.get((t, device), []):
            found.setdefault(box, []).append((device, buffer))
    return found


def zero_gathers(m: Materializer) -> dict[Hashable, Emitted]:
    """ZeRO 3: before works that read a split parameter all its holders gather it."""
    found: dict[Hashable, Emitted] = {}
    if m.s.zero_stage < 3:
        return found
    groups: dict[int, list[tuple[int, int]]] = {}
    for t in m.graph.parameters:
        for holders in holders_of(m, t.id).values():
            for _, buffer in holders:
                groups[buffer] = holders
    users: dict[tuple[Any, ...], list[Work]] = {}
    for work in m.works.values():
        for leaf in work.leaves:
            if leaf.buffer in m.shards:
                tensor = m.mover.buffers[leaf.buffer].tensor
                level = m.level[m.segments[work.segment][0][0].id]
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
            number = m.mover.task()
            full = {}
            for device, buffer in holders:
                region = m.mover.buffers[buffer].region
                full[device] = m.mover.buffer(key[1], "param", key[2], device, region)
                event[device] = Flat("flat_all_gather", number, ranks, m.shards[buffer], full[device])
            found[task] = [event]
            m.tasks.add(task, ranks, 1e-3, (-1, int(key[2]), -1), loose=True)
            own = dict(holders)
            for work in {w.id: w for w in chosen}.values():
                pairs = m.gathered.setdefault((direction, work.id), [])
                pairs.append((own[work.device], full[work.device]))
                me = (direction, work.segment, work.microbatch)
                m.tasks.before(task, me, "parameters")
                for origin in m.tasks.reversed_edges_of(me):
                    if origin != task and m.tasks.devices[origin]:
                        m.tasks.before(origin, task, "just in time")
    return found


def updates(m: Materializer, programs: list[list[Instruction]]) -> list[Parameter]:
    """Reduce gradients, step, gather; all-reduces of one group go together."""
    parameters: list[Parameter] = []
    reductions: list[Emitted] = []
    pairs: dict[int, list[tuple[int, int]]] = {}
    closing: list[dict[int, Instruction]] = []
    for t in m.graph.parameters:
        holders = holders_of(m, t.id)
        everyone = [Piece(d, Mask(box), buffer) for box, own in holders.items() for d, buffer in own]
        sums: dict[int, list[int]] = {p.buffer: [] for p in everyone}
        shard_grads: dict[int, int] = {}
        by_group = [
            [Piece(d, Mask(box, part), buffer) for (d, box, part), buffer in entries.items()]
            for (tensor, _), entries in m.weight_grads.items()
            if tensor == t.id
        ]
        left = dict(holders)
        for box, own in holders.items():
            meeting = [[h for h in held if intersect(h.mask.box, box) is not None] for held in by_group]
            meeting = [held for held in meeting if held]
            scattered = scattered_by(m, meeting[0], box, own) if len(meeting) == 1 and m.s.zero_stage else None
            if scattered is not None:
                reductions.append(scattered[0])
                shard_grads.update(scattered[1])
                del left[box]
        rest = [Piece(d, Mask(box), buffer) for box, own in left.items() for d, buffer in own]
        for held in by_group:
            touched = [p for p in rest if any(intersect(h.mask.box, p.mask.box) is not None for h in held)]
            made, events = m.mover.move(held, touched, t.shape, (t.id, "weight_grad", 0), m.cost)
            reductions.append(events)
            for want, got in zip(touched, made, strict=True):
                sums[want.buffer].append(got.buffer)
        for piece in everyone:
            shard = m.shards.get(piece.buffer)
            found = sums[piece.buffer]
            grad: int | None = shard_grads.get(piece.buffer)
            if grad is None and found:
                grad = found[0]
                if len(found) > 1:
                    grad = m.mover.buffer(t.id, "weight_grad", 0, piece.device, region_of(piece.mask.box))
                    reductions.append([{piece.device: Assemble(tuple((b, None) for b in found), grad)}])
                if shard is not None:
                    like = m.mover.buffers[shard]
                    cutting = m.mover.buffer(t.id, "weight_grad", 0, piece.device, like.region, flat=like.flat)
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
        if m.s.zero_stage in (1, 2):
            for own_holders in holders.values():
                if len(own_holders) > 1 and all(b in m.shards for _, b in own_holders) and pairs:
                    if not any(p.shard is not None for p in parameters if p.tensor == t.id):
                        continue
                    number = m.mover.task()
                    ranks = tuple(d for d, _ in own_holders)
                    closing.append({
                        d: Flat("flat_all_gather", number, ranks, m.shards[b], b) for d, b in own_holders
                    })  # fmt: skip
    for event in bucketed(m, reductions):
        for device, instruction in event.items():
            programs[device].append(instruction)
    for device, own_pairs in pairs.items():
        programs[device].append(Update(tuple(own_pairs)))
    for event in closing:
        for device, instruction in event.items():
            programs[device].append(instruction)
    return parameters


def scattered_by(m: Materializer, held: Sequence[Piece], box: Box, own: Sequence[tuple[int, int]]
) -> tuple[Emitted, dict[int, int]] | None:
    """One reduce-scatter instead of all-reduce and slice, where each holder of a box has one addend of it."""
    at = {h.device: h for h in held}
    if len(at) != len(held) or set(at) != {d for d, _ in own} or any(b not in m.shards for _, b in own):
        return None
    if any(h.mask.box != box or h.mask.part[1] != len(held) for h in held):
        return None
    if len({h.mask.part for h in held}) != len(held):
        return None
    number = m.mover.task()
    event: dict[int, Instruction] = {}
    made: dict[int, int] = {}
    ranks = tuple(d for d, _ in own)
    for device, buffer in own:
        shard = m.mover.buffers[m.shards[buffer]]
        result = m.mover.buffer(shard.tensor, "weight_grad", 0, device, shard.region, flat=shard.flat)
        event[device] = Flat("flat_reduce_scatter", number, ranks, at[device].buffer, result)
        made[buffer] = result
    return [event], made


def bucketed(m: Materializer, reductions: Iterable[Emitted]) -> Emitted:
    """All-reduces of one group that come first in their chains as one instruction each; the rest behind."""
    buckets: dict[tuple[tuple[int, ...], str], list[dict[int, Collective]]] = {}
    rest: Emitted = []
    for chain in reductions:
        made: set[int] = set()
        for event in chain:
            first = next(iter(event.values()))
            own = {b for i in event.values() for b in reads(i, m.works)}
            if isinstance(first, Collective) and first.kind == "all_reduce" and not own & made:
                dtype = m.tensors[m.mover.buffers[first.sources[0]].tensor].dtype
                buckets.setdefault((first.group, dtype), []).append(event)  # type: ignore[arg-type]
            else:
                rest.append(event)
            made |= {b for i in event.values() for b in writes(i, m.works)}
    found: Emitted = []
    for (group, _), events in buckets.items():
        number = m.mover.task()
        joined: dict[int, Instruction] = {}
        # Each step of a path may have several groups in one event list, but one event has one group.
        for device in group:
            sources = tuple(s for e in events for s in e[device].sources)
            results = tuple(r for e in events for r in e[device].results)
            joined[device] = Collective("all_reduce", number, group, sources, results)
        found.append(joined)
    return found + rest
