"""Which plans a search may find: a space, and constraints on it. Known systems are spaces of the same search."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from systems.superscaler.errors import InvalidPlan
from systems.superscaler.graph import Op

__all__ = ["SPACES", "Constraint", "Space", "divide", "microbatches", "only", "together"]


@dataclass(frozen=True)
class Space:
    """What may be chosen.

    pipeline: "none", "uniform" (all stages alike) or "free" (each stage its own devices and spread). pipelined_zero:
    ZeRO stages beside a pipeline; zero: without one. intra: how operators are cut, "megatron" (columns then rows) or
    "best" (each its own way, exactly). co_shard, interlaced, recycled: the plans that are new, the last a pipeline of a
    model whose blocks run several times.
    """

    name: str
    pipeline: str
    intra: tuple[str, ...]
    zero: tuple[int, ...]
    pipelined_zero: tuple[int, ...]
    co_shard: bool = False
    interlaced: bool = False
    recycled: bool = False

    def __post_init__(self) -> None:
        if self.pipeline not in ("none", "uniform", "free"):
            raise InvalidPlan(f"pipeline {self.pipeline!r}: expected none, uniform or free")

    def within(self, other: Space) -> bool:
        """Whether all its plans are plans of another space."""
        widths = ("none", "uniform", "free")
        return (
            widths.index(self.pipeline) <= widths.index(other.pipeline)
            and {*self.intra} <= {*other.intra}
            and {*self.zero} <= {*other.zero}
            and (self.pipeline == "none" or {*self.pipelined_zero} <= {*other.pipelined_zero})
            and self.co_shard <= other.co_shard
            and self.interlaced <= other.interlaced
            and self.recycled <= other.recycled
        )


SPACES = {
    "megatron": Space("megatron", "uniform", ("megatron",), (0, 1), (0, 1)),
    "alpa": Space("alpa", "free", ("megatron", "best"), (0, 1, 2, 3), (0, 1, 2)),
    "deepspeed": Space("deepspeed", "none", ("megatron",), (0, 1, 2, 3), ()),
    "full": Space("full", "free", ("megatron", "best"), (0, 1, 2, 3), (0, 1, 2), True, True, True),
}
"""Megatron-LM: one shape for all stages, columns then rows. Alpa: any stages, any cuts. DeepSpeed: ZeRO on tensor
parallelism (with a pipeline it is Megatron's)."""


@dataclass(frozen=True)
class Constraint:
    """What a user knows. pattern and idents: operators whose name or module matches are cut by these only.

    tp, dp, microbatches: allowed numbers; together: names of blocks that stay in one stage.
    """

    pattern: str = ""
    idents: tuple[str, ...] | None = None
    tp: tuple[int, ...] | None = None
    dp: tuple[int, ...] | None = None
    microbatches: tuple[int, ...] | None = None
    together: tuple[str, ...] = ()

    def matches(self, op: Op) -> bool:
        """Whether it speaks of an operator's choices."""
        return self.idents is not None and bool(re.search(self.pattern, f"{op.module} {op.name} {op.target}"))


def only(pattern: str, idents: Iterable[str]) -> Constraint:
    """Operators whose module, name or target match a regular expression are cut by one of these, "" for replicated."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise InvalidPlan(f"only({pattern!r}): no regular expression: {error}") from error
    return Constraint(pattern=pattern, idents=tuple(idents))


def divide(*, tp: Sequence[int] | None = None, dp: Sequence[int] | None = None) -> Constraint:
    """Stages spread over these numbers of devices only."""
    return Constraint(tp=None if tp is None else tuple(tp), dp=None if dp is None else tuple(dp))


def microbatches(*counts: int) -> Constraint:
    """These numbers of micro-batches only."""
    return Constraint(microbatches=counts)


def together(*names: str) -> Constraint:
    """Blocks that stay in one stage, with all between them."""
    return Constraint(together=names)
