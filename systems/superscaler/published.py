"""The models at the sizes that were published, on the meta device: shapes without values, to be searched and simulated.

Swin and the encoder-decoder (T5, mBART) have the settings of the published artifact. GPT has the sizes of the GPT-3
paper that are nearest to as many billions of parameters. The Evoformer has AlphaFold2's trunk (48 blocks, alignment of
128 x 256) at 4 devices and wider ones at more. Half precision; a batch of 256 (the Evoformer: 128, one protein each).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from systems.superscaler import models
from systems.superscaler.errors import InvalidPlan
from systems.superscaler.models import Sample

__all__ = ["MODELS", "SIZES", "STATE_BYTES", "published"]

STATE_BYTES = 12
"""Bytes of optimizer state for each half-precision parameter: a float32 copy and Adam's two moments."""

SIZES = {
    "swin": {4: (32, 512, 16), 8: (40, 768, 24), 16: (48, 1024, 32), 32: (56, 1536, 32)},  # blocks, width, heads
    "t5": {4: (24, 2048, 500_000), 8: (32, 3072, 1_000_000), 16: (32, 4096, 1_500_000), 32: (32, 6144, 2_000_000)},
    "gpt": {4: (24, 2048, 16), 8: (32, 2560, 32), 16: (32, 4096, 32), 32: (40, 5120, 40)},  # layers, width, heads
    "evoformer": {4: (48, 256, 8), 8: (48, 512, 16), 16: (48, 768, 24), 32: (48, 1024, 32)},  # blocks, width, heads
}
"""Model -> devices -> (layers, width, heads, or vocabulary for t5)."""


def published(name: str, devices: int, *, samples: int | None = None) -> Sample:
    """A model at the size published for so many devices. Raises InvalidPlan for one that is not in `SIZES`."""
    if name not in SIZES or devices not in SIZES[name]:
        sizes = ", ".join(f"{n} for {list(s)}" for n, s in SIZES.items())
        raise InvalidPlan(f"no published size of {name!r} for {devices} devices: there are {sizes}")
    return MODELS[name](SIZES[name][devices], samples)


def _swin(size: tuple[int, int, int], samples: int | None) -> Sample:
    layers, width, heads = size
    return models.swin(
        size=1536, patch=4, window=48, width=width, heads=heads, depths=(2, 2, layers - 6, 2), classes=1000,
        samples=samples or 256, dtype=torch.float16, device="meta",
    )  # fmt: skip


def _t5(size: tuple[int, int, int], samples: int | None) -> Sample:
    layers, width, vocabulary = size
    return models.multilingual(
        vocabulary=vocabulary, width=width, heads=width // 64, layers=layers, length=1024, samples=samples or 256,
        dtype=torch.float16, device="meta",
    )  # fmt: skip


def _gpt(size: tuple[int, int, int], samples: int | None) -> Sample:
    layers, width, heads = size
    return models.gpt(
        vocabulary=51200, width=width, heads=heads, layers=layers, length=2048, samples=samples or 256,
        dtype=torch.float16, device="meta",
    )  # fmt: skip


def _evoformer(size: tuple[int, int, int], samples: int | None) -> Sample:
    layers, width, heads = size
    return models.evoformer(
        sequences=128, residues=256, alignment=width, pair=width // 2, heads=heads, layers=layers, recycles=3,
        samples=samples or 128, dtype=torch.float16, device="meta",
    )  # fmt: skip


MODELS: dict[str, Callable[[tuple[int, int, int], int | None], Sample]] = {
    "swin": _swin, "t5": _t5, "gpt": _gpt, "evoformer": _evoformer,
}  # fmt: skip
