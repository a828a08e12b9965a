"""The controller of ENAS: an LSTM that writes architectures layer by layer, taught by REINFORCE (section 2).

    controller = Controller(space, seed=0)
    drawn = controller.sample(16, generator)             # 16 architectures at once
    controller.score(drawn.archs).log_prob               # the same numbers, recomputed

Per layer it chooses an input, an operation, and each skip on its own. What it chose is what it reads next: the row of
a table, or after the skips the sum of the states of the chosen layers over one more than their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from systems.textnas.space import Arch, ArchError, Space

WIDTH = 64
INITIAL = 0.1
ENTROPY_WEIGHT = 1e-4
SKIP_TARGET = 0.4
SKIP_WEIGHT = 0.8
BASELINE_DECAY = 0.99
LR, EPS, L2, GRADIENT_NORM = 1e-3, 1e-3, 1e-3, 5.0
SPREAD = 0.1  # keeps a batch of nearly equal rewards from being blown up


@dataclass(frozen=True)
class Drawn:
    """Architectures and what the controller thinks of them.

    log_prob, entropy: (n,), the latter of the distributions passed through; skip_penalty: (n,), the mean over layers
    of KL(skip probabilities || target), summed over a layer's skips. vectors: (n, numbers) int64, as the space encodes.
    """

    vectors: np.ndarray
    log_prob: Tensor
    entropy: Tensor
    skip_penalty: Tensor
    space: Space

    @property
    def archs(self) -> list[Arch]:
        """The architectures."""
        return [self.space.decode(vector) for vector in self.vectors]


class Controller(nn.Module):
    """A distribution over the architectures of a space with free skips.

    squash: logits become squash * tanh(logits), which bounds every probability (1.5 in the published script).
    """

    def __init__(self, space: Space, squash: float | None = None, seed: int = 0, width: int = WIDTH) -> None:
        super().__init__()
        if space.skips != "free":
            raise ArchError(f"the controller chooses skips; the space's are {space.skips!r}, expected 'free'")
        self.space, self.squash, self.width = space, squash, width
        generator = torch.Generator().manual_seed(seed)

        def uniform(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape).uniform_(-INITIAL, INITIAL, generator=generator))

        self.lstm = uniform(2 * width, 4 * width)
        self.start = uniform(1, width)
        self.to_input, self.to_op = uniform(width, space.reach), uniform(width, len(space.ops))
        self.input_table, self.op_table = uniform(space.layers, width), uniform(len(space.ops), width)
        self.anchor, self.query, self.score_vector = uniform(width, width), uniform(width, width), uniform(width)

    def sample(self, n: int, generator: torch.Generator) -> Drawn:
        """`n` architectures, drawn together."""
        return self._run(n, None, generator)

    def score(self, archs: Sequence[Arch]) -> Drawn:
        """What `sample` would have said had it drawn these."""
        vectors = np.stack([self.space.encode(arch) for arch in archs])
        return self._run(len(archs), torch.from_numpy(vectors), None)

    def _cell(self, x: Tensor, c: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        i, f, o, g = (torch.cat((x, h), 1) @ self.lstm).chunk(4, 1)
        c = torch.sigmoid(i) * torch.tanh(g) + torch.sigmoid(f) * c
        return c, torch.sigmoid(o) * torch.tanh(c)

    def _squashed(self, logits: Tensor) -> Tensor:
        return logits if self.squash is None else self.squash * torch.tanh(logits)

    def _run(self, n: int, given: Tensor | None, generator: torch.Generator | None) -> Drawn:
        space = self.space
        c = h = self.start.new_zeros(n, self.width)
        x = self.start.expand(n, -1)
        states: list[Tensor] = []
        anchors: list[Tensor] = []
        chosen: list[Tensor] = []
        log_prob = entropy = penalty = self.start.new_zeros(n)
        at = 0

        def choose(logits: Tensor) -> Tensor:
            """A column of `given`, or a draw; adds its logarithm and the entropy."""
            nonlocal at, log_prob, entropy
            logs = F.log_softmax(self._squashed(logits), 1)
            if given is not None:
                choice = given[:, at]
            else:
                choice = torch.multinomial(logs.detach().exp(), 1, generator=generator)[:, 0]
            log_prob = log_prob + logs.gather(1, choice[:, None])[:, 0]
            entropy = entropy - (logs.exp() * logs).sum(1)
            chosen.append(choice[:, None])
            at += 1
            return choice

        for k in range(space.layers):
            c, h = self._cell(x, c, h)
            x = self.input_table[choose((h @ self.to_input)[:, : space.inputs(k)])]
            c, h = self._cell(x, c, h)
            x = self.op_table[choose(h @ self.to_op)]
            c, h = self._cell(x, c, h)
            if k:
                meet = torch.tanh(torch.stack(anchors, 1) + (h @ self.query)[:, None])
                score = meet @ self.score_vector  # (n, k); the logits are -score and +score
                both = self._squashed(torch.stack((-score, score), 2))
                logs = F.log_softmax(both, 2)
                if given is not None:
                    bits = given[:, at : at + k]
                else:
                    bits = (torch.rand(n, k, generator=generator) < logs[..., 1].detach().exp()).long()
                log_prob = log_prob + logs.gather(2, bits[..., None]).sum((1, 2))
                entropy = entropy - (logs.exp() * logs).sum((1, 2))
                target = torch.log(score.new_tensor([1.0 - SKIP_TARGET, SKIP_TARGET]))
                penalty = penalty + (logs.exp() * (logs - target)).sum((1, 2))
                chosen.append(bits)
                at += k
                taken = bits.to(h.dtype)
                x = torch.einsum("nk,nkw->nw", taken, torch.stack(states, 1)) / (1.0 + taken.sum(1, keepdim=True))
            else:
                x = self.start.expand(n, -1)
            states.append(h)
            anchors.append(h @ self.anchor)
        vectors = torch.cat(chosen, 1).numpy()
        return Drawn(vectors, log_prob, entropy, penalty / max(space.layers - 1, 1), space)


class Reinforce:
    """Moves a controller towards what was rewarded, against a moving baseline that begins at the first reward.

    scaled: where several are drawn at once, their mean is the baseline, and advantages are divided by their standard
    deviation plus 0.1. exploration: weight of the entropy in the loss itself. Without both, the defaults, the update
    is the published one, which in 300 steps of one draw learns next to nothing.
    """

    def __init__(
        self, controller: Controller, lr: float = LR, decay: float = BASELINE_DECAY, scaled: bool = False,
        exploration: float = 0.0,
    ) -> None:  # fmt: skip
        self.controller, self.decay, self.scaled, self.exploration = controller, decay, scaled, exploration
        self.baseline: float | None = None
        self.optimizer = torch.optim.Adam(controller.parameters(), lr=lr, eps=EPS, weight_decay=L2)

    def update(self, drawn: Drawn, accuracies: Sequence[float]) -> float:
        """One step from architectures drawn and their accuracies in [0, 1]; gives the baseline.

        Rewards are accuracy + w_e * entropy; the loss is log-probability * (baseline - reward) by the usual sign, plus
        w_s times the skip penalty.
        """
        rewards = torch.tensor(list(accuracies)) + ENTROPY_WEIGHT * drawn.entropy.detach()
        mean = float(rewards.mean())
        before = mean if self.baseline is None else self.baseline
        self.baseline = before - (1.0 - self.decay) * (before - mean)
        advantage = rewards - self.baseline
        if self.scaled and len(rewards) > 1:
            advantage = (rewards - mean) / (rewards.std() + SPREAD)
        loss = -(drawn.log_prob * advantage).mean() + SKIP_WEIGHT * drawn.skip_penalty.mean()
        loss = loss - self.exploration * drawn.entropy.mean()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.controller.parameters(), GRADIENT_NORM)
        self.optimizer.step()
        return self.baseline

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on."""
        return {
            "controller": self.controller.state_dict(), "optimizer": self.optimizer.state_dict(),
            "baseline": self.baseline,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.controller.load_state_dict(state["controller"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.baseline = state["baseline"]
