"""Exceptions: whatever is raised ends as text in one outcome, and harms nobody else."""

# ruff: noqa: N802 (the names of the tests begin with those of the cases)
from __future__ import annotations

import asyncio
import gc
import json
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, cast

import pytest
from fault_help import Failing, environment, registry, run_script, running, script

from invoke_retry import (
    CallbackPayload,
    InvokeRetry,
    RetriesExhausted,
    RetryAfter,
    RetryPolicy,
    ServiceRegistry,
)
from invoke_retry.failure import error_info, failure_of, render_traceback
from invoke_retry.policy import decide
from invoke_retry.run import Run

virtual = pytest.mark.virtual_time


class NeedsKeyword(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__()
        self.code = code


class HoldsLock(Exception):
    def __init__(self) -> None:
        super().__init__("locked")
        self.lock = threading.Lock()


class BadText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class BadTextBase(Exception):
    def __str__(self) -> str:
        raise asyncio.CancelledError


class BadHint(Exception):
    @property
    def retry_after(self) -> float:
        raise RuntimeError("no hint")


class NoNames(Exception):
    __module__ = None  # type: ignore[assignment]


def _local() -> Exception:
    class Local(Exception):
        pass

    return Local("local")


ODD: list[Callable[[], Exception]] = [
    lambda: NeedsKeyword(code=3),
    HoldsLock,
    BadText,
    BadTextBase,
    BadHint,
    NoNames,
    _local,
    lambda: Exception(object(), lambda: None),
    lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    lambda: ExceptionGroup("many", [ValueError(str(i)) for i in range(1_000)]),
]


@virtual
@pytest.mark.parametrize("make", ODD, ids=range(len(ODD)))
async def test_E2_an_error_of_any_kind_becomes_text(make: Callable[[], Exception]) -> None:
    """An exception that could not be rebuilt killed the worker that read it, again and again."""
    target = Failing(make)
    services, mailbox = registry(target=target.call)
    async with running(services) as retry:
        with pytest.raises(RetriesExhausted) as caught:
            await retry.invoke("target", repeats=1, seconds=1)
        assert isinstance(caught.value.__cause__, type(make())) or make is _local
        await retry.invoke_async("target", repeats=1, seconds=1, callback="told")
        await retry.invoke("target", repeats=1, seconds=1, async_fallback=True, callback="told")
    assert target.calls == 6
    for outcome in mailbox.told:
        assert (outcome.ok, outcome.reason, outcome.attempts) == (False, "exhausted", 2)
        assert outcome.error is not None
        assert len(outcome.model_dump_json()) < 10_000
        json.loads(outcome.model_dump_json())
        found = await retry.get(outcome.call_cid)
        assert len(found.model_dump_json()) < 50_000
    assert len(mailbox.told) == 2


class Bare(BaseException):
    """Derives from neither Exception nor anything else that is known."""


@virtual
@pytest.mark.parametrize(
    "make",
    [SystemExit, Bare, GeneratorExit, lambda: BaseExceptionGroup("", [Bare()])],
    ids=range(4),
)
async def test_E4_a_base_exception_ends_its_own_invocation_only(
    make: Callable[[], BaseException],
) -> None:
    """`sys.exit()` in user code left its task running for ever, or ended the whole loop."""
    target = Failing(make)

    async def healthy(n: int) -> int:
        await asyncio.sleep(n)
        return n

    services, mailbox = registry(target=target.call, healthy=healthy)
    async with running(services) as retry:
        for n in range(18):
            await retry.invoke_async("healthy", n, repeats=0, seconds=0, callback="told")
            if n % 9 == 4:
                await retry.invoke_async("target", repeats=5, seconds=1, callback="told")
    assert target.calls == 2
    assert sum(outcome.ok for outcome in mailbox.told) == 18
    failed = [outcome for outcome in mailbox.told if not outcome.ok]
    assert [(outcome.reason, outcome.attempts) for outcome in failed] == [("permanent", 1)] * 2


@virtual
async def test_E4_inline_a_base_exception_passes_through_untouched() -> None:
    """It belongs to the caller, who is the one that may exit."""
    for make in (SystemExit, Bare, GeneratorExit):
        target = Failing(make)
        retry = InvokeRetry(registry(target=target.call)[0])
        with pytest.raises(make):
            await retry.invoke("target", repeats=3, seconds=1)
        assert target.calls == 1


CTRL_C = """
import asyncio, sys
from invoke_retry import InvokeRetry, ServiceRegistry

services = ServiceRegistry()

@services.service()
async def target():
    if sys.argv[1] == "raises":
        raise KeyboardInterrupt
    print("ready", flush=True)
    await asyncio.sleep(60)

async def main():
    async with InvokeRetry(services) as retry:
        for _ in range(3):
            await retry.invoke_async("target", repeats=3, seconds=1)
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent there")
@pytest.mark.parametrize("how", ["raises", "waits"])
def test_E4_ctrl_c_stops_the_process(how: str) -> None:
    """A retry that swallowed everything could not be interrupted from the keyboard."""
    began = time.monotonic()
    with subprocess.Popen(
        script(CTRL_C, how),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    ) as process:  # fmt: skip
        if how != "raises":
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode not in (0, None)
    assert "KeyboardInterrupt" in errors
    assert time.monotonic() - began < 15


def _self_caused() -> Exception:
    error = ValueError("self")
    error.__cause__ = error
    return error


def _two_node_cycle() -> Exception:
    a, b = ValueError("a"), KeyError("b")
    a.__cause__, b.__cause__ = b, a
    return a


def _context_cycle() -> Exception:
    a, b, c = ValueError("a"), KeyError("b"), KeyError("c")
    a.__context__, b.__context__, c.__context__ = b, c, b
    return a


def _long_chain() -> Exception:
    error: Exception = ValueError("root")
    for i in range(10_000):
        outer = ValueError(str(i))
        outer.__cause__ = error
        error = outer
    return error


def _deep_group() -> Exception:
    error: Any = ValueError("leaf")
    for _ in range(5_000):
        error = ExceptionGroup("level", [error])
    return cast("Exception", error)


def _wide_group() -> Exception:
    shared: Any = ValueError("leaf")
    for _ in range(5):
        shared = ExceptionGroup("level", [shared] * 8)
    return cast("Exception", shared)


CHAINS: list[Callable[[], Exception]] = [
    _self_caused, _two_node_cycle, _context_cycle, _long_chain, _deep_group, _wide_group,
]  # fmt: skip


@virtual
@pytest.mark.parametrize("make", CHAINS, ids=lambda make: make.__name__)
async def test_E6_chains_without_end_are_decided_at_once(make: Callable[[], Exception]) -> None:
    """`raise e from e` made a walker spin for ever, before any stop rule was asked."""
    error = make()
    target = Failing(lambda: error)
    began = time.perf_counter()
    text = render_traceback(error)
    info = error_info(error)
    took = time.perf_counter() - began
    assert took < 0.5
    assert len(text) < 10_000
    assert len(info.message) < 3_000
    services, mailbox = registry(target=target.call)
    async with running(services) as retry:
        with pytest.raises(RetriesExhausted):
            await retry.invoke("target", repeats=3, seconds=0)
        await retry.invoke_async("target", repeats=3, seconds=0, callback="told")
    assert mailbox.only.attempts == 4
    assert time.perf_counter() - began < 5
    error.__cause__ = error.__context__ = None


def test_failures_alike_share_their_texts() -> None:
    """A million that wait for one dependency that is down must not keep a million tracebacks."""
    first, second, other = (failure_of(_raised(text)) for text in ("down", "down", "up"))
    assert first is second
    assert first != other
    assert first[:2] == ("ConnectionError", "down")
    assert "in _raised" in (first.traceback or "")


def _raised(text: str) -> Exception:
    try:
        raise ConnectionError(text)
    except ConnectionError as error:
        return error


@pytest.mark.slow
@virtual
@pytest.mark.parametrize("mode", ["inline", "limited", "fallback", "background"])
async def test_E8_a_failed_attempt_keeps_nothing_alive(mode: str) -> None:
    """Kept exceptions held frames, frames held locals, and memory climbed with each retry."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    seen: list[int] = []

    class Watched:
        def __init__(self) -> None:
            self.data = bytes(1_000_000)

    async def target() -> None:
        gc.collect()
        seen.append(len(alive))
        ballast = Watched()
        alive.add(ballast)
        await asyncio.sleep(1)
        raise ValueError(f"holding {len(ballast.data)}")

    services, mailbox = registry(target=target)
    async with running(services) as retry:
        policy = RetryPolicy(repeats=20, seconds=1, timeout=5 if mode == "limited" else None)
        if mode in ("inline", "limited"):
            with pytest.raises(RetriesExhausted):
                await retry.invoke("target", policy=policy)
        elif mode == "fallback":
            await retry.invoke("target", policy=policy, async_fallback=True, callback="told")
        else:
            await retry.invoke_async("target", policy=policy, callback="told")
        await asyncio.sleep(1_000)
        gc.collect()
        assert len(alive) == 0
    assert len(seen) == 21
    assert max(seen) == 0
    assert len(mailbox.told) == (0 if mode in ("inline", "limited") else 1)


@virtual
@pytest.mark.parametrize("how", ["succeeds", "fails", "times out"])
async def test_E8_what_is_over_is_not_left_to_the_garbage_collector(how: str) -> None:
    """A cycle in each attempt kept its payload for a while, and the collector busy."""

    async def target() -> None:
        await asyncio.sleep(10 if how == "times out" else 0)
        if how == "fails":
            raise ValueError("no")

    def runs() -> int:
        return sum(type(known) is Run for known in gc.get_objects())

    services, mailbox = registry(target=target)
    async with running(services) as retry:
        gc.collect()
        before = runs()
        gc.disable()
        try:
            await retry.invoke_async("target", policy=RetryPolicy(2, 1, timeout=5), callback="told")
            await asyncio.sleep(1_000)
            assert runs() == before
        finally:
            gc.enable()
    assert mailbox.only.ok == (how == "succeeds")


class Callback:
    """A callback that misbehaves in one way for the first so many times."""

    def __init__(self, how: str, times: float) -> None:
        self.how = how
        self.times = times
        self.calls = 0
        self.told: list[CallbackPayload] = []

    async def take(self, outcome: CallbackPayload) -> None:
        self.calls += 1
        if self.calls <= self.times:
            await self._misbehave()
        self.told.append(outcome)

    async def _misbehave(self) -> None:
        if self.how == "raise":
            raise ValueError("no")
        if self.how == "cancelled":
            raise asyncio.CancelledError
        if self.how == "exit":
            sys.exit(3)
        if self.how == "bare":
            raise Bare
        if self.how == "hang":
            await asyncio.sleep(1e6)
        if self.how == "group":
            raise BaseExceptionGroup("", [SystemExit()])


MISBEHAVIOUR = pytest.mark.parametrize(
    "how", ["raise", "cancelled", "exit", "bare", "hang", "group"]
)


@virtual
@MISBEHAVIOUR
@pytest.mark.parametrize("times", [2, float("inf")], ids=["recovers", "for-ever"])
async def test_E9_a_misbehaving_callback_is_retried_then_dead(how: str, times: float) -> None:
    """An error in a hook ended the worker, left the job in the queue, or ran the hook twice."""
    callback = Callback(how, times)
    calls = 0

    async def target(n: int) -> int:
        nonlocal calls
        calls += 1
        return n

    services, mailbox = registry(target=target)
    services.register("odd", callback.take)
    policy = RetryPolicy(repeats=3, seconds=1, timeout=60)
    async with running(services, callback_policy=policy, max_running=10) as retry:
        cid = await retry.invoke_async("target", 1, repeats=3, seconds=1, callback="odd")
        for n in range(50):
            await retry.invoke_async("target", n, repeats=0, seconds=0, callback="told")
        await asyncio.sleep(0.5)
        assert len(mailbox.told) == 50
        await asyncio.sleep(1_000)
        found = await retry.get(cid)
        assert found.ok is True
        if times == 2:
            assert (found.state, callback.calls, len(callback.told)) == ("succeeded", 3, 1)
        else:
            assert (found.state, callback.calls, found.deliveries) == ("dead", 4, 4)
            assert found.delivery_error is not None
            assert [dead.call_cid for dead in await retry.search(state="dead")] == [cid]
            callback.times = 0
            assert await retry.redeliver(cid)
            assert not await retry.redeliver(cid)
            await asyncio.sleep(1)
            assert (await retry.get(cid)).state == "succeeded"
            assert len(callback.told) == 1
    assert calls == 51


@virtual
async def test_E9_redelivery_brings_the_very_same_content() -> None:
    """A repeated callback had other content than the first."""
    told: list[str] = []

    async def take(outcome: dict[str, Any]) -> None:
        told.append(json.dumps(outcome))
        outcome.clear()
        raise ValueError("no")

    services, _ = registry(target=Failing().call)
    services.register("take", take)
    policy = RetryPolicy(repeats=1, seconds=1)
    async with running(services, callback_policy=policy) as retry:
        cid = await retry.invoke_async(
            "target", repeats=1, seconds=1, callback="take", context={"a": [1, {"b": 2.0}]}
        )
        await asyncio.sleep(10)
        assert await retry.redeliver(cid)
        await asyncio.sleep(10)
    assert len(told) == 4
    assert len(set(told)) == 1


@virtual
async def test_E9_redelivery_has_all_attempts_of_the_policy() -> None:
    """A redelivered dead letter gave up at its first failure: the deadline ran from the outcome."""
    callback = Callback("raise", 10_000)
    services, _ = registry(target=Failing().call)
    services.register("odd", callback.take)
    policy = RetryPolicy(repeats=3, seconds=1, deadline=60)
    async with running(services, callback_policy=policy) as retry:
        cid = await retry.invoke_async("target", repeats=0, seconds=0, callback="odd")
        await asyncio.sleep(1_000)
        assert callback.calls == 4
        assert await retry.redeliver(cid)
        await asyncio.sleep(1_000)
        assert callback.calls == 8
        assert (await retry.get(cid)).state == "dead"


@virtual
async def test_E9_the_deadline_of_the_callback_policy_cuts_a_hanging_callback() -> None:
    """A callback that hung held its worker for ever."""
    callback = Callback("hang", 10)
    services, _ = registry(target=Failing().call)
    services.register("odd", callback.take)
    policy = RetryPolicy(repeats=3, seconds=1, deadline=60)
    async with running(services, callback_policy=policy) as retry:
        cid = await retry.invoke_async("target", repeats=0, seconds=0, callback="odd")
        await asyncio.sleep(1_000)
        assert (await retry.get(cid)).state == "dead"
        assert retry.health().running == 0


@virtual
async def test_E9_a_slow_callback_does_not_hold_up_its_target() -> None:
    """The target's own limit was held as long as the callbacks of its outcomes ran."""
    started: list[float] = []

    async def target() -> None:
        started.append(asyncio.get_running_loop().time())
        await asyncio.sleep(1)

    callback = Callback("hang", 10_000)
    services = ServiceRegistry()
    services.register("target", target, max_running=1)
    services.register("odd", callback.take)
    policy = RetryPolicy(repeats=0, seconds=1, timeout=3_600)
    async with running(services, callback_policy=policy) as retry:
        for _ in range(5):
            await retry.invoke_async("target", repeats=0, seconds=0, callback="odd")
        await asyncio.sleep(5)
        assert started == [0, 1, 2, 3, 4]
        await asyncio.sleep(10_000)


@virtual
async def test_E9_a_success_stays_one_whatever_its_response_does() -> None:
    """A response that could not be stored made the target run again."""

    class Prickly:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

    class NeverEqual:
        def __eq__(self, other: object) -> bool:
            raise RuntimeError("no ==")

        __hash__ = None  # type: ignore[assignment]

    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    cycle: list[Any] = []
    cycle.append(cycle)
    responses: list[Any] = [
        object(), Prickly(), [Prickly()], {"x": Prickly()}, NeverEqual(), deep, cycle,
        float("nan"), "\ud800", {"\ud800": 1}, {1: 2}, (1, 2), b"\xff", "x" * 2_000_000, 10**5_000,
        lambda: None, {1, 2}, ValueError("x"), asyncio.sleep,
    ]  # fmt: skip
    calls = 0

    async def target(n: int):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        return responses[n]

    services, mailbox = registry(target=target)
    async with running(services) as retry:
        for n in range(len(responses)):
            await retry.invoke_async("target", n, repeats=3, seconds=1, callback="told")
            await asyncio.sleep(10)
            assert calls == n + 1, n
    for n, outcome in enumerate(mailbox.told):
        assert (outcome.ok, outcome.response, outcome.attempts) == (True, None, 1), n
        assert outcome.response_omitted
        outcome.model_dump_json()
    while deep:  # freed one by one: a destructor would go as deep
        deep = deep.pop()


@virtual
async def test_E10_three_kinds_of_timeout_are_told_apart() -> None:
    """One class for ours, the user's and the caller's: never retried, or retried without end."""
    calls: list[float] = []

    async def slow() -> None:
        calls.append(asyncio.get_running_loop().time())
        await asyncio.sleep(100)

    async def own() -> None:
        calls.append(asyncio.get_running_loop().time())
        raise TimeoutError("the database")

    services, mailbox = registry(slow=slow, own=own)
    policy = RetryPolicy(repeats=2, seconds=10, timeout=3)
    async with running(services) as retry:
        await retry.invoke_async("slow", policy=policy, callback="told")
        await asyncio.sleep(100)
        assert calls == [0, 13, 26]
        calls.clear()
        await retry.invoke_async("own", policy=policy, callback="told")
        await asyncio.sleep(100)
        assert calls == [100, 110, 120]
        texts: list[str] = []
        for name in ("slow", "own"):
            with pytest.raises(RetriesExhausted) as caught:
                await retry.invoke(name, policy=policy)
            assert isinstance(caught.value.__cause__, TimeoutError)
            texts.append(str(caught.value.__cause__))
        assert texts == ["attempt 3 took longer than its timeout of 3 s", "the database"]
        calls.clear()
        with pytest.raises(TimeoutError) as outer:
            async with asyncio.timeout(1):
                await retry.invoke("slow", policy=policy)
        assert not str(outer.value)
        await asyncio.sleep(100)
        assert len(calls) == 1
    for outcome, text in zip(mailbox.told, texts, strict=True):
        assert outcome.error is not None
        assert (outcome.reason, outcome.attempts) == ("exhausted", 3)
        assert (outcome.error.type, outcome.error.message) == ("TimeoutError", text)


@virtual
@pytest.mark.parametrize("how", ["raise", "convert", "swallow"])
async def test_E10_a_deadline_that_cuts_an_attempt_is_the_reason(how: str) -> None:
    """Cut by the deadline, and told as permanent, exhausted, or retried once more."""
    calls = 0

    async def target() -> str:
        nonlocal calls
        calls += 1
        try:
            await asyncio.sleep(1e6)
        except asyncio.CancelledError:
            if how == "raise":
                raise
            if how == "convert":
                raise KeyError("cut") from None
        return "late"

    for deadline in (0.1, 0.3, 0.7, 1 / 3, 1e-3, 12.34):
        for start in (0.0, 1 / 3, 1e5 / 7, 0.1):
            services, mailbox = registry()
            services.register("target", target, retry_on=ValueError)
            policy = RetryPolicy(repeats=3, seconds=0, deadline=deadline)
            await asyncio.sleep(start)
            calls = 0
            async with running(services, grace=None) as retry:
                await retry.invoke_async("target", policy=policy, callback="told")
            assert calls == 1
            if how == "swallow":
                assert (mailbox.only.ok, mailbox.only.response) == (True, "late")
                assert await retry.invoke("target", policy=policy) == "late"
                continue
            assert mailbox.only.reason == "deadline"
            with pytest.raises(RetriesExhausted) as caught:
                await retry.invoke("target", policy=policy)
            assert (caught.value.reason, caught.value.attempts) == ("deadline", 1)
            assert calls == 2
            async with running(services) as retry:
                with pytest.raises(RetriesExhausted) as caught:
                    await retry.invoke("target", policy=policy, async_fallback=True)
            assert (caught.value.reason, caught.value.attempts) == ("deadline", 1)
            assert calls == 3


def test_E10_retry_after_is_always_retryable() -> None:
    """A hint from a class that was to be given up on, or inside a group."""
    import random

    policy = RetryPolicy(repeats=3, seconds=1)
    group = ExceptionGroup("", [RetryAfter(5), ExceptionGroup("", [RetryAfter(9)])])
    assert decide(policy, 1, 0, group, random.Random(1)) == 9


def test_E4_an_exit_in_a_background_target_leaves_the_exit_code_alone() -> None:
    """`sys.exit(3)` in one job ended the whole process."""
    result = run_script(
        """
        import asyncio, sys
        from invoke_retry import InvokeRetry, ServiceRegistry

        services = ServiceRegistry()

        @services.service()
        async def leaves():
            sys.exit(3)

        async def main():
            async with InvokeRetry(services) as retry:
                cid = await retry.invoke_async("leaves", repeats=3, seconds=1)
                print((await retry.wait(cid)).reason)

        asyncio.run(main())
        """
    )
    assert (result.returncode, result.stdout) == (0, "permanent\n"), result.stderr


@virtual
@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError, SystemExit, Bare])
async def test_E9_hooks_that_raise_harm_nothing(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """A metrics hook that failed took the retries with it."""

    def hook(event: object) -> None:
        raise error("hook")

    services, mailbox = registry(target=Failing().call)
    callback = Callback("raise", 10_000)
    services.register("odd", callback.take)
    policy = RetryPolicy(repeats=1, seconds=1)
    async with running(services, hooks=[hook], callback_policy=policy) as retry:
        await retry.invoke_async("target", repeats=2, seconds=1, callback="told")
        await retry.invoke("target", repeats=1, seconds=1, async_fallback=True, callback="told")
        await retry.invoke_async("target", repeats=0, seconds=1, callback="odd")
        with pytest.raises(RetriesExhausted):
            await retry.invoke("target", repeats=1, seconds=1)
        await asyncio.sleep(100)
        counts = await retry.counts()
        assert (counts["failed"], counts["dead"]) == (2, 1)
    assert len(mailbox.told) == 2
    assert sum("hook" in record.getMessage() for record in caplog.records) == 1
