"""Types of operators, literals, quantifiers and other expressions that call nothing."""

from __future__ import annotations

from collections.abc import Iterable

from systems.safe import syntax as s
from systems.safe.scopes import Scopes, fits
from systems.safe.syntax import ModeProblem, TypeProblem, Unsupported
from systems.safe.types import (
    BOOL,
    CHAR,
    INT,
    INTEGERS,
    MACHINE,
    NAT,
    USIZE,
    Callee,
    Local,
    Ty,
    Type,
    Var,
    find,
    strip,
    unify,
)  # fmt: skip

_COMPARISONS = frozenset(("<", "<=", ">", ">="))


_EQUALITIES = frozenset(("==", "!=", "===", "!==", "=~=", "=~~=", "!~=", "!~~="))


class Operators(Scopes):
    """Operators, literals, quantifiers and the like: expressions that call nothing."""

    def literal(self, expr: s.Lit) -> Type:
        match expr.kind:
            case "bool":
                return BOOL
            case "char":
                return CHAR
            case "int":
                if expr.suffix:
                    if self.mode == "exec" and expr.suffix in ("int", "nat"):
                        raise ModeProblem("`int` and `nat` literals are only allowed in ghost code", expr.span)
                    if not fits(int(expr.value), expr.suffix):
                        raise TypeProblem(f"literal out of range for `{expr.suffix}`", expr.span)
                    return Ty(expr.suffix)
                return Var(integer=True)
        raise Unsupported("string literals", expr.span)

    def path(self, expr: s.Path, expected: Type | None) -> Type:
        names = expr.names
        if len(names) == 1:
            found = self.lookup(names[0])
            if found is not None:
                if self.mode == "exec" and found.mode == "spec":
                    raise ModeProblem(f"cannot use ghost variable `{found.name}` in executable code", expr.span)
                if names[0] in self.before_call and self.scopes[0].get(names[0]) is found:
                    raise TypeProblem(
                        f"in requires, use `old({names[0]})` to refer to the pre-state of an &mut variable", expr.span
                    )
                self.typing.locals[id(expr)] = found
                return found.type
            if names[0] in self.typing.constants:
                return self.typing.constants[names[0]][0]
        if len(names) == 2 and names[0] in MACHINE and names[1] in ("MIN", "MAX", "BITS"):
            return Ty(names[0]) if names[1] != "BITS" else Ty("u32")
        if names[-1] == "None" or (len(names) == 2 and names[0] in self.typing.datatypes):
            owner, fields = self.variant(names, expr.span)
            if fields:
                raise TypeProblem(f"`{'::'.join(names)}` needs arguments", expr.span)
            self.typing.callees[id(expr)] = Callee("variant", names[-1], (owner,))
            return owner
        if len(names) == 1 and names[0] in self.typing.functions:
            raise Unsupported("functions as values", expr.span)
        if len(names) == 1 and names[0] in self.typing.datatypes:
            owner, fields = self.variant(names, expr.span)
            if not fields:
                self.typing.callees[id(expr)] = Callee("variant", names[-1], (owner,))
                return owner
        raise TypeProblem(f"cannot find value `{'::'.join(names)}` in this scope", expr.span)

    def place(self, expr: s.Expr) -> Local:
        """The variable that a mutable place belongs to, checked for mutability."""
        match expr:
            case s.Path():
                local = self.typing.locals.get(id(expr))
                if local is None:
                    raise TypeProblem("cannot borrow as mutable: not a variable", expr.span)
                type_ = find(local.type)
                if isinstance(type_, Ty) and type_.name == "&mut":
                    return local
                if isinstance(type_, Ty) and type_.name == "&":
                    raise TypeProblem(
                        f"cannot borrow `*{local.name}` as mutable, as it is behind a `&` reference", expr.span
                    )
                if not local.mutable:
                    raise TypeProblem(
                        f"cannot borrow `{local.name}` as mutable, as it is not declared as mutable", expr.span
                    )
                return local
            case s.Index() | s.Field():
                return self.place(expr.receiver)
            case s.Unary(op="*"):
                return self.place(expr.operand)
        raise Unsupported("mutation of this kind of place", expr.span)

    def unary(self, expr: s.Unary, expected: Type | None) -> Type:
        match expr.op:
            case "!":
                found = strip(self.expr(expr.operand))
                if isinstance(found, Ty) and found.name in MACHINE:
                    return found
                self.coerce(found, BOOL, expr.span)
                return BOOL
            case "-":
                found = strip(self.expr(expr.operand))
                self.integer(found, expr.span)
                if self.mode == "exec":
                    if isinstance(found, Ty) and found.name.startswith("u"):
                        raise TypeProblem(f"cannot apply unary operator `-` to type `{found}`", expr.span)
                    return found
                return found if isinstance(expr.operand, s.Lit) and not expr.operand.suffix else INT
            case "*":
                found = find(self.expr(expr.operand))
                if isinstance(found, Ty) and found.name in ("&", "&mut"):
                    return found.args[0]
                raise TypeProblem(f"type `{found}` cannot be dereferenced", expr.span)
            case "&":
                hint = find(expected) if expected is not None else None
                inner = hint.args[0] if isinstance(hint, Ty) and hint.name == "&" else None
                return Ty("&", (self.expr(expr.operand, inner),))
        inner_type = self.expr(expr.operand)
        self.place(expr.operand)
        return Ty("&mut", (inner_type,))

    def binary(self, expr: s.Binary, expected: Type | None) -> Type:
        op = expr.op
        if op in ("&&", "||", "==>", "<==", "<==>", "&&&", "|||"):
            if self.mode == "exec" and op not in ("&&", "||"):
                raise ModeProblem(f"`{op}` is only allowed in ghost code", expr.span)
            self.boolean(expr.left)
            self.boolean(expr.right)
            return BOOL
        hint = expected if op in ("+", "-", "*", "/", "%") else None
        left = strip(self.expr(expr.left, hint))
        right = strip(self.expr(expr.right, hint))
        if op in _COMPARISONS:
            if CHAR in (left, right):
                if self.mode == "exec":
                    self.same(left, right, expr.right.span)
                return BOOL
            left, right = self.integer(left, expr.left.span), self.integer(right, expr.right.span)
            if self.mode == "exec":
                self.same(left, right, expr.right.span)
            return BOOL
        if op in _EQUALITIES:
            return self.equality(expr, left, right)
        left, right = self.integer(left, expr.left.span), self.integer(right, expr.right.span)
        if op in ("<<", ">>"):
            return left
        if op in ("&", "|", "^"):
            if self.mode != "exec" and isinstance(left, Ty) and left.name in ("int", "nat"):
                raise TypeProblem(f"no implementation for `{left} {op} {right}`", expr.span)
            self.same(left, right, expr.right.span)
            return left
        if self.mode == "exec":
            self.same(left, right, expr.right.span)
            return left
        if CHAR in (left, right):
            raise TypeProblem(f"no implementation for `{left} {op} {right}`", expr.span)
        if op != "-":
            natural = [part == NAT or (part_is_literal(side) and isinstance(part, Var))
                       for part, side in ((left, expr.left), (right, expr.right))]  # fmt: skip
            if all(natural) and NAT in (left, right):
                unify(left, right)
                return NAT
        if (
            part_is_literal(expr.left)
            and part_is_literal(expr.right)
            and isinstance(left, Var)
            and isinstance(right, Var)
        ):
            unify(left, right)
            unify(left, INT)
        for part, side in ((left, expr.left), (right, expr.right)):
            if isinstance(part, Var) and part_is_literal(side):
                unify(part, INT)
        return INT

    def equality(self, expr: s.Binary, left: Type, right: Type) -> Type:
        if self.mode == "exec":
            if expr.op not in ("==", "!="):
                raise ModeProblem(f"`{expr.op}` is only allowed in ghost code", expr.span)
            self.same(left, right, expr.right.span)
            shown = find(left)
            if isinstance(shown, Ty) and shown.name not in INTEGERS | {"bool", "char", "!"}:
                raise Unsupported(f"executable `{expr.op}` on `{shown}`", expr.span)
            return BOOL
        both = [find(left), find(right)]
        numeric = [part.integer if isinstance(part, Var) else part.name in INTEGERS or part == CHAR for part in both]
        if all(numeric):
            return BOOL
        if any(numeric) and any(isinstance(part, Var) for part in both):
            self.later.append((left, right, expr))
            return BOOL
        if not unify(left, right):
            raise TypeProblem(
                f"mismatched types: `{left}` and `{right}` must be compatible to use {expr.op}", expr.span
            )
        return BOOL

    def cast(self, expr: s.Cast) -> Type:
        given = strip(self.expr(expr.operand))
        target = self.any_type(expr.type)
        if not isinstance(target, Ty) or target.name not in INTEGERS | {"char", "bool"}:
            raise TypeProblem(f"non-primitive cast to `{target}`", expr.span)
        if self.mode == "exec" and target.name in ("int", "nat"):
            raise ModeProblem("casts to `int` and `nat` are only allowed in ghost code", expr.span)
        if isinstance(given, Var):
            if not given.integer:
                raise TypeProblem("type annotations needed for this cast", expr.span)
            if part_is_literal(expr.operand):
                unify(given, target if target.name in INTEGERS else Ty("u8"))
            return target
        if given.name in INTEGERS and target.name in INTEGERS:
            return target
        if given.name == "bool" and target.name in MACHINE:
            raise Unsupported("casts of `bool`", expr.span)
        if (given == CHAR and target.name in INTEGERS) or given == target:
            return target
        if target == CHAR and (given.name == "u8" or (self.mode != "exec" and given.name in INTEGERS)):
            return target
        raise TypeProblem(f"invalid cast: `{given}` as `{target}`", expr.span)

    def bind_all(self, params: Iterable[s.Param]) -> tuple[Type, ...]:
        found = []
        for param in params:
            type_: Type = self.any_type(param.type) if param.type is not None else Var()
            self.bind(param.name, type_, "spec", False, param)
            found.append(type_)
        return tuple(found)

    def quantifier(self, expr: s.Quantifier) -> Type:
        if self.mode == "exec":
            raise ModeProblem(f"`{expr.kind}` is only allowed in ghost code", expr.span)
        with self.scope(), self.in_mode("spec"):
            bound = self.bind_all(expr.params)
            for group in expr.triggers:
                for trigger in group:
                    self.expr(trigger)
            self.boolean(expr.body)
        for type_, param in zip(bound, expr.params, strict=True):
            shown = find(type_)
            if isinstance(shown, Var):
                if not shown.integer:
                    raise TypeProblem(f"type annotations needed for `{param.name}`", param.span)
                unify(shown, INT)
        if expr.kind == "choose":
            return bound[0] if len(bound) == 1 else Ty("tuple", bound)
        return BOOL

    def closure(self, expr: s.Closure, expected: Type | None) -> Type:
        if self.mode == "exec":
            raise Unsupported("executable closures", expr.span)
        hint = find(expected) if expected is not None else None
        with self.scope(), self.in_mode("spec"):
            bound = self.bind_all(expr.params)
            if isinstance(hint, Ty) and hint.name == "spec_fn" and len(hint.args) == len(bound) + 1:
                for type_, wanted, param in zip(bound, hint.args, expr.params, strict=False):
                    if not unify(type_, wanted):
                        raise TypeProblem(f"mismatched types: expected `{wanted}`, found `{type_}`", param.span)
            result = self.expr(expr.body, hint.args[-1] if isinstance(hint, Ty) and hint.name == "spec_fn" else None)
        return Ty("spec_fn", (*bound, result))

    def list_literal(self, expr: s.ListLiteral) -> Type:
        element: Type = Var()
        for item in expr.items:
            self.coerce(self.expr(item, element), element, item.span)
        if expr.kind in ("vec", "array") and self.mode != "exec":
            raise Unsupported(f"{expr.kind} literals in ghost code", expr.span)
        if expr.kind in ("seq", "set") and self.mode == "exec":
            raise ModeProblem(f"`{expr.kind}!` is only allowed in ghost code", expr.span)
        if expr.repeat is not None:
            if expr.kind != "vec":
                raise Unsupported("array repetition", expr.span)
            self.coerce(self.expr(expr.repeat), USIZE, expr.repeat.span)
        if expr.kind == "array":
            raise Unsupported("array literals", expr.span)
        return Ty({"vec": "Vec", "seq": "Seq", "set": "Set"}[expr.kind], (element,))

    def struct_literal(self, expr: s.StructLiteral) -> Type:
        owner, fields = self.variant(expr.path, expr.span)
        table = dict(fields)
        given = set()
        for name, value in expr.fields:
            if name not in table or name in given:
                raise TypeProblem(
                    f"struct `{owner.name}` has no field named `{name}` (or it is given twice)", value.span
                )
            given.add(name)
            self.coerce(self.expr(value, table[name]), table[name], value.span)
        if expr.base is not None:
            self.coerce(self.expr(expr.base), owner, expr.base.span)
        elif given != set(table):
            raise TypeProblem(f"missing fields of `{owner.name}`: {', '.join(sorted(set(table) - given))}", expr.span)
        self.typing.callees[id(expr)] = Callee("variant", expr.path[-1], (owner,))
        return owner


def part_is_literal(expr: s.Expr) -> bool:
    """Whether an unknown integer type of `expr` comes from literals alone."""
    match expr:
        case s.Lit():
            return True
        case s.Unary(op="-"):
            return part_is_literal(expr.operand)
        case s.Binary():
            return part_is_literal(expr.left) and part_is_literal(expr.right)
        case s.Trigger():
            return part_is_literal(expr.operand)
        case s.Block():
            return expr.tail is not None and part_is_literal(expr.tail)
        case s.If():
            return part_is_literal(expr.then) and expr.orelse is not None and part_is_literal(expr.orelse)
    return False
