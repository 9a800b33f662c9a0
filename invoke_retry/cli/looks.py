"""A look at a store as `watch` takes it again and again, and what follows from several of them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple

from invoke_retry.backends import Query
from invoke_retry.cli.counting import Tally, tally
from invoke_retry.cli.stores import Store
from invoke_retry.errors import BackendError
from invoke_retry.models import ErrorInfo, Invocation, State, utc_time

MINUTE: Final = 60.0
RATES: Final = ("accepted", "succeeded", "failed", "cancelled", "dead")

_FAILING: Final[tuple[State, ...]] = (
    "failed", "dead", "parked", "notifying", "waiting", "running",
)  # fmt: skip
_OF_EACH_STATE = 20
_REST = 9  # a look that took a second is followed by nine without one


class Failure(NamedTuple):
    """What went wrong last with an invocation.

    Attributes:
        at: When; of what is parked, or whose callback fails, the latest time that is known.
        error: Of the target, or of the callback where that fails.
    """

    at: datetime
    invocation: Invocation
    error: ErrorInfo


@dataclass(frozen=True)
class Look:
    """What a store holds at one moment.

    Attributes:
        counts: By state; also what was pruned.
        services: What is kept, by service and state; None where the engine cannot tell.
        failures: The newest first, among the newest invocations of each state.
    """

    at: datetime
    counts: dict[str, int]
    services: Tally | None
    paused: list[str]
    failures: list[Failure]


async def take_look(store: Store) -> Look:
    """Look once: a few short reads, which hold nobody up."""
    counts = await store.counts()
    services = await tally(store.backend)
    paused = sorted(await store.paused())
    failures: list[Failure] = []
    for state in _FAILING:
        if counts[state]:
            found = await _newest(store, state)
            failures += [failure for each in found if (failure := _failure(each)) is not None]
    failures.sort(key=lambda failure: failure.at, reverse=True)
    return Look(utc_time(store.clock.utc()), counts, services, paused, failures)


async def _newest(store: Store, state: State) -> list[Invocation]:
    """The newest of that state; none where the engine cannot search so many."""
    try:
        return await store.found(Query(state=state, limit=_OF_EACH_STATE))
    except BackendError:  # if it does not answer at all, the next look says so
        return []


def _failure(invocation: Invocation) -> Failure | None:
    at, error = invocation.resp_ts_utc or invocation.created_at, invocation.error
    for attempt in reversed(invocation.history):
        if attempt.ended_at is not None:
            at = max(at, attempt.ended_at)
            break
    if invocation.state in ("dead", "notifying"):
        error = invocation.delivery_error
    elif invocation.parked_because is not None:
        error = ErrorInfo(type="parked", message=invocation.parked_because)
    return None if error is None else Failure(at, invocation, error)


class Rate(NamedTuple):
    """How many per second; None: not known after a single look."""

    now: float | None
    minute: float | None


class Rates:
    """How fast the counts grow.

    Attributes:
        trend: The rates from look to look, oldest first, for each of `RATES`.
    """

    def __init__(self, length: int = 300) -> None:
        self._seen: deque[tuple[float, dict[str, int]]] = deque()
        self.trend: dict[str, deque[float]] = {name: deque(maxlen=length) for name in RATES}

    def add(self, monotonic: float, counts: dict[str, int]) -> dict[str, Rate]:
        """The rates since the last look, and over the last minute.

        Args:
            monotonic: When the counts were so, in seconds.
        """
        # all that is ever accepted is in one of the states, and final ones are never uncounted
        numbers = {**counts, "accepted": sum(counts.values())}
        seen = self._seen
        while len(seen) > 1 and monotonic - seen[1][0] >= MINUTE:
            seen.popleft()
        rates: dict[str, Rate] = {name: Rate(None, None) for name in RATES}
        if seen:
            rates = {
                name: Rate(
                    _rate(name, seen[-1], monotonic, numbers),
                    _rate(name, seen[0], monotonic, numbers),
                )
                for name in RATES
            }
        for name, rate in rates.items():
            if rate.now is not None:
                self.trend[name].append(rate.now)
        seen.append((monotonic, numbers))
        return rates


def _rate(
    name: str, before: tuple[float, dict[str, int]], now: float, numbers: dict[str, int]
) -> float:
    seconds = now - before[0]
    # a dead letter that is told again is dead no longer
    return max(0, numbers[name] - before[1][name]) / seconds if seconds > 0 else 0.0


def pause_after(interval: float, took: float) -> float:
    """Seconds until the next look: looking takes a tenth of the time at most."""
    return max(interval - took, _REST * took)
