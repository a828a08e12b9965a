"""Collectives between the GPUs of one node (NCCL), or between processes (gloo), without a launcher.

Each rank is a process of its own, started here, and joined or ended before the call returns.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

Backend = Literal["nccl", "gloo"]

BUS_FACTORS: Mapping[str, Callable[[int], float]] = {
    # Bytes through each rank's link per byte of the buffer (nccl-tests, doc/PERFORMANCE.md).
    "all_reduce": lambda ranks: 2 * (ranks - 1) / ranks,
    "all_gather": lambda ranks: (ranks - 1) / ranks,
    "reduce_scatter": lambda ranks: (ranks - 1) / ranks,
    "all_to_all": lambda ranks: (ranks - 1) / ranks,
}


class CollectiveError(Exception):
    """A collective cannot run as asked, or did not end in time."""


def bus_bandwidth(
    collective: str,
    *,
    ranks: int,
    nbytes: int,
    backend: Backend = "nccl",
    rounds: int = 16,
    timeout: float = 120.0,
) -> np.ndarray:
    """Bus bandwidth in bytes per second as nccl-tests defines it, (rounds,); the slowest rank ends a round.

    nbytes: the full buffer: what a rank reduces or exchanges, what all_gather gives, what reduce_scatter takes
    backend: "nccl" puts rank r on GPU r, "gloo" all ranks on the CPU
    timeout: seconds for everything

    Raises CollectiveError for a wrong argument, a rank that fails (its traceback is in the message; a wrong
    result fails its rank), or a timeout, and leaves no process behind.
    """
    if collective not in BUS_FACTORS:
        raise CollectiveError(f"no collective {collective!r}; choose one of {', '.join(BUS_FACTORS)}")
    if ranks < 2:
        raise CollectiveError(f"{collective} between {ranks} ranks; at least 2 are needed")
    elements = nbytes // (4 * ranks) * ranks
    if elements < ranks:
        raise CollectiveError(f"{collective} of {nbytes} bytes leaves none for some of {ranks} ranks")
    with tempfile.TemporaryDirectory(prefix="maat-collective-") as folder:
        arguments = (collective, ranks, elements, backend, rounds, timeout, folder)
        _run_ranks(arguments, ranks, timeout)
        seconds = np.stack([np.load(Path(folder) / f"{rank}.npy") for rank in range(ranks)])
    return BUS_FACTORS[collective](ranks) * 4 * elements / seconds.max(axis=0)


def _run_ranks(arguments: tuple[object, ...], ranks: int, timeout: float) -> None:
    context = torch.multiprocessing.spawn(_rank, arguments, nprocs=ranks, join=False)
    deadline = time.monotonic() + timeout
    try:
        while not context.join(timeout=max(0.1, deadline - time.monotonic())):
            if time.monotonic() > deadline:
                raise CollectiveError(f"{arguments[0]} between {ranks} ranks did not end within {timeout} s")
    except (
        torch.multiprocessing.ProcessRaisedException,
        torch.multiprocessing.ProcessExitedException,
    ) as error:
        raise CollectiveError(f"{arguments[0]} between {ranks} ranks failed: {error}") from error
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
            process.join()


def _rank(
    rank: int,
    collective: str,
    ranks: int,
    elements: int,
    backend: Backend,
    rounds: int,
    timeout: float,
    folder: str,
) -> None:
    """The body of one process; its seconds per round go to <folder>/<rank>.npy."""
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        # Ranks share this machine: gloo must not go by whatever address the host's name has.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        backend,
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=timeout),
        device_id=device if device.type == "cuda" else None,
    )
    try:
        given, taken, run, expected = _exchange(collective, rank, ranks, elements, device)
        seconds = np.empty(rounds)
        for index in range(-2, rounds):  # two rounds of warm-up build the connections
            if collective == "all_reduce":
                taken.copy_(given)  # it works in place
            else:
                taken.zero_()
            elapsed = _seconds(run, device)
            if index >= 0:
                seconds[index] = elapsed
        if not torch.equal(taken, expected):
            wrong = int((taken != expected).sum())
            raise CollectiveError(f"rank {rank}: {wrong} of {taken.numel()} elements of {collective} are wrong")
        np.save(Path(folder) / f"{rank}.npy", seconds)
    finally:
        dist.destroy_process_group()


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    dist.barrier()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _exchange(
    collective: str, rank: int, ranks: int, elements: int, device: torch.device
) -> tuple[Tensor, Tensor, Callable[[], object], Tensor]:
    """What rank gives, the buffer it takes into, the call, and what must lie there then.

    Values are small integers, so that float32 sums are exact in any order.
    """
    share = elements // ranks
    # torch 2.13 renamed these two and warns of the old names, which are all that 2.11 has.
    gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
    scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)

    def pattern(of: int, count: int, start: int = 0) -> Tensor:
        return ((torch.arange(start, start + count, device=device) + 7 * of) % 251).float()

    if collective == "all_gather":
        given, taken = pattern(rank, share), torch.empty(elements, device=device)
        expected = torch.cat([pattern(other, share) for other in range(ranks)])
        return given, taken, lambda: gather(taken, given), expected
    given = pattern(rank, elements)
    if collective == "reduce_scatter":
        taken = torch.empty(share, device=device)
        expected = sum((pattern(other, share, rank * share) for other in range(ranks)), torch.zeros_like(taken))
        return given, taken, lambda: scatter(taken, given), expected
    taken = given.clone()
    if collective == "all_to_all":
        expected = torch.cat([pattern(other, share, rank * share) for other in range(ranks)])
        return given, taken, lambda: dist.all_to_all_single(taken, given), expected
    expected = sum((pattern(other, elements) for other in range(ranks)), torch.zeros_like(taken))
    return given, taken, lambda: dist.all_reduce(taken), expected
