"""Images in segments and variants, and the directory that roles share off the chain."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from systems.argus.errors import ArgusError, CapacityError
from systems.argus.tokens import keccak
from systems.argus.watermark import Image, embed

__all__ = [
    "Store",
    "join",
    "load_image",
    "make_versions",
    "png",
    "read_json",
    "segments",
    "unpng",
    "write_image",
    "write_json",
]


def _grid(number: int) -> tuple[int, int]:
    """Rows and columns, as square as they come."""
    rows = next(r for r in range(int(number**0.5), 0, -1) if number % r == 0)
    return rows, number // rows


def _edges(side: int, parts: int) -> list[int]:
    """Cuts at multiples of 8 pixels, where blocks of watermarks and of JPEG begin."""
    return [side * i // parts // 8 * 8 for i in range(parts)] + [side]


def segments(image: Image, number: int) -> list[Image]:
    """The image in `number` rectangles, row by row. Raises CapacityError where one would be below 256 x 256."""
    rows, columns = _grid(number)
    down, right = _edges(image.shape[0], rows), _edges(image.shape[1], columns)
    parts = [image[down[r] : down[r + 1], right[c] : right[c + 1]] for r in range(rows) for c in range(columns)]
    least = min(min(part.shape[:2]) for part in parts)
    if least < 256:
        raise CapacityError(
            f"{number} segments of a {image.shape[1]} x {image.shape[0]} image are {least} pixels wide or high, at "
            f"least 256 are needed: {256 * columns} x {256 * rows} in all"
        )
    return parts


def join(parts: Sequence[Image]) -> Image:
    """The image of all its segments."""
    rows, columns = _grid(len(parts))
    return np.concatenate([np.concatenate(parts[r * columns : (r + 1) * columns], 1) for r in range(rows)], 0)


def make_versions(image: Image, payloads: Sequence[Sequence[bytes]]) -> list[list[bytes]]:
    """(m, q) PNG files: every segment with every watermark. Raises CapacityError."""
    parts = segments(image, len(payloads))
    return [[png(embed(part, payload)) for payload in row] for part, row in zip(parts, payloads, strict=True)]


def png(image: Image) -> bytes:
    """A PNG file, which loses nothing."""
    from PIL import Image as Pictures

    buffer = io.BytesIO()
    Pictures.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def unpng(data: bytes) -> Image:
    """The image in a PNG, JPEG or other file that Pillow reads."""
    from PIL import Image as Pictures

    return np.asarray(Pictures.open(io.BytesIO(data)).convert("RGB"))


def load_image(path: Path | str) -> Image:
    """An image file. Raises ArgusError where it is none."""
    from PIL import UnidentifiedImageError

    try:
        return unpng(Path(path).read_bytes())
    except (OSError, UnidentifiedImageError) as error:
        raise ArgusError(f"{path} is no image that can be read: {error}") from error


# --- files ---------------------------------------------------------------------------------------------------


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def write_image(path: Path, image: Image) -> None:
    """A PNG file, whole or not at all."""
    _write(path, png(image))


def write_json(path: Path, record: Any) -> None:
    """Whole or not at all. Bytes are written as hexadecimal digits by the caller."""
    _write(path, json.dumps(record, indent=1).encode())


def write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    _write(path, text.encode())


def read_json(path: Path) -> Any:
    """What `write_json` wrote. Raises ArgusError where it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArgusError(f"{path} cannot be read: {error}") from error


@dataclass(frozen=True)
class Store:
    """A directory of files by the hash of their content: what is on it cannot be changed unnoticed."""

    root: Path

    def put(self, data: bytes) -> bytes:
        """Publish; returns the 32-byte name."""
        name = keccak(data)
        if not (self.root / name.hex()).exists():
            _write(self.root / name.hex(), data)
        return name

    def get(self, name: bytes) -> bytes:
        """Raises ArgusError where the file is missing or another's."""
        path = self.root / name.hex()
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ArgusError(f"{path} is not in the store: {error}") from error
        if keccak(data) != name:
            raise ArgusError(f"{path} is damaged: its content has another hash")
        return data
