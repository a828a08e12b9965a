"""Cross-evaluator consistent execution: one graph, the same bits from every executor.

    y = run(graph, encode(graph, images))      # (n, h, w, c); backend="auto" takes the fastest that is consistent
    digest(y)                                  # 32 bytes, the same on every machine
    trace(graph, encode(graph, images))        # the output of every node, for commitments and for `localise`

| profile | back end | how |
|---|---|---|
| int8 | `native` | the kernels of `int8_conv.cpp`, and the next back end for the rest; AVX2 or VNNI |
| int8 | `onednn` | torch's quantised oneDNN convolutions on channels-last bytes; x86 |
| int8 | `carrier` | float32 or float64 convolutions that hold every integer exactly; any CPU |
| ieee32 | `native` | the fixed-order kernel of `ieee_gemm.cpp` |
| both | `triton` | our kernels on an NVIDIA GPU (`gpu.py`); what `auto` takes for tensors that lie on one |
| both | `reference` | numpy; slow, and what all others are compared with |

A back end is used only after `self_test`: worst-case operands against the reference, once a process.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import threading
import warnings
from collections.abc import Iterator
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from systems.agatha import ieee, int8, integer, reference
from systems.agatha.commit import keccak
from systems.agatha.descriptor import InconsistentBackend, Profile, tensor_bytes
from systems.agatha.graph import Graph
from systems.agatha.quantise import decode, encode
from systems.agatha.trials import trials

__all__ = ["Backend", "backends", "decode", "digest", "encode", "prepare", "run", "self_test", "trace"]

Backend = Literal["auto", "onednn", "carrier", "native", "triton", "reference"]


class Executor(Protocol):
    """A graph made ready to run by one back end. x: (n, h, w, c) uint8 or float32, on its device."""

    def __call__(self, x: Tensor) -> Tensor:
        """The last node's output, (n, h, w, c)."""

    def outputs(self, x: Tensor) -> Iterator[Tensor]:
        """Every node's output in order, (n, h, w, c), node 0 first."""


def run(graph: Graph, x: Tensor | NDArray[Any], backend: Backend = "auto") -> Tensor:
    """The output of the graph, (n, h, w, c) uint8 (int8) or float32 (ieee32).

    x: (n, h, w, c) of the same dtype, see `encode`.
    Raises ValueError for another dtype or shape, or a back end that this profile or machine does not have;
    InconsistentBackend where a back end fails its self-test.
    """
    tensor, backend = _checked(graph, x), _resolve(graph, backend, x)
    return prepare(graph, backend)(tensor if backend == "triton" else tensor.cpu())


def trace(graph: Graph, x: Tensor | NDArray[Any], backend: Backend = "auto") -> list[Tensor]:
    """The output of every node in order, node 0 first: (n, h, w, c) each, as `run` would compute it. Raises as run."""
    tensor, backend = _checked(graph, x), _resolve(graph, backend, x)
    executor = prepare(graph, backend)
    return [value.cpu().clone() for value in executor.outputs(tensor if backend == "triton" else tensor.cpu())]


def digest(tensor: Tensor | NDArray[Any]) -> bytes:
    """keccak-256 of a tensor as it is committed: NHWC, NaN and zero in one form each. 32 bytes."""
    return keccak(tensor_bytes(tensor.cpu().numpy() if isinstance(tensor, Tensor) else tensor))


def backends(profile: Profile) -> tuple[Backend, ...]:
    """The back ends that this machine has for a profile, the fastest on a CPU first."""
    there: tuple[Backend, ...] = ("triton", "reference") if _gpu() else ("reference",)
    if profile is Profile.IEEE32:
        return ("native", *there) if ieee.available() else there
    found: tuple[Backend, ...] = ("onednn", "carrier", *there) if _onednn() else ("carrier", *there)
    return ("native", *found) if int8.available() else found


@functools.lru_cache(maxsize=4)
def prepare(graph: Graph, backend: Backend = "auto") -> Executor:
    """The executor of a graph: weights are packed once. Raises as `run`."""
    backend = _resolve(graph, backend)
    self_test(backend, graph.profile)
    return _executor(graph, backend)


def _executor(graph: Graph, backend: Backend) -> Executor:
    own = backend == "native"
    if own and graph.profile is Profile.IEEE32:
        return _Native(graph)
    if backend == "reference":
        return _Reference(graph)
    if backend == "triton":
        from systems.agatha import gpu

        return gpu.Executor(graph)
    return integer.Executor(graph, backend == "onednn" or (own and _onednn()), own)


def _resolve(graph: Graph, backend: Backend, x: Tensor | NDArray[Any] | None = None) -> Backend:
    there = backends(graph.profile)
    if backend == "auto":
        if isinstance(x, Tensor) and x.is_cuda and "triton" in there:
            return "triton"
        if there[0] == "reference":
            warnings.warn("no C++ compiler: ieee32 runs in numpy, hundreds of times slower", stacklevel=3)
        return there[0]
    if backend not in there:
        raise ValueError(f"back end {backend!r} is not there for profile {graph.profile.name.lower()}; use {there}")
    return backend


def _checked(graph: Graph, x: Tensor | NDArray[Any]) -> Tensor:
    tensor = torch.as_tensor(x)
    dtype = torch.uint8 if graph.profile is Profile.INT8 else torch.float32
    if tensor.dtype != dtype or tensor.ndim != 4 or tuple(tensor.shape[1:]) != graph.input_shape or not len(tensor):
        h, w, c = graph.input_shape
        raise ValueError(
            f"input is {tensor.dtype} {tuple(tensor.shape)}, expected {dtype} (n, {h}, {w}, {c}) with n >= 1; "
            "encode() makes it from the model's own input"
        )
    return tensor.contiguous()


@functools.cache
def _gpu() -> bool:
    """Whether Triton has something to run on: a GPU, or its own interpreter."""
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        return False
    if importlib.util.find_spec("triton") is None:
        return False
    from systems.agatha import gpu

    return gpu.available()


@functools.cache
def _onednn() -> bool:
    """Whether torch has oneDNN's int8 convolutions on this CPU."""
    import platform

    x86 = platform.machine().lower() in ("x86_64", "amd64", "i686", "x86")
    return x86 and hasattr(torch.ops.onednn, "qconv_prepack") and torch.backends.mkldnn.is_available()


# ----------------------------------------------------------------------------------------------------- executors


class _Native:
    """Profile ieee32 by the compiled kernel."""

    def __init__(self, graph: Graph) -> None:
        self._kernel = ieee.Executor(graph)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self._kernel(x.numpy()))

    def outputs(self, x: Tensor) -> Iterator[Tensor]:
        slices = [
            [np.array(value) for value in self._kernel.outputs(part.numpy())] for part in torch.split(x, ieee.SLICE)
        ]
        for parts in zip(*slices, strict=True):
            yield torch.from_numpy(np.concatenate(parts))


class _Reference:
    """Either profile by numpy."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def __call__(self, x: Tensor) -> Tensor:
        *_, last = self.outputs(x)
        return last

    def outputs(self, x: Tensor) -> Iterator[Tensor]:
        for value in reference.outputs(self._graph, x.numpy()):
            yield torch.from_numpy(np.ascontiguousarray(value))


# ----------------------------------------------------------------------------------------------------- self-test

_LOCK = threading.Lock()


@functools.cache
def self_test(backend: Backend, profile: Profile) -> None:
    """Run worst cases through a back end and the reference, once a process.

    int8: codes of 255 against weights of 64 and -64, random ones, every stride, depthwise, tails of the depth, both
    zero points, residuals, and shapes that oneDNN is known to get wrong. ieee32: cancellation, subnormals, ties.
    Raises InconsistentBackend with the operator, the largest error and the instruction set.
    """
    if backend == "reference":
        return
    random = np.random.default_rng(7)
    with _LOCK:
        for graph, x in trials(profile, random):
            expected = list(reference.outputs(graph, x))
            found = list(_executor(graph, backend).outputs(torch.from_numpy(x)))
            for i, (right, got) in enumerate(zip(expected, found, strict=True)):
                if digest(right) != digest(got):
                    error = np.abs(right.astype(np.float64) - got.cpu().numpy().astype(np.float64)).max()
                    raise InconsistentBackend(
                        f"back end {backend} computes {graph.nodes[i].op.name} wrongly by up to {error:g} with "
                        f"instruction set {torch.backends.cpu.get_cpu_capability()}; use another back end"
                    )
