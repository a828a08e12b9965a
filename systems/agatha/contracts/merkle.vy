# pragma version ~=0.4.3
"""
@title Merkle paths read from calldata where they lie
@notice Leaves of 256 bytes hash as keccak(0x00 || bytes), inner nodes as keccak(0x01 || left || right). A node
        without a partner moves up unchanged, so a tree has exactly the leaves that its size says.
@dev A witness is one byte string that is read from left to right; `at` is always the position of what comes next.
"""

LEAF_BYTES: constant(uint256) = 256
MAX_LEAVES: constant(uint256) = 136  # in one range
MAX_DEPTH: constant(uint256) = 32
MAX_CHILDREN: constant(uint256) = 64


@internal
@pure
def node_hash(left: bytes32, right: bytes32) -> bytes32:
    """@notice The hash of an inner node."""
    return keccak256(concat(0x01, left, right))


@internal
@view
def leaf_hash(at: uint256) -> bytes32:
    """@notice The hash of the leaf at a position of calldata."""
    return keccak256(concat(0x00, slice(msg.data, at, 256)))


@internal
@pure
def leaves_of(size: uint256) -> uint256:
    """@notice Leaves of a tensor of size bytes."""
    return (size + 255) // 256


@internal
@pure
def depth_of(count: uint256) -> uint256:
    """@notice Levels between the root and count leaves."""
    depth: uint256 = 0
    rest: uint256 = count - 1
    for i: uint256 in range(MAX_DEPTH):
        if rest == 0:
            break
        rest >>= 1
        depth += 1
    return depth


@internal
@view
def climb(leaf: bytes32, index: uint256, count: uint256, at: uint256) -> (bytes32, uint256):
    """@notice The root above one leaf of count, by the siblings at a position; and the position after them."""
    assert index < count, "leaf index out of range"
    top: bytes32 = leaf
    i: uint256 = index
    last: uint256 = count - 1
    next: uint256 = at
    for level: uint256 in range(MAX_DEPTH):
        if last == 0:
            break
        if i & 1 == 1:
            top = self.node_hash(convert(slice(msg.data, next, 32), bytes32), top)
            next = unsafe_add(next, 32)
        elif i != last:
            top = self.node_hash(top, convert(slice(msg.data, next, 32), bytes32))
            next = unsafe_add(next, 32)
        i >>= 1
        last >>= 1
    return top, next


@internal
@view
def range_root(at: uint256, size: uint256, first: uint256, last: uint256) -> (bytes32, uint256, uint256):
    """
    @notice The root above the leaves that hold the bytes first to last of a tensor of size bytes: the leaves lie at
            a position, their siblings after them.
    @return The root, the position of byte first, and the position after the siblings.
    """
    assert first <= last and last < size, "range outside the tensor"
    lo: uint256 = first // LEAF_BYTES
    hi: uint256 = last // LEAF_BYTES
    assert hi - lo < MAX_LEAVES, "range too long"
    hashes: bytes32[MAX_LEAVES] = empty(bytes32[MAX_LEAVES])
    next: uint256 = at
    for i: uint256 in range(hi - lo + 1, bound=MAX_LEAVES):
        hashes[i] = self.leaf_hash(next)
        next = unsafe_add(next, LEAF_BYTES)
    end: uint256 = self.leaves_of(size) - 1  # the last index of the level
    for level: uint256 in range(MAX_DEPTH):
        if end == 0:
            break
        width: uint256 = hi - lo + 1
        read: uint256 = 0
        written: uint256 = 0
        if lo & 1 == 1:
            hashes[0] = self.node_hash(convert(slice(msg.data, next, 32), bytes32), hashes[0])
            next = unsafe_add(next, 32)
            read = 1
            written = 1
        for pair: uint256 in range(MAX_LEAVES):
            if read + 1 >= width:
                break
            hashes[written] = self.node_hash(hashes[read], hashes[read + 1])
            read += 2
            written += 1
        if read < width:
            if hi == end:
                hashes[written] = hashes[read]
            else:
                hashes[written] = self.node_hash(hashes[read], convert(slice(msg.data, next, 32), bytes32))
                next = unsafe_add(next, 32)
        lo >>= 1
        hi >>= 1
        end >>= 1
    return hashes[0], at + first % LEAF_BYTES, next


@internal
@pure
def root_of(children: DynArray[bytes32, MAX_CHILDREN]) -> bytes32:
    """@notice The root above neighbours that start at an even place of every level."""
    hashes: DynArray[bytes32, MAX_CHILDREN] = children
    width: uint256 = len(children)
    for level: uint256 in range(MAX_DEPTH):
        if width == 1:
            break
        for i: uint256 in range(width // 2, bound=MAX_CHILDREN):
            hashes[i] = self.node_hash(hashes[2 * i], hashes[2 * i + 1])
        if width % 2 == 1:
            hashes[width // 2] = hashes[width - 1]
        width = (width + 1) // 2
    return hashes[0]
