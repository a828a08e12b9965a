"""Model workloads: the forward and training steps that a machine for AI work has to run well.

Six families from `transformers` and an LSTM, all with random seeded weights and synthetic seeded inputs, so
that no checkpoint, no data set and no network is needed. A `ModelWorkload` is the plan (architecture, batch,
input shape); `build` turns it into `ModelSteps` on a device: one callable that trains a step and one that
infers.

A step always works on the same batch. The work per step is then constant, so a step series shows the machine
and not the data, and the loss must fall, which shows that the step really trains.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

Task = Literal["masked", "causal", "image"]
Unit = Literal["token/s", "sample/s"]


class ModelProbeError(Exception):
    """A model workload cannot be used as asked."""


class UnknownWorkload(ModelProbeError, ValueError):
    """No preset of that name exists for that device."""


@dataclass(frozen=True)
class ModelWorkload:
    """What one step computes; equal workloads with equal seeds do equal work on every machine.

    construct: builds the network with the weights that torch's global generator gives
    task: "masked" and "causal" predict tokens, "image" classifies
    batch: samples in a step
    length: tokens in a sample, or the height and width of an image in pixels
    classes: size of the vocabulary, or number of image classes
    learning_rate: of AdamW
    """

    name: str
    construct: Callable[[], nn.Module]
    task: Task
    batch: int
    length: int
    classes: int
    learning_rate: float = 1e-3

    @property
    def unit(self) -> Unit:
        """What `work` counts: tokens per second for language models, images (samples) per second else."""
        return "sample/s" if self.task == "image" else "token/s"

    @property
    def work(self) -> int:
        """Tokens or samples that one step processes."""
        return self.batch if self.task == "image" else self.batch * self.length


@dataclass(frozen=True)
class ModelSteps:
    """A workload with weights, optimizer state and inputs on one device.

    train(step) updates the weights on the batch and returns its loss before the update; infer(step) returns
    the logits, (batch, length, classes) or (batch, classes). `step` is an index for the caller's loop and
    changes nothing. Both return only when the device has finished, so a wall clock around them is right on a
    GPU too.
    """

    workload: ModelWorkload
    model: nn.Module
    inputs: Tensor
    labels: Tensor
    train: Callable[[int], float]
    infer: Callable[[int], Tensor]


# ---- architectures: imports are inside, because transformers costs seconds and only one family may be wanted


def bert(*, hidden: int, layers: int, heads: int, vocabulary: int, positions: int) -> nn.Module:
    """BERT encoder with the masked-token head (Devlin et al. 2018)."""
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(
        BertConfig.from_dict(
            {
                "vocab_size": vocabulary,
                "hidden_size": hidden,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "intermediate_size": 4 * hidden,
                "max_position_embeddings": positions,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
                "attn_implementation": "sdpa",
            }
        )
    )


def gpt2(*, hidden: int, layers: int, heads: int, vocabulary: int, positions: int) -> nn.Module:
    """GPT-2 decoder (Radford et al. 2019)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config.from_dict(
            {
                "vocab_size": vocabulary,
                "n_embd": hidden,
                "n_layer": layers,
                "n_head": heads,
                "n_positions": positions,
                "resid_pdrop": 0.0,
                "embd_pdrop": 0.0,
                "attn_pdrop": 0.0,
                "use_cache": False,
                "bos_token_id": None,
                "eos_token_id": None,
                "attn_implementation": "sdpa",
            }
        )
    )


def llama(
    *,
    hidden: int,
    layers: int,
    heads: int,
    key_value_heads: int,
    feedforward: int,
    vocabulary: int,
    positions: int,
) -> nn.Module:
    """Llama decoder with grouped-query attention (Touvron et al. 2023)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig.from_dict(
            {
                "vocab_size": vocabulary,
                "hidden_size": hidden,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "num_key_value_heads": key_value_heads,
                "intermediate_size": feedforward,
                "max_position_embeddings": positions,
                "use_cache": False,
                "bos_token_id": None,
                "eos_token_id": None,
                "attn_implementation": "sdpa",
            }
        )
    )


def mixtral(
    *,
    hidden: int,
    layers: int,
    heads: int,
    key_value_heads: int,
    feedforward: int,
    experts: int,
    experts_per_token: int,
    vocabulary: int,
    positions: int,
    experts_implementation: str,
) -> nn.Module:
    """Decoder with a sparse mixture of experts in every layer (Jiang et al. 2024)."""
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(
        MixtralConfig.from_dict(
            {
                "vocab_size": vocabulary,
                "hidden_size": hidden,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "num_key_value_heads": key_value_heads,
                "intermediate_size": feedforward,
                "num_local_experts": experts,
                "num_experts_per_tok": experts_per_token,
                "max_position_embeddings": positions,
                "use_cache": False,
                "bos_token_id": None,
                "eos_token_id": None,
                "attn_implementation": "sdpa",
                "experts_implementation": experts_implementation,
            }
        )
    )


def vit(*, hidden: int, layers: int, heads: int, image: int, patch: int, classes: int) -> nn.Module:
    """Vision transformer classifier (Dosovitskiy et al. 2020)."""
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig.from_dict(
            {
                "hidden_size": hidden,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "intermediate_size": 4 * hidden,
                "image_size": image,
                "patch_size": patch,
                "num_labels": classes,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
                "attn_implementation": "sdpa",
            }
        )
    )


def resnet(*, stem: int, widths: Sequence[int], depths: Sequence[int], block: str, classes: int) -> nn.Module:
    """Residual convolution network (He et al. 2015); block is "basic" or "bottleneck"."""
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(
        ResNetConfig.from_dict(
            {
                "embedding_size": stem,
                "hidden_sizes": list(widths),
                "depths": list(depths),
                "layer_type": block,
                "num_labels": classes,
            }
        )
    )


class LSTMLanguageModel(nn.Module):
    """Stacked LSTM over embedded tokens: (batch, length) int64 -> (batch, length, vocabulary) logits."""

    def __init__(self, hidden: int, layers: int, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, hidden)
        self.recurrent = nn.LSTM(hidden, hidden, layers, batch_first=True)
        self.output = nn.Linear(hidden, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.recurrent(self.embedding(tokens))
        logits: Tensor = self.output(states)
        return logits


# ---- presets


def workloads(device: str | torch.device) -> tuple[ModelWorkload, ...]:
    """Every preset for a kind of device: 20-60 ms a training step on two CPU cores, or a filled GPU."""
    return _gpu_workloads() if torch.device(device).type == "cuda" else _cpu_workloads()


def workload(name: str, device: str | torch.device) -> ModelWorkload:
    """The preset `name` for a kind of device. Raises UnknownWorkload with the names there are."""
    presets = {preset.name: preset for preset in workloads(device)}
    if name not in presets:
        raise UnknownWorkload(f"no model workload {name!r} for {device}; choose one of {', '.join(presets)}")
    return presets[name]


def _cpu_workloads() -> tuple[ModelWorkload, ...]:
    tokens = 2048
    decoder = {"hidden": 256, "heads": 4, "vocabulary": tokens, "positions": 128}
    gated = {**decoder, "key_value_heads": 2}
    return (
        ModelWorkload("bert", partial(bert, layers=3, **decoder), "masked", 4, 64, tokens),
        ModelWorkload("gpt2", partial(gpt2, layers=3, **decoder), "causal", 4, 64, tokens),
        ModelWorkload("llama", partial(llama, layers=3, feedforward=704, **gated), "causal", 4, 64, tokens),
        ModelWorkload(
            "mixtral",
            partial(
                mixtral,
                layers=2,
                feedforward=384,
                experts=4,
                experts_per_token=2,
                experts_implementation="grouped_mm",
                **gated,
            ),
            "causal",
            4,
            64,
            tokens,
        ),
        ModelWorkload(
            "vit",
            partial(vit, hidden=192, layers=3, heads=3, image=96, patch=8, classes=100),
            "image",
            4,
            96,
            100,
        ),
        ModelWorkload(
            "resnet",
            partial(resnet, stem=32, widths=(32, 64, 128, 256), depths=(1, 1, 1, 1), block="basic", classes=100),
            "image",
            8,
            96,
            100,
        ),
        ModelWorkload("lstm", partial(LSTMLanguageModel, 256, 2, tokens), "causal", 8, 32, tokens),
    )


def _gpu_workloads() -> tuple[ModelWorkload, ...]:
    gated = {"hidden": 2048, "heads": 16, "key_value_heads": 8, "vocabulary": 32000, "positions": 2048}
    return (
        ModelWorkload(
            "bert",
            partial(bert, hidden=1024, layers=24, heads=16, vocabulary=30522, positions=512),
            "masked",
            16,
            512,
            30522,
            1e-4,
        ),
        ModelWorkload(
            "gpt2",
            partial(gpt2, hidden=768, layers=12, heads=12, vocabulary=50257, positions=1024),
            "causal",
            16,
            1024,
            50257,
            1e-4,
        ),
        ModelWorkload("llama", partial(llama, layers=8, feedforward=5632, **gated), "causal", 4, 2048, 32000, 1e-4),
        ModelWorkload(
            "mixtral",
            partial(
                mixtral,
                layers=4,
                feedforward=3584,
                experts=8,
                experts_per_token=2,
                experts_implementation="grouped_mm",
                **gated,
            ),
            "causal",
            4,
            2048,
            32000,
            1e-4,
        ),
        ModelWorkload(
            "vit",
            partial(vit, hidden=1024, layers=24, heads=16, image=224, patch=16, classes=1000),
            "image",
            64,
            224,
            1000,
            1e-4,
        ),
        ModelWorkload(
            "resnet",
            partial(
                resnet,
                stem=64,
                widths=(256, 512, 1024, 2048),
                depths=(3, 4, 6, 3),
                block="bottleneck",
                classes=1000,
            ),
            "image",
            128,
            224,
            1000,
            1e-4,
        ),
        ModelWorkload("lstm", partial(LSTMLanguageModel, 1024, 4, 32000), "causal", 64, 256, 32000, 1e-4),
    )


# ---- steps


def build(
    workload: ModelWorkload,
    device: str | torch.device,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> ModelSteps:
    """Weights, inputs and optimizer of `workload` on `device`, in `dtype`, all from `seed`.

    Weights and inputs are drawn on the CPU, so one seed gives the same start on every machine. The caller's
    random state, default device and default dtype are left as they were. Raises ModelProbeError when dtype is
    not a floating type.
    """
    if not dtype.is_floating_point:
        raise ModelProbeError(f"{workload.name} asked for in {dtype}; a floating dtype is needed, e.g. torch.float32")
    with torch.random.fork_rng(devices=[]), _default_dtype(torch.float32), torch.device("cpu"):
        # The CPU's generator only: torch.manual_seed would also reseed every GPU's, which is not forked here.
        torch.default_generator.manual_seed(seed)
        model = workload.construct()
        inputs, labels = _batch(workload, seed)
    if inputs.is_floating_point():
        inputs = inputs.to(dtype)
    return _steps(workload, model.to(device, dtype), inputs.to(device), labels.to(device))


def compiler_missing(device: str | torch.device) -> str | None:
    """Why torch.compile cannot generate code for `device` here, or None when it can."""
    if torch.device(device).type == "cuda":
        from importlib.util import find_spec

        if find_spec("triton") is None:
            return "torch.compile needs triton to generate GPU code, and it is not installed"
    compilers = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    if not any(shutil.which(compiler) for compiler in compilers):
        return f"torch.compile needs a C++ compiler ({' or '.join(compilers)}), and there is none on PATH"
    return None


def compiled(steps: ModelSteps) -> ModelSteps:
    """The same weights and inputs through torch.compile, which compiles at the first call of each step.

    The weights are shared with `steps` (training either changes both), the optimizer state is not.
    """
    return _steps(steps.workload, steps.model, steps.inputs, steps.labels, torch.compile(steps.model, dynamic=False))


def _steps(
    workload: ModelWorkload,
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    forward: Callable[..., Any] | None = None,
) -> ModelSteps:
    run = model if forward is None else forward
    # Fused is one kernel per step on either device; the loop over parameters would time the interpreter.
    optimizer = torch.optim.AdamW(model.parameters(), lr=workload.learning_rate, fused=True)

    def train(step: int) -> float:
        model.train()
        loss = _loss(workload.task, _logits(run(inputs)), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        _wait(inputs.device)
        return loss.item()

    def infer(step: int) -> Tensor:
        model.eval()
        with torch.no_grad():
            logits = _logits(run(inputs))
        _wait(inputs.device)
        return logits

    return ModelSteps(workload, model, inputs, labels, train, infer)


def _batch(workload: ModelWorkload, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs and labels on the CPU; label -100 is one that the loss leaves out."""
    generator = torch.Generator().manual_seed(seed)
    if workload.task == "image":
        images = torch.randn(workload.batch, 3, workload.length, workload.length, generator=generator)
        return images, torch.randint(workload.classes, (workload.batch,), generator=generator)
    # Token 0 is padding in BERT and the last token stands for "masked", so neither is drawn.
    mask_token = workload.classes - 1
    tokens = torch.randint(1, mask_token, (workload.batch, workload.length), generator=generator)
    if workload.task == "causal":
        return tokens, tokens.clone()
    masked = torch.rand(tokens.shape, generator=generator) < 0.15
    return tokens.masked_fill(masked, mask_token), tokens.masked_fill(~masked, -100)


def _logits(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.logits


def _loss(task: Task, logits: Tensor, labels: Tensor) -> Tensor:
    if task == "causal":
        logits, labels = logits[:, :-1], labels[:, 1:]
    return nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), labels.reshape(-1))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# ---- digest


def training_digest(steps: ModelSteps, count: int = 3) -> bytes:
    """SHA-256 (32 bytes) of every loss, activation and weight in `count` steps and an inference.

    A healthy machine gives one value, always: the run is single-threaded on a CPU, because a sum's bits
    depend on how threads split it, and restricted to deterministic kernels on a GPU. Anything else is silent
    data corruption. It starts from the weights as they are, so give it freshly built, not compiled steps.
    Settings are restored. Raises ModelProbeError when count < 1.
    """
    if count < 1:
        raise ModelProbeError(f"a digest over {count} training steps was asked for; at least 1 is needed")
    digest = hashlib.sha256()
    with _deterministic(), _activation_sums(steps.model) as sums:
        losses = [steps.train(step) for step in range(count)]
        logits = steps.infer(count)
    digest.update(torch.tensor(losses, dtype=torch.float64).numpy().tobytes())
    digest.update(_bits(torch.stack(sums)))
    digest.update(_bits(logits))
    for name, weight in sorted(steps.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(_bits(weight))
    return digest.digest()


@contextmanager
def _activation_sums(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the bit sum of what each innermost module gives, in the order of the calls.

    Many corrupted activations never reach the loss or a weight (a query that the softmax swallows, a position
    that is not scored), so hashing those alone would miss them.
    """
    sums: list[Tensor] = []

    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        sums.extend(_bit_sum(tensor) for tensor in _tensors(output))

    innermost = [module for module in model.modules() if next(module.children(), None) is None]
    handles = [module.register_forward_hook(record) for module in innermost]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (tuple, list)):
        for part in output:
            yield from _tensors(part)


def _bit_sum(tensor: Tensor) -> Tensor:
    """The bit patterns of all elements summed as integers: exact in any order, moved by any flipped bit."""
    pattern = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.detach().contiguous().view(pattern).sum(dtype=torch.int64)


def _bits(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@contextmanager
def _deterministic() -> Iterator[None]:
    threads = torch.get_num_threads()
    algorithms = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn_benchmark = torch.backends.cudnn.benchmark
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    try:
        torch.set_num_threads(1)
        torch.backends.cudnn.benchmark = False
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # torch refuses deterministic cuBLAS calls without it
        torch.use_deterministic_algorithms(True)
        yield
    finally:
        torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)
        if workspace is None:
            os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
        else:
            os.environ["CUBLAS_WORKSPACE_CONFIG"] = workspace
        torch.backends.cudnn.benchmark = cudnn_benchmark
        torch.set_num_threads(threads)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        yield
    finally:
        torch.set_default_dtype(before)
