"""What belongs to one coordinator and is passed to all that works for it."""

from __future__ import annotations

from random import Random
from typing import Any

from invoke_retry.clock import Clock, running_clock
from invoke_retry.correlation import CorrelationId
from invoke_retry.events import Event, Hooks
from invoke_retry.logs import Log
from invoke_retry.models import utc_time


class Environment:
    """One clock, one random source, one set of hooks and one log.

    Attributes:
        is_observed: Whether there are any hooks.
    """

    __slots__ = ("_clock", "hooks", "is_observed", "log", "random")

    def __init__(self, clock: Clock | None, random: Random, hooks: Hooks) -> None:
        self._clock = clock
        self.random = random
        self.hooks = hooks
        self.is_observed = bool(hooks)
        self.log = Log(clock)

    def tell(self, kind: type[Event], cid: str, target: str, **fields: Any) -> None:
        """Tell the hooks, if there are any, of an event that happens now."""
        if self.is_observed:
            at = utc_time(self.clock.utc())
            self.hooks.emit(kind(at=at, cid=cid, target=target, **fields))

    def new_cid(self) -> CorrelationId:
        """A fresh id from the random source."""
        return CorrelationId.new(self.random)

    @property
    def clock(self) -> Clock:
        """The clock that was given, else that of the running loop."""
        return self._clock or running_clock()
