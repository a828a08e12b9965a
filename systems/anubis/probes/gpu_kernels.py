"""Triton kernels of the GPU probes, and what launches them.

Importing this module imports triton, so `gpu` does it only where a kernel is asked for. Under
TRITON_INTERPRET=1, set before triton is imported, the same kernels run on CPU tensors.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

STREAMS = {
    # kernel: (reads a second array, multiplies the first one), as in STREAM (McCalpin 1995)
    "copy": (False, False),
    "scale": (False, True),
    "add": (True, False),
    "triad": (True, True),
}
STREAM_BLOCK = 2048  # elements a program: 128 threads with four 16-byte loads of float32 in flight each
STREAM_WARPS = 4


@triton.jit
def stream_kernel(
    first: tl.tensor,
    second: tl.tensor,
    out: tl.tensor,
    scalar: tl.tensor,
    elements: tl.tensor,
    READS_SECOND: tl.constexpr,
    SCALES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    # 64-bit offsets, because a GPU holds arrays of more than 2**31 elements.
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < elements
    value = tl.load(first + offsets, mask=inside)
    if SCALES:
        value = value * scalar
    if READS_SECOND:
        value += tl.load(second + offsets, mask=inside)
    tl.store(out + offsets, value, mask=inside)


@triton.jit
def chase_kernel(successor: tl.tensor, position: tl.tensor, STEPS: tl.constexpr) -> None:
    # A single warp, every lane at the same address: each load has to wait for the one before it.
    here = tl.load(position)
    for _ in range(STEPS):
        here = tl.load(successor + here)
    tl.store(position, here)


def stream(kernel: str, first: Tensor, second: Tensor, out: Tensor, scalar: float) -> Tensor:
    """out = first, scalar * first, first + second, or scalar * first + second; returns out.

    kernel: "copy", "scale", "add" or "triad"; first, second, out: (elements,) contiguous, of one floating
    dtype.
    """
    reads_second, scales = STREAMS[kernel]
    grid = (triton.cdiv(out.numel(), STREAM_BLOCK),)
    stream_kernel[grid](
        first,
        second,
        out,
        scalar,
        out.numel(),
        READS_SECOND=reads_second,
        SCALES=scales,
        BLOCK=STREAM_BLOCK,
        num_warps=STREAM_WARPS,
    )
    return out


def chase(successor: Tensor, position: Tensor, steps: int) -> Tensor:
    """Follow position = successor[position] for `steps` loads, in place; returns position.

    Each number of steps is compiled once: Triton 3.6 cannot interpret a loop of a length known only at run
    time.

    successor: (elements,) int64 indices into itself; position: (1,) int64.
    """
    chase_kernel[(1,)](successor, position, STEPS=steps, num_warps=1)
    return position
