"""The annotation of an operator that nobody wrote one for, found by trying.

An operator is run on random tensors, then on halves of them: a set of dimensions may be cut together if the halves'
outputs, put side by side or added, are the whole output. What does not rebuild it is frozen. The same trial checks the
annotations that were written by hand.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from systems.superscaler.operators import Call

__all__ = ["holds", "probe"]

LONGEST = 6
"""Longer dimensions are shortened to this, where constants allow."""


def probe(call: Call) -> str | None:
    """An annotation of a call, or None if none of its dimensions can be cut; cached."""
    return _probe(call.target, call.shapes, call.dtypes, repr(call.arguments), _Held(call))


class _Held:
    """A call that the cache does not compare."""

    def __init__(self, call: Call) -> None:
        self.call = call

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held)


@lru_cache(maxsize=512)
def _probe(target: str, shapes: tuple[Any, ...], dtypes: tuple[str, ...], constants: str, held: _Held) -> str | None:
    import torch

    call = held.call
    generator = torch.Generator().manual_seed(0)
    small = [_small(shape, call) for shape in shapes]
    tensors = [_random(shape, dtype, generator) for shape, dtype in zip(small, dtypes, strict=True)]
    try:
        whole = run(call, tensors)
    except (RuntimeError, IndexError, TypeError, ValueError):
        return None
    if not isinstance(whole, torch.Tensor):
        return None
    inputs = [[f"t{k}x{i}^" for i in range(len(s))] for k, s in enumerate(small)]
    output = [f"o{i}^" for i in range(whole.dim())]
    number = 0
    for choice in _candidates(small):
        if any(inputs[k][i][0] != "t" for k, i in choice.items()):
            continue
        how = _rebuilt(call, tensors, whole, choice)
        if how is None or (how >= 0 and output[how][0] != "o"):
            continue
        name = f"p{number}" + ("+" if how == -1 else "")
        number += 1
        for k, i in choice.items():
            inputs[k][i] = name
        if how >= 0:
            output[how] = name
    return f"{', '.join(map(' '.join, inputs))} -> {' '.join(output)}" if number else None


def _small(shape: Sequence[int], call: Call) -> tuple[int, ...]:
    """Shapes are kept where they are small; a longer dimension is shortened to an even number."""
    return tuple(min(n, LONGEST) for n in shape)


def _random(shape: Sequence[int], dtype: str, generator: Any) -> Tensor:
    import torch

    kind = getattr(torch, dtype)
    if kind.is_floating_point:
        return torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
    return torch.randint(0, 2, tuple(shape), generator=generator).to(kind)


def run(call: Call, tensors: Sequence[Tensor]) -> Any:
    """The operator of a call on other tensors."""
    from systems.superscaler.operators import fill, resolve

    arguments = [fill(a, tensors) for a in call.arguments]
    return resolve(call.target)(*arguments, **{k: fill(v, tensors) for k, v in call.keywords.items()})


def _candidates(shapes: Sequence[Sequence[int]]) -> list[Mapping[int, int]]:
    """Sets of (input, dimension) of equal size that might be one identifier, those over most inputs first."""
    found: list[Mapping[int, int]] = []
    for count in range(len(shapes), 0, -1):
        for chosen in itertools.combinations(range(len(shapes)), count):
            for dims in itertools.product(*(range(len(shapes[k])) for k in chosen)):
                sizes = {shapes[k][i] for k, i in zip(chosen, dims, strict=True)}
                if len(sizes) == 1 and sizes.pop() > 1:
                    found.append(dict(zip(chosen, dims, strict=True)))
        if len(found) > 4096:
            break
    return found


def _rebuilt(call: Call, tensors: Sequence[Tensor], whole: Tensor, choice: Mapping[int, int]) -> int | None:
    """The output's dimension that the halves are side by side in, -1 where they add up, None for neither."""
    import torch

    n = next(tensors[k].shape[i] for k, i in choice.items())
    halves = []
    for lo, hi in ((0, n // 2), (n // 2, n)):
        own = [t.narrow(choice[k], lo, hi - lo) if k in choice else t for k, t in enumerate(tensors)]
        try:
            halves.append(run(call, own))
        except (RuntimeError, IndexError, TypeError, ValueError):
            return None
    a, b = halves
    for dim in range(whole.dim()):
        if a.dim() == whole.dim() and a.shape[dim] == n // 2 and b.shape[dim] == n - n // 2 and whole.shape[dim] == n:
            joined = torch.cat([a, b], dim)
            if joined.shape == whole.shape and _same(joined, whole):
                return dim
    if a.shape == whole.shape == b.shape and whole.dtype.is_floating_point and _same(a + b, whole):
        return -1
    return None


def _same(a: Tensor, b: Tensor) -> bool:
    import torch

    if not a.dtype.is_floating_point:
        return torch.equal(a, b)
    return torch.allclose(a, b, rtol=1e-9, atol=1e-12, equal_nan=True)


def holds(call: Call, tensors: Sequence[Tensor], name: str, parts: int) -> bool:
    """Whether cutting an identifier of a call's annotation rebuilds the output on given tensors."""
    import torch

    from systems.superscaler.graph import Graph, Op, PTensor, VTensor, narrow
    from systems.superscaler.mask import Mask
    from systems.superscaler.operators import annotation_of, evaluate, skipped_inputs
    from systems.superscaler.sprogram import SProgram

    annotation = annotation_of(call)
    if "b" in annotation.sizes:
        annotation = replace(annotation, units={"b": 1})
    records = [
        PTensor(i, tuple(t.shape), str(t.dtype).removeprefix("torch."), "input", f"t{i}") for i, t in enumerate(tensors)
    ]
    out = PTensor(len(records), call.output, records[0].dtype, "loss", "out")
    op = Op(
        0, call.target, tuple(VTensor(i, Mask.full(t.shape).box) for i, t in enumerate(tensors)), out.id,
        call.arguments, call.keywords, annotation, "op",
    )  # fmt: skip
    graph = Graph((*records, out), (op,), tuple(range(len(records))), out.id, 1)
    whole = evaluate(op, {}, tensors, step=0, seed=0, graph=graph)
    rebuilt = torch.zeros_like(whole)
    program = SProgram(graph, 1)
    for part in program.op_trans(op, {name: parts}):
        skipped = skipped_inputs(op, part.ranges)
        own = [None if i in skipped else t[narrow(part.input(i).box)] for i, t in enumerate(tensors)]
        made = evaluate(op, part.ranges, own, step=0, seed=0, graph=graph)
        if whole.dtype.is_floating_point:
            rebuilt[narrow(part.output().box)] += made
        else:
            rebuilt[narrow(part.output().box)] = made
    return _same(rebuilt, whole)
