"""A payload that kills its process: it is counted, given up and told of, and the others live."""

from pathlib import Path

import pytest

from invoke_retry import CallbackPayload, RetryPolicy

from .children import Child, until
from .journal import Journal
from .store import submitting, told_of
from .tasks import POLICY, REPEATS, Task

HEALTHY = 20
# what runs beside the poison dies with it, and that attempt counts, too
PATIENT = RetryPolicy(repeats=20, seconds=0.01)


async def test_poison_is_given_up_and_the_healthy_finish_within_5_restarts(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    async with submitting(tmp_path) as retry:
        poison = await retry.invoke_async("work", Task(how="kill"), policy=POLICY, callback="told")
        healthy = [
            await retry.invoke_async("work", Task(), policy=PATIENT, callback="told")
            for _ in range(HEALTHY)
        ]
        for _ in range(1 + REPEATS):
            with Child(tmp_path, journal, lease=30, max_running=5) as child:
                assert await child.over() < 0
        with Child(tmp_path, journal, lease=30):
            await until(lambda: len(told_of(journal)) == 1 + HEALTHY)
        (outcome,) = told_of(journal)[poison]
        assert (outcome.ok, outcome.reason, outcome.attempts) == (False, "exhausted", 1 + REPEATS)
        assert outcome.error is not None
        assert outcome.error.type == "WorkerDied"
        assert await retry.wait(poison) == outcome
        began = [line.number for line in journal.lines("began") if line.cid == poison]
        assert began == list(range(1, 2 + REPEATS))
    for cid in healthy:
        outcomes: list[CallbackPayload] = told_of(journal)[cid]
        assert {each.ok for each in outcomes} == {True}


@pytest.mark.xfail(strict=True, reason="who died beside the poison is begun beside it again")
async def test_poison_does_not_use_up_the_attempts_of_others(tmp_path: Path) -> None:
    journal, healthy = Journal(tmp_path / "journal"), Task(seconds=2)
    async with submitting(tmp_path) as retry:
        await retry.invoke_async("work", Task(how="kill", seconds=0.1), policy=POLICY)
        cid = await retry.invoke_async("work", healthy, policy=POLICY, callback="told")
        for _ in range(1 + REPEATS):
            with Child(tmp_path, journal, lease=30) as child:
                assert await child.over() < 0
        with Child(tmp_path, journal, lease=30):
            outcome = await retry.wait(cid, timeout=30)
    assert outcome.ok
