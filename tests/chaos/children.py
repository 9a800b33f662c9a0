"""Processes that a test starts, stops and kills; none of them outlives it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio

import invoke_retry

from .journal import Journal

PATIENCE = 30.0
_SERVE = __name__.replace("children", "serve")


def environment() -> dict[str, str]:
    """Variables with which a process imports this very package, and this very folder."""
    package, here = Path(invoke_retry.__file__).parent.parent, Path(__file__).parent
    root = here.parents[__name__.count(".") - 1]
    return {**os.environ, "PYTHONPATH": f"{package}{os.pathsep}{root}"}


class Child:
    """A process that runs what is due in the store of a folder, as `serve.py` says.

    Args:
        options: Of `serve.serve`.
    """

    program = _SERVE

    def __init__(self, folder: Path, journal: Journal, **options: Any) -> None:
        self._journal = journal
        self._process = subprocess.Popen(
            [sys.executable, "-m", self.program, str(folder), json.dumps(options)],
            env=environment(), stdin=subprocess.DEVNULL,
        )  # fmt: skip
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def send(self, number: signal.Signals) -> None:
        """Have it stopped, resumed or told to leave."""
        self._process.send_signal(number)

    async def pause(self, lock: Path) -> None:
        """Stop it where it does not hold the lock of the store: then all would wait for it."""
        while True:
            await self.freeze()
            with lock.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                except BlockingIOError:
                    self.resume()
            await anyio.sleep(0.01)

    async def freeze(self) -> None:
        """Stop it wherever it is."""
        self.send(signal.SIGSTOP)
        await until(self._is_stopped)

    def _is_stopped(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None

    def resume(self) -> None:
        """Let it go on."""
        self.send(signal.SIGCONT)

    def kill(self) -> None:
        """End it, whatever it does."""
        if self.status is None:
            self._journal.write("killed", number=self.pid, text="from outside")
            self._process.kill()
        self._process.wait(PATIENCE)

    @property
    def status(self) -> int | None:
        """How it ended; None if it still runs."""
        return self._process.poll()

    async def ready(self) -> Self:
        """Wait until its coordinator is entered."""
        await until(lambda: any(line.pid == self.pid for line in self._journal.lines("ready")))
        return self

    async def over(self) -> int:
        """Wait until it has ended by itself; its status."""
        await until(lambda: self.status is not None)
        assert self.status is not None
        return self.status


async def until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait until something is so, or fail."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not so within {seconds:g} s"
        await anyio.sleep(0.01)


async def watch(condition: Callable[[], bool], seconds: float) -> None:
    """Make sure that something stays so for a while."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert condition()
        await anyio.sleep(0.02)
