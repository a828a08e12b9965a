"""Generated Triton kernels: the same aggregations as `kernels.py`, from the same expressions, for tensors on a GPU.

One program is one row: it runs over the row's arcs in blocks, evaluates the expressions for a block at once, and
accumulates in registers, in the order of the blocks: no atomics, so that the same graph gives the same bits. Rows of
more than `SEGMENT` arcs are cut into segments, whose states are joined in their order. With TRITON_INTERPRET=1, set
before triton is imported, the kernels run on CPU tensors.
"""

from __future__ import annotations

import functools
import hashlib
import linecache
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from systems.ngra.expression import COMPARISONS, ELEMENTWISE, Node, walk
from systems.ngra.generation import Column, Output, by_arc
from systems.ngra.graph import ProgramError, Rows

SEGMENT = 1024
"""Arcs of a row that one program takes at most."""

MOST_VALUES = 8192
"""Numbers of a row, padded to powers of two, that a kernel's widest value may have."""

BLOCK_VALUES = 2048
"""Numbers of the widest value that a block of arcs has about."""

T_TYPES = {torch.float32: "tl.float32", torch.float64: "tl.float64", torch.int32: "tl.int32", torch.int64: "tl.int64"}
NOBODY = 2**31 - 1

_COMPARE = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "=="}
_BINARY = {"add": "+", "sub": "-", "mul": "*", "div": "/"}


@dataclass(frozen=True)
class GpuKernel:
    """A generated kernel and what it expects. launch: the compiled function, called as launch[grid](...)."""

    columns: tuple[Column, ...]
    outputs: tuple[Output, ...]
    dtype: torch.dtype
    source: str
    widest: int
    launch: Any


def interpreted() -> bool:
    """Whether Triton runs kernels on CPU tensors in this process."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def available(device: torch.device) -> bool:
    """Whether kernels can run on tensors of `device`: triton is there, and a GPU, or its interpreter."""
    if device.type not in {"cuda", "cpu"} or (device.type == "cpu" and not interpreted()):
        return False
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


# ----------------------------------------------------------------------------------------------------------- shapes


def _pair(shape: Sequence[int]) -> tuple[int, int]:
    """A shape of at most two axes as (h, d)."""
    return (1, 1) if not shape else (1, shape[0]) if len(shape) == 1 else (shape[0], shape[1])


def _padded(size: int) -> int:
    return 1 << max(0, size - 1).bit_length()


def _padded_width(shape: Sequence[int]) -> int:
    h, d = _pair(shape)
    return _padded(h) * _padded(d)


def _moves(own: tuple[int, int], wanted: tuple[int, int]) -> str | None:
    """How a value of one shape is given another of as many numbers: as it is, with its axes swapped, or not at all."""
    if own == wanted:
        return "same"
    return "swapped" if own == wanted[::-1] and 1 in own else None


def supported(*nodes: Node) -> bool:
    """Whether expressions can be generated: as for C, but that a reshape may at most turn a row into a column."""
    for node in walk(*nodes):
        known = node.op in ELEMENTWISE or node.op in {"leaf", "const", "wins", "pick", "expand", "reduce", "reshape"}
        if not known or len(node.shape) > 2 or _padded_width(node.shape) > MOST_VALUES:
            return False
        if node.op == "reshape" and _moves(_pair(node.args[0].shape), _pair(node.shape)) is None:
            return False
    return True


# ------------------------------------------------------------------------------------------------------- generation


def compiled(columns: Sequence[Column], outputs: Sequence[Output], dtype: torch.dtype) -> GpuKernel:
    """The kernel of these outputs. Raises ProgramError for a type of column that it does not know."""
    for column in columns:
        if column.dtype not in T_TYPES:
            raise ProgramError(f"a column of type {column.dtype} cannot be read by a kernel; use float32 or float64")
    writer = _Writer(columns, outputs, dtype)
    source = writer.text()
    return GpuKernel(tuple(columns), tuple(outputs), dtype, source, writer.widest, _function(source))


@functools.lru_cache(maxsize=1024)
def _function(source: str) -> Any:
    """The function that `source` defines, as Triton reads it: by its lines."""
    import triton
    import triton.language as tl

    name = f"<ngra-{hashlib.sha256(source.encode()).hexdigest()[:16]}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    space: dict[str, Any] = {"tl": tl, "triton": triton, "__name__": name}
    exec(compile(source, name, "exec"), space)  # our own text, from expressions that were checked
    return triton.jit(space["kernel"])


class _Writer:
    """Writes one kernel. A node's value is v<number>: a tensor (arcs of the block or 1, h, d)."""

    def __init__(self, columns: Sequence[Column], outputs: Sequence[Output], dtype: torch.dtype) -> None:
        self.columns, self.outputs, self.dtype, self.t = columns, outputs, dtype, T_TYPES[dtype]
        self.column_of = {column.leaf: k for k, column in enumerate(columns)}
        self.nodes = list(walk(*[node for output in outputs for node in output.nodes]))
        self.number = {node: k for k, node in enumerate(self.nodes)}
        shapes = [node.shape for node in self.nodes] + [output.shape for output in outputs if output.form != "pick"]
        self.widest = max(map(_padded_width, shapes), default=1)
        self.by_arc = by_arc(self.nodes, columns)
        self.sizes: dict[int, None] = {}

    def text(self) -> str:
        before = [line for node in self.nodes if not self.by_arc[node] for line in self._node(node)]
        body = [line for node in self.nodes if self.by_arc[node] for line in self._node(node)]
        states: list[str] = []
        adds: list[str] = []
        stores: list[str] = []
        at = 0
        for k, output in enumerate(self.outputs):
            begin, add, end = self._output(k, output, at)
            states, adds, stores = states + begin, adds + add, stores + end
            at += len(output.states(self.dtype))
        names = [f"c{k}, step{k}" for k in range(len(self.columns))] + [f"o{k}" for k in range(at)]
        ranges = [f"i{size} = tl.arange(0, {_padded(size)})" for size in self.sizes]
        lines = [
            f"def kernel({', '.join(names)}, task_row, task_begin, task_end, ids, arcs, HAS_ARCS: tl.constexpr,",
            "           ARCS: tl.constexpr):",
            "    task = tl.program_id(0).to(tl.int64)",
            "    row = tl.load(task_row + task).to(tl.int64)",
            "    begin = tl.load(task_begin + task)",
            "    end = tl.load(task_end + task)",
            *("    " + line for line in (*ranges, *before, *states)),
            "    p0 = begin",
            "    while p0 < end:",
            "        p = p0 + tl.arange(0, ARCS)",
            "        live = p < end",
            "        alive = live[:, None, None]",
            "        neighbour = tl.load(ids + p, mask=live, other=0).to(tl.int64)",
            "        arc = p",
            "        if HAS_ARCS:",
            "            arc = tl.load(arcs + p, mask=live, other=0).to(tl.int64)",
            *("        " + line for line in (*body, *adds)),
            "        p0 += ARCS",
            *("    " + line for line in stores),
        ]
        return "\n".join(lines) + "\n"

    # ------------------------------------------------------------------------------------------------------ places

    def _axis(self, size: int) -> str:
        self.sizes.setdefault(size)
        return f"i{size}"

    def _offsets(self, shape: Sequence[int]) -> tuple[str, str | None]:
        """(offsets of a row's numbers as (1, h, d), the mask of those that are there or None)."""
        h, d = _pair(shape)
        parts, masks = [], []
        if h > 1:
            parts.append(f"{self._axis(h)}[None, :, None] * {d}")
            if _padded(h) != h:
                masks.append(f"({self._axis(h)}[None, :, None] < {h})")
        if d > 1 or not parts:
            parts.append(f"{self._axis(d)}[None, None, :]")
            if _padded(d) != d:
                masks.append(f"({self._axis(d)}[None, None, :] < {d})")
        return " + ".join(parts), " & ".join(masks) or None

    def _blank(self, shape: Sequence[int], value: str, kind: str | None = None) -> str:
        h, d = _pair(shape)
        return f"tl.full([1, {_padded(h)}, {_padded(d)}], {value}, {kind or self.t})"

    def _read_column(self, k: int, shape: Sequence[int], extra: str = "") -> str:
        column = self.columns[k]
        offsets, mask = self._offsets(shape)
        if column.role == "row":
            where, masks = f"row * step{k}", [mask] if mask else []
        else:
            index = "neighbour" if column.role == "neighbour" else "arc"
            where, masks = f"{index}[:, None, None] * step{k}", ["alive", *([mask] if mask else [])]
        masked = f", mask={' & '.join(masks)}, other=0" if masks else ""
        return f"tl.load(c{k} + {where}{extra} + {offsets}{masked})"

    # ------------------------------------------------------------------------------------------------- expressions

    def _node(self, node: Node) -> list[str]:
        name = f"v{self.number[node]}"
        if node.op == "const":
            return [f"{name} = tl.full([1, 1, 1], {_literal(node.data)}, {self.t})"]
        if node in self.column_of:
            k = self.column_of[node]
            read = self._read_column(k, node.shape)
            same = self.columns[k].dtype == self.dtype or self._is_winner(node)
            return [f"{name} = {read}" if same else f"{name} = {read}.to({self.t})"]
        operands = [f"v{self.number[arg]}" for arg in node.args]
        if node.op == "pick":
            column, kind = (self.column_of[arg] for arg in node.args)
            chosen = f"k{self.number[node]}"
            return [
                f"{chosen} = {self._read_column(kind, node.args[1].shape)}.to(tl.int64)",
                f"{name} = {self._read_column(column, node.shape, f' + {chosen} * {node.width}')}",
            ]
        if node.op == "wins":
            return [f"{name} = ({operands[0]} == arc[:, None, None]).to({self.t})"]
        if node.op == "reshape":
            how = _moves(_pair(node.args[0].shape), _pair(node.shape))
            return [f"{name} = {operands[0]}" if how == "same" else f"{name} = tl.permute({operands[0]}, (0, 2, 1))"]
        if node.op == "expand":
            return [f"{name} = {operands[0]} + {self._blank(node.shape, '0')}"]
        if node.op == "reduce":
            return [f"{name} = {self._reduced(node, operands[0])}"]
        return [f"{name} = {self._operation(node, operands)}"]

    def _is_winner(self, node: Node) -> bool:
        return any(user.op == "wins" and node in user.args for user in self.nodes)

    def _reduced(self, node: Node, value: str) -> str:
        """A sum over axes; what pads them is no zero where it went through a function."""
        (h, d), (own_h, own_d) = _pair(node.args[0].shape), _pair(node.shape)
        _, mask = self._offsets(node.args[0].shape)
        if mask:
            value = f"tl.where({mask}, {value}, 0.0)"
        if own_d == 1 and d > 1:
            value = f"tl.sum({value}, axis=2, keep_dims=True)"
        if own_h == 1 and h > 1:
            value = f"tl.sum({value}, axis=1, keep_dims=True)"
        return value

    def _operation(self, node: Node, a: Sequence[str]) -> str:
        op, one = node.op, f"tl.full([1, 1, 1], 1, {self.t})"
        if op in _BINARY:
            return f"{a[0]} {_BINARY[op]} {a[1]}"
        if op in COMPARISONS:
            return f"({a[0]} {_COMPARE[op]} {a[1]}).to({self.t})"
        if op == "where":
            return f"tl.where({a[0]} != 0, {a[1]}, {a[2]})"
        if op in {"minimum", "maximum"}:  # NaN wins, as in torch
            sign = "<" if op == "minimum" else ">"
            return f"tl.where(({a[0]} {sign} {a[1]}) | ({a[0]} != {a[0]}), {a[0]}, {a[1]})"
        if op == "leaky_relu":
            return f"tl.where({a[0]} > 0, {a[0]}, {a[0]} * tl.full([1, 1, 1], {_literal(node.data)}, {self.t}))"
        if op == "elu":
            return (
                f"tl.where({a[0]} > 0, {a[0]}, "
                f"tl.full([1, 1, 1], {_literal(node.data)}, {self.t}) * (tl.exp({a[0]}) - {one}))"
            )
        if op == "tanh":  # the series where the difference of exponentials would cancel
            x, s = a[0], f"({a[0]} * {a[0]})"
            c = [f"tl.full([1, 1, 1], {value!r}, {self.t})" for value in (-1 / 3, 2 / 15, -17 / 315, 62 / 2835)]
            small = f"{x} + {x} * {s} * ({c[0]} + {s} * ({c[1]} + {s} * ({c[2]} + {s} * {c[3]})))"
            large = f"{one} - ({one} + {one}) / (tl.exp({x} + {x}) + {one})"
            bound = "0.04" if self.dtype == torch.float32 else "1e-8"
            return f"tl.where({s} < {bound}, {small}, {large})"
        return {
            "neg": f"-{a[0]}",
            "abs": f"tl.abs({a[0]})",
            "sign": f"({a[0]} > 0).to({self.t}) - ({a[0]} < 0).to({self.t})",
            "exp": f"tl.exp({a[0]})",
            "log": f"tl.log({a[0]})",
            "sqrt": f"tl.sqrt({a[0]})",
            "rsqrt": f"{one} / tl.sqrt({a[0]})",
            "sigmoid": f"{one} / ({one} + tl.exp(-{a[0]}))",
            "relu": f"tl.where({a[0]} <= 0, 0.0, {a[0]})",
            "square": f"{a[0]} * {a[0]}",
            "reciprocal": f"{one} / {a[0]}",
        }[op]

    # ----------------------------------------------------------------------------------------------------- outputs

    def _store(self, state: int, value: str, shape: Sequence[int], shift: str = "") -> str:
        offsets, mask = self._offsets(shape)
        h, d = _pair(shape)
        return f"tl.store(o{state} + task * {h * d}{shift} + {offsets}, {value}{f', mask={mask}' if mask else ''})"

    def _output(self, k: int, output: Output, at: int) -> tuple[list[str], list[str], list[str]]:
        """(lines before the arcs, for each block, after the arcs) of an output whose first state is number `at`."""
        value, shape, a = f"v{self.number[output.nodes[0]]}", output.shape, f"a{k}"
        if output.form == "sum":
            return (
                [f"{a} = {self._blank(shape, '0')}"],
                [f"{a} += tl.sum(tl.where(alive, {value}, 0.0), axis=0, keep_dims=True)"],
                [self._store(at, a, shape)],
            )
        if output.form == "arc":
            offsets, mask = self._offsets(shape)
            h, d = _pair(shape)
            places = f"o{at} + arc[:, None, None] * {h * d} + {offsets}"
            masks = f"alive & {mask}" if mask else "alive & (" + offsets + " >= 0)"
            return [], [f"tl.store({places}, {value} + {self._blank(shape, '0')}, mask={masks})"], []
        if output.form in {"max", "min"}:
            return self._extremum(k, output, at, value)
        if output.form == "softmax":
            return self._softmax(k, output, at)
        kinds, inner = output.shape[0], output.shape[1:]  # pick
        kind = f"v{self.number[output.nodes[1]]}"
        return (
            [f"{a}_{t} = {self._blank(inner, '0')}" for t in range(kinds)],
            [
                f"{a}_{t} += tl.sum(tl.where(alive & ({kind} == {t}), {value}, 0.0), axis=0, keep_dims=True)"
                for t in range(kinds)
            ],
            [
                self._store(at, f"{a}_{t}", inner, f" * {kinds} + {t * _pair(inner)[0] * _pair(inner)[1]}")
                for t in range(kinds)
            ],
        )

    def _extremum(self, k: int, output: Output, at: int, value: str) -> tuple[list[str], list[str], list[str]]:
        """The extremum with the first arc that has it; a NaN wins over all."""
        a, w, shape = f"a{k}", f"w{k}", output.shape
        sign, low, best = (">", "-inf", "max") if output.form == "max" else ("<", "inf", "min")
        return (
            [f"{a} = {self._blank(shape, '0')}", f"{w} = {self._blank(shape, '-1', 'tl.int64')}"],
            [
                f"x{k} = {value} + {self._blank(shape, '0')}",
                f"nan{k} = alive & (x{k} != x{k})",
                f"real{k} = alive & (x{k} == x{k})",
                f"best{k} = tl.{best}(tl.where(real{k}, x{k}, float('{low}')), axis=0, keep_dims=True)",
                f"at{k} = arc[:, None, None] + {self._blank(shape, '0', 'tl.int64')}",
                f"first{k} = tl.min(tl.where(real{k} & (x{k} == best{k}), at{k}, {NOBODY}), axis=0, keep_dims=True)",
                f"bad{k} = tl.min(tl.where(nan{k}, at{k}, {NOBODY}), axis=0, keep_dims=True)",
                f"isbad{k} = bad{k} < {NOBODY}",
                f"best{k} = tl.where(isbad{k}, float('nan'), best{k})",
                f"first{k} = tl.where(isbad{k}, bad{k}, first{k})",
                f"wasbad{k} = ({w} >= 0) & ({a} != {a})",
                f"beats{k} = (wasbad{k} == 0) & (isbad{k} | (best{k} {sign} {a}))",
                f"better{k} = (first{k} < {NOBODY}) & (({w} < 0) | beats{k})",
                f"{a} = tl.where(better{k}, best{k}, {a})",
                f"{w} = tl.where(better{k}, first{k}, {w})",
            ],
            [self._store(at, a, shape), self._store(at + 1, f"{w}.to(tl.int32)", shape)],
        )

    def _softmax(self, k: int, output: Output, at: int) -> tuple[list[str], list[str], list[str]]:
        """Online: the weighted sum, the largest score and the sum of weights, all by that score."""
        score, value = output.nodes
        heads = score.width
        column, shape = (heads, 1), (heads, output.shape[-1] if output.shape else 1)
        a, peak, total = f"a{k}", f"peak{k}", f"total{k}"
        s = f"v{self.number[score]}"
        if _pair(score.shape) != column:
            s = f"tl.permute({s}, (0, 2, 1))"
        return (
            [
                f"{a} = {self._blank(shape, '0')}",
                f"{peak} = {self._blank(column, 'float(' + repr('-inf') + ')')}",
                f"{total} = {self._blank(column, '0')}",
            ],
            [
                f"s{k} = {s} + {self._blank(column, '0')}",
                f"seen{k} = tl.where(alive & (s{k} == s{k}), s{k}, float('-inf'))",
                f"top{k} = tl.maximum({peak}, tl.max(seen{k}, axis=0, keep_dims=True))",
                f"shrink{k} = tl.where(top{k} > {peak}, tl.exp({peak} - top{k}), 1.0)",
                f"weight{k} = tl.where(s{k} == float('-inf'), 0.0, tl.exp(s{k} - top{k}))",
                f"weight{k} = tl.where(alive, weight{k}, 0.0)",
                f"add{k} = tl.where(alive, weight{k} * v{self.number[value]}, 0.0)",
                f"{a} = {a} * shrink{k} + tl.sum(add{k}, axis=0, keep_dims=True)",
                f"{total} = {total} * shrink{k} + tl.sum(weight{k}, axis=0, keep_dims=True)",
                f"{peak} = top{k}",
            ],
            [self._store(at, a, shape), self._store(at + 1, peak, column), self._store(at + 2, total, column)],
        )


def _literal(value: Any) -> str:
    number = float(value)
    if number != number or number in (float("inf"), float("-inf")):
        return f"float('{number}')"
    return repr(number)


# ---------------------------------------------------------------------------------------------------------- running


@dataclass(frozen=True)
class Tasks:
    """Rows on a device, cut: one task a row of at most `SEGMENT` arcs, several for a longer one.

    row: (tasks,) int32; begin, end: (tasks,) int64, into ids; ids: (arcs,) int32; arcs: (arcs,) int32 or None;
    long: (long rows,) int64, first: (long rows,) int64 their first task and count: (long rows,) int64 their tasks;
    single: (rows,) int64 the task of each row, the first for a long one; mean: arcs a task, on average.
    """

    row: Tensor
    begin: Tensor
    end: Tensor
    ids: Tensor
    arcs: Tensor | None
    long: Tensor
    first: Tensor
    count: Tensor
    single: Tensor
    mean: float


def cut(rows: Rows, device: torch.device, segment: int = SEGMENT) -> Tasks:
    """The tasks of `rows` on a device, in order of row."""
    offsets = rows.offsets
    degree = offsets.diff()
    count = ((degree + segment - 1) // segment).clamp(min=1)
    first = count.cumsum(0) - count
    row = torch.repeat_interleave(torch.arange(len(degree)), count)
    nth = torch.arange(len(row)) - first[row]
    begin = offsets[:-1][row] + nth * segment
    end = torch.minimum(begin + segment, offsets[1:][row])
    long = (count > 1).nonzero().flatten()
    mean = float(degree.sum()) / max(1, len(row))
    arcs = None if rows.arcs is None else rows.arcs.to(device)
    row, begin, end, ids = row.int().to(device), begin.to(device), end.to(device), rows.ids.to(device)
    long_first, long_count = first[long].to(device), count[long].to(device)
    return Tasks(row, begin, end, ids, arcs, long.to(device), long_first, long_count, first.to(device), mean)


def run(kernel: GpuKernel, tensors: Sequence[Tensor], tasks: Tasks, arcs: int) -> list[list[Tensor]]:
    """Run a kernel over all rows; the arrays of each output, as `kernels.run` gives them. tensors: one per column,
    each (n, *shape) with its last axes contiguous.
    """
    device, many = tasks.row.device, len(tasks.row)
    results = [
        [
            torch.zeros((arcs if output.form == "arc" else many, *shape), dtype=kind, device=device)
            for shape, kind, _ in output.states(kernel.dtype)
        ]
        for output in kernel.outputs
    ]
    if many:
        block = max(1, min(16, BLOCK_VALUES // kernel.widest, _padded(max(1, round(tasks.mean)))))
        columns = [part for tensor in tensors for part in (tensor, tensor.stride(0) if tensor.dim() else 0)]
        flat = [state for states in results for state in states]
        kernel.launch[(many,)](
            *columns, *flat, tasks.row, tasks.begin, tasks.end, tasks.ids,
            tasks.ids if tasks.arcs is None else tasks.arcs, HAS_ARCS=tasks.arcs is not None, ARCS=block,
            num_warps=1 if block * kernel.widest <= 512 else 4,
        )  # fmt: skip
    return [_joined(output, states, tasks) for output, states in zip(kernel.outputs, results, strict=True)]


def _joined(output: Output, states: list[Tensor], tasks: Tasks) -> list[Tensor]:
    """The states of rows from those of their tasks, segments in their order."""
    if output.form == "arc" or not len(tasks.long):
        return states
    rows = [state.index_select(0, tasks.single) for state in states]
    join = _JOINS[output.form]
    for nth in range(1, int(tasks.count.max())):
        more = tasks.count > nth
        row, task = tasks.long[more], tasks.first[more] + nth
        joined = join([part[row] for part in rows], [state[task] for state in states], output)
        for part, value in zip(rows, joined, strict=True):
            part[row] = value
    return rows


def _join_sums(a: list[Tensor], b: list[Tensor], output: Output) -> list[Tensor]:
    return [a[0] + b[0]]


def _join_extrema(a: list[Tensor], b: list[Tensor], output: Output) -> list[Tensor]:
    better = b[0] > a[0] if output.form == "max" else b[0] < a[0]
    take = ~a[0].isnan() & (b[0].isnan() | better)
    return [torch.where(take, b[0], a[0]), torch.where(take, b[1], a[1])]


def _join_softmax(a: list[Tensor], b: list[Tensor], output: Output) -> list[Tensor]:
    top = torch.maximum(a[1], b[1])
    left, right = ((peak - top).exp().where(peak > float("-inf"), 0.0) for peak in (a[1], b[1]))

    def wide(x: Tensor) -> Tensor:
        return x if x.dim() == a[0].dim() else x.unsqueeze(-1)

    return [a[0] * wide(left) + b[0] * wide(right), top, a[2] * left + b[2] * right]


_JOINS: dict[str, Callable[[list[Tensor], list[Tensor], Output], list[Tensor]]] = {
    "sum": _join_sums, "pick": _join_sums, "max": _join_extrema, "min": _join_extrema, "softmax": _join_softmax,
}  # fmt: skip
