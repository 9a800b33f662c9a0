"""The types of the public API, for mypy and pyright; it is checked, and never run."""

from typing import Any, assert_type

from pydantic import BaseModel

from invoke_retry import (
    Call,
    CallbackPayload,
    CorrelationId,
    ErrorInfo,
    Invocation,
    InvokeRetry,
    RetryPolicy,
    Service,
    ServiceRegistry,
    current_call,
)
from invoke_retry.backends import MemoryBackend


class Order(BaseModel):
    id: int


class Rush(Order):
    hours: int


class Receipt(BaseModel):
    order: int


class Crm:
    async def update(self, order: Order) -> Receipt:
        return Receipt(order=order.id)

    async def ping(self) -> bool:
        return True

    async def __call__(self, order: Order) -> Receipt:
        return Receipt(order=order.id)


services = ServiceRegistry()
crm = Crm()
order = Order(id=1)
policy = RetryPolicy(3, 1)


@services.service("crm.update")
async def update(order: Order) -> Receipt:
    return Receipt(order=order.id)


@services.service(policy=policy, retry_on=(OSError, ValueError), give_up_on=KeyError, max_running=2)
async def ping() -> int:
    return current_call().attempt


@services.service()
async def told(outcome: CallbackPayload) -> None: ...


@services.service()
async def repeat(times: int = 1) -> str:
    return "x" * times


async def plain(order: Order) -> Receipt:
    return Receipt(order=order.id)


async def tagged(tag: str, order: Order) -> Receipt:
    return Receipt(order=order.id + len(tag))


async def what_registering_keeps() -> None:
    assert_type(update, Service[Order, Receipt])
    assert_type(told, Service[CallbackPayload, None])
    assert_type(ping, Service[Any, int])
    assert_type(services.register("plain", plain), Service[Order, Receipt])
    assert_type(services.register("crm.method", crm.update), Service[Order, Receipt])
    assert_type(services.register("crm.object", crm), Service[Order, Receipt])
    assert_type(services.register("crm.ping", crm.ping), Service[Any, bool])
    assert_type(services["crm.update"], Service[Any, Any])
    assert_type(services.include(ServiceRegistry()), None)
    assert_type(update.name, str)
    assert_type(await update(order), Receipt)
    assert_type(await ping(), int)


async def what_invoking_returns(retry: InvokeRetry, later: bool) -> None:
    assert_type(await retry.invoke(update, order, repeats=3, seconds=1), Receipt)
    assert_type(await retry.invoke(update, Rush(id=1, hours=2), policy=policy), Receipt)
    assert_type(await retry.invoke(update, order, policy=policy, async_fallback=False), Receipt)
    assert_type(await retry.invoke(ping), int)
    assert_type(await retry.invoke(ping, cid=CorrelationId.new()), int)
    assert_type(
        await retry.invoke(update, order, async_fallback=True, callback=told, context={"a": 1}),
        Receipt | CorrelationId,
    )
    assert_type(
        await retry.invoke(update, order, async_fallback=later, callback="told"),
        Receipt | CorrelationId,
    )
    assert_type(await retry.invoke(ping, async_fallback=True), int | CorrelationId)
    assert_type(await retry.invoke("crm.update", {"id": 1}, repeats=3, minutes=0.5), Any)
    assert_type(await retry.invoke("crm.update", order, async_fallback=later), Any)
    assert_type(
        await retry.invoke_async(update, order, callback=told, context=[1], cid="K0"),
        CorrelationId,
    )
    assert_type(await retry.invoke_async(ping), CorrelationId)
    assert_type(await retry.invoke_async("ping", repeats=3, seconds=1), CorrelationId)


async def what_asking_returns(cid: CorrelationId) -> None:
    backend = MemoryBackend(max_waiting=5)
    async with InvokeRetry(services, backend=backend, hooks=[print], grace=None) as retry:
        assert_type(retry, InvokeRetry)
        assert_type(await retry.get(cid), Invocation)
        assert_type(await retry.wait(str(cid), timeout=5), CallbackPayload)
        assert_type(await retry.cancel(cid), bool)
        assert_type(await retry.run_now(cid), bool)
        assert_type(await retry.redeliver(cid), bool)
        assert_type(await retry.resubmit(cid), CorrelationId)
        assert_type(await retry.search(state="dead", limit=5, after=cid), list[Invocation])
        assert_type(await retry.counts(), dict[str, int])
        assert_type((await retry.wait(cid)).error, ErrorInfo | None)
        with retry.caller("orders.api", cid="request 17"):
            assert_type(current_call(), Call)
            assert_type(current_call().retry, InvokeRetry)
            assert_type(current_call().cid, CorrelationId)
