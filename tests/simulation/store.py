"""A real SQLite store in simulated processes, which die between any two of its writes.

Its writer works in the event loop, after a delay of chance, instead of in a thread. Everything
else is what real processes use: the file, its log, the seats and their locks. A process that is
killed leaves what stood on the disk at that moment; where it was alone, the next one goes on from
a copy of that, so that nothing which closing would still do can help it.
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from invoke_retry.backends.sqlite.backend import SQLiteBackend
from invoke_retry.backends.sqlite.writer import Job, Writer

from .loop import PROCESS, Process

_WRITES = ("INSERT", "UPDATE", "DELETE", "COMMIT", "CREATE")
_DELAYS = (0, 0, 0, 0.001, 0.02, 0.3)


class Killed(BaseException):
    """The process ends here."""


class MortalConnection(sqlite3.Connection):
    """Kills its process before or after one of its writes, and does nothing for a dead one."""

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        with _dying(sql.lstrip()):
            return super().execute(sql, *args)

    def executemany(self, sql: str, *args: Any) -> sqlite3.Cursor:
        with _dying(sql.lstrip()):
            return super().executemany(sql, *args)


@contextmanager
def _dying(sql: str) -> Generator[None]:
    process = PROCESS.get()
    if process is None:
        yield
        return
    if process.is_dead:
        raise Killed
    is_write = sql.startswith(_WRITES)
    if is_write:
        process.writes_left -= 1
    is_last = is_write and process.writes_left <= 0
    if is_last and process.chance.random() < 0.5:
        process.die()
        raise Killed
    yield
    if is_last:
        process.die()
        raise Killed


@contextmanager
def mortal_connections() -> Generator[None]:
    """Have all connections made in the block be mortal."""
    connect = sqlite3.connect

    def connect_mortally(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **kwargs, factory=MortalConnection)
        process = PROCESS.get()
        if process is not None:
            process.connections.append(connection)
        return connection

    setattr(sqlite3, "connect", connect_mortally)
    try:
        yield
    finally:
        setattr(sqlite3, "connect", connect)


class LoopWriter(Writer):
    """Does in the event loop what `Writer` does in its thread."""

    is_threaded = False

    def _begin(self) -> None:
        process = PROCESS.get()
        assert process is not None
        self._process = process
        self._is_pending = self._is_over = False
        process.on_death.append(self._let_go)
        self._tick()

    def submit(self, job: Job) -> None:
        super().submit(job)
        self._soon()

    def stop(self) -> asyncio.Future[None]:
        ended = super().stop()
        self._soon()
        return ended

    def _soon(self) -> None:
        if not self._is_pending and not self._is_over:
            self._is_pending = True
            self._loop.call_later(self._process.chance.choice(_DELAYS), self._serve)

    def _serve(self) -> None:
        self._is_pending = False
        with self._mortal():
            self._is_over = not self._turn(*self._next())
        if not self._jobs.empty():
            self._soon()

    def _tick(self) -> None:
        if not self._is_over:
            with self._mortal():
                self._turn([], True)
            self._loop.call_later(self._process.look_seconds, self._tick)

    @contextmanager
    def _mortal(self) -> Generator[None]:
        """Whatever the end of the process has led to ends here."""
        try:
            yield
        except BaseException:
            if not self._process.is_dead:
                raise

    def _let_go(self) -> None:
        """The kernel takes the locks of a dead process."""
        for name in ("_seat_lock", "_outer"):
            lock = getattr(self._store, name)
            if lock is not None:
                lock.close()


class SimulatedSQLite(SQLiteBackend):
    """The real backend, without its thread."""

    _writer_type = LoopWriter


class Disk:
    """Where the file of a run stands."""

    def __init__(self) -> None:
        memory = Path("/dev/shm")
        self._folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
        self._images = 0
        self.path = self._folder / "store"

    def keep_image(self) -> None:
        """Go on from what stands on the disk now."""
        self._images += 1
        image = self._folder / f"image{self._images}"
        for suffix in ("", "-wal"):
            with suppress(FileNotFoundError):
                shutil.copyfile(f"{self.path}{suffix}", f"{image}{suffix}")
        self.path = image

    def check(self) -> list[str]:
        """What is wrong with the file after everybody has left."""
        db = sqlite3.connect(self.path)
        try:
            found = db.execute("PRAGMA integrity_check").fetchall()
            problems = [] if found == [("ok",)] else [f"integrity: {found}"]
            held = db.execute("SELECT count(*) FROM invocation WHERE owner IS NOT NULL").fetchone()
            return problems + ([f"{held[0]} records are held by nobody"] if held[0] else [])
        finally:
            db.close()

    def remove(self) -> None:
        shutil.rmtree(self._folder)


def bury(process: Process) -> None:
    """Close what a dead process had open."""
    for connection in process.connections:
        with suppress(sqlite3.Error):
            connection.close()
