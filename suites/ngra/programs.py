"""Random vertex programs and graphs for the property tests: strategies, and the layer that runs a program."""

import torch
from hypothesis import strategies as st
from torch.nn import functional as F

from systems.ngra import Graph, Layer

UNARY = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "elu": F.elu,
    "neg": torch.neg,
    "abs": torch.abs,
    "square": lambda x: torch.tanh(x) ** 2,
    "exp": lambda x: torch.exp(torch.tanh(x)),
    "log": lambda x: torch.log(1 + x * x),
    "sqrt": lambda x: torch.sqrt(1 + x * x),
    "rsqrt": lambda x: torch.rsqrt(1 + x * x),
    "total": lambda x: 0.1 * x.sum(-1, keepdim=True),
}
BINARY = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": lambda x, y: x / (1 + y * y),
    "minimum": torch.minimum,
    "maximum": torch.maximum,
    "where": lambda x, y: torch.where(x > 0.25, y, x * 0.5),
}
WIDE = ("src", "dst", "edge")
NARROW = ("src_scalar", "dst_scalar", "edge_scalar")
LEAVES = st.sampled_from([*WIDE, *WIDE, *NARROW, "bias", "two"])


def expressions(depth=3):
    """Nested tuples over leaves: ("mul", ("sigmoid", "src"), "dst")."""
    return st.recursive(
        LEAVES,
        lambda inner: st.one_of(
            st.tuples(st.sampled_from(sorted(UNARY)), inner),
            st.tuples(st.sampled_from(sorted(BINARY)), inner, inner),
            st.tuples(st.just("linear"), inner),
            st.tuples(st.just("cat"), inner, inner),
        ),
        max_leaves=2**depth,
    )


class Program(Layer):
    """A layer whose `apply_edge` evaluates a nested tuple."""

    def __init__(self, tree, accumulator, width, seed=0):
        super().__init__()
        self.tree, self.accumulator, self.width = tree, accumulator, width
        generator = torch.Generator().manual_seed(seed)

        def values(*shape):
            return torch.nn.Parameter(torch.randn(*shape, generator=generator) / 2)

        self.weight, self.cat_weight, self.bias = values(width, width), values(width, 2 * width), values(width)
        self.score_weight = values(1, width)
        self.vertex_weight = values(width, width)

    def value(self, tree, leaves):
        if isinstance(tree, str):
            return leaves[tree]
        op, *args = tree
        parts = [self.value(arg, leaves) for arg in args]
        if op == "linear":
            return F.linear(self.wide(parts[0], leaves), self.weight, self.bias)
        if op == "cat":
            return F.linear(torch.cat([self.wide(part, leaves) for part in parts], -1), self.cat_weight)
        if op in UNARY:
            return UNARY[op](self.row(parts[0], leaves))
        return BINARY[op](self.row(parts[0], leaves), self.row(parts[1], leaves))

    def row(self, part, leaves):
        """Parameters and numbers become values of arcs."""
        return part if not isinstance(part, float) and part is not self.bias else part + 0 * leaves["src_scalar"]

    def wide(self, part, leaves):
        return part + 0 * leaves["src"]

    def apply_edge(self, src, dst, edge):
        leaves = {
            "src": src["h"], "dst": dst["h"], "edge": edge["h"], "src_scalar": src["s"], "dst_scalar": dst["s"],
            "edge_scalar": edge["s"], "bias": self.bias, "two": 2.0,
        }  # fmt: skip
        value = self.wide(self.value(self.tree, leaves), leaves)
        if self.accumulator == "softmax":
            return F.linear(torch.tanh(value), self.score_weight), value
        return value

    def apply_vertex(self, vertex, accum):
        return F.linear(accum, self.vertex_weight) + torch.tanh(vertex["h"])


@st.composite
def arcs(draw, vertices, most=60):
    kind = draw(st.sampled_from(["any", "any", "one destination", "one source", "few", "none"]))
    if vertices == 0 or kind == "none":
        return [], []
    count = draw(st.integers(0, 6 if kind == "few" else most))
    seed = draw(st.integers(0, 2**16))
    generator = torch.Generator().manual_seed(seed)
    src = torch.randint(vertices, (count,), generator=generator)
    dst = torch.randint(vertices, (count,), generator=generator)
    if kind == "one destination":
        dst[:] = int(dst[0]) if count else 0
    if kind == "one source":
        src[:] = int(src[0]) if count else 0
    return src.tolist(), dst.tolist()


@st.composite
def graphs(draw, most_vertices=20, most_arcs=60):
    """Multi-arcs, self loops, isolated vertices, one huge row, no arcs, no vertices."""
    vertices = draw(st.integers(0, most_vertices))
    src, dst = draw(arcs(vertices, most_arcs))
    return Graph(src, dst, vertices=vertices)


def data(graph, width, seed, dtype=torch.float64, whole=False):
    """(x, edge) for a `Program`; whole: integers, which force ties."""
    generator = torch.Generator().manual_seed(seed)

    def values(*shape):
        if whole:
            return torch.randint(-2, 3, shape, generator=generator).to(dtype)
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    n, a = graph.num_vertices, graph.num_arcs
    return {"h": values(n, width), "s": values(n, 1)}, {"h": values(a, width), "s": values(a, 1)}


def gradients(layer, run, x, edge):
    """(result, gradients by vertex data, arc data and parameters), for fixed weights of the result."""
    tensors = [*x.values(), *edge.values()]
    for tensor in tensors:
        tensor.requires_grad_(True)
    out = run()
    weights = torch.cos(torch.arange(out.numel(), dtype=out.dtype)).reshape(out.shape)
    leaves = [*tensors, *layer.parameters()]
    if not out.requires_grad:
        return out, [None] * len(leaves)
    return out, torch.autograd.grad((out * weights).sum(), leaves, allow_unused=True)


def assert_equal_results(got, want, rtol, atol):
    for a, b in zip((got[0], *got[1]), (want[0], *want[1]), strict=True):
        a = torch.zeros_like(b) if a is None and b is not None else a
        b = torch.zeros_like(a) if b is None and a is not None else b
        if a is None:
            continue
        scale = 1 + (b.abs().max().item() if b.numel() else 0)
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol * scale, equal_nan=True)


def products_in(tree):
    """Whether a program sums over elements, which a library may round in another way in another row."""
    return not isinstance(tree, str) and (tree[0] in {"linear", "cat", "total"} or any(map(products_in, tree[1:])))


def nearly_tied(layer, graph, x, edge):
    """Whether two messages of one destination are the largest or least but for rounding: then either may win."""
    with torch.no_grad():
        src, dst = graph.arcs()
        source, destination = ({name: part[rows] for name, part in x.items()} for rows in (src, dst))
        messages = layer.apply_edge(source, destination, edge)
    for vertex in range(graph.num_vertices):
        values = messages[dst == vertex].sort(0, descending=layer.accumulator == "max").values
        if len(values) > 1 and bool(((values[0] - values[1]).abs() <= 1e-9 * (1 + values[0].abs())).any()):
            return True
    return False
