"""The executable specification: arcs gathered, the user's functions called as they stand, rows accumulated in a loop.

Slow and plain on purpose. It shares no code with the plans, kernels or passes that it judges.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from systems.ngra.graph import ArcWeight, Graph


def reference(layer: nn.Module, graph: Graph, x: Any, edge: Any = None) -> Tensor:
    """layer(graph, x, edge), by definition. x, edge: as for `Layer`; autograd goes through.

    Sums run in ascending order of sources. Without in-arcs the accumulated value is 0. The first of equal arcs, in
    canonical order, is the one that max and min take.
    """
    src, dst = graph.arcs()
    if isinstance(edge, ArcWeight):
        first = next(iter(x.values())) if isinstance(x, dict) else x
        edge = edge.values(graph).to(first.dtype)
    # By destination, then source, in the graph's vertex order, then input position: the canonical order.
    key = graph.rank[dst] * max(1, graph.num_vertices) + graph.rank[src]
    order = torch.argsort(key, stable=True)
    source, destination, arc = (_rows(data, index) for data, index in ((x, src), (x, dst), (edge, order)))
    source, destination = _rows(source, order), _rows(destination, order)
    apply_edge: Any = layer.apply_edge
    message = apply_edge(source, destination, arc)
    owner = dst[order]
    accumulator = str(layer.accumulator)
    parts = message if isinstance(message, tuple | list) else (message,)
    shape = parts[-1].shape[1:]
    zero = torch.zeros(shape, dtype=parts[-1].dtype)
    rows = [
        _accumulated(accumulator, [part[owner == vertex] for part in parts], zero)
        for vertex in range(graph.num_vertices)
    ]
    accumulated = torch.stack(rows) if rows else torch.zeros(0, *shape, dtype=parts[-1].dtype)
    apply_vertex: Any = layer.apply_vertex
    return apply_vertex(x, accumulated)


def _rows(data: Any, index: Tensor) -> Any:
    if data is None:
        return None
    if isinstance(data, dict):
        return {name: part[index] for name, part in data.items()}
    return data[index]


def _accumulated(accumulator: str, parts: list[Tensor], zero: Tensor) -> Tensor:
    values = parts[-1]
    if not len(values):
        return zero
    if accumulator in {"sum", "mean"}:
        total = values[0]
        for value in values[1:]:
            total = total + value
        return total / len(values) if accumulator == "mean" else total
    if accumulator == "softmax":
        score = parts[0].reshape(*values.shape[:-1], 1)
        return (torch.softmax(score, 0) * values).sum(0)
    best = values[0]
    for value in values[1:]:
        better = value > best if accumulator == "max" else value < best
        best = torch.where(better | (value.isnan() & ~best.isnan()), value, best)
    return best
