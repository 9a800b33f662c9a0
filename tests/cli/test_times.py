"""Times and durations as people read and write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from invoke_retry.cli.times import ago, duration, moment, seconds_from


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("2h", 7_200), ("7d", 604_800), ("1w", 604_800), ("1h30m", 5_400),
     ("1.5 H", 5_400), ("0s", 0)],
)  # fmt: skip
def test_ages(text: str, seconds: float) -> None:
    assert seconds_from(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "5", "5x", "-5m", "5m!", "m5", "1e3s", "nan", "5 m x"])
def test_no_ages(text: str) -> None:
    with pytest.raises(ValueError, match="is no age"):
        seconds_from(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 ms"), (-1, "0 ms"), (0.25, "250 ms"), (1, "1 s"), (12.34, "12.3 s"), (60, "1 min"),
     (250, "4 min 10 s"), (3_600, "1 h"), (5_400, "1 h 30 min"), (266_400, "3 d 2 h"),
     (3_155_760_000, "36,525 d")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(0, 1e10))
def test_a_duration_is_short_and_of_two_units_at_most(seconds: float) -> None:
    text = duration(seconds)
    assert len(text) <= 14
    assert len(text.split()) in (2, 4)


def test_ago_and_ahead() -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, 678_900, tzinfo=UTC)
    assert ago(now - timedelta(minutes=5), now) == "5 min ago"
    assert ago(now + timedelta(seconds=30), now) == "in 30 s"
    assert moment(now) == "2026-01-02 03:04:05.678Z"
