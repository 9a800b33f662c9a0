"""What docs/nats.md says about permissions is enough, and needed."""

import asyncio
import re
from pathlib import Path

import pytest

from invoke_retry import BackendError, InvokeRetry, ServiceRegistry
from invoke_retry.testing.nats_server import NatsServer

DOCS = Path(__file__).parents[2] / "docs" / "nats.md"
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="the checkout has it, the wheel not")


def allowed(kind: str) -> list[str]:
    found = re.search(rf"{kind}: \[(.*?)\]", DOCS.read_text(), re.DOTALL)
    assert found is not None
    return re.findall(r'"([^"]+)"', found[1])


def server(publish: list[str]) -> NatsServer:
    permissions = {"publish": publish, "subscribe": allowed("subscribe")}
    user = {"user": "retries", "password": "x", "permissions": permissions}
    return NatsServer(settings={"authorization": {"users": [user]}})


def url_of(server: NatsServer) -> str:
    return f"nats://retries:x@{server.address}/orders?lease=1"


async def use(url: str) -> None:
    services = ServiceRegistry()

    @services.service("crm.update")
    async def update(number: int) -> int:
        return 1 // number

    @services.service("told")
    async def told(outcome: object) -> None:
        pass

    async with InvokeRetry(services, backend=url, grace=5) as retry:
        fails = await retry.invoke_async(
            "crm.update", 0, repeats=1, seconds=1.5, callback="told", context=1
        )
        waits = await retry.invoke_async("crm.update", 0, repeats=1, seconds=3600)
        assert not (await retry.wait(fails, timeout=20)).ok
        while not (await retry.get(waits)).attempts:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        assert await retry.run_now(waits)
        assert not (await retry.wait(waits, timeout=20)).ok
        again = await retry.resubmit(fails)
        assert await retry.cancel(again)
        assert await retry.pause("crm.update")
        assert await retry.resume("crm.update")
        assert (await retry.counts())["cancelled"] == 1
        assert len(await retry.search()) == 3


async def test_the_permissions_suffice() -> None:
    with server(allowed("publish")) as nats:
        await use(url_of(nats))
        assert "Permissions Violation" not in nats.log


@pytest.mark.parametrize(
    "missing", ["ir.orders.>", "$JS.API.STREAM.INFO.orders", "$JS.API.CONSUMER.CREATE.orders.>"]
)
async def test_one_that_is_missing_is_named(missing: str) -> None:
    rights = [subject for subject in allowed("publish") if subject != missing]
    assert len(rights) < len(allowed("publish"))
    named = re.escape(missing.rstrip(".>"))
    with server(rights) as nats, pytest.raises(BackendError, match=named):
        await use(url_of(nats))
