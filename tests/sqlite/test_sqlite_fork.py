"""A fork: the child cannot use its parent's store, and keeps nothing of it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_help import Stage, ask, beside, command, environment, reaches, run

from invoke_retry.backends.sqlite.files import FileLock

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork() here")

HEAD = """
import asyncio, multiprocessing, os, signal, sys, warnings
from pathlib import Path
from invoke_retry import BackendError, CallbackPayload, InvokeRetry, ServiceRegistry
from invoke_retry.backends import SQLiteBackend

warnings.simplefilter("ignore", DeprecationWarning)  # of forks while there are threads

services = ServiceRegistry()
told = []

@services.service("echo")
async def echo(n: int) -> int:
    return n

@services.service("tell")
async def tell(outcome: CallbackPayload) -> None:
    told.append(outcome)

def coordinator():
    return InvokeRetry(services, backend=SQLiteBackend(sys.argv[1]))

async def one(retry, n):
    cid = await retry.invoke_async("echo", n, repeats=0, seconds=0, callback="tell")
    assert (await asyncio.wait_for(retry.wait(cid), 20)).response == n
    return cid
"""

USED_IN_THE_CHILD = (
    HEAD
    + """
async def in_the_child(retry, cid):
    for use in (
        lambda: retry.invoke_async("echo", 1, repeats=0, seconds=0),
        lambda: retry.get(cid),
        lambda: retry.wait(cid),
        lambda: retry.cancel(cid),
        lambda: retry.search(),
        lambda: retry.counts(),
    ):
        try:
            await asyncio.wait_for(use(), 10)
        except BackendError as error:
            assert "fork" in str(error), error
        else:
            raise AssertionError("it was used")

def begin(by, work):
    if by == "multiprocessing":
        child = multiprocessing.get_context("fork").Process(target=work)
        child.start()
        return lambda: child.join() or child.exitcode
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    return lambda: os.waitpid(child, 0)[1]

async def main():
    async with coordinator() as retry:
        cid = await one(retry, 1)
        status = begin(sys.argv[2], lambda: asyncio.run(in_the_child(retry, cid)))
        await one(retry, 2)
        assert status() == 0
        for n in range(3, 10):
            await one(retry, n)
        assert (await retry.counts())["succeeded"] + (await retry.counts())["notifying"] == 9
    assert len(told) == 9

asyncio.run(main())
"""
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "retries.db"


@pytest.mark.parametrize("by", ["os.fork", "multiprocessing"])
def test_the_child_is_told_and_the_parent_goes_on(path: Path, by: str) -> None:
    run(USED_IN_THE_CHILD, path, by)
    assert ask(path, "PRAGMA integrity_check") == [("ok",)]
    assert ask(path, "SELECT state, count(*) FROM invocation GROUP BY 1") == [("succeeded", 9)]


MADE_BEFORE = (
    HEAD
    + """
retry = coordinator()
child = os.fork()

async def main():
    async with retry:
        for n in range(10):
            cid = await retry.invoke_async("echo", n, repeats=0, seconds=0)
            assert (await asyncio.wait_for(retry.wait(cid), 20)).response == n

asyncio.run(main())
if child:
    _, status = os.waitpid(child, 0)
    assert status == 0, status
"""
)


def test_made_before_the_fork_and_entered_after_it_works_in_both(path: Path) -> None:
    run(MADE_BEFORE, path)
    assert ask(path, "SELECT state, count(*) FROM invocation GROUP BY 1") == [("succeeded", 20)]
    assert ask(path, "SELECT count(DISTINCT cid) FROM invocation") == [(20,)]
    assert ask(path, "PRAGMA integrity_check") == [("ok",)]


OUTLIVED = (
    HEAD
    + """
@services.service("hold")
async def hold() -> None:
    print("holding", flush=True)
    child = os.fork()
    if child == 0:
        print(os.getpid(), flush=True)
        while True:
            signal.pause()
    await asyncio.Event().wait()

async def main():
    async with coordinator() as retry:
        await retry.invoke_async("hold", repeats=1, seconds=0, callback="tell")
        await asyncio.Event().wait()

asyncio.run(main())
"""
)


@pytest.fixture
def outlived(path: Path) -> Iterator[None]:
    """A parent that was killed while it ran an attempt; its child lives on."""
    parent = subprocess.Popen(
        command(OUTLIVED, path), stdout=subprocess.PIPE, text=True, env=environment()
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "holding\n"
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait(20)
    try:
        os.kill(child, 0)
        yield
        os.kill(child, 0)  # it has lived all the while
    finally:
        os.kill(child, signal.SIGKILL)
        parent.stdout.close()


async def test_what_a_dead_parent_held_is_free_at_once_though_its_child_lives(
    path: Path, outlived: None
) -> None:
    for lock_file in beside(path):
        if lock_file.name.endswith(("-lock", "-seat0")):
            lock = FileLock(lock_file)
            assert lock.try_to_take(), lock_file
            lock.close()
    stage = Stage()
    stage.gate.set()
    async with stage.on(path, lease=3_600) as retry:
        ((cid,),) = ask(path, "SELECT cid FROM invocation")
        await reaches(retry, cid, "succeeded")
        assert (await retry.get(cid)).attempts == 2
        assert [each.number for each in (await retry.get(cid)).history] == [1, 2]
    assert ask(path, "SELECT count(*) FROM worker") == [(0,)]
