"""The integer or binary32 graph that is run, committed and disputed: an immutable plan of a network.

    exported = torch.export.export(model.eval(), (example,))
    graph = compile(exported, profile="int8", calibration=samples)
    graph.root          # the same on every machine for the same model and calibration
    graph.save("model.safetensors")

`lowering` turns the exported program into a graph of profile ieee32; `quantise` turns that, with the ranges seen on
calibration samples, into one of profile int8. Both check at compile time all that could go wrong at run time. The
ranges are measured by the ieee32 executor, whose bits no machine changes: so the exponents do not depend on the
machine that calibrated, and neither does the root.

A node's value is NHWC; the batch is free, and every sample is a claim of its own. Node 0 is the input.
"""

from __future__ import annotations

import functools
import json
import math
import os
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from systems.agatha.commit import Model, Tree, leaf_hash
from systems.agatha.descriptor import (
    CONVOLUTIONS,
    Descriptor,
    ExactnessError,
    Op,
    Profile,
    ProofError,
    epilogue_bytes,
    float_bits,
    weight_bytes,
)

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram

__all__ = ["Bound", "Graph", "Node", "Scale", "compile", "load"]

FEWEST_SAMPLES = 32
"""Calibration with fewer samples than these is warned of."""


@dataclass(frozen=True)
class Scale:
    """How a code stands for a number: value = (code - zero) 2^exponent, zero is 0 or 128. Unused in ieee32."""

    zero: int = 0
    exponent: int = 0


@dataclass(frozen=True, eq=False)
class Node:
    """One operator with all its numbers; what each field means for each operator is the table of `descriptor`.

    inputs: ids of earlier nodes, a and then b (of two-operand operators, or the residual of a convolution).
    shape: (h, w, c) of the output; input_shape: (h, w, c) of input a as this node sees it, which may be another
        view of the same elements; kernel, stride, pad, dilation, groups: of convolutions and pools.
    weight: (c_out, kh, kw, c_in / groups) int8 or float32, or the (256,) uint8 table of a LUT.
    bias: (c_out,) int32 or float32; shifts: (c_out,) int8; residual_shift: of a convolution with a residual.
    shift, shift_r: of ADD, MUL and MATMUL; multiplier: of AVGPOOL, int8; lo, hi: codes, or floats in ieee32.
    function: the name of a LUT's function; name: of the node in the exported program. Neither is committed.
    """

    op: Op
    inputs: tuple[int, ...]
    shape: tuple[int, int, int]
    input_shape: tuple[int, int, int] = (0, 0, 0)
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    pad: int = 0
    dilation: int = 1
    groups: int = 1
    scale: Scale = Scale()
    lo: float = -math.inf
    hi: float = math.inf
    weight: NDArray[Any] | None = None
    bias: NDArray[Any] | None = None
    shifts: NDArray[np.int8] | None = None
    residual_shift: int = 0
    shift: int = 0
    shift_r: int = 0
    multiplier: int = 0
    function: str = ""
    name: str = ""

    @property
    def residual(self) -> bool:
        """Whether a convolution adds a second input."""
        return self.op in CONVOLUTIONS and len(self.inputs) == 2

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one sample; 0 for operators that multiply nothing with weights or activations."""
        if self.op not in CONVOLUTIONS | {Op.MATMUL}:
            return 0
        return math.prod(self.shape) * self.kernel[0] * self.kernel[1] * self.input_shape[2] // self.groups


@dataclass(frozen=True)
class Bound:
    """The extreme accumulators of a convolution's channels over all inputs: (c_out,) int64 each, bias included.

    `sums` is 255 sum |w| + |bias|, which no partial sum of any order passes.
    """

    low: NDArray[np.int64]
    high: NDArray[np.int64]
    sums: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in topological order, the first is the input and the last the output. Immutable; compared by `root`."""

    profile: Profile
    nodes: tuple[Node, ...]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of the input."""
        return self.nodes[0].shape

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of the output."""
        return self.nodes[-1].shape

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one sample."""
        return sum(node.multiply_adds for node in self.nodes)

    @functools.cached_property
    def consumers(self) -> tuple[tuple[int, ...], ...]:
        """For each node the ids of the nodes that read it."""
        found: list[list[int]] = [[] for _ in self.nodes]
        for i, node in enumerate(self.nodes):
            for j in dict.fromkeys(node.inputs):
                found[j].append(i)
        return tuple(map(tuple, found))

    @functools.cached_property
    def bounds(self) -> Mapping[int, Bound]:
        """For each convolution and linear node of profile int8 its worst accumulators."""
        return {
            i: accumulator_bound(node, self.nodes[node.inputs[0]].scale.zero)
            for i, node in enumerate(self.nodes)
            if self.profile is Profile.INT8 and node.op in CONVOLUTIONS
        }

    @functools.cached_property
    def descriptors(self) -> tuple[Descriptor, ...]:
        """What the contract reads of each node. Raises DescriptorError where it could not arbitrate one."""
        return tuple(_descriptor(self, node).checked() for node in self.nodes)

    @functools.cached_property
    def root(self) -> bytes:
        """The model's commitment: the root of the Merkle tree over the nodes' descriptors, 32 bytes."""
        return Tree([leaf_hash(descriptor.encode()) for descriptor in self.descriptors]).root

    @functools.cached_property
    def commitment(self) -> Model:
        """What the chain's half needs of this graph: descriptors, and the bytes of weights and epilogues."""
        return Model(
            self.descriptors,
            tuple(b"" if node.weight is None else weight_bytes(node.weight) for node in self.nodes),
            tuple(_epilogue(self, node) for node in self.nodes),
        )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all."""
        from safetensors.numpy import save

        tensors = {
            f"{i}.{field}": array
            for i, node in enumerate(self.nodes)
            for field in _ARRAYS
            if (array := getattr(node, field)) is not None
        }
        header = {"agatha": json.dumps([_to_json(node) for node in self.nodes])}
        header |= {"profile": self.profile.name, "root": self.root.hex()}
        content = save({name: np.ascontiguousarray(array) for name, array in tensors.items()}, header)
        path = Path(path)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def __repr__(self) -> str:
        return (
            f"Graph({self.profile.name.lower()}, {len(self.nodes)} nodes, {self.input_shape} -> {self.output_shape}, "
            f"{self.multiply_adds / 1e6:.1f} M multiply-adds)"
        )


# ------------------------------------------------------------------------------------------------------ compile


def compile(
    exported: ExportedProgram,
    profile: Literal["int8", "ieee32"] = "int8",
    calibration: Tensor | None = None,
) -> Graph:
    """The graph of an exported program in eval mode with one (n, c, h, w) or (n, features) float32 input.

    calibration: samples shaped like the program's input, at least 32; only int8 needs them. They are run four at
    a time by the ieee32 executor.
    Raises UnsupportedOperator (the operator, its node and shapes), ExactnessError (non-finite weights, or an
    accumulator that float32 or int32 cannot hold; node, channel, bound, limit), ValueError for unusable samples
    or an unknown profile; warns of fewer than 32 samples.
    """
    from systems.agatha import lowering, quantise

    if profile not in ("int8", "ieee32"):
        raise ValueError(f"profile is {profile!r}, expected 'int8' or 'ieee32'")
    graph = lowering.lower(exported)
    if profile == "ieee32":
        lowering.refuse_tables(graph)
        return graph
    if calibration is None:
        raise ValueError("profile int8 needs calibration samples: give calibration=, shaped like the model's input")
    if len(calibration) < FEWEST_SAMPLES:
        warnings.warn(
            f"{len(calibration)} calibration samples; expected at least {FEWEST_SAMPLES}, or rare values saturate",
            stacklevel=2,
        )
    return quantise.quantise(graph, quantise.ranges(graph, calibration))


def load(path: str | Path) -> Graph:
    """The graph that `Graph.save` wrote. Raises ProofError naming the file where its root is not the stored one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
        records = json.loads(header["agatha"])
        nodes = tuple(_from_json(record, i, arrays) for i, record in enumerate(records))
        graph = Graph(Profile[header["profile"]], nodes)
        root = graph.root
    except (SafetensorError, KeyError, ValueError, TypeError, IndexError) as error:
        raise ProofError(f"{path} does not hold a graph: {error!r}; compile the model again") from error
    if root.hex() != header.get("root"):
        raise ProofError(f"{path}: its content has root {root.hex()}, its header says {header.get('root')}")
    return graph


# ---------------------------------------------------------------------------------------------------- exactness


def accumulator_bound(node: Node, zero: int) -> Bound:
    """The exact extremes of `sum (q - zero) w + bias` over all codes q in 0..255, channel by channel."""
    assert node.weight is not None
    assert node.bias is not None
    flat = node.weight.reshape(len(node.weight), -1)
    positive = np.maximum(flat, 0).sum(1, dtype=np.int64)
    negative = np.minimum(flat, 0).sum(1, dtype=np.int64)
    bias = node.bias.astype(np.int64)
    return Bound(
        low=(255 - zero) * negative - zero * positive + bias,
        high=(255 - zero) * positive - zero * negative + bias,
        sums=255 * (positive - negative) + abs(bias),
    )


def inexact(bound: Bound, bias: NDArray[Any], shifts: NDArray[Any], residual_shift: int | None) -> NDArray[np.bool_]:
    """The channels whose epilogue in float32 could differ from the exact one: (c_out,) bool.

    An epilogue is safe where every step is exact, which |dot|, |bias| and |accumulator| up to 2^24 grant; and also
    where whatever float32 cannot hold saturates in both: |dot| >= 2^24 less bias and residual still is 256 steps
    of the output. Rounding is monotone, so a rounded number does not come back under that bound.
    """
    b = abs(bias.astype(np.int64))
    dot = np.maximum(abs(bound.low - bias), abs(bound.high - bias))
    accumulator = np.maximum(abs(bound.low), abs(bound.high))
    exact = (dot <= 1 << 24) & (accumulator <= 1 << 24)
    k = shifts.astype(np.float64)
    residual = 0.0 if residual_shift is None else 255 * 2.0 ** (k - residual_shift)
    saturates = b + residual + 2.0 ** (k + 8) <= 1 << 24
    return (b > 1 << 24) | ~(exact | saturates)


def check(graph: Graph) -> Graph:
    """Itself. Raises ExactnessError naming the node and channel whose accumulator breaks a rule, or a bad weight."""
    for i, node in enumerate(graph.nodes):
        for field in ("weight", "bias"):
            values = getattr(node, field)
            if values is not None and values.dtype.kind == "f" and not np.isfinite(values).all():
                raise ExactnessError(f"node {i} ({node.name}): {field} holds numbers that are not finite")
        if graph.profile is Profile.INT8:
            _check_integers(graph, i, node)
    return graph


def _check_integers(graph: Graph, i: int, node: Node) -> None:
    def refuse(channel: int, what: str, bound: int, limit: str) -> None:
        raise ExactnessError(f"node {i} ({node.name}), channel {channel}: {what} is {bound}, limit {limit}")

    if node.op in (Op.ADD, Op.MUL, Op.MATMUL):
        low, high = (0, 8) if node.op is Op.ADD else (-8, 32)
        for shift in (node.shift, node.shift_r):
            if not low <= shift <= high:
                refuse(-1, "shift", shift, f"{low} to {high}")
    if node.op is Op.MATMUL and node.input_shape[2] * 255 * 255 >= 1 << 31:
        refuse(-1, "accumulator", node.input_shape[2] * 255 * 255, "2^31")
    if node.op not in CONVOLUTIONS:
        return
    assert node.weight is not None
    assert node.bias is not None
    assert node.shifts is not None
    bound = graph.bounds[i]
    largest = abs(node.weight.reshape(len(node.weight), -1).astype(np.int16)).max(1)
    top = 15 if node.residual else 16
    for broken, what, values, limit in (
        (largest > 64, "a weight", largest, "64: eight-bit weights saturate on x86 without VNNI"),
        (bound.sums >= 1 << 31, "the accumulator", bound.sums, "2^31"),
        ((node.shifts < -8) | (node.shifts > top), "the shift", node.shifts, f"-8 to {top}"),
        (
            inexact(bound, node.bias, node.shifts, node.residual_shift if node.residual else None),
            "the accumulator",
            bound.sums,
            "what a float32 epilogue holds or saturates",
        ),
    ):
        if broken.any():
            channel = int(np.argmax(broken))
            refuse(channel, what, int(values[channel]), limit)
    if node.residual and not 0 <= node.residual_shift <= 8:
        refuse(-1, "the residual's shift", node.residual_shift, "0 to 8")


# --------------------------------------------------------------------------------------------------- commitment


def _epilogue(graph: Graph, node: Node) -> bytes:
    if node.bias is None:
        return b""
    if graph.profile is Profile.INT8:
        return epilogue_bytes(node.bias, node.shifts, node.residual_shift)
    return epilogue_bytes(node.bias)


def _descriptor(graph: Graph, node: Node) -> Descriptor:
    exact = graph.profile is Profile.INT8
    first = graph.nodes[node.inputs[0]] if node.inputs else node
    second = graph.nodes[node.inputs[1]] if len(node.inputs) > 1 else None
    numbers: dict[str, Any] = {}
    if exact:
        numbers |= {"z_x": first.scale.zero, "z_y": node.scale.zero, "lo": int(node.lo), "hi": int(node.hi)}
        numbers |= {"z_r": second.scale.zero if second else 0, "shift": node.shift, "shift_r": node.shift_r}
        numbers |= {"scale": node.multiplier}
    else:
        numbers |= {"lo": float_bits(node.lo), "hi": float_bits(node.hi)}
        numbers |= {"scale": float_bits(1 / math.prod(node.kernel)) if node.op is Op.AVGPOOL else 0}
    if node.op is Op.INPUT:
        numbers |= {"z_x": 0}
    roots: dict[str, Any] = {}
    if node.weight is not None:
        roots["weight_root"] = Tree.over(weight_bytes(node.weight)).root
    if node.bias is not None:
        roots["epilogue_root"] = Tree.over(_epilogue(graph, node)).root
    h, w, c = node.input_shape
    return Descriptor(
        node.op,
        graph.profile,
        h_out=node.shape[0],
        w_out=node.shape[1],
        c_out=node.shape[2],
        input_a=node.inputs[0] if node.inputs else 0,
        input_b=node.inputs[1] if len(node.inputs) > 1 else 0,
        h=h,
        w=w,
        c_in=c,
        kh=node.kernel[0],
        kw=node.kernel[1],
        stride=node.stride,
        pad=node.pad,
        dilation=node.dilation,
        groups=node.groups,
        residual=int(node.residual),
        broadcast=int(
            node.op in (Op.ADD, Op.MUL) and second is not None and math.prod(second.shape) < math.prod(node.shape)
        ),
        **numbers,
        **roots,
    )


_ARRAYS = ("weight", "bias", "shifts")
_TUPLES = ("inputs", "shape", "input_shape", "kernel")
_NUMBERS = ("stride", "pad", "dilation", "groups", "residual_shift", "shift", "shift_r", "multiplier")
_TEXTS = ("function", "name")


def _to_json(node: Node) -> dict[str, Any]:
    record = {field: getattr(node, field) for field in (*_TUPLES, *_NUMBERS, *_TEXTS)}
    clamp = {field: float(getattr(node, field)).hex() for field in ("lo", "hi")}
    return record | clamp | {"op": node.op.name, "scale": [node.scale.zero, node.scale.exponent]}


def _from_json(record: Mapping[str, Any], i: int, arrays: Mapping[str, NDArray[Any]]) -> Node:
    """The node of a record. Raises KeyError, TypeError or ValueError where the record is not one."""
    inputs = tuple(map(int, record["inputs"]))
    if any(not 0 <= j < i for j in inputs) or (i == 0) != (record["op"] == "INPUT"):
        raise ValueError(f"node {i} reads nodes {inputs}")
    fields: dict[str, Any] = {field: arrays.get(f"{i}.{field}") for field in _ARRAYS}
    fields |= {field: int(record[field]) for field in _NUMBERS}
    fields |= {field: str(record[field]) for field in _TEXTS}
    return Node(
        op=Op[record["op"]],
        inputs=inputs,
        shape=_triple(record["shape"]),
        input_shape=_triple(record["input_shape"]),
        kernel=(int(record["kernel"][0]), int(record["kernel"][1])),
        scale=Scale(int(record["scale"][0]), int(record["scale"][1])),
        lo=float.fromhex(record["lo"]),
        hi=float.fromhex(record["hi"]),
        **fields,
    )


def _triple(values: list[int]) -> tuple[int, int, int]:
    h, w, c = values
    return int(h), int(w), int(c)
