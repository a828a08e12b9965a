"""Random graphs of annotated operators, and random plans for them."""

from types import SimpleNamespace

import torch
from hypothesis import strategies as st

from systems.superscaler.capture import Builder, Operand
from systems.superscaler.errors import Unsupported
from systems.superscaler.sprogram import Replicate, Split, SProgram


class Drawn:
    """A graph under construction: tensors by id, values of parameters by name."""

    def __init__(self, seed, samples):
        self.builder = Builder()
        self.values = {}
        self.batch = []
        self.samples = samples
        self.generator = torch.Generator().manual_seed(seed)
        self.count = 0

    def tensor(self, shape, kind):
        name = f"{kind}{self.count}"
        self.count += 1
        value = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        number = self.builder.add(shape, torch.float64, kind, name, grad=kind == "param")
        if kind == "input":
            self.builder.users.append(number)
            self.batch.append(value)
        else:
            self.values[name] = value
        return number

    def shape(self, tensor):
        return self.builder.tensors[tensor].shape

    def call(self, target, *arguments, **keywords):
        def meta(value):
            if isinstance(value, Operand):
                return torch.empty(self.shape(value.id), dtype=torch.float64, device="meta")
            return list(map(meta, value)) if isinstance(value, tuple) else value

        packet, overload = target.split(".")
        function = getattr(getattr(torch.ops.aten, packet), overload)
        value = function(*map(meta, arguments), **keywords)
        node = SimpleNamespace(name=f"{packet}_{self.count}", meta={})
        self.count += 1
        return self.builder.emit(node, f"aten.{target}", arguments, keywords, value, True)


UNARY = ("gelu.default", "relu.default", "tanh.default", "sin.default", "neg.default")
KINDS = ("linear", "bias", "unary", "norm", "add", "mul", "transpose", "merge", "heads", "softmax", "matmul", "shared",
         "slice", "cat", "reduce", "scale")  # fmt: skip


@st.composite
def graphs(draw, most=9, samples=None):
    """A graph, the values of its parameters, and a batch."""
    batch = samples or draw(st.integers(4, 6))
    drawn = Drawn(draw(st.integers(0, 2**20)), batch)
    width, length = draw(st.sampled_from([4, 6])), draw(st.sampled_from([4, 5]))
    live = [drawn.tensor((batch, length, width), "input")]
    if draw(st.booleans()):
        live.append(drawn.tensor((batch, length, width), "input"))
    weights = []
    for _ in range(draw(st.integers(1, most))):
        kind = draw(st.sampled_from(KINDS))
        x = draw(st.sampled_from(live))
        shape = drawn.shape(x)
        new = grown(draw, drawn, kind, x, shape, live, weights)
        if new is not None:
            live.append(new)
    if not weights:
        weight = drawn.tensor((3, drawn.shape(live[-1])[-1]), "param")
        live.append(drawn.call("linear.default", Operand(live[-1]), Operand(weight)))
    loss = None
    for x in live[-2:]:
        total = drawn.call("sum.default", Operand(drawn.call("mul.Tensor", Operand(x), Operand(x))))
        loss = total if loss is None else drawn.call("add.Tensor", Operand(loss), Operand(total))
    drawn.builder.loss = drawn.call("div.Scalar", Operand(loss), 7.0)
    try:
        graph = drawn.builder.finish(None)
    except Unsupported:  # the drawn loss depends on no parameter
        from hypothesis import reject

        reject()
    used = [drawn.builder.users.index(i) for i in graph.inputs]
    return graph, drawn.values, [drawn.batch[i] for i in used]


def grown(draw, drawn, kind, x, shape, live, weights):
    """One more operator on x; None where x does not suit it."""
    if kind in ("linear", "bias"):
        n = draw(st.sampled_from([3, 4, 6]))
        weights.append(drawn.tensor((n, shape[-1]), "param"))
        extra = [Operand(drawn.tensor((n,), "param"))] if kind == "bias" else []
        return drawn.call("linear.default", Operand(x), Operand(weights[-1]), *extra)
    if kind == "shared":
        fitting = [w for w in weights if drawn.shape(w)[-1] == shape[-1]]
        return drawn.call("linear.default", Operand(x), Operand(draw(st.sampled_from(fitting)))) if fitting else None
    if kind == "unary":
        return drawn.call(draw(st.sampled_from(UNARY)), Operand(x))
    if kind == "scale":
        return drawn.call("mul.Scalar", Operand(x), 0.5)
    if kind == "norm":
        weight, bias = drawn.tensor((shape[-1],), "param"), drawn.tensor((shape[-1],), "param")
        return drawn.call("layer_norm.default", Operand(x), (shape[-1],), Operand(weight), Operand(bias))
    if kind in ("add", "mul"):
        peers = [y for y in live if drawn.shape(y) == shape]
        return drawn.call(f"{kind}.Tensor", Operand(x), Operand(draw(st.sampled_from(peers))))
    if kind == "transpose" and len(shape) > 2:
        return drawn.call("transpose.int", Operand(x), -1, -2)
    if kind == "merge" and len(shape) > 2:
        return drawn.call("reshape.default", Operand(x), (*shape[:-2], shape[-2] * shape[-1]))
    if kind == "heads" and shape[-1] % 2 == 0 and len(shape) < 4:
        return drawn.call("reshape.default", Operand(x), (*shape[:-1], 2, shape[-1] // 2))
    if kind == "softmax":
        return drawn.call("softmax.int", Operand(x), -1)
    if kind == "matmul" and len(shape) > 2:
        other = drawn.call("transpose.int", Operand(x), -1, -2)
        return drawn.call("matmul.default", Operand(x), Operand(other))
    if kind == "slice" and shape[-1] > 2:
        return drawn.call("slice.Tensor", Operand(x), len(shape) - 1, 1, shape[-1])
    if kind == "cat":
        return drawn.call("cat.default", (Operand(x), Operand(x)), len(shape) - 1)
    if kind == "reduce" and len(shape) > 2:
        return drawn.call("sum.dim_IntList", Operand(x), (1,))
    return None


@st.composite
def programs(draw, graph, most=4):
    """A random legal program: nested cuts, replicas, colocated parts, places, micro-batches, recompute, ZeRO."""
    devices = draw(st.integers(1, most))
    s = SProgram(graph, devices)
    if not any(op.blocked for op in graph.ops) and draw(st.booleans()):
        s.microbatch(2)
    s.zero(draw(st.sampled_from([0, 0, 1, 3])))
    for op in graph.ops:
        parts = [op]
        for _ in range(draw(st.integers(0, 2))):
            part = draw(st.sampled_from(s.parts(op)))
            room = devices - len(s.parts(op)) + 1
            legal = []
            for name, size in part.op.annotation.divisible.items():
                lo, hi = part.ranges.get(name, (0, part.op.annotation.sizes[name]))
                left = (hi - lo) // part.op.annotation.units.get(name, 1)
                left = min(left, size) // (s.microbatches if name == "b" else 1)
                legal += [{name: n} for n in (2, 3) if n <= min(left, room)]
            legal += [Replicate(n) for n in (2, 3) if n <= room]
            if legal:
                s.op_trans(part, draw(st.sampled_from(legal)))
        parts = s.parts(op)
        places = draw(st.permutations(range(devices)))[: len(parts)]
        for part, device in zip(parts, places, strict=True):
            names = [
                n for n in part.op.annotation.divisible
                if n != "b" and (lambda r: r[1] - r[0])(part.ranges.get(n, (0, part.op.annotation.sizes[n]))) > 1
            ]  # fmt: skip
            if names and draw(st.integers(0, 5)) == 0:
                s.op_assign(s.op_trans(part, Split(draw(st.sampled_from(names)), 2, colocate=True)), device)
            else:
                s.op_assign(part, device)
    if draw(st.booleans()):
        s.recompute(draw(st.lists(st.sampled_from(graph.ops), unique=True)))
    return s
