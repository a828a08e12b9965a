"""Names, types, modes and mutability: what rustc and Verus refuse before anything is proved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from systems.safe import syntax as s
from systems.safe.syntax import ModeProblem, Span, TypeProblem, Unsupported
from systems.safe.types import (
    BOOL,
    CHAR,
    INT,
    INTEGERS,
    LISTS,
    MACHINE,
    NAT,
    NEVER,
    UNIT,
    USIZE,
    Callee,
    Local,
    Signature,
    Ty,
    Type,
    Typing,
    Var,
    find,
    strip,
    substitute,
    unify,
)  # fmt: skip
from systems.safe.vstd import GENERICS, operations

_PLAIN = MACHINE | {"int", "nat", "bool", "char", "String", "str", "!"}
_ARITY = {"Vec": 1, "Seq": 1, "Set": 1, "Map": 2, "Option": 1, "slice": 1, "array": 1}
_COMPARISONS = frozenset(("<", "<=", ">", ">="))
_EQUALITIES = frozenset(("==", "!=", "===", "!==", "=~=", "=~~=", "!~=", "!~~="))
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
_TRUST = ("external", "assume_specification", "axiom", "verifier::truncate", "verifier::assume")


def check(program: s.Program, edition: str = "current") -> Typing:
    """Resolve and type every node. Raises TypeProblem, ModeProblem or Unsupported at the first offence."""
    return _Checker(program, edition).run()


class _Checker:
    def __init__(self, program: s.Program, edition: str) -> None:
        self.edition = edition
        self.typing = Typing(program)
        self.generics: tuple[str, ...] = ()
        self.own: Ty | None = None
        self.scopes: list[dict[str, Local]] = []
        self.mode = "exec"
        self.count = 0
        self.result: Type = UNIT
        self.before_call: frozenset[str] = frozenset()
        self.loops = 0
        self.functions: list[tuple[s.Fn, tuple[str, ...], Ty | None]] = []
        self.later: list[tuple[Type, Type, s.Binary]] = []
        self.untyped: list[Var] = []

    # program

    def run(self) -> Typing:
        program = self.typing.program
        for item in program.items:
            if isinstance(item, s.Datatype):
                if item.name in self.typing.datatypes or item.name in _ARITY:
                    raise TypeProblem(f"the name `{item.name}` is defined multiple times", item.span)
                self.typing.datatypes[item.name] = item
        for item in program.items:
            self.declare(item)
        for fn, generics, own in self.functions:
            self.generics, self.own = generics, own
            self.function(self.typing.functions[self.full_name(fn, own)])
        return self.typing

    def full_name(self, fn: s.Fn, own: Ty | None) -> str:
        return f"{own.name}::{fn.name}" if own else fn.name

    def declare(self, item: s.Item) -> None:
        match item:
            case s.Fn():
                self.declare_function(item, (), None)
            case s.Impl():
                self.generics = item.generics
                own = self.type(item.type)
                for fn in item.functions:
                    self.declare_function(fn, item.generics, own)
            case s.Const():
                value = item.value
                type_ = self.type(item.type)
                if not isinstance(value, s.Lit) or value.kind != "int" or type_.name not in INTEGERS:
                    raise Unsupported("constants that are not integer literals", item.span)
                if not _fits(int(value.value), type_.name):
                    raise TypeProblem(f"literal out of range for `{type_}`", value.span)
                self.typing.constants[item.name] = (type_, int(value.value))
            case s.OtherItem():
                raise Unsupported(f"`{item.what}` items", item.span)
            case s.Use():
                if item.text.startswith("broadcast") or "broadcast use" in item.text:
                    raise Unsupported("`broadcast use`", item.span)
            case s.Datatype():
                self.generics = item.generics
                for variant in item.variants:
                    for _, type_expr in variant.fields:
                        self.type(type_expr)

    def declare_function(self, fn: s.Fn, generics: tuple[str, ...], own: Ty | None) -> None:
        name = self.full_name(fn, own)
        if name in self.typing.functions:
            raise TypeProblem(f"the name `{name}` is defined multiple times", fn.span)
        for attribute in fn.attributes:
            if any(word in attribute for word in _TRUST):
                raise Unsupported(f"trusted code: #[{attribute}]", fn.span)
            plain = attribute.split("(")[0]
            if plain.startswith("verifier") and plain not in (
                "verifier::loop_isolation", "verifier::opaque", "verifier::inline", "verifier::spinoff_prover",
                "verifier::rlimit", "verifier::exec_allows_no_decreases_clause", "verifier::integer_ring",
                "verifier::nonlinear", "verifier",
            ):  # fmt: skip
                raise Unsupported(f"attribute #[{attribute}]", fn.span)
            if plain in ("verifier::integer_ring", "verifier::nonlinear", "verifier") or plain in (
                "spec", "proof", "spec_static", "specfn",
            ):  # fmt: skip
                raise Unsupported(f"attribute #[{attribute}]", fn.span)
        if fn.mode == "axiom" or "broadcast" in fn.qualifiers:
            raise Unsupported("`axiom` and `broadcast` functions", fn.span)
        if fn.body is None and fn.mode != "spec":
            raise TypeProblem("free function without a body", fn.span)
        self.generics = (*generics, *fn.generics)
        self.own = own
        params: list[Local] = []
        for param in fn.params:
            if any(param.name == earlier.name for earlier in params):
                raise TypeProblem(
                    f"identifier `{param.name}` is bound more than once in this parameter list", param.span
                )
            assert param.type is not None
            type_ = self.type(param.type)
            if fn.mode != "exec" and type_.name == "&mut":
                raise Unsupported("`&mut` parameters of proof and spec functions", param.span)
            mode = "exec" if fn.mode == "exec" and not param.mode else "spec"
            if fn.mode == "spec" and param.mutable:
                raise ModeProblem("mutable parameters are not allowed in spec functions", param.span)
            params.append(self.local(param.name, type_, mode, param.mutable, param))
        result = self.type(fn.result[1]) if fn.result[1] is not None else UNIT
        if fn.mode == "spec" and fn.result[1] is None:
            raise TypeProblem("spec functions must return a value", fn.span)
        if fn.mode == "spec" and (fn.requires or fn.ensures):
            raise ModeProblem("spec functions cannot have requires or ensures", fn.span)
        if result.name == "&mut":
            raise Unsupported("functions that return `&mut`", fn.span)
        result_local = self.local(
            fn.result[0] or "result%", result, fn.mode if fn.mode == "exec" else "spec", False, None
        )
        signature = Signature(name, fn, self.generics, tuple(params), result, result_local)
        self.typing.functions[name] = signature
        self.functions.append((fn, self.generics, own))

    def local(self, name: str, type_: Type, mode: str, mutable: bool, node: s.Node | None) -> Local:
        self.count += 1
        found = Local(name, f"{name}~{self.count}", type_, mode, mutable)
        if node is not None:
            self.typing.locals[id(node)] = found
        return found

    def type(self, expr: s.TypeExpr, loose: bool = False) -> Ty:
        """The type that `expr` writes. `_` is a fresh variable when `loose`."""
        found = self.any_type(expr)
        assert isinstance(found, Ty) or loose
        return found  # type: ignore[return-value]

    def any_type(self, expr: s.TypeExpr) -> Type:
        if isinstance(expr, s.RefType):
            return Ty("&mut" if expr.mutable else "&", (self.any_type(expr.inner),))
        if isinstance(expr, s.FnType):
            return Ty("spec_fn", (*map(self.any_type, expr.params), self.any_type(expr.result)))
        name, args = expr.name, tuple(map(self.any_type, expr.args))
        if name == "_":
            return Var()
        if name == "Self" and self.own is not None:
            return self.own
        if name in self.generics and not args:
            return Ty(name)
        if name == "tuple":
            return Ty(name, args)
        arity = _ARITY.get(name)
        if name in _PLAIN:
            arity = 0
        elif name in self.typing.datatypes:
            arity = len(self.typing.datatypes[name].generics)
        if arity is None:
            if name in (
                "Box",
                "Rc",
                "Arc",
                "Ghost",
                "Tracked",
                "HashMap",
                "HashSet",
                "Multiset",
                "Result",
                "f32",
                "f64",
            ):
                raise Unsupported(f"type `{name}`", expr.span)
            raise TypeProblem(f"cannot find type `{name}` in this scope", expr.span)
        if len(args) != arity:
            raise TypeProblem(f"type `{name}` takes {arity} type arguments but {len(args)} were given", expr.span)
        return Ty(name, args)

    def function(self, signature: Signature) -> None:
        fn = signature.fn
        self.scopes = [{param.name: param for param in signature.params}]
        self.result = signature.result
        self.loops = 0
        references = frozenset(
            param.name for param in signature.params if isinstance(param.type, Ty) and param.type.name == "&mut"
        )
        self.mode = "spec"
        self.before_call = references
        for clause in (*fn.requires, *fn.recommends):
            self.coerce(self.expr(clause), BOOL, clause.span)
        for clause in fn.decreases:
            self.expr(clause)
        if fn.when is not None:
            self.coerce(self.expr(fn.when), BOOL, fn.when.span)
        self.before_call = frozenset()
        if fn.result[0]:
            if any(fn.result[0] == param.name for param in signature.params):
                raise TypeProblem(f"identifier `{fn.result[0]}` is bound more than once", fn.span)
            self.scopes.append({fn.result[0]: signature.result_local})
        for clause in fn.ensures:
            self.coerce(self.expr(clause), BOOL, clause.span)
        if fn.result[0]:
            self.scopes.pop()
        self.mode = fn.mode
        if fn.body is not None:
            found = self.block(fn.body, signature.result)
            self.coerce(found, signature.result, (fn.body.tail or fn.body).span)
        for variable in self.untyped:
            if isinstance(found := find(variable), Var):
                found.value = Ty("i32")
        self.untyped = []
        self.mode = "spec"
        waiting, self.later = self.later, []
        for left, right, expr in waiting:
            self.equality(expr, strip(left), strip(right))
        self.later = []

    # scopes

    @contextmanager
    def scope(self) -> Iterator[None]:
        self.scopes.append({})
        yield
        self.scopes.pop()

    @contextmanager
    def in_mode(self, mode: str) -> Iterator[None]:
        before, self.mode = self.mode, mode
        yield
        self.mode = before

    def bind(self, name: str, type_: Type, mode: str, mutable: bool, node: s.Node) -> None:
        found = self.local(name, type_, mode, mutable, node)
        if name != "_":
            self.scopes[-1][name] = found

    def lookup(self, name: str) -> Local | None:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return None

    def coerce(self, given: Type, expected: Type, span: Span) -> None:
        """Rust's coercions at a typed place: `&mut T` to `&T`, through further references, a Vec to a slice."""
        given, expected = find(given), find(expected)
        if isinstance(given, Ty) and given.name == "!":
            return
        if isinstance(expected, Ty) and expected.name == "&" and isinstance(given, Ty) and given.name in ("&", "&mut"):
            inner, wanted = strip(given), strip(expected)
            if (
                isinstance(inner, Ty)
                and isinstance(wanted, Ty)
                and wanted.name == "slice"
                and inner.name in ("Vec", "array")
            ):
                raise Unsupported("coercion of a vector or an array to a slice", span)
            if unify(inner, wanted):
                return
        elif unify(given, expected):
            return
        raise TypeProblem(f"mismatched types: expected `{expected}`, found `{given}`", span)

    # statements

    def block(self, block: s.Block, expected: Type | None = None) -> Type:
        with self.scope():
            diverges = False
            for statement in block.statements:
                diverges = self.statement(statement) or diverges
            value = self.expr(block.tail, expected) if block.tail is not None else UNIT
            found = NEVER if diverges and block.tail is None else value
        return self.note(block, found)

    def statement(self, statement: s.Statement) -> bool:
        """Whether control never passes it."""
        if isinstance(statement, s.ItemStatement):
            raise Unsupported("items inside functions", statement.span)
        if isinstance(statement, s.Let):
            self.let(statement)
            return False
        expr = statement.expr
        found = find(self.expr(expr, UNIT if isinstance(expr, s.If | s.Match | s.Block) else None))
        if isinstance(expr, s.If | s.Match) and not (isinstance(found, Ty) and found in (UNIT, NEVER)):
            self.coerce(found, UNIT, expr.span)
        return isinstance(found, Ty) and found == NEVER

    def let(self, let: s.Let) -> None:
        if let.orelse is not None:
            raise Unsupported("`let ... else`", let.span)
        if self.mode == "spec" and isinstance(let.pattern, s.Bind) and let.pattern.mutable:
            raise ModeProblem("`let mut` is not allowed in spec code", let.span)
        ghost = bool(let.ghost) or self.mode != "exec"
        mode = "spec" if ghost else "exec"
        expected = self.any_type(let.type) if let.type is not None else None
        inner = "proof" if let.ghost and self.mode == "exec" else self.mode
        if let.value is not None:
            with self.in_mode(inner):
                found = self.expr(let.value, expected)
            if expected is not None:
                self.coerce(found, expected, let.value.span)
                found = expected
        else:
            found = expected if expected is not None else Var()
        shown = find(found)
        if not ghost and isinstance(shown, Ty):
            if shown.name == "&mut":
                raise Unsupported("local `&mut` references", let.span)
            if shown.name in ("int", "nat", "Seq", "Set", "Map"):
                raise ModeProblem(f"`{shown}` values are only allowed in ghost variables", let.span)
        self.pattern(let.pattern, found, mode, let.value is None)

    def pattern(self, pattern: s.Pattern, type_: Type, mode: str, uninitialised: bool = False) -> None:
        self.typing.types[id(pattern)] = type_
        match pattern:
            case s.Bind():
                self.bind(pattern.name, type_, mode, pattern.mutable or uninitialised, pattern)
            case s.TuplePattern():
                parts: tuple[Type, ...] = tuple(Var() for _ in pattern.items)
                if not unify(strip(type_), Ty("tuple", parts)):
                    raise TypeProblem(f"mismatched types: expected `{type_}`, found a tuple pattern", pattern.span)
                for item, part in zip(pattern.items, parts, strict=True):
                    self.pattern(item, part, mode)
            case s.VariantPattern():
                owner, fields = self.variant(pattern.path, pattern.span)
                if not unify(strip(type_), owner):
                    raise TypeProblem(f"mismatched types: expected `{type_}`, found `{owner}`", pattern.span)
                self.typing.callees[id(pattern)] = Callee("variant", pattern.path[-1], (owner,))
                names = pattern.fields
                if names is None:
                    if len(pattern.items) != len(fields):
                        raise TypeProblem(
                            f"this pattern has {len(pattern.items)} fields, expected {len(fields)}", pattern.span
                        )
                    names = tuple(str(number) for number in range(len(fields)))
                table = dict(fields)
                for name, item in zip(names, pattern.items, strict=True):
                    if name not in table:
                        raise TypeProblem(f"`{pattern.path[-1]}` has no field `{name}`", pattern.span)
                    self.pattern(item, table[name], mode)
            case s.LiteralPattern():
                self.coerce(self.expr(pattern.value), strip(type_), pattern.span)

    def variant(self, path: tuple[str, ...], span: Span) -> tuple[Ty, tuple[tuple[str, Type], ...]]:
        """The type that a constructor makes, with fresh arguments, and its fields."""
        name = path[-1]
        if name in ("Some", "None") and path[:-1] in ((), ("Option",)):
            inner = Var()
            return Ty("Option", (inner,)), ((("0", inner),) if name == "Some" else ())
        for datatype in self.typing.datatypes.values():
            owner = path[-2] if len(path) > 1 else None
            if datatype.is_enum and owner not in (datatype.name, "Self" if self.own else datatype.name):
                continue
            for variant in datatype.variants:
                wanted = name if datatype.is_enum or name != "Self" or self.own is None else self.own.name
                if variant.name == wanted and (datatype.is_enum or len(path) == 1):
                    types: dict[str, Type] = {generic: Var() for generic in datatype.generics}
                    before, self.generics = self.generics, datatype.generics
                    fields = tuple((field, substitute(self.type(type_), types)) for field, type_ in variant.fields)
                    self.generics = before
                    return Ty(datatype.name, tuple(types.values())), fields
        raise TypeProblem(f"cannot find `{'::'.join(path)}` in this scope", span)

    # expressions

    def note(self, expr: s.Expr, type_: Type) -> Type:
        self.typing.types[id(expr)] = type_
        if self.mode == "exec" and isinstance(found := find(type_), Var) and found.integer:
            self.untyped.append(found)
        return type_

    def expr(self, expr: s.Expr, expected: Type | None = None) -> Type:
        return self.note(expr, self.infer(expr, expected))

    def boolean(self, expr: s.Expr) -> None:
        self.coerce(self.expr(expr), BOOL, expr.span)

    def infer(self, expr: s.Expr, expected: Type | None) -> Type:
        match expr:
            case s.Lit():
                return self.literal(expr)
            case s.Path():
                return self.path(expr, expected)
            case s.Unary():
                return self.unary(expr, expected)
            case s.Binary():
                return self.binary(expr, expected)
            case s.Chain():
                kinds = [self.expr(operand) for operand in expr.operands]
                if self.mode == "exec":
                    raise TypeProblem("comparison operators cannot be chained", expr.span)
                for kind, operand in zip(kinds, expr.operands, strict=True):
                    self.integer(kind, operand.span)
                return BOOL
            case s.Cast():
                return self.cast(expr)
            case s.Call():
                return self.call(expr, expected)
            case s.Method():
                return self.method(expr, expected)
            case s.Field():
                return self.field(expr)
            case s.Index():
                return self.index(expr)
            case s.View():
                return self.view(expr)
            case s.Is():
                if self.mode == "exec":
                    raise ModeProblem("`is` and `matches` are only allowed in ghost code", expr.span)
                if expr.binds:
                    raise Unsupported("`matches`", expr.span)
                subject = self.expr(expr.operand)
                if not isinstance(expr.pattern, s.VariantPattern) or expr.pattern.items:
                    raise TypeProblem("expected a variant after `is`", expr.span)
                path = expr.pattern.path
                shown = strip(subject)
                if len(path) == 1 and isinstance(shown, Ty) and shown.name in self.typing.datatypes:
                    path = (shown.name, *path)
                owner, _ = self.variant(path, expr.span)
                if not unify(shown, owner):
                    raise TypeProblem(f"mismatched types: expected `{subject}`, found `{owner}`", expr.span)
                self.typing.callees[id(expr)] = Callee("variant", path[-1], (owner,))
                return BOOL
            case s.If():
                return self.conditional(expr, expected)
            case s.Match():
                subject = self.expr(expr.subject)
                result: Type = NEVER
                for arm in expr.arms:
                    with self.scope():
                        self.pattern(arm.pattern, subject, "exec" if self.mode == "exec" else "spec")
                        if arm.guard is not None:
                            self.boolean(arm.guard)
                        found = self.expr(arm.body, expected)
                        result = self.join(result, found, arm.body.span)
                return result
            case s.Block():
                return self.block(expr, expected)
            case s.Quantifier():
                return self.quantifier(expr)
            case s.Closure():
                return self.closure(expr, expected)
            case s.Tuple():
                wanted = strip(expected) if expected is not None else None
                hints: Sequence[Type | None] = [None] * len(expr.items)
                if isinstance(wanted, Ty) and wanted.name == "tuple" and len(wanted.args) == len(expr.items):
                    hints = wanted.args
                return Ty("tuple", tuple(self.expr(item, hint) for item, hint in zip(expr.items, hints, strict=True)))
            case s.ListLiteral():
                return self.list_literal(expr)
            case s.StructLiteral():
                return self.struct_literal(expr)
            case s.Trigger():
                if self.mode == "exec":
                    raise ModeProblem("`#[trigger]` is only allowed in ghost code", expr.span)
                return self.expr(expr.operand, expected)
            case _:
                return self.infer_statement(expr, expected)

    def infer_statement(self, expr: s.Expr, expected: Type | None) -> Type:
        if self.mode == "spec" and not isinstance(expr, s.LetCondition | s.Range | s.Try | s.MacroCall):
            raise ModeProblem("statements are not allowed in spec code", expr.span)
        match expr:
            case s.Return():
                if self.mode == "proof":
                    raise Unsupported("`return` in proof code", expr.span)
                found = self.expr(expr.value, self.result) if expr.value is not None else UNIT
                self.coerce(found, self.result, expr.span)
                return NEVER
            case s.Break() | s.Continue():
                if not self.loops:
                    raise TypeProblem("`break` and `continue` are only allowed inside a loop", expr.span)
                if expr.label:
                    raise Unsupported("labelled `break` and `continue`", expr.span)
                return NEVER
            case s.Assert():
                with self.in_mode("spec"):
                    self.boolean(expr.condition)
                    for clause in expr.requires:
                        self.boolean(clause)
                if expr.body is not None:
                    with self.in_mode("proof"):
                        self.block(expr.body)
                return UNIT
            case s.AssertForall():
                with self.scope():
                    with self.in_mode("spec"):
                        self.bind_all(expr.params)
                        for group in expr.triggers:
                            for trigger in group:
                                self.expr(trigger)
                        if expr.premise is not None:
                            self.boolean(expr.premise)
                        self.boolean(expr.conclusion)
                    with self.in_mode("proof"):
                        self.block(expr.body)
                return UNIT
            case s.Assume():
                if expr.condition is not None:
                    with self.in_mode("spec"):
                        self.boolean(expr.condition)
                return UNIT
            case s.Reveal():
                name = expr.path[-1]
                if len(expr.path) == 1 and (signature := self.typing.functions.get(name)) is not None:
                    if signature.mode != "spec":
                        raise ModeProblem("reveal/fuel statements require a spec-mode function", expr.span)
                elif expr.path[-2:] != ("Seq", "filter") and "::".join(expr.path) not in self.typing.functions:
                    if ".".join(expr.path) in operations():
                        return UNIT
                    raise TypeProblem(f"cannot find function `{'::'.join(expr.path)}` in this scope", expr.span)
                return UNIT
            case s.ProofBlock():
                with self.in_mode("proof"):
                    self.block(expr.body)
                return UNIT
            case s.While():
                return self.loop(expr)
            case s.For():
                return self.for_loop(expr)
            case s.Assign():
                return self.assign(expr)
            case s.MacroCall():
                if expr.name in (
                    "panic",
                    "unreachable",
                    "unimplemented",
                    "todo",
                    "assert",
                    "assert_eq",
                    "println",
                    "calc",
                ):
                    raise Unsupported(f"`{expr.name}!`", expr.span)
                raise TypeProblem(f"cannot find macro `{expr.name}` in this scope", expr.span)
            case s.Range():
                raise Unsupported("ranges outside `for`", expr.span)
            case s.Try():
                raise Unsupported("`?`", expr.span)
        raise Unsupported(type(expr).__name__, expr.span)

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
                    if not _fits(int(expr.value), expr.suffix):
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

    def unary(self, expr: s.Unary, expected: Type | None) -> Type:
        match expr.op:
            case "!":
                found = strip(self.expr(expr.operand))
                if isinstance(found, Ty) and found.name in MACHINE:
                    raise Unsupported("bitwise `!`", expr.span)
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

    def integer(self, type_: Type, span: Span, what: str = "integer") -> Type:
        found = strip(type_)
        if isinstance(found, Var):
            if not found.integer and not unify(found, Var(integer=True)):
                raise TypeProblem(f"expected {what}", span)
            return find(found)
        if found.name == "!":
            return found
        if found.name not in INTEGERS and not (found.name == "char" and self.mode != "exec"):
            raise TypeProblem(f"mismatched types: expected an integer, found `{found}`", span)
        return found

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

    def same(self, left: Type, right: Type, span: Span) -> None:
        if NEVER in (find(left), find(right)):
            return
        if not unify(left, right):
            raise TypeProblem(f"mismatched types: expected `{left}`, found `{right}`", span)

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

    def conditional(self, expr: s.If, expected: Type | None) -> Type:
        with self.scope():
            if isinstance(expr.condition, s.LetCondition):
                subject = self.expr(expr.condition.value)
                self.pattern(expr.condition.pattern, subject, "exec" if self.mode == "exec" else "spec")
            else:
                self.boolean(expr.condition)
            then = self.block(expr.then, expected)
        if expr.orelse is None:
            if self.mode == "spec":
                raise TypeProblem("`if` may be missing an `else` clause", expr.span)
            self.coerce(then, UNIT, expr.then.span)
            return UNIT
        orelse = self.expr(expr.orelse, expected)
        return self.join(then, orelse, expr.orelse.span)

    def join(self, one: Type, other: Type, span: Span) -> Type:
        if find(one) == NEVER:
            return other
        if find(other) == NEVER:
            return one
        if not unify(one, other):
            raise TypeProblem(f"`if` and `else` have incompatible types: expected `{one}`, found `{other}`", span)
        return one

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

    # calls

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
        if len(names) > 1 and names[0] not in _ARITY and names[0] not in MACHINE:
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

    # loops and assignment

    def loop(self, expr: s.While) -> Type:
        if self.mode != "exec":
            raise ModeProblem("loops are only allowed in executable code", expr.span)
        if isinstance(expr.condition, s.LetCondition):
            raise Unsupported("`while let`", expr.span)
        if expr.label:
            raise Unsupported("loop labels", expr.span)
        if expr.condition is not None:
            self.boolean(expr.condition)
        self.loop_spec(expr.spec)
        self.loops += 1
        found = self.block(expr.body, UNIT)
        self.coerce(found, UNIT, expr.body.span)
        self.loops -= 1
        if expr.condition is None and not contains_break(expr.body):
            return NEVER
        return UNIT

    def loop_spec(self, spec: s.LoopSpec) -> None:
        with self.in_mode("spec"):
            for clause in (*spec.invariant, *spec.invariant_except_break, *spec.ensures):
                self.boolean(clause)
            for clause in spec.decreases:
                self.expr(clause)

    def for_loop(self, expr: s.For) -> Type:
        if self.mode != "exec":
            raise ModeProblem("loops are only allowed in executable code", expr.span)
        iterator = expr.iterator
        if not isinstance(iterator, s.Range) or iterator.inclusive or iterator.low is None or iterator.high is None:
            raise Unsupported("`for` over anything but a half-open range", expr.span)
        low, high = self.expr(iterator.low), self.expr(iterator.high)
        self.same(low, high, iterator.span)
        self.integer(low, iterator.span)
        with self.scope():
            self.bind(expr.name, low, "exec", False, expr)
            self.loop_spec(expr.spec)
            self.loops += 1
            self.coerce(self.block(expr.body, UNIT), UNIT, expr.body.span)
            self.loops -= 1
        return UNIT

    def assign(self, expr: s.Assign) -> Type:
        target = self.expr(expr.target)
        local = self.assignable(expr.target)
        if self.mode == "proof" and local.mode == "exec":
            raise ModeProblem(f"cannot assign to exec variable `{local.name}` from proof mode", expr.span)
        shown = find(target)
        if isinstance(expr.target, s.Path) and isinstance(shown, Ty) and shown.name == "&mut":
            raise TypeProblem(f"mismatched types: assign through `*{local.name}`", expr.span)
        if expr.op == "=":
            self.coerce(self.expr(expr.value, target), target, expr.value.span)
            return UNIT
        operator = s.Binary(expr.op[:-1], expr.target, expr.value, span=expr.span)
        found = self.binary(operator, None)
        self.coerce(found, strip(target), expr.value.span)
        return UNIT

    def assignable(self, expr: s.Expr) -> Local:
        if isinstance(expr, s.Index) and self.mode == "proof":
            raise TypeProblem("cannot assign to an element in proof code", expr.span)
        return self.place(expr)


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


def contains_break(node: object) -> bool:
    """Whether a `break` belongs to the loop whose body `node` is."""
    if isinstance(node, s.Break):
        return True
    if isinstance(node, s.While | s.For):
        return False
    if isinstance(node, tuple):
        return any(map(contains_break, node))
    if isinstance(node, s.Node):
        return any(contains_break(getattr(node, name)) for name in node.__dataclass_fields__ if name != "span")
    return False


def _fits(value: int, type_: str) -> bool:
    if type_ == "int":
        return True
    if type_ == "nat":
        return value >= 0
    bits = 64 if type_.endswith("size") else int(type_[1:])
    return value < 2 ** (bits - (type_[0] == "i")) if value >= 0 else type_[0] == "i" and value >= -(2 ** (bits - 1))
