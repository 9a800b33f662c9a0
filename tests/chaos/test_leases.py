"""Who is dead, who only looks like it, and what one that was taken for dead may still do."""

import signal
import sqlite3
import time
from pathlib import Path
from random import Random

import pytest

from invoke_retry import RetryPolicy

from .books import audit
from .children import Child, until, watch
from .journal import Journal
from .store import coordinator, submitting, told_of
from .tasks import POLICY, REPEATS, Task

LEASE = 0.6


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


def began(journal: Journal) -> list[tuple[int, int]]:
    """Attempts that were begun: their numbers and processes."""
    return [(line.number, line.pid) for line in journal.lines("began")]


async def test_a_late_result_is_refused(tmp_path: Path, journal: Journal) -> None:
    """D3: stopped in mid-attempt past its lease; another one finishes; then it goes on."""
    async with submitting(tmp_path) as retry:
        with Child(tmp_path, journal, lease=LEASE) as first:
            await first.ready()
            task = Task(seconds=0.5, only_first=True)
            cid = await retry.invoke_async("work", task, policy=POLICY, callback="told")
            await until(lambda: began(journal) == [(1, first.pid)])
            await first.pause(tmp_path / "retries.db-lock")
            assert not journal.lines("ended"), "it was not stopped in time"
            with Child(tmp_path, journal, lease=LEASE) as second:
                await until(lambda: cid in told_of(journal))
                outcome = await retry.wait(cid)
                first.resume()
                await until(lambda: first.pid in [line.pid for line in journal.lines("ended")])
                # it has had its chance when it has done another one, and left
                later = await retry.invoke_async("work", Task(), policy=POLICY, callback="told")
                await until(lambda: later in told_of(journal))
                for each in (first, second):
                    each.send(signal.SIGTERM)
                    assert await each.over() == 0
        assert [number for number, _ in began(journal)][:2] == [1, 2]
        assert told_of(journal)[cid] == [outcome]
        assert (outcome.ok, outcome.attempts) == (True, 2)
        assert await retry.wait(cid) == outcome
        assert (await retry.get(cid)).state == "succeeded"
        assert not journal.lines("error")


async def test_who_was_superseded_is_told_and_stops(tmp_path: Path, journal: Journal) -> None:
    async with submitting(tmp_path) as retry:
        with Child(tmp_path, journal, lease=LEASE) as first:
            await first.ready()
            task = Task(seconds=60, only_first=True)
            cid = await retry.invoke_async("work", task, policy=POLICY, callback="told")
            await until(lambda: bool(began(journal)))
            await first.pause(tmp_path / "retries.db-lock")
            with Child(tmp_path, journal, lease=LEASE):
                await until(lambda: cid in told_of(journal))
                first.resume()
                await until(
                    lambda: any(
                        (line.pid, line.text) == (first.pid, "cut")
                        for line in journal.lines("ended")
                    )
                )
        assert len(told_of(journal)[cid]) == 1


@pytest.mark.parametrize(("how", "is_leaving"), [("wait", True), ("block", False)])
async def test_a_live_owner_keeps_what_it_works_on(
    tmp_path: Path, journal: Journal, how: str, is_leaving: bool
) -> None:
    """D4, B5: longer than the lease, in code that awaits or blocks; leaving meanwhile, or not."""
    async with submitting(tmp_path) as retry:
        with (
            Child(tmp_path, journal, lease=LEASE) as one,
            Child(tmp_path, journal, lease=LEASE) as other,
        ):
            await one.ready()
            await other.ready()
            task = Task.model_validate({"seconds": 5 * LEASE, "how": how})
            cid = await retry.invoke_async("work", task, policy=POLICY, callback="told")
            await until(lambda: bool(began(journal)))
            owner = next(each for each in (one, other) if each.pid == began(journal)[0][1])
            if is_leaving:
                owner.send(signal.SIGTERM)
            outcome = await retry.wait(cid, timeout=30)
            assert (outcome.ok, outcome.attempts) == (True, 1)
            await until(lambda: cid in told_of(journal))
        assert began(journal) == [(1, owner.pid)]
        assert told_of(journal)[cid] == [outcome]


async def test_all_are_paused_together(tmp_path: Path, journal: Journal) -> None:
    """Nobody is dead because I was away: a machine, or a container, that is frozen for a while."""
    lease = 5
    async with submitting(tmp_path) as retry:
        with (
            Child(tmp_path, journal, lease=lease) as one,
            Child(tmp_path, journal, lease=lease) as other,
        ):
            await one.ready()
            await other.ready()
            task = Task(seconds=11, only_first=True)
            cid = await retry.invoke_async("work", task, policy=POLICY, callback="told")
            await until(lambda: bool(began(journal)))
            owner, idle = (one, other) if one.pid == began(journal)[0][1] else (other, one)
            await watch(lambda: len(began(journal)) == 1, 1.5)  # each gets to know of the other
            await owner.pause(tmp_path / "retries.db-lock")
            await idle.pause(tmp_path / "retries.db-lock")
            await watch(lambda: len(began(journal)) == 1, lease + 1)
            idle.resume()
            await watch(lambda: len(began(journal)) == 1, 0.5)  # the other one is slower
            owner.resume()
            await until(lambda: cid in told_of(journal))
        assert began(journal) == [(1, owner.pid)]


async def test_who_was_taken_for_dead_is_alive_before_it_takes_anything(
    tmp_path: Path, journal: Journal
) -> None:
    async with coordinator(tmp_path) as one, coordinator(tmp_path):
        db = sqlite3.connect(tmp_path / "retries.db", isolation_level=None)
        db.execute("DELETE FROM worker WHERE seat = 0")  # as the other one does after the lease
        db.close()
        # it runs here, and the other one looks for orphans each second
        cid = await one.invoke_async("work", Task(seconds=2.5), policy=POLICY, callback="told")
        outcome = await one.wait(cid, timeout=30)
    assert (outcome.ok, outcome.attempts) == (True, 1)
    assert len(began(journal)) == 1


async def test_a_new_one_in_the_seat_of_a_dead_one_is_no_dead_one(
    tmp_path: Path, journal: Journal
) -> None:
    async with submitting(tmp_path) as retry, coordinator(tmp_path, lease=3, max_running=1):
        with Child(tmp_path, journal, lease=60) as first:
            await first.ready()
            await watch(lambda: first.status is None, 1.5)  # it is noticed
        await watch(lambda: not began(journal), 3)  # a lease later
        with Child(tmp_path, journal, lease=60) as second:
            await second.ready()
            for _ in range(2):  # one for each of them
                task = Task(seconds=3)
                await retry.invoke_async("work", task, policy=POLICY, callback="told")
            await until(lambda: len(journal.lines("told")) == 2)
    assert [number for number, _ in began(journal)] == [1, 1]


async def test_a_retry_that_is_due_long_after_the_lease_is_made_once(
    tmp_path: Path, journal: Journal
) -> None:
    """T2: nobody holds what waits, however often the processes around it are restarted."""
    wait, chance = 8 * LEASE, Random(7)
    async with submitting(tmp_path) as retry:
        policy = RetryPolicy(REPEATS, wait)
        children = [Child(tmp_path, journal, lease=LEASE) for _ in range(3)]
        try:
            cid = await retry.invoke_async("work", Task(fails=1), policy=policy, callback="told")
            await until(lambda: len(journal.lines("ended")) == 1)
            while cid not in told_of(journal):
                ended_at = journal.lines("ended")[0].at
                if time.monotonic() < ended_at + wait - 1:  # later it might be in the attempt
                    children.pop(chance.randrange(3)).kill()
                    children.append(Child(tmp_path, journal, lease=LEASE))
                    await children[-1].ready()
                await until(lambda: True)
        finally:
            for child in children:
                child.kill()
        outcome = await retry.wait(cid)
    books = audit(journal.lines(), REPEATS)
    first, second = journal.lines("began")
    assert books.is_sound, books.shown()
    assert second.at >= journal.lines("ended")[0].at + wait
    assert (outcome.ok, outcome.attempts, second.number) == (True, 2, 2)
    assert first.number == 1


async def test_leaving_does_not_wait_for_what_waits(tmp_path: Path, journal: Journal) -> None:
    """A6, S2: an hour to go; it is left at once, and is due when it was."""
    async with coordinator(tmp_path, grace=30) as retry:
        cid = await retry.invoke_async("work", Task(fails=1), repeats=1, seconds=3600)
        while (await retry.get(cid)).next_attempt_at is None or not journal.lines("ended"):
            await until(lambda: True)
        await until(lambda: due_of(tmp_path) is not None)
        due, leaving = due_of(tmp_path), retry.clock.monotonic()
    assert retry.clock.monotonic() - leaving < 5
    async with coordinator(tmp_path) as again:
        found = await again.get(cid)
        assert (found.state, found.attempts, due_of(tmp_path)) == ("waiting", 1, due)
        assert await again.run_now(cid)
        assert (await again.wait(cid, timeout=30)).attempts == 2


async def test_an_attempt_that_leaving_cuts_off_does_not_count(
    tmp_path: Path, journal: Journal
) -> None:
    """S1: a deploy used up the attempts of what it interrupted."""
    async with coordinator(tmp_path, grace=0) as retry:
        cid = await retry.invoke_async("work", Task(seconds=60), repeats=0, seconds=0)
        await until(lambda: bool(began(journal)))
    async with submitting(tmp_path) as again:
        found = await again.get(cid)
    assert (found.state, found.attempts, found.history) == ("waiting", 0, [])


def due_of(folder: Path) -> float | None:
    """When the only invocation of the store is due, in its own time."""
    db = sqlite3.connect(f"{(folder / 'retries.db').as_uri()}?mode=ro", uri=True)
    try:
        due: float | None = db.execute(
            "SELECT due FROM invocation WHERE state = 'waiting'"
        ).fetchone()[0]
    finally:
        db.close()
    return due
