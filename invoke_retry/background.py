"""Runs what is due: attempts and deliveries, by workers that hold one slot each.

A backend gives what is due (`start`) while there is room. A worker takes it, calls the service in
a task of its own, decides what follows, and has the backend write that down. Workers live in a
task group of the supervisor (`serve`), which outlives the task that entered the coordinator.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import Context
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_origin

import anyio

from invoke_retry import events, machine
from invoke_retry.backends.base import Backend, Claim, T, Transition
from invoke_retry.correlation import Call
from invoke_retry.environment import Environment
from invoke_retry.errors import BackendError, InvalidPayload, NotStorable
from invoke_retry.failure import error_info, render_traceback, type_name
from invoke_retry.models import utc_time
from invoke_retry.policy import RetryPolicy, decide, is_retryable
from invoke_retry.record import Failure, Record, callback_payload
from invoke_retry.registry import Service, ServiceRegistry
from invoke_retry.run import Cut, Run
from invoke_retry.slots import Slots

if TYPE_CHECKING:
    from invoke_retry.coordinator import InvokeRetry

LEAVE_SECONDS = 5.0
_CANCEL_SECONDS = 0.5
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
_CIDS_PER_LINE = 20


class Verdict(NamedTuple):
    """What follows a failed attempt: a wait in seconds, or why to stop."""

    failure: Failure
    then: float | Literal["exhausted", "deadline", "permanent"]


class Background:
    """The workers of one coordinator. To its backend it is the `Runner`."""

    def __init__(
        self,
        coordinator: InvokeRetry,
        services: ServiceRegistry,
        backend: Backend,
        *,
        environment: Environment,
        callback_policy: RetryPolicy,
        max_running: int,
        works: bool,
        context: Context,
    ) -> None:
        self._coordinator = coordinator
        self._services = services
        self._backend = backend
        self._clock = environment.clock
        self._random = environment.random
        self._hooks = environment.hooks
        self._is_observed = environment.is_observed
        self._log = environment.log
        self._callback_policy = callback_policy
        self._works = works
        self._context = context
        self._loop = asyncio.get_running_loop()
        self.slots = Slots(max_running, services)
        self.has_room = self.slots.has_room
        self.admits = self.slots.admits
        self._inbox: deque[Claim] = deque()
        self._spare_worker = False
        self._workers: set[asyncio.Task[None]] = set()
        self._group: asyncio.TaskGroup | None = None
        self._runs: dict[str, Run] = {}
        self._leave = anyio.Event()
        self._grace: float | None = 0
        self._hurry = anyio.Event()
        self._changed = anyio.Event()
        self._stopping = False
        self._undelivered: list[str] = []
        self.problem: str | None = None

    # The supervisor.

    async def serve(self, opened: asyncio.Future[None]) -> None:
        """Hold the workers until `leave`, then bring everything to its end.

        Args:
            opened: Learns when the backend is open, or why it is not.
        """
        try:
            await self._backend.open(self._clock, self if self._works else None)
        except Exception as error:
            opened.set_exception(error)
            return
        try:
            async with asyncio.TaskGroup() as self._group:
                opened.set_result(None)
                self._backend.wake()
                await self._leave.wait()
                await self._end_all()
                for worker in self._workers:
                    worker.cancel()
        finally:
            self._backend.pause()
            if not self._backend.durable:
                await self._tell_what_is_left()

    def leave(self, grace: float | None) -> None:
        """Begin to end: wait for the work that is under way, at most *grace* seconds."""
        self._grace = grace
        self._leave.set()

    def hurry(self) -> None:
        """Wait no longer for work that is under way."""
        self._hurry.set()
        self._changed.set()

    async def _end_all(self) -> None:
        durable = self._backend.durable
        if durable:
            self._backend.pause()
        if self._grace != 0 and self._works:
            await self._until(lambda: self._hurry.is_set() or self._is_done(), self._grace)
        until = self._clock.monotonic() + LEAVE_SECONDS
        self._stopping = True
        if not durable:
            await self._abandon(running=False)
        for run in tuple(self._runs.values()):
            if durable or run.claim.record.outcome is None:
                run.cut_off("stop")
        await self._until(lambda: not self._cut_runs(), _CANCEL_SECONDS)
        for run in self._cut_runs():
            run.forsake()
            self._log.notable(
                "stubborn", "%s ignores its cancellation and is left behind: %s",
                run.service, run.cid,
            )  # fmt: skip
        if not durable:
            await self._abandon()
            left = until - self._clock.monotonic() - _CANCEL_SECONDS
            await self._until(self._is_done, left if self._works else 0)
            await self._abandon()

    def _is_done(self) -> bool:
        return not self._runs and (self._backend.durable or self._backend.is_idle())

    def _cut_runs(self) -> list[Run]:
        return [run for run in self._runs.values() if run.cut == "stop" and not run.forsaken]

    async def _until(self, condition: Callable[[], bool], seconds: float | None) -> None:
        with anyio.move_on_after(seconds):
            while not condition():
                self._changed = anyio.Event()
                await self._changed.wait()

    def changed(self) -> None:
        """Something that a leaving coordinator waits for may have happened."""
        if self._leave.is_set():
            self._changed.set()

    async def _abandon(self, *, running: bool = True) -> None:
        for record in await self._backend.unfinished():
            if record.outcome is None and (running or record.state != "running"):
                now = self._clock.monotonic()
                utc = self._clock.utc()
                await self._backend.amend(record.cid, machine.end, now, "abandoned", utc)
                self.ended(record)

    async def _tell_what_is_left(self) -> None:
        left = self._undelivered + [record.cid for record in await self._backend.unfinished()]
        for i in range(0, len(left), _CIDS_PER_LINE):
            self._log.left(left[i : i + _CIDS_PER_LINE], len(left))

    # What the backend calls.

    def start(self, claim: Claim) -> None:
        claim.slot = claim.record.service
        self.slots.take(claim.slot)
        self._inbox.append(claim)
        if self._spare_worker:
            self._spare_worker = False
        elif self._group is not None:
            worker = self._group.create_task(self._work())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)

    def ended(self, record: Record) -> None:
        """Somebody other than its worker has recorded the outcome."""
        self.lost(record.cid)
        self._tell_outcome(record)
        self.changed()

    def lost(self, cid: str) -> None:
        if (run := self._runs.get(cid)) is not None:
            run.cut_off("lost")

    # A worker.

    async def _work(self) -> None:
        while self._inbox:
            claim = self._inbox.popleft()
            record = claim.record
            try:
                if record.outcome is None:
                    await self._attempt(claim)
                is_held = record.due is None and claim.token == record.token
                if is_held and record.state == "notifying":
                    await self._deliver(claim)
            except Exception as error:  # a fault of ours or of the backend must not stop the rest
                await self._recover(claim, error)
            if claim.slot is not None:
                self.slots.give(claim.slot)
            self._spare_worker = True
            self._backend.wake()
            self._spare_worker = False
            self.changed()

    async def _recover(self, claim: Claim, error: Exception) -> None:
        """A fault counts as a failed attempt, so that it cannot come back for ever."""
        record = claim.record
        self._log.problem(
            "worker", "a worker met a fault: %s at %s", type_name(error), record.cid, error=error
        )
        if claim.token != record.token:
            return
        failure = Failure(error_info(error), render_traceback(error))
        now = self._clock.monotonic()
        if record.state == "running":
            then = decide(record.policy, record.attempts, now - record.began, error, self._random)
            await self._failed(claim, Verdict(failure, then), self._clock.utc())
        elif record.state == "notifying" and record.due is None:
            await self._not_delivered(claim, Verdict(failure, self._next_delivery(record, error)))

    async def _attempt(self, claim: Claim) -> None:
        record = claim.record
        clock = self._clock
        if self._stopping:
            await self._give_back(claim, unstarted=True)
            return
        service = self._services.find(record.target)
        if service is None:
            await self._park(claim, f"no service is named {record.target!r} here")
            return
        try:
            arguments = service.stored_arguments(record.payload)
        except Exception as error:  # a validator of the user's own may raise anything
            await self._park(claim, f"its stored payload no longer fits: {type_name(error)}")
            return
        policy = record.policy
        began, began_at = clock.monotonic(), record.attempt_at or clock.utc()
        limit = policy.timeout
        cut: Cut = "timeout"
        if (deadline := record.deadline) is not None:
            left = deadline - began
            if limit is None or left < limit:
                limit, cut = max(0.0, left), "deadline"
        run = Run(self._coordinator, claim, record.target, record.attempts, policy.repeats)
        if self._is_observed:
            self._hooks.emit(
                events.AttemptStarted(
                    at=utc_time(clock.utc()), cid=record.cid, target=record.target,
                    attempt=record.attempts, repeats=policy.repeats, background=True,
                )
            )  # fmt: skip
        await run.over(self._loop, self._context.copy(), self._runs, service, arguments, limit, cut)
        ended_at = began_at + clock.monotonic() - began
        if run.forsaken or claim.token != record.token:
            return
        if run.error is None:
            await self._succeeded(claim, service, run.value, ended_at)
        elif run.cut == "stop":
            await self._give_back(claim)
        elif run.cut != "lost":
            await self._failed(claim, self._judge(run, service), ended_at)

    async def _succeeded(
        self, claim: Claim, service: Service[Any, Any], value: Any, ended_at: float
    ) -> None:
        response, omitted = None, None
        if value is not None:
            try:
                response = service.dump_response(value, self._backend.max_bytes)
            except NotStorable as error:
                omitted = str(error)
        record = claim.record
        self.slots.note(record.target, failed=False)
        await self._keep(
            claim, machine.finish, self._clock.monotonic(), "succeeded", ended_at,
            response=response, response_omitted=omitted, deliver_at_once=self._move_on(claim),
        )  # fmt: skip
        if claim.token == record.token:
            self._tell_outcome(record)

    def _judge(self, run: Run, service: Service[Any, Any]) -> Verdict:
        """Decide over a failure, and let go of the exception: its frames hold the payload."""
        record, policy = run.claim.record, run.claim.record.policy
        error, run.error = run.error, None
        assert error is not None
        if isinstance(error, asyncio.CancelledError) and run.cut in ("timeout", "deadline"):
            error = _timed_out(error, run, policy)
        permanent = run.cut != "deadline" and not (
            isinstance(error, asyncio.CancelledError)
            or (
                isinstance(error, Exception)
                and is_retryable(error, service.retry_on, service.give_up_on)
            )
        )
        elapsed = self._clock.monotonic() - record.began
        then = (
            "permanent"
            if permanent
            else decide(policy, record.attempts, elapsed, error, self._random)
        )
        self._log.attempt_failed(run, error, then)
        return Verdict(Failure(error_info(error), render_traceback(error)), then)

    async def _failed(self, claim: Claim, verdict: Verdict, ended_at: float) -> None:
        record = claim.record
        attempt = record.attempts
        failure, then = verdict
        started_at = record.attempt_at or ended_at
        self.slots.note(record.target, failed=True)
        now = self._clock.monotonic()
        if isinstance(then, str):
            kept = await self._keep(
                claim, machine.finish, now, then, ended_at,
                failure=failure, deliver_at_once=self._move_on(claim),
            )  # fmt: skip
        else:
            kept = await self._keep(claim, machine.retry, now + then, ended_at, failure)
        if not kept:
            return
        if self._is_observed:
            at = utc_time(self._clock.utc())
            self._hooks.emit(
                events.AttemptFailed(
                    at=at, cid=record.cid, target=record.target, attempt=attempt,
                    repeats=record.policy.repeats, background=True, error=failure.error,
                    seconds=max(0.0, ended_at - started_at),
                )
            )  # fmt: skip
            if not isinstance(then, str):
                self._hooks.emit(
                    events.Waiting(
                        at=at, cid=record.cid, target=record.target, attempt=attempt + 1,
                        seconds=then, background=True,
                    )
                )  # fmt: skip
        if isinstance(then, str):
            self._tell_outcome(record)

    def _move_on(self, claim: Claim) -> bool:
        """Change the target's slot for one of the callback, if there is one to have."""
        record = claim.record
        if claim.slot is not None:
            self.slots.give(claim.slot)
        claim.slot = record.callback
        if record.callback is not None and self.slots.admits(record.callback):
            self.slots.take(record.callback)
            return True
        claim.slot = None
        return False

    async def _deliver(self, claim: Claim) -> None:
        record = claim.record
        assert record.callback is not None
        service = self._services.find(record.callback)
        if service is None:
            await self._park(claim, f"no service is named {record.callback!r} here")
            return
        policy = self._callback_policy
        run = Run(self._coordinator, claim, service.name, record.deliveries, policy.repeats)
        try:
            arguments = _told(record, service)
        except InvalidPayload as error:
            run.error = error
        else:
            await run.over(
                self._loop, self._context.copy(), self._runs, service, arguments,
                policy.timeout, "timeout",
            )  # fmt: skip
        if run.forsaken or claim.token != record.token:
            return
        if run.error is None:
            self.slots.note(service.name, failed=False)
            if await self._keep(claim, machine.settle) and self._is_observed:
                self._hooks.emit(
                    events.CallbackDelivered(
                        at=utc_time(self._clock.utc()), cid=record.cid, target=record.target,
                        callback=service.name, deliveries=record.deliveries,
                    )
                )  # fmt: skip
        elif run.cut == "stop":
            await self._give_back(claim)
        elif run.cut != "lost":
            await self._not_delivered(claim, self._judge_delivery(run, service))

    def _judge_delivery(self, run: Run, service: Service[Any, Any]) -> Verdict:
        error, run.error = run.error, None
        assert error is not None
        if isinstance(error, asyncio.CancelledError) and run.cut == "timeout":
            error = _timed_out(error, run, self._callback_policy)
        if isinstance(error, Exception) and not is_retryable(
            error, service.retry_on, service.give_up_on
        ):
            then: Any = "permanent"
        else:
            then = self._next_delivery(run.claim.record, error)
        self._log.attempt_failed(run, error, then)
        return Verdict(Failure(error_info(error)), then)

    def _next_delivery(self, record: Record, error: BaseException) -> Any:
        if self._stopping:
            return "exhausted"
        elapsed = self._clock.monotonic() - record.began
        return decide(self._callback_policy, record.deliveries, elapsed, error, self._random)

    async def _not_delivered(self, claim: Claim, verdict: Verdict) -> None:
        record = claim.record
        callback = record.callback or ""
        failure, then = verdict
        self.slots.note(callback, failed=True)
        if isinstance(then, str):
            kept = await self._keep(claim, machine.bury, failure.error)
            if kept:
                self._undelivered += [record.cid] if self._stopping else []
                self._log.notable(
                    "dead", "the outcome of %s could not be delivered to %s: %s",
                    record.target, callback, record.cid,
                )  # fmt: skip
        else:
            due = self._clock.monotonic() + then
            kept = await self._keep(claim, machine.postpone, due, failure.error)
        if kept and self._is_observed:
            at = utc_time(self._clock.utc())
            self._hooks.emit(
                events.CallbackFailed(
                    at=at, cid=record.cid, target=record.target, callback=callback,
                    deliveries=record.deliveries, error=failure.error,
                    seconds=None if isinstance(then, str) else then,
                )
            )  # fmt: skip
            if isinstance(then, str):
                self._hooks.emit(
                    events.Dead(at=at, cid=record.cid, target=record.target, callback=callback)
                )

    async def _give_back(self, claim: Claim, *, unstarted: bool = False) -> None:
        """The coordinator is leaving: an interrupted attempt does not count."""
        now = self._clock.monotonic()
        if self._backend.durable or claim.record.outcome is not None:
            await self._keep(claim, machine.release, now)
        elif await self._keep(
            claim, machine.end, now, "abandoned", self._clock.utc(), unstarted=unstarted
        ):
            self._tell_outcome(claim.record)

    async def _park(self, claim: Claim, because: str) -> None:
        if not await self._keep(claim, machine.park, because):
            return
        record = claim.record
        self._log.notable("parked", "%s is parked (%s): %s", record.service, because, record.cid)
        if self._is_observed:
            self._hooks.emit(
                events.Parked(
                    at=utc_time(self._clock.utc()), cid=record.cid, target=record.target,
                    because=because,
                )
            )  # fmt: skip

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
                self._log.problem("backend", "the backend fails: %s", error, error=error)
            await anyio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _tell_outcome(self, record: Record) -> None:
        outcome = record.outcome
        if self._is_observed and outcome is not None:
            self._hooks.emit(
                events.Outcome(
                    at=utc_time(outcome.at), cid=record.cid, target=record.target,
                    ok=outcome.reason == "succeeded", reason=outcome.reason,
                    attempts=record.attempts, error=outcome.error, background=True,
                )
            )  # fmt: skip

    @contextmanager
    def lend_slot(self, call: Call | None) -> Generator[None]:
        """While a service waits for another invocation, its slot is free for that.

        The slot is taken back at once, so for a moment one more may run than there are slots.
        """
        run = call
        while run is not None and not isinstance(run, Run):  # an inline call of a service
            run = run.parent
        if run is None or run.claim.slot is None or self._runs.get(run.cid) is not run:
            yield
            return
        slot, run.claim.slot = run.claim.slot, None
        self.slots.give(slot)
        self._backend.wake()
        try:
            yield
        finally:
            if self._runs.get(run.cid) is run:
                self.slots.take(slot)
                run.claim.slot = slot


def _told(record: Record, service: Service[Any, Any]) -> tuple[Any, ...]:
    told = callback_payload(record)
    annotation = service.payload_type
    if annotation is not Any and get_origin(annotation) is not dict and annotation is not dict:
        try:
            return service.arguments(told)
        except InvalidPayload:  # a model of the user's own may fit the plain form
            pass
    return service.arguments(told.model_dump(mode="json"))


def _timed_out(error: BaseException, run: Run, policy: RetryPolicy) -> TimeoutError:
    if run.cut == "deadline":
        text = f"cut off in attempt {run.attempt} by the deadline of {policy.deadline:g} s"
    else:
        text = f"attempt {run.attempt} took longer than its timeout of {policy.timeout:g} s"
    late = TimeoutError(text)
    late.__cause__ = error
    return late
