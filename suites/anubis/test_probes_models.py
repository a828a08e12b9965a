"""Model workloads: they train, they are what their names say, and a digest tells one bit from another."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from systems.anubis.probes import models

NAMES = [preset.name for preset in models.workloads("cpu")]
TOKEN_NAMES = [preset.name for preset in models.workloads("cpu") if preset.task != "image"]
ROOT = Path(__file__).parents[2]

TINY = models.ModelWorkload(
    "tiny",
    partial(
        models.llama,
        hidden=32,
        layers=1,
        heads=2,
        key_value_heads=1,
        feedforward=48,
        vocabulary=64,
        positions=8,
    ),
    task="causal",
    batch=2,
    length=8,
    classes=64,
)


def build(name: str, seed: int = 0) -> models.ModelSteps:
    return models.build(models.workload(name, "cpu"), "cpu", seed=seed)


def weights(steps: models.ModelSteps) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in steps.model.state_dict().items()}


def flip_bit(tensor: Tensor, element: int, bit: int) -> None:
    """Flips one bit of one float32 element, in place."""
    raw = tensor.detach().view(-1).view(torch.int32)
    # Bit 31 is the sign of an int32, which 1 << 31 does not fit.
    raw[element] ^= -(2**31) if bit == 31 else 1 << bit


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Steps this small gain little from more threads, and spinning threads crawl where others compute too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---- what a step does


@pytest.mark.parametrize("name", NAMES)
def test_inference_gives_one_score_per_class_and_position(name: str) -> None:
    steps = build(name)
    preset = steps.workload
    logits = steps.infer(0)
    positions = () if preset.task == "image" else (preset.length,)
    assert logits.shape == (preset.batch, *positions, preset.classes)
    assert torch.isfinite(logits).all()
    assert not logits.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_twenty_steps_train(name: str) -> None:
    steps = build(name)
    losses = [steps.train(step) for step in range(20)]
    # Random weights know nothing: the first loss is that of a uniform guess, ln(classes).
    assert losses[0] == pytest.approx(math.log(steps.workload.classes), rel=0.06)
    assert losses[-1] < 0.8 * losses[0]
    fitted = np.polynomial.Polynomial.fit(np.arange(20), losses, 1).convert()
    assert fitted.coef[1] < 0


@pytest.mark.parametrize("name", [name for name in NAMES if name != "resnet"])  # batch norm infers differently
def test_the_loss_is_the_cross_entropy_of_the_logits(name: str) -> None:
    steps = build(name)
    logits = steps.infer(0).double().numpy()
    labels = steps.labels.numpy()
    if steps.workload.task == "causal":
        logits, labels = logits[:, :-1], labels[:, 1:]
    logits, labels = logits.reshape(-1, steps.workload.classes), labels.reshape(-1)
    kept = labels != -100
    assert kept.any()
    chosen = logits[kept, labels[kept]]
    expected = np.mean(np.log(np.exp(logits[kept]).sum(axis=1)) - chosen)
    assert steps.train(0) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_training_step_moves_every_weight_and_inference_moves_none(name: str) -> None:
    steps = build(name)
    before = weights(steps)
    steps.infer(0)
    assert all(torch.equal(value, before[key]) for key, value in steps.model.state_dict().items())
    steps.train(0)
    still = [key for key, value in steps.model.named_parameters() if torch.equal(value.detach(), before[key])]
    assert still == []


@pytest.mark.parametrize("name", TOKEN_NAMES)
def test_a_later_token_changes_earlier_scores_only_in_the_encoder(name: str) -> None:
    steps = build(name)
    before = steps.infer(0).clone()
    steps.inputs[:, -1] = (steps.inputs[:, -1] + 1) % (steps.workload.classes - 2) + 1
    after = steps.infer(0)
    same = torch.allclose(before[:, :-1], after[:, :-1], rtol=1e-4, atol=1e-5)
    assert same == (steps.workload.task == "causal")
    assert not torch.allclose(before[:, -1], after[:, -1], rtol=1e-4, atol=1e-5)


def test_the_masked_tokens_alone_are_predicted() -> None:
    steps = build("bert")
    mask_token = steps.workload.classes - 1
    masked = steps.inputs == mask_token
    assert torch.equal(masked, steps.labels != -100)
    assert 0.05 < masked.double().mean() < 0.3
    assert not (steps.labels == mask_token).any()


@pytest.mark.parametrize("name", NAMES)
def test_work_counts_what_the_unit_names(name: str) -> None:
    steps = build(name)
    items = len(steps.inputs) if steps.workload.unit == "sample/s" else steps.inputs.numel()
    assert steps.workload.work == items


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_trains_too(name: str) -> None:
    steps = models.build(models.workload(name, "cpu"), "cpu", torch.bfloat16)
    assert {value.dtype for value in steps.model.parameters()} == {torch.bfloat16}
    losses = [steps.train(step) for step in range(6)]
    assert losses[-1] < losses[0]


# ---- seeds


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_decides_weights_and_inputs(name: str) -> None:
    first, again, other = build(name, seed=3), build(name, seed=3), build(name, seed=4)
    assert all(torch.equal(value, again.model.state_dict()[key]) for key, value in weights(first).items())
    assert torch.equal(first.inputs, again.inputs)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.inputs, other.inputs)
    matrices = [key for key, value in first.model.named_parameters() if value.ndim > 1]
    assert not any(torch.equal(first.model.state_dict()[key], other.model.state_dict()[key]) for key in matrices)


# ---- the GPU presets are checked without a GPU: on the meta device shapes are real and nothing is computed

PUBLISHED_PARAMETERS = {  # millions: BERT-large, GPT-2 small, ViT-L/16 and ResNet-50 in their own papers
    "bert": 335,
    "gpt2": 124,
    "vit": 304,
    "resnet": 25.6,
}


def on_meta(name: str) -> tuple[models.ModelWorkload, Any]:
    preset = models.workload(name, "cuda")
    with torch.device("meta"):
        return preset, preset.construct()


@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_preset_fits_a_card_and_its_own_inputs(name: str) -> None:
    preset, model = on_meta(name)
    # Weights, gradients and two moments in bfloat16 leave room for activations on a 40 GB card.
    assert sum(value.numel() for value in model.parameters()) * 2 * 4 < 16e9
    classifier = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    assert classifier.out_features == preset.classes
    if preset.task != "image" and name != "lstm":
        config = model.config.to_dict()
        assert config["vocab_size"] == preset.classes
        positions = config.get("max_position_embeddings", config.get("n_positions"))
        assert positions >= preset.length


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_a_gpu_preset_has_the_size_that_its_paper_gives(name: str) -> None:
    _, model = on_meta(name)
    millions = sum(value.numel() for value in model.parameters()) / 1e6
    assert millions == pytest.approx(PUBLISHED_PARAMETERS[name], rel=0.02)


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_a_gpu_preset_takes_its_images(name: str) -> None:
    preset, model = on_meta(name)
    images = torch.empty(preset.batch, 3, preset.length, preset.length, device="meta")
    assert model(images).logits.shape == (preset.batch, preset.classes)


# ---- digest


@pytest.fixture(scope="module")
def digests() -> dict[str, str]:
    return {name: models.training_digest(build(name)).hex() for name in NAMES}


def test_every_model_has_its_own_digest_and_repeats_it(digests: dict[str, str]) -> None:
    assert len(set(digests.values())) == len(NAMES)
    assert {name: models.training_digest(build(name)).hex() for name in NAMES} == digests


def test_another_process_with_another_thread_count_gets_the_same_digests(digests: dict[str, str]) -> None:
    program = (
        "from systems.anubis.probes import models\n"
        "for preset in models.workloads('cpu'):\n"
        "    print(preset.name, models.training_digest(models.build(preset, 'cpu')).hex())\n"
    )
    threads = 1 if torch.get_num_threads() > 1 else 2
    child = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert dict(line.split() for line in child.stdout.splitlines()) == digests


def test_digests_differ_by_seed_and_by_step_count() -> None:
    values = {
        models.training_digest(models.build(TINY, "cpu", seed=seed), count) for seed in range(2) for count in (1, 2)
    }
    assert len(values) == 4


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), bit=st.integers(0, 22))
def test_one_flipped_bit_in_a_weight_changes_the_digest(data: st.DataObject, bit: int) -> None:
    healthy, corrupt = models.build(TINY, "cpu"), models.build(TINY, "cpu")
    parameter = data.draw(st.sampled_from(list(corrupt.model.parameters())))
    element = data.draw(st.integers(0, parameter.numel() - 1))
    # The update of AdamW is about 1e-3: in a much smaller weight it rightly swallows the lowest bits.
    assume(abs(parameter.detach().view(-1)[element].item()) > 1e-2)
    flip_bit(parameter, element, bit)
    assert models.training_digest(healthy, 1) != models.training_digest(corrupt, 1)


@pytest.mark.parametrize("where", ["query that no softmax sees", "position that is not scored"])
def test_one_flipped_bit_in_one_activation_of_one_step_changes_the_digest(where: str) -> None:
    healthy, corrupt = models.build(TINY, "cpu"), models.build(TINY, "cpu")
    # The first token attends to itself alone, whatever its query; the last one's prediction has no label.
    position = 0 if where == "query that no softmax sees" else -1
    calls = 0

    def corrupt_second_call(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            output = output.clone()
            flip_bit(output[0, position], 5, 0)
        return output

    projection = next(module for module in corrupt.model.modules() if isinstance(module, nn.Linear))
    projection.register_forward_hook(corrupt_second_call)
    assert models.training_digest(healthy) != models.training_digest(corrupt)
    assert calls == 4
    after, expected = corrupt.model.state_dict(), healthy.model.state_dict()
    assert all(torch.equal(after[key], expected[key]) for key in expected), "the weights alone would have hidden it"


def test_a_digest_leaves_no_hook_behind() -> None:
    steps = models.build(TINY, "cpu")
    models.training_digest(steps)
    assert not any(module._forward_hooks for module in steps.model.modules())


# ---- nothing outside is changed


def global_state() -> dict[str, object]:
    return {
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "torch random": torch.get_rng_state().numpy().tobytes(),
        "numpy random": repr(np.random.get_state()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn benchmark": torch.backends.cudnn.benchmark,
        "grad": torch.is_grad_enabled(),
        "environment": dict(os.environ),
    }


@pytest.fixture
def unusual_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Settings that nobody has by default: a probe that resets to defaults instead of restoring is caught."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    torch.set_num_threads(2 if threads == 1 else 1)
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("unusual_state")
@pytest.mark.parametrize("name", NAMES)
def test_building_and_digesting_leave_global_settings_as_they_were(name: str, digests: dict[str, str]) -> None:
    before = global_state()
    steps = build(name)
    assert {value.dtype for value in steps.model.parameters()} == {torch.float32}
    assert global_state() == before
    assert models.training_digest(steps).hex() == digests[name]
    assert global_state() == before


@pytest.mark.usefixtures("unusual_state")
def test_a_step_that_fails_leaves_global_settings_as_they_were() -> None:
    steps = models.build(TINY, "cpu")
    before = global_state()
    steps.inputs.fill_(TINY.classes)  # beyond the vocabulary
    with pytest.raises(IndexError):
        models.training_digest(steps)
    assert global_state() == before


# ---- wrong use


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(models.UnknownWorkload, match=r"'brt' for cpu.*bert, gpt2, llama, mixtral, vit, resnet, lstm"):
        models.workload("brt", "cpu")


def test_an_integer_dtype_is_refused() -> None:
    with pytest.raises(models.ModelProbeError, match=r"tiny asked for in torch\.int8.*floating"):
        models.build(TINY, "cpu", torch.int8)


@pytest.mark.parametrize("count", [0, -1])
def test_a_digest_of_no_steps_is_refused(count: int) -> None:
    with pytest.raises(models.ModelProbeError, match=f"{count} training steps"):
        models.training_digest(models.build(TINY, "cpu"), count)


# ---- compiled


def compiler(directory: Path, name: str) -> None:
    executable = directory / name
    executable.write_text("#!/bin/sh\n")
    executable.chmod(0o755)


@pytest.mark.parametrize(
    ("present", "cxx", "missing"),
    [
        ("g++", None, False),
        ("clang++", None, False),
        (None, None, True),
        ("g++", "no-such-compiler", True),
        ("special", "special", False),
    ],
)
def test_a_missing_compiler_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, present: str | None, cxx: str | None, missing: bool
) -> None:
    if present:
        compiler(tmp_path, present)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    if cxx:
        monkeypatch.setenv("CXX", cxx)
    reason = models.compiler_missing("cpu")
    assert (reason is not None) == missing
    if reason is not None:
        assert (cxx or "g++ or clang++") in reason


@pytest.mark.slow
@pytest.mark.parametrize("call", ["infer", "train"])
def test_a_compiled_step_gives_what_the_eager_one_gives(call: str) -> None:
    if reason := models.compiler_missing("cpu"):
        pytest.skip(reason)
    eager, peer = models.build(TINY, "cpu"), models.compiled(models.build(TINY, "cpu"))
    torch.testing.assert_close(getattr(peer, call)(0), getattr(eager, call)(0), rtol=1e-4, atol=1e-5)
    for key, value in peer.model.named_parameters():
        torch.testing.assert_close(value, eager.model.get_parameter(key), rtol=1e-4, atol=1e-5)
