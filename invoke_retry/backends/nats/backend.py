"""`NATSBackend`: what the coordinator asks for, made guarded writes to the stream."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from invoke_retry import machine
from invoke_retry.backends.base import (
    DAY,
    DEFAULT_MAX_BYTES,
    Claim,
    Runner,
    T,
    Transition,
    at_least,
)
from invoke_retry.backends.nats.address import address, checked_options, tls_context
from invoke_retry.backends.nats.asked import Asked
from invoke_retry.backends.nats.beginning import StreamClaim
from invoke_retry.backends.nats.chores import Chores
from invoke_retry.backends.nats.connection import Connection
from invoke_retry.backends.nats.layout import Keep, Layout
from invoke_retry.backends.nats.looking import Looking
from invoke_retry.backends.nats.news import News
from invoke_retry.backends.nats.room import Room
from invoke_retry.backends.nats.state import Found, Unreadable, damaged
from invoke_retry.backends.nats.store import Store, Written, is_cid
from invoke_retry.backends.nats.stream import Stream, check_version
from invoke_retry.backends.nats.waits import Waits
from invoke_retry.backends.nats.working import Working
from invoke_retry.backends.wording import unknown
from invoke_retry.clock import Clock
from invoke_retry.durations import Duration, seconds_of
from invoke_retry.errors import (
    BackendError,
    InvalidState,
    InvocationNotFound,
    NotRunning,
)
from invoke_retry.record import FINAL, Record

_MOST_TRIES = 100
_CLOSE_SECONDS = 3.0
_LEFT = "the store is closed: its coordinator was left; make and enter another one"


class NATSBackend(Asked):
    """Keeps invocations in a stream of a NATS server, which any number of processes may share.

    What was accepted is on the server's disk, or on those of most of its replicas. A process that
    dies holds nothing up for longer than a lease. The server must be of version 2.14 or later, with
    JetStream enabled.

    Args:
        url: `nats://[user:password@]host[:port][/stream]`, a token instead of the two, `tls://` for
            TLS from the start, several hosts of one cluster with commas between.
        stream: Instead of the URL's. It is made if it is not there, and never altered if it is.
        replicas: On how many servers of the cluster a new stream is kept: 1, 3 or 5.
        lease: Seconds (or a timedelta) after which a process that shows no life loses what it
            holds. 1 or more; the same in every process.
        creds: The path of a credentials file.
        tls_ca: The path of the certificates that are trusted, instead of the system's.
        tls_cert: The path of a certificate to show to the server, if it asks for one.
        tls_key: The path of its key, if that is another file.
        options: What else nats-py's `connect` takes (`nkeys_seed`, `tls_hostname`, ...).
        max_waiting: Counted by the server, so that several processes that accept at the same time
            may pass it by a few.
        read_only: Look only: no stream is made, and one that is not as it must be is no error. For
            a coordinator with `work=False`.

    Raises:
        ValueError: An argument is out of range.
    """

    durable = True

    def __init__(
        self,
        url: str,
        *,
        stream: str | None = None,
        replicas: int = 1,
        lease: Duration = 30,
        creds: str | os.PathLike[str] | None = None,
        tls_ca: str | None = None,
        tls_cert: str | None = None,
        tls_key: str | None = None,
        options: Mapping[str, Any] | None = None,
        max_waiting: int | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
        retention: Duration = 7 * DAY,
        dead_retention: Duration = 30 * DAY,
        park_for: Duration = 7 * DAY,
        read_only: bool = False,
    ) -> None:
        super().__init__(
            max_waiting=max_waiting,
            max_bytes=max_bytes,
            retention=retention,
            dead_retention=dead_retention,
            park_for=park_for,
        )
        self._address = address(url, stream)
        self.read_only = read_only
        self.replicas = at_least("replicas", replicas, 1)
        self.lease = seconds_of("lease", lease)
        if self.lease < 1:
            raise ValueError(f"lease is {lease!r}, but must be 1 second or more")
        self._options = {
            **self._address.secrets,
            **({} if creds is None else {"user_credentials": os.fspath(creds)}),
            **tls_context(tls_ca, tls_cert, tls_key),
            **checked_options(options or {}),
        }
        keep = Keep(self.retention, self.dead_retention, self.park_for)
        self._layout = Layout(self._address.stream, keep)
        self._chores = Chores()
        self._connection = Connection(
            self._address.servers,
            self._options,
            self._address.where,
            on_connected=self._on_connected,
            on_trouble=self._chores.trouble,
        )
        self._clock: Clock | None = None
        self._runner: Runner | None = None
        self._working: Working | None = None
        self._pid = 0
        self._is_open = False
        self._is_closed = False

    def __str__(self) -> str:
        return f"{self._address.where}/{self._address.stream}"

    # Opening and closing.

    async def open(self, clock: Clock, runner: Runner | None) -> None:
        if self._clock is not None:
            raise InvalidState(
                "this NATSBackend belongs to a coordinator already; make one for each"
            )
        if hasattr(asyncio.get_running_loop(), "clock"):
            raise BackendError(
                "NATSBackend talks to a server, which virtual time does not wait for; use "
                "memory:// under VirtualLoop, or the usual event loop"
            )
        if self.read_only and runner is not None:
            raise InvalidState("a store that is read_only runs nothing: pass work=False")
        self._clock, self._pid, self._runner = clock, os.getpid(), runner
        self._chores.runner = runner
        self._store = Store(self._connection, self._layout, clock)
        self._looking = Looking(self._store)
        self._room = Room(self._store, self._looking, self.max_waiting)
        self._news = News(self._connection, self._layout, self._looking)
        self._waits = Waits(self._store, do=self._chores.do, late=self._pass_deadline)
        self._stream = Stream(self._connection, self._layout, self.lease, self.replicas)
        await self._connection.open()
        check_version(self._connection.server_version)
        await (self._stream.find() if self.read_only else self._stream.prepare())
        self._store.shift = await self._stream.shift(clock)
        self._is_open = True
        if runner is not None:
            self._working = Working(
                self._store, self._stream, self._looking, self._news, runner, self.lease,
                chores=self._chores, ended=self._on_ended,
            )  # fmt: skip
            await self._working.open()

    async def close(self) -> None:
        self.pause()
        self._is_closed = True
        self._chores.runner = None
        if self._is_open:
            self._waits.close()
            self._news.tell_all(NotRunning(_LEFT))
        try:
            if self._is_open:
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await self._let_go()
        except (TimeoutError, BackendError):  # what is held runs out
            pass
        finally:
            self._chores.cancel()
            await self._connection.close()
            self._runner = None

    async def _let_go(self) -> None:
        if self._working is not None:
            await self._working.close()
        await self._chores.all_done()
        await self._looking.add_totals()
        await self._connection.flush()

    def pause(self) -> None:
        if self._working is not None:
            self._working.pause()

    def wake(self) -> None:
        if self._working is not None:
            self._working.wake()

    @property
    def problem(self) -> str | None:  # type: ignore[override]
        """What keeps the backend from working; None if nothing does."""
        return self._chores.fault

    def _on_connected(self) -> None:
        self._chores.well()
        if self._working is not None and not self._is_closed:
            self._working.on_connected()

    # What the coordinator asks for.

    async def accept(self, record: Record) -> Record:
        self._check(to_change=True)
        if self.max_waiting is None:
            return await self._accept(record)
        await self._room.take(record)
        try:
            return await self._accept(record)
        finally:
            self._room.give()

    async def _accept(self, record: Record) -> Record:
        op = self._store.new_op()
        await self._store.use(record.target, record.callback)
        written = await self._store.write(record, op, None, 0)
        if written is not None:
            self._waits.follow(record, written)
            return record
        try:
            known = await self._store.newest(record.cid)
        except Unreadable as error:
            text = f"it is known already, and cannot be read: {error}"
            raise BackendError(text, record.cid) from error
        if known is None:  # it was there, and is pruned just now
            return await self._accept(record)
        return record if known.op == op else known.record

    async def apply(
        self, claim: Claim, transition: Transition[T], *args: T.args, **kwargs: T.kwargs
    ) -> bool:
        assert isinstance(claim, StreamClaim)
        self._check(to_change=True)
        before = claim.record
        after = before.copy()
        transition(after, *args, **kwargs)
        if self._working is not None:
            self._working.pass_on(before, after)
        # the coordinator tries again what was not written: it is the same write then
        asked = (transition, args, tuple(kwargs.items()))
        if claim.doubtful is None or claim.doubtful[0] != asked:
            claim.doubtful = asked, self._store.new_op()
        is_held = after.due is None and after.state in ("running", "notifying")
        lease = claim.lease.sequence if is_held else None
        written = await self._store.write(
            after, claim.doubtful[1], claim.subject, claim.sequence, lease
        )
        claim.doubtful = None
        if written is None:
            if self._working is not None:
                await self._working.let_lapse(before.cid, claim.lease)
            return False
        before_outcome = before.outcome
        before.become(after)
        claim.token, (claim.subject, claim.sequence) = before.token, written
        if not is_held:
            await self._drop(claim)
        self._waits.follow(before, written)
        if before_outcome is None and before.outcome is not None:
            self._news.decided(before.cid)
        self._note_end(before)
        return True

    async def _drop(self, claim: StreamClaim) -> None:
        if self._working is not None:
            await self._working.drop(claim, wait=self.max_waiting is not None)

    async def amend(
        self, cid: str, transition: Transition[T], *args: T.args, **kwargs: T.kwargs
    ) -> Record:
        self._check(to_change=True)
        op, record = self._store.new_op(), None
        for _ in range(_MOST_TRIES):
            try:
                found = await self._find(cid)
            except Unreadable as error:
                text = f"{cid} cannot be changed: {error}"
                raise machine.IllegalTransition(text) from error
            if found.is_newer:
                raise BackendError(
                    "it was written by a newer release of invoke_retry, and is left to it; do "
                    "this with that release",
                    cid,
                )
            record = found.record.copy()
            transition(record, *args, **kwargs)
            written = await self._store.write(record, op, found.subject, found.sequence)
            if written is not None:
                await self._amended(found, record, written)
                return record
        raise BackendError("it is changed by others all the time; try again", cid)

    async def _amended(self, found: Found, record: Record, written: Written) -> None:
        self._waits.follow(record, written)
        if self._working is not None:
            self._working.taken_away(record.cid, written.sequence)
        await self._news.taken_away(record.cid, written.sequence)
        if found.record.outcome is None and record.outcome is not None:
            self._news.decided(record.cid)
        if found.record.state == "dead":
            self._looking.ended["dead"] -= 1
        self._note_end(record)
        if found.subject != written.subject:
            await self._store.tidy_after(found)

    def _on_ended(self, record: Record, written: Written) -> None:
        """The workers have recorded an outcome: a deadline or `park_for` has passed."""
        self._waits.follow(record, written)
        self._news.decided(record.cid)
        self._note_end(record)
        if self._runner is not None:
            self._runner.ended(record)

    async def _pass_deadline(self, cid: str) -> None:
        """What was accepted here waits, and has no time left."""

        def end(record: Record) -> None:
            deadline, now = record.deadline, self._time.monotonic()
            if record.state != "waiting" or deadline is None or deadline > now:
                raise machine.IllegalTransition("its deadline is not to be recorded here")
            machine.end(record, now, "deadline", self._time.utc())

        with suppress(machine.IllegalTransition, InvocationNotFound):
            record = await self.amend(cid, end)
            if self._runner is not None:
                self._runner.ended(record)

    def _note_end(self, record: Record) -> None:
        if record.state in FINAL or record.state == "dead":
            self._looking.ended[record.state] += 1

    # Looking.

    async def _find(self, cid: str) -> Found:
        found = await self._store.newest(cid) if is_cid(cid) else None
        if found is None:
            raise unknown(cid)
        return found

    async def get(self, cid: str) -> Record:
        self._check()
        try:
            return (await self._find(cid)).record
        except Unreadable as error:
            return damaged(cid, str(error))

    async def outcome(self, cid: str) -> Record:
        self._check()
        if not is_cid(cid):
            raise unknown(cid)
        return await self._news.outcome(cid, self.get)

    async def set_paused(self, service: str, *, paused: bool) -> bool:
        self._check(to_change=True)
        changed = await self._news.set_paused(service, paused=paused)
        if self._working is not None:
            await self._working.heed_paused()
        return changed

    async def paused(self) -> frozenset[str]:
        self._check()
        return await self._news.paused()

    @property
    def _time(self) -> Clock:
        assert self._clock is not None
        return self._clock

    def _check(self, *, to_change: bool = False) -> None:
        if self._is_closed:
            raise NotRunning(_LEFT)
        if to_change and self.read_only:
            raise BackendError(f"the store {self} is open for looking only (read_only)")
        if self._pid != os.getpid():
            raise BackendError(
                f"the connection to {self._address.where} was opened by process {self._pid}, and "
                "this is a fork of it; make and enter a coordinator of its own after the fork"
            )
