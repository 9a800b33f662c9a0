"""The stored form of payloads, contexts and responses: JSON that reads back equal, or a refusal.

A value that can be written but not read again poisons every reader of a store, so the way back is
tried when the value comes in, in the face of whoever passes it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from invoke_retry.durations import shown
from invoke_retry.errors import NotStorable

MAX_DEPTH = 100
MAX_DIGITS = 4_300

_SCALARS = (bool, int, float, str)


class Codec:
    """Writes values of one type as JSON bytes, and reads them back."""

    __slots__ = ("_adapter", "_read", "_write")

    def __init__(self, adapter: TypeAdapter[Any]) -> None:
        self._adapter = adapter
        self._write = adapter.serializer.to_json
        self._read = adapter.validator.validate_json

    def dump(self, value: Any, path: str, max_bytes: int) -> bytes:
        """The stored form of *value*.

        Raises:
            NotStorable: It is over *max_bytes*, or does not read back equal.
        """
        data = b""
        try:
            data = self._write(value, by_alias=True, round_trip=True, warnings=False)
            if (
                len(data) <= max_bytes
                # find() is twice as fast as `in` here; NaN needs no look, it never equals itself
                and (data.find(b"Infinity") < 0 or _is_finite(data))
                and (data.find(b"\\u0000") < 0 or not _has_nul(data))
                and (len(data) <= 2 * MAX_DEPTH or not _is_deep(data))
                and self._read(data) == value
            ):
                return data
        except Exception as error:  # pydantic's own, or of a validator, serializer or == of a user
            raise self._refusal(value, data, path, max_bytes) from error
        raise self._refusal(value, data, path, max_bytes)

    def load(self, data: bytes) -> Any:
        """A fresh copy of the value; `ValueError` if the bytes no longer fit the type."""
        return self._read(data)

    def _refusal(self, value: Any, data: bytes, path: str, max_bytes: int) -> NotStorable:
        if len(data) > max_bytes:
            return NotStorable(
                path,
                f"it takes {len(data):,} bytes as JSON, more than the limit of {max_bytes:,}; "
                "store it elsewhere and pass where, or raise max_bytes of the backend",
            )
        try:
            written = self._adapter.dump_python(
                value, by_alias=True, round_trip=True, warnings=False
            )
        except Exception:  # what cannot be dumped is looked at as it is
            written = value
        try:
            fault = _find_fault(written, path, 0)
            return NotStorable(*(fault or (path, self._why_unequal(value, data))))
        except Exception as error:  # the value's own code
            return NotStorable(path, f"looking at it raises {type(error).__name__}")

    def _why_unequal(self, value: Any, data: bytes) -> str:
        if not data:
            return "it cannot be written as JSON"
        try:
            restored = self._read(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "the value"
            return f"its JSON form is not accepted back: {where}: {first['msg']}"
        except Exception as error:  # a validator of the user's own
            return f"reading it back raises {type(error).__name__}"
        return (
            f"it reads back as another {type(restored).__name__} than the "
            f"{type(value).__name__} it was; an excluded field or a type without == does that"
        )


@cache
def _any() -> Codec:
    return Codec(TypeAdapter(Any))


def dump_any(value: Any, path: str, max_bytes: int) -> bytes:
    """The stored form of a value that has no annotation: JSON types only."""
    return _any().dump(value, path, max_bytes)


def load_any(data: bytes | None) -> Any:
    """The plain JSON value; None stands for nothing stored."""
    return None if data is None else from_json(data)


def _is_finite(data: bytes) -> bool:
    try:
        from_json(data, allow_inf_nan=False)
    except ValueError:
        return False
    return True  # it says so inside a string


def _has_nul(data: bytes) -> bool:
    return _NUL.search(_STRAY_ESCAPES.sub(b"", data)) is not None


_NUL = re.compile(rb"\\u0000")
_STRAY_ESCAPES = re.compile(rb"\\\\")
_NO_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"|[^][{}"]+')
_SAME_BRACKETS = bytes.maketrans(b"{}", b"[]")


def _is_deep(data: bytes) -> bool:
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return False
    brackets = _NO_BRACKETS.sub(b"", data).translate(_SAME_BRACKETS)
    for _ in range(MAX_DEPTH):  # peel one level at a time
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


def _find_fault(value: Any, path: str, depth: int) -> tuple[str, str] | None:
    """Where a value differs from JSON, and how; looked for only when it was refused."""
    if value is None or isinstance(value, _SCALARS):
        problem = _scalar_fault(value)
        return (path, problem) if problem else None
    if depth >= MAX_DEPTH:
        return path, f"it is nested more than {MAX_DEPTH} levels deep"
    if isinstance(value, list):
        for i, item in enumerate(value):  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
            if fault := _find_fault(item, _below(path, f"[{i}]"), depth + 1):
                return fault
        return None
    if isinstance(value, Mapping):
        for key, item in value.items():  # pyright: ignore[reportUnknownVariableType]
            if not isinstance(key, str):
                return (
                    path,
                    f"its key {shown(cast('object', key))} is no str, and JSON has no other keys",
                )
            if problem := _text_fault(key):
                return path, f"its key {problem}"
            if fault := _find_fault(item, _below(path, f".{key[:60]}"), depth + 1):
                return fault
        return None
    if hasattr(value, "get_secret_value"):
        return path, "a secret is masked when it is written; pass where to find it instead"
    if isinstance(value, tuple):
        return path, "a tuple reads back as a list; pass a list, or annotate the type"
    return path, (
        f"{shown(value)} is no JSON value; pass plain JSON types, or annotate the type "
        "so that it can be read back"
    )


def _below(path: str, step: str) -> str:
    if len(path) < 200:
        return path + step
    return path if path.endswith("...") else f"{path}..."


def _scalar_fault(value: object) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is no JSON number"
    if isinstance(value, int) and value.bit_length() > 14_000 and abs(value) >= 10**MAX_DIGITS:
        return f"an int of more than {MAX_DIGITS:,} digits cannot be read back"
    if isinstance(value, str):
        return _text_fault(value)
    return None


def _text_fault(text: str) -> str | None:
    if "\x00" in text:
        return f"{shown(text)} has a NUL character, which not every store can keep"
    if any("\ud800" <= c <= "\udfff" for c in text):
        return f"{shown(text)} has a lone surrogate, which is no valid text"
    return None
