"""CodeXGLUE: ten tasks of code intelligence, scored exactly, fast and strictly (arXiv 2102.04664)."""

from systems.codexglue.codebleu import CodeBleu, codebleu
from systems.codexglue.platform import Scores, evaluate, validate
from systems.codexglue.tasks import (
    TASKS,
    CodexError,
    MissingData,
    Problem,
    Task,
    ValidationError,
    overall_score,
    published,
    task,
    task_value,
)

__all__ = [
    "TASKS",
    "CodeBleu",
    "CodexError",
    "MissingData",
    "Problem",
    "Scores",
    "Task",
    "ValidationError",
    "codebleu",
    "evaluate",
    "overall_score",
    "published",
    "task",
    "task_value",
    "validate",
]
