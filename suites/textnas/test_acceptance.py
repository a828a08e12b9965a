"""What the paper claims, as far as it can be checked here, and what this system promises beside it."""

import json
import time
from functools import cache

import numpy as np
import pytest
import torch

from suites.textnas import corpora
from systems.textnas import (
    PAPER,
    Arch,
    Budget,
    Embedding,
    MiniBench,
    Space,
    Task,
    TextNet,
    evaluate,
    evaluate_best,
    evaluate_test,
    fit,
    load_splits,
    load_text,
    search,
)  # fmt: skip
from systems.textnas.baselines import LINEAR, NETWORKS, linear, make
from systems.textnas.compare import compare
from systems.textnas.controller import Controller, Reinforce
from systems.textnas.data import Splits
from systems.textnas.draw import draw, draw_curves, operations_by_depth
from systems.textnas.minibench import EPOCHS, SEEDS, SPACE, arch_of, build, kendall, regret
from systems.textnas.space import OPS
from systems.textnas.vocabulary import Vocabulary

GLOVE = "textnas/glove.840B.300d.txt"


@pytest.fixture(autouse=True)
def one_thread():
    corpora.one_thread()


# ------------------------------------------------------------------------------------------ the space, the preset


@pytest.mark.claim("textnas/space")
def test_space_size(claim):
    size = Space(layers=24).size()
    by_hand = 1
    for k in range(24):
        by_hand *= (1, 1, 2, 3, 4)[k] if k < 5 else 5
        by_hand *= 8 * 2**k
    assert size == by_hand
    assert claim.holds(float(size))


@pytest.mark.claim("textnas/preset")
def test_preset_skips(claim):
    Space(layers=24).check(PAPER)
    assert claim.holds(PAPER.skips)


@pytest.mark.claim("textnas/preset-operations")
def test_preset_operations(claim):
    published = {name: n for name, n in claim_counts().items() if name != "skips"}
    counts = PAPER.counts()
    assert claim.holds(sum(counts[op] != n for op, n in published.items()) + (sum(counts.values()) != 24))


def claim_counts():
    return {
        "skips": 101, "conv7": 5, "maxpool3": 4, "attention": 4, "conv3": 3, "gru": 2, "conv1": 2, "conv5": 2,
        "avgpool3": 2,
    }  # fmt: skip


def test_the_preset_is_the_published_one(data):
    published = json.loads(data("textnas/arc/textnas_paper.json").read_text())
    assert Arch.from_json(published) == PAPER
    assert json.loads(PAPER.to_json("textnas-paper")) == published


def test_official_text_form_roundtrip(data):
    """An index beyond the layers that exist means the layer directly before; operations by their published numbers."""
    rows = json.loads(data("textnas/arc/textnas_paper.json").read_text())["layers"]
    order = ["conv1", "conv3", "conv5", "conv7", "avgpool3", "maxpool3", "gru", "attention"]
    lines = []
    for row in rows:
        k = row["layer"]
        bits = ["1" if j in row["skips"] else "0" for j in range(k)]
        lines.append(" ".join([str(k - 1 - row["input"]), str(order.index(row["op"])), *bits]))
    official = "\n".join(lines)
    assert Arch.from_text(official) == PAPER
    assert PAPER.to_text() == official
    assert lines[1] == "0 7 0"
    for beyond in range(1, 5):
        assert Arch.from_text("\n".join([lines[0], f"{beyond} 7 0", *lines[2:]])) == PAPER


# ------------------------------------------------------------------------------------------------- training, SST


@cache
def sst(folder, kind="sst2"):
    return load_text(folder, kind, "train", phrases=True), load_text(folder, kind, "dev")


@cache
def paper_network(folder, seconds):
    """The preset at 64 channels, trained on all phrases, nothing selected: its result on the dev sentences."""
    train, dev = sst(folder)
    vocabulary = Vocabulary.of(train, dev)
    net = TextNet(PAPER, Embedding.best().matrix(vocabulary), hidden=64, classes=2)
    return fit(
        net, vocabulary.encode(train), vocabulary.encode(dev), Budget(seconds=seconds), lr=1e-3, select="last",
        checks=(), batch=32, eps=1e-8,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.claim("textnas/sst2-cpu-150s")
def test_paper_network_trains(data, claim, measure):
    result = paper_network(data("textnas/sst"), 140.0)
    measure.record("accuracy", result.valid_acc, "1", better="higher")
    assert result.cpu_seconds < 150
    assert claim.holds(100 * result.valid_acc)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.claim("textnas/sst2-cpu-tfidf")
def test_paper_network_is_not_beaten_by_a_linear_model(data, claim):
    model = linear(*sst(data("textnas/sst")), "tfidf-lr")
    result = paper_network(data("textnas/sst"), 140.0)
    assert claim.holds(100 * (result.valid_acc - model.valid_acc))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.claim("textnas/sst2-cpu-600s")
def test_paper_network_gains_with_time(data, claim):
    assert claim.holds(100 * paper_network(data("textnas/sst"), 590.0).valid_acc)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", [
    pytest.param("sst2", marks=pytest.mark.claim("textnas/sst2")),
    pytest.param("sst5", marks=pytest.mark.claim("textnas/sst5")),
])  # fmt: skip
def test_paper_network_with_glove_on_a_gpu(data, claim, kind):
    """The final training of the paper, except that the test file is read once, after selection on validation."""
    splits = load_splits(data("textnas/sst"), kind)
    embedding = Embedding.glove(data(GLOVE))
    vocabulary = Vocabulary.of(splits.train, splits.valid)
    matrix = embedding.matrix(vocabulary)
    scores = []
    for seed in range(5):
        net = TextNet(PAPER, matrix, hidden=256, classes=len(splits.train.classes), seed=seed)
        result = fit(net, vocabulary.encode(splits.train), vocabulary.encode(splits.valid), Budget(epochs=10), lr=2e-3,
                     seed=seed, device="cuda")  # fmt: skip
        scores.append(evaluate_test(net, result, splits.test, vocabulary, embedding))
    assert claim.holds(100 * float(np.mean(scores)))


def test_a_small_network_learns_what_a_bag_of_words_cannot():
    """Which of two words comes first: chance for words alone, learned by layers that see order."""
    train, valid = corpora.sentences(600, 0), corpora.sentences(200, 1)
    task = corpora.task(600, lr=5e-3)
    net = task.network(Space(4).cut(PAPER), 0)
    result = fit(net, task.train_batches, task.valid_batches, Budget(epochs=12), 5e-3)
    assert result.valid_acc > 0.9
    words_alone = make("fasttext", task.vectors, 2)
    words_alone.encoder.pairs.weight.requires_grad_(False)
    alone = fit(words_alone, task.train_batches, task.valid_batches, Budget(epochs=6), 5e-3)
    assert alone.valid_acc < 0.7
    assert result.curve[0].loss > result.curve[-1].loss
    assert evaluate(net, task.valid_batches) == result.valid_acc
    assert len(train) == len(task.train)
    assert len(valid) == 200


@pytest.mark.parametrize("name", NETWORKS)
def test_every_baseline_learns(name):
    task = corpora.task(200, seed=5, order=False)
    net = make(name, task.vectors, 2)
    result = fit(net, task.train_batches, task.valid_batches, Budget(epochs=10), 5e-3)
    assert result.valid_acc > 0.85
    assert net.count() > 0


@pytest.mark.parametrize("name", LINEAR)
def test_linear_models_learn_questions(data, name):
    splits = load_splits(data("textnas/trec"), "label-text")
    model = linear(splits.train, splits.valid, name)
    assert model.valid_acc > 0.8
    assert model.accuracy(splits.valid) == model.valid_acc
    assert splits.test.reads == 0


# ------------------------------------------------------------------------------------------------ data and leaks


def test_readers_read_the_real_sets_whole(data):
    folder = data("textnas")
    phrases = load_text(folder / "sst", "sst5", "train", phrases=True)
    assert abs(len(phrases) - 157_401) < 1_000
    assert len(load_text(folder / "sst", "sst5")) == 8_544
    assert len(load_text(folder / "sst", "sst5", "dev")) == 1_101
    assert len(load_text(folder / "sst", "sst2")) == 6_920
    assert len(load_text(folder / "sst", "sst2", "dev")) == 872
    for name, rows, classes in (("trec", 5_452, 6), ("cr", 3_013, 2), ("subj", 8_000, 2), ("mpqa", 6_596, 2)):
        read = load_text(folder / name, "label-text")
        assert (len(read), len(read.classes)) == (rows, classes)
    sick = load_text(folder / "sick", "sick")
    assert len(sick) == 4_500
    assert sick.pair


def test_official_layouts_are_read(tmp_path):
    (tmp_path / "train.csv").write_text('"3","Wall St. ""Bears""","Short-sellers\\nare back"\n"1","One","two"\n')
    news = load_text(tmp_path, "csv", classes=("1", "2", "3"))
    assert news.texts == ('wall st . " bears " short - sellers are back', "one two")
    assert news.labels.tolist() == [2, 0]
    row = '{"gold_label": "%s", "sentence1": "A man.", "sentence2": "Nobody?"}\n'
    (tmp_path / "snli_1.0_dev.jsonl").write_text(row % "neutral" + row % "-" + row % "entailment")
    pairs = load_text(tmp_path, "snli", "valid")
    assert pairs.texts == (("a man .", "nobody ?"),) * 2
    assert pairs.labels.tolist() == [2, 1]
    (tmp_path / "multinli_1.0_dev_matched.jsonl").write_text(row % "contradiction")
    assert load_text(tmp_path, "multinli", "dev").labels.tolist() == [0]
    (tmp_path / "trees").mkdir()
    (tmp_path / "trees/train.txt").write_text("(3 (2 8\u00a01\\/2) (3 (2 -LRB-) (4 good)))\n(2 (2 good) (1 bad))\n")
    tree = load_text(tmp_path, "sst5", phrases=True)
    assert set(tree.texts) == {"8\u00a01/2", "(", "good", "( good", "8\u00a01/2 ( good", "bad", "good bad"}
    two = load_text(tmp_path, "sst2", phrases=True)
    assert dict(zip(two.texts, two.labels.tolist(), strict=True)) == {
        "good": 1, "( good": 1, "8\u00a01/2 ( good": 1, "bad": 0,
    }  # fmt: skip
    assert load_text(tmp_path, "sst2").texts == ("8\u00a01/2 ( good",)


def test_no_text_is_on_two_sides(data):
    for name, kind in (("trec", "label-text"), ("sst", "sst2"), ("sick", "sick")):
        splits = load_splits(data(f"textnas/{name}"), kind)
        test = splits.test.read()
        sides = [set(part.texts) for part in (splits.train, splits.valid, test)]
        assert all(sides)
        assert not sides[0] & sides[1]
        assert not sides[0] & sides[2]
        assert not sides[1] & sides[2]
        assert 0.05 < len(test) / len(load_text(data(f"textnas/{name}"), kind)) < 0.15


def test_no_test_leak(tmp_path):
    """The test file may be absent until the very end; each time it is read is counted."""
    folder = corpora.label_lines(tmp_path / "set", 400)
    (folder / "test.txt").write_text("0 first w1 second\n1 second w1 first\n")
    splits = load_splits(folder, "label-text")
    hidden = tmp_path / "hidden.txt"
    (folder / "test.txt").rename(hidden)
    task = Task.of(splits, Embedding.random(16), hidden=16, batch=32)
    for strategy in ("random", "spos"):
        history = search(Space(3), task, strategy, Budget(epochs=6), trial=Budget(epochs=1), final=Budget(epochs=1))
        assert (splits.test.reads, history.test_reads) == (0, 0)
    hidden.rename(folder / "test.txt")
    assert evaluate_best(history, task, splits.test) == history.test_acc
    assert history.test_reads == 1
    evaluate_best(history, task, splits.test)
    assert history.test_reads == 2


def test_words_of_the_test_set_alone_get_their_vectors_and_the_network_forgets_them(tmp_path):
    embedding = Embedding.random(16)
    folder = corpora.label_lines(tmp_path / "set", 200)
    (folder / "test.txt").write_text("0 neverseen first second\n")
    splits = load_splits(folder, "label-text")
    task = Task.of(splits, embedding, hidden=16, batch=32)
    net, result = task.trained(Space(2).cut(PAPER), 192, 0)
    rows = len(net.encoder.embedding)
    evaluate_test(net, result, splits.test, task.vocabulary, embedding)
    assert len(net.encoder.embedding) == rows
    assert result.test_reads == 1


# -------------------------------------------------------------------------------------------------- other sets


TRANSFER = ("trec", "cr", "subj", "mpqa")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.claim("textnas/transfer")
def test_transfer(data, claim, measure):
    """The preset's first 8 layers against 8 random architectures of 8 layers, the same budget, four sets."""
    gaps = []
    for name in TRANSFER:
        task = Task.of(load_splits(data(f"textnas/{name}"), "label-text"), Embedding.best(), batch=32, lr=5e-3)
        rng = np.random.default_rng(0)
        archs = [Space(8).cut(PAPER), *(Space(8).sample(rng) for _ in range(8))]
        scores = [task.trial(arch, 3 * len(task.train), 0).valid_acc for arch in archs]
        gaps.append(scores[0] - float(np.mean(scores[1:])))
        measure.record(f"{name}-accuracy", scores[0], "1", better="higher")
    assert claim.holds(100 * float(np.mean(gaps)))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.claim("textnas/transfer-trec")
def test_questions(data, claim):
    """Recorded, not judged: on questions held back from the training file TF-IDF has 5 points less than on the official
    test file, which is not here, and the goal was set by the latter."""
    splits = load_splits(data("textnas/trec"), "label-text")
    task = Task.of(splits, Embedding.best(), hidden=64, batch=32, lr=5e-3, dropout=0.3)
    net, result = task.trained(Space(8).cut(PAPER), 8 * len(task.train), 0)
    score = evaluate_test(net, result, splits.test, task.vocabulary, task.embedding)
    model = linear(splits.train, splits.valid, "tfidf-lr")
    margin = score - model.accuracy(splits.test.read())
    claim.report(100 * score, f"held back by hash; {100 * margin:+.1f} points to TF-IDF on the same questions")
    assert margin > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.claim("textnas/nli")
def test_pair_task(data, claim):
    splits = load_splits(data("textnas/sick"), "sick")
    task = Task.of(splits, Embedding.best(), hidden=64, batch=32)
    start = time.process_time()
    result = fit(
        task.network(Space(8).cut(PAPER), 0), task.train_batches, task.valid_batches, Budget(epochs=28), lr=2e-3,
        select="last", checks=(), eps=1e-8,
    )  # fmt: skip
    majority = np.bincount(splits.valid.labels).max() / len(splits.valid)
    assert time.process_time() - start < 120
    assert claim.holds(100 * (result.valid_acc - majority)), result.curve


@cache
def searched_on_questions(folder):
    """Histories of three seeds by strategy, 8 layers, one budget; and the accuracies of the preset, trained alike."""
    task = Task.of(load_splits(folder, "label-text"), Embedding.best(), hidden=32, batch=32, lr=5e-3)
    budget, trial, final = Budget(epochs=24), Budget(epochs=2), Budget(epochs=6)
    found = {
        strategy: [search(Space(8), task, strategy, budget, seed, trial=trial, final=final) for seed in range(3)]
        for strategy in ("random", "sha", "spos")
    }
    preset = [task.trial(Space(8).cut(PAPER), 6 * len(task.train), seed).valid_acc for seed in range(3)]
    return found, preset


def found_on_questions(folder):
    """Mean validation accuracies: each strategy's choice, and the preset."""
    found, preset = searched_on_questions(folder)
    means = {name: float(np.mean([h.best_record.valid_acc for h in several])) for name, several in found.items()}
    return {**means, "paper": float(np.mean(preset))}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_found_beats_random(data, measure, tmp_path):
    means = found_on_questions(data("textnas/trec"))
    found, _ = searched_on_questions(data("textnas/trec"))
    measure.picture("TREC: best accuracy so far, three seeds", draw_curves(found, tmp_path / "curves.svg"))
    winner = max((h.best_record for several in found.values() for h in several), key=lambda record: record.valid_acc)
    measure.picture("TREC: the best architecture that was found", draw(winner.arch, tmp_path / "winner.svg"))
    for strategy, mean in means.items():
        measure.record(f"{strategy}-accuracy", mean, "1", better="higher")
    assert max(means["sha"], means["spos"]) >= means["random"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.claim("textnas/transfer-found")
def test_found_is_as_good_as_the_preset(data, claim):
    means = found_on_questions(data("textnas/trec"))
    assert claim.holds(100 * (max(means["sha"], means["spos"]) - means["paper"]))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.claim("textnas/space-matters")
def test_recurrent_and_attention_layers_are_worth_having(data, claim):
    """The mean of random architectures of the whole space less that of convolutions and pooling alone."""
    gaps = []
    for name in ("trec", "subj"):
        task = Task.of(load_splits(data(f"textnas/{name}"), "label-text"), Embedding.best(), batch=32, lr=5e-3)
        scores = []
        for ops in (OPS, OPS[:6]):
            rng = np.random.default_rng(1)
            archs = [Space(8, ops=ops).sample(rng) for _ in range(8)]
            scores.append(np.mean([task.trial(arch, 3 * len(task.train), 0).valid_acc for arch in archs]))
        gaps.append(scores[0] - scores[1])
    assert claim.holds(100 * float(np.mean(gaps)))


# ---------------------------------------------------------------------------------------------------- controller


def test_enas_controller_learns():
    """A reward of one share a layer whose operation is the preferred one, a different one in each layer."""
    space = Space(8)
    wanted = [OPS.index(layer.op) for layer in space.sample(np.random.default_rng(0)).layers]
    places = [i for i, kind in enumerate(space.kinds()) if kind == "op"]
    controller = Controller(space, seed=0)
    reinforce = Reinforce(controller, lr=1e-2, scaled=True, exploration=0.1)
    generator = torch.Generator().manual_seed(0)

    def share(drawn):
        return (drawn.vectors[:, places] == wanted).mean(1)

    first = share(controller.sample(200, generator)).mean()
    for _ in range(300):
        drawn = controller.sample(32, generator)
        reinforce.update(drawn, share(drawn))
    assert first < 0.3
    assert share(controller.sample(400, generator)).mean() > 0.9


# ------------------------------------------------------------------------------------------------ mini benchmark


def test_the_mini_benchmark_holds_every_architecture():
    bench = MiniBench.load()
    assert len(bench.table) == SPACE.size() * SEEDS * EPOCHS == 512 * 12
    assert len({bench.number(arch) for arch in SPACE}) == 512
    assert arch_of(bench.number(arch_of(77))) == arch_of(77)
    entry = bench.query(arch_of(77), epoch=6, seed=1)
    row = bench.table.query("arch == 77 and epoch == 6 and seed == 1").iloc[0]
    assert entry.valid_acc == pytest.approx(row.valid_acc)
    assert entry.test_acc == pytest.approx(row.test_acc)
    assert 0.5 < bench.final().min() < bench.final().max() < 0.95
    assert {"code", "data", "vectors", "command"} <= set(bench.about)


def test_the_mini_benchmark_tells_architectures_from_noise():
    """The spread between architectures is more than that between seeds of one, and early epochs foretell the end."""
    bench = MiniBench.load()
    final = bench._values["valid_acc"][:, :, -1]
    noise = np.sqrt(((final[:, 0] - final[:, 1]) ** 2 / 2).mean())
    assert final.mean(1).std() > noise
    taus = [kendall(bench, bench._values["valid_acc"][:, 0, epoch]) for epoch in range(EPOCHS)]
    assert taus[-1] > taus[0] > 0.1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_minibench_regret():
    bench = MiniBench.load()
    evolution = regret(bench, "evolution", 64, 200)[:, -1]
    chance = regret(bench, "random", 128, 200)[:, -1]
    assert np.median(evolution) <= np.median(chance)


def test_regret_falls_and_ends_at_zero_for_all_that_can_be_asked():
    bench = MiniBench.load()
    lost = regret(bench, "random", 48, 4)
    assert lost.shape == (4, 48)
    assert np.all(lost >= 0)
    assert lost[:, -1].mean() < lost[:, 0].mean()
    best = arch_of(int(bench.final().argmax()))
    assert bench.final()[bench.number(best)] == bench.final().max()


@pytest.mark.slow
def test_a_table_is_built_in_parts_and_equals_what_is_shipped(data, tmp_path):
    """The first architectures, trained anew: near the shipped rows, since another processor rounds otherwise."""
    splits = load_splits(data("textnas/trec"), "label-text")
    out = tmp_path / "table.parquet"
    parts = build(splits, out, limit=1)
    assert [file.name for file in sorted(parts.glob("0*.json"))] == ["000.json"]
    build(splits, out, limit=1)
    assert len(list(parts.glob("0*.json"))) == 2
    assert not out.exists()
    bench = MiniBench.load()
    if bench.about["vectors"] == Embedding.best().name:
        for row in json.loads((parts / "001.json").read_text()):
            entry = bench.query(arch_of(1), row["epoch"], row["seed"])
            assert entry.valid_acc == pytest.approx(row["valid_acc"], abs=0.05)
            assert entry.parameters == row["parameters"]


# ------------------------------------------------------------------------------------------- tables and pictures


def test_compare_reads_the_test_set_once_a_training(tmp_path):
    folder = corpora.label_lines(tmp_path / "set", 300)
    table = compare(
        load_splits(folder, "label-text"), ("random",), Budget(epochs=3), (0, 1), Embedding.random(16), Space(3),
        Budget(epochs=1), ("fasttext",), Budget(epochs=1), tmp_path / "out", hidden=16, batch=32,
    )  # fmt: skip
    assert [row.name for row in table.rows] == [*LINEAR, "fasttext", "paper, 3 layers", "random"]
    assert table.test_reads == len(LINEAR) + 1 + 2 + 2
    assert all(0.0 <= row.test <= 1.0 and row.cpu_seconds > 0 for row in table.rows)
    assert "95 % of test" in table.text()
    assert (tmp_path / "out/random-1/history.jsonl").exists()
    picture = draw_curves(table.histories, tmp_path / "curves.svg")
    assert "random" in picture.read_text()


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_architectures_are_drawn(tmp_path, suffix):
    from PIL import Image

    picture = draw(PAPER, tmp_path / f"paper{suffix}", engine="matplotlib")
    if suffix == ".png":
        pixels = np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3)
        assert len(np.unique(pixels, axis=0)) > 20
    else:
        text = picture.read_text()
        assert text.count("attention") >= 4 or text.count("<path") > 150
    assert [file.name for file in tmp_path.iterdir()] == [picture.name]


def test_operations_are_counted_by_depth():
    counts = operations_by_depth([PAPER], 2)
    assert {op: sum(parts) for op, parts in counts.items()} == {op: n for op, n in PAPER.counts().items() if n}
    assert counts["gru"] == [2, 0]


def test_a_gap_in_splits_is_told_apart_from_its_parts(tmp_path):
    folder = corpora.label_lines(tmp_path / "set", 200)
    splits = load_splits(folder, "label-text")
    train, valid, test = splits
    assert isinstance(splits, Splits)
    assert len(train) + len(valid) + len(test.read()) == 200
