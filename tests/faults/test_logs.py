"""Logs and books: one line for each failed attempt, bounded, and the sums are right."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from typing import Any

import pytest
from fault_help import Failing, registry, running

from invoke_retry import RetryPolicy, events

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
                "down", policy=policy if n % 2 else None, callback="refuses",
                **({} if n % 2 else {"repeats": 0, "seconds": 1}),
            )  # fmt: skip
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
