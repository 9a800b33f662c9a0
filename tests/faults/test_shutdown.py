"""Leaving: bounded, truthful, and nothing accepted goes untold."""

# ruff: noqa: N802 (the names of the tests begin with those of the cases)
from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
from fault_help import Failing, environment, registry, running, script

from invoke_retry import (
    BackendError,
    CallbackPayload,
    InvokeRetry,
    NotRunning,
    RetryPolicy,
    ServiceRegistry,
    current_call,
)

virtual = pytest.mark.virtual_time
graces = pytest.mark.parametrize("grace", [0, 2, 30])


def now() -> float:
    return asyncio.get_running_loop().time()


@virtual
async def test_S1_running_work_gets_its_grace_and_no_more() -> None:
    """Work in flight was cut off at once, or the exit was stuck until a long timeout."""

    async def target(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    services, mailbox = registry(target=target)
    async with running(services, grace=10) as retry:
        for seconds in (1, 5, 9, 11, 1_000):
            await retry.invoke_async("target", seconds, repeats=3, seconds=1, callback="told")
    assert now() <= 10 + 5
    reasons = {outcome.response: outcome.reason for outcome in mailbox.told if outcome.ok}
    assert reasons == dict.fromkeys((1.0, 5.0, 9.0), "succeeded")
    rest = [(outcome.reason, outcome.attempts) for outcome in mailbox.told if not outcome.ok]
    assert rest == [("abandoned", 1)] * 2


@virtual
async def test_S1_no_attempt_starts_after_the_grace() -> None:
    """Queued jobs were still begun while the process was on its way out."""
    starts: list[float] = []

    async def target() -> None:
        starts.append(now())
        await asyncio.sleep(50)

    services, mailbox = registry(target=target)
    async with running(services, grace=2, max_running=5) as retry:
        for _ in range(50):
            await retry.invoke_async("target", repeats=0, seconds=1, callback="told")
    assert starts == [0] * 5
    assert len(mailbox.told) == 50
    assert sorted(outcome.attempts for outcome in mailbox.told) == [0] * 45 + [1] * 5
    assert all(
        (outcome.reason, outcome.req_ts_utc is None) == ("abandoned", outcome.attempts == 0)
        for outcome in mailbox.told
    )


@virtual
async def test_S1_leaving_with_nothing_to_do_takes_no_time() -> None:
    """The grace was slept through although nothing was left."""
    services, mailbox = registry(target=Failing().call)
    async with running(services, grace=None) as retry:
        await retry.invoke_async("target", repeats=3, seconds=10, callback="told")
    assert now() == 30
    assert mailbox.only.reason == "exhausted"


@virtual
async def test_S1_grace_none_waits_as_long_as_it_takes() -> None:
    """None was read as zero."""

    async def target() -> None:
        await asyncio.sleep(1e6)

    services, mailbox = registry(target=target)
    async with running(services, grace=None) as retry:
        await retry.invoke_async("target", repeats=0, seconds=0, callback="told")
    assert mailbox.only.ok
    assert now() == 1e6


@virtual
@pytest.mark.parametrize("how", ["error", "cancelled"])
async def test_S1_a_body_that_failed_is_left_at_once(how: str) -> None:
    """A crash on start-up hung for the whole grace."""

    async def target() -> None:
        await asyncio.sleep(1_000)

    services, mailbox = registry(target=target)

    async def body() -> None:
        async with running(services, grace=100) as retry:
            await retry.invoke_async("target", repeats=3, seconds=1, callback="told")
            await asyncio.sleep(1)
            if how == "error":
                raise KeyError("body")
            await asyncio.sleep(1e6)

    task = asyncio.create_task(body())
    await asyncio.sleep(2)
    task.cancel()
    with pytest.raises(KeyError if how == "error" else asyncio.CancelledError):
        await task
    assert now() <= 2 + 5
    assert mailbox.only.reason == "abandoned"


@virtual
async def test_S1_new_callers_are_refused_and_work_under_way_may_submit() -> None:
    """Accepted during the shutdown, and never seen again."""

    async def target(depth: int) -> int:
        await asyncio.sleep(3)
        if depth:
            await current_call().retry.invoke_async(
                "target", depth - 1, repeats=0, seconds=0, callback="told"
            )
        return depth

    services, mailbox = registry(target=target)
    retry = InvokeRetry(services, grace=100)

    async def late_callers() -> None:
        await asyncio.sleep(1)
        for call in (retry.invoke_async, retry.invoke):
            options: dict[str, Any] = {"async_fallback": True} if call == retry.invoke else {}
            with pytest.raises(NotRunning):
                await call("target", 5, repeats=0, seconds=0, **options)

    async with retry:
        await retry.invoke_async("target", 3, repeats=0, seconds=0, callback="told")
        late = asyncio.create_task(late_callers())
    await late
    assert sorted(outcome.response for outcome in mailbox.told) == [0, 1, 2, 3]
    with pytest.raises(NotRunning):
        await retry.invoke_async("target", 5, repeats=0, seconds=0)


@virtual
@pytest.mark.parametrize("takes", [1, 3, 50])
async def test_S1_a_fallback_call_that_fails_while_it_is_left(takes: float) -> None:
    """Accepted after the workers had gone: the caller got an id, and nothing ever came."""

    async def target() -> None:
        if current_call().attempt == 1:
            await asyncio.sleep(takes)
        raise ValueError("no")

    services, mailbox = registry(target=target)
    retry = InvokeRetry(services, grace=2)
    async with retry:
        await retry.invoke_async("target", repeats=0, seconds=0)
        call = asyncio.create_task(
            retry.invoke("target", repeats=2, seconds=0.1, async_fallback=True, callback="told")
        )
        await asyncio.sleep(0)
    await asyncio.wait({call})
    await asyncio.sleep(100)
    if error := call.exception():
        assert isinstance(error, NotRunning | BackendError)
        assert isinstance(error.__cause__ or error.__context__, ValueError)
        assert mailbox.told == []
    else:
        assert mailbox.only.call_cid == call.result()
    counts = await retry.counts()
    assert not any(counts[state] for state in ("waiting", "running", "notifying"))


@virtual
@pytest.mark.parametrize("ticks", range(10))
@pytest.mark.parametrize("is_own", [False, True])
async def test_S1_nothing_is_accepted_after_the_last_look(ticks: int, is_own: bool) -> None:
    """The background had looked for the last time, and what came then never got an outcome."""
    given: list[str] = []

    async def late() -> None:
        await asyncio.sleep(5)
        for _ in range(ticks):
            await asyncio.sleep(0)
        raise ValueError("no")

    async def told(outcome: CallbackPayload) -> None:
        if is_own and not given:
            try:
                await asyncio.sleep(1e4)
            finally:
                for _ in range(ticks):
                    await asyncio.sleep(0)
                given.append(await current_call().retry.invoke_async("late", repeats=1, seconds=10))

    services = ServiceRegistry()
    services.register("late", late)
    services.register("told", told)
    services.register("target", Failing(lambda: ValueError("no")).call)
    retry = InvokeRetry(services, grace=5 if is_own else 30)
    calls: list[asyncio.Task[Any]] = []
    async with retry:
        await retry.invoke_async(
            "target", repeats=1, seconds=5, callback="told" if is_own else None
        )
        if not is_own:
            calls.append(
                asyncio.create_task(
                    retry.invoke("late", repeats=1, seconds=10, async_fallback=True)
                )
            )
        await asyncio.sleep(0)
    assert retry.health().running == 0
    for call in calls:
        await asyncio.wait({call})
        if error := call.exception():
            assert isinstance(error, NotRunning | BackendError)
            assert isinstance(error.__cause__, ValueError)
        else:
            given.append(call.result())
    await asyncio.sleep(100)
    for cid in given:
        assert (await retry.get(cid)).reason is not None


@virtual
@graces
async def test_I7_each_undelivered_callback_gets_one_attempt(grace: float) -> None:
    """Callbacks that waited for their next attempt were given up without one."""
    calls: list[float] = []

    async def fragile(outcome: CallbackPayload) -> None:
        calls.append(now())
        if len(calls) == 1:
            raise ValueError("not yet")

    services, _ = registry(target=Failing().call)
    services.register("fragile", fragile)
    policy = RetryPolicy(repeats=5, seconds=300)
    async with running(services, grace=grace, callback_policy=policy) as retry:
        cid = await retry.invoke_async("target", repeats=0, seconds=0, callback="fragile")
        await asyncio.sleep(10)
        assert len(calls) == 1
    assert len(calls) == 2
    assert now() <= 10 + grace + 5
    assert (await retry.get(cid)).state == "failed"


@virtual
@graces
@pytest.mark.parametrize("how", ["hang", "fail", "slow"])
async def test_I7_callbacks_cannot_hold_up_the_exit(
    grace: float, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker sat in the failure hook until somebody killed it."""

    async def odd(outcome: CallbackPayload) -> None:
        if how == "fail":
            raise ValueError("no")
        while True:
            try:
                await asyncio.sleep(1e4)
            except asyncio.CancelledError:
                if how == "hang":
                    raise
                await asyncio.sleep(600)
                return

    services, _ = registry(target=Failing().call)
    services.register("odd", odd)
    policy = RetryPolicy(repeats=1_000, seconds=1)
    retry = InvokeRetry(services, grace=grace, callback_policy=policy)
    async with retry:
        cids = [
            await retry.invoke_async("target", repeats=0, seconds=0, callback="odd")
            for _ in range(30)
        ]
        await asyncio.sleep(1)
    assert now() <= 1 + grace + 5
    said = "\n".join(record.getMessage() for record in caplog.records if "left" in record.msg)
    settled = 0
    for cid in cids:
        settled += (await retry.get(cid)).state == "failed"
        assert (cid in said) == ((await retry.get(cid)).state != "failed")
    assert settled == 0
    assert retry.health().running == 0
    await asyncio.sleep(1e4)


@virtual
@graces
async def test_I7_a_queue_of_callbacks_that_fail_or_hang(grace: float) -> None:
    """One after the other had its five seconds; healthy ones behind them were never called."""
    told: list[str] = []

    async def odd(outcome: CallbackPayload) -> None:
        if outcome.context == "fails":
            raise ValueError("no")
        await asyncio.sleep(1e4)

    async def fine(outcome: CallbackPayload) -> None:
        told.append(outcome.call_cid)

    services = ServiceRegistry()
    services.register("target", Failing().call)
    services.register("odd", odd)
    services.register("fine", fine)
    policy = RetryPolicy(repeats=1_000, seconds=1)
    retry = InvokeRetry(services, grace=grace, callback_policy=policy, max_running=8)
    async with retry:
        well: set[str] = set()
        for n in range(40):
            context, callback = (("hangs", "odd"), ("fails", "odd"), (None, "fine"))[n % 3]
            cid = await retry.invoke_async(
                "target", repeats=0, seconds=0, callback=callback, context=context
            )
            if callback == "fine":
                well.add(cid)
        if grace:
            await asyncio.sleep(1)
    assert now() <= 1 + grace + 5
    assert well == set(told)
    counts = await retry.counts()
    assert counts["failed"] == len(well)
    assert counts["dead"] + counts["notifying"] == 40 - len(well)
    assert retry.health().running == 0


@virtual
@graces
async def test_I7_a_callback_that_takes_too_long_is_cut_off(grace: float) -> None:
    """Left for good, and named as undelivered, it was delivered after all some seconds later."""
    ends: list[tuple[str, float]] = []

    async def slow(outcome: dict[str, Any]) -> None:
        try:
            await asyncio.sleep(grace + 7)
        except asyncio.CancelledError:
            ends.append(("cut off", now()))
            raise
        ends.append(("delivered", now()))

    services, _ = registry(target=Failing().call)
    services.register("slow", slow)
    retry = InvokeRetry(services, grace=grace)
    async with retry:
        await retry.invoke_async("target", repeats=0, seconds=0, callback="slow")
    assert [how for how, _ in ends] == ["cut off"]
    assert ends[0][1] <= grace + 5
    await asyncio.sleep(100)
    assert len(ends) == 1


@virtual
async def test_I7_a_stubborn_cancelled_one_does_not_hold_up_the_exit() -> None:
    """Cancelled by its cid, it went on and on, and the exit waited for it."""

    async def target() -> None:
        for _ in range(5):
            try:
                await asyncio.sleep(1_000)
            except asyncio.CancelledError:
                continue

    services, mailbox = registry(target=target)
    retry = InvokeRetry(services, grace=2)
    async with retry:
        cid = await retry.invoke_async("target", repeats=0, seconds=0, callback="told")
        await asyncio.sleep(1)
        assert await retry.cancel(cid)
        await asyncio.sleep(1)
    assert now() <= 2 + 2 + 5
    assert mailbox.only.reason == "cancelled"
    assert retry.health().running == 0
    await asyncio.sleep(1e5)


@virtual
async def test_I7_callbacks_that_submit_for_ever_end() -> None:
    """A callback that starts the next job kept the shutdown busy without end."""

    async def again(outcome: dict[str, Any]) -> None:
        await asyncio.sleep(0.1)
        await current_call().retry.invoke_async("target", repeats=5, seconds=1, callback="again")

    services, _ = registry(target=Failing().call)
    services.register("again", again)
    retry = InvokeRetry(services, grace=2)
    async with retry:
        await retry.invoke_async("target", repeats=0, seconds=0, callback="again")
    assert now() <= 2 + 5
    await asyncio.sleep(1_000)
    counts = await retry.counts()
    assert counts["waiting"] == counts["running"] == 0, counts


@virtual
async def test_I7_nothing_is_accepted_by_what_is_being_thrown_out() -> None:
    """A callback that was cut off submitted once more, and got an id for nothing."""
    accepted: list[str] = []

    async def odd(outcome: dict[str, Any]) -> None:
        try:
            await asyncio.sleep(1_000)
        finally:
            accepted.append(await current_call().retry.invoke_async("target", repeats=0, seconds=0))

    services, _ = registry(target=Failing().call)
    services.register("odd", odd)
    retry = InvokeRetry(services, grace=1)
    async with retry:
        await retry.invoke_async("target", repeats=0, seconds=0, callback="odd")
        await asyncio.sleep(1)
    await asyncio.sleep(1)
    for cid in accepted:
        assert (await retry.get(cid)).reason is not None


@virtual
async def test_S2_what_is_left_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """The exit never ended because something was scheduled for later."""
    services, mailbox = registry(target=Failing().call)
    async with running(services, grace=2) as retry:
        cid = await retry.invoke_async("target", repeats=1, seconds=3_600, callback="told")
        await asyncio.sleep(1)
    assert now() <= 1 + 2 + 5
    assert (mailbox.only.call_cid, mailbox.only.reason) == (cid, "abandoned")
    assert mailbox.only.error is not None
    assert mailbox.only.error.type == "ValueError"
    assert not any("left with" in record.getMessage() for record in caplog.records)


@virtual
async def test_S2_waiting_for_an_outcome_ends_with_the_coordinator() -> None:
    """Whoever waited for an outcome waited for ever."""
    services, _ = registry(target=Failing().call)
    retry = InvokeRetry(services, grace=0)
    async with retry:
        cid = await retry.invoke_async("target", repeats=1, seconds=3_600)
        wait = asyncio.create_task(retry.wait(cid))
        await asyncio.sleep(1)
    assert (await wait).reason == "abandoned"
    assert (await retry.wait(cid)).reason == "abandoned"


@virtual
async def test_S2_enter_and_exit_in_different_tasks() -> None:
    """A cancel scope that was entered in one task cannot be left in another."""
    services, mailbox = registry(target=Failing().call)
    retry = InvokeRetry(services)
    await asyncio.create_task(retry.__aenter__())
    await asyncio.create_task(retry.invoke_async("target", repeats=2, seconds=1, callback="told"))
    await asyncio.create_task(retry.__aexit__(None, None, None))
    assert mailbox.only.attempts == 3


SIGNALLED = """
import asyncio, sys
from invoke_retry import InvokeRetry, ServiceRegistry

services = ServiceRegistry()

@services.service()
async def target():
    print("ready", flush=True)
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            print("cancelled", flush=True)
            if sys.argv[1] != "stubborn":
                raise

@services.service()
async def told(outcome: dict):
    print(outcome["reason"], flush=True)
    if sys.argv[1] == "hangs":
        await asyncio.sleep(60)

async def main():
    async with InvokeRetry(services, grace=60) as retry:
        await retry.invoke_async("target", repeats=3, seconds=1, callback="told")
        await asyncio.sleep(0.2)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent there")
@pytest.mark.parametrize("how", ["polite", "hangs"])
def test_S1_a_second_signal_ends_at_once(how: str) -> None:
    """The first signal was swallowed by a wait of minutes, and so were the others."""
    with subprocess.Popen(
        script(SIGNALLED, how),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)  # it leaves by now; if not, the first signal is a second earlier
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "cancelled\n"
        assert process.stdout.readline() == "abandoned\n"
        if how == "hangs":
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        took = time.monotonic() - began
    assert took < 4.5  # waiting for the callback takes 5
    assert process.returncode not in (0, None)
    assert "KeyboardInterrupt" in errors


@virtual
async def test_S1_two_cancellations_end_at_once() -> None:
    """The same without signals: the second one does not wait for callbacks."""

    async def hangs(outcome: dict[str, Any]) -> None:
        await asyncio.sleep(1e4)

    services = ServiceRegistry()
    services.register("target", Failing().call)
    services.register("hangs", hangs)

    async def body() -> None:
        async with InvokeRetry(services, grace=100) as retry:
            await retry.invoke_async("target", repeats=3, seconds=100, callback="hangs")
            await asyncio.sleep(1)

    task = asyncio.create_task(body())
    await asyncio.sleep(5)
    task.cancel()
    await asyncio.sleep(1)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert now() == 6
