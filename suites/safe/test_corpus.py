"""Generated programs are distinct, sound and of many shapes; those held out are of shapes that training never has."""

import pytest

from systems.safe import corpus, score_spec, verify
from systems.safe.check import check
from systems.safe.parser import parse


def test_programs_are_distinct_and_the_same_every_time():
    one, other = list(corpus.programs(120, seed=3)), list(corpus.programs(120, seed=3))
    assert one == other
    assert len({program.text for program in one}) == 120
    assert {program.text for program in one}.isdisjoint(program.text for program in corpus.programs(60, seed=4))


def test_held_out_shapes_are_unseen():
    seen = {program.shape for program in corpus.programs(80, seed=1)}
    unseen = {program.shape for program in corpus.programs(40, seed=1, held_out=True)}
    assert seen.isdisjoint(unseen)
    assert unseen == corpus.HELD_OUT


@pytest.mark.parametrize("shape", corpus.SHAPES)
def test_every_shape_reads_runs_and_says_something(shape):
    made = next(made for seed in range(40) if (made := corpus.program(shape, seed)) is not None)
    report = verify(made.text)
    assert report.compile_error or not report.ok
    assert all(problem.kind != "unsupported" for problem in report.diagnostics)
    name = next(name for name, one in check(parse(made.text)).functions.items() if one.mode == "exec")
    score = score_spec(made.text, name)
    assert score.passes(), (shape, score)


@pytest.mark.slow
@pytest.mark.claim("safe/s11")
def test_two_thousand_programs(claim):
    made = list(corpus.programs(2000))
    assert len({program.text for program in made}) == 2000
    claim.report(len(made))
