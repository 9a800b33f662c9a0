"""Whether all is well with a store, seen from outside: nothing is changed, made or held up.

It has a connection of its own that cannot write, so that it can speak also where the thread that
writes waits for somebody. What is stored is quoted as it is: whoever shows it makes it harmless.
"""

from __future__ import annotations

import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any, Literal

from invoke_retry.backends import wording
from invoke_retry.backends.base import Finding, paused_finding
from invoke_retry.backends.sqlite import files, schema
from invoke_retry.backends.sqlite.claims import services_with_work
from invoke_retry.backends.sqlite.files import beside
from invoke_retry.backends.sqlite.finding import MOST_ID, before, count_in, stretch_up_to
from invoke_retry.backends.sqlite.rows import ERRORS, READY, SPOILT
from invoke_retry.backends.sqlite.seats import Seat, taken_seats
from invoke_retry.backends.sqlite.store import Settings
from invoke_retry.backends.wording import MANY, SHOWN, many, moment, names, size, span

LOCK_SECONDS = 2.0
_OVERDUE_SECONDS = 60.0
_LONG_ATTEMPT_SECONDS = 3_600.0
_LONG_LOG = 64 * 1024 * 1024
_LITTLE_ROOM, _NO_ROOM = 256 * 1024 * 1024, 16 * 1024 * 1024

_Level = Literal["ok", "warning", "bad"]


def examine(settings: Settings, now: float, utc: float, *, deep: bool) -> list[Finding]:
    """Look at the file through a connection of its own.

    Args:
        now: Store time.
        utc: The wall clock.
        deep: Have SQLite check the whole file.
    """
    try:
        with schema.read_only(settings.path) as db:
            return Examination(settings, db, now, utc).findings(deep=deep)
    except (*ERRORS, OSError) as error:
        return [Finding("bad", "file", str(schema.unusable(settings.path, error)))]


class Examination:
    """All that is looked at, one thing after another, each in a short snapshot.

    Args:
        now: Store time.
        utc: The wall clock.
    """

    def __init__(self, settings: Settings, db: sqlite3.Connection, now: float, utc: float) -> None:
        self._settings = settings
        self._path = settings.path
        self._db = db
        self._now = now
        self._utc = utc

    def findings(self, *, deep: bool) -> list[Finding]:
        """What was found; the same order each time."""
        found: list[Finding] = []
        for look in (
            self._file, self._disk, self._schema, self._sqlite, self._log, self._lock,
            self._workers, self._stuck, self._overdue, self._paused, self._kept,
            self._check_whole if deep else self._spoilt,
        ):  # fmt: skip
            found += self._looked(look)
        return found

    def _looked(self, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
        try:
            return list(look())
        except (*ERRORS, OSError) as error:
            text = (
                f"{look.__name__.strip('_')} could not be looked at: {error}; if the file is "
                "damaged, stop all processes and restore it from a copy"
            )
            return [Finding("bad", "integrity", text)]

    # The file.

    def _file(self) -> Iterator[Finding]:
        told = self._path.stat()
        text = f"{self._path} has {size(told.st_size)}"
        others = stat.S_IMODE(told.st_mode) & 0o077
        if others:
            text += (
                f"; others than its owner may use it (mode {stat.S_IMODE(told.st_mode):o}), and "
                f"payloads are in it: chmod 600 {self._path}"
            )
        yield Finding("warning" if others else "ok", "file", text)

    def _disk(self) -> Iterator[Finding]:
        free = shutil.disk_usage(self._path.parent).free
        level: _Level = "bad" if free < _NO_ROOM else "warning" if free < _LITTLE_ROOM else "ok"
        advice = "" if level == "ok" else ": make room, or nothing more can be accepted"
        yield Finding(level, "disk", f"{size(free)} are free{advice}")

    def _schema(self) -> Iterator[Finding]:
        version = self._value("PRAGMA user_version")
        oldest = self._value("SELECT value FROM meta WHERE name = 'oldest_reader'")
        text = f"version {version}, to be read by version {oldest} and later"
        if version != schema.VERSION:
            text += f"; this program has version {schema.VERSION}: upgrade it when you can"
        yield Finding("ok" if version == schema.VERSION else "warning", "schema", text)

    def _sqlite(self) -> Iterator[Finding]:
        text = f"version {sqlite3.sqlite_version}"
        if has_reset_fault(sqlite3.sqlite_version_info):
            text += (
                " has the WAL-reset fault (3.7.0 to 3.51.2; mended in 3.44.6, 3.50.7 and 3.51.3), "
                "which is harmless here: all that write or checkpoint take one lock. Let no other "
                "program write to the file while it is in use"
            )
        yield Finding("ok", "sqlite", text)

    def _log(self) -> Iterator[Finding]:
        length = schema.wal_size(self._path)
        text = f"the write-ahead log has {size(length)}"
        if length > _LONG_LOG:
            text += (
                ", and cannot be brought in: some program has kept a transaction open on the file, "
                "or nobody works on it. Find it (lsof) and end it"
            )
        yield Finding("warning" if length > _LONG_LOG else "ok", "log", text)

    # The processes.

    def _lock(self) -> Iterator[Finding]:
        if self._settings.alone:
            yield Finding("ok", "lock", "none: only one process may use the store here")
            return
        path = beside(self._path, "-lock")
        waited = files.wait_for_lock(path, LOCK_SECONDS)
        if waited is None:
            level: _Level = "bad" if self._living else "ok"
            text = f"there is no {path}, or it is not ours to open"
            if self._living:
                text += (
                    ": if it was deleted, stop all processes and start them again, or they do not "
                    "keep out of each other's way"
                )
        elif waited > LOCK_SECONDS:
            level = "bad"
            text = (
                f"could not be had within {LOCK_SECONDS:g} s: some process has stopped, or is very "
                "slow, while it holds it, and nobody else can write. Look for a stopped one (ps: "
                f"state T) among those below and those that `fuser {path}` names; continue or end "
                "it. kill -9 harms nothing"
            )
        else:
            level, text = "ok", f"was had after {waited * 1_000:.0f} ms"
        yield Finding(level, "lock", text)

    @cached_property
    def _seats(self) -> list[Seat]:
        return taken_seats(self._db, self._path, alone=self._settings.alone)

    @property
    def _living(self) -> list[Seat]:
        return [seat for seat in self._seats if seat.is_alive is not False]

    @property
    def _runnable(self) -> set[str]:
        return {name for seat in self._living for name in seat.services}

    def _workers(self) -> Iterator[Finding]:
        for seat in self._seats:
            level: _Level = "ok"
            text = (
                f"process {seat.pid} (seat {seat.number}) works since {moment(seat.since)} and can "
                f"run {names(seat.services)}"
            )
            if seat.is_alive is False:
                level, text = "warning", f"{text}; it is dead, and who works takes over from it"
            elif seat.is_stopped:
                level = "bad"
                text += f"; it is stopped: continue it (kill -CONT {seat.pid}) or end it"
            elif seat.is_alive is None and not self._settings.alone:
                level = "warning"
                text += "; whether it lives cannot be seen: its lock file is missing or not ours"
            yield Finding(level, "workers", text)
        if not self._living:
            unfinished = self._number(
                "SELECT sum(number) FROM total WHERE state IN ('waiting', 'running', 'notifying')"
            )
            yield wording.nobody_works(unfinished)

    def _stuck(self) -> Iterator[Finding]:
        living = {seat.number for seat in self._living}
        owners = self._db.execute(
            "SELECT owner, count(*) FROM invocation WHERE owner IS NOT NULL GROUP BY owner"
        ).fetchall()
        left = sum(number for owner, number in owners if owner not in living)
        if left:
            after = "within seconds" if living else "as soon as a process works: start one"
            text = f"{many(left)} are held by a process that is gone; they go on {after}"
            yield Finding("warning", "stuck", text)
        long = self._db.execute(
            "SELECT cid, target, attempt_at FROM invocation WHERE owner IS NOT NULL "
            f"AND state = 'running' AND attempt_at < ? ORDER BY attempt_at LIMIT {SHOWN}",
            (self._utc - _LONG_ATTEMPT_SECONDS,),
        ).fetchall()
        for cid, target, since in long:
            yield wording.long_attempt(target, since, cid)
        homeless = [name for name in self._with_work if name not in self._runnable]
        if living and homeless:
            text = (
                f"no process can run {names(homeless)}, of which something waits: start one that "
                "has it"
            )
            yield Finding("bad", "stuck", text)
        if not (left or long or (living and homeless)):
            yield wording.NOTHING_STUCK

    # The work.

    @cached_property
    def _with_work(self) -> list[Any]:
        return services_with_work(self._db)

    def _overdue(self) -> Iterator[Finding]:
        limit, runnable = self._now - _OVERDUE_SECONDS, self._runnable
        paused = {name for name, _ in self._paused_services}
        late: list[tuple[float, str, int]] = []
        for name in self._with_work:
            if name in paused or not isinstance(name, str):
                continue
            oldest, number = self._db.execute(
                "SELECT min(due), count(*) FROM (SELECT due FROM invocation WHERE service = ? "
                f"AND {READY} AND due <= ? ORDER BY due LIMIT {MANY + 1})",
                (name, limit),
            ).fetchone()
            if number:
                late.append((oldest, name, number))
        for oldest, name, number in sorted(late)[:SHOWN]:
            text = f"{many(number)} of {name} are due, the first for {span(self._now - oldest)}"
            if name in runnable:
                text += ": the processes that can run it are too busy, or hang; start more of them"
            else:
                text += ": no process that works can run it; start one"
            yield Finding("bad", "overdue", text)
        yield from wording.overdue_in_all(len(late))

    @cached_property
    def _paused_services(self) -> list[tuple[Any, Any]]:
        return self._db.execute("SELECT service, since FROM paused ORDER BY service").fetchall()

    def _paused(self) -> Iterator[Finding]:
        for name, since in self._paused_services:
            yield paused_finding(name, f" since {moment(since)}")
        if not self._paused_services:
            yield Finding("ok", "paused", "no service is paused")

    def _kept(self) -> Iterator[Finding]:
        yield wording.parked(self._number("SELECT count(*) FROM invocation WHERE state = 'parked'"))
        yield wording.dead(sum(self._by_stretches("state = 'dead'")))

    def _spoilt(self) -> Iterator[Finding]:
        spoilt = self._number(f"SELECT count(*) FROM invocation WHERE {SPOILT}")
        unreadable = self._number(
            "SELECT count(*) FROM invocation WHERE state = 'parked' "
            "AND (parked_because LIKE 'its row %')"
        )
        if spoilt or unreadable:
            text = (
                f"{spoilt + unreadable:,} rows are damaged: another program has written to the "
                "file, or its disk is failing; their invocations are parked. Restore a copy, or "
                "delete them"
            )
            yield Finding("bad", "integrity", text)
        else:
            yield Finding("ok", "integrity", "no row is known to be damaged")

    def _check_whole(self) -> Iterator[Finding]:
        wrong = [text for (text,) in self._db.execute("PRAGMA quick_check(10)") if text != "ok"]
        if wrong:
            text = (
                f"the file is damaged: {'; '.join(map(str, wrong))}. Stop all processes, and "
                "restore it from a copy (or try `sqlite3 FILE .recover`)"
            )
            yield Finding("bad", "integrity", text)
        yield from self._spoilt()

    def _value(self, question: str) -> Any:
        row = self._db.execute(question).fetchone()
        return None if row is None else row[0]

    def _number(self, question: str) -> int:
        value = self._value(question)
        return value if isinstance(value, int) else 0

    def _by_stretches(self, condition: str) -> Iterator[int]:
        last: int | None = MOST_ID
        while last is not None and (stretch := stretch_up_to(self._db, last)) is not None:
            yield count_in(self._db, stretch, condition)
            last = before(stretch.first)


def has_reset_fault(version: tuple[int, int, int]) -> bool:
    """Whether that SQLite may damage a file in which two connections write and checkpoint."""
    is_mended = version >= (3, 51, 3) or any(
        version[:2] == mended[:2] and version >= mended for mended in ((3, 44, 6), (3, 50, 7))
    )
    return version >= (3, 7, 0) and not is_mended
