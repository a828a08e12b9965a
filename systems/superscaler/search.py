"""Search for the plan whose step is shortest: micro-batches, stages, spreads, cuts of operators, what is kept.

For each number of micro-batches the ways to run a stage (how many devices, how they share, how operators are cut, what
is recomputed, how many colocated parts) become variants with a time and a memory for each unit; the pipeline cut picks
stages and variants together; the best few candidates are timed by stages, and, where asked, built and simulated.
Megatron's, Alpa's and DeepSpeed's plans are spaces of this search, whose candidates the full space has too.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import inf

import numpy as np

from systems.superscaler.cluster import Cluster
from systems.superscaler.errors import InvalidPlan, OutOfMemory
from systems.superscaler.graph import Graph, Op
from systems.superscaler.interop import Cut, Variant, cut
from systems.superscaler.intraop import Spread, UnitCost
from systems.superscaler.plan import Plan
from systems.superscaler.plans import passes_of
from systems.superscaler.recipes import Recipe, StageRecipe, by_key
from systems.superscaler.spaces import SPACES, Constraint, Space
from systems.superscaler.steps import Estimate, Prices

__all__ = ["Candidate", "Found", "search"]

PARTS = (2, 4, 8)
"""Colocated parts that co-shard tries."""
GRAINS = 128
"""A free pipeline gives devices out in at most so many lots."""


@dataclass(frozen=True)
class Candidate:
    """A recipe with its estimate."""

    recipe: Recipe
    estimate: Estimate

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.estimate.seconds


@dataclass(frozen=True)
class Found:
    """What a search found.

    best and runners_up; bound: seconds without the tail after the last micro-batch that no plan in stages is under, and
    `gap` how far the best one's are above; tried: variants, cuts and candidates that were priced; removed: choices
    that each constraint took away; seconds: of the phases.
    """

    best: Candidate
    runners_up: tuple[Candidate, ...]
    bound: float
    gap: float
    tried: dict[str, int]
    removed: dict[str, int]
    seconds: dict[str, float]

    @property
    def recipe(self) -> Recipe:
        """The best one's."""
        return self.best.recipe

    def build(self, graph: Graph, cluster: Cluster | None = None) -> Plan:
        """The programs of all ranks, verified."""
        return self.recipe.program(graph).build(cluster)

    def __str__(self) -> str:
        return f"{1e3 * self.best.seconds:.3f} ms a step, {self.best.estimate.peak / 2**30:.2f} GiB: {self.recipe}"


@dataclass(frozen=True, eq=False)
class _Way:
    """A way to run a stage, with what it takes to write it down."""

    variant: Variant
    spread: Spread
    how: str
    recompute: str
    parts: dict[int, int] = field(default_factory=dict)
    chosen: dict[int, str] = field(default_factory=dict)


def search(
    graph: Graph, cluster: Cluster, *, devices: int | None = None, space: str | Space = "full",
    constraints: Iterable[Constraint] = (), state: float | None = None, recompute: Sequence[str] = ("none", "segment"),
    simulated: int = 0, gap: float = 0.01, prices: Prices | None = None, closest: bool = True,
) -> Found:  # fmt: skip
    """The shortest step of a space on some devices of a cluster (all by default).

    state: bytes of optimizer state for each trained element (two tensors of the parameters' type by default).
    recompute: what is considered; "block" is what other systems do, the runtime keeps a little more and moves less.
    simulated: so many of the best candidates are built and simulated, and ranked by that.
    Raises OutOfMemory, with the closest plan and what it lacks (which takes more searches; `closest` says whether),
    where no plan fits; InvalidPlan for what contradicts.
    """
    if isinstance(space, str):
        if space not in SPACES:
            raise InvalidPlan(f"no space {space!r}: choose one of {', '.join(SPACES)}, or make a Space(...)")
        space = SPACES[space]
    count = cluster.devices if devices is None else devices
    if not 1 <= count <= cluster.devices:
        raise InvalidPlan(f"{count} devices of a cluster that has {cluster.devices}")
    run = _Search(graph, cluster, count, space, tuple(constraints), state, tuple(recompute), gap, prices)
    return run.found(simulated, closest)


class _Search:
    def __init__(
        self, graph: Graph, cluster: Cluster, devices: int, space: Space, constraints: tuple[Constraint, ...],
        state: float | None, recompute: tuple[str, ...], gap: float, prices: Prices | None,
    ) -> None:  # fmt: skip
        self.graph, self.cluster, self.devices, self.space = graph, cluster, devices, space
        self.constraints, self.recompute, self.gap = constraints, recompute, gap
        self.removed = dict.fromkeys(map(_said, constraints), 0)
        self.prices = prices or Prices(graph, cluster, state=state, only=self.allowed if constraints else None)
        self.tried = {"variants": 0, "cuts": 0, "candidates": 0}
        self.seconds = {"variants": 0.0, "cuts": 0.0, "estimates": 0.0, "simulation": 0.0}
        self.candidates: list[Candidate] = []
        self.kept: dict[tuple[int, int, float], list[_Way]] = {}
        self.bounds: list[float] = []
        self.memory = cluster.memory
        self.recycled = max(passes_of(graph).values(), default=0) > 0

    def allowed(self, op: Op) -> Iterable[str] | None:
        """The identifiers that constraints leave an operator; None for all."""
        found: set[str] | None = None
        for c in self.constraints:
            if c.matches(op) and c.idents is not None:
                found = set(c.idents) if found is None else found & set(c.idents)
        return found

    def found(self, simulated: int, closest: bool) -> Found:
        """All of it."""
        self.everything()
        if not self.candidates and not closest:
            raise OutOfMemory(f"no plan of the {self.space.name} space fits {self.devices} devices")
        if not self.candidates:
            raise self.too_large()
        ranked = self.ranked()
        if simulated:
            ranked = self.simulate(ranked, simulated)
        best = ranked[0]
        flow = best.seconds - best.estimate.tail
        bound = min(min(self.bounds, default=flow), flow)
        for choices in self.prices._choices.values():
            for key in self.removed:
                if key.startswith("only"):
                    self.removed[key] += choices.removed
        return Found(best, tuple(ranked[1:6]), bound, 1 - bound / flow, self.tried, self.removed, self.seconds)

    def ranked(self) -> list[Candidate]:
        """Candidates by seconds, each recipe once."""
        known: dict[str, Candidate] = {}
        for c in sorted(self.candidates, key=lambda c: c.seconds):
            known.setdefault(str(c.recipe) + repr([s.cuts for s in c.recipe.stages]), c)
        return list(known.values())

    def simulate(self, ranked: list[Candidate], count: int) -> list[Candidate]:
        """The best few by the simulator, which times every device."""
        from systems.superscaler.simulate import simulate

        start = time.perf_counter()
        timed, refused = [], None
        for c in ranked:
            plan = c.recipe.program(self.graph).build()
            trace = simulate(plan, self.cluster)
            if max(trace.peak_bytes) <= self.cluster.memory:
                timed.append(replace(c, estimate=replace(c.estimate, seconds=trace.step_seconds,
                                                         peak_bytes=tuple(map(float, trace.peak_bytes)))))  # fmt: skip
            elif refused is None:
                refused = max(trace.peak_bytes)
            if len(timed) == count:
                break
        self.seconds["simulation"] += time.perf_counter() - start
        if not timed:
            raise OutOfMemory(
                f"the closest plan needs {(refused or 0) / 2**20:.1f} MiB on a device when simulated, it has "
                f"{self.cluster.memory / 2**20:.1f} MiB: {ranked[0].recipe}"
            )
        return sorted(timed, key=lambda c: c.seconds)

    # ---------------------------------------------------------------------------------------------- macro choices

    def counts(self) -> list[int]:
        """Numbers of micro-batches to try: those that leave each a power of two of samples."""
        samples = self.graph.samples
        if any(op.blocked for op in self.graph.ops):
            return [1]
        found, m = [], samples
        while m >= 1:
            found.append(m)
            if m % 2:
                break
            m //= 2
        if found[-1] != 1:
            found.append(1)
        return self.limited(found, "microbatches")

    def limited(self, values: Sequence[int], what: str) -> list[int]:
        """Without what constraints do not allow."""
        for c in self.constraints:
            allowed = getattr(c, what)
            if allowed is not None:
                kept = [v for v in values if v in allowed]
                self.removed[_said(c)] += len(values) - len(kept)
                values = kept
        return list(values)

    def spreads(self, microbatches: int) -> list[Spread]:
        """Powers of two of copies and of devices that share a copy."""
        samples = -(-self.graph.samples // microbatches)
        grain = 1 if self.space.pipeline != "free" else max(1, self.devices // GRAINS)
        return [
            Spread(dp, tp, -(-samples // dp))
            for dp in self.limited(_powers(min(samples, self.devices)), "dp")
            for tp in self.limited(_powers(self.devices // dp), "tp")
            if dp * tp >= grain
        ]

    def everything(self) -> None:
        """Every candidate of the space, with what searches of the spaces that it contains find: so it never loses."""
        for space in SPACES.values():
            if space.name != self.space.name and space.within(self.space):
                inner = _Search(
                    self.graph, self.cluster, self.devices, space, self.constraints, None, self.recompute, self.gap,
                    self.prices,
                )  # fmt: skip
                inner.memory = self.memory
                inner.own()
                self.candidates += inner.candidates
                for what, n in inner.tried.items():
                    self.tried[what] += n
                for what, seconds in inner.seconds.items():
                    self.seconds[what] += seconds
        self.own()

    def own(self) -> None:
        """The space's candidates; first those of one shape, since what they reach rules most others out."""
        # The first stage of ZeRO takes no more time and less memory, so plans without it are not missed.
        stages = sorted({*self.space.zero, *self.space.pipelined_zero} - ({0} if 1 in self.space.zero else set()))
        pairs = [(m, zero) for m in self.counts() for zero in stages]
        alike: list[tuple[float, int, int, _Way, int]] = []
        for m, zero in pairs:
            for way in self.ways(m, zero):
                alone = way.spread.devices == self.devices
                if alone and zero not in self.space.zero:
                    continue
                if not alone and (not self.piped(zero) or way.how == "best" or way.parts):
                    continue
                least = _least([self.merged(way.variant)[0]], self.devices, m, self.memory)
                alike.append((least, m, zero, way, 1 if alone else 64))
        for _, m, zero, way, most in sorted(alike, key=lambda a: a[0]):
            self.consider(m, zero, [way], most_stages=most)
        for m, zero in pairs:
            if self.space.interlaced and self.piped(zero) and zero <= 1:
                self.interlace(m, zero)
        for m, zero in pairs:
            if self.space.pipeline == "free" and self.piped(zero):
                self.consider(m, zero, self.ways(m, zero), free=True)

    def piped(self, zero: int) -> bool:
        """Whether the space has pipelines beside a stage of ZeRO, for a graph whose blocks run so often."""
        pipelined = self.space.pipeline != "none" and zero in self.space.pipelined_zero
        return pipelined and (self.space.recycled or not self.recycled)

    def ways(self, m: int, zero: int) -> list[_Way]:
        """The ways to run a stage; those that another beats in every unit are left out."""
        if (m, zero, self.memory) in self.kept:
            return self.kept[m, zero, self.memory]
        start = time.perf_counter()
        found: list[_Way] = []
        prices = self.prices
        for spread in self.spreads(m):
            if zero > 1 and spread.dp == 1:
                continue
            hows = [h for h in self.space.intra if spread.tp > 1 or h == "megatron"]
            for how in hows:
                chosen = prices.chosen(spread, m, how)
                costs = prices.costs(spread, m, chosen, how, {})
                found += [
                    _Way(prices.variant(costs, spread, kept, zero), spread, how, kept, {}, chosen)
                    for kept in self.recompute
                ]
            if self.space.co_shard:
                for kept in self.recompute:
                    if kept != "none":
                        found += self.shards(spread, m, zero, kept)
        self.tried["variants"] += len(found)
        kept_ways = self.kept[m, zero, self.memory] = _undominated(found)
        self.seconds["variants"] += time.perf_counter() - start
        return kept_ways

    def shards(self, spread: Spread, m: int, zero: int, kept: str) -> list[_Way]:
        """Co-shard in the units that need more than some bytes meanwhile, with as few parts as bring them under it."""
        prices = self.prices
        plain_cuts = prices.chosen(spread, m, "megatron")
        plain = prices.costs(spread, m, plain_cuts, "megatron", {})
        by_parts: dict[int, tuple[dict[int, str], dict[int, int], list[UnitCost]]] = {}
        for k in PARTS:
            cuts = prices.co_sharded(spread, m, k)
            if cuts is not None:
                by_parts[k] = (*cuts, prices.costs(spread, m, cuts[0], ("co-shard", k), cuts[1]))
        at = 1 if kept == "segment" else 2
        caps = sorted({round(c.transient[at]) for *_, costs in by_parts.values() for c in costs if
                       c.transient[at] <= self.memory})  # fmt: skip
        found, seen = [], set()
        for cap in caps:
            kinds: dict[int, int] = {}
            for i, unit in enumerate(prices.units):
                if plain[i].transient[at] <= cap:
                    continue
                for k, (*_, costs) in by_parts.items():
                    if costs[i].transient[at] <= cap:
                        kinds[unit.kind] = k
                        break
                else:
                    break
            else:
                key = tuple(sorted(kinds.items()))
                if not kinds or key in seen:
                    continue
                seen.add(key)
                chosen, parts = dict(plain_cuts), dict[int, int]()
                for unit in prices.units:
                    if unit.kind in kinds:
                        own, many, _ = by_parts[kinds[unit.kind]]
                        chosen.update({op.id: own.get(op.id, "") for op in unit.ops})
                        parts.update({op.id: many[op.id] for op in unit.ops if op.id in many})
                costs = prices.costs(spread, m, chosen, ("co-shard", key), parts)
                found.append(_Way(prices.variant(costs, spread, kept, zero), spread, "co-shard", kept, parts, chosen))
        return found

    def consider(self, m: int, zero: int, ways: list[_Way], *, most_stages: int = 64, free: bool = False) -> None:
        """Cut, and time what comes out."""
        if not ways:
            return
        best = min((c.seconds for c in self.candidates), default=inf)
        merged = [self.merged(w.variant) for w in ways]
        variants = [v for v, _ in merged]
        judged = free or self.space.pipeline != "free"
        least = _least(variants, self.devices, m, self.memory)
        if least >= best * (1 - self.gap):
            if judged:
                self.bounds.append(least)
            return
        start = time.perf_counter()
        found = cut(variants, self.devices, m, self.memory, most_stages=most_stages, gap=self.gap, known=best)
        self.tried["cuts"] += 1
        self.seconds["cuts"] += time.perf_counter() - start
        if found is None:
            if judged and best < inf:
                self.bounds.append(best)
            return
        if judged:
            self.bounds.append(found.bound)
        self.add(self.recipe(found, ways, m, zero, merged[0][1]))

    def merged(self, variant: Variant) -> tuple[Variant, list[int]]:
        """Units that must stay together as one; and the first unit of each, with the end."""
        names = [u.name for u in self.prices.units]
        joined = set[int]()
        for c in self.constraints:
            unknown = [n for n in c.together if n not in names]
            if unknown:
                raise InvalidPlan(f"together: no block {unknown[0]!r}: there are {', '.join(names[:6])} ...")
            if c.together:
                at = [names.index(n) for n in c.together]
                joined.update(range(min(at) + 1, max(at) + 1))
        starts = [i for i in range(len(names)) if i not in joined]
        if not joined:
            return variant, [*range(len(names) + 1)]
        seconds, fixed, flying = (np.add.reduceat(x, starts) for x in (variant.seconds, variant.fixed, variant.flying))
        top = np.maximum.reduceat(variant.transient, starts)
        return Variant(variant.devices, seconds, fixed, flying, top, variant.name), [*starts, len(names)]

    def recipe(self, found: Cut, ways: Sequence[_Way], m: int, zero: int, starts: Sequence[int]) -> Recipe:
        """Written down."""
        usable = [w for w in ways if w.spread.devices <= self.devices]
        stages = []
        for stage in found.stages:
            way = usable[stage.variant]
            stages.append(
                StageRecipe(
                    starts[stage.first], starts[stage.last], way.spread.dp, way.spread.tp,
                    by_key(self.prices.units, way.chosen), way.recompute, by_key(self.prices.units, way.parts),
                )
            )  # fmt: skip
        return Recipe(tuple(stages), m, zero, space=self.space.name)

    def add(self, recipe: Recipe) -> None:
        """Time a candidate; keep it if it fits."""
        start = time.perf_counter()
        estimate = self.prices.estimate(recipe)
        self.tried["candidates"] += 1
        self.seconds["estimates"] += time.perf_counter() - start
        if estimate.peak <= self.memory:
            self.candidates.append(Candidate(recipe, estimate))

    def interlace(self, m: int, zero: int) -> None:
        """Stages of equal shape whose entering and leaving layers are cut over all devices."""
        for spread in self.spreads(m):
            count = self.devices // spread.devices
            if count * spread.devices != self.devices or count < 2 or count > len(self.prices.units):
                continue
            empty = tuple(StageRecipe(i, i + 1, spread.dp, spread.tp) for i in range(count))
            probe = Recipe(empty, m, zero, interlaced=True, space=self.space.name)
            inner = self.prices.shared(probe)
            if not inner.apart or not all(self.prices.allows(i, n) for i, n in inner.apart.items()):
                return
            times, bytes_, _ = inner.wide_layers(probe)
            best = min((c.seconds for c in self.candidates), default=inf)
            for how in [h for h in self.space.intra if spread.tp > 1 or h == "megatron"]:
                chosen = inner.chosen(spread, m, how)
                costs = inner.costs(spread, m, chosen, how, {})
                for kept in self.recompute:
                    v, starts = self.merged(inner.variant(costs, spread, kept, zero))
                    if (m - 1) * (float(v.seconds.sum()) / count + sum(times)) > best:
                        continue
                    start = time.perf_counter()
                    found = cut([v], self.devices, m, self.memory - bytes_, gap=self.gap, lockstep=True)
                    self.tried["cuts"] += 1
                    self.seconds["cuts"] += time.perf_counter() - start
                    if found is None or len(found.stages) != count:
                        continue
                    stages = tuple(
                        StageRecipe(
                            starts[s.first], starts[s.last], spread.dp, spread.tp, by_key(inner.units, chosen), kept
                        )
                        for s in found.stages
                    )
                    self.add(replace(probe, stages=stages))

    def too_large(self) -> OutOfMemory:
        """What the closest plan lacks: the least memory, within 2 %, under which there is a plan."""
        low = high = self.cluster.memory
        closest: Candidate | None = None
        for _ in range(40):
            high *= 2
            self.memory, self.candidates = high, []
            self.everything()
            if self.candidates:
                break
            low = high
        for _ in range(8):
            if not self.candidates or high <= 1.02 * low:
                break
            closest = min(self.candidates, key=lambda c: c.estimate.peak)
            high = min(high, closest.estimate.peak)
            middle = (low * high) ** 0.5
            self.memory, self.candidates = middle, []
            self.everything()
            if self.candidates:
                high = middle
            else:
                low = middle
                self.candidates = [closest]
        if self.candidates:
            closest = min(self.candidates, key=lambda c: c.estimate.peak)
        if closest is None:
            return OutOfMemory(f"no plan of the {self.space.name} space, on any memory")
        peak, have = closest.estimate.peak, self.cluster.memory
        return OutOfMemory(
            f"no plan of the {self.space.name} space fits {self.devices} devices of {have / 2**20:.3f} MiB; the "
            f"closest needs {peak / 2**20:.3f} MiB, {(peak - have) / 2**20:.3f} MiB more: {closest.recipe}"
        )


def _said(c: Constraint) -> str:
    if c.idents is not None:
        return f"only({c.pattern!r}, {list(c.idents)})"
    if c.together:
        return f"together({', '.join(c.together)})"
    if c.microbatches is not None:
        return f"microbatches{c.microbatches}"
    return f"divide(tp={c.tp}, dp={c.dp})"


def _powers(most: int) -> list[int]:
    found, n = [], 1
    while n <= most:
        found.append(n)
        n *= 2
    return found


def _least(variants: Sequence[Variant], devices: int, m: int, memory: float) -> float:
    """No cut takes less: units that fit alone, each at its fastest, and their device-seconds spread without loss."""
    fits = [v.fixed + v.flying + v.transient <= memory for v in variants]
    seconds = np.min([np.where(fit, v.seconds, inf) for v, fit in zip(variants, fits, strict=True)], 0)
    work = np.min([np.where(fit, v.seconds * v.devices, inf) for v, fit in zip(variants, fits, strict=True)], 0)
    return (m - 1) * max(float(work.sum()) / devices, float(seconds.max())) + float(seconds.sum())


def _undominated(ways: Sequence[_Way]) -> list[_Way]:
    """Without those that another of as many devices beats or equals in time and memory of every unit."""
    kept: list[_Way] = []
    for way in sorted(ways, key=lambda w: float(w.variant.seconds.sum())):
        v = way.variant
        for other in kept:
            w = other.variant
            if w.devices == v.devices and all(
                (a <= b * (1 + 1e-12)).all()
                for a, b in ((w.seconds, v.seconds), (w.fixed, v.fixed), (w.flying, v.flying),
                             (w.transient, v.transient))
            ):  # fmt: skip
                break
        else:
            kept.append(way)
    return kept
