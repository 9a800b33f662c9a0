"""Faults of the package itself, made on purpose at each of its inner places."""

# ruff: noqa: N802 (the names of the tests begin with those of the cases)
from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import pytest
from fault_help import UNFINISHED, Failing, registry

from invoke_retry import (
    BackendError,
    CorrelationId,
    InvocationNotFound,
    InvokeRetry,
    NotRunning,
    RetryPolicy,
    failure,
    machine,
    models,
)
from invoke_retry import policy as policies
from invoke_retry import record as records
from invoke_retry.backends import MemoryBackend
from invoke_retry.backends.ready import ReadyQueue
from invoke_retry.background import Background
from invoke_retry.run import Run
from invoke_retry.slots import Slots
from invoke_retry.work import Work

virtual = pytest.mark.virtual_time

FAULT_POINTS: list[tuple[Any, str]] = [
    (machine, "start"),
    (machine, "retry"),
    (machine, "finish"),
    (machine, "end"),
    (machine, "deliver"),
    (machine, "settle"),
    (machine, "postpone"),
    (machine, "bury"),
    (policies, "decide"),
    (policies, "is_retryable"),
    (failure, "failure_of"),
    (failure, "render_traceback"),
    (records, "callback_payload"),
    (models, "utc_time"),
    (Slots, "take"),
    (Slots, "give"),
    (Slots, "retake"),
    (Slots, "room_for"),
    (Slots, "note"),
    (Run, "over"),
    (Work, "advance"),
    (Background, "start"),
    (MemoryBackend, "wake"),
    (MemoryBackend, "apply"),
    (MemoryBackend, "_give"),
    (MemoryBackend, "_pass_time"),
    (MemoryBackend, "_file"),
    (MemoryBackend, "_queue"),
    (MemoryBackend, "_retire"),
    (ReadyQueue, "push"),
    (ReadyQueue, "pop"),
]


def users(where: Any, name: str) -> list[Any]:
    """Where the name is known: in its class, or in each module of the package that imports it."""
    if isinstance(where, type):
        return [where]
    modules = [module for key, module in sys.modules.items() if key.startswith("invoke_retry.")]
    real = getattr(where, name)
    return [module for module in modules if getattr(module, name, None) is real]


class Fault:
    """Raises once, in the nth call of a function, instead of doing its work."""

    def __init__(self, point: tuple[Any, str], nth: int) -> None:
        self._where, self._name = point
        self._nth = nth
        self.calls = 0

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real: Callable[..., Any] = getattr(self._where, self._name)

        def faulty(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == self._nth:
                raise RuntimeError("a fault inside")
            return real(*args, **kwargs)

        for place in users(self._where, self._name):
            monkeypatch.setattr(place, self._name, faulty)


async def healthy() -> None:
    await asyncio.sleep(0.1)


async def slow() -> None:
    await asyncio.sleep(100)


async def refuses(outcome: dict[str, Any]) -> None:
    raise ValueError("no")


async def accept(retry: InvokeRetry, accepted: list[str], cid: str, *what: Any) -> None:
    """Submit under a cid; a fault may come in the caller's face."""
    target, policy, callback = what
    try:
        await retry.invoke_async(target, policy=policy, callback=callback, cid=cid)
    except (RuntimeError, BackendError):  # NotRunning, too
        try:
            await retry.get(cid)
        except InvocationNotFound:
            return
    accepted.append(cid)


async def check(retry: InvokeRetry, accepted: list[str]) -> None:
    """Either all is over and work goes on, or it is said that it does not."""
    if retry.health().ok:
        counts = await retry.counts()
        assert sum(counts.values()) == len(accepted)
        assert not any(counts[state] for state in UNFINISHED), counts
        assert retry.health().running == 0
        another = await retry.invoke_async("healthy", repeats=0, seconds=0)
        assert (await retry.wait(another, timeout=1)).ok
        await retry.__aexit__(None, None, None)
        return
    with pytest.raises(NotRunning):
        await retry.invoke_async("healthy", repeats=0, seconds=0)
    for cid in accepted:
        try:
            await retry.wait(cid)
        except NotRunning:
            assert (await retry.get(cid)).reason is None
    began = asyncio.get_running_loop().time()
    with pytest.raises(ExceptionGroup):
        await retry.__aexit__(None, None, None)
    assert asyncio.get_running_loop().time() <= began + 5


@virtual
@pytest.mark.filterwarnings("ignore:coroutine")
@pytest.mark.parametrize("nth", [1, 2, 3, 5])
@pytest.mark.parametrize("crowd", [1, 4, 12])
@pytest.mark.parametrize("point", FAULT_POINTS, ids=lambda point: point[1])
async def test_B10_a_fault_inside_is_survived_or_told(
    point: tuple[Any, str], crowd: int, nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One unexpected error, and the worker sat idle for ever in a process that looked alive."""
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    services, _ = registry(failing=Failing().call, healthy=healthy, slow=slow, refuses=refuses)
    kinds = [("failing", "told"), ("healthy", "refuses"), ("slow", None), ("slow", "told")]
    retry = InvokeRetry(
        services, callback_policy=RetryPolicy(repeats=1, seconds=1), grace=60, max_running=2
    )
    await retry.__aenter__()
    fault = Fault(point, nth)
    policy = RetryPolicy(repeats=2, seconds=1, timeout=5, deadline=20)
    accepted: list[str] = []
    with monkeypatch.context() as patch:
        fault.patch(patch)
        for n in range(crowd):
            target, callback = kinds[n % 4]
            cid = CorrelationId.from_key(str(n))
            await accept(retry, accepted, cid, target, policy, callback)
            if n >= 4:
                await asyncio.sleep(0.3)
        waits = [asyncio.create_task(retry.wait(cid)) for cid in accepted]
        await asyncio.sleep(200)
    for wait in waits:
        assert wait.done()
        error = wait.exception()
        assert error is None or isinstance(error, NotRunning) or "a fault inside" in str(error)
    await check(retry, accepted)


@virtual
async def test_B10_a_background_that_has_stopped_accepts_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was accepted after the workers had died waited for ever."""
    services, _ = registry(target=Failing().call)
    retry = InvokeRetry(services)

    def broken(*args: Any) -> None:
        raise RuntimeError("a fault inside")

    await retry.__aenter__()
    with monkeypatch.context() as patch:
        patch.setattr(Slots, "give", broken)
        await retry.invoke_async("target", repeats=0, seconds=0)
        await asyncio.sleep(1)
    if retry.health().ok:  # it has survived
        await retry.__aexit__(None, None, None)
        return
    with pytest.raises((NotRunning, BackendError)):
        await retry.invoke_async("target", repeats=0, seconds=0)
    with pytest.raises(ExceptionGroup):
        await retry.__aexit__(None, None, None)


@virtual
@pytest.mark.parametrize("how", ["fault", "cancelled"])
async def test_B10_whoever_waits_learns_that_the_background_has_stopped(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers had died, and a wait for an outcome never ended."""

    def broken(*args: Any) -> None:
        raise RuntimeError("a fault inside")

    services, _ = registry(healthy=healthy, failing=Failing().call)
    retry = InvokeRetry(services)
    before = asyncio.all_tasks()
    await retry.__aenter__()
    (supervisor,) = asyncio.all_tasks() - before
    done = await retry.invoke_async("healthy", repeats=0, seconds=0)
    assert (await retry.wait(done)).ok
    cid = await retry.invoke_async("failing", repeats=1, seconds=1_000)
    waits = [asyncio.create_task(retry.wait(cid, timeout)) for timeout in (None, 1e6)]
    await asyncio.sleep(1)
    if how == "fault":
        with monkeypatch.context() as patch:
            patch.setattr(Slots, "give", broken)
            await retry.invoke_async("healthy", repeats=0, seconds=0)
            await asyncio.sleep(1)
    else:
        supervisor.cancel()
        await asyncio.sleep(1)
    assert not retry.health().ok
    for wait in waits:
        assert wait.done()
        with pytest.raises(NotRunning, match="stopped by a fault"):
            await wait
    with pytest.raises(NotRunning, match="stopped by a fault"):
        await retry.wait(cid)
    assert (await retry.wait(done)).ok
    if how == "fault":
        with pytest.raises(ExceptionGroup):
            await retry.__aexit__(None, None, None)
    else:
        await retry.__aexit__(None, None, None)


@virtual
async def test_B10_a_fault_in_a_decision_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a cancellation had set going stood still, and nothing said so."""
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    services, _ = registry(failing=Failing().call, healthy=healthy)
    retry = InvokeRetry(services)
    await retry.__aenter__()
    cid = await retry.invoke_async("failing", repeats=1, seconds=1_000, callback="told")
    await asyncio.sleep(1)
    with monkeypatch.context() as patch:
        Fault((Slots, "retake"), 1).patch(patch)
        with pytest.raises(RuntimeError, match="a fault inside"):
            await retry.cancel(cid)
        await asyncio.sleep(1)
    assert not retry.health().ok
    assert (await retry.wait(cid)).reason == "cancelled"
    await check(retry, [cid])


@virtual
@pytest.mark.parametrize("name", ["_pass_time", "_file", "_give"])
@pytest.mark.parametrize("grace", [None, 1_000, 0])
async def test_B10_a_fault_while_it_is_left(
    name: str, grace: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leaving waited for ever for what could not come any more."""
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    services, _ = registry(failing=Failing().call)
    retry = InvokeRetry(services, grace=grace)
    await retry.__aenter__()
    cid = await retry.invoke_async("failing", repeats=3, seconds=10, callback="told")
    await asyncio.sleep(5)
    waits = [asyncio.create_task(retry.wait(cid))]
    with monkeypatch.context() as patch:
        Fault((MemoryBackend, name), 1).patch(patch)
        await asyncio.wait([asyncio.create_task(retry.__aexit__(None, None, None))])
    assert asyncio.get_running_loop().time() <= 10 + 5
    assert not retry.health().ok
    for wait in waits:
        await asyncio.wait([wait])
        assert isinstance(wait.exception(), NotRunning | None)
