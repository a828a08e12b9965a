"""How each operator of a stage is spread over its devices: one variable an operator, solved exactly.

A stage has dp x tp devices: the batch is cut in dp, and within each share an operator is cut over tp devices by one of
its identifiers, or replicated. What a choice costs alone is its kernels and the gradients of weights that it leaves as
addends; what two neighbours cost together is the communication that brings the layout one writes into the one the other
reads, and the gradient back. Consumers that want a tensor in the same way share that communication: a variable of two
states says whether anybody does. Equal blocks have equal choices, so a variable stands for an operator of all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

from systems.superscaler.capture import structure
from systems.superscaler.cluster import Cluster
from systems.superscaler.costs import Cost, Pricing
from systems.superscaler.elimination import Assignment, Problem, solve
from systems.superscaler.errors import InvalidPlan
from systems.superscaler.following import home, output_dim
from systems.superscaler.graph import Graph, Op
from systems.superscaler.layout import Kind
from systems.superscaler.mask import Interval
from systems.superscaler.operators import skipped_inputs

__all__ = ["Choices", "Spread", "Unit", "units_of"]

Place = int | str
"""How a tensor lies over tp devices: the dimension that is cut, "R" replicated, "V" addends."""


@dataclass(frozen=True)
class Spread:
    """A stage's devices: dp copies of tp; samples: of a micro-batch, on each copy; first: the first device."""

    dp: int
    tp: int
    samples: int

    @property
    def devices(self) -> int:
        """How many."""
        return self.dp * self.tp


@dataclass(frozen=True, eq=False)
class Unit:
    """Operators that stay in one stage: a block of the model, with what stands around it. kind: equal units' number."""

    name: str
    ops: tuple[Op, ...]
    kind: int


def units_of(graph: Graph, *, apart: Iterable[int] = ()) -> list[Unit]:
    """The graph as a row of units; operators outside of blocks go with what precedes, the last ones with the last.

    apart: ids of operators that belong to no unit. Passes over the same blocks share their units.
    """
    apart = set(apart)
    homes = [home(op) for op in graph.ops]
    names = list(dict.fromkeys(n for n in homes if n)) or [""]
    number = {n: i for i, n in enumerate(names)}
    last = max((i for i, n in enumerate(homes) if n), default=-1)
    members: list[list[Op]] = [[] for _ in names]
    current = 0
    for i, op in enumerate(graph.ops):
        current = number[homes[i]] if homes[i] else len(names) - 1 if i > last else current
        if op.id not in apart:
            members[current].append(op)
    kinds: dict[str, int] = {}
    found = []
    for name, ops in zip(names, members, strict=True):
        kind = kinds.setdefault(structure(ops, graph), len(kinds))
        found.append(Unit(name, tuple(ops), kind))
    return found


@cache
def _moves(a: Place, b: Place) -> tuple[Kind, ...]:
    """The collectives that bring a layout over one digit to another; each is the cheapest there is."""
    if a == b or a == "R":
        return ()
    if a == "V":
        return ("all_reduce",) if b == "R" else ("reduce_scatter",)
    return ("all_gather",) if b == "R" else ("all_to_all",)


class Choices:
    """The choices of a graph's operators on a spread, and what they cost on a cluster.

    only: operator -> the identifiers that may be cut, "" for replicating, or None for all (constraints).
    """

    def __init__(
        self, graph: Graph, cluster: Cluster, spread: Spread, units: Sequence[Unit], *, microbatches: int = 1,
        only: Callable[[Op], Iterable[str] | None] | None = None,
    ) -> None:  # fmt: skip
        self.graph, self.cluster, self.spread, self.units = graph, cluster, spread, units
        self.microbatches = microbatches
        self.only = only
        self.pricing = Pricing(graph, fused=cluster.fused_attention)
        self.removed = 0
        self._costs: dict[tuple[int, str, int], tuple[Cost, float]] = {}
        self._moved: dict[tuple[float, Place, Place], float] = {}

    # ------------------------------------------------------------------------------------------- single costs

    def options(self, op: Op) -> tuple[str, ...]:
        """The identifiers that an operator may be cut by over tp devices; "" is replicating."""
        tp = self.spread.tp
        found = [""]
        if tp > 1 and not op.prologue:
            found += [n for n, most in sorted(op.annotation.divisible.items()) if self.most(op, n, most) >= tp]
        allowed = None if self.only is None else self.only(op)
        if allowed is None:
            return tuple(found)
        kept = tuple(n for n in found if n in set(allowed))
        if not kept:
            raise InvalidPlan(f"{op}: a constraint allows {sorted(allowed)}, possible are {found}")
        self.removed += len(found) - len(kept)
        return kept

    def most(self, op: Op, name: str, divisible: int) -> int:
        """Into how many parts an identifier may be cut here."""
        return self.spread.samples if name == "b" and "b" in op.annotation.units else divisible

    def ranges(self, op: Op, name: str, parts: int = 1) -> dict[str, Interval]:
        """The intervals of the largest part; parts: colocated ones on each device."""
        annotation = op.annotation
        found: dict[str, Interval] = {}
        if "b" in annotation.units and not op.prologue:
            samples = self.spread.samples
            found["b"] = (0, annotation.units["b"] * min(-(-samples // self.spread.tp) if name == "b" else samples,
                                                         annotation.sizes["b"] // annotation.units["b"]))  # fmt: skip
        if name and name != "b":
            unit = annotation.units.get(name, 1)
            found[name] = (0, -(-(annotation.sizes[name] // unit) // (self.spread.tp * parts)) * unit)
        return found

    def cost(self, op: Op, name: str, parts: int = 1) -> tuple[Cost, float]:
        """A part's cost, and its seconds forward."""
        key = (op.id, name, parts)
        if key not in self._costs:
            cost = self.pricing.cost(op, self.ranges(op, name, parts))
            seconds = self.cluster.compute_seconds(cost.flops, cost.touched) if cost.touched else 0.0
            self._costs[key] = cost, seconds
        return self._costs[key]

    def written(self, op: Op, name: str) -> Place:
        """How the output lies."""
        if not name:
            return "R"
        dim = output_dim(op, name)
        return "V" if dim is None else dim

    def wanted(self, op: Op, index: int, name: str) -> tuple[Place, Place] | None:
        """How an input must lie, and how its gradient comes; None where the part does not read it."""
        if not name:
            return "R", "R"
        dims = op.annotation.inputs[index] or ()
        dim = next((k for k, d in enumerate(dims) if d and d[0] == name), None)
        if dim is not None:
            return dim, dim
        return "R", "V" if op.annotation.has(dims, name) or not self.skips(op, index, name) else "R"

    def skips(self, op: Op, index: int, name: str) -> bool:
        """Whether later parts of a cut do not read an input."""
        return index in skipped_inputs(op, {name: (1, 2)})

    def moved(self, bytes_: float, a: Place, b: Place) -> float:
        """Seconds of bringing a tensor of so many bytes (of a copy's samples) from one layout to another over tp."""
        key = (bytes_, a, b)
        if key not in self._moved:
            tp, total = self.spread.tp, 0.0
            for kind in _moves(a, b):
                own = bytes_ if kind in ("all_reduce", "reduce_scatter") else bytes_ / tp
                total += self.cluster.collective_seconds(kind, range(tp), own)
            self._moved[key] = total
        return self._moved[key]

    def tensor_bytes(self, op: Op) -> float:
        """Bytes of an operator's output for a copy's samples."""
        t = self.graph.tensors[op.output]
        share = 1.0
        if t.batch is not None and not op.prologue:
            dim, unit = t.batch
            share = min(1.0, self.spread.samples * unit / t.shape[dim])
        return t.bytes * share

    def weights(self, op: Op, name: str) -> list[tuple[int, float, bool]]:
        """(parameter, bytes that a device stores of it, whether its gradient must be summed over tp)."""
        found = []
        for i, v in enumerate(op.inputs):
            t = self.graph.tensors[v.tensor]
            if t.kind != "param":
                continue
            elements = 1
            for lo, hi in v.box:
                elements *= hi - lo
            place, grad = self.wanted(op, i, name) or ("R", "R")
            found.append(
                (t.id, elements * t.item / (1 if place == "R" else self.spread.tp),
                 place == "R" and grad == "V" and t.grad and op.grad)
            )  # fmt: skip
        return found

    def alone(self, op: Op, name: str) -> float:
        """Seconds of an operator for a micro-batch, forward and backward, with what its weights' gradients need."""
        _, seconds = self.cost(op, name)
        total = seconds * (3.0 if op.grad else 1.0)
        for _, own, summed in self.weights(op, name):
            if summed:
                total += self.cluster.collective_seconds("all_reduce", range(self.spread.tp), own) / self.microbatches
        return total

    def between(self, producer: Op, a: str, want: tuple[Place, Place], grad: bool) -> tuple[float, float]:
        """Seconds (forward, backward) of bringing an output to consumers that want it one way."""
        bytes_ = self.tensor_bytes(producer)
        made = self.written(producer, a)
        back = self.moved(bytes_, want[1], "R" if made == "V" else made) if grad else 0.0
        return self.moved(bytes_, made, want[0]), back

    # ---------------------------------------------------------------------------------------------- all together

    @cached_property
    def keys(self) -> dict[int, tuple[int, int]]:
        """Operator -> (kind of unit, position in it): operators with one key have one choice."""
        return {op.id: (unit.kind, i) for unit in self.units for i, op in enumerate(unit.ops)}

    def problem(self) -> tuple[Problem, dict[tuple[int, int], int]]:
        """The variables, and the number of the variable of each key."""
        problem, number, count = Problem(), dict[tuple[int, int], int](), dict[tuple[int, int], int]()
        ops: dict[tuple[int, int], Op] = {}
        for op in self.graph.ops:
            key = self.keys.get(op.id)
            if key is not None:
                count[key] = count.get(key, 0) + 1
                ops.setdefault(key, op)
        for key, op in ops.items():
            number[key] = problem.variable([count[key] * self.alone(op, name) for name in self.options(op)])
        seen: dict[tuple[object, ...], tuple[Op, list[tuple[Op, int]], int]] = {}
        for producer in self.graph.ops:
            readers = [(op, i) for op, i in self.graph.consumers[producer.output] if op.id in self.keys]
            if not readers or producer.id not in self.keys or producer.prologue:
                continue
            signature = (self.keys[producer.id], *((self.keys[op.id], i) for op, i in readers))
            known = seen.get(signature)
            seen[signature] = (producer, readers, 1 if known is None else known[2] + 1)
        for producer, readers, times in seen.values():
            self._couple(problem, number, producer, readers, times)
        return problem, number

    def _couple(
        self, problem: Problem, number: Mapping[tuple[int, int], int], producer: Op, readers: Sequence[tuple[Op, int]],
        times: int,
    ) -> None:  # fmt: skip
        own = self.options(producer)
        kinds: dict[tuple[Place, Place, bool], NDArray[np.float64]] = {}
        users: dict[tuple[Place, Place, bool], dict[int, set[int]]] = {}
        for op, i in readers:
            grad = op.grad and self.graph.tensors[producer.output].grad
            for k, name in enumerate(self.options(op)):
                want = self.wanted(op, i, name)
                if want is None:
                    continue
                key = (*want, grad)
                if key not in kinds:
                    kinds[key] = times * np.array([sum(self.between(producer, a, want, grad)) for a in own])
                if kinds[key].any():
                    users.setdefault(key, {}).setdefault(number[self.keys[op.id]], set()).add(k)
        me = number[self.keys[producer.id]]
        for key, by in users.items():
            if len(by) == 1:
                ((them, chosen),) = by.items()
                table = np.zeros((len(own), len(problem.unary[them])))
                table[:, sorted(chosen)] = kinds[key][:, None]
                problem.couple(me, them, table)
                continue
            flag = problem.variable([0.0, 0.0])
            problem.couple(me, flag, np.stack([np.zeros(len(own)), kinds[key]], 1))
            for them, chosen in by.items():
                table = np.zeros((2, len(problem.unary[them])))
                table[0, sorted(chosen)] = np.inf
                problem.couple(flag, them, table)

    def best(self) -> tuple[dict[int, str], Assignment]:
        """Operator -> the identifier that it is cut by, at the least seconds a micro-batch."""
        problem, number = self.problem()
        found = solve(problem)
        chosen = {}
        for op in self.graph.ops:
            key = self.keys.get(op.id)
            if key is not None:
                chosen[op.id] = self.options(op)[found.choice[number[key]]]
        return chosen, found

    def given(self, cuts: Mapping[int, str]) -> dict[int, str]:
        """Operator -> identifier for a plan of the library; what it leaves out is replicated, constraints allowing."""
        found = {}
        for op in self.graph.ops:
            options = self.options(op)
            name = cuts.get(op.id, "")
            found[op.id] = name if name in options else "" if "" in options else options[0]
        return found


@dataclass
class UnitCost:
    """What a unit costs a device for a micro-batch, under some choices.

    forward, backward, again: seconds (again: of computing it anew, without communication); saved, entering: bytes kept
    until the backward without recompute, and with recompute of segments; border: with recompute of the whole unit;
    transient: most bytes meanwhile for these three, moving: seconds of communication in the forward;
    weights, trained: bytes stored of parameters, and of those that are trained; elements: trained elements stored.
    """

    forward: float = 0.0
    backward: float = 0.0
    again: float = 0.0
    saved: float = 0.0
    entering: float = 0.0
    border: float = 0.0
    moving: float = 0.0
    transient: tuple[float, float, float] = (0.0, 0.0, 0.0)
    weights: float = 0.0
    trained: float = 0.0
    elements: float = 0.0
    stored: dict[int, float] = field(default_factory=dict)


def unit_cost(choices: Choices, unit: Unit, chosen: Mapping[int, str], parts: Mapping[int, int]) -> UnitCost:
    """The cost of a unit. parts: operator -> how many colocated parts a device runs one after another (co-shard)."""
    graph, found = choices.graph, UnitCost()
    inside = {op.id for op in unit.ops}
    wanted: dict[tuple[int, Place, Place, bool], None] = {}
    segment = kept = peak = work = 0.0
    alive = 0.0
    entered: set[tuple[int, Place]] = set()
    stored: dict[tuple[object, ...], tuple[float, int]] = {}
    for op in unit.ops:
        name, many = chosen.get(op.id, ""), parts.get(op.id, 1)
        if op.prologue:
            continue
        cost, seconds = choices.cost(op, name, many)
        cut = False
        for i, v in enumerate(op.inputs):
            producer = graph.producer.get(v.tensor)
            if producer is None or producer.prologue:
                continue
            want = choices.wanted(op, i, name)
            if want is None:
                continue
            grad = op.grad and graph.tensors[v.tensor].grad
            forward, backward = choices.between(producer, chosen.get(producer.id, ""), want, grad)
            if (forward or backward) and (v.tensor, *want, grad) not in wanted:
                wanted[v.tensor, *want, grad] = None
                found.forward += forward
                found.moving += forward
                found.backward += backward
            if forward or backward or producer.id not in inside:
                cut = cut or bool(forward)
                if op.grad and (v.tensor, want[0]) not in entered:
                    entered.add((v.tensor, want[0]))
                    own = choices.tensor_bytes(producer) / (1 if want[0] == "R" else choices.spread.tp)
                    found.entering += own
                    found.border += own if producer.id not in inside else 0.0
        if cut:  # a communication ends a segment
            segment = 0.0
        found.forward += many * seconds
        found.backward += 2 * many * seconds if op.grad else 0.0
        found.again += many * seconds if op.grad else 0.0
        kept += many * cost.kept
        segment += cost.kept  # of one part: the others' are gone, or still to come
        alive += cost.kept
        peak = max(peak, segment + cost.workspace)
        work = max(work, cost.workspace)
        for t, own, _ in choices.weights(op, name):
            i = _input_of(op, t)
            stored[t, op.inputs[i].box, choices.wanted(op, i, name)] = (own, t)
            if choices.graph.tensors[t].grad and op.grad:
                found.stored[t] = max(found.stored.get(t, 0.0), own)
    found.saved = kept
    found.transient = (work, peak, alive + work)
    for own, t in stored.values():
        found.weights += own
        if graph.tensors[t].grad:
            found.trained += own
            found.elements += own / graph.tensors[t].item
    return found


def _input_of(op: Op, tensor: int) -> int:
    return next(i for i, v in enumerate(op.inputs) if v.tensor == tensor)
