"""A process under load on one store, for as long as it lives; and one that finishes the rest."""

from __future__ import annotations

import asyncio
import logging
import random
import traceback
from pathlib import Path

from invoke_retry import CorrelationId, InvokeRetry
from invoke_retry.backends import SQLiteBackend

from . import points
from .journal import Journal
from .points import Trigger
from .tasks import CALLBACK_POLICY, POLICY, Task, make_services

CALLERS = 6
UNFINISHED = ("waiting", "running", "notifying")


class Worker:
    """Accepts, executes and calls back.

    Args:
        most: How many invocations it submits.
    """

    def __init__(self, folder: Path, *, lease: float, seed: int, most: int = 60) -> None:
        self._journal = Journal(folder / "journal")
        self._path = folder / "retries.db"
        self._lease = lease
        self._random = random.Random(seed)
        self._left = most

    def coordinator(self, trigger: Trigger | None = None) -> InvokeRetry:
        """One that is to be entered."""
        return InvokeRetry(
            make_services(self._journal, trigger, flaky_callbacks=True),
            backend=SQLiteBackend(self._path, lease=self._lease),
            callback_policy=CALLBACK_POLICY,
        )

    def run(self, point: str = "", passes: int = 1) -> None:
        """Work until killed: by somebody else, or at the n-th pass of a point."""
        trigger = Trigger(self._journal, point, passes)
        points.install(trigger)
        self._guard(self._work(trigger))

    def drain(self) -> None:
        """Finish what is there, and write down how it ended."""
        self._guard(self._drain())

    def _guard(self, work: object) -> None:
        logging.getLogger("invoke_retry").addHandler(logging.NullHandler())
        assert asyncio.iscoroutine(work)
        try:
            asyncio.run(work)
        except BaseException:
            self._journal.write("error", text=traceback.format_exc())
            raise

    async def _work(self, trigger: Trigger) -> None:
        async with self.coordinator(trigger) as retry, asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(self._call(retry))
            await asyncio.Event().wait()

    async def _call(self, retry: InvokeRetry) -> None:
        chance = self._random
        while self._left > 0:
            self._left -= 1
            fails = chance.choice((0, 0, 0, 1, 2, 9))
            task = Task(seconds=chance.choice((0, 0, 0.002, 0.01)), fails=fails)
            context = {"left": self._left}
            if chance.random() < 0.3:
                cid = await retry.invoke(
                    "work", task, policy=POLICY, async_fallback=True, callback="told",
                    context=context,
                )  # fmt: skip
            else:
                cid = await retry.invoke_async(
                    "work", task, policy=POLICY, callback="told", context=context
                )
            if isinstance(cid, CorrelationId):
                self._journal.write("accepted", cid)
                if chance.random() < 0.3:
                    await self._look(retry, cid, chance.choice((0.005, 0.1)))
            await asyncio.sleep(chance.choice((0, 0.001, 0.005)))

    async def _look(self, retry: InvokeRetry, cid: str, seconds: float) -> None:
        try:
            outcome = await retry.wait(cid, timeout=seconds)
        except TimeoutError:
            return
        self._journal.write("seen", cid, text=outcome.model_dump_json())

    async def _drain(self) -> None:
        async with self.coordinator() as retry:
            counts = await retry.counts()
            while any(counts[state] for state in UNFINISHED):
                await asyncio.sleep(0.01)
                counts = await retry.counts()
            last: str | None = None
            while page := await retry.search(limit=500, after=last):
                for found in page:
                    assert (await retry.get(found.call_cid)).ok == found.ok
                    await self._look(retry, found.call_cid, 5)
                last = page[-1].call_cid
            self._check_counts(counts)

    def _check_counts(self, counts: dict[str, int]) -> None:
        """What the store counts is what stands in it; nobody deletes, so nothing was pruned."""
        accepted = {line.cid for line in self._journal.lines("accepted")}
        seen = {line.cid for line in self._journal.lines("seen")}
        assert accepted <= seen, accepted - seen
        ended = sum(counts[state] for state in ("succeeded", "failed", "cancelled"))
        assert (ended, sum(counts.values())) == (len(seen), len(seen)), (counts, len(seen))
