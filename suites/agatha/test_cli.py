"""The command line: two processes dispute a claim over a real node, and what is wrong is said clearly."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from systems import evm
from systems.agatha import Challenger, Phase, Submitter, deploy, records, watch
from systems.agatha.__main__ import main
from systems.agatha.descriptor import ProofError

ROOT = Path(__file__).parents[2]


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


def test_an_honest_submitter_answers_a_doubt(node, files, tmp_path, capsys):
    """The doubter holds neither graph nor trace; where nobody answers, it wins by the clock."""
    claim = tmp_path / "claim.json"
    submitter = list(map(str, parties(files, "right.trace", claim, node, 1)))
    assert main(["submit", *submitter, "--deploy", "--window", "100", "--clock", "300"]) == 0
    doubter = ["doubt", str(claim), "--url", node, "--account", "2", "--poll", "0.1"]
    assert main([*doubter, "--node", "99"]) == 2
    assert "numbers start at 0" in capsys.readouterr().err
    process = start(*doubter, "--node", "2")
    try:
        assert "challenge:" in process.stdout.readline()
        watcher = start("watch", *submitter, "--poll", 0.1)  # an honest one: it describes and proves
        try:
            told, _ = process.communicate(timeout=120)
            assert process.returncode == 1, told
            assert "won by the submitter at node 2, element 0, step 0" in told
            evm.RpcChain(node).advance(200)
            defended, _ = watcher.communicate(timeout=120)
            assert watcher.returncode == 0, defended
            assert [word for word in ("describe", "prove", "final") if word not in defended] == []
        finally:
            watcher.kill()
    finally:
        process.kill()
    silent = tmp_path / "silent.json"
    submitter = list(map(str, parties(files, "wrong.trace", silent, node, 3)))
    assert main(["submit", *submitter, "--deploy", "--window", "100", "--clock", "300"]) == 0
    process = start("doubt", str(silent), *doubter[2:], "--node", "2")
    try:
        assert "challenge:" in process.stdout.readline()
        evm.RpcChain(node).advance(302)
        told, _ = process.communicate(timeout=120)
        assert process.returncode == 0, told
        assert "won by the challenger" in told
    finally:
        process.kill()


def test_a_key_signs_in_place_of_an_account_of_the_node(node, files, tmp_path, capsys):
    """A new key without Ether is told apart from one that can pay; anvil's first account has a well-known key."""
    rich = tmp_path / "rich.key"
    rich.write_text("0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80\n")
    poor = tmp_path / "poor.key"
    poor.write_text("0x" + "17" * 32)
    bad = tmp_path / "bad.key"
    bad.write_text("0xsecret")
    claim = tmp_path / "claim.json"
    arguments = list(map(str, [files / "digits.graph", files / "wrong.trace", claim, "--url", node]))
    assert main(["submit", *arguments, "--key", str(bad), "--deploy"]) == 2
    told = capsys.readouterr().err
    assert "key" in told
    assert "secret" not in told
    assert main(["submit", *arguments, "--key", str(poor), "--deploy"]) == 2
    assert "agatha submit:" in capsys.readouterr().err
    assert main(["submit", *arguments, "--key", str(rich), "--deploy", "--eager"]) == 0
    assert json.loads(claim.read_text())["submitter"] == "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"
    arguments[1] = str(files / "right.trace")
    assert main(["challenge", *arguments, "--account", "3", "--theirs", str(files / "wrong.trace")]) == 0


def test_a_second_challenger_leaves_when_the_claim_has_fallen(node, files, tmp_path, capsys):
    claim = tmp_path / "claim.json"
    submitter = list(map(str, parties(files, "wrong.trace", claim, node, 1)))
    first, second = (list(map(str, parties(files, "right.trace", claim, node, i))) for i in (2, 3))
    assert main(["submit", *submitter, "--deploy", "--eager", "--clock", "300"]) == 0
    late = start("challenge", *second, "--poll", 0.1)
    try:
        assert "challenge:" in late.stdout.readline()
        assert main(["challenge", *first, "--theirs", str(files / "wrong.trace")]) == 0
        told, _ = late.communicate(timeout=120)
    finally:
        late.kill()
    assert late.returncode == 0, told
    assert "leave: the claim fell in another game" in told
    assert "left, bond returned" in told
    assert "withdraw" in told


# --- without a node ---


def test_a_waiting_challenger_leaves_and_gets_its_bond_back(files):
    """As above, on a chain in this process."""
    model = model_of(files / "digits.graph")
    right, wrong = (records.load_trace(files / name, model) for name in ("right.trace", "wrong.trace"))
    chain = evm.RevmChain()
    court = deploy(chain)
    alice, bob, carol = chain.accounts[1:4]
    submitter = Submitter(court, alice, model, wrong)
    claim = submitter.claim(eager=True)
    submitter.submit(claim)
    second = Challenger(court, carol, model, right)
    before = chain.balance(carol)
    second.challenge(claim)
    Challenger(court, bob, model, right).fraud_proof(claim, wrong)
    told = []
    assert watch.contest(second, claim, poll=0, say=told.append).phase is Phase.LEFT
    assert told[0] == "leave: the claim fell in another game"
    assert chain.balance(carol) == before


def test_a_key_that_is_not_there_is_named(files, tmp_path, capsys):
    arguments = [files / "digits.graph", files / "right.trace", tmp_path / "claim.json", "--key"]
    assert main(["submit", *map(str, arguments), str(tmp_path / "absent.key"), "--deploy"]) == 2
    assert "absent.key" in capsys.readouterr().err


def test_compiled_networks_are_kept_in_a_folder(files, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("AGATHA_MODELS", raising=False)
    assert main(["compile", "digits"]) == 2
    assert "$AGATHA_MODELS" in capsys.readouterr().err
    monkeypatch.setenv("AGATHA_MODELS", str(tmp_path / "kept"))
    assert main(["compile", "digits", "--samples", "33"]) == 0
    first = capsys.readouterr()
    kept = tmp_path / "kept/digits-int8-33.graph"
    written = kept.stat().st_mtime_ns
    assert main(["compile", "digits", "--samples", "33"]) == 0
    second = capsys.readouterr()
    assert second.out == first.out
    assert "was there already" in second.err
    assert kept.stat().st_mtime_ns == written
    assert main(["run", "digits-int8-33", "--seed", "5", "--out", str(tmp_path / "a.trace")]) == 0
    assert main(["run", "nothing", "--seed", "5", "--out", str(tmp_path / "b.trace")]) == 2
    assert "nothing" in capsys.readouterr().err
    data = bytearray(kept.read_bytes())
    data[-1] ^= 1
    kept.write_bytes(data)
    assert main(["compile", "digits", "--samples", "33"]) == 2
    assert "its content has root" in capsys.readouterr().err


def test_help_shows_a_dispute(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    told = capsys.readouterr().out
    words = ("compile", "run", "submit", "watch", "challenge", "doubt", "replay", "anvil", "AGATHA_MODELS")
    assert [word for word in words if word not in told] == []


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
