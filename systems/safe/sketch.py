"""A program with proof candidates written into it: each at its place, found again by where it stands in the text.

The text of the task is kept to the letter; a candidate is only ever added to it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from systems.safe import syntax as s

_TAB = "    "


@dataclass(frozen=True)
class Place:
    """Where a candidate goes. `kind` is invariant, decreases, statement, attribute or item; `offset` counts the
    characters of the task before it."""

    kind: str
    offset: int


@dataclass(frozen=True)
class Candidate:
    """One clause, statement or item that may be added. `why` names the rule that proposed it."""

    place: Place
    text: str
    why: str = ""
    support: Candidate | None = None
    """The lemma that a call needs."""


@dataclass(frozen=True)
class Sketch:
    """A task with candidates in its text. `starts[n]` and `ends[n]` is the range of `candidates[n]` in it."""

    text: str
    candidates: tuple[Candidate, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]

    def at(self, offset: int) -> Candidate | None:
        """The candidate whose text holds `offset`."""
        found = bisect_right(self.starts, offset) - 1
        return self.candidates[found] if found >= 0 and offset < self.ends[found] else None


def loop_clauses(source: str, loop: s.While | s.For) -> int:
    """Where new clauses of a loop go: behind its own, else before its body."""
    own = (*loop.spec.invariant_except_break, *loop.spec.invariant, *loop.spec.ensures, *loop.spec.decreases)
    if own:
        return min(clause.span.start for clause in own) - 1
    at = loop.body.span.start
    before = at
    while source[before - 1].isspace():
        before -= 1
    line = source[source.rfind("\n", 0, before) + 1 : before]
    return at if "//" in line else before


def write(source: str, candidates: Iterable[Candidate]) -> Sketch:
    """The source with candidates at their places. Clauses of one loop stand together, invariants first."""
    ordered = sorted(candidates, key=lambda one: (one.place.offset, _ORDER[one.place.kind]))
    pieces: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    length = at = 0
    kind = ""

    def add(text: str) -> None:
        nonlocal length
        pieces.append(text)
        length += len(text)

    for number, one in enumerate(ordered):
        offset = one.place.offset
        fresh = number == 0 or ordered[number - 1].place.offset != offset
        if fresh:
            add(source[at:offset])
            at, kind = offset, ""
        indent = _indent(source, offset)
        blank = not source[source.rfind("\n", 0, offset) + 1 : offset].strip()
        word = one.place.kind
        if word in ("invariant", "decreases"):
            if word != kind:
                add(f"\n{indent}{_TAB}{word}")
            add(f"\n{indent}{_TAB * 2}")
        elif word == "statement" and not blank:
            add(f"\n{indent}{_TAB if source[offset - 1] == '{' else ''}")
        starts.append(length)
        add(one.text)
        ends.append(length)
        if word in ("invariant", "decreases"):
            add(",")
            last = number + 1 == len(ordered) or ordered[number + 1].place.offset != offset
            if last and not source[offset:].lstrip(" \t").startswith("\n"):
                add(f"\n{indent}")
        elif word == "item":
            add(f"\n\n{indent}")
        elif (
            word == "attribute"
            or blank
            or (
                not source[offset : offset + 1].isspace()
                and (number + 1 == len(ordered) or ordered[number + 1].place.offset != offset)
            )
        ):
            add(f"\n{indent}")
        kind = word
    add(source[at:])
    return Sketch("".join(pieces), tuple(ordered), tuple(starts), tuple(ends))


_ORDER = {"item": 0, "attribute": 1, "invariant": 2, "decreases": 3, "statement": 4}


def _indent(source: str, offset: int) -> str:
    line = source[source.rfind("\n", 0, offset) + 1 :]
    return line[: len(line) - len(line.lstrip(" \t"))]


def loops(body: s.Node | None) -> list[s.While | s.For]:
    """The loops of a body in the order of their text, inner ones after the outer."""
    found: list[s.While | s.For] = []

    def visit(node: object) -> None:
        if isinstance(node, tuple):
            for part in node:
                visit(part)
        elif isinstance(node, s.Node):
            if isinstance(node, s.While | s.For):
                found.append(node)
            for name in node.__dataclass_fields__:
                if name != "span":
                    visit(getattr(node, name))

    visit(body)
    return found


def chosen(sketch: Sketch, keep: Sequence[bool]) -> list[Candidate]:
    """The candidates that are kept."""
    return [one for one, kept in zip(sketch.candidates, keep, strict=True) if kept]
