"""Pages: words with boxes in reading order, and the picture. Read from PDFs and images, and drawn on.

    document = read("invoice.pdf")
    document.pages[0].words[0]          # Word(text="Invoice", box=(80, 51, 190, 74), line=0, confidence=1.0)

Boxes are whole numbers on a grid of 0..1000 over the upright page: left, top, right, bottom.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, ImageSequence

from systems.layoutlmv2.config import GRID, DocumentError, InputError, MissingEngine

if TYPE_CHECKING:
    from systems.layoutlmv2.extract import Field

Box = tuple[int, int, int, int]
Engine = Literal["auto", "rapidocr", "tesseract", "none"]
ENGINES = ("auto", "rapidocr", "tesseract", "none")
IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
DPI = 110
"""At which a PDF's page is drawn for the model and for pictures."""
OCR_DPI = 200
LEAST_PRINTABLE = 0.7
MOST_PIXELS = 60_000_000


class ReadingNote(UserWarning):
    """Something about a document that a reader should know, such as a text layer that was not used."""


@dataclass(frozen=True)
class Word:
    """A word on a page. line: the number of its line in reading order; confidence: 1.0 unless an OCR engine read it."""

    text: str
    box: Box
    line: int = 0
    confidence: float = 1.0


@dataclass(frozen=True)
class Page:
    """words: in reading order; size: (width, height) of the upright page in its own unit; image: RGB, or None."""

    words: tuple[Word, ...]
    size: tuple[float, float]
    image: Image.Image | None = field(default=None, compare=False)

    @property
    def texts(self) -> list[str]:
        """The words alone."""
        return [word.text for word in self.words]


@dataclass(frozen=True)
class Document:
    """The pages of a file. source: where it was read from."""

    pages: tuple[Page, ...]
    source: str = ""


def normalise(box: Sequence[float], size: tuple[float, float]) -> Box:
    """A box (x0, y0, x1, y1) in the page's own unit -> whole numbers in 0..1000, ordered and clipped."""
    width, height = size
    if not (width > 0 and height > 0):
        raise InputError(f"a page of {width} x {height}, expected positive sides")
    x = sorted(min(max(int(np.floor(GRID * v / width)), 0), GRID) for v in (box[0], box[2]))
    y = sorted(min(max(int(np.floor(GRID * v / height)), 0), GRID) for v in (box[1], box[3]))
    return x[0], y[0], x[1], y[1]


def page_of(
    texts: Sequence[str], boxes: Sequence[Sequence[float]], size: tuple[float, float],
    image: Image.Image | None = None, confidences: Sequence[float] | None = None,
) -> Page:  # fmt: skip
    """A page from words and boxes in its own unit, put in reading order. Raises InputError on unequal lengths."""
    if len(texts) != len(boxes):
        raise InputError(f"{len(texts)} words and {len(boxes)} boxes: every word needs one box")
    sure = confidences if confidences is not None else [1.0] * len(texts)
    words = [
        Word(text, normalise(box, size), 0, float(score)) for text, box, score in zip(texts, boxes, sure, strict=True)
    ]
    return Page(tuple(order_lines(words)), size, image)


def order_lines(words: Iterable[Word]) -> list[Word]:
    """Words in raster order: lines from the top, each from the left; `line` is set.

    A word belongs to the line whose middle half its own middle falls into, or whose middle falls into its own; lines
    are met from the top, so that the result does not depend on the order of the words given.
    """
    lines: list[list[Word]] = []
    spans: list[tuple[float, float]] = []  # of the first, highest word of each line
    for word in sorted(words, key=lambda w: (w.box[1] + w.box[3], w.box)):
        middle, height = (word.box[1] + word.box[3]) / 2, word.box[3] - word.box[1]
        for k in range(len(lines) - 1, max(len(lines) - 5, -1), -1):
            centre, tall = spans[k]
            if abs(middle - centre) <= max(min(height, tall) / 2, 1):
                lines[k].append(word)
                spans[k] = (
                    (centre * (len(lines[k]) - 1) + middle) / len(lines[k]),
                    max(tall, height) if len(lines[k]) > 1 else tall,
                )
                break
        else:
            lines.append([word])
            spans.append((middle, height))
    order = sorted(range(len(lines)), key=lambda k: (spans[k][0], lines[k][0].box))
    return [
        replace(word, line=number)
        for number, k in enumerate(order)
        for word in sorted(lines[k], key=lambda w: (w.box[0], w.box))
    ]


def pixels(page: Page, size: int) -> np.ndarray:
    """(3, size, size) uint8, channels blue green red: the page's picture as the model takes it; white without one."""
    if page.image is None:
        return np.full((3, size, size), 255, np.uint8)
    small = upright_rgb(page.image).resize((size, size), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(small)[:, :, ::-1].transpose(2, 0, 1))


def upright_rgb(image: Image.Image) -> Image.Image:
    """Any picture as RGB: EXIF rotation applied, transparency on white, 16 bits scaled to 8."""
    image = ImageOps.exif_transpose(image) or image
    if image.mode == "RGB":
        return image
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, np.float64)
        most = 65535.0 if values.max(initial=0) > 255 else 255.0
        return Image.fromarray(np.clip(values * (255.0 / most), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


# ------------------------------------------------------------------------------------------------ reading


def read(path: Path | str, ocr: Engine = "auto", dpi: int = DPI) -> Document:
    """The pages of a PDF or a picture (PNG, JPEG, TIFF with all its pages, ...).

    A PDF's own words are used where it has sensible ones; other pages go through an OCR engine, with a
    `ReadingNote`. ocr: "auto" takes RapidOCR or Tesseract, whichever is installed; "none" reads no pictures.
    Raises DocumentError (a broken or encrypted file), MissingEngine (no OCR engine), both with one line.
    """
    if ocr not in ENGINES:
        raise InputError(f"ocr {ocr!r}, expected one of {', '.join(ENGINES)}")
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DocumentError(f"{path}: cannot be read: {error.strerror}") from error
    if path.suffix.lower() == ".pdf" or data[:1024].lstrip().startswith(b"%PDF-"):
        return Document(tuple(_read_pdf(data, str(path), ocr, dpi)), str(path))
    return Document(tuple(_read_picture(data, str(path), ocr)), str(path))


def _read_picture(data: bytes, source: str, ocr: Engine) -> Iterable[Page]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = Image.open(io.BytesIO(data))
            frames = [upright_rgb(frame.copy()) for frame in ImageSequence.Iterator(opened)]
    except Exception as error:  # Pillow raises a dozen kinds on damaged files
        raise DocumentError(f"{source}: no picture or PDF that can be read: {error}") from error
    return [recognise(frame, source, ocr) for frame in frames]


def _read_pdf(data: bytes, source: str, ocr: Engine, dpi: int) -> Iterable[Page]:
    import pypdfium2 as pdfium

    try:
        document = pdfium.PdfDocument(data)
        count = len(document)
    except pdfium.PdfiumError as error:
        reason = "it is encrypted: remove its password first" if "password" in str(error).lower() else str(error)
        raise DocumentError(f"{source}: a PDF that cannot be opened: {reason}") from error
    try:
        if count == 0:
            raise DocumentError(f"{source}: a PDF without pages")
        pages = []
        for number in range(count):
            page = document[number]
            words = pdf_words(page)
            image = _draw(page, dpi)
            size = page.get_size()
            why = garbage(words)
            if why and ocr == "none" and not words:
                pages.append(Page((), size, image))
            elif why and ocr != "none" and (words or _has_ink(image)):
                note = f"{source}: page {number + 1}: {why}, so its picture is read by OCR"
                warnings.warn(note, ReadingNote, stacklevel=4)
                found = recognise(_draw(page, OCR_DPI), source, ocr)
                pages.append(Page(found.words, size, image))
            else:
                pages.append(Page(tuple(words), size, image))
            page.close()
        return pages
    except pdfium.PdfiumError as error:
        raise DocumentError(f"{source}: a damaged PDF: {error}") from error
    finally:
        document.close()


def _draw(page: Any, dpi: int) -> Image.Image:
    width, height = page.get_size()
    scale = min(dpi / 72, (MOST_PIXELS / max(width * height, 1.0)) ** 0.5)
    return page.render(scale=scale).to_pil().convert("RGB")


def _has_ink(image: Image.Image) -> bool:
    low, high = image.convert("L").getextrema()
    return bool(high != low)


def garbage(words: Sequence[Word]) -> str:
    """Why a text layer should not be trusted, or nothing."""
    if not words:
        return "it has no text layer"
    text = "".join(word.text for word in words)
    good = sum(c.isprintable() and c != "\ufffd" and not 0xE000 <= ord(c) <= 0xF8FF for c in text)
    if good < LEAST_PRINTABLE * len(text):
        return "its text layer is mostly unprintable"
    flat = sum(word.box[0] == word.box[2] or word.box[1] == word.box[3] for word in words)
    if flat > len(words) / 2:
        return "the boxes of its text layer are off the page"
    return ""


def pdf_words(page: Any) -> list[Word]:
    """The words of an open pypdfium2 page, in reading order; a rotate flag of the page is applied."""
    import ctypes

    import pypdfium2.raw as raw

    text = page.get_textpage()
    handle = text.raw
    count = raw.FPDFText_CountChars(handle)
    width, height = page.get_size()
    rectangle = raw.FS_RECTF()
    words: list[tuple[str, float, float, float, float]] = []
    letters: list[str] = []
    left = low = right = high = 0.0
    unicode_of, box_of, reference = raw.FPDFText_GetUnicode, raw.FPDFText_GetLooseCharBox, ctypes.byref(rectangle)
    for index in range(count):
        code = unicode_of(handle, index)
        letter = chr(code) if code < 0x110000 and not 0xD800 <= code < 0xE000 else "\ufffd"
        if letter.isspace() or code in (0, 0x2, 0xFFFE, 0xFFFF):
            if letters and code not in (0x2, 0xFFFE):  # these mark a hyphen at the end of a line
                words.append(("".join(letters), left, low, right, high))
                letters = []
            elif letters:
                letters.append("-")
            continue
        if not box_of(handle, index, reference):
            continue
        x0, x1 = rectangle.left, rectangle.right
        y0, y1 = rectangle.bottom, rectangle.top
        if letters and (x0 > right + 0.6 * (y1 - y0) or x1 < left or abs(y0 - low) > 0.8 * max(y1 - y0, 1.0)):
            words.append(("".join(letters), left, low, right, high))
            letters = []
        if letters:
            left, low, right, high = min(left, x0), min(low, y0), max(right, x1), max(high, y1)
        else:
            left, low, right, high = x0, y0, x1, y1
        letters.append(letter)
    if letters:
        words.append(("".join(letters), left, low, right, high))
    text.close()
    turn = page.get_rotation()
    box = page.get_cropbox()
    placed = []
    for string, x0, y0, x1, y1 in words:
        upright = _upright(x0 - box[0], y0 - box[1], x1 - box[0], y1 - box[1], width, height, turn)
        placed.append(Word(string, normalise(upright, (width, height))))
    return order_lines(placed)


def _upright(
    x0: float, y0: float, x1: float, y1: float, width: float, height: float, turn: int
) -> tuple[float, float, float, float]:
    """A box of the unturned page, y upwards -> the page of `width` x `height` turned clockwise, y downwards."""
    if turn == 90:
        return y0, x0, y1, x1
    if turn == 180:
        return width - x1, y0, width - x0, y1
    if turn == 270:
        return width - y1, height - x1, width - y0, height - x0
    return x0, height - y1, x1, height - y0


# ------------------------------------------------------------------------------------------------ OCR

_ENGINES: dict[str, Any] = {}


def recognise(image: Image.Image, source: str = "a picture", ocr: Engine = "auto") -> Page:
    """The words of a picture by an OCR engine. Raises MissingEngine naming the package to install."""
    image = upright_rgb(image)
    engine = ocr
    if ocr == "none":
        raise MissingEngine(f"{source}: a picture, and ocr is 'none': allow an OCR engine to read it")
    if ocr == "auto":
        engine = next((name for name in ("rapidocr", "tesseract") if _engine(name) is not None), "none")
    run = _engine(engine)
    if run is None:
        raise MissingEngine(
            f"{source}: reading a picture needs an OCR engine: pip install rapidocr onnxruntime (or Tesseract with "
            "pytesseract)"
        )
    texts, boxes, scores = run(image)
    return page_of(texts, boxes, (float(image.width), float(image.height)), image, scores)


def _engine(name: str) -> Any:
    if name not in _ENGINES:
        _ENGINES[name] = {"rapidocr": _rapidocr, "tesseract": _tesseract}.get(name, lambda: None)()
    return _ENGINES[name]


def _rapidocr() -> Any:
    if importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("rapidocr") is None:
        return None
    engine: Any = importlib.import_module("rapidocr").RapidOCR(params={"Global.log_level": "error"})

    def run(image: Image.Image) -> tuple[list[str], list[Any], list[float]]:
        found = engine(np.asarray(image)[:, :, ::-1])
        texts: list[str] = []
        boxes: list[Any] = []
        scores: list[float] = []
        if found.boxes is None or found.txts is None:
            return texts, boxes, scores
        for corners, text, score in zip(found.boxes, found.txts, found.scores, strict=True):
            for word, box in split_line(text, corners):
                texts.append(word)
                boxes.append(box)
                scores.append(float(score))
        return texts, boxes, scores

    return run


# Widths of characters in Helvetica, in thousandths of the font size, roughly: enough to part a line into words.
_NARROW, _WIDE = set("iljtf.,:;'|!()[]/I-r "), set("mwMW@%")


def split_line(text: str, corners: Any) -> list[tuple[str, tuple[float, float, float, float]]]:
    """The words of a line that an engine read as one, each with its share of the line's box.

    corners: (4, 2), clockwise from the top left. A character's share is by its usual width.
    """
    points = np.asarray(corners, float)
    x0, x1 = points[[0, 3], 0].mean(), points[[1, 2], 0].mean()
    y0, y1 = points[:, 1].min(), points[:, 1].max()
    share = np.array([0.3 if c in _NARROW else 0.85 if c in _WIDE else 0.55 for c in text])
    ends = np.concatenate([[0.0], np.cumsum(share)]) / max(share.sum(), 1e-9)
    found = []
    start = 0
    for word in text.split(" "):
        stop = start + len(word)
        if word.strip():
            found.append((word.strip(), (x0 + ends[start] * (x1 - x0), y0, x0 + ends[stop] * (x1 - x0), y1)))
        start = stop + 1
    return found


def _tesseract() -> Any:
    try:
        pytesseract = importlib.import_module("pytesseract")
        pytesseract.get_tesseract_version()
    except Exception:  # pytesseract raises its own kinds when the program is absent
        return None

    def run(image: Image.Image) -> tuple[list[str], list[Any], list[float]]:
        rows = pytesseract.image_to_data(image, output_type=pytesseract.Output.DICT)
        texts, boxes, scores = [], [], []
        for text, x, y, w, h, score in zip(
            *(rows[name] for name in ("text", "left", "top", "width", "height", "conf")), strict=True
        ):
            if text.strip():
                texts.append(text.strip())
                boxes.append((x, y, x + w, y + h))
                scores.append(max(float(score), 0.0) / 100)
        return texts, boxes, scores

    return run


# ------------------------------------------------------------------------------------------------ drawing

_COLOURS = ("#c0392b", "#2471a3", "#1e8449", "#b9770e", "#7d3c98", "#117a65", "#a04000", "#2e4053", "#cb4335")


def draw(page: Page, fields: Sequence[Field]) -> Image.Image:
    """The page's picture with a frame and a name for every field, in one colour a name."""
    width, height = page.size
    if page.image is not None:
        picture = upright_rgb(page.image).copy()
    else:
        picture = Image.new("RGB", (900, max(1, round(900 * height / width))), "white")
    pen = ImageDraw.Draw(picture, "RGBA")
    size = max(9, round(picture.height / 90))
    font = ImageFont.load_default(size)
    names = sorted({one.name for one in fields})
    taken = [_scaled(word.box, picture) for word in page.words]
    for one in fields:
        colour = _COLOURS[names.index(one.name) % len(_COLOURS)]
        x0, y0, x1, y1 = _scaled(one.box, picture)
        pen.rectangle((x0 - 3, y0 - 2, x1 + 3, y1 + 2), outline=colour, width=2, fill=colour + "22")
        tag = one.name.replace("_", " ")
        wide, high = pen.textlength(tag, font=font) + 6, size + 4
        middle = (y0 + y1 - high) / 2
        places = [(x1 + 6, middle), (x0 - wide - 6, middle), (x0 - 3, y0 - high - 3), (x0 - 3, y1 + 3),
                  (x1 - wide + 3, y0 - high - 3)]  # fmt: skip
        spots = [(x, y, x + wide, y + high) for x, y in places]
        x, y, right, low = min(spots, key=lambda spot: _covered(spot, taken, picture))
        taken.append((x, y, right, low))
        pen.rectangle((x, y, right, low), fill=colour)
        pen.text((x + 3, y + 1), tag, fill="white", font=font)
    return picture


def _scaled(box: Box, picture: Image.Image) -> tuple[float, float, float, float]:
    x0, x1 = (v * picture.width / GRID for v in (box[0], box[2]))
    y0, y1 = (v * picture.height / GRID for v in (box[1], box[3]))
    return x0, y0, x1, y1


def _covered(
    spot: tuple[float, float, float, float], taken: Sequence[tuple[float, float, float, float]], picture: Image.Image
) -> float:  # fmt: skip
    """How much of a spot is taken or off the picture, in pixels."""
    x0, y0, x1, y1 = spot
    inside = max(0.0, min(x1, picture.width) - max(x0, 0)) * max(0.0, min(y1, picture.height) - max(y0, 0))
    shared = (max(0.0, min(x1, c) - max(x0, a)) * max(0.0, min(y1, d) - max(y0, b)) for a, b, c, d in taken)
    return (x1 - x0) * (y1 - y0) - inside + sum(shared)
