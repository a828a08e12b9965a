"""The contract's arithmetic against libm, NumPy and Fractions, and its Python twin against the same."""

import ctypes
import ctypes.util
import struct
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from systems.agatha.arbiter import INFINITY, NAN, clamp32, combine, fma32, max32, rne
from systems.agatha.court import CONTRACTS
from systems.evm import RevmChain, compile_contract

SPECIAL = [0, 0x80000000, 1, 0x80000001, INFINITY, 0xFF800000, NAN, 0xFFC00001, 0x7F7FFFFF, 0x00800000, 0x007FFFFF,
           0x3F800000, 0xBF800000, 0x3F800001, 0x33800000, 0x4B000001]  # fmt: skip
BITS = st.one_of(
    st.sampled_from(SPECIAL),
    st.integers(0, 2**32 - 1),
    st.builds(lambda s, e, f: s << 31 | e << 23 | f, st.integers(0, 1), st.integers(0, 60), st.integers(0, 2**23 - 1)),
    st.builds(
        lambda s, e, f: s << 31 | e << 23 | f, st.integers(0, 1), st.integers(100, 150), st.integers(0, 2**23 - 1)
    ),
)


def value(bits):
    return struct.unpack(">f", struct.pack(">I", bits))[0]


def bits_of(number):
    bits = struct.unpack(">I", struct.pack(">f", number))[0]
    return NAN if bits & 0x7FFFFFFF > INFINITY else bits


@pytest.fixture(scope="module")
def fmaf():
    name = ctypes.util.find_library("m")
    if name is None:
        pytest.skip("needs the C library's fmaf: no libm found")
    function = ctypes.CDLL(name).fmaf
    function.restype, function.argtypes = ctypes.c_float, [ctypes.c_float] * 3
    return lambda x, y, z: bits_of(function(value(x), value(y), value(z)))


@pytest.fixture(scope="module")
def numbers():
    chain = RevmChain()
    contract = chain.deploy(compile_contract(CONTRACTS / "numbers.vy"))
    return lambda function, *args: chain.call(contract, function, *args)


@pytest.mark.claim("agatha/arbiter")
def test_fused_multiply_add_is_that_of_the_c_library(fmaf, numbers, claim):
    differing = 0

    @settings(max_examples=2000)
    @given(BITS, BITS, BITS)
    @example(0x3F800001, 0x3F800001, 0xBF800002)  # all but the last bits cancel
    @example(0x00000001, 0x3F000000, 0)  # a tie below the smallest subnormal
    @example(0x00800000, 0x3F7FFFFF, 0x80000001)
    @example(0x7F7FFFFF, 0x3F800000, 0x73000000)  # a tie at overflow
    def compare(x, y, z):
        nonlocal differing
        expected = fmaf(x, y, z)
        differing += numbers("binary32_fma", x, y, z) != expected
        differing += fma32(x, y, z) != expected

    compare()
    assert claim.holds(differing)


@settings(max_examples=700)
@given(BITS, st.integers(0, 2**23 - 1), st.integers(-3, 3))
def test_fused_multiply_add_under_cancellation(fmaf, numbers, x, fraction, off):
    y = 0x3F800000 | fraction
    product = bits_of(np.float32(0)) if x & 0x7FFFFFFF >= INFINITY else fmaf(x, y, 0)
    z = max(0, (product ^ 0x80000000) + off) & 0xFFFFFFFF
    assert numbers("binary32_fma", x, y, z) == fma32(x, y, z) == fmaf(x, y, z)


@settings(max_examples=500)
@given(BITS, BITS, BITS)
def test_max_and_clamp_are_numpys(numbers, a, b, c):
    x, y = (NAN if bits & 0x7FFFFFFF > INFINITY else bits for bits in (a, b))
    larger = bits_of(np.maximum(np.float32(value(x)), np.float32(value(y))))
    found = numbers("binary32_max", x, y)
    assert found == max32(x, y)
    assert value(found) == value(larger) or found == larger == NAN
    bounds = (y if y != NAN else 0, c if c & 0x7FFFFFFF <= INFINITY else 0)
    lo, hi = sorted(bounds, key=lambda bits: (value(bits), bits < 0x80000000))  # -0 before +0
    assert numbers("binary32_clamp", x, lo, hi) == clamp32(x, lo, hi)


@settings(max_examples=300)
@given(st.binary(min_size=1, max_size=700), st.integers(0, 255), st.integers(0, 255), st.booleans(), st.randoms())
@example(b"\xff" * 700, 0, 128, True, None)
@example(b"\xff" * 700, 255, 0, False, None)
def test_dot_products_are_exact(numbers, x, z_x, z_w, flip, random):
    w = b"\x80" * len(x) if random is None else random.randbytes(len(x))
    z_w = 128 if flip else z_w
    left = np.frombuffer(x, np.uint8).astype(np.int64) - z_x
    right = np.frombuffer(w, np.int8 if flip else np.uint8).astype(np.int64) - (0 if flip else z_w)
    assert numbers("int8_dot", x, w, z_x, z_w, flip) == int(left @ right)


@pytest.mark.parametrize("n", [1, 31, 32, 33, 25_088, 32_736])
def test_the_largest_products_do_not_carry(numbers, n):
    assert numbers("int8_dot", b"\xff" * n, b"\x80" * n, 0, 128, True) == -255 * 128 * n
    assert numbers("int8_dot", b"\xff" * n, b"\xff" * n, 0, 0, False) == 255 * 255 * n


@given(st.integers(-(2**40), 2**40), st.integers(0, 40))
def test_rounding_is_to_the_nearest_even(number, places):
    assert rne(number, places) == round(Fraction(number, 1 << places))


@settings(max_examples=500)
@given(st.integers(-(2**31), 2**31 - 1), st.integers(-32, 32), st.integers(-255, 255), st.integers(-32, 32))
@example(1, 1, 0, 0)
@example(3, 1, 1, 3)
def test_two_shifts_round_once(numbers, a, shift_a, b, shift_b):
    exact = Fraction(a) / Fraction(2) ** shift_a + Fraction(b) / Fraction(2) ** shift_b
    assert numbers("int8_combine", a, shift_a, b, shift_b) == combine(a, shift_a, b, shift_b) == round(exact)


@settings(max_examples=50)
@given(st.lists(st.tuples(BITS, BITS), min_size=1, max_size=40))
def test_a_chain_is_its_fused_multiply_adds_in_order(fmaf, numbers, taps):
    accumulator = 0
    for x, w in taps:
        accumulator = fmaf(x, w, accumulator)
    x, w = (b"".join(pair[i].to_bytes(4, "big") for pair in taps) for i in (0, 1))
    assert numbers("binary32_chain", x, w, 0) == (0 if accumulator == 0x80000000 else accumulator)
