"""Types, type variables and their unification; the records that type checking leaves for the later stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from systems.safe.syntax import Datatype, Fn, Program

UNSIGNED = {"u8": 8, "u16": 16, "u32": 32, "u64": 64, "u128": 128}
SIGNED = {"i8": 8, "i16": 16, "i32": 32, "i64": 64, "i128": 128}
MACHINE = frozenset((*UNSIGNED, *SIGNED, "usize", "isize"))
INTEGERS = MACHINE | {"int", "nat"}
LISTS = frozenset(("Vec", "slice", "array"))


@dataclass(frozen=True)
class Ty:
    """A type: `name` with arguments. References are `&` and `&mut` of one argument; the unit type is an empty
    `tuple`; the type of expressions that never return is `!`; `spec_fn` has its parameters and then its result."""

    name: str
    args: tuple[Type, ...] = ()

    def __str__(self) -> str:
        inner = ", ".join(map(str, self.args))
        match self.name:
            case "&":
                return f"&{inner}"
            case "&mut":
                return f"&mut {inner}"
            case "tuple":
                return f"({inner})"
            case "slice":
                return f"[{inner}]"
        return f"{self.name}<{inner}>" if self.args else self.name


class Var:
    """A type not yet known; `integer` when it stands for a literal's type."""

    def __init__(self, integer: bool = False) -> None:
        self.integer = integer
        self.value: Type | None = None

    def __str__(self) -> str:
        if self.value is not None:
            return str(self.value)
        return "{integer}" if self.integer else "_"


Type: TypeAlias = Ty | Var
BOOL, INT, NAT, USIZE, CHAR, UNIT, NEVER = (
    Ty("bool"), Ty("int"), Ty("nat"), Ty("usize"), Ty("char"), Ty("tuple"), Ty("!"),
)  # fmt: skip


def find(type_: Type) -> Type:
    """The type that a variable stands for, one level deep."""
    while isinstance(type_, Var) and type_.value is not None:
        type_ = type_.value
    return type_


def strip(type_: Type) -> Type:
    """Without references around it."""
    type_ = find(type_)
    while isinstance(type_, Ty) and type_.name in ("&", "&mut"):
        type_ = find(type_.args[0])
    return type_


def unify(left: Type, right: Type) -> bool:
    """Make both equal if that is possible."""
    left, right = find(left), find(right)
    if left is right:
        return True
    if isinstance(left, Var):
        if isinstance(right, Var):
            if left.integer and not right.integer:
                left, right = right, left
            left.value = right
            return True
        if (left.integer and right.name not in INTEGERS) or _occurs(left, right):
            return False
        left.value = right
        return True
    if isinstance(right, Var):
        return unify(right, left)
    if left.name != right.name or len(left.args) != len(right.args):
        return False
    return all(unify(one, other) for one, other in zip(left.args, right.args, strict=True))


def _occurs(variable: Var, type_: Type) -> bool:
    type_ = find(type_)
    return type_ is variable or (isinstance(type_, Ty) and any(_occurs(variable, arg) for arg in type_.args))


def settled(type_: Type, default: str) -> Ty:
    """The type without variables: integer ones become `default`, others the unit type."""
    type_ = find(type_)
    if isinstance(type_, Var):
        return Ty(default) if type_.integer else UNIT
    return Ty(type_.name, tuple(settled(arg, default) for arg in type_.args)) if type_.args else type_


def substitute(type_: Type, types: Mapping[str, Type]) -> Type:
    """`type_` with type parameters replaced."""
    type_ = find(type_)
    if isinstance(type_, Var):
        return type_
    if not type_.args:
        return types.get(type_.name, type_)
    return Ty(type_.name, tuple(substitute(arg, types) for arg in type_.args))


@dataclass(frozen=True, eq=False)
class Local:
    """A variable: `unique` tells it from others of its name; `mode` is exec or spec."""

    name: str
    unique: str
    type: Type
    mode: str
    mutable: bool


@dataclass(frozen=True)
class Signature:
    """A function with its types. `name` is `Owner::method` for methods."""

    name: str
    fn: Fn
    generics: tuple[str, ...]
    params: tuple[Local, ...]
    result: Ty
    result_local: Local

    @property
    def mode(self) -> str:
        return self.fn.mode


@dataclass(frozen=True)
class Callee:
    """What a call means. `kind` is fn, operation, variant, apply, old or builtin; `types` are its type arguments."""

    kind: str
    name: str
    types: tuple[Type, ...] = ()


@dataclass
class Typing:
    """Facts about the nodes of one program, by `id`; the program is kept alive with them."""

    program: Program
    functions: dict[str, Signature] = field(default_factory=dict)
    datatypes: dict[str, Datatype] = field(default_factory=dict)
    types: dict[int, Type] = field(default_factory=dict)
    callees: dict[int, Callee] = field(default_factory=dict)
    locals: dict[int, Local] = field(default_factory=dict)
    constants: dict[str, tuple[Ty, int]] = field(default_factory=dict)
