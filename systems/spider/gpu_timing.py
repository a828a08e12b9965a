"""Contenders on one device in turns: outputs compared, L2 flushed, CUDA events, graphs where they can be captured."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Bench", "Contenders", "Row", "difference"]

Contenders = Mapping[str, Callable[[], Any]]


@dataclass(frozen=True)
class Row:
    """One contender in one case. seconds: median of `rounds`; work: FLOP or bytes of a call; error: largest difference
    from the reference, relative to its largest value; graph: whether a CUDA graph was replayed."""

    phase: str
    case: str
    contender: str
    seconds: float
    fastest: float
    rounds: int
    work: float
    unit: str
    error: float
    graph: bool = False
    note: str = ""

    @property
    def rate(self) -> float:
        """work per second; NaN where the contender did not run."""
        return self.work / self.seconds if self.seconds > 0 else math.nan


class Bench:
    """Times contenders on one device and keeps the rows."""

    def __init__(self, device: str, rounds: int, deadline: float, say: Callable[[str], None]) -> None:
        self.device, self.rounds, self.deadline, self.say = device, rounds, deadline, say
        self.rows: list[Row] = []
        self.generator = torch.Generator(device).manual_seed(0)
        cache = torch.cuda.get_device_properties(0).L2_cache_size if device == "cuda" else 0
        self._flush = torch.empty(4 * cache, dtype=torch.int8, device=device)

    def randn(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Normal values on the device, from the run's own generator."""
        return torch.randn(*shape, generator=self.generator, device=self.device).to(dtype)

    def late(self) -> bool:
        """Whether the budget is spent."""
        return time.monotonic() > self.deadline

    def versus(
        self,
        phase: str,
        case: str,
        contenders: Contenders,
        work: float,
        unit: str = "FLOP/s",
        *,
        reference: Tensor | None = None,
        tolerance: float = 2e-2,
        graphs: bool = True,
    ) -> dict[str, Row]:
        """A row for each contender; the first is ours. One that fails or disagrees is noted, and not timed.

        Raises AssertionError where ours disagrees with the reference (the last contender's output when none is given).
        """
        if self.late():
            self.say(f"{phase} {case}: left out, the budget is spent")
            return {}
        outputs: dict[str, Tensor] = {}
        notes: dict[str, str] = {}
        for name, fn in contenders.items():
            try:
                outputs[name] = joined(fn())
            except (RuntimeError, NotImplementedError, TypeError, ValueError) as refusal:
                notes[name] = f"does not run: {str(refusal).splitlines()[0][:200]}"
        ours = next(iter(contenders))
        if ours in notes:
            raise AssertionError(f"{phase} {case}: {ours} {notes[ours]}")
        truth = reference if reference is not None else outputs[list(outputs)[-1]]
        errors = {name: difference(truth, y) for name, y in outputs.items()}
        for name, error in errors.items():
            if not error <= tolerance:
                notes[name] = f"differs from the reference by {error:.2g}"
                if name == ours:
                    raise AssertionError(f"{phase} {case}: {name} {notes[name]}, allowed {tolerance:.2g}")
        outputs.clear()
        running = {name: fn for name, fn in contenders.items() if name not in notes}
        replayed = {name: self._graph(fn) if graphs else None for name, fn in running.items()}
        calls = {name: replayed[name] or fn for name, fn in running.items()}
        taken = self._rounds(calls)
        found = {}
        for name in contenders:
            seconds = taken.get(name, [math.nan])
            found[name] = Row(
                phase, case, name, statistics.median(seconds), min(seconds), len(seconds), work, unit,
                errors.get(name, math.nan), replayed.get(name) is not None, notes.get(name, ""),
            )  # fmt: skip
        self.rows.extend(found.values())
        self.say(f"{phase} {case}: " + ", ".join(f"{n} {r.seconds * 1e3:.3f} ms" for n, r in found.items()))
        return found

    def _graph(self, fn: Callable[[], Any]) -> Callable[[], None] | None:
        """A replay of fn as a CUDA graph, or None where it cannot be captured (it asks the device for a number)."""
        if self.device != "cuda":
            return None
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                fn()
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                fn()
            graph.replay()
            torch.cuda.synchronize()
        except RuntimeError:
            torch.cuda.synchronize()
            return None
        return graph.replay

    def _rounds(self, calls: Contenders) -> dict[str, list[float]]:
        taken: dict[str, list[float]] = {name: [] for name in calls}
        for round_ in range(self.rounds + 2):
            for name in list(calls) if round_ % 2 else list(calls)[::-1]:
                seconds = self._seconds(calls[name])
                if round_ >= 2:  # the first two warm up
                    taken[name].append(seconds)
            if self.late() and round_ >= 4:
                break
        return taken

    def _seconds(self, fn: Callable[[], Any]) -> float:
        if self.device != "cuda":
            began = time.perf_counter()
            fn()
            return time.perf_counter() - began
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        start.record()
        fn()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3


def difference(truth: Tensor, y: Tensor) -> float:
    """Largest absolute difference over the largest value of the truth; infinite where shapes differ or y has NaN."""
    if truth.shape != y.shape:
        return math.inf
    if not truth.numel():
        return 0.0
    apart = (truth.double() - y.double()).abs().max() / truth.double().abs().max().clamp(min=1e-30)
    return float(apart) if not bool(apart.isnan()) else math.inf


def joined(y: Any) -> Tensor:
    """One tensor of what a contender returned: a tensor, or several (gradients) one after the other."""
    return torch.cat([part.detach().reshape(-1) for part in y]) if isinstance(y, (tuple, list)) else y.detach()
