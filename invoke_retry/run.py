"""One call of a service in the background: a task of its own, a fresh context, and limits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import TYPE_CHECKING, Any, Literal

from invoke_retry.backends.base import Claim
from invoke_retry.correlation import Call, here
from invoke_retry.registry import Service

if TYPE_CHECKING:
    from invoke_retry.coordinator import InvokeRetry

Cut = Literal["timeout", "deadline", "stop", "lost"]

_left_behind: set[asyncio.Task[None]] = set()
"""Tasks that go on after they were cancelled and given up; the loop alone would not keep them."""


class Run(Call):
    """An attempt or a delivery under way, and the `Call` that its service sees.

    What the service does to its own task (cancel it, leave its cancellation count raised, ignore a
    cancellation) stays there: whoever awaits `over` waits for a future that only this class sets.

    Attributes:
        claim: What it is made for.
        cut: Why its task was cancelled by us; None if it was not.
        error: How the service failed; None if it returned.
        value: What it returned.
        forsaken: It ignored its cancellation and is waited for no longer.
    """

    __slots__ = (
        "_has_begun",
        "_over",
        "_task",
        "claim",
        "cut",
        "error",
        "forsaken",
        "value",
    )

    def __init__(
        self, retry: InvokeRetry, claim: Claim, service: str, attempt: int, repeats: int
    ) -> None:
        self.retry = retry
        self.claim = claim
        self.service = service
        self.attempt = attempt
        self.repeats = repeats
        self._cid = claim.record.cid
        self.cut: Cut | None = None
        self.error: BaseException | None = None
        self.value: Any = None
        self.forsaken = False
        self._has_begun = False

    @property
    def orig_cid(self) -> str:
        """The id of whoever invoked the invocation."""
        return self.claim.record.orig_cid

    async def over(
        self,
        loop: asyncio.AbstractEventLoop,
        context: Context,
        runs: dict[str, Run],
        service: Service[Any, Any],
        arguments: tuple[Any, ...],
        limit: float | None,
        cut: Cut,
    ) -> None:
        """Call the service and wait until it is over, or forsaken.

        Args:
            runs: Where it is found by its cid meanwhile.
            limit: After so many seconds it is cut off, with *cut* as the reason.
        """
        cid = self.claim.record.cid
        runs[cid] = self
        self._over = over = loop.create_future()
        self._task = task = loop.create_task(
            self._call(service.function, arguments), context=context
        )
        timer = None if limit is None else loop.call_later(limit, self.cut_off, cut)
        try:
            await over
        finally:
            if timer is not None:
                timer.cancel()
            if runs.get(cid) is self:
                del runs[cid]
            if not self._is_over(task):
                task.cancel()
                _left_behind.add(task)
                task.add_done_callback(_left_behind.discard)
            del self._task  # its context holds this, and a cycle waits for the garbage collector

    def cut_off(self, cut: Cut) -> None:
        """Cancel the service; its first cancellation says why."""
        if self.cut is None and not self._over.done():
            self.cut = cut
            self._task.cancel()
            if not self._has_begun:  # then it never will
                self.error = asyncio.CancelledError()
                self._over.set_result(None)

    def forsake(self) -> None:
        """Wait for it no longer."""
        if not self._over.done():
            self.forsaken = True
            self._over.set_result(None)

    def _is_over(self, task: asyncio.Task[None]) -> bool:
        has_ended = self._over.done() and not self._over.cancelled()  # by a worker that is ended
        return task.done() or (has_ended and not self.forsaken)

    async def _call(
        self, function: Callable[..., Awaitable[Any]], arguments: tuple[Any, ...]
    ) -> None:
        self._has_begun = True
        here.set(self)
        try:
            self.value = await function(*arguments)
        except KeyboardInterrupt as error:
            self.cut, self.error = "stop", error
            self._end()
            raise
        except BaseException as error:  # SystemExit here would stop the whole event loop
            self.error = _without_our_frame(error)
        self._end()

    def _end(self) -> None:
        # a loop that is closed throws away what still ran in it
        if not self._over.done() and not self._over.get_loop().is_closed():
            self._over.set_result(None)


def _without_our_frame(error: BaseException) -> BaseException:
    """It says nothing, and would make a cycle, as would a variable of it that holds the trace."""
    trace = error.__traceback__
    return error.with_traceback(trace and trace.tb_next)
