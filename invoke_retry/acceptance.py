"""How a call becomes a background invocation: its record is made, and the backend accepts it."""

from __future__ import annotations

from typing import Any

from invoke_retry import events
from invoke_retry.backends.base import Backend
from invoke_retry.correlation import Caller, CorrelationId, here
from invoke_retry.environment import Environment
from invoke_retry.errors import (
    BackendError,
    BackendFull,
    CidConflict,
    InvalidPayload,
    InvocationNotFound,
    InvokeRetryError,
)
from invoke_retry.failure import type_name
from invoke_retry.lifecycle import Lifecycle
from invoke_retry.policy import RetryPolicy
from invoke_retry.record import Record
from invoke_retry.registry import Service, ServiceRegistry, resolve
from invoke_retry.storable import dump_any


class Acceptance:
    """Makes the records of one coordinator, and has them accepted.

    Args:
        own_caller: Who invokes where nobody else is known to.
    """

    def __init__(
        self,
        services: ServiceRegistry,
        backend: Backend,
        environment: Environment,
        life: Lifecycle,
        own_caller: Caller,
    ) -> None:
        self._services = services
        self._backend = backend
        self._environment = environment
        self._life = life
        self._own_caller = own_caller

    def record(
        self,
        service: Service[Any, Any],
        payload: Any,
        policy: RetryPolicy,
        callback: str | Service[Any, Any] | None,
        context: Any,
        cid: str | None,
    ) -> Record:
        """What a call asks for, due at once; the arguments are those of `InvokeRetry.invoke`.

        Raises:
            NotRunning: Nothing is accepted now.
            InvalidPayload, NotStorable, ServiceNotFound, TypeError, ValueError: It is refused.
        """
        clock = self._life.running().clock
        limit = self._backend.max_bytes
        arguments = service.arguments(payload)
        now = clock.monotonic()
        caller = here.get() or self._own_caller
        return Record(
            CorrelationId(cid) if cid is not None else self._environment.new_cid(),
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

    def _callback(self, callback: str | Service[Any, Any]) -> str:
        service = resolve(self._services, callback)
        if not service.takes_payload:
            raise InvalidPayload(
                f"{service.name!r} cannot be a callback: it takes no payload, and a callback is "
                "given the outcome; let it take a CallbackPayload"
            )
        return service.name

    async def is_known(self, record: Record) -> bool:
        """Whether the same request was accepted before under the record's cid.

        Raises:
            CidConflict: The cid belongs to another request.
        """
        try:
            known = await self._backend.get(record.cid)
        except InvocationNotFound:
            return False
        self._check_same(known, record)
        return True

    async def accept(self, record: Record, wait: float | None = None) -> CorrelationId:
        """Have the backend keep the record, or find that it does already.

        Args:
            wait: Where a first attempt was made already: seconds until the second one.

        Returns:
            The record's cid.

        Raises:
            CidConflict: The cid belongs to another request.
            BackendError: It may or may not have been accepted.
        """
        try:
            kept = await self._backend.accept(record)
        except BackendError as error:
            if error.cid is not None:
                raise
            kind = BackendFull if isinstance(error, BackendFull) else BackendError
            raise kind(error.message, record.cid) from error
        except InvokeRetryError:
            raise
        except Exception as error:
            self._life.entered().check_fault(error)
            text = f"the backend met a fault while it accepted: {type_name(error)}"
            raise BackendError(text, record.cid) from error
        if kept is not record:
            self._check_same(kept, record)
        elif self._environment.is_observed:
            self._tell(record, wait)
        return kept.cid

    def _check_same(self, known: Record, record: Record) -> None:
        if not known.same_request(record, self._services[record.target].payload_codec):
            raise CidConflict(
                f"{record.cid} is another request already (its target, payload, callback or "
                "context differs); use another cid"
            )

    def _tell(self, record: Record, wait: float | None) -> None:
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
