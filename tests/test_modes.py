"""The table of the three modes: attempts, exact waits, what comes back, and the callback."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from invoke_retry import (
    CallbackPayload,
    CorrelationId,
    InvokeRetry,
    RetriesExhausted,
    ServiceRegistry,
    current_call,
)

pytestmark = pytest.mark.virtual_time

REPEATS = range(6)
SECONDS = 7


@dataclass
class World:
    """A target that fails so many times, a callback, and what was seen of them."""

    failures: float
    starts: list[float] = field(default_factory=list[float])
    told: list[tuple[float, CallbackPayload]] = field(
        default_factory=list[tuple[float, CallbackPayload]]
    )
    services: ServiceRegistry = field(default_factory=ServiceRegistry)

    def __post_init__(self) -> None:
        self.services.register("target", self.target)
        self.services.register("callback", self.callback)

    async def target(self, payload: dict[str, int]) -> dict[str, int]:
        self.starts.append(now())
        assert current_call().attempt == len(self.starts)
        if len(self.starts) <= self.failures:
            raise ConnectionError(f"failure {len(self.starts)}")
        return {"sum": payload["a"] + 1}

    async def callback(self, outcome: CallbackPayload) -> None:
        self.told.append((now(), outcome))


def now() -> float:
    return asyncio.get_running_loop().time()


def schedule(attempts: int) -> list[float]:
    return [float(SECONDS * i) for i in range(attempts)]


@pytest.mark.parametrize("repeats", REPEATS)
async def test_inline_hopeless(repeats: int) -> None:
    world = World(failures=float("inf"))
    with pytest.raises(RetriesExhausted) as caught:
        await InvokeRetry(world.services).invoke(
            "target", {"a": 1}, repeats=repeats, seconds=SECONDS
        )
    assert world.starts == schedule(1 + repeats)
    assert now() == SECONDS * repeats  # nothing is waited after the last
    error = caught.value
    assert (error.target, error.attempts, error.reason) == ("target", 1 + repeats, "exhausted")
    assert CorrelationId(error.cid)
    assert isinstance(error.__cause__, ConnectionError)
    assert str(error.__cause__) == f"failure {1 + repeats}"
    assert str(error.__cause__) in str(error)
    assert world.told == []


@pytest.mark.parametrize("repeats", REPEATS)
async def test_inline_succeeds_at_last(repeats: int) -> None:
    world = World(failures=repeats)
    response = await InvokeRetry(world.services).invoke(
        "target", {"a": 1}, repeats=repeats, seconds=SECONDS
    )
    assert response == {"sum": 2}
    assert world.starts == schedule(1 + repeats)
    assert world.told == []


@pytest.mark.parametrize("repeats", REPEATS)
@pytest.mark.parametrize("succeeds", [True, False])
async def test_background(repeats: int, succeeds: bool) -> None:
    world = World(failures=repeats if succeeds else float("inf"))
    async with InvokeRetry(world.services, name="shop", grace=None) as retry:
        cid = await retry.invoke_async(
            "target", {"a": 1}, repeats=repeats, seconds=SECONDS, callback="callback", context="x"
        )
        assert world.starts == []  # never in the caller's task
        assert isinstance(cid, CorrelationId)
        outcome = await retry.wait(cid)
        assert await retry.wait(cid) == outcome
    assert world.starts == schedule(1 + repeats)
    assert world.told == [(SECONDS * repeats, outcome)]
    check(outcome, succeeds, repeats, cid)


@pytest.mark.parametrize("repeats", REPEATS)
async def test_fallback_succeeds_at_once(repeats: int) -> None:
    world = World(failures=0)
    async with InvokeRetry(world.services) as retry:
        response = await retry.invoke(
            "target", {"a": 1}, repeats=repeats, seconds=SECONDS, async_fallback=True,
            callback="callback",
        )  # fmt: skip
        assert sum((await retry.counts()).values()) == 0
    assert response == {"sum": 2}
    assert not isinstance(response, CorrelationId)
    assert world.starts == [0.0]
    assert world.told == []


@pytest.mark.parametrize("repeats", REPEATS[1:])
@pytest.mark.parametrize("succeeds", [True, False])
async def test_fallback_goes_on_in_the_background(repeats: int, succeeds: bool) -> None:
    world = World(failures=repeats if succeeds else float("inf"))
    async with InvokeRetry(world.services, name="shop", grace=None) as retry:
        cid = await retry.invoke(
            "target", {"a": 1}, repeats=repeats, seconds=SECONDS, async_fallback=True,
            callback="callback", context="x",
        )  # fmt: skip
        assert isinstance(cid, CorrelationId)
        assert (world.starts, now()) == ([0.0], 0.0)  # the caller has not waited
        outcome = await retry.wait(cid)
    assert world.starts == schedule(1 + repeats)
    assert world.told == [(SECONDS * repeats, outcome)]
    check(outcome, succeeds, repeats, cid)


async def test_fallback_with_nothing_to_repeat_raises_as_inline_does() -> None:
    world = World(failures=1)
    async with InvokeRetry(world.services) as retry:
        with pytest.raises(RetriesExhausted) as caught:
            await retry.invoke(
                "target", {"a": 1}, repeats=0, seconds=SECONDS, async_fallback=True,
                callback="callback",
            )  # fmt: skip
        assert sum((await retry.counts()).values()) == 0
    assert caught.value.attempts == 1
    assert world.told == []


def check(outcome: CallbackPayload, succeeds: bool, repeats: int, cid: CorrelationId) -> None:
    told: dict[str, Any] = outcome.model_dump(mode="json")
    assert told.pop("req_ts_utc") <= told.pop("resp_ts_utc")
    assert CorrelationId(told.pop("orig_cid")) != cid
    failure = {"type": "ConnectionError", "message": f"failure {1 + repeats}"}
    assert told == {
        "ok": succeeds,
        "source": "shop",
        "target": "target",
        "retry_repeats": repeats,
        "retry_seconds": SECONDS,
        "call_cid": cid,
        "context": "x",
        "response": {"sum": 2} if succeeds else None,
        "response_omitted": None,
        "attempts": 1 + repeats,
        "error": None if succeeds else failure,
        "reason": "succeeded" if succeeds else "exhausted",
    }
    seconds = (outcome.resp_ts_utc - (outcome.req_ts_utc or outcome.resp_ts_utc)).total_seconds()
    assert seconds == pytest.approx(SECONDS * repeats, abs=1e-5)
