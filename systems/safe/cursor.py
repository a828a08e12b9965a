"""The tokens of a program with the place that reading has reached, and types and patterns."""

from __future__ import annotations

from abc import ABC, abstractmethod

from systems.safe.syntax import (
    Bind,
    Expr,
    FnType,
    LiteralPattern,
    NamedType,
    Pattern,
    RefType,
    Span,
    SyntaxProblem,
    Token,
    TuplePattern,
    TypeExpr,
    Unsupported,
    VariantPattern,
    tokenize,
)  # fmt: skip

NESTING = 160


"""Deepest nesting of brackets, blocks and unary operators that is read."""


CLAUSES = frozenset(
    [
        "requires",
        "ensures",
        "recommends",
        "decreases",
        "invariant",
        "invariant_ensures",
        "invariant_except_break",
        "returns",
        "opens_invariants",
        "via",
        "when",
        "no_unwind",
        "default_ensures",
    ]
)


RESERVED = frozenset(
    [
        "as",
        "break",
        "const",
        "continue",
        "else",
        "enum",
        "extern",
        "false",
        "fn",
        "for",
        "if",
        "impl",
        "in",
        "let",
        "loop",
        "match",
        "mod",
        "move",
        "mut",
        "pub",
        "ref",
        "return",
        "static",
        "struct",
        "super",
        "trait",
        "true",
        "type",
        "unsafe",
        "use",
        "where",
        "while",
    ]
)


class Cursor(ABC):
    """A place in the tokens of a text, and the phrases that stand in every other: names, types, patterns."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = tokenize(text)
        self.at = 0
        self.depth = 0
        self.struct_literals = True

    @property
    def token(self) -> Token:
        return self.tokens[self.at]

    def peek(self, ahead: int = 1) -> Token:
        return self.tokens[min(self.at + ahead, len(self.tokens) - 1)]

    def next(self) -> Token:
        token = self.tokens[self.at]
        if token.kind != "end":
            self.at += 1
        return token

    def sees(self, text: str) -> bool:
        token = self.tokens[self.at]
        return token.text == text and token.kind in ("punct", "ident")

    def accept(self, text: str) -> bool:
        if self.sees(text):
            self.at += 1
            return True
        return False

    def fail(self, expected: str) -> SyntaxProblem:
        token = self.token
        return SyntaxProblem(f"expected {expected}, found `{token.text}`", Span(token.start, token.end))

    def expect(self, text: str) -> Token:
        token = self.token
        if self.sees(text):
            return self.next()
        if token.kind == "punct" and token.text.startswith(text) and text in (">", "|", "&", "<"):
            rest = token.text[len(text) :]
            self.tokens[self.at] = Token("punct", rest, token.start + len(text), token.end)
            return Token("punct", text, token.start, token.start + len(text))
        raise self.fail(f"`{text}`")

    def name(self) -> str:
        token = self.token
        if token.kind != "ident" or token.text in RESERVED:
            raise self.fail("identifier")
        self.at += 1
        return token.text

    def span(self, start: int) -> Span:
        return Span(start, self.tokens[self.at - 1].end)

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > NESTING:
            token = self.token
            raise Unsupported(f"nesting deeper than {NESTING} levels", Span(token.start, token.end))

    def bounds(self) -> None:
        while True:
            self.accept("?")
            if self.token.kind == "lifetime":
                self.next()
            else:
                self.type()
            if not self.accept("+"):
                return

    def type(self) -> TypeExpr:
        self.deeper()
        start = self.token.start
        found = self.type_inside(start)
        self.depth -= 1
        return found

    def type_inside(self, start: int) -> TypeExpr:
        if self.sees("&") or self.sees("&&"):
            self.expect("&")
            if self.token.kind == "lifetime":
                self.next()
            mutable = self.accept("mut")
            return RefType(mutable, self.type(), span=self.span(start))
        if self.accept("("):
            items = []
            trailing = False
            while not self.sees(")"):
                items.append(self.type())
                trailing = self.accept(",")
                if not trailing:
                    break
            self.expect(")")
            if len(items) == 1 and not trailing:
                return items[0]
            return NamedType("tuple", tuple(items), span=self.span(start))
        if self.accept("["):
            inner = self.type()
            if self.accept(";"):
                self.expr()
                self.expect("]")
                return NamedType("array", (inner,), span=self.span(start))
            self.expect("]")
            return NamedType("slice", (inner,), span=self.span(start))
        if self.token.text in ("impl", "dyn"):
            self.next()
            self.bounds()
            raise Unsupported("`impl` and `dyn` types", self.span(start))
        if self.accept("!"):
            return NamedType("!", span=self.span(start))
        name = "_" if self.accept("_") else self.name()
        while self.accept("::"):
            if self.sees("<"):
                break
            name = self.name()
        if name in ("spec_fn", "FnSpec", "Fn", "FnMut", "FnOnce", "fn") and self.accept("("):
            params = []
            while not self.sees(")"):
                params.append(self.type())
                if not self.accept(","):
                    break
            self.expect(")")
            result: TypeExpr = NamedType("tuple")
            if self.accept("->"):
                result = self.type()
            return FnType(tuple(params), result, span=self.span(start))
        return NamedType(name, self.type_arguments(), span=self.span(start))

    def type_arguments(self) -> tuple[TypeExpr, ...]:
        if not self.sees("<"):
            return ()
        self.next()
        args: list[TypeExpr] = []
        while not self.token.text.startswith(">"):
            if self.token.kind == "lifetime":
                self.next()
            elif self.token.kind == "int":
                raise Unsupported("const generics", self.span(self.token.start))
            else:
                args.append(self.type())
            if not self.accept(","):
                break
        self.expect(">")
        return tuple(args)

    def pattern(self) -> Pattern:
        self.deeper()
        start = self.token.start
        found = self.pattern_inside(start)
        self.depth -= 1
        if self.sees("|") or self.sees("..=") or self.sees("@"):
            raise Unsupported("or-, range- and @-patterns", Span(start, self.token.end))
        return found

    def pattern_inside(self, start: int) -> Pattern:
        if self.accept("&"):
            self.accept("mut")
            return self.pattern()
        if self.accept("("):
            items = []
            while not self.sees(")"):
                items.append(self.pattern())
                if not self.accept(","):
                    break
            self.expect(")")
            return items[0] if len(items) == 1 else TuplePattern(tuple(items), span=self.span(start))
        if self.token.kind in ("int", "char", "byte", "string") or self.token.text in ("-", "true", "false"):
            return LiteralPattern(self.unary(), span=self.span(start))
        if self.token.text in ("Ghost", "Tracked") and self.peek().text == "(":
            raise Unsupported("`Ghost` and `Tracked` patterns", Span(start, self.token.end))
        self.accept("ref")
        mutable = self.accept("mut")
        names = [self.name()]
        while self.accept("::"):
            names.append(self.name())
        if self.accept("("):
            items = []
            while not self.sees(")"):
                items.append(self.pattern())
                if not self.accept(","):
                    break
            self.expect(")")
            return VariantPattern(tuple(names), tuple(items), span=self.span(start))
        if self.sees("{") and (len(names) > 1 or names[0][0].isupper()):
            self.next()
            fields, items = [], []
            while not self.sees("}"):
                if self.accept(".."):
                    break
                begin = self.token.start
                fields.append(self.name())
                items.append(self.pattern() if self.accept(":") else Bind(fields[-1], span=self.span(begin)))
                if not self.accept(","):
                    break
            self.expect("}")
            return VariantPattern(tuple(names), tuple(items), tuple(fields), span=self.span(start))
        if len(names) > 1 or (names[0][0].isupper() and not mutable):
            return VariantPattern(tuple(names), span=self.span(start))
        return Bind(names[0], mutable, span=self.span(start))

    def inner_attributes(self, into: list[str]) -> None:
        while self.sees("#") and self.peek().text == "!":
            self.at += 2
            into.append(self.bracketed())

    def attributes(self) -> tuple[str, ...]:
        found = []
        while self.sees("#") and self.peek().text in ("[", "!"):
            self.at += 1
            self.accept("!")
            found.append(self.bracketed())
        return tuple(found)

    def bracketed(self) -> str:
        """The text inside one balanced bracket, without white space."""
        opened = self.token
        if opened.text not in ("[", "(", "{"):
            raise self.fail("`[`")
        depth = 0
        words: list[str] = []
        while True:
            token = self.next()
            if token.kind == "end":
                raise SyntaxProblem("unclosed delimiter", Span(opened.start, opened.end))
            depth += (token.text in ("[", "(", "{")) - (token.text in ("]", ")", "}"))
            if depth == 0:
                return "".join(words[1:])
            words.append(token.text)

    @abstractmethod
    def expr(self, least: int = 0) -> Expr:
        raise NotImplementedError

    @abstractmethod
    def unary(self) -> Expr:
        raise NotImplementedError
