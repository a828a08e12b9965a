"""The network that an architecture describes, and the supernet that holds all of them.

    net = TextNet(PAPER, embedding=matrix, hidden=64, classes=2)
    logits = net(tokens, lengths)                    # (B, T) and (B,) int64 -> (B, classes)

    net = Supernet(space, embedding=matrix, hidden=32, classes=5)
    logits = net(tokens, lengths, arch)
    small = net.extract(arch)                        # a TextNet with copies of the weights

Both are one `Encoder`: a supernet is one that holds every operation in every layer, a TextNet one that holds a single
operation in each. Batch norm counts words, not padding (the published code counts both), so that what a sentence
becomes never depends on the batch it is padded in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from systems.textnas import kernels
from systems.textnas.kernels import Words
from systems.textnas.space import Arch, ArchError, Space

HEADS = 4
EMBEDDING_WIDTH = 300
PAIR_HIDDEN = 512
MOST_POSITIONS = 256

NormOption = Literal["skip", "always"]
Pool = Literal["mean", "max"]


def _matrix(generator: torch.Generator, *shape: int, fan: tuple[int, int] | None = None) -> nn.Parameter:
    """A weight by Xavier's rule; fan: numbers of inputs and outputs, by default the last two axes."""
    inputs, outputs = fan or (shape[-2], shape[-1])
    bound = math.sqrt(6.0 / (inputs + outputs))
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound, generator=generator))


def _zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


class Conv(nn.Module):
    """Convolution of `k` words, batch norm, rectifier, dropout."""

    def __init__(self, hidden: int, k: int, dropout: float, generator: torch.Generator) -> None:
        super().__init__()
        self.p = dropout
        self.weight = _matrix(generator, k, hidden, hidden, fan=(k * hidden, k * hidden))
        self.bias = _zeros(hidden)
        self.norm = nn.BatchNorm1d(hidden)

    def forward(self, x: Tensor, words: Words) -> Tensor:
        """x: (B, T, H) -> (B, T, H)."""
        y = kernels.conv(x, self.weight, self.bias, words)
        return kernels.norm([y], self.norm, words, relu=True, p=self.p)


class MaxPool(nn.Module):
    """The largest of three neighbours."""

    def forward(self, x: Tensor, words: Words) -> Tensor:
        """x: (B, T, H) -> (B, T, H)."""
        return kernels.maxpool(x, words)


class AvgPool(nn.Module):
    """The mean of three neighbours."""

    def forward(self, x: Tensor, words: Words) -> Tensor:
        """x: (B, T, H) -> (B, T, H)."""
        return kernels.avgpool(x, words)


class GRU(nn.Module):
    """A GRU in both directions, summed, then dropout."""

    def __init__(self, hidden: int, dropout: float, generator: torch.Generator) -> None:
        super().__init__()
        self.p = dropout
        self.w_in = _matrix(generator, 2, 3 * hidden, hidden, fan=(hidden, hidden))
        self.w_hidden = _matrix(generator, 2, 3 * hidden, hidden, fan=(hidden, hidden))
        self.b_in, self.b_hidden = _zeros(2, 3 * hidden), _zeros(2, 3 * hidden)

    def forward(self, x: Tensor, words: Words) -> Tensor:
        """x: (B, T, H) -> (B, T, H)."""
        y = kernels.gru(x, self.w_in, self.w_hidden, self.b_in, self.b_hidden, words)
        return kernels.dropout(y, self.p, words) if self.training else y


class Attention(nn.Module):
    """Four heads, each projection rectified, no output projection; batch norm of the heads side by side.

    positions: "none" (the paper), "rotary" on queries and keys, or "learned" ones added to the input.
    """

    def __init__(
        self, hidden: int, dropout: float, generator: torch.Generator, positions: str = "none"
    ) -> None:
        super().__init__()
        if positions == "rotary" and hidden % (2 * HEADS):
            raise ArchError(f"hidden is {hidden}; rotary positions need a multiple of {2 * HEADS}")
        self.p, self.positions = dropout, positions
        self.weight = _matrix(generator, hidden, 3 * hidden, fan=(hidden, hidden))
        self.bias = _zeros(3 * hidden)
        self.norm = nn.BatchNorm1d(hidden)
        if positions == "learned":
            self.place = nn.Parameter(torch.empty(MOST_POSITIONS, hidden).normal_(0.0, 0.02, generator=generator))

    def forward(self, x: Tensor, words: Words) -> Tensor:
        """x: (B, T, H) -> (B, T, H)."""
        if self.positions == "learned":
            x = x + self.place[torch.arange(x.shape[1], device=x.device).clamp(max=MOST_POSITIONS - 1)]
        qkv = F.linear(x, self.weight.t(), self.bias)
        p = self.p if self.training else 0.0
        if self.positions == "rotary":
            y = kernels.attention(_rotated(F.relu(qkv)), HEADS, words, relu=False, p=p)
        else:
            y = kernels.attention(qkv, HEADS, words, p=p)
        return kernels.norm([y], self.norm, words)


def _rotated(qkv: Tensor) -> Tensor:
    """Queries and keys turned by their positions (rotary embedding), values as they are. qkv: (B, T, 3 H)."""
    b, t, h = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    wide = h // HEADS
    q, k, v = qkv.view(b, t, 3, HEADS, wide).unbind(2)
    rates = 10000.0 ** (-torch.arange(0, wide, 2, device=qkv.device) / wide)
    angles = torch.arange(t, device=qkv.device)[:, None] * rates
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]

    def turned(x: Tensor) -> Tensor:
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)

    return torch.stack((turned(q), turned(k), v), 2).view(b, t, 3 * h)


class PreNorm(nn.Module):
    """Attention as transformers have it today: layer norm first, an output projection, and the input added."""

    def __init__(self, hidden: int, dropout: float, generator: torch.Generator) -> None:
        super().__init__()
        self.p = dropout
        self.before = nn.LayerNorm(hidden)
        self.weight = _matrix(generator, hidden, 3 * hidden, fan=(hidden, hidden))
        self.out = _matrix(generator, hidden, hidden)

    def forward(self, x: Tensor, words: Words) -> Tensor:
        """x: (B, T, H) -> (B, T, H)."""
        p = self.p if self.training else 0.0
        y = kernels.attention(F.linear(self.before(x), self.weight.t()), HEADS, words, relu=False, p=p)
        return x + kernels.dropout(y @ self.out, p, words)


OPERATIONS: dict[str, Callable[[int, float, torch.Generator], nn.Module]] = {
    "conv1": lambda hidden, p, g: Conv(hidden, 1, p, g),
    "conv3": lambda hidden, p, g: Conv(hidden, 3, p, g),
    "conv5": lambda hidden, p, g: Conv(hidden, 5, p, g),
    "conv7": lambda hidden, p, g: Conv(hidden, 7, p, g),
    "avgpool3": lambda hidden, p, g: AvgPool(),
    "maxpool3": lambda hidden, p, g: MaxPool(),
    "gru": GRU,
    "attention": Attention,
    "rotary": lambda hidden, p, g: Attention(hidden, p, g, "rotary"),
    "positional": lambda hidden, p, g: Attention(hidden, p, g, "learned"),
    "prenorm": PreNorm,
}


class Encoder(nn.Module):
    """Stem, layers and output: sentences to vectors of `hidden` numbers, along one architecture.

    embedding: (vocabulary, width) float32, copied, or the size of a vocabulary. choices: the operations of each layer;
    normed: the layers with a batch norm after their sum. frozen: the embedding is not trained.
    """

    def __init__(
        self, choices: Sequence[Sequence[str]], normed: Sequence[bool], embedding: Tensor | int, hidden: int,
        dropout: float, pool: Pool, frozen: bool, generator: torch.Generator,
    ) -> None:  # fmt: skip
        super().__init__()
        if hidden % HEADS or pool not in ("mean", "max"):
            raise ArchError(f"hidden is {hidden}, pool {pool!r}; expected a multiple of {HEADS}, and 'mean' or 'max'")
        if isinstance(embedding, int):
            embedding = torch.empty(embedding, EMBEDDING_WIDTH).normal_(0.0, 0.1, generator=generator)
        self.hidden, self.p, self.pool = hidden, dropout, pool
        self.embedding = nn.Parameter(embedding.detach().to(torch.float32).clone(), requires_grad=not frozen)
        self.stem = _matrix(generator, embedding.shape[1], hidden)
        self.stem_bias = _zeros(hidden)
        self.stem_norm = nn.BatchNorm1d(hidden)
        self.layers = nn.ModuleList(
            nn.ModuleDict({op: OPERATIONS[op](hidden, dropout, generator) for op in ops}) for ops in choices
        )
        self.norms = nn.ModuleDict({str(k): nn.BatchNorm1d(hidden) for k, there in enumerate(normed) if there})
        self.mix = _zeros(len(choices))

    def forward(self, tokens: Tensor, words: Words, arch: Arch, always: bool = False) -> Tensor:
        """tokens: (B, T) int64, or their vectors (B, T, width) -> (B, hidden)."""
        outputs = self.outputs(tokens, words, arch, always)
        return kernels.mix(outputs, torch.softmax(self.mix, 0), words, self.pool)

    def outputs(self, tokens: Tensor, words: Words, arch: Arch, always: bool = False) -> list[Tensor]:
        """What each layer gives, (B, T, hidden), before the layers are mixed."""
        p = self.p if self.training else 0.0
        x = tokens
        if not tokens.is_floating_point():
            x = F.embedding(tokens, self.embedding, sparse=self.embedding.requires_grad)
        x = F.linear(kernels.dropout(x, p, words), self.stem.t(), self.stem_bias)
        x = kernels.norm([x], self.stem_norm, words, relu=True, p=p)
        outputs: list[Tensor] = []
        for k, layer in enumerate(arch.layers):
            source = outputs[layer.input] if layer.input >= 0 else x
            operation = self.layers[k][layer.op]  # type: ignore[index]
            parts = [operation(source, words), *(outputs[j] for j in layer.skips)]
            if layer.skips or always:
                norm = self.norms[str(k)]
                assert isinstance(norm, nn.BatchNorm1d)
                outputs.append(kernels.norm(parts, norm, words))
            else:
                outputs.append(parts[0])
        return outputs


class _Classifier(nn.Module):
    """An encoder and the linear layer to the classes; for pairs a hidden layer on what two vectors have in common."""

    encoder: Encoder

    def __init__(self, encoder: Encoder, classes: int, pair: bool, dropout: float, norm: NormOption,
                 generator: torch.Generator) -> None:  # fmt: skip
        super().__init__()
        if norm not in ("skip", "always"):
            raise ArchError(f"norm is {norm!r}; expected 'skip' or 'always'")
        self.encoder, self.classes, self.pair, self.p, self.norm = encoder, classes, pair, dropout, norm
        width = encoder.hidden
        if pair:
            self.inner = _matrix(generator, 4 * width, PAIR_HIDDEN)
            self.inner_bias = _zeros(PAIR_HIDDEN)
            width = PAIR_HIDDEN
        self.head = _matrix(generator, width, classes)
        self.head_bias = _zeros(classes)

    def features(self, tokens: Tensor, lengths: Tensor, arch: Arch, native: bool = True) -> Tensor:
        """(B, hidden) of the sentences, before the classifier."""
        words = Words(lengths, tokens.shape[1], native)
        return self.encoder(tokens, words, arch, self.norm == "always")

    def logits(self, tokens: Tensor, lengths: Tensor, arch: Arch, native: bool = True) -> Tensor:
        """(B, classes). Pairs come as 2 B rows, first all left sentences, then all right ones."""
        x = self.features(tokens, lengths, arch, native)
        if self.pair:
            u, v = x.chunk(2)
            x = F.relu(torch.cat((u, v, (u - v).abs(), u * v), 1) @ self.inner + self.inner_bias)
        x = F.dropout(x, self.p, self.training)
        return x @ self.head + self.head_bias


def _normed(arch: Arch, norm: NormOption) -> list[bool]:
    return [bool(layer.skips) or norm == "always" for layer in arch.layers]


class TextNet(_Classifier):
    """The network of one architecture.

    embedding: as for `Encoder`; norm: batch norm after the layers that have skips ("skip", the published training) or
    after all ("always", one published search). One seed decides all initial weights.
    """

    def __init__(
        self, arch: Arch, embedding: Tensor | int, hidden: int = 256, classes: int = 2, pair: bool = False,
        dropout: float = 0.2, norm: NormOption = "skip", pool: Pool = "mean", frozen: bool = False, seed: int = 0,
    ) -> None:  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        choices = [(layer.op,) for layer in arch.layers]
        encoder = Encoder(choices, _normed(arch, norm), embedding, hidden, dropout, pool, frozen, generator)
        super().__init__(encoder, classes, pair, dropout, norm, generator)
        self.arch = arch

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """tokens: (B, T) int64; lengths: (B,) int64, at least 1 -> logits (B, classes) float32."""
        return self.logits(tokens, lengths, self.arch)


class Supernet(_Classifier):
    """Every operation in every layer, with shared weights; each call runs one architecture of the space."""

    def __init__(
        self, space: Space, embedding: Tensor | int, hidden: int = 32, classes: int = 2, pair: bool = False,
        dropout: float = 0.2, norm: NormOption = "skip", pool: Pool = "mean", frozen: bool = False, seed: int = 0,
    ) -> None:  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        choices, normed = [space.ops] * space.layers, [k > 0 or norm == "always" for k in range(space.layers)]
        encoder = Encoder(choices, normed, embedding, hidden, dropout, pool, frozen, generator)
        super().__init__(encoder, classes, pair, dropout, norm, generator)
        self.space = space

    def forward(self, tokens: Tensor, lengths: Tensor, arch: Arch) -> Tensor:
        """As `TextNet.forward`, along `arch`."""
        return self.logits(tokens, lengths, arch)

    def active(self, arch: Arch) -> dict[str, nn.Parameter]:
        """The parameters that `arch` uses, by name."""
        ops = {f"encoder.layers.{k}.{layer.op}." for k, layer in enumerate(arch.layers)}
        there = {f"encoder.norms.{k}." for k, normed in enumerate(_normed(arch, self.norm)) if normed}

        def used(name: str) -> bool:
            if name.startswith("encoder.layers."):
                return any(name.startswith(prefix) for prefix in ops)
            return not name.startswith("encoder.norms.") or any(name.startswith(prefix) for prefix in there)

        return {name: parameter for name, parameter in self.named_parameters() if used(name)}

    def active_parameters(self, arch: Arch) -> list[nn.Parameter]:
        """The parameters that `arch` uses."""
        return list(self.active(arch).values())

    def extract(self, arch: Arch) -> TextNet:
        """A network of its own with copies of the weights and statistics that `arch` uses. Raises ArchError."""
        self.space.check(arch)
        encoder = self.encoder
        net = TextNet(
            arch, encoder.embedding, encoder.hidden, self.classes, self.pair, self.p, self.norm, encoder.pool,
            frozen=not encoder.embedding.requires_grad,
        )  # fmt: skip
        mine = self.state_dict()
        net.load_state_dict({name: mine[name] for name in net.state_dict()})
        return net.train(self.training)


def parameters_of(arch: Arch, hidden: int, width: int, classes: int, norm: NormOption = "skip") -> int:
    """How many parameters the network of `arch` has, its embedding of `width` left out."""
    h, each = hidden, {
        **{f"conv{k}": k * hidden * hidden + 3 * hidden for k in (1, 3, 5, 7)},
        "avgpool3": 0, "maxpool3": 0, "gru": 12 * hidden * hidden + 12 * hidden,
        "attention": 3 * hidden * hidden + 5 * hidden, "rotary": 3 * hidden * hidden + 5 * hidden,
        "positional": 3 * hidden * hidden + 5 * hidden + MOST_POSITIONS * hidden,
        "prenorm": 4 * hidden * hidden + 2 * hidden,
    }  # fmt: skip
    layers = sum(each[layer.op] for layer in arch.layers) + 2 * h * sum(_normed(arch, norm))
    return width * h + 3 * h + layers + len(arch) + h * classes + classes


def multiply_adds(arch: Arch, hidden: int, width: int, words: int) -> int:
    """Multiply-adds of one sentence of `words` words through the network, forward: grows with layers x words x H^2."""
    square = words * hidden * hidden
    attention = 3 * square + 2 * words * words * hidden
    each = {
        "conv1": square, "conv3": 3 * square, "conv5": 5 * square, "conv7": 7 * square, "avgpool3": 0, "maxpool3": 0,
        "gru": 12 * square, "attention": attention, "rotary": attention, "positional": attention,
        "prenorm": attention + square,
    }  # fmt: skip
    return words * width * hidden + sum(each[layer.op] for layer in arch.layers)
