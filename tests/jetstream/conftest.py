"""One server for the tests of a process; each test has a stream of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from server_help import Server

_numbers = itertools.count()


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    server = Server(tmp_path_factory.mktemp("nats"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def url(shared_server: Server) -> str:
    """The URL of a stream that nobody has used."""
    return shared_server.url(f"test{next(_numbers)}")


@pytest.fixture
def make_server(tmp_path: Path) -> Generator[Callable[..., Server]]:
    """Makes servers of the test's own, which are stopped after it."""
    servers: list[Server] = []

    def make(**options: object) -> Server:
        folder = tmp_path / f"server{len(servers)}"
        folder.mkdir()
        server = Server(folder, **options)  # type: ignore[arg-type]
        servers.append(server)
        server.start()
        return server

    yield make
    for server in servers:
        server.stop()
