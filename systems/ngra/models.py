"""Layers of the paper's five applications, GAT and GraphSAGE, each a few lines; and a trainable stack of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from systems.ngra.capture import typed_linear
from systems.ngra.graph import Graph, ProgramError
from systems.ngra.program import ArcData, Layer, VertexData
from systems.ngra.ring import RingGraph

Activation = Callable[[Any], Any]


def identity(x: Any) -> Any:
    """The activation of a last layer."""
    return x


class CommNet(Layer):
    """relu(W_h h_i + W_c sum_j h_j) (Sukhbaatar et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, activation: Activation = torch.relu) -> None:
        super().__init__()
        self.own, self.heard = nn.Linear(inputs, outputs), nn.Linear(inputs, outputs, bias=False)
        self.activation = activation

    def apply_vertex(self, vertex: Any, accum: Any) -> Any:
        return self.activation(self.own(vertex) + self.heard(accum))


class GCN(Layer):
    """relu(W sum_j w_ji h_j + b), with arc weights from `gcn_norm` (Kipf and Welling 2017)."""

    def __init__(self, inputs: int, outputs: int, activation: Activation = torch.relu) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.activation = activation

    def apply_edge(self, src: Any, dst: Any, edge: Any) -> Any:
        if edge is None:
            raise ProgramError("GCN needs arc weights: graph, weight = gcn_norm(graph), then layer(graph, x, weight)")
        return edge * src

    def apply_vertex(self, vertex: Any, accum: Any) -> Any:
        return self.activation(self.linear(accum))


class MaxPoolGCN(Layer):
    """relu(W [max_j sigmoid(W_p h_j + b_p) ; h_i]) (the pooling aggregator of Hamilton et al. 2017)."""

    accumulator = "max"

    def __init__(
        self, inputs: int, outputs: int, pooled: int | None = None, activation: Activation = torch.relu
    ) -> None:
        super().__init__()
        self.pool = nn.Linear(inputs, pooled or inputs)
        self.linear = nn.Linear((pooled or inputs) + inputs, outputs)
        self.activation = activation

    def apply_edge(self, src: Any, dst: Any, edge: Any) -> Any:
        return torch.sigmoid(self.pool(src))

    def apply_vertex(self, vertex: Any, accum: Any) -> Any:
        return self.activation(self.linear(torch.cat([accum, vertex], -1)))


class GatedGCN(Layer):
    """relu(W sum_j sigmoid(W_d h_i + W_s h_j) * h_j) (Marcheggiani and Titov 2017, as the paper lists it)."""

    def __init__(self, inputs: int, outputs: int, activation: Activation = torch.relu) -> None:
        super().__init__()
        self.target, self.source = nn.Linear(inputs, inputs), nn.Linear(inputs, inputs, bias=False)
        self.linear = nn.Linear(inputs, outputs)
        self.activation = activation

    def apply_edge(self, src: Any, dst: Any, edge: Any) -> Any:
        return torch.sigmoid(self.target(dst) + self.source(src)) * src

    def apply_vertex(self, vertex: Any, accum: Any) -> Any:
        return self.activation(self.linear(accum))


class GGNN(Layer):
    """GRU(sum_j A[type of the arc] h_j, h_i) (Li et al. 2016). Arc data: (arcs,) integer types."""

    def __init__(self, width: int, types: int) -> None:
        super().__init__()
        self.matrices = nn.Parameter(torch.empty(types, width, width))
        nn.init.uniform_(self.matrices, -(width**-0.5), width**-0.5)
        self.cell = nn.GRUCell(width, width)

    def apply_edge(self, src: Any, dst: Any, edge: Any) -> Any:
        return typed_linear(src, self.matrices, edge)

    def apply_vertex(self, vertex: Any, accum: Any) -> Any:
        return self.cell(accum, vertex)


class GAT(Layer):
    """Attention over in-arcs: softmax_j leaky_relu(a . W h_j + b . W h_i), per head (Velickovic et al. 2018).

    Gives (vertices, heads * outputs), or the heads' mean with `concat=False`.
    """

    accumulator = "softmax"

    def __init__(
        self, inputs: int, outputs: int, heads: int = 1, concat: bool = True, activation: Activation = F.elu
    ) -> None:
        super().__init__()
        self.heads, self.outputs, self.concat = heads, outputs, concat
        self.linear = nn.Linear(inputs, heads * outputs, bias=False)
        self.from_source, self.from_target = (
            nn.Parameter(torch.empty(heads, outputs)),
            nn.Parameter(torch.empty(heads, outputs)),
        )
        self.bias = nn.Parameter(torch.zeros(heads * outputs if concat else outputs))
        for weight in (self.linear.weight, self.from_source, self.from_target):
            nn.init.xavier_uniform_(weight)
        self.activation = activation

    def apply_edge(self, src: Any, dst: Any, edge: Any) -> Any:
        value = self.linear(src).view(-1, self.heads, self.outputs)
        seen = self.linear(dst).view(-1, self.heads, self.outputs)
        score = (value * self.from_source).sum(-1) + (seen * self.from_target).sum(-1)
        return F.leaky_relu(score, 0.2), value

    def apply_vertex(self, vertex: Any, accum: Any) -> Any:
        joined = accum.flatten(1) if self.concat else accum.mean(1)
        return self.activation(joined + self.bias)


class GraphSAGE(Layer):
    """relu(W_h h_i + W_n mean_j h_j) (Hamilton et al. 2017)."""

    accumulator = "mean"

    def __init__(self, inputs: int, outputs: int, activation: Activation = torch.relu) -> None:
        super().__init__()
        self.own, self.neighbours = nn.Linear(inputs, outputs), nn.Linear(inputs, outputs, bias=False)
        self.activation = activation

    def apply_vertex(self, vertex: Any, accum: Any) -> Any:
        return self.activation(self.own(vertex) + self.neighbours(accum))


class Network(nn.Module):
    """Layers one after the other, with dropout before each of them while training.

    Vertex data go to the graph's internal order once, and come back once.
    """

    def __init__(self, layers: Iterable[Layer], dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.dropout = dropout
        self._entered: tuple[Any, ...] | None = None

    def forward(self, graph: Graph | RingGraph, x: VertexData, edge: ArcData = None) -> Tensor:
        """(vertices, ...): as for `Layer.forward`; x must be one tensor beyond the first layer."""
        current = self._enter(graph, x)
        for layer in self.layers:
            assert isinstance(layer, Layer)
            if self.dropout and self.training:
                current = F.dropout(current, self.dropout) if isinstance(current, Tensor) else {
                    name: F.dropout(part, self.dropout) for name, part in current.items()
                }  # fmt: skip
            current = layer.inner(graph, current, edge)
        assert isinstance(current, Tensor)
        return graph.leave(current)

    def _enter(self, graph: Graph | RingGraph, x: VertexData) -> VertexData:
        """Constant data keep their internal form, so that what a layer found out about them stays true."""
        if graph.order is None:
            return x
        if not isinstance(x, Tensor):
            return {name: graph.enter(part) for name, part in x.items()}
        if x.requires_grad:
            return graph.enter(x)
        held = self._entered
        if held is None or held[0] is not graph or held[1] is not x or held[2] != x._version:
            self._entered = held = (graph, x, x._version, graph.enter(x))
        return held[3]
