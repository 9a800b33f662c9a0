"""Services: async callables under a name, with the types that their annotations promise."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from enum import Enum
from functools import cached_property, partial
from typing import Any, Final, Generic, Literal, Protocol, TypeVar, cast, overload

from pydantic import ValidationError

from invoke_retry.durations import shown
from invoke_retry.errors import (
    DuplicateService,
    InvalidPayload,
    InvalidService,
    NotStorable,
    ServiceNotFound,
)
from invoke_retry.failure import type_name
from invoke_retry.plan import Plans
from invoke_retry.policy import ErrorTypes, RetryPolicy
from invoke_retry.signature import Signature, adapter_for, type_text
from invoke_retry.storable import Codec

P = TypeVar("P")
P_contra = TypeVar("P_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}")


class _Missing(Enum):
    MISSING = "MISSING"

    def __repr__(self) -> str:
        return "MISSING"


Missing = Literal[_Missing.MISSING]
MISSING: Final = _Missing.MISSING
"""Stands for "no payload given", since None is a payload."""


class Service(Generic[P_contra, R_co]):
    """An async callable with a name. Still awaitable directly: `await update(order)`.

    Attributes:
        name: What it is invoked by.
        function: The callable itself.
        policy: The policy of a call that gives none.
        retry_on: Errors of these classes are retried...
        give_up_on: ...but not those of these classes.
        max_running: How many background attempts of it may run at a time; None: no own limit.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Awaitable[R_co]],
        *,
        policy: RetryPolicy | None = None,
        retry_on: ErrorTypes = Exception,
        give_up_on: ErrorTypes = (),
        max_running: int | None = None,
        local_names: Mapping[str, Any] | None = None,
    ) -> None:
        _check_name(name)
        _check_function(name, function)
        self.name = name
        self.function = function
        self.policy = _check_policy(name, policy)
        self.retry_on = _check_errors(name, "retry_on", retry_on)
        self.give_up_on = _check_errors(name, "give_up_on", give_up_on)
        self.retries_all = self.retry_on is Exception and self.give_up_on == ()
        self.max_running = _check_limit(name, max_running)
        self.plans = Plans(self.policy)
        signature = Signature(name, function, local_names)
        self.takes_payload = signature.takes_payload
        self.needs_payload = signature.needs_payload
        self.payload_type: Any = signature.payload_type
        self.response_type: Any = signature.response_type
        self._payload_adapter = adapter_for(name, "payload", self.payload_type)
        # None if there is nothing to validate
        self.validate: Callable[[Any], Any] | None = (
            self._payload_adapter.validator.validate_python if self.takes_payload else None
        )

    def __call__(self, *args: P_contra) -> Coroutine[Any, Any, R_co]:
        return cast("Coroutine[Any, Any, R_co]", self.function(*args))

    def __repr__(self) -> str:
        return f"<Service {self.name}>"

    def arguments(self, payload: object) -> tuple[Any, ...]:
        """What the function is called with: nothing, or the validated payload.

        Raises:
            InvalidPayload: The payload does not fit the annotation, is missing, or is not wanted.
        """
        if payload is MISSING:
            if self.needs_payload:
                raise InvalidPayload(
                    f"{self.name!r} takes a payload and none was given; pass it as the second "
                    "argument (None is a payload too)"
                )
            return ()
        validate = self.validate
        if validate is None:
            raise InvalidPayload(
                f"{self.name!r} takes no payload and was given {shown(payload)}; leave it out"
            )
        try:
            return (validate(payload),)
        except ValidationError as error:
            raise InvalidPayload(self._unfit(payload, error)) from error
        except Exception as error:  # code of the type's own, or of the value's
            raise InvalidPayload(
                f"the payload of {self.name!r}, a {type(payload).__name__}, does not fit "
                f"{type_text(self.payload_type)}: to validate it raises {type_name(error)}"
            ) from error

    def _unfit(self, payload: object, error: ValidationError) -> str:
        faults = error.errors(include_url=False, include_input=False, include_context=False)
        listed = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'payload'}: {fault['msg']}"
            for fault in faults[:5]
        )
        more = f" (and {len(faults) - 5} more)" if len(faults) > 5 else ""
        return (
            f"the payload of {self.name!r}, a {type(payload).__name__}, does not fit "
            f"{type_text(self.payload_type)}: {listed}{more}"
        )

    def stored_arguments(self, data: bytes | None) -> tuple[Any, ...]:
        """What the function is called with, from a payload's stored form: a fresh copy.

        Raises:
            InvalidPayload: The service no longer takes it, or needs one.
        """
        if data is None:
            return self.arguments(MISSING)
        if not self.takes_payload:
            return self.arguments(None)
        try:
            return (self.payload_codec.load(data),)
        except ValidationError as error:
            raise InvalidPayload(self._unfit(data, error)) from error

    @cached_property
    def payload_codec(self) -> Codec:
        """How payloads are stored."""
        return Codec(self._payload_adapter)

    @cached_property
    def _response_codec(self) -> Codec:
        return Codec(adapter_for(self.name, "return", self.response_type))

    def dump_response(self, response: object, max_bytes: int) -> bytes:
        """The stored form of a response.

        Raises:
            NotStorable: It cannot be stored; the success stands all the same.
        """
        try:
            codec = self._response_codec
        except InvalidService as error:
            raise NotStorable("response", str(error)) from error
        return codec.dump(response, "response", max_bytes)


class _Decorator(Protocol):
    """What `@services.service(...)` makes of a function."""

    @overload
    def __call__(
        self, function: Callable[[P_contra], Awaitable[R_co]], /
    ) -> Service[P_contra, R_co]: ...
    @overload
    def __call__(self, function: Callable[[], Awaitable[R_co]], /) -> Service[Any, R_co]: ...


class ServiceRegistry(Mapping[str, Service[Any, Any]]):
    """The services that a coordinator can reach: a read-only mapping from name to `Service`."""

    def __init__(self) -> None:
        self._services: dict[str, Service[Any, Any]] = {}
        self.find: Callable[[str], Service[Any, Any] | None] = self._services.get
        """The service of that name, or None."""

    def service(
        self,
        name: str | None = None,
        *,
        policy: RetryPolicy | None = None,
        retry_on: ErrorTypes = Exception,
        give_up_on: ErrorTypes = (),
        max_running: int | None = None,
    ) -> _Decorator:
        """Decorator: register an async function. The arguments are those of `register`.

        Args:
            name: Default: the function's own.
        """
        if name is not None and not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidService(
                f"the name is {shown(name)}, but must be a str; write @services.service() with "
                "its parentheses"
            )
        local_names = _callers_locals()

        def decorate(function: Callable[..., Awaitable[Any]]) -> Service[Any, Any]:
            return self._add(
                Service(
                    name if name is not None else getattr(function, "__name__", ""),
                    function,
                    policy=policy,
                    retry_on=retry_on,
                    give_up_on=give_up_on,
                    max_running=max_running,
                    local_names=local_names,
                )
            )

        return cast("_Decorator", decorate)

    @overload
    def register(
        self,
        name: str,
        function: Callable[[P], Awaitable[R_co]],
        *,
        policy: RetryPolicy | None = None,
        retry_on: ErrorTypes = Exception,
        give_up_on: ErrorTypes = (),
        max_running: int | None = None,
    ) -> Service[P, R_co]: ...
    @overload
    def register(
        self,
        name: str,
        function: Callable[[], Awaitable[R_co]],
        *,
        policy: RetryPolicy | None = None,
        retry_on: ErrorTypes = Exception,
        give_up_on: ErrorTypes = (),
        max_running: int | None = None,
    ) -> Service[Any, R_co]: ...
    def register(
        self,
        name: str,
        function: Callable[..., Awaitable[Any]],
        *,
        policy: RetryPolicy | None = None,
        retry_on: ErrorTypes = Exception,
        give_up_on: ErrorTypes = (),
        max_running: int | None = None,
    ) -> Service[Any, Any]:
        """Register an async callable: a function, a bound method, or an object with one.

        Args:
            name: `[A-Za-z0-9_]`, then up to 199 of these and `.`, `-`.
            function: Takes nothing, or one payload.
            policy: What a call uses that gives no policy of its own.
            retry_on: Error classes that are retried. An `ExceptionGroup` is if all its leaves are.
            give_up_on: Error classes that are not, although *retry_on* has them.
            max_running: How many background attempts may run at a time. Default: no own limit.

        Raises:
            InvalidService: The name, the callable or an option is not usable.
            DuplicateService: The name is taken.
        """
        return self._add(
            Service(
                name,
                function,
                policy=policy,
                retry_on=retry_on,
                give_up_on=give_up_on,
                max_running=max_running,
                local_names=_callers_locals(),
            )
        )

    def include(self, other: ServiceRegistry) -> None:
        """Register every service of another registry here too; all of them, or none.

        Raises:
            DuplicateService: A name is taken by another service.
            TypeError: It is no registry.
        """
        if not isinstance(other, ServiceRegistry):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"{shown(other)} cannot be included, it must be a ServiceRegistry")
        for service in other.values():
            self._check_free(service)
        self._services.update(other)

    def _add(self, service: Service[Any, Any]) -> Service[Any, Any]:
        self._check_free(service)
        self._services[service.name] = service
        return service

    def _check_free(self, service: Service[Any, Any]) -> None:
        if self._services.get(service.name, service) is not service:
            raise DuplicateService(
                f"a service is already named {service.name!r}; give this one another name, or "
                "register it once"
            )

    def __getitem__(self, name: str) -> Service[Any, Any]:
        try:
            return self._services[name]
        except KeyError:
            raise ServiceNotFound(name, self._services) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._services)

    def __len__(self) -> int:
        return len(self._services)

    def __repr__(self) -> str:
        return f"<ServiceRegistry of {len(self)} services>"


def resolve(services: ServiceRegistry, target: str | Service[Any, Any]) -> Service[Any, Any]:
    """The service that a caller means, by itself or by its name.

    Raises:
        ServiceNotFound: No service is registered under that name.
        TypeError: It is no service, or not the one that is registered under its name.
    """
    if isinstance(target, Service):
        if (services.find(target.name) or services[target.name]) is target:
            return target
        raise TypeError(
            f"{target!r} is not the service that this coordinator's registry has under that name"
        )
    if isinstance(target, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        return services.find(target) or services[target]
    raise TypeError(f"{shown(target)} is no service; pass a Service or its name")


def _callers_locals() -> Mapping[str, Any]:
    """The names where a service is registered: types of a function's own scope are found too."""
    return sys._getframe(2).f_locals  # pyright: ignore[reportPrivateUsage]


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidService(
            f"the name of a service is {shown(name)}, but must be a letter, digit or '_' and "
            "then up to 199 of these, '.' or '-' (ASCII); pass one as name="
        )


def _check_function(name: str, function: object) -> None:
    if not callable(function):
        raise InvalidService(f"{name!r} cannot be a service: {shown(function)} is not callable")
    if isinstance(function, Service):
        raise InvalidService(
            f"{name!r} is a service already; register its .function, or use include()"
        )
    while isinstance(function, partial):
        function = function.func
    if isinstance(function, type) or not (
        inspect.iscoroutinefunction(function)
        or inspect.iscoroutinefunction(getattr(type(function), "__call__", None))  # noqa: B004
    ):
        raise InvalidService(
            f"{name!r} cannot be a service: {shown(function)} is not async; write it with "
            "'async def', and call blocking code through anyio.to_thread.run_sync"
        )


def _check_policy(name: str, policy: object) -> RetryPolicy | None:
    if policy is not None and not isinstance(policy, RetryPolicy):
        raise InvalidService(f"policy of {name!r} is {shown(policy)}, but must be a RetryPolicy")
    return policy


def _check_errors(name: str, option: str, types: object) -> ErrorTypes:
    listed = cast("tuple[object, ...]", types) if isinstance(types, tuple) else (types,)
    for each in listed:
        if not _is_error_class(each):
            raise InvalidService(
                f"{option} of {name!r} has {shown(each)}, but must be a subclass of Exception, "
                "or a tuple of them"
            )
    return cast("ErrorTypes", types)


def _is_error_class(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Exception)


def _check_limit(name: str, limit: object) -> int | None:
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise InvalidService(
            f"max_running of {name!r} is {shown(limit)}, but must be None or an int of at least 1"
        )
    return limit
