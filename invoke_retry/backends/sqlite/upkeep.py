"""What is done from time to time: signs of life, and work that nobody does any more."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from invoke_retry import machine
from invoke_retry.backends.sqlite import rows
from invoke_retry.backends.sqlite.claims import Look, next_deadline, services_with_work
from invoke_retry.backends.sqlite.files import FileLock, beside
from invoke_retry.backends.sqlite.rows import COLUMNS, KEPT, READY, SPOILT, Stored
from invoke_retry.backends.sqlite.seats import service_names
from invoke_retry.backends.sqlite.store import NOBODY, Store
from invoke_retry.models import Reason, State
from invoke_retry.record import FINAL, Record

_AWAY_SECONDS = 3.0


class Upkeep:
    """Keeps a store in order, and remembers what it saw the last time.

    Args:
        store: What is kept.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._beats: dict[int, tuple[list[Any], float]] = {}
        self._looked_at = 0.0
        self._known: frozenset[str] = frozenset()
        self._parked_before = 0.0
        self._taken_over: dict[str, int] = {}  # from the dead: tokens by cid

    def beat(self, services: Iterable[str]) -> None:
        """Say that this process is alive, and what it can run."""
        db = self._store.db
        self._store.sit_down(db, services)

    def _orphans(self) -> list[Stored]:
        """Take over what dead processes held."""
        db = self._store.db
        if not self._store.settings.alone:
            self._find_the_dead(db)
        taken: list[Stored] = []
        left_behind = "owner IS NOT NULL AND owner NOT IN (SELECT seat FROM worker)"
        for stored in self._store.loaded(left_behind):
            after = self._store.change(stored, machine.take_over)
            if after is not None:
                taken.append(Stored(stored.id, after, self._store.seat))
                self._taken_over[after.cid] = after.token
        return taken

    def _find_the_dead(self, db: sqlite3.Connection) -> None:
        now = self._store.clock.monotonic()
        lease = self._store.settings.lease
        if now - self._looked_at > max(_AWAY_SECONDS, lease / 2):
            self._beats.clear()  # we were away ourselves, and perhaps all were: a frozen machine
        self._looked_at = now
        others = db.execute(
            "SELECT seat, started_at, beat FROM worker WHERE seat <> ?", (self._store.seat,)
        )
        for seat, *beat in others.fetchall():
            known = self._beats.get(seat)
            if known is None or known[0] != beat:
                self._beats[seat] = beat, now
            elif now - known[1] > lease:  # paused, perhaps for ever
                db.execute("DELETE FROM worker WHERE seat = ?", (seat,))
                continue
            lock = FileLock(beside(self._store.settings.path, f"-seat{seat}"))
            try:
                if lock.try_to_take():
                    db.execute("DELETE FROM worker WHERE seat = ?", (seat,))
                    db.execute("UPDATE invocation SET owner = ? WHERE owner = ?", (NOBODY, seat))
            finally:
                lock.close()

    def let_go(self, held: Mapping[str, int]) -> None:
        """Give back what stands here as ours and nobody holds: its attempt was not made.

        A write whose commit failed may have been made all the same. What was taken over from the
        dead, who did begin it, is left to whoever comes next.
        """
        db, seat = self._store.db, self._store.seat
        ours = db.execute("SELECT id, cid FROM invocation WHERE owner = ?", (seat,)).fetchall()
        cids = {cid for _, cid in ours}
        self._taken_over = {cid: each for cid, each in self._taken_over.items() if cid in cids}
        for row, cid in ours:
            for stored in self._store.loaded("id = ?", row) if cid not in held else ():
                if stored.record.token == self._taken_over.get(cid):
                    db.execute("UPDATE invocation SET owner = ? WHERE id = ?", (NOBODY, row))
                    continue
                now = self._store.clock.monotonic()
                self._store.change(stored, partial(machine.release, due=now))

    def tidy(self, known: Iterable[str], held: Mapping[str, int]) -> Look:
        """Take over from the dead, end what has waited too long, forget what was kept long enough.

        Args:
            known: The services that can be run here.
            held: What this process holds: tokens by cid.
        """
        look = Look(paused=self._store.paused())
        services = frozenset(known)
        if services - self._known:
            # what was parked until now may be what these can run
            self._known, self._parked_before = services, self._store.now
        self._park_the_spoilt()
        self._pass_deadlines(look.ended)
        look.next_due = next_deadline(self._store)
        self._prune(look.ended)
        self._park_unknown(services, look.parked)
        self._unpark(services)
        self.let_go(held)
        look.taken.extend(self._orphans())
        return look

    def _park_the_spoilt(self) -> None:
        for row in self._store.page(SPOILT):
            self._store.park_damaged(row, "its row was spoilt")

    def _pass_deadlines(self, ended: list[Record]) -> None:
        for stored in self._store.loaded("deadline IS NOT NULL AND deadline <= ?", self._store.now):
            self._end(stored, "deadline", ended)

    def _prune(self, ended: list[Record]) -> None:
        db = self._store.db
        for row in self._store.page(f"{KEPT} AND due <= ?", self._store.now):
            state: State = row[_STATE]
            if state in FINAL or state == "dead":
                rows.delete(db, row[0])
            elif (stored := self._store.load(row)) is None:
                continue
            elif stored.record.outcome is None:
                self._end(stored, "parked", ended)
            else:
                self._store.change(stored, partial(machine.bury, error=None))

    def _end(self, stored: Stored, reason: Reason, ended: list[Record]) -> None:
        now, utc = self._store.clock.monotonic(), self._store.clock.utc()
        after = self._store.change(stored, lambda each: machine.end(each, now, reason, utc))
        if after is not None:
            ended.append(after)

    def _park_unknown(self, known: frozenset[str], parked: list[Record]) -> None:
        """Park what is due and what no living process can run."""
        db, now = self._store.db, self._store.now
        unknown = [name for name in services_with_work(db) if name not in known]
        if not unknown:
            return
        elsewhere = db.execute("SELECT services FROM worker").fetchall()
        runnable = {name for (services,) in elsewhere for name in service_names(services)}
        for name in unknown:
            if name in runnable:
                continue
            is_named = "service = ?" if isinstance(name, str) else "CAST(service AS BLOB) = ?"
            for stored in self._store.loaded(f"{is_named} AND {READY} AND due <= ?", name, now):
                because = f"no service is named {name!r} here"
                after = self._store.change(stored, partial(machine.park, because=because))
                if after is not None:
                    parked.append(after)

    def _unpark(self, known: frozenset[str]) -> None:
        """Try again, once, what was parked before this process came or learned new services."""
        before = self._parked_before + self._store.settings.park_for
        for name in known:
            for stored in self._store.loaded(
                "state = 'parked' AND service = ? AND due < ?", name, before
            ):
                now = self._store.clock.monotonic()
                self._store.change(stored, partial(machine.unpark, due=now))


_STATE = COLUMNS.split(", ").index("state")
