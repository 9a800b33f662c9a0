"""X1: whatever stands in a cell, nothing of it is run; its row is parked, and stops nobody."""

from __future__ import annotations

import os
import pickle
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from store_help import Stage, ask, counted, eventually, reaches, totals

from invoke_retry import CorrelationId, InvocationNotFound, InvokeRetry
from invoke_retry.backends.sqlite.rows import COLUMNS


class Bomb:
    """Unpickled it makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mknod, (self._path,)


PICKLE, BROKEN = "a pickle", "text that is no UTF-8"


def junk(proof: Path) -> dict[str, object]:
    return {
        PICKLE: pickle.dumps(Bomb(proof)),
        "a pickle as text": pickle.dumps(Bomb(proof), 0).decode(),
        BROKEN: b"\xff\xfe\x80",
        "random bytes": bytes(range(256)),
        "no bytes": b"",
        "no text": "",
        "other text": "no such thing",
        "a text with NUL": "a\0b",
        "a number as text": "12",
        "NaN as text": "nan",
        "a negative integer": -1,
        "the largest integer": 2**63 - 1,
        "a huge number": 1e300,
        "an infinite number": float("inf"),
        "nothing": None,
    }


KINDS = tuple(junk(Path("x")))
# what parking writes over, so that whoever comes next can try again
MENDED = ("state", "token", "owner", "due", "deadline", "parked_because")
# whose row is which is told by the payload: the cid may be spoilt
ROWS = {kind: number for number, kind in enumerate(KINDS, 1)}


def cid_of(kind: str) -> CorrelationId:
    return CorrelationId.from_key(kind)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one invocation for each kind of junk; the second attempt of each is due."""
    import asyncio

    path = tmp_path_factory.mktemp("prepared") / "retries.db"

    async def prepare() -> None:
        async with Stage().on(path) as retry:
            for kind in KINDS:
                await retry.invoke_async(
                    "fail", ROWS[kind], repeats=5, seconds=3_600, callback="tell", context=kind,
                    cid=cid_of(kind),
                )  # fmt: skip
                await reaches(retry, cid_of(kind), "waiting")

    asyncio.run(prepare())
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE invocation SET due = 0")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


@pytest.fixture
def path(prepared: Path, tmp_path: Path) -> Iterator[Path]:
    there = tmp_path / "retries.db"
    shutil.copy(prepared, there)
    yield there
    assert not (tmp_path / "proof").exists()


def spoil(path: Path, table: str, column: str) -> list[str]:
    """Put each kind of junk into that column of a row of its own; the kinds that SQLite takes."""
    taken: list[str] = []
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for kind, value in junk(path.parent / "proof").items():
            new = "CAST(? AS TEXT)" if kind == BROKEN else "?"
            try:
                db.execute(f"UPDATE {table} SET {column} = {new} WHERE id = ?", (value, ROWS[kind]))
            except sqlite3.IntegrityError:
                continue
            taken.append(kind)
    return taken


async def stands(path: Path, stage: Stage) -> None:
    """The store works: others run, everything is shown, and the books balance."""
    async with stage.on(path, grace=5) as retry:
        for number in range(3):
            cid = await retry.invoke_async("echo", number, repeats=0, seconds=0, callback="tell")
            await reaches(retry, cid, "succeeded")
        assert len([each for each in stage.told if each.target == "echo" and each.ok]) == 3
        await eventually(lambda: nothing_is_due(path, retry))
        assert len(await retry.search(limit=100)) == 3 + len(KINDS)
        for state in ("waiting", "parked", "succeeded", "failed"):
            await retry.search(state=state)
        counts = await retry.counts()
        assert sum(counts.values()) == 3 + len(KINDS)
        assert {state: n for state, n in counts.items() if n} == counted(path)
        assert retry.health().ok
    assert set(counted(path)) <= {"waiting", "parked", "succeeded", "failed"}
    assert {state: n for state, n in totals(path).items() if n} == counted(path)


async def nothing_is_due(path: Path, retry: InvokeRetry) -> bool:
    del path
    return retry.health().running == 0 and not [
        each
        for each in await retry.search(state="waiting", limit=100)
        if each.attempts < 2 and each.call_cid in map(cid_of, KINDS)
    ]


@pytest.mark.parametrize("column", COLUMNS.split(", ")[1:])
async def test_a_cell_of_the_invocation(path: Path, column: str) -> None:
    taken = spoil(path, "invocation", column)
    await stands(path, Stage())
    async with Stage("echo", "tell").on(path, grace=0) as retry:
        for kind in taken:
            try:
                shown = await retry.get(cid_of(kind))
            except InvocationNotFound:
                assert column == "cid"
            else:
                assert shown.state in ("waiting", "parked", "failed", "succeeded")
                if kind in (PICKLE, BROKEN, "random bytes") and column not in MENDED:
                    assert shown.state == "parked", (kind, shown)
                    assert shown.parked_because


@pytest.mark.parametrize("column", ["payload", "context"])
async def test_a_cell_of_its_json(path: Path, column: str) -> None:
    taken = spoil(path, "request", column)
    stage = Stage()
    await stands(path, stage)
    async with Stage().on(path, grace=0) as retry:
        for kind in taken:
            shown = await retry.get(cid_of(kind))
            if kind in (PICKLE, "random bytes", BROKEN):
                assert shown.state == "parked", kind
    spoilt = {ROWS[kind] for kind in taken if column == "payload"}
    assert not [given for name, given in stage.calls if name == "fail" and given in spoilt]


@pytest.mark.parametrize(
    "column",
    ["number", "started_at", "ended_at", "error_type", "error_message", "traceback"],
)
async def test_a_cell_of_its_attempts(path: Path, column: str) -> None:
    spoil(path, "attempt", column)
    await stands(path, Stage())


async def test_what_a_dead_process_says_that_it_can_run(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for seat, value in enumerate(junk(path.parent / "proof").values(), 3):
            if value is not None:
                db.execute("INSERT INTO worker VALUES (?, 1, 1, ?, 0)", (seat, value))
        db.execute("UPDATE invocation SET service = 'gone', target = 'gone' WHERE id = 1")
        db.execute("UPDATE invocation SET state = 'running', owner = 3, due = NULL WHERE id = 2")
        db.execute("INSERT OR REPLACE INTO total VALUES ('running', 1)")
        db.execute("UPDATE total SET number = number - 1 WHERE state = 'waiting'")
    async with Stage().on(path, grace=5) as retry:
        await reaches(retry, cid_of(KINDS[0]), "parked")
        await reaches(retry, cid_of(KINDS[1]), "waiting")
        assert retry.health().ok
    assert ask(path, "SELECT count(*) FROM worker") == [(0,)]


async def test_a_deadline_that_is_no_number_where_nobody_looks(path: Path) -> None:
    """Nobody reads the row, since it is over; but who asks for the next deadline is told of it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE invocation SET state = 'failed', due = 9e9, reason = 'exhausted', "
                   "outcome_at = 1, deadline = '' WHERE id = 1")  # fmt: skip
    async with Stage().on(path, grace=5) as retry:
        cid = await retry.invoke_async("echo", 1, repeats=0, seconds=0)
        await reaches(retry, cid, "succeeded")
        assert retry.health().ok
