"""The names in scope and the types that programs write, while a program is checked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from systems.safe import syntax as s
from systems.safe.syntax import Span, TypeProblem, Unsupported
from systems.safe.types import (
    BOOL,
    INTEGERS,
    MACHINE,
    NEVER,
    UNIT,
    Callee,
    Local,
    Ty,
    Type,
    Typing,
    Var,
    find,
    strip,
    substitute,
    unify,
)  # fmt: skip

_PLAIN = MACHINE | {"int", "nat", "bool", "char", "String", "str", "!"}


ARITY = {"Vec": 1, "Seq": 1, "Set": 1, "Map": 2, "Option": 1, "slice": 1, "array": 1}


class Scopes(ABC):
    """What is known while a function is checked: names in scope, types as written, the mode of the code around."""

    def __init__(self, program: s.Program, edition: str) -> None:
        self.edition = edition
        self.typing = Typing(program)
        self.generics: tuple[str, ...] = ()
        self.own: Ty | None = None
        self.scopes: list[dict[str, Local]] = []
        self.mode = "exec"
        self.count = 0
        self.result: Type = UNIT
        self.before_call: frozenset[str] = frozenset()
        self.loops = 0
        self.functions: list[tuple[s.Fn, tuple[str, ...], Ty | None]] = []
        self.later: list[tuple[Type, Type, s.Binary]] = []
        self.untyped: list[Var] = []

    def full_name(self, fn: s.Fn, own: Ty | None) -> str:
        return f"{own.name}::{fn.name}" if own else fn.name

    def local(self, name: str, type_: Type, mode: str, mutable: bool, node: s.Node | None) -> Local:
        self.count += 1
        found = Local(name, f"{name}~{self.count}", type_, mode, mutable)
        if node is not None:
            self.typing.locals[id(node)] = found
        return found

    def type(self, expr: s.TypeExpr, loose: bool = False) -> Ty:
        """The type that `expr` writes. `_` is a fresh variable when `loose`."""
        found = self.any_type(expr)
        assert isinstance(found, Ty) or loose
        return found  # type: ignore[return-value]

    def any_type(self, expr: s.TypeExpr) -> Type:
        if isinstance(expr, s.RefType):
            return Ty("&mut" if expr.mutable else "&", (self.any_type(expr.inner),))
        if isinstance(expr, s.FnType):
            return Ty("spec_fn", (*map(self.any_type, expr.params), self.any_type(expr.result)))
        name, args = expr.name, tuple(map(self.any_type, expr.args))
        if name == "_":
            return Var()
        if name == "Self" and self.own is not None:
            return self.own
        if name in self.generics and not args:
            return Ty(name)
        if name == "tuple":
            return Ty(name, args)
        arity = ARITY.get(name)
        if name in _PLAIN:
            arity = 0
        elif name in self.typing.datatypes:
            arity = len(self.typing.datatypes[name].generics)
        if arity is None:
            if name in (
                "Box",
                "Rc",
                "Arc",
                "Ghost",
                "Tracked",
                "HashMap",
                "HashSet",
                "Multiset",
                "Result",
                "f32",
                "f64",
            ):
                raise Unsupported(f"type `{name}`", expr.span)
            raise TypeProblem(f"cannot find type `{name}` in this scope", expr.span)
        if len(args) != arity:
            raise TypeProblem(f"type `{name}` takes {arity} type arguments but {len(args)} were given", expr.span)
        return Ty(name, args)

    @contextmanager
    def scope(self) -> Iterator[None]:
        self.scopes.append({})
        yield
        self.scopes.pop()

    @contextmanager
    def in_mode(self, mode: str) -> Iterator[None]:
        before, self.mode = self.mode, mode
        yield
        self.mode = before

    def bind(self, name: str, type_: Type, mode: str, mutable: bool, node: s.Node) -> None:
        found = self.local(name, type_, mode, mutable, node)
        if name != "_":
            self.scopes[-1][name] = found

    def lookup(self, name: str) -> Local | None:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return None

    def coerce(self, given: Type, expected: Type, span: Span) -> None:
        """Rust's coercions at a typed place: `&mut T` to `&T`, through further references, a Vec to a slice."""
        given, expected = find(given), find(expected)
        if isinstance(given, Ty) and given.name == "!":
            return
        if isinstance(expected, Ty) and expected.name == "&" and isinstance(given, Ty) and given.name in ("&", "&mut"):
            inner, wanted = strip(given), strip(expected)
            if (
                isinstance(inner, Ty)
                and isinstance(wanted, Ty)
                and wanted.name == "slice"
                and inner.name in ("Vec", "array")
            ):
                raise Unsupported("coercion of a vector or an array to a slice", span)
            if unify(inner, wanted):
                return
        elif unify(given, expected):
            return
        raise TypeProblem(f"mismatched types: expected `{expected}`, found `{given}`", span)

    def pattern(self, pattern: s.Pattern, type_: Type, mode: str, uninitialised: bool = False) -> None:
        self.typing.types[id(pattern)] = type_
        match pattern:
            case s.Bind():
                self.bind(pattern.name, type_, mode, pattern.mutable or uninitialised, pattern)
            case s.TuplePattern():
                parts: tuple[Type, ...] = tuple(Var() for _ in pattern.items)
                if not unify(strip(type_), Ty("tuple", parts)):
                    raise TypeProblem(f"mismatched types: expected `{type_}`, found a tuple pattern", pattern.span)
                for item, part in zip(pattern.items, parts, strict=True):
                    self.pattern(item, part, mode)
            case s.VariantPattern():
                owner, fields = self.variant(pattern.path, pattern.span)
                if not unify(strip(type_), owner):
                    raise TypeProblem(f"mismatched types: expected `{type_}`, found `{owner}`", pattern.span)
                self.typing.callees[id(pattern)] = Callee("variant", pattern.path[-1], (owner,))
                names = pattern.fields
                if names is None:
                    if len(pattern.items) != len(fields):
                        raise TypeProblem(
                            f"this pattern has {len(pattern.items)} fields, expected {len(fields)}", pattern.span
                        )
                    names = tuple(str(number) for number in range(len(fields)))
                table = dict(fields)
                for name, item in zip(names, pattern.items, strict=True):
                    if name not in table:
                        raise TypeProblem(f"`{pattern.path[-1]}` has no field `{name}`", pattern.span)
                    self.pattern(item, table[name], mode)
            case s.LiteralPattern():
                self.coerce(self.expr(pattern.value), strip(type_), pattern.span)

    def variant(self, path: tuple[str, ...], span: Span) -> tuple[Ty, tuple[tuple[str, Type], ...]]:
        """The type that a constructor makes, with fresh arguments, and its fields."""
        name = path[-1]
        if name in ("Some", "None") and path[:-1] in ((), ("Option",)):
            inner = Var()
            return Ty("Option", (inner,)), ((("0", inner),) if name == "Some" else ())
        for datatype in self.typing.datatypes.values():
            owner = path[-2] if len(path) > 1 else None
            if datatype.is_enum and owner not in (datatype.name, "Self" if self.own else datatype.name):
                continue
            for variant in datatype.variants:
                wanted = name if datatype.is_enum or name != "Self" or self.own is None else self.own.name
                if variant.name == wanted and (datatype.is_enum or len(path) == 1):
                    types: dict[str, Type] = {generic: Var() for generic in datatype.generics}
                    before, self.generics = self.generics, datatype.generics
                    fields = tuple((field, substitute(self.type(type_), types)) for field, type_ in variant.fields)
                    self.generics = before
                    return Ty(datatype.name, tuple(types.values())), fields
        raise TypeProblem(f"cannot find `{'::'.join(path)}` in this scope", span)

    def note(self, expr: s.Expr, type_: Type) -> Type:
        self.typing.types[id(expr)] = type_
        if self.mode == "exec" and isinstance(found := find(type_), Var) and found.integer:
            self.untyped.append(found)
        return type_

    def boolean(self, expr: s.Expr) -> None:
        self.coerce(self.expr(expr), BOOL, expr.span)

    def integer(self, type_: Type, span: Span, what: str = "integer") -> Type:
        found = strip(type_)
        if isinstance(found, Var):
            if not found.integer and not unify(found, Var(integer=True)):
                raise TypeProblem(f"expected {what}", span)
            return find(found)
        if found.name == "!":
            return found
        if found.name not in INTEGERS and not (found.name == "char" and self.mode != "exec"):
            raise TypeProblem(f"mismatched types: expected an integer, found `{found}`", span)
        return found

    def same(self, left: Type, right: Type, span: Span) -> None:
        if NEVER in (find(left), find(right)):
            return
        if not unify(left, right):
            raise TypeProblem(f"mismatched types: expected `{left}`, found `{right}`", span)

    def join(self, one: Type, other: Type, span: Span) -> Type:
        if find(one) == NEVER:
            return other
        if find(other) == NEVER:
            return one
        if not unify(one, other):
            raise TypeProblem(f"`if` and `else` have incompatible types: expected `{one}`, found `{other}`", span)
        return one

    @abstractmethod
    def expr(self, expr: s.Expr, expected: Type | None = None) -> Type:
        raise NotImplementedError


def fits(value: int, type_: str) -> bool:
    if type_ == "int":
        return True
    if type_ == "nat":
        return value >= 0
    bits = 64 if type_.endswith("size") else int(type_[1:])
    return value < 2 ** (bits - (type_[0] == "i")) if value >= 0 else type_[0] == "i" and value >= -(2 ** (bits - 1))
