"""What may be permuted, what may be skipped, and the rules that follow (PIT, arXiv 2301.10936, section 3).

    analyze("mk,kn->mn").axes["k"]      # reduction, permutable, skippable, and why

An expression is written as for einsum, and an index may be a sum in brackets: "nc(x+i)(y+j),fcij->nfxy" is a
convolution. An axis is *permutable* when reordering it alike in every operand that carries it changes nothing
but the order of the output; it is *skippable* for the sparse operand when, beyond that, what an absent element
contributes is the identity of the reduction. Only a skippable axis may be condensed to its non-zeros.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "SEMIRINGS",
    "Analysis",
    "Axis",
    "DtypeError",
    "Expression",
    "PatternError",
    "RoutingError",
    "Rule",
    "Semiring",
    "ShapeError",
    "SpiderError",
    "analyze",
    "parse",
]


class SpiderError(Exception):
    """Anything that Spider refuses, raised before any memory is touched."""


class ShapeError(SpiderError, ValueError):
    """Operands whose shapes do not fit the expression or each other."""


class PatternError(SpiderError, ValueError):
    """An expression, mask, index or list of lengths that is not what it must be."""


class DtypeError(SpiderError, TypeError):
    """Operands of different or unsupported dtypes or devices."""


class RoutingError(SpiderError, IndexError):
    """An expert that is not there."""


# ------------------------------------------------------------------------------------------------- semirings


@dataclass(frozen=True)
class Semiring:
    """How terms are combined and reduced. `absent` is the element that annihilates a term, None if none does."""

    name: str
    reduce: Literal["sum", "max", "min", "or"]
    combine: Literal["product", "plus", "and"]
    absent: float | None


SEMIRINGS: Mapping[str, Semiring] = {
    ring.name: ring
    for ring in (
        Semiring("sum_product", "sum", "product", 0.0),
        Semiring("max_plus", "max", "plus", -math.inf),
        Semiring("min_plus", "min", "plus", math.inf),
        Semiring("or_and", "or", "and", 0.0),
        # Element-wise addition: no element makes x + y vanish, so nothing may be skipped.
        Semiring("sum_plus", "sum", "plus", None),
    )
}


# ----------------------------------------------------------------------------------------------- expressions

Index = tuple[tuple[int, str], ...]
"""One index of an operand: (coefficient, letter) terms to be summed; a plain letter is ((1, letter),)."""


@dataclass(frozen=True)
class Expression:
    """A parsed expression: one tuple of indices for each operand, and the letters of the output."""

    text: str
    inputs: tuple[tuple[Index, ...], ...]
    output: tuple[str, ...]

    @property
    def letters(self) -> tuple[str, ...]:
        """Every axis, in order of first appearance."""
        return tuple(dict.fromkeys(letter for operand in self.inputs for index in operand for _, letter in index))

    @property
    def plain(self) -> bool:
        """Whether no index is arithmetic."""
        return all(is_plain(index) for operand in self.inputs for index in operand)

    def sizes(self, shapes: Sequence[Sequence[int]]) -> dict[str, int]:
        """The extent of each axis. Raises ShapeError naming operand and axis where shapes do not fit.

        In an index like x+i the extent of one letter follows from the other's: x = size - i + 1.
        """
        if len(shapes) != len(self.inputs):
            raise ShapeError(f"{self.text!r} has {len(self.inputs)} operands, but {len(shapes)} were given")
        sizes: dict[str, int] = {}
        for number, (operand, shape) in enumerate(zip(self.inputs, shapes, strict=True)):
            if len(operand) != len(shape):
                raise ShapeError(
                    f"operand {number} of {self.text!r} has {len(operand)} indices, but its shape is {tuple(shape)}"
                )
            for index, size in zip(operand, shape, strict=True):
                if is_plain(index) and sizes.setdefault(index[0][1], size) != size:
                    letter = index[0][1]
                    raise ShapeError(
                        f"axis {letter!r} of {self.text!r} is {size} in operand {number}, but {sizes[letter]} before"
                    )
        for number, (operand, shape) in enumerate(zip(self.inputs, shapes, strict=True)):
            for index, size in zip(operand, shape, strict=True):
                if not is_plain(index):
                    _solve(self.text, number, index, size, sizes)
        return sizes


def _solve(text: str, number: int, index: Index, size: int, sizes: dict[str, int]) -> None:
    unknown = [(factor, letter) for factor, letter in index if letter not in sizes]
    reach = size - 1 - sum(factor * (sizes[letter] - 1) for factor, letter in index if letter in sizes)
    if len(unknown) > 1:
        names = ", ".join(letter for _, letter in unknown)
        raise ShapeError(f"{text!r}: the extents of {names} do not follow from the shapes; they must appear alone too")
    if unknown:
        factor, letter = unknown[0]
        sizes[letter] = max(reach // factor + 1, 0)
    elif reach < 0:
        raise ShapeError(f"operand {number} of {text!r} is {size} long where its index reaches {size - reach}")


def is_plain(index: Index) -> bool:
    """Whether an index is a single letter."""
    return len(index) == 1 and index[0][0] == 1


_TOKEN = re.compile(r"([A-Za-z])|\(([^()]*)\)")
_TERM = re.compile(r"(\d*)([A-Za-z])")


def parse(text: str) -> Expression:
    """Read an expression such as "mk,kn->mn". Raises PatternError that shows what was not understood."""
    squeezed = re.sub(r"\s", "", text)
    if squeezed.count("->") != 1:
        raise PatternError(f"expression {text!r}: expected inputs, '->' and an output, such as 'mk,kn->mn'")
    left, _, right = squeezed.partition("->")
    inputs = tuple(_operand(text, part) for part in left.split(","))
    if not re.fullmatch(r"[A-Za-z]*", right):
        raise PatternError(f"expression {text!r}: the output {right!r} must be letters only")
    expression = Expression(squeezed, inputs, tuple(right))
    for letter in right:
        if letter not in expression.letters:
            raise PatternError(f"expression {text!r}: axis {letter!r} of the output is in no operand")
    if len(set(right)) != len(right):
        raise PatternError(f"expression {text!r}: the output {right!r} names an axis twice")
    return expression


def _operand(text: str, part: str) -> tuple[Index, ...]:
    found: list[Index] = []
    position = 0
    while position < len(part):
        match = _TOKEN.match(part, position)
        if match is None:
            raise PatternError(f"expression {text!r}: {part[position:]!r} is neither a letter nor a bracket like (x+i)")
        position = match.end()
        if match[1]:
            found.append(((1, match[1]),))
            continue
        terms = [_TERM.fullmatch(term) for term in match[2].split("+")]
        if not all(terms):
            raise PatternError(f"expression {text!r}: ({match[2]}) must be a sum of letters such as (x+i) or (2x+i)")
        index = tuple((int(term[1] or 1), term[2]) for term in terms if term)
        if any(factor < 1 for factor, _ in index):
            raise PatternError(f"expression {text!r}: a factor in ({match[2]}) is zero")
        found.append(index)
    return tuple(found)


# -------------------------------------------------------------------------------------------------- analysis


@dataclass(frozen=True)
class Axis:
    """One axis of an expression. `condensable`: skippable, and gathered at one place of each operand only."""

    name: str
    kind: Literal["spatial", "reduction"]
    permutable: bool
    skippable: bool
    condensable: bool
    reason: str


@dataclass(frozen=True)
class Rule:
    """Condense `axis` of operand `sparse`, in pieces of `micro_tile`.

    micro_tile: extent on each axis of the sparse operand; reads: the operands that are gathered along the axis;
    writes: whether the output is scattered along it; accumulates: whether several blocks add to one output.
    """

    expression: str
    sparse: int | Literal["out"]
    axis: str
    micro_tile: tuple[tuple[str, int], ...]
    reads: tuple[int, ...]
    writes: bool
    accumulates: bool

    @property
    def name(self) -> str:
        """Such as "k 8x1": the condensed axis and the micro-tile."""
        return f"{self.axis} {'x'.join(str(extent) for _, extent in self.micro_tile)}"


# Extents of the other axis of a micro-tile: what the kernels hold in registers when the sparse operand's
# reduction axis is condensed, and how many steps make a strip worth its loads when a spatial one is.
_EXTENTS = {
    ("cpu", "reduction"): (1, 2, 4, 8),
    ("cpu", "spatial"): (16, 32, 64),
    ("cuda", "reduction"): (16, 32, 64, 128),
    ("cuda", "spatial"): (32, 64, 128),
}


@dataclass(frozen=True)
class Analysis:
    """The axes of an expression, and the rules by which its sparse operand can be condensed."""

    expression: Expression
    sparse: int | Literal["out"]
    semiring: Semiring
    axes: Mapping[str, Axis]

    def rules(self, shapes: Sequence[Sequence[int]], device: str = "cpu", dtype: str = "float32") -> tuple[Rule, ...]:
        """Every rule for operands of these shapes. Raises ShapeError; PatternError for an unknown device.

        Per condensable axis of the sparse operand: one rule for each extent of the innermost other axis (all
        axes but these two are taken one at a time), and one for that whole axis.
        """
        kind = device.partition(":")[0]
        if kind not in {"cpu", "cuda"}:
            raise PatternError(f"device is {device!r}, expected 'cpu' or 'cuda'")
        sizes = self.expression.sizes(shapes)
        carried = _letters_of(self.expression, self.sparse)
        found = []
        for letter in carried:
            axis = self.axes[letter]
            if not axis.condensable:
                continue
            others = [name for name in carried if name != letter]
            reads = tuple(
                number
                for number in range(len(self.expression.inputs))
                if letter in _letters_of(self.expression, number)
            )
            writes = letter in self.expression.output
            along = others[-1] if others else None
            length = sizes[along] if along else 1
            wide = _EXTENTS[kind, axis.kind] if dtype != "float64" or kind == "cuda" else (32, 128)
            extents = sorted({*(extent for extent in wide if extent < length), length}) if along else [1]
            for extent in extents:
                if axis.kind == "reduction" and extent == length and extent > max(wide):
                    continue  # a whole column of blocks keeps nothing apart: the rule for spatial axes has it
                tile = tuple((name, extent if name == along else 1) for name in carried)
                partial = along is not None and along not in self.expression.output and extent < length
                found.append(Rule(self.expression.text, self.sparse, letter, tile, reads, writes, writes and partial))
        return tuple(found)


def analyze(
    expr: str, sparse: int | Literal["out"] = 0, semiring: str = "sum_product", *, absent: float | None = None
) -> Analysis:
    """Which axes of `expr` may be permuted and which of operand `sparse` may be skipped, with reasons.

    sparse: number of the sparse operand, or "out" where a mask says which outputs are wanted. absent: the value
    of an absent element, by default the one that the semiring annihilates by: 0 for sums of products, -inf for
    max-plus. Raises PatternError for a malformed expression, an unknown semiring or an operand out of range.
    """
    expression = parse(expr)
    ring = SEMIRINGS.get(semiring)
    if ring is None:
        raise PatternError(f"semiring is {semiring!r}, expected one of {', '.join(SEMIRINGS)}")
    if sparse != "out" and not (isinstance(sparse, int) and 0 <= sparse < len(expression.inputs)):
        raise PatternError(f"sparse is {sparse!r}, expected 'out' or 0 to {len(expression.inputs) - 1} for {expr!r}")
    neutral = ring.absent is not None and (absent is None or absent == ring.absent)
    axes = {letter: _axis(expression, letter, sparse, ring, neutral) for letter in expression.letters}
    return Analysis(expression, sparse, ring, axes)


def _letters_of(expression: Expression, operand: int | Literal["out"]) -> tuple[str, ...]:
    if operand == "out":
        return expression.output
    return tuple(dict.fromkeys(letter for index in expression.inputs[operand] for _, letter in index))


def _axis(expression: Expression, letter: str, sparse: int | Literal["out"], ring: Semiring, neutral: bool) -> Axis:
    kind: Literal["spatial", "reduction"] = "spatial" if letter in expression.output else "reduction"
    arithmetic = any(
        not is_plain(index) and any(name == letter for _, name in index)
        for operand in expression.inputs
        for index in operand
    )
    if arithmetic:
        return Axis(letter, kind, False, False, False, "it is part of index arithmetic: its neighbours matter")
    if letter not in _letters_of(expression, sparse):
        what = "the output" if sparse == "out" else f"operand {sparse}"
        return Axis(letter, kind, True, False, False, f"any order gives the same result, but {what} does not carry it")
    if sparse != "out" and not neutral:
        return Axis(
            letter, kind, True, False, False,
            f"any order gives the same result, but an absent element does not vanish in {ring.name}",
        )  # fmt: skip
    repeated = any(sum(name == letter for index in operand for _, name in index) > 1 for operand in expression.inputs)
    if repeated:
        return Axis(letter, kind, True, True, False, "an operand carries it twice: it would have to be gathered twice")
    why = "outputs that are not wanted" if sparse == "out" else f"absent elements, which {ring.reduce} ignores,"
    return Axis(letter, kind, True, True, True, f"any order gives the same result, and {why} may be dropped")
