"""Specifications are scored by test cases: right and telling ones are kept, wrong and empty ones are not."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from systems.safe import SafeError, score_spec, synthesize_specs
from systems.safe.specs import COMPLETE, CORRECT, KEPT, equivalent, mutated, thresholds, with_ensures
from systems.safe.types import Ty

CODE = """\
use vstd::prelude::*;
verus! {
fn largest(v: &Vec<i32>) -> (m: i32)
    requires v.len() > 0,
    ensures ENSURES,
{
    let mut m = v[0];
    let mut i: usize = 1;
    while i < v.len() {
        if v[i] > m {
            m = v[i];
        }
        i += 1;
    }
    m
}
} // verus!
"""
BOUND = "forall|k: int| 0 <= k < v.len() ==> v[k] <= m"
MEMBER = "exists|k: int| 0 <= k < v.len() && v[k] == m"


def scored(*ensures):
    return score_spec(CODE.replace("ENSURES", ", ".join(ensures)), "largest")


def test_the_whole_specification_is_right_and_refuses_every_wrong_result():
    score = scored(BOUND, MEMBER)
    assert (score.correctness, score.completeness) == (1.0, 1.0)
    assert score.cases == 20
    assert score.mutants > 60
    assert score.passes()


def test_a_specification_that_says_nothing_is_dropped():
    score = scored("true")
    assert (score.correctness, score.completeness) == (1.0, 0.0)
    assert not score.passes()


def test_a_wrong_specification_is_dropped():
    assert scored("m == 0").correctness < CORRECT
    assert not scored("m == 0").passes()


def test_half_a_specification_refuses_some_wrong_results():
    assert 0 < scored(BOUND).completeness < 1
    assert 0 < scored(MEMBER).completeness < 1


def test_what_is_not_decided_counts_against_both():
    score = scored("forall|a: int, b: int| a * b == b * a")
    assert score.correctness == 0.0
    assert score.completeness == 0.0


def test_the_score_is_the_same_every_time():
    assert scored(MEMBER) == scored(MEMBER)


def test_specifications_are_found_and_the_best_comes_first():
    found = synthesize_specs(CODE.replace("ENSURES", "true"), "largest")
    assert 1 <= len(found) <= KEPT
    assert all(one.score.passes(CORRECT, COMPLETE) for one in found)
    assert [one.score.completeness for one in found] == sorted((one.score.completeness for one in found), reverse=True)
    text = " ".join(found[0].ensures)
    assert "forall" in text
    assert "exists" in text


def test_equivalent_specifications_are_seen_by_the_solver():
    source = CODE.replace("ENSURES", BOUND)
    other = "forall|j: int| 0 <= j < v.len() ==> m >= v[j]"
    assert equivalent(source, "largest", [BOUND], [other])
    assert not equivalent(source, "largest", [BOUND], [MEMBER])


@pytest.mark.claim("safe/s10")
def test_the_filter_has_the_thresholds_of_the_paper(claim):
    given = {"correctness": CORRECT, "completeness": COMPLETE, "kept": KEPT}
    assert claim.holds(sum(given[name] != value for name, value in claim.value.items()))


def test_the_table_of_thresholds_falls_in_both_directions():
    sources = [(CODE.replace("ENSURES", text), "largest") for text in (BOUND, MEMBER, f"{BOUND}, {MEMBER}", "true")]
    table = thresholds(sources, steps=4)
    assert table[0.0, 0.0] == 4
    assert table[1.0, 1.0] == 1
    assert all(table[a, b] <= table[max(0.0, a - 0.25), b] for a, b in table)


def test_unknown_functions_are_named():
    with pytest.raises(SafeError, match="no executable function `smallest`: there are largest"):
        score_spec(CODE.replace("ENSURES", "true"), "smallest")


def test_other_ensures_replace_the_old():
    assert "m == 3" in with_ensures(CODE.replace("ENSURES", BOUND), "largest", ["m == 3"])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-128, 127), max_size=6).map(tuple), st.integers(0, 2**32))
def test_a_mutant_is_of_the_same_type(value, seed):
    other = mutated(value, Ty("Vec", (Ty("i8"),)), random.Random(seed))
    assert isinstance(other, tuple)
    assert all(-128 <= item <= 127 for item in other)
    assert abs(len(other) - len(value)) <= max(1, len(value))
