"""A web service that answers at once: 200 with the receipt, or 202 and the promise to go on.

    python examples/web_app.py                                (serves itself, and is its customer)
    uvicorn web_app:app --app-dir examples --workers 4        (serves you)

    curl -i localhost:8000/orders -H 'content-type: application/json' \
        -H 'idempotency-key: order-1' -d '{"number": 1, "failures": 2}'

Four worker processes share one SQLite file: each of them answers for what another one accepted, and
goes on with it if that one dies. The script orders 200 things over real sockets, kills one of the
workers in the middle, and balances the books; it ends with exit code 1 if they do not.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, chdir, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, NamedTuple

import httpx
from fastapi import Depends, FastAPI, Header, HTTPException, Request, Response
from pydantic import BaseModel

from invoke_retry import (
    CallbackPayload,
    CidConflict,
    CorrelationId,
    Invocation,
    InvocationNotFound,
    InvokeRetry,
    RetriesExhausted,
    RetryPolicy,
    ServiceRegistry,
    current_call,
)

BACKEND = "sqlite:///orders.db"  # a file in the working directory, for all worker processes

services = ServiceRegistry()


class Order(BaseModel):
    number: int
    failures: int = 0  # how often the warehouse fails before it takes this order


class Receipt(BaseModel):
    number: int
    attempt: int


class Accepted(BaseModel):
    """The answer 202: where to ask."""

    cid: CorrelationId
    href: str


class Worker(BaseModel):
    """The answer of a process to who it is, and how it is."""

    pid: int
    ok: bool
    problem: str | None


@services.service("warehouse.ship", policy=RetryPolicy(repeats=5, seconds=0.2))
async def ship(order: Order) -> Receipt:
    attempt = current_call().attempt
    await asyncio.sleep(0.05)
    if attempt <= order.failures:
        raise ConnectionError("the warehouse does not answer")
    return Receipt(number=order.number, attempt=attempt)


@services.service("orders.on_shipped")
async def on_shipped(outcome: CallbackPayload) -> None:
    # one write: four processes share the log, and print() may make several of a line
    os.write(1, f"callback: {outcome.model_dump_json()}\n".encode())


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """The coordinator lives as long as the worker process; the store outlives both."""
    async with InvokeRetry(services, backend=BACKEND, name="web", grace=20) as retry:
        app.state.retry = retry
        yield


app = FastAPI(title="Orders", lifespan=lifespan)


def coordinator(request: Request, response: Response) -> InvokeRetry:
    response.headers["X-Worker"] = str(os.getpid())
    retry = request.app.state.retry
    assert isinstance(retry, InvokeRetry)
    return retry


Retry = Annotated[InvokeRetry, Depends(coordinator)]


@app.post("/orders")
async def post_order(
    order: Order,
    response: Response,
    retry: Retry,
    idempotency_key: Annotated[str | None, Header(min_length=1)] = None,
) -> Receipt | Accepted:
    cid = None if idempotency_key is None else CorrelationId.from_key(idempotency_key)
    with retry.caller("POST /orders"):
        try:
            answer = await retry.invoke(
                ship, order, async_fallback=True,
                callback=on_shipped, context={"order": order.number}, cid=cid,
            )  # fmt: skip
        except CidConflict as error:
            raise HTTPException(409, "this key belongs to another order") from error
        except RetriesExhausted as error:
            raise HTTPException(503, str(error)) from error
    if isinstance(answer, Receipt):
        return answer
    href = app.url_path_for("get_delivery", cid=answer)
    response.status_code = 202
    response.headers["Location"] = href
    return Accepted(cid=answer, href=href)


@app.get("/deliveries/{cid}")
async def get_delivery(cid: str, retry: Retry) -> Invocation:
    try:
        return await retry.get(cid)
    except InvocationNotFound as error:
        raise HTTPException(404, str(error)) from error


@app.get("/counts")
async def get_counts(retry: Retry) -> dict[str, int]:
    return await retry.counts()


@app.get("/health")
async def get_health(retry: Retry) -> Worker:
    health = retry.health()
    return Worker(pid=os.getpid(), ok=health.ok, problem=health.problem)


# The script is its own customer, over real sockets.

ORDERS, WORKERS, CUSTOMERS = 200, 4, 10
KINDS = {"at once": 0, "later": 1, "much later": 4, "never": 99}  # how often the warehouse fails
FINAL = ("succeeded", "failed", "cancelled", "dead")
LOG = Path("server.log")


class Answer(NamedTuple):
    status: int
    worker: str
    body: Any


class Shop:
    """The web service as a customer sees it; each request may reach another worker."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http
        self.answers: Counter[str] = Counter()
        services = ServiceRegistry()
        services.register(
            "shop.ask", self.ask,
            policy=RetryPolicy(repeats=50, seconds=0.2), retry_on=httpx.TransportError,
        )  # fmt: skip
        self.retry = InvokeRetry(services)

    async def ask(self, request: dict[str, Any]) -> Answer:
        answer = await self.http.request(**request)
        worker = answer.headers.get("X-Worker", "")
        self.answers[worker] += 1
        return Answer(answer.status_code, worker, answer.json())

    async def get(self, path: str) -> Answer:
        answer: Answer = await self.retry.invoke("shop.ask", {"method": "GET", "url": path})
        return answer

    async def post(self, order: Order, key: str) -> Answer:
        """Order something; again with the same key if the worker died before it could answer."""
        answer: Answer = await self.retry.invoke(
            "shop.ask",
            {
                "method": "POST",
                "url": "/orders",
                "json": order.model_dump(),
                "headers": {"Idempotency-Key": key},
            },
        )
        return answer

    async def workers(self, number: int) -> set[int]:
        """Ask until so many workers have answered."""
        pids: set[int] = set()
        while len(pids) < number:
            worker = Worker.model_validate((await self.get("/health")).body)
            assert worker.ok, worker.problem
            pids.add(worker.pid)
            await asyncio.sleep(0.01)
        return pids


def kind_of(number: int) -> str:
    return list(KINDS)[number % len(KINDS)]


class Run:
    """What the customers have seen."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.todo = iter(range(1, ORDERS + 1))
        self.answers: dict[int, Answer] = {}
        self.deliveries: dict[int, Invocation] = {}
        self.told_by_others = 0
        self.killed = 0

    async def go(self) -> None:
        before = await self.shop.workers(WORKERS)
        async with asyncio.TaskGroup() as group:
            for _ in range(CUSTOMERS):
                group.create_task(self.be_a_customer())
            while len(self.answers) < ORDERS / 2:  # noqa: ASYNC110 (the customers go on meanwhile)
                await asyncio.sleep(0.01)
            self.killed = before.pop()
            os.kill(self.killed, signal.SIGKILL)
            print(f"  killed worker {self.killed} when {len(self.answers)} orders were answered")
        after = await self.shop.workers(WORKERS)
        assert self.killed not in after
        print(f"  the workers were {sorted({*before, self.killed})}, and are {sorted(after)}")

    async def be_a_customer(self) -> None:
        accepted: list[int] = []
        for number in self.todo:
            order = Order(number=number, failures=KINDS[kind_of(number)])
            answer = self.answers[number] = await self.shop.post(order, f"order {number}")
            if answer.status == 202:
                accepted.append(number)
        for number in accepted:
            self.deliveries[number] = await self.follow(self.answers[number])

    async def follow(self, accepted: Answer) -> Invocation:
        while True:
            answer = await self.shop.get(accepted.body["href"])
            self.told_by_others += answer.worker != accepted.worker
            delivery = Invocation.model_validate(answer.body)
            if delivery.state in FINAL:
                return delivery
            await asyncio.sleep(0.1)

    async def be_nervous(self) -> None:
        """The same key: the same delivery, not another one; or it belongs to another order."""
        order = Order(number=1, failures=KINDS[kind_of(1)])
        again = await self.shop.post(order, "order 1")
        assert (again.status, again.body) == (202, self.answers[1].body)
        assert (await self.shop.post(Order(number=2), "order 1")).status == 409
        assert (await self.shop.get("/deliveries/nobody")).status == 404


@contextmanager
def web_server() -> Generator[tuple[str, subprocess.Popen[bytes]]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    here = str(Path(__file__).parent.absolute())
    command = [sys.executable, "-m", "uvicorn", "web_app:app", "--app-dir", here]
    options = ["--workers", str(WORKERS), "--port", port, "--log-level", "warning"]
    with LOG.open("ab") as log:
        server = subprocess.Popen(
            [*command, *options], stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield f"http://127.0.0.1:{port}", server
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


async def run() -> Run:
    with web_server() as (url, server):
        no_reuse = httpx.Limits(max_keepalive_connections=0)
        async with (
            asyncio.timeout(90),
            httpx.AsyncClient(base_url=url, limits=no_reuse, timeout=30) as http,
        ):
            print(f"Ordering {ORDERS} things at {url}, which has {WORKERS} worker processes ...")
            run = Run(Shop(http))
            await run.go()
            await run.be_nervous()
            print(f"  counts: {(await run.shop.get('/counts')).body}")
        server.terminate()
        server.wait(30)
        assert server.returncode == 0, f"the server ended with {server.returncode}"
    return run


async def read_store() -> tuple[dict[str, int], list[Invocation]]:
    async with InvokeRetry(services, backend=BACKEND, work=False) as retry:
        return await retry.counts(), await retry.search(limit=2 * ORDERS)


# The table.

COLUMNS = (
    "orders", "200", "202", "succeeded", "failed", "attempts", "died", "callbacks", "repeated"
)  # fmt: skip


def balance(run: Run, counts: dict[str, int], stored: list[Invocation]) -> list[str]:
    """Print the table; what does not add up."""
    told: defaultdict[int, list[str]] = defaultdict(list)
    for line in LOG.read_text(encoding="utf-8").splitlines():
        if line.startswith("callback: "):
            text = line.removeprefix("callback: ")
            told[CallbackPayload.model_validate_json(text).context["order"]].append(text)
    rows: dict[str, tuple[int, ...]] = {}
    for kind in KINDS:
        numbers = [number for number in run.answers if kind_of(number) == kind]
        statuses = Counter(run.answers[number].status for number in numbers)
        kept = [each for each in stored if each.context["order"] in numbers]
        rows[kind] = (
            len(numbers),
            statuses[200],
            statuses[202],
            sum(each.state == "succeeded" for each in kept),
            sum(each.state == "failed" for each in kept),
            sum(each.attempts for each in kept),
            sum(has_died(each) for each in kept),
            sum(len(told[number]) for number in numbers),
            sum(max(0, len(told[number]) - 1) for number in numbers),
        )
    total = rows["all"] = tuple(map(sum, zip(*rows.values(), strict=True)))
    print(f"\n{'':12}" + "".join(f"{name:>11}" for name in COLUMNS))
    for name, figures in rows.items():
        print(("\n" if name == "all" else "") + f"{name:12}" + "".join(f"{n:11,}" for n in figures))

    problems: list[str] = []
    for name, (orders, at_once, later, good, bad, _, _, callbacks, repeated) in rows.items():
        if not (orders == at_once + later and later == good + bad == callbacks - repeated):
            problems.append(name)
    if counts != dict.fromkeys(counts, 0) | {"succeeded": total[3], "failed": total[4]}:
        problems.append(f"the store counts {counts}")
    if {each.context["order"]: each for each in stored} != run.deliveries:
        problems.append("the customers were told something else than what is stored")
    problems += [f"order {n} has two outcomes" for n, texts in told.items() if len(set(texts)) > 1]
    problems += [line for line in LOG.read_text().splitlines() if line.startswith("Traceback")]
    return problems


def has_died(invocation: Invocation) -> int:
    """How many of its attempts ended with their process."""
    errors = [attempt.error for attempt in invocation.history]
    return sum(error is not None and error.type == "WorkerDied" for error in errors)


def main() -> int:
    for name in ("invoke_retry", "httpx"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the table says it all
    with TemporaryDirectory() as folder, chdir(folder):
        result = asyncio.run(run())
        problems = balance(result, *asyncio.run(read_store()))
        left = sorted(path.name for path in Path().iterdir())
    for problem in problems:
        print(f"The books do not balance: {problem}", file=sys.stderr)
    if problems:
        return 1
    print(
        f"\nThe books balance: orders = 200 + 202; 202 = succeeded + failed = callbacks - repeated."
        f"\n{result.told_by_others} questions were answered by another worker than the one that "
        f"accepted the order.\nThe server has shut down, and left {', '.join(left)}."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
