"""Arcs from files, block by block: text, .npy and .npz, never read whole where the form allows it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from systems.ngra.graph import GraphError

BLOCK_ARCS = 1 << 20
Block = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def edge_blocks(path: str | Path, block: int = BLOCK_ARCS) -> Iterator[Block]:
    """(src, dst) blocks of at most `block` arcs.

    A text file holds `source destination` per line, with white space or a comma between; what begins with # or % is
    skipped. An .npy file is (arcs, 2) or (2, arcs) integers; an .npz file has `src` and `dst`.
    Raises GraphError naming the file, and the line of a text file, that does not fit; FileNotFoundError.
    """
    file = Path(path)
    if file.suffix == ".npz":
        with np.load(file, allow_pickle=False) as held:
            if not {"src", "dst"} <= set(held.files):
                raise GraphError(f"{file} holds {', '.join(held.files) or 'nothing'}, expected src and dst")
            src, dst = held["src"], held["dst"]
        yield from ((src[k : k + block], dst[k : k + block]) for k in range(0, len(src), block))
    elif file.suffix == ".npy":
        pairs = np.load(file, mmap_mode="r", allow_pickle=False)
        if pairs.ndim != 2 or 2 not in pairs.shape or pairs.dtype.kind not in "iu":
            raise GraphError(f"{file} has shape {pairs.shape} and type {pairs.dtype}, expected (arcs, 2) integers")
        pairs = pairs if pairs.shape[1] == 2 else pairs.T
        for k in range(0, len(pairs), block):
            part = np.asarray(pairs[k : k + block])
            yield part[:, 0], part[:, 1]
    else:
        yield from _from_text(file, block)


def _from_text(file: Path, block: int) -> Iterator[Block]:
    pairs: list[tuple[int, int]] = []
    with file.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.lstrip()[0] in "#%":
                continue
            words = line.replace(",", " ").split()
            try:
                pairs.append((int(words[0]), int(words[1])))
            except (ValueError, IndexError) as error:
                shown = line.strip()[:60]
                raise GraphError(f"{file}:{number}: {shown!r}, expected a source and a destination") from error
            if len(pairs) == block:
                yield _arrays(pairs)
                pairs = []
    if pairs:
        yield _arrays(pairs)


def _arrays(pairs: list[tuple[int, int]]) -> Block:
    both = np.array(pairs, np.int64)
    return both[:, 0], both[:, 1]


def most_vertices(path: str | Path) -> int:
    """The largest id + 1, found by one reading of the file."""
    return max((int(max(src.max(), dst.max())) + 1 for src, dst in edge_blocks(path) if len(src)), default=0)
