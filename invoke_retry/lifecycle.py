"""Entering and leaving a coordinator: its phases, and what is refused in which of them."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal

import anyio

from invoke_retry.backends.base import Backend
from invoke_retry.background import Background
from invoke_retry.errors import InvalidState, NotRunning
from invoke_retry.logs import Log
from invoke_retry.models import Health

Phase = Literal["new", "open", "broken", "leaving", "left"]

_BROKEN = "the background has stopped by a fault; see the log"
_NOT_RUNNING: dict[Phase, str] = {
    "new": "the background is not running: enter the coordinator with 'async with' first",
    "open": _BROKEN,  # just now
    "broken": _BROKEN,
    "leaving": "the background is ending: its coordinator is being left",
    "left": "the background has ended: its coordinator was left; make and enter another one",
}


class Lifecycle:
    """The phases of one coordinator, and its background from when it is entered.

    The background lives in a supervisor, a task of its own: the task that leaves may be another
    one than that which entered.

    Args:
        name: The coordinator's.

    Attributes:
        has_ended: The supervisor is over; no outcome will come from here any more.
    """

    def __init__(self, name: str, backend: Backend, log: Log) -> None:
        self._name = name
        self._backend = backend
        self._log = log
        self._phase: Phase = "new"
        self._background: Background | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._waits: set[asyncio.Timeout] = set()
        self.has_ended = False

    async def enter(self, background: Background) -> None:
        """Open the backend and begin to work.

        Raises:
            InvalidState: It was entered before.
            BackendError: The backend cannot be opened.
        """
        if self._phase != "new":
            raise InvalidState("a coordinator is entered once; make another one")
        self._phase = "left"  # what it is if opening fails
        self._background = background
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[None] = loop.create_future()
        self._supervisor = supervisor = loop.create_task(
            background.serve(opened), name=f"invoke_retry {self._name}"
        )
        try:
            await opened
        except BaseException as error:
            supervisor.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait({supervisor})
                if not isinstance(error, InvalidState):  # else it is another coordinator's
                    await self._backend.close()
            raise
        supervisor.add_done_callback(self._on_supervisor_done)
        self._phase = "open"

    async def leave(self, grace: float | None, *, at_once: bool) -> None:
        """Finish or give up what runs in the background, as the backend allows.

        A cancellation while it waits ends the waiting, a second one ends everything at once.

        Args:
            grace: Seconds to wait for it at most; None: as long as it takes.
            at_once: Do not wait.
        """
        self._phase = "leaving"
        supervisor, cancelled = self._supervisor, None
        if supervisor is not None and self._background is not None:
            self._background.leave(0 if at_once else grace)
            if not at_once:
                try:
                    await asyncio.wait({supervisor})
                except asyncio.CancelledError as error:
                    cancelled = error
                    self._background.hurry()
            # an anyio scope cancels at every await; what is left to do has its own limit
            with anyio.CancelScope(shield=True):
                while not supervisor.done():
                    try:
                        await asyncio.wait({supervisor})
                    except asyncio.CancelledError as error:
                        cancelled = error
                        supervisor.cancel()
        self._phase = "left"
        await self._backend.close()
        if cancelled is not None:
            raise cancelled
        if supervisor is not None and not supervisor.cancelled():
            supervisor.result()

    async def ended(self) -> None:
        """Wait until the background has ended, whatever ended it."""
        self.entered()
        if self._supervisor is not None:
            await asyncio.wait({self._supervisor})

    def _on_supervisor_done(self, supervisor: asyncio.Task[None]) -> None:
        self.has_ended = True
        error = None if supervisor.cancelled() else supervisor.exception()
        if error is not None or self._phase == "open":
            text = "the background has stopped by a fault"
            self._log.problem("supervisor", text, error=error)
        if self._phase == "open":
            self._phase = "broken"
        for wait in self._waits:  # for what will not come any more
            if not wait.expired():
                wait.reschedule(0)

    @contextmanager
    def waiting(self, scope: asyncio.Timeout) -> Generator[None]:
        """Have *scope* expire when the background ends; a service lends its slot meanwhile."""
        self._waits.add(scope)
        try:
            with self.entered().lend_slot():
                yield
        finally:
            self._waits.discard(scope)

    # What is refused.

    def entered(self) -> Background:
        """The background, whatever has become of it.

        Raises:
            NotRunning: The coordinator was not entered.
        """
        if self._background is None:
            raise self.not_running()
        return self._background

    def running(self) -> Background:
        """The background, if whoever asks may submit now.

        While the coordinator is left, its own work may.

        Raises:
            NotRunning: Nothing is accepted any more, or yet.
        """
        background = self._background
        if background is not None and (
            self._phase == "open"
            or (self._phase == "leaving" and not background.is_over and background.is_own_work())
        ):
            return background
        raise self.not_running()

    def not_running(self) -> NotRunning:
        """What to raise where the phase does not allow what is asked for."""
        return NotRunning(_NOT_RUNNING[self._phase])

    def health(self, max_running: int) -> Health:
        """Whether the background is alive, and why not."""
        background = self._background
        problem = background.problem if background is not None else None
        if self._phase != "open":
            problem = _NOT_RUNNING[self._phase]
        return Health(
            ok=problem is None,
            problem=problem,
            running=background.slots.total if background is not None else 0,
            max_running=max_running,
        )
