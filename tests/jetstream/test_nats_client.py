"""Nothing is left of a connection that is given up, whatever becomes of the server."""

import asyncio
from typing import Any

import pytest

from invoke_retry.backends.nats import client
from invoke_retry.testing.nats_server import NatsServer


async def test_one_that_cannot_be_closed_leaves_no_task(
    shared_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_CLOSE_SECONDS", 0.1)

    async def ignore(*_: Any) -> None: ...

    before = asyncio.all_tasks()
    one = client.new_client()
    await client.greet(one, [shared_server.url], {}, on_error=ignore, on_closed=ignore)
    await one.subscribe("news.*", cb=ignore)
    listening = asyncio.all_tasks() - before
    close = one.close
    monkeypatch.setattr(one, "close", asyncio.Event().wait)
    await client.closed(one)
    await asyncio.sleep(0)
    names = {task.get_coro().__qualname__ for task in listening if task.done()}  # type: ignore[union-attr]
    assert "Subscription._wait_for_msgs" in names
    await close()
