"""The annotation language: what may be cut of an operator, and what cutting does to each of its tensors.

    linear      "*b k+, n k+, n -> *b n"
    reshape     "b (h e) -> b h e"
    attention   "*b t^ e^, *b s^ e^, *b s^ v^ -> *b t^ v^"

An identifier names a dimension. A tensor that has it is cut with it; one that lacks it is replicated, and then the
gradient of each part is an addend. `+` contracted: an output that lacks it becomes addends. `^` may not be cut.
`(a b)` is a dimension of several factors, of which only the outermost may be cut; `1` a dimension of size one; `*a`
any number of leading dimensions; `?` no tensor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod

from systems.superscaler.errors import InvalidPlan
from systems.superscaler.mask import Box, Interval

__all__ = ["Annotation", "Pattern", "bind", "parse"]

Factors = tuple[str, ...]
Dims = tuple[Factors, ...]
_TOKEN = re.compile(r"\*?[A-Za-z_][A-Za-z_0-9]*[+^]?|\(|\)|1|\?")


@dataclass(frozen=True)
class Pattern:
    """A parsed annotation before sizes are known: names with their marks, `*a` not yet expanded."""

    text: str
    inputs: tuple[Dims | None, ...]
    outputs: tuple[Dims | None, ...]
    marks: Mapping[str, str] = field(hash=False)


@dataclass(frozen=True)
class Annotation:
    """An annotation bound to shapes.

    inputs, outputs: per tensor and dimension the identifiers from the outermost to the innermost factor; None is no
    tensor. sizes: elements per identifier; units: what a cut must be a multiple of. A cut of identifier x gives
    intervals of [0, sizes[x]).
    """

    text: str
    inputs: tuple[Dims | None, ...]
    outputs: tuple[Dims, ...]
    sizes: Mapping[str, int] = field(hash=False)
    frozen: frozenset[str] = frozenset()
    contracted: frozenset[str] = frozenset()
    units: Mapping[str, int] = field(default_factory=dict, hash=False)

    @property
    def divisible(self) -> dict[str, int]:
        """The identifiers that may be cut, each with the most parts."""
        inner = {name for dims in (*self.inputs, *self.outputs) for dim in dims or () for name in dim[1:]}
        return {
            name: size // self.units.get(name, 1)
            for name, size in self.sizes.items()
            if name not in self.frozen and name not in inner
        }

    def box(self, dims: Dims, ranges: Mapping[str, Interval]) -> Box:
        """The box of a tensor for intervals of some identifiers; the others are whole."""
        found = []
        for dim in dims:
            total = prod(self.sizes[name] for name in dim)
            if dim and dim[0] in ranges:
                inner = total // self.sizes[dim[0]]
                lo, hi = ranges[dim[0]]
                found.append((lo * inner, hi * inner))
            else:
                found.append((0, total))
        return tuple(found)

    def has(self, dims: Dims, name: str) -> bool:
        """Whether a tensor of these dimensions has an identifier."""
        return any(name in dim for dim in dims)

    def renamed(self, old: str, new: str) -> Annotation:
        """With one identifier called otherwise; one that has the new name already gets another."""
        if old == new:
            return self
        swap = {old: new, new: f"{new}_"}

        def dims_of(dims: Dims | None) -> Dims | None:
            return None if dims is None else tuple(tuple(swap.get(n, n) for n in dim) for dim in dims)

        return Annotation(
            self.text,
            tuple(map(dims_of, self.inputs)),
            tuple(dims_of(dims) or () for dims in self.outputs),
            {swap.get(n, n): s for n, s in self.sizes.items()},
            frozenset(swap.get(n, n) for n in self.frozen),
            frozenset(swap.get(n, n) for n in self.contracted),
            {swap.get(n, n): u for n, u in self.units.items()},
        )

    def __str__(self) -> str:
        def name_of(name: str) -> str:
            return name + ("^" if name in self.frozen else "+" if name in self.contracted else "")

        def tensor(dims: Dims | None) -> str:
            if dims is None:
                return "?"
            inner = ["1" if not d else name_of(d[0]) if len(d) == 1 else f"({' '.join(map(name_of, d))})" for d in dims]
            return " ".join(inner)

        return f"{', '.join(map(tensor, self.inputs))} -> {', '.join(map(tensor, self.outputs))}"


@lru_cache(maxsize=4096)
def parse(text: str) -> Pattern:
    """Parse an annotation. Raises InvalidPlan saying where it is wrong."""
    left, arrow, right = text.partition("->")
    if not arrow:
        raise InvalidPlan(f"annotation {text!r} has no '->': write inputs -> outputs, such as 'a b, b c -> a c'")
    marks: dict[str, str] = {}
    inputs = tuple(_tensor(part, text, marks) for part in left.split(","))
    return Pattern(text, inputs, tuple(_tensor(part, text, marks) for part in right.split(",")), marks)


def _tensor(part: str, text: str, marks: dict[str, str]) -> Dims | None:
    if _TOKEN.sub("", part).strip():
        raise InvalidPlan(f"annotation {text!r}: {part.strip()!r} is not made of identifiers, '(', ')', '1' and '?'")
    dims: list[Factors] = []
    group: list[str] | None = None
    for token in _TOKEN.findall(part):
        if token == "?":
            return None
        if token == "(":
            group = []
        elif token == ")":
            if group is None:
                raise InvalidPlan(f"annotation {text!r}: ')' without '('")
            dims.append(tuple(group))
            group = None
        elif token == "1":
            dims.append(())
        else:
            name = token.rstrip("+^")
            mark = token[len(name) :]
            if mark and marks.setdefault(name.lstrip("*"), mark) != mark:
                raise InvalidPlan(f"annotation {text!r}: {name} is marked both + and ^")
            if group is None:
                dims.append((name,))
            else:
                group.append(name)
    if group is not None:
        raise InvalidPlan(f"annotation {text!r}: '(' without ')'")
    return tuple(dims)


def bind(
    pattern: Pattern | str,
    inputs: Sequence[Sequence[int] | None],
    outputs: Sequence[Sequence[int]],
    given: Mapping[str, int] | None = None,
) -> Annotation:
    """An annotation for tensors of these shapes. Raises InvalidPlan where they do not fit.

    given: sizes of identifiers that the shapes alone leave open, such as the factors of a reshape.
    """
    pattern = parse(pattern) if isinstance(pattern, str) else pattern
    if len(pattern.inputs) < len(inputs) or len(pattern.outputs) != len(outputs):
        raise InvalidPlan(
            f"annotation {pattern.text!r} is for {len(pattern.inputs)} inputs and {len(pattern.outputs)} outputs, "
            f"the operator has {len(inputs)} and {len(outputs)}"
        )
    sizes: dict[str, int] = dict(given or {})
    marks = dict(pattern.marks)
    stars: dict[str, int] = {}

    def expand(dims: Dims | None, shape: Sequence[int] | None) -> Dims | None:
        if dims is None or shape is None:
            return None
        found: list[Factors] = []
        for dim in dims:
            if len(dim) == 1 and dim[0].startswith("*"):
                name = dim[0][1:]
                count = stars.setdefault(name, len(shape) - len(dims) + 1)
                found += [(f"{name}{i}",) for i in range(count)]
                marks.update({f"{name}{i}": marks[name] for i in range(count) if name in marks})
            else:
                found.append(dim)
        if len(found) != len(shape):
            raise InvalidPlan(f"annotation {pattern.text!r} does not fit a tensor of shape {tuple(shape)}")
        return tuple(found)

    shapes = [*inputs, *outputs]
    tensors = [expand(d, s) for d, s in zip([*pattern.inputs[: len(inputs)], *pattern.outputs], shapes, strict=True)]
    for _ in range(2):  # a factor may be known only from a later tensor
        for dims, shape in zip(tensors, shapes, strict=True):
            for dim, n in zip(dims or (), shape or (), strict=True):
                unknown = [name for name in dim if name not in sizes]
                known = prod(sizes[name] for name in dim if name in sizes)
                if len(unknown) == 1 and known and n % known == 0:
                    sizes[unknown[0]] = n // known
    for dims, shape in zip(tensors, shapes, strict=True):
        for dim, n in zip(dims or (), shape or (), strict=True):
            if any(name not in sizes for name in dim) or prod(sizes[name] for name in dim) != n:
                raise InvalidPlan(f"annotation {pattern.text!r} does not fit shapes {[tuple(s or ()) for s in shapes]}")
    names = {name for dims in tensors for dim in dims or () for name in dim}
    out = {name for dims in tensors[len(inputs) :] for dim in dims or () for name in dim}
    frozen = {n for n in names if marks.get(n) == "^"}
    contracted = {n for n in names if marks.get(n) == "+"}
    lost = names - out - contracted  # neither in the output nor summed: cutting it would lose it
    return Annotation(
        pattern.text,
        tuple(tensors[: len(inputs)]),
        tuple(dims or () for dims in tensors[len(inputs) :]),
        {n: sizes[n] for n in names},
        frozenset(frozen | lost),
        frozenset(contracted),
    )
