"""What SuperScaler refuses, as one small tree."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "CyclicOrder",
    "InvalidPlan",
    "OutOfMemory",
    "PlanError",
    "PlanMismatch",
    "RankFailure",
    "Stuck",
    "SuperScalerError",
    "Unassigned",
    "Unsupported",
]


class SuperScalerError(Exception):
    """Anything that SuperScaler refuses."""


class PlanError(SuperScalerError):
    """A plan that cannot be built; the message names the operators and what to do."""


class InvalidPlan(PlanError):
    """A transformation, assignment or program that breaks a rule."""


class Unassigned(PlanError):
    """An operator without a device."""


class CyclicOrder(PlanError):
    """Orders and dependencies that go round in a circle; `cycle` lists (task, kind of edge to the next)."""

    def __init__(self, cycle: Sequence[tuple[str, str]]) -> None:
        self.cycle = tuple(cycle)
        steps = "".join(f"\n  {task}\n    before, by {kind}," for task, kind in self.cycle)
        super().__init__(f"the order is a circle of {len(self.cycle)} tasks:{steps}\n  {self.cycle[0][0]}")


class OutOfMemory(PlanError):
    """A plan whose peak is over a device's memory."""


class Unsupported(PlanError):
    """A model or program outside of what is captured or built."""


class Stuck(SuperScalerError):
    """Ranks that wait for each other for ever; names the instruction that each waits in."""


class PlanMismatch(SuperScalerError):
    """Ranks, plans or files that do not belong together; nothing was run."""


class RankFailure(SuperScalerError):
    """A rank that died or failed; the others were stopped."""
