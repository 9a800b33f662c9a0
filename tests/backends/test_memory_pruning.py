"""What pruning by hand leaves behind in memory: nothing that could hit another record later."""

import asyncio

import pytest

from invoke_retry import InvokeRetry, RetryPolicy, ServiceRegistry
from invoke_retry.backends import MemoryBackend

DAY = 86_400


def services() -> ServiceRegistry:
    registry = ServiceRegistry()

    async def echo() -> None: ...
    async def deaf(payload: object) -> None:
        raise ConnectionError

    registry.register("echo", echo)
    registry.register("deaf", deaf)
    return registry


@pytest.mark.virtual_time
async def test_the_retention_of_what_was_pruned_does_not_end_its_successor() -> None:
    backend = MemoryBackend(retention=100, dead_retention=100)
    async with InvokeRetry(
        services(), backend=backend, callback_policy=RetryPolicy(0, 0)
    ) as retry:  # fmt: skip
        good = await retry.invoke_async("echo", repeats=0, seconds=0)
        dead = await retry.invoke_async("echo", repeats=0, seconds=0, callback="deaf")
        await asyncio.sleep(90)
        assert {each.state for each in await retry.search()} == {"succeeded", "dead"}
        assert await backend.prune(retry.clock.utc(), dead=True) == 2
        for cid, callback in ((good, None), (dead, "deaf")):
            again = await retry.invoke_async(
                "echo", repeats=0, seconds=0, cid=cid, callback=callback
            )
            assert again == cid
        await asyncio.sleep(50)  # the first ones would go now
        assert len(await retry.search()) == 2
        await asyncio.sleep(60)
        assert await retry.search() == []


@pytest.mark.virtual_time
async def test_pruned_ones_take_no_place_of_those_that_are_kept() -> None:
    backend = MemoryBackend(keep=10, retention=DAY)
    async with InvokeRetry(services(), backend=backend) as retry:
        for _ in range(3):
            for _ in range(10):
                await retry.wait(await retry.invoke_async("echo", repeats=0, seconds=0))
            assert len(await retry.search()) == 10
            assert await backend.prune(retry.clock.utc() + 1) == 10
            assert await retry.search() == []
