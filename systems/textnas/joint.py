"""Several networks as one, one that learned from several, and one in bytes.

    joint = Joint([net_a, net_b, net_c]); joint.weigh(task.valid)
    small = distil(joint, arch, task, Budget(epochs=6))
    tiny, size = quantised(small)
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from systems.textnas.network import TextNet
from systems.textnas.space import Arch
from systems.textnas.task import Task
from systems.textnas.train import Budget, Result, fit, predict
from systems.textnas.vocabulary import Batches, Encoded

WEIGHING_STEPS = 60


class Joint(nn.Module):
    """The weighted mean of several networks' log-probabilities; weights sum to one and are equal at first."""

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)
        self.scores = nn.Parameter(torch.zeros(len(nets)))

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """As `TextNet.forward`."""
        return self._mixed([F.log_softmax(net(tokens, lengths), 1) for net in self.nets])

    def _mixed(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.einsum("n,nbc->bc", torch.softmax(self.scores, 0), torch.stack(list(parts)))

    def weigh(self, valid: Encoded | Batches) -> list[float]:
        """Learn the weights on validation data (a number a network, so little is fitted); gives them."""
        labels = torch.from_numpy((valid.data if isinstance(valid, Batches) else valid).labels)
        parts = [F.log_softmax(predict(net, valid), 1) for net in self.nets]
        optimizer = torch.optim.Adam([self.scores], lr=0.1)
        for _ in range(WEIGHING_STEPS):
            optimizer.zero_grad()
            F.cross_entropy(self._mixed(parts), labels).backward()
            optimizer.step()
        self.scores.requires_grad_(False)
        return torch.softmax(self.scores, 0).tolist()


def distil(teacher: nn.Module, arch: Arch, task: Task, budget: Budget, seed: int = 0) -> tuple[TextNet, Result]:
    """A network of `arch` trained on labels and on what `teacher` answers, half and half."""
    teacher.eval()
    net = task.network(arch, seed)
    result = fit(
        net, task.train_batches, task.valid_batches, budget, task.lr, seed, select="last", teacher=teacher
    )
    return net, result


def quantised(net: TextNet) -> tuple[TextNet, int]:
    """A copy whose matrices, word vectors too, are rounded to 8 bits a weight with one scale a row, and its bytes.

    Weights alone: what is computed from them stays in single precision.
    """
    small = copy.deepcopy(net)
    size = 0
    with torch.no_grad():
        for parameter in small.parameters():
            if parameter.dim() < 2:
                size += 4 * parameter.numel()
                continue
            rows = parameter.view(-1, parameter.shape[-1])
            scale = rows.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127.0
            rows.copy_((rows / scale).round().clamp(-127, 127) * scale)
            size += rows.numel() + 4 * len(rows)
    return small, size
