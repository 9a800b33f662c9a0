"""A process under a steady load: `python -m soak.worker FOLDER OPTIONS`.

It leaves in good order on SIGTERM. What it knows of its store is in the file `status`, twice a
second; what it has begun and what was accepted is in the journal.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path
from typing import Any, Final

import httpx
from chaos.journal import Journal
from chaos.lifeline import end_with_parent

from invoke_retry import (
    CallbackPayload,
    CorrelationId,
    InvokeRetry,
    RetriesExhausted,
    RetryAfter,
    ServiceRegistry,
)

from .orders import CALLBACK_POLICY, POLICY, Order, cid, mode, order

# few at a time: with many waiting for a connection, the HTTP client is what is measured
CALLERS: Final = 16
MAX_RUNNING: Final = 16
GRACE: Final = 5.0
COLLECT_EVERY: Final = 30.0  # seconds; a full collection stops all else
UNFINISHED: Final = ("waiting", "running", "notifying")


class Refused(Exception):
    """The server will never take this order."""


class Shop:
    """The services, which speak HTTP."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def deliver(self, order: Order) -> dict[str, int]:
        answer = await self._http.post("/deliver", content=order.model_dump_json())
        if answer.status_code == 404:
            raise Refused(f"nobody knows where order {order.number} should go")
        if seconds := answer.headers.get("Retry-After"):
            raise RetryAfter(float(seconds))
        answer.raise_for_status()
        return {"status": answer.status_code}

    async def tell(self, outcome: CallbackPayload) -> None:
        (await self._http.post("/told", content=outcome.model_dump_json())).raise_for_status()

    def services(self) -> ServiceRegistry:
        registry = ServiceRegistry()
        registry.register("deliver", self.deliver, policy=POLICY, give_up_on=Refused)
        registry.register("tell", self.tell)
        return registry


class Life:
    """What one process does from its start to its end.

    Args:
        rate: Invocations a second; 0: none but those that are in doubt.
        first: The number of the first order that nobody has begun.
        doubts: Orders that were begun by a process which could not say what became of them.
        drain: Leave when nothing is unfinished, else on SIGTERM alone.
    """

    def __init__(
        self, folder: Path, *, server: str, store: str, rate: float, first: int,
        doubts: list[int], drain: bool,
    ) -> None:  # fmt: skip
        self._status = folder / "status"
        self._journal = Journal(folder / "journal")
        self._server, self._store, self._rate, self._drain = server, store, rate, drain
        self._numbers: Iterator[int] = chain(doubts, count(first) if rate else ())
        self._inline = Counter[str]()
        self._leave = asyncio.Event()
        self._objects = 0

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._leave.set)
        async with (
            httpx.AsyncClient(base_url=self._server, timeout=30) as http,
            InvokeRetry(
                Shop(http).services(), backend=self._store, callback_policy=CALLBACK_POLICY,
                max_running=MAX_RUNNING, grace=GRACE,
            ) as retry,
        ):  # fmt: skip
            telling = asyncio.create_task(self._tell_status(retry))
            callers = asyncio.create_task(self._call(retry))
            if self._drain:
                await callers
            else:
                await self._leave.wait()
                callers.cancel()
                await asyncio.wait([callers])
            if self._drain or not retry.is_durable:
                await self._until_finished(retry)
            telling.cancel()
            await asyncio.wait([telling])
            await self._write_status(retry)

    async def _call(self, retry: InvokeRetry) -> None:
        """At a steady pace, however long each takes: as callers from outside do."""
        loop, free = asyncio.get_running_loop(), asyncio.Semaphore(CALLERS)
        next_at = loop.time()
        async with asyncio.TaskGroup() as group:
            for number in self._numbers:
                await free.acquire()
                task = group.create_task(self._invoke(retry, number))
                task.add_done_callback(lambda _: free.release())
                if self._rate:
                    next_at = max(next_at + 1 / self._rate, loop.time() - 1)
                    await asyncio.sleep(next_at - loop.time())

    async def _invoke(self, retry: InvokeRetry, number: int) -> None:
        asked = order(number)
        if mode(number) == "inline":
            try:
                await retry.invoke("deliver", asked)
                self._inline["succeeded"] += 1
            except (RetriesExhausted, Refused):
                self._inline["failed"] += 1
            return
        self._journal.write("begun", number=number)
        more: dict[str, Any] = {
            "callback": "tell", "cid": cid(number),
            "context": {"number": number, "kind": asked.kind},
        }  # fmt: skip
        try:
            if mode(number) == "fallback":
                answer = await retry.invoke("deliver", asked, async_fallback=True, **more)
            else:
                answer = await retry.invoke_async("deliver", asked, **more)
        except Refused:
            answer = None
        is_accepted = isinstance(answer, CorrelationId)
        self._journal.write("accepted" if is_accepted else "done", cid(number), number)

    async def _until_finished(self, retry: InvokeRetry) -> None:
        counts = await retry.counts()
        while any(counts[state] for state in UNFINISHED):
            await asyncio.sleep(0.1)
            counts = await retry.counts()

    async def _tell_status(self, retry: InvokeRetry) -> None:
        loop, count_at = asyncio.get_running_loop(), 0.0
        while True:
            if loop.time() >= count_at:
                count_at = loop.time() + COLLECT_EVERY
                gc.collect()
                self._objects = len(gc.get_objects())
            await self._write_status(retry)
            await asyncio.sleep(0.5)

    async def _write_status(self, retry: InvokeRetry) -> None:
        told = {"counts": await retry.counts(), "inline": self._inline, "objects": self._objects}
        other = self._status.with_suffix(".new")
        other.write_text(json.dumps(told))
        other.replace(self._status)


def main(folder: str, options: str) -> None:
    end_with_parent(os.getppid(), 86_400)
    logging.getLogger("invoke_retry").addHandler(logging.NullHandler())
    for name in ("invoke_retry", "httpx"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        asyncio.run(Life(Path(folder), **json.loads(options)).run())
    except BaseException:
        Journal(Path(folder) / "journal").write("error", text=traceback.format_exc()[-2_000:])
        raise


if __name__ == "__main__":
    main(*sys.argv[1:])
