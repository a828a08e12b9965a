"""Spider as a tool: profile this machine, explain what would run for a made-up pattern, or draw a recorded run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from systems.spider import SpiderError, TileTable, plan
from systems.spider.patterns import block_mask
from systems.spider.selection import write_whole


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m systems.spider", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "profile", help="measure this machine's tile table (10 s) and keep it; without, one that ships is used"
    )
    explain = commands.add_parser(
        "explain",
        help="every way to multiply by a sparse matrix, with its predicted cost",
        epilog="example: python -m systems.spider explain --size 1024 --tile 8x1 --sparsity 0.9",
    )
    explain.add_argument("--size", type=int, default=1024, help="side of all three matrices (default 1024)")
    explain.add_argument("--tile", default="32x1", help="granularity of the zeros, ROWSxCOLUMNS (default 32x1)")
    explain.add_argument("--sparsity", type=float, default=0.9, help="share of zeros, 0 to 1 (default 0.9)")
    figure = commands.add_parser(
        "figure",
        help="draw speed-up against sparsity from a run file, as an SVG",
        epilog="example: pytest suites/spider/bench_spider.py -k test_grid --record; "
        "python -m systems.spider figure RUN.parquet -o speedup.svg",
    )
    figure.add_argument("run", type=Path, help="run file of a recording run with the benchmark test_grid")
    figure.add_argument("-o", "--output", type=Path, required=True, help="the SVG to write")
    figure.add_argument("--over", default="dense", help="the peer: dense or csr (default dense)")
    given = parser.parse_args(arguments)
    if given.command == "figure":
        return _draw(given.run, given.output, given.over)
    if given.command == "profile":
        for device, dtype in (("cpu", torch.float32), ("cpu", torch.float64), *_of_the_gpu()):
            print(TileTable.profile(device, dtype).save())
        return 0
    rows, _, columns = given.tile.partition("x")
    if not (rows.isdigit() and columns.isdigit() and int(rows) and int(columns)) or not 0 <= given.sparsity <= 1:
        parser.error(f"--tile {given.tile} --sparsity {given.sparsity}: expected the like of 32x1 and 0 to 1")
    n = given.size
    mask = block_mask(n, n, (int(rows), int(columns)), given.sparsity)
    print(plan("mk,kn->mn", torch.where(mask, torch.ones(n, n), 0), torch.ones(n, n)).explain())
    return 0


def _draw(run: Path, output: Path, peer: str) -> int:
    from systems.spider.figure import draw, speedups

    try:
        curves = speedups(run, peer)
        write_whole(output, draw(curves, f"Speed-up over {peer}, 1536 x 1536 x 1536, float32, detection included"))
    except (OSError, SpiderError) as error:
        print(error, file=sys.stderr)
        return 2
    print(output)
    return 0


def _of_the_gpu() -> tuple[tuple[str, torch.dtype], ...]:
    return (("cuda", torch.float32), ("cuda", torch.bfloat16)) if torch.cuda.is_available() else ()


if __name__ == "__main__":
    sys.exit(main())
