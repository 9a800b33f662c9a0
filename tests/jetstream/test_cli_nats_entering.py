"""The command line where there is no such store, no server, or no right to it."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any

import pytest
from cli_help import run, told

from invoke_retry.testing.nats_server import NatsServer

from .cli_nats_help import PASSWORD, make_due, seen
from .nats_help import Raw
from .raw import add_stream, connected

SECONDS = 7.0  # five, and what a loaded machine takes for itself
COMMANDS = (("counts",), ("doctor",), ("cancel", "--state", "waiting", "--yes"), ("pause", "echo"))


def refused(store: str, *commands: tuple[str, ...]) -> str:
    """What is said of a store that cannot be used, by each command the same, within some time."""
    texts: set[str] = set()
    for command in commands or COMMANDS:
        before = time.monotonic()
        error: Any = told(*command, store=store, code=3)
        assert time.monotonic() - before < SECONDS
        assert error["kind"] == "store"
        texts.add(error["message"])
    assert len(texts) == 1, texts
    done = run("list", store=store)
    assert (done.code, done.out) == (3, "")
    assert "Traceback" not in done.err
    assert PASSWORD not in done.err
    return texts.pop()


@pytest.fixture
def silent() -> Generator[str]:
    """Where somebody listens who says nothing."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield f"nats://127.0.0.1:{server.getsockname()[1]}/orders"


def test_a_mistyped_stream_is_not_made(url: str) -> None:
    asyncio.run(make_due(url, "echo"))
    before = asyncio.run(seen(url))
    text = refused(f"{url}s")
    assert text.startswith(f"there is no store {Raw(url).stream}s on nats://127.0.0.1:")
    assert Raw(url).stream in text.split("there are: ")[1]
    assert asyncio.run(seen(url)) == before


def test_a_stream_of_somebody_else(url: str, shared_server: NatsServer) -> None:
    async def make() -> None:
        async with connected(shared_server.url) as client:
            await add_stream(client, "mails", "mails.>")

    asyncio.run(make())
    text = refused(shared_server.url_of("mails"))
    assert "is no store of invoke_retry: its subjects are mails.>" in text


def test_nobody_is_there(silent: str) -> None:
    assert "it does not answer" in refused(silent, ("counts",))
    with closing(socket.socket()) as nobody:
        nobody.bind(("127.0.0.1", 0))  # taken, and not listening
        url = f"nats://u:{PASSWORD}@127.0.0.1:{nobody.getsockname()[1]}/orders"
        assert "no connection to nats://127.0.0.1:" in refused(url)


def test_a_server_that_has_stopped(make_server: Callable[..., NatsServer]) -> None:
    server = make_server()
    asyncio.run(make_due(server.url_of("orders"), "echo"))
    server.pause()
    try:
        assert "it does not answer" in refused(server.url_of("orders"), ("counts",))
    finally:
        server.resume()


@pytest.fixture
def guarded_by_password(make_server: Callable[..., NatsServer]) -> NatsServer:
    return make_server(user="retries", password="right")


def test_refused_credentials(guarded_by_password: NatsServer) -> None:
    server = guarded_by_password
    for who in (f"retries:{PASSWORD}@", f"{PASSWORD}@", ""):
        text = refused(f"nats://{who}{server.address}/orders")
        assert "Authorization Violation" in text


def test_tls_is_demanded_of_a_server_that_has_none(guarded_by_password: NatsServer) -> None:
    server = guarded_by_password
    text = refused(f"tls://retries:right@{server.address}/orders")
    assert "it does not offer TLS, which tls:// demands" in text


def test_credentials_that_cannot_be_used(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nkeys", None)
    text = refused(f"{url}?creds=/no/such/file", ("counts",))
    assert "pip install nkeys" in text


@pytest.mark.parametrize("mark", ["/", "?", "#"])
def test_a_password_that_is_not_encoded(mark: str) -> None:
    store = f"nats://retries:{PASSWORD}{mark}{PASSWORD}@127.0.0.1:4222/orders"
    done = run("counts", store=store)
    assert done.code == 2
    assert "percent-encoded" in done.err
    assert PASSWORD not in done.err + done.out


def test_a_url_that_is_none() -> None:
    for url in (
        f"nats://u:{PASSWORD}\u2100@127.0.0.1/orders", f"nats://u:{PASSWORD}@[127.0.0.1/orders",
        f"natz://u:{PASSWORD}@127.0.0.1/orders", f"nats://u:{PASSWORD}@127.0.0.1/or ders",
        f"nats://u:{PASSWORD}@127.0.0.1/orders?leese=3",
    ):  # fmt: skip
        done = run("counts", store=url)
        assert done.code == 2
        assert done.err.startswith("invoke-retry: ")
        assert PASSWORD not in done.err
