"""One connection that comes back, requests, and what arrives.

The client's own reconnecting is not used: it gives up for good after some errors of the server
(expired credentials, too many connections), keeps what it could not send, and waits as long each
time. Here a connection that is lost is replaced by a new one, and what was waiting for an answer
fails at once.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple

from invoke_retry.backends.nats.client import (
    Client,
    Message,
    Unreachable,
    answered,
    closed,
    greet,
    is_hang_up,
    new_client,
    server_info,
    server_version,
    why_hung_up,
)
from invoke_retry.backends.nats.state import text_of
from invoke_retry.errors import BackendError

ANSWER_SECONDS: Final = 4.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_CLOSE_SECONDS = 2.0
_SWEEP_SECONDS = 0.25
_LOOK_SECONDS = 0.5
_ROOM_FOR_HEADERS: Final = 4_096

Handler = Callable[[Message], None]


class _Question(NamedTuple):
    subject: str
    future: asyncio.Future[Message]
    until: float


class Connection:
    """A connection to a server, or to one of a cluster.

    Args:
        servers: Their URLs, without secrets.
        options: For nats-py's `connect`: secrets, TLS.
        where: How the server is spoken of.
        on_connected: Called when a connection was lost and there is another one.
        on_trouble: Called when it is lost, and when it cannot be made.
    """

    def __init__(
        self,
        servers: list[str],
        options: Mapping[str, Any],
        where: str,
        *,
        on_connected: Callable[[], None],
        on_trouble: Callable[[BackendError], None],
    ) -> None:
        self._servers = servers
        self._others: dict[str, None] = {}  # of the same cluster, as it tells
        self._options = dict(options)
        self._where = where
        self._on_connected = on_connected
        self._on_trouble = on_trouble
        self._client: Client | None = None
        self._inbox = f"_INBOX.{secrets.token_hex(12)}"
        self._numbers = itertools.count(1)
        self._waiting: dict[str, _Question] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._streams: dict[str, Handler] = {}
        self._handlers: dict[str, Handler] = {}
        self._subscriptions: dict[str, Any] = {}
        self._keeper: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()
        self._back = asyncio.Event()
        self._latest = ""

    # Opening, keeping and closing.

    async def open(self) -> None:
        """Connect.

        Raises:
            BackendError: There is no server, or it refuses.
        """
        await self._connect()
        self._keeper = asyncio.get_running_loop().create_task(self._keep(), name="nats connection")

    async def close(self) -> None:
        """Let go of it."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
        client, self._client = self._client, None
        self._fail_all("the connection was closed")
        if client is not None:
            await closed(client)

    def new_name(self) -> str:
        """A part of a subject that nobody else has."""
        return secrets.token_hex(12)

    @property
    def is_connected(self) -> bool:
        """Whether something can be sent."""
        client = self._client
        return client is not None and client.is_connected

    @property
    def server_version(self) -> str:
        """What the server says of itself."""
        client = self._client
        return "?" if client is None else server_version(client)

    @property
    def server(self) -> dict[str, Any]:
        """All that the server says of itself; nothing while there is no connection."""
        return {} if self._client is None else server_info(self._client)

    @property
    def where(self) -> str:
        """How the server is spoken of, without secrets."""
        return self._where

    @property
    def max_body(self) -> int:
        """How many bytes the body of a message may have."""
        client = self._client
        return (client.max_payload if client is not None else 1_048_576) - _ROOM_FOR_HEADERS

    @property
    def _known(self) -> list[str]:
        return [*self._servers, *self._others]

    async def _connect(self) -> None:
        client, lost = new_client(), asyncio.Event()
        self._latest = ""

        async def on_closed() -> None:
            lost.set()

        try:
            await greet(
                client,
                self._known,
                self._options,
                on_error=self._on_error,
                on_closed=on_closed,
            )
            for subject, handler in (
                (f"{self._inbox}.*", self._on_answer),
                *self._handlers.items(),
            ):
                self._subscriptions[subject] = await client.subscribe(subject, cb=_calls(handler))
            await client.flush(3)
        except BaseException as error:
            await closed(client)
            if not isinstance(error, Exception):
                raise
            reason = self._latest or _reason(error)
            if is_hang_up(reason):
                reason = await why_hung_up(self._known, self._options) or reason
            raise Unreachable(f"no connection to {self._where}: {reason}") from None
        self._client = client
        for url in client.discovered_servers:
            if (other := f"{url.scheme}://{url.netloc}") not in self._servers:
                self._others[other] = None
        self._lost = lost
        self._back.set()

    async def _keep(self) -> None:
        while True:
            while self.is_connected and not self._lost.is_set():
                # the client does not always say that it was closed: its own closing may fail
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await self._lost.wait()
            self._back.clear()
            client, self._client = self._client, None
            self._fail_all(f"the connection to {self._where} was lost")
            if client is not None:
                await closed(client)
            self._on_trouble(Unreachable(f"the connection to {self._where} was lost"))
            pause = _FIRST_PAUSE
            while not self._back.is_set():
                try:
                    await self._connect()
                except Unreachable as error:
                    self._on_trouble(error)
                    await asyncio.sleep(pause * (0.5 + secrets.randbelow(100) / 100))
                    pause = min(2 * pause, _LONGEST_PAUSE)
            self._on_connected()

    async def connected(self, limit: float) -> None:
        """Wait until there is a connection.

        Raises:
            Unreachable: Not within *limit* seconds.
        """
        if self.is_connected:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(limit):
                await self._back.wait()
        if not self.is_connected:
            raise Unreachable(f"no connection to {self._where}: {self._latest or 'it was lost'}")

    async def _on_error(self, error: Exception) -> None:
        self._latest = _reason(error)
        denied = re.search(r'publish to "([^"]+)"', self._latest, re.IGNORECASE)
        if denied is not None:
            for subject, future, _ in list(self._waiting.values()):
                if subject.lower() == denied.group(1).lower() and not future.done():
                    text = f"the NATS server refuses: no permission to publish to {subject}"
                    future.set_exception(BackendError(text))

    def _fail_all(self, text: str) -> None:
        waiting, self._waiting = self._waiting, {}
        for _, future, _ in waiting.values():
            if not future.done():
                future.set_exception(Unreachable(text))

    # Sending and receiving.

    async def publish(
        self,
        subject: str,
        data: bytes = b"",
        reply: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        """Send something that nobody answers; it may be lost.

        Raises:
            BackendError: It cannot be sent.
        """
        client = self._client
        if client is None or not client.is_connected:
            raise Unreachable(f"no connection to {self._where}")
        try:
            await client.publish(subject, data, reply, headers)
        except Exception as error:
            raise Unreachable(f"{self._where} cannot be written to: {text_of(error)}") from None

    async def request(
        self,
        subject: str,
        data: bytes = b"",
        headers: dict[str, str] | None = None,
        limit: float = ANSWER_SECONDS,
    ) -> Message:
        """Send something and wait for its answer.

        Raises:
            Unreachable: There was none within *limit* seconds.
        """
        loop = asyncio.get_running_loop()
        reply = f"{self._inbox}.{next(self._numbers)}"
        future: asyncio.Future[Message] = loop.create_future()
        self._waiting[reply] = _Question(subject, future, loop.time() + limit)
        if self._sweeper is None:
            self._sweeper = loop.call_later(_SWEEP_SECONDS, self._sweep)
        try:
            await self.publish(subject, data, reply, headers)
            answer = await future
        finally:
            self._waiting.pop(reply, None)
        if not answer.data and answer.headers and answer.headers.get("Status") == "503":
            raise Unreachable(f"nobody answers at {self._where}: is JetStream enabled there?")
        return answer

    def _sweep(self) -> None:
        # one timer for all questions: one for each costs a twentieth of the throughput
        loop = asyncio.get_running_loop()
        self._sweeper = loop.call_later(_SWEEP_SECONDS, self._sweep) if self._waiting else None
        now = loop.time()
        for question in list(self._waiting.values()):
            if question.until < now and not question.future.done():
                text = f"{self._where} has not answered in time"
                question.future.set_exception(Unreachable(text))

    async def api(self, name: str, what: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Ask JetStream.

        Raises:
            ApiError: It refuses.
            Unreachable: There was no answer.
        """
        data = b"" if what is None else json.dumps(what).encode()
        return answered(await self.request(f"$JS.API.{name}", data))

    async def ask(self, subject: str) -> dict[str, Any]:
        """Ask the server something else.

        Raises:
            BackendError: It refuses, or does not answer.
        """
        return answered(await self.request(subject))

    async def collect(self, subject: str, data: bytes) -> list[Message]:
        """Send something that is answered by many messages, up to one that has a status.

        Raises:
            Unreachable: They did not all come.
        """
        number = next(self._numbers)
        reply = f"{self._inbox}.{number}"
        messages: list[Message] = []
        done: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        def on_message(message: Message) -> None:
            if message.headers and "Status" in message.headers:
                if not done.done():
                    done.set_result(message)
            else:
                messages.append(message)

        self._streams[reply] = on_message
        until = asyncio.get_running_loop().time() + 2 * ANSWER_SECONDS
        self._waiting[f"{reply} all"] = _Question(subject, done, until)
        try:
            async with asyncio.timeout(2 * ANSWER_SECONDS):
                await self.publish(subject, data, reply)
                await done
        except TimeoutError:
            raise Unreachable(f"{self._where} has not answered in time") from None
        finally:
            del self._streams[reply]
            self._waiting.pop(f"{reply} all", None)
        return messages

    async def subscribe(self, subject: str, handler: Handler) -> None:
        """Have *handler* called for what arrives there, also after a reconnection."""
        self._handlers[subject] = handler
        client = self._client
        if client is not None and client.is_connected:
            with suppress(Exception):  # else it is made with the next connection
                self._subscriptions[subject] = await client.subscribe(subject, cb=_calls(handler))

    async def unsubscribe(self, subject: str, *, gently: bool = False) -> None:
        """Not any more.

        Args:
            gently: What is on its way is still given to the handler.
        """
        self._handlers.pop(subject, None)
        subscription = self._subscriptions.pop(subject, None)
        if subscription is not None and self.is_connected:
            with suppress(Exception):  # it is gone with the connection
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await (subscription.drain() if gently else subscription.unsubscribe())

    async def flush(self) -> None:
        """Wait until the server has read what was sent; at most 2 s."""
        client = self._client
        if client is not None and client.is_connected:
            with suppress(Exception):
                await client.flush(int(_CLOSE_SECONDS))

    def _on_answer(self, message: Message) -> None:
        handler = self._streams.get(message.subject)
        if handler is not None:
            handler(message)
            return
        waiting = self._waiting.get(message.subject)
        if waiting is not None and not waiting.future.done():
            waiting.future.set_result(message)


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return text_of(error) or "it does not answer"
    if isinstance(error, ImportError):
        return f"nats-py needs {error.name} for these credentials: pip install {error.name}"
    return text_of(error) or type(error).__name__


def _calls(handler: Handler) -> Callable[[Message], Awaitable[None]]:
    async def call(message: Message) -> None:
        handler(message)

    return call
