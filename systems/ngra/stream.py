"""Training beyond memory: layers run over a `ChunkStore`, interval by interval, within a budget of bytes.

Each layer is swept over the chunks once forward and once or twice backward (see `schedule`). Between the sweeps,
vertex data lie in files of a scratch folder: inputs of layers, what the forward pass keeps for backward, gradients.
Sums over arcs are those of the kernels in memory; in ascending traversal they have the same bits.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from systems.ngra.choices import current_settings
from systems.ngra.engine import Engine
from systems.ngra.expression import Node, walk
from systems.ngra.graph import ArcWeight, GraphError, ProgramError
from systems.ngra.kernels import Chunk, Kernel, fresh_states, run_chunk
from systems.ngra.models import Network
from systems.ngra.plan import Situation
from systems.ngra.program import Layer, Leaves
from systems.ngra.schedule import TRAVERSALS, Schedule, Sweep, plan_schedule
from systems.ngra.store import ChunkStore
from systems.ngra.sweeps import InputArray, Interval, Runner, SweepPass, Traffic, VertexArray


@dataclass(frozen=True)
class EpochStats:
    """loss: mean over the mask, before the step; seconds; bytes read and written; chunk_loads: arc chunks;
    peak_bytes: most that the buffers held; overlap: the share of the shorter of loading and computing that was
    hidden behind the other."""

    loss: float
    seconds: float
    bytes_read: int
    bytes_written: int
    chunk_loads: int
    peak_bytes: int
    overlap: float


@dataclass
class _Streamed:
    """A layer, its plan, and its arrays on disk."""

    layer: Layer
    index: int
    plan: Any
    engines: tuple[Engine, ...]
    needs: list[list[bool]]
    kernels: list[tuple[Kernel, list[int]]]
    training: bool
    given: VertexArray
    result: VertexArray
    kept: list[list[VertexArray]] = field(default_factory=list)  # by aggregation: its states, then carried tangents
    upstream: list[VertexArray] = field(default_factory=list)


class StreamTrainer:
    """Trains a `Network` on a `ChunkStore` within `memory` bytes.

    model: layers of one kind of vertex data and no arc data; norm: arc weights as by `gcn_norm`, for a store that was
    built with self loops; traversal: "zigzag" reads least, "ascending" has the bits of a run in memory;
    selective: read only used rows of an interval: "auto" by measured rates, "never", or "always"; prefetch: load while
    computing; scratch: the folder of what lies between sweeps, by default beside the store.

    Extrema are always swept in ascending order: ties go to the first arc. Raises BudgetError with the smallest budget
    that would do, ProgramError for programs that cannot be streamed.
    """

    def __init__(
        self, model: Network, store: ChunkStore, memory: int, *, norm: bool = False, traversal: str = "zigzag",
        selective: str = "auto", prefetch: bool = True, scratch: str | Path | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        if traversal not in TRAVERSALS or selective not in {"auto", "never", "always"}:
            raise ProgramError(
                f"traversal {traversal!r}, selective {selective!r}: expected zigzag or ascending; auto, never or always"
            )
        if not store.width:
            raise GraphError(f"{store.folder} holds no vertex data; build it with features")
        self.model, self.store, self.memory, self.norm = model, store, memory, norm
        self.traversal, self.seed, self.epochs = traversal, seed, 0
        self.traffic = Traffic()
        self.threads = current_settings().thread_count
        self.rates = {"never": None, "always": (1.0, float("inf"))}.get(selective)
        if selective == "auto":
            self.rates = measured_rates(store)
        place = store.folder.parent if scratch is None else Path(scratch)
        self.scratch = Path(tempfile.mkdtemp(prefix=f".{store.folder.name}.scratch-", dir=place))
        self._runner = Runner(store, self.traffic, prefetch)
        self._arrays: list[VertexArray] = []
        try:
            self._layers = self._planned()
            self.schedules = self._schedules()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop the loading thread and remove the scratch folder."""
        self._runner.close()
        for array in self._arrays:
            array.close()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def __enter__(self) -> StreamTrainer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---------------------------------------------------------------------------------------------- planning

    def _array(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> VertexArray:
        made = VertexArray(self.scratch / name, shape, dtype, self.traffic)
        self._arrays.append(made)
        return made

    def _planned(self) -> list[_Streamed]:
        given: VertexArray = InputArray(self.store, self.traffic)
        found = []
        for index, layer in enumerate(self.model.layers):
            assert isinstance(layer, Layer)
            sample = torch.zeros(1, *given.shape, requires_grad=index > 0)
            arc = ArcWeight(torch.ones(1), torch.ones(1)) if self.norm else None
            dtypes = tuple(((side, ""), torch.float32) for side in "SD")
            pointwise = self.store.side >= current_settings().pointwise
            n, arcs = self.store.num_vertices, self.store.num_arcs
            situation = Situation(n, arcs, torch.float32, dtypes, index > 0, False, True, True, False, pointwise)
            plan = layer.planned({"": sample}, arc, torch.float32, situation)
            if plan.kernel == "blocked":
                raise ProgramError(f"layer {index} cannot be streamed: {plan.notes[-1]}; only what fuses can be")
            engines = tuple(Engine(plan.book, aggregation, torch.float32) for aggregation in plan.aggregations)
            one = torch.ones(1, dtype=torch.int64)
            leaves = self._leaves_of(layer, plan, Interval(1, one, one), sample, arc)
            needs = [[self._column(leaves, source).requires_grad for source in e.columns] for e in engines]
            kinds = [{source.leaf: torch.float32 for source in e.columns} for e in engines]
            kernels = [e.forward_kernel(kind, need) for e, kind, need in zip(engines, kinds, needs, strict=True)]
            gathered = {a.gather: torch.zeros(1, *e.shape) for a, e in zip(plan.aggregations, engines, strict=True)}
            out = leaves.result(plan.result, gathered)
            streamed = _Streamed(
                layer, index, plan, engines, needs, kernels, True, given,
                self._array(f"h{index + 1}", tuple(out.shape[1:])),
            )  # fmt: skip
            for k, (kernel, _) in enumerate(kernels):
                states = [state for output in kernel.outputs for state in output.states(torch.float32)]
                streamed.kept.append(
                    [self._array(f"kept{index}.{k}.{m}", shape, kind) for m, (shape, kind, _) in enumerate(states)]
                )
                streamed.upstream.append(self._array(f"upstream{index}.{k}", engines[k].shape))
            found.append(streamed)
            given = streamed.result
        self._gradients = [self._array(f"gradient{k}", layer.given.shape) for k, layer in enumerate(found)]
        self._gradients.append(self._array("gradient", given.shape))
        return found

    def _schedules(self) -> dict[str, Schedule]:
        """Every sweep of an epoch, in order."""
        found: dict[str, Schedule] = {}
        for todo in self._epoch_passes(None, None):
            found[todo.sweep.name] = todo.schedule
        return found

    @property
    def predicted(self) -> tuple[int, int]:
        """(bytes read, bytes written) of an epoch."""
        plans = self.schedules.values()
        return sum(plan.bytes_read for plan in plans), sum(plan.bytes_written for plan in plans)

    def _scheduled(self, sweep: Sweep, extremum: bool) -> Schedule:
        traversal = "ascending" if extremum else self.traversal
        return plan_schedule(self.store, sweep, self.memory, traversal, self.rates)

    # ------------------------------------------------------------------------------------------------ pieces

    def _interval(self, i: int) -> Interval:
        first, last = self.store.rows_of(i)
        return Interval(
            last - first, self.store.in_degree[first:last].long(), self.store.out_degree[first:last].long()
        )

    @staticmethod
    def _leaves_of(layer: Layer, plan: Any, view: Any, x: Tensor, arc: ArcWeight | None) -> Leaves:
        return Leaves(layer, view, {"": x}, arc, arc, torch.float32, plan.masked_sides)

    def _leaves(self, streamed: _Streamed, i: int, x: Tensor) -> Leaves:
        view = self._interval(i)
        arc = None
        if self.norm:
            scale = view.internal_in_degree.double().rsqrt()
            scale[torch.isinf(scale)] = 0.0
            arc = ArcWeight(scale, scale)
        return self._leaves_of(streamed.layer, streamed.plan, view, x, arc)

    @staticmethod
    def _column(leaves: Leaves, source: Any) -> Tensor:
        if source.side == "P":
            return leaves.parameter(source.expression)
        return leaves.column(source.expression, source.side)

    def _columns(self, streamed: _Streamed, leaves: Leaves, sides: str) -> dict[Node, dict[Node, Tensor]]:
        """By gather: the columns of some sides, by leaf."""
        return {
            engine.aggregation.gather: {
                source.leaf: self._column(leaves, source) for source in engine.columns if source.side in sides
            }
            for engine in streamed.engines
        }

    def _dropped(self, streamed: _Streamed, i: int, x: Tensor, training: bool) -> Tensor:
        """Dropout before a layer, the same at every load of an epoch."""
        share = self.model.dropout
        if not (training and share):
            return x
        generator = torch.Generator().manual_seed(
            hash((self.seed, self.epochs, streamed.index, i)) & 0x7FFF_FFFF_FFFF_FFFF
        )
        return x * (torch.rand(x.shape, generator=generator) >= share) / (1 - share)

    def _widths(self, streamed: _Streamed) -> tuple[int, int]:
        """(numbers in the columns, numbers in all values of the stages) per vertex."""
        columns = sum(source.leaf.width for engine in streamed.engines for source in engine.columns)
        roots = [streamed.plan.result, *(s.expression for e in streamed.engines for s in e.columns)]
        return columns, sum(node.width for node in walk(*roots) if node.sides)

    # ---------------------------------------------------------------------------------------------- forward

    def _forward(self, streamed: _Streamed, training: bool) -> SweepPass:
        store = self.store
        kept = [array for arrays in streamed.kept for array in arrays] if training else []
        columns, values = self._widths(streamed)
        states = sum(
            4 * (state_width(shape))
            for kernel, _ in streamed.kernels
            for output in kernel.outputs
            for shape, _, _ in output.states(torch.float32)
        )
        extremum = any(e.aggregation.accumulator in {"max", "min"} for e in streamed.engines)
        sweep = Sweep(
            f"forward of layer {streamed.index}", "forward", streamed.given.row_bytes, streamed.given.row_bytes,
            streamed.result.row_bytes + sum(array.row_bytes for array in kept), states + 4 * columns, 4 * columns,
            4 * values, extremum,
        )  # fmt: skip

        def begin(i: int, arrays: list[Tensor]) -> Any:
            with torch.no_grad():
                leaves = self._leaves(streamed, i, self._dropped(streamed, i, arrays[0], training))
                rows = leaves.graph.num_vertices
                return leaves, self._columns(streamed, leaves, "DP"), [
                    fresh_states(kernel, rows) for kernel, _ in streamed.kernels
                ]  # fmt: skip

        def columns_of(j: int, arrays: list[Tensor]) -> dict[Node, Any]:
            with torch.no_grad():
                leaves = self._leaves(streamed, j, self._dropped(streamed, j, arrays[0], training))
                return dict(self._columns(streamed, leaves, "S"))

        def visit(state: Any, neighbour: dict[Node, Any], chunk: Chunk) -> None:
            _, own, accumulated = state
            for engine, (kernel, _), states in zip(streamed.engines, streamed.kernels, accumulated, strict=True):
                gather = engine.aggregation.gather
                tensors = engine.laid_out(kernel, own[gather] | neighbour[gather], store.side)
                run_chunk(kernel, tensors, states, chunk, self.threads)

        def end(i: int, state: Any) -> None:
            leaves, _, accumulated = state
            first, _ = store.rows_of(i)
            gathered = {}
            with torch.no_grad():
                for engine, states, arrays in zip(streamed.engines, accumulated, streamed.kept, strict=True):
                    result = engine.finished(states[0], leaves.graph.internal_in_degree)
                    gathered[engine.aggregation.gather] = result
                    if training:
                        for array, part in zip(arrays, [s for parts in states for s in parts], strict=True):
                            array.write(first, part)
                streamed.result.write(first, leaves.result(streamed.plan.result, gathered))

        return SweepPass(
            sweep, self._scheduled(sweep, extremum), [streamed.given], [streamed.given], begin, columns_of, visit, end
        )

    # --------------------------------------------------------------------------------------------- backward

    def _loss(self, labels: Tensor | None, mask: Tensor | None, total: list[float]) -> SweepPass:
        last, target = self._layers[-1].result, self._gradients[-1]
        sweep = Sweep("loss", "", last.row_bytes, 0, target.row_bytes, 0, 0, 4 * last.row_bytes)

        def begin(i: int, arrays: list[Tensor]) -> Tensor:
            return arrays[0]

        def end(i: int, logits: Tensor) -> None:
            assert labels is not None
            assert mask is not None
            first, stop = self.store.rows_of(i)
            logits.requires_grad_()
            chosen = mask[first:stop]
            loss = F.cross_entropy(logits[chosen], labels[first:stop][chosen], reduction="sum") / int(mask.sum())
            total[0] += loss.item()
            gradient = torch.autograd.grad(loss, logits)[0] if bool(chosen.any()) else torch.zeros_like(logits)
            target.write(first, gradient)

        return SweepPass(sweep, self._scheduled(sweep, False), [last], [], begin, _no_columns, _no_visit, end)

    def _stage(self, streamed: _Streamed, by_parameter: dict[Any, Tensor]) -> SweepPass:
        """Backward of the vertex stage, and of the columns whose tangents were carried."""
        store, index = self.store, streamed.index
        arrays = [streamed.given, self._gradients[index + 1], *(array for part in streamed.kept for array in part)]
        written = [*streamed.upstream, *([self._gradients[index]] if index else [])]
        _, values = self._widths(streamed)
        read = sum(array.row_bytes for array in arrays)
        sweep = Sweep(
            f"vertex stage of layer {index} backward", "", read, 0, sum(array.row_bytes for array in written), 0, 0,
            3 * 4 * values,
        )  # fmt: skip

        def end(i: int, parts: list[Tensor]) -> None:
            first, _ = store.rows_of(i)
            x, upstream, *kept = parts
            x.requires_grad_(index > 0)
            leaves = self._leaves(streamed, i, self._dropped(streamed, i, x, True))
            gathered, states = {}, iter(kept)
            by_engine = []
            for engine, held in zip(streamed.engines, streamed.kept, strict=True):
                own = [next(states) for _ in held]
                by_engine.append(own)
                gathered[engine.aggregation.gather] = own[0].clone().requires_grad_()
            out = leaves.result(streamed.plan.result, gathered)
            if out.requires_grad:
                torch.autograd.backward([out], [upstream])
            for k, engine in enumerate(streamed.engines):
                leaf = gathered[engine.aggregation.gather]
                given = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
                streamed.upstream[k].write(first, given)
                found = engine.carried_gradients(given, by_engine[k], streamed.kernels[k][1])
                self._back(streamed, leaves, k, found, by_parameter)
            if index:
                self._gradients[index].write(first, torch.zeros_like(x) if x.grad is None else x.grad)

        return SweepPass(
            sweep, self._scheduled(sweep, False), arrays, [], lambda i, parts: parts, _no_columns, _no_visit, end
        )

    def _back(
        self, streamed: _Streamed, leaves: Leaves, k: int, found: Mapping[int, Tensor], by_parameter: dict[Any, Tensor]
    ) -> None:
        """Gradients by columns, back through the stages that gave them."""
        roots, gradients = [], []
        for column, gradient in found.items():
            source = streamed.engines[k].columns[column]
            if source.side == "P":
                key = (k, column)
                by_parameter[key] = by_parameter[key] + gradient if key in by_parameter else gradient
                continue
            root = self._column(leaves, source)
            if root.requires_grad:
                roots.append(root)
                gradients.append(gradient)
        if roots:
            torch.autograd.backward(roots, gradients, retain_graph=True)

    def _arcs(self, streamed: _Streamed, rows_are: str, by_parameter: dict[Any, Tensor]) -> SweepPass | None:
        """Backward over the arcs, with gradients by the columns of one side."""
        store, index = self.store, streamed.index
        jobs: list[tuple[int, Kernel, list[int]]] = []
        for k, engine in enumerate(streamed.engines):
            kinds = {source.leaf: torch.float32 for source in engine.columns}
            for kernel, side, wanted in engine.backward_kernels(kinds, streamed.needs[k], streamed.kernels[k][1]):
                if side == rows_are:
                    jobs.append((k, kernel, wanted))
        if not jobs:
            return None
        own_data = any(
            column.leaf.data[0] == "D" and str(column.leaf.data[1])[1:].isdigit()
            for _, kernel, _ in jobs
            for column in kernel.columns
        )
        target = [streamed.given] if own_data or rows_are == "D" else []
        for k, _, _ in jobs:
            target += [streamed.upstream[k], *_read_again(streamed, k)]
        rows, neighbours = (target, [streamed.given]) if rows_are == "D" else ([streamed.given], target)
        gradient = self._gradients[index] if index else None
        if gradient is not None:
            rows = [*rows, gradient]
        columns, values = self._widths(streamed)
        states = sum(4 * streamed.engines[k].columns[c].leaf.width for k, _, wanted in jobs for c in wanted)
        extremum = any(streamed.engines[k].aggregation.accumulator in {"max", "min"} for k, _, _ in jobs)
        read = sum(array.row_bytes for array in rows)
        sweep = Sweep(
            f"arcs of layer {index} backward, by {'sources' if rows_are == 'S' else 'destinations'}",
            "backward" if rows_are == "S" else "forward", read, sum(array.row_bytes for array in neighbours),
            gradient.row_bytes if gradient is not None else 0, states + 4 * columns, 4 * columns, 3 * 4 * values,
            extremum,
        )  # fmt: skip

        def of_targets(i: int, parts: list[Tensor]) -> dict[Node, Any]:
            """What kernels read of destinations: their columns, and what belongs to the gradient."""
            found: dict[Node, Any] = {}
            with torch.no_grad():
                columns_here: dict[Node, Any] = {}
                if target[0] is streamed.given:
                    leaves = self._leaves(streamed, i, self._dropped(streamed, i, parts[0], True))
                    columns_here = self._columns(streamed, leaves, "DP")
                rest = iter(parts[len(columns_here) > 0 :])
                for k, _, _ in jobs:
                    engine = streamed.engines[k]
                    upstream, kept = next(rest), [next(rest) for _ in _read_again(streamed, k)]
                    own = engine.backward_inputs(upstream, kept)
                    found[engine.aggregation.gather] = columns_here.get(engine.aggregation.gather, {}) | own
            return found

        def of_sources(i: int, parts: list[Tensor]) -> dict[Node, Any]:
            with torch.no_grad():
                leaves = self._leaves(streamed, i, self._dropped(streamed, i, parts[0], True))
                return dict(self._columns(streamed, leaves, "SP"))

        def begin(i: int, parts: list[Tensor]) -> Any:
            own = of_targets(i, parts) if rows_are == "D" else of_sources(i, parts)
            first, stop = store.rows_of(i)
            return parts, own, [fresh_states(kernel, stop - first) for _, kernel, _ in jobs]

        def columns_of(j: int, parts: list[Tensor]) -> dict[Node, Any]:
            return of_sources(j, parts) if rows_are == "D" else of_targets(j, parts)

        def visit(state: Any, neighbour: dict[Node, Any], chunk: Chunk) -> None:
            _, own, accumulated = state
            for (k, kernel, _), states in zip(jobs, accumulated, strict=True):
                gather = streamed.engines[k].aggregation.gather
                tensors = streamed.engines[k].laid_out(kernel, neighbour[gather] | own[gather], store.side)
                run_chunk(kernel, tensors, states, chunk, self.threads)

        def end(i: int, state: Any) -> None:
            parts, _, accumulated = state
            first, _ = store.rows_of(i)
            x = parts[0].requires_grad_(index > 0)
            leaves = self._leaves(streamed, i, self._dropped(streamed, i, x, True))
            for (k, _, wanted), states in zip(jobs, accumulated, strict=True):
                found = {}
                for column, part in zip(wanted, states, strict=True):
                    summed = streamed.engines[k].columns[column].side == "P"
                    found[column] = part[0].sum(0) if summed else part[0]
                self._back(streamed, leaves, k, found, by_parameter)
            if gradient is not None:
                gradient.write(first, parts[-1] if x.grad is None else parts[-1] + x.grad)

        return SweepPass(sweep, self._scheduled(sweep, extremum), rows, neighbours, begin, columns_of, visit, end)

    # ------------------------------------------------------------------------------------------------- running

    def _epoch_passes(
        self, labels: Tensor | None, mask: Tensor | None, total: list[float] | None = None
    ) -> Iterable[SweepPass]:
        """The sweeps of an epoch in order; what comes after a layer's backward sweeps is done in between."""
        for streamed in self._layers:
            yield self._forward(streamed, True)
        yield self._loss(labels, mask, [0.0] if total is None else total)
        for streamed in reversed(self._layers):
            by_parameter: dict[Any, Tensor] = {}
            yield self._stage(streamed, by_parameter)
            for side in "SD":
                found = self._arcs(streamed, side, by_parameter)
                if found is not None:
                    yield found
            for (k, column), gradient in by_parameter.items():
                one = torch.ones(1, dtype=torch.int64)
                view = Interval(1, one, one)
                leaves = self._leaves_of(streamed.layer, streamed.plan, view, torch.zeros(1, 1), None)
                root = leaves.parameter(streamed.engines[k].columns[column].expression)
                if root.requires_grad:
                    torch.autograd.backward([root], [gradient])

    def epoch(self, labels: Tensor, mask: Tensor, optimizer: torch.optim.Optimizer | None = None) -> EpochStats:
        """One step on all vertices: cross-entropy over those of the mask, mean; gradients are left in the parameters.

        labels: (vertices,) int64, mask: (vertices,) bool, or ids, in the user's order.
        """
        store, traffic = self.store, self.traffic
        if labels.shape != (store.num_vertices,):
            raise GraphError(f"labels have shape {tuple(labels.shape)}, expected ({store.num_vertices},)")
        if mask.dtype != torch.bool:
            chosen = torch.zeros(store.num_vertices, dtype=torch.bool)
            chosen[mask] = True
            mask = chosen
        if store.order is not None:
            labels, mask = labels[store.order], mask[store.order]
        begun = time.perf_counter()
        before = (traffic.read, traffic.written, traffic.chunks, traffic.load_seconds, traffic.compute_seconds)
        traffic.peak = traffic.held
        self.model.zero_grad()
        total = [0.0]
        self.model.train()
        for todo in self._epoch_passes(labels, mask, total):
            self._run(todo)
        if optimizer is not None:
            optimizer.step()
        self.epochs += 1
        seconds = time.perf_counter() - begun
        load, compute = traffic.load_seconds - before[3], traffic.compute_seconds - before[4]
        return EpochStats(
            total[0], seconds, traffic.read - before[0], traffic.written - before[1], traffic.chunks - before[2],
            traffic.peak, max(0.0, min(1.0, (load + compute - seconds) / max(1e-9, min(load, compute)))),
        )  # fmt: skip

    def _run(self, todo: SweepPass) -> None:
        if todo.sweep.direction:
            self._runner.run(todo)
        else:
            size = min(self.store.side, self.store.num_vertices) * (todo.sweep.row_bytes + todo.sweep.stage_bytes)
            self.traffic.hold(size + self.store.resident_bytes)
            self._runner.rows(todo)
            self.traffic.held -= size + self.store.resident_bytes

    def predict(self) -> Tensor:
        """(vertices, classes): the network's results without dropout, in the user's order."""
        self.model.eval()
        for streamed in self._layers:
            self._run(self._forward(streamed, False))
        last = self._layers[-1].result
        out = torch.empty(self.store.num_vertices, *last.shape)
        for i in range(self.store.intervals):
            first, stop = self.store.rows_of(i)
            part = last.read(first, stop)
            out[slice(first, stop) if self.store.order is None else self.store.order[first:stop]] = part
        return out


def measured_rates(store: ChunkStore, most: int = 8 << 20) -> tuple[float, float]:
    """Bytes a second of (sequential, scattered) reads of the store's vertex data."""
    n, size = store.num_vertices, 4 * store.width
    count = min(n, max(1, most // size))
    if count * size < 1 << 20:
        return 1.0, 1.0  # too little to measure, and to matter
    whole = torch.empty(count, store.width)
    begun = time.perf_counter()
    store.read_rows(0, count, whole)
    sequential = count * size / (time.perf_counter() - begun)
    part = max(1, (64 << 10) // size)
    starts = torch.randperm(max(1, n // part))[: max(1, count // part)].tolist()
    begun = time.perf_counter()
    for k in starts:
        store.read_rows(k * part, min(n, (k + 1) * part), whole[: min(n, (k + 1) * part) - k * part])
    return sequential, len(starts) * part * size / (time.perf_counter() - begun)


def _read_again(streamed: _Streamed, k: int) -> list[VertexArray]:
    """What an aggregation kept that its backward pass over the arcs reads."""
    accumulator = streamed.engines[k].aggregation.accumulator
    if accumulator == "softmax":
        return streamed.kept[k][:3]
    return streamed.kept[k][1:2] if accumulator in {"max", "min"} else []


def state_width(shape: Sequence[int]) -> int:
    """Numbers in a row of such a shape."""
    width = 1
    for extent in shape:
        width *= extent
    return width


def _no_columns(j: int, arrays: list[Tensor]) -> dict[Node, Tensor]:
    raise AssertionError("a sweep over rows has no neighbours")


def _no_visit(state: Any, columns: dict[Node, Tensor], chunk: Chunk) -> None:
    raise AssertionError("a sweep over rows has no chunks")
