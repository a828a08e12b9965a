"""The command line: build, look, train and resume; what does not fit is said in one line, with status 2."""

import numpy as np
import pytest

from systems.ngra import rmat, roofline
from systems.ngra.__main__ import main, parse_bytes
from systems.ngra.choices import current_settings
from systems.ngra.data import planted
from systems.ngra.edges import edge_blocks


@pytest.fixture
def files(tmp_path):
    """Arcs as text, features and labels of a planted graph."""
    dataset = planted(400)
    src, dst = dataset.graph.arcs()
    lines = [
        "# a comment",
        "",
        *(f"{a} {b}" if k % 2 else f"{a},{b}" for k, (a, b) in enumerate(zip(src, dst, strict=True))),
    ]
    (tmp_path / "edges.txt").write_text("\n".join(lines))
    np.save(tmp_path / "x.npy", dataset.x.numpy())
    np.save(tmp_path / "y.npy", dataset.y.numpy())
    return tmp_path


def build(files, *options):
    arguments = ["build", files / "s", files / "edges.txt", "--features", files / "x.npy", "--chunk", 128, *options]
    return main([str(part) for part in arguments])


def test_a_store_is_built_looked_into_and_trained_on(files, capsys):
    assert build(files, "--self-loops") == 0
    assert main(["info", str(files / "s"), "--verify"]) == 0
    said = capsys.readouterr().out
    assert "400 of 32 features" in said
    assert "every checksum is right" in said
    train = ["train", str(files / "s"), "--labels", str(files / "y.npy"), "--memory", "64M", "--epochs", "30"]
    assert main([*train, "--dropout", "0.1", "--rate", "0.03"]) == 0
    said = capsys.readouterr().out
    assert "an epoch reads" in said
    assert float(said.split("labelled ")[1].split(" %")[0]) > 70


def test_training_resumes_where_it_stopped(tmp_path, capsys):
    train = ["train", "planted", "--model", "sage", "--checkpoint", str(tmp_path / "c.pt")]
    assert main([*train, "--epochs", "10"]) == 0
    assert main([*train, "--epochs", "20"]) == 0
    said = capsys.readouterr().out
    assert "resumed after epoch 10" in said
    assert "only its size is real" in said
    assert main(["train", "planted", "--model", "sage", "--hidden", "7", "--checkpoint", str(tmp_path / "c.pt")]) == 2
    assert "no checkpoint of this network" in capsys.readouterr().err


def test_a_plan_is_printed(capsys):
    assert main(["plan", "--model", "gat"]) == 0
    said = capsys.readouterr().out
    assert "softmax" in said
    assert "-> 0 FLOP" in said


def test_the_roofline_is_measured_and_drawn(tmp_path, capsys):
    picture = tmp_path / "roofline.png"
    assert main(["roofline", "--smallest", "5", "--largest", "7", "--features", "8", "-o", str(picture)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()[:1].isdigit()]
    assert [row[0] for row in rows] == ["32", "64", "128"]
    assert all(float(rate) >= 0 for row in rows for rate in row[-3:])
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert list(tmp_path.iterdir()) == [picture]


def test_the_rates_of_the_roofline_are_of_the_bytes_that_are_moved(monkeypatch):
    def in_turns(calls):
        assert not current_settings().hoist  # else a call would give back the sum of the call before
        return dict.fromkeys(calls, 0.5)

    monkeypatch.setattr(roofline, "_in_turns", in_turns)
    (point,) = roofline.measure([6], degree=3, width=5)
    assert point.vertex_bytes == 4 * 5 * 64
    assert point.gathered == point.torch == 4 * 5 * 3 * 64 / 0.5
    assert point.read == point.vertex_bytes / 0.5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["roofline", "--smallest", "9", "--largest", "2"], "no size from 2^9 to 2^2"),
        (["roofline", "--smallest", "30", "--largest", "31"], "wanted 4 to 24"),
        (["roofline", "--smallest", "4", "--largest", "4", "-o", "x.doc"], "cannot draw into x.doc"),
        (["info", "nowhere"], "no store"),
        (["train", "karate"], "neither a store"),
        (["build", "s", "nothing.txt"], "no nothing.txt"),
    ],
)
def test_what_does_not_fit_is_said_with_status_2(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


def test_stores_that_do_not_fit_the_training_are_refused(files, capsys):
    assert build(files) == 0
    train = ["train", str(files / "s")]
    for options, words in (
        ([], "--labels"),
        (["--labels", str(files / "y.npy")], "self loops"),
        (["--labels", str(files / "y.npy"), "--model", "sage", "--memory", "10K"], "bytes at least"),
        (["--labels", str(files / "x.npy"), "--model", "sage"], "expected (400,)"),
        (["--labels", str(files / "y.npy"), "--model", "sage", "--memory", "much"], "no number of bytes"),
    ):
        assert main([*train, *options]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("form", ["npy", "npy turned", "npz", "text"])
def test_every_form_of_file_gives_its_arcs(tmp_path, form):
    src, dst = (part.numpy() for part in rmat(5, 300, 1).arcs())
    path = tmp_path / f"edges.{form.split()[0]}"
    if form == "npz":
        np.savez(path, src=src, dst=dst)
    elif form == "text":
        path.write_text("".join(f"{a}\t{b}\n" for a, b in zip(src, dst, strict=True)))
    else:
        np.save(path, np.stack([src, dst], 0 if "turned" in form else 1))
    blocks = list(edge_blocks(path, 64))
    assert all(len(a) <= 64 for a, _ in blocks)
    assert np.array_equal(np.concatenate([a for a, _ in blocks]), src)
    assert np.array_equal(np.concatenate([b for _, b in blocks]), dst)


def test_a_line_that_is_no_arc_is_named(tmp_path, capsys):
    (tmp_path / "e.txt").write_text("0 1\n1 x\n")
    assert main(["build", str(tmp_path / "s"), str(tmp_path / "e.txt")]) == 2
    assert "e.txt:2: '1 x'" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_sizes_are_read_with_their_units():
    assert [parse_bytes(text) for text in ("1000", "64K", "1.5G")] == [1000, 65_536, 1_610_612_736]
