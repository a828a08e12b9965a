"""Node or link: what is slow is named, from pair bandwidths alone; no Ray needed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from systems.anubis.links import UnusablePairs, attribute
from systems.anubis.probes.network import rounds


@given(st.integers(0, 40))
def test_a_tournament_has_every_pair_once_in_rounds_of_disjoint_pairs(nodes):
    tournament = rounds(nodes)
    pairs = [pair for one in tournament for pair in one]
    assert sorted(pairs) == [(i, j) for i in range(nodes) for j in range(i + 1, nodes)]
    for one in tournament:
        members = [node for pair in one for node in pair]
        assert len(members) == len(set(members))
    assert len(tournament) == (0 if nodes < 2 else nodes - 1 + nodes % 2)


def pairs_of(node, link):
    return np.minimum(np.minimum(node[:, None], node[None, :]), link)


@st.composite
def fleets(draw):
    """A fleet whose slow nodes are fewer than half, and each node's slow links fewer than a quarter."""
    n = draw(st.integers(6, 24))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    noise = draw(st.sampled_from([0.0, 0.002]))
    node = np.full(n, 1e9)
    slow_nodes = random.choice(n, draw(st.integers(0, (n - 1) // 4)), replace=False)
    node[slow_nodes] *= random.uniform(0.4, 0.85, len(slow_nodes))
    link = np.full((n, n), np.inf)
    room = np.full(n, max(1, n // 4 - 1))
    slow_links = set()
    for _ in range(draw(st.integers(0, n // 3))):
        i, j = sorted(random.choice(n, 2, replace=False).tolist())
        if room[i] and room[j] and (i, j) not in slow_links:
            room[i], room[j] = room[i] - 1, room[j] - 1
            link[i, j] = link[j, i] = min(node[i], node[j]) * random.uniform(0.3, 0.85)
            slow_links.add((i, j))
    B = pairs_of(node, link) * (1 + noise * random.standard_normal((n, n)).clip(-3, 3))
    return B, sorted(slow_nodes.tolist()), sorted(slow_links)


@given(fleets())
def test_slow_nodes_and_slow_links_are_told_apart(fleet):
    B, nodes, links = fleet
    found = attribute(B)
    assert sorted(found.slow_nodes) == nodes
    assert sorted(found.slow_links) == links


@given(fleets(), st.randoms(use_true_random=False))
def test_the_numbering_of_nodes_and_the_unit_do_not_matter(fleet, shuffler):
    B, nodes, links = fleet
    order = list(range(len(B)))
    shuffler.shuffle(order)
    found = attribute(B[np.ix_(order, order)] * 1e-6)
    assert sorted(order[i] for i in found.slow_nodes) == nodes
    assert sorted(tuple(sorted((order[i], order[j]))) for i, j in found.slow_links) == links


def test_pairs_that_could_not_be_measured_hide_nothing():
    node = np.full(8, 1e9)
    node[3] = 4e8
    B = pairs_of(node, np.inf)
    B[5, :] = B[:, 5] = np.nan
    B[0, 1] = B[1, 0] = np.nan
    B[2, 4] = np.nan  # one direction is enough
    found = attribute(B)
    assert found.slow_nodes == (3,)
    assert found.slow_links == ()
    assert found.unmeasured == (5,)
    assert np.isnan(found.node[5])


def test_a_mean_over_partners_would_accuse_a_healthy_node_of_a_slow_link():
    """One link at a tenth costs each of its nodes more than a node at 90 % loses by itself."""
    node = np.full(8, 1e9)
    node[7] = 9e8
    link = np.full((8, 8), np.inf)
    link[0, 1] = link[1, 0] = 1e8
    B = pairs_of(node, link)
    means = np.nanmean(np.where(np.eye(8, dtype=bool), np.nan, B), axis=1)
    assert set(np.argsort(means)[:2].tolist()) == {0, 1}
    found = attribute(B)
    assert (found.slow_nodes, found.slow_links) == ((7,), ((0, 1),))


@pytest.mark.parametrize("bad", [
    np.ones((2, 2)), np.ones((3, 4)), np.ones(3), np.zeros((4, 4)), np.full((4, 4), np.nan), np.full((4, 4), np.inf),
])  # fmt: skip
def test_what_is_no_matrix_of_bandwidths_is_refused(bad):
    with pytest.raises(UnusablePairs):
        attribute(bad)
