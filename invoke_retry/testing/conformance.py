"""What every backend must do, as tests: ours pass them, and so must another's.

Subclass it in a test module and say how a backend is made::

    from invoke_retry.testing.conformance import BackendConformance

    class TestMyBackend(BackendConformance):
        def make_backend(self, **options: Any) -> Backend:
            return MyBackend(..., **options)

It needs pytest and pytest-asyncio (`pip install 'invoke-retry[test]'`). Waits are some hundredths
of a second, so it may run in real time as well as in virtual time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta, timezone
from itertools import pairwise
from typing import Any

from invoke_retry.backends.base import Backend, Query
from invoke_retry.coordinator import InvokeRetry
from invoke_retry.correlation import CorrelationId, current_call
from invoke_retry.errors import (
    BackendError,
    BackendFull,
    CidConflict,
    InvalidState,
    InvocationNotFound,
    NotStorable,
    RetriesExhausted,
)
from invoke_retry.models import CallbackPayload, Invocation
from invoke_retry.policy import RetryPolicy
from invoke_retry.registry import ServiceRegistry

try:
    import pytest
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "the conformance suite needs pytest: pip install 'invoke-retry[test]'"
    ) from error

TICK = 0.02
UNKNOWN = CorrelationId.from_key("never accepted")
NO_TEXTS: tuple[Any, ...] = ("\ud800", b"echo", 5, 2**70, ["echo"])


class Stage:
    """Services to invoke, and what became of them."""

    def __init__(self) -> None:
        self.services = ServiceRegistry()
        self.calls: list[tuple[str, int, float]] = []
        self.told: list[CallbackPayload] = []
        self.gate = asyncio.Event()
        self.is_deaf = False
        self._news = asyncio.Event()
        for name in ("echo", "fail", "hold", "spoil", "tell"):
            self.services.register(name, getattr(self, f"_{name}"))

    def _note(self) -> None:
        call = current_call()
        self.calls.append((call.service, call.attempt, asyncio.get_running_loop().time()))
        self._news.set()

    async def _echo(self, payload: Any = None) -> Any:
        self._note()
        return payload

    async def _fail(self, payload: Any = None) -> Any:
        self._note()
        raise ValueError(f"no use: {payload}")

    async def _hold(self, payload: Any = None) -> Any:
        self._note()
        await self.gate.wait()
        return payload

    async def _spoil(self, payload: list[int]) -> int:
        self._note()
        payload.append(len(payload))
        if current_call().attempt < 3:
            raise ValueError("again")
        return len(payload)

    async def _tell(self, payload: CallbackPayload) -> None:
        self._note()
        if self.is_deaf:
            raise ConnectionError("deaf")
        self.told.append(payload)

    def count(self, service: str) -> int:
        """How many times the service was called."""
        return sum(name == service for name, _, _ in self.calls)

    async def called(self, service: str, times: int = 1) -> None:
        """Wait until the service was called so many times."""
        async with asyncio.timeout(10):
            while self.count(service) < times:
                self._news.clear()
                await self._news.wait()


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until the condition holds; not every backend can tell when."""
    async with asyncio.timeout(10):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(TICK / 4)


async def is_in(retry: InvokeRetry, cid: str, *states: str) -> Invocation:
    """Wait until the invocation is in one of the states."""
    invocation = await retry.get(cid)

    async def arrived() -> bool:
        nonlocal invocation
        invocation = await retry.get(cid)
        return invocation.state in states

    await eventually(arrived)
    return invocation


async def settled(retry: InvokeRetry, cid: str) -> Invocation:
    """Wait until nothing more happens to the invocation by itself."""
    return await is_in(retry, cid, "succeeded", "failed", "cancelled", "dead")


class BackendConformance:
    """The suite; override `make_backend`."""

    pytestmark = pytest.mark.asyncio

    def make_backend(self, **options: Any) -> Backend:
        """A fresh, empty backend with these options of `Backend`."""
        raise NotImplementedError(f"{type(self).__name__} must say how its backend is made")

    def make_retry(self, stage: Stage, backend: Backend | None = None, **kw: Any) -> InvokeRetry:
        """A coordinator whose callbacks are repeated once, quickly."""
        return InvokeRetry(
            stage.services,
            backend=backend or self.make_backend(),
            callback_policy=RetryPolicy(repeats=1, seconds=TICK),
            **kw,
        )

    async def test_success_is_recorded_and_told(self) -> None:
        stage = Stage()
        async with self.make_retry(stage) as retry:
            cid = await retry.invoke_async(
                "echo", {"a": [1, "ü"]}, repeats=2, seconds=TICK, callback="tell", context=[None]
            )
            outcome = await retry.wait(cid, timeout=10)
            done = await settled(retry, cid)
        assert (outcome.ok, outcome.reason, outcome.attempts) == (True, "succeeded", 1)
        assert outcome.response == {"a": [1, "ü"]}
        assert outcome.context == [None]
        assert stage.told == [outcome]
        assert (done.state, done.deliveries) == ("succeeded", 1)
        assert [attempt.error for attempt in done.history] == [None]

    @pytest.mark.parametrize("repeats", [0, 1, 3])
    async def test_failure_takes_all_attempts_and_no_wait_too_few(self, repeats: int) -> None:
        stage = Stage()
        async with self.make_retry(stage) as retry:
            cid = await retry.invoke_async("fail", 7, repeats=repeats, seconds=TICK)
            outcome = await retry.wait(cid, timeout=10)
            done = await settled(retry, cid)
        assert (outcome.ok, outcome.reason, outcome.attempts) == (False, "exhausted", 1 + repeats)
        assert outcome.error is not None
        assert (outcome.error.type, outcome.error.message) == ("ValueError", "no use: 7")
        assert [number for _, number, _ in stage.calls] == list(range(1, 2 + repeats))
        times = [time for _, _, time in stage.calls]
        assert all(b - a >= TICK * 0.999 for a, b in pairwise(times))
        assert [attempt.number for attempt in done.history] == list(range(1, 2 + repeats))
        assert all("ValueError" in (attempt.traceback or "") for attempt in done.history)

    async def test_fallback_hands_over_after_the_first_attempt(self) -> None:
        stage = Stage()
        async with self.make_retry(stage) as retry:
            assert await retry.invoke("echo", 1, repeats=1, seconds=0, async_fallback=True) == 1
            assert sum((await retry.counts()).values()) == 0
            cid = await retry.invoke(
                "fail", 2, repeats=2, seconds=TICK, async_fallback=True, callback="tell"
            )
            assert isinstance(cid, CorrelationId)
            assert stage.count("fail") == 1
            outcome = await retry.wait(cid, timeout=10)
            await settled(retry, cid)
            with pytest.raises(RetriesExhausted):
                await retry.invoke("fail", repeats=0, seconds=0, async_fallback=True)
        assert outcome.attempts == 3
        assert stage.told == [outcome]

    async def test_each_attempt_gets_its_own_payload(self) -> None:
        stage = Stage()
        async with self.make_retry(stage) as retry:
            cid = await retry.invoke_async("spoil", [5], repeats=2, seconds=0)
            assert (await retry.wait(cid, timeout=10)).response == 2
            assert (await retry.get(cid)).payload == [5]

    async def test_one_cid_is_one_invocation(self) -> None:
        stage = Stage()
        cid = CorrelationId.from_key("order-4711")
        async with self.make_retry(stage) as retry:
            for seconds in (TICK, 0):
                assert cid == await retry.invoke_async(
                    "echo", 1, repeats=1, seconds=seconds, cid=cid, callback="tell"
                )
            await settled(retry, cid)
            assert cid == await retry.invoke(
                "echo", 1, repeats=1, seconds=0, cid=cid, callback="tell", async_fallback=True
            )
            with pytest.raises(CidConflict):
                await retry.invoke_async("echo", 2, repeats=1, seconds=0, cid=cid)
            assert sum((await retry.counts()).values()) == 1
        assert stage.count("echo") == stage.count("tell") == 1

    async def test_cancelling_what_waits(self) -> None:
        stage = Stage()
        async with self.make_retry(stage) as retry:
            cid = await retry.invoke_async("fail", repeats=1, seconds=3600, callback="tell")
            await stage.called("fail")
            await is_in(retry, cid, "waiting")
            assert await retry.cancel(cid)
            assert not await retry.cancel(cid)
            done = await settled(retry, cid)
        assert (done.state, done.reason, done.attempts) == ("cancelled", "cancelled", 1)
        assert [told.reason for told in stage.told] == ["cancelled"]

    async def test_a_late_result_is_dropped(self) -> None:
        stage = Stage()
        async with self.make_retry(stage) as retry:
            cid = await retry.invoke_async("hold", 1, repeats=5, seconds=0, callback="tell")
            await stage.called("hold")
            assert await retry.cancel(cid)
            stage.gate.set()
            done = await settled(retry, cid)
            await asyncio.sleep(TICK)
            assert await retry.get(cid) == done
        assert (done.state, done.response, stage.count("hold")) == ("cancelled", None, 1)
        assert len(stage.told) == 1

    async def test_running_now_what_waits(self) -> None:
        stage = Stage()
        async with self.make_retry(stage) as retry:
            cid = await retry.invoke_async("fail", repeats=1, seconds=3600)
            await stage.called("fail")
            await is_in(retry, cid, "waiting")
            assert await retry.run_now(cid)
            assert (await retry.wait(cid, timeout=10)).attempts == 2
            assert not await retry.run_now(cid)

    async def test_a_dead_letter_is_kept_and_redelivered(self) -> None:
        stage = Stage()
        stage.is_deaf = True
        async with self.make_retry(stage) as retry:
            cid = await retry.invoke_async("echo", 1, repeats=0, seconds=0, callback="tell")
            dead = await settled(retry, cid)
            assert (dead.state, dead.ok, dead.deliveries) == ("dead", True, 2)
            assert dead.delivery_error is not None
            assert dead.delivery_error.type == "ConnectionError"
            stage.is_deaf = False
            assert await retry.redeliver(cid)
            done = await settled(retry, cid)
            assert not await retry.redeliver(cid)
        assert done.state == "succeeded"
        assert stage.count("echo") == 1
        assert [told.call_cid for told in stage.told] == [cid]

    async def test_resubmitting_what_failed(self) -> None:
        stage = Stage()
        async with self.make_retry(stage) as retry:
            with retry.caller("shop", cid="request 7"):
                old = await retry.invoke_async("fail", 3, repeats=1, seconds=0, context={"k": 1})
            await settled(retry, old)
            new = await retry.resubmit(old)
            again = await settled(retry, new)
            good = await retry.invoke_async("echo", repeats=0, seconds=0)
            await settled(retry, good)
            with pytest.raises(InvalidState):
                await retry.resubmit(good)
        assert new != old
        assert (again.resubmit_of, again.source, again.orig_cid) == (old, "shop", "request 7")
        assert (again.payload, again.context, again.attempts) == (3, {"k": 1}, 2)

    async def test_waiting_no_time_finds_what_is_known(self) -> None:
        stage = Stage()
        async with self.make_retry(stage) as retry:
            cid = await retry.invoke_async("hold", 7, repeats=0, seconds=0)
            with pytest.raises(TimeoutError, match=cid):
                await retry.wait(cid, timeout=0)
            with pytest.raises(InvocationNotFound):
                await retry.wait(UNKNOWN, timeout=0)
            stage.gate.set()
            assert await retry.wait(cid) == await retry.wait(cid, timeout=0)

    async def test_many_wait_for_one(self) -> None:
        stage = Stage()
        async with self.make_retry(stage) as retry:
            cid = await retry.invoke_async("hold", 1, repeats=0, seconds=0)
            await stage.called("hold")
            with pytest.raises(TimeoutError):
                await retry.wait(cid, timeout=TICK)
            waits = [asyncio.ensure_future(retry.wait(cid, timeout=10)) for _ in range(3)]
            await asyncio.sleep(TICK)
            waits[0].cancel()
            stage.gate.set()
            outcomes = await asyncio.gather(*waits, return_exceptions=True)
            late = await retry.wait(cid)
        assert isinstance(outcomes[0], asyncio.CancelledError)
        assert outcomes[1] == outcomes[2] == late

    async def test_a_deadline_ends_what_waits_and_what_runs(self) -> None:
        stage = Stage()
        policy = RetryPolicy(repeats=9, seconds=0, deadline=20 * TICK)
        async with self.make_retry(stage, max_running=1) as retry:
            runs = await retry.invoke_async("hold", 1, policy=policy)
            queues = await retry.invoke_async("hold", 2, policy=policy)
            ended = [await retry.wait(cid, timeout=10) for cid in (runs, queues)]
        assert [outcome.reason for outcome in ended] == ["deadline", "deadline"]
        assert ended[0].attempts == 1

    async def test_much_of_one_service_delays_no_other(self) -> None:
        stage = Stage()
        async with self.make_retry(stage, max_running=1) as retry:
            first = await retry.invoke_async("hold", repeats=0, seconds=0)
            many = [await retry.invoke_async("fail", i, repeats=0, seconds=0) for i in range(50)]
            other = await retry.invoke_async("echo", repeats=0, seconds=0)
            await stage.called("hold")
            stage.gate.set()
            for cid in (first, other, *many):
                await retry.wait(cid, timeout=10)
        order = [name for name, _, _ in stage.calls]
        assert order.index("echo") <= 3

    async def test_no_more_run_than_may(self) -> None:
        stage = Stage()
        async with self.make_retry(stage, max_running=3) as retry:
            cids = [await retry.invoke_async("hold", repeats=0, seconds=0) for _ in range(10)]
            await stage.called("hold", 3)
            await asyncio.sleep(TICK)
            assert stage.count("hold") == retry.health().running == 3
            stage.gate.set()
            for cid in cids:
                await retry.wait(cid, timeout=10)
        assert stage.count("hold") == 10

    async def test_search_is_newest_first_and_filters(self) -> None:
        stage = Stage()
        async with self.make_retry(stage) as retry:
            good = [await retry.invoke_async("echo", i, repeats=0, seconds=0) for i in range(3)]
            bad = [await retry.invoke_async("fail", i, repeats=0, seconds=0) for i in range(2)]
            for cid in (*good, *bad):
                await settled(retry, cid)

            async def found(**query: Any) -> list[str]:
                return [each.call_cid for each in await retry.search(**query)]

            newest = [*reversed(bad), *reversed(good)]
            assert await found() == newest
            assert await found(target="echo") == newest[2:]
            assert await found(state="failed") == newest[:2]
            assert await found(error_type="ValueError") == newest[:2]
            assert await found(source="nobody") == []
            assert await found(limit=2) == newest[:2]
            assert await found(after=newest[1]) == newest[2:]
            assert await found(after=newest[-1]) == []

    async def test_search_by_the_time_of_accept(self) -> None:
        stage = Stage()
        async with self.make_retry(stage) as retry:
            cids: list[CorrelationId] = []
            for i in range(3):
                cids.append(await retry.invoke_async("echo", i, repeats=0, seconds=0))
                await asyncio.sleep(TICK)
            first, second, third = cids
            when = (await retry.get(second)).created_at

            async def found(**query: Any) -> list[str]:
                return [each.call_cid for each in await retry.search(**query)]

            assert await found(created_from=when) == [third, second]
            assert await found(created_before=when) == [first]
            later = when + timedelta(microseconds=1)
            assert await found(created_from=when, created_before=later) == [second]
            elsewhere = when.astimezone(timezone(timedelta(hours=-7)))
            assert await found(created_from=elsewhere, limit=1, after=third) == [second]
            assert await found(created_from=later, created_before=when) == []
            with pytest.raises(ValueError, match="created_from"):
                await found(created_from=when.replace(tzinfo=None))

    async def test_all_ids_that_fit(self) -> None:
        stage = Stage()
        backend = self.make_backend()
        async with self.make_retry(stage, backend) as retry:
            cids = [await retry.invoke_async("echo", i, repeats=0, seconds=0) for i in range(7)]
            other = await retry.invoke_async("fail", repeats=0, seconds=0)
            for cid in (*cids, other):
                await settled(retry, cid)
            newest = [other, *reversed(cids)]
            assert await backend.cids(Query()) == newest
            assert await backend.cids(Query(target="echo", limit=2)) == newest[1:]
            assert await backend.cids(Query(after=newest[5], limit=1)) == newest[6:]
            assert await backend.cids(Query(target="nobody")) == []
            with pytest.raises(InvocationNotFound):
                await backend.cids(Query(after=UNKNOWN))

    async def test_what_is_kept_by_target(self) -> None:
        stage = Stage()
        backend = self.make_backend()
        async with self.make_retry(stage, backend) as retry:
            cids = [
                await retry.invoke_async(name, repeats=0, seconds=0)
                for name in ("echo", "fail", "echo")
            ]
            for cid in cids:
                await settled(retry, cid)
            await retry.invoke_async("hold", repeats=0, seconds=0)
            await stage.called("hold")
            tally = None
            with suppress(BackendError):  # it says what to use instead
                tally = await backend.tally()
            stage.gate.set()
        assert tally is None or tally == {
            "echo": {"succeeded": 2}, "fail": {"failed": 1}, "hold": {"running": 1},
        }  # fmt: skip

    async def test_pruning_when_told_to(self) -> None:
        stage = Stage()
        stage.is_deaf = True
        backend = self.make_backend()
        async with self.make_retry(stage, backend, grace=0) as retry:
            good = await retry.invoke_async("echo", repeats=0, seconds=0)
            bad = await retry.invoke_async("fail", repeats=0, seconds=0)
            dead = await retry.invoke_async("echo", repeats=0, seconds=0, callback="tell")
            waits = await retry.invoke_async("fail", repeats=1, seconds=3_600)
            for cid in (good, bad, dead):
                await settled(retry, cid)
            await is_in(retry, waits, "waiting")
            before = await retry.counts()
            utc = retry.clock.utc()
            try:
                assert await backend.prunable(utc + 60) == 2
            except BackendError:  # it says that it prunes by itself
                with pytest.raises(BackendError):
                    await backend.prune(utc + 60)
                return
            assert await backend.prunable(utc - 60, dead=True) == 0
            assert await backend.prune(utc - 60, dead=True) == 0
            assert len(await retry.search()) == 4
            assert await backend.prune(utc + 60) == 2
            assert await backend.prune(utc + 60) == 0
            assert [each.call_cid for each in await retry.search()] == [waits, dead]
            assert await backend.prunable(utc + 60, dead=True) == 1
            assert await backend.prune(utc + 60, dead=True) == 1
            assert [each.call_cid for each in await retry.search()] == [waits]
            assert await retry.counts() == before
            # what is forgotten may come again, and is not mistaken for its predecessor
            assert await retry.invoke_async("echo", repeats=0, seconds=0, cid=good) == good
            await settled(retry, good)
            assert len(await retry.search()) == 2

    async def test_an_examination_finds_what_is_paused(self) -> None:
        backend = self.make_backend()
        async with self.make_retry(Stage(), backend) as retry:
            assert "bad" not in [finding.level for finding in await backend.examine()]
            await retry.pause("echo")
            found = [each for each in await backend.examine() if each.what == "paused"]
        assert [each.level for each in found] == ["warning"]
        assert "echo" in found[0].text

    async def test_the_books_balance(self) -> None:
        stage = Stage()
        stage.is_deaf = True
        async with self.make_retry(stage) as retry:
            cids = [
                await retry.invoke_async("echo", repeats=0, seconds=0),
                await retry.invoke_async("fail", repeats=0, seconds=0),
                await retry.invoke_async("echo", repeats=0, seconds=0, callback="tell"),
            ]
            for cid in cids:
                await settled(retry, cid)
            await retry.invoke_async("hold", repeats=0, seconds=0)
            await stage.called("hold")
            counts = await retry.counts()
            stage.gate.set()
        assert counts == {
            "waiting": 0, "running": 1, "notifying": 0, "succeeded": 1, "failed": 1,
            "cancelled": 0, "dead": 1, "parked": 0,
        }  # fmt: skip

    async def test_what_is_paused_waits(self) -> None:
        stage = Stage()
        async with self.make_retry(stage) as retry:
            assert await retry.pause("echo")
            assert not await retry.pause("echo")
            assert await retry.paused() == {"echo"}
            cid = await retry.invoke_async("echo", 1, repeats=0, seconds=0, callback="tell")
            other = await retry.invoke_async("fail", 2, repeats=0, seconds=0)
            await settled(retry, other)
            assert (stage.count("echo"), (await retry.get(cid)).state) == (0, "waiting")
            await retry.pause("tell")
            assert await retry.resume("echo")
            assert not await retry.resume("echo")
            assert (await retry.wait(cid, timeout=10)).ok
            await asyncio.sleep(TICK)
            assert (stage.count("tell"), (await retry.get(cid)).state) == (0, "notifying")
            await retry.resume("tell")
            await settled(retry, cid)
        assert stage.count("tell") == 1

    async def test_a_full_backend_refuses(self) -> None:
        stage = Stage()
        async with self.make_retry(stage, self.make_backend(max_waiting=2)) as retry:
            cids = [await retry.invoke_async("hold", repeats=0, seconds=0) for _ in range(2)]
            refused = CorrelationId.from_key("one too many")
            with pytest.raises(BackendFull):
                await retry.invoke_async("echo", repeats=0, seconds=0, cid=refused)
            with pytest.raises(InvocationNotFound):
                await retry.get(refused)
            stage.gate.set()
            for cid in cids:
                await settled(retry, cid)
            await settled(retry, await retry.invoke_async("echo", repeats=0, seconds=0))

    async def test_what_is_too_large_is_refused(self) -> None:
        stage = Stage()
        async with self.make_retry(stage, self.make_backend(max_bytes=100)) as retry:
            await retry.invoke_async("echo", "x" * 98, repeats=0, seconds=0)
            with pytest.raises(NotStorable):
                await retry.invoke_async("echo", "x" * 99, repeats=0, seconds=0)
            with pytest.raises(NotStorable):
                await retry.invoke_async("echo", repeats=0, seconds=0, context="x" * 99)
            assert sum((await retry.counts()).values()) == 1

    async def test_finished_ones_go_after_retention_and_still_count(self) -> None:
        stage = Stage()
        stage.is_deaf = True
        async with self.make_retry(stage, self.make_backend(retention=0)) as retry:
            gone = await retry.invoke_async("echo", repeats=0, seconds=0)
            dead = await retry.invoke_async("echo", repeats=0, seconds=0, callback="tell")
            await settled(retry, dead)

            async def pruned() -> bool:
                return [each.call_cid for each in await retry.search()] == [dead]

            await eventually(pruned)
            with pytest.raises(InvocationNotFound):
                await retry.get(gone)
            counts = await retry.counts()
        assert (counts["succeeded"], counts["dead"]) == (1, 1)

    async def test_what_is_not_known(self) -> None:
        async with self.make_retry(Stage()) as retry:
            for cid in (UNKNOWN, *NO_TEXTS):
                for ask in (
                    retry.get, retry.wait, retry.cancel, retry.run_now, retry.redeliver,
                    retry.resubmit,
                ):  # fmt: skip
                    with pytest.raises(InvocationNotFound):
                        await ask(cid)
                with pytest.raises(InvocationNotFound):
                    await retry.search(after=cid)
            assert retry.health().ok

    async def test_searching_what_cannot_be_kept(self) -> None:
        async with self.make_retry(Stage()) as retry:
            await settled(retry, await retry.invoke_async("fail", repeats=0, seconds=0))
            for text in NO_TEXTS:
                for name in ("target", "source", "error_type"):
                    assert await retry.search(**{name: text}) == []
            assert len(await retry.search(limit=2**70)) == 1

    async def test_leaving_loses_nothing(self) -> None:
        stage = Stage()
        async with self.make_retry(stage, grace=10) as retry:
            for i in range(20):
                await retry.invoke_async("echo", i, repeats=0, seconds=0, callback="tell")
            if retry.is_durable:
                await stage.called("tell", 20)
        assert sorted(told.response for told in stage.told) == list(range(20))
        assert retry.health().running == 0
