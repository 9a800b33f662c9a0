"""The process dies in the last attempt: the next one records the outcome, and tells it."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from invoke_retry import CallbackPayload, InvokeRetry, ServiceRegistry

_DIES = """
import asyncio
from invoke_retry import CorrelationId, InvokeRetry, ServiceRegistry

services = ServiceRegistry()

@services.service("target")
async def target():
    print("running", flush=True)
    await asyncio.sleep(3_600)

@services.service("callback")
async def callback(outcome: dict): ...

async def main():
    async with InvokeRetry(services, backend="sqlite:///store.db") as retry:
        cid = CorrelationId.from_key("the last attempt")
        await retry.invoke_async(target, repeats=0, seconds=0, callback=callback, cid=cid)
        await asyncio.sleep(3_600)

asyncio.run(main())
"""


async def test_killed_in_the_last_attempt_its_callback_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The outcome was recorded, and stayed `notifying` for ever: nobody called the callback."""
    dying = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _DIES, cwd=tmp_path, stdout=asyncio.subprocess.PIPE
    )
    assert dying.stdout is not None
    assert await dying.stdout.readline() == b"running\n"
    os.kill(dying.pid, signal.SIGKILL)
    await dying.communicate()

    told: asyncio.Queue[CallbackPayload] = asyncio.Queue()
    services = ServiceRegistry()

    @services.service("target")
    async def target() -> None:
        raise AssertionError("there is no attempt left")

    @services.service("callback")
    async def callback(outcome: CallbackPayload) -> None:
        await told.put(outcome)

    async with InvokeRetry(services, backend=f"sqlite:///{tmp_path}/store.db"):
        async with asyncio.timeout(20):
            outcome = await told.get()
        assert (outcome.ok, outcome.reason, outcome.attempts) == (False, "exhausted", 1)
        assert outcome.error is not None
        assert outcome.error.type == "WorkerDied"
    (line,) = (record.getMessage() for record in caplog.records if record.name == "invoke_retry")
    assert line == f"target failed (1/1) {outcome.call_cid}: WorkerDied; gave up (exhausted)"
