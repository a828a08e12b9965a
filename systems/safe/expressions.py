"""Text to tree: expressions, by precedence climbing."""

from __future__ import annotations

import ast
import re
from abc import abstractmethod
from collections.abc import Callable

from systems.safe.cursor import CLAUSES, Cursor
from systems.safe.syntax import (
    Assign,
    Binary,
    Block,
    Break,
    Call,
    Cast,
    Chain,
    Closure,
    Continue,
    Expr,
    Field,
    Index,
    Is,
    ListLiteral,
    Lit,
    MacroCall,
    Method,
    Param,
    Path,
    Quantifier,
    Range,
    Return,
    Span,
    StructLiteral,
    SyntaxProblem,
    Token,
    Trigger,
    Try,
    Tuple,
    TypeExpr,
    Unary,
    Unsupported,
    View,
)  # fmt: skip

_BINDING: dict[str, int] = {
    "*": 90, "/": 90, "%": 90, "+": 80, "-": 80, "<<": 70, ">>": 70, "&": 60, "^": 55, "|": 50,
    **dict.fromkeys(("==", "!=", "<", "<=", ">", ">=", "===", "!==", "=~=", "=~~=", "!~=", "!~~="), 40),
    "&&": 30, "||": 25, "==>": 20, "<==": 18, "<==>": 16, "..": 14, "..=": 14,
    **dict.fromkeys(("=", "+=", "-=", "*=", "/=", "%=", "^=", "|=", "&=", "<<=", ">>="), 10),
    "&&&": 6, "|||": 4,
}  # fmt: skip

BLOCK_LIKE = frozenset(("if", "while", "loop", "for", "match", "{", "unsafe"))
_CHAINING = frozenset(("<", "<=", ">", ">=", "=="))


class Expressions(Cursor):
    """Expressions by precedence climbing. What holds statements is read by the layer above."""

    def expr(self, least: int = 0) -> Expr:
        self.deeper()
        start = self.token.start
        if self.token.text in ("&&&", "|||") and self.token.kind == "punct":
            op = self.next().text
            found = self.climb(self.expr(_BINDING[op] + 1), least, start)
        elif self.sees("..") or self.sees("..="):
            inclusive = self.next().text == "..="
            found = Range(None, self.expr(15), inclusive, span=self.span(start))
        else:
            found = self.climb(self.unary(), least, start)
        self.depth -= 1
        return found

    def climb(self, left: Expr, least: int, start: int | None = None) -> Expr:
        """Extend `left` by every operator that binds at least as tightly as `least`."""
        start = left.span.start if start is None else start
        while True:
            token = self.token
            op = token.text
            if token.kind == "ident":
                if op == "as" and least <= 95:
                    self.next()
                    left = Cast(left, self.type(), span=self.span(start))
                    continue
                if op in ("is", "matches") and least <= 93:
                    self.next()
                    left = Is(left, self.pattern(), op == "matches", span=self.span(start))
                    continue
                if op == "has" and least <= 93:
                    raise Unsupported("`has`", Span(token.start, token.end))
                return left
            power = _BINDING.get(op) if token.kind == "punct" else None
            if power is None or power < least:
                return left
            self.next()
            if power == 40:
                left = self.comparison(left, op, start)
            elif op == "==>":
                left = Binary(op, left, self.expr(20), span=self.span(start))
            elif power == 10:
                left = Assign(op, left, self.expr(10), span=self.span(start))
            elif op in ("..", "..="):
                ends = self.token.text in (")", "]", "{", "}", ",", ";") or self.token.text in CLAUSES
                high = None if ends else self.expr(15)
                left = Range(left, high, op == "..=", span=self.span(start))
            else:
                left = Binary(op, left, self.expr(power + 1), span=self.span(start))

    def comparison(self, left: Expr, op: str, start: int) -> Expr:
        operands, ops = [left, self.expr(41)], [op]
        while self.token.kind == "punct" and _BINDING.get(self.token.text) == 40:
            if self.token.text not in _CHAINING or ops[-1] not in _CHAINING:
                raise self.fail("one comparison (comparison operators cannot be chained here)")
            ops.append(self.next().text)
            operands.append(self.expr(41))
        if len(ops) == 1:
            return Binary(op, left, operands[1], span=self.span(start))
        return Chain(tuple(operands), tuple(ops), span=self.span(start))

    def unary(self) -> Expr:
        token = self.token
        start = token.start
        if token.kind == "punct":
            if token.text in ("!", "-", "*"):
                self.next()
                self.deeper()
                operand = self.unary()
                self.depth -= 1
                return Unary(token.text, operand, span=self.span(start))
            if token.text in ("&", "&&"):
                self.expect("&")
                op = "&mut" if self.accept("mut") else "&"
                self.deeper()
                operand = self.unary()
                self.depth -= 1
                return Unary(op, operand, span=self.span(start))
            if token.text == "#" and self.peek().text == "[":
                if self.attributes() != ("trigger",):
                    raise Unsupported("attributes on expressions", self.span(start))
                return Trigger(self.unary(), span=self.span(start))
            if token.text in ("|", "||"):
                return self.closure()
        return self.postfix(self.primary(), start)

    def postfix(self, expr: Expr, start: int) -> Expr:
        while True:
            token = self.token
            if token.kind != "punct":
                return expr
            if token.text == "(":
                expr = Call(expr, self.arguments(), span=self.span(start))
            elif token.text == "[":
                self.next()
                index = self.inside(self.expr)
                self.expect("]")
                expr = Index(expr, index, span=self.span(start))
            elif token.text == "@":
                self.next()
                expr = View(expr, span=self.span(start))
            elif token.text == "?":
                self.next()
                expr = Try(expr, span=self.span(start))
            elif token.text in (".", "->"):
                self.next()
                if self.token.kind == "int":
                    expr = Field(expr, self.next().text, span=self.span(start))
                    continue
                name = self.name()
                generics: tuple[TypeExpr, ...] = ()
                if self.sees("::"):
                    self.next()
                    generics = self.type_arguments()
                if self.sees("(") and token.text == ".":
                    expr = Method(expr, name, self.arguments(), generics, span=self.span(start))
                elif token.text == "->":
                    raise Unsupported("`->` field access", self.span(start))
                else:
                    expr = Field(expr, name, span=self.span(start))
            else:
                return expr

    def inside(self, read: Callable[[], Expr]) -> Expr:
        """Read one thing inside brackets, where struct literals are allowed again."""
        before, self.struct_literals = self.struct_literals, True
        found = read()
        self.struct_literals = before
        return found

    def arguments(self) -> tuple[Expr, ...]:
        self.expect("(")
        args = []
        while not self.sees(")"):
            args.append(self.inside(self.expr))
            if not self.accept(","):
                break
        self.expect(")")
        return tuple(args)

    def closure(self) -> Expr:
        start = self.token.start
        params = self.bound_variables() if not self.accept("||") else ()
        if self.accept("->"):
            raise Unsupported("closures with a written result", self.span(start))
        if self.token.text in CLAUSES:
            raise Unsupported("closures with a specification", self.span(start))
        return Closure(params, self.expr(7), span=self.span(start))

    def bound_variables(self) -> tuple[Param, ...]:
        self.expect("|")
        found = []
        while not self.sees("|"):
            start = self.token.start
            name = self.name()
            found.append(Param(name, self.type() if self.accept(":") else None, span=self.span(start)))
            if not self.accept(","):
                break
        self.expect("|")
        return tuple(found)

    def trigger_attributes(self) -> tuple[tuple[tuple[Expr, ...], ...], bool]:
        groups: list[tuple[Expr, ...]] = []
        auto = False
        while self.sees("#") and self.peek().text == "!":
            start = self.token.start
            self.at += 2
            self.expect("[")
            word = self.name()
            if word == "auto" or word == "all_triggers":
                auto = True
            elif word == "trigger":
                group = []
                while not self.sees("]"):
                    group.append(self.inside(self.expr))
                    if not self.accept(","):
                        break
                groups.append(tuple(group))
            else:
                raise Unsupported(f"`#![{word}]` on a quantifier", self.span(start))
            self.expect("]")
        return tuple(groups), auto

    def quantifier(self) -> Quantifier:
        start = self.token.start
        kind = self.next().text
        params = self.bound_variables()
        triggers, auto = self.trigger_attributes()
        body = self.expr(7)
        return Quantifier(kind, params, body, triggers, auto, span=self.span(start))

    def primary(self) -> Expr:
        token = self.token
        start = token.start
        if token.kind == "int":
            self.next()
            return _integer(token)
        if token.kind in ("char", "byte", "string", "bytes"):
            self.next()
            return _text_literal(token)
        if token.text == "(":
            return self.parenthesised()
        if token.text == "[":
            return self.list_literal("array", start)
        if token.text in BLOCK_LIKE or token.kind == "lifetime":
            return self.inside(self.block_like)
        if token.kind != "ident":
            raise self.fail("expression")
        word = token.text
        following = self.peek().text
        if word in ("true", "false"):
            self.next()
            return Lit("bool", word == "true", span=self.span(start))
        if word in ("forall", "exists", "choose") and following in ("|", "||"):
            return self.quantifier()
        if word == "return":
            self.next()
            ends = self.token.text in (";", "}", ",", ")")
            return Return(None if ends else self.expr(), span=self.span(start))
        if word in ("break", "continue"):
            self.next()
            label = self.next().text if self.token.kind == "lifetime" else ""
            if self.token.text not in (";", "}", ",", ")"):
                raise Unsupported("`break` with a value", self.span(start))
            return (Break if word == "break" else Continue)(label, span=self.span(start))
        if word in ("assert", "assume", "admit", "reveal", "hide", "reveal_with_fuel") and (
            following == "(" or (word == "assert" and following == "forall")
        ):
            return self.ghost_statement(word, start)
        if word == "move":
            raise Unsupported("`move` closures", Span(start, token.end))
        if word in ("assert_by", "assert_forall_by", "calc_proof", "choose", "async", "await", "yield"):
            raise Unsupported(f"`{word}`", Span(start, token.end))
        return self.path_or_struct(start)

    def path_or_struct(self, start: int) -> Expr:
        names = [self.name()]
        generics: tuple[TypeExpr, ...] = ()
        at = -1
        while self.sees("::"):
            self.next()
            if self.sees("<"):
                generics = self.type_arguments()
                at = len(names) - 1
            else:
                names.append(self.name())
        if self.sees("!") and self.peek().text in ("(", "[", "{") and len(names) == 1:
            self.next()
            if names[0] in ("vec", "seq", "set"):
                if self.sees("("):
                    raise self.fail("`[`")
                return self.list_literal(names[0], start)
            self.bracketed()
            return MacroCall(names[0], span=self.span(start))
        if self.sees("{") and self.struct_literals and self.looks_like_struct(names[-1]):
            return self.struct_literal(tuple(names), start)
        return Path(tuple(names), generics, at, span=self.span(start))

    def looks_like_struct(self, name: str) -> bool:
        return name[0].isupper() and (
            self.peek().text in ("}", "..") or (self.peek().kind == "ident" and self.peek(2).text in (":", ",", "}"))
        )

    def struct_literal(self, path: tuple[str, ...], start: int) -> Expr:
        self.expect("{")
        fields: list[tuple[str, Expr]] = []
        base = None
        while not self.sees("}"):
            if self.accept(".."):
                base = self.inside(self.expr)
                break
            begin = self.token.start
            name = self.name()
            value = self.inside(self.expr) if self.accept(":") else Path((name,), span=self.span(begin))
            fields.append((name, value))
            if not self.accept(","):
                break
        self.expect("}")
        return StructLiteral(path, tuple(fields), base, span=self.span(start))

    def parenthesised(self) -> Expr:
        start = self.expect("(").start
        items = []
        trailing = False
        while not self.sees(")"):
            items.append(self.inside(self.expr))
            trailing = self.accept(",")
            if not trailing:
                break
        self.expect(")")
        if len(items) == 1 and not trailing:
            return items[0]
        return Tuple(tuple(items), span=self.span(start))

    def list_literal(self, kind: str, start: int) -> Expr:
        self.next()
        close = {"[": "]", "{": "}"}.get(self.tokens[self.at - 1].text, "]")
        items = []
        while not self.sees(close):
            items.append(self.inside(self.expr))
            if len(items) == 1 and self.accept(";"):
                repeat = self.inside(self.expr)
                self.expect(close)
                return ListLiteral(kind, tuple(items), repeat, span=self.span(start))
            if not self.accept(","):
                break
        self.expect(close)
        return ListLiteral(kind, tuple(items), span=self.span(start))

    @abstractmethod
    def block(self) -> Block:
        raise NotImplementedError

    @abstractmethod
    def block_like(self, attributes: tuple[str, ...] = ()) -> Expr:
        raise NotImplementedError

    @abstractmethod
    def ghost_statement(self, word: str, start: int) -> Expr:
        raise NotImplementedError


def _integer(token: Token) -> Lit:
    match = re.fullmatch(
        r"(0x[0-9a-fA-F_]+?|0b[01_]+|0o[0-7_]+|\d[\d_]*)((?:[iu](?:8|16|32|64|128|size)|int|nat)?)", token.text
    )
    if match is None:
        raise SyntaxProblem(f"invalid integer literal `{token.text}`", Span(token.start, token.end))
    digits = match[1].replace("_", "")
    base = 0 if digits[1:2].isalpha() else 10
    return Lit("int", int(digits, base), match[2], span=Span(token.start, token.end))


def _text_literal(token: Token) -> Lit:
    span = Span(token.start, token.end)
    if token.kind == "string":
        return Lit("string", token.text, span=span)
    if token.kind == "bytes":
        return Lit("bytes", token.text, span=span)
    body = token.text.removeprefix("b")
    body = re.sub(r"\\u\{([0-9a-fA-F_]+)\}", lambda found: f"\\U{int(found[1].replace('_', ''), 16):08x}", body)
    try:
        value = ast.literal_eval(body.replace("\\0", "\\x00"))
    except (SyntaxError, ValueError) as error:
        raise SyntaxProblem(f"invalid character literal {token.text}", span) from error
    if len(value) != 1:
        raise SyntaxProblem(f"invalid character literal {token.text}", span)
    if token.kind == "byte":
        return Lit("int", ord(value), "u8", span=span)
    return Lit("char", ord(value), span=span)
