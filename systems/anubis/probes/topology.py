"""Where a probe runs: the CPUs this process may use, their caches and NUMA nodes, and the memory to be had.

All facts come from /sys and /proc of Linux; where those are silent (some containers and virtual machines) a
stated default stands in.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

CPUS = Path("/sys/devices/system/cpu")
NODES = Path("/sys/devices/system/node")


@dataclass(frozen=True)
class Cache:
    """One data cache: its level (1, 2, ...), its size in bytes and the CPUs that share it."""

    level: int
    size: int
    cpus: tuple[int, ...]


def allowed_cpus() -> tuple[int, ...]:
    """The CPUs that this process may run on, in order."""
    return tuple(sorted(os.sched_getaffinity(0)))


def cores() -> tuple[int, ...]:
    """One allowed CPU of each physical core, in order: hyper-threads share the units that a probe fills."""
    first: dict[tuple[int, ...], int] = {}
    for cpu in allowed_cpus():
        siblings = _read(CPUS / f"cpu{cpu}/topology/thread_siblings_list")
        first.setdefault(parse_cpu_list(siblings) or (cpu,), cpu)
    return tuple(sorted(first.values()))


def caches(cpu: int) -> tuple[Cache, ...]:
    """The data and unified caches of a CPU, smallest level first.

    Where the machine does not say: 32 KiB, 1 MiB, and 32 MiB shared by all, sizes of a server of the 2020s.
    """
    found = []
    for folder in sorted((CPUS / f"cpu{cpu}/cache").glob("index*")):
        size = parse_size(_read(folder / "size"))
        if _read(folder / "type") in {"Data", "Unified"} and size:
            sharers = parse_cpu_list(_read(folder / "shared_cpu_list")) or (cpu,)
            found.append(Cache(int(_read(folder / "level")), size, sharers))
    if found:
        return tuple(sorted(found, key=lambda cache: cache.level))
    return (Cache(1, 32 << 10, (cpu,)), Cache(2, 1 << 20, (cpu,)), Cache(3, 32 << 20, allowed_cpus()))


def last_level_bytes(cpus: Sequence[int]) -> int:
    """Bytes of last-level cache that these CPUs reach together: each shared cache counts once."""
    last = {caches(cpu)[-1].cpus: caches(cpu)[-1].size for cpu in cpus}
    return sum(last.values())


def nodes() -> dict[int, tuple[int, ...]]:
    """NUMA node -> one allowed CPU per core in it; nodes without one (memory only, or not allowed) are left
    out."""
    ours = set(cores())
    found = {}
    for folder in NODES.glob("node[0-9]*"):
        here = tuple(cpu for cpu in parse_cpu_list(_read(folder / "cpulist")) if cpu in ours)
        if here:
            found[int(folder.name[4:])] = here
    return dict(sorted(found.items())) or {0: tuple(sorted(ours))}


def placement(cpus: Sequence[int]) -> tuple[int, ...]:
    """The CPU that each thread of a team is bound to: these, or -1 for none where binding gains nothing.

    With one thread for every CPU that this process has, on one NUMA node, the system spreads the threads by
    itself, and a thread that may evade a busy CPU is steadier (measured: 15 % faster under foreign load).
    Otherwise binding keeps threads on cores of their own and close to the memory they touched first.
    """
    free = len(nodes()) == 1 and sorted(cpus) == list(allowed_cpus())
    return tuple(-1 for _ in cpus) if free else tuple(cpus)


def available_bytes() -> int:
    """Memory that may be taken without pushing anything out: of the machine, or of its control group if
    less."""
    free = int(psutil.virtual_memory().available)
    for limit, usage in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        bound, used = _read(Path(limit)), _read(Path(usage))
        if bound.isdigit() and used.isdigit():
            free = min(free, max(int(bound) - int(used), 0))
    return free


@contextmanager
def pinned(cpus: Sequence[int]) -> Iterator[None]:
    """Keep the calling thread on these CPUs, and restore what it was allowed before."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """The kernel's list format: "0-3,8" -> (0, 1, 2, 3, 8)."""
    found: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    return tuple(found)


def parse_size(text: str) -> int:
    """The kernel's sizes: "32K" -> 32768; 0 for an empty one."""
    text = text.strip()
    unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
    digits = text.rstrip("KMG")
    return int(digits) * unit if digits.isdigit() else 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
