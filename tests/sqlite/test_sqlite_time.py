"""T3, I4: neither a wall clock that steps nor a reboot hastens or delays what waits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from store_help import MovableClock, Stage, ask, eventually, reaches, tamper, until

from invoke_retry import CorrelationId, InvokeRetry, RetryPolicy
from invoke_retry.backends.sqlite import store, working

DAY, HOUR, YEAR = 86_400.0, 3_600.0, 365 * 86_400.0
AGES = 50.0  # seconds that no such test takes
STEPS = {"-1 d": -DAY, "-1 h": -HOUR, "+1 h": HOUR, "+10 y": 10 * YEAR}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "retries.db"


@pytest.fixture
def reboot(monkeypatch: pytest.MonkeyPatch) -> Callable[..., MovableClock]:
    """The machine starts again: another boot id, and monotonic time begins anew."""
    boots = [0]
    monkeypatch.setattr(store, "boot_id", lambda: f"boot {boots[0]}")

    def start(*, utc: float = 0.0) -> MovableClock:
        boots[0] += 1
        clock = MovableClock(utc=utc)
        clock.monotonic_offset = 5.0 - clock.monotonic()
        return clock

    return start


async def waits(retry: InvokeRetry, seconds: float) -> CorrelationId:
    """One that has failed once, and waits for its second attempt."""
    cid = await retry.invoke_async("fail", repeats=1, seconds=seconds, callback="tell")

    async def has_failed_once() -> bool:
        shown = await retry.get(cid)
        return (shown.state, len(shown.history)) == ("waiting", 1)

    await eventually(has_failed_once)
    return cid


async def left(retry: InvokeRetry, clock: MovableClock, cid: str) -> float:
    """Seconds until its next attempt, as it is shown."""
    shown = await retry.get(cid)
    assert shown.next_attempt_at is not None
    return shown.next_attempt_at.timestamp() - clock.utc()


async def tidied(path: Path) -> None:
    """Wait until what is done from time to time was done."""
    tamper(path, "INSERT INTO worker VALUES (77, 1, 0, '[]', 0)")
    await until(lambda: not ask(path, "SELECT 1 FROM worker WHERE seat = 77"))


# The wall clock steps while a process runs.


@pytest.mark.parametrize("step", STEPS)
async def test_a_step_changes_no_wait(path: Path, step: str) -> None:
    clock, stage = MovableClock(), Stage()
    async with stage.on(path, clock=clock) as retry:
        cid = await waits(retry, 100)
        clock.utc_offset += STEPS[step]
        assert await left(retry, clock, cid) == pytest.approx(100, abs=10)
        await tidied(path)
        assert (await retry.get(cid)).state == "waiting"
        assert len(stage.calls) == 1
        clock.monotonic_offset += 100
        await reaches(retry, cid, "failed")
        shown = await retry.get(cid)
    assert shown.attempts == 2
    for attempt in shown.history:
        assert attempt.ended_at is not None
        assert attempt.ended_at >= attempt.started_at


@pytest.mark.parametrize("step", STEPS)
async def test_a_step_between_two_processes_of_one_boot_changes_no_wait(
    path: Path, step: str
) -> None:
    clock, stage = MovableClock(), Stage()
    async with stage.on(path, clock=clock) as retry:
        cid = await waits(retry, 100)
    clock.utc_offset += STEPS[step]
    async with stage.on(path, clock=clock) as retry:
        assert await left(retry, clock, cid) == pytest.approx(100, abs=15)
        await tidied(path)
        assert len(stage.calls) == 1
        clock.monotonic_offset += 100
        await reaches(retry, cid, "failed")


@pytest.mark.parametrize("step", STEPS)
async def test_a_step_prunes_nothing(path: Path, step: str) -> None:
    clock, stage = MovableClock(), Stage()
    async with stage.on(path, clock=clock, retention=1_000) as retry:
        cid = await retry.invoke_async("echo", 1, repeats=0, seconds=0)
        await reaches(retry, cid, "succeeded")
        clock.utc_offset += STEPS[step]
        await tidied(path)
        assert (await retry.get(cid)).state == "succeeded"


async def test_deadlines_pass_while_there_is_no_room(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were seen once a second, by what is done from time to time."""
    monkeypatch.setattr(working, "_TIDY_SECONDS", AGES)
    stage = Stage("hold")
    async with stage.on(path, max_running=1) as retry:
        await retry.invoke_async("hold", repeats=0, seconds=0)
        await until(lambda: bool(stage.calls))
        for deadline in (0.3, 0.01, 0.1):
            policy = RetryPolicy(0, 0, deadline=deadline)
            cid = await retry.invoke_async("hold", deadline, policy=policy)
            outcome = await retry.wait(cid, timeout=AGES)
            assert (outcome.reason, outcome.attempts) == ("deadline", 0)
        stage.gate.set()


async def test_a_deadline_is_no_wall_clock_time(path: Path) -> None:
    clock, stage = MovableClock(), Stage()
    async with stage.on(path, clock=clock) as retry:
        policy = RetryPolicy(repeats=5, seconds=50, deadline=120)
        cid = await retry.invoke_async("fail", policy=policy)
        await reaches(retry, cid, "waiting")
        clock.utc_offset += YEAR
        await tidied(path)
        assert (await retry.get(cid)).state == "waiting"
        clock.monotonic_offset += 121
        await reaches(retry, cid, "failed")
        assert (await retry.wait(cid)).reason == "deadline"


# The machine is started again.


async def test_after_a_reboot_the_time_that_it_was_down_has_passed(
    path: Path, reboot: Callable[..., MovableClock]
) -> None:
    clock, stage = reboot(), Stage()
    async with stage.on(path, clock=clock) as retry:
        soon, late = await waits(retry, 100), await waits(retry, 1_000)
    clock = reboot(utc=600)
    async with stage.on(path, clock=clock) as retry:
        await reaches(retry, soon, "failed")
        assert await left(retry, clock, late) == pytest.approx(400, abs=20)
        clock.monotonic_offset += 400
        await reaches(retry, late, "failed")


@pytest.mark.parametrize("back", [0.0, HOUR, DAY, 50 * YEAR])
async def test_after_a_reboot_with_its_clock_set_back_nothing_waits_longer_than_its_interval(
    path: Path, back: float, reboot: Callable[..., MovableClock]
) -> None:
    clock, stage = reboot(), Stage()
    async with stage.on(path, clock=clock) as retry:
        await waits(retry, 1)
        clock.monotonic_offset += 8  # less than it takes until the next sign of life
        clock.utc_offset += 8
        cid = await waits(retry, 100)
    clock = reboot(utc=-back)
    async with stage.on(path, clock=clock) as retry:
        assert await left(retry, clock, cid) <= 101
        clock.monotonic_offset += 101
        await reaches(retry, cid, "failed")


async def test_so_it_is_where_only_those_that_do_no_work_were_up(
    path: Path, reboot: Callable[..., MovableClock]
) -> None:
    clock, stage = reboot(), Stage()
    async with stage.on(path, clock=clock, work=False) as retry:
        await retry.invoke_async("echo", 1, repeats=0, seconds=0)
        clock.monotonic_offset += 10 * DAY
        clock.utc_offset += 10 * DAY
        cid = await retry.invoke_async("echo", 2, repeats=0, seconds=0)
    clock = reboot(utc=-HOUR)
    async with stage.on(path, clock=clock) as retry:
        await reaches(retry, cid, "succeeded")


@pytest.mark.parametrize("forward", [HOUR, 10 * YEAR])
async def test_after_a_reboot_with_its_clock_set_forward_all_is_due(
    path: Path, forward: float, reboot: Callable[..., MovableClock]
) -> None:
    clock, stage = reboot(), Stage()
    async with stage.on(path, clock=clock) as retry:
        cid = await waits(retry, 100)
    async with stage.on(path, clock=reboot(utc=forward)) as retry:
        await reaches(retry, cid, "failed")
    assert len(stage.told) == 1


async def test_several_reboots_add_up(path: Path, reboot: Callable[..., MovableClock]) -> None:
    clock, stage = reboot(), Stage()
    async with stage.on(path, clock=clock) as retry:
        cid = await waits(retry, 1_000)
    for number in range(1, 6):
        clock = reboot(utc=number * 100)
        async with stage.on(path, clock=clock) as retry:
            assert await left(retry, clock, cid) == pytest.approx(1_000 - number * 100, abs=30)
    clock = reboot(utc=1_001)
    async with stage.on(path, clock=clock) as retry:
        await reaches(retry, cid, "failed")


async def test_a_running_attempt_of_before_the_reboot_has_died(
    path: Path, reboot: Callable[..., MovableClock]
) -> None:
    clock, stage = reboot(), Stage()
    async with stage.on(path, clock=clock) as retry:
        cid = await retry.invoke_async("echo", 1, repeats=0, seconds=0, callback="tell")
        await reaches(retry, cid, "succeeded")
    tamper(
        path,
        "UPDATE invocation SET state = 'running', due = NULL, owner = 5, reason = NULL, "
        "outcome_at = NULL, attempt_at = first_at, service = 'echo', deliveries = 0",
    )
    tamper(path, "INSERT INTO worker VALUES (5, 1, 9, '[]', 0)")
    tamper(path, "UPDATE total SET number = 1 - number WHERE state IN ('running', 'succeeded')")
    async with stage.on(path, clock=reboot(utc=60), lease=10 * YEAR) as retry:
        outcome = await retry.wait(cid, 20)
        assert (outcome.ok, outcome.reason, outcome.attempts) == (False, "exhausted", 1)
        assert outcome.error is not None
        assert outcome.error.type == "WorkerDied"


@pytest.mark.parametrize("step", [-50 * YEAR, 0.0, 100 * YEAR])
async def test_all_times_that_are_shown_are_sane(
    path: Path, step: float, reboot: Callable[..., MovableClock]
) -> None:
    clock, stage = reboot(), Stage()
    async with stage.on(path, clock=clock) as retry:
        cid = await waits(retry, 100 * YEAR)
    async with stage.on(path, clock=reboot(utc=step)) as retry:
        shown = await retry.get(cid)
        (found,) = await retry.search()
    assert found.call_cid == shown.call_cid
    for time in (shown.created_at, shown.req_ts_utc, shown.next_attempt_at):
        assert time is None or time.tzinfo is not None
    assert shown.retry_seconds == 100 * YEAR
