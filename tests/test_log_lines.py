"""The lines of the log, word for word; `(2/4)` is the second of four attempts."""

from contextlib import suppress
from typing import Any

import pytest

from invoke_retry import (
    CallbackPayload,
    CorrelationId,
    InvokeRetry,
    RetriesExhausted,
    RetryPolicy,
    ServiceRegistry,
)

pytestmark = pytest.mark.virtual_time

CID = CorrelationId.from_key("order-4711")


def registry() -> ServiceRegistry:
    services = ServiceRegistry()

    @services.service("crm.update", give_up_on=KeyError)
    async def update(error: str = "ConnectionError") -> None:
        raise {"KeyError": KeyError, "ConnectionError": ConnectionError}[error]("secret")

    @services.service()
    async def ping() -> None: ...

    @services.service()
    async def told(outcome: CallbackPayload) -> None:
        raise TimeoutError("secret")

    return services


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage().replace(CID, "CID") for record in caplog.records]


async def call(mode: str, *args: Any, **options: Any) -> None:
    policy = RetryPolicy(repeats=1, seconds=30)
    async with InvokeRetry(registry(), callback_policy=policy, grace=None) as retry:
        with suppress(RetriesExhausted, KeyError):
            if mode == "background":
                await retry.invoke_async(*args, cid=CID, **options)
            else:
                await retry.invoke(*args, cid=CID, **options, async_fallback=mode == "fallback")


@pytest.mark.parametrize("mode", ["inline", "fallback", "background"])
async def test_failed_attempts(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    await call(mode, "crm.update", repeats=3, seconds=0.1)
    where = "in the background" if mode == "fallback" else "again"
    assert lines_of(caplog) == [
        f"crm.update failed (1/4) CID: ConnectionError; {where} in 0.1 s",
        "crm.update failed (2/4) CID: ConnectionError; again in 0.1 s",
        "crm.update failed (3/4) CID: ConnectionError; again in 0.1 s",
        "crm.update failed (4/4) CID: ConnectionError; gave up (exhausted)",
    ]


@pytest.mark.parametrize("mode", ["inline", "fallback", "background"])
async def test_a_permanent_error(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    await call(mode, "crm.update", "KeyError", repeats=3, seconds=1)
    assert lines_of(caplog) == ["crm.update failed (1/4) CID: KeyError; gave up (permanent)"]


@pytest.mark.parametrize("mode", ["inline", "fallback", "background"])
async def test_a_deadline(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    await call(mode, "crm.update", policy=RetryPolicy(repeats=3, seconds=9, deadline=5))
    assert lines_of(caplog) == ["crm.update failed (1/4) CID: ConnectionError; gave up (deadline)"]


async def test_a_failing_callback(caplog: pytest.LogCaptureFixture) -> None:
    await call("background", "ping", repeats=3, seconds=1, callback="told")
    assert lines_of(caplog) == [
        "told failed (1/2) CID: TimeoutError; again in 30 s",
        "told failed (2/2) CID: TimeoutError; gave up (exhausted)",
        "the outcome of ping could not be delivered to told: CID",
    ]


async def test_a_long_wait_is_written_as_people_do(caplog: pytest.LogCaptureFixture) -> None:
    await call("background", "crm.update", repeats=1, seconds=3_600)
    assert lines_of(caplog)[0] == "crm.update failed (1/2) CID: ConnectionError; again in 3600 s"
