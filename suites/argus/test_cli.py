"""The command line: every role a process of its own over a real node, and what is wrong is said clearly."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from systems import evm
from systems.argus.__main__ import main
from systems.argus.content import write_image
from systems.argus.watermark import jpeg

pytestmark = pytest.mark.component("compute")
ROOT = Path(__file__).parents[2]


def picture():
    y, x = np.mgrid[:512, :512] / 512
    random = np.random.default_rng(0)
    plane = 128 + 50 * np.sin(7 * x + 5 * y) + random.normal(0, 10, (512, 512))
    return np.repeat(np.clip(plane, 0, 255).astype(np.uint8)[..., None], 3, 2)


def test_a_campaign_from_the_shell(node, tmp_path):
    """Owner, licensee and informer in processes of their own, to the last claim; the books are right at the end."""
    write_image(tmp_path / "film.png", picture())
    campaign = None

    def run(*words, account=None, folder=None, code=0):
        command = [sys.executable, "-m", "systems.argus", *words, "--url", node]
        command += ["--account", str(account)] if account is not None else []
        command += ["--folder", folder] if folder else []
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        if campaign:
            environment["ARGUS_CAMPAIGN"] = campaign
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout.strip() + done.stderr

    campaign = run("owner", "open", "--period", "3600", "--periods", "3", account=0, folder="owner")
    key = tmp_path / "owner" / "key.json"
    assert key.stat().st_mode & 0o077 == 0
    run("licensee", "request", "film", "--bounty", "1", "--penalty", "2", account=1, folder="alice")
    run("owner", "deliver", "film", "film.png", account=0, folder="owner")
    run("licensee", "accept", "film", "copy.png", account=1, folder="alice")
    assert "no watermark" in run("informer", "inspect", "film.png", account=2, folder="bob", code=1)
    from systems.argus.content import load_image

    write_image(tmp_path / "found.png", jpeg(load_image(tmp_path / "copy.png"), 60))
    assert "version" in run("informer", "inspect", "found.png", account=2, folder="bob")
    run("informer", "report", "found.png", account=2, folder="bob")
    assert "not" not in run("informer", "report", "found.png", account=2, folder="bob")
    assert "commit, then reveal" in run("informer", "reveal", account=2, folder="bob", code=2)
    chain = evm.RpcChain(node)
    chain.advance(3600)
    assert "revealed version" in run("informer", "reveal", account=2, folder="bob")
    assert "nothing to repudiate" in run("licensee", "repudiate", "film", account=1, folder="alice", code=2)
    assert "can still come" in run("settle", "film", account=3, code=2)
    chain.advance(10 * 86_400)
    assert run("settle", "film", account=3).startswith("1 reports")
    assert "claimed 1.001 ether" in run("informer", "claim", account=2, folder="bob")
    assert "nothing to claim" in run("informer", "claim", account=2, folder="bob")
    assert "settled, 1 reports" in run("audit")
    for account in (0, 1):
        run("withdraw", account=account)
    assert "holds 0 ether" in run("audit", "--page", "campaign.html")
    assert (tmp_path / "campaign.html").read_text().count("<circle") == 7


def test_rules_are_compared_without_a_node(capsys):
    assert main(["simulate", "--runs", "20"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[1].startswith("argus")
    assert len(table) == 6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["audit", "--url", "http://127.0.0.1:9"], "which campaign"),
        (["audit", "--campaign", "0x" + "11" * 20, "--url", "http://127.0.0.1:9"], "no node answers"),
        (["owner", "open", "--folder", "x", "--key", "missing", "--url", "http://127.0.0.1:9"], "missing"),
    ],
)
def test_what_is_missing_is_named(words, said, capsys, monkeypatch):
    monkeypatch.delenv("ARGUS_CAMPAIGN", raising=False)
    assert main(words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("amount", ["much", "-1", "0.0000000000000000001"])
def test_amounts_are_whole_wei(amount, capsys):
    with pytest.raises(SystemExit):
        main(["licensee", "request", "film", "--folder", "x", "--bounty", amount, "--penalty", "1"])
    assert "ether" in capsys.readouterr().err
