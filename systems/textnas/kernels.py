"""The operations of a layer on padded word sequences: native on the CPU, plain torch everywhere else.

Every tensor is (sentences, words, channels); what lies beyond a sentence's length is read by nothing and left zero.
Channels come last, where the published code has words last: sums, norms, recurrent and attention layers then read
whole vectors. The native kernels (kernels.cpp) take float32 on the CPU with channels a multiple of 16; anything else,
or a machine without a compiler, goes through the torch version beside each.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from systems import native

SOURCE = Path(__file__).with_name("kernels.cpp")
SIGNATURES = {  # p: pointer, i: 64-bit integer, s: int, u: unsigned, f: float
    "conv_forward": "ppiiiiippp",
    "conv_backward": "pppiiiiipppp",
    "norm_forward": "pipiiipppppfssufupp",
    "norm_backward": "ppppiiipppssufuppp",
    "dropout": "piufup",
    "maxpool_forward": "ppiiipp",
    "maxpool_backward": "pppiiip",
    "avgpool": "ppiiip",
    "gru_forward": "ppiiippppp",
    "gru_backward": "ppiiippppp",
    "attention_forward": "ppiiiisufup",
    "attention_backward": "pppiiiisufup",
    "mix_forward": "pipiiippp",
    "mix_backward": "pipiiipp",
    "lazy_adam": "ppppipiipffffff",
}
_TYPES = {
    "p": ctypes.c_void_p, "i": ctypes.c_int64, "s": ctypes.c_int, "u": ctypes.c_uint32, "f": ctypes.c_float,
}  # fmt: skip
LANES = 16
EPS = 1e-5
MOMENTUM = 0.1


@functools.lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The native kernels, built on first use; None where there is no compiler."""
    loaded = native.load(SOURCE, name="textnas", openmp=False)
    if loaded is not None:
        for name, letters in SIGNATURES.items():
            function = getattr(loaded, name)
            function.argtypes = [_TYPES[letter] for letter in letters]
            function.restype = None
    return loaded


class Words:
    """Where the words of a batch are: `lengths` (B,) int64, the longest of them at most `longest`.

    It also hands out the seeds of dropout, a new one a call, from one draw of torch's generator.
    """

    def __init__(self, lengths: Tensor, longest: int, native: bool = True) -> None:
        self.lengths = lengths.contiguous()
        self.longest = longest
        self.native = native and lengths.device.type == "cpu"
        self._seed: int | None = None

    @functools.cached_property
    def full(self) -> bool:
        """Whether there is no padding."""
        return bool((self.lengths == self.longest).all())

    @functools.cached_property
    def count(self) -> int:
        """How many words there are."""
        return int(self.lengths.sum())

    @functools.cached_property
    def mask(self) -> Tensor:
        """(B, T, 1) bool: True where a word is."""
        places = torch.arange(self.longest, device=self.lengths.device)
        return (places < self.lengths[:, None]).unsqueeze(2)

    def clear(self, x: Tensor) -> Tensor:
        """`x` with zeros at padding."""
        return x if self.full else x * self.mask

    def seed(self) -> int:
        """A seed that no other operation of this batch gets."""
        if self._seed is None:
            self._seed = int(torch.randint(0, 2**32, (1,), dtype=torch.int64))
        self._seed = (self._seed * 747796405 + 2891336453) % 2**32
        return self._seed

    def takes(self, x: Tensor, *widths: int) -> bool:
        """Whether the native kernels can compute on `x`."""
        return (
            self.native
            and x.dtype == torch.float32
            and x.device.type == "cpu"
            and all(width % LANES == 0 for width in widths)
            and library() is not None
        )


def _call(name: str, *arguments: Any) -> None:
    loaded = library()
    assert loaded is not None
    getattr(loaded, name)(*(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments))


def _pointers(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))


def _chance(p: float) -> tuple[int, float]:
    """Threshold and scale of a dropout with probability `p`."""
    return min(int(p * 2**32), 2**32 - 1), 1.0 / (1.0 - p)


# ----------------------------------------------------------------------------------------------------- convolution


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, words: Words) -> Tensor:
        x = x.contiguous()
        (b, t, wide), (k, _, out) = x.shape, weight.shape
        y = x.new_empty(b, t, out)
        _call("conv_forward", x, words.lengths, b, t, wide, out, k, weight, bias, y)
        ctx.save_for_backward(x, weight)
        ctx.words = words
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        (b, t, wide), (k, _, out) = x.shape, weight.shape
        back = weight.flip(0).transpose(1, 2).contiguous()
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        dw, dbias = torch.empty_like(weight), weight.new_empty(out)
        _call("conv_backward", x, dy.contiguous(), ctx.words.lengths, b, t, wide, out, k, back, dx, dw, dbias)
        return dx, dw, dbias, None


def conv(x: Tensor, weight: Tensor, bias: Tensor, words: Words) -> Tensor:
    """Convolution over words, same padding. x: (B, T, in); weight: (k, in, out), k odd; bias: (out,)."""
    if words.takes(x, weight.shape[1], weight.shape[2]):
        return _Conv.apply(x, weight, bias, words)
    y = F.conv1d(x.transpose(1, 2), weight.permute(2, 1, 0), bias, padding=weight.shape[0] // 2)
    return words.clear(y.transpose(1, 2))


# --------------------------------------------------------------------------- sum, batch norm, rectifier, dropout


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor, train: bool, relu: bool, p: float,
        words: Words, *sources: Tensor,
    ) -> Tensor:  # fmt: skip
        sources = tuple(source.contiguous() for source in sources)
        b, t, h = sources[0].shape
        many = len(sources) > 1
        total = torch.empty_like(sources[0]) if many else sources[0]
        y, inv = torch.empty_like(total), torch.empty_like(gamma)
        threshold, scale = _chance(p)
        seed = words.seed() if p else 0
        _call(
            "norm_forward", _pointers(sources), len(sources), words.lengths, b, t, h, gamma, beta, mean, var, inv,
            EPS, train, relu, threshold, scale, seed, total if many else None, y,
        )  # fmt: skip
        ctx.save_for_backward(total, y, gamma, mean if train else mean.clone(), inv)
        ctx.settings = (words, train, relu, threshold, scale, seed, len(sources))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        total, y, gamma, mean, inv = ctx.saved_tensors
        words, train, relu, threshold, scale, seed, n = ctx.settings
        b, t, h = total.shape
        ds, dgamma, dbeta = torch.empty_like(total), torch.empty_like(gamma), torch.empty_like(gamma)
        _call(
            "norm_backward", dy.contiguous(), total, y, words.lengths, b, t, h, gamma, mean, inv, train, relu,
            threshold, scale, seed, ds, dgamma, dbeta,
        )  # fmt: skip
        return (dgamma, dbeta, None, None, None, None, None, None, *[ds] * n)


def norm(
    sources: Sequence[Tensor], module: torch.nn.BatchNorm1d, words: Words, relu: bool = False, p: float = 0.0
) -> Tensor:
    """Batch norm of the sum of `sources`, then a rectifier and dropout where wanted; padding is not counted.

    sources: of (B, T, H) each. Updates the module's running statistics in training.
    """
    train = module.training or module.running_mean is None
    p = p if module.training else 0.0
    gamma, beta, running_mean, running_var = module.weight, module.bias, module.running_mean, module.running_var
    assert running_mean is not None
    assert running_var is not None
    if words.takes(sources[0], sources[0].shape[2]):
        mean, var = (torch.empty_like(gamma), torch.empty_like(gamma)) if train else (running_mean, running_var)
        y = _Norm.apply(gamma, beta, mean, var, train, relu, p, words, *sources)  # fills mean and var in training
    else:
        total = functools.reduce(torch.add, sources).to(gamma.dtype)  # statistics never in half precision
        if train:
            count = words.count
            mean = words.clear(total).sum((0, 1)) / count
            var = words.clear((total - mean).square()).sum((0, 1)) / count
        else:
            mean, var = running_mean, running_var
        y = (total - mean) * torch.rsqrt(var + EPS) * gamma + beta
        y = F.relu(y) if relu else y
        y = words.clear(F.dropout(y, p) if p else y)
    if train:
        with torch.no_grad():
            count = max(words.count, 2)
            rate = module.momentum if module.momentum is not None else _share(module)
            running_mean.lerp_(mean.detach().to(running_mean.dtype), rate)
            running_var.lerp_(var.detach().to(running_var.dtype) * (count / (count - 1)), rate)
    return y


def _share(module: torch.nn.BatchNorm1d) -> float:
    """The weight of one more batch in a plain mean of all since the statistics were reset."""
    assert module.num_batches_tracked is not None
    module.num_batches_tracked += 1
    return 1.0 / float(module.num_batches_tracked)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, seed: int) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        ctx.settings = (*_chance(p), seed)
        _call("dropout", x, x.numel(), *ctx.settings, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx = torch.empty_like(dy)
        _call("dropout", dy.contiguous(), dy.numel(), *ctx.settings, dx)
        return dx, None, None


def dropout(x: Tensor, p: float, words: Words) -> Tensor:
    """Each element zero with probability `p`, the others scaled up: for training, which the caller knows of."""
    if not p:
        return x
    if words.takes(x):
        return _Dropout.apply(x, p, words.seed())
    return F.dropout(x, p)


# --------------------------------------------------------------------------------------------------------- pooling


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, words: Words) -> Tensor:
        x = x.contiguous()
        y, which = torch.empty_like(x), torch.empty(x.shape, dtype=torch.int8)
        _call("maxpool_forward", x, words.lengths, *x.shape, y, which)
        ctx.save_for_backward(which)
        ctx.words = words
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx = torch.empty_like(dy)
        _call("maxpool_backward", dy.contiguous(), *ctx.saved_tensors, ctx.words.lengths, *dy.shape, dx)
        return dx, None


class _AvgPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, words: Words) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        _call("avgpool", x, words.lengths, *x.shape, y)
        ctx.words = words
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx = torch.empty_like(dy)
        _call("avgpool", dy.contiguous(), ctx.words.lengths, *dy.shape, dx)
        return dx, None


def maxpool(x: Tensor, words: Words) -> Tensor:
    """The largest of three neighbouring words, by channel; padding never wins. x: (B, T, H)."""
    if words.takes(x):
        return _MaxPool.apply(x, words)
    if not words.full:
        x = x.masked_fill(~words.mask, -torch.inf)
    y = F.max_pool1d(x.transpose(1, 2), 3, 1, 1).transpose(1, 2)
    return y if words.full else y.masked_fill(~words.mask, 0.0)


def avgpool(x: Tensor, words: Words) -> Tensor:
    """The mean of three neighbouring words, padding counted as zero. x: (B, T, H)."""
    if words.takes(x):
        return _AvgPool.apply(x, words)
    return words.clear(F.avg_pool1d(x.transpose(1, 2), 3, 1, 1).transpose(1, 2))


# ------------------------------------------------------------------------------------------------------- recurrent


class _GRU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w_in: Tensor, w_hidden: Tensor, b_in: Tensor, b_hidden: Tensor, words: Words
    ) -> Tensor:
        x = x.contiguous()
        b, t, h = x.shape
        gates = torch.addmm(b_in.view(-1), x.view(b * t, h), w_in.view(6 * h, h).t())
        y, state, before = torch.empty_like(x), x.new_empty(2, t, b, 4 * h), x.new_empty(2, t, b, h)
        turned = w_hidden.transpose(1, 2).contiguous()
        _call("gru_forward", gates, words.lengths, b, t, h, turned, b_hidden, y, state, before)
        ctx.save_for_backward(x, w_in, w_hidden, state, before)
        ctx.words = words
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w_in, w_hidden, state, before = ctx.saved_tensors
        b, t, h = x.shape
        dgates, dhidden = x.new_empty(b * t, 6 * h), x.new_empty(2, t * b, 3 * h)
        _call("gru_backward", dy.contiguous(), ctx.words.lengths, b, t, h, w_hidden, state, before, dgates, dhidden)
        dx = (dgates @ w_in.view(6 * h, h)).view_as(x)
        dw_in = (dgates.t() @ x.view(b * t, h)).view_as(w_in)
        dw_hidden = torch.bmm(dhidden.transpose(1, 2), before.view(2, t * b, h))
        return dx, dw_in, dw_hidden, dgates.sum(0).view(2, 3 * h), dhidden.sum(1), None


def gru(x: Tensor, w_in: Tensor, w_hidden: Tensor, b_in: Tensor, b_hidden: Tensor, words: Words) -> Tensor:
    """A GRU over each sentence in both directions, summed. x: (B, T, H); w: (2, 3 H, H), b: (2, 3 H) as in torch."""
    if words.takes(x, x.shape[2]):
        return _GRU.apply(x, w_in, w_hidden, b_in, b_hidden, words)
    b, t, h = x.shape
    x = x.to(w_in.dtype)
    flat = [part[d] for d in range(2) for part in (w_in, w_hidden, b_in, b_hidden)]
    start = x.new_zeros(2, b, h)
    if words.full:
        y = torch.gru(x, start, flat, True, 1, 0.0, False, True, True)[0]
    else:
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, words.lengths.cpu(), True, False)
        start = start if packed.sorted_indices is None else start.index_select(1, packed.sorted_indices)
        data = torch.gru(packed.data, packed.batch_sizes, start, flat, True, 1, 0.0, False, True)[0]
        done = packed._replace(data=data)
        y = torch.nn.utils.rnn.pad_packed_sequence(done, True, total_length=t)[0]
    return y[..., :h] + y[..., h:]


# ------------------------------------------------------------------------------------------------------- attention


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int, relu: bool, p: float, words: Words) -> Tensor:
        qkv = qkv.contiguous()
        b, t, h = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
        y = qkv.new_empty(b, t, h)
        ctx.settings = (b, t, h, heads, relu, *_chance(p), words.seed() if p else 0)
        _call("attention_forward", qkv, words.lengths, *ctx.settings, y)
        ctx.save_for_backward(qkv)
        ctx.words = words
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (qkv,) = ctx.saved_tensors
        dqkv = torch.empty_like(qkv)
        _call("attention_backward", qkv, dy.contiguous(), ctx.words.lengths, *ctx.settings, dqkv)
        return dqkv, None, None, None, None


def attention(qkv: Tensor, heads: int, words: Words, relu: bool = True, p: float = 0.0) -> Tensor:
    """Scaled dot-product attention of each sentence to itself, heads side by side: (B, T, H).

    qkv: (B, T, 3 H), queries, keys and values side by side, each rectified first where `relu`; p: dropout of the
    weights.
    """
    b, t, h = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    if words.takes(qkv):
        return _Attention.apply(qkv, heads, relu, p, words)
    qkv = F.relu(qkv) if relu else qkv
    q, k, v = qkv.view(b, t, 3, heads, h // heads).permute(2, 0, 3, 1, 4)
    seen = None if words.full else words.mask.view(b, 1, 1, t)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=p)
    return words.clear(y.transpose(1, 2).reshape(b, t, h))


# ------------------------------------------------------------------------------------- what leaves the stack of layers


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, words: Words, *layers: Tensor) -> Tensor:
        layers = tuple(layer.contiguous() for layer in layers)
        b, t, h = layers[0].shape
        means, y = layers[0].new_empty(len(layers), b, h), layers[0].new_empty(b, h)
        _call("mix_forward", _pointers(layers), len(layers), words.lengths, b, t, h, weight, means, y)
        ctx.save_for_backward(weight, means)
        ctx.settings = (words, b, t, h)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        weight, means = ctx.saved_tensors
        words, b, t, h = ctx.settings
        down = dy.new_empty(len(weight), b, t, h)
        parts = down.unbind(0)
        _call("mix_backward", dy.contiguous(), len(weight), words.lengths, b, t, h, weight, _pointers(parts))
        return ((means * dy).sum((1, 2)), None, *parts)


def mix(layers: Sequence[Tensor], weight: Tensor, words: Words, pool: str = "mean") -> Tensor:
    """The weighted sum of all layers' outputs, then its mean (or maximum) over the words: (B, H).

    layers: of (B, T, H) each; weight: (layers,).
    """
    if pool == "mean" and words.takes(layers[0]):
        return _Mix.apply(weight, words, *layers)
    if pool == "mean":
        means = torch.stack([layer.sum(1) for layer in layers])
        return (weight.view(-1, 1, 1) * means).sum(0) / words.lengths[:, None]
    total = (weight.view(-1, 1, 1, 1) * torch.stack(list(layers))).sum(0)
    if not words.full:
        total = total.masked_fill(~words.mask, -torch.inf)
    return total.amax(1)


# ----------------------------------------------------------------------------------------------------------- Adam


def lazy_adam(
    table: Tensor, first: Tensor, second: Tensor, gradient: Tensor, lr: float, step: int, eps: float, l2: float,
    betas: tuple[float, float] = (0.9, 0.999),
) -> None:  # fmt: skip
    """Adam on the rows of `table` that a sparse gradient names, in place; the other rows and their moments rest.

    table, first, second: (rows, width); gradient: sparse, as `F.embedding(..., sparse=True)` gives it; step: from 1.
    """
    indices, values = gradient._indices()[0], gradient._values()
    rows, place = torch.unique(indices, return_inverse=True)
    size, root = lr / (1.0 - betas[0] ** step), (1.0 - betas[1] ** step) ** 0.5
    wide = table.shape[1]
    if table.device.type == "cpu" and table.dtype == torch.float32 and table.is_contiguous() and library() is not None:
        _call(
            "lazy_adam", table, first, second, rows, len(rows), place, len(place), wide, values.contiguous(),
            size, root, *betas, eps, l2,
        )  # fmt: skip
        return
    slope = values.new_zeros(len(rows), wide).index_add_(0, place, values).add_(table[rows], alpha=l2)
    m = first[rows].lerp_(slope, 1.0 - betas[0])
    v = second[rows].mul_(betas[1]).addcmul_(slope, slope, value=1.0 - betas[1])
    first[rows], second[rows] = m, v
    table.index_add_(0, rows, m / (v.sqrt() / root + eps), alpha=-size)
