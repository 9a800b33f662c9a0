"""What hooks are told, event by event with all fields, in each mode."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import pytest
import pytest_asyncio
from pydantic import AfterValidator

from invoke_retry import (
    CallbackPayload,
    CorrelationId,
    ErrorInfo,
    InvokeRetry,
    RetriesExhausted,
    RetryPolicy,
    ServiceRegistry,
    current_call,
)
from invoke_retry.events import Event, Outcome

pytestmark = pytest.mark.virtual_time

CID = CorrelationId.from_key("order-4711")
Told = tuple[str, float, dict[str, Any]]


def failure(n: int) -> dict[str, str]:
    return {"type": "ConnectionError", "message": f"failure {n}"}


def started(at: float, n: int, repeats: int, *, background: bool) -> Told:
    return "AttemptStarted", at, {"attempt": n, "repeats": repeats, "background": background}


def failed(at: float, n: int, repeats: int, *, background: bool) -> Told:
    fields = {"attempt": n, "repeats": repeats, "background": background}
    return "AttemptFailed", at, {**fields, "error": failure(n), "seconds": 2.0}


def waiting(at: float, n: int, seconds: float, *, background: bool) -> Told:
    return "Waiting", at, {"attempt": n, "seconds": seconds, "background": background}


def outcome(at: float, reason: str, attempts: int, error: Any, *, background: bool) -> Told:
    fields = {"ok": reason == "succeeded", "reason": reason, "attempts": attempts}
    return "Outcome", at, {**fields, "error": error, "background": background}


def accepted(at: float, callback: str | None) -> Told:
    return "Accepted", at, {"source": "orders.api", "orig_cid": "request 17", "callback": callback}


def delivered(at: float, deliveries: int) -> Told:
    return "CallbackDelivered", at, {"callback": "told", "deliveries": deliveries}


def not_delivered(at: float, deliveries: int, seconds: float | None) -> Told:
    error = {"type": "TimeoutError", "message": "deaf"}
    fields = {"callback": "told", "deliveries": deliveries}
    return "CallbackFailed", at, {**fields, "error": error, "seconds": seconds}


class World:
    """A target that fails in its first attempts, 2 s long each, and a callback that may be deaf."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.deaf = 0
        self.called = 0
        self.fits = [0, 1, 2, 3, 9]
        self.services = services = ServiceRegistry()

        @services.service(give_up_on=KeyError)
        async def target(failures: Annotated[int, AfterValidator(self.check)]) -> int:
            await asyncio.sleep(2)
            if (attempt := current_call().attempt) <= failures:
                raise ConnectionError(f"failure {attempt}")
            return attempt

        @services.service()
        async def told(payload: CallbackPayload) -> None:
            self.called += 1
            if self.called <= self.deaf:
                raise TimeoutError("deaf")

        self.retry = InvokeRetry(
            services, hooks=[self.events.append], callback_policy=RetryPolicy(repeats=1, seconds=30)
        )

    def check(self, failures: int) -> int:
        if failures not in self.fits:
            raise ValueError
        return failures

    async def background(self, failures: int, callback: str | None = "told", **kw: Any) -> None:
        policy: dict[str, Any] = {"repeats": 1, "seconds": 5, **kw}
        with self.retry.caller("orders.api", cid="request 17"):
            await self.retry.invoke_async("target", failures, cid=CID, callback=callback, **policy)

    def told(self) -> list[Told]:
        """What was told so far: kind, seconds since the start of the test, and the other fields."""
        seconds = timedelta(seconds=asyncio.get_running_loop().time())
        zero = datetime.fromtimestamp(self.retry.clock.utc(), UTC) - seconds
        found: list[Told] = []
        for event in self.events:
            fields = event._asdict()
            assert (fields.pop("cid"), fields.pop("target")) == (CID, "target")
            if isinstance(error := fields.get("error"), ErrorInfo):
                fields["error"] = error.model_dump()
            if fields.get("seconds") is not None:
                fields["seconds"] = round(fields["seconds"], 3)
            at = round((fields.pop("at") - zero).total_seconds(), 3)
            found.append((type(event).__name__, at, fields))
        return found


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    async with world.retry:
        yield world


async def test_inline_success_after_a_failure(world: World) -> None:
    await world.retry.invoke("target", 1, repeats=3, seconds=5, cid=CID)
    assert world.told() == [
        started(0, 1, 3, background=False),
        failed(2, 1, 3, background=False),
        waiting(2, 2, 5, background=False),
        started(7, 2, 3, background=False),
        outcome(9, "succeeded", 2, None, background=False),
    ]


async def test_inline_exhausted(world: World) -> None:
    with pytest.raises(RetriesExhausted):
        await world.retry.invoke("target", 3, repeats=1, seconds=5, cid=CID)
    assert world.told() == [
        started(0, 1, 1, background=False),
        failed(2, 1, 1, background=False),
        waiting(2, 2, 5, background=False),
        started(7, 2, 1, background=False),
        failed(9, 2, 1, background=False),
        outcome(9, "exhausted", 2, failure(2), background=False),
    ]


async def test_inline_deadline(world: World) -> None:
    with pytest.raises(RetriesExhausted):
        await world.retry.invoke("target", 3, policy=RetryPolicy(3, 5, deadline=6), cid=CID)
    assert world.told() == [
        started(0, 1, 3, background=False),
        failed(2, 1, 3, background=False),
        outcome(2, "deadline", 1, failure(1), background=False),
    ]


async def test_a_call_that_is_refused_is_no_event(world: World) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        await world.retry.invoke("target", 8, repeats=1, seconds=1)
    assert world.events == []


async def test_fallback_that_succeeds_at_once(world: World) -> None:
    await world.retry.invoke("target", 0, repeats=1, seconds=5, async_fallback=True, cid=CID)
    assert world.told() == [
        started(0, 1, 1, background=False),
        outcome(2, "succeeded", 1, None, background=False),
    ]


async def hand_over(world: World) -> list[Told]:
    with world.retry.caller("orders.api", cid="request 17"):
        await world.retry.invoke(
            "target", 1, repeats=1, seconds=5, async_fallback=True, cid=CID, callback="told"
        )
    await asyncio.sleep(60)
    return world.told()


async def test_fallback_that_goes_on_in_the_background(world: World) -> None:
    assert await hand_over(world) == [
        started(0, 1, 1, background=False),
        failed(2, 1, 1, background=False),
        accepted(2, "told"),
        waiting(2, 2, 5, background=True),
        started(7, 2, 1, background=True),
        outcome(9, "succeeded", 2, None, background=True),
        delivered(9, 1),
    ]


async def test_background_success_after_a_failure(world: World) -> None:
    await world.background(1)
    await asyncio.sleep(60)
    assert world.told() == [
        accepted(0, "told"),
        started(0, 1, 1, background=True),
        failed(2, 1, 1, background=True),
        waiting(2, 2, 5, background=True),
        started(7, 2, 1, background=True),
        outcome(9, "succeeded", 2, None, background=True),
        delivered(9, 1),
    ]


async def test_background_without_a_callback(world: World) -> None:
    await world.background(2, callback=None, repeats=0)
    await asyncio.sleep(60)
    assert world.told() == [
        accepted(0, None),
        started(0, 1, 0, background=True),
        failed(2, 1, 0, background=True),
        outcome(2, "exhausted", 1, failure(1), background=True),
    ]


async def test_the_same_request_again_is_accepted_once(world: World) -> None:
    await world.background(0)
    await world.background(0)
    assert world.told() == [accepted(0, "told")]


async def test_a_callback_that_fails_dies_and_is_told_again(world: World) -> None:
    world.deaf = 2
    await world.background(0)
    await asyncio.sleep(60)
    del world.events[:3]
    assert world.told() == [
        not_delivered(2, 1, 30),
        not_delivered(32, 2, None),
        ("Dead", 32, {"callback": "told"}),
    ]
    world.events.clear()
    await world.retry.redeliver(CID)
    await asyncio.sleep(1)
    assert world.told() == [delivered(60, 1)]


CUT_OFF = {"type": "asyncio.exceptions.CancelledError", "message": "cut off"}


@pytest.mark.parametrize(("at", "error"), [(1, CUT_OFF), (4, failure(1))])
async def test_cancelled_while_it_runs_or_waits(
    world: World, at: float, error: dict[str, str]
) -> None:
    await world.background(1)
    await asyncio.sleep(at)
    world.events.clear()
    await world.retry.cancel(CID)
    await asyncio.sleep(60)
    assert world.told() == [
        outcome(at, "cancelled", 1, error, background=True),
        delivered(at, 1),
    ]


async def test_a_deadline_that_passes_in_the_queue(world: World) -> None:
    retry = InvokeRetry(world.services, hooks=[world.events.append], max_running=1)
    async with retry as world.retry:
        await retry.invoke_async("target", 0, repeats=0, seconds=0)
        await world.background(0, policy=RetryPolicy(3, 5, deadline=1), repeats=None, seconds=None)
        await asyncio.sleep(10)
        world.events[:] = [event for event in world.events if event.cid == CID]
        assert world.told() == [
            accepted(0, "told"),
            outcome(1, "deadline", 0, None, background=True),
            delivered(2, 1),
        ]


async def test_parked_and_tried_again(world: World) -> None:
    await world.background(1)
    await asyncio.sleep(4)
    world.events.clear()
    world.fits.clear()
    await asyncio.sleep(10)
    [(kind, at, fields)] = world.told()
    assert (kind, at, list(fields)) == ("Parked", 7, ["because"])
    assert "no longer fits" in fields["because"]


async def test_abandoned(world: World) -> None:
    async with InvokeRetry(world.services, grace=0, hooks=[world.events.append]) as world.retry:
        await world.background(1)
        await asyncio.sleep(4)
        world.events.clear()
    assert world.told() == [
        outcome(4, "abandoned", 1, failure(1), background=True),
        delivered(4, 1),
    ]


async def test_events_are_frozen(world: World) -> None:
    await world.retry.invoke("target", 0, repeats=0, seconds=0, cid=CID)
    with pytest.raises(AttributeError):
        setattr(world.events[0], "cid", "other")
    assert all(event.at.tzinfo is UTC for event in world.events)


# Hooks that fail.


async def test_a_hook_that_raises_keeps_nothing_from_the_others(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    broken: list[Event] = []

    def raises(event: Event) -> None:
        broken.append(event)
        raise ValueError(f"at event {len(broken)}")

    def raises_once(event: Event) -> None:
        if isinstance(event, Outcome):
            raise KeyError

    hooks = [raises, raises_once, world.events.append]
    async with InvokeRetry(world.services, hooks=hooks) as world.retry:
        await world.background(1)
        await world.retry.wait(CID)
        await asyncio.sleep(1)
    assert len(world.events) == 7
    assert broken == world.events  # it is called on
    lines = [each.getMessage() for each in caplog.records if each.exc_info]
    assert len(lines) == 2
    assert "raised at Accepted" in lines[0]
    assert "raised at Outcome" in lines[1]
