"""The programming model: a layer is what an arc does, how arcs are accumulated, and what a vertex does with that.

    class GatedSum(Layer):
        accumulator = "sum"

        def apply_edge(self, src, dst, edge):
            return torch.sigmoid(self.to(dst) + self.of(src)) * src

        def apply_vertex(self, vertex, accum):
            return torch.relu(self.out(accum))

Scatter and Gather are never user code: that is what lets a layer run without a tensor of the size of the arcs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from systems import native
from systems.ngra import gpu
from systems.ngra.capture import Argument, trace
from systems.ngra.choices import Settings, current_settings
from systems.ngra.engine import Engine, aggregate
from systems.ngra.expression import Book, Call, Node, Slot, evaluate
from systems.ngra.graph import ArcWeight, Graph, GraphError, ProgramError
from systems.ngra.passes import build_plan
from systems.ngra.plan import Plan, Situation
from systems.ngra.ring import RingGraph, ring_aggregate

VertexData = Tensor | Mapping[str, Tensor]
ArcData = Tensor | Mapping[str, Tensor] | ArcWeight | None


def _has_compiler() -> bool:
    try:
        native.compiler()
    except native.NoCompiler:
        return False
    return True


def _device(vertex: Mapping[str, Tensor]) -> torch.device:
    """Where the vertex data are."""
    return next(iter(vertex.values())).device


def _kernels_of(chosen: Settings, device: torch.device, graph: Graph | RingGraph) -> tuple[bool, bool]:
    """(whether kernels are Triton's, whether they are C's). Raises ProgramError where what is asked for is not here."""
    if chosen.backend == "triton" or (chosen.backend == "auto" and device.type != "cpu"):
        if gpu.available(device) and isinstance(graph, Graph):
            return True, False
        if chosen.backend == "triton":
            raise ProgramError(
                f'backend is "triton", and the data are on {device}: it takes data on a GPU, or on the CPU with '
                "TRITON_INTERPRET=1, of a graph in one process"
            )
    if device.type != "cpu":
        if chosen.backend == "c":
            raise ProgramError(f'backend is "c", and the data are on {device}; move them to the CPU, or use "auto"')
        return False, False
    if chosen.backend == "c" and not _has_compiler():
        raise ProgramError('backend is "c", but there is no C compiler; "auto" falls back to torch')
    return False, chosen.backend != "torch" and _has_compiler()


@dataclass
class _Prepared:
    """A plan and its engines, and what a constant aggregation gave for which data."""

    plan: Plan
    engines: tuple[Engine, ...]
    sums: dict[int, Tensor] = field(default_factory=dict)
    made_for: tuple[Any, ...] | None = None


class Layer(nn.Module):
    """One layer of a graph network. A subclass gives `apply_edge`, `apply_vertex` and the accumulator.

    accumulator: "sum", "mean", "max", "min" or "softmax" (then `apply_edge` returns a score (arcs, heads) and a
    value (arcs, heads, d)). A vertex without in-arcs accumulates 0.
    """

    accumulator: str = "sum"

    def __init__(self) -> None:
        super().__init__()
        self._prepared: dict[Any, _Prepared] = {}
        self._seen: tuple[Any, ...] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prepared": {}, "_seen": None}

    def apply_edge(self, src: Any, dst: Any, edge: Any) -> Any:
        """The value of an arc from its source's, destination's and own data; by default the source's."""
        return src

    def apply_vertex(self, vertex: Any, accum: Any) -> Any:
        """A vertex's new data from its old ones and what it accumulated; by default the latter."""
        return accum

    def forward(self, graph: Graph | RingGraph, x: VertexData, edge: ArcData = None) -> Tensor:
        """(vertices, ...) new vertex data.

        x: (vertices, ...) float32 or float64, or a dict of them (then `src["name"]`); edge: likewise (arcs, ...) in
        the order in which the graph was given its arcs, or an `ArcWeight`. Differentiable.
        Raises GraphError where rows do not fit the graph, ProgramError where the program cannot be captured.
        """
        if graph.order is None:
            return self.inner(graph, x, edge)
        entered = graph.enter(x) if isinstance(x, Tensor) else {name: graph.enter(part) for name, part in x.items()}
        return graph.leave(self.inner(graph, entered, edge))

    def inner(self, graph: Graph | RingGraph, x: VertexData, edge: ArcData = None) -> Tensor:
        """As `forward`, with vertex data in and out in the graph's internal order (see `Graph.enter`)."""
        chosen = current_settings()
        vertex, arc, dtype = _checked(graph, x, edge)
        prepared = self._prepare(graph, vertex, arc, dtype, chosen)
        plan = prepared.plan
        leaves = Leaves(self, graph, vertex, arc, edge, dtype, plan.masked_sides)
        signature = _signature(graph, vertex)
        if prepared.made_for is None or not _same(prepared.made_for, signature):
            prepared.sums.clear()
            prepared.made_for = None
        gathered: dict[Node, Tensor] = {}
        threads = chosen.thread_count
        for k, (aggregation, engine) in enumerate(zip(plan.aggregations, prepared.engines, strict=True)):
            reusable = aggregation.constant and chosen.hoist and self._is_seen(signature)
            if reusable and k in prepared.sums:
                gathered[aggregation.gather] = prepared.sums[k]
                continue
            columns = [
                leaves.column(source.expression, source.side)
                if source.side != "P"
                else leaves.parameter(source.expression)
                for source in aggregation.columns
            ]
            if isinstance(graph, RingGraph):
                result = ring_aggregate(engine, graph, columns, threads)
            else:
                result = aggregate(engine, graph, columns, threads, self.get_submodule)
            gathered[aggregation.gather] = result
            if reusable and not result.requires_grad:
                prepared.sums[k] = result
                prepared.made_for = signature
        self._seen = signature if _unchanging(vertex) else None
        out = leaves.result(plan.result, gathered)
        if isinstance(out, Tensor):
            return out
        return torch.full((graph.num_vertices,), float(out), dtype=dtype, device=_device(vertex))

    def plan(self, graph: Graph | RingGraph, x: VertexData, edge: ArcData = None) -> Plan:
        """How this layer would run on such data; arguments as for `forward`."""
        vertex, arc, dtype = _checked(graph, x, edge)
        return self._prepare(graph, vertex, arc, dtype, current_settings()).plan

    def _is_seen(self, signature: tuple[Any, ...]) -> bool:
        return self._seen is not None and _same(self._seen, signature)

    def _prepare(
        self, graph: Graph | RingGraph, vertex: Mapping[str, Tensor], arc: Mapping[str, Tensor] | ArcWeight | None,
        dtype: torch.dtype, chosen: Settings,
    ) -> _Prepared:  # fmt: skip
        constant = chosen.hoist and _unchanging(vertex) and self._is_seen(_signature(graph, vertex))
        needs = torch.is_grad_enabled() and any(part.requires_grad for part in vertex.values())
        arcs: Any = "weight" if isinstance(arc, ArcWeight) else _look(arc)
        key = (
            _look(vertex), arcs, dtype, needs, constant, chosen.optimize, chosen.backend, self.training,
            graph.num_vertices, graph.num_arcs, self.accumulator, chosen.pointwise, str(_device(vertex)),
        )  # fmt: skip
        if key not in self._prepared:
            triton, native_kernels = _kernels_of(chosen, _device(vertex), graph)
            dtypes = {(side, name): part.dtype for side in "SD" for name, part in vertex.items()}
            if isinstance(arc, Mapping):
                dtypes |= {("E", name): part.dtype for name, part in arc.items()}
            situation = Situation(
                graph.num_vertices, graph.num_arcs, dtype, tuple(dtypes.items()), needs, constant, chosen.optimize,
                native_kernels or triton, triton,
                native_kernels and chosen.optimize and graph.num_vertices >= chosen.pointwise,
            )  # fmt: skip
            plan = self.planned(vertex, arc, dtype, situation)
            engines = tuple(Engine(plan.book, one, dtype, triton=triton) for one in plan.aggregations)
            self._prepared[key] = _Prepared(plan, engines)
        return self._prepared[key]

    def planned(
        self, vertex: Mapping[str, Tensor], arc: Mapping[str, Tensor] | ArcWeight | None, dtype: torch.dtype,
        situation: Situation,
    ) -> Plan:  # fmt: skip
        """The plan for data of such shapes and types (their rows do not matter), in a given situation."""
        book = Book()

        def argument(side: str, parts: Mapping[str, Tensor]) -> Argument:
            leaves = {name: book.leaf(side, name, part.shape[1:]) for name, part in parts.items()}
            return Argument(leaves, {name: part.dtype for name, part in parts.items()})

        edge: Argument | None = None
        if isinstance(arc, ArcWeight):
            product = book.mul(book.leaf("S", "@norm_source", (1,)), book.leaf("D", "@norm_destination", (1,)))
            edge = Argument({"": product}, {"": dtype})
        elif arc is not None:
            edge = argument("E", arc)
        source, destination = argument("S", vertex), argument("D", vertex)
        message = trace(book, self, "apply_edge", (source, destination, edge), dtype, random=False)
        messages = message if isinstance(message, tuple) else (message,)

        def finish(accumulated: Node) -> Node:
            given = Argument({"": accumulated}, {"": dtype})
            try:
                result = trace(book, self, "apply_vertex", (destination, given), dtype, random=True)
            except ProgramError:
                # Unlike an arc's, a vertex's function may be anything: it is called as it stands.
                names = tuple(destination.leaves)
                call = Call(_Literal(self, names), tuple(Slot(k) for k in range(len(names) + 1)), ())
                return book.make("call", (*destination.leaves.values(), accumulated), call, ())
            if isinstance(result, tuple):
                raise ProgramError("apply_vertex returns several results, expected one tensor")
            return result

        return build_plan(book, messages, self.accumulator, finish, situation)


class _Literal:
    """`apply_vertex` as a function of its leaves."""

    __name__ = "apply_vertex"

    def __init__(self, layer: Layer, names: tuple[str, ...]) -> None:
        self._layer, self._names = weakref.ref(layer), names

    def __call__(self, *values: Tensor) -> Tensor:
        layer = self._layer()
        assert layer is not None
        *vertex, accumulated = values
        single = self._names == ("",)
        return layer.apply_vertex(vertex[0] if single else dict(zip(self._names, vertex, strict=True)), accumulated)


class Leaves:
    """Values of the leaves of a plan on one graph, and of the expressions over them."""

    def __init__(
        self, layer: Layer, graph: Graph | RingGraph, vertex: Mapping[str, Tensor],
        arc: Mapping[str, Tensor] | ArcWeight | None,
        edge: ArcData, dtype: torch.dtype, masked: frozenset[str],
    ) -> None:  # fmt: skip
        self.layer, self.graph, self.vertex, self.dtype, self.masked = layer, graph, vertex, dtype, masked
        self.arc, self.device = arc, _device(vertex)
        self.known: dict[str, dict[Node, Any]] = {side: {} for side in "SDEPV"}

    def _constant(self, name: str) -> Tensor:
        """A number per vertex that follows from the graph: (vertices, 1) for weights, else (vertices,)."""
        graph = self.graph
        cache: dict[Any, tuple[Any, Tensor]] = graph.__dict__.setdefault("_constants", {})
        key = (name, id(self.arc) if name.startswith("@norm") else 0, self.dtype, str(self.device))
        if key not in cache:
            degree = graph.internal_in_degree
            if name == "@degree":
                value = degree.to(self.dtype)
            elif name == "@nonempty":
                value = degree > 0
            elif name == "@inverse_degree":
                value = 1 / degree.clamp(min=1).to(self.dtype)
            else:
                assert isinstance(self.arc, ArcWeight)
                part = self.arc.source if name == "@norm_source" else self.arc.destination
                value = graph.enter(part).to(self.dtype).unsqueeze(-1)
            value = value.to(self.device)
            cache[key] = (self.arc, value)  # the weight is kept, so that its id stays its own
        return cache[key][1]

    def _leaf(self, stage: str) -> Callable[[Node], Tensor]:
        def value(leaf: Node) -> Tensor:
            side, name = leaf.data
            if side == "P":
                found: Any = self.layer
                for part in str(name).split("."):
                    found = getattr(found, part)
                return found
            if str(name).startswith("@"):
                constant = self._constant(str(name))
                return constant.reshape(-1, *leaf.shape)
            if side == "E":
                assert isinstance(self.arc, Mapping)
                return self.graph.enter_arcs(self.arc[str(name)])
            data = self.vertex[str(name)]
            if stage in self.masked and stage in "SD" and data.is_floating_point():
                # A vertex without arcs on this side takes no part: ones instead of data that might have a pole.
                graph = self.graph
                degree = graph.internal_out_degree if stage == "S" else graph.internal_in_degree
                used = (degree > 0).to(data.device)
                if not bool(used.all()):
                    return torch.where(used.reshape(-1, *[1] * (data.dim() - 1)), data, 1.0)
            return data

        return value

    def column(self, expression: Node, side: str) -> Tensor:
        """(rows, *shape): an expression of one side."""
        rows = self.graph.num_arcs if side == "E" else self.graph.num_vertices
        value = evaluate(expression, self._leaf(side), self.layer.get_submodule, rows, self.dtype, self.known[side])
        return value.to(self.dtype) if value.dtype == torch.bool else value

    def parameter(self, expression: Node) -> Tensor:
        """An expression of parameters."""
        return evaluate(expression, self._leaf("P"), self.layer.get_submodule, 0, self.dtype, self.known["P"])

    def result(self, expression: Node, gathered: dict[Node, Tensor]) -> Any:
        """An expression of vertices."""
        leaf = self._leaf("V")

        def environment(node: Node) -> Tensor:
            return gathered[node] if node.op == "gather" else leaf(node)

        modules, rows = self.layer.get_submodule, self.graph.num_vertices
        return evaluate(expression, environment, modules, rows, self.dtype, self.known["V"])


# ------------------------------------------------------------------------------------------------------- checks


def _checked(
    graph: Graph | RingGraph, x: VertexData, edge: ArcData
) -> tuple[dict[str, Tensor], Mapping[str, Tensor] | ArcWeight | None, torch.dtype]:
    vertex = {"": x} if isinstance(x, Tensor) else dict(x)
    if not vertex:
        raise GraphError("x is an empty dict, expected at least one tensor of vertex data")
    dtypes = set()
    for name, part in vertex.items():
        dtypes |= _check_rows("x", name, part, graph.num_vertices, "vertices")
    arc: Mapping[str, Tensor] | ArcWeight | None = None
    if isinstance(edge, ArcWeight):
        arc = edge
        if len(edge.source) != graph.num_vertices:
            raise GraphError(f"the arc weight is of {len(edge.source)} vertices, the graph has {graph.num_vertices}")
    elif edge is not None:
        arc = {"": edge} if isinstance(edge, Tensor) else dict(edge)
        for name, part in arc.items():
            dtypes |= _check_rows("edge", name, part, graph.num_arcs, "arcs")
    if len(dtypes) > 1:
        raise ProgramError(f"data are of types {sorted(map(str, dtypes))}; give all of them in one")
    devices = {str(part.device) for part in (*vertex.values(), *(arc.values() if isinstance(arc, Mapping) else ()))}
    if len(devices) > 1:
        raise GraphError(f"data are on {', '.join(sorted(devices))}; move all of them to one device")
    dtype = dtypes.pop() if dtypes else torch.get_default_dtype()
    if dtype not in {torch.float32, torch.float64}:
        raise ProgramError(f"data are of type {dtype}, expected torch.float32 or torch.float64")
    return vertex, arc, dtype


def _check_rows(what: str, name: str, part: Any, rows: int, of: str) -> set[torch.dtype]:
    label = f"{what}[{name!r}]" if name else what
    if not isinstance(part, Tensor):
        raise GraphError(
            f"{label} is {type(part).__name__}, expected a tensor with one row for each of the {rows} {of}"
        )
    if part.dim() == 0 or len(part) != rows:
        raise GraphError(f"{label} has shape {tuple(part.shape)}, expected ({rows}, ...): one row for each of the {of}")
    if part.device.type not in {"cpu", "cuda"}:
        raise GraphError(f"{label} is on {part.device}; move it to the CPU or to a GPU")
    return {part.dtype} if part.is_floating_point() else set()


def _look(parts: Mapping[str, Tensor] | None) -> Any:
    if parts is None:
        return None
    return tuple((name, tuple(part.shape[1:]), part.dtype) for name, part in parts.items())


def _unchanging(vertex: Mapping[str, Tensor]) -> bool:
    return not any(part.requires_grad for part in vertex.values())


def _signature(graph: Graph | RingGraph, vertex: Mapping[str, Tensor]) -> tuple[Any, ...]:
    return (weakref.ref(graph), *((name, weakref.ref(part), part._version) for name, part in vertex.items()))


def _same(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    if len(a) != len(b) or a[0]() is not b[0]():
        return False
    return all(
        x[0] == y[0] and x[1]() is not None and x[1]() is y[1]() and x[2] == y[2]
        for x, y in zip(a[1:], b[1:], strict=True)
    )
