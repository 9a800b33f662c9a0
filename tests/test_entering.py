"""Who may submit while a coordinator is left, and in which tasks it is entered and left."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest

from invoke_retry import (
    BackendError,
    CorrelationId,
    InvalidState,
    InvokeRetry,
    NotRunning,
    ServiceRegistry,
    current_call,
)
from invoke_retry.backends import MemoryBackend
from invoke_retry.backends.base import Runner
from invoke_retry.clock import Clock

pytestmark = pytest.mark.virtual_time

ONCE: dict[str, Any] = {"repeats": 0, "seconds": 0}
Submit = Callable[[InvokeRetry], Awaitable[Any]]


def now() -> float:
    return asyncio.get_running_loop().time()


class World:
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.services = ServiceRegistry()
        self.services.register("fail", self.fail)
        self.services.register("sleep", self.sleep)
        self.retry = InvokeRetry(self.services, grace=100)

    async def fail(self) -> None:
        self.calls.append("fail")
        raise ConnectionError

    async def sleep(self, seconds: float) -> None:
        self.calls.append("sleep")
        await asyncio.sleep(seconds)

    async def at(self, seconds: float, submit: Submit) -> Any:
        await asyncio.sleep(seconds)
        return await submit(self.retry)


async def background(retry: InvokeRetry) -> Any:
    return await retry.invoke_async("fail", repeats=1, seconds=1)


async def fallback(retry: InvokeRetry) -> Any:
    return await retry.invoke("fail", repeats=1, seconds=1, async_fallback=True)


async def resubmit(retry: InvokeRetry) -> Any:
    return await retry.resubmit((await retry.search(state="failed"))[0].call_cid)


async def in_a_child(retry: InvokeRetry) -> Any:
    return await asyncio.create_task(background(retry))


async def in_a_callers_block(retry: InvokeRetry) -> Any:
    with retry.caller("batch"):
        return await background(retry)


SUBMITS: list[Submit] = [background, fallback, resubmit, in_a_child, in_a_callers_block]


@pytest.mark.parametrize("submit", SUBMITS)
async def test_work_that_runs_may_still_submit(submit: Submit) -> None:
    world, cids = World(), list[CorrelationId]()

    async def work() -> None:
        await asyncio.sleep(10)
        cids.append(await submit(current_call().retry))

    world.services.register("work", work)
    async with world.retry as retry:
        await retry.wait(await retry.invoke_async("fail", **ONCE))
        await retry.invoke_async("work", **ONCE)
    assert (await world.retry.get(cids[0])).reason == "exhausted"
    assert now() == (10 if submit is resubmit else 11)


async def test_callbacks_may_still_submit() -> None:
    world, cids = World(), list[CorrelationId]()

    async def told(outcome: dict[str, Any]) -> None:
        cids.append(await background(current_call().retry))

    world.services.register("told", told)
    async with world.retry as retry:
        await retry.invoke_async("sleep", 10, **ONCE, callback="told")
    assert (await world.retry.get(cids[0])).reason == "exhausted"


@pytest.mark.parametrize("submit", SUBMITS)
async def test_new_callers_may_not(submit: Submit) -> None:
    world = World()
    async with world.retry as retry:
        await retry.wait(await retry.invoke_async("fail", **ONCE))
        await retry.invoke_async("sleep", 50, **ONCE)
        late = asyncio.create_task(world.at(10, submit))
    with pytest.raises(NotRunning, match="being left"):
        await late
    assert world.calls == ["fail", "sleep"]


async def test_the_work_of_another_coordinator_is_a_new_caller() -> None:
    world, other = World(), World()

    async def work() -> None:
        await asyncio.sleep(10)
        await background(world.retry)

    other.services.register("work", work)
    async with other.retry:
        cid = await other.retry.invoke_async("work", **ONCE)
        async with world.retry as retry:
            await retry.invoke_async("sleep", 50, **ONCE)
        error = (await other.retry.wait(cid)).error
    assert error is not None
    assert error.type == "invoke_retry.errors.NotRunning"


async def test_inline_calls_need_no_background_at_any_time() -> None:
    world = World()

    async def inline(retry: InvokeRetry) -> float:
        await retry.invoke("sleep", 1, **ONCE)
        return now()

    assert await inline(world.retry) == 1
    async with world.retry as retry:
        await retry.invoke_async("sleep", 50, **ONCE)
        late = asyncio.create_task(world.at(10, inline))
    assert await late == 12
    assert await inline(world.retry) == 52


async def test_what_is_there_can_be_asked_meanwhile() -> None:
    world = World()

    async def ask(retry: InvokeRetry) -> Any:
        return (await retry.get(cid)).state, (await retry.counts())["running"]

    async with world.retry as retry:
        cid = await retry.invoke_async("sleep", 50, **ONCE)
        late = asyncio.create_task(world.at(10, ask))
    assert await late == ("running", 1)


# Tasks.


async def test_the_task_that_entered_may_end() -> None:
    world, stack = World(), AsyncExitStack()

    async def enter() -> None:
        async with asyncio.timeout(5):
            with anyio.fail_after(5):
                await stack.enter_async_context(world.retry)

    await asyncio.create_task(enter())
    await asyncio.sleep(60)
    cid = await background(world.retry)
    await asyncio.create_task(stack.aclose())
    assert (await world.retry.get(cid)).reason == "exhausted"
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_the_task_that_entered_may_be_cancelled() -> None:
    world = World()

    async def enter() -> None:
        await world.retry.__aenter__()
        await asyncio.sleep(1_000)

    task = asyncio.create_task(enter())
    await asyncio.sleep(1)
    task.cancel()
    await asyncio.wait({task})
    assert (await world.retry.wait(await background(world.retry))).reason == "exhausted"
    await world.retry.__aexit__(None, None, None)


async def test_an_error_of_the_body_in_another_task() -> None:
    world = World()
    await asyncio.create_task(world.retry.__aenter__())
    cid = await world.retry.invoke_async("sleep", 50, **ONCE)
    error = ValueError("body")
    await asyncio.create_task(world.retry.__aexit__(ValueError, error, None))
    assert now() == 0
    assert (await world.retry.get(cid)).reason == "abandoned"


async def test_entered_once_and_not_again_when_it_was_left() -> None:
    retry = World().retry
    async with retry:
        pass
    with pytest.raises(InvalidState, match="entered once"):
        await retry.__aenter__()


async def test_two_tasks_enter_at_once() -> None:
    world = World()
    entered = await asyncio.gather(
        world.retry.__aenter__(), world.retry.__aenter__(), return_exceptions=True
    )
    assert [type(each) for each in entered] == [InvokeRetry, InvalidState]
    assert (await world.retry.wait(await background(world.retry))).reason == "exhausted"
    await world.retry.__aexit__(None, None, None)


class Shut(MemoryBackend):
    is_closed = False

    async def open(self, clock: Clock, runner: Runner | None) -> None:
        await asyncio.sleep(10)
        raise BackendError("no such disk")

    async def close(self) -> None:
        self.is_closed = True


async def test_a_backend_that_cannot_be_opened() -> None:
    backend = Shut()
    retry = InvokeRetry(ServiceRegistry(), backend=backend)
    with pytest.raises(BackendError, match="no such disk"):
        await retry.__aenter__()
    assert backend.is_closed
    assert not retry.health().ok
    assert asyncio.all_tasks() == {asyncio.current_task()}
    with pytest.raises(InvalidState):
        await retry.__aenter__()


async def test_cancelled_while_it_opens() -> None:
    backend = Shut()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5):
            await InvokeRetry(ServiceRegistry(), backend=backend).__aenter__()
    assert (now(), backend.is_closed) == (5, True)
    assert asyncio.all_tasks() == {asyncio.current_task()}
