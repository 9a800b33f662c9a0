"""A process that runs what is due: `python -m tests.chaos.serve FOLDER OPTIONS`.

It leaves in good order on SIGTERM.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from invoke_retry import InvokeRetry
from invoke_retry.backends import SQLiteBackend

from .children import until
from .journal import Journal
from .lifeline import end_with_parent
from .tasks import CALLBACK_POLICY, make_services


async def serve(
    folder: Path,
    *,
    lease: float,
    grace: float = 30,
    max_running: int = 100,
    submit: int = 0,
    gate: bool = False,
) -> None:
    """Run what is due.

    Args:
        submit: How many invocations this process accepts itself, as fast as it can.
        gate: It waits for a file `go` before it enters its coordinator.
    """
    journal = Journal(folder / "journal")
    if gate:
        journal.write("at the gate")
        await until((folder / "go").exists)
    leave = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, leave.set)
    async with InvokeRetry(
        make_services(journal),
        backend=SQLiteBackend(folder / "retries.db", lease=lease),
        callback_policy=CALLBACK_POLICY,
        max_running=max_running,
        grace=grace,
    ) as retry:
        journal.write("ready")
        async with asyncio.TaskGroup() as group:
            for number in range(10):
                group.create_task(_submit(retry, journal, submit // 10, number))
        journal.write("submitted")
        await leave.wait()
        journal.write("leaving")
    journal.write("left")


async def _submit(retry: InvokeRetry, journal: Journal, number: int, caller: int) -> None:
    for i in range(number):
        task = {"fails": (i + caller) % 3 // 2}
        cid = await retry.invoke_async("work", task, repeats=4, seconds=0, callback="told")
        journal.write("accepted", cid)


def main(folder: str, options: str) -> None:
    end_with_parent(os.getppid(), 120)
    told: dict[str, Any] = json.loads(options)
    try:
        asyncio.run(serve(Path(folder), **told))
    except BaseException as error:
        Journal(Path(folder) / "journal").write("error", text=repr(error))
        raise


if __name__ == "__main__":
    main(*sys.argv[1:])
