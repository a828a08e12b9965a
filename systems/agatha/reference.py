"""Both profiles in plain numpy, each operator in a few lines: what every faster executor is compared with.

int8 counts in int64. ieee32 emulates the fused multiply-add by rounding to odd: the product of two binary32 numbers
is exact in binary64, the sum's error is known (Knuth's two-sum), and a sum pulled to an odd last bit where it is not
exact rounds to binary32 as the exact sum would (Boldo and Melquiond 2008, theorem 1: 53 >= 24 + 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from systems.agatha.descriptor import CONVOLUTIONS, Op, Profile
from systems.agatha.graph import Graph, Node

__all__ = ["fma", "node_output", "outputs", "shift_round"]

Array = NDArray[Any]


def outputs(graph: Graph, x: Array) -> Iterator[Array]:
    """The output of each node in order, node 0 first: (n, h, w, c) uint8 or float32. x: the same, of the input."""
    values: list[Array] = []
    for i, node in enumerate(graph.nodes):
        value = np.asarray(x) if node.op is Op.INPUT else node_output(graph, i, [values[j] for j in node.inputs])
        values.append(value)
        yield value
        for j in node.inputs:
            if graph.consumers[j][-1] == i:
                values[j] = np.empty(0)  # nobody reads it again


def node_output(graph: Graph, i: int, inputs: list[Array]) -> Array:
    """The output of node i, (n, h, w, c), from its inputs, (n, h, w, c) each."""
    node = graph.nodes[i]
    viewed = [inputs[0].reshape(-1, *node.input_shape), *inputs[1:]]
    if graph.profile is Profile.INT8:
        return _integer(node, [graph.nodes[j].scale.zero for j in node.inputs], viewed)
    return _binary32(node, viewed)


# --- int8


def shift_round(value: Array, shift: Array | int) -> Array:
    """round-half-to-even of `value 2^-shift`; int64 arrays that broadcast, |shift| <= 32."""
    value, shift = np.broadcast_arrays(np.asarray(value, np.int64), np.asarray(shift, np.int64))
    right, left = np.maximum(shift, 0), np.maximum(-shift, 0)
    floor = (value << left) >> right
    twice = 2 * ((value << left) - (floor << right))  # twice the remainder, beside one unit
    unit = np.int64(1) << right
    return floor + ((twice > unit) | ((twice == unit) & (floor & 1 == 1)))


def _integer(node: Node, zeros: list[int], inputs: list[Array]) -> Array:
    y = node.scale.zero
    a = inputs[0].astype(np.int64) - zeros[0]
    b: Array = inputs[1].astype(np.int64) - zeros[1] if len(inputs) > 1 else np.zeros(1, np.int64)
    if node.op in CONVOLUTIONS:
        assert node.bias is not None
        assert node.shifts is not None
        value = _convolve(node, a, lambda x, w, acc: acc + x * w, np.int64) + node.bias.astype(np.int64)
        shift: Array | int = node.shifts.astype(np.int64)
        if node.residual:  # both on one grid, 2^-16, then one rounding
            value, shift = (value << (16 - shift)) + (b << (16 - node.residual_shift)), 16
        code = shift_round(value, shift) + y
    elif node.op is Op.MATMUL:
        code = shift_round(a[:, 0] @ b.reshape(len(b), -1, a.shape[3]).transpose(0, 2, 1), node.shift)[:, None] + y
    elif node.op is Op.ADD:
        code = shift_round((a << (16 - node.shift)) + (b << (16 - node.shift_r)), 16) + y
    elif node.op is Op.MUL:
        code = shift_round(a * b, node.shift) + y
    elif node.op is Op.MAXPOOL:
        code = _pool(node, inputs[0].astype(np.int64), np.maximum, 0)
    elif node.op is Op.AVGPOOL:
        code = shift_round(_pool(node, a, np.add, 0) * node.multiplier, 16) + y
    elif node.op is Op.CONCAT:
        code = np.concatenate(inputs, 3).astype(np.int64)
    elif node.op is Op.LUT:
        assert node.weight is not None
        return node.weight[inputs[0]]
    else:
        code = inputs[0].astype(np.int64)
    return np.clip(code, int(node.lo), int(node.hi)).astype(np.uint8)


# --- ieee32


def fma(x: Array, w: Array, acc: Array) -> NDArray[np.float32]:
    """The binary32 number nearest to x w + acc, ties to even, rounded once; float32 arrays that broadcast."""
    with np.errstate(all="ignore"):  # infinities and NaN pass through as IEEE 754 has it
        product = x.astype(np.float64) * w.astype(np.float64)
        addend = acc.astype(np.float64)
        total = product + addend
        part = total - product
        error = (product - (total - part)) + (addend - part)
        bits = np.atleast_1d(total).view(np.int64)
        error = np.atleast_1d(error)
        nudge = np.isfinite(error) & (error != 0) & (bits & 1 == 0)
        away = (error > 0) == (bits > 0)  # where the exact sum is further from zero
        odd = bits + np.where(nudge, np.where(away, 1, -1), 0)
        return odd.view(np.float64).reshape(np.shape(total)).astype(np.float32)


def _binary32(node: Node, inputs: list[Array]) -> Array:
    a = inputs[0]
    with np.errstate(all="ignore"):
        if node.op in CONVOLUTIONS:
            value = _convolve(node, a, fma, np.float32) + node.bias
            if node.residual:
                value = value + inputs[1]
        elif node.op is Op.MATMUL:
            rows = inputs[1].reshape(len(a), 1, 1, -1, a.shape[3])
            value = np.zeros((*a.shape[:3], rows.shape[3]), np.float32)
            for k in range(a.shape[3]):
                value = fma(a[..., k, None], rows[..., k], value)
        elif node.op is Op.ADD:
            value = a + inputs[1]
        elif node.op is Op.MUL:
            value = a * inputs[1]
        elif node.op is Op.MAXPOOL:
            value = _pool(node, a, np.maximum, -math.inf)
        elif node.op is Op.AVGPOOL:
            value = _pool(node, a, np.add, 0) * np.float32(1 / math.prod(node.kernel))
        elif node.op is Op.CONCAT:
            value = np.concatenate(inputs, 3)
        elif node.op is Op.CLAMP:
            value = a
        else:
            raise AssertionError(f"{node.op.name} has no binary32 arithmetic")
        return np.minimum(np.maximum(value, np.float32(node.lo)), np.float32(node.hi)) + np.float32(0)


# --- windows


def _taps(node: Node, x: Array, fill: float) -> Iterator[tuple[int, int, Array]]:
    """(kh, kw, the (n, h_out, w_out, c) input that tap sees), in order."""
    p, (h, w, _) = node.pad, node.shape
    padded = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)), constant_values=fill)
    for kh in range(node.kernel[0]):
        for kw in range(node.kernel[1]):
            top, left = kh * node.dilation, kw * node.dilation
            yield kh, kw, padded[:, top:, left:][:, :: node.stride, :: node.stride][:, :h, :w]


def _convolve(node: Node, x: Array, step: Callable[[Array, Array, Array], Array], dtype: Any) -> Array:
    """Tap by tap over (kh, kw, c), all outputs side by side."""
    assert node.weight is not None
    per_group = node.input_shape[2] // node.groups
    outputs_per_group = node.shape[2] // node.groups
    acc = np.zeros((len(x), *node.shape), dtype)
    for kh, kw, seen in _taps(node, x, 0):
        grouped = seen.reshape(*seen.shape[:3], node.groups, per_group)
        for c in range(per_group):
            column = np.repeat(grouped[..., c], outputs_per_group, axis=3)
            acc = step(column, node.weight[:, kh, kw, c].astype(dtype), acc)
    return acc


def _pool(node: Node, x: Array, step: Callable[[Array, Array], Array], start: float) -> Array:
    acc = np.full((len(x), *node.shape), start, x.dtype)
    for _, _, seen in _taps(node, x, start):
        acc = step(acc, seen)
    return acc
