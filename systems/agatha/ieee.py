"""Profile ieee32 on the CPU: the graph as a list of calls into `ieee_gemm.cpp`, every image in a buffer of its own.

Planning happens once a graph (weights are packed into panels) and once a batch size (buffers, addresses); running
is a loop of foreign calls. A buffer carries a halo of zeros as wide as the padding that its consumers need: so
convolutions read their taps in place, and no border is ever tested or copied.
"""

from __future__ import annotations

import ctypes
import functools
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from systems import native
from systems.agatha.descriptor import CONVOLUTIONS, Op, UnsupportedOperator
from systems.agatha.graph import Graph, Node

__all__ = ["Executor", "available"]

SLICE = 8
"""Samples that are run at once: a larger batch goes through in slices, which bounds memory and changes no bit."""

_FLOATS = ctypes.c_void_p
_SIZE = ctypes.c_int64


class _Image(ctypes.Structure):
    _fields_ = [("data", _FLOATS), ("image", _SIZE), ("row", _SIZE), ("pixel", _SIZE)]


class _Conv(ctypes.Structure):
    _fields_ = [
        *((name, _Image) for name in ("x", "y", "residual")),
        *((name, _SIZE) for name in ("images", "height", "width", "stride", "runs")),
        *((name, _FLOATS) for name in ("offsets", "lengths")),
        ("channels", _SIZE),
        *((name, _FLOATS) for name in ("panels", "bias")),
        *((name, ctypes.c_float) for name in ("lo", "hi")),
        ("threads", _SIZE),
    ]


class _Window(ctypes.Structure):
    _fields_ = [
        *((name, _Image) for name in ("x", "y", "residual")),
        *((name, _SIZE) for name in ("images", "height", "width", "in_height", "in_width", "channels")),
        *((name, _SIZE) for name in ("kernel_height", "kernel_width", "stride", "pad", "dilation")),
        *((name, _FLOATS) for name in ("weight", "bias")),
        *((name, ctypes.c_float) for name in ("lo", "hi", "scale")),
        *((name, _SIZE) for name in ("kind", "threads")),
    ]


class _Pixelwise(ctypes.Structure):
    _fields_ = [
        *((name, _Image) for name in ("a", "b", "y")),
        *((name, _SIZE) for name in ("images", "height", "width", "channels")),
        *((name, ctypes.c_float) for name in ("lo", "hi")),
        *((name, _SIZE) for name in ("kind", "threads")),
    ]


@functools.cache
def _library() -> ctypes.CDLL | None:
    library = native.load(Path(__file__).with_name("ieee_gemm.cpp"), contract=False)
    if library is not None:
        library.agatha_packed_size.restype = ctypes.c_int64
        library.agatha_packed_size.argtypes = [_SIZE, _SIZE]
        library.agatha_pack.argtypes = [_FLOATS, _SIZE, _SIZE, _FLOATS]
        for name in ("agatha_conv", "agatha_window", "agatha_pixelwise"):
            getattr(library, name).argtypes = [_FLOATS]
        for name in ("agatha_pack", "agatha_conv", "agatha_window", "agatha_pixelwise"):
            getattr(library, name).restype = None
    return library


def available() -> bool:
    """Whether the kernel could be built here; without it `xce` runs the reference, with one warning."""
    return _library() is not None


@dataclass
class _Buffer:
    """Images with a halo: `array` is (n, h + 2 halo, w + 2 halo, c), zero outside the image."""

    array: NDArray[np.float32]
    halo: int

    @property
    def inside(self) -> NDArray[np.float32]:
        """(n, h, w, c) view of the images."""
        edge = slice(self.halo, -self.halo or None)
        return self.array[:, edge, edge]

    def image(self, shift: int = 0, channel: int = 0) -> _Image:
        """The address of pixel (-shift, -shift), from one channel on."""
        _, height, width, channels = self.array.shape
        at = self.halo - shift
        offset = (at * width + at) * channels + channel
        data = self.array.ctypes.data + 4 * offset
        return _Image(data, height * width * channels, width * channels, channels)

    def flat(self, channels: int) -> _Image:
        """As rows of `channels` numbers, in one line; only without a halo."""
        size = self.array[0].size
        return _Image(self.array.ctypes.data, size, size, channels)


@dataclass(frozen=True)
class _Step:
    """One foreign call; `keep` holds what its addresses point to."""

    call: Callable[[Any], None]
    job: ctypes.Structure
    keep: tuple[Any, ...]


class Executor:
    """A graph of profile ieee32 made ready to run. Calls from several threads take turns."""

    def __init__(self, graph: Graph) -> None:
        library = _library()
        if library is None:
            raise RuntimeError("ieee32 needs a C++ compiler; check ieee.available() and use the reference instead")
        for i, node in enumerate(graph.nodes):
            if node.op is Op.LUT:
                raise UnsupportedOperator(f"node {i} ({node.name}): profile ieee32 has no tables")
        self.graph = graph
        self._library = library
        self._panels = [_pack(library, node) for node in graph.nodes]
        self._halos = [_halo(graph, i) for i in range(len(graph.nodes))]
        self._lock = threading.Lock()
        self._key: tuple[int, int, bool] | None = None
        self._buffers: list[_Buffer] = []
        self._steps: list[tuple[int, list[_Step]]] = []

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """x: (n, h, w, c) float32 -> (n, h, w, c) float32 of the last node."""
        out = np.empty((len(x), *self.graph.output_shape), np.float32)
        with self._lock:
            for start in range(0, len(x), SLICE):
                part = x[start : start + SLICE]
                for _ in self._nodes(part, keep=False):
                    pass
                out[start : start + SLICE] = self._buffers[-1].inside
        return out

    def outputs(self, x: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        """The output of each node in order, node 0 first: (n, h, w, c) views, good until the next one is asked for.

        x: (n, h, w, c) float32, at most `SLICE` samples.
        """
        if len(x) > SLICE:
            raise ValueError(f"{len(x)} samples at once, at most {SLICE}: give them in slices")
        with self._lock:
            yield from self._nodes(x, keep=True)

    def _nodes(self, x: NDArray[np.float32], *, keep: bool) -> Iterator[NDArray[np.float32]]:
        from torch import get_num_threads

        key = (len(x), get_num_threads(), keep)
        if key != self._key:
            self._key = None
            self._plan(*key)
            self._key = key
        self._buffers[0].inside[:] = x
        yield self._buffers[0].inside
        for i, steps in self._steps:
            for step in steps:
                step.call(ctypes.addressof(step.job))
            yield self._buffers[i].inside

    # -- planning

    def _plan(self, n: int, threads: int, keep: bool) -> None:
        """Buffers and calls for batches of n. A buffer is used again for a later image of the same shape and halo."""
        nodes = self.graph.nodes
        last_use = [max(consumers, default=len(nodes)) for consumers in self.graph.consumers]
        last_use[-1] = len(nodes)
        spare: dict[tuple[int, ...], list[NDArray[np.float32]]] = {}
        self._buffers, self._steps = [], []
        for i, node in enumerate(nodes):
            h, w, c = node.shape
            halo = self._halos[i]
            shape = (n, h + 2 * halo, w + 2 * halo, c)
            free = spare.get((halo, *shape))
            array = free.pop() if free and not keep else _aligned(shape)
            self._buffers.append(_Buffer(array, halo))
            if i:
                self._steps.append((i, list(self._calls(i, n, threads))))
            for j in dict.fromkeys(node.inputs):
                if last_use[j] == i and j:
                    used = self._buffers[j]
                    spare.setdefault((used.halo, *used.array.shape), []).append(used.array)

    def _calls(self, i: int, n: int, threads: int) -> Iterator[_Step]:
        node = self.graph.nodes[i]
        if node.op in CONVOLUTIONS:
            depthwise = node.groups > 1 and node.groups == node.input_shape[2] == node.shape[2]
            yield from (self._depthwise if depthwise else self._convolution)(i, node, n, threads)
        elif node.op is Op.MATMUL:
            yield from self._matmul(i, node, n, threads)
        elif node.op in (Op.MAXPOOL, Op.AVGPOOL):
            kind = 1 if node.op is Op.MAXPOOL else 2
            yield self._window(i, node, n, threads, kind)
        elif node.op is Op.CONCAT:
            left = node.input_shape[2]
            for j, channel in ((0, 0), (1, left)):
                width = left if j == 0 else node.shape[2] - left
                part = self._buffers[node.inputs[j]].image()
                yield self._pixelwise(node, n, threads, part, part, self._buffers[i].image(channel=channel), width, 2)
        else:
            kind = {Op.ADD: 0, Op.MUL: 1, Op.CLAMP: 2}[node.op]
            a = self._buffers[node.inputs[0]]
            b = self._buffers[node.inputs[-1]]
            other = b.image()
            if kind < 2 and math.prod(self.graph.nodes[node.inputs[1]].shape) < math.prod(node.shape):
                other = _Image(other.data, other.image, 0, 0)
            yield self._pixelwise(node, n, threads, a.image(), other, self._buffers[i].image(), node.shape[2], kind)

    def _source(self, node: Node, which: int) -> _Image:
        """Input `which` as the node reads it, from where its padding begins."""
        j = node.inputs[which]
        source = self._buffers[j]
        if node.input_shape != self.graph.nodes[j].shape:
            return source.flat(node.input_shape[2])
        return source.image(node.pad)

    def _convolution(self, i: int, node: Node, n: int, threads: int) -> Iterator[_Step]:
        x = self._source(node, 0)
        h, w, c_out = node.shape
        inputs, outputs = node.input_shape[2] // node.groups, c_out // node.groups
        kh, kw = node.kernel
        if node.groups == 1 and node.dilation == 1:
            offsets = np.arange(kh, dtype=np.int64) * x.row
            lengths = np.full(kh, kw * inputs, np.int64)
        else:
            rows, columns = np.divmod(np.arange(kh * kw, dtype=np.int64), kw)
            offsets = node.dilation * (rows * x.row + columns * x.pixel)
            lengths = np.full(kh * kw, inputs, np.int64)
        panels, bias = self._panels[i], np.ascontiguousarray(node.bias, np.float32)
        for group in range(node.groups):
            first = group * outputs
            job = _Conv(
                x=_Image(x.data + 4 * group * inputs, x.image, x.row, x.pixel),
                y=self._buffers[i].image(channel=first),
                residual=self._buffers[node.inputs[1]].image(channel=first) if node.residual else _Image(),
                images=n,
                height=h,
                width=w,
                stride=node.stride,
                runs=len(offsets),
                offsets=offsets.ctypes.data,
                lengths=lengths.ctypes.data,
                channels=outputs,
                panels=panels[group].ctypes.data,
                bias=bias[first:].ctypes.data,
                lo=node.lo,
                hi=node.hi,
                threads=threads,
            )
            yield _Step(self._library.agatha_conv, job, (offsets, lengths, panels, bias))

    def _depthwise(self, i: int, node: Node, n: int, threads: int) -> Iterator[_Step]:
        yield self._window(i, node, n, threads, 0)

    def _window(self, i: int, node: Node, n: int, threads: int, kind: int) -> _Step:
        keep: tuple[Any, ...] = ()
        weight = bias = None
        if kind == 0:
            keep = (self._panels[i][0], np.ascontiguousarray(node.bias, np.float32))
            weight, bias = (array.ctypes.data for array in keep)
        (h, w, c), (in_h, in_w, _) = node.shape, node.input_shape
        source = self._buffers[node.inputs[0]]
        job = _Window(
            x=source.image(node.pad if kind == 0 else 0),
            y=self._buffers[i].image(),
            residual=self._buffers[node.inputs[1]].image() if node.residual else _Image(),
            images=n,
            height=h,
            width=w,
            in_height=in_h,
            in_width=in_w,
            channels=c,
            kernel_height=node.kernel[0],
            kernel_width=node.kernel[1],
            stride=node.stride,
            pad=node.pad,
            dilation=node.dilation,
            weight=weight,
            bias=bias,
            lo=node.lo,
            hi=node.hi,
            scale=float(np.float32(1 / math.prod(node.kernel))),
            kind=kind,
            threads=threads,
        )
        return _Step(self._library.agatha_window, job, keep)

    def _pixelwise(
        self, node: Node, n: int, threads: int, a: _Image, b: _Image, y: _Image, channels: int, kind: int
    ) -> _Step:
        h, w, _ = node.shape
        job = _Pixelwise(a, b, y, n, h, w, channels, node.lo, node.hi, kind, threads)
        return _Step(self._library.agatha_pixelwise, job, ())

    def _matmul(self, i: int, node: Node, n: int, threads: int) -> Iterator[_Step]:
        """Sample by sample: the rows of b are packed as weights are, just before they are used."""
        (_, rows, columns), depth = node.shape, node.input_shape[2]
        a, b, y = self._source(node, 0), self._buffers[node.inputs[1]], self._buffers[i].image()
        panels = np.empty(self._library.agatha_packed_size(columns, depth), np.float32)
        bias = np.zeros(columns, np.float32)
        offsets, lengths = np.zeros(1, np.int64), np.full(1, depth, np.int64)
        for sample in range(n):
            job = _Conv(
                x=_Image(a.data + 4 * sample * a.image, a.image, a.row, a.pixel),
                y=_Image(y.data + 4 * sample * y.image, y.image, y.row, y.pixel),
                residual=_Image(),
                images=1,
                height=1,
                width=rows,
                stride=1,
                runs=1,
                offsets=offsets.ctypes.data,
                lengths=lengths.ctypes.data,
                channels=columns,
                panels=panels.ctypes.data,
                bias=bias.ctypes.data,
                lo=node.lo,
                hi=node.hi,
                threads=threads,
            )
            pack = functools.partial(_pack_rows, self._library, b.array[sample], columns, depth, panels)
            yield _Step(pack, job, ())
            yield _Step(self._library.agatha_conv, job, (panels, bias, offsets, lengths))


def _pack_rows(
    library: ctypes.CDLL, rows: NDArray[np.float32], columns: int, depth: int, panels: NDArray[np.float32], _: int
) -> None:
    library.agatha_pack(rows.ctypes.data, columns, depth, panels.ctypes.data)


def _halo(graph: Graph, i: int) -> int:
    """The widest padding of a convolution that reads node i; none where somebody reads it in another shape."""
    readers = [graph.nodes[j] for j in graph.consumers[i]]
    first = [node for node in readers if node.inputs[0] == i]
    viewed = any(node.input_shape != graph.nodes[i].shape for node in first)
    viewed |= any(node.op is Op.MATMUL and node.inputs[1] == i for node in readers)
    pads = [node.pad for node in first if node.op in CONVOLUTIONS]
    if viewed and any(pads):
        raise UnsupportedOperator(
            f"node {i} ({graph.nodes[i].name}) is read both with padding and in another shape by ieee32: "
            "put an identity between the two"
        )
    return max(pads, default=0)


def _pack(library: ctypes.CDLL, node: Node) -> list[NDArray[np.float32]]:
    """The weights as the kernel reads them: panels, one set a group; (kh, kw, c) for a depthwise convolution."""
    if node.op not in CONVOLUTIONS:
        return []
    assert node.weight is not None
    weight = node.weight.reshape(len(node.weight), -1)
    if node.groups > 1 and node.groups == node.input_shape[2] == node.shape[2]:
        return [np.ascontiguousarray(weight.T)]
    groups = []
    for part in np.split(np.ascontiguousarray(weight), node.groups):
        panels = _aligned((library.agatha_packed_size(*part.shape),))
        library.agatha_pack(part.ctypes.data, *part.shape, panels.ctypes.data)
        groups.append(panels)
    return groups


def _aligned(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Zeros that begin at a cache line."""
    size = math.prod(shape)
    block = np.zeros(size + 16, np.float32)
    start = -block.ctypes.data % 64 // 4
    return block[start : start + size].reshape(shape)
