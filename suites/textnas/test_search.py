"""Strategies, budgets and histories: the same search twice, interrupted anywhere, in processes, on a toy or a table."""

import dataclasses
import json
import math
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suites.textnas import corpora
from systems.textnas import Arch, ArchError, Budget, BudgetError, Space, TextNASError, read_history, search
from systems.textnas.controller import Controller, Reinforce
from systems.textnas.history import FILE, Outcome, pareto_front
from systems.textnas.oneshot import OneShot, fair_paths, recomputed_statistics
from systems.textnas.search import ETA, STRATEGIES
from systems.textnas.space import OPS

SPACE = Space(layers=4)
SMALL = {"trial": Budget(epochs=1), "final": Budget(epochs=1)}


@pytest.fixture(autouse=True)
def one_thread():
    corpora.one_thread()


@pytest.fixture(scope="module")
def task():
    return corpora.task()


@dataclasses.dataclass
class Counting:
    """Trials that cost nothing: an architecture is worth its share of recurrent layers; some diverge."""

    per_trial: float = 0.0
    asked: list = dataclasses.field(default_factory=list)

    def trial(self, arch, examples, seed):
        self.asked.append((arch, examples))
        worth = sum(layer.op == "gru" for layer in arch.layers) / len(arch)
        diverged = arch.layers[0].op == "conv7"
        return Outcome(math.nan if diverged else worth, self.trial_cost(examples), 100 + arch.skips, diverged=diverged)

    def trial_cost(self, examples):
        return examples + self.per_trial

    def describe(self):
        return "counting"


# --------------------------------------------------------------------------------------------- every strategy


def budget_of(strategy):
    return Budget(epochs=14 if strategy in ("enas", "spos") else 8)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_seed_decides_the_history_and_the_budget_is_kept(task, strategy):
    first = search(SPACE, task, strategy, budget_of(strategy), seed=3, **SMALL)
    again = search(SPACE, task, strategy, budget_of(strategy), seed=3, **SMALL)
    assert first.digest() == again.digest()
    assert first.digest() != search(SPACE, task, strategy, budget_of(strategy), seed=4, **SMALL).digest()
    assert first.total <= budget_of(strategy).total(len(task.train), task.batch) + task.batch
    assert 1 <= len(first.finals) <= 3
    assert first.best in {record.arch for record in first.finals}
    SPACE.check(first.best)
    frame = first.records
    assert {"arch", "fidelity", "valid_acc", "cost", "total"} <= set(frame.columns)
    assert frame["total"].is_monotonic_increasing


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_interrupted_search_goes_on_exactly(task, strategy, tmp_path):
    """Killed after every few records, once between the supernet's file and its record."""
    whole = search(SPACE, task, strategy, budget_of(strategy), seed=1, **SMALL)
    rounds = 0
    stop_after = max(len(whole.records_list) // 3, 2)

    class Killed(Exception):
        pass

    file = tmp_path / FILE
    while True:
        before = len(file.read_text().splitlines()) - 1 if file.exists() else 0

        def count(record, budget, last=before + stop_after):
            if record.index >= last:
                raise Killed

        try:
            found = search(SPACE, task, strategy, budget_of(strategy), seed=1, folder=tmp_path, progress=count, **SMALL)
        except Killed:
            rounds += 1
            if strategy in ("enas", "spos") and rounds == 1:  # the last record is lost, the weights are not
                file.write_text("\n".join(file.read_text().splitlines()[:-1]) + "\n")
            continue
        break
    assert rounds >= 2
    assert found.digest() == whole.digest() == read_history(tmp_path).digest()
    assert all(torch.equal(found.state[name], value) for name, value in whole.state.items())


def test_a_history_of_another_search_is_not_overwritten(task, tmp_path):
    search(SPACE, task, "random", Budget(epochs=4), folder=tmp_path, **SMALL)
    kept = (tmp_path / FILE).read_text()
    with pytest.raises(BudgetError, match="give a new folder"):
        search(SPACE, task, "random", Budget(epochs=5), folder=tmp_path, **SMALL)
    assert (tmp_path / FILE).read_text() == kept
    (tmp_path / FILE).write_text(kept.replace('"cost"', '"price"'))
    with pytest.raises(TextNASError, match=r"line 2: not a record"):
        search(SPACE, task, "random", Budget(epochs=4), folder=tmp_path, **SMALL)
    with pytest.raises(TextNASError, match="does not exist"):
        read_history(tmp_path / "elsewhere")


def test_a_damaged_supernet_is_named(task, tmp_path):
    search(SPACE, task, "spos", Budget(epochs=5), folder=tmp_path, **SMALL)
    lines = (tmp_path / FILE).read_text().splitlines()
    (tmp_path / FILE).write_text("\n".join(lines[:2]) + "\n")
    (tmp_path / "supernet.pt").write_bytes(b"nonsense")
    with pytest.raises(TextNASError, match="is damaged"):
        search(SPACE, task, "spos", Budget(epochs=5), folder=tmp_path, **SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["random", "sha"])
def test_processes_give_the_history_of_one(task, strategy, tmp_path):
    alone = search(SPACE, task, strategy, Budget(epochs=8), seed=2, **SMALL)
    together = search(SPACE, task, strategy, Budget(epochs=8), seed=2, workers=2, folder=tmp_path, **SMALL)
    assert together.digest() == alone.digest()


@given(
    st.integers(0, 2**20),
    st.sampled_from(["random", "sha", "evolution", "pareto"]),
    st.integers(20, 400),
    st.integers(1, 9),
)
@settings(max_examples=25)
def test_no_search_spends_more_than_its_budget(seed, strategy, budget, trial):
    trials = Counting(per_trial=0.5)
    history = search(SPACE, trials, strategy, Budget(examples=budget), seed, trial=Budget(examples=trial))
    spent = sum(trials.trial_cost(examples) for _, examples in trials.asked)
    assert history.total == pytest.approx(spent)
    assert spent <= budget
    if strategy in ("random", "evolution"):
        assert budget - spent < trials.trial_cost(trial)


@given(st.integers(0, 2**20), st.integers(60, 600))
@settings(max_examples=25)
def test_halving_promotes_exactly_the_best_third(seed, budget):
    trials = Counting()
    history = search(SPACE, trials, "sha", Budget(examples=budget), seed, trial=Budget(examples=9))
    rungs = [[r for r in history.records_list if r.note == f"rung {i}"] for i in range(3)]
    for low, high in pairwise(rungs):
        sound = [r for r in low if not r.diverged]
        assert len(high) == min(max(len(low) // ETA, 1), len(sound))
        worst = min((r.valid_acc for r in low if r.arch in {h.arch for h in high}), default=math.inf)
        assert all(r.valid_acc <= worst for r in sound if r.arch not in {h.arch for h in high})


def test_evolution_and_halving_beat_random_on_a_reward_they_can_climb():
    def best(strategy):
        found = []
        for seed in range(10):
            trials = Counting()
            search(Space(8), trials, strategy, Budget(examples=300), seed, trial=Budget(examples=1))
            found.append(max(sum(layer.op == "gru" for layer in arch.layers) for arch, _ in trials.asked))
        return np.mean(found)

    assert best("evolution") > best("random") + 0.5


def test_pareto_evolution_finds_smaller_networks_and_the_front_is_one():
    trials = Counting()
    history = search(Space(6), trials, "pareto", Budget(examples=200), 0, trial=Budget(examples=1))
    front = history.pareto()
    sizes, scores = [r.parameters for r in front], [r.valid_acc for r in front]
    assert sizes == sorted(sizes)
    assert scores == sorted(scores)
    first = min(r.parameters for r in history.records_list[:32])
    assert front[0].parameters < first
    for record in history.records_list:
        if not math.isnan(record.valid_acc):
            assert any(f.valid_acc >= record.valid_acc and f.parameters <= record.parameters for f in front)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_the_front_holds_what_nothing_beats(points):
    def beaten(p):
        return any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in points)

    assert [points[i] for i in pareto_front(points)] == [p for p in points if not beaten(p)]


def test_a_training_that_diverges_is_a_record_and_the_search_goes_on():
    history = search(SPACE, Counting(), "random", Budget(examples=60), 0, trial=Budget(examples=1))
    diverged = [r for r in history.records_list if r.diverged]
    assert len(history.records_list) == 60
    assert 0 < len(diverged) < 60
    assert all(math.isnan(r.valid_acc) for r in diverged)
    assert history.best not in {r.arch for r in diverged}
    assert all(json.loads(r.to_json())["valid_acc"] is None for r in diverged)


def test_a_real_loss_that_is_not_finite_ends_only_its_own_training():
    broken = corpora.task(lr=1e30)
    history = search(SPACE, broken, "random", Budget(epochs=6), trial=Budget(epochs=2))
    assert len(history.records_list) >= 2
    assert all(r.diverged and math.isnan(r.valid_acc) for r in history.records_list)
    with pytest.raises(TextNASError, match="no evaluated architecture"):
        _ = history.best


@pytest.mark.parametrize(
    ("strategy", "budget", "error"),
    [
        ("grid", Budget(epochs=4), "expected one of enas, random"),
        ("random", Budget(examples=3), "below one batch"),
        ("random", Budget(seconds=3), "seconds would not give it twice"),
        ("evolution", Budget(examples=40), "below one trial"),
    ],
)
def test_a_search_that_cannot_be_is_refused(task, strategy, budget, error):
    with pytest.raises((ArchError, BudgetError), match=error):
        search(SPACE, task, strategy, budget)


def test_a_strategy_that_needs_networks_says_so():
    with pytest.raises(ArchError, match="needs a Task"):
        search(SPACE, Counting(), "spos", Budget(examples=50))
    with pytest.raises(ArchError, match="chooses skips"):
        search(Space(3, skips="none"), corpora.task(), "enas", Budget(epochs=60))


# ------------------------------------------------------------------------------------------------- one-shot


def test_fair_paths_use_each_operation_of_a_layer_equally_often():
    paths = fair_paths(SPACE, np.random.default_rng(0))
    for _ in range(5):
        turn = [next(paths) for _ in OPS]
        for arch in turn:
            SPACE.check(arch)
        for k in range(SPACE.layers):
            assert sorted(arch.layers[k].op for arch in turn) == sorted(OPS)


def test_shared_weights_learn_and_judging_leaves_no_trace(task):
    shop = OneShot(task, Space(2), seed=0, total=12 * len(task.train))
    for turn in range(12):
        shop.train(fair_paths(shop.space, np.random.default_rng(turn)))
    before = {name: value.clone() for name, value in shop.net.state_dict().items()}
    archs = [shop.space.sample(np.random.default_rng(i)) for i in range(6)]
    first = [shop.judge(arch).valid_acc for arch in archs]
    assert first == [shop.judge(arch).valid_acc for arch in archs]
    assert all(torch.equal(before[name], value) for name, value in shop.net.state_dict().items())
    assert max(first) > 0.7


def test_recomputed_statistics_are_the_plain_mean_of_the_batches():
    from systems.textnas import kernels

    norm = torch.nn.BatchNorm1d(16)
    batches = [torch.randn(4, 5, 16) + i for i in range(3)]
    words = kernels.Words(torch.full((4,), 5), 5)
    with recomputed_statistics(torch.nn.ModuleList([norm])):
        for batch in batches:
            kernels.norm([batch], norm, words)
        found = norm.running_mean.clone()
    assert torch.allclose(found, torch.stack([b.mean((0, 1)) for b in batches]).mean(0), atol=1e-5)
    assert torch.equal(norm.running_mean, torch.zeros(16))
    assert norm.momentum == 0.1


# ----------------------------------------------------------------------------------------------- controller


@given(st.integers(0, 2**31 - 1), st.integers(1, 8), st.sampled_from([None, 1.5]), st.integers(1, 6))
@settings(max_examples=25)
def test_scoring_an_architecture_repeats_its_log_probability(seed, layers, squash, n):
    space = Space(layers)
    controller = Controller(space, squash, seed=seed)
    drawn = controller.sample(n, torch.Generator().manual_seed(seed))
    for arch in drawn.archs:
        space.check(arch)
    again = controller.score(drawn.archs)
    for ours, theirs in ((drawn.log_prob, again.log_prob), (drawn.entropy, again.entropy)):
        assert torch.allclose(ours, theirs, atol=1e-4)
    alone = torch.cat([controller.score([arch]).log_prob for arch in drawn.archs])
    assert torch.allclose(alone, drawn.log_prob, atol=1e-4)


def test_the_probabilities_of_all_architectures_sum_to_one():
    space = Space(3, ops=("conv1", "gru"))
    everything = list(space)
    log_prob = Controller(space, seed=1).score(everything).log_prob.detach()
    assert float(log_prob.double().exp().sum()) == pytest.approx(1.0, abs=1e-5)
    drawn = Controller(space, seed=1).sample(4000, torch.Generator().manual_seed(0)).archs
    frequent = everything[int(log_prob.argmax())]
    expected = float(log_prob.max().exp())
    assert drawn.count(frequent) / 4000 == pytest.approx(expected, abs=5 * math.sqrt(expected / 4000))


def test_the_published_update_is_the_default():
    """By hand: one draw, its reward against the moving baseline, and the skip penalty."""
    space = Space(3)
    controller = Controller(space, seed=0)
    reinforce = Reinforce(controller)
    drawn = controller.sample(1, torch.Generator().manual_seed(0))
    reinforce.baseline = 0.5
    baseline = reinforce.update(drawn, [0.9])
    reward = 0.9 + 1e-4 * float(drawn.entropy.detach())
    assert baseline == pytest.approx(0.99 * 0.5 + 0.01 * reward, abs=1e-6)
    again = Controller(space, seed=0)
    scored = again.score(drawn.archs)
    (-scored.log_prob * (reward - baseline) + 0.8 * scored.skip_penalty).sum().backward()
    torch.nn.utils.clip_grad_norm_(again.parameters(), 5.0)
    torch.optim.Adam(again.parameters(), lr=1e-3, eps=1e-3, weight_decay=1e-3).step()
    for ours, theirs in zip(controller.parameters(), again.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_folder_of_a_search_can_be_moved(task, tmp_path):
    search(SPACE, task, "random", Budget(epochs=3), folder=tmp_path / "a", **SMALL)
    shutil.move(tmp_path / "a", tmp_path / "b")
    asked = []
    kept = {"folder": tmp_path / "b", "progress": lambda *a: asked.append(a)}
    again = search(SPACE, task, "random", Budget(epochs=3), **kept, **SMALL)
    assert isinstance(again.best, Arch)
    assert len(asked) == len(again.records_list)
