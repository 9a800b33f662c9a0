"""How a URL names a file, and what names none."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from store_help import Stage

from invoke_retry import BackendError, InvalidState, InvokeRetry, ServiceRegistry
from invoke_retry.backends import MemoryBackend, SQLiteBackend, backend_from
from invoke_retry.testing import VirtualLoop


def named(url: str) -> SQLiteBackend:
    backend = backend_from(url)
    assert isinstance(backend, SQLiteBackend)
    return backend


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///rel.db", "rel.db"),
        ("sqlite:///folder/rel.db", "folder/rel.db"),
        ("sqlite:///./rel.db", "rel.db"),
        ("sqlite:////abs.db", "/abs.db"),
        ("sqlite:////var/lib/abs.db", "/var/lib/abs.db"),
        ("sqlite:///with%20space.db", "with space.db"),
        ("sqlite:///caf%C3%A9.db", "café.db"),
        ("sqlite:///café.db", "café.db"),
        ("sqlite:///what%3F.db", "what?.db"),
        ("sqlite:///hash%23tag.db", "hash#tag.db"),
        ("sqlite:///100%25.db", "100%.db"),
        ("sqlite:///plus+plus.db", "plus+plus.db"),
        ("sqlite:///%2Fencoded.db", "/encoded.db"),
        ("SQLite:///rel.db", "rel.db"),
    ],
)
def test_path(url: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert named(url).path == tmp_path / path


def test_path_stays_where_it_was_when_the_working_directory_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    backend = named("sqlite:///rel.db")
    monkeypatch.chdir("/")
    assert backend.path == tmp_path / "rel.db"


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:",
        "sqlite://",
        "sqlite:///",
        "sqlite://rel.db",
        "sqlite://host/abs.db",
        "sqlite://user:secret@host/abs.db",
        "sqlite:///rel.db#part",
        "sqlite:///:memory:",
        "sqlite:///%3Amemory%3A",
        "sqlite:///nul%00.db",
        "sqlite3:///rel.db",
        "sqlite+aiosqlite:///rel.db",
        "rel.db",
    ],
)
def test_no_path(url: str) -> None:
    with pytest.raises(ValueError, match=r"expected|must name a file") as caught:
        backend_from(url)
    assert "secret" not in str(caught.value)


def test_options() -> None:
    backend = named(
        "sqlite:///rel.db?synchronous=normal&lease=2.5&max_waiting=7&max_bytes=100"
        "&retention=60&dead_retention=120&park_for=0"
    )
    assert (backend.synchronous, backend.lease, backend.max_waiting) == ("normal", 2.5, 7)
    assert (backend.max_bytes, backend.retention) == (100, 60)
    assert (backend.dead_retention, backend.park_for) == (120, 0)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("keep=1", "has no option 'keep'"),
        ("Lease=1", "has no option 'Lease'"),
        ("lease=1&lease=2", "names twice"),
        ("lease=long", "must be a number"),
        ("lease=", "must be a number"),
        ("max_waiting=1.5", "must be a number"),
        ("lease=0", "lease"),
        ("lease=-1", "lease"),
        ("lease=nan", "lease"),
        ("lease=inf", "lease"),
        ("max_waiting=0", "max_waiting"),
        ("max_bytes=0", "max_bytes"),
        ("retention=-1", "retention"),
        ("park_for=nan", "park_for"),
        ("synchronous=off", "'full' .* or 'normal'"),
        ("synchronous=FULL", "'full' .* or 'normal'"),
    ],
)
def test_wrong_option(query: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        backend_from(f"sqlite:///rel.db?{query}")


@pytest.mark.parametrize(
    "path", ["", ":memory:", "nul\0.db", "\ud800.db", None, 5, b"bytes.db", object()]
)
def test_what_names_no_file(path: Any) -> None:
    with pytest.raises(ValueError, match="must name a file"):
        SQLiteBackend(path)


def test_path_objects_and_text_name_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "retries.db"
    assert SQLiteBackend(path).path == SQLiteBackend(str(path)).path == path


async def test_percent_signs_and_question_marks_are_part_of_the_name(tmp_path: Path) -> None:
    path = tmp_path / "100%41?mode=memory#x.db"
    async with Stage().on(path) as retry:
        await retry.invoke_async("hold", repeats=0, seconds=0)
        assert path.stat().st_size > 0 or Path(f"{path}-wal").stat().st_size > 0
    async with Stage().on(path) as retry:
        assert sum((await retry.counts()).values()) == 1


def test_virtual_time_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "retries.db"

    async def enter() -> None:
        with pytest.raises(BackendError, match=r"virtual time.*memory://"):
            async with InvokeRetry(ServiceRegistry(), backend=SQLiteBackend(path)):
                raise AssertionError("entered")

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(enter())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_backend_belongs_to_one_coordinator(kind: str, tmp_path: Path) -> None:
    backend = MemoryBackend() if kind == "memory" else SQLiteBackend(tmp_path / "retries.db")
    stage = Stage()
    async with InvokeRetry(stage.services, backend=backend) as retry:
        with pytest.raises(InvalidState, match="belongs to a coordinator already"):
            async with InvokeRetry(stage.services, backend=backend):
                raise AssertionError("entered")
        cid = await retry.invoke_async("echo", 1, repeats=0, seconds=0)
        assert (await retry.wait(cid, 20)).ok
