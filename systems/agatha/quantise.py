"""From a graph of profile ieee32 and the ranges of its values to one of profile int8, exact by construction.

Every scale is a power of two, so a range only has to be known to the next power of two. `ranges` counts, for each
node, how many numbers would saturate under each exponent: integers, which add up to the same whatever the order, and
of numbers that the ieee32 executor makes the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from systems.agatha import ieee, reference
from systems.agatha.descriptor import CONVOLUTIONS, ExactnessError, Op, Profile
from systems.agatha.graph import Graph, Node, Scale, accumulator_bound, check, inexact
from systems.agatha.lowering import FUNCTIONS

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Range", "decode", "encode", "nhwc", "quantise", "ranges"]

SATURATING = 1e-4
"""The part of a calibrated value's numbers that may saturate: the exponent holds the 99.99th percentile."""

_TOP = {0: 255, 128: 127}  # the largest |code - zero|
_SHARING = frozenset({Op.MAXPOOL, Op.AVGPOOL, Op.CLAMP, Op.CONCAT})  # output codes mean what input codes mean
_NO_EXPONENT = -(1 << 20)


@dataclass(frozen=True)
class Range:
    """What calibration saw of one node. `exponents[z]`: the smallest e that saturates at most 1e-4 of its numbers
    for zero point z; None where all were zero."""

    negative: bool
    exponents: Mapping[int, int | None]


def ranges(graph: Graph, calibration: Tensor) -> list[Range]:
    """The range of each node's values over the samples; graph of profile ieee32 (LUT nodes allowed).

    calibration: (samples, ...) float32 as the model takes it.
    Raises ValueError for samples of another shape, not finite, none, or all zero; ExactnessError for a node whose
    values are not finite.
    """
    x = nhwc(graph, calibration)
    if len(x) == 0 or not np.isfinite(x).all() or not x.any():
        raise ValueError(f"{len(x)} calibration samples, none, all zero or not finite: give typical inputs")
    tables = any(node.op is Op.LUT for node in graph.nodes)
    executor = ieee.Executor(graph) if ieee.available() and not tables else None
    counts = [np.zeros((2, 256), np.int64) for _ in graph.nodes]
    negative = [False] * len(graph.nodes)
    for start in range(0, len(x), 4):
        part = x[start : start + 4]
        for i, value in enumerate(executor.outputs(part) if executor else _floats(graph, part)):
            low = float(value.min())
            if not (math.isfinite(low) and math.isfinite(float(value.max()))):
                raise ExactnessError(f"node {i} ({graph.nodes[i].name}) is not finite on the calibration samples")
            negative[i] |= low < 0
            bits = np.ascontiguousarray(value).view(np.int32).reshape(-1) & 0x7FFFFFFF
            for row, top in enumerate(_TOP.values()):
                # A carry into the exponent where the mantissa passes that of 255 (of 127): then one more is needed.
                mantissa = int(np.float32(top).view(np.int32)) & 0x7FFFFF
                counts[i][row] += np.bincount((bits + (0x7FFFFF - mantissa)) >> 23, minlength=256)
    return [
        Range(negative[i], {zero: _exponent(counts[i][row], top) for row, (zero, top) in enumerate(_TOP.items())})
        for i in range(len(graph.nodes))
    ]


def _floats(graph: Graph, x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Every node's output, LUT nodes by numpy's functions: good enough for a range, which is a power of two."""
    from scipy import special

    values: list[NDArray[np.float32]] = []
    for i, node in enumerate(graph.nodes):
        inputs = [values[j] for j in node.inputs]
        if node.op is Op.INPUT:
            values.append(x)
        elif node.op is Op.LUT:
            flat = inputs[0].astype(np.float64)
            function = {
                "sigmoid": special.expit,
                "silu": lambda v: v * special.expit(v),
                "tanh": np.tanh,
                "gelu": lambda v: v * special.ndtr(v),
                "hardsigmoid": lambda v: np.clip(v + 3, 0, 6) / 6,
                "hardswish": lambda v: v * np.clip(v + 3, 0, 6) / 6,
                "abs": np.abs,
                "neg": np.negative,
            }[node.function]
            values.append(function(flat).astype(np.float32).reshape(len(x), *node.shape))
        else:
            values.append(reference.node_output(graph, i, list(inputs)))
    return values


def _exponent(counts: NDArray[np.int64], top: int) -> int | None:
    """The smallest e under which at most 1e-4 of the numbers pass `top 2^e`; None where all are zero or subnormal."""
    if counts[2:].sum() == 0:
        return None
    above = counts[::-1].cumsum()[::-1]  # above[i]: numbers in bin i or higher
    fits = above <= SATURATING * counts.sum()
    # Bin b holds numbers in (top 2^(e-1), top 2^e] for the e that belongs to it.
    first = int(np.argmax(fits)) if fits.any() else len(counts)
    exponent_of_top = math.frexp(top)[1] - 1
    return first - 1 - 127 - exponent_of_top


def quantise(graph: Graph, seen: Sequence[Range]) -> Graph:
    """The int8 graph. Raises ExactnessError where no choice of exponents meets the rules of exactness."""
    zeros, group = _zeros_and_groups(graph, seen)
    exponents = _exponents(graph, seen, zeros, group)
    nodes = [
        _integer_node(graph, i, [Scale(zeros[j], exponents[j]) for j in node.inputs], Scale(zeros[i], exponents[i]))
        for i, node in enumerate(graph.nodes)
    ]
    return check(Graph(Profile.INT8, tuple(nodes)))


def _zeros_and_groups(graph: Graph, seen: Sequence[Range]) -> tuple[list[int], list[int]]:
    """Zero points, and for each node the first of those that share its scale: pools and concatenations copy codes."""
    group = list(range(len(graph.nodes)))

    def find(i: int) -> int:
        while group[i] != i:
            i = group[i]
        return i

    for i, node in enumerate(graph.nodes):
        if node.op in _SHARING:
            for j in node.inputs:
                a, b = sorted((find(i), find(j)))
                group[b] = a
    group = [find(i) for i in range(len(graph.nodes))]
    signed = {group[i] for i, node in enumerate(graph.nodes) if seen[i].negative and not node.lo >= 0}
    return [128 if group[i] in signed else 0 for i in range(len(graph.nodes))], group


def _exponents(graph: Graph, seen: Sequence[Range], zeros: Sequence[int], group: Sequence[int]) -> list[int]:
    """One exponent a group: what calibration asks for, raised until every shift is in its range."""
    by_group: dict[int, int] = {}
    for i, value in enumerate(seen):
        wanted = value.exponents[zeros[i]]
        if wanted is not None:
            by_group[group[i]] = max(by_group.get(group[i], _NO_EXPONENT), wanted)
    for i in range(len(graph.nodes)):  # a node that never fired: as coarse as what it reads
        if group[i] not in by_group:
            by_group[group[i]] = max((by_group[group[j]] for j in graph.nodes[i].inputs), default=0)

    def raise_to(i: int, exponent: int) -> bool:
        changed = by_group[group[i]] < exponent
        by_group[group[i]] = max(by_group[group[i]], exponent)
        return changed

    for _ in range(4 * len(graph.nodes) + 4):
        changed = False
        for i, node in enumerate(graph.nodes):
            own = by_group[group[i]]
            inputs = [by_group[group[j]] for j in node.inputs]
            if node.op in CONVOLUTIONS:
                assert node.weight is not None
                finest = _weight_exponents(node.weight)
                used = finest[finest > _NO_EXPONENT]
                if used.size:  # shifts own - input - f of at least -8
                    changed |= raise_to(i, inputs[0] + int(used.max()) - 8)
            if node.op is Op.ADD or node.residual:
                for j in node.inputs if node.op is Op.ADD else node.inputs[1:]:
                    changed |= raise_to(i, by_group[group[j]])  # shifts own - addend of 0 to 8
                    changed |= raise_to(j, by_group[group[i]] - 8)
            if node.op in (Op.MUL, Op.MATMUL):
                changed |= raise_to(i, sum(inputs) - 8)
                if own - sum(inputs) > 32:
                    changed |= raise_to(node.inputs[0], own - 32 - inputs[-1])
        if not changed:
            return [by_group[group[i]] for i in range(len(graph.nodes))]
    raise ExactnessError("no exponents give every shift its range: the values of neighbouring nodes differ too much")


def _weight_exponents(weight: NDArray[Any]) -> NDArray[np.int64]:
    """(c_out,) smallest f with max |w| <= 64 2^f, channel by channel; very low where all weights are zero."""
    largest = abs(weight.reshape(len(weight), -1)).max(1)
    mantissa, exponent = np.frexp(largest)
    f = exponent.astype(np.int64) - 6 - (mantissa == 0.5)
    return np.where(largest == 0, _NO_EXPONENT, f)


def _integer_node(graph: Graph, i: int, inputs: Sequence[Scale], scale: Scale) -> Node:
    node = graph.nodes[i]
    lo, hi = (_code(value, scale) for value in (node.lo, node.hi))
    node = replace(node, scale=scale, lo=lo, hi=hi)
    if node.op in CONVOLUTIONS:
        return _integer_convolution(i, node, inputs)
    if node.op is Op.ADD:
        return replace(node, shift=scale.exponent - inputs[0].exponent, shift_r=scale.exponent - inputs[1].exponent)
    if node.op in (Op.MUL, Op.MATMUL):
        return replace(node, shift=scale.exponent - inputs[0].exponent - inputs[1].exponent)
    if node.op is Op.AVGPOOL:
        window = math.prod(node.kernel)
        return replace(node, multiplier=(2 * 65536 + window) // (2 * window) if 65536 % window else 65536 // window)
    if node.op is Op.LUT:
        return replace(node, weight=_table(node.function, inputs[0], scale), lo=0, hi=255)
    return node


def _integer_convolution(i: int, node: Node, inputs: Sequence[Scale]) -> Node:
    """Weights of at most 7 bits, channel by channel as fine as the rules of exactness let them be."""
    assert node.weight is not None
    assert node.bias is not None
    step = node.scale.exponent - inputs[0].exponent
    top = 15 if node.residual else 16
    f = np.maximum(_weight_exponents(node.weight), step - top)
    residual = node.scale.exponent - inputs[1].exponent if node.residual else 0
    weight, bias = node.weight.astype(np.float64), node.bias.astype(np.float64)
    while True:
        codes = np.rint(weight * (2.0**-f)[:, None, None, None])
        offsets = np.rint(np.ldexp(bias, -(inputs[0].exponent + f)))
        shifts = step - f
        tried = replace(
            node,
            weight=codes.astype(np.int8),
            bias=np.clip(offsets, -(2**31) + 1, 2**31 - 1).astype(np.int32),
            shifts=shifts.astype(np.int8),
            residual_shift=residual,
        )
        assert tried.bias is not None
        bound = accumulator_bound(tried, inputs[0].zero)
        broken = inexact(bound, tried.bias, shifts, residual if node.residual else None) | (bound.sums >= 1 << 31)
        broken |= abs(offsets) >= 2**31 - 1
        if not broken.any():
            return tried
        if (shifts[broken] <= -8).any():
            channel = int(np.argmax(broken & (shifts <= -8)))
            raise ExactnessError(
                f"node {i} ({node.name}), channel {channel}: the accumulator reaches {int(bound.sums[channel])} even "
                f"with the coarsest weights, limit 2^24; its bias is {bias[channel]:g}"
            )
        f = f + broken


def _code(value: float, scale: Scale) -> int:
    """The code of a clamp's bound."""
    if math.isinf(value):
        return 255 if value > 0 else 0
    return int(min(max(round(math.ldexp(value, -scale.exponent)) + scale.zero, 0), 255))


def _table(function: str, source: Scale, target: Scale) -> NDArray[np.uint8]:
    """(256,) uint8: the function of each code, by 60 decimal digits, so that no libm decides a tie."""
    import mpmath

    context = mpmath.mp.clone()
    context.dps = 60
    codes = []
    for code in range(256):
        x = context.ldexp(code - source.zero, source.exponent)
        y = context.ldexp(FUNCTIONS[function](x, context), -target.exponent)
        codes.append(int(min(max(context.nint(y) + target.zero, 0), 255)))
    return np.array(codes, np.uint8)


# --- inputs and outputs


def nhwc(graph: Graph, x: Tensor | NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, c, h, w) or (n, features) float32, as the model takes it -> (n, h, w, c). Raises ValueError on others."""
    array = np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)
    h, w, c = graph.input_shape
    if array.ndim == 2 and array.shape[1:] == (c,) and h == w == 1:
        array = array[:, :, None, None]
    if array.dtype != np.float32 or array.ndim != 4 or array.shape[1:] != (c, h, w):
        raise ValueError(f"input is {array.dtype} {array.shape}, expected float32 (n, {c}, {h}, {w})")
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1))


def encode(graph: Graph, x: Tensor | NDArray[np.float32]) -> NDArray[Any]:
    """The executor's input, (n, h, w, c), for the model's: float32 as it is (ieee32), or uint8 codes (int8)."""
    array = nhwc(graph, x)
    if graph.profile is Profile.IEEE32:
        return array
    scale = graph.nodes[0].scale
    return np.clip(np.rint(np.ldexp(array, -scale.exponent)) + scale.zero, 0, 255).astype(np.uint8)


def decode(graph: Graph, y: NDArray[Any]) -> NDArray[np.float32]:
    """The numbers that (n, h, w, c) output codes stand for; float32 passes through."""
    if y.dtype == np.float32:
        return y
    scale = graph.nodes[-1].scale
    return np.ldexp((y.astype(np.float32) - scale.zero), scale.exponent)
