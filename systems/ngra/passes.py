"""The optimiser: from a captured layer to a plan with as little work on the arcs as can be.

Every pass keeps the value equal in exact arithmetic. `build_plan` runs them in order and writes down what each did.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from systems.ngra import gpu, kernels
from systems.ngra.expression import (
    ELEMENTWISE,
    POLES,
    Book,
    Gathered,
    Node,
    rewrite,
    spell,
    walk,
)
from systems.ngra.graph import ProgramError
from systems.ngra.pointwise import with_stretches

ACCUMULATORS = ("sum", "mean", "max", "min", "softmax")
_POSITIVE = frozenset({"exp", "sigmoid"})
_NONE: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Situation:
    """What a plan may depend on beside the program: sizes, types, and which data need gradients or never change."""

    vertices: int
    arcs: int
    dtype: torch.dtype
    leaf_dtypes: tuple[tuple[tuple[str, str], torch.dtype], ...]
    needs_grad: bool  # some vertex data need a gradient
    constant: bool  # the vertex data are the same tensors as in the call before, and need no gradient
    optimize: bool
    native: bool
    triton: bool  # kernels are Triton's, for a GPU
    pointwise: bool  # elementwise stretches of vertex stages get kernels


@dataclass(frozen=True, eq=False)
class Source:
    """A column of a residual: what it is (an expression of one side), and the leaf that stands for it there."""

    expression: Node
    leaf: Node

    @property
    def side(self) -> str:
        """S, D, E, or P for what depends on parameters only."""
        assert isinstance(self.leaf.data, tuple)
        return str(self.leaf.data[0])


@dataclass(frozen=True, eq=False)
class Aggregation:
    """One pass over the arcs: its columns, what is evaluated per arc, and how the values are accumulated."""

    gather: Node
    accumulator: str
    columns: tuple[Source, ...]
    residual: tuple[Node, ...]
    kernel: str  # "spmm", "fused" or "blocked"
    constant: bool

    @property
    def width(self) -> int:
        """Numbers accumulated per vertex."""
        return self.gather.width


@dataclass(frozen=True, eq=False)
class Plan:
    """How a layer runs, stage by stage; `print(plan)` explains it.

    source_stage, destination_stage, edge_stage, vertex_stage: expressions, as text; kernel: "spmm", "fused" or
    "blocked", the least of its aggregations; width: numbers accumulated per vertex; FLOPs count matrix products of
    one forward pass, before and after; saved_bytes: what the aggregations keep for backward; notes: what each pass
    did, and why. The rest is for the engine.
    """

    source_stage: tuple[str, ...]
    destination_stage: tuple[str, ...]
    edge_stage: tuple[str, ...]
    vertex_stage: str
    kernel: str
    width: int
    arc_matmul_flops: int
    vertex_matmul_flops: int
    arc_matmul_flops_before: int
    vertex_matmul_flops_before: int
    saved_bytes: int
    notes: tuple[str, ...]
    book: Book
    result: Node
    aggregations: tuple[Aggregation, ...]
    masked_sides: frozenset[str]

    def __str__(self) -> str:
        def stage(name: str, lines: Sequence[str]) -> list[str]:
            return [f"{name:<12}{line}" if k == 0 else f"{'':<12}{line}" for k, line in enumerate(lines)]

        lines = [f"kernel      {self.kernel}, {self.width} numbers accumulated per vertex"]
        lines += stage("source", self.source_stage)
        lines += stage("destination", self.destination_stage)
        lines += stage("edge", self.edge_stage)
        lines += stage("vertex", [self.vertex_stage])
        lines.append(
            f"matmul      on arcs {self.arc_matmul_flops_before:,} -> {self.arc_matmul_flops:,} FLOP, "
            f"on vertices {self.vertex_matmul_flops_before:,} -> {self.vertex_matmul_flops:,} FLOP"
        )
        lines.append(f"saved       {self.saved_bytes:,} bytes for backward")
        lines += stage("passes", self.notes)
        return "\n".join(lines)


def build_plan(
    book: Book, messages: tuple[Node, ...], accumulator: str, finish: Callable[[Node], Node], situation: Situation
) -> Plan:
    """Plan a layer. messages: what `apply_edge` returns; finish: gives `apply_vertex` of an accumulated value.

    Raises ProgramError for an accumulator that does not exist, or messages that do not fit it.
    """
    _check(messages, accumulator)
    before = finish(book.make("gather", messages, Gathered(accumulator), _result_shape(messages), frozenset("A")))
    notes: list[str] = []
    arcs_before, vertices_before = _flops(before, situation)
    if situation.optimize:
        messages = tuple(_moved(book, message, situation, notes) for message in messages)
        accumulated = _lowered(book, messages, accumulator, notes)
        result = _width_choice(book, finish(accumulated), situation, notes)
    else:
        notes.append("optimiser: off")
        result = finish(_plainly(book, messages, accumulator))
    gathers = [node for node in walk(result) if node.op == "gather"]
    aggregations = tuple(_aggregation(book, node, situation, notes) for node in gathers)
    _note_hoisting(aggregations, situation, notes)
    arcs_after = sum(_residual_flops(aggregation, situation) for aggregation in aggregations)
    columns = [column for aggregation in aggregations for column in aggregation.columns]
    on_vertices = _unique_flops([column.expression for column in columns if column.side in "SD"], result, situation)
    stages = {side: tuple(dict.fromkeys(spell(c.expression) for c in columns if c.side == side)) for side in "SDE"}
    edges = tuple(
        f"{aggregation.accumulator}: {', '.join(map(spell, aggregation.residual))}" for aggregation in aggregations
    )
    masked = frozenset(
        side for side in "SD" if any(node.op in POLES for c in columns if c.side == side for node in walk(c.expression))
    )
    if situation.pointwise:
        running, aggregations = _stretched(book, result, aggregations, situation)
        notes.append("elementwise stretches of the vertex stages: one kernel each")
    else:
        running = result
    order = ("blocked", "fused", "spmm")
    kernel = min((aggregation.kernel for aggregation in aggregations), key=order.index, default="none")
    return Plan(
        source_stage=stages["S"],
        destination_stage=stages["D"],
        edge_stage=edges,
        vertex_stage=spell(rewrite(book, result, lambda node: _named(book, node, gathers))),
        kernel=kernel,
        width=sum(aggregation.width for aggregation in aggregations),
        arc_matmul_flops=arcs_after,
        vertex_matmul_flops=on_vertices,
        arc_matmul_flops_before=arcs_before,
        vertex_matmul_flops_before=vertices_before,
        saved_bytes=sum(_saved(aggregation, situation) for aggregation in aggregations),
        notes=tuple(notes),
        book=book,
        result=running,
        aggregations=aggregations,
        masked_sides=masked,
    )


def _stretched(
    book: Book, result: Node, aggregations: tuple[Aggregation, ...], situation: Situation
) -> tuple[Node, tuple[Aggregation, ...]]:
    """The vertex stage and the columns, with elementwise stretches as kernels."""
    columns = [column for aggregation in aggregations for column in aggregation.columns]
    stages = [column for column in columns if column.side in "SD"]
    expressions = list(dict.fromkeys([result, *(column.expression for column in stages)]))
    found = with_stretches(book, expressions, situation.dtype, dict(situation.leaf_dtypes))
    fused = dict(zip(expressions, found, strict=True))
    return fused[result], tuple(
        replace(
            aggregation,
            columns=tuple(
                replace(column, expression=fused.get(column.expression, column.expression))
                if column.side in "SD"
                else column
                for column in aggregation.columns
            ),
        )
        for aggregation in aggregations
    )


def _check(messages: tuple[Node, ...], accumulator: str) -> None:
    if accumulator not in ACCUMULATORS:
        raise ProgramError(f"accumulator is {accumulator!r}, expected one of {', '.join(ACCUMULATORS)}")
    if accumulator == "softmax":
        fits = len(messages) == 2 and (
            messages[0].shape == messages[1].shape[:-1] or (messages[0].shape == (1,) and len(messages[1].shape) == 1)
        )
        if not fits:
            shapes = [("arcs", *message.shape) for message in messages]
            raise ProgramError(
                f"softmax: apply_edge gave {len(messages)} results of shapes {shapes}, expected a score "
                "(arcs, heads) and a value (arcs, heads, d), or (arcs,) and (arcs, d)"
            )
    elif len(messages) != 1:
        raise ProgramError(f"{accumulator}: apply_edge gave {len(messages)} results, expected one tensor")


def _result_shape(messages: tuple[Node, ...]) -> tuple[int, ...]:
    return messages[-1].shape


# ----------------------------------------------------------------------------------- passes over the message


def _moved(book: Book, message: Node, situation: Situation, notes: list[str]) -> Node:
    """Passes 1 and 2: split linear maps and regroup sums and products, so that one-sided parts stand alone."""
    split = rewrite(book, message, lambda node: _split(book, node, situation))
    if split is not message:
        notes.append("linear maps of mixed data: split by side, so that each product is taken per vertex")
    regrouped = rewrite(book, split, lambda node: _regrouped(book, node))
    if regrouped is not split:
        notes.append("sums and products: one-sided parts grouped")
    return regrouped


def _split(book: Book, node: Node, situation: Situation) -> Node | None:
    if node.op == "typed" and node.args[0].sides <= frozenset("S"):
        x, weight, kind = node.args
        if kind.op == "leaf" and weight.shape[0] * situation.vertices <= max(1, situation.arcs):
            return book.make("pick", (book.make("products", (x, weight)), kind))
        return None
    if node.op != "linear" or len(node.args[0].sides) < 2:
        return None
    return _split_linear(book, *node.args)


def _split_linear(book: Book, x: Node, weight: Node) -> Node:
    """linear(x, weight) as a sum or multiple of linear maps of one side each, as far as x is linear in such."""
    if len(x.sides) < 2:
        return book.make("linear", (x, weight))
    if x.op == "cat":
        terms, at = [], 0
        for part in x.args:
            columns = book.make("columns", (weight,), (at, at + part.shape[-1]))
            terms.append(_split_linear(book, part, columns))
            at += part.shape[-1]
        return book.total(terms)
    if x.op in {"add", "sub"} and x.args[0].shape == x.args[1].shape == x.shape:
        return book.make(x.op, [_split_linear(book, part, weight) for part in x.args])
    if x.op == "neg":
        return book.neg(_split_linear(book, x.args[0], weight))
    if x.op in {"mul", "div"}:
        for scale, rest in ((x.args[1], x.args[0]), (x.args[0], x.args[1])):
            if _is_row_scalar(scale) and rest.shape == x.shape and (x.op == "mul" or scale is x.args[1]):
                inner = _split_linear(book, rest, weight)
                return book.make(x.op, (inner, scale) if scale is x.args[1] else (scale, inner))
    return book.make("linear", (x, weight))


def _is_row_scalar(node: Node) -> bool:
    return node.shape == () or node.shape[-1] == 1


def _regrouped(book: Book, node: Node) -> Node | None:
    """A chain of sums (or products) with the parts of S alone, and those of D alone, brought together."""
    if node.op not in {"add", "sub", "mul", "div"} or len(node.sides) < 2:
        return None
    additive = node.op in {"add", "sub"}
    terms = _terms(node) if additive else _factors(node)
    if not additive and any(inverse for _, inverse in terms):
        return None
    groups: dict[frozenset[str], list[tuple[Node, bool]]] = {}
    for term, negative in terms:
        groups.setdefault(term.sides, []).append((term, negative))
    loose = groups.pop(_NONE, [])
    host = next((sides for sides in (frozenset("S"), frozenset("D")) if sides in groups), None)
    movable = [sides for sides in (frozenset("S"), frozenset("D")) if len(groups.get(sides, ())) > 1]
    if not movable and not (loose and host):
        return None
    if loose:
        if host is None:
            return None
        groups[host] += loose
    combine: Callable[[list[tuple[Node, bool]]], Node] = (
        (lambda parts: _signed_total(book, parts))
        if additive
        else (lambda parts: book.product([part for part, _ in parts]))
    )
    parts = [combine(group) for sides, group in groups.items() if len(sides) == 1]
    parts += [combine([term]) for sides, group in groups.items() if len(sides) > 1 for term in group]
    result = book.total(parts) if additive else book.product(parts)
    result = book.to_shape(result, node.shape)
    return None if result is node else result


def _terms(node: Node, negative: bool = False) -> list[tuple[Node, bool]]:
    """The terms of a sum, and whether each is subtracted."""
    if node.op == "add":
        return _terms(node.args[0], negative) + _terms(node.args[1], negative)
    if node.op == "sub":
        return _terms(node.args[0], negative) + _terms(node.args[1], not negative)
    if node.op == "neg":
        return _terms(node.args[0], not negative)
    return [(node, negative)]


def _factors(node: Node, inverse: bool = False) -> list[tuple[Node, bool]]:
    """The factors of a product, and whether each is divided by."""
    if node.op == "mul":
        return _factors(node.args[0], inverse) + _factors(node.args[1], inverse)
    if node.op == "div":
        return _factors(node.args[0], inverse) + _factors(node.args[1], not inverse)
    return [(node, inverse)]


def _signed_total(book: Book, terms: Sequence[tuple[Node, bool]]) -> Node:
    result: Node | None = None
    for term, negative in sorted(terms, key=lambda pair: pair[1]):
        if result is None:
            result = book.neg(term) if negative else term
        else:
            result = book.sub(result, term) if negative else book.add(result, term)
    assert result is not None
    return result


# -------------------------------------------------------------------------------------- passes across Gather


def _gather(book: Book, accumulator: str, *messages: Node) -> Node:
    return book.make("gather", messages, Gathered(accumulator), _result_shape(messages), frozenset("A"))


def _plainly(book: Book, messages: tuple[Node, ...], accumulator: str) -> Node:
    if accumulator == "mean":
        return book.mul(_gather(book, "sum", *messages), book.leaf("D", "@inverse_degree", ()))
    return _gather(book, accumulator, *messages)


def _lowered(book: Book, messages: tuple[Node, ...], accumulator: str, notes: list[str]) -> Node:
    """Passes 3 and 4: what does not change along a row leaves the accumulator."""
    if accumulator == "softmax":
        return _gather(book, "softmax", *messages)
    if accumulator in {"max", "min"}:
        return _lowered_extremum(book, messages[0], accumulator, notes)
    total = _lowered_sum(book, messages[0], notes)
    if accumulator == "mean":
        total = book.mul(total, book.leaf("D", "@inverse_degree", ()))
    return _only_where_arcs(book, total)


def _only_where_arcs(book: Book, node: Node) -> Node:
    """0 without in-arcs, even where a vertex's own data are infinite or NaN."""
    own = [leaf for leaf in _above_gathers(node) if leaf.op == "leaf" and leaf.sides == frozenset("D")]
    if not any(isinstance(leaf.data, tuple) and not leaf.data[1].startswith("@") for leaf in own):
        return node
    return book.where(book.leaf("D", "@nonempty", (1,) if node.shape else ()), node, 0.0)


def _above_gathers(node: Node) -> list[Node]:
    found, stack, seen = [], [node], set()
    while stack:
        top = stack.pop()
        if id(top) in seen:
            continue
        seen.add(id(top))
        found.append(top)
        if top.op != "gather":
            stack += top.args
    return found


def _lowered_sum(book: Book, message: Node, notes: list[str]) -> Node:
    """sum over in-arcs of `message`, with everything that can leave the sum outside of it."""
    outside: list[Node] = []  # vertex-level terms
    inside: list[tuple[Node, bool]] = []
    for term, negative in _terms(message):
        shaped = book.to_shape(term, message.shape)
        if not term.sides - {"D"}:
            degree = book.leaf("D", "@degree", ())
            part = book.mul(shaped, degree)
            outside.append(book.neg(part) if negative else part)
            notes.append(f"{spell(term)}: does not change along a row, so it is added once, times the degree")
        elif term.op == "linear" and term.sides != frozenset("S") and shaped is term:
            x, weight = term.args
            part = book.make("linear", (_lowered_sum(book, x, notes), weight))
            outside.append(book.neg(part) if negative else part)
            notes.append("a linear map of arc values: applied after the sum, once per vertex")
        else:
            inside.append((term, negative))
    if inside:
        if len(inside) == 1:
            core = _lowered_term(book, *inside[0], message.shape, notes)
        else:
            core = _gather(book, "sum", book.to_shape(_grouped(book, inside), message.shape))
        outside.insert(0, core)
    return book.total(outside)


def _grouped(book: Book, terms: Sequence[tuple[Node, bool]]) -> Node:
    own = [pair for pair in terms if pair[0].sides == frozenset("S")]
    others = [pair for pair in terms if pair[0].sides != frozenset("S")]
    if not own or not others:
        return _signed_total(book, terms)
    return book.add(_signed_total(book, own), _signed_total(book, others))


def _lowered_term(book: Book, term: Node, negative: bool, shape: tuple[int, ...], notes: list[str]) -> Node:
    """The sum of one term: factors of the destination leave it, and so does a linear map."""
    factors = _factors(term)
    leaving = [pair for pair in factors if not pair[0].sides - {"D"}]
    staying = [pair for pair in factors if pair[0].sides - {"D"}]
    scalars = all(_is_row_scalar(factor) for factor, _ in staying if factor.op != "linear")
    linears = [pair for pair in staying if pair[0].op == "linear"]
    if leaving:
        notes.append(f"factors {', '.join(spell(factor) for factor, _ in leaving)}: taken out of the sum")
    # What stays may be narrower than the result, where a factor that left was the wide one.
    if len(linears) == 1 and not linears[0][1] and scalars:
        x, weight = linears[0][0].args
        scaled = _quotient(book, [(x, False), *(pair for pair in staying if pair is not linears[0])])
        notes.append(f"linear map {spell(weight)}: taken out of the sum")
        core = book.make("linear", (_gather(book, "sum", scaled), weight))
    else:
        core = _gather(book, "sum", _quotient(book, _source_first(book, staying)))
    for factor, inverse in leaving:
        core = book.div(core, factor) if inverse else book.mul(core, factor)
    core = book.to_shape(core, shape)
    return book.neg(core) if negative else core


def _source_first(book: Book, factors: Sequence[tuple[Node, bool]]) -> list[tuple[Node, bool]]:
    own = [pair for pair in factors if pair[0].sides == frozenset("S")]
    if len(own) < 2:
        return list(factors)
    return [(_quotient(book, own), False), *(pair for pair in factors if pair[0].sides != frozenset("S"))]


def _quotient(book: Book, factors: Sequence[tuple[Node, bool]]) -> Node:
    above = [factor for factor, inverse in factors if not inverse]
    below = [factor for factor, inverse in factors if inverse]
    result = book.product(above) if above else book.const(1)
    for factor in below:
        result = book.div(result, factor)
    return result


def _lowered_extremum(book: Book, message: Node, accumulator: str, notes: list[str]) -> Node:
    """max or min over in-arcs: terms of the destination leave it, and factors of it that are positive for sure."""
    terms = _terms(message)
    leaving = [pair for pair in terms if not pair[0].sides - {"D"}]
    staying = [pair for pair in terms if pair[0].sides - {"D"}]
    if not staying:
        return _gather(book, accumulator, message)
    if leaving:
        notes.append(f"terms {', '.join(spell(term) for term, _ in leaving)}: taken out of the {accumulator}")
        inner = book.to_shape(_grouped(book, staying), message.shape)
        core = book.add(_lowered_extremum(book, inner, accumulator, notes), _signed_total(book, leaving))
        nonempty = book.leaf("D", "@nonempty", (1,) if message.shape else ())
        return book.where(nonempty, core, 0.0)
    factors = _factors(message)
    # Not for factors that are 0 somewhere: there every arc ties, and another arc would get the gradient.
    safe = [pair for pair in factors if not pair[0].sides - {"D"} and pair[0].op in _POSITIVE]
    rest = [pair for pair in factors if pair not in safe]
    if not safe or not any(pair[0].sides - {"D"} for pair in rest):
        return _gather(book, accumulator, message)
    notes.append(f"positive factors {', '.join(spell(factor) for factor, _ in safe)}: taken out of the {accumulator}")
    core = _gather(book, accumulator, book.to_shape(_quotient(book, rest), message.shape))
    for factor, inverse in safe:
        core = book.div(core, factor) if inverse else book.mul(core, factor)
    return _only_where_arcs(book, core)


# ------------------------------------------------------------------------------------------------ width choice


def _width_choice(book: Book, result: Node, situation: Situation, notes: list[str]) -> Node:
    """Pass 5: a linear map of a sum goes before or after the sum, whichever moves fewer numbers over arcs."""
    users: dict[Node, int] = {}
    for node in walk(result):
        for arg in node.args:
            users[arg] = users.get(arg, 0) + 1

    def rule(node: Node) -> Node | None:
        if node.op != "linear":
            return None
        pulled = _pulled(book, node.args[0], node.args[1], users)
        if pulled is None:
            return None
        inside = next(part for part in walk(pulled) if part.op == "gather")
        before = next(part for part in walk(node.args[0]) if part.op == "gather")
        free = situation.constant and not any(part.op == "leaf" and part.data[0] == "P" for part in walk(before))
        narrow = situation.arcs * inside.width * 2
        wide = 0 if free else situation.arcs * before.width * (2 if situation.needs_grad else 1)
        first = narrow < wide
        order = "transform first" if first else "aggregate first"
        notes.append(
            f"width choice: {order} ({before.width} numbers per arc before, {inside.width} after the linear map"
            f"{'; the sum is reused' if free else ''})"
        )
        return pulled if first else None

    return rewrite(book, result, rule)


def _pulled(book: Book, x: Node, weight: Node, users: dict[Node, int]) -> Node | None:
    """linear(x, weight) with the map inside of the one sum that x is a multiple of; None where it is none."""
    if users.get(x, 0) > 1:
        return None
    if x.op == "gather":
        assert isinstance(x.data, Gathered)
        if x.data.accumulator != "sum" or not x.shape:
            return None
        message = _split_linear(book, x.args[0], weight)
        if any(node.op == "linear" and len(node.sides) > 1 for node in walk(message)):
            return None
        return _gather(book, "sum", message)
    if x.op == "mul":
        for scale, rest in (x.args, x.args[::-1]):
            if _is_row_scalar(scale) and "A" not in scale.sides and rest.shape == x.shape:
                inner = _pulled(book, rest, weight, users)
                return None if inner is None else book.mul(inner, scale)
    if x.op == "where" and _is_row_scalar(x.args[0]) and x.args[2].op == "const" and x.args[2].data == 0.0:
        inner = _pulled(book, x.args[1], weight, users)
        return None if inner is None else book.where(x.args[0], inner, 0.0)
    return None


# ---------------------------------------------------------------------------------------------------- residuals


def _aggregation(book: Book, gather: Node, situation: Situation, notes: list[str]) -> Aggregation:
    """Pass 7: what is left on the arcs, over columns computed beforehand, and which kernel takes it."""
    assert isinstance(gather.data, Gathered)
    columns: dict[Node, Source] = {}
    dtypes = dict(situation.leaf_dtypes)

    def column(node: Node, side: str) -> Node:
        if node not in columns:
            columns[node] = Source(node, book.leaf(side, f"#{len(columns)}", node.shape))
        return columns[node].leaf

    def rule(node: Node) -> Node | None:
        if node.op == "const":
            return node
        if node.op == "expand":
            return None
        if not situation.optimize:
            return column(node, str(node.data[0])) if node.op == "leaf" else None
        if not node.sides:
            return column(node, "P")
        if node.sides in (frozenset("S"), frozenset("D")):
            return column(node, next(iter(node.sides)))
        if node.sides == frozenset("E") and (
            node.op == "leaf" or any(part.op not in ELEMENTWISE | {"leaf", "const"} for part in walk(node))
        ):
            return column(node, "E")
        return None

    residual = tuple(rewrite(book, message, rule) for message in gather.args)
    sources = tuple(columns.values())
    reason = _obstacle(residual, sources, dtypes, situation)
    if reason:
        kernel = "blocked"
        notes.append(f"kernel: blocked, since {reason}")
    else:
        kernel = "spmm" if _is_spmm(residual[0]) and gather.data.accumulator != "softmax" else "fused"
        notes.append(f"kernel: {kernel}, {gather.width} numbers wide, nothing of the size of the arcs is stored")
    constant = all(
        source.side == "S"
        and source.expression.op != "call"
        and all(
            node.op != "call" and not (node.op == "leaf" and node.data[0] == "P") for node in walk(source.expression)
        )
        for source in sources
    )
    return Aggregation(gather, gather.data.accumulator, sources, residual, kernel, constant)


def _obstacle(
    residual: tuple[Node, ...],
    sources: tuple[Source, ...],
    dtypes: dict[tuple[str, str], torch.dtype],
    situation: Situation,
) -> str:
    """Why a residual cannot be fused; empty if it can."""
    if not situation.optimize:
        return "the optimiser is off"
    if not situation.native:
        return "there is no C compiler, or the back end is torch"
    kinds = {node.args[1] for node in walk(*residual) if node.op == "pick"}
    for source in sources:
        expression = source.expression
        if expression.op == "leaf" and expression.data in dtypes:
            kind = dtypes[expression.data]
            if not kind.is_floating_point and source.leaf not in kinds:
                return f"{spell(expression)} is of type {kind}"
        if kinds and source.leaf in kinds and expression.op != "leaf":
            return "types of arcs are computed"
    for node in walk(*residual):
        if not (gpu if situation.triton else kernels).supported(node):
            return f"{node.op} of shape {list(node.shape)} is no elementwise operation"
    if kinds and any(node.op == "pick" and node.args[0].op != "leaf" for node in walk(*residual)):
        return "the picked columns are computed per arc"
    return ""


def _is_spmm(message: Node) -> bool:
    if message.op == "mul":
        column, weight = sorted(message.args, key=lambda node: node.sides != frozenset("S"))
        return column.op == weight.op == "leaf" and weight.sides == frozenset("E") and weight.width == 1
    return message.op == "leaf" and message.sides == frozenset("S")


def _note_hoisting(aggregations: Sequence[Aggregation], situation: Situation, notes: list[str]) -> None:
    if situation.constant and any(aggregation.constant for aggregation in aggregations):
        notes.append("the aggregated data do not change between calls: computed once and reused")


# -------------------------------------------------------------------------------------------------------- costs


def _linear_flops(node: Node) -> int:
    if node.op == "linear":
        return 2 * node.width * node.args[0].shape[-1]
    if node.op in {"typed", "products"}:
        return 2 * node.width * node.args[0].shape[-1]
    return 0


def _flops(result: Node, situation: Situation) -> tuple[int, int]:
    """FLOPs of matrix products (on arcs, on vertices) as the user wrote them."""
    on_arcs = on_vertices = 0
    below: set[int] = set()
    for gather in [node for node in walk(result) if node.op == "gather"]:
        for node in walk(*gather.args):
            if id(node) not in below and node.sides:
                below.add(id(node))
                on_arcs += _linear_flops(node) * situation.arcs
    for node in _above_gathers(result):
        if node.sides:
            on_vertices += _linear_flops(node) * situation.vertices
    return on_arcs, on_vertices


def _residual_flops(aggregation: Aggregation, situation: Situation) -> int:
    nodes = set(walk(*aggregation.residual))
    nodes |= {node for source in aggregation.columns if source.side == "E" for node in walk(source.expression)}
    return sum(_linear_flops(node) for node in nodes if node.sides) * situation.arcs


def _unique_flops(columns: Sequence[Node], result: Node, situation: Situation) -> int:
    nodes = {node for column in columns for node in walk(column)} | set(_above_gathers(result))
    return sum(_linear_flops(node) for node in nodes if node.sides) * situation.vertices


def _saved(aggregation: Aggregation, situation: Situation) -> int:
    item = 8 if situation.dtype == torch.float64 else 4
    saved = 0
    for source in aggregation.columns:
        if aggregation.kernel != "spmm" and source.side in "SD":
            saved += source.leaf.width * item
        if source.side in "DP" and aggregation.accumulator == "sum" and aggregation.kernel == "fused":
            saved += aggregation.width * item
    if aggregation.accumulator in {"max", "min"}:
        saved += aggregation.width * 4
    if aggregation.accumulator == "softmax":
        saved += (aggregation.width + 2 * aggregation.residual[0].width) * item
    return saved * situation.vertices


def _named(book: Book, node: Node, gathers: Sequence[Node]) -> Node | None:
    if node.op == "gather":
        return book.leaf("A", "@accum" if len(gathers) == 1 else f"@accum{gathers.index(node)}", node.shape)
    return None
