"""Timing: sane waits, whatever the numbers, the clock and the crowd do."""

# ruff: noqa: N802 (the names of the tests begin with those of the cases)
from __future__ import annotations

import asyncio
import json
import math
import random
from collections import Counter
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from fault_help import Failing, registry, run_script, running

from invoke_retry import InvalidPolicy, InvokeRetry, RetriesExhausted, RetryAfter, RetryPolicy
from invoke_retry.policy import decide
from invoke_retry.testing import VirtualLoop

pytestmark = pytest.mark.virtual_time

CENTURY = 100 * 365.25 * 86_400


def now() -> float:
    return asyncio.get_running_loop().time()


class Timed(Failing):
    """A failing target that notes when it is called."""

    def __init__(self, *errors: BaseException) -> None:
        super().__init__()
        self.at: list[float] = []
        self.errors = list(errors)

    async def call(self) -> None:
        self.at.append(now())
        raise self.errors.pop(0) if self.errors else ValueError("no")

    @property
    def waits(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.at, self.at[1:], strict=False)]


@pytest.mark.parametrize("factor", [1.0, 1.0001, 2.0, 10, 1e6, 1e308])
@pytest.mark.parametrize("cap", [1, None])
def test_T1_backoff_never_overflows(factor: float, cap: float | None) -> None:
    """`min(cap, base ** n)` raised before the cap applied, after 85 minutes of an outage."""
    policy = RetryPolicy(
        repeats=2**31 - 1, seconds=0.5, backoff="exponential", factor=factor, max_seconds=cap
    )
    before = 0.0
    for attempt in [*range(1, 2_000), 10**4, 10**5, 2**31 - 1]:
        wait = policy.interval(attempt)
        assert before <= wait <= (cap or CENTURY)
        before = wait
        drawn = decide(policy, attempt, 0, ValueError(), random.Random(attempt))
        assert isinstance(drawn, float | int)
        assert 0 <= drawn <= wait


@pytest.mark.slow
async def test_T1_thousands_of_attempts_stay_at_the_cap() -> None:
    """A retry "for ever" died in the night; its log had grown to 106 MB."""
    target = Timed()
    services, mailbox = registry(target=target.call)
    policy = RetryPolicy(
        repeats=4_999, seconds=0.001, backoff="exponential", factor=10, max_seconds=1
    )
    async with running(services) as retry:
        await retry.invoke_async("target", policy=policy, callback="told")
        await asyncio.sleep(6_000)
        found = await retry.get(mailbox.only.call_cid)
        assert len(found.history) == 100
    assert mailbox.only.attempts == 5_000
    assert max(target.waits) <= 1 + 1e-9
    target.at.clear()
    inline = InvokeRetry(services)
    with pytest.raises(RetriesExhausted) as caught:
        await inline.invoke("target", policy=policy)
    assert caught.value.attempts == 5_000
    assert all(math.isclose(wait, 1) for wait in target.waits[10:])


async def test_T1_zero_stays_zero_and_the_longest_wait_is_a_century() -> None:
    """Nothing times infinity is not a number."""
    assert RetryPolicy(5, 0, backoff="exponential", factor=1e308).interval(5) == 0
    policy = RetryPolicy(5, CENTURY, backoff="exponential", factor=1e308)
    assert policy.interval(5) == CENTURY
    target = Timed()
    services, _ = registry(target=target.call)
    async with running(services) as retry:
        await retry.invoke_async("target", policy=policy)
        await asyncio.sleep(1)
        found = await retry.search(state="waiting")
        assert found[0].next_attempt_at is not None
        await asyncio.sleep(CENTURY - 2)
        assert len(target.at) == 1
        await asyncio.sleep(2)
        assert len(target.at) == 2


@pytest.mark.parametrize("step", [-86_400, -3_600, 3_600, 10 * 365 * 86_400, -3e9])
async def test_T3_a_step_of_the_wall_clock_moves_nothing(step: float) -> None:
    """After a step backwards jobs slept past their time; local-time arithmetic crashed."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    target = Timed()
    services, mailbox = registry(target=target.call)
    policy = RetryPolicy(repeats=3, seconds=10, deadline=100, timeout=5)
    async with running(services) as retry:
        await retry.invoke_async("target", policy=policy, callback="told")
        await asyncio.sleep(5)
        loop.clock.step(step)
        (found,) = await retry.search()
        assert found.next_attempt_at is not None
        assert abs(found.next_attempt_at.timestamp() - loop.clock.utc() - 5) < 1e-3
        await asyncio.sleep(10)
        loop.clock.step(-2 * step)
        await asyncio.sleep(100)
        assert target.at == [0, 10, 20, 30]
        found = await retry.get(found.call_cid)
    assert mailbox.only.retry_seconds == 10
    assert mailbox.only.req_ts_utc is not None
    assert mailbox.only.req_ts_utc.utcoffset() == timedelta()
    for attempt in found.history:
        assert attempt.ended_at is not None
        assert attempt.ended_at >= attempt.started_at


@pytest.mark.parametrize(
    "bad",
    [math.nan, math.inf, -math.inf, -1, 1e20, 10**400, "5", True, Decimal("NaN"), Decimal("sNaN"),
     Decimal(-1), timedelta(-1), timedelta.max, object(), b"1", [1], 1j],
    ids=lambda value: f"{value!r}".split(" at 0x")[0],
)  # fmt: skip
@pytest.mark.parametrize("field", ["seconds", "minutes", "max_seconds", "timeout", "deadline"])
async def test_T5_delays_that_make_no_sense_are_refused(field: str, bad: Any) -> None:
    """A NaN in the timer heap of the loop delayed hundreds of other timers."""
    options: dict[str, Any] = {"repeats": 1, "seconds": 1, field: bad}
    with pytest.raises(InvalidPolicy):
        RetryPolicy(**options)
    if field in ("seconds", "minutes"):
        target = Failing()
        services, _ = registry(target=target.call)
        async with running(services) as retry:
            for mode in (retry.invoke, retry.invoke_async):
                with pytest.raises(InvalidPolicy):
                    await mode("target", repeats=1, **{field: bad})
        assert target.calls == 0


def test_T5_none_stands_for_no_interval() -> None:
    """None where a number is needed is refused, too."""
    with pytest.raises(InvalidPolicy):
        RetryPolicy(repeats=1, seconds=None)
    with pytest.raises(InvalidPolicy):
        RetryPolicy(repeats=1, minutes=CENTURY / 60 + 1)
    assert RetryPolicy(repeats=1, seconds=Fraction(1, 2)).seconds == 0.5  # type: ignore[arg-type]


NONSENSE: list[Any] = [
    math.nan, math.inf, -math.inf, -1, "5", True, None, Decimal("NaN"), Decimal("sNaN"),
    timedelta(-1), object(), [1], b"1", 1j, -(10**400),
]  # fmt: skip


@pytest.mark.parametrize("mode", ["inline", "background"])
async def test_T5_hints_that_make_no_sense_are_ignored(mode: str) -> None:
    """A hint of 1e309 seconds from a message killed the poller that slept for it."""

    class Hinted(Exception):
        def __init__(self, retry_after: Any) -> None:
            self.retry_after = retry_after

    errors: list[BaseException] = [
        kind(value) for value in NONSENSE for kind in (RetryAfter, Hinted)
    ]
    huge: list[Any] = [1e20, 10**400, timedelta.max, Decimal("1e300")]
    target = Timed(*errors, *map(RetryAfter, huge))
    other = Timed()
    services, mailbox = registry(target=target.call, other=other.call)
    repeats = len(errors) + len(huge)
    async with running(services) as retry:
        await retry.invoke_async("other", repeats=300, seconds=1)
        if mode == "inline":
            with pytest.raises(RetriesExhausted):
                await retry.invoke("target", repeats=repeats, seconds=7)
        else:
            cid = await retry.invoke_async("target", repeats=repeats, seconds=7, callback="told")
            await retry.wait(cid)
        await asyncio.sleep(300)
    assert target.waits[: len(errors)] == [7] * len(errors)
    for value, wait in zip(huge, target.waits[len(errors) :], strict=True):
        assert wait == (7 if value == 10**400 else 3_600)
    assert other.waits == [1] * 300
    assert len(mailbox.told) == (mode == "background")


def test_T7_at_the_cap_the_jitter_is_still_there() -> None:
    """Clipped after it was added, it vanished at the cap: clients fell into step."""
    policy = RetryPolicy(10**6, 1, backoff="exponential", max_seconds=60, jitter="full")
    source = random.Random(7)
    waits = [float(decide(policy, 500, 0, ValueError(), source)) for _ in range(10_000)]
    assert max(Counter(int(wait) for wait in waits).values()) < 2 * 10_000 / 60
    assert 0 <= min(waits) < 1
    assert 59 < max(waits) <= 60


@pytest.mark.slow
async def test_T7_a_crowd_that_failed_together_spreads() -> None:
    """Everybody retried in the same second, again and again."""
    target = Timed()
    services, _ = registry(target=target.call)
    policy = RetryPolicy(10**6, 1, backoff="exponential", max_seconds=60, jitter="full")
    async with running(services, random=random.Random(1), grace=0) as retry:
        for _ in range(600):
            await retry.invoke_async("target", policy=policy)
        await asyncio.sleep(600)
    late = [at for at in target.at if at >= 180]
    mean = len(late) / 420
    assert mean > 10
    assert max(Counter(map(int, late)).values()) <= 3 * mean


def test_T7_forked_processes_draw_differently() -> None:
    """A private random source repeats itself after a fork."""
    result = run_script(
        """
        import json, os
        from invoke_retry import CorrelationId, InvokeRetry, RetryPolicy, ServiceRegistry
        from invoke_retry.correlation import SYSTEM_RANDOM
        from invoke_retry.policy import decide

        retry = InvokeRetry(ServiceRegistry())
        policy = RetryPolicy(10, 1000, jitter="full")
        CorrelationId.new()
        decide(policy, 1, 0, ValueError(), SYSTEM_RANDOM)

        def draw():
            waits = [decide(policy, 1, 0, ValueError(), SYSTEM_RANDOM) for _ in range(5)]
            return [*waits, CorrelationId.new(), retry.new_cid()]

        out, into = os.pipe()
        if os.fork() == 0:
            os.write(into, json.dumps(draw()).encode())
            os._exit(0)
        os.wait()
        print(json.dumps([draw(), json.loads(os.read(out, 10_000))]))
        """
    )
    here, there = json.loads(result.stdout)
    assert len(here) == 7
    assert not set(here) & set(there)


@pytest.mark.parametrize("mode", ["inline", "fallback", "background"])
@pytest.mark.parametrize("repeats", range(6))
async def test_T8_all_attempts_are_one_and_the_repeats(mode: str, repeats: int) -> None:
    """ "max 1" ran twice; the inline attempt was counted or not as it came."""
    target = Timed()
    services, mailbox = registry(target=target.call)
    async with running(services) as retry:
        if mode == "background":
            await retry.invoke_async("target", repeats=repeats, seconds=5, callback="told")
        elif mode == "fallback" and repeats:
            await retry.invoke(
                "target", repeats=repeats, seconds=5, async_fallback=True, callback="told"
            )
        else:
            with pytest.raises(RetriesExhausted) as caught:
                await retry.invoke(
                    "target", repeats=repeats, seconds=5, async_fallback=mode == "fallback"
                )
            assert caught.value.attempts == 1 + repeats
        await asyncio.sleep(100)
        found = await retry.search()
    assert target.at == [5 * n for n in range(1 + repeats)]
    assert len(mailbox.told) == len(found)
    if found:
        assert (mailbox.only.attempts, mailbox.only.retry_repeats) == (1 + repeats, repeats)
        assert [attempt.number for attempt in found[0].history] == list(range(1, 2 + repeats))


async def test_T8_run_now_uses_up_the_attempt_that_it_hastens() -> None:
    """An attempt made by hand came in addition, and the old timer fired as well."""
    target = Timed()
    services, mailbox = registry(target=target.call)
    async with running(services) as retry:
        cid = await retry.invoke_async("target", repeats=2, seconds=10, callback="told")
        await asyncio.sleep(4)
        assert [await retry.run_now(cid) for _ in range(3)] == [True, False, False] or (
            len(target.at) < 3
        )
        await asyncio.sleep(100)
        assert not await retry.run_now(cid)
        assert target.at == [0, 4, 14]
    assert mailbox.only.attempts == 3


@pytest.mark.parametrize("callback", [None, "told"])
async def test_T8_a_deadline_in_the_queue_ends_what_has_not_begun(callback: str | None) -> None:
    """Waiting for a slot was not counted: the deadline passed and the job ran all the same."""

    async def slow() -> None:
        await asyncio.sleep(100)

    services, mailbox = registry(slow=slow)
    async with running(services, max_running=1) as retry:
        await retry.invoke_async("slow", repeats=0, seconds=0)
        policy = RetryPolicy(repeats=3, seconds=1, deadline=50)
        cid = await retry.invoke_async("slow", policy=policy, callback=callback)
        outcome = await retry.wait(cid)
        assert now() == 50
        assert (outcome.reason, outcome.attempts, outcome.req_ts_utc) == ("deadline", 0, None)
    assert len(mailbox.told) == (callback is not None)
