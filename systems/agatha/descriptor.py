"""What a node of a graph computes, as the contract reads it: descriptors and the byte layout of all that is hashed.

This module is the seam between the executors and the chain. A `Descriptor` fixes one node completely (section 7 of
the design): operator, inputs, shapes, zero points, clamp, and the roots of its weights and of its epilogue table.
Its encoding is the ABI encoding of a static struct: one 32-byte big-endian word a field, in the order below.

Layouts, the same for both profiles:

- A **tensor** is its NHWC elements in order, without the batch dimension, as one byte string: one byte an element
  (`int8`: uint8 codes) or four (`ieee32`: binary32, big-endian, with NaN as 0x7fc00000 and -0 as +0). Flattening is
  free: `(h, w, c)` and `(1, 1, h * w * c)` are the same bytes, so a `linear` after a flatten wants its columns in
  (h, w, c) order.
- **Weights** are `(c_out, kh, kw, c_in / groups)` in order: two's complement int8, or binary32 big-endian. The
  table of a `lut` is its 256 codes.
- The **epilogue** is one 8-byte record an output channel. `int8`: bias int32, shift int8, residual shift int8, two
  zero bytes. `ieee32`: the bias as binary32, four zero bytes.

All are cut into leaves of 256 bytes, the last one filled up with zeros (`commit.Tree`).

What a node computes, with codes `q`, zero points `z`, round-half-even `rne`, `a` and `b` the two inputs:

- `CONV`, `LINEAR`. int8: `clamp(rne(sum 2^-shift [+ (q_b - z_r) 2^-residual_shift]) + z_y)` where `sum` is that of
  `(q_a - z_x) w`, plus the bias. ieee32: a chain of fused multiply-adds over (kh, kw, c) from +0, then `+ bias`, then
  `[+ b]`, then clamp.
- `MATMUL`. The same without bias, with `w = q_b - z_r`: the rows of `b`, `(c_out, c_in)`, stand for output channels.
- `ADD`. int8: `clamp(rne((q_a - z_x) 2^-shift + (q_b - z_r) 2^-shift_r) + z_y)`. ieee32: `clamp(a + b)`.
- `MUL`. int8: `clamp(rne((q_a - z_x) (q_b - z_r) 2^-shift) + z_y)`. ieee32: `clamp(a b)`.
- `MAXPOOL`. int8: `clamp(max(0, q_a ...))`. ieee32: `clamp(max(-inf, a ...))`.
- `AVGPOOL`. int8: `clamp(rne(scale 2^-16 sum (q_a - z_x)) + z_y)`. ieee32: sums in order from +0, `* scale`, clamp.
- `CONCAT`. The `c_in` channels of `a`, then those of `b`, unchanged.
- `CLAMP`. `clamp(a)`.  `LUT` (int8 only). `table[q_a]`.

Taps outside the image add nothing (int8: their code is `z_x`; binary32: fma(+0, w, acc) = acc, up to the sign of
a zero, which no committed byte shows). `clamp` cuts to `[lo, hi]`: codes, or the bits of two binary32 numbers; NaN
passes through it. `broadcast` says that `b` of `ADD` or `MUL` is one `(1, 1, c_out)` vector.

    AgathaError
    ├── UnsupportedOperator    a model holds an operator that this IR does not know
    ├── ExactnessError         an accumulator could leave the range in which all executors agree
    ├── InconsistentBackend    a back end computes other bits than the reference
    ├── DescriptorError        a node that contradicts itself
    ├── ProofError             bytes that do not hash to the root they should
    ├── Reverted               the contract refused a call; `.reason` says why
    └── NotYourMove            a player was asked to move when it has nothing to do
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any

import numpy as np

LEAF_BYTES = 256
EPILOGUE_BYTES = 8
MAX_STEPS = 1024
"""Steps of the sum behind one element: the contract takes no node that needs more."""


class AgathaError(Exception):
    """Base of the errors of this system."""


class UnsupportedOperator(AgathaError):
    """A model holds an operator that the IR does not know."""


class ExactnessError(AgathaError):
    """An accumulator could leave the range in which all executors agree."""


class InconsistentBackend(AgathaError):
    """A back end computes other bits than the reference."""


class DescriptorError(AgathaError, ValueError):
    """A node that contradicts itself."""


class ProofError(AgathaError):
    """Bytes that do not hash to the root they should."""


class Reverted(AgathaError):
    """The contract refused a call."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class NotYourMove(AgathaError):
    """A player was asked to move when it has nothing to do."""


class Op(IntEnum):
    """Operators. `INPUT` is node 0: its output root must be the job's."""

    INPUT = 0
    CONV = 1
    LINEAR = 2
    MATMUL = 3
    MAXPOOL = 4
    AVGPOOL = 5
    ADD = 6
    MUL = 7
    CONCAT = 8
    CLAMP = 9
    LUT = 10


class Profile(IntEnum):
    """The arithmetic: exact integers, or one chain of binary32 fused multiply-adds."""

    INT8 = 0
    IEEE32 = 1

    @property
    def width(self) -> int:
        """Bytes of an element."""
        return 1 if self is Profile.INT8 else 4


CONVOLUTIONS = frozenset({Op.CONV, Op.LINEAR})
PRODUCTS = CONVOLUTIONS | {Op.MATMUL}
POOLS = frozenset({Op.MAXPOOL, Op.AVGPOOL})
_SIGNED = frozenset({"shift", "shift_r"})
_ROOTS = frozenset({"weight_root", "epilogue_root"})


@dataclass(frozen=True)
class Descriptor:
    """One node. Sizes in elements; `input_a`, `input_b` are ids of earlier nodes; unused fields are 0.

    `z_x`, `z_r`, `z_y`: zero points of input a, input b and the output; `lo`, `hi`: codes (`int8`) or bits of
    binary32 (`ieee32`); `shift`, `shift_r`: of ADD, MUL, MATMUL (int8); `scale`: AVGPOOL's multiplier (int8:
    `rne(65536 / n)`; ieee32: the bits of rn(1/n)); `residual`: 1 where a convolution adds input b.
    """

    op: Op
    profile: Profile
    h_out: int
    w_out: int
    c_out: int
    input_a: int = 0
    input_b: int = 0
    h: int = 0
    w: int = 0
    c_in: int = 0
    kh: int = 1
    kw: int = 1
    stride: int = 1
    pad: int = 0
    dilation: int = 1
    groups: int = 1
    z_x: int = 0
    z_r: int = 0
    z_y: int = 0
    lo: int = 0
    hi: int = 255
    shift: int = 0
    shift_r: int = 0
    scale: int = 0
    residual: int = 0
    broadcast: int = 0
    weight_root: bytes = bytes(32)
    epilogue_root: bytes = bytes(32)

    @property
    def elements(self) -> int:
        """Elements of the output."""
        return self.h_out * self.w_out * self.c_out

    @property
    def output_bytes(self) -> int:
        """Bytes of the output."""
        return self.elements * self.profile.width

    @property
    def input_bytes(self) -> int:
        """Bytes of input a."""
        return self.h * self.w * self.c_in * self.profile.width

    @property
    def taps(self) -> int:
        """Products behind one element of a convolution or matrix product; elements seen by one of a pool."""
        return self.kh * self.kw * (self.c_in // self.groups if self.op in PRODUCTS else 1)

    @property
    def run(self) -> int:
        """Taps that lie side by side in the input: a whole kernel row where nothing interrupts it."""
        if self.op in PRODUCTS:
            per_pixel = self.c_in // self.groups
            return self.kw * per_pixel if self.dilation == 1 and self.groups == 1 else per_pixel
        return 1

    @property
    def runs(self) -> int:
        """Runs behind one element; 0 for the operators that have no sum."""
        return self.taps // self.run if self.op in PRODUCTS | POOLS else 0

    @property
    def chunk(self) -> int:
        """Taps of one step: at most a leaf's worth of one run."""
        return LEAF_BYTES // self.profile.width

    @property
    def steps(self) -> int:
        """Partial sums behind one element, each over one chunk of one run."""
        return self.runs * -(-self.run // self.chunk)

    @property
    def elements_of_b(self) -> int:
        """Elements that input b must have; 0 where it is not read."""
        if self.op is Op.MATMUL:
            return self.c_out * self.c_in
        if self.op is Op.CONCAT:
            return self.h * self.w * (self.c_out - self.c_in)
        if self.op in {Op.ADD, Op.MUL}:
            return self.c_out if self.broadcast else self.elements
        return self.elements if self.op in CONVOLUTIONS and self.residual else 0

    def encode(self) -> bytes:
        """The ABI encoding, 28 words of 32 bytes: what a leaf of the model's tree holds."""
        words = []
        for field in fields(self):
            value = getattr(self, field.name)
            words.append(
                value if field.name in _ROOTS else int(value).to_bytes(32, "big", signed=field.name in _SIGNED)
            )
        return b"".join(words)

    @classmethod
    def decode(cls, data: bytes) -> Descriptor:
        """The descriptor behind `data`. Raises DescriptorError where it is not one."""
        names = [field.name for field in fields(cls)]
        if len(data) != 32 * len(names):
            raise DescriptorError(f"a descriptor has {32 * len(names)} bytes, not {len(data)}")
        values: dict[str, Any] = {}
        for i, name in enumerate(names):
            word = data[32 * i : 32 * i + 32]
            values[name] = word if name in _ROOTS else int.from_bytes(word, "big", signed=name in _SIGNED)
        try:
            values["op"], values["profile"] = Op(values["op"]), Profile(values["profile"])
        except ValueError as error:
            raise DescriptorError(f"not a descriptor: {error}") from error
        return cls(**values).checked()

    def checked(self) -> Descriptor:
        """Itself. Raises DescriptorError naming the field where shapes or numbers contradict each other."""
        for name in ("h_out", "w_out", "c_out", *(() if self.op is Op.INPUT else ("h", "w", "c_in"))):
            if not 1 <= getattr(self, name) < 1 << 24:
                raise DescriptorError(f"{self.op.name}: {name} is {getattr(self, name)}, expected 1 to 2^24 - 1")
        if self.output_bytes >= 1 << 32:
            raise DescriptorError(f"{self.op.name}: {self.output_bytes} bytes of output, the contract takes below 2^32")
        if self.op is Op.LUT and self.profile is not Profile.INT8:
            raise DescriptorError("LUT: only the int8 profile has tables")
        self._check_numbers()
        if self.op in PRODUCTS | POOLS:
            self._check_window()
        elif self.op is not Op.INPUT:
            self._check_elementwise()
        return self

    def _check_numbers(self) -> None:
        limit = 256 if self.profile is Profile.INT8 else 1 << 32
        for name, top in (("z_x", 256), ("z_r", 256), ("z_y", 256), ("lo", limit), ("hi", limit), ("scale", 1 << 32)):
            if not 0 <= getattr(self, name) < top:
                raise DescriptorError(f"{self.op.name}: {name} is {getattr(self, name)}, expected 0 to {top - 1}")
        for name in ("shift", "shift_r"):
            if not -32 <= getattr(self, name) <= 32:
                raise DescriptorError(f"{self.op.name}: {name} is {getattr(self, name)}, expected -32 to 32")
        for name in ("residual", "broadcast"):
            if getattr(self, name) not in {0, 1}:
                raise DescriptorError(f"{self.op.name}: {name} is {getattr(self, name)}, expected 0 or 1")
        if self._ordered(self.lo) > self._ordered(self.hi):
            raise DescriptorError(f"{self.op.name}: the clamp from lo {self.lo:#x} to hi {self.hi:#x} is empty")
        for name in ("weight_root", "epilogue_root"):
            if len(getattr(self, name)) != 32:
                raise DescriptorError(f"{self.op.name}: {name} has {len(getattr(self, name))} bytes, expected 32")

    def _ordered(self, bound: int) -> int:
        """A bound of the clamp as a number that compares like what it stands for, -0 before +0."""
        if self.profile is Profile.INT8:
            return bound
        if bound & 0x7FFFFFFF > 0x7F800000:
            raise DescriptorError(f"{self.op.name}: a bound of the clamp is NaN ({bound:#x})")
        return bound ^ (0xFFFFFFFF if bound >> 31 else 0x80000000)

    def _check_window(self) -> None:
        window = (self.kh, self.kw, self.stride, self.dilation, self.groups)
        if min(window) < 1 or self.pad < 0 or max(*window, self.pad) >= 1 << 24:
            raise DescriptorError(
                f"{self.op.name}: kernel, stride, dilation, groups are 1 to 2^24 - 1, padding 0 to 2^24 - 1: {self}"
            )
        if self.c_in % self.groups or self.c_out % self.groups:
            raise DescriptorError(f"{self.op.name}: {self.groups} groups do not divide {self.c_in} or {self.c_out}")
        if self.op in POOLS and self.c_in != self.c_out:
            raise DescriptorError(f"{self.op.name}: c_in {self.c_in} and c_out {self.c_out} differ")
        for size, kernel, out in ((self.h, self.kh, self.h_out), (self.w, self.kw, self.w_out)):
            last = (out - 1) * self.stride - self.pad + (kernel - 1) * self.dilation
            if last >= size + self.pad:
                raise DescriptorError(
                    f"{self.op.name}: {out} outputs of a kernel of {kernel} over {size} (stride {self.stride}, pad "
                    f"{self.pad}, dilation {self.dilation}) would read past the padding"
                )
        if self.op is Op.MATMUL and (self.kh, self.kw, self.stride, self.pad, self.groups) != (1, 1, 1, 0, 1):
            raise DescriptorError("MATMUL: has neither kernel, stride, padding nor groups")
        if self.steps > MAX_STEPS:
            raise DescriptorError(f"{self.op.name}: {self.steps} partial sums, the contract takes {MAX_STEPS}")

    def _check_elementwise(self) -> None:
        inside = (self.h, self.w, self.c_in)
        if self.op is Op.CONCAT:
            if inside[:2] != (self.h_out, self.w_out) or self.c_in >= self.c_out:
                raise DescriptorError(f"CONCAT: {inside} does not fit into {(self.h_out, self.w_out, self.c_out)}")
        elif inside != (self.h_out, self.w_out, self.c_out):
            raise DescriptorError(f"{self.op.name}: input {inside} and output must have the same shape")


def check_node(nodes: Sequence[Descriptor], i: int) -> None:
    """Raises DescriptorError where node i contradicts itself, or reads what is not there.

    It may read nodes before it alone, of its own profile, and as many elements of them as they have. The contract
    asks the same of a submitter whose node is doubted (`Arbiter.described`).
    """
    node = nodes[i]
    if (node.op is Op.INPUT) != (i == 0):
        raise DescriptorError(f"node {i} is {node.op.name}: node 0, and no other, is the input")
    node.checked()
    if i == 0:
        return
    if not 0 <= min(node.input_a, node.input_b) <= max(node.input_a, node.input_b) < i:
        raise DescriptorError(f"node {i} reads node {max(node.input_a, node.input_b)}, which does not come before it")
    for j, read in ((node.input_a, node.h * node.w * node.c_in), (node.input_b, node.elements_of_b)):
        if read and (nodes[j].elements != read or nodes[j].profile is not node.profile):
            raise DescriptorError(
                f"node {i} ({node.op.name}) reads {read} elements ({node.profile.name}) of node {j}, which has "
                f"{nodes[j].elements} ({nodes[j].profile.name})"
            )


# --- bytes ---------------------------------------------------------------------------------------------------


def float_bytes(values: Any) -> bytes:
    """Binary32 numbers as committed: big-endian, NaN as 0x7fc00000, -0 as +0. `values`: array-like of float."""
    array = np.ascontiguousarray(values, dtype=np.float32) + np.float32(0)  # -0 + 0 is +0; all else is unchanged
    bits = array.view(np.uint32)
    return np.where(np.isnan(array), np.uint32(0x7FC00000), bits).astype(">u4").tobytes()


def tensor_bytes(tensor: Any) -> bytes:
    """One sample's `(h, w, c)` tensor, uint8 codes or float32, as committed. Raises TypeError for other dtypes."""
    array = np.ascontiguousarray(tensor)
    if array.dtype == np.uint8:
        return array.tobytes()
    if array.dtype == np.float32:
        return float_bytes(array)
    raise TypeError(f"a tensor is uint8 (profile int8) or float32 (profile ieee32), not {array.dtype}")


def tensor_from_bytes(data: bytes, descriptor: Descriptor) -> np.ndarray:
    """The `(h_out, w_out, c_out)` tensor behind `data`."""
    shape = (descriptor.h_out, descriptor.w_out, descriptor.c_out)
    if descriptor.profile is Profile.INT8:
        return np.frombuffer(data, np.uint8).reshape(shape)
    return np.frombuffer(data, ">f4").reshape(shape).astype(np.float32)


def weight_bytes(weights: Any) -> bytes:
    """`(c_out, kh, kw, c_in / groups)` int8 or float32 weights, or a 256-entry uint8 table, as committed."""
    array = np.ascontiguousarray(weights)
    if array.dtype in (np.int8, np.uint8):
        return array.tobytes()
    if array.dtype == np.float32:
        return float_bytes(array)
    raise TypeError(f"weights are int8, float32 or a uint8 table, not {array.dtype}")


def epilogue_bytes(bias: Any, shift: Any = 0, residual_shift: Any = 0) -> bytes:
    """The table of an output channel's bias and shifts, `(c_out,)` each: 8 bytes a channel.

    `bias` int32 with `shift`, `residual_shift` int8 (profile int8), or `bias` float32 alone (profile ieee32).
    """
    bias = np.ascontiguousarray(bias)
    table = np.zeros((len(bias), EPILOGUE_BYTES), np.uint8)
    if bias.dtype == np.float32:
        table[:, :4] = np.frombuffer(float_bytes(bias), np.uint8).reshape(-1, 4)
        return table.tobytes()
    table[:, :4] = bias.astype(">i4").view(np.uint8).reshape(-1, 4)
    table[:, 4] = np.broadcast_to(shift, bias.shape).astype(np.int8).view(np.uint8)
    table[:, 5] = np.broadcast_to(residual_shift, bias.shape).astype(np.int8).view(np.uint8)
    return table.tobytes()


def float_bits(value: float) -> int:
    """The bits of the binary32 number nearest to `value`: what `lo`, `hi` and `scale` hold in profile ieee32."""
    return int(np.float32(value).view(np.uint32))
