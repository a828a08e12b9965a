"""Search for an architecture: six strategies, one interface, one budget.

    history = search(Space(8), task, "spos", Budget(examples=200_000), seed=0, folder=Path("runs/spos"))
    history.best, history.records, history.pareto()

The budget counts examples seen in training along one path; seen forward only they count a third. What follows the
search is the same for all: the best three by its own estimate are trained from scratch, and chosen by validation.
`data` is a `Task`, or for the strategies that train every candidate from scratch anything with its `trial`,
`trial_cost` and `describe` (the mini benchmark is one).
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch

from systems.textnas import proxies
from systems.textnas.controller import Controller, Reinforce
from systems.textnas.data import HeldOut
from systems.textnas.history import BEST_FILE, History, Journal, Outcome, Record, load, pareto_front, save, write
from systems.textnas.oneshot import OneShot, fair_paths
from systems.textnas.space import Arch, ArchError, BudgetError, Space
from systems.textnas.task import FORWARD_SHARE, Task
from systems.textnas.train import Budget, Result, evaluate_test, seeded
from systems.textnas.vocabulary import Batches

Strategy = Literal["enas", "random", "sha", "evolution", "spos", "proxy", "pareto"]
BEST = 3
ETA = 3
POPULATION, TOURNAMENT = 32, 8
TRAINING_SHARE = 0.6
CONTROLLER_STEPS, DRAWS, SAMPLED = 10, 4, 10
CONTROLLER_LR, EXPLORATION = 3.5e-3, 1e-2
PROXY_CANDIDATES = 8
CHECKPOINT = "supernet.pt"


class Trials(Protocol):
    """What can train an architecture from scratch and say how good it became."""

    def trial(self, arch: Arch, examples: int, seed: int) -> Outcome:
        """Train `arch` for so many examples."""

    def trial_cost(self, examples: int) -> float:
        """What that costs."""

    def describe(self) -> str:
        """What tells it from others."""


@dataclass
class Run:
    """A search under way: where strategies get evaluations, and what they may still spend."""

    space: Space
    data: Trials
    journal: Journal
    seed: int
    examples: int
    pool: Executor | None = None
    workers: int = 1
    progress: Callable[[Record, float], None] | None = None
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    @property
    def task(self) -> Task:
        """The data as a `Task`. Raises ArchError where it is none."""
        if not isinstance(self.data, Task):
            raise ArchError(f"{type(self.data).__name__} holds no networks; this strategy needs a Task")
        return self.data

    def affords(self, cost: float) -> bool:
        """Whether the budget pays for one more."""
        return cost <= self.journal.left

    def trials(self, archs: Sequence[Arch], examples: int, kind: str = "trial", note: str = "") -> list[Record]:
        """Train architectures from scratch, as many as the budget pays for, in order; in processes where there are.

        A training that diverged, or a process that died, is a record like any other: the search goes on.
        """
        records: list[Record] = []
        seeds = [self.seed * 10_007 + self.journal.next + i for i in range(len(archs))]
        pending: dict[int, Any] = {}
        new = self.journal.ahead
        if self.pool is not None:
            paid = int(self.journal.left // self.data.trial_cost(examples)) if kind != "final" else len(archs)
            for i in range(new, min(len(archs), paid)):
                pending[i] = self.pool.submit(_trial, archs[i], examples, seeds[i])
        for i, arch in enumerate(archs):
            if kind != "final" and not self.affords(self.data.trial_cost(examples)):
                break
            outcome = self.journal.replayed(kind, arch, float(examples))
            if outcome is None:
                outcome = pending[i].result() if i in pending else self.data.trial(arch, examples, seeds[i])
            records.append(self.add(kind, arch, examples, outcome, note))
        return records

    def add(self, kind: str, arch: Arch | None, fidelity: float, outcome: Outcome, note: str = "") -> Record:
        """One more record, on disk when this returns."""
        record = self.journal.add(kind, arch, float(fidelity), outcome, note)
        if self.progress is not None:
            self.progress(record, self.journal.budget)
        return record


def score_of(record: Record) -> float:
    """Validation accuracy; what diverged is worse than anything."""
    return -math.inf if math.isnan(record.valid_acc) or record.diverged else record.valid_acc


def _ranked(records: Sequence[Record]) -> list[Arch]:
    """Distinct architectures, the best first; the earlier of two that are equal."""
    found: dict[Arch, None] = {}
    for record in sorted(records, key=score_of, reverse=True):
        if record.arch is not None and score_of(record) > -math.inf:
            found.setdefault(record.arch)
    return list(found)


def _distinct(space: Space, rng: np.random.Generator, n: int, seen: set[Arch | None] | None = None) -> Iterator[Arch]:
    """Random architectures that were not seen, at most `n`, fewer where the space is used up."""
    seen = set() if seen is None else seen
    for _ in range(n):
        if len(seen) >= space.size():
            return
        arch = space.sample(rng)
        while arch in seen:
            arch = space.sample(rng)
        seen.add(arch)
        yield arch


# ------------------------------------------------------------------------------------------------------ strategies


def random_search(run: Run) -> list[Arch]:
    """Distinct random architectures, each trained from scratch for the same number of examples."""
    count = int(run.journal.left // run.data.trial_cost(run.examples))
    return _ranked(run.trials(list(_distinct(run.space, run.rng, count)), run.examples))


def successive_halving(run: Run) -> list[Arch]:
    """Many random architectures trained a little; the best third goes on, three times as long, twice."""
    least = run.data.batch if isinstance(run.data, Task) else 1
    rungs = [max(run.examples // ETA**2, least), max(run.examples // ETA, least), run.examples]
    each = sum(run.data.trial_cost(examples) / ETA**i for i, examples in enumerate(rungs))
    count = max(int(run.journal.left // each), 1)
    archs = list(_distinct(run.space, run.rng, count))
    ranked: list[Arch] = []
    for i, examples in enumerate(rungs):
        done = run.trials(archs, examples, note=f"rung {i}")
        ranked = _ranked(done) + [arch for arch in ranked if arch not in {record.arch for record in done}]
        archs = _ranked(done)[: max(len(done) // ETA, 1)]
    return ranked


def evolution(run: Run) -> list[Arch]:
    """Regularised evolution (arXiv 1802.01548): the best of a few drawn is mutated once, the oldest dies.

    The population is 32, or a quarter of the trials that the budget pays for, where that is less, but at least 8.
    """
    paid = int(run.journal.left // run.data.trial_cost(run.examples))
    size = max(min(POPULATION, paid // 4), TOURNAMENT)
    population: deque[Record] = deque(run.trials(list(_distinct(run.space, run.rng, size)), run.examples))
    everything = list(population)
    seen: set[Arch | None] = {record.arch for record in everything}
    while population and run.affords(run.data.trial_cost(run.examples)):
        children = []
        for _ in range(run.workers):
            drawn = [population[int(i)] for i in run.rng.permutation(len(population))[:TOURNAMENT]]
            children.append(_unseen_child(run, max(drawn, key=score_of), seen))
        for record in run.trials(children, run.examples):
            population.append(record)
            population.popleft()
            everything.append(record)
    return _ranked(everything)


def _unseen_child(run: Run, parent: Record, seen: set[Arch | None], tries: int = 20) -> Arch:
    """A mutation of `parent` that was not evaluated before, or after some tries any."""
    assert parent.arch is not None
    for _ in range(tries):
        child = run.space.mutate(parent.arch, run.rng)
        if child not in seen:
            break
    seen.add(child)
    return child


def pareto_evolution(run: Run) -> list[Arch]:
    """Evolution for accuracy and size at once: parents are drawn from the front of accuracy against parameters."""
    everything = run.trials(list(_distinct(run.space, run.rng, POPULATION)), run.examples)
    seen: set[Arch | None] = {record.arch for record in everything}
    while everything and run.affords(run.data.trial_cost(run.examples)):
        points = [(score_of(record), -float(record.parameters)) for record in everything]
        front = pareto_front(points)
        parents = [everything[front[int(run.rng.integers(len(front)))]] for _ in range(run.workers)]
        everything += run.trials([_unseen_child(run, parent, seen) for parent in parents], run.examples)
    return _ranked(everything)


def proxy_search(run: Run) -> list[Arch]:
    """Many random architectures ranked by the mean rank of zero-cost scores; the best are trained."""
    task = run.task
    batch = next(iter(Batches(task.train, task.batch).epoch(run.seed)))
    trial = run.data.trial_cost(run.examples)
    count = max(int(run.journal.left // (trial / PROXY_CANDIDATES + len(batch))), 1)
    archs, rows = list(_distinct(run.space, run.rng, count)), []
    for arch in archs:
        if not run.affords(len(batch)):
            break
        with seeded(run.seed):
            rows.append(proxies.scores(task.network(arch, run.seed), batch))
        run.journal.replayed("proxy", arch, 0.0)
        run.add("proxy", arch, 0.0, Outcome(math.nan, float(len(batch)), task.parameters(arch)))
    order = np.argsort(-proxies.mean_rank(rows), kind="stable")
    chosen = [archs[int(i)] for i in order]
    records = run.trials(chosen[: int(run.journal.left // trial)], run.examples)
    return _ranked(records) or chosen


def spos(run: Run) -> list[Arch]:
    """Single-path one-shot (arXiv 1904.00420): train a supernet on even paths, then evolve on its shared weights."""
    total = TRAINING_SHARE * run.journal.left
    shop = OneShot(run.task, run.space, run.seed, total)
    while shop.examples + run.task.batch <= total:
        paths = fair_paths(run.space, np.random.default_rng([run.seed, shop.epoch]))
        if not _stretch(run, shop, None, functools.partial(shop.train, paths, total - shop.examples)):
            break
    population: deque[Record] = deque()
    everything: list[Record] = []
    seen: set[Arch | None] = set()
    while run.affords(shop.judge_cost()) and len(seen) < run.space.size():
        if len(population) < POPULATION:
            arch = next(_distinct(run.space, run.rng, 1, seen))
        else:
            drawn = [population[int(i)] for i in run.rng.permutation(len(population))[:TOURNAMENT]]
            arch = _unseen_child(run, max(drawn, key=score_of), seen)
        record = _judged(run, shop, arch)
        population.append(record)
        everything.append(record)
        if len(population) > POPULATION:
            population.popleft()
    return _ranked(everything)


def _judged(run: Run, shop: OneShot, arch: Arch) -> Record:
    outcome = run.journal.replayed("shared", arch, float(shop.epoch)) or shop.judge(arch)
    return run.add("shared", arch, shop.epoch, outcome)


def enas(run: Run) -> list[Arch]:
    """ENAS (section 2): epochs of supernet training on paths the controller draws, then steps of the controller.

    What differs from the published script: rewards come from validation data, several architectures are drawn a step
    and their advantages scaled (`Reinforce`), so that it learns within a small budget.
    """
    task = run.task
    shop = OneShot(task, run.space, run.seed)
    controller = Controller(run.space, seed=run.seed)
    reinforce = Reinforce(controller, lr=CONTROLLER_LR, scaled=True, exploration=EXPLORATION)
    validation = [batch for _, batch in Batches(task.valid, task.batch).in_order()]
    if task.frozen:
        validation = [batch for _, batch in Batches(task.valid, task.batch).looked_up(task.vectors).in_order()]
    steps = CONTROLLER_STEPS * DRAWS * task.batch * FORWARD_SHARE
    at_the_end = SAMPLED * shop.judge_cost()

    def epoch() -> Outcome:
        generator = torch.Generator().manual_seed(run.seed * 1_000_003 + shop.epoch)
        drawn_paths = (arch for _ in iter(int, 1) for arch in _sample(controller, 16, generator))
        trained = shop.train(drawn_paths, run.journal.left - at_the_end - steps - shop.judge_cost())
        cost = trained.cost
        for step in range(CONTROLLER_STEPS):
            batch = validation[(shop.epoch * CONTROLLER_STEPS + step) % len(validation)]
            drawn = controller.sample(DRAWS, generator)
            reinforce.update(drawn, [shop.reward(arch, batch) for arch in drawn.archs])
            cost += DRAWS * len(batch) * FORWARD_SHARE
        return replace(trained, cost=cost)

    while run.affords(task.batch + steps + shop.judge_cost() + at_the_end):
        if not _stretch(run, shop, reinforce, epoch):
            break
        # one architecture an epoch shows how far the search has come; where the epoch was not run again, the
        # controller is not as it was then, and the record says which it was
        later = run.journal.peek()
        if later is not None and later.kind == "shared" and later.arch is not None:
            arch = later.arch
        else:
            arch = _sample(controller, 1, torch.Generator().manual_seed(shop.epoch))[0]
        _judged(run, shop, arch)
    generator = torch.Generator().manual_seed(run.seed)
    drawn = dict.fromkeys(_sample(controller, SAMPLED, generator))
    return _ranked([_judged(run, shop, arch) for arch in drawn if run.affords(shop.judge_cost())])


def _sample(controller: Controller, n: int, generator: torch.Generator) -> list[Arch]:
    with torch.no_grad():
        return controller.sample(n, generator).archs


def _stretch(run: Run, shop: OneShot, reinforce: Reinforce | None, train: Callable[[], Outcome]) -> bool:
    """One stretch of supernet training and its record; False where it diverged.

    The weights are on disk before the record is, with the outcome in the same file: whichever was the last thing
    written, going on from there gives the same search.
    """
    file = run.journal.folder / CHECKPOINT if run.journal.folder is not None else None
    turn = shop.epoch + 1
    known = run.journal.replayed("supernet", None, float(turn))
    there = load(file) if file is not None and file.exists() else None
    if known is not None and there is not None and there["turn"] > turn:  # of a state that is overtaken
        outcome = known
        shop.epoch, shop.examples = turn, shop.examples + round(known.cost)
    elif there is not None and there["turn"] == turn:
        outcome = Outcome(**there["outcome"])
        shop.load_state_dict(there["shop"])
        if reinforce is not None:
            reinforce.load_state_dict(there["reinforce"])
    else:
        outcome = train()
        if file is not None:
            state: dict[str, Any] = {"turn": turn, "shop": shop.state_dict(), "outcome": dict(vars(outcome))}
            if reinforce is not None:
                state["reinforce"] = reinforce.state_dict()
            save(file, state)
    run.add("supernet", None, turn, outcome)
    return not outcome.diverged


STRATEGIES: dict[str, Callable[[Run], list[Arch]]] = {
    "enas": enas, "random": random_search, "sha": successive_halving, "evolution": evolution, "spos": spos,
    "proxy": proxy_search, "pareto": pareto_evolution,
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------- the one way in


def search(
    space: Space, data: Trials, strategy: Strategy = "enas", budget: Budget | None = None, seed: int = 0,
    workers: int = 1, folder: Path | str | None = None, trial: Budget | None = None, final: Budget | None = None,
    progress: Callable[[Record, float], None] | None = None,
) -> History:  # fmt: skip
    """Search `space` with one strategy, then train its best three from scratch and choose by validation.

    budget: of the search, in examples or epochs (default 20); trial: of one training from scratch within it (default
    2 epochs); final: of each training after it (none where it is not given). folder: where the history, a supernet and
    the best weights are kept; the same search given the same folder goes on. workers: processes for trials; evolution
    then breeds as many children at a time. Raises BudgetError where the budget does not pay for one evaluation, and
    ArchError where the strategy or the space does not fit.
    """
    if strategy not in STRATEGIES:
        raise ArchError(f"strategy is {strategy!r}; expected one of {', '.join(STRATEGIES)}")
    if workers < 1:
        raise BudgetError(f"workers is {workers}; expected at least 1")
    rows, batch = (len(data.train), data.batch) if isinstance(data, Task) else (1, 1)
    counted = [part or Budget(epochs=epochs) for part, epochs in ((budget, 20), (trial, 2))]
    paid, each = (_examples(part, rows, batch) for part in counted)
    last = _examples(final, rows, batch) if final is not None else 0
    if strategy in ("random", "evolution", "pareto") and paid < data.trial_cost(each):
        raise BudgetError(f"a budget of {paid} examples is below one trial of {data.trial_cost(each):g}")
    settings: dict[str, Any] = {
        "version": 1, "strategy": strategy, "seed": seed, "budget": paid, "trial": each, "final": last,
        "space": [space.layers, list(space.ops), space.reach, space.skips], "data": data.describe(),
    }  # fmt: skip
    if strategy in ("evolution", "pareto"):
        settings["workers"] = workers
    journal = Journal(settings, float(paid), space.reach, Path(folder) if folder is not None else None)
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _prepare, (data,)) if workers > 1 else None
    try:
        run = Run(space, data, journal, seed, each, pool, workers, progress)
        chosen = STRATEGIES[strategy](run)
        if last:
            _finals(run, chosen[:BEST], last)
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)
    return journal.history


def _examples(budget: Budget, rows: int, batch: int) -> int:
    total = budget.total(rows, batch)
    if total is None:
        raise BudgetError("a search is budgeted in steps, examples or epochs: seconds would not give it twice")
    return total


def _finals(run: Run, archs: Sequence[Arch], examples: int) -> None:
    """Train the chosen from scratch with the same seed, and keep the weights of the one that validates best."""
    states: dict[Arch, Any] = {}
    for arch in archs:
        outcome = run.journal.replayed("final", arch, float(examples))
        if outcome is None and isinstance(run.data, Task):
            _, result = run.data.trained(arch, examples, run.seed)
            states[arch] = result.state
            outcome = Outcome(
                result.valid_acc, result.examples + run.data.validation_cost, run.data.parameters(arch),
                result.cpu_seconds, result.diverged,
            )  # fmt: skip
        run.add("final", arch, examples, outcome or run.data.trial(arch, examples, run.seed))
    history = run.journal.history
    if not isinstance(run.data, Task) or not history.finals:
        return
    best, folder = history.best, run.journal.folder
    file = folder / BEST_FILE if folder is not None else None
    if best not in states and file is not None and file.exists():
        from safetensors.torch import load_file

        history.state = load_file(file)
        return
    history.state = states[best] if best in states else run.data.trained(best, examples, run.seed)[1].state
    if file is not None:
        from safetensors.torch import save as serialised

        write(file, serialised({name: value.contiguous() for name, value in history.state.items()}))


def evaluate_best(history: History, task: Task, test: HeldOut) -> float:
    """Accuracy of the chosen network on the test set, which is read here and counted in the history: do it once."""
    if history.state is None or task.vocabulary is None:
        raise ArchError("the history has no trained network; search with a `final` budget and a task made by Task.of")
    record = history.best_record
    assert record.arch is not None
    net = task.network(record.arch, 0)
    result = Result(record.valid_acc, [], record.seconds, record.seconds, int(record.fidelity), history.state)
    history.test_acc = evaluate_test(net, result, test, task.vocabulary, task.embedding)
    history.test_reads = result.test_reads
    return history.test_acc


_worker: dict[str, Trials] = {}
"""In a process of the pool: the data, sent once."""


def _prepare(data: Trials) -> None:
    torch.set_num_threads(1)
    _worker["data"] = data


def _trial(arch: Arch, examples: int, seed: int) -> Outcome:
    return _worker["data"].trial(arch, examples, seed)
