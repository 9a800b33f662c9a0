"""What is done besides, in tasks of its own, and what is said of its failures."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from invoke_retry.backends.base import Runner
from invoke_retry.errors import BackendError

_LINE_SECONDS = 10.0


class Chores:
    """The tasks of one backend, and its troubles.

    Attributes:
        runner: Who is told; None: nobody.
        fault: What keeps the backend from working; None if nothing does.
    """

    def __init__(self) -> None:
        self.runner: Runner | None = None
        self.fault: str | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._told_at = float("-inf")

    def do(self, work: Coroutine[Any, Any, None]) -> None:
        """Have something done in a task."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, BackendError):
            self.trouble(error)
        elif isinstance(error, Exception) and self.runner is not None:
            self.runner.fail(error)

    def trouble(self, error: BackendError) -> None:
        """Something does not work now; one line of the log in 10 s says so."""
        self.fault = str(error)
        now = asyncio.get_running_loop().time()
        if self.runner is not None and now - self._told_at >= _LINE_SECONDS:
            self._told_at = now
            self.runner.failing(error)

    def well(self) -> None:
        """It works."""
        self.fault = None

    async def all_done(self) -> None:
        """Wait until nothing is left to do."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def cancel(self) -> None:
        """Leave what is not done."""
        for task in tuple(self._tasks):
            task.cancel()
