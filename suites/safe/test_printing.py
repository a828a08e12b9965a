"""Printing and parsing undo each other."""

import pytest

from suites.safe.conformance import programs
from suites.safe.recorded import rows
from systems.safe import ProgramProblem, verify
from systems.safe.parser import parse
from systems.safe.printer import show_program


@pytest.mark.parametrize("program", programs(), ids=lambda program: program.name)
def test_what_is_printed_is_read_back_as_the_same_tree(program):
    try:
        tree = parse(program.text)
    except ProgramProblem:
        return
    assert parse(show_program(tree)) == tree


def test_every_reference_proof_is_read_back_and_still_verified(data):
    for number, task in enumerate(rows(data("safe/verus_bench_dev.jsonl"))):
        tree = parse(task["solutions"][0])
        printed = show_program(tree)
        assert parse(printed) == tree, task["task_id"]
        if number % 6 == 0:
            assert verify(printed, edition="2024-08").ok, task["task_id"]


def test_many_recorded_attempts_are_read_back(data):
    for attempt in rows(data("safe/attempts_dev.jsonl.gz"))[::12]:
        try:
            tree = parse(attempt["program"])
        except ProgramProblem:
            continue
        assert parse(show_program(tree)) == tree, attempt["attempt_id"]
