"""All that is known of one background invocation, as backends keep it, and how people see it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

from invoke_retry.correlation import CorrelationId
from invoke_retry.failure import Failure
from invoke_retry.models import (
    Attempt,
    CallbackPayload,
    Invocation,
    Reason,
    State,
    utc_time,
)
from invoke_retry.policy import RetryPolicy
from invoke_retry.storable import Codec, any_codec, load_any

HISTORY_LIMIT = 100

# final states, from which nothing but pruning follows; `dead` can still be redelivered
FINAL: frozenset[State] = frozenset(("succeeded", "failed", "cancelled"))


class PastAttempt(NamedTuple):
    """An attempt that is over; times in seconds since the Unix epoch."""

    number: int
    started_at: float
    ended_at: float
    failure: Failure | None


class Outcome(NamedTuple):
    """What became of an invocation; recorded once, never changed."""

    reason: Reason
    at: float
    response: bytes | None = None
    response_omitted: str | None = None
    error: Failure | None = None


class Record:
    """One background invocation. Only `machine` changes it once it is accepted.

    `*_at` is in seconds since the Unix epoch. `due` and `began` are on the coordinator's monotonic
    clock; a backend that outlives the process translates them.

    Attributes:
        state: Where its life stands.
        token: Grows whenever somebody takes it or decides over it; proves who came last.
        due: When something happens to it next: an attempt, a delivery, or the end of its keeping.
            None while somebody holds it.
        began: Since when the deadline counts: of the invocation, and after the outcome of its
            callback.
        attempts: Calls of the target made or begun.
        deliveries: Calls of the callback made or begun since the outcome, or since redelivery.
        attempt_at: When the attempt under way began.
        first_at: When the first attempt began.
        history: The latest attempts that are over, oldest first.
    """

    __slots__ = (
        "attempt_at",
        "attempts",
        "began",
        "callback",
        "cid",
        "context",
        "created_at",
        "deliveries",
        "delivery_error",
        "due",
        "first_at",
        "history",
        "orig_cid",
        "outcome",
        "parked_because",
        "payload",
        "policy",
        "resubmit_of",
        "source",
        "state",
        "target",
        "token",
    )

    def __init__(
        self,
        cid: CorrelationId,
        target: str,
        callback: str | None,
        source: str,
        orig_cid: str,
        payload: bytes | None,
        context: bytes | None,
        policy: RetryPolicy,
        created_at: float,
        began: float,
        due: float,
        resubmit_of: CorrelationId | None = None,
    ) -> None:
        self.cid = cid
        self.target = target
        self.callback = callback
        self.source = source
        self.orig_cid = orig_cid
        self.payload = payload
        self.context = context
        self.policy = policy
        self.created_at = created_at
        self.began = began
        self.due: float | None = due
        self.resubmit_of = resubmit_of
        self.state: State = "waiting"
        self.token = 0
        self.attempts = 0
        self.deliveries = 0
        self.attempt_at: float | None = None
        self.first_at: float | None = None
        self.history: tuple[PastAttempt, ...] = ()
        self.outcome: Outcome | None = None
        self.delivery_error: Failure | None = None
        self.parked_because: str | None = None

    def copy(self) -> Record:
        """Another record that is changed on its own."""
        other: Record = object.__new__(Record)
        for name in Record.__slots__:
            setattr(other, name, getattr(self, name))
        return other

    def become(self, other: Record) -> None:
        """Take over all that the other is."""
        for name in Record.__slots__:
            setattr(self, name, getattr(other, name))

    @property
    def service(self) -> str:
        """The service that is called next: the target, and after the outcome the callback."""
        return self.target if self.outcome is None else self.callback or self.target

    @property
    def deadline(self) -> float | None:
        """When the invocation must be over, on the monotonic clock; None without a limit."""
        limit = self.policy.deadline
        return None if limit is None or self.outcome is not None else self.began + limit

    @property
    def error(self) -> Failure | None:
        """The error of the outcome, or of the latest attempt."""
        if self.outcome is not None:
            return self.outcome.error
        return self.history[-1].failure if self.history else None

    def same_request(self, other: Record, codec: Codec) -> bool:
        """Whether the other asks for the same, whatever its policy.

        Args:
            codec: How payloads of the target are stored.
        """
        return (
            self.target == other.target
            and self.callback == other.callback
            and codec.is_same(self.payload, other.payload)
            and any_codec().is_same(self.context, other.context)
        )


def callback_payload(record: Record) -> CallbackPayload:
    """What the callback is told; the same bytes however often it is made."""
    return CallbackPayload(**_told(record, utc_time))


def callback_json(record: Record) -> dict[str, Any]:
    """The same as plain JSON: what `callback_payload(record).model_dump(mode="json")` gives.

    Its context and response are fresh, and are not copied once more.
    """
    told = _told(record, _time_text)
    told["call_cid"] = str(record.cid)
    return told


def _told(record: Record, time: Callable[[float], object]) -> dict[str, Any]:
    outcome = record.outcome
    assert outcome is not None
    first_at, error = record.first_at, outcome.error
    return {
        "ok": outcome.reason == "succeeded",
        "source": record.source,
        "target": record.target,
        "retry_repeats": record.policy.repeats,
        "retry_seconds": record.policy.seconds,
        "call_cid": record.cid,
        "orig_cid": record.orig_cid,
        "req_ts_utc": None if first_at is None else time(first_at),
        "context": load_any(record.context),
        "response": load_any(outcome.response),
        "response_omitted": outcome.response_omitted,
        "resp_ts_utc": time(outcome.at),
        "attempts": record.attempts,
        "error": error and {"type": error.type, "message": error.message},
        "reason": outcome.reason,
    }


def _time_text(timestamp: float) -> str:
    return utc_time(timestamp).isoformat("T", "microseconds")


def invocation(record: Record, monotonic: float, utc: float) -> Invocation:
    """The record as people see it.

    Args:
        monotonic: What the coordinator's monotonic clock says now.
        utc: What its wall clock says at the same moment.
    """
    outcome = record.outcome
    told: dict[str, Any] = {}
    if outcome is not None:
        told = {
            "ok": outcome.reason == "succeeded",
            "reason": outcome.reason,
            "response": load_any(outcome.response),
            "response_omitted": outcome.response_omitted,
            "resp_ts_utc": utc_time(outcome.at),
        }
    waits = record.due is not None and record.state in ("waiting", "notifying")
    return Invocation(
        state=record.state,
        call_cid=record.cid,
        target=record.target,
        callback=record.callback,
        source=record.source,
        orig_cid=record.orig_cid,
        payload=load_any(record.payload),
        context=load_any(record.context),
        retry_repeats=record.policy.repeats,
        retry_seconds=record.policy.seconds,
        created_at=utc_time(record.created_at),
        next_attempt_at=utc_time(utc + record.due - monotonic)
        if waits and record.due is not None
        else None,
        attempts=record.attempts,
        req_ts_utc=_time(record.first_at),
        error=record.error and record.error.info,
        deliveries=record.deliveries,
        delivery_error=record.delivery_error and record.delivery_error.info,
        parked_because=record.parked_because,
        resubmit_of=record.resubmit_of,
        history=_history(record),
        **told,
    )


def _history(record: Record) -> list[Attempt]:
    shown = [
        Attempt(
            number=past.number,
            started_at=utc_time(past.started_at),
            ended_at=utc_time(past.ended_at),
            error=past.failure and past.failure.info,
            traceback=past.failure and past.failure.traceback,
        )
        for past in record.history
    ]
    if record.attempt_at is not None:
        shown.append(Attempt(number=record.attempts, started_at=utc_time(record.attempt_at)))
    return shown[-HISTORY_LIMIT:]


def _time(timestamp: float | None) -> datetime | None:
    return None if timestamp is None else utc_time(timestamp)
