"""What the tests of the command line share: running it, terminals, and stores to look at."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import select
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

import invoke_retry
from invoke_retry import CallbackPayload, InvokeRetry, RetryPolicy, ServiceRegistry
from invoke_retry.cli.app import app

PACKAGE = Path(invoke_retry.__file__).parent
COMMAND = [sys.executable, "-m", "invoke_retry"]
SECRET = "hunter2-canary"


@dataclass(frozen=True)
class Done:
    """What a command has printed, and its exit code."""

    code: int
    out: str
    err: str


def run(*arguments: object, store: Path | str | None = None, answer: str | None = None) -> Done:
    """Run a command in this process, with its output in a pipe."""
    environment = {
        "INVOKE_RETRY_STORE": "" if store is None else str(store),
        "NO_COLOR": None,
        "FORCE_COLOR": None,
    }
    result = CliRunner().invoke(app, [*map(str, arguments)], input=answer, env=environment)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.stdout, result.stderr)


def told(*arguments: object, store: Path | str, code: int = 0) -> Any:
    """The data of a command's JSON object; or its error, if that is expected."""
    done = run(*arguments, "--json", store=store)
    assert done.code == code, done
    assert done.out.count("\n") == 1
    assert done.out.isascii()
    shape = json.loads(done.out)
    assert shape["command"] == arguments[0]
    assert set(shape) == {"command", "ok", "data" if shape["ok"] else "error"}
    return shape["data"] if shape["ok"] else shape["error"]


def environment(store: Path | str | None = None, **more: str) -> dict[str, str]:
    """Variables with which a process runs this very package on that store."""
    ours = ("NO_COLOR", "FORCE_COLOR", "TERM", "COLUMNS", "LINES")
    plain = {name: text for name, text in os.environ.items() if name not in ours}
    return {
        **plain,
        "PYTHONPATH": str(PACKAGE.parent),
        "TERM": "xterm-256color",
        **({} if store is None else {"INVOKE_RETRY_STORE": str(store)}),
        **more,
    }


def run_outside(*arguments: object, store: Path | str | None = None, **more: str) -> Done:
    """Run a command in a process of its own."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
        env=environment(store, **more),
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)


@dataclass
class Terminal:
    """A command that runs in a terminal, and what it has written there."""

    process: subprocess.Popen[bytes]
    screen: int
    written: bytearray = field(default_factory=bytearray)

    def read(self, seconds: float) -> bool:
        """Read what is there, waiting for it so long at most; False at the end."""
        ready, _, _ = select.select([self.screen], [], [], seconds)
        if not ready:
            return True
        try:
            data = os.read(self.screen, 65_536)
        except OSError:  # Linux: the other side is closed
            return False
        self.written += data
        return bool(data)

    def until(self, text: str, seconds: float = 30) -> None:
        """Wait until it has written that."""
        end = time.monotonic() + seconds
        while text.encode() not in self.written:
            assert time.monotonic() < end, self.written
            assert self.read(0.2), self.written

    def type(self, text: str) -> None:
        """Type that."""
        os.write(self.screen, text.encode())

    def signal(self, number: signal.Signals) -> None:
        """Send its process a signal."""
        self.process.send_signal(number)

    def ended(self, seconds: float = 30) -> Done:
        """Wait for its end."""
        end = time.monotonic() + seconds
        while self.read(0.2):
            assert time.monotonic() < end, self.written
            if self.process.poll() is not None and not self._has_more():
                break
        return Done(self.process.wait(10), self.written.decode(errors="replace"), "")

    def _has_more(self) -> bool:
        return bool(select.select([self.screen], [], [], 0.1)[0])


@contextmanager
def terminal(
    *arguments: object, store: Path | str | None = None, columns: int = 120, rows: int = 40,
    **more: str,
) -> Generator[Terminal]:  # fmt: skip
    """Run a command in a terminal of that size."""
    screen, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdin=inside, stdout=inside, stderr=inside, start_new_session=True,
        env=environment(store, **more),
    )  # fmt: skip
    os.close(inside)
    try:
        yield Terminal(process, screen)
    finally:
        process.kill()
        process.wait()
        os.close(screen)


# Stores.


def services() -> ServiceRegistry:
    """`echo`, `fail`, `hold`, and the callbacks `tell` and `deaf`."""
    registry = ServiceRegistry()

    async def echo(payload: Any = None) -> Any:
        return payload

    async def fail(payload: Any = None) -> Any:
        raise ConnectionError(f"the CRM is down, token={SECRET}")

    async def hold(payload: Any = None) -> Any:
        await asyncio.sleep(3_600)

    async def tell(outcome: CallbackPayload) -> None:
        pass

    async def deaf(outcome: CallbackPayload) -> None:
        raise TimeoutError("nobody listens")

    for function in (echo, fail, hold, tell, deaf):
        registry.register(function.__name__, function)
    return registry


def coordinator(path: Path, **options: Any) -> InvokeRetry:
    """A coordinator of these services that gives up on a callback soon."""
    quick = RetryPolicy(repeats=1, seconds=0)
    return InvokeRetry(
        services(), backend=f"sqlite:///{path}?synchronous=normal", callback_policy=quick,
        name="shop", **options,
    )  # fmt: skip


async def reaches(retry: InvokeRetry, cid: str, *states: str) -> None:
    """Wait until the invocation is in one of the states."""
    async with asyncio.timeout(20):
        while (await retry.get(cid)).state not in states:  # noqa: ASYNC110 (nothing tells when)
            await asyncio.sleep(0.005)


async def make_varied(path: Path) -> dict[str, str]:
    """A store with one invocation of each state at rest; their cids."""
    cids: dict[str, str] = {}
    async with coordinator(path) as retry:
        order = {"order": 7, "password": SECRET, "lines": [{"api_key": SECRET, "n": 1}]}
        cids["succeeded"] = await retry.invoke_async("echo", order, repeats=0, seconds=0)
        cids["failed"] = await retry.invoke_async(
            "fail", order, repeats=2, seconds=0, callback="tell", context={"secret": SECRET}
        )
        cids["dead"] = await retry.invoke_async("echo", 1, repeats=0, seconds=0, callback="deaf")
        cids["waiting"] = await retry.invoke_async("fail", 2, repeats=3, seconds=3_600)
        cids["cancelled"] = await retry.invoke_async("hold", 3, repeats=3, seconds=3_600)
        await reaches(retry, cids["cancelled"], "running")
        assert await retry.cancel(cids["cancelled"])
        for state, cid in cids.items():
            await reaches(retry, cid, state)
        async with asyncio.timeout(20):  # it waits before its first attempt, too
            while not (await retry.get(cids["waiting"])).history:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        await reaches(retry, cids["waiting"], "waiting")
    return cids


_varied: list[tuple[bytes, dict[str, str]]] = []


def varied(path: Path) -> dict[str, str]:
    """The same, for a test that is no coroutine; made once, and copied."""
    if not _varied:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder, "retries.db")
            cids = asyncio.run(make_varied(made))
            _varied.append((made.read_bytes(), cids))
    data, cids = _varied[0]
    path.write_bytes(data)
    path.with_name(f"{path.name}-lock").touch()
    return dict(cids)


def multiply(path: Path, number: int) -> None:
    """Make so many invocations of the newest one, each with a cid of its own."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        columns = [name for _, name, *_ in db.execute("PRAGMA table_info(invocation)")]
        others = ", ".join(name for name in columns if name not in ("id", "cid"))
        db.execute("BEGIN")
        db.execute(
            "WITH RECURSIVE each(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM each WHERE n < ?) "
            f"INSERT INTO invocation (cid, {others}) SELECT printf('K00%025d', n), {others} "
            "FROM each, invocation WHERE id = (SELECT max(id) FROM invocation) ORDER BY n",
            (number,),
        )
        db.execute("UPDATE total SET number = (SELECT count(*) FROM invocation i "
                   "WHERE i.state = total.state)")  # fmt: skip
        db.execute("COMMIT")


def ask(path: Path, statement: str, *values: object) -> list[Any]:
    """What the file says."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=20)) as db:
        return db.execute(statement, values).fetchall()
