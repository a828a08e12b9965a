"""Placed layouts of a tensor over a mesh of devices, and the cheapest communication from one to another.

The device index is written in mixed radix over the mesh's digits; each tensor dimension has slots, digits of its own
index from the most significant. A `Layout` maps every mesh digit to "R" (replicated), "V" (addend), or one slot; a slot
without a mesh digit is local. A move changes the roles of any set of digits by one collective:

| move | primitive | elements sent per device (x local input, s devices) |
|---|---|---|
| slots to R | all-gather | (s - 1) x |
| V to R | all-reduce | 2 (s - 1) x / s |
| V to free slots | reduce-scatter | (s - 1) x / s |
| slots to free slots | all-to-all | (s - 1) x / s |
| R to free slots | slice | 0 |
| R to V | keep on one, zero elsewhere | 0 |
| roles change digits | permute (point to point) | x |

All layouts are the states of a graph that depends on the digits and slots only, so it is built once. Slots are what
makes it sound: without them a digit could be put in front of another for nothing, though no device holds the data.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from systems.superscaler.errors import InvalidPlan
from systems.superscaler.mask import Interval, Region, merge

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

__all__ = ["Layout", "Move", "Path", "path"]

Kind = Literal["all_gather", "all_reduce", "reduce_scatter", "all_to_all", "slice", "to_addend", "permute"]
KINDS: tuple[Kind, ...] = (
    "all_gather", "all_reduce", "reduce_scatter", "all_to_all", "slice", "to_addend", "permute",
)  # fmt: skip
R, V, FIRST_SLOT = 0, 1, 2
MOST_STATES = 4096
"""Up to so many states the whole graph is built; beyond, the rows that a search visits."""


@dataclass(frozen=True)
class Layout:
    """mesh: radix per digit, from the most significant; slots: radix per slot and dimension; roles: per digit "R", "V"
    or (dimension, slot).
    """

    mesh: tuple[int, ...]
    slots: tuple[tuple[int, ...], ...]
    roles: tuple[str | tuple[int, int], ...]

    def __post_init__(self) -> None:
        held = [role for role in self.roles if not isinstance(role, str)]
        if len(self.roles) != len(self.mesh) or len(set(held)) != len(held):
            raise InvalidPlan(f"roles {self.roles} of mesh {self.mesh}: one for each digit, and no slot twice")
        for radix, role in zip(self.mesh, self.roles, strict=True):
            if isinstance(role, str):
                if role not in ("R", "V"):
                    raise InvalidPlan(f"role {role!r} of a digit, expected 'R', 'V' or (dimension, slot)")
            elif self.slots[role[0]][role[1]] != radix:
                raise InvalidPlan(f"a digit of radix {radix} in slot {role} of radix {self.slots[role[0]][role[1]]}")

    @classmethod
    def sharded(cls, mesh: Sequence[int], R: Sequence[int], V: Sequence[int], D: Sequence[Sequence[int]]) -> Layout:
        """Row-major: mesh dimensions in R replicate, those in V hold addends, D[k] shard dimension k in that order.

        Every dimension gets a slot for each mesh dimension, so that all layouts of one mesh share a graph.
        Raises InvalidPlan unless each mesh dimension has one role, and all radices are equal or D uses slots in order.
        """
        roles: list[str | tuple[int, int] | None] = [None] * len(mesh)
        slots = []
        for k, digits in enumerate(D):
            own = [mesh[d] for d in digits]
            slots.append(tuple(own + [mesh[d] for d in range(len(mesh)) if d not in digits]))
            for j, d in enumerate(digits):
                roles[d] = (k, j)
        for d in R:
            roles[d] = "R"
        for d in V:
            roles[d] = "V"
        if any(role is None for role in roles) or len(R) + len(V) + sum(map(len, D)) != len(mesh):
            raise InvalidPlan(f"R={R}, V={V}, D={D} give the {len(mesh)} mesh dimensions not one role each")
        return cls(tuple(mesh), tuple(slots), tuple(role for role in roles if role is not None))

    def digits(self, device: int) -> tuple[int, ...]:
        """The digits of a device index."""
        found = []
        for radix in reversed(self.mesh):
            found.append(device % radix)
            device //= radix
        return tuple(reversed(found))

    def region(self, shape: Sequence[int], device: int) -> Region:
        """What a device holds: intervals per dimension, in the order that they lie in memory."""
        digits = self.digits(device)
        fixed = {role: digits[d] for d, role in enumerate(self.roles) if not isinstance(role, str)}
        return tuple(
            _dimension(n, self.slots[k], {j: v for (dim, j), v in fixed.items() if dim == k})
            for k, n in enumerate(shape)
        )

    def part(self, device: int) -> tuple[int, int]:
        """Which addend a device holds."""
        v, n = 0, 1
        for digit, radix, role in zip(self.digits(device), self.mesh, self.roles, strict=True):
            if role == "V":
                v, n = v * radix + digit, n * radix
        return v, n

    @property
    def pieces(self) -> int:
        """Into how many boxes the tensor is cut."""
        return prod(r for r, role in zip(self.mesh, self.roles, strict=True) if not isinstance(role, str))

    def group(self, device: int, digits: Sequence[int]) -> tuple[int, ...]:
        """The devices that differ from `device` in some digits only, in row-major order of those."""
        own = list(self.digits(device))
        found = []
        for values in itertools.product(*(range(self.mesh[d]) for d in digits)):
            for d, v in zip(digits, values, strict=True):
                own[d] = v
            index = 0
            for radix, digit in zip(self.mesh, own, strict=True):
                index = index * radix + digit
            found.append(index)
        return tuple(found)

    def __str__(self) -> str:
        def name(role: str | tuple[int, int]) -> str:
            return role if isinstance(role, str) else f"D{role[0]}.{role[1]}"

        return " ".join(f"{r}:{name(role)}" for r, role in zip(self.mesh, self.roles, strict=True))


def _dimension(n: int, slots: Sequence[int], fixed: dict[int, int]) -> tuple[Interval, ...]:
    blocks: list[Interval] = [(0, n)]
    for j in range(max(fixed, default=-1) + 1):
        radix = slots[j]
        length = (blocks[0][1] - blocks[0][0]) // radix
        wanted = [fixed[j]] if j in fixed else range(radix)
        blocks = [(lo + i * length, lo + (i + 1) * length) for lo, _ in blocks for i in wanted]
    return merge(blocks)


@dataclass(frozen=True)
class Move:
    """One collective: `kind` over the groups that `digits` span, from one layout to the next; `elements` are what a
    device sends.
    """

    kind: Kind
    digits: tuple[int, ...]
    before: Layout
    after: Layout
    elements: float
    cost: float

    def origin(self, device: int) -> int:
        """For a permute: the device whose piece this one gets. Each device gives to one.

        Addends are renumbered on the way: which is the v-th does not matter, as long as all are there.
        """
        digits = self.before.digits(device)
        source = list(digits)
        free = list(self.digits)
        for j in self.digits:
            i = next(i for i in free if self.before.roles[i] == self.after.roles[j])
            free.remove(i)
            source[i] = digits[j]
        index = 0
        for radix, digit in zip(self.before.mesh, source, strict=True):
            index = index * radix + digit
        return index


@dataclass(frozen=True)
class Path:
    """Moves in order. cost: in what was asked for; bound: no path costs less (equal to cost where it is optimal)."""

    cost: float
    steps: tuple[Move, ...]
    bound: float

    @property
    def elements(self) -> float:
        """Elements that a device sends in all."""
        return sum(step.elements for step in self.steps)


CostFunction = Callable[[Kind, int, float], float]
"""(kind, devices in the group, local input elements) -> cost."""


def elements_sent(kind: Kind, size: int, x: float) -> float:
    """Elements that a device sends by ring algorithms."""
    if kind == "all_gather":
        return (size - 1) * x
    if kind == "all_reduce":
        return 2 * (size - 1) * x / size
    if kind in ("reduce_scatter", "all_to_all"):
        return (size - 1) * x / size
    return x if kind == "permute" else 0.0


# --------------------------------------------------------------------------------------------- the graph


class _Graph:
    """All layouts over digits and slots; a state is a row of role codes (0 R, 1 V, 2 + slot)."""

    def __init__(self, mesh: tuple[int, ...], slots: tuple[tuple[int, ...], ...]) -> None:
        self.mesh, self.slots = mesh, slots
        self.names: list[str | tuple[int, int]] = ["R", "V"]
        radices = []
        for k, own in enumerate(slots):
            for j, radix in enumerate(own):
                self.names.append((k, j))
                radices.append(radix)
        choices = [[R, V, *(FIRST_SLOT + i for i, radix in enumerate(radices) if radix == digit)] for digit in mesh]
        rows = np.array(np.meshgrid(*choices, indexing="ij"), dtype=np.int16).reshape(len(mesh), -1).T
        keep = np.ones(len(rows), bool)
        for i, j in itertools.combinations(range(len(mesh)), 2):
            keep &= (rows[:, i] != rows[:, j]) | (rows[:, i] < FIRST_SLOT)
        self.rows = np.ascontiguousarray(rows[keep])
        self.code = len(self.names)
        weights = self.code ** np.arange(len(mesh), dtype=np.int64)
        self.keys = (self.rows.astype(np.int64) * weights).sum(1)
        self.order = np.argsort(self.keys)
        self.weights = weights
        self.sorted_roles = np.sort(self.rows, axis=1)
        self.radix = np.array(mesh, dtype=np.int64)
        self.pieces = np.where(self.rows >= FIRST_SLOT, self.radix, 1).prod(1).astype(np.float64)

    def index(self, roles: Sequence[str | tuple[int, int]]) -> int:
        codes = np.array([self.names.index(role) for role in roles], dtype=np.int64)
        at = np.searchsorted(self.keys, (codes * self.weights).sum(), sorter=self.order)
        return int(self.order[at])

    def layout(self, state: int) -> Layout:
        return Layout(self.mesh, self.slots, tuple(self.names[c] for c in self.rows[state]))

    def row(self, state: int) -> tuple[NDArray[np.int64], NDArray[np.int8], NDArray[np.int64]]:
        """(targets, kinds, group sizes) of the moves from a state."""
        own, rows = self.rows[state], self.rows
        changed = rows != own
        slot_from, slot_to = own >= FIRST_SLOT, rows >= FIRST_SLOT
        used = np.zeros(self.code, bool)
        used[own[slot_from]] = True
        into_used = (changed & slot_to & used[rows]).any(1)
        kinds = np.full(rows.shape, -1, np.int8)
        kinds[slot_from & (rows == R)] = 0
        kinds[(own == V) & (rows == R)] = 1
        kinds[(own == V) & slot_to] = 2
        kinds[slot_from & slot_to] = 3
        kinds[(own == R) & slot_to] = 4
        kinds[(own == R) & (rows == V)] = 5
        kind = np.where(changed, kinds, np.int8(-2)).max(1)
        same = ((kinds == kind[:, None]) | ~changed).all(1) & (kind >= 0) & ~into_used
        relabel = (self.sorted_roles == np.sort(own)).all(1) & changed.any(1) & ~same
        kind = np.where(relabel, np.int8(6), kind)
        found = np.flatnonzero(same | relabel)
        sizes = np.where(changed[found], self.radix, 1).prod(1)
        return found, kind[found], sizes

    @property
    def tables(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int8], NDArray[np.int64]]:
        return _tables(self.mesh, self.slots)

    def costs(self, kinds: NDArray[Any], sizes: NDArray[Any], x: NDArray[Any], cost: CostFunction | None) -> Any:
        if cost is None:
            s = sizes.astype(np.float64)
            by_kind = np.stack([s - 1, 2 * (s - 1) / s, (s - 1) / s, (s - 1) / s, 0 * s, 0 * s, 0 * s + 1])
            return by_kind[kinds, np.arange(len(kinds))] * x
        found = np.empty(len(kinds))
        known: dict[tuple[int, int, float], float] = {}
        for i, key in enumerate(zip(kinds.tolist(), sizes.tolist(), x.tolist(), strict=True)):
            if key not in known:
                known[key] = cost(KINDS[key[0]], key[1], key[2])
            found[i] = known[key]
        return found


@lru_cache(maxsize=64)
def _graph(mesh: tuple[int, ...], slots: tuple[tuple[int, ...], ...]) -> _Graph:
    return _Graph(mesh, slots)


@lru_cache(maxsize=64)
def _tables(
    mesh: tuple[int, ...], slots: tuple[tuple[int, ...], ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int8], NDArray[np.int64]]:
    graph = _graph(mesh, slots)
    rows = [graph.row(i) for i in range(len(graph.rows))]
    starts = np.concatenate([[0], np.cumsum([len(r[0]) for r in rows])])
    return starts, *(np.concatenate([r[k] for r in rows]) for k in range(3))  # type: ignore[return-value]


@lru_cache(maxsize=64)
def _shortest(
    mesh: tuple[int, ...], slots: tuple[tuple[int, ...], ...], source: int
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Distances and predecessors from a state, in elements of a tensor of one element."""
    return _dijkstra(_graph(mesh, slots), source, 1.0, None)


def _dijkstra(
    graph: _Graph, source: int, elements: float, cost: CostFunction | None
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import dijkstra

    starts, targets, kinds, sizes = graph.tables
    x = np.repeat(elements / graph.pieces, np.diff(starts))
    weights = graph.costs(kinds, sizes, x, cost)
    # Free moves need a weight to be edges of a sparse graph; so small a one only breaks ties for fewer moves.
    tie = 1e-9 * max(float(weights.max(initial=0.0)), 1e-30)
    matrix: csr_matrix = csr_matrix((weights + tie, targets, starts), shape=(len(graph.rows),) * 2)
    distances, before = dijkstra(matrix, indices=source, return_predecessors=True)
    return distances, before


def path(
    src: Layout, dst: Layout, shape: Sequence[int], cost: Literal["elements"] | CostFunction = "elements",
    *, seconds: float = 5.0,
) -> Path:  # fmt: skip
    """The cheapest moves from one layout to another of a tensor of `shape`.

    cost: elements sent per device, or a function of (kind, group size, local elements), such as a cluster's seconds.
    Both layouts must have the same mesh; where their slots differ they are refined together. Raises InvalidPlan
    where a V would have to come from nowhere, or the layouts share no refinement.
    """
    src, dst = refine(src, dst)
    if src.roles == dst.roles:
        return Path(0.0, (), 0.0)
    graph = _graph(src.mesh, src.slots)
    a, b = graph.index(src.roles), graph.index(dst.roles)
    function = None if cost == "elements" else cost
    total = float(prod(shape))
    if len(graph.rows) <= MOST_STATES:
        _, before = _shortest(src.mesh, src.slots, a) if function is None else _dijkstra(graph, a, total, function)
        states = [b]
        while states[-1] != a:
            previous = int(before[states[-1]])
            if previous < 0:
                raise InvalidPlan(f"no moves lead from {src} to {dst}")
            states.append(previous)
        return _path(graph, states[::-1], total, function)
    return _search(graph, a, b, total, function, seconds)


def _path(graph: _Graph, states: Sequence[int], total: float, cost: CostFunction | None) -> Path:
    steps = tuple(_move(graph, a, b, total, cost) for a, b in itertools.pairwise(states))
    spent = sum(step.cost for step in steps)
    return Path(spent, steps, spent)


def _move(graph: _Graph, a: int, b: int, total: float, cost: CostFunction | None) -> Move:
    targets, kinds, sizes = graph.row(a)
    at = int(np.searchsorted(targets, b))
    kind, size = KINDS[kinds[at]], int(sizes[at])
    x = total / float(graph.pieces[a])
    sent = elements_sent(kind, size, x)
    digits = tuple(int(d) for d in np.flatnonzero(graph.rows[a] != graph.rows[b]))
    return Move(kind, digits, graph.layout(a), graph.layout(b), sent, sent if cost is None else cost(kind, size, x))


def _search(graph: _Graph, a: int, b: int, total: float, cost: CostFunction | None, seconds: float) -> Path:
    """A* over rows that are made when visited. The bound is the least estimate left when time is up."""
    import time

    end = time.monotonic() + seconds
    goal = graph.rows[b]
    best: dict[int, float] = {a: 0.0}
    before: dict[int, int] = {}
    done: set[int] = set()
    queue = [(0.0, a)]
    # Whoever must turn addends into a value sends at least what a reduce-scatter of the largest shard would.
    while queue:
        estimate, state = heapq.heappop(queue)
        if state in done:
            continue
        if state == b or time.monotonic() > end:
            break
        done.add(state)
        targets, kinds, sizes = graph.row(state)
        x = np.full(len(targets), total / float(graph.pieces[state]))
        weights = graph.costs(kinds, sizes, x, cost) + 1e-9
        for target, weight in zip(targets.tolist(), weights.tolist(), strict=True):
            new = best[state] + weight
            if new < best.get(target, np.inf):
                best[target] = new
                before[target] = state
                heapq.heappush(queue, (new, target))
    if b not in before:
        raise InvalidPlan(f"no moves from {graph.layout(a)} to {graph.layout(b)} were found in {seconds} s ({goal})")
    states = [b]
    while states[-1] != a:
        states.append(before[states[-1]])
    found = _path(graph, states[::-1], total, cost)
    return Path(found.cost, found.steps, min(found.cost, estimate))


# ------------------------------------------------------------------------------------------- refinement


def refine(src: Layout, dst: Layout) -> tuple[Layout, Layout]:
    """Both layouts over the coarsest digits and slots in which each digit is one slot of each.

    A digit of radix 4 that shares a dimension with two digits of radix 2 becomes two. Raises InvalidPlan where the
    radices have no common refinement (a dimension in 2 by one layout, in 3 by the other), or the meshes differ.
    """
    if src.mesh != dst.mesh:
        raise InvalidPlan(f"layouts over the meshes {src.mesh} and {dst.mesh}: give both over one mesh")
    if src.slots == dst.slots:
        return src, dst
    for _ in range(16):
        changed = False
        for k in range(len(src.slots)):
            a, b = src.slots[k], dst.slots[k]
            used = [_used(src, k), _used(dst, k)]
            for i, (p, q) in enumerate(zip(a, b, strict=False)):
                if p == q or i >= min(used):
                    continue
                big, small = max(p, q), min(p, q)
                if big % small:
                    raise InvalidPlan(f"dimension {k} is cut in {p} and in {q}: no common refinement")
                at = next(d for d, role in enumerate((src if p > q else dst).roles) if role == (k, i))
                src, dst = _split_digit(src, at, small), _split_digit(dst, at, small)
                changed = True
                break
            if changed:
                break
        if not changed:
            break
    slots = []
    for k in range(len(src.slots)):
        a, b = src.slots[k][: _used(src, k)], dst.slots[k][: _used(dst, k)]
        own = list(a if len(a) >= len(b) else b)
        rest = list(src.mesh)
        for radix in own:
            if radix in rest:
                rest.remove(radix)
        slots.append(tuple(own + rest))
    return Layout(src.mesh, tuple(slots), src.roles), Layout(dst.mesh, tuple(slots), dst.roles)


def _used(layout: Layout, dim: int) -> int:
    return max((role[1] + 1 for role in layout.roles if not isinstance(role, str) and role[0] == dim), default=0)


def _split_digit(layout: Layout, digit: int, first: int) -> Layout:
    """The layout with one mesh digit of radix n as two, of radices `first` and n / first; its slot likewise."""
    radix, role = layout.mesh[digit], layout.roles[digit]
    mesh = (*layout.mesh[:digit], first, radix // first, *layout.mesh[digit + 1 :])
    slots = list(layout.slots)
    roles: list[str | tuple[int, int]] = list(layout.roles)
    if isinstance(role, str):
        roles[digit : digit + 1] = [role, role]
    else:
        k, j = role
        slots[k] = (*slots[k][:j], first, radix // first, *slots[k][j + 1 :])
        roles = [r if isinstance(r, str) or r[0] != k or r[1] <= j else (k, r[1] + 1) for r in roles]
        roles[digit : digit + 1] = [(k, j), (k, j + 1)]
    return Layout(mesh, tuple(slots), tuple(roles))


def recognise(
    places: Sequence[tuple[tuple[tuple[int, int], ...], tuple[int, int]]], shape: Sequence[int]
) -> Layout | None:
    """The layout of a set of (box, part), one per device in order; None if it is irregular.

    Every digit of the device index (its prime factors, from the most significant) must move a device along one
    dimension or addend only.
    """
    count = len(places)
    mesh = tuple(_primes(count))
    dims = len(shape)
    coordinates, pieces = [], []
    for k in range(dims):
        intervals = sorted({box[k] for box, _ in places})
        n = len(intervals)
        if (
            shape[k] == 0
            or shape[k] % n
            or intervals != [(i * shape[k] // n, (i + 1) * shape[k] // n) for i in range(n)]
        ):
            return None
        coordinates.append([intervals.index(box[k]) for box, _ in places])
        pieces.append(n)
    addends = {part[1] for _, part in places}
    if len(addends) != 1:
        return None
    coordinates.append([part[0] for _, part in places])
    pieces.append(addends.pop())
    probe = Layout(mesh, ((),) * dims, ("R",) * len(mesh))
    digits = [probe.digits(i) for i in range(count)]
    steps = [prod(mesh[d + 1 :]) for d in range(len(mesh))]
    roles: list[str | tuple[int, int]] = ["R"] * len(mesh)
    slots: list[tuple[int, ...]] = []
    taken: set[int] = set()
    for k, (own, n) in enumerate(zip(coordinates, pieces, strict=True)):
        if own[0] != 0:
            return None
        weights = {d: own[steps[d]] for d in range(len(mesh)) if own[steps[d]]}
        if taken & set(weights) or any(
            c != sum(digits[i][d] * w for d, w in weights.items()) for i, c in enumerate(own)
        ):
            return None
        taken |= set(weights)
        ordered = sorted(weights, key=lambda d: -weights[d])
        unit = n
        for d in ordered:
            unit //= mesh[d]
            if weights[d] != unit:
                return None
        if unit != 1:
            return None
        if k < dims:
            slots.append(tuple(mesh[d] for d in ordered))
            for j, d in enumerate(ordered):
                roles[d] = (k, j)
        else:
            if ordered != sorted(ordered):
                return None  # addends numbered otherwise than by the device index
            for d in ordered:
                roles[d] = "V"
    return Layout(mesh, tuple(slots), tuple(roles))


def _primes(n: int) -> Iterator[int]:
    p = 2
    while n > 1:
        while n % p == 0:
            yield p
            n //= p
        p += 1


def trimmed(layout: Layout, shape: Sequence[int]) -> Layout:
    """Without the slots that would cut a dimension unevenly; those that are used must not be among them."""
    slots = []
    for n, own in zip(shape, layout.slots, strict=True):
        kept, product = [], 1
        for radix in own:
            product *= radix
            if n == 0 or n % product:
                break
            kept.append(radix)
        slots.append(tuple(kept))
    return Layout(layout.mesh, tuple(slots), layout.roles)
