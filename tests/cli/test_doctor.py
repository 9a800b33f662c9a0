"""`doctor`: whether all is well, for people, for scripts, and where the store was spoilt."""

from __future__ import annotations

import asyncio
import fcntl
import re
import sqlite3
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
from cli_help import (
    SECRET,
    ask,
    coordinator,
    make_varied,
    multiply,
    run,
    run_outside,
    terminal,
    told,
    varied,
)

from invoke_retry.backends.sqlite import examination

ALL = [
    "file", "disk", "schema", "sqlite", "log", "lock", "workers", "stuck", "overdue", "paused",
    "parked", "dead", "integrity",
]  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the store is."""
    return tmp_path / "retries.db"


def of(data: Any, what: str) -> tuple[str, str]:
    """Level and text of the first finding of that name."""
    found = next(each for each in data["findings"] if each["what"] == what)
    assert set(found) == {"level", "what", "text"}
    return found["level"], found["text"]


def shown(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r\n", "\n")


async def test_all_is_well_while_a_process_works(path: Path) -> None:
    async with coordinator(path):
        data = await asyncio.to_thread(told, "doctor", "--deep", store=path)
        done = await asyncio.to_thread(run, "doctor", store=path)
    assert data["ok"] is True
    assert [each["what"] for each in data["findings"]] == ALL
    assert {each["level"] for each in data["findings"]} == {"ok"}
    assert (done.code, done.err) == (0, "all is well\n")
    rows = [line.split("\t") for line in done.out.splitlines()]
    assert rows[0] == ["level", "what", "text"]
    assert [row[1] for row in rows[1:]] == ALL


def test_an_empty_store(path: Path) -> None:
    async def make() -> None:
        async with coordinator(path):
            pass

    asyncio.run(make())
    assert told("doctor", store=path)["ok"] is True
    assert run("doctor", store=path).code == 0


def test_what_a_person_should_look_at(path: Path) -> None:
    varied(path)
    path.chmod(0o640)
    assert run("pause", "echo", store=path).code == 0
    data = told("doctor", store=path, code=1)
    assert data["ok"] is False
    levels = {each["what"]: each["level"] for each in data["findings"]}
    assert {what for what, level in levels.items() if level == "warning"} == {
        "file", "workers", "paused", "dead",
    }  # fmt: skip
    assert "chmod 600" in of(data, "file")[1]
    assert "the service echo is paused since 20" in of(data, "paused")[1]
    assert run("doctor", store=path).err == "4 to look at\n"


async def test_what_is_overdue_and_what_nobody_can_run(path: Path) -> None:
    await make_varied(path)
    ask(path, "UPDATE invocation SET due = due - 9000 WHERE state = 'waiting'")
    data = await asyncio.to_thread(told, "doctor", store=path, code=1)
    level, text = of(data, "overdue")
    assert (level, text[:17]) == ("bad", "1 of fail are due")
    done = await asyncio.to_thread(run, "doctor", store=path)
    assert done.err == "1 bad, 2 to look at\n"


def test_a_lock_that_somebody_keeps(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    varied(path)
    monkeypatch.setattr(examination, "LOCK_SECONDS", 0.1)
    with path.with_name("retries.db-lock").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        level, text = of(told("doctor", store=path, code=1), "lock")
    assert (level, "fuser" in text) == ("bad", True)


def test_a_store_that_cannot_be_opened(path: Path) -> None:
    for content in (None, b"no database" * 1_000):
        if content is not None:
            path.write_bytes(content)
        assert told("doctor", store=path, code=3)["kind"] == "store"
        done = run("doctor", store=path)
        assert (done.code, done.out) == (3, "")
        assert done.err.startswith("invoke-retry: ")
        assert str(path) in done.err
    assert told("doctor", store="memory://", code=2)["kind"] == "usage"


def test_a_damaged_file(path: Path) -> None:
    varied(path)
    multiply(path, 2_000)
    ask(path, "PRAGMA wal_checkpoint(TRUNCATE)")
    (root,) = ask(path, "SELECT rootpage FROM sqlite_master WHERE name = 'attempt'")[0]
    with path.open("r+b") as file:
        file.seek(4_096 * (root - 1) + 100)
        file.write(b"\xff" * 3_000)
    data = told("doctor", "--deep", store=path, code=1)
    level, text = of(data, "integrity")
    assert (level, "restore" in text) == ("bad", True)


def test_looking_leaves_no_file(path: Path) -> None:
    varied(path)
    for each in path.parent.iterdir():
        if each != path:
            each.unlink()
    before = path.read_bytes()
    run("doctor", "--deep", store=path)
    assert path.read_bytes() == before
    assert {each.name for each in path.parent.iterdir()} <= {
        "retries.db", "retries.db-wal", "retries.db-shm",  # SQLite's own
    }  # fmt: skip


def test_on_a_terminal_all_of_each_text_is_shown(path: Path) -> None:
    varied(path)
    for columns in (40, 80, 200):
        with terminal("doctor", "--deep", store=path, columns=columns) as screen:
            done = screen.ended()
            assert done.code == 1
            lines = shown(done.out).splitlines()
            assert max(map(len, lines)) <= columns
            assert "…" not in done.out
            assert "to look at" in done.out
            assert re.search(r"\x1b\[[0-9;]*33m", done.out)
    with terminal("doctor", store=path, NO_COLOR="1") as screen:
        assert not re.search(r"\x1b\[[0-9;]*3[1-6]m", screen.ended().out)


def test_many_invocations(path: Path) -> None:
    varied(path)
    multiply(path, 100_000)
    began = perf_counter()
    data = told("doctor", store=path, code=1)
    assert perf_counter() - began < 5  # 0.1 s where nothing else runs
    assert [each["what"] for each in data["findings"]] == ALL


# Hostile rows.

ACTING = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202eevil\r[bold red]markup[/]"
SPOILS: dict[str, Any] = {
    "text": ACTING,
    "secret": f"password={SECRET}",
    "blob": b"\xff\xfe\x00",
    "number": 2**62,
    "negative": -1,
    "infinite": float("inf"),
    "null": None,
    "long": "x" * 1_000_000,
    "a list": f'["{SECRET}", "token={SECRET}", 5, null]',
    "a deep list": "[" * 100_000,
}
CELLS = (
    "worker SET pid", "worker SET services", "worker SET started_at", "worker SET beat",
    "paused SET service", "paused SET since", "total SET number", "total SET state",
    "invocation SET service", "invocation SET target", "invocation SET cid",
    "invocation SET state", "invocation SET owner", "invocation SET due",
    "invocation SET attempt_at", "invocation SET parked_because", "meta SET value",
)  # fmt: skip


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A store as it is while an attempt runs, and a service is paused."""
    path = tmp_path_factory.mktemp("busy") / "retries.db"

    async def prepare() -> None:
        await make_varied(path)
        async with coordinator(path, grace=0) as retry:
            await retry.pause("echo")
            cid = await retry.invoke_async("hold", repeats=0, seconds=0)
            async with asyncio.timeout(20):
                while (await retry.get(cid)).state != "running":  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            ask(path, "UPDATE invocation SET attempt_at = 0 WHERE state = 'running'")
            ask(path, "VACUUM INTO ?", str(path.with_name("shot.db")))

    asyncio.run(prepare())
    return path.with_name("shot.db").read_bytes()


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("cell", CELLS)
def test_no_cell_acts_or_stops_it(busy: bytes, path: Path, cell: str, spoil: str) -> None:
    path.write_bytes(busy)
    with suppress(sqlite3.IntegrityError):  # what the schema itself refuses
        ask(path, f"UPDATE OR IGNORE {cell} = ?", SPOILS[spoil])
    for arguments in (["doctor", "--json"], ["doctor", "--deep"]):
        done = run(*arguments, store=path)
        assert done.code in (1, 3), done  # 3: times that are damaged make it unusable
        for each in ("\x1b", "\x9b", "\u202e", "\x07", "\r", f"={SECRET}"):
            assert each not in done.out + done.err


def test_hostile_text_acts_on_no_terminal(busy: bytes, path: Path) -> None:
    path.write_bytes(busy)
    ask(path, "UPDATE paused SET service = ?", ACTING)
    ask(path, "UPDATE invocation SET target = ?, service = ?", ACTING, ACTING)
    with terminal("doctor", store=path, columns=400) as screen:
        done = screen.ended()
    assert done.code == 1
    for each in ("\x1b]", "\x1b[2J", "\x9b", "\u202e", "\x07", "\r["):
        assert each not in done.out
    assert "[bold red]markup[/]" in shown(done.out)


def test_as_a_process(path: Path) -> None:
    varied(path)
    done = run_outside("doctor", store=path)
    assert done.code == 1
    assert done.out.startswith("level\twhat\ttext\n")
