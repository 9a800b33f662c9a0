"""Cases of the fault catalogue on a real server; tests/faults has them, and more, in memory."""

# ruff: noqa: N802 (the names of the tests begin with those of the cases)
from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from chaos.children import until
from chaos.journal import Journal
from chaos.store import told_of
from chaos.tasks import POLICY, REPEATS, Task, make_services

from invoke_retry import (
    CallbackPayload,
    CorrelationId,
    InvocationNotFound,
    InvokeRetry,
    RetryPolicy,
    current_call,
)

from .nats_help import QUICK, Stage, eventually, is_in
from .worker import WorkerChild

Target = Callable[..., Awaitable[Any]]
user: ContextVar[str] = ContextVar("user", default="nobody")


def staged(target: Target, callback: Target | None = None) -> Stage:
    """A stage with one more target; the callback is its own `tell`, if none is given."""
    stage = Stage("tell")
    stage.services.register("target", target)
    if callback is not None:
        stage.services.register("callback", callback)
    return stage


async def an_inner_task_is_cancelled() -> None:
    inner = asyncio.create_task(asyncio.sleep(60))
    inner.cancel()
    await inner


async def it_is_raised() -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize("target", [an_inner_task_is_cancelled, it_is_raised])
async def test_A3_a_cancellation_that_nobody_asked_for_is_a_failure(
    url: str, target: Target
) -> None:
    stage = staged(target)
    async with stage.retry(url) as retry:
        await retry.invoke_async("target", repeats=2, seconds=0, callback="tell")
        await stage.called("tell")
    (outcome,) = stage.told
    assert (outcome.ok, outcome.reason, outcome.attempts) == (False, "exhausted", 3)
    assert outcome.error is not None
    assert outcome.error.type.endswith("CancelledError")


async def test_A4_what_ignores_its_cancellation_is_made_again_elsewhere(url: str) -> None:
    began, free = asyncio.Event(), asyncio.Event()

    async def stubborn() -> int:
        attempt = current_call().attempt
        while attempt == 1 and not free.is_set():
            began.set()
            with suppress(asyncio.CancelledError):
                await free.wait()
        return attempt

    stage = staged(stubborn)
    async with stage.retry(url, lease=1, work=False) as asking:
        cid = await asking.invoke_async("target", policy=QUICK, callback="tell")
        async with asyncio.timeout(10), stage.retry(url, lease=1, grace=0.1):
            await began.wait()
        async with stage.retry(url, lease=1):
            outcome = await asking.wait(cid, timeout=20)
            free.set()  # nobody asks for its result any more
            await stage.called("tell")
    assert outcome.ok
    assert stage.told == [outcome]


def cid_of(number: int) -> CorrelationId:
    return CorrelationId.from_key(f"order {number}")


async def test_A5_cancelled_while_they_are_accepted(url: str) -> None:
    """Each is there as a whole or not at all, and the store goes on."""
    chance = random.Random(5)

    async def echo(number: int) -> int:
        return number

    stage = staged(echo)
    async with stage.retry(url) as retry:

        async def submit(number: int) -> None:
            await retry.invoke_async(
                "target", number, policy=QUICK, callback="tell", cid=cid_of(number)
            )

        tasks = [asyncio.create_task(submit(number)) for number in range(200)]
        for task in chance.sample(tasks, 100):
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        left = {number for number, result in enumerate(results) if result is not None}
        assert all(isinstance(results[number], asyncio.CancelledError) for number in left)
        there = set[int]()
        for number in range(200):
            with suppress(InvocationNotFound):
                assert (await retry.wait(cid_of(number), timeout=20)).response == number
                there.add(number)
        await stage.called("tell", len(there))
    assert left
    assert there | left == {*range(200)}
    assert sorted(each.call_cid for each in stage.told) == sorted(map(cid_of, there))


@pytest.mark.parametrize("error", [SystemExit(3), GeneratorExit()])
async def test_E4_a_base_exception_ends_its_own_invocation_only(
    url: str, error: BaseException
) -> None:
    async def target(number: int) -> int:
        if number == 7:
            raise error
        return number

    stage = staged(target)
    async with stage.retry(url) as retry:
        for number in range(20):
            await retry.invoke_async(
                "target", number, policy=QUICK, callback="tell", cid=cid_of(number)
            )
        await stage.called("tell", 20)
        assert retry.health().ok
    failed = [each for each in stage.told if not each.ok]
    assert [(each.call_cid, each.reason, each.attempts) for each in failed] == [
        (cid_of(7), "permanent", 1)
    ]


async def test_E9_a_callback_that_raises_is_told_the_same_and_the_target_is_left_alone(
    url: str,
) -> None:
    targets, told = list[int](), list[str]()

    async def target() -> int:
        targets.append(current_call().attempt)
        return 5

    async def callback(outcome: CallbackPayload) -> None:
        told.append(outcome.model_dump_json())
        if len(told) % 6:  # all attempts of its policy, and the first of the redelivery
            raise ConnectionError("nobody takes it")

    async with staged(target, callback).retry(url) as retry:
        cid = await retry.invoke_async("target", policy=QUICK, callback="callback")
        await is_in(retry, cid, "dead")
        assert len(told) == 1 + QUICK.repeats
        assert await retry.redeliver(cid)
        await is_in(retry, cid, "succeeded")
    assert targets == [1]
    assert len({*told}) == 1


async def test_B1_what_only_its_own_frame_knows_is_not_collected(url: str) -> None:
    release = list[Callable[[], None]]()

    async def target() -> None:
        future = asyncio.get_running_loop().create_future()
        release.append(lambda: future.set_result(None))
        await future

    stage = staged(target)
    async with stage.retry(url) as retry:
        for _ in range(50):
            await retry.invoke_async("target", policy=QUICK, callback="tell")

        async def all_wait() -> bool:
            return len(release) == 50

        await eventually(all_wait)
        gc.collect()
        for go_on in release:
            go_on()
        gc.collect()
        await stage.called("tell", 50)
    assert all(each.ok for each in stage.told)


async def test_B3_context_variables_of_callers_do_not_leak(url: str) -> None:
    seen = set[str]()

    async def target(name: str) -> None:
        seen.add(user.get())
        user.set(f"set by an attempt for {name}")
        if current_call().attempt == 1:
            raise ConnectionError

    async def callback(_: CallbackPayload) -> None:
        seen.add(user.get())
        done.release()

    done = asyncio.Semaphore(0)
    async with staged(target, callback).retry(url) as retry:

        async def ask(name: str) -> None:
            user.set(name)
            await retry.invoke_async("target", name, policy=QUICK, callback="callback")

        await asyncio.gather(ask("anna"), ask("bert"))
        async with asyncio.timeout(20):
            await done.acquire()
            await done.acquire()
    assert seen == {"nobody"}


@pytest.mark.slow
async def test_D7_poison_is_given_up_and_the_healthy_finish(tmp_path: Path, url: str) -> None:
    journal, url = Journal(tmp_path / "journal"), f"{url}?lease=1"
    # what runs beside the poison dies with it, and that attempt counts, too
    patient = RetryPolicy(repeats=20, seconds=0.01)
    async with InvokeRetry(make_services(journal), backend=url, work=False) as retry:
        poison = await retry.invoke_async("work", Task(how="kill"), policy=POLICY, callback="told")
        healthy = [
            await retry.invoke_async("work", Task(), policy=patient, callback="told")
            for _ in range(20)
        ]
        for _ in range(1 + REPEATS):
            with WorkerChild(tmp_path, journal, url=url, max_running=5) as child:
                assert await child.over() < 0
        with WorkerChild(tmp_path, journal, url=url):
            await until(lambda: len(told_of(journal)) == 21)
        (outcome, *_) = told_of(journal)[poison]
    assert (outcome.ok, outcome.reason, outcome.attempts) == (False, "exhausted", 1 + REPEATS)
    began = [line.number for line in journal.lines("began") if line.cid == poison]
    assert began == list(range(1, 2 + REPEATS))
    assert all(each.ok for cid in healthy for each in told_of(journal)[cid])


async def test_S1_what_runs_gets_its_grace_and_the_rest_is_another_ones(url: str) -> None:
    attempts, go_on = list[tuple[int, int]](), asyncio.Event()

    async def target(number: int) -> None:
        attempts.append((number, current_call().attempt))
        await go_on.wait()

    stage = staged(target)
    async with stage.retry(url, work=False) as asking:
        for number in range(60):
            await asking.invoke_async("target", number, policy=QUICK, callback="tell")
        async with stage.retry(url, max_running=10, grace=20):

            async def is_full() -> bool:
                return len(attempts) == 10

            await eventually(is_full)
            asyncio.get_running_loop().call_later(0.3, go_on.set)  # while it is being left
        assert len(attempts) == 10
        async with stage.retry(url):
            await stage.called("tell", 60)
    assert sorted(attempts) == [(number, 1) for number in range(60)]


class Awkward(Exception):
    def __str__(self) -> str:
        return "nul \0, half \ud800, colour \x1b[31m, " + "long " * 1_000_000


async def test_Z3_Z5_whatever_an_error_says_the_callback_is_told(url: str) -> None:
    async def target() -> None:
        raise Awkward

    stage = staged(target)
    async with stage.retry(url) as retry:
        await retry.invoke_async("target", repeats=1, seconds=0, callback="tell")
        await stage.called("tell")
    (outcome,) = stage.told
    assert outcome.error is not None
    assert outcome.error.type.endswith("Awkward")
    assert len(outcome.error.message) < 10_000
    assert not {"\0", "\ud800", "\x1b"} & {*outcome.error.message}
