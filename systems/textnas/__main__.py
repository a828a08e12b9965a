"""TextNAS as a tool: a small text encoder for your labelled data, found, trained, drawn and compared.

  python -m systems.textnas search data/trec label-text --strategy spos --layers 8 --out runs/trec
  python -m systems.textnas train data/sst sst2 --arch paper --hidden 64 --epochs 2
  python -m systems.textnas compare data/trec label-text --strategies random spos --seeds 3
  python -m systems.textnas draw paper --out paper.svg
  python -m systems.textnas minibench query conv3 gru attention
  python -m systems.textnas minibench build data/trec          # 1,024 trainings; goes on where it stopped
  python -m systems.textnas minibench regret evolution random

Kinds of data: sst5, sst2 (Penn trees), label-text (a label, a space, words), csv (quoted, label first), snli, multinli,
sick (pairs). A search given the same --out goes on where it stopped. The test set is read once, at the end. Exit
status: 0 done, 2 refused.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from systems.textnas.compare import compare, wilson
from systems.textnas.data import KINDS, Splits, load_splits
from systems.textnas.draw import draw, draw_curves
from systems.textnas.history import Record, write
from systems.textnas.minibench import EPOCHS, SEEDS, SPACE, MiniBench, build, kendall, proxy_scores, regret
from systems.textnas.preset import PAPER
from systems.textnas.search import STRATEGIES, evaluate_best, search
from systems.textnas.space import Arch, ArchError, Layer, Space, TextNASError
from systems.textnas.task import Task
from systems.textnas.train import Budget, evaluate_test, fit
from systems.textnas.vocabulary import Embedding


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    given = _parser().parse_args(arguments)
    try:
        given.act(given)
    except (TextNASError, OSError) as error:
        print(f"textnas: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m systems.textnas", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    one = commands.add_parser("search", help="search an architecture, train the best three, test the chosen one once")
    _data_arguments(one)
    one.add_argument("--strategy", choices=list(STRATEGIES), default="spos", help="(default spos)")
    _search_arguments(one)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--out", type=Path, help="folder of history, weights and drawing; the same one goes on")
    one.set_defaults(act=_search)

    two = commands.add_parser("train", help="train one architecture and test it once")
    _data_arguments(two)
    two.add_argument("--arch", default="paper", help="'paper', or a file in JSON or the published text form")
    two.add_argument("--layers", type=int, help="use the first layers alone (default: all)")
    two.add_argument("--epochs", type=float, default=4.0, help="(default 4)")
    two.add_argument("--seed", type=int, default=0)
    two.set_defaults(act=_train)

    three = commands.add_parser("compare", help="linear models, hand-made networks and strategies in one table")
    _data_arguments(three)
    three.add_argument("--strategies", nargs="+", choices=list(STRATEGIES), default=["random", "spos"])
    _search_arguments(three)
    three.add_argument("--seeds", type=int, default=3, help="how many (default 3)")
    three.add_argument("--out", type=Path, help="folder for histories, the table and the curves")
    three.set_defaults(act=_compare)

    four = commands.add_parser("draw", help="draw an architecture")
    four.add_argument("arch", help="'paper', or a file in JSON or the published text form")
    four.add_argument("--out", type=Path, required=True, help=".svg, .png or .pdf")
    four.set_defaults(act=_draw)

    five = commands.add_parser("minibench", help="the table of 512 architectures: query, build, regret, tau")
    verbs = five.add_subparsers(required=True, metavar="VERB")
    asked = verbs.add_parser("query", help="what a chain of three operations reached")
    asked.add_argument("ops", nargs="+", metavar="OP")
    asked.set_defaults(act=_query)
    built = verbs.add_parser("build", help="train all of them and write the table")
    built.add_argument("data", type=Path, help="the folder of TREC (train.txt)")
    built.add_argument("--out", type=Path, default=Path("minibench.parquet"))
    built.set_defaults(act=_build)
    lost = verbs.add_parser("regret", help="how far strategies stay below the best after so many queries")
    lost.add_argument("strategies", nargs="+", choices=["random", "evolution", "sha", "pareto"])
    lost.add_argument("--queries", type=int, default=64)
    lost.add_argument("--seeds", type=int, default=200)
    lost.set_defaults(act=_regret)
    tau = verbs.add_parser("tau", help="how well fewer epochs and sizes foretell the final order (Kendall's tau)")
    tau.add_argument("--data", type=Path, help="the folder of TREC: zero-cost scores too, in about a minute")
    tau.set_defaults(act=_tau)
    return parser


def _data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, help="folder of the data set")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--hidden", type=int, default=32, help="channels (default 32)")
    parser.add_argument("--batch", type=int, default=32, help="sentences a step (default 32)")
    parser.add_argument("--lr", type=float, default=2e-3, help="(default 0.002)")
    parser.add_argument("--dropout", type=float, default=0.2, help="(default 0.2)")
    parser.add_argument("--frozen", action="store_true", help="do not train the word vectors")
    parser.add_argument("--vectors", default="best", help="best, random, wordllama, or a GloVe file (default best)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1: the same numbers everywhere)")


def _search_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layers", type=int, default=8, help="(default 8; the paper has 24)")
    parser.add_argument("--budget", type=float, default=20.0, help="of the search, in epochs (default 20)")
    parser.add_argument("--trial", type=float, default=2.0, help="of one training within it, in epochs (default 2)")
    parser.add_argument("--final", type=float, default=6.0, help="of each training after it, in epochs (default 6)")
    parser.add_argument("--workers", type=int, default=1, help="processes for trials (default 1)")


def _embedding(given: argparse.Namespace) -> Embedding:
    if given.vectors in ("random", "wordllama"):
        return getattr(Embedding, given.vectors)()
    return Embedding.best(given.data.parent) if given.vectors == "best" else Embedding.glove(given.vectors)


def _task(given: argparse.Namespace, splits: Splits) -> Task:
    torch.set_num_threads(given.threads)
    task = Task.of(splits, _embedding(given), **_settings(given))
    assert task.embedding is not None
    _tell(f"{len(task.train):,} texts to train on, {len(task.valid):,} to validate; vectors: {task.embedding.name}")
    return task


def _settings(given: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(given, name) for name in ("hidden", "batch", "lr", "dropout", "frozen")}


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _arch(name: str) -> Arch:
    if name == "paper":
        return PAPER
    text = Path(name).read_text(encoding="utf-8")
    return Arch.from_json(text) if text.lstrip().startswith("{") else Arch.from_text(text)


def _search(given: argparse.Namespace) -> None:
    splits = load_splits(given.data, given.kind)
    task = _task(given, splits)

    def show(record: Record, budget: float) -> None:
        score = "" if np.isnan(record.valid_acc) else f", validation {100 * record.valid_acc:.1f}"
        _tell(f"{record.index:>4} {record.kind:<9}{100 * record.total / budget:>5.0f} % of the budget{score}")

    history = search(
        Space(given.layers), task, given.strategy, Budget(epochs=given.budget), given.seed, given.workers, given.out,
        Budget(epochs=given.trial), Budget(epochs=given.final), show,
    )  # fmt: skip
    test = evaluate_best(history, task, splits.test)
    low, high = wilson(test, splits.test.rows)
    print(history.best.to_text())
    print(f"validation {100 * history.best_record.valid_acc:.1f}")
    interval = f"({100 * low:.1f} to {100 * high:.1f})"
    print(f"test {100 * test:.1f} {interval}, read {history.test_reads} time after selection")
    if given.out is not None:
        write(given.out / "best.json", history.best.to_json(given.strategy))
        draw(history.best, given.out / "best.svg")
        _tell(f"{given.out}: history.jsonl, best.json, best.safetensors, best.svg")


def _train(given: argparse.Namespace) -> None:
    splits = load_splits(given.data, given.kind)
    arch = _arch(given.arch)
    if given.layers is not None:
        arch = Space(given.layers).cut(arch)
    task = _task(given, splits)
    net = task.network(arch, given.seed)
    result = fit(net, task.train_batches, task.valid_batches, Budget(epochs=given.epochs), given.lr, given.seed)
    for point in result.curve:
        where = f"{point.examples:>9,} examples {point.seconds:>7.1f} s"
        _tell(f"{where}  loss {point.loss:.3f}  valid {100 * point.valid_acc:.1f}")
    assert task.vocabulary is not None
    test = evaluate_test(net, result, splits.test, task.vocabulary, task.embedding)
    print(f"validation {100 * result.valid_acc:.1f}")
    print(f"test {100 * test:.1f}, read {result.test_reads} time after selection")
    print(f"{result.cpu_seconds:.1f} CPU seconds")


def _compare(given: argparse.Namespace) -> None:
    torch.set_num_threads(given.threads)
    splits = load_splits(given.data, given.kind)
    table = compare(
        splits, given.strategies, Budget(epochs=given.budget), range(given.seeds), _embedding(given),
        Space(given.layers), Budget(epochs=given.final), trial=Budget(epochs=given.trial), folder=given.out,
        workers=given.workers, progress=_tell, **_settings(given),
    )  # fmt: skip
    print(table.text())
    if given.out is not None:
        write(given.out / "table.txt", table.text() + "\n")
        draw_curves(table.histories, given.out / "curves.svg")


def _draw(given: argparse.Namespace) -> None:
    print(draw(_arch(given.arch), given.out))


def _query(given: argparse.Namespace) -> None:
    if len(given.ops) != 3:
        raise ArchError(f"{len(given.ops)} given; expected 3 operations, the first nearest to the words")
    arch = Arch(tuple(Layer(k - 1, op) for k, op in enumerate(given.ops)))
    SPACE.check(arch)
    bench = MiniBench.load()
    number = bench.number(arch)
    print("seed epoch  train  valid   test")
    for seed in range(SEEDS):
        for epoch in range(1, EPOCHS + 1):
            e = bench.query(arch, epoch, seed)
            print(f"{seed:>4}{epoch:>6}{100 * e.train_acc:>7.1f}{100 * e.valid_acc:>7.1f}{100 * e.test_acc:>7.1f}")
    mean = bench.final()
    print(f"place {int((mean > mean[number]).sum()) + 1} of {len(mean)} by mean validation accuracy")


def _build(given: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    print(build(load_splits(given.data, "label-text"), given.out, progress=lambda i, n: _tell(f"{i} of {n}")))


def _regret(given: argparse.Namespace) -> None:
    bench = MiniBench.load()
    print(f"{'points below the best':<24}{'median':>8}{'90 % of runs below':>20}")
    for strategy in given.strategies:
        lost = regret(bench, strategy, given.queries, given.seeds)[:, -1]
        print(f"{strategy:<24}{100 * np.median(lost):>8.2f}{100 * np.quantile(lost, 0.9):>20.2f}")


def _tau(given: argparse.Namespace) -> None:
    bench = MiniBench.load()
    values = {f"{epoch} epochs, one seed": _column(bench, epoch) for epoch in range(1, EPOCHS + 1)}
    if given.data is not None:
        values |= proxy_scores(load_splits(given.data, "label-text"))
    for name, value in values.items():
        print(f"{name:<24}{kendall(bench, value):>6.2f}")


def _column(bench: MiniBench, epoch: int) -> np.ndarray:
    return bench._values["valid_acc"][:, 0, epoch - 1]


if __name__ == "__main__":
    sys.exit(main())
