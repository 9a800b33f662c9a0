"""D14: what no process here can run is parked: kept, counted, visible, and run when it can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from store_help import MovableClock, Stage, ask, counted, reaches, tamper, totals, until

from invoke_retry import BackendError, CorrelationId, InvokeRetry, ServiceRegistry
from invoke_retry.backends import SQLiteBackend
from invoke_retry.backends.sqlite import working
from invoke_retry.backends.sqlite.claims import Look
from invoke_retry.backends.sqlite.upkeep import Upkeep
from invoke_retry.events import Event, Parked


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "retries.db"


async def leave_some(path: Path, target: str, number: int = 3) -> list[CorrelationId]:
    """What a process that is gone has accepted."""
    async with Stage().on(path, work=False) as retry:
        return [
            await retry.invoke_async(target, n, repeats=0, seconds=0, callback="tell", context=n)
            for n in range(number)
        ]


async def test_an_unknown_target_is_parked_and_runs_once_it_is_registered(path: Path) -> None:
    cids = await leave_some(path, "echo")
    async with Stage("tell").on(path) as without:
        for cid in cids:
            await reaches(without, cid, "parked")
            assert "echo" in ((await without.get(cid)).parked_because or "")
        assert (await without.counts())["parked"] == 3
        parked = await without.search(state="parked")
        assert {each.call_cid for each in parked} == set(cids)
        assert all(each.attempts == 0 and each.next_attempt_at is None for each in parked)
    stage = Stage("echo", "tell")
    async with stage.on(path) as again:
        for cid in cids:
            await reaches(again, cid, "succeeded")
        assert (await again.counts())["parked"] == 0
    assert sorted(each.context for each in stage.told) == [0, 1, 2]
    assert totals(path) == counted(path) == {"succeeded": 3}


async def test_people_and_hooks_are_told(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (cid,) = await leave_some(path, "echo", 1)
    told: list[Event] = []
    async with Stage("tell").on(path, hooks=[told.append]) as retry:
        await reaches(retry, cid, "parked")
        await until(lambda: bool(told))
    (event,) = told
    assert isinstance(event, Parked)
    assert (event.cid, event.target) == (cid, "echo")
    assert event.because == "no service is named 'echo' here"
    assert [line for line in caplog.messages if "is parked" in line] == [
        f"echo is parked (no service is named 'echo' here): {cid}"
    ]


async def test_it_runs_in_the_same_coordinator_when_it_learns_the_service(path: Path) -> None:
    (cid,) = await leave_some(path, "echo", 1)
    stage = Stage("tell")
    async with stage.on(path) as retry:
        await reaches(retry, cid, "parked")
        stage.services.register("echo", stage._echo)  # pyright: ignore[reportPrivateUsage]
        await reaches(retry, cid, "succeeded")


async def test_an_unknown_callback_is_parked_with_its_outcome(path: Path) -> None:
    (cid,) = await leave_some(path, "echo", 1)
    first = Stage("echo")
    async with first.on(path) as without:
        await reaches(without, cid, "parked")
        known = await without.wait(cid, 20)
        assert (known.ok, known.response) == (True, 0)
    second = Stage("echo", "tell")
    async with second.on(path) as again:
        await reaches(again, cid, "succeeded")
    assert second.told == [known]
    assert (len(first.calls), len(second.calls)) == (1, 0)


async def test_what_another_process_can_run_is_left_to_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a rolling deploy: the old one leaves the new service to the new one."""
    parked: list[int] = []
    tidy = Upkeep.tidy

    def watched(self: Upkeep, known: Any, held: Any) -> Look:
        look = tidy(self, known, held)
        if set(known) == {"tell"}:
            db = self._store.db  # pyright: ignore[reportPrivateUsage]
            found = db.execute("SELECT count(*) FROM invocation WHERE state = 'parked'")
            parked.append(found.fetchone()[0])
        return look

    monkeypatch.setattr(Upkeep, "tidy", watched)
    monkeypatch.setattr(working, "_TIDY_SECONDS", 0.02)
    new = Stage("hold", "tell")
    async with new.on(path, max_running=1) as newer, Stage("tell").on(path) as old:
        # one runs, two wait for its slot, and are due all the while
        cids = [
            await newer.invoke_async("hold", n, repeats=0, seconds=0, callback="tell")
            for n in range(3)
        ]
        await until(lambda: bool(new.calls))
        tidied = len(parked)
        await until(lambda: len(parked) >= tidied + 5)
        assert (await old.counts())["parked"] == 0
        new.gate.set()
        for cid in cids:
            await reaches(newer, cid, "succeeded")
    assert set(parked) == {0}


async def test_a_dead_process_does_not_keep_its_services_known(path: Path) -> None:
    (cid,) = await leave_some(path, "echo", 1)
    tamper(path, "INSERT INTO worker VALUES (7, 1, 1, '[\"echo\"]', 0)")
    async with Stage("tell").on(path) as retry:
        await reaches(retry, cid, "parked")


async def test_a_payload_that_no_longer_fits_is_parked_and_logged(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cids = await leave_some(path, "echo", 1)

    async def stricter(payload: list[str]) -> None:
        raise AssertionError(payload)

    services = ServiceRegistry()
    services.register("echo", stricter)
    async with InvokeRetry(services, backend=SQLiteBackend(path)) as retry:
        await reaches(retry, cids[0], "parked")
        assert "no longer fits" in ((await retry.get(cids[0])).parked_because or "")
    assert any("is parked" in line for line in caplog.messages)
    stage = Stage()
    async with stage.on(path) as again:
        await reaches(again, cids[0], "succeeded")


async def test_run_now_tries_a_parked_one_again(path: Path) -> None:
    (cid,) = await leave_some(path, "echo", 1)
    async with Stage("tell").on(path) as retry:
        await reaches(retry, cid, "parked")
        assert await retry.run_now(cid)
        await reaches(retry, cid, "parked")
        assert await retry.cancel(cid)
        await reaches(retry, cid, "cancelled")


async def test_a_parked_one_keeps_waiters_waiting(path: Path) -> None:
    (cid,) = await leave_some(path, "echo", 1)
    async with Stage("tell").on(path) as retry:
        await reaches(retry, cid, "parked")
        with pytest.raises(TimeoutError):
            await retry.wait(cid, 0.05)


async def test_when_park_for_has_passed_it_has_failed_and_its_callback_is_told(path: Path) -> None:
    cids = await leave_some(path, "echo", 2)
    stage = Stage("tell")
    async with stage.on(path, park_for=0) as retry:
        for cid in cids:
            outcome = await retry.wait(cid, 20)
            assert (outcome.ok, outcome.reason, outcome.attempts) == (False, "parked", 0)
            assert outcome.req_ts_utc is None
            await reaches(retry, cid, "failed")
        assert (await retry.counts())["failed"] == 2
    assert {each.call_cid for each in stage.told} == set(cids)
    assert totals(path) == counted(path) == {"failed": 2}


async def test_park_for_counts_from_the_moment_of_parking_by_time_that_never_steps(
    path: Path,
) -> None:
    (cid,) = await leave_some(path, "echo", 1)
    clock = MovableClock()
    stage = Stage("tell")
    async with stage.on(path, park_for=100, clock=clock) as retry:
        await reaches(retry, cid, "parked")
        clock.utc_offset += 1_000
        clock.monotonic_offset += 90
        await some_tidying(path)
        assert (await retry.get(cid)).state == "parked"
        clock.monotonic_offset += 11
        await reaches(retry, cid, "failed")
    assert stage.told[0].reason == "parked"


async def some_tidying(path: Path) -> None:
    """Wait until what is done from time to time was done."""
    tamper(path, "INSERT INTO worker VALUES (77, 1, 0, '[]', 0)")
    await until(lambda: not ask(path, "SELECT 1 FROM worker WHERE seat = 77"))


async def test_an_outcome_whose_callback_is_parked_for_too_long_is_a_dead_letter(
    path: Path,
) -> None:
    (cid,) = await leave_some(path, "echo", 1)
    async with Stage("echo").on(path, park_for=0) as retry:
        await reaches(retry, cid, "dead")
        assert (await retry.wait(cid, 20)).ok
    stage = Stage("echo", "tell")
    async with stage.on(path) as again:
        assert await again.redeliver(cid)
        await reaches(again, cid, "succeeded")
    assert len(stage.told) == 1
    assert stage.calls == []


async def test_a_spoilt_row_with_a_readable_rest_ends_too(path: Path) -> None:
    """Its callback cannot be told, but nothing waits for ever, and nothing is in the way."""
    (cid,) = await leave_some(path, "echo", 1)
    tamper(path, "UPDATE invocation SET source = x'80'")
    async with Stage().on(path, park_for=0) as retry:
        await reaches(retry, cid, "parked")
        assert "cannot be read" in ((await retry.get(cid)).parked_because or "")
        with pytest.raises(BackendError, match="known already"):
            await retry.invoke_async("echo", 0, repeats=0, seconds=0, cid=cid)
        assert not await retry.cancel(cid)
        assert not await retry.run_now(cid)
        assert not await retry.redeliver(cid)
        other = await retry.invoke_async("echo", 1, repeats=0, seconds=0)
        await reaches(retry, other, "succeeded")
