"""D1: accepted is on the disk. SIGKILL cannot see a missing sync; strace can."""

from __future__ import annotations

import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from store_help import ask, command, environment, run

from invoke_retry import CorrelationId

ACCEPTS = 20
CHILD = """
import asyncio, os, sys
from invoke_retry import BackendError, CorrelationId, InvokeRetry, ServiceRegistry
from invoke_retry.backends import SQLiteBackend

async def echo(n: int) -> int:
    return n

async def main():
    services = ServiceRegistry()
    services.register("echo", echo)
    backend = SQLiteBackend(sys.argv[1], synchronous=sys.argv[2])
    async with InvokeRetry(services, backend=backend, work=False) as retry:
        os.write(1, b"begin\\n")
        for n in range(int(sys.argv[3])):
            cid = CorrelationId.from_key(f"number {n}")
            try:
                await retry.invoke_async("echo", n, repeats=0, seconds=0, cid=cid)
                os.write(1, f"accepted {n}\\n".encode())
            except BackendError:
                os.write(1, f"refused {n}\\n".encode())
        os.write(1, b"end\\n")

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def strace() -> str:
    found = shutil.which("strace")
    if found is None:
        pytest.skip("strace is not installed (Debian: the package strace)")
    tried = subprocess.run([found, "-o", "/dev/null", "true"], capture_output=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"strace may not trace here: {tried.stderr.decode()}")
    return found


def traced(strace: str, path: Path, synchronous: str, *options: str) -> list[str]:
    """What the child did, in order: `sync`, `failed sync`, `begin`, `accepted 7` and so on."""
    log = path.with_name("trace")
    tracing = [strace, "-f", "-o", str(log), "-e", "trace=write,fdatasync,fsync", *options]
    done = subprocess.run(
        [*tracing, *command(CHILD, path, synchronous, ACCEPTS)],
        capture_output=True, text=True, timeout=120, check=False, env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    steps: list[str] = []
    for line in log.read_text().splitlines():
        if said := re.search(r'write\(1, "(.*?)\\n"', line):
            steps.append(said[1])
        elif re.search(r"(fdatasync|fsync)(\(| resumed)", line) and "unfinished" not in line:
            steps.append("sync" if line.rstrip().endswith("= 0") else "failed sync")
    assert steps.count("begin") == steps.count("end") == 1
    return steps


def numbers(steps: list[str], answer: str) -> list[int]:
    return [int(step.split()[1]) for step in steps if step.startswith(answer)]


def assert_synced_before(steps: list[str]) -> None:
    for before, step in pairwise(steps):
        if step.startswith("accepted"):
            assert before == "sync", steps


def test_each_accept_is_synced_before_it_returns(strace: str, tmp_path: Path) -> None:
    steps = traced(strace, tmp_path / "retries.db", "full")
    assert numbers(steps, "accepted") == list(range(ACCEPTS))
    assert_synced_before(steps)


def test_with_synchronous_normal_there_are_few_syncs(strace: str, tmp_path: Path) -> None:
    steps = traced(strace, tmp_path / "retries.db", "normal")
    assert numbers(steps, "accepted") == list(range(ACCEPTS))
    assert steps[steps.index("begin") : steps.index("end")].count("sync") < ACCEPTS / 2


@pytest.fixture(scope="module")
def syncs_of_opening(strace: str, tmp_path_factory: pytest.TempPathFactory) -> int:
    steps = traced(strace, tmp_path_factory.mktemp("clean") / "retries.db", "full")
    return steps[: steps.index("begin")].count("sync")


@pytest.mark.parametrize(
    ("error", "first", "often"),
    [("EIO", 1, 1), ("EIO", 7, 3), ("EIO", 5, 1_000), ("ENOSPC", 2, 1), ("ENOSPC", 7, 2)],
)
def test_a_sync_that_fails_is_told_and_what_was_accepted_is_there(
    strace: str, syncs_of_opening: int, error: str, first: int, often: int, tmp_path: Path
) -> None:
    path = tmp_path / "retries.db"
    first += syncs_of_opening
    inject = f"inject=fdatasync,fsync:error={error}:when={first}..{first + often - 1}"
    steps = traced(strace, path, "full", "-e", inject)
    assert "failed sync" in steps
    assert numbers(steps, "refused"), steps
    assert_synced_before(steps)
    if often == 1:  # the connection is opened anew, and the next one is accepted
        assert len(numbers(steps, "accepted")) >= ACCEPTS - 2
    known = {cid for (cid,) in ask(path, "SELECT cid FROM invocation")}
    assert {CorrelationId.from_key(f"number {n}") for n in numbers(steps, "accepted")} <= known
    assert ask(path, "PRAGMA integrity_check") == [("ok",)]


def test_a_sync_that_fails_while_the_file_is_made_is_told(strace: str, tmp_path: Path) -> None:
    path = tmp_path / "retries.db"
    tracing = [strace, "-f", "-o", "/dev/null", "-e", "trace=fdatasync,fsync", "-e"]
    for k in (1, 3, 5):
        done = subprocess.run(
            [*tracing, f"inject=fdatasync,fsync:error=EIO:when={k}",
             *command(CHILD, path.with_name(f"{k}.db"), "full", 1)],
            capture_output=True, text=True, timeout=120, check=False, env=environment(),
        )  # fmt: skip
        if done.returncode != 0:
            said = done.stderr.splitlines()[-1]
            assert "BackendError" in said
            assert f"{k}.db cannot be " in said
        assert "accepted 0" in run(CHILD, path.with_name(f"{k}.db"), "full", 1)
