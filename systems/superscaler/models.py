"""The models that plans are tried on: GPT, Swin, an Evoformer trunk, a multilingual encoder-decoder.

Each is a torch module whose forward returns the training loss. A configuration at test size runs in milliseconds; the
paper's sizes are built on the meta device. No constant tensor depends on the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Evoformer", "Gpt", "Multilingual", "Sample", "Swin", "evoformer", "gpt", "multilingual", "swin"]


@dataclass(frozen=True)
class Sample:
    """A model with a batch for it, and how many samples the batch has."""

    model: nn.Module
    batch: tuple[Tensor, ...]

    @property
    def samples(self) -> int:
        """The size of the batch."""
        return len(self.batch[0])


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.view(*x.shape[:-1], heads, x.shape[-1] // heads).transpose(-2, -3)


def _joined(x: Tensor) -> Tensor:
    x = x.transpose(-2, -3)
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


class Attention(nn.Module):
    """Self or cross attention with a packed projection."""

    def __init__(self, width: int, heads: int, *, causal: bool, cross: bool = False) -> None:
        super().__init__()
        self.heads, self.causal, self.cross, self.width = heads, causal, cross, width
        self.q = nn.Linear(width, width) if cross else None
        self.kv = nn.Linear(width, 2 * width if cross else 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        if self.q is not None and memory is not None:
            q, (k, v) = self.q(x), self.kv(memory).split(self.width, -1)
        else:
            q, k, v = self.kv(x).split(self.width, -1)
        y = functional.scaled_dot_product_attention(
            _heads(q, self.heads), _heads(k, self.heads), _heads(v, self.heads), is_causal=self.causal
        )
        return self.out(_joined(y))


class Feedforward(nn.Module):
    """Two linears with a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.gelu(self.up(x)))


class Block(nn.Module):
    """A pre-norm transformer block, with cross attention if it is a decoder's."""

    def __init__(self, width: int, heads: int, *, causal: bool, cross: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal=causal)
        self.norm3 = nn.LayerNorm(width) if cross else None
        self.memory = Attention(width, heads, causal=False, cross=True) if cross else None
        self.feedforward = Feedforward(width, 4 * width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x)))
        if self.memory is not None and self.norm3 is not None:
            x = x + self.dropout(self.memory(self.norm3(x), memory))
        return x + self.dropout(self.feedforward(self.norm2(x)))


class Gpt(nn.Module):
    """A decoder-only language model; loss over next tokens, label -100 ignored."""

    def __init__(
        self,
        vocabulary: int,
        width: int,
        heads: int,
        layers: int,
        length: int,
        *,
        tied: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Parameter(0.02 * torch.randn(length, width))
        self.layers = nn.ModuleList(Block(width, heads, causal=True, dropout=dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions
        for layer in self.layers:
            x = layer(x)
        return functional.cross_entropy(self.head(self.norm(x)).flatten(0, 1), labels.flatten())


class Multilingual(nn.Module):
    """An encoder-decoder with one large vocabulary for both sides and the output (mBART, mT5)."""

    def __init__(self, vocabulary: int, width: int, heads: int, layers: int, *, tied: bool = True) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.encoder = nn.ModuleList(Block(width, heads, causal=False) for _ in range(layers))
        self.decoder = nn.ModuleList(Block(width, heads, causal=True, cross=True) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, source: Tensor, target: Tensor, labels: Tensor) -> Tensor:
        memory, x = self.tokens(source), self.tokens(target)
        for layer in self.encoder:
            memory = layer(memory)
        for layer in self.decoder:
            x = layer(x, memory)
        return functional.cross_entropy(self.head(self.norm(x)).flatten(0, 1), labels.flatten())


class Window(nn.Module):
    """A Swin block: attention in windows, shifted in every second block, and a feed-forward."""

    def __init__(self, width: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal=False)
        self.feedforward = Feedforward(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        n = self.window
        y = self.norm1(x)
        if self.shift:
            y = y.roll((-self.shift, -self.shift), (1, 2))
        y = y.view(b, h // n, n, w // n, n, c).transpose(2, 3).reshape(b, h // n * (w // n), n * n, c)
        y = self.attention(y)
        y = y.view(b, h // n, w // n, n, n, c).transpose(2, 3).reshape(b, h, w, c)
        if self.shift:
            y = y.roll((self.shift, self.shift), (1, 2))
        x = x + y
        return x + self.feedforward(self.norm2(x))


class Swin(nn.Module):
    """Swin: patches, stages of windowed blocks of halving resolution and doubling width, a classifier."""

    def __init__(
        self, size: int, patch: int, window: int, width: int, heads: int, depths: tuple[int, ...], classes: int
    ) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, patch, patch)
        blocks: list[nn.Module] = []
        self.depths = depths
        self.merges = nn.ModuleList(
            nn.Linear(4 * width * 2**i, 2 * width * 2**i, bias=False) for i in range(len(depths) - 1)
        )
        for i, depth in enumerate(depths):
            own = min(window, size // patch // 2**i)
            blocks += [
                Window(width * 2**i, heads * 2**i, own, own // 2 if j % 2 and own < size // patch // 2**i else 0)
                for j in range(depth)
            ]
        self.layers = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width * 2 ** (len(depths) - 1))
        self.head = nn.Linear(width * 2 ** (len(depths) - 1), classes)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        x = self.patch(images).permute(0, 2, 3, 1)
        at = 0
        for i, depth in enumerate(self.depths):
            for _ in range(depth):
                x = self.layers[at](x)
                at += 1
            if i < len(self.depths) - 1:
                b, h, w, c = x.shape
                x = x.view(b, h // 2, 2, w // 2, 2, c).transpose(2, 3).reshape(b, h // 2, w // 2, 4 * c)
                x = self.merges[i](x)
        return functional.cross_entropy(self.head(self.norm(x).mean((1, 2))), labels)


class Evoblock(nn.Module):
    """A block of the Evoformer: row and column attention over the alignment, outer product, pair update."""

    def __init__(self, alignment: int, pair: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleDict({n: nn.LayerNorm(alignment) for n in ("row", "column", "transition", "outer")})
        self.pair_norms = nn.ModuleDict({n: nn.LayerNorm(pair) for n in ("start", "end", "transition")})
        self.row, self.column = Attention(alignment, heads, causal=False), Attention(alignment, heads, causal=False)
        self.left, self.right = nn.Linear(alignment, 4), nn.Linear(alignment, 4)
        self.outer = nn.Linear(16, pair)
        self.start, self.end = Attention(pair, heads, causal=False), Attention(pair, heads, causal=False)
        self.transition, self.pair_transition = Feedforward(alignment, 2 * alignment), Feedforward(pair, 2 * pair)

    def forward(self, alignment: Tensor, pair: Tensor) -> tuple[Tensor, Tensor]:
        m, z = alignment, pair
        m = m + self.row(self.norms["row"](m))
        m = m + self.column(self.norms["column"](m).transpose(1, 2)).transpose(1, 2)
        m = m + self.transition(self.norms["transition"](m))
        y = self.norms["outer"](m)
        o = torch.einsum("bsic,bsjd->bijcd", self.left(y), self.right(y))
        z = z + self.outer(o.flatten(3))
        z = z + self.start(self.pair_norms["start"](z))
        z = z + self.end(self.pair_norms["end"](z).transpose(1, 2)).transpose(1, 2)
        return m, z + self.pair_transition(self.pair_norms["transition"](z))


class Evoformer(nn.Module):
    """An AlphaFold2-like trunk over an alignment (b, s, r, c) and pairs (b, r, r, c), recycled without gradient."""

    def __init__(self, alignment: int, pair: int, heads: int, layers: int, recycles: int = 0) -> None:
        super().__init__()
        self.recycles = recycles
        self.layers = nn.ModuleList(Evoblock(alignment, pair, heads) for _ in range(layers))
        self.again = nn.LayerNorm(pair)
        self.head = nn.Linear(pair, 1)

    def forward(self, alignment: Tensor, pair: Tensor, target: Tensor) -> Tensor:
        z = pair
        for _ in range(self.recycles):
            with torch.no_grad():
                z = pair + self.again(self.trunk(alignment, z))
        z = self.trunk(alignment, z)
        return functional.mse_loss(self.head(z).squeeze(-1), target)

    def trunk(self, alignment: Tensor, pair: Tensor) -> Tensor:
        m, z = alignment, pair
        for layer in self.layers:
            m, z = layer(m, z)
        return z


def gpt(
    vocabulary: int = 64, width: int = 16, heads: int = 4, layers: int = 4, length: int = 8, samples: int = 8, *,
    tied: bool = False, dropout: float = 0.0, ragged: bool = False, dtype: torch.dtype = torch.float64, seed: int = 0,
    device: str = "cpu",
) -> Sample:  # fmt: skip
    """A GPT and a batch; `ragged` labels have a different number of ignored tokens in each sample."""
    model = _built(
        lambda: Gpt(vocabulary, width, heads, layers, length, tied=tied, dropout=dropout), dtype, seed, device
    )
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(vocabulary, (samples, length), generator=g)
    labels = torch.randint(vocabulary, (samples, length), generator=g)
    if ragged:
        for i in range(samples):
            labels[i, : i % length] = -100
    return _sample(model, (tokens, labels), device)


def multilingual(
    vocabulary: int = 64, width: int = 16, heads: int = 4, layers: int = 2, length: int = 8, samples: int = 8, *,
    tied: bool = True, dtype: torch.dtype = torch.float64, seed: int = 0, device: str = "cpu",
) -> Sample:  # fmt: skip
    """An encoder-decoder and a batch."""
    model = _built(lambda: Multilingual(vocabulary, width, heads, layers, tied=tied), dtype, seed, device)
    g = torch.Generator().manual_seed(seed)
    return _sample(model, tuple(torch.randint(vocabulary, (samples, length), generator=g) for _ in range(3)), device)


def swin(
    size: int = 16, patch: int = 2, window: int = 4, width: int = 8, heads: int = 2, depths: tuple[int, ...] = (2, 2),
    classes: int = 8, samples: int = 4, *, dtype: torch.dtype = torch.float64, seed: int = 0, device: str = "cpu",
) -> Sample:  # fmt: skip
    """A Swin transformer and a batch of images."""
    model = _built(lambda: Swin(size, patch, window, width, heads, depths, classes), dtype, seed, device)
    g = torch.Generator().manual_seed(seed)
    images = (
        torch.randn(samples, 3, size, size, generator=g, dtype=dtype)
        if device != "meta"
        else torch.empty(samples, 3, size, size, dtype=dtype, device="meta")
    )
    return _sample(model, (images, torch.randint(classes, (samples,), generator=g)), device)


def evoformer(
    sequences: int = 4, residues: int = 8, alignment: int = 16, pair: int = 8, heads: int = 2, layers: int = 2,
    recycles: int = 0, samples: int = 4, *, dtype: torch.dtype = torch.float64, seed: int = 0, device: str = "cpu",
) -> Sample:  # fmt: skip
    """An Evoformer trunk and a batch."""
    model = _built(lambda: Evoformer(alignment, pair, heads, layers, recycles), dtype, seed, device)
    g = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Any:
        return (
            torch.empty(shape, dtype=dtype, device="meta")
            if device == "meta"
            else torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)
        )

    shapes = (
        (samples, sequences, residues, alignment),
        (samples, residues, residues, pair),
        (samples, residues, residues),
    )
    return Sample(model, tuple(random(*s) for s in shapes))


def _sample(model: nn.Module, batch: tuple[Tensor, ...], device: str) -> Sample:
    return Sample(model, tuple(x.to(device) for x in batch))


def _built(make: Callable[[], nn.Module], dtype: torch.dtype, seed: int, device: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with torch.device(device):
            return make().to(dtype)
