"""Obligations a second: a CPU workload that repeats to the resource unit, beside other ways to discharge them."""

import re

import pytest

from suites.safe.conformance import programs
from systems.safe import Cache, Limits, corpus, prove, solve, verify, verify_many
from systems.safe.check import check
from systems.safe.interp import Inputs, Interpreter
from systems.safe.parser import parse
from systems.safe.policy import Example, menu, train
from systems.safe.solve import Script, cross_check
from systems.safe.theory import OPTIONS
from systems.safe.verifier import plan

pytestmark = pytest.mark.component("model")

RLIMIT = Limits().rlimit
CHECK = re.compile(r"\(push\)\n\(assert \(not [^\n]*\)\)\n\(check-sat\)\n\(get-info :rlimit\)\n\(pop\)\n?")


def right():
    return [program for program in programs() if program.right]


def proved_scripts():
    """The scripts of programs that verify, without those that need non-linear arithmetic."""
    scripts = [script for program in right() for script in plan(program.text, edition=program.edition).scripts]
    return [script for script in scripts if script.goals and "arith.nl true" not in script.text]


def separate(script):
    """A script for each check of `script`, with the facts before it and no other check."""
    pieces = CHECK.split(script.text)
    checks = CHECK.findall(script.text)
    return [Script("".join(pieces[: place + 1]) + check, 1) for place, check in enumerate(checks)]


def test_verify(measure):
    """The gate's: own programs, whose resource use is the same number on every machine."""
    chosen = right()[::3]

    def run():
        return [verify(program.text, edition=program.edition) for program in chosen]

    reports = run()
    assert all(report.ok for report in reports)
    measure.digest("rlimit", str([report.rlimit_used for report in reports]).encode())
    measure(run, metric="time")


@pytest.mark.slow
def test_parse(measure):
    texts = [program.text for program in programs()]
    measure(lambda: [parse(text) for text in texts], metric="time")


@pytest.mark.slow
@pytest.mark.claim("safe/verify-sessions")
def test_sessions_beside_a_fresh_solver_for_each_obligation(measure, claim):
    scripts = proved_scripts()
    alone = [one for script in scripts for one in separate(script)]

    def sessions():
        return sum(verdict == "proved" for script in scripts for verdict in solve.solve(script, RLIMIT).verdicts)

    def fresh():
        return sum(verdict == "proved" for script in alone for verdict in solve.solve(script, RLIMIT).verdicts)

    speed = measure.versus({"sessions": sessions, "fresh": fresh}).over("fresh")
    assert claim.holds(speed)


@pytest.mark.slow
def test_solver_profiles(measure):
    """Verus's options beside Z3's own, and cvc5 on the same text: every obligation proved by each."""
    pytest.importorskip("cvc5", reason="the second solver is not installed: pip install cvc5")
    scripts = proved_scripts()
    plain = [Script(script.text.replace(OPTIONS, ""), script.goals) for script in scripts]

    def ours():
        return sum(verdict == "proved" for script in scripts for verdict in solve.solve(script, RLIMIT).verdicts)

    def default():
        return sum(verdict == "proved" for script in plain for verdict in solve.solve(script, RLIMIT).verdicts)

    def second():
        return sum(verdict == "proved" for script in scripts for verdict in cross_check(script))

    speed = measure.versus({"ours": ours, "default": default, "cvc5": second})
    speed.over("default").at_least(1)
    speed.over("cvc5").at_least(2)


@pytest.mark.slow
@pytest.mark.claim("safe/verify-processes")
def test_two_processes_beside_one(measure, claim):
    texts = [program.text for program in right() if program.edition == "current"] * 8

    def run(workers):
        return sum(report.ok for report in verify_many(texts, limits=Limits(workers=workers)))

    speed = measure.versus({"two": lambda: run(2), "one": lambda: run(1)}).over("one")
    assert claim.holds(speed)


@pytest.mark.slow
def test_the_cache(measure, tmp_path):
    chosen = right()
    cache = Cache(tmp_path)

    def cached():
        return sum(verify(program.text, edition=program.edition, cache=cache).ok for program in chosen)

    def fresh():
        return sum(verify(program.text, edition=program.edition).ok for program in chosen)

    cached()
    measure.versus({"cached": cached, "fresh": fresh}).over("fresh").at_least(20)


def test_prove(measure):
    """The gate's: proofs of generated programs, whose texts are the same on every machine."""
    tasks = [made.text for made in corpus.programs(1, seed=11)]

    def run():
        return [prove(task) for task in tasks]

    proofs = run()
    assert all(proof.ok for proof in proofs)
    measure.digest("proofs", "".join(proof.program for proof in proofs).encode())
    measure(run, metric="time")


@pytest.mark.slow
def test_the_interpreter(measure):
    texts = [made.text for made in corpus.programs(40, seed=2)]
    typings = [check(parse(text)) for text in texts]

    def run():
        count = 0
        for typing in typings:
            interpreter = Interpreter(typing)
            for signature in typing.functions.values():
                if signature.mode == "exec":
                    count += sum(len(made.heads) for made in Inputs(interpreter, 0).runs(signature, 40))
        return count

    assert run() > 1000
    measure(run, metric="time")


@pytest.mark.slow
def test_training_the_policy(measure):
    menus = [menu(made.text) for made in corpus.programs(6, seed=3)]
    examples = [Example(one, frozenset(range(0, len(one.own), 9))) for one in menus]
    measure(lambda: train(examples, least_steps=100), metric="time")
