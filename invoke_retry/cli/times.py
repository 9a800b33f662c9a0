"""Times and durations as people read and write them."""

from __future__ import annotations

import re
from datetime import UTC, datetime

_UNITS = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0}
_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])", re.IGNORECASE)


def seconds_from(text: str) -> float:
    """The seconds that an age means: `90s`, `15m`, `2h`, `7d`, `1h30m`.

    Raises:
        ValueError: It means none.
    """
    parts = _AGE.findall(text)
    if not parts or _AGE.sub("", text).strip():
        raise ValueError(f"{text!r} is no age; expected a number and a unit: 90s, 15m, 2h, 7d, 1w")
    return sum(float(number) * _UNITS[unit.lower()] for number, unit in parts)


def duration(seconds: float) -> str:
    """Seconds in the two units that matter: `250 ms`, `12.3 s`, `4 min 10 s`, `3 d 2 h`."""
    if seconds < 1:
        return f"{max(0, round(seconds * 1_000))} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    for unit, size, smaller, part in (
        ("d", 86_400, "h", 3_600),
        ("h", 3_600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size:,} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"


def ago(time: datetime, now: datetime) -> str:
    """How long ago a time was, or how far ahead it is."""
    seconds = (now - time).total_seconds()
    return f"{duration(seconds)} ago" if seconds >= 0 else f"in {duration(-seconds)}"


def moment(time: datetime) -> str:
    """A time to the millisecond, in UTC."""
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + "Z"
