"""What nobody can run is parked, visibly, until somebody can; what nobody holds is taken over.

Each working process says from time to time which services it has, and each that accepts something
says once for which services. What is due for a service that nobody has is parked; when a process
with that service comes, it is tried again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

from invoke_retry import machine
from invoke_retry.backends.base import Runner
from invoke_retry.backends.nats.claiming import Spoilt
from invoke_retry.backends.nats.client import Message, answered
from invoke_retry.backends.nats.layout import place_of
from invoke_retry.backends.nats.looking import Looking
from invoke_retry.backends.nats.state import Found
from invoke_retry.backends.nats.store import Store, Written
from invoke_retry.errors import BackendError
from invoke_retry.record import Record

_EVERY = 5
_LOOK_EVERY = 30
_ALIVE_SECONDS = 20
_AT_ONCE = 500
_MOST = 10_000
_TTL: Final = "Nats-TTL"


class Upkeep:
    """Keeps a stream in order.

    Args:
        ended: Called with what was parked for too long.
    """

    def __init__(
        self,
        store: Store,
        looking: Looking,
        runner: Runner,
        *,
        ended: Callable[[Record, Written], None],
    ) -> None:
        self._store = store
        self._looking = looking
        self._runner = runner
        self._ended = ended
        self._base = store.layout.base
        self._me = f"{self._base}.ctl.worker.{store.connection.new_name()}"
        self._learned: dict[str, int] = {}
        self._held: dict[str, int] = {}

    async def say_alive(self, services: Iterable[str]) -> None:
        """Say what can be run here."""
        body = json.dumps(sorted(services)).encode()
        headers = {_TTL: str(_ALIVE_SECONDS)}
        answered(await self._store.connection.request(self._me, body, headers))

    async def say_goodbye(self) -> None:
        """Nothing can be run here any more."""
        with suppress(BackendError):
            what = {"filter": self._me}
            await self._store.connection.api(f"STREAM.PURGE.{self._store.layout.stream}", what)

    def learned(self, service: str) -> None:
        """A service can be run here from now on: what is parked for it is tried again, once."""
        self._learned[service] = 0

    async def tick(self, services: frozenset[str], ticks: int) -> None:
        """What is to be done once a second."""
        for service in list(self._learned):
            await self._unpark(service)
        if ticks % _EVERY == 0:
            await self.say_alive(services)
        if ticks % _EVERY == 1:
            for service in await self._unserved(services):
                await self._park_all(service)
        if ticks % _LOOK_EVERY == 0:
            await self._free_left()

    async def _unserved(self, ours: frozenset[str]) -> list[str]:
        used = {
            _text(m) for m in await self._looking.messages(f"{self._base}.ctl.service.>", _MOST)
        }
        if used <= ours:
            return []
        for message in await self._looking.messages(f"{self._base}.ctl.worker.>", _MOST):
            with suppress(ValueError):
                used -= set(json.loads(message.data))
        return sorted(used - ours)

    async def _park_all(self, service: str) -> None:
        for message in await self._looking.messages(self._store.layout.due_for(service), _AT_ONCE):
            found = self._loaded(message)
            if found is not None and not found.is_newer:
                await self._park(found, service)

    async def _park(self, found: Found, service: str) -> None:
        record, clock = found.record.copy(), self._store.clock
        is_late = record.state == "parked"
        if not is_late:
            machine.park(record, f"no service is named {service!r} here")
        elif record.outcome is None:
            machine.end(record, clock.monotonic(), "parked", clock.utc())
        else:
            machine.bury(record, None)
        written = await self._store.write(
            record, self._store.new_op(), found.subject, found.sequence
        )
        if written is None and not await self._is_past(found):
            return
        if written is None or written.subject != found.subject:
            await self._store.remove(found.sequence)
        if written is not None and is_late:
            self._ended(record, written)
        elif written is not None:
            self._runner.parked(record)

    async def _is_past(self, found: Found) -> bool:
        """Whether the record was seen to have gone on, and is held by that message no longer."""
        newest = await self._store.newest_if_readable(found.record.cid)
        return (
            newest is not None
            and newest.sequence > found.sequence
            and newest.lease != found.sequence
        )

    async def _unpark(self, service: str) -> None:
        where = self._store.layout.parked_for(service)
        if not self._learned[service]:
            self._learned[service] = await self._store.last_sequence()
        until = self._learned[service]
        found = [self._loaded(each) for each in await self._looking.messages(where, _AT_ONCE)]
        before = [each for each in found if each is not None and each.sequence <= until]
        for each in before:
            if each.is_newer:
                continue
            record = each.record.copy()
            machine.unpark(record, self._store.clock.monotonic())
            await self._store.write(record, self._store.new_op(), each.subject, each.sequence)
        if len(before) < _AT_ONCE:
            del self._learned[service]

    async def _free_left(self) -> None:
        """What is held by a message that is gone comes to its turn, as if its holder had died."""
        before, self._held = self._held, {}
        for message in await self._looking.messages(f"{self._base}.run.>", _AT_ONCE):
            found = self._loaded(message)
            if found is None or found.is_newer:
                continue
            record, held = found.record, found.sequence
            self._held[record.cid] = held
            if before.get(record.cid) == held and await self._store.is_left(found):
                due = self._store.layout.due_place(record)
                if await self._store.put(due, message.data, found.subject, held):
                    text = "%s of %s was held by nobody, and is taken over"
                    self._runner.notable("left", text, record.cid, record.target)

    def _loaded(self, message: Message) -> Found | None:
        found = self._looking.loaded(message)
        return found if found is not None and found.version else None  # else it is damaged

    async def park_spoilt(self, spoilt: Spoilt) -> None:
        """Put aside what cannot be read, as it is."""
        subject = spoilt.subject.split(".")
        text = "%s cannot be run (%s), and is put aside as it is"
        self._runner.notable("spoilt", text, subject[3], spoilt.because)
        if place_of(spoilt.subject) == "due":
            subject[2] = "park"
            where = ".".join(subject)
            if not await self._store.put(where, spoilt.data, spoilt.subject, spoilt.sequence):
                return  # it comes again
        await self._store.remove(spoilt.sequence)


def _text(message: Message) -> str:
    return message.data.decode(errors="replace")
