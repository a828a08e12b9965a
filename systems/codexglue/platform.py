"""The evaluation platform: two files in, the official score out, or a list of everything that is wrong with them.

    evaluate("code_translation", "test.cs", "my.output", variant="java-cs")["bleu"]     # 77.49
    validate("defect_detection", "answers.jsonl", "predictions.txt")                    # [] or problems

`compat="strict"`, the default, refuses what the official scripts let pass: predictions that are missing, repeated,
unknown or fewer than the answers. `compat="official"` gives the number that they would print.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from operator import eq
from pathlib import Path
from typing import Any, Literal

from systems.codexglue import metrics
from systems.codexglue.codebleu import codebleu
from systems.codexglue.files import Part, Table, at_most, by_line, read
from systems.codexglue.metrics import EditBackend
from systems.codexglue.tasks import MissingData, Problem, Task, ValidationError, task

Compat = Literal["strict", "official"]
CODE_LANGUAGE: Mapping[str, str] = {
    "java-cs": "c_sharp", "cs-java": "java", "small": "java", "medium": "java", "py150": "python", "javaCorpus": "java",
}  # fmt: skip
"""Language of what is written, by variant."""


class EvaluationWarning(UserWarning):
    """A score that says less than it seems to."""


@dataclass(frozen=True)
class Scores(Mapping[str, float]):
    """Scores by metric as the official evaluator prints them (`official`), and without rounding (`exact`), in its
    units. rows: by metric, one number a row where the metric has one. meta: what the scores depend on.
    """

    official: Mapping[str, float]
    exact: Mapping[str, float]
    rows: Mapping[str, Sequence[float]]
    meta: Mapping[str, Any]

    def __getitem__(self, metric: str) -> float:
        return self.official[metric]

    def __iter__(self) -> Iterator[str]:
        return iter(self.official)

    def __len__(self) -> int:
        return len(self.official)


@dataclass(frozen=True)
class _Options:
    variant: str | None
    lang: str | None
    compat: Compat
    edit_backend: EditBackend
    with_codebleu: bool
    jobs: int


@dataclass
class _Found:
    """What a scorer found, as it goes along."""

    exact: dict[str, float]
    official: dict[str, float]
    rows: dict[str, Sequence[float]]
    meta: dict[str, Any]

    def add(self, name: str, exact: float, digits: int | None = None, rows: Sequence[float] | None = None) -> None:
        self.exact[name] = exact
        self.official[name] = exact if digits is None else round(exact, digits)
        if rows is not None:
            self.rows[name] = rows


# ----------------------------------------------------------------------------------------------------- validation


def validate(
    name: str, answers: Path | str, predictions: Path | str, variant: str | None = None, lang: str | None = None
) -> list[Problem]:
    """What is wrong with a prediction file (or with the answers): empty where nothing is.

    At most 20 problems of a kind, and a count of the rest. Raises KeyError for an unknown task or variant.
    """
    try:
        for one in _files(task(name), Path(answers), Path(predictions), variant, lang):
            gold, said = _tables(task(name), *one[1:])
            problems = _all_problems(task(name), gold, said)
            if problems:
                return at_most(problems)
    except ValidationError as error:
        return list(error.problems)
    except MissingData as error:
        return [Problem(0, "", "missing", str(error))]
    return []


def _files(
    one: Task, answers: Path, predictions: Path, variant: str | None, lang: str | None
) -> list[tuple[str, Path, Path]]:
    """(variant, answers, predictions) of each pair of files that belongs together."""
    one.check_variant(variant)
    if one.board != "cloze" or not answers.is_dir():
        return [(variant or "", answers, predictions)]
    wanted = [lang or variant] if lang or variant else [name for name in one.variants if (answers / name).is_dir()]
    if not wanted:
        raise MissingData(f"{answers} has none of the folders {', '.join(one.variants)}, with answers.txt in each")
    return [(str(name), answers / str(name) / "answers.txt", predictions / str(name) / "predictions.txt")
            for name in wanted]  # fmt: skip


def _tables(one: Task, answers: Path, predictions: Path) -> tuple[Table, Table]:
    found = []
    parts: tuple[tuple[Part, Path], ...] = (("answers", answers), ("predictions", predictions))
    for part, path in parts:
        found.append(read(one, part, path))
    if answers.resolve() == predictions.resolve():
        warnings.warn(f"{predictions} is the answer file itself", EvaluationWarning, 3)
    return found[0], found[1]


def _all_problems(one: Task, gold: Table, said: Table) -> list[Problem]:
    problems = [*gold.problems, *said.problems]
    if one.name == "code_summarization":  # the official reader takes several references for one id
        problems = [problem for problem in problems if problem.kind != "duplicate" or problem not in gold.problems]
    if not gold.rows and not gold.problems:
        problems.append(Problem(0, "", "count", f"{gold.path.name}: no rows"))
    if by_line(one):
        if len(gold.rows) != len(said.rows):
            problems.append(
                Problem(0, "", "count", f"{said.path.name}: {len(gold.rows)} lines expected, {len(said.rows)} found")
            )
    elif gold.rows.keys() != said.rows.keys():
        for key in gold.rows:
            if key not in said.rows:
                problems.append(Problem(0, key, "missing", f"{said.path.name}: no prediction for {_shown(key)}"))
        for key in said.rows:
            if key not in gold.rows:
                problems.append(
                    Problem(said.line_of(key), key, "unknown", f"{said.path.name}: {_shown(key)} is not in the answers")
                )
    check = _CHECKS.get(one.name)
    if check is not None:
        check(gold, said, problems)
    return problems


def _shown(key: str) -> str:
    return repr(key.replace("\t", " "))


def _check_rankings(gold: Table, said: Table, problems: list[Problem]) -> None:
    def note(key: str, kind: str, message: str) -> None:
        problems.append(Problem(said.line_of(key), key, kind, f"{said.path.name}: {message}"))

    for key, ranked in said.rows.items():
        wanted = gold.rows.get(key)
        if wanted is None:
            continue
        distinct = set(ranked)
        if len(distinct) != len(ranked):
            twice = next(item for item in ranked if ranked.count(item) > 1)
            note(key, "duplicate", f"duplicate ids in query {key!r}: {twice!r}")
        if isinstance(wanted, list) and len(ranked) != len(wanted):
            note(key, "length", f"{len(ranked)} ids for query {key!r}, expected {len(wanted)}")
        if isinstance(wanted, list) and key in distinct:
            note(key, "label", f"query {key!r} is among its own answers")


def _check_tokens(gold: Table, said: Table, problems: list[Problem]) -> None:
    if len(gold.rows) != len(said.rows):
        return
    counts = said.matches = metrics.token_matches(list(gold.rows.values()), list(said.rows.values()))
    for index in (counts[:, 0] != counts[:, 1]).nonzero()[0].tolist():
        message = f"{said.path.name}: {counts[index, 1]} tokens, expected {counts[index, 0]}"
        problems.append(Problem(said.numbers[index], str(index + 1), "length", message))


def _check_words(gold: Table, said: Table, problems: list[Problem]) -> None:
    for key, word in said.rows.items():
        if not word.strip() or len(word.split()) > 1:
            problems.append(
                Problem(said.line_of(key), key, "candidate", f"{said.path.name}: {word!r} is not one candidate word")
            )


_CHECKS: dict[str, Callable[[Table, Table, list[Problem]], None]] = {
    "clone_detection_poj104": _check_rankings,
    "code_search_adv": _check_rankings,
    "code_completion_token": _check_tokens,
    "cloze_all": _check_words,
    "cloze_maxmin": _check_words,
}


def _as_official(one: Task, gold: Table, said: Table) -> list[Problem]:
    """What the official evaluator stumbles over too, without a score. The rest is let pass, and `said` made to fit."""
    for key, value in said.repeated:
        said.rows[key] = value  # the last one wins
    said.repeated.clear()
    serious = [
        problem
        for problem in (*gold.problems, *said.problems)
        if problem.kind != "duplicate" and not (one.name == "code_summarization" and problem.kind == "columns")
    ]
    if one.name in {"code_summarization", "doc_translation"}:
        return serious
    lengths_count = one.name != "code_search_adv"
    return serious + [
        problem
        for problem in _all_problems(one, gold, said)
        if problem.kind in {"missing", "count"} or (problem.kind == "length" and lengths_count)
    ]


# ----------------------------------------------------------------------------------------------------- evaluation


def evaluate(
    name: str, answers: Path | str, predictions: Path | str, variant: str | None = None, *, lang: str | None = None,
    compat: Compat = "strict", edit_backend: EditBackend = "difflib", with_codebleu: bool = True, jobs: int = 1,
) -> Scores:  # fmt: skip
    """The scores of a prediction file.

    variant: of the task, which decides the language of CodeBLEU (`lang` overrides it; without either it is left out).
    jobs: processes for CodeBLEU. Raises KeyError for an unknown task or variant, MissingData, and ValidationError
    with everything that is wrong.
    """
    one = task(name)
    options = _Options(variant, lang, compat, edit_backend, with_codebleu, jobs)
    found = _Found({}, {}, {}, {})
    sums = {"answers": hashlib.sha256(), "predictions": hashlib.sha256()}
    hits = total = 0.0
    files = _files(one, Path(answers), Path(predictions), variant, lang)
    for part, gold_path, said_path in files:
        gold, said = _tables(one, gold_path, said_path)
        problems = _all_problems(one, gold, said) if compat == "strict" else _as_official(one, gold, said)
        if problems:
            raise ValidationError(at_most(problems))
        for table, digest in ((gold, sums["answers"]), (said, sums["predictions"])):
            with table.path.open("rb") as file:
                digest.update(file.read())
        scored = _Found({}, {}, {}, {})
        _SCORERS[one.name](gold, said, options, scored)
        if len(files) == 1:
            found = scored
        else:
            found.add(f"accuracy[{part}]", scored.exact["accuracy"])
            hits += scored.exact["accuracy"] * len(gold.rows)
        total += len(gold.rows)
    if len(files) > 1:
        found.add("accuracy", hits / total)
    meta = {
        "task": name, "variant": variant, "compat": compat, "rows": int(total), "maat": version("maat"),
        "sha256": {part: digest.hexdigest() for part, digest in sums.items()}, **found.meta,
    }  # fmt: skip
    return Scores(found.official, found.exact, found.rows, meta)


def _aligned(gold: Table, said: Table) -> tuple[list[Any], list[Any]]:
    return list(gold.rows.values()), list(map(said.rows.__getitem__, gold.rows))


def _score_binary(names: Sequence[str]) -> Callable[[Table, Table, _Options, _Found], None]:
    def score(gold: Table, said: Table, options: _Options, found: _Found) -> None:
        wanted, given = _aligned(gold, said)
        counts = metrics.binary_counts(wanted, given)
        undefined = [name for name in counts.undefined if name in names or "f1" in names]
        if undefined:
            warnings.warn(f"{' and '.join(undefined)} undefined: taken to be 0", EvaluationWarning, 4)
        for name in names:
            found.add(name, getattr(counts, name))
        found.rows["accuracy"] = [float(a == b) for a, b in zip(wanted, given, strict=True)]

    return score


def _score_labels(gold: Table, said: Table, options: _Options, found: _Found) -> None:
    wanted, given = _aligned(gold, said)
    right = list(map(float, map(eq, wanted, given)))
    found.add("accuracy", metrics.mean(right), rows=right)


def _score_map(gold: Table, said: Table, options: _Options, found: _Found) -> None:
    values = [metrics.average_precision(set(ids), said.rows[key]) for key, ids in gold.rows.items()]
    found.add("map@r", metrics.mean(values), 4, values)


def _score_mrr(gold: Table, said: Table, options: _Options, found: _Found) -> None:
    values = [metrics.reciprocal_rank(code, said.rows[key]) for key, code in gold.rows.items()]
    found.add("mrr", metrics.mean(values), 4, values)


def _score_tokens(gold: Table, said: Table, options: _Options, found: _Found) -> None:
    *_, scored, right = said.matches.sum(0).tolist()
    found.meta["tokens"] = scored
    found.add("accuracy", 100 * right / scored if scored else 0.0, 2)


def _score_line(gold: Table, said: Table, options: _Options, found: _Found) -> None:
    wanted, given = (list(map(metrics.without_literals, texts)) for texts in _aligned(gold, said))
    given = [text.strip() for text in given]
    same = [float(a.split() == b.split()) for a, b in zip(wanted, given, strict=True)]
    found.add("exact_match", 100 * metrics.mean(same), 2, same)
    _add_edits(wanted, given, options, found)


def _add_edits(wanted: Sequence[str], given: Sequence[str], options: _Options, found: _Found) -> None:
    edits = metrics.edit_similarities(wanted, given, options.edit_backend)
    found.meta["edit_backend"] = options.edit_backend
    found.add("edit_sim", metrics.mean(edits), 2, edits)


def _score_method(gold: Table, said: Table, options: _Options, found: _Found) -> None:
    texts = []
    for side in _aligned(gold, said):
        clean = [text.replace("<EOL>", "\n").replace("<INDENT>", " ").replace("<DEDENT>", " ") for text in side]
        texts.append([" ".join(metrics.without_literals(text).split()) for text in clean])
    _add_bleu(texts[0], texts[1], found)
    _add_edits(texts[0], texts[1], options, found)


def _add_bleu(wanted: Sequence[str], given: Sequence[str], found: _Found) -> None:
    score = metrics.bleu(wanted, given)
    if not score.hypothesis_length:
        warnings.warn("all predictions are empty: the score is 0", EvaluationWarning, 4)
    found.add("bleu", 100 * score.score, 2)


def _score_generation(by_tokens: bool) -> Callable[[Table, Table, _Options, _Found], None]:
    def score(gold: Table, said: Table, options: _Options, found: _Found) -> None:
        wanted, given = _aligned(gold, said)
        _add_bleu(wanted, given, found)
        if by_tokens:
            same = [float(a.split() == b.split()) for a, b in zip(wanted, given, strict=True)]
        else:
            same = [float(a.strip() == b.strip()) for a, b in zip(wanted, given, strict=True)]
        found.add("exact_match", 100 * metrics.mean(same), 2, same)
        lang = options.lang or CODE_LANGUAGE.get(options.variant or "", "java" if by_tokens else None)
        if lang is not None and options.with_codebleu:
            score_of_code = codebleu(wanted, given, lang, jobs=options.jobs)
            found.add("codebleu", 100 * score_of_code.score, 2)
            found.meta |= {
                "grammar": score_of_code.grammar, "parse_errors": score_of_code.parse_errors,
                "codebleu_parts": [
                    score_of_code.ngram, score_of_code.weighted, score_of_code.syntax, score_of_code.dataflow
                ],
            }  # fmt: skip

    return score


def _score_documents(gold: Table, said: Table, options: _Options, found: _Found) -> None:
    count = min(len(gold.rows), len(said.rows))
    _add_bleu(list(gold.rows.values())[:count], list(said.rows.values())[:count], found)


def _score_summaries(gold: Table, said: Table, options: _Options, found: _Found) -> None:
    references: dict[str, str | list[str]] = {key: text for key, text in gold.rows.items() if key in said.rows}
    for key, text in gold.repeated:
        if key in references:
            before = references[key]
            references[key] = [*([before] if isinstance(before, str) else before), text]
    said_rows = [said.rows[key] for key in references]
    found.add("smoothed_bleu4", metrics.smoothed_bleu4(list(references.values()), said_rows))
    found.meta["scored"] = len(references)


_SCORERS: Mapping[str, Callable[[Table, Table, _Options, _Found], None]] = {
    "clone_detection_bcb": _score_binary(("f1", "precision", "recall")),
    "clone_detection_poj104": _score_map,
    "defect_detection": _score_labels,
    "cloze_all": _score_labels,
    "cloze_maxmin": _score_labels,
    "code_completion_token": _score_tokens,
    "code_completion_line": _score_line,
    "code_translation": _score_generation(by_tokens=False),
    "code_refinement": _score_generation(by_tokens=False),
    "code_search_adv": _score_mrr,
    "code_search_webquery": _score_binary(("accuracy", "f1", "precision", "recall")),
    "text_to_code": _score_generation(by_tokens=True),
    "code_summarization": _score_summaries,
    "doc_translation": _score_documents,
    "method_generation": _score_method,
    "type_prediction": _score_labels,
}
