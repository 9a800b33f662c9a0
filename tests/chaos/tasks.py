"""The services of the chaos tests: a target that does as it is told, and a callback; both tell."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Literal

from pydantic import BaseModel

from invoke_retry import CallbackPayload, RetryPolicy, ServiceRegistry, current_call

from .journal import Journal
from .points import Trigger, kill_self

REPEATS = 4
POLICY = RetryPolicy(repeats=REPEATS, seconds=0.01)
CALLBACK_POLICY = RetryPolicy(repeats=1000, seconds=0.01)


class Task(BaseModel):
    """What the target does: wait, then fail in the first *fails* attempts, then succeed.

    Attributes:
        only_first: Only the first attempt waits.
    """

    seconds: float = 0
    only_first: bool = False
    fails: int = 0
    how: Literal["wait", "block", "kill"] = "wait"


def make_services(
    journal: Journal, trigger: Trigger | None = None, *, flaky_callbacks: bool = False
) -> ServiceRegistry:
    """`work` and `told`."""
    services, trigger = ServiceRegistry(), trigger or Trigger(journal)

    @services.service()
    async def work(task: Task) -> dict[str, int]:
        call = current_call()
        journal.write("began", call.cid, call.attempt)
        try:
            if call.attempt == 1 or not task.only_first:
                await _spend(task, journal)
        except asyncio.CancelledError:
            journal.write("ended", call.cid, call.attempt, "cut")
            raise
        is_failing = call.attempt <= task.fails
        journal.write("ended", call.cid, call.attempt, "failed" if is_failing else "ok")
        trigger.passing("before target returns")
        if is_failing:
            raise ValueError(f"attempt {call.attempt} is to fail")
        return {"attempt": call.attempt}

    @services.service()
    async def told(outcome: CallbackPayload) -> None:
        call = current_call()
        trigger.passing("before callback")
        if flaky_callbacks and random.random() < 0.1:
            raise ConnectionError("nobody takes it")
        await asyncio.sleep(0)
        journal.write("told", call.cid, call.attempt, outcome.model_dump_json())
        trigger.passing("after callback")

    return services


async def _spend(task: Task, journal: Journal) -> None:
    if task.how == "kill":
        await asyncio.sleep(task.seconds)
        kill_self(journal, "poison")
    elif task.how == "block":
        time.sleep(task.seconds)  # noqa: ASYNC251  - the fault that is tested
    else:
        await asyncio.sleep(task.seconds)
