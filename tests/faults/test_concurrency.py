"""Concurrency: nothing is lost in a crowd, leaks from one to another, or starves."""

# ruff: noqa: N802 (the names of the tests begin with those of the cases)
from __future__ import annotations

import asyncio
import gc
import statistics
import time
import tracemalloc
import weakref
from contextvars import ContextVar
from typing import Any

import pytest
from fault_help import Failing, registry, running

from invoke_retry import (
    BackendFull,
    CidConflict,
    CorrelationId,
    InvocationNotFound,
    RetriesExhausted,
    RetryPolicy,
    ServiceRegistry,
    current_call,
    watchdog,
)
from invoke_retry.backends import MemoryBackend

virtual = pytest.mark.virtual_time


def now() -> float:
    return asyncio.get_running_loop().time()


@virtual
async def test_B1_work_that_only_its_own_frame_knows_is_not_collected() -> None:
    """The loop keeps weak references only: a task disappeared in mid-flight."""
    futures: weakref.WeakSet[asyncio.Future[None]] = weakref.WeakSet()

    async def target() -> None:
        future = asyncio.get_running_loop().create_future()
        futures.add(future)
        await future

    services, mailbox = registry(target=target)
    async with running(services, max_running=500) as retry:
        for _ in range(500):
            await retry.invoke_async("target", repeats=0, seconds=0, callback="told")
        for _ in range(10):
            await asyncio.sleep(1)
            gc.collect()
        assert len(futures) == 500
        for future in list(futures):
            future.set_result(None)
            del future
        await asyncio.sleep(1)
    assert sum(outcome.ok for outcome in mailbox.told) == 500


user: ContextVar[str] = ContextVar("user", default="nobody")


@virtual
async def test_B3_context_variables_of_callers_do_not_leak() -> None:
    """The request that first spawned the worker lent it its identity for ever."""
    seen: list[str] = []

    async def target(n: int) -> None:
        seen.append(user.get())
        user.set(f"attempt of {n}")
        raise ValueError("no")

    async def told(outcome: dict[str, Any]) -> None:
        seen.append(user.get())
        user.set("callback")

    services = ServiceRegistry()
    services.register("target", target)
    services.register("told", told)
    user.set("startup")
    async with running(services) as retry:

        async def request(n: int) -> None:
            user.set(f"request {n}")
            await retry.invoke_async("target", n, repeats=2, seconds=1, callback="told")
            await retry.invoke(
                "target", n, repeats=2, seconds=1, async_fallback=True, callback="told"
            )

        await asyncio.gather(*(asyncio.create_task(request(n)) for n in range(3)))
        await asyncio.sleep(10)
    assert sorted(seen) == sorted(
        [*["startup"] * (3 * 3 + 3 * 2 + 6), *map("request {}".format, range(3))]
    )
    user.set("nobody")


@virtual
async def test_B3_each_attempt_has_its_own_copy_of_the_payload() -> None:
    """What one attempt changed in its payload the next one was given."""
    given: list[Any] = []

    async def target(payload: dict[str, Any]) -> None:
        given.append({**payload, "list": list(payload["list"])})
        payload["list"].append("changed")
        payload.clear()
        raise ValueError("no")

    services, mailbox = registry(target=target)
    async with running(services) as retry:
        payload = {"list": [1]}
        await retry.invoke_async("target", payload, repeats=2, seconds=1, callback="told")
        payload["list"].append(2)
        await asyncio.sleep(10)
        payload = {"list": [1]}
        await retry.invoke("target", payload, repeats=2, seconds=1, async_fallback=True)
    assert given == [{"list": [1]}] * 6
    assert mailbox.only.attempts == 3


@virtual
async def test_B6_the_number_of_waiting_invocations_can_be_limited() -> None:
    """Far-off tasks were taken without limit until the process ran out of memory."""
    services, mailbox = registry(target=Failing().call)
    async with running(services, backend=MemoryBackend(max_waiting=10), grace=0) as retry:
        for _ in range(10):
            await retry.invoke_async("target", repeats=1, seconds=3_600, callback="told")
        for _ in range(3):
            with pytest.raises(BackendFull):
                await retry.invoke_async("target", repeats=1, seconds=3_600)
            with pytest.raises(BackendFull) as caught:
                await retry.invoke("target", repeats=1, seconds=3_600, async_fallback=True)
            assert isinstance(caught.value.__cause__, ValueError)
            assert caught.value.cid is not None
            with pytest.raises(InvocationNotFound):
                await retry.get(caught.value.cid)
        assert sum((await retry.counts()).values()) == 10
        await asyncio.sleep(3_601)
        await retry.invoke_async("target", repeats=0, seconds=0, callback="told")
    assert len(mailbox.told) == 11


@virtual
async def test_B7_a_service_that_is_down_does_not_starve_a_healthy_one() -> None:
    """Retries of one service took every worker; fresh calls to another waited for minutes."""

    async def down() -> None:
        await asyncio.sleep(100)

    delays: list[float] = []

    async def healthy(asked: float) -> None:
        delays.append(now() - asked)
        await asyncio.sleep(0.01)

    services, _ = registry(down=down, healthy=healthy)
    slow = RetryPolicy(repeats=1_000, seconds=0, timeout=10)
    async with running(services, grace=0) as retry:
        for _ in range(5_000):
            await retry.invoke_async("down", policy=slow)
        await asyncio.sleep(25)
        for _ in range(100):
            await retry.invoke_async("healthy", now(), repeats=0, seconds=0)
            await asyncio.sleep(0.05)
        await asyncio.sleep(10)
        assert len(delays) == 100
        assert statistics.quantiles(delays, n=100)[98] < 1
        assert retry.health().running <= 100


@virtual
async def test_B7_a_limit_of_the_service_itself_holds() -> None:
    """More ran at once than a service allows; or fewer, because a slot had leaked."""
    at_once = peak = 0

    async def target(n: int) -> None:
        nonlocal at_once, peak
        at_once += 1
        peak = max(peak, at_once)
        try:
            await asyncio.sleep(1)
        finally:
            at_once -= 1
        if n % 3 == 0:
            raise ValueError("no")

    services, mailbox = registry()
    services.register("target", target, max_running=7)
    async with running(services, max_running=20) as retry:
        cids = [
            await retry.invoke_async("target", n, repeats=2, seconds=1, callback="told")
            for n in range(100)
        ]
        await asyncio.sleep(1.5)
        for cid in cids[::5]:
            await retry.cancel(cid)
        await asyncio.sleep(100)
        assert retry.health().running == 0
    assert peak == 7
    assert len(mailbox.told) == 100


@virtual
async def test_B8_nested_retries_multiply_visibly_and_obey_the_outer_deadline() -> None:
    """Four calls were wanted and 45 were sent; the innermost went on after the outer had ended."""
    leaves: list[float] = []
    chains: set[tuple[str, ...]] = set()

    async def leaf() -> None:
        leaves.append(now())
        raise ValueError("no")

    async def middle() -> None:
        call = current_call()
        chains.add((call.service, str(call.attempt)))
        await call.retry.invoke("leaf", repeats=3, seconds=1)

    async def outer() -> None:
        await current_call().retry.invoke("middle", repeats=3, seconds=1)

    services, mailbox = registry(leaf=leaf, middle=middle, outer=outer)
    async with running(services) as retry:
        with pytest.raises(RetriesExhausted) as caught:
            await retry.invoke("outer", repeats=3, seconds=1)
        assert "outer" in str(caught.value)
        assert len(leaves) == 4**3
        assert chains == {("middle", str(n)) for n in range(1, 5)}
        for mode in ("inline", "background"):
            leaves.clear()
            began = now()
            policy = RetryPolicy(repeats=3, seconds=1, deadline=10.5)
            if mode == "inline":
                with pytest.raises(RetriesExhausted) as caught:
                    await retry.invoke("outer", policy=policy)
                assert caught.value.reason == "deadline"
            else:
                await retry.invoke_async("outer", policy=policy, callback="told")
            await asyncio.sleep(100)
            assert leaves == [began + n for n in range(11)]
    assert mailbox.only.reason == "deadline"


async def test_B5_a_loop_that_was_blocked_past_many_deadlines_goes_on() -> None:
    """After the loop had been blocked the late timers failed, and nothing moved any more."""
    target = Failing()
    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
    services, mailbox = registry(target=target.call)
    policy = RetryPolicy(repeats=5, seconds=0.7, deadline=1)
    async with running(services, max_running=5_000) as retry:
        cids = [
            await retry.invoke_async("target", policy=policy, callback="told") for _ in range(600)
        ]
        for _ in range(10_000):
            await asyncio.sleep(0)
            if (await retry.counts())["waiting"] == target.calls == 600:
                break
        if (await retry.counts())["waiting"] != 600:
            pytest.skip("this machine is too busy to have 600 of them wait at once")
        time.sleep(1.1)  # noqa: ASYNC251
        for cid in cids:
            assert (await retry.wait(cid, timeout=20)).reason == "deadline"
        await asyncio.sleep(0.1)
        gc.collect()
        assert not faults, faults[0]["exception"]
        assert retry.health().running == 0
    assert len(mailbox.told) == 600


async def test_B5_who_blocks_the_loop_is_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything stood still, and nothing said why."""
    monkeypatch.setattr(watchdog, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(watchdog, "BLOCKED_SECONDS", 0.2)

    async def blocks() -> None:
        time.sleep(0.5)  # noqa: ASYNC251

    async def quick() -> None:
        return None

    services, _ = registry(blocks=blocks, quick=quick)
    async with running(services) as retry:
        await retry.wait(await retry.invoke_async("quick", repeats=0, seconds=0))
        await asyncio.sleep(0.1)
        await retry.wait(await retry.invoke_async("blocks", repeats=0, seconds=0))
        async with asyncio.timeout(10):
            while not (lines := [m for m in caplog.messages if "was blocked for" in m]):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    (line,) = lines
    assert "while this ran: blocks;" in line


@virtual
async def test_I2_one_cid_is_one_invocation_however_many_ask() -> None:
    """A request that was sent twice ran twice."""
    target = Failing()
    services, mailbox = registry(target=target.call)
    cid = CorrelationId.from_key("order-4711")
    async with running(services) as retry:
        got = await asyncio.gather(
            *(
                retry.invoke_async("target", repeats=1, seconds=n, callback="told", cid=cid)
                for n in range(50)
            )
        )
        assert set(got) == {cid}
        with pytest.raises(CidConflict):
            await retry.invoke_async("target", repeats=1, seconds=1, cid=cid)
        calls = target.calls
        assert (
            await retry.invoke(
                "target", repeats=1, seconds=1, callback="told", cid=cid, async_fallback=True
            )
            == cid
        )
        assert target.calls == calls
        await asyncio.sleep(100)
        assert sum((await retry.counts()).values()) == 1
    assert target.calls == 2
    assert mailbox.only.call_cid == cid


@virtual
async def test_I2_the_order_of_keys_does_not_make_another_request() -> None:
    """The same request, sent again by a caller that builds its dict in another order."""

    async def target(payload: dict[str, int]) -> None: ...

    services, mailbox = registry(target=target)
    cid = CorrelationId.from_key("order-4711")
    async with running(services) as retry:
        for payload in ({"a": 1, "b": 2}, {"b": 2, "a": 1}):
            await retry.invoke_async(
                "target", payload, repeats=0, seconds=0, cid=cid, callback="told", context=payload
            )
    assert mailbox.only.ok


@virtual
async def test_I2_two_fallback_calls_with_one_cid() -> None:
    """Both make their first attempt; what follows is one invocation."""

    calls = 0

    async def target() -> None:
        nonlocal calls
        calls += 1
        await asyncio.sleep(1)
        raise ValueError("no")

    services, mailbox = registry(target=target)
    cid = CorrelationId.from_key("order-4711")
    async with running(services) as retry:
        got = await asyncio.gather(
            *(
                retry.invoke(
                    "target", repeats=2, seconds=1, callback="told", cid=cid, async_fallback=True
                )
                for _ in range(2)
            )
        )
        assert got == [cid, cid]
    assert calls == 4
    assert mailbox.only.attempts == 3


@virtual
async def test_I3_everybody_decides_at_once() -> None:
    """cancel, run_now, redeliver and resubmit in a race: one outcome, one callback, no leak."""

    async def target(n: int) -> int:
        await asyncio.sleep(n % 3)
        if n % 2:
            raise ValueError("no")
        return n

    services, mailbox = registry(target=target)
    async with running(services, max_running=5) as retry:
        outcomes: dict[str, str] = {}
        cids = [
            await retry.invoke_async("target", n, repeats=3, seconds=n % 2, callback="told")
            for n in range(60)
        ]

        async def meddle(cid: str, n: int) -> None:
            await asyncio.sleep(n % 7)
            await asyncio.gather(
                retry.run_now(cid), retry.cancel(cid) if n % 4 == 0 else retry.run_now(cid),
                retry.redeliver(cid), retry.run_now(cid), retry.wait(cid),
            )  # fmt: skip
            outcomes[cid] = (await retry.wait(cid)).model_dump_json()

        await asyncio.gather(*(meddle(cid, n) for n, cid in enumerate(cids)))
        await asyncio.sleep(100)
        for cid in cids:
            assert (await retry.wait(cid)).model_dump_json() == outcomes[cid]
            assert not await retry.cancel(cid)
            assert not await retry.run_now(cid)
            assert not await retry.redeliver(cid)
        assert retry.health().running == 0
    told = {outcome.call_cid: outcome.model_dump_json() for outcome in mailbox.told}
    assert len(mailbox.told) == 60
    assert told == outcomes


@virtual
async def test_I6_attempts_of_one_invocation_never_overlap() -> None:
    """A timed-out attempt that cleans up slowly met the next one."""
    inside: set[str] = set()
    starts: list[float] = []

    async def target() -> None:
        cid = current_call().cid
        assert cid not in inside
        inside.add(cid)
        starts.append(now())
        try:
            await asyncio.sleep(1_000)
        finally:
            await asyncio.sleep(5)
            inside.discard(cid)

    services, mailbox = registry(target=target)
    policy = RetryPolicy(repeats=2, seconds=1, timeout=2)
    async with running(services) as retry:
        cid = await retry.invoke_async("target", policy=policy, callback="told")
        await asyncio.sleep(4)
        assert not await retry.run_now(cid)
        await asyncio.sleep(100)
    assert starts == [0, 8, 16]
    assert mailbox.only.attempts == 3


@virtual
async def test_I6_a_service_that_waits_for_another_does_not_block_it() -> None:
    """Parents held all the slots and waited for children that never got one."""

    async def child(n: int) -> int:
        await asyncio.sleep(1)
        return n

    async def inner(n: int) -> int:
        retry = current_call().retry
        cid = await retry.invoke_async("child", n, repeats=0, seconds=0)
        return int((await retry.wait(cid)).response)

    async def parent(n: int) -> int:
        return int(await current_call().retry.invoke("inner", n, repeats=0, seconds=0))

    services, mailbox = registry(child=child, inner=inner, parent=parent)
    async with running(services, max_running=2) as retry:
        for n in range(20):
            await retry.invoke_async("parent", n, repeats=0, seconds=0, callback="told")
        await asyncio.sleep(100)
    assert sorted(outcome.response for outcome in mailbox.told) == list(range(20))


@pytest.mark.slow
@virtual
async def test_I8_finished_invocations_and_abandoned_waits_leave_nothing() -> None:
    """Memory grew with every job that was ever done."""

    async def target(n: int) -> None:
        if n % 10 == 0 and current_call().attempt == 1:
            raise ValueError("no")

    services, _ = registry(target=target)

    async def none(outcome: dict[str, Any]) -> None: ...

    services.register("none", none)
    policy = RetryPolicy(repeats=1, seconds=10_000, deadline=1e6)
    async with running(services, backend=MemoryBackend(keep=50), grace=None) as retry:

        async def batch(size: int) -> int:
            for n in range(size):
                cid = await retry.invoke_async("target", n, policy=policy, callback="none")
                wait = asyncio.create_task(retry.wait(cid))
                await asyncio.sleep(0)
                wait.cancel()
                if n % 20 == 0:
                    await retry.run_now(cid)
            await asyncio.sleep(20_000)
            gc.collect()
            return tracemalloc.get_traced_memory()[0]

        tracemalloc.start()
        try:
            await batch(1_000)
            before = await batch(1_000)
            after = await batch(4_000)
        finally:
            tracemalloc.stop()
        assert after - before < 1_000_000  # of some 4 MB
        assert len(await retry.search(limit=10_000)) <= 50
        counts = await retry.counts()
        assert counts["succeeded"] == 6_000


@pytest.mark.slow
@virtual
async def test_I8_a_year_of_deadlines_leaves_no_timers() -> None:
    """Entries of finished jobs stayed in the heap until their far-off time."""

    async def target() -> None: ...

    services, _ = registry(target=target)
    policy = RetryPolicy(repeats=1, seconds=1, deadline=3e7)
    async with running(services, backend=MemoryBackend(keep=0)) as retry:
        tracemalloc.start()
        try:
            sizes: list[int] = []
            for _ in range(4):
                for _ in range(3_000):
                    await retry.invoke_async("target", policy=policy)
                    await asyncio.sleep(0)
                await asyncio.sleep(1)
                gc.collect()
                sizes.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
        assert sizes[-1] - sizes[0] < 600_000
