"""SuperScaler: parallelisation plans as programs (arXiv 2301.08984).

    from systems.superscaler import SProgram, capture, plans

    graph = capture(model, (tokens, labels))
    plan = plans.megatron(graph, dp=1, tp=2, pp=2, microbatches=4).build()

A captured model is split by `op_trans`, placed by `op_assign` and ordered by `op_order`; communication follows from
what each part holds and needs, and every built program is verified before it runs.
"""

from systems.superscaler import models, plans
from systems.superscaler.annotations import Annotation
from systems.superscaler.capture import capture
from systems.superscaler.cluster import Cluster
from systems.superscaler.errors import (
    CyclicOrder,
    InvalidPlan,
    OutOfMemory,
    PlanError,
    PlanMismatch,
    RankFailure,
    Stuck,
    SuperScalerError,
    Unassigned,
    Unsupported,
)
from systems.superscaler.graph import Graph, Op, PTensor, VTensor
from systems.superscaler.inmemory import InMemory
from systems.superscaler.layout import Layout, Path, path
from systems.superscaler.mask import Mask
from systems.superscaler.operators import register
from systems.superscaler.plan import Plan
from systems.superscaler.recipes import Recipe
from systems.superscaler.search import Found, search
from systems.superscaler.simulate import Trace, simulate
from systems.superscaler.spaces import Constraint, Space
from systems.superscaler.sprogram import Part, Replicate, Split, SProgram, Task
from systems.superscaler.verify import Report, verify

__all__ = [
    "Annotation",
    "Cluster",
    "Constraint",
    "CyclicOrder",
    "Found",
    "Graph",
    "InMemory",
    "InvalidPlan",
    "Layout",
    "Mask",
    "Op",
    "OutOfMemory",
    "PTensor",
    "Part",
    "Path",
    "Plan",
    "PlanError",
    "PlanMismatch",
    "RankFailure",
    "Recipe",
    "Replicate",
    "Report",
    "SProgram",
    "Space",
    "Split",
    "Stuck",
    "SuperScalerError",
    "Task",
    "Trace",
    "Unassigned",
    "Unsupported",
    "VTensor",
    "capture",
    "models",
    "path",
    "plans",
    "register",
    "search",
    "simulate",
    "verify",
]
