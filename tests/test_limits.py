"""What a limit of the policy does to an attempt is the same in every mode."""

import asyncio
from typing import Any

import pytest

from invoke_retry import InvokeRetry, RetriesExhausted, RetryPolicy, ServiceRegistry
from invoke_retry.policy import cut_error, time_limit

pytestmark = pytest.mark.virtual_time


@pytest.mark.parametrize(
    ("timeout", "deadline", "elapsed", "expected"),
    [
        (None, None, 5, None),
        (3, None, 5, (3, "timeout")),
        (3, 10, 5, (3, "timeout")),
        (3, 10, 7, (3, "deadline")),
        (3, 10, 8, (2, "deadline")),
        (None, 10, 8, (2, "deadline")),
        (None, 10, 12, (0, "deadline")),
    ],
)
async def test_the_nearer_limit_cuts(
    timeout: float | None,
    deadline: float | None,
    elapsed: float,
    expected: tuple[float, str] | None,
) -> None:
    policy = RetryPolicy(3, 1, timeout=timeout, deadline=deadline)
    seconds, limit = time_limit(policy, 100, 100 + elapsed)
    assert (None if seconds is None else (seconds, limit)) == expected


async def test_the_error_says_which() -> None:
    policy = RetryPolicy(3, 1, timeout=2, deadline=90)
    assert str(cut_error(policy, 4, "timeout")) == "attempt 4 took longer than its timeout of 2 s"
    assert str(cut_error(policy, 4, "deadline")) == "cut off in attempt 4 by the deadline of 90 s"


class Slow:
    """A service that no timeout is long enough for, and its callback."""

    def __init__(self, **options: Any) -> None:
        self.services = ServiceRegistry()
        self.services.register("slow", self._sleep, **options)
        self.calls = 0

    async def _sleep(self) -> None:
        self.calls += 1
        await asyncio.sleep(100)


_TIMEOUTS: list[tuple[dict[str, Any], tuple[str, int]]] = [
    ({}, ("exhausted", 3)),
    ({"give_up_on": TimeoutError}, ("permanent", 1)),
    ({"retry_on": ValueError}, ("permanent", 1)),
]


@pytest.mark.parametrize(("options", "expected"), _TIMEOUTS)
async def test_a_timeout_inline_is_an_error_like_others(
    options: dict[str, Any], expected: tuple[str, int]
) -> None:
    slow = Slow(**options)
    with pytest.raises((RetriesExhausted, TimeoutError)) as caught:
        await InvokeRetry(slow.services).invoke("slow", policy=RetryPolicy(2, 1, timeout=5))
    reason = "exhausted" if isinstance(caught.value, RetriesExhausted) else "permanent"
    assert (reason, slow.calls) == expected


@pytest.mark.parametrize(("options", "expected"), _TIMEOUTS)
async def test_a_timeout_in_the_background_is_too(
    options: dict[str, Any], expected: tuple[str, int]
) -> None:
    slow = Slow(**options)
    async with InvokeRetry(slow.services) as retry:
        cid = await retry.invoke_async("slow", policy=RetryPolicy(2, 1, timeout=5))
        outcome = await retry.wait(cid)
    assert (outcome.reason, slow.calls) == expected
    assert outcome.error is not None
    assert outcome.error.type == "TimeoutError"


@pytest.mark.parametrize("mode", ["inline", "background"])
async def test_where_both_limits_fall_together_it_is_the_deadline(mode: str) -> None:
    slow, policy = Slow(), RetryPolicy(2, 1, timeout=5, deadline=5)
    if mode == "inline":
        with pytest.raises(RetriesExhausted, match="by the deadline of 5 s") as caught:
            await InvokeRetry(slow.services).invoke("slow", policy=policy)
        assert caught.value.reason == "deadline"
        return
    async with InvokeRetry(slow.services) as retry:
        outcome = await retry.wait(await retry.invoke_async("slow", policy=policy))
    assert outcome.reason == "deadline"
    assert outcome.error is not None
    assert "by the deadline of 5 s" in outcome.error.message
