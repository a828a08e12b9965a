"""Text to tree: blocks, statements and control flow."""

from __future__ import annotations

from abc import abstractmethod

from systems.safe.cursor import CLAUSES
from systems.safe.expressions import BLOCK_LIKE, Expressions
from systems.safe.syntax import (
    Arm,
    Assert,
    AssertForall,
    Assume,
    Block,
    Do,
    Expr,
    For,
    If,
    Item,
    ItemStatement,
    Let,
    LetCondition,
    Lit,
    LoopSpec,
    Match,
    ProofBlock,
    Reveal,
    Span,
    Statement,
    Unsupported,
    While,
)  # fmt: skip

MODES = frozenset(("spec", "proof", "exec", "axiom"))


class Statements(Expressions):
    """Blocks and what stands in them."""

    def clause(self) -> tuple[Expr, ...]:
        """Comma-separated conditions up to the next clause or the body."""
        found: list[Expr] = []
        while not self.sees("{") and not self.sees(";") and self.token.text not in CLAUSES:
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
            or (self.token.text in MODES and self.peek().text in ("fn", "const"))
        ):  # fmt: skip
            self.at = mark
            return ItemStatement(self.item(), span=self.span(start)), None
        block_like = self.token.text in BLOCK_LIKE or (self.token.kind == "lifetime" and self.peek().text == ":")
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

    @abstractmethod
    def item(self) -> Item:
        raise NotImplementedError


def _discarded(expr: Expr) -> Expr:
    """`if ... {} else {};` has no value."""
    return Block((Do(expr, span=expr.span),), None, span=expr.span)
