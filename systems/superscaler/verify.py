"""Static verification: the programs of all ranks, interpreted on fingerprints instead of numbers.

A tensor is cut into cells at every boundary that a program uses, and the sum that makes it up into terms: the cells of
the identifiers that its operator sums over, for each consumer of a gradient, for each micro-batch. The fingerprint of a
cell of a buffer is the sum (mod 2^64) of hash(term) times hash(cell) over the terms that it contains. Communication and
assembly move and add fingerprints as they would numbers; a term that is missing, doubled or in the wrong place leaves
another fingerprint than the one that an operator, an update or the loss needs (but for one chance in 2^64).

The interpreter shares nothing with what made the programs: it reads the annotations of the graph, the ranges of the
calls, and the places in the instructions. Cost: linear in instructions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from systems.superscaler.graph import Op
from systems.superscaler.mask import Box, Interval, Region, cut, extent
from systems.superscaler.operators import skipped_inputs
from systems.superscaler.plan import Plan
from systems.superscaler.program import (
    Assemble,
    Call,
    Collective,
    Compute,
    Flat,
    Free,
    Instruction,
    Recv,
    Return,
    Send,
    Slice,
    Update,
    Work,
)

__all__ = ["Report", "verify"]

Word = NDArray[np.uint64]


@dataclass(frozen=True)
class Report:
    """Whether the programs compute the graph, and else which instruction of which rank breaks what."""

    findings: tuple[str, ...] = ()
    instructions: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.findings


@dataclass(frozen=True)
class Held:
    """A buffer's fingerprints, one per cell in memory order. lengths: elements of the cells per dimension; flat: which
    of how many pieces of the flattened tensor it is.
    """

    words: Word
    lengths: tuple[tuple[int, ...], ...]
    flat: tuple[int, int] | None = None


class Broken(Exception):
    """An obligation that an instruction breaks."""


def verify(plan: Plan, most: int = 20) -> Report:
    """Interpret all programs. At most `most` findings are kept; the first is the cause, others may follow from it."""
    return _Interpreter(plan, most).run()


@cache
def _hash(*words: Any) -> int:
    z = 0x243F6A8885A308D3
    for word in words:
        z = (z ^ (hash(word) if isinstance(word, int) else int.from_bytes(str(word).encode()[-8:], "little"))) & MASK
        z = (z + 0x9E3779B97F4A7C15) & MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        z ^= z >> 31
    return z | 1


MASK = (1 << 64) - 1


class _Interpreter:
    def __init__(self, plan: Plan, most: int) -> None:
        self.plan, self.most = plan, most
        self.graph = plan.graph
        self.findings: list[str] = []
        self.held: list[dict[int, Held]] = [{} for _ in range(plan.devices)]
        self.at = [0] * plan.devices
        self.returned = [False] * plan.devices
        self.recorded: list[set[int]] = [set() for _ in range(plan.devices)]
        self.waiting: dict[int, Instruction] = {}

    # ------------------------------------------------------------------------------------ cells and terms

    @cached_property
    def edges(self) -> Mapping[int, tuple[tuple[int, ...], ...]]:
        """Tensor id -> the boundaries of its cells per dimension."""
        found: dict[int, list[set[int]]] = {t.id: [{0, n} for n in t.shape] for t in self.graph.tensors}
        for b in self.plan.buffers:
            for own, dim in zip(found[b.tensor], b.region, strict=True):
                own.update(x for interval in dim for x in interval)
        for work in self.plan.works.values():
            for call in work.calls:
                op = self.graph.ops[call.op]
                boxes = [(v.tensor, box) for v, box in zip(op.inputs, self.inputs(op, call), strict=True)]
                for tensor, box in [*boxes, (op.output, self.output(op, call))]:
                    for own, interval in zip(found[tensor], box, strict=True):
                        own.update(interval)
        return {t: tuple(tuple(sorted(d)) for d in dims) for t, dims in found.items()}

    @cached_property
    def ident_edges(self) -> Mapping[tuple[int, str], tuple[int, ...]]:
        """(op, identifier) -> the boundaries at which calls cut it."""
        found: dict[tuple[int, str], set[int]] = {}
        for op in self.graph.ops:
            for name, size in op.annotation.sizes.items():
                found[op.id, name] = {0, size}
            unit = op.annotation.units.get("b")
            if unit and not op.prologue:
                for lo, hi in cut(self.graph.samples, self.plan.microbatches):
                    found[op.id, "b"] |= {lo * unit, hi * unit}
        for work in self.plan.works.values():
            for call in work.calls:
                for name, interval in call.ranges.items():
                    found[call.op, name].update(interval)
        return {k: tuple(sorted(v)) for k, v in found.items()}

    def inputs(self, op: Op, call: Call) -> list[Box]:
        found = []
        for v, dims in zip(op.inputs, op.annotation.inputs, strict=True):
            box = op.annotation.box(dims or (), call.ranges)
            found.append(tuple((b + lo, b + hi) for (b, _), (lo, hi) in zip(v.box, box, strict=True)))
        return found

    def output(self, op: Op, call: Call) -> Box:
        return op.annotation.box(op.annotation.outputs[0], call.ranges)

    def grid(self, tensor: int) -> Word:
        """The hash of every cell of a tensor."""
        return _grid(tensor, tuple(len(e) - 1 for e in self.edges[tensor]))

    def cells(self, tensor: int, region: Region) -> tuple[list[NDArray[np.int64]], tuple[tuple[int, ...], ...]]:
        """The cells of a region per dimension in memory order, and their lengths."""
        index, lengths = [], []
        for edges, dim in zip(self.edges[tensor], region, strict=True):
            own = [i for lo, hi in dim for i in range(*_span(edges, lo, hi))]
            index.append(np.array(own, dtype=np.int64))
            lengths.append(tuple(edges[i + 1] - edges[i] for i in own))
        return index, tuple(lengths)

    def whole(self, tensor: int, region: Region, term: int) -> Held:
        """A region that holds one term (or a sum of them) everywhere."""
        index, lengths = self.cells(tensor, region)
        grid = self.grid(tensor)
        words = grid[np.ix_(*index)] if index else grid
        return Held(words * np.uint64(term & MASK), lengths)

    def terms(self, op: Op, lost: Sequence[str], ranges: Mapping[str, Interval], tag: tuple[Any, ...]) -> int:
        """The sum of hashes of the cells of the identifiers that are summed over, within ranges."""
        total = 0
        spans = []
        for name in lost:
            edges = self.ident_edges[op.id, name]
            lo, hi = ranges.get(name, (edges[0], edges[-1]))
            spans.append(range(*_span(edges, lo, hi)))
        for cell in itertools.product(*spans):
            total += _hash(*tag, *cell)
        return total & MASK

    def samples(self, op: Op, mb: int) -> dict[str, Interval]:
        """The whole range of the batch identifier in a micro-batch."""
        unit = op.annotation.units.get("b")
        if not unit or op.prologue or mb < 0:
            return {}
        lo, hi = cut(self.graph.samples, self.plan.microbatches)[mb]
        return {"b": (lo * unit, hi * unit)}

    def made(self, op: Op, ranges: Mapping[str, Interval], mb: int) -> int:
        dims = op.annotation.outputs[0]
        lost = sorted(n for n in op.annotation.contracted if not op.annotation.has(dims, n))
        return self.terms(op, lost, ranges, (1, op.output, mb))

    def given(self, op: Op, i: int, ranges: Mapping[str, Interval], mb: int) -> int:
        """What a call adds to the gradient of its i-th input."""
        dims = op.annotation.inputs[i] or ()
        lost = sorted(
            n for n in op.annotation.sizes
            if not op.annotation.has(dims, n) and i not in skipped_inputs(op, {n: (1, 2)})
        )  # fmt: skip
        return self.terms(op, lost, ranges, (2, op.id, i, mb))

    @cached_property
    def gradients(self) -> dict[tuple[int, int], int]:
        return {}

    def expected_gradient(
        self, tensor: int, region: Region, mbs: Iterable[int], without: frozenset[tuple[int, int]]
    ) -> Held:
        """The gradient of a region: all terms of all consumers but those in `without`."""
        index, lengths = self.cells(tensor, region)
        total = np.zeros(tuple(map(len, index)), np.uint64)
        edges = self.edges[tensor]
        for op, i in self.graph.consumers[tensor]:
            if not op.grad or (op.id, i) in without:
                continue
            terms: dict[Box, int] = {}
            dims = op.annotation.inputs[i] or ()
            for mb in mbs:  # a micro-batch reads the part of its samples
                read = op.annotation.box(dims, self.samples(op, mb))
                box = tuple((b + lo, b + hi) for (b, _), (lo, hi) in zip(op.inputs[i].box, read, strict=True))
                terms[box] = terms.get(box, 0) + self.given(op, i, self.samples(op, mb), mb)
            for box, term in terms.items():
                inside = [
                    np.isin(own, np.arange(*_span(e, lo, hi)))
                    for own, e, (lo, hi) in zip(index, edges, box, strict=True)
                ]
                mask = np.ones(total.shape, bool)
                for dim, keep in enumerate(inside):
                    mask &= keep.reshape([-1 if d == dim else 1 for d in range(total.ndim)])
                total = total + np.where(mask, np.uint64(term & MASK), np.uint64(0))
        grid = self.grid(tensor)
        return Held(total * (grid[np.ix_(*index)] if index else grid), lengths)

    # ------------------------------------------------------------------------------------------- running

    def run(self) -> Report:
        with np.errstate(over="ignore"):
            self.start()
            self.interpret()
            if not self.findings:
                self.finish()
        return Report(tuple(self.findings), sum(map(len, self.plan.programs)))

    def note(self, rank: int, text: str) -> None:
        if len(self.findings) < self.most:
            program = self.plan.programs[rank]
            where = self.plan.say(program[self.at[rank]]) if self.at[rank] < len(program) else "the end"
            self.findings.append(f"rank {rank}, instruction {self.at[rank]} ({where}): {text}")

    def start(self) -> None:
        for p in self.plan.parameters:
            region = self.plan.buffers[p.buffer].region
            value = self.weight(p.tensor, region, 0)
            if p.shard is not None:
                self.held[p.device][p.shard] = Held(value.words, value.lengths, self.plan.buffers[p.shard].flat)
            if p.shard is None or self.plan.zero < 3:
                self.held[p.device][p.buffer] = value

    def weight(self, tensor: int, region: Region, version: int) -> Held:
        return self.whole(tensor, region, _hash(3, tensor, version))

    def interpret(self) -> None:
        programs = self.plan.programs
        moving = True
        while moving:
            moving = False
            for rank, program in enumerate(programs):
                while rank not in self.waiting and self.at[rank] < len(program):
                    moving = True
                    instruction = program[self.at[rank]]
                    if isinstance(instruction, Collective | Flat | Send | Recv):
                        self.waiting[rank] = instruction
                        break
                    try:
                        self.local(rank, instruction)
                    except (Broken, KeyError, ValueError, IndexError) as error:
                        self.note(rank, _said(error))
                        if len(self.findings) >= self.most:
                            return
                    self.at[rank] += 1
            for rank in list(self.waiting):
                if rank in self.waiting and self.meet(rank):
                    moving = True
        for rank, instruction in self.waiting.items():
            self.note(rank, f"waits for ever in {self.plan.say(instruction)}")

    def meet(self, rank: int) -> bool:
        """Run a communication if all its participants wait in it."""
        instruction = self.waiting[rank]
        peers = instruction.group if isinstance(instruction, Collective | Flat) else (rank, instruction.peer)  # type: ignore[union-attr]
        if rank not in peers:
            self.note(rank, f"is not in its group {peers}")
        if any(getattr(self.waiting.get(p), "task", None) != instruction.task for p in peers):  # type: ignore[union-attr]
            return False
        met = {p: self.waiting[p] for p in peers}
        try:
            self.exchange(met)
        except (Broken, KeyError, ValueError, IndexError) as error:
            self.note(rank, _said(error))
        for p in peers:
            del self.waiting[p]
            self.at[p] += 1
        return True

    def finish(self) -> None:
        trained = {p.tensor for p in self.plan.parameters if p.gradient is not None}
        for p in self.plan.parameters:
            version = 1 if p.tensor in trained else 0
            value = self.held[p.device].get(p.buffer)
            wanted = self.weight(p.tensor, self.plan.buffers[p.buffer].region, version)
            name = self.graph.tensors[p.tensor].name
            if p.shard is not None:
                shard = self.held[p.device].get(p.shard)
                if shard is None or not np.array_equal(shard.words, wanted.words):
                    self.note(p.device, f"the shard of {name} is not updated once")
            if (p.shard is None or self.plan.zero < 3) and (
                value is None or not np.array_equal(value.words, wanted.words)
            ):
                self.note(p.device, f"parameter {name} is stale: it is not the updated one")
            expected = any(op.grad for op, _ in self.graph.consumers[p.tensor]) and self.graph.tensors[p.tensor].grad
            if expected and p.gradient is None:
                self.note(p.device, f"parameter {name} is never updated")
        for rank, done in enumerate(self.returned):
            if not done:
                self.note(rank, "returns no loss")

    # --------------------------------------------------------------------------------------- instructions

    def local(self, rank: int, instruction: Instruction) -> None:
        held = self.held[rank]
        match instruction:
            case Compute(kind, number, gathered):
                work = self.plan.works[number]
                if work.device != rank:
                    raise Broken(f"the work is for device {work.device}")
                if kind == "backward":
                    if number not in self.recorded[rank]:
                        raise Broken("no forward or recompute that recorded gradients goes before")
                    self.recorded[rank].remove(number)
                    self.backward(rank, work)
                    for _, full in gathered:
                        self.read(rank, full)
                else:
                    self.forward(rank, work, dict(gathered), write=kind == "forward")
                    if work.has_backward and work.recompute == (kind == "recompute"):
                        self.recorded[rank].add(number)
            case Slice(source, result, place, flat):
                value = self.read(rank, source)
                held[result] = (
                    Held(value.words, value.lengths, flat) if flat is not None else
                    value if place is None else self.taken(value, place)
                )  # fmt: skip
            case Assemble(pieces, result):
                held[result] = self.assembled(rank, pieces, result)
            case Update(pairs):
                self.update(rank, pairs)
            case Return(source):
                value = self.read(rank, source)
                op = self.graph.producer[self.graph.loss]
                term = sum(self.made(op, self.samples(op, mb), mb) for mb in range(self.plan.microbatches))
                if not np.array_equal(value.words, self.whole(self.graph.loss, (), term).words):
                    raise Broken("the loss is not the sum of what all micro-batches give, each once")
                self.returned[rank] = True
            case Free(buffers):
                for b in buffers:
                    held.pop(b, None)

    def read(self, rank: int, buffer: int) -> Held:
        value = self.held[rank].get(buffer)
        if value is None:
            raise Broken(f"reads buffer {buffer}, which is not written or already freed")
        return value

    def forward(self, rank: int, work: Work, gathered: Mapping[int, int], *, write: bool) -> None:
        for leaf in work.leaves:
            buffer = self.plan.buffers[leaf.buffer]
            if buffer.kind == "given":
                continue
            value = self.read(rank, gathered.get(leaf.buffer, leaf.buffer))
            if leaf.place is not None:
                value = self.taken(value, leaf.place)
            self.needed(work, leaf.slot, value, buffer.kind == "param")
        if write:
            slots = {c.output: c for c in work.calls}
            for o in work.outputs:
                call = slots[o.slot]
                op = self.graph.ops[call.op]
                region = tuple((i,) for i in self.output(op, call))
                self.held[rank][o.buffer] = self.whole(op.output, region, self.made(op, call.ranges, work.microbatch))

    def needed(self, work: Work, slot: int, value: Held, weight: bool) -> None:
        """Whether a leaf holds what every call that reads it needs."""
        for call in work.calls:
            op = self.graph.ops[call.op]
            for i, used in enumerate(call.inputs):
                if used is None or used[0] != slot:
                    continue
                tensor = op.inputs[i].tensor
                region = tuple((x,) for x in self.inputs(op, call)[i])
                if weight:
                    wanted = self.weight(tensor, region, 0)
                else:
                    source = self.graph.producer[tensor]
                    mb = -1 if source.prologue else work.microbatch
                    wanted = self.whole(tensor, region, self.made(source, self.samples(source, mb), mb))
                have = value if used[1] is None else self.taken(value, used[1])
                if not np.array_equal(have.words, wanted.words):
                    what = "parameter" if weight else "value"
                    raise Broken(f"{op} does not get the {what} of {self.graph.tensors[tensor].name} that it needs")

    def backward(self, rank: int, work: Work) -> None:
        calls = {c.output: c for c in work.calls}
        inside: dict[int, set[tuple[int, int]]] = {}
        for call in work.calls:
            for i, used in enumerate(call.inputs):
                if used is not None and used[0] in calls:
                    inside.setdefault(used[0], set()).add((call.op, i))
        for o in work.outputs:
            if o.grad is None:
                continue
            call = calls[o.slot]
            op = self.graph.ops[call.op]
            if o.grad < 0:
                if op.output != self.graph.loss:
                    raise Broken(f"{op} is not the loss")
                continue
            region = tuple((x,) for x in self.output(op, call))
            without = frozenset(inside.get(o.slot, ()))
            wanted = self.expected_gradient(op.output, region, (work.microbatch,), without)
            if not np.array_equal(self.read(rank, o.grad).words, wanted.words):
                raise Broken(f"the gradient of {self.graph.tensors[op.output].name} is not whole")
        for leaf in work.leaves:
            if leaf.grad is None:
                continue
            total: Word | None = None
            for call in work.calls:
                op = self.graph.ops[call.op]
                for i, used in enumerate(call.inputs):
                    if used is None or used[0] != leaf.slot or not op.grad:
                        continue
                    region = tuple((x,) for x in self.inputs(op, call)[i])
                    mine = self.whole(op.inputs[i].tensor, region, self.given(op, i, call.ranges, work.microbatch))
                    total = mine.words if total is None else total + mine.words
            buffer = self.plan.buffers[leaf.grad]
            if total is None:
                raise Broken(f"no call reads slot {leaf.slot}")
            known = self.held[rank].get(leaf.grad) if buffer.kind == "weight_grad" else None
            lengths = self.cells(buffer.tensor, buffer.region)[1]
            self.held[rank][leaf.grad] = Held(total if known is None else known.words + total, lengths)

    def update(self, rank: int, pairs: Sequence[tuple[int, int]]) -> None:
        own = {(p.buffer if p.shard is None else p.shard): p for p in self.plan.parameters if p.device == rank}
        for weight, grad in pairs:
            p = own.get(weight)
            if p is None:
                raise Broken(f"updates buffer {weight}, which is no parameter here")
            before, gradient = self.read(rank, weight), self.read(rank, grad)
            region = self.plan.buffers[p.buffer].region
            name = self.graph.tensors[p.tensor].name
            if not np.array_equal(before.words, self.weight(p.tensor, region, 0).words):
                raise Broken(f"{name} is updated twice")
            wanted = self.expected_gradient(p.tensor, region, range(self.plan.microbatches), frozenset())
            if not np.array_equal(gradient.words, wanted.words) or gradient.flat != before.flat:
                raise Broken(f"the gradient of {name} is not the sum over all consumers and micro-batches, each once")
            new = self.weight(p.tensor, region, 1)
            self.held[rank][weight] = Held(new.words, new.lengths, before.flat)

    # -------------------------------------------------------------------------------------------- moving

    def positions(self, lengths: tuple[tuple[int, ...], ...], place: Region) -> list[NDArray[np.int64]]:
        """The cells, by position in memory, that local intervals cover; they must begin and end at cells."""
        if len(place) != len(lengths):
            raise Broken(f"{len(place)} dimensions for a buffer of {len(lengths)}")
        found = []
        for own, dim in zip(lengths, place, strict=True):
            edges = tuple(itertools.accumulate(own, initial=0))
            found.append(np.array([i for lo, hi in dim for i in range(*_span(edges, lo, hi))], dtype=np.int64))
        return found

    def taken(self, value: Held, place: Region) -> Held:
        if value.flat is not None:
            raise Broken("takes a box of a flattened piece")
        index = self.positions(value.lengths, place)
        words = value.words[np.ix_(*index)] if index else value.words
        lengths = tuple(tuple(own[i] for i in k) for own, k in zip(value.lengths, index, strict=True))
        return Held(words, lengths)

    def assembled(self, rank: int, pieces: Sequence[tuple[int, Region | None]], result: int) -> Held:
        buffer = self.plan.buffers[result]
        lengths = self.cells(buffer.tensor, buffer.region)[1]
        words = np.zeros(tuple(map(len, lengths)), np.uint64)
        for b, place in pieces:
            value = self.read(rank, b)
            index = self.positions(lengths, place) if place is not None else [np.arange(n) for n in words.shape]
            if words[np.ix_(*index)].shape != value.words.shape if index else value.words.shape:
                raise Broken(f"buffer {b} does not fit into its place")
            if index:
                words[np.ix_(*index)] += value.words
            else:
                words = words + value.words
        return Held(words, lengths)

    def exchange(self, met: Mapping[int, Instruction]) -> None:
        first = next(iter(met.values()))
        kinds = {(type(i).__name__, getattr(i, "kind", ""), getattr(i, "group", None)) for i in met.values()}
        if isinstance(first, Send | Recv):
            self.transfer(met)
            return
        if len(kinds) > 1:
            raise Broken(f"ranks call different things in one task: {sorted(map(str, kinds))}")
        group = first.group  # type: ignore[union-attr]
        if isinstance(first, Flat):
            self.flat(first, {r: i for r, i in met.items() if isinstance(i, Flat)})
            return
        own: dict[int, Collective] = {r: i for r, i in met.items() if isinstance(i, Collective)}
        given = {r: [self.read(r, s) for s in own[r].sources] for r in group}
        if first.kind == "all_reduce":  # type: ignore[union-attr]
            for k in range(len(given[group[0]])):
                shapes = {given[r][k].lengths for r in group}
                sizes = {tuple(sum(d) for d in s) for s in shapes}
                if len(sizes) > 1 or len({len(own[r].results) for r in group}) > 1:
                    raise Broken(f"all_reduce of different shapes {sizes}")
                total = given[group[0]][k].words
                for r in group[1:]:
                    total = total + given[r][k].words
                for r in group:
                    self.keep(r, own[r].results[k], Held(total, given[r][k].lengths))
            return
        made: dict[int, Held] = {}
        for me, r in enumerate(group):
            mine = own[r]
            if first.kind == "reduce_scatter":  # type: ignore[union-attr]
                pieces = [self.taken(given[q][0], own[q].places[me]) for q in group]
                total = pieces[0].words
                for piece in pieces[1:]:
                    total = total + piece.words
                made[r] = Held(total, pieces[me].lengths)
                continue
            pieces = (
                [self.taken(given[q][0], own[q].sends[me]) for q in group]
                if first.kind == "all_to_all"  # type: ignore[union-attr]
                else [given[q][0] for q in group]
            )
            made[r] = self.put(mine.results[0], pieces, mine.places)
        for r, value in made.items():
            self.keep(r, own[r].results[0], value)

    def put(self, result: int, pieces: Sequence[Held], where: Sequence[Region]) -> Held:
        buffer = self.plan.buffers[result]
        lengths = self.cells(buffer.tensor, buffer.region)[1]
        words = np.zeros(tuple(map(len, lengths)), np.uint64)
        filled = np.zeros(words.shape, bool)
        for piece, place in zip(pieces, where, strict=True):
            index = np.ix_(*self.positions(lengths, place))
            if words[index].shape != piece.words.shape:
                raise Broken("a piece does not fit into its place")
            words[index] = piece.words
            filled[index] = True
        if not filled.all():
            raise Broken("a part of the result is never written")
        return Held(words, lengths)

    def flat(self, first: Flat, own: Mapping[int, Flat]) -> None:
        group = first.group
        given = [self.read(r, own[r].source) for r in group]
        if first.kind == "flat_reduce_scatter":
            total = given[0].words
            for g in given[1:]:
                total = total + g.words
            for i, r in enumerate(group):
                self.keep(r, own[r].result, Held(total, given[0].lengths, (i, len(group))))
            return
        for i, g in enumerate(given):
            if g.flat != (i, len(group)) or not np.array_equal(g.words, given[0].words):
                raise Broken("the shards are not the pieces of one parameter in order")
        for r in group:
            self.keep(r, own[r].result, Held(given[0].words, given[0].lengths))

    def transfer(self, met: Mapping[int, Instruction]) -> None:
        sends = {r: i for r, i in met.items() if isinstance(i, Send)}
        receives = {r: i for r, i in met.items() if isinstance(i, Recv)}
        if len(sends) != 1 or len(receives) != 1:
            raise Broken("a send and a receive must meet")
        ((a, send),), ((b, receive),) = sends.items(), receives.items()
        if send.peer != b or receive.peer != a:
            raise Broken(f"rank {a} sends to {send.peer}, rank {b} receives from {receive.peer}")
        value = self.read(a, send.source)
        self.keep(b, receive.result, value if send.place is None else self.taken(value, send.place))

    def keep(self, rank: int, buffer: int, value: Held) -> None:
        known = self.plan.buffers[buffer]
        if known.device != rank:
            raise Broken(f"writes buffer {buffer} of rank {known.device}")
        shape = tuple(sum(own) for own in value.lengths)
        if known.flat is None and shape != extent(known.region):
            raise Broken(f"puts {shape} into a buffer of {extent(known.region)}")
        self.held[rank][buffer] = value


@cache
def _grid(tensor: int, counts: tuple[int, ...]) -> Word:
    grid = np.array(_hash(4, tensor), np.uint64)
    with np.errstate(over="ignore"):
        for dim, n in enumerate(counts):
            own = np.array([_hash(5, tensor, dim, i) for i in range(n)], np.uint64)
            grid = grid[..., None] * own
    return grid


def _span(edges: Sequence[int], lo: int, hi: int) -> tuple[int, int]:
    """The cells between two boundaries. Raises Broken where they are none."""
    import bisect

    a, b = bisect.bisect_left(edges, lo), bisect.bisect_left(edges, hi)
    if a >= len(edges) or b >= len(edges) or edges[a] != lo or edges[b] != hi:
        raise Broken(f"{lo}:{hi} does not lie between boundaries")
    return a, b


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, Broken) else f"{type(error).__name__}: {error}"
