"""The adapter for a real `verus`: its streams are read as they are written, and it agrees where it is installed."""

import json

import pytest

from suites.safe.conformance import programs
from systems.safe import BackendProblem, VerusBinary, verify
from systems.safe.verus import read

RESULTS = {"encountered-vir-error": False, "success": False, "verified": 1, "errors": 1}
MESSAGE = {
    "level": "error",
    "message": "postcondition not satisfied",
    "spans": [
        {"line_start": 4, "column_start": 9, "is_primary": False, "label": "failed this postcondition"},
        {"line_start": 6, "column_start": 5, "is_primary": True, "label": "at the end of the function body"},
    ],
}


def test_counts_and_places_are_read():
    output = json.dumps({"verification-results": RESULTS}, indent=2)
    report = read(output, "note: not json\n" + json.dumps(MESSAGE), 0.5)
    assert (report.ok, report.verified, report.errors, report.compile_error) == (False, 1, 1, False)
    problem = report.diagnostics[0]
    assert (problem.kind, problem.line, problem.column) == ("postcondition not satisfied", 6, 5)
    assert (4, "failed this postcondition") in problem.labels


def test_success_is_success_and_an_error_before_proving_is_a_compile_error():
    fine = json.dumps({"verification-results": {**RESULTS, "success": True, "verified": 2, "errors": 0}})
    assert read(fine, "", 0.1).ok
    broken = read("", json.dumps({**MESSAGE, "message": "mismatched types"}), 0.1)
    assert not broken.ok
    assert broken.compile_error


@pytest.mark.parametrize("output", ["", "Segmentation fault", '{"verification-results": '])
def test_anything_else_is_no_verdict(output):
    with pytest.raises(BackendProblem):
        read(output, "", 0.1)


def test_a_binary_that_cannot_be_run_is_a_problem_of_the_backend(tmp_path):
    broken = tmp_path / "verus"
    broken.write_text("not a program", encoding="utf-8")
    with pytest.raises(BackendProblem, match="cannot run"):
        VerusBinary(broken).verify("verus! { }")


def test_the_binary_and_the_embedded_verifier_agree():
    binary = VerusBinary.find()
    if binary is None:
        pytest.skip("no `verus` in $VERUS or on the path")
    for program in programs()[::10]:
        if program.edition == "current":
            source = f"use vstd::prelude::*;\n{program.text}"
            assert binary.verify(source).ok == verify(source).ok, program.name
