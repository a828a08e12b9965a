"""Measured times of this machine: collectives and sends over gloo, kernels. Kept in the user's data folder.

    cluster = Cluster.calibrate(ranks=4)

What is timed is what the runtime calls, so a switch of algorithm with size is in the tables. A plan can then be run
with its kernels slept instead of computed (`EmulatedRunner`), which shows what the simulator gets wrong of
communication and order, on any number of cores.
"""

from __future__ import annotations

import functools
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from systems.superscaler.cluster import Cluster, Table
from systems.superscaler.errors import InvalidPlan
from systems.superscaler.executor import Rank
from systems.superscaler.program import Work
from systems.superscaler.runtime import Runner, collective, launch

__all__ = ["EmulatedRunner", "calibrate", "data_folder"]

SIZES = tuple(4**k * 1024 for k in range(7))
"""Bytes of a rank's input, 1 KiB to 4 MiB."""
KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")


def data_folder() -> Path:
    """Where calibrations are kept: `$XDG_DATA_HOME/maat/superscaler` or `~/.local/share/maat/superscaler`."""
    root = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(root) / "maat" / "superscaler"


def calibrate(
    ranks: int = 2, *, path: str | Path | None = None, repeats: int = 25, memory: float = 4 * 2**30
) -> Cluster:
    """Measure this machine with so many local ranks, and save what was found; takes some seconds.

    path: the file, `cluster-<ranks>.json` in the data folder by default. memory: bytes that a rank may use.
    """
    if ranks < 2:
        raise InvalidPlan(f"{ranks} ranks have nothing to send each other: calibrate 2 or more")
    found = launch(functools.partial(_measure, repeats), ranks, timeout=600)
    tables: dict[tuple[str, int], Table] = {}
    for key in found[0]["tables"]:
        slowest = [max(own["tables"][key][i] for own in found) for i in range(len(SIZES))]
        tables[key] = Table(tuple(map(float, SIZES)), tuple(slowest))
    sends = [max(own["sends"][i] for own in found) for i in range(len(SIZES))]
    bandwidth = (SIZES[-1] - SIZES[-3]) / max(sends[-1] - sends[-3], 1e-9)
    flops = min(own["flops"] for own in found)
    copied = min(own["copied"] for own in found)
    cluster = Cluster(
        1, ranks, memory, flops, copied, bandwidth, bandwidth, inside_latency=sends[0], between_latency=sends[0],
        launch=min(own["launch"] for own in found), name=f"local-{ranks}", tables=tables,
    )  # fmt: skip
    target = data_folder() / f"cluster-{ranks}.json" if path is None else Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    cluster.save(target)
    return cluster


def _measure(repeats: int) -> dict[str, Any]:
    """In a rank: medians of everything."""
    index, world = dist.get_rank(), dist.get_world_size()
    tables: dict[tuple[str, int], list[float]] = {}
    for count in range(2, world + 1):
        group = tuple(range(count))
        handle = dist.new_group(list(group))
        for kind in KINDS:
            own = []
            for size in SIZES:
                act = functools.partial(
                    collective, kind, group, _given(kind, size, count), handle, index, torch.device("cpu")
                )
                own.append(_median(act, repeats, handle) if index < count else 0.0)
            tables[kind, count] = own
        dist.barrier()
    sends = []
    for size in SIZES:
        tensor = torch.zeros(size // 4)

        def ping(t: torch.Tensor = tensor) -> None:
            if index == 0:
                dist.send(t, 1)
                dist.recv(t, 1)
            elif index == 1:
                dist.recv(t, 0)
                dist.send(t, 0)

        sends.append(_median(ping, repeats, None) / 2)
    torch.manual_seed(0)
    a = torch.randn(384, 384)
    flops = 2 * 384**3 / _median(lambda: a @ a, repeats, None)
    big = torch.zeros(4 << 20)
    copied = 2 * big.nbytes / _median(big.clone, repeats, None)
    small = torch.zeros(8)
    return {"tables": tables, "sends": sends, "flops": flops, "copied": copied,
            "launch": _median(lambda: small + small, repeats, None)}  # fmt: skip


def _given(kind: str, size: int, count: int) -> list[torch.Tensor]:
    if kind in ("all_reduce", "all_gather"):
        return [torch.zeros(size // 4)]
    return [torch.zeros(size // 4 // count) for _ in range(count)]


def _median(act: Callable[[], Any], repeats: int, handle: Any) -> float:
    found = []
    for _ in range(repeats + 2):
        dist.barrier(group=handle)
        start = time.perf_counter()
        act()
        found.append(time.perf_counter() - start)
    return statistics.median(found[2:])


# ------------------------------------------------------------------------------------------------------ emulation


class EmulatedRank(Rank):
    """A rank that sleeps for as long as its kernels would take, and writes zeros."""

    seconds: Mapping[int, float]
    update_seconds: float = 0.0

    def forward(self, work: Work, gathered: Mapping[int, int]) -> None:
        end = time.perf_counter() + self.seconds[work.id]
        for o in work.outputs:
            self.held[o.buffer] = self.blank(o.buffer)
        _sleep_until(end)

    def compute(self, work: Work, gathered: Mapping[int, int]) -> tuple[dict[int, torch.Tensor], list[torch.Tensor]]:
        _sleep_until(time.perf_counter() + self.seconds[work.id])
        return {}, []

    def backward(self, work: Work, gathered: Mapping[int, int]) -> None:
        end = time.perf_counter() + 2 * self.seconds[work.id]
        for leaf in work.leaves:
            if leaf.grad is not None and leaf.grad not in self.held:
                self.held[leaf.grad] = self.blank(leaf.grad)
        _sleep_until(end)

    def update(self, pairs: Any) -> None:
        _sleep_until(time.perf_counter() + self.update_seconds)

    def blank(self, buffer: int) -> torch.Tensor:
        """Zeros in the shape of a buffer."""
        b = self.plan.buffers[buffer]
        return torch.zeros(b.shape, dtype=getattr(torch, self.graph.tensors[b.tensor].dtype))


class EmulatedRunner(Runner):
    """A rank of a plan whose kernels take the time that `cluster` gives them, while communication is real."""

    rank_type = EmulatedRank

    def emulate(self, cluster: Cluster) -> None:
        """Take the times of a cluster's kernels. Before the first step."""
        from systems.superscaler.simulate import update_seconds, work_seconds

        assert isinstance(self.rank, EmulatedRank)
        self.rank.seconds = work_seconds(self.plan, cluster)
        self.rank.update_seconds = update_seconds(self.plan, cluster, self.index)


def _sleep_until(end: float) -> None:
    left = end - time.perf_counter()
    if left > 2e-4:
        time.sleep(left - 1e-4)
    while time.perf_counter() < end:
        pass
