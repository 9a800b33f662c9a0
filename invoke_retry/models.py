"""What people are told about an invocation: frozen pydantic models.

Pydantic builds them when the first coordinator is made: neither importing nor a call waits for it.
"""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, PlainSerializer

from invoke_retry.correlation import CorrelationId

State = Literal[
    "waiting", "running", "notifying", "succeeded", "failed", "cancelled", "dead", "parked"
]
Reason = Literal[
    "succeeded", "exhausted", "permanent", "deadline", "cancelled", "abandoned", "parked"
]


def time_text(time: datetime) -> str:
    """An aware time as JSON has it."""
    return time.astimezone(UTC).isoformat(timespec="microseconds")


UtcTime = Annotated[
    AwareDatetime,
    PlainSerializer(time_text, return_type=str, when_used="json"),
]
"""An aware time; as JSON in UTC with six fraction digits: `2015-01-21T20:25:25.446454+00:00`.

A number is read as seconds since the Unix epoch.
"""


def utc_time(timestamp: float) -> datetime:
    """Seconds since the Unix epoch as a `UtcTime`."""
    return datetime.fromtimestamp(timestamp, UTC)


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, defer_build=True)


class ErrorInfo(_Model):
    """An error as text; nothing stored is ever turned back into an exception.

    Attributes:
        type: The qualified name of its class without `builtins.`, e.g. `httpx.ReadTimeout`.
        message: Its own text: bounded, control characters and lone surrogates escaped.
    """

    type: str
    message: str


class Attempt(_Model):
    """One call of the target.

    Attributes:
        number: From 1, in order; a number is never used twice.
        started_at: When the target was called.
        ended_at: When it was over; null while it runs.
        error: How it failed; null if it succeeded or still runs.
        traceback: Where it failed: text without the values of variables, bounded.
    """

    number: int
    started_at: UtcTime
    ended_at: UtcTime | None = None
    error: ErrorInfo | None = None
    traceback: str | None = None


class CallbackPayload(_Model):
    """The outcome of a background invocation, as its callback service is told it.

    Attributes:
        ok: Whether the target succeeded.
        source: Who invoked: the name of a service, or of the coordinator.
        target: The service that was invoked.
        retry_repeats: How many attempts could follow the first one.
        retry_seconds: The policy's interval in seconds; an int stays an int.
        call_cid: The id of the invocation.
        orig_cid: The id of whoever invoked.
        req_ts_utc: When the first attempt began, inline or background; null if none did.
        context: What the caller gave as `context=`, unchanged.
        response: What the target returned, as plain JSON; null if it failed.
        response_omitted: Why *response* is null although the target succeeded with a value.
        resp_ts_utc: When the outcome was known.
        attempts: How many attempts were made.
        error: The last error; null if the target succeeded or none was made.
        reason: What ended it. `abandoned`: the coordinator was left before it was done (memory
            only). `parked`: it could not be run for too long.
    """

    ok: bool
    source: str
    target: str
    retry_repeats: int
    retry_seconds: int | float
    call_cid: CorrelationId
    orig_cid: str
    req_ts_utc: UtcTime | None
    context: Any = None
    response: Any = None
    response_omitted: str | None = None
    resp_ts_utc: UtcTime
    attempts: int
    error: ErrorInfo | None = None
    reason: Reason


class Invocation(_Model):
    """A background invocation as it stands now.

    The fields that `CallbackPayload` has mean the same here; what is not known yet is null.

    Attributes:
        state: `waiting`, `running`, `notifying` (the outcome is recorded, its callback is not
            delivered yet), `succeeded`, `failed`, `cancelled`, `dead` (the callback gave up) or
            `parked` (it cannot run here now).
        callback: The service that is told of the outcome.
        payload: What the target is given, as plain JSON; null also if it is given nothing.
        created_at: When it was accepted.
        next_attempt_at: When the target, or in `notifying` the callback, is called next.
        deliveries: How many times the callback was called.
        delivery_error: How the latest of these calls failed.
        parked_because: What keeps it from running.
        resubmit_of: The invocation that this one repeats, see `InvokeRetry.resubmit`.
        history: The latest 100 attempts, oldest first.
    """

    state: State
    call_cid: CorrelationId
    target: str
    callback: str | None
    source: str
    orig_cid: str
    payload: Any = None
    context: Any = None
    retry_repeats: int
    retry_seconds: int | float
    created_at: UtcTime
    next_attempt_at: UtcTime | None = None
    attempts: int
    req_ts_utc: UtcTime | None = None
    ok: bool | None = None
    reason: Reason | None = None
    response: Any = None
    response_omitted: str | None = None
    resp_ts_utc: UtcTime | None = None
    error: ErrorInfo | None = None
    deliveries: int = 0
    delivery_error: ErrorInfo | None = None
    parked_because: str | None = None
    resubmit_of: CorrelationId | None = None
    history: list[Attempt] = []


class Health(_Model):
    """Whether the background is alive.

    Attributes:
        ok: Whether what is accepted now will be run.
        problem: Why not; null if all is well.
        running: Attempts and deliveries under way.
        max_running: How many may be under way.
    """

    ok: bool
    problem: str | None = None
    running: int = 0
    max_running: int = 0


MODELS = (ErrorInfo, Attempt, CallbackPayload, Invocation, Health)
