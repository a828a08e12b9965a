"""Candidates for a proof, mined from code and specification: what may be invariant in each loop, as text.

Rules are about shapes of programs and never about a task. A candidate may be false, useless or ill typed: runs, the
checker and the solver sort them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from systems.safe import syntax as s
from systems.safe.evaluate import Environment, integer_range
from systems.safe.interp import constants
from systems.safe.printer import show_expr
from systems.safe.sketch import Candidate, Place, loop_clauses, loops
from systems.safe.spec import nodes
from systems.safe.types import LISTS, Signature, Ty, Typing, settled, strip

_MOST_CONSTANTS = 14
_VARIABLES = ("k", "j", "q", "m")


@dataclass(frozen=True)
class Scope:
    """What is known at a loop's head. `types` are the variables in scope by name with their `uniques`; `changed`
    those that the loop may assign; `outer` the counters of the loops around it."""

    loop: s.While | s.For
    types: dict[str, Ty]
    uniques: dict[str, str]
    changed: frozenset[str]
    outer: tuple[str, ...]

    def of(self, *names: str) -> list[str]:
        return [name for name, kind in self.types.items() if kind.name in names]

    @property
    def integers(self) -> list[str]:
        return [name for name, kind in self.types.items() if integer_range(kind.name) is not None]

    @property
    def lists(self) -> list[str]:
        return [name for name, kind in self.types.items() if kind.name in LISTS]

    @property
    def counters(self) -> list[str]:
        """Integers that the loop changes and that its condition or an index in it reads, the condition's first."""
        loop = self.loop
        if isinstance(loop, s.For):
            return [loop.name]
        read: dict[str, None] = dict.fromkeys(_names(loop.condition))
        for node in nodes(loop.body):
            if isinstance(node, s.Index):
                read.update(dict.fromkeys(_names(node.index)))
        return [name for name in read if name in self.changed and name in self.integers]


def _names(expr: object) -> list[str]:
    return [node.names[0] for node in nodes(expr) if isinstance(node, s.Path) and len(node.names) == 1]


def scopes(typing: Typing, signature: Signature) -> list[Scope]:
    """The loops of a function with what is in scope at each, in the order of the text."""
    found: list[Scope] = []

    def kind(node: s.Node, type_: object) -> Ty:
        return settled(strip(type_), "int")  # type: ignore[arg-type]

    def block(block_: s.Block, types: dict[str, Ty], uniques: dict[str, str], outer: tuple[str, ...]) -> None:
        types, uniques = dict(types), dict(uniques)
        for statement in block_.statements:
            if isinstance(statement, s.Let):
                inside(statement.value, types, uniques, outer)
                for node in nodes(statement.pattern):
                    local = typing.locals.get(id(node))
                    if local is not None and local.name != "_":
                        types.pop(local.name, None)
                        types[local.name] = kind(node, local.type)
                        uniques[local.name] = local.unique
            elif isinstance(statement, s.Do):
                inside(statement.expr, types, uniques, outer)
        inside(block_.tail, types, uniques, outer)

    def inside(expr: s.Expr | None, types: dict[str, Ty], uniques: dict[str, str], outer: tuple[str, ...]) -> None:
        match expr:
            case s.Block():
                block(expr, types, uniques, outer)
            case s.If():
                block(expr.then, types, uniques, outer)
                inside(expr.orelse, types, uniques, outer)
            case s.Match():
                for arm in expr.arms:
                    inside(arm.body, types, uniques, outer)
            case s.While() | s.For():
                if isinstance(expr, s.For):
                    local = typing.locals[id(expr)]
                    types = {**types, local.name: kind(expr, local.type)}
                    uniques = {**uniques, local.name: local.unique}
                scope = Scope(expr, types, uniques, frozenset(assigned(typing, expr)), outer)
                found.append(scope)
                block(expr.body, types, uniques, (*outer, *scope.counters[:1]))

    types, uniques = {}, {}
    for param in signature.params:
        types[param.name] = settled(strip(param.type), "int")
        uniques[param.name] = param.unique
    if signature.fn.body is not None:
        block(signature.fn.body, types, uniques, ())
    return found


def assigned(typing: Typing, node: s.Node) -> list[str]:
    """The names of variables that code may change."""
    found: dict[str, None] = {}
    for part in nodes(node):
        places: list[s.Expr] = []
        if isinstance(part, s.Assign):
            places.append(part.target)
        elif isinstance(part, s.Unary) and part.op == "&mut":
            places.append(part.operand)
        elif isinstance(part, s.Method):
            callee = typing.callees.get(id(part))
            if callee is not None and callee.kind == "operation" and _mutates(callee.name):
                places.append(part.receiver)
        for place in places:
            while isinstance(place, s.Index | s.Field | s.Unary):
                place = place.operand if isinstance(place, s.Unary) else place.receiver
            if isinstance(place, s.Path):
                found[place.names[0]] = None
    if isinstance(node, s.For):
        found[node.name] = None
    return list(found)


def _mutates(operation: str) -> bool:
    from systems.safe.vstd import operations

    return operations()[operation].receiver == "&mut"


# code as specification


class Reader:
    """Turns executable expressions into specification text, and rewrites specifications."""

    def __init__(self, typing: Typing) -> None:
        self.typing = typing

    def text(self, expr: s.Expr, names: dict[str, str] | None = None) -> str | None:
        """`expr` as a specification, with variables replaced by texts of type `int`. None where it has no meaning
        there."""
        names = names or {}
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
                    if isinstance(one, s.Path) and one.names == (result,) and result not in _names(other):
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
        parts = list(conjuncts(_unmarked(expr.body)))
        names = frozenset(param.name for param in expr.params)
        ranges = [part for part in parts if isinstance(part, s.Chain) or _is_bound(part, names)]
        rest = [part for part in parts if part not in ranges]
        head = "forall|" + ", ".join(f"{p.name}: {_type(p)}" for p in expr.params) + "| "
        premise = " && ".join(f"({show_expr(part)})" for part in ranges) or "true"
        claim = " && ".join(f"({show_expr(part)})" for part in rest) or "true"
        return f"{head}{premise} ==> !({claim})"
    return f"!({show_expr(expr)})"


def _unmarked(expr: s.Expr) -> s.Expr:
    return expr


def _type(param: s.Param) -> str:
    from systems.safe.printer import show_type

    return show_type(param.type) if param.type is not None else "int"


def _is_bound(expr: s.Expr, names: frozenset[str]) -> bool:
    if not isinstance(expr, s.Binary) or expr.op not in ("<", "<=", ">", ">="):
        return False
    return any(isinstance(side, s.Path) and side.names[0] in names for side in (expr.left, expr.right))


# rules


@dataclass(frozen=True)
class Context:
    """Everything that the rules read about one function."""

    source: str
    typing: Typing
    signature: Signature
    scopes: tuple[Scope, ...]
    reader: Reader
    literals: tuple[int, ...]


def context(source: str, typing: Typing, signature: Signature) -> Context:
    """The context of a function that was checked on its own text."""
    literals = [value for value in constants_of(typing, signature) if value < 2**33]
    return Context(source, typing, signature, tuple(scopes(typing, signature)), Reader(typing), tuple(literals))


def constants_of(typing: Typing, signature: Signature) -> list[int]:
    """The integer literals of a function, and small ones that follow from two of them."""
    own = constants(s.Program((signature.fn,)))
    near = [value for value in own if value < 1000]
    sums = sorted(
        {one + other for one, other in product(near, near)} | {one - other for one, other in product(near, near)}
    )
    return list(dict.fromkeys([*own, 0, 1, *(value for value in sums if 0 <= value < 1000)]))[:_MOST_CONSTANTS]


def invariants(where: Context, states: dict[int, list[Environment]]) -> list[Candidate]:
    """Candidates for every loop of a function. `states` are the environments seen at each loop's head, by the loop's
    place: rules that fit numbers to runs use them."""
    found: list[Candidate] = []
    for scope in where.scopes:
        place = Place("invariant", loop_clauses(where.source, scope.loop))
        seen: dict[str, str] = {}
        for why, rule in _RULES.items():
            for text in rule(where, scope, states.get(scope.loop.span.start, [])):
                seen.setdefault(" ".join(text.split()), why)
        found += [Candidate(place, text, why) for text, why in seen.items()]
    return found


def _fresh(scope: Scope, count: int = 1) -> list[str]:
    return [name for name in (*_VARIABLES, "k2", "j2") if name not in scope.types][:count]


def _bounds(where: Context, scope: Scope) -> list[str]:
    """Texts that a counter of this loop is compared with, and lengths, and integers that do not change."""
    found: dict[str, None] = {}
    loop = scope.loop
    if isinstance(loop, s.For) and isinstance(loop.iterator, s.Range) and loop.iterator.high is not None:
        text = where.reader.text(loop.iterator.high)
        if text is not None:
            found[text] = None
    for node in nodes(loop.condition) if isinstance(loop, s.While) else ():
        if isinstance(node, s.Binary) and node.op in ("<", "<=", ">", ">=", "!="):
            for side in (node.left, node.right):
                text = where.reader.text(side)
                if text is not None and not isinstance(side, s.Lit) and not set(_names(side)) & scope.changed:
                    found[text] = None
    found.update(dict.fromkeys(f"{name}.len()" for name in scope.lists))
    found.update(dict.fromkeys(f"{name}@.len()" for name in scope.of("String", "str")))
    found.update(dict.fromkeys(name for name in scope.integers if name not in scope.changed))
    return list(found)


def _terms(where: Context, scope: Scope) -> list[str]:
    """Integer texts at this loop: variables, lengths, elements at constant places."""
    found = dict.fromkeys(scope.integers)
    found.update(dict.fromkeys(f"{name}.len()" for name in scope.lists))
    found.update(dict.fromkeys(f"{name}@.len()" for name in scope.of("String", "str")))
    for node in nodes(where.signature.fn):
        place: s.Expr | None = None
        index: s.Expr | None = None
        if isinstance(node, s.Method) and node.name == "set":
            place, index = node.receiver, node.args[0]
        if isinstance(node, s.Index):
            place, index = node.receiver, node.index
        if isinstance(place, s.Path) and isinstance(index, s.Lit) and place.names[0] in scope.lists:
            found[f"{place.names[0]}[{index.value}]"] = None
    return list(found)


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
    terms = list(dict.fromkeys([*_terms(where, scope), *_bounds(where, scope)]))
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
        if name in {p.name for p in where.signature.params if _mutable(p.type)}:
            yield f"{name}.len() == old({name}).len()"


def _definitions(where: Context, scope: Scope, states: Sequence[Environment]) -> Iterator[str]:
    """What variables were given, for those that stay as they are."""
    for node in nodes(where.signature.fn.body):
        if isinstance(node, s.Let) and isinstance(node.pattern, s.Bind) and node.value is not None:
            name = node.pattern.name
            if name in scope.types and name not in scope.changed and not set(_names(node.value)) & scope.changed:
                text = where.reader.text(node.value)
                if text is not None:
                    yield f"{name} == {text}"


def _mutable(type_: object) -> bool:
    return isinstance(type_, Ty) and type_.name == "&mut"


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
    terms = _terms(where, scope)
    columns: dict[str, list[int]] = {}
    for term in terms:
        values = [_value(scope, term, state) for state in states]
        if values and all(value is not None for value in values):
            columns[term] = [value for value in values if value is not None]
    moving = [term for term in columns if _stem(term) in scope.changed]
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
            if above and above[0] > 1:
                kept = {above[0], *(slope for slope in above if slope in where.literals)}
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


def _stem(term: str) -> str:
    return term.split("[")[0].split(".")[0].split("@")[0]


def _linear(slope: int, term: str, offset: int) -> str:
    shown = term if slope == 1 else f"{slope} * {term}"
    return shown + (f" + {offset}" if offset > 0 else f" - {-offset}" if offset else "")


def _value(scope: Scope, term: str, state: Environment) -> int | None:
    stem = _stem(term)
    value = state.get(scope.uniques.get(stem, ""))
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
    (k,) = _fresh(scope)
    arrays = [name for name in scope.lists if integer_range(element_type(scope.types[name]).name) is not None]
    mutable = {param.name for param in where.signature.params if _mutable(param.type)}
    for array in arrays:
        whole = f"0 <= {k} < {array}.len()"
        ranges = [whole]
        for counter in scope.counters[:2]:
            ranges += [f"0 <= {k} < {counter}", f"{counter} <= {k} < {array}.len()", f"1 <= {k} < {counter}"]
        ranges += [f"0 <= {k} < {name}" for name in scope.integers if name not in scope.counters][:3]
        values = [str(value) for value in where.literals[:8]]
        values += [term for term in _terms(where, scope) if not term.endswith(".len()")][:6]
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


def element_type(kind: Ty) -> Ty:
    inner = kind.args[0]
    return inner if isinstance(inner, Ty) else Ty("int")


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
    (k,) = _fresh(scope)
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
    inner, outer = [*_fresh(scope, 2)]
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
                for high in _bounds(where, scope)[:4]:
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
                    for high in _bounds(where, around_scope)[:4]:
                        for low in ("0 <= ", f"{outer} < "):
                            yield (
                                f"forall|{outer}: int, {inner}: int| 0 <= {outer} < {mine} && "
                                f"{low}{inner} < {high} ==> !({whole})"
                            )


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
                        yield from (rewrite(piece, _named(bound)) for piece in conjuncts(part.then))
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


def _named(table: dict[str, s.Expr]) -> Callable[[s.Expr], s.Expr | None]:
    return lambda node: table.get(node.names[0]) if isinstance(node, s.Path) and len(node.names) == 1 else None


def _from_goals(where: Context, scope: Scope, states: Sequence[Environment]) -> Iterator[str]:
    """The goals, so far: with upper bounds replaced by counters and sequences by their parts passed."""
    bounds = _bounds(where, scope)
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
    from systems.safe.parser import Parser
    from systems.safe.syntax import ProgramProblem

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
                                if isinstance(n, s.View) and _stem(show_expr(n)) not in scope.changed
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


_RULES: dict[str, Callable[[Context, Scope, Sequence[Environment]], Iterable[str]]] = {
    "requires": _from_requires,
    "definitions": _definitions,
    "order": _orders,
    "fit": _fitted,
    "elements": _elements,
    "stores": _stores,
    "exits": _exits,
    "goals": _from_goals,
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
            for bound in _bounds(where, scope)[:4]:
                texts[f"{bound} - {counter}"] = None
        found += [Candidate(place, text, "measure") for text in texts]
    return found


def _operand(text: str) -> str:
    plain = text.replace("_", "a").replace(".len()", "").replace("@", "")
    return text if plain.isalnum() else f"({text})"
