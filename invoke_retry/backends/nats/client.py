"""nats-py, with types: one connection, made once, and what its server answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol, cast
from urllib.parse import ParseResult

from nats.aio.client import Client as _Unchecked
from pydantic_core import from_json

from invoke_retry.backends.nats.state import text_of
from invoke_retry.errors import BackendError

_CONNECT_SECONDS = 5.0
_CLOSE_SECONDS = 2.0
_PING_SECONDS = 10


class Unreachable(BackendError):
    """No answer, or no connection: whether it was done is not known."""


class ApiError(BackendError):
    """The server refuses.

    Attributes:
        code: What kind of answer it is, as in HTTP.
        err_code: What JetStream calls the error.
    """

    def __init__(self, code: int, err_code: int, description: str) -> None:
        super().__init__(f"the NATS server refuses: {description} ({err_code})")
        self.code = code
        self.err_code = err_code


class Message(Protocol):
    """What arrives."""

    subject: str
    reply: str
    data: bytes
    headers: dict[str, str] | None


class Client(Protocol):
    """As much of nats-py's client as is used here."""

    is_connected: bool
    max_payload: int
    discovered_servers: list[ParseResult]
    _server_info: dict[str, Any]

    async def connect(self, servers: list[str], **options: Any) -> None: ...
    async def publish(
        self, subject: str, payload: bytes, reply: str = "", headers: dict[str, str] | None = None
    ) -> None: ...
    async def subscribe(self, subject: str, *, cb: Callable[[Message], Awaitable[None]]) -> Any: ...
    async def flush(self, timeout: int = 10) -> None: ...
    async def close(self) -> None: ...


class _Careful(_Unchecked):
    """Shows its credentials to no server of a `tls://` URL that does not speak TLS."""

    def _connect_command(self) -> bytes:
        server = self._current_server
        is_safe = self._server_info.get("tls_required") or self.options["tls_handshake_first"]
        if server is not None and server.uri.scheme == "tls" and not is_safe:
            raise ConnectionError(
                "it does not offer TLS, which tls:// demands; it was told nothing"
            )
        return super()._connect_command()


def new_client() -> Client:
    """One that is not connected."""
    return cast("Client", _Careful())


async def greet(
    client: Client,
    servers: list[str],
    options: Mapping[str, Any],
    *,
    on_error: Callable[[Exception], Awaitable[None]],
    on_closed: Callable[[], Awaitable[None]],
    verbose: bool = False,
) -> None:
    """Connect, once.

    Args:
        verbose: Have each step confirmed.
    """
    async with asyncio.timeout(_CONNECT_SECONDS):
        await client.connect(
            servers,
            **{
                "allow_reconnect": False,
                "max_reconnect_attempts": 1,
                "reconnect_time_wait": 0.05,
                "connect_timeout": 3,
                "ping_interval": _PING_SECONDS,
                "pending_size": 0,  # what cannot be sent now fails now
                "skip_subject_validation": True,  # ours are made of checked parts
                "verbose": verbose,
                "error_cb": on_error,
                "closed_cb": on_closed,
                **options,
            },
        )


async def why_hung_up(servers: list[str], options: Mapping[str, Any]) -> str:
    """What a server says that refuses; it hangs up then, and by that it is often not heard.

    Asked to confirm each step, it is.
    """

    async def ignore(_: Exception) -> None: ...

    async def ignore_end() -> None: ...

    client = new_client()
    try:
        await greet(client, servers, options, on_error=ignore, on_closed=ignore_end, verbose=True)
    except Exception as error:
        reason = text_of(error)
        return "" if is_hang_up(reason) else reason
    finally:
        await closed(client)
    return ""


def is_hang_up(reason: str) -> bool:
    """Whether it says no more than that the other side has gone."""
    return "reset by peer" in reason or "EOF" in reason or "roken pipe" in reason


def server_info(client: Client) -> dict[str, Any]:
    """What the server says of itself."""
    return dict(client._server_info)  # pyright: ignore[reportPrivateUsage]


def server_version(client: Client) -> str:
    """Its version."""
    return str(server_info(client).get("version", "?"))


async def closed(client: Client) -> None:
    """Let go of it, whatever it is in."""
    subscriptions: tuple[Any, ...] = tuple(getattr(client, "_subs", {}).values())
    with suppress(Exception):
        async with asyncio.timeout(_CLOSE_SECONDS):
            await client.close()
    for subscription in subscriptions:  # it does not come to them if the server does not answer
        if (listening := subscription._wait_for_msgs_task) is not None:
            listening.cancel()
    for name in ("_flusher_task", "_reading_task", "_ping_interval_task"):
        task: asyncio.Task[None] | None = getattr(client, name, None)
        if task is not None and task.done() and not task.cancelled():
            task.exception()  # else the loop logs that nobody has looked at it


def answered(message: Message) -> dict[str, Any]:
    """What JetStream says.

    Raises:
        ApiError: That it refuses.
    """
    told: dict[str, Any] = from_json(message.data)
    if (error := told.get("error")) is not None:
        raise ApiError(
            int(error.get("code", 0)),
            int(error.get("err_code", 0)),
            text_of(error.get("description", "")),
        )
    return told
