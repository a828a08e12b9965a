"""How long a plan takes and how much memory it needs, without running it.

The programs of all ranks are played with a clock for each device: a communication starts when all its participants have
come to it, sends do not hold up their sender, and links inside and between nodes have their own times. Memory is traced
through the same lists: parameters, gradients, optimizer state, what autograd keeps, buffers until they are freed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from systems.superscaler.cluster import Cluster
from systems.superscaler.errors import InvalidPlan, OutOfMemory, Stuck
from systems.superscaler.layout import elements_sent
from systems.superscaler.materialize import Plan
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
        if key[0] == "saved":
            work = self.plan.works[key[1]]
            return f"activations of {self.plan.graph.ops[work.calls[0].op].name}, micro-batch {work.microbatch}"
        b = self.plan.buffers[key[1]]
        what = "optimizer state" if key[0] == "optimizer" else b.kind
        return f"{what} of {self.plan.graph.tensors[b.tensor].name}"


def saved_bytes(plan: Plan, work: Work) -> int:
    """What autograd keeps of a work: about the output of every operator in it."""
    total = 0
    for call in work.calls:
        op = plan.graph.ops[call.op]
        t = plan.graph.tensors[op.output]
        n = 1
        for lo, hi in op.annotation.box(op.annotation.outputs[0], call.ranges):
            n *= hi - lo
        total += n * t.item
    return total


def simulate(plan: Plan, cluster: Cluster) -> Trace:
    """A step of a plan on a cluster. Raises InvalidPlan for too few devices, Stuck for programs that cannot end."""
    if plan.devices > cluster.devices:
        raise InvalidPlan(f"the plan is for {plan.devices} devices, the cluster has {cluster.devices}")
    return _Simulation(plan, cluster).run()


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
        self.costs: dict[tuple[object, ...], tuple[float, float]] = {}

    def run(self) -> Trace:
        ready = deque(range(self.plan.devices))
        while ready:
            rank = ready.popleft()
            if rank in self.waiting and not self.resume(rank, ready):
                continue
            self.advance(rank, ready)
        if self.waiting:
            raise Stuck("; ".join(f"rank {r} waits in {self.plan.say(i)}" for r, i in self.waiting.items()))
        step = max(self.clock, default=0.0)
        fullest = max(self.memory, key=lambda m: m.peak)
        return Trace(
            step, tuple(self.events), tuple(m.peak for m in self.memory), tuple(m.peak_at for m in self.memory),
            tuple(fullest.largest), tuple(self.sent), self.plan.devices,
        )  # fmt: skip

    def advance(self, rank: int, ready: deque[int]) -> None:
        program = self.plan.programs[rank]
        while self.at[rank] < len(program):
            instruction = program[self.at[rank]]
            if isinstance(instruction, Collective | Flat | Recv):
                self.waiting[rank] = instruction
                if not self.resume(rank, ready):
                    return
                continue
            self.local(rank, instruction, ready)
            self.at[rank] += 1

    def resume(self, rank: int, ready: deque[int]) -> bool:
        """Go on behind a communication, if it can be had."""
        instruction = self.waiting[rank]
        if isinstance(instruction, Recv):
            if instruction.task not in self.arrived:
                return False
            start = self.clock[rank]
            self.clock[rank] = max(start, self.arrived[instruction.task])
            self.finish(rank, instruction, start, "recv")
            return True
        group = instruction.group
        if any(getattr(self.waiting.get(r), "task", None) != instruction.task for r in group):
            return False
        start = max(self.clock[r] for r in group)
        for r in group:
            own = self.waiting[r]
            assert isinstance(own, Collective | Flat)
            sources = own.sources if isinstance(own, Collective) else (own.source,)
            size = float(sum(self.memory[r].size(s) for s in sources))
            kind = own.kind.removeprefix("flat_")
            seconds = self.cluster.collective_seconds(kind, group, size)
            self.sent[r] += elements_sent(kind, len(group), size)  # type: ignore[arg-type]
            self.clock[r] = start + seconds
            self.finish(r, own, start, kind)
            if r != rank:
                ready.append(r)
        return True

    def finish(self, rank: int, instruction: Instruction, start: float, kind: str) -> None:
        self.events.append(Event(rank, start, self.clock[rank], kind, self.plan.say(instruction)))
        del self.waiting[rank]
        self.at[rank] += 1
        for b in writes(instruction, self.plan.works):
            self.memory[rank].add(("buffer", b), self.memory[rank].size(b), self.clock[rank])

    def local(self, rank: int, instruction: Instruction, ready: deque[int]) -> None:
        memory, start = self.memory[rank], self.clock[rank]
        if isinstance(instruction, Send):
            size = float(memory.size(instruction.source))
            link = (rank, instruction.peer)
            begin = max(start, self.link_free.get(link, 0.0))
            end = begin + self.cluster.send_seconds(rank, instruction.peer, size)
            self.link_free[link] = end
            self.arrived[instruction.task] = end
            self.sent[rank] += size
            if instruction.peer in self.waiting:
                ready.append(instruction.peer)
            return
        if isinstance(instruction, Free):
            for b in instruction.buffers:
                memory.drop(("buffer", b))
            return
        if isinstance(instruction, Compute):
            work = self.plan.works[instruction.work]
            self.compute(rank, instruction, work)
        elif isinstance(instruction, Update):
            touched = sum(4 * memory.size(w) for w, _ in instruction.pairs)
            self.clock[rank] += self.cluster.compute_seconds(0.0, touched)
            self.events.append(Event(rank, start, self.clock[rank], "update", "update"))
        for b in writes(instruction, self.plan.works):
            memory.add(("buffer", b), memory.size(b), self.clock[rank])

    def compute(self, rank: int, instruction: Compute, work: Work) -> None:
        start, memory = self.clock[rank], self.memory[rank]
        key = (tuple((c.op, tuple(sorted(c.ranges.items()))) for c in work.calls),)
        if key not in self.costs:
            self.costs[key] = self.seconds(work)
        once, kept = self.costs[key]
        factor = 2.0 if instruction.kind == "backward" else 1.0
        self.clock[rank] = start + factor * once
        name = self.plan.graph.ops[work.calls[0].op].name
        self.events.append(Event(rank, start, self.clock[rank], instruction.kind, name, work.microbatch))
        saved = ("saved", work.id)
        if instruction.kind == "recompute" or (
            instruction.kind == "forward" and not work.recompute and work.has_backward
        ):
            memory.add(saved, int(kept), self.clock[rank])
        elif instruction.kind == "backward":
            memory.drop(saved)

    def seconds(self, work: Work) -> tuple[float, float]:
        total = 0.0
        for call in work.calls:
            op = self.plan.graph.ops[call.op]
            out = op.annotation.box(op.annotation.outputs[0], call.ranges)
            share, touched = 1.0, 0.0
            for name, (lo, hi) in call.ranges.items():
                share *= (hi - lo) / op.annotation.sizes[name]
            touched += _bytes(out, self.plan.graph.tensors[op.output].item)
            for v, dims in zip(op.inputs, op.annotation.inputs, strict=True):
                touched += _bytes(op.annotation.box(dims or (), call.ranges), self.plan.graph.tensors[v.tensor].item)
            total += self.cluster.compute_seconds(op.flops * share, touched)
        return total, float(saved_bytes(self.plan, work))


def _bytes(box: Sequence[tuple[int, int]], item: int) -> float:
    n = float(item)
    for lo, hi in box:
        n *= hi - lo
    return n


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
