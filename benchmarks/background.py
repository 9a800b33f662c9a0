"""Background, in memory: from accept to the end of the callback."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio

from benchmarks.rows import Budget, Section
from benchmarks.timing import race
from invoke_retry import InvokeRetry, ServiceRegistry

OURS, TASK, ANYIO_TASK = "invoke_retry", "a task of asyncio's group", "a task of anyio's group"
PAYLOAD: dict[str, Any] = {"order": 4711, "lines": [1, 2, 3], "customer": "ACME", "urgent": True}
CONTEXT: dict[str, Any] = {"request": "9f0c", "tenant": 7}


async def deliver(order: dict[str, Any]) -> dict[str, Any]:
    return order


class Inbox:
    """The callback: counts, and says when the expected number is reached."""

    def __init__(self) -> None:
        self.expected = 0
        self.complete = asyncio.Event()

    async def take(self, outcome: dict[str, Any]) -> None:
        assert outcome["ok"]
        self.expected -= 1
        if not self.expected:
            self.complete.set()


class Load:
    """A coordinator with a target and a callback, and a way to put many through it."""

    def __init__(self) -> None:
        self.inbox = Inbox()
        services = ServiceRegistry()
        services.register("deliver", deliver)
        services.register("take", self.inbox.take)
        self.retry = InvokeRetry(services)

    async def run(self, invocations: int) -> None:
        """Have so many accepted, and wait until their callbacks are done."""
        self.inbox.expected = invocations
        self.inbox.complete.clear()
        invoke_async = self.retry.invoke_async
        for _ in range(invocations):
            await invoke_async(
                "deliver", PAYLOAD, repeats=3, seconds=1, callback="take", context=CONTEXT
            )
        await self.inbox.complete.wait()


async def task_group(tasks: int) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(tasks):
            group.create_task(deliver(PAYLOAD))


async def anyio_task_group(tasks: int) -> None:
    async with anyio.create_task_group() as group:
        for _ in range(tasks):
            group.start_soon(deliver, PAYLOAD)


async def background(rounds: int, *, at_a_time: int = 2_000) -> Section:
    load = Load()
    cases = {OURS: load.run, TASK: task_group, ANYIO_TASK: anyio_task_group}
    async with load.retry:
        times = await race(cases, calls=at_a_time, rounds=rounds)
    return Section(
        "background",
        "Background in memory, from accept to the end of the callback",
        ("invoke-retry", "anyio"),
        [
            times.row(
                "accept to callback done / one TaskGroup task",
                OURS,
                TASK,
                Budget("<=", 6.5),
                beside=[TASK, ANYIO_TASK],
            )
        ],
    )
