"""A user's own suite on virtual time: a day of retries in milliseconds.

    python examples/test_my_service.py        (or: pytest examples/test_my_service.py)

Installing invoke_retry brings the mark `virtual_time` for pytest-asyncio; no conftest is needed.
"""

from __future__ import annotations

import asyncio
import sys
import time

import pytest

from invoke_retry import (
    CallbackPayload,
    CorrelationId,
    InvokeRetry,
    RetriesExhausted,
    RetryPolicy,
    ServiceRegistry,
)

pytestmark = [pytest.mark.asyncio, pytest.mark.virtual_time]

DAY = 24 * 60 * 60


class Warehouse:
    """The service under test: its dependency is down for a while."""

    def __init__(self, down_for: float) -> None:
        self.down_for = down_for
        self.seen: list[float] = []

    async def ship(self, order: str) -> str:
        now = asyncio.get_running_loop().time()
        self.seen.append(now)
        if now < self.down_for:
            raise ConnectionError("the warehouse is down")
        return f"{order} is on its way"


class Inbox:
    """The callback: keeps what it is told."""

    def __init__(self) -> None:
        self.outcomes: list[CallbackPayload] = []

    async def take(self, outcome: CallbackPayload) -> None:
        self.outcomes.append(outcome)


def services_of(warehouse: Warehouse, inbox: Inbox) -> ServiceRegistry:
    services = ServiceRegistry()
    services.register("warehouse.ship", warehouse.ship)
    services.register("inbox.take", inbox.take)
    return services


async def test_a_day_of_retries_in_milliseconds() -> None:
    warehouse, inbox = Warehouse(down_for=DAY), Inbox()
    began = time.perf_counter()
    async with InvokeRetry(services_of(warehouse, inbox)) as retry:
        cid = await retry.invoke_async(
            "warehouse.ship", "order 1", repeats=300, minutes=5, callback="inbox.take"
        )
        outcome = await retry.wait(cid)
    assert outcome.ok
    assert outcome.response == "order 1 is on its way"
    assert warehouse.seen == [n * 300 for n in range(289)]  # one every 5 minutes, none twice
    assert [told.call_cid for told in inbox.outcomes] == [cid]
    assert time.perf_counter() - began < 10


async def test_the_schedule_of_a_policy_is_kept_exactly() -> None:
    warehouse = Warehouse(down_for=DAY)
    policy = RetryPolicy(repeats=5, seconds=1, backoff="exponential", max_seconds=10)
    async with InvokeRetry(services_of(warehouse, Inbox())) as retry:
        with pytest.raises(RetriesExhausted, match="gave up after 6 attempts"):
            await retry.invoke("warehouse.ship", "order 2", policy=policy)
    assert list(policy.delays()) == [1, 2, 4, 8, 10]
    assert warehouse.seen == [0, 1, 3, 7, 15, 25]


async def test_the_caller_is_answered_at_once_and_told_later() -> None:
    warehouse, inbox = Warehouse(down_for=3_600), Inbox()
    async with InvokeRetry(services_of(warehouse, inbox), grace=None) as retry:
        answer = await retry.invoke(
            "warehouse.ship", "order 3", repeats=24, minutes=30,
            async_fallback=True, callback="inbox.take", context={"customer": 7},
        )  # fmt: skip
        assert isinstance(answer, CorrelationId)
        assert asyncio.get_running_loop().time() == 0
        assert (await retry.get(answer)).state == "waiting"
    # leaving waits as long as it takes, since grace=None
    assert asyncio.get_running_loop().time() == 3_600
    (told,) = inbox.outcomes
    assert (told.ok, told.attempts, told.context) == (True, 3, {"customer": 7})


async def test_cancelling_what_waits() -> None:
    warehouse, inbox = Warehouse(down_for=DAY), Inbox()
    async with InvokeRetry(services_of(warehouse, inbox)) as retry:
        cid = await retry.invoke_async(
            "warehouse.ship", "order 4", repeats=9, minutes=60, callback="inbox.take"
        )
        await asyncio.sleep(2.5 * 3_600)
        assert await retry.cancel(cid)
        assert not await retry.cancel(cid)
    (told,) = inbox.outcomes
    assert (told.ok, told.reason, told.attempts) == (False, "cancelled", 3)


if __name__ == "__main__":
    # this script has imported the package before pytest could look at it
    quiet = "ignore::pytest.PytestAssertRewriteWarning"
    sys.exit(pytest.main([__file__, "-v", "--durations=0", "-W", quiet]))
