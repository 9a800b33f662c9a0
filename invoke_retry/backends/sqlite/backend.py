"""`SQLiteBackend`: which work is due, for whom there is room, and who waits for what."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args

import anyio.to_thread

from invoke_retry import machine
from invoke_retry.backends.base import (
    DAY,
    DEFAULT_MAX_BYTES,
    Backend,
    Claim,
    Finding,
    Query,
    Runner,
    T,
    Transition,
)
from invoke_retry.backends.sqlite import claims, examination, files, finding
from invoke_retry.backends.sqlite.claims import Look
from invoke_retry.backends.sqlite.examination import Examination
from invoke_retry.backends.sqlite.pruning import Pruner
from invoke_retry.backends.sqlite.rows import Stored, is_text
from invoke_retry.backends.sqlite.store import Settings, Store
from invoke_retry.backends.sqlite.upkeep import Upkeep
from invoke_retry.backends.sqlite.writer import Job, Writer
from invoke_retry.backends.wording import unknown
from invoke_retry.clock import Clock
from invoke_retry.durations import Duration, seconds_of, shown
from invoke_retry.errors import BackendError, InvalidState, NotRunning
from invoke_retry.models import State
from invoke_retry.record import Record

A = TypeVar("A")

_TIDY_SECONDS = 1.0
_LONGEST_TIMER = 60.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
_CLOSE_SECONDS = 5.0
_STUCK_SECONDS = 10.0


class StoredClaim(Claim):
    """A claim of a record that stands in the file."""

    __slots__ = ("row",)

    def __init__(self, row: int, record: Record) -> None:
        super().__init__(record)
        self.row = row


class SQLiteBackend(Backend):
    """Keeps invocations in a SQLite file, which any number of processes of one machine may share.

    What was accepted survives `kill -9`, power loss and a full disk. A process that dies holds
    nothing up: the others take over what it was doing at once.

    Args:
        path: The file; made if it is not there, readable by its owner only. `-wal`, `-shm`,
            `-lock` and `-seatN` stand beside it.
        synchronous: `full`: accepted is on the disk. `normal`: several times faster, and what was
            accepted survives the death of the process, but a power loss may take the last of it.
        read_only: Look only, without holding anybody up: for a coordinator with `work=False`.
        lease: Seconds (or a timedelta) after which a process that shows no life, but is not dead,
            loses what it holds.

    Raises:
        ValueError: An argument is out of range.
    """

    durable = True
    _writer_type: ClassVar[type[Writer]] = Writer

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        synchronous: Literal["full", "normal"] = "full",
        read_only: bool = False,
        lease: Duration = 30,
        max_waiting: int | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
        retention: Duration = 7 * DAY,
        dead_retention: Duration = 30 * DAY,
        park_for: Duration = 7 * DAY,
    ) -> None:
        super().__init__(
            max_waiting=max_waiting,
            max_bytes=max_bytes,
            retention=retention,
            dead_retention=dead_retention,
            park_for=park_for,
        )
        if synchronous not in ("full", "normal"):
            raise ValueError(
                f"synchronous is {shown(synchronous)}, but must be 'full' (survives power loss) "
                "or 'normal' (survives the death of the process)"
            )
        name: object = None
        # the file system may have no bytes for a text
        with suppress(TypeError, UnicodeEncodeError):
            os.fsencode(path)
            name = os.fspath(path)
        if not isinstance(name, str) or not name or "\x00" in name or name == ":memory:":
            raise ValueError(
                f"path is {shown(path)}, but must name a file; for invocations that need not be "
                "kept there is memory://"
            )
        self.path = Path(name).absolute()
        self.synchronous = synchronous
        self.read_only = read_only
        self.lease = seconds_of("lease", lease, positive=True)
        self._runner: Runner | None = None
        self._clock: Clock | None = None
        self._writer: Writer | None = None
        self._store: Store | None = None
        self._pruner = Pruner(self._ask, self._do)
        self._pid = 0
        self._fault: str | None = None
        self._is_paused = False
        self._is_closed = False
        # what this process holds, by cid: the token that it knows
        self._held: dict[str, int] = {}
        self._waiters: dict[str, list[asyncio.Future[None]]] = {}
        self._is_looking = False
        self._may_be_due = False
        self._pause = _FIRST_PAUSE
        self._looks_in_vain = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._tidy_timer: asyncio.TimerHandle | None = None

    def __str__(self) -> str:
        return f"sqlite:///{self.path}"

    # Opening and closing.

    async def open(self, clock: Clock, runner: Runner | None) -> None:
        if self._clock is not None:
            raise InvalidState(
                "this SQLiteBackend belongs to a coordinator already; make one for each"
            )
        loop = asyncio.get_running_loop()
        if hasattr(loop, "clock") and self._writer_type.is_threaded:
            raise BackendError(
                "SQLiteBackend works in a thread, which virtual time does not wait for; use "
                "memory:// under VirtualLoop, or the usual event loop"
            )
        if self.read_only and not files.is_there(self.path):
            raise BackendError(f"there is no store {self.path}; check the path")
        files.check_file(self.path)
        if not self.read_only:
            files.create_privately(self.path)
        elif runner is not None:
            raise InvalidState("a store that is read_only runs nothing: pass work=False")
        alone = files.why_alone(self.path)
        settings = Settings(
            self.path, self.synchronous, self.lease, self.max_waiting, self.retention,
            self.dead_retention, self.park_for, alone is not None, self.read_only,
        )  # fmt: skip
        self._clock, self._pid = clock, os.getpid()
        self._store = Store(settings, clock, works=runner is not None)
        self._upkeep = Upkeep(self._store)
        self._writer = self._writer_type(
            self._store,
            self._upkeep,
            clock,
            on_news=self._on_news,
            on_long_log=self._on_long_log,
            services=None if runner is None else runner.services,
        )
        try:
            await self._do(Store.open, writes=False)
        except BackendError as error:
            if alone is None or "locked" not in str(error):
                raise
            raise BackendError(
                f"the store {self.path} is in use by another process, and cannot be shared: "
                f"{alone}; put it on a local disk of a machine that has flock, or use the NATS "
                "backend (nats://...) for many processes"
            ) from error
        self._runner = runner
        if runner is not None:
            self._may_be_due = True
            self._tidy()

    async def close(self) -> None:
        self.pause()
        self._is_closed = True
        for timer in (self._timer, self._tidy_timer):
            if timer is not None:
                timer.cancel()
        error = NotRunning(_LEFT)
        for waiters in self._waiters.values():
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(error)
        if self._writer is not None:
            ended = self._writer.stop()
            await asyncio.wait({ended}, timeout=_CLOSE_SECONDS)
        self._runner = None

    def pause(self) -> None:
        self._is_paused = True

    @property
    def problem(self) -> str | None:  # type: ignore[override]
        """What keeps the backend from working; None if nothing does."""
        busy_for = 0.0 if self._writer is None else self._writer.busy_for
        if busy_for > _STUCK_SECONDS:
            return (
                f"the store {self.path} has not answered for {busy_for:.0f} s: another process "
                "holds its lock, and is stopped or very slow"
            )
        return self._fault

    # What is due.

    def wake(self) -> None:
        runner = self._runner
        if runner is None:
            return
        if self._may_be_due and not self._is_looking and not self._is_paused:
            self._look(runner)

    def _look(self, runner: Runner) -> None:
        room = runner.room()
        demand = {name: most for name in runner.services if (most := runner.room_for(name)) > 0}
        if room <= 0 or not demand:
            return
        self._is_looking, self._may_be_due = True, False
        self._submit(lambda store: claims.look(store, demand, room), self._looked)

    def _looked(self, look: Look | None, error: Exception | None) -> None:
        self._is_looking = False
        if look is None:
            self._may_be_due = self._looks_in_vain = True
            self._troubled(error)
            return
        self._looks_in_vain = False
        self._untroubled()
        self._hold_back(look.paused)
        self._tell_ended(look.ended)
        self._may_be_due = self._may_be_due or look.is_more
        self._set_timer(look.next_due)
        for stored in look.taken:
            self._start(stored)
        self.wake()

    def _start(self, stored: Stored) -> None:
        runner, record = self._runner, stored.record
        claim = StoredClaim(stored.id, record)
        if runner is None or self._is_paused or not runner.take(record.service):
            self._give_back(claim)
            self._may_be_due = True
        else:
            self._held[record.cid] = record.token
            runner.start(claim)

    def _give_back(self, claim: StoredClaim) -> None:
        """What was taken for nothing: nobody has begun it."""
        before = claim.record
        self._held.pop(before.cid, None)
        after = before.copy()
        machine.release(after, self._time.monotonic())
        self._submit(lambda store: claims.apply(store, claim.row, before, after), _ignore)

    def _set_timer(self, when: float) -> None:
        if when >= self._timer_at or self._is_closed:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = when
        delay = min(max(0.0, when - self._time.monotonic()), _LONGEST_TIMER)
        self._timer = asyncio.get_running_loop().call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer, self._timer_at = None, float("inf")
        self._may_be_due = True
        self.wake()

    # What is done from time to time, and what others did.

    def _tidy(self) -> None:
        self._tidy_timer = None
        runner = self._runner
        if runner is None or self._is_paused:
            return
        if self._is_looking:
            self._tidy_later(_TIDY_SECONDS / 10)
            return
        self._is_looking = True
        upkeep = self._upkeep
        held, known = dict(self._held), tuple(runner.services)
        self._submit(lambda _: upkeep.tidy(known, held), self._tidied)

    def _tidied(self, found: Look | None, error: Exception | None) -> None:
        self._is_looking = False
        if found is None:
            self._troubled(error)
        else:
            if not self._looks_in_vain:  # it often has nothing to write, and succeeds meanwhile
                self._untroubled()
            self._hold_back(found.paused)
            self._tell_ended(found.ended)
            for stored in found.taken:
                if self._runner is not None and not self._is_paused:
                    self._held[stored.record.cid] = stored.record.token
                    self._runner.start(StoredClaim(stored.id, stored.record), died=True)
            self._may_be_due = True
            self.wake()
        self._tidy_later(_TIDY_SECONDS)

    def _tidy_later(self, seconds: float) -> None:
        if not self._is_closed:
            self._tidy_timer = asyncio.get_running_loop().call_later(seconds, self._tidy)

    def _on_news(self) -> None:
        """Another process has written: has it decided over what we hold or wait for?"""
        if self._is_closed:
            return
        held, waited = dict(self._held), tuple(self._waiters)
        self._submit(
            lambda store: (store.lost(held), store.decided(waited), store.paused()),
            partial(self._heard, held),
            writes=False,
        )

    def _heard(
        self,
        held: dict[str, int],
        news: tuple[list[str], list[str], frozenset[str]] | None,
        error: Exception | None,  # noqa: ARG002
    ) -> None:
        if news is None:
            return
        lost, decided, paused = news
        self._hold_back(paused)
        for cid in lost:
            if self._held.get(cid) == held[cid]:
                del self._held[cid]
                if self._runner is not None:
                    self._runner.lost(cid)
        for cid in decided:
            self._tell_waiters(cid)
        self._may_be_due = True
        self.wake()

    def _hold_back(self, paused: frozenset[str]) -> None:
        if self._runner is not None:
            self._runner.hold_back(paused)

    def _on_long_log(self, size: int) -> None:
        if self._runner is not None:
            self._runner.notable(
                "long log",
                "the log of %s has %d MiB: a reader has kept a transaction open, and the log "
                "cannot be brought in until it ends",
                self.path,
                size // 1_048_576,
            )

    def _tell_ended(self, ended: Sequence[Record]) -> None:
        for record in ended:
            self._tell_waiters(record.cid)
            if self._runner is not None:
                self._runner.ended(record)

    def _troubled(self, error: Exception | None) -> None:
        self._fault = str(error)
        if self._runner is not None and error is not None and not self._is_closed:
            self._runner.failing(error)
            self._set_timer(self._time.monotonic() + self._pause)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _untroubled(self) -> None:
        self._fault = None
        self._pause = _FIRST_PAUSE

    # What the coordinator asks for.

    async def accept(self, record: Record) -> Record:
        self._check()
        runner, now = self._runner, self._time.monotonic()
        is_due = record.due is not None and record.due <= now
        # what was accepted with room to spare is taken in the same transaction
        is_taken = (
            runner is not None
            and is_due
            and not (self._may_be_due or self._is_looking or self._is_paused)
            and record.cid not in self._held
            and runner.take(record.service)
        )
        if is_taken:
            machine.start(record, self._time.utc())
            self._held[record.cid] = record.token
        kept: tuple[int, Record] = await self._do(
            lambda store: claims.accept(store, record),
            then=partial(self._accepted, record, is_taken),
        )
        return kept[1]

    def _accepted(
        self,
        record: Record,
        is_taken: bool,
        kept: tuple[int, Record] | None,
        error: Exception | None,  # noqa: ARG002
    ) -> None:
        is_new = kept is not None and kept[1] is record
        if is_taken and self._runner is not None:
            if kept is not None and is_new and not self._is_paused:
                self._runner.start(StoredClaim(kept[0], record))
                return
            self._runner.give(record.service)
            if kept is not None and is_new:
                self._give_back(StoredClaim(kept[0], record))
            elif record.token == self._held.get(record.cid):
                del self._held[record.cid]
        if is_new and record.due is not None:
            self._set_timer(record.due)
            if record.deadline is not None:
                self._set_timer(record.deadline)

    async def apply(
        self, claim: Claim, transition: Transition[T], *args: T.args, **kwargs: T.kwargs
    ) -> bool:
        assert isinstance(claim, StoredClaim)
        before, row = claim.record, claim.row
        after = before.copy()
        transition(after, *args, **kwargs)
        kept: bool = await self._do(
            lambda store: claims.apply(store, row, before, after),
            then=partial(self._applied, claim, after),
        )
        return kept

    def _applied(
        self, claim: StoredClaim, after: Record, kept: bool | None, error: Exception | None
    ) -> None:
        if error is not None:
            return
        record, cid = claim.record, claim.record.cid
        if not kept:
            if self._held.get(cid) == claim.token:  # else it is held here anew
                del self._held[cid]
            return
        is_decided = record.outcome is None and after.outcome is not None
        record.become(after)
        claim.token = record.token
        if record.due is None and record.state in ("running", "notifying"):
            self._held[cid] = record.token
        else:
            self._held.pop(cid, None)
            if record.due is not None and record.state in ("waiting", "notifying"):
                self._set_timer(record.due)
        if is_decided:
            self._tell_waiters(cid)

    async def amend(
        self, cid: str, transition: Transition[T], *args: T.args, **kwargs: T.kwargs
    ) -> Record:
        record: Record = await self._do(
            lambda store: claims.amend(store, cid, lambda each: transition(each, *args, **kwargs)),
            then=self._amended,
        )
        return record

    def _amended(self, record: Record | None, error: Exception | None) -> None:
        if record is None or error is not None:
            return
        self._held.pop(record.cid, None)
        if record.outcome is not None:
            self._tell_waiters(record.cid)
        if record.due is not None:
            self._set_timer(record.due)

    async def get(self, cid: str) -> Record:
        record: Record = await self._do(lambda store: store.get(cid), writes=False)
        return record

    async def outcome(self, cid: str) -> Record:
        if not is_text(cid):
            raise unknown(cid)
        waiters = self._waiters.setdefault(cid, [])
        waiter = asyncio.get_running_loop().create_future()
        waiters.append(waiter)  # before it is asked for, so that no news is missed
        try:
            record = await self.get(cid)
            while record.outcome is None:
                await waiter
                record = await self.get(cid)
            return record
        finally:
            waiter.cancel()
            waiters.remove(waiter)
            if not waiters and self._waiters.get(cid) is waiters:
                del self._waiters[cid]

    def _tell_waiters(self, cid: str) -> None:
        for waiter in self._waiters.get(cid, ()):
            if not waiter.done():
                waiter.set_result(None)

    async def set_paused(self, service: str, *, paused: bool) -> bool:
        changed: bool = await self._do(lambda store: store.set_paused(service, paused=paused))
        self._hold_back(await self.paused())
        self._may_be_due = True
        self.wake()
        return changed

    async def paused(self) -> frozenset[str]:
        names: frozenset[str] = await self._do(Store.paused, writes=False)
        return names

    async def search(self, query: Query) -> Sequence[Record]:
        return await finding.search(self._ask, query)

    async def cids(self, query: Query) -> list[str]:
        return await finding.cids(self._ask, query)

    async def counts(self) -> dict[State, int]:
        totals: dict[str, int] = await self._do(Store.counts, writes=False)
        return {state: totals.get(state, 0) for state in get_args(State)}

    async def tally(self) -> dict[str, dict[State, int]]:
        return await finding.tally(self._ask)

    async def prune(self, older_than: float, *, dead: bool = False) -> int:
        return await self._pruner.prune(older_than, dead=dead)

    async def prunable(self, older_than: float, *, dead: bool = False) -> int:
        return await self._pruner.prunable(older_than, dead=dead)

    async def examine(self, *, deep: bool = False) -> list[Finding]:
        self._check()
        store, utc = self._store, self._time.utc()
        assert store is not None
        if store.settings.alone and not self.read_only:  # nobody else can look at it, nor can we
            return await self._ask(
                lambda store: Examination(store.settings, store.db, store.now, utc).findings(
                    deep=deep
                )
            )
        look = partial(examination.examine, store.settings, store.now, utc, deep=deep)
        return await anyio.to_thread.run_sync(look, abandon_on_cancel=True)

    # Passing jobs to the thread.

    async def _ask(self, run: Callable[[Store], A]) -> A:
        answer: A = await self._do(run, writes=False)
        return answer

    async def _do(
        self,
        run: Callable[[Store], Any],
        *,
        then: Callable[[Any, Exception | None], None] | None = None,
        writes: bool = True,
    ) -> Any:
        """Have something done and wait for it. Cancelled, it is done all the same, or not at all.

        Raises:
            BackendError: It was not done, or may not have been.
        """
        self._check()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def told(result: Any, error: Exception | None) -> None:
            if then is not None:
                then(result, error)
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        self._submit(run, told, writes=writes)
        return await future

    def _submit(
        self,
        run: Callable[[Store], Any],
        then: Callable[[Any, Exception | None], None],
        *,
        writes: bool = True,
    ) -> None:
        assert self._writer is not None
        assert self._store is not None
        self._writer.submit(Job(partial(run, self._store), then, writes=writes))

    @property
    def _time(self) -> Clock:
        assert self._clock is not None
        return self._clock

    def _check(self) -> None:
        if self._is_closed:
            raise NotRunning(_LEFT)
        if self._pid != os.getpid():
            raise BackendError(
                f"the store {self.path} was opened by process {self._pid}, and this is a fork of "
                "it; make and enter a coordinator of its own after the fork"
            )


_LEFT = "the store is closed: its coordinator was left; make and enter another one"


def _ignore(result: object, error: Exception | None) -> None:
    """What comes of it is seen by whoever finds the record next."""
