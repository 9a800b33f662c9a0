"""The eleven rules of the three modes, in their order."""

import asyncio
import contextvars
import gc
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import timedelta
from itertools import pairwise
from typing import Any, Literal

import anyio
import pytest
from pydantic import BaseModel, Field

from invoke_retry import (
    BackendError,
    BackendFull,
    CallbackPayload,
    CidConflict,
    CorrelationId,
    InvalidPayload,
    InvalidPolicy,
    InvokeRetry,
    NotRunning,
    NotStorable,
    RetriesExhausted,
    RetryPolicy,
    ServiceNotFound,
    ServiceRegistry,
    current_call,
)
from invoke_retry.backends import MemoryBackend
from invoke_retry.record import Record

pytestmark = pytest.mark.virtual_time

Mode = Literal["inline", "fallback", "background"]
MODES: list[Mode] = ["inline", "fallback", "background"]


def now() -> float:
    return asyncio.get_running_loop().time()


def registry(**functions: Callable[..., Awaitable[Any]]) -> ServiceRegistry:
    services = ServiceRegistry()
    for name, function in functions.items():
        services.register(name, function)
    return services


async def run(retry: InvokeRetry, mode: Mode, *args: Any, **kw: Any) -> Any:
    """Invoke in one of the modes, and wait for the outcome."""
    if mode == "background":
        return await retry.wait(await retry.invoke_async(*args, **kw))
    result = await retry.invoke(*args, async_fallback=mode == "fallback", **kw)
    return await retry.wait(result) if isinstance(result, CorrelationId) else result


# 1. What fails.


@pytest.mark.parametrize("value", [None, 0, "", [], False])
@pytest.mark.parametrize("mode", MODES)
async def test_rule_1_falsy_responses_are_successes(mode: Mode, value: Any) -> None:
    async def target() -> Any:
        return value

    async with InvokeRetry(registry(target=target)) as retry:
        result = await run(retry, mode, "target", repeats=3, seconds=1)
    if mode == "background":
        assert (result.ok, result.response, result.attempts) == (True, value, 1)
    else:
        assert result == value
    assert now() == 0


class Odd(BaseException):
    pass


@pytest.mark.parametrize("error", [SystemExit(3), Odd("odd"), GeneratorExit()])
async def test_rule_1_other_base_exceptions(error: BaseException) -> None:
    calls = 0

    async def target() -> None:
        nonlocal calls
        calls += 1
        raise error

    async def fine(i: int) -> int:
        return i

    async with InvokeRetry(registry(target=target, fine=fine)) as retry:
        with pytest.raises(type(error)):
            await retry.invoke("target", repeats=3, seconds=1)
        assert calls == 1
        bad = await retry.invoke_async("target", repeats=3, seconds=1)
        good = [await retry.invoke_async("fine", i, repeats=3, seconds=1) for i in range(18)]
        outcome = await retry.wait(bad)
        assert [(await retry.wait(cid)).response for cid in good] == list(range(18))
        assert retry.health().ok
    assert (outcome.reason, outcome.attempts, calls) == ("permanent", 1, 2)


async def test_rule_1_a_cancellation_nobody_asked_for_is_retried_in_the_background() -> None:
    services = ServiceRegistry()
    calls = 0

    @services.service(retry_on=ConnectionError)
    async def target() -> str:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise asyncio.CancelledError
        return "done"

    async with InvokeRetry(services) as retry:
        outcome = await run(retry, "background", "target", repeats=3, seconds=1)
    assert (outcome.ok, outcome.attempts) == (True, 3)


# 2. Policy.


@pytest.mark.parametrize("mode", MODES)
async def test_rule_2_parts_from_everywhere(mode: Mode) -> None:
    services = ServiceRegistry()
    starts: list[float] = []

    @services.service(policy=RetryPolicy(repeats=1, seconds=5, backoff="exponential"))
    async def target() -> None:
        starts.append(now())
        raise ValueError

    async def waits(**kw: Any) -> list[float]:
        starts.clear()
        with suppress(RetriesExhausted):
            await run(retry, mode, "target", **kw)
        return [b - a for a, b in pairwise(starts)]

    async with InvokeRetry(services) as retry:
        assert await waits() == [5]
        assert await waits(repeats=2) == [5, 10]
        assert await waits(repeats=2, seconds=1) == [1, 2]
        assert await waits(repeats=2, minutes=1) == [60, 120]
        assert await waits(seconds=timedelta(seconds=3), minutes=2) == [123]
        assert await waits(policy=RetryPolicy(repeats=2, seconds=4)) == [4, 4]
        assert await waits(policy=RetryPolicy(repeats=2, seconds=4), repeats=1) == [4]
        assert await waits(policy=RetryPolicy(repeats=1, minutes=4), seconds=9) == [9]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "keywords",
    [{}, {"repeats": 1}, {"seconds": 1}, {"repeats": True, "seconds": 1},
     {"repeats": 1.0, "seconds": 1},
     {"repeats": -1, "seconds": 1}, {"repeats": 2**31, "seconds": 1},
     {"repeats": 1, "seconds": float("nan")}, {"repeats": 1, "seconds": -1},
     {"repeats": 1, "seconds": "1"}, {"repeats": 1, "seconds": True},
     {"repeats": 1, "minutes": 1e20}],
)  # fmt: skip
async def test_rule_2_refused_alike_in_all_modes(mode: Mode, keywords: dict[str, Any]) -> None:
    async def target() -> None:
        raise AssertionError

    async with InvokeRetry(registry(target=target)) as retry:
        with pytest.raises(ValueError, match="the policy"):
            await retry.invoke("target", repeats=1)  # something valid is not remembered for it
        with pytest.raises(InvalidPolicy):
            await run(retry, mode, "target", **keywords)
        with pytest.raises(InvalidPolicy):
            RetryPolicy(**keywords)
        assert sum((await retry.counts()).values()) == 0


async def test_rule_2_equal_is_not_the_same() -> None:
    async def target() -> int:
        return 1

    retry = InvokeRetry(registry(target=target))
    await retry.invoke("target", repeats=1, seconds=1)
    wrong: list[dict[str, Any]] = [
        {"repeats": True, "seconds": 1},
        {"repeats": 1, "seconds": True},
    ]
    for keywords in wrong:
        with pytest.raises(InvalidPolicy):
            await retry.invoke("target", **keywords)


# 3. Refused before anything is called or stored.


class Order(BaseModel):
    number: int
    lines: list[str] = Field(default_factory=list, alias="items")


@pytest.mark.parametrize("mode", MODES)
async def test_rule_3_unknown_names(mode: Mode) -> None:
    async def target() -> None:
        raise AssertionError

    async with InvokeRetry(registry(target=target)) as retry:
        with pytest.raises(ServiceNotFound, match="did you mean 'target'"):
            await run(retry, mode, "traget", repeats=1, seconds=1)
        if mode != "inline":
            with pytest.raises(ServiceNotFound, match="'targets'"):
                await run(retry, mode, "target", repeats=1, seconds=1, callback="targets")
        assert sum((await retry.counts()).values()) == 0


@pytest.mark.parametrize("mode", MODES)
async def test_rule_3_payloads_that_do_not_fit(mode: Mode) -> None:
    async def takes(order: Order) -> None:
        raise AssertionError

    async def takes_none() -> None:
        raise AssertionError

    async with InvokeRetry(registry(takes=takes, takes_none=takes_none)) as retry:
        for args in (("takes", {"number": "x"}), ("takes",), ("takes", None), ("takes_none", None)):
            with pytest.raises(InvalidPayload):
                await run(retry, mode, *args, repeats=1, seconds=1)
        assert sum((await retry.counts()).values()) == 0


@pytest.mark.parametrize("mode", MODES)
async def test_rule_3_the_target_gets_the_validated_value(mode: Mode) -> None:
    seen: list[Any] = []

    async def target(order: Order = Order(number=0)) -> None:
        seen.append(order)

    async with InvokeRetry(registry(target=target)) as retry:
        await run(retry, mode, "target", {"number": "7", "items": ["a"]}, repeats=1, seconds=1)
        await run(retry, mode, "target", repeats=1, seconds=1)
    assert seen == [Order(number=7, items=["a"]), Order(number=0)]


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": [1, float("nan")]}, r"\.a\[1\]"),
        ({"b": (1, 2)}, r"\.b"),
        ("\ud800", ""),
        (10**4300, ""),
    ],
    ids=["nan", "tuple", "surrogate", "int"],
)
async def test_rule_3_what_cannot_be_stored(mode: Mode, value: Any, path: str) -> None:
    async def target(payload: Any) -> None:
        raise AssertionError

    async with InvokeRetry(registry(target=target)) as retry:
        with pytest.raises(NotStorable, match=f"payload{path}"):
            await run(retry, mode, "target", value, repeats=1, seconds=1)
        with pytest.raises(NotStorable, match=f"context{path}"):
            await run(retry, mode, "target", 1, repeats=1, seconds=1, context=value)
        assert sum((await retry.counts()).values()) == 0


async def test_rule_3_a_plain_inline_call_has_no_callback_and_stores_nothing() -> None:
    async def target(payload: Any) -> Any:
        return payload

    retry = InvokeRetry(registry(target=target))
    value = (1, float("inf"))
    assert await retry.invoke("target", value, repeats=1, seconds=1) is value
    extras: list[dict[str, Any]] = [{"callback": "target"}, {"context": 1}]
    for keywords in extras:
        with pytest.raises(TypeError, match="async_fallback=True"):
            await retry.invoke("target", 1, repeats=1, seconds=1, **keywords)
    with pytest.raises(ValueError, match="correlation id"):
        await retry.invoke("target", 1, repeats=1, seconds=1, cid="nonsense")


# 4. Errors.


class Permanent(Exception):
    pass


@pytest.mark.parametrize("mode", MODES)
async def test_rule_4_permanent_errors_end_it_at_once(mode: Mode) -> None:
    services = ServiceRegistry()
    calls = 0

    @services.service(retry_on=(ValueError, Permanent), give_up_on=Permanent)
    async def target(kind: str) -> None:
        nonlocal calls
        calls += 1
        errors: dict[str, Exception] = {
            "given up": Permanent("no"),
            "not retried": KeyError("no"),
            "group": ExceptionGroup("g", [ValueError("a"), ExceptionGroup("h", [Permanent("b")])]),
        }
        raise errors[kind]

    async with InvokeRetry(services) as retry:
        for i, kind in enumerate(("given up", "not retried", "group"), 1):
            if mode == "background":
                outcome = await run(retry, mode, "target", kind, repeats=5, seconds=1)
                assert (outcome.ok, outcome.reason, outcome.attempts) == (False, "permanent", 1)
            else:
                with pytest.raises((Permanent, KeyError, ExceptionGroup)):
                    await run(retry, mode, "target", kind, repeats=5, seconds=1)
            assert calls == i
    assert now() == 0


async def test_rule_4_a_group_of_retryable_leaves_is_retried() -> None:
    services = ServiceRegistry()
    calls = 0

    @services.service(retry_on=ValueError)
    async def target() -> int:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise ExceptionGroup("g", [ValueError("a"), ExceptionGroup("h", [ValueError("b")])])
        return calls

    assert await InvokeRetry(services).invoke("target", repeats=2, seconds=1) == 3


# 5. Fallback.


async def test_rule_5_not_running_is_seen_before_the_first_attempt() -> None:
    async def target() -> None:
        raise AssertionError

    retry = InvokeRetry(registry(target=target))
    with pytest.raises(NotRunning):
        await retry.invoke("target", repeats=1, seconds=1, async_fallback=True)
    async with retry:
        pass
    with pytest.raises(NotRunning):
        await retry.invoke("target", repeats=1, seconds=1, async_fallback=True)
    with pytest.raises(NotRunning):
        await retry.invoke_async("target", repeats=1, seconds=1)


async def test_rule_5_the_payload_is_stored_as_it_was() -> None:
    seen: list[list[int]] = []

    async def target(numbers: list[int]) -> None:
        seen.append(list(numbers))
        numbers.append(0)
        raise ValueError

    async with InvokeRetry(registry(target=target)) as retry:
        await run(retry, "fallback", "target", [1], repeats=2, seconds=1)
    assert seen == [[1], [1], [1]]


class Broken(MemoryBackend):
    async def accept(self, record: Record) -> Record:
        raise BackendError("the disk is gone", record.cid)


class Vague(MemoryBackend):
    async def accept(self, record: Record) -> Record:
        raise BackendError("the disk is gone")


class Full(MemoryBackend):
    async def accept(self, record: Record) -> Record:
        raise BackendFull("no room")


class Faulty(MemoryBackend):
    async def accept(self, record: Record) -> Record:
        raise OSError("the disk is gone")


def ends_by_a_fault(expected: bool) -> AbstractContextManager[object]:
    """What a backend does not raise on purpose ends the coordinator, too."""
    return pytest.raises(ExceptionGroup) if expected else nullcontext()


@pytest.mark.parametrize("backend", [Broken, Vague, Full, Faulty])
async def test_rule_5_accept_fails(backend: type[MemoryBackend]) -> None:
    async def target() -> None:
        raise ConnectionError("first")

    cid = CorrelationId.from_key("k")
    retry = InvokeRetry(registry(target=target), backend=backend())
    with ends_by_a_fault(backend is Faulty):
        async with retry:
            with pytest.raises(BackendError) as caught:
                await retry.invoke("target", repeats=1, seconds=1, async_fallback=True, cid=cid)
            assert caught.value.cid == cid
            assert isinstance(caught.value, BackendFull) is (backend is Full)
            assert isinstance(caught.value.__cause__, ConnectionError)


@pytest.mark.parametrize("backend", [Broken, Vague, Full, Faulty])
async def test_accept_fails_wholly_in_the_background(backend: type[MemoryBackend]) -> None:
    async def target() -> None:
        raise AssertionError

    cid = CorrelationId.from_key("k")
    with ends_by_a_fault(backend is Faulty):
        async with InvokeRetry(registry(target=target), backend=backend()) as retry:
            with pytest.raises(BackendError) as caught:
                await retry.invoke_async("target", repeats=1, seconds=1, cid=cid)
            assert (caught.value.cid, isinstance(caught.value, BackendFull)) == (
                cid, backend is Full,
            )  # fmt: skip


async def test_rule_5_cancelled_in_the_first_attempt_stores_nothing() -> None:
    async def target() -> None:
        await asyncio.sleep(60)

    async with InvokeRetry(registry(target=target)) as retry:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await retry.invoke("target", repeats=1, seconds=1, async_fallback=True)
        assert sum((await retry.counts()).values()) == 0


# 6. Ids.


@pytest.mark.parametrize("mode", MODES)
async def test_rule_6_source_and_ids(mode: Mode) -> None:
    seen: list[tuple[str, str, str]] = []

    async def inner() -> None:
        call = current_call()
        seen.append((call.service, call.cid, call.orig_cid))

    async def outer() -> None:
        call = current_call()
        seen.append((call.service, call.cid, call.orig_cid))
        await run(call.retry, mode, "inner", repeats=0, seconds=0)

    async with InvokeRetry(registry(inner=inner, outer=outer), name="shop") as retry:
        await run(retry, mode, "outer", repeats=0, seconds=0)
        first = list(seen)
        seen.clear()
        with retry.caller("orders.api", cid="request 7"):
            await run(retry, mode, "outer", repeats=0, seconds=0)
        found = {each.target: each for each in await retry.search(limit=2)}
    assert [name for name, _, _ in seen] == ["outer", "inner"]
    for (_, outer_cid, _), (_, inner_cid, inner_orig) in (first, seen):
        assert inner_orig == outer_cid
        assert CorrelationId(inner_cid) != outer_cid
    assert CorrelationId(first[0][2])
    assert seen[0][2] == "request 7"
    if mode == "background":
        assert (found["outer"].source, found["inner"].source) == ("orders.api", "outer")


async def test_rule_6_a_caller_inside_a_service_replaces_it() -> None:
    async def inner() -> str:
        return current_call().orig_cid

    async def outer() -> tuple[str, str]:
        call = current_call()
        with call.retry.caller("batch", cid="row 1"):
            assert current_call() is call
            return await call.retry.invoke("inner", repeats=0, seconds=0), call.cid

    retry = InvokeRetry(registry(inner=inner, outer=outer))
    assert (await retry.invoke("outer", repeats=0, seconds=0))[0] == "row 1"


# 7. Callback.


async def test_rule_7_forms_of_the_callback() -> None:
    plain: list[Any] = []
    models: list[CallbackPayload] = []

    async def target() -> int:
        return 1

    async def as_dict(payload: dict[str, Any]) -> None:
        plain.append(payload)

    async def as_model(payload: CallbackPayload) -> None:
        models.append(payload)
        assert current_call().cid == payload.call_cid

    namespace: dict[str, Any] = {"plain": plain}
    exec("async def untyped(payload): plain.append(payload)", namespace)
    untyped = namespace["untyped"]

    services = registry(target=target, untyped=untyped, as_dict=as_dict, as_model=as_model)
    async with InvokeRetry(services) as retry:
        for name in ("untyped", "as_dict", "as_model"):
            await retry.invoke_async("target", repeats=0, seconds=0, callback=name)
    assert len(models) == 1
    assert all(type(each) is dict for each in plain)
    keys = set(CallbackPayload.model_fields)
    assert [set(each) for each in plain] == [keys, keys]
    assert CallbackPayload.model_validate(plain[0]).ok


async def test_rule_7_a_failing_callback_never_reruns_the_target() -> None:
    calls: list[tuple[str, float]] = []

    async def target() -> int:
        calls.append(("target", now()))
        return 1

    async def callback(payload: CallbackPayload) -> None:
        calls.append(("callback", now()))
        raise ConnectionError("deaf")

    policy = RetryPolicy(repeats=2, seconds=10)
    services = registry(target=target, callback=callback)
    async with InvokeRetry(services, callback_policy=policy) as retry:
        cid = await retry.invoke_async("target", repeats=5, seconds=1, callback="callback")
        await asyncio.sleep(100)
        dead = await retry.get(cid)
    assert calls == [("target", 0), ("callback", 0), ("callback", 10), ("callback", 20)]
    assert (dead.state, dead.ok, dead.reason) == ("dead", True, "succeeded")


# 8. Isolation.

user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")


async def test_rule_8_contexts() -> None:
    seen: list[str] = []

    async def target() -> None:
        seen.append(user.get())
        user.set("leak")
        if len(seen) < 3:
            raise ValueError

    async def callback(payload: CallbackPayload) -> None:
        seen.append(user.get())

    user.set("who entered")
    async with InvokeRetry(registry(target=target, callback=callback)) as retry:
        user.set("caller")
        cid = await retry.invoke_async("target", repeats=3, seconds=1, callback="callback")
        await retry.wait(cid)
    assert seen == ["who entered"] * 4


# 9. Cancellation.


async def swallow_and_raise() -> None:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        raise ConnectionError("converted") from None


async def swallow_and_return() -> str:
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(60)
    return "value"


@pytest.mark.parametrize("async_fallback", [False, True])
@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("how", ["task", "timeout", "anyio"])
async def test_rule_9_a_converted_cancellation_reaches_the_caller(
    how: str, limited: bool, async_fallback: bool
) -> None:
    calls = 0

    async def target() -> None:
        nonlocal calls
        calls += 1
        await swallow_and_raise()

    policy = RetryPolicy(repeats=5, seconds=0, deadline=1000 if limited else None)
    async with InvokeRetry(registry(target=target)) as retry:
        invoke = retry.invoke("target", policy=policy, async_fallback=async_fallback)
        if how == "task":
            task = asyncio.ensure_future(invoke)
            await asyncio.sleep(1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        elif how == "timeout":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await invoke
        else:
            with anyio.move_on_after(1) as scope:
                await invoke
            assert scope.cancelled_caught
        assert now() == 1
        assert sum((await retry.counts()).values()) == 0
    assert calls == 1


@pytest.mark.parametrize("at_attempt", [1, 3])
async def test_rule_9_at_a_later_attempt(at_attempt: int) -> None:
    calls = 0

    async def target() -> None:
        nonlocal calls
        calls += 1
        if calls < at_attempt:
            raise ValueError
        await swallow_and_raise()

    retry = InvokeRetry(registry(target=target))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await retry.invoke("target", repeats=5, seconds=0)
    assert calls == at_attempt


async def test_rule_9_a_value_after_a_swallowed_cancellation_is_returned() -> None:
    retry = InvokeRetry(registry(target=swallow_and_return))
    task = asyncio.ensure_future(retry.invoke("target", repeats=5, seconds=0))
    await asyncio.sleep(1)
    task.cancel()
    assert await task == "value"


async def test_rule_9_a_count_left_raised_is_no_cancellation() -> None:
    calls = 0

    async def target() -> int:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise ValueError
        return calls

    async def caller() -> int:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        with suppress(asyncio.CancelledError):  # and no uncancel(): some libraries do that
            await asyncio.sleep(1)
        assert task.cancelling() == 1
        response: int = await retry.invoke("target", repeats=5, seconds=0)
        return response

    retry = InvokeRetry(registry(target=target))
    assert await asyncio.ensure_future(caller()) == 3


@pytest.mark.parametrize("seconds", [0, 3600])
async def test_rule_9_between_attempts(seconds: int) -> None:
    calls = 0

    async def target() -> None:
        nonlocal calls
        calls += 1
        scope.cancel()
        raise ValueError

    retry = InvokeRetry(registry(target=target))
    with anyio.CancelScope() as scope:
        await retry.invoke("target", repeats=5, seconds=seconds)
    assert scope.cancelled_caught
    assert (calls, now()) == (1, 0)


# 10. Idempotency.


async def test_rule_10_one_cid_one_invocation() -> None:
    calls = 0

    async def target(payload: Any = None) -> None:
        nonlocal calls
        calls += 1
        raise ValueError

    async def callback(payload: CallbackPayload) -> None:
        pass

    cid = CorrelationId.from_key("order-4711")
    assert cid == CorrelationId.from_key("order-4711")
    async with InvokeRetry(registry(target=target, another=target, callback=callback)) as retry:
        for seconds in (1, 2):  # the policy is no part of the request
            assert cid == await retry.invoke(
                "target", 1, repeats=1, seconds=seconds, async_fallback=True, cid=cid
            )
        assert calls == 1
        assert cid == await retry.invoke_async("target", 1, repeats=9, seconds=9, cid=cid)
        others: list[dict[str, Any]] = [
            {"payload": 2}, {"payload": 1, "callback": "callback"}, {"payload": 1, "context": 0},
            {"target": "another", "payload": 1}, {},
        ]  # fmt: skip
        for other in others:
            request: dict[str, Any] = {"target": "target", **other}
            with pytest.raises(CidConflict):
                await retry.invoke_async(**request, repeats=1, seconds=1, cid=cid)
            with pytest.raises(CidConflict):
                await retry.invoke(**request, repeats=1, seconds=1, cid=cid, async_fallback=True)
        assert calls == 1
        assert sum((await retry.counts()).values()) == 1
        inline = retry.invoke("target", 5, repeats=0, seconds=0, cid=cid)  # only a label
        with pytest.raises(RetriesExhausted) as caught:
            await inline
        assert caught.value.cid == cid


async def test_rule_10_true_is_another_request_than_one() -> None:
    async def target(payload: Any) -> Any:
        return payload

    cid = CorrelationId.from_key("order-4711")
    async with InvokeRetry(registry(target=target)) as retry:
        await retry.invoke_async("target", {"a": 1, "b": 2}, repeats=0, seconds=0, cid=cid)
        await retry.invoke_async("target", {"b": 2, "a": 1}, repeats=0, seconds=0, cid=cid)
        for other in ({"a": True, "b": 2}, {"a": 1.0, "b": 2}):
            with pytest.raises(CidConflict):
                await retry.invoke_async("target", other, repeats=0, seconds=0, cid=cid)


async def test_rule_10_a_set_in_another_order_is_the_same_request() -> None:
    calls = 0

    async def target(payload: tuple[set[int], list[int]]) -> None:
        nonlocal calls
        calls += 1

    cid = CorrelationId.from_key("order-4711")
    one, same = {0, 8}, {8, 0}
    assert list(one) != list(same)  # as two processes have them, whose hash seeds differ
    async with InvokeRetry(registry(target=target)) as retry:
        await retry.invoke_async("target", (one, [0, 8]), repeats=0, seconds=0, cid=cid)
        again = same, [0, 8]
        await retry.invoke_async("target", again, repeats=0, seconds=0, cid=cid)
        await retry.invoke("target", again, repeats=0, seconds=0, cid=cid, async_fallback=True)
        with pytest.raises(CidConflict):
            await retry.invoke_async("target", (one, [8, 0]), repeats=0, seconds=0, cid=cid)
    assert calls == 1


# 11. A success stays one.


@pytest.mark.parametrize(
    "value",
    [object(), float("nan"), {1, 2}, "x" * 2_000_000],
    ids=["object", "nan", "set", "large"],
)
async def test_rule_11_a_response_that_cannot_be_stored(value: Any) -> None:
    calls = 0

    async def target() -> Any:
        nonlocal calls
        calls += 1
        return value

    async with InvokeRetry(registry(target=target)) as retry:
        outcome = await run(retry, "background", "target", repeats=3, seconds=1)
        assert outcome.ok
        assert outcome.response is None
        assert outcome.response_omitted
        assert "response" in outcome.response_omitted
        assert await retry.invoke("target", repeats=0, seconds=0) is value
    assert calls == 2


async def test_nothing_leaks_between_the_rules() -> None:
    gc.collect()
    assert asyncio.all_tasks() == {asyncio.current_task()}
