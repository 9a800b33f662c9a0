"""Asking and deciding, in each of the eight states: what is returned, raised, and left alone."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Annotated, Any, get_args

import pytest
import pytest_asyncio
from pydantic import AfterValidator

from invoke_retry import (
    CallbackPayload,
    CorrelationId,
    InvalidState,
    Invocation,
    InvokeRetry,
    NotRunning,
    RetryPolicy,
    ServiceRegistry,
)
from invoke_retry.models import State

pytestmark = pytest.mark.virtual_time

STATES: tuple[State, ...] = get_args(State)
UNDECIDED = ("waiting", "running", "parked")
AGES = 1_000_000.0  # what takes longer than any test


def now() -> float:
    return asyncio.get_running_loop().time()


class World:
    """A coordinator with one invocation in each state, and what was seen of them."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.told: list[CallbackPayload] = []
        self.fits = True
        self.cids: dict[str, CorrelationId] = {}
        services = ServiceRegistry()

        def check(text: str) -> str:
            if text == "odd" and not self.fits:
                raise ValueError("no longer")
            return text

        @services.service()
        async def target(what: Annotated[str, AfterValidator(check)]) -> str:
            self.calls.append(("target", what))
            if what == "hang":
                await asyncio.sleep(AGES)
            if what != "work":
                raise ConnectionError(what)
            return "done"

        @services.service()
        async def told(outcome: CallbackPayload) -> None:
            self.told.append(outcome)

        @services.service()
        async def deaf(outcome: CallbackPayload) -> None:
            self.calls.append(("deaf", outcome.call_cid))
            raise TimeoutError("deaf")

        self.retry = InvokeRetry(
            services, name="shop", grace=0, callback_policy=RetryPolicy(repeats=1, seconds=1_000)
        )

    async def submit(self, what: str, callback: str, repeats: int = 0) -> CorrelationId:
        with self.retry.caller("orders.api", cid=f"request for {what}"):
            return await self.retry.invoke_async(
                "target", what, repeats=repeats, seconds=5_000, callback=callback, context=[what]
            )

    async def fill(self) -> None:
        cids = self.cids
        cids["dead"] = await self.submit("work", "deaf")
        await asyncio.sleep(2_000)
        cids["parked"] = await self.submit("odd", "told", repeats=1)
        await asyncio.sleep(1)
        self.fits = False
        assert await self.retry.run_now(cids["parked"])
        cids["waiting"] = await self.submit("fail", "told", repeats=1)
        cids["running"] = await self.submit("hang", "told")
        cids["notifying"] = await self.submit("work", "deaf")
        cids["succeeded"] = await self.submit("work", "told")
        cids["failed"] = await self.submit("fail", "told")
        cids["cancelled"] = await self.submit("hang", "told")
        await asyncio.sleep(1)
        assert await self.retry.cancel(cids["cancelled"])
        await asyncio.sleep(1)
        self.calls.clear()
        self.told.clear()

    async def get(self, state: str) -> Invocation:
        return await self.retry.get(self.cids[state])


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    async with world.retry:
        await world.fill()
        yield world


every_state = pytest.mark.parametrize("state", STATES)


# Looking.


@every_state
async def test_get(world: World, state: State) -> None:
    seen = await world.get(state)
    assert (seen.state, seen.call_cid, seen.target) == (state, world.cids[state], "target")
    assert (seen.source, seen.orig_cid) == ("orders.api", f"request for {seen.payload}")
    assert seen.context == [seen.payload]
    assert seen.attempts == len(seen.history) == 1
    assert (seen.retry_seconds, seen.resubmit_of) == (5_000, None)
    assert (seen.parked_because is not None) == (state == "parked")
    reason = {
        "notifying": "succeeded", "succeeded": "succeeded", "dead": "succeeded",
        "failed": "exhausted", "cancelled": "cancelled",
    }.get(state)  # fmt: skip
    assert seen.reason == reason
    assert seen.ok == (None if reason is None else reason == "succeeded")
    assert seen.response == ("done" if seen.ok else None)
    assert (seen.resp_ts_utc is None) == (reason is None)


@every_state
async def test_get_says_when_it_goes_on(world: World, state: State) -> None:
    seen = await world.get(state)
    wait = {"waiting": 5_000, "notifying": 1_000}.get(state)
    if wait is None:
        assert seen.next_attempt_at is None
    else:
        last = seen.resp_ts_utc or seen.history[-1].ended_at
        assert last is not None
        assert seen.next_attempt_at is not None
        assert seen.next_attempt_at - last == pytest.approx(
            timedelta(seconds=wait), abs=timedelta(milliseconds=1)
        )


@every_state
async def test_get_has_the_last_attempt(world: World, state: State) -> None:
    attempt = (await world.get(state)).history[-1]
    assert attempt.number == 1
    error = {
        "waiting": "ConnectionError", "failed": "ConnectionError", "parked": "ConnectionError",
        "cancelled": "asyncio.exceptions.CancelledError",
    }.get(state)  # fmt: skip
    assert (attempt.error.type if attempt.error else None) == error
    assert (attempt.ended_at is None) == (state == "running")


@every_state
async def test_get_has_the_deliveries(world: World, state: State) -> None:
    seen = await world.get(state)
    called = {"notifying": 1, "succeeded": 1, "failed": 1, "cancelled": 1, "dead": 2}
    assert seen.deliveries == called.get(state, 0)
    error = seen.delivery_error
    assert (error.type if error else None) == (
        "TimeoutError" if state in ("notifying", "dead") else None
    )


@every_state
async def test_wait(world: World, state: State) -> None:
    began = now()
    if state in UNDECIDED:
        with pytest.raises(TimeoutError, match=world.cids[state]):
            await world.retry.wait(world.cids[state], timeout=7)
        assert now() == began + 7
    else:
        seen, outcome = await world.get(state), await world.retry.wait(world.cids[state], timeout=0)
        assert now() == began
        shared = set(CallbackPayload.model_fields)
        assert outcome.model_dump() == seen.model_dump(include=shared)
    assert (await world.get(state)).state == state


async def test_wait_ends_when_the_outcome_is_recorded_before_its_callback(world: World) -> None:
    cid = await world.submit("work", "deaf")
    began = now()
    assert (await world.retry.wait(cid)).ok
    assert now() == began
    assert (await world.retry.get(cid)).state == "notifying"


@pytest.mark.parametrize("state", UNDECIDED)
async def test_wait_hears_of_a_cancellation(world: World, state: State) -> None:
    waits = [asyncio.create_task(world.retry.wait(world.cids[state])) for _ in range(3)]
    await asyncio.sleep(1)
    await world.retry.cancel(world.cids[state])
    assert [outcome.reason for outcome in await asyncio.gather(*waits)] == ["cancelled"] * 3


# Deciding.


@every_state
async def test_cancel(world: World, state: State) -> None:
    before = await world.get(state)
    answer = await world.retry.cancel(world.cids[state])
    after = await world.get(state)
    assert answer is (state in UNDECIDED)
    if answer:
        assert (after.reason, after.ok, after.attempts) == ("cancelled", False, 1)
        assert after.parked_because is None
        await asyncio.sleep(0.5)
        assert [(each.call_cid, each.reason) for each in world.told] == [
            (world.cids[state], "cancelled")
        ]
        assert (await world.get(state)).state == "cancelled"
        assert world.calls == []
    else:
        assert after == before
    assert await world.retry.cancel(world.cids[state]) is False


@every_state
async def test_run_now(world: World, state: State) -> None:
    before = await world.get(state)
    world.fits = True
    answer = await world.retry.run_now(world.cids[state])
    assert answer is (state in ("waiting", "notifying", "parked"))
    await asyncio.sleep(0.5)
    after = await world.get(state)
    expected = {
        "waiting": ("failed", [("target", "fail")]),
        "notifying": ("dead", [("deaf", world.cids["notifying"])]),
        "parked": ("failed", [("target", "odd")]),
    }.get(state, (state, []))
    assert (after.state, world.calls) == expected
    if not answer:
        assert after == before


async def test_run_now_of_what_still_does_not_fit(world: World) -> None:
    assert await world.retry.run_now(world.cids["parked"]) is True
    await asyncio.sleep(0.5)
    seen = await world.get("parked")
    assert (seen.state, seen.attempts) == ("parked", 1)


async def test_nothing_hastens_a_callback_that_is_being_called(world: World) -> None:
    async def slow(outcome: CallbackPayload) -> None:
        world.told.append(outcome)
        await asyncio.sleep(10)

    world.retry.services.register("slow", slow)
    cid = await world.submit("work", "slow")
    await asyncio.sleep(5)
    for ask in (world.retry.run_now, world.retry.cancel, world.retry.redeliver):
        assert await ask(cid) is False
    await asyncio.sleep(6)
    assert ((await world.retry.get(cid)).state, len(world.told)) == ("succeeded", 1)


@every_state
async def test_redeliver(world: World, state: State) -> None:
    before = await world.get(state)
    began = now()
    assert await world.retry.redeliver(world.cids[state]) is (state == "dead")
    after = await world.get(state)
    if state != "dead":
        assert after == before
        return
    assert after.state == "notifying"
    await asyncio.sleep(2_000)
    assert now() == began + 2_000
    again = await world.get(state)
    assert again.state == "dead"  # after all attempts of the callback's policy
    deaf = [cid for name, cid in world.calls if name == "deaf"]
    assert deaf.count(world.cids["dead"]) == 2
    assert again.model_dump(exclude={"deliveries"}) == before.model_dump(exclude={"deliveries"})


async def test_nothing_is_begun_once_it_was_left() -> None:
    async def work() -> None: ...
    async def deaf(outcome: CallbackPayload) -> None:
        raise ValueError

    services = ServiceRegistry()
    services.register("work", work)
    services.register("deaf", deaf)
    async with InvokeRetry(services, callback_policy=RetryPolicy(0, 0)) as retry:
        cid = await retry.invoke_async("work", repeats=0, seconds=0, callback="deaf")
    for ask in (retry.redeliver, retry.run_now):
        with pytest.raises(NotRunning):
            await ask(cid)
    assert (await retry.get(cid)).state == "dead"


@every_state
async def test_resubmit(world: World, state: State) -> None:
    old = world.cids[state]
    before, count = await world.get(state), len(await world.retry.search())
    if state not in ("failed", "cancelled"):
        with pytest.raises(InvalidState, match=old):
            await world.retry.resubmit(old)
        assert len(await world.retry.search()) == count
    else:
        with world.retry.caller("a person", cid="ticket 1"):
            cid = await world.retry.resubmit(old)
        assert isinstance(cid, CorrelationId)
        assert cid != old
        new = await world.retry.get(cid)
        same = {
            "target", "payload", "context", "callback", "source", "orig_cid", "retry_repeats",
            "retry_seconds",
        }  # fmt: skip
        assert new.model_dump(include=same) == before.model_dump(include=same)
        assert (new.resubmit_of, new.reason, new.resp_ts_utc) == (old, None, None)
        assert await world.retry.resubmit(old) not in (old, cid)
    assert await world.get(state) == before


async def test_resubmit_once(world: World) -> None:
    old, count = world.cids["failed"], len(await world.retry.search())
    new = await world.retry.resubmit(old, once=True)
    with pytest.raises(InvalidState, match=f"{old} was resubmitted before, as {new}"):
        await world.retry.resubmit(old, once=True)
    assert (await world.retry.get(new)).resubmit_of == old
    assert await world.retry.resubmit(old) not in (old, new)
    assert len(await world.retry.search()) == count + 2


async def test_resubmit_of_a_dead_letter_that_failed(world: World) -> None:
    cid = await world.submit("fail", "deaf")
    await asyncio.sleep(1_500)
    assert (await world.retry.get(cid)).state == "dead"
    assert (await world.retry.get(await world.retry.resubmit(cid))).resubmit_of == cid


# Many at once.


@every_state
async def test_search_by_state(world: World, state: State) -> None:
    assert await world.retry.search(state=state) == [await world.get(state)]
    (found,) = await world.retry.search(state=state)
    service = world.retry.services[found.target]
    by_name = await world.retry.search(target=found.target)
    assert await world.retry.search(target=service) == by_name != []
    assert await world.retry.search(state=state, after=world.cids[state]) == []


async def test_search_filters_together(world: World) -> None:
    async def found(**query: Any) -> list[str]:
        return [each.state for each in await world.retry.search(**query)]

    assert await found(error_type="ConnectionError") == ["failed", "waiting", "parked"]
    assert await found(error_type="ConnectionError", state="waiting") == ["waiting"]
    assert await found(source="orders.api", target="target", limit=2) == ["cancelled", "failed"]
    assert await found(source="orders.api", target="told") == []
    assert await found(error_type="ConnectionError", after=world.cids["failed"], limit=1) == [
        "waiting"
    ]


async def test_search_page_by_page(world: World) -> None:
    seen: list[str] = []
    after: str | None = None
    while page := await world.retry.search(limit=3, after=after):
        assert len(page) <= 3
        seen += [each.call_cid for each in page]
        after = page[-1].call_cid
    assert seen == list(reversed(world.cids.values()))  # which is in the order of acceptance


async def test_counts(world: World) -> None:
    assert await world.retry.counts() == dict.fromkeys(STATES, 1)
