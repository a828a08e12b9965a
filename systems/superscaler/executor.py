"""One rank's program, run on real tensors; communication is left to whoever drives it.

`Rank.run` is a generator: it yields `(instruction, tensors to give)` at every communication and is sent the tensors
that arrive. So the same executor runs on torch.distributed (`runtime`) and with all ranks in one process (`inmemory`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from systems.superscaler.graph import Graph, narrow
from systems.superscaler.mask import Region
from systems.superscaler.operators import evaluate
from systems.superscaler.plan import Parameter, Plan
from systems.superscaler.program import (
    COMMUNICATION,
    Assemble,
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

__all__ = ["Rank"]

Given = list[Tensor]
OptimizerFactory = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
Communication = Generator[tuple[Instruction, Given], Given, Tensor]


class Rank:
    """A rank's tensors: its parameters (boxes or shards), optimizer, and the buffers of the step that runs."""

    def __init__(self, plan: Plan, rank: int, values: Mapping[str, Tensor], *, seed: int = 0) -> None:
        """values: the model's whole parameters and buffers by name; only this rank's boxes are copied."""
        self.plan, self.rank, self.seed = plan, rank, seed
        self.step_count = 0
        self.held: dict[int, Tensor] = {}
        self.stored: list[Parameter] = [p for p in plan.parameters if p.device == rank]
        self.graph: Graph = plan.graph
        self.constants = dict(plan.graph.constants)
        self.saved: dict[int, tuple[dict[int, Tensor], list[Tensor]]] = {}
        self.batch: dict[int, Any] = {}
        self.optimizer: torch.optim.Optimizer | None = None
        for p in self.stored:
            box = values[self.graph.tensors[p.tensor].name].detach()[narrow(p.box)]
            if p.shard is not None:
                i, n = plan.buffers[p.shard].flat or (0, 1)
                self.held[p.shard] = flat_piece(box, i, n).clone()
            if p.shard is None or plan.zero < 3:
                self.held[p.buffer] = box.clone()

    def weights(self) -> list[Tensor]:
        """The tensors that the optimizer steps on, in the order of `stored`."""
        return [self.held[p.buffer if p.shard is None else p.shard] for p in self.stored if p.gradient is not None]

    def optimize_by(self, factory: OptimizerFactory) -> None:
        """Make the optimizer."""
        own = self.weights()
        self.optimizer = factory(own) if own else None

    def run(self, batch: Sequence[Any]) -> Communication:
        """A step. Yields at each communication; returns the loss."""
        self.batch = dict(zip(self.graph.inputs, batch, strict=True))
        loss = torch.zeros(())
        for instruction in self.plan.programs[self.rank]:
            if isinstance(instruction, COMMUNICATION):
                arrived = yield instruction, self.give(instruction)
                self.take(instruction, arrived)
            elif isinstance(instruction, Return):
                loss = self.held[instruction.source]
            else:
                self.local(instruction)
        self.step_count += 1
        kept = {p.buffer for p in self.stored} | {p.shard for p in self.stored}
        self.held = {b: t for b, t in self.held.items() if b in kept}
        self.saved.clear()
        return loss

    # ------------------------------------------------------------------------------------------ local

    def local(self, instruction: Instruction) -> None:
        """Run an instruction that needs no other rank."""
        match instruction:
            case Compute("forward", number, gathered):
                self.forward(self.plan.works[number], dict(gathered))
            case Compute("recompute", number, gathered):
                self.saved[number] = self.compute(self.plan.works[number], dict(gathered))
            case Compute("backward", number, gathered):
                self.backward(self.plan.works[number], dict(gathered))
            case Slice(source, result, place, flat):
                piece = self.held[source]
                if flat is not None:
                    piece = flat_piece(piece, *flat)
                self.held[result] = piece if place is None else take(piece, place)
            case Assemble(pieces, result):
                self.held[result] = self.assemble(pieces, result)
            case Update(pairs):
                self.update(pairs)
            case Free(buffers):
                for b in buffers:
                    self.held.pop(b, None)

    def assemble(self, pieces: Sequence[tuple[int, Region | None]], result: int) -> Tensor:
        buffer = self.plan.buffers[result]
        if pieces and all(place is None for _, place in pieces):
            total = self.held[pieces[0][0]]
            for b, _ in pieces[1:]:
                total = total + self.held[b]
            return total
        dtype = getattr(torch, self.graph.tensors[buffer.tensor].dtype)
        like = self.held[pieces[0][0]] if pieces else next(iter(self.held.values()), torch.zeros(()))
        whole = torch.zeros(buffer.shape, dtype=dtype, device=like.device)
        for b, place in pieces:
            put(whole, self.held[b], place)
        return whole

    def update(self, pairs: Sequence[tuple[int, int]]) -> None:
        for weight, grad in pairs:
            target = self.held[weight]
            target.grad = self.held[grad].reshape(target.shape)
        if self.optimizer is not None:
            self.optimizer.step()
        for weight, _ in pairs:
            self.held[weight].grad = None

    # ---------------------------------------------------------------------------------------- autograd

    def forward(self, work: Work, gathered: Mapping[int, int]) -> None:
        if work.recompute or not work.has_backward:
            with torch.no_grad():
                slots = self.calls(work, {leaf.slot: self.leaf(leaf, gathered) for leaf in work.leaves})
        elif gathered:
            with torch.autograd.graph.saved_tensors_hooks(*self.hooks(work, gathered)):
                slots, _ = self.saved[work.id] = self.compute(work, gathered)
        else:
            slots, _ = self.saved[work.id] = self.compute(work, gathered)
        for o in work.outputs:
            self.held[o.buffer] = slots[o.slot].detach()
        if work.id in self.saved:
            self.saved[work.id] = ({o.slot: slots[o.slot] for o in work.outputs}, self.saved[work.id][1])

    def compute(self, work: Work, gathered: Mapping[int, int]) -> tuple[dict[int, Tensor], list[Tensor]]:
        """All slots, and the leaves in order, with gradients recorded."""
        slots: dict[int, Tensor] = {}
        leaves = []
        for leaf in work.leaves:
            value = self.leaf(leaf, gathered)
            if leaf.grad is not None:
                value = value.detach().requires_grad_()
                leaves.append(value)
            slots[leaf.slot] = value
        with torch.enable_grad():
            return self.calls(work, slots), leaves

    def leaf(self, leaf: Any, gathered: Mapping[int, int]) -> Tensor:
        buffer = self.plan.buffers[leaf.buffer]
        if buffer.kind == "given":
            whole = self.batch.get(buffer.tensor)
            if whole is None:
                whole = self.constants[buffer.tensor]
            return take(whole, buffer.region) if buffer.region else whole
        value = self.held[gathered.get(leaf.buffer, leaf.buffer)]
        return value if leaf.place is None else take(value, leaf.place)

    def calls(self, work: Work, slots: dict[int, Tensor]) -> dict[int, Tensor]:
        step, seed = self.step_count, self.seed
        for call in work.calls:
            op = self.graph.ops[call.op]
            tensors = [
                None if x is None else slots[x[0]] if x[1] is None else take(slots[x[0]], x[1]) for x in call.inputs
            ]
            if op.grad:
                slots[call.output] = evaluate(op, call.ranges, tensors, step=step, seed=seed, graph=self.graph)
            else:
                with torch.no_grad():
                    slots[call.output] = evaluate(op, call.ranges, tensors, step=step, seed=seed, graph=self.graph)
        return slots

    def backward(self, work: Work, gathered: Mapping[int, int]) -> None:
        slots, leaves = self.saved.pop(work.id)
        outputs, grads = [], []
        for o in work.outputs:
            if o.grad is not None and slots[o.slot].requires_grad:
                outputs.append(slots[o.slot])
                grads.append(torch.ones_like(slots[o.slot]) if o.grad < 0 else self.held[o.grad])
        self.swapped = gathered
        found = (
            torch.autograd.grad(outputs, leaves, grads, allow_unused=True)
            if outputs and leaves
            else (None,) * len(leaves)
        )
        wanted = [leaf for leaf in work.leaves if leaf.grad is not None]
        for leaf, value, grad in zip(wanted, leaves, found, strict=True):
            new = torch.zeros_like(value) if grad is None else grad
            number = leaf.grad if leaf.grad is not None else -1
            known = self.held.get(number) if self.plan.buffers[number].kind == "weight_grad" else None
            self.held[number] = new if known is None else known + new

    def hooks(self, work: Work, gathered: Mapping[int, int]) -> tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]:
        """Keep no gathered parameter for backward, only which one it was: backward gathers it again."""
        storages = {self.held[full].untyped_storage().data_ptr(): own for own, full in gathered.items()}

        def pack(t: Tensor) -> Any:
            own = storages.get(t.untyped_storage().data_ptr())
            return t if own is None else (own, t.size(), t.stride(), t.storage_offset())

        def unpack(kept: Any) -> Tensor:
            if isinstance(kept, Tensor):
                return kept
            own, size, stride, offset = kept
            return self.held[self.swapped[own]].as_strided(size, stride, offset)

        return pack, unpack

    # ----------------------------------------------------------------------------------- communication

    def give(self, instruction: Instruction) -> Given:
        """The tensors that a communication takes from this rank."""
        match instruction:
            case Collective("all_to_all", _, _, (source,), _, _, sends):
                return [take(self.held[source], place).contiguous() for place in sends]
            case Collective("reduce_scatter", _, _, (source,), _, where):
                return [take(self.held[source], place).contiguous() for place in where]
            case Collective(sources=sources):
                return [self.held[s] for s in sources]
            case Flat("flat_reduce_scatter", _, group, source):
                return [flat_piece(self.held[source], i, len(group)) for i in range(len(group))]
            case Flat(source=source):
                return [self.held[source]]
            case Send(source=source, place=place):
                value = self.held[source]
                return [(value if place is None else take(value, place)).contiguous()]
            case _:
                return []

    def take(self, instruction: Instruction, arrived: Given) -> None:
        """Keep what a communication brought."""
        match instruction:
            case Collective("all_reduce", results=results):
                self.held.update(zip(results, arrived, strict=True))
            case Collective("reduce_scatter", results=(result,)):
                self.held[result] = arrived[0]
            case Collective(results=(result,), places=where):
                buffer = self.plan.buffers[result]
                whole = torch.empty(buffer.shape, dtype=arrived[0].dtype, device=arrived[0].device)
                for piece, place in zip(arrived, where, strict=True):
                    put(whole, piece, place, add=False)
                self.held[result] = whole
            case Flat("flat_reduce_scatter", result=result):
                self.held[result] = arrived[0]
            case Flat(result=result):
                buffer = self.plan.buffers[result]
                flat = torch.cat(arrived)[: buffer.elements].view(buffer.shape)
                if buffer.kind == "param" and result in self.held:
                    self.held[result].copy_(flat)
                else:
                    self.held[result] = flat
            case Recv(result=result):
                self.held[result] = arrived[0].view(self.plan.buffers[result].shape)


def take(value: Tensor, place: Region) -> Tensor:
    """A part of a tensor: local intervals per dimension."""
    for dim, intervals in enumerate(place):
        if len(intervals) == 1:
            lo, hi = intervals[0]
            if lo != 0 or hi != value.shape[dim]:
                value = value.narrow(dim, lo, hi - lo)
        else:
            value = torch.cat([value.narrow(dim, lo, hi - lo) for lo, hi in intervals], dim)
    return value


def put(whole: Tensor, piece: Tensor, place: Region | None, *, add: bool = True) -> None:
    """Write, or add, a piece into its place."""
    if place is None:
        place = tuple(((0, n),) for n in whole.shape)
    for dim, intervals in enumerate(place):
        if len(intervals) > 1:
            at = 0
            for lo, hi in intervals:
                part = (*(((0, n),) for n in whole.shape[:dim]), ((lo, hi),), *place[dim + 1 :])
                # Earlier dimensions have been narrowed already: see below.
                put(whole, piece.narrow(dim, at, hi - lo), part, add=add)
                at += hi - lo
            return
        lo, hi = intervals[0]
        whole = whole.narrow(dim, lo, hi - lo)
    if add:
        whole += piece
    else:
        whole.copy_(piece)


def flat_piece(value: Tensor, index: int, count: int) -> Tensor:
    """The index-th of `count` equal pieces of a flattened tensor, padded with zeros."""
    size = -(-value.numel() // count)
    flat = value.reshape(-1)[index * size : (index + 1) * size]
    return flat if len(flat) == size else torch.cat([flat, flat.new_zeros(size - len(flat))])
