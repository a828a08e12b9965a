"""The optimiser: from a captured layer to a plan with as little work on the arcs as can be.

Every pass keeps the value equal in exact arithmetic. `build_plan` runs them in order and writes down what each did.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from systems.ngra import gpu, kernels
from systems.ngra.expression import (
    ELEMENTWISE,
    POLES,
    Book,
    Gathered,
    Node,
    factors_of,
    is_row_scalar,
    rewrite,
    signed_total,
    spell,
    summands,
    walk,
)
from systems.ngra.gathering import above_gathers, gather_of, lowered, plainly, result_shape
from systems.ngra.graph import ProgramError
from systems.ngra.plan import Aggregation, Plan, Situation, Source
from systems.ngra.pointwise import with_stretches

ACCUMULATORS = ("sum", "mean", "max", "min", "softmax")
_NONE: frozenset[str] = frozenset()


def build_plan(
    book: Book, messages: tuple[Node, ...], accumulator: str, finish: Callable[[Node], Node], situation: Situation
) -> Plan:
    """Plan a layer. messages: what `apply_edge` returns; finish: gives `apply_vertex` of an accumulated value.

    Raises ProgramError for an accumulator that does not exist, or messages that do not fit it.
    """
    _check(messages, accumulator)
    before = finish(book.make("gather", messages, Gathered(accumulator), result_shape(messages), frozenset("A")))
    notes: list[str] = []
    arcs_before, vertices_before = _flops(before, situation)
    if situation.optimize:
        messages = tuple(_moved(book, message, situation, notes) for message in messages)
        accumulated = lowered(book, messages, accumulator, notes)
        result = _width_choice(book, finish(accumulated), situation, notes)
    else:
        notes.append("optimiser: off")
        result = finish(plainly(book, messages, accumulator))
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
            if is_row_scalar(scale) and rest.shape == x.shape and (x.op == "mul" or scale is x.args[1]):
                inner = _split_linear(book, rest, weight)
                return book.make(x.op, (inner, scale) if scale is x.args[1] else (scale, inner))
    return book.make("linear", (x, weight))


def _regrouped(book: Book, node: Node) -> Node | None:
    """A chain of sums (or products) with the parts of S alone, and those of D alone, brought together."""
    if node.op not in {"add", "sub", "mul", "div"} or len(node.sides) < 2:
        return None
    additive = node.op in {"add", "sub"}
    terms = summands(node) if additive else factors_of(node)
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
        (lambda parts: signed_total(book, parts))
        if additive
        else (lambda parts: book.product([part for part, _ in parts]))
    )
    parts = [combine(group) for sides, group in groups.items() if len(sides) == 1]
    parts += [combine([term]) for sides, group in groups.items() if len(sides) > 1 for term in group]
    result = book.total(parts) if additive else book.product(parts)
    result = book.to_shape(result, node.shape)
    return None if result is node else result


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
        return gather_of(book, "sum", message)
    if x.op == "mul":
        for scale, rest in (x.args, x.args[::-1]):
            if is_row_scalar(scale) and "A" not in scale.sides and rest.shape == x.shape:
                inner = _pulled(book, rest, weight, users)
                return None if inner is None else book.mul(inner, scale)
    if x.op == "where" and is_row_scalar(x.args[0]) and x.args[2].op == "const" and x.args[2].data == 0.0:
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
    for node in above_gathers(result):
        if node.sides:
            on_vertices += _linear_flops(node) * situation.vertices
    return on_arcs, on_vertices


def _residual_flops(aggregation: Aggregation, situation: Situation) -> int:
    nodes = set(walk(*aggregation.residual))
    nodes |= {node for source in aggregation.columns if source.side == "E" for node in walk(source.expression)}
    return sum(_linear_flops(node) for node in nodes if node.sides) * situation.arcs


def _unique_flops(columns: Sequence[Node], result: Node, situation: Situation) -> int:
    nodes = {node for column in columns for node in walk(column)} | set(above_gathers(result))
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
