"""A record as rows: whatever happens to it, it reads back as it was written."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from invoke_retry import CorrelationId, RetryPolicy, machine
from invoke_retry.backends.sqlite import rows, schema
from invoke_retry.backends.sqlite.rows import COLUMNS, Stored, Unreadable
from invoke_retry.failure import Failure
from invoke_retry.machine import IllegalTransition
from invoke_retry.record import Record

SEAT, SHIFT = 3, 1_000.0
Step = Callable[[Record], None]

times = st.floats(0, 2**31)
texts = st.text(max_size=20)
failures = st.builds(Failure, texts, texts, st.none() | texts)
jsons = st.none() | st.sampled_from([b"null", b'"x"', b'{"a":[1,2.5,"\xc3\xbc"]}', b"[]"])
policies = st.builds(
    RetryPolicy,
    st.integers(0, 5),
    st.integers(0, 100) | st.floats(0, 100),
    deadline=st.none() | st.floats(1, 100),
    jitter=st.sampled_from(["none", "full"]),
)
records = st.builds(
    Record, st.just(CorrelationId.from_key("one")), st.just("target"),
    st.none() | st.just("callback"), texts, texts, jsons, jsons, policies, times, times, times,
    st.none() | st.just(CorrelationId.from_key("old")),
)  # fmt: skip


def step(transition: Callable[..., None], **values: st.SearchStrategy[Any]) -> Any:
    return st.fixed_dictionaries(values).map(lambda drawn: partial(transition, **drawn))


succeeded = {"reason": st.just("succeeded"), "deliver_at_once": st.just(True)}
steps: st.SearchStrategy[Step] = st.one_of(
    step(machine.start, utc=times),
    step(machine.retry, due=times, ended_at=times, failure=failures),
    step(machine.finish, due=times, ended_at=times, response=jsons, **succeeded),
    step(machine.end, due=times, reason=st.just("cancelled"), utc=times),
    step(machine.postpone, due=times, error=failures),
    step(machine.bury, error=failures),
    step(machine.release, due=times),
    step(machine.park, because=texts),
    step(machine.hasten, due=times),
    st.sampled_from([machine.deliver, machine.settle, machine.take_over]),
)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    file = tmp_path / "store.db"
    file.touch()
    db = schema.connect(file, synchronous="OFF", alone=False)
    yield db
    db.close()


def row_of(db: sqlite3.Connection) -> tuple[Any, ...]:
    found: tuple[Any, ...] = db.execute(f"SELECT {COLUMNS} FROM invocation").fetchone()
    return found


def facts(record: Record) -> dict[str, Any]:
    found = {name: getattr(record, name) for name in Record.__slots__}
    for name in ("due", "began"):  # they pass through another scale
        if found[name] is not None:
            found[name] = pytest.approx(found[name], abs=1e-5)
    if record.delivery_error is not None:  # its traceback is not kept
        found["delivery_error"] = record.delivery_error[:2]
    if record.outcome is not None and record.outcome.error is not None:  # it is its attempt's
        found["outcome"] = (*record.outcome[:-1], record.outcome.error[:2])
    return found


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(record=records, life=st.lists(steps, max_size=8))
def test_what_is_written_reads_back(
    db: sqlite3.Connection, record: Record, life: list[Step]
) -> None:
    db.execute("BEGIN")
    try:
        row = rows.insert(db, record, SEAT, SHIFT)
        assert row is not None
        stored = rows.load(db, row_of(db), SHIFT, history=100)
        assert facts(stored.record) == facts(record)
        for step in life:
            after = stored.record.copy()
            with suppress(IllegalTransition):
                step(after)
                assert rows.update(db, stored, after, SEAT, SHIFT)
                stored = rows.load(db, row_of(db), SHIFT, history=100)
                assert facts(stored.record) == facts(after)
                is_held = after.due is None and after.state in ("running", "notifying")
                assert stored.owner == (SEAT if is_held else None)
    finally:
        db.execute("ROLLBACK")


def waiting(db: sqlite3.Connection) -> Stored:
    record = Record(
        CorrelationId.from_key("one"), "target", None, "main", "x", b"1", None,
        RetryPolicy(1, 1), 0, 0, 0,
    )  # fmt: skip
    rows.insert(db, record, SEAT, SHIFT)
    return rows.load(db, row_of(db), SHIFT)


def test_a_cid_is_written_once(db: sqlite3.Connection) -> None:
    assert rows.insert(db, waiting(db).record, SEAT, SHIFT) is None


def test_a_late_writer_changes_nothing(db: sqlite3.Connection) -> None:
    before = waiting(db)
    after = before.record.copy()
    machine.start(after, 1.0)
    assert rows.update(db, before, after, SEAT, SHIFT)
    written = row_of(db)
    late = before.record.copy()
    machine.end(late, 0.0, "cancelled", 2.0)
    assert not rows.update(db, before, late, SEAT, SHIFT)
    # the token is the newest, but another process holds it
    other = Stored(before.id, after, SEAT + 1)
    assert not rows.update(db, other, late, SEAT, SHIFT)
    assert row_of(db) == written


@pytest.mark.parametrize("column", COLUMNS.split(", ")[1:])
@pytest.mark.parametrize("value", [b"\x80\x04\x8c\x02os", -1.5, "?" * 40])
def test_a_spoilt_cell_is_unreadable_or_harmless(
    db: sqlite3.Connection, column: str, value: object
) -> None:
    waiting(db)
    try:
        db.execute(f"UPDATE invocation SET {column} = ?", (value,))
    except sqlite3.IntegrityError:
        return
    with suppress(Unreadable):
        assert isinstance(rows.load(db, row_of(db), SHIFT).record, Record)
    assert rows.damaged(row_of(db), "why").parked_because == "why"


def test_deleting_leaves_nothing(db: sqlite3.Connection) -> None:
    stored = waiting(db)
    after = stored.record.copy()
    machine.start(after, 1.0)
    machine.finish(after, 0.0, "succeeded", 2.0, response=b"1")
    assert rows.update(db, stored, after, SEAT, SHIFT)
    rows.delete(db, stored.id)
    for table in ("invocation", "request", "response", "attempt"):
        assert db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
