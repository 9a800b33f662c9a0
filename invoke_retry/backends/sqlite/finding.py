"""How records are found among millions, without holding anybody up.

A statement over a whole table would keep one snapshot of the file for seconds, in which its log
cannot be brought in, and in a process that works it would keep the thread from writing. So each
step looks at one stretch of ids in a snapshot of its own, and other jobs come between the steps.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar, cast

from invoke_retry.backends.base import Query
from invoke_retry.backends.sqlite.rows import COLUMNS, STATES, is_text, shown_cid
from invoke_retry.backends.sqlite.store import Store
from invoke_retry.models import State
from invoke_retry.record import Record

T = TypeVar("T")

STRETCH = 20_000  # ids that one statement looks at
LEAST_ID, MOST_ID = -(2**63), 2**63 - 1
_PAGE = 200  # records that are loaded in one snapshot


class Ask(Protocol):
    """Has something done with the store, in its thread and between other jobs."""

    def __call__(self, run: Callable[[Store], T]) -> Awaitable[T]:
        """Do it without a transaction."""
        ...


class Stretch(NamedTuple):
    """Ids that one statement looks at, both ends included."""

    first: int
    last: int


class Step(NamedTuple):
    """What one step has found.

    Attributes:
        rows: What was found, newest first.
        last: Up to which id to look next; None if nothing is left.
    """

    rows: list[Any]
    last: int | None


async def search(ask: Ask, query: Query) -> list[Record]:
    """Records that fit, newest first.

    Raises:
        InvocationNotFound: `query.after` is not known.
    """
    found: list[Record] = []
    last = await ask(partial(_beginning, query=query))
    while last is not None and (room := query.limit - len(found)) > 0:
        step = await ask(partial(_records, query=query, last=last, limit=min(room, _PAGE)))
        found += step.rows
        last = step.last
    return found


async def cids(ask: Ask, query: Query) -> list[str]:
    """The ids of all records that fit, newest first.

    Raises:
        InvocationNotFound: `query.after` is not known.
    """
    found: list[str] = []
    last = await ask(partial(_beginning, query=query))
    while last is not None:
        step = await ask(partial(_select, columns="id, cid", query=query, last=last))
        found += (shown_cid(*row) for row in step.rows)
        last = step.last
    return found


async def tally(ask: Ask) -> dict[str, dict[State, int]]:
    """How many records are kept, by target and state, as `search` shows them."""
    tally: dict[str, dict[State, int]] = {}
    last: int | None = MOST_ID
    while last is not None:
        step = await ask(partial(_tally, last=last))
        for target, state, number in step.rows:
            states = tally.setdefault(target if isinstance(target, str) else "?", {})
            known = cast("State", state if state in STATES else "parked")
            states[known] = states.get(known, 0) + number
        last = step.last
    return tally


async def count(ask: Ask, condition: str, *values: object) -> int:
    """How many rows fit; *condition* is a constant of ours."""
    number = 0
    last: int | None = MOST_ID
    while last is not None:
        step = await ask(partial(_count, condition=condition, values=values, last=last))
        number += step.rows[0]
        last = step.last
    return number


def stretch_up_to(db: sqlite3.Connection, last: int) -> Stretch | None:
    """The newest stretch up to that id that has rows; None if there is none."""
    newest = db.execute("SELECT max(id) FROM invocation WHERE id <= ?", (last,)).fetchone()[0]
    return None if newest is None else Stretch(max(newest - STRETCH + 1, LEAST_ID), newest)


def count_in(db: sqlite3.Connection, stretch: Stretch, condition: str, *values: object) -> int:
    """How many rows of the stretch fit; *condition* is a constant of ours."""
    question = (
        f"SELECT count(*) FROM invocation NOT INDEXED WHERE id BETWEEN ? AND ? AND {condition}"
    )
    number: int = db.execute(question, (*stretch, *values)).fetchone()[0]
    return number


def before(row: int) -> int | None:
    """The id before that one."""
    return None if row == LEAST_ID else row - 1


def _beginning(store: Store, *, query: Query) -> int | None:
    return MOST_ID if query.after is None else before(store.row(query.after)[0])


def _records(store: Store, *, query: Query, last: int, limit: int) -> Step:
    with store.snapshot():
        step = _select(store, COLUMNS, query, last, limit)
        return Step([store.shown(row) for row in step.rows], step.last)


def _select(store: Store, columns: str, query: Query, last: int, limit: int = STRETCH) -> Step:
    stretch = stretch_up_to(store.db, last)
    texts = (query.target, query.source, query.error_type)
    if stretch is None or not all(text is None or is_text(text) for text in texts):
        return Step([], None)
    wanted: dict[str, object] = {
        "state = ?": query.state,
        "target = ?": query.target,
        "source = ?": query.source,
        "error_type = ?": query.error_type,
        "created_at >= ?": query.created_from,
        "created_at < ?": query.created_before,
    }
    asked = {clause: value for clause, value in wanted.items() if value is not None}
    found = store.db.execute(
        f"SELECT {columns} FROM invocation NOT INDEXED "
        f"WHERE {' AND '.join(('id BETWEEN ? AND ?', *asked))} ORDER BY id DESC LIMIT ?",
        (*stretch, *asked.values(), limit),
    ).fetchall()
    return Step(found, before(found[-1][0] if len(found) == limit else stretch.first))


def _tally(store: Store, *, last: int) -> Step:
    stretch = stretch_up_to(store.db, last)
    if stretch is None:
        return Step([], None)
    found = store.db.execute(
        "SELECT target, state, count(*) FROM invocation NOT INDEXED WHERE id BETWEEN ? AND ? "
        "GROUP BY target, state",
        stretch,
    ).fetchall()
    return Step(found, before(stretch.first))


def _count(store: Store, *, condition: str, values: tuple[object, ...], last: int) -> Step:
    stretch = stretch_up_to(store.db, last)
    if stretch is None:
        return Step([0], None)
    return Step([count_in(store.db, stretch, condition, *values)], before(stretch.first))
