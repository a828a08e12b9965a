"""The GPU benchmark as a program: tried whole on the CPU at tiny sizes, with the Triton kernels in the interpreter."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from systems.spider import bench_gpu
from systems.spider.gpu_timing import Bench, Row, difference

pytest.importorskip("triton", reason="triton is not installed")
ROOT = Path(__file__).resolve().parents[2]


def run(out, *arguments, code=None):
    program = ["-c", code] if code else ["-m", "systems.spider.bench_gpu"]
    return subprocess.run(
        [sys.executable, *program, "--out", str(out), *arguments], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip


def test_a_whole_run_writes_every_phase_and_the_ratios(tmp_path):
    done = run(tmp_path, "--interpret")
    if "only 0-dimensional arrays" in done.stderr:
        pytest.skip("this triton's interpreter cannot loop to a bound of run time under numpy 2.4; it needs 2.3")
    assert done.returncode == 0, done.stderr
    rows = pd.read_parquet(tmp_path / "bench_gpu.parquet")
    assert set(rows.phase) == {*bench_gpu.PHASES, "rows"}
    timed = rows[rows["rounds"] > 0]
    assert (timed.seconds > 0).all()
    assert (timed.fastest <= timed.seconds).all()
    assert (timed.error <= 5e-2).all()
    record = json.loads((tmp_path / "bench_gpu.json").read_text())
    assert record["machine"]["torch"] == torch.__version__
    spider, dense = (
        rows[(rows.phase == "products") & (rows.case == "32x1 0.9 fp32") & (rows.contender == name)].seconds.item()
        for name in ("spider", "cublas")
    )
    assert record["ratios"]["products: 32x1 0.9 fp32: over cublas"] == pytest.approx(dense / spider, rel=1e-3)
    assert {"rows: share of cuBLAS's rate, %", "detection: share of copy bandwidth, %"} <= record["ratios"].keys()


def test_a_wrong_kernel_gets_no_time_and_an_exit_status(tmp_path):
    code = (
        "import sys\n"
        "from systems.spider import bench_gpu, gpu\n"
        "right = gpu.k_gather\n"
        "gpu.k_gather = lambda *a: right(*a) + 1\n"
        "sys.exit(bench_gpu.main(sys.argv[1:]))\n"
    )
    done = run(tmp_path, "--interpret", "--phases", "correctness", code=code)
    if "only 0-dimensional arrays" in done.stderr:
        pytest.skip("this triton's interpreter cannot loop to a bound of run time under numpy 2.4; it needs 2.3")
    assert done.returncode == 1
    assert "differs from float64" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so(tmp_path, capsys):
    assert bench_gpu.main(["--out", str(tmp_path)]) == 2
    assert "no CUDA GPU" in capsys.readouterr().err


def test_an_unknown_phase_is_named_with_those_there_are(tmp_path, capsys):
    with pytest.raises(SystemExit):
        bench_gpu.main(["--out", str(tmp_path), "--phases", "products,magic"])
    assert "magic" in (said := capsys.readouterr().err)
    assert "correctness" in said


def test_a_peer_that_fails_or_disagrees_is_noted_and_not_timed():
    bench = Bench("cpu", 2, math.inf, lambda line: None)
    x = torch.ones(4)

    def broken():
        raise RuntimeError("out of luck\nand more")

    found = bench.versus("p", "c", {"spider": lambda: x, "broken": broken, "wrong": lambda: x + 1, "peer": x.clone}, 1)
    assert found["broken"].note == "does not run: out of luck"
    assert math.isnan(found["broken"].seconds)
    assert found["wrong"].note.startswith("differs")
    assert found["wrong"].rounds == 1
    assert found["peer"].seconds > 0
    named = dict(bench_gpu.ratios(bench.rows))
    assert list(named) == ["p: c: over peer"]


def test_ours_must_agree_before_it_is_timed():
    bench = Bench("cpu", 2, math.inf, lambda line: None)
    with pytest.raises(AssertionError, match="spider differs"):
        bench.versus("p", "c", {"spider": lambda: torch.zeros(3), "peer": lambda: torch.ones(3)}, 1)
    assert not bench.rows


def test_a_spent_budget_starts_nothing():
    said = []
    bench = Bench("cpu", 2, 0.0, said.append)
    assert bench.versus("p", "c", {"spider": lambda: torch.ones(3)}, 1) == {}
    assert "budget" in said[0]


def test_shares_of_the_machine_are_ratios_of_rates():
    def row(phase, contender, seconds, work):
        return Row(phase, "c", contender, seconds, seconds, 3, work, "B/s", 0.0)

    named = dict(bench_gpu.ratios([row("detection", "spider", 2.0, 1.0), row("detection", "copy", 1.0, 2.0)]))
    assert named["detection: share of copy bandwidth, %"] == pytest.approx(25.0)


def test_difference_is_relative_and_never_hides_nan():
    assert difference(torch.tensor([4.0, 2.0]), torch.tensor([4.0, 1.0])) == 0.25
    assert difference(torch.ones(2), torch.tensor([1.0, math.nan])) == math.inf
    assert difference(torch.ones(2), torch.ones(3)) == math.inf
    assert difference(torch.ones(0), torch.ones(0)) == 0.0
