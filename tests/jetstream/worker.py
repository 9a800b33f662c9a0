"""A process on a stream: `python -m jetstream.worker FOLDER OPTIONS`.

It accepts, executes and calls back, and leaves in good order on SIGTERM.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import anyio
from chaos.children import Child
from chaos.journal import Journal
from chaos.lifeline import end_with_parent
from chaos.tasks import CALLBACK_POLICY, make_services

from invoke_retry import BackendError, InvokeRetry

from .caller import Caller

GRACE = 5.0


class WorkerChild(Child):
    """Such a process; the options are those of `work`."""

    program = "jetstream.worker"


async def work(
    folder: Path,
    *,
    url: str,
    seed: int = 0,
    rate: float = 0,
    callers: int = 0,
    max_running: int = 50,
) -> None:
    """Run what is due.

    Args:
        callers: How many invoke something in this process.
        rate: How many invocations a second each of them makes.
    """
    journal = Journal(folder / "journal")
    leave = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, leave.set)
    while not leave.is_set():
        retry = InvokeRetry(
            make_services(journal, flaky_callbacks=True), backend=url,
            callback_policy=CALLBACK_POLICY, max_running=max_running, grace=GRACE,
        )  # fmt: skip
        try:
            await retry.__aenter__()
        except BackendError:  # there is no server now
            await anyio.sleep(0.2)
            continue
        try:
            journal.write("ready")
            async with anyio.create_task_group() as group:
                for number in range(callers if rate else 0):
                    caller = Caller(retry, journal, seed=seed + number, rate=rate)
                    group.start_soon(caller.run)
                await leave.wait()
                group.cancel_scope.cancel()
        finally:
            await retry.__aexit__(None, None, None)
    journal.write("left")


def main(folder: str, options: str) -> None:
    end_with_parent(os.getppid(), 600)
    logging.getLogger("invoke_retry").addHandler(logging.NullHandler())
    told: dict[str, Any] = json.loads(options)
    try:
        asyncio.run(work(Path(folder), **told))
    except BaseException:
        Journal(Path(folder) / "journal").write("error", text=traceback.format_exc()[-2_000:])
        raise


if __name__ == "__main__":
    main(*sys.argv[1:])
