"""A robust, blind watermark of 16 bytes with a public extractor, and the codes and attacks around it.

Luma is cut into blocks of 8 x 8 pixels. In each block a few low frequencies of the 4 x 4 DCT of the Haar transform's LL
band carry one bit each by dithered quantisation index modulation (Chen and Wornell): the coefficient goes to the
nearest of the lattice points of its bit. Bits are those of RS(32, 18) over the payload and a CRC-16, spread by a fixed
permutation and repeated over all blocks; the extractor sums soft votes, decodes, and tries the least certain bytes as
erasures. A wrong payload passes code and checksum with a probability below 2^-16.
"""

from __future__ import annotations

import binascii
import functools
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from systems.argus.errors import CapacityError

__all__ = ["LEAST", "PAYLOAD", "Extraction", "accuse", "code_length", "embed", "extract", "jpeg", "noise", "psnr",
           "resized", "tardos_code"]  # fmt: skip

Image = NDArray[np.uint8]
"""(height, width, 3) RGB."""

PAYLOAD = 16
LEAST = 256
STEP = 36.0
FREQUENCIES = ((1, 1), (0, 2), (2, 0))
PARITY = 14
BITS = 8 * (PAYLOAD + 2 + PARITY)
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Extraction:
    """payload: 16 bytes, or None where no codeword was near. votes: (256,) soft, above 0 for a zero bit; confidence:
    the mean distance of a vote from a coin flip, 0 to 1."""

    payload: bytes | None
    votes: NDArray[np.float64]
    confidence: float


# --- the code ------------------------------------------------------------------------------------------------


@functools.cache
def _codec() -> Any:
    from reedsolo import RSCodec

    return RSCodec(PARITY)


def _encode(payload: bytes) -> NDArray[np.uint8]:
    checked = payload + binascii.crc_hqx(payload, 0xFFFF).to_bytes(2, "big")
    return np.unpackbits(np.frombuffer(bytes(_codec().encode(checked)), np.uint8))


def _decode(votes: NDArray[np.float64]) -> bytes | None:
    from reedsolo import ReedSolomonError

    word = np.packbits(votes < 0).tobytes()
    certainty = np.abs(votes).reshape(-1, 8).min(1)
    doubtful = [int(i) for i in np.argsort(certainty)]
    for erased in (0, 2, 4, 6, 8):
        try:
            found = bytes(_codec().decode(word, erase_pos=doubtful[:erased])[0])
        except ReedSolomonError:
            continue
        payload, check = found[:PAYLOAD], found[PAYLOAD:]
        if binascii.crc_hqx(payload, 0xFFFF).to_bytes(2, "big") == check:
            return payload
    return None


# --- the carrier ---------------------------------------------------------------------------------------------


@functools.cache
def _basis() -> NDArray[np.float32]:
    """(64, frequencies): orthonormal functions on 8 x 8 pixels, constant on 2 x 2."""
    n = np.arange(4)
    rows = np.array([np.cos(math.pi * (2 * n + 1) * u / 8) * math.sqrt((2 if u else 1) / 4) for u in range(4)])
    functions = [np.kron(np.outer(rows[u], rows[v]), np.ones((2, 2)) / 2).ravel() for u, v in FREQUENCIES]
    return np.stack(functions, 1).astype(np.float32)


@functools.cache
def _places(blocks: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(blocks, frequencies): the bit that each coefficient carries, and its dither in steps."""
    generator = np.random.default_rng(0x4152475553)
    slots = blocks * len(FREQUENCIES)
    bits = generator.permutation(np.arange(slots) % BITS).reshape(blocks, -1)
    return bits, generator.random((blocks, len(FREQUENCIES)), np.float32)


def _checked(image: Image) -> Image:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        described = f"{getattr(image, 'dtype', type(image).__name__)} {getattr(image, 'shape', '')}"
        raise CapacityError(f"the image is {described}, expected uint8 (height, width, 3)")
    if min(image.shape[:2]) < LEAST:
        raise CapacityError(f"the image is {image.shape[1]} x {image.shape[0]}, at least {LEAST} x {LEAST} are needed")
    return image


def _blocks(image: Image) -> NDArray[np.float32]:
    """(blocks, 64) luma; what is left over at the right and below carries nothing."""
    height, width = (side // 8 * 8 for side in image.shape[:2])
    luma = image[:height, :width].astype(np.float32) @ LUMA
    return luma.reshape(height // 8, 8, width // 8, 8).transpose(0, 2, 1, 3).reshape(-1, 64)


def embed(image: Image, payload: bytes, step: float = STEP) -> Image:
    """A copy of the image that carries 16 bytes. step: of the lattice, in grey levels; larger is more robust.

    Raises CapacityError for an image that is too small, or flat or clipped so that its own extraction fails.
    """
    if len(payload) != PAYLOAD:
        raise ValueError(f"the payload has {len(payload)} bytes, expected {PAYLOAD}")
    blocks = _blocks(_checked(image))
    carried, dither = _places(len(blocks))
    offset = dither + _encode(payload)[carried] / np.float32(2)
    found = blocks @ _basis() / np.float32(step)
    change = ((np.round(found - offset) + offset - found) * np.float32(step)) @ _basis().T
    height, width = (side // 8 * 8 for side in image.shape[:2])
    plane = change.reshape(height // 8, width // 8, 8, 8).transpose(0, 2, 1, 3).reshape(height, width)
    marked = image.copy()
    marked[:height, :width] = np.clip(np.rint(image[:height, :width] + plane[..., None]), 0, 255).astype(np.uint8)
    if extract(marked, step).payload != payload:
        raise CapacityError("the image is too flat or clipped to carry a watermark: nothing was marked")
    return marked


def extract(image: Image, step: float = STEP) -> Extraction:
    """What an image carries. Raises CapacityError for what is no image or too small."""
    blocks = _blocks(_checked(image))
    carried, dither = _places(len(blocks))
    phase = (blocks @ _basis() / np.float32(step) - dither) * np.float32(2 * math.pi)
    soft = np.cos(phase)
    votes = np.bincount(carried.ravel(), soft.ravel().astype(np.float64), minlength=BITS).astype(np.float64)
    number = np.bincount(carried.ravel(), minlength=BITS)
    return Extraction(_decode(votes), votes, float(np.mean(np.abs(votes) / number)))


def psnr(first: Image, second: Image) -> float:
    """Decibels, infinite for equal images."""
    apart = float(np.mean((first.astype(np.float64) - second.astype(np.float64)) ** 2))
    return math.inf if apart == 0 else 10 * math.log10(255**2 / apart)


# --- what happens to copies ----------------------------------------------------------------------------------


def jpeg(image: Image, quality: int) -> Image:
    """Through a JPEG file of this quality."""
    from PIL import Image as Pictures

    buffer = io.BytesIO()
    Pictures.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Pictures.open(buffer).convert("RGB"))


def noise(image: Image, sigma: float, seed: int = 0) -> Image:
    """With Gaussian noise of this many grey levels."""
    added = np.random.default_rng(seed).normal(0, sigma, image.shape)
    return np.clip(np.rint(image + added), 0, 255).astype(np.uint8)


def resized(image: Image, factor: float) -> Image:
    """Made smaller or larger, and back to the old size."""
    from PIL import Image as Pictures

    height, width = image.shape[:2]
    small = Pictures.fromarray(image).resize(
        (round(width * factor), round(height * factor)), Pictures.Resampling.BICUBIC
    )
    return np.asarray(small.resize((width, height), Pictures.Resampling.BICUBIC))


# --- collusion -----------------------------------------------------------------------------------------------


def code_length(colluders: int, innocents_accused: float) -> int:
    """Bits of a symmetric Tardos code against so many colluders, for a chance that any innocent is accused."""
    return math.ceil(math.pi**2 * colluders**2 * math.log(1 / innocents_accused))


def tardos_code(
    users: int, colluders: int, innocents_accused: float, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """(users, length) bits and the (length,) bias of each column, keyed by `seed` (Tardos 2003; Skoric et al. 2008)."""
    generator = np.random.default_rng(seed)
    length = 2 * code_length(colluders, innocents_accused / users)
    cut = 1 / (300 * colluders)
    low = math.asin(math.sqrt(cut))
    bias = np.sin(generator.uniform(low, math.pi / 2 - low, length)) ** 2
    return (generator.random((users, length)) < bias).astype(np.uint8), bias


def accuse(
    code: NDArray[np.uint8], bias: NDArray[np.float64], copy: Sequence[int] | NDArray[np.uint8], colluders: int,
    innocents_accused: float,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:  # fmt: skip
    """Users whose symmetric score says that they took part in a copy, and all scores.

    An innocent's score is close to normal with variance `length`: the threshold is the quantile that leaves
    `innocents_accused` for all users together.
    """
    from scipy.stats import norm

    bits = np.asarray(copy, np.uint8)
    ones, zeros = np.sqrt((1 - bias) / bias), np.sqrt(bias / (1 - bias))
    gain = np.where(code == 1, ones, -zeros) * np.where(bits == 1, 1.0, 0.0)
    loss = np.where(code == 0, zeros, -ones) * np.where(bits == 0, 1.0, 0.0)
    scores = (gain + loss).sum(1)
    threshold = norm.isf(innocents_accused / len(code) / 4) * math.sqrt(code.shape[1])
    return np.flatnonzero(scores > threshold), scores
