"""From torch.export to a graph of profile ieee32: operators named, BatchNorm, activations and residuals folded.

Views cost nothing, since a value keeps its NHWC bytes and only its reading changes: a flatten before a linear layer
becomes a kernel as large as the image, with the layer's columns moved from (c, h, w) to (h, w, c) order.
BatchNorm folds into the convolution before it in float64 and rounds once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from systems.agatha.descriptor import CONVOLUTIONS, ExactnessError, Op, Profile, UnsupportedOperator
from systems.agatha.graph import Graph, Node, check

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["lower", "refuse_tables"]

FxNode = Any  # torch.fx.Node: its arguments are a union of 15 types, each handler knows which it takes

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class _Value:
    """A value of the exported program: a draft's output, read as (h, w, c), in one of four torch layouts.

    layout: "image" (n, c, h, w), "flat" (n, c h w), "columns" (n, c, w) or "rows" (n, w, c), h = 1 in these two.
    sole: nobody else reads the draft, so that what follows may fold into it.
    """

    draft: int
    shape: Shape
    layout: str
    sole: bool


@dataclass
class _Draft:
    node: Node
    scale: NDArray[np.float64] | None = None  # BatchNorm not yet folded: w scale, bias scale + offset
    offset: NDArray[np.float64] | None = None
    affine: bool = field(default=True)  # nothing but the sum so far: BatchNorm, residual and clamp may still fold in


def lower(exported: ExportedProgram) -> Graph:
    """The graph of profile ieee32, LUT nodes (which only int8 can run) still among its nodes.

    Raises UnsupportedOperator, and ExactnessError for weights that are not finite.
    """
    return check(_Lowering(exported).graph())


def refuse_tables(graph: Graph) -> None:
    """Raises UnsupportedOperator where a node needs a table, which profile ieee32 does not have."""
    for i, node in enumerate(graph.nodes):
        if node.op is Op.LUT:
            raise UnsupportedOperator(
                f"node {i} ({node.name}): {node.function} has no program of fused multiply-adds in profile ieee32; "
                "compile with profile='int8', where it is a table"
            )


class _Lowering:
    def __init__(self, exported: ExportedProgram) -> None:
        self.exported = exported
        self.drafts: list[_Draft] = []
        self.values: dict[FxNode, _Value] = {}
        self.constants: dict[FxNode, Any] = {}
        self.output: _Value | None = None

    def graph(self) -> Graph:
        signature = self.exported.graph_signature
        known = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        state = {**self.exported.state_dict, **self.exported.constants}
        lifted = signature.inputs_to_lifted_tensor_constants
        for node in self.exported.graph.nodes:
            if node.op == "placeholder":
                name = known.get(node.name) or lifted.get(node.name)
                if name is not None:
                    self.constants[node] = state[name].detach().cpu()
                else:
                    self._input(node)
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                (results,) = node.args
                if len(results) != 1 or results[0] not in self.values:
                    raise UnsupportedOperator(f"the model returns {len(results)} values, expected one tensor")
                self.output = self.values[results[0]]
            else:
                raise UnsupportedOperator(f"{node.op} {node.target} ({node.name}): only plain operators are known")
        assert self.output is not None
        return _prune([_finish(draft) for draft in self.drafts], self.output.draft)

    # -- operators

    def _input(self, node: FxNode) -> None:
        if self.drafts:
            raise UnsupportedOperator(f"{node.name} is a second input of the model, expected one")
        shape = _sizes(node)
        if str(node.meta["val"].dtype) != "torch.float32" or len(shape) not in (2, 4):
            raise UnsupportedOperator(
                f"input {node.name} is {node.meta['val'].dtype} {shape}, expected float32 (n, c, h, w) or (n, features)"
            )
        layout = "image" if len(shape) == 4 else "flat"
        own = (shape[2], shape[3], shape[1]) if layout == "image" else (1, 1, shape[1])
        self._add(node, Node(Op.INPUT, (), own, name=node.name), layout)

    def _call(self, node: FxNode) -> None:
        name = _name(node)
        if name in _ALIASES and isinstance(node.args[0], type(node)):
            value = self._value(node, node.args[0])
            self.values[node] = replace(value, sole=value.sole and len(node.users) == 1)
            return
        handler = _HANDLERS.get(name)
        if handler is None and name in FUNCTIONS:
            handler = _Lowering._table
        if handler is None:
            raise self._unsupported(node, "this operator is not known")
        handler(self, node)

    def _convolution(self, node: FxNode) -> None:
        x = self._value(node, node.args[0])
        weight = self._constant(node, _argument(node, 1, "weight"))
        bias = _argument(node, 2, "bias", None)
        stride, pad, dilation = (_argument(node, i, name, d) for i, name, d in _WINDOW)
        groups = int(_argument(node, 6, "groups", 1))
        if str(node.target).startswith("aten.convolution."):
            if _argument(node, 6, "transposed", False):
                raise self._unsupported(node, "a transposed convolution")
            groups = int(_argument(node, 8, "groups", 1))
        if isinstance(pad, str):
            kernel = weight.shape[2]
            pad = 0 if pad == "valid" else _one(self, node, "dilation", dilation) * (kernel - 1) // 2
        if x.layout != "image" or weight.ndim != 4:
            raise self._unsupported(node, "expected a two-dimensional convolution of (n, c, h, w)")
        columns = np.ascontiguousarray(weight.numpy().transpose(0, 2, 3, 1), np.float32)
        self._product(
            node,
            x,
            columns,
            None if bias is None else self._constant(node, bias).numpy(),
            Op.CONV,
            "image",
            stride=_one(self, node, "stride", stride),
            pad=_one(self, node, "padding", pad),
            dilation=_one(self, node, "dilation", dilation),
            groups=groups,
        )

    def _linear(self, node: FxNode) -> None:
        if str(node.target).startswith("aten.addmm."):
            bias, data, weight = node.args[0], node.args[1], self._constant(node, node.args[2]).t()
        else:
            data, weight = node.args[0], self._constant(node, node.args[1])
            bias = _argument(node, 2, "bias", None)
        x = self._value(node, data)
        h, w, c = x.shape
        array = weight.numpy()
        if x.layout == "flat":
            columns = array.reshape(len(array), c, h, w).transpose(0, 2, 3, 1)
        elif x.layout == "rows":
            columns = array.reshape(len(array), 1, 1, c)
        else:
            raise self._unsupported(node, f"a linear layer over a tensor laid out as {x.layout}")
        self._product(
            node,
            x,
            np.ascontiguousarray(columns, np.float32),
            None if bias is None else self._constant(node, bias).numpy(),
            Op.LINEAR,
            x.layout,
        )

    def _product(
        self,
        node: FxNode,
        x: _Value,
        weight: NDArray[np.float32],
        bias: NDArray[Any] | None,
        op: Op,
        layout: str,
        **window: int,
    ) -> None:
        c_out, kh, kw, _ = weight.shape
        if not np.isfinite(weight).all() or (bias is not None and not np.isfinite(bias).all()):
            raise ExactnessError(f"{node.name}: weights or bias are not finite")
        shape = _sizes(node)
        out = (shape[2], shape[3], c_out) if layout == "image" else (1, shape[1] if layout == "rows" else 1, c_out)
        self._add(
            node,
            Node(
                op,
                (x.draft,),
                out,
                x.shape,
                kernel=(kh, kw),
                weight=weight,
                bias=np.zeros(c_out, np.float32) if bias is None else np.ascontiguousarray(bias, np.float32),
                name=node.name,
                **window,  # type: ignore[arg-type]  # stride, pad, dilation and groups, all of them int
            ),
            layout,
        )

    def _batch_norm(self, node: FxNode) -> None:
        parts = [None if part is None else self._constant(node, part).double().numpy() for part in node.args[1:5]]
        gamma, beta, mean, variance = parts
        epsilon = float(next(value for value in reversed(node.args) if isinstance(value, float)))
        if len(node.args) > 5 and node.args[5] is True:
            raise self._unsupported(node, "BatchNorm in training mode: call model.eval() before torch.export")
        assert mean is not None
        assert variance is not None
        scale = (1.0 if gamma is None else gamma) / np.sqrt(variance + epsilon)
        self._affine(node, node.args[0], scale, (0.0 if beta is None else beta) - mean * scale)

    def _affine(self, node: FxNode, data: Any, scale: NDArray[np.float64], offset: NDArray[np.float64]) -> None:
        """x scale + offset, channel by channel: folded into the convolution before it, else a 1 x 1 depthwise one."""
        x = self._value(node, data)
        channels = x.shape[2]
        scale, offset = np.broadcast_to(scale, (channels,)), np.broadcast_to(offset, (channels,))
        draft = self.drafts[x.draft]
        if not (x.sole and draft.affine and draft.node.op in CONVOLUTIONS):
            weight = np.ones((channels, 1, 1, 1), np.float32)
            self._product(node, x, weight, None, Op.CONV, x.layout, groups=channels)
            draft = self.drafts[-1]
        else:
            self.values[node] = replace(x, sole=len(node.users) == 1)
        if draft.scale is None or draft.offset is None:
            draft.scale, draft.offset = np.ones(channels), np.zeros(channels)
        draft.scale, draft.offset = draft.scale * scale, draft.offset * scale + offset

    def _clamp(self, node: FxNode, low: float, high: float) -> None:
        x = self._value(node, node.args[0])
        draft = self.drafts[x.draft]
        if x.sole and draft.node.op in _CLAMPING:
            before = draft.node
            draft.node = replace(
                before, lo=min(max(before.lo, low), high), hi=max(min(before.hi, high), low), name=node.name
            )
            draft.affine = False
            self.values[node] = replace(x, sole=len(node.users) == 1)
        else:
            self._add(node, Node(Op.CLAMP, (x.draft,), x.shape, x.shape, lo=low, hi=high, name=node.name), x.layout)

    def _hardtanh(self, node: FxNode) -> None:
        self._clamp(node, float(_argument(node, 1, "min_val", -1.0)), float(_argument(node, 2, "max_val", 1.0)))

    def _clip(self, node: FxNode) -> None:
        low, high = _argument(node, 1, "min", None), _argument(node, 2, "max", None)
        self._clamp(node, -math.inf if low is None else float(low), math.inf if high is None else float(high))

    def _add_(self, node: FxNode) -> None:
        if _argument(node, 2, "alpha", 1) != 1:
            raise self._unsupported(node, "an addition with alpha")
        if not self._is_value(node.args[1]):
            self._affine(node, node.args[0], np.ones(1), self._vector(node, node.args[1]))
            return
        a, b = self._value(node, node.args[0]), self._value(node, node.args[1])
        late, early = (a, b) if a.draft > b.draft else (b, a)
        draft = self.drafts[late.draft]
        if late.sole and draft.affine and draft.node.op in CONVOLUTIONS and a.shape == b.shape:
            draft.node = replace(draft.node, inputs=(*draft.node.inputs, early.draft), name=node.name)
            draft.affine = False
            self.values[node] = replace(late, sole=len(node.users) == 1)
            return
        self._binary(node, Op.ADD, a, b)

    def _mul(self, node: FxNode) -> None:
        if not self._is_value(node.args[1]):
            self._affine(node, node.args[0], self._vector(node, node.args[1]), np.zeros(1))
            return
        self._binary(node, Op.MUL, self._value(node, node.args[0]), self._value(node, node.args[1]))

    def _binary(self, node: FxNode, op: Op, a: _Value, b: _Value) -> None:
        if math.prod(a.shape) < math.prod(b.shape):
            a, b = b, a
        if b.shape not in (a.shape, (1, 1, a.shape[2])):
            raise self._unsupported(node, f"operands (h, w, c) {a.shape} and {b.shape}: only one vector broadcasts")
        self._add(node, Node(op, (a.draft, b.draft), a.shape, a.shape, name=node.name), a.layout)

    def _max_pool(self, node: FxNode) -> None:
        dilation = _one(self, node, "dilation", _argument(node, 4, "dilation", 1))
        self._pool(node, Op.MAXPOOL, dilation, 5)

    def _avg_pool(self, node: FxNode) -> None:
        pad = _one(self, node, "padding", _argument(node, 3, "padding", 0))
        if (pad and not _argument(node, 5, "count_include_pad", True)) or _argument(node, 6, "divisor_override", None):
            raise self._unsupported(node, "an average whose divisor changes along the edge")
        self._pool(node, Op.AVGPOOL, 1, 4)

    def _pool(self, node: FxNode, op: Op, dilation: int, ceil_at: int) -> None:
        x = self._value(node, node.args[0])
        kernel = _pair(_argument(node, 1, "kernel_size"))
        stride = _argument(node, 2, "stride", None) or kernel
        if _argument(node, ceil_at, "ceil_mode", False):
            raise self._unsupported(node, "ceil_mode")
        shape = _sizes(node)
        self._add(
            node,
            Node(
                op,
                (x.draft,),
                (shape[2], shape[3], x.shape[2]),
                x.shape,
                kernel=kernel,
                stride=_one(self, node, "stride", stride),
                pad=_one(self, node, "padding", _argument(node, 3, "padding", 0)),
                dilation=dilation,
                name=node.name,
            ),
            "image",
        )

    def _adaptive(self, node: FxNode) -> None:
        x = self._value(node, node.args[0])
        (h, w, c), shape = x.shape, _sizes(node)
        if h % shape[2] or w % shape[3] or h // shape[2] != w // shape[3]:
            raise self._unsupported(node, f"adaptive pooling of {h} x {w} to {shape[2]} x {shape[3]}: windows overlap")
        side = h // shape[2]
        pool = Node(
            Op.AVGPOOL,
            (x.draft,),
            (shape[2], shape[3], c),
            x.shape,
            kernel=(side, side),
            stride=side,
            name=node.name,
        )
        self._add(node, pool, "image")

    def _mean(self, node: FxNode) -> None:
        x = self._value(node, node.args[0])
        axes = sorted(axis % 4 for axis in _argument(node, 1, "dim", []) or [])
        if x.layout != "image" or axes != [2, 3]:
            raise self._unsupported(node, f"a mean over axes {axes} of a tensor laid out as {x.layout}")
        h, w, c = x.shape
        layout = "image" if _argument(node, 2, "keepdim", False) else "flat"
        stride = max(h, w)  # a single window: any stride that fits
        pool = Node(Op.AVGPOOL, (x.draft,), (1, 1, c), x.shape, kernel=(h, w), stride=stride, name=node.name)
        self._add(node, pool, layout)

    def _concat(self, node: FxNode) -> None:
        parts = [self._value(node, part) for part in node.args[0]]
        axis = _argument(node, 1, "dim", 0) % len(_sizes(node))
        if axis != 1 or any(
            part.layout not in ("image", "flat") or part.shape[:2] != parts[0].shape[:2] for part in parts
        ):
            raise self._unsupported(node, "a concatenation of other things than channels")
        if any(part.layout == "flat" and part.shape[:2] != (1, 1) for part in parts):
            raise self._unsupported(node, "a concatenation of flattened images")
        joined, layout = parts[0], parts[0].layout
        for part in parts[1:]:
            h, w, c = joined.shape
            self._add(
                node,
                Node(Op.CONCAT, (joined.draft, part.draft), (h, w, c + part.shape[2]), joined.shape, name=node.name),
                layout,
            )
            joined = self.values[node]

    def _matmul(self, node: FxNode) -> None:
        a, b = self._value(node, node.args[0]), self._value(node, node.args[1])
        if a.layout != "rows" or b.layout != "columns" or a.shape[2] != b.shape[2]:
            raise self._unsupported(
                node, f"a matrix product of {a.layout} with {b.layout}: expected a (n, m, k) @ b.transpose(1, 2)"
            )
        self._add(
            node,
            Node(Op.MATMUL, (a.draft, b.draft), (1, a.shape[1], b.shape[1]), a.shape, name=node.name),
            "rows",
        )

    def _table(self, node: FxNode) -> None:
        x = self._value(node, node.args[0])
        name = _name(node)
        if any(not isinstance(value, float) for value in node.args[1:]) and name != "gelu":
            raise self._unsupported(node, "a function with parameters")
        if node.kwargs.get("approximate", "none") != "none":
            raise self._unsupported(node, "an approximate gelu")
        self._add(node, Node(Op.LUT, (x.draft,), x.shape, x.shape, function=name, name=node.name), x.layout)

    def _view(self, node: FxNode) -> None:
        x, shape = self._value(node, node.args[0]), _sizes(node)
        h, w, c = x.shape
        views: dict[tuple[int, ...], tuple[Shape, str]] = {}
        if x.layout == "image":
            views = {
                (c * h * w,): (x.shape, "flat"),
                (c, h * w): ((1, h * w, c), "columns"),
                (c, h, w): (x.shape, "image"),
            }
        elif x.layout == "flat" and h == w == 1:
            views = {(c,): (x.shape, "flat"), (c, 1, 1): (x.shape, "image"), (1, c): ((1, 1, c), "rows")}
        elif x.layout == "flat":
            views = {(c * h * w,): (x.shape, "flat"), (c, h, w): (x.shape, "image")}
        elif x.layout == "rows" and w == 1:
            views = {(c,): (x.shape, "flat"), (1, c): (x.shape, "rows")}
        found = views.get(tuple(shape[1:]))
        if found is None:
            raise self._unsupported(node, f"a view of (h, w, c) = {x.shape} laid out as {x.layout}")
        self.values[node] = _Value(x.draft, found[0], found[1], x.sole and len(node.users) == 1)

    def _transpose(self, node: FxNode) -> None:
        x = self._value(node, node.args[0])
        if str(node.target).startswith("aten.permute."):
            axes = [axis % 3 for axis in node.args[1]]
            wanted = axes == [0, 2, 1]
        else:
            wanted = {axis % 3 for axis in node.args[1:3]} == {1, 2}
        other = {"rows": "columns", "columns": "rows"}.get(x.layout)
        if other is None or not wanted:
            raise self._unsupported(node, f"a transposition of a tensor laid out as {x.layout}")
        self.values[node] = replace(x, layout=other, sole=x.sole and len(node.users) == 1)

    def _getitem(self, node: FxNode) -> None:
        if node.args[1] != 0:
            raise self._unsupported(node, "a second result")
        self.values[node] = self._value(node, node.args[0])

    # -- values

    def _add(self, fx: FxNode, node: Node, layout: str) -> None:
        self.drafts.append(_Draft(node))
        self.values[fx] = _Value(len(self.drafts) - 1, node.shape, layout, len(fx.users) == 1)

    def _is_value(self, argument: Any) -> bool:
        return not isinstance(argument, int | float) and argument in self.values

    def _value(self, node: FxNode, argument: Any) -> _Value:
        if not self._is_value(argument):
            raise self._unsupported(node, f"operand {argument} is not an activation")
        return self.values[argument]

    def _constant(self, node: FxNode, argument: Any) -> Any:
        if argument not in self.constants:
            raise self._unsupported(node, f"operand {argument} is not a weight")
        return self.constants[argument]

    def _vector(self, node: FxNode, argument: Any) -> NDArray[np.float64]:
        """A scalar, or a constant tensor with one number or one a channel of an image."""
        if isinstance(argument, int | float):
            return np.array([float(argument)])
        constant = self._constant(node, argument)
        channels = self.values[node.args[0]].shape[2]
        if constant.numel() not in (1, channels) or (
            self.values[node.args[0]].layout == "image" and constant.numel() > 1 and constant.shape[-2:] != (1, 1)
        ):
            raise self._unsupported(node, f"a constant of shape {tuple(constant.shape)}")
        return np.asarray(constant.double().numpy()).reshape(-1)

    def _unsupported(self, node: FxNode, why: str) -> UnsupportedOperator:
        shapes = [
            tuple(argument.meta["val"].shape)
            for argument in node.args
            if hasattr(argument, "meta") and hasattr(argument.meta.get("val"), "shape")
        ]
        return UnsupportedOperator(f"{node.target} ({node.name}) with inputs {shapes}: {why}")


def _finish(draft: _Draft) -> Node:
    """The node with its BatchNorm folded: in float64, then rounded once."""
    node = draft.node
    if draft.scale is None or draft.offset is None:
        return node
    assert node.weight is not None
    assert node.bias is not None
    weight = (node.weight.astype(np.float64) * draft.scale[:, None, None, None]).astype(np.float32)
    bias = (node.bias.astype(np.float64) * draft.scale + draft.offset).astype(np.float32)
    return replace(node, weight=weight, bias=bias)


def _prune(nodes: list[Node], output: int) -> Graph:
    """Only what the output needs, renumbered; the input stays node 0 and the output becomes the last."""
    needed = {0, output}
    for i in range(output, 0, -1):
        if i in needed:
            needed.update(nodes[i].inputs)
    order = sorted(needed)
    number = {old: new for new, old in enumerate(order)}
    kept = [replace(nodes[i], inputs=tuple(number[j] for j in nodes[i].inputs)) for i in order]
    return Graph(Profile.IEEE32, tuple(kept))


def _sizes(node: FxNode) -> tuple[int, ...]:
    """The sizes of a result; the batch, which may be symbolic, as -1. Raises UnsupportedOperator for other symbols."""
    value = node.meta["val"]
    shape = (value[0] if isinstance(value, tuple | list) else value).shape
    for size in shape[1:]:
        if not isinstance(size, int):
            raise UnsupportedOperator(f"{node.name} has the dynamic shape {tuple(shape)}: only the batch may be free")
    return (-1, *map(int, shape[1:]))


def _name(node: FxNode) -> str:
    """`relu` of `aten.relu_.default`."""
    return getattr(node.target, "__name__", str(node.target)).split(".")[0].removesuffix("_")


_MISSING = object()


def _argument(node: FxNode, position: int, name: str, default: Any = _MISSING) -> Any:
    if position < len(node.args):
        return node.args[position]
    if name in node.kwargs or default is _MISSING:
        return node.kwargs[name]
    return default


def _pair(value: Any) -> tuple[int, int]:
    values = [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)]
    return values[0], values[-1]


def _one(lowering: _Lowering, node: FxNode, name: str, value: Any) -> int:
    first, second = _pair(value)
    if first != second:
        raise lowering._unsupported(node, f"{name} {first} x {second}: expected the same along both axes")
    return first


_WINDOW = ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))
_CLAMPING = CONVOLUTIONS | {Op.ADD, Op.MUL, Op.CLAMP}
_ALIASES = frozenset(
    {"dropout", "alias", "detach", "clone", "contiguous", "to", "_to_copy", "identity", "lift_fresh_copy"}
)

_HANDLERS: Mapping[str, Callable[[_Lowering, Any], None]] = {
    "conv2d": _Lowering._convolution,
    "convolution": _Lowering._convolution,
    "linear": _Lowering._linear,
    "addmm": _Lowering._linear,
    "batch_norm": _Lowering._batch_norm,
    "_native_batch_norm_legit_no_training": _Lowering._batch_norm,
    "getitem": _Lowering._getitem,
    "relu": lambda self, node: self._clamp(node, 0.0, math.inf),
    "relu6": lambda self, node: self._clamp(node, 0.0, 6.0),
    "hardtanh": _Lowering._hardtanh,
    "clamp": _Lowering._clip,
    "clamp_min": _Lowering._clip,
    "add": _Lowering._add_,
    "mul": _Lowering._mul,
    "max_pool2d": _Lowering._max_pool,
    "max_pool2d_with_indices": _Lowering._max_pool,
    "avg_pool2d": _Lowering._avg_pool,
    "adaptive_avg_pool2d": _Lowering._adaptive,
    "_adaptive_avg_pool2d": _Lowering._adaptive,
    "mean": _Lowering._mean,
    "cat": _Lowering._concat,
    "matmul": _Lowering._matmul,
    "bmm": _Lowering._matmul,
    "flatten": _Lowering._view,
    "view": _Lowering._view,
    "_unsafe_view": _Lowering._view,
    "reshape": _Lowering._view,
    "squeeze": _Lowering._view,
    "unsqueeze": _Lowering._view,
    "transpose": _Lowering._transpose,
    "permute": _Lowering._transpose,
}


def _sigmoid(x: Any, m: Any) -> Any:
    return 1 / (1 + m.exp(-x))


FUNCTIONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "sigmoid": _sigmoid,
    "silu": lambda x, m: x * _sigmoid(x, m),
    "tanh": lambda x, m: m.tanh(x),
    "gelu": lambda x, m: x * (1 + m.erf(x / m.sqrt(2))) / 2,
    "hardsigmoid": lambda x, m: min(max(x + 3, 0), 6) / m.mpf(6),
    "hardswish": lambda x, m: x * min(max(x + 3, 0), 6) / m.mpf(6),
    "abs": lambda x, m: abs(x),
    "neg": lambda x, m: -x,
}
"""Functions that profile int8 tabulates: `f(x, m)` of one number with the functions of module `m` (mpmath)."""
