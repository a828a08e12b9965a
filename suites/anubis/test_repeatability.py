"""How well the hardware set repeats on this machine: what the gate would learn from, learned and read."""

import subprocess
import sys
from pathlib import Path

import pytest

from systems.anubis.criteria import load_criteria
from systems.anubis.machine import fingerprint

RUNS = 5
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def learned_from_runs(folder):
    """Criteria of the hardware set, by metric, from `RUNS` runs of it in processes of their own."""
    for number in range(1, RUNS + 1):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "suites/hardware", "-q", "--benchmark-quiet", "-p", "no:cacheprovider",
             "--runs", str(folder / "runs"), "--criteria", str(folder / "criteria"),
             "-m", "not slow and not gpu", "--learn" if number == RUNS else "--record"],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode < 2, done.stdout[-4000:] + done.stderr[-4000:]
    return {name: stored.criterion for name, stored in load_criteria(folder / "criteria", fingerprint().kind).items()}


@pytest.mark.timeout(3600)
@pytest.mark.claim("anubis/by-benchmark")
def test_every_gating_metric_of_the_hardware_set_repeats(tmp_path, measure, claim):
    learned = learned_from_runs(tmp_path)
    gating = {name: c.repeatability for name, c in learned.items() if c.gates}
    for name, value in sorted(gating.items(), key=lambda item: item[1]):
        print(f"{value:.4f} {name}")
    assert len(gating) >= 0.8 * len(learned), f"too noisy to gate: {sorted(set(learned) - set(gating))}"
    measure.record("median", sorted(gating.values())[len(gating) // 2], "1", better="higher")
    assert claim.holds(min(gating.values()))
