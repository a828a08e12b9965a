"""A small trained model that writes a proof at one go: it scores every candidate of a task, and draws a set of them.

A draw is one whole program and costs one verification: nothing is sorted out by the solver beforehand. The same network
repairs: shown an attempt and what the verifier said of it, it scores the candidates again."""

from __future__ import annotations

import hashlib
import random
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from systems.safe import syntax as s
from systems.safe.check import check
from systems.safe.contexts import Scope, scopes
from systems.safe.parser import parse
from systems.safe.prove import proposals
from systems.safe.sketch import Candidate, Sketch, loop_clauses, write
from systems.safe.syntax import SafeError, Source
from systems.safe.types import LISTS
from systems.safe.verifier import Diagnostic

if TYPE_CHECKING:
    import torch

BUCKETS = 4096
"""Rows of the table of feature vectors; features share them by hash."""
WIDTH = 24
CERTAIN = 3.0
"""The logit from which a candidate is in the greedy draw: one that does not hold spoils a proof, one that is not needed
does no harm."""
_RIGHT, _WRONG = 3.0, 3.0
"""Weights in training of candidates that a proof needs, and of those that do not hold; the others have 1."""
_WORD = re.compile(r"[A-Za-z_]\w*|\d+|==>|=~=|<=|>=|==|!=|&&|\|\||[^\s\w]")
_KEPT = frozenset(
    (
        "forall", "exists", "int", "nat", "as", "len", "old", "subrange", "take", "filter", "contains", "drop_last",
        "push", "add", "reverse", "assert", "reveal", "Seq", "update", "proof", "fn", "requires", "ensures",
        "decreases", "true", "false", "MIN", "MAX",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Menu:
    """The candidates of one task as features: `own[n]` are those of candidate `n`, `around` those of the task."""

    task: str
    candidates: tuple[Candidate, ...]
    own: tuple[tuple[int, ...], ...]
    around: tuple[int, ...]


@dataclass(frozen=True)
class Example:
    """One task with the candidates that a right proof of it has, and, for repairs, what was tried and what failed."""

    menu: Menu
    right: frozenset[int]
    harmless: frozenset[int] = frozenset()
    """Candidates outside the proof that hold as well: what is needed often leans on them."""
    extra: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Further features of candidates: whether they were in the attempt, whether they failed, and what else did."""


def bucket(feature: str) -> int:
    """The row of a feature, the same everywhere."""
    return int.from_bytes(hashlib.blake2b(feature.encode(), digest_size=4).digest(), "little") % BUCKETS


def menu(task: str, *, edition: str = "current", seed: int = 0) -> Menu:
    """What may be drawn for a task. Raises ProgramProblem for a task that cannot be read."""
    sketch: Sketch = proposals(task, edition=edition, seed=seed)
    typing = check(parse(task), edition)
    found = [scope for signature in typing.functions.values() for scope in scopes(typing, signature)]
    by_place = {loop_clauses(task, scope.loop): (number, scope) for number, scope in enumerate(found)}
    around: set[int] = set()
    for signature in typing.functions.values():
        scope = next((one for one in found if one.loop.span.start >= signature.fn.span.start), None)
        for clause in signature.fn.ensures:
            shape = _shape(task[clause.span.start : clause.span.end], scope)
            around.update(bucket(f"goal {gram}") for gram in _grams(shape))
    around.add(bucket(f"loops {len(found)}"))
    own = []
    known = {
        word: [_pieces(task[clause.span.start : clause.span.end]) for clause in clauses]
        for word, clauses in (
            ("goal", [clause for f in typing.functions.values() for clause in f.fn.ensures]),
            ("given", [clause for f in typing.functions.values() for clause in f.fn.requires]),
            ("condition", [s_.loop.condition for s_ in found if isinstance(s_.loop, s.While) and s_.loop.condition]),
        )
    }
    near = {word: [_nearest(one.text, clauses) for one in sketch.candidates] for word, clauses in known.items()}
    best: dict[tuple[int, str], float] = {}
    for one, close in zip(sketch.candidates, near["goal"], strict=True):
        key = (one.place.offset, one.place.kind)
        best[key] = max(best.get(key, 0.0), close)
    for place, one in enumerate(sketch.candidates):
        number, scope_ = by_place.get(one.place.offset, (-1, _around(found, one.place.offset)))
        shape = _shape(one.text, scope_)
        names = [one.place.kind, one.why, " ".join(shape), *_grams(shape)]
        names += [f"{name} {one.place.kind}" for name in (one.why, " ".join(shape))]
        names.append(f"loop {number} of {len(found)}")
        if scope_ is not None:
            inside = _shape(task[scope_.loop.span.start : scope_.loop.span.end], scope_)
            shared = set(_grams(inside)) & set(_grams(shape))
            names += [f"shared {gram}" for gram in sorted(shared)]
        for word, values in near.items():
            level = int(10 * values[place])
            names += [f"near {word} {level}", f"near {word} {level} {one.why}"]
        closest = near["goal"][place] >= 0.999 * best[one.place.offset, one.place.kind]
        names += [f"closest {closest} {one.why}", f"closest {closest}", f"length {min(12, len(shape) // 4)}"]
        if scope_ is not None and scope_.counters:
            ends = [f"< {scope_.counters[0]} " in one.text or f"< {scope_.counters[0]})" in one.text]
            names.append(f"so far {ends} closest {closest}")
        goals = {_spaced(task[c.span.start : c.span.end]) for f in typing.functions.values() for c in f.fn.requires}
        names.append(f"required {_spaced(one.text) in goals}")
        own.append(tuple(sorted({bucket(name) for name in names})))
    return Menu(task, sketch.candidates, tuple(own), tuple(sorted(around)))


def _pieces(text: str) -> frozenset[str]:
    """Words of a text with their neighbours, names as they are."""
    words = [word for word in _WORD.findall(text) if word not in "()#[]"]
    return frozenset((*words, *(f"{a} {b}" for a, b in pairwise(words))))


def _nearest(text: str, clauses: Sequence[frozenset[str]]) -> float:
    """The greatest share of pieces that the text has in common with a clause, from 0 to 1."""
    mine = _pieces(text)
    return max((len(mine & other) / len(mine | other) for other in clauses), default=0.0)


def _spaced(text: str) -> str:
    return re.sub(r"[\s()]", "", text)


def _around(found: Sequence[Scope], offset: int) -> Scope | None:
    inside = [scope for scope in found if scope.loop.span.start <= offset <= scope.loop.span.end]
    return inside[-1] if inside else (found[-1] if found else None)


def _shape(text: str, scope: Scope | None) -> list[str]:
    """The words of a text with names replaced by the parts that they play in a loop."""
    words = []
    for word in _WORD.findall(text):
        if word in "()":
            continue
        words.append(_role(word, scope) if word[0].isalpha() or word[0] == "_" else _number(word))
    return words


def _number(word: str) -> str:
    return "C" if word.isdigit() and word not in ("0", "1") else word


def _role(word: str, scope: Scope | None) -> str:
    if word in _KEPT:
        return word
    if scope is None or word not in scope.types:
        return "q" if len(word) <= 2 else "f"
    changed = word in scope.changed
    if word in scope.counters:
        return "I"
    if word in scope.outer:
        return "O"
    if scope.types[word].name in LISTS:
        return "W" if changed else "V"
    return "A" if changed else "N"


def _grams(words: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*words, *(f"{a} {b}" for a, b in pairwise(words)), *_triples(words)]))


def _triples(words: Sequence[str]) -> Iterator[str]:
    return (f"{a} {b} {c}" for a, b, c in zip(words, words[1:], words[2:], strict=False))


def failing(sketch: Sketch, problems: Sequence[Diagnostic]) -> set[Candidate]:
    """The candidates of an attempt that the verifier complained of."""
    source = Source(sketch.text)
    found = (sketch.at(source.offset(problem.line, problem.column)) for problem in problems)
    return {one for one in found if one is not None}


def complaint(
    shown: Menu, attempt: frozenset[int], sketch: Sketch, problems: Sequence[Diagnostic]
) -> dict[int, tuple[int, ...]]:
    """What the verifier said of an attempt, as further features of each candidate."""
    source = Source(sketch.text)
    failed = failing(sketch, problems)
    kinds = {one.kind for one in problems if sketch.at(source.offset(one.line, one.column)) is None}
    extra = {}
    for number, one in enumerate(shown.candidates):
        names = ["repair", f"in {number in attempt}", f"failing {one in failed}"]
        for kind in sorted(kinds):
            names += [f"kind {kind}", f"kind {kind} in {number in attempt} {one.why}", f"kind {kind} {one.place.kind}"]
        names += [f"in {number in attempt} failing {one in failed} {one.why}"]
        extra[number] = tuple(sorted({bucket(name) for name in names}))
    return extra


class Policy:
    """The network with its weights. `train` makes one; a policy without training scores at random."""

    def __init__(self, seed: int = 0) -> None:
        import torch

        generator = torch.Generator().manual_seed(seed)
        self.weights: dict[str, torch.Tensor] = {
            "table": torch.randn((BUCKETS, WIDTH), generator=generator) * 0.1,
            "first": torch.randn((2 * WIDTH, 32), generator=generator) * (2 * WIDTH) ** -0.5,
            "first_bias": torch.zeros(32),
            "second": torch.randn((32, 16), generator=generator) * 32**-0.5,
            "second_bias": torch.zeros(16),
            "last": torch.randn((16, 1), generator=generator) * 16**-0.5,
            "last_bias": torch.zeros(1),
        }

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return sum(weight.numel() for weight in self.weights.values())

    def logits(self, own: Sequence[tuple[int, ...]], around: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """(rows,) scores of candidates by their own features and those of their tasks."""
        import torch

        parts = [self._pooled(own), self._pooled(around)]
        hidden = torch.relu(torch.cat(parts, 1) @ self.weights["first"] + self.weights["first_bias"])
        hidden = torch.relu(hidden @ self.weights["second"] + self.weights["second_bias"])
        return (hidden @ self.weights["last"] + self.weights["last_bias"]).squeeze(1)

    def _pooled(self, given: Sequence[tuple[int, ...]]) -> torch.Tensor:
        import torch

        rows = list(dict.fromkeys(given))
        numbers = {row: number for number, row in enumerate(rows)}
        places = torch.tensor([numbers[row] for row in given], dtype=torch.long)
        flat = torch.tensor([feature for row in rows for feature in row], dtype=torch.long)
        ends = np.cumsum([0, *(len(row) for row in rows[:-1])])
        offsets = torch.from_numpy(ends.astype(np.int64))
        scale = torch.tensor([max(1, len(row)) ** 0.5 for row in rows])
        summed = torch.nn.functional.embedding_bag(flat, self.weights["table"], offsets, mode="sum")
        return (summed / scale[:, None])[places]

    def scores(self, shown: Menu, extra: dict[int, tuple[int, ...]] | None = None) -> np.ndarray:
        """(candidates,) logits."""
        import torch

        if not shown.candidates:
            return np.zeros(0)
        own = [(*features, *(extra or {}).get(number, ())) for number, features in enumerate(shown.own)]
        with torch.no_grad():
            return self.logits(own, [shown.around] * len(own)).numpy().astype(np.float64)

    def draw(
        self, shown: Menu, *, temperature: float = 0.0, seed: int = 0, extra: dict[int, tuple[int, ...]] | None = None,
        without: frozenset[int] = frozenset(),
    ) -> frozenset[int]:  # fmt: skip
        """The candidates that surely hold; with a temperature, how sure they have to be and each one's score are left
        to chance. `without`: candidates that are known not to hold.
        """
        logits = self.scores(shown, extra)
        least, noise = CERTAIN, np.zeros(len(logits))
        if temperature:
            chance = np.random.default_rng(seed)
            least = CERTAIN + 4 * temperature * (chance.random() - 0.5)
            noise = temperature * chance.logistic(size=len(logits))
        numbers = {one: number for number, one in enumerate(shown.candidates)}
        chosen = {
            number
            for number, one in enumerate(shown.candidates)
            if one.place.kind != "decreases" and logits[number] + noise[number] > least and number not in without
        }
        chosen |= {numbers[s] for n in chosen if (s := shown.candidates[n].support) is not None and s in numbers}
        return frozenset(chosen)

    def save(self, path: Path) -> None:
        """Write the weights whole: numpy's format, no code in it."""
        part = path.with_name(f"{path.name}.part.npz")
        values: dict[str, Any] = {name: weight.detach().numpy() for name, weight in self.weights.items()}
        np.savez(part, **values)
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> Policy:
        """Read what `save` wrote. Raises SafeError for a file that is not that."""
        import torch

        made = cls()
        try:
            with np.load(path, allow_pickle=False) as stored:
                for name, weight in made.weights.items():
                    values = torch.from_numpy(stored[name])
                    if values.shape != weight.shape:
                        raise SafeError(f"{path}: `{name}` has shape {tuple(values.shape)}, not {tuple(weight.shape)}")
                    made.weights[name] = values
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise SafeError(f"{path} is not a saved policy: {error}") from error
        return made


def written(shown: Menu, chosen: Iterable[int]) -> Sketch:
    """The task with a draw in its text; every loop also gets its measure."""
    kept = [shown.candidates[number] for number in sorted(chosen)]
    return write(shown.task, [*kept, *(one for one in shown.candidates if one.place.kind == "decreases")])


def train(
    examples: Sequence[Example],
    *,
    epochs: int = 5,
    least_steps: int = 800,
    seed: int = 0,
    batch: int = 256,
    forget: float = 0.4,
) -> Policy:
    """A policy trained from scratch: candidates that hold against the others, by binary cross-entropy, for
    `epochs` or `least_steps`, whichever is more, each time with a share `forget` of the features left out, so that none
    is relied on alone. The same examples and seed give the same weights."""
    import torch

    policy = Policy(seed)
    rows: list[tuple[tuple[int, ...], tuple[int, ...], float, float]] = []
    for example in examples:
        for number, own in enumerate(example.menu.own):
            if example.menu.candidates[number].place.kind != "decreases":
                features = (*own, *example.extra.get(number, ()))
                label = float(number in example.right or number in example.harmless)
                counts = _RIGHT if number in example.right else 1.0 if label else _WRONG
                rows.append((features, example.menu.around, label, counts))
    if not rows:
        return policy
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for weight in policy.weights.values():
        weight.requires_grad_(True)
    optimizer = torch.optim.Adam(policy.weights.values(), lr=4e-3)
    order = random.Random(seed)
    epochs = max(epochs, -(-least_steps // -(-len(rows) // batch)))
    for epoch in range(epochs):
        order.shuffle(rows)
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * (1 - epoch / epochs)
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            left = [tuple(one for one in row[0] if order.random() >= forget) for row in part]
            logits = policy.logits(left, [row[1] for row in part])
            labels, weights = torch.tensor([row[2] for row in part]), torch.tensor([row[3] for row in part])
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, weights)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    policy.weights = {name: trained.detach() for name, trained in policy.weights.items()}
    torch.set_num_threads(threads)
    return policy


def record(shown: Menu, chosen: frozenset[int]) -> list[dict[str, Any]]:
    """A draw as data: each candidate's kind, place and text."""
    return [
        {"kind": one.place.kind, "offset": one.place.offset, "text": one.text}
        for one in (shown.candidates[number] for number in sorted(chosen))
    ]
