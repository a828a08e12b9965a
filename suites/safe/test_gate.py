"""The gate: honest candidates pass, every way of cheating is refused, on trees and not on text."""

import pytest

from systems.safe import SyntaxProblem, gate, verify

TASK = """\
use vstd::prelude::*;
verus! {
spec fn small(x: u32) -> bool { x < 10 }
fn count(n: u32) -> (i: u32)
    requires small(n),
    ensures i == n,
{
    let mut i: u32 = 0;
    while i < n
    {
        i += 1;
    }
    i
}
}
"""
HONEST = TASK.replace("while i < n\n", "while i < n invariant i <= n, decreases n - i,\n")


def changed(*pairs):
    text = HONEST
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize(
    "candidate",
    [
        HONEST,
        "// assume(false)\n" + HONEST.replace("\n", "\n   "),
        changed(("i += 1;", "i += 1; assert(i > 0); proof { let assumed = 3; assert(assumed == 3); }")),
        changed(("let mut i", "let ghost assumed_bound: int = 3; let mut i")),
        changed(("fn count", "#[verifier::loop_isolation(false)]\nfn count")),
        changed(("spec fn small", "proof fn help(n: int)\n    ensures n + 1 > n,\n{\n}\nspec fn small")),
        changed(("spec fn small(x: u32) -> bool { x < 10 }", "")).replace(
            "fn count", "spec fn small(x: u32) -> bool { x < 10 }\nfn count"
        ),
    ],
    ids=["plain", "layout", "assertions", "ghost variable", "isolation", "lemma", "order"],
)
def test_ghost_code_and_layout_are_free(candidate):
    assert gate(TASK, candidate) == []
    assert verify(candidate).ok


CHEATS = {
    "assume": ("i += 1;", "i += 1; assume(false);"),
    "admit": ("i += 1;", "i += 1; proof { admit(); }"),
    "assume in a proof": ("i += 1;", "i += 1; assert(i > 0) by { assume(false); }"),
    "external body": ("fn count", "#[verifier::external_body]\nfn count"),
    "old external body": ("fn count", "#[verifier(external_body)]\nfn count"),
    "no termination": ("fn count", "#[verifier::exec_allows_no_decreases_clause]\nfn count"),
    "axiom": ("spec fn small", "axiom fn wrong() ensures false;\nspec fn small"),
    "stronger requires": ("requires small(n)", "requires small(n), n == 0"),
    "weaker ensures": ("ensures i == n", "ensures i == n || true"),
    "no ensures": ("ensures i == n,", ""),
    "other spec": ("x < 10", "x < 1"),
    "other code": ("i += 1", "i += 2"),
    "other condition": ("while i < n", "while false && i < n"),
    "other name": ("fn count", "fn counts"),
    "panic": ("i += 1;", "i += 1; panic!();"),
    "new code": ("spec fn small", "fn other() {\n}\nspec fn small"),
    "circular lemma": ("spec fn small", "proof fn wrong(n: int) ensures false { wrong(n); }\nspec fn small"),
    "uninterpreted": ("spec fn small", "spec fn magic() -> bool;\nspec fn small"),
    "not a program": ("i += 1;", "i += ;"),
}


@pytest.mark.parametrize("cheat", CHEATS.values(), ids=CHEATS.keys())
def test_a_cheat_is_refused_with_its_place(cheat):
    violations = gate(TASK, changed(cheat))
    assert violations
    assert all(violation.line >= 1 and violation.message for violation in violations)


def test_an_assumption_of_the_task_may_stay_and_may_not_be_copied():
    task = TASK.replace("let mut i", "assume(n < 5); let mut i")
    assert gate(task, task) == []
    assert gate(task, task.replace("i += 1;", "i += 1; assume(n < 5);")) != []


def test_a_task_that_cannot_be_read_is_the_callers_problem():
    with pytest.raises(SyntaxProblem):
        gate("fn main() {}", HONEST)
