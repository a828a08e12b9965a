"""NGra: graph neural networks as vertex programs, at the speed of memory and beyond its size (arXiv 1810.08403)."""

from systems.ngra.choices import settings
from systems.ngra.graph import (
    ArcWeight,
    BudgetError,
    Graph,
    GraphError,
    NGraError,
    ProgramError,
    StoreError,
    gcn_norm,
    rmat,
)
from systems.ngra.plan import Plan
from systems.ngra.program import Layer
from systems.ngra.reference import reference
from systems.ngra.ring import RingGraph
from systems.ngra.schedule import Schedule, plan_schedule
from systems.ngra.store import ChunkStore
from systems.ngra.stream import EpochStats, StreamTrainer

__all__ = [
    "ArcWeight",
    "BudgetError",
    "ChunkStore",
    "EpochStats",
    "Graph",
    "GraphError",
    "Layer",
    "NGraError",
    "Plan",
    "ProgramError",
    "RingGraph",
    "Schedule",
    "StoreError",
    "StreamTrainer",
    "gcn_norm",
    "plan_schedule",
    "reference",
    "rmat",
    "settings",
]
