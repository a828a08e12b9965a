"""Co-shard against per-block recompute: live bytes of a step, seen at every operator that torch runs."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary

from systems.superscaler import InMemory, capture, models, plans


class Live(TorchDispatchMode):
    """The bytes of storages that are alive, and the most there ever were; a storage counts until it is collected."""

    def __init__(self):
        super().__init__()
        self.sizes = WeakIdKeyDictionary()
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for t in tree_iter(result):
            if isinstance(t, torch.Tensor):
                storage = t.untyped_storage()
                self.sizes[storage] = storage.nbytes()
        self.peak = max(self.peak, sum(self.sizes.values()))
        return result


class Scores(nn.Module):
    """A block whose attention keeps its scores, as at high resolution: the peak of its memory."""

    def __init__(self, width, heads):
        super().__init__()
        self.norm, self.heads = nn.LayerNorm(width), heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm2, self.feedforward = nn.LayerNorm(width), models.Feedforward(width, 4 * width)

    def forward(self, x):
        y = self.norm(x)
        b, n, c = y.shape
        q, k, v = (f(y).view(b, n, self.heads, c // self.heads).transpose(1, 2) for f in (self.q, self.k, self.v))
        weights = (q @ k.transpose(-1, -2)).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(b, n, c))
        return x + self.feedforward(self.norm2(x))


class Stack(nn.Module):
    def __init__(self, width=64, heads=8, layers=4):
        super().__init__()
        self.layers = nn.ModuleList(Scores(width, heads) for _ in range(layers))

    def forward(self, x, y):
        for layer in self.layers:
            x = layer(x)
        return nn.functional.mse_loss(x, y)


@functools.cache
def peaks():
    torch.manual_seed(0)
    model = Stack()
    batch = (torch.randn(2, 256, 64), torch.randn(2, 256, 64))
    graph = capture(model, batch)
    loss = copy.deepcopy(model)(*batch).item()
    found = {}
    for name, s in {
        "plain": plans.serial(graph),
        "recompute": plans.megatron(graph, 1, 1, 1, recompute=True),
        "co-shard": plans.co_shard(graph, 8),
    }.items():
        rank = InMemory(s.build(), dict(model.named_parameters()), torch.optim.SGD)
        fixed = sum(p.nbytes for p in model.parameters())
        with Live() as live:
            (own,) = rank.step(batch)
        assert own.item() == pytest.approx(loss, rel=1e-5)
        found[name] = (live.peak + fixed, live.peak)
    return found


@pytest.mark.claim("superscaler/co-shard-memory")
def test_co_shard_halves_peak_memory(claim):
    found = peaks()
    print({k: [round(x / 2**20, 1) for x in v] for k, v in found.items()})
    assert claim.holds(found["recompute"][0] / found["co-shard"][0])


@pytest.mark.claim("superscaler/co-shard-memory-transient")
def test_co_shard_lowers_what_comes_and_goes(claim):
    found = peaks()
    assert claim.holds(found["recompute"][1] / found["co-shard"][1])
