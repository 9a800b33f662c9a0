"""Whether all is well with a stream, as its server tells: nothing is changed, made or held up.

What is stored is quoted as it is: whoever shows it makes it harmless.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import suppress
from typing import Any, Final

from invoke_retry.backends import wording
from invoke_retry.backends.base import Finding, paused_finding
from invoke_retry.backends.nats.integrity import integrity
from invoke_retry.backends.nats.layout import token
from invoke_retry.backends.nats.looking import Looking
from invoke_retry.backends.nats.server import Told, account, replicas, server, stream_findings, sync
from invoke_retry.backends.nats.state import Found
from invoke_retry.backends.nats.store import Store
from invoke_retry.backends.nats.stream import Stream
from invoke_retry.backends.wording import SHOWN, names, span
from invoke_retry.errors import BackendError

_OVERDUE_SECONDS = 60.0
_LONG_ATTEMPT_SECONDS = 3_600.0
_READ: Final = 500
_MOST: Final = 10_000
_ALL_SHOWN = 20

Paused = Callable[[], Awaitable[Collection[str]]]


class Consumer:
    """What the server says of the consumer of a service.

    Attributes:
        due: How many messages are due, and were given to nobody.
        given: How many were given to a process, which has not acknowledged them.
        again: How many of those were given more than once.
        asking: How many requests of processes wait for something to be due.
        lease: Seconds.
    """

    def __init__(self, told: dict[str, Any]) -> None:
        self.config: dict[str, Any] = told["config"]
        self.name = str(told["name"])
        metadata: dict[str, str] = self.config.get("metadata") or {}
        self.service = metadata.get("service", self.name)
        self.due = int(told.get("num_pending", 0))
        self.given = int(told.get("num_ack_pending", 0))
        self.again = int(told.get("num_redelivered", 0))
        self.asking = int(told.get("num_waiting", 0))
        self.lease = int(self.config.get("ack_wait", 0)) / 1e9


class Examination:
    """All that is looked at, one thing after another."""

    def __init__(self, store: Store, stream: Stream, looking: Looking) -> None:
        self._store = store
        self._connection = store.connection
        self._stream = stream
        self._looking = looking
        self._base = store.layout.base
        self._told = Told({}, 0.0)
        self._paused: Collection[str] = ()
        self._workers: list[list[str]] = []
        self._consumers: list[Consumer] = []
        self._used: set[str] = set()
        self._held: list[Found] = []

    async def findings(self, paused: Paused, *, deep: bool) -> list[Finding]:
        """What was found; the same order each time.

        Args:
            paused: Which services are.
            deep: Read all messages.
        """
        clock = self._store.clock
        before = clock.monotonic()
        self._told = Told(await self._stream.info(), clock.monotonic() - before)
        found = [
            server(self._connection, self._told),
            *await self._looked("account", self._account),
        ]
        wrong = stream_findings(self._stream, self._told)
        found += [*wrong, *replicas(self._told), sync(self._told)]
        if not self._told.config.get("allow_direct", False):  # nothing more can be read
            return found
        for what, look in (
            ("workers", self._look_at_workers),
            ("consumers", self._look_at_consumers),
            ("stuck", self._look_at_held),
        ):
            found += await self._looked(what, look)
        with suppress(BackendError):  # it is said below
            self._paused = await paused()
        for what, look in (
            ("overdue", self._overdue),
            ("paused", lambda: self._told_paused(paused)),
            ("parked", self._parked),
            ("dead", self._dead),
            *((("integrity", self._integrity),) if deep else ()),
        ):
            found += await self._looked(what, look)
        return found

    async def _looked(self, what: str, look: Callable[[], AsyncIterator[Finding]]) -> list[Finding]:
        try:
            return [finding async for finding in look()]
        except BackendError as error:
            text = f"it could not be looked at: {error.message}"
            if "no permission" in error.message:
                text += "; grant that for looking (docs/nats.md), it is not needed for working"
                return [Finding("warning", what, text)]
            return [Finding("bad", what, text)]

    # What the server says.

    async def _account(self) -> AsyncIterator[Finding]:
        yield await account(self._connection)

    async def _look_at_consumers(self) -> AsyncIterator[Finding]:
        offset, total = 0, 1
        while offset < total:
            told = await self._connection.api(
                f"CONSUMER.LIST.{self._stream.name}", {"offset": offset}
            )
            page: list[dict[str, Any]] = told.get("consumers") or []
            self._consumers += map(Consumer, page)
            offset, total = offset + len(page), int(told.get("total", 0)) if page else 0
        self._consumers.sort(key=lambda each: each.name)
        for each in self._consumers[:_ALL_SHOWN]:
            yield self._about(each)
        if len(self._consumers) > _ALL_SHOWN:
            text = f"and {len(self._consumers) - _ALL_SHOWN} more"
            yield Finding("ok", "consumers", text)
        if not self._consumers:
            yield Finding("ok", "consumers", "there are none: no process has worked here yet")
        leases = sorted({each.lease for each in self._consumers})
        if len(leases) > 1:
            text = (
                f"they have different leases, {names([f'{each:g} s' for each in leases])}: "
                "processes with another lease= cannot start; see `nats consumer edit --wait`"
            )
            yield Finding("warning", "consumers", text)

    def _about(self, each: Consumer) -> Finding:
        text = (
            f"{each.service}: {each.due:,} due, {each.given:,} held or given out, "
            f"{each.again:,} of them again, {_requests(each.asking)} for more; its lease is "
            f"{each.lease:g} s"
        )
        limit = int(each.config.get("max_ack_pending", -1))
        if limit > 0:
            text += f", and {limit:,} may run at once"
        if each.name == token(each.service):
            wrong = self._stream.wrong_consumer(each.service, each.config)
        else:
            wrong = "it is none of ours, and takes away what is due: delete it"
        if not wrong and each.config.get("paused"):
            wrong = "the consumer is paused by hand: `nats consumer resume`"
        return Finding("bad" if wrong else "ok", "consumers", f"{text}; {wrong}" if wrong else text)

    # The processes, and what they hold.

    @property
    def _runnable(self) -> set[str]:
        return {name for services in self._workers for name in services}

    async def _look_at_workers(self) -> AsyncIterator[Finding]:
        for message in await self._looking.messages(f"{self._base}.ctl.worker.>", _MOST):
            with suppress(ValueError):
                self._workers.append([str(name) for name in json.loads(message.data)])
        for message in await self._looking.messages(f"{self._base}.ctl.service.>", _MOST):
            self._used.add(message.data.decode(errors="replace"))
        number = len(self._workers)
        if number:
            runnable = names(sorted(self._runnable))
            text = (
                f"{number:,} {'process works' if number == 1 else 'processes work'}, or did 20 "
                f"seconds ago, and can run {runnable}"
            )
            yield Finding("ok", "workers", text)
        else:
            unfinished, parked = await self._looking.unfinished(), await self._parked_number()
            yield wording.nobody_works(unfinished - parked)

    async def _look_at_held(self) -> AsyncIterator[Finding]:
        where = f"{self._base}.run.>"
        messages = await self._looking.messages(where, _MOST)
        self._held = [found for each in messages if (found := self._looking.loaded(each))]
        limit = self._store.clock.utc() - _LONG_ATTEMPT_SECONDS
        long = sorted(
            (since, found.record.cid, found.record.target)
            for found in self._held
            if found.record.state == "running"
            and (since := found.record.attempt_at) is not None
            and since < limit
        )
        for since, cid, target in long[:SHOWN]:
            yield wording.long_attempt(target, since, cid)
        due = {
            name: await self._looking.count(self._store.layout.due_for(name)) for name in self._used
        }
        runnable = self._runnable
        homeless = sorted(name for name, n in due.items() if n and name not in runnable)
        if self._workers and homeless:
            text = (
                f"no process can run {names(homeless)}, of which something is due: start one that "
                "has it"
            )
            yield Finding("bad", "stuck", text)
        if not self._workers and self._held:
            text = (
                f"{len(self._held):,} are held by a process that is gone; they go on after their "
                "lease, as soon as a process works: start one"
            )
            yield Finding("warning", "stuck", text)
        elif not (long or (self._workers and homeless)):
            yield wording.NOTHING_STUCK

    # The work.

    async def _overdue(self) -> AsyncIterator[Finding]:
        late: list[tuple[float, str, str]] = []
        services = self._used | {each.service for each in self._consumers}
        leases = {found.lease for found in self._held}
        for name in sorted(services - set(self._paused)):
            where = self._store.layout.due_for(name)
            page, following = await self._looking.page(where, 0, _READ)
            now = self._store.clock.monotonic()
            waited = [
                now - found.record.due
                for found in filter(None, map(self._looking.loaded, page))
                if found.sequence not in leases and found.record.due is not None
            ]
            overdue = [seconds for seconds in waited if seconds > _OVERDUE_SECONDS]
            if overdue:
                number = f"{len(overdue):,}" + ("" if following is None else " or more")
                late.append((max(overdue), name, number))
        for seconds, name, number in sorted(late, reverse=True)[:SHOWN]:
            text = f"{number} of {name} are due, the first for {span(seconds)}: " + self._why(name)
            yield Finding("bad", "overdue", text)
        for finding in wording.overdue_in_all(len(late)):
            yield finding

    def _why(self, service: str) -> str:
        if service not in self._runnable:
            return "no process that works can run it; start one"
        consumer = next((each for each in self._consumers if each.service == service), None)
        if consumer is not None and not consumer.asking:
            return (
                "the processes that can run it ask for nothing, so they are full, or hang; start "
                "more of them"
            )
        return (
            "the processes that can run it do not get it; look at their logs, and at the server's"
        )

    async def _told_paused(self, paused: Paused) -> AsyncIterator[Finding]:
        services = sorted(await paused())
        for name in services:
            yield paused_finding(name)
        if not services:
            yield Finding("ok", "paused", "no service is paused")

    async def _parked(self) -> AsyncIterator[Finding]:
        yield wording.parked(await self._parked_number())

    async def _parked_number(self) -> int:
        return await self._looking.count(f"{self._base}.park.>")

    async def _dead(self) -> AsyncIterator[Finding]:
        yield wording.dead(await self._looking.count(f"{self._base}.end.*.*.dead"))

    async def _integrity(self) -> AsyncIterator[Finding]:
        for finding in await integrity(self._store, self._looking):
            yield finding


def _requests(number: int) -> str:
    return "1 request" if number == 1 else f"{number:,} requests"
