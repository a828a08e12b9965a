"""A page being composed: text with labels, lines and panels, then a PDF (reportlab) or a picture of it (pypdfium2)."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from systems.layoutlmv2.pages import Page, Word, normalise, order_lines

FONTS = ("Helvetica", "Times-Roman", "Courier", "Vera")
BOLD = {"Helvetica": "Helvetica-Bold", "Times-Roman": "Times-Bold", "Courier": "Courier-Bold", "Vera": "VeraBd"}
EMBEDDED = ("Vera", "VeraBd")  # a PDF carries these, so only some pages use them: they are slow to make


@dataclass(frozen=True)
class Question:
    """A question about a page, its accepted answers, and the words (first, last) that answer it."""

    text: str
    answers: tuple[str, ...]
    span: tuple[int, int] | None = None


@dataclass(frozen=True)
class Example:
    """A page with what is known of it. tags: a BIO tag a word; label: of the whole page; fields: name -> text."""

    page: Page
    tags: tuple[str, ...] = ()
    label: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    questions: tuple[Question, ...] = ()
    name: str = ""


@dataclass(frozen=True)
class _Placed:
    text: str
    box: tuple[float, float, float, float]
    entity: str
    group: int


class Sheet:
    """width, height: points; y grows downwards from the top, and text stands on it."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.operations: list[tuple[Any, ...]] = []
        self.placed: list[_Placed] = []
        self._groups = 0

    def text(
        self, x: float, y: float, text: str, size: float = 10, font: str = "Helvetica", entity: str = "",
        align: str = "left", continues: bool = False, ink: float = 0.0,
    ) -> float:  # fmt: skip
        """Write words on one line; returns the x where they end. entity: their label; continues: the last one's."""
        if not continues:
            self._groups += 1
        wide = width_of(text, font, size)
        x -= wide * {"left": 0.0, "center": 0.5, "right": 1.0}[align]
        self.operations.append(("text", x, y, text, size, font, ink))
        up, down = _heights(font)
        start = 0
        for word in text.split(" "):
            if word:
                left = x + width_of(text[:start], font, size)
                right = x + width_of(text[: start + len(word)], font, size)
                self.placed.append(_Placed(word, (left, y - up * size, right, y + down * size), entity, self._groups))
            start += len(word) + 1
        return x + wide

    def rule(self, x0: float, y0: float, x1: float, y1: float, width: float = 0.6) -> None:
        """A straight line."""
        self.operations.append(("rule", x0, y0, x1, y1, width))

    def panel(self, x0: float, y0: float, x1: float, y1: float, grey: float = 0.8, outline: bool = False) -> None:
        """A shaded rectangle (grey: 0 black to 1 white) under what is written later."""
        self.operations.append(("panel", x0, y0, x1, y1, grey, outline))

    def pdf(self) -> bytes:
        """The page as a PDF with a text layer."""
        from reportlab.pdfgen.canvas import Canvas

        buffer = io.BytesIO()
        canvas = Canvas(buffer, (self.width, self.height), pageCompression=0, invariant=1)
        for kind, *rest in self.operations:
            if kind == "text":
                x, y, text, size, font, ink = rest
                _register(font)
                canvas.setFillGray(ink)
                canvas.setFont(font, size)
                canvas.drawString(x, self.height - y, text)
            elif kind == "rule":
                x0, y0, x1, y1, width = rest
                canvas.setLineWidth(width)
                canvas.setStrokeGray(0.1)
                canvas.line(x0, self.height - y0, x1, self.height - y1)
            else:
                x0, y0, x1, y1, grey, outline = rest
                canvas.setFillGray(grey)
                canvas.setStrokeGray(0.3)
                canvas.rect(x0, self.height - y1, x1 - x0, y1 - y0, stroke=int(outline), fill=1)
        canvas.showPage()
        canvas.save()
        return buffer.getvalue()

    def picture(self, longest: int) -> Image.Image:
        """The page drawn, its longer side `longest` pixels."""
        import pypdfium2 as pdfium

        document = pdfium.PdfDocument(self.pdf())
        image = document[0].render(scale=longest / max(self.width, self.height)).to_pil().convert("RGB")
        document.close()
        return image

    def example(
        self, label: str, questions: Mapping[str, str] | None = None, longest: int | None = 448, name: str = ""
    ) -> Example:
        """The finished page. questions: entity -> the question it answers; longest: side of its picture, or None."""
        size = (self.width, self.height)
        marked = [Word(str(k), normalise(one.box, size)) for k, one in enumerate(self.placed)]
        order = order_lines(marked)
        ones = [self.placed[int(word.text)] for word in order]
        words = tuple(Word(one.text, word.box, word.line) for one, word in zip(ones, order, strict=True))
        tags, seen = [], set()
        for one in ones:
            tags.append(f"{'I' if one.group in seen else 'B'}-{one.entity}" if one.entity else "O")
            seen.add(one.group)
        fields: dict[str, str] = {}
        for one in ones:
            if one.entity:
                fields[one.entity] = f"{fields[one.entity]} {one.text}" if one.entity in fields else one.text
        asked = []
        for entity, text in (questions or {}).items():
            at = [k for k, one in enumerate(ones) if one.entity == entity]
            if at and at == list(range(at[0], at[-1] + 1)):
                asked.append(Question(text, (fields[entity],), (at[0], at[-1])))
        image = None if longest is None else self.picture(longest)
        return Example(Page(words, size, image), tuple(tags), label, fields, tuple(asked), name)


def width_of(text: str, font: str, size: float) -> float:
    """Points."""
    from reportlab.pdfbase.pdfmetrics import stringWidth

    _register(font)
    return float(stringWidth(text, font, size))


@lru_cache(maxsize=16)
def _heights(font: str) -> tuple[float, float]:
    """Height above and depth below the line, as shares of the size."""
    from reportlab.pdfbase.pdfmetrics import getAscentDescent

    _register(font)
    up, down = getAscentDescent(font, 1000)
    return up / 1000, -down / 1000


@lru_cache(maxsize=16)
def _register(font: str) -> None:
    if font in EMBEDDED:
        from reportlab.pdfbase.pdfmetrics import registerFont
        from reportlab.pdfbase.ttfonts import TTFont

        registerFont(TTFont(font, f"{font}.ttf"))


def scan(image: Image.Image, random: np.random.Generator, strength: float = 1.0) -> Image.Image:
    """What a scanner does to a page: a slight turn, blur, noise, uneven light, JPEG. strength 0 changes nothing."""
    if strength <= 0:
        return image
    angle = float(random.uniform(-0.5, 0.5)) * strength
    image = image.rotate(angle, Image.Resampling.BICUBIC, fillcolor="white")
    image = image.filter(ImageFilter.GaussianBlur(float(random.uniform(0.0, 0.6)) * strength))
    values = np.asarray(image, np.float32)
    slope = np.linspace(0, float(random.uniform(-14, 0)) * strength, values.shape[1], dtype=np.float32)
    noise = random.normal(0, 7 * strength, values.shape[:2]).astype(np.float32)
    values = values + slope[None, :, None] + noise[:, :, None]
    noisy = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    noisy.save(buffer, "JPEG", quality=int(random.integers(60, 90)))
    return Image.open(buffer).convert("RGB")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    from systems.layoutlmv2.checkpoint import written_whole

    with written_whole(path) as file:
        file.write_bytes(data)
