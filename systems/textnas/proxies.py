"""Scores of an untrained network that are said to foretell its accuracy, from one batch and no label but for the first.

    rank = mean_rank([scores(net, batch) for net in nets])        # the larger, the better
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from systems.textnas.kernels import Words
from systems.textnas.network import TextNet
from systems.textnas.vocabulary import Batch

NASWOT_ROWS = 64


def gradient_norm(net: TextNet, batch: Batch) -> float:
    """The norm of the loss's gradient at the initial weights."""
    return float(torch.linalg.vector_norm(torch.stack([g.norm() for g in _gradients(net, batch, _loss)])))


def synflow(net: TextNet, batch: Batch) -> float:
    """SynFlow (arXiv 2006.05467): the sum over weights of |weight x gradient| with all weights made positive.

    The input is a vector of ones for every word, and dropout and batch norm do nothing: no data is seen. The logarithm
    is given, since values grow with depth beyond what single precision holds well.
    """
    state = {name: value.clone() for name, value in net.state_dict().items()}
    net.eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.abs_()
            if "norm" in name:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        for name, value in net.named_buffers():
            if "running" in name:
                value.fill_(0.0 if name.endswith("mean") else 1.0)
    ones = torch.ones(*batch.tokens.shape[:2], net.encoder.embedding.shape[1])
    total = net(ones, batch.lengths).sum()
    weights = [p for p in net.parameters() if p.requires_grad and p is not net.encoder.embedding]
    grads = torch.autograd.grad(total, weights, allow_unused=True)
    score = sum(float((w.detach() * g).abs().sum()) for w, g in zip(weights, grads, strict=True) if g is not None)
    net.load_state_dict(state)
    net.train()
    return float(np.log(score)) if 0.0 < score < np.inf else -np.inf


def naswot(net: TextNet, batch: Batch) -> float:
    """NASWOT (arXiv 2006.04647): how different the rows of a batch are by which features are above their mean.

    The log-determinant of the kernel of agreeing signs of all layers' mean outputs.
    """
    words = Words(batch.lengths, batch.tokens.shape[1])
    with torch.no_grad():
        outputs = net.encoder.outputs(batch.tokens, words, net.arch, net.norm == "always")
    features = [layer.sum(1) / batch.lengths[:, None] for layer in outputs]
    signs = torch.cat([feature > feature.mean(0) for feature in features], 1)[:NASWOT_ROWS].double()
    kernel = signs @ signs.t() + (1.0 - signs) @ (1.0 - signs).t()
    value = torch.linalg.slogdet(kernel)[1]
    return float(value) if torch.isfinite(value) else -np.inf


def parameters(net: TextNet, batch: Batch) -> float:
    """How many weights there are, the embedding left out."""
    return float(sum(p.numel() for p in net.parameters() if p is not net.encoder.embedding))


def _loss(net: TextNet, batch: Batch) -> Tensor:
    return F.cross_entropy(net(batch.tokens, batch.lengths), batch.labels)


def _gradients(net: TextNet, batch: Batch, score: Callable[[TextNet, Batch], Tensor]) -> list[Tensor]:
    weights = [p for p in net.parameters() if p.requires_grad and p is not net.encoder.embedding]
    found = torch.autograd.grad(score(net, batch), weights, allow_unused=True)
    return [g for g in found if g is not None]


PROXIES: dict[str, Callable[[TextNet, Batch], float]] = {
    "gradient_norm": gradient_norm, "synflow": synflow, "naswot": naswot, "parameters": parameters,
}  # fmt: skip


def scores(net: TextNet, batch: Batch) -> dict[str, float]:
    """Every proxy of an untrained network."""
    return {name: proxy(net, batch) for name, proxy in PROXIES.items()}


def mean_rank(rows: Sequence[dict[str, float]]) -> np.ndarray:
    """(networks,) the mean over proxies of each network's rank, the largest the best."""
    table = np.array([[row[name] for name in PROXIES] for row in rows])
    return table.argsort(0, kind="stable").argsort(0, kind="stable").mean(1)
