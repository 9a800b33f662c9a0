"""The one place that reads time."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol, cast


class Clock(Protocol):
    """What time it is, in two scales. Replaceable: one clock belongs to one coordinator."""

    def monotonic(self) -> float:
        """Seconds that never step, on the scale of the event loop's own time."""
        ...

    def utc(self) -> float:
        """Seconds since the Unix epoch."""
        ...


class _SystemClock:
    monotonic = staticmethod(time.monotonic)
    utc = staticmethod(time.time)


SYSTEM_CLOCK: Clock = _SystemClock()


def running_clock() -> Clock:
    """The clock of the running loop: its own if it has one (virtual time), else the system's."""
    return cast("Clock", getattr(asyncio.get_running_loop(), "clock", SYSTEM_CLOCK))
