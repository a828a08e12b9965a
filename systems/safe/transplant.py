"""The proof of a reply, put into the task: whatever a language model did to the code, only its ghost code is taken."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from systems.safe import syntax as s
from systems.safe.gate import is_ghost, without_ghost
from systems.safe.parser import parse
from systems.safe.printer import show_program
from systems.safe.syntax import SafeError

_FENCE = re.compile(r"^[ \t]*```[\w-]*[ \t]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
_N = TypeVar("_N", bound=s.Node)


class NoProgram(SafeError):
    """A reply that holds no program of the task."""


def code_of(reply: str) -> str:
    """The program in a reply: its last fenced block with `verus!` or `fn` in it, else the text itself if that has.

    Raises NoProgram where there is none.
    """
    blocks = [block for block in _FENCE.findall(reply) if "fn " in block]
    if not blocks and "fn " in reply and "```" not in reply:
        blocks = [reply]
    if not blocks:
        raise NoProgram(f"no program in a reply of {len(reply)} characters: expected one in a ``` block")
    text = str(blocks[-1])
    return text if "verus!" in text else f"verus! {{\n{text}\n}}\n"


def transplant(task: str, candidate: str) -> str:
    """The task with the ghost code of a candidate: clauses of loops, ghost statements, new lemmas. Its own code,
    specifications and comments-free layout are the task's, printed anew.

    Functions are matched by name, loops and statements by what of them is code. Raises ProgramProblem for a text that
    cannot be read.
    """
    program, other = parse(task), parse(candidate)
    theirs = _functions(other.items)
    own = _functions(program.items)

    def graft(fn: s.Fn) -> s.Fn:
        found = theirs.get(fn.name)
        if found is None or fn.body is None or found.body is None or fn.mode == "spec":
            return fn
        if fn.mode == "proof":
            return replace(fn, body=found.body, decreases=fn.decreases or found.decreases)
        return replace(fn, body=_block(fn.body, found.body), decreases=fn.decreases or found.decreases)

    items: list[s.Item] = []
    for item in program.items:
        if isinstance(item, s.Fn):
            items.append(graft(item))
        elif isinstance(item, s.Impl):
            items.append(replace(item, functions=tuple(map(graft, item.functions))))
        else:
            items.append(item)
    added = [
        item
        for item in other.items
        if isinstance(item, s.Fn) and item.mode in ("proof", "spec") and item.name not in own and item.body is not None
    ]
    at = next((k for k, item in enumerate(items) if isinstance(item, s.Fn)), len(items))
    return show_program(replace(program, items=(*items[:at], *added, *items[at:])))


def _functions(items: Sequence[s.Item]) -> dict[str, s.Fn]:
    found: dict[str, s.Fn] = {}
    for item in items:
        for fn in (item,) if isinstance(item, s.Fn) else item.functions if isinstance(item, s.Impl) else ():
            found.setdefault(fn.name, fn)
    return found


def _block(own: s.Block, other: s.Block) -> s.Block:
    """The statements of `own`, with the ghost ones of `other` where their neighbours stand."""
    left = [one for one in own.statements if not is_ghost(one)] + ([own.tail] if own.tail is not None else [])
    right = [*other.statements, *([other.tail] if other.tail is not None else [])]
    coded = [k for k, one in enumerate(right) if not _ghostly(one)]
    partner = _partners(left, [right[k] for k in coded])
    before: dict[int, list[s.Statement]] = {}
    mine, turn = 0, 0
    for one in right:
        if _ghostly(one):
            before.setdefault(mine, []).append(one if isinstance(one, s.Let | s.Do | s.ItemStatement) else s.Do(one))
        else:
            mine = partner[turn] + 1 if turn in partner else mine
            turn += 1
    mates = {ours: right[coded[theirs]] for theirs, ours in partner.items()}
    merged = [_merged(one, mates.get(k)) for k, one in enumerate(left)]
    statements: list[Any] = []
    tail: Any = None
    for k, one in enumerate(merged):
        statements += before.get(k, [])
        if own.tail is not None and k == len(merged) - 1:
            tail = one
        else:
            statements.append(one)
    late = before.get(len(merged), [])  # before the value of a block, behind which nothing can stand
    return replace(own, statements=(*statements, *late), tail=tail)


def _partners(own: Sequence[s.Node], other: Sequence[s.Node]) -> dict[int, int]:
    """Which of our statements each of the other's is: the same code, or between such, code of the same kind."""
    partner: dict[int, int] = {}
    keys = difflib.SequenceMatcher(None, list(map(_key, own)), list(map(_key, other)), autojunk=False)
    for kind, i, j, k, m in keys.get_opcodes():
        if kind == "equal":
            partner.update(zip(range(k, m), range(i, j), strict=True))
        elif kind == "replace":
            kinds = difflib.SequenceMatcher(
                None, list(map(_kind, own[i:j])), list(map(_kind, other[k:m])), autojunk=False
            )
            for a, b, size in kinds.get_matching_blocks():
                partner.update(zip(range(k + b, k + b + size), range(i + a, i + a + size), strict=True))
    return partner


def _kind(one: s.Node) -> str:
    if isinstance(one, s.Let):
        return f"let {_plain(one.pattern)}"
    inner = one.expr if isinstance(one, s.Do) else one
    return type(inner).__name__ + (inner.op if isinstance(inner, s.Assign) else "")


def _ghostly(one: s.Node) -> bool:
    if isinstance(one, s.Let | s.Do | s.ItemStatement):
        return is_ghost(one)
    return isinstance(one, s.Assert | s.AssertForall | s.ProofBlock | s.Reveal)


def _key(node: s.Node) -> str:
    """A statement without ghost code and places, as a text."""
    return _plain(without_ghost(node))


def _plain(node: object) -> str:
    if isinstance(node, tuple):
        return f"({','.join(map(_plain, node))})"
    if isinstance(node, s.Node):
        parts = (_plain(getattr(node, name)) for name in node.__dataclass_fields__ if name != "span")
        return f"{type(node).__name__}({','.join(parts)})"
    return repr(node)


def _merged(own: _N, other: s.Node | None) -> _N:
    """Our statement with the ghost code inside of its counterpart."""
    if other is None or type(own) is not type(other):
        return own
    changes: dict[str, Any] = {}
    for name in own.__dataclass_fields__:
        mine, their = getattr(own, name), getattr(other, name)
        if isinstance(own, s.While | s.For) and name == "spec":
            if their != s.LoopSpec():
                changes[name] = _clauses(mine, their)
        elif isinstance(mine, s.Block) and isinstance(their, s.Block):
            changes[name] = _block(mine, their)
        elif isinstance(mine, s.Node) and isinstance(their, s.Node):
            changes[name] = _merged(mine, their)
        elif isinstance(mine, tuple) and isinstance(their, tuple) and len(mine) == len(their) and name != "span":
            changes[name] = tuple(
                _merged(a, b) if isinstance(a, s.Node) and isinstance(b, s.Node) else a
                for a, b in zip(mine, their, strict=True)
            )
    return replace(own, **changes)


def _clauses(own: s.LoopSpec, other: s.LoopSpec) -> s.LoopSpec:
    """Clauses of both, each once."""

    def both(mine: tuple[s.Expr, ...], theirs: tuple[s.Expr, ...]) -> tuple[s.Expr, ...]:
        known = {_plain(one) for one in mine}
        return (*mine, *(one for one in theirs if _plain(one) not in known))

    return replace(
        own, invariant=both(own.invariant, other.invariant),
        invariant_except_break=both(own.invariant_except_break, other.invariant_except_break),
        ensures=both(own.ensures, other.ensures), decreases=own.decreases or other.decreases,
    )  # fmt: skip
