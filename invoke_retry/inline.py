"""Attempts in the caller's own task.

A cancellation belongs to the caller. It may come as `CancelledError`, which passes through; or a
target may have turned it into an error of its own, which shows in the task's cancellation count;
or it comes from an anyio scope, which cancels again at the next checkpoint. So the count is
compared with what it was at entry (some libraries leave it raised), and there is a checkpoint
before every repeat.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from threading import local
from typing import Any, Literal

from invoke_retry import events
from invoke_retry.correlation import Call, here
from invoke_retry.environment import Environment
from invoke_retry.errors import RetriesExhausted
from invoke_retry.failure import describe, error_info
from invoke_retry.models import Reason
from invoke_retry.plan import Plan
from invoke_retry.policy import Stop, asked_wait, cut_error, decide, is_retryable, time_limit
from invoke_retry.registry import Service

AnyTask = asyncio.Task[Any]
task_of: Callable[[asyncio.AbstractEventLoop | None], AnyTask | None]

if sys.version_info >= (3, 12):
    task_of = asyncio.current_task
else:
    # asyncio.current_task costs as much there as all of a hand-written retry. This is what it
    # does, and 3.11 itself does not change any more.
    task_of = vars(asyncio.tasks)["_current_tasks"].get


class ThisThread(local):
    """The loop that last ran an inline call in this thread."""

    loop: asyncio.AbstractEventLoop | None = None


class Inline:
    """An invocation whose attempts are made here; made when the plain first attempt is not enough.

    Args:
        call: The attempt under way.
        task: The caller's task.
        cancelling: The task's cancellation count at entry.
    """

    __slots__ = (
        "_arguments",
        "_attempt_began",
        "_began",
        "_call",
        "_cancelling",
        "_clock",
        "_environment",
        "_is_late",
        "_is_plain",
        "_plan",
        "_service",
        "_task",
    )

    _began: float
    _attempt_began: float
    _is_late: bool

    def __init__(
        self,
        call: Call,
        service: Service[Any, Any],
        arguments: tuple[Any, ...],
        plan: Plan,
        task: AnyTask | None,
        cancelling: int,
        environment: Environment,
    ) -> None:
        self._call = call
        self._service = service
        self._arguments = arguments
        self._plan = plan
        self._task = task
        self._cancelling = cancelling
        self._environment = environment
        self._clock = environment.clock
        # without limits and hooks nobody asks what time it is
        self._is_plain = not (plan.is_limited or environment.is_observed)
        if not self._is_plain:
            self._began = self._attempt_began = self._clock.monotonic()
            self._is_late = False

    async def run(self) -> Any:
        """Make all attempts.

        Raises:
            RetriesExhausted: The policy allows no more, with the last error as its cause.
            Exception: A permanent error of the target, as it is.
        """
        call = self._call
        call._token = token = here.set(call)  # pyright: ignore[reportPrivateUsage]
        try:
            try:
                response = await self.attempt()
            except Exception as error:
                if self.is_cancelled():
                    await self.cancel(error)
                wait = self.judge(error)
                if wait is None:
                    raise
            else:
                return self.succeeded(response)
            return await self.repeat(wait)
        finally:
            here.reset(token)

    async def repeat(self, wait: float) -> Any:
        """Wait, and make the further attempts."""
        function, arguments, is_plain = self._service.function, self._arguments, self._is_plain
        while True:
            await asyncio.sleep(wait)
            self._call = call = self._call.following()
            here.set(call)  # whoever has set it first has the token
            try:
                response = await (function(*arguments) if is_plain else self.attempt())
            except Exception as error:
                if self.is_cancelled():
                    await self.cancel(error)
                again = self.judge(error)
                if again is None:
                    raise
                wait = again
            else:
                return response if is_plain else self.succeeded(response)

    async def attempt(self) -> Any:
        """Make one attempt, within the policy's limits."""
        if self._is_plain:
            return await self._service.function(*self._arguments)
        self._attempt_began = self._clock.monotonic()
        if self._environment.is_observed:
            self._tell(events.AttemptStarted, repeats=self._plan.repeats)
        policy = self._plan.policy
        seconds, limit = time_limit(policy, self._began, self._clock.monotonic())
        if seconds is None:
            return await self._service.function(*self._arguments)
        scope = asyncio.timeout(seconds)
        try:
            async with scope:
                return await self._service.function(*self._arguments)
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise cut_error(policy, self._call.attempt, limit) from error
        finally:
            self._is_late = scope.expired() and limit == "deadline"

    def is_cancelled(self) -> bool:
        """Whether the caller was cancelled meanwhile."""
        return self._task is not None and self._task.cancelling() > self._cancelling

    async def cancel(self, error: BaseException) -> None:
        """Give the caller the cancellation that the target turned into *error*."""
        await asyncio.sleep(0)  # here an anyio scope cancels again, with its own message
        raise asyncio.CancelledError from error

    def judge(self, error: Exception, *, hands_over: bool = False) -> float | None:
        """Decide over a failed attempt: the seconds to wait, or None to raise the error as it is.

        Args:
            hands_over: The next attempt is made in the background.

        Raises:
            RetriesExhausted: There is nothing left to repeat.
        """
        plan, call = self._plan, self._call
        then: float | Stop | Literal["permanent"] | None = plan.steady
        if (
            then is None
            or call.attempt > plan.repeats
            or not self._service.retries_all
            or asked_wait(error) is not None
        ):
            then = self._decide(error)
        if isinstance(then, str):
            self._tell_failure(error, None, then)
            self._environment.log.attempt_failed(call, error, then, self._clock)
            if then == "permanent":
                return None
            raise RetriesExhausted(
                call.cid, call.service, call.attempt, then, describe(error)
            ) from error
        if not self._is_plain:
            self._tell_failure(error, None if hands_over else then, None)
        where = "in the background" if hands_over else "again"
        self._environment.log.attempt_failed(call, error, then, self._clock, where)
        return then

    def _decide(self, error: Exception) -> float | Stop | Literal["permanent"]:
        service, policy = self._service, self._plan.policy
        deadline = policy.deadline
        elapsed = 0.0 if deadline is None else self._clock.monotonic() - self._began
        if deadline is not None and (self._is_late or elapsed >= deadline):
            return "deadline"
        if not is_retryable(error, service.retry_on, service.give_up_on):
            return "permanent"
        return decide(policy, self._call.attempt, elapsed, error, self._environment.random)

    def succeeded(self, response: Any) -> Any:
        """Tell the hooks; the response goes back to the caller."""
        if self._environment.is_observed:
            self._tell_outcome("succeeded", None)
        return response

    def _tell_failure(self, error: Exception, wait: float | None, reason: Reason | None) -> None:
        if not self._environment.is_observed:
            return
        seconds = max(0.0, self._clock.monotonic() - self._attempt_began)
        self._tell(
            events.AttemptFailed,
            repeats=self._plan.repeats,
            error=error_info(error),
            seconds=seconds,
        )
        if reason is not None:
            self._tell_outcome(reason, error)
        elif wait is not None:
            self._tell(events.Waiting, attempt=self._call.attempt + 1, seconds=wait)

    def _tell_outcome(self, reason: Reason, error: Exception | None) -> None:
        self._environment.tell(
            events.Outcome,
            self._call.cid,
            self._service.name,
            ok=error is None,
            reason=reason,
            attempts=self._call.attempt,
            error=error_info(error) if error else None,
            background=False,
        )

    def _tell(self, kind: type[events.Event], **fields: Any) -> None:
        fields = {"attempt": self._call.attempt, "background": False, **fields}
        self._environment.tell(kind, self._call.cid, self._service.name, **fields)
