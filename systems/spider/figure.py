"""The figure of the README: speed-up over dense against sparsity, drawn from what a recording run measured."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping
from html import escape
from pathlib import Path

from systems.spider.rules import PatternError

__all__ = ["draw", "speedups"]

GRID_TEST = re.compile(r"suites/spider/bench_spider\.py::test_grid\[(.+)\]$")
COLOURS = ("#1b6ca8", "#c4511d", "#2e8540", "#7a3e9d", "#8a6d00", "#555555")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 380, 56, 74, 44, 48

Curves = Mapping[str, Mapping[float, float]]
"""Micro-tile -> sparsity -> speed-up."""


def speedups(run: Path, peer: str = "dense") -> Curves:
    """Median seconds of `peer` over those of Spider, for each cell of the benchmark `test_grid` in a run file.

    Raises PatternError for a file of another form, or without such a cell; OSError where it cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(run, columns=["test", "rival", "unit", "values"]).to_pylist()
    except (pa.ArrowException, ValueError) as error:
        raise PatternError(f"{run} is no run file of a recording run ({error})") from error
    seconds: dict[tuple[str, float], dict[str, float]] = {}
    for row in rows:
        found = GRID_TEST.search(row["test"])
        if found is None or row["rival"] is None or row["unit"] != "s" or not row["values"]:
            continue
        parts = found[1].split("-")
        tile = next((part for part in parts if re.fullmatch(r"\d+x\d+", part)), None)
        sparsity = next((float(part) for part in parts if re.fullmatch(r"0?\.\d+", part)), None)
        if tile is not None and sparsity is not None:
            seconds.setdefault((tile, sparsity), {})[row["rival"]] = statistics.median(row["values"])
    curves: dict[str, dict[float, float]] = {}
    for (tile, sparsity), taken in sorted(seconds.items()):
        if "spider" in taken and peer in taken:
            curves.setdefault(tile, {})[sparsity] = taken[peer] / taken["spider"]
    if not curves:
        raise PatternError(
            f"{run} has no times of spider beside {peer} in the benchmark test_grid: record them with "
            "pytest suites/spider/bench_spider.py -k test_grid --record"
        )
    return curves


def draw(curves: Curves, caption: str) -> str:
    """An SVG: a curve a micro-tile, both axes logarithmic (the abscissa in what is kept), the ideal dashed."""
    places = sorted({sparsity for points in curves.values() for sparsity in points})
    fastest = max(value for points in curves.values() for value in points.values())
    slowest = min(value for points in curves.values() for value in points.values())
    top = 2 ** math.ceil(math.log2(max(fastest, 2.0)))
    bottom = 2 ** math.floor(math.log2(min(slowest, 1.0)))
    first, last = -math.log(1 - places[0]), -math.log(1 - places[-1])

    def x_at(sparsity: float) -> float:
        share = (-math.log(1 - sparsity) - first) / (last - first) if last > first else 0.5
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y_at(ratio: float) -> float:
        share = math.log(ratio / bottom) / math.log(top / bottom)
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)

    def text(x: float, y: float, words: str, anchor: str = "middle", colour: str = "#333333") -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(words)}</text>'

    parts = [text(LEFT, 20, caption, "start")]
    for power in range(round(math.log2(bottom)), round(math.log2(top)) + 1):
        y, even = y_at(2.0**power), power == 0
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
            f'stroke="{"#333333" if even else "#dddddd"}"/>'
        )
        parts.append(text(LEFT - 6, y + 4, f"{2.0**power:g}x", "end"))
    parts.extend(text(x_at(sparsity), HEIGHT - BOTTOM + 18, f"{sparsity:.0%}") for sparsity in places)
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "zeros (the axis is logarithmic in what is kept)"))
    ideal = [(x_at(s), y_at(min(1 / (1 - s), top))) for s in places if 1 / (1 - s) <= top]
    if len(ideal) > 1:
        parts.append(_line(ideal, "#999999", ' stroke-dasharray="4 4"'))
        parts.append(text(ideal[-1][0] - 6, ideal[-1][1] - 6, "1 / kept", "end", "#777777"))
    labels = sorted(((y_at(points[max(points)]), tile) for tile, points in curves.items()))
    lowest = -math.inf
    for wanted, tile in labels:
        lowest = max(wanted, lowest + 14)  # labels that would overlap move down
        colour = COLOURS[sorted(curves).index(tile) % len(COLOURS)]
        points = [(x_at(s), y_at(value)) for s, value in sorted(curves[tile].items())]
        parts.append(_line(points, colour))
        parts.extend(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points)
        parts.append(text(WIDTH - RIGHT + 8, lowest + 4, tile, "start", colour))
    body = "\n".join(parts)
    label = "Speed-up over the dense product against sparsity, by granularity of the zeros"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-label="{label}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def _line(points: list[tuple[float, float]], colour: str, style: str = "") -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{style}/>'
