"""Eight processes claim invocations that a ninth has accepted: no attempt is made twice.

python tests/jetstream/claimer.py URL COUNT
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from invoke_retry import InvokeRetry, ServiceRegistry, current_call

PROCESSES = 8


async def claim(url: str, log: str, count: int) -> None:
    services = ServiceRegistry()
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    @services.service("note")
    async def note(number: int) -> None:
        began = time.monotonic()
        await asyncio.sleep(0)
        call = current_call()
        line = f"{number} {call.attempt} {began} {time.monotonic()} {os.getpid()}\n"
        os.write(file, line.encode())

    async with InvokeRetry(services, backend=url) as retry:
        while (await retry.counts())["succeeded"] < count:  # noqa: ASYNC110
            await asyncio.sleep(0.5)


async def main(url: str, count: int) -> int:
    services = ServiceRegistry()

    @services.service("note")
    async def note(number: int) -> None: ...

    with TemporaryDirectory() as folder:
        log = str(Path(folder) / "log")
        async with InvokeRetry(services, backend=url, work=False) as retry:
            few = asyncio.Semaphore(50)

            async def submit(number: int) -> None:
                async with few:
                    await retry.invoke_async(note, number, repeats=0, seconds=0)

            await asyncio.gather(*(submit(number) for number in range(count)))
            began = time.monotonic()
            workers = [
                await asyncio.create_subprocess_exec(sys.executable, __file__, url, str(count), log)
                for _ in range(PROCESSES)
            ]
            codes = [await worker.wait() for worker in workers]
        with open(log, encoding="ascii") as file:  # noqa: ASYNC230, PTH123
            lines = [line.split() for line in file]
    attempts = Counter((line[0], line[1]) for line in lines)
    overlaps = sum(number - 1 for number in attempts.values())
    per_process = sorted(Counter(line[4] for line in lines).values())
    numbers = len({line[0] for line in lines})
    print(
        f"{numbers} invocations, {len(lines)} attempts, {overlaps} overlaps "
        f"in {time.monotonic() - began:.1f} s; by process: {per_process}"
    )
    is_whole = len(lines) == len(attempts) == count and codes == [0] * PROCESSES
    return 0 if is_whole and not overlaps else 1


if __name__ == "__main__":
    if len(sys.argv) > 3:
        asyncio.run(claim(sys.argv[1], sys.argv[3], int(sys.argv[2])))
    else:
        sys.exit(asyncio.run(main(sys.argv[1], int(sys.argv[2]))))
