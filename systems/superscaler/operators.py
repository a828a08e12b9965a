"""What the operators of torch are to a plan: their annotations, and how a part of one is computed.

`annotate` gives the annotation of a call; `evaluate` runs an operator or a part of it on local tensors. Operators
that are not known are probed (`probing`). Our own operators carry what torch's cannot be split by: the cross entropy as
row maximum, sum of exponentials and picked logit; the count of its labels; dropout whose bits do not depend on the
plan.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any

from systems.superscaler.annotations import Annotation, bind
from systems.superscaler.errors import InvalidPlan
from systems.superscaler.graph import Graph, Op, Ref
from systems.superscaler.mask import Box, Interval

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Call", "Rule", "annotation_of", "evaluate", "register", "skipped_inputs"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """A call of an operator, as far as its annotation depends on it."""

    target: str
    shapes: tuple[Shape, ...]
    dtypes: tuple[str, ...]
    output: Shape
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]

    def at(self, index: int, name: str, default: Any = None) -> Any:
        """The argument of a position or name, or the default."""
        if index < len(self.arguments):
            return self.arguments[index]
        return self.keywords.get(name, default)


@dataclass(frozen=True)
class Rule:
    """What an operator's part does beyond the defaults.

    run: (local, tensors) -> output, instead of the operator itself; skips: inputs that a part with these ranges does
    not read (the bias of a contracted part: only the first adds it).
    """

    run: Callable[[Local, Sequence[Any]], Any] | None = None
    skips: Callable[[Op, Mapping[str, Interval]], frozenset[int]] | None = None


@dataclass(frozen=True)
class Local:
    """What a rule may know of the part that it runs: its op, intervals, boxes, step and seed."""

    op: Op
    ranges: Mapping[str, Interval]
    graph: Graph
    step: int
    seed: int

    def input_box(self, index: int) -> Box:
        """The box of an input, relative to what the operator sees of its tensor."""
        dims = self.op.annotation.inputs[index]
        return self.op.annotation.box(dims or (), self.ranges)

    @property
    def output_box(self) -> Box:
        """The box of the output."""
        return self.op.annotation.box(self.op.annotation.outputs[0], self.ranges)

    @property
    def output_shape(self) -> Shape:
        """The local shape of the output."""
        return tuple(hi - lo for lo, hi in self.output_box)


Annotate = Callable[[Call], "str | tuple[str, Mapping[str, int]]"]


# ----------------------------------------------------------------------------------------------- annotations


def _names(count: int, start: str = "d") -> list[str]:
    return [f"{start}{i}" for i in range(count)]


def _broadcast(call: Call) -> str:
    names = _names(len(call.output))
    parts = []
    for shape in call.shapes:
        own = names[len(names) - len(shape) :]
        parts.append(" ".join("1" if n == 1 and m != 1 else x for n, m, x in zip(
            shape, call.output[len(names) - len(shape) :], own, strict=True)))  # fmt: skip
    return f"{', '.join(parts)} -> {' '.join(names)}"


def _frozen_dims(*dims: int) -> Annotate:
    return lambda call: _with_frozen(call, dims)


def _with_frozen(call: Call, dims: Sequence[int]) -> str:
    rank = len(call.output)
    held = {d % rank for d in dims} if rank else set()
    names = " ".join(f"d{i}^" if i in held else f"d{i}" for i in range(rank))
    return f"{', '.join(names for _ in call.shapes)} -> {names}"


def _dim_argument(index: int, name: str, default: Any = -1) -> Annotate:
    def annotate(call: Call) -> str:
        dim = call.at(index, name, default)
        return _with_frozen(call, [dim] if isinstance(dim, int) else list(dim))

    return annotate


def _layer_norm(call: Call) -> str:
    count = len(call.at(1, "normalized_shape"))
    inner = " ".join(f"n{i}^" for i in range(count))
    return f"{', '.join([f'*b {inner}', *[inner] * (len(call.shapes) - 1)])} -> *b {inner}"


def _linear(call: Call) -> str:
    return "*b k+, n k+, n -> *b n" if len(call.shapes) == 3 else "*b k+, n k+ -> *b n"


def _addmm(call: Call) -> str:
    bias = "n" if len(call.shapes[0]) == 1 else "m n"
    return f"{bias}, m k+, k+ n -> m n"


def _matmul(call: Call) -> str:
    a, b = call.shapes
    if len(a) == 1 or len(b) == 1:
        left, right = ("k+" if len(a) == 1 else "*b m k+"), ("k+" if len(b) == 1 else "*b k+ n")
        out = ("" if len(a) == 1 else "*b m") + ("" if len(b) == 1 else " *b n" if len(a) == 1 else "")
        return f"{left}, {right} -> {out}"
    names = _names(len(call.output) - 2)

    def lead(shape: Shape) -> str:
        own, whole = names[len(names) - (len(shape) - 2) :], call.output[len(names) - (len(shape) - 2) : len(names)]
        return " ".join("1" if n == 1 and m != 1 else x for n, m, x in zip(shape[:-2], whole, own, strict=True))

    return f"{lead(a)} m k+, {lead(b)} k+ n -> {' '.join(names)} m n"


def _attention(call: Call) -> str:
    q, k = call.shapes[0], call.shapes[1]
    causal = bool(call.at(5, "is_causal", False))
    t = "t^" if causal else "t"
    names = _names(len(q) - 2)
    lead_k = list(names)
    lead_q = list(names)
    if q[:-2] != k[:-2]:  # grouped queries: g key heads for g r query heads
        lead_q[-1], lead_k[-1] = "(g r)", "g"
    text = f"{' '.join(lead_q)} {t} e^, {' '.join(lead_k)} s^ e^, {' '.join(lead_k)} s^ v^"
    if len(call.shapes) == 4:
        shape = call.shapes[3]
        own = [*lead_q, t, "s^"][len(q) - len(shape) :]
        whole = [*q[:-1], k[-2]][len(q) - len(shape) :]
        text += ", " + " ".join("1" if n == 1 and m != 1 else x for n, m, x in zip(shape, whole, own, strict=True))
    return f"{text} -> {' '.join(lead_q)} {t} v^"


def _permuted(order: Sequence[int]) -> str:
    names = _names(len(order))
    return f"{' '.join(names)} -> {' '.join(names[i] for i in order)}"


def _transpose(call: Call) -> str:
    rank = len(call.output)
    order = list(range(rank))
    if rank:
        i, j = (call.arguments[1] % rank, call.arguments[2] % rank) if len(call.arguments) > 2 else (0, rank - 1)
        order[i], order[j] = order[j], order[i]
    return _permuted(order)


def _permute(call: Call) -> str:
    rank = len(call.output)
    return _permuted([d % rank for d in call.at(1, "dims")])


def reshape_annotation(source: Shape, result: Shape) -> tuple[str, dict[str, int]]:
    """The annotation of a reshape: the coarsest common factors of both shapes.

    A group of dimensions without common factors is kept whole, each dimension frozen.
    """
    if 0 in source:
        left, right = (" ".join(f"{p}{i}^" for i in range(len(s))) for p, s in (("a", source), ("c", result)))
        return f"{left} -> {right}", {}
    sizes: dict[str, int] = {}
    lefts: list[str] = []
    rights: list[str] = []
    i = j = 0
    while i < len(source) or j < len(result):
        a, b = [source[i]] if i < len(source) else [], [result[j]] if j < len(result) else []
        i, j = i + len(a), j + len(b)
        while prod(a) != prod(b):
            if prod(a) < prod(b):
                a.append(source[i])
                i += 1
            else:
                b.append(result[j])
                j += 1
        group_left, group_right = _factor(a, b, sizes)
        lefts += group_left
        rights += group_right
    return f"{' '.join(lefts)} -> {' '.join(rights)}", sizes


def _factor(a: list[int], b: list[int], sizes: dict[str, int]) -> tuple[list[str], list[str]]:
    """Dimensions a and b of equal product as composites over common factors, from the outermost."""
    left: list[list[str]] = [[] for _ in a]
    right: list[list[str]] = [[] for _ in b]
    i = j = 0
    rest_a, rest_b = (a[0] if a else 1), (b[0] if b else 1)
    while i < len(a) and j < len(b):
        if rest_a == 1:
            i += 1
            rest_a = a[i] if i < len(a) else 1
            continue
        if rest_b == 1:
            j += 1
            rest_b = b[j] if j < len(b) else 1
            continue
        # The innermost part of the larger one stays: take the outermost common factor.
        if rest_a % rest_b == 0:
            factor = rest_b
        elif rest_b % rest_a == 0:
            factor = rest_a
        else:
            factor = 0
        if factor == 0:  # no common factor: this group is indivisible from here on
            return _indivisible(a, b, sizes)
        name = f"x{len(sizes)}"
        sizes[name] = factor
        left[i].append(name)
        right[j].append(name)
        rest_a //= factor
        rest_b //= factor
    return [_composite(x) for x in left], [_composite(x) for x in right]


def _indivisible(a: list[int], b: list[int], sizes: dict[str, int]) -> tuple[list[str], list[str]]:
    names = []
    for dims in (a, b):
        own = []
        for n in dims:
            name = f"x{len(sizes)}"
            sizes[name] = n
            own.append(f"{name}^")
        names.append(own)
    return names[0], names[1]


def _composite(names: list[str]) -> str:
    return "1" if not names else names[0] if len(names) == 1 else f"({' '.join(names)})"


def _reshape(call: Call) -> tuple[str, Mapping[str, int]]:
    return reshape_annotation(call.shapes[0], call.output)


def _unsqueeze(call: Call) -> str:
    rank = len(call.output)
    dim = call.arguments[1] % rank
    names = _names(rank - 1)
    return f"{' '.join(names)} -> {' '.join([*names[:dim], '1', *names[dim:]])}"


def _squeeze(call: Call) -> str:
    source = call.shapes[0]
    rank = len(source)
    if len(call.arguments) > 1:
        dims = call.arguments[1] if isinstance(call.arguments[1], tuple) else (call.arguments[1],)
        gone = {d % rank for d in dims if source[d % rank] == 1}
    else:
        gone = {i for i, n in enumerate(source) if n == 1}
    names = ["1" if i in gone else f"d{i}" for i in range(rank)]
    return f"{' '.join(names)} -> {' '.join(n for n in names if n != '1')}"


def _select(call: Call) -> str:
    rank = len(call.shapes[0])
    dim = call.arguments[1] % rank
    names = [f"d{i}^" if i == dim else f"d{i}" for i in range(rank)]
    return f"{' '.join(names)} -> {' '.join(n for i, n in enumerate(names) if i != dim)}"


def _resized_dim(index: int, default: int = 0) -> Annotate:
    """Operators that keep all dimensions but one, which changes its size: slice, cat, pad."""

    def annotate(call: Call) -> str:
        rank = len(call.output)
        dim = call.arguments[index] if index < len(call.arguments) else call.keywords.get("dim", default)
        dim %= rank
        parts = [" ".join(f"s{k}^" if i == dim else f"d{i}" for i in range(rank)) for k in range(len(call.shapes) + 1)]
        return f"{', '.join(parts[:-1])} -> {parts[-1]}"

    return annotate


def _pad(call: Call) -> str:
    rank = len(call.output)
    changed = {i for i in range(rank) if call.shapes[0][i] != call.output[i]}
    left = " ".join(f"s{i}^" if i in changed else f"d{i}" for i in range(rank))
    right = " ".join(f"r{i}^" if i in changed else f"d{i}" for i in range(rank))
    return f"{left} -> {right}"


def _reduced_dims(call: Call) -> list[int]:
    rank = len(call.shapes[0])
    dims = call.at(1, "dim")
    if dims is None or dims == ():
        return list(range(rank))
    return [d % rank for d in (dims if isinstance(dims, tuple) else (dims,))]


def _reduction(mark: str) -> Annotate:
    def annotate(call: Call) -> str:
        dims = _reduced_dims(call)
        keep = len(call.output) == len(call.shapes[0]) and len(dims) > 0
        left = [f"d{i}{mark}" if i in dims else f"d{i}" for i in range(len(call.shapes[0]))]
        right = [f"d{i}" if i not in dims else "1" for i in range(len(left)) if keep or i not in dims]
        return f"{' '.join(left)} -> {' '.join(right)}"

    return annotate


def _expand(call: Call) -> str:
    names = _names(len(call.output))
    shape = call.shapes[0]
    whole = call.output[len(names) - len(shape) :]
    own = names[len(names) - len(shape) :]
    left = " ".join("1" if n == 1 and m != 1 else x for n, m, x in zip(shape, whole, own, strict=True))
    return f"{left} -> {' '.join(names)}"


def _convolution(call: Call) -> str:
    rank = len(call.output) - 2
    space = " ".join(f"h{i}^" for i in range(rank))
    kernel = " ".join(f"k{i}^" for i in range(rank))
    out = " ".join(f"o{i}^" for i in range(rank))
    groups = call.at(6, "groups", 1)
    if groups != 1:
        return f"b c^ {space}, n^ i^ {kernel}, n^ -> b n^ {out}"
    return f"b c+ {space}, n c+ {kernel}, n -> b n {out}"


def _einsum(call: Call) -> str:
    equation = str(call.arguments[0]).replace(" ", "")
    left, _, right = equation.partition("->")
    terms = left.split(",")

    def spelled(term: str) -> str:
        return " ".join(f"{c}" if c in right else f"{c}+" for c in term)

    return f"{', '.join(map(spelled, terms))} -> {' '.join(right)}"


def _everything_frozen(call: Call) -> str:
    parts = [" ".join(f"t{k}x{i}^" for i in range(len(s))) for k, s in enumerate(call.shapes)]
    return f"{', '.join(parts)} -> {' '.join(f'o{i}^' for i in range(len(call.output)))}"


def _roll(call: Call) -> str:
    dims = call.at(2, "dims", ())
    return _with_frozen(call, dims if isinstance(dims, tuple) else (dims,))


def _row_max(call: Call) -> tuple[str, Mapping[str, int]]:
    return "*b (v w) -> *b v", {"v": call.output[-1]}


ELEMENTWISE = (
    "add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor", "pow.Tensor_Scalar", "neg.default", "relu.default",
    "gelu.default", "silu.default", "tanh.default", "sigmoid.default", "exp.default", "log.default", "sqrt.default",
    "rsqrt.default", "sin.default", "cos.default", "abs.default", "erf.default", "leaky_relu.default",
    "clamp.default", "clamp_min.default", "masked_fill.Scalar", "where.self", "where.ScalarOther",
    "where.ScalarSelf", "where.Scalar", "eq.Scalar", "ne.Scalar", "eq.Tensor", "ne.Tensor", "lt.Tensor",
    "le.Tensor", "gt.Tensor", "ge.Tensor", "lt.Scalar", "le.Scalar", "gt.Scalar", "ge.Scalar",
    "logical_and.default", "logical_or.default", "logical_not.default", "bitwise_and.Tensor", "bitwise_or.Tensor",
    "bitwise_not.default", "to.dtype", "to.dtype_layout", "_to_copy.default", "clone.default", "add.Scalar",
    "sub.Scalar", "mul.Scalar", "div.Scalar", "rsub.Scalar", "reciprocal.default", "square.default",
    "softplus.default", "maximum.default", "minimum.default", "zeros_like.default", "ones_like.default",
    "full_like.default", "detach.default", "pow.Tensor_Tensor", "hardtanh.default", "elu.default", "log1p.default",
    "sign.default", "__and__.Tensor", "__or__.Tensor", "type_as.default",
)  # fmt: skip
RESHAPES = ("view.default", "reshape.default", "_unsafe_view.default", "flatten.using_ints", "unflatten.int")

ANNOTATE: Mapping[str, Annotate] = {
    **{f"aten.{name}": _broadcast for name in ELEMENTWISE},
    **{f"aten.{name}": _reshape for name in RESHAPES},
    "aten.linear.default": _linear,
    "aten.addmm.default": _addmm,
    "aten.mm.default": _matmul,
    "aten.bmm.default": _matmul,
    "aten.matmul.default": _matmul,
    "aten.layer_norm.default": _layer_norm,
    "aten.rms_norm.default": _layer_norm,
    "aten.embedding.default": lambda call: "n+ d, *i -> *i d",
    "aten.scaled_dot_product_attention.default": _attention,
    "aten.transpose.int": _transpose,
    "aten.t.default": _transpose,
    "aten.permute.default": _permute,
    "aten.unsqueeze.default": _unsqueeze,
    "aten.squeeze.default": _squeeze,
    "aten.squeeze.dim": _squeeze,
    "aten.squeeze.dims": _squeeze,
    "aten.select.int": _select,
    "aten.slice.Tensor": _resized_dim(1),
    "aten.cat.default": _resized_dim(1),
    "aten.pad.default": _pad,
    "aten.constant_pad_nd.default": _pad,
    "aten.sum.default": _reduction("+"),
    "aten.sum.dim_IntList": _reduction("+"),
    "aten.mean.dim": _reduction("^"),
    "aten.amax.default": _reduction("^"),
    "aten.amin.default": _reduction("^"),
    "aten.var.correction": _reduction("^"),
    "aten.softmax.int": _dim_argument(1, "dim"),
    "aten.log_softmax.int": _dim_argument(1, "dim"),
    "aten.cumsum.default": _dim_argument(1, "dim"),
    "aten.tril.default": _frozen_dims(-1, -2),
    "aten.triu.default": _frozen_dims(-1, -2),
    "aten.roll.default": _roll,
    "aten.expand.default": _expand,
    "aten.conv1d.default": _convolution,
    "aten.conv2d.default": _convolution,
    "aten.einsum.default": _einsum,
    "superscaler.row_max": _row_max,
    "superscaler.sum_exp": lambda call: "*b v+, *b -> *b",
    "superscaler.pick": lambda call: "*b v+, *b -> *b",
    "superscaler.negative_log": lambda call: "*b, *b, *b, *b -> *b",
    "superscaler.topk_values": _resized_dim(2, -1),
    "superscaler.topk_indices": _resized_dim(2, -1),
    "superscaler.count": lambda call: "*b+ -> ",
    "superscaler.dropout": _broadcast,
}


@lru_cache(maxsize=1)
def _registered() -> dict[str, tuple[str, Rule | None]]:
    """What `register` was told; the one table that users extend."""
    return {}


def register(target: str, annotation: str, rule: Rule | None = None) -> None:
    """Annotate an operator, such as "mine.fused_norm.default": "*b n^, n^ -> *b n^"; it goes before what is known.

    Raises InvalidPlan where the annotation cannot be read.
    """
    from systems.superscaler.annotations import parse

    parse(annotation)
    _registered()[target] = (annotation, rule)


def annotation_of(call: Call) -> Annotation:
    """The annotation of a call, bound to its shapes; probed where the operator is not known."""
    given: Mapping[str, int] | None = None
    if call.target in _registered():
        text = _registered()[call.target][0]
    elif call.target in ANNOTATE:
        found = ANNOTATE[call.target](call)
        text, given = (found, None) if isinstance(found, str) else found
    elif call.shapes and call.target.startswith("aten."):
        from systems.superscaler.probing import probe

        text = probe(call) or ""
        if not text:
            warnings.warn(
                f"{call.target} cannot be split: it is replicated only (register an annotation)", stacklevel=2
            )
            text = _everything_frozen(call)
    else:
        text = _everything_frozen(call)
    try:
        return bind(text, call.shapes, [call.output], given)
    except InvalidPlan:
        if call.target in _registered():
            raise
        return bind(_everything_frozen(call), call.shapes, [call.output])


# ------------------------------------------------------------------------------------------------ execution


def resolve(target: str) -> Callable[..., Any]:
    """The function of `aten.linear.default` and its like."""
    import torch

    found: Any = torch.ops
    for name in target.split("."):
        found = getattr(found, name)
    return found


def fill(value: Any, tensors: Sequence[Any]) -> Any:
    """Arguments with tensors in the places of `Ref`s, and dtypes and devices in those of their names."""
    if isinstance(value, Ref):
        return tensors[value.index]
    if isinstance(value, tuple):
        return [fill(v, tensors) for v in value]
    if isinstance(value, str) and value.startswith("torch."):
        import torch

        return getattr(torch, value.removeprefix("torch."))
    return value


def evaluate(
    op: Op, ranges: Mapping[str, Interval], tensors: Sequence[Any], *, step: int, seed: int, graph: Graph
) -> Any:
    """The output of a part of an operator on its local inputs; inputs that the part skips are None."""
    rule = RULES.get(op.target) or (_registered().get(op.target, ("", None))[1])
    local = Local(op, ranges, graph, step, seed)
    if rule is not None and rule.run is not None:
        return rule.run(local, tensors)
    arguments = [fill(a, tensors) for a in op.arguments]
    return resolve(op.target)(*arguments, **{k: fill(v, tensors) for k, v in op.keywords.items()})


def skipped_inputs(op: Op, ranges: Mapping[str, Interval]) -> frozenset[int]:
    """The inputs that a part does not read."""
    rule = RULES.get(op.target) or (_registered().get(op.target, ("", None))[1])
    return rule.skips(op, ranges) if rule is not None and rule.skips is not None else frozenset()


def _to_local_shape(local: Local, tensors: Sequence[Any]) -> Any:
    return tensors[0].reshape(local.output_shape)


def _run_expand(local: Local, tensors: Sequence[Any]) -> Any:
    return tensors[0].expand(local.output_shape)


def _first_adds(bias: int, contracted: str) -> Callable[[Op, Mapping[str, Interval]], frozenset[int]]:
    def skips(op: Op, ranges: Mapping[str, Interval]) -> frozenset[int]:
        later = ranges.get(contracted, (0, 0))[0] > 0 and len(op.inputs) > bias
        return frozenset({bias}) if later else frozenset()

    return skips


def _run_addmm(local: Local, tensors: Sequence[Any]) -> Any:
    bias, a, b = tensors
    keywords = local.op.keywords
    if bias is None:
        return (a @ b) * keywords.get("alpha", 1)
    return bias.addmm(a, b, beta=keywords.get("beta", 1), alpha=keywords.get("alpha", 1)) if bias.dim() == 2 else (
        bias * keywords.get("beta", 1) + (a @ b) * keywords.get("alpha", 1)
    )  # fmt: skip


def _run_embedding(local: Local, tensors: Sequence[Any]) -> Any:
    import torch

    weight, ids = tensors
    padding = int(local.op.arguments[2]) if len(local.op.arguments) > 2 else -1
    lo = local.input_box(0)[0][0] if "n" in local.ranges else 0
    whole = local.op.annotation.sizes["n"]
    if len(weight) == whole:
        return torch.nn.functional.embedding(ids, weight, padding if padding >= 0 else None)
    own = (ids >= lo) & (ids < lo + len(weight))
    shifted = torch.where(own, ids - lo, 0)
    found = torch.nn.functional.embedding(shifted, weight, padding - lo if 0 <= padding - lo < len(weight) else None)
    return found * own.unsqueeze(-1).to(found.dtype)


def _run_row_max(local: Local, tensors: Sequence[Any]) -> Any:
    logits = tensors[0]
    return logits.detach().reshape(*logits.shape[:-1], local.output_shape[-1], -1).amax(-1)


def _run_sum_exp(local: Local, tensors: Sequence[Any]) -> Any:
    logits, highest = tensors
    return (logits - highest.unsqueeze(-1)).exp().sum(-1)


def _run_pick(local: Local, tensors: Sequence[Any]) -> Any:
    import torch

    logits, labels = tensors
    lo = local.ranges["v"][0] if "v" in local.ranges else 0
    own = (labels >= lo) & (labels < lo + logits.shape[-1])
    index = torch.where(own, labels - lo, 0)
    return logits.gather(-1, index.unsqueeze(-1)).squeeze(-1) * own.to(logits.dtype)


def _run_negative_log(local: Local, tensors: Sequence[Any]) -> Any:
    import torch

    total, highest, picked, labels = tensors
    return torch.where(labels != local.op.arguments[-1], total.log() + highest - picked, 0.0)


def _run_topk(which: int) -> Callable[[Local, Sequence[Any]], Any]:
    def run(local: Local, tensors: Sequence[Any]) -> Any:
        arguments = [fill(a, tensors) for a in local.op.arguments]
        return resolve("aten.topk.default")(*arguments, **local.op.keywords)[which]

    return run


def _run_count(local: Local, tensors: Sequence[Any]) -> Any:
    import torch

    return (tensors[0] != local.op.arguments[-2]).sum().to(getattr(torch, local.op.arguments[-1]))


def _run_dropout(local: Local, tensors: Sequence[Any]) -> Any:
    x, p, key = tensors[0], local.op.arguments[1], local.op.arguments[2]
    shape = local.graph.tensors[local.op.output].shape
    return x * keep_mask(local.output_box, shape, p, (local.seed, local.step, key)).to(x.dtype) / (1 - p)


def keep_mask(box: Box, shape: Sequence[int], p: float, key: tuple[int, ...]) -> Tensor:
    """Which elements of a box of a tensor of `shape` are kept, each with probability 1 - p: (extents of box) bool.

    A bit depends on the key and the element's index in the whole tensor only (splitmix64 finaliser), never on the box.
    """
    import torch

    index = torch.zeros((), dtype=torch.int64)
    for (lo, hi), n in zip(box, shape, strict=True):
        index = index.unsqueeze(-1) * n + torch.arange(lo, hi)
    base = 0
    for word in key:
        base = _mix((base ^ word) + 0x9E3779B97F4A7C15)
    z = index * _signed(0x9E3779B97F4A7C15) + _signed(base)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ ((z >> shift) & ((1 << (64 - shift)) - 1))) * _signed(factor)
    z = z ^ ((z >> 31) & ((1 << 33) - 1))
    return ((z >> 11) & ((1 << 53) - 1)).to(torch.float64) >= p * 2.0**53


def _mix(z: int) -> int:
    z &= (1 << 64) - 1
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & ((1 << 64) - 1)
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & ((1 << 64) - 1)
    return z ^ (z >> 31)


def _signed(word: int) -> int:
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >= 1 << 63 else word


def max_groups(vocabulary: int) -> int:
    """Into how many groups row_max splits a row: the largest divisor of the row's length up to 64."""
    return max(n for n in range(1, min(64, vocabulary) + 1) if vocabulary % n == 0)


RULES: Mapping[str, Rule] = {
    **{f"aten.{name}": Rule(run=_to_local_shape) for name in RESHAPES},
    "aten.expand.default": Rule(run=_run_expand),
    "aten.linear.default": Rule(skips=_first_adds(2, "k"), run=lambda local, t: _linear_of(t)),
    "aten.addmm.default": Rule(skips=_first_adds(0, "k"), run=_run_addmm),
    "aten.conv2d.default": Rule(skips=_first_adds(2, "c")),
    "aten.conv1d.default": Rule(skips=_first_adds(2, "c")),
    "aten.embedding.default": Rule(run=_run_embedding),
    "superscaler.row_max": Rule(run=_run_row_max),
    "superscaler.sum_exp": Rule(run=_run_sum_exp),
    "superscaler.pick": Rule(run=_run_pick),
    "superscaler.negative_log": Rule(run=_run_negative_log),
    "superscaler.topk_values": Rule(run=_run_topk(0)),
    "superscaler.topk_indices": Rule(run=_run_topk(1)),
    "superscaler.count": Rule(run=_run_count),
    "superscaler.dropout": Rule(run=_run_dropout),
}


def _linear_of(tensors: Sequence[Any]) -> Any:
    import torch

    return torch.nn.functional.linear(*tensors)


def flops_of(call: Call) -> float:
    """Floating-point operations of a call, forward: twice the multiply-adds, or one for each output element."""
    name = call.target.removeprefix("aten.").partition(".")[0]
    if name in ("linear", "matmul", "mm", "bmm"):
        return 2.0 * prod(call.output) * call.shapes[0][-1]
    if name == "addmm":
        return 2.0 * prod(call.output) * call.shapes[1][-1]
    if name == "scaled_dot_product_attention":
        q, k, v = call.shapes[:3]
        return 2.0 * prod(q[:-1]) * k[-2] * (q[-1] + v[-1])
    if name.startswith("conv"):
        return 2.0 * prod(call.output) * prod(call.shapes[1][1:])
    if name == "einsum":
        terms = str(call.arguments[0]).partition("->")[0].replace(" ", "").split(",")
        sizes = {c: n for term, shape in zip(terms, call.shapes, strict=True) for c, n in zip(term, shape, strict=True)}
        return 2.0 * prod(sizes.values())
    return float(max([prod(call.output), *map(prod, call.shapes)]))
