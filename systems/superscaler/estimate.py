"""How long a step of stages takes: a simulation in which the devices of a stage, alike in all they do, are one.

A task is a stage's forward or backward of a micro-batch, so a step of a thousand operators and hundreds of
micro-batches is a few thousand tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

__all__ = ["interlaced_seconds", "pipeline_seconds"]

Way = Literal["F", "B"]


def pipeline_seconds(
    forward: Sequence[float], backward: Sequence[float], hops: Sequence[float], microbatches: int,
    lines: Sequence[Sequence[tuple[int, int, Way]]],
) -> list[float]:  # fmt: skip
    """When each stage is done. forward, backward: seconds of a micro-batch; hops[i]: from stage i to i + 1.

    lines: each stage's tasks in order, (stage, micro-batch, "F" or "B"). Sending holds nobody up.
    """
    count = len(forward)
    done: dict[tuple[int, int, Way], float] = {}
    needed: list[tuple[tuple[int, int, Way], float]]
    at, clock = [0] * count, [0.0] * count
    left = sum(map(len, lines))
    while left:
        moved = False
        for s in range(count):
            while at[s] < len(lines[s]):
                stage, mb, way = lines[s][at[s]]
                if way == "F":
                    needed = [((stage - 1, mb, way), hops[stage - 1])] if stage else []
                else:
                    needed = [((stage, mb, "F"), 0.0)]
                    if stage + 1 < count:
                        needed.append(((stage + 1, mb, "B"), hops[stage]))
                if any(key not in done for key, _ in needed):
                    break
                start = max([clock[s], *(done[key] + hop for key, hop in needed)])
                clock[s] = start + (forward[stage] if way == "F" else backward[stage])
                done[stage, mb, way] = clock[s]
                at[s] += 1
                left -= 1
                moved = True
        if not moved:
            raise ValueError("the stages' orders go round in a circle")
    return clock


def interlaced_seconds(
    forward: Sequence[float], backward: Sequence[float], hops: Sequence[float], microbatches: int,
    shared: tuple[float, float, float, float], lines: Sequence[Sequence[tuple[int, int, Way]]],
) -> list[float]:  # fmt: skip
    """The same with layers that all stages run together: -1 enters the stages, -2 leaves them.

    shared: seconds of entering forward, leaving forward, leaving backward, entering backward, for a micro-batch. lines
    have them in one order for all stages, so each is run when the last stage has come to it.
    """
    count = len(forward)
    seconds = {(-1, "F"): shared[0], (-2, "F"): shared[1], (-2, "B"): shared[2], (-1, "B"): shared[3]}
    row = [-1, *range(count), -2]
    place = {stage: i for i, stage in enumerate(row)}
    done: dict[tuple[int, int, Way], float] = {}
    at, clock = [0] * count, [0.0] * count
    left = sum(map(len, lines))
    while left:
        moved = False
        for s in range(count):
            while at[s] < len(lines[s]):
                key = lines[s][at[s]]
                stage, mb, way = key
                i = place[stage]
                before: tuple[int, int, Way] | None = None
                if way == "F" and i:
                    before = (row[i - 1], mb, "F")
                elif way == "B":
                    before = (row[i + 1], mb, "B") if i + 1 < len(row) else (stage, mb, "F")
                if before is not None and before not in done:
                    break
                members = range(count) if stage < 0 else [s]
                if any(at[k] >= len(lines[k]) or lines[k][at[k]] != key for k in members):
                    break
                hop = hops[min(i, place[before[0]]) - 1] if before and stage >= 0 and 0 <= before[0] != stage else 0.0
                start = max([*(clock[k] for k in members), done[before] + hop if before else 0.0])
                end = start + (
                    seconds[stage, way] if stage < 0 else forward[stage] if way == "F" else backward[stage]
                )
                done[key] = end
                for k in members:
                    clock[k] = end
                    at[k] += 1
                    left -= 1
                moved = True
        if not moved:
            raise ValueError("the stages' orders go round in a circle")
    return clock
