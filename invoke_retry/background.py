"""The workers of a coordinator, from the moment it is entered until it is left.

A backend gives what is due (`start`) while there is room. Workers live in a task group of the
supervisor (`serve`), which outlives the task that entered the coordinator.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from math import inf

import anyio

from invoke_retry import machine
from invoke_retry.backends.base import Backend, Claim
from invoke_retry.correlation import running_call
from invoke_retry.environment import Environment
from invoke_retry.errors import InvokeRetryError
from invoke_retry.record import Record
from invoke_retry.run import Run
from invoke_retry.work import Work

LEAVE_SECONDS = 5.0
_CANCEL_SECONDS = 0.5
_WRITE_SECONDS = 2.0
_CIDS_PER_LINE = 20


class Background:
    """The supervisor and its workers. To the backend it is the `Runner`.

    Args:
        works: False: nothing is run here, only accepted.

    Attributes:
        clock: That of the loop in which the coordinator was entered.
        is_over: What were accepted now would never get an outcome here.
    """

    def __init__(
        self, backend: Backend, environment: Environment, work: Work, *, works: bool
    ) -> None:
        self._backend = backend
        self.clock = environment.clock
        self._log = environment.log
        self._work = work
        self._works = works
        self.slots = slots = work.slots
        self.services: Collection[str] = work.services
        self.room, self.room_for = slots.room, slots.room_for
        self.limit, self.take, self.give = slots.limit_of, slots.take, slots.give
        self._inbox: deque[Claim] = deque()
        self._workers: set[asyncio.Task[None]] = set()
        self._has_spare_worker = False
        self._group: asyncio.TaskGroup | None = None
        self._leave = anyio.Event()
        self._grace: float | None = 0
        self._hurry = False
        self._fault: Exception | None = None
        self.is_over = False
        self._changed = anyio.Event()

    @property
    def problem(self) -> str | None:
        """What keeps the background from working; None if nothing does."""
        return self._work.problem or self._backend.problem

    @property
    def is_late(self) -> bool:
        """Whether an attempt that were accepted now would neither be made nor kept."""
        return self.is_over or (self._work.is_stopping and not self._backend.durable)

    def is_own_work(self) -> bool:
        """Whether the running code is part of a service that this coordinator runs."""
        call = running_call()
        return call is not None and call.retry is self._work.coordinator

    # The supervisor.

    async def serve(self, opened: asyncio.Future[None]) -> None:
        """Hold the workers until `leave`, then bring everything to its end.

        Args:
            opened: Learns when the backend is open, or why it is not.
        """
        try:
            await self._backend.open(self.clock, self if self._works else None)
        except Exception as error:
            opened.set_exception(error)
            return
        try:
            async with asyncio.TaskGroup() as self._group:
                opened.set_result(None)
                if self._works:
                    self._work.watchdog.start()
                self._backend.wake()
                await self._leave.wait()
                if self._fault is None:
                    await self._end_all()
                if self._fault is not None:
                    raise self._fault
                for worker in self._workers:
                    worker.cancel()
        finally:
            self.is_over = True
            self._work.watchdog.stop()
            self._backend.pause()
            if not self._backend.durable:
                await self._tell_what_is_left()

    def leave(self, grace: float | None) -> None:
        """Begin to end: wait for the work that is under way, at most *grace* seconds."""
        self._grace = grace
        self._leave.set()

    def hurry(self) -> None:
        """Wait no longer for work that is under way."""
        self._hurry = True
        self._changed.set()

    async def _end_all(self) -> None:
        durable, runs = self._backend.durable, self._work.runs
        if durable:
            self._backend.pause()
        if self._grace != 0 and self._works:
            await self._until(lambda: self._hurry or self._is_done(), self._grace)
        until = self.clock.monotonic() + LEAVE_SECONDS
        self._work.is_stopping = True
        if not durable:
            await self._abandon(running=False)
        for run in tuple(runs.values()):
            if durable or run.claim.record.outcome is None:
                run.cut_off("stop")
        await self._until(lambda: not self._cut_runs(), _CANCEL_SECONDS)
        for run in self._cut_runs():
            run.forsake()
            text = "%s ignores its cancellation and is left behind: %s"
            self._log.notable("stubborn", text, run.service, run.cid)
        if durable:  # what has just been done is written down, or it would be done again
            await self._until(self._is_done, _WRITE_SECONDS)
        else:
            await self._abandon()
            await self._hasten_deliveries()
            left = until - self.clock.monotonic() - _CANCEL_SECONDS
            await self._until(self._is_done, left if self._works else 0)
            self._backend.pause()
            await self._abandon()
        self.is_over = True

    def _is_done(self) -> bool:
        if self._backend.durable:
            return not self._workers  # what an attempt came to is written down, too
        return not self._work.runs and self._backend.is_idle()

    def _cut_runs(self) -> list[Run]:
        return [run for run in self._work.runs.values() if run.cut == "stop" and not run.forsaken]

    async def _until(self, condition: Callable[[], bool], seconds: float | None) -> None:
        with anyio.move_on_after(seconds):
            while not condition():
                self._changed = anyio.Event()
                await self._changed.wait()

    def _tell_change(self) -> None:
        """Something that a leaving coordinator waits for may have happened."""
        if self._leave.is_set():
            self._changed.set()

    async def _abandon(self, *, running: bool = True) -> None:
        for record in await self._backend.unfinished():
            if record.outcome is None and (running or record.state != "running"):
                now, utc = self.clock.monotonic(), self.clock.utc()
                await self._backend.amend(record.cid, machine.end, now, "abandoned", utc)
                self.ended(record)

    async def _hasten_deliveries(self) -> None:
        now = self.clock.monotonic()
        for record in await self._backend.unfinished():
            if record.state == "notifying" and record.due is not None and record.due > now:
                await self._backend.amend(record.cid, machine.hasten, now)

    async def _tell_what_is_left(self) -> None:
        left = [*self._work.undelivered, *(r.cid for r in await self._backend.unfinished())]
        for i in range(0, len(left), _CIDS_PER_LINE):
            self._log.left(left[i : i + _CIDS_PER_LINE], len(left))

    # What the backend calls.

    def start(self, claim: Claim, *, died: bool = False) -> None:
        claim.slot = None if died else claim.record.service
        claim.died = died
        self._inbox.append(claim)
        if self._has_spare_worker:
            self._has_spare_worker = False
        elif self._group is not None:
            worker = self._group.create_task(self._serve_inbox())
            self._workers.add(worker)
            worker.add_done_callback(self._on_worker_done)

    def ended(self, record: Record) -> None:
        self._lost(record.cid, record.token)
        self._work.tell_outcome(record)
        self._tell_change()

    def parked(self, record: Record) -> None:
        self._work.tell_parked(record)

    def hold_back(self, services: frozenset[str]) -> None:
        self.slots.paused = services

    def failing(self, error: Exception) -> None:
        self._work.note_failing(error)

    def notable(self, kind: str, text: str, *args: object) -> None:
        self._log.notable(kind, text, *args)

    def fail(self, error: Exception) -> None:
        self._fault = error
        self._leave.set()
        self.hurry()

    def check_fault(self, error: Exception) -> None:
        """What a backend does not raise on purpose leaves it in no state to go on."""
        if not isinstance(error, InvokeRetryError):
            self.fail(error)

    def lost(self, cid: str) -> None:
        self._lost(cid, inf)

    def _lost(self, cid: str, token: float) -> None:
        """Claims that are older than this token are lost, begun or not."""
        if (run := self._work.runs.get(cid)) is not None:
            run.cut_off("lost")
        for claim in self._inbox:
            if claim.record.cid == cid and claim.token < token:
                claim.is_lost = True

    async def _serve_inbox(self) -> None:
        """A worker: it takes claims as long as there are any."""
        while self._inbox:
            claim = self._inbox.popleft()
            try:
                if not claim.is_lost:
                    await self._work.advance(claim)
            finally:
                if claim.slot is not None:
                    self.slots.give(claim.slot)
            self._has_spare_worker = True
            self._backend.wake()
            self._has_spare_worker = False
            self._tell_change()

    def _on_worker_done(self, worker: asyncio.Task[None]) -> None:
        self._workers.discard(worker)
        self._tell_change()

    @contextmanager
    def lend_slot(self) -> Generator[None]:
        """While a service waits here for another invocation, its slot is free for that.

        The slot is taken back at once, so for a moment one more may run than there are slots.
        """
        run = running_call()
        while run is not None and not isinstance(run, Run):  # an inline call of a service
            run = run.parent
        runs = self._work.runs
        if run is None or run.claim.slot is None or runs.get(run.cid) is not run:
            yield
            return
        slot, run.claim.slot = run.claim.slot, None
        self.slots.give(slot)
        self._backend.wake()
        try:
            yield
        finally:
            if runs.get(run.cid) is run:
                self.slots.retake(slot)
                run.claim.slot = slot
