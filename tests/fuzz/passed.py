"""Payloads and contexts: refused alike in memory and on SQLite, or read back equal on both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, SecretStr, TypeAdapter, ValidationError

from invoke_retry import InvalidPayload, NotStorable, ServiceRegistry

from .kind import MAX_BYTES, Paired, Told, expect
from .values import Colour, Loose, Point, moment, text, value

ONCE: dict[str, Any] = {"repeats": 0, "seconds": 0, "callback": "tell"}
_AT_A_TIME = 10


class Order(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    number: Annotated[int, Field(alias="orderNumber")]
    at: datetime | None = None
    price: Decimal = Decimal(1)
    colour: Colour = Colour.RED
    lines: list[tuple[int, str]] = []
    more: Any = None


class Login(BaseModel):
    user: str
    password: SecretStr


@dataclass
class Line:
    points: list[Point]
    tags: frozenset[str] = frozenset()


class Corner(NamedTuple):
    x: int
    y: str


ANNOTATIONS: dict[str, Any] = {
    "any": Any, "dict": dict[str, Any], "list": list[int], "int": int, "float": float, "str": str,
    "bytes": bytes, "bool": bool, "datetime": datetime, "decimal": Decimal, "set": set[int],
    "tuple": tuple[int, str], "order": Order, "login": Login, "line": Line, "corner": Corner,
    "loose": Loose, "either": int | str | None, "colour": Colour, "mapping": dict[int, float],
}  # fmt: skip


class Passed(Paired):
    """Services of many types, which answer with what they are given."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._given: dict[tuple[str, str], Any] = {}

    def _register(self, services: ServiceRegistry, told: Told) -> None:
        for name, annotation in ANNOTATIONS.items():
            services.register(name, _echo(annotation))
        services.register("bare", _bare)

    async def _compare(self, target: str, payload: Any, context: Any) -> None:
        """Have it accepted by both, and see what comes back."""
        documented = (InvalidPayload, NotStorable)
        answers = await self._pair.both(
            documented,
            lambda retry: retry.invoke_async(target, payload, context=context, **ONCE),
        )
        self.seen[answers[0].verdict] += 1
        if answers[0].error is not None:
            return
        stored, outcomes = list[Any](), list[Any]()
        for retry, told, answer in zip(self._pair.retries, self._pair.told, answers, strict=True):
            outcome = await told.take(answer.result)
            found = await retry.get(answer.result)
            expect(outcome.ok, f"{target} failed: {outcome.error}")
            expect(found.context == outcome.context == context, "the context is another one")
            stored.append(found.payload)
            outcomes.append((outcome.response, outcome.response_omitted))
        expect(stored[0] == stored[1], f"memory keeps {stored[0]}, SQLite {stored[1]}")
        expect(outcomes[0] == outcomes[1], f"memory answers {outcomes[0]}, SQLite {outcomes[1]}")
        self._check_way_back(target, payload, stored[0], outcomes[0])

    def _check_way_back(self, target: str, payload: Any, stored: Any, outcome: Any) -> None:
        response, omitted = outcome
        if target == "bare":
            expect(stored == payload, "the payload is another one")
            expect(omitted is None and response == payload, f"the response: {omitted}")
            return
        adapter = TypeAdapter[Any](ANNOTATIONS[target])
        meant = adapter.validate_python(payload)
        expect(_read(adapter, stored) == meant, "the stored payload reads as another one")
        if omitted is None:
            expect(_read(adapter, response) == meant, "the stored response reads as another one")


class Payloads(Passed):
    """Anything as the payload of any of them."""

    async def round(self, chance: Random) -> None:
        for _ in range(_AT_A_TIME):
            target = chance.choice((*ANNOTATIONS, "bare", "bare", "any"))
            payload = _fitting(chance, target) if chance.random() < 0.5 else None
            await self._compare(
                target, value(chance, MAX_BYTES) if payload is None else payload, {"n": 1}
            )


class Contexts(Passed):
    """Anything as the context."""

    async def round(self, chance: Random) -> None:
        for _ in range(_AT_A_TIME):
            await self._compare("bare", 1, value(chance, MAX_BYTES))


def _fitting(chance: Random, target: str) -> Any:
    """What comes near to being of the type, where random values never do; None if they do."""
    odd = value(chance, MAX_BYTES)
    fitting: dict[str, Callable[[], Any]] = {
        "order": lambda: chance.choice((
            {"orderNumber": chance.randrange(9), "more": odd, "at": moment(chance)},
            Order(number=chance.randrange(9), more=odd, at=moment(chance)),
            Order.model_construct(number=odd, lines=[(1, text(chance))]),
        )),
        "login": lambda: Login(user=text(chance), password=SecretStr(text(chance))),
        "line": lambda: Line([Point(chance.random(), odd)], frozenset((text(chance),))),
        "corner": lambda: Corner(1, text(chance)),
        "loose": lambda: Loose(anything=odd),
        "datetime": lambda: moment(chance),
        "tuple": lambda: (chance.randrange(9), text(chance)),
        "mapping": lambda: {chance.randrange(9): chance.random(), 1: float("nan")},
        "bytes": lambda: chance.randbytes(8),
    }  # fmt: skip
    make = fitting.get(target)
    return make() if make else None


def _read(adapter: TypeAdapter[Any], stored: Any) -> Any:
    """A JSON value as the target would be given it."""
    try:
        return adapter.validate_json(TypeAdapter(Any).dump_json(stored))
    except ValidationError as error:
        return error


def _echo(annotation: Any) -> Any:
    async def echo(payload: Any) -> Any:
        return payload

    echo.__annotations__ = {"payload": annotation, "return": annotation}
    return echo


async def _bare(payload: Any) -> Any:
    return payload


_bare.__annotations__.clear()  # as written by somebody who annotates nothing
