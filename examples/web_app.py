"""A web service that answers at once: 200 with the receipt, or 202 and the promise to go on.

    python examples/web_app.py                  (serves itself on loopback and talks to itself)
    uvicorn examples.web_app:app                (serves you)

    curl -i localhost:8000/orders -H 'content-type: application/json' \
        -H 'idempotency-key: order-1' -d '{"number": 1, "failures": 2}'
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated

import httpx
import uvicorn
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


@services.service("warehouse.ship", policy=RetryPolicy(repeats=5, seconds=0.2))
async def ship(order: Order) -> Receipt:
    attempt = current_call().attempt
    if attempt <= order.failures:
        raise ConnectionError("the warehouse does not answer")
    return Receipt(number=order.number, attempt=attempt)


@services.service("orders.on_shipped")
async def on_shipped(outcome: CallbackPayload) -> None:
    print(f"callback: {outcome.context} ok={outcome.ok} after {outcome.attempts} attempts, "
          f"asked for by {outcome.source}")  # fmt: skip


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """The coordinator lives as long as the application; a deploy waits for what is under way."""
    async with InvokeRetry(services, name="web", grace=20) as retry:
        app.state.retry = retry
        yield


app = FastAPI(title="Orders", lifespan=lifespan)


def coordinator(request: Request) -> InvokeRetry:
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


# The script talks to itself, over a real socket.


async def customer(http: httpx.AsyncClient) -> None:
    async def post(number: int, failures: int, key: str) -> httpx.Response:
        answer = await http.post(
            "/orders",
            json={"number": number, "failures": failures},
            headers={"Idempotency-Key": key},
        )
        print(f"POST /orders {number} (key {key!r}): {answer.status_code} {answer.text}")
        return answer

    shipped = await post(1, 0, "first")
    assert shipped.status_code == 200
    accepted = await post(2, 2, "second")
    assert accepted.status_code == 202
    again = await post(2, 2, "second")  # a nervous customer: the same delivery, not another one
    assert (again.status_code, again.json()) == (202, accepted.json())
    assert (await post(3, 2, "second")).status_code == 409

    where = accepted.headers["Location"]
    while True:
        delivery = (await http.get(where)).json()
        print(f"GET {where}: {delivery['state']}, {delivery['attempts']} attempts")
        if delivery["state"] == "succeeded":
            break
        await asyncio.sleep(0.15)
    assert delivery["response"] == {"number": 2, "attempt": 3}
    assert (await http.get("/deliveries/nobody")).status_code == 404


async def main() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
                await customer(http)
        finally:
            server.should_exit = True
            await serving
    print("The server has shut down, and its coordinator with it.")


if __name__ == "__main__":
    logging.getLogger("invoke_retry").setLevel(logging.ERROR)
    sys.exit(asyncio.run(main()))
