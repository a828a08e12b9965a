"""Steps of proofs that the solver does not find alone: assertions that name the right terms, revealed definitions, and
lemmas by induction. Each is checked like a candidate, so a wrong one only costs time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from systems.safe import syntax as s
from systems.safe.contexts import Context, Scope, element_type
from systems.safe.evaluate import integer_range
from systems.safe.printer import show_expr
from systems.safe.rewriting import conjuncts, named, rewrite
from systems.safe.sketch import Candidate, Place
from systems.safe.spec import nodes
from systems.safe.types import Signature, Typing, settled, strip
from systems.safe.weakening import goals


def hints(where: Context) -> list[Candidate]:
    """Statements for the body of one function, and lemmas that some of them call."""
    fn = where.signature.fn
    if fn.body is None or fn.mode == "spec":
        return []
    found: list[Candidate] = []
    if fn.mode == "proof":
        found += _statements(_end(fn), _nonlinear(where))
        return found
    for scope in where.scopes:
        found += _in_loop(where, scope)
    found += _statements(fn.body.span.start + 1, _revealed(where))
    ends = [_end(fn), *(place for place, _ in _returns(fn.body))]
    for place in ends:
        found += _statements(place, _differences(where))
    for place in ends[1:]:
        found += _statements(place, _witnesses(where))
    found += _statements(_end(fn), _conclusions(where))
    found += _lemmas(where)
    return list(dict.fromkeys(found))


def _statements(offset: int, texts: Iterator[str]) -> list[Candidate]:
    place = Place("statement", offset)
    return [Candidate(place, text, "hint") for text in dict.fromkeys(texts)]


def _end(fn: s.Fn) -> int:
    assert fn.body is not None
    tail = fn.body.tail
    return fn.body.span.end - 1 if tail is None or isinstance(tail, s.While | s.For) else tail.span.start


def _returns(body: s.Block) -> Iterator[tuple[int, s.Return]]:
    for node in nodes(body):
        if isinstance(node, s.Block):
            last = [statement.expr for statement in node.statements if isinstance(statement, s.Do)]
            for expr in (*last, node.tail):
                if isinstance(expr, s.Return):
                    yield expr.span.start, expr


def _sequences(scope: Scope) -> list[str]:
    return [*scope.lists, *scope.of("String", "str")]


def _in_loop(where: Context, scope: Scope) -> list[Candidate]:
    body = scope.loop.body
    found = _statements(body.span.start + 1, _longer(where, scope))
    found += _statements(scope.loop.span.end, _whole(where, scope))
    for block in nodes(body):
        if isinstance(block, s.Block):
            for statement in block.statements:
                if isinstance(statement, s.Do):
                    found += _statements(statement.expr.span.start, _stored(where, scope, statement.expr))
    return found


def _parts(where: Context) -> list[str]:
    """The methods by which parts of sequences are taken: `take` where the program is about filters, else both."""
    return ["take", "subrange"]


def _part(where: str, method: str, end: str) -> str:
    return f"{where}@.take({end})" if method == "take" else f"{where}@.subrange(0, {end})"


def _recursive(where: Context) -> bool:
    """Whether the function's specification rests on recursion over sequences."""
    return any(isinstance(node, s.Method) and node.name == "filter" for node in nodes(where.signature.fn)) or any(
        signature.mode == "spec" and signature.fn.decreases for signature in where.typing.functions.values()
    )


def _longer(where: Context, scope: Scope) -> Iterator[str]:
    """A part one element longer, without its last, is the part."""
    if not _recursive(where):
        return
    yield from _revealed(where)
    for name in _sequences(scope):
        for counter in scope.counters[:1]:
            for method in _parts(where):
                longer = _part(name, method, f"({counter} + 1) as int")
                yield f"assert({longer}.drop_last() =~= {_part(name, method, f'{counter} as int')});"


def _whole(where: Context, scope: Scope) -> Iterator[str]:
    """The part up to where a loop ends is the whole."""
    if not _recursive(where):
        return
    for name in _sequences(scope):
        for method in _parts(where):
            yield f"assert({_part(name, method, f'{name}@.len() as int')} =~= {name}@);"


def _revealed(where: Context) -> Iterator[str]:
    if any(isinstance(node, s.Method) and node.name == "filter" for node in nodes(where.signature.fn)):
        yield "reveal(Seq::filter);"


def _stored(where: Context, scope: Scope, expr: s.Expr) -> Iterator[str]:
    """Before an element is stored: what is already there stays, and the new one is at its place."""
    array: str | None = None
    made = ""
    if isinstance(expr, s.Method) and isinstance(expr.receiver, s.Path) and expr.name in ("push", "set"):
        array = expr.receiver.names[0]
        value = where.reader.text(expr.args[-1])
        if value is None or array not in scope.types:
            return
        kind = element_type(scope.types[array])
        if isinstance(expr.args[-1], s.Binary):
            value = f"({value}) as {kind}"
        if expr.name == "push":
            made, at = f"{array}@.push({value})", f"{array}@.len() as int"
        else:
            index = where.reader.index(expr.args[0], {})
            if index is None:
                return
            made, at = f"{array}@.update({index}, {value})", index
        k = next(name for name in ("k", "j", "q", "k2") if name not in scope.types)
        guard = f"0 <= {k} < {array}@.len()" + (f" && {k} != {at}" if expr.name == "set" else "")
        yield f"assert(forall|{k}: int| {guard} ==> #[trigger] {array}@[{k}] == {made}[{k}]);"
        yield f"assert({made}[{at}] == {value});"


def _conclusions(where: Context) -> Iterator[str]:
    """Each goal, asserted before the end: there `==` between sequences is by elements."""
    for goal in goals(where):
        for part in conjuncts(goal):
            for expr in dict.fromkeys((part, where.reader.unfolded(part))):
                if any(isinstance(node, s.Binary) and node.op in ("==", "=~=") for node in nodes(expr)):
                    yield f"assert({show_expr(rewrite(expr, _extensional))});"


def _extensional(node: s.Expr) -> s.Expr | None:
    if (
        isinstance(node, s.Binary)
        and node.op == "=="
        and any(
            isinstance(side, s.View)
            or (isinstance(side, s.Method) and side.name in ("subrange", "take", "add", "filter"))
            for side in (node.left, node.right)
        )
    ):
        return s.Binary("=~=", node.left, node.right)
    return None


def _differences(where: Context) -> Iterator[str]:
    """For sequences that the goals compare: the elements at the counter, named so that they can differ."""
    counters = list(dict.fromkeys(counter for scope in where.scopes for counter in scope.counters))
    for clause in where.signature.fn.ensures:
        for node in nodes(clause):
            if isinstance(node, s.Binary) and node.op == "=~=" and not _bound_inside(clause, node):
                for counter in counters:
                    left, right = show_expr(node.left), show_expr(node.right)
                    yield f"assert(({left})[{counter} as int] != ({right})[{counter} as int]);"


def _witnesses(where: Context) -> Iterator[str]:
    """What quantified goals say of the counters: at an early exit, the place where one is decided."""
    counters = list(dict.fromkeys(counter for scope in where.scopes for counter in scope.counters))
    for goal in goals(where):
        for node in nodes(where.reader.unfolded(goal)):
            if not isinstance(node, s.Quantifier) or len(node.params) > len(counters):
                continue
            claim = node.body
            while isinstance(claim, s.Binary) and claim.op == "==>":
                claim = claim.right
            values = {
                param.name: s.Cast(s.Path((counter,)), param.type or s.NamedType("int"))
                for param, counter in zip(node.params, counters, strict=False)
            }
            if node.kind == "forall":
                shown = show_expr(rewrite(claim, named(values)))
                yield f"assert({shown});"
                yield f"assert(!({shown}));"
            else:
                for part in conjuncts(claim):
                    yield f"assert({show_expr(rewrite(part, named(values)))});"


def _bound_inside(clause: s.Expr, node: s.Expr) -> bool:
    bound = {param.name for part in nodes(clause) if isinstance(part, s.Quantifier) for param in part.params}
    return any(isinstance(part, s.Path) and part.names[0] in bound for part in nodes(node))


def _nonlinear(where: Context) -> Iterator[str]:
    """Claims with products, from the requirements alone."""
    fn = where.signature.fn
    premises = [
        show_expr(clause) for clause in fn.requires if not any(isinstance(n, s.Quantifier) for n in nodes(clause))
    ]
    for clause in fn.ensures:
        for part in conjuncts(clause):
            if any(isinstance(node, s.Binary) and node.op == "*" for node in nodes(part)):
                requires = f" requires {', '.join(premises)}" if premises else ""
                yield f"assert({show_expr(part)}) by(nonlinear_arith){requires};"


def _lemmas(where: Context) -> list[Candidate]:
    """For recursive spec functions of one number: that they do not fall, and calls of that lemma in loops."""
    found: list[Candidate] = []
    for signature in where.typing.functions.values():
        kind = _of_one_number(signature)
        if kind is None or not _mentions(where.signature.fn, signature.name, where.typing):
            continue
        name = f"{signature.name}_does_not_fall"
        if name in where.typing.functions:
            continue
        less = "j - 1" if kind == "int" else f"(j - 1) as {kind}"
        lemma = Candidate(
            Place("item", signature.fn.span.start),
            f"proof fn {name}(i: {kind}, j: {kind})\n    requires\n        i <= j,\n    ensures\n        "
            f"{signature.name}(i) <= {signature.name}(j),\n    decreases j - i,\n{{\n    if i < j {{\n        "
            f"{name}(i, {less});\n    }}\n}}",
            "lemma",
        )
        found.append(lemma)
        for scope in where.scopes:
            place = Place("statement", scope.loop.body.span.start + 1)
            fixed = [name_ for name_ in scope.integers if name_ not in scope.changed]
            for counter in scope.counters:
                for low, high in pairwise((counter, *fixed[:1])):
                    for first in (f"{low} as {kind}", f"({low} + 1) as {kind}"):
                        call = f"proof {{ {name}({first}, {high} as {kind}); }}"
                        found.append(Candidate(place, call, "hint", lemma))
    return found


def _of_one_number(signature: Signature) -> str | None:
    if signature.mode != "spec" or not signature.fn.decreases or len(signature.params) != 1:
        return None
    kind = settled(strip(signature.params[0].type), "int").name
    result = settled(strip(signature.result), "int").name
    numbers = ("int", "nat")
    whole = result in numbers or integer_range(result) is not None
    return kind if kind in numbers and whole else None


def _mentions(fn: s.Fn, name: str, typing: Typing, depth: int = 3) -> bool:
    for node in nodes((fn.requires, fn.ensures, fn.body)):
        callee = typing.callees.get(id(node))
        if callee is not None and callee.kind == "fn":
            if callee.name == name:
                return True
            other = typing.functions[callee.name]
            if depth and other.mode == "spec" and other.fn is not fn and _mentions(other.fn, name, typing, depth - 1):
                return True
    return False
