"""The thread that owns the connection: it commits whatever has queued up, as one transaction.

Fifty accepts that are awaited at once cost one sync to the disk. Between jobs the thread says that
its process is alive, so that a service which blocks the event loop is not taken for dead.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, ClassVar

from invoke_retry.backends.sqlite import schema
from invoke_retry.backends.sqlite.rows import ERRORS
from invoke_retry.backends.sqlite.store import Store
from invoke_retry.backends.sqlite.upkeep import Upkeep
from invoke_retry.clock import Clock
from invoke_retry.errors import BackendError, InvokeRetryError

LOOK_SECONDS = 0.05
_BATCH = 500
_LONG_LOG = 64 * 1024 * 1024
_WARN_SECONDS = 10.0


class Job:
    """Something to do with the store.

    Args:
        run: What to do. It raises an `InvokeRetryError` before it has written anything, or none.
        then: Is told the result or the error, in the event loop, when it is on the disk.
        writes: Whether it needs a transaction.
    """

    __slots__ = ("error", "result", "run", "then", "writes")

    def __init__(
        self,
        run: Callable[[], Any],
        then: Callable[[Any, Exception | None], None],
        *,
        writes: bool = True,
    ) -> None:
        self.run = run
        self.then = then
        self.writes = writes
        self.result: Any = None
        self.error: Exception | None = None

    def do(self) -> None:
        """Run it; an error that is an answer concerns it alone."""
        try:
            self.result, self.error = self.run(), None
        except BackendError as error:
            if error.cid is None:  # the store itself fails
                raise
            self.error = error
        except InvokeRetryError as error:
            self.error = error


class Writer:
    """Runs jobs, one batch after another.

    Args:
        on_news: Called in the event loop when another process has written.
        on_long_log: Called in the event loop when a reader keeps the log from being brought in.
        services: What this process can run, for the others to know; None if it runs nothing.

    Attributes:
        is_threaded: Whether it works in a thread, which virtual time does not wait for.
    """

    is_threaded: ClassVar[bool] = True

    def __init__(
        self,
        store: Store,
        upkeep: Upkeep,
        clock: Clock,
        *,
        on_news: Callable[[], None],
        on_long_log: Callable[[int], None],
        services: Collection[str] | None,
    ) -> None:
        self._store = store
        self._upkeep = upkeep
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._on_news = on_news
        self._on_long_log = on_long_log
        self._services = services
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._ended = self._loop.create_future()
        self._beat_at = self._look_at = self._warn_at = 0.0
        self._busy_since: float | None = None
        self._begin()

    def _begin(self) -> None:
        name = f"invoke_retry {self._store.settings.path.name}"
        threading.Thread(target=self._main, name=name, daemon=True).start()

    def submit(self, job: Job) -> None:
        """Have a job done soon."""
        self._jobs.put(job)

    def stop(self) -> asyncio.Future[None]:
        """Do what is queued and close the store; the future is done when that has happened."""
        self._jobs.put(None)
        return self._ended

    @property
    def busy_for(self) -> float:
        """Seconds since it took on what it does now."""
        since = self._busy_since
        return 0.0 if since is None else self._clock.monotonic() - since

    def _main(self) -> None:
        while self._turn(*self._next()):
            pass

    def _turn(self, jobs: list[Job], is_open: bool) -> bool:
        """Do these jobs, and what is due meanwhile; after the last ones close the store."""
        self._busy_since = self._clock.monotonic()
        if jobs:
            self._do(jobs)
        self._do_regularly()
        self._busy_since = None
        if not is_open:
            self._close()
        return is_open

    def _close(self) -> None:
        with suppress(*ERRORS, OSError, BackendError):
            if self._services is not None and self._store.is_open:
                with self._store.transaction():
                    self._upkeep.let_go({})
        with suppress(*ERRORS, OSError, BackendError):
            self._store.close()
        self._tell(self._end)

    def _end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)

    def _next(self) -> tuple[list[Job], bool]:
        """Wait for jobs; False if there will be no more."""
        jobs: list[Job] = []
        try:
            job = self._jobs.get(timeout=LOOK_SECONDS)
            while job is not None and len(jobs) < _BATCH:
                jobs.append(job)
                job = self._jobs.get_nowait()
        except queue.Empty:
            return jobs, True
        if job is None:
            return jobs, False
        jobs.append(job)
        return jobs, True

    def _do(self, jobs: list[Job]) -> None:
        if writing := [job for job in jobs if job.writes]:
            self._write(writing)
        # those that read come last: what they see is on the disk
        for job in jobs:
            if not job.writes:
                try:
                    job.do()
                except Exception as error:
                    self._fail([job], error)
                self._tell(_tell_all, [job])

    def _write(self, jobs: list[Job]) -> None:
        try:
            with self._store.transaction():
                for job in jobs:
                    job.do()
        except (sqlite3.OperationalError, BackendError, OSError) as error:
            self._fail(jobs, error)
        except Exception as error:
            if len(jobs) > 1:  # one bad job must not spoil the others
                for job in jobs:
                    self._write([job])
                return
            self._fail(jobs, error)
        self._tell(_tell_all, jobs)

    def _fail(self, jobs: list[Job], error: Exception) -> None:
        if isinstance(error, ERRORS):
            # after a failed sync later commits may seem to succeed: never go on with it
            with suppress(*ERRORS, OSError):
                self._store.abandon()
        if isinstance(error, (*ERRORS, OSError)):
            error = schema.unusable(self._store.settings.path, error)
        for job in jobs:
            job.result, job.error = None, error

    def _do_regularly(self) -> None:
        now = self._clock.monotonic()
        if now < self._look_at or not self._store.is_open:
            return
        self._look_at = now + LOOK_SECONDS
        try:
            if self._services is not None and now >= self._beat_at:
                with self._store.transaction():
                    self._upkeep.beat(tuple(self._services))
                self._beat_at = now + self._store.settings.lease / 3
            if self._store.others_wrote():
                self._tell(self._on_news)
            if (size := self._store.checkpoint()) > _LONG_LOG and now >= self._warn_at:
                self._warn_at = now + _WARN_SECONDS
                self._tell(self._on_long_log, size)
        except Exception as error:  # whoever writes next is told; this thread must go on
            self._fail([], error)

    def _tell(self, function: Callable[..., object], *args: object) -> None:
        with suppress(RuntimeError):  # a loop that was closed meanwhile
            self._loop.call_soon_threadsafe(function, *args)


def _tell_all(jobs: list[Job]) -> None:
    for job in jobs:
        job.then(job.result, job.error)
