"""Timelines of simulated steps: text for terminals, HTML to look at, JSON for Perfetto."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from systems.superscaler.simulate import Trace

__all__ = ["chrome", "draw", "text", "write_text"]

SHOWN = {"forward": 0, "recompute": 1, "backward": 1}


def text(trace: Trace, width: int = 80) -> str:
    """A row per device: digit for forward, letter for backward (a is micro-batch 0), * for communication, . idle."""
    rows = [["."] * width for _ in range(trace.devices)]
    scale = width / trace.step_seconds if trace.step_seconds else 0.0
    for e in sorted(trace.events, key=lambda e: e.kind in SHOWN):
        if e.end <= e.start:
            continue
        first = min(int(e.start * scale), width - 1)
        last = min(max(int(e.end * scale), first + 1), width)
        mark = "*"
        if e.kind in SHOWN:
            m = max(e.microbatch, 0) % 10
            mark = str(m) if e.kind == "forward" else chr(ord("a") + m)
        elif e.kind == "recv":
            continue
        for i in range(first, last):
            rows[e.device][i] = mark
    return "\n".join(f"{d:3} {''.join(row)}" for d, row in enumerate(rows))


def draw(trace: Trace, path: str) -> None:
    """Write an HTML timeline: a row per device, a colour per micro-batch, backward hatched."""
    import plotly.graph_objects as go

    figure = go.Figure()
    kinds = sorted({(e.kind, e.microbatch) for e in trace.events})
    for kind, mb in kinds:
        own = [e for e in trace.events if (e.kind, e.microbatch) == (kind, mb) and e.end > e.start]
        figure.add_bar(
            y=[f"device {e.device}" for e in own], x=[1e3 * (e.end - e.start) for e in own],
            base=[1e3 * e.start for e in own], orientation="h", name=f"{kind} {mb}" if mb >= 0 else kind,
            hovertext=[e.name for e in own], marker={"pattern": {"shape": "/" if kind == "backward" else ""}},
        )  # fmt: skip
    figure.update_layout(barmode="overlay", xaxis_title="ms", title=f"{1e3 * trace.step_seconds:.2f} ms a step")
    write_text(Path(path), figure.to_html(include_plotlyjs=True))


def chrome(trace: Trace, path: str) -> None:
    """Write the events in the trace event format (microseconds)."""
    events = [
        {"name": e.name, "cat": e.kind, "ph": "X", "pid": e.device, "tid": 0 if e.kind in SHOWN else 1,
         "ts": 1e6 * e.start, "dur": 1e6 * (e.end - e.start), "args": {"microbatch": e.microbatch}}
        for e in trace.events
    ]  # fmt: skip
    write_text(Path(path), json.dumps({"traceEvents": events}))


def write_text(path: Path, content: str) -> None:
    """Write a file whole or not at all."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
