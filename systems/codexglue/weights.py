"""What the three families share: sizes, configurations, weights from elsewhere, and how a model is written down."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from systems.codexglue.tasks import CodexError
from systems.codexglue.vocabulary import Vocabulary


class ModelError(CodexError):
    """A model that cannot be built, loaded or asked this."""


@dataclass(frozen=True)
class Size:
    """layers, hidden: width; heads; positions: the longest row; subwords: of a vocabulary that is trained."""

    layers: int
    hidden: int
    heads: int
    positions: int
    subwords: int
    lr: float


SIZES = {
    "tiny": Size(2, 128, 4, 514, 4096, 1e-3),
    "small": Size(4, 256, 8, 514, 8192, 5e-4),
    "base": Size(12, 768, 12, 1026, 50_000, 5e-5),
}


def size_named(name: str) -> Size:
    """One of `SIZES`. Raises ModelError, which lists them."""
    if name not in SIZES:
        raise ModelError(f"no size {name!r}; there are {', '.join(SIZES)}")
    return SIZES[name]


def roberta_config(vocabulary: Vocabulary, size: Size, **more: Any) -> Any:
    from transformers import RobertaConfig

    return RobertaConfig(
        vocab_size=len(vocabulary), hidden_size=size.hidden, num_hidden_layers=size.layers,
        num_attention_heads=size.heads, intermediate_size=4 * size.hidden, max_position_embeddings=size.positions,
        type_vocab_size=1, bos_token_id=vocabulary.special("<s>"), pad_token_id=vocabulary.special("<pad>"),
        eos_token_id=vocabulary.special("</s>"), **more,
    )  # fmt: skip


def write_model(
    folder: Path, family: str, net: nn.Module, vocabulary: Vocabulary, configs: dict[str, Any], record: dict[str, Any]
) -> None:
    from safetensors.torch import save_model

    folder.mkdir(parents=True, exist_ok=True)
    record = {"family": family, **record, "configs": configs}
    temporary = folder / ".model.safetensors.partial"
    try:
        save_model(net, str(temporary))
        temporary.replace(folder / "model.safetensors")
    finally:
        temporary.unlink(missing_ok=True)
    vocabulary.tokenizer.save(str(folder / "tokenizer.json"))
    partial = folder / ".model.json.partial"
    partial.write_text(json.dumps(record, indent=1, default=str), encoding="utf-8")
    partial.replace(folder / "model.json")


def pretrained(kind: Any, name: str, **more: Any) -> tuple[Any, Vocabulary]:
    """Weights and vocabulary of a folder, or of the hub. Raises ModelError that says what was looked for."""
    from transformers import AutoTokenizer

    try:
        net = kind.from_pretrained(name, **more)
        tokenizer = AutoTokenizer.from_pretrained(name)
        backend = tokenizer.backend_tokenizer
    except (OSError, ValueError, AttributeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{name}: no weights of {kind.__name__} there ({first}); give a folder with config.json, model.safetensors "
            "and tokenizer files, or go online"
        ) from error
    return net, Vocabulary(backend)
