"""A process that is a burden to others: what the contention faults (`faults.py`) start.

    python load.py spin | copy | gemm | hbm [--nice N] [--cpu N] [--device cuda]
    python load.py stop --pid PID --share 0.3

It prints `ready` once it weighs, and ends when its standard input closes: with the fault, or with the process that
injected it, however that ends. Run by its path and not as a module, so that a burner starts in milliseconds.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

COPIED_BYTES = 240 * 2**20
"""Read and written by one pass of `copy`: far more than a last-level cache holds."""

GEMM_SIZE = 8192
HBM_BYTES = 2**30

PERIOD = 0.01
"""Seconds of one cycle of `stop`, as of the quota that it stands in for."""


def spin() -> Callable[[], object]:
    """Arithmetic in registers."""

    def turn() -> None:
        for _ in range(10_000):
            pass

    return turn


def copy() -> Callable[[], object]:
    """Copies between two arrays that together hold `COPIED_BYTES`."""
    import numpy as np

    source = np.ones(COPIED_BYTES // 16)
    target = np.zeros_like(source)
    return lambda: np.copyto(target, source)


def gemm(device: str) -> Callable[[], object]:
    """Matrix products on a GPU, always some queued."""
    import torch

    matrix = torch.randn(GEMM_SIZE, GEMM_SIZE, device=device, dtype=torch.bfloat16)
    result = torch.empty_like(matrix)

    def turn() -> None:
        torch.mm(matrix, matrix, out=result)
        torch.cuda.synchronize()

    return turn


def hbm(device: str) -> Callable[[], object]:
    """Copies within a GPU's memory, always some queued."""
    import torch

    source = torch.ones(HBM_BYTES, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)

    def turn() -> None:
        for _ in range(8):
            target.copy_(source)
        torch.cuda.synchronize()

    return turn


def stop(pid: int, share: float) -> Callable[[], object]:
    """Let process `pid` run for a share of each period and hold it for the rest."""

    def turn() -> None:
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep((1 - share) * PERIOD)
        finally:
            os.kill(pid, signal.SIGCONT)
        time.sleep(share * PERIOD)

    return turn


def main(arguments: list[str]) -> int:
    """Weigh until standard input closes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["spin", "copy", "gemm", "hbm", "stop"])
    parser.add_argument("--nice", type=int, default=0, help="added to the niceness")
    parser.add_argument("--cpu", type=int, default=None, help="stay on this CPU")
    parser.add_argument("--device", default="cuda", help="the GPU of gemm and hbm")
    parser.add_argument("--pid", type=int, default=None, help="the process that `stop` holds")
    parser.add_argument("--share", type=float, default=0.5, help="of the time that `stop` lets it run")
    given = parser.parse_args(arguments)
    if given.nice:
        os.nice(given.nice)
    if given.cpu is not None:
        os.sched_setaffinity(0, {given.cpu})
    ended = threading.Event()

    def watch() -> None:
        sys.stdin.buffer.read()
        ended.set()

    if given.kind == "stop":
        if given.pid is None:
            parser.error("stop needs --pid")
        # Ended between a stop and its continue, it would leave the process held for ever.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: ended.set())
        turn = stop(given.pid, given.share)
    elif given.kind in {"gemm", "hbm"}:
        turn = gemm(given.device) if given.kind == "gemm" else hbm(given.device)
    else:
        turn = spin() if given.kind == "spin" else copy()
    turn()
    print("ready", flush=True)
    threading.Thread(target=watch, daemon=True).start()
    try:
        while not ended.is_set():
            turn()
    except ProcessLookupError:  # the process that `stop` held has ended
        return 0
    return 0


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))  # not past the watcher, which still waits in a read
