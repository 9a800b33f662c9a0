"""What is found out about a store without changing, making or holding up anything."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from store_help import Stage, ask, beside, command, environment, fill, make, reaches, tamper

from invoke_retry import InvokeRetry, ServiceRegistry
from invoke_retry.backends import Finding, SQLiteBackend
from invoke_retry.backends.sqlite import examination, files, schema
from invoke_retry.backends.sqlite.examination import has_reset_fault

WORKER = """
    import asyncio, sys
    from invoke_retry import InvokeRetry, ServiceRegistry

    async def main():
        services = ServiceRegistry()
        @services.service("elsewhere")
        async def elsewhere() -> None: ...
        async with InvokeRetry(services, backend="sqlite:///" + sys.argv[1]):
            print("ready", flush=True)
            await asyncio.Event().wait()

    asyncio.run(main())
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "retries.db"


async def examined(path: Path, *, deep: bool = False) -> list[Finding]:
    backend = SQLiteBackend(path, read_only=True)
    async with InvokeRetry(ServiceRegistry(), backend=backend, work=False):
        return await backend.examine(deep=deep)


async def about(path: Path, what: str, *, deep: bool = False) -> list[Finding]:
    return [each for each in await examined(path, deep=deep) if each.what == what]


async def one(path: Path, what: str, *, deep: bool = False) -> tuple[str, str]:
    (found,) = await about(path, what, deep=deep)
    return found.level, found.text


@contextmanager
def worker(path: Path) -> Generator[subprocess.Popen[str]]:
    """Another process that works on the store."""
    process = subprocess.Popen(
        command(WORKER, path), stdout=subprocess.PIPE, text=True, env=environment()
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


async def test_all_is_well(path: Path) -> None:
    await make(path)
    async with Stage().on(path):
        found = await examined(path, deep=True)
    assert {each.level for each in found} == {"ok"}, found
    assert [each.what for each in found] == [
        "file", "disk", "schema", "sqlite", "log", "lock", "workers", "stuck", "overdue",
        "paused", "parked", "dead", "integrity",
    ]  # fmt: skip
    text = {each.what: each.text for each in found}
    assert str(path) in text["file"]
    assert f"process {os.getpid()} (seat 0)" in text["workers"]
    assert "echo, fail, hold, tell" in text["workers"]


async def test_a_store_that_is_open_for_writing_examines_itself(path: Path) -> None:
    stage = Stage()
    retry = stage.on(path)
    async with retry:
        backend = retry._backend  # pyright: ignore[reportPrivateUsage]
        assert {each.level for each in await backend.examine()} == {"ok"}


async def test_a_store_for_one_process_only(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def why_alone(_: Path) -> str:
        return "it is a test"

    monkeypatch.setattr(files, "why_alone", why_alone)
    async with Stage().on(path) as retry:
        found = await retry._backend.examine(deep=True)  # pyright: ignore[reportPrivateUsage]
    assert {each.level for each in found} == {"ok"}, found
    assert beside(path) == [path]


async def test_looking_changes_and_makes_nothing(path: Path) -> None:
    await make(path, waiting=1)
    for each in beside(path):
        if each != path:
            each.unlink()
    before = path.read_bytes()
    await examined(path, deep=True)
    assert path.read_bytes() == before
    assert {each.name for each in beside(path)} <= {
        "retries.db", "retries.db-wal", "retries.db-shm",  # SQLite's own
    }  # fmt: skip


# The file.


async def test_others_may_read_it(path: Path) -> None:
    await make(path)
    path.chmod(0o644)
    level, text = await one(path, "file")
    assert level == "warning"
    assert f"chmod 600 {path}" in text


@pytest.mark.parametrize(("free", "level"), [(2**40, "ok"), (100 * 2**20, "warning"), (9, "bad")])
async def test_the_disk_is_nearly_full(
    path: Path, monkeypatch: pytest.MonkeyPatch, free: int, level: str
) -> None:
    await make(path)

    class Usage(NamedTuple):
        free: int

    def disk_usage(_: Path) -> Usage:
        return Usage(free)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    assert (await one(path, "disk"))[0] == level


async def test_a_newer_schema_that_can_be_read(path: Path) -> None:
    await make(path)
    tamper(path, f"PRAGMA user_version = {schema.VERSION + 1}")
    level, text = await one(path, "schema")
    assert (level, "upgrade" in text) == ("warning", True)


@pytest.mark.parametrize(
    ("version", "has"),
    [
        ((3, 6, 23), False), ((3, 7, 0), True), ((3, 40, 1), True), ((3, 44, 5), True),
        ((3, 44, 6), False), ((3, 45, 0), True), ((3, 50, 6), True), ((3, 50, 7), False),
        ((3, 51, 2), True), ((3, 51, 3), False), ((3, 52, 0), False), ((4, 0, 0), False),
    ],
)  # fmt: skip
def test_which_sqlite_has_the_reset_fault(version: tuple[int, int, int], has: bool) -> None:
    assert has_reset_fault(version) == has


async def test_the_fault_of_sqlite_is_told_and_harmless(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make(path)
    for version, told in (((3, 40, 1), True), ((3, 53, 0), False)):
        monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
        level, text = await one(path, "sqlite")
        assert (level, "harmless" in text) == ("ok", told)


async def test_a_long_log(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "_LONG_LOG", 1_000)
    async with Stage().on(path) as retry:
        await retry.invoke_async("fail", repeats=1, seconds=3_600)
        level, text = await one(path, "log")
    assert (level, "lsof" in text) == ("warning", True)


async def test_damage_is_found_where_everything_is_looked_at(path: Path) -> None:
    await make(path, waiting=30)
    tamper(path, "PRAGMA wal_checkpoint(TRUNCATE)")
    (page,) = tamper_page(path)
    with path.open("r+b") as file:
        file.seek(4_096 * (page - 1) + 8)
        file.write(b"\xff" * 64)
    found = await about(path, "integrity", deep=True)
    assert found[0].level == "bad"
    assert "restore" in found[0].text


def tamper_page(path: Path) -> tuple[int]:
    """The page where a table begins that nothing reads here."""
    (row,) = ask(path, "SELECT rootpage FROM sqlite_master WHERE name = 'request'")
    return (row[0],)


async def test_rows_that_somebody_has_spoilt(path: Path) -> None:
    await make(path, waiting=3)
    assert (await one(path, "integrity"))[0] == "ok"
    tamper(path, "UPDATE invocation SET state = 'nonsense' WHERE id = 2")
    tamper(path, "UPDATE invocation SET state = 'parked', parked_because = 'its row was spoilt' "
                 "WHERE id = 3")  # fmt: skip
    level, text = await one(path, "integrity")
    assert (level, text[:7]) == ("bad", "2 rows ")


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store as it is while an attempt runs, another waits, and a service is paused."""
    path = tmp_path_factory.mktemp("busy") / "retries.db"

    async def prepare() -> None:
        await make(path, waiting=1)
        async with Stage().on(path, grace=0) as retry:
            await retry.pause("echo")
            cid = await retry.invoke_async("hold", repeats=0, seconds=0)
            await reaches(retry, cid, "running")
            tamper(path, "VACUUM INTO ?", str(path.with_name("shot.db")))

    asyncio.run(prepare())
    return path.with_name("shot.db")


HOSTILE: list[Any] = ["'; DROP TABLE invocation; --", b"\xff\xfe", "\x1b[31m", -1, 1e300, ""]


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize(
    "place",
    [
        "worker SET services", "worker SET started_at", "invocation SET service",
        "invocation SET target", "invocation SET cid", "invocation SET attempt_at",
        "invocation SET due", "invocation SET owner", "paused SET since", "paused SET service",
        "meta SET value",
    ],
)  # fmt: skip
async def test_no_cell_stops_the_examination(
    busy: Path, path: Path, place: str, value: object
) -> None:
    shot = path.with_name("shot.db")
    shutil.copy(busy, shot)
    where = " WHERE name = 'oldest_reader'" if place.startswith("meta") else ""
    tamper(shot, f"UPDATE OR IGNORE {place} = ?{where}", value)
    found = await examined(shot)
    assert {"file", "workers", "stuck", "overdue", "paused", "dead"} <= {f.what for f in found}


# The processes.


async def test_processes_that_live_stop_and_die(path: Path) -> None:
    with worker(path) as process:
        assert await one(path, "lock") == ("ok", "was had after 0 ms")
        level, text = await one(path, "workers")
        assert (level, f"process {process.pid} " in text, "elsewhere" in text) == ("ok", True, True)
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        level, text = await one(path, "workers")
        assert (level, f"kill -CONT {process.pid}" in text) == ("bad", True)
        process.send_signal(signal.SIGCONT)
    dead, nobody = await about(path, "workers")
    assert (dead.level, "is dead" in dead.text) == ("warning", True)
    assert (nobody.level, nobody.text) == ("ok", "no process works, and nothing waits for one")


async def test_no_lock_is_kept_and_a_seat_can_be_taken(path: Path) -> None:
    with worker(path):
        pass
    await examined(path)
    for suffix in ("-lock", "-seat0"):
        with path.with_name(path.name + suffix).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with worker(path):
        assert "seat 0" in (await one(path, "workers"))[1]


async def test_a_lock_that_is_not_to_be_had(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "LOCK_SECONDS", 0.1)
    await make(path)
    with path.with_name("retries.db-lock").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        began = time.monotonic()
        level, text = await one(path, "lock")
        assert time.monotonic() - began < 5
    assert (level, "could not be had within 0.1 s" in text) == ("bad", True)


async def test_a_lock_file_that_was_deleted(path: Path) -> None:
    await make(path)
    path.with_name("retries.db-lock").unlink()
    assert (await one(path, "lock"))[0] == "ok"
    async with Stage().on(path):
        path.with_name("retries.db-lock").unlink()
        assert (await one(path, "lock"))[0] == "bad"
        path.with_name("retries.db-seat0").unlink()
        assert (await one(path, "workers"))[0] == "warning"


# The work.


async def test_work_without_a_process(path: Path) -> None:
    await make(path, waiting=2)
    level, text = await one(path, "workers")
    assert (level, "2 invocations wait" in text) == ("warning", True)
    assert (await one(path, "overdue"))[0] == "ok"
    tamper(path, "UPDATE invocation SET due = due - 7200")
    level, text = await one(path, "overdue")
    assert (level, "2 of fail are due" in text, "start one" in text) == ("bad", True, True)


async def test_work_that_nobody_has_begun(path: Path) -> None:
    stage = Stage()
    async with stage.on(path, max_running=1) as retry:
        await retry.invoke_async("hold", 1, repeats=0, seconds=0)
        await reaches(retry, await retry.invoke_async("hold", 2, repeats=0, seconds=0), "waiting")
        assert (await one(path, "overdue"))[0] == "ok"
        tamper(path, "UPDATE invocation SET due = due - 300")
        level, text = await one(path, "overdue")
        assert (level, "1 of hold are due, the first for 5 minutes" in text) == ("bad", True)
        await retry.pause("hold")
        assert (await one(path, "overdue"))[0] == "ok"
        assert (await one(path, "paused"))[0] == "warning"
        await retry.resume("hold")
        stage.gate.set()


async def test_only_some_of_many_late_services_are_named(path: Path) -> None:
    fill(path, 100)
    tamper(path, "UPDATE invocation SET service = 'svc.' || id, due = -1e6 WHERE due IS NOT NULL")
    late = await about(path, "overdue")
    assert [each.level for each in late] == ["bad"] * 6
    assert "15 other services" in late[-1].text


async def test_what_no_living_process_can_run(path: Path) -> None:
    await make(path, waiting=1)
    with worker(path):
        level, text = await one(path, "stuck")
    assert (level, "no process can run fail" in text) == ("bad", True)


async def test_what_a_dead_process_holds(busy: Path, path: Path) -> None:
    shot = path.with_name("shot.db")
    shutil.copy(busy, shot)
    shot.with_name("shot.db-seat0").touch()
    level, text = await one(shot, "stuck")
    assert (level, "1 are held by a process that is gone" in text) == ("warning", True)


async def test_an_attempt_of_more_than_an_hour(path: Path) -> None:
    stage = Stage()
    async with stage.on(path) as retry:
        cid = await retry.invoke_async("hold", repeats=0, seconds=0)
        await reaches(retry, cid, "running")
        tamper(path, "UPDATE invocation SET attempt_at = attempt_at - 3601")
        level, text = await one(path, "stuck")
        stage.gate.set()
    assert (level, str(cid) in text) == ("warning", True)


async def test_what_is_kept(path: Path) -> None:
    fill(path, 50)
    tamper(path, "UPDATE invocation SET state = 'parked' WHERE state = 'waiting'")
    assert [await one(path, what) for what in ("parked", "dead")] == [
        ("warning", "10 cannot run and wait for what they miss; see why (parked_because), and "
                    "start a process that can run them"),
        ("warning", "the callbacks of 10 gave up; mend them and redeliver"),
    ]  # fmt: skip


async def test_many_rows_take_no_time(path: Path) -> None:
    fill(path, 50_000)
    began = time.perf_counter()
    await examined(path)
    assert time.perf_counter() - began < 2
