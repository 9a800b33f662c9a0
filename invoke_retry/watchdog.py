"""Tells when a service has blocked the event loop: everybody waits for it, and nobody knows why."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from invoke_retry.logs import Log
from invoke_retry.run import Run

TICK_SECONDS = 0.5
BLOCKED_SECONDS = 1.0
_NAMES = 5


class Watchdog:
    """Looks, twice a second, whether it comes in time.

    Whatever has run since it looked last may have blocked the loop: one name, mostly.

    Args:
        runs: What is under way; what came and went between two looks is told by `saw`.
    """

    def __init__(self, log: Log, runs: Mapping[str, Run]) -> None:
        self._log = log
        self._runs = runs
        self._seen: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.saw = self._seen.add

    def start(self) -> None:
        """Begin; virtual time stands still while a service blocks it, and is not watched."""
        loop = asyncio.get_running_loop()
        if not hasattr(loop, "clock"):
            self._look(loop, loop.time())

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self, loop: asyncio.AbstractEventLoop, expected: float) -> None:
        late = loop.time() - expected
        if late > BLOCKED_SECONDS:
            names = sorted(self._seen.union(run.service for run in self._runs.values()))
            text = "the event loop was blocked for %.1f s while this ran: %s; blocking code "
            text += "belongs in anyio.to_thread.run_sync"
            self._log.notable("blocked", text, late, _listed(names))
        self._seen.clear()
        expected = loop.time() + TICK_SECONDS
        self._timer = loop.call_at(expected, self._look, loop, expected)


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    more = len(found) - _NAMES
    listed = ", ".join(found[:_NAMES]) or "nothing of invoke_retry's"
    return f"{listed} and {more} others" if more > 0 else listed
