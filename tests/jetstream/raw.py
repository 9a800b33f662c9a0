"""The client of NATS itself, for what a test does to a server beside the backend."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any


@asynccontextmanager
async def connected(*urls: str, **options: Any) -> AsyncGenerator[Any]:
    """A connection, or the error why there is none."""

    async def silent(error: Exception) -> None:
        """What matters is raised."""

    nats: Any = import_module("nats")
    connection = await nats.connect(
        [*urls], allow_reconnect=False, connect_timeout=5, error_cb=silent, **options
    )
    try:
        yield connection
    finally:
        await connection.close()


async def add_stream(connection: Any, name: str, subject: str, replicas: int = 1) -> None:
    await connection.jetstream(timeout=10).add_stream(
        name=name, subjects=[subject], num_replicas=replicas
    )


def answer(port: int, **credentials: str) -> str:
    """What a server says to who shows these: PONG, or why not.

    The client leaves its sockets open when it is refused.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        shown = json.dumps({"verbose": False, **credentials})
        connection.sendall(f"CONNECT {shown}\r\nPING\r\n".encode())
        lines = connection.makefile(encoding="utf-8")
        assert lines.readline().startswith("INFO")
        return lines.readline().strip()
