"""The program that `invoke-retry demo` runs: a shop whose services fail in interesting ways."""

from __future__ import annotations

import asyncio

import anyio
from pydantic import BaseModel

from invoke_retry import (
    CallbackPayload,
    InvokeRetry,
    RetryAfter,
    RetryPolicy,
    ServiceRegistry,
    current_call,
)

services = ServiceRegistry()


class Order(BaseModel):
    """What all of them are given."""

    number: int
    customer: str


@services.service("crm.update")
async def update(order: Order) -> str:
    """Down for two attempts, then up again."""
    await asyncio.sleep(0.15)
    if current_call().attempt <= 2:
        raise ConnectionError("the CRM is down")
    return f"{order.customer} has a new order"


@services.service("mail.send")
async def send(order: Order) -> str:
    """Has a limit, and says when to come again."""
    if current_call().attempt == 1:
        raise RetryAfter(3_600)
    return f"order {order.number} was confirmed to {order.customer}"


@services.service("stock.reserve", max_running=4)
async def reserve(order: Order) -> str:
    """Slow, so that there is something to kill."""
    await asyncio.sleep(0.3)
    return f"reserved for {order.customer}"


@services.service("partner.told")
async def told(outcome: CallbackPayload) -> None:
    """A callback: it hears how it ended, if it is there."""
    if await anyio.Path("partner-is-down").exists():
        raise ConnectionError(f"the partner answers 503 to the news of {outcome.target}")


retry = InvokeRetry(
    services, backend="sqlite:///retries.db", callback_policy=RetryPolicy(repeats=2, seconds=0.1)
)
