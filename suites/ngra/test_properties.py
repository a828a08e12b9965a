"""Whatever the program, the graph and the plan: the values and gradients of the reference."""

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from suites.ngra.programs import (
    Program,
    assert_equal_results,
    data,
    expressions,
    gradients,
    graphs,
    nearly_tied,
    products_in,
)
from systems.ngra import Graph, reference
from systems.ngra import settings as how

# Each new kernel takes a compiler half a second, so that a failing program is not made smaller here.
UNSHRUNK = (Phase.explicit, Phase.generate)
ACCUMULATORS = st.sampled_from(["sum", "mean", "max", "min", "softmax"])


def compare(tree, accumulator, graph, width, seed, whole, **chosen):
    layer = Program(tree, accumulator, width).double()
    x, edge = data(graph, width, seed, whole=whole)
    want = gradients(layer, lambda: reference(layer, graph, x, edge), x, edge)
    with how(**{"pointwise": 0, **chosen}):
        got = gradients(layer, lambda: layer(graph, x, edge), x, edge)
    if accumulator in {"max", "min"} and products_in(tree) and nearly_tied(layer, graph, x, edge):
        got, want = (got[0], ()), (want[0], ())  # the values are one, the winner is not
    assert_equal_results(got, want, 1e-9, 1e-10)


@settings(max_examples=30, phases=UNSHRUNK)
@given(expressions(), ACCUMULATORS, graphs(), st.sampled_from([1, 2, 5, 16]), st.integers(0, 99), st.booleans())
def test_any_program_in_generated_kernels_equals_the_reference(tree, accumulator, graph, width, seed, whole):
    compare(tree, accumulator, graph, width, seed, whole)


@settings(max_examples=100)
@given(expressions(), ACCUMULATORS, graphs(), st.sampled_from([1, 2, 5, 16]), st.integers(0, 99), st.booleans())
def test_any_optimised_program_in_blocks_equals_the_reference(tree, accumulator, graph, width, seed, whole):
    compare(tree, accumulator, graph, width, seed, whole, backend="torch")


@settings(max_examples=50)
@given(expressions(), ACCUMULATORS, graphs(), st.sampled_from([1, 5]), st.integers(0, 99), st.booleans())
def test_any_program_without_the_optimiser_equals_the_reference(tree, accumulator, graph, width, seed, whole):
    compare(tree, accumulator, graph, width, seed, whole, optimize=False)


@pytest.mark.parametrize("tree", ["two", ("add", "two", "two"), ("total", "two"), ("cat", "two", "bias")])
@pytest.mark.parametrize("accumulator", ["sum", "mean", "max", "softmax"])
@pytest.mark.parametrize("arcs", [([], []), ([0, 1, 1], [1, 0, 1])], ids=["no arcs", "three arcs"])
def test_a_message_may_be_a_number(tree, accumulator, arcs):
    # A number repeated over a row once stayed a float, which has no `expand`.
    for chosen in ({}, {"backend": "torch"}, {"optimize": False}):
        compare(tree, accumulator, Graph(*arcs, vertices=2 if arcs[0] else 0), 5, 0, False, **chosen)


@pytest.mark.parametrize(
    "tree",
    [
        ("linear", ("add", ("where", "two", "edge_scalar"), ("cat", "dst_scalar", "src"))),
        ("cat", ("linear", ("cat", "dst", "bias")), ("mul", ("add", "dst", "two"), ("mul", "src_scalar", "two"))),
        ("cat", ("neg", ("div", "edge_scalar", "dst")), ("linear", ("relu", "bias"))),
    ],
)
def test_sums_of_several_widths_in_one_layer(tree):
    # Columns of two sums once shared a node, and so a width.
    compare(tree, "mean", Graph([0, 1, 1, 2], [1, 0, 1, 2], vertices=4), 16, 2, False)
