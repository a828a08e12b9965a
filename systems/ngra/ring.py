"""A graph over several processes in a ring: each owns some destinations; blocks of sources go round.

Rank r owns a contiguous range of vertices with all of their in- and out-arcs. To aggregate, each rank works on the
block of source columns it holds while it sends that block to rank r + 1 and receives the next one from rank r - 1;
after as many steps as there are ranks, every block has been everywhere. Backward is the same ring on the out-arcs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from systems.ngra.engine import Engine
from systems.ngra.expression import Node
from systems.ngra.graph import MOST_CHUNK, PADDING, ArcWeight, Graph, GraphError, ProgramError
from systems.ngra.kernels import Chunk, Kernel, fresh_states, run_chunk

Array = np.ndarray[Any, Any]
ARC_DATA = "arc data do not go round a ring: give weights as an ArcWeight, or as vertex data"


class Transport(Protocol):
    """How ranks reach their neighbours in the ring."""

    rank: int
    world: int

    def exchange(self, sent: Sequence[Tensor], received: Sequence[Tensor]) -> Callable[[], None]:
        """Begin to send tensors to the next rank and to receive into others from the one before; wait by the call."""

    def sum(self, x: Tensor) -> None:
        """Replace x by its sum over all ranks."""


class Processes:
    """The ranks of a `torch.distributed` group; gloo or nccl."""

    def __init__(self, group: Any = None) -> None:
        from torch import distributed

        if not distributed.is_initialized():
            raise ProgramError("there is no process group: start with torchrun and call init_process_group first")
        self._distributed, self._group = distributed, group
        self.rank, self.world = distributed.get_rank(group), distributed.get_world_size(group)

    def exchange(self, sent: Sequence[Tensor], received: Sequence[Tensor]) -> Callable[[], None]:
        """See `Transport`. Raises ProgramError naming the rank that did not answer."""
        following, before = (self.rank + 1) % self.world, (self.rank - 1) % self.world
        send, receive = self._distributed.isend, self._distributed.irecv
        peers = [following, before]
        if self._group is not None:
            peers = [self._distributed.get_global_rank(self._group, peer) for peer in peers]
        works: list[Any] = [send(part, peers[0], group=self._group, tag=k) for k, part in enumerate(sent)]
        works += [receive(part, peers[1], group=self._group, tag=k) for k, part in enumerate(received)]

        def wait() -> None:
            try:
                for work in works:
                    work.wait()
            except RuntimeError as error:
                raise ProgramError(
                    f"rank {self.rank} waited for rank {before} and sent to rank {following}, and one of them is gone: "
                    f"{str(error)[:200]}"
                ) from error

        return wait

    def sum(self, x: Tensor) -> None:
        """See `Transport`."""
        self._distributed.all_reduce(x, group=self._group)


def balanced_ranges(graph: Graph, world: int) -> list[tuple[int, int]]:
    """(first, last + 1) vertices of each rank: contiguous, with about equal in-arcs plus vertices."""
    work = graph.incoming.offsets[1:] + torch.arange(1, graph.num_vertices + 1)
    total = int(work[-1]) if graph.num_vertices else 0
    marks = torch.tensor([total * k // world for k in range(1, world)])
    cuts = [0, *torch.searchsorted(work, marks).tolist(), graph.num_vertices]
    return [(cuts[k], cuts[k + 1]) for k in range(world)]


@dataclass(frozen=True)
class _Part:
    """A chunk of a block: which rows of ours and which of the block's it joins."""

    rows: slice
    neighbours: slice
    chunk: Chunk


class RingGraph:
    """One rank's share of a graph; made by `split`. Layers take it for a graph, with the rank's own rows of x.

    num_vertices, num_arcs: of this rank; local_range: its (first, last + 1) vertices; bytes_sent: so far.
    """

    order = None
    chunk_vertices = None

    def __init__(self, graph: Graph, transport: Transport, side: int = MOST_CHUNK) -> None:
        self._transport, self._side = transport, side
        self.rank, self.world = transport.rank, transport.world
        self.ranges = balanced_ranges(graph, self.world)
        self.local_range = first, last = self.ranges[self.rank]
        self.total_vertices = graph.num_vertices
        self.num_vertices = last - first
        self.internal_in_degree = graph.internal_in_degree[first:last].clone()
        self.internal_out_degree = graph.internal_out_degree[first:last].clone()
        self.num_arcs = int(self.internal_in_degree.sum())
        self._vertex_order, self._vertex_rank = graph.order, graph.rank
        self._incoming = [self._parts(graph, owner, "D") for owner in range(self.world)]
        self._outgoing = [self._parts(graph, owner, "S") for owner in range(self.world)]
        self.bytes_sent = 0

    @classmethod
    def split(cls, graph: Graph, group: Any = None) -> RingGraph:
        """This rank's share; every rank calls it with the same graph, under torchrun or after init_process_group."""
        return cls(graph, Processes(group))

    def _parts(self, graph: Graph, owner: int, rows_are: str) -> list[_Part]:
        """The arcs between our rows and a rank's block, cut so that ids within a part are 16 bits."""
        rows = graph.incoming if rows_are == "D" else graph.outgoing
        first, last = self.local_range
        begin, end = int(rows.offsets[first]), int(rows.offsets[last])
        low, high = self.ranges[owner]
        neighbours = rows.ids[begin:end].numpy()
        mine = np.repeat(np.arange(last - first), rows.offsets[first : last + 1].diff().numpy())
        ids = np.arange(begin, end) if rows.arcs is None else rows.arcs[begin:end].numpy()
        kept = (neighbours >= low) & (neighbours < high)
        mine, other, ids = mine[kept], neighbours[kept] - low, ids[kept]
        found = []
        for i in range(0, last - first, self._side):
            for j in range(0, high - low, self._side):
                inside = (mine >= i) & (mine < i + self._side) & (other >= j) & (other < j + self._side)
                if inside.any():
                    chunk = _chunk(mine[inside] - i, other[inside] - j, ids[inside])
                    rows_of = slice(i, min(last - first, i + self._side))
                    found.append(_Part(rows_of, slice(j, min(high - low, j + self._side)), chunk))
        return found

    # ------------------------------------------------------------------------------------------- whole and parts

    @staticmethod
    def enter(x: Tensor) -> Tensor:
        """A rank's own data are in internal order already."""
        return x

    @staticmethod
    def leave(y: Tensor) -> Tensor:
        """As `enter`."""
        return y

    @staticmethod
    def enter_arcs(edge: Tensor) -> Tensor:
        """Always raises ProgramError: data of arcs stay where they are."""
        raise ProgramError(ARC_DATA)

    def scatter(self, x: Any) -> Any:
        """This rank's rows of vertex data (vertices, ...) in the user's order, or of an `ArcWeight`."""
        if isinstance(x, ArcWeight):
            return ArcWeight(self.scatter(x.source), self.scatter(x.destination))
        if len(x) != self.total_vertices:
            raise GraphError(f"x has shape {tuple(x.shape)}, expected ({self.total_vertices}, ...): whole vertex data")
        first, last = self.local_range
        return x[first:last] if self._vertex_order is None else x[self._vertex_order[first:last]]

    def gather(self, y: Tensor) -> Tensor:
        """(vertices, ...): every rank's rows, on every rank, in the user's order."""
        whole = torch.zeros(self.total_vertices, *y.shape[1:], dtype=y.dtype)
        first, last = self.local_range
        whole[first:last] = y.detach()
        self._transport.sum(whole)
        return whole if self._vertex_order is None else whole[self._vertex_rank]

    def reduce_gradients(self, module: nn.Module) -> None:
        """Sum the gradients of parameters over the ranks; a loss must be the sum of the ranks' own losses."""
        for parameter in module.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            self._transport.sum(parameter.grad)

    # ------------------------------------------------------------------------------------------------- the ring

    def circulate(self, block: Sequence[Tensor], visit: Callable[[int, Sequence[Tensor]], None]) -> None:
        """visit(owner, block) for every rank's block, ours first; the next is on its way meanwhile."""
        held = [part.contiguous() for part in block]
        for step in range(self.world):
            owner = (self.rank - step) % self.world
            wait: Callable[[], None] | None = None
            received: list[Tensor] = []
            if step + 1 < self.world:
                first, last = self.ranges[(owner - 1) % self.world]
                received = [torch.empty(last - first, *part.shape[1:], dtype=part.dtype) for part in held]
                wait = self._transport.exchange(held, received)
                self.bytes_sent += sum(part.numel() * part.element_size() for part in held)
            visit(owner, held)
            if wait is not None:
                wait()
                held = received

    def accumulate(
        self, engine: Engine, kernel: Kernel, own: dict[Node, Tensor], travelling: dict[Node, Tensor], rows_are: str,
        threads: int,
    ) -> list[list[Tensor]]:  # fmt: skip
        """The states of a kernel over all arcs of our rows. own: columns of rows and parameters; travelling: ours of
        the columns that go round."""
        states = fresh_states(kernel, self.num_vertices)
        used = {column.leaf for column in kernel.columns}
        leaves = [leaf for leaf in travelling if leaf in used]
        parts = self._incoming if rows_are == "D" else self._outgoing

        def visit(owner: int, block: Sequence[Tensor]) -> None:
            tensors = engine.laid_out(kernel, own | dict(zip(leaves, block, strict=True)), self.num_vertices)
            for part in parts[owner]:
                cut = [
                    tensor[part.rows if column.role == "row" else part.neighbours]
                    for column, tensor in zip(kernel.columns, tensors, strict=True)
                ]
                run_chunk(kernel, cut, [[s[part.rows] for s in output] for output in states], part.chunk, threads)

        self.circulate([travelling[leaf] for leaf in leaves], visit)
        return states


def _chunk(rows: Array, neighbours: Array, ids: Array) -> Chunk:
    distinct, begins = np.unique(rows, return_index=True)
    local = np.zeros(len(rows) + PADDING, np.uint16)
    local[: len(rows)] = neighbours
    return Chunk(
        torch.from_numpy(distinct.astype(np.uint16)),
        torch.from_numpy(np.append(begins, len(rows)).astype(np.uint32)),
        torch.from_numpy(local),
        torch.from_numpy(ids.astype(np.int32)),
    )


def ring_aggregate(engine: Engine, graph: RingGraph, tensors: Sequence[Tensor], threads: int) -> Tensor:
    """(our vertices, *shape): the accumulated messages, under autograd; every rank calls it at the same time.

    Raises ProgramError for what the ring cannot run: blocks, and data of arcs.
    """
    if engine.aggregation.kernel == "blocked":
        raise ProgramError("this program does not fuse, and only what fuses runs in a ring; see its plan")
    if any(source.side == "E" for source in engine.columns):
        raise ProgramError(ARC_DATA)
    return _Ring.apply(engine, graph, threads, *tensors)


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, engine: Engine, graph: RingGraph, threads: int, *tensors: Tensor) -> Tensor:
        needs = ctx.needs_input_grad[3:]
        kernel, carried = engine.forward_kernel(engine.kinds(tensors), needs)
        own, travelling = _sides(engine, tensors, "D")
        first, *others = graph.accumulate(engine, kernel, own, travelling, "D", threads)
        result = engine.finished(first, graph.internal_in_degree)
        kept = first if engine.aggregation.accumulator == "softmax" else [*first[1:], *(s[0] for s in others)]
        ctx.save_for_backward(*tensors, *kept)
        ctx.engine, ctx.graph, ctx.threads, ctx.carried, ctx.count = engine, graph, threads, carried, len(tensors)
        return result

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        engine: Engine = ctx.engine
        tensors, kept = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        needs, given = ctx.needs_input_grad[3:], upstream[0].contiguous()
        gradients: list[Tensor | None] = [None] * len(tensors)
        for k, gradient in engine.carried_gradients(given, kept, ctx.carried).items():
            gradients[k] = gradient
        extra = engine.backward_inputs(given, kept)
        for kernel, rows_are, wanted in engine.backward_kernels(engine.kinds(tensors), needs, ctx.carried):
            own, travelling = _sides(engine, tensors, rows_are)
            if rows_are == "D":
                own |= extra
            else:
                travelling |= extra
            found = ctx.graph.accumulate(engine, kernel, own, travelling, rows_are, ctx.threads)
            for k, states in zip(wanted, found, strict=True):
                gradients[k] = states[0].sum(0) if engine.columns[k].side == "P" else states[0]
        return (None, None, None, *gradients)


def _sides(engine: Engine, tensors: Sequence[Tensor], rows_are: str) -> tuple[dict[Node, Tensor], dict[Node, Tensor]]:
    """(columns that stay with their rows or are parameters, columns that go round)."""
    own: dict[Node, Tensor] = {}
    travelling: dict[Node, Tensor] = {}
    for source, tensor in zip(engine.columns, tensors, strict=True):
        stays = source.side == "P" or (source.side == rows_are)
        (own if stays else travelling)[source.leaf] = tensor
    return own, travelling
