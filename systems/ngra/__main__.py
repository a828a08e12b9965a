"""NGra as a tool: train a graph network, explain its plan, build a store of chunks on disk, look into one.

python -m systems.ngra train cora --model gcn --epochs 200
python -m systems.ngra plan --model gat --features 64 --outputs 16
python -m systems.ngra build graph.store edges.txt --features x.npy
python -m systems.ngra train graph.store --labels y.npy --model sage --memory 256M
python -m systems.ngra info graph.store --verify
python -m systems.ngra roofline -o roofline.png
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from systems.ngra import roofline
from systems.ngra.data import NAMES, SHAPES, load, paper_shape, planted
from systems.ngra.edges import edge_blocks, most_vertices
from systems.ngra.graph import BudgetError, GraphError, NGraError, gcn_norm, rmat
from systems.ngra.models import GAT, GCN, CommNet, GatedGCN, GraphSAGE, MaxPoolGCN, Network, identity
from systems.ngra.program import Layer
from systems.ngra.store import ChunkStore
from systems.ngra.stream import StreamTrainer

MODELS: dict[str, Callable[..., Layer]] = {
    "commnet": CommNet, "gcn": GCN, "mpgcn": MaxPoolGCN, "ggcn": GatedGCN, "gat": GAT, "sage": GraphSAGE,
}  # fmt: skip
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 where something that was given does not fit."""
    parser = argparse.ArgumentParser(
        prog="python -m systems.ngra", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _train_arguments(commands.add_parser("train", help="train a network of two layers, in memory or from a store"))
    _plan_arguments(
        commands.add_parser("plan", help="how a layer would run: stages, kernel, FLOPs, what each pass did")
    )
    _build_arguments(commands.add_parser("build", help="cut a graph into chunks on disk, without holding its arcs"))
    info = commands.add_parser("info", help="what a store holds; with --verify, whether it is undamaged")
    info.add_argument("store", type=Path)
    info.add_argument("--verify", action="store_true", help="read everything and compare the checksums")
    _roofline_arguments(
        commands.add_parser("roofline", help="how near to the speed of memory sums run on this machine")
    )
    given = parser.parse_args(arguments)
    run = {"train": _train, "plan": _plan, "build": _build, "info": _info, "roofline": _roofline}[given.command]
    try:
        return run(given)
    except (NGraError, FileNotFoundError) as error:
        print(f"ngra: {error}", file=sys.stderr)
        return 2


# ----------------------------------------------------------------------------------------------------- training


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    named = ", ".join([*NAMES[:3], "planted", *SHAPES])
    parser.add_argument("data", help=f"a store folder, or one of {named} (the paper's shapes are generated)")
    parser.add_argument("--model", choices=sorted(MODELS), default="gcn", help="both layers (default gcn)")
    parser.add_argument("--hidden", type=int, default=16, help="width of the hidden layer (default 16)")
    parser.add_argument("--epochs", type=int, default=200, help="(default 200)")
    parser.add_argument("--rate", type=float, default=0.01, help="learning rate of Adam (default 0.01)")
    parser.add_argument("--decay", type=float, default=5e-4, help="L2 of the first layer (default 5e-4)")
    parser.add_argument("--dropout", type=float, default=0.5, help="before each layer (default 0.5)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="of a generated shape (default 1)")
    parser.add_argument("--labels", type=Path, help="of a store: .npy of (vertices,) integers, -1 where unlabelled")
    parser.add_argument("--memory", default="1G", help="budget of bytes for a store, such as 256M (default 1G)")
    parser.add_argument("--checkpoint", type=Path, help="kept every 10 epochs; training resumes from it where it is")


def _network(name: str, widths: list[int], dropout: float) -> Network:
    last = len(widths) - 2
    layers = [
        MODELS[name](before, after, **({"activation": identity} if k == last else {}))
        for k, (before, after) in enumerate(pairwise(widths))
    ]
    return Network(layers, dropout)


def _train(given: argparse.Namespace) -> int:
    torch.manual_seed(given.seed)
    if Path(given.data).is_dir():
        return _train_streamed(given)
    if given.data not in (*NAMES[:3], "planted", *SHAPES):
        raise GraphError(f"{given.data!r} is neither a store folder nor one of {', '.join((*NAMES[:3], *SHAPES))}")
    if given.data == "planted":
        dataset = planted(seed=given.seed)
    else:
        dataset = load(given.data) if given.data in NAMES else paper_shape(given.data, given.scale, given.seed)
    graph, weight = gcn_norm(dataset.graph) if given.model == "gcn" else (dataset.graph, None)
    graph = graph.chunked()
    net = _network(given.model, [dataset.x.shape[1], given.hidden, dataset.classes], given.dropout)

    def epoch(optimizer: torch.optim.Optimizer) -> float:
        net.train()
        optimizer.zero_grad()
        loss = F.cross_entropy(net(graph, dataset.x, weight)[dataset.train], dataset.y[dataset.train])
        loss.backward()
        optimizer.step()
        return loss.item()

    _epochs(given, net, epoch)
    net.eval()
    with torch.no_grad():
        right = net(graph, dataset.x, weight).argmax(1) == dataset.y
    for name in ("train", "val", "test"):
        print(f"{name:<6}{100 * right[getattr(dataset, name)].float().mean().item():.1f} % right")
    if not dataset.real:
        print(f"{dataset.name} is generated: only its size is real")
    return 0


def _train_streamed(given: argparse.Namespace) -> int:
    if given.labels is None:
        raise GraphError("a store has no labels: give --labels y.npy, (vertices,) integers, -1 where unlabelled")
    labels = torch.from_numpy(np.load(given.labels, allow_pickle=False).astype(np.int64))
    memory = parse_bytes(given.memory)
    with ChunkStore.open(given.data) as store:
        if labels.shape != (store.num_vertices,) or not bool((labels >= 0).any()):
            raise GraphError(
                f"{given.labels} has shape {tuple(labels.shape)}, expected ({store.num_vertices},) with some labels"
            )
        if given.model == "gcn" and not store.meta["self_loops"]:
            raise GraphError("gcn wants self loops: build the store with --self-loops, or choose another --model")
        net = _network(given.model, [store.width, given.hidden, int(labels.max()) + 1], given.dropout)
        with StreamTrainer(net, store, memory, norm=given.model == "gcn", seed=given.seed) as trainer:
            read, written = trainer.predicted
            print(f"an epoch reads {_size(read)} and writes {_size(written)} within {_size(memory)}")
            for schedule in trainer.schedules.values():
                print(f"  {schedule.sweep.name}: {schedule.passes} passes, {_size(schedule.bytes_read)} read")

            def epoch(optimizer: torch.optim.Optimizer) -> float:
                return trainer.epoch(labels.clamp(min=0), labels >= 0, optimizer).loss

            _epochs(given, net, epoch)
            right = trainer.predict().argmax(1) == labels
    print(f"labelled {100 * right[labels >= 0].float().mean().item():.1f} % right")
    return 0


def _epochs(given: argparse.Namespace, net: Network, epoch: Callable[[torch.optim.Optimizer], float]) -> None:
    first, *others = net.layers
    groups = [
        {"params": list(first.parameters()), "weight_decay": given.decay},
        {"params": [parameter for layer in others for parameter in layer.parameters()]},
    ]
    optimizer = torch.optim.Adam(groups, lr=given.rate)
    done = _resume(given.checkpoint, net, optimizer)
    begun = time.perf_counter()
    for k in range(done, given.epochs):
        loss = epoch(optimizer)
        last = k + 1 == given.epochs
        if last or (k + 1) % max(1, given.epochs // 10) == 0:
            rate = (time.perf_counter() - begun) / (k + 1 - done)
            print(f"epoch {k + 1}/{given.epochs}  loss {loss:.4f}  {rate:.3f} s an epoch", flush=True)
        if given.checkpoint is not None and (last or (k + 1) % 10 == 0):
            _keep(given.checkpoint, {"epoch": k + 1, "net": net.state_dict(), "optimizer": optimizer.state_dict()})


def _resume(path: Path | None, net: Network, optimizer: torch.optim.Optimizer) -> int:
    if path is None or not path.exists():
        return 0
    held: dict[str, Any] = torch.load(path, weights_only=True)
    try:
        net.load_state_dict(held["net"])
        optimizer.load_state_dict(held["optimizer"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise GraphError(f"{path} is no checkpoint of this network: {error}; give another --checkpoint") from error
    torch.manual_seed(torch.initial_seed() + int(held["epoch"]))
    print(f"resumed after epoch {held['epoch']} from {path}")
    return int(held["epoch"])


def _keep(path: Path, state: dict[str, Any]) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


# --------------------------------------------------------------------------------------------------------- plans


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=sorted(MODELS), default="gcn", help="(default gcn)")
    parser.add_argument("--features", type=int, default=64, help="numbers per vertex (default 64)")
    parser.add_argument("--outputs", type=int, default=16, help="(default 16)")
    parser.add_argument("--scale", type=int, default=10, help="of the R-MAT graph: 2^SCALE vertices (default 10)")
    parser.add_argument("--arcs", type=int, default=16_384, help="(default 16384)")
    parser.add_argument("--constant", action="store_true", help="vertex data that need no gradient")


def _plan(given: argparse.Namespace) -> int:
    graph, weight = rmat(given.scale, given.arcs, 1), None
    if given.model == "gcn":
        graph, weight = gcn_norm(graph)
    x = torch.zeros(graph.num_vertices, given.features, requires_grad=not given.constant)
    print(MODELS[given.model](given.features, given.outputs).plan(graph, x, weight))
    return 0


# -------------------------------------------------------------------------------------------------------- stores


def _build_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", type=Path, help="the folder to make; it must not exist")
    parser.add_argument("edges", type=Path, help="text (a source and a destination a line), .npy or .npz")
    parser.add_argument("--vertices", type=int, help="their number; by default the file is read once more for it")
    parser.add_argument("--features", type=Path, help="vertex data: .npy of (vertices, width)")
    parser.add_argument("--chunk", type=int, default=32_768, help="vertices of an interval, to 65536 (default 32768)")
    parser.add_argument("--order", choices=["degree", "natural"], default="degree", help="(default degree)")
    parser.add_argument("--self-loops", action="store_true", help="exactly one for every vertex, as GCN wants them")
    parser.add_argument("--both-ways", action="store_true", help="add the reverse of every arc")


def _build(given: argparse.Namespace) -> int:
    if not given.edges.exists():
        raise FileNotFoundError(f"no {given.edges}: give a file of arcs")
    vertices = most_vertices(given.edges) if given.vertices is None else given.vertices

    def blocks() -> Any:
        for src, dst in edge_blocks(given.edges):
            yield src, dst
            if given.both_ways:
                yield dst, src

    store = ChunkStore.build(
        given.store, blocks(), vertices, given.features, chunk_vertices=given.chunk, order=given.order,
        self_loops=given.self_loops, progress=lambda line: print(line, flush=True),
    )  # fmt: skip
    store.close()
    return _info(argparse.Namespace(store=given.store, verify=False))


def _info(given: argparse.Namespace) -> int:
    with ChunkStore.open(given.store, verify=given.verify) as store:
        sizes = store.meta["sizes"]
        arcs = max(1, store.num_arcs)
        print(f"vertices   {store.num_vertices:,} of {store.width} features, in {store.meta['order']} order")
        print(f"arcs       {store.num_arcs:,}{', with self loops' if store.meta['self_loops'] else ''}")
        print(f"intervals  {store.intervals} of {store.side:,} vertices")
        print(f"index      {sizes['forward.bin'] / arcs:.2f} and {sizes['backward.bin'] / arcs:.2f} bytes an arc")
        print(f"on disk    {_size(sum(sizes.values()))}, in memory {_size(store.resident_bytes)}")
        if given.verify:
            print("verified   every checksum is right")
    return 0


# -------------------------------------------------------------------------------------------------------- roofline


def _roofline_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", type=Path, help="a picture: .png, .svg or .pdf; without it only the table")
    parser.add_argument("--smallest", type=int, default=12, help="log2 of the vertices (default 12)")
    parser.add_argument("--largest", type=int, default=20, help="log2 of the vertices (default 20)")
    parser.add_argument("--degree", type=int, default=16, help="arcs of a vertex (default 16)")
    parser.add_argument("--features", type=int, default=64, help="numbers per vertex (default 64)")


def _roofline(given: argparse.Namespace) -> int:
    scales = range(given.smallest, given.largest + 1)
    if not scales:
        raise GraphError(f"no size from 2^{given.smallest} to 2^{given.largest}: give a --largest that is not smaller")
    points = []
    print("  vertices  vertex data   gathered  torch CSR  read in order   GB/s")
    for scale in scales:
        points += roofline.measure([scale], given.degree, given.features)
        at = points[-1]
        rates = f"{at.gathered / 1e9:9.1f}{at.torch / 1e9:11.1f}{at.read / 1e9:15.1f}"
        print(f"{at.vertices:>10,}{_size(at.vertex_bytes):>13}{rates}", flush=True)
    if given.output is not None:
        roofline.draw(points, given.output)
        print(f"drawn into {given.output}")
    return 0


def parse_bytes(text: str) -> int:
    """Bytes from 1000, 64K, 256M or 1.5G. Raises BudgetError for anything else."""
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    try:
        return int(float(number) * UNITS[unit])
    except (ValueError, KeyError) as error:
        raise BudgetError(f"{text!r} is no number of bytes; write 1000, 64K, 256M or 1.5G", 0) from error


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


if __name__ == "__main__":
    sys.exit(main())
