"""Synthetic pages with exact labels, unlimited in number: six kinds, from a seed.

    example = make("invoice", seed=7)
    example.fields["total"], example.tags, example.page
    write_pdf("invoice", 7, "invoice.pdf")

Text does not give the labels away: forms draw keys and values from shared words, and what stands beside or below what
decides; dates, amounts and company names also appear where they are no field; panels of forms change the label of
what lies inside, which only the picture shows.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from systems.layoutlmv2.config import InputError
from systems.layoutlmv2.sheet import BOLD, FONTS, Example, Sheet, scan, width_of, write_bytes

FIELDS = ("company", "address", "customer", "invoice_no", "date", "due_date", "tax", "total")
"""What the shipped checkpoint reads off invoices, receipts and letters."""
KINDS = ("form", "receipt", "invoice", "letter", "table", "id_card")
A4 = (595.0, 842.0)
A5 = (420.0, 595.0)
WORDS: Mapping[str, list[str]] = {
    name: text.split()
    for name, text in json.loads(Path(__file__).with_name("words.json").read_text(encoding="utf-8")).items()
}
"""What names, addresses and running text are made of."""



class Draw:
    """Random words, numbers and names; the style of a page (font, date format) is fixed when it is made."""

    def __init__(self, seed: int, stream: int = 0) -> None:
        self.random = np.random.default_rng([stream, seed])
        self.font = self.pick(FONTS[:3]) if self.chance(0.9) else FONTS[3]
        self.bold = BOLD[self.font]
        self.date_style = int(self.random.integers(0, 6))
        self.money_style = int(self.random.integers(0, 3))
        self.currency = self.pick(["$", "EUR", "RM", "GBP", "£", "", ""])

    def pick(self, options: Sequence[str]) -> str:
        """One of them."""
        return options[int(self.random.integers(0, len(options)))]

    def word(self, kind: str) -> str:
        """One of the words of a kind; see `WORDS`."""
        return self.pick(WORDS[kind])

    def chance(self, share: float) -> bool:
        """True in this share of cases."""
        return bool(self.random.random() < share)

    def between(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return float(self.random.uniform(low, high))

    def number(self, low: int, high: int) -> int:
        """A whole number in [low, high)."""
        return int(self.random.integers(low, high))

    def name(self, syllables: int = 2) -> str:
        """An invented name."""
        parts = [self.word("onsets") + self.word("vowels") for _ in range(syllables - 1)]
        return ("".join(parts) + self.word("onsets") + self.word("vowels") + self.word("ends")).capitalize()

    def person(self) -> str:
        """First and last name."""
        return f"{self.word('first')} {self.name(self.number(1, 3))}"

    def company(self) -> str:
        """A company's name, of two to four words."""
        words = [self.name(self.number(1, 3))]
        if self.chance(0.3):
            words.append("&" if self.chance(0.4) else self.name(1))
            if words[-1] == "&":
                words.append(self.name(self.number(1, 3)))
        if self.chance(0.8):
            words.append(self.word("trades"))
        if self.chance(0.75) or len(words) == 1:
            words.append(self.pick(WORDS["forms"][:8]) if self.chance(0.85) else "Group")
        text = " ".join(words)
        return text.upper() if self.chance(0.3) else text

    def address(self) -> list[str]:
        """An address of two or three lines."""
        street = f"{self.number(1, 300)} {self.word('streets')} {self.word('street_kinds')}"
        if self.chance(0.25):
            street = f"{self.word('streets')} {self.word('street_kinds')} {self.number(1, 300)}"
        town, code = self.name(2), str(self.number(10000, 99999))
        place = f"{code} {town}" if self.chance(0.6) else f"{town} {code}"
        lines = [street + ("," if self.chance(0.3) else ""), place]
        if self.chance(0.3):
            lines.insert(1, f"{self.pick(['Unit', 'Floor', 'Suite'])} {self.number(1, 40)}")
        return lines

    def date(self) -> str:
        """In the format of the page."""
        day, month, year = self.number(1, 29), self.number(1, 13), self.number(2009, 2027)
        long = WORDS["months"][month - 1]
        return (
            f"{day:02}/{month:02}/{year}",
            f"{year}-{month:02}-{day:02}",
            f"{day:02}.{month:02}.{year}",
            f"{day} {long} {year}",
            f"{long[:3]} {day}, {year}",
            f"{day:02}-{long[:3]}-{year % 100:02}",
        )[self.date_style]

    def money(self, value: float) -> str:
        """With thousands set off, and the currency where the page has one."""
        text = (f"{value:,.2f}", f"{value:.2f}", f"{value:,.2f}")[self.money_style]
        if self.currency in ("$", "£"):
            return self.currency + text
        return text

    def reference(self) -> str:
        """A document number."""
        number = self.number(100, 999999)
        return self.pick(
            [f"INV-{number:06}", f"{number:06}", f"{self.number(2010, 2027)}/{number}", f"A{number}", f"R-{number}"]
        )

    def goods(self) -> str:
        """An article."""
        text = f"{self.word('adjectives')} {self.word('goods')}"
        return text.title() if self.chance(0.4) else text

    def prose(self, count: int) -> list[str]:
        """Words of running text."""
        start = self.number(0, len(WORDS["prose"]))
        return [WORDS["prose"][(start + k) % len(WORDS["prose"])] for k in range(count)]


def make(kind: str, seed: int, longest: int | None = 448, scanned: float = 0.0) -> Example:
    """The page of `kind` with this seed. longest: side of its picture in pixels, None for no picture.

    scanned: strength of scanning faults in the picture. Raises InputError on an unknown kind.
    """
    sheet, questions = _compose(kind, seed)
    example = sheet.example(kind, questions, longest, f"{kind}-{seed}")
    if scanned and example.page.image is not None:
        image = scan(example.page.image, np.random.default_rng([9, seed]), scanned)
        example = replace(example, page=replace(example.page, image=image))
    return example


def write_pdf(kind: str, seed: int, path: Path | str) -> Example:
    """Write the page as a PDF; returns what is known of it."""
    sheet, questions = _compose(kind, seed)
    write_bytes(Path(path), sheet.pdf())
    return sheet.example(kind, questions, None, f"{kind}-{seed}")


def write_png(kind: str, seed: int, path: Path | str, longest: int = 1700, scanned: float = 1.0) -> Example:
    """Write the page as a noisy scan; returns what is known of it."""
    example = make(kind, seed, longest, scanned)
    assert example.page.image is not None
    buffer = io.BytesIO()
    example.page.image.save(buffer, "PNG")
    write_bytes(Path(path), buffer.getvalue())
    return example


def _compose(kind: str, seed: int) -> tuple[Sheet, Mapping[str, str]]:
    if kind not in _MAKERS:
        raise InputError(f"kind {kind!r}, expected one of {', '.join(KINDS)}")
    draw = Draw(seed, KINDS.index(kind) + 1)
    return _MAKERS[kind](draw)


# ------------------------------------------------------------------------------------------------ business pages

_QUESTIONS = {
    "company": "who sent this document ?",
    "customer": "who is the customer ?",
    "invoice_no": "what is the document number ?",
    "date": "what is the date ?",
    "due_date": "when is the payment due ?",
    "tax": "how much is the tax ?",
    "total": "what is the total ?",
    "number": "what is the number of the card ?",
    "name": "who holds this card ?",
    "birth": "what is the date of birth ?",
    "expiry": "when does the card expire ?",
}


def _items(draw: Draw, most: int) -> list[tuple[str, int, float]]:
    return [
        (draw.goods(), draw.number(1, 20), round(draw.between(0.5, 400.0 if draw.chance(0.2) else 60.0), 2))
        for _ in range(draw.number(2, most))
    ]


def _invoice(draw: Draw) -> tuple[Sheet, Mapping[str, str]]:
    sheet = Sheet(*A4)
    font, bold = draw.font, draw.bold
    size = draw.between(9, 11)
    step = size * draw.between(1.35, 1.7)
    left, right = draw.between(40, 70), A4[0] - draw.between(40, 70)
    top = draw.between(50, 80)
    company, title = draw.company(), draw.pick(["INVOICE", "Invoice", "TAX INVOICE", "Bill", "INVOICE"])
    swapped = draw.chance(0.35)

    # The sender on one side, the title and the numbers on the other; below, who it goes to.
    x, align = (right, "right") if swapped else (left, "left")
    if draw.chance(0.2):
        sheet.panel(left - 10, top - 25, right + 10, top + 12, draw.between(0.82, 0.92))
    sheet.text(x, top, company, size * draw.between(1.2, 1.8), bold, "company", align)
    y = top + step * 1.4
    for number, line in enumerate(draw.address()):
        sheet.text(x, y, line, size, font, "address", align, continues=number > 0)
        y += step
    if draw.chance(0.5):
        contact = f"Tel {draw.number(100, 999)} {draw.number(1000, 9999)}"
        sheet.text(x, y, contact, size, font, align=align)
        y += step
    if draw.chance(0.4):
        sheet.text(x, y, f"VAT No {draw.number(10**7, 10**8)}", size, font, align=align)
        y += step
    sender_end = y

    entries = [
        (draw.pick(["Invoice No", "Invoice Number", "Invoice #", "No.", "Reference"]), draw.reference(), "invoice_no"),
        (draw.pick(["Date", "Invoice Date", "Issued", "Date of issue"]), draw.date(), "date"),
    ]
    if draw.chance(0.8):
        entries.append((draw.pick(["Due Date", "Due", "Payment due", "Pay by"]), draw.date(), "due_date"))
    if draw.chance(0.4):
        entries.append((draw.pick(["Order Date", "Delivery Date", "Shipped"]), draw.date(), ""))
    if draw.chance(0.4):
        entries.append((draw.pick(["Order No", "Customer No", "PO Number"]), draw.reference(), ""))
    order = draw.random.permutation(len(entries)) if draw.chance(0.4) else range(len(entries))
    entries = [entries[k] for k in order]
    colon = ":" if draw.chance(0.5) else ""
    if draw.chance(0.7):  # a block of key and value, left and right
        x0 = left if swapped else draw.between(330, 360)
        sheet.text(x0, top, title, size * 1.9, bold)
        y = top + step * 1.8
        gap = draw.between(95, 115)
        for key, value, entity in entries:
            sheet.text(x0, y, key + colon, size, bold if draw.chance(0.5) else font)
            sheet.text(x0 + gap, y, value, size, font, entity)
            y += step
        y = max(y, sender_end) + step
    else:  # a row of keys, and their values below
        sheet.text(left if swapped else right, top, title, size * 1.9, bold, align="left" if swapped else "right")
        y = sender_end + step
        wide = (right - left) / len(entries)
        if draw.chance(0.5):
            sheet.panel(left - 4, y - size * 1.2, right + 4, y + size * 0.5, 0.87)
        for k, (key, value, entity) in enumerate(entries):
            sheet.text(left + k * wide, y, key, size * 0.9, bold)
            sheet.text(left + k * wide, y + step, value, size * 0.9, font, entity)
        y += 3 * step

    customer = draw.company() if draw.chance(0.65) else draw.person()
    x0 = left if draw.chance(0.75) else draw.between(300, 340)
    label = draw.pick(["Bill to", "Customer", "Sold to", "Invoice to", "Client", "To"])
    if draw.chance(0.75):
        sheet.text(x0, y, label + colon, size, bold)
        y += step
        sheet.text(x0, y, customer, size, font, "customer")
    else:
        end = sheet.text(x0, y, label + ":", size, bold)
        sheet.text(end + 8, y, customer, size, font, "customer")
    for line in draw.address():
        y += step
        sheet.text(x0, y, line, size, font)
    y += 2 * step

    y = _lines(sheet, draw, left, right, y, size, step)
    if draw.chance(0.7):
        y += step
        words = draw.prose(draw.number(8, 24))
        if draw.chance(0.5):
            words[3:3] = ["total", draw.money(draw.between(10, 900))]
        if draw.chance(0.3):
            words[1:1] = ["since", draw.date()]
        _paragraph(sheet, words, left, right, y, size, font, step)
    if draw.chance(0.4):
        sheet.text((left + right) / 2, A4[1] - 40, f"{company} - page 1 of 1", size * 0.8, font, align="center")
    return sheet, _QUESTIONS


def _lines(sheet: Sheet, draw: Draw, left: float, right: float, y: float, size: float, step: float) -> float:
    """A table of articles and its sums; returns the y below it."""
    font, bold = draw.font, draw.bold
    columns = [left, left + (right - left) * 0.55, left + (right - left) * 0.78, right]
    if draw.chance(0.5):
        sheet.panel(left - 4, y - size * 1.2, right + 4, y + size * 0.5, draw.between(0.8, 0.92))
    heads = (draw.pick(["Description", "Item", "Article"]), draw.pick(["Qty", "Quantity"]),
             draw.pick(["Price", "Unit price"]), draw.pick(["Amount", "Total", "Sum"]))  # fmt: skip
    for x, head, align in zip(columns, heads, ("left", "right", "right", "right"), strict=True):
        sheet.text(x, y, head, size, bold, align=align)
    y += step * 1.2
    subtotal = 0.0
    for goods, count, price in _items(draw, 9):
        row = (goods, str(count), draw.money(price), draw.money(count * price))
        for x, text, align in zip(columns, row, ("left", "right", "right", "right"), strict=True):
            sheet.text(x, y, text, size, font, align=align)
        subtotal += round(count * price, 2)
        y += step
    if draw.chance(0.6):
        sheet.rule(left, y - step * 0.6, right, y - step * 0.6)
    y += step * 0.5
    rate = draw.number(5, 26)
    tax = round(subtotal * rate / 100, 2)
    x0 = columns[1] if draw.chance(0.8) else left
    sums = []
    if draw.chance(0.85):
        sums.append((draw.pick(["Subtotal", "Net", "Net amount"]), subtotal, ""))
    if draw.chance(0.85):
        sums.append((draw.pick([f"VAT {rate}%", f"Tax ({rate}%)", "Tax", "VAT", "GST"]), tax, "tax"))
    else:
        tax = 0.0
    if draw.chance(0.2):
        sums.append((draw.pick(["Shipping", "Discount"]), draw.between(1, 30), ""))
    sums.append((draw.pick(["Total", "TOTAL", "Total due", "Amount due", "Grand total"]), subtotal + tax, "total"))
    if draw.chance(0.2):
        sums.append((draw.pick(["Paid", "Deposit"]), draw.between(1, 100), ""))
    for key, value, entity in sums:
        face = bold if entity == "total" else font
        sheet.text(x0, y, key, size, face)
        if entity == "total" and draw.currency in ("EUR", "RM", "GBP"):
            sheet.text(columns[2], y, draw.currency, size, face, align="right")
        sheet.text(right, y, draw.money(value), size, face, entity, align="right")
        y += step
    return y


def _paragraph(
    sheet: Sheet, words: Sequence[str], left: float, right: float, y: float, size: float, font: str, step: float
) -> float:
    line: list[str] = []
    for word in [*words, ""]:
        if line and (not word or left + width_of(" ".join([*line, word]), font, size) > right):
            sheet.text(left, y, " ".join(line), size, font)
            y += step
            line = []
        line.append(word)
    return y


def _receipt(draw: Draw) -> tuple[Sheet, Mapping[str, str]]:
    width = draw.between(260, 330)
    items = _items(draw, 12)
    step = draw.between(13, 16)
    sheet = Sheet(width, (24 + 2 * len(items)) * step)
    font, bold = draw.font, draw.bold
    size = draw.between(8.5, 10.5)
    left, right, middle = 16.0, width - 16, width / 2
    y = 3 * step
    sheet.text(middle, y, draw.company(), size * 1.2, bold, "company", "center")
    y += step * 1.3
    for number, line in enumerate(draw.address()):
        sheet.text(middle, y, line, size, font, "address", "center", continues=number > 0)
        y += step
    if draw.chance(0.5):
        sheet.text(middle, y, f"Tel: {draw.number(100, 999)}-{draw.number(1000, 9999)}", size, font, align="center")
        y += step
    y += step * 0.5
    if draw.chance(0.5):
        sheet.text(middle, y, draw.pick(["RECEIPT", "CASH BILL", "TAX INVOICE"]), size, bold, align="center")
        y += step
    time = f"{draw.number(8, 22):02}:{draw.number(0, 60):02}"
    if draw.chance(0.8):
        sheet.text(left, y, draw.pick(["Receipt No:", "Bill #", "Doc No.:"]), size, font)
        sheet.text(left + 80, y, draw.reference(), size, font, "invoice_no")
        y += step
    key = draw.pick(["Date:", "Date", ""])
    end = sheet.text(left, y, key, size, font) if key else left
    end = sheet.text(end + 6, y, draw.date(), size, font, "date")
    if draw.chance(0.7):
        sheet.text(right, y, time, size, font, align="right")
    y += step * 1.5
    if draw.chance(0.4):
        sheet.text(left, y, f"Cashier: {draw.word('first')}", size, font)
        y += step
    total = 0.0
    for goods, count, price in items:
        sheet.text(left, y, goods, size, font)
        if draw.chance(0.4):
            y += step
            sheet.text(left + 14, y, f"{count} x {draw.money(price)}", size, font)
        sheet.text(right, y, draw.money(count * price), size, font, align="right")
        total += round(count * price, 2)
        y += step
    if draw.chance(0.6):
        sheet.rule(left, y - step * 0.5, right, y - step * 0.5)
    y += step * 0.5
    rows = []
    if draw.chance(0.6):
        rows.append((draw.pick(["Subtotal", "Sub Total", "Net"]), total, ""))
    if draw.chance(0.6):
        tax = round(total * draw.number(5, 20) / 100, 2)
        rows.append((draw.pick(["Tax", "GST", "VAT", "Service tax"]), tax, "tax"))
        total += tax
    rows.append((draw.pick(["Total", "TOTAL", "Total due", "Amount"]), total, "total"))
    if draw.chance(0.6):
        paid = float(np.ceil(total / 10) * 10)
        rows += [(draw.pick(["Cash", "CASH", "Paid"]), paid, ""), ("Change", max(paid - total, 0.01), "")]
    for name, value, entity in rows:
        face = bold if entity == "total" else font
        sheet.text(left, y, name, size, face)
        sheet.text(right, y, draw.money(value), size, face, entity, align="right")
        y += step
    y += step
    sheet.text(middle, y, draw.pick(["THANK YOU", "Please come again", "Goods sold are not returnable"]), size, font,
               align="center")  # fmt: skip
    return sheet, _QUESTIONS


def _letter(draw: Draw) -> tuple[Sheet, Mapping[str, str]]:
    sheet = Sheet(*A4)
    font, bold = draw.font, draw.bold
    size = draw.between(10, 11.5)
    step = size * 1.5
    left, right, y = draw.between(60, 80), A4[0] - draw.between(60, 80), draw.between(60, 90)
    x, align = (right, "right") if draw.chance(0.5) else (left, "left")
    sheet.text(x, y, draw.company(), size * 1.25, bold, "company", align)
    for number, line in enumerate(draw.address()):
        y += step
        sheet.text(x, y, line, size, font, "address", align, continues=number > 0)
    y += 2.5 * step
    name = draw.person() if draw.chance(0.6) else draw.company()
    sheet.text(left, y, name, size, font, "customer")
    for line in draw.address():
        y += step
        sheet.text(left, y, line, size, font)
    y += 2 * step
    x, align = (right, "right") if draw.chance(0.6) else (left, "left")
    sheet.text(x, y, draw.date(), size, font, "date", align)
    y += 2 * step
    if draw.chance(0.6):
        sheet.text(left, y, f"{draw.pick(['Re:', 'Subject:'])} {draw.goods()} {draw.reference()}", size, bold)
        y += 1.5 * step
    sheet.text(left, y, f"Dear {name.split()[-1]},", size, font)
    y += 1.5 * step
    for _ in range(draw.number(2, 5)):
        words = draw.prose(draw.number(25, 70))
        if draw.chance(0.5):
            words[9:9] = ["on", draw.date()]
        if draw.chance(0.4):
            words[4:4] = ["total", "of", draw.money(draw.between(10, 3000))]
        words[0] = words[0].capitalize()
        y = _paragraph(sheet, words, left, right, y, size, font, step) + step * 0.6
    y += step
    sheet.text(left, y, draw.pick(["Yours sincerely,", "Kind regards,"]), size, font)
    sheet.text(left, y + 2.5 * step, draw.person(), size, font)
    return sheet, _QUESTIONS


def _table(draw: Draw) -> tuple[Sheet, Mapping[str, str]]:
    sheet = Sheet(*(A4 if draw.chance(0.6) else A4[::-1]))
    font, bold = draw.font, draw.bold
    size = draw.between(8, 10)
    step = size * draw.between(1.5, 1.9)
    left, right, y = 45.0, sheet.width - 45, 60.0
    sheet.text(left, y, f"{draw.pick(['Report', 'Overview', 'Summary', 'List'])} {draw.goods()}", size * 1.5, bold)
    y += 2.5 * step
    columns, rows = draw.number(4, 8), draw.number(10, 24)
    wide = (right - left) / columns
    if draw.chance(0.7):
        sheet.panel(left, y - size * 1.3, right, y + size * 0.6, 0.82)
    for column in range(columns):
        sheet.text(left + column * wide + 4, y, draw.word("goods").capitalize(), size, bold)
    ruled = draw.chance(0.7)
    for row in range(rows):
        y += step
        if ruled:
            sheet.rule(left, y - size * 1.2, right, y - size * 1.2)
        sheet.text(left + 4, y, draw.name(2), size, font)
        for column in range(1, columns):
            value = str(draw.number(0, 9999)) if draw.chance(0.7) else draw.money(draw.between(1, 999))
            sheet.text(left + (column + 1) * wide - 8, y, value, size, font, align="right")
        if y > sheet.height - 60 or row == rows - 1:
            break
    if ruled:
        for column in range(columns + 1):
            sheet.rule(left + column * wide, 60 + 1.5 * step, left + column * wide, y + size * 0.5)
    return sheet, {}


def _id_card(draw: Draw) -> tuple[Sheet, Mapping[str, str]]:
    sheet = Sheet(draw.between(320, 360), draw.between(205, 225))
    font, bold = draw.font, draw.bold
    size = draw.between(8.5, 10)
    step = size * 1.15
    photo_left = draw.chance(0.6)
    x = 120.0 if photo_left else 18.0
    px = 16.0 if photo_left else sheet.width - 100
    sheet.panel(0, 0, sheet.width, 34, draw.between(0.7, 0.9))
    sheet.panel(px, 48, px + 84, 156, draw.between(0.45, 0.7), outline=True)
    head = f"{draw.name(2)} {draw.pick(['Identity Card', 'Member Card', 'Staff Card', 'Driving Licence'])}"
    sheet.text(16, 23, head, size * 1.3, bold)
    entries = [
        (draw.pick(["Name", "Holder"]), draw.person(), "name"),
        (draw.pick(["Card No", "Number", "ID"]), str(draw.number(10**7, 10**8)), "number"),
        (draw.pick(["Date of birth", "Born"]), draw.date(), "birth"),
        (draw.pick(["Issued", "Valid from"]), draw.date(), ""),
        (draw.pick(["Expires", "Valid until"]), draw.date(), "expiry"),
    ]
    order = draw.random.permutation(len(entries)) if draw.chance(0.5) else range(len(entries))
    y = 58.0
    for k in order:
        key, value, entity = entries[k]
        sheet.text(x, y, key, size * 0.8, font, ink=0.3)
        sheet.text(x, y + step, value, size, bold, entity)
        y += 2.6 * step
    return sheet, _QUESTIONS


# ------------------------------------------------------------------------------------------------ forms


def names(count: int, stream: int) -> list[str]:
    """`count` invented words, the same in every run."""
    draw = Draw(0, 1000 + stream)
    found: dict[str, None] = {}
    while len(found) < count:
        found[draw.name(2).lower()] = None
    return list(found)


def form(
    seed: int, keys: int = 20, values: int = 60, panels: bool = False, mixed: float = 0.4, longest: int | None = 448,
    stream: int = 0,
) -> Example:  # fmt: skip
    """A form of pairs in two or three columns, each page with its keys to the left of the values or above them.

    keys, values: how many words of each there are; mixed: the share of pairs whose value is a key's word or whose key
    is a value's. panels: shade about half of the page; a value inside is an "office" one, which no box tells.
    Entities: key, value and, with panels, office.
    """
    draw = Draw(seed, 100 + stream)
    return _form_sheet(draw, names(keys, 1), names(values, 2), panels, mixed).example(
        "form", None, longest, f"form-{seed}"
    )


def _form(draw: Draw) -> tuple[Sheet, Mapping[str, str]]:
    return _form_sheet(draw, names(20, 1), names(60, 2), draw.chance(0.5), 0.4), {}


def _form_sheet(draw: Draw, keys: Sequence[str], values: Sequence[str], panels: bool, mixed: float) -> Sheet:
    sheet = Sheet(*A5)
    font = draw.font
    size = draw.between(8, 9.5)
    columns = draw.number(2, 4)
    beside = draw.chance(0.5)
    rows = draw.number(5, 8)
    left, top = draw.between(24, 40), draw.between(60, 90)
    wide = (A5[0] - left - 16) / columns
    high = (A5[1] - top - 30) / rows
    bands: list[list[float]] = []
    if panels:
        first = draw.number(0, rows)
        edges = [top + row * high - size * 1.4 for row in range(rows + 1)]
        bands = [edges[row : row + 2] for row in range(rows) if (row - first) % rows < max(rows // 2, 2)]
        for y0, y1 in bands:
            sheet.panel(8, y0, A5[0] - 8, y1, draw.between(0.55, 0.75))
    heading = [draw.pick(keys), draw.pick(values), draw.pick(keys)]
    sheet.text(left, top - 34, " ".join(heading[: draw.number(2, 4)]), size * 1.3, draw.bold)
    for row in range(rows):
        for column in range(columns):
            x, y = left + column * wide, top + row * high
            key_words, value_words = keys, values
            if draw.chance(mixed):
                key_words, value_words = (values, values) if draw.chance(0.5) else (keys, keys)
            key = " ".join(draw.pick(key_words) for _ in range(1 if columns == 3 else draw.number(1, 3)))
            sheet.text(x, y, key, size, font, "key")
            if draw.chance(0.12):
                continue  # an empty field
            value = " ".join(draw.pick(value_words) for _ in range(1 if columns == 3 else draw.number(1, 3)))
            inside = any(y0 <= y < y1 for y0, y1 in bands)
            entity = "office" if inside else "value"
            if beside:
                sheet.text(x + wide * 0.5, y, value, size, font, entity)
            else:
                sheet.text(x, y + size * 1.5, value, size, font, entity)
    return sheet


_MAKERS: Mapping[str, Callable[[Draw], tuple[Sheet, Mapping[str, str]]]] = {
    "form": _form,
    "receipt": _receipt,
    "invoice": _invoice,
    "letter": _letter,
    "table": _table,
    "id_card": _id_card,
}
