"""Who is running, and the ids that tie an invocation together."""

from __future__ import annotations

import hashlib
import re
from contextvars import ContextVar, Token
from random import Random, SystemRandom
from typing import TYPE_CHECKING, Any, Self

from pydantic_core import CoreSchema, core_schema

from invoke_retry.durations import shown

if TYPE_CHECKING:
    from invoke_retry.coordinator import InvokeRetry

SYSTEM_RANDOM: Random = SystemRandom()
"""The operating system's source.

Not the `random` module's own source: a `random.seed(1)` of the application would make the ids
of two processes collide, and a private `Random` repeats itself in a forked child."""

_DIGIT_OF_BYTE = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ" * 8
_FORM = re.compile(r"K0[0-7][0-9A-HJKMNP-TV-Z]{25}")


class CorrelationId(str):
    """The id of an invocation: `K` and 27 Crockford base32 digits of 128 bits, 28 characters.

    A `str`, so that it can be stored and sent as one; a class of its own, so that a caller can
    tell "handed over to the background" from a response that is a string.

    Raises:
        ValueError: The text has not this form.
    """

    __slots__ = ()

    def __new__(cls, text: object) -> Self:
        if not isinstance(text, str) or _FORM.fullmatch(text) is None:
            raise ValueError(
                f"{shown(text)} is no correlation id: expected K0, one digit of 0-7 and 25 "
                "Crockford base32 digits; CorrelationId.from_key(...) makes one from any text"
            )
        return str.__new__(cls, text)

    @classmethod
    def new(cls, random: Random = SYSTEM_RANDOM) -> Self:
        """A fresh id of 128 random bits."""
        return cls._of_bytes(random.randbytes(26))

    @classmethod
    def from_key(cls, key: object) -> Self:
        """The id that belongs to a natural key such as `order-4711`: the same key, the same id.

        Each digit is taken from one byte of the SHA-256 of the key's UTF-8 form.

        Raises:
            ValueError: The key is empty or is no valid text (lone surrogates).
        """
        if not isinstance(key, str) or not key:
            raise ValueError(f"the key is {shown(key)}, but must be a str of 1 or more characters")
        try:
            text = key.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"the key is {shown(key)}, but must be valid text: it has a lone surrogate"
            ) from None
        return cls._of_bytes(hashlib.sha256(text).digest()[:26])

    @classmethod
    def _of_bytes(cls, data: bytes) -> Self:
        """Three bits of the first byte and five of each of 25 more are 128 bits."""
        digits = data.translate(_DIGIT_OF_BYTE).decode("ascii")
        return str.__new__(cls, f"K0{data[0] & 7}{digits[1:]}")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> CoreSchema:
        from_text = core_schema.no_info_after_validator_function(
            cls, core_schema.str_schema(strict=True)
        )
        return core_schema.json_or_python_schema(
            json_schema=from_text,
            python_schema=core_schema.union_schema(
                [core_schema.is_instance_schema(cls), from_text], mode="left_to_right"
            ),
            serialization=core_schema.to_string_ser_schema(),
        )


class Caller:
    """Who invokes, where no service does: a name and a cid, see `InvokeRetry.caller`."""

    __slots__ = ("call", "cid", "name")

    def __init__(self, name: str, cid: str, call: Call | None = None) -> None:
        self.name = name
        self.cid = cid
        self.call = call


class Call:
    """One attempt under way, as the service that runs in it sees it.

    Attributes:
        retry: The coordinator that makes the attempt.
        service: The name of the service.
        attempt: The number of this attempt, from 1; in a callback, of the delivery attempt.
        repeats: How many attempts may follow the first one.
        cid: The id of the invocation.
        orig_cid: The id of whoever invoked it.
    """

    # Made for every inline attempt: no __init__, which would cost as much as a hand-written loop.
    __slots__ = ("_cid", "_token", "attempt", "repeats", "retry", "service")

    retry: InvokeRetry
    service: str
    attempt: int
    repeats: int
    _cid: str | Call | None  # not made yet; or that of an earlier attempt, made or not
    _token: Token[Call | Caller | None]  # of `here`: it knows who was running before

    @property
    def cid(self) -> CorrelationId:
        cid = self._cid
        if cid is None:  # inline ids are made when somebody looks
            cid = self._cid = self.retry.new_cid()
        elif isinstance(cid, Call):
            cid = self._cid = cid.cid
        return cid  # type: ignore[return-value]

    def following(self) -> Call:
        """The attempt after this one, which stays as whoever has kept it has seen it."""
        call = Call()
        call.retry = self.retry
        call.service = self.service
        call.attempt = self.attempt + 1
        call.repeats = self.repeats
        call._cid = self if self._cid is None else self._cid
        call._token = self._token
        return call

    @property
    def orig_cid(self) -> str:
        return (self._origin or self.retry.own_caller).cid

    @property
    def _origin(self) -> Call | Caller | None:
        before = self._token.old_value
        return None if before is Token.MISSING else before

    @property
    def parent(self) -> Call | None:
        """The call of the service that invoked this one, if it did so inline."""
        origin = self._origin
        return origin.call if isinstance(origin, Caller) else origin

    @property
    def name(self) -> str:
        return self.service

    def __repr__(self) -> str:
        return f"<Call {self.service} {self.attempt}/{1 + self.repeats} {self.cid}>"


here: ContextVar[Call | Caller | None] = ContextVar("invoke_retry.here", default=None)


def running_call() -> Call | None:
    """The attempt that the running code is part of, if it is part of one."""
    now = here.get()
    return now.call if isinstance(now, Caller) else now


def current_call() -> Call:
    """The attempt that the running code is part of.

    Raises:
        LookupError: No service is running here.
    """
    call = running_call()
    if call is None:
        raise LookupError(
            "no service is running here; current_call() works inside a service that a "
            "coordinator runs, and in what it awaits"
        )
    return call
