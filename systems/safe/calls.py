"""Types and modes of calls, of library operations, and of the places that both may change."""

from __future__ import annotations

from collections.abc import Sequence

from systems.safe import syntax as s
from systems.safe.operators import Operators
from systems.safe.scopes import ARITY
from systems.safe.syntax import ModeProblem, Span, TypeProblem, Unsupported
from systems.safe.types import (
    CHAR,
    INT,
    LISTS,
    MACHINE,
    UNIT,
    USIZE,
    Callee,
    Local,
    Signature,
    Ty,
    Type,
    Var,
    find,
    strip,
    substitute,
    unify,
)  # fmt: skip
from systems.safe.vstd import GENERICS, operations

_RUST_ONLY = frozenset(
    [
        "iter",
        "clone",
        "sort",
        "extend",
        "append",
        "contains",
        "is_empty",
        "first",
        "last",
        "capacity",
        "reserve",
        "iter_mut",
        "into_iter",
        "get",
        "get_mut",
        "swap",
        "split_at",
        "chars",
        "as_bytes",
        "to_string",
    ]
)


"""Methods that Rust has on library types and this verifier does not read."""


class Calls(Operators):
    """Calls, and the places that they may change."""

    def arguments(self, args: Sequence[s.Expr], params: Sequence[Type], span: Span) -> None:
        if len(args) != len(params):
            raise TypeProblem(f"this function takes {len(params)} arguments but {len(args)} were supplied", span)
        for arg, param in zip(args, params, strict=True):
            self.coerce(self.expr(arg, param), param, arg.span)

    def call(self, expr: s.Call, expected: Type | None) -> Type:
        function = expr.function
        if not isinstance(function, s.Path):
            found = find(self.expr(function))
            return self.apply(expr, found)
        names = function.names
        if len(names) == 1:
            local = self.lookup(names[0])
            if local is not None:
                return self.apply(expr, find(self.expr(function)))
            if names[0] in ("old", "final"):
                return self.old(expr, names[0])
            if names[0] == "arbitrary":
                raise Unsupported(f"`{names[0]}`", expr.span)
            if names[0] in ("Ghost", "Tracked"):
                raise Unsupported(f"`{names[0]}(...)` expressions", expr.span)
        if names[-1] == "Some" or (
            len(names) <= 2 and "::".join(names) not in self.typing.functions
            and (names[0] in self.typing.datatypes) and names[0] not in self.typing.functions
        ):  # fmt: skip
            owner, fields = self.variant(names, expr.span)
            hint = find(expected) if expected is not None else None
            if isinstance(hint, Ty) and hint.name == owner.name:
                unify(owner, hint)
            self.arguments(expr.args, [type_ for _, type_ in fields], expr.span)
            self.typing.callees[id(expr)] = Callee("variant", names[-1], (owner,))
            return owner
        own_name = self.own.name if self.own is not None else ""
        full = "::".join(own_name if name == "Self" else name for name in names)
        signature = self.typing.functions.get(full)
        if signature is not None:
            return self.call_signature(expr, signature, expr.args, function.generics, None)
        operation = operations().get(".".join(names[-2:]))
        if operation is not None:
            return self.call_operation(expr, operation.name, None, expr.args, expected, function.generics)
        if len(names) > 1 and names[0] not in ARITY and names[0] not in MACHINE:
            raise TypeProblem(f"failed to resolve: use of undeclared type `{names[0]}`", expr.span)
        if len(names) > 1 and names[0] in MACHINE:
            raise Unsupported(f"`{full}`", expr.span)
        raise TypeProblem(f"cannot find function `{full}` in this scope", expr.span)

    def apply(self, expr: s.Call, found: Type) -> Type:
        if not isinstance(found, Ty) or found.name != "spec_fn":
            raise TypeProblem(f"expected function, found `{found}`", expr.span)
        if self.mode == "exec":
            raise ModeProblem("spec closures cannot be called in executable code", expr.span)
        self.arguments(expr.args, found.args[:-1], expr.span)
        self.typing.callees[id(expr)] = Callee("apply", "", (found,))
        return found.args[-1]

    def old(self, expr: s.Call, which: str) -> Type:
        if self.mode == "exec":
            raise ModeProblem(f"`{which}` is only allowed in ghost code", expr.span)
        if which == "final" and self.edition == "2024-08":
            raise TypeProblem("cannot find function `final` in this scope", expr.span)
        if len(expr.args) != 1 or not isinstance(expr.args[0], s.Path) or len(expr.args[0].names) != 1:
            raise TypeProblem(f"`{which}` takes a variable", expr.span)
        local = self.scopes[0].get(expr.args[0].names[0])
        if local is None or self.lookup(local.name) is not local:
            raise TypeProblem(f"`{which}` takes a `&mut` parameter of the function", expr.span)
        if not isinstance(local.type, Ty) or local.type.name != "&mut":
            raise TypeProblem(f"a variable of type `&mut` is required inside `{which}`", expr.span)
        self.typing.locals[id(expr.args[0])] = local
        self.note(expr.args[0], local.type)
        self.typing.callees[id(expr)] = Callee(which, local.unique)
        return local.type

    def call_signature(
        self, expr: s.Call | s.Method, signature: Signature, args: Sequence[s.Expr],
        generics: tuple[s.TypeExpr, ...], receiver: Type | None,
    ) -> Type:  # fmt: skip
        if signature.mode == "exec" and self.mode != "exec":
            raise ModeProblem(f"cannot call function `{signature.name}` with mode exec", expr.span)
        if signature.mode == "proof" and self.mode != "proof":
            raise ModeProblem(f"cannot call function `{signature.name}` with mode proof", expr.span)
        if signature.mode == "spec" and self.mode == "exec":
            raise ModeProblem(f"cannot call function `{signature.name}` with mode spec", expr.span)
        types: dict[str, Type] = {generic: Var() for generic in signature.generics}
        if generics:
            for generic, given in zip(signature.fn.generics, generics, strict=False):
                types[generic] = self.any_type(given)
        params = [substitute(param.type, types) for param in signature.params]
        if receiver is not None:
            first = params.pop(0)
            if not unify(strip(receiver), strip(first)):
                raise TypeProblem(f"mismatched types: expected `{first}`, found `{receiver}`", expr.span)
            if isinstance(first, Ty) and first.name == "&mut" and isinstance(expr, s.Method):
                self.place(expr.receiver)
        with self.in_mode("exec" if signature.mode == "exec" else "spec"):
            self.arguments(args, params, expr.span)
        if signature.mode == "exec":
            self.borrows(expr, signature, args)
        self.typing.callees[id(expr)] = Callee("fn", signature.name, tuple(types.values()))
        return substitute(signature.result, types)

    def borrows(self, expr: s.Call | s.Method, signature: Signature, args: Sequence[s.Expr]) -> None:
        """A variable that a call may change is given to it once."""
        given = [*([expr.receiver] if isinstance(expr, s.Method) else []), *args]
        roots: list[tuple[Local, bool]] = []
        for arg, param in zip(given, signature.params, strict=True):
            place = arg.operand if isinstance(arg, s.Unary) and arg.op in ("&", "&mut") else arg
            while isinstance(place, s.Index | s.Field):
                place = place.receiver
            type_ = find(param.type)
            local = self.typing.locals.get(id(place))
            if local is not None and isinstance(type_, Ty) and type_.name in ("&", "&mut"):
                roots.append((local, type_.name == "&mut"))
        for place_, (local, mutable) in enumerate(roots):
            if mutable and any(other is local for at, (other, _) in enumerate(roots) if at != place_):
                raise TypeProblem(f"cannot borrow `{local.name}` as mutable more than once at a time", expr.span)

    def method(self, expr: s.Method, expected: Type | None) -> Type:
        receiver = self.expr(expr.receiver)
        shown = strip(receiver)
        if isinstance(shown, Var):
            if shown.integer:
                raise TypeProblem(f"no method named `{expr.name}` found for type `{shown}`", expr.span)
            raise TypeProblem("type annotations needed before a method call", expr.span)
        signature = self.typing.functions.get(f"{shown.name}::{expr.name}")
        if signature is not None and signature.params and signature.params[0].name == "self":
            return self.call_signature(expr, signature, expr.args, expr.generics, receiver)
        name = f"{shown.name}.{expr.name}"
        if name not in operations():
            if shown.name in LISTS | {"String", "str", "Option"} and self.mode == "exec" and expr.name in _RUST_ONLY:
                raise Unsupported(f"`{name}` in executable code", expr.span)
            raise TypeProblem(f"no method named `{expr.name}` found for type `{shown}`", expr.span)
        return self.call_operation(expr, name, receiver, expr.args, expected, expr.generics)

    def call_operation(
        self, expr: s.Call | s.Method, name: str, receiver: Type | None, args: Sequence[s.Expr],
        expected: Type | None, generics: tuple[s.TypeExpr, ...],
    ) -> Type:  # fmt: skip
        operation = operations()[name]
        side = "exec" if self.mode == "exec" else "spec"
        if side not in operation.modes:
            raise ModeProblem(
                f"cannot call function `{name}` with mode {'spec' if side == 'exec' else 'exec'}", expr.span
            )
        types: dict[str, Type] = {generic: Var() for generic in sorted(GENERICS)}
        before, self.generics = self.generics, tuple(GENERICS)
        owner = substitute(self.any_type(operation.owner), types)
        params = [substitute(self.any_type(param), types) for param in operation.params]
        result: Type = UNIT if operation.result is None else substitute(self.any_type(operation.result), types)
        self.generics = before
        assert isinstance(owner, Ty)
        if generics and not isinstance(expr, s.Method):
            for given, wanted in zip(generics, owner.args, strict=False):
                unify(self.any_type(given), wanted)
        args = list(args)
        if receiver is None and operation.receiver:
            if not args:
                raise TypeProblem(f"`{name}` needs a receiver", expr.span)
            receiver = self.expr(args.pop(0))
            if not unify(strip(receiver), owner):
                raise TypeProblem(f"mismatched types: expected `{owner}`, found `{receiver}`", expr.span)
        if receiver is not None:
            if not unify(strip(receiver), owner):
                raise TypeProblem(f"mismatched types: expected `{owner}`, found `{receiver}`", expr.span)
            if not operation.receiver:
                raise TypeProblem(f"`{name}` is an associated function, not a method", expr.span)
            if operation.receiver == "&mut":
                if not isinstance(expr, s.Method):
                    raise Unsupported(f"`{name}` called as a function", expr.span)
                self.place(expr.receiver)
        if expected is not None and isinstance(find(expected), Ty) and not operation.receiver:
            unify(result, expected)
        self.arguments(args, params, expr.span)
        self.typing.callees[id(expr)] = Callee("operation", name, (owner, *types.values()))
        return result

    def field(self, expr: s.Field) -> Type:
        receiver = self.expr(expr.receiver)
        shown = strip(receiver)
        if isinstance(shown, Ty) and shown.name == "tuple" and expr.name.isdigit():
            if int(expr.name) < len(shown.args):
                return shown.args[int(expr.name)]
        elif isinstance(shown, Ty) and shown.name in self.typing.datatypes:
            datatype = self.typing.datatypes[shown.name]
            if not datatype.is_enum:
                owner, fields = self.variant((datatype.name,), expr.span)
                unify(owner, shown)
                if expr.name in dict(fields):
                    return dict(fields)[expr.name]
        raise TypeProblem(f"no field `{expr.name}` on type `{shown}`", expr.span)

    def index(self, expr: s.Index) -> Type:
        receiver = strip(self.expr(expr.receiver))
        if isinstance(expr.index, s.Range):
            raise Unsupported("range indices", expr.span)
        index = self.expr(expr.index)
        if not isinstance(receiver, Ty) or receiver.name not in LISTS | {"Seq", "Map"}:
            raise TypeProblem(f"cannot index into a value of type `{receiver}`", expr.span)
        if self.mode == "exec":
            if receiver.name not in LISTS:
                raise ModeProblem(f"cannot index a `{receiver}` in executable code", expr.span)
            self.coerce(index, USIZE, expr.index.span)
        elif receiver.name == "Map":
            self.coerce(index, receiver.args[0], expr.index.span)
            return receiver.args[1]
        else:
            self.coerce(index, INT, expr.index.span)
        return receiver.args[0]

    def view(self, expr: s.View) -> Type:
        if self.mode == "exec":
            raise ModeProblem("cannot call `view` (`@`) in executable code", expr.span)
        shown = strip(self.expr(expr.operand))
        if isinstance(shown, Ty):
            if shown.name in LISTS:
                return Ty("Seq", shown.args)
            if shown.name in ("String", "str"):
                return Ty("Seq", (CHAR,))
        raise TypeProblem(f"no method named `view` found for type `{shown}`", expr.span)
