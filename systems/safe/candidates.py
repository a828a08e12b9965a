"""Candidates for a proof, mined from code and specification: what may be invariant in each loop, as text.

Rules are about shapes of programs and never about a task. A candidate may be false, useless or ill typed: runs, the
checker and the solver sort them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product

from systems.safe import syntax as s
from systems.safe.contexts import Context, Scope, bounds_of, element_type, fresh_names, integer_terms, is_mutable, stem
from systems.safe.evaluate import Environment, integer_range
from systems.safe.printer import show_expr
from systems.safe.rewriting import Reader, conjuncts, names_in, normal, rewrite
from systems.safe.sketch import Candidate, Place, loop_clauses, loops
from systems.safe.spec import nodes
from systems.safe.weakening import from_goals


def invariants(where: Context, states: dict[int, list[Environment]]) -> list[Candidate]:
    """Candidates for every loop of a function. `states` are the environments seen at each loop's head, by the loop's
    place: rules that fit numbers to runs use them."""
    found: list[Candidate] = []
    for scope in where.scopes:
        place = Place("invariant", loop_clauses(where.source, scope.loop))
        seen: dict[str, str] = {}
        for why, rule in _RULES.items():
            for text in rule(where, scope, states.get(scope.loop.span.start, [])):
                plain = normal(text)
                if plain is not None and not _idle(plain):
                    seen.setdefault(plain, why)
        found += [Candidate(place, text, why) for text, why in seen.items()]
    return found


def _idle(text: str) -> bool:
    """`x == x` and the like: true of everything."""
    sides = re.split(r" (?:==|=~=|<=|>=) ", text)
    return len(sides) == 2 and sides[0] == sides[1]


def _from_requires(where: Context, scope: Scope, states: Sequence[Environment]) -> Iterator[str]:
    for clause in where.signature.fn.requires:
        for part in conjuncts(clause):
            yield show_expr(part)
            yield show_expr(rewrite(part, _now))
            if isinstance(part, s.Call):
                yield from (show_expr(piece) for piece in conjuncts(where.reader.unfolded(part)))


def _now(node: s.Expr) -> s.Expr | None:
    if isinstance(node, s.Call) and isinstance(node.function, s.Path) and node.function.names == ("old",):
        return node.args[0]
    return None


def _orders(where: Context, scope: Scope, states: Sequence[Environment]) -> Iterator[str]:
    terms = list(dict.fromkeys([*integer_terms(where, scope), *bounds_of(where, scope)]))
    for one in terms:
        if one in scope.integers and not scope.types[one].name.startswith("u"):
            yield f"0 <= {one}"
        for other in terms:
            if one != other:
                yield f"{one} <= {other}"
                if one < other:
                    yield f"{one} == {other}"
                if one in scope.changed or other in scope.changed or one in scope.outer:
                    yield f"{one} < {other}"
        for value in where.literals:
            if one in scope.changed or "[" in one:
                yield f"{value} <= {one}"
            yield f"{one} == {value}"
            yield f"{one} <= {value}"
    kinds = {element_type(scope.types[name]).name for name in scope.lists}
    for kind in sorted(kind for kind in kinds if integer_range(kind) is not None):
        for one, counter in product(scope.integers, scope.counters[:1]):
            if one in scope.changed and one != counter:
                yield f"{kind}::MIN * {counter} <= {one}"
                yield f"{one} <= {kind}::MAX * {counter}"
    for name in scope.lists:
        if name in {p.name for p in where.signature.params if is_mutable(p.type)}:
            yield f"{name}.len() == old({name}).len()"


def _definitions(where: Context, scope: Scope, states: Sequence[Environment]) -> Iterator[str]:
    """What variables were given, for those that stay as they are."""
    for node in nodes(where.signature.fn.body):
        if isinstance(node, s.Let) and isinstance(node.pattern, s.Bind) and node.value is not None:
            name = node.pattern.name
            if name in scope.types and name not in scope.changed and not set(names_in(node.value)) & scope.changed:
                text = where.reader.text(node.value)
                if text is not None:
                    yield f"{name} == {text}"


def _fitted(where: Context, scope: Scope, states: Sequence[Environment]) -> Iterator[str]:
    """Linear equations and bounds that hold in every state seen, and those that hold once a counter has moved."""
    everywhere = list(_fits(where, scope, states))
    yield from everywhere
    for counter in scope.counters[:1]:
        unique = scope.uniques.get(counter, "")
        later = [state for state in states if state.get(unique, 0) > 0]
        if len(later) < len(states):
            known = set(everywhere)
            yield from (f"{counter} > 0 ==> {text}" for text in _fits(where, scope, later) if text not in known)


def _fits(where: Context, scope: Scope, states: Sequence[Environment]) -> Iterator[str]:
    """`x == c * y + d`, `x == y + z + c`, `x <= c * y`."""
    terms = integer_terms(where, scope)
    columns: dict[str, list[int]] = {}
    for term in terms:
        values = [_value(scope, term, state) for state in states]
        if values and all(value is not None for value in values):
            columns[term] = [value for value in values if value is not None]
    moving = [term for term in columns if stem(term) in scope.changed]
    spread = {term: max(values) - min(values) for term, values in columns.items()}
    for left in moving:
        mine = columns[left]
        for right, others in columns.items():
            if right == left or not spread[right]:
                continue
            slopes = {-1, 0, 1, 2, 3, 4, 5, *where.literals}
            for slope in sorted(slopes):
                offset = mine[0] - slope * others[0]
                if (
                    abs(offset) <= 1000
                    and slope
                    and all(value == slope * other + offset for value, other in zip(mine, others, strict=True))
                ):
                    yield f"{left} == {_linear(slope, right, offset)}"
            above = [
                slope
                for slope in sorted(slopes - {0, -1})
                if all(value <= slope * other for value, other in zip(mine, others, strict=True))
            ]
            if above and left not in scope.counters and not left.endswith(".len()"):
                kept = {above[0], *(slope for slope in above if slope in where.literals)} - {1}
                yield from (f"{left} <= {_linear(slope, right, 0)}" for slope in sorted(kept))
            below = [
                slope
                for slope in sorted(slopes)
                if slope > 1 and all(value >= slope * other for value, other in zip(mine, others, strict=True))
            ]
            yield from (f"{left} >= {_linear(slope, right, 0)}" for slope in below[-1:])
        for right, third in product(columns, columns):
            if left in (right, third) or right == third or not spread[right] or not spread[third]:
                continue
            for sign in (1, -1):
                if sign == 1 and right > third:
                    continue
                gaps = {a - b - sign * c for a, b, c in zip(mine, columns[right], columns[third], strict=True)}
                if len(gaps) == 1 and abs(gap := gaps.pop()) <= 100:
                    tail = f" + {gap}" if gap > 0 else f" - {-gap}" if gap else ""
                    yield f"{left} == {right} {'+' if sign == 1 else '-'} {third}{tail}"


def _linear(slope: int, term: str, offset: int) -> str:
    shown = term if slope == 1 else f"{slope} * {term}"
    return shown + (f" + {offset}" if offset > 0 else f" - {-offset}" if offset else "")


def _value(scope: Scope, term: str, state: Environment) -> int | None:
    value = state.get(scope.uniques.get(stem(term), ""))
    if value is None:
        return None
    if term.endswith(".len()"):
        return len(value)
    if term.endswith("]"):
        place = int(term[term.index("[") + 1 : -1])
        found = value[place] if place < len(value) else None
        return found if isinstance(found, int) else None
    return value if isinstance(value, int) else None


def _elements(where: Context, scope: Scope, states: Sequence[Environment]) -> Iterator[str]:
    """Of the elements of each integer array, over the part before the counter, behind it, and all: how they compare
    with constants, with variables, with the same place of other arrays and of the array at entry."""
    (k,) = fresh_names(scope)
    arrays = [name for name in scope.lists if integer_range(element_type(scope.types[name]).name) is not None]
    mutable = {param.name for param in where.signature.params if is_mutable(param.type)}
    for array in arrays:
        whole = f"0 <= {k} < {array}.len()"
        ranges = [whole]
        for counter in scope.counters[:2]:
            ranges += [f"0 <= {k} < {counter}", f"{counter} <= {k} < {array}.len()", f"1 <= {k} < {counter}"]
        ranges += [f"0 <= {k} < {name}" for name in scope.integers if name not in scope.counters][:3]
        values = [str(value) for value in where.literals[:8]]
        values += [term for term in integer_terms(where, scope) if not term.endswith(".len()")][:6]
        values += [f"{one} + {value}" for one in values[-6:] for value in (1,) if not one.isdigit()]
        others = [f"{other}[{k}]" for other in arrays if other != array]
        others += [f"old({array})[{k}]"] if array in mutable else []
        indexes = [f"{array}[{name} as int]" for name in scope.integers if name in scope.changed]
        for range_ in ranges:
            for value in (*values, *others):
                yield f"forall|{k}: int| {range_} ==> {array}[{k}] == {value}"
            for value in (*values, *indexes):
                yield f"forall|{k}: int| {range_} ==> {array}[{k}] <= {value}"
                yield f"forall|{k}: int| {range_} ==> {array}[{k}] >= {value}"
        for counter in scope.counters[:1]:
            for value in scope.integers:
                if value in scope.changed and value != counter:
                    yield f"exists|{k}: int| 0 <= {k} < {counter} && {array}[{k}] == {value}"
                    yield f"exists|{k}: int| 0 <= {k} < {array}.len() && {array}[{k}] == {value}"
        for other in arrays:
            if array in scope.changed and other != array:
                yield f"forall|{k}: int| 0 <= {k} < {array}.len() ==> {other}@.contains({array}[{k}])"


def _paths(block: s.Block, names: dict[str, str], reader: Reader) -> Iterator[tuple[list[s.Expr], s.Expr]]:
    """Each expression in statement position of a body with the conditions around it, innermost loops left out."""

    def visit(expr: s.Expr | None, around: list[str]) -> Iterator[tuple[list[str], s.Expr]]:
        match expr:
            case s.Block():
                for statement in expr.statements:
                    if isinstance(statement, s.Do):
                        yield from visit(statement.expr, around)
                yield from visit(expr.tail, around)
            case s.If():
                condition = reader.text(expr.condition, names)
                shown = condition if condition is not None else "true"
                yield from visit(expr.then, [*around, shown])
                yield from visit(expr.orelse, [*around, f"!({shown})"])
            case None | s.While() | s.For():
                return
            case _:
                yield around, expr

    yield from visit(block, [])  # type: ignore[misc]


def _stores(where: Context, scope: Scope, states: Sequence[Environment]) -> Iterator[str]:
    """What the loop has stored: each element is what was computed for its place, under the conditions on the way."""
    (k,) = fresh_names(scope)
    for counter in scope.counters[:1]:
        names = {counter: k}
        copies = {
            statement.pattern.name: statement.value
            for statement in scope.loop.body.statements
            if isinstance(statement, s.Let) and isinstance(statement.pattern, s.Bind) and statement.value is not None
        }
        for name, copied in copies.items():
            shown = where.reader.text(copied, names)
            if shown is not None:
                names[name] = f"({shown})" if not isinstance(copied, s.Unary) else shown
        for around, expr in _paths(scope.loop.body, names, where.reader):
            array: str | None = None
            value: s.Expr | None = None
            if isinstance(expr, s.Method) and expr.name in ("push", "set") and isinstance(expr.receiver, s.Path):
                array, value = expr.receiver.names[0], expr.args[-1]
            elif isinstance(expr, s.Assign) and isinstance(expr.target, s.Index):
                target = expr.target.receiver
                array, value = (target.names[0] if isinstance(target, s.Path) else None), expr.value
            if array is None or value is None or array not in scope.types:
                continue
            text = where.reader.text(value, names)
            if text is None:
                continue
            premises = "".join(f" && ({condition})" for condition in around)
            for shown in dict.fromkeys([text, text.replace(f"{array}[{k}]", f"old({array})[{k}]")]):
                for end in (counter, f"{array}.len()"):
                    yield f"forall|{k}: int| 0 <= {k} < {end}{premises} ==> {array}[{k}] == {shown}"


def _exits(where: Context, scope: Scope, states: Sequence[Environment]) -> Iterator[str]:
    """What did not happen so far: the condition of every early exit is false at the places passed."""
    inner, outer = [*fresh_names(scope, 2)]
    for around, expr in _paths(scope.loop.body, {}, where.reader):
        if not isinstance(expr, s.Return | s.Break):
            continue
        for counter in scope.counters[:1]:
            names = {counter: inner}
            again = [pair[0] for pair in _paths(scope.loop.body, names, where.reader) if pair[1] is expr]
            claim = " && ".join(f"({condition})" for condition in again[0]) if again else ""
            if not claim or not around:
                continue
            for low in ("0", "1", "2", *(name for name in scope.outer)):
                step = "<" if low in scope.outer else "<="
                yield f"forall|{inner}: int| {low} {step} {inner} < {counter} ==> !({claim})"
            for around_counter in scope.outer[-1:]:
                both = {counter: inner, around_counter: outer}
                pairs = [pair[0] for pair in _paths(scope.loop.body, both, where.reader) if pair[1] is expr]
                whole = " && ".join(f"({condition})" for condition in pairs[0])
                for high in bounds_of(where, scope)[:4]:
                    for low in ("0 <= ", f"{outer} < "):
                        yield (
                            f"forall|{outer}: int, {inner}: int| 0 <= {outer} < {around_counter} && "
                            f"{low}{inner} < {high} ==> !({whole})"
                        )
    for nested in loops(scope.loop.body):
        for around_scope in where.scopes:
            if around_scope.loop is not nested or not scope.counters or not around_scope.counters:
                continue
            mine, theirs = scope.counters[0], around_scope.counters[0]
            for _, expr in _paths(nested.body, {}, where.reader):
                if isinstance(expr, s.Return | s.Break):
                    both = {theirs: inner, mine: outer}
                    pairs = [pair[0] for pair in _paths(nested.body, both, where.reader) if pair[1] is expr]
                    whole = " && ".join(f"({condition})" for condition in pairs[0])
                    for high in bounds_of(where, around_scope)[:4]:
                        for low in ("0 <= ", f"{outer} < "):
                            yield (
                                f"forall|{outer}: int, {inner}: int| 0 <= {outer} < {mine} && "
                                f"{low}{inner} < {high} ==> !({whole})"
                            )


_RULES: dict[str, Callable[[Context, Scope, Sequence[Environment]], Iterable[str]]] = {
    "requires": _from_requires,
    "definitions": _definitions,
    "order": _orders,
    "fit": _fitted,
    "elements": _elements,
    "stores": _stores,
    "exits": _exits,
    "goals": from_goals,
}


def measures(where: Context) -> list[Candidate]:
    """Candidates for the `decreases` of loops that have none, the likeliest of each loop first."""
    found = []
    for scope in where.scopes:
        loop = scope.loop
        if isinstance(loop, s.For) or loop.spec.decreases:
            continue
        place = Place("decreases", loop_clauses(where.source, loop))
        texts: dict[str, None] = {}
        for node in nodes(loop.condition):
            if isinstance(node, s.Binary) and node.op in ("<", "<=", ">", ">=", "!="):
                left, right = where.reader.text(node.left), where.reader.text(node.right)
                if left is None or right is None:
                    continue
                if node.op in (">", ">="):
                    left, right = right, left
                texts[f"{_operand(right)} - {_operand(left)}" if left != "0" else right] = None
                if node.op in ("<=", "!=", ">="):
                    texts[f"{_operand(right)} + 1 - {_operand(left)}"] = None
                    texts[f"{_operand(left)} - {_operand(right)}"] = None
        for counter in scope.counters:
            texts[counter] = None
            for bound in bounds_of(where, scope)[:4]:
                texts[f"{bound} - {counter}"] = None
        found += [Candidate(place, text, "measure") for text in texts]
    return found


def _operand(text: str) -> str:
    plain = text.replace("_", "a").replace(".len()", "").replace("@", "")
    return text if plain.isalnum() else f"({text})"
