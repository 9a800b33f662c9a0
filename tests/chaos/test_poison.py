"""A payload that kills its process: it is counted, given up and told of, and the others live."""

from pathlib import Path

from invoke_retry import CallbackPayload

from .children import Child, until
from .journal import Journal
from .store import submitting, told_of
from .tasks import POLICY, REPEATS, Task

HEALTHY = 20


async def test_poison_is_given_up_and_the_healthy_finish_within_5_restarts(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    async with submitting(tmp_path) as retry:
        poison = await retry.invoke_async("work", Task(how="kill"), policy=POLICY, callback="told")
        healthy = [
            # one that runs beside the poison may die with it each time, so it has more attempts
            await retry.invoke_async("work", Task(), policy=POLICY, repeats=20, callback="told")
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
