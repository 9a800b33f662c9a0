"""What follows a failure in the background: of an attempt, or of a delivery to the callback."""

from __future__ import annotations

import asyncio
from typing import Any, Literal, NamedTuple

from invoke_retry.environment import Environment
from invoke_retry.failure import Failure, failure_of
from invoke_retry.policy import RetryPolicy, Stop, cut_error, decide, is_retryable
from invoke_retry.record import Record
from invoke_retry.registry import Service
from invoke_retry.run import Run


class Verdict(NamedTuple):
    """What follows a failure: a wait in seconds, or why to stop."""

    failure: Failure
    then: float | Stop | Literal["permanent"]


class Judge:
    """Decides by the invocation's policy, and after its outcome by that of callbacks."""

    def __init__(self, environment: Environment, callback_policy: RetryPolicy) -> None:
        self._environment = environment
        self._clock = environment.clock
        self._callback_policy = callback_policy

    def failed_run(self, run: Run, service: Service[Any, Any], *, is_last: bool = False) -> Verdict:
        """Decide over a run that failed, and let go of the exception: its frames hold the payload.

        Args:
            is_last: It is not repeated, whatever the policy says.
        """
        error, run.error = run.error, None
        assert error is not None
        record = run.claim.record
        if isinstance(error, asyncio.CancelledError) and run.cut in ("timeout", "deadline"):
            late = cut_error(self.policy(record), run.attempt, run.cut)
            late.__cause__ = error
            error = late
        then: float | Stop | Literal["permanent"]
        if run.cut == "deadline":  # whoever cut it off knows; the clock may be a hair behind
            then = "deadline"
        elif _is_permanent(record, error, service):
            then = "permanent"
        else:
            then = self._next(record, error, is_last=is_last)
        self._environment.log.attempt_failed(run, error, then, self._clock)
        return Verdict(failure_of(error), then)

    def fault(self, record: Record, error: Exception, *, is_last: bool = False) -> Verdict:
        """Decide over a failure that is not the service's own."""
        return Verdict(failure_of(error), self._next(record, error, is_last=is_last))

    def policy(self, record: Record) -> RetryPolicy:
        """What holds for the record now."""
        return record.policy if record.outcome is None else self._callback_policy

    def _next(self, record: Record, error: BaseException, *, is_last: bool) -> float | Stop:
        if is_last:
            return "exhausted"
        number = record.attempts if record.outcome is None else record.deliveries
        elapsed = self._clock.monotonic() - record.began
        return decide(self.policy(record), number, elapsed, error, self._environment.random)


def _is_permanent(record: Record, error: BaseException, service: Service[Any, Any]) -> bool:
    if isinstance(error, asyncio.CancelledError):  # that nobody asked for
        return False
    if record.outcome is not None and not isinstance(error, Exception):
        return False  # an outcome is worth every attempt, whatever the callback raises
    return not is_retryable(error, service.retry_on, service.give_up_on)
