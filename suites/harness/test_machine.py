"""The fingerprint and the noise probe: derived from facts alone, and true of the machine that runs this."""

import json
import os
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from systems.anubis.judging import evidence_of, under_pressure
from systems.anubis.machine import (
    GIB,
    Machine,
    Noise,
    NoiseSample,
    disk_class,
    fingerprint,
    from_json,
    kind_of,
    noise_between,
    power_of_two,
    sample_noise,
    stack_of,
    to_json,
)

FACTS = {
    "architecture": "x86_64",
    "cpu": "Intel(R) Xeon(R) Platinum 8480C CPU @ 2.00GHz",
    "cores": 192,
    "memory_bytes": 2015 * GIB,
    "disk": "nvme",
    "gpus": [{"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 80 * GIB, "uuid": f"GPU-{i}"} for i in range(8)],
    "stack": {"kernel": "6.8.0", "python": "3.11.7", "torch": "2.13.0", "cuda": ""},
    "machine": "0123456789abcdef",
    "hostname": "node-17",
}


def test_the_kind_says_what_must_match():
    assert kind_of(FACTS) == "x86_64-intel-xeon-platinum-8480c-192c-2048g-nvme-8x-h100-80gb-hbm3".replace("8x-h", "8xh")
    assert kind_of(
        {**FACTS, "cpu": "AMD EPYC 7763 64-Core Processor", "cores": 2, "memory_bytes": 23.5 * GIB, "gpus": []}
    ) == ("x86_64-amd-epyc-7763-2c-32g-nvme-nogpu")


def test_the_stack_leaves_out_what_is_not_there():
    assert stack_of(FACTS) == "kernel 6.8.0 · python 3.11.7 · torch 2.13.0"


@given(st.permutations(list(FACTS)), st.permutations(FACTS["gpus"]))
def test_the_kind_does_not_depend_on_the_order_of_the_facts(order, gpus):
    shuffled = Machine.of({name: (gpus if name == "gpus" else FACTS[name]) for name in order})
    original = Machine.of(FACTS)
    assert (shuffled.kind, shuffled.node, shuffled.stack) == (original.kind, original.node, original.stack)


@given(st.sampled_from(["cores", "cpu", "disk", "gpus", "memory_bytes", "architecture"]))
def test_each_fact_that_matters_changes_the_kind(name):
    other = {
        "cores": 96,
        "cpu": "AMD EPYC",
        "disk": "hdd",
        "gpus": FACTS["gpus"][:4],
        "memory_bytes": 512 * GIB,
        "architecture": "aarch64",
    }
    assert kind_of({**FACTS, name: other[name]}) != kind_of(FACTS)


@pytest.mark.parametrize(
    ("gib", "rounded"), [(0.4, 1), (1.9, 2), (3.7, 4), (23.5, 32), (31.2, 32), (62.7, 64), (2015, 2048)]
)
def test_memory_is_rounded_to_the_size_that_was_sold(gib, rounded):
    assert power_of_two(gib) == rounded


def test_the_fingerprint_of_this_machine_is_stable_and_hides_the_machine_id():
    here = fingerprint()
    assert fingerprint() == here
    assert from_json(to_json(here)) == here
    assert here.facts["cores"] == len(os.sched_getaffinity(0))
    assert f"python {'.'.join(map(str, sys.version_info[:3]))}" in here.stack
    secret = Path("/etc/machine-id")
    if secret.exists() and (text := secret.read_text().strip()):
        assert text not in json.dumps(here.facts)


def test_the_disk_class_of_memory_is_memory():
    if not Path("/dev/shm").is_dir():
        pytest.skip("no /dev/shm here")
    assert disk_class(Path("/dev/shm")) == "memory"
    assert disk_class(Path("/")) in {"nvme", "ssd", "hdd", "virtual", "network", "unknown"}


def reading(at=0.0, cpu=(0.0,) * 8, own=0.0, psi=0, throttled=0.0):
    return NoiseSample(at=at, cpu=cpu, own=own, psi_us=psi, throttled_s=throttled, gpu_processes=frozenset())


def test_shares_are_of_the_whole_machine():
    #            user nice system idle iowait irq softirq steal
    after = reading(at=10.0, cpu=(12.0, 0.0, 2.0, 4.0, 1.0, 0.0, 0.0, 1.0), own=8.0, psi=2_000_000, throttled=5.0)
    noise = noise_between(reading(), after)
    grain = len(os.sched_getaffinity(0)) / os.sysconf("SC_CLK_TCK")
    assert noise.foreign == pytest.approx((14.0 - 8.0 - grain) / 20.0)
    assert noise.steal == pytest.approx(1.0 / 20.0)
    assert noise.psi == pytest.approx(0.2)
    assert noise.throttled == pytest.approx(0.5)


@given(st.lists(st.floats(0, 1e6), min_size=8, max_size=8), st.floats(0, 1e6), st.floats(0, 1e3))
def test_shares_stay_in_their_range_whatever_the_counters_say(cpu, own, wall):
    noise = noise_between(reading(), reading(at=wall, cpu=tuple(cpu), own=own, psi=int(wall * 2e6)))
    assert 0.0 <= noise.foreign <= 1.0
    assert 0.0 <= noise.steal <= 1.0
    assert 0.0 <= noise.psi <= 1.0


def test_pressure_is_what_others_cause():
    assert not under_pressure(Noise())
    assert not under_pressure(Noise(psi=0.9, load=5.0))  # a benchmark of many processes makes pressure of its own
    assert under_pressure(Noise(foreign=0.2))
    assert under_pressure(Noise(steal=0.1))
    assert under_pressure(Noise(), ["foreign process 7 on GPU 0"])
    assert not under_pressure(Noise(foreign=0.9, throttled=0.3))  # a quota is a finding about the machine
    assert evidence_of(Noise(throttled=0.5)) == ("held back by its CPU quota for 50% of the time",)
    assert evidence_of(Noise(foreign=0.25, steal=0.1)) == (
        "other processes used 25% of the CPUs",
        "the hypervisor took 10% of the CPUs",
    )
    assert evidence_of(Noise(foreign=0.01)) == ()


def test_children_that_still_run_count_as_our_own():
    import subprocess

    code = "import time\nend = time.time() + 30\nwhile time.time() < end: pass"
    with subprocess.Popen([sys.executable, "-c", code]) as child:
        time.sleep(0.3)
        before = sample_noise()
        time.sleep(1.0)
        after = sample_noise()
        child.kill()
    assert after.own - before.own > 0.2
