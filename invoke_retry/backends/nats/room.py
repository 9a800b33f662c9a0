"""How much may still be accepted, where that is limited: counted by the server, now and then."""

from __future__ import annotations

from invoke_retry.backends.nats.looking import Looking
from invoke_retry.backends.nats.state import Unreadable
from invoke_retry.backends.nats.store import Store
from invoke_retry.errors import BackendFull
from invoke_retry.record import Record

_SHARE = 10
_SECONDS = 1.0


class Room:
    """What is left of `max_waiting`.

    Attributes:
        left: How many more are accepted before it is counted again.
    """

    def __init__(self, store: Store, looking: Looking, limit: int | None) -> None:
        self._store = store
        self._looking = looking
        self._limit = limit or 0
        self._until = 0.0
        self.left = 0

    async def make(self, record: Record) -> None:
        """Whether a new record may be accepted.

        Raises:
            BackendFull: There are too many, and the record is not one of them.
        """
        now = self._store.clock.monotonic()
        if self.left > 0 and now < self._until:
            return
        free = self._limit - await self._looking.unfinished()
        if free <= 0 and not await self._is_known(record.cid):
            raise BackendFull(
                f"{self._limit:,} invocations are unfinished, which is max_waiting; nothing was "
                "accepted: try again later, or raise max_waiting",
                record.cid,
            )
        # others accept as well: only a part of what is free is taken without counting again
        self.left, self._until = free // _SHARE, now + _SECONDS

    async def _is_known(self, cid: str) -> bool:
        try:
            return await self._store.newest(cid) is not None
        except Unreadable:  # accept will say so
            return True
