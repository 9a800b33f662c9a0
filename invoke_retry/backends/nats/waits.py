"""Waits that a process keeps itself, because the server is too coarse for them, or has none.

A short wait is in the server's keeping all the same, a little later: if this process dies, the
server does it. A deadline passes here as long as this process lives, and else when the record is
next claimed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from invoke_retry.backends.nats.layout import SHORT_WAIT
from invoke_retry.backends.nats.store import Store, Written
from invoke_retry.record import Record

_MOST_DEADLINES = 100_000


class Waits:
    """The timers of one process.

    Args:
        do: Has something done in a task.
        late: Called with the cid of what waits, and has reached its deadline.
    """

    def __init__(
        self,
        store: Store,
        *,
        do: Callable[[Coroutine[Any, Any, None]], None],
        late: Callable[[str], Coroutine[Any, Any, None]],
    ) -> None:
        self._store = store
        self._do = do
        self._late = late
        self._moves: dict[str, asyncio.TimerHandle] = {}
        self._deadlines: dict[str, asyncio.TimerHandle] = {}
        self._is_closed = False

    def close(self) -> None:
        """Forget them all."""
        self._is_closed = True
        for timer in (*self._moves.values(), *self._deadlines.values()):
            timer.cancel()
        self._moves.clear()
        self._deadlines.clear()

    def follow(self, record: Record, written: Written) -> None:
        """A record was written: keep what it waits for."""
        cid, now = record.cid, self._store.clock.monotonic()
        _forget(self._moves, cid)
        if self._is_closed:
            return
        deadline = record.deadline
        if record.state == "waiting" and deadline is not None:
            if cid not in self._deadlines and len(self._deadlines) < _MOST_DEADLINES:
                loop = asyncio.get_running_loop()
                timer = loop.call_later(max(0.0, deadline - now), self._pass, cid)
                self._deadlines[cid] = timer
        elif record.outcome is not None:
            _forget(self._deadlines, cid)
        if record.due is None or record.state not in ("waiting", "notifying"):
            return
        wait = record.due - now
        if 0 < wait < SHORT_WAIT:
            loop = asyncio.get_running_loop()
            self._moves[cid] = loop.call_later(wait, self._move, record.copy(), written)

    def _move(self, record: Record, written: Written) -> None:
        assert record.due is not None
        del self._moves[record.cid]
        if record.due > self._store.clock.monotonic():  # a hair early
            self.follow(record, written)
        else:
            self._do(self._moved(record, written))

    async def _moved(self, record: Record, written: Written) -> None:
        # if it was changed meanwhile, this is refused; if it is lost, the server does it
        await self._store.write(record, self._store.new_op(), *written)

    def _pass(self, cid: str) -> None:
        self._deadlines.pop(cid, None)
        self._do(self._late(cid))


def _forget(timers: dict[str, asyncio.TimerHandle], cid: str) -> None:
    if (timer := timers.pop(cid, None)) is not None:
        timer.cancel()
