"""What a function's signature and annotations say about its payload and its response."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from pydantic import ConfigDict, TypeAdapter
from pydantic.errors import PydanticSchemaGenerationError

from invoke_retry.durations import shown
from invoke_retry.errors import InvalidService
from invoke_retry.failure import describe, printable

_WRITE_TYPES = "write a type, such as dict[str, int] or typing.Any, or leave it out"


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
        _check_type(name, "return", self.response_type)
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
            _check_type(name, "payload", self.payload_type)
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
            f"{name!r} cannot be a service: an annotation names "
            f"{printable(str(error.name), 100)!r}, which is not defined where the function is "
            "registered; define or import it before (not under TYPE_CHECKING)"
        ) from error
    except Exception as error:  # an annotation in quotes is evaluated, and may hold anything
        raise InvalidService(
            f"{name!r} cannot be a service: an annotation cannot be read: {_first_line(error)}; "
            f"{_WRITE_TYPES}"
        ) from error


def _check_type(name: str, role: str, annotation: object) -> None:
    # pydantic takes `-> any` for "any value" with a warning; what is not built in may be a type
    if isinstance(annotation, type) or annotation is None:
        return
    if type(annotation).__module__ == "builtins":
        raise InvalidService(
            f"{name!r} cannot be a service: its {role} annotation {shown(annotation)} is no type; "
            f"{_WRITE_TYPES}"
        )


def adapter_for(name: str, role: str, annotation: Any) -> TypeAdapter[Any]:
    """What validates and writes values of that annotation.

    Raises:
        InvalidService: pydantic cannot use it, or warns of it and warnings are errors.
    """
    try:
        return _complete(TypeAdapter(annotation))
    except PydanticSchemaGenerationError as error:
        try:  # a class that pydantic knows nothing of is checked by isinstance
            return _complete(
                TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
            )
        except Exception:  # the first error says more
            raise _unusable(name, role, annotation, error) from error
    except Exception as error:  # schemas come from classes of the user's own, too
        raise _unusable(name, role, annotation, error) from error


def _complete(adapter: TypeAdapter[Any]) -> TypeAdapter[Any]:
    # a model that names an undefined type raises only when it is used
    _ = adapter.validator.validate_json, adapter.serializer.to_json
    return adapter


def _unusable(name: str, role: str, annotation: Any, error: Exception) -> InvalidService:
    return InvalidService(
        f"the {role} annotation of {name!r}, {type_text(annotation)}, cannot be used: "
        f"{_first_line(error)}"
    )


def _first_line(error: Exception) -> str:
    return printable(describe(error).partition("\\n")[0], 250)


def type_text(annotation: Any) -> str:
    """The annotation as an error message shows it."""
    try:
        name = annotation.__name__ if isinstance(annotation, type) else str(annotation)
        return printable(name, 150)
    except Exception:  # its own code
        return shown(annotation)
