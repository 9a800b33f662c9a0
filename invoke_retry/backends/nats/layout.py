"""Where a record stands in the stream: its subject says so, and the message there is all of it.

The subjects are `ir.<stream>.<place>.<cid>.<service>.<stage>`; the places are

    due    its turn has come: what consumers hand out, and the lease of whoever holds it
    at     it waits for its time: a schedule, which the server turns into `due`
    run    it is held; written over the lease, which stays in `due` until it is acknowledged
    park   it cannot run now: a schedule, too, for when it has been parked for too long
    end    finished, or dead; kept for a while

The newest message of a cid is its state. What stood in a place where schedules stand is taken away
by the write that follows it, in the same step; `run` is a schedule for that alone.
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, NamedTuple

from invoke_retry.record import FINAL, Record

SHORT_WAIT: Final = 1.0
_SLACK: Final = 2.0
_NEVER: Final = "@at 2200-01-01T00:00:00Z"
_TOKEN_LIMIT = 100
_SCHEDULED: Final = frozenset(("at", "run", "park"))
_SCHEDULE, _TARGET = "Nats-Schedule", "Nats-Schedule-Target"
_SCHEDULER, _NEXT = "Nats-Scheduler", "Nats-Schedule-Next"
_EXPECTED = "Nats-Expected-Last-Subject-Sequence"
_EXPECTED_OF = "Nats-Expected-Last-Subject-Sequence-Subject"
_TTL = "Nats-TTL"


class Place(NamedTuple):
    """A subject, and the headers that belong to it."""

    subject: str
    headers: dict[str, str]


class Keep(NamedTuple):
    """How long what is over is kept, in seconds."""

    retention: float
    dead_retention: float
    park_for: float


class Layout:
    """The subjects of one stream.

    Args:
        stream: Its name.
        keep: How long finished, dead and parked records stay.
    """

    def __init__(self, stream: str, keep: Keep) -> None:
        self.stream = stream
        self.base = f"ir.{stream}"
        self.news = f"irn.{stream}"
        self._keep = keep

    def of(self, cid: str) -> str:
        """All places of one record."""
        return f"{self.base}.*.{cid}.>"

    def due_for(self, service: str) -> str:
        """What is due for a service, whatever is to be done."""
        return f"{self.base}.due.*.{token(service)}.*"

    def due_place(self, record: Record) -> str:
        """Where a record stands when its turn has come."""
        return f"{self.base}.due.{_rest(record)}"

    def parked_for(self, service: str) -> str:
        """What is parked for a service."""
        return f"{self.base}.park.*.{token(service)}.*"

    def place(self, record: Record, now: float, shift: float) -> Place:
        """Where a record belongs.

        Args:
            now: On the monotonic clock.
            shift: Server time minus the monotonic clock.
        """
        state, cid = record.state, record.cid
        if state in FINAL or state == "dead":
            seconds = self._keep.dead_retention if state == "dead" else self._keep.retention
            subject = f"{self.base}.end.{cid}.{token(record.service)}.{state}"
            return Place(subject, {_TTL: str(max(1, round(seconds)))})
        rest = _rest(record)
        due = f"{self.base}.due.{rest}"
        if state == "parked":
            when = _at(now + self._keep.park_for + shift)
            return Place(f"{self.base}.park.{rest}", {_SCHEDULE: when, _TARGET: due})
        if record.due is None:
            return Place(f"{self.base}.run.{cid}.held", {_SCHEDULE: _NEVER, _TARGET: due})
        wait = record.due - now
        if wait <= 0:
            return Place(due, {})
        # whoever writes a short wait moves it on itself; if it cannot, the server does, later
        late = _SLACK if wait < SHORT_WAIT else 0.0
        when = _at(record.due + late + shift)
        return Place(f"{self.base}.at.{rest}", {_SCHEDULE: when, _TARGET: due})

    def guarded(self, place: Place, cid: str, previous: str | None, sequence: int) -> Place:
        """A write that only stands if the newest message of the record is still that one.

        Args:
            previous: The subject of that message.
            sequence: Its number; 0: there must be none.
        """
        headers = {**place.headers, _EXPECTED: str(sequence), _EXPECTED_OF: self.of(cid)}
        if previous is not None and previous != place.subject and is_scheduled(previous):
            headers[_SCHEDULER] = previous
            headers[_NEXT] = "purge"
        return Place(place.subject, headers)


def _rest(record: Record) -> str:
    stage = "call" if record.outcome is None else "tell"
    return f"{record.cid}.{token(record.service)}.{stage}"


def is_scheduled(subject: str) -> bool:
    """Whether what stands there is taken away by the write that follows it."""
    return place_of(subject) in _SCHEDULED


def place_of(subject: str) -> str:
    """`due`, `at`, `run`, `park` or `end`."""
    return subject.split(".")[2]


def cid_of(subject: str) -> str:
    """Whose message stands there."""
    return subject.split(".")[3]


@lru_cache(maxsize=10_000)
def token(service: str) -> str:
    """A service's name as a part of a subject, and as the name of its consumer."""
    safe = re.sub(r"[^A-Za-z0-9_-]", _escape, service)
    if len(safe) <= _TOKEN_LIMIT:
        return safe
    return f"{safe[:40]}=={hashlib.sha256(service.encode()).hexdigest()[:32]}"


def _escape(match: re.Match[str]) -> str:
    return "".join(f"={byte:02X}" for byte in match.group().encode("utf-8", "surrogatepass"))


def _at(utc: float) -> str:
    # a millisecond more than asked for: never early, whatever is rounded
    return (
        f"@at {datetime.fromtimestamp(utc + 0.001, UTC).isoformat()[:26].removesuffix('+00:00')}Z"
    )
