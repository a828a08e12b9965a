"""Obligations of arithmetic, of reads and writes, and of calls."""

from __future__ import annotations

from systems.safe import syntax as s
from systems.safe.spec import Env, compare, value_type
from systems.safe.syntax import Span, Unsupported
from systems.safe.terms import FALSE, TRUE, Term, conj, disj, equal, forall, implies, negate
from systems.safe.theory import bounds
from systems.safe.types import SIGNED, Ty, find, settled, strip, substitute
from systems.safe.vstd import operations
from systems.safe.walk import (
    DECREASES,
    DIVISION,
    OVERFLOW,
    PRECONDITION,
    Walk,
    decreased,
    is_mutable_reference,
    result_type,
)


class Operations(Walk):
    """Arithmetic, places and calls: code without control flow."""

    def in_range(self, value: Term, kind: Ty, span: Span) -> None:
        if kind.name in ("int", "nat", "bool", "char"):
            return
        low, high = bounds(kind.name)
        self.goal(conj(("<=", low, value), ("<=", value, high) if high is not None else TRUE), OVERFLOW, span)

    def binary(self, expr: s.Binary) -> Term:
        op = expr.op
        if op in ("&&", "||"):
            left = self.value(expr.left)
            right = self.under(left if op == "&&" else negate(left), lambda: self.value(expr.right))
            return conj(left, right) if op == "&&" else disj(left, right)
        left, right = self.value(expr.left), self.value(expr.right)
        if op in ("==", "!="):
            return equal(left, right) if op == "==" else negate(equal(left, right))
        if op in ("<", "<=", ">", ">="):
            return compare(op, left, right)
        return self.arithmetic(op, left, right, self.type_of(expr.left), expr.span)

    def arithmetic(self, op: str, left: Term, right: Term, kind: Ty, span: Span) -> Term:
        if op in ("&", "|", "^"):
            return self.encoder.theory.bits(op, kind, left, right)
        if op in ("<<", ">>"):
            width = "32" if kind.name.endswith("size") else kind.name[1:]
            self.goal(conj(("<=", "0", right), ("<", right, width)), "possible bit shift underflow/overflow", span)
            return self.encoder.theory.bits(op, kind, left, right)
        if op in ("/", "%"):
            if kind.name in SIGNED or kind.name == "isize":
                raise Unsupported("div/mod on signed finite-width integers", span)
            self.goal(negate(equal(right, "0")), DIVISION, span)
            return self.encoder.theory.arithmetic(op, left, right)
        found = self.encoder.theory.arithmetic(op, left, right)
        self.in_range(found, kind, span)
        return found

    def element(self, expr: s.Index) -> Term:
        kind = self.type_of(expr.receiver)
        value, index = self.value(expr.receiver), self.value(expr.index)
        self.goal(
            conj(("<=", "0", index), ("<", index, self.length(kind, value))), PRECONDITION, expr.span,
            (expr.index.span, "index out of bounds"),
        )  # fmt: skip
        found = self.encoder.theory.seq("index", Ty("Seq", kind.args), self.encoder.theory.view(kind, value), index)
        return self.read(found, kind.args[0])

    def read(self, found: Term, kind: object) -> Term:
        """A value read from a collection, bound to a constant so that its term exists to match."""
        assert isinstance(kind, Ty)
        name = self.fresh("read", kind)
        self.region.fact(("=", name, found))
        self.region.fact(self.encoder.theory.typed(kind, name))
        return found

    def assign(self, expr: s.Assign) -> Term:
        if expr.op == "=":
            value = self.value(expr.value)
        else:
            kind = self.type_of(expr.target)
            left = self.value(expr.target)
            right = self.value(expr.value)
            if self.ghost:
                value = self.encoder.theory.arithmetic(expr.op[:-1], left, right)
            else:
                value = self.arithmetic(expr.op[:-1], left, right, kind, expr.span)
        self.store(expr.target, value)
        return self.unit()

    def store(self, place: s.Expr, value: Term) -> None:
        match place:
            case s.Path():
                local = self.encoder.typing.locals[id(place)]
                self.vars[local.unique] = self.named(local.name, value_type(local, Env({})), value)
                return
            case s.Unary(op="*"):
                self.store(place.operand, value)
                return
            case s.Index():
                kind = self.type_of(place.receiver)
                base, index = self.value(place.receiver), self.value(place.index)
                self.goal(
                    conj(("<=", "0", index), ("<", index, self.length(kind, base))), PRECONDITION, place.span,
                    (place.index.span, "index out of bounds"),
                )  # fmt: skip
                self.store(place.receiver, self.rebuilt(kind, "update", base, index, value))
                return
            case s.Field():
                kind = self.type_of(place.receiver)
                base = self.value(place.receiver)
                if kind.name == "tuple":
                    variant, names = "mk", [str(number_) for number_ in range(len(kind.args))]
                else:
                    datatype = self.encoder.typing.datatypes[kind.name].variants[0]
                    variant, names = datatype.name, [name for name, _ in datatype.fields]
                parts = [value if name == place.name else self.encoder.theory.part(kind, variant, at, base)
                         for at, name in enumerate(names)]  # fmt: skip
                self.store(place.receiver, self.encoder.theory.make(kind, variant, parts))
                return
        raise Unsupported("assignment to this kind of place", place.span)

    def rebuilt(self, kind: Ty, operation: str, base: Term, *args: Term) -> Term:
        """A vector whose view is `operation` of the view of `base`."""
        theory = self.encoder.theory
        sequence = Ty("Seq", kind.args)
        made = theory.seq(operation, sequence, theory.view(kind, base), *args)
        return self.vector(kind, made)

    def vector(self, kind: Ty, view: Term) -> Term:
        name = self.fresh("vec", kind)
        self.region.fact(implies(self.guard, ("=", self.encoder.theory.view(kind, name), view)))
        return name

    def vector_literal(self, expr: s.ListLiteral) -> Term:
        kind = self.type_of(expr)
        theory = self.encoder.theory
        sequence = Ty("Seq", kind.args)
        if expr.repeat is not None:
            item, count = self.value(expr.items[0]), self.value(expr.repeat)
            name = self.fresh("vec", kind)
            view = theory.view(kind, name)
            at = theory.seq("index", sequence, view, "i")
            self.assume(("=", theory.seq("len", sequence, view), count))
            self.assume(
                forall([("i", "Int")], implies(conj(("<=", "0", "i"), ("<", "i", count)), ("=", at, item)), [[at]])
            )
            return name
        view = theory.seq("empty", sequence)
        for value in [self.value(item) for item in expr.items]:
            view = theory.seq("push", sequence, view, value)
        return self.vector(kind, view)

    def call(self, expr: s.Call | s.Method) -> Term:
        typing = self.encoder.typing
        callee = typing.callees[id(expr)]
        if callee.kind != "fn":
            return self.spec(expr)
        signature = typing.functions[callee.name]
        types = dict(zip(signature.generics, self.encoder.callee_types(callee, self.env), strict=True))
        args = [*([expr.receiver] if isinstance(expr, s.Method) else []), *expr.args]
        ghost, self.ghost = self.ghost, self.ghost or signature.mode == "proof"
        values = [self.value(arg) for arg in args]
        self.ghost = ghost
        before = dict(zip((param.unique for param in signature.params), values, strict=True))
        env = Env(before, before, types)
        for clause in signature.fn.requires:
            self.goal(self.clause(clause, env, True), PRECONDITION, expr.span, (clause.span, "failed precondition"))
        if callee.name in self.encoder.knot(self.signature.name) and signature.fn.decreases and self.own_measure:
            new = self.measure(signature.fn.decreases, env)
            self.goal(decreased(new, self.own_measure), DECREASES, expr.span)
        after = dict(before)
        for param, arg in zip(signature.params, args, strict=True):
            if is_mutable_reference(param):
                place = arg.operand if isinstance(arg, s.Unary) and arg.op == "&mut" else arg
                after[param.unique] = self.unknown(param.name, settled(substitute(strip(param.type), types), "int"))
                self.store(place, after[param.unique])
        result = self.unknown("result", result_type(signature, types))
        after[signature.result_local.unique] = result
        for clause in signature.fn.ensures:
            self.assume(self.encoder.term(clause, Env(after, before, types)))
        if settled(find(typing.types[id(expr)]), "int").name == "!":
            self.guard = FALSE
        return result

    def operation(self, expr: s.Call | s.Method, name: str, args: list[s.Expr]) -> Term:
        """A library operation in executable code."""
        theory = self.encoder.theory
        operation = operations()[name]
        callee = self.encoder.typing.callees[id(expr)]
        kind = self.encoder.callee_types(callee, self.env)[0]
        values = [self.value(arg) for arg in args]
        span = expr.span
        if name in ("Vec.new", "Vec.with_capacity"):
            return self.vector(kind, theory.seq("empty", Ty("Seq", kind.args)))
        if kind.name == "Option":
            test = theory.made_by(kind, "Some", values[0])
            if name == "Option.unwrap":
                self.goal(test, PRECONDITION, span)
                return theory.part(kind, "Some", 0, values[0])
            return test if name == "Option.is_some" else negate(test)
        if kind.name in ("String", "str"):
            if name == "String.as_str":
                return values[0]
            if name == "str.unicode_len":
                return self.named("len", Ty("usize"), self.length(kind, values[0]))
            characters = Ty("Seq", (Ty("char"),))
            self.goal(conj(("<=", "0", values[1]), ("<", values[1], self.length(kind, values[0]))), PRECONDITION, span)
            return self.read(theory.seq("index", characters, theory.view(kind, values[0]), values[1]), Ty("char"))
        sequence = Ty("Seq", kind.args)
        view = theory.view(kind, values[0])
        size = theory.seq("len", sequence, view)
        action = name.split(".")[1]
        if action == "len":
            self.assume(conj(("<=", "0", size), ("<=", size, "usize.max")))
            return size
        if action in ("as_slice", "to_vec"):
            target = Ty("slice" if action == "as_slice" else "Vec", kind.args)
            return self.vector(target, view)
        assert operation.receiver == "&mut"
        result: Term = self.unit()
        index: Term = values[1] if len(values) > 1 else "0"
        inside = conj(("<=", "0", index), ("<", index, size))
        match action:
            case "push":
                new = theory.seq("push", sequence, view, values[1])
            case "set":
                self.goal(inside, PRECONDITION, span)
                new = theory.seq("update", sequence, view, index, values[2])
            case "insert":
                self.goal(conj(("<=", "0", index), ("<=", index, size)), PRECONDITION, span)
                new = theory.seq("insert", sequence, view, index, values[2])
            case "remove":
                self.goal(inside, PRECONDITION, span)
                result = self.read(theory.seq("index", sequence, view, index), kind.args[0])
                new = theory.seq("remove", sequence, view, index)
            case "swap":
                other = values[2]
                self.goal(conj(inside, ("<=", "0", other), ("<", other, size)), PRECONDITION, span)
                one, two = (theory.seq("index", sequence, view, place) for place in (index, other))
                new = theory.seq("update", sequence, theory.seq("update", sequence, view, index, two), other, one)
            case "clear":
                new = theory.seq("empty", sequence)
            case "truncate":
                new = ("ite", ("<=", index, size), theory.seq("take", sequence, view, index), view)
            case "pop":
                element = kind.args[0]
                assert isinstance(element, Ty)
                option = Ty("Option", (element,))
                some = theory.make(option, "Some", [theory.seq("last", sequence, view)])
                result = self.named("popped", option, ("ite", ("<", "0", size), some, theory.make(option, "None", ())))
                new = ("ite", ("<", "0", size), theory.seq("drop_last", sequence, view), view)
            case _:
                raise Unsupported(f"`{name}`", span)
        self.store(args[0], self.vector(kind, new))
        return result
