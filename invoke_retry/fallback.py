"""The fallback mode: the first attempt in the caller's task, further ones in the background."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from invoke_retry.acceptance import Acceptance
from invoke_retry.correlation import Call, CorrelationId, here
from invoke_retry.environment import Environment
from invoke_retry.errors import BackendError, NotRunning
from invoke_retry.failure import failure_of
from invoke_retry.inline import Inline, task_of
from invoke_retry.lifecycle import Lifecycle
from invoke_retry.plan import Plan
from invoke_retry.record import PastAttempt, Record
from invoke_retry.registry import Service

if TYPE_CHECKING:
    from invoke_retry.coordinator import InvokeRetry


class Fallback:
    """Makes first attempts, and hands over what is left to repeat."""

    def __init__(self, acceptance: Acceptance, environment: Environment, life: Lifecycle) -> None:
        self._acceptance = acceptance
        self._environment = environment
        self._life = life

    async def invoke(
        self,
        retry: InvokeRetry,
        service: Service[Any, Any],
        payload: Any,
        plan: Plan,
        callback: str | Service[Any, Any] | None,
        context: Any,
        cid: str | None,
    ) -> Any:
        """As `InvokeRetry.invoke` with `async_fallback=True`: the response, or a `CorrelationId`.

        What is stored is the payload as it was before the first attempt.
        """
        record = self._acceptance.record(service, payload, plan.policy, callback, context, cid)
        if cid is not None and await self._acceptance.is_known(record):
            return record.cid
        task = task_of(asyncio.get_running_loop())
        cancelling = task.cancelling() if task is not None else 0
        call = Call()
        call.service, call.retry, call.attempt, call.repeats = (
            service.name,
            retry,
            1,
            plan.repeats,
        )
        call._cid = record.cid  # pyright: ignore[reportPrivateUsage]
        arguments = service.arguments(payload)
        inline = Inline(call, service, arguments, plan, task, cancelling, self._environment)
        record.first_at = self._environment.clock.utc()
        call._token = token = here.set(call)  # pyright: ignore[reportPrivateUsage]
        try:
            response = await inline.attempt()
        except Exception as error:
            if inline.is_cancelled():
                await inline.cancel(error)
            wait = inline.judge(error, hands_over=True)
            if wait is None:
                raise
            failed = error
        else:
            return inline.succeeded(response)
        finally:
            here.reset(token)
        self._note_failure(record, failed, wait)
        try:
            return await self._hand_over(record, wait)
        except (BackendError, NotRunning) as error:
            raise error from failed
        finally:
            del failed  # its traceback holds this frame

    def _note_failure(self, record: Record, error: Exception, wait: float) -> None:
        assert record.first_at is not None
        now = self._environment.clock.monotonic()
        ended_at = record.first_at + now - record.began
        record.attempts = 1
        record.history = (PastAttempt(1, record.first_at, ended_at, failure_of(error)),)
        record.due = now + wait

    async def _hand_over(self, record: Record, wait: float) -> CorrelationId:
        await asyncio.sleep(0)  # an anyio scope that was cancelled meanwhile is heard here
        if self._life.entered().is_late:
            raise self._life.not_running()
        return await self._acceptance.accept(record, wait)
