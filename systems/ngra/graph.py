"""Graphs: arcs in canonical order, encoded by destination and by source, in rows (1D) or in chunks (2D).

Arc k of a graph is the k-th in its **canonical order**: by destination, then source, then position in the user's
input. Every sum over arcs runs in that order, so its bits do not depend on chunks or threads. A graph may keep its
vertices in an internal order of better locality; callers never see it: vertex and arc data go in and come out in
the user's order.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from systems import native
from systems.ngra.dense import permuted

if TYPE_CHECKING:
    from systems.ngra.gpu import Tasks


class NGraError(Exception):
    """Anything that NGra refuses."""


class GraphError(NGraError, ValueError):
    """Arcs, vertex data or arc data that do not make a graph."""


class ProgramError(NGraError, TypeError):
    """A vertex program that cannot be captured, or data that do not fit it."""


class BudgetError(NGraError, MemoryError):
    """A memory budget below what the smallest schedule needs. `minimum`: bytes that would do."""

    def __init__(self, message: str, minimum: int) -> None:
        super().__init__(message)
        self.minimum = minimum


class StoreError(NGraError, OSError):
    """A folder of chunks that is damaged, of another version, or could not be written."""


MOST_VERTICES = 2**31 - 1
MOST_CHUNK = 65_536  # ids within an interval are 16 bits
DEFAULT_CHUNK = 32_768
PADDING = 64  # spare entries behind an index, so that a kernel may look ahead without a test
SOURCE = Path(__file__).with_name("layout.c")


@functools.cache
def layout() -> ctypes.CDLL | None:
    """The functions of layout.c; None without a C compiler."""
    library = native.load(SOURCE, name="ngra_layout", openmp=False)
    if library is not None:
        p, i = ctypes.c_void_p, ctypes.c_int64
        library.count.argtypes = [p, i, i, p]
        library.arrange.argtypes = [p, p, i, p, p]
        library.chunk.argtypes = [p, p, i, i, i, *[p] * 8]
        for function in (library.scatter_float, library.scatter_double):
            function.argtypes = [p, p, p, i, i, i, i, p]
        for function in (library.count, library.arrange, library.chunk, library.scatter_float, library.scatter_double):
            function.restype = None
    return library


@dataclass(frozen=True)
class Rows:
    """A graph by row, the rows being destinations or sources.

    offsets: (vertices + 1,) int64; ids: (arcs + PADDING,) int32, the neighbour of each arc, ascending in a row;
    arcs: (arcs,) int32, the canonical id of each, or None where that is 0, 1, 2, ...
    """

    offsets: Tensor
    ids: Tensor
    arcs: Tensor | None


@dataclass(frozen=True)
class Grid:
    """A graph in `intervals` x `intervals` chunks; chunk (i, j) holds the arcs from row interval i to neighbours in j.

    arc_begin, row_begin: (intervals^2 + 1,) int64, where each chunk begins in `locals` and in `rows`;
    rows: (non-empty rows,) uint16 within the interval; row_ends: (non-empty rows + chunks,) uint32, relative to the
    chunk's first arc, r + 1 of them for r rows; locals: (arcs + PADDING,) uint16, neighbours within their interval;
    arcs: (arcs,) int32, the position of each arc in the `Rows` that the grid was made from, or its canonical id.
    """

    side: int
    intervals: int
    arc_begin: Tensor
    row_begin: Tensor
    rows: Tensor
    row_ends: Tensor
    locals: Tensor
    arcs: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of the index, canonical ids apart."""
        parts = (self.arc_begin, self.row_begin, self.rows, self.row_ends, self.locals)
        return sum(part.numel() * part.element_size() for part in parts)


class Graph:
    """A directed graph with arcs `src[k] -> dst[k]`; multi-arcs and self loops are kept. Immutable.

    src, dst: (arcs,) integers, tensors, arrays or lists; vertices: their number, by default the largest id + 1.
    Raises GraphError naming the first bad arc and its value.
    """

    def __init__(self, src: Any, dst: Any, *, vertices: int | None = None) -> None:
        source, destination, n = _checked(src, dst, vertices)
        self._set(source, destination, n, None, None)

    def _set(
        self,
        source: np.ndarray[Any, Any],
        destination: np.ndarray[Any, Any],
        vertices: int,
        order: Tensor | None,
        side: int | None,
    ) -> None:
        self.num_vertices: int = vertices
        self.num_arcs: int = len(source)
        self.order: Tensor | None = order
        self.chunk_vertices: int | None = side
        by_source, _ = _sorted(source, None, vertices)
        positions, offsets = _sorted(destination, by_source, vertices)
        ids = np.zeros(len(source) + PADDING, np.int32)
        ids[: len(source)] = source[positions]
        self.incoming = Rows(torch.from_numpy(offsets), torch.from_numpy(ids), None)
        self._entered: tuple[Any, int, Tensor] | None = None
        identity = bool((positions == np.arange(len(positions), dtype=np.int32)).all())
        self.arc_positions: Tensor | None = None if identity else torch.from_numpy(positions)

    @classmethod
    def _of(
        cls,
        source: np.ndarray[Any, Any],
        destination: np.ndarray[Any, Any],
        vertices: int,
        order: Tensor | None,
        side: int | None,
    ) -> Graph:
        made = cls.__new__(cls)
        made._set(source, destination, vertices, order, side)
        return made

    def __repr__(self) -> str:
        cut = f", chunks of {self.chunk_vertices} vertices" if self.chunk_vertices else ""
        return f"Graph({self.num_vertices} vertices, {self.num_arcs} arcs{cut})"

    # ------------------------------------------------------------------------------------------ encodings

    @functools.cached_property
    def outgoing(self) -> Rows:
        """The transposed graph: rows are sources, neighbours destinations, with canonical arc ids."""
        ids = self.incoming.ids.numpy()[: self.num_arcs]
        arcs, offsets = _sorted(ids, None, self.num_vertices)
        neighbours = np.zeros(self.num_arcs + PADDING, np.int32)
        neighbours[: self.num_arcs] = self.arc_destinations.numpy()[arcs]
        return Rows(torch.from_numpy(offsets), torch.from_numpy(neighbours), torch.from_numpy(arcs))

    @functools.cached_property
    def arc_destinations(self) -> Tensor:
        """(arcs,) int32: the destination of each arc in canonical order, in internal ids."""
        ids = torch.arange(self.num_vertices, dtype=torch.int32)
        return torch.repeat_interleave(ids, self.incoming.offsets.diff(), output_size=self.num_arcs)

    @property
    def arc_sources(self) -> Tensor:
        """(arcs,) int32: the source of each arc in canonical order, in internal ids."""
        return self.incoming.ids[: self.num_arcs]

    @functools.cached_property
    def incoming_grid(self) -> Grid | None:
        """Chunks by destination, where the graph is chunked and a compiler was there."""
        return None if self.chunk_vertices is None else make_grid(self.incoming, self.chunk_vertices)

    @functools.cached_property
    def outgoing_grid(self) -> Grid | None:
        """Chunks by source."""
        return None if self.chunk_vertices is None else make_grid(self.outgoing, self.chunk_vertices)

    def tasks(self, rows_are: str, device: torch.device) -> Tasks:
        """What the programs of a GPU kernel do, by destination ("D") or source ("S"); kept for the next time."""
        from systems.ngra.gpu import cut

        held: dict[Any, Tasks] = self.__dict__.setdefault("_tasks", {})
        key = (rows_are, str(device))
        if key not in held:
            held[key] = cut(self.incoming if rows_are == "D" else self.outgoing, device)
        return held[key]

    # -------------------------------------------------------------------------------------------- degrees

    @functools.cached_property
    def internal_in_degree(self) -> Tensor:
        """(vertices,) int64 in-degrees, in internal order."""
        return self.incoming.offsets.diff()

    @functools.cached_property
    def internal_out_degree(self) -> Tensor:
        """(vertices,) int64 out-degrees, in internal order."""
        return torch.bincount(self.arc_sources.long(), minlength=self.num_vertices)

    @property
    def in_degree(self) -> Tensor:
        """(vertices,) int64: arcs that end in each vertex, in the user's order."""
        return self.leave(self.internal_in_degree)

    @property
    def out_degree(self) -> Tensor:
        """(vertices,) int64: arcs that begin in each vertex, in the user's order."""
        return self.leave(self.internal_out_degree)

    # --------------------------------------------------------------------------------------- user's order

    def enter(self, x: Tensor) -> Tensor:
        """Vertex data (vertices, ...) from the user's order to the internal one."""
        return x if self.order is None else permuted(x, self.order, self.rank)

    def leave(self, y: Tensor) -> Tensor:
        """Vertex data (vertices, ...) from the internal order to the user's."""
        return y if self.order is None else permuted(y, self.rank, self.order)

    @functools.cached_property
    def rank(self) -> Tensor:
        """(vertices,) int64: the internal position of each of the user's vertices."""
        rank = torch.arange(self.num_vertices)
        if self.order is not None:
            rank[self.order] = torch.arange(self.num_vertices)
        return rank

    def enter_arcs(self, edge: Tensor) -> Tensor:
        """Arc data (arcs, ...) from the user's order to the canonical one; of constant data it is kept for the next."""
        if self.arc_positions is None:
            return edge
        positions = self.arc_positions.to(edge.device)
        if edge.requires_grad:
            return edge.index_select(0, positions)
        held = self._entered
        if held is None or held[0]() is not edge or held[1] != edge._version:
            self._entered = held = (weakref.ref(edge), edge._version, edge.index_select(0, positions))
        return held[2]

    def arcs(self) -> tuple[Tensor, Tensor]:
        """(src, dst), each (arcs,) int64, with the user's ids in the user's order of arcs."""
        source, destination = self.arc_sources.long(), self.arc_destinations.long()
        if self.order is not None:
            source, destination = self.order[source], self.order[destination]
        if self.arc_positions is None:
            return source, destination
        src, dst = torch.empty_like(source), torch.empty_like(destination)
        src[self.arc_positions.long()], dst[self.arc_positions.long()] = source, destination
        return src, dst

    # ------------------------------------------------------------------------------------------ new graphs

    def without_self_loops(self) -> Graph:
        """This graph less its arcs i -> i. Arc data of the old graph do not fit the new one."""
        src, dst = self.arcs()
        kept = src != dst
        return self._like(src[kept], dst[kept])

    def with_self_loops(self) -> Graph:
        """This graph with exactly one arc i -> i for every vertex; the new arcs follow the others in input order."""
        src, dst = self.arcs()
        kept, loops = src != dst, torch.arange(self.num_vertices)
        return self._like(torch.cat([src[kept], loops]), torch.cat([dst[kept], loops]))

    def transposed(self) -> Graph:
        """Every arc turned round, in the same input order."""
        src, dst = self.arcs()
        return self._like(dst, src)

    def _like(self, src: Tensor, dst: Tensor) -> Graph:
        rank = self.rank.numpy().astype(np.int32)
        return Graph._of(rank[src.numpy()], rank[dst.numpy()], self.num_vertices, self.order, self.chunk_vertices)

    def chunked(self, chunk_vertices: int = DEFAULT_CHUNK, order: str | Sequence[int] | Tensor = "degree") -> Graph:
        """The same graph, cut into chunks of `chunk_vertices` after putting vertices that meet often side by side.

        order: "degree" (descending in + out degree), "rcm", "metis" (needs pymetis), "natural", "auto" (the lower
        theta of degree and metis), or a permutation: the user's ids in their internal order. Results stay in the
        user's order; float sums may differ in the last bits between orders, never between chunk sizes.
        Raises GraphError for a chunk size outside 1 ... 65,536 and for what is no permutation.
        """
        if not isinstance(chunk_vertices, int) or not 1 <= chunk_vertices <= MOST_CHUNK:
            raise GraphError(f"chunk_vertices is {chunk_vertices!r}, expected 1 to {MOST_CHUNK}: ids in it are 16 bits")
        permutation = vertex_order(self, order)
        src, dst = (part.numpy() for part in self.arcs())
        if permutation is None:
            return Graph._of(src.astype(np.int32), dst.astype(np.int32), self.num_vertices, None, chunk_vertices)
        rank = np.empty(self.num_vertices, np.int32)
        rank[permutation] = np.arange(self.num_vertices, dtype=np.int32)
        order_tensor = torch.from_numpy(permutation.astype(np.int64))
        return Graph._of(rank[src], rank[dst], self.num_vertices, order_tensor, chunk_vertices)

    def theta(self, intervals: int = 16) -> float:
        """The mean share of a source interval's vertices that one of intervals x intervals chunks uses: 0 to 1."""
        if self.num_vertices == 0:
            return 0.0
        side = -(-self.num_vertices // intervals)
        count = -(-self.num_vertices // side)
        used = np.zeros((count, self.num_vertices), bool)
        used[self.arc_destinations.numpy() // side, self.arc_sources.numpy()] = True
        bounds = np.minimum(np.arange(count + 1) * side, self.num_vertices)
        sums = np.add.reduceat(used, bounds[:-1], axis=1, dtype=np.int64)
        return float((sums / np.diff(bounds)).mean())


def make_grid(rows: Rows, side: int) -> Grid | None:
    """`rows` cut into chunks of side x side; None without a C compiler."""
    library = layout()
    if library is None:
        return None
    vertices = rows.offsets.numel() - 1
    arcs = rows.ids.numel() - PADDING
    intervals = max(1, -(-vertices // side))
    arc_begin = torch.zeros(intervals**2 + 1, dtype=torch.int64)
    row_begin = torch.zeros_like(arc_begin)
    place, spot = torch.empty(intervals, dtype=torch.int64), torch.empty(intervals, dtype=torch.int64)
    fixed = (rows.offsets.data_ptr(), rows.ids.data_ptr(), vertices, side, intervals)
    tables = (arc_begin.data_ptr(), row_begin.data_ptr(), place.data_ptr(), spot.data_ptr())
    library.chunk(*fixed, *tables, None, None, None, None)
    arc_begin.cumsum_(0)
    row_begin.cumsum_(0)
    total = int(row_begin[-1])
    grid = Grid(
        side,
        intervals,
        arc_begin,
        row_begin,
        torch.empty(total + 1, dtype=torch.uint16),
        torch.zeros(total + intervals**2 + 1, dtype=torch.uint32),
        torch.zeros(arcs + PADDING, dtype=torch.uint16),
        torch.empty(arcs + 1, dtype=torch.int32),
    )
    library.chunk(
        *fixed, *tables, grid.rows.data_ptr(), grid.row_ends.data_ptr(), grid.locals.data_ptr(), grid.arcs.data_ptr()
    )
    if rows.arcs is not None:
        grid.arcs[:arcs] = rows.arcs[grid.arcs[:arcs].long()]
    return grid


def _sorted(
    keys: np.ndarray[Any, Any], order: np.ndarray[Any, Any] | None, buckets: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(positions (n,) int32, offsets (buckets + 1,) int64): `order` sorted stably by key; keys: (n,) int32."""
    keys = np.ascontiguousarray(keys, np.int32)
    offsets = np.zeros(buckets + 1, np.int64)
    library = layout()
    if library is None:
        np.cumsum(np.bincount(keys, minlength=buckets), out=offsets[1:])
        start = np.arange(len(keys), dtype=np.int32) if order is None else order
        return start[np.argsort(keys[start], kind="stable")], offsets
    library.count(keys.ctypes.data, len(keys), buckets, offsets.ctypes.data)
    cursor, out = offsets.copy(), np.empty(len(keys), np.int32)
    library.arrange(
        keys.ctypes.data, None if order is None else order.ctypes.data, len(keys), cursor.ctypes.data, out.ctypes.data
    )
    return out, offsets


def vertex_order(graph: Graph, order: str | Sequence[int] | Tensor) -> np.ndarray[Any, Any] | None:
    """The user's vertex ids in a new internal order, or None for the user's own; as for `Graph.chunked`."""
    if not isinstance(order, str):
        chosen = np.asarray(order)
        if chosen.shape != (graph.num_vertices,) or not np.array_equal(np.sort(chosen), np.arange(graph.num_vertices)):
            raise GraphError(
                f"order is no permutation of the {graph.num_vertices} vertices: shape {chosen.shape}; "
                "it must hold each id once"
            )
        return chosen.astype(np.int64)
    if order == "natural":
        return None
    if order == "degree":
        return _by_degree(graph)
    if order == "rcm":
        from scipy.sparse import csr_matrix
        from scipy.sparse.csgraph import reverse_cuthill_mckee

        src, dst = (part.numpy() for part in graph.arcs())
        shape = (graph.num_vertices, graph.num_vertices)
        matrix = csr_matrix((np.ones(len(src), np.int8), (dst, src)), shape=shape)
        return np.asarray(reverse_cuthill_mckee(matrix, symmetric_mode=False), np.int64)
    if order == "metis":
        return _by_parts(graph)
    if order == "auto":
        candidates = [_by_degree(graph)]
        try:
            candidates.append(_by_parts(graph))
        except GraphError:
            return candidates[0]
        return min(candidates, key=lambda ids: graph.chunked(order=torch.from_numpy(ids)).theta())
    raise GraphError(f"order is {order!r}, expected degree, rcm, metis, natural, auto or a permutation")


def _by_degree(graph: Graph) -> np.ndarray[Any, Any]:
    degree = (graph.in_degree + graph.out_degree).numpy()
    return np.argsort(-degree, kind="stable")


def _by_parts(graph: Graph) -> np.ndarray[Any, Any]:
    try:
        pymetis = importlib.import_module("pymetis")
    except ImportError as error:
        raise GraphError('order="metis" needs the package pymetis; "degree" needs nothing') from error
    src, dst = (part.numpy() for part in graph.without_self_loops().arcs())
    pairs = np.unique(np.concatenate([src * graph.num_vertices + dst, dst * graph.num_vertices + src]))
    starts = np.searchsorted(pairs, np.arange(graph.num_vertices + 1) * graph.num_vertices)
    neighbours = (pairs % max(1, graph.num_vertices)).astype(np.int64)
    parts = max(2, min(16, graph.num_vertices // 64))
    _, membership = pymetis.part_graph(parts, xadj=starts, adjncy=neighbours)
    degree = (graph.in_degree + graph.out_degree).numpy()
    return np.lexsort((-degree, np.asarray(membership)))


# --------------------------------------------------------------------------------------------------- arc weights


@dataclass(frozen=True)
class ArcWeight:
    """A weight per arc that is known to be a product: source[j] * destination[i] for the arc j -> i.

    source, destination: (vertices,) float64 in the user's order. `Layer` takes it for `edge`, and then needs no
    weight per arc at all.
    """

    source: Tensor
    destination: Tensor

    def values(self, graph: Graph) -> Tensor:
        """(arcs, 1) float64, in the user's order of arcs."""
        src, dst = graph.arcs()
        return (self.source[src] * self.destination[dst]).unsqueeze(-1)


def gcn_norm(graph: Graph, self_loops: bool = True) -> tuple[Graph, ArcWeight]:
    """Symmetric normalisation (Kipf and Welling 2017): the graph, with self loops where wanted, and its arc weight
    1 / sqrt(d_i d_j), d being in-degrees; 0 for a vertex without in-arcs."""
    looped = graph.with_self_loops() if self_loops else graph
    scale = looped.in_degree.double().rsqrt()
    scale[torch.isinf(scale)] = 0.0
    return looped, ArcWeight(scale, scale)


# ---------------------------------------------------------------------------------------------------- generators


def rmat(scale: int, arcs: int, seed: int = 0, a: float = 0.57, b: float = 0.19, c: float = 0.19) -> Graph:
    """A recursive-matrix graph (Chakrabarti et al. 2004) of 2**scale vertices, without noise in the quadrants.

    a, b, c: the probabilities of the upper left, upper right and lower left quadrant. The same on every machine.
    Raises GraphError for probabilities that exceed 1 in sum.
    """
    if min(a, b, c) < 0 or a + b + c > 1 or not 0 <= scale <= 30 or arcs < 0:
        raise GraphError(f"rmat(scale={scale}, arcs={arcs}, a={a}, b={b}, c={c}): no such graph")
    generator = np.random.default_rng(seed)
    src, dst = np.zeros(arcs, np.int32), np.zeros(arcs, np.int32)
    block = 2**20
    for start in range(0, arcs, block):
        stop = min(arcs, start + block)
        for _ in range(scale):
            draw = generator.random(stop - start, dtype=np.float32)
            lower = draw >= a + b
            right = ((draw >= a) & ~lower) | (draw >= a + b + c)
            src[start:stop] = 2 * src[start:stop] + lower
            dst[start:stop] = 2 * dst[start:stop] + right
    return Graph._of(src, dst, 2**scale, None, None)


# -------------------------------------------------------------------------------------------------------- checks


def _checked(src: Any, dst: Any, vertices: int | None) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], int]:
    source, destination = _integers("src", src), _integers("dst", dst)
    if len(source) != len(destination):
        raise GraphError(f"src holds {len(source)} arcs and dst {len(destination)}: they must be of one length")
    largest = int(max(source.max(), destination.max())) if len(source) else -1
    if vertices is None:
        vertices = largest + 1
    if not isinstance(vertices, int) or not 0 <= vertices <= MOST_VERTICES:
        raise GraphError(f"vertices is {vertices!r}, expected an integer from 0 to {MOST_VERTICES}")
    if len(source) >= MOST_VERTICES:
        raise GraphError(f"{len(source)} arcs do not fit in memory here; stream them from a ChunkStore")
    for name, ids in (("src", source), ("dst", destination)):
        wrong = np.flatnonzero((ids < 0) | (ids >= vertices))
        if len(wrong):
            _refuse(name, int(wrong[0]), ids[wrong[0]], vertices)
    return source.astype(np.int32), destination.astype(np.int32), vertices


def _integers(name: str, given: Any) -> np.ndarray[Any, Any]:
    ids = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    if ids.size == 0 and ids.ndim == 1:
        return ids.astype(np.int64)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise GraphError(f"{name} has shape {ids.shape} and type {ids.dtype}, expected (arcs,) integers")
    return ids


def _refuse(name: str, position: int, value: int, vertices: int) -> NoReturn:
    raise GraphError(f"{name}[{position}] is {value}, expected 0 to {vertices - 1} ({vertices} vertices)")
