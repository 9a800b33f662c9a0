"""The stream and its consumers: made if they are not there, else checked, and never changed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from invoke_retry.backends.nats.client import ApiError, Unreachable
from invoke_retry.backends.nats.connection import Connection
from invoke_retry.backends.nats.layout import Layout, token
from invoke_retry.clock import Clock
from invoke_retry.errors import BackendError

OLDEST: Final = (2, 14)
_TRIES = 4
_CLOCK_SAMPLES = 3
_NANO = 1_000_000_000
_LOOK_SECONDS = 2.0
_STREAM_MISSING, _CONSUMER_MISSING = 10059, 10014
_LIMITS: Final = {"max_msgs": -1, "max_bytes": -1, "max_age": 0}


def check_version(version: str) -> None:
    """Whether the server has what is needed.

    Raises:
        BackendError: It is too old.
    """
    found = re.match(r"v?(\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) < OLDEST:
        raise BackendError(
            f"the NATS server is of version {version}, but 2.14 or later is needed (for messages "
            "that are due later): upgrade the server"
        )


class Stream:
    """One stream of one server.

    Args:
        lease: Seconds after which what a silent process holds is given to another.
        replicas: On how many servers a new stream is kept.
    """

    def __init__(self, connection: Connection, layout: Layout, lease: float, replicas: int) -> None:
        self._connection = connection
        self._layout = layout
        self._lease = lease
        self._replicas = replicas
        self.name = layout.stream

    async def prepare(self) -> None:
        """Make the stream if it is not there.

        Raises:
            BackendError: It is there, and is not as it must be, or cannot be made.
        """
        is_new, told = await self._made(
            f"STREAM.INFO.{self.name}",
            _STREAM_MISSING,
            f"STREAM.CREATE.{self.name}",
            {"name": self.name, **self._wanted, **_LIMITS, "num_replicas": self._replicas},
        )
        if not is_new and (wrong := self.wrong(told["config"])):
            raise BackendError(wrong)

    @property
    def _wanted(self) -> dict[str, Any]:
        return {
            "subjects": [f"{self._layout.base}.>"],
            "retention": "workqueue",
            "storage": "file",
            "discard": "old",
            "max_msgs_per_subject": 1,
            "allow_direct": True,
            "allow_msg_schedules": True,
            "allow_msg_ttl": True,
        }

    def wrong(self, config: Mapping[str, Any]) -> str:
        """What is wrong with the stream, and what to do; nothing if it is as it must be."""
        return _wrong(f"the stream {self.name}", config, {**self._wanted, **_LIMITS})

    async def find(self) -> None:
        """Whether the stream is there; nothing is made.

        Raises:
            BackendError: It is not, or it is somebody else's.
        """
        where = self._connection.where
        try:
            told = await self.info()
        except ApiError as error:
            if error.err_code != _STREAM_MISSING:
                raise
            there = ", ".join(await self._others())
            raise BackendError(
                f"there is no store {self.name} on {where}; "
                + (f"there are: {there}" if there else "check the stream's name in the URL")
            ) from None
        subjects: list[str] = told["config"].get("subjects") or []
        if f"{self._layout.base}.>" not in subjects:
            raise BackendError(
                f"the stream {self.name} on {where} is no store of invoke_retry: its subjects are "
                f"{', '.join(subjects[:5]) or 'none'}; check the stream's name in the URL"
            )

    async def info(self) -> dict[str, Any]:
        """What the server says of the stream.

        Raises:
            BackendError: It is not there, or there is no answer within some seconds.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + _LOOK_SECONDS
        while True:
            try:
                return await self._connection.api(f"STREAM.INFO.{self.name}")
            except (Unreachable, ApiError) as error:
                is_passing = isinstance(error, Unreachable) or error.code == 503
                if not is_passing or loop.time() > until:
                    raise
            await asyncio.sleep(0.2)

    async def _others(self) -> list[str]:
        """The stores that there are, if one may know."""
        try:
            told = await self._connection.api("STREAM.NAMES", {"subject": "ir.>"})
        except BackendError:
            return []
        return sorted(map(str, told.get("streams") or []))[:10]

    async def prepare_consumer(self, service: str, max_running: int | None) -> None:
        """Make the consumer of a service if it is not there.

        Raises:
            BackendError: It is there, and is not as it must be, or cannot be made.
        """
        name = token(service)
        wanted = {
            **self._wanted_of(service),
            "ack_wait": int(self._lease * _NANO),
            "max_ack_pending": -1 if max_running is None else max_running,
        }
        config = {
            "name": name, "durable_name": name, "deliver_policy": "all", "max_waiting": 5_000,
            "metadata": {"service": service}, **wanted,
        }  # fmt: skip
        is_new, told = await self._made(
            f"CONSUMER.INFO.{self.name}.{name}",
            _CONSUMER_MISSING,
            f"CONSUMER.CREATE.{self.name}.{name}.{wanted['filter_subject']}",
            {"stream_name": self.name, "config": config, "action": "create"},
        )
        what = f"the consumer {name} of the stream {self.name}"
        if not is_new and (wrong := _wrong(what, told["config"], wanted)):
            raise BackendError(wrong)

    def _wanted_of(self, service: str) -> dict[str, Any]:
        return {
            "ack_policy": "explicit",
            "filter_subject": self._layout.due_for(service),
            "max_deliver": -1,
        }

    def wrong_consumer(self, service: str, config: Mapping[str, Any]) -> str:
        """What is wrong with the consumer of a service, its lease and limit apart."""
        what = f"the consumer {token(service)} of the stream {self.name}"
        return _wrong(what, config, self._wanted_of(service))

    async def _made(
        self, ask: str, missing: int, create: str, config: Mapping[str, Any]
    ) -> tuple[bool, dict[str, Any]]:
        """What is there, or was made; while a cluster elects its leader both may fail."""
        for left in reversed(range(_TRIES)):
            try:
                try:
                    return False, await self._connection.api(ask)
                except ApiError as error:
                    if error.err_code != missing:
                        raise
                return True, await self._connection.api(create, config)
            except (Unreachable, ApiError) as error:
                is_passing = isinstance(error, Unreachable) or error.code == 503
                # what another process has made in between is checked by the next try
                is_there = isinstance(error, ApiError) and error.err_code in (10058, 10148)
                if not left or not (is_passing or is_there):
                    raise
                await asyncio.sleep(0.2)
        raise AssertionError("unreachable")  # pragma: no cover

    async def clock(self) -> float:
        """What time it is on the server."""
        told = await self._connection.api(f"STREAM.INFO.{self.name}")
        text = re.sub(r"(\.\d{6})\d*", r"\1", str(told["ts"])).replace("Z", "+00:00")
        return datetime.fromisoformat(text).timestamp()

    async def shift(self, clock: Clock) -> float:
        """By how much the server's clock is ahead of *clock*'s monotonic time."""
        best, shift = float("inf"), 0.0
        for _ in range(_CLOCK_SAMPLES):
            before = clock.monotonic()
            utc = await self.clock()
            after = clock.monotonic()
            if after - before < best:  # the quickest answer is the most exact one
                best, shift = after - before, utc - (before + after) / 2
        return shift


def _wrong(what: str, config: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    wrong = [
        f"{name} is {config.get(name)!r}, but must be {value!r}"
        for name, value in wanted.items()
        if config.get(name, False if value is False else None) != value
    ]
    if not wrong:
        return ""
    return (
        f"{what} is not as it must be ({'; '.join(wrong)}); it is never altered here: change it "
        "with the nats command, or use another stream"
    )
