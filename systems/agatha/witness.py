"""What a player shows the arbiter: the bytes that one element or one step is computed from, with their proofs.

A witness is one byte string in the order in which `contracts/arbiter.vy` reads it. Nothing in it says where it
belongs: the contract derives every position from the descriptor, and a witness in any other order fails its proofs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from systems.agatha.arbiter import Node, pieces
from systems.agatha.commit import Model, Trace, Tree
from systems.agatha.descriptor import (
    CONVOLUTIONS,
    EPILOGUE_BYTES,
    LEAF_BYTES,
    POOLS,
    PRODUCTS,
    Descriptor,
    Op,
    Profile,
)

GAS_OF_A_ROUND = 90_000
"""About what picking an element and posting its sums costs: elements that cost less are arbitrated as a whole."""


@dataclass(frozen=True)
class Evidence:
    """One node of a disputed trace: the model, the tensors that both sides agree on, the submitter's tree of roots."""

    model: Model
    trace: Trace
    roots: Tree
    node: int

    @property
    def descriptor(self) -> Descriptor:
        """Of the node."""
        return self.model.descriptors[self.node]

    def operands(self) -> Node:
        """The node over the agreed inputs."""
        return Node.of(self.model, self.trace.tensors, self.node)

    def described(self) -> bytes:
        """The siblings of the node's descriptor in the model."""
        return b"".join(self.model.tree.proof(self.node, self.node))

    def whole(self, element: int) -> bytes:
        """All that one element is computed from."""
        d, parts = self.descriptor, []
        if d.runs and element < d.elements:
            width = d.profile.width
            if d.op in PRODUCTS:
                first = element % d.c_out * d.taps
                parts += self._weights(first * width, d.taps * width)
            parts.append(self._output(d.input_a))
            for piece in pieces(d, element, d.run):
                if piece.n:
                    parts.append(_range(self.trace.tree(d.input_a), self._a, piece.x * width, piece.n * width))
        return b"".join(parts) + self.final(element)

    def step(self, element: int, step: int) -> bytes:
        """All that one step behind an element reads."""
        d = self.descriptor
        width = d.profile.width
        piece = list(pieces(d, element, d.chunk))[step]
        if not piece.n:
            return b""
        parts = [
            self._output(d.input_a),
            _range(self.trace.tree(d.input_a), self._a, piece.x * width, piece.n * width),
        ]
        if d.op in PRODUCTS:
            parts += self._weights(piece.w * width, piece.n * width)
        return b"".join(parts)

    def final(self, element: int) -> bytes:
        """All that the element behind its last accumulator reads."""
        d = self.descriptor
        if element >= d.elements:
            return b""
        o, pixel = element % d.c_out, element // d.c_out
        if d.op in CONVOLUTIONS:
            table = self.model.epilogues[self.node]
            record = _range(Tree.over(table), table, EPILOGUE_BYTES * o, EPILOGUE_BYTES)
            return record + (self._read(d.input_b, element) if d.residual else b"")
        if d.op is Op.CONCAT:
            if o < d.c_in:
                return self._read(d.input_a, pixel * d.c_in + o)
            return self._read(d.input_b, pixel * (d.c_out - d.c_in) + o - d.c_in)
        if d.runs:
            return b""
        a = self._read(d.input_a, element)
        if d.op is Op.LUT:
            table = self.model.weights[self.node]
            return a + _range(Tree.over(table), table, self._a[element], 1)
        if d.op is Op.CLAMP:
            return a
        return a + self._read(d.input_b, o if d.broadcast else element)

    @property
    def _a(self) -> bytes:
        return self.trace.tensors[self.descriptor.input_a]

    def _output(self, node: int) -> bytes:
        """The root of a node's output with its siblings in the submitter's trace."""
        return self.roots.at(0, node) + b"".join(self.roots.proof(node, node))

    def _weights(self, first: int, length: int) -> list[bytes]:
        d = self.descriptor
        if d.op is Op.MATMUL:
            data = self.trace.tensors[d.input_b]
            return [self._output(d.input_b), _range(self.trace.tree(d.input_b), data, first, length)]
        data = self.model.weights[self.node]
        return [_range(self.model.weight_tree(self.node), data, first, length)]

    def _read(self, node: int, element: int) -> bytes:
        width = self.descriptor.profile.width
        data = self.trace.tensors[node]
        return self._output(node) + _range(self.trace.tree(node), data, element * width, width)


def leaves(data: bytes, first: int, count: int) -> bytes:
    """`count` leaves from leaf `first` on, the last one filled up with zeros."""
    return data[first * LEAF_BYTES : (first + count) * LEAF_BYTES].ljust(count * LEAF_BYTES, b"\x00")


def _range(tree: Tree, data: bytes, first: int, length: int) -> bytes:
    """The leaves that hold some bytes, and their siblings."""
    lo, hi = first // LEAF_BYTES, (first + length - 1) // LEAF_BYTES
    return leaves(data, lo, hi - lo + 1) + b"".join(tree.proof(lo, hi))


def gas_of_whole(d: Descriptor) -> int:
    """About what it costs to have an element computed as a whole: calldata, and arithmetic where that is more."""
    width = d.profile.width
    read = d.taps * width * (2 if d.op in PRODUCTS else 1)
    per_run = 2 * LEAF_BYTES + 32 * 2 * max(d.input_bytes // LEAF_BYTES, 1).bit_length()
    data = read + d.runs * (per_run if d.op in PRODUCTS else per_run - LEAF_BYTES)
    arithmetic = 2_300 if d.profile is Profile.IEEE32 and d.op is not Op.MAXPOOL else 40
    return max(40 * data, 16 * data + arithmetic * d.taps)


def one_step(d: Descriptor) -> Descriptor:
    """A node whose elements cost about what one step of `d` costs."""
    if d.op in POOLS:
        return replace(d, kh=1, kw=1)
    return replace(d, kh=1, kw=1, groups=1, c_in=min(d.run, d.chunk))


def cheaper_whole(d: Descriptor) -> bool:
    """Whether an element of a node is cheaper to arbitrate as a whole than by a step of its sum."""
    return gas_of_whole(d) < GAS_OF_A_ROUND + gas_of_whole(one_step(d))
