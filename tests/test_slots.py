"""How many run at a time: overall, per service, and fairly."""

import asyncio
from typing import Any

import pytest

from invoke_retry import CallbackPayload, InvokeRetry, ServiceRegistry
from invoke_retry.slots import Slots

ONCE: dict[str, Any] = {"repeats": 0, "seconds": 0}


async def work() -> None:
    await asyncio.sleep(10)


def slots(limit: int, **limits: int | None) -> Slots:
    services = ServiceRegistry()
    for name, max_running in limits.items():
        services.register(name, work, max_running=max_running)
    return Slots(limit, services)


def take(slots: Slots, name: str, times: int = 1) -> int:
    """Take as many as are admitted, at most *times*; how many these were."""
    for i in range(times):
        if not slots.take(name):
            return i
    return times


def test_no_more_than_the_limit() -> None:
    some = slots(3, a=None, b=None)
    assert (take(some, "a", 2), take(some, "b", 2)) == (2, 1)
    assert (some.room(), some.total) == (0, 3)
    some.give("a")
    assert some.room() > 0
    assert (some.room_for("b"), some.total) == (1, 2)


def test_no_more_of_a_service_than_its_own_limit() -> None:
    some = slots(10, a=2, b=None)
    assert take(some, "a", 5) == 2
    assert some.room() > 0
    assert take(some, "b", 9) == 8
    some.give("b")
    assert some.room_for("a") == 0
    some.give("a")
    assert some.room_for("a") > 0


def test_a_limit_counts_from_the_moment_the_service_is_known() -> None:
    services = ServiceRegistry()
    some = Slots(10, services)
    assert take(some, "late", 3) == 3
    services.register("late", work, max_running=3)
    assert some.room_for("late") == 0


def test_a_troubled_service_leaves_a_quarter_to_the_others() -> None:
    some = slots(8, down=None, fine=None)
    some.note("down", failed=True)
    assert take(some, "down", 8) == 6
    assert take(some, "fine", 8) == 2


def test_all_troubled_ones_share_three_quarters() -> None:
    some = slots(8, a=None, b=None, fine=None)
    some.note("a", failed=True)
    some.note("b", failed=True)
    assert (take(some, "a", 4), take(some, "b", 4)) == (4, 2)
    assert take(some, "fine", 8) == 2


def test_what_it_held_before_its_trouble_counts() -> None:
    some = slots(8, down=None)
    assert take(some, "down", 7) == 7
    some.note("down", failed=True)
    assert some.room_for("down") == 0
    some.give("down")
    assert some.room_for("down") == 0
    some.give("down")
    assert some.room_for("down") > 0


def test_one_success_ends_the_trouble() -> None:
    some = slots(8, down=None, other=None)
    for name in ("down", "other"):
        some.note(name, failed=True)
    some.note("down", failed=False)
    assert take(some, "down", 8) == 8


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_troubled_service_is_never_shut_out(limit: int) -> None:
    some = slots(limit, down=None)
    some.note("down", failed=True)
    assert take(some, "down", limit) == max(1, limit * 3 // 4)


# As it shows.


@pytest.mark.virtual_time
async def test_a_service_limit_is_for_the_background_and_not_for_inline_calls() -> None:
    services = ServiceRegistry()
    services.register("work", work, max_running=1)
    async with InvokeRetry(services) as retry:
        cids = [await retry.invoke_async("work", **ONCE) for _ in range(2)]
        await asyncio.gather(*(retry.invoke("work", **ONCE) for _ in range(5)))
        assert asyncio.get_running_loop().time() == 10
        await retry.wait(cids[1])
        assert asyncio.get_running_loop().time() == 20


@pytest.mark.virtual_time
async def test_the_limit_of_a_callback_service_holds_for_deliveries() -> None:
    running = most = 0
    services = ServiceRegistry()

    @services.service()
    async def target() -> None: ...

    @services.service(max_running=2)
    async def told(outcome: CallbackPayload) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(10)
        running -= 1

    async with InvokeRetry(services) as retry:
        for _ in range(6):
            await retry.invoke_async("target", **ONCE, callback="told")
    assert (most, asyncio.get_running_loop().time()) == (2, 30)


@pytest.mark.virtual_time
async def test_services_take_turns_for_the_only_slot() -> None:
    starts: list[str] = []
    services = ServiceRegistry()

    def service(name: str) -> None:
        async def target() -> None:
            starts.append(name)
            await asyncio.sleep(1)

        services.register(name, target)

    for name in ("a", "b", "c"):
        service(name)
    async with InvokeRetry(services, max_running=1) as retry:
        for name in ("a", "a", "a", "a", "b", "b", "c"):
            await retry.invoke_async(name, **ONCE)
    # neither waits for all of what came before it
    assert "b" in starts[:3]
    assert "c" in starts[:4]
    assert sorted(starts) == ["a", "a", "a", "a", "b", "b", "c"]


@pytest.mark.virtual_time
async def test_a_wait_of_a_day_holds_no_slot() -> None:
    services = ServiceRegistry()
    services.register("work", work)

    @services.service()
    async def down() -> None:
        raise ConnectionError

    async with InvokeRetry(services, max_running=1, grace=0) as retry:
        for _ in range(50):
            await retry.invoke_async("down", repeats=1, seconds=86_400)
        cid = await retry.invoke_async("work", **ONCE)
        await retry.wait(cid)
        assert asyncio.get_running_loop().time() == 10
