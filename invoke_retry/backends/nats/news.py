"""What processes tell each other, and who waits for it.

News are sent once and not kept, so that whoever waits also looks for himself from time to time.
Which services are paused is kept in the stream, and is read again by every process all the time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from invoke_retry.backends.nats.client import Message, answered
from invoke_retry.backends.nats.connection import Connection
from invoke_retry.backends.nats.layout import Layout, token
from invoke_retry.backends.nats.looking import Looking
from invoke_retry.backends.nats.store import last_message
from invoke_retry.errors import BackendError
from invoke_retry.record import Record

_LOOK_SECONDS = 2.0
_SOON, _LOOKS = 0.05, 4
_MOST_PAUSED = 10_000


class News:
    """What is heard of others, and told to them."""

    def __init__(self, connection: Connection, layout: Layout, looking: Looking) -> None:
        self._connection = connection
        self._layout = layout
        self._looking = looking
        self._waiters: dict[str, list[asyncio.Event]] = {}
        self._error: Exception | None = None

    async def outcome(self, cid: str, get: Callable[[str], Awaitable[Record]]) -> Record:
        """Wait until the record has an outcome."""
        heard = asyncio.Event()
        waiters = self._waiters.setdefault(cid, [])
        waiters.append(heard)  # before it is asked for, so that no news is missed
        # what is written by others is heard as well, a moment before it is stored
        subject, is_first = self._layout.of(cid), len(waiters) == 1
        try:
            record = await get(cid)
            if record.outcome is None and is_first:
                await self._connection.subscribe(subject, lambda _: self._tell(cid))
                record = await get(cid)
            looks = 0
            while record.outcome is None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_SOON if looks else _LOOK_SECONDS):
                        await heard.wait()
                looks = _LOOKS if heard.is_set() else max(0, looks - 1)
                heard.clear()
                if self._error is not None:
                    raise self._error
                with suppress(BackendError):  # it is asked again
                    record = await get(cid)
            return record
        finally:
            # if the first of them leaves, the others still hear: the subject is theirs, too
            waiters.remove(heard)
            if not waiters and self._waiters.get(cid) is waiters:
                del self._waiters[cid]
                await self._connection.unsubscribe(subject)

    def _tell(self, cid: str) -> None:
        for heard in self._waiters.get(cid, ()):
            heard.set()

    def tell_all(self, error: Exception) -> None:
        """Nobody is told of anything any more."""
        self._error = error
        for waiters in self._waiters.values():
            for heard in waiters:
                heard.set()

    def decided(self, cid: str) -> None:
        """The record has got an outcome here."""
        self._tell(cid)

    async def taken_away(self, cid: str, sequence: int) -> None:
        """Somebody has decided over the record: whoever held it before does so no longer."""
        await self._post(f"off.{cid}", b"%d" % sequence)

    async def _post(self, what: str, data: bytes = b"") -> None:
        with suppress(BackendError):
            await self._connection.publish(f"{self._layout.news}.{what}", data)

    async def on_taken_away(self, handler: Callable[[str, int], None]) -> None:
        """Have *handler* called with the cid, and the sequence up to which it is not held."""

        def heard(message: Message) -> None:
            with suppress(ValueError):
                handler(message.subject.rpartition(".")[2], int(message.data))

        await self._connection.subscribe(f"{self._layout.news}.off.*", heard)

    async def on_paused(self, handler: Callable[[], None]) -> None:
        """Have *handler* called when a service is paused or goes on."""
        await self._connection.subscribe(f"{self._layout.news}.paused", lambda _: handler())

    # Which services are paused.

    async def set_paused(self, service: str, *, paused: bool) -> bool:
        """Keep that a service is paused, or is not; whether that is new."""
        stream, subject = self._layout.stream, f"{self._layout.base}.ctl.paused.{token(service)}"
        was_paused = await last_message(self._connection, stream, subject) is not None
        if paused and not was_paused:
            answered(await self._connection.request(subject, service.encode()))
        elif was_paused and not paused:
            await self._connection.api(f"STREAM.PURGE.{stream}", {"filter": subject})
        if paused != was_paused:
            await self._post("paused")
        return paused != was_paused

    async def paused(self) -> frozenset[str]:
        """The services that are paused."""
        where = f"{self._layout.base}.ctl.paused.>"
        messages = await self._looking.messages(where, _MOST_PAUSED)
        return frozenset(message.data.decode(errors="replace") for message in messages)
