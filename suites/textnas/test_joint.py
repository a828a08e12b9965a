"""Several networks as one: at least as good as the worst, distilled into one, and rounded to bytes."""

import pytest
import torch

from suites.textnas import corpora
from systems.textnas import PAPER, Budget, Space, evaluate
from systems.textnas.joint import Joint, distil, quantised


@pytest.fixture(scope="module")
def trained():
    corpora.one_thread()
    task = corpora.task(400, lr=5e-3)
    arch = Space(3).cut(PAPER)
    return task, arch, [task.trained(arch, 400 * epochs, seed)[0] for seed, epochs in ((0, 8), (1, 8), (2, 1))]


def test_the_joint_network_leans_on_those_that_are_right(trained):
    task, _, nets = trained
    alone = [evaluate(net, task.valid) for net in nets]
    joint = Joint(nets)
    weights = joint.weigh(task.valid)
    assert sum(weights) == pytest.approx(1.0, abs=1e-5)
    assert min(weights) == weights[alone.index(min(alone))]
    assert evaluate(joint, task.valid) >= sorted(alone)[1]


def test_a_student_learns_from_a_teacher_what_wrong_labels_would_hide(trained):
    """The student sees labels of which 40 % are turned over; the teacher knows better."""
    task, arch, nets = trained
    flipped = corpora.task(400, lr=5e-3)
    turned = torch.rand(400, generator=torch.Generator().manual_seed(0)) < 0.4
    flipped.train.labels[turned.numpy()] ^= 1
    alone = flipped.trained(arch, 400 * 8, 5)[1].valid_acc
    student, result = distil(nets[0], arch, flipped, Budget(epochs=8), seed=5)
    assert result.valid_acc > alone
    assert evaluate(student, task.valid) == result.valid_acc


def test_eight_bits_a_weight_keep_the_answers(trained):
    task, _, nets = trained
    small, size = quantised(nets[0])
    full = sum(4 * p.numel() for p in nets[0].parameters())
    assert size < 0.45 * full  # of 16 channels, each row of which has a scale of its own
    assert abs(evaluate(small, task.valid) - evaluate(nets[0], task.valid)) <= 0.05
    worst = 0.0
    for ours, theirs in zip(small.state_dict().values(), nets[0].state_dict().values(), strict=True):
        if theirs.dim() > 1:
            worst = max(worst, float(((ours - theirs).abs().amax(-1) / theirs.abs().amax(-1).clamp(min=1e-9)).max()))
    assert 0.0 < worst <= 0.5 / 127 + 1e-6
