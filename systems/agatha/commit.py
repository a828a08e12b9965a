"""Commitments: Merkle trees over leaves of 256 bytes, range proofs, and what a model and a run of it commit to.

Trees are binary and never padded: a node without a partner moves up unchanged, so that a tree of n leaves has
exactly n of them and nothing can hide beyond the last. Leaves hash as keccak(0x00 || bytes), inner nodes as
keccak(0x01 || left || right). The game opens several levels at once (`Tree.below`), which gives it the few rounds of
a wide tree, while a proof costs one hash a level: a 16-ary tree would need fifteen.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sha3

from systems.agatha.descriptor import (
    CONVOLUTIONS,
    EPILOGUE_BYTES,
    LEAF_BYTES,
    Descriptor,
    DescriptorError,
    Op,
    ProofError,
    check_node,
)

HASH_BYTES = 32


def keccak(data: bytes) -> bytes:
    """keccak-256, 32 bytes."""
    return sha3.keccak_256(data).digest()


def leaf_hash(data: bytes) -> bytes:
    """The hash of a leaf of a tensor, filled up with zeros to 256 bytes, or of a descriptor, as it is."""
    return keccak(b"\x00" + (data if len(data) > LEAF_BYTES else data.ljust(LEAF_BYTES, b"\x00")))


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node."""
    return keccak(b"\x01" + left + right)


def leaves_of(size: int) -> int:
    """Leaves of a tensor of `size` bytes, at least one."""
    return max(1, -(-size // LEAF_BYTES))


def depth_of(count: int) -> int:
    """Levels between the root and the leaves of a tree of `count` leaves."""
    return (count - 1).bit_length()


class Tree:
    """A Merkle tree over leaf hashes, 32 bytes each."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        if not leaves:
            raise ProofError("a tree needs at least one leaf")
        self.levels = [tuple(leaves)]
        while len(level := self.levels[-1]) > 1:
            pairs = [node_hash(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
            self.levels.append((*pairs, *level[len(level) & ~1 :]))

    @classmethod
    def over(cls, data: bytes) -> Tree:
        """The tree over the leaves of 256 bytes of a tensor, of weights or of an epilogue table."""
        return cls([leaf_hash(data[start : start + LEAF_BYTES]) for start in range(0, max(1, len(data)), LEAF_BYTES)])

    @property
    def root(self) -> bytes:
        """32 bytes."""
        return self.levels[-1][0]

    @property
    def count(self) -> int:
        """Leaves."""
        return len(self.levels[0])

    @property
    def depth(self) -> int:
        """Levels between the root and the leaves."""
        return len(self.levels) - 1

    def at(self, level: int, index: int) -> bytes:
        """The hash of one node; level 0 holds the leaves."""
        return self.levels[level][index]

    def below(self, level: int, index: int, steps: int) -> list[bytes]:
        """The hashes that lie `steps` levels below one node, left to right; fewer than 2^steps at the right edge."""
        return list(self.levels[level - steps][index << steps : (index + 1) << steps])

    def proof(self, first: int, last: int, *, top: int | None = None) -> list[bytes]:
        """The siblings that lead from the leaves `first` to `last` to the root (or up to level `top`).

        Bottom up, at each level the left sibling before the right one. Raises ProofError for a range outside.
        """
        if not 0 <= first <= last < self.count:
            raise ProofError(f"leaves {first} to {last} of a tree of {self.count}")
        siblings = []
        for level in self.levels[: self.depth if top is None else top]:
            if first & 1:
                siblings.append(level[first - 1])
            if not last & 1 and last + 1 < len(level):
                siblings.append(level[last + 1])
            first, last = first >> 1, last >> 1
        return siblings

    def patched(self, known: Mapping[tuple[int, int], bytes]) -> Tree:
        """This tree with other hashes at some (level, index): what is known of a tree that differs from this one."""
        other = Tree.__new__(Tree)
        other.levels = [
            tuple(known.get((level, index), value) for index, value in enumerate(values))
            for level, values in enumerate(self.levels)
        ]
        return other


def root_of(leaves: Sequence[bytes], first: int, count: int, siblings: Sequence[bytes]) -> bytes:
    """The root that a range of leaves starting at `first` of `count` leads to by `siblings`.

    Raises ProofError where siblings are missing or left over, or where the range lies outside.
    """
    if not leaves or first < 0 or first + len(leaves) > count:
        raise ProofError(f"{len(leaves)} leaves from {first} do not lie in a tree of {count}")
    rest = list(reversed(siblings))
    level, last = list(leaves), first + len(leaves) - 1
    while count > 1:
        try:
            if first & 1:
                level.insert(0, rest.pop())
            if not last & 1 and last + 1 < count:
                level.append(rest.pop())
        except IndexError:
            raise ProofError(f"a proof of {len(siblings)} hashes is too short") from None
        level = [node_hash(*level[i : i + 2]) if i + 1 < len(level) else level[i] for i in range(0, len(level), 2)]
        first, last, count = first >> 1, last >> 1, (count + 1) >> 1
    if rest:
        raise ProofError(f"a proof of {len(siblings)} hashes has {len(rest)} too many")
    return level[0]


def verify(root: bytes, leaves: Sequence[bytes], first: int, count: int, siblings: Sequence[bytes]) -> None:
    """Raises ProofError unless the range of leaf hashes belongs to `root`."""
    found = root_of(leaves, first, count, siblings)
    if found != root:
        raise ProofError(f"leaves {first} to {first + len(leaves) - 1} lead to {found.hex()}, not to {root.hex()}")


@dataclass(frozen=True)
class Job:
    """A computation to be claimed: a model, its number of nodes, and the root of its input."""

    model_root: bytes
    nodes: int
    input_root: bytes

    @property
    def id(self) -> bytes:
        """32 bytes: what claims name."""
        return keccak(self.model_root + self.nodes.to_bytes(32, "big") + self.input_root)


@dataclass(frozen=True)
class Model:
    """What the chain needs to know of a graph: descriptors in topological order, and the bytes that they commit to.

    `weights[i]`, `epilogues[i]`: as `descriptor.weight_bytes` and `epilogue_bytes` lay them out, empty where a node
    has none. Raises DescriptorError for nodes that contradict themselves or are out of order, and ProofError for
    bytes that their roots do not fit.
    """

    descriptors: tuple[Descriptor, ...]
    weights: tuple[bytes, ...]
    epilogues: tuple[bytes, ...]

    def __post_init__(self) -> None:
        if not self.descriptors or len({len(self.descriptors), len(self.weights), len(self.epilogues)}) != 1:
            raise DescriptorError("a model has at least one node, and as many weights and epilogues as nodes")
        for i, node in enumerate(self.descriptors):
            check_node(self.descriptors, i)
            _check_sizes(node, i, len(self.weights[i]), len(self.epilogues[i]))
            if self.weights[i] and self.weight_tree(i).root != node.weight_root:
                raise ProofError(f"node {i}: its weights do not hash to its weight_root")
            if self.epilogues[i] and Tree.over(self.epilogues[i]).root != node.epilogue_root:
                raise ProofError(f"node {i}: its epilogue table does not hash to its epilogue_root")

    @functools.cached_property
    def tree(self) -> Tree:
        """The tree over the encoded descriptors."""
        return Tree([leaf_hash(descriptor.encode()) for descriptor in self.descriptors])

    @functools.cached_property
    def _weight_trees(self) -> dict[int, Tree]:
        return {}

    def weight_tree(self, node: int) -> Tree:
        """The tree over the weights of one node, built when first asked for."""
        if node not in self._weight_trees:
            self._weight_trees[node] = Tree.over(self.weights[node])
        return self._weight_trees[node]

    @property
    def root(self) -> bytes:
        """32 bytes, the same on every machine."""
        return self.tree.root

    def job(self, input_root: bytes) -> Job:
        """The job of running this model on the input behind `input_root`."""
        return Job(self.root, len(self.descriptors), input_root)


def _check_sizes(node: Descriptor, i: int, weights: int, epilogue: int) -> None:
    """Raises DescriptorError where bytes are there, but not as many as the node reads."""
    if node.op in CONVOLUTIONS:
        expected = (node.c_out * node.taps * node.profile.width, EPILOGUE_BYTES * node.c_out)
    else:
        expected = (LEAF_BYTES if node.op is Op.LUT else 0, 0)
    for what, size, right in (("weights", weights, expected[0]), ("epilogue", epilogue, expected[1])):
        if size not in {0, right}:
            raise DescriptorError(f"node {i} ({node.op.name}) has {size} bytes of {what}, expected {right}")


@dataclass(frozen=True)
class UncheckedModel(Model):
    """A model as somebody committed it, which may be impossible. `fault` says where; a `Doubter` wins there."""

    def __post_init__(self) -> None:
        """Checks nothing."""

    @property
    def fault(self) -> tuple[int, str] | None:
        """The first node that nobody can defend, and why; None where a `Model` can be made of this."""
        for i in range(len(self.descriptors)):
            try:
                check_node(self.descriptors, i)
                _check_sizes(self.descriptors[i], i, len(self.weights[i]), len(self.epilogues[i]))
            except DescriptorError as error:
                return i, str(error)
        return None


class Trace:
    """The outputs of all nodes in one run, as bytes (`descriptor.tensor_bytes`), with their trees built when needed."""

    def __init__(self, tensors: Sequence[bytes]) -> None:
        self.tensors = tuple(tensors)
        self._trees: dict[int, Tree] = {}

    def tree(self, node: int) -> Tree:
        """The tree over the output of one node."""
        if node not in self._trees:
            self._trees[node] = Tree.over(self.tensors[node])
        return self._trees[node]

    @functools.cached_property
    def roots(self) -> Tree:
        """The tree whose leaves are the output roots of nodes 0 to n - 1."""
        return Tree([self.tree(node).root for node in range(len(self.tensors))])

    @property
    def root(self) -> bytes:
        """32 bytes."""
        return self.roots.root

    @property
    def output_root(self) -> bytes:
        """The root of the last node's output."""
        return self.tree(len(self.tensors) - 1).root
