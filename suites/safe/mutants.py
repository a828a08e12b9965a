"""Wrong programs made from right ones, by edits of the text at the places that the parser gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from systems.safe import syntax as s
from systems.safe.parser import parse
from systems.safe.printer import show_program
from systems.safe.spec import nodes


def code_blocks(text: str) -> list[s.Block]:
    """The bodies of executable and proof functions and of loops."""
    functions = [node for node in nodes(parse(text).items) if isinstance(node, s.Fn) and node.mode != "spec"]
    loops = [node for node in nodes(parse(text).items) if isinstance(node, s.While | s.For)]
    return [*(function.body for function in functions if function.body is not None), *(loop.body for loop in loops)]


def with_false_asserted(text: str) -> tuple[str, int]:
    """`assert(false)` at the start of every function and loop body, and how many there are."""
    starts = sorted((block.span.start + 1 for block in code_blocks(text)), reverse=True)
    for start in starts:
        text = text[:start] + " assert(false); " + text[start:]
    return text, len(starts)


def with_one_false_asserted(text: str) -> Iterator[tuple[str, int]]:
    """`assert(false)` at the start of one body at a time, and its line."""
    for block in code_blocks(text):
        start = block.span.start + 1
        yield text[:start] + " assert(false); " + text[start:], text.count("\n", 0, start) + 1


def with_a_wrong_ensures(text: str) -> Iterator[str]:
    """Each `ensures` clause negated, and each replaced by `false`, one at a time."""
    for node in nodes(parse(text).items):
        if isinstance(node, s.Fn) and node.mode in ("exec", "proof"):
            for clause in node.ensures:
                start, end = clause.span
                yield f"{text[:start]}!({text[start:end]}){text[end:]}"
                yield f"{text[:start]}false{text[end:]}"


def without_loop_clauses(text):
    """The program with the clauses of every loop, and every assertion in its code, taken out."""

    def bare(node):
        if isinstance(node, tuple) and not isinstance(node, s.Span):
            return tuple(bare(part) for part in node if not _is_assertion(part))
        if not isinstance(node, s.Node):
            return node
        if isinstance(node, s.LoopSpec):
            return s.LoopSpec()
        return replace(
            node, **{name: bare(getattr(node, name)) for name in node.__dataclass_fields__ if name != "span"}
        )

    return show_program(bare(parse(text)))


def _is_assertion(node):
    return isinstance(node, s.Do) and isinstance(node.expr, s.Assert | s.AssertForall | s.ProofBlock)
