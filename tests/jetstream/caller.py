"""One that invokes, asks and decides, whatever becomes of the server meanwhile."""

from __future__ import annotations

import random
from contextlib import suppress

import anyio
from chaos.journal import Journal
from chaos.tasks import REPEATS, Task

from invoke_retry import (
    BackendError,
    CorrelationId,
    InvocationNotFound,
    InvokeRetry,
    RetriesExhausted,
    RetryPolicy,
)

SECONDS = (0, 0, 0.002, 0.01, 0.3, 1.0)
WAITS = (0, 0.01, 0.3, 1.5)
FAILS = (0, 0, 0, 1, 2, 9)
_PAUSE = 0.2


class Caller:
    """Invokes at random, and writes down what was accepted and what is in doubt.

    Args:
        rate: How many invocations a second, if nothing is slow.
    """

    def __init__(self, retry: InvokeRetry, journal: Journal, *, seed: int, rate: float) -> None:
        self._retry = retry
        self._journal = journal
        self._chance = random.Random(seed)
        self._rate = rate

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            await anyio.sleep(self._chance.expovariate(self._rate))
            await self._one()

    async def _one(self) -> None:
        chance, cid = self._chance, self._retry.new_cid()
        task = Task(seconds=chance.choice(SECONDS), fails=chance.choice(FAILS))
        policy = RetryPolicy(repeats=REPEATS, seconds=chance.choice(WAITS))
        self._journal.write("doubt", cid)
        if chance.random() < 0.2:
            if not await self._fall_back(cid, task, policy):
                return
        else:
            await self._accept(cid, task, policy)
        self._journal.write("accepted", cid)
        with suppress(BackendError, TimeoutError):
            await self._decide(cid)

    async def _fall_back(self, cid: CorrelationId, task: Task, policy: RetryPolicy) -> bool:
        try:
            answer = await self._retry.invoke(
                "work", task, policy=policy, async_fallback=True, callback="told", cid=cid
            )
        except (BackendError, RetriesExhausted):
            return False
        return isinstance(answer, CorrelationId)

    async def _accept(self, cid: CorrelationId, task: Task, policy: RetryPolicy) -> None:
        """Until it is accepted: the same cid and the same request is the same invocation."""
        while True:
            try:
                await self._retry.invoke_async(
                    "work", task, policy=policy, callback="told", cid=cid
                )
                return
            except BackendError:
                await anyio.sleep(_PAUSE)

    async def _decide(self, cid: CorrelationId) -> None:
        what = self._chance.random()
        if what < 0.05:
            if await self._retry.cancel(cid):
                self._journal.write("cancelled", cid)
                await self._look(cid, 5)
        elif what < 0.1:
            await self._retry.run_now(cid)
        elif what < 0.3:
            await self._look(cid, self._chance.choice((0.01, 0.3)))

    async def _look(self, cid: CorrelationId, seconds: float) -> None:
        outcome = await self._retry.wait(cid, timeout=seconds)
        self._journal.write("seen", cid, text=outcome.model_dump_json())


async def is_over(retry: InvokeRetry, journal: Journal, cid: str, *, was_accepted: bool) -> bool:
    """Whether an invocation has ended; what became of it is written down.

    One that was in doubt and is in the store was accepted, too.
    """
    try:
        found = await retry.get(cid)
    except InvocationNotFound:
        if was_accepted:
            journal.write("error", text=f"{cid} was accepted, and is not in the store")
        return True
    if found.state not in ("succeeded", "failed", "cancelled"):
        return False
    outcome = await retry.wait(cid, timeout=30)
    assert outcome.ok == found.ok == (found.state == "succeeded"), found
    if not was_accepted:
        journal.write("accepted", cid)
    journal.write("seen", cid, text=outcome.model_dump_json())
    return True
