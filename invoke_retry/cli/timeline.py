"""An invocation's attempts and waits, drawn on one line of time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from rich.text import Text

from invoke_retry.cli.safe import clean
from invoke_retry.cli.times import duration
from invoke_retry.models import Invocation

Kind = Literal["ok", "failed", "running", "next", "outcome"]

_STYLES: dict[Kind, str] = {
    "ok": "green",
    "failed": "red",
    "running": "cyan",
    "next": "yellow",
    "outcome": "bold",
}
_BAR, _WAIT, _POINT = "█", "·", "◆"
_LEAST_WIDTH = 10


@dataclass(frozen=True)
class Event:
    """Something that lasted from *start* to *end*, in seconds since the first."""

    label: str
    kind: Kind
    start: float
    end: float
    what: str


def events_of(invocation: Invocation, now: datetime) -> list[Event]:
    """What has happened to an invocation, and what comes next, in order."""
    origin = invocation.history[0].started_at if invocation.history else invocation.created_at

    def since(time: datetime) -> float:
        return max(0.0, (time - origin).total_seconds())

    events: list[Event] = []
    kind: Kind
    for attempt in invocation.history:
        start, end = since(attempt.started_at), since(attempt.ended_at or now)
        took = duration(end - start)
        if attempt.ended_at is None:
            kind, what = "running", f"has run for {took}"
        elif attempt.error is None:
            kind, what = "ok", f"succeeded after {took}"
        else:
            kind, what = "failed", f"{clean(attempt.error.type)} after {took}"
        events.append(Event(str(attempt.number), kind, start, end, what))
    if invocation.resp_ts_utc is not None:
        at = since(invocation.resp_ts_utc)
        events.append(Event("end", "outcome", at, at, str(invocation.reason)))
    if invocation.next_attempt_at is not None:
        at = since(invocation.next_attempt_at)
        ahead = (invocation.next_attempt_at - now).total_seconds()
        what = f"in {duration(ahead)}" if ahead >= 0 else f"due for {duration(-ahead)}"
        label = "tell" if invocation.state == "notifying" else "next"
        events.append(Event(label, "next", at, at, what))
    return events


def timeline(events: list[Event], width: int) -> list[Text]:
    """A line for each event: its bar at its time, and the wait before it.

    Args:
        width: Columns for a whole line.
    """
    if not events:
        return []
    whole = max(event.end for event in events) or 1.0
    labels = max(len(event.label) for event in events)
    notes = max(len(event.what) for event in events)
    columns = max(_LEAST_WIDTH, width - labels - notes - 4)

    def column(seconds: float) -> int:
        return min(columns - 1, int(seconds / whole * columns))

    lines: list[Text] = []
    before = 0
    for event in events:
        start = column(event.start)
        length = max(1, column(event.end) - start)
        is_point = event.start == event.end
        line = Text(no_wrap=True)
        line.append(event.label.rjust(labels) + "  ", "dim")
        line.append(" " * min(before, start))
        line.append(_WAIT * max(0, start - before), "dim")
        line.append(_POINT if is_point else _BAR * length, _STYLES[event.kind])
        line.append(" " * (columns - start - (1 if is_point else length) + 2))
        line.append(event.what, _STYLES[event.kind])
        lines.append(line)
        before = start + (0 if is_point else length)
    return lines
