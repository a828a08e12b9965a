"""Nothing wrong is ever accepted: planted falsehoods, negated claims, and a theory without contradictions."""

import json

import pytest

from suites.safe.conformance import programs
from suites.safe.mutants import with_a_wrong_ensures, with_false_asserted, with_one_false_asserted
from systems.safe import verify
from systems.safe.parser import parse
from systems.safe.spec import nodes
from systems.safe.syntax import Assume, MacroCall
from systems.safe.theory import OPTIONS, Theory
from systems.safe.types import Ty
from systems.safe.verifier import plan

RIGHT = [program for program in programs() if program.right]
DEAD = frozenset(("loops/for_empty_range",))
"""Programs with a body that never runs, in which anything holds."""
SEQUENCES = [
    "push",
    "update",
    "subrange",
    "add",
    "contains",
    "no_duplicates",
    "reverse",
    "insert",
    "remove",
    "filter",
    "to_set",
    "empty",
]
SETS = ["len", "choose", "empty", "insert", "remove", "union", "intersect", "difference", "disjoint", "new"]
EVERY = 5
"""The plain run takes each so manieth mutant of the reference proofs; the slow run takes all."""


def reference_proofs(path):
    for row in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(row)
        for number, solution in enumerate(entry["solutions"]):
            if not any(isinstance(node, Assume | MacroCall) for node in nodes(parse(solution).items)):
                yield f"{entry['task_id']}/{number}", solution


def planted_and_proved(text, edition):
    """How many planted `assert(false)` were not reported."""
    planted, count = with_false_asserted(text)
    report = verify(planted, edition=edition)
    assert not report.compile_error, report.diagnostics
    places = {(problem.line, problem.column) for problem in report.diagnostics if problem.kind == "assertion failed"}
    return count - sum(1 for _ in places if planted.splitlines()[_[0] - 1][_[1] - 1 :].startswith("assert(false)"))


@pytest.mark.parametrize("program", [p for p in RIGHT if p.name not in DEAD], ids=lambda program: program.name)
def test_false_is_not_provable_at_the_start_of_any_body(program):
    for planted, line in with_one_false_asserted(program.text):
        report = verify(planted, edition=program.edition)
        assert any(problem.line == line and problem.kind == "assertion failed" for problem in report.diagnostics), (
            planted
        )


def trusting(program):
    return any(isinstance(node, Assume) for node in nodes(parse(program.text).items))


@pytest.mark.parametrize("program", [p for p in RIGHT if not trusting(p)], ids=lambda program: program.name)
def test_a_negated_or_false_ensures_is_refused(program):
    for mutant in with_a_wrong_ensures(program.text):
        assert not verify(mutant, edition=program.edition).ok, mutant


def test_false_is_not_provable_in_any_reference_proof(data):
    for name, text in reference_proofs(data("safe/verus_bench_dev.jsonl")):
        assert planted_and_proved(text, "2024-08") == 0, name


@pytest.mark.parametrize("every", [EVERY, pytest.param(1, marks=pytest.mark.slow)])
def test_a_negated_or_false_ensures_is_refused_in_every_reference_proof(data, every):
    proofs = reference_proofs(data("safe/verus_bench_dev.jsonl"))
    mutants = [(name, mutant) for name, text in proofs for mutant in with_a_wrong_ensures(text)]
    assert len(mutants) > 200
    for name, mutant in mutants[::every]:
        assert not verify(mutant, edition="2024-08").ok, f"{name}\n{mutant}"


def every_theory():
    """Theories with every operation, over elements with and without a range."""
    integer, byte = Ty("int"), Ty("u8")
    for element in (integer, byte, Ty("tuple", (byte, Ty("nat"))), Ty("Vec", (Ty("i32"),)), Ty("param")):
        theory = Theory({}, lambda datatype, type_: [], frozenset("+-*/%"))
        sequence, predicate = Ty("Seq", (element,)), Ty("spec_fn", (element, Ty("bool")))
        for sort in (sequence, Ty("Vec", (element,)), Ty("slice", (element,)), Ty("Option", (element,)), predicate):
            theory.sort(sort)
        for operation in SEQUENCES:
            theory.seq(operation, sequence, "s")
        theory.seq("map_values", sequence, "s", "f", other=Ty("spec_fn", (element, byte)))
        theory.seq("new", sequence, "n", "f", other=Ty("spec_fn", (integer, element)))
        for operation in SETS:
            theory.set(operation, Ty("Set", (element,)), "s")
        theory.clip(integer, byte, "x")
        theory.bits("^", byte, "x", "y")
        yield element, theory


@pytest.mark.parametrize(
    ("element", "theory"), list(every_theory()), ids=lambda part: str(part) if isinstance(part, Ty) else ""
)
def test_the_theory_has_no_contradiction_that_model_based_instantiation_finds(element, theory):
    import z3

    options = OPTIONS.replace("(set-option :smt.mbqi false)", "(set-option :smt.mbqi true)")
    limit = "(set-option :rlimit 20000000)\n(set-option :timeout 4000)\n"
    text = "\n".join([options + limit, *theory.lines, "(check-sat)"])
    context = z3.Context()
    answer = z3.Z3_eval_smtlib2_string(context.ref(), text)
    assert answer.strip() in ("sat", "unknown", "timeout"), answer


def test_equal_runs_use_equal_resources():
    for program in RIGHT[:20]:
        first, second = (verify(program.text, edition=program.edition) for _ in range(2))
        assert first.rlimit_used == second.rlimit_used
        assert first.rlimit_used > 0 or first.obligations == 0


def test_a_script_is_the_same_text_every_time():
    for program in RIGHT:
        one, two = (plan(program.text, edition=program.edition).scripts for _ in range(2))
        assert one == two
