"""D10, D13: a reader that stays keeps the log growing, and no longer than it stays."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from store_help import Stage, ask, command, counted, environment, totals, until

from invoke_retry import InvokeRetry
from invoke_retry.backends.sqlite import schema, writer

LIMIT, WARN = 256 * 1024, 1024 * 1024


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "retries.db"


@pytest.fixture
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "WAL_LIMIT", LIMIT)
    monkeypatch.setattr(writer, "_LONG_LOG", WARN)


async def many(retry: InvokeRetry, number: int) -> None:
    """That many invocations, accepted and finished."""
    before = (await retry.counts())["succeeded"]
    for _ in range(0, number, 100):
        async with asyncio.TaskGroup() as group:
            for _ in range(100):
                group.create_task(
                    retry.invoke_async("echo", "x" * 500, repeats=0, seconds=0, callback="tell")
                )
    async with asyncio.timeout(60):
        while (await retry.counts())["succeeded"] < before + number:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_the_log_is_brought_in_when_a_reader_leaves(
    path: Path, low_limits: None, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings() -> list[str]:
        return [each for each in caplog.messages if "a reader" in each]

    async with Stage().on(path) as retry:
        await many(retry, 100)
        began = time.monotonic()
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            (seen,) = reader.execute("SELECT count(*) FROM invocation").fetchone()
            await many(retry, 2_000)
            assert schema.wal_size(path) > WARN
            await until(lambda: bool(warnings()))
            assert str(path) in warnings()[0]
            assert reader.execute("SELECT count(*) FROM invocation").fetchone() == (seen,)
            reader.execute("COMMIT")
        await until(lambda: schema.wal_size(path) <= LIMIT)
        assert len(warnings()) <= 1 + (time.monotonic() - began) // 10
        await many(retry, 100)
        assert totals(path) == counted(path) == {"succeeded": 2_200}
    assert not schema.wal_size(path)
    assert ask(path, "PRAGMA integrity_check") == [("ok",)]


async def test_without_a_reader_the_log_stays_short(path: Path, low_limits: None) -> None:
    longest = 0
    async with Stage().on(path) as retry:
        for _ in range(10):
            await many(retry, 200)
            longest = max(longest, schema.wal_size(path))
        await until(lambda: schema.wal_size(path) <= LIMIT)
    assert longest < 16 * LIMIT


async def test_our_own_questions_hold_no_snapshot(path: Path, low_limits: None) -> None:
    async with Stage().on(path) as retry, Stage().on(path, work=False) as asking:
        await many(retry, 500)
        await asking.search(limit=500)
        await asking.counts()
        await many(retry, 500)
        await until(lambda: schema.wal_size(path) <= LIMIT)


WRITER = """
import asyncio, sys
from invoke_retry import CallbackPayload, InvokeRetry, ServiceRegistry
from invoke_retry.backends import SQLiteBackend
from invoke_retry.backends.sqlite import schema

schema.WAL_LIMIT = 64 * 1024
services = ServiceRegistry()

@services.service("echo")
async def echo(n: int) -> int:
    return n

@services.service("tell")
async def tell(outcome: CallbackPayload) -> None:
    pass

async def main():
    async with InvokeRetry(services, backend=SQLiteBackend(sys.argv[1])) as retry:
        for _ in range(20):
            async with asyncio.TaskGroup() as group:
                for n in range(25):
                    group.create_task(
                        retry.invoke_async("echo", n, repeats=0, seconds=0, callback="tell")
                    )

asyncio.run(main())
"""


async def test_the_file_is_whole_after_concurrent_writing(path: Path) -> None:
    async with Stage().on(path) as retry:
        writers = [
            await asyncio.create_subprocess_exec(*command(WRITER, path), env=environment())
            for _ in range(3)
        ]
        await many_more(retry, writers)
        async with asyncio.timeout(60):
            assert [await each.wait() for each in writers] == [0, 0, 0]
            while (await retry.counts())["succeeded"] < 1_500:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    assert ask(path, "PRAGMA integrity_check") == [("ok",)]
    assert totals(path) == counted(path)
    assert ask(path, "SELECT count(*) FROM worker") == [(0,)]
    for table in ("request", "response", "attempt"):
        assert ask(
            path, f"SELECT count(*) FROM {table} WHERE id NOT IN (SELECT id FROM invocation)"
        ) == [(0,)]


async def many_more(retry: InvokeRetry, writers: list[asyncio.subprocess.Process]) -> None:
    """Write along as long as the others do."""
    while any(each.returncode is None for each in writers):
        await retry.invoke_async("echo", 1, repeats=0, seconds=0, callback="tell")
        await asyncio.sleep(0)
