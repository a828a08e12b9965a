"""The command line: two processes dispute a claim over a real node, and what is wrong is said clearly."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from systems import evm
from systems.agatha import records
from systems.agatha.__main__ import main
from systems.agatha.descriptor import ProofError

ROOT = Path(__file__).parents[2]


def anvil():
    """The anvil binary: $ANVIL, PATH, or node_modules of the project or the working folder; None without one."""
    places = [os.environ.get("ANVIL"), shutil.which("anvil")]
    places += [folder / "node_modules/.bin/anvil" for folder in (ROOT, Path.cwd(), Path.home())]
    return next((str(place) for place in places if place and Path(place).exists()), None)


@pytest.fixture
def node():
    """The URL of an anvil that lives as long as the test."""
    binary = anvil()
    if binary is None:
        pytest.skip("no anvil: `npm i @foundry-rs/anvil`, then set $ANVIL to node_modules/.bin/anvil")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [binary, "--port", str(port), "--silent"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        url = f"http://127.0.0.1:{port}"
        evm.RpcChain(url, patience=60)  # raises NoNode
        yield url
    finally:
        process.terminate()
        process.wait(20)


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "systems.agatha", *map(str, arguments)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A compiled network, and the traces of a right and of a wrong run of it."""
    folder = tmp_path_factory.mktemp("agatha")
    graph = str(folder / "digits.graph")
    assert main(["compile", "digits", "--out", graph]) == 0
    assert main(["run", graph, "--seed", "5", "--out", str(folder / "right.trace")]) == 0
    for element in range(77, 200):  # the first fault that is not rounded away
        wrong = str(folder / "wrong.trace")
        assert main(["run", graph, "--seed", "5", "--out", wrong, "--fault", f"2:{element}"]) == 0
        model = model_of(graph)
        right_trace, wrong_trace = (records.load_trace(folder / name, model) for name in ("right.trace", "wrong.trace"))
        if wrong_trace.output_root != right_trace.output_root:
            (folder / "element").write_text(str(element))
            return folder
    raise AssertionError("no fault at node 2 reaches the output")


def model_of(path):
    from systems.agatha import graph

    return graph.load(path).commitment


def parties(files, trace, claim, url, account):
    return [files / "digits.graph", files / trace, claim, "--url", url, "--account", account]


def test_two_processes_play_a_dispute_over_a_node(node, files, tmp_path, capsys):
    claim, element = tmp_path / "claim.json", (files / "element").read_text()
    submitter = parties(files, "wrong.trace", claim, node, 1)
    assert main(["submit", *map(str, submitter), "--deploy", "--window", "100", "--clock", "300"]) == 0
    players = [
        start("watch", *submitter, "--poll", 0.1),
        start("challenge", *parties(files, "right.trace", claim, node, 2), "--poll", 0.1),
    ]
    try:
        (defended, _), (challenged, _) = (player.communicate(timeout=240) for player in players)
    finally:
        for player in players:
            player.kill()
    assert [player.returncode for player in players] == [1, 0], defended + challenged
    assert "post_trace" in defended
    assert ": void" in defended
    assert f"won by the challenger at node 2, element {element}" in challenged
    assert "withdraw" in challenged
    capsys.readouterr()
    assert main(["replay", str(files / "digits.graph"), str(claim), "--url", node]) == 0
    told = capsys.readouterr().out
    assert [word for word in ("Claimed", "Challenged", "Posted", "NodePicked", "Settled") if word not in told] == []
    assert f"won by the challenger at node 2, element {element}" in told


def test_a_challenger_that_was_stopped_goes_on_and_a_silent_submitter_runs_out_of_time(node, files, tmp_path, capsys):
    claim = tmp_path / "claim.json"
    submitter = list(map(str, parties(files, "wrong.trace", claim, node, 1)))
    challenger = list(map(str, parties(files, "right.trace", claim, node, 2)))
    assert main(["submit", *submitter, "--deploy", "--window", "100", "--clock", "300"]) == 0
    process = start("challenge", *challenger, "--poll", 0.1)
    try:
        assert "challenge:" in process.stdout.readline()
    finally:
        process.kill()
        process.communicate(timeout=60)
    evm.RpcChain(node).advance(302)
    assert main(["watch", *challenger, "--poll", "0.1"]) == 0
    told = capsys.readouterr().out
    assert "timeout" in told
    assert "won by the challenger" in told


def test_an_honest_claim_is_left_alone_and_collected(node, files, tmp_path, capsys):
    claim = tmp_path / "claim.json"
    submitter = list(map(str, parties(files, "right.trace", claim, node, 1)))
    assert main(["submit", *submitter, "--deploy", "--window", "50", "--clock", "300"]) == 0
    assert main(["challenge", *map(str, parties(files, "right.trace", claim, node, 2))]) == 0
    assert "nothing to dispute" in capsys.readouterr().out
    evm.RpcChain(node).advance(60)
    assert main(["watch", *submitter, "--poll", "0.1"]) == 0
    assert "final" in capsys.readouterr().out
    assert main(["submit", *submitter, "--court", json.loads(claim.read_text())["court"]]) == 2
    assert "the job has a result" in capsys.readouterr().err


def test_a_fraud_proof_needs_two_transactions_and_no_game(node, files, tmp_path, capsys):
    claim = tmp_path / "claim.json"
    submitter = list(map(str, parties(files, "wrong.trace", claim, node, 1)))
    challenger = list(map(str, parties(files, "right.trace", claim, node, 2)))
    assert main(["submit", *submitter, "--deploy", "--eager"]) == 0
    assert main(["challenge", *challenger, "--theirs", str(files / "wrong.trace")]) == 0
    assert ": void" in capsys.readouterr().out
    assert main(["watch", *submitter]) == 1


def test_the_wrong_chain_and_account_are_named(node, files, tmp_path, capsys):
    claim = tmp_path / "claim.json"
    submitter = list(map(str, parties(files, "right.trace", claim, node, 1)))
    nowhere = "0x" + "12" * 20
    assert main(["submit", *submitter, "--court", nowhere]) == 2
    assert f"no court stands at {nowhere}" in capsys.readouterr().err
    assert main(["submit", *submitter[:-1], "99", "--deploy"]) == 2
    assert "unlocked accounts" in capsys.readouterr().err


# --- without a node ---


def test_help_shows_a_dispute(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    told = capsys.readouterr().out
    assert [
        word for word in ("compile", "run", "submit", "watch", "challenge", "replay", "anvil") if word not in told
    ] == []


def test_no_node_is_said(files, tmp_path, capsys):
    submitter = parties(files, "right.trace", tmp_path / "claim.json", "http://127.0.0.1:9", 0)
    assert main(["submit", *map(str, submitter), "--deploy"]) == 2
    assert "no node answers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "1", "--fault", "2"], "expected NODE:ELEMENT"),
        (["--seed", "1", "--fault", "999:0"], "that node is not there"),
        (["--seed", "1", "--fault", "2:999999999"], "elements start at 0"),
        (["--seed", "1", "--backend", "abacus"], "expected auto or one of"),
        (["--image", "image.npy"], "expected float32 (1, 8, 8)"),
        (["--image", "absent.npy"], "absent.npy"),
    ],
)
def test_a_wrong_run_is_refused(files, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    np.save("image.npy", np.zeros((3, 8, 8), np.float32))
    assert main(["run", str(files / "digits.graph"), *arguments, "--out", "x.trace"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("x.trace").exists()


def test_a_damaged_trace_is_refused(files, tmp_path):
    model = model_of(files / "digits.graph")
    data = bytearray((files / "right.trace").read_bytes())
    (tmp_path / "cut.trace").write_bytes(data[:-5])
    data[-1] ^= 1
    (tmp_path / "flipped.trace").write_bytes(data)
    with pytest.raises(ProofError, match=r"cut\.trace holds no trace"):
        records.load_trace(tmp_path / "cut.trace", model)
    with pytest.raises(ProofError, match=r"flipped\.trace: its content has root"):
        records.load_trace(tmp_path / "flipped.trace", model)
    with pytest.raises(ProofError, match=r"holds no trace|is a trace of model None"):
        records.load_trace(files / "digits.graph", model)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("court", "0x12", "court is '0x12'"),
        ("output", 7, "output is 7"),
        ("nodes", True, "nodes is True"),
        ("nodes", 0, "nodes is 0"),
        ("output", "11" * 32, "its id says"),
        ("format", "other", "holds no claim"),
    ],
)
def test_a_damaged_claim_is_refused(files, tmp_path, field, value, message):
    from systems.agatha import Claim

    model = model_of(files / "digits.graph")
    trace = records.load_trace(files / "right.trace", model)
    claim = Claim(model.job(trace.tree(0).root), trace.output_root, bytes(32), "0x" + "ab" * 20)
    filed = records.Filed("0x" + "cd" * 20, claim)
    path = tmp_path / "claim.json"
    records.save_claim(path, filed)
    assert records.load_claim(path) == filed
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(ProofError, match=message):
        records.load_claim(path)
    path.write_text("{")
    with pytest.raises(ProofError, match="is no JSON"):
        records.load_claim(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["claim.json"]  # no temporary file stays


def test_a_trace_of_another_input_or_network_is_refused(files, tmp_path):
    other = tmp_path / "other.graph"
    assert main(["compile", "digits", "--profile", "ieee32", "--out", str(other)]) == 0
    with pytest.raises(ProofError, match="run the network again"):
        records.load_trace(files / "right.trace", model_of(other))
