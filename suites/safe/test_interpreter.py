"""The interpreter agrees with Python, and with the verifier: what is verified never fails when it is run."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suites.safe.conformance import programs
from suites.safe.recorded import EDITION, rows
from systems.safe import ProgramProblem, corpus, verify
from systems.safe.check import check
from systems.safe.evaluate import Evaluator, wrapped
from systems.safe.interp import Inputs, Interpreter
from systems.safe.parser import parse


def broken_runs(text, edition, count=15, seed=0):
    """Runs that break a rule or an ensures clause."""
    interpreter = Interpreter(check(parse(text), edition))
    for signature in interpreter.typing.functions.values():
        if signature.mode == "exec":
            for run in Inputs(interpreter, seed).runs(signature, count):
                holds = [interpreter.evaluator.holds(clause, run.final) for clause in signature.fn.ensures]
                if run.fault or False in holds:
                    yield signature.name, run


@pytest.mark.parametrize("program", programs(), ids=lambda program: program.name)
def test_no_run_of_a_right_program_fails(program):
    if program.right:
        assert list(broken_runs(program.text, program.edition)) == []


def test_no_run_of_what_verus_accepted_fails(data):
    for attempt in rows(data("safe/attempts_dev.jsonl.gz"))[::9]:
        if attempt["verdict"] == "ok" and "assume" not in attempt["program"]:
            try:
                assert list(broken_runs(attempt["program"], EDITION)) == [], attempt["attempt_id"]
            except ProgramProblem as problem:
                raise AssertionError(attempt["attempt_id"]) from problem


def test_what_runs_break_is_not_verified():
    """Wrong constants in generated programs: the runs that break them are never contradicted by the verifier."""
    found = 0
    for program in corpus.programs(38, seed=5):
        head, brace, body = program.text.rpartition("\n{\n")
        wrong = head + brace + body.replace("+ 1", "+ 2").replace("< ", "<= ", 1)
        if wrong != program.text and list(broken_runs(wrong, "current")):
            found += 1
            assert not verify(wrong).ok, wrong
    assert found > 5


def evaluated(text):
    program = parse(f"verus! {{ spec fn f() -> int {{ {text} }} }}")
    typing = check(program)
    return Evaluator(typing).spec_call(typing.functions["f"], ())


@settings(max_examples=150, deadline=None)
@given(st.integers(-60, 60), st.integers(-9, 9).filter(bool))
def test_division_is_euclidean_as_in_the_solver(a, b):
    quotient, rest = evaluated(f"({a}) / ({b})"), evaluated(f"({a}) % ({b})")
    assert a == b * quotient + rest
    assert 0 <= rest < abs(b)
    claim = (
        f"verus! {{ proof fn f() {{ assert(({a}int) / ({b}int) == ({quotient}) && ({a}int) % ({b}int) == {rest}); }} }}"
    )
    assert verify(claim).ok


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-9, 9), max_size=6), st.integers(0, 6), st.integers(0, 6), st.integers(-9, 9))
def test_sequences_are_lists(items, i, j, x):
    i, j = sorted((min(i, len(items)), min(j, len(items))))
    made = f"seq![{', '.join(f'{item}int' for item in items)}]" if items else "Seq::<int>::empty()"
    assert evaluated(f"{made}.push({x}).len() as int") == len(items) + 1
    assert evaluated(f"if {made}.contains({x}) {{ 1 }} else {{ 0 }}") == (x in items)
    parts = f"{made}.subrange({i}, {j}).fold_left(0, |a: int, b: int| 3 * a + b)"
    folded = 0
    for item in items[i:j]:
        folded = 3 * folded + item
    assert evaluated(parts) == folded


@settings(max_examples=100, deadline=None)
@given(st.integers(-(2**40), 2**40), st.sampled_from(["u8", "i8", "u16", "i16", "u32", "i32"]))
def test_casts_wrap_as_in_rust(value, kind):
    bits = int(kind[1:])
    expected = value % 2**bits
    if kind[0] == "i" and expected >= 2 ** (bits - 1):
        expected -= 2**bits
    assert wrapped(value, kind) == expected


def test_quantifiers_are_never_guessed():
    typing = check(parse("verus! { spec fn f(x: int) -> bool { forall|k: int| k * k >= x } }"))
    evaluator = Evaluator(typing)
    body = typing.functions["f"].fn.body
    name = typing.functions["f"].params[0].unique
    assert evaluator.holds(body, {name: 1}) is False
    assert evaluator.holds(body, {name: 0}) is None
