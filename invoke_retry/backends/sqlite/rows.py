"""A record as rows of the file, and back.

`due`, `began` and `deadline` are stored in *store time*, which every process of the machine shares
and which goes on after a reboot; `shift` is store time minus the coordinator's monotonic clock.
"""

from __future__ import annotations

import sqlite3
from functools import lru_cache
from typing import Any, Final, NamedTuple, cast, get_args

from pydantic_core import from_json

from invoke_retry.correlation import CorrelationId
from invoke_retry.failure import Failure
from invoke_retry.models import Reason, State
from invoke_retry.policy import RetryPolicy
from invoke_retry.record import HISTORY_LIMIT, Outcome, PastAttempt, Record
from invoke_retry.storable import has_surrogate

_FIXED: Final = (
    "cid", "target", "callback", "source", "orig_cid", "policy", "created_at", "resubmit_of",
)  # fmt: skip
_LIVE: Final = (
    "service", "state", "token", "attempts", "deliveries", "due", "began", "deadline", "owner",
    "attempt_at", "first_at", "reason", "outcome_at", "response_omitted", "error_type",
    "error_message", "delivery_error_type", "delivery_error_message", "parked_because",
)  # fmt: skip

# what the driver raises; of a damaged file SQLite may say things that are no text
ERRORS: Final = (sqlite3.Error, UnicodeDecodeError)

MOST: Final = 2**53
_LATEST: Final = 1e11  # seconds: some thousand years

STATES: frozenset[str] = frozenset(get_args(State))
_REASONS: frozenset[str] = frozenset(get_args(Reason))
_TEXT, _COUNT, _TIME = (str,), (int,), (float, int)
_NULL = (type(None),)
_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("cid", "target", "source", "orig_cid", "policy", "service", "state"), _TEXT),
    **dict.fromkeys(("token", "attempts", "deliveries"), _COUNT),
    **dict.fromkeys(("created_at", "began"), _TIME),
    **dict.fromkeys(("due", "deadline", "attempt_at", "first_at", "outcome_at"), _TIME + _NULL),
    "owner": _COUNT + _NULL,
}
_COLUMNS: Final = (*_FIXED, *_LIVE)
_EXPECTED: Final = tuple(_TYPES.get(name, _TEXT + _NULL) for name in _COLUMNS)

COLUMNS: Final = ", ".join(("id", *_COLUMNS))
READY: Final = "state IN ('waiting', 'notifying') AND due IS NOT NULL"
KEPT: Final = "state IN ('parked', 'dead', 'succeeded', 'failed', 'cancelled')"
SPOILT: Final = (
    "state NOT IN ('waiting', 'running', 'notifying', 'parked', 'dead', 'succeeded', 'failed', "
    "'cancelled') OR due NOT BETWEEN -1e11 AND 1e11 "  # text and blobs are above all numbers
    "OR (due IS NULL AND owner IS NULL AND state IN ('waiting', 'running', 'notifying'))"
)
_INSERT: Final = (
    f"INSERT INTO invocation ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))}) "
    "ON CONFLICT (cid) DO NOTHING"
)
_UPDATE: Final = (
    f"UPDATE invocation SET {', '.join(f'{name} = ?' for name in _LIVE)} "
    "WHERE id = ? AND token = ? AND owner IS ?"
)


class Unreadable(Exception):
    """A row that somebody else has changed, or that is damaged."""


class Stored(NamedTuple):
    """A record and where it stands in the file."""

    id: int
    record: Record
    owner: int | None


def insert(db: sqlite3.Connection, record: Record, owner: int, shift: float) -> int | None:
    """Write a new record: its row's id, or None if there is one of that cid."""
    fixed = (
        record.cid, record.target, record.callback, record.source, record.orig_cid,
        _policy_text(record.policy), record.created_at, record.resubmit_of,
    )  # fmt: skip
    inserted = db.execute(_INSERT, fixed + _live(record, owner, shift))
    row = inserted.lastrowid
    if inserted.rowcount != 1 or row is None:
        return None
    if record.payload is not None or record.context is not None:
        db.execute("INSERT INTO request VALUES (?, ?, ?)", (row, record.payload, record.context))
    _insert_attempts(db, row, record, 0)
    return row


def update(db: sqlite3.Connection, stored: Stored, after: Record, owner: int, shift: float) -> bool:
    """Write what a transition has changed; False if the row is another one meanwhile.

    Args:
        stored: What was read.
        owner: Who holds it from now on, if anybody does.
    """
    row, before, old_owner = stored
    changed = db.execute(_UPDATE, (*_live(after, owner, shift), row, before.token, old_owner))
    if changed.rowcount != 1:
        return False
    if after.history:
        _insert_attempts(db, row, after, before.history[-1].number if before.history else 0)
    if before.outcome is None and after.outcome is not None and after.outcome.response is not None:
        response = (row, after.outcome.response)
        db.execute("INSERT OR REPLACE INTO response VALUES (?, ?)", response)
    return True


def delete(db: sqlite3.Connection, row: int) -> None:
    """Forget a record for good."""
    for table in ("invocation", "request", "response", "attempt"):
        db.execute(f"DELETE FROM {table} WHERE id = ?", (row,))


def load(db: sqlite3.Connection, row: tuple[Any, ...], shift: float, *, history: int = 1) -> Stored:
    """The record of a row that was read by `COLUMNS`.

    Args:
        history: How many of its latest attempts are wanted.

    Raises:
        Unreadable: It is damaged.
    """
    try:
        return _load(db, row, shift, history)
    except sqlite3.Error:
        raise
    except Exception as error:
        raise Unreadable(f"its row cannot be read: {type(error).__name__}") from error


def _load(db: sqlite3.Connection, row: tuple[Any, ...], shift: float, history: int) -> Stored:
    for name, value, expected in zip(_COLUMNS, row[1:], _EXPECTED, strict=True):
        if not isinstance(value, expected):
            raise TypeError(f"{name} is of type {type(value).__name__}")
    (
        number, cid, target, callback, source, orig_cid, policy, created_at, resubmit_of,
        _, state, token, attempts, deliveries, due, began, deadline, owner, attempt_at, first_at,
        reason, outcome_at, response_omitted, error_type, error_message, delivery_error_type,
        delivery_error_message, parked_because,
    ) = row  # fmt: skip
    if state not in STATES or (reason is not None and reason not in _REASONS):
        raise ValueError(f"state is {state}, reason is {reason}")
    if not 0 <= min(token, attempts, deliveries) <= max(token, attempts, deliveries) <= MOST:
        raise ValueError("a number is out of range")
    if (reason is None) is not (outcome_at is None):
        raise ValueError("an outcome without its time, or a time without its outcome")
    _check_times(created_at, due, began, deadline, attempt_at, first_at, outcome_at)
    payload, context, response = _load_json(db, number)
    record = Record(
        CorrelationId(cid), target, callback, source, orig_cid, payload, context,
        _policy(policy), created_at, began - shift, 0.0,
        resubmit_of=None if resubmit_of is None else CorrelationId(resubmit_of),
    )  # fmt: skip
    record.state = state
    record.token, record.attempts, record.deliveries = token, attempts, deliveries
    record.due = None if due is None else due - shift
    record.attempt_at, record.first_at = attempt_at, first_at
    record.delivery_error = _failure(delivery_error_type, delivery_error_message)
    record.parked_because = parked_because
    if reason is not None:
        record.outcome = Outcome(
            cast("Reason", reason),
            outcome_at,
            response,
            response_omitted,
            _failure(error_type, error_message),
        )
    if attempts and history:
        record.history = _load_attempts(db, number, history)
    return Stored(number, record, owner)


def damaged(row: tuple[Any, ...], because: str) -> Record:
    """What can still be shown of a row that cannot be read."""
    told: dict[str, Any] = dict(zip(("id", *_COLUMNS), row, strict=True))

    def text(name: str) -> str:
        value = told[name]
        return value if isinstance(value, str) else "?"

    record = Record(
        shown_cid(row[0], told["cid"]), text("target"), None, text("source"), text("orig_cid"),
        None, None, RetryPolicy(0, 0), 0.0, 0.0, 0.0,
    )  # fmt: skip
    record.state = "parked"
    record.due = None
    record.parked_because = because
    return record


def is_text(value: object) -> bool:
    """Whether a row can hold it as text: what people ask for may be anything."""
    return isinstance(value, str) and not has_surrogate(value)


def shown_cid(row: int, cid: object) -> CorrelationId:
    """The id of a row, or one to show it by if its own is spoilt."""
    try:
        return CorrelationId(cid)
    except ValueError:
        return CorrelationId.from_key(f"row {row}")


def _live(record: Record, owner: int, shift: float) -> tuple[Any, ...]:
    outcome, error, delivery_error = record.outcome, record.error, record.delivery_error
    is_held = record.due is None and record.state in ("running", "notifying")
    deadline = record.deadline if record.state == "waiting" else None
    return (
        record.service, record.state, record.token, record.attempts, record.deliveries,
        None if record.due is None else record.due + shift,
        record.began + shift,
        None if deadline is None else deadline + shift,
        owner if is_held else None,
        record.attempt_at, record.first_at,
        outcome and outcome.reason, outcome and outcome.at, outcome and outcome.response_omitted,
        error and error.type, error and error.message,
        delivery_error and delivery_error.type, delivery_error and delivery_error.message,
        record.parked_because,
    )  # fmt: skip


def _insert_attempts(db: sqlite3.Connection, row: int, record: Record, known: int) -> None:
    for past in record.history:
        if past.number > known:
            failure = past.failure or (None, None, None)
            db.execute(
                "INSERT OR REPLACE INTO attempt VALUES (?, ?, ?, ?, ?, ?, ?)",
                (row, past.number, past.started_at, past.ended_at, *failure),
            )


def _load_attempts(db: sqlite3.Connection, row: int, limit: int) -> tuple[PastAttempt, ...]:
    found = db.execute(
        "SELECT number, started_at, ended_at, error_type, error_message, traceback FROM attempt "
        "WHERE id = ? ORDER BY number DESC LIMIT ?",
        (row, min(limit, HISTORY_LIMIT)),
    ).fetchall()
    history: list[PastAttempt] = []
    for number, started_at, ended_at, error_type, error_message, traceback in reversed(found):
        if not isinstance(number, int) or not 0 <= number <= MOST:
            raise TypeError("the number of an attempt is none")
        _check_times(started_at, ended_at)
        failure = _failure(error_type, error_message, traceback)
        history.append(PastAttempt(number, started_at, ended_at, failure))
    return tuple(history)


def _load_json(db: sqlite3.Connection, row: int) -> tuple[bytes | None, ...]:
    """Payload, context and response; what is no JSON is found here, not by whoever is given it."""
    request = db.execute("SELECT payload, context FROM request WHERE id = ?", (row,)).fetchone()
    response = db.execute("SELECT response FROM response WHERE id = ?", (row,)).fetchone()
    return tuple(_json(data) for data in (*(request or (None, None)), *(response or (None,))))


def _json(data: object) -> bytes | None:
    if data is None:
        return None
    if not isinstance(data, bytes):
        raise TypeError("JSON is of another type")
    from_json(data)
    return data


def _failure(name: object, message: object, traceback: object = None) -> Failure | None:
    told = name, message, traceback
    if not all(text is None or isinstance(text, str) for text in told):
        raise TypeError("an error is no text")
    return None if name is None else Failure(name, message or "", traceback)  # type: ignore[arg-type]


def _check_times(*times: float | None) -> None:
    for time in times:
        if time is not None and not -_LATEST < time < _LATEST:  # type errors are welcome, too
            raise ValueError("a time is out of range")


_policy = lru_cache(maxsize=1_000)(RetryPolicy.model_validate_json)


def _policy_text(policy: RetryPolicy) -> str:
    return policy.model_dump_json()
