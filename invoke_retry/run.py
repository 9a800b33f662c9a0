"""One call of a service in the background: a task of its own, a fresh context, and limits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Any, Literal

from invoke_retry.backends.base import Claim
from invoke_retry.correlation import Call, here

Cut = Literal["timeout", "deadline", "stop", "lost"]

_left_behind: set[asyncio.Task[None]] = set()
"""Tasks that go on after they were cancelled and given up; the loop alone would not keep them."""


class Run:
    """An attempt or a delivery under way.

    What the service does to its own task (cancel it, leave its cancellation count raised, ignore a
    cancellation) stays there: whoever awaits `over` waits for a future that only this class sets.

    Attributes:
        cut: Why its task was cancelled by us; None if it was not.
        error: How the service failed; None if it returned.
        value: What it returned.
        forsaken: It ignored its cancellation and is waited for no longer.
        lent: How many `wait` calls of the service lend its slot at the moment.
    """

    __slots__ = ("_over", "_task", "_timer", "call", "claim", "cut", "error", "forsaken", "lent",
                 "value")  # fmt: skip

    def __init__(self, claim: Claim, call: Call) -> None:
        self.claim = claim
        self.call = call
        self.cut: Cut | None = None
        self.error: BaseException | None = None
        self.value: Any = None
        self.forsaken = False
        self.lent = 0
        self._timer: asyncio.TimerHandle | None = None

    async def over(
        self,
        loop: asyncio.AbstractEventLoop,
        context: Context,
        function: Callable[..., Awaitable[Any]],
        arguments: tuple[Any, ...],
        limit: float | None,
        cut: Cut,
    ) -> None:
        """Call the function and wait until it is over, or forsaken.

        Args:
            limit: After so many seconds it is cut off, with *cut* as the reason.
        """
        self._over = loop.create_future()
        self._task = loop.create_task(self._call(function, arguments), context=context)
        self._task.add_done_callback(self._on_done)
        if limit is not None:
            self._timer = loop.call_later(limit, self.cut_off, cut)
        try:
            await self._over
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if not self._task.done():
                self._task.cancel()
                _left_behind.add(self._task)

    def cut_off(self, cut: Cut) -> None:
        """Cancel the service; its first cancellation says why."""
        if self.cut is None and not self._task.done():
            self.cut = cut
            self._task.cancel()

    def forsake(self) -> None:
        """Wait for it no longer."""
        if not self._over.done():
            self.forsaken = True
            self._over.set_result(None)

    async def _call(
        self, function: Callable[..., Awaitable[Any]], arguments: tuple[Any, ...]
    ) -> None:
        here.set(self.call)
        try:
            self.value = await function(*arguments)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # SystemExit here would stop the whole event loop
            # our own frame says nothing, and would make a cycle
            trace = error.__traceback__
            self.error = error.with_traceback(trace and trace.tb_next)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        _left_behind.discard(task)
        if task.cancelled():  # before its first step
            self.error = asyncio.CancelledError()
        elif (error := task.exception()) is not None:  # Ctrl-C: the process is about to stop
            self.cut, self.error = "stop", error
        if not self._over.done():
            self._over.set_result(None)
