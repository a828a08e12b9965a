"""The command line: each command on a small model."""

import pytest

from systems.superscaler.__main__ import main

SMALL = ["--set", "layers=2", "width=8", "heads=2", "vocabulary=8", "length=4"]


def test_plan_says_what_each_rank_sends(capsys):
    assert main(["plan", "gpt", "--plan", "megatron", "--tp", "2", *SMALL]) == 0
    assert "rank 1: " in capsys.readouterr().out


def test_a_program_is_printed_line_by_line(capsys):
    assert main(["plan", "gpt", "--plan", "1f1b", "--pp", "2", "--microbatches", "2", "--rank", "0", *SMALL]) == 0
    out = capsys.readouterr().out
    assert "forward embedding .. add_2" in out
    assert "Send(" in out


def test_verify_simulate_and_draw(capsys, tmp_path):
    plan = ["gpt", "--plan", "interlaced", "--pp", "2", "--microbatches", "2", *SMALL]
    assert main(["verify", *plan]) == 0
    assert "2 ranks: right" in capsys.readouterr().out
    assert main(["simulate", *plan]) == 0
    assert "ms a step" in capsys.readouterr().out
    assert main(["draw", *plan, "--out", str(tmp_path / "t.html")]) == 0
    assert (tmp_path / "t.html").stat().st_size > 1000


@pytest.mark.slow
def test_run_compares_with_one_device(capsys):
    assert main(["run", "gpt", "--plan", "megatron", "--tp", "2", "--steps", "2", *SMALL]) == 0
    assert "largest difference" in capsys.readouterr().out


def test_what_cannot_be_done_is_refused(capsys):
    assert main(["plan", "gpt", "--plan", "gpipe", "--pp", "9", *SMALL]) == 2
    assert "fewer stages" in capsys.readouterr().err
    assert main(["plan", "gpt", "--set", "layers"]) == 2
    assert "NAME=N" in capsys.readouterr().err
    assert main(["simulate", "gpt", "--cluster", "abacus", *SMALL]) == 2
    assert "v100_dgx1" in capsys.readouterr().err


def test_a_search_writes_a_plan_that_the_other_commands_take(capsys, tmp_path):
    file, model = str(tmp_path / "plan.json"), ["gpt", *SMALL]
    assert main(["plan", *model, "--search", "--devices", "2", "--out", file]) == 0
    assert "micro-batches" in capsys.readouterr().out
    assert main(["verify", *model, "--file", file]) == 0
    assert "ranks: right" in capsys.readouterr().out
    assert main(["verify", "gpt", "--file", file, "--set", "layers=3"]) == 2
    assert "is for blocks" in capsys.readouterr().err
    assert main(["plan", *model, "--search", "--devices", "2", "--memory", "1e-6"]) == 2
    assert "MiB more" in capsys.readouterr().err
    assert main(["plan", *model, "--search", "--devices", "99"]) == 2
    assert "99 devices of a cluster that has 8" in capsys.readouterr().err


@pytest.mark.slow
def test_a_calibration_is_a_cluster_for_the_other_commands(capsys, tmp_path):
    file = str(tmp_path / "local.json")
    assert main(["calibrate", "--out", file]) == 0
    assert "all_reduce of 2" in capsys.readouterr().out
    assert main(["simulate", "gpt", "--plan", "data", "--dp", "2", "--cluster", file, *SMALL]) == 0
    assert "ms a step" in capsys.readouterr().out
