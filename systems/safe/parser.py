"""Text to tree: recursive descent for items and statements, precedence climbing for expressions."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable

from systems.safe.syntax import (
    Arm,
    Assert,
    AssertForall,
    Assign,
    Assume,
    Binary,
    Bind,
    Block,
    Break,
    Call,
    Cast,
    Chain,
    Closure,
    Const,
    Continue,
    Datatype,
    Do,
    Expr,
    Field,
    Fn,
    FnType,
    For,
    If,
    Impl,
    Index,
    Is,
    Item,
    ItemStatement,
    Let,
    LetCondition,
    ListLiteral,
    Lit,
    LiteralPattern,
    LoopSpec,
    MacroCall,
    Match,
    Method,
    NamedType,
    OtherItem,
    Param,
    Path,
    Pattern,
    Program,
    ProofBlock,
    Quantifier,
    Range,
    RefType,
    Return,
    Reveal,
    Span,
    Statement,
    StructLiteral,
    SyntaxProblem,
    Token,
    Trigger,
    Try,
    Tuple,
    TuplePattern,
    TypeExpr,
    Unary,
    Unsupported,
    Use,
    Variant,
    VariantPattern,
    View,
    While,
    tokenize,
)  # fmt: skip

NESTING = 160
"""Deepest nesting of brackets, blocks and unary operators that is read."""

_BINDING: dict[str, int] = {
    "*": 90, "/": 90, "%": 90, "+": 80, "-": 80, "<<": 70, ">>": 70, "&": 60, "^": 55, "|": 50,
    **dict.fromkeys(("==", "!=", "<", "<=", ">", ">=", "===", "!==", "=~=", "=~~=", "!~=", "!~~="), 40),
    "&&": 30, "||": 25, "==>": 20, "<==": 18, "<==>": 16, "..": 14, "..=": 14,
    **dict.fromkeys(("=", "+=", "-=", "*=", "/=", "%=", "^=", "|=", "&=", "<<=", ">>="), 10),
    "&&&": 6, "|||": 4,
}  # fmt: skip
_CHAINING = frozenset(("<", "<=", ">", ">=", "=="))
_CLAUSES = frozenset(
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
_RESERVED = frozenset(
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
_BLOCK_LIKE = frozenset(("if", "while", "loop", "for", "match", "{", "unsafe"))
_MODES = frozenset(("spec", "proof", "exec", "axiom"))


def parse(text: str) -> Program:
    """The program inside the `verus! { }` blocks of `text`. Raises SyntaxProblem, or Unsupported for what is known
    to be legal but is not read."""
    return _Parser(text).program()


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = tokenize(text)
        self.at = 0
        self.depth = 0
        self.struct_literals = True

    # tokens

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
        if token.kind != "ident" or token.text in _RESERVED:
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

    # items

    def program(self) -> Program:
        items: list[Item] = []
        attributes: list[str] = []
        found = False
        while self.token.kind != "end":
            if self.sees("verus") and self.peek().text == "!" and self.peek(2).text in ("{", "("):
                found = True
                self.at += 3
                self.inner_attributes(attributes)
                while not self.sees("}") and not self.sees(")"):
                    if self.token.kind == "end":
                        raise self.fail("`}` that closes `verus!`")
                    if not self.accept(";"):
                        items.append(self.item())
            self.next()
        if not found:
            raise SyntaxProblem("expected a `verus! { }` block, found none", Span(0, min(1, len(self.text))))
        return Program(tuple(items), tuple(attributes), span=Span(0, len(self.text)))

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

    def item(self) -> Item:
        start = self.token.start
        attributes = self.attributes()
        qualifiers = []
        if self.accept("pub"):
            qualifiers.append("pub")
            if self.sees("("):
                self.bracketed()
        while self.token.text in ("open", "closed", "broadcast", "uninterp", "const", "unsafe", "default"):
            if self.sees("const") and self.peek().text != "fn" and self.peek(2).text == ":":
                break
            if self.sees("broadcast") and self.peek().text in ("use", "group"):
                break
            qualifiers.append(self.next().text)
            if self.sees("(") and qualifiers[-1] in ("open", "closed"):
                self.bracketed()
        mode = "exec"
        if self.token.text in _MODES:
            mode = self.next().text
            if self.sees("("):
                self.bracketed()
        if self.sees("fn"):
            return self.function(start, mode, attributes, tuple(qualifiers))
        if self.sees("const") or self.sees("static"):
            return self.constant(start, mode)
        if self.sees("struct") or self.sees("enum"):
            return self.datatype(start, attributes)
        if self.sees("impl"):
            return self.implementation(start)
        if self.sees("use") or self.sees("broadcast"):
            while not self.sees(";") and self.token.kind != "end":
                self.next()
            self.expect(";")
            return Use(self.text[start : self.tokens[self.at - 1].end], span=self.span(start))
        if self.token.text in (
            "trait",
            "mod",
            "type",
            "extern",
            "macro_rules",
            "global",
            "assume_specification",
            "union",
        ):
            what = self.token.text
            while self.token.text not in ("{", ";") and self.token.kind != "end":
                if self.token.text in ("[", "("):
                    self.bracketed()
                else:
                    self.next()
            if self.sees("{"):
                self.bracketed()
            else:
                self.expect(";")
            return OtherItem(what, span=self.span(start))
        raise self.fail("item")

    def generics(self) -> tuple[str, ...]:
        names: list[str] = []
        if not self.accept("<"):
            return ()
        while not self.sees(">"):
            if self.token.kind == "lifetime":
                self.next()
            else:
                if self.sees("const"):
                    raise Unsupported("const generics", self.span(self.token.start))
                names.append(self.name())
            if self.accept(":"):
                self.bounds()
            if not self.accept(","):
                break
        self.expect(">")
        return tuple(names)

    def bounds(self) -> None:
        while True:
            self.accept("?")
            if self.token.kind == "lifetime":
                self.next()
            else:
                self.type()
            if not self.accept("+"):
                return

    def where(self) -> None:
        if self.accept("where"):
            while self.token.text not in _CLAUSES and not self.sees("{") and not self.sees(";"):
                self.type()
                self.expect(":")
                self.bounds()
                if not self.accept(","):
                    break

    def function(self, start: int, mode: str, attributes: tuple[str, ...], qualifiers: tuple[str, ...]) -> Fn:
        self.expect("fn")
        name = self.name()
        generics = self.generics()
        self.expect("(")
        params = []
        while not self.sees(")"):
            params.append(self.parameter())
            if not self.accept(","):
                break
        self.expect(")")
        result: tuple[str, TypeExpr | None] = ("", None)
        if self.accept("->"):
            self.accept("tracked")
            if (
                self.sees("(")
                and self.peek().kind == "ident"
                and (self.peek(2).text == ":" or self.peek().text == "tracked")
            ):
                self.next()
                self.accept("tracked")
                result_name = self.name()
                self.expect(":")
                result = (result_name, self.type())
                self.expect(")")
            else:
                result = ("", self.type())
        self.where()
        clauses: dict[str, tuple[Expr, ...]] = {}
        when = None
        while self.token.text in _CLAUSES and self.token.kind == "ident":
            word = self.next()
            if word.text in ("via", "returns", "opens_invariants", "no_unwind", "default_ensures"):
                raise Unsupported(f"`{word.text}` clauses", Span(word.start, word.end))
            if word.text == "when":
                when = self.condition()
                continue
            clauses[word.text] = clauses.get(word.text, ()) + self.clause()
        self.where()
        body = None
        if not self.accept(";"):
            body = self.block()
        return Fn(
            name, mode, generics, tuple(params), result, body,
            requires=clauses.pop("requires", ()), ensures=clauses.pop("ensures", ()),
            recommends=clauses.pop("recommends", ()), decreases=clauses.pop("decreases", ()), when=when,
            attributes=attributes, qualifiers=qualifiers, span=self.span(start),
        )  # fmt: skip

    def parameter(self) -> Param:
        start = self.token.start
        self.attributes()
        mode = ""
        if self.token.text in ("tracked", "ghost") and self.peek().kind == "ident":
            mode = self.next().text
        if self.sees("&") or self.sees("self") or (self.sees("mut") and self.peek().text == "self"):
            reference = self.accept("&")
            if self.token.kind == "lifetime":
                self.next()
            mutable = self.accept("mut")
            self.expect("self")
            own: TypeExpr = NamedType("Self")
            if reference:
                own = RefType(mutable, own)
            return Param("self", own, mutable and not reference, mode, span=self.span(start))
        mutable = self.accept("mut")
        if self.token.text in ("Ghost", "Tracked") and self.peek().text == "(":
            mode = self.next().text.lower()
            self.expect("(")
            mutable = self.accept("mut")
            name = self.name()
            self.expect(")")
            self.expect(":")
            wrapped = self.type()
            if not isinstance(wrapped, NamedType) or len(wrapped.args) != 1:
                raise self.fail("`Ghost<T>` or `Tracked<T>`")
            return Param(name, wrapped.args[0], mutable, mode, span=self.span(start))
        name = self.name()
        self.expect(":")
        return Param(name, self.type(), mutable, mode, span=self.span(start))

    def clause(self) -> tuple[Expr, ...]:
        """Comma-separated conditions up to the next clause or the body."""
        found: list[Expr] = []
        while not self.sees("{") and not self.sees(";") and self.token.text not in _CLAUSES:
            found.append(self.condition())
            if not self.accept(","):
                break
        return tuple(found)

    def condition(self) -> Expr:
        """An expression in which a struct literal may not start."""
        before, self.struct_literals = self.struct_literals, False
        expr = self.expr()
        self.struct_literals = before
        return expr

    def constant(self, start: int, mode: str) -> Const:
        self.next()
        name = self.name()
        self.expect(":")
        type_ = self.type()
        if self.token.text in _CLAUSES:
            raise Unsupported("constants with `ensures`", self.span(start))
        self.expect("=")
        value = self.expr()
        self.expect(";")
        return Const(name, mode, type_, value, span=self.span(start))

    def datatype(self, start: int, attributes: tuple[str, ...]) -> Datatype:
        is_enum = self.next().text == "enum"
        name = self.name()
        generics = self.generics()
        self.where()
        variants = []
        if is_enum:
            self.expect("{")
            while not self.sees("}"):
                self.attributes()
                begin = self.token.start
                variants.append(self.fields(self.name(), begin))
                if not self.accept(","):
                    break
            self.expect("}")
        else:
            variants.append(self.fields(name, start))
            if variants[0].positional:
                self.accept(";")
        return Datatype(name, generics, tuple(variants), is_enum, attributes, span=self.span(start))

    def fields(self, name: str, start: int) -> Variant:
        found: list[tuple[str, TypeExpr]] = []
        if self.accept("{"):
            while not self.sees("}"):
                self.field_prefix()
                field = self.name()
                self.expect(":")
                found.append((field, self.type()))
                if not self.accept(","):
                    break
            self.expect("}")
            return Variant(name, tuple(found), False, span=self.span(start))
        if self.accept("("):
            while not self.sees(")"):
                self.field_prefix()
                found.append((str(len(found)), self.type()))
                if not self.accept(","):
                    break
            self.expect(")")
        return Variant(name, tuple(found), True, span=self.span(start))

    def field_prefix(self) -> None:
        self.attributes()
        if self.accept("pub") and self.sees("("):
            self.bracketed()
        if self.token.text in ("ghost", "tracked"):
            raise Unsupported("ghost fields", self.span(self.token.start))

    def implementation(self, start: int) -> Item:
        self.next()
        generics = self.generics()
        type_ = self.type()
        if self.accept("for"):
            self.type()
            self.where()
            self.bracketed()
            return OtherItem("impl of a trait", span=self.span(start))
        self.where()
        self.expect("{")
        functions = []
        while not self.sees("}"):
            item = self.item()
            if not isinstance(item, Fn):
                raise Unsupported("items other than functions inside `impl`", item.span)
            functions.append(item)
        self.expect("}")
        return Impl(generics, type_, tuple(functions), span=self.span(start))

    # types

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

    # patterns

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

    # statements

    def block(self) -> Block:
        self.deeper()
        before, self.struct_literals = self.struct_literals, True
        start = self.expect("{").start
        statements: list[Statement] = []
        tail: Expr | None = None
        while not self.sees("}"):
            if self.token.kind == "end":
                raise self.fail("`}`")
            if self.accept(";"):
                continue
            statement, value = self.statement()
            if value is not None:
                tail = value
                break
            if statement is not None:
                statements.append(statement)
        self.expect("}")
        if tail is None and statements and isinstance(statements[-1], Do):
            last = statements[-1].expr
            if isinstance(last, If | Match | Block) and self.tokens[self.at - 2].text == "}":
                tail = last
                statements.pop()
        self.struct_literals = before
        self.depth -= 1
        return Block(tuple(statements), tail, span=self.span(start))

    def statement(self) -> tuple[Statement | None, Expr | None]:
        """One statement, or the block's value."""
        start = self.token.start
        if self.sees("#") and self.peek().text == "!":
            inner: list[str] = []
            self.inner_attributes(inner)
            raise Unsupported("attributes inside a function body", self.span(start))
        mark = self.at
        attributes = self.attributes() if self.sees("#") and self.peek(2).text != "trigger" else ()
        if self.sees("let"):
            return self.let(start), None
        if (
            self.token.text in ("fn", "struct", "enum", "use", "impl", "const", "static", "pub", "broadcast")
            or (self.token.text in _MODES and self.peek().text in ("fn", "const"))
        ):  # fmt: skip
            self.at = mark
            return ItemStatement(self.item(), span=self.span(start)), None
        block_like = self.token.text in _BLOCK_LIKE or (self.token.kind == "lifetime" and self.peek().text == ":")
        if self.sees("proof") and self.peek().text == "{":
            self.next()
            body = self.block()
            return Do(ProofBlock(body, span=self.span(start)), span=self.span(start)), None
        if block_like:
            expr = self.block_like(attributes)
            if not (self.sees(".") or self.sees("?")):
                if not self.accept(";"):
                    return Do(expr, span=expr.span), None
                return Do(_discarded(expr), span=expr.span), None
            expr = self.climb(self.postfix(expr, start), 0)
        else:
            expr = self.expr()
        if self.accept(";"):
            return Do(expr, span=self.span(start)), None
        if self.sees("}"):
            return None, expr
        if isinstance(expr, Assert | AssertForall) and expr.body is not None:
            return Do(expr, span=self.span(start)), None
        raise self.fail("`;` or `}`")

    def let(self, start: int) -> Let:
        self.next()
        ghost = self.next().text if self.token.text in ("ghost", "tracked") and self.peek().kind == "ident" else ""
        pattern = self.pattern()
        type_ = self.type() if self.accept(":") else None
        value = self.expr() if self.accept("=") else None
        orelse = self.block() if self.accept("else") else None
        self.expect(";")
        return Let(pattern, type_, value, ghost, orelse, span=self.span(start))

    def block_like(self, attributes: tuple[str, ...] = ()) -> Expr:
        start = self.token.start
        label = ""
        if self.token.kind == "lifetime":
            label = self.next().text
            self.expect(":")
        word = self.token.text
        if word == "{":
            return self.block()
        if word == "if":
            return self.conditional()
        if word == "match":
            return self.match()
        if word == "unsafe":
            raise Unsupported("`unsafe` blocks", Span(start, self.token.end))
        self.next()
        if word in ("while", "loop"):
            condition = None
            if word == "while":
                condition = self.condition_of_if()
            spec = self.loop_spec()
            body = self.block()
            return While(condition, spec, body, label, attributes, span=self.span(start))
        if word == "for":
            name = self.name()
            self.expect("in")
            if self.token.kind == "ident" and self.peek().text == ":" and self.peek(2).text != ":":
                self.at += 2
            iterator = self.condition()
            spec = self.loop_spec()
            body = self.block()
            return For(name, iterator, spec, body, label, attributes, span=self.span(start))
        raise self.fail("expression")

    def loop_spec(self) -> LoopSpec:
        start = self.token.start
        found: dict[str, tuple[Expr, ...]] = {}
        while self.token.text in ("invariant", "invariant_ensures", "invariant_except_break", "ensures", "decreases"):
            word = self.next().text
            found[word] = found.get(word, ()) + self.clause()
        both = found.get("invariant_ensures", ())
        return LoopSpec(
            found.get("invariant", ()) + both,
            found.get("invariant_except_break", ()),
            found.get("ensures", ()),
            found.get("decreases", ()),
            span=Span(start, self.tokens[self.at - 1].end),
        )

    def conditional(self) -> If:
        self.deeper()
        start = self.expect("if").start
        condition = self.condition_of_if()
        then = self.block()
        orelse: Expr | None = None
        if self.accept("else"):
            orelse = self.conditional() if self.sees("if") else self.block()
        self.depth -= 1
        return If(condition, then, orelse, span=self.span(start))

    def condition_of_if(self) -> Expr:
        start = self.token.start
        if self.accept("let"):
            pattern = self.pattern()
            self.expect("=")
            before, self.struct_literals = self.struct_literals, False
            value = self.expr(31)
            self.struct_literals = before
            if self.sees("&&"):
                raise Unsupported("chains of `let` conditions", Span(start, self.token.end))
            return LetCondition(pattern, value, span=self.span(start))
        return self.condition()

    def match(self) -> Match:
        start = self.expect("match").start
        subject = self.condition()
        self.expect("{")
        before, self.struct_literals = self.struct_literals, True
        arms = []
        while not self.sees("}"):
            begin = self.token.start
            pattern = self.pattern()
            guard = self.expr() if self.accept("if") else None
            self.expect("=>")
            body = self.expr()
            arms.append(Arm(pattern, guard, body, span=self.span(begin)))
            if not self.accept(",") and not isinstance(body, Block | If | Match):
                break
        self.expect("}")
        self.struct_literals = before
        return Match(subject, tuple(arms), span=self.span(start))

    # expressions

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
                ends = self.token.text in (")", "]", "{", "}", ",", ";") or self.token.text in _CLAUSES
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
        if self.token.text in _CLAUSES:
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
        if token.text in _BLOCK_LIKE or token.kind == "lifetime":
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

    def ghost_statement(self, word: str, start: int) -> Expr:
        self.next()
        if word == "assert" and self.sees("forall"):
            return self.assert_forall(start)
        self.expect("(")
        if word == "admit":
            self.expect(")")
            return Assume(None, span=self.span(start))
        if word in ("reveal", "hide", "reveal_with_fuel"):
            names = [self.name()]
            while self.accept("::"):
                if self.sees("<"):
                    self.type_arguments()
                else:
                    names.append(self.name())
            fuel = 0 if word == "hide" else 1
            if word == "reveal_with_fuel":
                self.expect(",")
                literal = self.primary()
                if not isinstance(literal, Lit) or literal.kind != "int":
                    raise self.fail("an integer literal as fuel")
                fuel = int(literal.value)
            self.expect(")")
            return Reveal(tuple(names), fuel, span=self.span(start))
        condition = self.inside(self.expr)
        self.accept(",")
        self.expect(")")
        if word == "assume":
            return Assume(condition, span=self.span(start))
        prover = ""
        requires: tuple[Expr, ...] = ()
        body = None
        if self.accept("by"):
            prover = "block"
            if self.accept("("):
                prover = self.name()
                self.expect(")")
                if self.accept("requires"):
                    requires = self.clause()
            if self.sees("{"):
                body = self.block()
            elif prover == "block":
                raise self.fail("`{`")
        elif self.sees("requires"):
            raise self.fail("`by` before `requires`")
        return Assert(condition, prover, requires, body, span=self.span(start))

    def assert_forall(self, start: int) -> Expr:
        self.expect("forall")
        params = self.bound_variables()
        triggers, auto = self.trigger_attributes()
        premise: Expr | None = self.condition()
        conclusion = premise
        if self.accept("implies"):
            conclusion = self.condition()
        else:
            premise = None
        self.expect("by")
        body = self.block()
        assert conclusion is not None
        return AssertForall(params, premise, conclusion, body, triggers, auto, span=self.span(start))


def _discarded(expr: Expr) -> Expr:
    """`if ... {} else {};` has no value."""
    return Block((Do(expr, span=expr.span),), None, span=expr.span)


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
