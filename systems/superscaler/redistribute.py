"""From the pieces that some devices hold to the pieces that some devices need, as instructions.

`Mover.move` first takes what is there already, adds up what a device holds in several pieces, and then chooses the
cheapest of: a path over placed layouts inside one group of devices (`layout`), the same on both sides of point-to-point
transfers between two groups, and covering every needed piece with the nearest held ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod

from systems.superscaler import layout as layouts
from systems.superscaler.errors import InvalidPlan
from systems.superscaler.layout import Layout, Move
from systems.superscaler.mask import Box, Mask, Region, extent, intersect, places, region_of, subtract
from systems.superscaler.program import Assemble, Buffer, BufferKind, Collective, Instruction, Recv, Send, Slice

__all__ = ["Mover", "Piece", "covered_locally"]

Emitted = list[dict[int, Instruction]]
"""Events in order; each has an instruction for every device that takes part."""


@dataclass(frozen=True)
class Piece:
    """A mask on a device; `buffer` is the one that holds it, -1 for a piece that is wanted."""

    device: int
    mask: Mask
    buffer: int = -1


@dataclass
class Mover:
    """Makes buffers and numbers communications; `buffers` and `events` grow."""

    buffers: list[Buffer] = field(default_factory=list)
    tasks: int = 0

    def buffer(
        self, tensor: int, kind: BufferKind, microbatch: int, device: int, region: Region,
        part: tuple[int, int] = (0, 1), flat: tuple[int, int] | None = None,
    ) -> int:  # fmt: skip
        """A new buffer's id."""
        self.buffers.append(Buffer(len(self.buffers), tensor, kind, microbatch, device, region, part, flat))
        return len(self.buffers) - 1

    def task(self) -> int:
        """A new communication's number."""
        self.tasks += 1
        return self.tasks - 1

    def move(
        self, held: Sequence[Piece], wanted: Sequence[Piece], shape: Sequence[int], like: tuple[int, BufferKind, int],
        cost: Callable[[layouts.Kind, int, float], float] | None = None,
    ) -> tuple[list[Piece], Emitted]:  # fmt: skip
        """A buffer for every wanted piece, and the events that fill it. like: (tensor, kind, micro-batch) of buffers.

        What no held piece covers is zero. Pieces with equal masks are copies; addends of one place must partition it.
        """
        parts = _components(held, wanted)
        if len(parts) > 1:
            arrived: dict[int, Piece] = {}
            together: Emitted = []
            for own, mine in parts:
                pieces, more = self.move([held[i] for i in own], [wanted[i] for i in mine], shape, like, cost)
                arrived.update(zip(mine, pieces, strict=True))
                together += more
            return [arrived[i] for i in range(len(wanted))], together
        events: Emitted = []
        found: dict[int, int] = {}
        for i, want in enumerate(wanted):
            near = self._near(held, want)
            if near is not None:
                found[i] = self._taken(near, want.mask, like, events)
        if len(found) < len(wanted):
            held = self._combined(held, like, events)
            for i, want in enumerate(wanted):
                if i not in found:
                    near = self._near(held, want)
                    if near is not None:
                        found[i] = self._taken(near, want.mask, like, events)
        rest = [i for i in range(len(wanted)) if i not in found]
        if rest:
            made = self._cheapest(held, wanted, rest, shape, like, cost, events)
            found.update(made)
        return [Piece(w.device, w.mask, found[i]) for i, w in enumerate(wanted)], events

    # -------------------------------------------------------------------------------------------- local

    def _near(self, held: Sequence[Piece], want: Piece) -> Piece | None:
        return next((h for h in held if h.device == want.device and h.mask.covers(want.mask)
                     and not h.mask.is_addend), None)  # fmt: skip

    def _taken(self, near: Piece, mask: Mask, like: tuple[int, BufferKind, int], events: Emitted) -> int:
        if near.mask.box == mask.box:
            return near.buffer
        place = places(region_of(mask.box), region_of(near.mask.box))
        result = self.buffer(*like, near.device, region_of(mask.box))
        events.append({near.device: Slice(near.buffer, result, place)})
        return result

    def _combined(self, held: Sequence[Piece], like: tuple[int, BufferKind, int], events: Emitted) -> list[Piece]:
        """Per device the pieces with touching ones joined and addends of one box added."""
        found: list[Piece] = []
        for device in sorted({h.device for h in held}):
            groups: list[tuple[Mask, list[Piece]]] = []
            for h in held:
                if h.device == device and all(h.mask != mask for mask, _ in groups):
                    groups.append((h.mask, [h]))
            merging = True
            while merging:
                merging = False
                for (i, a), (j, b) in itertools.combinations(enumerate(groups), 2):
                    joined = _joined(a[0], b[0])
                    if joined is not None:
                        groups[i] = (joined, a[1] + b[1])
                        del groups[j]
                        merging = True
                        break
            for mask, pieces in groups:
                if len(pieces) == 1:
                    found.append(pieces[0])
                    continue
                result = self.buffer(*like, device, region_of(mask.box), mask.part)
                parts = tuple((p.buffer, places(region_of(p.mask.box), region_of(mask.box))) for p in pieces)
                events.append({device: Assemble(parts, result)})
                found.append(Piece(device, mask, result))
        return found

    # --------------------------------------------------------------------------------------- candidates

    def _cheapest(
        self, held: Sequence[Piece], wanted: Sequence[Piece], rest: Sequence[int], shape: Sequence[int],
        like: tuple[int, BufferKind, int], cost: Callable[[layouts.Kind, int, float], float] | None, events: Emitted,
    ) -> dict[int, int]:  # fmt: skip
        candidates: list[tuple[float, int, Callable[[], dict[int, int]]]] = []
        missing = [wanted[i] for i in rest]
        sent = covering_cost(held, missing)
        candidates.append((sent, 2, lambda: self._cover(held, wanted, rest, like, events)))
        # One piece a device on either side; copies beyond that are told apart by the irregular cover only.
        source, target = _one_each(held), _one_each(wanted)
        if source and target:
            base = _origin(source, target)
            size = tuple(hi - lo for lo, hi in base)
            if set(source) == set(target):
                devices = sorted(source)
                route = _route(devices, source, target, base, size, cost)
                if route is not None:
                    candidates.append((
                        route.elements, 0,
                        lambda: self._collect(
                            self._walk(route.steps, devices, source, base, size, like, events), wanted, rest
                        ),
                    ))  # fmt: skip
            elif not set(source) & set(target):
                candidates += self._between(source, target, base, size, wanted, rest, like, cost, events)
        _, _, make = min(candidates, key=lambda c: (c[0], c[1]))
        return make()

    def _collect(self, pieces: Sequence[Piece], wanted: Sequence[Piece], rest: Sequence[int]) -> dict[int, int]:
        held = {p.device: p.buffer for p in pieces}
        return {i: held[wanted[i].device] for i in rest}

    def _between(
        self, source: dict[int, Piece], target: dict[int, Piece], base: Box, size: tuple[int, ...],
        wanted: Sequence[Piece], rest: Sequence[int], like: tuple[int, BufferKind, int],
        cost: Callable[[layouts.Kind, int, float], float] | None, events: Emitted,
    ) -> list[tuple[float, int, Callable[[], dict[int, int]]]]:  # fmt: skip
        """Moves inside the first group, transfers, moves inside the second."""
        senders, receivers = sorted(source), sorted(target)
        firsts = _stations(senders, source, base, size, cost)
        lasts = _stations(receivers, target, base, size, cost, reverse=True)
        found: list[tuple[float, int, Callable[[], dict[int, int]]]] = []
        for before, middle_source in firsts:
            for after, middle_target in lasts:
                if not before and not after:
                    continue
                spent = sum(m.elements for m in before) + sum(m.elements for m in after)
                spent += covering_cost(list(middle_source.values()), list(middle_target.values()))

                def make(
                    before: Sequence[Move] = before, after: Sequence[Move] = after,
                    middle: dict[int, Piece] = middle_target,
                ) -> dict[int, int]:  # fmt: skip
                    pieces = self._walk(before, senders, source, base, size, like, events)
                    goal = [middle[d] for d in receivers]
                    made = self._cover(pieces, goal, range(len(goal)), like, events)
                    arrived = {d: Piece(d, middle[d].mask, made[i]) for i, d in enumerate(receivers)}
                    return self._collect(self._walk(after, receivers, arrived, base, size, like, events), wanted, rest)

                found.append((spent, 1, make))
        return found

    # ------------------------------------------------------------------------------------------ regular

    def _walk(
        self, steps: Sequence[Move], devices: Sequence[int], source: dict[int, Piece], base: Box, size: tuple[int, ...],
        like: tuple[int, BufferKind, int], events: Emitted,
    ) -> list[Piece]:  # fmt: skip
        """Emit the moves of a path; returns the pieces at its end."""
        held = {d: source[d].buffer for d in devices}
        final = {d: source[d].mask for d in devices}
        for step in steps:
            new: dict[int, int] = {}
            regions = {
                i: (_offset(step.before.region(size, i), base), _offset(step.after.region(size, i), base))
                for i in range(len(devices))
            }
            for i, device in enumerate(devices):
                new[device] = self.buffer(*like, device, regions[i][1], step.after.part(i))
                final[device] = Mask(tuple((dim[0][0], dim[-1][1]) for dim in regions[i][1]), step.after.part(i))
            done: set[int] = set()
            for i in range(len(devices)):
                if i in done:
                    continue
                group = step.before.group(i, step.digits)
                done.update(group)
                events += self._step(step, group, devices, regions, held, new)
            held = new
        return [Piece(d, final[d], held[d]) for d in devices]

    def _step(
        self, step: Move, group: tuple[int, ...], devices: Sequence[int], regions: dict[int, tuple[Region, Region]],
        held: dict[int, int], new: dict[int, int],
    ) -> Emitted:  # fmt: skip
        ranks = tuple(devices[i] for i in group)
        if step.kind == "slice":
            return [
                {devices[i]: Slice(held[devices[i]], new[devices[i]], places(regions[i][1], regions[i][0]))}
                for i in group
            ]
        if step.kind == "to_addend":
            first = [i for i in group if step.after.part(i)[0] == min(step.after.part(k)[0] for k in group)]
            return [
                {devices[i]: Assemble(((held[devices[i]], None),) if i in first else (), new[devices[i]])}
                for i in group
            ]
        if step.kind == "permute":
            return self._permute(step, group, devices, held, new)
        task = self.task()
        event: dict[int, Instruction] = {}
        for i in group:
            d = devices[i]
            where: tuple[Region, ...] = ()
            sends: tuple[Region, ...] = ()
            if step.kind == "all_gather":
                where = tuple(places(regions[k][0], regions[i][1]) for k in group)
            elif step.kind == "reduce_scatter":
                where = tuple(places(regions[k][1], regions[i][0]) for k in group)
            elif step.kind == "all_to_all":
                common = {k: _common(regions[i][0], regions[k][1]) for k in group}
                sends = tuple(places(common[k], regions[i][0]) for k in group)
                where = tuple(places(_common(regions[k][0], regions[i][1]), regions[i][1]) for k in group)
            kind = step.kind
            assert kind in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
            event[d] = Collective(kind, task, ranks, (held[d],), (new[d],), where, sends)
        return [event]

    def _permute(
        self, step: Move, group: tuple[int, ...], devices: Sequence[int], held: dict[int, int], new: dict[int, int]
    ) -> Emitted:  # fmt: skip
        events: Emitted = []
        for i in group:
            k = step.origin(i)
            if k == i:
                events.append({devices[i]: Slice(held[devices[i]], new[devices[i]], None)})
                continue
            task = self.task()
            events.append({
                devices[k]: Send(task, devices[i], held[devices[k]], None),
                devices[i]: Recv(task, devices[k], new[devices[i]]),
            })  # fmt: skip
        return events

    # ---------------------------------------------------------------------------------------- irregular

    def _cover(
        self, held: Sequence[Piece], wanted: Sequence[Piece], rest: Sequence[int], like: tuple[int, BufferKind, int],
        events: Emitted,
    ) -> dict[int, int]:  # fmt: skip
        """Every wanted piece from intersections with held ones, sent point to point, put together and added."""
        found = {}
        for i in rest:
            want = wanted[i]
            pieces: list[tuple[int, Region | None]] = []
            for piece, box in cover(held, want, i):
                place = places(region_of(box), region_of(want.mask.box))
                inside = places(region_of(box), region_of(piece.mask.box))
                everything: Region | None = None if box == piece.mask.box else inside
                if piece.device == want.device:
                    if everything is None:
                        pieces.append((piece.buffer, place))
                    else:
                        cutting = self.buffer(*like, want.device, region_of(box), piece.mask.part)
                        events.append({want.device: Slice(piece.buffer, cutting, everything)})
                        pieces.append((cutting, place))
                    continue
                arrived = self.buffer(*like, want.device, region_of(box), piece.mask.part)
                task = self.task()
                events.append({
                    piece.device: Send(task, want.device, piece.buffer, everything),
                    want.device: Recv(task, piece.device, arrived),
                })  # fmt: skip
                pieces.append((arrived, place))
            if len(pieces) == 1 and extent(pieces[0][1] or ()) == want.mask.shape:
                found[i] = pieces[0][0]
                continue
            result = self.buffer(*like, want.device, region_of(want.mask.box))
            events.append({want.device: Assemble(tuple(pieces), result)})
            found[i] = result
        return found


def _joined(a: Mask, b: Mask) -> Mask | None:
    """Two masks as one where that is exact and nothing is counted twice."""
    if a.part == b.part:
        if intersect(a.box, b.box) is not None and not (a.covers(b) or b.covers(a)):
            return None
        if a.covers(b) or b.covers(a):
            return None
        return a.union(b)
    if a.box != b.box:
        return None
    (p, q), (r, s) = sorted((a.share, b.share))
    if q != r:
        return None
    length = s - p
    n = 1 / length
    v = p * n
    return Mask(a.box, (int(v), int(n))) if n.denominator == 1 and v.denominator == 1 else None


def _components(held: Sequence[Piece], wanted: Sequence[Piece]) -> list[tuple[list[int], list[int]]]:
    """Held and wanted pieces by index, split into sets whose boxes do not meet; held ones that nobody wants are out."""
    boxes: list[tuple[list[Box], list[int], list[int]]] = []
    entries = [(p.mask.box, i, False) for i, p in enumerate(held)] + [
        (p.mask.box, i, True) for i, p in enumerate(wanted)
    ]
    for box, i, want in entries:
        meeting = [b for b in boxes if any(known == box or intersect(known, box) is not None for known in b[0])]
        boxes = [b for b in boxes if b not in meeting]
        known = list(dict.fromkeys([box, *(k for b in meeting for k in b[0])]))
        first = [k for b in meeting for k in b[1]] + ([] if want else [i])
        second = [k for b in meeting for k in b[2]] + ([i] if want else [])
        boxes.append((known, first, second))
    return [(sorted(a), sorted(b)) for _, a, b in boxes if b]


def _one_each(pieces: Sequence[Piece]) -> dict[int, Piece] | None:
    found: dict[int, Piece] = {}
    for p in pieces:
        if p.device in found:
            return None
        found[p.device] = p
    return found


def _origin(source: dict[int, Piece], target: dict[int, Piece]) -> Box:
    boxes = [p.mask.box for p in (*source.values(), *target.values())]
    return tuple((min(lo for lo, _ in dim), max(hi for _, hi in dim)) for dim in zip(*boxes, strict=True))


def _offset(region: Region, base: Box) -> Region:
    return tuple(
        tuple((lo + start, hi + start) for lo, hi in dim) for dim, (start, _) in zip(region, base, strict=True)
    )


def _local(mask: Mask, base: Box) -> tuple[Box, tuple[int, int]]:
    return tuple((lo - s, hi - s) for (lo, hi), (s, _) in zip(mask.box, base, strict=True)), mask.part


def _common(a: Region, b: Region) -> Region:
    found = []
    for p, q in zip(a, b, strict=True):
        dim = [(max(x, u), min(y, v)) for x, y in p for u, v in q if max(x, u) < min(y, v)]
        found.append(tuple(sorted(dim)))
    return tuple(found)


def _recognised(devices: Sequence[int], pieces: dict[int, Piece], base: Box, size: tuple[int, ...]) -> Layout | None:
    return layouts.recognise([_local(pieces[d].mask, base) for d in devices], size)


def _route(
    devices: Sequence[int], source: dict[int, Piece], target: dict[int, Piece], base: Box, size: tuple[int, ...],
    cost: Callable[[layouts.Kind, int, float], float] | None,
) -> layouts.Path | None:  # fmt: skip
    a, b = _recognised(devices, source, base, size), _recognised(devices, target, base, size)
    if a is None or b is None:
        return None
    try:
        a, b = layouts.refine(a, b)
        a, b = layouts.trimmed(a, size), layouts.trimmed(b, size)
        return layouts.path(a, b, size, cost or "elements")
    except InvalidPlan:  # no common refinement: the irregular cover remains
        return None


def _stations(
    devices: Sequence[int], pieces: dict[int, Piece], base: Box, size: tuple[int, ...],
    cost: Callable[[layouts.Kind, int, float], float] | None, *, reverse: bool = False,
) -> list[tuple[Sequence[Move], dict[int, Piece]]]:  # fmt: skip
    """Where a tensor may stop in a group before or after crossing: as it is, whole, or cut along one dimension."""
    found: list[tuple[Sequence[Move], dict[int, Piece]]] = [((), pieces)]
    own = _recognised(devices, pieces, base, size)
    if own is None or len(devices) == 1:
        return found
    mesh = own.mesh
    digits = list(range(len(mesh)))
    none: list[list[int]] = [[] for _ in size]
    options = [] if reverse else [Layout.sharded(mesh, digits, [], none)]
    for k, n in enumerate(size):
        if n % prod(mesh) == 0 and n:
            options.append(Layout.sharded(mesh, [], [], [digits if i == k else [] for i in range(len(size))]))
    for option in options:
        try:
            a, b = layouts.refine(own, option)
            a, b = layouts.trimmed(a, size), layouts.trimmed(b, size)
            route = (
                layouts.path(b, a, size, cost or "elements")
                if reverse
                else layouts.path(a, b, size, cost or "elements")
            )
        except InvalidPlan:
            continue
        if route.steps:
            stop = {
                d: Piece(d, Mask(tuple((dim[0][0], dim[-1][1]) for dim in _offset(b.region(size, i), base)), b.part(i)))
                for i, d in enumerate(devices)
            }
            found.append((route.steps, stop))
    return found


def cover(held: Sequence[Piece], want: Piece, turn: int = 0) -> list[tuple[Piece, Box]]:
    """The pieces, and which box of each, that together are the wanted one; local ones first, copies taken in turn.

    Raises InvalidPlan where the addends of a place do not partition its value.
    """
    found: list[tuple[Piece, Box]] = []
    copies: dict[Mask, list[Piece]] = {}
    for h in held:
        copies.setdefault(h.mask, []).append(h)
    order = sorted(copies, key=lambda m: (all(h.device != want.device for h in copies[m]), m.part[1], -m.elements))
    # Per addend share what is still missing of the box; a place is done when its shares fill [0, 1).
    missing: list[tuple[Box, tuple[tuple[int, int], ...]]] = [(want.mask.box, ())]
    for mask in order:
        near = [h for h in copies[mask] if h.device == want.device]
        piece = near[0] if near else copies[mask][turn % len(copies[mask])]
        rest: list[tuple[Box, tuple[tuple[int, int], ...]]] = []
        for box, had in missing:
            common = intersect(box, mask.box)
            clash = common is not None and any(
                Mask(common, mask.part).intersect(Mask(common, p)) is not None for p in had
            )
            if common is None or clash:
                rest.append((box, had))
                continue
            rest += [(part, had) for part in subtract(box, common)]
            found.append((piece, common))
            shares = (*had, mask.part)
            if sum(1 / n for _, n in shares) < 1 - 1e-12:
                rest.append((common, shares))
        missing = rest
    broken = [(box, had) for box, had in missing if had]
    if broken:
        raise InvalidPlan(f"addends {broken[0][1]} of {broken[0][0]} do not make a value")
    return _gathered(found)


def _gathered(found: list[tuple[Piece, Box]]) -> list[tuple[Piece, Box]]:
    """Boxes of one piece joined again where an earlier subtraction split them for nothing."""
    result: list[tuple[Piece, Box]] = []
    for piece, box in found:
        for i, (other, known) in enumerate(result):
            union = Mask(known).union(Mask(box)) if other is piece and intersect(known, box) is None else None
            if union is not None:
                result[i] = (piece, union.box)
                break
        else:
            result.append((piece, box))
    return result


def covering_cost(held: Sequence[Piece], wanted: Sequence[Piece]) -> float:
    """Elements that the busiest device sends or receives if every wanted piece is covered point to point."""
    out: dict[int, int] = {}
    into: dict[int, int] = {}
    for i, want in enumerate(wanted):
        for piece, box in cover(held, want, i):
            if piece.device != want.device:
                n = Mask(box).elements
                out[piece.device] = out.get(piece.device, 0) + n
                into[want.device] = into.get(want.device, 0) + n
    return float(max([0, *out.values(), *into.values()]))


def covered_locally(held: Sequence[Piece], wanted: Sequence[Piece]) -> bool:
    """Whether every wanted piece equals a value that its device holds."""
    return all(
        any(h.device == w.device and h.mask.box == w.mask.box and not h.mask.is_addend for h in held) for w in wanted
    )
