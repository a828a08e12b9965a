"""What is verified never fails when it is run: programs made at random, and run on every input by numpy or Python."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suites.safe.conformance import programs
from systems.safe import verify

RANGES = {"u8": (0, 255), "i8": (-128, 127)}


@dataclass(frozen=True)
class Straight:
    """A function of two machine integers: Rust text, and which inputs break it by the meaning of Rust and Verus."""

    text: str
    breaks: bool


@dataclass(frozen=True)
class Value:
    """An expression: its text, its values on every input, and where computing it fails."""

    text: str
    values: np.ndarray
    fails: np.ndarray


def leaf(kind):
    low, high = RANGES[kind]
    grid = np.arange(low, high + 1, dtype=np.int64)
    a, b = np.meshgrid(grid, grid, indexing="ij")
    nothing = np.zeros_like(a, dtype=bool)
    names = st.sampled_from([Value("a", a, nothing), Value("b", b, nothing)])
    constants = st.integers(max(low, -20), 20).map(
        lambda number: Value(f"({number})" if number < 0 else f"{number}", np.full_like(a, number), nothing)
    )
    return st.one_of(names, names, constants)


def combined(kind):
    low, high = RANGES[kind]

    def apply(op, left, right):
        if op in "/%":
            safe = np.where(right.values == 0, 1, right.values)
            values = left.values // safe if op == "/" else left.values % safe
            return Value(f"({left.text} {op} {right.text})", values, left.fails | right.fails | (right.values == 0))
        values = {"+": np.add, "-": np.subtract, "*": np.multiply}[op](left.values, right.values)
        fails = left.fails | right.fails | (values < low) | (values > high)
        return Value(f"({left.text} {op} {right.text})", np.clip(values, low, high), fails)

    def choice(op, left, right, then, orelse):
        holds = compared(op, left, right)
        fails = left.fails | right.fails | np.where(holds, then.fails, orelse.fails)
        text = f"(if {left.text} {op} {right.text} {{ {then.text} }} else {{ {orelse.text} }})"
        return Value(text, np.where(holds, then.values, orelse.values), fails)

    operators = "+-*" if low < 0 else "+-*/%"

    def grow(inner):
        arithmetic = st.builds(apply, st.sampled_from(operators), inner, inner)
        return st.one_of(arithmetic, st.builds(choice, st.sampled_from(COMPARISONS), inner, inner, inner, inner))

    return st.recursive(leaf(kind), grow, max_leaves=5)


COMPARISONS = ("<", "<=", "==", "!=", ">", ">=")


def compared(op, left, right):
    functions = {"<": np.less, "<=": np.less_equal, "==": np.equal, "!=": np.not_equal, ">": np.greater}
    return functions.get(op, np.greater_equal)(left.values, right.values)


@st.composite
def straight(draw):
    kind = draw(st.sampled_from(sorted(RANGES)))
    leaves = leaf(kind)
    body = draw(combined(kind))
    low, op, high = draw(leaves), draw(st.sampled_from(COMPARISONS)), draw(leaves)
    allowed = compared(op, low, high)
    bound, claimed = draw(leaves), draw(st.sampled_from(COMPARISONS))
    result = Value("r", body.values, body.fails)
    holds = compared(claimed, result, bound)
    breaks = bool(np.any(allowed & (body.fails | ~holds)))
    text = f"""
verus! {{
fn f(a: {kind}, b: {kind}) -> (r: {kind})
    requires {low.text} {op} {high.text},
    ensures r {claimed} {bound.text},
{{
    {body.text}
}}
}}
"""
    return Straight(text, breaks)


@settings(max_examples=80, deadline=None)
@given(straight())
def test_a_verified_function_holds_on_every_input(program):
    report = verify(program.text)
    assert not report.compile_error, (program.text, report.diagnostics)
    if report.ok:
        assert not program.breaks, program.text


@pytest.mark.slow
@settings(max_examples=20_000, deadline=None)
@given(straight())
def test_a_verified_function_holds_on_every_input_at_length(program):
    if verify(program.text).ok:
        assert not program.breaks, program.text


INVARIANTS = (
    "i <= n",
    "s == c * i",
    "s <= c * i",
    "s >= i",
    "s == i",
    "c <= 5",
    "s <= 500",
    "i >= 0 ==> s >= 0",
    "n <= 40",
)
ENSURES = ("s == c * n", "s <= c * n", "s >= n", "s == n", "s <= 200", "s < 200", "s == c * n + 1", "n > 0 ==> s > 0")
STEPS = ("s = s + c;", "s = s + 1;", "if c > 2 { s = s + c; } else { s = s + 2; }", "s = s - 1;")


def run_loop(n, c, start, step):
    """`s` at the end, or None where a step leaves `u32`."""
    s = start
    for _ in range(n):
        match step:
            case "s = s + c;":
                s += c
            case "s = s + 1;":
                s += 1
            case "s = s - 1;":
                s -= 1
            case _:
                s += max(2, c)
        if s < 0:
            return None
    return s


@settings(max_examples=60, deadline=None)
@given(
    st.sets(st.sampled_from(INVARIANTS)),
    st.sampled_from(ENSURES),
    st.sampled_from(STEPS),
    st.integers(0, 2),
    st.sampled_from(["while i < n", "while i != n"]),
    st.booleans(),
)
def test_a_verified_loop_holds_on_every_run(invariants, ensures, step, start, head, isolated):
    clauses = "".join(f"            {clause},\n" for clause in sorted(invariants))
    text = f"""
verus! {{
{"" if isolated else "#[verifier::loop_isolation(false)]"}
fn f(n: u32, c: u32) -> (s: u32)
    requires n <= 40, 1 <= c <= 5,
    ensures {ensures},
{{
    let mut s: u32 = {start};
    let mut i: u32 = 0;
    {head}
        invariant i <= n,
{clauses}        decreases n - i,
    {{
        {step}
        i = i + 1;
    }}
    s
}}
}}
"""
    report = verify(text)
    assert not report.compile_error, (text, report.diagnostics)
    if report.ok:
        for n in range(41):
            for c in range(1, 6):
                s = run_loop(n, c, start, step)
                assert s is not None, (text, n, c)
                assert _meets(ensures, s, n, c), (text, n, c, s)


def _meets(ensures, s, n, c):
    return {
        "s == c * n": s == c * n, "s <= c * n": s <= c * n, "s >= n": s >= n, "s == n": s == n, "s <= 200": s <= 200,
        "s < 200": s < 200, "s == c * n + 1": s == c * n + 1, "n > 0 ==> s > 0": n == 0 or s > 0,
    }[ensures]  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(programs()), st.integers(0, 3), st.booleans())
def test_blank_lines_and_comments_change_no_verdict(program, lines, comment):
    filler = "\n" * lines + ("// assume(false)\n" if comment else "")
    report = verify(program.text.replace("\nfn ", f"\n{filler}fn "), edition=program.edition)
    assert report.ok == program.right
    assert sorted(problem.kind for problem in report.diagnostics) == sorted(kind for _, kind in program.expected)


def test_weaker_requires_and_stronger_ensures_never_help():
    for program in programs():
        if program.right:
            continue
        stronger = program.text.replace("ensures ", "ensures 1int == 2int, ", 1)
        assert not verify(stronger, edition=program.edition).ok
