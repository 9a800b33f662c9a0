"""One claim at work: the attempt, what follows from it, and the delivery of the outcome.

Each step ends in a transition that the backend writes down. A claim that was lost meanwhile
changes nothing any more, and tells nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import TYPE_CHECKING, Any, get_origin

import anyio

from invoke_retry import events, machine
from invoke_retry.backends.base import Backend, Claim, T, Transition
from invoke_retry.environment import Environment
from invoke_retry.errors import BackendError, InvalidPayload, NotStorable
from invoke_retry.failure import type_name
from invoke_retry.judge import Judge, Verdict
from invoke_retry.models import State
from invoke_retry.policy import RetryPolicy, time_limit
from invoke_retry.record import Record, callback_json, callback_payload
from invoke_retry.registry import Service, ServiceRegistry
from invoke_retry.run import Run
from invoke_retry.slots import Slots
from invoke_retry.watchdog import Watchdog

if TYPE_CHECKING:
    from invoke_retry.coordinator import InvokeRetry

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0


class WorkerDied(Exception):
    """What an attempt fails with if its process died: an error that is only told of."""

    __module__ = "builtins"  # it is shown by its bare name


class Work:
    """Advances claims, for the workers of one coordinator.

    Attributes:
        coordinator: What services see as `Call.retry`.
        services: Where targets and callbacks are looked up.
        slots: What runs, and may run.
        runs: Attempts and deliveries under way, by cid.
        watchdog: Notices what blocks the event loop.
        is_stopping: No attempt is begun any more, and a delivery is not repeated.
        undelivered: Ids of the outcomes that could not be delivered while stopping.
        problem: What keeps the backend from writing; None if nothing does.
    """

    def __init__(
        self,
        coordinator: InvokeRetry,
        services: ServiceRegistry,
        backend: Backend,
        *,
        environment: Environment,
        callback_policy: RetryPolicy,
        max_running: int,
        context: Context,
    ) -> None:
        self.coordinator = coordinator
        self.services = services
        self._backend = backend
        self._environment = environment
        self._clock = environment.clock
        self._log = environment.log
        self._callback_policy = callback_policy
        self._judge = Judge(environment, callback_policy)
        self._context = context
        self._loop = asyncio.get_running_loop()
        self.slots = Slots(max_running, services)
        self.runs: dict[str, Run] = {}
        self.watchdog = Watchdog(environment.log, self.runs)
        self.is_stopping = False
        self.undelivered: list[str] = []
        self.problem: str | None = None

    async def advance(self, claim: Claim) -> None:
        """Make the attempt or the delivery that the claim is for; after a last attempt, both."""
        record = claim.record
        if claim.died:
            error = WorkerDied("the process that did this died meanwhile")
            await self._recover(claim, error, record.state)
            claim.died = False  # what follows is done here
        elif record.outcome is None:
            await self._guard(self._attempt, claim)
        self._backend.wake()  # the target's own slot may be free already
        is_held = record.due is None and claim.token == record.token
        if is_held and record.state == "notifying":
            await self._guard(self._deliver, claim)

    async def _guard(self, step: Callable[[Claim], Awaitable[None]], claim: Claim) -> None:
        state = claim.record.state
        try:
            await step(claim)
        except Exception as error:  # a fault of ours or of the backend must not stop the rest
            await self._recover(claim, error, state)

    # An attempt of the target.

    async def _attempt(self, claim: Claim) -> None:
        record = claim.record
        if self.is_stopping:
            await self._give_back(claim, unstarted=True)
            return
        service = self.services.find(record.target)
        if service is None:
            await self._park(claim, f"no service is named {record.target!r} here")
            return
        try:
            arguments = service.stored_arguments(record.payload)
        except Exception as error:  # a validator of the user's own may raise anything
            await self._park(claim, f"its stored payload no longer fits: {type_name(error)}")
            return
        clock, repeats = self._clock, record.policy.repeats
        began, began_at = clock.monotonic(), record.attempt_at or clock.utc()
        limit, cut = time_limit(record.policy, record.began, began)
        run = Run(self.coordinator, claim, record.target, record.attempts, repeats)
        self.watchdog.saw(record.target)
        if self._environment.is_observed:
            self._tell(
                events.AttemptStarted, record, attempt=run.attempt, repeats=repeats, background=True
            )
        await run.over(self._loop, self._context.copy(), self.runs, service, arguments, limit, cut)
        ended_at = began_at + clock.monotonic() - began
        if run.forsaken or claim.token != record.token:
            return
        if run.error is None:
            await self._succeeded(claim, service, run.value, ended_at)
        elif run.cut == "stop":
            await self._give_back(claim)
        elif run.cut != "lost":
            await self._failed(claim, self._judge.failed_run(run, service), ended_at)

    async def _succeeded(
        self, claim: Claim, service: Service[Any, Any], value: Any, ended_at: float
    ) -> None:
        response, omitted = None, None
        if value is not None:
            try:
                response = service.dump_response(value, self._backend.max_bytes)
            except NotStorable as error:
                omitted = str(error)
            except Exception as error:  # the response's own code: the success stands all the same
                omitted = f"the response cannot be stored: {type_name(error)}"
        self.slots.note(service.name, failed=False)
        kept = await self._keep(
            claim,
            machine.finish,
            self._clock.monotonic(),
            "succeeded",
            ended_at,
            response=response,
            response_omitted=omitted,
            deliver_at_once=self._move_on(claim),
        )
        if kept:
            self.tell_outcome(claim.record)

    async def _failed(self, claim: Claim, verdict: Verdict, ended_at: float) -> None:
        record, attempt = claim.record, claim.record.attempts
        failure, then = verdict
        seconds = max(0.0, ended_at - (record.attempt_at or ended_at))
        self.slots.note(record.target, failed=True)
        now = self._clock.monotonic()
        if isinstance(then, str):
            kept = await self._keep(
                claim,
                machine.finish,
                now,
                then,
                ended_at,
                failure=failure,
                deliver_at_once=self._move_on(claim),
            )
        else:
            kept = await self._keep(claim, machine.retry, now + then, ended_at, failure)
        if kept and self._environment.is_observed:
            self._tell(
                events.AttemptFailed,
                record,
                attempt=attempt,
                repeats=record.policy.repeats,
                background=True,
                error=failure.info,
                seconds=seconds,
            )
            if isinstance(then, str):
                self.tell_outcome(record)
            else:
                self._tell(
                    events.Waiting, record, attempt=attempt + 1, seconds=then, background=True
                )

    def _move_on(self, claim: Claim) -> bool:
        """Change the target's slot for one of the callback, if there is one to have."""
        if claim.slot is not None:
            self.slots.give(claim.slot)
        claim.slot = callback = claim.record.callback
        if callback is not None and self.slots.take(callback):
            return True
        claim.slot = None
        return False

    # A delivery to the callback.

    async def _deliver(self, claim: Claim) -> None:
        record, policy = claim.record, self._callback_policy
        assert record.callback is not None
        if self.is_stopping and self._backend.durable:
            await self._give_back(claim)
            return
        service = self.services.find(record.callback)
        if service is None:
            await self._park(claim, f"no service is named {record.callback!r} here")
            return
        run = Run(self.coordinator, claim, service.name, record.deliveries, policy.repeats)
        self.watchdog.saw(service.name)
        try:
            arguments = _told(record, service)
        except InvalidPayload as error:
            run.error = error
        else:
            limit, cut = time_limit(policy, record.began, self._clock.monotonic())
            await run.over(
                self._loop, self._context.copy(), self.runs, service, arguments, limit, cut
            )
        if run.forsaken or claim.token != record.token:
            return
        if run.error is None:
            self.slots.note(service.name, failed=False)
            if await self._keep(claim, machine.settle) and self._environment.is_observed:
                self._tell(
                    events.CallbackDelivered,
                    record,
                    callback=service.name,
                    deliveries=record.deliveries,
                )
        elif run.cut == "stop":
            await self._give_back(claim)
        elif run.cut != "lost":
            verdict = self._judge.failed_run(run, service, is_last=self.is_stopping)
            await self._not_delivered(claim, verdict)

    async def _not_delivered(self, claim: Claim, verdict: Verdict) -> None:
        record, callback = claim.record, claim.record.callback or ""
        failure, then = verdict
        self.slots.note(callback, failed=True)
        if isinstance(then, str):
            kept = await self._keep(claim, machine.bury, failure)
        else:
            due = self._clock.monotonic() + then
            kept = await self._keep(claim, machine.postpone, due, failure)
        if not kept:
            return
        self._tell(
            events.CallbackFailed,
            record,
            callback=callback,
            deliveries=record.deliveries,
            error=failure.info,
            seconds=None if isinstance(then, str) else then,
        )
        if isinstance(then, str):
            if self.is_stopping:
                self.undelivered.append(record.cid)
            text = "the outcome of %s could not be delivered to %s: %s"
            self._log.notable("dead", text, record.target, callback, record.cid)
            self._tell(events.Dead, record, callback=callback)

    # What else may become of a claim.

    async def _recover(self, claim: Claim, error: Exception, state: State) -> None:
        """A fault counts as a failed attempt, so that it cannot come back for ever."""
        record = claim.record
        if not claim.died:
            text = "a worker met a fault: %s at %s"
            self._log.problem("worker", text, type_name(error), record.cid, error=error)
        if claim.token != record.token:
            return
        if record.state != state or record.due is not None:  # half written down, perhaps
            raise error
        is_last = record.outcome is not None and self.is_stopping
        verdict = self._judge.fault(record, error, is_last=is_last)
        if claim.died:
            number = record.deliveries if record.outcome else record.attempts
            repeats = self._judge.policy(record).repeats
            run = Run(self.coordinator, claim, record.service, number, repeats)
            self._log.attempt_failed(run, error, verdict.then, self._clock)
        if state == "running":
            await self._failed(claim, verdict, self._clock.utc())
        else:
            await self._not_delivered(claim, verdict)

    async def _give_back(self, claim: Claim, *, unstarted: bool = False) -> None:
        """The coordinator is leaving: an interrupted attempt does not count."""
        now = self._clock.monotonic()
        if self._backend.durable or claim.record.outcome is not None:
            await self._keep(claim, machine.release, now)
        elif await self._keep(
            claim, machine.end, now, "abandoned", self._clock.utc(), unstarted=unstarted
        ):
            self.tell_outcome(claim.record)

    async def _park(self, claim: Claim, because: str) -> None:
        if await self._keep(claim, machine.park, because):
            self.tell_parked(claim.record)

    async def _keep(
        self, claim: Claim, transition: Transition[T], *args: T.args, **kwargs: T.kwargs
    ) -> bool:
        """Have the backend write it down, however long that takes; False if the claim was lost."""
        pause = _FIRST_PAUSE
        while True:
            try:
                kept = await self._backend.apply(claim, transition, *args, **kwargs)
                self.problem = None
                return kept
            except BackendError as error:
                self.problem = str(error)
                self.note_failing(error)
            await anyio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def note_failing(self, error: Exception) -> None:
        """The backend cannot do what is asked of it, for now."""
        self._log.problem("backend", "the backend fails: %s", error, error=error)

    # What the hooks are told.

    def _tell(self, kind: type[events.Event], record: Record, **fields: Any) -> None:
        self._environment.tell(kind, record.cid, record.target, **fields)

    def tell_parked(self, record: Record) -> None:
        """Tell people and hooks of what was just parked."""
        because = record.parked_because or ""
        text = "%s is parked (%s): %s"
        self._log.notable("parked", text, record.service, because, record.cid)
        self._tell(events.Parked, record, because=because)

    def tell_outcome(self, record: Record) -> None:
        """Tell the hooks of an outcome that was just recorded."""
        outcome = record.outcome
        if self._environment.is_observed and outcome is not None:
            self._tell(
                events.Outcome,
                record,
                ok=outcome.reason == "succeeded",
                reason=outcome.reason,
                attempts=record.attempts,
                error=outcome.error and outcome.error.info,
                background=True,
            )


def _told(record: Record, service: Service[Any, Any]) -> tuple[Any, ...]:
    """What the callback is given: a `CallbackPayload`, or the same as plain JSON."""
    annotation = service.payload_type
    if annotation is not Any and get_origin(annotation) is not dict and annotation is not dict:
        try:
            return service.arguments(callback_payload(record))
        except InvalidPayload:  # a model of the user's own may fit the plain form
            pass
    return service.arguments(callback_json(record))
