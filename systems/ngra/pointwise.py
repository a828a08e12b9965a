"""Elementwise stretches of a vertex stage as one generated kernel each: one read of each input, one write.

`relu(linear + bias) * scale` is three passes over memory by torch, and as many again for its gradients; here it is
one and one. A stretch is run by the kernels of arcs, the "arcs" being the vertices, in rows of `BLOCK` of them: so
gradients of parameters are sums over a row, and then over the rows.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from systems.ngra import kernels
from systems.ngra.choices import current_settings
from systems.ngra.expression import COMPARISONS, ELEMENTWISE, Book, Call, Node, Slot, adjoints, evaluate, rewrite, walk
from systems.ngra.generation import Column, Output
from systems.ngra.graph import NGraError, Rows

BLOCK = 512
_FLOATING = {torch.float32, torch.float64}


class Pointwise:
    """An elementwise expression of vertices, as a function of its inputs; kernels are built on first use.

    inputs: leaves of side "E" for values of vertices, (vertices, *shape), and "P" for parameters, (*shape).
    """

    __name__ = "pointwise"

    def __init__(self, book: Book, root: Node, inputs: Sequence[Node], dtype: torch.dtype) -> None:
        self.book, self.root, self.inputs, self.dtype = book, root, tuple(inputs), dtype
        self.upstream = book.leaf("E", "#upstream", root.shape)

    def __call__(self, *tensors: Tensor) -> Tensor:
        """(vertices, *shape), under autograd."""
        if any(tensor.is_floating_point() and tensor.dtype != self.dtype for tensor in tensors):
            return self._by_torch(tensors)  # torch promotes types; a kernel has one
        return _Function.apply(self, current_settings().thread_count, *(tensor.to(self.dtype) for tensor in tensors))

    def _by_torch(self, tensors: Sequence[Tensor]) -> Tensor:
        given = dict(zip(self.inputs, tensors, strict=True))
        rows = self._rows(tensors)
        value: Tensor = evaluate(self.root, given.__getitem__, _no_modules, rows, self.dtype)
        return value.expand(rows, *self.root.shape)

    def _rows(self, tensors: Sequence[Tensor]) -> int:
        return next(len(t) for leaf, t in zip(self.inputs, tensors, strict=True) if leaf.data[0] == "E")

    @functools.cached_property
    def _gradients(self) -> list[Node | None]:
        return adjoints(self.book, {self.root: self.upstream}, self.inputs)

    @functools.cached_property
    def forward_kernel(self) -> kernels.Kernel:
        """Gives the value."""
        return self._compiled([Output("arc", (self.root,), self.root.shape)])

    def backward_kernel(self, wanted: tuple[int, ...]) -> kernels.Kernel:
        """Gives the gradients by the inputs that are `wanted`."""
        outputs = []
        for k in wanted:
            gradient, leaf = self._gradients[k], self.inputs[k]
            assert gradient is not None
            outputs.append(Output("sum" if leaf.data[0] == "P" else "arc", (gradient,), leaf.shape))
        return self._compiled(outputs)

    def _compiled(self, outputs: Sequence[Output]) -> kernels.Kernel:
        used = {node for output in outputs for part in output.nodes for node in walk(part)}
        columns = [
            Column(leaf, "row" if leaf.data[0] == "P" else "arc", self.dtype)
            for leaf in (*self.inputs, self.upstream)
            if leaf in used
        ]
        kernel = kernels.compiled(columns, outputs, self.dtype)
        if kernel is None:
            raise NGraError("a plan for native kernels was run without a C compiler")
        return kernel

    def run(self, kernel: kernels.Kernel, given: Mapping[Node, Tensor], rows: int, threads: int) -> list[Tensor]:
        """What a kernel gives: (vertices, *shape), or for a parameter (blocks, *shape)."""
        blocks = -(-rows // BLOCK)
        offsets = (torch.arange(blocks + 1) * BLOCK).clamp_(max=rows)
        tensors = []
        for column in kernel.columns:
            tensor = given[column.leaf]
            if column.role == "row":
                tensor = tensor.contiguous().expand(blocks, *tensor.shape)
            elif tensor.dim() > 1 and not tensor[:1].is_contiguous():
                tensor = tensor.contiguous()
            tensors.append(tensor)
        nothing = torch.zeros(0, dtype=torch.int32)
        found = kernels.run(kernel, tensors, Rows(offsets, nothing, None), None, threads, rows)
        return [states[0] for states in found]

    def forward(self, tensors: Sequence[Tensor], threads: int) -> Tensor:
        """The value, without autograd."""
        given = dict(zip(self.inputs, tensors, strict=True))
        return self.run(self.forward_kernel, given, self._rows(tensors), threads)[0]

    def backward(self, tensors: Sequence[Tensor], needs: Sequence[bool], upstream: Tensor, threads: int) -> list[Any]:
        """The gradients by the inputs that need one."""
        found: list[Tensor | None] = [None] * len(self.inputs)
        wanted = tuple(k for k, need in enumerate(needs) if need and self._gradients[k] is not None)
        if not wanted:
            return found
        given = dict(zip(self.inputs, tensors, strict=True)) | {self.upstream: upstream.contiguous()}
        results = self.run(self._backward_kernel(wanted), given, self._rows(tensors), threads)
        for k, result in zip(wanted, results, strict=True):
            found[k] = result.sum(0) if self.inputs[k].data[0] == "P" else result
        return found

    @functools.cached_property
    def _built(self) -> dict[tuple[int, ...], kernels.Kernel]:
        return {}

    def _backward_kernel(self, wanted: tuple[int, ...]) -> kernels.Kernel:
        if wanted not in self._built:
            self._built[wanted] = self.backward_kernel(wanted)
        return self._built[wanted]


def _no_modules(name: str) -> Any:
    raise AssertionError(f"an elementwise expression calls {name}")


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, stretch: Pointwise, threads: int, *tensors: Tensor) -> Tensor:
        ctx.stretch, ctx.threads = stretch, threads
        ctx.save_for_backward(*tensors)
        return stretch.forward(tensors, threads)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        needs = ctx.needs_input_grad[2:]
        return (None, None, *ctx.stretch.backward(ctx.saved_tensors, needs, upstream[0], ctx.threads))


def with_stretches(
    book: Book, roots: Sequence[Node], dtype: torch.dtype, leaf_dtypes: Mapping[Any, torch.dtype]
) -> list[Node]:
    """`roots` with every maximal elementwise stretch in place of a call of a `Pointwise`.

    A value that several others use is computed once: a stretch ends there. What runs below a gather is left alone.
    """
    users: dict[Node, int] = dict.fromkeys(roots, 2)
    for node in _above(roots):
        for arg in node.args:
            users[arg] = users.get(arg, 0) + 1

    def inside(node: Node) -> bool:
        return node.op in ELEMENTWISE and bool(node.sides)

    def collect(node: Node, leaves: dict[Node, Node]) -> Node:
        """The stretch below `node` over leaves; leaves: node -> the leaf that stands for it."""
        args = []
        for arg in node.args:
            if arg.op == "const":
                args.append(arg)
            elif inside(arg) and users[arg] == 1:
                args.append(collect(arg, leaves))
            else:
                if arg not in leaves:
                    leaves[arg] = book.leaf("E" if arg.sides else "P", f"#{len(leaves)}", arg.shape)
                args.append(leaves[arg])
        return book.make(node.op, args, node.data)

    def rule(node: Node) -> Node | None:
        if node.op == "gather":
            return node
        if not inside(node) or node.op in COMPARISONS or node in made:
            return made.get(node)
        leaves: dict[Node, Node] = {}
        root = collect(node, leaves)
        whole = [arg for arg in leaves if arg.op == "leaf" and leaf_dtypes.get(arg.data, dtype) not in _FLOATING]
        vertices = any(leaf.data[0] == "E" for leaf in leaves.values())
        if whole or not vertices or root.shape != node.shape or not kernels.supported(root):
            return None
        rebuilt = [rewrite(book, arg, rule) for arg in leaves]
        function = Pointwise(book, root, list(leaves.values()), dtype)
        call = Call(function, tuple(Slot(k) for k in range(len(rebuilt))), ())
        made[node] = book.make("call", rebuilt, call, node.shape, node.sides)
        return made[node]

    made: dict[Node, Node] = {}
    return [rewrite(book, root, rule) for root in roots]


def _above(roots: Sequence[Node]) -> list[Node]:
    found, stack, seen = [], list(roots), set()
    while stack:
        top = stack.pop()
        if id(top) not in seen:
            seen.add(id(top))
            found.append(top)
            if top.op != "gather":
                stack += top.args
    return found
