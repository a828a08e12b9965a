"""The same computations by PyG, DGL and torch, each in its fastest form, and an allocator that is fair to all."""

import contextlib
import ctypes
import importlib
import os
import warnings

import pytest
import torch
from torch.nn import functional as F

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


@contextlib.contextmanager
def reusing_allocator():
    """malloc keeps what was freed, for every contender: else half of a peer's time is page faults."""
    libc = ctypes.CDLL(None)
    wanted = {M_MMAP_THRESHOLD: 1 << 30, M_TRIM_THRESHOLD: (1 << 31) - 1, M_TOP_PAD: 256 << 20}
    for parameter, value in wanted.items():
        libc.mallopt(parameter, value)
    try:
        yield
    finally:
        for parameter, value in {M_MMAP_THRESHOLD: 128 << 10, M_TRIM_THRESHOLD: 128 << 10, M_TOP_PAD: 0}.items():
            libc.mallopt(parameter, value)
        with contextlib.suppress(AttributeError):  # a C library without it
            libc.malloc_trim(0)


def needed(name):
    """A peer's module, or a skip that says how to get it."""
    os.environ.setdefault("DGLBACKEND", "pytorch")
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        pytest.skip(f"{name} cannot be imported ({error}); pip install torch-geometric==2.8.1 dgl==1.1.3")


def csr(graph, weight=None):
    """(A, A transposed) as torch CSR matrices with int32 indices: out = A @ x."""
    n, rows = graph.num_vertices, graph.incoming
    values = torch.ones(graph.num_arcs) if weight is None else weight.values(graph).float().squeeze(1)
    values = graph.enter_arcs(values)
    back = graph.outgoing
    pair = (
        (rows.offsets, rows.ids[: graph.num_arcs], values),
        (back.offsets, back.ids[: graph.num_arcs], values[back.arcs.long()]),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse")  # in beta, and without checks of what is sorted here
        return tuple(
            torch.sparse_csr_tensor(offsets.int(), ids.contiguous(), numbers, size=(n, n))
            for offsets, ids, numbers in pair
        )


class Product(torch.autograd.Function):
    """A @ x by torch's CSR product, its backward given the transposed matrix."""

    @staticmethod
    def forward(ctx, matrix, transposed, x):
        ctx.transposed = transposed
        return matrix @ x

    @staticmethod
    def backward(ctx, upstream):
        return None, None, ctx.transposed @ upstream


class Bags(torch.autograd.Function):
    """Sums of weighted rows by embedding bags, forward and backward."""

    @staticmethod
    def forward(ctx, forth, back, x):
        ctx.back = back
        return bags(forth, x)

    @staticmethod
    def backward(ctx, upstream):
        return None, None, bags(ctx.back, upstream)


def bag_of(rows, arcs, weights=None):
    return rows.ids[:arcs], rows.offsets[:-1].int(), weights


def bags(arguments, x):
    ids, offsets, weights = arguments
    return F.embedding_bag(ids, x, offsets, mode="sum", per_sample_weights=weights)


def two_layers(aggregate, first, second, x):
    """A 2-layer GCN over any weighted sum, transforming first as the frameworks do."""
    hidden = torch.relu(aggregate(x @ first.weight.T) + first.bias)
    return aggregate(hidden @ second.weight.T) + second.bias


def dgl_graph(graph):
    """The graph as DGL's, its formats made beforehand."""
    made = needed("dgl").graph(graph.arcs(), num_nodes=graph.num_vertices, idtype=torch.int32)
    made.create_formats_()
    return made
