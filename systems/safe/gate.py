"""The anti-cheat gate: a candidate may add ghost code to its task and nothing else.

Trees are compared, not text, so that layout, order of items and comments are free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar

from systems.safe import syntax as s
from systems.safe.parser import parse
from systems.safe.spec import nodes
from systems.safe.syntax import ProgramProblem, Source

_N = TypeVar("_N", bound=s.Node)
Reporter: TypeAlias = Callable[[str, s.Node, str], None]
_FREE_ATTRIBUTES = ("verifier::loop_isolation(", "verifier::spinoff_prover", "verifier::rlimit(")
_DISTRUSTED_MACROS = frozenset(("unimplemented", "todo", "panic", "unreachable", "unsafe"))
_DISTRUSTED_ITEMS = frozenset(("assume_specification", "extern", "global"))


@dataclass(frozen=True)
class Violation:
    """Why a candidate is refused. `kind` is identity, trust, addition or unreadable; `line` is the candidate's."""

    kind: str
    line: int
    message: str


def gate(task: str, candidate: str) -> list[Violation]:
    """What the candidate does beyond adding a proof to the task; empty when it is honest. A proof counts only if it
    is verified as well. Raises ProgramProblem when the task itself cannot be read."""
    original = parse(task)
    source = Source(candidate)
    try:
        changed = parse(candidate)
    except ProgramProblem as problem:
        return [Violation("unreadable", source.position(problem.span.start)[0], str(problem))]
    except RecursionError:
        return [Violation("unreadable", 1, "nested too deeply")]
    found: list[Violation] = []

    def report(kind: str, node: s.Node, message: str) -> None:
        found.append(Violation(kind, source.position(node.span.start)[0], message))

    before, after = _items(original.items), _items(changed.items)
    for name, item in before.items():
        if name not in after:
            found.append(Violation("identity", 1, f"`{name}` of the task is missing"))
        elif _essence(item) != _essence(after[name]):
            report("identity", after[name], f"`{name}` differs from the task's in {_difference(item, after[name])}")
    for name, item in after.items():
        if name not in before:
            _addition(name, item, report)
    if Counter(_attributes(original.attributes)) != Counter(_attributes(changed.attributes)):
        report("trust", changed, "the attributes of the whole program differ")
    _trust(original, changed, report)
    return found


def _items(items: Iterable[s.Item]) -> dict[str, s.Item]:
    """Items by name; `main` and `use` do not matter."""
    found: dict[str, s.Item] = {}
    for place, item in enumerate(items):
        match item:
            case s.Fn() | s.Datatype() | s.Const():
                if item.name != "main":
                    found[item.name if item.name not in found else f"{item.name} (again)"] = item
            case s.Impl():
                owner = item.type.name if isinstance(item.type, s.NamedType) else str(item.type)
                for fn in item.functions:
                    found[f"{owner}::{fn.name}"] = fn
            case s.OtherItem():
                found[f"{item.what} {place}"] = item
            case s.Use():
                if "broadcast" in item.text:
                    found[item.text] = item
    return found


def _attributes(attributes: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(text for text in attributes if not text.startswith(_FREE_ATTRIBUTES)))


def _essence(item: s.Item) -> s.Item:
    """What of an item may not change: everything but ghost code, `decreases` and harmless attributes."""
    if not isinstance(item, s.Fn):
        return item
    body = item.body
    if item.mode == "exec" and body is not None:
        body = without_ghost(body)
    if item.mode == "proof":
        body = s.Block() if body is not None else None
    return replace(item, body=body, decreases=(), attributes=_attributes(item.attributes))


def without_ghost(node: _N) -> _N:
    """A tree of executable code without its ghost parts."""
    stripped = _strip(node)
    assert isinstance(stripped, type(node))
    return stripped


def is_ghost(statement: s.Statement) -> bool:
    """Whether a statement is a proof, and no code."""
    if isinstance(statement, s.Let):
        return bool(statement.ghost)
    return isinstance(statement, s.Do) and isinstance(
        statement.expr, s.Assert | s.AssertForall | s.ProofBlock | s.Reveal
    )


def _strip(node: object) -> object:
    """A tree of executable code without its ghost parts."""
    if isinstance(node, tuple) and not isinstance(node, s.Span):
        return tuple(_strip(part) for part in node)
    if not isinstance(node, s.Node):
        return node
    changes: dict[str, Any] = {}
    for name in node.__dataclass_fields__:
        value: Any = getattr(node, name)
        kept: Any = value
        if name == "span" or not isinstance(value, tuple | s.Node):
            continue
        if isinstance(node, s.Block) and name == "statements":
            kept = tuple(statement for statement in kept if not is_ghost(statement))
        elif isinstance(node, s.While | s.For) and name == "spec":
            kept = s.LoopSpec()
        elif isinstance(node, s.While | s.For) and name == "attributes":
            kept = _attributes(kept)
        elif isinstance(node, s.Block) and name == "tail" and isinstance(value, s.Assert | s.AssertForall | s.Reveal):
            kept = None
        changes[name] = _strip(kept)
    return replace(node, **changes)


def _difference(one: s.Item, other: s.Item) -> str:
    if isinstance(one, s.Fn) and isinstance(other, s.Fn):
        left, right = _essence(one), _essence(other)
        names = [
            name for name in one.__dataclass_fields__ if name != "span" and getattr(left, name) != getattr(right, name)
        ]
        words = {"body": "its code", "params": "its parameters", "result": "its result", "attributes": "its attributes"}
        return ", ".join(words.get(name, f"`{name}`") for name in names)
    return "its definition"


def _addition(name: str, item: s.Item, report: Reporter) -> None:
    if isinstance(item, s.Fn) and item.mode in ("proof", "spec"):
        if item.body is None:
            report("trust", item, f"`{name}` is new and has no body")
        calls = {node.function.names[-1] for node in nodes(item.body)
                 if isinstance(node, s.Call) and isinstance(node.function, s.Path)}  # fmt: skip
        if item.name in calls and not item.decreases:
            report("trust", item, f"`{name}` is new and recursive without `decreases`")
        return
    if isinstance(item, s.Use):
        return
    report("addition", item, f"`{name}` is new and not a proof or spec function")


def _trust(original: s.Program, changed: s.Program, report: Reporter) -> None:
    """Whatever makes the verifier take something on faith, and is not in the task."""
    allowed = Counter(_faith(node) for node in nodes(original.items) if _faith(node) is not None)
    for node in nodes(changed.items):
        what = _faith(node)
        if what is None:
            continue
        if allowed[what] > 0:
            allowed[what] -= 1
        else:
            report("trust", node, f"takes on faith: {what[0]}")


def _faith(node: s.Node) -> tuple[str, object] | None:
    match node:
        case s.Assume():
            return ("`assume`" if node.condition is not None else "`admit`"), node.condition
        case s.MacroCall() if node.name in _DISTRUSTED_MACROS:
            return f"`{node.name}!`", None
        case s.OtherItem() if node.what in _DISTRUSTED_ITEMS:
            return f"`{node.what}`", None
        case s.Fn():
            texts = [
                text
                for text in _attributes(node.attributes)
                if text.split("(")[0] not in ("allow", "inline", "doc", "cfg")
            ]
            if node.mode == "axiom" or "uninterp" in node.qualifiers:
                return f"`{node.mode}` function `{node.name}`", None
            if texts:
                return f"attribute {', '.join(f'#[{text}]' for text in texts)} on `{node.name}`", None
        case s.While() | s.For() if _attributes(node.attributes):
            return f"attribute #[{node.attributes[0]}] on a loop", None
    return None
