"""Text to tree: items and programs, by recursive descent."""

from __future__ import annotations

from systems.safe.cursor import CLAUSES
from systems.safe.statements import MODES, Statements
from systems.safe.syntax import (
    Const,
    Datatype,
    Expr,
    Fn,
    Impl,
    Item,
    NamedType,
    OtherItem,
    Param,
    Program,
    RefType,
    Span,
    SyntaxProblem,
    TypeExpr,
    Unsupported,
    Use,
    Variant,
)  # fmt: skip


def parse(text: str) -> Program:
    """The program inside the `verus! { }` blocks of `text`. Raises SyntaxProblem, or Unsupported for what is known
    to be legal but is not read."""
    return Parser(text).program()


class Parser(Statements):
    """Items and whole programs."""

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
        if self.token.text in MODES:
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

    def where(self) -> None:
        if self.accept("where"):
            while self.token.text not in CLAUSES and not self.sees("{") and not self.sees(";"):
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
        while self.token.text in CLAUSES and self.token.kind == "ident":
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

    def constant(self, start: int, mode: str) -> Const:
        self.next()
        name = self.name()
        self.expect(":")
        type_ = self.type()
        if self.token.text in CLAUSES:
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
