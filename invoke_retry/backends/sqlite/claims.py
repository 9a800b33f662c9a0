"""What the coordinator asks of the store, each within one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import Any

from invoke_retry import machine
from invoke_retry.backends.sqlite import rows
from invoke_retry.backends.sqlite.rows import COLUMNS, READY, Stored, Unreadable
from invoke_retry.backends.sqlite.store import Store
from invoke_retry.errors import BackendError, BackendFull, InvocationNotFound
from invoke_retry.record import Record


@dataclass
class Look:
    """What a look for due work has found.

    Attributes:
        taken: Records that are ours now.
        ended: Records whose deadline had passed.
        parked: Records that nobody can run.
        is_more: More is due than was asked for.
        next_due: When to look again, on the monotonic clock.
        paused: The services that are paused.
    """

    taken: list[Stored] = field(default_factory=list[Stored])
    ended: list[Record] = field(default_factory=list[Record])
    parked: list[Record] = field(default_factory=list[Record])
    is_more: bool = False
    next_due: float = float("inf")
    paused: frozenset[str] = frozenset()


def accept(store: Store, record: Record) -> tuple[int, Record]:
    """Write a new record; or the one that has its cid already.

    Raises:
        BackendFull: There are `max_waiting` unfinished ones.
    """
    limit = store.settings.max_waiting
    is_full = limit is not None and store.unfinished() >= limit
    row = None if is_full else rows.insert(store.db, record, store.seat, store.shift)
    if row is not None:
        store.moved[record.state] += 1
        return row, record
    try:
        known = store.find(record.cid)
    except Unreadable as error:
        text = f"it is known already, and cannot be read: {error}"
        raise BackendError(text, record.cid) from error
    except InvocationNotFound:
        raise BackendFull(
            f"{limit:,} invocations are unfinished, which is max_waiting; nothing was accepted: "
            "try again later, or raise max_waiting",
            record.cid,
        ) from None
    return known.id, known.record


def apply(store: Store, row: int, before: Record, after: Record) -> bool:
    """Write what a transition has made of a record that is held here."""
    return store.write(Stored(row, before, store.seat), after)


def amend(store: Store, cid: str, transition: Callable[[Record], None]) -> Record:
    """Make a transition of a record, whoever holds it; the record after it.

    Raises:
        InvocationNotFound, IllegalTransition: Nothing was changed.
    """
    try:
        stored = store.find(cid)
    except Unreadable as error:
        raise machine.IllegalTransition(f"{cid} cannot be changed: {error}") from error
    after = stored.record.copy()
    transition(after)
    store.write(stored, after)
    return after


def look(store: Store, demand: Mapping[str, int], room: int) -> Look:
    """Take what is due: by turns from each service, at most *room* in all.

    Args:
        demand: How many records of which service may be taken.
    """
    now, look = store.now, Look(paused=store.paused())
    queues: list[list[tuple[Any, ...]]] = []
    for service, wanted in demand.items():
        if service in look.paused:
            continue
        found = store.db.execute(
            f"SELECT {COLUMNS} FROM invocation WHERE service = ? AND {READY} ORDER BY due LIMIT ?",
            (service, min(wanted, room) + 1),
        ).fetchall()
        due = [row for row in found if _due(row) <= now]
        if len(due) < len(found):
            look.next_due = min(look.next_due, _due(found[len(due)]) - store.shift)
        elif len(due) > min(wanted, room):
            look.is_more = True
            due.pop()
        if due:
            queues.append(due)
    in_turn = [row for row in chain.from_iterable(zip_longest(*queues)) if row is not None]
    look.is_more = look.is_more or len(in_turn) > room
    for row in in_turn[:room]:
        _take(store, row, look)
    look.next_due = min(look.next_due, next_deadline(store))
    return look


def next_deadline(store: Store) -> float:
    """When the soonest deadline passes, on the monotonic clock; infinite if there is none."""
    soonest = store.db.execute("SELECT min(deadline) FROM invocation WHERE deadline IS NOT NULL")
    deadline = soonest.fetchone()[0]
    is_time = isinstance(deadline, int | float)  # a spoilt one is none
    return deadline - store.shift if is_time else float("inf")


def services_with_work(db: sqlite3.Connection) -> list[Any]:
    """The services of which something waits, for its time or to be run; one may be no text."""
    found = db.execute(
        f"WITH RECURSIVE each(name) AS (SELECT min(service) FROM invocation WHERE {READY} "
        "UNION ALL SELECT (SELECT min(service) FROM invocation "
        f"WHERE {READY} AND service > each.name) FROM each WHERE each.name IS NOT NULL) "
        "SELECT name FROM each WHERE name IS NOT NULL"
    )
    return [name for (name,) in found]


def _take(store: Store, row: tuple[Any, ...], look: Look) -> None:
    stored = store.load(row)
    if stored is None:
        return
    monotonic, utc = store.clock.monotonic(), store.clock.utc()
    deadline = stored.record.deadline
    if deadline is not None and deadline <= monotonic:
        after = store.change(stored, lambda each: machine.end(each, monotonic, "deadline", utc))
        if after is not None:
            look.ended.append(after)
            look.is_more = True  # its callback is due at once
    elif stored.record.outcome is None:
        after = store.change(stored, lambda each: machine.start(each, utc))
    else:
        after = store.change(stored, machine.deliver)
    if after is not None and after.due is None:
        look.taken.append(Stored(stored.id, after, store.seat))


_DUE = COLUMNS.split(", ").index("due")


def _due(row: tuple[Any, ...]) -> float:
    due = row[_DUE]
    return due if isinstance(due, int | float) else float("inf")
