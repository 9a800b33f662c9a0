"""`InvokeRetry`: chooses the path of an invocation, and speaks for the backend."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from contextvars import copy_context
from random import Random
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, get_args, overload

import anyio

from invoke_retry import events, machine
from invoke_retry.backends import Backend, Query, backend_from
from invoke_retry.backends.base import at_least
from invoke_retry.background import Background
from invoke_retry.clock import Clock
from invoke_retry.correlation import SYSTEM_RANDOM, Call, Caller, CorrelationId, here
from invoke_retry.durations import Duration, seconds_of, shown
from invoke_retry.environment import Environment
from invoke_retry.errors import (
    BackendError,
    CidConflict,
    InvalidPayload,
    InvalidState,
    InvocationNotFound,
    InvokeRetryError,
    NotRunning,
)
from invoke_retry.failure import failure_of
from invoke_retry.inline import Inline, ThisThread, task_of
from invoke_retry.machine import IllegalTransition
from invoke_retry.models import MODELS, CallbackPayload, Health, Invocation, State
from invoke_retry.policy import RetryPolicy
from invoke_retry.record import PastAttempt, Record, callback_payload, invocation
from invoke_retry.registry import MISSING, Missing, Plan, Service, ServiceRegistry
from invoke_retry.storable import dump_any
from invoke_retry.work import Work

P = TypeVar("P")
R = TypeVar("R")

AnyService = Service[Any, Any]
_PLANS_LIMIT = 64
_Phase = Literal["new", "open", "broken", "leaving", "left"]

# not validated: for that pydantic would have to build the model at import
DEFAULT_CALLBACK_POLICY = RetryPolicy.model_construct(
    repeats=10, seconds=1, backoff="exponential", max_seconds=300, jitter="full"
)


class InvokeRetry:
    """Invokes services of a registry, and repeats what fails.

    Inline `invoke` works at once. The background modes need `async with`; a coordinator is
    entered once, and may be left by another task than the one that entered it.

    Args:
        services: Where targets and callbacks are looked up; services may be added at any time.
        backend: Where background invocations wait: a URL or a `Backend`.
        name: What outermost invocations give as their source.
        work: False: submits and asks, but runs nothing in the background.
        max_running: How many background attempts and deliveries may run at a time.
        callback_policy: How a failing callback is repeated.
        grace: Seconds (or a timedelta) that leaving waits at most for background work. None: as
            long as it takes. 0 is taken where the body raised or was cancelled.
        hooks: Plain callables that are told of every `events.Event`.
        clock: Where time is read. Default: the event loop's own `clock`, else the system's.
        random: Where jitter and ids are drawn from. Default: the system's own source.

    Raises:
        ValueError: An argument is out of range, or nothing is known of the backend's URL.
        TypeError: An argument is of the wrong type.
    """

    def __init__(
        self,
        services: ServiceRegistry,
        *,
        backend: str | Backend = "memory://",
        name: str = "main",
        work: bool = True,
        max_running: int = 100,
        callback_policy: RetryPolicy = DEFAULT_CALLBACK_POLICY,
        grace: Duration | None = 30.0,
        hooks: Iterable[events.Hook] = (),
        clock: Clock | None = None,
        random: Random = SYSTEM_RANDOM,
    ) -> None:
        if not isinstance(services, ServiceRegistry):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"services is {shown(services)}, but must be a ServiceRegistry")
        if not isinstance(callback_policy, RetryPolicy):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"callback_policy is {shown(callback_policy)}, but must be a RetryPolicy"
            )
        for model in (RetryPolicy, *MODELS):
            model.model_rebuild()
        self.services = services
        self.name = _text("name", name)
        self._backend = backend_from(backend)
        if not isinstance(work, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"work is {shown(work)}, but must be True or False")
        self._works = work
        self._max_running = at_least("max_running", max_running, 1)
        self._callback_policy = callback_policy
        self._grace = None if grace is None else seconds_of("grace", grace)
        self._environment = Environment(clock, random, events.Hooks(hooks))
        self._phase: _Phase = "new"
        self._background: Background | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._has_ended = False
        self._waits: set[asyncio.Timeout] = set()
        self._find = services.find
        self.own_caller = Caller(name, self.new_cid())
        self._thread = ThisThread()

    def new_cid(self) -> CorrelationId:
        """A fresh id from the coordinator's random source."""
        return CorrelationId.new(self._environment.random)

    # Inline, and the first attempt of the fallback mode.

    @overload
    async def invoke(
        self,
        target: Service[P, R],
        payload: P | Missing = ...,
        *,
        repeats: int | None = None,
        seconds: Duration | None = None,
        minutes: Duration | None = None,
        policy: RetryPolicy | None = None,
        async_fallback: Literal[False] = False,
        cid: str | None = None,
    ) -> R: ...
    @overload
    async def invoke(
        self,
        target: Service[P, R],
        payload: P | Missing = ...,
        *,
        repeats: int | None = None,
        seconds: Duration | None = None,
        minutes: Duration | None = None,
        policy: RetryPolicy | None = None,
        async_fallback: bool,
        callback: str | AnyService | None = None,
        context: Any = None,
        cid: str | None = None,
    ) -> R | CorrelationId: ...
    @overload
    async def invoke(
        self,
        target: str,
        payload: Any = ...,
        *,
        repeats: int | None = None,
        seconds: Duration | None = None,
        minutes: Duration | None = None,
        policy: RetryPolicy | None = None,
        async_fallback: bool = False,
        callback: str | AnyService | None = None,
        context: Any = None,
        cid: str | None = None,
    ) -> Any: ...
    async def invoke(
        self,
        target: str | AnyService,
        payload: Any = MISSING,
        *,
        repeats: int | None = None,
        seconds: Duration | None = None,
        minutes: Duration | None = None,
        policy: RetryPolicy | None = None,
        async_fallback: bool = False,
        callback: str | AnyService | None = None,
        context: Any = None,
        cid: str | None = None,
    ) -> Any:
        """Call a service in the caller's task, and repeat it if it fails.

        The caller's own cancellation ends it at once, and is never retried. The policy is put
        together from the call, from *policy*, and from the target's own.

        Args:
            target: A service or its name.
            payload: What it is given; validated by its annotation.
            repeats: How many attempts may follow the first one.
            seconds: The interval between two attempts, or a timedelta; added to *minutes*.
            minutes: The same in minutes.
            policy: What the call's keywords do not say.
            async_fallback: Make only the first attempt here, and the further ones in the
                background.
            callback: With *async_fallback*: the service that is told of the background outcome.
            context: With *async_fallback*: JSON that the callback is given.
            cid: The id of the invocation. With *async_fallback* the same id and request is the
                same invocation; else it is only a label.

        Returns:
            The response. With *async_fallback* and a failed first attempt: a `CorrelationId`,
            once the backend has accepted the rest.

        Raises:
            RetriesExhausted: Nothing is left to repeat; its cause is the last error.
            Exception: An error that the target's `retry_on` / `give_up_on` calls permanent.
            ServiceNotFound, InvalidPolicy, InvalidPayload: Before anything is called.
            TypeError: *callback* or *context* without *async_fallback*.
            ValueError: *cid* is malformed.
            NotRunning, NotStorable, CidConflict: With *async_fallback*, before anything is called.
            BackendError: With *async_fallback*: the rest was not accepted; from the first error.
        """
        try:
            service = self._find(target) or self._service(target)  # type: ignore[arg-type]
        except TypeError:  # unhashable
            service = self._service(target)
        plan = service.plan
        if (
            plan.repeats_asked is not repeats
            or plan.seconds_asked is not seconds
            or minutes is not None
            or policy is not None
        ):
            plan = self._plan(service, repeats, seconds, minutes, policy)
        if async_fallback:
            return await self._invoke_or_hand_over(
                service, payload, plan.policy, callback, context, cid
            )
        if callback is not None or context is not None or cid is not None:
            cid = _inline_only(callback, context, cid)
        if payload is MISSING or (validate := service.validate) is None:
            arguments = service.arguments(payload)
        else:
            try:
                arguments = (validate(payload),)
            except ValueError:
                arguments = service.arguments(payload)  # which says what does not fit

        task = task_of(self._thread.loop)
        if task is None:
            task = self._current_task()
        cancelling = task.cancelling() if task is not None else 0
        call = Call()
        call.service = service.name
        call.retry = self
        call.attempt = 1
        call.repeats = plan.repeats
        call._cid = cid  # pyright: ignore[reportPrivateUsage]
        call._origin = here.get()  # pyright: ignore[reportPrivateUsage]
        if plan.is_limited or self._environment.is_observed:
            return await self._inline(call, service, arguments, plan.policy, task, cancelling).run()
        token = here.set(call)
        try:
            return await service.function(*arguments)
        except Exception as error:
            inline = self._inline(call, service, arguments, plan.policy, task, cancelling)
            if inline.is_cancelled():
                await inline.cancel(error)
            wait = inline.judge(error)
            if wait is None:
                raise
        finally:
            here.reset(token)
        return await inline.repeat(wait)

    def _inline(
        self,
        call: Call,
        service: AnyService,
        arguments: tuple[Any, ...],
        policy: RetryPolicy,
        task: asyncio.Task[Any] | None,
        cancelling: int,
    ) -> Inline:
        return Inline(call, service, arguments, policy, task, cancelling, self._environment)

    async def _invoke_or_hand_over(
        self,
        service: AnyService,
        payload: Any,
        policy: RetryPolicy,
        callback: str | AnyService | None,
        context: Any,
        cid: str | None,
    ) -> Any:
        self._check_running()
        record = self._record(service, payload, policy, callback, context, cid)
        if cid is not None and (known := await self._known(record)) is not None:
            return known.cid
        task = self._current_task()
        cancelling = task.cancelling() if task is not None else 0
        call = Call()
        call.service, call.retry, call.attempt, call.repeats = service.name, self, 1, policy.repeats
        call._cid, call._origin = record.cid, here.get()  # pyright: ignore[reportPrivateUsage]
        arguments = service.arguments(payload)
        inline = self._inline(call, service, arguments, policy, task, cancelling)
        record.first_at = started_at = self.clock.utc()
        began = record.began
        token = here.set(call)
        try:
            response = await inline.attempt()
        except Exception as error:
            if inline.is_cancelled():
                await inline.cancel(error)
            wait = inline.judge(error, hands_over=True)
            if wait is None:
                raise
            now = self.clock.monotonic()
            record.attempts = 1
            past = PastAttempt(1, started_at, started_at + now - began, failure_of(error))
            record.history = (past,)
            record.due = now + wait
            failed = error
        else:
            return inline.succeeded(response)
        finally:
            here.reset(token)
        try:
            await asyncio.sleep(0)  # an anyio scope that was cancelled meanwhile is heard here
            if self._background is None or self._background.is_late:
                raise NotRunning(_not_running(self._phase))
            return await self._accept(record, wait)
        except (BackendError, NotRunning) as error:
            raise error from failed
        finally:
            del failed  # its traceback holds this frame

    # Wholly in the background.

    @overload
    async def invoke_async(
        self,
        target: Service[P, Any],
        payload: P | Missing = ...,
        *,
        repeats: int | None = None,
        seconds: Duration | None = None,
        minutes: Duration | None = None,
        policy: RetryPolicy | None = None,
        callback: str | AnyService | None = None,
        context: Any = None,
        cid: str | None = None,
    ) -> CorrelationId: ...
    @overload
    async def invoke_async(
        self,
        target: str,
        payload: Any = ...,
        *,
        repeats: int | None = None,
        seconds: Duration | None = None,
        minutes: Duration | None = None,
        policy: RetryPolicy | None = None,
        callback: str | AnyService | None = None,
        context: Any = None,
        cid: str | None = None,
    ) -> CorrelationId: ...
    async def invoke_async(
        self,
        target: str | AnyService,
        payload: Any = MISSING,
        *,
        repeats: int | None = None,
        seconds: Duration | None = None,
        minutes: Duration | None = None,
        policy: RetryPolicy | None = None,
        callback: str | AnyService | None = None,
        context: Any = None,
        cid: str | None = None,
    ) -> CorrelationId:
        """Have a service called in the background, at once, and repeated if it fails.

        Cancelled while the backend accepts, the caller leaves at once and the invocation may
        exist; pass *cid* to be able to ask.

        Args:
            target, payload, repeats, seconds, minutes, policy: As for `invoke`.
            callback: The service that is told of the outcome, either way.
            context: JSON that the callback is given.
            cid: The id of the invocation; the same id and request is the same invocation.

        Returns:
            The invocation's id, once the backend has accepted it.

        Raises:
            ServiceNotFound, InvalidPolicy, InvalidPayload, NotStorable: Nothing was stored.
            CidConflict: The cid belongs to another request.
            ValueError: *cid* is malformed.
            NotRunning: The coordinator was not entered, or is being left.
            BackendFull: It holds `max_waiting` unfinished invocations.
            BackendError: It may or may not have been accepted.
        """
        service = self._service(target)
        plan = self._plan(service, repeats, seconds, minutes, policy)
        if self._phase != "open":
            self._check_running()
        return await self._accept(
            self._record(service, payload, plan.policy, callback, context, cid)
        )

    async def _accept(self, record: Record, wait: float | None = None) -> CorrelationId:
        try:
            kept = await self._backend.accept(record)
        except Exception as error:
            self._check_fault(error)
            raise
        if kept is not record:
            self._check_same(kept, record)
        elif self._environment.is_observed:
            self._environment.tell(
                events.Accepted,
                record.cid,
                record.target,
                source=record.source,
                orig_cid=record.orig_cid,
                callback=record.callback,
            )
            if wait is not None:
                self._environment.tell(
                    events.Waiting,
                    record.cid,
                    record.target,
                    attempt=2,
                    seconds=wait,
                    background=True,
                )
        return kept.cid

    async def _known(self, record: Record) -> Record | None:
        try:
            known = await self._backend.get(record.cid)
        except InvocationNotFound:
            return None
        self._check_same(known, record)
        return known

    def _check_same(self, known: Record, record: Record) -> None:
        if not known.same_request(record, self.services[record.target].payload_codec):
            raise CidConflict(
                f"{record.cid} is another request already (its target, payload, callback or "
                "context differs); use another cid"
            )

    def _record(
        self,
        service: AnyService,
        payload: Any,
        policy: RetryPolicy,
        callback: str | AnyService | None,
        context: Any,
        cid: str | None,
    ) -> Record:
        limit = self._backend.max_bytes
        arguments = service.arguments(payload)
        clock = self._running_clock
        now = clock.monotonic()
        caller = here.get() or self.own_caller
        return Record(
            CorrelationId(cid) if cid is not None else self.new_cid(),
            service.name,
            None if callback is None else self._callback(callback),
            caller.name,
            caller.cid,
            service.payload_codec.dump(arguments[0], "payload", limit) if arguments else None,
            None if context is None else dump_any(context, "context", limit),
            policy,
            clock.utc(),
            now,
            now,
        )

    def _callback(self, callback: str | AnyService) -> str:
        service = self._service(callback)
        if not service.takes_payload:
            raise InvalidPayload(
                f"{service.name!r} cannot be a callback: it takes no payload, and a callback is "
                "given the outcome; let it take a CallbackPayload"
            )
        return service.name

    # Asking and deciding.

    async def get(self, cid: str) -> Invocation:
        """An invocation as it stands now.

        Raises:
            InvocationNotFound: No such invocation, or it was pruned after its retention.
        """
        self._check_opened()
        return self._view(await self._backend.get(cid))

    async def wait(self, cid: str, timeout: Duration | None = None) -> CallbackPayload:
        """Wait for the outcome of a background invocation; its callback may come later.

        Cancelling the wait leaves the invocation alone. A service that waits lends its slot to
        others meanwhile.

        Args:
            cid: The id that `invoke` or `invoke_async` returned.
            timeout: Seconds (or a timedelta) to wait at most; None waits for ever.

        Returns:
            What its callback gets. `attempts` is 1 or more, unless it was ended first.

        Raises:
            InvocationNotFound: No such invocation, or it was pruned after its retention.
            TimeoutError: No outcome within *timeout*; the invocation goes on.
            NotRunning: No outcome, and the background has ended, so that none will come.
        """
        self._check_opened()
        limit = None if timeout is None else seconds_of("timeout", timeout)
        scope = asyncio.timeout(limit)
        if not self._has_ended:
            with self._lend_slot():
                try:
                    async with scope:
                        self._waits.add(scope)
                        return callback_payload(await self._backend.outcome(cid))
                except TimeoutError:
                    if not scope.expired():
                        raise
                    if not self._has_ended:
                        raise TimeoutError(
                            f"no outcome of {cid} within {limit:g} s; the invocation goes on"
                        ) from None
                finally:
                    self._waits.discard(scope)
        record = await self._backend.get(cid)
        if record.outcome is None:
            raise NotRunning(_not_running(self._phase))
        return callback_payload(record)

    async def cancel(self, cid: str) -> bool:
        """End an invocation that has no outcome yet.

        The outcome is recorded at once and its callback is told; an attempt that runs in this
        process is cancelled, and its result dropped.

        Returns:
            False if it has an outcome already.

        Raises:
            InvocationNotFound: No such invocation, or it was pruned after its retention.
        """
        clock = self.clock
        record = await self._amend(
            cid, machine.end, clock.monotonic(), "cancelled", clock.utc(), None
        )
        if record is not None and self._background is not None:
            self._background.ended(record)
        return record is not None

    async def run_now(self, cid: str) -> bool:
        """Do at once what an invocation waits for: its next attempt, or its callback's.

        A parked one is tried again.

        Returns:
            False if it waits for nothing.

        Raises:
            InvocationNotFound: No such invocation, or it was pruned after its retention.
        """
        return await self._amend(cid, machine.hasten, self.clock.monotonic()) is not None

    async def redeliver(self, cid: str) -> bool:
        """Tell the callback of a dead letter again, with all attempts of its policy.

        Returns:
            False if it is not dead.

        Raises:
            InvocationNotFound: No such invocation, or it was pruned after its retention.
        """
        return await self._amend(cid, machine.redeliver, self.clock.monotonic()) is not None

    async def resubmit(self, cid: str) -> CorrelationId:
        """Run a failed or cancelled invocation again, as a new one.

        It has the payload, context, callback, policy, source and orig_cid of the old one, and
        says in `resubmit_of` which that was.

        Returns:
            The id of the new invocation.

        Raises:
            InvalidState: Its outcome is not known yet, or is a success.
            InvocationNotFound: No such invocation, or it was pruned after its retention.
            NotRunning: The coordinator was not entered, or is being left.
        """
        self._check_running()
        old = await self._backend.get(cid)
        if old.outcome is None or old.outcome.reason == "succeeded":
            raise InvalidState(
                f"{cid} is {old.state}; only an invocation that failed or was cancelled can be "
                "resubmitted"
            )
        now = self.clock.monotonic()
        return await self._accept(
            Record(
                self.new_cid(), old.target, old.callback, old.source, old.orig_cid, old.payload,
                old.context, old.policy, self.clock.utc(), now, now, resubmit_of=old.cid,
            )
        )  # fmt: skip

    async def search(
        self,
        *,
        state: State | None = None,
        target: str | None = None,
        source: str | None = None,
        error_type: str | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[Invocation]:
        """Invocations that fit, newest first.

        Args:
            error_type: The `type` of the latest error.
            limit: How many at most, 1 or more.
            after: A cid; only invocations older than this one.

        Raises:
            ValueError: *state* or *limit* is none.
            InvocationNotFound: *after* is not known.
        """
        self._check_opened()
        if state is not None and state not in get_args(State):
            raise ValueError(
                f"state is {shown(state)}, but must be one of {', '.join(get_args(State))}"
            )
        query = Query(state, target, source, error_type, at_least("limit", limit, 1), after)
        return [self._view(record) for record in await self._backend.search(query)]

    async def counts(self) -> dict[str, int]:
        """How many invocations are in each state; finished and dead ones count after pruning, too.

        All accepted ones are in the sum: the books balance.
        """
        self._check_opened()
        return {str(state): count for state, count in (await self._backend.counts()).items()}

    def health(self) -> Health:
        """Whether the background is alive, and why not."""
        background = self._background
        if self._phase != "open":
            problem: str | None = _not_running(self._phase)
        elif background is None:
            problem = None
        else:
            problem = background.problem
        return Health(
            ok=problem is None,
            problem=problem,
            running=background.slots.total if background else 0,
            max_running=self._max_running,
        )

    @contextmanager
    def caller(self, name: str, cid: str | None = None) -> Generator[None]:
        """Say who invokes, for the calls in the block: the `source` and `orig_cid` of each.

        Args:
            name: Any text.
            cid: Any text, e.g. a request's id. Default: a fresh one.

        Raises:
            ValueError: A text is empty, too long, or cannot be stored.
        """
        known = _text("cid", cid) if cid is not None else self.new_cid()
        now = here.get()
        call = now.call if isinstance(now, Caller) else now
        token = here.set(Caller(_text("name", name), known, call))
        try:
            yield
        finally:
            here.reset(token)

    # Entering and leaving.

    async def __aenter__(self) -> Self:
        if self._phase != "new":
            raise InvalidState("a coordinator is entered once; make another one")
        self._phase = "left"  # what it is if opening fails
        self._running_clock = self._environment.clock
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[None] = loop.create_future()
        work = Work(
            self,
            self.services,
            self._backend,
            environment=self._environment,
            callback_policy=self._callback_policy,
            max_running=self._max_running,
            context=copy_context(),
        )
        self._background = Background(self._backend, self._environment, work, works=self._works)
        self._supervisor = loop.create_task(
            self._background.serve(opened), name=f"invoke_retry {self.name}"
        )
        try:
            await opened
        except BaseException as error:
            self._supervisor.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait({self._supervisor})
                if not isinstance(error, InvalidState):  # else it is another coordinator's
                    await self._backend.close()
            raise
        self._supervisor.add_done_callback(self._on_supervisor_done)
        self._phase = "open"
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave: finish or give up what runs in the background, as the backend allows.

        A cancellation while it waits ends the waiting, a second one ends everything at once.
        """
        self._phase = "leaving"
        cancelled: asyncio.CancelledError | None = None
        if self._background is not None and self._supervisor is not None:
            self._background.leave(self._grace if exc_type is None else 0)
            if exc_type is None:
                try:
                    await asyncio.wait({self._supervisor})
                except asyncio.CancelledError as error:
                    cancelled = error
                    self._background.hurry()
            # an anyio scope cancels at every await; what is left to do has its own limit
            with anyio.CancelScope(shield=True):
                while not self._supervisor.done():
                    try:
                        await asyncio.wait({self._supervisor})
                    except asyncio.CancelledError as error:
                        cancelled = error
                        self._supervisor.cancel()
        self._phase = "left"
        await self._backend.close()
        if cancelled is not None:
            raise cancelled
        if self._supervisor is not None and not self._supervisor.cancelled():
            self._supervisor.result()

    def _on_supervisor_done(self, supervisor: asyncio.Task[None]) -> None:
        self._has_ended = True
        error = None if supervisor.cancelled() else supervisor.exception()
        if error is not None or self._phase == "open":
            text = "the background has stopped by a fault"
            self._environment.log.problem("supervisor", text, error=error)
        if self._phase == "open":
            self._phase = "broken"
        for wait in self._waits:  # for what will not come any more
            if not wait.expired():
                wait.reschedule(0)

    # Small helpers.

    @property
    def clock(self) -> Clock:
        """Where this coordinator reads time; inside an event loop only."""
        return self._environment.clock

    @property
    def is_durable(self) -> bool:
        """Whether what is accepted survives the process."""
        return self._backend.durable

    def _current_task(self) -> asyncio.Task[Any] | None:
        loop = asyncio.get_running_loop()
        self._thread.loop = loop
        return task_of(loop)

    def _service(self, target: str | AnyService) -> AnyService:
        if isinstance(target, str):
            return self._find(target) or self.services[target]
        if isinstance(target, Service):  # pyright: ignore[reportUnnecessaryIsInstance]
            if self._find(target.name) is target:
                return target
            return (
                self.services[target.name] if target.name not in self.services else _other(target)
            )
        raise TypeError(f"{shown(target)} is no service; pass a Service or its name")

    def _plan(
        self,
        service: AnyService,
        repeats: int | None,
        seconds: Duration | None,
        minutes: Duration | None,
        policy: RetryPolicy | None,
    ) -> Plan:
        """The policy of one call; what recent calls of the service asked for is kept there."""
        if policy is not None and not isinstance(policy, RetryPolicy):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"policy is {shown(policy)}, but must be a RetryPolicy")
        asked = (
            repeats.__class__, repeats, seconds.__class__, seconds, minutes.__class__, minutes
        )  # fmt: skip
        try:
            plan = service.plans.get(asked) if policy is None else None
        except TypeError:  # unhashable, hence wrong: it is refused below
            plan = None
        if plan is not None:
            if minutes is None:
                service.plan = plan
            return plan
        base = policy or service.policy
        if base is None:
            result = RetryPolicy(repeats, seconds, minutes)
        elif repeats is None and seconds is None and minutes is None:
            result = base
        else:
            result = base.replace(repeats, seconds, minutes)
        plan = Plan(repeats, seconds, result)
        if policy is None:
            if len(service.plans) >= _PLANS_LIMIT:
                service.plans.clear()
            service.plans[asked] = plan
            if minutes is None:
                service.plan = plan
        return plan

    async def _amend(self, cid: str, transition: Any, *args: Any) -> Record | None:
        self._check_opened()
        try:
            return await self._backend.amend(cid, transition, *args)
        except IllegalTransition:
            return None
        except Exception as error:
            self._check_fault(error)
            raise

    def _check_fault(self, error: Exception) -> None:
        """What a backend does not raise on purpose leaves it in no state to go on."""
        if not isinstance(error, InvokeRetryError) and self._background is not None:
            self._background.fail(error)

    def _view(self, record: Record) -> Invocation:
        clock = self.clock
        return invocation(record, clock.monotonic(), clock.utc())

    @contextmanager
    def _lend_slot(self) -> Generator[None]:
        now = here.get()
        while isinstance(now, Caller):
            now = now.call
        if self._background is None:
            yield
        else:
            with self._background.lend_slot(now):
                yield

    def _check_running(self) -> None:
        if self._phase == "open":
            return
        if self._phase == "leaving" and self._is_own_work():
            assert self._background is not None
            if not self._background.is_over:
                return
        raise NotRunning(_not_running(self._phase))

    def _check_opened(self) -> None:
        if self._phase == "new":
            raise NotRunning(_not_running(self._phase))

    def _is_own_work(self) -> bool:
        now = here.get()
        call = now.call if isinstance(now, Caller) else now
        return call is not None and call.retry is self


def _not_running(phase: _Phase) -> str:
    return {
        "new": "the background is not running: enter the coordinator with 'async with' first",
        "open": "",
        "broken": "the background has stopped by a fault; see the log",
        "leaving": "the background is ending: its coordinator is being left",
        "left": "the background has ended: its coordinator was left; make and enter another one",
    }[phase]


def _inline_only(callback: object, context: object, cid: str | None) -> str | None:
    for name, value in (("callback", callback), ("context", context)):
        if value is not None:
            raise TypeError(
                f"{name}= needs the background, and this call is wholly inline; pass "
                "async_fallback=True, or use invoke_async"
            )
    return None if cid is None else CorrelationId(cid)


def _other(service: AnyService) -> AnyService:
    raise TypeError(
        f"{service!r} is not the service that this coordinator's registry has under that name"
    )


def _text(name: str, text: object) -> str:
    if not isinstance(text, str) or not 1 <= len(text) <= 1_000:
        raise ValueError(f"{name} is {shown(text)}, but must be a str of 1 to 1,000 characters")
    dump_any(text, name, 10_000)
    return text
