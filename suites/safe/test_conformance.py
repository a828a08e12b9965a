"""Every own program gets its verdict, with the failing lines exactly."""

import pytest

from suites.safe.conformance import programs
from systems.safe import verify


@pytest.mark.parametrize("program", programs(), ids=lambda program: program.name)
def test_the_verdict_and_the_failing_lines_are_right(program):
    report = verify(program.text, edition=program.edition)
    assert {(problem.line, problem.kind) for problem in report.diagnostics} == program.expected
    assert report.ok == program.right


def test_no_name_stands_twice():
    names = [program.name for program in programs()]
    assert len(names) == len(set(names))
