"""What is done with the file, each within one transaction of the thread that owns the connection.

Every change of a record is a transition of `machine`, written where the row still has the token
and the owner that were read. An *owner* is the seat of the process that holds a record: a numbered
lock file that the process keeps locked as long as it lives.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain, count, zip_longest
from pathlib import Path
from typing import Any, Final

from invoke_retry import machine
from invoke_retry.backends.base import Query
from invoke_retry.backends.sqlite import rows, schema
from invoke_retry.backends.sqlite.files import FileLock, beside
from invoke_retry.backends.sqlite.rows import COLUMNS, Stored, Unreadable
from invoke_retry.clock import Clock, boot_id
from invoke_retry.errors import BackendFull, InvocationNotFound
from invoke_retry.models import State
from invoke_retry.record import FINAL, Record

PAGE = 500
NOBODY = -1
_UNFINISHED: Final = ("waiting", "running", "notifying", "parked")
_READY: Final = "state IN ('waiting', 'notifying') AND due IS NOT NULL"
_KEPT: Final = "state IN ('parked', 'dead', 'succeeded', 'failed', 'cancelled')"
_SPOILT: Final = (
    "state NOT IN ('waiting', 'running', 'notifying', 'parked', 'dead', 'succeeded', 'failed', "
    "'cancelled') OR typeof(due) IN ('text', 'blob')"
)


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


@dataclass
class Look:
    """What a look for due work has found.

    Attributes:
        taken: Records that are ours now.
        ended: Records whose deadline had passed.
        is_more: More is due than was asked for.
        next_due: When to look again, on the monotonic clock.
    """

    taken: list[Stored] = field(default_factory=list[Stored])
    ended: list[Record] = field(default_factory=list[Record])
    is_more: bool = False
    next_due: float = float("inf")


class Store:
    """The connection, and everything that is done with it.

    Args:
        works: Whether records are held here: only then a seat is taken.
    """

    def __init__(self, settings: Settings, clock: Clock, *, works: bool) -> None:
        self.settings = settings
        self._clock = clock
        self._works = works
        self._outer = None if settings.alone else FileLock(beside(settings.path, "-lock"))
        self._seat_lock: FileLock | None = None
        self._seat = NOBODY
        self._db: sqlite3.Connection | None = None
        self._shift = 0.0
        self._moved: Counter[str] = Counter()
        self._beats: dict[int, tuple[int, float]] = {}
        self._known: frozenset[str] = frozenset()
        self._parked_before = 0.0
        self._version = 0
        self._is_doubtful = False

    # Opening, closing, and the transaction around everything else.

    def open(self) -> None:
        """Open the file, and take a seat; again after a fault.

        Raises:
            BackendError: The file cannot be used; it is as it was.
        """
        with self._locked():
            settings = self.settings
            db = schema.connect(
                settings.path, synchronous=settings.synchronous, alone=settings.alone
            )
            try:
                db.execute("BEGIN IMMEDIATE")
                self._find_time(db)
                if self._works and self._seat == NOBODY:
                    self._take_seat(db)
                db.execute("COMMIT")
            except sqlite3.Error as error:
                db.close()
                raise schema.unusable(settings.path, error) from error
            self._db = db

    def close(self) -> None:
        """Leave the seat and close the file."""
        db, self._db = self._db, None
        try:
            if db is not None:
                with self._locked():
                    if self._seat != NOBODY:
                        db.execute("DELETE FROM worker WHERE seat = ?", (self._seat,))
                    db.close()
        finally:
            for lock in (self._seat_lock, self._outer):
                if lock is not None:
                    lock.close()

    def abandon(self) -> None:
        """Close a connection that has failed; what it was writing is in doubt."""
        db, self._db = self._db, None
        self._is_doubtful = True
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
        db = self._connection
        with self._locked():
            db.execute("BEGIN IMMEDIATE")
            self._moved.clear()
            try:
                yield
                self._write_totals()
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
        if schema.wal_size(path) > schema.WAL_LIMIT:
            db = self._connection
            with self._locked():
                busy, pages, done = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                if not busy and pages == done:  # nobody reads the log any more: begin it anew
                    db.execute("PRAGMA busy_timeout = 0")
                    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                    db.execute("PRAGMA busy_timeout = 5000")
        return schema.wal_size(path)

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            self.open()
        assert self._db is not None
        return self._db

    @property
    def _now(self) -> float:
        return self._clock.monotonic() + self._shift

    def _find_time(self, db: sqlite3.Connection) -> None:
        """Store time goes on where it was, by the wall clock while the machine was down."""
        meta = dict(db.execute("SELECT name, value FROM meta").fetchall())
        boot, monotonic, utc = boot_id(), self._clock.monotonic(), self._clock.utc()
        if meta.get("boot") == boot:
            self._shift = float(meta["shift"])
            return
        if "boot" in meta:
            passed = max(0.0, utc - float(meta["last_utc"]))
            self._shift = float(meta["last_time"]) + passed - monotonic
        self._set_meta(db, boot=boot, shift=self._shift, last_time=self._now, last_utc=utc)

    @staticmethod
    def _set_meta(db: sqlite3.Connection, **values: Any) -> None:
        db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(values.items()))

    def _take_seat(self, db: sqlite3.Connection) -> None:
        if self.settings.alone:
            self._seat = 0
        else:
            for seat in count():
                lock = FileLock(beside(self.settings.path, f"-seat{seat}"))
                if lock.try_to_take():
                    self._seat, self._seat_lock = seat, lock
                    break
                lock.close()
        # whoever sat here before is dead
        db.execute("UPDATE invocation SET owner = ? WHERE owner = ?", (NOBODY, self._seat))
        self._sit_down(db, ())

    def _sit_down(self, db: sqlite3.Connection, services: Iterable[str]) -> None:
        db.execute(
            "INSERT OR REPLACE INTO worker VALUES (?, ?, 0, ?, ?)",
            (self._seat, os.getpid(), json.dumps(sorted(services)), self._clock.utc()),
        )

    # What the coordinator asks for.

    def accept(self, record: Record) -> tuple[int, Record]:
        """Write a new record; or the one that has its cid already.

        Raises:
            BackendFull: There are `max_waiting` unfinished ones.
        """
        db, limit = self._connection, self.settings.max_waiting
        try:
            known = self._find(record.cid)
        except InvocationNotFound:
            if limit is not None and self._unfinished() >= limit:
                raise BackendFull(
                    f"{limit:,} invocations are unfinished, which is max_waiting; nothing was "
                    "accepted: try again later, or raise max_waiting",
                    record.cid,
                ) from None
        else:
            return known.id, known.record
        row = rows.insert(db, record, self._seat, self._shift)
        self._moved[record.state] += 1
        return row, record

    def apply(self, row: int, before: Record, after: Record) -> bool:
        """Write what a transition has made of a record that is held here."""
        return self._write(Stored(row, before, self._seat), after)

    def amend(self, cid: str, transition: Callable[[Record], None]) -> Record:
        """Make a transition of a record, whoever holds it; the record after it.

        Raises:
            InvocationNotFound, IllegalTransition: Nothing was changed.
        """
        stored = self._find(cid)
        after = stored.record.copy()
        transition(after)
        self._write(stored, after)
        return after

    def look(self, demand: Mapping[str, int], room: int) -> Look:
        """Take what is due: by turns from each service, at most *room* in all.

        Args:
            demand: How many records of which service may be taken.
        """
        db, now, look = self._connection, self._now, Look()
        queues: list[list[tuple[Any, ...]]] = []
        for service, wanted in demand.items():
            found = db.execute(
                f"SELECT {COLUMNS} FROM invocation WHERE service = ? AND {_READY} "
                "ORDER BY due LIMIT ?",
                (service, min(wanted, room) + 1),
            ).fetchall()
            due = [row for row in found if _due(row) <= now]
            if len(due) < len(found):
                look.next_due = min(look.next_due, _due(found[len(due)]) - self._shift)
            elif len(due) > min(wanted, room):
                look.is_more = True
                due.pop()
            if due:
                queues.append(due)
        in_turn = [row for row in chain.from_iterable(zip_longest(*queues)) if row is not None]
        look.is_more = look.is_more or len(in_turn) > room
        for row in in_turn[:room]:
            self._take(row, look)
        soonest = db.execute("SELECT min(deadline) FROM invocation WHERE deadline IS NOT NULL")
        if (deadline := soonest.fetchone()[0]) is not None:
            look.next_due = min(look.next_due, deadline - self._shift)
        return look

    def _take(self, row: tuple[Any, ...], look: Look) -> None:
        stored = self._load(row)
        if stored is None:
            return
        monotonic, utc = self._clock.monotonic(), self._clock.utc()
        after = stored.record.copy()
        if (deadline := after.deadline) is not None and deadline <= monotonic:
            machine.end(after, monotonic, "deadline", utc)
            look.ended.append(after)
        elif after.outcome is None:
            machine.start(after, utc)
        else:
            machine.deliver(after)
        self._write(stored, after)
        if after.due is None:
            look.taken.append(Stored(stored.id, after, self._seat))
        else:  # it ended, and its callback is due at once
            look.is_more = True

    # What is asked without changing anything.

    def get(self, cid: str, *, history: int = 100) -> Record:
        """The record as it is.

        Raises:
            InvocationNotFound: There is none.
        """
        try:
            return self._find(cid, history=history).record
        except Unreadable as error:
            return rows.damaged(self._row(cid), str(error))

    def search(self, query: Query) -> Sequence[Record]:
        """Records that fit, newest first."""
        wanted: dict[str, object] = {
            "state = ?": query.state,
            "target = ?": query.target,
            "source = ?": query.source,
            "error_type = ?": query.error_type,
        }
        if query.after is not None:
            wanted["id < ?"] = self._row(query.after)[0]
        clauses = [clause for clause, value in wanted.items() if value is not None]
        values = [value for value in wanted.values() if value is not None]
        found = self._connection.execute(
            f"SELECT {COLUMNS} FROM invocation {'WHERE' if clauses else ''} "
            f"{' AND '.join(clauses)} ORDER BY id DESC LIMIT ?",
            (*values, query.limit),
        ).fetchall()
        return [self._shown(row) for row in found]

    def counts(self) -> dict[str, int]:
        """How many records are in each state, pruned ones among them."""
        return dict(self._connection.execute("SELECT state, number FROM total").fetchall())

    def decided(self, cids: Iterable[str]) -> list[str]:
        """Those of the ids that have an outcome, or are not known any more."""
        db = self._connection
        question = "SELECT reason IS NULL FROM invocation WHERE cid = ?"
        return [cid for cid in cids if (db.execute(question, (cid,)).fetchone() or (0,))[0] == 0]

    def lost(self, held: Mapping[str, int]) -> list[str]:
        """Those of the ids whose token is another now."""
        db, question = self._connection, "SELECT token FROM invocation WHERE cid = ?"
        return [
            cid
            for cid, token in held.items()
            if (db.execute(question, (cid,)).fetchone() or (None,))[0] != token
        ]

    def others_wrote(self) -> bool:
        """Whether another process has written since this was asked last."""
        version: int = self._connection.execute("PRAGMA data_version").fetchone()[0]
        changed, self._version = version != self._version, version
        return changed

    # What is done from time to time.

    def beat(self, services: Iterable[str]) -> None:
        """Say that this process is alive, and what it can run."""
        db = self._connection
        beaten = db.execute(
            "UPDATE worker SET beat = beat + 1, services = ? WHERE seat = ?",
            (json.dumps(sorted(services)), self._seat),
        )
        if beaten.rowcount != 1:  # others have taken us for dead
            self._sit_down(db, services)
        self._set_meta(db, last_time=self._now, last_utc=self._clock.utc())

    def _orphans(self, limit: int, held: Mapping[str, int]) -> list[Stored]:
        """Take over what dead processes held."""
        db = self._connection
        if not self.settings.alone:
            self._find_the_dead(db)
        if self._is_doubtful:
            self._let_go_of_what_nobody_holds(db, held)
        found = db.execute(
            f"SELECT {COLUMNS} FROM invocation WHERE owner IS NOT NULL "
            "AND owner NOT IN (SELECT seat FROM worker) LIMIT ?",
            (limit,),
        ).fetchall()
        taken: list[Stored] = []
        for stored in filter(None, map(self._load, found)):
            after = stored.record.copy()
            machine.take_over(after)
            if self._write(stored, after):
                taken.append(Stored(stored.id, after, self._seat))
        return taken

    def _find_the_dead(self, db: sqlite3.Connection) -> None:
        now = self._clock.monotonic()
        others = db.execute("SELECT seat, beat FROM worker WHERE seat <> ?", (self._seat,))
        for seat, beat in others.fetchall():
            known = self._beats.get(seat)
            if known is None or known[0] != beat:
                self._beats[seat] = beat, now
            elif now - known[1] > self.settings.lease:  # paused, perhaps for ever
                db.execute("DELETE FROM worker WHERE seat = ?", (seat,))
                continue
            lock = FileLock(beside(self.settings.path, f"-seat{seat}"))
            try:
                if lock.try_to_take():
                    db.execute("DELETE FROM worker WHERE seat = ?", (seat,))
                    db.execute("UPDATE invocation SET owner = ? WHERE owner = ?", (NOBODY, seat))
            finally:
                lock.close()

    def _let_go_of_what_nobody_holds(self, db: sqlite3.Connection, held: Mapping[str, int]) -> None:
        """A write whose commit failed may have been made all the same; nothing came of it."""
        self._is_doubtful = False
        ours = db.execute(f"SELECT {COLUMNS} FROM invocation WHERE owner = ?", (self._seat,))
        for stored in filter(None, map(self._load, ours.fetchall())):
            if stored.record.cid not in held:
                after = stored.record.copy()
                machine.release(after, self._clock.monotonic())
                self._write(stored, after)

    def tidy(self, known: Iterable[str], room: int, held: Mapping[str, int]) -> Look:
        """Take over from the dead, end what has waited too long, forget what was kept long enough.

        Args:
            known: The services that can be run here.
            room: How many records of dead processes may be taken over.
            held: What this process holds: tokens by cid.
        """
        look = Look()
        services = frozenset(known)
        if services - self._known:
            # what was parked until now may be what these can run
            self._known, self._parked_before = services, self._now
        self._park_the_spoilt()
        self._pass_deadlines(look.ended)
        self._prune(look.ended)
        self._park_unknown(services)
        self._unpark(services)
        look.taken.extend(self._orphans(room, held))
        return look

    def _park_the_spoilt(self) -> None:
        for row in self._page(_SPOILT):
            self._park_damaged(row, "its row was spoilt")

    def _pass_deadlines(self, ended: list[Record]) -> None:
        for stored in self._loaded("deadline IS NOT NULL AND deadline <= ?", self._now):
            self._end(stored, "deadline", ended)

    def _prune(self, ended: list[Record]) -> None:
        db = self._connection
        for row in self._page(f"{_KEPT} AND due <= ?", self._now):
            state: State = row[_STATE]
            if state in FINAL or state == "dead":
                rows.delete(db, row[0])
            elif (stored := self._load(row)) is None:
                continue
            elif stored.record.outcome is None:
                self._end(stored, "parked", ended)
            else:
                after = stored.record.copy()
                machine.bury(after, None)
                self._write(stored, after)

    def _end(self, stored: Stored, reason: Any, ended: list[Record]) -> None:
        after = stored.record.copy()
        machine.end(after, self._clock.monotonic(), reason, self._clock.utc())
        self._write(stored, after)
        ended.append(after)

    def _park_unknown(self, known: frozenset[str]) -> None:
        """Park what is due and what no living process can run."""
        db, now = self._connection, self._now
        with_work = db.execute(
            f"WITH RECURSIVE each(name) AS (SELECT min(service) FROM invocation WHERE {_READY} "
            "UNION ALL SELECT (SELECT min(service) FROM invocation "
            f"WHERE {_READY} AND service > each.name) FROM each WHERE each.name IS NOT NULL) "
            "SELECT name FROM each WHERE name IS NOT NULL"
        ).fetchall()
        unknown = [name for (name,) in with_work if name not in known]
        if not unknown:
            return
        elsewhere = db.execute("SELECT services FROM worker").fetchall()
        runnable = {name for (services,) in elsewhere for name in json.loads(services)}
        for name in unknown:
            if name in runnable:
                continue
            for stored in self._loaded(f"service = ? AND {_READY} AND due <= ?", name, now):
                after = stored.record.copy()
                machine.park(after, f"no service is named {name!r} here")
                self._write(stored, after)

    def _unpark(self, known: frozenset[str]) -> None:
        """Try again, once, what was parked before this process came or learned new services."""
        before = self._parked_before + self.settings.park_for
        for name in known:
            for stored in self._loaded(
                "state = 'parked' AND service = ? AND due < ?", name, before
            ):
                after = stored.record.copy()
                machine.unpark(after, self._clock.monotonic())
                self._write(stored, after)

    # Rows.

    def _page(self, condition: str, *values: object) -> list[tuple[Any, ...]]:
        return self._connection.execute(
            f"SELECT {COLUMNS} FROM invocation WHERE {condition} LIMIT {PAGE}", values
        ).fetchall()

    def _loaded(self, condition: str, *values: object) -> list[Stored]:
        return list(filter(None, map(self._load, self._page(condition, *values))))

    def _row(self, cid: str) -> tuple[Any, ...]:
        row = self._connection.execute(
            f"SELECT {COLUMNS} FROM invocation WHERE cid = ?", (cid,)
        ).fetchone()
        if row is None:
            raise InvocationNotFound(
                f"no invocation has the cid {cid!r}; it never was accepted here, or was pruned "
                "after its retention"
            )
        return row  # type: ignore[no-any-return]

    def _find(self, cid: str, *, history: int = 1) -> Stored:
        return rows.load(self._connection, self._row(cid), self._shift, history=history)

    def _load(self, row: tuple[Any, ...]) -> Stored | None:
        """The record of a row; None if it cannot be read, and is parked now."""
        try:
            return rows.load(self._connection, row, self._shift)
        except Unreadable as error:
            self._park_damaged(row, str(error))
            return None

    def _shown(self, row: tuple[Any, ...]) -> Record:
        try:
            return rows.load(self._connection, row, self._shift, history=100).record
        except Unreadable as error:
            return rows.damaged(row, str(error))

    def _park_damaged(self, row: tuple[Any, ...], because: str) -> None:
        if row[_STATE] == "parked":
            return
        token = row[_TOKEN] if isinstance(row[_TOKEN], int) else 0
        self._connection.execute(
            "UPDATE invocation SET state = 'parked', token = ?, owner = NULL, due = ?, "
            "deadline = NULL, parked_because = ? WHERE id = ?",
            (token + 1, self._now + self.settings.park_for, because, row[0]),
        )
        if isinstance(row[_STATE], str):
            self._moved[row[_STATE]] -= 1
        self._moved["parked"] += 1

    def _write(self, stored: Stored, after: Record) -> bool:
        if after.due is None or after.state == "parked":
            self._keep_until(after)
        before = stored.record
        if not rows.update(self._connection, stored, after, self._seat, self._shift):
            return False
        self._moved[before.state] -= 1
        self._moved[after.state] += 1
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
        record.due = self._clock.monotonic() + seconds

    def _unfinished(self) -> int:
        totals = self.counts()
        return sum(totals.get(state, 0) + self._moved[state] for state in _UNFINISHED)

    def _write_totals(self) -> None:
        for state, number in self._moved.items():
            if number:
                self._connection.execute(
                    "INSERT INTO total VALUES (?, ?) "
                    "ON CONFLICT (state) DO UPDATE SET number = number + excluded.number",
                    (state, number),
                )


_NAMES = COLUMNS.split(", ")
_STATE, _TOKEN, _DUE = _NAMES.index("state"), _NAMES.index("token"), _NAMES.index("due")


def _due(row: tuple[Any, ...]) -> float:
    due = row[_DUE]
    return due if isinstance(due, int | float) else float("inf")
