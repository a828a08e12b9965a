"""The trained policy on tasks that it was never trained on: a round of evolution from generated programs, nightly."""

import pytest

from suites.safe.recorded import EDITION, rows
from systems.safe import corpus
from systems.safe.evolve import Task, accuracy, describe, evolve, menus
from systems.safe.verifier import Limits

PROGRAMS, UNSEEN = 160, 42


def generated(count, seed, held_out):
    made = corpus.programs(count, seed, held_out=held_out)
    return [Task(f"{one.shape}-{one.seed}", one.shape, one.text) for one in made]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.claim("safe/s1-policy", "safe/s5", "safe/s6", "safe/s6-at-10", "safe/s6-debug")
def test_a_round_of_evolution_on_tasks_never_trained_on(data, claim, tmp_path):
    """s5 is judged by how far apart the 95 % intervals of the two rounds are, on the shapes never trained on."""
    development = [Task(row["task_id"], row["source"], row["task"]) for row in rows(data("safe/verus_bench_dev.jsonl"))]
    tests = {"development": development, "unseen": generated(UNSEEN, 1, True)}
    found = evolve(
        generated(PROGRAMS, 0, False), tests, tmp_path, rounds=1, samples=3, first=0.25, edition=EDITION,
        progress=print,
    )  # fmt: skip
    first, last = (one.tables for one in found.rounds)
    shown = menus(development, edition=EDITION)
    ten = accuracy(development, found.policy, k=(10,), debug=False, edition=EDITION, limits=Limits(), shown=shown)
    print(f"ten draws: {describe(ten)}")
    own = last["development"].total
    missed = claim.misses({
        "s6": own["@1"].value, "s6-debug": own["@1+debug"].value, "s1-policy": own["@1+debug"].value,
        "s6-at-10": ten.total["@10"].value,
        "s5": last["unseen"].total["@1"].interval[0] - first["unseen"].total["@1"].interval[1],
    })  # fmt: skip
    assert not missed
