"""Every exception of the package.

Each takes positional arguments only and renders its text from them, so that it can be copied,
pickled by others, and raised from any depth.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Literal


class InvokeRetryError(Exception):
    """Base of everything that this package raises on purpose."""


class RetriesExhausted(InvokeRetryError):
    """Every attempt that the policy allows has failed; `__cause__` is the last error itself.

    Attributes:
        cid: The id of the invocation.
        target: The name of the service that failed.
        attempts: How many attempts were made, the first one included; 1 or more.
        reason: `exhausted` (no repeats left) or `deadline` (no time left).
    """

    def __init__(
        self,
        cid: str,
        target: str,
        attempts: int,
        reason: Literal["exhausted", "deadline"],
        last_error: str,
    ) -> None:
        super().__init__(cid, target, attempts, reason, last_error)
        self.cid = cid
        self.target = target
        self.attempts = attempts
        self.reason = reason
        self.last_error = last_error

    def __str__(self) -> str:
        times = "1 attempt" if self.attempts == 1 else f"{self.attempts} attempts"
        limit = " and at its deadline" if self.reason == "deadline" else ""
        return (
            f"{self.target!r} failed: gave up after {times}{limit}; "
            f"last error: {self.last_error} ({self.cid})"
        )


class RetryAfter(InvokeRetryError):
    """Raised by a target: not now, ask again in so many seconds.

    Always retryable. The wait replaces the policy's next interval, without jitter, capped by the
    policy's `max_seconds`, else by the larger of one hour and the interval. A wait that makes no
    sense (negative, not finite, not a number) is ignored, and the policy's own interval is kept.
    Any other error with a `retry_after` attribute asks for the same.

    Attributes:
        retry_after: Seconds, or a timedelta.
    """

    def __init__(self, seconds: float | timedelta, message: str = "") -> None:
        super().__init__(seconds, message)
        self.retry_after = seconds
        self.message = message

    def __str__(self) -> str:
        try:
            text = f"retry after {self.retry_after} s"
        except ValueError:  # an int of more than 4,300 digits
            text = "retry after a time that makes no sense"
        return f"{text}: {self.message}" if self.message else text


class InvalidPolicy(InvokeRetryError, ValueError):
    """A retry policy is incomplete or out of range."""


class InvalidPayload(InvokeRetryError, ValueError):
    """A payload does not fit what the service takes."""


class NotStorable(InvokeRetryError, ValueError):
    """A value cannot be written as JSON and read back equal, or is too large.

    Attributes:
        path: Where in the value the fault lies, e.g. `payload.lines[3].price`.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(path, problem)
        self.path = path
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.path} cannot be stored: {self.problem}"


class InvalidService(InvokeRetryError, ValueError):
    """What was to be registered cannot be a service."""


class DuplicateService(InvokeRetryError, ValueError):
    """The name is taken by another service of the registry."""


class ServiceNotFound(InvokeRetryError, KeyError):
    """No service of that name is registered.

    Attributes:
        name: The name that was asked for.
    """

    def __init__(self, name: str, known: Iterable[str] = ()) -> None:
        self.name = name
        self.known = tuple(known)
        super().__init__(name, self.known)

    def __str__(self) -> str:
        from difflib import get_close_matches  # noqa: PLC0415  (slow to import, and seldom needed)

        close = get_close_matches(self.name, self.known, n=3)
        if close:
            hint = f"did you mean {' or '.join(map(repr, close))}?"
        elif self.known:
            hint = f"{len(self.known)} other services are registered"
        else:
            hint = "the registry is empty; register it before invoking it"
        return f"no service is named {self.name[:200]!r}; {hint}"


class CidConflict(InvokeRetryError, ValueError):
    """The cid belongs to another request (target, payload, callback or context differ)."""


class InvocationNotFound(InvokeRetryError, LookupError):
    """No invocation has that cid, or it was pruned after its retention."""


class InvalidState(InvokeRetryError, RuntimeError):
    """The invocation, or the coordinator, is in a state that does not allow this."""


class NotRunning(InvokeRetryError, RuntimeError):
    """The background is not running: the coordinator was not entered, is leaving, or has left."""


class BackendError(InvokeRetryError):
    """The backend could not do what was asked.

    Attributes:
        cid: The id of the invocation concerned, if there is one.
    """

    def __init__(self, message: str, cid: str | None = None) -> None:
        super().__init__(message, cid)
        self.message = message
        self.cid = cid

    def __str__(self) -> str:
        return self.message if self.cid is None else f"{self.message} ({self.cid})"


class BackendFull(BackendError):
    """The backend holds `max_waiting` unfinished invocations; nothing was accepted."""


def group_members(error: BaseException) -> tuple[BaseException, ...] | None:
    """The errors that a group holds; None if the error is no group."""
    if isinstance(error, BaseExceptionGroup):
        return error.exceptions  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return None
