"""Discharge by Z3: one session per region, each obligation between push and pop, under a resource limit.

A script is text; its digest with the options and the solver's version is its key in the verdict cache."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from systems.safe.syntax import BackendProblem
from systems.safe.theory import OPTIONS

_ANSWER = re.compile(r"^(unsat|sat|unknown|timeout)$|^\(:rlimit (\d+)\)$|^\(error (.*)\)$", re.MULTILINE)


@dataclass(frozen=True)
class Script:
    """SMT-LIB text with as many checks as `goals`."""

    text: str
    goals: int


@dataclass(frozen=True)
class Answer:
    """For each check `proved`, `failed` or `resource_limit`; the resource units that each took."""

    verdicts: tuple[str, ...]
    rlimits: tuple[int, ...]


def script(
    prelude: Sequence[str], commands: Sequence[str], goals: int, rlimit: int, seconds: float, nonlinear: bool
) -> Script:
    """The whole text that decides a region."""
    options = (
        OPTIONS.replace("(set-option :smt.arith.nl false)", "(set-option :smt.arith.nl true)") if nonlinear else OPTIONS
    )
    limits = f"(set-option :rlimit {rlimit})\n(set-option :timeout {int(seconds * 1000)})\n"
    return Script("\n".join([options + limits + "(get-info :rlimit)", *prelude, *commands]), goals)


def solver_version() -> str:
    """The version of the solver library."""
    import z3

    return z3.get_version_string()


@cache
def code_digest() -> str:
    """A digest of this package's own code: another translation may mean another verdict."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def solve(one: Script, rlimit: int) -> Answer:
    """Run a script in a session of its own. Raises BackendProblem when the solver does not understand it."""
    import z3

    if not one.goals:
        return Answer((), ())
    context = z3.Context()
    try:
        output = z3.Z3_eval_smtlib2_string(context.ref(), one.text)
    except z3.Z3Exception as error:
        output = error.value.decode() if isinstance(error.value, bytes) else str(error.value)
    return read(output, one.goals, rlimit)


def read(output: str, goals: int, rlimit: int) -> Answer:
    """The answers in the solver's output. Only `unsat` proves anything, and nothing does after a cancelled command:
    from there on the session's state is not what the script says."""
    verdicts: list[str] = []
    rlimits: list[int] = []
    last: str | None = None
    before = 0
    for match in _ANSWER.finditer(output):
        verdict, units, error = match.groups()
        if error is not None:
            if "canceled" not in error:
                raise BackendProblem(f"the solver refused the script: {error}")
            missing = goals - len(verdicts)
            return Answer((*verdicts, *["resource_limit"] * missing), (*rlimits, *[0] * missing))
        if verdict is not None:
            last = verdict
        elif last is None:
            before = int(units)
        else:
            used = int(units) - before
            before = int(units)
            limited = last != "unsat" and used >= rlimit
            verdicts.append("proved" if last == "unsat" else "resource_limit" if limited else "failed")
            rlimits.append(used)
            last = None
    if len(verdicts) != goals:
        raise BackendProblem(f"the solver answered {len(verdicts)} of {goals} checks: {output[:300]}")
    return Answer(tuple(verdicts), tuple(rlimits))


def cross_check(one: Script, seconds: float = 20.0) -> tuple[str, ...]:
    """The same script decided by cvc5: for each check `proved` or `unknown`. Raises BackendProblem without cvc5."""
    try:
        import cvc5
    except ImportError as error:
        raise BackendProblem("the cross-check needs cvc5: pip install cvc5") from error
    lines = [line for line in one.text.splitlines() if not line.startswith(("(set-option", "(get-info"))]
    text = "\n".join(lines).replace("(push)", "(push 1)").replace("(pop)", "(pop 1)")
    solver = cvc5.Solver()
    solver.setOption("incremental", "true")
    solver.setOption("tlimit-per", str(int(seconds * 1000)))
    solver.setLogic("ALL")
    parser = cvc5.InputParser(solver)
    parser.setStringInput(cvc5.InputLanguage.SMT_LIB_2_6, text, "script")
    symbols = parser.getSymbolManager()
    verdicts: list[str] = []
    while True:
        command = parser.nextCommand()
        if command.isNull():
            return tuple(verdicts)
        answer = command.invoke(solver, symbols).strip()
        if answer.startswith("(error"):
            raise BackendProblem(f"cvc5 refused the script: {answer}")
        if answer in ("sat", "unsat", "unknown"):
            verdicts.append("proved" if answer == "unsat" else "unknown")


class Cache:
    """Answers on disk by content. A damaged entry is ignored and written again; entries appear whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def key(self, text: str) -> str:
        """The name of what is known about `text` with this solver and this code."""
        return hashlib.sha256(f"{solver_version()}\n{code_digest()}\n{text}".encode()).hexdigest()

    def get(self, key: str, goals: int) -> Answer | None:
        entry = self.load(key)
        try:
            assert isinstance(entry, dict)
            answer = Answer(tuple(map(str, entry["verdicts"])), tuple(map(int, entry["rlimits"])))
        except (AssertionError, ValueError, KeyError, TypeError):
            return None
        whole = len(answer.verdicts) == len(answer.rlimits) == goals
        known = set(answer.verdicts) <= {"proved", "failed", "resource_limit"}
        return answer if whole and known else None

    def put(self, key: str, answer: Answer) -> None:
        self.store(key, {"verdicts": answer.verdicts, "rlimits": answer.rlimits})

    def load(self, key: str) -> object:
        """What stands under the key, or None."""
        try:
            return json.loads((self.folder / key[:2] / f"{key}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def store(self, key: str, entry: object) -> None:
        path = self.folder / key[:2] / f"{key}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8") as file:
            json.dump(entry, file)
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(path)
