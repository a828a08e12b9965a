"""The back end `triton`: a graph as launches of the kernels of `kernels`, everything else by torch, on a CUDA device.

Convolutions, linear layers and matrix products of both profiles are our kernels, since a library's may sum in any
order. What remains is exact or rounds once an operation: pools, sums and products of two tensors, tables.

Importing this module imports triton. Under TRITON_INTERPRET=1, set before that, the same kernels run on CPU tensors.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from systems.agatha import integer
from systems.agatha.descriptor import CONVOLUTIONS, Op, Profile, UnsupportedOperator
from systems.agatha.graph import Graph, Node
from systems.agatha.kernels import chain_kernel, conv8_kernel, depthwise_kernel

__all__ = ["Executor", "available", "interpreted"]

Step = Callable[..., Tensor]
"""From the inputs of a node to its output: (n, h, w, c) contiguous tensors on one device."""


def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter, on CPU tensors."""
    return isinstance(conv8_kernel, InterpretedFunction)


def available() -> bool:
    """Whether there is a device to run on."""
    return torch.cuda.is_available() or interpreted()


class Executor:
    """A graph made ready to run. Weights lie on the device that is current when it is made."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._device = torch.device("cpu") if interpreted() else torch.device("cuda", torch.cuda.current_device())
        self._steps = [(i, node.inputs, self._step(i, node)) for i, node in enumerate(graph.nodes) if i]

    def __call__(self, x: Tensor) -> Tensor:
        """x: (n, h, w, c) uint8 or float32 -> the last node's output, on the device."""
        *_, last = self._values(x, keep=False)
        return last

    def outputs(self, x: Tensor) -> Iterator[Tensor]:
        """The output of each node in order, node 0 first."""
        return self._values(x, keep=True)

    @torch.no_grad()
    def _values(self, x: Tensor, *, keep: bool) -> Iterator[Tensor]:
        values: list[Tensor | None] = [None] * len(self._graph.nodes)
        values[0] = first = x.to(self._device).contiguous()
        yield first
        for i, inputs, step in self._steps:
            with torch.cuda.device(self._device) if self._device.type == "cuda" else contextlib.nullcontext():
                values[i] = value = step(*(values[j] for j in inputs))
            yield value
            if not keep:
                for j in integer.dying(self._graph, i):
                    values[j] = None

    def _step(self, i: int, node: Node) -> Step:
        exact = self._graph.profile is Profile.INT8
        if node.op in CONVOLUTIONS:
            return self._depthwise(i, node) if _is_depthwise(node) else self._convolution(i, node)
        if exact:
            return _nhwc(integer.step(self._graph, i, False))
        if node.op is Op.MATMUL:
            return functools.partial(self._matmul, node)
        if node.op is Op.LUT:
            raise UnsupportedOperator(f"node {i} ({node.name}): profile ieee32 has no tables")
        compute = _BINARY32[node.op]
        return lambda a, *b: _numbers(node, compute(node, a.reshape(len(a), *node.input_shape), *b))

    # -- our kernels

    def _convolution(self, i: int, node: Node) -> Step:
        if node.op is Op.LINEAR and node.input_shape[:2] == node.kernel:
            h, w, c = 1, 1, math.prod(node.input_shape)  # the whole input is one pixel
            kernel = (1, 1)
        else:
            (h, w, c), kernel = node.input_shape, node.kernel
        extents = _extents(node, (h, w, c), kernel) | {"C_OUT": node.shape[2], "GROUPS": node.groups}
        outputs = node.shape[2] // node.groups
        if self._graph.profile is Profile.IEEE32:
            return self._chain(node, extents, outputs)
        weight, bias = node.weight, node.bias
        assert weight is not None
        assert bias is not None
        zero = self._graph.nodes[node.inputs[0]].scale.zero
        sums = weight.reshape(len(weight), -1).sum(1, dtype=np.int64)
        tables = self._put(weight), self._put(bias + (128 - zero) * sums), self._put(node.shifts)
        extents |= self._epilogue(node) | {"ZERO_X": zero}
        depth = 32 if c // node.groups <= 32 else 64
        tile = {"PIXELS": 128, "OUTPUTS": _width(outputs, 128), "DEPTH": depth}

        def convolve(x: Tensor, residual: Tensor | None = None) -> Tensor:
            y = torch.empty((len(x), *node.shape), dtype=torch.uint8, device=x.device)
            pixels = len(x) * node.shape[0] * node.shape[1]
            grid = (triton.cdiv(pixels, tile["PIXELS"]), triton.cdiv(outputs, tile["OUTPUTS"]), node.groups)
            other = x if residual is None else residual
            conv8_kernel[grid](x, *tables, other, y, pixels, **extents, **tile, num_warps=8, num_stages=3)
            return y

        return convolve

    def _chain(self, node: Node, extents: dict[str, int], outputs: int) -> Step:
        assert node.weight is not None
        weight = self._put(node.weight.reshape(len(node.weight), -1).T)  # (kh kw c, o)
        bias = self._put(node.bias)
        tile = {"PIXELS": 64, "OUTPUTS": _width(outputs, 64)}

        def convolve(x: Tensor, residual: Tensor | None = None) -> Tensor:
            y = torch.empty((len(x), *node.shape), dtype=torch.float32, device=x.device)
            _launch_chain(x, weight, bias, residual, y, node, extents, tile)
            return y

        return convolve

    def _matmul(self, node: Node, a: Tensor, b: Tensor) -> Tensor:
        """Sample by sample: the rows of b are weights of a 1 x 1 convolution over the rows of a."""
        (_, rows, columns), depth = node.shape, node.input_shape[2]
        y = torch.empty((len(a), *node.shape), dtype=torch.float32, device=a.device)
        bias = torch.zeros(columns, device=a.device)
        extents = _extents(node, (1, rows, depth), (1, 1)) | {"C_OUT": columns, "GROUPS": 1}
        tile = {"PIXELS": 64, "OUTPUTS": _width(columns, 64)}
        for left, right, out in zip(a, b, y, strict=True):
            weight = right.reshape(columns, depth).T.contiguous()
            _launch_chain(left[None], weight, bias, None, out[None], node, extents, tile)
        return y

    def _depthwise(self, i: int, node: Node) -> Step:
        exact = self._graph.profile is Profile.INT8
        c = node.shape[2]
        assert node.weight is not None
        weight = self._put(node.weight.reshape(c, -1).T)  # (kh kw, c)
        bias = self._put(node.bias)
        shifts = self._put(node.shifts) if exact else bias
        extents: dict[str, Any] = _extents(node, node.input_shape, node.kernel) | self._epilogue(node)
        extents["ZERO_X"] = self._graph.nodes[node.inputs[0]].scale.zero if exact else 0
        tile = {"PIXELS": 32, "CHANNELS": _width(c, 64)}
        bounds = (0.0, 0.0) if exact else (float(node.lo), float(node.hi))

        def convolve(x: Tensor, residual: Tensor | None = None) -> Tensor:
            y = torch.empty((len(x), *node.shape), dtype=x.dtype, device=x.device)
            pixels = len(x) * node.shape[0] * node.shape[1]
            grid = (triton.cdiv(pixels, tile["PIXELS"]), triton.cdiv(c, tile["CHANNELS"]))
            other = x if residual is None else residual
            depthwise_kernel[grid](
                x, weight, bias, shifts, other, y, pixels, *bounds, **extents, EXACT=exact, **tile, num_warps=4
            )
            return y

        return convolve

    def _epilogue(self, node: Node) -> dict[str, int]:
        exact = self._graph.profile is Profile.INT8
        return {
            "ZERO_R": self._graph.nodes[node.inputs[1]].scale.zero if exact and node.residual else 0,
            "ZERO_Y": node.scale.zero if exact else 0,
            "RESIDUAL": int(node.residual),
            "SHIFT_R": node.residual_shift if exact and node.residual else 0,
            "LO": int(node.lo) if exact else 0,
            "HI": int(node.hi) if exact else 0,
        }

    def _put(self, array: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)


def _launch_chain(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, y: Tensor, node: Node,
    extents: dict[str, int], tile: dict[str, int],
) -> None:  # fmt: skip
    pixels = len(x) * extents["H_OUT"] * extents["W_OUT"]
    outputs = extents["C_OUT"] // extents["GROUPS"]
    grid = (triton.cdiv(pixels, tile["PIXELS"]), triton.cdiv(outputs, tile["OUTPUTS"]), extents["GROUPS"])
    chain_kernel[grid](
        x, weight, bias, x if residual is None else residual, y, pixels, float(node.lo), float(node.hi), **extents,
        RESIDUAL=int(residual is not None), **tile, num_warps=4,
    )  # fmt: skip


def _extents(node: Node, shape: tuple[int, int, int], kernel: tuple[int, int]) -> dict[str, int]:
    h, w, c = shape
    window = {"KH": kernel[0], "KW": kernel[1], "STRIDE": node.stride, "PAD": node.pad, "DILATION": node.dilation}
    return {"H": h, "W": w, "C": c, "H_OUT": node.shape[0], "W_OUT": node.shape[1]} | window


def _width(extent: int, most: int) -> int:
    """A power of two from 16 to `most`, as wide as is needed."""
    return max(16, min(most, triton.next_power_of_2(extent)))


def _is_depthwise(node: Node) -> bool:
    return node.op is Op.CONV and node.groups > 1 and node.groups == node.input_shape[2] == node.shape[2]


def _nhwc(step: integer.Step) -> Step:
    """A step over (n, c, h, w) views as one over (n, h, w, c)."""

    def run(*operands: Tensor) -> Tensor:
        return step(*(x.permute(0, 3, 1, 2) for x in operands)).permute(0, 2, 3, 1).contiguous()

    return run


# --- what rounds once an operation, profile ieee32 -----------------------------------------------------------


def _numbers(node: Node, values: Tensor) -> Tensor:
    """Clamped, NaN as it is, no negative zero."""
    lo, hi = (torch.tensor(bound, dtype=torch.float32, device=values.device) for bound in (node.lo, node.hi))
    return torch.minimum(torch.maximum(values, lo), hi) + 0.0


def _windows(node: Node, x: Tensor, fill: float) -> Iterator[Tensor]:
    """What each tap sees, in order: (n, h_out, w_out, c) views."""
    p, (h, w, _) = node.pad, node.shape
    padded = F.pad(x, (0, 0, p, p, p, p), value=fill)
    for tap in range(math.prod(node.kernel)):
        top, left = (k * node.dilation for k in divmod(tap, node.kernel[1]))
        yield padded[:, top :: node.stride, left :: node.stride][:, :h, :w]


def _average(node: Node, x: Tensor) -> Tensor:
    total = functools.reduce(torch.add, _windows(node, x, 0.0), torch.zeros((), device=x.device))
    return total * float(np.float32(1 / math.prod(node.kernel)))


_BINARY32: dict[Op, Callable[..., Tensor]] = {
    Op.ADD: lambda node, a, b: a + b,
    Op.MUL: lambda node, a, b: a * b,
    Op.MAXPOOL: lambda node, x: functools.reduce(torch.maximum, _windows(node, x, -math.inf)),
    Op.AVGPOOL: _average,
    Op.CONCAT: lambda node, a, b: torch.cat([a, b], 3),
    Op.CLAMP: lambda node, x: x,
}
