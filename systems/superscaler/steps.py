"""What a step of a recipe takes on a cluster: seconds, bytes, and where both go.

Every space of the search is priced here and nowhere else, so that what one finds over another is a matter of plans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil

import numpy as np

from systems.superscaler.cluster import Cluster
from systems.superscaler.estimate import interlaced_seconds, pipeline_seconds
from systems.superscaler.following import axes, columns_and_rows
from systems.superscaler.graph import Graph, Op
from systems.superscaler.interop import Variant
from systems.superscaler.intraop import Choices, Spread, Unit, UnitCost, unit_cost, units_of
from systems.superscaler.recipes import Recipe, StageRecipe, shared_layers

__all__ = ["Estimate", "Prices"]

KEPT = {"none": 0, "segment": 1, "block": 2}


@dataclass(frozen=True)
class Estimate:
    """seconds of a step; peak_bytes of a device of each stage; stage_seconds of a micro-batch; tail: seconds after the
    last micro-batch (gradients, update) of the slowest stage.
    """

    seconds: float
    peak_bytes: tuple[float, ...]
    stage_seconds: tuple[float, ...]
    tail: float

    @property
    def peak(self) -> float:
        """Of the fullest device."""
        return max(self.peak_bytes)


class Prices:
    """Costs of a graph's units on a cluster, for any spread; kept, since spaces and bounds ask again and again.

    state: bytes of optimizer state for each trained element; only: as in `Choices`. others: ZeRO as the best of other
    systems have it, which reduce gradients and drop what others keep after each micro-batch, hidden behind the kernels
    as far as those last; the runtime here reduces once at the end, and gathers without overlap.
    """

    def __init__(
        self, graph: Graph, cluster: Cluster, *, state: float | None = None,
        only: Callable[[Op], Iterable[str] | None] | None = None, apart: Mapping[int, str] | None = None,
        others: bool = False,
    ) -> None:  # fmt: skip
        self.graph, self.cluster, self.only, self.others = graph, cluster, only, others
        self.apart = dict(apart or {})
        items = [t.item for t in graph.parameters]
        self.state = 2.0 * max(items, default=4) if state is None else state
        self.units = units_of(graph, apart=self.apart)
        self._choices: dict[tuple[Spread, int], Choices] = {}
        self._chosen: dict[tuple[object, ...], dict[int, str]] = {}
        self._units: dict[tuple[object, ...], list[UnitCost]] = {}
        self._columns: dict[tuple[int, bool], dict[int, str]] = {}
        self._shared: dict[int, Prices] = {}

    def choices(self, spread: Spread, microbatches: int) -> Choices:
        """The choices of operators on a spread."""
        key = (spread, microbatches)
        if key not in self._choices:
            self._choices[key] = Choices(
                self.graph, self.cluster, spread, self.units, microbatches=microbatches, only=self.only
            )
        return self._choices[key]

    def columns(self, parts: int, *, vocabulary: bool = True) -> dict[int, str]:
        """Megatron's cuts."""
        key = (parts, vocabulary)
        if key not in self._columns:
            self._columns[key] = dict(columns_and_rows(self.graph, parts, vocabulary=vocabulary)) if parts > 1 else {}
        return self._columns[key]

    def chosen(self, spread: Spread, microbatches: int, how: str) -> dict[int, str]:
        """Operator -> identifier. how: "megatron", "sequence" (and norms along the sequence), "best" (exact)."""
        key = (spread, microbatches, how)
        if key not in self._chosen:
            choices = self.choices(spread, microbatches)
            if spread.tp == 1:
                found = choices.given({})
            elif how == "best":
                found = choices.best()[0]
            else:
                cuts = self.columns(spread.tp)
                if how == "sequence":
                    rest = [op for op in self.graph.ops if op.id not in cuts]
                    cuts = {**axes(self.graph, spread.tp, rest, known=cuts), **cuts}
                found = choices.given(cuts)
            self._chosen[key] = found
        return self._chosen[key]

    def allows(self, op: int, name: str) -> bool:
        """Whether constraints let an operator be cut by an identifier."""
        allowed = None if self.only is None else self.only(self.graph.ops[op])
        return allowed is None or name in set(allowed)

    def co_sharded(
        self, spread: Spread, microbatches: int, parts: int
    ) -> tuple[dict[int, str], dict[int, int]] | None:
        """Megatron's cuts, in the blocks over tp x parts, and which operators have parts; None where none can."""
        cuts = self.columns(spread.tp * parts, vocabulary=False)
        inside = {i: n for i, n in cuts.items() if self.graph.ops[i].block >= 0}
        if not inside or not all(self.allows(i, n) for i, n in inside.items()):
            return None
        return {**self.chosen(spread, microbatches, "megatron"), **inside}, dict.fromkeys(inside, parts)

    def costs(
        self, spread: Spread, microbatches: int, chosen: Mapping[int, str], name: object, parts: Mapping[int, int]
    ) -> list[UnitCost]:
        """Of every unit, those of equal kind after equal kind computed once. parts: operator -> colocated parts."""
        key = (spread, microbatches, name)
        if key in self._units:
            return self._units[key]
        choices = self.choices(spread, microbatches)
        known: dict[tuple[int, int], UnitCost] = {}
        found = []
        before = -1
        for unit in self.units:
            at = (unit.kind, before)
            if at not in known:
                known[at] = unit_cost(choices, unit, chosen, parts)
            found.append(known[at])
            before = unit.kind
        self._units[key] = found
        return found

    # --------------------------------------------------------------------------------------------- of a stage

    def sync(self, kind: str, spread: Spread, size: float) -> float:
        """A collective among the copies of a stage, one in each group of tp: they share the links of their nodes."""
        if spread.dp < 2:
            return 0.0
        group = range(0, spread.dp * spread.tp, spread.tp)
        once = self.cluster.collective_seconds(kind, group, size)
        held = self.cluster.between_seconds(kind, group, size)
        return once + held * (min(spread.tp, self.cluster.per_node) - 1)

    def seconds(self, cost: UnitCost, spread: Spread, recompute: str, zero: int) -> float:
        """A unit's seconds for a micro-batch."""
        own = cost.forward + cost.backward
        own += {"none": 0.0, "segment": cost.again, "block": cost.again + cost.moving}[recompute]
        gathered = 2 * self.sync("all_gather", spread, cost.weights / spread.dp) if zero >= 3 else 0.0
        if not self.others:
            return own + gathered
        return max(own, gathered + (self.sync("reduce_scatter", spread, cost.trained) if zero >= 2 else 0.0))

    def fixed(self, cost: UnitCost, spread: Spread, zero: int) -> float:
        """Bytes of weights, gradients and optimizer state."""
        dp = spread.dp
        return (
            cost.weights / (dp if zero >= 3 else 1)
            + cost.trained / (dp if zero >= 2 and self.others else 1)
            + self.state * cost.elements / (dp if zero >= 1 else 1)
        )

    def variant(
        self, costs: Sequence[UnitCost], spread: Spread, recompute: str, zero: int, name: str = ""
    ) -> Variant:
        """For the cut into stages."""
        k = KEPT[recompute]
        return Variant(
            spread.devices,
            np.array([self.seconds(c, spread, recompute, zero) for c in costs]),
            np.array([self.fixed(c, spread, zero) for c in costs]),
            np.array([(c.saved, c.entering, c.border)[k] for c in costs]),
            np.array([c.transient[k] + (c.weights if zero >= 3 else 0.0) for c in costs]),
            name,
        )

    @cached_property
    def readers(self) -> list[list[tuple[Op, int]]]:
        """Per unit: the operators whose output a later unit reads, and the last of these."""
        at = {op.id: i for i, unit in enumerate(self.units) for op in unit.ops}
        return [
            [
                (op, last)
                for op in unit.ops
                if not op.prologue
                and (last := max((at.get(u.id, i) for u, _ in self.graph.consumers[op.output]), default=i)) > i
            ]
            for i, unit in enumerate(self.units)
        ]

    def leaving(self, recipe: Recipe, stage: StageRecipe, spread: Spread) -> float:
        """Bytes, for a copy's samples, that a stage gives to those behind it."""
        choices = self.choices(spread, recipe.microbatches)
        return sum(
            choices.tensor_bytes(op)
            for own in self.readers[stage.first : stage.last]
            for op, last in own
            if last >= stage.last
        )

    def hop(self, recipe: Recipe, s: int, leaving: float) -> float:
        """From a stage to the next: a share of each device over the link, then a gather inside."""
        a, b = recipe.stages[s], recipe.stages[s + 1]
        first, second = recipe.bases[s], recipe.bases[s + 1]
        cluster = self.cluster
        gather = leaving * (b.tp - 1) / b.tp / cluster.inside if b.tp > 1 else 0.0
        if cluster.node(first) == cluster.node(second + b.devices - 1) or cluster.node(first) == cluster.node(second):
            return cluster.inside_latency + leaving / min(a.tp, b.tp) / cluster.inside + gather
        links = max(1, min(a.devices, b.devices) // cluster.per_node)
        return cluster.between_latency + leaving * a.dp / links / cluster.between + gather

    # -------------------------------------------------------------------------------------------- of a recipe

    def shared(self, recipe: Recipe) -> Prices:
        """Prices of the same graph without the layers that all devices share."""
        parts = recipe.devices // recipe.stages[0].dp
        if parts not in self._shared:
            wide = shared_layers(self.graph, parts)
            self._shared[parts] = Prices(
                self.graph, self.cluster, state=self.state, only=self.only, apart=wide, others=self.others
            )
        return self._shared[parts]

    def stage_costs(self, recipe: Recipe, stage: StageRecipe) -> list[UnitCost]:
        """Of all units, on a stage's spread with its choices."""
        spread = Spread(stage.dp, stage.tp, self.samples(recipe, stage))
        chosen = {
            op.id: stage.cuts.get(f"{unit.kind}.{i}", "") for unit in self.units for i, op in enumerate(unit.ops)
        }
        parts = {
            op.id: stage.parts.get(f"{unit.kind}.{i}", 1) for unit in self.units for i, op in enumerate(unit.ops)
        }
        name = (tuple(sorted(stage.cuts.items())), tuple(sorted(stage.parts.items())))
        return self.costs(spread, recipe.microbatches, chosen, name, parts)

    def samples(self, recipe: Recipe, stage: StageRecipe) -> int:
        """The most samples of a micro-batch that a copy of a stage gets."""
        return ceil(ceil(self.graph.samples / recipe.microbatches) / stage.dp)

    def estimate(self, recipe: Recipe) -> Estimate:
        """A step of a recipe."""
        from systems.superscaler.plans import lockstep_order, one_f_one_b_order

        if recipe.interlaced and not self.apart:
            return self.shared(recipe).estimate(recipe)
        m = recipe.microbatches
        forward, backward, fixed, flying, transient, tails, hops = [], [], [], [], [], [], []
        stored: list[dict[int, float]] = []
        for s, stage in enumerate(recipe.stages):
            spread = Spread(stage.dp, stage.tp, self.samples(recipe, stage))
            every = self.stage_costs(recipe, stage)
            own = every[stage.first : stage.last]
            total = sum(self.seconds(c, spread, stage.recompute, recipe.zero) for c in own)
            front = sum(c.forward for c in own)
            forward.append(front)
            backward.append(total - front)
            v = self.variant(own, spread, stage.recompute, recipe.zero)
            fixed.append(float(v.fixed.sum()))
            flying.append(float(v.flying.sum()))
            transient.append(float(v.transient.max()))
            tails.append(self.tail(own, spread, recipe.zero))
            together: dict[int, float] = {}
            for c in own:
                together.update(c.stored)
            stored.append(together)
            if s + 1 < len(recipe.stages):
                hops.append(self.hop(recipe, s, self.leaving(recipe, stage, spread)))
        for a in range(len(stored)):  # tied weights that two stages hold
            for b in range(a):
                both = sum(min(stored[a][t], stored[b][t]) for t in stored[a].keys() & stored[b].keys())
                if both:
                    pair = (recipe.bases[a], recipe.bases[b])
                    taken = self.cluster.between_seconds("all_reduce", pair, both)
                    ranks = min(recipe.stages[a].devices, self.cluster.per_node)
                    cost = self.cluster.collective_seconds("all_reduce", pair, both) + taken * (ranks - 1)
                    tails[a] += cost
                    tails[b] += cost
        lines = (lockstep_order if recipe.interlaced else one_f_one_b_order)(len(recipe.stages), m)
        held = [2 * (len(fixed) - s) - 1 if recipe.interlaced else len(fixed) - s for s in range(len(fixed))]
        peaks = [
            f + min(held[s], m) * a + w for s, (f, a, w) in enumerate(zip(fixed, flying, transient, strict=True))
        ]
        if recipe.interlaced:
            times, bytes_, tail = self.wide_layers(recipe)
            done = interlaced_seconds(forward, backward, hops, m, times, lines)
            peaks = [p + bytes_ for p in peaks]
            tails = [t + tail for t in tails]
        else:
            done = pipeline_seconds(forward, backward, hops, m, lines)
        seconds = max(d + t for d, t in zip(done, tails, strict=True))
        return Estimate(
            seconds, tuple(peaks), tuple(f + b for f, b in zip(forward, backward, strict=True)), max(tails)
        )

    def tail(self, own: Sequence[UnitCost], spread: Spread, zero: int) -> float:
        """Seconds after the last micro-batch: gradients among the copies, the update, and weights gathered again."""
        trained, elements = sum(c.trained for c in own), sum(c.elements for c in own)
        found = 0.0
        if zero < 2 or not self.others:
            found += self.sync("all_reduce" if zero == 0 else "reduce_scatter", spread, trained)
        if zero in (1, 2):
            found += self.sync("all_gather", spread, trained / spread.dp)
        touched = (2 * self.state * elements + 2 * trained) / (spread.dp if zero else 1)
        return found + self.cluster.compute_seconds(0.0, touched)

    def wide_layers(self, recipe: Recipe) -> tuple[tuple[float, float, float, float], float, float]:
        """Layers that all devices share: seconds (entering F, leaving F, leaving B, entering B), bytes, tail."""
        stage = recipe.stages[0]
        width = recipe.devices // stage.dp
        spread = Spread(stage.dp, width, self.samples(recipe, stage))
        entering, leaving = self.ends
        choices = Choices(self.graph, self.cluster, spread, [entering, leaving], microbatches=recipe.microbatches)
        a, b = (unit_cost(choices, unit, self.apart, {}) for unit in (entering, leaving))
        fixed = sum(self.fixed(c, spread, recipe.zero) for c in (a, b))
        both = {t: max(a.stored[t], b.stored[t]) for t in a.stored.keys() & b.stored.keys()}  # tied: held once
        if both:
            twice = sum(both.values())
            items = max(t.item for t in self.graph.parameters)
            fixed -= self.fixed(
                UnitCost(weights=twice, trained=twice, elements=twice / items), spread, recipe.zero
            )
        bytes_ = fixed + a.saved + b.saved + max(a.transient[0], b.transient[0])
        enter = [op for op in entering.ops if any(u.id not in self.apart for u, _ in self.graph.consumers[op.output])]
        reads = {v.tensor for op in leaving.ops for v in op.inputs} & set(self.graph.producer)
        outside = [self.graph.producer[t] for t in reads if self.graph.producer[t].id not in self.apart]
        sums, copies = (
            [sum(choices.moved(choices.tensor_bytes(op), a, "R") for op in ops if not op.prologue)
             for ops in (enter, outside)]
            for a in ("V", 0)
        )  # fmt: skip
        times = (a.forward + sums[0], b.forward + copies[1], b.backward + sums[1], a.backward + copies[0])
        return times, bytes_, self.tail([a, b], spread, recipe.zero)

    @cached_property
    def ends(self) -> tuple[Unit, Unit]:
        """The shared layers before the blocks, and those behind."""
        first = next((op.id for op in self.graph.ops if op.block >= 0), 0)
        ops = [self.graph.ops[i] for i in sorted(self.apart)]
        return (
            Unit("entering", tuple(op for op in ops if op.id < first), 0),
            Unit("leaving", tuple(op for op in ops if op.id >= first), 1),
        )

