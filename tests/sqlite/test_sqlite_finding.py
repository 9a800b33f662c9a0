"""D10: what looks at a store of many rows holds no snapshot for long, and nobody up."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
from store_help import Stage, ask, fill, make, tamper

from invoke_retry import CorrelationId, InvokeRetry, ServiceRegistry
from invoke_retry.backends import Query, SQLiteBackend
from invoke_retry.backends.sqlite import finding

MANY = 100_000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "retries.db"
    fill(path, MANY)
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "retries.db"
    fill(path, 60)
    return path


@pytest.fixture(params=[1, 3, 7, 60, 1_000])
def stretch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    ids: int = request.param
    monkeypatch.setattr(finding, "STRETCH", ids)
    monkeypatch.setattr(finding, "_PAGE", 4)
    return ids


def looking(path: Path) -> tuple[InvokeRetry, SQLiteBackend]:
    backend = SQLiteBackend(path, read_only=True)
    return InvokeRetry(ServiceRegistry(), backend=backend, work=False), backend


def by_hand(path: Path, condition: str = "1") -> list[str]:
    return [
        cid
        for (cid,) in ask(path, f"SELECT cid FROM invocation WHERE {condition} ORDER BY id DESC")
    ]


async def check(path: Path) -> None:
    """What is found is what a plain statement finds."""
    retry, backend = looking(path)
    async with retry:
        every = by_hand(path)
        assert [each.call_cid for each in await retry.search(limit=1_000)] == every
        assert [each.call_cid for each in await retry.search(limit=9)] == every[:9]
        assert await backend.cids(Query()) == every
        assert [each.call_cid for each in await retry.search(after=every[8])] == every[9:]
        failed = by_hand(path, "state = 'failed'")
        assert await backend.cids(Query(state="failed", limit=1)) == failed
        assert [each.call_cid for each in await retry.search(state="failed", limit=5)] == failed[:5]
        tally = await backend.tally()
        counted = ask(path, "SELECT target, state, count(*) FROM invocation GROUP BY 1, 2")
        assert {(t, s): n for t, states in tally.items() for s, n in states.items()} == {
            (target, state): number for target, state, number in counted
        }
        assert await backend.prunable(2e9) == len(
            by_hand(path, "state IN ('succeeded', 'failed', 'cancelled')")
        )


async def test_stretches_miss_nothing_and_find_nothing_twice(small: Path, stretch: int) -> None:
    await check(small)


async def test_gaps_and_ids_at_both_ends(small: Path, stretch: int) -> None:
    tamper(small, "DELETE FROM invocation WHERE id BETWEEN 20 AND 40 OR id % 5 = 0")
    most = len(by_hand(small))
    for number, row in enumerate((-(2**63), -(2**63) + 1, -5, 0, 10**12, 2**63 - 2, 2**63 - 1)):
        assert tamper(small, "UPDATE OR FAIL invocation SET id = ? WHERE id = ?", row, number + 1
                      ) == (number + 1 != 5)  # fmt: skip
    assert len(by_hand(small)) == most
    began = perf_counter()
    await check(small)
    assert perf_counter() - began < 10  # gaps of 10**18 ids are passed at one bound


async def test_rows_that_somebody_has_spoilt(small: Path, stretch: int) -> None:
    tamper(small, "UPDATE invocation SET state = 'no such state' WHERE id = 3")
    tamper(small, "UPDATE invocation SET target = x'ff' WHERE id = 4")
    tamper(small, "UPDATE invocation SET cid = CAST(x'ff00' AS TEXT) WHERE id = 5")
    tamper(small, "UPDATE invocation SET cid = 'no cid' WHERE id = 6")
    tamper(small, "UPDATE invocation SET created_at = 'never' WHERE id = 7")
    retry, backend = looking(small)
    async with retry:
        shown = [each.call_cid for each in await retry.search(limit=1_000)]
        assert await backend.cids(Query()) == shown
        assert len(set(shown)) == 60
        assert shown[-5] == CorrelationId.from_key("row 5")
        tally = await backend.tally()
        assert sum(number for states in tally.values() for number in states.values()) == 60
        assert tally["?"]
        assert all(isinstance(each, str) for each in tally)


async def test_an_empty_store(tmp_path: Path) -> None:
    path = tmp_path / "retries.db"
    async with Stage().on(path):
        pass
    retry, backend = looking(path)
    async with retry:
        assert await retry.search() == []
        assert await backend.cids(Query()) == []
        assert await backend.tally() == {}
        assert await backend.prunable(2e9) == 0


# On many rows: the limits are far above what is measured, and far below a statement that looks
# at every row for every page.


@pytest.mark.slow
async def test_filters_on_many_rows_are_quick(large: Path) -> None:
    retry, backend = looking(large)
    async with retry:
        for query, found in (
            ({}, 100),
            ({"target": "no such target"}, 0),
            ({"error_type": "Rare"}, 20),
            ({"state": "failed", "target": "svc.5"}, 100),
            ({"source": "nobody", "state": "waiting"}, 0),
        ):
            began = perf_counter()
            assert len(await retry.search(**query)) == found  # type: ignore[arg-type]
            assert perf_counter() - began < 2, query
        began = perf_counter()
        assert len(await backend.cids(Query(state="failed"))) == MANY // 5
        assert sum(sum(states.values()) for states in (await backend.tally()).values()) == MANY
        assert perf_counter() - began < 5


async def test_no_snapshot_is_over_the_whole_table(large: Path) -> None:
    """While something is looked for everywhere, the log can be brought in again and again."""
    retry, backend = looking(large)
    brought_in = 0
    async with retry:
        with closing(sqlite3.connect(large, isolation_level=None)) as db:
            db.execute("PRAGMA busy_timeout = 0")
            looks: list[Any] = [
                backend.cids(Query(target="none")), backend.search(Query(target="none")),
                backend.tally(), backend.prunable(2e9),
            ]  # fmt: skip
            for look in looks:
                task = asyncio.ensure_future(look)
                while not task.done():
                    db.execute("INSERT OR REPLACE INTO meta VALUES ('test', ?)", (brought_in,))
                    busy = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
                    brought_in += not busy
                    await asyncio.sleep(0)
                await task
    assert brought_in >= 4


async def test_others_are_served_while_something_is_looked_for(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process that works, its own thread goes on accepting between two stretches."""
    monkeypatch.setattr(finding, "STRETCH", 1)
    stage = Stage()
    async with stage.on(small) as retry:
        looking = asyncio.ensure_future(retry.search(target="none"))
        cid = await retry.invoke_async("echo", repeats=0, seconds=0)
        assert not looking.done()
        assert await looking == []
        assert (await retry.wait(cid, timeout=20)).ok


async def test_a_search_can_be_cancelled(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding, "STRETCH", 1)
    retry, backend = looking(small)
    async with retry:
        task = asyncio.ensure_future(backend.cids(Query()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(await backend.cids(Query())) == 60


async def test_looking_makes_no_file_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "retries.db"
    await make(path, waiting=1)
    for each in tmp_path.iterdir():
        if each != path:
            each.unlink()
    retry, backend = looking(path)
    async with retry:
        await retry.search()
        await backend.cids(Query())
        await backend.tally()
        await backend.examine(deep=True)
    assert {each.name for each in tmp_path.iterdir()} <= {
        "retries.db", "retries.db-wal", "retries.db-shm",  # SQLite's own
    }  # fmt: skip
