"""Batches of sequences of different length without padding: `pack`, `unpack`, `Ragged`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from systems.spider.index import checked_lengths
from systems.spider.rules import PatternError, ShapeError

__all__ = ["Ragged", "pack", "unpack"]


@dataclass(frozen=True, eq=False)
class Ragged:
    """values: (sum of lengths, D), the items one after the other; offsets: (B + 1,) int64; size: padded length.

    Raises PatternError unless the offsets start at 0, never fall, and end at the number of values.
    """

    values: Tensor
    offsets: Tensor
    size: int

    def __post_init__(self) -> None:
        offsets = self.offsets
        if offsets.ndim != 1 or offsets.numel() < 1 or offsets.dtype != torch.int64:
            raise PatternError(f"offsets is {tuple(offsets.shape)} {offsets.dtype}, expected (B + 1,) int64")
        steps = offsets.diff()
        if int(offsets[0]) != 0 or bool((steps < 0).any()) or int(offsets[-1]) != self.values.shape[0]:
            raise PatternError(
                f"offsets {offsets.tolist()[:8]}... must start at 0, never fall and end at {self.values.shape[0]}"
            )
        if bool((steps > self.size).any()):
            raise PatternError(
                f"the longest item has {int(steps.max())} tokens, more than the padded length {self.size}"
            )

    @property
    def lengths(self) -> Tensor:
        """(B,) int64."""
        return self.offsets.diff()

    def with_values(self, values: Tensor) -> Ragged:
        """Other values for the same items."""
        return Ragged(values, self.offsets, self.size)


def _places(lengths: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The row of each real token in the flattened padded batch, and the offsets."""
    offsets = torch.zeros(lengths.numel() + 1, dtype=torch.int64, device=lengths.device)
    torch.cumsum(lengths, 0, out=offsets[1:])
    total = int(offsets[-1])
    shift = torch.arange(lengths.numel(), device=lengths.device) * size - offsets[:-1]
    return torch.arange(total, device=lengths.device) + shift.repeat_interleave(lengths, output_size=total), offsets


def pack(x: Tensor, lengths: Tensor) -> Ragged:
    """The real tokens of a padded batch. x: (B, S, D); lengths: (B,) integers of 0 to S. Padding is not read.

    Raises ShapeError, PatternError.
    """
    if x.ndim != 3 or lengths.ndim != 1 or x.shape[0] != lengths.shape[0]:
        raise ShapeError(f"x is {tuple(x.shape)} and lengths {tuple(lengths.shape)}, expected (B, S, D) and (B,)")
    lengths = checked_lengths(lengths, x.shape[1])
    places, offsets = _places(lengths, x.shape[1])
    return Ragged(x.reshape(-1, x.shape[2]).index_select(0, places), offsets, x.shape[1])


def unpack(r: Ragged, fill: float = 0.0) -> Tensor:
    """(B, S, D) with `fill` behind the end of each item."""
    batch, features = r.lengths.numel(), r.values.shape[1]
    places, _ = _places(r.lengths, r.size)
    padded = r.values.new_full((batch * r.size, features), fill)
    return padded.index_copy(0, places, r.values).view(batch, r.size, features)
