"""Checkpoints: written by one plan, taken up by another, refused where they do not belong."""

import copy
import functools

import pytest
import torch

from suites.superscaler.equality import ADAMW, serial
from systems.superscaler import PlanMismatch, RankFailure, capture, models, plans
from systems.superscaler.runtime import Runner, launch

TABLE = {
    "zero3": lambda g: plans.zero(g, 2, stage=3),
    "tensor": lambda g: plans.tensor_parallel(g, 2),
    "pipeline": lambda g: plans.one_f_one_b(g, 2, microbatches=2),
    "interlaced": lambda g: plans.interlaced(g, 2, microbatches=2),
}


def sample_of():
    return models.gpt(layers=2, tied=True)


def relay(built, path):
    """In a rank: a step of each plan, the next one going on from the file of the last."""
    sample, losses = sample_of(), []
    for plan in built:
        runner = Runner(plan, copy.deepcopy(sample.model), ADAMW)
        if losses:
            runner.load(path)
        losses.append(runner.step(sample.batch))
        runner.save(path)
    return torch.stack(losses), runner.state_dict()


def test_a_checkpoint_of_one_plan_goes_on_under_another(tmp_path):
    """Three plans take a step each, handing on weights and AdamW's state: as one model that takes three."""
    sample = sample_of()
    graph = capture(sample.model, sample.batch)
    steps, after = serial(sample)
    built = [TABLE[name](graph).build() for name in ("zero3", "tensor", "pipeline")]
    for losses, weights in launch(functools.partial(relay, built, tmp_path / "c.pt"), 2, timeout=120):
        torch.testing.assert_close(losses, torch.stack([loss for loss, _ in steps]), rtol=1e-9, atol=0)
        for name, value in weights.items():
            torch.testing.assert_close(value, after[name], rtol=1e-9, atol=1e-7)
    assert [f.name for f in tmp_path.iterdir()] == ["c.pt"]


@pytest.mark.slow
def test_checkpoints_of_every_pair_of_plans(tmp_path):
    sample = sample_of()
    graph = capture(sample.model, sample.batch)
    steps, _ = serial(sample)
    for first in TABLE:
        for second in TABLE:
            built = [TABLE[name](graph).build() for name in (first, second)]
            for losses, _ in launch(functools.partial(relay, built, tmp_path / f"{first}-{second}.pt"), 2):
                torch.testing.assert_close(losses, torch.stack([loss for loss, _ in steps[:2]]), rtol=1e-9, atol=0)


def alone(path, layers):
    sample = models.gpt(layers=layers)
    runner = Runner(plans.serial(capture(sample.model, sample.batch)).build(), sample.model, ADAMW)
    runner.load(path)


def test_checkpoints_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "c.pt"
    sample = models.gpt(layers=1)
    runner = Runner(plans.serial(capture(sample.model, sample.batch)).build(), sample.model, ADAMW)
    runner.step(sample.batch)
    runner.save(path)
    alone(path, 1)
    with pytest.raises(PlanMismatch, match=r"graph \w+; expected version 1, graph \w+"):
        alone(path, 2)
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"nonsense"):
        path.write_bytes(broken)
        with pytest.raises(PlanMismatch, match="is no checkpoint"):
            alone(path, 1)
    torch.save([1, 2], path)
    with pytest.raises(PlanMismatch, match="holds a list"):
        alone(path, 1)
    with pytest.raises(OSError, match="missing"):
        alone(tmp_path / "missing.pt", 1)


@pytest.mark.slow
def test_a_rank_that_cannot_load_stops_all(tmp_path):
    (tmp_path / "c.pt").write_bytes(b"nonsense")
    with pytest.raises(RankFailure, match="is no checkpoint"):
        launch(functools.partial(alone, tmp_path / "c.pt", 1), 1)
