"""The server goes away, comes back, refuses, is full: what callers see, and what becomes of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from invoke_retry import BackendError, BackendFull, CorrelationId, InvocationNotFound, RetryPolicy
from invoke_retry.testing.nats_server import NatsServer

from .nats_help import QUICK, Raw, Stage, eventually, is_in


async def test_a_server_that_is_killed_and_comes_back(
    make_server: Callable[..., NatsServer], caplog: pytest.LogCaptureFixture
) -> None:
    """What was accepted ends; what was not raised; nothing is started anew but the server."""
    caplog.set_level(logging.ERROR, "invoke_retry")
    server = make_server()
    stage, accepted, refused = Stage(), list[str](), list[str | None]()
    async with stage.retry(server.url_of("test")) as retry:

        async def submit(number: int) -> None:
            cid = CorrelationId.from_key(f"order {number}")
            try:
                await retry.invoke_async("echo", number, policy=QUICK, callback="tell", cid=cid)
                accepted.append(cid)
            except BackendError as error:
                refused.append(error.cid)

        for round_ in range(3):
            tasks = [asyncio.ensure_future(submit(100 * round_ + n)) for n in range(100)]
            await stage.called("echo", stage.count("echo") + 20)
            server.kill()
            await asyncio.sleep(0.3)
            server.start()
            await asyncio.gather(*tasks)
        for cid in accepted:
            await is_in(retry, cid, "succeeded")
        assert retry.health().ok, retry.health()
    outcomes: dict[str, set[str]] = {}
    for told in stage.told:
        outcomes.setdefault(told.call_cid, set()).add(told.model_dump_json())
    assert set(accepted) <= set(outcomes)
    assert all(len(each) == 1 for each in outcomes.values())
    everything = {CorrelationId.from_key(f"order {number}") for number in range(300)}
    assert {*accepted, *refused} == everything
    assert len(caplog.records) <= 12


async def test_accept_while_there_is_no_server(make_server: Callable[..., NatsServer]) -> None:
    server = make_server()
    stage = Stage()
    async with stage.retry(server.url_of("test"), grace=0) as retry:
        kept = await retry.invoke_async("hold", 1, repeats=0, seconds=3_600)
        await stage.called("hold")
        server.kill()
        with pytest.raises(BackendError, match=r"no connection|was lost"):
            await retry.invoke_async("echo", 2, repeats=0, seconds=0)
        assert not retry.health().ok
        server.start()

        async def well() -> bool:
            return retry.health().ok

        await eventually(well)
        cid = await retry.invoke_async("echo", 3, repeats=0, seconds=0)
        assert (await retry.wait(cid, timeout=10)).response == 3
        stage.gate.set()
        assert (await retry.wait(kept, timeout=10)).response == 1


async def test_a_server_that_stands_still(make_server: Callable[..., NatsServer]) -> None:
    server = make_server()
    stage = Stage()
    async with stage.retry(server.url_of("test")) as retry:
        server.pause()
        accept = asyncio.ensure_future(retry.invoke_async("echo", 2, repeats=0, seconds=0))
        await asyncio.sleep(1)
        server.resume()
        assert (await retry.wait(await accept, timeout=10)).response == 2


async def test_a_server_without_room(make_server: Callable[..., NatsServer]) -> None:
    """D11: accept raises, or it is kept; and when there is room again, work goes on."""
    server = make_server(max_store=3_000_000)
    stage, accepted = Stage(), list[str]()
    async with stage.retry(server.url_of("test")) as retry:
        error = ""
        while not error and len(accepted) < 60:
            try:
                accepted.append(await retry.invoke_async("echo", "x" * 100_000, policy=QUICK))
            except BackendError as full:
                error = str(full)
        assert "refuses" in error
        assert len(accepted) < 60
        raw = Raw(server.url_of("test"))
        for cid in accepted[:5]:
            await raw.api(f"STREAM.PURGE.{raw.stream}", {"filter": f"ir.{raw.stream}.*.{cid}.>"})
        for cid in accepted[5:]:
            assert (await retry.wait(cid, timeout=20)).ok
        again = await retry.invoke_async("echo", 1, repeats=0, seconds=0)
        assert (await retry.wait(again, timeout=10)).ok


async def test_a_message_that_is_too_long(make_server: Callable[..., NatsServer]) -> None:
    """Z5: refused at once, in the caller's face, and nothing is stored."""
    server = make_server(settings={"max_payload": 131_072})
    stage = Stage()
    async with stage.retry(server.url_of("test")) as retry:
        cid = CorrelationId.from_key("long")
        with pytest.raises(BackendError, match="max_payload"):
            await retry.invoke_async("echo", "x" * 120_000, repeats=0, seconds=0, cid=cid)
        with pytest.raises(InvocationNotFound):
            await retry.get(cid)
        # two of these do not fit into one message, so that the response is left out
        cid = await retry.invoke_async("echo", "x" * 80_000, repeats=0, seconds=0, callback="tell")
        outcome = await retry.wait(cid, timeout=10)
        await stage.called("tell")
    assert (outcome.ok, outcome.response) == (True, None)
    assert "max_payload" in (outcome.response_omitted or "")
    assert stage.told == [outcome]
    assert stage.count("echo") == 1


async def test_many_attempts_fit_into_one_message(make_server: Callable[..., NatsServer]) -> None:
    server = make_server(settings={"max_payload": 65_536})
    stage = Stage()
    async with stage.retry(server.url_of("test")) as retry:
        cid = await retry.invoke_async("fail", "x" * 1_500, repeats=80, seconds=0)
        assert (await retry.wait(cid, timeout=60)).attempts == 81
        history = (await retry.get(cid)).history
    assert history[-1].number == 81
    assert history[-1].error is not None
    assert len(history) >= 10


async def test_no_permission_to_write(make_server: Callable[..., NatsServer]) -> None:
    users = [
        {"user": "all", "password": "a"},
        {
            "user": "some",
            "password": "s",
            "permissions": {"publish": {"deny": ["ir.test.due.>", "ir.test.at.>"]}},
        },
    ]
    server = make_server(settings={"authorization": {"users": users}})
    stage = Stage()
    async with stage.retry(f"nats://all:a@{server.address}/test", work=False):
        pass
    async with stage.retry(f"nats://some:s@{server.address}/test", work=False) as retry:
        async with asyncio.timeout(3):
            with pytest.raises(BackendError, match="permission"):
                await retry.invoke_async("echo", 2, repeats=0, seconds=0)


async def test_a_limit_of_what_waits(url: str) -> None:
    stage = Stage()
    async with stage.retry(url, work=False, max_waiting=20) as retry:
        for _ in range(20):
            await retry.invoke_async("echo", 1, repeats=0, seconds=0)
        with pytest.raises(BackendFull):
            await retry.invoke_async("echo", 1, repeats=0, seconds=0)
        assert (await retry.counts())["waiting"] == 20


async def test_a_burst_at_the_limit(url: str) -> None:
    """Each looked before any of them was written, so that all of them found room."""
    stage = Stage()
    async with stage.retry(url, work=False, max_waiting=30) as retry:
        accepts = [retry.invoke_async("echo", n, repeats=0, seconds=0) for n in range(200)]
        found = await asyncio.gather(*accepts, return_exceptions=True)
        refused = [each for each in found if isinstance(each, BackendFull)]
        assert len(refused) == 170
        assert (await retry.counts())["waiting"] == 30
        cid = next(each for each in found if isinstance(each, CorrelationId))
        number = (await retry.get(cid)).payload
        again = await retry.invoke_async("echo", number, repeats=0, seconds=0, cid=cid)
        assert again == cid  # it is one of them
        assert await retry.cancel(cid)
        await retry.invoke_async("echo", 1, repeats=0, seconds=0)
        with pytest.raises(BackendFull):
            await retry.invoke_async("echo", 1, repeats=0, seconds=0)


async def test_a_connection_that_is_gone_while_a_claim_is_held(
    make_server: Callable[..., NatsServer],
) -> None:
    """The attempt that ran meanwhile counts: its result is written when there is a server again."""
    server = make_server()
    stage = Stage()
    async with stage.retry(server.url_of("test")) as retry:
        policy = RetryPolicy(repeats=5, seconds=0)
        cids = [
            await retry.invoke_async("hold", n, policy=policy, callback="tell") for n in range(20)
        ]
        await stage.called("hold", 20)
        server.kill()
        stage.gate.set()
        await asyncio.sleep(0.2)
        server.start()
        outcomes: list[Any] = [await retry.wait(cid, timeout=30) for cid in cids]
        await stage.called("tell", 20)
    assert [each.attempts for each in outcomes] == [1] * 20
    assert stage.count("hold") == 20
