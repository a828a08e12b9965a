"""Submissions, the board, loaders and the command line."""

import json

import pytest

from systems.codexglue.__main__ import main
from systems.codexglue.board import SubmissionError, compare, leaderboard, read_submission, submit, worst_rows
from systems.codexglue.data import load
from systems.codexglue.tasks import MissingData, ValidationError

GOLD = "".join(f"int f{k} ( ) {{ int x = {k} ; return x ; }}\n" for k in range(40))
GOOD = GOLD.replace("f3 ", "g3 ")
BAD = "".join(f"int f{k} ( ) {{ int y = {k if k % 2 else 0} ; return y ; }}\n" for k in range(40))


@pytest.fixture
def files(tmp_path):
    for name, text in (("gold", GOLD), ("good", GOOD), ("bad", BAD)):
        (tmp_path / name).write_text(text)
    return tmp_path


def both(files):
    store = files / "store"
    return [
        submit(store, "code_refinement", files / "gold", files / name, name, variant="small", when="2026-01-02")
        for name in ("good", "bad")
    ]


def test_a_submission_is_one_file_that_never_changes(files):
    path, _ = both(files)
    before = path.read_bytes()
    again = submit(
        files / "store", "code_refinement", files / "gold", files / "good", "good", variant="small", when="2026-01-02"
    )
    assert again == path
    assert path.read_bytes() == before
    one = read_submission(path)
    assert (one.model, one.variant, one.meta["rows"]) == ("good", "small", 40)
    assert set(one.scores) == {"bleu", "exact_match", "codebleu"}
    assert sorted(p.suffix for p in (files / "store").iterdir()) == [".parquet", ".parquet"]


def test_nothing_is_written_for_a_file_with_a_mistake(files):
    (files / "short").write_text("int a ;\n")
    with pytest.raises(ValidationError, match="40 lines expected, 1 found"):
        submit(files / "store", "code_refinement", files / "gold", files / "short", "short")
    assert not (files / "store").exists()
    with pytest.raises(SubmissionError, match="name of a model"):
        submit(files / "store", "code_refinement", files / "gold", files / "good", " ")
    with pytest.raises(SubmissionError, match="'soon' is none"):
        submit(files / "store", "code_refinement", files / "gold", files / "good", "m", when="soon")


def test_the_board_ranks_ours_among_the_published(files):
    both(files)
    board = json.loads(leaderboard(files / "store", "code_refinement", fmt="json"))["boards"]["code_refinement"]
    models = [line["model"] for line in board]
    assert models.index("good") < models.index("bad")
    assert "CodeBERT" in models
    text = leaderboard(files / "store", "code_refinement")
    assert "| **good** |" in text
    assert "tree-sitter-java 0.23.5" in text
    page = leaderboard(files / "store", fmt="html")
    assert page.startswith("<!doctype html>")
    assert "<tr class='ours'><td>" in page
    assert "<del>g3</del> <ins>f3</ins>" in page  # the worst row of "good", folded away
    assert "MAP" in leaderboard(None, "clone_detection_poj104").upper()
    with pytest.raises(ValueError, match="expected md, html or json"):
        leaderboard(None, fmt="pdf")
    with pytest.raises(MissingData, match="no store"):
        leaderboard(files / "nothing")


def test_scores_of_other_grammars_have_a_ranking_of_their_own(files):
    both(files)
    for mixed in (False, True):
        text = leaderboard(files / "store", "code_refinement", fmt="json", mixed=mixed)
        lines = json.loads(text)["boards"]["code_refinement"]
        groups = {line["compares"] for line in lines}
        assert len(groups) == 2
        for group in [groups] if mixed else [{one} for one in groups]:
            own = [line for line in lines if line["compares"] in group]
            assert [line["rank"] for line in own] == list(range(1, len(own) + 1))
    lines = json.loads(leaderboard(None, "defect_detection", fmt="json"))["boards"]["defect_detection"]
    assert {line["compares"] for line in lines} == {""}  # accuracy is accuracy


def test_a_submission_keeps_the_texts_of_its_worst_rows(files):
    one, other = map(read_submission, both(files))
    assert [(row.row, row.score) for row in one.worst["exact_match"]] == [(4, 0.0)]
    assert (one.worst["exact_match"][0].wanted, one.worst["exact_match"][0].given) == (
        GOLD.splitlines()[3], GOOD.splitlines()[3],
    )  # fmt: skip
    assert len(other.worst["exact_match"]) == 5


def test_names_cannot_break_the_page(files):
    (files / "good").write_text(GOOD.replace("g3", "<script>"))
    submit(files / "store", "code_refinement", files / "gold", files / "good", "<script>alert(1)</script>")
    assert "<script>" not in leaderboard(files / "store", fmt="html")


def test_a_broken_file_in_the_store_is_left_out_and_named(files):
    both(files)
    (files / "store" / "broken.parquet").write_bytes(b"PAR1 no")
    record = json.loads(leaderboard(files / "store", "code_refinement", fmt="json"))
    assert len([line for line in record["boards"]["code_refinement"] if line["ours"]]) == 2
    assert "broken.parquet is no submission" in record["complaints"][0]


def test_a_difference_has_an_interval_and_a_probability(files):
    good, bad = map(read_submission, both(files))
    found = compare(good, bad, "exact_match", samples=2000)
    assert found.difference == pytest.approx(39 / 40)
    assert found.low <= found.difference <= found.high
    assert found.p < 0.01
    assert compare(good, good, "exact_match", samples=500).p == 1.0
    assert worst_rows(good, "exact_match", 1) == [(4, 0.0)]
    with pytest.raises(SubmissionError, match="there are exact_match"):
        compare(good, bad, "bleu")


def test_two_submissions_on_other_answers_are_not_compared(files):
    good, _ = map(read_submission, both(files))
    (files / "gold2").write_text(GOLD.replace("int", "long"))
    other = read_submission(submit(files / "store", "code_refinement", files / "gold2", files / "good", "x"))
    with pytest.raises(SubmissionError, match="same answers"):
        compare(good, other, "exact_match")


# ------------------------------------------------------------------------------------------------------ the shell


def test_a_score_and_its_mistakes_from_the_shell(files, capsys):
    names = [str(files / "gold"), str(files / "good")]
    assert main(["evaluate", "code_refinement", *names, "--variant", "small"]) == 0
    assert "exact_match         97.5" in capsys.readouterr().out
    assert main(["evaluate", "code_refinement", *names, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["meta"]["rows"] == 40
    (files / "short").write_text("int a ;\n")
    assert main(["evaluate", "code_refinement", names[0], str(files / "short")]) == 2
    assert "40 lines expected, 1 found" in capsys.readouterr().err
    assert main(["evaluate", "poetry", *names]) == 2
    assert "no task 'poetry'; there are" in capsys.readouterr().err


def test_submit_compare_and_board_from_the_shell(files, capsys):
    store = str(files / "store")
    paths = []
    for name in ("good", "bad"):
        arguments = ["code_refinement", str(files / "gold"), str(files / name), "--variant", "small"]
        assert main(["submit", *arguments, "--model", name, "--store", store]) == 0
        paths.append(capsys.readouterr().out.strip())
    assert main(["compare", *paths, "--metric", "exact_match"]) == 0
    assert "good - bad: +0.9750" in capsys.readouterr().out
    assert main(["leaderboard", "--store", store, "--format", "html", "--out", str(files / "board.html")]) == 0
    assert "good" in (files / "board.html").read_text()
    assert main(["tasks", "cloze_all"]) == 0
    assert "test 25,282" in capsys.readouterr().out
    assert main(["tasks"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 16


def test_the_retrieval_baseline_from_the_shell(tmp_path, capsys):
    folder = tmp_path / "code_translation"
    folder.mkdir()
    for split, rows in (("train", 30), ("test", 5)):
        for side in ("java", "cs"):
            text = "".join(f"{side} method{k}(){{ return {k}; }}\n" for k in range(rows))
            (folder / f"{split}.java-cs.txt.{side}").write_text(text)
    out = tmp_path / "out.txt"
    assert main(["retrieve", "code_translation", "--root", str(tmp_path), "--out", str(out)]) == 0
    assert out.read_text() == (folder / "test.java-cs.txt.cs").read_text()
    assert main(["retrieve", "code_refinement", "--root", str(tmp_path), "--out", str(out)]) == 2
    assert "no " in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------- loaders


@pytest.mark.parametrize(
    ("name", "split", "variant", "count", "column"),
    [
        ("clone_detection_bcb", "valid", None, 100, "func1"),
        ("clone_detection_poj104", "test", None, 300, "code"),
        ("defect_detection", "valid", None, 150, "func"),
        ("cloze_maxmin", "test", "ruby", 38, "pl_tokens"),
        ("code_translation", "test", "cs-java", 1000, "target"),
        ("code_refinement", "valid", "small", 500, "source"),
        ("code_search_webquery", "train", None, 340, "doc"),
        ("text_to_code", "valid", None, 200, "nl"),
        ("doc_translation", "test", "en-lv", 1000, "source"),
        ("doc_translation", "train", "lv-en", 3000, "target"),
    ],
)
def test_real_data_is_read_again_and_again_the_same(data, name, split, variant, count, column):
    dataset = load(name, split, variant, data("codexglue"))
    assert len(dataset) == count
    first, second = (next(iter(dataset)) for _ in range(2))
    assert first == second
    assert first[column]


def test_data_that_is_not_there_is_named_with_its_origin(tmp_path, monkeypatch):
    monkeypatch.delenv("CODEXGLUE_DATA", raising=False)
    with pytest.raises(MissingData, match=r"no .*train.jsonl; give the folder .*code_x_glue_cc_defect_detection"):
        load("defect_detection", "train", root=tmp_path)
    with pytest.raises(ValueError, match="expected train, valid, test"):
        load("defect_detection", "dev", root=tmp_path)
    (tmp_path / "defect_detection").mkdir()
    (tmp_path / "defect_detection" / "train.jsonl").write_text('{"func": "x"}\nnonsense\n')
    with pytest.raises(ValidationError, match=r"line 2: train.jsonl: not JSON"):
        list(load("defect_detection", "train", root=tmp_path))
