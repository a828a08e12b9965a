"""Spider: dense-speed execution of dynamically sparse deep learning (arXiv 2301.10936).

from systems.spider import matmul, plan
y = matmul(a, b)                           # a's zeros are found and skipped, now, whatever their pattern
print(plan("mk,kn->mn", a, b).explain())   # which rule, and why
"""

from systems.spider.attention import attention
from systems.spider.einsum import einsum, plan
from systems.spider.index import TileIndex, detect
from systems.spider.layers import MaskedLinear, MoE, RaggedEncoderLayer, ReluFFN, moe_ffn, relu_ffn
from systems.spider.ops import matmul, sread, swrite
from systems.spider.ragged import Ragged, pack, unpack
from systems.spider.rules import (
    Analysis,
    DtypeError,
    PatternError,
    RoutingError,
    ShapeError,
    SpiderError,
    analyze,
)
from systems.spider.selection import Plan, TileTable

__all__ = [
    "Analysis",
    "DtypeError",
    "MaskedLinear",
    "MoE",
    "PatternError",
    "Plan",
    "Ragged",
    "RaggedEncoderLayer",
    "ReluFFN",
    "RoutingError",
    "ShapeError",
    "SpiderError",
    "TileIndex",
    "TileTable",
    "analyze",
    "attention",
    "detect",
    "einsum",
    "matmul",
    "moe_ffn",
    "pack",
    "plan",
    "relu_ffn",
    "sread",
    "swrite",
    "unpack",
]
