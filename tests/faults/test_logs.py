"""Logs and books: one line for each failed attempt, bounded, and the sums are right."""

# ruff: noqa: N802 (the names of the tests begin with those of the cases)
from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from typing import Any, ClassVar

import pytest
from fault_help import Failing, registry, running
from pydantic import BaseModel, field_validator

from invoke_retry import (
    BackendFull,
    CallbackPayload,
    CidConflict,
    CorrelationId,
    InvokeRetry,
    RetriesExhausted,
    RetryAfter,
    RetryPolicy,
    ServiceRegistry,
    current_call,
    events,
)
from invoke_retry.backends import MemoryBackend
from invoke_retry.record import FINAL

pytestmark = pytest.mark.virtual_time


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage() for record in caplog.records if record.name.startswith("invoke_retry")
    ]


@pytest.mark.parametrize("mode", ["inline", "fallback", "background"])
async def test_O2_one_line_for_each_failed_attempt(
    mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Retries were silent, or each of them printed a page."""
    services, _ = registry(target=Failing().call)
    async with running(services) as retry:
        if mode == "background":
            await retry.invoke_async("target", repeats=3, seconds=1)
        elif mode == "fallback":
            await retry.invoke("target", repeats=3, seconds=1, async_fallback=True)
        else:
            with pytest.raises(Exception, match="gave up after 4 attempts"):
                await retry.invoke("target", repeats=3, seconds=1)
    said = lines(caplog)
    assert len(said) == 4
    for n, line in enumerate(said, 1):
        assert f"({n}/4)" in line
        assert "target" in line
        assert "ValueError" in line
        assert re.search(r"K0[0-9A-Z]{26}", line)
        assert "\n" not in line
    assert all(record.levelno == logging.WARNING for record in caplog.records)


async def test_O2_a_success_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    """A line for each success drowned the others."""

    async def target() -> None: ...

    caplog.set_level(logging.INFO)
    services, _ = registry(target=target)
    async with running(services) as retry:
        await retry.invoke("target", repeats=3, seconds=1)
        await retry.invoke_async("target", repeats=3, seconds=1, callback="told")
    assert lines(caplog) == []


async def test_O2_control_characters_are_escaped(caplog: pytest.LogCaptureFixture) -> None:
    """A name with a newline or an escape sequence forged lines of the log."""
    kind = type("Bad\n2026-01-01 ERROR forged\x1b[2J\u202e", (Exception,), {})
    kind.__module__ = "x\r\n\ud800"
    services, _ = registry(target=Failing(lambda: kind("\x1b[31m\n")).call)
    async with running(services) as retry:
        await retry.invoke_async("target", repeats=1, seconds=1, callback="told")
    assert len(lines(caplog)) == 2
    for line in lines(caplog):
        assert line.isprintable()


async def test_O2_a_hook_with_an_odd_repr_forges_no_line(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is shown in a line is shown escaped."""

    class Hook:
        def __call__(self, event: events.Event) -> None:
            raise ValueError("no")

        def __repr__(self) -> str:
            return "hook\n2026-01-01 ERROR forged\x1b[2J"

    services, _ = registry(target=Failing().call)
    async with running(services, hooks=[Hook()]) as retry:
        await retry.invoke_async("target", repeats=0, seconds=1)
    for line in lines(caplog):
        assert line.isprintable()


@pytest.mark.slow
async def test_O2_an_outage_does_not_flood_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """A dependency that was down for a night wrote 106 MB of the same line."""

    async def down() -> None:
        await asyncio.sleep(1)
        raise ConnectionError("down")

    async def refuses(outcome: dict[str, Any]) -> None:
        raise ConnectionError("down too")

    services, _ = registry(down=down)
    services.register("refuses", refuses)
    policy = RetryPolicy(repeats=1_000, seconds=60, jitter="full")
    async with running(services, callback_policy=policy, grace=0) as retry:
        for n in range(200):
            await retry.invoke_async(
                "down", policy=policy if n % 2 else RetryPolicy(0, 1), callback="refuses"
            )
        await asyncio.sleep(1_800)
        said = lines(caplog)
        failed = sum(len(found.history) for found in await retry.search(limit=1_000))
    assert failed > 3_000
    assert len(said) <= 2 * 31 * 60
    assert sum(map(len, said)) < 1_000_000
    suppressed = sum(int(found) for line in said for found in re.findall(r"\((\d+) more", line))
    attempts = sum("down failed" in line for line in said)
    assert attempts < failed
    assert suppressed > 0
    assert not any(record.exc_info for record in caplog.records)


class Counting:
    """A hook that keeps its own books."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.cids: dict[str, Counter[str]] = {}

    def __call__(self, event: events.Event) -> None:
        self.seen[type(event).__name__] += 1
        self.cids.setdefault(event.cid, Counter())[type(event).__name__] += 1


async def test_O3_the_books_balance() -> None:
    """Rescued and discarded jobs were in no counter; a timeout was filed as cancelled."""
    called: Counter[str] = Counter()

    async def target(n: int) -> int:
        called["target"] += 1
        await asyncio.sleep(n % 5)
        if n % 7 == 0:
            raise ValueError("no")
        if n % 11 == 0:
            raise SystemExit
        return n

    async def refuses(outcome: dict[str, Any]) -> None:
        called["refuses"] += 1
        raise ValueError("no")

    hook = Counting()
    services, mailbox = registry(target=target)
    services.register("refuses", refuses)
    accepted: list[str] = []
    refused = 0
    backend = MemoryBackend(keep=20, dead_retention=50, max_waiting=60)
    policy = RetryPolicy(repeats=2, seconds=1, timeout=3.5)
    async with running(
        services, backend=backend, hooks=[hook], callback_policy=RetryPolicy(1, 1), max_running=20
    ) as retry:
        for n in range(200):
            try:
                accepted.append(
                    await retry.invoke_async(
                        "target", n, policy=policy, callback=("told", "refuses", None)[n % 3]
                    )
                )
            except BackendFull:
                refused += 1
            if n % 10 == 0:
                with pytest.raises(CidConflict):
                    await retry.invoke_async(
                        "target", n + 1, policy=policy, cid=accepted[-1], context=1
                    )
            if n % 13 == 0:
                await asyncio.sleep(0.5)
                await retry.cancel(accepted[-1])
            assert sum((await retry.counts()).values()) == len(accepted)
        await asyncio.sleep(500)
        counts = await retry.counts()
        assert set(counts) == {
            "waiting", "running", "notifying", "succeeded", "failed", "cancelled", "dead", "parked",
        }  # fmt: skip
        assert sum(counts.values()) == len(accepted)
        assert len(await retry.search(limit=10_000)) <= 20
        assert retry.health().running == 0
    assert refused > 0
    assert len(accepted) + refused == 200
    assert hook.seen["Accepted"] == len(accepted)
    assert hook.seen["Outcome"] == len(accepted)
    assert hook.seen["AttemptStarted"] == called["target"]
    assert hook.seen["CallbackDelivered"] == len(mailbox.told)
    assert hook.seen["CallbackFailed"] == called["refuses"]
    assert hook.seen["Dead"] == counts["dead"]
    told = Counter(outcome.reason for outcome in mailbox.told)
    assert set(told) == {"succeeded", "exhausted", "permanent", "cancelled"}
    for cid, seen in hook.cids.items():
        assert seen["Accepted"] == seen["Outcome"] == 1, cid
        assert seen["AttemptStarted"] >= seen["AttemptFailed"]


class Fickle(BaseModel):
    """A payload that stops to fit: what waits with it is parked."""

    n: int
    is_refused: ClassVar[bool] = False

    @field_validator("n")
    @classmethod
    def _fits(cls, n: int) -> int:
        if Fickle.is_refused:
            raise ValueError("the model has changed")
        return n


@pytest.mark.parametrize("stay", [3, 30, 500])
async def test_O3_the_books_agree_with_the_logs_of_the_services(
    stay: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The store, the counters and what had really run each told another story."""
    called: Counter[str] = Counter()
    told: dict[str, list[CallbackPayload]] = {}

    async def target(payload: Fickle) -> int:
        called[current_call().cid] += 1
        match payload.n % 6:
            case 0:
                raise ValueError("no")
            case 1:
                raise asyncio.CancelledError
            case 2:
                await asyncio.sleep(100)
            case 3 if current_call().attempt == 1:
                raise RetryAfter(2)
            case 4:
                raise SystemExit
            case _:
                await asyncio.sleep(0.3)
        return payload.n

    async def moody(outcome: CallbackPayload) -> None:
        told.setdefault(outcome.call_cid, []).append(outcome)
        n: int = outcome.context
        if n % 7 == 0 or (n % 7 == 1 and len(told[outcome.call_cid]) < 2):
            raise ValueError("no")
        if n % 7 == 2:
            await asyncio.sleep(1e4)

    services = ServiceRegistry()
    services.register("target", target)
    services.register("moody", moody)
    retry = InvokeRetry(
        services, callback_policy=RetryPolicy(1, 2, timeout=3), max_running=15, grace=4
    )
    accepted: list[str] = []
    async with retry:
        for n in range(90):
            policy = RetryPolicy(
                repeats=n % 3, seconds=1, timeout=2, deadline=None if n % 5 else 4.5
            )
            asked: dict[str, Any] = {"callback": "moody" if n % 4 else None, "context": n}
            if n % 9 == 5:
                try:
                    got = await retry.invoke(
                        "target", {"n": n}, policy=policy, async_fallback=True, **asked
                    )
                except (RetriesExhausted, SystemExit, asyncio.CancelledError):
                    continue
                if isinstance(got, CorrelationId):
                    accepted.append(got)
            else:
                accepted.append(
                    await retry.invoke_async("target", {"n": n}, policy=policy, **asked)
                )
            if n % 10 == 9:
                await asyncio.sleep(0.1)
                await retry.cancel(accepted[-1])
                await retry.run_now(accepted[-2])
        await asyncio.sleep(stay)
        monkeypatch.setattr(Fickle, "is_refused", True)
        failed = await retry.search(state="failed", limit=5)
        accepted.extend([await retry.resubmit(found.call_cid) for found in failed])
        for found in await retry.search(state="dead", limit=3):
            assert await retry.redeliver(found.call_cid)
        await asyncio.sleep(1)
        counts = await retry.counts()
        assert sum(counts.values()) == len(accepted)
        assert (counts["parked"] > 0) == (counts["failed"] > 0)

    books = {found.call_cid: found for found in await retry.search(limit=1_000)}
    counts = await retry.counts()
    assert set(books) == set(accepted)
    assert counts == {state: sum(b.state == state for b in books.values()) for state in counts}
    assert not counts["waiting"] + counts["running"] + counts["parked"]
    said = "\n".join(r.getMessage() for r in caplog.records if "left with" in r.msg)
    for cid, found in books.items():
        assert found.attempts == called[cid], found
        assert len(found.history) == found.attempts
        for attempt in found.history:  # a timeout is no cancellation by a user
            if attempt.error is not None and attempt.error.type == "CancelledError":
                assert found.payload["n"] % 6 == 1 or found.reason == "cancelled"
        if found.callback is None:
            assert found.state in FINAL
            assert cid not in told
        elif found.state in FINAL:
            assert told[cid]
        else:
            assert found.state in ("dead", "notifying")
        assert (found.state == "notifying") <= (cid in said)
        assert len({outcome.model_dump_json() for outcome in told.get(cid, [])}) <= 1
    assert counts["cancelled"] > 0
