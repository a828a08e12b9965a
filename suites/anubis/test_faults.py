"""Each fault slows or breaks what it says, as a probe of its own sees it, and leaves the machine as it was."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from systems.anubis import control_groups, faults
from systems.anubis.probes import disk, memory, namespaces, network

CPUS = len(os.sched_getaffinity(0))


def membership():
    return Path("/proc/self/cgroup").read_text(encoding="utf-8")


def ours():
    """Groups and namespaces of this process."""
    groups = [path.name for path in control_groups.ROOT.glob(f"*/{control_groups.PREFIX}{os.getpid()}-*")]
    folder = Path("/run/netns")
    return groups + [path.name for path in folder.glob(f"maat{os.getpid()}*")]


@pytest.fixture(autouse=True)
def the_machine_is_as_it_was():
    before = membership()
    yield
    assert membership() == before
    assert ours() == []


def cpu_seconds(wall):
    """CPU seconds that this process gets in `wall` seconds of spinning."""
    end, used = time.monotonic() + wall, time.process_time()
    while time.monotonic() < end:
        pass
    return time.process_time() - used


def test_a_quota_caps_cpu_time_whatever_the_load(fault):
    with fault("cpu_quota(0.3)"):
        assert cpu_seconds(0.5) < 0.5 * 0.3 * 1.3
        group = control_groups.hierarchy("cpu") / control_groups.own_group("cpu")
        if control_groups.version("cpu") == 1:
            assert (group / "cpu.cfs_quota_us").read_text(encoding="ascii").strip() == "3000"


def test_a_quota_holds_children_too_and_they_come_back(fault):
    with fault("cpu_quota(0.3)"):
        child = subprocess.Popen(["sleep", "60"])
        groups = Path(f"/proc/{child.pid}/cgroup")
        assert control_groups.PREFIX in groups.read_text(encoding="utf-8")
    try:
        assert control_groups.PREFIX not in groups.read_text(encoding="utf-8")
    finally:
        child.kill()
        child.wait()


def test_without_privilege_a_process_is_held_by_stopping_it(fault, monkeypatch):
    monkeypatch.setattr(control_groups, "available", lambda *_: "not allowed here")
    with fault("cpu_quota(0.3)"):
        assert cpu_seconds(1.0) < 0.6
    assert faults.cpu_quota(1.5).available() is not None


def test_burners_compute_until_the_fault_ends(fault):
    with fault(f"cpu_burner({CPUS},5)"):
        children = burdens()
        assert len(children) == CPUS
        assert all(os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, 0) + 5 for pid in children)
        before = sum(map(cpu_ticks, children))
        time.sleep(0.5)
        assert sum(map(cpu_ticks, children)) > before
    assert burdens() == []


def burdens():
    import psutil

    return [child.pid for child in psutil.Process().children() if "load.py" in " ".join(child.cmdline())]


def cpu_ticks(pid):
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_hogs_move_memory_until_the_fault_ends(fault):
    stream = memory.Stream(elements=2**22)

    def best():
        seconds = []
        for _ in range(8):
            began = time.perf_counter()
            stream.run("triad")
            seconds.append(time.perf_counter() - began)
        return float(np.median(seconds))

    healthy = best()
    with fault(f"memory_hog({2 * CPUS})"):
        assert best() > 1.3 * healthy
    assert burdens() == []


def test_a_throttled_disk_is_slow(fault):
    try:
        with disk.Scratch() as scratch:
            healthy = disk.sequential_write(scratch, blocks=128).bandwidth
            with fault("disk_throttle(50e6)"):
                slow = disk.sequential_write(scratch, blocks=64).bandwidth
    except disk.NoDisk as reason:
        pytest.skip(str(reason))
    assert np.median(slow) < 75e6
    assert np.median(healthy) > 4 * np.median(slow)


def test_a_limited_link_is_slow(fault):
    with fault("link_rate(100)"), namespaces.veth_pair() as pair:
        slow = network.over_veth(pair, seconds=0.4)
    with namespaces.veth_pair() as pair:
        healthy = network.over_veth(pair, seconds=0.4)
    assert np.median(slow.send) < 1.5 * 100e6 / 8
    assert np.median(healthy.send) > 4 * np.median(slow.send)


def test_a_limit_is_lifted_from_a_link_that_stays(fault):
    with namespaces.veth_pair() as pair:
        with fault("link_rate(100)"):
            assert "tbf" in discipline(pair)
        assert "tbf" not in discipline(pair)


def discipline(pair):
    command = ["tc", "-n", pair.a, "qdisc", "show", "dev", pair.interface]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_a_delayed_link_answers_late(fault):
    with fault("link_delay(5)"), namespaces.veth_pair() as pair:
        assert min(network.over_veth(pair, seconds=0.2).round_trip) > 0.009


def test_some_steps_are_slow_and_the_rest_are_not(fault):
    class Layer(torch.nn.Module):
        def forward(self, x):
            time.sleep(0.01)
            return x

    layer = torch.nn.Sequential(Layer(), Layer())
    seconds = []
    with fault("slow_steps(0.5,4)"):
        for _ in range(24):
            began = time.perf_counter()
            layer(torch.zeros(1))
            seconds.append(time.perf_counter() - began)
    slow = sum(second > 0.06 for second in seconds)
    assert 4 <= slow <= 20  # of 24 at a share of one half; the outermost pass alone counts, or all would be slow


def test_a_flipped_bit_is_one_bit(fault):
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    x = torch.randn(3, 8)
    right = model(x).detach()
    with fault("bit_flip(1)"):
        wrong = model(x).detach()
    changed = right.view(torch.int32) ^ wrong.view(torch.int32)
    assert changed.count_nonzero() == 1
    assert int(changed[changed != 0].item() & 0xFFFFFFFF).bit_count() == 1
    assert torch.equal(model(x), right)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int8, torch.bool, torch.float32])
@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_a_bit_flips_in_any_dtype_and_shape(dtype, shape):
    tensor = torch.ones(shape, dtype=dtype)
    before = tensor.reshape(-1).view(torch.uint8).clone()
    assert faults.flip_a_bit({"loss": None, "logits": (tensor,)}, np.random.default_rng(3))
    after = tensor.reshape(-1).view(torch.uint8)
    assert sum(int(value).bit_count() for value in before ^ after) == 1
    assert not faults.flip_a_bit([torch.empty(0), "text"], np.random.default_rng(0))


@pytest.mark.parametrize("name", ["cpu_quota(0.5)", "cpu_duty(0.5)", "disk_throttle(50e6)", "link_rate(100)"])
def test_a_fault_ends_with_an_exception(fault, name):
    with pytest.raises(ZeroDivisionError), fault(name):
        raise ZeroDivisionError
    assert burdens() == []


VICTIM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a shell
import sys, time
from systems.anubis.faults import fault_named
with fault_named(sys.argv[1]).injected():
    print("in", flush=True)
    time.sleep(60)
"""


def victim(name, code=VICTIM):
    if reason := faults.fault_named(name).available():
        pytest.skip(f"{name} cannot be injected here: {reason}")
    process = subprocess.Popen([sys.executable, "-c", code, name], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "in\n"
    return process


def left_by(pid):
    groups = [path.name for path in control_groups.ROOT.glob(f"*/{control_groups.PREFIX}{pid}-*")]
    return groups + [path.name for path in Path("/run/netns").glob(f"maat{pid}*")]


@pytest.mark.parametrize("name", ["cpu_quota(0.5)", "link_rate(100)"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_fault(name, number):
    with victim(name) as process:
        assert left_by(process.pid) != []
        process.send_signal(number)
        process.wait(20)
        assert left_by(process.pid) == []


WRITER = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
import sys, threading
from systems.anubis.faults import fault_named
from systems.anubis.probes import disk
with disk.Scratch() as scratch, fault_named(sys.argv[1]).injected():
    threading.Timer(0.5, lambda: print("in", flush=True)).start()
    disk.sequential_write(scratch, blocks=4096, limit=60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_disk_fault_with_a_write_in_progress(number):
    """The threads that write sleep uninterruptibly, for seconds at this rate: they keep the group busy."""
    with victim("disk_throttle(1e6)", WRITER) as process:
        assert left_by(process.pid) != []
        process.send_signal(number)
        process.wait(40)
        assert left_by(process.pid) == []


def test_what_a_killed_process_leaves_is_removed_by_the_next():
    with victim("cpu_quota(0.5)") as process:
        process.kill()
        process.wait(20)
        left = left_by(process.pid)
        assert len(left) == 1
        assert set(left) <= set(faults.remove_leftovers())
        assert left_by(process.pid) == []


@pytest.mark.parametrize("text", ["", "cpu", "cpu_quota(", "cpu_quota(x)", "cpu_quota(0)", "cpu_quota(1,2,3)"])
def test_an_unknown_fault_is_refused_with_its_reason(text):
    with pytest.raises(faults.UnknownFault):
        faults.fault_named(text)


def test_names_carry_their_parameters():
    for make in faults.FAULTS.values():
        assert faults.fault_named(make().name) == make()


def test_a_fault_that_cannot_be_injected_says_why(monkeypatch):
    monkeypatch.setattr(control_groups, "version", lambda *_: None)
    throttle = faults.disk_throttle()
    assert throttle.available()
    with pytest.raises(faults.CannotInject, match="disk_throttle"), throttle.injected():
        pass


def test_a_test_under_a_fault_that_cannot_be_is_skipped(fault):
    if faults.gpu_contend().available() is None:
        pytest.skip("this machine has a GPU")
    with pytest.raises(pytest.skip.Exception, match="cannot be injected here"), fault("gpu_contend(1)"):
        pass
