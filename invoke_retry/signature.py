"""What a function's signature and annotations say about its payload and its response."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from pydantic import ConfigDict, PydanticUserError, TypeAdapter
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation

from invoke_retry.errors import InvalidService


class Signature:
    """The types of the payload and of the response, and whether a payload is taken or needed."""

    def __init__(
        self, name: str, function: Callable[..., Any], local_names: Mapping[str, Any] | None
    ) -> None:
        self.takes_payload = self.needs_payload = False
        self.payload_type: Any = Any
        self.response_type: Any = Any
        try:
            signature = inspect.signature(function)
        except (ValueError, TypeError):  # a callable written in C: anything may fit
            self.takes_payload = True
            return
        hints = _type_hints(name, function, local_names)
        self.response_type = hints.get("return", Any)
        for parameter in signature.parameters.values():
            needed = parameter.default is parameter.empty
            if parameter.kind is parameter.VAR_KEYWORD:
                continue
            if parameter.kind is parameter.KEYWORD_ONLY or self.takes_payload:
                if needed and parameter.kind is not parameter.VAR_POSITIONAL:
                    raise InvalidService(
                        f"{name!r} cannot be a service: it needs the argument "
                        f"{parameter.name!r}, but a service is called with at most one payload; "
                        "put them into one model or dict"
                    )
                continue
            self.takes_payload = True
            self.needs_payload = needed and parameter.kind is not parameter.VAR_POSITIONAL
            self.payload_type = hints.get(parameter.name, Any)
        if self.payload_type is object:
            self.payload_type = Any


def _type_hints(
    name: str, function: Callable[..., Any], local_names: Mapping[str, Any] | None
) -> dict[str, Any]:
    while isinstance(function, partial):
        function = function.func
    if not (inspect.isfunction(function) or inspect.ismethod(function)):
        function = type(function).__call__
    try:
        return typing.get_type_hints(function, localns=dict(local_names or {}), include_extras=True)
    except NameError as error:
        raise InvalidService(
            f"{name!r} cannot be a service: an annotation names {error.name!r}, which is not "
            "defined where the function is registered; define or import it before (not under "
            "TYPE_CHECKING)"
        ) from error


def adapter_for(name: str, role: str, annotation: Any) -> TypeAdapter[Any]:
    """What validates and writes values of that annotation.

    Raises:
        InvalidService: It is not usable.
    """
    if annotation is None:
        annotation = type(None)
    try:
        return TypeAdapter(annotation)
    except PydanticSchemaGenerationError as error:
        try:  # a class that pydantic knows nothing of is checked by isinstance
            return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
        except (PydanticSchemaGenerationError, PydanticUserError):
            raise _unusable(name, role, annotation, error) from error
    except (PydanticUndefinedAnnotation, PydanticUserError) as error:
        raise _unusable(name, role, annotation, error) from error


def _unusable(name: str, role: str, annotation: Any, error: Exception) -> InvalidService:
    return InvalidService(
        f"{name!r} cannot be a service: its {role} annotation {type_text(annotation)} cannot be "
        f"used: {str(error).splitlines()[0]}"
    )


def type_text(annotation: Any) -> str:
    """The annotation as an error message shows it."""
    return getattr(annotation, "__name__", None) or str(annotation)
