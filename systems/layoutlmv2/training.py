"""One training loop for pre-training and fine-tuning: exact to resume, ready for torchrun.

All randomness of a step follows from (seed, step), so a run that was stopped and resumed is the unbroken run, bit for
bit. Under `torchrun` each process takes its share of every batch, gradients are averaged, and rank 0 writes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from systems.layoutlmv2.checkpoint import written_whole
from systems.layoutlmv2.config import CheckpointError

Loss = Callable[[nn.Module, int, int, int], Tensor]
"""(model, step, rank, world) -> the loss of this process's share of the step's batch."""
STATE_VERSION = 1
FROM_SCRATCH = 30.0
"""A `table_rate` for random starts: forms are read at F1 0.97 after 150 steps, and at 0.70 with a rate of 1."""
BLOCK = 16
"""Batches among which examples are sorted by length."""


@dataclass
class History:
    """losses: of each step of this call; scores: (step, value) of each evaluation; steps: done in all."""

    losses: list[float] = field(default_factory=list)
    scores: list[tuple[int, float]] = field(default_factory=list)
    steps: int = 0


def place() -> tuple[int, int]:
    """(rank, world) of this process; starts the process group under torchrun."""
    import os

    import torch.distributed as dist

    if not dist.is_available():
        return 0, 1
    if not dist.is_initialized():
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return 0, 1
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return dist.get_rank(), dist.get_world_size()


def rate(step: int, steps: int, lr: float, warmup: float) -> float:
    """The learning rate of a step: linear up over the first share `warmup`, then linear down to 0."""
    rise = max(1, round(steps * warmup))
    return lr * min((step + 1) / rise, (steps - step) / max(1, steps - rise), 1.0)


def train(
    model: nn.Module, loss_at: Loss, *, steps: int, lr: float, seed: int = 0, warmup: float = 0.1,
    weight_decay: float = 0.01, table_rate: float = 1.0, clip: float = 1.0, precision: str = "fp32",
    state: Path | str | None = None, save_every: int = 100, stop_at: int | None = None,
    evaluate: Callable[[], float] | None = None, evaluate_every: int = 100, patience: int | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> History:  # fmt: skip
    """Adam over `steps` steps; leaves the model in evaluation mode.

    state: a file to resume from when it is there, and to save to. stop_at: end early, as if interrupted. evaluate: a
    score of the model, higher is better; with `patience`, training ends when that many evaluations in a row are no
    better, and the best weights are kept. table_rate: how many times faster the tables of the relative bias learn;
    from a random start they otherwise lag, since Adam moves each entry by about `lr` a step (`FROM_SCRATCH` is a good
    rate there). precision: "fp32" or "bf16" (autocast). Raises CheckpointError on a state of another model or run.
    """
    rank, world = place()
    device = next(model.parameters()).device
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    tables = [p for name, p in learned.items() if "rel_pos" in name]
    wide = [p for name, p in learned.items() if p.dim() >= 2 and "rel_pos" not in name]
    narrow = [p for p in learned.values() if p.dim() < 2]
    groups = [
        {"params": wide, "weight_decay": weight_decay, "rate": 1.0},
        {"params": narrow, "weight_decay": 0.0, "rate": 1.0},
        {"params": tables, "weight_decay": 0.0, "rate": table_rate},
    ]
    optimiser = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), eps=1e-8)
    history, start, best, waited = History(), 0, -math.inf, 0
    best_weights: dict[str, Tensor] | None = None
    path = Path(state) if state is not None else None
    facts = {"version": STATE_VERSION, "steps": steps, "seed": seed, "lr": lr}
    if path is not None and path.exists():
        held = _read(path, facts)
        model.load_state_dict(held["model"])
        optimiser.load_state_dict(held["optimiser"])
        start, best, waited, best_weights = held["step"], held["best"], held["waited"], held["best_weights"]
        history.scores = [(int(a), float(b)) for a, b in held["scores"]]

    def keep(step: int) -> None:
        if path is None or rank != 0:
            return
        held = facts | {
            "step": step, "model": model.state_dict(), "optimiser": optimiser.state_dict(), "best": best,
            "waited": waited, "best_weights": best_weights, "scores": history.scores,
        }  # fmt: skip
        with written_whole(path) as file:
            torch.save(held, file)

    run: Any = model
    if world > 1:
        run = nn.parallel.DistributedDataParallel(
            model, device_ids=[device.index] if device.type == "cuda" else None, find_unused_parameters=True
        )
    end = min(steps, stop_at if stop_at is not None else steps)
    step = start
    while step < end and not (patience is not None and waited >= patience):
        model.train()
        torch.manual_seed(hash_of(seed, step, rank))
        for group in optimiser.param_groups:
            group["lr"] = rate(step, steps, lr, warmup) * group["rate"]
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = loss_at(run, step, rank, world)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(learned.values(), clip)
        optimiser.step()
        step += 1
        history.losses.append(loss.item())
        if progress is not None and rank == 0:
            progress(step, history.losses[-1])
        if evaluate is not None and (step % evaluate_every == 0 or step == steps):
            model.eval()
            value = evaluate()
            history.scores.append((step, value))
            waited = 0 if value > best else waited + 1
            if value > best:
                best = value
                if patience is not None:
                    best_weights = {name: t.detach().clone() for name, t in model.state_dict().items()}
        if step % save_every == 0 or step == end:
            keep(step)
    if best_weights is not None and (step == steps or (patience is not None and waited >= patience)):
        model.load_state_dict(best_weights)
    model.eval()
    history.steps = step
    return history


def hash_of(*numbers: int) -> int:
    """A seed for torch from some numbers."""
    return int(np.random.SeedSequence(list(numbers)).generate_state(1, np.uint64)[0] >> 1)


def picks(lengths: Sequence[int], size: int, step: int, seed: int) -> list[int]:
    """Which examples step `step` sees: `size` of like length, so that little is padding.

    lengths: of all examples. They are seen in epochs that are each a new order; of `BLOCK` batches in a row the
    examples are sorted by length, and the batches then taken in a random order.
    """
    count, block = len(lengths), BLOCK * size
    first = step // BLOCK * block
    members = [_order(count, (first + k) // count, seed)[(first + k) % count] for k in range(block)]
    members.sort(key=lambda k: lengths[k])
    turn = int(np.random.default_rng([seed, 78, step // BLOCK]).permutation(BLOCK)[step % BLOCK])
    return members[turn * size : (turn + 1) * size]


@lru_cache(maxsize=4)
def _order(count: int, epoch: int, seed: int) -> list[int]:
    order: list[int] = np.random.default_rng([seed, 77, epoch]).permutation(count).tolist()
    return order


def _read(path: Path, facts: dict[str, Any]) -> dict[str, Any]:
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged file raises is the unpickler's choice
        raise CheckpointError(f"{path}: no state of a training run: {str(error).splitlines()[0]}") from error
    if not isinstance(held, dict):
        raise CheckpointError(f"{path}: no state of a training run, but a {type(held).__name__}")
    for name, value in facts.items():
        if held.get(name) != value:
            raise CheckpointError(
                f"{path}: a run with {name} {held.get(name)!r}, expected {value!r}: go on with the same settings, or "
                "remove the file to begin anew"
            )
    return held
