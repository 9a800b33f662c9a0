"""500 deliveries to an unreliable HTTP server, by a process that is killed in the middle, often.

    python examples/survive_restart.py

This script serves httpbin on a loopback socket (see http_delivery.py for what an order meets there)
and starts itself again as a worker, which accepts the orders, delivers them and tells a callback of
each. Six times it sends `kill -9` to the worker, and starts another one.

At the end the books are balanced: what the store says, what the workers have noted in a log of
their own, and what the server has seen. The script ends with exit code 1 if they differ.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from http_delivery import KINDS, POLICY, Order, Receipt, Refused, Warehouse, http_server

from invoke_retry import CallbackPayload, CorrelationId, Invocation, InvokeRetry, ServiceRegistry

BACKEND = "sqlite:///deliveries.db"  # a file in the working directory

ORDERS = 500
AT_ONCE = 5
PAUSE = 0.08  # seconds until the next orders come in
KILLS = [ORDERS * part // 6 for part in range(1, 7)]  # after how many accepted orders
LOG = Path("log.jsonl")


def cid_of(number: int) -> CorrelationId:
    return CorrelationId.from_key(f"order {number}")


# The worker, which does not know that it will be killed.


class Log:
    """What the worker has seen, in a file: a line is there as a whole or not at all."""

    def __init__(self) -> None:
        self.file = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, what: str, order: int, **more: str) -> None:
        os.write(self.file, json.dumps({"what": what, "order": order, **more}).encode() + b"\n")


class NotingWarehouse(Warehouse):
    def __init__(self, http: httpx.AsyncClient, log: Log) -> None:
        super().__init__(http)
        self.log = log

    async def deliver(self, order: Order) -> Receipt:
        self.log.note("attempt", order.number)
        return await super().deliver(order)


class Office:
    """The callback: notes the outcome, and has something to do afterwards."""

    def __init__(self, log: Log) -> None:
        self.log = log

    async def on_outcome(self, outcome: CallbackPayload) -> None:
        self.log.note("callback", outcome.context["order"], outcome=outcome.model_dump_json())
        await asyncio.sleep(0.02)  # if the process is killed here, the next one tells it again


async def work(url: str) -> None:
    logging.getLogger("invoke_retry").setLevel(logging.CRITICAL)  # the table says it all
    accepted = {line["order"] for line in read_log() if line["what"] == "accepted"}
    todo = [number for number in range(1, ORDERS + 1) if number not in accepted]
    log = Log()
    async with httpx.AsyncClient(base_url=url, timeout=30) as http:
        services = ServiceRegistry()
        services.register(
            "warehouse.deliver", NotingWarehouse(http, log).deliver,
            policy=POLICY, give_up_on=Refused,
        )  # fmt: skip
        services.register("office.on_outcome", Office(log).on_outcome)
        async with InvokeRetry(services, backend=BACKEND, max_running=50) as retry:
            for first in range(0, len(todo), AT_ONCE):
                # what is accepted at the same time costs one write to the disk
                await asyncio.gather(
                    *(accept(retry, log, number) for number in todo[first : first + AT_ONCE])
                )
                await asyncio.sleep(PAUSE)
            async with asyncio.timeout(60):
                while is_unfinished(await retry.counts()):  # noqa: ASYNC110 (no event tells this)
                    await asyncio.sleep(0.1)


async def accept(retry: InvokeRetry, log: Log, number: int) -> None:
    # if the process before us was killed when this was accepted, and not yet noted:
    # the same cid and the same request is the same invocation
    await retry.invoke_async(
        "warehouse.deliver", Order(number=number, kind=KINDS[number % len(KINDS)]),
        callback="office.on_outcome", context={"order": number}, cid=cid_of(number),
    )  # fmt: skip
    log.note("accepted", number)


def is_unfinished(counts: dict[str, int]) -> bool:
    return counts["waiting"] + counts["running"] + counts["notifying"] > 0


# Who starts it, and kills it.


def read_log() -> list[dict[str, Any]]:
    return [json.loads(line) for line in LOG.read_bytes().splitlines()] if LOG.exists() else []


def work_and_kill(url: str) -> list[int]:
    """Run workers until one of them finds that all is done; the exit codes of all."""
    exit_codes: list[int] = []
    for limit in [*KILLS, None]:
        worker = subprocess.Popen([sys.executable, __file__, url])
        try:
            while worker.poll() is None:
                accepted = sum(line["what"] == "accepted" for line in read_log())
                if limit is not None and accepted >= limit:
                    os.kill(worker.pid, signal.SIGKILL)
                    worker.wait()
                    print(f"  killed process {worker.pid} when {accepted} orders were accepted")
                time.sleep(0.05)
        finally:
            worker.kill()
            exit_codes.append(worker.wait())
    return exit_codes


async def read_store() -> tuple[dict[str, int], list[Invocation]]:
    """What any process may ask, one that runs nothing itself, too."""
    async with InvokeRetry(ServiceRegistry(), backend=BACKEND, work=False) as retry:
        return await retry.counts(), await retry.search(limit=2 * ORDERS)


# The table.

COLUMNS = (
    "accepted", "succeeded", "failed", "attempts", "died", "requests", "callbacks", "repeated"
)  # fmt: skip


class Books:
    def __init__(
        self, invocations: list[Invocation], log: list[dict[str, Any]], requests: Counter[int]
    ) -> None:
        self.problems: list[str] = []
        self.stored = {each.context["order"]: each for each in invocations}
        self.accepted = [line["order"] for line in log if line["what"] == "accepted"]
        self.begun = Counter(line["order"] for line in log if line["what"] == "attempt")
        self.told: defaultdict[int, list[str]] = defaultdict(list)
        for line in log:
            if line["what"] == "callback":
                self.told[line["order"]].append(line["outcome"])
        self.requests = requests

    def row(self, numbers: list[int]) -> tuple[int, ...]:
        stored = [self.stored[number] for number in numbers]
        return (
            sum(number in numbers for number in self.accepted),
            sum(each.state == "succeeded" for each in stored),
            sum(each.state == "failed" for each in stored),
            sum(each.attempts for each in stored),
            sum(map(died, stored)),
            sum(self.requests[number] for number in numbers),
            sum(len(self.told[number]) for number in numbers),
            sum(len(self.told[number]) - 1 for number in numbers),
        )

    def check(self, fact: bool, problem: str) -> None:
        if not fact:
            self.problems.append(problem)

    def check_order(self, number: int) -> None:
        each, told = self.stored[number], self.told[number]
        ended = each.attempts - died(each)
        self.check(each.call_cid == cid_of(number), f"order {number} has a strange cid")
        self.check(
            ended <= self.requests[number] <= self.begun[number] <= each.attempts
            and each.attempts == len(each.history),
            f"the attempts of order {number} do not add up: {each.attempts} were counted, "
            f"{died(each)} died, {self.begun[number]} are noted, {self.requests[number]} were seen",
        )
        self.check(1 <= len(told) <= each.deliveries, f"order {number}: {len(told)} callbacks")
        self.check(len(set(told)) <= 1, f"order {number} has two outcomes: {told}")
        for text in told[:1]:
            outcome = CallbackPayload.model_validate_json(text)
            self.check(
                outcome.ok == each.ok == (each.state == "succeeded")
                and outcome.call_cid == each.call_cid
                and outcome.attempts == each.attempts,
                f"the callback of order {number} does not fit what is stored: {outcome}",
            )


def died(invocation: Invocation) -> int:
    """How many of its attempts ended with their process."""
    return sum(
        attempt.error is not None and attempt.error.type == "WorkerDied"
        for attempt in invocation.history
    )


def balance(books: Books, counts: dict[str, int], exit_codes: list[int]) -> None:
    """Print the table, and check that it adds up: every row, and every single order."""
    numbers = list(range(1, ORDERS + 1))
    if sorted(books.stored) != numbers or sorted(books.accepted) != numbers:
        books.check(
            False,
            f"of {ORDERS} orders {len(books.stored)} are in the store, and {len(books.accepted)} "
            "are noted as accepted",
        )
        return
    rows: dict[str, tuple[int, ...]] = {
        kind: books.row([n for n in numbers if KINDS[n % len(KINDS)] == kind]) for kind in KINDS
    }
    total = rows["all"] = tuple(map(sum, zip(*rows.values(), strict=True)))
    print(f"\n{'':9}" + "".join(f"{name:>11}" for name in COLUMNS))
    for name, figures in rows.items():
        print(("\n" if name == "all" else "") + f"{name:9}" + "".join(f"{n:11,}" for n in figures))
    kills = exit_codes.count(-signal.SIGKILL)
    print(f"\n{kills} kills, {len(exit_codes)} processes, one after another.")

    for name, (accepted, good, bad, attempts, lost, seen, told, again) in rows.items():
        books.check(accepted == good + bad, f"{name}: accepted is not succeeded + failed")
        books.check(attempts - lost <= seen <= attempts, f"{name}: the server saw something else")
        books.check(told == accepted + again, f"{name}: callbacks are not accepted + repeated")
    books.check(total == books.row(numbers), "the rows do not add up")
    expected = dict.fromkeys(counts, 0) | {"succeeded": total[1], "failed": total[2]}
    books.check(counts == expected, f"the store counts {counts}")
    books.check(
        exit_codes == [-signal.SIGKILL] * len(KILLS) + [0], f"the processes ended with {exit_codes}"
    )
    for number in numbers:
        books.check_order(number)


def main() -> int:
    for name in ("invoke_retry", "httpx"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    began = time.monotonic()
    with TemporaryDirectory() as folder, chdir(folder), http_server() as (url, server):
        print(f"Delivering {ORDERS} orders to {url}, waiting in {BACKEND} ...")
        exit_codes = work_and_kill(url)
        counts, invocations = asyncio.run(read_store())
        books = Books(invocations, read_log(), server.requests)
    balance(books, counts, exit_codes)
    for problem in books.problems:
        print(f"The books do not balance: {problem}", file=sys.stderr)
    if books.problems:
        return 1
    print(
        f"\nThe books balance after {time.monotonic() - began:.0f} s: accepted = succeeded + "
        "failed; the server has seen every attempt\nbut some of those that died with their "
        "process; callbacks = accepted + repeated, and what is repeated is equal."
    )
    return 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(asyncio.run(work(sys.argv[1])))
    sys.exit(main())
