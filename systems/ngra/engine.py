"""Running a plan: stages by torch, arcs by generated kernels or in blocks, gradients by hand-derived passes.

The gradient of an aggregation is found once, as expressions, and compiled like the aggregation itself:

- by a source's columns: a pass over the out-arcs, which gathers the upstream gradient beside the destinations' data;
- by a destination's columns: where the value is elementwise, sum_j df/dd is accumulated by the *forward* pass, and
  the gradient is one product per vertex; else a second pass over the in-arcs;
- by arc data: written by that second pass, in canonical order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from systems.ngra import gpu, kernels
from systems.ngra.expression import Book, Call, Node, adjoints, evaluate, summed, tangent, walk
from systems.ngra.generation import Column, Form, Output, Role
from systems.ngra.gpu import GpuKernel
from systems.ngra.graph import Graph, NGraError, layout
from systems.ngra.kernels import Kernel
from systems.ngra.plan import Aggregation, Source

BLOCK_ARCS = 65_536

Modules = Callable[[str], Callable[..., Any]]
Kinds = dict[Node, torch.dtype]


class Engine:
    """One aggregation, ready to run: its kernels are built on first use. Immutable but for those."""

    def __init__(self, book: Book, aggregation: Aggregation, dtype: torch.dtype, *, triton: bool = False) -> None:
        self.book, self.aggregation, self.dtype, self.triton = book, aggregation, dtype, triton
        self.columns = aggregation.columns
        value = aggregation.residual[-1]
        self.shape = value.shape
        self.upstream = book.leaf("D", "#upstream", self.shape)
        self.winner = book.leaf("D", "#winner", self.shape)
        heads = aggregation.residual[0].shape
        self.heads = heads
        self.peak = book.leaf("D", "#peak", heads)
        self.total = book.leaf("D", "#total", heads)
        self.centre = book.leaf("D", "#centre", (*self.shape[:-1], 1))

    @property
    def plain(self) -> bool:
        """Whether the message is one source column as it is."""
        residual = self.aggregation.residual
        return len(residual) == 1 and residual[0].op == "leaf" and residual[0].sides == frozenset("S")

    # --------------------------------------------------------------------------------------------- gradients

    @functools.cached_property
    def seeds(self) -> dict[Node, Node]:
        """What the messages of one arc get from upstream."""
        book, residual = self.book, self.aggregation.residual
        if self.aggregation.accumulator == "sum":
            return {residual[0]: self.upstream}
        if self.aggregation.accumulator in {"max", "min"}:
            won = book.make("wins", (self.winner,), None, self.shape)
            return {residual[0]: book.where(won, self.upstream, 0.0)}
        score, value = residual
        column = (*self.shape[:-1], 1)

        def as_column(node: Node) -> Node:
            return book.make("reshape", (node,), column)

        weight = book.div(book.exp(book.sub(as_column(score), as_column(self.peak))), as_column(self.total))
        lifted = book.reduced(book.mul(self.upstream, value), column)
        by_score = book.mul(weight, book.sub(lifted, self.centre))
        return {value: book.mul(weight, self.upstream), score: book.make("reshape", (by_score,), score.shape)}

    def _target(self, source: Source) -> Node:
        """The node whose adjoint is the gradient by a column: its leaf, or the slice that an arc picks of it."""
        for node in walk(*self.aggregation.residual):
            if node.op == "pick" and node.args[0] is source.leaf:
                return node
        return source.leaf

    @functools.cached_property
    def _adjoints(self) -> dict[Node, Node | None]:
        targets = [self._target(source) for source in self.columns]
        return dict(zip(targets, adjoints(self.book, self.seeds, targets), strict=True))

    def tangent_of(self, source: Source) -> Node | None:
        """d message / d column, where the forward pass can accumulate it."""
        if source.side not in "DP" or self.aggregation.accumulator != "sum":
            return None
        return tangent(self.book, self.aggregation.residual[0], source.leaf)

    # ------------------------------------------------------------------------------------------------ kernels

    @functools.cached_property
    def _kernels(self) -> dict[Any, Kernel | GpuKernel]:
        return {}

    def _columns(self, outputs: Sequence[Output], rows_are: str) -> list[Column]:
        used = {node for output in outputs for part in output.nodes for node in walk(part) if node.op == "leaf"}
        extra = [self.upstream, self.winner, self.peak, self.total, self.centre]
        found = []
        for leaf in [*(source.leaf for source in self.columns), *extra]:
            if leaf in used:
                side = str(leaf.data[0])
                role: Role = "row" if (side == "S") == (rows_are == "S") else "neighbour"
                kind = torch.int32 if leaf is self.winner else self.dtype
                found.append(Column(leaf, "arc" if side == "E" else role, kind))
        return found

    def _compiled(self, key: Any, outputs: Sequence[Output], rows_are: str, kinds: Kinds) -> Any:
        key = (key, tuple(kinds.values()))
        if key not in self._kernels:
            columns = [
                Column(column.leaf, column.role, kinds.get(column.leaf, column.dtype))
                for column in self._columns(outputs, rows_are)
            ]
            if self.triton:
                self._kernels[key] = gpu.compiled(columns, outputs, self.dtype)
            else:
                kernel = kernels.compiled(columns, outputs, self.dtype)
                if kernel is None:
                    raise NGraError("a plan for native kernels was run without a C compiler")
                self._kernels[key] = kernel
        return self._kernels[key]

    def laid_out(self, kernel: Kernel | GpuKernel, given: Mapping[Node, Tensor], rows: int) -> list[Tensor]:
        """The tensors of a kernel's columns as it wants them; rows: of those that stand for a parameter."""
        tensors = []
        for column in kernel.columns:
            tensor = given[column.leaf]
            if str(column.leaf.data[0]) == "P":
                tensor = tensor.contiguous().expand(rows, *tensor.shape)
            elif tensor.dim() > 1 and not tensor[:1].is_contiguous():
                tensor = tensor.contiguous()
            tensors.append(tensor)
        return tensors

    def _run(
        self, kernel: Kernel | GpuKernel, given: Mapping[Node, Tensor], graph: Graph, rows_are: str, threads: int
    ) -> list[list[Tensor]]:
        rows = graph.incoming if rows_are == "D" else graph.outgoing
        grid = graph.incoming_grid if rows_are == "D" else graph.outgoing_grid
        tensors = self.laid_out(kernel, given, graph.num_vertices)
        if isinstance(kernel, GpuKernel):
            device = next(iter(given.values())).device
            return gpu.run(kernel, tensors, graph.tasks(rows_are, device), graph.num_arcs)
        return kernels.run(kernel, tensors, rows, grid, threads, graph.num_arcs)

    def forward_kernel(self, kinds: Kinds, needs: Sequence[bool]) -> tuple[Kernel, list[int]]:
        """(the kernel, the columns whose tangent it accumulates beside the result); kinds: the columns' types."""
        outputs = [Output(cast(Form, self.aggregation.accumulator), self.aggregation.residual, self.shape)]
        carried = []
        for k, source in enumerate(self.columns):
            slope = self.tangent_of(source) if needs[k] else None
            if slope is not None:
                outputs.append(Output("sum", (slope,), self.shape))
                carried.append(k)
        return self._compiled(("forward", tuple(carried)), outputs, "D", kinds), carried

    def backward_kernels(
        self, kinds: Kinds, needs: Sequence[bool], carried: Sequence[int]
    ) -> list[tuple[Kernel, str, list[int]]]:
        """(kernel, the side that its rows are, the columns whose gradients it gives) of each pass over the arcs."""
        found = []
        for sides, rows_are in (("S", "S"), ("DPE", "D")):
            wanted = [
                k
                for k, source in enumerate(self.columns)
                if needs[k] and source.side in sides and k not in carried
                and self._adjoints[self._target(source)] is not None
            ]  # fmt: skip
            if wanted:
                outputs = [self._gradient_output(self.columns[k]) for k in wanted]
                kernel = self._compiled(("backward", tuple(wanted)), outputs, rows_are, kinds)
                found.append((kernel, rows_are, wanted))
        return found

    def finished(self, states: Sequence[Tensor], in_degree: Tensor) -> Tensor:
        """The accumulated value from the states of its output, which it may write to; in_degree: (rows,)."""
        if self.aggregation.accumulator != "softmax":
            return states[0]
        result, _, total = states
        result /= _beside(total, result)
        result[(in_degree == 0).to(result.device)] = 0.0
        return result

    def kinds(self, tensors: Sequence[Tensor]) -> Kinds:
        """The types of the columns."""
        return {source.leaf: tensor.dtype for source, tensor in zip(self.columns, tensors, strict=True)}

    def forward(
        self, graph: Graph, tensors: Sequence[Tensor], needs: Sequence[bool], threads: int
    ) -> tuple[Tensor, list[Tensor], list[int]]:
        """(result, what backward needs beside the columns, the columns whose tangent is among it)."""
        kernel, carried = self.forward_kernel(self.kinds(tensors), needs)
        given = {source.leaf: tensor for source, tensor in zip(self.columns, tensors, strict=True)}
        first, *others = self._run(kernel, given, graph, "D", threads)
        result = self.finished(first, graph.internal_in_degree)
        if self.aggregation.accumulator == "softmax":
            return result, first, carried
        return result, [*first[1:], *(states[0] for states in others)], carried

    def backward_inputs(self, upstream: Tensor, kept: Sequence[Tensor]) -> dict[Node, Tensor]:
        """What backward kernels read of a destination beside its columns; kept: as `forward` gives it."""
        accumulator = self.aggregation.accumulator
        given = {self.upstream: upstream}
        if accumulator == "softmax":
            given |= {self.peak: kept[1], self.total: kept[2]}
            given[self.centre] = (upstream * kept[0]).sum(-1, keepdim=True)
        elif accumulator != "sum":
            given[self.winner] = kept[0]
        return given

    def carried_gradients(self, upstream: Tensor, kept: Sequence[Tensor], carried: Sequence[int]) -> dict[int, Tensor]:
        """The gradients by columns whose tangent the forward pass accumulated."""
        found = {}
        for k, slope in zip(carried, kept[len(kept) - len(carried) :], strict=True):
            gradient = summed(upstream * slope, self.columns[k].leaf.shape)
            found[k] = gradient.sum(0) if self.columns[k].side == "P" else gradient
        return found

    def backward(
        self, graph: Graph, tensors: Sequence[Tensor], needs: Sequence[bool], kept: Sequence[Tensor],
        carried: Sequence[int], upstream: Tensor, threads: int,
    ) -> list[Tensor | None]:  # fmt: skip
        """The gradient by each column that needs one."""
        upstream = upstream.contiguous()
        gradients: list[Tensor | None] = [None] * len(self.columns)
        if self.aggregation.accumulator in {"max", "min"} and self.plain and needs[0] and not self.triton:
            return [scatter_winners(graph, upstream, kept[0], threads)]
        given = {source.leaf: tensor for source, tensor in zip(self.columns, tensors, strict=True)}
        given |= self.backward_inputs(upstream, kept)
        for k, gradient in self.carried_gradients(upstream, kept, carried).items():
            gradients[k] = gradient
        for kernel, rows_are, wanted in self.backward_kernels(self.kinds(tensors), needs, carried):
            for k, states in zip(wanted, self._run(kernel, given, graph, rows_are, threads), strict=True):
                gradients[k] = states[0].sum(0) if self.columns[k].side == "P" else states[0]
        return gradients

    def _gradient_output(self, source: Source) -> Output:
        target = self._target(source)
        gradient = self._adjoints[target]
        assert gradient is not None
        if target is not source.leaf:
            return Output("pick", (gradient, target.args[1]), source.leaf.shape)
        return Output("arc" if source.side == "E" else "sum", (gradient,), source.leaf.shape)


def scatter_winners(graph: Graph, upstream: Tensor, winner: Tensor, threads: int) -> Tensor:
    """(vertices, ...): each element of `upstream` added to the source of the arc that won it."""
    width = upstream[0].numel() if len(upstream) else 0
    out = torch.zeros_like(upstream)
    library = layout()
    if library is None or not width:
        sources = graph.arc_sources.long()[winner.clamp(min=0).long()] if graph.num_arcs else winner.long()
        return out.scatter_add_(0, sources.clamp(min=0), upstream.masked_fill(winner < 0, 0.0))
    function = library.scatter_float if upstream.dtype == torch.float32 else library.scatter_double
    threads = min(threads, max(1, width // 16))
    cuts = [width * k // threads for k in range(threads + 1)]
    parts = iter(range(threads))
    sources = graph.arc_sources

    def work() -> None:
        part = next(parts)
        function(
            upstream.data_ptr(), winner.data_ptr(), sources.data_ptr(), len(upstream), width,
            cuts[part], cuts[part + 1], out.data_ptr(),
        )  # fmt: skip

    kernels.everywhere(work, threads)
    return out


# -------------------------------------------------------------------------------------------- autograd functions


@dataclass(frozen=True)
class Task:
    """What an autograd function of this module needs beside tensors."""

    engine: Engine
    graph: Graph
    threads: int
    modules: Modules


class _Native(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, task: Task, *tensors: Tensor) -> Tensor:
        needs = ctx.needs_input_grad[1:]
        result, kept, carried = task.engine.forward(task.graph, tensors, needs, task.threads)
        if any(needs):
            held = tensors if _columns_needed(task.engine, needs, carried) else ()
            ctx.save_for_backward(*held, *kept)
            ctx.task, ctx.carried, ctx.held = task, carried, len(held)
            ctx.empty = tuple(tensor.new_empty(0) for tensor in tensors)  # types only: the columns may be freed
        return result

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        tensors = saved[: ctx.held] if ctx.held else ctx.empty
        task: Task = ctx.task
        gradients = task.engine.backward(
            task.graph, tensors, ctx.needs_input_grad[1:], saved[ctx.held :], ctx.carried, upstream[0], task.threads
        )
        return (None, *gradients)


def _columns_needed(engine: Engine, needs: Sequence[bool], carried: Sequence[int]) -> bool:
    """Whether some gradient reads the columns again."""
    if engine.plain:
        return False
    remaining = [k for k, need in enumerate(needs) if need and k not in carried]
    leaves = {source.leaf for source in engine.columns}
    for k in remaining:
        gradient = engine._adjoints[engine._target(engine.columns[k])]
        if gradient is not None and any(node in leaves for node in walk(gradient)):
            return True
        if engine._target(engine.columns[k]) is not engine.columns[k].leaf:
            return True
    return False


class _Blocked(torch.autograd.Function):
    """Blocks of arcs by torch; the backward pass evaluates each block again."""

    @staticmethod
    def forward(ctx: Any, task: Task, columns: int, *tensors: Tensor) -> Tensor:
        result, kept = _blocked_forward(task, tensors[:columns])
        ctx.task, ctx.columns = task, columns
        ctx.save_for_backward(*tensors, *kept)
        ctx.count = len(tensors)
        return result

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        gradients = _blocked_backward(
            ctx.task, saved[: ctx.columns], saved[ctx.columns : ctx.count], ctx.needs_input_grad[2:],
            saved[ctx.count :], upstream[0],
        )  # fmt: skip
        return (None, None, *gradients)


def aggregate(engine: Engine, graph: Graph, tensors: Sequence[Tensor], threads: int, modules: Modules) -> Tensor:
    """(vertices, *shape): the accumulated messages of every vertex, under autograd."""
    task = Task(engine, graph, threads, modules)
    if engine.aggregation.kernel != "blocked":
        return _Native.apply(task, *tensors)
    inner = _inner_parameters(engine, modules)
    return _Blocked.apply(task, len(tensors), *tensors, *inner)


def _inner_parameters(engine: Engine, modules: Modules) -> list[Tensor]:
    """Parameters of the submodules that are called on arcs."""
    found: dict[int, Tensor] = {}
    for node in walk(*engine.aggregation.residual):
        if node.op == "call" and isinstance(node.data, Call) and isinstance(node.data.function, str):
            module = modules(node.data.function)
            if isinstance(module, torch.nn.Module):
                found |= {id(parameter): parameter for parameter in module.parameters()}
    return list(found.values())


# ------------------------------------------------------------------------------------------------------- blocks


def _messages(task: Task, tensors: Sequence[Tensor], src: Tensor, dst: Tensor, block: slice) -> list[Tensor]:
    """The values of the messages of some arcs, each (arcs, *shape)."""
    engine = task.engine
    given = {source.leaf: (source.side, tensor) for source, tensor in zip(engine.columns, tensors, strict=True)}

    def environment(leaf: Node) -> Tensor:
        return given[leaf][1]

    rows = block.stop - block.start
    known: dict[Node, Any] = {}
    messages = []
    for node in engine.aggregation.residual:
        value = evaluate(node, environment, task.modules, rows, engine.dtype, known)
        if not isinstance(value, Tensor):
            value = torch.full((), float(value), dtype=engine.dtype)
        if value.dtype == torch.bool:
            value = value.to(engine.dtype)
        missing = len(node.shape) + 1 - value.dim()
        if node.sides and missing > 0:
            value = value.reshape(value.shape[0], *[1] * missing, *value.shape[1:])
        messages.append(value.expand(rows, *node.shape))
    return messages


def _gathered(task: Task, tensors: Sequence[Tensor], src: Tensor, dst: Tensor, block: slice) -> list[Tensor]:
    parts = []
    for source, tensor in zip(task.engine.columns, tensors, strict=True):
        if source.side == "S":
            parts.append(tensor.index_select(0, src))
        elif source.side == "D":
            parts.append(tensor.index_select(0, dst))
        else:
            parts.append(tensor[block] if source.side == "E" else tensor)
    return parts


def _blocks(graph: Graph) -> list[slice]:
    return [slice(begin, min(begin + BLOCK_ARCS, graph.num_arcs)) for begin in range(0, graph.num_arcs, BLOCK_ARCS)]


def _blocked_forward(task: Task, tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    engine, graph = task.engine, task.graph
    accumulator, n = engine.aggregation.accumulator, graph.num_vertices
    device = tensors[0].device if tensors else torch.device("cpu")
    result = torch.zeros(n, *engine.shape, dtype=engine.dtype, device=device)
    if accumulator == "sum" and engine.plain and engine.dtype == torch.float32 and graph.num_arcs:
        return _bagged(graph, tensors[0]), []
    winner = torch.full((n, *engine.shape), -1, dtype=torch.int32, device=device)
    peak = torch.full((n, *engine.heads), float("-inf"), dtype=engine.dtype, device=device)
    total = torch.zeros(n, *engine.heads, dtype=engine.dtype, device=device)
    for block in _blocks(graph):
        src, dst = graph.arc_sources[block].to(device), graph.arc_destinations[block].to(device)
        messages = _messages(task, _gathered(task, tensors, src, dst, block), src, dst, block)
        if accumulator == "sum":
            result.index_add_(0, dst, messages[0].contiguous())
        elif accumulator in {"max", "min"}:
            _extremum(result, winner, messages[0], dst.long(), block.start, 1 if accumulator == "max" else -1)
        else:
            _soft(result, peak, total, messages[0], messages[1], dst.long())
    if accumulator == "softmax":
        result = result / _beside(total, result)
        result[(graph.internal_in_degree == 0).to(device)] = 0.0
        return result, [result, peak, total]
    return result, [winner] if accumulator in {"max", "min"} else []


def _bagged(graph: Graph, x: Tensor) -> Tensor:
    """The sum over in-arcs by torch's embedding bags, which is its fastest form of it."""
    flat = x.reshape(len(x), -1)
    ids, offsets = graph.arc_sources.to(x.device), graph.incoming.offsets[:-1].int().to(x.device)
    return F.embedding_bag(ids, flat, offsets, mode="sum").reshape(x.shape)


def _beside(heads: Tensor, value: Tensor) -> Tensor:
    """heads: (rows, *heads) shaped to divide value: (rows, *heads, d)."""
    return heads if heads.dim() == value.dim() else heads.reshape(*heads.shape, *[1] * (value.dim() - heads.dim()))


def _extremum(result: Tensor, winner: Tensor, value: Tensor, dst: Tensor, first: int, sign: int) -> None:
    """Fold a block into the running extremum; the first of equal arcs wins, and NaN wins over all."""
    index = dst.reshape(-1, *[1] * (value.dim() - 1)).expand_as(value)
    best = torch.full_like(result, float("-inf")).scatter_reduce_(0, index, value * sign, "amax")
    here = best.index_select(0, dst)
    tied = (value * sign == here) | (value.isnan() & here.isnan())
    ids = torch.arange(first, first + len(value), device=value.device)
    ids = ids.reshape(-1, *[1] * (value.dim() - 1)).expand_as(value)
    nobody = torch.iinfo(torch.int64).max
    candidates = torch.where(tied, ids, nobody)
    first_arc = torch.full(result.shape, nobody, device=value.device).scatter_reduce_(0, index, candidates, "amin")
    found = first_arc != nobody
    current = result * sign
    better = found & ((winner < 0) | (best > current) | (best.isnan() & ~current.isnan()))
    result.copy_(torch.where(better, best * sign, result))
    winner.copy_(torch.where(better, first_arc, winner.long()).int())


def _soft(result: Tensor, peak: Tensor, total: Tensor, score: Tensor, value: Tensor, dst: Tensor) -> None:
    """Fold a block into the running softmax-weighted sum."""
    index = dst.reshape(-1, *[1] * (score.dim() - 1)).expand_as(score)
    block_peak = torch.full_like(peak, float("-inf")).scatter_reduce_(0, index, score, "amax")
    fresh = torch.maximum(peak, block_peak)
    shrink = torch.where(peak == float("-inf"), torch.zeros_like(peak), torch.exp(peak - fresh))
    weight = torch.exp(score - fresh.index_select(0, dst))
    weight = torch.where(score == float("-inf"), torch.zeros_like(weight), weight)
    total.mul_(shrink).index_add_(0, dst, weight)
    result.mul_(_beside(shrink, result)).index_add_(0, dst, _beside(weight, value) * value)
    peak.copy_(fresh)


def _blocked_backward(
    task: Task, tensors: Sequence[Tensor], inner: Sequence[Tensor], needs: Sequence[bool], kept: Sequence[Tensor],
    upstream: Tensor,
) -> list[Tensor | None]:  # fmt: skip
    engine, graph = task.engine, task.graph
    columns = len(tensors)
    accumulator = engine.aggregation.accumulator
    gradients: list[Tensor | None] = [
        torch.zeros_like(tensor) if need else None for tensor, need in zip((*tensors, *inner), needs, strict=True)
    ]
    centre = (upstream * kept[0]).sum(-1, keepdim=True) if accumulator == "softmax" else None
    for block in _blocks(graph):
        src, dst = (ids[block].to(upstream.device) for ids in (graph.arc_sources, graph.arc_destinations))
        with torch.enable_grad():
            parts = [
                part.detach().requires_grad_(need and part.is_floating_point())
                for part, need in zip(_gathered(task, tensors, src, dst, block), needs, strict=False)
            ]
            messages = _messages(task, parts, src, dst, block)
        given = upstream.index_select(0, dst)
        if accumulator == "sum":
            seeds = [given]
        elif accumulator in {"max", "min"}:
            arcs = torch.arange(block.start, block.stop, dtype=torch.int32, device=given.device)
            arcs = arcs.reshape(-1, *[1] * (given.dim() - 1))
            seeds = [torch.where(kept[0].index_select(0, dst) == arcs, given, 0.0)]
        else:
            assert centre is not None
            score, value = (message.detach() for message in messages)
            weight = torch.exp(score - kept[1].index_select(0, dst)) / kept[2].index_select(0, dst)
            wide = _beside(weight, value)
            by_score = wide * ((given * value).sum(-1, keepdim=True) - centre.index_select(0, dst))
            seeds = [by_score.reshape(score.shape), wide * given]
        inputs = [part for part in parts if part.requires_grad] + [p for p in inner if p.requires_grad]
        pairs = [(message, seed) for message, seed in zip(messages, seeds, strict=True) if message.requires_grad]
        if not inputs or not pairs:
            continue
        found = iter(
            torch.autograd.grad([pair[0] for pair in pairs], inputs, [pair[1] for pair in pairs], allow_unused=True)
        )
        for k, part in enumerate([*parts, *inner]):
            if not part.requires_grad:
                continue
            gradient, target = next(found), gradients[k]
            if gradient is None or target is None:
                continue
            side = engine.columns[k].side if k < columns else "P"
            if side == "E":
                target[block] = gradient
            elif side == "P":
                target += gradient
            else:
                target.index_add_(0, src if side == "S" else dst, gradient.contiguous())
    return gradients
