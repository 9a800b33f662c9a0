"""The SQLite store with a sync for each commit: how much it accepts and runs, and what it holds.

    python -m benchmarks.sqlite process FILE SECONDS
    python -m benchmarks.sqlite start FILE

are the processes that the shared file and the start are measured with.
"""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.background import CONTEXT, PAYLOAD, Inbox, deliver
from benchmarks.machine import missing
from benchmarks.rows import Budget, Row, Section, short_of_full
from benchmarks.size import resident_bytes
from benchmarks.timing import rates
from invoke_retry import InvokeRetry, ServiceRegistry
from invoke_retry.backends import SQLiteBackend

ACCEPT, CALLED_BACK = "accept", "accept to callback"
PACKAGES = ("invoke-retry", "aiosqlite", "huey", "SQLite")
IN_FLIGHT = 50
ROUND = 1_000
PROCESS_SECONDS = 4.0

Rate = Callable[[Path, int], Awaitable[float]]
"""How many a second, of so many, on a file in that folder."""


def coordinator(file: Path, inbox: Inbox, *, work: bool = True) -> InvokeRetry:
    services = ServiceRegistry()
    services.register("deliver", deliver)
    services.register("take", inbox.take)
    return InvokeRetry(services, backend=SQLiteBackend(file), work=work)


async def submit(retry: InvokeRetry) -> None:
    await retry.invoke_async(
        "deliver", PAYLOAD, repeats=3, seconds=1, callback="take", context=CONTEXT
    )


async def in_flight(number: int, one: Callable[[], Awaitable[object]]) -> float:
    """How many a second, with so many awaited at once."""
    left = iter(range(number))

    async def caller() -> None:
        for _ in left:
            await one()

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(caller())
    return number / (time.perf_counter() - began)


async def accepted(folder: Path, number: int) -> float:
    async with coordinator(folder / "accepted.db", Inbox(), work=False) as retry:
        return await in_flight(number, lambda: submit(retry))


async def called_back(folder: Path, number: int) -> float:
    inbox = Places(IN_FLIGHT)
    async with coordinator(folder / "called_back.db", inbox) as retry:
        return await told(retry, inbox, number)


async def told(retry: InvokeRetry, inbox: Places, number: int) -> float:
    """How many per second are accepted, run and told of."""

    async def one() -> None:
        await inbox.free.acquire()
        await submit(retry)

    inbox.expected = number
    began = time.perf_counter()
    await in_flight(number, one)
    await inbox.complete.wait()
    return number / (time.perf_counter() - began)


class Places(Inbox):
    """An inbox that has so many invocations under way."""

    def __init__(self, places: int) -> None:
        super().__init__()
        self.free = asyncio.Semaphore(places)

    async def take(self, outcome: dict[str, Any]) -> None:
        self.free.release()
        await super().take(outcome)


async def inserted_by_aiosqlite(folder: Path, number: int) -> float:
    aiosqlite: Any = import_module("aiosqlite")
    async with aiosqlite.connect(folder / "aiosqlite.db", isolation_level=None) as db:
        await db.execute("PRAGMA journal_mode = WAL")
        await db.execute("PRAGMA synchronous = FULL")
        await db.execute("CREATE TABLE job (id INTEGER PRIMARY KEY, payload TEXT, context TEXT)")
        values = json.dumps(PAYLOAD), json.dumps(CONTEXT)
        insert = "INSERT INTO job (payload, context) VALUES (?, ?)"
        return await in_flight(number, lambda: db.execute(insert, values))


async def enqueued_by_huey(folder: Path, number: int) -> float:
    huey: Any = import_module("huey").SqliteHuey(filename=str(folder / "huey.db"), fsync=True)
    task = huey.task()(_enqueued)
    began = time.perf_counter()
    for _ in range(number):
        task(PAYLOAD)
    return number / (time.perf_counter() - began)


def _enqueued(order: dict[str, Any]) -> dict[str, Any]:
    return order


async def in_a_folder(case: Rate) -> float:
    with tempfile.TemporaryDirectory() as folder:
        return await case(Path(folder), ROUND)


def together(processes: int) -> float:
    """Callbacks a second of so many processes on one file."""
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "shared.db")
        command = [sys.executable, "-m", "benchmarks.sqlite", "process", file, str(PROCESS_SECONDS)]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(processes)]
        return sum(float(process.communicate()[0]) for process in running)


async def busy(file: Path, seconds: float) -> float:
    """One of several processes: accept and run for a while."""
    inbox = Places(IN_FLIGHT)
    async with coordinator(file, inbox) as retry:
        inbox.expected = sys.maxsize
        began = time.perf_counter()

        async def caller() -> None:
            while time.perf_counter() < began + seconds:
                await inbox.free.acquire()
                await submit(retry)

        async with asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT):
                group.create_task(caller())
    return (sys.maxsize - inbox.expected) / (time.perf_counter() - began)


async def fill(file: Path, number: int) -> None:
    """Have one accepted, due in a year, and write it again and again."""
    import sqlite3

    async with coordinator(file, Inbox(), work=False) as retry:
        await submit(retry)
    with sqlite3.connect(file) as db:
        names: list[str] = [row[1] for row in db.execute("PRAGMA table_info (invocation)")]
        changed = {"id": "n", "cid": "substr(cid, 1, 3) || printf('%025d', n)", "due": "due + 3e7"}
        columns = ", ".join(changed.get(name, name) for name in names)
        numbers = (
            f"WITH RECURSIVE c(n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM c WHERE n <= {number})"
        )
        db.execute(
            f"{numbers} INSERT INTO invocation SELECT {columns} FROM c, invocation WHERE id = 1"
        )
        db.execute(
            f"{numbers} INSERT INTO request SELECT n, payload, context FROM c, request WHERE id = 1"
        )
        db.execute("UPDATE total SET number = (SELECT count(*) FROM invocation)")
        db.execute("DELETE FROM invocation WHERE id = 1")
    db.close()


async def start(file: Path) -> tuple[float, float]:
    """Seconds and bytes until a coordinator has opened a store, and done something with it."""
    before = resident_bytes()
    began = time.perf_counter()
    async with coordinator(file, Inbox()) as retry:
        await submit(retry)
        took = time.perf_counter() - began
        await asyncio.sleep(3)  # what comes later takes memory, too
        return took, resident_bytes() - before


def started(number: int) -> tuple[float, float]:
    """Seconds and bytes of a start with so many stored."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "full.db"
        asyncio.run(fill(file, number))
        command = [sys.executable, "-m", "benchmarks.sqlite", "start", str(file)]
        output = subprocess.run(command, check=True, capture_output=True).stdout
    took, grown = json.loads(output)
    return took, grown


def sqlite(rounds: int, number: int) -> Section:
    cases: dict[str, Rate] = {ACCEPT: accepted, CALLED_BACK: called_back}
    peers = {"aiosqlite": inserted_by_aiosqlite, "huey": enqueued_by_huey}
    cases |= {name: case for name, case in peers.items() if not missing(name)}
    in_folders = {name: partial(in_a_folder, case) for name, case in cases.items()}
    found = asyncio.run(rates(in_folders, rounds))
    took, grown = started(number)
    note = short_of_full(number)
    return Section(
        "sqlite",
        f"SQLite with a sync for each commit, {IN_FLIGHT} in flight",
        PACKAGES,
        [
            found.row(
                "accept / aiosqlite's awaited single inserts", ACCEPT, "aiosqlite",
                Budget(">=", 2), beside=peers,
            ),
            found.row(
                "accept to callback / accept", CALLED_BACK, ACCEPT, Budget(">=", 1 / 3),
                beside=[ACCEPT],
            ),
            Row(f"start with {number:,} stored", "s", [took], Budget("<=", 5), note),
            Row(
                f"memory of a start with {number:,} stored", "MB", [grown / 1e6], Budget("<=", 50),
                note,
            ),
            *(
                Row(f"accept to callback, processes: {count}", "/s", [together(count)])
                for count in (1, 2, 4)
            ),
        ],
    )  # fmt: skip


def main(what: str, file: str, *rest: str) -> None:
    logging.disable(logging.CRITICAL)
    if what == "process":
        print(asyncio.run(busy(Path(file), float(rest[0]))))
    else:
        print(json.dumps(asyncio.run(start(Path(file)))))


if __name__ == "__main__":
    main(*sys.argv[1:])
