"""Leaving `async with`, on the memory backend: what is waited for, recorded, told and refused."""

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import Annotated, Any

import anyio
import pytest
from pydantic import AfterValidator

from invoke_retry import (
    CallbackPayload,
    CorrelationId,
    InvokeRetry,
    RetryPolicy,
    ServiceRegistry,
    current_call,
)

pytestmark = pytest.mark.virtual_time

ONCE: dict[str, Any] = {"repeats": 0, "seconds": 0}


def now() -> float:
    return asyncio.get_running_loop().time()


class World:
    """A coordinator, services that take their time, and what was seen of them."""

    def __init__(self, **options: Any) -> None:
        self.told: list[CallbackPayload] = []
        self.starts: list[float] = []
        self.deliveries: list[float] = []
        self.callback_takes = 0.0
        self.deaf = 0
        self.services = ServiceRegistry()
        for function in (self.sleep, self.fail, self.told_of):
            self.services.register(function.__name__, function)
        self.retry = InvokeRetry(self.services, **options)

    async def sleep(self, seconds: float) -> float:
        self.starts.append(now())
        await asyncio.sleep(seconds)
        return seconds

    async def fail(self, times: int) -> None:
        self.starts.append(now())
        if current_call().attempt <= times:
            raise ConnectionError(f"failure {current_call().attempt}")

    async def told_of(self, outcome: CallbackPayload) -> None:
        self.deliveries.append(now())
        await asyncio.sleep(self.callback_takes)
        if len(self.deliveries) <= self.deaf:
            raise TimeoutError("deaf")
        self.told.append(outcome)

    async def submit(self, target: str, payload: float, **keywords: Any) -> CorrelationId:
        request: dict[str, Any] = {**ONCE, "callback": "told_of", **keywords}
        return await self.retry.invoke_async(target, payload, **request)

    async def only(self) -> Any:
        [found] = await self.retry.search()
        return found


# Grace.


@pytest.mark.parametrize("grace", [30, None])
async def test_repeats_and_callbacks_are_waited_for(grace: float | None) -> None:
    world = World(grace=grace, callback_policy=RetryPolicy(repeats=1, seconds=5))
    world.callback_takes, world.deaf = 3, 1
    async with world.retry:
        await world.submit("fail", 2, repeats=2, seconds=4)
    assert world.starts == [0, 4, 8]
    assert world.deliveries == [8, 16]
    assert now() == 19
    assert [outcome.reason for outcome in world.told] == ["succeeded"]


@pytest.mark.parametrize("grace", [10, 2.5, timedelta(minutes=1)])
async def test_not_longer_than_a_number(grace: Any) -> None:
    world = World(grace=grace)
    async with world.retry:
        await world.submit("sleep", 1_000)
        await asyncio.sleep(100)
    seconds = grace.total_seconds() if isinstance(grace, timedelta) else grace
    assert now() == 100 + seconds
    assert [outcome.reason for outcome in world.told] == ["abandoned"]


async def test_half_a_minute_if_nothing_is_said() -> None:
    world = World()
    async with world.retry:
        await world.submit("sleep", 1_000)
    assert now() == 30


async def test_zero_waits_for_nothing() -> None:
    world = World(grace=0)
    async with world.retry:
        await world.submit("sleep", 1)
        await world.submit("fail", 1, repeats=1, seconds=1)
        await asyncio.sleep(0.5)
    assert now() == 0.5
    assert [outcome.reason for outcome in world.told] == ["abandoned"] * 2


async def test_a_running_attempt_is_cancelled_after_the_grace() -> None:
    world, cancelled = World(grace=5), list[float]()

    async def careful() -> None:
        try:
            await asyncio.sleep(1_000)
        except asyncio.CancelledError:
            cancelled.append(now())
            raise

    world.services.register("careful", careful)
    async with world.retry:
        await world.retry.invoke_async("careful", **ONCE)
    assert cancelled == [5]


async def test_what_finishes_when_it_is_cancelled_has_succeeded() -> None:
    world = World(grace=5)

    async def careful() -> str:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(1_000)
        return "half of it"

    world.services.register("careful", careful)
    async with world.retry:
        cid = await world.retry.invoke_async("careful", **ONCE)
    seen = await world.retry.get(cid)
    assert (seen.reason, seen.response) == ("succeeded", "half of it")


class Odd(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError("body"), Odd("body")])
@pytest.mark.parametrize("grace", [30, None])
async def test_a_body_that_raised_is_left_at_once(
    grace: float | None, error: BaseException
) -> None:
    world = World(grace=grace)

    async def body() -> None:
        async with world.retry:
            await world.submit("sleep", 1_000)
            await asyncio.sleep(1)
            raise error

    with pytest.raises(type(error)) as caught:
        await body()
    assert caught.value is error
    assert now() == 1
    assert [outcome.reason for outcome in world.told] == ["abandoned"]


@pytest.mark.parametrize("how", ["asyncio", "anyio"])
async def test_a_body_that_was_cancelled_is_left_at_once(how: str) -> None:
    world = World(grace=None)

    async def body() -> None:
        async with world.retry:
            await world.submit("sleep", 1_000)
            await asyncio.sleep(1_000)

    async def limited() -> None:
        if how == "asyncio":
            async with asyncio.timeout(7):
                await body()
        with anyio.fail_after(7):
            await body()

    with pytest.raises(TimeoutError):
        await limited()
    assert now() == 7
    assert [outcome.reason for outcome in world.told] == ["abandoned"]


async def leave_and_cancel(world: World, *cancel_at: float) -> None:
    """Leave at 0, in a task that is cancelled at these times."""

    async def body() -> None:
        async with world.retry:
            await world.submit("sleep", 1_000)

    task = asyncio.create_task(body())
    for time in cancel_at:
        await asyncio.sleep(time - now())
        assert not task.done()
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancelled_while_it_waits_it_waits_no_longer() -> None:
    world = World(grace=None)
    world.callback_takes = 2
    await leave_and_cancel(world, 50)
    assert now() == 52
    assert [outcome.reason for outcome in world.told] == ["abandoned"]


async def test_cancelled_twice_it_ends_at_once(caplog: pytest.LogCaptureFixture) -> None:
    world = World(grace=None)
    world.callback_takes = 2
    await leave_and_cancel(world, 50, 51)
    assert now() == 51
    assert world.told == []
    seen = await world.only()
    assert seen.reason == "abandoned"
    assert seen.call_cid in caplog.text


# What is abandoned, and who is told.


async def test_what_is_recorded_of_the_abandoned() -> None:
    world = World(grace=1, max_running=1)
    async with world.retry:
        failed = await world.submit("fail", 9, repeats=9, seconds=600)
        await asyncio.sleep(700)
        running = await world.submit("sleep", 1_000)
        queued = await world.submit("sleep", 1)
        await asyncio.sleep(1)
    seen = [await world.retry.get(cid) for cid in (failed, running, queued)]
    assert {(each.state, each.reason, each.ok) for each in seen} == {("failed", "abandoned", False)}
    assert [each.attempts for each in seen] == [2, 1, 0]
    assert [len(each.history) for each in seen] == [2, 1, 0]
    assert [each.error.message if each.error else None for each in seen] == [
        "failure 2", "cut off", None
    ]  # fmt: skip
    assert [each.req_ts_utc is None for each in seen] == [False, False, True]
    assert {each.call_cid for each in world.told} == {failed, running, queued}


async def test_a_parked_one_is_not_waited_for_and_abandoned_too() -> None:
    world, known = World(grace=None), [0]

    async def strict(number: Annotated[int, AfterValidator(known.index)]) -> None:
        raise ConnectionError

    world.services.register("strict", strict)
    async with world.retry:
        cid = await world.submit("strict", 0, repeats=1, seconds=5)
        await asyncio.sleep(1)
        known.clear()
        await asyncio.sleep(5)
        assert (await world.retry.get(cid)).state == "parked"
    assert now() == 6
    assert [(outcome.reason, outcome.attempts) for outcome in world.told] == [("abandoned", 1)]


async def test_each_undelivered_callback_gets_one_attempt_more() -> None:
    world = World(grace=10, callback_policy=RetryPolicy(repeats=9, seconds=600))
    world.deaf = 100
    async with world.retry:
        for _ in range(3):
            await world.submit("fail", 0)
        await asyncio.sleep(601)
        assert world.deliveries == [0] * 3 + [600] * 3
    assert world.deliveries[6:] == [611] * 3
    assert now() == 611
    assert (await world.retry.counts())["dead"] == 3


async def test_a_delivery_under_way_is_not_cut_off_by_the_grace() -> None:
    world = World(grace=10)
    world.callback_takes = 4
    async with world.retry:
        await world.submit("sleep", 8)
    assert (world.deliveries, now()) == ([8], 12)
    assert [outcome.ok for outcome in world.told] == [True]


async def test_all_are_told_even_one_by_one() -> None:
    world = World(grace=0, max_running=1)
    world.callback_takes = 0.1
    async with world.retry:
        for _ in range(20):
            await world.submit("sleep", 1_000)
    assert len(world.told) == 20
    assert now() == pytest.approx(2)


async def test_what_could_not_be_told_is_logged_by_cid(caplog: pytest.LogCaptureFixture) -> None:
    world = World(grace=0)
    world.callback_takes = 600
    async with world.retry:
        cids = [await world.submit("sleep", 1_000) for _ in range(45)]
        untold = await world.submit("sleep", 1_000, callback=None)
    assert now() <= 5
    lines = [each.getMessage() for each in caplog.records if "left with 45" in each.getMessage()]
    named = [cid for line in lines for cid in line.partition(": ")[2].split()]
    assert sorted(named) == sorted(cids)
    assert untold not in caplog.text


async def test_nothing_runs_any_more_and_everything_can_be_asked() -> None:
    world = World(grace=1)
    async with world.retry:
        cid = await world.submit("fail", 9, repeats=9, seconds=60)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await asyncio.sleep(10_000)
    assert world.starts == [0]
    assert (await world.retry.wait(cid)).reason == "abandoned"
    assert (await world.retry.counts())["failed"] == 1


async def test_without_work_of_its_own_it_leaves_at_once(caplog: pytest.LogCaptureFixture) -> None:
    world = World(work=False)
    async with world.retry:
        cid = await world.submit("sleep", 1)
    assert (now(), world.starts, world.told) == (0, [], [])
    assert (await world.retry.get(cid)).reason == "abandoned"
    assert cid in caplog.text


async def test_cancelling_the_last_of_it_ends_the_wait() -> None:
    world = World(grace=None)

    async def cancel_later() -> None:
        await asyncio.sleep(40)
        assert await world.retry.cancel(cid)

    async with world.retry:
        cid = await world.submit("sleep", 1_000)
        later = asyncio.create_task(cancel_later())
    await later
    assert now() == 40
    assert [outcome.reason for outcome in world.told] == ["cancelled"]
