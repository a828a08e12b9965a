"""How near to the speed of memory the aggregation runs: gathered bytes a second over the size of the vertex data."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from systems.ngra.choices import settings
from systems.ngra.graph import GraphError, rmat
from systems.ngra.program import Layer

ROUNDS = 7
LEAST_SECONDS = 0.02  # of one timing: shorter calls are repeated


class Sum(Layer):
    """The aggregation by itself: every vertex gathers the rows of its in-neighbours."""


@dataclass(frozen=True)
class Point:
    """One graph of R-MAT. Rates in bytes a second: `gathered` counts 4 bytes for each feature of each arc, `torch` the
    same by torch's CSR product, `read` a sum in order over as many bytes as the vertex data have."""

    vertices: int
    vertex_bytes: int
    gathered: float
    torch: float
    read: float


def measure(scales: Sequence[int], degree: int = 16, width: int = 64, seed: int = 1) -> list[Point]:
    """A point for each log2 of the vertices, on one thread, the contenders in turns, medians of `ROUNDS`.

    Raises GraphError for scales outside 4..24, or a degree or width below 1.
    """
    if not scales or min(scales) < 4 or max(scales) > 24 or degree < 1 or width < 1:
        raise GraphError(f"scales {list(scales)}, degree {degree}, width {width}: wanted 4 to 24, and at least 1 and 1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with settings(threads=1, hoist=False), torch.no_grad():
            return [_point(scale, degree, width, seed) for scale in scales]
    finally:
        torch.set_num_threads(threads)


def _point(scale: int, degree: int, width: int, seed: int) -> Point:
    graph = rmat(scale, degree << scale, seed)
    x = torch.randn(graph.num_vertices, width, generator=torch.Generator().manual_seed(seed))
    chunked, layer = graph.chunked(), Sum()
    inside = chunked.enter(x)
    rows = graph.incoming
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch calls its CSR a beta
        matrix = torch.sparse_csr_tensor(
            rows.offsets, rows.ids[: graph.num_arcs], torch.ones(graph.num_arcs), (graph.num_vertices,) * 2
        )
    calls: dict[str, Callable[[], Any]] = {
        "ours": lambda: layer.inner(chunked, inside),
        "torch": lambda: matrix @ x,
        "read": lambda: x.sum(),
    }
    seconds = _in_turns(calls)
    gathered = 4 * width * graph.num_arcs
    return Point(
        graph.num_vertices, 4 * x.numel(), gathered / seconds["ours"], gathered / seconds["torch"],
        4 * x.numel() / seconds["read"],
    )  # fmt: skip


def _in_turns(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median seconds of a call of each, in rounds of all."""
    repeats = {}
    for name, call in calls.items():
        call()
        begun = time.perf_counter()
        call()
        repeats[name] = max(1, round(LEAST_SECONDS / max(1e-9, time.perf_counter() - begun)))
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            begun = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            taken[name].append((time.perf_counter() - begun) / repeats[name])
    return {name: median(values) for name, values in taken.items()}


def draw(points: Sequence[Point], path: str | Path) -> None:
    """A picture of the points, as the suffix of `path` says (png, svg, pdf); written aside, then renamed.

    Raises GraphError where nothing was measured, or matplotlib cannot write that kind of file.
    """
    from matplotlib.figure import Figure

    if not points:
        raise GraphError("nothing was measured: give at least one point")
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    size = [point.vertex_bytes / 2**20 for point in points]
    series = {
        "NGra, sum over in-arcs": ([point.gathered for point in points], "o-", "#1b6ca8"),
        "torch CSR, the same sum": ([point.torch for point in points], "s-", "#c0504d"),
        "roofline: the vertex data read in order": ([point.read for point in points], "--", "#555555"),
    }
    for name, (rates, style, colour) in series.items():
        axes.plot(size, [rate / 1e9 for rate in rates], style, color=colour, label=name, markersize=4.5)
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("vertex data, MiB")
    axes.set_ylabel("gathered, GB/s on one thread")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    path = Path(path)
    beside = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        figure.savefig(beside, dpi=144)
        beside.replace(path)
    except (ValueError, OSError) as error:
        raise GraphError(f"cannot draw into {path}: {error}") from error
    finally:
        beside.unlink(missing_ok=True)
