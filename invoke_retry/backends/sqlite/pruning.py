"""Deleting what is finished when a person asks for it, a little at a time."""

from __future__ import annotations

from functools import partial

from invoke_retry.backends.sqlite import finding, rows
from invoke_retry.backends.sqlite.finding import LEAST_ID, MOST_ID, Ask
from invoke_retry.backends.sqlite.store import PAGE, Store

_MOST_SECONDS = 0.03  # that one call keeps others from writing, apart from its commit
_FINISHED = "state IN ('succeeded', 'failed', 'cancelled') AND outcome_at < ?"
_OR_DEAD = "state IN ('succeeded', 'failed', 'cancelled', 'dead') AND outcome_at < ?"


class Pruner:
    """Deletes from the oldest on, and remembers how far it has come.

    Args:
        ask: Has something read.
        write: Has something done in a transaction.
    """

    def __init__(self, ask: Ask, write: Ask) -> None:
        self._ask = ask
        self._write = write
        self._wanted: tuple[float, bool] | None = None
        self._first: int | None = None

    async def prune(self, older_than: float, *, dead: bool) -> int:
        """Delete some; how many. 0 when none is left."""
        wanted, condition = (older_than, dead), _condition(dead=dead)
        if self._wanted != wanted:
            self._wanted, self._first = wanted, LEAST_ID
        while self._first is not None:
            look = partial(_find, condition=condition, older_than=older_than, first=self._first)
            found, following = await self._ask(look)
            if not found:
                self._first = following
                continue
            delete = partial(_delete, condition=condition, older_than=older_than, found=found)
            deleted, self._first = await self._write(delete)
            if deleted:
                return deleted
        self._wanted = None
        return 0

    async def prunable(self, older_than: float, *, dead: bool) -> int:
        """How many there are to delete."""
        return await finding.count(self._ask, _condition(dead=dead), older_than)


def _condition(*, dead: bool) -> str:
    return _OR_DEAD if dead else _FINISHED


def _find(
    store: Store, *, condition: str, older_than: float, first: int
) -> tuple[list[int], int | None]:
    """Ids to delete in the oldest stretch from that id on, and where the next one begins."""
    question = "SELECT min(id) FROM invocation WHERE id >= ?"
    oldest: int | None = store.db.execute(question, (first,)).fetchone()[0]
    if oldest is None:
        return [], None
    last = min(oldest + finding.STRETCH - 1, MOST_ID)
    found = store.db.execute(
        f"SELECT id FROM invocation NOT INDEXED WHERE id BETWEEN ? AND ? AND {condition} "
        "ORDER BY id LIMIT ?",
        (oldest, last, older_than, PAGE),
    ).fetchall()
    return [row for (row,) in found], _after(last)


def _delete(
    store: Store, *, condition: str, older_than: float, found: list[int]
) -> tuple[int, int | None]:
    """Delete those that are still as they were; how many, and from which id on to go on."""
    db, began, deleted, row = store.db, store.clock.monotonic(), 0, found[0]
    for row in found:
        question = f"SELECT 1 FROM invocation WHERE id = ? AND {condition}"
        if db.execute(question, (row, older_than)).fetchone() is not None:
            rows.delete(db, row)
            deleted += 1
        if store.clock.monotonic() - began > _MOST_SECONDS:
            break
    return deleted, _after(row)


def _after(row: int) -> int | None:
    return None if row == MOST_ID else row + 1
