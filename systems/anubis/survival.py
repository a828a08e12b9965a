"""When will a node fail? Incident models over the past of nodes, compared by how well they forecast held-out nodes.

    table = intervals(events)                       # one row per node and up-time, in counting-process form
    model = choose(table).model                     # by integrated Brier score, nodes held out
    model.probability(status, hours=24)             # of an incident within the next day

An up-time of a node is an interval (start, stop] of the time since the node came up: `start` is 0 unless the node was
already up when it came under observation (left truncation). `event` says whether it ended in an incident.

Anubis (arXiv 2402.06194) uses Cox-Time (Kvamme, Borgan, Scheel, JMLR 2019). On a short trace a simpler model may
forecast better, and is then used.

    SurvivalError(ValueError)
    ├── BadHistory      intervals that are empty, inconsistent or hold no incident
    └── NotFitted       a forecast was asked of a model that has seen nothing
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

HOURS_A_DAY = 24.0


class SurvivalError(ValueError):
    """Anything that no incident model can be made of."""


class BadHistory(SurvivalError):
    """Intervals that are empty, inconsistent or hold no incident."""


class NotFitted(SurvivalError):
    """A forecast was asked of a model before `fit`."""


# --- records --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Intervals:
    """Up-times of nodes, (n,) each: node, start and stop in hours since the node came up, event, features (n, d).

    `names`: (d,) what the features are. The feature `incidents` (incidents of the node so far) is always among them.
    """

    node: NDArray[np.intp]
    start: Floats
    stop: Floats
    event: NDArray[np.bool_]
    features: Floats
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        n = len(self.node)
        for name in ("start", "stop", "event", "features"):
            if len(getattr(self, name)) != n:
                raise BadHistory(f"{name} has {len(getattr(self, name))} rows, the nodes have {n}")
        if n == 0:
            raise BadHistory("no intervals: an incident model needs a history of up-times")
        if self.features.ndim != 2 or self.features.shape[1] != len(self.names):
            raise BadHistory(f"features of shape {self.features.shape} do not fit the names {self.names}")
        bad = ~(np.isfinite(self.start) & np.isfinite(self.stop) & (self.start >= 0) & (self.stop > self.start))
        if bad.any():
            at = int(bad.argmax())
            begin, end = float(self.start[at]), float(self.stop[at])
            raise BadHistory(f"interval {at} is ({begin}, {end}]: expected 0 <= start < stop, in hours")
        if not np.isfinite(self.features).all():
            at, column = np.argwhere(~np.isfinite(self.features))[0]
            raise BadHistory(f"interval {at} has a value that is not finite for {self.names[int(column)]}")

    def __len__(self) -> int:
        return len(self.node)

    def take(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> Intervals:
        """The intervals in `rows` only."""
        return replace(
            self,
            node=self.node[rows],
            start=self.start[rows],
            stop=self.stop[rows],
            event=self.event[rows],
            features=self.features[rows],
        )

    def column(self, name: str) -> Floats:
        """(n,) one feature. Raises BadHistory naming those that there are."""
        if name not in self.names:
            raise BadHistory(f"no feature {name!r}; there are {', '.join(self.names)}")
        return self.features[:, self.names.index(name)]


class Hazard(Protocol):
    """An incident model."""

    name: str

    def fit(self, intervals: Intervals) -> Hazard:
        """Learn from up-times; returns itself. Raises BadHistory where there is no incident."""

    def survival(self, features: Floats, hours: ArrayLike) -> Floats:
        """(n, k): probability that a node with features (n, d) is still up k given hours after it came up."""


def probability(model: Hazard, features: ArrayLike, hours: float, up_for: ArrayLike = 0.0) -> Floats:
    """(n,): probability of an incident within the next `hours`, for nodes that have been up for `up_for` hours.

    features: (n, d), as the model was fitted; this is 1 - S(t + h | x) / S(t | x). Raises SurvivalError for a
    negative time.
    """
    x = np.atleast_2d(np.asarray(features, dtype=np.float64))
    t = np.broadcast_to(np.asarray(up_for, dtype=np.float64), (len(x),))
    if not hours >= 0 or not np.all(t >= 0):
        raise SurvivalError(f"times are hours and not negative, not hours={hours}, up_for={up_for!r}")
    grid, place = np.unique(np.concatenate([t, t + hours]), return_inverse=True)
    S = model.survival(x, grid)
    rows = np.arange(len(x))
    now, then = S[rows, place[: len(x)]], S[rows, place[len(x) :]]
    return np.clip(1.0 - np.divide(then, now, out=np.zeros(len(x)), where=now > 0), 0.0, 1.0)


# --- from a trace to intervals ---------------------------------------------------------------------------------

FEATURES = ("incidents", "log_incidents", "log_hours_since", "age", "down_hours", "last_class", "same_class")


def intervals(
    outages: Mapping[str, Sequence[tuple[float, float, str]]], end: float, nodes: Iterable[str] = ()
) -> Intervals:
    """Up-times of a fleet from its outages.

    outages: node -> (start hour, end hour, component class) of each fault, in any order; overlapping faults of a
    node are one outage. end: hour at which observation ends. nodes: further nodes, which never failed. All nodes are
    up from hour 0. Features, all known when an up-time begins: incidents so far and the logarithm of one more,
    logarithm of the length of the up-time before (hours, plus one), age of the node (thousands of hours), hours down
    in all, share of the node's incidents in the class that failed last, and whether that class had failed before.
    Raises BadHistory for an outage that ends before it begins, or lies outside of the observation.
    """
    rows: list[tuple[int, float, bool, tuple[float, ...]]] = []
    everyone = sorted(set(outages) | set(nodes))
    for number, node in enumerate(everyone):
        up, down, before, classes = 0.0, 0.0, 0.0, list[str]()
        for begin, back, kind in _merged(node, outages.get(node, ()), end):
            if begin > up:
                rows.append((number, begin - up, True, _features(classes, before, up, down)))
                before = begin - up
            classes.append(kind)
            down += back - begin
            up = back
        if up < end:
            rows.append((number, end - up, False, _features(classes, before, up, down)))
    if not rows:
        raise BadHistory("no up-time in this trace: no node was ever seen up")
    return Intervals(
        node=np.array([row[0] for row in rows]),
        start=np.zeros(len(rows)),
        stop=np.array([row[1] for row in rows]),
        event=np.array([row[2] for row in rows]),
        features=np.array([row[3] for row in rows], dtype=np.float64),
        names=FEATURES,
    )


def _merged(node: str, faults: Sequence[tuple[float, float, str]], end: float) -> list[tuple[float, float, str]]:
    merged: list[tuple[float, float, str]] = []
    for begin, back, kind in sorted(faults):
        if not 0 <= begin <= back or begin > end:
            raise BadHistory(f"node {node}: an outage from hour {begin} to {back}; expected 0 <= start <= end <= {end}")
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], back), merged[-1][2])
        else:
            merged.append((begin, back, kind))
    return merged


def _features(classes: Sequence[str], before: float, age: float, down: float) -> tuple[float, ...]:
    same = classes.count(classes[-1]) if classes else 0
    return (
        float(len(classes)),
        math.log1p(len(classes)),
        math.log1p(before),
        age / 1000.0,
        math.log1p(down),
        same / len(classes) if classes else 0.0,
        float(same > 1),
    )


def infinitehbd(path: Path, servers: int = 400) -> Intervals:
    """The up-times in an InfiniteHBD fault trace (JSON; times in days). `servers`: with those that never failed.

    Raises BadHistory for a file of another form, or with faults that end without having begun.
    """
    try:
        events = [
            (float(e["event_time"]) * HOURS_A_DAY, str(e["event_type"]), str(e["node_id"]), e["fault_type"])
            for e in json.loads(path.read_text(encoding="utf-8"))
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise BadHistory(f"{path}: not a fault trace of JSON events as InfiniteHBD publishes ({error})") from error
    if not events:
        raise BadHistory(f"{path}: no events")
    end = max(time for time, *_ in events)
    open_faults: dict[tuple[str, str], list[float]] = {}
    outages: dict[str, list[tuple[float, float, str]]] = {}
    # Faults begin before they end, also in the same moment.
    for time, what, node, fault in sorted(events, key=lambda e: (e[0], e[1] != "fault_start")):
        key = (node, json.dumps(fault, sort_keys=True))
        if what == "fault_start":
            open_faults.setdefault(key, []).append(time)
        elif open_faults.get(key):
            outages.setdefault(node, []).append((open_faults[key].pop(0), time, str(fault.get("Class", ""))))
        else:
            raise BadHistory(f"{path}: a fault of {node} ends at hour {time:.1f} without having begun")
    for (node, fault), begun in open_faults.items():
        kind = str(json.loads(fault).get("Class", ""))
        outages.setdefault(node, []).extend((time, end, kind) for time in begun)
    unseen = [f"~{i}" for i in range(max(0, servers - len(outages)))]
    return intervals(outages, end, unseen)


# --- models ----------------------------------------------------------------------------------------------------


def require_incidents(data: Intervals) -> None:
    """Raise BadHistory where no interval ended in an incident."""
    if not data.event.any():
        raise BadHistory(f"{len(data)} intervals without a single incident: no rate can be learned from them")


class Exponential:
    """A constant rate, one for all nodes or, `by_count`, one per number of incidents so far.

    Rates (1/h) are shrunk towards the overall one as if each count had also seen one more incident at that rate, so
    that a count seen once claims nothing; counts beyond the largest learned have that one's rate.
    """

    def __init__(self, *, by_count: bool = True, most: int = 8) -> None:
        self.by_count, self.most = by_count, most
        self.name = "exponential per count" if by_count else "exponential"
        self._rates: Floats | None = None
        self._column = 0

    def fit(self, intervals: Intervals) -> Exponential:
        """Incidents over hours up."""
        require_incidents(intervals)
        exposure = intervals.stop - intervals.start
        overall = intervals.event.sum() / exposure.sum()
        self._column = intervals.names.index("incidents")
        levels = self.most + 1 if self.by_count else 1
        rates = np.full(levels, overall)
        if self.by_count:
            count = np.minimum(intervals.column("incidents").astype(int), self.most)
            incidents = np.bincount(count, intervals.event, minlength=levels)
            hours = np.bincount(count, exposure, minlength=levels)
            rates = (incidents + 1.0) / (hours + 1.0 / overall)
            largest = int(count.max())
            rates[largest:] = rates[largest]
        self._rates = rates
        return self

    @property
    def rates(self) -> Floats:
        """(counts,) incidents per hour up, by the number of incidents so far; the last one holds beyond."""
        if self._rates is None:
            raise NotFitted(f"{self.name}: call fit first")
        return self._rates

    def chances(self, incidents: ArrayLike, hours: float) -> Floats:
        """(n,): P of an incident within `hours` for nodes with `incidents` (n,) so far; a constant rate has no age."""
        past = np.atleast_1d(np.asarray(incidents))
        if not hours >= 0 or np.any(past < 0):
            raise SurvivalError(f"hours and past incidents are not negative: {hours}, {past.tolist()}")
        return -np.expm1(-self.rates[np.minimum(past.astype(int), len(self.rates) - 1)] * hours)

    def to_json(self, source: str) -> str:
        """The rates with where they come from; `load` reads it."""
        rates = [float(f"{rate:.6g}") for rate in self.rates]
        return json.dumps({"incidents_per_hour": rates, "source": source}, indent=1) + "\n"

    @classmethod
    def load(cls, path: Path) -> tuple[Exponential, str]:
        """The model and the source that `to_json` was given. Raises BadHistory for anything else."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            rates = np.array([float(rate) for rate in data["incidents_per_hour"]])
            source = str(data["source"])
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise BadHistory(f"{path}: not an incident model: {error}") from error
        if len(rates) == 0 or not np.all(np.isfinite(rates) & (rates > 0)):
            raise BadHistory(f"{path}: expected positive incidents per hour, not {rates.tolist()}")
        model = cls(by_count=len(rates) > 1, most=len(rates) - 1)
        model._rates = rates
        return model, source

    def survival(self, features: Floats, hours: ArrayLike) -> Floats:
        """exp(-rate t)."""
        level = np.minimum(features[:, self._column].astype(int), len(self.rates) - 1)
        return np.exp(-self.rates[level][:, None] * np.atleast_1d(np.asarray(hours, dtype=np.float64)))


class CoxPH:
    """Proportional hazards, by lifelines, with a ridge penalty; constant features are left out."""

    name = "Cox PH"

    def __init__(self, penalizer: float = 0.01) -> None:
        self.penalizer = penalizer
        self._beta: Floats | None = None

    def fit(self, intervals: Intervals) -> CoxPH:
        """Partial likelihood with Efron's ties. Raises BadHistory where it does not converge."""
        import pandas as pd
        from lifelines import CoxPHFitter
        from lifelines.exceptions import ConvergenceError

        require_incidents(intervals)
        self._mean, spread = intervals.features.mean(axis=0), intervals.features.std(axis=0)
        self._used = spread > 1e-9
        self._scale = np.where(self._used, spread, 1.0)
        z = (intervals.features - self._mean) / self._scale
        columns = [f"x{i}" for i in np.flatnonzero(self._used)]
        frame = pd.DataFrame(z[:, self._used], columns=columns)
        frame["start"], frame["stop"], frame["event"] = intervals.start, intervals.stop, intervals.event
        beta = np.zeros(len(self._mean))
        if columns:
            try:
                fitter = CoxPHFitter(penalizer=self.penalizer).fit(frame, "stop", "event", entry_col="start")
            except ConvergenceError as error:
                raise BadHistory(f"Cox PH does not converge on these {len(intervals)} intervals: {error}") from error
            beta[self._used] = fitter.params_.loc[columns].to_numpy()
        self._beta = beta
        risk = np.exp(np.clip(z @ beta, -30, 30))
        self._times, self._steps = breslow(intervals, lambda time, members: risk[members])
        return self

    def survival(self, features: Floats, hours: ArrayLike) -> Floats:
        """exp(-H0(t) exp(beta x)), Breslow's H0."""
        if self._beta is None:
            raise NotFitted(f"{self.name}: call fit first")
        risk = np.exp(np.clip((features - self._mean) / self._scale @ self._beta, -30, 30))
        cumulative = np.concatenate([[0.0], np.cumsum(self._steps)])
        at = np.searchsorted(self._times, np.atleast_1d(np.asarray(hours, dtype=np.float64)), side="right")
        return np.exp(-risk[:, None] * cumulative[at])


def breslow(data: Intervals, risk_at: Callable[[float, NDArray[np.intp]], Floats]) -> tuple[Floats, Floats]:
    """Event times (k,) and the baseline's steps (k,): events at T over the total risk of those at risk at T."""
    times = np.unique(data.stop[data.event])
    steps = np.empty(len(times))
    for i, time in enumerate(times):
        members = np.flatnonzero((data.start < time) & (time <= data.stop))
        events = int((data.event & (data.stop == time)).sum())
        steps[i] = events / risk_at(float(time), members).sum()
    return times, steps


# --- how good a forecast is ------------------------------------------------------------------------------------


def censoring(data: Intervals) -> Callable[[ArrayLike], Floats]:
    """Kaplan-Meier estimate of G(t) = P(not yet censored at t); the returned function takes times (k,)."""
    times = np.unique(data.stop[~data.event])
    at_risk = np.array([((data.start < t) & (t <= data.stop)).sum() for t in times], dtype=np.float64)
    ended = np.array([((~data.event) & (data.stop == t)).sum() for t in times], dtype=np.float64)
    curve = np.concatenate([[1.0], np.cumprod(1.0 - ended / np.maximum(at_risk, 1.0))])

    def G(t: ArrayLike) -> Floats:
        return curve[np.searchsorted(times, np.atleast_1d(np.asarray(t, dtype=np.float64)), side="right")]

    return G


def brier(
    survival: Floats, data: Intervals, hours: ArrayLike, G: Callable[[ArrayLike], Floats] | None = None
) -> Floats:
    """(k,): Brier score of forecasts (n, k) of still being up at `hours` (k,), weighted by inverse censoring.

    An interval that ended in an incident by t counts (0 - S)^2 / G(stop-), one still running (1 - S)^2 / G(t), one
    censored by t nothing: Graf et al., Statistics in Medicine 1999. G: from training data, else from `data`.
    """
    t = np.atleast_1d(np.asarray(hours, dtype=np.float64))
    G = G or censoring(data)
    before = np.maximum(G(np.nextafter(data.stop, 0)), 1e-6)[:, None]
    now = np.maximum(G(t), 1e-6)[None, :]
    failed = data.event[:, None] & (data.stop[:, None] <= t)
    running = data.stop[:, None] > t
    scores = np.where(failed, survival**2 / before, np.where(running, (1 - survival) ** 2 / now, 0.0))
    return scores.mean(axis=0)


def integrated_brier(
    survival: Floats, data: Intervals, hours: ArrayLike, G: Callable[[ArrayLike], Floats] | None = None
) -> float:
    """The mean of `brier` over `hours` (k,), increasing, by trapezoids. Lower is better; 0.25 is a coin's."""
    t = np.asarray(hours, dtype=np.float64)
    scores = brier(survival, data, t, G)
    return float(np.trapezoid(scores, t) / (t[-1] - t[0]))


def concordance(risk: ArrayLike, data: Intervals) -> float:
    """Share of comparable pairs in which the interval with more `risk` (n,) ended first; ties of risk count 0.5.

    A pair is comparable when the shorter interval ended in an incident while the other was under observation.
    Raises BadHistory where no pair is.
    """
    score = np.asarray(risk, dtype=np.float64)
    agreed = pairs = 0.0
    for i in np.flatnonzero(data.event):
        longer = (data.stop > data.stop[i]) & (data.start < data.stop[i])
        pairs += float(longer.sum())
        agreed += float((score[i] > score[longer]).sum() + 0.5 * (score[i] == score[longer]).sum())
    if not pairs:
        raise BadHistory("no two intervals can be compared: too few incidents")
    return agreed / pairs


@dataclass(frozen=True, eq=False)
class Choice:
    """The best model, fitted to all intervals; integrated Brier scores and concordances of all, over the folds."""

    model: Hazard
    scores: Mapping[str, float]
    concordances: Mapping[str, float]


def folds_of(data: Intervals, folds: int, seed: int) -> list[NDArray[np.bool_]]:
    """(folds) masks (n,) of held-out intervals: all of a node are in the same fold."""
    nodes = np.random.default_rng(seed).permutation(np.unique(data.node))
    return [np.isin(data.node, part) for part in np.array_split(nodes, folds)]


def choose(
    data: Intervals,
    models: Sequence[Callable[[], Hazard]],
    *,
    folds: int = 5,
    hours: ArrayLike | None = None,
    seed: int = 0,
) -> Choice:
    """Cross-validate models over held-out nodes, and fit the one with the least integrated Brier score to all.

    models: what makes each. hours: (k,) times at which forecasts are scored, by default 40 from one day to the 80th
    percentile of the up-times. Raises BadHistory with fewer nodes than folds, or without incidents.
    """
    require_incidents(data)
    if len(np.unique(data.node)) < folds:
        raise BadHistory(f"{len(np.unique(data.node))} nodes cannot be held out in {folds} folds")
    grid = np.linspace(HOURS_A_DAY, np.quantile(data.stop, 0.8), 40) if hours is None else np.asarray(hours, float)
    scores: dict[str, float] = {}
    concordances: dict[str, float] = {}
    makers = {}
    for make in models:
        losses, ranks = [], []
        for held in folds_of(data, folds, seed):
            train, test = data.take(~held), data.take(held)
            fitted = make().fit(train)
            S = fitted.survival(test.features, grid)
            losses.append(integrated_brier(S, test, grid, censoring(train)))
            ranks.append(concordance(1 - S.mean(axis=1), test))
        name = fitted.name
        makers[name] = make
        scores[name], concordances[name] = float(np.mean(losses)), float(np.mean(ranks))
    best = min(scores, key=lambda name: scores[name])
    return Choice(makers[best]().fit(data), scores, concordances)
