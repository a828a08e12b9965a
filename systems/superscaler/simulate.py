"""How long a plan takes and how much memory it needs, without running it.

The programs of all ranks are played with a clock for each device: a communication starts when all its participants have
come to it, sends do not hold up their sender, and the link of a node carries one transfer after another, so that those
of its devices share it. Memory is traced through the same lists: parameters, gradients, optimizer state, what autograd
keeps, what an operator needs meanwhile, buffers until they are freed.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from systems.superscaler.cluster import Cluster
from systems.superscaler.costs import Pricing
from systems.superscaler.errors import InvalidPlan, OutOfMemory, Stuck
from systems.superscaler.layout import elements_sent
from systems.superscaler.plan import Plan
from systems.superscaler.program import Collective, Compute, Flat, Free, Instruction, Recv, Send, Update, Work, writes

__all__ = ["Event", "Trace", "check_memory", "simulate"]

OPTIMIZER_STATES = 2
"""Tensors that the optimizer keeps for each parameter, in its type: Adam's two moments."""


@dataclass(frozen=True)
class Event:
    """A bar of the timeline: seconds on a device; kind: forward, backward, recompute, update or the communication's."""

    device: int
    start: float
    end: float
    kind: str
    name: str
    microbatch: int = -1


@dataclass(frozen=True)
class Trace:
    """A simulated step. peak_bytes and sent_bytes: per rank; largest: (name, bytes) at the peak of the fullest rank."""

    step_seconds: float
    events: tuple[Event, ...]
    peak_bytes: tuple[int, ...]
    peak_at: tuple[float, ...]
    largest: tuple[tuple[str, int], ...]
    sent_bytes: tuple[float, ...]
    devices: int

    @cached_property
    def busy(self) -> tuple[float, ...]:
        """Seconds that each device computes."""
        found = [0.0] * self.devices
        for e in self.events:
            if e.kind in ("forward", "backward", "recompute"):
                found[e.device] += e.end - e.start
        return tuple(found)

    @property
    def bubble_fraction(self) -> float:
        """The share of the devices' time in which they do not compute."""
        total = self.step_seconds * self.devices
        return 1.0 - sum(self.busy) / total if total else 0.0

    def text(self, width: int = 80) -> str:
        """A row of characters for each device: the micro-batch's digit in forward, a letter in backward, - waits."""
        from systems.superscaler.drawing import text

        return text(self, width)

    def draw(self, path: str) -> None:
        """Write an interactive timeline (HTML)."""
        from systems.superscaler.drawing import draw

        draw(self, path)

    def chrome(self, path: str) -> None:
        """Write a trace for Perfetto or chrome://tracing (JSON)."""
        from systems.superscaler.drawing import chrome

        chrome(self, path)


class _Memory:
    """The live bytes of a device and their highest point."""

    def __init__(self, plan: Plan, device: int) -> None:
        self.plan = plan
        self.live: dict[tuple[str, int], int] = {}
        self.total = self.peak = 0
        self.peak_at = 0.0
        self.largest: list[tuple[str, int]] = []
        for p in plan.parameters:
            if p.device == device:
                weight = p.buffer if p.shard is None else p.shard
                size = self.size(weight)
                if p.shard is None or plan.zero < 3:
                    self.add(("buffer", p.buffer), self.size(p.buffer), 0.0)
                if p.shard is not None:
                    self.add(("buffer", p.shard), size, 0.0)
                if p.gradient is not None:
                    self.add(("optimizer", weight), OPTIMIZER_STATES * size, 0.0)

    def size(self, buffer: int) -> int:
        b = self.plan.buffers[buffer]
        return b.elements * self.plan.graph.tensors[b.tensor].item

    def add(self, key: tuple[str, int], size: int, at: float) -> None:
        if key in self.live:
            return
        self.live[key] = size
        self.total += size
        if self.total > self.peak:
            self.peak, self.peak_at = self.total, at
            self.largest = sorted(((self.name(k), n) for k, n in self.live.items()), key=lambda x: -x[1])[:5]

    def drop(self, key: tuple[str, int]) -> None:
        self.total -= self.live.pop(key, 0)

    def name(self, key: tuple[str, int]) -> str:
        if key[0] in ("saved", "meanwhile"):
            work = self.plan.works[key[1]]
            return f"activations of {self.plan.graph.ops[work.calls[0].op].name}, micro-batch {work.microbatch}"
        b = self.plan.buffers[key[1]]
        what = "optimizer state" if key[0] == "optimizer" else b.kind
        return f"{what} of {self.plan.graph.tensors[b.tensor].name}"


def simulate(plan: Plan, cluster: Cluster) -> Trace:
    """A step of a plan on a cluster. Raises InvalidPlan for too few devices, Stuck for programs that cannot end."""
    if plan.devices > cluster.devices:
        raise InvalidPlan(f"the plan is for {plan.devices} devices, the cluster has {cluster.devices}")
    return _Simulation(plan, cluster).run()


def work_seconds(plan: Plan, cluster: Cluster) -> dict[int, float]:
    """Work -> seconds of its forward."""
    simulation = _Simulation(plan, cluster)
    return {number: simulation.seconds(work)[0] for number, work in plan.works.items()}


def update_seconds(plan: Plan, cluster: Cluster, rank: int) -> float:
    """Seconds of a rank's optimizer step."""
    simulation = _Simulation(plan, cluster)
    return sum(simulation.update_seconds(rank, i) for i in plan.programs[rank] if isinstance(i, Update))


class _Simulation:
    def __init__(self, plan: Plan, cluster: Cluster) -> None:
        self.plan, self.cluster = plan, cluster
        self.clock = [0.0] * plan.devices
        self.at = [0] * plan.devices
        self.memory = [_Memory(plan, d) for d in range(plan.devices)]
        self.events: list[Event] = []
        self.sent = [0.0] * plan.devices
        self.arrived: dict[int, float] = {}
        self.link_free: dict[tuple[int, int], float] = {}
        self.waiting: dict[int, Collective | Flat | Recv] = {}
        self.node_free: dict[int, float] = {}
        self.queue: list[tuple[float, int]] = []
        self.costs: dict[tuple[object, ...], tuple[float, float, float]] = {}
        self.pricing = Pricing(plan.graph, fused=cluster.fused_attention)

    def run(self) -> Trace:
        self.queue = [(0.0, rank) for rank in range(self.plan.devices)]
        while self.queue:
            at, rank = heapq.heappop(self.queue)
            if rank in self.waiting:
                self.resume(rank)
            elif at < self.clock[rank]:  # looked at twice: its own time has not come
                self.again(rank)
            else:
                self.advance(rank)
        if self.waiting:
            raise Stuck("; ".join(f"rank {r} waits in {self.plan.say(i)}" for r, i in self.waiting.items()))
        step = max(self.clock, default=0.0)
        fullest = max(self.memory, key=lambda m: m.peak)
        return Trace(
            step, tuple(self.events), tuple(m.peak for m in self.memory), tuple(m.peak_at for m in self.memory),
            tuple(fullest.largest), tuple(self.sent), self.plan.devices,
        )  # fmt: skip

    def again(self, rank: int) -> None:
        """Look at a rank when all that happens before its clock has happened: links are given in order of time."""
        heapq.heappush(self.queue, (self.clock[rank], rank))

    def advance(self, rank: int) -> None:
        """Run a rank up to its next communication, and that if its time has come."""
        program = self.plan.programs[rank]
        first = True
        while self.at[rank] < len(program):
            instruction = program[self.at[rank]]
            if isinstance(instruction, Collective | Flat | Recv | Send) and not first:
                self.again(rank)
                return
            if isinstance(instruction, Collective | Flat | Recv):
                self.waiting[rank] = instruction
                self.resume(rank)
                return
            self.local(rank, instruction)
            self.at[rank] += 1
            first = False

    def resume(self, rank: int) -> None:
        """Go on behind a communication, if it can be had."""
        instruction = self.waiting[rank]
        if isinstance(instruction, Recv):
            if instruction.task in self.arrived:
                start = self.clock[rank]
                self.clock[rank] = max(start, self.arrived[instruction.task])
                self.finish(rank, instruction, start, "recv")
            return
        group = instruction.group
        if any(getattr(self.waiting.get(r), "task", None) != instruction.task for r in group):
            return
        owns = {r: self.waiting[r] for r in group}
        sizes = {
            r: float(sum(self.memory[r].size(s) for s in (i.sources if isinstance(i, Collective) else (i.source,))))
            for r, i in owns.items() if isinstance(i, Collective | Flat)
        }  # fmt: skip
        kind = instruction.kind.removeprefix("flat_")
        largest = max(sizes.values())
        start = max(self.clock[r] for r in group)
        begin = self.link(group, start, self.cluster.between_seconds(kind, group, largest))
        end = begin + self.cluster.collective_seconds(kind, group, largest)
        for r in group:
            self.sent[r] += elements_sent(kind, len(group), sizes[r])  # type: ignore[arg-type]
            self.clock[r] = end
            self.finish(r, owns[r], start, kind)

    def link(self, group: Iterable[int], start: float, seconds: float) -> float:
        """When a transfer between nodes may begin; their links are taken for so long."""
        if not seconds:
            return start
        nodes = {self.cluster.node(d) for d in group}
        begin = max([start, *(self.node_free.get(n, 0.0) for n in nodes)])
        for n in nodes:
            self.node_free[n] = begin + seconds
        return begin

    def finish(self, rank: int, instruction: Instruction, start: float, kind: str) -> None:
        self.events.append(Event(rank, start, self.clock[rank], kind, self.plan.say(instruction)))
        del self.waiting[rank]
        self.at[rank] += 1
        for b in writes(instruction, self.plan.works):
            self.memory[rank].add(("buffer", b), self.memory[rank].size(b), self.clock[rank])
        self.again(rank)

    def local(self, rank: int, instruction: Instruction) -> None:
        memory, start = self.memory[rank], self.clock[rank]
        if isinstance(instruction, Send):
            size = float(memory.size(instruction.source))
            pair = (rank, instruction.peer)
            begin = max(start, self.link_free.get(pair, 0.0))
            if self.cluster.crosses(pair):
                begin = self.link(pair, begin, size / self.cluster.between)
            end = begin + self.cluster.send_seconds(rank, instruction.peer, size)
            self.link_free[pair] = end
            self.arrived[instruction.task] = end
            self.sent[rank] += size
            if instruction.peer in self.waiting:
                heapq.heappush(self.queue, (end, instruction.peer))
            return
        if isinstance(instruction, Free):
            for b in instruction.buffers:
                memory.drop(("buffer", b))
            return
        if isinstance(instruction, Compute):
            work = self.plan.works[instruction.work]
            self.compute(rank, instruction, work)
        elif isinstance(instruction, Update):
            self.clock[rank] += self.update_seconds(rank, instruction)
            self.events.append(Event(rank, start, self.clock[rank], "update", "update"))
        for b in writes(instruction, self.plan.works):
            memory.add(("buffer", b), memory.size(b), self.clock[rank])

    def update_seconds(self, rank: int, instruction: Update) -> float:
        """Weights, gradients and two moments are read or written."""
        return self.cluster.compute_seconds(0.0, sum(4 * self.memory[rank].size(w) for w, _ in instruction.pairs))

    def compute(self, rank: int, instruction: Compute, work: Work) -> None:
        start, memory = self.clock[rank], self.memory[rank]
        key = (work.segment, tuple((c.op, tuple(sorted(c.ranges.items()))) for c in work.calls))
        if key not in self.costs:
            self.costs[key] = self.seconds(work)
        once, kept, workspace = self.costs[key]
        factor = 2.0 if instruction.kind == "backward" else 1.0
        self.clock[rank] = start + factor * once
        name = self.plan.graph.ops[work.calls[0].op].name
        self.events.append(Event(rank, start, self.clock[rank], instruction.kind, name, work.microbatch))
        saved, meanwhile = ("saved", work.id), ("meanwhile", work.id)
        keep = instruction.kind == "recompute" or (
            instruction.kind == "forward" and not work.recompute and work.has_backward
        )
        if keep:
            memory.add(saved, int(kept), self.clock[rank])
        memory.add(meanwhile, int(workspace), self.clock[rank])
        memory.drop(meanwhile)
        if instruction.kind == "backward":
            memory.drop(saved)

    def seconds(self, work: Work) -> tuple[float, float, float]:
        """Seconds forward, bytes kept, most bytes that an operator needs meanwhile."""
        total, kept, workspace = 0.0, 0.0, 0.0
        leaving = {o.slot for o in work.outputs}
        for call in work.calls:
            cost = self.pricing.cost(self.plan.graph.ops[call.op], call.ranges)
            if cost.touched:
                total += self.cluster.compute_seconds(cost.flops, cost.touched)
            kept += 0.0 if call.output in leaving else cost.kept  # a buffer holds that, until its last reader is done
            workspace = max(workspace, cost.workspace)
        return total, kept, workspace


def check_memory(plan: Plan, cluster: Cluster) -> None:
    """Raise OutOfMemory with the peak, its time and the five largest tensors where a device has not enough."""
    trace = simulate(plan, cluster)
    fullest = max(range(plan.devices), key=lambda d: trace.peak_bytes[d])
    peak = trace.peak_bytes[fullest]
    if peak > cluster.memory:
        names = "; ".join(f"{name}: {size / 2**20:.1f} MiB" for name, size in trace.largest)
        raise OutOfMemory(
            f"device {fullest} needs {peak / 2**20:.1f} MiB at {trace.peak_at[fullest]:.4g} s, it has "
            f"{cluster.memory / 2**20:.1f} MiB; largest then: {names}"
        )
