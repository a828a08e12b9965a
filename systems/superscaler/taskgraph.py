"""Tasks and their order: validity, the shortest cycle, and one global order that no rank can get stuck in.

Every task has the devices that take part. One linear order of all tasks is fixed, each device runs its subsequence, and
a communication is one task of all its participants: the earliest unfinished task has every participant at its head, so
some task can always go on, even where sends block.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from systems.superscaler.errors import CyclicOrder

__all__ = ["TaskGraph"]


@dataclass
class TaskGraph:
    """Tasks by key; `edges[a][b]` is why a goes before b. A barrier is a task without devices."""

    devices: dict[Hashable, tuple[int, ...]] = field(default_factory=dict)
    seconds: dict[Hashable, float] = field(default_factory=dict)
    rank: dict[Hashable, tuple[int, ...]] = field(default_factory=dict)
    edges: dict[Hashable, dict[Hashable, str]] = field(default_factory=dict)

    loose: set[Hashable] = field(default_factory=set)

    def add(
        self, key: Hashable, devices: Sequence[int], seconds: float, rank: tuple[int, ...], *, loose: bool = False
    ) -> None:
        """A task. rank breaks ties between tasks that could start at the same time: the least goes first.

        loose: it takes its place as soon as it is ready and holds no device up, as a communication does.
        """
        if loose:
            self.loose.add(key)
        self.devices[key] = tuple(devices)
        self.seconds[key] = seconds
        self.rank[key] = rank
        self.edges.setdefault(key, {})

    def before(self, first: Hashable, second: Hashable, why: str) -> None:
        """`first` is done before `second` starts."""
        self.edges[first].setdefault(second, why)

    def order(self, name: Callable[[Hashable], str]) -> list[Hashable]:
        """A linear order by list scheduling: of the tasks that are ready, the one that can start first.

        Raises CyclicOrder with the shortest cycle.
        """
        waiting = dict.fromkeys(self.devices, 0)
        for targets in self.edges.values():
            for target in targets:
                waiting[target] += 1
        ready: dict[Hashable, float] = dict.fromkeys(self.devices, 0.0)
        free: dict[int, float] = {}
        number = {key: i for i, key in enumerate(self.devices)}
        heap = [(0.0, self.rank[key], number[key], key) for key, n in waiting.items() if n == 0]
        heapq.heapify(heap)
        found: list[Hashable] = []
        while heap:
            start, rank, index, key = heapq.heappop(heap)
            held = () if key in self.loose else self.devices[key]
            begin = max([ready[key], *(free.get(d, 0.0) for d in held)])
            if begin > start + 1e-12:  # a device was taken in the meantime: look again then
                heapq.heappush(heap, (begin, rank, index, key))
                continue
            end = begin + self.seconds[key]
            for device in held:
                free[device] = end
            found.append(key)
            for target in self.edges[key]:
                ready[target] = max(ready[target], end)
                waiting[target] -= 1
                if waiting[target] == 0:
                    heapq.heappush(heap, (ready[target], self.rank[target], number[target], target))
        if len(found) < len(self.devices):
            raise CyclicOrder(self.shortest_cycle([k for k, n in waiting.items() if n > 0], name))
        return found

    def shortest_cycle(self, among: Sequence[Hashable], name: Callable[[Hashable], str]) -> list[tuple[str, str]]:
        """The shortest cycle among tasks, as (task, kind of edge to the next); by breadth from each task."""
        inside = set(among)
        best: list[Hashable] = []
        for start in among:
            if best and len(best) <= 2:
                break
            previous: dict[Hashable, Hashable] = {}
            queue = deque([start])
            seen = {start}
            closing = None
            while queue and closing is None:
                node = queue.popleft()
                for target in self.edges[node]:
                    if target == start:
                        closing = node
                        break
                    if target in inside and target not in seen:
                        seen.add(target)
                        previous[target] = node
                        queue.append(target)
            if closing is None:
                continue
            cycle = [closing]
            while cycle[-1] != start:
                cycle.append(previous[cycle[-1]])
            cycle.reverse()
            if not best or len(cycle) < len(best):
                best = cycle
        shown = []
        for i, key in enumerate(best):
            why = self.edges[key][best[(i + 1) % len(best)]]
            shown.append((name(key), why))
        return shown

    def reversed_edges_of(self, key: Hashable) -> list[Hashable]:
        """Who must be done before a task."""
        return [k for k, targets in self.edges.items() if key in targets]
