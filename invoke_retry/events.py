"""What hooks are told: one class for each thing that happens to an invocation.

A hook is a plain callable that takes one event. It runs in the event loop, so it must not block.

Every event says when it was (*at*, in UTC), of which invocation (*cid*), and of which service that
is invoked (*target*). Events are named tuples: nothing else that is frozen and typed is as quick to
define and to make.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from inspect import iscoroutinefunction
from typing import NamedTuple

from invoke_retry.durations import shown
from invoke_retry.failure import printable
from invoke_retry.logs import logger
from invoke_retry.models import ErrorInfo, Reason


class Accepted(NamedTuple):
    """A backend has taken an invocation into its keeping."""

    at: datetime
    cid: str
    target: str
    source: str
    orig_cid: str
    callback: str | None


class AttemptStarted(NamedTuple):
    """The target is called; *background* says where."""

    at: datetime
    cid: str
    target: str
    attempt: int
    repeats: int
    background: bool


class AttemptFailed(NamedTuple):
    """The target failed after *seconds*."""

    at: datetime
    cid: str
    target: str
    attempt: int
    repeats: int
    background: bool
    error: ErrorInfo
    seconds: float


class Waiting(NamedTuple):
    """Attempt number *attempt* follows in *seconds*."""

    at: datetime
    cid: str
    target: str
    attempt: int
    seconds: float
    background: bool


class Outcome(NamedTuple):
    """It is known what became of the invocation; in the background it is recorded, too."""

    at: datetime
    cid: str
    target: str
    ok: bool
    reason: Reason
    attempts: int
    error: ErrorInfo | None
    background: bool


class CallbackDelivered(NamedTuple):
    """The callback has taken the outcome."""

    at: datetime
    cid: str
    target: str
    callback: str
    deliveries: int


class CallbackFailed(NamedTuple):
    """The callback failed; *seconds* until it is called again, None if it is not."""

    at: datetime
    cid: str
    target: str
    callback: str
    deliveries: int
    error: ErrorInfo
    seconds: float | None


class Dead(NamedTuple):
    """The callback gave up: the outcome is kept as a dead letter."""

    at: datetime
    cid: str
    target: str
    callback: str


class Parked(NamedTuple):
    """The invocation cannot run here now."""

    at: datetime
    cid: str
    target: str
    because: str


Event = (
    Accepted
    | AttemptStarted
    | AttemptFailed
    | Waiting
    | Outcome
    | CallbackDelivered
    | CallbackFailed
    | Dead
    | Parked
)
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
