"""What a rank runs: a flat list of instructions over numbered buffers.

Communication is never hidden in autograd. A `Work` is a run of operator parts between communications: forward keeps the
leaves that enter it, backward runs autograd from its outputs to those leaves. One list drives the executor, the
verifier, the simulator and the drawing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Literal

from systems.superscaler.mask import Interval, Region, extent

__all__ = ["Assemble", "Buffer", "Call", "Collective", "Compute", "Flat", "Free", "Instruction", "Leaf", "Output",
           "Recv", "Return", "Send", "Slice", "Update", "Work"]  # fmt: skip

BufferKind = Literal["value", "grad", "param", "weight_grad", "shard", "given"]


@dataclass(frozen=True)
class Buffer:
    """A tensor that a rank holds for a while: what it is of, where it lies in that, which addend.

    flat: (i, n), the i-th of n equal pieces of the flattened box, padded at the end; a ZeRO shard.
    """

    id: int
    tensor: int
    kind: BufferKind
    microbatch: int
    device: int
    region: Region
    part: tuple[int, int] = (0, 1)
    flat: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape in memory."""
        if self.flat is not None:
            return (-(-prod(extent(self.region)) // self.flat[1]),)
        return extent(self.region)

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True)
class Leaf:
    """A tensor that enters a work. place: which part of the buffer, None for all; grad: buffer that gets its gradient.

    A leaf of `given` (an input or constant) names the tensor itself and the box of it.
    """

    slot: int
    buffer: int
    place: Region | None
    grad: int | None


@dataclass(frozen=True)
class Call:
    """A part of an operator: (slot, place in it) per input, None for a skipped one; the slot that it writes."""

    op: int
    ranges: Mapping[str, Interval] = field(hash=False)
    inputs: tuple[tuple[int, Region | None] | None, ...]
    output: int
    part: int


@dataclass(frozen=True)
class Output:
    """A tensor that leaves a work. grad: the buffer with its gradient, -1 for the loss's own one, None for none."""

    slot: int
    buffer: int
    grad: int | None


@dataclass(frozen=True, eq=False)
class Work:
    """Parts of operators that a device runs without communication. recompute: forward keeps only the leaves."""

    id: int
    segment: int
    device: int
    microbatch: int
    calls: tuple[Call, ...]
    leaves: tuple[Leaf, ...]
    outputs: tuple[Output, ...]
    recompute: bool
    flops: float

    @property
    def has_backward(self) -> bool:
        """Whether a gradient flows through."""
        return any(output.grad is not None for output in self.outputs)


@dataclass(frozen=True)
class Compute:
    """Forward, backward or recompute of a work. leaves: buffers of parameters that differ from forward's (ZeRO 3)."""

    kind: Literal["forward", "backward", "recompute"]
    work: int
    gathered: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Collective:
    """A collective over `group`, in which this rank gives `sources` and gets `results`.

    all_reduce: sum, any number of buffers. all_gather: places[i] is where participant i's piece lies in the result.
    reduce_scatter: places[i] is the part of the source that participant i gets the sum of. all_to_all: sends[i] is the
    part of the source for participant i, places[i] where its piece lies in the result.
    """

    kind: Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all"]
    task: int
    group: tuple[int, ...]
    sources: tuple[int, ...]
    results: tuple[int, ...]
    places: tuple[Region, ...] = ()
    sends: tuple[Region, ...] = ()


@dataclass(frozen=True)
class Flat:
    """A collective on flattened buffers: reduce_scatter of gradients, all_gather of parameters (ZeRO)."""

    kind: Literal["flat_reduce_scatter", "flat_all_gather"]
    task: int
    group: tuple[int, ...]
    source: int
    result: int


@dataclass(frozen=True)
class Send:
    """Send a part of a buffer to a rank."""

    task: int
    peer: int
    source: int
    place: Region | None


@dataclass(frozen=True)
class Recv:
    """Receive a buffer from a rank."""

    task: int
    peer: int
    result: int


@dataclass(frozen=True)
class Slice:
    """Take a part of a buffer; `flat`: the i-th of n pieces of it flattened."""

    source: int
    result: int
    place: Region | None
    flat: tuple[int, int] | None = None


@dataclass(frozen=True)
class Assemble:
    """Put buffers into a result of zeros, adding where they meet: concatenation, sum, zero-fill. None: everywhere."""

    pieces: tuple[tuple[int, Region | None], ...]
    result: int


@dataclass(frozen=True)
class Update:
    """One optimizer step: (parameter or shard buffer, its gradient buffer)."""

    pairs: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Return:
    """The step's loss."""

    source: int


@dataclass(frozen=True)
class Free:
    """Forget buffers."""

    buffers: tuple[int, ...]


Instruction = Compute | Collective | Flat | Send | Recv | Slice | Assemble | Update | Return | Free
COMMUNICATION = (Collective, Flat, Send, Recv)


def reads(instruction: Instruction, works: Mapping[int, Work]) -> tuple[int, ...]:
    """The buffers that an instruction reads."""
    match instruction:
        case Compute(kind, number, gathered):
            work = works[number]
            swapped = dict(gathered)
            leaves = tuple(swapped.get(leaf.buffer, leaf.buffer) for leaf in work.leaves)
            if kind == "backward":
                grads = tuple(o.grad for o in work.outputs if o.grad is not None and o.grad >= 0)
                return (*grads, *swapped.values())
            return leaves
        case Collective(sources=sources):
            return sources
        case Flat(source=source) | Send(source=source) | Slice(source=source) | Return(source=source):
            return (source,)
        case Assemble(pieces):
            return tuple(p for p, _ in pieces)
        case Update(pairs):
            return tuple(b for pair in pairs for b in pair)
        case _:
            return ()


def writes(instruction: Instruction, works: Mapping[int, Work]) -> tuple[int, ...]:
    """The buffers that an instruction writes."""
    match instruction:
        case Compute("forward", number):
            return tuple(o.buffer for o in works[number].outputs)
        case Compute("backward", number):
            return tuple(leaf.grad for leaf in works[number].leaves if leaf.grad is not None)
        case Collective(results=results):
            return results
        case Flat(result=result) | Recv(result=result) | Slice(result=result) | Assemble(result=result):
            return (result,)
        case Update(pairs):
            return tuple(p for p, _ in pairs)
        case _:
            return ()


def participants(instruction: Instruction, rank: int) -> tuple[int, ...]:
    """The ranks that a communication needs; this rank alone for anything else."""
    match instruction:
        case Collective(group=group) | Flat(group=group):
            return group
        case Send(peer=peer) | Recv(peer=peer):
            return tuple(sorted((rank, peer)))
        case _:
            return (rank,)
