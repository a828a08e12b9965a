"""Search finds proofs: right ones, minimal ones, in the task's own text, and none for what is false."""

import pytest

from suites.safe.conformance import programs
from suites.safe.mutants import without_loop_clauses
from systems.safe import gate, prove, verify
from systems.safe.__main__ import main
from systems.safe.sketch import write

TASKS = {
    "counting": """
fn count(n: u32) -> (i: u32)
    ensures i == n,
{
    let mut i: u32 = 0;
    while i < n // one step at a time
    {
        i += 1;
    }
    i
}
""",
    "maximum": """
fn largest(v: &Vec<i64>) -> (best: i64)
    requires v.len() > 0,
    ensures
        forall|p: int| 0 <= p < v.len() ==> v[p] <= best,
        exists|p: int| 0 <= p < v.len() && v[p] == best,
{
    let mut m = v[0];
    let mut at: usize = 1;
    while at < v.len() {
        if v[at] > m {
            m = v[at];
        }
        at += 1;
    }
    m
}
""",
    "search from the end": """
fn find(v: &Vec<u8>, wanted: u8) -> (found: bool)
    ensures found == exists|p: int| 0 <= p < v.len() && v[p] == wanted,
{
    let mut left: usize = v.len();
    while left > 0 {
        left = left - 1;
        if v[left] == wanted {
            return true;
        }
    }
    false
}
""",
    "filling in place": """
fn fill(v: &mut Vec<u16>, x: u16)
    ensures
        v.len() == old(v).len(),
        forall|p: int| 0 <= p < v.len() ==> v[p] == x,
{
    let mut i: usize = 0;
    while i < v.len() {
        v.set(i, x);
        i = i + 1;
    }
}
""",
    "sum by recursion": """
spec fn total(s: Seq<u32>) -> int
    decreases s.len(),
{
    if s.len() == 0 { 0 } else { total(s.drop_last()) + s.last() as int }
}

fn add(v: &Vec<u32>) -> (t: u128)
    ensures t == total(v@),
{
    let mut t: u128 = 0;
    let mut i: usize = 0;
    while i < v.len() {
        t = t + v[i] as u128;
        i += 1;
    }
    t
}
""",
    "filter": """
fn positive(v: &Vec<i32>) -> (out: Vec<i32>)
    ensures out@ == v@.filter(|x: i32| x > 0),
{
    let mut out: Vec<i32> = Vec::new();
    let mut i: usize = 0;
    while i < v.len() {
        if v[i] > 0 {
            out.push(v[i]);
        }
        i += 1;
    }
    out
}
""",
    "two loops": """
fn halves(v: &Vec<u32>, cut: usize) -> (out: (Vec<u32>, Vec<u32>))
    requires cut <= v.len(),
    ensures
        out.0@ == v@.subrange(0, cut as int),
        out.1@ == v@.subrange(cut as int, v.len() as int),
{
    let mut a: Vec<u32> = Vec::new();
    let mut b: Vec<u32> = Vec::new();
    let mut i: usize = 0;
    while i < cut {
        a.push(v[i]);
        i += 1;
    }
    while i < v.len() {
        b.push(v[i]);
        i += 1;
    }
    (a, b)
}
""",
}


def whole(text):
    return f"use vstd::prelude::*;\nverus! {{\n{text}\n}} // verus!\n"


def without(candidates, one):
    return [other for other in candidates if other is not one]


@pytest.mark.parametrize("text", TASKS.values(), ids=TASKS.keys())
def test_a_proof_is_found_verified_from_its_text_honest_and_minimal(text):
    task = whole(text)
    assert not verify(task).ok
    proof = prove(task)
    assert proof.ok, proof.why
    assert proof.program != task
    assert verify(proof.program).ok
    assert gate(task, proof.program) == []
    for one in proof.added:
        assert not verify(write(task, without(proof.added, one)).text).ok, f"not needed: {one.text}"


def test_the_same_proof_is_found_every_time_and_under_other_names():
    task = whole(TASKS["maximum"])
    proof = prove(task)
    assert prove(task).program == proof.program
    other = task.replace("largest", "f").replace("best", "zz").replace("at", "nn")
    assert prove(other).ok


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("counting", ("i == n", "i == n + 1")), ("maximum", ("v[p] <= best", "v[p] < best")),
     ("filter", ("x > 0", "x > 1")), ("filling in place", ("v[p] == x", "v[p] == 0"))],
)  # fmt: skip
def test_what_is_false_is_not_proved(right, wrong):
    text = TASKS[right]
    assert wrong[0] in text
    head, tail = text.split("{", 1)
    proof = prove(whole(head.replace(*wrong) + "{" + tail))
    assert not proof.ok
    assert proof.why


def test_layout_and_comments_of_the_task_stay():
    task = whole(TASKS["counting"])
    proof = prove(task)
    kept = iter(proof.program.splitlines())
    assert all(any(line.strip() == other.strip() for other in kept) for line in task.splitlines())


def test_bad_tasks_are_reported():
    for text in ("", "verus! { fn f( }", "verus! { trait T { } }"):
        proof = prove(text)
        assert not proof.ok
        assert proof.report.compile_error


def test_the_tool_writes_the_proof_beside_the_task(tmp_path, capsys):
    task = tmp_path / "count.rs"
    task.write_text(whole(TASKS["counting"]), encoding="utf-8")
    assert main(["prove", str(task)]) == 0
    assert "invariant i <= n" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "count.proved.rs"), "--workers", "1"]) == 0
    assert main(["gate", str(task), str(tmp_path / "count.proved.rs")]) == 0
    task.write_text(whole(TASKS["counting"]).replace("i == n", "i > n"), encoding="utf-8")
    assert main(["prove", str(task), "-o", str(tmp_path / "none.rs")]) == 1
    assert not (tmp_path / "none.rs").exists()


@pytest.mark.slow
def test_own_programs_are_proved_again_without_their_invariants():
    """The project's own right programs with a loop, written for the verifier, with every invariant taken out."""
    tried, unproved = 0, []
    for program in programs():
        if program.right and program.name.startswith("loops/") and "invariant" in program.text:
            tried += 1
            if not prove(without_loop_clauses(program.text), edition=program.edition).ok:
                unproved.append(program.name)
    assert tried >= 8
    assert len(unproved) <= 0.3 * tried, unproved
