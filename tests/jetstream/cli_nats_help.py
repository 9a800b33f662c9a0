"""Stores on a NATS server for the tests of the command line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import anyio
from cli_help import SECRET, reaches, services

from invoke_retry import InvokeRetry, RetryPolicy, ServiceRegistry

from .nats_help import Raw

PASSWORD = "s3cr3t-p4ss"
T = TypeVar("T")
ALL = ("echo", "fail", "hold", "tell", "deaf")


def coordinator(url: str, *names: str, **options: Any) -> InvokeRetry:
    """A coordinator of these services, by default of all, that gives up on a callback soon."""
    registry, known = ServiceRegistry(), services()
    for name in names or ALL:
        registry.register(name, known[name].function)
    return InvokeRetry(
        registry, backend=url, callback_policy=RetryPolicy(repeats=1, seconds=0), name="shop",
        **options,
    )  # fmt: skip


async def in_thread(function: Callable[..., T], *arguments: object, **named: object) -> T:
    """Have a command run while a coordinator goes on here."""
    return await anyio.to_thread.run_sync(partial(function, *arguments, **named))


async def make_varied(url: str, times: int = 1) -> dict[str, list[str]]:
    """Invocations of each state at rest, parked ones apart; their cids, oldest first."""
    cids: dict[str, list[str]] = {
        state: [] for state in ("succeeded", "failed", "dead", "waiting", "cancelled")
    }
    async with coordinator(url) as retry:
        for n in range(times):
            order = {"order": n, "password": SECRET, "lines": [{"api_key": SECRET, "n": 1}]}
            for state, target, repeats, callback in (
                ("succeeded", "echo", 0, None),
                ("failed", "fail", 0, "tell"),
                ("dead", "echo", 0, "deaf"),
                ("waiting", "fail", 3, None),
                ("cancelled", "hold", 3, None),
            ):
                cid = await retry.invoke_async(
                    target, order, repeats=repeats, seconds=3_600, callback=callback
                )
                cids[state].append(cid)
        for known in cids["cancelled"]:
            await reaches(retry, known, "running")
            assert await retry.cancel(known)
        for known in cids["waiting"]:
            async with asyncio.timeout(20):  # it waits before its first attempt, too
                while not (await retry.get(known)).history:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
        for state, some in cids.items():
            for known in some:
                await reaches(retry, known, state)
    return cids


async def make_parked(url: str, times: int) -> list[str]:
    """Invocations of a service that no working process has."""
    async with coordinator(url, work=False) as asks:
        cids = [await asks.invoke_async("hold", n, repeats=0, seconds=0) for n in range(times)]
        async with coordinator(url, "echo"):
            for cid in cids:
                await reaches(asks, cid, "parked")
    return list(cids)


async def make_due(url: str, *targets: str) -> list[str]:
    """Invocations that are due, and for which no process works."""
    async with coordinator(url, work=False) as asks:
        return [await asks.invoke_async(name, 1, repeats=0, seconds=0) for name in targets]


async def rewrite(url: str, cid: str, **fields: Any) -> None:
    """Change what stands in the newest message of an invocation, by hand."""
    raw = Raw(url)
    subject, _, body = await raw.newest(cid)
    first, _, rest = body.partition(b"\n")
    await raw.put(subject, json.dumps({**json.loads(first), **fields}).encode() + b"\n" + rest)


async def due_of(url: str, cid: str) -> float:
    """When an invocation is due, as its message says."""
    _, _, body = await Raw(url).newest(cid)
    return float(json.loads(body.partition(b"\n")[0])["due"])


async def seen(url: str) -> tuple[int, int, list[str]]:
    """What would show that somebody has changed anything: last message, consumers, streams."""
    raw = Raw(url)
    told = await raw.api(f"STREAM.INFO.{raw.stream}")
    names = (await raw.api("STREAM.NAMES"))["streams"]
    return told["state"]["last_seq"], told["state"]["consumer_count"], sorted(names)
