"""Kill and pause workers and servers under load, again and again, and see what the books say.

    python -m tests.jetstream.chaos --minutes 30 [--kinds workers,pauses,server,leader] [--cluster]
                                    [--seed N] [--act SECONDS]

An act is a store of its own: workers, which accept invocations, too, and one more caller meet what
its kind has in store for them; then all are left in peace, and must finish what is there.

    workers  SIGKILL and SIGTERM to workers
    pauses   SIGSTOP to a worker until its lease is over, then SIGCONT; and SIGKILL
    server   the server is killed, restarted in good order, or paused; and SIGKILL to workers
    leader   three servers: the one that leads the stream is killed, or any; and SIGKILL to workers

It ends with 1 if a promise was broken, and then leaves store and journal where they are.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import anyio
from chaos.books import Books, audit
from chaos.children import until
from chaos.journal import Journal
from chaos.tasks import CALLBACK_POLICY, REPEATS, make_services

from invoke_retry import BackendError, InvokeRetry
from invoke_retry.testing.nats_server import NatsCluster, NatsServer

from .caller import Caller, is_over
from .worker import GRACE, WorkerChild

STREAM = "orders"
LEASE = 4.0
WORKERS = 3
CALLERS = 4  # in each process
RATE = 6.0  # invocations a second of each caller
DRAIN_SECONDS = 180.0
KINDS = ("workers", "pauses", "server", "leader")

Blow = Callable[[], Coroutine[Any, Any, None]]


class Arena:
    """One store, the servers that keep it, and the processes on it.

    Args:
        kind: One of `KINDS`.
    """

    def __init__(self, folder: Path, kind: str, seed: int) -> None:
        self._folder = folder
        self._chance = random.Random(seed)
        self._journal = Journal(folder / "journal")
        self._cluster = NatsCluster(folder) if kind == "leader" else None
        self._nodes = (
            self._cluster.nodes if self._cluster else [NatsServer(folder / "server", name="n1")]
        )
        self._workers: list[WorkerChild] = []
        self._busy: set[int] = set()  # pids of workers that somebody is about to resume or await
        self.blows = Counter[str]()
        self._choice: Sequence[Blow] = {
            "workers": [self._kill_worker, self._kill_worker, self._dismiss_worker],
            "pauses": [self._kill_worker, self._pause_worker, self._pause_worker],
            "server": [
                self._kill_worker, self._kill_worker,
                self._kill_server, self._restart_server, self._pause_server,
            ],
            "leader": [self._kill_worker, self._kill_leader, self._kill_server],
        }[kind]  # fmt: skip

    async def act(self, seconds: float) -> Books:
        """So long it is rough; then what is left is finished, and the books are looked at."""
        async with AsyncExitStack() as stack:
            stack.callback(self._journal.close)
            stack.enter_context(self._cluster or self._nodes[0])
            stack.callback(self._end_workers)
            async with self._coordinator() as retry:
                await self._be_rough(retry, seconds)
                await self._be_peaceful(retry)
            async with anyio.create_task_group() as group:
                for worker in self._workers:
                    group.start_soon(self._see_leaving, worker)
        return audit(Journal(self._folder / "journal").lines(), REPEATS)

    def _coordinator(self) -> InvokeRetry:
        services = make_services(self._journal)
        return InvokeRetry(services, backend=self._url, callback_policy=CALLBACK_POLICY, work=False)

    @property
    def _url(self) -> str:
        addresses = ",".join(node.address for node in self._nodes)
        replicas = "&replicas=3" if self._cluster else ""
        return f"nats://{addresses}/{STREAM}?lease={LEASE:g}{replicas}"

    async def _be_rough(self, retry: InvokeRetry, seconds: float) -> None:
        end = time.monotonic() + seconds
        while len(self._workers) < WORKERS:
            self._start_worker(rate=RATE)
        async with anyio.create_task_group() as callers, anyio.create_task_group() as blows:
            for number in range(CALLERS):
                callers.start_soon(Caller(retry, self._journal, seed=number, rate=RATE).run)
            while time.monotonic() < end:
                await anyio.sleep(self._chance.uniform(0, 2))
                blow = self._chance.choice(self._choice)
                if blow in (self._kill_worker, self._dismiss_worker, self._pause_worker):
                    blows.start_soon(blow)
                else:
                    await blow()
            callers.cancel_scope.cancel()

    async def _be_peaceful(self, retry: InvokeRetry) -> None:
        for worker in tuple(self._workers):  # those that accept go on with it: they end here
            self._kill(worker)
        for _ in range(WORKERS - 1):
            self._start_worker(rate=0)
        accepted = {line.cid for line in self._journal.lines("accepted")}
        left = {line.cid for line in self._journal.lines("doubt", "accepted")}
        end = time.monotonic() + DRAIN_SECONDS
        while left and time.monotonic() < end:
            for cid in tuple(left):
                try:
                    if await is_over(retry, self._journal, cid, was_accepted=cid in accepted):
                        left.discard(cid)
                except BackendError:
                    await anyio.sleep(0.2)
            await anyio.sleep(0.1)
        for cid in left:
            found = await retry.get(cid)
            self._journal.write("error", text=f"{cid} did not come to an end: {found}")

    # What befalls them.

    async def _kill_worker(self) -> None:
        if worker := self._any_worker():
            self._kill(worker)
            self.blows["worker killed"] += 1
            self._start_worker(rate=RATE)

    async def _dismiss_worker(self) -> None:
        """It leaves in good order, and another one comes."""
        if worker := self._any_worker():
            self._workers.remove(worker)
            self._start_worker(rate=RATE)
            self.blows["worker left"] += 1
            try:
                await self._see_leaving(worker)
            finally:
                worker.kill()

    async def _pause_worker(self) -> None:
        """It is taken for dead, and then it is not."""
        if worker := self._any_worker():
            self._busy.add(worker.pid)
            try:
                await worker.freeze()
                self._journal.write("paused", number=worker.pid)
                self.blows["worker paused past its lease"] += 1
                await anyio.sleep(LEASE * self._chance.uniform(1.1, 2))
            finally:
                self._journal.write("resumed", number=worker.pid)
                worker.resume()
                self._busy.discard(worker.pid)

    async def _kill_server(self) -> None:
        await self._be_without(self._chance.choice(self._nodes), NatsServer.kill, "server killed")

    async def _restart_server(self) -> None:
        await self._be_without(self._nodes[0], NatsServer.stop, "server restarted")

    async def _kill_leader(self) -> None:
        assert self._cluster is not None
        leader = await anyio.to_thread.run_sync(self._cluster.leader_of, STREAM)
        await self._be_without(leader, NatsServer.kill, "leader killed")

    async def _be_without(
        self, node: NatsServer, end: Callable[[NatsServer], None], name: str
    ) -> None:
        self._journal.write("down")
        self.blows[name] += 1
        await anyio.to_thread.run_sync(end, node)
        # a majority needs some seconds to find out, and to choose another leader
        await anyio.sleep(self._chance.uniform(0, 8 if self._cluster else 3))
        await anyio.to_thread.run_sync(node.start)
        self._journal.write("up")
        await anyio.sleep(self._chance.uniform(0, 4))

    async def _pause_server(self) -> None:
        self._journal.write("down")
        self.blows["server paused"] += 1
        self._nodes[0].pause()
        await anyio.sleep(self._chance.uniform(0.5, 2 * LEASE))
        self._nodes[0].resume()
        self._journal.write("up")

    # The workers.

    def _start_worker(self, *, rate: float) -> None:
        seed = self._chance.randrange(2**32)
        self._workers.append(
            WorkerChild(
                self._folder, self._journal, url=self._url, seed=seed, rate=rate, callers=CALLERS
            )
        )

    def _any_worker(self) -> WorkerChild | None:
        free = [worker for worker in self._workers if worker.pid not in self._busy]
        return self._chance.choice(free) if free else None

    def _kill(self, worker: WorkerChild) -> None:
        if worker.status is not None:
            self._journal.write("error", text=f"worker {worker.pid} ended: {worker.status}")
        self._workers.remove(worker)
        worker.kill()

    async def _see_leaving(self, worker: WorkerChild) -> None:
        await worker.ready()
        worker.send(signal.SIGTERM)
        with suppress(AssertionError):
            await until(lambda: worker.status is not None, GRACE + 5 + LEASE)
        if worker.status != 0:
            text = f"worker {worker.pid} did not leave in good order: {worker.status}"
            self._journal.write("error", text=text)

    def _end_workers(self) -> None:
        for worker in self._workers:
            worker.kill()


def acts(kinds: list[str], seconds: float, act: float, seed: int) -> tuple[Books, Counter[str]]:
    """Play until the time is up, or a promise is broken."""
    chance, books, blows = random.Random(seed), Books(), Counter[str]()
    end, number = time.monotonic() + seconds, 0
    while number == 0 or (books.is_sound and time.monotonic() < end):
        kind = kinds[number % len(kinds)]
        number += 1
        folder = Path(tempfile.mkdtemp(prefix="chaos-"))
        arena = Arena(folder, kind, chance.randrange(2**32))
        found = asyncio.run(arena.act(min(act, seconds)))
        books.add(found)
        blows += arena.blows
        if not found.is_sound:
            print(f"act {number} ({kind}): kept in {folder}", flush=True)
            continue
        shutil.rmtree(folder, ignore_errors=True)
        print(
            f"act {number} ({kind}): {found.accepted} accepted, {found.attempts} attempts, "
            f"{found.callbacks} callbacks, {found.repeated} repeated", flush=True,
        )  # fmt: skip
    return books, blows


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Kill what works on one stream.")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--act", type=float, default=40, help="seconds of each store")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--cluster", action="store_true", help="the kind leader alone")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    options = parser.parse_args(arguments)
    logging.getLogger("invoke_retry").addHandler(logging.NullHandler())
    kinds: list[str] = ["leader"] if options.cluster else options.kinds.split(",")
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"no kind is named {', '.join(unknown)}; there are {', '.join(KINDS)}")
    print(f"seed {options.seed}, {', '.join(kinds)}", flush=True)
    began = time.monotonic()
    books, blows = acts(kinds, options.minutes * 60, options.act, options.seed)
    rows: dict[str, object] = {
        **dict(sorted(blows.items())),
        "seconds": round(time.monotonic() - began, 1),
        "accepted": books.accepted,
        "attempts": books.attempts,
        "callbacks": books.callbacks,
        "repeated callbacks": books.repeated,
        "lost": books.number("lost"),
        "flipped": books.number("flipped", "other content"),
        "all problems": sum(map(len, books.problems.values())),
    }
    for name, value in rows.items():
        print(f"{name:32}{value:>10}")
    if not books.is_sound:
        print(books.shown())
    return 0 if books.is_sound else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
