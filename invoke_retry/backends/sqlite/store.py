"""The connection, the transaction around everything, and how records are found and written.

Every change of a record is a transition of `machine`, written where the row still has the token
and the owner that were read. An *owner* is the seat of the process that holds a record: a numbered
lock file that the process keeps locked as long as it lives.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count
from math import isfinite
from pathlib import Path
from typing import Any, Final

from invoke_retry.backends.sqlite import rows, schema
from invoke_retry.backends.sqlite.files import FileLock, beside
from invoke_retry.backends.sqlite.rows import COLUMNS, ERRORS, MOST, STATES, Stored, Unreadable
from invoke_retry.backends.wording import unknown
from invoke_retry.clock import Clock, boot_id
from invoke_retry.errors import BackendError
from invoke_retry.machine import IllegalTransition
from invoke_retry.record import FINAL, Record

PAGE = 500
NOBODY = -1
_NOTE_SECONDS = 1.0
_UNFINISHED: Final = ("waiting", "running", "notifying", "parked")


@dataclass(frozen=True)
class Settings:
    """What a store is opened with; times in seconds."""

    path: Path
    synchronous: str
    lease: float
    max_waiting: int | None
    retention: float
    dead_retention: float
    park_for: float
    alone: bool
    read_only: bool = False


class Store:
    """The connection, and everything that is done with it.

    Args:
        works: Whether records are held here: only then a seat is taken.
    """

    def __init__(self, settings: Settings, clock: Clock, *, works: bool) -> None:
        self.settings = settings
        self.clock = clock
        self._works = works
        is_locked = not (settings.alone or settings.read_only)
        self._outer = FileLock(beside(settings.path, "-lock")) if is_locked else None
        self._seat_lock: FileLock | None = None
        self.seat = NOBODY
        self._sat_at, self._beat, self._services = 0.0, 0, "[]"
        self._db: sqlite3.Connection | None = None
        self._version = 0
        self.shift = 0.0
        self._noted = 0.0
        self.moved: Counter[str] = Counter()

    # Opening, closing, and the transaction around everything else.

    def open(self) -> None:
        """Open the file, and take a seat; again after a fault.

        Raises:
            BackendError: The file cannot be used; it is as it was.
        """
        settings = self.settings
        if settings.read_only:
            self._db = db = schema.connect_to_look(settings.path)
            self._find_time(db)
            return
        with self._locked():
            db = schema.connect(
                settings.path, synchronous=settings.synchronous, alone=settings.alone
            )
            try:
                db.execute("BEGIN IMMEDIATE")
                self._find_time(db)
                if self._works and self.seat == NOBODY:
                    self._take_seat(db)
                db.execute("COMMIT")
            except BaseException as error:
                db.close()
                if isinstance(error, ERRORS):
                    raise schema.unusable(settings.path, error) from error
                raise
            self._db = db

    def close(self) -> None:
        """Leave the seat and close the file."""
        db, self._db = self._db, None
        try:
            if db is not None:
                with self._locked():
                    if self.seat != NOBODY:
                        db.execute("DELETE FROM worker WHERE seat = ?", (self.seat,))
                    db.close()
        finally:
            for lock in (self._seat_lock, self._outer):
                if lock is not None:
                    lock.close()

    def abandon(self) -> None:
        """Close a connection that has failed; what it was writing is in doubt."""
        db, self._db = self._db, None
        if db is not None:
            with self._locked():
                db.close()

    @property
    def is_open(self) -> bool:
        """Whether there is a connection."""
        return self._db is not None

    @contextmanager
    def transaction(self) -> Generator[None]:
        """One transaction, which no other process's write or checkpoint overlaps."""
        db = self.db
        if self.settings.read_only:
            raise BackendError(
                f"the store {self.settings.path} is open for looking only (read_only)"
            )
        with self._locked():
            db.execute("BEGIN IMMEDIATE")
            self.moved.clear()
            changes = db.total_changes
            try:
                self._keep_seat(db)
                yield
                self._write_totals()
                if db.total_changes != changes:
                    self._note_time(db)
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    def _locked(self) -> Any:
        return nullcontext() if self._outer is None else self._outer.held()

    def checkpoint(self) -> int:
        """Bring the log into the file if it has grown; how long it still is, in bytes."""
        path = self.settings.path
        if schema.wal_size(path) > schema.WAL_LIMIT and not self.settings.read_only:
            db = self.db
            with self._locked():
                busy, pages, done = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                if not busy and pages == done:  # nobody reads the log any more: begin it anew
                    db.execute("PRAGMA busy_timeout = 0")
                    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                    db.execute("PRAGMA busy_timeout = 5000")
        return schema.wal_size(path)

    @property
    def db(self) -> sqlite3.Connection:
        """The connection; opened again if it was closed after a fault."""
        if self._db is None:
            self.open()
        assert self._db is not None
        return self._db

    @property
    def now(self) -> float:
        """The time on the scale of the file."""
        return self.clock.monotonic() + self.shift

    def _find_time(self, db: sqlite3.Connection) -> None:
        """Store time goes on where it was, by the wall clock while the machine was down."""
        meta = dict(db.execute("SELECT name, value FROM meta").fetchall())
        boot, monotonic, utc = boot_id(), self.clock.monotonic(), self.clock.utc()
        if meta.get("boot") == boot:
            self.shift = self._known_time(meta, "shift")
            return
        if "boot" in meta:
            passed = max(0.0, utc - self._known_time(meta, "last_utc"))
            self.shift = self._known_time(meta, "last_time") + passed - monotonic
        if not self.settings.read_only:
            self.set_meta(db, boot=boot, shift=self.shift, last_time=self.now, last_utc=utc)

    def _note_time(self, db: sqlite3.Connection) -> None:
        """Where store time goes on after a reboot, should the wall clock be set back meanwhile."""
        now = self.now
        if abs(now - self._noted) >= _NOTE_SECONDS:
            self.set_meta(db, last_time=now, last_utc=self.clock.utc())
            self._noted = now

    def _known_time(self, meta: Mapping[str, object], name: str) -> float:
        value = meta.get(name)
        if not isinstance(value, int | float) or not isfinite(value):
            raise BackendError(
                f"the store {self.settings.path} is refused: what it says of time ({name}) is "
                "damaged, so that nothing could be run when it is due; restore it from a copy"
            )
        return value

    @staticmethod
    def set_meta(db: sqlite3.Connection, **values: Any) -> None:
        """Write facts about the file."""
        db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(values.items()))

    def _take_seat(self, db: sqlite3.Connection) -> None:
        if self.settings.alone:
            self.seat = 0
        else:
            for seat in count():
                lock = FileLock(beside(self.settings.path, f"-seat{seat}"))
                if lock.try_to_take():
                    self.seat, self._seat_lock = seat, lock
                    break
                lock.close()
        # whoever sat here before is dead
        db.execute("UPDATE invocation SET owner = ? WHERE owner = ?", (NOBODY, self.seat))
        self._sat_at = self.clock.utc()
        self.sit_down(db)

    def sit_down(self, db: sqlite3.Connection, services: Iterable[str] | None = None) -> None:
        """Say who sits here, and what that one can run if that has changed."""
        if services is not None:
            self._services = json.dumps(sorted(services))
        self._beat += 1
        db.execute(
            "INSERT OR REPLACE INTO worker VALUES (?, ?, ?, ?, ?)",
            (self.seat, os.getpid(), self._beat, self._services, self._sat_at),
        )

    def _keep_seat(self, db: sqlite3.Connection) -> None:
        """Whoever was taken for dead sits down before it takes anything, or it is taken away."""
        if self.seat == NOBODY:
            return
        if db.execute("SELECT 1 FROM worker WHERE seat = ?", (self.seat,)).fetchone() is None:
            self.sit_down(db)

    # Rows.

    def page(self, condition: str, *values: object, limit: int = PAGE) -> list[tuple[Any, ...]]:
        """Some of the rows that fit."""
        return self.db.execute(
            f"SELECT {COLUMNS} FROM invocation WHERE {condition} LIMIT {limit}", values
        ).fetchall()

    def loaded(self, condition: str, *values: object, limit: int = PAGE) -> list[Stored]:
        """Some of the records that fit."""
        return list(filter(None, map(self.load, self.page(condition, *values, limit=limit))))

    def row(self, cid: str) -> tuple[Any, ...]:
        """The row of a record, or `InvocationNotFound`."""
        question = f"SELECT {COLUMNS} FROM invocation WHERE cid = ?"
        row = self.db.execute(question, (cid,)).fetchone() if rows.is_text(cid) else None
        if row is None:
            raise unknown(cid)
        return row  # type: ignore[no-any-return]

    def find(self, cid: str, *, history: int = 1) -> Stored:
        """The record with that cid.

        Raises:
            InvocationNotFound: There is none.
            Unreadable: It is damaged.
        """
        return rows.load(self.db, self.row(cid), self.shift, history=history)

    def load(self, row: tuple[Any, ...]) -> Stored | None:
        """The record of a row; None if it cannot be read, and is parked now."""
        try:
            return rows.load(self.db, row, self.shift)
        except Unreadable as error:
            self.park_damaged(row, str(error))
            return None

    def shown(self, row: tuple[Any, ...]) -> Record:
        """The record of a row, or what can still be shown of it."""
        try:
            return rows.load(self.db, row, self.shift, history=100).record
        except Unreadable as error:
            return rows.damaged(row, str(error))

    def park_damaged(self, row: tuple[Any, ...], because: str) -> None:
        """Park what cannot be read: kept and visible, until somebody mends or deletes it."""
        token = row[_TOKEN]
        if not isinstance(token, int) or not 0 <= token < MOST:
            token = 0
        self.db.execute(
            "UPDATE invocation SET state = 'parked', token = ?, owner = NULL, due = ?, "
            "deadline = NULL, parked_because = ? WHERE id = ?",
            (token + 1, self.now + self.settings.park_for, because, row[0]),
        )
        if row[_STATE] in STATES:
            self.moved[row[_STATE]] -= 1
            self.moved["parked"] += 1
        else:  # which state it was in is lost; but unfinished ones are all there to be counted
            self._count_again()

    def _count_again(self) -> None:
        kept = self.counts()
        for state in _UNFINISHED:
            found = self.db.execute("SELECT count(*) FROM invocation WHERE state = ?", (state,))
            self.moved[state] = found.fetchone()[0] - kept.get(state, 0)

    def change(self, stored: Stored, transition: Callable[[Record], None]) -> Record | None:
        """Make a transition that the record's row calls for; None if it does not allow it."""
        after = stored.record.copy()
        try:
            transition(after)
        except IllegalTransition as error:  # somebody has changed its row
            self.park_damaged(self.row(after.cid), str(error))
            return None
        return after if self.write(stored, after) else None

    def write(self, stored: Stored, after: Record) -> bool:
        """Write what a transition has made of a record; False if it is another one meanwhile."""
        if after.due is None or after.state == "parked":
            self._keep_until(after)
        before = stored.record
        if not rows.update(self.db, stored, after, self.seat, self.shift):
            return False
        self.moved[before.state] -= 1
        self.moved[after.state] += 1
        return True

    def _keep_until(self, record: Record) -> None:
        """When a record that nothing happens to any more is pruned, or given up."""
        settings, state = self.settings, record.state
        if state in FINAL:
            seconds = settings.retention
        elif state == "dead":
            seconds = settings.dead_retention
        elif state == "parked":
            seconds = settings.park_for
        else:
            return
        record.due = self.clock.monotonic() + seconds

    def unfinished(self) -> int:
        """How many records are."""
        totals = self.counts()
        return sum(totals.get(state, 0) + self.moved[state] for state in _UNFINISHED)

    def _write_totals(self) -> None:
        for state, number in self.moved.items():
            if number:
                self.db.execute(
                    "INSERT INTO total VALUES (?, ?) "
                    "ON CONFLICT (state) DO UPDATE SET number = number + excluded.number",
                    (state, number),
                )

    # What is asked without changing anything.

    @contextmanager
    def snapshot(self) -> Generator[None]:
        """See one state of the file; not for long, since meanwhile its log grows."""
        db = self.db
        db.execute("BEGIN")
        try:
            yield
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")

    def get(self, cid: str, *, history: int = 100) -> Record:
        """The record as it is.

        Raises:
            InvocationNotFound: There is none.
        """
        with self.snapshot():
            try:
                return self.find(cid, history=history).record
            except Unreadable as error:
                return rows.damaged(self.row(cid), str(error))

    def counts(self) -> dict[str, int]:
        """How many records are in each state, pruned ones among them."""
        return dict(self.db.execute("SELECT state, number FROM total").fetchall())

    def set_paused(self, service: str, *, paused: bool) -> bool:
        """Pause a service or let it go on; whether it was otherwise before."""
        if paused:
            statement = "INSERT OR IGNORE INTO paused VALUES (?, ?)"
            changed = self.db.execute(statement, (service, self.clock.utc()))
        else:
            changed = self.db.execute("DELETE FROM paused WHERE service = ?", (service,))
        return changed.rowcount == 1

    def paused(self) -> frozenset[str]:
        """The services that are paused."""
        return frozenset(name for (name,) in self.db.execute("SELECT service FROM paused"))

    def decided(self, cids: Iterable[str]) -> list[str]:
        """Those of the ids that have an outcome, or are not known any more."""
        db = self.db
        question = "SELECT reason IS NULL FROM invocation WHERE cid = ?"
        return [cid for cid in cids if (db.execute(question, (cid,)).fetchone() or (0,))[0] == 0]

    def lost(self, held: Mapping[str, int]) -> list[str]:
        """Those of the ids whose token is another now."""
        db, question = self.db, "SELECT token FROM invocation WHERE cid = ?"
        return [
            cid
            for cid, token in held.items()
            if (db.execute(question, (cid,)).fetchone() or (None,))[0] != token
        ]

    def others_wrote(self) -> bool:
        """Whether another process has written since this was asked last."""
        version: int = self.db.execute("PRAGMA data_version").fetchone()[0]
        changed, self._version = version != self._version, version
        return changed


_NAMES = COLUMNS.split(", ")
_STATE, _TOKEN = _NAMES.index("state"), _NAMES.index("token")
