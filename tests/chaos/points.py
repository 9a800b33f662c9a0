"""The points at which a process can be told to kill itself: around all that is done and kept."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final

from invoke_retry.backends.sqlite import claims
from invoke_retry.backends.sqlite.store import Store
from invoke_retry.record import FINAL, Record
from invoke_retry.work import Work

from .journal import Journal

POINTS: Final = tuple(
    f"{when} {what}"
    for what in ("target returns", "outcome commit", "callback", "delivered commit")
    for when in ("before", "after")
)


class Trigger:
    """Kills this process when it passes a point for the n-th time.

    Args:
        point: One of `POINTS`; empty: never.
    """

    def __init__(self, journal: Journal, point: str = "", passes: int = 1) -> None:
        assert not point or point in POINTS, point
        self._journal = journal
        self._point = point
        self._left = passes

    def passing(self, point: str) -> None:
        if point != self._point:
            return
        self._left -= 1
        if self._left <= 0:
            kill_self(self._journal, point)


def kill_self(journal: Journal, why: str) -> None:
    """Die at once, as the kernel would have it; the journal knows."""
    journal.write("killed", number=os.getpid(), text=why)
    os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()  # the signal may need a moment


def install(trigger: Trigger) -> None:
    """Watch the commits, and the moment after a target has returned."""
    committing: set[str] = set()
    apply, totals, transaction = claims.apply, getattr(Store, "_write_totals"), Store.transaction

    def watched_apply(store: Store, row: int, before: Record, after: Record) -> bool:
        if before.outcome is None and after.outcome is not None:
            committing.add("outcome commit")
        if before.state == "notifying" and after.state in FINAL:
            committing.add("delivered commit")
        return apply(store, row, before, after)

    def watched_totals(store: Store) -> None:
        totals(store)  # the last that is done before the commit
        for what in committing:
            trigger.passing(f"before {what}")

    @contextmanager
    def watched_transaction(store: Store) -> Generator[None]:
        committing.clear()
        with transaction(store):
            yield
        for what in committing:
            trigger.passing(f"after {what}")

    setattr(claims, "apply", watched_apply)
    setattr(Store, "_write_totals", watched_totals)
    setattr(Store, "transaction", watched_transaction)
    for name in ("_succeeded", "_failed"):
        _watch_return(trigger, name)


def _watch_return(trigger: Trigger, name: str) -> None:
    step = getattr(Work, name)

    async def watched(*args: Any) -> None:
        trigger.passing("after target returns")
        await step(*args)

    setattr(Work, name, watched)
