"""What the tests of the SQLite store share: services, clocks, a look at the file from outside."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import invoke_retry
from invoke_retry import (
    BackendError,
    CallbackPayload,
    CorrelationId,
    InvokeRetry,
    RetryPolicy,
    ServiceRegistry,
)
from invoke_retry.backends import SQLiteBackend
from invoke_retry.backends.sqlite import rows, schema
from invoke_retry.backends.sqlite.store import NOBODY
from invoke_retry.failure import Failure
from invoke_retry.models import Reason, State
from invoke_retry.record import Outcome, PastAttempt, Record

PACKAGE = Path(invoke_retry.__file__).parent
FINISHED = ("succeeded", "failed", "cancelled", "dead")


class Stage:
    """Services that note what they are given: `echo`, `fail`, `hold`, and the callback `tell`."""

    def __init__(self, *names: str) -> None:
        self.services = ServiceRegistry()
        self.calls: list[tuple[str, Any]] = []
        self.told: list[CallbackPayload] = []
        self.gate = asyncio.Event()
        for name in names or ("echo", "fail", "hold", "tell"):
            self.services.register(name, getattr(self, f"_{name}"))

    async def _echo(self, payload: Any = None) -> Any:
        self.calls.append(("echo", payload))
        return payload

    async def _fail(self, payload: Any = None) -> Any:
        self.calls.append(("fail", payload))
        raise ValueError("no use")

    async def _hold(self, payload: Any = None) -> Any:
        self.calls.append(("hold", payload))
        await self.gate.wait()
        return payload

    async def _tell(self, payload: CallbackPayload) -> None:
        self.told.append(payload)

    def on(self, path: Path, *, lease: float = 30, **options: Any) -> InvokeRetry:
        """A coordinator of these services on that file; options of the backend go to it."""
        names = ("max_waiting", "retention", "dead_retention", "park_for", "synchronous")
        of_backend = {name: options.pop(name) for name in names if name in options}
        backend = SQLiteBackend(path, lease=lease, **of_backend)
        return InvokeRetry(self.services, backend=backend, **options)


class MovableClock:
    """The system's clock, or another machine's: each scale can be moved on its own."""

    def __init__(self, *, monotonic: float = 0.0, utc: float = 0.0) -> None:
        self.monotonic_offset = monotonic
        self.utc_offset = utc

    def monotonic(self) -> float:
        return time.monotonic() + self.monotonic_offset

    def utc(self) -> float:
        return time.time() + self.utc_offset


async def until(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait until the condition holds, at most so many seconds."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 (nothing tells when)
            await asyncio.sleep(0.005)


async def eventually(condition: Callable[[], Awaitable[object]], seconds: float = 20) -> None:
    """Wait until what has to be awaited holds, at most so many seconds."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 (nothing tells when)
            await asyncio.sleep(0.005)


async def reaches(retry: InvokeRetry, cid: str, *states: str) -> None:
    """Wait until the invocation is in one of the states."""

    async def arrived() -> bool:
        return (await retry.get(cid)).state in states

    await eventually(arrived)


def ask(path: Path, statement: str, *values: object) -> list[Any]:
    """What the file says, asked by a connection of its own."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=20)) as db:
        return db.execute(statement, values).fetchall()


def tamper(path: Path, statement: str, *values: object) -> int:
    """Change the file behind the library's back; how many rows were changed."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=20)) as db:
        return db.execute(statement, values).rowcount


def totals(path: Path) -> dict[str, int]:
    """The totals as they are kept, those of no state that is empty."""
    return {state: n for state, n in ask(path, "SELECT state, number FROM total") if n}


def counted(path: Path) -> dict[str, int]:
    """The totals as the rows have them."""
    return dict(Counter(state for (state,) in ask(path, "SELECT state FROM invocation")))


def command(source: str, *arguments: object) -> list[str]:
    """The command line that runs Python source."""
    return [sys.executable, "-c", textwrap.dedent(source), *map(str, arguments)]


def environment() -> dict[str, str]:
    """Variables with which a process imports this very package."""
    return {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}


def run(source: str, *arguments: object, timeout: float = 60) -> str:
    """What a process of its own prints; it must succeed."""
    done = subprocess.run(
        command(source, *arguments),
        capture_output=True, text=True, timeout=timeout, check=False, env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def beside(path: Path) -> list[Path]:
    """The file, and what belongs to it."""
    return sorted(each for each in path.parent.iterdir() if each.name.startswith(path.name))


async def make(path: Path, *, waiting: int = 0) -> None:
    """A store with one finished and some waiting invocations, closed in good order."""
    async with Stage().on(path) as retry:
        cid = await retry.invoke_async("echo", "x" * 100, repeats=0, seconds=0)
        await reaches(retry, cid, "succeeded")
        for _ in range(waiting):
            cid = await retry.invoke_async("fail", "y" * 2_000, repeats=1, seconds=3_600)
            await reaches(retry, cid, "waiting")


async def refused(path: Path) -> str:
    """What is said of a file that must be refused, and must be left as it was."""
    kept = path.read_bytes() if path.is_file() and os.access(path, os.R_OK) else None
    with pytest.raises(BackendError) as caught:
        async with Stage().on(path):
            raise AssertionError("entered")
    assert str(path) in str(caught.value)
    if kept is not None:
        assert path.read_bytes() == kept
    return str(caught.value)


def fill(path: Path, number: int) -> None:
    """Make a store of many invocations, quickly: one of five failed, waits for hours or is dead."""
    path.touch(mode=0o600)
    now, policy, totals = time.time(), RetryPolicy(3, 60), Counter[str]()
    with closing(schema.connect(path, synchronous="normal", alone=False)) as db:
        db.execute("BEGIN")
        for i in range(number):
            at = now - (number - i)
            record = Record(
                CorrelationId.new(), f"svc.{i % 20}", "tell", "shop", "K", b"{}", b'"c"', policy,
                at, 0.0, 1e9,
            )  # fmt: skip
            failure = Failure("ValueError" if i % 5_000 else "Rare", "no use", "Traceback")
            record.state, record.attempts = _STATES[i % 5], 1
            if record.state != "waiting":
                reason: Reason = "exhausted" if record.state == "failed" else "succeeded"
                record.outcome = Outcome(reason, at, error=failure)
            record.history = (PastAttempt(1, at, at, failure),)
            totals[record.state] += 1
            rows.insert(db, record, NOBODY, 0.0)
        db.executemany("INSERT INTO total VALUES (?, ?)", totals.items())
        db.execute("COMMIT")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


_STATES: tuple[State, ...] = ("failed", "succeeded", "waiting", "cancelled", "dead")
