"""How findings speak of sizes, times, numbers and names."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

SHOWN: Final = 5
MANY: Final = 10_000  # nobody needs to know a larger number exactly


def size(number: int) -> str:
    """A number of bytes."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if number < 10_240 or unit == "GiB":
            break
        number //= 1_024
    return f"{number:,} {unit}"


def span(seconds: float) -> str:
    """How long something takes."""
    for length, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def moment(since: object) -> str:
    """Seconds since the epoch, as they are stored; "?" if they are none."""
    try:
        return datetime.fromtimestamp(since, UTC).isoformat(" ", "seconds")  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, OSError):
        return "?"


def many(number: int) -> str:
    """A number that was not counted beyond `MANY`."""
    return f"{number:,}" if number <= MANY else f"more than {MANY:,}"


def names(known: Sequence[object]) -> str:
    """The first of them."""
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return ", ".join(map(str, known[:SHOWN])) + more if known else "nothing"
