"""Model workloads step by step: the work that a machine is bought for, with random weights and no network."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from systems.anubis.probes import models

pytestmark = pytest.mark.component("model")

NAMES = ("bert", "gpt2", "llama", "mixtral", "vit", "resnet", "lstm")


def build(model: str, device: str) -> models.ModelSteps:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    return models.build(models.workload(model, device), device, dtype)


@pytest.mark.parametrize("model", NAMES)
def test_train(measure: Any, device: str, model: str) -> None:
    steps = build(model, device)
    preset = steps.workload
    losses = [steps.train(i) for i in measure.steps(24, warmup=6, work=preset.work, unit=preset.unit)]
    assert losses[-1] < losses[0], f"{model} does not learn its own batch: {losses}"


@pytest.mark.parametrize("model", NAMES)
def test_infer(measure: Any, device: str, model: str) -> None:
    steps = build(model, device)
    preset = steps.workload
    first = last = steps.infer(0)
    for i in measure.steps(64, warmup=8, work=preset.work, unit=preset.unit):
        last = steps.infer(i)
    torch.testing.assert_close(last, first)


@pytest.mark.parametrize("model", NAMES)
def test_digest(measure: Any, device: str, model: str) -> None:
    measure.digest("training", models.training_digest(build(model, device)))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["bert", "gpt2", "vit"])
def test_compiled(measure: Any, device: str, model: str) -> None:
    if reason := models.compiler_missing(device):
        pytest.skip(reason)
    eager = build(model, device)
    compiled = models.compiled(eager)
    preset = eager.workload
    tolerance = 2e-2 if device == "cuda" else 1e-4
    speed = measure.versus(
        {"eager": partial(eager.infer, 0), "compiled": partial(compiled.infer, 0)},
        work=preset.work,
        unit=preset.unit,
        check=partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance),
    )
    speed.over("eager", of="compiled")
