"""Trees, range proofs and layouts, against a second implementation by recursion."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from systems.agatha.commit import Tree, depth_of, leaf_hash, leaves_of, node_hash, root_of, verify
from systems.agatha.descriptor import (
    Descriptor,
    DescriptorError,
    Op,
    Profile,
    ProofError,
    float_bytes,
    tensor_bytes,
    tensor_from_bytes,
)

LEAVES = [bytes([i % 256, i // 256]) * 16 for i in range(300)]


def root_by_recursion(leaves):
    """Split at the largest power of two below the count: the same tree, seen from the top."""
    if len(leaves) == 1:
        return leaves[0]
    half = 1 << (len(leaves) - 1).bit_length() - 1
    return node_hash(root_by_recursion(leaves[:half]), root_by_recursion(leaves[half:]))


@given(st.integers(1, 300))
def test_the_root_is_that_of_the_recursive_definition(count):
    tree = Tree(LEAVES[:count])
    assert tree.root == root_by_recursion(LEAVES[:count])
    assert (tree.count, tree.depth) == (count, depth_of(count))


@given(st.data())
def test_any_range_is_proved_and_nothing_else_is(data):
    count = data.draw(st.integers(1, 100))
    first = data.draw(st.integers(0, count - 1))
    last = data.draw(st.integers(first, count - 1))
    tree = Tree(LEAVES[:count])
    siblings = tree.proof(first, last)
    verify(tree.root, LEAVES[first : last + 1], first, count, siblings)
    wrong = list(LEAVES[first : last + 1])
    wrong[data.draw(st.integers(0, last - first))] = b"\xff" * 32
    with pytest.raises(ProofError, match="lead to"):
        verify(tree.root, wrong, first, count, siblings)
    with pytest.raises(ProofError, match="too many"):
        verify(tree.root, LEAVES[first : last + 1], first, count, [*siblings, bytes(32)])
    if siblings:
        with pytest.raises(ProofError, match="too short"):
            verify(tree.root, LEAVES[first : last + 1], first, count, siblings[:-1])
    if last + 1 < count:  # the same leaves do not stand one place further on
        with contextlib.suppress(ProofError):  # which may want another number of siblings
            assert root_of(LEAVES[first : last + 1], first + 1, count, siblings) != tree.root


@given(st.integers(1, 200), st.data())
def test_children_lead_back_to_their_node(count, data):
    tree = Tree(LEAVES[:count])
    level = data.draw(st.integers(0, tree.depth))
    index = data.draw(st.integers(0, len(tree.levels[level]) - 1))
    steps = data.draw(st.integers(0, level))
    assert Tree(tree.below(level, index, steps)).root == tree.at(level, index)


def test_a_range_outside_and_an_empty_tree_are_refused():
    with pytest.raises(ProofError, match="leaves 3 to 5 of a tree of 5"):
        Tree(LEAVES[:5]).proof(3, 5)
    with pytest.raises(ProofError, match="at least one leaf"):
        Tree([])
    with pytest.raises(ProofError, match="do not lie"):
        root_of(LEAVES[:3], 3, 5, [])


@given(st.binary(max_size=1500))
def test_a_tensor_is_cut_into_leaves_of_256_bytes(data):
    tree = Tree.over(data)
    assert tree.count == leaves_of(len(data))
    assert tree.levels[0][-1] == leaf_hash(data[(tree.count - 1) * 256 :])


@given(st.lists(st.floats(width=32), min_size=1, max_size=40))
def test_committed_floats_have_one_zero_and_one_nan(values):
    tensor = np.array(values, np.float32)
    bits = np.frombuffer(float_bytes(tensor), ">u4")
    assert not (bits == 0x80000000).any()
    assert (bits[np.isnan(tensor)] == 0x7FC00000).all()
    d = Descriptor(Op.INPUT, Profile.IEEE32, 1, 1, len(values))
    np.testing.assert_array_equal(tensor_from_bytes(tensor_bytes(tensor), d).ravel(), tensor)


@given(st.sampled_from(Op), st.sampled_from(Profile), st.integers(-32, 32), st.integers(0, 255))
def test_a_descriptor_survives_its_encoding(op, profile, shift, z):
    if op is Op.LUT:
        profile = Profile.INT8
    c_out = 7 if op is Op.CONCAT else 6
    d = Descriptor(op, profile, 4, 4, c_out, 1, 2, 4, 4, 6, z_x=z, z_y=255 - z, shift=shift, weight_root=b"\x05" * 32)
    assert len(d.encode()) == 28 * 32
    assert Descriptor.decode(d.encode()) == d


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"h_out": 0}, "h_out is 0"),
        ({"c_in": 0}, "c_in is 0"),
        ({"groups": 4}, "4 groups do not divide"),
        ({"stride": 0}, "are 1 to 2\\^24"),
        ({"h_out": 9}, "read past the padding"),
        ({"lo": 256}, "lo is 256"),
        ({"shift": 40}, "shift is 40"),
        ({"weight_root": b"1"}, "weight_root has 1 bytes"),
        ({"op": Op.ADD}, "must have the same shape"),
        ({"op": Op.CONCAT, "h_out": 5}, "does not fit"),
        ({"op": Op.MAXPOOL}, "differ"),
        ({"c_in": 1 << 20, "kh": 1}, "partial sums"),
    ],
)
def test_a_node_that_contradicts_itself_is_refused(change, message):
    fields = {"h_out": 4, "w_out": 4, "c_out": 8, "h": 4, "w": 4, "c_in": 6, "kh": 3, "kw": 3, "pad": 1}
    if change.get("op") is Op.ADD:
        fields |= {"kh": 1, "kw": 1, "pad": 0}
    with pytest.raises(DescriptorError, match=message):
        Descriptor(**{"op": Op.CONV, "profile": Profile.INT8, **fields, **change}).checked()


def test_what_is_no_descriptor_is_refused():
    with pytest.raises(DescriptorError, match="has 896 bytes, not 3"):
        Descriptor.decode(b"abc")
    with pytest.raises(DescriptorError, match="not a descriptor"):
        Descriptor.decode(b"\x63".rjust(32, b"\x00") + bytes(27 * 32))
