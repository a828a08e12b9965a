"""All ranks in one process: every communication is a rendezvous, and a set of ranks that is stuck says so at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from systems.superscaler.errors import Stuck
from systems.superscaler.executor import Given, Rank
from systems.superscaler.plan import Plan
from systems.superscaler.program import Collective, Flat, Instruction, Recv, Send

__all__ = ["InMemory"]


class InMemory:
    """A plan on as many simulated ranks as it has devices: the backend that property tests run on."""

    def __init__(
        self, plan: Plan, values: Mapping[str, Tensor],
        optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer] | None = None, *, seed: int = 0,
    ) -> None:  # fmt: skip
        self.plan = plan
        self.ranks = [Rank(plan, r, values, seed=seed) for r in range(plan.devices)]
        self.gradients: list[dict[int, Tensor]] = []
        for rank in self.ranks:
            if optimizer is not None:
                rank.optimize_by(optimizer)
        self.optimizer = optimizer

    def step(self, batch: Sequence[Any]) -> list[Tensor]:
        """The loss on each rank. Raises Stuck, naming what each rank waits in, where they would wait for ever."""
        self.gradients = [{} for _ in self.ranks]
        for rank, kept in zip(self.ranks, self.gradients, strict=True):
            _watch(rank, kept)
        running = [rank.run(batch) for rank in self.ranks]
        losses: list[Tensor | None] = [None] * len(running)
        waiting: dict[int, tuple[Instruction, Given]] = {}

        def advance(r: int, arrived: Given | None) -> None:
            try:
                waiting[r] = next(running[r]) if arrived is None else running[r].send(arrived)
            except StopIteration as end:
                losses[r] = end.value

        for r in range(len(running)):
            advance(r, None)
        while waiting:
            ready = next((r for r in sorted(waiting) if self._complete(r, waiting)), None)
            if ready is None:
                lines = [f"rank {r} waits in {self.plan.say(i)}" for r, (i, _) in sorted(waiting.items())]
                done = [f"rank {r} is done" for r in range(len(running)) if r not in waiting]
                raise Stuck("no rank can go on: " + "; ".join([*lines, *done]))
            group = _group(ready, waiting[ready][0])
            # What is sent is a copy, as over a wire: the sender may go on and update its own in place.
            met = {r: (i, [g.clone() for g in given]) for r, (i, given) in ((r, waiting.pop(r)) for r in group)}
            for r, arrived in exchange(met, self.plan).items():
                advance(r, arrived)
        return [loss for loss in losses if loss is not None]

    def _complete(self, rank: int, waiting: Mapping[int, tuple[Instruction, Given]]) -> bool:
        instruction = waiting[rank][0]
        task = instruction.task  # type: ignore[union-attr]
        return all(r in waiting and getattr(waiting[r][0], "task", None) == task for r in _group(rank, instruction))

    def parameters(self) -> dict[str, Tensor]:
        """Whole parameters by name, put together from all ranks."""
        return gather_weights(self.plan, [rank.held for rank in self.ranks])

    def parameter_gradients(self) -> dict[str, Tensor]:
        """The whole gradients of the last step by name."""
        return gather_weights(self.plan, self.gradients)


def _watch(rank: Rank, kept: dict[int, Tensor]) -> None:
    original = Rank.update

    def update(pairs: Sequence[tuple[int, int]]) -> None:
        for weight, grad in pairs:
            kept[weight] = rank.held[grad].clone()
        original(rank, pairs)

    rank.update = update  # type: ignore[method-assign]


def gather_weights(plan: Plan, held: Sequence[Mapping[int, Tensor]]) -> dict[str, Tensor]:
    """Whole tensors by parameter name from what ranks hold by buffer; boxes that nobody holds are left out."""
    found: dict[str, Tensor] = {}
    shards: dict[tuple[int, Any], list[tuple[int, Tensor]]] = {}
    for p in plan.parameters:
        t = plan.graph.tensors[p.tensor]
        own = held[p.device]
        value = own.get(p.buffer)
        if p.shard is not None:
            if p.shard in own:
                shards.setdefault((p.tensor, p.box), []).append((p.group.index(p.device), own[p.shard]))
            continue
        if value is None:
            continue
        _into(found, t.name, t.shape, p.box, value)
    for (tensor, box), pieces in shards.items():
        t = plan.graph.tensors[tensor]
        extents = [hi - lo for lo, hi in box]
        flat = torch.cat([piece.reshape(-1) for _, piece in sorted(pieces, key=lambda x: x[0])])
        count = 1
        for n in extents:
            count *= n
        _into(found, t.name, t.shape, box, flat[:count].view(extents))
    return found


def _into(found: dict[str, Tensor], name: str, shape: Sequence[int], box: Any, value: Tensor) -> None:
    whole = found.get(name)
    if whole is None:
        whole = found[name] = torch.zeros(tuple(shape), dtype=value.dtype)
    whole[tuple(slice(lo, hi) for lo, hi in box)] = value.detach().cpu()


def _group(rank: int, instruction: Instruction) -> tuple[int, ...]:
    match instruction:
        case Collective(group=group) | Flat(group=group):
            return group
        case Send(peer=peer) | Recv(peer=peer):
            return (rank, peer)
        case _:
            return (rank,)


def exchange(met: Mapping[int, tuple[Instruction, Given]], plan: Plan) -> dict[int, Given]:
    """What each participant of one communication gets. Raises Stuck where they call different things."""
    first = next(iter(met.values()))[0]
    kinds = {(type(i).__name__, getattr(i, "kind", "")) for i, _ in met.values()}
    if isinstance(first, Send | Recv):
        if {k for k, _ in kinds} != {"Send", "Recv"}:
            raise Stuck(f"a send and a receive must meet, not {sorted(kinds)}")
        sent = next(given for i, given in met.values() if isinstance(i, Send))
        return {r: sent if isinstance(i, Recv) else [] for r, (i, _) in met.items()}
    if len(kinds) > 1:
        raise Stuck(f"one task, different collectives: {sorted(kinds)}")
    assert isinstance(first, Collective | Flat)
    group = first.group
    given = [met[r][1] for r in group]
    if first.kind == "all_reduce":
        total = [sum_of([g[k] for g in given]) for k in range(len(given[0]))]
        return dict.fromkeys(group, total)
    if first.kind in ("reduce_scatter", "flat_reduce_scatter"):
        return {r: [sum_of([g[k] for g in given])] for k, r in enumerate(group)}
    if first.kind == "all_to_all":
        return {r: [g[k] for g in given] for k, r in enumerate(group)}
    return {r: [g[0] for g in given] for r in group}


def sum_of(tensors: Sequence[Tensor]) -> Tensor:
    """The sum in the order of the ranks."""
    total = tensors[0]
    for t in tensors[1:]:
        total = total + t
    return total
