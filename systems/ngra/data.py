"""Graphs to train on: the real ones from a data folder, and generated ones of the paper's shapes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from systems.ngra.graph import Graph, GraphError, NGraError, rmat

NAMES = ("cora", "citeseer", "pubmed", "blogcatalog")
SHAPES = {  # vertices, arcs, features, classes: the paper's table
    "pubmed": (19_700, 108_400, 500, 3),
    "protein": (43_500, 205_600, 29, 3),
    "blogcatalog": (10_300, 668_000, 128, 39),
    "reddit_small": (46_600, 1_400_000, 602, 41),
    "reddit_middle": (233_000, 23_200_000, 602, 41),
    "reddit_full": (2_200_000, 571_000_000, 300, 50),
    "enwiki": (3_200_000, 222_100_000, 300, 12),
    "amazon": (8_600_000, 231_600_000, 96, 22),
}


@dataclass(frozen=True)
class Dataset:
    """x: (vertices, features) float32; y: (vertices,) int64 classes, -1 where unlabelled, or (vertices, classes)
    0 or 1 where a vertex may have several; train, val, test: vertex ids. `real` is False for generated data."""

    name: str
    graph: Graph
    x: Tensor
    y: Tensor
    train: Tensor
    val: Tensor
    test: Tensor
    real: bool

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return self.y.shape[1] if self.y.dim() == 2 else int(self.y.max()) + 1


def load(name: str, folder: str | Path | None = None) -> Dataset:
    """A real graph: "cora", "citeseer", "pubmed" (with the public split) or "blogcatalog".

    folder: where `<name>.npz` lies; by default `$MAAT_DATA/ngra`, else `../shared/data/ngra` beside the project.
    Features of the citation graphs are normalised to sum 1 per row, as Kipf and Welling do.
    Raises GraphError for other names, FileNotFoundError that says where to get the data.
    """
    if name not in NAMES:
        raise GraphError(f"there is no data set {name!r}, expected one of {', '.join(NAMES)}")
    root = Path(os.environ.get("MAAT_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
    path = (Path(folder) if folder is not None else root / "ngra") / f"{name}.npz"
    if not path.exists():
        raise FileNotFoundError(f"no {path}; systems/ngra/README.md says where to get it, or set MAAT_DATA")
    with np.load(path, allow_pickle=False) as file:
        held = {key: file[key] for key in file.files}
    return _blogcatalog(held) if name == "blogcatalog" else _citations(name, held)


def _citations(name: str, held: dict[str, Any]) -> Dataset:
    n = int(held["num_vertices"])
    x = np.zeros((n, int(held["x_dim"])), np.float32)
    rows = np.repeat(np.arange(n), np.diff(held["x_indptr"]))
    values = held["x_data"] if len(held["x_data"]) else np.ones(len(rows), np.float32)
    x[rows, held["x_indices"]] = values
    x /= np.maximum(x.sum(1, keepdims=True), 1e-12)
    graph = Graph(held["src"].astype(np.int64), held["dst"].astype(np.int64), vertices=n)
    train, val, test = (torch.from_numpy(held[part].astype(np.int64)) for part in ("train", "val", "test"))
    return Dataset(
        name, graph, torch.from_numpy(x), torch.from_numpy(held["y"].astype(np.int64)), train, val, test, real=True
    )


def _blogcatalog(held: dict[str, Any]) -> Dataset:
    a, b = held["und_a"].astype(np.int64), held["und_b"].astype(np.int64)
    graph = Graph(np.concatenate([a, b]), np.concatenate([b, a]))
    n = graph.num_vertices
    y = torch.zeros(n, int(held["group_id"].max()) + 1)
    y[torch.from_numpy(held["group_vertex"].astype(np.int64)), torch.from_numpy(held["group_id"].astype(np.int64))] = 1
    # The set has no features: random ones of the width that the paper lists, always the same.
    x = torch.randn(n, 128, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    cuts = (n * 6 // 10, n * 8 // 10)
    return Dataset("blogcatalog", graph, x, y, order[: cuts[0]], order[cuts[0] : cuts[1]], order[cuts[1] :], real=True)


def paper_shape(name: str, scale: float = 1.0, seed: int = 0) -> Dataset:
    """A generated graph with the vertices, arcs, features and classes of a data set of the paper, times `scale`.

    R-MAT, its ids folded onto the vertices; "protein" is a union of small graphs. Synthetic: only its size is real.
    """
    if name not in SHAPES:
        raise GraphError(f"there is no shape {name!r}, expected one of {', '.join(SHAPES)}")
    vertices, arcs, features, classes = SHAPES[name]
    n, m = max(1, int(vertices * scale)), int(arcs * scale)
    generator = torch.Generator().manual_seed(seed)
    if name == "protein":
        first = torch.randint(n, (m,), generator=generator)
        second = torch.clamp(first // 39 * 39 + torch.randint(39, (m,), generator=generator), max=n - 1)
        graph = Graph(first, second, vertices=n)
    else:
        src, dst = rmat(max(0, (n - 1).bit_length()), m, seed).arcs()
        graph = Graph(src % n, dst % n, vertices=n)
    x = torch.randn(n, features, generator=generator)
    y = torch.randint(classes, (n,), generator=generator)
    return _split(name, graph, x, y, generator)


def planted(vertices: int = 1200, classes: int = 4, features: int = 32, seed: int = 0) -> Dataset:
    """A graph with planted classes: arcs are within a class 9 times of 10, and features lean to it a little."""
    if vertices < 10 * classes:
        raise NGraError(f"{vertices} vertices are too few for {classes} classes, expected at least {10 * classes}")
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (vertices,), generator=generator)
    by_class = [torch.nonzero(y == k).squeeze(1) for k in range(classes)]
    src = torch.randint(vertices, (5 * vertices,), generator=generator)
    dst = torch.randint(vertices, (5 * vertices,), generator=generator)
    for k, members in enumerate(by_class):
        inside = (y[src] == k) & (torch.rand(len(src), generator=generator) < 0.9)
        dst[inside] = members[torch.randint(len(members), (int(inside.sum()),), generator=generator)]
    graph = Graph(torch.cat([src, dst]), torch.cat([dst, src]), vertices=vertices)
    centres = torch.randn(classes, features, generator=generator)
    x = torch.randn(vertices, features, generator=generator) + 0.4 * centres[y]
    return _split("planted", graph, x, y, generator)


def _split(name: str, graph: Graph, x: Tensor, y: Tensor, generator: torch.Generator) -> Dataset:
    order = torch.randperm(len(y), generator=generator)
    cuts = (len(y) // 10, len(y) // 3)
    return Dataset(name, graph, x, y, order[: cuts[0]], order[cuts[0] : cuts[1]], order[cuts[1] :], real=False)
