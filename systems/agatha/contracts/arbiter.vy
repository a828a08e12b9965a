# pragma version ~=0.4.3
"""
@title The arbiter: computes one element of one node, or one step of the sum behind it, from bytes that proofs tie to
       roots
@notice Stateless: it says what an element is and what the submitter claimed. gpp.vy decides what follows.
@dev A witness is one byte string, read from left to right. Every position in a tensor is derived from the descriptor
     and the element's number; a caller supplies bytes and siblings, and can choose nothing.
"""

import merkle
import numbers

BIT: constant(uint256) = 1
MAX_SUMS: constant(uint256) = 4096  # bytes of partial sums
MAX_WITNESS: constant(uint256) = 24576  # bytes
MAX_STEPS: constant(uint256) = 1024
BELOW_ALL: constant(uint256) = 511 * 2**23  # the bits of binary32 -inf

INPUT: constant(uint256) = 0
CONV: constant(uint256) = 1
LINEAR: constant(uint256) = 2
MATMUL: constant(uint256) = 3
MAXPOOL: constant(uint256) = 4
AVGPOOL: constant(uint256) = 5
ADD: constant(uint256) = 6
MUL: constant(uint256) = 7
CONCAT: constant(uint256) = 8
CLAMP: constant(uint256) = 9
LUT: constant(uint256) = 10


struct Descriptor:
    op: uint256
    profile: uint256
    h_out: uint256
    w_out: uint256
    c_out: uint256
    input_a: uint256
    input_b: uint256
    h: uint256
    w: uint256
    c_in: uint256
    kh: uint256
    kw: uint256
    stride: uint256
    pad: uint256
    dilation: uint256
    groups: uint256
    z_x: uint256
    z_r: uint256
    z_y: uint256
    lo: uint256
    hi: uint256
    shift_a: int256
    shift_r: int256
    scale: uint256
    residual: uint256
    broadcast: uint256
    weight_root: bytes32
    epilogue_root: bytes32


struct Context:
    trace: bytes32  # root over the output roots of all nodes, as the submitter has them
    model: bytes32  # root over the descriptors
    nodes: uint256
    input_root: bytes32


# where the leaves lie that the submitter opened, or the whole tensor
struct Window:
    root: bytes32
    first: uint256  # leaf
    leaves: uint256


# where an element's taps lie: from x and w (in elements) on, n of them
struct Piece:
    x: uint256
    w: uint256
    n: uint256


# --- judgements ---


@external
@view
def element(
    d: Descriptor, context: Context, node: uint256, window: Window, element: uint256, witness: Bytes[MAX_WITNESS]
) -> (int256, int256):
    """
    @notice An element as the contract computes it, and as the submitter claims it.
    @param window The leaves that were opened; without a root, those of the node's output in the trace.
    @param witness Without a window, the output's root with its siblings in the trace. The descriptor's siblings. The
           leaf that holds the element, with its siblings below the window. Then what the element is computed from.
    """
    at: uint256 = numbers.word(4 + 32 * 37) + 36
    last: uint256 = at + len(witness)
    if window.root == empty(bytes32):
        self._possible(d, node)
    width: uint256 = self._width(d)
    opened: Window = window
    size: uint256 = d.h_out * d.w_out * d.c_out * width
    if opened.root == empty(bytes32):
        opened.root, at = self._output(context, node, at)
        opened.leaves = merkle.leaves_of(size)
    at = self._described(d, node, context, at)
    claimed: int256 = 0
    claimed, at = self._claimed(opened, element, width, at)
    found: int256 = 0
    found, at = self._whole(d, context, size, element, at)
    assert at == last, "the witness is too short or too long"
    return found, claimed


@external
@view
def step(
    d: Descriptor,
    context: Context,
    node: uint256,
    window: Window,
    element: uint256,
    step: uint256,
    sums: Bytes[MAX_SUMS],
    witness: Bytes[MAX_WITNESS],
) -> (int256, int256):
    """
    @notice One step behind an element as the contract computes it, and as the submitter claims it. Step i leads to
            the i-th partial sum; the step after the last one leads from there to the element. Where there are more
            or fewer sums than steps, the two numbers.
    @param witness The descriptor's siblings; for the last step the leaf that holds the element, with its siblings
           below the window; then what the step reads.
    """
    at: uint256 = numbers.word(4 + 32 * 39) + 36
    last: uint256 = at + len(witness)
    sums_at: uint256 = numbers.word(4 + 32 * 38) + 36
    at = self._described(d, node, context, at)
    steps: uint256 = self._steps(d)
    if len(sums) != 4 * steps:
        assert at == last, "the witness is too short or too long"
        return convert(4 * steps, int256), convert(len(sums), int256)
    assert step <= steps, "step out of range"
    found: int256 = self._start(d)
    claimed: int256 = 0
    if step > 0:
        found = self._sum_at(d, sums_at, step - 1)
    if step < steps:
        found, at = self._step(d, context, element, step, found, at)
        claimed = self._sum_at(d, sums_at, step)
    else:
        width: uint256 = self._width(d)
        claimed, at = self._claimed(window, element, width, at)
        found, at = self._final(d, context, d.h_out * d.w_out * d.c_out * width, element, found, at)
    assert at == last, "the witness is too short or too long"
    return found, claimed


@external
@pure
def check(d: Descriptor, node: uint256) -> bool:
    """@notice True; reverts where a node contradicts itself, or reads what comes after it."""
    self._possible(d, node)
    return True


@external
@view
def described(
    d: Descriptor, a: Descriptor, b: Descriptor, context: Context, node: uint256, witness: Bytes[4096]
) -> bool:
    """
    @notice True where a node is in the model, possible, and reads as many elements of the nodes a and b before it as
            they have; reverts otherwise. Node 0 reads nothing.
    @param witness The siblings of the node's descriptor; then, but for node 0, those of a's and of b's.
    """
    at: uint256 = numbers.word(4 + 32 * 89) + 36
    last: uint256 = at + len(witness)
    at = self._described(d, node, context, at)
    self._possible(d, node)
    if node > 0:
        at = self._described(a, d.input_a, context, at)
        at = self._described(b, d.input_b, context, at)
        assert a.profile == d.profile, "impossible node: profile"
        assert a.h_out * a.w_out * a.c_out == d.h * d.w * d.c_in, "impossible node: size of input a"
        read: uint256 = self._read_of_b(d)
        if read > 0:
            assert b.profile == d.profile, "impossible node: profile"
            assert b.h_out * b.w_out * b.c_out == read, "impossible node: size of input b"
    assert at == last, "the witness is too short or too long"
    return True


@internal
@pure
def _read_of_b(d: Descriptor) -> uint256:
    """@notice Elements of input b, 0 where it is not read."""
    if d.op == MATMUL:
        return d.c_out * d.c_in
    if d.op == CONCAT:
        return d.h * d.w * (d.c_out - d.c_in)
    if d.op == ADD or d.op == MUL:
        return d.c_out if d.broadcast == 1 else d.h * d.w * d.c_out
    if (d.op == CONV or d.op == LINEAR) and d.residual == 1:
        return d.h_out * d.w_out * d.c_out
    return 0


@internal
@pure
def _possible(d: Descriptor, node: uint256):
    """@notice What `Descriptor.checked` and `Model` ask of a node, so that nothing below can overflow or wrap."""
    top: uint256 = 2**8 if d.profile == 0 else 2**32
    assert d.op <= LUT and d.profile <= 1 and (d.op != LUT or d.profile == 0), "impossible node: operator"
    assert (d.op == INPUT) == (node == 0), "impossible node: input"
    assert node == 0 or max(d.input_a, d.input_b) < node, "impossible node: reads a later one"
    assert self._size(d.h_out) and self._size(d.w_out) and self._size(d.c_out), "impossible node: output"
    assert d.h_out * d.w_out * d.c_out * self._width(d) < 2**32, "impossible node: output"
    assert max(max(d.z_x, d.z_r), d.z_y) < 256 and d.scale < 2**32, "impossible node: numbers"
    assert max(d.lo, d.hi) < top and max(d.residual, d.broadcast) <= 1, "impossible node: numbers"
    assert max(abs(d.shift_a), abs(d.shift_r)) <= 32, "impossible node: shift"
    if d.profile == 0:
        assert d.lo <= d.hi, "impossible node: clamp"
    else:
        assert max(d.lo & (2**31 - 1), d.hi & (2**31 - 1)) <= 255 * 2**23, "impossible node: clamp"
        assert self._ordered(d.lo) <= self._ordered(d.hi), "impossible node: clamp"
    if d.op == INPUT:
        return
    assert self._size(d.h) and self._size(d.w) and self._size(d.c_in), "impossible node: input"
    if d.op > AVGPOOL:
        assert d.h == d.h_out and d.w == d.w_out, "impossible node: shape"
        assert (d.c_in < d.c_out) if d.op == CONCAT else (d.c_in == d.c_out), "impossible node: shape"
        return
    assert self._size(d.kh) and self._size(d.kw) and self._size(d.stride), "impossible node: window"
    assert self._size(d.dilation) and self._size(d.groups) and d.pad < 2**24, "impossible node: window"
    assert d.c_in % d.groups == 0 and d.c_out % d.groups == 0, "impossible node: groups"
    assert self._products(d) or d.c_in == d.c_out, "impossible node: shape"
    assert (d.h_out - 1) * d.stride + (d.kh - 1) * d.dilation < d.h + 2 * d.pad, "impossible node: window"
    assert (d.w_out - 1) * d.stride + (d.kw - 1) * d.dilation < d.w + 2 * d.pad, "impossible node: window"
    if d.op == MATMUL:
        assert d.kh == 1 and d.kw == 1 and d.stride == 1 and d.pad == 0 and d.groups == 1, "impossible node: window"
    assert self._steps(d) <= MAX_STEPS, "impossible node: too many steps"


@internal
@pure
def _size(number: uint256) -> bool:
    return number > 0 and number < 2**24


@internal
@pure
def _ordered(bits: uint256) -> uint256:
    """@notice Bits of binary32 numbers that compare as the numbers do, -0 before +0."""
    return bits ^ (2**32 - 1 if bits >= 2**31 else 2**31)


# --- what is read by proofs ---


@internal
@pure
def _width(d: Descriptor) -> uint256:
    """@notice Bytes of an element."""
    return 1 if d.profile == 0 else 4


@internal
@view
def _described(d: Descriptor, node: uint256, context: Context, at: uint256) -> uint256:
    """@notice The position after a descriptor's siblings, which must lead to the model's root."""
    top: bytes32 = empty(bytes32)
    end: uint256 = 0
    top, end = merkle.climb(keccak256(concat(0x00, abi_encode(d))), node, context.nodes, at)
    assert top == context.model, "the descriptor is not in the model"
    return end


@internal
@view
def _output(context: Context, node: uint256, at: uint256) -> (bytes32, uint256):
    """@notice The root of a node's output, read before its siblings in the trace."""
    root: bytes32 = convert(numbers.word(at), bytes32)
    top: bytes32 = empty(bytes32)
    end: uint256 = 0
    top, end = merkle.climb(root, node, context.nodes, at + 32)
    assert top == context.trace, "the output is not in the trace"
    return root, end


@internal
@view
def _bytes(root: bytes32, size: uint256, first: uint256, length: uint256, at: uint256) -> (uint256, uint256):
    """@notice The position of bytes of a tensor that its leaves and their siblings prove, and the one after these."""
    top: bytes32 = empty(bytes32)
    start: uint256 = 0
    end: uint256 = 0
    top, start, end = merkle.range_root(at, size, first, first + length - 1)
    assert top == root, "the leaves are not in the tensor"
    return start, end


@internal
@view
def _claimed(window: Window, element: uint256, width: uint256, at: uint256) -> (int256, uint256):
    """@notice What the submitter says an element is, from the leaf that holds it and its siblings."""
    leaf: uint256 = element * width // 256
    assert leaf >= window.first and leaf < window.first + window.leaves, "element out of range"
    top: bytes32 = empty(bytes32)
    end: uint256 = 0
    top, end = merkle.climb(merkle.leaf_hash(at), leaf - window.first, window.leaves, at + 256)
    assert top == window.root, "the leaf is not among the opened"
    return self._element(at + element * width % 256, width), end


@internal
@view
def _element(at: uint256, width: uint256) -> int256:
    """@notice The code or the bits at a position; the word that ends there lies in calldata whatever came before."""
    return convert(numbers.word(at + width - 32) & (2**32 - 1 if width == 4 else 255), int256)


@internal
@view
def _sum_at(d: Descriptor, at: uint256, step: uint256) -> int256:
    """@notice A partial sum: int32, or the bits of a binary32 number."""
    word: uint256 = numbers.word(at + 4 * step - 28) & (2**32 - 1)
    if d.profile == 0 and word >= 2**31:
        return convert(word, int256) - 2**32
    return convert(word, int256)


# --- what a node computes ---


@internal
@pure
def _start(d: Descriptor) -> int256:
    """@notice What the sum of an element begins with."""
    if d.op == MAXPOOL and d.profile == 1:
        return convert(BELOW_ALL, int256)
    return 0


@internal
@pure
def _products(d: Descriptor) -> bool:
    return d.op == CONV or d.op == LINEAR or d.op == MATMUL


@internal
@pure
def _run(d: Descriptor) -> uint256:
    """@notice Taps that lie side by side in the input."""
    if not self._products(d):
        return 1
    if d.dilation == 1 and d.groups == 1:
        return d.kw * d.c_in
    return d.c_in // d.groups


@internal
@pure
def _runs(d: Descriptor) -> uint256:
    """@notice Runs behind an element; 0 for the operators that have no sum."""
    if d.op < CONV or d.op > AVGPOOL:
        return 0
    if self._products(d) and d.dilation == 1 and d.groups == 1:
        return d.kh
    return d.kh * d.kw


@internal
@pure
def _pieces(d: Descriptor) -> uint256:
    """@notice Steps of one run."""
    chunk: uint256 = 256 // self._width(d)
    return (self._run(d) + chunk - 1) // chunk


@internal
@pure
def _steps(d: Descriptor) -> uint256:
    """@notice Partial sums behind an element."""
    return self._runs(d) * self._pieces(d)


@internal
@pure
def _piece(d: Descriptor, element: uint256, run: uint256, first: uint256, last: uint256) -> Piece:
    """@notice Where the taps first to last (excluded) of a run lie; n = 0 where all are outside the image."""
    o: uint256 = element % d.c_out
    pixel: uint256 = element // d.c_out
    merged: bool = self._products(d) and d.dilation == 1 and d.groups == 1
    ky: uint256 = run if merged else run // d.kw
    kx: uint256 = 0 if merged else run % d.kw
    # everything from the padded corner on, so that nothing is negative
    y: uint256 = pixel // d.w_out * d.stride + ky * d.dilation
    x: uint256 = pixel % d.w_out * d.stride + kx * d.dilation
    if y < d.pad or y >= d.pad + d.h:
        return empty(Piece)
    lo: uint256 = first
    hi: uint256 = last
    within: uint256 = 0
    if merged:
        left: uint256 = d.pad * d.c_in  # elements of padding before a row
        at: uint256 = x * d.c_in
        if at < left:
            lo = max(lo, left - at)
        if at + hi > left + d.w * d.c_in:
            hi = max(left + d.w * d.c_in, at) - at
        if lo >= hi:
            return empty(Piece)
    else:
        if x < d.pad or x >= d.pad + d.w:
            return empty(Piece)
        within = o // (d.c_out // d.groups) * (d.c_in // d.groups) if self._products(d) else o
    row: uint256 = (y - d.pad) * d.w * d.c_in
    taps: uint256 = self._runs(d) * self._run(d)
    return Piece(
        x=row + x * d.c_in + within + lo - d.pad * d.c_in, w=o * taps + run * self._run(d) + lo, n=hi - lo
    )


@internal
@view
def _add(d: Descriptor, before: int256, x_at: uint256, w_at: uint256, n: uint256) -> int256:
    """@notice The accumulator after n more taps at positions of calldata."""
    if self._products(d):
        if d.profile == 1:
            return convert(numbers.chain(x_at, w_at, n, convert(before, uint256)), int256)
        if d.op == MATMUL:
            return before + numbers.dot(x_at, w_at, n, d.z_x, d.z_r, False)
        return before + numbers.dot(x_at, w_at, n, d.z_x, 128, True)
    x: int256 = self._element(x_at, self._width(d))
    if d.profile == 1:
        a: uint256 = convert(before, uint256)
        b: uint256 = convert(x, uint256)
        if d.op == MAXPOOL:
            return convert(numbers.max32(a, b), int256)
        return convert(numbers.canonical(numbers.add32(a, b)), int256)
    if d.op == MAXPOOL:
        return max(before, x)
    return before + x - convert(d.z_x, int256)


@internal
@view
def _weights(d: Descriptor, context: Context, at: uint256) -> (bytes32, uint256, uint256):
    """@notice The root and size of what multiplies the input; a matrix product takes it from the trace."""
    root: bytes32 = d.weight_root
    rows: uint256 = d.c_out * self._width(d)
    end: uint256 = at
    if d.op == MATMUL:
        root, end = self._output(context, d.input_b, at)
    return root, rows * self._runs(d) * self._run(d), end


@internal
@view
def _step(
    d: Descriptor, context: Context, element: uint256, step: uint256, before: int256, at: uint256
) -> (int256, uint256):
    """@notice The accumulator after one step. Witness: input a's root, its leaves; then the same of the weights."""
    chunk: uint256 = 256 // self._width(d)
    pieces: uint256 = self._pieces(d)
    first: uint256 = step % pieces * chunk
    p: Piece = self._piece(d, element, step // pieces, first, min(first + chunk, self._run(d)))
    if p.n == 0:
        return before, at
    width: uint256 = self._width(d)
    root: bytes32 = empty(bytes32)
    x_at: uint256 = 0
    w_at: uint256 = 0
    size: uint256 = 0
    end: uint256 = 0
    root, end = self._output(context, d.input_a, at)
    x_at, end = self._bytes(root, d.h * d.w * d.c_in * width, p.x * width, p.n * width, end)
    if self._products(d):
        root, size, end = self._weights(d, context, end)
        w_at, end = self._bytes(root, size, p.w * width, p.n * width, end)
    return self._add(d, before, x_at, w_at, p.n), end


@internal
@view
def _whole(d: Descriptor, context: Context, size: uint256, element: uint256, at: uint256) -> (int256, uint256):
    """
    @notice An element as a whole. Witness: the weights of all taps; input a's root; the leaves of each run that
            touches the image; then what the last step reads.
    """
    total: int256 = self._start(d)
    width: uint256 = self._width(d)
    runs: uint256 = self._runs(d)
    end: uint256 = at
    if runs > 0 and element * width < size:
        run: uint256 = self._run(d)
        taps: uint256 = runs * run
        first: uint256 = element % d.c_out * taps
        root: bytes32 = empty(bytes32)
        w_at: uint256 = 0
        x_at: uint256 = 0
        bytes_of: uint256 = 0
        if self._products(d):
            root, bytes_of, end = self._weights(d, context, end)
            w_at, end = self._bytes(root, bytes_of, first * width, taps * width, end)
        root, end = self._output(context, d.input_a, end)
        for i: uint256 in range(runs, bound=MAX_STEPS):
            p: Piece = self._piece(d, element, i, 0, run)
            if p.n > 0:
                x_at, end = self._bytes(root, d.h * d.w * d.c_in * width, p.x * width, p.n * width, end)
                total = self._add(d, total, x_at, w_at + (p.w - first) * width if self._products(d) else 0, p.n)
    return self._final(d, context, size, element, total, end)


@internal
@view
def _read(
    context: Context, node: uint256, elements: uint256, element: uint256, width: uint256, at: uint256
) -> (int256, uint256):
    """@notice One element of a node's output. Witness: the root with its siblings, then the leaf with its own."""
    root: bytes32 = empty(bytes32)
    end: uint256 = 0
    start: uint256 = 0
    root, end = self._output(context, node, at)
    start, end = self._bytes(root, elements * width, element * width, width, end)
    return self._element(start, width), end


@internal
@view
def _final(
    d: Descriptor, context: Context, size: uint256, element: uint256, total: int256, at: uint256
) -> (int256, uint256):
    """
    @notice The element behind its last accumulator. Witness: the epilogue's leaf, or input a's element; then, where
            it is read, input b's element. Beyond the end of the tensor there are zeros.
    """
    width: uint256 = self._width(d)
    if element * width >= size:
        return 0, at
    o: uint256 = element % d.c_out
    all: uint256 = d.h_out * d.w_out * d.c_out
    a: int256 = total
    b: int256 = 0
    shift_a: int256 = d.shift_a
    shift_b: int256 = d.shift_r
    start: uint256 = 0
    end: uint256 = at
    if d.op == CONV or d.op == LINEAR:
        start, end = self._bytes(d.epilogue_root, 8 * d.c_out, 8 * o, 8, end)
        record: uint256 = numbers.word(start - 24) & (2**64 - 1)
        bias: uint256 = record >> 32
        if d.residual == 1:
            b, end = self._read(context, d.input_b, all, element, width, end)
        if d.profile == 1:
            sum: uint256 = numbers.add32(convert(a, uint256), bias)
            if d.residual == 1:
                sum = numbers.add32(sum, convert(b, uint256))
            return self._clamped32(d, sum), end
        a += self._signed(bias, 32)
        shift_a = self._signed((record >> 24) & 255, 8)
        shift_b = self._signed((record >> 16) & 255, 8)
        if d.residual == 1:
            b -= convert(d.z_r, int256)
        else:
            shift_b = 0
    elif d.op == MATMUL:
        if d.profile == 1:
            return self._clamped32(d, convert(a, uint256)), end
        shift_b = 0
    elif d.op == MAXPOOL:
        if d.profile == 1:
            return self._clamped32(d, convert(a, uint256)), end
        return numbers.clamp(a, d.lo, d.hi), end
    elif d.op == AVGPOOL:
        if d.profile == 1:
            return self._clamped32(d, numbers.mul32(convert(a, uint256), d.scale)), end
        a = a * convert(d.scale, int256)
        shift_a = 16
        shift_b = 0
    elif d.op == CONCAT:
        pixel: uint256 = element // d.c_out
        if o < d.c_in:
            a, end = self._read(context, d.input_a, d.h * d.w * d.c_in, pixel * d.c_in + o, width, end)
        else:
            rest: uint256 = d.c_out - d.c_in
            a, end = self._read(
                context, d.input_b, d.h * d.w * rest, pixel * rest + o - d.c_in, width, end
            )
        return a, end
    else:
        a, end = self._read(context, d.input_a, all, element, width, end)
        if d.op == LUT:
            start, end = self._bytes(d.weight_root, 256, convert(a, uint256), 1, end)
            return self._element(start, 1), end
        if d.op == CLAMP:
            if d.profile == 1:
                return self._clamped32(d, convert(a, uint256)), end
            return numbers.clamp(a, d.lo, d.hi), end
        if d.broadcast == 1:
            b, end = self._read(context, d.input_b, d.c_out, o, width, end)
        else:
            b, end = self._read(context, d.input_b, all, element, width, end)
        if d.profile == 1:
            if d.op == ADD:
                return self._clamped32(d, numbers.add32(convert(a, uint256), convert(b, uint256))), end
            return self._clamped32(d, numbers.mul32(convert(a, uint256), convert(b, uint256))), end
        a -= convert(d.z_x, int256)
        b -= convert(d.z_r, int256)
        if d.op == MUL:
            a *= b
            b = 0
            shift_b = 0
    return numbers.clamp(numbers.combine(a, shift_a, b, shift_b) + convert(d.z_y, int256), d.lo, d.hi), end


@internal
@pure
def _clamped32(d: Descriptor, bits: uint256) -> int256:
    return convert(numbers.canonical(numbers.clamp32(bits, d.lo, d.hi)), int256)


@internal
@pure
def _signed(number: uint256, bits: uint256) -> int256:
    """@notice A two's complement number of some bits."""
    if number >> (bits - 1) == 1:
        return convert(number, int256) - convert(BIT << bits, int256)
    return convert(number, int256)
