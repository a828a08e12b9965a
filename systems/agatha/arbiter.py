"""One element of one node on plain integers: the Python twin of `contracts/arbiter.vy`, and the oracle of the games.

Binary32 numbers travel as their 32 bits. Everything here is slow and obvious on purpose: the executors are compared
with it, and the contract is compared with it; neither shares code with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from systems.agatha.commit import Model
from systems.agatha.descriptor import CONVOLUTIONS, POOLS, PRODUCTS, Descriptor, Op, Profile

NAN = 0x7FC00000
INFINITY = 0x7F800000
NEGATIVE_INFINITY = 0xFF800000
_SIGN = 1 << 31


# --- binary32 ------------------------------------------------------------------------------------------------


def _is_nan(bits: int) -> bool:
    return bits & 0x7FFFFFFF > INFINITY


def _scaled(bits: int) -> int:
    """A finite binary32 number as an integer multiple of 2^-149."""
    exponent, fraction = bits >> 23 & 255, bits & 0x7FFFFF
    magnitude = fraction if exponent == 0 else (fraction | 0x800000) << (exponent - 1)
    return -magnitude if bits & _SIGN else magnitude


def _rounded(value: int, scale: int) -> int:
    """The bits of the binary32 number nearest to `value` 2^-scale, ties to even; `scale` at least 149."""
    sign, magnitude = (_SIGN, -value) if value < 0 else (0, value)
    cut = max(magnitude.bit_length() - 24, scale - 149)
    mantissa = rne(magnitude, cut) if cut > 0 else magnitude << -cut
    return sign | min((cut - (scale - 149) << 23) + mantissa, INFINITY)


def fma32(x: int, y: int, z: int) -> int:
    """x y + z with one rounding, to nearest even. Any NaN is 0x7fc00000."""
    if _is_nan(x) or _is_nan(y) or _is_nan(z):
        return NAN
    sign = (x ^ y) & _SIGN
    plain_x, plain_y = x & 0x7FFFFFFF, y & 0x7FFFFFFF
    if INFINITY in (plain_x, plain_y):
        opposed = z & 0x7FFFFFFF == INFINITY and z & _SIGN != sign
        return NAN if 0 in (plain_x, plain_y) or opposed else sign | INFINITY
    if z & 0x7FFFFFFF == INFINITY:
        return z
    exact = _scaled(x) * _scaled(y) + (_scaled(z) << 149)
    if exact == 0:
        both_negative = sign and z & _SIGN and 0 in (plain_x, plain_y)
        return _SIGN if both_negative else 0
    return _rounded(exact, 298)


def canonical(bits: int) -> int:
    """As committed: -0 is +0."""
    return 0 if bits == _SIGN else bits


def _order(bits: int) -> int:
    return bits ^ 0xFFFFFFFF if bits & _SIGN else bits | _SIGN


def max32(a: int, b: int) -> int:
    """The larger one, -0 below +0; NaN where there is one."""
    return NAN if NAN in (a, b) else max(a, b, key=_order)


def clamp32(bits: int, lo: int, hi: int) -> int:
    """The number nearest in [lo, hi]; NaN stays."""
    return NAN if bits == NAN else min(max(bits, lo, key=_order), hi, key=_order)


# --- int8 ----------------------------------------------------------------------------------------------------


def rne(number: int, places: int) -> int:
    """number / 2^places, rounded half to even."""
    if places == 0:
        return number
    down, rest = number >> places, number & (1 << places) - 1
    half = 1 << places - 1
    return down + (rest > half or (rest == half and down & 1))


def combine(a: int, shift_a: int, b: int = 0, shift_b: int = 0) -> int:
    """a 2^-shift_a + b 2^-shift_b with one rounding, half to even."""
    places = max(shift_a, shift_b, 0)
    return rne((a << places - shift_a) + (b << places - shift_b), places)


# --- one element ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """Taps that lie side by side: `n` of them from element `x` of the input and element `w` of the weights on.

    `n` is 0 where all of them lie outside the image.
    """

    x: int
    w: int
    n: int


def pieces(d: Descriptor, element: int, chunk: int) -> Iterator[Piece]:
    """The taps behind one output element in order, at most `chunk` of one run at a time."""
    o, pixel = element % d.c_out, element // d.c_out
    oy, ox = divmod(pixel, d.w_out)
    per_pixel = d.c_in // d.groups
    for run in range(d.runs):
        merged = d.op in PRODUCTS and d.run == d.kw * per_pixel
        ky, kx = (run, 0) if merged else divmod(run, d.kw)
        y, x = oy * d.stride + ky * d.dilation - d.pad, ox * d.stride + kx * d.dilation - d.pad
        row, end = y * d.w * d.c_in, d.w * d.c_in
        within = o if d.op in POOLS else o // (d.c_out // d.groups) * per_pixel
        start = x * d.c_in + within
        for first in range(0, d.run, chunk):
            last = min(first + chunk, d.run)
            if not 0 <= y < d.h or (not merged and not 0 <= x < d.w):
                yield Piece(0, 0, 0)
                continue
            lo, hi = max(first, -start), min(last, end - start)
            yield Piece(row + start + lo, o * d.taps + run * d.run + lo, hi - lo) if lo < hi else Piece(0, 0, 0)


@dataclass(frozen=True)
class Node:
    """A node with the bytes that it reads: inputs as committed, weights, epilogue table."""

    descriptor: Descriptor
    a: bytes
    b: bytes
    weights: bytes
    epilogue: bytes

    @classmethod
    def of(cls, model: Model, tensors: Sequence[bytes], node: int) -> Node:
        """Node number `node` of a model, over the outputs of the nodes before it."""
        d = model.descriptors[node]
        weights = tensors[d.input_b] if d.op is Op.MATMUL else model.weights[node]
        return cls(d, tensors[d.input_a], tensors[d.input_b], weights, model.epilogues[node])

    def start(self) -> int:
        """What the sum of an element begins with."""
        d = self.descriptor
        return NEGATIVE_INFINITY if d.op is Op.MAXPOOL and d.profile is Profile.IEEE32 else 0

    def step(self, accumulator: int, piece: Piece) -> int:
        """The accumulator after one more piece."""
        if self.descriptor.profile is Profile.INT8:
            return self._step_int8(accumulator, piece)
        return self._step_ieee32(accumulator, piece)

    def _step_int8(self, accumulator: int, piece: Piece) -> int:
        d = self.descriptor
        x = self.a[piece.x : piece.x + piece.n]
        if d.op in PRODUCTS:
            w = self.weights[piece.w : piece.w + piece.n]
            signed = [byte - d.z_r for byte in w] if d.op is Op.MATMUL else [(byte ^ 128) - 128 for byte in w]
            return accumulator + sum((p - d.z_x) * q for p, q in zip(x, signed, strict=True))
        if d.op is Op.MAXPOOL:
            return max(accumulator, *x) if x else accumulator
        return accumulator + sum(byte - d.z_x for byte in x)

    def _step_ieee32(self, accumulator: int, piece: Piece) -> int:
        for i in range(piece.n):
            x = _bits(self.a, piece.x + i)
            if self.descriptor.op in PRODUCTS:
                accumulator = fma32(x, _bits(self.weights, piece.w + i), accumulator)
            elif self.descriptor.op is Op.MAXPOOL:
                accumulator = max32(accumulator, x)
            else:
                accumulator = fma32(x, 0x3F800000, accumulator)
        return canonical(accumulator)

    def sums(self, element: int) -> list[int]:
        """The accumulator after each step: what the submitter posts."""
        sums, accumulator = [], self.start()
        for piece in pieces(self.descriptor, element, self.descriptor.chunk):
            accumulator = self.step(accumulator, piece)
            sums.append(accumulator)
        return sums

    def finish(self, element: int, accumulator: int) -> int:
        """The element behind the last accumulator (ignored by the operators that have none)."""
        finish: Callable[[int, int], int] = (
            self._finish_int8 if self.descriptor.profile is Profile.INT8 else self._finish_ieee32
        )
        return finish(element, accumulator)

    def _finish_int8(self, element: int, accumulator: int) -> int:
        d = self.descriptor
        record = self.epilogue[8 * (element % d.c_out) :][:8]
        if d.op in CONVOLUTIONS:
            bias, shift, residual_shift = int.from_bytes(record[:4], "big", signed=True), *_signed(record[4:6])
            residual = self.b[element] - d.z_r if d.residual else 0
            code = combine(accumulator + bias, shift, residual, residual_shift if d.residual else 0) + d.z_y
        elif d.op is Op.MATMUL:
            code = combine(accumulator, d.shift) + d.z_y
        elif d.op is Op.MAXPOOL:
            code = accumulator
        elif d.op is Op.AVGPOOL:
            code = rne(accumulator * d.scale, 16) + d.z_y
        elif d.op is Op.ADD:
            code = combine(self.a[element] - d.z_x, d.shift, self.b[self._b(element)] - d.z_r, d.shift_r) + d.z_y
        elif d.op is Op.MUL:
            code = combine((self.a[element] - d.z_x) * (self.b[self._b(element)] - d.z_r), d.shift) + d.z_y
        elif d.op is Op.CONCAT:
            data, at = self._concatenated(element)
            return data[at]
        elif d.op is Op.CLAMP:
            code = self.a[element]
        else:
            return self.weights[self.a[element]]
        return min(max(code, d.lo), d.hi)

    def _finish_ieee32(self, element: int, accumulator: int) -> int:
        d = self.descriptor
        if d.op in CONVOLUTIONS:
            bits = fma32(accumulator, 0x3F800000, _bits(self.epilogue, 2 * (element % d.c_out)))
            if d.residual:
                bits = fma32(bits, 0x3F800000, _bits(self.b, element))
        elif d.op in {Op.MATMUL, Op.MAXPOOL}:
            bits = accumulator
        elif d.op is Op.AVGPOOL:
            bits = fma32(accumulator, d.scale, 0)
        elif d.op is Op.ADD:
            bits = fma32(_bits(self.a, element), 0x3F800000, _bits(self.b, self._b(element)))
        elif d.op is Op.MUL:
            bits = fma32(_bits(self.a, element), _bits(self.b, self._b(element)), 0)
        elif d.op is Op.CONCAT:
            data, at = self._concatenated(element)
            return _bits(data, at)
        else:
            bits = _bits(self.a, element)
        return canonical(clamp32(bits, d.lo, d.hi))

    def _b(self, element: int) -> int:
        """The element of input b that meets this one."""
        return element % self.descriptor.c_out if self.descriptor.broadcast else element

    def _concatenated(self, element: int) -> tuple[bytes, int]:
        d = self.descriptor
        pixel, channel = divmod(element, d.c_out)
        if channel < d.c_in:
            return self.a, pixel * d.c_in + channel
        return self.b, pixel * (d.c_out - d.c_in) + channel - d.c_in

    def element(self, element: int) -> int:
        """One element of the output: a code, or the bits of a binary32 number."""
        accumulator = self.start()
        for piece in pieces(self.descriptor, element, self.descriptor.chunk):
            accumulator = self.step(accumulator, piece)
        return self.finish(element, accumulator)

    def output(self) -> bytes:
        """The whole output, as committed."""
        width = self.descriptor.profile.width
        return b"".join(self.element(i).to_bytes(width, "big") for i in range(self.descriptor.elements))


def _bits(data: bytes, element: int) -> int:
    return int.from_bytes(data[4 * element : 4 * element + 4], "big")


def _signed(data: bytes) -> tuple[int, ...]:
    return tuple((byte ^ 128) - 128 for byte in data)


def execute(model: Model, data: bytes) -> list[bytes]:
    """The outputs of all nodes on one input, as committed: for small networks only."""
    tensors = [data]
    for node in range(1, len(model.descriptors)):
        tensors.append(Node.of(model, tensors, node).output())
    return tensors
