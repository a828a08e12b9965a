"""The expression graph of a vertex program: nodes, their derivatives, and their values by torch.

A node stands for one value per row (an arc or a vertex), or for a parameter. `shape` is what follows the row axis;
`sides` is what it depends on: S (the source's data), D (the destination's), E (the arc's), A (an accumulated value);
a parameter or constant has none. Nodes are interned by a `Book`: equal expressions are one object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from systems.ngra.dense import product
from systems.ngra.graph import ProgramError

Sides = frozenset[str]

UNARY = frozenset(
    [
        "neg",
        "abs",
        "sign",
        "exp",
        "log",
        "sqrt",
        "rsqrt",
        "sigmoid",
        "tanh",
        "relu",
        "leaky_relu",
        "elu",
        "square",
        "reciprocal",
    ]
)
BINARY = frozenset(["add", "sub", "mul", "div", "minimum", "maximum", "gt", "ge", "lt", "le", "eq"])
ELEMENTWISE = UNARY | BINARY | {"where"}
LAYOUT = frozenset({"reshape", "expand", "reduce"})
COMPARISONS = frozenset({"gt", "ge", "lt", "le", "eq"})
POLES = frozenset({"log", "sqrt", "rsqrt", "reciprocal", "div", "exp", "call"})
"""Operations whose value or derivative may not be finite at a finite argument."""


@dataclass(frozen=True, eq=False)
class Node:
    """See the module. `data`: what else decides the value: a name, a number, a shape."""

    op: str
    args: tuple[Node, ...]
    data: Any
    shape: tuple[int, ...]
    sides: Sides

    def __str__(self) -> str:
        return spell(self)

    @property
    def width(self) -> int:
        """Numbers per row."""
        width = 1
        for size in self.shape:
            width *= size
        return width


@dataclass(frozen=True, eq=False)
class Call:
    """An operation that is not analysed: `function` of `args` and `kwargs`, where `Slot(k)` stands for argument k.

    A function given as a str is a submodule of the layer.
    """

    function: Callable[..., Any] | str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Slot:
    """The place of a node in the arguments of a `Call`."""

    index: int


@dataclass(frozen=True)
class Gathered:
    """What a gather node holds beside its message: the accumulator."""

    accumulator: str


class Book:
    """Makes and interns nodes."""

    def __init__(self) -> None:
        self._nodes: dict[tuple[Any, ...], Node] = {}

    def make(
        self, op: str, args: Sequence[Node] = (), data: Any = None, shape: Sequence[int] | None = None,
        sides: Sides | None = None,
    ) -> Node:  # fmt: skip
        """A node; shape and sides are worked out where they follow from the arguments."""
        arguments = tuple(args)
        shape = _shape(op, arguments, data) if shape is None else tuple(shape)
        if sides is None:
            sides = frozenset[str]().union(*(arg.sides for arg in arguments))
        # With the shape: the columns of two sums may have one name and two widths.
        key = (op, tuple(map(id, arguments)), data, type(data), shape, sides)
        found = self._nodes.get(key)
        if found is None:
            found = self._nodes[key] = Node(op, arguments, data, shape, sides)
        return found

    def leaf(self, side: str, name: str, shape: Sequence[int]) -> Node:
        """Data of one side by name; side "P" is a parameter of the layer by its qualified name."""
        return self.make("leaf", (), (side, name), shape, frozenset() if side == "P" else frozenset(side))

    def const(self, value: float) -> Node:
        """A number."""
        return self.make("const", (), float(value), ())

    def __getattr__(self, op: str) -> Callable[..., Node]:
        # book.mul(a, b), book.relu(a): numbers are taken for constants.
        if op not in ELEMENTWISE:
            raise AttributeError(op)

        def build(*args: Node | float, data: Any = None) -> Node:
            return self.make(op, [arg if isinstance(arg, Node) else self.const(arg) for arg in args], data)

        return build

    def product(self, factors: Sequence[Node]) -> Node:
        """The product of one or more nodes, from the left."""
        result = factors[0]
        for factor in factors[1:]:
            result = self.mul(result, factor)
        return result

    def total(self, terms: Sequence[Node]) -> Node:
        """The sum of one or more nodes, from the left."""
        result = terms[0]
        for term in terms[1:]:
            result = self.add(result, term)
        return result

    def to_shape(self, node: Node, shape: tuple[int, ...]) -> Node:
        """`node` repeated over the axes that `shape` adds to its own."""
        return node if node.shape == shape else self.make("expand", (node,), shape)

    def reduced(self, node: Node, shape: tuple[int, ...]) -> Node:
        """`node` summed over the axes along which `shape` was repeated."""
        return node if node.shape == shape else self.make("reduce", (node,), shape)


def broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The common shape of trailing axes, aligned at the right."""
    return tuple(torch.broadcast_shapes(*shapes))


def _shape(op: str, args: tuple[Node, ...], data: Any) -> tuple[int, ...]:
    if op in ELEMENTWISE:
        return broadcast(*(arg.shape for arg in args))
    if op in LAYOUT:
        assert isinstance(data, tuple)
        return data
    if op == "linear":
        return (*args[0].shape[:-1], args[1].shape[0])
    if op == "transpose":
        return args[0].shape[::-1]
    if op == "columns":
        assert isinstance(data, tuple)
        return (*args[0].shape[:-1], data[1] - data[0])
    if op == "cat":
        return (*args[0].shape[:-1], sum(arg.shape[-1] for arg in args))
    if op == "typed":  # (x: (in,), weight: (types, out, in), type: ())
        return (args[1].shape[1],)
    if op == "products":  # (x: (in,), weight: (types, out, in)): every type's product
        return args[1].shape[:2]
    if op == "pick":  # (column: (types, out), type: ())
        return args[0].shape[1:]
    raise AssertionError(f"the shape of {op} must be given")


def walk(*roots: Node) -> Iterator[Node]:
    """Every node below the roots once, arguments before their users."""
    seen: set[int] = set()
    stack: list[tuple[Node, bool]] = [(root, False) for root in reversed(roots)]
    while stack:
        node, ready = stack.pop()
        if ready:
            yield node
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack += [(arg, False) for arg in reversed(node.args)]


def replace(book: Book, root: Node, mapping: Mapping[Node, Node]) -> Node:
    """`root` with the nodes that are keys of `mapping` put in place of."""
    return rewrite(book, root, lambda node: mapping.get(node))


def rewrite(book: Book, root: Node, rule: Callable[[Node], Node | None]) -> Node:
    """`root` rebuilt from the leaves up; where `rule(node)` gives a node, that stands in its place.

    The rule sees a node first as it was (and then its arguments are left alone), then with rebuilt arguments.
    """
    done: dict[Node, Node] = {}

    def visit(node: Node) -> Node:
        if node in done:
            return done[node]
        found = rule(node)
        if found is None:
            args = tuple(visit(arg) for arg in node.args)
            if args != node.args:
                fresh = node.op in {"call", "leaf"}
                sides = None if fresh else (node.sides if node.op == "gather" else None)
                shape = node.shape if node.op in {"call", "gather"} else None
                rebuilt = book.make(node.op, args, node.data, shape, sides)
                found = rule(rebuilt) or rebuilt
            else:
                found = node
        done[node] = found
        return found

    return visit(root)


# ---------------------------------------------------------------------------------------------------- derivatives


def partial(book: Book, node: Node, index: int) -> Node:
    """The derivative of an elementwise node by its argument `index`, as torch defines it where there is a kink."""
    args, op = node.args, node.op
    x = args[0]
    if op == "add":
        return book.const(1)
    if op == "sub":
        return book.const(1 if index == 0 else -1)
    if op == "mul":
        return args[1 - index]
    if op == "div":
        return book.reciprocal(args[1]) if index == 0 else book.neg(book.div(node, args[1]))
    if op == "neg":
        return book.const(-1)
    if op == "abs":
        return book.sign(x)
    if op == "exp":
        return node
    if op == "log":
        return book.reciprocal(x)
    if op == "sqrt":
        return book.div(0.5, node)
    if op == "rsqrt":
        return book.mul(-0.5, book.div(node, x))
    if op == "reciprocal":
        return book.neg(book.square(node))
    if op == "square":
        return book.mul(2.0, x)
    if op == "sigmoid":
        return book.mul(node, book.sub(1.0, node))
    if op == "tanh":
        return book.sub(1.0, book.square(node))
    if op == "relu":
        return book.gt(x, 0.0)
    if op == "leaky_relu":
        return book.where(book.gt(x, 0.0), 1.0, float(str(node.data)))
    if op == "elu":
        alpha = float(str(node.data))
        return book.where(book.gt(x, 0.0), 1.0, book.mul(alpha, book.exp(x)))
    if op in {"minimum", "maximum"}:
        wins = book.lt if op == "minimum" else book.gt
        return book.where(book.eq(args[0], args[1]), 0.5, wins(args[index], args[1 - index]))
    if op == "where":
        return book.const(0) if index == 0 else book.where(x, float(index == 1), float(index == 2))
    if op in COMPARISONS or op == "sign":
        return book.const(0)
    raise ProgramError(f"{op} has no derivative here")


def adjoints(book: Book, seeds: Mapping[Node, Node], leaves: Sequence[Node]) -> list[Node | None]:
    """For each leaf the sum over `seeds` (result -> upstream gradient) of the gradient by it; None where there is none.

    Leaves are not looked into: they may be any nodes. Each gradient has the shape of its leaf.
    """
    wanted = set(leaves)
    reach = {node for node in walk(*seeds) if node in wanted}
    upstream: dict[Node, Node] = {}

    def add(node: Node, gradient: Node) -> None:
        gradient = book.reduced(gradient, node.shape)
        upstream[node] = book.add(upstream[node], gradient) if node in upstream else gradient

    order = list(walk(*seeds))
    depends = set(reach)
    for node in order:
        if node not in wanted and any(arg in depends for arg in node.args):
            depends.add(node)
    for node, seed in seeds.items():
        add(node, book.to_shape(seed, broadcast(seed.shape, node.shape)))
    for node in reversed(order):
        gradient = upstream.get(node)
        if gradient is None or node in wanted or node not in depends:
            continue
        for index, arg in enumerate(node.args):
            if arg not in depends:
                continue
            if node.op in LAYOUT:
                if node.op == "reshape":
                    add(arg, book.make("reshape", (gradient,), arg.shape))
                elif node.op == "expand":
                    add(arg, gradient)
                else:
                    add(arg, book.to_shape(gradient, arg.shape))
                continue
            factor = partial(book, node, index)
            if factor.op == "const" and factor.data == 0.0:
                continue
            if factor.op == "where" and factor.args[1].op == "const" and factor.args[2].op == "const" and 0.0 in (
                factor.args[1].data, factor.args[2].data,
            ):  # fmt: skip
                # What the branch not taken holds (an infinity, say) must not touch the gradient.
                taken = [gradient if value.data == 1.0 else book.mul(gradient, value) for value in factor.args[1:]]
                zeroed = [
                    book.const(0) if value.data == 0.0 else part
                    for value, part in zip(factor.args[1:], taken, strict=True)
                ]
                add(arg, _spread(book, book.where(factor.args[0], *zeroed), node.shape))
            elif factor.op in COMPARISONS:
                add(arg, _spread(book, book.where(factor, gradient, 0.0), node.shape))
            elif factor.op == "const" and factor.data == 1.0:
                add(arg, _spread(book, gradient, node.shape))
            else:
                add(arg, _spread(book, book.mul(gradient, factor), node.shape))
    return [upstream.get(leaf) for leaf in leaves]


def _spread(book: Book, node: Node, shape: tuple[int, ...]) -> Node:
    return book.to_shape(node, broadcast(node.shape, shape))


def tangent(book: Book, root: Node, leaf: Node) -> Node | None:
    """The derivative of an elementwise expression by a leaf that each of its elements reads at one place.

    None where there is no such dependence, or where the expression sums or reorders elements.
    """
    found: dict[Node, Node] = {leaf: book.const(1)}
    for node in walk(root):
        if node is leaf or not any(arg in found for arg in node.args):
            continue
        if node.op not in ELEMENTWISE:
            return None
        terms = []
        for index, arg in enumerate(node.args):
            factor = partial(book, node, index)
            if arg not in found or (factor.op == "const" and factor.data == 0.0):
                continue
            inner = found[arg]
            if inner.op == "const" and inner.data == 1.0:
                terms.append(factor)
            elif factor.op == "const" and factor.data == 1.0:
                terms.append(inner)
            elif factor.op in COMPARISONS:
                terms.append(book.where(factor, inner, 0.0))
            else:
                terms.append(book.mul(inner, factor))
        if terms:
            found[node] = book.total(terms)
    return found.get(root)


# ---------------------------------------------------------------------------------------------------------- values

_TORCH: Mapping[str, Callable[..., Tensor]] = {
    "neg": torch.neg, "abs": torch.abs, "sign": torch.sign, "exp": torch.exp, "log": torch.log, "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu, "square": torch.square,
    "reciprocal": torch.reciprocal, "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div,
    "minimum": torch.minimum, "maximum": torch.maximum, "gt": torch.gt, "ge": torch.ge, "lt": torch.lt,
    "le": torch.le, "eq": torch.eq,
}  # fmt: skip


Environment = Callable[[Node], Tensor]
"""Gives the value of a leaf (or of a gather): (rows, *shape), a parameter without the rows."""


def evaluate(
    root: Node, environment: Environment, modules: Callable[[str], Callable[..., Any]], rows: int,
    dtype: torch.dtype, known: dict[Node, Any] | None = None,
) -> Any:  # fmt: skip
    """The value of an expression by torch, under autograd. `known`: values that are there; it is added to.

    modules: gives a submodule of the layer by name; rows: of every value that depends on a side; dtype: of a number
    where it must become a tensor.
    """
    values: dict[Node, Any] = {} if known is None else known
    # A stack, not a function that calls itself: such a closure is a cycle, and would keep every value until the
    # garbage collector comes.
    stack = [root]
    while stack:
        node = stack[-1]
        if node in values:
            stack.pop()
        elif node.op in {"leaf", "gather"}:
            values[node] = environment(node)
        elif node.op == "const":
            values[node] = node.data
        else:
            missing = [arg for arg in node.args if arg not in values]
            if missing:
                stack += reversed(missing)
            else:
                values[node] = apply(node, [values[arg] for arg in node.args], modules, rows, dtype)
    return values[root]


def apply(
    node: Node, args: list[Any], modules: Callable[[str], Callable[..., Any]], rows: int, dtype: torch.dtype
) -> Any:
    """The value of one node from the values of its arguments; as for `evaluate`."""
    op, data = node.op, node.data
    if op in ELEMENTWISE:
        args = [_aligned(arg, value, node) for arg, value in zip(node.args, args, strict=True)]
        if op == "leaky_relu":
            return F.leaky_relu(args[0], float(str(data)))
        if op == "elu":
            return F.elu(args[0], float(str(data)))
        if op == "where":
            return torch.where(args[0] if args[0].dtype == torch.bool else args[0] != 0, args[1], args[2])
        like = next((arg for arg in args if isinstance(arg, Tensor)), None)
        if like is None or op in {"minimum", "maximum"} or (op in {"sub", "div"} and not isinstance(args[0], Tensor)):
            args = [
                arg if isinstance(arg, Tensor) else torch.as_tensor(arg, dtype=None if like is None else like.dtype)
                for arg in args
            ]
        elif op in BINARY and not isinstance(args[0], Tensor):
            args = [torch.as_tensor(args[0], dtype=args[1].dtype), args[1]]
        return _TORCH[op](*args)
    if op != "call":
        args = [arg if isinstance(arg, Tensor) else torch.as_tensor(arg, dtype=dtype) for arg in args]
    if op == "linear":
        return product(args[0], args[1])
    if op == "transpose":
        return args[0].t()
    if op == "columns":
        assert isinstance(data, tuple)
        return args[0][..., data[0] : data[1]]
    if op == "cat":
        return torch.cat(args, -1)
    if op == "reshape":
        return args[0].reshape((rows, *node.shape) if node.sides else node.shape)
    if op == "expand":
        return _aligned(node.args[0], args[0], node).expand((rows, *node.shape) if node.sides else node.shape)
    if op == "reduce":
        return summed(args[0], node.shape)
    if op == "typed":
        return typed_product(*args)
    if op == "products":
        return torch.einsum("ni,toi->nto", args[0], args[1])
    if op == "pick":
        return args[0][torch.arange(rows), args[1].long()]
    if op == "call":
        assert isinstance(data, Call)
        function = modules(data.function) if isinstance(data.function, str) else data.function
        return function(*_filled(data.args, args), **{key: _filled(value, args) for key, value in data.kwargs})
    raise AssertionError(op)


def _aligned(node: Node, value: Any, user: Node) -> Any:
    missing = len(user.shape) - len(node.shape)
    if node.sides and missing > 0 and isinstance(value, Tensor):
        return value.reshape(value.shape[0], *[1] * missing, *value.shape[1:])
    return value


def summed(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """x: (rows, ...) summed over the trailing axes along which `shape` was repeated to get its own."""
    extra = x.dim() - 1 - len(shape)
    if extra:
        x = x.sum(tuple(range(1, 1 + extra)))
    for axis, size in enumerate(shape, 1):
        if x.shape[axis] != size:
            x = x.sum(axis, keepdim=True)
    return x


def typed_product(x: Tensor, weight: Tensor, types: Tensor) -> Tensor:
    """(rows, out): row r is weight[types[r]] @ x[r]; x: (rows, in), weight: (types, out, in), types: (rows,)."""
    result = x.new_zeros(x.shape[0], weight.shape[1])
    for kind in range(weight.shape[0]):
        rows = torch.nonzero(types == kind).squeeze(1)
        if rows.numel():
            result = result.index_copy(0, rows, F.linear(x.index_select(0, rows), weight[kind]))
    return result


def _filled(template: Any, values: Sequence[Any]) -> Any:
    if isinstance(template, Slot):
        return values[template.index]
    if isinstance(template, tuple | list):
        return type(template)(_filled(part, values) for part in template)
    if isinstance(template, dict):
        return {key: _filled(part, values) for key, part in template.items()}
    return template


# -------------------------------------------------------------------------------------------------------- spelling

_SIGNS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "=="}
_SIDE_NAMES = {"S": "src", "D": "dst", "E": "edge", "P": ""}


def spell(node: Node) -> str:
    """An expression as a reader of the program would write it."""
    if node.op == "const":
        return f"{node.data:g}"
    if node.op == "leaf":
        assert isinstance(node.data, tuple)
        side, name = node.data
        if side == "P" or name.startswith("@"):
            return str(name).removeprefix("@")
        return _SIDE_NAMES[side] + (f"[{name!r}]" if name else "")
    inner = [spell(arg) for arg in node.args]
    if node.op in _SIGNS:
        return f"({inner[0]} {_SIGNS[node.op]} {inner[1]})"
    if node.op == "columns":
        assert isinstance(node.data, tuple)
        return f"{inner[0]}[:, {node.data[0]}:{node.data[1]}]"
    if node.op == "transpose":
        return f"{inner[0]}.T"
    if node.op == "linear":
        return f"linear({inner[0]}, {inner[1]})"
    if node.op == "gather":
        assert isinstance(node.data, Gathered)
        return f"{node.data.accumulator}({', '.join(inner)})"
    if node.op == "call":
        assert isinstance(node.data, Call)
        name = node.data.function if isinstance(node.data.function, str) else node.data.function.__name__
        return f"{name}({', '.join(inner)})"
    if node.op in LAYOUT:
        return f"{node.op}({inner[0]}, {list(node.shape)})"
    return f"{node.op}({', '.join(inner)})"


def summands(node: Node, negative: bool = False) -> list[tuple[Node, bool]]:
    """The terms of a sum, and whether each is subtracted."""
    if node.op == "add":
        return summands(node.args[0], negative) + summands(node.args[1], negative)
    if node.op == "sub":
        return summands(node.args[0], negative) + summands(node.args[1], not negative)
    if node.op == "neg":
        return summands(node.args[0], not negative)
    return [(node, negative)]


def factors_of(node: Node, inverse: bool = False) -> list[tuple[Node, bool]]:
    """The factors of a product, and whether each is divided by."""
    if node.op == "mul":
        return factors_of(node.args[0], inverse) + factors_of(node.args[1], inverse)
    if node.op == "div":
        return factors_of(node.args[0], inverse) + factors_of(node.args[1], not inverse)
    return [(node, inverse)]


def signed_total(book: Book, terms: Sequence[tuple[Node, bool]]) -> Node:
    """The sum of terms, each subtracted where that is said; those that are added come first."""
    result: Node | None = None
    for term, negative in sorted(terms, key=lambda pair: pair[1]):
        if result is None:
            result = book.neg(term) if negative else term
        else:
            result = book.sub(result, term) if negative else book.add(result, term)
    assert result is not None
    return result


def is_row_scalar(node: Node) -> bool:
    """Whether a value is one number for each row."""
    return node.shape == () or node.shape[-1] == 1
