"""One rank of a timed collective, started by the path of this file in a process of its own by
`network.collectives`.

`python -P collective.py FOLDER RANK RANKS BYTES ITERATIONS`: joins the group through a file in FOLDER, runs
each collective with gloo on 127.0.0.1, compares every element of every result with what it must be, and
writes the seconds of each iteration to FOLDER/RANK.json. Exit status 3: a wrong result. It ends when its
standard input closes.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

WARMUP = 3
WRONG_RESULT = 3


def _values(rank: int, count: int) -> torch.Tensor:
    """(count,) float32 whole numbers, different in each rank; sums over 1,000 ranks stay exact below 2^24."""
    return (torch.arange(count) % 8191 + 3 * rank).to(torch.float32)


@dataclass(frozen=True)
class Plan:
    """A collective: refill its buffers, run it, and compare `result` with what is `expected` in this rank."""

    prepare: Callable[[], object]
    run: Callable[[], object]
    result: torch.Tensor
    expected: torch.Tensor


def _plans(rank: int, ranks: int, count: int) -> dict[str, Plan]:
    """Plans over `count` float32 values, a multiple of `ranks`. As nccl-tests counts, the size of an
    all-gather is that of its output.
    """
    part = count // ranks
    everyone = [_values(other, count) for other in range(ranks)]
    mine = everyone[rank]
    reduced, gathered, exchanged = torch.empty(count), torch.empty(count), torch.empty(count)
    return {
        "all_reduce": Plan(
            prepare=lambda: reduced.copy_(mine),  # it works in place
            run=lambda: dist.all_reduce(reduced),
            result=reduced,
            expected=torch.stack(everyone).sum(0),
        ),
        "all_gather": Plan(
            prepare=lambda: gathered.fill_(-1),
            run=lambda: dist.all_gather_into_tensor(gathered, mine[:part]),
            result=gathered,
            expected=torch.cat([values[:part] for values in everyone]),
        ),
        "all_to_all": Plan(
            prepare=lambda: exchanged.fill_(-1),
            run=lambda: dist.all_to_all_single(exchanged, mine),
            result=exchanged,
            expected=torch.cat([values[rank * part : (rank + 1) * part] for values in everyone]),
        ),
    }


def _time(plan: Plan, iterations: int) -> list[float] | None:
    """Seconds of each iteration after the warm-up; None when a result was wrong."""
    seconds: list[float] = []
    for index in range(WARMUP + iterations):
        plan.prepare()
        dist.barrier()
        began = time.perf_counter()
        plan.run()
        ended = time.perf_counter()
        if not torch.equal(plan.result, plan.expected):
            return None
        if index >= WARMUP:
            seconds.append(ended - began)
    return seconds


def _leave_with_parent() -> None:
    """A collective waits for ever for a rank that is gone: a parent that dies, however it dies, ends this
    process.
    """
    sys.stdin.read()
    os._exit(1)


def main(arguments: list[str]) -> int:
    folder, rank, ranks = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    size, iterations = int(arguments[3]), int(arguments[4])
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=30))
    results: dict[str, list[float]] = {}
    for name, plan in _plans(rank, ranks, size // 4).items():
        seconds = _time(plan, iterations)
        if seconds is None:
            print(f"rank {rank}: {name} gave a wrong result", file=sys.stderr)
            return WRONG_RESULT
        results[name] = seconds
    (folder / f"{rank}.json").write_text(json.dumps(results))
    dist.barrier()  # nobody leaves while another still needs its connections
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
