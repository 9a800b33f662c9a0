"""Several processes on one stream: who runs what, what is parked, paused and given back."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from invoke_retry import (
    BackendError,
    InvocationNotFound,
    InvokeRetry,
    RetryPolicy,
    ServiceRegistry,
)
from invoke_retry.backends import NATSBackend
from invoke_retry.backends.nats.layout import token
from invoke_retry.events import Event, Parked

from .nats_help import Raw, Stage, eventually, is_in


async def test_whoever_has_the_service_runs_it(url: str) -> None:
    both, one, other = Stage("echo", "tell"), Stage("echo"), Stage("tell")
    async with both.retry(url, work=False) as retry, one.retry(url), other.retry(url):
        cids = [
            await retry.invoke_async("echo", n, repeats=0, seconds=0, callback="tell")
            for n in range(20)
        ]
        for cid in cids:
            assert (await retry.wait(cid, timeout=10)).ok
            await is_in(retry, cid, "succeeded")
    assert (both.calls, one.count("echo"), other.count("tell")) == ([], 20, 20)


async def test_what_nobody_has_is_parked_until_somebody_has_it(url: str) -> None:
    """D14: nothing is deleted; it is visible, and runs when the service is there again."""
    caller, worker = Stage("echo", "tell"), Stage("fail")
    told: list[Event] = []

    async def noted() -> bool:
        return bool(told)

    async with caller.retry(url, work=False) as retry, worker.retry(url, hooks=[told.append]):
        cid = await retry.invoke_async("echo", 1, repeats=0, seconds=0, callback="tell")
        await is_in(retry, cid, "parked")
        await eventually(noted)
        assert [(type(each), each.cid) for each in told] == [(Parked, cid)]
        assert "'echo'" in ((await retry.get(cid)).parked_because or "")
        assert (await retry.counts())["parked"] == 1
        (found,) = await retry.search(state="parked")
        assert found.call_cid == cid
        late = Stage("echo", "tell")
        async with late.retry(url):
            assert (await retry.wait(cid, timeout=20)).attempts == 1
            await late.called("tell")
            await is_in(retry, cid, "succeeded")


async def test_parked_for_too_long_it_fails_and_is_told(url: str) -> None:
    caller, worker = Stage("echo", "tell"), Stage("tell")
    async with caller.retry(url, work=False) as retry, worker.retry(url, park_for=1):
        cid = await retry.invoke_async("echo", 1, repeats=0, seconds=0, callback="tell")
        outcome = await retry.wait(cid, timeout=30)
        await worker.called("tell")
    assert (outcome.ok, outcome.reason, outcome.attempts) == (False, "parked", 0)
    assert worker.told == [outcome]


async def test_what_a_newer_release_has_written_is_left_to_it(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage()
    async with stage.retry(url, work=False) as retry:
        cid = await retry.invoke_async("echo", 1, repeats=0, seconds=0)
    raw = Raw(url)
    subject, _, body = await raw.newest(cid)
    newer = json.loads(body.split(b"\n")[0]) | {"v": 99, "what_we_do_not_know": [1]}
    body = b"\n".join([json.dumps(newer).encode(), *body.split(b"\n")[1:]])
    await raw.put(subject, body)
    async with stage.retry(url) as retry:
        other = await retry.invoke_async("echo", 2, repeats=0, seconds=0)
        assert (await retry.wait(other, timeout=10)).response == 2

        async def noted() -> bool:
            return "newer release" in caplog.text

        await eventually(noted)
        with pytest.raises(Exception, match="newer release"):
            await retry.cancel(cid)
        assert (await retry.get(cid)).state == "waiting"
    assert (await raw.newest(cid))[2] == body
    assert [number for _, each, number in stage.calls if each == cid] == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b".*", b""),
        (b".*", b"\x80\x04K\x01."),
        (b'"token":0', b'"token":-1'),
        (b'"state":"waiting"', b'"state":"unheard-of"'),
        (b"......$", b""),
        (b'"cid":"K', b'"cid":"X'),
        (b'"due":', b'"due":1e400,"was":'),
    ],
)
async def test_what_is_spoilt_is_put_aside(url: str, old: bytes, new: bytes) -> None:
    """X1: nothing stored is evaluated, nothing is dropped, and the rest goes on."""
    stage = Stage()
    async with stage.retry(url, work=False) as retry:
        cid = await retry.invoke_async("echo", {"a": 1}, repeats=0, seconds=0, context=[1])
    raw = Raw(url)
    subject, _, body = await raw.newest(cid)
    spoilt = re.sub(old, new.replace(b"\\", b"\\\\"), body, count=1, flags=re.DOTALL)
    assert spoilt != body
    await raw.put(subject, spoilt)
    async with stage.retry(url) as retry:
        await is_in(retry, cid, "parked")
        other = await retry.invoke_async("echo", 2, repeats=0, seconds=0)
        assert (await retry.wait(other, timeout=10)).response == 2

        async def aside() -> bool:
            return (await raw.newest(cid))[0].startswith(f"ir.{raw.stream}.park.")

        await eventually(aside)
        assert [each.call_cid for each in await retry.search(state="parked")] == [cid]
    assert (await raw.newest(cid))[2] == spoilt
    assert stage.count("echo") == 1


@pytest.mark.parametrize("place", ["run.{}.held", "end.{}.echo.failed", "at.{}.echo.call"])
async def test_what_was_spoilt_since_it_was_handed_out(url: str, place: str) -> None:
    """Its newest message is damaged, and an older one is still due: the worker goes on."""
    stage, raw = Stage(), Raw(url)
    async with stage.retry(url, work=False) as retry:
        cid = await retry.invoke_async("echo", 1, repeats=0, seconds=0)
        await raw.put(f"ir.{raw.stream}.{place.format(cid)}", b"nonsense")
        found = await retry.get(cid)
        assert (found.state, await retry.search(after=cid)) == ("parked", [])
        await retry.invoke_async("hold", 1, repeats=0, seconds=0)
    async with stage.retry(url, work=False, max_waiting=1) as retry:
        with pytest.raises(BackendError, match="cannot be read"):
            await retry.invoke_async("echo", 1, repeats=0, seconds=0, cid=cid)
    async with stage.retry(url, lease=1) as retry:
        other = await retry.invoke_async("echo", 2, repeats=0, seconds=0)
        assert (await retry.wait(other, timeout=10)).response == 2
        assert (await retry.get(cid)).state == "parked"
        assert retry.health().ok, retry.health()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"state":"waiting"', b'"state":"succeeded"'),
        (b'"state":"waiting"', b'"state":"running"'),
        (b'"state":"waiting"', b'"state":"notifying"'),
        (b'"outcome":null', b'"outcome":["exhausted",1.0,null,null]'),
    ],
)
async def test_a_state_that_is_of_another_place(url: str, old: bytes, new: bytes) -> None:
    """Each field is well-formed, but what is due is nothing that could be begun."""
    stage, raw = Stage(), Raw(url)
    async with stage.retry(url, work=False) as retry:
        cid = await retry.invoke_async("echo", 1, repeats=0, seconds=0)
    subject, _, body = await raw.newest(cid)
    assert old in body
    await raw.put(subject, body.replace(old, new))
    async with stage.retry(url) as retry:
        other = await retry.invoke_async("echo", 2, repeats=0, seconds=0)
        assert (await retry.wait(other, timeout=10)).response == 2
        await is_in(retry, cid, "parked")
        assert retry.health().ok, retry.health()
    assert stage.count("echo") == 1


async def test_paused_in_all_processes(url: str) -> None:
    first, second = Stage(), Stage()
    async with first.retry(url, work=False) as retry, second.retry(url) as worker:
        assert await retry.pause("echo")
        assert not await worker.pause("echo")
        assert await worker.paused() == {"echo"}
        cid = await retry.invoke_async("echo", 1, repeats=0, seconds=0)
        other = await retry.invoke_async("fail", 2, repeats=0, seconds=0)
        await retry.wait(other, timeout=10)
        assert (await retry.get(cid)).state == "waiting"
        third = Stage()
        async with third.retry(url) as late:  # it is kept: also who comes later heeds it
            again = await late.invoke_async("fail", 2, repeats=0, seconds=0)
            await late.wait(again, timeout=10)
            assert (await retry.get(cid)).state == "waiting"
            assert await late.resume("echo")
            assert (await retry.wait(cid, timeout=10)).response == 1


async def test_max_running_of_a_service_holds_for_all_processes(url: str) -> None:
    running = most = 0

    async def slow() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1

    def services() -> ServiceRegistry:
        registry = ServiceRegistry()
        registry.register("slow", slow, max_running=3)
        return registry

    async with (
        InvokeRetry(services(), backend=NATSBackend(url)) as one,
        InvokeRetry(services(), backend=NATSBackend(url)),
        InvokeRetry(services(), backend=NATSBackend(url)),
    ):
        cids = [await one.invoke_async("slow", repeats=0, seconds=0) for _ in range(60)]
        for cid in cids:
            assert (await one.wait(cid, timeout=30)).ok
    assert most == 3


async def test_a_graceful_stop_gives_back(url: str) -> None:
    stage, other = Stage(), Stage()
    async with stage.retry(url, grace=0) as retry:
        cids = [await retry.invoke_async("hold", n, repeats=0, seconds=0) for n in range(5)]
        await stage.called("hold", 5)
    other.gate.set()
    async with asyncio.timeout(5), other.retry(url) as retry:  # at once, and not after a lease
        for cid in cids:
            assert (await retry.wait(cid, timeout=5)).attempts == 1
    assert other.count("hold") == 5


async def test_what_is_cancelled_elsewhere_is_cut_off_here(url: str) -> None:
    here, there = Stage(), Stage()
    async with here.retry(url) as retry, there.retry(url, work=False) as caller:
        cid = await caller.invoke_async("hold", 1, repeats=5, seconds=0, callback="tell")
        await here.called("hold")
        assert await caller.cancel(cid)
        await here.called("tell")
        assert retry.health().running <= 1

        async def over() -> bool:
            return retry.health().running == 0

        await eventually(over)
        assert (await caller.get(cid)).state == "cancelled"
    assert [each.reason for each in here.told] == ["cancelled"]


async def test_a_lease_that_runs_out_is_taken_over_and_its_late_result_refused(url: str) -> None:
    first, second = Stage(), Stage()
    async with first.retry(url, lease=1) as slow, second.retry(url, lease=1, work=False) as caller:
        policy = RetryPolicy(repeats=1, seconds=0)
        cid = await caller.invoke_async("hold", 1, policy=policy, callback="tell")
        await first.called("hold")
        silence(slow)
        async with second.retry(url, lease=1) as taker:
            await second.called("hold")
            second.gate.set()
            outcome = await taker.wait(cid, timeout=10)
            await second.called("tell")
            first.gate.set()
            await asyncio.sleep(0.2)
            assert await caller.wait(cid) == outcome
            done = await caller.get(cid)
    assert outcome.attempts == 2
    assert [each.error and each.error.type for each in done.history] == ["WorkerDied", None]
    assert (first.told, second.told) == ([], [outcome])


def silence(retry: InvokeRetry) -> None:
    """Its heartbeat stops, as when its process is stopped; it asks for nothing more."""
    backend: Any = retry._backend  # pyright: ignore[reportPrivateUsage]
    backend._working._beater.cancel()
    backend.pause()


async def test_a_deadline_passes_while_nobody_works(url: str) -> None:
    stage = Stage()
    async with stage.retry(url, work=False) as retry:
        policy = RetryPolicy(repeats=0, seconds=0, deadline=0.2)
        cid = await retry.invoke_async("echo", 1, policy=policy)
        outcome = await retry.wait(cid, timeout=10)
    assert (outcome.reason, outcome.attempts) == ("deadline", 0)


async def test_long_waits_are_the_servers(url: str) -> None:
    stage, later = Stage(), Stage()
    async with stage.retry(url) as retry:
        cid = await retry.invoke_async("fail", repeats=1, seconds=2)
        await stage.called("fail")
        await is_in(retry, cid, "waiting")
    async with later.retry(url) as retry:
        assert (await retry.wait(cid, timeout=20)).attempts == 2
    assert (stage.count("fail"), later.count("fail")) == (1, 1)


async def test_nothing_stays_behind(url: str) -> None:
    """One message is left of what has ended, and none when it is pruned."""
    stage = Stage()
    raw = Raw(url)
    async with stage.retry(url, retention=1) as retry:
        cid = await retry.invoke_async("fail", repeats=3, seconds=0.01, callback="tell")
        await is_in(retry, cid, "failed")

        async def alone() -> bool:
            return [name.split(".")[2] for name in await raw.subjects(f"*.{cid}.>")] == ["end"]

        await eventually(alone)

        async def gone() -> bool:
            return await raw.subjects(f"*.{cid}.>") == {}

        await eventually(gone)
        with pytest.raises(InvocationNotFound):
            await retry.get(cid)
        assert (await retry.counts())["failed"] == 1


@pytest.mark.parametrize("name", ["crm.update", "a", "x" * 200, "1.-_.", ".".join("x" * 90)])
async def test_any_name_of_a_service(url: str, name: str) -> None:
    told = asyncio.Queue[Any]()
    services = ServiceRegistry()

    async def target(payload: int) -> int:
        return payload

    services.register(name, target)
    services.register("0" + name[1:], told.put)
    async with InvokeRetry(services, backend=NATSBackend(url)) as retry:
        await retry.invoke_async(name, 1, repeats=0, seconds=0, callback="0" + name[1:])
        async with asyncio.timeout(10):
            assert (await told.get())["target"] == name
    assert token(name) != token("0" + name[1:])


_CLAIMER = Path(__file__).with_name("claimer.py")


@pytest.mark.slow
async def test_eight_processes_claim_without_overlap(url: str, tmp_path: Path) -> None:
    """D9: `python -m tests.jetstream.claimer URL 10000` does it with more."""
    run = await asyncio.create_subprocess_exec(
        sys.executable, str(_CLAIMER), url, "1500", stdout=asyncio.subprocess.PIPE
    )
    told, _ = await run.communicate()
    assert run.returncode == 0, told.decode()
    assert b"1500 invocations, 1500 attempts, 0 overlaps" in told
