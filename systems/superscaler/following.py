"""Which identifier to cut each operator by, found by following a cut through the graph.

`columns_and_rows` finds Megatron's tensor parallelism in any graph: a linear is cut by its columns if the cut can be
followed, without communication, to operators that sum over it. `axes` finds dynamic axial parallelism: each operator is
cut along an axis that it does not mix, the one that its inputs are cut along if it may.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from systems.superscaler.graph import Graph, Op

__all__ = ["axes", "columns_and_rows", "home", "stages"]

Cuts = Mapping[int, str]
PROJECTIONS = ("aten.linear.default", "aten.addmm.default")


def implied(op: Op, cut: Mapping[int, int]) -> set[str] | None:
    """The identifiers by which an operator would be cut if some tensors are cut along a dimension.

    None where a cut dimension has no identifier of its own that may be cut, so that a gather would be needed.
    """
    found: set[str] = set()
    for v, dims in zip(op.inputs, op.annotation.inputs, strict=True):
        if v.tensor not in cut or dims is None:
            continue
        dim = dims[cut[v.tensor]]
        if not dim:
            return None
        found.add(dim[0])
    legal = op.annotation.divisible
    return found if all(name in legal for name in found) else None


def output_dim(op: Op, name: str) -> int | None:
    """The dimension of the output that a cut of an identifier cuts; None where it becomes addends."""
    return next((k for k, dim in enumerate(op.annotation.outputs[0]) if dim and dim[0] == name), None)


def _chain(graph: Graph, start: Op, name: str, parts: int) -> dict[int, str] | None:
    """The cuts that follow from cutting one operator, up to operators that sum over them; None where there are none."""
    chosen = {start.id: name}
    dim = output_dim(start, name)
    if dim is None:
        return None
    cut = {start.output: dim}
    closed = False
    small = start_size = graph.tensors[start.output].elements
    for op in graph.ops[start.id + 1 :]:
        if not any(v.tensor in cut for v in op.inputs):
            continue
        names = implied(op, cut)
        if names is None or len(names) != 1:
            # What cannot be followed must be gathered: only worth it if it is little of what was cut.
            small = min(small, max(graph.tensors[v.tensor].elements for v in op.inputs if v.tensor in cut))
            if 4 * max(graph.tensors[v.tensor].elements for v in op.inputs if v.tensor in cut) > start_size and (
                op.target != "aten.amax.default"
            ):
                return None
            continue
        (ident,) = names
        if op.annotation.divisible[ident] < parts:
            return None
        chosen[op.id] = ident
        out = output_dim(op, ident)
        if out is None:
            closed = True
        else:
            cut[op.output] = out
    return chosen if closed else None


def columns_and_rows(graph: Graph, parts: int, *, vocabulary: bool = True) -> Cuts:
    """Operator id -> identifier, for tensor parallelism over `parts` devices; other operators are replicated.

    vocabulary: embeddings are cut by their rows, and the output head by its columns.
    """
    found: dict[int, str] = {}
    for op in graph.ops:
        if op.id in found:
            continue
        if op.target == "aten.embedding.default" and vocabulary and op.annotation.divisible.get("n", 0) >= parts:
            found[op.id] = "n"
        if op.target not in PROJECTIONS or op.annotation.divisible.get("n", 0) < parts:
            continue
        chain = _chain(graph, op, "n", parts)
        if chain is None:
            continue
        head = any(graph.ops[i].target.startswith("superscaler.") for i in chain)
        if head and not vocabulary:
            continue
        # Two chains meet where one attention reads several projections; they must agree on it.
        if all(found.get(i, name) == name for i, name in chain.items()):
            found.update(chain)
    return _agreed(graph, found)


def _agreed(graph: Graph, found: dict[int, str]) -> dict[int, str]:
    """Without operators that sum over an identifier of which an input is not cut: cutting it would only slice it."""
    kept = dict(found)
    for op in graph.ops:
        name = kept.get(op.id)
        if name is None or op.target in PROJECTIONS or op.target == "aten.embedding.default":
            continue
        made = [graph.producer.get(v.tensor) for v in op.inputs]
        cut = [p for p in made if p is not None and p.id in kept]
        if not cut:
            del kept[op.id]
    return kept


def axes(graph: Graph, parts: int, ops: Iterable[Op] | None = None, *, known: Mapping[int, str] | None = None) -> Cuts:
    """Operator id -> an axis of its activations that it does not mix, cut `parts` ways; weights stay whole.

    known: operators that are cut already, whose outputs the others follow.
    """
    found: dict[int, str] = {}
    cut: dict[int, int] = {}
    chosen = {op.id for op in (graph.ops if ops is None else ops)}
    for op in graph.ops:
        name = (known or {}).get(op.id)
        if name is None and op.id in chosen:
            name = _axis(graph, op, cut, parts)
            if name is not None:
                found[op.id] = name
        dim = None if name is None else output_dim(op, name)
        if dim is not None:
            cut[op.output] = dim
    return found


def _axis(graph: Graph, op: Op, cut: Mapping[int, int], parts: int) -> str | None:
    weights = {
        name
        for v, dims in zip(op.inputs, op.annotation.inputs, strict=True)
        if graph.tensors[v.tensor].kind == "param"
        for dim in dims or ()
        for name in dim
    }
    legal = [
        name for dim in op.annotation.outputs[0] for name in dim[:1]
        if op.annotation.divisible.get(name, 0) >= parts and name not in weights and name != "b"
        and op.annotation.sizes[name] % parts == 0
    ]  # fmt: skip
    score = dict.fromkeys(legal, 0.0)
    for v, dims in zip(op.inputs, op.annotation.inputs, strict=True):
        if v.tensor in cut and dims is not None and dims[cut[v.tensor]]:
            name = dims[cut[v.tensor]][0]
            if name in score:
                score[name] += graph.tensors[v.tensor].elements
    return max(legal, key=lambda n: (score[n], -legal.index(n)), default=None)


def home(op: Op) -> str:
    """The repeated module that an operator belongs to, whatever pass it is in: `layers.3`, or "" for none."""
    parts = op.module.split(".")
    at = next((i for i, p in enumerate(parts) if p.isdigit()), None)
    return "" if at is None else ".".join(parts[: at + 1])


def stages(graph: Graph, count: int) -> dict[int, int]:
    """Operator id -> stage, 0 to count - 1: consecutive blocks with about equal work; others go with what precedes.

    Passes over the same blocks share their stages. Raises InvalidPlan where there are fewer blocks than stages.
    """
    from systems.superscaler.errors import InvalidPlan

    work: dict[str, float] = {}
    for op in graph.ops:
        name = home(op)
        if name:
            work[name] = work.get(name, 0.0) + op.flops
    names = list(work)
    if len(names) < count:
        raise InvalidPlan(f"{count} stages of {len(names)} blocks: give fewer stages")
    at = dict(zip(names, partition([work[n] for n in names], count), strict=True))
    found: dict[int, int] = {}
    ahead = [home(op) for op in graph.ops]
    current = 0
    last = max((i for i, name in enumerate(ahead) if name), default=-1)
    for i, op in enumerate(graph.ops):
        current = at[ahead[i]] if ahead[i] else count - 1 if i > last else current
        found[op.id] = current
    return found


def partition(work: Sequence[float], count: int) -> list[int]:
    """Consecutive groups whose largest sum is least; each gets at least one. Returns the group of each item."""
    n = len(work)
    sums = [0.0]
    for w in work:
        sums.append(sums[-1] + w)
    best = [[float("inf")] * (count + 1) for _ in range(n + 1)]
    choice = [[0] * (count + 1) for _ in range(n + 1)]
    best[0][0] = 0.0
    for i in range(1, n + 1):
        for k in range(1, min(i, count) + 1):
            for j in range(k - 1, i):
                cost = max(best[j][k - 1], sums[i] - sums[j])
                if cost < best[i][k]:
                    best[i][k], choice[i][k] = cost, j
    groups, end = [0] * n, n
    for k in range(count, 0, -1):
        start = choice[end][k]
        groups[start:end] = [k - 1] * (end - start)
        end = start
    return groups
