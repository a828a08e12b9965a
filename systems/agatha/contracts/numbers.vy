# pragma version ~=0.4.3
"""
@title The arithmetic of one element, on integers alone
@notice Exact int8 sums, eight products by one multiplication; binary32 as IEEE 754 defines it, round to nearest even.
@dev Binary32 numbers travel as their 32 bits in a uint256. NaN is 0x7fc00000 whatever went in.
"""

BIT: constant(uint256) = 1
ONES: constant(uint256) = max_value(uint256) // (2**32 - 1)  # 1 in every 32-bit lane
LANES: constant(uint256) = 255 * (max_value(uint256) // (2**32 - 1))  # the low byte of every lane
SIGNS: constant(uint256) = 128 * (max_value(uint256) // 255)  # the sign bit of every byte
EVEN_32: constant(uint256) = max_value(uint256) // (2**32 + 1)  # every second lane of 32 bits
EVEN_64: constant(uint256) = max_value(uint256) // (2**64 + 1)  # every second lane of 64 bits
WORD_32: constant(uint256) = 2**32 - 1
SIGN: constant(uint256) = 2**31
INFINITY: constant(uint256) = 255 * 2**23
NAN: constant(uint256) = 255 * 2**23 + 2**22
ONE: constant(uint256) = 127 * 2**23
HIDDEN: constant(uint256) = 2**23  # the leading bit, which a normal number does not store
FRACTION: constant(uint256) = 2**23 - 1
MAX_WORDS: constant(uint256) = 1024  # of 32 bytes: the longest run of taps


@internal
@view
def word(at: uint256) -> uint256:
    """@notice The 32 bytes of calldata at a position; reverts past its end."""
    return convert(convert(slice(msg.data, at, 32), bytes32), uint256)


# --- int8 ---


@internal
@view
def dot(x_at: uint256, w_at: uint256, n: uint256, z_x: uint256, z_w: uint256, flip: bool) -> int256:
    """
    @notice Sum of (x - z_x) (w - z_w) over n bytes of calldata each.
    @param flip Whether w is two's complement: its sign bits are flipped first, and z_w must be 128.
    @dev Bytes go into the 32-bit lanes of a word, four at a time, those of w with the lanes in reverse order. In the
         product, the top lane is then the sum of the eight products of equal positions. Each is below 2^16, a word
         adds 32 of them to a lane, so 1,024 words stay below 2^31 and no carry passes from lane to lane.
    """
    signs: uint256 = SIGNS if flip else 0
    products: uint256 = 0
    x_lanes: uint256 = 0
    w_lanes: uint256 = 0
    tail: uint256 = n % 32  # the odd bytes come first, so that no word reaches past the last byte
    x_next: uint256 = x_at + tail - 32
    w_next: uint256 = w_at + tail - 32
    mask: uint256 = ~(max_value(uint256) << (8 * tail))
    for i: uint256 in range(n // 32 + 1, bound=MAX_WORDS):
        x: uint256 = self.word(x_next) & mask
        w: uint256 = (self.word(w_next) ^ signs) & mask
        mask = max_value(uint256)
        x_next = unsafe_add(x_next, 32)
        w_next = unsafe_add(w_next, 32)
        w = ((w & EVEN_32) << 32) | ((w >> 32) & EVEN_32)
        w = ((w & EVEN_64) << 64) | ((w >> 64) & EVEN_64)
        w = (w << 128) | (w >> 128)
        x0: uint256 = x & LANES
        x1: uint256 = (x >> 8) & LANES
        x2: uint256 = (x >> 16) & LANES
        x3: uint256 = (x >> 24) & LANES
        w0: uint256 = w & LANES
        w1: uint256 = (w >> 8) & LANES
        w2: uint256 = (w >> 16) & LANES
        w3: uint256 = (w >> 24) & LANES
        products = unsafe_add(
            products,
            unsafe_add(
                unsafe_add(unsafe_mul(x0, w0), unsafe_mul(x1, w1)), unsafe_add(unsafe_mul(x2, w2), unsafe_mul(x3, w3))
            ),
        )
        x_lanes = unsafe_add(x_lanes, unsafe_add(unsafe_add(x0, x1), unsafe_add(x2, x3)))
        w_lanes = unsafe_add(w_lanes, unsafe_add(unsafe_add(w0, w1), unsafe_add(w2, w3)))
    x_sum: int256 = convert(unsafe_mul(x_lanes, ONES) >> 224, int256)
    w_sum: int256 = convert(unsafe_mul(w_lanes, ONES) >> 224, int256)
    zx: int256 = convert(z_x, int256)
    zw: int256 = convert(z_w, int256)
    return convert(products >> 224, int256) - zx * w_sum - zw * x_sum + convert(n, int256) * zx * zw


@internal
@pure
def rne(number: int256, places: uint256) -> int256:
    """@notice number / 2^places, rounded half to even."""
    if places == 0:
        return number
    down: int256 = number >> places
    rest: uint256 = convert(number - (down << places), uint256)
    half: uint256 = BIT << (places - 1)
    if rest > half or (rest == half and down % 2 != 0):
        return down + 1
    return down


@internal
@pure
def combine(a: int256, shift_a: int256, b: int256, shift_b: int256) -> int256:
    """@notice a 2^-shift_a + b 2^-shift_b with one rounding, half to even; shifts from -128 to 127."""
    common: int256 = max(max(shift_a, shift_b), 0)
    left: int256 = a << convert(common - shift_a, uint256)
    right: int256 = b << convert(common - shift_b, uint256)
    return self.rne(left + right, convert(common, uint256))


@internal
@pure
def clamp(number: int256, lo: uint256, hi: uint256) -> int256:
    """@notice The code nearest to number in [lo, hi]."""
    return min(max(number, convert(lo, int256)), convert(hi, int256))


# --- binary32 ---


@internal
@pure
def fma32(x: uint256, y: uint256, z: uint256) -> uint256:
    """
    @notice x y + z with one rounding, to nearest even, subnormals kept.
    @dev Product and addend become integers over one exponent. Where they lie more than 100 places apart, the smaller
         one can only tip a rounding: it counts as 1, a hundred places below the larger one's last bit.
    """
    ex: uint256 = (x >> 23) & 255
    ey: uint256 = (y >> 23) & 255
    ez: uint256 = (z >> 23) & 255
    mx: uint256 = x & FRACTION
    my: uint256 = y & FRACTION
    mz: uint256 = z & FRACTION
    negative: uint256 = (x ^ y) >> 31
    z_negative: uint256 = z >> 31
    if ex == 255 or ey == 255 or ez == 255:
        if (ex == 255 and mx != 0) or (ey == 255 and my != 0) or (ez == 255 and mz != 0):
            return NAN
        if ex == 255 or ey == 255:
            if ((ex | mx) == 0) or ((ey | my) == 0) or (ez == 255 and z_negative != negative):
                return NAN
            return (negative << 31) | INFINITY
        return z
    if ex == 0:
        ex = 1
    else:
        mx |= HIDDEN
    if ey == 0:
        ey = 1
    else:
        my |= HIDDEN
    if ez == 0:
        ez = 1
    else:
        mz |= HIDDEN
    product: uint256 = unsafe_mul(mx, my)
    if product == 0:
        if mz == 0 and negative != z_negative:
            return 0
        return z
    # exponents are of the last bit, biased by 300 so that they stay positive: value = m 2^(e - 300)
    exponent: uint256 = unsafe_add(ex, ey)
    ez = unsafe_add(ez, 150)
    if mz != 0:
        if exponent >= ez:
            apart: uint256 = unsafe_sub(exponent, ez)
            if apart <= 100:
                product <<= apart
                exponent = ez
            else:
                product <<= 100
                exponent = unsafe_sub(exponent, 100)
                mz = 1
        else:
            apart: uint256 = unsafe_sub(ez, exponent)
            if apart <= 100:
                mz <<= apart
            else:
                mz <<= 100
                exponent = unsafe_sub(ez, 100)
                product = 1
        if negative == z_negative:
            product = unsafe_add(product, mz)
        elif product >= mz:
            product = unsafe_sub(product, mz)
        else:
            product = unsafe_sub(mz, product)
            negative = z_negative
        if product == 0:
            return 0
    return self.round32(negative, product, exponent)


@internal
@pure
def round32(negative: uint256, magnitude: uint256, exponent: uint256) -> uint256:
    """@notice The binary32 number nearest to magnitude 2^(exponent - 300), magnitude in [1, 2^250), ties to even."""
    # the length of magnitude in bits
    rest: uint256 = magnitude
    length: uint256 = 0
    if rest >> 128 != 0:
        rest >>= 128
        length = 128
    if rest >> 64 != 0:
        rest >>= 64
        length = unsafe_add(length, 64)
    if rest >> 32 != 0:
        rest >>= 32
        length = unsafe_add(length, 32)
    if rest >> 16 != 0:
        rest >>= 16
        length = unsafe_add(length, 16)
    if rest >> 8 != 0:
        rest >>= 8
        length = unsafe_add(length, 8)
    if rest >> 4 != 0:
        rest >>= 4
        length = unsafe_add(length, 4)
    if rest >> 2 != 0:
        rest >>= 2
        length = unsafe_add(length, 2)
    if rest >> 1 != 0:
        rest >>= 1
        length = unsafe_add(length, 1)
    length = unsafe_add(length, rest)
    # the place of the result's last bit: 24 bits below the top, but never below 2^-149
    last: uint256 = max(unsafe_add(exponent, length), 175)
    last = unsafe_sub(last, 24)
    mantissa: uint256 = 0
    if last <= exponent:
        mantissa = magnitude << unsafe_sub(exponent, last)
    else:
        cut: uint256 = unsafe_sub(last, exponent)
        mantissa = magnitude >> cut
        rest = magnitude ^ (mantissa << cut)
        half: uint256 = BIT << unsafe_sub(cut, 1)
        if rest > half or (rest == half and mantissa & 1 == 1):
            mantissa = unsafe_add(mantissa, 1)
    # a mantissa of 2^24 carries into the exponent by itself; a subnormal one leaves it at 0
    bits: uint256 = unsafe_add(unsafe_sub(last, 151) << 23, mantissa)
    if bits >= INFINITY:
        bits = INFINITY
    return (negative << 31) | bits


@internal
@view
def chain(x_at: uint256, w_at: uint256, n: uint256, start: uint256) -> uint256:
    """@notice The chain acc = fma(x, w, acc) over n binary32 numbers of calldata each, from start, as committed."""
    accumulator: uint256 = start
    for i: uint256 in range(n, bound=MAX_WORDS):
        offset: uint256 = 4 * i
        x: uint256 = self.word(x_at + offset - 28) & WORD_32
        w: uint256 = self.word(w_at + offset - 28) & WORD_32
        accumulator = self.fma32(x, w, accumulator)
    return self.canonical(accumulator)


@internal
@pure
def canonical(bits: uint256) -> uint256:
    """@notice As committed: -0 is +0."""
    return 0 if bits == SIGN else bits


@internal
@pure
def add32(a: uint256, b: uint256) -> uint256:
    """@notice a + b."""
    return self.fma32(a, ONE, b)


@internal
@pure
def mul32(a: uint256, b: uint256) -> uint256:
    """@notice a b, up to the sign of a zero."""
    return self.fma32(a, b, 0)


@internal
@pure
def order(bits: uint256) -> uint256:
    """@notice A number that orders binary32 as reals are ordered, -0 before +0."""
    return (bits ^ WORD_32) if bits >= SIGN else (bits | SIGN)


@internal
@pure
def max32(a: uint256, b: uint256) -> uint256:
    """@notice The larger one; NaN where there is one."""
    if a == NAN or b == NAN:
        return NAN
    return a if self.order(a) >= self.order(b) else b


@internal
@pure
def clamp32(bits: uint256, lo: uint256, hi: uint256) -> uint256:
    """@notice The number nearest in [lo, hi]; NaN stays."""
    if bits == NAN:
        return NAN
    if self.order(bits) < self.order(lo):
        return lo
    if self.order(bits) > self.order(hi):
        return hi
    return bits


# --- for tests and for anyone who wants to check a number: the same functions from outside ---


@external
@view
def int8_dot(x: Bytes[32768], w: Bytes[32768], z_x: uint256, z_w: uint256, flip: bool) -> int256:
    """@notice Sum of (x - z_x) (w - z_w) over the bytes of x."""
    assert len(x) == len(w), "lengths differ"
    x_at: uint256 = self.word(4) + 36
    w_at: uint256 = self.word(36) + 36
    return self.dot(x_at, w_at, len(x), z_x, z_w, flip)


@external
@view
def binary32_chain(x: Bytes[4096], w: Bytes[4096], start: uint256) -> uint256:
    """@notice The chain of fused multiply-adds over big-endian binary32 numbers."""
    assert len(x) == len(w), "lengths differ"
    return self.chain(self.word(4) + 36, self.word(36) + 36, len(x) // 4, start)


@external
@pure
def binary32_fma(x: uint256, y: uint256, z: uint256) -> uint256:
    """@notice x y + z."""
    return self.fma32(x, y, z)


@external
@pure
def binary32_max(a: uint256, b: uint256) -> uint256:
    """@notice The larger one."""
    return self.max32(a, b)


@external
@pure
def binary32_clamp(bits: uint256, lo: uint256, hi: uint256) -> uint256:
    """@notice The number nearest in [lo, hi]."""
    return self.clamp32(bits, lo, hi)


@external
@pure
def int8_combine(a: int256, shift_a: int256, b: int256, shift_b: int256) -> int256:
    """@notice a 2^-shift_a + b 2^-shift_b, rounded half to even."""
    return self.combine(a, shift_a, b, shift_b)
