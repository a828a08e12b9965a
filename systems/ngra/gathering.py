"""The passes across Gather: what of a message leaves the sum, mean or extremum over a vertex's arcs."""

from __future__ import annotations

from collections.abc import Sequence

from systems.ngra.expression import (
    Book,
    Gathered,
    Node,
    factors_of,
    is_row_scalar,
    signed_total,
    spell,
    summands,
)

_POSITIVE = frozenset({"exp", "sigmoid"})


def result_shape(messages: tuple[Node, ...]) -> tuple[int, ...]:
    """The shape of what is accumulated, of messages as `apply_edge` gives them."""
    return messages[-1].shape


def gather_of(book: Book, accumulator: str, *messages: Node) -> Node:
    """The accumulated value of messages."""
    return book.make("gather", messages, Gathered(accumulator), result_shape(messages), frozenset("A"))


def plainly(book: Book, messages: tuple[Node, ...], accumulator: str) -> Node:
    """The accumulated value as it was asked for, a mean by its sum."""
    if accumulator == "mean":
        return book.mul(gather_of(book, "sum", *messages), book.leaf("D", "@inverse_degree", ()))
    return gather_of(book, accumulator, *messages)


def lowered(book: Book, messages: tuple[Node, ...], accumulator: str, notes: list[str]) -> Node:
    """Passes 3 and 4: what does not change along a row leaves the accumulator."""
    if accumulator == "softmax":
        return gather_of(book, "softmax", *messages)
    if accumulator in {"max", "min"}:
        return _lowered_extremum(book, messages[0], accumulator, notes)
    total = _lowered_sum(book, messages[0], notes)
    if accumulator == "mean":
        total = book.mul(total, book.leaf("D", "@inverse_degree", ()))
    return only_where_arcs(book, total)


def only_where_arcs(book: Book, node: Node) -> Node:
    """0 without in-arcs, even where a vertex's own data are infinite or NaN."""
    own = [leaf for leaf in above_gathers(node) if leaf.op == "leaf" and leaf.sides == frozenset("D")]
    if not any(isinstance(leaf.data, tuple) and not leaf.data[1].startswith("@") for leaf in own):
        return node
    return book.where(book.leaf("D", "@nonempty", (1,) if node.shape else ()), node, 0.0)


def above_gathers(node: Node) -> list[Node]:
    """The nodes of an expression down to its gathers, and these."""
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
    for term, negative in summands(message):
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
            core = gather_of(book, "sum", book.to_shape(_grouped(book, inside), message.shape))
        outside.insert(0, core)
    return book.total(outside)


def _grouped(book: Book, terms: Sequence[tuple[Node, bool]]) -> Node:
    own = [pair for pair in terms if pair[0].sides == frozenset("S")]
    others = [pair for pair in terms if pair[0].sides != frozenset("S")]
    if not own or not others:
        return signed_total(book, terms)
    return book.add(signed_total(book, own), signed_total(book, others))


def _lowered_term(book: Book, term: Node, negative: bool, shape: tuple[int, ...], notes: list[str]) -> Node:
    """The sum of one term: factors of the destination leave it, and so does a linear map."""
    factors = factors_of(term)
    leaving = [pair for pair in factors if not pair[0].sides - {"D"}]
    staying = [pair for pair in factors if pair[0].sides - {"D"}]
    scalars = all(is_row_scalar(factor) for factor, _ in staying if factor.op != "linear")
    linears = [pair for pair in staying if pair[0].op == "linear"]
    if leaving:
        notes.append(f"factors {', '.join(spell(factor) for factor, _ in leaving)}: taken out of the sum")
    # What stays may be narrower than the result, where a factor that left was the wide one.
    if len(linears) == 1 and not linears[0][1] and scalars:
        x, weight = linears[0][0].args
        scaled = _quotient(book, [(x, False), *(pair for pair in staying if pair is not linears[0])])
        notes.append(f"linear map {spell(weight)}: taken out of the sum")
        core = book.make("linear", (gather_of(book, "sum", scaled), weight))
    else:
        core = gather_of(book, "sum", _quotient(book, _source_first(book, staying)))
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
    terms = summands(message)
    leaving = [pair for pair in terms if not pair[0].sides - {"D"}]
    staying = [pair for pair in terms if pair[0].sides - {"D"}]
    if not staying:
        return gather_of(book, accumulator, message)
    if leaving:
        notes.append(f"terms {', '.join(spell(term) for term, _ in leaving)}: taken out of the {accumulator}")
        inner = book.to_shape(_grouped(book, staying), message.shape)
        core = book.add(_lowered_extremum(book, inner, accumulator, notes), signed_total(book, leaving))
        nonempty = book.leaf("D", "@nonempty", (1,) if message.shape else ())
        return book.where(nonempty, core, 0.0)
    factors = factors_of(message)
    # Not for factors that are 0 somewhere: there every arc ties, and another arc would get the gradient.
    safe = [pair for pair in factors if not pair[0].sides - {"D"} and pair[0].op in _POSITIVE]
    rest = [pair for pair in factors if pair not in safe]
    if not safe or not any(pair[0].sides - {"D"} for pair in rest):
        return gather_of(book, accumulator, message)
    notes.append(f"positive factors {', '.join(spell(factor) for factor, _ in safe)}: taken out of the {accumulator}")
    core = gather_of(book, accumulator, book.to_shape(_quotient(book, rest), message.shape))
    for factor, inverse in safe:
        core = book.div(core, factor) if inverse else book.mul(core, factor)
    return only_where_arcs(book, core)
