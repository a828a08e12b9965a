"""Specifications as terms: quantifiers and their triggers, spec functions with fuel, closures as functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from systems.safe import syntax as s
from systems.safe.operators import part_is_literal
from systems.safe.syntax import Span, TypeProblem, Unsupported
from systems.safe.terms import (
    FALSE,
    TRUE,
    Term,
    choose_triggers,
    conj,
    disj,
    equal,
    forall,
    implies,
    mentions,
    negate,
    number,
    subterms,
)  # fmt: skip
from systems.safe.theory import Theory, bounds, opposite
from systems.safe.types import (
    BOOL,
    INTEGERS,
    LISTS,
    Callee,
    Local,
    Signature,
    Ty,
    Typing,
    find,
    settled,
    strip,
    substitute,
)

_NEGATED = {"!=": "==", "!==": "==", "!~=": "=~=", "!~~=": "=~~="}
_MIRROR = {">": "<", ">=": "<="}


@dataclass(frozen=True)
class Env:
    """What names mean: current values and values at entry, by unique name; and the types of type parameters."""

    vars: Mapping[str, Term]
    olds: Mapping[str, Term] = field(default_factory=dict)
    types: Mapping[str, Ty] = field(default_factory=dict)

    def bound(self, more: Mapping[str, Term]) -> Env:
        return replace(self, vars={**self.vars, **more})


class Encoder:
    """Turns specification expressions of one program into terms, filling its theory on the way."""

    def __init__(self, typing: Typing, edition: str) -> None:
        self.typing = typing
        self.edition = edition
        self.theory = Theory(typing.datatypes, self._variants, _trigger_operators(typing))
        self.kinds: dict[str, Ty] = {}
        self._count = 0
        self._triggers: list[list[Term]] = []
        self._unrolling: frozenset[str] = frozenset()
        self._lifted: dict[tuple[object, ...], str] = {}
        self.reaches = _reachability(typing)
        self.watch_calls: list[tuple[frozenset[str], list[tuple[str, tuple[Term, ...], Term, Span, Env]]]] = []
        self._path: list[Term] = []

    # types

    def type_of(self, node: s.Node, env: Env) -> Ty:
        """The type of a node, references taken off, under the environment's type arguments."""
        return settled(substitute(strip(self.typing.types[id(node)]), env.types), "int")

    def _variants(self, datatype: s.Datatype, type_: Ty) -> list[tuple[str, list[Ty]]]:
        types = dict(zip(datatype.generics, type_.args, strict=True))

        def at_instance(written: s.TypeExpr) -> Ty:
            return settled(substitute(self._written(written, datatype), types), "int")

        return [
            (variant.name, [at_instance(written) for _, written in variant.fields]) for variant in datatype.variants
        ]

    def _written(self, expr: s.TypeExpr, datatype: s.Datatype) -> Ty:
        if isinstance(expr, s.RefType):
            return self._written(expr.inner, datatype)
        if isinstance(expr, s.FnType):
            parts = (*expr.params, expr.result)
            return Ty("spec_fn", tuple(self._written(part, datatype) for part in parts))
        return Ty(expr.name, tuple(self._written(arg, datatype) for arg in expr.args))

    def symbol(self, stem: str, kind: Ty) -> str:
        """A new name for a value of type `kind`."""
        self._count += 1
        name = f"|{stem}@{self._count}|"
        self.kinds[name] = kind
        return name

    # expressions

    def prop(self, expr: s.Expr, env: Env, promote: bool) -> Term:
        """A condition; with `promote`, `==` between collections in positive positions becomes `=~=`."""
        if not promote:
            return self.term(expr, env)
        match expr:
            case s.Binary(op="==") if self.type_of(expr.left, env).name in ("Seq", "Set", "Map"):
                return self.extensional(expr, env)
            case s.Binary(op="&&" | "&&&"):
                return conj(self.prop(expr.left, env, True), self.prop(expr.right, env, True))
            case s.Binary(op="||" | "|||"):
                return disj(self.prop(expr.left, env, True), self.prop(expr.right, env, True))
            case s.Binary(op="==>"):
                return implies(self.term(expr.left, env), self.prop(expr.right, env, True))
            case s.Quantifier(kind="forall"):
                return self.quantifier(expr, env, promote=True)
            case s.Block(statements=(), tail=tail) if tail is not None:
                return self.prop(tail, env, True)
        return self.term(expr, env)

    def extensional(self, expr: s.Binary, env: Env) -> Term:
        kind = self.type_of(expr.left, env)
        left, right = self.term(expr.left, env), self.term(expr.right, env)
        if kind.name == "Seq":
            return self.theory.seq("ext", kind, left, right)
        if kind.name == "Set":
            return self.theory.set("ext", kind, left, right)
        if kind.name in LISTS and expr.op in ("=~=", "=~~="):
            raise Unsupported(f"`{expr.op}` on `{kind}`", expr.span)
        return equal(left, right)

    def term(self, expr: s.Expr, env: Env) -> Term:
        match expr:
            case s.Lit():
                if expr.kind == "bool":
                    return TRUE if expr.value else FALSE
                if expr.kind in ("int", "char"):
                    return number(int(expr.value))
            case s.Path():
                return self.path(expr, env)
            case s.Unary():
                inner = self.term(expr.operand, env)
                if expr.op == "!":
                    return opposite(self.type_of(expr, env), inner)
                if expr.op == "-":
                    return number(-int(inner)) if isinstance(inner, str) and inner.isdigit() else ("-", inner)
                return inner
            case s.Binary():
                return self.binary(expr, env)
            case s.Chain():
                values = [self.term(operand, env) for operand in expr.operands]
                return conj(
                    *(compare(op, left, right) for op, left, right in zip(expr.ops, values, values[1:], strict=False))
                )
            case s.Cast():
                target = self.type_of(expr, env)
                given = Ty("int") if part_is_literal(expr.operand) else self.type_of(expr.operand, env)
                inner = self.term(expr.operand, env)
                if (
                    isinstance(inner, str)
                    and inner.isdigit()
                    and target.name in INTEGERS
                    and _literal_fits(int(inner), target)
                ):
                    return inner
                return inner if target == BOOL else self.theory.clip(given, target, inner)
            case s.Call() | s.Method():
                return self.call(expr, env)
            case s.Field():
                kind = self.type_of(expr.receiver, env)
                value = self.term(expr.receiver, env)
                if kind.name == "tuple":
                    return self.theory.part(kind, "mk", int(expr.name), value)
                datatype = self.typing.datatypes[kind.name]
                place = [name for name, _ in datatype.variants[0].fields].index(expr.name)
                return self.theory.part(kind, datatype.variants[0].name, place, value)
            case s.Index():
                kind = self.type_of(expr.receiver, env)
                value, index = self.term(expr.receiver, env), self.term(expr.index, env)
                if kind.name in LISTS:
                    value, kind = self.theory.view(kind, value), Ty("Seq", kind.args)
                if kind.name == "Map":
                    raise Unsupported("`Map`", expr.span)
                return self.theory.seq("index", kind, value, index)
            case s.View():
                return self.theory.view(self.type_of(expr.operand, env), self.term(expr.operand, env))
            case s.Is():
                callee = self.typing.callees[id(expr)]
                return self.theory.made_by(self.type_of(expr.operand, env), callee.name, self.term(expr.operand, env))
            case s.If():
                return self.conditional(expr, env)
            case s.Match():
                return self.match(expr, env)
            case s.Block():
                return self.block(expr, env)
            case s.Quantifier():
                if expr.kind == "choose":
                    return self.chosen(expr, env)
                return self.quantifier(expr, env, promote=False)
            case s.Closure():
                return self.closure(expr, env)
            case s.Tuple():
                return self.theory.make(self.type_of(expr, env), "mk", [self.term(item, env) for item in expr.items])
            case s.StructLiteral():
                return self.struct(expr, env, [self.term(value, env) for _, value in expr.fields],
                                   self.term(expr.base, env) if expr.base is not None else None)  # fmt: skip
            case s.ListLiteral(kind="seq"):
                kind = self.type_of(expr, env)
                value = self.theory.seq("empty", kind)
                for item in expr.items:
                    value = self.theory.seq("push", kind, value, self.term(item, env))
                return value
            case s.ListLiteral(kind="set"):
                kind = self.type_of(expr, env)
                value = self.theory.set("empty", kind)
                for item in expr.items:
                    value = self.theory.set("insert", kind, value, self.term(item, env))
                return value
            case s.Trigger():
                value = self.term(expr.operand, env)
                if not self._triggers:
                    raise TypeProblem("trigger attribute outside a quantifier", expr.span)
                self._triggers[-1].append(value)
                return value
        raise Unsupported(f"{type(expr).__name__.lower()} in specifications", expr.span)

    def struct(self, expr: s.StructLiteral, env: Env, values: Sequence[Term], base: Term | None) -> Term:
        kind = self.type_of(expr, env)
        name = self.typing.callees[id(expr)].name
        variant = next(v for v in self.typing.datatypes[kind.name].variants if v.name in (name, kind.name))
        given = dict(zip((field_name for field_name, _ in expr.fields), values, strict=True))
        parts = []
        for place, (field_name, _) in enumerate(variant.fields):
            if field_name in given:
                parts.append(given[field_name])
            else:
                assert base is not None
                parts.append(self.theory.part(kind, variant.name, place, base))
        return self.theory.make(kind, variant.name, parts)

    def path(self, expr: s.Path, env: Env) -> Term:
        local = self.typing.locals.get(id(expr))
        if local is not None:
            if local.unique not in env.vars:
                raise Unsupported(f"use of `{local.name}` here", expr.span)
            return env.vars[local.unique]
        callee = self.typing.callees.get(id(expr))
        if callee is not None and callee.kind == "variant":
            return self.theory.make(self.type_of(expr, env), callee.name, ())
        if expr.names[0] in self.typing.constants and len(expr.names) == 1:
            return number(self.typing.constants[expr.names[0]][1])
        if len(expr.names) == 2 and expr.names[1] in ("MIN", "MAX"):
            low, high = bounds(expr.names[0])
            assert high is not None
            return low if expr.names[1] == "MIN" else high
        raise Unsupported(f"`{'::'.join(expr.names)}` in specifications", expr.span)

    def binary(self, expr: s.Binary, env: Env) -> Term:
        op = expr.op
        if op in ("&&", "&&&", "==>"):
            left = self.term(expr.left, env)
            with_left = self._under(left, expr.right, env)
            return conj(left, with_left) if op != "==>" else implies(left, with_left)
        if op in ("||", "|||"):
            left = self.term(expr.left, env)
            return disj(left, self._under(negate(left), expr.right, env))
        if op == "<==":
            right = self.term(expr.right, env)
            return implies(right, self._under(right, expr.left, env))
        if op in ("=~=", "=~~="):
            return self.extensional(expr, env)
        if op in ("!~=", "!~~="):
            return negate(self.extensional(replace(expr, op="=~="), env))
        left, right = self.term(expr.left, env), self.term(expr.right, env)
        if op in ("<==>", "==", "==="):
            return self.same_sort(expr, left, right, env)
        if op in ("!=", "!=="):
            return negate(self.same_sort(expr, left, right, env))
        if op in ("<", "<=", ">", ">="):
            return compare(op, left, right)
        if op in ("&", "|", "^", "<<", ">>"):
            return self.theory.bits(op, self.type_of(expr.left, env), left, right)
        return self.theory.arithmetic(op, left, right)

    def same_sort(self, expr: s.Binary, left: Term, right: Term, env: Env) -> Term:
        kinds = [self.theory.sort(self.type_of(side, env)) for side in (expr.left, expr.right)]
        if kinds[0] != kinds[1]:
            raise TypeProblem("mismatched types on the two sides of an equality", expr.span)
        return ("=", left, right)

    def _under(self, condition: Term, expr: s.Expr, env: Env) -> Term:
        self._path.append(condition)
        found = self.term(expr, env)
        self._path.pop()
        return found

    def conditional(self, expr: s.If, env: Env) -> Term:
        if isinstance(expr.condition, s.LetCondition):
            kind = self.type_of(expr.condition.value, env)
            condition, names = self.matches(expr.condition.pattern, kind, self.term(expr.condition.value, env), env)
        else:
            condition, names = self.term(expr.condition, env), {}
        assert expr.orelse is not None
        then = self._under(condition, expr.then, env.bound(names))
        orelse = self._under(negate(condition), expr.orelse, env)
        return then if then == orelse else ("ite", condition, then, orelse)

    def match(self, expr: s.Match, env: Env) -> Term:
        kind = self.type_of(expr.subject, env)
        if not self.exhaustive(expr, kind):
            raise Unsupported("matches that are not exhaustive at their first level", expr.span)
        subject = self.term(expr.subject, env)
        tests, values = [], []
        for arm in expr.arms:
            test, names = self.matches(arm.pattern, kind, subject, env)
            inner = env.bound(names)
            if arm.guard is not None:
                test = conj(test, self.term(arm.guard, inner))
            tests.append(test)
            self._path.append(conj(*map(negate, tests[:-1]), test))
            values.append(self.term(arm.body, inner))
            self._path.pop()
        found = values[-1]
        for test, value in zip(reversed(tests[:-1]), reversed(values[:-1]), strict=True):
            found = ("ite", test, value, found)
        return found

    def exhaustive(self, expr: s.Match, kind: Ty) -> bool:
        """Whether the arms cover every value, judged by their first level."""
        seen = set()
        for arm in expr.arms:
            if arm.guard is not None:
                continue
            if _irrefutable(arm.pattern):
                return True
            if isinstance(arm.pattern, s.VariantPattern) and all(map(_irrefutable, arm.pattern.items)):
                seen.add(arm.pattern.path[-1])
            if isinstance(arm.pattern, s.LiteralPattern) and isinstance(arm.pattern.value, s.Lit) and kind == BOOL:
                seen.add(str(arm.pattern.value.value))
        if kind.name == "Option":
            return seen == {"Some", "None"}
        if kind == BOOL:
            return seen == {"True", "False"}
        datatype = self.typing.datatypes.get(kind.name)
        return datatype is not None and seen == {variant.name for variant in datatype.variants}

    def matches(self, pattern: s.Pattern, kind: Ty, value: Term, env: Env) -> tuple[Term, dict[str, Term]]:
        """When the pattern matches, and what its names then mean."""
        match pattern:
            case s.Bind():
                local = self.typing.locals.get(id(pattern))
                return TRUE, ({} if local is None else {local.unique: value})
            case s.LiteralPattern():
                return equal(value, self.term(pattern.value, env)), {}
            case s.TuplePattern():
                parts = [(item, kind.args[place], self.theory.part(kind, "mk", place, value))
                         for place, item in enumerate(pattern.items)]  # fmt: skip
                test: Term = TRUE
            case s.VariantPattern():
                name = pattern.path[-1]
                if kind.name == "Option":
                    fields = [("0", kind.args[0])] if name == "Some" else []
                else:
                    datatype = self.typing.datatypes[kind.name]
                    if not datatype.is_enum:
                        name = datatype.name
                    types = dict(self._variants(datatype, kind))[name]
                    variant = next(v for v in datatype.variants if v.name == name)
                    fields = [(field_name, type_) for (field_name, _), type_ in zip(variant.fields, types, strict=True)]
                places = {field_name: place for place, (field_name, _) in enumerate(fields)}
                names_of_items = pattern.fields or tuple(str(n) for n in range(len(pattern.items)))
                parts = [
                    (item, fields[places[field_name]][1], self.theory.part(kind, name, places[field_name], value))
                    for field_name, item in zip(names_of_items, pattern.items, strict=True)
                ]
                test = self.theory.made_by(kind, name, value)
        names: dict[str, Term] = {}
        for item, item_kind, part in parts:
            assert isinstance(item_kind, Ty)
            inner, more = self.matches(item, settled(strip(item_kind), "int"), part, env)
            test = conj(test, inner)
            names.update(more)
        return test, names

    def block(self, block: s.Block, env: Env) -> Term:
        for statement in block.statements:
            if not isinstance(statement, s.Let) or statement.value is None:
                raise Unsupported("statements in spec code", statement.span)
            kind = self.type_of(statement.value, env)
            _, names = self.matches(statement.pattern, kind, self.term(statement.value, env), env)
            if not _irrefutable(statement.pattern):
                raise Unsupported("refutable `let` patterns", statement.span)
            env = env.bound(names)
        if block.tail is None:
            return self.theory.make(Ty("tuple"), "mk", ())
        return self.term(block.tail, env)

    # quantifiers

    def binders(self, params: Iterable[s.Param], env: Env) -> tuple[list[tuple[str, str]], Term, Env]:
        """Fresh bound names with sorts, what their types say of them, and the environment inside."""
        found, guards, names = [], [], {}
        for param in params:
            local = self.typing.locals[id(param)]
            kind = settled(substitute(strip(local.type), env.types), "int")
            name = self.symbol(local.name, kind)
            found.append((name, self.theory.sort(kind)))
            guards.append(self.theory.typed(kind, name))
            names[local.unique] = name
        return found, conj(*guards), env.bound(names)

    def quantifier(self, expr: s.Quantifier, env: Env, promote: bool) -> Term:
        binders, guard, inner = self.binders(expr.params, env)
        return self.close(expr, binders, guard, inner, lambda: self._closed(expr, inner, promote))

    def _closed(self, expr: s.Quantifier, inner: Env, promote: bool) -> Term:
        if promote:
            return self.prop(expr.body, inner, True)
        return self.term(expr.body, inner)

    def close(self, expr: s.Quantifier | s.AssertForall, binders: list[tuple[str, str]], guard: Term, inner: Env,
              make_body: Callable[[], Term]) -> Term:  # fmt: skip
        """The quantifier over `binders`, with the triggers that its marks or the rules choose."""
        kind = expr.kind if isinstance(expr, s.Quantifier) else "forall"
        self._path.append(guard)
        self._triggers.append([])
        body = make_body()
        marked = self._triggers.pop()
        self._path.pop()
        names = [name for name, _ in binders]
        groups: list[Sequence[Term]] = []
        for group in expr.triggers:
            self._triggers.append([])
            groups.append([self.term(part, inner) for part in group])
            self._triggers.pop()
        if marked:
            groups.append(list(dict.fromkeys(marked)))
        for terms in groups:
            covered = frozenset[str]().union(*(mentions(part, frozenset(names)) for part in terms))
            missing = [name for name in names if name not in covered]
            if missing:
                raise TypeProblem(f"trigger does not cover variable `{missing[0].strip('|').split('@')[0]}`", expr.span)
            if any(
                isinstance(part, str) or part[0] in ("and", "or", "not", "=", "=>", "<", "<=", "ite") for part in terms
            ):
                raise TypeProblem("trigger must be a function call, a field access, or a bitwise operator", expr.span)
        if not groups:
            groups.extend(choose_triggers(names, body))
            if not groups and not self.watch_calls:
                raise TypeProblem("could not automatically infer triggers for this quantifier", expr.span)
        whole = implies(guard, body) if kind == "forall" else conj(guard, body)
        return forall(binders, whole, groups, kind=kind)

    # functions as values

    def _captures(self, body: Term, own: frozenset[str]) -> list[str]:
        found = {part for part in subterms(body) if isinstance(part, str) and part in self.kinds and part not in own}
        quantified = (
            part for part in subterms(body) if isinstance(part, tuple) and part and part[0] in ("forall", "exists")
        )
        inner = {binder[0] for part in quantified for binder in part[1]}
        return sorted(found - inner, key=lambda name: int(name.rsplit("@", 1)[1].rstrip("|")))

    def _lift(self, stem: str, kind: Ty, body: Term, params: Sequence[str]) -> tuple[Term, str, list[str], bool]:
        """A function symbol for a body, shared by bodies that differ only in what they capture. Gives the application
        to the captured values, the symbol, the captured names, and whether the symbol is new."""
        if mentions(body, frozenset(("n%",))):
            raise Unsupported("recursion through a closure", s.NOWHERE)
        captures = self._captures(body, frozenset(params))
        rename = {name: f"p%{place}" for place, name in enumerate(params)}
        rename |= {name: f"c%{place}" for place, name in enumerate(captures)}
        sorts = tuple(self.theory.sort(self.kinds[name]) for name in captures)
        key = (stem, kind, sorts, _canonical(body, rename))
        new = key not in self._lifted
        if new:
            self._lifted[key] = f"{stem}.{len(self._lifted)}"
            self.theory.function(self._lifted[key], sorts, self.theory.sort(kind))
        symbol = self._lifted[key]
        return ((symbol, *captures) if captures else symbol), symbol, captures, new

    def closure(self, expr: s.Closure, env: Env) -> Term:
        binders, guard, inner = self.binders(expr.params, env)
        body = self._under(guard, expr.body, inner)
        kind = self.type_of(expr, env)
        params = [name for name, _ in binders]
        value, _, captures, new = self._lift("closure", kind, body, params)
        if new:
            self.theory.sort(kind)
            applied: Term = (self.theory.symbol("apply", kind), value, *params)
            typed = conj(guard, *(self.theory.typed(self.kinds[name], name) for name in captures))
            outer = [(name, self.theory.sort(self.kinds[name])) for name in captures]
            self.theory.axiom([*outer, *binders], implies(typed, equal(applied, body)), [applied])
        return value

    def chosen(self, expr: s.Quantifier, env: Env) -> Term:
        if len(expr.params) != 1:
            raise Unsupported("`choose` of several variables", expr.span)
        binders, guard, inner = self.binders(expr.params, env)
        self._triggers.append([])
        body = conj(guard, self.term(expr.body, inner))
        marked = self._triggers.pop()
        name = binders[0][0]
        value, _, captures, new = self._lift("chosen", self.kinds[name], body, [name])
        if new:
            groups: list[Sequence[Term]] = [marked] if marked else list(choose_triggers([name], body))
            some = forall(binders, body, groups, kind="exists")
            outer = [(capture, self.theory.sort(self.kinds[capture])) for capture in captures]
            fact = conj(implies(some, _replace(body, {name: value})), self.theory.typed(self.kinds[name], value))
            self.theory.axiom(outer, fact, *([[value]] if captures else []))
        return value

    # calls

    def call(self, expr: s.Call | s.Method, env: Env) -> Term:
        callee = self.typing.callees[id(expr)]
        args = list(expr.args)
        if callee.kind == "old":
            if callee.name not in env.olds:
                raise Unsupported("`old` here", expr.span)
            return env.olds[callee.name]
        if callee.kind == "final":
            return env.vars[callee.name]
        if isinstance(expr, s.Method):
            args.insert(0, expr.receiver)
        if callee.kind == "apply":
            assert isinstance(expr, s.Call)
            kind = self.callee_types(callee, env)[0]
            self.theory.sort(kind)
            function = self.term(expr.function, env)
            return (self.theory.symbol("apply", kind), function, *(self.term(arg, env) for arg in args))
        values = [self.term(arg, env) for arg in args]
        if callee.kind == "variant":
            return self.theory.make(self.type_of(expr, env), callee.name, values)
        if callee.kind == "fn":
            signature = self.typing.functions[callee.name]
            types = self.callee_types(callee, env)
            for allowed, found in self.watch_calls:
                if callee.name in allowed:
                    found.append((callee.name, tuple(values), conj(*self._path), expr.span,
                                  Env({}, {}, dict(zip(signature.generics, types, strict=True)))))  # fmt: skip
            return self.spec_call(signature, types, values, expr.span)
        return self.operation(callee, self.callee_types(callee, env), values, args, expr, env)

    def callee_types(self, callee: Callee, env: Env) -> list[Ty]:
        return [settled(substitute(type_, env.types), "int") for type_ in callee.types]

    def operation(
        self, callee: Callee, types: list[Ty], values: list[Term], args: list[s.Expr], expr: s.Expr, env: Env
    ) -> Term:
        owner, name = callee.name.split(".")
        kind = types[0]
        theory = self.theory
        if owner in LISTS | {"String", "str"}:
            if name in ("len", "unicode_len", "view", "spec_index"):
                view = theory.view(kind, values[0])
                sequence = Ty("Seq", kind.args) if owner in LISTS else Ty("Seq", (Ty("char"),))
                if name == "view":
                    return view
                if name == "spec_index":
                    return theory.seq("index", sequence, view, values[1])
                return theory.seq("len", sequence, view)
            if name == "is_ascii":
                symbol = "is_ascii.String"
                if theory.once(symbol):
                    theory.function(symbol, [theory.sort(Ty("String"))], "Bool")
                return (symbol, values[0])
            if name == "as_str":
                return values[0]
        if owner == "Seq":
            other = None
            if name in ("map", "map_values", "new"):
                other = self.type_of(args[-1], env)
                if name == "new":
                    kind = self.type_of(expr, env)
            if name == "spec_index":
                name = "index"
            return theory.seq(name, kind, *values, other=other)
        if owner == "Set":
            return theory.set(name, kind, *values)
        if owner == "Option":
            if name == "is_some":
                return theory.made_by(kind, "Some", values[0])
            if name == "is_none":
                return theory.made_by(kind, "None", values[0])
            if name == "unwrap":
                return theory.part(kind, "Some", 0, values[0])
        raise Unsupported(f"`{callee.name}` in specifications", expr.span)

    # spec functions

    def recursive(self, name: str) -> bool:
        return name in self.reaches.get(name, frozenset())

    def knot(self, name: str) -> frozenset[str]:
        """The functions that call each other in a circle with `name`."""
        return frozenset(other for other in self.reaches.get(name, ()) if name in self.reaches.get(other, ()))

    def spec_call(self, signature: Signature, types: Sequence[Ty], values: Sequence[Term], span: Span) -> Term:
        symbol = self.spec_symbol(signature, types)
        if signature.name in self._unrolling:
            return (f"|step.{symbol[1:]}", *values, "n%")
        return (symbol, *values) if values else symbol

    def spec_symbol(self, signature: Signature, types: Sequence[Ty]) -> str:
        """The function symbol of a spec function at these type arguments, defined when first asked for."""
        if signature.mode != "spec":
            raise Unsupported(f"call of `{signature.name}` in a specification", signature.fn.span)
        theory = self.theory
        suffix = "".join(f".{theory.code(type_)}" for type_ in types)
        stem = f"fn.{signature.name}{suffix}"
        symbol = f"|{stem}|"
        if not theory.once(symbol):
            return symbol
        table = dict(zip(signature.generics, types, strict=True))
        kinds = [settled(substitute(strip(param.type), table), "int") for param in signature.params]
        result = settled(substitute(strip(signature.result), table), "int")
        names = [
            (self.symbol(param.name, kind), theory.sort(kind))
            for param, kind in zip(signature.params, kinds, strict=True)
        ]
        sorts = [sort for _, sort in names]
        theory.function(symbol, sorts, theory.sort(result))
        args = tuple(name for name, _ in names)
        applied: Term = (symbol, *args) if args else symbol
        guard = conj(*(theory.typed(kind, name) for (name, _), kind in zip(names, kinds, strict=True)))
        triggers = [[applied]] if args else []
        theory.axiom(names, implies(guard, theory.typed(result, applied)), *triggers)
        if signature.fn.body is None:
            return symbol
        if signature.fn.when is not None:
            raise Unsupported("`when` clauses", signature.fn.span)
        revealed: Term = TRUE
        if "verifier::opaque" in signature.fn.attributes:
            revealed = fuel_name(signature.name)
            if theory.once(fuel_name(signature.name)):
                theory.lines.append(f"(declare-const {revealed} Bool)")
        env = Env({param.unique: name for param, (name, _) in zip(signature.params, names, strict=True)}, {}, table)
        before, self._unrolling = self._unrolling, frozenset()
        watching, self.watch_calls = self.watch_calls, []
        marks, self._triggers = self._triggers, []
        if self.recursive(signature.name):
            step, depth = f"|step.{stem}|", depth_name(signature.name)
            theory.function(step, [*sorts, "Fuel"], theory.sort(result))
            if theory.once(depth):
                theory.lines.append(f"(declare-const {depth} Fuel)")
            self._unrolling = self.knot(signature.name)
            body = self.term(signature.fn.body, env)
            stepped: Term = (step, *args, "n%")
            more: Term = (step, *args, ("fuel.succ", "n%"))
            binders = [*names, ("n%", "Fuel")]
            theory.axiom(binders, ("=", stepped, (step, *args, "fuel.zero")), [stepped])
            theory.axiom(binders, implies(guard, ("=", more, body)), [more])
            theory.definitions[len(theory.lines) - 1] = signature.name
            theory.axiom(binders, implies(guard, theory.typed(result, stepped)), [stepped])
            unfolded: Term = ("=", applied, (step, *args, ("fuel.succ", depth)))
            theory.axiom(names, implies(revealed, unfolded), *triggers)
            theory.axiom(names, ("=", applied, (step, *args, "fuel.zero")), *triggers)
        else:
            body = self.term(signature.fn.body, env)
            theory.axiom(names, implies(conj(revealed, guard), equal(applied, body)), *triggers)
        self._unrolling, self.watch_calls, self._triggers = before, watching, marks
        return symbol


def fuel_name(name: str) -> str:
    """Whether an opaque function is revealed."""
    return f"|fuel.{name}|"


def depth_name(name: str) -> str:
    """How often a recursive function may be unfolded beyond once."""
    return f"|depth.{name}|"


def compare(op: str, left: Term, right: Term) -> Term:
    if op in _MIRROR:
        return (_MIRROR[op], right, left)
    if op == "==":
        return equal(left, right)
    return (op, left, right)


def _literal_fits(value: int, target: Ty) -> bool:
    if target.name == "int":
        return True
    high = bounds(target.name)[1] if target.name not in ("usize", "isize") else str(2**31 - 1)
    return high is None or (isinstance(high, str) and value <= int(high))


def _irrefutable(pattern: s.Pattern) -> bool:
    return isinstance(pattern, s.Bind) or (
        isinstance(pattern, s.TuplePattern) and all(map(_irrefutable, pattern.items))
    )


def _canonical(term: Term, rename: Mapping[str, str]) -> Term:
    """`term` with names replaced, bound ones numbered in order of appearance, so that equal bodies are equal terms."""
    if isinstance(term, str):
        return rename.get(term, term)
    if len(term) == 3 and term[0] in ("forall", "exists"):
        inner = dict(rename)
        for binder in term[1]:
            assert isinstance(binder[0], str)
            inner[binder[0]] = f"b%{len(inner)}"
        binders = tuple((inner[binder[0]], binder[1]) for binder in term[1] if isinstance(binder[0], str))
        return (term[0], binders, _canonical(term[2], inner))
    return tuple(_canonical(part, rename) for part in term)


def _replace(term: Term, names: Mapping[str, Term]) -> Term:
    if isinstance(term, str):
        return names.get(term, term)
    return tuple(_replace(part, names) for part in term)


def nodes(node: object) -> Iterable[s.Node]:
    """Every node inside a tree, itself first."""
    stack = [node]
    while stack:
        top = stack.pop()
        if isinstance(top, tuple) and not isinstance(top, Span):
            stack.extend(reversed(top))
        elif isinstance(top, s.Node):
            yield top
            stack.extend(getattr(top, name) for name in reversed(list(top.__dataclass_fields__)) if name != "span")


def _trigger_operators(typing: Typing) -> frozenset[str]:
    found: set[str] = set()
    for node in nodes(typing.program.items):
        marked: tuple[s.Expr, ...] = ()
        if isinstance(node, s.Trigger):
            marked = (node.operand,)
        elif isinstance(node, s.Quantifier | s.AssertForall):
            marked = tuple(part for group in node.triggers for part in group)
        for part in marked:
            found.update(inner.op for inner in nodes(part) if isinstance(inner, s.Binary) and inner.op in "+-*/%")
    return frozenset(found)


def _reachability(typing: Typing) -> dict[str, frozenset[str]]:
    """For each function, the functions that it calls, directly or not."""
    direct: dict[str, set[str]] = {}
    for name, signature in typing.functions.items():
        parts = (signature.fn.body, signature.fn.requires, signature.fn.ensures, signature.fn.decreases)
        callees = (typing.callees.get(id(node)) for node in nodes(parts))
        direct[name] = {callee.name for callee in callees if callee is not None and callee.kind == "fn"}
    found = {}
    for name in direct:
        seen: set[str] = set()
        stack = list(direct[name])
        while stack:
            top = stack.pop()
            if top not in seen:
                seen.add(top)
                stack.extend(direct.get(top, ()))
        found[name] = frozenset(seen)
    return found


def value_type(local: Local, env: Env) -> Ty:
    """The type of a variable's value, references taken off."""
    return settled(substitute(strip(find(local.type)), env.types), "int")
