"""The three modes: one call site, one policy, three ways of waiting.

    python examples/three_modes.py

An order that says `failures=2` makes the service fail twice before it succeeds.
"""

from __future__ import annotations

import asyncio
import logging

from pydantic import BaseModel

from invoke_retry import (
    CallbackPayload,
    CorrelationId,
    InvokeRetry,
    RetriesExhausted,
    RetryPolicy,
    ServiceRegistry,
    current_call,
)

services = ServiceRegistry()
inbox: asyncio.Queue[CallbackPayload] = asyncio.Queue()
POLICY = RetryPolicy(repeats=3, seconds=0.1)


class Order(BaseModel):
    number: int
    failures: int = 0


class Receipt(BaseModel):
    number: int
    attempt: int


@services.service("crm.update", policy=POLICY)
async def update(order: Order) -> Receipt:
    call = current_call()
    if call.attempt <= order.failures:
        print(f"      attempt {call.attempt} of {1 + call.repeats}: no connection")
        raise ConnectionError("the CRM is down")
    print(f"      attempt {call.attempt} of {1 + call.repeats}: fine")
    return Receipt(number=order.number, attempt=call.attempt)


@services.service("orders.on_outcome")
async def on_outcome(outcome: CallbackPayload) -> None:
    await inbox.put(outcome)


async def show_callback() -> None:
    outcome = await inbox.get()
    print(f"      callback: {outcome.model_dump_json(indent=2)}".replace("\n", "\n      "))


async def inline(retry: InvokeRetry) -> None:
    print("1. Inline: all attempts while the caller waits.\n   It succeeds in the end:")
    receipt = await retry.invoke(update, Order(number=1, failures=2))
    print(f"   -> {receipt!r}\n   It never succeeds:")
    try:
        await retry.invoke(update, Order(number=2, failures=99), repeats=1)
    except RetriesExhausted as error:
        print(f"   -> {error}\n      because of {error.__cause__!r}")


async def fallback(retry: InvokeRetry) -> None:
    print("\n2. Fallback: one attempt while the caller waits, the further ones in the background.")
    for order in (Order(number=3), Order(number=4, failures=2)):
        answer = await retry.invoke(
            update, order, async_fallback=True, callback=on_outcome, context={"order": order.number}
        )
        if isinstance(answer, CorrelationId):
            print(f"   -> not yet, but taken care of: {answer}")
            await show_callback()
        else:
            print(f"   -> {answer!r}, and no callback")


async def background(retry: InvokeRetry) -> None:
    print("\n3. Background: the caller waits for no attempt.")
    for order in (Order(number=5, failures=1), Order(number=6, failures=99)):
        cid = await retry.invoke_async(
            update, order, callback=on_outcome, context={"order": order.number}
        )
        print(f"   -> {cid}")
        await show_callback()


async def main() -> None:
    async with InvokeRetry(services) as retry:
        await inline(retry)
        await fallback(retry)
        await background(retry)
    print("\nDone.")


if __name__ == "__main__":
    logging.getLogger("invoke_retry").setLevel(logging.CRITICAL)  # the attempts are printed above
    asyncio.run(main())
