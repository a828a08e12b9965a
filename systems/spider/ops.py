"""Products whose zeros are skipped: `matmul`, `einsum`, `plan`, and the primitives `sread` and `swrite`.

A product is planned (selection), its sparse operand detected once (index), and run by the kernels of a backend;
the gradients use the same index. Nothing is kept between calls, so a new pattern in the same memory is a new
pattern. All of it holds for every dtype: float32 natively, 16-bit floats in float32 with one rounding at the
end, float64 and integers through torch. On CUDA the kernels are Triton's.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from systems.spider import cpu, selection, torch_backend
from systems.spider.cpu import Form
from systems.spider.index import TileIndex, find, row_major
from systems.spider.rules import DtypeError, PatternError, ShapeError, SpiderError
from systems.spider.selection import Plan, Problem, TileTable

__all__ = ["make_plan", "matmul", "sread", "swrite"]

Sparse = Literal["a", "b", "out"]
BACKENDS = ("auto", "native", "torch", "triton", "dense")
HALF = (torch.float16, torch.bfloat16)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
DTYPES = (torch.float32, torch.float64, *HALF, *INTEGERS)
WIDE_TILE = 8  # from here on the lists of an index serve its transpose as well as lists made for it
COVERED = 1.7  # ... unless the micro-tiles hold more zeros than this many elements for each non-zero


def matmul(
    a: Tensor,
    b: Tensor,
    *,
    sparse: Sparse = "a",
    mask: Tensor | TileIndex | None = None,
    grad: Literal["exact", "pattern"] = "exact",
    nonfinite: Literal["skip", "strict"] = "skip",
    plan: Plan | None = None,
    backend: str = "auto",
) -> Tensor:
    """a @ b, skipping the zeros of the operand named by `sparse`.

    a: (M, K) or (B, M, K), b: (K, N) or (B, K, N), one dtype and device. Returns (M, N) or (B, M, N).
    sparse "out": only the elements of `mask` are computed, the others are 0; mask: bool of the result's shape, or
    for 2-D operands a TileIndex of it.
    grad "exact": the gradient of the sparse operand is dense, as mathematics has it; "pattern": only where that
    operand is not zero, for a caller who multiplies by the mask anyway.
    nonfinite: NaN and infinities of the sparse operand always propagate, those of the dense one only where they
    meet a kept micro-tile; "strict" goes dense when the dense operand has any.
    plan: of `make_plan`, by default made here. backend: "auto" follows the device; the others are for tests.

    Raises ShapeError, DtypeError, PatternError (mask, options) and SpiderError (a backend that is not there).
    """
    # Too small to look at: whatever is done first costs more than it saves, so torch itself refuses what is wrong.
    if (
        plan is None
        and mask is None
        and sparse == "a"
        and grad == "exact"
        and backend == "auto"
        and (a.dtype is torch.float32 or a.dtype is torch.float64)
        and (volume := a.numel() * b.shape[-1]) < selection.MODEST
        and a.ndim == 2
        and nonfinite in ("skip", "strict")
    ):
        try:
            if volume < selection.SMALL or _little_to_skip(a, b):
                return torch.mm(a, b)
        except RuntimeError:
            _check(a, b, sparse, mask, grad, nonfinite, backend)
            if a.ndim == b.ndim == 2:
                raise
    _check(a, b, sparse, mask, grad, nonfinite, backend)
    if sparse == "b":
        flipped = matmul(
            b.transpose(-1, -2), a.transpose(-1, -2), grad=grad, nonfinite=nonfinite, plan=plan, backend=backend
        )
        return flipped.transpose(-1, -2)
    if a.ndim == 2 and b.ndim == 2:
        return _matrix_product(a, b, sparse, mask, grad, nonfinite, plan, backend)
    options: dict[str, Any] = {"grad": grad, "nonfinite": nonfinite, "plan": plan, "backend": backend}
    if sparse == "a" and b.ndim == 2:
        flat = a.reshape(a.shape[0] * a.shape[1], a.shape[2])
        return matmul(flat, b, **options).reshape(a.shape[0], a.shape[1], b.shape[1])
    if sparse == "a" and a.ndim == 2:
        batch, depth, columns = b.shape
        wide = matmul(a, b.permute(1, 0, 2).reshape(depth, batch * columns), **options)
        return wide.reshape(a.shape[0], batch, columns).transpose(0, 1)
    batch = max(a.shape[0] if a.ndim == 3 else 1, b.shape[0] if b.ndim == 3 else 1)
    first, second = (x if x.ndim == 3 else x.expand(batch, *x.shape) for x in (a, b))
    if batch == 0:
        return torch.bmm(first, second)
    return torch.stack([
        matmul(x, y, sparse=sparse, mask=mask[i] if isinstance(mask, Tensor) else None, **options)
        for i, (x, y) in enumerate(zip(first, second, strict=True))
    ])  # fmt: skip


def _little_to_skip(a: Tensor, b: Tensor) -> bool:
    """Whether a glance at a, (M, K), is enough to go dense: for products so short that a full look shows in them."""
    if a.dtype is not torch.float32 or torch.compiler.is_compiling() or not a.is_contiguous() or not a.is_cpu:
        return False
    if not cpu.available():
        return False
    (m, k), n = a.shape, b.shape[-1]
    problem = Problem(m, k, n, torch.get_num_threads())
    counts = selection.glance(a)
    return selection.choose(counts, problem, _table("cpu", "float32"), "mk,kn->mn", "native").micro_tile is None


def make_plan(a: Tensor, b: Tensor, *, sparse: Sparse = "a", mask: Tensor | None = None, backend: str = "auto") -> Plan:
    """How `matmul` would run this: 2-D operands as there. The densities are counted on a sample of the rows."""
    _check(a, b, sparse, mask, "exact", "skip", backend)
    if a.ndim != 2 or b.ndim != 2:
        raise ShapeError(f"a plan is made for matrices, not for shapes {tuple(a.shape)} and {tuple(b.shape)}")
    if sparse == "b":
        return _planned(b.t(), a.t(), None, backend)
    return _planned(a, b, mask, backend)


def _planned(a: Tensor, b: Tensor, mask: Tensor | None, backend: str) -> Plan:
    chosen = chosen_backend(a, backend)
    threads = torch.get_num_threads() if a.device.type == "cpu" else 1
    (m, k), n = a.shape, b.shape[1]
    # Of a masked output the sparse matrix is the mask: (m, n), with dots of length k.
    problem = Problem(m, n, k, threads) if mask is not None else Problem(m, k, n, threads)
    expression = "out: mk,kn->mn" if mask is not None else "mk,kn->mn"
    if chosen == "dense":
        why = "asked for" if backend == "dense" else f"there are no kernels for {a.device.type}"
        return Plan(expression, "dense", "dense", (), problem, "no", why)
    if backend == "auto" and m * k * n < selection.SMALL:
        return Plan(expression, "dense", "dense", (), problem, "no", "too small to be worth a look")
    seen = mask if mask is not None else a.detach()
    if chosen == "native":
        seen = row_major(seen.float())
    if chosen == "triton":
        table = _table("cuda", "bfloat16" if a.dtype in HALF else "float32")
    else:
        table = _table("cpu", "float32" if chosen == "native" else "float64")
    return selection.choose(selection.count(seen, chosen), problem, table, expression, chosen, forced=backend != "auto")


def sread(x: Tensor, index: TileIndex, axis: int) -> Tensor:
    """The slices of x along `axis` that an index lists, packed in its order (PIT's SRead).

    x: any shape whose extent along `axis` is that of the index's condensed axis; returns x with `len(indices)`
    slices there. Differentiable. Raises ShapeError.
    """
    _check_along(x, index, axis, "x")
    return x.index_select(axis, index.tight().indices)


def swrite(y: Tensor, index: TileIndex, axis: int, out: Tensor, accumulate: bool = False) -> Tensor:
    """`out` with the packed slices of y along `axis` at the places that an index lists (PIT's SWrite).

    y: `len(indices)` slices along `axis`, else of out's shape. Returns a new tensor: out is not written.
    accumulate: add to what is there, block after block; without it no place may be listed twice.
    Raises ShapeError, PatternError.
    """
    _check_along(out, index, axis, "out")
    places = index.tight().indices.long()
    if y.shape != (*out.shape[:axis], places.numel(), *out.shape[axis + 1 :]):
        raise ShapeError(f"y is {tuple(y.shape)}, expected out's shape with {places.numel()} along axis {axis}")
    if accumulate:
        return torch.index_add(out, axis, places, y)
    if places.unique().numel() != places.numel():
        raise PatternError("the index lists a place twice: give accumulate=True, or an index of one block")
    return torch.index_copy(out, axis, places, y)


# -------------------------------------------------------------------------------------------------- checking


def _check(
    a: Tensor, b: Tensor, sparse: str, mask: Tensor | TileIndex | None, grad: str, nonfinite: str, backend: str
) -> None:
    if sparse not in ("a", "b", "out"):
        raise PatternError(f"sparse is {sparse!r}, expected 'a', 'b' or 'out'")
    if grad not in ("exact", "pattern"):
        raise PatternError(f"grad is {grad!r}, expected 'exact' or 'pattern'")
    if nonfinite not in ("skip", "strict"):
        raise PatternError(f"nonfinite is {nonfinite!r}, expected 'skip' or 'strict'")
    if backend not in BACKENDS:
        raise SpiderError(f"backend is {backend!r}, expected one of {', '.join(BACKENDS)}")
    if a.dtype != b.dtype or a.dtype not in DTYPES:
        raise DtypeError(f"a is {a.dtype} and b {b.dtype}, expected one real dtype: a float or an integer one")
    if a.device != b.device:
        raise DtypeError(f"a is on {a.device} and b on {b.device}, expected one device")
    if a.ndim not in (2, 3) or b.ndim not in (2, 3) or a.shape[-1] != b.shape[-2]:
        raise ShapeError(f"a is {tuple(a.shape)} and b {tuple(b.shape)}, expected ([B,] M, K) and ([B,] K, N)")
    if a.ndim == b.ndim == 3 and a.shape[0] != b.shape[0]:
        raise ShapeError(f"a has {a.shape[0]} batch entries and b {b.shape[0]}")
    if (sparse == "out") != (mask is not None):
        raise PatternError("mask and sparse='out' go together: give both or neither")
    if mask is None:
        return
    batch = a.shape[:-2] or b.shape[:-2]
    expected = (*batch, a.shape[-2], b.shape[-1])
    if tuple(mask.shape) != expected or (isinstance(mask, Tensor) and mask.dtype != torch.bool):
        raise PatternError(f"mask is {tuple(mask.shape)} {mask.dtype}, expected {expected} torch.bool")
    device = mask.device if isinstance(mask, Tensor) else mask.indices.device
    if device != a.device:
        raise DtypeError(f"mask is on {device} and a on {a.device}, expected one device")


def _refuse_vmap(*operands: Tensor) -> None:
    for x in operands:
        try:
            x.data_ptr()
        except RuntimeError as error:
            raise SpiderError(
                "matmul cannot be mapped by torch.func.vmap, since each entry has a pattern of its own: "
                "give the whole batch as (B, M, K) instead"
            ) from error


def _check_along(x: Tensor, index: TileIndex, axis: int, name: str) -> None:
    places = index.shape[1] if index.axis == 1 else index.shape[0]
    if not 0 <= axis < x.ndim or x.shape[axis] != places:
        raise ShapeError(f"{name} is {tuple(x.shape)}, expected {places} along axis {axis}, which the index condenses")


def chosen_backend(a: Tensor, wanted: str) -> str:
    """The backend that runs: "native", "torch", "triton" or "dense"."""
    if wanted == "native":
        if a.device.type != "cpu" or not cpu.available():
            raise SpiderError("backend 'native' needs CPU tensors and a C compiler")
        if a.dtype != torch.float32 and a.dtype not in HALF:
            raise DtypeError(f"backend 'native' computes float32 and 16-bit floats, not {a.dtype}: use 'torch'")
    elif wanted == "triton":
        if not a.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
            raise SpiderError("backend 'triton' needs CUDA tensors, or TRITON_INTERPRET=1 from the start for the CPU")
        if a.dtype != torch.float32 and a.dtype not in HALF:
            raise DtypeError(f"backend 'triton' computes float32 and 16-bit floats, not {a.dtype}: use 'torch'")
    elif wanted == "auto":
        if a.device.type != "cpu":
            return "triton" if a.is_cuda and runnable(a.dtype) else "dense"  # plain torch gathers too slowly there
        return "native" if (a.dtype == torch.float32 or a.dtype in HALF) and cpu.available() else "torch"
    return wanted


def runnable(dtype: torch.dtype) -> bool:
    """Whether there are kernels of a GPU for a dtype, and a triton to compile them."""
    return (dtype == torch.float32 or dtype in HALF) and importlib.util.find_spec("triton") is not None


@functools.cache
def _table(device: str, dtype: str) -> TileTable:
    return TileTable.load(device, getattr(torch, dtype))


# --------------------------------------------------------------------------------------------------- running


def _matrix_product(
    a: Tensor,
    b: Tensor,
    sparse: str,
    mask: Tensor | TileIndex | None,
    grad: str,
    nonfinite: str,
    plan: Plan | None,
    backend: str,
) -> Tensor:
    if torch.compiler.is_compiling() and not isinstance(mask, TileIndex):
        if mask is not None:
            return torch.ops.spider.sampled(a, b, mask)
        return torch.ops.spider.product(a, b, grad)
    _refuse_vmap(a, b)
    if nonfinite == "strict" and not bool(torch.isfinite(b).all()):
        return dense(a, b) if sparse == "a" else torch.where(_as_mask(mask), dense(a, b), 0)
    if isinstance(mask, TileIndex):
        index = replace(mask, values=_ones(mask))
        chosen = chosen_backend(a, backend)
        return _Sampled.apply(a, b.t(), index, "torch" if chosen == "dense" else chosen)
    plan = plan or _planned(a, b, mask, backend)
    expected = (a.shape[0], b.shape[1], a.shape[1]) if mask is not None else (a.shape[0], a.shape[1], b.shape[1])
    if (plan.problem.m, plan.problem.k, plan.problem.n) != expected:
        raise ShapeError(f"the plan is for {plan.problem}, but the operands give m, k, n = {expected}")
    tile = plan.micro_tile
    if mask is not None:
        if tile is None:
            return torch.where(mask, dense(a, b), 0)
        return _Sampled.apply(a, b.t(), TileIndex.from_mask(mask, tile, plan.backend), plan.backend)
    if tile is None:
        # The gradient of `where` is the pattern's.
        return dense(a if grad == "exact" else torch.where(a != 0, a, 0), b)
    return multiply(a, b, find(a, tile, pack=True, backend=plan.backend), grad, plan.backend)


def multiply(a: Tensor, b: Tensor, index: TileIndex, grad: str, backend: str) -> Tensor:
    """a @ b by an index of a that was detected before, with its values; differentiable. a: (M, K), b: (K, N)."""
    return _Product.apply(a, b, index, grad, backend)


def dense(a: Tensor, b: Tensor) -> Tensor:
    """torch.mm, except for float16 on a CPU, where that is twenty times slower than float32."""
    if a.dtype == torch.float16 and a.device.type == "cpu":
        return torch.mm(a.float(), b.float()).to(a.dtype)
    return torch.mm(a, b)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear, with the same exception as `dense`."""
    if x.dtype == torch.float16 and x.device.type == "cpu":
        y = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
        return y.to(x.dtype)
    return F.linear(x, weight, bias)


def _as_mask(mask: Tensor | TileIndex | None) -> Tensor:
    assert mask is not None
    return mask.to_mask() if isinstance(mask, TileIndex) else mask


def _ones(index: TileIndex) -> Tensor:
    return torch.ones(index.indices.numel(), index.size, device=index.indices.device)


def kernels(backend: str) -> ModuleType:
    """The module that runs a backend."""
    if backend == "triton":
        from systems.spider import gpu

        return gpu
    return cpu if backend == "native" else torch_backend


def times(index: TileIndex, b: Tensor, backend: str) -> Tensor:
    """S @ b for the indexed S, from its packed values: (rows of S, N), in b's dtype. No gradient."""
    wide = _computing(b, backend)
    arrays = index.arrays()._replace(values=_values(index, wide.dtype))
    module = kernels(backend)
    kernel = module.k_gather if index.axis == 1 else module.m_gather
    return kernel(arrays, index.size, row_major(wide), index.shape[0]).to(b.dtype)


def sample(index: TileIndex, x: Tensor, y: Tensor, form: Form, backend: str) -> Tensor:
    """x @ y.T at the non-zero packed values of an index of the result; form "dense" or "packed". No gradient."""
    first, second = row_major(_computing(x, backend)), row_major(_computing(y, backend))
    arrays = index.arrays()._replace(values=_values(index, first.dtype))
    kernel = kernels(backend).sampled
    if index.axis == 1:
        return kernel(arrays, index.size, first, second, form).to(x.dtype)
    return kernel(arrays, index.size, second, first, "transposed" if form == "dense" else form).to(x.dtype)


def with_values(index: TileIndex, x: Tensor, backend: str) -> TileIndex:
    """The index with the values of x, a matrix of the indexed shape."""
    wide = _computing(x, backend)
    values = kernels(backend).pack(index.arrays(), index.size, wide if index.axis == 1 else wide.t())
    return replace(index, values=values, dtype=x.dtype)


def transposed(index: TileIndex, backend: str) -> TileIndex:
    """An index of the transposed matrix, with values: the same lists, or lists of single elements.

    A product adds each listed strip to its rows of the result; narrow strips, and strips of mostly zeros, spend
    their time on loads and stores, so these are listed anew (no pass over the matrix is needed for that).
    """
    assert index.values is not None
    if index.axis == 0 or backend == "triton":
        return index.transpose()
    if index.size >= WIDE_TILE and index.coverage <= COVERED:
        return index.transpose()
    # A product in 16 bits gives values in 16 bits; the kernel reads 32.
    wide = index.arrays()._replace(values=_computing(index.values, backend))
    arrays = kernels(backend).elements(wide, index.size, index.shape[1])
    return TileIndex(index.shape[::-1], index.dtype, 1, (1, 1), *arrays)


def _computing(x: Tensor, backend: str) -> Tensor:
    """x in the dtype that the kernels of a backend take: those of a GPU widen 16-bit floats themselves."""
    x = x.detach()
    return x.float() if x.dtype in HALF and backend != "triton" else x


def _values(index: TileIndex, dtype: torch.dtype) -> Tensor:
    assert index.values is not None
    return index.values if index.values.dtype == dtype else index.values.to(dtype)


# ------------------------------------------------------------------------------------------------- gradients


class _Product(torch.autograd.Function):
    """y = a @ b by an index of a."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, index: TileIndex, grad: str, backend: str) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.index, ctx.grad, ctx.backend = index, grad, backend
        return times(index, b, backend)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        a, b = ctx.saved_tensors
        da = db = None
        if ctx.needs_input_grad[0]:
            exact = ctx.grad == "exact"
            da = dense(dy, b.t()) if exact else _Sampled.apply(dy, b, ctx.index, ctx.backend)
        if ctx.needs_input_grad[1]:
            db = _Product.apply(a.t(), dy, transposed(ctx.index, ctx.backend), ctx.grad, ctx.backend)
        return da, db, None, None, None


class _Sampled(torch.autograd.Function):
    """x @ y.T at the non-zeros of an index of the result, zero elsewhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, index: TileIndex, backend: str) -> Tensor:
        ctx.save_for_backward(x, y)
        ctx.index, ctx.backend = index, backend
        return sample(index, x, y, "dense", backend)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, y = ctx.saved_tensors
        index = ctx.index
        ones = replace(index, values=(index.values != 0).to(_computing(x, ctx.backend).dtype))
        kept = sample_mask(ones)
        g = torch.where(kept, grads[0], 0)
        packed = with_values(index, g, ctx.backend)
        dx = _Product.apply(g, y, packed, "exact", ctx.backend) if ctx.needs_input_grad[0] else None
        flipped = transposed(packed, ctx.backend) if ctx.needs_input_grad[1] else None
        dy = _Product.apply(g.t(), x, flipped, "exact", ctx.backend) if flipped is not None else None
        return dx, dy, None, None


def sample_mask(index: TileIndex) -> Tensor:
    """(R, C) bool: where the packed values are not zero."""
    index = index.tight()
    assert index.values is not None
    along = index if index.axis == 1 else index.transpose()
    blocks, size = along.offsets.numel() - 1, along.size
    mask = torch.zeros(blocks, size, along.shape[1], dtype=torch.bool, device=index.indices.device)
    mask[along.blocks(), :, along.indices.long()] = index.values != 0
    whole = mask.reshape(blocks * size, along.shape[1])[: along.shape[0]]
    return whole if index.axis == 1 else whole.t()


# ----------------------------------------------------------------------------------------------- torch.compile
# A compiled graph keeps each product whole: what is found while running must not be traced.


@torch.library.custom_op("spider::product", mutates_args=())
def _product_op(a: Tensor, b: Tensor, grad: str) -> Tensor:
    with torch.no_grad():
        return matmul(a, b, grad="exact").clone()


@_product_op.register_fake
def _(a: Tensor, b: Tensor, grad: str) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


@torch.library.custom_op("spider::sampled", mutates_args=())
def _sampled_op(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    with torch.no_grad():
        return matmul(a, b, sparse="out", mask=mask).clone()


@_sampled_op.register_fake
def _(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


def _keep_product(ctx: Any, inputs: Sequence[Any], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.grad = inputs[2]


def _product_gradient(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
    a, b = ctx.saved_tensors
    exact = ctx.grad == "exact"
    da = torch.mm(dy, b.t()) if exact else torch.ops.spider.sampled(dy, b.t(), a != 0)
    return da, torch.ops.spider.product(a.t(), dy, ctx.grad), None


def _keep_sampled(ctx: Any, inputs: Sequence[Any], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _sampled_gradient(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
    a, b, mask = ctx.saved_tensors
    g = torch.where(mask, dy, 0)
    return torch.ops.spider.product(g, b.t(), "exact"), torch.ops.spider.product(g.t(), a, "exact").t(), None


_product_op.register_autograd(_product_gradient, setup_context=_keep_product)
_sampled_op.register_autograd(_sampled_gradient, setup_context=_keep_sampled)
