"""Starts the worker, looks at it, ends it and starts it again; asks at the end what is there."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from chaos.children import environment
from chaos.journal import Journal

from invoke_retry import InvokeRetry, ServiceRegistry

from .process import Sample, size, usage
from .worker import GRACE

PATIENCE = 60.0
DRAIN_SECONDS = 300.0


class Restart(NamedTuple):
    """An end of a process, at seconds since the soak began."""

    at: float
    signal: str


class Store(NamedTuple):
    """Where invocations wait, and what of it can be seen.

    Attributes:
        path: The file, or the folder of the server; None in memory.
        can_be_killed: What it holds outlives the process.
    """

    url: str
    path: Path | None = None
    can_be_killed: bool = True

    @property
    def wal(self) -> Path | None:
        return self.path.with_name(f"{self.path.name}-wal") if self.path else None


class Status(TypedDict):
    """What a worker writes of itself; `objects` are those that the garbage collector knows."""

    counts: dict[str, int]
    inline: dict[str, int]
    objects: int


class Supervisor:
    """One store, and one worker after the other.

    Args:
        told: Is given each sample.
    """

    def __init__(
        self, folder: Path, *, server: str, store: Store, rate: float, every: float,
        chance: random.Random, told: Callable[[Sample], None],
    ) -> None:  # fmt: skip
        self._folder, self._server, self._store = folder, server, store
        self._rate, self._every, self._chance, self._told = rate, every, chance, told
        self._journal = Journal(folder / "journal")
        self._began = time.monotonic()
        self.samples: list[Sample] = []
        self.restarts: list[Restart] = []
        self.counts = Counter[str]()
        self.inline = Counter[str]()
        self.problems: list[str] = []

    def soak(self, seconds: float, lives: int) -> None:
        """So many processes, one after the other, then one that finishes what they have left.

        The first one takes half of the time: by it memory is judged. It is killed at its end if
        the store bears that, and so is every other one after it but the last.

        Args:
            lives: Two or more.
        """
        for life in range(lives):
            is_first, is_last = life == 0, life == lives - 1
            # not all of one length: restarts must not fall into step with anything
            length = seconds / 2 / (lives - 1) * self._chance.uniform(0.8, 1.2)
            until = seconds / 2 if is_first else seconds if is_last else self._now + length
            is_kill = self._store.can_be_killed and life % 2 == 0 and not is_last
            self._live(life, until, signal.SIGKILL if is_kill else signal.SIGTERM)
        self._drain()
        if self._store.can_be_killed:
            self.counts = Counter(asyncio.run(self._ask()))
        errors = self._journal.lines("error")
        self.problems += [f"a process has failed: {line.text}" for line in errors]
        self._journal.close()

    @property
    def accepted(self) -> set[str]:
        """The cids of what was accepted, as the callers know it."""
        return {line.cid for line in Journal(self._journal.path).lines("accepted")}

    @property
    def _now(self) -> float:
        return time.monotonic() - self._began

    def _live(self, life: int, until: float, end: signal.Signals) -> None:
        with self._running(rate=self._rate) as process:
            is_ready = (self._folder / "status").exists
            self._wait(process, PATIENCE, "did not get ready", is_ready)
            ready = self._now
            while self._now < until and process.poll() is None:
                self._look(process.pid, life, self._now - ready)
                time.sleep(max(0.0, min(self._every, until - self._now)))
            if process.poll() is not None:
                self.problems.append(f"the process of life {life} has ended by itself")
            self.restarts.append(Restart(self._now, end.name))
            process.send_signal(end)
            patience = PATIENCE if not self._store.can_be_killed else GRACE + 10
            self._wait(process, patience, "did not end")
            if end == signal.SIGTERM and process.wait(PATIENCE) != 0:
                self.problems.append(f"life {life} ended with {process.returncode}")

    def _drain(self) -> None:
        with self._running(rate=0, drain=True) as process:
            self._wait(process, DRAIN_SECONDS, "did not finish what was left")

    @contextmanager
    def _running(self, *, rate: float, drain: bool = False) -> Generator[subprocess.Popen[bytes]]:
        """One process, of which nothing is left afterwards but what it has done."""
        process = self._start(rate=rate, drain=drain)
        try:
            yield process
        finally:
            process.kill()
            process.wait()
        self._add_up()

    def _start(self, *, rate: float, drain: bool) -> subprocess.Popen[bytes]:
        (self._folder / "status").unlink(missing_ok=True)
        begun = {line.number for line in self._journal.lines("begun")}
        known = {line.number for line in self._journal.lines("accepted", "done")}
        options: dict[str, Any] = {
            "server": self._server, "store": self._store.url, "rate": rate, "drain": drain,
            "first": max(begun, default=-1) + 1, "doubts": sorted(begun - known),
        }  # fmt: skip
        program = f"{__package__}.worker"
        return subprocess.Popen(
            [sys.executable, "-m", program, str(self._folder), json.dumps(options)],
            env=environment() | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def _wait(
        self, process: subprocess.Popen[bytes], seconds: float, problem: str,
        until: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        """Until something is so, or the process has ended."""
        end = time.monotonic() + seconds
        while not until() and process.poll() is None:
            if time.monotonic() > end:
                self.problems.append(f"a process {problem} within {seconds:g} s")
                return
            time.sleep(0.02)

    def _look(self, pid: int, life: int, age: float) -> None:
        told, used, path, wal = self._status(), usage(pid), self._store.path, self._store.wal
        if used is None:
            return
        sample = Sample(
            self._now, life, age, used.rss, size(wal) if wal else 0, size(path) if path else 0,
            used.fds, used.threads, told["objects"], told["counts"],
            sum(told["inline"].values()),
        )  # fmt: skip
        self.samples.append(sample)
        self._told(sample)

    def _add_up(self) -> None:
        """What a life has done that only the process itself knows."""
        told = self._status()
        self.inline += Counter(told["inline"])
        self.counts += Counter(told["counts"])

    def _status(self) -> Status:
        try:
            told: Status = json.loads((self._folder / "status").read_text())
        except FileNotFoundError:
            return {"counts": {}, "inline": {}, "objects": 0}
        return told

    async def _ask(self) -> dict[str, int]:
        async with InvokeRetry(ServiceRegistry(), backend=self._store.url, work=False) as retry:
            return await retry.counts()
