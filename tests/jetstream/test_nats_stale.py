"""A lease is acknowledged, and its message so removed, only if a newer one has been seen."""

import asyncio
from typing import Any

import pytest

from invoke_retry import InvokeRetry, ServiceRegistry, current_call, machine
from invoke_retry.backends.nats import NATSBackend, upkeep
from invoke_retry.backends.nats.claiming import Claiming
from invoke_retry.backends.nats.store import Store, Written
from invoke_retry.models import State
from invoke_retry.record import Record

from .nats_help import Raw, Stage, eventually, is_in


def refuse(monkeypatch: pytest.MonkeyPatch, state: State, times: int) -> list[str]:
    """Have the first writes of records in that state refused; the marks of those that were."""
    write, refused = Store.write, list[str]()

    async def refusing(
        store: Store,
        record: Record,
        op: str,
        previous: str | None,
        sequence: int,
        lease: int | None = None,
    ) -> Written | None:
        if record.state == state and len(refused) < times:
            refused.append(op)
            return None
        return await write(store, record, op, previous, sequence, lease)

    monkeypatch.setattr(Store, "write", refusing)
    return refused


async def test_a_claim_that_is_refused_though_nothing_is_newer(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a loaded cluster has done: twice, within 15 ms of a schedule's message."""
    refused = refuse(monkeypatch, "running", 2)
    services = ServiceRegistry()

    @services.service()
    async def work(number: int) -> int:
        return number + 1

    async with InvokeRetry(services, backend=f"{url}?lease=1") as retry:
        cid = await retry.invoke_async("work", 1, repeats=0, seconds=0)
        outcome = await retry.wait(cid, timeout=20)
    assert len(refused) == 2
    assert (outcome.ok, outcome.response, outcome.attempts) == (True, 2, 1)


async def test_who_was_superseded_leaves_the_lease_to_who_has_it_now(url: str) -> None:
    """It was paused; another one took over by the same message, and died at once."""
    began, go_on = asyncio.Event(), asyncio.Event()
    services = ServiceRegistry()

    @services.service()
    async def work(number: int) -> int:
        if current_call().attempt == 1:
            began.set()
            await go_on.wait()
        return number + 1

    backend = NATSBackend(url, lease=1)
    async with InvokeRetry(services, backend=backend) as retry:
        cid = await retry.invoke_async("work", 1, repeats=3, seconds=0)
        await began.wait()
        first: Store = getattr(backend, "_store")
        other = Store(first.connection, first.layout, retry.clock)
        other.shift = first.shift
        found = await other.newest(cid)
        assert found is not None
        machine.take_over(found.record)
        assert await other.write(
            found.record, other.new_op(), found.subject, found.sequence, found.lease
        )
        go_on.set()  # the first one reports, and is refused
        outcome = await retry.wait(cid, timeout=20)
    assert (outcome.ok, outcome.attempts) == (True, 2)


async def test_what_cannot_be_parked_is_kept(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = refuse(monkeypatch, "parked", 1)
    services, others = ServiceRegistry(), ServiceRegistry()

    @services.service()
    async def work() -> None:
        pass

    @others.service()
    async def another() -> None:
        pass

    async with InvokeRetry(services, backend=url, work=False) as caller:
        cid = await caller.invoke_async("work", repeats=0, seconds=0)
        async with InvokeRetry(others, backend=url), asyncio.timeout(30):
            while (await caller.get(cid)).state != "parked":  # noqa: ASYNC110
                await asyncio.sleep(0.1)
    assert refused


async def test_who_was_paused_before_it_began_takes_nothing_from_who_has_begun(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease is over when it goes on, and the record is held by another one, which lives."""
    began, go_on = list[tuple[int, int]](), asyncio.Event()
    paused, resume = asyncio.Event(), asyncio.Event()
    write, beat = Store.write, Claiming.beat
    first = list[Store]()

    async def pausing(store: Store, record: Record, *args: Any) -> Written | None:
        if record.state == "running" and not first:
            first.append(store)
            paused.set()
            await resume.wait()
        return await write(store, record, *args)

    def beat_if_it_runs(claiming: Claiming) -> None:
        store = claiming._store  # pyright: ignore[reportPrivateUsage]
        if resume.is_set() or store not in first:
            beat(claiming)

    monkeypatch.setattr(Store, "write", pausing)
    monkeypatch.setattr(Claiming, "beat", beat_if_it_runs)

    def process(number: int) -> InvokeRetry:
        services = ServiceRegistry()

        @services.service()
        async def work() -> None:
            began.append((number, current_call().attempt))
            await go_on.wait()

        return InvokeRetry(services, backend=f"{url}?lease=1")

    async with process(1) as one:
        cid = await one.invoke_async("work", repeats=2, seconds=0)
        await paused.wait()
        async with process(2) as two:

            async def has_begun() -> bool:
                return bool(began)

            await eventually(has_begun)
            resume.set()
            # it has had its chance when its other work is done
            later = await one.invoke_async("work", repeats=0, seconds=0)
            await is_in(one, later, "running")
            go_on.set()
            outcome = await two.wait(cid, timeout=20)
            await two.wait(later, timeout=20)
    assert (outcome.ok, outcome.attempts) == (True, 1)
    assert began[0] == (2, 1)
    assert sorted(attempt for _, attempt in began) == [1, 1]


async def test_what_is_held_by_nobody_is_taken_over(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody has deleted the message by hand by which it is held."""
    monkeypatch.setattr(upkeep, "_LOOK_EVERY", 1)
    stage, raw = Stage(), Raw(url)
    async with stage.retry(url, grace=0) as retry:
        cid = await retry.invoke_async("hold", 3, repeats=1, seconds=0, callback="tell")
        await stage.called("hold")
        (due,) = await raw.subjects(f"due.{cid}.>")
        await raw.api(f"STREAM.PURGE.{raw.stream}", {"filter": due})
        await stage.called("hold", 2)
        stage.gate.set()
        outcome = await retry.wait(cid, timeout=20)
        await is_in(retry, cid, "succeeded")
        first, second = (await retry.get(cid)).history
    assert (outcome.ok, outcome.response, outcome.attempts) == (True, 3, 2)
    assert first.error is not None
    assert first.error.type == "WorkerDied"
    assert second.error is None
    assert stage.told == [outcome]
    assert [*await raw.subjects(f"*.{cid}.>")] == [f"ir.{raw.stream}.end.{cid}.tell.succeeded"]
