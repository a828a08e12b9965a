"""What a page shows besides quantities: similarities, margins, shares, durations, a claim's value as stated."""

from __future__ import annotations

from collections.abc import Mapping

from systems.anubis.units import NOTHING, significant


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
