"""Workers and servers die, stop and come back: nothing lost, nothing flipped, late ones refused."""

import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import anyio
import pytest
from chaos.books import audit
from chaos.children import environment, until
from chaos.journal import Journal
from chaos.store import told_of
from chaos.tasks import CALLBACK_POLICY, POLICY, REPEATS, Task, make_services

from invoke_retry import InvokeRetry
from invoke_retry.testing.nats_server import NatsServer

from . import chaos
from .worker import WorkerChild

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it has no such signals")
LEASE = 1.5
CALLERS = 50


def test_all_kinds() -> None:
    """At the same time, each on servers of its own: most of it is waiting."""
    playing = [
        subprocess.Popen(
            [sys.executable, "-m", chaos.__name__, *f"--minutes 0.1 --kinds {kind}".split()],
            stdout=subprocess.PIPE, text=True, env=environment(),
        )
        for kind in chaos.KINDS
    ]  # fmt: skip
    try:
        for each in playing:
            text, _ = each.communicate(timeout=300)
            assert each.returncode == 0, text
            figures = {
                line.rpartition(" ")[0].strip(): line.split()[-1]
                for line in text.splitlines()
                if line
            }
            assert int(figures["callbacks"]) >= int(figures["accepted"]) > 5
    finally:
        for each in playing:
            each.kill()
            each.communicate()


@pytest.fixture
def url() -> Generator[str]:
    with NatsServer() as server:
        yield f"{server.url_of('orders')}?lease={LEASE:g}"


async def test_a_late_result_is_refused(tmp_path: Path, url: str) -> None:
    """D3: stopped in mid-attempt past its lease; another one finishes; then it goes on."""
    journal = Journal(tmp_path / "journal")
    services = make_services(journal)
    async with InvokeRetry(services, backend=url, work=False) as retry:
        with WorkerChild(tmp_path, journal, url=url) as first:
            await first.ready()
            task = Task(seconds=1, only_first=True)
            cid = await retry.invoke_async("work", task, policy=POLICY, callback="told")
            await until(lambda: bool(journal.lines("began")))
            await first.freeze()
            assert not journal.lines("ended"), "it was not stopped in time"
            journal.write("paused", number=first.pid)
            with WorkerChild(tmp_path, journal, url=url) as second:
                await until(lambda: cid in told_of(journal))
                outcome = await retry.wait(cid)
                first.resume()
                await until(lambda: first.pid in [line.pid for line in journal.lines("ended")])
                second.send(signal.SIGTERM)
                assert await second.over() == 0
                # it has had its chance when it has done another one, and left
                later = await retry.invoke_async("work", Task(), policy=POLICY, callback="told")
                await until(lambda: later in told_of(journal))
                first.send(signal.SIGTERM)
                assert await first.over() == 0
        assert [(line.number, line.pid) for line in journal.lines("began")][:2] == [
            (1, first.pid),
            (2, second.pid),
        ]
        assert {each.model_dump_json() for each in told_of(journal)[cid]} == {
            outcome.model_dump_json()
        }
        assert (outcome.ok, outcome.attempts) == (True, 2)
        assert await retry.wait(cid) == outcome
        assert (await retry.get(cid)).state == "succeeded"
    books = audit(journal.lines(), REPEATS)
    assert books.is_sound, books.shown()


async def submit(retry: InvokeRetry, journal: Journal, number: int) -> None:
    for _ in range(number):
        cid = await retry.invoke_async("work", Task(), policy=POLICY, callback="told")
        journal.write("accepted", cid)


async def test_eight_processes_share_what_is_due(tmp_path: Path, url: str) -> None:
    """No two of them make the same attempt, and none of them is left out."""
    journal, number = Journal(tmp_path / "journal"), 10_000
    services = make_services(journal)
    async with InvokeRetry(
        services, backend=url, work=False, callback_policy=CALLBACK_POLICY
    ) as retry:
        workers = [WorkerChild(tmp_path, journal, url=url, max_running=20) for _ in range(8)]
        try:
            for worker in workers:
                await worker.ready()
            async with anyio.create_task_group() as group:
                for _ in range(CALLERS):
                    group.start_soon(submit, retry, journal, number // CALLERS)
            await until(lambda: journal.path.read_bytes().count(b'["told"') >= number, 120)
            for worker in workers:
                worker.send(signal.SIGTERM)
            for worker in workers:
                assert await worker.over() == 0
        finally:
            for worker in workers:
                worker.kill()
    books = audit(journal.lines(), REPEATS)
    assert books.is_sound, books.shown()
    assert (books.accepted, books.attempts) == (number, number)
    assert {line.pid for line in journal.lines("began")} == {worker.pid for worker in workers}
