"""A real HTTP server that has bad days, and keeps account of what it was told."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Any

import uvicorn

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Flaky:
    """The application: `/deliver` takes orders, and `/told` what callbacks tell.

    Attributes:
        requests: How often each order was to be delivered.
        told: By cid, how often it has taken each outcome; more than one is a broken promise.
        refused: The cids of outcomes that it did not take.
    """

    def __init__(self) -> None:
        self.requests = Counter[int]()
        self.told = defaultdict[str, Counter[bytes]](Counter[bytes])
        self.refused = Counter[str]()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        asked = json.loads(body)
        status = self._told(asked, body) if scope["path"] == "/told" else await self._deliver(asked)
        headers = [(b"content-type", b"application/json")]
        if status == 503 and asked.get("kind") == "busy":
            headers.append((b"retry-after", b"1"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})

    def _told(self, outcome: Message, body: bytes) -> int:
        cid = outcome["call_cid"]
        if outcome["context"]["kind"] == "deaf":
            self.refused[cid] += 1
            return 503
        self.told[cid][body] += 1
        return 200

    async def _deliver(self, order: Message) -> int:
        self.requests[order["number"]] += 1
        times = self.requests[order["number"]]
        match order["kind"]:
            case "flaky":
                return 503 if times % 2 else 200
            case "busy":
                return 503 if times == 1 else 200
            case "slow" if times == 1:
                await asyncio.sleep(4)  # the policy's timeout is shorter
                return 200
            case "down":
                return 503
            case "gone":
                return 404
            case _:
                return 200


@contextmanager
def serving(app: Flaky) -> Generator[str]:
    """Serve it on loopback; the server's URL."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
