"""The life of a background invocation: one pure table that every backend is driven by.

                    start                end               settle
        waiting ------------> running ---------> notifying --------> succeeded, failed,
           ^  |  retry, release  |                 |    ^             cancelled
           |  +<-----------------+            bury |    | redeliver
           |                                       v    |
           | unpark     park (from each of         dead
        parked <------- the three states)

`end` records the outcome: from then on the target is never called again, and only its callback is
left to do. An invocation without a callback passes `notifying` in the same step.

Each transition is a function of a record and of values, without I/O, clock or randomness. It
changes the record in place, and raises `IllegalTransition` before it changes anything if the table
does not allow it. A backend makes each transition one guarded write: it stands only if the
record's token is still the one that the writer knew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from invoke_retry.errors import InvalidState
from invoke_retry.failure import Failure
from invoke_retry.models import Reason, State
from invoke_retry.record import HISTORY_LIMIT, Outcome, PastAttempt, Record

TABLE: Final[Mapping[State, Mapping[str, tuple[State, ...]]]] = {
    "waiting": {
        "start": ("running",),
        "hasten": ("waiting",),
        "end": ("notifying",),
        "park": ("parked",),
    },
    "running": {
        "take_over": ("running",),
        "retry": ("waiting",),
        "release": ("waiting",),
        "end": ("notifying",),
        "park": ("parked",),
    },
    "notifying": {
        "deliver": ("notifying",),
        "take_over": ("notifying",),
        "postpone": ("notifying",),
        "release": ("notifying",),
        "hasten": ("notifying",),
        "settle": ("succeeded", "failed", "cancelled"),
        "bury": ("dead",),
        "park": ("parked",),
    },
    "parked": {
        "unpark": ("waiting", "notifying"),
        "end": ("notifying",),
        "bury": ("dead",),
    },
    "dead": {"redeliver": ("notifying",)},
    "succeeded": {},
    "failed": {},
    "cancelled": {},
}

_SETTLED: Final[Mapping[Reason, State]] = {
    "succeeded": "succeeded",
    "cancelled": "cancelled",
    "exhausted": "failed",
    "permanent": "failed",
    "deadline": "failed",
    "abandoned": "failed",
    "parked": "failed",
}


class IllegalTransition(InvalidState):
    """The invocation is in a state that does not allow this."""


def _move(record: Record, event: str, state: State) -> None:
    is_decided = record.outcome is not None
    if (
        state not in TABLE[record.state].get(event, ())
        or (event == "end" and is_decided)
        or (event in ("settle", "bury") and not is_decided)
    ):
        raise IllegalTransition(f"{record.cid} is {record.state}, and cannot {event} to {state}")
    record.state = state


# What its holder does. The token is the holder's until somebody else decides.


def start(record: Record, utc: float) -> None:
    """Take it for an attempt, which is counted before it runs."""
    _move(record, "start", "running")
    record.token += 1
    record.attempts += 1
    record.due = None
    record.attempt_at = utc
    if record.first_at is None:
        record.first_at = utc


def retry(record: Record, due: float, ended_at: float, failure: Failure) -> None:
    """The attempt failed; there is another one."""
    _move(record, "retry", "waiting")
    _close_attempt(record, ended_at, failure)
    record.due = due


def finish(
    record: Record,
    due: float,
    reason: Reason,
    ended_at: float,
    *,
    response: bytes | None = None,
    response_omitted: str | None = None,
    failure: Failure | None = None,
    deliver_at_once: bool = False,
) -> None:
    """The attempt under way was the last one.

    Args:
        due: Now, on the monotonic clock.
        deliver_at_once: Whoever holds it goes on with its callback.
    """
    _move(record, "end", "notifying")
    _close_attempt(record, ended_at, failure)
    _record_outcome(record, due, Outcome(reason, ended_at, response, response_omitted, failure))
    if deliver_at_once and record.callback is not None:
        deliver(record)


def deliver(record: Record) -> None:
    """Take it for a delivery attempt, which is counted before it runs."""
    _move(record, "deliver", "notifying")
    record.token += 1
    record.deliveries += 1
    record.due = None


def settle(record: Record) -> None:
    """The callback has taken the outcome, or there is none to tell."""
    _move(record, "settle", _SETTLED[record.outcome.reason] if record.outcome else "failed")
    record.delivery_error = None
    record.due = None


def postpone(record: Record, due: float, error: Failure) -> None:
    """The callback failed; it is called again."""
    _move(record, "postpone", "notifying")
    record.delivery_error = error
    record.due = due


def bury(record: Record, error: Failure | None) -> None:
    """The callback gave up: a dead letter."""
    _move(record, "bury", "dead")
    record.delivery_error = error or record.delivery_error
    record.parked_because = None
    record.due = None


def release(record: Record, due: float) -> None:
    """Give it back as it was before it was taken: the attempt does not count."""
    if record.due is not None:
        raise IllegalTransition(f"{record.cid} is {record.state} and held by nobody")
    _move(record, "release", "notifying" if record.outcome else "waiting")
    _uncount(record)
    record.due = due


def park(record: Record, because: str) -> None:
    """It cannot run here now; an attempt or delivery that was taken for it does not count."""
    held = record.due is None
    _move(record, "park", "parked")
    if held:
        _uncount(record)
    record.token += 1
    record.parked_because = because
    record.due = None


# What others decide over it. The token grows, so that its holder, if any, loses it.


def end(
    record: Record,
    due: float,
    reason: Reason,
    utc: float,
    error: Failure | None = None,
    *,
    unstarted: bool = False,
) -> None:
    """Record an outcome from outside: cancelled, abandoned, out of time, parked for too long.

    Args:
        unstarted: It was taken for an attempt that was not made, and does not count.
    """
    _move(record, "end", "notifying")
    if unstarted:
        _uncount(record)
    if record.attempt_at is not None:
        name = "TimeoutError" if reason == "deadline" else "asyncio.exceptions.CancelledError"
        _close_attempt(record, utc, Failure(name, "cut off"))
    record.token += 1
    record.parked_because = None
    _record_outcome(record, due, Outcome(reason, utc, error=error or record.error))


def take_over(record: Record) -> None:
    """Hold what a holder that died has left; what it was doing has failed."""
    if record.due is not None:
        raise IllegalTransition(f"{record.cid} is {record.state} and held by nobody")
    _move(record, "take_over", record.state)
    record.token += 1


def hasten(record: Record, due: float) -> None:
    """Do now what waits for its time, or is parked."""
    if record.state == "parked":
        unpark(record, due)
        return
    if record.due is None:
        raise IllegalTransition(f"{record.cid} is under way already")
    _move(record, "hasten", record.state)
    record.due = due


def unpark(record: Record, due: float) -> None:
    """What kept it from running is gone, perhaps."""
    _move(record, "unpark", "notifying" if record.outcome else "waiting")
    record.token += 1
    record.parked_because = None
    record.due = due


def redeliver(record: Record, due: float) -> None:
    """Tell the callback again, with all attempts of its policy."""
    _move(record, "redeliver", "notifying")
    record.token += 1
    record.deliveries = 0
    record.began = record.due = due


def _record_outcome(record: Record, due: float, outcome: Outcome) -> None:
    record.outcome = outcome
    record.began = due
    record.due = due
    if record.callback is None:
        settle(record)


def _close_attempt(record: Record, ended_at: float, failure: Failure | None) -> None:
    started_at = record.attempt_at
    if started_at is None:
        return
    record.attempt_at = None
    # a wall clock that was set back must not show an attempt of negative length
    past = PastAttempt(record.attempts, started_at, max(started_at, ended_at), failure)
    record.history = (*record.history, past)[-HISTORY_LIMIT:]


def _uncount(record: Record) -> None:
    if record.outcome is not None:
        record.deliveries -= 1
        return
    record.attempts -= 1
    record.attempt_at = None
    if record.attempts == 0:
        record.first_at = None
