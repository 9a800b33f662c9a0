"""A commit that is reported as failed, and was made all the same: nothing is left behind by it."""

import sqlite3
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from invoke_retry import work
from invoke_retry.backends.sqlite import claims
from invoke_retry.backends.sqlite.store import Store
from invoke_retry.record import Record

from .books import audit
from .children import until
from .journal import Journal
from .store import coordinator, submit
from .tasks import REPEATS, Task

Apply = Callable[[Store, int, Record, Record], bool]


def has_outcome(before: Record, after: Record) -> bool:
    return before.outcome is None and after.outcome is not None


def is_delivered(before: Record, after: Record) -> bool:
    return before.state == "notifying" and after.state != "notifying"


def waits_again(before: Record, after: Record) -> bool:
    return before.state == "running" and after.state == "waiting"


@pytest.mark.parametrize("pause", [0.1, 2.5])
@pytest.mark.parametrize("step", [has_outcome, is_delivered, waits_again])
async def test_a_commit_that_is_in_doubt(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: Callable[[Record, Record], bool],
    pause: float,
) -> None:
    """It is written again before the next look around, or after it."""
    journal, failed, apply = Journal(tmp_path / "journal"), list[str](), claims.apply
    transaction, is_met = Store.transaction, list[bool]()

    def watched_apply(store: Store, row: int, before: Record, after: Record) -> bool:
        if step(before, after):
            is_met.append(True)
        return apply(store, row, before, after)

    @contextmanager
    def doubtful(store: Store) -> Generator[None]:
        with transaction(store):
            yield
        if is_met and not failed:
            failed.append("once")
            raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(claims, "apply", watched_apply)
    monkeypatch.setattr(Store, "transaction", doubtful)
    monkeypatch.setattr(work, "_FIRST_PAUSE", pause)
    async with coordinator(tmp_path) as retry:
        await submit(retry, journal, Task(fails=1), 3)
        await until(lambda: len(journal.lines("told")) == 3, 15)
        counts = await retry.counts()
        while counts["notifying"]:
            counts = await retry.counts()
    assert failed
    books = audit(journal.lines(), REPEATS)
    assert books.is_sound, books.shown()
    assert counts["succeeded"] == 3
