"""The verifier against the verdicts of Verus, and against wrong proofs."""

from functools import cache

import pytest

from suites.safe.mutants import with_a_wrong_ensures, with_one_false_asserted
from suites.safe.recorded import EDITION, judge, rows
from suites.safe.test_soundness import reference_proofs
from systems.safe import Limits, gate, prove_many, verify, verify_many
from systems.safe.solve import cross_check
from systems.safe.verifier import plan

SAMPLE = 400
"""Attempts in the plain run: every so manieth, all kinds and tasks."""


@cache
def outcome(path, whole):
    attempts = rows(path)
    return judge(attempts if whole else attempts[:: len(attempts) // SAMPLE])


whole = pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["sample", "all"])


@pytest.mark.claim("safe/verify-references")
def test_every_task_has_an_accepted_reference_proof(data, claim):
    tasks = rows(data("safe/verus_bench_dev.jsonl"))
    solutions = [(task["task_id"], solution) for task in tasks for solution in task["solutions"]]
    reports = verify_many([text for _, text in solutions], edition=EDITION)
    proved = {name for (name, _), report in zip(solutions, reports, strict=True) if report.ok}
    assert claim.holds(100 * len(proved) / len(tasks)), {task["task_id"] for task in tasks} - proved


@whole
@pytest.mark.claim("safe/verify-ok")
def test_what_verus_accepted_is_accepted(data, claim, whole):
    found = outcome(data("safe/attempts_dev.jsonl.gz"), whole)
    assert claim.holds(found.share_accepted("ok")), found.refused_ok


@whole
@pytest.mark.claim("safe/verify-fail")
def test_what_verus_refused_is_rejected(data, claim, whole):
    found = outcome(data("safe/attempts_dev.jsonl.gz"), whole)
    assert claim.holds(found.share_rejected("fail")), found.accepted_fail


@whole
@pytest.mark.claim("safe/verify-compile-error")
def test_what_did_not_compile_is_rejected(data, claim, whole):
    found = outcome(data("safe/attempts_dev.jsonl.gz"), whole)
    assert claim.holds(found.share_rejected("compile_error"))


@whole
def test_a_second_solver_confirms_what_verus_refused_and_is_accepted(data, whole):
    pytest.importorskip("cvc5", reason="the second solver is not installed: pip install cvc5")
    path = data("safe/attempts_dev.jsonl.gz")
    accepted = set(outcome(path, whole).accepted_fail)
    for attempt in rows(path):
        if attempt["attempt_id"] in accepted:
            for script in plan(attempt["program"], edition=EDITION).scripts:
                assert set(cross_check(script)) <= {"proved"}, attempt["attempt_id"]


@whole
def test_as_many_functions_are_verified_as_with_verus(data, whole):
    """Failing ones are compared in the long run only: some recordings count every error, not every function."""
    found = outcome(data("safe/attempts_dev.jsonl.gz"), whole)
    assert found.equal_verified >= 0.95 * found.counted, f"{found.equal_verified} of {found.counted}"
    if whole:
        assert found.equal_errors >= 0.9 * found.counted, f"{found.equal_errors} of {found.counted}"


@pytest.mark.slow
@pytest.mark.claim("safe/verify-soundness")
def test_no_wrong_proof_is_accepted(data, claim):
    wrong = []
    for _, text in reference_proofs(data("safe/verus_bench_dev.jsonl")):
        wrong += list(with_a_wrong_ensures(text))
        wrong += [planted for planted, _ in with_one_false_asserted(text)]
    reports = verify_many(wrong, edition=EDITION, limits=Limits(workers=2))
    accepted = [text for text, report in zip(wrong, reports, strict=True) if report.ok]
    assert len(wrong) > 400
    assert claim.holds(len(accepted)), accepted[0]


@pytest.mark.claim("safe/gate")
def test_cheats_are_refused_and_the_honest_pass(data, claim):
    cases = rows(data("safe/cheat_cases_dev.jsonl"))
    wrong = [
        case["id"]
        for case in cases
        if case["allowed"]
        != (gate(case["task"], case["candidate"]) == [] and verify(case["candidate"], edition=EDITION).ok)
    ]
    assert len(cases) > 80
    assert claim.holds(len(wrong)), wrong


@whole
@pytest.mark.claim("safe/s1-search-development", "safe/s1")
def test_search_proves_the_development_tasks(data, claim, whole):
    """Every fifteenth task in the plain run. Each proof is verified from its text and passes the gate. The paper's own
    tasks are those of MBPP, of SV-COMP (Diffy here) and of the tutorial (Misc here).
    """
    tasks = rows(data("safe/verus_bench_dev.jsonl"))[:: 1 if whole else 15]
    proofs = list(prove_many([task["task"] for task in tasks], edition=EDITION))
    for task, proof in zip(tasks, proofs, strict=True):
        if proof.ok:
            assert verify(proof.program, edition=EDITION).ok, task["task_id"]
            assert gate(task["task"], proof.program) == [], task["task_id"]
    unproved = [task["task_id"] for task, proof in zip(tasks, proofs, strict=True) if not proof.ok]
    paper = [task["task_id"] for task in tasks if task["source"] != "CloverBench"]
    assert not claim.misses({
        "s1-search-development": 100 * (len(tasks) - len(unproved)) / len(tasks),
        "s1": 100 * (1 - len(set(unproved) & set(paper)) / len(paper)),
    }), unproved  # fmt: skip
