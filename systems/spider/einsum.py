"""`einsum` and `plan`: any expression of the grammar, brought to matrix products of which one side is sparse.

Index arithmetic becomes a strided view (a convolution's windows), repeated letters a diagonal, letters of one
operand alone a sum; what is left is a batched product (batch, m, k) x (batch, k, n). More than two operands are
contracted one after the other, starting from the sparse one, whose zeros live on in the intermediate result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from systems.spider.ops import DTYPES, Sparse, make_plan, matmul
from systems.spider.rules import DtypeError, Expression, PatternError, analyze, is_plain
from systems.spider.selection import Plan

__all__ = ["einsum", "plan"]


@dataclass(frozen=True)
class _Pair:
    """Two operands as (batch, m, k) and (batch, k, n) tensors, and how the result becomes the output."""

    first: Tensor
    second: Tensor
    unflattened: tuple[int, ...]
    order: tuple[int, ...]

    def finish(self, product: Tensor) -> Tensor:
        return product.reshape(self.unflattened).permute(self.order)


def einsum(
    expr: str,
    *operands: Tensor,
    sparse: int | Literal["out"] = 0,
    mask: Tensor | None = None,
    grad: Literal["exact", "pattern"] = "exact",
    plan: Plan | None = None,
    backend: str = "auto",
) -> Tensor:
    """A sum of products by `expr`, skipping the zeros of operand `sparse`, or ("out") what `mask` does not want.

    expr: as for `analyze`; operands of one dtype and device. mask: bool of the output's shape. grad, plan and
    backend as in `matmul`; a plan (of `plan`) is for the first product.
    Raises PatternError (expression, sparse, mask), ShapeError, DtypeError.
    """
    expression = _checked(expr, operands, sparse, mask)
    tensors, names = _plain_operands(expression, operands)
    if len(tensors) == 1:
        result = torch.einsum(f"{names[0]}->{''.join(expression.output)}", tensors[0])
        return torch.where(mask, result, 0) if mask is not None else result
    order = _contraction(names, 0 if sparse == "out" else sparse)
    result, have = tensors[order[0]], names[order[0]]
    for step, number in enumerate(order[1:], 1):
        last = step == len(order) - 1
        rest = {letter for later in order[step + 1 :] for letter in names[later]} | set(expression.output)
        target = (
            "".join(expression.output) if last else "".join(x for x in dict.fromkeys(have + names[number]) if x in rest)
        )
        pair = _pair(have, result, names[number], tensors[number], target)
        side: Sparse = "out" if sparse == "out" and last else "a"
        wanted = _mask_of(pair, mask) if side == "out" and mask is not None else None
        product = _batched(pair, side, wanted, grad, plan if step == 1 else None, backend)
        result, have = pair.finish(product), target
    return result


def plan(expr: str, *operands: Tensor, sparse: int | Literal["out"] = 0, mask: Tensor | None = None) -> Plan:
    """How `einsum` would run its first product; of a batched one, the first entry. Raises as `einsum` does."""
    expression = _checked(expr, operands, sparse, mask)
    tensors, names = _plain_operands(expression, operands)
    if len(tensors) == 1:
        raise PatternError(f"{expr!r} has one operand: there is no product to plan")
    order = _contraction(names, 0 if sparse == "out" else sparse)
    first, second = order[:2]
    rest = {letter for later in order[2:] for letter in names[later]} | set(expression.output)
    every = dict.fromkeys(names[first] + names[second])
    target = "".join(expression.output) if len(order) == 2 else "".join(x for x in every if x in rest)
    pair = _pair(names[first], tensors[first], names[second], tensors[second], target)
    if sparse == "out" and mask is not None and len(order) == 2:
        return make_plan(pair.first[0], pair.second[0], sparse="out", mask=_mask_of(pair, mask)[0])
    return make_plan(pair.first[0], pair.second[0])


def _checked(expr: str, operands: Sequence[Tensor], sparse: int | Literal["out"], mask: Tensor | None) -> Expression:
    expression = analyze(expr, sparse).expression
    sizes = expression.sizes([tuple(x.shape) for x in operands])
    for number, x in enumerate(operands):
        if x.dtype != operands[0].dtype or x.device != operands[0].device or x.dtype not in DTYPES:
            raise DtypeError(
                f"operand {number} is {x.dtype} on {x.device}, operand 0 {operands[0].dtype} on {operands[0].device}; "
                "expected one real dtype and one device"
            )
    if (sparse == "out") != (mask is not None):
        raise PatternError("mask and sparse='out' go together: give both or neither")
    expected = tuple(sizes[letter] for letter in expression.output)
    if mask is not None and (tuple(mask.shape) != expected or mask.dtype != torch.bool):
        raise PatternError(f"mask is {tuple(mask.shape)} {mask.dtype}, expected {expected} torch.bool")
    return expression


def _plain_operands(expression: Expression, operands: Sequence[Tensor]) -> tuple[list[Tensor], list[str]]:
    """Each operand as a view with one letter an axis, each letter once."""
    sizes = expression.sizes([tuple(x.shape) for x in operands])
    tensors, names = [], []
    for indices, x in zip(expression.inputs, operands, strict=True):
        shape: list[int] = []
        strides: list[int] = []
        letters: list[str] = []
        for index, stride in zip(indices, x.stride(), strict=True):
            for factor, letter in index:
                if letter in letters:  # a repeated letter walks the diagonal
                    strides[letters.index(letter)] += factor * stride
                else:
                    letters.append(letter)
                    shape.append(sizes[letter])
                    strides.append(factor * stride)
        plain = all(is_plain(index) for index in indices) and len(letters) == len(indices)
        tensors.append(x if plain else x.as_strided(shape, strides, x.storage_offset()))
        names.append("".join(letters))
    return tensors, names


def _contraction(names: Sequence[str], start: int) -> list[int]:
    """The order of contraction: from the sparse operand on, each time the operand that shares most letters."""
    order, have = [start], set(names[start])
    left = [number for number in range(len(names)) if number != start]
    while left:
        best = max(left, key=lambda number: (len(have & set(names[number])), -number))
        left.remove(best)
        order.append(best)
        have |= set(names[best])
    return order


def _pair(first_names: str, first: Tensor, second_names: str, second: Tensor, target: str) -> _Pair:
    def summed(x: Tensor, names: str, other: str) -> tuple[Tensor, str]:
        alone = [i for i, letter in enumerate(names) if letter not in other and letter not in target]
        kept = "".join(letter for i, letter in enumerate(names) if i not in alone)
        return (x.sum(alone, dtype=x.dtype) if alone else x), kept

    first, first_names = summed(first, first_names, second_names)
    second, second_names = summed(second, second_names, first_names)
    sizes = dict(zip(first_names + second_names, (*first.shape, *second.shape), strict=True))
    shared = [x for x in first_names if x in second_names]
    batch = [x for x in shared if x in target]
    k = [x for x in shared if x not in target]
    m = [x for x in first_names if x not in second_names]
    n = [x for x in second_names if x not in first_names]

    def arranged(x: Tensor, names: str, *groups: list[str]) -> Tensor:
        moved = x.permute([names.index(letter) for group in groups for letter in group])
        return moved.reshape([math.prod(sizes[letter] for letter in group) for group in groups])

    result = [*batch, *m, *n]
    return _Pair(
        arranged(first, first_names, batch, m, k),
        arranged(second, second_names, batch, k, n),
        tuple(sizes[letter] for letter in result),
        tuple(result.index(letter) for letter in target),
    )


def _mask_of(pair: _Pair, mask: Tensor) -> Tensor:
    """A mask of the output as one of (batch, m, n)."""
    back = [pair.order.index(i) for i in range(len(pair.order))]
    return mask.permute(back).reshape(pair.first.shape[0], pair.first.shape[1], pair.second.shape[2])


def _batched(
    pair: _Pair,
    sparse: Sparse,
    mask: Tensor | None,
    grad: Literal["exact", "pattern"],
    plan: Plan | None,
    backend: str,
) -> Tensor:
    if pair.first.shape[0] == 1:
        inner = mask[0] if mask is not None else None
        return matmul(pair.first[0], pair.second[0], sparse=sparse, mask=inner, grad=grad, plan=plan, backend=backend)
    return matmul(pair.first, pair.second, sparse=sparse, mask=mask, grad=grad, plan=plan, backend=backend)
