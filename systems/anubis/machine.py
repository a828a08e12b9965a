"""What this machine is, and how quiet it was: the fingerprint and the noise probe.

Facts are *probed* in one place (`facts`), and everything else is a pure function of them, so a
fingerprint can be rebuilt from a run file years later.

- `kind`: what must match for two numbers to be comparable (CPU model, cores, memory, disk class, GPUs).
- `stack`: software that moves numbers without moving the hardware (kernel, driver, Python, torch, BLAS).
- `node`: which machine it was, hashed.

Source: the population of comparable nodes that Anubis (arXiv 2402.06194) learns its criteria from.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import platform
import re
import resource
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """The fingerprint of a machine. `facts` is the JSON-able mapping that the other three derive from."""

    kind: str
    node: str
    stack: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Machine:
        """Derive kind, node and stack from probed `facts`; independent of the order of the facts."""
        return cls(kind=kind_of(facts), node=node_of(facts), stack=stack_of(facts), facts=dict(facts))


def fingerprint(scratch: Path | None = None) -> Machine:
    """Probe this machine. `scratch`: the folder whose disk counts (default: the current one)."""
    return Machine.of(probe_facts(scratch))


def kind_of(facts: Mapping[str, Any]) -> str:
    """Slug of the hardware that must match, e.g. `x86_64-amd-epyc-2c-32g-virtual-nogpu`.

    Memory (bytes) is rounded to a power of two of GiB, since firmware and kernels reserve a little of it.
    """
    gpus = sorted(str(gpu["name"]) for gpu in facts.get("gpus", ()))
    gpu = "-".join(f"{gpus.count(name)}x{_slug(name, ('nvidia', 'amd'))}" for name in sorted(set(gpus))) or "nogpu"
    memory = power_of_two(int(facts["memory_bytes"]) / GIB)
    parts = [
        facts["architecture"],
        _cpu_slug(str(facts["cpu"])),
        f"{facts['cores']}c",
        f"{memory}g",
        facts.get("disk", "unknown"),
        gpu,
    ]
    return "-".join(_slug(str(part)) for part in parts if part)


def stack_of(facts: Mapping[str, Any]) -> str:
    """One line of the software versions that may move a number, in a fixed order: `kernel 6.1 · python 3.11.7`."""
    stack = facts.get("stack", {})
    return " · ".join(f"{name} {stack[name]}" for name in sorted(stack) if stack[name])


def node_of(facts: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that name the node; the machine id itself is hashed and never stored."""
    return str(facts["machine"])


def power_of_two(value: float) -> int:
    """The power of two nearest to `value` on a logarithmic scale, at least 1."""
    return int(2 ** max(0, round(math.log2(max(value, 1.0)))))


def _slug(text: str, drop: tuple[str, ...] = ()) -> str:
    words = [w for w in re.split(r"[^a-z0-9_]+", text.lower()) if w and w not in drop]
    return "-".join(words)


def _cpu_slug(name: str) -> str:
    """`Intel(R) Xeon(R) Platinum 8480C @ 2.0GHz` -> `intel-xeon-platinum-8480c`: trademarks and clocks left out."""
    name = re.sub(r"\((r|tm|c)\)", " ", name, flags=re.IGNORECASE)
    name = re.sub(r"@.*$", " ", name)
    name = re.sub(r"\b\d+-core\b|\bprocessor\b|\bcpu\b", " ", name, flags=re.IGNORECASE)
    return _slug(name) or "unknown"


# --- probing -------------------------------------------------------------------------------------------------


def probe_facts(scratch: Path | None = None) -> dict[str, Any]:
    """Every fact that a fingerprint is made of, as JSON-able values. Takes well under a second."""
    return {
        "architecture": platform.machine() or "unknown",
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory_bytes(),
        "numa_nodes": len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or 1,
        "disk": disk_class(scratch or Path.cwd()),
        "gpus": [asdict(gpu) for gpu in gpus()],
        "stack": _stack_facts(),
        "machine": hashlib.sha256(_machine_id().encode()).hexdigest()[:16],
        "hostname": platform.node(),
    }


def memory_bytes() -> int:
    """Memory that this process may use, in bytes: the machine's, or its control group's limit if lower."""
    total = psutil.virtual_memory().total
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = _read(Path(name))
        if text.isdigit():
            total = min(total, int(text))
    return total


def disk_class(path: Path) -> str:
    """`nvme`, `ssd`, `hdd`, `virtual`, `network` or `memory`: the class of the device under `path`."""
    device = os.stat(path).st_dev
    filesystem = ""
    for line in _read(Path("/proc/self/mountinfo")).splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == f"{os.major(device)}:{os.minor(device)}":
            filesystem = after.split()[0]
    if filesystem in {"tmpfs", "ramfs"}:
        return "memory"
    if filesystem.startswith(("nfs", "cifs", "smb", "lustre", "ceph", "9p", "virtiofs", "fuse")):
        return "network"
    block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    if (block / "partition").exists():
        block = block.parent
    if block.name.startswith("nvme"):
        return "nvme"
    if block.name.startswith(("vd", "xvd")):
        return "virtual"
    rotational = _read(block / "queue/rotational")
    return {"0": "ssd", "1": "hdd"}.get(rotational, "unknown")


@dataclass(frozen=True)
class Gpu:
    """One GPU as its driver reports it. `memory_bytes` in bytes; empty strings where the driver says nothing."""

    name: str
    memory_bytes: int
    uuid: str


@lru_cache(maxsize=1)
def gpus() -> tuple[Gpu, ...]:
    """The NVIDIA GPUs that the driver reports, in its order; empty without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    found = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        found.append(
            Gpu(
                name=_text(pynvml.nvmlDeviceGetName(handle)),
                memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
                uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
            )
        )
    return tuple(found)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _stack_facts() -> dict[str, str]:
    """Versions by package metadata: importing torch only to ask for its version would cost seconds."""
    facts = {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "microcode": _cpuinfo("microcode"),
        "cuda": _torch_cuda_version(),
        **{name: version(name) for name in ("numpy", "torch", "triton") if _installed(name)},
    }
    if gpus():
        import pynvml

        facts["driver"] = _text(pynvml.nvmlSystemGetDriverVersion())
    return {name: value for name, value in facts.items() if value}


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _torch_cuda_version() -> str:
    """The CUDA version that torch was built with, from its version file; empty for a CPU build."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    match = re.search(r"^cuda\b.*=\s*'([\d.]+)'", _read(Path(spec.origin).with_name("version.py")), re.MULTILINE)
    return match.group(1) if match else ""


def _cpu_model() -> str:
    return _cpuinfo("model name") or _cpuinfo("Model") or platform.processor() or platform.machine()


def _cpuinfo(key: str) -> str:
    match = re.search(rf"^{re.escape(key)}\s*:\s*(.+)$", _read(Path("/proc/cpuinfo")), flags=re.MULTILINE)
    return match.group(1).strip() if match else ""


def _machine_id() -> str:
    # Cloned images share /etc/machine-id; the firmware's own id, where it may be read, tells them apart.
    ids = [_read(Path(name)) for name in ("/etc/machine-id", "/sys/class/dmi/id/product_uuid")]
    return "".join(ids) or platform.node()


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


# --- noise ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Noise:
    """How quiet the machine was over an interval; None where the kernel does not tell.

    psi: share of the time in which some runnable task waited for a CPU, [0, 1]
    load: one-minute load average divided by the cores
    steal: share of CPU capacity taken by the hypervisor, [0, 1]
    foreign: share of CPU capacity used by processes that are not ours, [0, 1]
    throttled: share of the time this process group was held back by its own CPU quota, [0, 1]
    clock_mhz: mean clock of the cores; temp_c: hottest sensor, degrees Celsius
    """

    psi: float | None = None
    load: float | None = None
    steal: float | None = None
    foreign: float | None = None
    throttled: float | None = None
    clock_mhz: float | None = None
    temp_c: float | None = None


@dataclass(frozen=True)
class NoiseSample:
    """Counters at one moment; two of them make a `Noise` by `noise_between`. Times in seconds."""

    at: float
    cpu: tuple[float, ...]  # /proc/stat: user nice system idle iowait irq softirq steal
    own: float
    psi_us: int | None
    throttled_s: float | None
    gpu_processes: frozenset[tuple[int, int]]


def sample_noise() -> NoiseSample:
    """Read the counters now; about a tenth of a millisecond without a GPU."""
    line = _read(Path("/proc/stat")).partition("\n")[0].split()
    tick = os.sysconf("SC_CLK_TCK")
    return NoiseSample(
        at=time.monotonic(),
        cpu=tuple(int(value) / tick for value in line[1:9]),
        own=_own_cpu_seconds(),
        psi_us=_psi_total("cpu"),
        throttled_s=_throttled_seconds(),
        gpu_processes=_foreign_gpu_processes(),
    )


def noise_between(before: NoiseSample, after: NoiseSample) -> Noise:
    """What happened between two samples. Shares are of wall time (psi, throttled) or of all cores' time."""
    wall = max(after.at - before.at, 1e-9)
    delta = [b - a for a, b in zip(before.cpu, after.cpu, strict=True)]
    capacity = max(sum(delta), 1e-9)
    busy = sum(delta) - delta[3] - delta[4] - delta[7]
    own = after.own - before.own
    # The kernel counts in ticks of 10 ms: a difference of one tick a core is not a foreign process.
    grain = len(os.sched_getaffinity(0)) / os.sysconf("SC_CLK_TCK")
    foreign = max(busy - own - grain, 0.0) / max(capacity, grain)
    psi = None if before.psi_us is None or after.psi_us is None else (after.psi_us - before.psi_us) / 1e6 / wall
    throttled = (
        None
        if before.throttled_s is None or after.throttled_s is None
        else (after.throttled_s - before.throttled_s) / wall
    )
    return Noise(
        psi=None if psi is None else min(psi, 1.0),
        load=os.getloadavg()[0] / (os.cpu_count() or 1),
        steal=max(delta[7], 0.0) / capacity,
        foreign=min(foreign, 1.0),
        throttled=throttled,
        clock_mhz=_clock_mhz(),
        temp_c=_temperature(),
    )


def foreign_gpu_processes(before: NoiseSample, after: NoiseSample) -> list[str]:
    """Foreign processes seen on a GPU at either moment, as text for the evidence."""
    return [f"foreign process {pid} on GPU {gpu}" for gpu, pid in sorted(before.gpu_processes | after.gpu_processes)]


def psi_avg10() -> float:
    """Share of the last ten seconds in which some task waited for a CPU, [0, 1]; 0 where the kernel has no PSI."""
    match = re.search(r"some avg10=([\d.]+)", _read(Path("/proc/pressure/cpu")))
    return float(match.group(1)) / 100 if match else 0.0


def _psi_total(resource_name: str) -> int | None:
    match = re.search(r"some .*total=(\d+)", _read(Path(f"/proc/pressure/{resource_name}")))
    return int(match.group(1)) if match else None


def _own_cpu_seconds() -> float:
    """CPU seconds of this process, of the children it has waited for, and of the live ones below it."""
    used = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        used += usage.ru_utime + usage.ru_stime
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.Error:  # it ended between the listing and the reading
            continue
        used += times.user + times.system + times.children_user + times.children_system
    return used


def _throttled_seconds() -> float | None:
    """Seconds in which this process's control group was held back by its CPU quota (cgroup v2, then v1)."""
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            stat, key, scale = Path("/sys/fs/cgroup") / path.lstrip("/") / "cpu.stat", "throttled_usec", 1e6
            if not stat.exists():
                continue
        elif "cpu" in controllers.split(","):
            stat, key, scale = Path("/sys/fs/cgroup/cpu") / path.lstrip("/") / "cpu.stat", "throttled_time", 1e9
        else:
            continue
        match = re.search(rf"^{key} (\d+)$", _read(stat), flags=re.MULTILINE)
        if match:
            return int(match.group(1)) / scale
    return None


def _foreign_gpu_processes() -> frozenset[tuple[int, int]]:
    if not gpus():
        return frozenset()
    import pynvml

    ours = {os.getpid()} | {child.pid for child in psutil.Process().children(recursive=True)}
    found = set()
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        try:
            processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        except pynvml.NVMLError:  # not every driver tells
            continue
        # In a container the driver reports the host's pids, which say nothing here: only live local ones count.
        found |= {
            (index, process.pid) for process in processes if process.pid not in ours and psutil.pid_exists(process.pid)
        }
    return frozenset(found)


def _clock_mhz() -> float | None:
    values = [
        float(text) for text in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", _read(Path("/proc/cpuinfo")), re.MULTILINE)
    ]
    return sum(values) / len(values) if values else None


def _temperature() -> float | None:
    values = [
        int(text) / 1000
        for zone in Path("/sys/class/thermal").glob("thermal_zone*")
        if (text := _read(zone / "temp")).lstrip("-").isdigit()
    ]
    return max(values) if values else None


def to_json(machine: Machine) -> str:
    """The fingerprint as canonical JSON (sorted keys)."""
    return json.dumps(asdict(machine), sort_keys=True)


def from_json(text: str) -> Machine:
    """The inverse of `to_json`. Raises KeyError or json.JSONDecodeError on anything else."""
    data = json.loads(text)
    return Machine(kind=data["kind"], node=data["node"], stack=data["stack"], facts=data["facts"])
