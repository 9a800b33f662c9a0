"""Reading the newest message of a record, and the guarded write that every change is.

A write names the message that it follows, and stands only if that is still the newest one. What
was written without an answer in time is tried again; if the newest message is another one then, it
may be the write itself: each carries a mark of its own.
"""

from __future__ import annotations

import base64
import itertools
import secrets
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

import anyio

from invoke_retry.backends.nats.client import ApiError, Unreachable, answered
from invoke_retry.backends.nats.connection import Connection
from invoke_retry.backends.nats.layout import Layout, Place, place_of, token
from invoke_retry.backends.nats.state import Found, Unreadable, dump_within, load
from invoke_retry.clock import Clock
from invoke_retry.correlation import CorrelationId
from invoke_retry.errors import BackendError
from invoke_retry.record import Record

_NOT_THE_NEWEST, _IN_PROCESS, _NO_MESSAGE = 10071, 10164, 10037
_PATIENCE = 8.0
_PAUSE = 0.1
_RESERVED = 32_768

T = TypeVar("T")


class Written(NamedTuple):
    """Where a record's new message stands, and its number."""

    subject: str
    sequence: int


class Last(NamedTuple):
    """The newest message at a subject."""

    data: bytes
    subject: str
    sequence: int


async def last_message(connection: Connection, stream: str, subject: str) -> Last | None:
    """The newest message there; None if there is none.

    The leader is asked: a follower may not know yet what was just accepted.

    Raises:
        BackendError: It could not be read.
    """
    try:
        told = await connection.api(f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject})
    except ApiError as error:
        if error.err_code != _NO_MESSAGE:
            raise
        return None
    message = told["message"]
    data = base64.b64decode(message.get("data", ""))
    return Last(data, str(message["subject"]), int(message["seq"]))


class Store:
    """What one process reads and writes.

    Args:
        clock: The coordinator's.

    Attributes:
        shift: Server time minus the coordinator's monotonic clock.
        patience: Seconds for which what is not answered is tried again.
    """

    def __init__(self, connection: Connection, layout: Layout, clock: Clock) -> None:
        self.connection = connection
        self.layout = layout
        self.clock = clock
        self.shift = 0.0
        self.patience = _PATIENCE
        self._me = secrets.token_hex(8)
        self._ops = itertools.count(1)
        self._used: set[str] = set()

    def new_op(self) -> str:
        """The mark of a write."""
        return f"{self._me}.{next(self._ops)}"

    def is_mine(self, op: str) -> bool:
        """Whether this process has made that write."""
        return op.startswith(f"{self._me}.")

    async def write(
        self,
        record: Record,
        op: str,
        previous: str | None,
        sequence: int,
        lease: int | None = None,
    ) -> Written | None:
        """Write a record after the message that is its newest one.

        Args:
            op: The mark of this write; the same one if it is tried again.
            previous: The subject of that message, if there is one.
            sequence: Its number; 0 if there is none.
            lease: By which message in `due` the record is held from now on, if it is.

        Returns:
            The new message; None if another one is the newest.

        Raises:
            BackendError: It may or may not be written.
        """
        body = self._body(record, op, lease, is_new=sequence == 0)

        async def publish() -> Written:
            place = self.layout.place(record, self.clock.monotonic(), self.shift)
            place = self.layout.guarded(place, record.cid, previous, sequence)
            answer = await self.connection.request(place.subject, body, place.headers)
            return Written(place.subject, int(answered(answer)["seq"]))

        try:
            return await self.patiently(publish)
        except ApiError as error:
            if error.err_code != _NOT_THE_NEWEST:
                raise
        newest = await self.newest_if_readable(record.cid)
        if newest is None or newest.op != op:
            return None
        return Written(newest.subject, newest.sequence)

    async def patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask again, for a while, what has no answer: a server restarts, a cluster elects.

        Raises:
            BackendError: There is no answer, or it is a refusal.
        """
        until = self.clock.monotonic() + self.patience
        while True:
            try:
                return await ask()
            except ApiError as error:
                is_passing = error.err_code == _IN_PROCESS or error.code == 503
                if not is_passing or self.clock.monotonic() > until:
                    raise
                await anyio.sleep(_PAUSE)
            except Unreachable:
                left = until - self.clock.monotonic()
                if left <= 0:
                    raise
                await anyio.sleep(min(_PAUSE, left))
                await self.connection.connected(left)

    def _body(self, record: Record, op: str, lease: int | None, *, is_new: bool) -> bytes:
        limit = self.connection.max_body - (_RESERVED if is_new else 0)
        body = dump_within(record, self.shift, op, lease, limit)
        if body is None:
            raise BackendError(
                f"it takes more than the {limit:,} bytes that a message of the NATS server may "
                "have; nothing was written: send less (a reference to the data, say), or raise "
                "max_payload of the server"
            )
        return body

    async def newest(self, cid: str) -> Found | None:
        """The record as it stands; None if there is none.

        Raises:
            Unreadable: It is damaged.
            BackendError: It could not be read.
        """
        told = await self.patiently(
            lambda: last_message(self.connection, self.layout.stream, self.layout.of(cid))
        )
        return None if told is None else load(told.data, self.shift, told.subject, told.sequence)

    async def newest_if_readable(self, cid: str) -> Found | None:
        """The same; None for what is damaged, too."""
        try:
            return await self.newest(cid)
        except Unreadable:
            return None

    async def put(self, subject: str, cid: str, body: bytes, sequence: int) -> bool:
        """Write a body as it is after the message that is its record's newest one, if it is."""
        place = self.layout.guarded(Place(subject, {}), cid, None, sequence)
        try:
            answered(await self.connection.request(place.subject, body, place.headers))
            return True
        except ApiError as error:
            if error.err_code != _NOT_THE_NEWEST:
                raise
            return False

    async def last_sequence(self) -> int:
        """The number of the message that was written last."""
        told = await self.connection.api(f"STREAM.INFO.{self.layout.stream}")
        return int(told["state"]["last_seq"])

    async def use(self, *services: str | None) -> None:
        """Say, once, that something is accepted for these services: somebody should have them."""
        for service in services:
            if service is not None and service not in self._used:
                subject = f"{self.layout.base}.ctl.service.{token(service)}"
                answered(await self.connection.request(subject, service.encode()))
                self._used.add(service)

    async def remove(self, sequence: int) -> None:
        """Take away a message that is no longer the newest of its record."""
        try:
            what = {"seq": sequence, "no_erase": True}
            await self.connection.api(f"STREAM.MSG.DELETE.{self.layout.stream}", what)
        except ApiError:  # it is gone already
            pass

    async def tidy_after(self, previous: Found) -> None:
        """Take away what a write has left standing: what is due or over is no schedule."""
        if place_of(previous.subject) in ("due", "end"):
            await self.remove(previous.sequence)


def is_cid(cid: object) -> bool:
    """Whether it can be one; what is none must not get into a subject."""
    try:
        CorrelationId(cid)
    except (TypeError, ValueError):
        return False
    return True
