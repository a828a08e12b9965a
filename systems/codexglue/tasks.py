"""The benchmark: ten tasks on fourteen data sets, their files and metrics, and the overall score.

    task("code_translation").metrics        # ('bleu', 'exact_match', 'codebleu')
    overall_score({"defect_detection": ...})

    CodexError
    ├── ValidationError    a file breaks the rules of its task; `.problems` names each place
    └── MissingData        a data set is not where it was looked for
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

LANGUAGES = ("ruby", "javascript", "go", "python", "java", "php")
"""Of CodeSearchNet, in the order of the paper's tables."""


class CodexError(Exception):
    """Base of the errors of this system."""


class MissingData(CodexError):
    """A data set is not where it was looked for."""


@dataclass(frozen=True)
class Problem:
    """What is wrong with a file. line: from 1, 0 for the file as a whole; id: of the row, where it has one; kind: one
    of count, columns, encoding, json, label, length, candidate, duplicate, missing, unknown.
    """

    line: int
    id: str
    kind: str
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}" if self.line else self.message


class ValidationError(CodexError):
    """A file breaks the rules of its task. `problems`: all that were found, at most 20 of a kind and a count."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        shown = "\n  ".join(str(problem) for problem in self.problems[:10])
        more = f"\n  and {len(self.problems) - 10} more" if len(self.problems) > 10 else ""
        super().__init__(f"{len(self.problems)} problems:\n  {shown}{more}")


@dataclass(frozen=True)
class Task:
    """A data set with its question. board: the task of the paper that it counts for; category: what goes in and comes
    out; variants: each with files and scores of its own, empty where there is one; rows: (train, valid, test) by
    variant, or by "" ; metrics: what the evaluator gives; main: those that enter the overall score; layout: the files
    of the official folder, by part; hub: name on the Hugging Face hub without its owner.
    """

    name: str
    board: str
    title: str
    category: str
    languages: tuple[str, ...]
    metrics: tuple[str, ...]
    main: tuple[str, ...]
    rows: Mapping[str, tuple[int, int, int]]
    answers: str
    predictions: str
    baseline: str
    hub: str = ""
    variants: tuple[str, ...] = ()

    def check_variant(self, variant: str | None) -> None:
        """Raises KeyError, which lists the variants, for one that the task does not have."""
        if variant is not None and variant not in self.variants:
            known = ", ".join(self.variants) or "no variants"
            raise KeyError(f"{self.name} has no variant {variant!r}; there are {known}")


_PAIRS = ("da-en", "lv-en", "no-en", "zh-en", "en-da", "en-lv", "en-no", "en-zh")
_GENERATION = ("bleu", "exact_match", "codebleu")

TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task(
            "clone_detection_bcb", "clone_detection", "Clone detection, BigCloneBench", "code-code", ("java",),
            ("f1", "precision", "recall"), ("f1",), {"": (901_028, 415_416, 415_416)},
            "idx1 TAB idx2 TAB label, a pair a line", "idx1 TAB idx2 TAB label, a pair a line", "encoder",
            "code_x_glue_cc_clone_detection_big_clone_bench",
        ),
        Task(
            "clone_detection_poj104", "clone_detection", "Clone detection, POJ-104", "code-code", ("c", "cpp"),
            ("map@r",), ("map@r",), {"": (32_000, 8_000, 12_000)},
            'JSON {"index", "answers": [index, ...]} a line: the programs that solve the same problem',
            'JSON {"index", "answers": [index, ...]} a line: as many, the most alike first', "encoder",
            "code_x_glue_cc_clone_detection_poj104",
        ),
        Task(
            "defect_detection", "defect_detection", "Defect detection, Devign", "code-code", ("c",), ("accuracy",),
            ("accuracy",), {"": (21_854, 2_732, 2_732)}, 'JSON {"idx", "target": 0 or 1} a line',
            "idx TAB label, 0 or 1, a line", "encoder", "code_x_glue_cc_defect_detection",
        ),
        Task(
            "cloze_all", "cloze", "Cloze test, all words", "code-code", LANGUAGES, ("accuracy",), ("accuracy",),
            {
                "ruby": (0, 0, 4_437), "javascript": (0, 0, 13_837), "go": (0, 0, 25_282),
                "python": (0, 0, 40_137), "java": (0, 0, 40_492), "php": (0, 0, 51_930),
            },
            "idx<CODESPLIT>word a line; a folder with LANGUAGE/answers.txt, or one file",
            "idx<CODESPLIT>word a line; a folder with LANGUAGE/predictions.txt, or one file", "encoder",
            "code_x_glue_cc_cloze_testing_all", LANGUAGES,
        ),
        Task(
            "cloze_maxmin", "cloze", "Cloze test, max and min", "code-code", LANGUAGES, ("accuracy",), ("accuracy",),
            {
                "ruby": (0, 0, 38), "javascript": (0, 0, 272), "go": (0, 0, 152), "python": (0, 0, 1_264),
                "java": (0, 0, 482), "php": (0, 0, 407),
            },
            "idx<CODESPLIT>word a line; a folder with LANGUAGE/answers.txt, or one file",
            "idx<CODESPLIT>word a line; a folder with LANGUAGE/predictions.txt, or one file", "encoder",
            "code_x_glue_cc_cloze_testing_maxmin", LANGUAGES,
        ),
        Task(
            "code_completion_token", "code_completion", "Code completion, tokens", "code-code", ("python", "java"),
            ("accuracy",), ("accuracy",),
            {"py150": (95_000, 5_000, 50_000), "javaCorpus": (12_934, 7_176, 8_268)},
            "a tokenised file a line, <s> ... </s>", "a tokenised file a line, as many tokens in each", "causal",
            "code_x_glue_cc_code_completion_token", ("py150", "javaCorpus"),
        ),
        Task(
            "code_completion_line", "code_completion", "Code completion, lines", "code-code", ("python", "java"),
            ("exact_match", "edit_sim"), ("exact_match", "edit_sim"),
            {"py150": (0, 0, 10_000), "javaCorpus": (0, 0, 3_000)}, 'JSON {"id", "input", "gt"} a line',
            "a completion a line", "causal", "code_x_glue_cc_code_completion_line", ("py150", "javaCorpus"),
        ),
        Task(
            "code_translation", "code_translation", "Code translation, Java and C#", "code-code", ("java", "c_sharp"),
            _GENERATION, _GENERATION, {"": (10_300, 500, 1_000)}, "a function a line", "a function a line", "seq2seq",
            "code_x_glue_cc_code_to_code_trans", ("java-cs", "cs-java"),
        ),
        Task(
            "code_refinement", "code_refinement", "Code repair, Bugs2Fix", "code-code", ("java",), _GENERATION,
            _GENERATION, {"small": (46_680, 5_835, 5_835), "medium": (52_364, 6_545, 6_545)}, "a function a line",
            "a function a line", "seq2seq", "code_x_glue_cc_code_refinement", ("small", "medium"),
        ),
        Task(
            "code_search_adv", "code_search", "Code search, AdvTest", "text-code", ("python",), ("mrr",), ("mrr",),
            {"": (251_820, 9_604, 19_210)}, 'JSON {"url", "idx"} a line: the query and the code that answers it',
            'JSON {"url", "answers": [idx, ...]} a line: codes, the best first', "encoder",
            "code_x_glue_tc_nl_code_search_adv",
        ),
        Task(
            "code_search_webquery", "code_search", "Code search, web queries", "text-code", ("python",),
            ("accuracy", "f1", "precision", "recall"), ("accuracy", "f1"), {"": (20_000, 604, 1_046)},
            "idx TAB label, 0 or 1, a line", "idx TAB label, 0 or 1, a line", "encoder",
        ),
        Task(
            "text_to_code", "text_to_code", "Text to code, CONCODE", "text-code", ("java",),
            ("exact_match", "bleu", "codebleu"), ("exact_match", "bleu", "codebleu"),
            {"": (100_000, 2_000, 2_000)}, 'JSON {"nl", "code"} a line', "a function a line", "causal",
            "code_x_glue_tc_text_to_code",
        ),
        Task(
            "code_summarization", "code_summarization", "Code summarisation", "code-text", LANGUAGES,
            ("smoothed_bleu4",), ("smoothed_bleu4",),
            {
                "ruby": (24_927, 1_400, 1_261), "javascript": (58_025, 3_885, 3_291), "go": (167_288, 7_325, 8_122),
                "python": (251_820, 13_914, 14_918), "java": (164_923, 5_183, 10_955),
                "php": (241_241, 12_982, 14_014),
            },
            "id TAB sentence a line", "id TAB sentence a line", "seq2seq", "code_x_glue_ct_code_to_text", LANGUAGES,
        ),
        Task(
            "doc_translation", "doc_translation", "Documentation translation", "text-text", (), ("bleu",), ("bleu",),
            {
                "da-en": (42_701, 1_000, 1_000), "lv-en": (18_749, 1_000, 1_000), "no-en": (44_322, 1_000, 1_000),
                "zh-en": (50_154, 1_000, 1_000),
            },
            "a sentence a line", "a sentence a line", "seq2seq", "code_x_glue_tt_text_to_text", _PAIRS,
        ),
        Task(
            "method_generation", "", "Method generation", "code-code", ("python", "java"), ("bleu", "edit_sim"),
            ("bleu", "edit_sim"), {}, "a method a line", "a method a line", "causal",
        ),
        Task(
            "type_prediction", "", "Type prediction, TypeScript", "code-code", ("typescript",), ("accuracy",),
            ("accuracy",), {"": (0, 0, 224_415)}, "index TAB type a line", "index TAB type a line", "encoder",
        ),
    )
}  # fmt: skip
"""The last two came after the paper and enter no overall score."""

BOARDS = tuple(dict.fromkeys(task.board for task in TASKS.values() if task.board))
"""The ten tasks of the paper."""


def task(name: str) -> Task:
    """A task by name. Raises KeyError, which lists the names."""
    if name not in TASKS:
        raise KeyError(f"no task {name!r}; there are {', '.join(TASKS)}")
    return TASKS[name]


# ------------------------------------------------------------------------------------------------------ the score


@dataclass(frozen=True)
class Row:
    """A row of the public leaderboard. values: by task/metric[variant], in the unit shown there."""

    board: str
    model: str
    organisation: str
    date: str
    url: str
    values: Mapping[str, float]


@lru_cache(maxsize=1)
def published() -> tuple[Row, ...]:
    """The rows of the public leaderboard, all tasks."""
    record = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
    return tuple(Row(**row) for row in record["rows"])


@lru_cache(maxsize=1)
def published_overall() -> tuple[Mapping[str, float], float]:
    """The ten task values of the published overall row (CodeBERT's), and its score."""
    record = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))["overall"]
    return record["values"], record["score"]


def task_value(board: str, values: Mapping[str, float]) -> float:
    """A task of the paper: the mean of its data sets, each the mean of its main metrics, percent.

    values: by task/metric, or by task/metric[variant] for the mean over variants. Where the scores of a data set are
    micro averages over its variants (cloze), task/metric counts. Completion is the mean of its six numbers. Raises
    KeyError where one is missing.
    """
    if board not in BOARDS:
        raise KeyError(f"no task {board!r} in the overall score; there are {', '.join(BOARDS)}")
    sets = [one for one in TASKS.values() if one.board == board]
    if board == "code_completion":
        numbers = [_value(one, metric, values) for one in sets for metric in one.main]
        return sum(numbers) / len(numbers)
    return sum(_set_value(one, values) for one in sets) / len(sets)


def _set_value(one: Task, values: Mapping[str, float]) -> float:
    numbers = [_value(one, metric, values) for metric in one.main]
    return sum(numbers) / len(numbers)


def _value(one: Task, metric: str, values: Mapping[str, float]) -> float:
    whole = values.get(f"{one.name}/{metric}")
    if whole is not None:
        return whole
    parts = [values[f"{one.name}/{metric}[{variant}]"] for variant in one.variants]
    if not parts:
        raise KeyError(f"{one.name}/{metric}")
    return sum(parts) / len(parts)


def overall_score(values: Mapping[str, float]) -> float:
    """The mean of the ten task values. Raises KeyError that names the tasks without one."""
    missing = [board for board in BOARDS if board not in values]
    if missing:
        raise KeyError(f"no value for {', '.join(missing)}: the overall score is over all ten tasks")
    return sum(values[board] for board in BOARDS) / len(BOARDS)
