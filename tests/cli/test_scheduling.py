"""`policy`: the schedule of a policy, in numbers and drawn."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
from cli_help import run, run_outside, terminal, told
from hypothesis import given
from hypothesis import strategies as st

from invoke_retry import InvalidPolicy, RetryPolicy
from invoke_retry.cli.scheduling import attempts_made, code, waited

HUGE = 2**31 - 1


def schedule(*options: object) -> dict[str, Any]:
    data: dict[str, Any] = told("policy", *options, store="")
    return data


def test_each_wait_and_each_attempt() -> None:
    data = schedule("--repeats", 3, "--seconds", 1, "--backoff", "exponential", "--factor", 3)
    assert [step["attempt"] for step in data["schedule"]] == [1, 2, 3, 4]
    assert [step["wait"]["most"] for step in data["schedule"]] == [0, 1, 3, 9]
    assert [step["since_start"]["least"] for step in data["schedule"]] == [0, 1, 4, 13]
    assert data["attempts"] == 4
    assert data["waits"] == {"least": 13, "most": 13}
    assert data["policy"]["factor"] == 3
    assert data["longest"] is None


def test_full_jitter_is_a_range() -> None:
    data = schedule("--repeats", 2, "--minutes", 1, "--jitter", "full", "--deadline", 90)
    assert [step["wait"] for step in data["schedule"]][1:] == [{"least": 0, "most": 60}] * 2
    assert data["waits"] == {"least": 0, "most": 120}
    assert [step["cut"] for step in data["schedule"]] == ["never", "never", "maybe"]
    assert data["within_deadline"] is None
    text = run("policy", "-r", 2, "--minutes", 1, "--jitter", "full", "--deadline", 90).out
    assert "0 to 2 min" in text
    assert "1 min on average" in text
    assert "may cut those after attempt 2" in text


def test_what_the_deadline_cuts() -> None:
    data = schedule("--repeats", 5, "--seconds", 10, "--deadline", 30)
    # as `decide` has it: no wait is begun that would reach the deadline
    assert [step["cut"] for step in data["schedule"]] == ["never"] * 3 + ["always"] * 3
    assert data["within_deadline"] == 3
    assert data["longest"] == 30
    text = run("policy", "--repeats", 5, "--seconds", 10, "--deadline", 30).out
    assert "the deadline of 30 s cuts those after attempt 3" in text
    assert "given up 30 s after its start, at the latest" in text


def test_a_timeout_bounds_it() -> None:
    assert schedule("--repeats", 2, "--seconds", 1, "--timeout", 10)["longest"] == 32


@pytest.mark.parametrize("backoff", ["fixed", "exponential"])
def test_a_huge_number_of_repeats_is_shown_by_its_ends(backoff: str) -> None:
    begin = time.process_time()
    options = ("--repeats", HUGE, "--seconds", 1, "--backoff", backoff, "--max-seconds", 300)
    data = schedule(*options, "--factor", 1.00001, "--deadline", 1e9)
    assert time.process_time() - begin < 5
    assert [step["attempt"] for step in data["schedule"]] == [*range(1, 21), HUGE + 1]
    assert data["waits"]["most"] >= HUGE
    assert schedule(*options)["within_deadline"] == HUGE + 1
    lines = run("policy", *options).out.splitlines()
    assert "...\t\t" in lines
    assert any(line.startswith("2,147,483,648\t") for line in lines)


@given(
    waits=st.integers(1_001, 4_000),
    factor=st.floats(1, 3),
    seconds=st.floats(0, 1_000),
    most=st.none() | st.floats(0, 100_000),
)
def test_the_sum_of_many_waits(
    waits: int, factor: float, seconds: float, most: float | None
) -> None:
    policy = RetryPolicy(
        waits, seconds, backoff="exponential", factor=factor, max_seconds=most, deadline=1e6
    )
    # near 1, what factor ** n comes to is no more exact than the factor itself
    assert waited(policy, waits) == pytest.approx(math.fsum(policy.delays()), rel=1e-6, abs=1e-6)
    made = attempts_made(policy)
    assert waited(policy, made - 1) < 1e6
    assert made == 1 + waits or waited(policy, made) >= 1e6


@pytest.mark.parametrize(
    ("options", "policy"),
    [
        (("--repeats", -1, "--seconds", 1), {"repeats": -1, "seconds": 1}),
        (("--repeats", 2**31, "--seconds", 1), {"repeats": 2**31, "seconds": 1}),
        (("--repeats", 1, "--seconds", "nan"), {"repeats": 1, "seconds": math.nan}),
        (("--repeats", 1, "--seconds", -2), {"repeats": 1, "seconds": -2}),
        (
            ("--repeats", 1, "--seconds", 1, "--backoff", "linear"),
            {"repeats": 1, "seconds": 1, "backoff": "linear"},
        ),
        (
            ("--repeats", 1, "--seconds", 1, "--factor", 0.5),
            {"repeats": 1, "seconds": 1, "factor": 0.5},
        ),
        (
            ("--repeats", 1, "--seconds", 1, "--timeout", 0),
            {"repeats": 1, "seconds": 1, "timeout": 0},
        ),
    ],
)
def test_a_wrong_value_is_told_in_the_librarys_words(
    options: tuple[object, ...], policy: dict[str, Any]
) -> None:
    with pytest.raises(InvalidPolicy) as caught:
        RetryPolicy(**policy)
    done = run("policy", *options)
    assert (done.code, done.out) == (2, "")
    assert done.err == f"invoke-retry: {caught.value}\n"
    assert told("policy", *options, store="", code=2) == {
        "kind": "usage",
        "message": str(caught.value),
    }


def test_what_is_missing_or_no_number() -> None:
    for options in ((), ("--repeats", 3), ("--seconds", 3)):
        done = run("policy", *options)
        assert done.code == 2
        assert "--repeats 5 --seconds 10" in done.err
    done = run("policy", "--repeats", 3, "--seconds", "soon")
    assert done.code == 2
    assert "'soon' is no number" in done.err


def test_the_policy_as_code() -> None:
    policy = RetryPolicy(3, minutes=1, jitter="full", timeout=2.5)
    assert code(policy) == "RetryPolicy(repeats=3, seconds=60, jitter='full', timeout=2.5)"
    assert eval(code(policy), {"RetryPolicy": RetryPolicy}) == policy


def test_a_pipe_gets_plain_text() -> None:
    done = run_outside("policy", "--repeats", 2, "--seconds", 0)
    assert done.code == 0
    assert done.err == ""
    assert done.out.isascii()
    assert "\x1b" not in done.out
    assert done.out.splitlines()[2:6] == [
        "attempt\tafter a wait of\tsince the start",
        "1\t-\t0 s",
        "2\t0 s\t0 s",
        "3\t0 s\t0 s",
    ]


@pytest.mark.parametrize("columns", [10, 60, 120])
def test_a_terminal_gets_bars(columns: int) -> None:
    options = ("--repeats", 30, "--seconds", 1, "--backoff", "exponential", "--deadline", 600)
    with terminal("policy", *options, columns=columns) as screen:
        done = screen.ended()
    assert done.code == 0
    if columns > 50:
        assert "█" in done.out
        assert "since the start" in done.out


def test_no_colour_where_none_is_wanted() -> None:
    with terminal("policy", "--repeats", 3, "--seconds", 1, NO_COLOR="1") as screen:
        done = screen.ended()
    assert "█" in done.out
    assert "\x1b[3" not in done.out


def test_a_single_attempt_is_one() -> None:
    assert "1 attempt at most" in run("policy", "--repeats", 0, "--seconds", 1).out
