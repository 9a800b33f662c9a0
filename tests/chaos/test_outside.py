"""Somebody else's SQLite connection on the store, and callers that are cancelled meanwhile."""

import asyncio
import fcntl
import sqlite3
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from invoke_retry import BackendError, CorrelationId, InvocationNotFound, InvokeRetry
from invoke_retry.backends.sqlite import backend

from .children import until
from .journal import Journal
from .store import coordinator, submitting, told_of
from .tasks import POLICY, Task

CALLERS = 200

HOLDER = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=5)
db.execute("BEGIN IMMEDIATE")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
db.execute("COMMIT")
"""


@contextmanager
def write_lock(store: Path, seconds: float) -> Generator[None]:
    """Another program holds SQLite's own lock; on the way out it has let go of it."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(store), str(seconds)], stdout=subprocess.PIPE
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            yield
            assert holder.wait(30) == 0
        finally:
            holder.kill()


async def accept(retry: InvokeRetry, cid: CorrelationId, after: float = 0) -> None:
    await asyncio.sleep(after)
    await retry.invoke_async(
        "work", Task(), policy=POLICY, callback="told", context={"cid": cid}, cid=cid
    )


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_callers_are_cancelled_while_the_store_is_locked(tmp_path: Path, seed: int) -> None:
    """A5: each is wholly stored or wholly absent, and no transaction is left open."""
    journal, chance, store = Journal(tmp_path / "journal"), Random(seed), tmp_path / "retries.db"
    loop = asyncio.get_running_loop()
    async with coordinator(tmp_path) as retry:
        cids = [retry.new_cid() for _ in range(CALLERS)]
        with write_lock(store, 0.3):
            tasks = {
                cid: asyncio.create_task(accept(retry, cid, chance.uniform(0, 0.3))) for cid in cids
            }
            for cid in cids[: CALLERS - 20]:
                loop.call_later(chance.uniform(0, 0.4), tasks[cid].cancel)
            await asyncio.wait(tasks.values())
        check_that_it_can_be_written(store)
        stored: set[CorrelationId] = set()
        for cid, task in tasks.items():
            try:
                found = await retry.get(cid)
            except InvocationNotFound:
                assert task.cancelled()
                continue
            assert (found.context, found.payload) == ({"cid": cid}, Task().model_dump())
            assert task.cancelled() or task.exception() is None
            stored.add(cid)
        assert len(stored) < CALLERS
        assert stored >= set(cids[CALLERS - 20 :])
        await until(lambda: set(told_of(journal)) == stored)
    check_bodies(store, len(stored))
    assert all(len(told) == 1 for told in told_of(journal).values())


def check_that_it_can_be_written(store: Path) -> None:
    """A fresh connection can, within a second."""
    db = sqlite3.connect(store, isolation_level=None, timeout=1)
    try:
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE meta SET value = value")
        db.execute("COMMIT")
    finally:
        db.close()


def check_bodies(store: Path, number: int) -> None:
    """There is all of each invocation, and nothing of any other."""
    db = sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True)
    try:
        found = [
            db.execute(f"SELECT count(*), count(invocation.id) {joined}").fetchone()
            for joined in (
                "FROM request LEFT JOIN invocation USING (id) WHERE payload NOT NULL",
                "FROM request LEFT JOIN invocation USING (id) WHERE context NOT NULL",
                "FROM response LEFT JOIN invocation USING (id)",
            )
        ]
        (rows,) = db.execute("SELECT count(*) FROM invocation").fetchone()
    finally:
        db.close()
    assert rows == number
    assert found == [(number, number)] * 3


async def test_a_lock_that_is_held_too_long_is_an_error_and_passes(tmp_path: Path) -> None:
    """Longer than SQLite's patience: callers are told, and all is well again afterwards."""
    store = tmp_path / "retries.db"
    async with submitting(tmp_path) as retry:
        cid = retry.new_cid()
        with write_lock(store, 6), pytest.raises(BackendError, match="locked"):
            await accept(retry, cid)
        with pytest.raises(InvocationNotFound):
            await retry.get(cid)
        await accept(retry, cid)
        assert (await retry.get(cid)).state == "waiting"


async def test_health_tells_of_a_process_that_is_stopped_within_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can write meanwhile, and nothing but its end or its going on can mend that."""
    monkeypatch.setattr(backend, "_STUCK_SECONDS", 0.3)
    async with coordinator(tmp_path) as retry:
        with (tmp_path / "retries.db-lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            accepting = asyncio.create_task(accept(retry, retry.new_cid()))
            await until(lambda: not retry.health().ok)
            assert "holds its lock" in (retry.health().problem or "")
            assert not accepting.done()
        await accepting
        await until(lambda: retry.health().ok)
