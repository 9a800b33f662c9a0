"""A record as the body of a message, and back: four lines of JSON.

The first line is what `Form` describes; payload, context and response follow, byte for byte as they
are kept elsewhere, or empty. `due` and `began` are in *server time*, which all processes share.

What has a higher version than ours was written by a newer release, and is left to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json, to_json

from invoke_retry.backends.nats.layout import token
from invoke_retry.correlation import CorrelationId
from invoke_retry.failure import Failure
from invoke_retry.models import Reason, State
from invoke_retry.policy import RetryPolicy
from invoke_retry.record import Outcome, PastAttempt, Record

VERSION: Final = 1
_KEPT_TRACEBACKS = 3
_KEPT_ATTEMPTS = 10
_KEPT_TEXTS = 1_000

_Count = Annotated[int, Field(ge=0, le=2**53)]
_Time = Annotated[float, Field(gt=-1e11, lt=1e11)]
_Failure = tuple[str, str, str | None]


# a schedule brings what is parked to `due`, as it is, when it has been there for too long; and what
# is held by nobody is brought there as it was held
_PLACES: Final[Mapping[State, tuple[str, ...]]] = {
    "waiting": ("at", "due"),
    "running": ("run", "due"),
    "notifying": ("at", "due", "run"),
    "parked": ("park", "due"),
}


class Form(BaseModel):
    """The first line. Fields may be added; a change of their meaning is a new version.

    Attributes:
        v: The version.
        op: What tells this write from every other.
        lease: The sequence of the message in `due` by which it is held.
    """

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    v: _Count
    op: str
    lease: _Count | None
    cid: str
    target: str
    callback: str | None
    source: str
    orig_cid: str
    policy: str
    created_at: _Time
    resubmit_of: str | None
    state: State
    token: _Count
    attempts: _Count
    deliveries: _Count
    due: _Time | None
    began: _Time
    attempt_at: _Time | None
    first_at: _Time | None
    outcome: tuple[Reason, _Time, str | None, _Failure | None] | None
    delivery_error: _Failure | None
    parked_because: str | None
    history: list[tuple[_Count, _Time, _Time, _Failure | None]]


class Unreadable(Exception):
    """Somebody else has written it, or it is damaged."""


class Found(NamedTuple):
    """A record as it stands in the stream.

    Attributes:
        subject: Where it stands.
        sequence: The message's number.
        version: By which form it was written.
        op: Which write it was.
        lease: The message in `due` by which it is held.
    """

    record: Record
    subject: str
    sequence: int
    version: int
    op: str
    lease: int | None

    @property
    def is_newer(self) -> bool:
        """Whether a newer release has written it, so that it may not be changed here."""
        return self.version > VERSION


def dump(record: Record, shift: float, op: str, lease: int | None) -> bytes:
    """The body of the message that a record becomes."""
    outcome = record.outcome
    form = {
        "v": VERSION,
        "op": op,
        "lease": lease,
        "cid": record.cid,
        "target": record.target,
        "callback": record.callback,
        "source": record.source,
        "orig_cid": record.orig_cid,
        "policy": _policy_text(record.policy),
        "created_at": record.created_at,
        "resubmit_of": record.resubmit_of,
        "state": record.state,
        "token": record.token,
        "attempts": record.attempts,
        "deliveries": record.deliveries,
        "due": None if record.due is None else record.due + shift,
        "began": record.began + shift,
        "attempt_at": record.attempt_at,
        "first_at": record.first_at,
        "outcome": outcome
        and (outcome.reason, outcome.at, outcome.response_omitted, outcome.error),
        "delivery_error": record.delivery_error,
        "parked_because": record.parked_because,
        "history": record.history,
    }
    response = outcome.response if outcome is not None else None
    lines = (to_json(form), record.payload or b"", record.context or b"", response or b"")
    return b"\n".join(lines)


def load(data: bytes, shift: float, subject: str, sequence: int) -> Found:
    """The record that a message is.

    Raises:
        Unreadable: It is damaged.
    """
    try:
        first, *more = data.split(b"\n")
        form = Form.model_validate_json(first)
        payload, context, response = map(_json, more)
        record = _record(form, payload, context, response, shift)
        _check_place(record, subject)
        if form.v <= VERSION:
            _check_state(record, subject)
    except Exception as error:
        raise Unreadable(f"it cannot be read: {type(error).__name__}") from error
    return Found(record, subject, sequence, form.v, form.op, form.lease)


def _record(
    form: Form, payload: bytes | None, context: bytes | None, response: bytes | None, shift: float
) -> Record:
    record = Record(
        CorrelationId(form.cid), form.target, form.callback, form.source, form.orig_cid, payload,
        context, _policy(form.policy), form.created_at, form.began - shift, 0.0,
        resubmit_of=None if form.resubmit_of is None else CorrelationId(form.resubmit_of),
    )  # fmt: skip
    record.state = form.state
    record.token, record.attempts, record.deliveries = form.token, form.attempts, form.deliveries
    record.due = None if form.due is None else form.due - shift
    record.attempt_at, record.first_at = form.attempt_at, form.first_at
    record.delivery_error = _failure(form.delivery_error)
    record.parked_because = form.parked_because
    record.history = tuple(
        PastAttempt(number, started_at, ended_at, _failure(failure))
        for number, started_at, ended_at, failure in form.history
    )
    if form.outcome is not None:
        reason, at, omitted, error = form.outcome
        record.outcome = Outcome(reason, at, response, omitted, _failure(error))
    return record


def _check_place(record: Record, subject: str) -> None:
    place, cid, service = subject.split(".")[2:5]
    if cid != record.cid or (place != "run" and service != token(record.service)):
        raise ValueError("it stands under another name")


def _check_state(record: Record, subject: str) -> None:
    """What stands in a place of the stream is handed out, parked or kept as what it should be."""
    state = record.state
    is_undecided = state in ("waiting", "running")
    if subject.split(".")[2] not in _PLACES.get(state, ("end",)):
        raise ValueError("its state is of another place")
    if is_undecided and (record.due is None) is not (state == "running"):
        raise ValueError("it is held, or waits, and has the time of the other")
    if state != "parked" and (record.outcome is None) is not is_undecided:
        raise ValueError("an outcome too early, or none")


def damaged(cid: str, because: str) -> Record:
    """What can still be shown of a message that cannot be read."""
    try:
        known = CorrelationId(cid)
    except ValueError:
        known = CorrelationId.from_key(cid)
    record = Record(known, "?", None, "?", "?", None, None, RetryPolicy(0, 0), 0.0, 0.0, 0.0)
    record.state = "parked"
    record.due = None
    record.parked_because = because
    return record


def dump_within(
    record: Record, shift: float, op: str, lease: int | None, limit: int
) -> bytes | None:
    """The body, shortened until it fits: old tracebacks go first, then old attempts.

    Args:
        limit: How many bytes a message may have.

    Returns:
        None if it cannot be made to fit. The record is changed to what was written.
    """
    data = dump(record, shift, op, lease)
    for shorten in (_few_tracebacks, _no_tracebacks, _few_attempts, _no_response):
        if len(data) <= limit:
            return data
        shorten(record)
        data = dump(record, shift, op, lease)
    return data if len(data) <= limit else None


def _few_tracebacks(record: Record, kept: int = _KEPT_TRACEBACKS) -> None:
    cut = len(record.history) - kept
    record.history = tuple(
        past._replace(failure=past.failure._replace(traceback=None))
        if past.failure is not None and i < cut
        else past
        for i, past in enumerate(record.history)
    )


def _no_tracebacks(record: Record) -> None:
    _few_tracebacks(record, 0)
    outcome = record.outcome
    if outcome is not None and outcome.error is not None:
        record.outcome = outcome._replace(error=outcome.error._replace(traceback=None))
    if record.delivery_error is not None:
        record.delivery_error = record.delivery_error._replace(traceback=None)


def _few_attempts(record: Record) -> None:
    record.history = record.history[-_KEPT_ATTEMPTS:]


def _no_response(record: Record) -> None:
    outcome = record.outcome
    if outcome is not None and outcome.response is not None:
        omitted = "the response does not fit into a message of the NATS server (max_payload)"
        record.outcome = outcome._replace(response=None, response_omitted=omitted)


def _json(line: bytes) -> bytes | None:
    if not line:
        return None
    from_json(line)
    return line


def _failure(told: _Failure | None) -> Failure | None:
    return None if told is None else Failure(*told)


_policy = lru_cache(maxsize=1_000)(RetryPolicy.model_validate_json)
_texts: dict[int, tuple[RetryPolicy, str]] = {}


def _policy_text(policy: RetryPolicy) -> str:
    # by identity: policies that are equal may differ (1 == 1.0), and a few are used for all
    known = _texts.get(id(policy))
    if known is not None and known[0] is policy:
        return known[1]
    if len(_texts) >= _KEPT_TEXTS:
        _texts.clear()
    text = policy.model_dump_json()
    _texts[id(policy)] = policy, text
    return text


def text_of(message: Any) -> str:
    """What a server or client says, on one line."""
    return " ".join(str(message).split())[:300]
