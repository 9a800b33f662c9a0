"""What is refused when a coordinator is entered, and with which words."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from invoke_retry import BackendError, InvokeRetry, ServiceRegistry
from invoke_retry.backends import NATSBackend, backend_from
from invoke_retry.testing.nats_server import NatsServer

from .jwts import Operator
from .nats_help import Raw, Stage

SECRET = "s3cr3t-p4ss"


async def why_not(url: str, **options: Any) -> str:
    """Why a coordinator cannot be entered."""
    with pytest.raises(BackendError) as caught:
        async with Stage().retry(url, **options):
            pass
    return str(caught.value)


async def works(url: str, **options: Any) -> None:
    stage = Stage()
    async with stage.retry(url, **options) as retry:
        cid = await retry.invoke_async("echo", 1, repeats=0, seconds=0, callback="tell")
        assert (await retry.wait(cid, timeout=10)).response == 1
        await stage.called("tell")


@asynccontextmanager
async def old_server(version: str) -> AsyncGenerator[str]:
    """Says of itself that it is of a version, and knows no more than how to greet."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        info = {"server_id": "x", "version": version, "headers": True, "max_payload": 1_048_576}
        writer.write(f"INFO {json.dumps(info)}\r\n".encode())
        while line := await reader.readline():
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    try:
        yield f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}/test"
    finally:
        server.close()


@pytest.mark.parametrize("version", ["2.10.29", "2.13.9", "1.4.1", "2.9.0-beta", "unknown"])
async def test_a_server_that_is_too_old(version: str) -> None:
    async with old_server(version) as url:
        text = await why_not(url)
    assert version in text
    assert "2.14" in text
    assert "upgrade" in text


async def test_nobody_is_there() -> None:
    async with old_server("2.14.0") as url:
        pass
    text = await why_not(url)
    assert "no connection to nats://127.0.0.1:" in text


@pytest.mark.slow
async def test_jetstream_is_not_enabled() -> None:
    async with old_server("2.15.0") as url:
        text = await why_not(url)
    assert "has not answered" in text or "JetStream" in text


@pytest.mark.parametrize("wrong", ["", f"orders:{SECRET}x@", f"{SECRET}@"])
async def test_credentials_that_are_refused(
    make_server: Callable[..., NatsServer], wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server = make_server(user="orders", password=SECRET)
    text = await why_not(f"nats://{wrong}{server.address}/test")
    assert "authorization" in text.lower()
    assert SECRET not in text + caplog.text


async def test_credentials_by_url_and_by_options(make_server: Callable[..., NatsServer]) -> None:
    server = make_server(user="orders", password="p@ss/w:rd")
    await works(f"nats://orders:p%40ss%2Fw%3Ard@{server.address}/test")
    await works(
        f"nats://{server.address}/test", options={"user": "orders", "password": "p@ss/w:rd"}
    )


async def test_a_token(make_server: Callable[..., NatsServer]) -> None:
    server = make_server(token=SECRET)
    await works(f"nats://{SECRET}@{server.address}/test")
    assert SECRET not in await why_not(f"nats://{SECRET}x@{server.address}/test")


async def test_a_credentials_file(
    make_server: Callable[..., NatsServer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    ours, foreign = Operator(), Operator()
    server = make_server(settings=ours.settings)
    creds, wrong = tmp_path / "orders.creds", tmp_path / "wrong.creds"
    creds.write_text(ours.credentials())
    wrong.write_text(foreign.credentials())
    await works(f"nats://{server.address}/test", creds=creds)
    async with InvokeRetry(
        ServiceRegistry(), backend=f"nats://{server.address}/test?creds={creds}", work=False
    ) as retry:
        assert (await retry.counts())["succeeded"] == 1
    assert "authorization" in (await why_not(f"nats://{server.address}/test")).lower()
    refused = await why_not(f"nats://{server.address}/test", creds=wrong)
    assert "authorization" in refused.lower()
    assert "creds" in await why_not(f"nats://{server.address}/test", creds=tmp_path / "no.creds")
    for file in (creds, wrong):
        for secret in file.read_text().splitlines():
            assert secret.startswith("-") or not secret or secret not in refused + caplog.text


async def test_tls(make_server: Callable[..., NatsServer], tmp_path: Path) -> None:
    trustme: Any = import_module("trustme")
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    certificate, key, trusted = (tmp_path / name for name in ("cert.pem", "key.pem", "ca.pem"))
    certificate.write_bytes(b"".join(each.bytes() for each in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    authority.cert_pem.write_to_path(str(trusted))
    server = make_server(certificate=(certificate, key))
    await works(f"tls://{server.address}/test", tls_ca=str(trusted))
    async with InvokeRetry(
        ServiceRegistry(), backend=f"tls://{server.address}/test?tls_ca={trusted}", work=False
    ) as retry:
        assert sum((await retry.counts()).values()) == 1
    text = await why_not(f"tls://{server.address}/test")
    assert "certificate" in text.lower()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"max_age": 60_000_000_000}, "max_age"),
        ({"allow_msg_schedules": False}, "allow_msg_schedules"),
        ({"retention": "limits"}, "retention"),
        ({"max_bytes": 10_000_000}, "max_bytes"),
    ],
)
async def test_a_stream_that_is_not_as_it_must_be_is_left_as_it_is(
    url: str, changed: dict[str, Any], named: str
) -> None:
    raw = Raw(url)
    config = {
        "name": raw.stream, "subjects": [f"ir.{raw.stream}.>"], "retention": "workqueue",
        "storage": "file", "max_msgs_per_subject": 1, "allow_direct": True,
        "allow_msg_schedules": True, "allow_msg_ttl": True, **changed,
    }  # fmt: skip
    made = await raw.api(f"STREAM.CREATE.{raw.stream}", config)
    assert "error" not in made, made
    text = await why_not(url)
    assert f"{named} is" in text
    assert "never altered" in text
    assert (await raw.api(f"STREAM.INFO.{raw.stream}"))["config"] == made["config"]


async def test_another_lease_or_limit_is_refused(url: str) -> None:
    await works(url, lease=30)
    text = await why_not(url, lease=20)
    assert "ack_wait" in text
    services = ServiceRegistry()

    async def tell() -> None: ...

    services.register("tell", tell, max_running=3)
    with pytest.raises(BackendError, match="max_ack_pending is -1, but must be 3"):
        async with InvokeRetry(services, backend=url):
            pass


@pytest.mark.parametrize(
    "url",
    [
        "nats://", "nats:///stream", "nats://host/with.dot", "nats://host/a/b", "nats://host:x/s",
        "nats://host:1:2/s", "nats://h o/s", "nats://host/s#f", f"nats://u:{SECRET}@/s",
        f"nats://u:{SECRET}@host/s?nonsense=1", f"nats://u:{SECRET}@host/s?lease=soon",
        "nats://host/s?lease=0.5", "nats://host/" + "x" * 65, "tls://host/s?tls_ca=/no/such/file",
        "tls://host/s?tls_key=/k",
    ],
)  # fmt: skip
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        backend_from(url)
    assert SECRET not in str(caught.value)


def test_options_that_are_ours() -> None:
    with pytest.raises(ValueError, match="allow_reconnect"):
        NATSBackend("nats://host/s", options={"allow_reconnect": True})
    with pytest.raises(TypeError, match="url is a int"):
        NATSBackend(4222)  # type: ignore[arg-type]


async def test_nothing_secret_is_shown(
    make_server: Callable[..., NatsServer], caplog: pytest.LogCaptureFixture
) -> None:
    """X7: neither in the log nor in errors, whatever becomes of the server."""
    caplog.set_level(logging.DEBUG)
    server = make_server(user="orders", password=SECRET)
    stage = Stage()
    backend = NATSBackend(f"nats://orders:{SECRET}@{server.address}/test")
    async with InvokeRetry(stage.services, backend=backend, grace=0) as retry:
        server.kill()
        with pytest.raises(BackendError) as caught:
            await retry.invoke_async("echo", 1, repeats=0, seconds=0)
    shown = f"{caught.value!r} {caught.value} {backend!r} {backend.problem} {caplog.text}"
    assert SECRET not in shown


async def test_without_nats_py_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['nats'] = None; from invoke_retry import InvokeRetry, "
        "ServiceRegistry; InvokeRetry(ServiceRegistry(), backend='nats://127.0.0.1/x')"
    )
    run = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stderr=asyncio.subprocess.PIPE
    )
    _, told = await run.communicate()
    assert (
        told.decode()
        .strip()
        .endswith("ImportError: the NATS backend needs nats-py: pip install 'invoke-retry[nats]'")
    )
