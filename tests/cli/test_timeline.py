"""The timeline: what lasted how long, on one scale."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from invoke_retry import Attempt, CorrelationId, ErrorInfo, Invocation
from invoke_retry.cli.timeline import Event, events_of, timeline

NOW = datetime(2026, 1, 2, tzinfo=UTC)
ERROR = ErrorInfo(type="Con\x1bError", message="down")


def at(seconds: float) -> datetime:
    """So many seconds after the beginning."""
    return NOW + timedelta(seconds=seconds)


def invocation(**more: Any) -> Invocation:
    """One of the target `crm`."""
    known: dict[str, Any] = {
        "state": "waiting", "call_cid": CorrelationId.from_key("one"), "target": "crm",
        "callback": None, "source": "main", "orig_cid": "x", "retry_repeats": 3,
        "retry_seconds": 10, "created_at": NOW, "attempts": 0,
    }  # fmt: skip
    return Invocation(**{**known, **more})


def test_attempts_waits_and_what_is_next() -> None:
    history = [
        Attempt(number=1, started_at=at(0), ended_at=at(2), error=ERROR),
        Attempt(number=2, started_at=at(10), ended_at=at(11), error=ERROR),
    ]
    events = events_of(invocation(history=history, next_attempt_at=at(20)), at(15))
    assert [(each.label, each.kind, each.start, each.end) for each in events] == [
        ("1", "failed", 0, 2), ("2", "failed", 10, 11), ("next", "next", 20, 20),
    ]  # fmt: skip
    assert events[0].what == "Con\\x1bError after 2 s"
    assert events[2].what == "in 5 s"
    first, second, third = (line.plain for line in timeline(events, 60))
    assert first.index("█") < second.index("█") < third.index("◆")
    assert "·" not in first
    assert "·" in second
    assert "·" in third


def test_success_and_outcome() -> None:
    history = [Attempt(number=1, started_at=at(0), ended_at=at(2))]
    done = invocation(history=history, resp_ts_utc=at(2), reason="succeeded", state="succeeded")
    assert [each.what for each in events_of(done, at(99))] == ["succeeded after 2 s", "succeeded"]


def test_what_runs_reaches_to_now() -> None:
    runs = invocation(state="running", history=[Attempt(number=1, started_at=at(0))])
    (event,) = events_of(runs, at(7))
    assert (event.kind, event.end, event.what) == ("running", 7, "has run for 7 s")


def test_nothing_has_happened() -> None:
    assert timeline(events_of(invocation(), NOW), 80) == []


spans = st.tuples(st.floats(0, 1e9), st.floats(0, 1e9)).map(sorted)


@given(st.lists(spans, min_size=1, max_size=30), st.integers(1, 200))
def test_every_line_is_as_long_as_the_others(found: list[list[float]], width: int) -> None:
    events = [
        Event(str(number), "failed", start, end, "x")
        for number, (start, end) in enumerate(sorted(found), 1)
    ]
    lines = [line.plain for line in timeline(events, width)]
    assert len({len(line) for line in lines}) == 1
    assert all("█" in line or "◆" in line for line in lines)
