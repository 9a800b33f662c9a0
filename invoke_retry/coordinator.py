"""`InvokeRetry`: chooses the path of an invocation, and speaks for the backend."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from contextvars import copy_context
from random import Random
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

from invoke_retry import events
from invoke_retry.acceptance import Acceptance
from invoke_retry.asking import Asking
from invoke_retry.backends import Backend, backend_from
from invoke_retry.backends.base import at_least
from invoke_retry.background import Background
from invoke_retry.clock import Clock
from invoke_retry.correlation import (
    SYSTEM_RANDOM,
    Call,
    Caller,
    CorrelationId,
    here,
    running_call,
)
from invoke_retry.durations import Duration, seconds_of, shown
from invoke_retry.environment import Environment
from invoke_retry.fallback import Fallback
from invoke_retry.inline import Inline, ThisThread, task_of
from invoke_retry.lifecycle import Lifecycle
from invoke_retry.models import MODELS, Health
from invoke_retry.policy import RetryPolicy
from invoke_retry.registry import MISSING, Missing, Service, ServiceRegistry, resolve
from invoke_retry.storable import checked_text
from invoke_retry.work import Work

P = TypeVar("P")
R = TypeVar("R")

AnyService = Service[Any, Any]

# not validated: for that pydantic would have to build the model at import
DEFAULT_CALLBACK_POLICY = RetryPolicy.model_construct(
    repeats=10, seconds=1, backoff="exponential", max_seconds=300, jitter="full"
)


class InvokeRetry(Asking):
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
        self.name = checked_text("name", name)
        backend = backend_from(backend)
        if not isinstance(work, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"work is {shown(work)}, but must be True or False")
        self.works = work
        self._max_running = at_least("max_running", max_running, 1)
        self._callback_policy = callback_policy
        self._grace = None if grace is None else seconds_of("grace", grace)
        environment = Environment(clock, random, events.Hooks(hooks))
        life = Lifecycle(name, backend, environment.log)
        self.own_caller = Caller(name, environment.new_cid())
        acceptance = Acceptance(services, backend, environment, life, self.own_caller)
        super().__init__(backend, environment, life, acceptance)
        self._fallback = Fallback(acceptance, environment, life)
        self._find = services.find
        self._is_observed = environment.is_observed
        self._thread = ThisThread()

    def new_cid(self) -> CorrelationId:
        """A fresh id from the coordinator's random source."""
        return self._environment.new_cid()

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
            service = self._find(target)  # type: ignore[arg-type]
        except TypeError:  # unhashable
            service = None
        if service is None:
            service = resolve(self.services, target)
        plan = service.plans.latest
        if (
            plan.repeats_asked is not repeats
            or plan.seconds_asked is not seconds
            or minutes is not None
            or policy is not None
        ):
            plan = service.plans.find(repeats, seconds, minutes, policy)
        if async_fallback:
            return await self._fallback.invoke(self, service, payload, plan, callback, context, cid)
        if callback is not None or context is not None or cid is not None:
            cid = _inline_only(callback, context, cid)
        if payload is MISSING or (validate := service.validate) is None:
            arguments = service.arguments(payload)
        else:
            try:
                arguments = (validate(payload),)
            except Exception:
                arguments = service.arguments(payload)  # which says what does not fit

        task = task_of(self._thread.loop)
        if task is None:
            self._thread.loop = asyncio.get_running_loop()
            task = task_of(self._thread.loop)
        cancelling = task.cancelling() if task is not None else 0
        call = Call()
        call.service = service.name
        call.retry = self
        call.attempt = 1
        call.repeats = plan.repeats
        call._cid = cid  # pyright: ignore[reportPrivateUsage]
        if self._is_observed or plan.is_limited:
            return await Inline(
                call, service, arguments, plan, task, cancelling, self._environment
            ).run()
        call._token = token = here.set(call)  # pyright: ignore[reportPrivateUsage]
        try:
            try:
                return await service.function(*arguments)
            except Exception as error:
                inline = Inline(call, service, arguments, plan, task, cancelling, self._environment)
                if inline.is_cancelled():
                    await inline.cancel(error)
                wait = inline.judge(error)
                if wait is None:
                    raise
            return await inline.repeat(wait)
        finally:
            here.reset(token)

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
        service = resolve(self.services, target)
        plan = service.plans.find(repeats, seconds, minutes, policy)
        acceptance = self._acceptance
        return await acceptance.accept(
            acceptance.record(service, payload, plan.policy, callback, context, cid)
        )

    # The coordinator itself.

    def health(self) -> Health:
        """Whether the background is alive, and why not."""
        return self._life.health(self._max_running)

    async def ended(self) -> None:
        """Wait until the background has ended: by a fault, or because the coordinator is left.

        Raises:
            NotRunning: It was not entered.
        """
        await self._life.ended()

    @contextmanager
    def caller(self, name: str, cid: str | None = None) -> Generator[None]:
        """Say who invokes, for the calls in the block: the `source` and `orig_cid` of each.

        Args:
            name: Any text.
            cid: Any text, e.g. a request's id. Default: a fresh one.

        Raises:
            ValueError: A text is empty, too long, or cannot be stored.
        """
        known = checked_text("cid", cid) if cid is not None else self.new_cid()
        token = here.set(Caller(checked_text("name", name), known, running_call()))
        try:
            yield
        finally:
            here.reset(token)

    async def __aenter__(self) -> Self:
        work = Work(
            self,
            self.services,
            self._backend,
            environment=self._environment,
            callback_policy=self._callback_policy,
            max_running=self._max_running,
            context=copy_context(),
        )
        background = Background(self._backend, self._environment, work, works=self.works)
        await self._life.enter(background)
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
        await self._life.leave(self._grace, at_once=exc_type is not None)


def _inline_only(callback: object, context: object, cid: str | None) -> str | None:
    for name, value in (("callback", callback), ("context", context)):
        if value is not None:
            raise TypeError(
                f"{name}= needs the background, and this call is wholly inline; pass "
                "async_fallback=True, or use invoke_async"
            )
    return None if cid is None else CorrelationId(cid)
