"""Zero-cost scores: what they are by definition, that they leave no trace, and how they are ranked."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from suites.textnas import corpora
from systems.textnas import PAPER, Arch, Layer, Space
from systems.textnas.proxies import PROXIES, gradient_norm, mean_rank, naswot, scores, synflow
from systems.textnas.train import seeded
from systems.textnas.vocabulary import Batches


@pytest.fixture(scope="module")
def task():
    corpora.one_thread()
    return corpora.task()


@pytest.fixture(scope="module")
def batch(task):
    return next(iter(Batches(task.train, 32).epoch(0)))


def test_scores_leave_the_network_as_it_was(task, batch):
    net = task.network(Space(5).cut(PAPER), 0)
    before = {name: value.clone() for name, value in net.state_dict().items() if "running" not in name}
    with seeded(0):
        first = scores(net, batch)
    with seeded(0):
        assert scores(task.network(Space(5).cut(PAPER), 0), batch) == first
    assert set(first) == set(PROXIES)
    assert all(torch.equal(before[name], net.state_dict()[name]) for name in before)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_the_gradient_norm_is_that_of_the_loss(task, batch):
    net = task.network(Arch((Layer(-1, "conv3"), Layer(0, "gru", (0,)))), 0)
    with seeded(1):
        score = gradient_norm(net, batch)
    with seeded(1):
        F.cross_entropy(net(batch.tokens, batch.lengths), batch.labels).backward()
    weights = [p.grad for name, p in net.named_parameters() if name != "encoder.embedding"]
    assert score == pytest.approx(float(torch.cat([w.flatten() for w in weights]).norm()), rel=1e-4)


def test_synflow_is_invariant_to_signs_and_grows_with_weights(task, batch):
    arch = Arch((Layer(-1, "conv1"), Layer(0, "conv3")))
    net = task.network(arch, 0)
    score = synflow(net, batch)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.neg_()
    assert synflow(net, batch) == pytest.approx(score, abs=1e-4)
    with torch.no_grad():
        net.head.mul_(10.0)
        net.head_bias.mul_(10.0)
    assert synflow(net, batch) == pytest.approx(score + np.log(10.0), abs=0.05)


def test_naswot_is_the_log_determinant_of_agreeing_codes(task, batch):
    """A network that treats all rows alike scores worse than one that tells them apart."""
    net = task.network(Arch((Layer(-1, "conv3"), Layer(0, "gru"))), 0)
    sound = naswot(net, batch)
    with torch.no_grad():
        net.encoder.stem.zero_()  # every word looks alike
        net.encoder.stem_bias.fill_(1.0)
    assert naswot(net, batch) < sound


def test_ranks_are_means_over_scores_the_larger_the_better():
    rows = [dict.fromkeys(PROXIES, value) for value in (0.3, -np.inf, 2.0)]
    assert mean_rank(rows).tolist() == [1.0, 0.0, 2.0]
    rows[0]["naswot"] = 9.0
    assert mean_rank(rows)[0] > 1.0
