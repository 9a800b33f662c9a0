"""B6: what waits for next week costs neither memory nor a long start."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest
from store_help import Stage, ask, reaches, run

from invoke_retry import CorrelationId
from invoke_retry.backends.sqlite.rows import COLUMNS, KEPT, READY, SPOILT

MANY = 200_000

OPEN = """
import asyncio, os, sys, time
from invoke_retry import CallbackPayload, InvokeRetry, ServiceRegistry
from invoke_retry.backends import SQLiteBackend

services = ServiceRegistry()

@services.service("fail")
async def fail(n: object = None) -> None:
    print("called too early")
    raise ValueError

@services.service("echo")
async def echo(n: int) -> int:
    return n

@services.service("tell")
async def tell(outcome: CallbackPayload) -> None:
    pass

def kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

async def enter(path):
    began = time.monotonic()
    async with InvokeRetry(services, backend=SQLiteBackend(path)) as retry:
        opened = time.monotonic() - began
        for n in range(20):
            cid = await retry.invoke_async("echo", n, repeats=0, seconds=0, callback="tell")
            await asyncio.wait_for(retry.wait(cid), 60)
        while not retry._backend._working._upkeep._known:  # what is done from time to time was done
            await asyncio.sleep(0.01)
        await retry.search(state="waiting", limit=10)
        counts = await retry.counts()
        return opened, counts["waiting"]

asyncio.run(enter(sys.argv[2]))  # all that is imported and cached is there by now
before = kib()
opened, waiting = asyncio.run(enter(sys.argv[1]))
print(waiting, opened, (kib() - before) // 1024)
"""


async def first(path: Path) -> None:
    async with Stage().on(path) as retry:
        cid = await retry.invoke_async(
            "fail", "x" * 100, repeats=3, seconds=7 * 86_400, callback="tell", context={"n": 1}
        )
        await reaches(retry, cid, "waiting")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with many that wait for next week; all but the first are written by SQL."""
    path = tmp_path_factory.mktemp("many") / "retries.db"
    asyncio.run(first(path))
    names = ", ".join(COLUMNS.split(", ")[2:])  # all but id and cid
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA synchronous = OFF")
        db.executemany(
            f"INSERT INTO invocation (cid, {names}) SELECT ?, {names} FROM invocation WHERE id = 1",
            ((CorrelationId.from_key(f"number {n}"),) for n in range(1, MANY)),
        )
        for table in ("request", "response", "attempt"):
            rest = [name for _, name, *_ in db.execute(f"PRAGMA table_info({table})")][1:]
            db.execute(
                f"INSERT INTO {table} SELECT i.id, {', '.join(f'one.{name}' for name in rest)} "
                f"FROM invocation AS i, {table} AS one WHERE i.id > 1 AND one.id = 1"
            )
        db.execute("UPDATE total SET number = ? WHERE state = 'waiting'", (MANY,))
        db.commit()
    return path


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_opening_and_working_beside_many_that_wait(full: Path) -> None:
    waiting, opened, mib = map(float, run(OPEN, full, full.with_name("small.db")).split())
    assert waiting == MANY
    assert mib < 50
    assert opened < 60  # 5 s are wanted; this only tells a look at every row from none


def test_what_is_looked_for_is_found_by_an_index(full: Path) -> None:
    """No look at every row, whatever is due: the plans of the statements say so."""
    for condition in (
        f"service = 'fail' AND {READY} AND due <= 1 ORDER BY due",
        f"{KEPT} AND due <= 1",
        SPOILT,
        "deadline IS NOT NULL AND deadline <= 1",
        "state = 'parked' AND service = 'fail' AND due < 1",
        "owner = 0",
        "owner IS NOT NULL AND owner NOT IN (SELECT seat FROM worker)",
        "cid = 'x'",
    ):
        plan = ask(full, f"EXPLAIN QUERY PLAN SELECT {COLUMNS} FROM invocation WHERE {condition}")
        steps = [step for *_, step in plan if "invocation" in step]
        assert steps, plan
        assert all("USING INDEX" in step for step in steps), (condition, steps)
