"""How much may still be accepted, where that is limited: counted by the server, now and then."""

from __future__ import annotations

import asyncio

from invoke_retry.backends.nats.looking import Looking
from invoke_retry.backends.nats.state import Unreadable
from invoke_retry.backends.nats.store import Store
from invoke_retry.errors import BackendFull
from invoke_retry.record import Record

_SHARE = 10
_SECONDS = 1.0


class Room:
    """What is left of `max_waiting`."""

    def __init__(self, store: Store, looking: Looking, limit: int | None) -> None:
        self._store = store
        self._looking = looking
        self._limit = limit or 0
        self._counting = asyncio.Lock()
        self._left = 0  # how many more may be written before it is counted again
        self._until = 0.0
        self._written = 0  # how many are being written now: they may be counted already, or not
        self._all_written = asyncio.Event()

    async def take(self, record: Record) -> None:
        """Whether a new record may be written; `give` says that this is over.

        Raises:
            BackendFull: There are too many, and the record is not one of them.
        """
        async with self._counting:
            if self._left > 0 and self._store.clock.monotonic() < self._until:
                self._left -= 1
            else:
                await self._count(record)
            self._written += 1

    def give(self) -> None:
        """It was written, or it was not."""
        self._written -= 1
        if not self._written:
            self._all_written.set()

    async def _count(self, record: Record) -> None:
        now = self._store.clock.monotonic()
        free = self._limit - self._written - await self._looking.unfinished()
        if free <= 0 and self._written:
            self._all_written.clear()
            await self._all_written.wait()
            free = self._limit - await self._looking.unfinished()
        if free <= 0 and not await self._is_known(record.cid):
            raise BackendFull(
                f"{self._limit:,} invocations are unfinished, which is max_waiting; nothing was "
                "accepted: try again later, or raise max_waiting",
                record.cid,
            )
        # others accept as well: only a part of what is free is taken without counting again
        self._left, self._until = max(0, free) // _SHARE, now + _SECONDS

    async def _is_known(self, cid: str) -> bool:
        try:
            return await self._store.newest(cid) is not None
        except Unreadable:  # accept will say so
            return True
