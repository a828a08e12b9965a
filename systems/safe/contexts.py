"""What is known of a function where proofs are looked for: its loops, and what is in scope at each."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from systems.safe import syntax as s
from systems.safe.evaluate import integer_range
from systems.safe.interp import constants
from systems.safe.rewriting import Reader, names_in
from systems.safe.spec import nodes
from systems.safe.types import LISTS, Signature, Ty, Typing, settled, strip
from systems.safe.vstd import operations

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
        read: dict[str, None] = dict.fromkeys(names_in(loop.condition))
        for node in nodes(loop.body):
            if isinstance(node, s.Index):
                read.update(dict.fromkeys(names_in(node.index)))
        return [name for name in read if name in self.changed and name in self.integers]


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
    return operations()[operation].receiver == "&mut"


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


def fresh_names(scope: Scope, count: int = 1) -> list[str]:
    return [name for name in (*_VARIABLES, "k2", "j2") if name not in scope.types][:count]


def bounds_of(where: Context, scope: Scope) -> list[str]:
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
                if text is not None and not isinstance(side, s.Lit) and not set(names_in(side)) & scope.changed:
                    found[text] = None
    found.update(dict.fromkeys(f"{name}.len()" for name in scope.lists))
    found.update(dict.fromkeys(f"{name}@.len()" for name in scope.of("String", "str")))
    found.update(dict.fromkeys(name for name in scope.integers if name not in scope.changed))
    return list(found)


def integer_terms(where: Context, scope: Scope) -> list[str]:
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


def is_mutable(type_: object) -> bool:
    return isinstance(type_, Ty) and type_.name == "&mut"


def stem(term: str) -> str:
    return term.split("[")[0].split(".")[0].split("@")[0]


def element_type(kind: Ty) -> Ty:
    inner = kind.args[0]
    return inner if isinstance(inner, Ty) else Ty("int")
