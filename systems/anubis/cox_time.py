"""Cox-Time in torch: relative risks that may change over an up-time, so that hazards can cross.

Kvamme, Borgan, Scheel, Time-to-Event Prediction with Neural Networks and Cox Regression (JMLR 2019). The hazard is
h0(t) exp g(t, x), with g a small network of the time and the features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from systems.anubis.survival import Floats, Intervals, NotFitted, breslow, folds_of, require_incidents

if TYPE_CHECKING:
    from torch import Tensor, nn

FULL_RISK_SETS = 100_000
"""Up to this many events x intervals the loss runs over whole risk sets; beyond, over `CONTROLS` sampled of each."""

CONTROLS = 64


class CoxTime:
    """The mean survival curve of networks from several seeds.

    epochs: at most; training stops early when a fifth of the nodes, held out, no longer gains.
    """

    name = "Cox-Time"

    def __init__(self, *, epochs: int = 100, rate: float = 1e-2, seeds: int = 3, patience: int = 10) -> None:
        self.epochs, self.rate, self.seeds, self.patience = epochs, rate, seeds, patience
        self._fitted: list[tuple[nn.Module, Floats, Floats]] = []

    def fit(self, intervals: Intervals) -> CoxTime:
        """Train one network per seed, then Breslow's baseline over all intervals. Raises BadHistory."""
        require_incidents(intervals)
        self._mean = intervals.features.mean(axis=0)
        spread = intervals.features.std(axis=0)
        self._scale = np.where(spread > 1e-9, spread, 1.0)
        log = np.log1p(intervals.stop[intervals.event])
        self._time = (float(log.mean()), max(float(log.std()), 1e-9))
        self._fitted = []
        for seed in range(self.seeds):
            net = self._train(intervals, seed)
            x = self._standardised(intervals.features)
            times, steps = breslow(intervals, lambda t, rows, net=net, x=x: self._risk(net, t, x[rows]))  # type: ignore[misc]
            self._fitted.append((net, times, steps))
        return self

    def survival(self, features: Floats, hours: ArrayLike) -> Floats:
        """exp(-sum of baseline steps up to t, each times exp g(T, x))."""
        if not self._fitted:
            raise NotFitted(f"{self.name}: call fit first")
        t = np.atleast_1d(np.asarray(hours, dtype=np.float64))
        x = self._standardised(features)
        curves = []
        for net, times, steps in self._fitted:
            jumps = np.stack([step * self._risk(net, T, x) for T, step in zip(times, steps, strict=True)], axis=1)
            cumulative = np.concatenate([np.zeros((len(x), 1)), np.cumsum(jumps, axis=1)], axis=1)
            curves.append(np.exp(-cumulative[:, np.searchsorted(times, t, side="right")]))
        mean: Floats = np.mean(curves, axis=0)
        return mean

    def _standardised(self, features: Floats) -> Floats:
        z: Floats = np.clip((features - self._mean) / self._scale, -10, 10)
        return z

    def _clock(self, time: ArrayLike) -> Floats:
        scaled: Floats = (np.log1p(np.asarray(time, dtype=np.float64)) - self._time[0]) / self._time[1]
        return scaled

    def _risk(self, net: nn.Module, time: float, x: Floats) -> Floats:
        import torch

        with torch.no_grad():
            t = np.full((len(x), 1), float(self._clock(time)))
            g = net(torch.from_numpy(np.hstack([t, x]).astype(np.float32)))[:, 0].double().numpy()
        risk: Floats = np.exp(np.clip(g, -30, 30))
        return risk

    def _train(self, data: Intervals, seed: int) -> nn.Module:
        import torch
        from torch import nn

        held = folds_of(data, min(5, len(np.unique(data.node))), seed)[0]
        if not data.event[held].any() or not data.event[~held].any():
            held = np.zeros(len(data), dtype=bool)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = nn.Sequential(
                nn.Linear(data.features.shape[1] + 1, 32),
                nn.GELU(),
                nn.Dropout(0.1),
                nn.Linear(32, 32),
                nn.GELU(),
                nn.Dropout(0.1),
                nn.Linear(32, 1),
            )
            optimiser = torch.optim.AdamW(net.parameters(), lr=self.rate, weight_decay=1e-2)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.epochs)
            generator = np.random.default_rng(seed)
            train = data.take(~held)
            valid = data.take(held) if held.any() else train
            check = self._batches(valid, np.random.default_rng(seed))
            # Risk sets that are whole stay the same over all epochs; sampled ones are drawn anew.
            fixed = self._batches(train, generator) if _whole(train) else None
            best, kept, since = np.inf, {k: v.clone() for k, v in net.state_dict().items()}, 0
            for _ in range(self.epochs):
                net.train()
                loss = _loss(net, *(fixed or self._batches(train, generator)))
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                net.eval()
                with torch.no_grad():
                    score = float(_loss(net, *check))
                if score < best - 1e-5:
                    best, kept, since = score, {k: v.clone() for k, v in net.state_dict().items()}, 0
                else:
                    since += 1
                    if since >= self.patience:
                        break
            net.load_state_dict(kept)
        return net.eval()

    def _batches(self, data: Intervals, generator: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs (rows, d + 1) at an event's time, their event (rows,), and the row of each event itself (events,)."""
        import torch

        x = self._standardised(data.features)
        whole = _whole(data)
        members, groups, own, filled = [], [], [], 0
        events = np.flatnonzero(data.event)
        for group, i in enumerate(events):
            rows = np.flatnonzero((data.start < data.stop[i]) & (data.stop[i] <= data.stop))
            if not whole and len(rows) > CONTROLS + 1:
                rows = np.append(generator.choice(rows[rows != i], CONTROLS, replace=False), i)
            members.append(rows)
            groups.append(np.full(len(rows), group))
            own.append(filled + int(np.flatnonzero(rows == i)[0]))
            filled += len(rows)
        of = np.concatenate(groups)
        inputs = np.hstack([self._clock(data.stop[events])[of][:, None], x[np.concatenate(members)]])
        return torch.from_numpy(inputs.astype(np.float32)), torch.from_numpy(of), torch.tensor(own)


def _whole(data: Intervals) -> bool:
    return int(data.event.sum()) * len(data) <= FULL_RISK_SETS


def _loss(net: nn.Module, inputs: Tensor, group: Tensor, own: Tensor) -> Tensor:
    """Mean over events of logsumexp of g over the risk set, less g of the one that failed."""
    import torch

    g = net(inputs)[:, 0]
    most = torch.full((len(own),), -torch.inf).scatter_reduce(0, group, g.detach(), "amax")
    total = torch.zeros(len(own)).index_add(0, group, torch.exp(g - most[group]))
    return (torch.log(total) + most - g[own]).mean()
