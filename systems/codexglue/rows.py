"""Rows of subwords as tensors: padded to the longest of a batch, and batches of rows of like length."""

from __future__ import annotations

from collections.abc import Sequence

import torch

IGNORED = -100
"""The label of what counts for no loss."""


def padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """((rows, longest) int64, the same of int64 that is 1 where a row is)."""
    longest = max(1, *(len(row) for row in rows)) if rows else 1
    ids = torch.full((len(rows), longest), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for k, row in enumerate(rows):
        ids[k, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[k, : len(row)] = 1
    return ids.to(device), mask.to(device)


def like_long(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Rows in batches of like length, the longest first: what they predict is put back by row."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    return [order[k : k + size] for k in range(0, len(order), size)]
