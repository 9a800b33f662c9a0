"""The stored form of payloads, contexts and responses: JSON that reads back equal, or a refusal.

A value that can be written but not read again poisons every reader of a store, so the way back is
tried when the value comes in, in the face of whoever passes it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import is_dataclass
from decimal import Decimal
from functools import cache, partial
from typing import Any, NamedTuple, cast

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

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

    def is_same(self, a: bytes | None, b: bytes | None) -> bool:
        """Whether two stored forms are those of one value.

        The order of keys says nothing. The order of a list does, but not that of a set, which
        each process writes as its hash seed has it; only what is read tells the two apart.
        """
        if a == b or a is None or b is None:
            return a == b
        x, y = from_json(a), from_json(b)
        if _canonical(x) == _canonical(y):
            return True
        if _canonical(_sorted(x)) != _canonical(_sorted(y)):
            return False
        try:
            return _are_alike(self._read(a), self._read(b))
        except Exception:  # it fits the type no longer
            return False

    def _refusal(self, value: Any, data: bytes, path: str, max_bytes: int) -> NotStorable:
        if len(data) > max_bytes:
            return NotStorable(
                path,
                f"it takes {len(data):,} bytes as JSON, more than the limit of {max_bytes:,}; "
                "store it elsewhere and pass where, or raise max_bytes of the backend",
            )
        try:
            return NotStorable(*(self._blame(value, data, path)))
        except Exception as error:  # the value's own code
            return NotStorable(path, f"looking at it raises {type(error).__name__}")

    def _blame(self, value: Any, data: bytes, path: str) -> tuple[str, str]:
        """The part that is at fault, and why: never one that the annotation brings back."""
        written = self._as_python(value)
        reason = "it cannot be written as JSON"
        places: list[str] = []
        if data:
            try:
                restored = self._read(data)
            except ValidationError as error:
                refused = error.errors(include_url=False, include_input=False)
                if refused[0]["type"] != "json_invalid":  # digits, depth
                    places = [_place(path, each["loc"]) for each in refused]
                where = ".".join(map(str, refused[0]["loc"])) or "the value"
                reason = f"its JSON form is not accepted back: {where}: {refused[0]['msg']}"
            except Exception as error:  # a validator of the user's own
                return path, f"reading it back raises {type(error).__name__}"
            else:
                # in the JSON itself: a bare NaN or Infinity, text not every store keeps, the depth
                return (
                    _first(_faults(from_json(data), _NOTHING, path))
                    or _first(_faults(written, self._as_python(restored), path))
                    or (path, _unequal(value, restored))
                )
        faults = partial(_faults, written, _NOTHING, path)
        return (
            _first(f for f in faults() if f.is_certain)
            or _first(f for f in faults() if f.is_at(places) or not (places or _is_json(f.value)))
            or (places[0] if places else path, reason)
        )

    def _as_python(self, value: Any) -> Any:
        dump = partial(
            self._adapter.dump_python, value, by_alias=True, round_trip=True, warnings=False
        )
        try:
            return dump()
        except Exception:  # a set of models can be dumped in the other mode only
            try:
                return dump(mode="json")
            except Exception:  # what cannot be dumped is looked at as it is
                return value


@cache
def any_codec() -> Codec:
    """For values without an annotation: JSON types only."""
    return Codec(TypeAdapter(Any))


def dump_any(value: Any, path: str, max_bytes: int) -> bytes:
    """The stored form of a value that has no annotation: JSON types only."""
    return any_codec().dump(value, path, max_bytes)


def checked_text(name: str, text: object) -> str:
    """*text* if it is a short one that can be stored.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(text, str) or not 1 <= len(text) <= 1_000:
        raise ValueError(f"{name} is {shown(text)}, but must be a str of 1 to 1,000 characters")
    dump_any(text, name, 10_000)
    return text


def load_any(data: bytes | None) -> Any:
    """The plain JSON value; None stands for nothing stored."""
    return None if data is None else from_json(data)


def _canonical(value: Any) -> str:

    return json.dumps(value, sort_keys=True)  # true is not 1 here


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        return {key: _sorted(member) for key, member in members.items()}
    if isinstance(value, list):
        return sorted(map(_sorted, value), key=_canonical)  # pyright: ignore[reportUnknownArgumentType]
    return value


def _are_alike(x: Any, y: Any) -> bool:
    """Whether they are equal, and of the same types in the same places: [1, True] != [True, 1]."""
    if type(x) is not type(y) or x != y:
        return False
    if isinstance(x, BaseModel) or is_dataclass(x):
        x, y = getattr(x, "__dict__", {}), getattr(y, "__dict__", {})
    if isinstance(x, Mapping):
        return all(_are_alike(x[key], y[key]) for key in x)  # pyright: ignore[reportUnknownVariableType]
    return not isinstance(x, list | tuple) or all(map(_are_alike, x, y))  # pyright: ignore[reportUnknownArgumentType]


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


class _Nothing:
    """Stands for a part that nothing is known to read back as."""


_NOTHING = _Nothing()


class _Fault(NamedTuple):
    """A part that JSON does not have.

    Attributes:
        value: The part.
        is_certain: No annotation brings it back.
    """

    path: str
    problem: str
    value: object
    is_certain: bool = False

    def is_at(self, places: list[str]) -> bool:
        """Whether it is what was refused at one of these places."""
        if isinstance(self.value, tuple | AbstractSet | Mapping):
            return self.path in places
        # the steps of a union stand behind the path of its value
        steps = (f"{self.path}.", f"{self.path}[")
        return any(place == self.path or place.startswith(steps) for place in places)


def _faults(value: Any, back: Any, path: str, depth: int = 0) -> Iterator[_Fault]:
    """The parts of a value that JSON does not have, innermost first; none that *back* has again."""
    if value is None or isinstance(value, _SCALARS):
        if isinstance(value, float) and not math.isfinite(value):
            if value != back:
                yield _Fault(path, f"{value} is no JSON number", value)
        elif problem := _scalar_fault(value):
            yield _Fault(path, problem, value, is_certain=True)
        elif problem := _change(value, back):
            yield _Fault(path, problem, value)
        return
    if depth >= MAX_DEPTH:
        problem = f"it is nested more than {MAX_DEPTH} levels deep"
        yield _Fault(path, problem, value, is_certain=True)
        return
    if isinstance(value, Mapping):
        yield from _faults_in_mapping(value, back, path, depth)  # pyright: ignore[reportUnknownArgumentType]
        return
    part = cast("object", value)
    if isinstance(value, list | tuple | AbstractSet):
        for i, item in enumerate(cast("Iterable[Any]", value)):
            yield from _faults(item, _counterpart(back, i, item), _below(path, f"[{i}]"), depth + 1)
    if problem := _misfit(part, back):
        yield _Fault(path, problem, part)


def _faults_in_mapping(
    value: Mapping[Any, Any], back: Any, path: str, depth: int
) -> Iterator[_Fault]:
    known = cast("dict[Any, Any]", back if isinstance(back, Mapping) else {})
    for key, item in value.items():
        if isinstance(key, str):
            if problem := _text_fault(key):
                yield _Fault(path, f"its key {problem}", key, is_certain=True)
        elif key not in known:
            problem = f"its key {shown(key)} is no str, and JSON has no other keys"
            yield _Fault(path, problem, {key: None})
        step = _below(path, f".{str(key)[:60]}")
        yield from _faults(item, known.get(key, _NOTHING), step, depth + 1)


def _counterpart(back: Any, i: int, item: Any) -> Any:
    if isinstance(back, AbstractSet):
        return item if item in back else _NOTHING
    items = cast("tuple[Any, ...]", back) if isinstance(back, list | tuple) else ()
    return items[i] if i < len(items) else _NOTHING


def _first(faults: Iterator[_Fault]) -> tuple[str, str] | None:
    fault = next(faults, None)
    return (fault.path, fault.problem) if fault else None


def _is_json(value: Any) -> bool:
    try:
        from_json(to_json(value))
    except Exception:  # the value's own code, too
        return False
    return True


def _place(path: str, steps: tuple[int | str, ...]) -> str:
    for step in steps:
        path = _below(path, f"[{step}]" if isinstance(step, int) else f".{step[:60]}")
    return path


def _unequal(value: object, restored: object) -> str:
    return (
        f"it reads back as another {type(restored).__name__} than the {type(value).__name__} it "
        "was; an excluded field or a type without == does that"
    )


def _below(path: str, step: str) -> str:
    if len(path) < 200:
        return path + step
    return path if path.endswith("...") else f"{path}..."


def _misfit(value: object, back: object) -> str | None:
    if isinstance(value, Decimal) and not value.is_finite():
        if not value.is_nan() and value == back:
            return None
        return f"{value} is no JSON number"
    if hasattr(value, "get_secret_value"):
        if value == back:
            return None
        return "a secret is masked when it is written; pass where to find it instead"
    if isinstance(value, list):
        return None
    if type(value) is type(back):
        return None if isinstance(value, tuple | AbstractSet) else _change(value, back)
    if isinstance(value, tuple):
        return "a tuple reads back as a list; pass a list, or annotate the type"
    return (
        f"{shown(value)} is no JSON value; pass plain JSON types, or annotate the "
        "type so that it can be read back"
    )


def _change(value: object, back: object) -> str | None:
    if back is _NOTHING or value == back:
        return None
    return f"{shown(value)} reads back as {shown(back)}"


def _scalar_fault(value: object) -> str | None:
    if isinstance(value, int) and value.bit_length() > 14_000 and abs(value) >= 10**MAX_DIGITS:
        return f"an int of more than {MAX_DIGITS:,} digits cannot be read back"
    if isinstance(value, str):
        return _text_fault(value)
    return None


def has_surrogate(text: str) -> bool:
    """Whether it is no valid text: half of a pair stands alone in it."""
    return not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text)


def _text_fault(text: str) -> str | None:
    if "\x00" in text:
        return f"{shown(text)} has a NUL character, which not every store can keep"
    if has_surrogate(text):
        return f"{shown(text)} has a lone surrogate, which is no valid text"
    return None
