"""Hostile values, drawn from a seeded source: JSON and nearly JSON, texts, and things of Python."""

from __future__ import annotations

import math
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, IntEnum
from functools import partial
from random import Random
from typing import Any
from uuid import UUID

from pydantic import BaseModel, SecretStr

TEXTS = (
    "", " ", "a", "\x00", "a\x00b", "\\u0000", "\\\\u0000", "\ud800", "x\udfff", "\udcff", "\ufeff",
    "\u2028", "\u202e", "\x1b[2J", "\U0010ffff", "é", "e\u0301", "NaN", "Infinity", "-Infinity",
    "null", "true", "1e309", '"', "'", "\\", "[{", "]}", "' OR 1=1 --", "$.x", "../../etc/passwd",
    "%s%n{0}", "\r\n", "K0" * 14, "\u0660", "__class__", "a.b[0]", "*", ">", "ir.x.>",
)  # fmt: skip
NUMBERS: tuple[Any, ...] = (
    0, 1, -1, True, False, 2**31, 2**53, 2**53 + 1, 2**63, -(2**63) - 1, 2**64, 10**4_299,
    10**4_300, -(10**5_000), 0.0, -0.0, 0.1, 5e-324, 1.7e308, 1e22, math.nan, math.inf, -math.inf,
)  # fmt: skip
DEPTHS = (2, 10, 98, 99, 100, 101, 102, 200, 300, 5_000)


class Text(str):
    """A text that is no plain one."""

    __slots__ = ()


class Number(int):
    """A number that is no plain one."""


class Fields(dict[Any, Any]):
    """A dict that is no plain one."""


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


@dataclass
class Point:
    x: float
    y: Any


class Loose(BaseModel):
    anything: Any = None


class Prickly:
    """Whatever is asked of it raises."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    def __hash__(self) -> int:
        return 1

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class OddZone(tzinfo):
    """A zone whose offset has microseconds, or is none at all."""

    def __init__(self, offset: timedelta | None) -> None:
        self._offset = offset

    def utcoffset(self, dt: datetime | None, /) -> timedelta | None:
        return self._offset

    def dst(self, dt: datetime | None, /) -> timedelta | None:
        return None

    def tzname(self, dt: datetime | None, /) -> str | None:
        return "odd\ud800"


def text(chance: Random) -> str:
    """A text, often one that somebody has stumbled over."""
    if chance.random() < 0.5:
        return chance.choice(TEXTS)
    top = chance.choice((0x7F, 0x2FF, 0xFFFF, 0x10FFFF))
    return "".join(chr(chance.randrange(top + 1)) for _ in range(chance.randrange(20)))


def scalar(chance: Random) -> Any:
    """None, a bool, a number or a text."""
    return chance.choice(
        (None, text(chance), chance.choice(NUMBERS), chance.randrange(10**6), chance.random())
    )


def thing(chance: Random) -> Any:
    """What is no JSON, or looks like it."""
    makers: tuple[Callable[[], Any], ...] = (
        lambda: chance.randbytes(chance.randrange(5)),
        lambda: Decimal(chance.choice(("1.10", "NaN", "sNaN", "-Infinity", "1e400", "-0"))),
        lambda: moment(chance),
        lambda: date(1, 1, 1),
        lambda: timedelta(days=chance.choice((0, -1, 999_999_999)), microseconds=1),
        lambda: UUID(int=chance.getrandbits(128)),
        lambda: Text(text(chance)),
        lambda: Number(chance.randrange(10)),
        lambda: Fields(a=scalar(chance)),
        OrderedDict[Any, Any],
        lambda: defaultdict(list, a=[scalar(chance)]),
        lambda: Colour.RED,
        lambda: Level.HIGH,
        lambda: Point(chance.choice(NUMBERS[-8:]), scalar(chance)),
        lambda: Loose(anything=scalar(chance)),
        lambda: SecretStr(text(chance)),
        lambda: frozenset((1, 2)),
        lambda: {chance.randrange(5), "a"},
        lambda: (scalar(chance), 1),
        lambda: range(3),
        lambda: {1: 2},
        lambda: {None: 1, True: 2},
        lambda: {"\ud800": 1},
        lambda: {Text("a"): 1},
        lambda: Prickly(),
        object,
        lambda: math.sin,
        lambda: Loose,
        lambda: memoryview(b"x"),
        lambda: 1j,
    )
    return chance.choice(makers)()


def moment(chance: Random) -> datetime:
    """A datetime of an odd zone, or of none."""
    zones = (
        None, UTC, timezone(timedelta(hours=14)), timezone(timedelta(hours=-23, minutes=-59)),
        timezone(timedelta(seconds=1)), OddZone(timedelta(microseconds=1)), OddZone(None),
    )  # fmt: skip
    times = (
        datetime.min,
        datetime.max,
        datetime(2015, 1, 21, 20, 25, 25, 446454),
        datetime(1970, 1, 1),
    )
    return chance.choice(times).replace(tzinfo=chance.choice(zones), fold=chance.randrange(2))


def nested(chance: Random) -> Any:
    """Far down, in lists, dicts or both."""
    inner: Any = scalar(chance)
    for _ in range(chance.choice(DEPTHS)):
        inner = [inner] if chance.random() < 0.5 else {"k": inner}
    return inner


def cycle(chance: Random) -> Any:
    """A value that is a part of itself."""
    outer: list[Any] = [scalar(chance)]
    outer.append({"again": outer} if chance.random() < 0.5 else outer)
    return outer


def long(chance: Random, limit: int) -> Any:
    """About as long as is allowed."""
    length = limit + chance.randrange(-6, 4)
    return chance.choice(
        ("x" * length, "é" * (length // 2), ["", "x" * (length - 5)], [1] * length)
    )


def value(chance: Random, limit: int, depth: int = 0) -> Any:
    """Anything.

    Args:
        limit: Of the size, near which some are drawn.
    """
    kind = chance.random()
    if depth == 0 and kind < 0.15:
        return chance.choice((nested, cycle, partial(long, limit=limit)))(chance)
    if depth < 4 and kind < 0.55:
        items = [value(chance, limit, depth + 1) for _ in range(chance.randrange(4))]
        if chance.random() < 0.5:
            return items
        return {text(chance): item for item in items}
    return thing(chance) if kind > 0.85 else scalar(chance)
