"""Pulling what is due, the leases by which it is held, and giving back.

For each service one consumer hands out what is due. This side asks for as many messages as it has
room for: one for a service that has nothing to do, its share of the free slots for one that has. A
message that arrives is a *lease*: until it is acknowledged, or not heard of for `ack_wait`, nobody
else is given it. What cannot begin within a second is given back.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, NamedTuple

from invoke_retry.backends.base import Runner
from invoke_retry.backends.nats.client import Message
from invoke_retry.backends.nats.layout import token
from invoke_retry.backends.nats.state import Found, Unreadable, load
from invoke_retry.backends.nats.store import Store
from invoke_retry.backends.ready import ReadyQueue
from invoke_retry.errors import BackendError

_EXPIRES = 5.0
_LATE = 2.0
_BUSY_SECONDS = 1.0
_PATIENT_SECONDS = 1.0
_LEAVE_SECONDS = 10
_SURE = 0.9  # of a lease: the server began to count before we did

ACK, NAK, PROGRESS = b"+ACK", b"-NAK", b"+WPI"
AGAIN = NAK + b' {"delay": 100000000}'  # nanoseconds


class Lease:
    """A message in `due` that was given to this process.

    Attributes:
        reply: Where it is answered.
        sequence: The message's number.
        found: The record as it stands there.
        is_again: Somebody was given it before.
        is_tried: It was tried to begin it.
        since: When it came.
        until: When it is over, and somebody else may be given it.
    """

    __slots__ = ("found", "is_again", "is_tried", "reply", "sequence", "since", "until")

    def __init__(
        self,
        reply: str,
        sequence: int,
        found: Found,
        since: float,
        until: float,
        *,
        is_again: bool,
    ) -> None:
        self.reply = reply
        self.sequence = sequence
        self.found = found
        self.is_again = is_again
        self.is_tried = False
        self.since = since
        self.until = until


class Spoilt(NamedTuple):
    """A message in `due` that cannot be read."""

    subject: str
    sequence: int
    because: str
    data: bytes


class _Pull:
    """What was asked for, for one service."""

    __slots__ = ("asked", "busy_until", "service", "stale_at", "subject")

    def __init__(self, service: str, subject: str) -> None:
        self.service = service
        self.subject = subject
        self.asked = 0
        self.stale_at = 0.0
        self.busy_until = 0.0


class Claiming:
    """The leases of one process.

    Args:
        seconds: How long a lease is.
        do: Has something done in a task.
        begin: Called with a lease that a slot was taken for.
        spoilt: Called with what cannot be read.
    """

    def __init__(
        self,
        store: Store,
        runner: Runner,
        seconds: float,
        *,
        do: Callable[[Coroutine[Any, Any, None]], None],
        begin: Callable[[Lease], None],
        spoilt: Callable[[Spoilt], None],
    ) -> None:
        self._store = store
        self._connection = connection = store.connection
        self._layout = store.layout
        self._runner = runner
        self._seconds = seconds * _SURE
        self._do = do
        self._begin = begin
        self._spoilt = spoilt
        self._clock = store.clock
        self._inbox = f"_INBOX.{connection.new_name()}"
        self._pulls: dict[str, _Pull] = {}
        self._services: dict[str, str] = {}
        self._ready = ReadyQueue()
        self._queued: dict[str, int] = {}
        self._arrived: dict[str, Lease] = {}
        self.held: dict[str, Lease] = {}
        self._is_paused = False
        self._is_asking = False

    async def open(self) -> None:
        """Be ready for what arrives."""
        await self._connection.subscribe(f"{self._inbox}.*", self._on_message)

    def serve(self, service: str) -> None:
        """The service has a consumer: ask it."""
        name = token(service)
        self._services[name] = service
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._layout.stream}.{name}"
        self._pulls[service] = _Pull(service, subject)

    @property
    def served(self) -> frozenset[str]:
        """The services that are asked for."""
        return frozenset(self._pulls)

    def forget_asked(self) -> None:
        """What was asked for is void: the connection is another one."""
        for pull in self._pulls.values():
            pull.asked = 0

    # Asking, and what arrives.

    def wake(self) -> None:
        """Begin what has come, as far as there is room, and ask for more."""
        if self._is_paused:
            return
        runner = self._runner
        while runner.room() and (record := self._ready.pop(runner.take)) is not None:
            lease = self._arrived.pop(record.cid)
            self._queued[record.service] -= 1
            if self._is_over(lease):  # somebody else may have it by now
                runner.give(record.service)
                continue
            if (known := self.held.get(record.cid)) is not None:
                # somebody has decided over it, and the news of that have not come yet
                self.drop(record.cid, known)
                runner.lost(record.cid)
            self.held[record.cid] = lease
            self._begin(lease)
        self._ask_soon()

    def _ask_soon(self) -> None:
        if not self._is_asking:  # once for all that is over by then
            self._is_asking = True
            asyncio.get_running_loop().call_soon(self._ask)

    def _ask(self) -> None:
        self._is_asking = False
        if self._is_paused:
            return
        room, now = self._runner.room(), self._clock.monotonic()
        if room <= 0 or not self._connection.is_connected:
            return
        busy = sum(pull.busy_until > now for pull in self._pulls.values())
        share = max(1, room // max(1, busy))
        for pull in self._pulls.values():
            if pull.asked and now > pull.stale_at:
                pull.asked = 0
            may = self._runner.room_for(pull.service) - self._queued.get(pull.service, 0)
            wanted = min(may, share if pull.busy_until > now else 1)
            if wanted > 0 and 2 * pull.asked <= wanted and pull.asked < wanted:
                self._do(self._pull(pull, wanted - pull.asked))
                pull.asked = wanted
                pull.stale_at = now + _EXPIRES + _LATE

    async def _pull(self, pull: _Pull, count: int) -> None:
        what = {"batch": count, "expires": int(_EXPIRES * 1e9)}
        try:
            reply = f"{self._inbox}.{token(pull.service)}"
            await self._connection.publish(pull.subject, json.dumps(what).encode(), reply)
        except BackendError:
            pull.asked = 0

    def _on_message(self, message: Message) -> None:
        headers = message.headers or {}
        if "Status" in headers and not message.reply:
            service = self._services.get(message.subject.rpartition(".")[2])
            if service is not None:
                self._on_status(self._pulls[service], headers)
            return
        name = message.subject.split(".")[4]
        service = self._services.get(name)
        pull = self._pulls.get(service or "")
        if pull is not None:
            pull.asked = max(0, pull.asked - 1)
            pull.busy_until = self._clock.monotonic() + _BUSY_SECONDS
        self._on_lease(message)

    def _on_status(self, pull: _Pull, headers: dict[str, str]) -> None:
        if headers.get("Status") == "100":
            return
        left = headers.get("Nats-Pending-Messages", "")
        pull.asked = max(0, pull.asked - int(left)) if left.isdecimal() else 0
        if headers.get("Status") != "409":  # else it is asked again later
            self._ask_soon()

    def _on_lease(self, message: Message) -> None:
        # $JS.ACK.<stream>.<consumer>.<delivered>.<stream sequence>.<...>, or with a domain first
        parts = message.reply.split(".")
        delivered, sequence = (parts[4], parts[5]) if len(parts) <= 9 else (parts[6], parts[7])
        try:
            found = load(message.data, self._store.shift, message.subject, int(sequence))
        except Unreadable as error:
            self._spoilt(Spoilt(message.subject, int(sequence), str(error), message.data))
            return
        cid, service = found.record.cid, found.record.service
        known = self._arrived.get(cid) or self.held.get(cid)
        if known is not None and known.sequence == int(sequence):
            known.reply = message.reply  # the lease was over, but nobody else was given it
            known.until = self._clock.monotonic() + self._seconds
            return
        if known is not None and known.sequence > int(sequence):
            self.answer(message.reply, ACK)  # it has gone on since
            return
        if found.is_newer:
            self._runner.notable(
                "newer",
                "%s of %s was written by a newer release, and is left to it",
                cid,
                service,
            )
            self.answer(message.reply, NAK + b' {"delay": %d}' % (_LEAVE_SECONDS * 10**9))
            return
        if self._is_paused:
            self.answer(message.reply, NAK)
            return
        since = self._clock.monotonic()
        lease = Lease(
            message.reply, int(sequence), found, since, since + self._seconds,
            is_again=delivered != "1",
        )  # fmt: skip
        if cid in self._arrived:
            self.answer(self._take_out(cid).reply, ACK)
        self._arrived[cid] = lease
        self._queued[service] = self._queued.get(service, 0) + 1
        self._ready.push(found.record)
        self.wake()

    # Holding, and letting go.

    def answer(self, reply: str, what: bytes) -> None:
        """Tell the server something about a lease; if that is lost, the lease runs out."""
        self._do(self.send(reply, what))

    async def send(self, reply: str, what: bytes) -> None:
        """The same, at once."""
        with suppress(BackendError):
            await self._connection.publish(reply, what)

    def drop(self, cid: str, lease: Lease) -> None:
        """It is held no longer, and is not due any more as it was."""
        self.forget(cid, lease)
        self.answer(lease.reply, ACK)

    def forget(self, cid: str, lease: Lease) -> bool:
        """It is held no longer; whether it was until now."""
        if self.held.get(cid) is not lease:
            return False
        del self.held[cid]
        return True

    def give_back(self, cid: str, lease: Lease) -> None:
        """It was not begun; another may have it at once."""
        self.forget(cid, lease)
        self._decline(lease)

    def _decline(self, lease: Lease) -> None:
        # the server takes the refusal of a lease that is over for that of the one who has it now
        if not self._is_over(lease):
            self.answer(lease.reply, NAK)

    def _is_over(self, lease: Lease) -> bool:
        return self._clock.monotonic() >= lease.until

    def beat(self) -> None:
        """Say that what is held is being worked on."""
        until = self._clock.monotonic() + self._seconds
        ours = (lease for lease in self._arrived.values() if not self._is_over(lease))
        for lease in (*self.held.values(), *ours):
            if not self._is_over(lease):
                lease.until = until
            # else: what runs here may have been given to nobody else yet, and is kept so
            self.answer(lease.reply, PROGRESS)

    def give_back_late(self) -> None:
        """Give back what has come and could not begin."""
        before = self._clock.monotonic() - _PATIENT_SECONDS
        for cid, lease in list(self._arrived.items()):
            if lease.since < before:
                self._decline(self._take_out(cid))

    def _take_out(self, cid: str) -> Lease:
        lease = self._arrived.pop(cid)
        service = lease.found.record.service
        self._ready.discard(service, cid)
        self._queued[service] -= 1
        return lease

    def pause(self) -> None:
        """Ask for nothing more, and give back what has not begun."""
        self._is_paused = True
        for cid in list(self._arrived):
            self._decline(self._take_out(cid))

    async def close(self) -> None:
        """Ask no more; what is on its way is given back."""
        self.pause()
        await self._connection.unsubscribe(f"{self._inbox}.*", gently=True)
