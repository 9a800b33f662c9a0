"""`SQLiteBackend`: what the coordinator sees; each change is a job of the writer's thread."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, TypeVar, get_args

import anyio.to_thread

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
from invoke_retry.backends.sqlite.examination import Examination
from invoke_retry.backends.sqlite.executor import LEFT, Executor
from invoke_retry.backends.sqlite.pruning import Pruner
from invoke_retry.backends.sqlite.rows import is_text
from invoke_retry.backends.sqlite.store import Settings, Store
from invoke_retry.backends.sqlite.upkeep import Upkeep
from invoke_retry.backends.sqlite.working import StoredClaim, Working
from invoke_retry.backends.sqlite.writer import Writer
from invoke_retry.backends.wording import unknown
from invoke_retry.clock import Clock
from invoke_retry.durations import Duration, seconds_of, shown
from invoke_retry.errors import BackendError, InvalidState, NotRunning
from invoke_retry.models import State
from invoke_retry.record import Record

A = TypeVar("A")

_STUCK_SECONDS = 10.0


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
        self._clock: Clock | None = None
        self._store: Store | None = None
        self._writer: Writer | None = None
        self._executor: Executor | None = None
        self._working: Working | None = None
        self._pruner = Pruner(self._ask, self._do)
        self._waiters: dict[str, list[asyncio.Future[None]]] = {}

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
        self._clock = clock
        self._store = Store(settings, clock, works=runner is not None)
        upkeep = Upkeep(self._store)
        self._writer = self._writer_type(
            self._store,
            upkeep,
            clock,
            on_news=self._on_news,
            on_long_log=partial(self._on_long_log, runner),
            services=None if runner is None else runner.services,
        )
        self._executor = executor = Executor(self.path, self._store, self._writer)
        try:
            await executor.ask(Store.open)
        except BackendError as error:
            if alone is None or "locked" not in str(error):
                raise
            raise BackendError(
                f"the store {self.path} is in use by another process, and cannot be shared: "
                f"{alone}; put it on a local disk of a machine that has flock, or use the NATS "
                "backend (nats://...) for many processes"
            ) from error
        if runner is not None:
            self._working = Working(executor, upkeep, clock, runner, ended=self._on_ended)
            self._working.tidy()

    async def close(self) -> None:
        if self._working is not None:
            self._working.stop()
        error = NotRunning(LEFT)
        for waiters in self._waiters.values():
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(error)
        if self._executor is not None:
            self._executor.is_closed = True
            await self._executor.stop()
        self._working = None

    def pause(self) -> None:
        if self._working is not None:
            self._working.pause()

    @property
    def problem(self) -> str | None:  # type: ignore[override]
        """What keeps the backend from working; None if nothing does."""
        busy_for = 0.0 if self._writer is None else self._writer.busy_for
        if busy_for > _STUCK_SECONDS:
            return (
                f"the store {self.path} has not answered for {busy_for:.0f} s: another process "
                "holds its lock, and is stopped or very slow"
            )
        return None if self._working is None else self._working.problem

    def wake(self) -> None:
        if self._working is not None:
            self._working.wake()

    # What others did.

    def _on_news(self) -> None:
        """Another process has written: has it decided over what we hold or wait for?"""
        executor, working = self._running, self._working
        if executor.is_closed:
            return
        held = {} if working is None else dict(working.held)
        waited = tuple(self._waiters)
        executor.submit(
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
        if self._working is not None:
            self._working.heard(held, lost, paused)
        for cid in decided:
            self._tell_waiters(cid)

    def _on_long_log(self, runner: Runner | None, size: int) -> None:
        if runner is not None:
            runner.notable(
                "long log",
                "the log of %s has %d MiB: a reader has kept a transaction open, and the log "
                "cannot be brought in until it ends",
                self.path,
                size // 1_048_576,
            )

    # What the coordinator asks for.

    async def accept(self, record: Record) -> Record:
        self._running.check()
        # what was accepted with room to spare is taken in the same transaction
        is_taken = self._working is not None and self._working.take(record)
        kept: tuple[int, Record] = await self._running.do(
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
        row = kept[0] if kept is not None and kept[1] is record else None
        if self._working is not None:
            self._working.accepted(record, row, is_taken=is_taken)

    async def apply(
        self, claim: Claim, transition: Transition[T], *args: T.args, **kwargs: T.kwargs
    ) -> bool:
        assert isinstance(claim, StoredClaim)
        before, row = claim.record, claim.row
        after = before.copy()
        transition(after, *args, **kwargs)
        kept: bool = await self._running.do(
            lambda store: claims.apply(store, row, before, after),
            then=partial(self._applied, claim, after),
        )
        return kept

    def _applied(
        self, claim: StoredClaim, after: Record, kept: bool | None, error: Exception | None
    ) -> None:
        working = self._working
        if error is not None or working is None:
            return
        if not kept:
            working.lost(claim)
            return
        is_decided = claim.record.outcome is None and after.outcome is not None
        working.applied(claim, after)
        if is_decided:
            self._tell_waiters(after.cid)

    async def amend(
        self, cid: str, transition: Transition[T], *args: T.args, **kwargs: T.kwargs
    ) -> Record:
        record: Record = await self._running.do(
            lambda store: claims.amend(store, cid, lambda each: transition(each, *args, **kwargs)),
            then=self._amended,
        )
        return record

    def _amended(self, record: Record | None, error: Exception | None) -> None:
        if record is None or error is not None:
            return
        if record.outcome is not None:
            self._tell_waiters(record.cid)
        if self._working is not None:
            self._working.amended(record)

    async def get(self, cid: str) -> Record:
        record: Record = await self._ask(lambda store: store.get(cid))
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

    def _on_ended(self, record: Record) -> None:
        self._tell_waiters(record.cid)

    def _tell_waiters(self, cid: str) -> None:
        for waiter in self._waiters.get(cid, ()):
            if not waiter.done():
                waiter.set_result(None)

    async def set_paused(self, service: str, *, paused: bool) -> bool:
        changed: bool = await self._do(lambda store: store.set_paused(service, paused=paused))
        now_paused = await self.paused()
        if self._working is not None:
            self._working.heed_paused(now_paused)
        return changed

    async def paused(self) -> frozenset[str]:
        names: frozenset[str] = await self._ask(Store.paused)
        return names

    async def search(self, query: Query) -> Sequence[Record]:
        return await finding.search(self._ask, query)

    async def cids(self, query: Query) -> list[str]:
        return await finding.cids(self._ask, query)

    async def counts(self) -> dict[State, int]:
        totals: dict[str, int] = await self._ask(Store.counts)
        return {state: totals.get(state, 0) for state in get_args(State)}

    async def tally(self) -> dict[str, dict[State, int]]:
        return await finding.tally(self._ask)

    async def prune(self, older_than: float, *, dead: bool = False) -> int:
        return await self._pruner.prune(older_than, dead=dead)

    async def prunable(self, older_than: float, *, dead: bool = False) -> int:
        return await self._pruner.prunable(older_than, dead=dead)

    async def examine(self, *, deep: bool = False) -> list[Finding]:
        self._running.check()
        store, clock = self._store, self._clock
        assert store is not None
        assert clock is not None
        utc = clock.utc()
        if store.settings.alone and not self.read_only:  # nobody else can look at it, nor can we
            return await self._ask(
                lambda store: Examination(store.settings, store.db, store.now, utc).findings(
                    deep=deep
                )
            )
        look = partial(examination.examine, store.settings, store.now, utc, deep=deep)
        return await anyio.to_thread.run_sync(look, abandon_on_cancel=True)

    @property
    def _running(self) -> Executor:
        assert self._executor is not None
        return self._executor

    async def _ask(self, run: Callable[[Store], A]) -> A:
        return await self._running.ask(run)

    async def _do(self, run: Callable[[Store], A]) -> A:
        done: A = await self._running.do(run)
        return done
