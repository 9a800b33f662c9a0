"""Memory: of invocations that wait, and of those that are over.

Each is measured in a process of its own, by the growth of its resident set:

    python -m benchmarks.size accepted|failed|sleeping|finished NUMBER
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.background import CONTEXT, PAYLOAD, Load, deliver
from benchmarks.rows import Budget, Row, Section, short_of_full
from invoke_retry import InvokeRetry, ServiceRegistry

AT_A_TIME = 1_000
WARM_UP = 50_000
_STATM = Path("/proc/self/statm")


def resident_bytes() -> int:
    """The resident set now; where the system does not tell, its largest size so far."""
    if _STATM.exists():
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1_024


async def take(outcome: dict[str, Any]) -> None:
    pass


async def broken(_order: dict[str, Any]) -> None:
    raise ConnectionError("the warehouse does not answer")


async def waiting(target: str, number: int, *, work: bool) -> float:
    """Bytes of one that waits: not run yet, or for its next attempt after a failed one."""
    services = ServiceRegistry()
    for function in (deliver, broken, take):
        services.register(function.__name__, function)
    retry = InvokeRetry(services, work=work, grace=0)
    async with retry:

        async def fill(count: int) -> None:
            for _ in range(0, count, AT_A_TIME):
                for _ in range(AT_A_TIME):
                    await retry.invoke_async(
                        target, PAYLOAD, repeats=3, seconds=3_600, callback="take", context=CONTEXT
                    )
                while work and retry.health().running:  # noqa: ASYNC110  (nothing tells)
                    await asyncio.sleep(0)

        await fill(5 * AT_A_TIME)
        gc.collect()
        before = resident_bytes()
        await fill(number)
        gc.collect()
        grown = resident_bytes() - before
        counts = await retry.counts()
        assert counts["waiting"] == number + 5 * AT_A_TIME, counts
        print(json.dumps(grown / number), flush=True)
        os._exit(0)  # recording a million abandoned ones tells nothing here


async def sleeping(number: int) -> float:
    """Bytes of a task that sleeps: what a loop written by hand costs while it waits."""
    before = resident_bytes()
    tasks = [asyncio.create_task(asyncio.sleep(3_600)) for _ in range(number)]
    await asyncio.sleep(0)
    grown = resident_bytes() - before
    print(json.dumps(grown / len(tasks)), flush=True)
    os._exit(0)  # cancelling a million takes longer than all the rest


async def finished(number: int) -> float:
    """By how much the process grows while so many run through it, in percent."""
    load = Load()
    async with load.retry:
        for _ in range(0, WARM_UP, AT_A_TIME):
            await load.run(AT_A_TIME)
        gc.collect()
        before = resident_bytes()
        for _ in range(0, number, AT_A_TIME):
            await load.run(AT_A_TIME)
        gc.collect()
        return 100 * (resident_bytes() - before) / before


def measured(what: str, number: int) -> float:
    command = [sys.executable, "-m", "benchmarks.size", what, str(number)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(result.stdout))


def measured_waiting(number: int) -> Section:
    limit, note = Budget("<=", 1_024), short_of_full(number)
    task = Row("a task of asyncio that sleeps", "B", [measured("sleeping", number)])
    rows = [
        Row(what, "B", [measured(case, number)], limit, note, beside=[task])
        for what, case in (
            ("for its first attempt", "accepted"),
            ("after a failed attempt", "failed"),
        )
    ]
    return Section("waiting", f"Memory of each of {number:,} that wait", ("invoke-retry",), rows)


def measured_finished(number: int) -> Section:
    limit, note = Budget("<=", 5), short_of_full(number)
    growth = Row("growth of the process", "%", [measured("finished", number)], limit, note)
    title = f"Memory while {number:,} are finished, after a warm-up of {WARM_UP:,}"
    return Section("finished", title, ("invoke-retry",), [growth])


def main(what: str, number: int) -> None:
    logging.disable(logging.CRITICAL)
    cases = {
        "accepted": lambda: waiting("deliver", number, work=False),
        "failed": lambda: waiting("broken", number, work=True),
        "sleeping": lambda: sleeping(number),
        "finished": lambda: finished(number),
    }
    print(json.dumps(asyncio.run(cases[what]())))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
