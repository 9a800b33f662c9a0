"""One server for the tests of a process; each test has a stream of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from invoke_retry.testing.nats_server import NatsServer

_numbers = itertools.count()


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Generator[NatsServer]:
    with NatsServer(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture
def url(shared_server: NatsServer) -> str:
    """The URL of a stream that nobody has used."""
    return shared_server.url_of(f"test{next(_numbers)}")


@pytest.fixture
def make_server(tmp_path: Path) -> Generator[Callable[..., NatsServer]]:
    """Makes servers of the test's own, which are stopped after it."""
    with ExitStack() as stack:
        names = itertools.count()

        def make(**options: Any) -> NatsServer:
            folder = tmp_path / f"server{next(names)}"
            return stack.enter_context(NatsServer(folder, **options))

        yield make
