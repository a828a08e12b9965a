"""Executable expressions as specifications, and specifications with parts replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from systems.safe import syntax as s
from systems.safe.parser import Parser
from systems.safe.printer import show_expr, show_type
from systems.safe.spec import nodes
from systems.safe.syntax import ProgramProblem
from systems.safe.types import Typing


def names_in(expr: object) -> list[str]:
    return [node.names[0] for node in nodes(expr) if isinstance(node, s.Path) and len(node.names) == 1]


class Reader:
    """Turns executable expressions into specification text, and rewrites specifications."""

    def __init__(self, typing: Typing) -> None:
        self.typing = typing

    def text(self, expr: s.Expr, names: dict[str, str] | None = None) -> str | None:
        """`expr` as a specification, with variables replaced by texts of type `int`. None where it has no meaning
        there."""
        found = self._text(expr, names or {})
        return normal(found) if found is not None else None

    def _text(self, expr: s.Expr, names: dict[str, str]) -> str | None:
        match expr:
            case s.Lit():
                return show_expr(expr) if expr.kind != "string" else None
            case s.Path():
                return names.get(expr.names[0], show_expr(expr)) if len(expr.names) == 1 else show_expr(expr)
            case s.Unary():
                inner = self.text(expr.operand, names)
                if inner is None or expr.op in ("&", "&mut", "*"):
                    return inner
                return f"{expr.op}({inner})"
            case s.Cast():
                return self.text(expr.operand, names)
            case s.Binary():
                left, right = self.text(expr.left, names), self.text(expr.right, names)
                return None if left is None or right is None else f"({left}) {expr.op} ({right})"
            case s.Index():
                base, index = self.text(expr.receiver, names), self.index(expr.index, names)
                return None if base is None or index is None else f"{base}[{index}]"
            case s.Method():
                return self.method(expr, names)
            case s.Call():
                return self.call(expr, names)
            case s.Field():
                inner = self.text(expr.receiver, names)
                return None if inner is None else f"{inner}.{expr.name}"
        return None

    def index(self, expr: s.Expr, names: dict[str, str]) -> str | None:
        found = self.text(expr, names)
        if found is None or isinstance(expr, s.Lit | s.Binary):
            return found
        if isinstance(expr, s.Path) and expr.names[0] in names:
            return found
        return f"{found} as int"

    def method(self, expr: s.Method, names: dict[str, str]) -> str | None:
        base = self.text(expr.receiver, names)
        if base is None:
            return None
        if expr.name in ("as_str", "as_slice"):
            return base
        if expr.name == "unicode_len":
            return f"{base}@.len()"
        if expr.name == "get_char":
            index = self.index(expr.args[0], names)
            return None if index is None else f"{base}@[{index}]"
        return f"{base}.len()" if expr.name == "len" else None

    def call(self, expr: s.Call, names: dict[str, str]) -> str | None:
        """What the called function is said to give: the `E` of `ensures result == E`."""
        callee = self.typing.callees.get(id(expr))
        if callee is None or callee.kind != "fn":
            return None
        signature = self.typing.functions[callee.name]
        args = [self.text(arg, names) for arg in expr.args]
        if any(arg is None for arg in args):
            return None
        if signature.mode == "spec":
            return f"{signature.name}({', '.join(str(arg) for arg in args)})"
        table = {param.name: str(arg) for param, arg in zip(signature.params, args, strict=True)}
        for clause in signature.fn.ensures:
            for value in self.defining(clause, signature.fn.result[0]):
                return f"({substituted(value, table)})"
        return None

    def defining(self, clause: s.Expr, result: str) -> Iterator[s.Expr]:
        for part in conjuncts(clause):
            if isinstance(part, s.Binary) and part.op in ("==", "<==>"):
                for one, other in ((part.left, part.right), (part.right, part.left)):
                    if isinstance(one, s.Path) and one.names == (result,) and result not in names_in(other):
                        yield other

    def unfolded(self, expr: s.Expr) -> s.Expr:
        """With calls of non-recursive spec functions replaced by their bodies."""

        def unfold(node: s.Expr) -> s.Expr | None:
            callee = self.typing.callees.get(id(node))
            if not isinstance(node, s.Call) or callee is None or callee.kind != "fn":
                return None
            signature = self.typing.functions[callee.name]
            body = signature.fn.body
            if (
                signature.mode != "spec"
                or body is None
                or body.statements
                or body.tail is None
                or signature.fn.decreases
            ):
                return None
            table = dict(zip((param.name for param in signature.params), node.args, strict=True))
            return rewrite(body.tail, lambda part: table.get(part.names[0]) if isinstance(part, s.Path) else None)

        return rewrite(expr, unfold)


def rewrite(expr: s.Expr, change: Callable[[s.Expr], s.Expr | None]) -> s.Expr:
    """The tree with every topmost expression for which `change` gives another one replaced."""

    def visit(node: object) -> object:
        if isinstance(node, s.Expr):
            found = change(node)
            if found is not None:
                return found
        if isinstance(node, tuple) and not isinstance(node, s.Span):
            items = tuple(visit(part) for part in node)
            return node if all(new is old for new, old in zip(items, node, strict=True)) else items
        if isinstance(node, s.Node):
            parts = {name: visit(getattr(node, name)) for name in node.__dataclass_fields__ if name != "span"}
            if all(parts[name] is getattr(node, name) for name in parts):
                return node
            return replace(node, **parts)  # type: ignore[arg-type]
        return node

    found = visit(expr)
    assert isinstance(found, s.Expr)
    return found


def substituted(expr: s.Expr, table: dict[str, str]) -> str:
    """Text of `expr` with variables replaced by texts."""

    def change(node: s.Expr) -> s.Expr | None:
        if isinstance(node, s.Path) and len(node.names) == 1 and node.names[0] in table:
            return s.Path((table[node.names[0]],))
        return None

    return show_expr(rewrite(expr, change))


def conjuncts(expr: s.Expr) -> Iterator[s.Expr]:
    """The parts of a conjunction."""
    match expr:
        case s.Binary(op="&&" | "&&&"):
            yield from conjuncts(expr.left)
            yield from conjuncts(expr.right)
        case s.Block(statements=(), tail=tail) if tail is not None:
            yield from conjuncts(tail)
        case _:
            yield expr


def negated(expr: s.Expr) -> str:
    """The negation, with an existential turned into a universal."""
    if isinstance(expr, s.Quantifier) and expr.kind == "exists":
        parts = list(conjuncts(expr.body))
        names = frozenset(param.name for param in expr.params)
        ranges = [part for part in parts if isinstance(part, s.Chain) or _is_bound(part, names)]
        rest = [part for part in parts if part not in ranges]
        head = "forall|" + ", ".join(f"{p.name}: {_shown_type(p)}" for p in expr.params) + "| "
        premise = " && ".join(f"({show_expr(part)})" for part in ranges) or "true"
        claim = " && ".join(f"({show_expr(part)})" for part in rest) or "true"
        return f"{head}{premise} ==> !({claim})"
    return f"!({show_expr(expr)})"


def _shown_type(param: s.Param) -> str:
    return show_type(param.type) if param.type is not None else "int"


def _is_bound(expr: s.Expr, names: frozenset[str]) -> bool:
    if not isinstance(expr, s.Binary) or expr.op not in ("<", "<=", ">", ">="):
        return False
    return any(isinstance(side, s.Path) and side.names[0] in names for side in (expr.left, expr.right))


def normal(text: str) -> str | None:
    """An expression as the printer writes it, so that equal ones are equal texts. None where it is none."""
    try:
        return show_expr(Parser(text).expr())
    except ProgramProblem:
        return None


def named(table: Mapping[str, s.Expr]) -> Callable[[s.Expr], s.Expr | None]:
    """A change for `rewrite` that puts expressions for names."""
    return lambda node: table.get(node.names[0]) if isinstance(node, s.Path) and len(node.names) == 1 else None
