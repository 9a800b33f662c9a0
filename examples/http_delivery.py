"""200 orders, delivered to a real HTTP server that has bad days, in all three modes.

    python examples/http_delivery.py

The server is httpbin on a loopback socket. What an order meets there depends on its kind:

    flaky    every other answer is 503
    busy     the first answer is 503 with Retry-After, later ones are 200
    slow     the first answer takes longer than the policy's timeout, later ones are quick
    down     every answer is 503 with Retry-After
    unknown  404: permanent, so never repeated

At the end the books are balanced: what the server has seen is compared with what the library says
it did. The script ends with exit code 1 if they differ.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, Literal

import httpx
from pydantic import BaseModel
from werkzeug.serving import make_server

from invoke_retry import (
    CallbackPayload,
    CorrelationId,
    InvokeRetry,
    RetriesExhausted,
    RetryAfter,
    RetryPolicy,
    ServiceRegistry,
)
from invoke_retry.events import AttemptStarted, Event

Kind = Literal["flaky", "busy", "slow", "down", "unknown"]
KINDS: tuple[Kind, ...] = ("flaky", "busy", "slow", "down", "unknown")
MODES = ("inline", "fallback", "background")
PATHS: dict[Kind, str] = {
    "flaky": "/status/200:0.5,503:0.5",
    "busy": "/anything/busy",
    "slow": "/anything/slow",
    "down": "/status/503",
    "unknown": "/status/404",
}
ORDERS = 200
AT_ONCE = 16  # httpbin is no fast server

POLICY = RetryPolicy(
    repeats=3, seconds=0.1, backoff="exponential", max_seconds=2, jitter="full", timeout=2
)


class Order(BaseModel):
    number: int
    kind: Kind


class Receipt(BaseModel):
    order: int
    status: int


class Refused(Exception):
    """The server will never take this order."""


class Warehouse:
    """The service: it delivers an order to the HTTP server."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def deliver(self, order: Order) -> Receipt:
        answer = await self.http.get(PATHS[order.kind], headers={"X-Order": str(order.number)})
        if answer.status_code == 404:
            raise Refused(f"nobody knows where order {order.number} should go")
        if seconds := answer.headers.get("Retry-After"):
            raise RetryAfter(float(seconds), f"the server is busy ({answer.status_code})")
        answer.raise_for_status()
        return Receipt(order=order.number, status=answer.status_code)


@dataclass
class Books:
    """What the library says: attempts by cid, results by order, callbacks by order."""

    attempts: Counter[str] = field(default_factory=Counter[str])
    cids: dict[int, CorrelationId] = field(default_factory=dict[int, CorrelationId])
    results: dict[int, bool] = field(default_factory=dict[int, bool])
    callbacks: dict[int, CallbackPayload] = field(default_factory=dict[int, CallbackPayload])
    told: Counter[int] = field(default_factory=Counter[int])
    problems: list[str] = field(default_factory=list[str])

    def hook(self, event: Event) -> None:
        if isinstance(event, AttemptStarted):
            self.attempts[event.cid] += 1

    async def on_outcome(self, outcome: CallbackPayload) -> None:
        number = outcome.context["order"]
        self.told[number] += 1
        self.callbacks[number] = outcome
        self.note_result(number, ok=outcome.ok)

    def note_result(self, number: int, *, ok: bool) -> None:
        self.check(number not in self.results, f"order {number} has two results")
        self.results[number] = ok

    def check(self, fact: bool, problem: str) -> None:
        if not fact:
            self.problems.append(problem)


async def place(retry: InvokeRetry, books: Books, order: Order, mode: str) -> None:
    """Deliver one order in one of the modes, and note what the caller learns."""
    cid = CorrelationId.from_key(f"order {order.number}")  # so that the books can be compared
    context = {"order": order.number}
    try:
        if mode == "background":
            answer: Any = await retry.invoke_async(
                "warehouse.deliver", order, callback="books.on_outcome", context=context, cid=cid
            )
        elif mode == "fallback":
            answer = await retry.invoke(
                "warehouse.deliver", order, async_fallback=True,
                callback="books.on_outcome", context=context, cid=cid,
            )  # fmt: skip
        else:
            answer = await retry.invoke("warehouse.deliver", order, cid=cid)
    except (RetriesExhausted, Refused):
        books.note_result(order.number, ok=False)
    else:
        if isinstance(answer, CorrelationId):
            books.cids[order.number] = answer  # the callback brings the result
        else:
            books.note_result(order.number, ok=True)


async def deliver_all(url: str, orders: Iterable[tuple[Order, str]]) -> Books:
    books = Books()
    callers = asyncio.Semaphore(AT_ONCE)
    async with httpx.AsyncClient(base_url=url, timeout=30) as http:
        services = ServiceRegistry()
        services.register(
            "warehouse.deliver", Warehouse(http).deliver, policy=POLICY, give_up_on=Refused
        )
        services.register("books.on_outcome", books.on_outcome)

        async def place_in_turn(retry: InvokeRetry, order: Order, mode: str) -> None:
            async with callers:
                await place(retry, books, order, mode)

        async with (
            InvokeRetry(services, max_running=AT_ONCE, grace=60, hooks=[books.hook]) as retry,
            asyncio.TaskGroup() as group,
        ):
            for order, mode in orders:
                group.create_task(place_in_turn(retry, order, mode))
    return books


# The server: httpbin, and what it cannot do by itself.


class BadDays:
    """A WSGI middleware: counts the requests of each order, and gives some a bad answer first."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self.app = app
        self.requests: Counter[int] = Counter()
        self.lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        with self.lock:
            number = int(environ["HTTP_X_ORDER"])
            self.requests[number] += 1
            is_first = self.requests[number] == 1
        path = environ["PATH_INFO"]
        if is_first and path == "/anything/busy":
            path = "/status/503"
        elif is_first and path == "/anything/slow":
            path = "/delay/4"
        environ["PATH_INFO"] = path

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            if path == "/status/503":
                headers = [*headers, ("Retry-After", "1")]
            return start_response(status, headers, exc_info)

        return self.app(environ, start)


@contextmanager
def http_server() -> Generator[tuple[str, BadDays]]:
    for name in ("werkzeug", "httpbin.core"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    from httpbin import app  # noqa: PLC0415  (it logs while it is imported)

    counted = BadDays(app)
    server = make_server("127.0.0.1", 0, counted, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}", counted
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# The table.

COLUMNS = (
    "orders", "succeeded", "failed", "attempts", "requests", "handed over", "callbacks"
)  # fmt: skip


def row(books: Books, requests: Counter[int], numbers: list[int]) -> tuple[int, ...]:
    results = [books.results[n] for n in numbers if n in books.results]
    return (
        len(numbers),
        results.count(True),
        results.count(False),
        sum(books.attempts[CorrelationId.from_key(f"order {n}")] for n in numbers),
        sum(requests[n] for n in numbers),
        sum(n in books.cids for n in numbers),
        sum(books.told[n] for n in numbers),
    )


def balance(books: Books, requests: Counter[int], placed: list[tuple[Order, str]]) -> None:
    """Print the table, and check that it adds up: every row, and every single order."""
    groups: dict[str, list[int]] = {}
    for order, mode in placed:
        groups.setdefault(order.kind, []).append(order.number)
        groups.setdefault(mode, []).append(order.number)
    total = row(books, requests, [order.number for order, _ in placed])
    parts = {name: row(books, requests, groups[name]) for name in (*KINDS, *MODES)}

    print(f"\n{'':12}" + "".join(f"{name:>12}" for name in COLUMNS))
    for name, figures in (*parts.items(), ("all", total)):
        if name in (MODES[0], "all"):
            print()
        print(f"{name:12}" + "".join(f"{figure:12,}" for figure in figures))

    for names in (KINDS, MODES):
        sums = tuple(map(sum, zip(*(parts[name] for name in names), strict=True)))
        books.check(sums == total, f"{' + '.join(names)} is {sums}, not {total}")
    for name, (orders, good, bad, attempts, seen, handed_over, told) in {
        **parts,
        "all": total,
    }.items():
        books.check(orders == good + bad, f"{name}: orders are not succeeded + failed")
        books.check(attempts == seen, f"{name}: the server has not seen what was counted")
        books.check(handed_over == told, f"{name}: callbacks are missing, or came twice")
    for number, outcome in books.callbacks.items():
        books.check(
            outcome.attempts == requests[number]
            and outcome.call_cid == books.cids.get(number)
            and outcome.ok == (outcome.reason == "succeeded"),
            f"the callback of order {number} does not fit: {outcome}",
        )


def main() -> int:
    logging.getLogger("invoke_retry").setLevel(logging.CRITICAL)  # the table says it all
    logging.getLogger("httpx").setLevel(logging.WARNING)
    modes = cycle(MODES)
    placed = [(Order(number=n, kind=KINDS[n % 5]), next(modes)) for n in range(ORDERS)]
    with http_server() as (url, server):
        print(f"Delivering {ORDERS} orders to {url} in {len(MODES)} modes; at most "
              f"{1 + POLICY.repeats} attempts each, {POLICY.timeout} s an attempt ...")  # fmt: skip
        books = asyncio.run(deliver_all(url, placed))
    balance(books, server.requests, placed)
    for problem in books.problems:
        print(f"The books do not balance: {problem}", file=sys.stderr)
    if books.problems:
        return 1
    print(
        "\nThe books balance: orders = succeeded + failed, requests that the server has seen = "
        "attempts,\ncallbacks = invocations that were handed over to the background."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
