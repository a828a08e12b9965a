"""The worst cases of `xce.self_test`: small graphs on which a back end that rounds, saturates or reorders is caught."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from systems.agatha.descriptor import Op, Profile
from systems.agatha.graph import Graph, Node, Scale, check

__all__ = ["trials"]


def trials(profile: Profile, random: np.random.Generator) -> Iterator[tuple[Graph, NDArray[Any]]]:
    """Graphs with an input for each, (n, h, w, c); the same for the same generator."""
    windows = [
        # c_in, c_out, kernel, stride, pad, dilation, groups
        (3, 16, 3, 2, 1, 1, 1),
        (37, 24, 1, 1, 0, 1, 1),
        (64, 40, 3, 1, 1, 1, 1),
        (32, 32, 3, 1, 1, 1, 32),
        (24, 24, 5, 2, 2, 1, 24),
        (12, 8, 3, 1, 2, 2, 4),
        (260, 17, 1, 2, 0, 1, 1),
    ]
    for number, window in enumerate(windows):
        for extreme in (True, False):
            zero = 128 if number % 2 else 0
            yield _trial(profile, random, window, zero, extreme)
    if profile is Profile.INT8:
        for zero in (0, 128):
            yield _fault(random, zero, (6, 8, 1), (2, 1), pad=2, c_out=70)  # windows that lie in the padding whole
            for _ in range(4):
                yield _fault(random, zero, (10, 10, 40), (1, 1), pad=0, c_out=80)  # one pixel in four, at AVX2


def _fault(
    random: np.random.Generator,
    zero: int,
    shape: tuple[int, int, int],
    kernel: tuple[int, int],
    *,
    pad: int,
    c_out: int,
) -> tuple[Graph, NDArray[Any]]:
    """One convolution with a stride of 2, of a shape that oneDNN is known to compute wrongly where left to itself.

    The third known fault crashes: no trial can report it (`integer._bordered` avoids all three).
    """
    h, w, c = shape
    out = tuple((size + 2 * pad - k) // 2 + 1 for size, k in zip((h, w), kernel, strict=True))
    node = Node(
        Op.CONV, (0,), (out[0], out[1], c_out), shape, kernel, 2, pad, bias=np.full(c_out, 729, np.int32),
        weight=random.integers(-64, 65, (c_out, *kernel, c)).astype(np.int8), shifts=np.full(c_out, 8, np.int8),
        scale=Scale(0, 0), lo=0, hi=255,
    )  # fmt: skip
    graph = Graph(Profile.INT8, (Node(Op.INPUT, (), shape, scale=Scale(zero, 0), lo=0, hi=255), node))
    return check(graph), random.integers(0, 256, (2, *shape)).astype(np.uint8)


def _trial(
    profile: Profile, random: np.random.Generator, window: tuple[int, ...], zero: int, extreme: bool
) -> tuple[Graph, NDArray[Any]]:
    """input -> convolution -> convolution of the same shape with the first as residual -> pools -> linear."""
    c_in, c_out, kernel, stride, pad, dilation, groups = window
    size = 9
    side = (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
    exact = profile is Profile.INT8

    def weights(*shape: int) -> NDArray[Any]:
        if exact:
            signs = random.choice(np.array([-64, 64], np.int8), shape)
            plain = random.integers(-64, 65, shape).astype(np.int8)
            some = np.full(shape, 64, np.int8) if extreme else plain
            return np.where(np.arange(shape[0]).reshape(-1, 1, 1, 1) % 3 == 0, signs, some)
        values = random.standard_normal(shape).astype(np.float32)
        return np.ldexp(values, random.integers(-70, 2, shape, np.int32)) if extreme else values

    def epilogue(c: int) -> dict[str, Any]:
        if not exact:
            return {"bias": random.standard_normal(c).astype(np.float32), "lo": -1.5}
        bias = random.integers(-30_000, 30_000, c).astype(np.int32)
        return {
            "bias": bias,
            "shifts": random.integers(9, 16, c).astype(np.int8),
            "lo": 0 if zero else 3,
            "hi": 255 if extreme else 201,
            "scale": Scale(zero, 0),
        }

    bounds: dict[str, Any] = {"lo": 0, "hi": 255, "scale": Scale(zero, 0)} if exact else {}
    shape, out = (size, size, c_in), (side, side, c_out)
    half = (side - 2) // 2 + 1
    nodes = (
        Node(Op.INPUT, (), shape, **bounds),
        Node(Op.CONV, (0,), out, shape, (kernel, kernel), stride, pad, dilation, groups,
             weight=weights(c_out, kernel, kernel, c_in // groups), **epilogue(c_out)),
        Node(Op.CONV, (1, 1), out, out, weight=weights(c_out, 1, 1, c_out), residual_shift=1 if exact else 0,
             **epilogue(c_out)),
        Node(Op.MAXPOOL, (2,), out, out, (3, 3), 1, 1, **bounds),
        Node(Op.AVGPOOL, (3,), (half, half, c_out), out, (2, 2), 2, multiplier=16384 if exact else 0, **bounds),
        Node(Op.LINEAR, (4,), (1, 1, 10), (half, half, c_out), (half, half), weight=weights(10, half, half, c_out),
             **epilogue(10)),
    )  # fmt: skip
    x: NDArray[Any]
    if exact:
        x = random.integers(0, 256, (2, *shape)).astype(np.uint8)
        x[0] = 255 if extreme else x[0]
    else:
        x = random.standard_normal((2, *shape)).astype(np.float32)
        if extreme:
            x = np.ldexp(x, random.integers(-70, 2, x.shape, np.int32))
    return check(Graph(profile, nodes)), x
