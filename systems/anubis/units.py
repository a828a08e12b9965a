"""The base units that measurements are kept in, which way is better in each, and numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping

UNITS: Mapping[str, str | None] = {
    "s": "lower",
    "B": "lower",
    "gas": "lower",
    "wei": "lower",
    "B/s": "higher",
    "FLOP/s": "higher",
    "op/s": "higher",
    "sample/s": "higher",
    "token/s": "higher",
    "step/s": "higher",
    "1": None,
    "digest": "target",
}
"""Unit -> which way is better; None where the unit does not tell."""

BETTER = ("higher", "lower", "target")

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
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e4 else f"{rounded:,.{decimals}f}"
