"""Services and coordinators for the tests of the NATS backend."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from invoke_retry import CallbackPayload, InvokeRetry, RetryPolicy, ServiceRegistry, current_call
from invoke_retry.backends import NATSBackend
from invoke_retry.events import Hook

from .raw import connected

QUICK = RetryPolicy(repeats=3, seconds=0.05)


class Stage:
    """A process as a test sees it: its services, and what became of them."""

    def __init__(self, *names: str) -> None:
        self.services = ServiceRegistry()
        self.calls: list[tuple[str, str, int]] = []
        self.told: list[CallbackPayload] = []
        self.gate = asyncio.Event()
        for name in names or ("echo", "fail", "hold", "tell"):
            self.services.register(name, getattr(self, f"_{name}"))

    def _note(self) -> None:
        call = current_call()
        self.calls.append((call.service, call.cid, call.attempt))

    async def _echo(self, payload: Any = None) -> Any:
        self._note()
        return payload

    async def _fail(self, payload: Any = None) -> Any:
        self._note()
        raise ValueError(f"no use: {payload}")

    async def _hold(self, payload: Any = None) -> Any:
        self._note()
        await self.gate.wait()
        return payload

    async def _tell(self, payload: CallbackPayload) -> None:
        self._note()
        self.told.append(payload)

    def count(self, service: str) -> int:
        return sum(name == service for name, _, _ in self.calls)

    async def called(self, service: str, times: int = 1) -> None:
        async def enough() -> bool:
            return self.count(service) >= times

        await eventually(enough)

    def retry(
        self,
        url: str,
        *,
        work: bool = True,
        grace: float = 5,
        max_running: int = 100,
        hooks: Iterable[Hook] = (),
        **options: Any,
    ) -> InvokeRetry:
        return InvokeRetry(
            self.services,
            backend=NATSBackend(url, **options),
            callback_policy=QUICK,
            work=work,
            grace=grace,
            max_running=max_running,
            hooks=hooks,
        )


async def eventually(condition: Callable[[], Awaitable[bool]], seconds: float = 30) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def is_in(retry: InvokeRetry, cid: str, *states: str) -> None:
    """Wait until the invocation is in one of the states."""

    async def arrived() -> bool:
        return (await retry.get(cid)).state in states

    await eventually(arrived)


class Raw:
    """The stream as somebody else sees and changes it."""

    def __init__(self, url: str) -> None:
        self._server, _, self.stream = url.rpartition("/")

    async def api(self, name: str, what: Any = None) -> dict[str, Any]:
        async with connected(self._server) as client:
            data = b"" if what is None else json.dumps(what).encode()
            told: dict[str, Any] = json.loads(
                (await client.request(f"$JS.API.{name}", data, 5)).data
            )
            return told

    async def newest(self, cid: str) -> tuple[str, int, bytes]:
        """Where an invocation's newest message stands, its number and its body."""
        what = {"last_by_subj": f"ir.{self.stream}.*.{cid}.>"}
        message = (await self.api(f"STREAM.MSG.GET.{self.stream}", what))["message"]
        return message["subject"], message["seq"], base64.b64decode(message.get("data", ""))

    async def put(self, subject: str, body: bytes) -> None:
        async with connected(self._server) as client:
            answer = json.loads((await client.request(subject, body, 5)).data)
            assert "error" not in answer, answer

    async def subjects(self, where: str = ">") -> dict[str, int]:
        what = {"subjects_filter": f"ir.{self.stream}.{where}"}
        state = (await self.api(f"STREAM.INFO.{self.stream}", what))["state"]
        found: dict[str, int] = state.get("subjects") or {}
        return found
