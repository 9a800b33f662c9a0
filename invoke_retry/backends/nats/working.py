"""The part of a process that runs services: it claims, keeps its leases, and keeps order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import anyio

from invoke_retry import machine
from invoke_retry.backends.base import Runner
from invoke_retry.backends.nats.beginning import Ended, StreamClaim, begin
from invoke_retry.backends.nats.chores import Chores
from invoke_retry.backends.nats.claiming import ACK, AGAIN, Claiming, Lease
from invoke_retry.backends.nats.looking import Looking
from invoke_retry.backends.nats.news import News
from invoke_retry.backends.nats.store import Store, Written
from invoke_retry.backends.nats.stream import Stream
from invoke_retry.backends.nats.upkeep import Upkeep
from invoke_retry.errors import BackendError
from invoke_retry.record import Record

_TICK_SECONDS = 1.0
_BEATS_PER_LEASE = 4
_PAUSE_SECONDS = 0.5


class Working:
    """What is due, for one runner.

    Args:
        chores: What is done in tasks, and who is told that it fails.
        ended: Called with what has got an outcome without being run.
    """

    def __init__(
        self,
        store: Store,
        stream: Stream,
        looking: Looking,
        news: News,
        runner: Runner,
        lease: float,
        *,
        chores: Chores,
        ended: Callable[[Record, Written], None],
    ) -> None:
        self._store = store
        self._stream = stream
        self._news = news
        self._looking = looking
        self._runner = runner
        self._lease = lease
        self._chores = chores
        self._ended = ended
        self._is_paused = False
        self._ticker: asyncio.Task[None] | None = None
        self._beater: asyncio.Task[None] | None = None
        self._upkeep = Upkeep(store, looking, runner, ended=ended)
        self._claiming = Claiming(
            store,
            runner,
            lease,
            do=chores.do,
            begin=lambda lease: chores.do(self._begin(lease)),
            spoilt=lambda spoilt: chores.do(self._upkeep.park_spoilt(spoilt)),
        )

    async def open(self) -> None:
        """Make the consumers, and begin to ask them.

        Raises:
            BackendError: One of them cannot be used.
        """
        await self._claiming.open()
        await self._news.on_taken_away(self._on_taken_away)
        await self._news.on_paused(lambda: self._chores.do(self.heed_paused()))
        await self.heed_paused()
        await self._serve_new()
        await self._upkeep.say_alive(self._claiming.served)
        loop = asyncio.get_running_loop()
        self._ticker = loop.create_task(self._tick(), name="nats upkeep")
        self._beater = loop.create_task(self._beat(), name="nats heartbeat")

    def pause(self) -> None:
        """Begin nothing more."""
        self._is_paused = True
        self._claiming.pause()

    async def close(self) -> None:
        """Hold nothing any more."""
        for task in (self._ticker, self._beater):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
        await self._claiming.close()
        for cid, lease in list(self._claiming.held.items()):
            self._claiming.give_back(cid, lease)
        await self._upkeep.say_goodbye()

    def wake(self) -> None:
        """There is room."""
        self._claiming.wake()

    def on_connected(self) -> None:
        """The connection is another one."""
        self._claiming.forget_asked()
        self._claiming.wake()
        if not self._is_paused:
            self._chores.do(self.heed_paused())

    async def heed_paused(self) -> None:
        """Hold back the services that are paused."""
        self._runner.hold_back(await self._news.paused())
        self._claiming.wake()

    # Claims.

    async def _begin(self, lease: Lease) -> None:
        before = lease.found.record
        cid, service, runner = before.cid, before.service, self._runner
        try:
            taken = await self._taken(lease)
        except BaseException:
            runner.give(service)
            self._claiming.give_back(cid, lease)
            raise
        if isinstance(taken, StreamClaim) and not self._is_paused:
            if taken.died:
                runner.give(service)
            runner.start(taken, died=taken.died)
            return
        runner.give(service)
        if isinstance(taken, Ended):
            self._claiming.drop(cid, lease)
            self._ended(taken.record, taken.written)
        elif taken is None:
            await self.let_lapse(cid, lease)
        elif taken.died:
            self._claiming.give_back(cid, lease)
        else:
            after, op = taken.record.copy(), self._store.new_op()
            machine.release(after, self._store.clock.monotonic())
            if await self._store.write(after, op, taken.subject, taken.sequence) is None:
                await self.let_lapse(cid, lease)
            else:
                self._claiming.drop(cid, lease)

    async def _taken(self, lease: Lease) -> StreamClaim | Ended | None:
        """What a lease becomes, however long the server does not answer."""
        while True:
            try:
                return await begin(self._store, lease)
            except BackendError as error:
                if self._is_paused:
                    raise
                self._chores.trouble(error)
            await anyio.sleep(_PAUSE_SECONDS)

    def pass_on(self, before: Record, after: Record) -> None:
        """Give the delivery to whoever may make it, if the holder may not go on with it."""
        if before.outcome is not None or after.outcome is None or after.due is not None:
            return
        callback = after.callback
        if after.state != "notifying" or callback is None:
            return
        limit = self._runner.limit
        is_ours = callback in self._claiming.served
        if not is_ours or limit(callback) is not None or limit(after.target) is not None:
            machine.release(after, self._store.clock.monotonic())

    async def drop(self, claim: StreamClaim, *, wait: bool) -> None:
        """A claim is no longer held.

        Args:
            wait: Until the server has heard it.
        """
        if wait and self._claiming.forget(claim.record.cid, claim.lease):
            with suppress(BackendError):
                await self._store.connection.request(claim.lease.reply, ACK)
        else:
            self._claiming.forget(claim.record.cid, claim.lease)
            await self._claiming.send(claim.lease.reply, ACK)

    async def let_lapse(self, cid: str, lease: Lease) -> None:
        """Let go of a lease by which nothing could be written.

        To acknowledge it removes its message, whoever does. So that is done only if the record was
        seen to have gone on without it: another process may hold the record by the same message,
        and a refusal may be a mistake.
        """
        self._claiming.forget(cid, lease)
        try:
            found = await self._store.newest_if_readable(cid)
        except BackendError:
            return
        if found is None or found.lease == lease.sequence:
            return
        self._claiming.answer(lease.reply, ACK if found.sequence > lease.sequence else AGAIN)

    def taken_away(self, cid: str, sequence: int) -> bool:
        """What was held of the record before that message is not any more."""
        lease = self._claiming.held.get(cid)
        if lease is None or lease.sequence >= sequence:
            return False
        self._claiming.drop(cid, lease)
        return True

    def _on_taken_away(self, cid: str, sequence: int) -> None:
        if self.taken_away(cid, sequence):
            self._runner.lost(cid)

    # What is done all the time.

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._lease / _BEATS_PER_LEASE)
            self._claiming.beat()

    async def _tick(self) -> None:
        ticks = 0
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            ticks += 1
            self._claiming.give_back_late()
            try:
                await self._serve_new()
                if ticks % 2 == 0:
                    await self.heed_paused()
                await self._upkeep.tick(self._claiming.served, ticks)
                if self._looking.ended:
                    await self._looking.add_totals()
                if self._store.connection.is_connected:
                    self._chores.well()
            except BackendError as error:
                self._chores.trouble(error)
            except Exception as error:
                self._runner.fail(error)
                raise
            self._claiming.wake()

    async def _serve_new(self) -> None:
        for service in set(self._runner.services) - self._claiming.served:
            await self._stream.prepare_consumer(service, self._runner.limit(service))
            self._claiming.serve(service)
            self._upkeep.learned(service)
