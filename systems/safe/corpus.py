"""A generator of programs with specifications and without proofs: many shapes, and names, types, constants, styles of
loop and of specification drawn at random. Whole shapes are held out, so that a test set has unseen ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from systems.safe.check import check
from systems.safe.interp import Inputs, Interpreter
from systems.safe.parser import parse
from systems.safe.syntax import ProgramProblem

HELD_OUT = frozenset(
    ("extremum_index", "clamp_in_place", "common_element", "first_index", "add_arrays", "tail_copy", "fill_then_add")
)
"""Shapes that no training set has."""
_RUNS = 12
_NAMES = {
    "fn": ("run", "process", "compute", "scan", "handle", "walk", "apply", "check_it", "build", "work"),
    "v": ("v", "xs", "data", "items", "numbers", "arr", "list", "values", "input"),
    "w": ("w", "ys", "other", "second", "rhs", "more"),
    "i": ("i", "idx", "pos", "at", "n", "index", "here"),
    "j": ("j", "jj", "inner", "right"),
    "r": ("r", "res", "out", "acc", "made", "found", "answer"),
    "s": ("s", "total", "sum", "count", "c"),
    "x": ("x", "key", "wanted", "limit", "e"),
    "k": ("k", "p", "q", "m"),
}
_SMALL = ("i32", "u32", "i64", "u64", "u8", "i16", "u16")


@dataclass(frozen=True)
class Program:
    """One task: a program whose specification holds in every run tried, and that does not verify without a proof."""

    shape: str
    text: str
    seed: int


class _Pen:
    """Draws the names and styles of one program."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        used: set[str] = set()
        self.names: dict[str, str] = {}
        for role, options in _NAMES.items():
            self.names[role] = next(name for name in self.random.sample(options, len(options)) if name not in used)
            used.add(self.names[role])
        self.kind = self.random.choice(_SMALL)
        self.constant = self.random.choice((0, 1, 2, 3, 5, 7, 10, 42, 100))
        self.view = self.random.random() < 0.3
        self.chained = self.random.random() < 0.7
        self.style = self.random.choice(("less", "less", "unequal", "cached"))
        self.step = self.random.choice(("{i} += 1;", "{i} = {i} + 1;"))
        self.borrow = self.random.choice(("&Vec<{t}>", "&Vec<{t}>", "&[{t}]"))

    def write(self, template: str, **more: object) -> str:
        values = {**self.names, "t": self.kind, "C": self.constant, **more}
        values["step"] = self.step.format(**self.names)
        values["V"] = self.borrow.format(t=values["t"])
        text = template
        for _ in range(3):
            for name, value in values.items():
                text = text.replace("<<" + name + ">>", str(value))
        return text

    def all(self, low: str, high: str, claim: str) -> str:
        """A universal claim over `low <= k < high`."""
        k = self.names["k"]
        within = f"{low} <= {k} < {high}" if self.chained else f"({low} <= {k} && {k} < {high})"
        return f"forall|{k}: int| {within} ==> {claim}"

    def some(self, low: str, high: str, claim: str) -> str:
        k = self.names["k"]
        within = f"{low} <= {k} < {high}" if self.chained else f"{low} <= {k} && {k} < {high}"
        return f"exists|{k}: int| {within} && {claim}"

    def loop(self, array: str, body: str, start: str = "0", end: str = "") -> str:
        """A counting loop over an array in one of the styles."""
        i, bound = self.names["i"], end or f"{array}.len()"
        head = f"    let mut {i}: usize = {start};\n"
        if self.style == "cached" and not end:
            head += f"    let stop = {bound};\n"
            bound = "stop"
        sign = "!=" if self.style == "unequal" and start == "0" else "<"
        step = self.step.format(**self.names)
        return f"{head}    while {i} {sign} {bound}\n    {{\n{body}        {step}\n    }}\n"

    def predicate(self, place: str) -> str:
        op = self.random.choice(("==", "<", ">", "<=", ">=", "!="))
        return f"{place} {op} {self.constant}"

    def elements(self, array: str) -> str:
        return f"{array}@[{self.names['k']}]" if self.view else f"{array}[{self.names['k']}]"


def _copy(pen: _Pen) -> str:
    v, r, i = pen.names["v"], pen.names["r"], pen.names["i"]
    claim = pen.all("0", f"{v}.len()", f"{pen.elements('out_')} == {pen.elements(v)}")
    return pen.write(
        f"fn <<fn>>(<<v>>: <<V>>) -> (out_: Vec<<<t>>>)\n    ensures\n        out_.len() == {v}.len(),\n"
        f"        {claim},\n{{\n"
        f"    let mut {r}: Vec<<<t>>> = Vec::new();\n{pen.loop(v, f'        {r}.push({v}[{i}]);' + chr(10))}"
        f"    {r}\n}}"
    )


def _map_choice(pen: _Pen) -> str:
    v, r, i, k = (pen.names[name] for name in "vrik")
    test = pen.predicate(f"{v}[{i}]")
    yes, no = pen.random.choice((("1", "0"), ("0", "1"), (f"{v}[{i}]", str(pen.constant)), (str(pen.constant), "0")))
    spec = test.replace(f"[{i}]", f"[{k}]")
    one, two = (part.replace(f"[{i}]", f"[{k}]") for part in (yes, no))
    body = (
        f"        if {test} {{\n            {r}.push({yes});\n        }} else {{\n"
        f"            {r}.push({no});\n        }}\n"
    )
    made = pen.elements("out_")
    claims = [
        pen.all("0", f"{v}.len()", f"({spec}) ==> {made} == {one}"),
        pen.all("0", f"{v}.len()", f"!({spec}) ==> {made} == {two}"),
    ]
    return pen.write(
        f"fn <<fn>>(<<v>>: <<V>>) -> (out_: Vec<<<t>>>)\n    ensures\n        out_.len() == {v}.len(),\n"
        f"        {claims[0]},\n        {claims[1]},\n{{\n"
        f"    let mut {r}: Vec<<<t>>> = Vec::with_capacity({v}.len());\n{pen.loop(v, body)}    {r}\n}}"
    )


def _fill(pen: _Pen) -> str:
    v, i = pen.names["v"], pen.names["i"]
    value = pen.random.choice((str(pen.constant), pen.names["x"]))
    given = f", {value}: {pen.kind}" if value == pen.names["x"] else ""
    store = f"        {v}.set({i}, {value});\n"
    return pen.write(
        f"fn <<fn>>(<<v>>: &mut Vec<<<t>>>{given})\n    ensures\n        {v}.len() == old({v}).len(),\n"
        f"        {pen.all('0', f'{v}.len()', f'{pen.elements(v)} == {value}')},\n{{\n{pen.loop(v, store)}}}"
    )


def _any_or_all(pen: _Pen, every: bool) -> str:
    v, i, k = (pen.names[name] for name in "vik")
    test = pen.predicate(f"{v}[{i}]")
    claim = test.replace(f"[{i}]", f"[{k}]")
    quantified = (pen.all if every else pen.some)("0", f"{v}.len()", f"({claim})")
    condition = f"!({test})" if every else test
    body = f"        if {condition} {{\n            return {'false' if every else 'true'};\n        }}\n"
    return pen.write(
        f"fn <<fn>>(<<v>>: <<V>>) -> (good: bool)\n    ensures\n        good == ({quantified}),\n{{\n"
        f"{pen.loop(v, body)}    {'true' if every else 'false'}\n}}"
    )


def _contains(pen: _Pen) -> str:
    v, i, x = (pen.names[name] for name in "vix")
    quantified = pen.some("0", f"{v}.len()", f"{pen.elements(v)} == {x}")
    body = f"        if {v}[{i}] == {x} {{\n            return true;\n        }}\n"
    return pen.write(
        f"fn <<fn>>(<<v>>: <<V>>, <<x>>: <<t>>) -> (good: bool)\n    ensures\n        good == ({quantified}),\n{{\n"
        f"{pen.loop(v, body)}    false\n}}"
    )


def _first_index(pen: _Pen) -> str:
    v, i, x, k = (pen.names[name] for name in "vixk")
    body = f"        if {v}[{i}] == {x} {{\n            return Some({i});\n        }}\n"
    none = pen.all("0", f"{v}.len()", f"{v}[{k}] != {x}")
    before = pen.all("0", "found_at", f"{v}[{k}] != {x}")
    return pen.write(
        f"fn <<fn>>(<<v>>: <<V>>, <<x>>: <<t>>) -> (place: Option<usize>)\n    ensures\n"
        f"        if let Some(found_at) = place {{\n            &&& 0 <= found_at < {v}.len()\n"
        f"            &&& {v}[found_at as int] == {x}\n"
        f"            &&& {before}\n        }} else {{\n            {none}\n        }},\n{{\n"
        f"{pen.loop(v, body)}    None\n}}"
    )


def _extremum(pen: _Pen) -> str:
    v, i, r, k = (pen.names[name] for name in "virk")
    op, back = pen.random.choice(((">", "<="), ("<", ">=")))
    body = f"        if {v}[{i}] {op} {r} {{\n            {r} = {v}[{i}];\n        }}\n"
    return pen.write(
        f"fn <<fn>>(<<v>>: <<V>>) -> (best: <<t>>)\n    requires\n        {v}.len() > 0,\n    ensures\n"
        f"        {pen.all('0', f'{v}.len()', f'{v}[{k}] {back} best')},\n"
        f"        {pen.some('0', f'{v}.len()', f'{v}[{k}] == best')},\n{{\n"
        f"    let mut {r} = {v}[0];\n{pen.loop(v, body, start='1')}    {r}\n}}"
    )


def _extremum_index(pen: _Pen) -> str:
    v, i, r, k = (pen.names[name] for name in "virk")
    op, back = pen.random.choice(((">", "<="), ("<", ">=")))
    body = f"        if {v}[{i}] {op} {v}[{r}] {{\n            {r} = {i};\n        }}\n"
    return pen.write(
        f"fn <<fn>>(<<v>>: <<V>>) -> (best: usize)\n    requires\n        {v}.len() > 0,\n    ensures\n"
        f"        best < {v}.len(),\n"
        f"        {pen.all('0', f'{v}.len()', f'{v}[{k}] {back} {v}[best as int]')},\n{{\n"
        f"    let mut {r}: usize = 0;\n"
        f"{pen.loop(v, body, start='1')}    {r}\n}}"
    )


def _elementwise(pen: _Pen, op: str) -> str:
    v, w, i, r, k = (pen.names[name] for name in "vwirk")
    fits = f"{pen.kind}::MIN <= #[trigger] ({v}[{k}] {op} {w}[{k}]) <= {pen.kind}::MAX"
    requires = f"        {v}.len() == {w}.len(),\n"
    if op in "+-":
        requires += f"        {pen.all('0', f'{v}.len()', fits)},\n"
    claim = f"#[trigger] out_[{k}] == #[trigger] ({v}[{k}] {op} {w}[{k}])"
    body = f"        {r}.push({v}[{i}] {op} {w}[{i}]);\n"
    return pen.write(
        f"fn <<fn>>(<<v>>: <<V>>, <<w>>: <<V>>) -> (out_: Vec<<<t>>>)\n    requires\n{requires}    ensures\n"
        f"        out_.len() == {v}.len(),\n        {pen.all('0', 'out_.len()', claim)},\n{{\n"
        f"    let mut {r}: Vec<<<t>>> = Vec::new();\n{pen.loop(v, body)}    {r}\n}}"
    )


def _equal_arrays(pen: _Pen) -> str:
    v, w, i, k = (pen.names[name] for name in "vwik")
    op = pen.random.choice(("==", "<=", ">=", "!="))
    body = f"        if !({v}[{i}] {op} {w}[{i}]) {{\n            return false;\n        }}\n"
    return pen.write(
        f"fn <<fn>>(<<v>>: <<V>>, <<w>>: <<V>>) -> (good: bool)\n    requires\n        {v}.len() == {w}.len(),\n"
        f"    ensures\n"
        f"        good == ({pen.all('0', f'{v}.len()', f'({v}[{k}] {op} {w}[{k}])')}),\n{{\n"
        f"{pen.loop(v, body)}    true\n}}"
    )


def _count(pen: _Pen) -> str:
    v, i, s = (pen.names[name] for name in "vis")
    test = pen.predicate(f"{v}[{i}]")
    spec = test.replace(f"{v}[{i}]", "items_.last()")
    body = f"        if {test} {{\n            {s} += 1;\n        }}\n"
    return pen.write(
        f"spec fn how_many(items_: Seq<<<t>>>) -> int\n    decreases items_.len(),\n{{\n"
        f"    if items_.len() == 0 {{\n        0\n    }} else {{\n"
        f"        how_many(items_.drop_last()) + if {spec} {{ 1 as int }} else {{ 0 as int }}\n    }}\n}}\n\n"
        f"fn <<fn>>(<<v>>: <<V>>) -> (number: usize)\n    ensures\n        how_many({v}@) == number,\n{{\n"
        f"    let mut {s}: usize = 0;\n{pen.loop(v, body)}    {s}\n}}"
    )


def _total(pen: _Pen) -> str:
    v, i, s = (pen.names[name] for name in "vis")
    wide = "i128"
    return pen.write(
        f"spec fn total_of(items_: Seq<<<t>>>) -> int\n    decreases items_.len(),\n{{\n"
        f"    if items_.len() == 0 {{\n        0\n    }} else {{\n"
        f"        total_of(items_.drop_last()) + items_.last()\n    }}\n}}\n\n"
        f"fn <<fn>>(<<v>>: <<V>>) -> (number: {wide})\n    ensures\n        total_of({v}@) == number,\n{{\n"
        f"    let mut {s}: {wide} = 0;\n{pen.loop(v, f'        {s} = {s} + {v}[{i}] as {wide};' + chr(10))}"
        f"    {s}\n}}"
    )


def _filter(pen: _Pen) -> str:
    v, i, r = (pen.names[name] for name in "vir")
    test = pen.predicate(f"{v}[{i}]")
    spec = test.replace(f"{v}[{i}]", "y")
    body = f"        if {test} {{\n            {r}.push({v}[{i}]);\n        }}\n"
    return pen.write(
        f"fn <<fn>>(<<v>>: <<V>>) -> (out_: Vec<<<t>>>)\n    ensures\n"
        f"        out_@ == {v}@.filter(|y: <<t>>| {spec}),\n{{\n"
        f"    let mut {r}: Vec<<<t>>> = Vec::new();\n{pen.loop(v, body)}    {r}\n}}"
    )


def _weak_filter(pen: _Pen) -> str:
    v, i, r, k = (pen.names[name] for name in "virk")
    test = pen.predicate(f"{v}[{i}]")
    spec = test.replace(f"{v}[{i}]", f"out_[{k}]")
    body = f"        if {test} {{\n            {r}.push({v}[{i}]);\n        }}\n"
    claim = pen.all("0", "out_.len()", f"{spec} && {v}@.contains(out_[{k}])")
    return pen.write(
        f"fn <<fn>>(<<v>>: <<V>>) -> (out_: Vec<<<t>>>)\n    ensures\n        out_.len() <= {v}.len(),\n"
        f"        {claim},\n{{\n"
        f"    let mut {r}: Vec<<<t>>> = Vec::new();\n{pen.loop(v, body)}    {r}\n}}"
    )


def _part_copy(pen: _Pen, tail: bool) -> str:
    v, i, r, x = (pen.names[name] for name in "virx")
    low, high = (x, f"{v}.len()") if tail else ("0", x)
    body = f"        {r}.push({v}[{i}]);\n"
    ends = (f"{low} as int" if tail else "0", f"{high} as int")
    loop = pen.loop(v, body, start=low, end=high) if not tail else pen.loop(v, body, start=low, end=f"{v}.len()")
    return pen.write(
        f"fn <<fn>>(<<v>>: <<V>>, <<x>>: usize) -> (out_: Vec<<<t>>>)\n    requires\n        {x} <= {v}.len(),\n"
        f"    ensures\n"
        f"        out_@ == {v}@.subrange({ends[0]}, {ends[1]}),\n{{\n    let mut {r}: Vec<<<t>>> = Vec::new();\n"
        f"{loop}    {r}\n}}"
    )


def _sorted(pen: _Pen) -> str:
    v, i = pen.names["v"], pen.names["i"]
    op, bad = pen.random.choice((("<=", ">"), (">=", "<")))
    body = f"        if {v}[{i} - 1] {bad} {v}[{i}] {{\n            return false;\n        }}\n"
    return pen.write(
        f"fn <<fn>>(<<v>>: <<V>>) -> (good: bool)\n    requires\n        {v}.len() > 0,\n    ensures\n"
        f"        good == (forall|a: int, b: int| 0 <= a < b < {v}.len() ==> {v}[a] {op} {v}[b]),\n{{\n"
        f"{pen.loop(v, body, start='1')}    true\n}}"
    )


def _multiple(pen: _Pen) -> str:
    i, s, x = (pen.names[name] for name in "isx")
    step = max(1, pen.constant)
    limit = pen.random.choice((100, 1000, 10_000))
    loop = pen.loop("", f"        {s} = {s} + {step};\n", end=x).replace("usize", "u64")
    return pen.write(
        f"fn <<fn>>(<<x>>: u64) -> (number: u64)\n    requires\n        {x} <= {limit},\n    ensures\n"
        f"        number == {step} * {x},\n{{\n"
        f"    let mut {s}: u64 = 0;\n{loop}    {s}\n}}"
    ).replace(f"let mut {i}: usize", f"let mut {i}: u64")


def _fill_then_add(pen: _Pen) -> str:
    v, s = pen.names["v"], pen.names["s"]
    value = max(1, pen.constant % 10)
    turn = pen.step.format(**pen.names)
    i = pen.names["i"]
    filled = pen.all("0", "size", f"{pen.elements(v)} == {value}")
    return pen.write(
        f"fn <<fn>>(<<v>>: &mut Vec<i32>, <<s>>: &mut Vec<i32>, size: usize)\n    requires\n"
        f"        old({v}).len() == size,\n"
        f"        old({s}).len() == 1,\n        size < 1000,\n    ensures\n        {s}[0] == {value} * size,\n"
        f"        {s}.len() == 1,\n        {v}.len() == size,\n        {filled},\n"
        f"{{\n    {s}.set(0, 0);\n"
        f"    let mut {i}: usize = 0;\n    while {i} < size\n    {{\n        {v}.set({i}, {value});\n"
        f"        {turn}\n    }}\n    {i} = 0;\n"
        f"    while {i} < size\n    {{\n        {s}.set(0, {s}[0] + {v}[{i}]);\n        {turn}\n    }}\n}}"
    )


def _fill_then_raise(pen: _Pen) -> str:
    v, i, k = (pen.names[name] for name in "vik")
    value, more = pen.constant, pen.random.choice((1, 2, 3, 4))
    turn = pen.step.format(**pen.names)
    return pen.write(
        f"fn <<fn>>(<<v>>: &mut Vec<i32>)\n    ensures\n        {v}.len() == old({v}).len(),\n"
        f"        {pen.all('0', f'{v}.len()', f'{v}[{k}] == {value + more}')},\n{{\n"
        f"    let mut {i}: usize = 0;\n    while {i} < {v}.len()\n    {{\n        {v}.set({i}, {value});\n"
        f"        {turn}\n    }}\n    {i} = 0;\n"
        f"    while {i} < {v}.len()\n    {{\n        {v}.set({i}, {v}[{i}] + {more});\n        {turn}\n    }}\n}}"
    )


def _clamp_in_place(pen: _Pen) -> str:
    v, i, x, k = (pen.names[name] for name in "vixk")
    op = pen.random.choice((">", "<"))
    body = f"        if {v}[{i}] {op} {x} {{\n            {v}.set({i}, {x});\n        }}\n"
    claim = f"{v}[{k}] == if old({v})[{k}] {op} {x} {{ {x} }} else {{ old({v})[{k}] }}"
    return pen.write(
        f"fn <<fn>>(<<v>>: &mut Vec<<<t>>>, <<x>>: <<t>>)\n    ensures\n        {v}.len() == old({v}).len(),\n"
        f"        {pen.all('0', f'{v}.len()', claim)},\n{{\n{pen.loop(v, body)}}}"
    )


def _common_element(pen: _Pen) -> str:
    v, w, i, j = (pen.names[name] for name in "vwij")
    turn = pen.step.replace("{i}", j)
    body = (
        f"        let mut {j}: usize = 0;\n        while {j} < {w}.len()\n        {{\n"
        f"            if {v}[{i}] == {w}[{j}] {{\n"
        f"                return true;\n            }}\n            {turn}\n        }}\n"
    )
    return pen.write(
        f"fn <<fn>>(<<v>>: <<V>>, <<w>>: <<V>>) -> (good: bool)\n    ensures\n"
        f"        good == (exists|a: int, b: int| 0 <= a < {v}.len() "
        f"&& 0 <= b < {w}.len() && {v}[a] == {w}[b]),\n{{\n{pen.loop(v, body)}    false\n}}"
    )


def _repeated(pen: _Pen) -> str:
    v, i, j = (pen.names[name] for name in "vij")
    turn = pen.step.replace("{i}", j)
    body = (
        f"        let mut {j}: usize = {i} + 1;\n        while {j} < {v}.len()\n        {{\n"
        f"            if {v}[{i}] == {v}[{j}] {{\n"
        f"                return true;\n            }}\n            {turn}\n        }}\n"
    )
    return pen.write(
        f"fn <<fn>>(<<v>>: <<V>>) -> (good: bool)\n    ensures\n"
        f"        good == (exists|a: int, b: int| 0 <= a < b < {v}.len() "
        f"&& {v}[a] == {v}[b]),\n{{\n{pen.loop(v, body)}    false\n}}"
    )


SHAPES: dict[str, Callable[[_Pen], str]] = {
    "copy": _copy,
    "map_choice": _map_choice,
    "fill": _fill,
    "any": lambda pen: _any_or_all(pen, False),
    "all": lambda pen: _any_or_all(pen, True),
    "contains": _contains,
    "first_index": _first_index,
    "extremum": _extremum,
    "extremum_index": _extremum_index,
    "subtract_arrays": lambda pen: _elementwise(pen, "-"),
    "add_arrays": lambda pen: _elementwise(pen, "+"),
    "xor_arrays": lambda pen: _elementwise(pen, "^"),
    "equal_arrays": _equal_arrays,
    "count": _count,
    "total": _total,
    "filter": _filter,
    "weak_filter": _weak_filter,
    "head_copy": lambda pen: _part_copy(pen, False),
    "tail_copy": lambda pen: _part_copy(pen, True),
    "sorted": _sorted,
    "multiple": _multiple,
    "fill_then_add": _fill_then_add,
    "fill_then_raise": _fill_then_raise,
    "clamp_in_place": _clamp_in_place,
    "common_element": _common_element,
    "repeated": _repeated,
}
"""Every kind of program, by name."""


def program(shape: str, seed: int) -> Program | None:
    """One program of a shape; None where the draw is not sound: it does not type-check, or a run breaks it."""
    text = "use vstd::prelude::*;\n\nverus! {\n\n" + SHAPES[shape](_Pen(seed)) + "\n\n} // verus!\n"
    return Program(shape, text, seed) if sound(text) else None


def sound(text: str) -> bool:
    """Whether a program type-checks, runs, and keeps its specification in every run tried."""
    try:
        typing = check(parse(text))
    except ProgramProblem:
        return False
    interpreter = Interpreter(typing)
    for signature in typing.functions.values():
        if signature.mode != "exec":
            continue
        runs = list(Inputs(interpreter, 0).runs(signature, _RUNS))
        if not runs or any(run.fault for run in runs):
            return False
        for run in runs:
            if any(interpreter.evaluator.holds(clause, run.final) is False for clause in signature.fn.ensures):
                return False
    return True


def programs(count: int, seed: int = 0, *, held_out: bool = False) -> Iterator[Program]:
    """Distinct programs, shapes in turn: those of training, or with `held_out` those that training never has."""
    shapes = [shape for shape in SHAPES if (shape in HELD_OUT) == held_out]
    seen: set[str] = set()
    draw = 0
    while count > 0 and draw < 200 * len(shapes) + 40 * count:
        shape = shapes[draw % len(shapes)]
        made = program(shape, seed * 1_000_003 + draw)
        draw += 1
        if made is not None and made.text not in seen:
            seen.add(made.text)
            count -= 1
            yield made
