"""The library of plans, each a few lines over `op_trans`, `op_assign` and `op_order`.

Known ones: data parallelism, ZeRO, Megatron's tensor parallelism, sequence parallelism, pipelines (GPipe, 1F1B,
interleaved) and their hybrids, dynamic axial parallelism. New ones: co-shard, the interlaced pipeline, 3F1B. Each
returns an `SProgram`, to be changed further or built.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from systems.superscaler.errors import InvalidPlan
from systems.superscaler.following import axes, columns_and_rows, home, stages
from systems.superscaler.graph import Graph, Op
from systems.superscaler.sprogram import Replicate, Split, SProgram, Task

__all__ = [
    "co_shard",
    "dap",
    "data_parallel",
    "gpipe",
    "interlaced",
    "interleaved",
    "megatron",
    "one_f_one_b",
    "sequence_parallel",
    "serial",
    "tensor_parallel",
    "three_f_one_b",
    "zero",
]

Schedule = Literal["gpipe", "1f1b"]
Slot = tuple[int, int, Literal["F", "B"]]
"""(chunk, micro-batch, direction): a line of a device's schedule."""


def serial(graph: Graph, *, microbatches: int = 1) -> SProgram:
    """Everything on one device."""
    return data_parallel(graph, 1, microbatches=microbatches)


def data_parallel(graph: Graph, devices: int, *, microbatches: int = 1) -> SProgram:
    """Every operator by samples; what has no batch is replicated."""
    s = SProgram(graph, devices)
    s.microbatch(microbatches)
    for op in graph.ops:
        s.op_assign(s.op_trans(op, {"b": devices}), range(devices))
    return s


def zero(graph: Graph, devices: int, *, stage: int = 3, microbatches: int = 1) -> SProgram:
    """Data parallelism with optimizer state (1), gradients (2) and parameters (3) split over the devices."""
    s = data_parallel(graph, devices, microbatches=microbatches)
    s.zero(stage)
    return s


def tensor_parallel(graph: Graph, devices: int, *, microbatches: int = 1, vocabulary: bool = True) -> SProgram:
    """Megatron's: columns then rows of every attention and feed-forward, vocabulary of embedding and loss."""
    return megatron(graph, 1, devices, 1, microbatches=microbatches, vocabulary=vocabulary)


def spread(s: SProgram, op: Op, devices: Sequence[int], dp: int, name: str | None, *, parts: int = 1) -> None:
    """Cut an operator by samples in dp, then by an identifier over the rest (or replicate); `parts` on each device."""
    tp = len(devices) // dp
    found = s.op_trans(op, {"b": dp})
    cut = [p for part in found for p in s.op_trans(part, {name: tp} if name else Replicate(tp))]
    for part, device in zip(cut, devices, strict=True):
        small = s.op_trans(part, Split(name, parts, colocate=True)) if name and parts > 1 else [part]
        s.op_assign(small, device)


def megatron(
    graph: Graph, dp: int, tp: int, pp: int, *, microbatches: int = 1, schedule: Schedule = "1f1b",
    vocabulary: bool = True, zero_stage: int = 0, recompute: bool = False,
) -> SProgram:  # fmt: skip
    """Data x tensor x pipeline parallelism: stage s is on devices s dp tp to (s + 1) dp tp - 1."""
    s = SProgram(graph, dp * tp * pp)
    s.microbatch(microbatches)
    s.zero(zero_stage)
    at = stages(graph, pp)
    cuts: Mapping[int, str] = columns_and_rows(graph, tp, vocabulary=vocabulary) if tp > 1 else {}
    for op in graph.ops:
        base = at[op.id] * dp * tp
        spread(s, op, range(base, base + dp * tp), dp, cuts.get(op.id))
    if recompute:
        recompute_blocks(s)
    if pp > 1:
        order(s, at, [one_f_one_b_order, gpipe_order][schedule == "gpipe"](pp, microbatches))
    return s


def gpipe(graph: Graph, pp: int, *, microbatches: int = 4) -> SProgram:
    """A pipeline that runs all forwards, then all backwards."""
    return megatron(graph, 1, 1, pp, microbatches=microbatches, schedule="gpipe")


def one_f_one_b(graph: Graph, pp: int, *, microbatches: int = 4) -> SProgram:
    """A pipeline that runs a backward as soon as it can, so a stage holds at most pp micro-batches."""
    return megatron(graph, 1, 1, pp, microbatches=microbatches)


def interleaved(graph: Graph, pp: int, *, chunks: int = 2, microbatches: int = 4) -> SProgram:
    """1F1B with several chunks of the model on each device: a smaller bubble for more messages."""
    if microbatches % pp:
        raise InvalidPlan(f"{microbatches} micro-batches are no multiple of {pp} stages: interleaving needs one")
    s = SProgram(graph, pp)
    s.microbatch(microbatches)
    at = stages(graph, pp * chunks)
    for op in graph.ops:
        s.op_assign(op, at[op.id] % pp)
    order(s, at, interleaved_order(pp, chunks, microbatches))
    return s


def sequence_parallel(graph: Graph, tp: int, *, microbatches: int = 1) -> SProgram:
    """Tensor parallelism whose norms, dropouts and residuals are cut along the sequence instead of replicated."""
    s = SProgram(graph, tp)
    s.microbatch(microbatches)
    cuts = columns_and_rows(graph, tp)
    rest = axes(graph, tp, [op for op in graph.ops if op.id not in cuts], known=cuts)
    for op in graph.ops:
        spread(s, op, range(tp), 1, cuts.get(op.id) or rest.get(op.id))
    return s


def dap(graph: Graph, devices: int, *, dp: int = 1, microbatches: int = 1) -> SProgram:
    """Dynamic axial parallelism: each operator along an axis that it does not mix, weights replicated."""
    s = SProgram(graph, devices * dp)
    s.microbatch(microbatches)
    cuts = axes(graph, devices)
    for op in graph.ops:
        spread(s, op, range(devices * dp), dp, cuts.get(op.id))
    return s


def co_shard(
    graph: Graph, parts: int, *, dp: int = 1, tp: int = 1, pp: int = 1, microbatches: int = 1,
    blocks: Sequence[int] | None = None,
) -> SProgram:  # fmt: skip
    """Attention by heads and feed-forward by hidden units in `parts` on each device, one after another, recomputed.

    blocks: those to treat, all by default; where activations peak. The others are as in `megatron`.
    """
    s = SProgram(graph, dp * tp * pp)
    s.microbatch(microbatches)
    at = stages(graph, pp)
    cuts = columns_and_rows(graph, tp * parts, vocabulary=False)
    plain = columns_and_rows(graph, tp) if tp > 1 else {}
    for op in graph.ops:
        base = at[op.id] * dp * tp
        chosen = op.block >= 0 and (blocks is None or op.block in blocks) and op.id in cuts
        name = cuts[op.id] if chosen else plain.get(op.id)
        spread(s, op, range(base, base + dp * tp), dp, name, parts=parts if chosen else 1)
    s.recompute(op for op in graph.ops if op.block >= 0 and (blocks is None or op.block in blocks))
    if pp > 1:
        order(s, at, one_f_one_b_order(pp, microbatches))
    return s


def interlaced(graph: Graph, pp: int, *, tp: int = 1, microbatches: int = 4) -> SProgram:
    """Layers in stages; embedding and output head over all devices, between the stage tasks of other micro-batches.

    All stages run a forward, then all a backward, and shared layers between these: no stage waits in the steady state.
    """
    devices = pp * tp
    s = SProgram(graph, devices)
    s.microbatch(microbatches)
    at = stages(graph, pp)
    wide = {i: n for i, n in columns_and_rows(graph, devices).items() if graph.ops[i].block < 0}
    cuts = columns_and_rows(graph, tp, vocabulary=False) if tp > 1 else {}
    for op in graph.ops:
        if op.id in wide:
            spread(s, op, range(devices), 1, wide[op.id])
        else:
            spread(s, op, range(at[op.id] * tp, at[op.id] * tp + tp), 1, cuts.get(op.id))
    order(s, shared_chunks(graph, at, wide), lockstep_order(pp, microbatches))
    return s


def shared_chunks(graph: Graph, at: Mapping[int, int], wide: Iterable[int]) -> dict[int, int]:
    """Operator -> chunk of an interlaced pipeline: the stages, what enters them (-1), what leaves them (-2)."""
    wide, first = set(wide), next((op.id for op in graph.ops if op.block >= 0), 0)
    return {
        op.id: (-1 if op.id < first else -2) if op.id in wide else at[op.id]
        for op in graph.ops
        if op.id in wide or op.block >= 0
    }


def three_f_one_b(graph: Graph, pp: int, *, dp: int = 1, microbatches: int = 4) -> SProgram:
    """For recycled models: each micro-batch goes through the stages several times forward, once backward.

    A pass without gradient is a forward of its own, so the pipeline is filled with passes of different micro-batches.
    """
    s = SProgram(graph, pp * dp)
    s.microbatch(microbatches)
    at = stages(graph, pp)
    for op in graph.ops:
        spread(s, op, range(at[op.id] * dp, (at[op.id] + 1) * dp), dp, None)
    passes = passes_of(graph)
    for stage in range(pp):
        runs = [tuple(op for op in graph.ops if at[op.id] == stage and passes[op.id] == k and home(op)) for k in
                range(max(passes.values()) + 1)]  # fmt: skip
        lines = one_f_one_b_order(pp, microbatches)[stage]
        tasks = [
            t
            for _, mb, way in lines
            for t in ([Task(r, mb) for r in runs] if way == "F" else [Task(runs[-1], mb, way)])
        ]
        s.sequence(tasks)
    return s


def passes_of(graph: Graph) -> dict[int, int]:
    """Operator id -> in which pass over the repeated blocks it is."""
    found, seen, current = {}, set[str](), 0
    last = ""
    for op in graph.ops:
        name = home(op)
        if name and name != last and name in seen:
            current, seen = current + 1, set()
        if name:
            seen.add(name)
            last = name
        found[op.id] = current
    return found


# ------------------------------------------------------------------------------------------------ orders


def order(s: SProgram, at: Mapping[int, int], lines: Sequence[Sequence[Slot]]) -> None:
    """Order each device's tasks by its schedule. at: operator id -> chunk."""
    ops: dict[int, list[Op]] = {}
    for op in s.graph.ops:
        if op.id in at and not op.prologue:
            ops.setdefault(at[op.id], []).append(op)
    for own in lines:
        s.sequence([Task(tuple(ops[chunk]), mb, way) for chunk, mb, way in own if chunk in ops])


def gpipe_order(pp: int, microbatches: int) -> list[list[Slot]]:
    """All forwards, then all backwards, the last micro-batch first."""
    return [
        [(p, m, "F") for m in range(microbatches)] + [(p, m, "B") for m in reversed(range(microbatches))]
        for p in range(pp)
    ]


def one_f_one_b_order(pp: int, microbatches: int) -> list[list[Slot]]:
    """Stage p runs pp - p forwards, then one backward and one forward in turn, then the backwards that are left."""
    return [_alternating(p, min(pp - p, microbatches), microbatches) for p in range(pp)]


def lockstep_order(pp: int, microbatches: int) -> list[list[Slot]]:
    """All stages run a forward, then all a backward; between, all run what leaves the stages (-2) and enters them (-1).

    Stage p holds up to 2 (pp - p) - 1 micro-batches: what the missing bubble costs.
    """
    found = []
    for p in range(pp):
        own: list[Slot] = []
        for i in range(microbatches + 2 * (pp - 1)):
            back = i - 2 * (pp - 1)
            wanted: list[Slot] = [(-1, i, "F"), (p, i - p, "F"), (-2, i - pp + 1, "F"), (-2, i - pp + 1, "B"),
                                  (p, back + p, "B"), (-1, back, "B")]  # fmt: skip
            own += [slot for slot in wanted if 0 <= slot[1] < microbatches]
        found.append(own)
    return found


def _alternating(p: int, warm: int, microbatches: int) -> list[Slot]:
    own: list[Slot] = [(p, m, "F") for m in range(warm)]
    for m in range(microbatches):
        own.append((p, m, "B"))
        if warm + m < microbatches:
            own.append((p, warm + m, "F"))
    return own


def interleaved_order(pp: int, chunks: int, microbatches: int) -> list[list[Slot]]:
    """Megatron's interleaved 1F1B: chunk c of device d is stage c pp + d; micro-batches go in groups of pp."""
    total = chunks * microbatches

    def unit(k: int, p: int, way: Literal["F", "B"]) -> Slot:
        group, inside = divmod(k, pp * chunks)
        chunk = inside // pp
        return ((chunk if way == "F" else chunks - 1 - chunk) * pp + p, group * pp + inside % pp, way)

    found = []
    for p in range(pp):
        warm = min((pp - p - 1) * 2 + (chunks - 1) * pp, total)
        own = [unit(k, p, "F") for k in range(warm)]
        for k in range(total - warm):
            own += [unit(warm + k, p, "F"), unit(k, p, "B")]
        own += [unit(k, p, "B") for k in range(total - warm, total)]
        found.append(own)
    return found


def recompute_blocks(s: SProgram) -> None:
    """Keep only what enters each block."""
    for block in range(s.graph.blocks):
        s.recompute(op for op in s.graph.ops if op.block == block)
