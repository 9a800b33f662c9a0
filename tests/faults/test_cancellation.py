"""Cancellation: the caller's own reaches the caller, everybody else's is a failure."""

# ruff: noqa: N802 (the names of the tests begin with those of the cases)
from __future__ import annotations

import asyncio
import json
from typing import Any

import anyio
import pytest
from fault_help import Failing, registry, run_script, running

from invoke_retry import InvokeRetry, RetriesExhausted, RetryPolicy, ServiceRegistry, current_call
from invoke_retry.backends import MemoryBackend
from invoke_retry.record import Record

pytestmark = pytest.mark.virtual_time

LIMITED = [
    RetryPolicy(repeats=5, seconds=1),
    RetryPolicy(repeats=5, seconds=1, timeout=50),
    RetryPolicy(repeats=5, seconds=1, deadline=5_000),
]
limited = pytest.mark.parametrize("policy", LIMITED, ids=["plain", "timeout", "deadline"])
modes = pytest.mark.parametrize("async_fallback", [False, True], ids=["inline", "fallback"])


def now() -> float:
    return asyncio.get_running_loop().time()


class Sleeper:
    """A target that sleeps for a minute, and says differently that it was cancelled."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.calls = 0

    async def call(self) -> str:
        self.calls += 1
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if self.how == "convert":
                raise ConnectionError("cut") from None
            if self.how == "swallow":
                return "late"
            raise
        return "slept"


@modes
@limited
@pytest.mark.parametrize("how", ["raise", "convert"])
@pytest.mark.parametrize("scope", ["asyncio", "anyio", "task", "group"])
async def test_A1_the_callers_timeout_ends_the_call(
    scope: str, how: str, policy: RetryPolicy, async_fallback: bool
) -> None:
    """ "Retry all but X" retried CancelledError too: timeouts of callers were ignored."""
    target = Sleeper(how)
    services, _ = registry()
    services.register("target", target.call, give_up_on=KeyError)
    async with running(services) as retry:

        async def call() -> None:
            await retry.invoke("target", policy=policy, async_fallback=async_fallback)
            pytest.fail("the cancellation was swallowed")

        if scope == "asyncio":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await call()
        elif scope == "anyio":
            with pytest.raises(TimeoutError), anyio.fail_after(1):
                await call()
        elif scope == "task":
            task = asyncio.create_task(call())
            await asyncio.sleep(1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert task.cancelled()
        else:
            with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012
                async with asyncio.TaskGroup() as group:
                    group.create_task(call())
                    await asyncio.sleep(1)
                    raise KeyError("sibling")
            assert len(caught.value.exceptions) == 1
        assert now() == 1
        await asyncio.sleep(600)
        assert target.calls == 1
        assert sum((await retry.counts()).values()) == 0


@limited
@pytest.mark.parametrize("how", ["raise", "convert"])
async def test_A1_the_callers_timeout_ends_a_repeat(how: str, policy: RetryPolicy) -> None:
    """The first attempt let the cancellation pass, the loop round the others did not."""
    sleeper, calls = Sleeper(how), 0

    async def target() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ConnectionError("at first")
        await sleeper.call()

    retry = InvokeRetry(registry(target=target)[0])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3):
            await retry.invoke("target", policy=policy)
    assert now() == 3
    assert calls == 2


@limited
async def test_A1_a_value_returned_after_a_swallowed_cancel_is_returned(
    policy: RetryPolicy,
) -> None:
    """A finished response was thrown away because the target had swallowed a cancel."""
    target = Sleeper("swallow")
    services, _ = registry(target=target.call)
    retry = InvokeRetry(services)
    task = asyncio.create_task(retry.invoke("target", policy=policy))
    await asyncio.sleep(1)
    task.cancel()
    assert await task == "late"
    assert target.calls == 1


async def test_A1_an_anyio_scope_ends_a_loop_without_interval() -> None:
    """A scope cancels at checkpoints only: a loop that has none can never be left."""
    calls = 0

    async def target() -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            scope.cancel()
        raise ValueError("no")

    retry = InvokeRetry(registry(target=target)[0])
    with anyio.CancelScope() as scope:
        await retry.invoke("target", repeats=1_000, seconds=0)
    assert scope.cancelled_caught
    assert calls == 5


@modes
async def test_A1_a_scope_cancelled_during_the_first_attempt_stops_what_follows(
    async_fallback: bool,
) -> None:
    """Handed over to the background, although its caller had been cancelled meanwhile."""

    async def target() -> None:
        scope.cancel()
        raise ValueError("no")

    services, mailbox = registry(target=target)
    async with running(services) as retry:
        with anyio.CancelScope() as scope:
            await retry.invoke("target", repeats=2, seconds=1, async_fallback=async_fallback)
        assert scope.cancelled_caught
        assert sum((await retry.counts()).values()) == 0
    assert mailbox.told == []


@modes
@limited
async def test_A1_a_leftover_cancellation_count_is_no_cancellation(
    policy: RetryPolicy, async_fallback: bool
) -> None:
    """A library swallowed a cancel long ago and left the count raised: nothing was retried."""
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(0)
    assert task.cancelling() == 1
    target = Failing()
    services, mailbox = registry(target=target.call)
    async with running(services) as retry:
        if async_fallback:
            cid = await retry.invoke("target", policy=policy, async_fallback=True, callback="told")
            assert (await retry.wait(cid)).attempts == 6
        else:
            with pytest.raises(RetriesExhausted) as caught:
                await retry.invoke("target", policy=policy)
            assert caught.value.attempts == 6
    assert target.calls == 6
    assert task.cancelling() == 1
    assert len(mailbox.told) == (1 if async_fallback else 0)
    task.uncancel()


@limited
@pytest.mark.parametrize("library", ["anyio", "asyncio", "task"])
async def test_A1_a_timeout_inside_the_target_is_only_a_failure(
    library: str, policy: RetryPolicy
) -> None:
    """A timeout of the target's own was taken for the caller's cancellation."""
    calls = 0

    async def target() -> None:
        nonlocal calls
        calls += 1
        if library == "anyio":
            with anyio.fail_after(1):
                await asyncio.sleep(60)
        elif library == "asyncio":
            async with asyncio.timeout(1):
                await asyncio.sleep(60)
        else:
            inner = asyncio.create_task(asyncio.sleep(60))
            inner.cancel()
            await asyncio.wait({inner})
            raise TimeoutError

    retry = InvokeRetry(registry(target=target)[0])
    with pytest.raises(RetriesExhausted):
        await retry.invoke("target", policy=policy)
    assert calls == 6


async def test_A1_timeout_of_the_attempt_and_cancel_of_the_caller_at_once() -> None:
    """Both at one moment: the attempt's timeout hid the caller's cancellation."""
    target = Sleeper("raise")
    retry = InvokeRetry(registry(target=target.call)[0])
    for async_first in (True, False):
        task = asyncio.create_task(
            retry.invoke("target", policy=RetryPolicy(repeats=3, seconds=1, timeout=2))
        )
        if async_first:
            await asyncio.sleep(0)  # the attempt's timer is set before ours
        asyncio.get_running_loop().call_later(2, task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task
    assert target.calls == 2


def _by_raising() -> Any:
    raise asyncio.CancelledError


async def _by_inner_task() -> None:
    inner = asyncio.create_task(asyncio.sleep(60))
    await asyncio.sleep(0)
    inner.cancel()
    await inner


async def _by_own_task() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


@pytest.mark.parametrize("how", ["raise", "inner", "own"])
async def test_A3_a_cancellation_that_nobody_asked_for_is_a_failure(how: str) -> None:
    """A library was cancelled inside the target: the job vanished, nobody was called back."""
    calls = 0

    async def target() -> None:
        nonlocal calls
        calls += 1
        if how == "raise":
            _by_raising()
        await (_by_inner_task() if how == "inner" else _by_own_task())

    services, mailbox = registry()
    services.register("target", target, retry_on=KeyError, give_up_on=Exception)
    async with running(services) as retry:
        await retry.invoke_async("target", repeats=2, seconds=1, callback="told")
    assert calls == 3
    assert (mailbox.only.ok, mailbox.only.reason, mailbox.only.attempts) == (False, "exhausted", 3)
    assert mailbox.only.error is not None
    assert mailbox.only.error.type.endswith("CancelledError")


async def test_A3_inline_a_cancelled_error_of_the_target_passes_through() -> None:
    """In the caller's task it cannot be told from the caller's own, so it is never retried."""
    target = Failing(asyncio.CancelledError)
    retry = InvokeRetry(registry(target=target.call)[0])
    with pytest.raises(asyncio.CancelledError):
        await retry.invoke("target", repeats=3, seconds=1)
    assert target.calls == 1


async def test_A3_a_swallowed_cancel_in_an_attempt_does_not_harm_the_next() -> None:
    """A raised cancellation count of one attempt was seen by the next one's worker."""
    calls = 0

    async def target() -> str:
        nonlocal calls
        calls += 1
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(0)
        if calls < 3:
            raise ValueError("not yet")
        return "done"

    services, mailbox = registry(target=target)
    async with running(services) as retry:
        await retry.invoke_async("target", repeats=5, seconds=1, callback="told")
    assert (mailbox.only.ok, mailbox.only.attempts) == (True, 3)


async def test_A4_leaving_does_not_wait_for_what_ignores_its_cancellation() -> None:
    """A target that ignored cancellation hung the shutdown; its job counted as running for ever."""
    release = asyncio.Event()

    async def target() -> None:
        while not release.is_set():
            try:
                await asyncio.sleep(3_600)
            except asyncio.CancelledError:
                continue

    services, mailbox = registry(target=target)
    async with running(services, grace=2) as retry:
        await retry.invoke_async("target", repeats=2, seconds=1, callback="told")
        await asyncio.sleep(1)
    assert now() <= 1 + 2 + 5
    assert (mailbox.only.ok, mailbox.only.reason) == (False, "abandoned")
    release.set()
    await asyncio.sleep(3_600)  # and the stubborn one's late end changes nothing
    assert (await retry.get(mailbox.only.call_cid)).reason == "abandoned"
    assert retry.health().running == 0


def test_A4_a_stubborn_target_burns_no_core() -> None:
    """One stubborn task was cancelled ninety thousand times in a second."""
    result = run_script(
        """
        import asyncio, json, os, time
        from invoke_retry import InvokeRetry, ServiceRegistry

        services = ServiceRegistry()
        cancels = 0

        @services.service()
        async def stubborn():
            global cancels
            while True:
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    cancels += 1

        async def main():
            async with InvokeRetry(services, grace=2) as retry:
                await retry.invoke_async("stubborn", repeats=0, seconds=0)
                await asyncio.sleep(0.1)
                began, cpu = time.monotonic(), time.process_time()
            took, used = time.monotonic() - began, time.process_time() - cpu
            print(json.dumps([took, used, cancels]), flush=True)
            os._exit(0)  # asyncio.run itself waits for every task

        asyncio.run(main())
        """
    )
    took, used, cancels = json.loads(result.stdout)
    assert 1.9 < took < 3 + 1
    assert used < 0.2 * took
    assert cancels <= 5


async def test_A6_a_cancel_in_the_wait_is_honoured_at_once() -> None:
    """A shutdown could not reach a retry that slept before its next attempt."""
    target = Failing()
    retry = InvokeRetry(registry(target=target.call)[0])
    task = asyncio.create_task(retry.invoke("target", repeats=3, seconds=3_600))
    await asyncio.sleep(10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert now() == 10
    assert target.calls == 1


async def test_A6_leaving_does_not_wait_for_an_attempt_in_an_hour() -> None:
    """The shutdown of the background slept with it."""
    target = Failing()
    services, mailbox = registry(target=target.call)
    async with running(services, grace=2) as retry:
        await retry.invoke_async("target", repeats=3, seconds=3_600, callback="told")
        await asyncio.sleep(10)
    assert now() <= 10 + 2 + 5
    assert (mailbox.only.reason, mailbox.only.attempts) == ("abandoned", 1)


class SlowBackend(MemoryBackend):
    """A store whose accept takes a second, and is done whatever happens to the caller."""

    async def accept(self, record: Record) -> Record:
        await asyncio.sleep(1)
        return await super().accept(record)


@pytest.mark.parametrize("scope", ["asyncio", "anyio"])
async def test_A5_cancelled_during_accept_the_caller_leaves_at_once(scope: str) -> None:
    """A cancelled accept must be wholly stored or wholly absent, and the caller gone."""
    target = Failing()
    services, mailbox = registry(target=target.call)
    async with running(services, backend=SlowBackend()) as retry:
        call = retry.invoke("target", repeats=2, seconds=1, async_fallback=True, callback="told")
        if scope == "asyncio":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await call
        else:
            with pytest.raises(TimeoutError), anyio.fail_after(0.5):
                await call
        assert now() == 0.5
        await asyncio.sleep(60)
        assert target.calls in (1, 3)
        assert len(mailbox.told) == (1 if target.calls == 3 else 0)


async def test_I5_cancelling_a_wait_leaves_the_invocation_alone() -> None:
    """Whoever stops waiting must not stop the work, nor leave anything behind."""

    async def target() -> str:
        await asyncio.sleep(10)
        return "done"

    services, mailbox = registry(target=target)
    async with running(services) as retry:
        cid = await retry.invoke_async("target", repeats=0, seconds=0, callback="told")
        waits = [asyncio.create_task(retry.wait(cid)) for _ in range(3)]
        await asyncio.sleep(1)
        waits[0].cancel()
        waits[1].cancel()
        with pytest.raises(TimeoutError, match="goes on"):
            await retry.wait(cid, timeout=2)
        assert (await waits[2]).response == "done"
        assert waits[0].cancelled()
        assert waits[1].cancelled()
    assert mailbox.only.ok


async def test_I5_a_background_target_that_waits_can_be_cancelled() -> None:
    """A slot that is lent during `wait` must be counted once, whichever way the wait ends."""

    async def slow() -> None:
        await asyncio.sleep(100)

    async def waiter() -> None:
        retry = current_call().retry
        await retry.wait(await retry.invoke_async("slow", repeats=0, seconds=0))

    services, mailbox = registry(slow=slow, waiter=waiter)
    async with running(services, max_running=1) as retry:
        cid = await retry.invoke_async("waiter", repeats=0, seconds=0, callback="told")
        await asyncio.sleep(1)
        assert await retry.cancel(cid)
        await asyncio.sleep(1)
        assert retry.health().running == 1  # `slow`, whose slot the callback waits for
    assert mailbox.only.reason == "cancelled"


@pytest.mark.parametrize("later", [False, True], ids=["outlives", "ends-first"])
async def test_I5_a_child_task_may_wait_for_longer_than_its_attempt(later: bool) -> None:
    """A slot was given back twice: by the attempt that ended, and by its child that waits."""
    children: set[asyncio.Task[Any]] = set()

    async def slow() -> None:
        await asyncio.sleep(1 if later else 20)

    async def parent() -> None:
        retry = current_call().retry
        cid = await retry.invoke_async("slow", repeats=0, seconds=0)
        for _ in range(3):
            children.add(asyncio.create_task(retry.wait(cid)))
        await asyncio.sleep(2)
        if current_call().attempt == 1:
            raise ValueError("once more")

    services, mailbox = registry(slow=slow, parent=parent)
    async with running(services) as retry:
        await retry.invoke_async("parent", repeats=1, seconds=1, callback="told")
        for _ in range(60):
            assert 0 <= retry.health().running <= 4
            await asyncio.sleep(0.5)
        assert retry.health().ok
        assert retry.health().running == 0
    assert (mailbox.only.ok, mailbox.only.attempts) == (True, 2)
    await asyncio.wait(children)


async def test_I5_cancel_reaches_a_running_attempt_and_drops_its_result() -> None:
    """A cancelled invocation whose target returned all the same was recorded as a success."""

    async def target() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(5)
        return "late"

    services, mailbox = registry(target=target)
    async with running(services) as retry:
        cid = await retry.invoke_async("target", repeats=3, seconds=1, callback="told")
        await asyncio.sleep(1)
        assert await retry.cancel(cid)
        assert (await retry.wait(cid)).reason == "cancelled"
        assert now() == 1
        assert not await retry.cancel(cid)
        await asyncio.sleep(100)
        found = await retry.get(cid)
        assert (found.state, found.response, found.attempts) == ("cancelled", None, 1)
    assert mailbox.only.reason == "cancelled"


async def test_I5_a_target_may_cancel_its_own_invocation() -> None:
    """Cancelled from within: one outcome, and nothing after it."""
    calls = 0

    async def target() -> None:
        nonlocal calls
        calls += 1
        call = current_call()
        assert await call.retry.cancel(call.cid)
        await asyncio.sleep(60)

    services, mailbox = registry(target=target)
    async with running(services) as retry:
        await retry.invoke_async("target", repeats=3, seconds=1, callback="told")
        await asyncio.sleep(600)
    assert calls == 1
    assert mailbox.only.reason == "cancelled"


@pytest.mark.parametrize("grace", [30, None])
async def test_I5_an_anyio_scope_round_the_coordinator_ends_its_leaving(
    grace: float | None,
) -> None:
    """A deadline round the whole service did not reach it while it waited for its background."""

    async def target() -> None:
        await asyncio.sleep(10_000)

    services, mailbox = registry(target=target)
    with anyio.move_on_after(3) as scope:
        async with InvokeRetry(services, grace=grace) as retry:
            await retry.invoke_async("target", repeats=0, seconds=0, callback="told")
    assert now() <= 3 + 5
    assert scope.cancelled_caught
    assert mailbox.only.reason == "abandoned"


@pytest.mark.parametrize("grace", [30, None])
async def test_I5_an_asyncio_timeout_round_the_coordinator_ends_its_leaving(
    grace: float | None,
) -> None:
    """The same with the standard library's timeout."""

    async def target() -> None:
        await asyncio.sleep(10_000)

    services, mailbox = registry(target=target)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3), InvokeRetry(services, grace=grace) as retry:
            await retry.invoke_async("target", repeats=0, seconds=0, callback="told")
    assert now() <= 3 + 5
    assert mailbox.only.reason == "abandoned"


def test_I5_without_a_task_of_its_own_nothing_is_guessed() -> None:
    """An inline call in a fresh loop of another thread of control must not mix tasks up."""
    services = ServiceRegistry()
    target = Failing()
    services.register("target", target.call)
    retry = InvokeRetry(services)
    for _ in range(2):
        with pytest.raises(RetriesExhausted):
            asyncio.run(retry.invoke("target", repeats=2, seconds=0))
    assert target.calls == 6
