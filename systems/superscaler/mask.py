"""Which part of a tensor: an interval per dimension, and which addend of its value.

A `Mask` is `(box, part)`. `box` holds a half-open interval per dimension, `part = (v, V)` says "the v-th of V addends
whose sum is the value"; (0, 1) is the value itself. Addends are intervals of [0, 1): splitting addend (v, V) in n
gives ((v n + i), V n), so nested and uneven splits need no other notation. A `Region` is what a device holds in the
middle of a move: per dimension a sorted tuple of disjoint intervals.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import prod

__all__ = ["Box", "Interval", "Mask", "Region", "cut", "extent", "places", "region_of", "subtract"]

Interval = tuple[int, int]
Box = tuple[Interval, ...]
Region = tuple[tuple[Interval, ...], ...]
WHOLE = (0, 1)


@dataclass(frozen=True)
class Mask:
    """`box`: (lo, hi) per dimension; `part`: (v, V), the v-th of V addends. A scalar has an empty box."""

    box: Box
    part: tuple[int, int] = WHOLE

    @classmethod
    def full(cls, shape: Sequence[int]) -> Mask:
        """The whole of a tensor of `shape`."""
        return cls(tuple((0, int(n)) for n in shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent per dimension."""
        return tuple(hi - lo for lo, hi in self.box)

    @property
    def elements(self) -> int:
        """Number of elements; 1 for a scalar."""
        return prod(self.shape)

    @property
    def is_addend(self) -> bool:
        """Whether it is one of several addends."""
        return self.part[1] > 1

    def is_whole(self, shape: Sequence[int]) -> bool:
        """Whether it is all of a tensor of `shape`, and its value."""
        return not self.is_addend and self.box == Mask.full(shape).box

    @property
    def share(self) -> tuple[Fraction, Fraction]:
        """The interval of [0, 1) that the addend stands for."""
        v, n = self.part
        return Fraction(v, n), Fraction(v + 1, n)

    def intersect(self, other: Mask) -> Mask | None:
        """What both cover, or None: boxes must overlap, and value parts nest or agree."""
        box = intersect(self.box, other.box)
        (a, b), (c, d) = self.share, other.share
        if box is None or max(a, c) >= min(b, d):
            return None
        return Mask(box, self.part if self.part[1] >= other.part[1] else other.part)

    def covers(self, other: Mask) -> bool:
        """Whether `other` lies in this mask."""
        (a, b), (c, d) = self.share, other.share
        return contains(self.box, other.box) and a <= c and d <= b

    def union(self, other: Mask) -> Mask | None:
        """Both as one mask, where that is exact: equal but for one dimension in which they touch, or for the addend."""
        if self.covers(other):
            return self
        if other.covers(self):
            return other
        if self.box == other.box and self.part[1] == other.part[1]:
            v, w = sorted((self.part[0], other.part[0]))
            if w == v + 1 and v % 2 == 0 and self.part[1] % 2 == 0:
                return Mask(self.box, (v // 2, self.part[1] // 2))
            return None
        if self.part != other.part or len(self.box) != len(other.box):
            return None
        differing = [k for k, (a, b) in enumerate(zip(self.box, other.box, strict=True)) if a != b]
        if len(differing) != 1:
            return None
        k = differing[0]
        a, b = sorted((self.box[k], other.box[k]))
        if a[1] < b[0]:
            return None
        return Mask((*self.box[:k], (a[0], max(a[1], b[1])), *self.box[k + 1 :]), self.part)

    def __str__(self) -> str:
        text = ",".join(f"{lo}:{hi}" for lo, hi in self.box)
        return f"[{text}]" + (f" addend {self.part[0]}/{self.part[1]}" if self.is_addend else "")


def intersect(a: Box, b: Box) -> Box | None:
    """The overlap of two boxes of equal rank, or None where they do not meet."""
    found = tuple((max(p, r), min(q, s)) for (p, q), (r, s) in zip(a, b, strict=True))
    return None if any(lo >= hi for lo, hi in found) else found


def contains(outer: Box, inner: Box) -> bool:
    """Whether `inner` lies in `outer`."""
    return all(p <= r and s <= q for (p, q), (r, s) in zip(outer, inner, strict=True))


def hull(boxes: Iterable[Box]) -> Box:
    """The least box around several."""
    return tuple((min(lo for lo, _ in dim), max(hi for _, hi in dim)) for dim in zip(*boxes, strict=True))


def subtract(box: Box, other: Box) -> list[Box]:
    """`box` without `other`, as disjoint boxes."""
    common = intersect(box, other)
    if common is None:
        return [box]
    rest, core = [], list(box)
    for k, ((lo, hi), (a, b)) in enumerate(zip(box, common, strict=True)):
        if lo < a:
            rest.append((*core[:k], (lo, a), *core[k + 1 :]))
        if b < hi:
            rest.append((*core[:k], (b, hi), *core[k + 1 :]))
        core[k] = (a, b)
    return rest


def cut(length: int, parts: int, unit: int = 1) -> list[Interval]:
    """`length` in `parts` intervals whose sizes differ by `unit` at most; each a multiple of `unit`.

    Raises ValueError where there are fewer units than parts.
    """
    units = length // unit
    if units * unit != length or parts < 1 or units < parts:
        raise ValueError(f"cannot cut {length} elements (in units of {unit}) into {parts} parts")
    return [(units * i // parts * unit, units * (i + 1) // parts * unit) for i in range(parts)]


def region_of(box: Box) -> Region:
    """A box as a region."""
    return tuple((interval,) for interval in box)


def extent(region: Region) -> tuple[int, ...]:
    """The shape of a region as it lies in memory."""
    return tuple(sum(hi - lo for lo, hi in dim) for dim in region)


def places(piece: Region, container: Region) -> Region:
    """Where `piece` lies in the memory of `container`: local intervals per dimension, in the order of the piece.

    Raises ValueError where the container does not hold it.
    """
    return tuple(_places(a, b) for a, b in zip(piece, container, strict=True))


def _places(piece: tuple[Interval, ...], container: tuple[Interval, ...]) -> tuple[Interval, ...]:
    found: list[Interval] = []
    for lo, hi in piece:
        start, at = 0, lo
        for a, b in container:
            if a <= at < b and at < hi:
                end = min(hi, b)
                new = (start + at - a, start + end - a)
                if found and found[-1][1] == new[0]:
                    new = (found.pop()[0], new[1])
                found.append(new)
                at = end
            start += b - a
        if at < hi:
            raise ValueError(f"{lo}:{hi} is not in {container}")
    return tuple(found)


def merge(intervals: Iterable[Interval]) -> tuple[Interval, ...]:
    """Sorted intervals with touching ones joined."""
    found: list[Interval] = []
    for lo, hi in sorted(intervals):
        if found and found[-1][1] >= lo:
            found[-1] = (found[-1][0], max(hi, found[-1][1]))
        else:
            found.append((lo, hi))
    return tuple(found)
