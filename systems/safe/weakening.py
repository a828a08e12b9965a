"""What has to hold in the end, made into what holds so far."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from systems.safe import syntax as s
from systems.safe.contexts import Context, Scope, bounds_of, stem
from systems.safe.evaluate import Environment
from systems.safe.parser import Parser
from systems.safe.printer import show_expr
from systems.safe.rewriting import conjuncts, named, negated, rewrite
from systems.safe.spec import nodes
from systems.safe.syntax import ProgramProblem


def _renamed(expr: s.Expr, taken: Iterable[str]) -> s.Expr:
    """With bound variables that are also names of the code called otherwise."""
    names = {param.name for node in nodes(expr) if isinstance(node, s.Quantifier) for param in node.params}
    table = {name: f"{name}_" for name in names & set(taken)}
    if not table:
        return expr

    def change(node: s.Expr) -> s.Expr | None:
        if isinstance(node, s.Quantifier):
            params = tuple(replace(param, name=table.get(param.name, param.name)) for param in node.params)
            triggers = tuple(tuple(rewrite(part, change) for part in group) for group in node.triggers)
            return replace(node, params=params, body=rewrite(node.body, change), triggers=triggers)
        return s.Path((table[node.names[0]],)) if isinstance(node, s.Path) and node.names[0] in table else None

    return rewrite(expr, change)


def goals(where: Context) -> Iterator[s.Expr]:
    """What has to hold in the end: ensures clauses over the variables that the result is made of, and assertions."""
    fn = where.signature.fn
    result, tail = fn.result[0], fn.body.tail if fn.body is not None else None
    table: dict[str, s.Expr] = {}
    if result and isinstance(tail, s.Path | s.Lit):
        table[result] = tail
    parts = tail.items if isinstance(tail, s.Tuple) else ()

    def change(node: s.Expr) -> s.Expr | None:
        if isinstance(node, s.Field) and isinstance(node.receiver, s.Path) and node.receiver.names == (result,):
            return parts[int(node.name)] if node.name.isdigit() and int(node.name) < len(parts) else None
        return table.get(node.names[0]) if isinstance(node, s.Path) and len(node.names) == 1 else None

    for clause in fn.ensures:
        for part in conjuncts(clause):
            if isinstance(part, s.If) and isinstance(part.condition, s.LetCondition) and part.orelse is not None:
                yield from conjuncts(part.orelse)
                for node in nodes(fn.body):
                    if isinstance(node, s.Return) and node.value is not None:
                        bound = _matched(part.condition.pattern, node.value)
                        yield from (rewrite(piece, named(bound)) for piece in conjuncts(part.then))
            yield rewrite(part, change)
    for node in nodes(fn.body):
        if isinstance(node, s.Assert):
            yield from conjuncts(node.condition)


def _matched(pattern: s.Pattern, value: s.Expr) -> dict[str, s.Expr]:
    """What a pattern's names stand for when a value is made in the same shape."""
    match pattern, value:
        case s.Bind(), _:
            return {pattern.name: value}
        case s.TuplePattern(), s.Tuple():
            return {
                k: v
                for one, part in zip(pattern.items, value.items, strict=False)
                for k, v in _matched(one, part).items()
            }
        case s.VariantPattern(), s.Call(function=s.Path(names=names)) if names[-1] == pattern.path[-1]:
            return {
                k: v
                for one, part in zip(pattern.items, value.args, strict=False)
                for k, v in _matched(one, part).items()
            }
    return {}


def from_goals(where: Context, scope: Scope, states: Sequence[Environment]) -> Iterator[str]:
    """The goals, so far: with upper bounds replaced by counters and sequences by their parts passed."""
    bounds = bounds_of(where, scope)
    for goal in goals(where):
        for form in _forms(where, goal, scope.types):
            yield from _weakened(where, scope, form, bounds)


def _forms(where: Context, goal: s.Expr, taken: Iterable[str]) -> Iterator[str]:
    for whole in dict.fromkeys((goal, where.reader.unfolded(goal))):
        expr = _renamed(whole, taken)
        yield show_expr(expr)
        if isinstance(expr, s.Binary) and expr.op in ("==", "<==>"):
            for one, other in ((expr.left, expr.right), (expr.right, expr.left)):
                if isinstance(one, s.Path | s.Lit):
                    for part in (other, _renamed(where.reader.unfolded(other), taken)):
                        yield show_expr(part)
                        yield negated(part)
                        for piece in conjuncts(part):
                            yield show_expr(piece)


def _weakened(where: Context, scope: Scope, text: str, bounds: Iterable[str]) -> Iterator[str]:
    try:
        expr = Parser(text).expr()
    except ProgramProblem:
        return
    expr = rewrite(expr, _extensional)
    yield show_expr(expr)
    lengths = set(bounds)
    for counter in [*scope.counters, *scope.outer][:3]:
        value = s.Path((counter,))
        as_int = s.Cast(value, s.NamedType("int"))
        places = [node for node in nodes(expr) if isinstance(node, s.Expr) and _bound_text(node) in lengths]
        spellings = list(dict.fromkeys(show_expr(place) for place in places))
        for spelling in spellings:
            for each in ({spelling}, set(spellings)):
                changed = _with_counter(expr, each, value, as_int)
                yield show_expr(changed)
                yield show_expr(rewrite(changed, lambda n, value=value: _strict(n, value)))  # type: ignore[misc]
                yield show_expr(rewrite(changed, _from_zero))
            for turn in range(min(4, sum(show_expr(place) == spelling for place in places))):
                changed = _at_one(expr, spelling, turn, value)
                yield show_expr(changed)
                yield show_expr(rewrite(changed, lambda n, value=value: _strict(n, value)))  # type: ignore[misc]
        yield from _subranges(expr, as_int)
        yield show_expr(rewrite(expr, lambda n, value=value: _behind(n, value)))  # type: ignore[misc]
        for node in list(dict.fromkeys(n for n in nodes(expr) if isinstance(n, s.View))):
            for method in ("take", "subrange"):
                args = (as_int,) if method == "take" else (s.Lit("int", 0), as_int)
                part = s.Method(node, method, args)
                yield show_expr(_replaced(expr, node, part))
                for turn in range(min(3, sum(other == node for other in nodes(expr)))):
                    yield show_expr(_at_one(expr, show_expr(node), turn, part))
                views = [n for n in nodes(expr) if isinstance(n, s.View) and show_expr(n) != show_expr(node)]
                if views:
                    yield show_expr(
                        rewrite(
                            expr,
                            lambda n, args=args, method=method: (  # type: ignore[misc]
                                s.Method(n, method, args)
                                if isinstance(n, s.View) and stem(show_expr(n)) not in scope.changed
                                else None
                            ),
                        )
                    )
        for name in _called_with(expr, scope):
            yield show_expr(rewrite(expr, lambda n, name=name, value=value: as_nat(n, name, value)))  # type: ignore[misc]


def as_nat(node: s.Expr, name: str, value: s.Expr) -> s.Expr | None:
    """`name as nat` with another variable."""
    if isinstance(node, s.Cast) and isinstance(node.operand, s.Path) and node.operand.names == (name,):
        return s.Cast(value, node.type)
    return None


def _called_with(expr: s.Expr, scope: Scope) -> list[str]:
    return [
        node.operand.names[0]
        for node in nodes(expr)
        if isinstance(node, s.Cast) and isinstance(node.operand, s.Path) and node.operand.names[0] in scope.integers
    ]


def _extensional(node: s.Expr) -> s.Expr | None:
    if isinstance(node, s.Binary) and node.op == "==" and (_sequence(node.left) or _sequence(node.right)):
        return replace(node, op="=~=")
    return None


def _sequence(expr: s.Expr) -> bool:
    return isinstance(expr, s.View) or (
        isinstance(expr, s.Method)
        and expr.name in ("subrange", "take", "skip", "add", "reverse", "filter", "map", "push")
    )


def _bound_text(expr: s.Expr) -> str:
    match expr:
        case s.Cast():
            return _bound_text(expr.operand)
        case s.Method(name="len"):
            base = expr.receiver.operand if isinstance(expr.receiver, s.View) else expr.receiver
            return f"{show_expr(base)}.len()"
        case s.Path() | s.Binary():
            return show_expr(expr)
    return ""


def _with_counter(expr: s.Expr, spellings: set[str], value: s.Expr, as_int: s.Expr) -> s.Expr:
    def change(node: s.Expr) -> s.Expr | None:
        if isinstance(node, s.Method) and node.name in ("subrange", "take", "skip"):
            args = tuple(as_int if show_expr(arg) in spellings else rewrite(arg, change) for arg in node.args)
            return replace(node, receiver=node.receiver, args=args)
        return value if show_expr(node) in spellings else None

    return rewrite(expr, change)


def _strict(node: s.Expr, value: s.Expr) -> s.Expr | None:
    """`x <= value` as `x < value`: what was reached is not yet done."""
    if isinstance(node, s.Binary) and node.op == "<=" and node.right == value:
        return replace(node, op="<")
    if isinstance(node, s.Chain) and node.operands[-1] == value and node.ops[-1] == "<=":
        return replace(node, ops=(*node.ops[:-1], "<"))
    return None


def _behind(node: s.Expr, value: s.Expr) -> s.Expr | None:
    """`0 <= k < n` as `value <= k < n`: what a loop that counts down has passed."""
    if isinstance(node, s.Chain) and isinstance(node.operands[0], s.Lit):
        return replace(node, operands=(value, *node.operands[1:]))
    if isinstance(node, s.Binary) and node.op in ("<=", "<") and isinstance(node.left, s.Lit):
        return replace(node, left=value)
    return None


def _from_zero(node: s.Expr) -> s.Expr | None:
    """`c <= k < n` as `0 <= k < n`."""
    if isinstance(node, s.Chain) and isinstance(node.operands[0], s.Lit) and node.operands[0].value != 0:
        return replace(node, operands=(s.Lit("int", 0), *node.operands[1:]))
    return None


def _at_one(expr: s.Expr, spelling: str, turn: int, value: s.Expr) -> s.Expr:
    """With one occurrence of a spelling replaced."""
    seen = -1

    def change(node: s.Expr) -> s.Expr | None:
        nonlocal seen
        if show_expr(node) != spelling:
            return None
        seen += 1
        return value if seen == turn else node

    return rewrite(expr, change)


def _replaced(expr: s.Expr, old: s.Expr, new: s.Expr) -> s.Expr:
    return rewrite(expr, lambda node: new if node == old else None)


def _subranges(expr: s.Expr, as_int: s.Expr) -> Iterator[str]:
    """Sequences put together from parts: the first parts alone, and each with its end moved to the counter."""
    if not isinstance(expr, s.Binary) or expr.op != "=~=":
        return
    for one, other in ((expr.left, expr.right), (expr.right, expr.left)):
        pieces = _pieces(other)
        for count in range(1, len(pieces) + 1):
            for part in _ended(pieces[count - 1], as_int):
                whole = part
                for piece in reversed(pieces[: count - 1]):
                    whole = s.Method(piece, "add", (whole,))
                yield f"{show_expr(one)} =~= {show_expr(whole)}"
            whole = pieces[0]
            for piece in pieces[1:count]:
                whole = s.Method(whole, "add", (piece,))
            yield f"{show_expr(one)} =~= {show_expr(whole)}"


def _pieces(expr: s.Expr) -> list[s.Expr]:
    if isinstance(expr, s.Method) and expr.name == "add":
        return [*_pieces(expr.receiver), *_pieces(expr.args[0])]
    if isinstance(expr, s.Binary) and expr.op == "+":
        return [*_pieces(expr.left), *_pieces(expr.right)]
    return [expr]


def _ended(expr: s.Expr, as_int: s.Expr) -> Iterator[s.Expr]:
    match expr:
        case s.Method(name="subrange"):
            yield replace(expr, args=(expr.args[0], as_int))
            yield replace(expr, args=(as_int, expr.args[1]))
        case s.Method(name="take"):
            yield replace(expr, args=(as_int,))
        case s.Method(name="reverse"):
            yield s.Method(expr, "take", (as_int,))
            for inner in _ended(expr.receiver, as_int):
                yield replace(expr, receiver=inner)
        case s.View():
            yield s.Method(expr, "subrange", (s.Lit("int", 0), as_int))
