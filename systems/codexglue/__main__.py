"""CodeXGLUE as a tool: the official score of a prediction file, or everything that is wrong with it.

  python -m systems.codexglue tasks                                            # the tasks, their files and metrics
  python -m systems.codexglue evaluate code_translation test.cs my.output --variant java-cs
  python -m systems.codexglue evaluate defect_detection answers.jsonl predictions.txt --json
  python -m systems.codexglue submit code_translation test.cs my.output --variant java-cs --model mine --store store
  python -m systems.codexglue leaderboard --store store --task code_translation --format html --out board.html
  python -m systems.codexglue compare store/one.parquet store/other.parquet --metric exact_match
  python -m systems.codexglue retrieve code_translation --variant java-cs --out my.output   # a baseline, no learning
  python -m systems.codexglue fetch code_translation --root data        # from the hub into the official layout
  python -m systems.codexglue train code_translation --variant java-cs --size tiny --minutes 10 --out model
  python -m systems.codexglue train code_completion_token --code src --minutes 5 --out model   # built from any Python
  python -m systems.codexglue predict code_translation model --variant java-cs --out my.output

Data sets are read from --root, or $CODEXGLUE_DATA, in the official layout. Training that was interrupted goes on when
the same command is given again. Exit status: 0 done, 2 refused; what is
wrong with a file is told on standard error, a line a mistake.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from systems.codexglue.baselines import RetrieveAndRename
from systems.codexglue.board import compare, leaderboard, read_submission, submit, worst_rows
from systems.codexglue.data import SPLITS, load
from systems.codexglue.metrics import EDIT_BACKENDS
from systems.codexglue.platform import evaluate
from systems.codexglue.tasks import TASKS, CodexError, MissingData, ValidationError, task


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    given = _parser().parse_args(arguments)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            given.act(given)
            status = 0
        except ValidationError as error:
            for problem in error.problems:
                print(f"codexglue: {problem}", file=sys.stderr)
            status = 2
        except (CodexError, KeyError, ValueError, OSError) as error:
            message = error.args[0] if isinstance(error, KeyError) else error
            print(f"codexglue: {message}", file=sys.stderr)
            status = 2
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            print(f"codexglue: note: {warning.message}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m systems.codexglue", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    tasks = commands.add_parser("tasks", help="the tasks, their files and metrics")
    tasks.add_argument("name", nargs="?", help="one task in full")
    tasks.set_defaults(act=_tasks)

    scored = commands.add_parser("evaluate", help="score a prediction file")
    _add_files(scored)
    scored.add_argument("--compat", choices=("strict", "official"), default="strict", help="official: as the scripts")
    scored.add_argument("--json", action="store_true", help="all scores, unrounded, with what they depend on")
    scored.set_defaults(act=_evaluate)

    sent = commands.add_parser("submit", help="score a prediction file and keep it in a store")
    _add_files(sent)
    sent.add_argument("--store", type=Path, required=True, help="a folder, made where there is none")
    sent.add_argument("--model", required=True)
    sent.add_argument("--organisation", default="")
    sent.add_argument("--url", default="")
    sent.add_argument("--when", help="ISO date, default today")
    sent.set_defaults(act=_submit)

    board = commands.add_parser("leaderboard", help="submissions beside the public rows")
    board.add_argument("--store", type=Path, help="a folder of submissions; without one the public rows alone")
    board.add_argument("--task", dest="name", help="default: all tasks")
    board.add_argument("--format", choices=("md", "html", "json"), default="md")
    board.add_argument("--ours", action="store_true", help="without the public rows")
    board.add_argument("--mixed", action="store_true", help="rank scores of different grammars together")
    board.add_argument("--out", type=Path, help="default: standard output")
    board.set_defaults(act=_leaderboard)

    tested = commands.add_parser("compare", help="is the difference of two submissions one?")
    tested.add_argument("one", type=Path)
    tested.add_argument("other", type=Path)
    tested.add_argument("--metric", required=True)
    tested.set_defaults(act=_compare)

    baseline = commands.add_parser("retrieve", help="predictions of the baseline that retrieves and renames")
    baseline.add_argument("name", choices=("code_translation", "code_refinement"))
    baseline.add_argument("--variant")
    baseline.add_argument("--root", type=Path)
    baseline.add_argument("--out", type=Path, required=True)
    baseline.set_defaults(act=_retrieve)

    got = commands.add_parser("fetch", help="download a data set from the hub into the official layout")
    got.add_argument("name", metavar="TASK")
    got.add_argument("--variant")
    got.add_argument("--root", type=Path, required=True)
    got.set_defaults(act=_fetch)

    trained = commands.add_parser("train", help="train the task's baseline family, from scratch or from given weights")
    trained.add_argument("name", metavar="TASK")
    trained.add_argument("--out", type=Path, required=True, help="the folder of the model, and of its checkpoint")
    trained.add_argument("--variant")
    trained.add_argument("--root", type=Path)
    trained.add_argument("--code", type=Path, help="Python to build completion, cloze, search or summary rows from")
    trained.add_argument("--words", nargs="+", help="candidate words of a cloze that is built from --code")
    trained.add_argument("--size", default="tiny", help="tiny and small for a CPU, base as in the paper (default tiny)")
    trained.add_argument("--start", help="weights to start from: a folder, or a name such as microsoft/codebert-base")
    trained.add_argument("--minutes", type=float, help="default: the paper's epochs for base size, else 10")
    trained.add_argument("--steps", type=int, help="a number of steps: the same result each time")
    trained.add_argument("--seed", type=int, default=0)
    trained.add_argument("--device", default="cpu")
    trained.set_defaults(act=_train)

    told = commands.add_parser("predict", help="write the official prediction file of a trained model")
    told.add_argument("name", metavar="TASK")
    told.add_argument("model", type=Path, help="the folder that `train` wrote")
    told.add_argument("--out", type=Path, required=True)
    told.add_argument("--split", choices=SPLITS, default="test")
    told.add_argument("--variant")
    told.add_argument("--root", type=Path)
    told.add_argument("--beam", type=int, default=1, help="width of the search of generated text")
    told.add_argument("--device", default="cpu")
    told.set_defaults(act=_predict)
    return parser


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="TASK")
    parser.add_argument("answers", type=Path)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("--variant", help="which of the task's data sets, as `tasks TASK` lists them")
    parser.add_argument("--edit-backend", choices=EDIT_BACKENDS, default="difflib")
    parser.add_argument("--jobs", type=int, default=1, help="processes for CodeBLEU")


def _tasks(given: argparse.Namespace) -> None:
    if given.name is None:
        for one in TASKS.values():
            print(f"{one.name:<24}{one.title}: {', '.join(one.metrics)}")
        return
    one = task(given.name)
    print(f"{one.name}: {one.title} ({one.category})")
    counted = ", ".join(one.main) if one.board else "none"
    print(f"metrics      {', '.join(one.metrics)}; in the overall score: {counted}")
    print(f"variants     {', '.join(one.variants) or 'none'}")
    for variant, rows in one.rows.items():
        print(f"rows         {variant + ': ' if variant else ''}train {rows[0]:,}, valid {rows[1]:,}, test {rows[2]:,}")
    print(f"answers      {one.answers}")
    print(f"predictions  {one.predictions}")


def _evaluate(given: argparse.Namespace) -> None:
    scores = evaluate(
        given.name, given.answers, given.predictions, given.variant, compat=given.compat,
        edit_backend=given.edit_backend, jobs=given.jobs,
    )  # fmt: skip
    if given.json:
        print(json.dumps({"official": scores.official, "exact": scores.exact, "meta": scores.meta}, indent=1))
        return
    for name, value in scores.items():
        print(f"{name:<20}{value}")


def _submit(given: argparse.Namespace) -> None:
    path = submit(
        given.store, given.name, given.answers, given.predictions, given.model, variant=given.variant,
        organisation=given.organisation, url=given.url, when=given.when, edit_backend=given.edit_backend,
        jobs=given.jobs,
    )  # fmt: skip
    print(path)


def _leaderboard(given: argparse.Namespace) -> None:
    text = leaderboard(given.store, given.name, with_published=not given.ours, fmt=given.format, mixed=given.mixed)
    _write(given.out, text)


def _compare(given: argparse.Namespace) -> None:
    one, other = read_submission(given.one), read_submission(given.other)
    found = compare(one, other, given.metric)
    interval = f"[{found.low:+.4f}, {found.high:+.4f}], p = {found.p:.4f}"
    print(f"{one.model} - {other.model}: {found.difference:+.4f} {interval}")
    for entry in (one, other):
        rows = ", ".join(f"{row} ({score:g})" for row, score in worst_rows(entry, given.metric, 5))
        print(f"worst rows of {entry.model}: {rows}")


def _retrieve(given: argparse.Namespace) -> None:
    train = list(load(given.name, "train", given.variant, given.root))
    model = RetrieveAndRename([row["source"] for row in train], [row["target"] for row in train])
    found = model.predict([row["source"] for row in load(given.name, "test", given.variant, given.root)])
    _write(given.out, "".join(f"{line}\n" for line in found))
    print(f"{len(found)} predictions from {len(train)} pairs: {given.out}")


def _fetch(given: argparse.Namespace) -> None:
    from systems.codexglue.hub import fetch

    for path in fetch(given.name, given.root, given.variant, progress=lambda line: print(line, file=sys.stderr)):
        print(path)


def _train(given: argparse.Namespace) -> None:
    from systems.codexglue.recipes import model_for, paper_budget, train_model
    from systems.codexglue.training import Budget

    rows = _rows_to_train_on(given)
    budget = None
    if given.minutes is not None or given.steps is not None:
        budget = Budget(steps=given.steps, minutes=given.minutes)
    elif given.start or given.size == "base":
        budget = paper_budget(given.name, len(rows))
    budget = budget or Budget(minutes=10.0)
    model = model_for(given.name, rows, size=given.size, start=given.start, seed=given.seed).to(given.device)
    done = train_model(given.name, model, rows, budget, seed=given.seed, folder=given.out, progress=True)
    model.save(given.out)
    print(
        f"{given.out}: {model.family}, {done.steps} steps on {len(rows)} rows, loss {done.mean_loss(0.1):.3f} -> "
        f"{done.mean_loss(-0.1):.3f}, {done.tokens / max(done.seconds, 1e-9):,.0f} token/s"
    )


def _rows_to_train_on(given: argparse.Namespace) -> list[Any]:
    from systems.codexglue import builders
    from systems.codexglue.recipes import cloze_rows, completion_rows

    if given.code is None:
        return list(load(given.name, "train", given.variant, given.root))
    paths = sorted(given.code.rglob("*.py"))
    if not paths:
        raise MissingData(f"{given.code}: no *.py below it to build rows from")
    if given.name == "code_completion_token":
        return completion_rows(builders.token_completion(paths))
    if given.name.startswith("cloze"):
        rows, answers = builders.cloze(paths, given.words or ["max", "min"], given.seed)
        return cloze_rows(rows, answers)
    if given.name in {"code_search_adv", "code_summarization"}:
        return builders.search(paths)
    raise CodexError(f"--code builds rows of completion, cloze, search and summarisation, not of {given.name}")


def _predict(given: argparse.Namespace) -> None:
    from systems.codexglue.models import load_model
    from systems.codexglue.recipes import answer

    model = load_model(given.model).to(given.device)
    rows = list(load(given.name, given.split, given.variant, given.root))
    lines = list(answer(given.name, model, rows, beam=given.beam))
    _write(given.out, "".join(f"{line}\n" for line in lines))
    print(f"{len(lines)} predictions: {given.out}")


def _write(path: Path | None, text: str) -> None:
    if path is None:
        print(text, end="")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
