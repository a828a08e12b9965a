"""The baseline of the paper's second claim: the same network, run inside a virtual machine.

A network of billions of multiply-adds takes minutes to hours in an interpreter. So outputs are sampled: for every
convolution and linear node a few output pixels are computed, all their channels, by a WebAssembly loop over the
node's own weights and inputs; the time a multiply-add takes there is scaled by the multiply-adds of the node. Pools,
activations and memory traffic are left out, which favours the virtual machine.

`pulley` is wasmtime's portable interpreter, the kind of machine whose steps a fraud proof can replay; `cranelift`
compiles to native code and is the most generous bound. Needs `wasmtime`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from systems.agatha.descriptor import CONVOLUTIONS, AgathaError, Op, Profile
from systems.agatha.graph import Graph, Node

__all__ = ["Machine", "Sample", "VirtualMachineError", "estimate"]

_TEXT = """
(module
  (memory (export "memory") 1)
  (func (export "int8") (param $x i32) (param $w i32) (param $y i32) (param $taps i32)
    (param $outputs i32) (param $z i32)
    (local $acc i32) (local $i i32)
    (loop $each
      (local.set $acc (i32.const 0))
      (local.set $i (i32.const 0))
      (loop $tap
        (local.set $acc (i32.add (local.get $acc) (i32.mul
          (i32.sub (i32.load8_u (i32.add (local.get $x) (local.get $i))) (local.get $z))
          (i32.load8_s (i32.add (local.get $w) (local.get $i))))))
        (br_if $tap (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (local.get $taps))))
      (i32.store (local.get $y) (local.get $acc))
      (local.set $y (i32.add (local.get $y) (i32.const 4)))
      (local.set $w (i32.add (local.get $w) (local.get $taps)))
      (br_if $each (local.tee $outputs (i32.sub (local.get $outputs) (i32.const 1))))))
  (func (export "ieee32") (param $x i32) (param $w i32) (param $y i32) (param $taps i32)
    (param $outputs i32) (param $z i32)
    (local $acc f32) (local $i i32) (local $bytes i32)
    (local.set $bytes (i32.shl (local.get $taps) (i32.const 2)))
    (loop $each
      (local.set $acc (f32.const 0))
      (local.set $i (i32.const 0))
      (loop $tap
        (local.set $acc (f32.add (local.get $acc) (f32.mul
          (f32.load (i32.add (local.get $x) (local.get $i)))
          (f32.load (i32.add (local.get $w) (local.get $i))))))
        (br_if $tap (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 4))) (local.get $bytes))))
      (f32.store (local.get $y) (local.get $acc))
      (local.set $y (i32.add (local.get $y) (i32.const 4)))
      (local.set $w (i32.add (local.get $w) (local.get $bytes)))
      (br_if $each (local.tee $outputs (i32.sub (local.get $outputs) (i32.const 1)))))))
"""
_PAGE = 1 << 16


class VirtualMachineError(AgathaError):
    """wasmtime is missing, lacks the engine, or the virtual machine computed something else than numpy."""


@dataclass(frozen=True)
class Sample:
    """What was measured of one node: multiply-adds run and the seconds they took, of `total` in the node."""

    node: int
    multiply_adds: int
    seconds: float
    total: int

    @property
    def scaled(self) -> float:
        """Seconds for the whole node."""
        return self.seconds * self.total / self.multiply_adds


class Machine:
    """One WebAssembly engine with its memory."""

    def __init__(self, engine: Literal["pulley", "cranelift"] = "pulley") -> None:
        try:
            import wasmtime
        except ImportError as error:
            raise VirtualMachineError("the virtual-machine baseline needs wasmtime: pip install wasmtime") from error
        config = wasmtime.Config()
        if engine == "pulley":
            config.target = "pulley64"
        self._store = wasmtime.Store(wasmtime.Engine(config))
        module = wasmtime.Module(self._store.engine, _TEXT)
        self._exports: Any = wasmtime.Instance(self._store, module, []).exports(self._store)

    def products(self, x: NDArray[Any], weight: NDArray[Any], zero: int = 0) -> tuple[NDArray[Any], float]:
        """`weight @ (x - zero)` in order of the taps, and the seconds it took.

        x: (taps,) uint8 or float32; weight: (outputs, taps) int8 or float32; -> (outputs,) int32 or float32.
        """
        outputs, taps = weight.shape
        exact = x.dtype == np.uint8
        at_w = -(-x.nbytes // 16) * 16
        at_y = at_w + -(-weight.nbytes // 16) * 16
        memory = self._exports["memory"]
        missing = at_y + 4 * outputs - memory.data_len(self._store)
        if missing > 0:
            memory.grow(self._store, -(-missing // _PAGE))
        memory.write(self._store, np.ascontiguousarray(x).tobytes(), 0)
        memory.write(self._store, np.ascontiguousarray(weight).tobytes(), at_w)
        call = self._exports["int8" if exact else "ieee32"]
        start = time.perf_counter()
        call(self._store, 0, at_w, at_y, taps, outputs, zero)
        seconds = time.perf_counter() - start
        result = memory.read(self._store, at_y, at_y + 4 * outputs)
        return np.frombuffer(bytes(result), np.int32 if exact else np.float32), seconds


def estimate(
    graph: Graph, values: Sequence[NDArray[Any]], machine: Machine, *, budget: int = 2_000_000
) -> list[Sample]:
    """One sample a convolution or linear node; the sum of `scaled` is the network's latency in the machine.

    values: the output of every node, (1, h, w, c) each, as `xce.trace` gives them; budget: multiply-adds in all,
    shared among the nodes by their size, with at least 65,536 each, so that the cost of a call does not count.
    Raises VirtualMachineError where the machine's numbers are not numpy's.
    """
    samples = []
    for i, node in enumerate(graph.nodes):
        if node.op not in CONVOLUTIONS:
            continue
        source = graph.nodes[node.inputs[0]].scale.zero if graph.profile is Profile.INT8 else 0
        patch = _patch(node, values[node.inputs[0]], source)
        assert node.weight is not None
        outputs = node.shape[2] // node.groups
        weight = node.weight[:outputs].reshape(outputs, -1)
        share = max(65_536, budget * node.multiply_adds // graph.multiply_adds)
        rows = max(1, share // weight.shape[1])  # small groups again and again: a call must not cost more than its sums
        weight = np.resize(weight, (rows, weight.shape[1])) if node.groups > 1 else weight[:rows]
        best = float("inf")
        machine.products(patch, weight, source)  # touches memory, and compiles what is compiled lazily
        for _ in range(2):
            got, seconds = machine.products(patch, weight, source)
            best = min(best, seconds)
        wide = np.int64 if graph.profile is Profile.INT8 else np.float64
        expected = weight.astype(wide) @ (patch.astype(wide) - source)
        tolerance = 0 if wide is np.int64 else 1e-3 * float(abs(expected).max() + 1)
        if abs(got - expected).max() > tolerance:
            raise VirtualMachineError(f"node {i} ({node.name}): the virtual machine computed something else")
        samples.append(Sample(i, weight.size, best, node.multiply_adds))
    return samples


def _patch(node: Node, value: NDArray[Any], zero: int) -> NDArray[Any]:
    """The taps of the middle output pixel, first group, (kh kw c,)."""
    x = np.asarray(value)[0].reshape(node.input_shape)
    p = node.pad
    padded = np.pad(x, ((p, p), (p, p), (0, 0)), constant_values=zero)
    top, left = (node.stride * (size // 2) for size in node.shape[:2]) if node.op is Op.CONV else (0, 0)
    (kh, kw), d = node.kernel, node.dilation
    channels = node.input_shape[2] // node.groups
    seen = padded[top : top + d * (kh - 1) + 1 : d, left : left + d * (kw - 1) + 1 : d, :channels]
    return np.ascontiguousarray(seen).reshape(-1)
