"""The int8 operators of `int8_conv.cpp`: weights packed once, then one foreign call a node.

They take what a library is slow at with one image: products over the channels of a pixel, and depthwise 3 x 3 windows.
A node that none of them takes is left to oneDNN (`integer`).
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from systems import native
from systems.agatha.descriptor import Op
from systems.agatha.graph import Node

__all__ = ["available", "step"]

_SIZE, _POINTER = ctypes.c_int64, ctypes.c_void_p


class _Product(ctypes.Structure):
    _fields_ = [
        *((name, _POINTER) for name in ("x", "y", "residual")),
        *((name, _SIZE) for name in ("images", "height", "width", "stride", "x_image", "x_row", "x_pixel")),
        *((name, _SIZE) for name in ("depth", "channels")),
        *((name, _POINTER) for name in ("panels", "bias", "scale")),
        *((name, ctypes.c_float) for name in ("lo", "hi", "residual_scale")),
        *((name, ctypes.c_int32) for name in ("zero_y", "zero_r")),
        ("threads", _SIZE),
    ]


class _Depthwise(ctypes.Structure):
    _fields_ = [
        *((name, _POINTER) for name in ("x", "y")),
        *((name, _SIZE) for name in ("images", "height", "width", "in_height", "in_width", "channels")),
        *((name, _SIZE) for name in ("stride", "pad")),
        *((name, _POINTER) for name in ("weight", "bias", "scale")),
        *((name, ctypes.c_float) for name in ("lo", "hi")),
        *((name, ctypes.c_int32) for name in ("zero_x", "zero_y")),
        ("threads", _SIZE),
    ]


def bind(library: ctypes.CDLL) -> ctypes.CDLL | None:
    """The library with its functions declared; None where it holds nothing for this CPU."""
    library.agatha_int8_lanes.restype = _SIZE
    if not library.agatha_int8_lanes():
        return None
    library.agatha_int8_pack.argtypes = [_POINTER, _SIZE, _SIZE, _POINTER]
    for name in ("agatha_int8_product", "agatha_int8_depthwise"):
        getattr(library, name).argtypes = [_POINTER]
    for name in ("agatha_int8_pack", "agatha_int8_product", "agatha_int8_depthwise"):
        getattr(library, name).restype = None
    return library


@functools.cache
def _library() -> ctypes.CDLL | None:
    library = native.load(Path(__file__).with_name("int8_conv.cpp"), contract=False)
    return None if library is None else bind(library)


def available() -> bool:
    """Whether this machine has a compiler, and vectors that the kernels are written for."""
    return _library() is not None


def step(node: Node, zeros: list[int]) -> Callable[..., Tensor] | None:
    """From the inputs of a convolution to its output, (n, c, h, w) views of channels-last bytes; None: not for us.

    zeros: the zero points of the inputs.
    """
    library = _library()
    if library is None:
        return None
    whole = node.input_shape[:2] == node.kernel and not node.pad  # a window over all of the input is one pixel
    pixel = node.kernel == (1, 1) and not node.pad
    depth = math.prod(node.input_shape) if whole else node.input_shape[2]
    if node.groups == 1 and (whole or pixel) and depth % 4 == 0:
        return _product(library, node, zeros, depth, whole)
    depthwise = node.op is Op.CONV and node.groups == node.input_shape[2] == node.shape[2]
    if depthwise and node.kernel == (3, 3) and node.dilation == 1 and not node.residual:
        return _depthwise(library, node, zeros[0])
    return None


def _epilogue(node: Node, zero_x: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """(c_out,) each: the bias with what the zero point adds to every sum, and 2^-shift."""
    assert node.weight is not None
    assert node.bias is not None
    assert node.shifts is not None
    sums = node.weight.reshape(len(node.weight), -1).sum(1, dtype=np.int64)
    bias = (node.bias.astype(np.int64) - zero_x * sums).astype(np.int32)
    return bias, np.ldexp(np.float32(1), -node.shifts.astype(np.int32)).astype(np.float32)


def _padded(values: NDArray[Any], lanes: int) -> NDArray[Any]:
    return np.pad(values, (0, -len(values) % lanes))


def _bounds(node: Node) -> dict[str, Any]:
    zero = node.scale.zero
    return {"lo": float(int(node.lo) - zero), "hi": float(int(node.hi) - zero), "zero_y": zero}


def _product(library: ctypes.CDLL, node: Node, zeros: list[int], depth: int, whole: bool) -> Callable[..., Tensor]:
    lanes = library.agatha_int8_lanes()
    assert node.weight is not None
    bias, scale = (_padded(values, lanes) for values in _epilogue(node, zeros[0]))
    weight = np.ascontiguousarray(node.weight.reshape(len(node.weight), depth))
    panels = np.zeros(len(bias) * depth, np.int8)
    library.agatha_int8_pack(weight.ctypes.data, *weight.shape, panels.ctypes.data)
    (h, w, c), (in_h, in_w, in_c) = node.shape, node.input_shape
    fixed: dict[str, Any] = _bounds(node) | {
        "height": h, "width": w, "stride": 1 if whole else node.stride, "x_image": in_h * in_w * in_c,
        "x_row": in_w * in_c, "x_pixel": in_c, "depth": depth, "channels": c, "panels": panels.ctypes.data,
        "bias": bias.ctypes.data, "scale": scale.ctypes.data, "residual_scale": 2.0**-node.residual_shift,
        "zero_r": zeros[1] if node.residual else 0,
    }  # fmt: skip
    job = _Product(**fixed)
    keep, call = (panels, bias, scale), library.agatha_int8_product
    return _caller(job, keep, call, (h, w, c))


def _depthwise(library: ctypes.CDLL, node: Node, zero_x: int) -> Callable[..., Tensor]:
    lanes = library.agatha_int8_lanes()
    (h, w, c), (in_h, in_w, _) = node.shape, node.input_shape
    assert node.weight is not None
    block = 4 * lanes  # channels of a vector of bytes: 16 in each of its 16-byte parts, four for each `part`
    bias, scale = (
        np.ascontiguousarray(_padded(values, block).reshape(-1, lanes // 4, 4, 4).transpose(0, 2, 1, 3))
        for values in _epilogue(node, zero_x)
    )
    taps = np.zeros((-(-c // block) * block, 3, 4), np.int8)  # (channel, column, row and a zero)
    taps[:c, :, :3] = node.weight.reshape(c, 3, 3).transpose(0, 2, 1)
    weight = np.ascontiguousarray(taps.reshape(-1, lanes // 4, 4, 4, 3, 4).transpose(0, 4, 2, 1, 3, 5))
    fixed: dict[str, Any] = _bounds(node) | {
        "height": h, "width": w, "in_height": in_h, "in_width": in_w, "channels": c, "stride": node.stride,
        "pad": node.pad, "weight": weight.ctypes.data, "bias": bias.ctypes.data, "scale": scale.ctypes.data,
        "zero_x": zero_x,
    }  # fmt: skip
    return _caller(_Depthwise(**fixed), (weight, bias, scale), library.agatha_int8_depthwise, (h, w, c))


def _caller(
    job: _Product | _Depthwise, keep: tuple[Any, ...], call: Callable[[Any], None], shape: tuple[int, int, int]
) -> Callable[..., Tensor]:
    """The closure over one job. Each call fills a copy, so that threads do not share one."""
    template, kind = bytes(job), type(job)
    threads_of, empty, address = torch.get_num_threads, torch.empty, ctypes.addressof

    def run(x: Tensor, residual: Tensor | None = None, _keep: tuple[Any, ...] = keep) -> Tensor:
        x = _contiguous(x)
        n = x.shape[0]
        y = empty((n, *shape), dtype=torch.uint8)
        mine = kind.from_buffer_copy(template)
        mine.x, mine.y, mine.images, mine.threads = x.data_ptr(), y.data_ptr(), n, threads_of()
        if residual is not None:
            other = _contiguous(residual)
            mine.residual = other.data_ptr()
        call(address(mine))
        return y.permute(0, 3, 1, 2)

    return run


def _contiguous(x: Tensor) -> Tensor:
    """(n, h, w, c) contiguous."""
    y = x.permute(0, 2, 3, 1)
    return y if y.is_contiguous() else y.contiguous()
