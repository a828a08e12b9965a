"""Rounds of self-evolution: the policy draws proofs, the verifier sorts them, right ones and repaired wrong ones are
what the next policy is trained on. Every draw is kept with its verdict; a stopped run goes on where it was."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from systems.safe.gate import gate
from systems.safe.policy import Example, Menu, Policy, complaint, failing, menu, record, train, written
from systems.safe.prove import inductive, prove_many, smallest
from systems.safe.sketch import Candidate
from systems.safe.syntax import SafeError
from systems.safe.verifier import Diagnostic, Limits, verify_many

TEMPERATURE = 0.7
_MOST_PROOFS = 3
_MOST_REPAIRS = 4
_Z = 1.959963984540054


@dataclass(frozen=True)
class Task:
    """A program to prove: its name, where it comes from, its text."""

    name: str
    source: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """What the verifier and the gate said of one text."""

    ok: bool
    problems: tuple[Diagnostic, ...] = ()


@dataclass(frozen=True)
class Share:
    """`solved` of `total` tasks, with the 95 % Wilson interval of the share, after `draws` verified programs."""

    solved: int
    total: int
    draws: int

    @property
    def value(self) -> float:
        return 100 * self.solved / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Low and high end in percent."""
        if not self.total:
            return 0.0, 100.0
        n, p = self.total, self.solved / self.total
        middle = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        half = _Z / (1 + _Z**2 / n) * (p * (1 - p) / n + _Z**2 / (4 * n**2)) ** 0.5
        return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)


@dataclass(frozen=True)
class AccuracyTable:
    """Shares by column: `@1`, `@k`, and each with `+debug`; `by_source` the same for the tasks of one source."""

    total: dict[str, Share]
    by_source: dict[str, dict[str, Share]] = field(default_factory=dict)


class Verdicts:
    """Verdicts on texts, asked in batches and remembered; with a file, every draw is appended to it for good."""

    def __init__(self, edition: str, limits: Limits, path: Path | None = None) -> None:
        self.edition = edition
        self.limits = limits
        self.path = path
        self.asked = 0
        self._known: dict[str, Verdict] = {}
        self._recorded: set[str] = set()
        if path is not None and path.exists():
            self._restore(path)

    def _restore(self, path: Path) -> None:
        whole = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
                problems = tuple(
                    Diagnostic(**{**one, "labels": tuple((n, text) for n, text in one["labels"])})
                    for one in entry["problems"]
                )
                self._known[entry["digest"]] = Verdict(bool(entry["ok"]), problems)
            except (ValueError, KeyError, TypeError):
                break
            self._recorded.add(entry["draw"])
            whole.append(line)
        part = path.with_name(f"{path.name}.part")
        part.write_text("".join(line + "\n" for line in whole), encoding="utf-8")
        part.replace(path)

    def of(self, draws: Sequence[tuple[str, str, str, list[dict[str, Any]]]]) -> list[Verdict]:
        """Verdicts on draws, each (name of the draw, task's text, program, what was added)."""
        digests = [hashlib.sha256(program.encode()).hexdigest() for _, _, program, _ in draws]
        new = {
            digest: program
            for digest, (_, _, program, _) in zip(digests, draws, strict=True)
            if digest not in self._known
        }
        tasks = {digest: task for digest, (_, task, _, _) in zip(digests, draws, strict=True)}
        reports = verify_many(list(new.values()), edition=self.edition, limits=self.limits)
        for digest, report in zip(new, reports, strict=True):
            honest = report.ok and gate(tasks[digest], new[digest]) == []
            self._known[digest] = Verdict(honest, report.diagnostics)
        self.asked += len(draws)
        found = [self._known[digest] for digest in digests]
        if self.path is not None:
            self._append(self.path, draws, digests, found)
        return found

    def _append(
        self, path: Path, draws: Sequence[tuple[str, str, str, list[dict[str, Any]]]], digests: Sequence[str],
        verdicts: Sequence[Verdict],
    ) -> None:  # fmt: skip
        with path.open("a", encoding="utf-8") as file:
            for (name, _, _, added), digest, verdict in zip(draws, digests, verdicts, strict=True):
                if name not in self._recorded:
                    self._recorded.add(name)
                    problems = [asdict(problem) for problem in verdict.problems]
                    entry = {"draw": name, "digest": digest, "ok": verdict.ok, "added": added, "problems": problems}
                    file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())


def menus(tasks: Sequence[Task], *, edition: str = "current", workers: int = 2, seed: int = 0) -> dict[str, Menu]:
    """The candidates of each task by its name. Tasks that cannot be read, or have nothing to propose, are left out."""
    work = partial(_menu, edition=edition, seed=seed)
    if workers <= 1 or len(tasks) <= 1:
        made = list(map(work, tasks))
    else:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            made = list(pool.map(work, tasks))
    return {task.name: one for task, one in zip(tasks, made, strict=True) if one is not None}


def _menu(task: Task, *, edition: str, seed: int) -> Menu | None:
    try:
        return menu(task.text, edition=edition, seed=seed)
    except SafeError:
        return None


def _entropy(*parts: object) -> int:
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:6], "little")


@dataclass
class _Draw:
    """One draw for a task, with its verdict once it is known."""

    name: str
    task: str
    chosen: frozenset[int]
    verdict: Verdict = Verdict(False)


def _sample(policy: Policy, shown: Menu, task: str, name: str, seed: int) -> _Draw:
    return _Draw(name, task, policy.draw(shown, temperature=TEMPERATURE, seed=seed))


def _judge(shown: dict[str, Menu], draws: Iterable[_Draw], verdicts: Verdicts) -> list[_Draw]:
    waiting = list(draws)
    texts = [written(shown[draw.task], draw.chosen).text for draw in waiting]
    asked = [
        (draw.name, shown[draw.task].task, text, record(shown[draw.task], draw.chosen))
        for draw, text in zip(waiting, texts, strict=True)
    ]
    for draw, verdict in zip(waiting, verdicts.of(asked), strict=True):
        draw.verdict = verdict
    return waiting


def _extra(shown: Menu, draw: _Draw) -> dict[int, tuple[int, ...]]:
    return complaint(shown, draw.chosen, written(shown, draw.chosen), draw.verdict.problems)


def _repair(policy: Policy, shown: dict[str, Menu], draw: _Draw, step: int, temperature: float, seed: int) -> _Draw:
    one = shown[draw.task]
    name = f"{draw.name}+{step}"
    failed = failing(written(one, draw.chosen), draw.verdict.problems)
    known = frozenset(number for number, candidate in enumerate(one.candidates) if candidate in failed)
    chosen = policy.draw(
        one, temperature=temperature, seed=_entropy(seed, name), extra=_extra(one, draw), without=known
    )
    return _Draw(name, draw.task, chosen)


def accuracy(
    tasks: Sequence[Task], policy: Policy, *, k: Sequence[int] = (1, 10), debug: bool = True, edition: str = "current",
    seed: int = 0, limits: Limits | None = None, shown: dict[str, Menu] | None = None, path: Path | None = None,
) -> AccuracyTable:  # fmt: skip
    """Accuracy@1 is greedy. Accuracy@k counts a task if one of k draws at temperature 0.7 is right; with debugging each
    failed draw is repaired k times, k + k^2 draws in all. `draws` in the table counts the verified programs."""
    limits = limits or Limits()
    shown = shown if shown is not None else menus(tasks, edition=edition, workers=limits.workers)
    verdicts = Verdicts(edition, limits, path)
    names = [task.name for task in tasks if task.name in shown]
    columns: dict[str, set[str]] = {}
    cost: dict[str, int] = {}
    greedy = _judge(shown, [_Draw(f"{name}/greedy", name, policy.draw(shown[name])) for name in names], verdicts)
    columns["@1"], cost["@1"] = {draw.task for draw in greedy if draw.verdict.ok}, verdicts.asked
    if debug:
        failed = [draw for draw in greedy if not draw.verdict.ok]
        fixed = _judge(shown, [_repair(policy, shown, draw, 1, 0.0, seed) for draw in failed], verdicts)
        columns["@1+debug"] = columns["@1"] | {draw.task for draw in fixed if draw.verdict.ok}
        cost["@1+debug"] = verdicts.asked
    drawn: list[_Draw] = []
    solved: set[str] = set()
    start, spent = verdicts.asked, 0
    for many in sorted(count for count in k if count > 1):
        while spent < many:
            spent += 1
            fresh = [
                _sample(policy, shown[name], name, f"{name}/{spent}", _entropy(seed, name, spent))
                for name in names
                if name not in solved
            ]
            drawn += _judge(shown, fresh, verdicts)
            solved |= {draw.task for draw in fresh if draw.verdict.ok}
        columns[f"@{many}"], cost[f"@{many}"] = set(solved), verdicts.asked - start
        if debug and many <= 10:
            columns[f"@{many}+debug"] = solved | _debugged(policy, shown, drawn, solved, many, seed, verdicts)
            cost[f"@{many}+debug"] = verdicts.asked - start
            start += cost[f"@{many}+debug"] - cost[f"@{many}"]
    return accuracy_table(tasks, columns, cost)


def _debugged(
    policy: Policy, shown: dict[str, Menu], drawn: Sequence[_Draw], solved: set[str], many: int, seed: int,
    verdicts: Verdicts,
) -> set[str]:  # fmt: skip
    """The tasks that a repair of a failed draw solves; a solved task is not tried further."""
    found: set[str] = set()
    for step in range(1, many + 1):
        waiting = [draw for draw in drawn if draw.task not in solved | found and not draw.verdict.ok]
        if not waiting:
            break
        temperature = 0.0 if step == 1 else TEMPERATURE
        fixed = [_repair(policy, shown, draw, step, temperature, seed) for draw in waiting]
        found |= {draw.task for draw in _judge(shown, fixed, verdicts) if draw.verdict.ok}
    return found


def accuracy_table(tasks: Sequence[Task], columns: dict[str, set[str]], cost: dict[str, int]) -> AccuracyTable:
    """Shares of tasks by column, in all and by source. columns: the tasks solved; cost: programs verified."""

    def shares(names: set[str]) -> dict[str, Share]:
        return {column: Share(len(solved & names), len(names), cost[column]) for column, solved in columns.items()}

    sources = {task.source for task in tasks}
    by_source = {source: shares({task.name for task in tasks if task.source == source}) for source in sorted(sources)}
    return AccuracyTable(shares({task.name for task in tasks}), by_source)


# rounds


@dataclass(frozen=True)
class Round:
    """What one round ended with: the table of each test set, and how many programs had a proof by then."""

    number: int
    tables: dict[str, AccuracyTable]
    proofs: int
    repairs: int
    draws: int


@dataclass(frozen=True)
class Evolution:
    """All rounds, and the last policy."""

    rounds: tuple[Round, ...]
    policy: Policy


def evolve(
    programs: Sequence[Task], tests: Mapping[str, Sequence[Task]], out: Path, *, rounds: int = 2, samples: int = 6,
    first: float = 0.125, edition: str = "current", seed: int = 0, limits: Limits | None = None,
    progress: Callable[[str], None] = lambda line: None, k: Sequence[int] = (1,), least_steps: int = 800,
) -> Evolution:  # fmt: skip
    """Round 0: search proves the `first` part of the programs and a policy is trained on that. Each later round: the
    policy draws `samples` proofs for every unsolved program and 2 for solved ones, the verifier sorts them, and a new
    policy is trained from scratch on all right proofs and repairs. Each round is a folder in `out`; finished ones are
    read, not run again."""
    limits = limits or Limits()
    out.mkdir(parents=True, exist_ok=True)
    progress(f"reading {len(programs)} programs")
    shown = menus(programs, edition=edition, workers=limits.workers)
    tested = {name: menus(tasks, edition=edition, workers=limits.workers) for name, tasks in tests.items()}
    proofs: dict[str, list[frozenset[int]]] = {}
    harmless: dict[str, frozenset[int]] = {}
    repairs: list[tuple[str, Example]] = []
    made: list[Round] = []
    policy = Policy(seed)
    for number in range(rounds + 1):
        folder = out / f"round-{number}"
        folder.mkdir(exist_ok=True)
        verdicts = Verdicts(edition, limits, folder / "attempts.jsonl")
        if number == 0:
            chosen = [task for task in programs if task.name in shown][: max(1, int(first * len(programs)))]
            progress(f"round 0: search on {len(chosen)} programs")
            _searched(chosen, shown, proofs, edition, limits, folder / "search.jsonl")
        else:
            draws = _drawn(shown, policy, proofs, samples, number, seed, verdicts)
            progress(f"round {number}: {len(draws)} draws, {sum(draw.verdict.ok for draw in draws)} right")
            _keep(shown, draws, proofs, edition)
            repairs += _triples(shown, draws, proofs)
        _label(shown, proofs, harmless, edition, limits)
        examples = [
            Example(shown[name], right, harmless[name] - right) for name, found in proofs.items() for right in found
        ]
        fixes = [replace(one, harmless=harmless[name] - one.right) for name, one in repairs]
        policy = train([*examples, *fixes], seed=seed, least_steps=least_steps)
        policy.save(folder / "model.npz")
        tables = {
            name: accuracy(tasks, policy, k=k, edition=edition, seed=seed, limits=limits, shown=tested[name],
                           path=folder / f"test-{name}.jsonl")
            for name, tasks in tests.items()
        }  # fmt: skip
        done = Round(number, tables, len(proofs), len(repairs), verdicts.asked)
        made.append(done)
        _write(
            folder / "sft.jsonl",
            [_example_row(name, shown[name], right) for name, found in sorted(proofs.items()) for right in found],
        )
        _write(folder / "metrics.json", [_round_row(done)])
        progress(f"round {number}: " + "; ".join(f"{name} {describe(table)}" for name, table in tables.items()))
    return Evolution(tuple(made), policy)


def describe(table: AccuracyTable) -> str:
    """One line: each column's share with its interval."""
    return ", ".join(
        f"{column} {share.value:.1f} % [{share.interval[0]:.1f}, {share.interval[1]:.1f}] of {share.total}"
        for column, share in table.total.items()
    )


def _searched(
    tasks: Sequence[Task], shown: dict[str, Menu], proofs: dict[str, list[frozenset[int]]], edition: str,
    limits: Limits, path: Path,
) -> None:  # fmt: skip
    known: dict[str, list[dict[str, Any]]] = {}
    if path.exists():
        known = {row["task"]: row["added"] for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}
    missing = [task for task in tasks if task.name not in known]
    for task, proof in zip(missing, prove_many([t.text for t in missing], edition=edition, limits=limits), strict=True):
        added = [{"kind": one.place.kind, "offset": one.place.offset, "text": one.text} for one in proof.added]
        known[task.name] = added if proof.ok else []
    _write(path, [{"task": task.name, "added": known[task.name]} for task in tasks])
    for task in tasks:
        places = {(one["kind"], one["offset"], one["text"]) for one in known[task.name]}
        right = _numbers(shown[task.name], places)
        if known[task.name] and len(right) == len(places):
            proofs.setdefault(task.name, []).append(right)


def _label(
    shown: dict[str, Menu], proofs: dict[str, list[frozenset[int]]], harmless: dict[str, frozenset[int]],
    edition: str, limits: Limits,
) -> None:  # fmt: skip
    """For programs with a proof: which of their other candidates hold too."""
    new = [name for name in proofs if name not in harmless]
    if limits.workers <= 1 or len(new) <= 1:
        harmless.update({name: _held(shown[name], edition=edition) for name in new})
        return
    with ProcessPoolExecutor(limits.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        held = pool.map(partial(_held, edition=edition), [shown[name] for name in new])
        harmless.update(zip(new, held, strict=True))


def _held(shown: Menu, *, edition: str) -> frozenset[int]:
    held = set(inductive(shown.task, shown.candidates, edition=edition))
    return frozenset(number for number, one in enumerate(shown.candidates) if one in held)


def _numbers(shown: Menu, places: set[tuple[str, int, str]]) -> frozenset[int]:
    return frozenset(
        number for number, one in enumerate(shown.candidates)
        if (one.place.kind, one.place.offset, one.text) in places
    )  # fmt: skip


def _drawn(
    shown: dict[str, Menu], policy: Policy, proofs: dict[str, list[frozenset[int]]], samples: int, number: int,
    seed: int, verdicts: Verdicts,
) -> list[_Draw]:  # fmt: skip
    """The greedy draw and samples of every program, and one repair of what failed."""
    draws = []
    for name, one in shown.items():
        draws.append(_Draw(f"{name}/greedy", name, policy.draw(one)))
        draws += [
            _sample(policy, one, name, f"{name}/{turn}", _entropy(seed, number, name, turn))
            for turn in range(2 if name in proofs else samples)
        ]
    _judge(shown, draws, verdicts)
    failed = [draw for draw in draws if not draw.verdict.ok]
    return [*draws, *_judge(shown, [_repair(policy, shown, draw, 1, TEMPERATURE, seed) for draw in failed], verdicts)]


def _keep(
    shown: dict[str, Menu], draws: Sequence[_Draw], proofs: dict[str, list[frozenset[int]]], edition: str
) -> None:
    """Minimal versions of the right draws, for programs that have no proof yet."""
    for draw in draws:
        if not draw.verdict.ok or draw.task in proofs:
            continue
        one = shown[draw.task]
        added: list[Candidate] = [one.candidates[number] for number in sorted(draw.chosen)]
        added += [candidate for candidate in one.candidates if candidate.place.kind == "decreases"]
        least = smallest(one.task, added, edition=edition)
        if least is not None:
            places = {(kept.place.kind, kept.place.offset, kept.text) for kept in least}
            proofs.setdefault(draw.task, []).append(_numbers(one, places))


def _triples(
    shown: dict[str, Menu], draws: Sequence[_Draw], proofs: dict[str, list[frozenset[int]]]
) -> list[tuple[str, Example]]:
    """(wrong, what the verifier said, nearest right) of failed draws, by task."""
    found: list[tuple[str, Example]] = []
    count: dict[str, int] = {}
    for draw in draws:
        known = proofs.get(draw.task)
        if draw.verdict.ok or not known or count.get(draw.task, 0) >= _MOST_REPAIRS or "+" in draw.name:
            continue
        count[draw.task] = count.get(draw.task, 0) + 1
        nearest = min(known, key=lambda right: (len(right ^ draw.chosen), sorted(right)))
        one = shown[draw.task]
        found.append((draw.task, Example(one, nearest, extra=_extra(one, draw))))
    return found


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    part = path.with_name(f"{path.name}.part")
    with part.open("w", encoding="utf-8") as file:
        file.write("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _example_row(name: str, shown: Menu, right: frozenset[int]) -> dict[str, Any]:
    return {"task": name, "program": written(shown, right).text, "added": record(shown, right)}


def _round_row(done: Round) -> dict[str, Any]:
    tables = {
        name: {
            column: {"solved": share.solved, "total": share.total, "draws": share.draws, "interval": share.interval}
            for column, share in table.total.items()
        }
        for name, table in done.tables.items()
    }
    return {**asdict(replace(done, tables={})), "tables": tables}
