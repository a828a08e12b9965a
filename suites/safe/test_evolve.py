"""Rounds of evolution: what is drawn is judged, kept and trained on; the same seed gives the same bytes."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from systems.safe import SafeError, corpus, gate, verify
from systems.safe.evolve import Share, Task, Verdicts, accuracy, evolve, menus
from systems.safe.policy import Example, Policy, menu, train, written
from systems.safe.prove import inductive, prove
from systems.safe.verifier import Limits

ALONE = Limits(workers=1)


def tasks(shape, count, start=0):
    made = (corpus.program(shape, seed) for seed in range(start, start + 60))
    return [Task(f"{one.shape}-{one.seed}", one.shape, one.text) for one in made if one is not None][:count]


@pytest.fixture(scope="module")
def example():
    (task,) = tasks("copy", 1)
    shown = menu(task.text)
    proof = prove(task.text)
    places = {(one.place, one.text) for one in proof.added}
    right = frozenset(n for n, one in enumerate(shown.candidates) if (one.place, one.text) in places)
    held = set(inductive(task.text, shown.candidates))
    return Example(shown, right, frozenset(n for n, one in enumerate(shown.candidates) if one in held) - right)


def test_the_proof_of_search_is_on_the_menu_and_can_be_drawn(example):
    text = written(example.menu, example.right).text
    assert verify(text).ok
    assert gate(example.menu.task, text) == []


def test_a_policy_learns_a_proof_and_draws_it_greedily(example):
    policy = train([example], least_steps=400)
    chosen = policy.draw(example.menu)
    assert {n for n in example.right if example.menu.candidates[n].place.kind != "decreases"} <= chosen
    assert chosen <= example.right | example.harmless
    assert verify(written(example.menu, chosen).text).ok
    spoiled = frozenset(list(chosen)[:2])
    assert not policy.draw(example.menu, without=spoiled) & spoiled
    untrained = Policy().draw(example.menu)
    assert untrained != chosen


def test_training_and_drawing_repeat(example):
    one, other = train([example], least_steps=30), train([example], least_steps=30)
    assert all(np.array_equal(one.weights[name], other.weights[name]) for name in one.weights)
    draws = {one.draw(example.menu, temperature=5.0, seed=seed) for seed in range(8)}
    assert one.draw(example.menu, temperature=0.7, seed=3) == other.draw(example.menu, temperature=0.7, seed=3)
    assert len(draws) > 1
    assert 80_000 < one.size < 200_000


def test_a_policy_is_saved_whole_and_a_damaged_file_is_refused(example, tmp_path):
    policy = train([example], least_steps=20)
    policy.save(tmp_path / "model.npz")
    again = Policy.load(tmp_path / "model.npz")
    assert np.array_equal(policy.scores(example.menu), again.scores(example.menu))
    (tmp_path / "model.npz").write_bytes((tmp_path / "model.npz").read_bytes()[:500])
    with pytest.raises(SafeError, match="not a saved policy"):
        Policy.load(tmp_path / "model.npz")


def test_a_run_of_evolution_stops_goes_on_and_repeats(tmp_path):
    programs, tests = tasks("copy", 3), {"test": tasks("copy", 2, start=100)}
    options = {"rounds": 1, "samples": 2, "first": 0.34, "limits": ALONE, "least_steps": 40}
    whole = evolve(programs, tests, tmp_path / "whole", **options)
    assert [done.number for done in whole.rounds] == [0, 1]
    folder = tmp_path / "part"
    evolve(programs, tests, folder, **{**options, "rounds": 0})
    (folder / "round-1").mkdir()
    kept = (tmp_path / "whole/round-1/attempts.jsonl").read_text().splitlines()
    (folder / "round-1/attempts.jsonl").write_text("\n".join(kept[:3]) + '\n{"draw": "cut')
    evolve(programs, tests, folder, **options)
    for name in ("attempts.jsonl", "sft.jsonl", "metrics.json"):
        assert (folder / "round-1" / name).read_bytes() == (tmp_path / "whole/round-1" / name).read_bytes(), name
    rows = [json.loads(line) for line in (folder / "round-1/attempts.jsonl").read_text().splitlines()]
    assert len({row["draw"] for row in rows}) == len(rows)
    for row in map(json.loads, (folder / "round-1/sft.jsonl").read_text().splitlines()):
        assert verify(row["program"]).ok


def test_accuracy_counts_tasks_and_draws(example):
    found = tasks("copy", 2)
    shown = menus(found, workers=1)
    policy = train([example], least_steps=400)
    table = accuracy(found, policy, k=(1, 2), limits=ALONE, shown=shown)
    assert set(table.total) == {"@1", "@1+debug", "@2", "@2+debug"}
    assert table.total["@1"].draws == 2
    assert table.total["@1"].solved <= table.total["@1+debug"].solved
    assert table.total["@2"].solved <= table.total["@2+debug"].solved
    assert table.by_source["copy"]["@1"] == table.total["@1"]


def test_a_cheating_or_unreadable_program_is_never_right():
    task = tasks("copy", 1)[0].text
    verdicts = Verdicts("current", ALONE)
    cheat = task.replace("{\n    let", "{\n    assume(false);\n    let", 1)
    assert cheat != task
    assert not any(one.ok for one in verdicts.of([("a", task, cheat, []), ("b", task, "verus! { fn", [])]))


@given(st.integers(1, 400), st.data())
def test_wilson_intervals_hold_the_share_and_shrink(total, data):
    solved = data.draw(st.integers(0, total))
    low, high = Share(solved, total, 0).interval
    assert 0 <= low <= 100 * solved / total + 1e-9
    assert 100 >= high >= 100 * solved / total - 1e-9
    more = Share(4 * solved, 4 * total, 0).interval
    assert more[1] - more[0] < high - low
