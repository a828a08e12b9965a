"""What the solver is told about types and the standard library, instance by instance and only where a program uses it.

Every machine integer is a mathematical one within its range; collections are uninterpreted sorts with axioms whose
triggers decide what can be proved. An axiom that gives an element its value holds only for values of the element's
type, because every element is said to be within its range: without that guard the axioms would be inconsistent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from systems.safe.syntax import NOWHERE, Datatype, Unsupported
from systems.safe.terms import FALSE, TRUE, Term, conj, disj, forall, implies, negate, number, show
from systems.safe.types import LISTS, SIGNED, UNSIGNED, Ty

Variants: TypeAlias = Callable[[Datatype, Ty], list[tuple[str, list[Ty]]]]
"""Constructors of a data type with their fields' types at an instance of it."""
OPTIONS = """\
(set-option :auto_config false)
(set-option :smt.mbqi false)
(set-option :smt.case_split 3)
(set-option :smt.qi.eager_threshold 100.0)
(set-option :smt.delay_units true)
(set-option :smt.arith.solver 2)
(set-option :smt.arith.nl false)
(set-option :pi.enabled false)
(set-option :rewriter.sort_disjunctions false)
(set-option :smt.random_seed 0)
"""
"""The profile that Verus gives Z3."""

_PRELUDE = """\
(declare-const usize.max Int)
(assert (or (= usize.max 4294967295) (= usize.max 18446744073709551615)))
(declare-const isize.max Int)
(assert (= usize.max (+ (* 2 isize.max) 1)))
(declare-sort Fuel 0)
(declare-const fuel.zero Fuel)
(declare-fun fuel.succ (Fuel) Fuel)
(declare-fun Add (Int Int) Int)
(declare-fun Sub (Int Int) Int)
(declare-fun Mul (Int Int) Int)
(declare-fun EucDiv (Int Int) Int)
(declare-fun EucMod (Int Int) Int)
(assert (forall ((x Int) (y Int)) (! (= (Add x y) (+ x y)) :pattern ((Add x y)))))
(assert (forall ((x Int) (y Int)) (! (= (Sub x y) (- x y)) :pattern ((Sub x y)))))
(assert (forall ((x Int) (y Int)) (! (= (Mul x y) (* x y)) :pattern ((Mul x y)))))
(assert (forall ((x Int) (y Int)) (! (=> (not (= y 0)) (= (EucDiv x y) (div x y))) :pattern ((EucDiv x y)))))
(assert (forall ((x Int) (y Int)) (! (=> (not (= y 0)) (= (EucMod x y) (mod x y))) :pattern ((EucMod x y)))))
(assert (forall ((x Int) (y Int)) (! (=> (and (<= 0 x) (<= 0 y)) (<= 0 (Mul x y))) :pattern ((Mul x y)))))
(assert (forall ((x Int) (y Int))
  (! (=> (and (<= 0 x) (< 0 y)) (and (<= 0 (EucDiv x y)) (<= (EucDiv x y) x))) :pattern ((EucDiv x y)))))
(assert (forall ((x Int) (y Int))
  (! (=> (and (<= 0 x) (< 0 y)) (and (<= 0 (EucMod x y)) (< (EucMod x y) y))) :pattern ((EucMod x y)))))
"""
_BITS = {"&": "and", "|": "or", "^": "xor", "<<": "shl", ">>": "shr"}
_OPERATORS = {"+": "Add", "-": "Sub", "*": "Mul", "/": "EucDiv", "%": "EucMod"}
_PLAIN = {"+": "+", "-": "-", "*": "*", "/": "div", "%": "mod"}


def bounds(name: str) -> tuple[Term, Term | None]:
    """Least and greatest value of an integer type that has a least one."""
    if name == "nat":
        return "0", None
    if name == "usize":
        return "0", "usize.max"
    if name == "isize":
        return ("-", ("-", "isize.max"), "1"), "isize.max"
    if name in UNSIGNED:
        return "0", number(2 ** UNSIGNED[name] - 1)
    return number(-(2 ** (SIGNED[name] - 1))), number(2 ** (SIGNED[name] - 1) - 1)


def opposite(type_: Ty, term: Term) -> Term:
    """`!` of a boolean, or of a machine integer: every bit turned mirrors the numbers of the type."""
    if type_.name not in SIGNED and type_.name not in UNSIGNED and type_.name not in ("usize", "isize"):
        return negate(term)
    low, high = bounds(type_.name)
    assert high is not None
    return ("-", ("+", low, high), term)


class Theory:
    """The declarations and axioms that one program needs, in order. Asking for a sort or an operation adds it."""

    def __init__(
        self, datatypes: Mapping[str, Datatype], variants: Variants, trigger_operators: frozenset[str] = frozenset()
    ) -> None:
        self.lines: list[str] = [_PRELUDE]
        self.datatypes = datatypes
        self.variants = variants
        self.trigger_operators = trigger_operators
        self.definitions: dict[int, str] = {}
        """For the lines that define a recursive function, its name."""
        self._known: set[str] = set()

    def once(self, key: str) -> bool:
        """Whether `key` is asked for the first time."""
        if key in self._known:
            return False
        self._known.add(key)
        return True

    def axiom(self, binders: Sequence[tuple[str, str]], body: Term, *triggers: Sequence[Term]) -> None:
        if body != TRUE:
            self.lines.append(f"(assert {show(forall(binders, body, triggers))})")

    def without(self, names: frozenset[str]) -> list[str]:
        """The lines but the definitions of some recursive functions: their termination may not rest on them."""
        return [line for place, line in enumerate(self.lines) if self.definitions.get(place) not in names]

    def function(self, name: str, params: Sequence[str], result: str) -> str:
        self.lines.append(f"(declare-fun {name} ({' '.join(params)}) {result})")
        return name

    # types

    def code(self, type_: Ty) -> str:
        """A name for the type within SMT-LIB symbols."""
        name = type_.name
        if name in ("&", "&mut"):
            inner = type_.args[0]
            assert isinstance(inner, Ty)
            return self.code(inner)
        if name in ("String", "str"):
            return "text"
        if name in ("tuple", "spec_fn"):
            name = f"{name}{len(type_.args)}"
        elif name in self.datatypes:
            name = f"data_{name}"
        elif name not in _SORTED and not _is_integer(type_) and name not in ("bool", "char", "!"):
            name = f"param_{name}"
        return ".".join((name, *(self.code(arg) for arg in type_.args if isinstance(arg, Ty))))

    def sort(self, type_: Ty) -> str:
        """The sort of values of the type."""
        if type_.name in ("&", "&mut"):
            inner = type_.args[0]
            assert isinstance(inner, Ty)
            return self.sort(inner)
        if _is_integer(type_) or type_.name == "char":
            return "Int"
        if type_.name == "bool":
            return "Bool"
        if type_.name == "str":
            type_ = Ty("String")
        code = f"|{self.code(type_)}|"
        if self.once(f"sort {code}"):
            self._declare(type_, code)
        return code

    def _declare(self, type_: Ty, code: str) -> None:
        args = [arg for arg in type_.args if isinstance(arg, Ty)]
        match type_.name:
            case "Vec" | "slice" | "array" | "String":
                self.lines.append(f"(declare-sort {code} 0)")
                element = args[0] if args else Ty("char")
                sequence = self.sort(Ty("Seq", (element,)))
                view = self.function(self.symbol("view", type_), [code], sequence)
                length = (self.symbol("len", Ty("Seq", (element,))), (view, "v"))
                self.axiom([("v", code)], ("<=", length, "usize.max"), [(view, "v")])
            case "Seq":
                self._declare_seq(type_, args[0], code)
            case "Set":
                self._declare_set(type_, args[0], code)
            case "tuple":
                self._declare_data(code, [(f"mk.{code[1:-1]}", [self.sort(arg) for arg in args])])
            case "Option":
                name = code[1:-1]
                self._declare_data(code, [(f"None.{name}", []), (f"Some.{name}", [self.sort(args[0])])])
            case "spec_fn":
                self.lines.append(f"(declare-sort {code} 0)")
                params = [self.sort(arg) for arg in args[:-1]]
                apply = self.function(self.symbol("apply", type_), [code, *params], self.sort(args[-1]))
                names = [(f"x{number_}", sort) for number_, sort in enumerate(params)]
                term: Term = (apply, "f", *(name for name, _ in names))
                guard = conj(*(self.typed(arg, name) for arg, (name, _) in zip(args, names, strict=False)))
                self.axiom([("f", code), *names], implies(guard, self.typed(args[-1], term)), [term])
            case name if name in self.datatypes:
                datatype = self.datatypes[name]
                self._declare_data(
                    code,
                    [
                        (f"{variant}.{code[1:-1]}", [self.sort(field) for field in fields])
                        for variant, fields in self.variants(datatype, type_)
                    ],
                )
            case "Map":
                raise Unsupported("`Map`", NOWHERE)
            case _:
                self.lines.append(f"(declare-sort {code} 0)")

    def _declare_data(self, code: str, variants: list[tuple[str, list[str]]]) -> None:
        if any(code in fields for _, fields in variants):
            raise Unsupported("recursive data types", NOWHERE)
        parts = []
        for name, fields in variants:
            inner = " ".join(f"(|{name}.{place}| {sort})" for place, sort in enumerate(fields))
            parts.append(f"(|{name}| {inner})" if inner else f"(|{name}|)")
        self.lines.append(f"(declare-datatypes (({code} 0)) (({' '.join(parts)})))")

    def make(self, type_: Ty, variant: str, fields: Sequence[Term]) -> Term:
        """The value of a constructor (`mk` for tuples)."""
        code = self.sort(type_)[1:-1]
        return (f"|{variant}.{code}|", *fields) if fields else f"|{variant}.{code}|"

    def part(self, type_: Ty, variant: str, place: int, value: Term) -> Term:
        """A field of a constructor's value."""
        if isinstance(value, tuple) and value[0] == f"|{variant}.{self.sort(type_)[1:-1]}|":
            return value[1 + place]
        return (f"|{variant}.{self.sort(type_)[1:-1]}.{place}|", value)

    def made_by(self, type_: Ty, variant: str, value: Term) -> Term:
        """Whether the value was made by this constructor."""
        return (("_", "is", f"|{variant}.{self.sort(type_)[1:-1]}|"), value)

    def symbol(self, operation: str, type_: Ty) -> str:
        if type_.name == "str":
            type_ = Ty("String")
        return f"|{operation}.{self.code(type_)}|"

    def typed(self, type_: Ty, term: Term) -> Term:
        """What holds of every value of the type: integers are within their range, parts are typed."""
        name = type_.name
        args = [arg for arg in type_.args if isinstance(arg, Ty)]
        if name in ("&", "&mut"):
            return self.typed(args[0], term)
        if name == "char":
            return conj(("<=", "0", term), disj(("<=", term, number(0xD7FF)), ("<=", number(0xE000), term)),
                        ("<=", term, number(0x10FFFF)))  # fmt: skip
        if _is_integer(type_) and name != "int":
            low, high = bounds(name)
            return conj(("<=", low, term), ("<=", term, high) if high is not None else TRUE)
        if name == "tuple":
            return conj(*(self.typed(arg, self.part(type_, "mk", place, term)) for place, arg in enumerate(args)))
        if name == "Option":
            return implies(self.made_by(type_, "Some", term), self.typed(args[0], self.part(type_, "Some", 0, term)))
        if name in self.datatypes:
            self.sort(type_)
            return conj(
                *(
                    implies(
                        self.made_by(type_, variant, term),
                        conj(
                            *(
                                self.typed(field, self.part(type_, variant, place, term))
                                for place, field in enumerate(fields)
                            )
                        ),
                    )
                    for variant, fields in self.variants(self.datatypes[name], type_)
                )
            )
        return TRUE

    # integers

    def arithmetic(self, op: str, left: Term, right: Term) -> Term:
        """`left op right` on mathematical integers; division and remainder are Euclidean."""
        literal = _literal(left) or _literal(right)
        linear = literal if op == "*" else _literal(right) and right != "0" if op in "/%" else True
        if linear and op not in self.trigger_operators:
            return (_PLAIN[op], left, right)
        return (_OPERATORS[op], left, right)

    def bits(self, op: str, type_: Ty, left: Term, right: Term) -> Term:
        """A bit operation: an unknown function whose results are typed."""
        name = f"|bits.{_BITS[op]}.{self.code(type_)}|"
        if self.once(name):
            self.function(name, ["Int", "Int"], "Int")
            self.axiom([("x", "Int"), ("y", "Int")], self.typed(type_, (name, "x", "y")), [(name, "x", "y")])
        return (name, left, right)

    def clip(self, given: Ty, target: Ty, term: Term) -> Term:
        """The cast `term as target`: the same number where it fits, else some number of the type."""
        if target.name in ("int", given.name) or _contains(target.name, given.name):
            return term
        name = f"clip.{target.name}"
        if self.once(name):
            self.function(name, ["Int"], "Int")
            inside, value = self.typed(target, "x"), (name, "x")
            self.axiom([("x", "Int")], conj(self.typed(target, value), implies(inside, ("=", value, "x"))), [value])
        return (name, term)

    # sequences

    def view(self, type_: Ty, term: Term) -> Term:
        """The sequence that a vector, slice or string holds."""
        self.sort(type_)
        return (self.symbol("view", type_), term)

    def _declare_seq(self, type_: Ty, element: Ty, code: str) -> None:
        self.lines.append(f"(declare-sort {code} 0)")
        item = self.sort(element)
        length = self.function(self.symbol("len", type_), [code], "Int")
        index = self.function(self.symbol("index", type_), [code, "Int"], item)
        same = self.function(self.symbol("ext", type_), [code, code], "Bool")
        self.axiom([("s", code)], ("<=", "0", (length, "s")), [(length, "s")])
        at: Term = (index, "s", "i")
        self.axiom([("s", code), ("i", "Int")], self.typed(element, at), [at])
        pointwise = forall(
            [("i", "Int")],
            implies(conj(("<=", "0", "i"), ("<", "i", (length, "a"))), ("=", (index, "a", "i"), (index, "b", "i"))),
            [[(index, "a", "i")], [(index, "b", "i")]],
        )
        pair, test = [("a", code), ("b", code)], (same, "a", "b")
        self.axiom(pair, ("=", test, conj(("=", (length, "a"), (length, "b")), pointwise)), [test])
        self.axiom(pair, implies(test, ("=", "a", "b")), [test])

    def seq(self, operation: str, type_: Ty, *args: Term, other: Ty | None = None) -> Term:
        """An operation on `Seq<T>` (`type_`); `other` is a further type it needs (the predicate's, the result's)."""
        code = self.sort(type_)
        element = type_.args[0]
        assert isinstance(element, Ty)
        symbol = self.symbol(operation, type_)
        if operation in ("len", "index", "ext"):
            return (symbol, *args)
        if operation == "empty":
            if self.once(symbol):
                self._define_seq(operation, symbol, type_, element, code, other)
            return symbol
        first, count = args[0], lambda s: (self.symbol("len", type_), s)
        match operation:
            case "take":
                return self.seq("subrange", type_, first, "0", args[1])
            case "skip":
                return self.seq("subrange", type_, first, args[1], count(first))
            case "drop_last":
                return self.seq("subrange", type_, first, "0", ("-", count(first), "1"))
            case "drop_first":
                return self.seq("subrange", type_, first, "1", count(first))
            case "first":
                return self.seq("index", type_, first, "0")
            case "last":
                return self.seq("index", type_, first, ("-", count(first), "1"))
        if other is not None:
            symbol = self.symbol(f"{operation}_{self.code(other)}", type_)
        if self.once(symbol):
            self._define_seq(operation, symbol, type_, element, code, other)
        return (symbol, *args)

    def _define_seq(self, operation: str, symbol: str, type_: Ty, element: Ty, code: str, other: Ty | None) -> None:
        item = self.sort(element)
        length, index = self.symbol("len", type_), self.symbol("index", type_)

        def size(term: Term) -> Term:
            return (length, term)

        def at(term: Term, place: Term) -> Term:
            return (index, term, place)

        s, i, j, k, a = ("s", code), ("i", "Int"), ("j", "Int"), ("k", "Int"), ("a", item)
        typed = self.typed(element, "a")
        inside = conj(("<=", "0", "i"), ("<", "i", size("s")))
        match operation:
            case "empty":
                self.lines.append(f"(declare-const {symbol} {code})")
                self.axiom([], ("=", size(symbol), "0"))
            case "push":
                self.function(symbol, [code, item], code)
                made: Term = (symbol, "s", "a")
                self.axiom([s, a], ("=", size(made), ("+", size("s"), "1")), [made])
                self.axiom(
                    [s, a, i], implies(conj(("=", "i", size("s")), typed), ("=", at(made, "i"), "a")), [at(made, "i")]
                )
                self.axiom([s, a, i], implies(inside, ("=", at(made, "i"), at("s", "i"))), [at(made, "i")])
            case "update":
                self.function(symbol, [code, "Int", item], code)
                made = (symbol, "s", "i", "a")
                self.axiom([s, i, a], ("=", size(made), size("s")), [made])
                self.axiom([s, i, a], implies(conj(inside, typed), ("=", at(made, "i"), "a")), [made])
                other_place = conj(("<=", "0", "j"), ("<", "j", size("s")), negate(("=", "i", "j")))
                self.axiom([s, i, a, j], implies(other_place, ("=", at(made, "j"), at("s", "j"))), [at(made, "j")])
            case "subrange":
                self.function(symbol, [code, "Int", "Int"], code)
                made = (symbol, "s", "j", "k")
                whole = conj(("<=", "0", "j"), ("<=", "j", "k"), ("<=", "k", size("s")))
                self.axiom([s, j, k], implies(whole, ("=", size(made), ("-", "k", "j"))), [made])
                part = conj(whole, ("<=", "0", "i"), ("<", "i", ("-", "k", "j")))
                moved = ("=", at(made, "i"), at("s", ("+", "i", "j")))
                self.axiom([s, j, k, i], implies(part, moved), [at(made, "i")])
            case "add":
                self.function(symbol, [code, code], code)
                made, t = (symbol, "s", "t"), ("t", code)
                self.axiom([s, t], ("=", size(made), ("+", size("s"), size("t"))), [made])
                self.axiom([s, t, i], implies(inside, ("=", at(made, "i"), at("s", "i"))), [at(made, "i")])
                right = conj(("<=", size("s"), "i"), ("<", "i", ("+", size("s"), size("t"))))
                self.axiom(
                    [s, t, i], implies(right, ("=", at(made, "i"), at("t", ("-", "i", size("s"))))), [at(made, "i")]
                )
            case "contains":
                self.function(symbol, [code, item], "Bool")
                made = (symbol, "s", "a")
                some = forall([i], conj(inside, ("=", at("s", "i"), "a")), [[at("s", "i")]], kind="exists")
                self.axiom([s, a], ("=", made, some), [made])
            case "no_duplicates":
                self.function(symbol, [code], "Bool")
                both = conj(inside, ("<=", "0", "j"), ("<", "j", size("s")), negate(("=", "i", "j")))
                apart = forall(
                    [i, j], implies(both, negate(("=", at("s", "i"), at("s", "j")))), [[at("s", "i"), at("s", "j")]]
                )
                self.axiom([s], ("=", (symbol, "s"), apart), [(symbol, "s")])
            case "reverse":
                self.function(symbol, [code], code)
                made = (symbol, "s")
                self.axiom([s], ("=", size(made), size("s")), [made])
                mirrored = at("s", ("-", ("-", size("s"), "1"), "i"))
                self.axiom([s, i], implies(inside, ("=", at(made, "i"), mirrored)), [at(made, "i")])
            case "insert":
                self.function(symbol, [code, "Int", item], code)
                made = (symbol, "s", "i", "a")
                before = self.seq("push", type_, self.seq("subrange", type_, "s", "0", "i"), "a")
                self.axiom([s, i, a], ("=", made, self.seq("add", type_, before,
                           self.seq("subrange", type_, "s", "i", size("s")))), [made])  # fmt: skip
            case "remove":
                self.function(symbol, [code, "Int"], code)
                made = (symbol, "s", "i")
                joined = self.seq("add", type_, self.seq("subrange", type_, "s", "0", "i"),
                                  self.seq("subrange", type_, "s", ("+", "i", "1"), size("s")))  # fmt: skip
                self.axiom([s, i], ("=", made, joined), [made])
            case "new" | "map" | "map_values":
                self._define_generated(operation, symbol, type_, code, other)
            case "filter":
                self._define_filter(symbol, type_, element, code)
            case "to_set":
                result = Ty("Set", (element,))
                self.function(symbol, [code], self.sort(result))
                has = self.set("contains", result, (symbol, "s"), "a")
                self.axiom([s, a], ("=", has, self.seq("contains", type_, "s", "a")), [has])
                self.axiom([s], self.set("finite", result, (symbol, "s")), [(symbol, "s")])
            case _:
                raise Unsupported(f"`Seq.{operation}`", NOWHERE)

    def _define_generated(self, operation: str, symbol: str, type_: Ty, code: str, other: Ty | None) -> None:
        """`Seq::new(n, f)`, `s.map(f)`, `s.map_values(f)`: every element is given by a function of type `other`."""
        assert other is not None
        function = self.sort(other)
        result_element = other.args[-1]
        assert isinstance(result_element, Ty)
        result = Ty("Seq", (result_element,))
        self.sort(result)
        apply = self.symbol("apply", other)
        source = ("n", "Int") if operation == "new" else ("s", code)
        self.function(symbol, [source[1], function], self.sort(result))
        made: Term = (symbol, source[0], "f")
        total: Term = "n" if operation == "new" else (self.symbol("len", type_), "s")
        binders = [source, ("f", function)]
        self.axiom(binders, implies(("<=", "0", total), ("=", self.seq("len", result, made), total)), [made])
        at = self.seq("index", result, made, "i")
        item = (self.symbol("index", type_), "s", "i")
        value: Term = {"new": (apply, "f", "i"), "map": (apply, "f", "i", item), "map_values": (apply, "f", item)}[
            operation
        ]
        inside = conj(("<=", "0", "i"), ("<", "i", total))
        self.axiom([*binders, ("i", "Int")], implies(inside, ("=", at, value)), [at])

    def _define_filter(self, symbol: str, type_: Ty, element: Ty, code: str) -> None:
        predicate = Ty("spec_fn", (element, Ty("bool")))
        function = self.sort(predicate)
        apply = self.symbol("apply", predicate)
        step = f"|step.{symbol[1:]}"
        self.function(symbol, [code, function], code)
        self.function(step, [code, function, "Fuel"], code)
        if self.once("fuel filter"):
            self.lines.append("(declare-const fuel.filter Bool)\n(declare-const depth.filter Fuel)")
        s, f, fuel = ("s", code), ("f", function), ("n", "Fuel")
        size, last = self.seq("len", type_, "s"), self.seq("last", type_, "s")
        rest: Term = (step, self.seq("drop_last", type_, "s"), "f", "n")
        body: Term = (
            "ite",
            ("=", size, "0"),
            "s",
            ("ite", (apply, "f", last), self.seq("push", type_, rest, last), rest),
        )
        stepped: Term = (step, "s", "f", "n")
        more: Term = (step, "s", "f", ("fuel.succ", "n"))
        self.axiom([s, f, fuel], ("=", stepped, (step, "s", "f", "fuel.zero")), [stepped])
        self.axiom([s, f, fuel], ("=", more, body), [more])
        made: Term = (symbol, "s", "f")
        self.axiom([s, f], implies("fuel.filter", ("=", made, (step, "s", "f", ("fuel.succ", "depth.filter")))), [made])
        self.axiom([s, f], ("=", made, (step, "s", "f", "fuel.zero")), [made])
        self.axiom([s, f], ("<=", self.seq("len", type_, made), size), [made])
        at = self.seq("index", type_, made, "i")
        inside = conj(("<=", "0", "i"), ("<", "i", self.seq("len", type_, made)))
        self.axiom([s, f, ("i", "Int")], implies(inside, (apply, "f", at)), [at])
        source = self.seq("index", type_, "s", "i")
        has = self.seq("contains", type_, made, source)
        kept = conj(("<=", "0", "i"), ("<", "i", size), (apply, "f", source))
        self.axiom([s, f, ("i", "Int")], implies(kept, has), [has])

    # sets

    def _declare_set(self, type_: Ty, element: Ty, code: str) -> None:
        self.lines.append(f"(declare-sort {code} 0)")
        item = self.sort(element)
        has = self.function(self.symbol("contains", type_), [code, item], "Bool")
        same = self.function(self.symbol("ext", type_), [code, code], "Bool")
        a, s = ("a", item), ("s", code)
        member = forall([a], implies(self.typed(element, "a"), ("=", (has, "s", "a"), (has, "t", "a"))),
                        [[(has, "s", "a")], [(has, "t", "a")]])  # fmt: skip
        test: Term = (same, "s", "t")
        self.axiom([s, ("t", code)], ("=", test, member), [test])
        self.axiom([s, ("t", code)], implies(test, ("=", "s", "t")), [test])

    def set(self, operation: str, type_: Ty, *args: Term) -> Term:
        """An operation on `Set<T>`."""
        code = self.sort(type_)
        element = type_.args[0]
        assert isinstance(element, Ty)
        symbol = self.symbol(operation, type_)
        if operation in ("contains", "ext"):
            return (symbol, *args)
        if operation == "is_empty":
            return self.set("ext", type_, args[0], self.set("empty", type_))
        if operation == "subset_of":
            inside = (self.symbol("contains", type_), args[0], "sub%a")
            other = (self.symbol("contains", type_), args[1], "sub%a")
            return forall([("sub%a", self.sort(element))], implies(conj(self.typed(element, "sub%a"), inside), other),
                          [[inside], [other]])  # fmt: skip
        if self.once(symbol):
            self._define_set(operation, symbol, type_, element, code)
        return (symbol, *args) if args else symbol

    def _define_set(self, operation: str, symbol: str, type_: Ty, element: Ty, code: str) -> None:
        item = self.sort(element)
        s, t, a, b = ("s", code), ("t", code), ("a", item), ("b", item)

        def has(term: Term, value: Term) -> Term:
            return self.set("contains", type_, term, value)

        def finite(term: Term) -> Term:
            return self.set("finite", type_, term)

        def size(term: Term) -> Term:
            return self.set("len", type_, term)

        match operation:
            case "finite":
                self.function(symbol, [code], "Bool")
            case "len":
                self.function(symbol, [code], "Int")
                self.axiom([s], ("<=", "0", (symbol, "s")), [(symbol, "s")])
                self.axiom([s, a], implies(conj(finite("s"), has("s", "a")), ("<", "0", (symbol, "s"))),
                           [has("s", "a"), (symbol, "s")])  # fmt: skip
                chosen = has("s", self.set("choose", type_, "s"))
                self.axiom(
                    [s], implies(conj(finite("s"), negate(("=", (symbol, "s"), "0"))), chosen), [(symbol, "s"), chosen]
                )
            case "choose":
                self.function(symbol, [code], item)
                self.axiom([s, a], implies(conj(self.typed(element, "a"), has("s", "a")), has("s", (symbol, "s"))),
                           [(symbol, "s"), has("s", "a")])  # fmt: skip
                self.axiom([s], self.typed(element, (symbol, "s")), [(symbol, "s")])
            case "empty":
                self.lines.append(f"(declare-const {symbol} {code})")
                self.axiom([a], negate(has(symbol, "a")), [has(symbol, "a")])
                self.axiom([], conj(finite(symbol), ("=", size(symbol), "0")))
            case "insert" | "remove":
                self.function(symbol, [code, item], code)
                made: Term = (symbol, "s", "a")
                # sets hold typed values only: what an axiom says of others would make equal sets differ
                typed, other = self.typed(element, "a"), self.typed(element, "b")
                grows = operation == "insert"
                here = disj(("=", "a", "b"), has("s", "b")) if grows else conj(negate(("=", "a", "b")), has("s", "b"))
                self.axiom([s, a, b], implies(other, ("=", has(made, "b"), here)), [has(made, "b")])
                if grows:
                    self.axiom([s, a], implies(typed, has(made, "a")), [made])
                self.axiom([s, a], implies(finite("s"), finite(made)), [made])
                change: Term = ("ite", has("s", "a"), "0" if grows else "1", "1" if grows else "0")
                total = (
                    ("=", size(made), ("+", size("s"), change))
                    if grows
                    else ("=", size("s"), ("+", size(made), change))
                )
                self.axiom([s, a], implies(conj(finite("s"), typed), total), [size(made)])
            case "union" | "intersect" | "difference":
                self.function(symbol, [code, code], code)
                made = (symbol, "s", "t")
                left, right = has("s", "a"), has("t", "a")
                here = {
                    "union": disj(left, right),
                    "intersect": conj(left, right),
                    "difference": conj(left, negate(right)),
                }[operation]
                self.axiom([s, t, a], ("=", has(made, "a"), here), [has(made, "a")])
                enough = {"union": conj(finite("s"), finite("t")), "intersect": disj(finite("s"), finite("t")),
                          "difference": finite("s")}[operation]  # fmt: skip
                self.axiom([s, t], implies(enough, finite(made)), [made])
            case "disjoint":
                self.function(symbol, [code, code], "Bool")
                apart = forall([a], implies(conj(self.typed(element, "a"), has("s", "a"), has("t", "a")), FALSE),
                               [[has("s", "a")], [has("t", "a")]])  # fmt: skip
                self.axiom([s, t], ("=", (symbol, "s", "t"), apart), [(symbol, "s", "t")])
            case "new":
                predicate = Ty("spec_fn", (element, Ty("bool")))
                self.function(symbol, [self.sort(predicate)], code)
                made = (symbol, "f")
                value: Term = (self.symbol("apply", predicate), "f", "a")
                holds = implies(self.typed(element, "a"), ("=", has(made, "a"), value))
                self.axiom([("f", self.sort(predicate)), a], holds, [has(made, "a")])
            case _:
                raise Unsupported(f"`Set.{operation}`", NOWHERE)


_SORTED = LISTS | {"String", "str", "Seq", "Set", "Map", "Option", "tuple", "spec_fn"}


def _is_integer(type_: Ty) -> bool:
    return type_.name in ("int", "nat", "usize", "isize") or type_.name in UNSIGNED or type_.name in SIGNED


def _literal(term: Term) -> bool:
    return term.isdigit() if isinstance(term, str) else len(term) == 2 and term[0] == "-" and _literal(term[1])


def _contains(target: str, given: str) -> bool:
    """Whether every value of `given` is one of `target`."""
    sizes = {**UNSIGNED, "usize": 64}
    if target == "char":
        return given == "u8"
    if given == "char":
        return target in ("nat", "u32", "u64", "u128", "i64", "i128")
    if target == "nat":
        return given in sizes
    if target == "usize":
        return given in ("u8", "u16", "u32")
    if given in sizes and target in UNSIGNED:
        return sizes[given] <= UNSIGNED[target]
    signed = {**SIGNED, "isize": 64}
    if target in SIGNED:
        return sizes.get(given, 999) < SIGNED[target] or signed.get(given, 999) <= SIGNED[target]
    return target == "isize" and given in ("i8", "i16", "i32", "u8", "u16")
