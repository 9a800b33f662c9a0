"""Invocations that wait in memory: a heap of what comes later, queues of what is due, one timer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import get_args

from invoke_retry import machine
from invoke_retry.backends.base import (
    DAY,
    DEFAULT_MAX_BYTES,
    Backend,
    Claim,
    Query,
    Runner,
    T,
    Transition,
    at_least,
    tallied,
)
from invoke_retry.backends.ready import ReadyQueue
from invoke_retry.backends.wording import unknown
from invoke_retry.clock import Clock
from invoke_retry.durations import Duration
from invoke_retry.errors import BackendError, BackendFull, InvalidState
from invoke_retry.models import Reason, State
from invoke_retry.record import FINAL, Record

_PRUNE = 500
_LONGEST_TIMER = DAY  # an event loop may not take a timer of 100 years
_UNFINISHED: tuple[State, ...] = ("waiting", "running", "notifying", "parked")
_UNDECIDED: frozenset[State] = frozenset(("waiting", "running", "parked"))
_ACTIVE: frozenset[State] = frozenset(("waiting", "running", "notifying"))

# when it fires, a number that breaks ties, the record, and whether it is its deadline
_Entry = tuple[float, int, Record, bool]


class MemoryBackend(Backend):
    """Keeps invocations as long as its process lives.

    Args:
        keep: How many finished invocations are kept at most; the oldest go first.
        retention: Default: 1 hour.
    """

    durable = False

    def __init__(
        self,
        *,
        max_waiting: int | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
        retention: Duration = 3_600,
        dead_retention: Duration = 30 * DAY,
        park_for: Duration = 7 * DAY,
        keep: int = 10_000,
    ) -> None:
        super().__init__(
            max_waiting=max_waiting,
            max_bytes=max_bytes,
            retention=retention,
            dead_retention=dead_retention,
            park_for=park_for,
        )
        self.keep = at_least("keep", keep, 0)
        self._clock: Clock | None = None
        self._runner: Runner | None = None
        self._records: dict[str, Record] = {}
        self._counts: dict[State, int] = dict.fromkeys(get_args(State), 0)
        self._ready = ReadyQueue()
        self._paused: frozenset[str] = frozenset()
        self._later: list[_Entry] = []
        self._is_waking = False
        self._is_closed = False
        self._stale = 0
        self._entries = 0
        self._finished: deque[tuple[float, Record]] = deque()
        self._waiters: dict[str, list[asyncio.Future[None]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")

    async def open(self, clock: Clock, runner: Runner | None) -> None:
        if self._clock is not None:
            raise InvalidState(
                "this MemoryBackend belongs to a coordinator already; make one for each"
            )
        self._clock = clock
        self._runner = runner

    async def close(self) -> None:
        self._runner = None
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def pause(self) -> None:
        self._runner = None

    def wake(self) -> None:
        runner = self._runner
        if runner is None or self._is_waking:  # what is ended below comes back here
            return
        self._is_waking = True
        try:
            while runner.room() and (record := self._ready.pop(runner.take)) is not None:
                self._give(record, runner)
        finally:
            self._is_waking = False

    def _give(self, record: Record, runner: Runner) -> None:
        now = self._time.monotonic()
        if (deadline := record.deadline) is not None and deadline <= now:  # its timer is late
            runner.give(record.service)
            self._end(record, now, "deadline")
            return
        state, due, service = record.state, record.due, record.service
        try:
            if record.outcome is None:
                machine.start(record, self._time.utc())
                self._counts["waiting"] -= 1
                self._counts["running"] += 1
            else:
                machine.deliver(record)
        except BaseException:
            record.state, record.due = state, due
            runner.give(service)
            self._ready.push(record)
            raise
        runner.start(Claim(record))

    async def accept(self, record: Record) -> Record:
        if self._is_closed:
            raise BackendError("the coordinator has been left: nothing is accepted", record.cid)
        known = self._records.setdefault(record.cid, record)
        if known is not record:
            return known
        if self.max_waiting is not None and self._unfinished_count() >= self.max_waiting:
            del self._records[record.cid]
            raise BackendFull(
                f"{self.max_waiting:,} invocations are unfinished, which is max_waiting; nothing "
                "was accepted: try again later, or raise max_waiting",
                record.cid,
            )
        self._counts["waiting"] += 1
        if (deadline := record.deadline) is not None:
            self._push(deadline, record, is_deadline=True)
        self._queue(record)
        return record

    async def apply(
        self, claim: Claim, transition: Transition[T], *args: T.args, **kwargs: T.kwargs
    ) -> bool:
        record = claim.record
        if record.token != claim.token:
            return False
        state = record.state
        transition(record, *args, **kwargs)
        claim.token = record.token  # before anybody else is given the record below
        self._file(record, state)
        return True

    async def amend(
        self, cid: str, transition: Transition[T], *args: T.args, **kwargs: T.kwargs
    ) -> Record:
        record = self._find(cid)
        self._transit(record, transition, *args, **kwargs)
        return record

    async def get(self, cid: str) -> Record:
        return self._find(cid)

    async def outcome(self, cid: str) -> Record:
        record = self._find(cid)
        if record.outcome is None:
            waiter = asyncio.get_running_loop().create_future()
            waiters = self._waiters.setdefault(cid, [])
            waiters.append(waiter)
            try:
                await waiter
            finally:
                waiters.remove(waiter)
                if not waiters and self._waiters.get(cid) is waiters:
                    del self._waiters[cid]
        return record

    async def set_paused(self, service: str, *, paused: bool) -> bool:
        was_paused = service in self._paused
        self._paused = self._paused | {service} if paused else self._paused - {service}
        if self._runner is not None:
            self._runner.hold_back(self._paused)
        self.wake()
        return was_paused != paused

    async def paused(self) -> frozenset[str]:
        return self._paused

    async def search(self, query: Query) -> Sequence[Record]:
        records = reversed(self._records.values())
        if query.after is not None:
            self._find(query.after)
            for record in records:
                if record.cid == query.after:
                    break
        return list(islice(filter(query.fits, records), min(query.limit, len(self._records))))

    async def counts(self) -> dict[State, int]:
        return dict(self._counts)

    async def tally(self) -> dict[str, dict[State, int]]:
        return tallied(self._records.values())

    async def prune(self, older_than: float, *, dead: bool = False) -> int:
        pruned = list(islice(self._prunable(older_than, dead=dead), _PRUNE))
        for record in pruned:
            self._forget(record)
            if record.due is not None:  # its entry in the heap is for nothing now
                record.due = None
                self._count_stale()
        if pruned:
            kept = self._records
            self._finished = deque(each for each in self._finished if each[1].cid in kept)
        return len(pruned)

    async def prunable(self, older_than: float, *, dead: bool = False) -> int:
        return sum(1 for _ in self._prunable(older_than, dead=dead))

    def _prunable(self, older_than: float, *, dead: bool) -> Iterator[Record]:
        for record in self._records.values():
            is_over = record.state in FINAL or (dead and record.state == "dead")
            if is_over and record.outcome is not None and record.outcome.at < older_than:
                yield record

    def is_idle(self) -> bool:
        counts = self._counts
        return not (counts["waiting"] or counts["running"] or counts["notifying"])

    async def unfinished(self) -> Sequence[Record]:
        return [record for record in self._records.values() if record.state in _UNFINISHED]

    def _unfinished_count(self) -> int:
        return sum(self._counts[state] for state in _UNFINISHED)

    @property
    def _time(self) -> Clock:
        assert self._clock is not None
        return self._clock

    def _find(self, cid: str) -> Record:
        try:
            return self._records[cid]
        except (KeyError, TypeError):
            raise unknown(cid) from None

    def _transit(
        self, record: Record, transition: Transition[T], *args: T.args, **kwargs: T.kwargs
    ) -> None:
        """A transition of a record that nobody holds, or that is taken from its holder."""
        state, service, was_queued = record.state, record.service, record.due is not None
        transition(record, *args, **kwargs)
        if was_queued and not self._ready.discard(service, record.cid):
            self._count_stale()  # its entry in the heap is passed over later
        self._file(record, state)

    def _file(self, record: Record, before: State) -> None:
        """Put the record where its new state belongs."""
        state, counts = record.state, self._counts
        if state != before:
            counts[before] -= 1
            counts[state] += 1
            if before in _UNDECIDED and record.outcome is not None:
                self._tell_waiters(record)
        if state not in _ACTIVE:
            self._retire(record)
        elif record.due is not None:
            self._queue(record)

    def _tell_waiters(self, record: Record) -> None:
        if record.policy.deadline is not None:
            self._count_stale()
        for waiter in self._waiters.pop(record.cid, ()):
            if not waiter.done():
                waiter.set_result(None)

    def _queue(self, record: Record) -> None:
        due = record.due
        assert due is not None
        if due <= self._time.monotonic():
            self._ready.push(record)
            self.wake()
        else:
            self._push(due, record)

    def _count_stale(self) -> None:
        self._stale += 1
        if self._stale > 1_000 and self._stale * 2 > len(self._later):
            self._later = [entry for entry in self._later if self._is_current(entry)]
            heapify(self._later)
            self._stale = 0

    def _retire(self, record: Record) -> None:
        now = self._time.monotonic()
        if record.state in FINAL:
            self._finished.append((now + self.retention, record))
            while len(self._finished) > self.keep:
                self._forget(self._finished.popleft()[1])
            if self._finished:
                self._set_timer(self._finished[0][0])
        else:
            record.due = now + (self.dead_retention if record.state == "dead" else self.park_for)
            self._push(record.due, record)

    def _forget(self, record: Record) -> None:
        self._records.pop(record.cid, None)

    def _push(self, when: float, record: Record, *, is_deadline: bool = False) -> None:
        self._entries += 1
        heappush(self._later, (when, self._entries, record, is_deadline))
        self._set_timer(when)

    def _is_current(self, entry: _Entry) -> bool:
        when, _, record, is_deadline = entry
        if is_deadline:
            return record.outcome is None
        return record.due == when

    def _set_timer(self, when: float) -> None:
        if when >= self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = when
        delay = min(when - self._time.monotonic(), _LONGEST_TIMER)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(loop.time() + delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer, self._timer_at = None, float("inf")
        try:
            self._pass_time(self._time.monotonic())
        except Exception as error:
            if self._runner is not None:
                self._runner.fail(error)
            raise
        finally:
            if self._later:
                self._set_timer(self._later[0][0])
            if self._finished:
                self._set_timer(self._finished[0][0])

    def _pass_time(self, now: float) -> None:
        later = self._later
        while later and later[0][0] <= now:
            entry = heappop(later)
            if not self._is_current(entry):
                self._stale = max(0, self._stale - 1)
            elif entry[3]:
                self._pass_deadline(entry[2], now)
            else:
                self._come_due(entry[2], now)
        while self._finished and self._finished[0][0] <= now:
            self._forget(self._finished.popleft()[1])
        self.wake()

    def _come_due(self, record: Record, now: float) -> None:
        if record.state in _ACTIVE:
            self._ready.push(record)
        elif record.state == "dead":
            self._forget(record)
        elif record.outcome is None:
            self._end(record, now, "parked")
        else:
            self._transit(record, machine.bury, None)

    def _pass_deadline(self, record: Record, now: float) -> None:
        # a running attempt is cut by whoever runs it
        if record.state == "waiting":
            self._end(record, now, "deadline")

    def _end(self, record: Record, now: float, reason: Reason) -> None:
        self._transit(record, machine.end, now, reason, self._time.utc(), None)
        if self._runner is not None:
            self._runner.ended(record)
