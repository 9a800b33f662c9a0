"""Many processes on one file at full speed: nobody is locked out, nothing is done twice."""

import signal
import sqlite3
import threading
from contextlib import ExitStack
from pathlib import Path

from .books import audit
from .children import Child, until
from .journal import Journal
from .store import submit, submitting
from .tasks import REPEATS, Task

LEASE = 30


async def test_8_processes_claim_2000_rows(tmp_path: Path) -> None:
    """D9: all begin at once."""
    journal, rows = Journal(tmp_path / "journal"), 2_000
    with ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(Child(tmp_path, journal, lease=LEASE, gate=True))
        async with submitting(tmp_path) as retry:
            await submit(retry, journal, Task(seconds=0.002), rows)
            await until(lambda: len(journal.lines("at the gate")) == 8)
            (tmp_path / "go").touch()
            await until(lambda: len(journal.lines("told")) == rows, 120)
            counts = await retry.counts()
            while counts["notifying"]:
                counts = await retry.counts()
    books = audit(journal.lines(), REPEATS)
    assert books.is_sound, books.shown()
    assert (books.accepted, books.attempts, books.callbacks) == (rows, rows, rows)
    assert (counts["succeeded"], sum(counts.values())) == (rows, rows)
    assert len({line.pid for line in journal.lines("began")}) > 1


async def test_nobody_is_told_that_the_database_is_locked(tmp_path: Path) -> None:
    """D8: four accept, claim and finish as fast as they can, and a reader reads all the time."""
    journal, each = Journal(tmp_path / "journal"), 400
    is_over, reads, errors = threading.Event(), list[int](), list[Exception]()

    def read() -> None:
        db = sqlite3.connect(f"{(tmp_path / 'retries.db').as_uri()}?mode=ro", uri=True, timeout=5)
        try:
            while not is_over.is_set():
                reads.append(db.execute("SELECT count(*) FROM invocation").fetchone()[0])
        except sqlite3.Error as error:
            errors.append(error)
        finally:
            db.close()

    reader = threading.Thread(target=read, daemon=True)
    with ExitStack() as stack:
        children = [
            stack.enter_context(Child(tmp_path, journal, lease=LEASE, submit=each, gate=True))
            for _ in range(4)
        ]
        async with submitting(tmp_path):
            await until(lambda: len(journal.lines("at the gate")) == 4)
            (tmp_path / "go").touch()
            reader.start()
            try:
                await until(lambda: len(journal.lines("submitted")) == 4, 120)
                await until(lambda: len(journal.lines("told")) >= 4 * each, 120)
            finally:
                is_over.set()
                reader.join()
            for child in children:
                child.send(signal.SIGTERM)
            for child in children:
                assert await child.over() == 0
    books = audit(journal.lines(), REPEATS)
    assert books.is_sound, books.shown()
    assert (books.accepted, books.callbacks) == (4 * each, 4 * each)
    assert not errors
    assert reads[-1] == 4 * each


async def test_a_deploy_loses_nothing_and_begins_nothing(tmp_path: Path) -> None:
    """S1: SIGTERM with 50 running and 500 waiting; then the new release starts."""
    journal, running, waiting = Journal(tmp_path / "journal"), 50, 500
    async with submitting(tmp_path) as retry:
        await submit(retry, journal, Task(seconds=0.5), running + waiting)
        with Child(tmp_path, journal, lease=LEASE, max_running=running) as old:
            await until(lambda: len(journal.lines("began")) >= running)
            old.send(signal.SIGTERM)
            assert await old.over() == 0
        counts, begun = await retry.counts(), len(journal.lines("began"))
        assert begun <= 3 * running  # the first, and what came until the signal did
        assert (counts["running"], counts["waiting"]) == (0, running + waiting - begun)
        with Child(tmp_path, journal, lease=LEASE, max_running=waiting):
            await until(lambda: len(journal.lines("told")) == running + waiting, 60)
    books = audit(journal.lines(), REPEATS)
    assert books.is_sound, books.shown()
    assert (books.accepted, books.attempts, books.repeated) == (550, 550, 0)
