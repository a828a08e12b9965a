"""One choice for each of many variables, at the least sum of unary and pairwise costs: exactly, by elimination.

A variable is eliminated by joining the tables that mention it and keeping the minimum over it, with the choice that
reached it; going backwards gives all choices. The order is by least degree, so a graph of small treewidth (a
transformer's is 2 to 5) takes time linear in its variables. Where a table would grow beyond `most`, the same problem
goes to an integer program (HiGHS), whose gap is reported.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod

import numpy as np
from numpy.typing import NDArray

from systems.superscaler.errors import InvalidPlan

__all__ = ["Assignment", "Problem", "by_program", "solve", "within"]

Costs = NDArray[np.float64]
MOST = 4_000_000
"""Entries that a joined table may have."""


@dataclass
class Problem:
    """unary[i]: (choices of i,) costs; pairwise[i, j], i < j: (choices of i, choices of j) costs. inf: forbidden."""

    unary: list[Costs] = field(default_factory=list)
    pairwise: dict[tuple[int, int], Costs] = field(default_factory=dict)

    def variable(self, costs: Sequence[float] | Costs) -> int:
        """A new variable with these costs of its choices; returns its number."""
        self.unary.append(np.array(costs, dtype=np.float64))
        return len(self.unary) - 1

    def couple(self, i: int, j: int, costs: Costs) -> None:
        """Add (choices of i, choices of j) costs; a variable coupled with itself gets the diagonal."""
        if i == j:
            self.unary[i] = self.unary[i] + np.diagonal(costs)
            return
        if i > j:
            i, j, costs = j, i, costs.T
        if costs.shape != (len(self.unary[i]), len(self.unary[j])):
            raise InvalidPlan(f"costs of shape {costs.shape} between variables of {len(self.unary[i])} and "
                              f"{len(self.unary[j])} choices")  # fmt: skip
        known = self.pairwise.get((i, j))
        self.pairwise[i, j] = costs if known is None else known + costs

    def cost(self, choice: Sequence[int]) -> float:
        """The sum of an assignment."""
        total = sum(float(costs[c]) for costs, c in zip(self.unary, choice, strict=True))
        return total + sum(float(costs[choice[i], choice[j]]) for (i, j), costs in self.pairwise.items())


@dataclass(frozen=True)
class Assignment:
    """A choice for each variable; cost: its sum; bound: none costs less; width: rank of the largest joined table."""

    choice: tuple[int, ...]
    cost: float
    bound: float
    width: int = 0
    weight: float = 0.0

    @property
    def gap(self) -> float:
        """How far above the bound the cost may be, as a share."""
        return 0.0 if self.cost <= self.bound else (self.cost - self.bound) / abs(self.cost)


def solve(problem: Problem, *, most: int = MOST) -> Assignment:
    """The cheapest assignment. Raises InvalidPlan where every assignment has a forbidden pair."""
    found = _eliminate(problem, most)
    if found is None:
        return by_program(problem)
    if not np.isfinite(found.cost):
        raise InvalidPlan("every assignment has a forbidden choice or pair")
    return found


def _eliminate(problem: Problem, most: int) -> Assignment | None:
    tables: dict[int, tuple[tuple[int, ...], Costs]] = {}
    around: list[set[int]] = [set() for _ in problem.unary]
    mentions: list[set[int]] = [set() for _ in problem.unary]
    for number, ((i, j), costs) in enumerate(problem.pairwise.items()):
        tables[number] = ((i, j), costs)
        for v in (i, j):
            mentions[v].add(number)
        around[i].add(j)
        around[j].add(i)
    sizes = [len(u) for u in problem.unary]
    heap = [(len(n), v) for v, n in enumerate(around)]
    heapq.heapify(heap)
    gone = [False] * len(sizes)
    back: list[tuple[int, tuple[int, ...], NDArray[np.intp]]] = []
    constant, width, made = 0.0, 0, len(tables)
    while heap:
        degree, v = heapq.heappop(heap)
        if gone[v] or degree != len(around[v]):
            continue
        gone[v] = True
        scope = tuple(sorted(around[v]))
        shape = tuple(sizes[u] for u in scope)
        if prod(shape) * sizes[v] > most:
            return None
        width = max(width, len(scope))
        joined = np.broadcast_to(problem.unary[v], (*shape, sizes[v])).copy()
        at = {u: k for k, u in enumerate((*scope, v))}
        for number in mentions[v]:
            own, costs = tables.pop(number)
            order = sorted(range(len(own)), key=lambda k: at[own[k]])
            view = [1] * len(at)
            for k in order:
                view[at[own[k]]] = sizes[own[k]]
            joined += costs.transpose(order).reshape(view)
            for u in own:
                if u != v:
                    mentions[u].discard(number)
        best = joined.argmin(-1)
        least = np.take_along_axis(joined, best[..., None], -1)[..., 0]
        back.append((v, scope, best))
        if not scope:
            constant += float(least)
            continue
        tables[made] = (scope, least)
        for u in scope:
            mentions[u].add(made)
            around[u].discard(v)
            around[u].update(w for w in scope if w != u)
            heapq.heappush(heap, (len(around[u]), u))
        made += 1
    choice = [0] * len(sizes)
    for v, scope, best in reversed(back):
        choice[v] = int(best[tuple(choice[u] for u in scope)])
    return Assignment(tuple(choice), constant, constant, width)


def by_program(
    problem: Problem, weights: Sequence[Costs] | None = None, limit: float = np.inf, *, seconds: float = 60.0
) -> Assignment:
    """The same by an integer program: a binary for each choice, a share for each pair of choices (local marginals).

    weights, limit: the sum of the chosen weights is at most `limit`. Raises InvalidPlan where nothing fits.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    starts = np.concatenate([[0], np.cumsum([len(u) for u in problem.unary])])
    costs = [np.concatenate(problem.unary)] if problem.unary else []
    count = int(starts[-1])
    rows: list[NDArray[np.int64]] = []
    columns: list[NDArray[np.int64]] = []
    values: list[Costs] = []
    right: list[float] = []

    def constraint(columns_of: NDArray[np.int64], values_of: Costs, equals: float) -> None:
        rows.append(np.full(len(columns_of), len(right)))
        columns.append(columns_of)
        values.append(values_of)
        right.append(equals)

    for i, own in enumerate(problem.unary):
        constraint(np.arange(starts[i], starts[i + 1]), np.ones(len(own)), 1.0)
    for (i, j), table in problem.pairwise.items():
        pairs = count + np.arange(table.size).reshape(table.shape)
        count += table.size
        costs.append(table.ravel())
        for a in range(table.shape[0]):
            constraint(np.append(pairs[a], starts[i] + a), np.append(np.ones(table.shape[1]), -1.0), 0.0)
        for b in range(table.shape[1]):
            constraint(np.append(pairs[:, b], starts[j] + b), np.append(np.ones(table.shape[0]), -1.0), 0.0)
    objective = np.concatenate(costs)
    forbidden = ~np.isfinite(objective)
    matrix = coo_array(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=(len(right), count)
    ).tocsr()
    constraints = [LinearConstraint(matrix, right, right)]
    if weights is not None:
        weighed = np.zeros((1, count))
        weighed[0, : starts[-1]] = np.concatenate(weights)
        constraints.append(LinearConstraint(weighed, -np.inf, limit))
    integral = np.zeros(count)
    integral[: starts[-1]] = 1
    found = milp(
        np.where(forbidden, 0.0, objective), integrality=integral, bounds=Bounds(0, np.where(forbidden, 0.0, 1.0)),
        constraints=constraints, options={"time_limit": seconds, "mip_rel_gap": 0.0},
    )  # fmt: skip
    if found.x is None:
        raise InvalidPlan(f"no assignment fits: {found.message}")
    choice = tuple(int(found.x[a:b].argmax()) for a, b in pairwise(starts))
    cost = problem.cost(choice)
    weight = 0.0 if weights is None else sum(float(w[c]) for w, c in zip(weights, choice, strict=True))
    return Assignment(choice, cost, min(cost, float(found.mip_dual_bound)), -1, weight)


def within(problem: Problem, weights: Sequence[Costs], limit: float, *, rounds: int = 40) -> Assignment:
    """A cheap assignment whose chosen weights sum to at most `limit`: a multiplier on weight, bisected, then repair.

    `bound` is the best dual value, so `gap` says how much is at most lost. Raises InvalidPlan where nothing fits.
    """

    def weighed(choice: Sequence[int]) -> float:
        return sum(float(w[c]) for w, c in zip(weights, choice, strict=True))

    def priced(multiplier: float) -> Assignment:
        relaxed = Problem([u + multiplier * w for u, w in zip(problem.unary, weights, strict=True)], problem.pairwise)
        return solve(relaxed)

    free = solve(problem)
    if weighed(free.choice) <= limit:
        return Assignment(free.choice, free.cost, free.bound, free.width, weighed(free.choice))
    heavy = max(float(np.ptp(w)) for w in weights)
    low, high = 0.0, max(abs(free.cost), 1e-12) / max(heavy, 1e-12)
    best, bound = None, free.bound
    light = free
    for step in range(rounds):
        multiplier = high if best is None else (low + high) / 2
        found = priced(multiplier)
        own = weighed(found.choice)
        bound = max(bound, found.bound - multiplier * limit)
        if own <= limit:
            cost = problem.cost(found.choice)
            if best is None or cost < best.cost:
                best = Assignment(found.choice, cost, cost, found.width, own)
            high = multiplier
        else:
            light = found
            low, high = multiplier, high if best is not None else 4 * high
        if best is None and step > 30:
            raise InvalidPlan(f"nothing weighs less than {own:.4g}, allowed are {limit:.4g}")
        if best is not None and high - low <= 1e-9 * high:
            break
    assert best is not None
    for start in (best, light):  # repair: single changes, from just above the limit and from below it
        improved = _repaired(problem, weights, limit, start.choice)
        if improved is not None and problem.cost(improved) < best.cost:
            best = Assignment(improved, problem.cost(improved), 0.0, best.width, weighed(improved))
    return Assignment(best.choice, best.cost, min(bound, best.cost), best.width, best.weight)


def _repaired(
    problem: Problem, weights: Sequence[Costs], limit: float, start: Sequence[int]
) -> tuple[int, ...] | None:
    """By single changes: the cheapest for each unit of weight until it fits, then any that costs less and fits."""
    choice = list(start)
    near: dict[int, list[tuple[int, Costs]]] = {v: [] for v in range(len(choice))}
    for (i, j), costs in problem.pairwise.items():
        near[i].append((j, costs))
        near[j].append((i, costs.T))
    weight = sum(float(w[c]) for w, c in zip(weights, choice, strict=True))

    def local(v: int) -> Costs:
        costs = problem.unary[v].copy()
        for u, table in near[v]:
            costs += table[:, choice[u]]
        return costs

    for _ in range(4 * len(choice) + 8):
        best: tuple[float, int, int] | None = None
        for v, own in enumerate(weights):
            costs = local(v)
            for c in range(len(own)):
                extra, lighter = float(costs[c] - costs[choice[v]]), float(own[choice[v]] - own[c])
                if not np.isfinite(extra) or c == choice[v]:
                    continue
                if weight > limit:
                    score = extra / lighter if lighter > 0 else np.inf
                else:
                    score = extra if extra < -1e-15 and weight - lighter <= limit else np.inf
                if np.isfinite(score) and (best is None or score < best[0]):
                    best = (score, v, c)
        if best is None:
            break
        _, v, c = best
        weight -= float(weights[v][choice[v]] - weights[v][c])
        choice[v] = c
    return tuple(choice) if weight <= limit else None
