"""From a user's `apply_edge` and `apply_vertex` to expressions: traced by torch.fx, shapes from meta tensors."""

from __future__ import annotations

import copy
import operator
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from systems.ngra.expression import Book, Call, Node, Slot
from systems.ngra.expression import typed_product as typed_product
from systems.ngra.graph import ProgramError

_TRACING = threading.RLock()  # torch.fx patches nn.Module for the whole process while it traces
_ROWS = 1_000_003  # of every meta tensor: no other axis has this length, so that the row axis can be told

_NAMES: Mapping[str, str] = {
    "add": "add", "sub": "sub", "subtract": "sub", "mul": "mul", "multiply": "mul", "truediv": "div", "div": "div",
    "divide": "div", "true_divide": "div", "neg": "neg", "negative": "neg", "abs": "abs", "absolute": "abs",
    "exp": "exp", "log": "log", "sqrt": "sqrt", "rsqrt": "rsqrt", "sigmoid": "sigmoid", "tanh": "tanh",
    "relu": "relu", "square": "square", "reciprocal": "reciprocal", "sign": "sign", "minimum": "minimum",
    "maximum": "maximum", "gt": "gt", "ge": "ge", "lt": "lt", "le": "le", "eq": "eq", "greater": "gt", "less": "lt",
}  # fmt: skip
_RANDOM = frozenset(
    [
        "dropout",
        "dropout1d",
        "dropout2d",
        "dropout3d",
        "alpha_dropout",
        "feature_alpha_dropout",
        "rand",
        "randn",
        "randint",
        "rand_like",
        "randn_like",
        "randint_like",
        "randperm",
        "bernoulli",
        "multinomial",
        "normal",
        "poisson",
        "rrelu",
        "gumbel_softmax",
    ]
)
_MODULES: Mapping[type, str] = {nn.ReLU: "relu", nn.Sigmoid: "sigmoid", nn.Tanh: "tanh"}


def typed_linear(value: Any, weight: Any, kind: Any) -> Any:
    """weight[kind] @ value per row: one matrix for each type of arc. For use in `apply_edge`.

    value: (arcs, in); weight: (types, out, in); kind: (arcs,) integers -> (arcs, out).
    """
    for part in (value, weight, kind):
        if isinstance(part, fx.Proxy):
            return part.tracer.create_proxy("call_function", typed_linear, (value, weight, kind), {})
    return typed_product(value, weight, kind)


class _Tracer(fx.Tracer):
    """Traces one method of a layer; modules of torch are leaves, a user's own are looked into."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.traced_func_name = method
        self.record_stack_traces = True


@dataclass(frozen=True)
class Spec:
    """What one named piece of vertex or arc data looks like. shape: after the row axis."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    needs_grad: bool


@dataclass(frozen=True)
class Argument:
    """What a parameter of the user's function stands for: its leaves by name ("" alone: not a dict), or None."""

    leaves: Mapping[str, Node]
    dtypes: Mapping[str, torch.dtype]

    @property
    def single(self) -> bool:
        """Whether it is one tensor and not a dict of them."""
        return set(self.leaves) == {""}


def trace(
    book: Book, layer: nn.Module, method: str, arguments: Sequence[Argument | None], dtype: torch.dtype, *,
    random: bool,
) -> Any:  # fmt: skip
    """The result of a method as expressions: a Node, or a tuple of them. random: whether random operations may occur.

    Raises ProgramError with the user's line.
    """
    function = getattr(type(layer), method)
    names = function.__code__.co_varnames[1 : 1 + len(arguments)]
    absent = {name: None for name, given in zip(names, arguments, strict=True) if given is None}
    with _TRACING:
        try:
            traced = _Tracer(method).trace(layer, concrete_args=absent)
        except ProgramError:
            raise
        except (fx.proxy.TraceError, TypeError, RuntimeError, AttributeError, ValueError, IndexError) as error:
            raise ProgramError(
                f"{_line(error, function)}: {method} cannot be captured: {error}; it must be a fixed sequence of torch "
                "operations, without branches on data, .item(), or loops over rows"
            ) from error
        meta = copy.deepcopy(layer).to("meta")
        reader = _Reader(book, layer, meta, method, dtype, random)
        given = {name: argument for name, argument in zip(names, arguments, strict=True) if argument is not None}
        return reader.read(traced, given)


class _Reader:
    """Turns the nodes of one fx graph into expressions, one after the other."""

    def __init__(
        self, book: Book, layer: nn.Module, meta: nn.Module, method: str, dtype: torch.dtype, random: bool
    ) -> None:
        self.book, self.layer, self.meta, self.method, self.dtype, self.random = (
            book,
            layer,
            meta,
            method,
            dtype,
            random,
        )
        self.values: dict[fx.Node, Any] = {}  # Node, Argument, or a Python value
        self.metas: dict[fx.Node, Any] = {}
        self.place = method

    def read(self, graph: fx.Graph, arguments: Mapping[str, Argument]) -> Any:
        """The value of the graph's output. arguments: by the names of the method's parameters; others are None."""
        for node in graph.nodes:
            self.place = _place(node) or self.place
            if node.op in {"call_function", "call_method", "call_module"}:
                self._refuse(node)
        for node in graph.nodes:
            self.place = _place(node) or self.place
            if node.op == "placeholder":
                if node.target in arguments:
                    self._placeholder(node, arguments[str(node.target)])
            elif node.op == "get_attr":
                self._parameter(node, str(node.target))
            elif node.op == "output":
                return self._result(fx.map_arg(node.args[0], lambda inner: self.values[inner]))
            elif not _is_assertion(node):
                self._operation(node)
        raise ProgramError(f"{self.method} returns nothing")

    def _result(self, result: Any) -> Any:
        parts = result if isinstance(result, tuple | list) else (result,)
        nodes = []
        for part in parts:
            if isinstance(part, Argument) and part.single:
                part = part.leaves[""]
            if not isinstance(part, Node):
                raise ProgramError(f"{self.method} returns {type(part).__name__}, expected a tensor with a row per arc")
            nodes.append(part)
        return tuple(nodes) if isinstance(result, tuple | list) else nodes[0]

    def _placeholder(self, node: fx.Node, argument: Argument) -> None:
        tensors = {
            name: torch.empty((_ROWS, *leaf.shape), dtype=argument.dtypes[name], device="meta")
            for name, leaf in argument.leaves.items()
        }
        self.metas[node] = tensors[""] if argument.single else tensors
        self.values[node] = argument.leaves[""] if argument.single else argument

    def _parameter(self, node: fx.Node, name: str) -> None:
        self.metas[node] = _attribute(self.meta, name)
        tensor = self.metas[node]
        if not isinstance(tensor, Tensor):
            self.values[node] = tensor
            return
        self.values[node] = self.book.leaf("P", name, tensor.shape)

    def _operation(self, node: fx.Node) -> None:
        name, first = (
            _name(node),
            self.values.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None,
        )
        if name == "getitem" and isinstance(first, Argument) and node.args[1] not in first.leaves:
            raise ProgramError(f"{self.place}: there is no {node.args[1]!r} among {sorted(first.leaves)}")
        try:
            self.metas[node] = self._on_meta(node)
        except (RuntimeError, TypeError, IndexError, KeyError, ValueError, NotImplementedError) as error:
            raise ProgramError(f"{self.place}: {node.name} in {self.method} does not fit its data: {error}") from error
        made = self._known(node)
        self.values[node] = self._opaque(node) if made is None else made
        value, meta = self.values[node], self.metas[node]
        if isinstance(value, Node) and isinstance(meta, Tensor):
            wanted = (tuple(meta.shape[1:]), meta.shape[0] == _ROWS) if value.sides else (tuple(meta.shape), True)
            if not wanted[1] or _ROWS in wanted[0]:
                raise ProgramError(
                    f"{self.place}: {node.name} has shape {_shape_text(meta)} in {self.method}; "
                    "the first axis must stay that of the rows, and rows must not meet each other"
                )
            if value.shape != wanted[0]:
                self.values[node] = self.book.to_shape(value, wanted[0])

    def _on_meta(self, node: fx.Node) -> Any:
        arguments: Any = fx.map_arg((node.args, dict(node.kwargs)), lambda inner: self.metas[inner])
        args, kwargs = arguments
        if node.op == "call_module":
            return self.meta.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.target is typed_linear:
            return args[0].new_empty(args[0].shape[0], args[1].shape[1])
        assert callable(node.target)
        return node.target(*args, **kwargs)

    # ------------------------------------------------------------------------------------------------ refusals

    def _refuse(self, node: fx.Node) -> None:
        name = _name(node)
        if node.op == "call_module":
            module = self.layer.get_submodule(str(node.target))
            name = "dropout" if isinstance(module, nn.modules.dropout._DropoutNd) else name
        if name in _RANDOM and not self.random:
            raise ProgramError(
                f"{self.place}: {name} in {self.method} draws random numbers, which chunks and recomputation would "
                "draw again; drop vertex data outside of the layer, or arcs by passing a mask as arc data"
            )
        in_place = (node.op == "call_method" and name.endswith("_") and not name.endswith("__")) or (
            node.op == "call_function" and name in _IN_PLACE
        )
        if in_place or node.kwargs.get("inplace") or node.kwargs.get("out") is not None:
            raise ProgramError(f"{self.place}: {name} in {self.method} writes in place; use the form that returns")
        if name in {"item", "tolist", "numpy"}:
            raise ProgramError(f"{self.place}: {name}() in {self.method} asks for a value while it is captured")

    # -------------------------------------------------------------------------------------- known operations

    def _operand(self, value: Any) -> Node | None:
        if isinstance(value, fx.Node):
            value = self.values[value]
        if isinstance(value, Node):
            return value
        if isinstance(value, bool | int | float):
            return self.book.const(value)
        return None

    def _known(self, node: fx.Node) -> Any:
        """The expression of an operation that is analysed, or None."""
        name, book = _name(node), self.book
        if node.op == "call_module":
            return self._module(node)
        raw = list(node.args)
        first = self.values.get(raw[0]) if raw and isinstance(raw[0], fx.Node) else None
        if name == "getitem" and isinstance(first, Argument):
            return first.leaves[str(raw[1])]
        if not isinstance(self.metas[node], Tensor):
            parts = self.metas[node]
            return parts if not isinstance(parts, tuple) or isinstance(parts, torch.Size) else None
        if name in _NAMES:
            operands = [self._operand(arg) for arg in raw]
            floating = not (set(node.kwargs) - {"inplace"}) and all(operands)
            return book.make(_NAMES[name], [part for part in operands if part], None) if floating else None
        if name == "pow" and len(raw) == 2 and isinstance(first, Node):
            powers: dict[Any, str] = {2: "square", 0.5: "sqrt", -1: "reciprocal", -0.5: "rsqrt", 1: ""}
            form = powers.get(raw[1])
            return None if form is None else (book.make(form, [first]) if form else first)
        if name == "leaky_relu" and isinstance(first, Node):
            slope = node.kwargs.get("negative_slope", raw[1] if len(raw) > 1 else 0.01)
            return book.leaky_relu(first, data=_number(slope))
        if name == "elu" and isinstance(first, Node) and "scale" not in node.kwargs and len(raw) < 3:
            return book.elu(first, data=_number(node.kwargs.get("alpha", raw[1] if len(raw) > 1 else 1.0)))
        if name == "silu" and isinstance(first, Node):
            return book.mul(first, book.sigmoid(first))
        if name == "where" and len(raw) == 3:
            operands = [self._operand(arg) for arg in raw]
            return book.make("where", [part for part in operands if part]) if all(operands) else None
        if node.target is typed_linear:
            parts = [self._operand(arg) for arg in raw]
            return book.make("typed", [part for part in parts if part])
        if isinstance(first, Node):
            return self._layout(name, node, first)
        if name in {"cat", "concat", "concatenate"}:
            return self._cat(node)
        return None

    def _layout(self, name: str, node: fx.Node, x: Node) -> Node | None:
        book, raw, meta = self.book, list(node.args), self.metas[node]
        shape = tuple(meta.shape[1:]) if x.sides else tuple(meta.shape)
        if name in {"view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze"}:
            if not x.sides or meta.shape[0] == _ROWS:
                return book.make("reshape", (x,), shape)
            return None
        if name in {"contiguous", "clone"}:
            return x
        if name in {"sum", "mean"} and x.sides and x.shape:
            axes = node.kwargs.get("dim", raw[1] if len(raw) > 1 else None)
            last = len(x.shape)
            if axes in (-1, last, (-1,), [-1], (last,), [last]) and not (set(node.kwargs) - {"dim", "keepdim"}):
                result = book.reduced(x, (*x.shape[:-1], 1))
                if name == "mean":
                    result = book.mul(result, 1.0 / x.shape[-1])
                return result if result.shape == shape else book.make("reshape", (result,), shape)
            return None
        if name == "linear":
            weight = self._operand(node.kwargs.get("weight", raw[1] if len(raw) > 1 else None))
            bias = node.kwargs.get("bias", raw[2] if len(raw) > 2 else None)
            return self._linear(x, weight, self._operand(bias) if bias is not None else None)
        if name == "matmul" and len(raw) == 2:
            other = self._operand(raw[1])
            if other is None or other.sides or not x.sides or not x.shape:
                return None
            if len(other.shape) == 2:
                return self._linear(x, book.make("transpose", (other,)), None)
            if len(other.shape) == 1:
                row = book.make("reshape", (other,), (1, *other.shape))
                return book.make("reshape", (self._linear(x, row, None),), shape)
            return None
        if name in {"t", "T"} and not x.sides and len(x.shape) == 2:
            return book.make("transpose", (x,))
        return None

    def _linear(self, x: Node, weight: Node | None, bias: Node | None) -> Node:
        assert weight is not None
        if not x.sides:
            return self.book.make(
                "call", (x, weight), Call(F.linear, (Slot(0), Slot(1)), ()), self._linear_shape(x, weight)
            )
        product = self.book.make("linear", (x, weight))
        return product if bias is None else self.book.add(product, bias)

    @staticmethod
    def _linear_shape(x: Node, weight: Node) -> tuple[int, ...]:
        return (*x.shape[:-1], weight.shape[0])

    def _cat(self, node: fx.Node) -> Node | None:
        raw = list(node.args)
        axis = node.kwargs.get("dim", raw[1] if len(raw) > 1 else 0)
        parts = [self._operand(part) for part in raw[0]] if isinstance(raw[0], tuple | list) else [None]
        nodes = [part for part in parts if part]
        if len(nodes) != len(parts) or not all(part.sides for part in nodes):
            return None
        if axis not in (-1, len(nodes[0].shape)):
            return None
        return self.book.make("cat", nodes)

    def _module(self, node: fx.Node) -> Node | None:
        module = self.layer.get_submodule(str(node.target))
        x = self._operand(node.args[0]) if node.args else None
        hooked = module._forward_hooks or module._forward_pre_hooks
        if x is None or hooked or len(node.args) != 1 or node.kwargs:
            return None
        if type(module) is nn.Linear:
            weight = self.book.leaf("P", f"{node.target}.weight", module.weight.shape)
            bias = None if module.bias is None else self.book.leaf("P", f"{node.target}.bias", module.bias.shape)
            return self._linear(x, weight, bias)
        if type(module) in _MODULES and not getattr(module, "inplace", False):
            return self.book.make(_MODULES[type(module)], [x])
        if isinstance(module, nn.LeakyReLU) and not module.inplace:
            return self.book.leaky_relu(x, data=_number(module.negative_slope))
        if isinstance(module, nn.ELU) and not module.inplace:
            return self.book.elu(x, data=_number(module.alpha))
        return x if type(module) is nn.Identity else None

    def _opaque(self, node: fx.Node) -> Any:
        """Any other operation: kept as it is, and run by torch."""
        found: list[Node] = []

        def template(part: Any) -> Any:
            if isinstance(part, fx.Node):
                value = self.values[part]
                if isinstance(value, Node):
                    found.append(value)
                    return Slot(len(found) - 1)
                return template(value) if isinstance(value, tuple | list) else value
            if isinstance(part, tuple | list) and not isinstance(part, torch.Size):
                return type(part)(template(inner) for inner in part)
            if isinstance(part, dict):
                return {key: template(value) for key, value in part.items()}
            if isinstance(part, int) and part == _ROWS:
                raise ProgramError(f"{self.place}: {node.name} uses the number of rows; write -1 for it")
            if isinstance(part, Node):
                found.append(part)
                return Slot(len(found) - 1)
            return part

        args = tuple(template(part) for part in node.args)
        kwargs = tuple((key, template(value)) for key, value in node.kwargs.items())
        function: Any = str(node.target)
        if node.op == "call_method":
            function = _Method(str(node.target))
        elif node.op == "call_function":
            function = node.target
        meta = self.metas[node]
        if not isinstance(meta, Tensor):  # several results: each is a call of its own, taken apart by getitem
            whole = self.book.make("call", found, Call(function, args, kwargs), ())
            return tuple(
                self.book.make("call", (whole,), Call(operator.getitem, (Slot(0), k), ()), tuple(part.shape[1:]))
                for k, part in enumerate(meta)
            )
        sides = any(part.sides for part in found)
        return self.book.make("call", found, Call(function, args, kwargs), meta.shape[1:] if sides else meta.shape)


class _Method:
    """A method of a tensor as a function."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(x, self.__name__)(*args, **kwargs)


_IN_PLACE = frozenset(
    ["iadd", "isub", "imul", "itruediv", "ipow", "setitem", "delitem", "relu_", "leaky_relu_", "elu_"]
)


def _name(node: fx.Node) -> str:
    if node.op == "call_method":
        return str(node.target)
    return getattr(node.target, "__name__", str(node.target)).removesuffix("__").removeprefix("__")


def _number(value: Any) -> float:
    if not isinstance(value, int | float):
        raise ProgramError(f"a slope must be a number, not {type(value).__name__}")
    return float(value)


def _is_assertion(node: fx.Node) -> bool:
    if node.op != "call_function":
        return False
    name = getattr(node.target, "__name__", "")
    return name in {"_assert", "_assert_is_none"} or (name == "eq" and all(_is_assertion(user) for user in node.users))


def _attribute(module: nn.Module, name: str) -> Any:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _shape_text(meta: Tensor) -> str:
    return "(" + ", ".join("rows" if size == _ROWS else str(size) for size in meta.shape) + ")"


def _place(node: fx.Node) -> str | None:
    trail = [line for line in (node.stack_trace or "").splitlines() if line.strip().startswith("File")]
    inside = str(Path(torch.__file__).parent)  # of torch: its frames are not where the user wrote the operation
    lines = [line for line in trail if inside not in line]
    if not lines:
        return None
    file, line = lines[-1].split('"')[1], lines[-1].split("line ")[1].split(",")[0]
    return f"{file}:{line}"


def _line(error: BaseException, function: Callable[..., Any]) -> str:
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        if frame.f_code is function.__code__:
            return f"{function.__code__.co_filename}:{line}"
    return f"{function.__code__.co_filename}:{function.__code__.co_firstlineno}"
