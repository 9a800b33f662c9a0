"""How long what is over is kept, and that nothing of it is told where it should not be."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from store_help import MovableClock, Stage, ask, counted, eventually, reaches, tamper, until

from invoke_retry import InvocationNotFound, InvokeRetry, RetryPolicy
from invoke_retry.backends.sqlite import working
from invoke_retry.backends.sqlite.store import PAGE

DAY = 86_400.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "retries.db"


async def is_gone(retry: InvokeRetry, cid: str) -> bool:
    try:
        await retry.get(cid)
    except InvocationNotFound:
        return True
    return False


# Retention.


async def test_what_is_finished_is_pruned_and_still_counted(path: Path) -> None:
    clock = MovableClock()
    async with Stage().on(path, retention=10 * DAY, clock=clock) as retry:
        good = await retry.invoke_async("echo", "x", repeats=0, seconds=0, context="c")
        bad = await retry.invoke_async("fail", repeats=2, seconds=0)
        off = await retry.invoke_async("fail", repeats=1, seconds=3_600)
        later = await retry.invoke_async("fail", repeats=1, seconds=30 * DAY)
        await reaches(retry, good, "succeeded")
        await reaches(retry, bad, "failed")
        assert await retry.cancel(off)
        await reaches(retry, later, "waiting")
        before = await retry.counts()
        clock.monotonic_offset += 10 * DAY - 60
        await tidied(path)
        assert [await is_gone(retry, cid) for cid in (good, bad, off, later)] == [False] * 4
        clock.monotonic_offset += 61
        for cid in (good, bad, off):
            await eventually(partial(is_gone, retry, cid))
        assert not await is_gone(retry, later)
        assert await retry.counts() == before
    assert counted(path) == {"waiting": 1}
    for table in ("request", "response", "attempt"):
        assert ask(path, f"SELECT count(*) FROM {table} WHERE id NOT IN (SELECT id FROM "
                         "invocation)") == [(0,)]  # fmt: skip
    async with Stage().on(path, clock=clock) as retry:
        assert await retry.counts() == before
        assert await retry.invoke_async("echo", "y", repeats=0, seconds=0, cid=good) == good


async def tidied(path: Path) -> None:
    tamper(path, "INSERT INTO worker VALUES (77, 1, 0, '[]', 0)")
    await until(lambda: not ask(path, "SELECT 1 FROM worker WHERE seat = 77"))


async def test_what_is_not_delivered_is_never_pruned(path: Path) -> None:
    clock, stage = MovableClock(), Stage("echo", "fail")
    async with stage.on(
        path, retention=0, dead_retention=DAY, clock=clock,
        callback_policy=RetryPolicy(repeats=1, seconds=30 * DAY),
    ) as retry:  # fmt: skip
        stage.services.register("tell", stage._fail)  # pyright: ignore[reportPrivateUsage]
        cid = await retry.invoke_async("echo", 1, repeats=0, seconds=0, callback="tell")
        await reaches(retry, cid, "notifying")
        await until(lambda: len(stage.calls) == 2)
        clock.monotonic_offset += 29 * DAY
        await tidied(path)
        assert (await retry.get(cid)).state == "notifying"
        clock.monotonic_offset += DAY
        await reaches(retry, cid, "dead")
        await tidied(path)
        assert (await retry.get(cid)).state == "dead"
        clock.monotonic_offset += DAY
        await eventually(lambda: is_gone(retry, cid))
        assert (await retry.counts())["dead"] == 1


async def test_more_than_a_page_is_pruned(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working, "_TIDY_SECONDS", 0.02)
    async with Stage().on(path, retention=0) as retry:
        for _ in range(PAGE + 50):
            await retry.invoke_async("echo", repeats=0, seconds=0)
        await until(lambda: ask(path, "SELECT count(*) FROM invocation") == [(0,)])
        assert (await retry.counts())["succeeded"] == PAGE + 50


async def test_the_last_hundred_attempts_are_shown(path: Path) -> None:
    async with Stage().on(path) as retry:
        cid = await retry.invoke_async("fail", repeats=119, seconds=0)
        await reaches(retry, cid, "failed")
        shown = await retry.get(cid)
        assert shown.attempts == 120
        assert [each.number for each in shown.history] == list(range(21, 121))
        (found,) = await retry.search()
        assert found == shown
    async with Stage().on(path) as retry:
        assert (await retry.get(cid)).history == shown.history


# Secrets.


async def test_nothing_of_payload_context_or_errors_is_logged(
    path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    stage = Stage("echo", "tell")

    async def leaky(payload: Any) -> None:
        local = f"local-{payload}"
        raise ValueError(f"message-canary-{local}")

    stage.services.register("leaky", leaky)
    async with stage.on(path) as retry:
        cid = await retry.invoke_async(
            "leaky", "payload-canary", repeats=1, seconds=0, callback="tell",
            context={"key": "context-canary"},
        )  # fmt: skip
        await reaches(retry, cid, "failed")
        tamper(path, "UPDATE invocation SET state = 'waiting', due = 0, policy = 'canary-x'")
        await reaches(retry, cid, "parked")
        shown = await retry.get(cid)
    assert "canary" not in caplog.text
    assert "canary" not in "".join(capfd.readouterr())
    assert "canary" not in (shown.parked_because or "")
    stored = ask(path, "SELECT traceback FROM attempt")
    assert stored
    for (traceback,) in stored:
        assert "payload-canary" not in traceback.replace("message-canary-local-payload-canary", "")
