"""The one place that reads time."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Protocol


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
    clock: Clock = getattr(asyncio.get_running_loop(), "clock", SYSTEM_CLOCK)
    return clock


def boot_id() -> str:
    """What tells one start of the machine from another: monotonic time begins anew with each."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # the time of the start, as far as the wall clock was not set since
        return f"about {round((time.time() - time.monotonic()) / 60)}"
