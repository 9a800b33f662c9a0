"""What stands in the file: damage, other programs, other versions, and who may use it alone."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from store_help import Stage, ask, beside, make, reaches, refused, tamper

from invoke_retry import BackendError, InvocationNotFound
from invoke_retry.backends.sqlite import files, schema
from invoke_retry.backends.sqlite.rows import COLUMNS


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "retries.db"


# Damaged.


@pytest.mark.parametrize(
    "content", [b"no", b"just text\n", b"SQLite format 3\0", b"SQLite format 3\0" + b"\xff" * 5_000]
)
async def test_what_is_no_database(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    await refused(path)


@pytest.mark.parametrize("size", [2, 50, 99, 100, 1_000, 4_095])
async def test_a_file_cut_off_in_its_header(path: Path, size: int) -> None:
    await make(path)
    path.write_bytes(path.read_bytes()[:size])
    await refused(path)


@pytest.mark.parametrize(
    ("at", "junk"),
    [
        (0, b"\xff" * 16),
        (16, b"\xff\xff"),
        (18, b"\x07\x07"),
        (44, b"\xff" * 4),
        (100, b"\xaa" * 64),
    ],
)
async def test_a_spoilt_header(path: Path, at: int, junk: bytes) -> None:
    await make(path)
    content = bytearray(path.read_bytes())
    content[at : at + len(junk)] = junk
    path.write_bytes(content)
    await refused(path)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
async def test_a_file_cut_off_in_the_middle_never_answers_wrongly(path: Path, share: float) -> None:
    await make(path, waiting=20)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share) // 4096 * 4096])
    await never_answers_wrongly(path)


@pytest.mark.parametrize("junk", [b"\0", b"\xff", b"\x0d"])
@pytest.mark.parametrize("pages", ["tables", "all but the first"])
async def test_a_file_spoilt_in_the_middle_never_answers_wrongly(
    path: Path, junk: bytes, pages: str
) -> None:
    await make(path, waiting=20)
    content = path.read_bytes()
    if pages == "tables":
        roots = [
            root for (root,) in ask(path, "SELECT rootpage FROM sqlite_master WHERE type = 'table'")
        ]
        for root in roots:
            content = content[: (root - 1) * 4096] + junk * 4096 + content[root * 4096 :]
    else:
        content = content[:4096] + junk * (len(content) - 4096)
    path.write_bytes(content)
    await never_answers_wrongly(path)


async def never_answers_wrongly(path: Path) -> None:
    """A damaged file is a `BackendError` that names it, whenever the damage is met."""
    said: list[str] = []
    try:
        async with Stage().on(path, grace=0) as retry:
            for question in (
                lambda: retry.search(),
                lambda: retry.counts(),
                lambda: retry.get("K0" + "0" * 26),
                lambda: retry.invoke_async("echo", 1, repeats=0, seconds=0),
            ):
                with suppress(InvocationNotFound):
                    try:
                        await question()
                    except BackendError as error:
                        said.append(str(error))
    except BackendError as error:
        said.append(str(error))
    assert all(str(path) in each for each in said), said


# Somebody else's.


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
async def test_the_file_of_another_program(path: Path, mode: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA journal_mode = {mode}")
        db.execute("CREATE TABLE invocation (id)")
        db.commit()
    assert "something else" in await refused(path)


async def test_an_empty_file_that_another_program_has_marked_as_its_own(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA application_id = 7")
        db.commit()
    assert "something else" in await refused(path)


@pytest.mark.parametrize("name", ["shift", "boot"])
@pytest.mark.parametrize("value", [b"\x80\x04K\x01.", "text", "nan", None, float("inf")])
async def test_damaged_notes_of_the_time(path: Path, name: str, value: object) -> None:
    """What was due when cannot be known any more, so nothing is run at a wrong time."""
    await make(path)
    if name == "boot":  # as after a reboot
        tamper(path, "UPDATE meta SET value = 'another' WHERE name = 'boot'")
        name = "last_time"
    tamper(path, "UPDATE meta SET value = ? WHERE name = ?", value, name)
    assert "time" in await refused(path)


# Other versions.


@pytest.mark.parametrize("oldest", ["as it is", 2, 99, None, b"\x80\x04", "new"])
async def test_a_newer_schema_is_used_only_if_it_says_that_we_can(
    path: Path, oldest: object
) -> None:
    await make(path)
    tamper(path, f"PRAGMA user_version = {schema.VERSION + 1}")
    if oldest is None:
        tamper(path, "DELETE FROM meta WHERE name = 'oldest_reader'")
    elif oldest != "as it is":
        tamper(path, "UPDATE meta SET value = ? WHERE name = 'oldest_reader'", oldest)
    if oldest == "as it is":
        async with Stage().on(path) as retry:
            assert (await retry.counts())["succeeded"] == 1
        assert ask(path, "PRAGMA user_version") == [(schema.VERSION + 1,)]
    else:
        assert "upgrade" in await refused(path)


@pytest.fixture
def next_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a release to come may do: a column with a default, and a table."""
    widen = (
        "ALTER TABLE invocation ADD COLUMN colour TEXT NOT NULL DEFAULT 'blue'",
        "CREATE TABLE extra (id INTEGER PRIMARY KEY)",
    )
    monkeypatch.setattr(schema, "VERSION", 2)
    monkeypatch.setattr(schema, "_MIGRATIONS", (*schema._MIGRATIONS, widen))  # pyright: ignore[reportPrivateUsage]


async def test_an_older_schema_is_migrated_and_older_processes_go_on(
    path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage()
    async with stage.on(path) as old:
        early = await old.invoke_async("fail", 1, repeats=1, seconds=3_600)
        request.getfixturevalue("next_version")
        async with Stage().on(path) as new:
            assert (await new.get(early)).target == "fail"
            assert ask(path, "SELECT DISTINCT colour FROM invocation") == [("blue",)]
            late = await old.invoke_async("echo", 2, repeats=0, seconds=0, callback="tell")
            assert (await new.wait(late, 20)).ok
            await reaches(new, late, "succeeded")
    monkeypatch.undo()
    async with Stage().on(path) as older_again:
        assert (await older_again.counts())["waiting"] == 1
    assert ask(path, "PRAGMA user_version") == [(2,)]


async def test_a_migration_that_fails_changes_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make(path)
    before = path.read_bytes()
    monkeypatch.setattr(schema, "VERSION", 2)
    broken = ("CREATE TABLE extra (id)", "CREATE TABLE extra (id)")
    monkeypatch.setattr(schema, "_MIGRATIONS", (*schema._MIGRATIONS, broken))  # pyright: ignore[reportPrivateUsage]
    assert "extra" in await refused(path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    async with Stage().on(path) as retry:
        assert (await retry.counts())["succeeded"] == 1


async def test_the_columns_are_those_of_the_table(path: Path) -> None:
    await make(path)
    names = [name for _, name, *_ in ask(path, "PRAGMA table_info(invocation)")]
    assert sorted(names) == sorted(COLUMNS.split(", "))


# Where only one process may use it.


@pytest.mark.parametrize("why", ["it is on a network file system (nfs4)", "win32 has no flock()"])
async def test_alone_a_second_one_is_refused_and_told_why(
    path: Path, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    always: Callable[[Path], str] = lambda _: why  # noqa: E731
    monkeypatch.setattr(files, "why_alone", always)
    connect = sqlite3.connect

    def impatient(*args: Any, **options: Any) -> sqlite3.Connection:
        db: sqlite3.Connection = connect(*args, **{**options, "timeout": 0.05})
        return db

    monkeypatch.setattr(sqlite3, "connect", impatient)
    stage = Stage()
    async with stage.on(path) as retry:
        cid = await retry.invoke_async("echo", 1, repeats=0, seconds=0)
        assert (await retry.wait(cid, 20)).ok
        said = await refused(path)
        assert why in said
        assert "NATS" in said
        cid = await retry.invoke_async("echo", 2, repeats=0, seconds=0, callback="tell")
        await reaches(retry, cid, "succeeded")
    assert {each.name for each in beside(path)} == {"retries.db"}
    async with Stage().on(path) as retry:  # one after the other is no trouble
        assert (await retry.counts())["succeeded"] == 2


def test_the_kind_of_the_file_system_is_found_by_the_longest_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
        f"2 1 0:9 / {tmp_path} rw shared:1 - nfs4 server:/x rw\n"
        f"3 2 0:9 / {tmp_path}/with\\040space rw - tmpfs tmpfs rw\n"
        f"4 1 0:9 / {tmp_path}/wi rw - cifs server rw\n"
    )
    real = Path.read_text

    def read(path: Path, *args: object, **options: object) -> str:
        return real(table if str(path) == "/proc/self/mountinfo" else path, encoding="utf-8")

    monkeypatch.setattr(Path, "read_text", read)
    assert files.file_system(tmp_path / "x.db") == "nfs4"
    assert files.file_system(tmp_path / "with space" / "x.db") == "tmpfs"
    assert files.file_system(tmp_path / "wider" / "x.db") == "nfs4"
    assert files.file_system(Path("/x.db")) == "ext4"
    assert "network" in (files.why_alone(tmp_path / "x.db") or "")
    assert files.why_alone(Path("/x.db")) is None
