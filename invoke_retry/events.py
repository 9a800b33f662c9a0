"""What hooks are told: one class for each thing that happens to an invocation.

A hook is a plain callable that takes one event. It runs in the event loop, so it must not block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from inspect import iscoroutinefunction

from invoke_retry.durations import shown
from invoke_retry.failure import printable
from invoke_retry.logs import logger
from invoke_retry.models import ErrorInfo, Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base of all events.

    Attributes:
        at: When, in UTC.
        cid: The id of the invocation.
        target: The service that is invoked.
    """

    at: datetime
    cid: str
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted(Event):
    """A backend has taken an invocation into its keeping."""

    source: str
    orig_cid: str
    callback: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptStarted(Event):
    """The target is called; *background* says where."""

    attempt: int
    repeats: int
    background: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFailed(Event):
    """The target failed after *seconds*."""

    attempt: int
    repeats: int
    background: bool
    error: ErrorInfo
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting(Event):
    """Attempt number *attempt* follows in *seconds*."""

    attempt: int
    seconds: float
    background: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(Event):
    """It is known what became of the invocation; in the background it is recorded, too."""

    ok: bool
    reason: Reason
    attempts: int
    error: ErrorInfo | None
    background: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackDelivered(Event):
    """The callback has taken the outcome."""

    callback: str
    deliveries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackFailed(Event):
    """The callback failed; *seconds* until it is called again, None if it is not."""

    callback: str
    deliveries: int
    error: ErrorInfo
    seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dead(Event):
    """The callback gave up: the outcome is kept as a dead letter."""

    callback: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Parked(Event):
    """The invocation cannot run here now."""

    because: str


Hook = Callable[[Event], object]


class Hooks:
    """Tells every hook; one that raises is logged once and harms nothing."""

    __slots__ = ("_broken", "_hooks")

    def __init__(self, hooks: Iterable[Hook]) -> None:
        self._hooks: Sequence[Hook] = tuple(hooks)
        self._broken: set[int] = set()
        for hook in self._hooks:
            if not callable(hook) or iscoroutinefunction(hook):  # type: ignore[redundant-expr]
                raise TypeError(
                    f"a hook is {shown(hook)}, but must be a plain callable that takes one event"
                )

    def __bool__(self) -> bool:
        return bool(self._hooks)

    def emit(self, event: Event) -> None:
        for i, hook in enumerate(self._hooks):
            try:
                hook(event)
            except KeyboardInterrupt:
                raise
            except BaseException:  # whatever it raises is not the invocation's fault
                if i not in self._broken:
                    self._broken.add(i)
                    logger.exception(
                        "hook %s raised at %s; it is called on, and not logged again",
                        printable(shown(hook)),
                        type(event).__name__,
                    )
