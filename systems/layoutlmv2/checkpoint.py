"""Reading and writing weights: public checkpoints as they are, and our own in the same format.

    model = load("layoutlmv2-base-uncased", task="tag", labels=7)    # a folder, or a weight file beside its config.json
    save(model, "mine", names=["O", "B-TOTAL", "I-TOTAL"])

A folder holds `config.json` and `model.safetensors` (or `pytorch_model.bin`, read with `weights_only`).
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from systems.layoutlmv2.config import CheckpointError, Config
from systems.layoutlmv2.model import LayoutLMv2, PageClassifier, Pretrainer, QuestionAnswerer, TokenTagger

Task = Literal["tag", "classify", "answer", "pretrain"]
HEADS: Mapping[str, Any] = {head.task: head for head in (TokenTagger, PageClassifier, QuestionAnswerer, Pretrainer)}
ARCHITECTURES: Mapping[str | None, str] = {
    None: "LayoutLMv2Model",
    "tag": "LayoutLMv2ForTokenClassification",
    "classify": "LayoutLMv2ForSequenceClassification",
    "answer": "LayoutLMv2ForQuestionAnswering",
    "pretrain": "LayoutLMv2ForPreTraining",
}
PREFIX = "layoutlmv2."
FILES = ("model.safetensors", "small.safetensors", "pytorch_model.bin")
NEVER_LEARNED = ("embeddings.position_ids", "visual.pixel_mean", "visual.pixel_std")
MOST_NAMES = 5


class CheckpointWarning(UserWarning):
    """A checkpoint holds what this model has no place for, or lacks a head, which then starts at random."""


@overload
def load(path: Path | str, task: None = None, labels: int | None = None) -> LayoutLMv2: ...
@overload
def load(path: Path | str, task: Literal["tag"], labels: int | None = None) -> TokenTagger: ...
@overload
def load(path: Path | str, task: Literal["classify"], labels: int | None = None) -> PageClassifier: ...
@overload
def load(path: Path | str, task: Literal["answer"], labels: int | None = None) -> QuestionAnswerer: ...
@overload
def load(path: Path | str, task: Literal["pretrain"], labels: int | None = None) -> Pretrainer: ...


def load(path: Path | str, task: Task | None = None, labels: int | None = None) -> Any:
    """A model in evaluation mode with the weights at `path`, in float32.

    labels: of the head; default: as many as the checkpoint names. A head that the checkpoint lacks starts at random,
    with a warning; names that have no place are told by a warning. Raises CheckpointError on anything else that does
    not fit: missing names, other shapes, no file.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no folder or weight file there")
    cfg = Config.from_json(path if path.is_dir() else path.parent)
    weights = read_weights(path)
    if cfg.image and any(name.endswith("visual_segment_embedding") for name in weights):
        cfg = cfg.with_(visual_segment=True)  # public question answerers have it against their own config.json
    model: nn.Module
    if task is None:
        model = LayoutLMv2(cfg)
    elif task not in HEADS:
        raise CheckpointError(f"task {task!r}, expected one of {', '.join(HEADS)} or None")
    elif task == "pretrain":
        model = Pretrainer(cfg)
    else:
        if labels is None:
            labels = 2 if task == "answer" else len(label_names(path)) or None
        if labels is None:
            raise CheckpointError(f"{path}: config.json names no labels (id2label): give labels=")
        model = HEADS[task](cfg, labels)
    load_weights(model, weights, str(path))
    return model.eval()


def label_names(path: Path | str) -> list[str]:
    """The names of a checkpoint's labels, in order; empty where it names none."""
    path = Path(path)
    file = (path if path.is_dir() else path.parent) / "config.json"
    try:
        names = json.loads(file.read_text(encoding="utf-8")).get("id2label") or {}
        return [str(names[key]) for key in sorted(names, key=int)]
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{file}: no list of labels: {error}") from error


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a weight file, or of the one in a folder. Nothing in it is executed. Raises CheckpointError."""
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in FILES if (path / name).is_file()]
        if not found:
            raise CheckpointError(f"{path}: none of {', '.join(FILES)} there")
        path = found[0]
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged file raises is up to two libraries
        raise CheckpointError(f"{path}: cannot be read as weights: {str(error).splitlines()[0]}") from error
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointError(f"{path}: holds no table of tensors")
    return loaded


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str = "the given weights") -> None:
    """Copy weights with public names, with or without `layoutlmv2.` in front, into a model. Raises CheckpointError."""
    wanted = model.state_dict()
    headed = any(name.startswith(PREFIX) for name in wanted)
    prefixed = any(name.startswith(PREFIX) for name in weights)
    given: dict[str, Tensor] = {}
    left = []
    for name, value in weights.items():
        own = name
        if headed and not prefixed:
            own = PREFIX + name
        elif not headed:
            own = name.removeprefix(PREFIX)
        if own in wanted:
            given[own] = value
        elif not (own.removeprefix(PREFIX) in NEVER_LEARNED or own.endswith("num_batches_tracked")):
            left.append(name)
    missing = [name for name in wanted if name not in given and not name.endswith("num_batches_tracked")]
    head = [name for name in wanted if headed and not name.startswith(PREFIX)]
    if missing and set(missing) != set(head):
        raise CheckpointError(f"{source}: {len(missing)} names are missing: {_some(missing)}")
    wrong = [
        f"{name} {tuple(value.shape)} instead of {tuple(wanted[name].shape)}"
        for name, value in given.items()
        if value.shape != wanted[name].shape
    ]
    if wrong:
        raise CheckpointError(f"{source}: a checkpoint of another size: {_some(wrong)}")
    if missing:
        warnings.warn(f"{source}: has no head for this task, which starts at random", CheckpointWarning, stacklevel=3)
    if left:
        text = f"{source}: {len(left)} names have no place in this model: {_some(left)}"
        warnings.warn(text, CheckpointWarning, stacklevel=3)
    model.load_state_dict({name: value.to(wanted[name].dtype) for name, value in given.items()}, strict=False)


def _some(names: Sequence[str]) -> str:
    more = f", and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


def save(
    model: nn.Module, path: Path | str, names: Sequence[str] = (), dtype: torch.dtype | None = None
) -> Path:
    """Write a folder with `config.json` and `model.safetensors`, whole or not at all.

    names: of the labels, kept as `id2label`. dtype: of the floating-point weights, default as they are.
    """
    from safetensors.torch import save_file

    base = model if isinstance(model, LayoutLMv2) else getattr(model, "layoutlmv2", None)
    if not isinstance(base, LayoutLMv2):
        raise CheckpointError(f"a {type(model).__name__}, expected a LayoutLMv2 or one of its heads")
    task = getattr(model, "task", None)
    config = base.cfg.to_dict() | {"architectures": [ARCHITECTURES[task]]}
    if names:
        config["id2label"] = {str(k): name for k, name in enumerate(names)}
        config["label2id"] = {name: k for k, name in enumerate(names)}
    tensors = {
        name: value.detach().to("cpu", dtype if value.is_floating_point() else None).contiguous()
        for name, value in model.state_dict().items()
    }
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    with written_whole(path / "model.safetensors") as file:
        save_file(tensors, file, metadata={"format": "pt"})
    with written_whole(path / "config.json") as file:
        file.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` to write to; it takes that name when the block ends well, and vanishes if not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        temporary = folder / path.name
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
