"""Numbers as people read them: SI prefixes, thousands, signs. The reverse of what a run file stores (base
units).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

NOTHING = "–"

# Units that take an SI prefix; the others (gas, token/s, 1, ...) read better as plain numbers.
_PREFIXED = {"s", "B", "B/s", "FLOP/s", "op/s"}
_PREFIXES = (
    (1e15, "P"),
    (1e12, "T"),
    (1e9, "G"),
    (1e6, "M"),
    (1e3, "k"),
    (1.0, ""),
    (1e-3, "m"),
    (1e-6, "µ"),
    (1e-9, "n"),
    (1e-12, "p"),
)


def quantity(value: float | None, unit: str) -> str:
    """`value` in base `unit` with four significant digits: `12.34 GB/s`, `951.2 µs`, `21,000 gas`; – for
    None.
    """
    if value is None:
        return NOTHING
    if not math.isfinite(value):
        return str(value)
    if unit == "digest":  # stored as the leading 48 bits of a hash, plus one
        return f"{int(value) - 1:012x}"
    if unit in _PREFIXED:
        scale, prefix = _prefix(value, unit)
        return f"{significant(value / scale)} {prefix}{unit}"
    return significant(value) if unit in {"", "1"} else f"{significant(value)} {unit}"


def _prefix(value: float, unit: str) -> tuple[float, str]:
    size = abs(value)
    if size == 0 or (unit == "s" and 1 <= size < 1e4):
        return 1.0, ""
    lowest = 1e-12 if unit == "s" else 1.0
    for scale, prefix in _PREFIXES:
        # 999.96 rounds to 1,000 at four digits, and is then better written with the next prefix.
        if lowest <= scale <= (1.0 if unit == "s" else 1e15) and size >= scale * (1 - 5e-5):
            return scale, prefix
    return lowest, {1e-12: "p", 1.0: ""}[lowest]


def significant(value: float | None, digits: int = 4) -> str:
    """`value` with `digits` significant digits and separated thousands; powers of ten outside 1e-4 .. 1e9."""
    if value is None:
        return NOTHING
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if not 1e-4 <= abs(value) < 1e9:
        return f"{value:.{digits - 1}e}"
    rounded = float(f"{value:.{digits - 1}e}")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    text = f"{rounded:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text and abs(rounded) == int(abs(rounded)) else text


def similarity(value: float | None) -> str:
    """A similarity or alpha, in [0, 1], with three decimals, never rounded up to a perfect 1."""
    if value is None:
        return NOTHING
    return "0.999" if 0.999 <= value < 1 else f"{value:.3f}"


def signed(value: float | None) -> str:
    """A margin with its sign: `+0.031`, `−0.210` (a true minus)."""
    if value is None:
        return NOTHING
    return f"{value:+.3f}".replace("-", "−")


def percent(value: float | None) -> str:
    """A share in [0, 1] as per cent: `3.2 %`, `< 0.1 %`."""
    if value is None:
        return NOTHING
    if 0 < value < 0.001:
        return "< 0.1 %"
    return f"{value * 100:.0f} %" if value >= 0.1 or value == 0 else f"{value * 100:.1f} %"


def ratio(value: float | None) -> str:
    """`1.62×`."""
    return NOTHING if value is None else f"{significant(value, 3)}×"


def duration(seconds: float | None) -> str:
    """`48 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds is None:
        return NOTHING
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def stated(value: object, unit: str) -> str:
    """A claim's value as its paper states it: a number, a list of numbers, or a table of named numbers."""
    if value is None:
        return NOTHING
    suffix = {"": "", "1": "", "x": "×", "%": " %"}.get(unit, f" {unit}")
    if isinstance(value, bool | str):
        return f"{value}{suffix}"
    if isinstance(value, int | float):
        return f"{exact(value)}{suffix}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {stated(item, '')}" for name, item in value.items()) + suffix
    if isinstance(value, list | tuple):
        return ", ".join(stated(item, "") for item in value) + suffix
    return str(value)


def exact(value: float) -> str:
    """All the digits that were given, with thousands separators from 10,000 on (four-digit years stay
    years).
    """
    if abs(value) >= 1e12 or (value != 0 and abs(value) < 1e-4):
        return f"{value:g}"
    text = f"{value:,}" if abs(value) >= 1e4 else f"{value}"
    return text.removesuffix(".0")
