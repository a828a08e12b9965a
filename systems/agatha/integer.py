"""Profile int8 on a CPU: our kernels (`int8`), oneDNN's where they can be trusted, integers carried by floats else.

A graph becomes a list of closures, one a node, from NCHW views of channels-last bytes to the same. oneDNN's epilogue
is the exact one, because scales are powers of two; a float32 or float64 convolution holds every partial sum exactly,
because `graph.bounds` says so.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from systems.agatha import int8
from systems.agatha.descriptor import CONVOLUTIONS, Op
from systems.agatha.graph import Graph, Node

__all__ = ["Executor"]

Step = Callable[..., Tensor]
"""From the inputs of a node to its output: (n, c, h, w) uint8 tensors, channels last in memory."""


class Executor:
    """Profile int8 on a CPU: oneDNN's convolutions where they are wanted, integers carried by floats elsewhere."""

    def __init__(self, graph: Graph, onednn: bool, own: bool = False) -> None:
        self._graph = graph
        self._nodes = []
        self._sums = set()
        for i, node in enumerate(graph.nodes):
            if i == 0:
                continue
            zeros = [graph.nodes[j].scale.zero for j in node.inputs]
            ours = int8.step(node, zeros) if own and node.op in CONVOLUTIONS else None
            if ours is None and onednn and _sums_in_place(node):
                self._sums.add(i)
            self._nodes.append((i, node.inputs, ours or step(graph, i, onednn), dying(graph, i)))

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        values: list[Tensor | None] = [None] * len(self._graph.nodes)
        values[0] = result = x.permute(0, 3, 1, 2)
        for i, inputs, step, dying in self._nodes:
            operands = [values[j] for j in inputs]
            if i in self._sums and (inputs[1] not in dying or inputs[1] == 0 or inputs[0] == inputs[1]):
                operands[1] = operands[1].clone()  # type: ignore[union-attr]  # topological order: it is there
            result = values[i] = step(*operands)
            for j in dying:
                values[j] = None
        return result.permute(0, 2, 3, 1)

    @torch.no_grad()
    def outputs(self, x: Tensor) -> Iterator[Tensor]:
        values: list[Tensor] = [x.permute(0, 3, 1, 2)]
        yield x
        for i, inputs, step, _ in self._nodes:
            operands = [values[j] for j in inputs]
            if i in self._sums:
                operands[1] = operands[1].clone()
            values.append(step(*operands))
            yield values[-1].permute(0, 2, 3, 1)


def dying(graph: Graph, i: int) -> tuple[int, ...]:
    """The inputs of node i that nobody reads later."""
    last = len(graph.nodes) - 1
    return tuple(j for j in dict.fromkeys(graph.nodes[i].inputs) if graph.consumers[j][-1] == i and j != last)


def _sums_in_place(node: Node) -> bool:
    return node.op is Op.CONV and node.residual


def step(graph: Graph, i: int, onednn: bool) -> Step:
    node = graph.nodes[i]
    zeros = [graph.nodes[j].scale.zero for j in node.inputs]
    if node.op in CONVOLUTIONS:
        if onednn and _onednn_takes(node):
            return _onednn_linear(node, zeros[0]) if node.op is Op.LINEAR else _onednn_conv(node, zeros)
        return _carried_conv(graph, i, zeros)
    if node.op is Op.MATMUL:
        return _carried_matmul(node, zeros)
    if node.op in (Op.ADD, Op.MUL):
        return _carried_pair(node, zeros)
    if node.op is Op.MAXPOOL:
        return lambda x: _clamp(node, _maximum(node, x))
    if node.op is Op.AVGPOOL:
        return lambda x: _average(node, zeros[0], x)
    if node.op is Op.CONCAT:
        return lambda a, b: _clamp(node, torch.cat([a, b], 1).contiguous(memory_format=torch.channels_last))
    if node.op is Op.LUT:
        table = torch.from_numpy(np.ascontiguousarray(node.weight))
        return lambda x: table.to(x.device)[x.to(torch.int32)].view_as(x)
    # Always a copy: a residual is summed in place into a tensor that nobody reads later.
    return lambda x: x.clamp(int(node.lo), int(node.hi))


def _onednn_takes(node: Node) -> bool:
    """Convolutions, and linear layers over the whole of their input without a residual."""
    return node.op is Op.CONV or (not node.residual and node.input_shape[:2] == node.kernel)


def _bordered(node: Node, zero: int) -> tuple[Node, Callable[[Tensor], Tensor]]:
    """The convolution as oneDNN can be trusted with it, and what makes its input.

    Where padding is as wide as the kernel, so that a window can lie in it whole, oneDNN (torch 2.13) computes wrong
    sums with a zero point of 128 and crashes with channels-last float32: there the border is written out. A
    1 x 1 kernel with a stride reads a subsampled copy: limited to AVX2, with two threads, oneDNN's own way of skipping
    pixels gives wrong sums now and then (40 channels, either zero point, up to 51 of 60 tries).
    """
    p = node.pad
    if node.kernel == (1, 1) and node.stride > 1 and p == 0:
        t = node.stride

        def subsample(x: Tensor) -> Tensor:
            picked = _viewed(node, x).permute(0, 2, 3, 1)[:, ::t, ::t]
            return picked.contiguous().permute(0, 3, 1, 2)

        return replace(node, stride=1, input_shape=(*node.shape[:2], node.input_shape[2])), subsample
    if all(p < node.dilation * (k - 1) + 1 for k in node.kernel):
        return node, lambda x: _viewed(node, x)
    h, w, c = node.input_shape
    wide = replace(node, pad=0, input_shape=(h + 2 * p, w + 2 * p, c))

    def border(x: Tensor) -> Tensor:
        padded = F.pad(_viewed(node, x).permute(0, 2, 3, 1), (0, 0, p, p, p, p), value=zero)
        return padded.permute(0, 3, 1, 2)

    return wide, border


def _viewed(node: Node, x: Tensor) -> Tensor:
    """Input a as the node reads it: another (h, w, c) of the same NHWC bytes."""
    h, w, c = node.input_shape
    if tuple(x.shape[1:]) == (c, h, w):
        return x
    return x.permute(0, 2, 3, 1).reshape(len(x), h, w, c).permute(0, 3, 1, 2)


def _clamp(node: Node, codes: Tensor) -> Tensor:
    lo, hi = int(node.lo), int(node.hi)
    return codes if lo <= 0 and hi >= 255 else codes.clamp(lo, hi)


def _oihw(node: Node) -> NDArray[Any]:
    assert node.weight is not None
    return np.ascontiguousarray(node.weight.transpose(0, 3, 1, 2))


def _powers(node: Node) -> tuple[Tensor, Tensor]:
    """(c_out,) float32: 2^-shift, and bias 2^-shift, both exact: |bias| <= 2^24 was checked at compile time."""
    assert node.bias is not None
    assert node.shifts is not None
    power = np.ldexp(np.float32(1), -node.shifts.astype(np.int32)).astype(np.float32)
    return torch.from_numpy(power), torch.from_numpy(node.bias.astype(np.float32) * power)


def _onednn_conv(node: Node, zeros: Sequence[int]) -> Step:
    """acc 2^-k + bias 2^-k [+ (q_r - z_r) 2^-s], rounded to even, + z_y, saturated: oneDNN's own epilogue."""
    node, source = _bordered(node, zeros[0])
    scale, bias = _powers(node)
    zero = torch.zeros(len(scale), dtype=torch.int64)
    window = [[node.stride] * 2, [node.pad] * 2, [node.dilation] * 2, node.groups]
    h, w, c = node.input_shape
    weight = torch.ops.onednn.qconv_prepack(torch.from_numpy(_oihw(node)), scale, 1.0, zeros[0], *window, [1, c, h, w])
    plain = int(node.lo) <= 0 and int(node.hi) >= 255
    own = node.scale.zero
    if node.residual:
        binary = torch.ops.onednn.qconv2d_pointwise.binary
        tail: tuple[Any, ...] = (1.0, own, torch.uint8, 2.0**-node.residual_shift, zeros[1], "sum", 1.0, "none", [], "")

        def add(x: Tensor, residual: Tensor) -> Tensor:
            y = binary(source(x), 1.0, zeros[0], weight, scale, zero, residual, bias, *window, *tail)
            return y if plain else _clamp(node, y)

        return add
    unary = torch.ops.onednn.qconv2d_pointwise.default
    activation = ("none", []) if plain else ("hardtanh", [float(node.lo - own), float(node.hi - own)])
    end = (1.0, own, torch.uint8, *activation, "")

    def convolve(x: Tensor) -> Tensor:
        return unary(source(x), 1.0, zeros[0], weight, scale, zero, bias, *window, *end)

    return convolve


def _onednn_linear(node: Node, zero_x: int) -> Step:
    assert node.weight is not None
    scale, bias = _powers(node)
    zero = torch.zeros(len(scale), dtype=torch.int64)
    depth = math.prod(node.input_shape)
    weight = torch.ops.onednn.qlinear_prepack(torch.from_numpy(node.weight.reshape(-1, depth)), [1, depth])
    own = node.scale.zero
    plain = int(node.lo) <= 0 and int(node.hi) >= 255
    linear = torch.ops.onednn.qlinear_pointwise.default
    activation = ("none", []) if plain else ("hardtanh", [float(node.lo - own), float(node.hi - own)])

    def multiply(x: Tensor) -> Tensor:
        rows = x.permute(0, 2, 3, 1).reshape(len(x), depth)
        y = linear(rows, 1.0, zero_x, weight, scale, zero, bias, 1.0, own, torch.uint8, *activation, "")
        return y[:, :, None, None]

    return multiply


def _carried_conv(graph: Graph, i: int, zeros: Sequence[int]) -> Step:
    """A convolution in floats that hold every partial sum exactly: float32 below 2^24, float64 below 2^53."""
    node = graph.nodes[i]
    assert node.bias is not None
    node, source = _bordered(node, zeros[0])
    exact = int(graph.bounds[i].sums.max()) < 1 << 24
    dtype = torch.float32 if exact else torch.float64
    weight = torch.from_numpy(_oihw(node)).to(dtype)
    bias = torch.from_numpy(node.bias).to(dtype)
    power = _powers(node)[0].to(dtype)[:, None, None]

    def convolve(x: Tensor, residual: Tensor | None = None) -> Tensor:
        values = source(x).to(dtype) - zeros[0]
        y = F.conv2d(values, weight, bias, node.stride, node.pad, node.dilation, node.groups).mul_(power)
        if residual is not None:
            y.add_((residual.to(dtype) - zeros[1]).mul_(2.0**-node.residual_shift))
        return _to_codes(node, y)

    return convolve


def _to_codes(node: Node, y: Tensor) -> Tensor:
    """rne, zero point, clamp; y: (n, c, h, w) exact floats."""
    codes = y.round_().add_(node.scale.zero).clamp_(int(node.lo), int(node.hi)).to(torch.uint8)
    return codes.contiguous(memory_format=torch.channels_last)


def _carried_matmul(node: Node, zeros: Sequence[int]) -> Step:
    exact = node.input_shape[2] * 255 * 255 < 1 << 24

    def multiply(a: Tensor, b: Tensor) -> Tensor:
        depth = node.input_shape[2]
        dtype = torch.float32 if exact and not a.is_cuda else torch.float64  # a GPU may have been told to use TF32
        left = a.permute(0, 2, 3, 1).reshape(len(a), -1, depth).to(dtype) - zeros[0]
        right = b.permute(0, 2, 3, 1).reshape(len(b), -1, depth).to(dtype) - zeros[1]
        y = (left @ right.transpose(1, 2)).to(torch.float64).mul_(2.0**-node.shift)
        return _to_codes(node, y.transpose(1, 2)[:, :, None])

    return multiply


def _carried_pair(node: Node, zeros: Sequence[int]) -> Step:
    def add(a: Tensor, b: Tensor) -> Tensor:
        left = (a.to(torch.float32) - zeros[0]).mul_(2.0**-node.shift)
        return _to_codes(node, left + (b.to(torch.float32) - zeros[1]).mul_(2.0**-node.shift_r))

    def multiply(a: Tensor, b: Tensor) -> Tensor:
        left = a.to(torch.float32) - zeros[0]
        return _to_codes(node, (left * (b.to(torch.float32) - zeros[1])).mul_(2.0**-node.shift))

    return add if node.op is Op.ADD else multiply


def _windows(node: Node, x: Tensor, fill: float, along: int) -> list[Tensor]:
    """The taps along the height (1) or width (2) of (n, h, w, c): each a strided view."""
    kernel, size = node.kernel[along - 1], node.shape[along - 1]
    if node.pad:
        edge = (0, 0, node.pad, node.pad) if along == 2 else (0, 0, 0, 0, node.pad, node.pad)
        x = F.pad(x, edge, value=fill)
    span = (size - 1) * node.stride + 1
    return [x.narrow(along, k * node.dilation, span)[(slice(None),) * along + (slice(None, None, node.stride),)]
            for k in range(kernel)]  # fmt: skip


def _maximum(node: Node, x: Tensor) -> Tensor:
    """Separable: along the height, then along the width; torch's own max_pool2d refuses bytes of this size."""
    y = x.permute(0, 2, 3, 1)
    for along in (1, 2):
        y = functools.reduce(torch.maximum, _windows(node, y, 0, along))
    return y.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _average(node: Node, zero: int, x: Tensor) -> Tensor:
    y = x.permute(0, 2, 3, 1)
    if node.kernel == node.input_shape[:2] and not node.pad:
        window = math.prod(node.kernel)
        carrier = torch.float32 if 255 * window < 1 << 24 else torch.float64  # every partial sum is exact
        total = y.reshape(len(y), window, -1).to(carrier).sum(1)[:, None, None] - zero * window
    else:
        total = y.to(torch.int32) - zero
        for along in (1, 2):
            total = functools.reduce(torch.add, _windows(node, total, 0, along))
    scaled = total.to(torch.float64).mul_(node.multiplier * 2.0**-16)  # below 2^41: exact
    return _to_codes(node, scaled.permute(0, 3, 1, 2))
