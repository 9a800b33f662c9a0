"""Having jobs done in the writer's thread, and hearing in the event loop what came of them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from invoke_retry.backends.sqlite.store import Store
from invoke_retry.backends.sqlite.writer import Job, Writer
from invoke_retry.errors import BackendError, NotRunning

A = TypeVar("A")

CLOSE_SECONDS = 5.0


class Executor:
    """Hands jobs to the writer of one store.

    Attributes:
        is_closed: Nothing more is asked of it.
    """

    def __init__(self, path: Path, store: Store, writer: Writer) -> None:
        self._path = path
        self._store = store
        self._writer = writer
        self._pid = os.getpid()
        self.is_closed = False

    async def ask(self, run: Callable[[Store], A]) -> A:
        """Have something done without a transaction, and wait for it."""
        answer: A = await self.do(run, writes=False)
        return answer

    async def do(
        self,
        run: Callable[[Store], Any],
        *,
        then: Callable[[Any, Exception | None], None] | None = None,
        writes: bool = True,
    ) -> Any:
        """Have something done and wait for it. Cancelled, it is done all the same, or not at all.

        Args:
            then: Is told what came of it, whether anybody still waits or not.

        Raises:
            BackendError: It was not done, or may not have been.
        """
        self.check()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def told(result: Any, error: Exception | None) -> None:
            if then is not None:
                then(result, error)
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        self.submit(run, told, writes=writes)
        return await future

    def submit(
        self,
        run: Callable[[Store], Any],
        then: Callable[[Any, Exception | None], None],
        *,
        writes: bool = True,
    ) -> None:
        """Have something done soon; *then* is told the result, or the error."""
        self._writer.submit(Job(partial(run, self._store), then, writes=writes))

    async def stop(self) -> None:
        """Have done what is queued, and the store closed; not waited for longer than 5 s."""
        await asyncio.wait({self._writer.stop()}, timeout=CLOSE_SECONDS)

    def check(self) -> None:
        """Refuse what can no longer be done."""
        if self.is_closed:
            raise NotRunning(LEFT)
        if self._pid != os.getpid():
            raise BackendError(
                f"the store {self._path} was opened by process {self._pid}, and this is a fork of "
                "it; make and enter a coordinator of its own after the fork"
            )


LEFT = "the store is closed: its coordinator was left; make and enter another one"


def ignore(result: object, error: Exception | None) -> None:
    """What comes of it is seen by whoever finds the record next."""
