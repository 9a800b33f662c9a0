"""`worker`: a process that runs the background work of a coordinator, until a signal ends it."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from cli_help import COMMAND, environment, run_outside

from invoke_retry import InvokeRetry, ServiceRegistry

MODULE = """
import asyncio, threading, time
from pathlib import Path
from invoke_retry import InvokeRetry, ServiceRegistry, current_call

services = ServiceRegistry()

def note(text):
    with Path("notes").open("a") as notes:
        print(text, file=notes)

@services.service("echo")
async def echo(n: int) -> int:
    note(f"echo {n}")
    return n

@services.service("slow")
async def slow(seconds: float) -> None:
    note(f"begun {current_call().attempt}")
    await asyncio.sleep(seconds)
    note("over")

@services.service("stubborn")
async def stubborn() -> None:
    note("stubborn")
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

@services.service("blocks")
async def blocks() -> None:
    note("blocks")
    time.sleep(60)

@services.service("hangs_in_a_thread")
async def hangs_in_a_thread() -> None:
    threading.Thread(target=time.sleep, args=(60,)).start()
    note("hangs")

STORE = "sqlite:///retries.db?synchronous=normal"
retry = InvokeRetry(services, backend=STORE, grace=30)
hasty = InvokeRetry(services, backend=STORE, grace=0.2)
asks = InvokeRetry(services, backend=STORE, work=False)
forgets = InvokeRetry(services)
text = "retry"

def made() -> InvokeRetry:
    return InvokeRetry(services, backend=STORE)

async def made_later() -> InvokeRetry:
    await asyncio.sleep(0)
    return made()

async def entered() -> InvokeRetry:
    return await made().__aenter__()

def wants(more: int) -> InvokeRetry:
    return made()

def leaves() -> InvokeRetry:
    raise SystemExit(0)

def fails() -> InvokeRetry:
    raise LookupError("no settings")

class Holder:
    retry = retry

class Broken(InvokeRetry):
    async def __aenter__(self):
        await super().__aenter__()
        fail = self._life.entered().fail
        asyncio.get_running_loop().call_later(0.05, fail, RuntimeError("worn out"))
        return self

broken = Broken(services, backend=STORE)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a module `shop`, whose store is beside it."""
    (tmp_path / "shop.py").write_text(MODULE)
    (tmp_path / "notes").touch()
    return tmp_path


class Worker:
    """A worker that runs in a folder."""

    def __init__(self, folder: Path, place: str, *options: str) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            [*COMMAND, "worker", place, *options], cwd=folder, env=environment(),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.pid = self._process.pid

    def begun(self) -> str:
        """Wait until it says that it runs; that line."""
        assert self._process.stderr is not None
        return self._process.stderr.readline()

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def is_alive(self) -> bool:
        return self._process.poll() is None

    async def noted(self, text: str) -> None:
        """Wait until a service has noted that."""
        async with asyncio.timeout(20):
            while text not in (self._folder / "notes").read_text().splitlines():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def ended(self, within: float = 20) -> tuple[int, str, str]:
        """Wait for its end: its code, and what it has written since."""
        try:
            out, err = await anyio.to_thread.run_sync(self._process.communicate, None, within)
        finally:
            self._process.kill()
        return self._process.returncode, out, err

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def worker(folder: Path, place: str = "shop:retry", *options: str) -> Generator[Worker]:
    process = Worker(folder, place, *options)
    try:
        yield process
    finally:
        process.kill()


async def submit(folder: Path, service: str, *payload: object) -> str:
    """Leave the worker an invocation."""
    services = ServiceRegistry()

    async def anything(payload: object = None) -> None:
        raise AssertionError

    services.register(service, anything)
    store = f"sqlite:///{folder / 'retries.db'}"
    async with InvokeRetry(services, backend=store, work=False) as retry:
        return await retry.invoke_async(service, *payload, repeats=3, seconds=0)


async def attempts_of(folder: Path, cid: str) -> tuple[str, int]:
    store = f"sqlite:///{folder / 'retries.db'}"
    async with InvokeRetry(ServiceRegistry(), backend=store, work=False) as retry:
        found = await retry.get(cid)
        return found.state, found.attempts


@pytest.mark.parametrize("place", ["retry", "made", "made_later", "Holder.retry"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_runs_what_is_due_until_a_signal(
    folder: Path, place: str, number: signal.Signals
) -> None:
    cid = await submit(folder, "echo", 7)
    with worker(folder, f"shop:{place}") as process:
        begun = process.begun()
        assert (
            f"worker {process.pid}: runs blocks, echo, hangs_in_a_thread, slow, stubborn" in begun
        )
        assert f"on sqlite:///{folder / 'retries.db'}" in begun
        await process.noted("echo 7")
        process.send(number)
        code, out, err = await process.ended()
    assert (code, out) == (0, "")
    assert err == f"invoke-retry worker {process.pid}: ended after {number.name}\n"
    assert (await attempts_of(folder, cid))[1] == 1


async def test_what_runs_may_end_within_the_grace(folder: Path) -> None:
    cid = await submit(folder, "slow", 0.5)
    with worker(folder) as process:
        await process.noted("begun 1")
        process.send(signal.SIGTERM)
        code, _, _ = await process.ended()
    assert code == 0
    assert (folder / "notes").read_text() == "begun 1\nover\n"
    assert await attempts_of(folder, cid) == ("succeeded", 1)


async def test_what_runs_longer_is_given_back(folder: Path) -> None:
    cid = await submit(folder, "slow", 60)
    with worker(folder, "shop:hasty") as process:
        await process.noted("begun 1")
        process.send(signal.SIGTERM)
        code, _, err = await process.ended()
    assert code == 0
    assert "ended after SIGTERM" in err
    assert await attempts_of(folder, cid) == ("waiting", 0)


@pytest.mark.parametrize("service", ["slow", "stubborn"])
async def test_a_second_signal_cuts_it_off(folder: Path, service: str) -> None:
    cid = await submit(folder, service, *([60] if service == "slow" else []))
    with worker(folder) as process:
        await process.noted("begun 1" if service == "slow" else "stubborn")
        process.send(signal.SIGTERM)
        process.send(signal.SIGTERM)  # these two may be one for the system
        process.send(signal.SIGINT)
        code, _, err = await process.ended(within=8)
    assert code in (128 + signal.SIGTERM, 128 + signal.SIGINT)
    assert "cut off by a second signal" in err
    assert await attempts_of(folder, cid) == ("waiting", 0)


async def test_a_second_signal_ends_it_even_if_its_loop_is_blocked(folder: Path) -> None:
    await submit(folder, "blocks")
    with worker(folder) as process:
        await process.noted("blocks")
        process.send(signal.SIGINT)
        # one that comes in the same moment may wait until the loop is free: Python runs handlers
        # in the main thread only
        async with asyncio.timeout(20):
            while process.is_alive():
                process.send(signal.SIGTERM)
                await asyncio.sleep(0.5)
        code, _, _ = await process.ended()
    assert code in (128 + signal.SIGTERM, 128 + signal.SIGINT)


async def test_a_thread_that_hangs_does_not_hold_up_the_end(folder: Path) -> None:
    await submit(folder, "hangs_in_a_thread")
    with worker(folder) as process:
        await process.noted("hangs")
        process.send(signal.SIGTERM)
        code, _, err = await process.ended(within=30)
    assert code == 0
    assert "ended after SIGTERM" in err


async def test_a_fault_of_the_background_ends_it(folder: Path) -> None:
    with worker(folder, "shop:broken") as process:
        code, _, err = await process.ended()
    assert code == 1
    last = err.splitlines()[-1]
    assert last.endswith("the background has stopped by a fault: RuntimeError: worn out")


async def test_json_for_those_who_start_it(folder: Path) -> None:
    with worker(folder, "shop:retry", "--json") as process:
        await submit(folder, "echo", 1)
        await process.noted("echo 1")
        process.send(signal.SIGTERM)
        code, out, err = await process.ended()
    begun, ended = (json.loads(line) for line in out.splitlines())
    assert (code, err) == (0, "")
    assert begun["data"]["event"] == "begun"
    assert begun["data"]["store"] == f"sqlite:///{folder / 'retries.db'}"
    assert "echo" in begun["data"]["services"]
    assert ended["data"] == {
        "event": "ended", "pid": process.pid, "code": 0, "why": "ended after SIGTERM",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("shop", "'shop' names no coordinator; expected module:name"),
        ("", "names no coordinator"),
        (":retry", "names no coordinator"),
        ("shop:", "names no coordinator"),
        ("shop:retry()", "names no coordinator"),
        (".shop:retry", "names no coordinator"),
        ("shop.py:retry", "perhaps shop:retry"),
        ("./lib/shop.py", "perhaps lib.shop:retry"),
        ("shp:retry", "there is no module shp in "),
        ("shp:retry", "close to it: shop"),
        ("shop.more:retry", "there is no module shop.more"),
        ("shop:rety", "shop has no rety; there are: retry, hasty, asks"),
        ("shop:Holder.retries", "Holder has no retries; there is: retry"),
        ("shop:services", "must be an InvokeRetry"),
        ("shop:text", "must be an InvokeRetry"),
        ("shop:note", "wants arguments"),
        ("shop:wants", "wants arguments"),
        ("shop:InvokeRetry", "wants arguments"),
        ("shop:leaves", "made no coordinator: SystemExit: 0"),
        ("shop:fails", "made no coordinator: LookupError: no settings"),
        ("shop:asks", "was made with work=False"),
        ("shop:forgets", "waits in memory"),
        ("shop:entered", "a coordinator is entered once"),
        ("raises:retry", "raises cannot be imported: ZeroDivisionError: division by zero"),
        ("exits:retry", "exits cannot be imported: SystemExit: 3"),
        ("misses:retry", "No module named 'nothing_of_that_name'"),
        ("wrong:retry", "wrong cannot be imported: SyntaxError"),
    ],
)
def test_what_is_no_coordinator_is_told_to_people(
    folder: Path, monkeypatch: pytest.MonkeyPatch, place: str, text: str
) -> None:
    monkeypatch.chdir(folder)
    (folder / "raises.py").write_text("def divide():\n    return 1 / 0\n\ndivide()\n")
    (folder / "exits.py").write_text("raise SystemExit(3)")
    (folder / "misses.py").write_text("import nothing_of_that_name")
    (folder / "wrong.py").write_text("retry = (")
    done = run_outside("worker", place)
    assert done.code == 2
    assert done.out == ""
    assert text in done.err.splitlines()[-1]
    assert re.findall(r'File "([^"]+)"', done.err) == {
        "raises:retry": [str(folder / "raises.py")] * 2,
        "exits:retry": [str(folder / "exits.py")],
        "misses:retry": [str(folder / "misses.py")],
        "shop:fails": [str(folder / "shop.py")],
        "shop:leaves": [str(folder / "shop.py")],
    }.get(place, [])


def test_a_store_that_cannot_be_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "retries.db").write_bytes(b"no database " * 1_000)
    done = run_outside("worker", "shop:retry")
    assert done.code == 3
    assert "Traceback" not in done.err


async def test_ended_waits_for_the_end() -> None:
    retry = InvokeRetry(ServiceRegistry())
    async with retry:
        ended = asyncio.create_task(retry.ended())
        await asyncio.sleep(0)
        assert not ended.done()
    await ended
