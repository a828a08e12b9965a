"""A plan: what a layer does on arcs and on vertices, and what each pass did. Immutable; printing explains it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from systems.ngra.expression import Book, Node


@dataclass(frozen=True)
class Situation:
    """What a plan may depend on beside the program: sizes, types, and which data need gradients or never change."""

    vertices: int
    arcs: int
    dtype: torch.dtype
    leaf_dtypes: tuple[tuple[tuple[str, str], torch.dtype], ...]
    needs_grad: bool  # some vertex data need a gradient
    constant: bool  # the vertex data are the same tensors as in the call before, and need no gradient
    optimize: bool
    native: bool
    triton: bool  # kernels are Triton's, for a GPU
    pointwise: bool  # elementwise stretches of vertex stages get kernels


@dataclass(frozen=True, eq=False)
class Source:
    """A column of a residual: what it is (an expression of one side), and the leaf that stands for it there."""

    expression: Node
    leaf: Node

    @property
    def side(self) -> str:
        """S, D, E, or P for what depends on parameters only."""
        assert isinstance(self.leaf.data, tuple)
        return str(self.leaf.data[0])


@dataclass(frozen=True, eq=False)
class Aggregation:
    """One pass over the arcs: its columns, what is evaluated per arc, and how the values are accumulated."""

    gather: Node
    accumulator: str
    columns: tuple[Source, ...]
    residual: tuple[Node, ...]
    kernel: str  # "spmm", "fused" or "blocked"
    constant: bool

    @property
    def width(self) -> int:
        """Numbers accumulated per vertex."""
        return self.gather.width


@dataclass(frozen=True, eq=False)
class Plan:
    """How a layer runs, stage by stage; `print(plan)` explains it.

    source_stage, destination_stage, edge_stage, vertex_stage: expressions, as text; kernel: "spmm", "fused" or
    "blocked", the least of its aggregations; width: numbers accumulated per vertex; FLOPs count matrix products of
    one forward pass, before and after; saved_bytes: what the aggregations keep for backward; notes: what each pass
    did, and why. The rest is for the engine.
    """

    source_stage: tuple[str, ...]
    destination_stage: tuple[str, ...]
    edge_stage: tuple[str, ...]
    vertex_stage: str
    kernel: str
    width: int
    arc_matmul_flops: int
    vertex_matmul_flops: int
    arc_matmul_flops_before: int
    vertex_matmul_flops_before: int
    saved_bytes: int
    notes: tuple[str, ...]
    book: Book
    result: Node
    aggregations: tuple[Aggregation, ...]
    masked_sides: frozenset[str]

    def __str__(self) -> str:
        def stage(name: str, lines: Sequence[str]) -> list[str]:
            return [f"{name:<12}{line}" if k == 0 else f"{'':<12}{line}" for k, line in enumerate(lines)]

        lines = [f"kernel      {self.kernel}, {self.width} numbers accumulated per vertex"]
        lines += stage("source", self.source_stage)
        lines += stage("destination", self.destination_stage)
        lines += stage("edge", self.edge_stage)
        lines += stage("vertex", [self.vertex_stage])
        lines.append(
            f"matmul      on arcs {self.arc_matmul_flops_before:,} -> {self.arc_matmul_flops:,} FLOP, "
            f"on vertices {self.vertex_matmul_flops_before:,} -> {self.vertex_matmul_flops:,} FLOP"
        )
        lines.append(f"saved       {self.saved_bytes:,} bytes for backward")
        lines += stage("passes", self.notes)
        return "\n".join(lines)
