"""From a task to a model and back: which rows a family is trained on, and its answers as the official file.

    model = model_for("defect_detection", rows)
    train_model("defect_detection", model, rows, Budget(minutes=2.0))
    lines = answer("defect_detection", model, list(load("defect_detection", "test")))
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from systems.codexglue.data import Row
from systems.codexglue.models import CausalLM, Encoder, Model, ModelError, Objective, Seq2Seq, size_named
from systems.codexglue.tasks import TASKS, task
from systems.codexglue.training import Budget, Recipe, Training

END_OF_LINE = "<EOL>"


@dataclass(frozen=True)
class How:
    """objective: of an encoder; base: the paper's rates for its base-size models; epochs: of the paper, where it gives
    them.
    """

    base: Recipe
    objective: Objective | None = None
    epochs: int | None = None


PAPER: Mapping[str, How] = {
    "defect_detection": How(Recipe(lr=2e-5, batch=32, length=400), "classify", epochs=5),
    "clone_detection_bcb": How(Recipe(lr=5e-5, batch=16, length=400), "compare", epochs=2),
    "clone_detection_poj104": How(Recipe(lr=2e-5, batch=8, length=400), "retrieve", epochs=2),
    "cloze_all": How(Recipe(lr=5e-5, batch=32, length=256), "cloze"),
    "cloze_maxmin": How(Recipe(lr=5e-5, batch=32, length=256), "cloze"),
    "code_search_adv": How(Recipe(lr=5e-5, batch=32, length=256), "retrieve", epochs=2),
    "code_search_webquery": How(Recipe(lr=1e-5, batch=16, length=200), "classify", epochs=3),
    "code_completion_token": How(Recipe(lr=8e-5, batch=8, length=1024, weight_decay=0.01), epochs=5),
    "code_completion_line": How(Recipe(lr=8e-5, batch=8, length=1024, weight_decay=0.01), epochs=5),
    "text_to_code": How(Recipe(lr=5e-5, batch=8, length=512, weight_decay=0.01), epochs=30),
    "code_translation": How(Recipe(lr=5e-5, batch=16, length=512)),
    "code_refinement": How(Recipe(lr=5e-5, batch=16, length=256)),
    "code_summarization": How(Recipe(lr=5e-5, batch=32, length=256), epochs=10),
    "doc_translation": How(Recipe(lr=5e-5, batch=32, length=256)),
}
"""By task, as the paper's appendix gives them; the sizes that a CPU trains have rates of their own."""

_SMALL = Recipe(batch=32, length=160)


def fits(name: str) -> How:
    """How a task is trained. Raises ModelError, which lists the tasks, for one without a baseline."""
    task(name)
    if name not in PAPER:
        raise ModelError(f"no trained baseline for {name}; there are {', '.join(PAPER)}")
    return PAPER[name]


def paper_budget(name: str, rows: int) -> Budget | None:
    """The steps of the paper's epochs over so many rows; None where it gives no epochs."""
    how = fits(name)
    return None if how.epochs is None else Budget(steps=how.epochs * math.ceil(rows / how.base.batch))


def _recipe(name: str, size: str, lr: float) -> Recipe:
    how = fits(name)
    if size == "base":
        return how.base
    if TASKS[name].baseline == "causal":
        return Recipe(lr, batch=16, length=min(how.base.length, 256), weight_decay=how.base.weight_decay)
    return replace(_SMALL, lr=lr, length=min(how.base.length, _SMALL.length))


# --------------------------------------------------------------------------------------------- rows, as a model reads


def _words(row: Row, *names: str) -> str:
    for name in names:
        if name in row:
            return " ".join(row[name]) if isinstance(row[name], list) else str(row[name])
    raise ModelError(f"a row without {' or '.join(names)}: it has {', '.join(row)}")


def _cloze_text(row: Row) -> str:
    return f"{' '.join(row['nl_tokens'])} </s> {' '.join(row['pl_tokens'])}"


def _encoded(name: str, rows: Sequence[Row]) -> list[Any]:
    """What an encoder reads of each row: a text, or a pair."""
    if name == "defect_detection":
        return [" ".join(row["func"].split()) for row in rows]
    if name == "clone_detection_bcb":
        return [(row["func1"], row["func2"]) for row in rows]
    if name == "clone_detection_poj104":
        return [row["code"] for row in rows]
    if name == "code_search_webquery":
        return [(row["doc"], row["code"]) for row in rows]
    if name == "code_search_adv":
        return [(_words(row, "docstring_tokens", "docstring"), _words(row, "code_tokens", "code")) for row in rows]
    return [_cloze_text(row) for row in rows]


def _labels(name: str, rows: Sequence[Row]) -> list[Any]:
    field = {"defect_detection": "target", "code_search_adv": None, "cloze_all": "answer", "cloze_maxmin": "answer"}
    key = field.get(name, "label")
    try:
        return [row[key] for row in rows] if key else [0] * len(rows)
    except KeyError as error:
        raise ModelError(f"{name}: a row to train on without {error}") from error


def _pairs(name: str, rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Sources and targets of a rewriting."""
    if name == "code_summarization":
        return _sources(name, rows), [_words(row, "docstring_tokens", "docstring") for row in rows]
    return _sources(name, rows), [row["target"] for row in rows]


def _sources(name: str, rows: Sequence[Row]) -> list[str]:
    """What a rewriting reads."""
    if name == "code_summarization":
        return [_words(row, "code_tokens", "code") for row in rows]
    return [row["source"] for row in rows]


# ------------------------------------------------------------------------------------------------------------ training


def model_for(
    name: str, rows: Sequence[Row], *, size: str = "tiny", start: str | None = None, seed: int = 0
) -> Model:
    """An untrained model for a task. start: a folder or a name of the hub to take weights from, in place of `size`."""
    how, family = fits(name), task(name).baseline
    recipe = how.base if start else _recipe(name, size, size_named(size).lr)
    if family == "encoder":
        assert how.objective is not None
        words = sorted(set(_labels(name, rows))) if how.objective == "cloze" else []
        classes = 2
        if start:
            return Encoder.from_pretrained(
                start, how.objective, classes=classes, candidates=words, recipe=recipe, seed=seed
            )
        read = _encoded(name, rows)
        texts = [part for text in read for part in (text if isinstance(text, tuple) else (text,))]
        return Encoder.build(
            texts, how.objective, size=size, classes=classes, candidates=words, recipe=recipe, seed=seed
        )
    if family == "causal":
        if start:
            return CausalLM.from_pretrained(start, recipe=recipe)
        return CausalLM.build(_causal_texts(name, rows), size=size, extra=(END_OF_LINE,), recipe=recipe, seed=seed)
    if start:
        return Seq2Seq.from_pretrained(start, recipe=recipe, seed=seed)
    sources, targets = _pairs(name, rows)
    return Seq2Seq.build([*sources, *targets], size=size, recipe=recipe, seed=seed)


def _causal_texts(name: str, rows: Sequence[Row]) -> list[str]:
    if name == "text_to_code":
        return [text for row in rows for text in (row["nl"], row["code"])]
    return [f" {' '.join(row['code'])}" for row in rows]


def train_model(
    name: str, model: Model, rows: Sequence[Row], budget: Budget, *, seed: int = 0, folder: Path | None = None,
    progress: bool = False,
) -> Training:  # fmt: skip
    """Train a task's model on rows of `load` (or of a builder). folder: for checkpoints, as of `training.train`."""
    if isinstance(model, Encoder):
        return model.fit(
            _encoded(name, rows), _labels(name, rows), budget, seed=seed, folder=folder, progress=progress
        )
    if isinstance(model, Seq2Seq):
        return model.fit(*_pairs(name, rows), budget, seed=seed, folder=folder, progress=progress)
    if name == "text_to_code":
        return model.fit(
            [row["code"] for row in rows], budget, prompts=[row["nl"] for row in rows], seed=seed, folder=folder,
            progress=progress,
        )  # fmt: skip
    return model.fit(_causal_texts(name, rows), budget, seed=seed, folder=folder, progress=progress)


# ------------------------------------------------------------------------------------------------------------- answers


def answer(name: str, model: Model, rows: Sequence[Row], *, beam: int = 1) -> Iterator[str]:
    """The lines of the official prediction file. beam: of generated text, 1 (greedy) by default.

    Raises ModelError where the model is of another family than the task's.
    """
    family = task(name).baseline
    if model.family != family:
        raise ModelError(f"{name} is answered by a model of family {family}, not {model.family}")
    if isinstance(model, Encoder):
        if model.objective != fits(name).objective:
            raise ModelError(f"{name} wants objective {fits(name).objective!r}, and the model has {model.objective!r}")
        yield from _encoder_lines(name, model, rows)
    elif isinstance(model, Seq2Seq):
        found = model.predict(_sources(name, rows), beam=beam)
        for number, text in enumerate(found):
            line = " ".join(text.split())
            yield f"{rows[number].get('idx', number)}\t{line}" if name == "code_summarization" else line
    elif name == "code_completion_token":
        for tokens in model.next_tokens([row["code"] for row in rows]):
            yield " ".join("".join(token.split()) or "<unk>" for token in tokens)
    elif name == "code_completion_line":
        yield from model.complete([f" {row['input']}" for row in rows], stop=END_OF_LINE, most=60, beam=beam)
    else:
        found = model.complete([row["nl"] for row in rows], begin=True, most=100, beam=beam)
        yield from (" ".join(text.split()) for text in found)


def _encoder_lines(name: str, model: Encoder, rows: Sequence[Row]) -> Iterator[str]:
    if name == "clone_detection_poj104":
        vectors = model.vectors([row["code"] for row in rows])
        labels = [row["label"] for row in rows]
        for k, near in enumerate(_nearest(vectors, vectors, labels)):
            yield _json({"index": str(rows[k]["index"]), "answers": [str(rows[other]["index"]) for other in near]})
        return
    read = _encoded(name, rows)
    if name == "code_search_adv":
        queries, codes = (model.vectors([pair[side] for pair in read]) for side in (0, 1))
        for k, order in enumerate(np.argsort(-(queries @ codes.T), axis=1, kind="stable")):
            yield _json({"url": rows[k]["url"], "answers": [rows[int(other)]["idx"] for other in order]})
        return
    for row, label in zip(rows, model.predict(read), strict=True):
        if name == "clone_detection_bcb":
            yield f"{row['id1']}\t{row['id2']}\t{label}"
        elif name.startswith("cloze"):
            yield f"{row['idx']}<CODESPLIT>{label}"
        else:
            yield f"{row['idx']}\t{label}"


def _nearest(one: NDArray[np.float32], other: NDArray[np.float32], labels: Sequence[Any]) -> Iterator[list[int]]:
    """For each row, as many other rows as bear its label, the most alike first."""
    for first in range(0, len(one), 512):
        scores = one[first : first + 512] @ other.T
        for k, row in enumerate(scores, first):
            row[k] = -np.inf
            count = sum(label == labels[k] for label in labels) - 1
            yield [int(at) for at in np.argsort(-row, kind="stable")[:count]]


def _json(record: Mapping[str, Any]) -> str:
    return orjson.dumps(record).decode()


def completion_rows(files: Iterable[Sequence[str]]) -> list[Row]:
    """Rows of code_completion_token from files of `builders.token_completion`."""
    return [{"id": k, "code": list(tokens)} for k, tokens in enumerate(files)]


def cloze_rows(rows: Iterable[Row], answers: Mapping[str, str]) -> list[Row]:
    """Rows of `builders.cloze` with their answers in them, to train on."""
    return [dict(row, answer=answers[row["idx"]]) for row in rows]
