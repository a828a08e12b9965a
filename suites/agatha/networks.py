"""Small random networks by hand, for games: every operator, branches, both profiles."""

from __future__ import annotations

import random

import numpy as np

from systems.agatha.commit import Model, Tree
from systems.agatha.descriptor import (
    Descriptor,
    Op,
    Profile,
    epilogue_bytes,
    float_bits,
    float_bytes,
    weight_bytes,
)

INFINITE = (float_bits(-np.inf), float_bits(np.inf))
RELU = (0, float_bits(np.inf))


def random_input(rng: random.Random, model: Model) -> bytes:
    """An input of the model, as committed."""
    d = model.descriptors[0]
    if d.profile is Profile.INT8:
        return rng.randbytes(d.elements)
    return float_bytes([rng.gauss(0, 1) for _ in range(d.elements)])


class Builder:
    """Collects nodes, their weights and epilogues."""

    def __init__(self, rng: random.Random, profile: Profile, h: int, w: int, c: int) -> None:
        self.rng, self.profile = rng, profile
        self.nodes = [Descriptor(Op.INPUT, profile, h, w, c, **self.bounds(plain=True)).checked()]
        self.weights, self.epilogues = [b""], [b""]

    def bounds(self, *, plain: bool = False) -> dict[str, int]:
        if self.profile is Profile.INT8:
            lo = 0 if plain else self.rng.choice([0, 0, 3, 128])
            return {"lo": lo, "hi": 255 if plain else self.rng.choice([255, 255, 200])}
        lo, hi = INFINITE if plain else self.rng.choice([INFINITE, RELU, (0, float_bits(6.0))])
        return {"lo": lo, "hi": hi}

    def zero_points(self) -> dict[str, int]:
        if self.profile is Profile.IEEE32:
            return {}
        return {name: self.rng.choice([0, 128]) for name in ("z_x", "z_r", "z_y")}

    def add(self, descriptor: Descriptor, weights: bytes = b"", epilogue: bytes = b"") -> int:
        self.nodes.append(descriptor.checked())
        self.weights.append(weights)
        self.epilogues.append(epilogue)
        return len(self.nodes) - 1

    def model(self) -> Model:
        return Model(tuple(self.nodes), tuple(self.weights), tuple(self.epilogues))

    def any_node(self) -> int:
        return self.rng.randrange(len(self.nodes))

    def shape(self, node: int) -> tuple[int, int, int]:
        d = self.nodes[node]
        return d.h_out, d.w_out, d.c_out

    def like(self, shape: tuple[int, int, int], *, broadcast: bool = False) -> list[int]:
        wanted = {shape} | ({(1, 1, shape[2])} if broadcast else set())
        return [i for i in range(len(self.nodes)) if self.shape(i) in wanted]

    def _weights(self, shape: tuple[int, ...]) -> bytes:
        if self.profile is Profile.INT8:
            return weight_bytes(np.array([self.rng.randint(-64, 64) for _ in range(int(np.prod(shape)))], np.int8))
        return weight_bytes(np.array([self.rng.gauss(0, 0.5) for _ in range(int(np.prod(shape)))], np.float32))

    def _epilogue(self, c_out: int) -> bytes:
        if self.profile is Profile.IEEE32:
            return epilogue_bytes(np.array([self.rng.gauss(0, 1) for _ in range(c_out)], np.float32))
        bias = np.array([self.rng.randint(-5000, 5000) for _ in range(c_out)], np.int32)
        shifts = np.array([self.rng.randint(-2, 12) for _ in range(c_out)])
        return epilogue_bytes(bias, shifts, np.array([self.rng.randint(-2, 6) for _ in range(c_out)]))

    def conv(self, a: int, c_out: int, kernel: int, stride: int, pad: int, dilation: int, groups: int) -> int:
        h, w, c = self.shape(a)
        out = [(size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1 for size in (h, w)]
        weights, epilogue = self._weights((c_out, kernel, kernel, c // groups)), self._epilogue(c_out)
        residual = self.like((out[0], out[1], c_out))
        take = bool(residual) and self.rng.random() < 0.5
        descriptor = Descriptor(
            Op.CONV, self.profile, out[0], out[1], c_out, a, self.rng.choice(residual) if take else 0, h, w, c,
            kernel, kernel, stride, pad, dilation, groups, residual=int(take),
            weight_root=Tree.over(weights).root, epilogue_root=Tree.over(epilogue).root,
            **self.zero_points(), **self.bounds(),
        )  # fmt: skip
        return self.add(descriptor, weights, epilogue)

    def linear(self, a: int, c_out: int) -> int:
        c = self.nodes[a].elements
        weights, epilogue = self._weights((c_out, 1, 1, c)), self._epilogue(c_out)
        descriptor = Descriptor(
            Op.LINEAR, self.profile, 1, 1, c_out, a, 0, 1, 1, c,
            weight_root=Tree.over(weights).root, epilogue_root=Tree.over(epilogue).root,
            **self.zero_points(), **self.bounds(),
        )  # fmt: skip
        return self.add(descriptor, weights, epilogue)

    def matmul(self, a: int, b: int) -> int:
        (h, w, c), rows = self.shape(a), self.nodes[b].elements // self.shape(a)[2]
        shift = self.rng.randint(2, 10) if self.profile is Profile.INT8 else 0
        numbers = {**self.zero_points(), **self.bounds()}
        return self.add(Descriptor(Op.MATMUL, self.profile, h, w, rows, a, b, h, w, c, shift=shift, **numbers))

    def pool(self, op: Op, a: int, kernel: int, stride: int, pad: int) -> int:
        h, w, c = self.shape(a)
        out = [(size + 2 * pad - kernel) // stride + 1 for size in (h, w)]
        n = kernel * kernel
        scale = round(65536 / n) if self.profile is Profile.INT8 else float_bits(1 / n)
        numbers = {**self.zero_points(), **self.bounds()}
        return self.add(
            Descriptor(op, self.profile, *out, c, a, 0, h, w, c, kernel, kernel, stride, pad, scale=scale, **numbers)
        )

    def pair(self, op: Op, a: int, b: int) -> int:
        h, w, c = self.shape(a)
        shifts = {}
        if self.profile is Profile.INT8:
            shifts = {"shift": self.rng.randint(-1, 8), "shift_r": self.rng.randint(-1, 8)}
        numbers = {**shifts, **self.zero_points(), **self.bounds()}
        return self.add(
            Descriptor(op, self.profile, h, w, c, a, b, h, w, c, broadcast=int(self.shape(b) != (h, w, c)), **numbers)
        )

    def concat(self, a: int, b: int) -> int:
        h, w, c = self.shape(a)
        return self.add(Descriptor(Op.CONCAT, self.profile, h, w, c + self.shape(b)[2], a, b, h, w, c))

    def unary(self, op: Op, a: int) -> int:
        h, w, c = self.shape(a)
        table = self.rng.randbytes(256) if op is Op.LUT else b""
        root = Tree.over(table).root if table else bytes(32)
        return self.add(Descriptor(op, self.profile, h, w, c, a, 0, h, w, c, weight_root=root, **self.bounds()), table)

    def step(self) -> None:
        """One more random node over random earlier ones."""
        rng, a = self.rng, self.any_node()
        h, w, c = self.shape(a)
        kind = rng.choice(
            ["conv", "conv", "depthwise", "linear", "matmul", "max", "avg", "add", "mul", "concat", "unary"]
        )
        if kind in {"conv", "depthwise"}:
            kernel, dilation, pad = rng.choice([1, 3, 3]), rng.choice([1, 1, 2]), rng.choice([0, 1, 2])
            if dilation * (kernel - 1) + 1 <= min(h, w) + 2 * pad:
                groups = c if kind == "depthwise" else rng.choice([g for g in (1, 1, 2) if c % g == 0])
                c_out = groups * rng.randint(1, 2) if kind == "depthwise" else groups * rng.randint(1, 5)
                self.conv(a, c_out, kernel, rng.choice([1, 1, 2]), pad, dilation, groups)
        elif kind == "linear" and self.nodes[a].elements <= 1200:
            self.linear(a, rng.randint(1, 12))
        elif kind == "matmul":
            b = rng.choice([i for i in range(len(self.nodes)) if self.nodes[i].elements % c == 0] or [a])
            if self.nodes[b].elements // c <= 40 and self.nodes[b].elements % c == 0:
                self.matmul(a, b)
        elif kind in {"max", "avg"}:
            kernel = rng.choice([2, 3])
            if kernel <= min(h, w):
                self.pool(
                    Op.MAXPOOL if kind == "max" else Op.AVGPOOL, a, kernel, rng.choice([1, 2]), rng.choice([0, 1])
                )
        elif kind in {"add", "mul"}:
            self.pair(Op.ADD if kind == "add" else Op.MUL, a, rng.choice(self.like((h, w, c), broadcast=True)))
        elif kind == "concat":
            others = [i for i in range(len(self.nodes)) if self.shape(i)[:2] == (h, w)]
            b = rng.choice(others)
            if c + self.shape(b)[2] <= 40:
                self.concat(a, b)
        elif kind == "unary":
            self.unary(rng.choice([Op.CLAMP, Op.LUT]) if self.profile is Profile.INT8 else Op.CLAMP, a)


def random_model(seed: int, nodes: int, profile: Profile = Profile.INT8, *, size: int = 6, channels: int = 6) -> Model:
    """A network of `nodes` nodes, input included."""
    rng = random.Random(seed)
    builder = Builder(rng, profile, rng.randint(1, size), rng.randint(1, size), rng.randint(1, channels))
    while len(builder.nodes) < nodes:
        builder.step()
    return builder.model()
