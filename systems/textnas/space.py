"""The search space: layers of one input, one operation and any skips (section 3 of arXiv 1912.10729), and its codecs.

    space = Space(layers=24)
    arch = space.sample(np.random.default_rng(0))
    arch.layers[3]          # Layer(input=1, op="gru", skips=(0, 2))
    Arch.from_text(arch.to_text()) == arch

A layer names its sources by their number: -1 is the stem, k the output of layer k. In vectors and in the published
text form the input is relative instead: index i at layer k means layer k - 1 - i.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import islice, product
from operator import mul
from typing import Any, Literal

import numpy as np


class TextNASError(Exception):
    """Anything that this system refuses."""


class ArchError(TextNASError):
    """An architecture that the space does not hold: names the layer, what was given and what is allowed."""


class DataError(TextNASError):
    """A file that cannot be read: names the file, the line and what is wrong there."""


class BudgetError(TextNASError):
    """A budget that pays for nothing, or a search that was given another one before."""


OPS = ("conv1", "conv3", "conv5", "conv7", "avgpool3", "maxpool3", "gru", "attention")
OPS_PLUS = (*OPS, "rotary", "positional", "prenorm")
"""The published operations, and attention with rotary positions, with learned ones, and pre-norm with a residual."""
REACH = 5
MOST_ENUMERATED = 1_000_000

Skips = Literal["free", "none", "all"]


@dataclass(frozen=True)
class Layer:
    """What one layer computes: `op` of the output of layer `input` (-1: the stem), plus the outputs of `skips`."""

    input: int
    op: str
    skips: tuple[int, ...] = ()


@dataclass(frozen=True)
class Arch:
    """An architecture: its layers in order. Hashable; equal where it builds the same network."""

    layers: tuple[Layer, ...]

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def skips(self) -> int:
        """How many skip connections there are."""
        return sum(len(layer.skips) for layer in self.layers)

    def counts(self) -> dict[str, int]:
        """How often each operation stands in it, the published eight always named."""
        found = dict.fromkeys(OPS, 0)
        for layer in self.layers:
            found[layer.op] = found.get(layer.op, 0) + 1
        return found

    def to_json(self, name: str = "") -> str:
        """As JSON: per layer its number, input, operation and skips."""
        rows = [
            {"layer": k, "input": layer.input, "op": layer.op, "skips": list(layer.skips)}
            for k, layer in enumerate(self.layers)
        ]
        return json.dumps({"name": name, "layers": rows} if name else {"layers": rows})

    @staticmethod
    def from_json(text: str | Mapping[str, Any], reach: int = REACH) -> Arch:
        """Reads what `to_json` writes. Raises ArchError naming the layer and the field."""
        try:
            content = json.loads(text) if isinstance(text, str) else text
        except json.JSONDecodeError as error:
            raise ArchError(f"the architecture is not JSON: {error}") from error
        rows = content.get("layers") if isinstance(content, Mapping) else None
        if not isinstance(rows, list) or not rows:
            raise ArchError("the architecture has no list of layers; expected {'layers': [{'input', 'op', 'skips'}]}")
        layers = []
        for k, row in enumerate(rows):
            if not isinstance(row, Mapping) or not {"input", "op"} <= set(row):
                raise ArchError(f"layer {k} is {row!r}; expected an object with input, op and skips")
            source, op, skips = row["input"], row["op"], row.get("skips", [])
            numbers = [source, *skips] if isinstance(skips, list) else [None]
            if not isinstance(op, str) or not all(type(n) is int for n in numbers):
                raise ArchError(
                    f"layer {k} has input {source!r}, op {op!r}, skips {skips!r}; expected a whole number, a name and "
                    f"a list of whole numbers"
                )
            layers.append(Layer(source, op, tuple(sorted(skips))))
        arch = Arch(tuple(layers))
        Space(len(arch), ops=OPS_PLUS, reach=reach).check(arch)
        return arch

    def to_vector(self, ops: Sequence[str] = OPS) -> np.ndarray:
        """(2 L + L (L - 1) / 2,) int64: per layer the input's index, the operation's number, a bit an earlier layer."""
        return Space(len(self), ops=tuple(ops)).encode(self)

    def to_text(self, ops: Sequence[str] = OPS) -> str:
        """The published text form: a line a layer, "input op skip_0 ... skip_{k-1}"."""
        values = [str(value) for value in self.to_vector(ops)]
        return "\n".join(" ".join(values[at : at + 2 + k]) for k, at in enumerate(_starts(len(self))))

    @staticmethod
    def from_text(text: str, ops: Sequence[str] = OPS) -> Arch:
        """Reads the published text form, a line a layer or all in one line.

        An input index beyond the layers that exist means the layer directly before, as published. Raises ArchError.
        """
        lines = [line.split() for line in text.splitlines() if line.strip()]
        if len(lines) == 1:
            lines = _cut(lines[0])
        if not lines:
            raise ArchError("the architecture's text is empty; expected a line a layer: input op skip_0 ... skip_k-1")
        vector: list[int] = []
        for k, words in enumerate(lines):
            try:
                numbers = [int(word) for word in words]
            except ValueError as error:
                raise ArchError(f"layer {k}: {' '.join(words)!r} holds something else than whole numbers") from error
            if len(numbers) != 2 + k:
                raise ArchError(
                    f"layer {k} has {max(len(numbers) - 2, 0)} skip bits in {len(numbers)} numbers; expected an input, "
                    f"an operation and {k} bits"
                )
            if 0 <= numbers[0] < REACH and numbers[0] >= max(k, 1):
                numbers[0] = 0
            vector += numbers
        return Space(len(lines), ops=tuple(ops)).decode(np.array(vector))


def _starts(layers: int) -> list[int]:
    """Where each layer's numbers begin in a vector."""
    return [2 * k + k * (k - 1) // 2 for k in range(layers)]


def _cut(words: list[str]) -> list[list[str]]:
    """Words of a text in one line, cut into layers; what is left over is a last layer of the wrong length."""
    lines: list[list[str]] = []
    while words:
        take = 2 + len(lines)
        lines.append(words[:take])
        words = words[take:]
    return lines


@dataclass(frozen=True)
class Space:
    """All architectures of `layers` layers over `ops`; inputs reach back `reach` layers at most.

    skips: "free" any subset of the earlier layers (the paper), "none", or "all" of them.
    """

    layers: int = 24
    ops: tuple[str, ...] = OPS
    reach: int = REACH
    skips: Skips = "free"

    def __post_init__(self) -> None:
        unknown = [op for op in self.ops if op not in OPS_PLUS]
        if self.layers < 1 or self.reach < 1 or not self.ops or unknown or len(set(self.ops)) < len(self.ops):
            raise ArchError(
                f"no space of {self.layers} layers, reach {self.reach} and operations {self.ops}; expected at least "
                f"one of each, and operations among {', '.join(OPS_PLUS)}, each once"
            )
        if self.skips not in ("free", "none", "all"):
            raise ArchError(f"skips is {self.skips!r}; expected 'free', 'none' or 'all'")

    def inputs(self, k: int) -> int:
        """How many inputs layer `k` can choose from."""
        return min(max(k, 1), self.reach)

    def size(self) -> int:
        """How many architectures there are, exactly."""
        return reduce(mul, self.choices())

    def choices(self) -> list[int]:
        """How many values each number of a vector can take."""
        return [n for k in range(self.layers) for n in (self.inputs(k), len(self.ops), *[2] * self._bits(k))]

    def kinds(self) -> list[str]:
        """What each number of a vector decides: "input", "op" or "skip"."""
        return [kind for k in range(self.layers) for kind in ("input", "op", *["skip"] * self._bits(k))]

    def _bits(self, k: int) -> int:
        return k if self.skips == "free" else 0

    def __iter__(self) -> Iterator[Arch]:
        if self.size() > MOST_ENUMERATED:
            raise ArchError(f"a space of {self.size():.3g} architectures is not enumerated; expected at most 1e6")
        for vector in product(*(range(n) for n in self.choices())):
            yield self.decode(np.array(vector))

    def check(self, arch: Arch) -> None:
        """Raises ArchError, naming the layer, where `arch` is not in the space."""
        if len(arch) != self.layers:
            raise ArchError(f"the architecture has {len(arch)} layers; this space has {self.layers}")
        for k, layer in enumerate(arch.layers):
            if layer.op not in self.ops:
                raise ArchError(f"layer {k} has operation {layer.op!r}; allowed: {', '.join(self.ops)}")
            allowed = [k - 1 - i for i in range(self.inputs(k))]
            if layer.input not in allowed:
                raise ArchError(f"layer {k} reads layer {layer.input}; allowed: {', '.join(map(str, allowed))}")
            if any(not 0 <= j < k for j in layer.skips) or list(layer.skips) != sorted(set(layer.skips)):
                allowed_skips = f"layers below {k}, rising, each once" if k else "none"
                raise ArchError(f"layer {k} has skips {layer.skips}; allowed: {allowed_skips}")
            if self.skips != "free" and layer.skips != self._fixed_skips(k):
                raise ArchError(f"layer {k} has skips {layer.skips}; allowed: {self._fixed_skips(k)}")

    def _fixed_skips(self, k: int) -> tuple[int, ...]:
        return tuple(range(k)) if self.skips == "all" else ()

    def sample(self, rng: np.random.Generator, skip_probability: float = 0.5) -> Arch:
        """A random architecture: inputs and operations uniform, each skip with its probability."""
        layers = []
        for k in range(self.layers):
            source = k - 1 - int(rng.integers(self.inputs(k)))
            op = self.ops[int(rng.integers(len(self.ops)))]
            skips = self._fixed_skips(k)
            if self.skips == "free":
                skips = tuple(np.flatnonzero(rng.random(k) < skip_probability).tolist())
            layers.append(Layer(source, op, skips))
        return Arch(tuple(layers))

    def encode(self, arch: Arch) -> np.ndarray:
        """The vector of `Arch.to_vector`, without bits where skips are no choice. Raises ArchError."""
        values: list[int] = []
        for k, layer in enumerate(arch.layers):
            if layer.op not in self.ops:
                raise ArchError(f"layer {k} has operation {layer.op!r}; allowed: {', '.join(self.ops)}")
            bits = [0] * self._bits(k)
            for j in layer.skips[: len(bits)]:
                bits[j] = 1
            values += [k - 1 - layer.input, self.ops.index(layer.op), *bits]
        return np.array(values, dtype=np.int64)

    def decode(self, vector: Sequence[int] | np.ndarray) -> Arch:
        """The architecture of a vector. Raises ArchError naming the layer where a number is out of its range."""
        values = [int(value) for value in vector]
        expected = len(self.kinds())
        if len(values) != expected:
            raise ArchError(f"a vector of {len(values)} numbers; {self.layers} layers have {expected}")
        layers = []
        rest = iter(values)
        for k in range(self.layers):
            source, op, *bits = islice(rest, 2 + self._bits(k))
            if not 0 <= source < self.inputs(k):
                raise ArchError(f"layer {k} has input index {source}; allowed: 0 to {self.inputs(k) - 1}")
            if not 0 <= op < len(self.ops):
                raise ArchError(f"layer {k} has operation number {op}; allowed: 0 to {len(self.ops) - 1}")
            if not set(bits) <= {0, 1}:
                raise ArchError(f"layer {k} has skip bits {bits}; allowed: 0 and 1")
            skips = tuple(j for j, bit in enumerate(bits) if bit) if self.skips == "free" else self._fixed_skips(k)
            layers.append(Layer(k - 1 - source, self.ops[op], skips))
        return Arch(tuple(layers))

    # -------------------------------------------------------------------------------------------------- steps

    def mutate(self, arch: Arch, rng: np.random.Generator, n: int = 1) -> Arch:
        """`arch` with `n` decisions changed, or all where there are fewer.

        First a kind is drawn (an input, an operation, a skip), then one decision of it: else the skips, which are most
        of the decisions, would take nearly all steps.
        """
        vector, choices, kinds = self.encode(arch), self.choices(), self.kinds()
        open_ = {kind: [i for i, k in enumerate(kinds) if k == kind and choices[i] > 1] for kind in set(kinds)}
        for _ in range(min(n, sum(map(len, open_.values())))):
            kind = [name for name in ("input", "op", "skip") if open_.get(name)]
            places = open_[kind[int(rng.integers(len(kind)))]]
            place = places.pop(int(rng.integers(len(places))))
            vector[place] = (vector[place] + 1 + rng.integers(choices[place] - 1)) % choices[place]
        return self.decode(vector)

    def crossover(self, a: Arch, b: Arch, rng: np.random.Generator) -> Arch:
        """Each layer from `a` or from `b`, evenly."""
        picks = rng.random(self.layers) < 0.5
        pairs = zip(picks, a.layers, b.layers, strict=True)
        return Arch(tuple(one if pick else other for pick, one, other in pairs))

    def neighbours(self, arch: Arch) -> Iterator[Arch]:
        """Every architecture that differs from `arch` in exactly one decision."""
        vector = self.encode(arch)
        for place, count in enumerate(self.choices()):
            for step in range(1, count):
                near = vector.copy()
                near[place] = (near[place] + step) % count
                yield self.decode(near)

    def differences(self, a: Arch, b: Arch) -> int:
        """In how many decisions two architectures differ."""
        return int((self.encode(a) != self.encode(b)).sum())

    def cut(self, arch: Arch) -> Arch:
        """The first layers of `arch`, as many as the space has: the published network at a smaller size."""
        if len(arch) < self.layers:
            raise ArchError(f"the architecture has {len(arch)} layers; {self.layers} cannot be cut from it")
        return Arch(arch.layers[: self.layers])
