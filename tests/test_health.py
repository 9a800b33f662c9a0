"""What a coordinator says of itself: its health over its life, and that there is nothing yet."""

import asyncio
from typing import Any, get_args

import pytest

from invoke_retry import BackendError, InvokeRetry, NotRunning, ServiceRegistry
from invoke_retry.backends import MemoryBackend
from invoke_retry.backends.base import Claim, T, Transition
from invoke_retry.models import Health, State

pytestmark = pytest.mark.virtual_time


async def work() -> None:
    await asyncio.sleep(10)


def registry() -> ServiceRegistry:
    services = ServiceRegistry()
    services.register("work", work)
    return services


async def test_before_and_after() -> None:
    retry = InvokeRetry(ServiceRegistry(), max_running=7)
    seen = [retry.health()]
    async with retry:
        assert retry.health().ok
    seen.append(retry.health())
    for health, word in zip(seen, ("async with", "ended"), strict=True):
        assert (health.ok, health.running, health.max_running) == (False, 0, 7)
        assert health.problem is not None
        assert word in health.problem


async def test_while_it_is_left() -> None:
    retry = InvokeRetry(registry())

    async def look() -> Health:
        await asyncio.sleep(5)
        return retry.health()

    async with retry:
        await retry.invoke_async("work", repeats=0, seconds=0)
        looking = asyncio.create_task(look())
    health = await looking
    assert (health.ok, health.running) == (False, 1)
    assert "being left" in (health.problem or "")


async def test_what_runs_is_counted_up_to_the_limit() -> None:
    async with InvokeRetry(registry(), max_running=3) as retry:
        seen = [retry.health().running]
        for i in range(5):
            await retry.invoke_async("work", repeats=0, seconds=0)
            if i in (1, 4):
                seen.append(retry.health().running)
        await asyncio.sleep(15)
        seen.append(retry.health().running)
        await asyncio.sleep(10)
        seen.append(retry.health().running)
    assert seen == [0, 2, 3, 2, 0]


async def test_inline_calls_are_not_counted() -> None:
    async with InvokeRetry(registry()) as retry:
        call = asyncio.create_task(retry.invoke("work", repeats=0, seconds=0))
        await asyncio.sleep(5)
        assert retry.health().running == 0
        await call


class Flaky(MemoryBackend):
    is_down = True

    async def apply(
        self, claim: Claim, transition: Transition[T], *args: T.args, **kwargs: T.kwargs
    ) -> bool:
        if self.is_down:
            raise BackendError("the disk is full")
        return await super().apply(claim, transition, *args, **kwargs)


async def test_a_backend_that_fails_and_recovers() -> None:
    backend = Flaky()
    async with InvokeRetry(registry(), backend=backend) as retry:
        cid = await retry.invoke_async("work", repeats=0, seconds=0)
        await asyncio.sleep(15)
        assert (retry.health().ok, retry.health().problem) == (False, "the disk is full")
        backend.is_down = False
        assert (await retry.wait(cid)).ok
        assert (retry.health().ok, retry.health().problem) == (True, None)


async def test_counts_has_every_state_of_nothing() -> None:
    async with InvokeRetry(ServiceRegistry()) as retry:
        assert await retry.counts() == dict.fromkeys(get_args(State), 0)


@pytest.mark.parametrize("ask", [InvokeRetry.counts, InvokeRetry.search])
async def test_nothing_to_ask_before_entering(ask: Any) -> None:
    with pytest.raises(NotRunning, match="async with"):
        await ask(InvokeRetry(ServiceRegistry()))
