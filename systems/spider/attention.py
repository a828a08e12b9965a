"""Attention over the keys that each block of queries may see, gathered; the others are never scored.

The score matrix is an output of known sparsity: queries are cut into blocks, and for each block the keys that any
of its queries may see are gathered (PIT's rule for the axis of the keys; softmax drops masked keys, whose score is
-inf, exactly). What inside that list a single query may not see is masked. Blocks whose lists are equally long are
computed together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from systems.spider import ops
from systems.spider.index import checked_lengths
from systems.spider.rules import DtypeError, PatternError, ShapeError, SpiderError

__all__ = ["attention"]

BLOCK = 64  # queries that share one list of keys
SCORES = 2**24  # score elements computed at once


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    window: int | None = None,
    global_tokens: Tensor | None = None,
    lengths: Tensor | None = None,
    causal: bool = False,
    backend: str = "auto",
) -> Tensor:
    """softmax(q k' / sqrt(D)) v over the allowed keys only. q, k, v: (B, H, S, D) floats; returns (B, H, S, D).

    A key is allowed where all that is given allows it: mask, (S, S) or (B, S, S) bool; window: |i - j| <= window,
    or either of i, j is a global token; global_tokens: (g,) positions, for `window` only; lengths: (B,) real
    tokens of each item; causal: j <= i. A query without an allowed key gives zeros, and zero gradients.
    backend: "auto" is Triton's kernels for 32- and 16-bit floats on CUDA, differentiable once, and torch elsewhere.
    Raises ShapeError, DtypeError, PatternError; SpiderError for a backend that is not there.
    """
    batch, heads, size = _check(q, k, v, mask, window, global_tokens)
    if lengths is not None:
        lengths = checked_lengths(lengths, size)
        if lengths.numel() != batch:
            raise ShapeError(f"lengths has {lengths.numel()} entries for a batch of {batch}")
    if not batch * heads * size:
        return torch.zeros_like(v)
    spread = torch.zeros(size, dtype=torch.bool, device=q.device)
    if global_tokens is not None:
        spread[global_tokens.long()] = True
    if backend not in ("auto", "torch", "triton"):
        raise SpiderError(f"backend is {backend!r}, expected 'auto', 'torch' or 'triton'")
    if backend == "triton" or (backend == "auto" and ops.chosen_backend(q, "auto") == "triton"):
        ops.chosen_backend(q, "triton")
        from systems.spider import gpu_attention

        wide = mask[None] if mask is not None and mask.ndim == 2 else mask
        return gpu_attention.attention(q, k, v, gpu_attention.Seen(size, window, spread, wide, lengths, causal))
    seen = _Seen(size, window, spread, mask, lengths, causal)
    items = range(batch) if lengths is not None or (mask is not None and mask.ndim == 3) else [None]
    outputs = [_one(q, k, v, seen, item) for item in items]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


@dataclass(frozen=True, eq=False)
class _Seen:
    """Which keys a query may see."""

    size: int
    window: int | None
    spread: Tensor
    mask: Tensor | None
    lengths: Tensor | None
    causal: bool

    def length(self, item: int | None) -> int:
        """Tokens of an item, which are all that is computed of it."""
        return self.size if self.lengths is None or item is None else int(self.lengths[item])

    def keys(self, block: Tensor, item: int | None) -> Tensor:
        """The keys that any query of a block may see, ascending. block: positions, ascending, at least one."""
        length = self.length(item)
        kept = torch.zeros(length, dtype=torch.bool, device=block.device)
        last = int(block[-1])
        if self.window is not None and not bool(self.spread[block].any()):
            kept[max(0, int(block[0]) - self.window) : last + self.window + 1] = True
            kept |= self.spread[:length]
        else:
            kept[:] = True
        if self.causal:
            kept[last + 1 :] = False
        if self.mask is not None:
            kept &= self._mask(item)[block, :length].any(0)
        return kept.nonzero()[:, 0]

    def allowed(self, rows: Tensor, keys: Tensor, item: int | None) -> Tensor:
        """(blocks, n, keys) bool, for rows (blocks, n) and keys (blocks, keys); -1 pads both."""
        i, j = rows[:, :, None], keys[:, None, :]
        ok = (i >= 0) & (j >= 0)
        if self.window is not None:
            ok &= ((i - j).abs() <= self.window) | self.spread[i] | self.spread[j]
        if self.causal:
            ok &= j <= i
        if self.mask is not None:
            ok &= self._mask(item)[i, j]
        return ok

    def _mask(self, item: int | None) -> Tensor:
        assert self.mask is not None
        return self.mask if self.mask.ndim == 2 else self.mask[0 if item is None else item]


def _one(q: Tensor, k: Tensor, v: Tensor, seen: _Seen, item: int | None) -> Tensor:
    """One item, or the whole batch where all items see the same keys."""
    chosen = slice(None) if item is None else slice(item, item + 1)
    q, k, v = q[chosen], k[chosen], v[chosen]
    batch, heads = q.shape[:2]
    length = seen.length(item)
    if length == 0:
        return torch.zeros_like(v) + 0 * q.sum()
    q, k, v = (x[:, :, :length].reshape(batch * heads, length, x.shape[3]) for x in (q, k, v))
    # Queries that see everything are gathered into blocks of their own, or every block would see everything.
    everywhere = seen.spread[:length] if seen.window is not None else seen.spread[:0]
    wide = everywhere.nonzero()[:, 0]
    near = torch.arange(length, device=q.device)
    near = near[~everywhere] if wide.numel() else near
    rows, outputs = [], []
    for positions in (near, wide):
        blocks = _blocks(positions)
        lists = [seen.keys(block[block >= 0], item) for block in blocks]
        for group in _groups([keys.numel() for keys in lists], blocks.shape[1] * batch * heads):
            taken = blocks[group]
            keys = torch.nn.utils.rnn.pad_sequence([lists[i] for i in group], batch_first=True, padding_value=-1)
            rows.append(taken.reshape(-1))
            outputs.append(_blocks_of(q, k, v, taken, keys, seen.allowed(taken, keys, item)))
    places = torch.cat(rows)
    result = torch.cat(outputs, 1)[:, places >= 0]
    out = result.new_zeros(batch * heads, seen.size, v.shape[2]).index_copy(1, places[places >= 0], result)
    return out.view(batch, heads, seen.size, v.shape[2])


def _blocks(positions: Tensor) -> Tensor:
    """(blocks, BLOCK) positions, the last block padded by -1."""
    missing = -positions.numel() % BLOCK
    return torch.nn.functional.pad(positions, (0, missing), value=-1).view(-1, BLOCK)


def _groups(lengths: list[int], queries: int) -> list[list[int]]:
    """Blocks in groups of about equal lists, each group of at most SCORES scores."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    groups: list[list[int]] = []
    for i in order:
        if groups:
            longest = lengths[groups[-1][0]]
            room = (len(groups[-1]) + 1) * longest * queries <= SCORES
            if room and lengths[i] >= 0.8 * longest:
                groups[-1].append(i)
                continue
        groups.append([i])
    return groups


def _blocks_of(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, keys: Tensor, ok: Tensor) -> Tensor:
    """(heads, blocks * n, D): blocks of queries over their own keys. rows: (blocks, n), keys: (blocks, listed)."""
    heads, blocks, n = q.shape[0], *rows.shape
    if keys.shape[1] == 0:
        return q.new_zeros(heads, blocks * n, v.shape[2])

    def taken(x: Tensor, places: Tensor) -> Tensor:
        gathered = x.index_select(1, places.reshape(-1))
        return gathered.view(heads * blocks, places.shape[1], x.shape[2])

    # What no query of a block may see is read from a row of zeros behind the end: NaN there must not reach the sums.
    places = torch.where(ok.any(1), keys, k.shape[1])
    listed_k, listed_v = (taken(torch.nn.functional.pad(x, (0, 0, 0, 1)), places) for x in (k, v))
    scaled = taken(q / math.sqrt(q.shape[2]), rows.clamp(min=0))
    scores = torch.bmm(scaled, listed_k.transpose(1, 2)).view(heads, blocks, n, -1).masked_fill_(~ok, -math.inf)
    some = ok.any(-1, keepdim=True)
    if bool(some.all()):
        weights = torch.softmax(scores, -1)
    else:
        weights = torch.where(some, torch.softmax(torch.where(some, scores, 0), -1), 0)
    return torch.bmm(weights.view(heads * blocks, n, -1), listed_v).view(heads, blocks * n, v.shape[2])


def _check(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, window: int | None, global_tokens: Tensor | None
) -> tuple[int, int, int]:
    if q.ndim != 4 or q.shape != k.shape or v.shape[:3] != q.shape[:3] or v.ndim != 4:
        raise ShapeError(f"q, k, v are {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}, expected (B, H, S, D)")
    if not q.is_floating_point() or q.dtype != k.dtype or q.dtype != v.dtype:
        raise DtypeError(f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}, expected one floating dtype")
    batch, heads, size, _ = q.shape
    if mask is not None and (mask.dtype != torch.bool or tuple(mask.shape) not in {(size, size), (batch, size, size)}):
        raise PatternError(f"mask is {tuple(mask.shape)} {mask.dtype}, expected ([{batch},] {size}, {size}) torch.bool")
    if window is not None and window < 0:
        raise PatternError(f"window is {window}, expected 0 or more")
    if global_tokens is not None:
        if window is None:
            raise PatternError("global_tokens widen a window: give window= too")
        low, high = (int(global_tokens.min()), int(global_tokens.max())) if global_tokens.numel() else (0, 0)
        if global_tokens.ndim != 1 or low < 0 or high >= max(size, 1):
            raise PatternError(f"global_tokens span {low} to {high}, expected (g,) positions of 0 to {size - 1}")
    return batch, heads, size
