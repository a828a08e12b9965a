"""`by(bit_vector)`: conditions over machine integers as bit-vectors, in a query of their own.

Every integer expression keeps its exact value: a sum has a bit more than its parts, a product as many as both. Only
casts, bit operations and shifts work at the width of their type, as in Rust. What has no such width (`int`, `nat`,
`usize`) or is not known at it (signed division) is unsupported, never guessed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from systems.safe import syntax as s
from systems.safe.syntax import Unsupported
from systems.safe.types import Ty

_COMPARISONS = {"<": "lt", "<=": "le", ">": "gt", ">=": "ge"}
_BITS = {"&": "bvand", "|": "bvor", "^": "bvxor"}
_EQUAL = frozenset(("==", "===", "=~=", "=~~="))
_UNEQUAL = frozenset(("!=", "!==", "!~=", "!~~="))


@dataclass(frozen=True)
class _Number:
    """An SMT term of `width` bits that stands for its exact value, read with a sign or without."""

    text: str
    width: int
    signed: bool

    def extended(self, width: int, signed: bool) -> _Number:
        """The same value in more bits; an unsigned one needs one more to be read with a sign."""
        if signed and not self.signed and width == self.width:
            raise ValueError("no room for a sign")
        more = width - self.width
        if not more:
            return _Number(self.text, width, signed)
        how = "sign_extend" if self.signed else "zero_extend"
        return _Number(f"((_ {how} {more}) {self.text})", width, signed)

    def cut(self, width: int, signed: bool) -> _Number:
        """Its lowest bits, as a cast takes them."""
        if width > self.width:
            return _Number(self.extended(width, self.signed).text, width, signed)
        text = self.text if width == self.width else f"((_ extract {width - 1} 0) {self.text})"
        return _Number(text, width, signed)

    @property
    def room(self) -> int:
        """Bits with a sign."""
        return self.width if self.signed else self.width + 1


def width_of(type_: Ty) -> tuple[int, bool] | None:
    """(bits, signed) of a machine integer of known width."""
    head, digits = type_.name[:1], type_.name[1:]
    return (int(digits), head == "i") if head in "ui" and digits.isdigit() else None


class Bits:
    """Translates conditions; `declarations` are the variables that they mention, each once."""

    def __init__(self, type_of: Callable[[s.Node], Ty], unique: Callable[[s.Path], str | None]) -> None:
        self._type_of, self._unique = type_of, unique
        self.declarations: dict[str, str] = {}

    # -------------------------------------------------------------------------------------------------- booleans

    def condition(self, expr: s.Expr) -> str:
        """An SMT formula. Raises Unsupported for what has no meaning in bits."""
        match expr:
            case s.Lit(kind="bool"):
                return "true" if expr.value else "false"
            case s.Block() if not expr.statements and expr.tail is not None:
                return self.condition(expr.tail)
            case s.Path():
                name = self._unique(expr)
                if name is not None and self._type_of(expr).name == "bool":
                    return self._declared(name, "Bool")
            case s.Unary(op="!") if self._type_of(expr).name == "bool":
                return f"(not {self.condition(expr.operand)})"
            case s.If() if expr.orelse is not None and not isinstance(expr.condition, s.LetCondition):
                parts = (self.condition(expr.condition), self.condition(expr.then), self.condition(expr.orelse))
                return f"(ite {' '.join(parts)})"
            case s.Chain():
                pairs = zip(expr.operands, expr.ops, expr.operands[1:], strict=False)
                return f"(and {' '.join(self._compared(op, left, right) for left, op, right in pairs)})"
            case s.Binary():
                return self._joined(expr)
            case s.Trigger():
                return self.condition(expr.operand)
        raise Unsupported("this expression in `by(bit_vector)`", expr.span)

    def _joined(self, expr: s.Binary) -> str:
        op = {"&&&": "&&", "|||": "||"}.get(expr.op, expr.op)
        if op in ("&&", "||", "==>", "<==", "<==>"):
            left, right = self.condition(expr.left), self.condition(expr.right)
            if op == "<==":
                left, right = right, left
            word = {"&&": "and", "||": "or", "<==>": "="}.get(op, "=>")
            return f"({word} {left} {right})"
        if op in _EQUAL | _UNEQUAL and self._type_of(expr.left).name == "bool":
            same = f"(= {self.condition(expr.left)} {self.condition(expr.right)})"
            return same if op in _EQUAL else f"(not {same})"
        return self._compared(op, expr.left, expr.right)

    def _compared(self, op: str, left: s.Expr, right: s.Expr) -> str:
        a, b = self._alike(self.number(left), self.number(right))
        if op in _EQUAL:
            return f"(= {a.text} {b.text})"
        if op in _UNEQUAL:
            return f"(not (= {a.text} {b.text}))"
        if op in _COMPARISONS:
            return f"(bv{'s' if a.signed else 'u'}{_COMPARISONS[op]} {a.text} {b.text})"
        raise Unsupported(f"`{op}` in `by(bit_vector)`", left.span)

    # --------------------------------------------------------------------------------------------------- numbers

    def number(self, expr: s.Expr) -> _Number:
        """The exact value of an integer expression. Raises Unsupported."""
        match expr:
            case s.Lit(kind="int"):
                return _literal(int(expr.value))
            case s.Block() if not expr.statements and expr.tail is not None:
                return self.number(expr.tail)
            case s.Path():
                return self._variable(expr)
            case s.Trigger():
                return self.number(expr.operand)
            case s.Cast():
                return self._cast(expr)
            case s.Unary(op="-"):
                inner = self.number(expr.operand)
                wide = inner.extended(inner.room + 1, True)
                return _Number(f"(bvneg {wide.text})", wide.width, True)
            case s.Unary(op="!"):
                width, signed = self._width(expr)
                return _Number(f"(bvnot {self._at(expr.operand, width, signed).text})", width, signed)
            case s.If() if expr.orelse is not None and not isinstance(expr.condition, s.LetCondition):
                a, b = self._alike(self.number(expr.then), self.number(expr.orelse))
                return _Number(f"(ite {self.condition(expr.condition)} {a.text} {b.text})", a.width, a.signed)
            case s.Binary():
                return self._arithmetic(expr)
        raise Unsupported("this expression in `by(bit_vector)`", expr.span)

    def _variable(self, expr: s.Path) -> _Number:
        if len(expr.names) == 2 and expr.names[1] in ("MAX", "MIN", "BITS"):
            found = width_of(Ty(expr.names[0]))
            if found is not None:
                width, signed = found
                low, high = (-(1 << width - 1), (1 << width - 1) - 1) if signed else (0, (1 << width) - 1)
                return _literal({"MAX": high, "MIN": low, "BITS": width}[expr.names[1]])
        name = self._unique(expr)
        if name is None:
            raise Unsupported("this name in `by(bit_vector)`: only variables and limits of types", expr.span)
        width, signed = self._width(expr)
        return _Number(self._declared(name, f"(_ BitVec {width})"), width, signed)

    def _declared(self, name: str, sort: str) -> str:
        known = self.declarations.setdefault(f"|bits {name}|", sort)
        assert known == sort
        return f"|bits {name}|"

    def _width(self, expr: s.Expr) -> tuple[int, bool]:
        type_ = self._type_of(expr)
        found = width_of(type_)
        if found is None:
            raise Unsupported(f"`{type_}` in `by(bit_vector)`: expected an integer of known width", expr.span)
        return found

    def _at(self, expr: s.Expr, width: int, signed: bool) -> _Number:
        """A value that is known to be of this type."""
        found = self.number(expr)
        return found.cut(width, signed)

    def _cast(self, expr: s.Cast) -> _Number:
        inner, target = self.number(expr.operand), self._type_of(expr)
        if target.name == "int" or (target.name == "nat" and not inner.signed):
            return inner
        width, signed = self._width(expr)
        return inner.cut(width, signed)

    def _arithmetic(self, expr: s.Binary) -> _Number:
        op = expr.op
        if op in _BITS:
            width, signed = self._width(expr)
            left, right = (self._at(side, width, signed) for side in (expr.left, expr.right))
            return _Number(f"({_BITS[op]} {left.text} {right.text})", width, signed)
        if op in ("<<", ">>"):
            return self._shifted(expr)
        a, b = self.number(expr.left), self.number(expr.right)
        if op in ("+", "-"):
            a, b = self._alike(a, b)
            if op == "-" and not a.signed:
                a, b = a.extended(a.width + 1, True), b.extended(b.width + 1, True)
            wide = a.width + 1
            a, b = a.extended(wide, a.signed), b.extended(wide, b.signed)
            return _Number(f"({'bvadd' if op == '+' else 'bvsub'} {a.text} {b.text})", wide, a.signed)
        if op == "*":
            signed = a.signed or b.signed
            wide = (a.room + b.room) if signed else a.width + b.width
            a, b = a.extended(wide, signed), b.extended(wide, signed)
            return _Number(f"(bvmul {a.text} {b.text})", wide, signed)
        if op in ("/", "%"):
            if a.signed or b.signed:
                raise Unsupported("signed division in `by(bit_vector)`", expr.span)
            a, b = self._alike(a, b)
            zero = f"(_ bv0 {b.width})"
            other = self._declared(f"division {expr.span.start}", f"(_ BitVec {a.width})")
            value = f"({'bvudiv' if op == '/' else 'bvurem'} {a.text} {b.text})"
            return _Number(f"(ite (= {b.text} {zero}) {other} {value})", a.width, False)
        raise Unsupported(f"`{op}` in `by(bit_vector)`", expr.span)

    def _shifted(self, expr: s.Binary) -> _Number:
        """At the width of the left side; from that many places on nothing is left but the sign of `>>`."""
        width, signed = self._width(expr.left)
        value, places = self._at(expr.left, width, signed), self.number(expr.right)
        if places.signed:
            raise Unsupported("a shift by a signed number in `by(bit_vector)`", expr.span)
        wide = max(width, places.width)
        amount = places.extended(wide, False).text
        base = value.extended(wide, signed).text if wide > width else value.text
        how = "bvshl" if expr.op == "<<" else "bvashr" if signed else "bvlshr"
        return _Number(f"({how} {base} {amount})", wide, signed).cut(width, signed)

    def _alike(self, a: _Number, b: _Number) -> tuple[_Number, _Number]:
        """Both in as many bits, with a sign if either has one."""
        signed = a.signed or b.signed
        wide = max(a.room, b.room) if signed else max(a.width, b.width)
        return a.extended(wide, signed), b.extended(wide, signed)


def _literal(value: int) -> _Number:
    if value >= 0:
        width = max(1, value.bit_length())
        return _Number(f"(_ bv{value} {width})", width, False)
    width = (-value - 1).bit_length() + 1
    return _Number(f"(_ bv{value % (1 << width)} {width})", width, True)
