"""Durations as people give them: a number of seconds or a timedelta, from 0 to 100 years."""

from __future__ import annotations

import math
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction

Duration = float | timedelta

YEAR = 365.25 * 86_400
LONGEST = 100 * YEAR


def shown(value: object) -> str:
    """A value as an error message shows it: short, with its type, and never raising itself."""
    try:
        text = repr(value)
    except Exception:  # repr of an int of more than 4,300 digits raises, and so may anything else
        text = "a value that cannot be shown"
    if len(text) > 80:
        text = f"{text[:80]}..."
    return f"{text} ({type(value).__name__})"


def seconds_of(name: str, value: object, *, positive: bool = False) -> float:
    """*value* in seconds; an int stays an int.

    Args:
        name: What an error calls the value.
        positive: Refuse 0 too.

    Raises:
        ValueError: Not a number or timedelta, not finite, negative, or over 100 years.
    """
    number: float | None = None
    if isinstance(value, timedelta):
        number = value.total_seconds()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        number = value
    elif isinstance(value, Decimal | Fraction):
        number = _as_float(value)
    least = "more than 0" if positive else "0"
    if number is None or not 0 <= number <= LONGEST or (positive and not number):
        raise ValueError(
            f"{name} is {shown(value)}, but must be a number of seconds or a timedelta, "
            f"from {least} to 100 years; pass for example {name}=5"
        )
    return number


def as_wait(value: object) -> float | None:
    """A wait that somebody else asked for, in seconds, or None where it makes no sense."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | Fraction):
        return None
    number = _as_float(value)
    return number if number is not None and math.isfinite(number) and number >= 0 else None


def _as_float(value: float | Decimal | Fraction) -> float | None:
    try:
        return float(value)
    except (ValueError, OverflowError):  # a signalling NaN, an int of 400 digits
        return None
