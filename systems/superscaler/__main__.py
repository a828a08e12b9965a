"""SuperScaler as a tool: write a plan for a model, look at it, simulate it, run it on local ranks, verify it.

  python -m systems.superscaler plan gpt --plan megatron --dp 1 --tp 2 --pp 2 --microbatches 4
  python -m systems.superscaler plan gpt --plan interlaced --pp 2 --rank 0      # the program of a rank, line by line
  python -m systems.superscaler verify gpt --plan zero --dp 2 --stage 3
  python -m systems.superscaler simulate multilingual --plan interlaced --pp 4 --cluster v100_dgx1
  python -m systems.superscaler draw gpt --plan 1f1b --pp 4 --out timeline.html
  python -m systems.superscaler run gpt --plan megatron --tp 2 --steps 3        # gloo, compared with one device
  python -m systems.superscaler plan gpt --search --cluster v100_dgx1 --devices 4 --out plan.json
  python -m systems.superscaler run gpt --file plan.json                        # or verify, simulate, draw, plan
  python -m systems.superscaler calibrate --ranks 2         # measure this machine: --cluster takes the file it writes
  python -m systems.superscaler map --models t5 swin --devices 32 --out map.jsonl   # speed-ups at published sizes

Models are the test sizes of `systems.superscaler.models`; sizes are set by --set, such as --set layers=8 width=32.
Exit status: 0 as hoped for, 1 where a run differs from the serial model or a program is wrong, 2 where something was
refused.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from systems.superscaler import models, plans
from systems.superscaler.capture import capture
from systems.superscaler.cluster import Cluster
from systems.superscaler.errors import SuperScalerError
from systems.superscaler.graph import Graph
from systems.superscaler.plan import Plan
from systems.superscaler.published import SIZES
from systems.superscaler.recipes import Recipe
from systems.superscaler.search import search
from systems.superscaler.simulate import simulate
from systems.superscaler.spaces import SPACES
from systems.superscaler.speedups import speed_up_map
from systems.superscaler.sprogram import SProgram
from systems.superscaler.verify import verify

MODELS: dict[str, Callable[..., models.Sample]] = {
    "gpt": models.gpt, "swin": models.swin, "evoformer": models.evoformer, "multilingual": models.multilingual,
}  # fmt: skip
PLANS: dict[str, Callable[[Graph, argparse.Namespace], SProgram]] = {
    "data": lambda g, a: plans.data_parallel(g, a.dp, microbatches=a.microbatches),
    "zero": lambda g, a: plans.zero(g, a.dp, stage=a.stage, microbatches=a.microbatches),
    "tensor": lambda g, a: plans.tensor_parallel(g, a.tp, microbatches=a.microbatches),
    "sequence": lambda g, a: plans.sequence_parallel(g, a.tp, microbatches=a.microbatches),
    "dap": lambda g, a: plans.dap(g, a.tp, dp=a.dp, microbatches=a.microbatches),
    "megatron": lambda g, a: plans.megatron(g, a.dp, a.tp, a.pp, microbatches=a.microbatches),
    "gpipe": lambda g, a: plans.gpipe(g, a.pp, microbatches=a.microbatches),
    "1f1b": lambda g, a: plans.one_f_one_b(g, a.pp, microbatches=a.microbatches),
    "interleaved": lambda g, a: plans.interleaved(g, a.pp, microbatches=a.microbatches),
    "co-shard": lambda g, a: plans.co_shard(g, a.parts, dp=a.dp, tp=a.tp, pp=a.pp, microbatches=a.microbatches),
    "interlaced": lambda g, a: plans.interlaced(g, a.pp, tp=a.tp, microbatches=a.microbatches),
    "3f1b": lambda g, a: plans.three_f_one_b(g, a.pp, dp=a.dp, microbatches=a.microbatches),
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    given = _parser().parse_args(arguments)
    try:
        return int(given.act(given))
    except (SuperScalerError, ValueError, TypeError, OSError) as error:
        print(f"superscaler {given.command}: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m systems.superscaler", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, act, text in (
        ("plan", _plan, "build a plan and say what it sends and where"),
        ("simulate", _simulate, "how long a step takes on a cluster, and how much memory it needs"),
        ("run", _run, "run steps on local gloo ranks, and compare with one device"),
        ("draw", _draw, "draw the simulated timeline"),
        ("verify", _verify, "interpret the programs of all ranks on fingerprints"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("model", choices=sorted(MODELS))
        command.add_argument("--plan", choices=sorted(PLANS), default="megatron", help="plan of the library")
        command.add_argument("--dp", type=int, default=1, help="data parallel copies")
        command.add_argument("--tp", type=int, default=1, help="tensor parallel (or axial) parts")
        command.add_argument("--pp", type=int, default=1, help="pipeline stages")
        command.add_argument("--parts", type=int, default=2, help="colocated parts of co-shard")
        command.add_argument("--stage", type=int, default=3, help="of ZeRO, 1 to 3")
        command.add_argument("--microbatches", type=int, default=1, help="micro-batches a step")
        command.add_argument("--set", nargs="*", default=[], metavar="NAME=N", help="sizes of the model")
        command.add_argument("--file", help="take the plan of this file, which a search wrote")
        command.set_defaults(act=act)
        if name == "plan":
            command.add_argument("--rank", type=int, help="print the program of this rank")
            command.add_argument("--search", action="store_true", help="find the fastest plan of a space")
            command.add_argument("--space", choices=sorted(SPACES), default="full", help="whose plans (default full)")
            command.add_argument("--devices", type=int, help="how many to use (default all of the cluster)")
            command.add_argument("--memory", type=float, help="GiB of a device, instead of the cluster's")
            command.add_argument("--out", help="write the plan that was found to this file")
        if name in ("plan", "simulate", "draw"):
            command.add_argument("--cluster", default="v100_dgx1", help="preset (default v100_dgx1), or a file of one")
            command.add_argument("--nodes", type=int, default=1)
        if name == "draw":
            command.add_argument("--out", required=True, help="file to write: .html, or .json for Perfetto")
        if name == "run":
            command.add_argument("--steps", type=int, default=3)
    measuring = commands.add_parser("calibrate", help="measure collectives and kernels of this machine")
    measuring.add_argument("--ranks", type=int, default=2, help="local ranks (default 2)")
    measuring.add_argument("--out", help="file to write (default: in the user's data folder)")
    measuring.set_defaults(act=_calibrate)
    speedups = commands.add_parser("map", help="simulated speed-ups over earlier spaces, at published sizes")
    speedups.add_argument("--models", nargs="+", choices=sorted(SIZES), default=["t5", "swin"])
    speedups.add_argument("--devices", nargs="+", type=int, default=[32], help="4, 8, 16, 32")
    speedups.add_argument("--per-node", nargs="+", type=int, choices=[8, 16], default=[8, 16])
    speedups.add_argument("--memory", nargs="+", type=float, default=[32.0], help="GiB of a device")
    speedups.add_argument("--out", help="file of cells; those that it has are not computed again")
    speedups.set_defaults(act=_map)
    return parser


def _sample(given: argparse.Namespace) -> models.Sample:
    sizes = {}
    for item in given.set:
        name, sign, value = item.partition("=")
        if not sign or not value.lstrip("-").isdigit():
            raise ValueError(f"--set {item}: expected NAME=N with a whole number")
        sizes[name] = int(value)
    return MODELS[given.model](**sizes)


def _built(given: argparse.Namespace) -> tuple[models.Sample, Plan]:
    sample = _sample(given)
    graph = capture(sample.model, sample.batch)
    if given.file is not None:
        return sample, Recipe.load(given.file, graph).program(graph).build()
    return sample, PLANS[given.plan](graph, given).build()


def _cluster(given: argparse.Namespace) -> Cluster:
    if Path(given.cluster).suffix == ".json":
        return Cluster.load(given.cluster)
    return Cluster.preset(given.cluster, given.nodes)


def _search(given: argparse.Namespace) -> int:
    sample, cluster = _sample(given), _cluster(given)
    if given.memory is not None:
        cluster = replace(cluster, memory=given.memory * 2**30)
    graph = capture(sample.model, sample.batch)
    found = search(graph, cluster, devices=given.devices, space=given.space)
    print(found)
    for other in found.runners_up[:3]:
        print(f"  next {1e3 * other.seconds:.3f} ms: {other.recipe}")
    tried = ", ".join(f"{n} {what}" for what, n in found.tried.items())
    seconds = ", ".join(f"{what} {s:.2f} s" for what, s in found.seconds.items())
    print(f"tried {tried} in {seconds}; at most {100 * found.gap:.2f} % above the bound")
    if given.out:
        found.recipe.save(given.out, graph)
        print(f"{given.out}: written")
    return 0


def _calibrate(given: argparse.Namespace) -> int:
    from systems.superscaler.calibration import calibrate, data_folder

    print("measuring collectives and kernels ...", file=sys.stderr)
    cluster = calibrate(given.ranks, path=given.out)
    print(given.out or data_folder() / f"cluster-{given.ranks}.json")
    print(f"kernels {cluster.flops / 1e9:.1f} GFLOP/s, memory {cluster.memory_bandwidth / 1e9:.1f} GB/s, sends "
          f"{1e6 * cluster.inside_latency:.0f} us and {cluster.inside / 1e9:.2f} GB/s")  # fmt: skip
    for (kind, count), table in sorted(cluster.tables.items()):
        print(f"{kind} of {count}: {1e6 * table.seconds[0]:.0f} us for {table.sizes[0] / 1024:.0f} KiB, "
              f"{1e6 * table.seconds[-1]:.0f} us for {table.sizes[-1] / 1024:.0f} KiB")  # fmt: skip
    return 0


def _map(given: argparse.Namespace) -> int:
    memories = [m * 2**30 for m in given.memory]
    speed_up_map(given.models, given.devices, per_node=given.per_node, memories=memories, path=given.out, say=print)
    return 0


def _plan(given: argparse.Namespace) -> int:
    if given.search:
        return _search(given)
    _, plan = _built(given)
    print(plan.graph)
    print(plan)
    if given.rank is not None:
        print(plan.describe(given.rank))
        return 0
    for rank, program in enumerate(plan.programs):
        sent = ", ".join(f"{n:,} by {kind}" for kind, n in sorted(plan.sent(rank).items())) or "nothing"
        print(f"rank {rank}: {len(program)} instructions; elements sent: {sent}")
    return 0


def _verify(given: argparse.Namespace) -> int:
    _, plan = _built(given)
    report = verify(plan)
    print(f"{report.instructions} instructions on {plan.devices} ranks: {'right' if report.ok else 'wrong'}")
    for finding in report.findings:
        print(f"  {finding}")
    return 0 if report.ok else 1


def _simulate(given: argparse.Namespace) -> int:
    _, plan = _built(given)
    trace = simulate(plan, _cluster(given))
    print(f"{1e3 * trace.step_seconds:.3f} ms a step, {100 * trace.bubble_fraction:.1f} % of it idle")
    for rank, (peak, sent) in enumerate(zip(trace.peak_bytes, trace.sent_bytes, strict=True)):
        print(f"rank {rank}: peak {peak / 2**20:.2f} MiB, sends {sent / 2**20:.2f} MiB")
    print(trace.text())
    return 0


def _draw(given: argparse.Namespace) -> int:
    _, plan = _built(given)
    trace = simulate(plan, _cluster(given))
    (trace.chrome if given.out.endswith(".json") else trace.draw)(given.out)
    print(f"{given.out}: {len(trace.events)} events")
    return 0


def train(plan: Plan, sample: models.Sample, steps: int) -> list[float]:
    """In a rank: the losses of some steps."""
    import torch

    from systems.superscaler.runtime import Runner

    runner = Runner(plan, sample.model, functools.partial(torch.optim.AdamW, lr=1e-2))
    return [float(runner.step(sample.batch)) for _ in range(steps)]


def _run(given: argparse.Namespace) -> int:
    from systems.superscaler.runtime import launch

    sample, plan = _built(given)
    serial = plans.serial(plan.graph).build()
    (alone,) = launch(functools.partial(train, serial, sample, given.steps), 1)
    together: list[Any] = launch(functools.partial(train, plan, sample, given.steps), plan.devices)
    worst = max(abs(a - b) for losses in together for a, b in zip(losses, alone, strict=True))
    for step, (a, b) in enumerate(zip(alone, together[0], strict=True)):
        print(f"step {step}: loss {b:.9f}, one device {a:.9f}")
    print(f"largest difference {worst:.2e}")
    return 0 if worst <= 1e-6 * max(1.0, *map(abs, alone)) else 1


if __name__ == "__main__":
    sys.exit(main())
