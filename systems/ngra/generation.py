"""The C text of a kernel, from the expressions of what it accumulates; `kernels.py` compiles and runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from systems.ngra.expression import COMPARISONS, Node, walk
from systems.ngra.graph import ProgramError

Role = Literal["row", "neighbour", "arc"]
Form = Literal["sum", "max", "min", "softmax", "arc", "pick"]
"""How an output is accumulated: into its row; with the winning arc; softmax-weighted; one value per arc; or a sum
into one of several slices, chosen by the arc's type."""

TILE = 128  # numbers of one row that are accumulated at a time
LOOK_AHEAD = 16  # arcs; an index is padded by more than that
C_TYPES = {torch.float32: "float", torch.float64: "double", torch.int32: "int32_t", torch.int64: "int64_t"}


@dataclass(frozen=True, eq=False)
class Column:
    """Data that a kernel reads: a leaf of its expressions, where it is found, and its type."""

    leaf: Node
    role: Role
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class Output:
    """What a kernel accumulates. nodes: the value; for softmax (score, value); for pick (value, type)."""

    form: Form
    nodes: tuple[Node, ...]
    shape: tuple[int, ...]

    def states(self, dtype: torch.dtype) -> list[tuple[tuple[int, ...], torch.dtype, float]]:
        """(trailing shape, type, initial value) of each array that the output fills."""
        if self.form in {"max", "min"}:
            return [(self.shape, dtype, 0.0), (self.shape, torch.int32, -1.0)]
        if self.form == "softmax":
            heads = self.nodes[0].shape
            return [(self.shape, dtype, 0.0), (heads, dtype, float("-inf")), (heads, dtype, 0.0)]
        return [(self.shape, dtype, 0.0)]


def by_arc(nodes: Sequence[Node], columns: Sequence[Column]) -> dict[Node, bool]:
    """Whether each node's value changes from arc to arc (else once per row). nodes: arguments before what uses them."""
    roles = {column.leaf: column.role for column in columns}
    found: dict[Node, bool] = {}
    for node in nodes:
        if node in roles:
            found[node] = roles[node] != "row"
        else:
            found[node] = node.op == "wins" or any(found[arg] for arg in node.args)
    return found


_PRELUDE = """\
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef {T} T;

static inline float exp_float(float x) {{
    // e^x = 2^n e^r, n = round(x / ln 2), |r| <= ln 2 / 2; the scale is applied in halves, so that n of -150 to 128
    // gives subnormal numbers and infinity as it should.
    float c = x < -104.0f ? -104.0f : x;
    c = c > 89.0f ? 89.0f : c;
    float n = __builtin_rintf(c * 1.44269504088896341f);
    float r = c - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t whole = (int32_t)n, half = whole >> 1;
    union {{ int32_t i; float f; }} low = {{ (half + 127) << 23 }}, high = {{ (whole - half + 127) << 23 }};
    return x != x ? x : p * low.f * high.f;
}}
static inline float sigmoid_float(float x) {{ return 1.0f / (1.0f + exp_float(-x)); }}
static inline float tanh_float(float x) {{
    float s = x * x;
    float small = x + x * s * (-0.333333333f + s * (0.133333333f + s * (-0.0539682540f + s * 0.0218694885f)));
    float large = 1.0f - 2.0f / (exp_float(2.0f * x) + 1.0f);
    return s < 0.04f ? small : large;
}}
static inline double exp_double(double x) {{ return exp(x); }}
static inline double sigmoid_double(double x) {{ return 1.0 / (1.0 + exp(-x)); }}
static inline double tanh_double(double x) {{ return tanh(x); }}
"""

_BINARY_C = {"add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "div": "{0} / {1}"}
_COMPARE_C = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "=="}


def _operation(node: Node, a: Sequence[str], t: str) -> str:
    """The C expression of an elementwise node of operands `a`."""
    op = node.op
    f = "f" if t == "float" else ""
    if op in _BINARY_C:
        return _BINARY_C[op].format(*a)
    if op in COMPARISONS:
        return f"(T)({a[0]} {_COMPARE_C[op]} {a[1]})"
    if op in {"exp", "sigmoid", "tanh"}:
        return f"{op}_{t}({a[0]})"
    if op in {"log", "sqrt"}:
        return f"{op}{f}({a[0]})"
    if op == "where":
        return f"({a[0]} != 0 ? {a[1]} : {a[2]})"
    if op in {"minimum", "maximum"}:  # NaN wins, as in torch
        sign = "<" if op == "minimum" else ">"
        return f"({a[0]} {sign} {a[1]} || {a[0]} != {a[0]} ? {a[0]} : {a[1]})"
    if op == "leaky_relu":
        return f"({a[0]} > 0 ? {a[0]} : {a[0]} * {_literal(node.data)})"
    if op == "elu":
        return f"({a[0]} > 0 ? {a[0]} : {_literal(node.data)} * (exp_{t}({a[0]}) - (T)1))"
    return {
        "neg": f"-{a[0]}",
        "abs": f"fabs{f}({a[0]})",
        "sign": f"(T)(({a[0]} > 0) - ({a[0]} < 0))",
        "rsqrt": f"(T)1 / sqrt{f}({a[0]})",
        "reciprocal": f"(T)1 / {a[0]}",
        "square": f"{a[0]} * {a[0]}",
        "relu": f"({a[0]} <= 0 ? (T)0 : {a[0]})",
        "reshape": a[0],
        "expand": a[0],
    }[op]


def _literal(value: Any) -> str:
    number = float(value)
    if number != number:
        return "(T)NAN"
    if number in (float("inf"), float("-inf")):
        return "(T)INFINITY" if number > 0 else "(-(T)INFINITY)"
    return f"(T)({number!r})"


def generate(columns: Sequence[Column], outputs: Sequence[Output], dtype: torch.dtype) -> str:
    """The C source of a kernel: `by_rows` over a `Rows`, `by_chunks` over a `Grid`.

    Raises ProgramError for a type of column that it does not know.
    """
    for column in columns:
        if column.dtype not in C_TYPES:
            raise ProgramError(f"a column of type {column.dtype} cannot be read by a kernel; use float32 or float64")
    return _Generator(columns, outputs, C_TYPES[dtype], dtype).text()


class _Generator:
    """Writes one kernel. A node gets a number; its value is v<number>, an array where another loop reads it."""

    def __init__(self, columns: Sequence[Column], outputs: Sequence[Output], t: str, dtype: torch.dtype) -> None:
        self.columns, self.outputs, self.t, self.dtype = columns, outputs, t, dtype
        self.column_of = {column.leaf: k for k, column in enumerate(columns)}
        roots = [node for output in outputs for node in output.nodes]
        self.nodes = list(walk(*roots))
        self.number = {node: k for k, node in enumerate(self.nodes)}
        self.width = max((node.width for node in self.nodes), default=1)
        self.tiled = self._can_tile() and self.width > TILE
        self.arc_level = by_arc(self.nodes, columns)
        self.lines: list[str] = []

    def _can_tile(self) -> bool:
        full = (self.width,)
        narrow = {(), (1,)}
        plain = all(
            (node.shape == full or node.shape in narrow) and node.op not in {"reduce", "reshape", "pick"}
            for node in self.nodes
        )
        return plain and all(
            output.shape == full and output.form in {"sum", "max", "min", "arc"} for output in self.outputs
        )

    # --------------------------------------------------------------------------------------------------- text

    def text(self) -> str:
        """The whole source."""
        parts = [_PRELUDE.format(T=self.t)]
        remainder = self.width % TILE if self.tiled else 0
        sizes = [TILE, *([remainder] if remainder else [])] if self.tiled else [self.width]
        for kind, id_type in (("rows", "int32_t"), ("chunks", "uint16_t")):
            parts += [self._row_function(kind, id_type, size) for size in sizes]
        parts += [self._by_rows(sizes), self._by_chunks(sizes), self._by_chunk(sizes)]
        return "\n".join(parts)

    def _shape(self, node: Node, size: int) -> tuple[int, ...]:
        return (size,) if self.tiled and node.shape == (self.width,) else node.shape

    def _pointers(self, role: Role, row: str) -> list[str]:
        lines = []
        for k, column in enumerate(self.columns):
            if column.role == role:
                c = C_TYPES[column.dtype]
                shift = " + t0" if self.tiled and column.leaf.shape == (self.width,) else ""
                lines.append(f"const {c} *restrict c{k} = (const {c} *)columns[{k}] + {row} * steps[{k}]{shift};")
        return lines

    def _row_function(self, kind: str, id_type: str, size: int) -> str:
        """One row (or the part of it in one chunk): load the state, run over the arcs, store the state."""
        out: list[str] = []
        fresh = kind == "rows"
        add = out.append
        add(f"static inline __attribute__((always_inline)) void {kind}_{size}(const void *const *columns, ")
        add("    const int64_t *steps, void *const *outputs, int64_t row, int64_t base, int64_t t0,")
        add(f"    const {id_type} *restrict ids, const int32_t *restrict arcs, int64_t first, int64_t n) {{")
        add("    (void)t0; (void)ids; (void)base; (void)arcs; (void)first;")
        out += ["    " + line for line in self._pointers("row", "row")]
        state = 0
        loads, stores = [], []
        for k, output in enumerate(self.outputs):
            if output.form == "arc":
                state += 1
                continue
            for m, (shape, kind_of, initial) in enumerate(output.states(self.dtype)):
                width = size if self.tiled else _width(shape)
                c = C_TYPES[kind_of]
                pointer = f"(({c} *)outputs[{state}] + row * {_width(shape)} + t0)"
                add(f"    {c} a{k}_{m}[{width}];")
                start = _literal(initial) if c == self.t else str(int(initial))
                if fresh:
                    loads.append(f"    for (int k = 0; k < {width}; ++k) a{k}_{m}[k] = {start};")
                else:
                    loads.append(f"    memcpy(a{k}_{m}, {pointer}, sizeof a{k}_{m});")
                stores.append(f"    memcpy({pointer}, a{k}_{m}, sizeof a{k}_{m});")
                state += 1
        out += loads
        hoisted = [node for node in self.nodes if not self.arc_level[node] and node.op not in {"leaf", "const"}]
        out += ["    " + line for line in self._compute(hoisted, size, arc=False)]
        add("    for (int64_t p = 0; p < n; ++p) {")
        if any(column.role == "neighbour" for column in self.columns):
            add("        int64_t neighbour = base + ids[p];")
        if any(self._needs_arc()):
            add("        int64_t arc = arcs ? arcs[p] : first + p; (void)arc;")
        out += ["        " + line for line in self._prefetches(size)]
        out += ["        " + line for line in self._pointers("neighbour", "neighbour")]
        out += ["        " + line for line in self._pointers("arc", "arc")]
        body = [node for node in self.nodes if self.arc_level[node] and node.op not in {"leaf", "const"}]
        out += ["        " + line for line in self._compute(body, size, arc=True)]
        add("    }")
        out += stores
        add("}")
        return "\n".join(out)

    def _needs_arc(self) -> list[bool]:
        return [
            any(column.role == "arc" for column in self.columns),
            any(output.form in {"arc", "max", "min"} for output in self.outputs),
            any(node.op == "wins" for node in self.nodes),
        ]

    def _prefetches(self, size: int) -> list[str]:
        lines = []
        for k, column in enumerate(self.columns):
            if column.role == "neighbour":
                c = C_TYPES[column.dtype]
                item = 8 if c in {"double", "int64_t"} else 4
                tile = self.tiled and column.leaf.shape == (self.width,)
                width = size if tile else column.leaf.width
                shift = " + t0" if tile else ""
                lines.append(f"{{ const {c} *ahead = (const {c} *)columns[{k}]")
                lines.append(f"      + (base + ids[p + {LOOK_AHEAD}]) * steps[{k}]{shift};")
                per_line = 64 // item
                lines.append("  " + " ".join(f"__builtin_prefetch(ahead + {at});" for at in range(0, width, per_line)))
                lines.append("}")
        return lines

    # ---------------------------------------------------------------------------------------------- expressions

    def _phases(self, nodes: Sequence[Node]) -> dict[Node, int]:
        """Nodes of one phase and one shape share a loop."""
        chosen = set(nodes)
        phases: dict[Node, int] = {}
        for node in nodes:
            phase = 0
            for arg in node.args:
                if arg in chosen:
                    apart = arg.shape != node.shape or "reduce" in {arg.op, node.op} or node.op == "reshape"
                    phase = max(phase, phases[arg] + int(apart))
            phases[node] = phase
        return phases

    def _compute(self, nodes: Sequence[Node], size: int, arc: bool) -> list[str]:
        """Loops that evaluate `nodes`, and with `arc` add to the outputs."""
        phases = self._phases(nodes)
        groups: dict[tuple[int, tuple[int, ...], bool, int], list[Node]] = {}
        for node in nodes:
            single = self.number[node] + 1 if node.op == "reduce" else 0
            groups.setdefault((phases[node], node.shape, single > 0, single), []).append(node)
        where = {node: key for key, members in groups.items() for node in members}
        users: dict[Node, list[Node]] = {}
        for node in self.nodes:
            for arg in node.args:
                users.setdefault(arg, []).append(node)
        kept = set()  # in an array
        for node in nodes:
            outside = any(where.get(user) != where[node] for user in users.get(node, []))
            if outside or not arc or node.op == "reduce" or self._read_by_outputs(node):
                kept.add(node)
        lines = []
        for node in nodes:
            if node in kept:
                width = _width(self._shape(node, size))
                lines.append(f"T v{self.number[node]}[{width}];")
        done_outputs: set[int] = set()
        for key in sorted(groups, key=lambda key: (key[0], key[1], key[2], key[3])):
            members = groups[key]
            shape = self._shape(members[0], size)
            if key[2]:
                lines += self._reduction(members[0], size)
                continue
            loops, close = _loops(shape)
            lines += loops
            here = set(members)
            for node in members:
                operands = [self._read(arg, shape, here, node, size) for arg in node.args]
                value = self._value(node, operands, shape)
                lines.append(f"    const T w{self.number[node]} = {value};")
                if node in kept:
                    lines.append(f"    v{self.number[node]}[{_flat(shape)}] = w{self.number[node]};")
            if arc:
                for k, output in enumerate(self.outputs):
                    root = output.nodes[0]
                    inside = root in here and output.shape == root.shape
                    if k not in done_outputs and inside and output.form in {"sum", "max", "min", "arc"}:
                        lines += ["    " + line for line in self._accumulate(k, f"w{self.number[root]}", shape)]
                        done_outputs.add(k)
            lines += [close]
        if arc:
            for k, output in enumerate(self.outputs):
                if k not in done_outputs:
                    lines += self._late_output(k, output, size)
        return lines

    def _read_by_outputs(self, node: Node) -> bool:
        for output in self.outputs:
            if node in output.nodes and (output.form in {"softmax", "pick"} or output.shape != node.shape):
                return True
        return False

    def _value(self, node: Node, operands: list[str], shape: tuple[int, ...]) -> str:
        if node.op == "wins":  # (winner,): does this arc hold the row's or the neighbour's extremum?
            return f"(T)({operands[0]} == (int32_t)arc)"
        if node.op == "pick":
            column, kind = (self.column_of[arg] for arg in node.args)
            return f"c{column}[(int64_t)c{kind}[0] * {node.width} + {_flat(shape)}]"
        return _operation(node, operands, self.t)

    def _read(self, arg: Node, shape: tuple[int, ...], here: set[Node], user: Node, size: int) -> str:
        """An operand inside a loop over `shape`."""
        if arg.op == "const":
            return _literal(arg.data)
        own = self._shape(arg, size)
        index = _flat(shape) if user.op == "reshape" else _index(own, shape)
        if arg in self.column_of:
            k = self.column_of[arg]
            same = C_TYPES[self.columns[k].dtype] == self.t or user.op == "wins"
            return f"c{k}[{index}]" if same else f"(T)c{k}[{index}]"
        if arg in here:
            return f"w{self.number[arg]}"
        return f"v{self.number[arg]}[{index}]"

    def _reduction(self, node: Node, size: int) -> list[str]:
        """A sum over axes into v<number>, which is always an array."""
        name, source = f"v{self.number[node]}", node.args[0]
        wide, own = source.shape, node.shape
        read = self._read(source, wide, set(), node, size)
        aligned = (1,) * (len(wide) - len(own)) + own
        if wide and aligned[-1] == 1 and aligned[:-1] == wide[:-1]:  # over the last axis
            outer, close = _loops(wide[:-1]) if len(wide) > 1 else ("{",), "}"
            target = "h" if len(wide) > 1 else "0"
            if len(wide) > 1:
                outer = (f"for (int h = 0; h < {wide[0]}; ++h) {{",)
            return [
                *outer,
                "    T s = 0;",
                "    #pragma omp simd reduction(+ : s)",
                f"    for (int k = 0; k < {wide[-1]}; ++k) s += {read};",
                f"    {name}[{target}] = s;",
                close,
            ]
        loops, close = _loops(wide)
        return [
            f"for (int z = 0; z < {_width(own)}; ++z) {name}[z] = 0;",
            *loops,
            f"    {name}[{_index(own, wide)}] += {read};",
            close,
        ]

    # ------------------------------------------------------------------------------------------------- outputs

    def _accumulate(self, k: int, value: str, shape: tuple[int, ...]) -> list[str]:
        """Add one element to an output, inside a loop over its shape."""
        output, at = self.outputs[k], _flat(shape)
        if output.form == "sum":
            return [f"a{k}_0[{at}] += {value};"]
        if output.form == "arc":
            c = self.t
            state = sum(len(other.states(self.dtype)) for other in self.outputs[:k])
            return [f"(({c} *)outputs[{state}])[arc * {_width(output.shape)} + t0 + {at}] = {value};"]
        sign = ">" if output.form == "max" else "<"
        return [
            f"const int nan = ({value} != {value}) & (a{k}_0[{at}] == a{k}_0[{at}]);",
            f"const int tie = ({value} == a{k}_0[{at}]) | (({value} != {value}) & (a{k}_0[{at}] != a{k}_0[{at}]));",
            # In whatever order chunks come, of equal arcs the first in canonical order wins.
            f"const int before = tie & ((int32_t)arc < a{k}_1[{at}]);",
            f"const int take = (a{k}_1[{at}] < 0) | ({value} {sign} a{k}_0[{at}]) | nan | before;",
            f"a{k}_0[{at}] = take ? {value} : a{k}_0[{at}];",
            f"a{k}_1[{at}] = take ? (int32_t)arc : a{k}_1[{at}];",
        ]

    def _late_output(self, k: int, output: Output, size: int) -> list[str]:
        """An output that is no result of a loop over its own shape: a leaf, a broadcast, a softmax, a pick."""
        if output.form == "softmax":
            return self._softmax(k, output, size)
        shape = self._shape_of_output(output, size)
        loops, close = _loops(shape)
        user = output.nodes[0]
        value = self._operand(user, shape, size)
        if output.form == "pick":
            kind = self.column_of[output.nodes[1]]
            inner = output.shape[1:]
            loops, close = _loops(inner)
            value = self._operand(user, inner, size)
            return [*loops, f"    a{k}_0[(int64_t)c{kind}[0] * {_width(inner)} + {_flat(inner)}] += {value};", close]
        return [*loops, f"    const T w = {value};", *("    " + x for x in self._accumulate(k, "w", shape)), close]

    def _shape_of_output(self, output: Output, size: int) -> tuple[int, ...]:
        return (size,) if self.tiled else output.shape

    def _operand(self, node: Node, shape: tuple[int, ...], size: int) -> str:
        if node.op == "const":
            return _literal(node.data)
        index = _index(self._shape(node, size), shape)
        if node in self.column_of:
            return f"(T)c{self.column_of[node]}[{index}]"
        return f"v{self.number[node]}[{index}]"

    def _softmax(self, k: int, output: Output, size: int) -> list[str]:
        """Online: the state is the weighted sum, the largest score and the sum of weights, all by that score."""
        score, value = output.nodes
        heads, inner = score.width, _width(output.shape) // max(1, score.width)
        at = f"h * {inner} + k"
        shape = (heads, inner)
        as_pair = value.shape if len(value.shape) == 2 else (1, *value.shape)
        index = _index(as_pair, shape)
        if value in self.column_of:
            read = f"c{self.column_of[value]}[{index}]"
        elif value.op == "const":
            read = _literal(value.data)
        else:
            read = f"v{self.number[value]}[{index}]"
        score_of_h = self._operand(score, (heads,) if heads > 1 else (1,), size).replace("[k]", "[h]")
        loop = f"for (int h = 0; h < {heads}; ++h)"
        return [
            f"T s{k}[{heads}], weight{k}[{heads}];",
            f"int grows{k} = 0;",
            f"{loop} {{ s{k}[h] = {score_of_h}; grows{k} |= s{k}[h] > a{k}_1[h]; }}",
            f"if (__builtin_expect(grows{k}, 0)) {{",  # rarer and rarer along a row
            f"    {loop} {{",
            f"        const T top = s{k}[h] > a{k}_1[h] ? s{k}[h] : a{k}_1[h];",
            f"        const T shrink = top > a{k}_1[h] ? exp_{self.t}(a{k}_1[h] - top) : (T)1;",
            f"        for (int k = 0; k < {inner}; ++k) a{k}_0[{at}] *= shrink;",
            f"        a{k}_2[h] *= shrink;",
            f"        a{k}_1[h] = top;",
            "    }",
            "}",
            "#pragma omp simd",
            f"{loop} {{",
            f"    const T e = exp_{self.t}(s{k}[h] - a{k}_1[h]);",  # NaN for two infinities: right for +, not for -
            f"    weight{k}[h] = s{k}[h] == -INFINITY ? (T)0 : e;",
            f"    a{k}_2[h] += weight{k}[h];",
            "}",
            f"{loop} {{",
            "    #pragma omp simd",
            f"    for (int k = 0; k < {inner}; ++k) a{k}_0[{at}] += weight{k}[h] * {read};",
            "}",
        ]

    # --------------------------------------------------------------------------------------------- entry points

    def _calls(self, kind: str, sizes: Sequence[int], arguments: str) -> list[str]:
        if not self.tiled:
            return [f"{kind}_{sizes[0]}(columns, steps, outputs, row, base, 0, {arguments});"]
        whole = self.width // TILE * TILE
        lines = [f"for (int64_t t0 = 0; t0 < {whole}; t0 += {TILE})"]
        lines.append(f"    {kind}_{TILE}(columns, steps, outputs, row, base, t0, {arguments});")
        if len(sizes) > 1:
            lines.append(f"{kind}_{sizes[1]}(columns, steps, outputs, row, base, {whole}, {arguments});")
        return lines

    def _by_rows(self, sizes: Sequence[int]) -> str:
        calls = self._calls("rows", sizes, "ids + begin, arcs ? arcs + begin : 0, begin, offsets[row + 1] - begin")
        inner = "\n            ".join(calls)
        return f"""\
void by_rows(const void *const *columns, const int64_t *steps, void *const *outputs, const int64_t *offsets,
             const int32_t *ids, const int32_t *arcs, const int64_t *bounds, int64_t tasks, int64_t *counter) {{
    const int64_t base = 0;
    for (;;) {{
        int64_t task = __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
        if (task >= tasks) return;
        for (int64_t row = bounds[task]; row < bounds[task + 1]; ++row) {{
            int64_t begin = offsets[row];
            {inner}
        }}
    }}
}}
"""

    def _by_chunk(self, sizes: Sequence[int]) -> str:
        """One chunk that is all there is in memory: the states go on from what they are."""
        calls = self._calls("chunks", sizes, "ids + begin, arcs ? arcs + begin : 0, 0, ends[r + 1] - begin")
        inner = "\n        ".join(calls)
        return f"""\
void by_chunk(const void *const *columns, const int64_t *steps, void *const *outputs, const uint16_t *rows,
              const uint32_t *ends, const uint16_t *ids, const int32_t *arcs, int64_t from, int64_t to) {{
    const int64_t base = 0;
    for (int64_t r = from; r < to; ++r) {{
        int64_t row = rows[r], begin = ends[r];
        {inner}
    }}
}}
"""

    def _by_chunks(self, sizes: Sequence[int]) -> str:
        clears, state = [], 0
        for output in self.outputs:
            for shape, kind, initial in output.states(self.dtype):
                if output.form != "arc":
                    width, c = _width(shape), C_TYPES[kind]
                    start = _literal(initial) if c == self.t else str(int(initial))
                    clears.append(
                        f"for (int64_t k = from * {width}; k < to * {width}; ++k) "
                        f"(({c} *)outputs[{state}])[k] = {start};"
                    )
                state += 1
        clear = "\n            ".join(clears)
        calls = self._calls("chunks", sizes, "ids + begin, arcs + at + begin, 0, ends[r + 1] - begin")
        inner = "\n                    ".join(calls)
        return f"""\
void by_chunks(const void *const *columns, const int64_t *steps, void *const *outputs, int64_t side,
               int64_t intervals, const int64_t *arc_begin, const int64_t *row_begin, const uint16_t *rows,
               const uint32_t *row_ends, const uint16_t *locals, const int32_t *all_arcs, const int64_t *bounds,
               int64_t tasks, int64_t *counter) {{
    for (;;) {{
        int64_t task = __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
        if (task >= tasks) return;
        for (int64_t from = bounds[task], to; from < bounds[task + 1]; from = to) {{
            int64_t interval = from / side, low = interval * side;
            to = low + side < bounds[task + 1] ? low + side : bounds[task + 1];
            {clear}
            for (int64_t j = 0; j < intervals; ++j) {{
                int64_t chunk = interval * intervals + j, count = row_begin[chunk + 1] - row_begin[chunk];
                int64_t at = arc_begin[chunk], base = j * side;
                const uint16_t *here = rows + row_begin[chunk], *ids = locals + at;
                const uint32_t *ends = row_ends + row_begin[chunk] + chunk;
                const int32_t *arcs = all_arcs;
                int64_t r = 0, stop = count;  // the rows of this task: a binary search
                while (r < stop) {{
                    int64_t middle = (r + stop) / 2;
                    if (low + here[middle] < from) r = middle + 1; else stop = middle;
                }}
                for (; r < count && low + here[r] < to; ++r) {{
                    int64_t row = low + here[r], begin = ends[r];
                    {inner}
                }}
            }}
        }}
    }}
}}
"""


def _width(shape: Sequence[int]) -> int:
    width = 1
    for size in shape:
        width *= size
    return width


def _loops(shape: Sequence[int]) -> tuple[tuple[str, ...], str]:
    """Loops over a shape of at most two axes, with indices h and k, and what closes them."""
    if len(shape) == 0:
        return ("{ const int k = 0; (void)k;",), "}"
    # The pragma keeps short loops, such as those over heads, from being unrolled before they are vectorised.
    simd = "#pragma omp simd"
    if len(shape) == 1:
        return (*((simd,) if shape[0] > 1 else ()), f"for (int k = 0; k < {shape[0]}; ++k) {{"), "}"
    if shape[1] == 1:
        return (simd, f"for (int h = 0; h < {shape[0]}; ++h) {{ const int k = 0; (void)k;"), "}"
    return (f"for (int h = 0; h < {shape[0]}; ++h) for (int k = 0; k < {shape[1]}; ++k) {{",), "}"


def _flat(shape: Sequence[int]) -> str:
    return f"h * {shape[1]} + k" if len(shape) == 2 else "k"


def _index(own: Sequence[int], loop: Sequence[int]) -> str:
    """Where an operand of shape `own` is read inside loops over `loop`."""
    parts = []
    sizes = list(own)
    names = ["h", "k"][2 - len(loop) :]
    for axis, size in enumerate(reversed(sizes)):
        if size != 1:
            inner = _width(sizes[len(sizes) - axis :])
            name = names[len(names) - 1 - axis]
            parts.append(name if inner == 1 else f"{name} * {inner}")
    return " + ".join(reversed(parts)) or "0"
