"""SMT-LIB terms as nested tuples of strings: simplifying constructors, printing, and the choice of triggers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import TypeAlias

Term: TypeAlias = "str | tuple[Term, ...]"
TRUE, FALSE = "true", "false"
_LOGIC = frozenset(
    ("and", "or", "not", "=>", "=", "ite", "forall", "exists", "<", "<=", ">", ">=", "let", "!", "distinct")
)
_ARITHMETIC = frozenset(("+", "-", "*", "div", "mod", "Add", "Sub", "Mul", "EucDiv", "EucMod"))
_MOST_GROUPS = 12


def number(value: int) -> Term:
    return str(value) if value >= 0 else ("-", str(-value))


def conj(*parts: Term) -> Term:
    kept: list[Term] = []
    for part in parts:
        if part == FALSE:
            return FALSE
        if isinstance(part, tuple) and part[0] == "and":
            kept.extend(part[1:])
        elif part != TRUE:
            kept.append(part)
    return TRUE if not kept else kept[0] if len(kept) == 1 else ("and", *kept)


def disj(*parts: Term) -> Term:
    kept = [part for part in parts if part != FALSE]
    if TRUE in kept:
        return TRUE
    return FALSE if not kept else kept[0] if len(kept) == 1 else ("or", *kept)


def negate(part: Term) -> Term:
    if part in (TRUE, FALSE):
        return FALSE if part == TRUE else TRUE
    if isinstance(part, tuple) and part[0] == "not":
        return part[1]
    return ("not", part)


def implies(premise: Term, conclusion: Term) -> Term:
    if premise == TRUE or conclusion == TRUE:
        return conclusion
    return ("=>", premise, conclusion)


def equal(left: Term, right: Term) -> Term:
    return TRUE if left == right else ("=", left, right)


def forall(
    binders: Sequence[tuple[str, str]], body: Term, triggers: Iterable[Sequence[Term]] = (), kind: str = "forall"
) -> Term:
    """A quantifier over (name, sort) pairs with its trigger groups."""
    if body in (TRUE, FALSE) and kind == "forall":
        return body
    if not binders:
        return body
    patterns: list[Term] = []
    for group in triggers:
        patterns += [":pattern", tuple(group)]
    inner: Term = ("!", body, *patterns) if patterns else body
    return (kind, tuple((name, sort) for name, sort in binders), inner)


def show(term: Term) -> str:
    """SMT-LIB text."""
    out: list[str] = []
    stack: list[object] = [term]
    while stack:
        top = stack.pop()
        if isinstance(top, str):
            out.append(top)
        elif isinstance(top, tuple):
            stack.append(_CLOSE)
            for number_, part in enumerate(reversed(top)):
                if number_:
                    stack.append(_SPACE)
                stack.append(part)
            out.append("(")
        elif top is _SPACE:
            out.append(" ")
        else:
            out.append(")")
    return "".join(out)


_SPACE, _CLOSE = object(), object()


def mentions(term: Term, names: frozenset[str]) -> frozenset[str]:
    """Which of `names` occur in `term`."""
    found: set[str] = set()
    stack = [term]
    while stack:
        top = stack.pop()
        if isinstance(top, str):
            if top in names:
                found.add(top)
        else:
            stack.extend(top)
    return frozenset(found)


def _candidates(term: Term, names: frozenset[str], found: dict[Term, frozenset[str]]) -> bool:
    """Collect applications fit to be triggers; whether `term` itself may stand inside one."""
    if isinstance(term, str):
        return True
    head = term[0]
    if head in ("forall", "exists"):
        inner = term[2]
        bound = {binder[0] for binder in term[1]}
        nested: dict[Term, frozenset[str]] = {}
        body = inner[1] if isinstance(inner, tuple) and inner[0] == "!" else inner
        _candidates(body, names, nested)
        hidden = frozenset(name for name in bound if isinstance(name, str))
        found.update((key, value) for key, value in nested.items() if not mentions(key, hidden))
        return False
    pure = True
    for part in term[1:]:
        pure = _candidates(part, names, found) and pure
    held = mentions(term, names)
    if not held:
        return True
    if not pure or not isinstance(head, str) or head in _LOGIC or head in _ARITHMETIC or head.startswith("clip."):
        return False
    if held:
        found[term] = held
    return True


def _inside(small: Term, big: Term) -> bool:
    if small == big:
        return True
    return isinstance(big, tuple) and any(_inside(small, part) for part in big)


def choose_triggers(names: Sequence[str], body: Term) -> list[tuple[Term, ...]]:
    """Trigger groups for a quantifier without marks: every smallest application of uninterpreted functions that
    covers the variables and has no arithmetic on them; failing that, the smallest groups of such applications.
    Empty when nothing covers them."""
    wanted = frozenset(names)
    found: dict[Term, frozenset[str]] = {}
    _candidates(body, wanted, found)
    single = [term for term, held in found.items() if held == wanted]
    single = [term for term in single if not any(other != term and _inside(other, term) for other in single)]
    if single:
        return [(term,) for term in single[:_MOST_GROUPS]]
    smallest = [
        term for term, held in found.items()
        if not any(other != term and found[other] == held and _inside(other, term) for other in found)
    ]  # fmt: skip
    for size in range(2, len(wanted) + 1):
        groups = [
            group for group in combinations(smallest, size)
            if frozenset().union(*(found[term] for term in group)) == wanted
            and all(frozenset().union(*(found[o] for o in group if o is not term)) != wanted for term in group)
        ]  # fmt: skip
        if groups:
            return groups[:_MOST_GROUPS]
    return []


def subterms(term: Term) -> Iterator[Term]:
    """`term` and everything inside it."""
    stack = [term]
    while stack:
        top = stack.pop()
        yield top
        if isinstance(top, tuple):
            stack.extend(top)
