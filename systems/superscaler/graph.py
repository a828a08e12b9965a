"""The captured model: tensors, operators, and the graph that they form.

Immutable. A plan never rewires it: parts of operators name tensors by id and mask, and whoever reads what another
writes follows from the masks (see `sprogram`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

from systems.superscaler.annotations import Annotation
from systems.superscaler.errors import Unsupported
from systems.superscaler.mask import Box, Mask

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Graph", "Op", "PTensor", "Ref", "VTensor"]

BYTES = {
    "float64": 8, "int64": 8, "complex64": 8, "float32": 4, "int32": 4, "bfloat16": 2, "float16": 2, "int16": 2,
    "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip


@dataclass(frozen=True)
class PTensor:
    """A tensor of the model. kind: input, param, buffer, activation or loss; batch: (dimension, elements a sample).

    grad: whether a gradient flows to it. name: of the parameter, buffer or node that it was captured from.
    """

    id: int
    shape: tuple[int, ...]
    dtype: str
    kind: str
    name: str
    grad: bool = False
    batch: tuple[int, int] | None = None

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of the whole tensor."""
        return self.elements * BYTES[self.dtype]

    @property
    def item(self) -> int:
        """Bytes of an element."""
        return BYTES[self.dtype]


@dataclass(frozen=True)
class VTensor:
    """What an operator sees of a tensor: the box that its annotation speaks of."""

    tensor: int
    box: Box


@dataclass(frozen=True)
class Ref:
    """The place of the i-th tensor input among an operator's arguments."""

    index: int


@dataclass(frozen=True, eq=False)
class Op:
    """An operator. target: `aten.linear.default` or one of ours; arguments: constants and `Ref`s, nested tuples.

    module: the path of the module that called it; block: the index of the repeated block it is in, -1 for none.
    prologue: it depends on inputs only and sums over the batch, so it runs once a step, before any micro-batch.
    blocked: why the batch cannot be split here, or None.
    """

    id: int
    target: str
    inputs: tuple[VTensor, ...]
    output: int
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    annotation: Annotation
    name: str
    module: str = ""
    block: int = -1
    grad: bool = True
    prologue: bool = False
    blocked: str | None = None
    flops: float = 0.0

    def __str__(self) -> str:
        where = f" in {self.module}" if self.module else ""
        return f"{self.name} ({self.target.removeprefix('aten.').removesuffix('.default')}{where})"


@dataclass(frozen=True, eq=False)
class Graph:
    """Operators in an order that respects dependencies; `loss` is the id of the scalar that training minimises.

    outputs: tensors that a forward pass returns; samples: the size of the batch.
    """

    tensors: tuple[PTensor, ...]
    ops: tuple[Op, ...]
    inputs: tuple[int, ...]
    loss: int
    samples: int
    constants: Mapping[int, Tensor] = field(default_factory=dict)
    passes: int = 1

    @cached_property
    def producer(self) -> Mapping[int, Op]:
        """Tensor id -> the operator that writes it."""
        return {op.output: op for op in self.ops}

    @cached_property
    def consumers(self) -> Mapping[int, tuple[tuple[Op, int], ...]]:
        """Tensor id -> the (operator, input index) pairs that read it."""
        found: dict[int, list[tuple[Op, int]]] = {t.id: [] for t in self.tensors}
        for op in self.ops:
            for i, v in enumerate(op.inputs):
                found[v.tensor].append((op, i))
        return {t: tuple(c) for t, c in found.items()}

    @property
    def parameters(self) -> tuple[PTensor, ...]:
        """The trainable and frozen parameters; tied ones are one tensor."""
        return tuple(t for t in self.tensors if t.kind == "param")

    @cached_property
    def blocks(self) -> int:
        """Number of repeated blocks."""
        return max((op.block for op in self.ops), default=-1) + 1

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the structure: operators, constants, shapes and types. Weights do not enter."""
        content = [
            [op.target, [(v.tensor, v.box) for v in op.inputs], op.output, repr(op.arguments), repr(dict(op.keywords))]
            for op in self.ops
        ]
        content.append([[t.shape, t.dtype, t.kind, t.name] for t in self.tensors])
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def microbatch_box(self, tensor: PTensor, box: Box, samples: tuple[int, int] | None) -> Box:
        """`box` cut down to the samples of a micro-batch."""
        if samples is None or tensor.batch is None:
            return box
        dim, unit = tensor.batch
        lo, hi = max(box[dim][0], samples[0] * unit), min(box[dim][1], samples[1] * unit)
        return (*box[:dim], (lo, hi), *box[dim + 1 :])

    def run(self, values: Mapping[str, Tensor], batch: Sequence[Any], *, step: int = 0, seed: int = 0) -> Tensor:
        """The loss, by running every operator whole on one device: the reference of every plan.

        values: parameters and buffers by name; batch: the inputs in the order of capture.
        """
        from systems.superscaler.operators import evaluate

        held: dict[int, Any] = dict(self.constants)
        for t in self.tensors:
            if t.kind in ("param", "buffer") and t.id not in held:
                held[t.id] = values[t.name]
        held.update(zip(self.inputs, batch, strict=True))
        for op in self.ops:
            tensors = [held[v.tensor][narrow(v.box)] if v.box else held[v.tensor] for v in op.inputs]
            held[op.output] = evaluate(op, {}, tensors, step=step, seed=seed, graph=self)
        return held[self.loss]

    def __repr__(self) -> str:
        weights = sum(t.elements for t in self.parameters)
        return f"Graph({len(self.ops)} operators, {weights:,} parameters, {self.blocks} blocks, {self.samples} samples)"


def narrow(box: Box) -> tuple[slice, ...]:
    """A box as an index."""
    return tuple(slice(lo, hi) for lo, hi in box)


def check_loss(tensor: PTensor) -> None:
    """Raise Unsupported unless a tensor can be minimised."""
    if tensor.shape != () or not tensor.grad:
        raise Unsupported(
            f"the model returns {tensor.name} of shape {tensor.shape}, {tensor.dtype}"
            f"{'' if tensor.grad else ', which depends on no trainable parameter'}: training needs a scalar loss; "
            "return it first"
        )


def full_mask(tensor: PTensor) -> Mask:
    """The whole of a tensor."""
    return Mask.full(tensor.shape)
