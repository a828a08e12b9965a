"""What a part of an operator costs: arithmetic, bytes it touches, bytes that autograd keeps, bytes it needs meanwhile.

The simulator and the search read the same figures, so that they differ in schedule and communication alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from systems.superscaler.graph import Graph, Op
from systems.superscaler.mask import Box, Interval

__all__ = ["Cost", "Pricing"]

VIEWS = frozenset({
    "view", "transpose", "permute", "t", "unsqueeze", "squeeze", "select", "slice", "expand", "unflatten", "flatten",
    "narrow", "view_as", "expand_as",
})  # fmt: skip
"""Operators that move no element. A `reshape` may copy, and is taken to."""

LINEAR = VIEWS | {"reshape", "add", "sub", "neg", "sum", "mean", "roll", "cat", "clone", "detach", "rsub", "contiguous"}
"""Operators whose backward needs none of their inputs, so these are not kept for them."""


@dataclass(frozen=True)
class Cost:
    """flops; touched, kept, workspace: bytes, forward. Backward is twice as much work and touches twice as much."""

    flops: float
    touched: float
    kept: float
    workspace: float


def name_of(op: Op) -> str:
    """`linear` of `aten.linear.default`."""
    return op.target.rpartition("aten.")[2].partition(".")[0]


class Pricing:
    """The costs of parts of a graph's operators. fused: attention keeps no scores."""

    def __init__(self, graph: Graph, *, fused: bool = True) -> None:
        self.graph, self.fused = graph, fused
        self._kept: dict[int, bool] = {}
        for op in reversed(graph.ops):
            self._kept[op.output] = any(
                self._kept[user.output] if name_of(user) in VIEWS else name_of(user) not in LINEAR
                for user, _ in graph.consumers[op.output]
                if user.grad
            )

    def keeps(self, op: Op) -> bool:
        """Whether autograd keeps the output: some operator needs it for its backward, and it is no view."""
        return op.grad and self._kept[op.output] and name_of(op) not in VIEWS

    def cost(self, op: Op, ranges: Mapping[str, Interval]) -> Cost:
        """Of the part of an operator with these intervals."""
        tensors, annotation = self.graph.tensors, op.annotation
        name = name_of(op)
        if name in VIEWS:
            return Cost(0.0, 0.0, 0.0, 0.0)
        share = 1.0
        for ident, (lo, hi) in ranges.items():
            share *= (hi - lo) / annotation.sizes[ident] if annotation.sizes.get(ident) else 1.0
        out = size(annotation.box(annotation.outputs[0], ranges), tensors[op.output].item)
        touched = out
        weights = 0.0  # their gradients have buffers of their own
        for v, dims in zip(op.inputs, annotation.inputs, strict=True):
            read = size(annotation.box(dims or (), ranges), tensors[v.tensor].item)
            touched += read
            weights += read if tensors[v.tensor].kind != "activation" else 0.0
        kept = out if self.keeps(op) else 0.0
        workspace = touched - weights if op.grad else out  # in its backward: gradients of what it read and wrote
        if name == "embedding":
            touched = workspace = 2 * out
        if name == "scaled_dot_product_attention" and not self.fused:
            q, k = (annotation.box(annotation.inputs[i] or (), ranges) for i in (0, 1))
            scores = size(q[:-1], tensors[op.output].item) * (k[-2][1] - k[-2][0])
            touched += 4 * scores  # written, read and written by the softmax, read by the second product
            kept += scores if op.grad else 0.0
            workspace += 2 * scores  # gradients of both sides of the softmax
        return Cost(op.flops * share, touched, kept, workspace)


def size(box: Box, item: int) -> float:
    """Bytes of a box."""
    n = float(item)
    for lo, hi in box:
        n *= hi - lo
    return n
