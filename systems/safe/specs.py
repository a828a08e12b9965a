"""Specifications chosen by test cases: how often a candidate holds, and how many wrong results it refuses.

The code is the oracle: a case is a run. Correctness is the share of cases on which a specification holds, completeness
the share of cases with a changed result that it refuses. What cannot be decided counts against both."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from systems.safe import syntax as s
from systems.safe.check import check
from systems.safe.contexts import Scope, context
from systems.safe.evaluate import Environment, Made, Value, integer_range
from systems.safe.interp import Inputs, Interpreter, constants
from systems.safe.parser import parse
from systems.safe.printer import show_program
from systems.safe.syntax import ProgramProblem, SafeError
from systems.safe.types import LISTS, Signature, Ty, settled, strip
from systems.safe.verifier import verify

CORRECT = 0.8
COMPLETE = 0.6
KEPT = 3
CASES = 20
MUTANTS = 5


@dataclass(frozen=True)
class SpecScore:
    """Shares from 0 to 1, and on how many cases and changed cases they rest."""

    correctness: float
    completeness: float
    cases: int
    mutants: int

    def passes(self, correct: float = CORRECT, complete: float = COMPLETE) -> bool:
        """Whether the specification is kept."""
        return self.correctness >= correct and self.completeness >= complete


@dataclass(frozen=True)
class ScoredSpec:
    """A specification as ensures clauses, the program that carries it, and its score."""

    ensures: tuple[str, ...]
    program: str
    score: SpecScore


@dataclass(frozen=True)
class Case:
    """One run, and the same run with each of some wrong results in place of its own."""

    right: Environment
    wrong: tuple[Environment, ...]


def cases(interpreter: Interpreter, signature: Signature, *, count: int = CASES, seed: int = 0) -> list[Case]:
    """Runs of a function with wrong results of each."""
    found = []
    chance = random.Random(seed)
    outputs = _outputs(signature)
    for run in Inputs(interpreter, seed).runs(signature, count):
        if run.fault:
            continue
        wrong: list[Environment] = []
        seen: set[tuple[Value, ...]] = {tuple(run.final[name] for name, _ in outputs)}
        for _ in range(MUTANTS * 8):
            if len(wrong) == MUTANTS or not outputs:
                break
            name, kind = chance.choice(outputs)
            changed = {**run.final, name: mutated(run.final[name], kind, chance)}
            values = tuple(changed[other] for other, _ in outputs)
            if values not in seen:
                seen.add(values)
                wrong.append(changed)
        found.append(Case(run.final, tuple(wrong)))
    return found


def _outputs(signature: Signature) -> list[tuple[str, Ty]]:
    """What a function gives: its result, and what it changes."""
    kind = settled(strip(signature.result), "int")
    found = [] if kind == Ty("tuple") else [(signature.result_local.unique, kind)]
    return found + [
        (param.unique, settled(strip(param.type), "int"))
        for param in signature.params
        if isinstance(param.type, Ty) and param.type.name == "&mut"
    ]


def mutated(value: Value, kind: Ty, chance: random.Random) -> Value:
    """A value of the same type that is near: a number one off, negated, zero or extreme; a sequence with an element
    dropped, repeated, swapped or changed, or empty. May be the same value where there is no other."""
    args = [arg for arg in kind.args if isinstance(arg, Ty)]
    bounds = integer_range(kind.name)
    if kind.name == "bool":
        return not value
    if bounds is not None:
        other = chance.choice((value + 1, value - 1, -value, 0, bounds[0], bounds[1], value + 2))
        return other if bounds[0] <= other <= bounds[1] else value
    if kind.name in LISTS | {"String", "str"}:
        return _changed_sequence(value, args[0] if args else Ty("char"), chance)
    if kind.name == "tuple" and args:
        at = chance.randrange(len(args))
        return (*value[:at], mutated(value[at], args[at], chance), *value[at + 1 :])
    if kind.name == "Option":
        inner = args[0]
        if value.variant == "None":
            low = integer_range(inner.name)
            return Made("Some", (chance.randint(0, 2),)) if low is not None else value
        return Made("None") if chance.random() < 0.5 else Made("Some", (mutated(value.fields[0], inner, chance),))
    return value


def _changed_sequence(value: tuple[Value, ...], element: Ty, chance: random.Random) -> tuple[Value, ...]:
    at = chance.randrange(len(value)) if value else 0
    match chance.randrange(5) if value else 4:
        case 0:
            return (*value[:at], *value[at + 1 :])
        case 1:
            return (*value[:at], value[at], *value[at:])
        case 2:
            other = chance.randrange(len(value))
            items = list(value)
            items[at], items[other] = items[other], items[at]
            return tuple(items)
        case 3:
            return (*value[:at], mutated(value[at], element, chance), *value[at + 1 :])
    if value:
        return ()
    return (0,) if integer_range(element.name) is not None else value


def score_spec(source: str, function: str, *, count: int = CASES, seed: int = 0) -> SpecScore:
    """The score of a function's own ensures clauses. Raises SafeError where there is no such function, ProgramProblem
    for a program that cannot be read."""
    interpreter, signature = _found(source, function)
    return _score(interpreter, signature, cases(interpreter, signature, count=count, seed=seed))


def _found(source: str, function: str) -> tuple[Interpreter, Signature]:
    typing = check(parse(source))
    signature = typing.functions.get(function)
    if signature is None or signature.mode != "exec":
        names = ", ".join(name for name, one in typing.functions.items() if one.mode == "exec")
        raise SafeError(f"no executable function `{function}`: there are {names or 'none'}")
    return Interpreter(typing), signature


def _score(interpreter: Interpreter, signature: Signature, tried: Sequence[Case]) -> SpecScore:
    holds = partial(_all_hold, interpreter, signature)
    right = sum(holds(case.right) is True for case in tried)
    wrong = [env for case in tried for env in case.wrong]
    refused = sum(holds(env) is False for env in wrong)
    return SpecScore(
        right / len(tried) if tried else 0.0, refused / len(wrong) if wrong else 0.0, len(tried), len(wrong)
    )  # fmt: skip


def _all_hold(interpreter: Interpreter, signature: Signature, env: Environment) -> bool | None:
    answers = [interpreter.evaluator.holds(clause, env) for clause in signature.fn.ensures]
    if False in answers:
        return False
    return None if None in answers else True


def with_ensures(source: str, function: str, clauses: Sequence[str]) -> str:
    """The program with other ensures clauses for a function, in the printer's layout."""
    from systems.safe.parser import Parser

    program = parse(source)
    parsed = tuple(Parser(text).expr() for text in clauses)
    items = tuple(
        replace(item, ensures=parsed) if isinstance(item, s.Fn) and item.name == function else item
        for item in program.items
    )
    return show_program(replace(program, items=items))


def synthesize_specs(
    source: str, function: str, *, keep: int = KEPT, correct: float = CORRECT, complete: float = COMPLETE,
    seed: int = 0,
) -> list[ScoredSpec]:  # fmt: skip
    """Specifications for a function from templates filled from its code: those that pass the filter, the most complete
    first, at most `keep`, no two that say the same of every case. The function's own ensures clauses are not read.
    Raises SafeError where there is no such function or its result has no name."""
    interpreter, signature = _found(source, function)
    if not signature.fn.result[0] and signature.fn.result[1] is not None:
        raise SafeError(f"`{function}` needs a name for its result, as in `-> (r: T)`")
    singles: list[ScoredSpec] = []
    seen: set[tuple[bool | None, ...]] = set()
    for text in dict.fromkeys(_templates(source, interpreter, signature)):
        try:
            program = with_ensures(source, function, [text])
            found, other = _found(program, function)
        except ProgramProblem:
            continue
        tried = cases(found, other, seed=seed)
        score = _score(found, other, tried)
        verdicts = tuple(_all_hold(found, other, env) for case in tried for env in (case.right, *case.wrong))
        if score.correctness >= correct and score.completeness > 0 and verdicts not in seen:
            seen.add(verdicts)
            singles.append(ScoredSpec((text,), program, score))
    singles.sort(key=lambda one: (-one.score.completeness, len(one.ensures[0]), one.ensures))
    kept: list[ScoredSpec] = []
    for one in [*_joined(source, function, singles, seed), *singles]:
        if one.score.passes(correct, complete) and len(kept) < keep and not any(_same(one, other) for other in kept):
            kept.append(one)
    kept.sort(key=lambda one: -one.score.completeness)
    return kept


def _joined(source: str, function: str, singles: Sequence[ScoredSpec], seed: int) -> Iterator[ScoredSpec]:
    """The best clause together with each that makes it more complete."""
    clauses: list[str] = []
    best = 0.0
    for one in singles:
        program = with_ensures(source, function, [*clauses, one.ensures[0]])
        score = score_spec(program, function, seed=seed)
        if score.completeness > best:
            clauses, best = [*clauses, one.ensures[0]], score.completeness
            if len(clauses) > 1:
                yield ScoredSpec(tuple(clauses), program, score)


def _same(one: ScoredSpec, other: ScoredSpec) -> bool:
    return set(one.ensures) == set(other.ensures)


def _templates(source: str, interpreter: Interpreter, signature: Signature) -> Iterator[str]:
    """Clauses by the types of result and parameters and by the code's own conditions and stores."""
    typing = interpreter.typing
    result = signature.fn.result[0] or "result"
    kind = settled(strip(signature.result), "int")
    lists = [param.name for param in signature.params if settled(strip(param.type), "int").name in LISTS]
    changed = [p.name for p in signature.params if isinstance(p.type, Ty) and p.type.name == "&mut"]
    numbers = [p.name for p in signature.params if integer_range(settled(strip(p.type), "int").name) is not None]
    values = [*numbers, *(str(value) for value in constants(s.Program((signature.fn,))))]
    where = context(source, typing, signature)
    tests = list(_tests(where.scopes, where.reader.text))
    if kind.name == "bool":
        for array in lists:
            for test in tests:
                for claim in (test, f"!({test})"):
                    yield f"{result} == (forall|k: int| 0 <= k < {array}.len() ==> ({claim}))"
                    yield f"{result} == (exists|k: int| 0 <= k < {array}.len() && ({claim}))"
    if integer_range(kind.name) is not None:
        for array in lists:
            yield f"{result} <= {array}.len()"
            yield f"{result} < {array}.len()"
            for op in ("<=", ">="):
                yield f"forall|k: int| 0 <= k < {array}.len() ==> {array}[k] {op} {result}"
                yield f"forall|k: int| 0 <= k < {array}.len() ==> {array}[k] {op} {array}[{result} as int]"
            yield f"exists|k: int| 0 <= k < {array}.len() && {array}[k] == {result}"
        for one in values:
            yield f"{result} == {one}"
            for other in values:
                yield f"{result} == {one} * {other}"
                yield f"{result} == {one} + {other}"
    made = [result] if kind.name in LISTS else []
    for out in [*made, *changed]:
        for array in [*lists, *(f"old({name})" for name in changed)]:
            if array == out:
                continue
            yield f"{out}.len() == {array}.len()"
            yield f"{out}.len() <= {array}.len()"
            yield f"forall|k: int| 0 <= k < {out}.len() ==> {array}@.contains({out}[k])"
            yield f"forall|k: int| 0 <= k < {array}.len() ==> {out}[k] == {array}[k]"
            for number in numbers:
                yield f"{out}@ =~= {array}@.subrange(0, {number} as int)"
                yield f"{out}@ =~= {array}@.subrange({number} as int, {array}.len() as int)"
        for value in values:
            yield f"forall|k: int| 0 <= k < {out}.len() ==> {out}[k] == {value}"
        for one in lists:
            for other in lists:
                for op in "+-^":
                    if one != other:
                        yield f"forall|k: int| 0 <= k < {out}.len() ==> {out}[k] == {one}[k] {op} {other}[k]"
        for test in tests:
            yield f"forall|k: int| 0 <= k < {out}.len() ==> ({test})"


def _tests(scopes: Sequence[Scope], text: object) -> Iterator[str]:
    """The code's conditions at a place `k` of their loop."""
    from systems.safe.spec import nodes

    assert callable(text)
    for scope in scopes:
        for node in nodes(scope.loop.body):
            if isinstance(node, s.If) and not isinstance(node.condition, s.LetCondition):
                shown = text(node.condition, dict.fromkeys(scope.counters[:1], "k"))
                if shown is not None:
                    yield shown


def thresholds(sources: Sequence[tuple[str, str]], *, steps: int = 5) -> dict[tuple[float, float], int]:
    """How many of the (program, function) pairs would be kept at each pair of thresholds from 0 to 1."""
    scores = [score_spec(source, function) for source, function in sources]
    marks = [place / steps for place in range(steps + 1)]
    return {(a, b): sum(score.passes(a, b) for score in scores) for a in marks for b in marks}


def equivalent(source: str, function: str, one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether the solver shows that two specifications say the same of any result (both ways)."""
    program = parse(source)
    fn = next(item for item in program.items if isinstance(item, s.Fn) and item.name == function)
    for given, wanted in ((one, other), (other, one)):
        params = ", ".join(_param(param) for param in fn.params)
        result = f", {fn.result[0]}: {_shown(fn.result[1])}" if fn.result[1] is not None else ""
        rest = [item for item in program.items if isinstance(item, s.Fn) and item.mode == "spec"]
        text = show_program(s.Program(tuple(rest)))
        lemma = (
            f"proof fn says_the_same({params}{result})\n    requires {', '.join(given)},\n"
            f"    ensures {', '.join(wanted)},\n{{\n}}\n"
        )
        if not verify(text.replace("} // verus!", lemma + "} // verus!")).ok:
            return False
    return True


def _param(param: s.Param) -> str:
    return f"{param.name}: {_shown(param.type)}"


def _shown(type_: s.TypeExpr | None) -> str:
    from systems.safe.printer import show_type

    assert type_ is not None
    return show_type(type_)
