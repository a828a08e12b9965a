"""Every mistake in an architecture, a file or a budget is named where it is, before anything is trained."""

import json

import numpy as np
import pytest
import torch

from suites.textnas import corpora
from systems.textnas import (
    PAPER,
    Arch,
    ArchError,
    Budget,
    BudgetError,
    DataError,
    Embedding,
    Layer,
    Space,
    Task,
    TextNet,
    fit,
    load_splits,
    load_text,
)  # fmt: skip
from systems.textnas.__main__ import main
from systems.textnas.data import UNKNOWN
from systems.textnas.vocabulary import Vocabulary


def rows(*layers):
    return {"layers": [dict(zip(("input", "op", "skips"), layer, strict=True)) for layer in layers]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (rows((-1, "conv2", [])), "layer 0 has operation 'conv2'; allowed: conv1, conv3"),
        (rows((0, "conv1", [])), "layer 0 reads layer 0; allowed: -1"),
        (rows((-1, "conv1", []), (-1, "gru", [])), "layer 1 reads layer -1; allowed: 0"),
        (rows((-1, "conv1", []), (0, "gru", [1])), r"layer 1 has skips \(1,\); allowed: layers below 1"),
        (rows((-1, "conv1", [0])), r"layer 0 has skips \(0,\); allowed: none"),
        (rows((-1, "conv1", []), (0, "gru", [0, 0])), "layer 1 has skips"),
        (rows(*[(k - 1, "gru", []) for k in range(6)], (0, "gru", [])), "layer 6 reads layer 0; allowed: 5, 4"),
        (rows((-1, 5, [])), "layer 0 has input -1, op 5"),
        (rows(("stem", "gru", [])), "layer 0 has input 'stem'"),
        ({"layers": [3]}, "layer 0 is 3; expected an object"),
        ({"layers": []}, "no list of layers"),
        ({}, "no list of layers"),
    ],
)
def test_an_architecture_that_cannot_be_is_named_by_layer(content, words):
    with pytest.raises(ArchError, match=words):
        Arch.from_json(json.dumps(content))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the architecture's text is empty"),
        ("0 5\n1 7 0\n1 3 0", "layer 2 has 1 skip bits in 3 numbers; expected an input, an operation and 2 bits"),
        ("0 5 1 7 0 1 3 0", "layer 2 has 1 skip bits"),
        ("0 5\n1 7 0 0", "layer 1 has 2 skip bits"),
        ("0 8", "layer 0 has operation number 8; allowed: 0 to 7"),
        ("0 5\n5 7 0", "layer 1 has input index 5; allowed: 0 to 0"),
        ("0 5\n0 7 2", r"layer 1 has skip bits \[2\]; allowed: 0 and 1"),
        ("0 gru", "layer 0: '0 gru' holds something else than whole numbers"),
    ],
)
def test_a_text_form_that_cannot_be_is_named_by_layer(text, words):
    with pytest.raises(ArchError, match=words):
        Arch.from_text(text)


def test_what_is_not_json_says_so():
    with pytest.raises(ArchError, match="not JSON"):
        Arch.from_json("{")


def test_an_architecture_of_another_space_is_refused():
    with pytest.raises(ArchError, match="24 layers; this space has 8"):
        Space(8).check(PAPER)
    with pytest.raises(ArchError, match="has 8 layers; 24 cannot be cut"):
        Space(24).cut(Space(8).cut(PAPER))
    with pytest.raises(ArchError, match="a vector of 3 numbers; 2 layers have 5"):
        Space(2).decode([0, 0, 0])
    with pytest.raises(ArchError, match="reads layer 0; allowed: 1"):
        Space(3, reach=1).check(Arch((Layer(-1, "gru"), Layer(0, "gru"), Layer(0, "gru"))))
    with pytest.raises(ArchError, match="skips"):
        Space(2, skips="none").check(Arch((Layer(-1, "gru"), Layer(0, "gru", (0,)))))


@pytest.mark.parametrize(
    "settings",
    [{"layers": 0}, {"reach": 0}, {"ops": ()}, {"ops": ("conv2",)}, {"ops": ("gru", "gru")}, {"skips": "some"}],
)
def test_a_space_that_cannot_be_is_refused(settings):
    with pytest.raises(ArchError, match="expected"):
        Space(**{"layers": 3, **settings})


@pytest.mark.parametrize("settings", [{"hidden": 18}, {"pool": "last"}, {"norm": "never"}])
def test_a_network_that_cannot_be_is_refused(settings):
    with pytest.raises(ArchError, match="expected"):
        TextNet(Arch((Layer(-1, "gru"),)), 10, **settings)


# --------------------------------------------------------------------------------------------------------- files

TREE = "(3 (2 It) (4 (2 's) (3 good)))"


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        (f"{TREE}\n(3 (2 It)", "line 2, column 9", "the line ends before the tree does"),
        (f"{TREE}\n{TREE})", "line 2, column 31", "closes that was not opened"),
        ("(3 (7 It) (2 is))", "line 1, column 5", "label '7'; allowed: 0 to 4"),
        (f"{TREE} {TREE}", "line 1, column 32", "a second tree begins"),
        ("(3 (2 It)  (2 is))", "line 1", "expected"),
        ("It 's good", "line 1", "expected"),
    ],
)
@pytest.mark.parametrize("kind", ["sst5", "sst2"])
def test_an_unbalanced_tree_is_named_by_line_and_column(tmp_path, text, where, words, kind):
    (tmp_path / "train.txt").write_text(text + "\n")
    with pytest.raises(DataError, match=f"{where}.*{words}"):
        load_text(tmp_path, kind, phrases=True)


@pytest.mark.parametrize(
    ("kind", "name", "content", "words"),
    [
        ("label-text", "train.txt", "0 a b\n7 c\n", "line 2: label '7'; allowed: 0, 1"),
        ("csv", "train.csv", '"0","a","b"\n"3","c","d"\n', "line 2: label '3'; allowed: 0, 1"),
        ("csv", "train.csv", '"0","a"\n"1"\n', "line 2: 1 columns"),
        ("csv", "train.csv", '"0","a"\n"1","b"x,"c"\n', "line 2:"),
        ("snli", "snli_1.0_train.jsonl", '{"gold_label": "neutral"}\n', "line 1: expected an object with gold_label"),
        ("snli", "snli_1.0_train.jsonl", "{}\n{\n", "line 1: expected"),
        ("sick", "SICK_train.txt", "pair_ID\ta\n1\tA\tB\t4.5\n", "line 2: 4 columns; expected 5"),
        ("sick", "SICK_train.txt", "1\tA\tB\t4.5\tMAYBE\n", "line 1: label 'maybe'; allowed: contradiction"),
        ("label-text", "train.txt", "\n", "no labelled text in it"),
    ],
)
def test_a_row_that_cannot_be_is_named_by_line(tmp_path, kind, name, content, words):
    (tmp_path / name).write_text(content)
    classes = ("0", "1") if kind in ("label-text", "csv") else None
    with pytest.raises(DataError, match=words):
        load_text(tmp_path, kind, classes=classes)


@pytest.mark.parametrize(("kind", "name"), [("sst2", "train.txt"), ("csv", "train.csv"), ("sick", "SICK_train.txt")])
def test_bytes_that_are_not_utf8_are_named_by_line(tmp_path, kind, name):
    (tmp_path / name).write_bytes(b"first\nsecond \xff\n")
    with pytest.raises(DataError, match=r"line 2: byte 0xff is not UTF-8"):
        load_text(tmp_path, kind)


def test_a_text_without_words_is_one_unknown_word_and_counted(tmp_path):
    (tmp_path / "train.txt").write_bytes(b"0 good film\n1 \n1\n0 \x85 nel\n")
    data = load_text(tmp_path, "label-text")
    assert data.texts == ("good film", UNKNOWN, UNKNOWN, "\x85 nel")
    assert data.empty == 2
    encoded = Vocabulary.of(data).encode(data)
    assert encoded.lengths.min() == 1


def test_a_missing_file_is_told_with_what_was_expected(tmp_path):
    with pytest.raises(DataError, match=r"no dev file of kind 'sick'; expected SICK_trial.txt"):
        load_text(tmp_path, "sick", "dev")
    with pytest.raises(DataError, match="does not exist"):
        load_text(tmp_path / "absent", "csv")
    with pytest.raises(DataError, match="kind is 'xml'"):
        load_text(tmp_path, "xml")


def test_too_few_classes_or_rows_are_refused_before_training(tmp_path):
    data = corpora.sentences(60)
    one = data.take(np.flatnonzero(data.labels == 0))
    with pytest.raises(DataError, match="'b' has 0 rows; training needs at least 10"):
        one.check_trainable()
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.txt").write_text("".join(f"0 word{i}\n" for i in range(50)))
    with pytest.raises(DataError, match="1 class; training needs at least 2"):
        Task.of(load_splits(folder, "label-text"), Embedding.random(8))
    (folder / "train.txt").write_text("".join(f"{int(i < 4)} word{i}\n" for i in range(50)))
    with pytest.raises(DataError, match=r"'1' has \d rows"):
        Task.of(load_splits(folder, "label-text"), Embedding.random(8))


def test_vectors_of_a_wrong_width_are_named_by_line(tmp_path):
    file = tmp_path / "glove.txt"
    vocabulary = Vocabulary(("good", "film", ". ."))
    file.write_text("good 1 2 3\nfilm 1 2\n")
    with pytest.raises(DataError, match="line 2: 2 numbers"):
        Embedding.glove(file).matrix(vocabulary)
    file.write_text("good 1 2 3\nfilm 1 x 2\n")
    with pytest.raises(DataError, match="line 2: not all of 3 values"):
        Embedding.glove(file).matrix(vocabulary)
    file.write_text("good\n")
    with pytest.raises(DataError, match="line 1: no numbers"):
        Embedding.glove(file)
    with pytest.raises(DataError, match="does not exist"):
        Embedding.glove(tmp_path / "absent.txt")
    file.write_text("good 1 2 3\n. . 4 5 6\nother 7 8 9\n")  # words of GloVe may hold a space
    embedding = Embedding.glove(file)
    matrix = embedding.matrix(vocabulary)
    assert matrix[2].tolist() == [1, 2, 3]
    assert matrix[4].tolist() == [4, 5, 6]
    assert embedding.coverage == pytest.approx(2 / 3)


# ------------------------------------------------------------------------------------------------------- budgets


@pytest.mark.parametrize("given", [{}, {"steps": 1, "examples": 2}, {"steps": 0}, {"epochs": -1.0}, {"seconds": 0.0}])
def test_a_budget_is_one_positive_number(given):
    with pytest.raises(BudgetError, match="expected one of steps, examples, epochs or seconds"):
        Budget(**given)


def test_a_budget_below_one_batch_is_refused():
    task = corpora.task()
    net = task.network(Arch((Layer(-1, "conv1"),)), 0)
    before = net.head.detach().clone()
    with pytest.raises(BudgetError, match="10 examples is below one batch of 32"):
        fit(net, task.train, task.valid, Budget(examples=10), batch=32)
    assert torch.equal(net.head, before)


def test_a_training_that_diverges_stops_and_says_so():
    task = corpora.task()
    net = task.network(Arch((Layer(-1, "conv1"),)), 0)
    result = fit(net, task.train, task.valid, Budget(epochs=50), lr=1e30, batch=32)
    assert result.diverged
    assert result.examples < 10 * 192
    assert np.isnan(result.valid_acc)


# -------------------------------------------------------------------------------------------------- command line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "absent", "label-text"], "does not exist"),
        (["search", "SET", "label-text", "--budget", "0.01"], "below one batch"),
        (["draw", "ARCH", "--out", "x.bmp"], "ends in '.bmp'"),
        (["draw", "BROKEN", "--out", "x.svg"], "layer 0 has operation"),
        (["minibench", "query", "conv1", "gru"], "3 operations"),
        (["minibench", "query", "conv1", "gru", "conv2"], "conv2"),
    ],
)
def test_the_command_line_refuses_in_one_line(tmp_path, capsys, arguments, words):
    corpora.label_lines(tmp_path / "set")
    (tmp_path / "arch.json").write_text(PAPER.to_json())
    (tmp_path / "broken.json").write_text(json.dumps(rows((-1, "conv2", []))))
    places = {"SET": "set", "ARCH": "arch.json", "BROKEN": "broken.json"}
    given = [str(tmp_path / places[a]) if a in places else a for a in arguments]
    assert main(given) == 2
    *progress, said = capsys.readouterr().err.strip().split("\n")
    assert words in said
    assert said.startswith("textnas: ")
    assert not any(line.startswith("textnas: ") or "Traceback" in line for line in progress)
