"""What a game can cost, and the bond that makes up for it."""

from __future__ import annotations

from systems.agatha.commit import Model, depth_of
from systems.agatha.descriptor import LEAF_BYTES, MAX_STEPS, Descriptor
from systems.agatha.game import Focus
from systems.agatha.witness import cheaper_whole, gas_of_whole, one_step

# Measured on eth-tester by suites/agatha/test_bond.py, which fails where a move costs more or these are far off.
GAS_OF_A_MOVE = 62_000
"""At most what a move costs besides what it carries: the transaction, storage, context and descriptor, the log."""
GAS_OF_POSTING = 22_500
"""What the first move costs more: it writes to two words of storage that were empty."""
GAS_OF_A_BYTE = 50
"""At most what a byte that is carried costs with being hashed and logged; calldata alone costs 40 at most."""
GAS_OF_A_DESCRIPTOR = 3_000
"""At most what a further descriptor costs a move: 28 words, most of them zeros."""


def min_bond(model: Model, gas_price: int) -> int:
    """Wei that a bond should be at least: twice what a whole game about a model can cost, at `gas_price` wei."""
    return 2 * worst_gas(model) * gas_price


def worst_gas(model: Model) -> int:
    """A bound on the gas of all moves of one game, both players' together, claim and challenge included.

    It follows the game down to its dearest node: as many rounds as the trees are deep, each with all its children; a
    node that is doubted and described; and at the end the dearer of an element as a whole, where a player would have it
    so, and one step of its sum that is demanded and proved, with the longest list of sums that a submitter can post.
    """
    nodes = len(model.descriptors)
    path = 32 * GAS_OF_A_BYTE * depth_of(nodes)  # the siblings of one leaf over the nodes
    start = 2 * GAS_OF_A_MOVE + GAS_OF_POSTING + _gas_of_search(Focus.on_trace(nodes)) + 2 * path
    described = GAS_OF_A_MOVE + 2 * (GAS_OF_A_DESCRIPTOR + path)  # a doubted node shows those that it reads
    return start + described + max(_gas_of_judgement(d, path) for d in model.descriptors)


def _gas_of_search(focus: Focus) -> int:
    """Of revealing and picking down to a leaf of the trace, or to the opened leaves of an output."""
    gas = 0
    while focus.depth and (levels := focus.levels()):
        # the focus at the left edge has the most children; to pick one takes a sibling a level
        gas += 2 * GAS_OF_A_MOVE + 32 * GAS_OF_A_BYTE * (focus.width(levels) + levels + 1)
        focus = focus.child(levels, 0)
    return gas or 2 * GAS_OF_A_MOVE


def _gas_of_judgement(d: Descriptor, path: int) -> int:
    focus = Focus.on_output(d.output_bytes)
    opened = GAS_OF_A_MOVE + 4 * LEAF_BYTES * GAS_OF_A_BYTE
    reads = 3 * (path + GAS_OF_A_BYTE * (2 * LEAF_BYTES + 32 * focus.depth))  # the epilogue, and up to two elements
    whole = GAS_OF_A_MOVE + reads + 2 * gas_of_whole(d)
    sums = 2 * GAS_OF_A_BYTE * 4 * MAX_STEPS  # posted, and shown again
    step = 4 * GAS_OF_A_MOVE + sums + reads + 2 * gas_of_whole(one_step(d))  # pick, post, demand, prove
    return _gas_of_search(focus) + opened + (max(step, whole) if cheaper_whole(d) else step)
