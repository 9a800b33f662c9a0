"""D11: a disk that is really full: told, or kept; logged with measure; gone on with by itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from store_help import Stage, ask, counted, reaches, totals, until

from invoke_retry import BackendError, CorrelationId

KIB = 1024


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if os.name != "posix" or os.geteuid() != 0 or mount is None or umount is None:
        pytest.skip("only root can mount a small tmpfs")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr}")
    yield folder
    subprocess.run([umount, "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all the room that is left."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"x" * KIB):
            pass
    return ballast


async def test_a_full_disk(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    def complaints() -> list[str]:
        return [each for each in caplog.messages if "the backend fails" in each]

    path = small_disk / "retries.db"
    stage = Stage()
    kept: list[CorrelationId] = []
    async with stage.on(path, grace=20) as retry:
        kept.append(await retry.invoke_async("fail", 1, repeats=1, seconds=1, callback="tell"))
        await reaches(retry, kept[0], "waiting")
        kept.append(await retry.invoke_async("hold", 2, repeats=0, seconds=0, callback="tell"))
        began, ballast, refused = time.monotonic(), fill(small_disk), 0
        while refused < 20:
            try:
                cid = await retry.invoke_async(
                    "echo", "x" * 20 * KIB, repeats=0, seconds=0, callback="tell"
                )
            except BackendError:
                refused += 1
            else:
                kept.append(cid)
        stage.gate.set()  # what runs ends while its outcome cannot be written down
        await until(lambda: len(complaints()) > 1)
        assert not retry.health().ok
        assert all(str(path) in each and "full" in each for each in complaints())
        ballast.unlink()
        for cid in kept:
            await reaches(retry, cid, "succeeded", "failed")
        kept.append(await retry.invoke_async("echo", 3, repeats=0, seconds=0, callback="tell"))
        await reaches(retry, kept[-1], "succeeded")
        await until(lambda: retry.health().ok)
        # six lines a minute, and a traceback with the first
        assert len(complaints()) <= 6 * (1 + (time.monotonic() - began) // 60)
        assert sum(record.exc_info is not None for record in caplog.records) <= 1
        assert totals(path) == counted(path)
    assert {each.call_cid for each in stage.told} >= set(kept)
    assert ask(path, "PRAGMA integrity_check") == [("ok",)]


async def test_a_store_cannot_be_made_on_a_full_disk(small_disk: Path) -> None:
    path = small_disk / "retries.db"
    ballast = fill(small_disk)
    with pytest.raises(BackendError, match=r"full|No space") as caught:
        async with Stage().on(path):
            raise AssertionError("entered")
    assert str(path) in str(caught.value)
    ballast.unlink()
    async with Stage().on(path) as retry:  # what was begun of it is no obstacle
        cid = await retry.invoke_async("echo", 1, repeats=0, seconds=0)
        await reaches(retry, cid, "succeeded")


async def test_a_store_on_a_full_disk_can_be_opened_and_looked_at(small_disk: Path) -> None:
    path = small_disk / "retries.db"
    async with Stage().on(path, work=False) as retry:
        cid = await retry.invoke_async("echo", 1, repeats=0, seconds=0)
    ballast = fill(small_disk)
    try:
        async with Stage().on(path, work=False) as retry:
            assert (await retry.get(cid)).state == "waiting"
    except BackendError as error:  # SQLite needs some room for its log
        assert str(path) in str(error)  # noqa: PT017
    ballast.unlink()
    async with Stage().on(path) as retry:
        await reaches(retry, cid, "succeeded")
