"""The page of an evolution, and the baselines that stand beside a proposer."""

import json

import pytest

from systems.safe import SafeError, corpus
from systems.safe.__main__ import main
from systems.safe.baselines import BASELINES, compare
from systems.safe.dashboard import dashboard, read_rounds
from systems.safe.evolve import Task
from systems.safe.policy import Policy
from systems.safe.verifier import Limits


def share(solved, low, high):
    return {"solved": solved, "total": 20, "draws": 31, "interval": [low, high]}


@pytest.fixture
def folder(tmp_path):
    for number, solved in ((0, 4), (1, 9), (10, 12)):
        place = tmp_path / f"round-{number}"
        place.mkdir()
        tables = {"unseen <b>": {"@1": share(solved, 5 * solved - 4, 5 * solved + 4), "@1+debug": share(14, 50, 80)}}
        row = {"number": number, "tables": tables, "proofs": 7, "repairs": 3, "draws": 40}
        (place / "metrics.json").write_text(json.dumps(row) + "\n")
        problem = {"message": "postcondition not satisfied", "line": 1}
        lines = [{"draw": "a", "ok": True, "problems": []}, {"draw": "b", "ok": False, "problems": [problem, problem]}]
        (place / "attempts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"draw": "cut')
        (place / "sft.jsonl").write_text('{"task": "x"}\n')
    (tmp_path / "round-11").mkdir()  # begun, not finished
    return tmp_path


def test_rounds_are_read_in_their_order_with_what_failed(folder):
    rounds = read_rounds(folder)
    assert [one.number for one in rounds] == [0, 1, 10]
    assert [one.shares["unseen <b>", "@1"][0] for one in rounds] == [4, 9, 12]
    assert (rounds[0].judged, rounds[0].right, rounds[0].failures) == (2, 1, {"postcondition not satisfied": 1})


def test_the_page_shows_shares_and_failures_and_names_cannot_break_it(folder, tmp_path):
    assert main(["report", str(folder), "-o", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "45.0 % [41.0, 49.0]" in page
    assert "postcondition not satisfied" in page
    assert "<b>" not in page.replace("&lt;b&gt;", "")
    assert page.count("<circle") == 6
    assert "http" not in page


def test_a_folder_without_rounds_and_a_damaged_one_are_named(folder, tmp_path, capsys):
    with pytest.raises(SafeError, match="no finished round"):
        read_rounds(tmp_path / "round-11")
    (folder / "round-1/metrics.json").write_text('{"number": 1}\n')
    assert main(["report", str(folder), "-o", str(tmp_path / "page.html")]) == 2
    assert "not what a round writes" in capsys.readouterr().err
    assert dashboard(read_rounds_of_one(tmp_path)).startswith("<!doctype html>")


def read_rounds_of_one(tmp_path):
    for name in ("round-1", "round-10"):
        (tmp_path / name / "metrics.json").unlink()
    return read_rounds(tmp_path)


def test_baselines_are_weaker_than_the_search_on_programs_that_it_proves():
    made = [one for seed in range(3) if (one := corpus.program("copy", seed)) is not None]
    tasks = [Task(f"{one.shape}-{one.seed}", one.shape, one.text) for one in made]
    lines = {line.name: line for line in compare(tasks, policy=Policy(), limits=Limits(workers=1))}
    assert set(lines) == {*BASELINES, "policy"}
    assert lines["search"].share.solved == len(tasks)
    assert lines["nothing"].share.solved == 0
    assert all(line.share.solved <= len(tasks) and line.what for line in lines.values())
    with pytest.raises(SafeError, match="no baseline magic; there are nothing"):
        list(compare(tasks, names=["magic"]))
