"""What a test itself does with the store that its children share."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from pathlib import Path
from typing import Any

from invoke_retry import CallbackPayload, InvokeRetry
from invoke_retry.backends import SQLiteBackend

from .journal import Journal
from .tasks import CALLBACK_POLICY, POLICY, Task, make_services


def coordinator(folder: Path, **options: Any) -> InvokeRetry:
    """One on the store of the folder, to be entered."""
    backend = SQLiteBackend(folder / "retries.db", lease=options.pop("lease", 30))
    services = make_services(Journal(folder / "journal"))
    return InvokeRetry(services, backend=backend, callback_policy=CALLBACK_POLICY, **options)


def submitting(folder: Path) -> InvokeRetry:
    """One that submits and asks, and runs nothing."""
    return coordinator(folder, work=False)


async def submit(retry: InvokeRetry, journal: Journal, task: Task, number: int) -> None:
    """Have so many accepted, all at once."""

    async def one() -> None:
        cid = await retry.invoke_async("work", task, policy=POLICY, callback="told")
        journal.write("accepted", cid)

    async with asyncio.TaskGroup() as group:
        for _ in range(number):
            group.create_task(one())


def told_of(journal: Journal) -> dict[str, list[CallbackPayload]]:
    """What the callback was told, by cid."""
    told = defaultdict[str, list[CallbackPayload]](list)
    for line in journal.lines("told"):
        told[line.cid].append(CallbackPayload.model_validate_json(line.text))
    return told
