"""The Verus language as data: errors, tokens with offsets, and the tree of a program, compared without spans."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias


class SafeError(Exception):
    """Anything this package cannot do. `verify` turns the ones about programs into diagnostics."""


class ProgramProblem(SafeError):
    """A program that cannot be verified as it stands: what is wrong, and where (offsets into the source)."""

    kind = "error"

    def __init__(self, message: str, span: Span) -> None:
        super().__init__(message)
        self.message = message
        self.span = span


class SyntaxProblem(ProgramProblem):
    """The text is not of the grammar."""

    kind = "syntax error"


class TypeProblem(ProgramProblem):
    """A name, type or mutability error, as rustc would report it."""

    kind = "type error"


class ModeProblem(ProgramProblem):
    """Executable, proof and specification code are mixed where they may not be."""

    kind = "mode error"


class Unsupported(ProgramProblem):
    """Legal Verus (or unknown) that this verifier does not read. Never counts as verified."""

    kind = "unsupported"


class BackendProblem(SafeError):
    """The solver or an outside verifier could not be run."""


class Span(NamedTuple):
    """Half-open range of character offsets."""

    start: int
    end: int


NOWHERE = Span(0, 0)


class Source:
    """A program text with its line table. `position(offset)` is (line, column), both from 1."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def position(self, offset: int) -> tuple[int, int]:
        line = bisect_right(self._starts, offset)
        return line, offset - self._starts[line - 1] + 1

    def offset(self, line: int, column: int) -> int:
        """The offset of a position."""
        return self._starts[line - 1] + column - 1

    def line(self, number: int) -> str:
        """The text of line `number` (from 1) without its newline."""
        start = self._starts[number - 1]
        end = self._starts[number] - 1 if number < len(self._starts) else len(self.text)
        return self.text[start:end]


class Token(NamedTuple):
    """One token: `kind` is ident, int, float, char, byte, string, bytes, lifetime, punct or end."""

    kind: str
    text: str
    start: int
    end: int


_PUNCTUATION = [
    "<==>",
    "=~~=",
    "!~~=",
    "==>",
    "<==",
    "===",
    "!==",
    "=~=",
    "!~=",
    "&&&",
    "|||",
    "..=",
    "...",
    "<<=",
    ">>=",
    "::",
    "->",
    "=>",
    "==",
    "!=",
    "<=",
    ">=",
    "&&",
    "||",
    "+=",
    "-=",
    "*=",
    "/=",
    "%=",
    "^=",
    "|=",
    "&=",
    "..",
    "<<",
    ">>",
    "+",
    "-",
    "*",
    "/",
    "%",
    "^",
    "!",
    "&",
    "|",
    "=",
    "<",
    ">",
    "@",
    ".",
    ",",
    ";",
    ":",
    "#",
    "$",
    "?",
    "~",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
]
_TOKEN = re.compile(
    r"(?P<space>\s+|//[^\n]*)"
    r"|(?P<comment>/\*)"
    r"|(?P<string>\"(?:[^\"\\]|\\.)*\"|r(?P<hashes>#*)\".*?\"(?P=hashes))"
    r"|(?P<bytes>b\"(?:[^\"\\]|\\.)*\")"
    r"|(?P<byte>b'(?:[^'\\\n]|\\.)[^'\n]*?')"
    r"|(?P<char>'(?:[^'\\\n]|\\(?:u\{[0-9a-fA-F_]+\}|x[0-9a-fA-F]{2}|.))')"
    r"|(?P<lifetime>'[A-Za-z_]\w*)"
    r"|(?P<int>0x[0-9a-fA-F_]+|0b[01_]+|0o[0-7_]+|\d[\d_]*)(?P<suffix>(?:[iu](?:8|16|32|64|128|size)|int|nat)\b)?"
    r"|(?P<ident>[^\W\d]\w*)"
    r"|(?P<punct>" + "|".join(re.escape(mark) for mark in _PUNCTUATION) + ")",
    re.DOTALL,
)


def tokenize(text: str) -> list[Token]:
    """The tokens of `text`, ended by one of kind `end`. Raises SyntaxProblem at a character outside the language."""
    tokens = []
    position, size = 0, len(text)
    while position < size:
        match = _TOKEN.match(text, position)
        if match is None:
            raise SyntaxProblem(f"unknown start of token: {text[position]!r}", Span(position, position + 1))
        kind = match.lastgroup or ""
        if match.group("space"):
            position = match.end()
            continue
        if match.group("comment"):
            position = _end_of_comment(text, position)
            continue
        if match.group("string"):
            kind = "string"
        elif match.group("int"):
            kind = "int"
        tokens.append(Token(kind, match.group(), position, match.end()))
        position = match.end()
    tokens.append(Token("end", "end of file", size, size))
    return tokens


def _end_of_comment(text: str, start: int) -> int:
    depth, position = 1, start + 2
    for match in re.compile(r"/\*|\*/").finditer(text, position):
        depth += 1 if match.group() == "/*" else -1
        if depth == 0:
            return match.end()
    raise SyntaxProblem("unterminated block comment", Span(start, start + 2))


@dataclass(frozen=True, kw_only=True)
class Node:
    """Anything with a place in the source."""

    span: Span = field(default=NOWHERE, compare=False, repr=False)


# types as written


@dataclass(frozen=True)
class NamedType(Node):
    """`Vec<i32>`, `T`, `usize`; `(A, B)` is the name `tuple`, `[T]` is `slice`, `[T; N]` is `array`."""

    name: str
    args: tuple[TypeExpr, ...] = ()


@dataclass(frozen=True)
class RefType(Node):
    """`&T` or `&mut T`."""

    mutable: bool
    inner: TypeExpr


@dataclass(frozen=True)
class FnType(Node):
    """`spec_fn(A, B) -> C` (also written `FnSpec`)."""

    params: tuple[TypeExpr, ...]
    result: TypeExpr


TypeExpr: TypeAlias = NamedType | RefType | FnType


# patterns


@dataclass(frozen=True)
class Bind(Node):
    """A name, or `_` as the name `_`."""

    name: str
    mutable: bool = False


@dataclass(frozen=True)
class TuplePattern(Node):
    items: tuple[Pattern, ...]


@dataclass(frozen=True)
class VariantPattern(Node):
    """`Some(x)`, `None`, `Shape::Circle { r }` (fields named then)."""

    path: tuple[str, ...]
    items: tuple[Pattern, ...] = ()
    fields: tuple[str, ...] | None = None


@dataclass(frozen=True)
class LiteralPattern(Node):
    value: Expr


Pattern: TypeAlias = Bind | TuplePattern | VariantPattern | LiteralPattern


# expressions


@dataclass(frozen=True)
class Expr(Node):
    """Any expression; statements that have no value are expressions of type `()`."""


@dataclass(frozen=True)
class Lit(Expr):
    """`kind` is int, bool, char, string or bytes; `suffix` a type name or empty."""

    kind: str
    value: int | bool | str
    suffix: str = ""


@dataclass(frozen=True)
class Path(Expr):
    """`x`, `i32::MAX`, `Seq::<int>::empty`; `generics` belong to segment `at`."""

    names: tuple[str, ...]
    generics: tuple[TypeExpr, ...] = ()
    at: int = -1


@dataclass(frozen=True)
class Unary(Expr):
    """`op` is one of ! - * & &mut."""

    op: str
    operand: Expr


@dataclass(frozen=True)
class Binary(Expr):
    op: str
    left: Expr
    right: Expr


@dataclass(frozen=True)
class Chain(Expr):
    """`a <= b < c`."""

    operands: tuple[Expr, ...]
    ops: tuple[str, ...]


@dataclass(frozen=True)
class Cast(Expr):
    operand: Expr
    type: TypeExpr


@dataclass(frozen=True)
class Call(Expr):
    function: Expr
    args: tuple[Expr, ...]


@dataclass(frozen=True)
class Method(Expr):
    receiver: Expr
    name: str
    args: tuple[Expr, ...]
    generics: tuple[TypeExpr, ...] = ()


@dataclass(frozen=True)
class Field(Expr):
    receiver: Expr
    name: str


@dataclass(frozen=True)
class Index(Expr):
    receiver: Expr
    index: Expr


@dataclass(frozen=True)
class View(Expr):
    """`x@`."""

    operand: Expr


@dataclass(frozen=True)
class Is(Expr):
    """`x is Some` and `x matches Some(y)`."""

    operand: Expr
    pattern: Pattern
    binds: bool = False


@dataclass(frozen=True)
class Range(Expr):
    low: Expr | None
    high: Expr | None
    inclusive: bool = False


@dataclass(frozen=True)
class LetCondition(Expr):
    """`let Some(x) = e` inside `if`."""

    pattern: Pattern
    value: Expr


@dataclass(frozen=True)
class If(Expr):
    condition: Expr
    then: Block
    orelse: Expr | None = None


@dataclass(frozen=True)
class Arm(Node):
    pattern: Pattern
    guard: Expr | None
    body: Expr


@dataclass(frozen=True)
class Match(Expr):
    subject: Expr
    arms: tuple[Arm, ...]


@dataclass(frozen=True)
class Block(Expr):
    statements: tuple[Statement, ...] = ()
    tail: Expr | None = None


@dataclass(frozen=True)
class Param(Node):
    """A parameter or bound variable; `mode` is empty, ghost or tracked."""

    name: str
    type: TypeExpr | None
    mutable: bool = False
    mode: str = ""


@dataclass(frozen=True)
class Quantifier(Expr):
    """`kind` is forall, exists or choose; `triggers` are the groups of `#![trigger ...]`."""

    kind: str
    params: tuple[Param, ...]
    body: Expr
    triggers: tuple[tuple[Expr, ...], ...] = ()
    auto: bool = False


@dataclass(frozen=True)
class Closure(Expr):
    params: tuple[Param, ...]
    body: Expr


@dataclass(frozen=True)
class Tuple(Expr):
    items: tuple[Expr, ...]


@dataclass(frozen=True)
class ListLiteral(Expr):
    """`[a, b]`, `vec![a, b]`, `seq![a, b]` (`kind` is array, vec, seq, set); `repeat` for `[a; n]`."""

    kind: str
    items: tuple[Expr, ...]
    repeat: Expr | None = None


@dataclass(frozen=True)
class StructLiteral(Expr):
    path: tuple[str, ...]
    fields: tuple[tuple[str, Expr], ...]
    base: Expr | None = None


@dataclass(frozen=True)
class MacroCall(Expr):
    """A macro that is not of the language's own; kept so that the gate can name it."""

    name: str


@dataclass(frozen=True)
class Trigger(Expr):
    """`#[trigger] e`."""

    operand: Expr


@dataclass(frozen=True)
class Try(Expr):
    operand: Expr


@dataclass(frozen=True)
class Return(Expr):
    value: Expr | None = None


@dataclass(frozen=True)
class Break(Expr):
    label: str = ""


@dataclass(frozen=True)
class Continue(Expr):
    label: str = ""


@dataclass(frozen=True)
class Assert(Expr):
    """`by` is empty, `block`, or the name of a prover; `requires` belong to a prover."""

    condition: Expr
    by: str = ""
    requires: tuple[Expr, ...] = ()
    body: Block | None = None


@dataclass(frozen=True)
class AssertForall(Expr):
    params: tuple[Param, ...]
    premise: Expr | None
    conclusion: Expr
    body: Block
    triggers: tuple[tuple[Expr, ...], ...] = ()
    auto: bool = False


@dataclass(frozen=True)
class Assume(Expr):
    """`assume(e)`, or `admit()` when `condition` is None."""

    condition: Expr | None


@dataclass(frozen=True)
class Reveal(Expr):
    """`reveal(f)`, `hide(f)` (fuel 0), `reveal_with_fuel(f, n)`."""

    path: tuple[str, ...]
    fuel: int = 1


@dataclass(frozen=True)
class ProofBlock(Expr):
    body: Block


@dataclass(frozen=True)
class LoopSpec(Node):
    invariant: tuple[Expr, ...] = ()
    invariant_except_break: tuple[Expr, ...] = ()
    ensures: tuple[Expr, ...] = ()
    decreases: tuple[Expr, ...] = ()


@dataclass(frozen=True)
class While(Expr):
    """`while c`, or `loop` when `condition` is None."""

    condition: Expr | None
    spec: LoopSpec
    body: Block
    label: str = ""
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True)
class For(Expr):
    name: str
    iterator: Expr
    spec: LoopSpec
    body: Block
    label: str = ""
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Assign(Expr):
    """`target op value` with `op` one of = += -= ..."""

    op: str
    target: Expr
    value: Expr


# statements


@dataclass(frozen=True)
class Let(Node):
    """`ghost` is empty, ghost or tracked."""

    pattern: Pattern
    type: TypeExpr | None
    value: Expr | None
    ghost: str = ""
    orelse: Block | None = None


@dataclass(frozen=True)
class Do(Node):
    """An expression in statement position."""

    expr: Expr


@dataclass(frozen=True)
class ItemStatement(Node):
    item: Item


Statement: TypeAlias = Let | Do | ItemStatement


# items


@dataclass(frozen=True)
class Fn(Node):
    """A function of `mode` exec, proof or spec. `result` is (name or empty, type or None)."""

    name: str
    mode: str
    generics: tuple[str, ...]
    params: tuple[Param, ...]
    result: tuple[str, TypeExpr | None]
    body: Block | None
    requires: tuple[Expr, ...] = ()
    ensures: tuple[Expr, ...] = ()
    recommends: tuple[Expr, ...] = ()
    decreases: tuple[Expr, ...] = ()
    when: Expr | None = None
    attributes: tuple[str, ...] = ()
    qualifiers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Variant(Node):
    """A constructor: field names ('0', '1', ... when positional) with types."""

    name: str
    fields: tuple[tuple[str, TypeExpr], ...]
    positional: bool


@dataclass(frozen=True)
class Datatype(Node):
    """A struct (one variant of its own name) or an enum."""

    name: str
    generics: tuple[str, ...]
    variants: tuple[Variant, ...]
    is_enum: bool
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Const(Node):
    name: str
    mode: str
    type: TypeExpr
    value: Expr


@dataclass(frozen=True)
class Impl(Node):
    """`impl<T> Type { functions }`."""

    generics: tuple[str, ...]
    type: TypeExpr
    functions: tuple[Fn, ...]


@dataclass(frozen=True)
class Use(Node):
    text: str


@dataclass(frozen=True)
class OtherItem(Node):
    """An item that is legal but outside the subset; `what` names it."""

    what: str


Item: TypeAlias = Fn | Datatype | Const | Impl | Use | OtherItem


@dataclass(frozen=True)
class Program(Node):
    """The items inside every `verus! { }` of a file, in order, and its inner attributes."""

    items: tuple[Item, ...]
    attributes: tuple[str, ...] = ()
