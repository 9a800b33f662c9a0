"""The file: how it is made, what is refused in its place, and that it is left as it was."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from store_help import Stage, ask, beside, command, environment, make, refused

from invoke_retry import BackendError
from invoke_retry.backends import SQLiteBackend
from invoke_retry.clock import SYSTEM_CLOCK


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "retries.db"


# Made.


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
async def test_everything_is_readable_by_its_owner_only(path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        async with Stage().on(path) as retry:
            await retry.invoke_async("fail", "private", repeats=1, seconds=3_600)
            names = {each.name.removeprefix(path.name) for each in beside(path)}
            assert names == {"", "-wal", "-shm", "-lock", "-seat0"}
            modes = {each.name: oct(stat.S_IMODE(each.stat().st_mode)) for each in beside(path)}
            assert set(modes.values()) == {"0o600"}, modes
    finally:
        os.umask(before)
    assert {stat.S_IMODE(each.stat().st_mode) for each in beside(path)} == {0o600}


async def test_a_second_process_sits_on_a_private_seat_of_its_own(path: Path) -> None:
    async with Stage().on(path), Stage().on(path):
        seats = [each for each in beside(path) if "-seat" in each.name]
        assert [each.name for each in seats] == ["retries.db-seat0", "retries.db-seat1"]
        assert {stat.S_IMODE(each.stat().st_mode) for each in seats} == {0o600}


async def test_an_empty_file_is_taken_and_keeps_its_mode(path: Path) -> None:
    path.touch(0o640)
    path.chmod(0o640)
    await make(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert ask(path, "SELECT count(*) FROM invocation") == [(1,)]


async def test_a_file_whose_maker_was_killed_before_it_was_filled_is_taken(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
    assert path.stat().st_size > 0
    await make(path)
    assert ask(path, "SELECT count(*) FROM invocation") == [(1,)]


async def test_what_was_written_is_there_when_it_is_opened_again(path: Path) -> None:
    await make(path, waiting=3)
    async with Stage().on(path) as retry:
        counts = await retry.counts()
    assert (counts["succeeded"], counts["waiting"]) == (1, 3)


# Refused in its place.


async def test_a_damaged_file_of_which_sqlite_says_what_is_no_text(path: Path) -> None:
    await make(path)
    data = path.read_bytes()
    assert b"CREATE TABLE invocation" in data
    path.write_bytes(data.replace(b"CREATE TABLE invocation", b"CREA\xbeE TABLE invocation"))
    assert "malformed" in await refused(path)


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-lock", "-seat0"])
async def test_a_symlink_is_refused(path: Path, suffix: str) -> None:
    aim = path.parent / "aim"
    aim.write_bytes(b"" if suffix != "" else b"precious")
    link = Path(f"{path}{suffix}")
    link.symlink_to(aim)
    with pytest.raises(BackendError, match=r"retries\.db"):
        async with Stage().on(path):
            raise AssertionError("entered")
    assert link.is_symlink()
    assert aim.read_bytes() == (b"" if suffix != "" else b"precious")


async def test_a_dangling_symlink_is_refused(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")
    assert "symlink" in await refused(path)
    assert not (path.parent / "nowhere").exists()


async def test_a_symlink_on_the_way_to_it_is_none_of_our_business(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    await make(tmp_path / "link" / "retries.db")
    assert (tmp_path / "real" / "retries.db").is_file()


async def test_a_missing_directory(tmp_path: Path) -> None:
    path = tmp_path / "not" / "there" / "retries.db"
    assert "create it first" in await refused(path)
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize("suffix", ["", "-wal", "-lock"])
async def test_a_directory(path: Path, suffix: str) -> None:
    Path(f"{path}{suffix}").mkdir()
    assert "not a regular file" in await refused(path)


@pytest.mark.parametrize("read_only", [False, True])
async def test_a_path_that_cannot_be_looked_at(tmp_path: Path, read_only: bool) -> None:
    path = tmp_path / ("x" * 5_000)
    with pytest.raises(BackendError, match="cannot be looked at: File name too long"):
        await SQLiteBackend(path, read_only=read_only).open(SYSTEM_CLOCK, None)


async def test_a_pipe_is_refused_and_not_waited_for(path: Path) -> None:
    os.mkfifo(path)
    assert "not a regular file" in await refused(path)


async def test_a_file_in_place_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    assert "no directory" in await refused(tmp_path / "file" / "retries.db")


AS_SOMEBODY_ELSE = """
import asyncio, os, sys
from invoke_retry import BackendError, InvokeRetry, ServiceRegistry
from invoke_retry.backends import SQLiteBackend

async def enter(path):
    try:
        async with InvokeRetry(ServiceRegistry(), backend=SQLiteBackend(path)):
            print("entered", path)
    except BackendError as error:
        print(error)

asyncio.run(enter(sys.argv[2]))  # all is imported by now: others may not read the package
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
asyncio.run(enter(sys.argv[1]))
"""


@pytest.mark.parametrize(("mode", "of_folder"), [(0o000, 0o777), (0o400, 0o777), (0o600, 0o555)])
async def test_what_may_not_be_read_or_written(mode: int, of_folder: int, path: Path) -> None:
    await make(path)
    with tempfile.TemporaryDirectory() as name:  # the folders of tmp_path are their owner's only
        folder = Path(name)
        there = folder / "retries.db"
        there.write_bytes(path.read_bytes())
        if os.geteuid() == 0:
            os.chown(there, 65534 if mode == 0o600 else 0, 65534 if mode == 0o600 else 0)
        there.chmod(mode)
        folder.chmod(of_folder)
        done = subprocess.run(
            command(AS_SOMEBODY_ELSE, there, warm := path.with_name("warm.db")),
            capture_output=True, text=True, timeout=60, check=False, env=environment(),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        first, second = done.stdout.splitlines()
        assert first == f"entered {warm}"
        assert second.startswith("the ")
        assert str(there) in second
        folder.chmod(0o700)
        there.chmod(0o600)
        assert there.read_bytes() == path.read_bytes()
