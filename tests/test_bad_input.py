"""Wrong arguments: refused before anything is called or stored, by an error that helps."""

import asyncio
import math
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from enum import Enum
from typing import Annotated, Any, cast

import pytest
import pytest_asyncio
from pydantic import BaseModel, Field, field_validator

from invoke_retry import (
    CallbackPayload,
    CidConflict,
    CorrelationId,
    DuplicateService,
    InvalidPayload,
    InvalidPolicy,
    InvalidService,
    InvalidState,
    InvocationNotFound,
    InvokeRetry,
    InvokeRetryError,
    NotRunning,
    NotStorable,
    RetryAfter,
    RetryPolicy,
    Service,
    ServiceNotFound,
    ServiceRegistry,
)
from invoke_retry.backends import MemoryBackend, backend_from

pytestmark = pytest.mark.virtual_time

HUGE = 10**400
UNKNOWN = CorrelationId.from_key("never accepted")
ONCE: dict[str, Any] = {"repeats": 0, "seconds": 0}


class Order(BaseModel):
    number: Annotated[int, Field(ge=1)]
    lines: list[str] = []


class World:
    """A few services, and whether any was called."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.services = ServiceRegistry()
        self.services.register("orders.place", self.place)
        self.services.register("orders.ping", self.ping)
        self.services.register("orders.any", self.any)
        self.services.register("orders.told", self.told)
        self.retry = InvokeRetry(self.services)

    async def place(self, order: Order) -> int:
        self.calls.append("place")
        return order.number

    async def ping(self) -> None:
        self.calls.append("ping")

    async def any(self, payload: Any) -> Any:
        self.calls.append("any")
        return payload

    async def told(self, outcome: CallbackPayload) -> None:
        self.calls.append("told")


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    async with world.retry:
        yield world


def check(error: BaseException, words: list[str]) -> None:
    text = str(error)
    for word in words:
        assert word in text, text
    assert len(text) < 700
    assert text.isprintable()


Mode = Callable[..., Awaitable[Any]]


def modes(retry: InvokeRetry) -> dict[str, Mode]:
    async def fallback(*args: Any, **kwargs: Any) -> Any:
        return await retry.invoke(*args, async_fallback=True, **kwargs)

    return {
        "inline": cast("Mode", retry.invoke),
        "fallback": fallback,
        "background": cast("Mode", retry.invoke_async),
    }


async def unhelpful() -> None:
    """Not registered anywhere."""


stranger = Service[Any, None]("orders.strange", unhelpful)
namesake = Service[Any, None]("orders.ping", unhelpful)

# (target, payload and more), (keywords), the error, what its text says
EVERYWHERE: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], list[str]]] = [
    (("orders.plase", {}), ONCE, ServiceNotFound, ["orders.plase", "did you mean 'orders.place'"]),
    (("zzz",), ONCE, ServiceNotFound, ["'zzz'", "4 other services"]),
    (("",), ONCE, ServiceNotFound, ["''"]),
    ((stranger,), ONCE, ServiceNotFound, ["orders.strange"]),
    ((namesake,), ONCE, TypeError, ["orders.ping", "registry"]),
    ((None,), ONCE, TypeError, ["None", "Service or its name"]),
    ((5,), ONCE, TypeError, ["5 (int)", "Service or its name"]),
    (([],), ONCE, TypeError, ["[] (list)", "Service or its name"]),
    ((unhelpful,), ONCE, TypeError, ["function", "Service or its name"]),
    (("orders.place",), ONCE, InvalidPayload, ["orders.place", "none was given", "second"]),
    (("orders.place", None), ONCE, InvalidPayload, ["orders.place", "NoneType", "Order"]),
    (("orders.place", {"number": 0}), ONCE, InvalidPayload, ["number", "greater than"]),
    (("orders.place", {"number": "x"}), ONCE, InvalidPayload, ["number", "integer", "Order"]),
    (("orders.place", {}), ONCE, InvalidPayload, ["number", "required"]),
    (("orders.place", {"number": 1, "lines": [1] * 9}), ONCE, InvalidPayload,
     ["lines.0", "and 4 more"]),
    (("orders.ping", {"a": 1}), ONCE, InvalidPayload, ["orders.ping", "no payload", "leave it"]),
    (("orders.ping", None), ONCE, InvalidPayload, ["orders.ping", "no payload", "None"]),
    (("orders.ping",), {}, InvalidPolicy, ["repeats", "policy="]),
    (("orders.ping",), {"seconds": 1}, InvalidPolicy, ["repeats", "policy="]),
    (("orders.ping",), {"repeats": 1}, InvalidPolicy, ["interval", "seconds=", "minutes="]),
    (("orders.ping",), {"repeats": True, "seconds": 1}, InvalidPolicy, ["repeats", "True", "int"]),
    (("orders.ping",), {"repeats": -1, "seconds": 1}, InvalidPolicy, ["repeats", "-1"]),
    (("orders.ping",), {"repeats": 1.5, "seconds": 1}, InvalidPolicy, ["repeats", "1.5"]),
    (("orders.ping",), {"repeats": 2**31, "seconds": 1}, InvalidPolicy, ["repeats"]),
    (("orders.ping",), {"repeats": 1, "seconds": math.nan}, InvalidPolicy, ["seconds", "nan"]),
    (("orders.ping",), {"repeats": 1, "seconds": -1}, InvalidPolicy, ["seconds", "-1"]),
    (("orders.ping",), {"repeats": 1, "seconds": "1"}, InvalidPolicy, ["seconds", "'1' (str)"]),
    (("orders.ping",), {"repeats": 1, "seconds": HUGE}, InvalidPolicy, ["seconds", "100 years"]),
    (("orders.ping",), {"repeats": 1, "minutes": math.inf}, InvalidPolicy, ["minutes", "inf"]),
    (("orders.ping",), {"repeats": 1, "minutes": timedelta.min}, InvalidPolicy, ["minutes"]),
    (("orders.ping",), {"policy": {"repeats": 1}}, TypeError, ["policy", "dict", "RetryPolicy"]),
    (("orders.ping",), {"policy": RetryPolicy(1, 1), "repeats": -1}, InvalidPolicy, ["repeats"]),
    (("orders.ping",), ONCE | {"cid": ""}, ValueError, ["''", "correlation id", "from_key"]),
    (("orders.ping",), ONCE | {"cid": "order-4711"}, ValueError, ["order-4711", "from_key"]),
    (("orders.ping",), ONCE | {"cid": UNKNOWN.lower()}, ValueError, ["correlation id"]),
    (("orders.ping",), ONCE | {"cid": UNKNOWN + "\n"}, ValueError, ["correlation id"]),
    (("orders.ping",), ONCE | {"cid": 5}, ValueError, ["5 (int)", "correlation id"]),
    (("orders.ping",), ONCE | {"cid": UNKNOWN.encode()}, ValueError, ["bytes", "correlation id"]),
]  # fmt: skip


@pytest.mark.parametrize("mode", ["inline", "fallback", "background"])
@pytest.mark.parametrize(("args", "kwargs", "error", "words"), EVERYWHERE)
async def test_refused_alike_in_all_modes(
    world: World,
    mode: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    error: type[Exception],
    words: list[str],
) -> None:
    with pytest.raises(error) as caught:
        await modes(world.retry)[mode](*args, **kwargs)
    check(caught.value, words)
    assert world.calls == []
    assert sum((await world.retry.counts()).values()) == 0


BACKGROUND: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], list[str]]] = [
    (("orders.any", math.nan), ONCE, NotStorable, ["payload", "nan"]),
    (("orders.any", {"a": [1, math.inf]}), ONCE, NotStorable, ["payload.a[1]", "inf"]),
    (("orders.any", {"a": {1, 2}}), ONCE, NotStorable, ["payload.a"]),
    (("orders.any", (1, 2)), ONCE, NotStorable, ["payload", "tuple", "list"]),
    (("orders.any", "\ud800"), ONCE, NotStorable, ["payload", "surrogate"]),
    (("orders.any", "x" * 2**20), ONCE, NotStorable, ["payload", "1,048,576", "max_bytes"]),
    (("orders.ping",), ONCE | {"context": math.nan}, NotStorable, ["context", "nan"]),
    (("orders.ping",), ONCE | {"context": {"a": object()}}, NotStorable, ["context.a", "object"]),
    (("orders.ping",), ONCE | {"context": "x" * 2**20}, NotStorable, ["context", "max_bytes"]),
    (("orders.ping",), ONCE | {"callback": "orders.tell"}, ServiceNotFound, ["'orders.told'"]),
    (("orders.ping",), ONCE | {"callback": stranger}, ServiceNotFound, ["orders.strange"]),
    (("orders.ping",), ONCE | {"callback": namesake}, TypeError, ["orders.ping", "registry"]),
    (("orders.ping",), ONCE | {"callback": unhelpful}, TypeError, ["Service or its name"]),
    (("orders.ping",), ONCE | {"callback": "orders.ping"}, InvalidPayload,
     ["orders.ping", "callback", "no payload", "CallbackPayload"]),
]  # fmt: skip


@pytest.mark.parametrize("mode", ["fallback", "background"])
@pytest.mark.parametrize(("args", "kwargs", "error", "words"), BACKGROUND)
async def test_refused_by_the_background(
    world: World,
    mode: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    error: type[Exception],
    words: list[str],
) -> None:
    with pytest.raises(error) as caught:
        await modes(world.retry)[mode](*args, **kwargs)
    check(caught.value, words)
    assert world.calls == []
    assert sum((await world.retry.counts()).values()) == 0


@pytest.mark.parametrize("kwargs", [
    {"callback": "orders.told"}, {"context": 5}, {"context": 0}, {"context": ""},
    {"callback": "no such"}, {"callback": "orders.told", "context": {}},
])  # fmt: skip
async def test_only_the_background_has_callbacks(world: World, kwargs: dict[str, Any]) -> None:
    with pytest.raises(TypeError) as caught:
        await cast("Any", world.retry.invoke)("orders.ping", **ONCE, **kwargs)
    check(caught.value, [next(iter(kwargs)), "async_fallback=True", "invoke_async"])
    assert world.calls == []


@pytest.mark.parametrize("mode", ["fallback", "background"])
@pytest.mark.parametrize("other", [
    {"payload": 2}, {"callback": None}, {"callback": "orders.any"}, {"context": 2},
    {"context": None}, {"target": "orders.ping", "payload": None},
])  # fmt: skip
async def test_cid_of_another_request(world: World, mode: str, other: dict[str, Any]) -> None:
    kwargs: dict[str, Any] = {
        "target": "orders.any", "payload": 1, "callback": "orders.told", "context": 1,
        "cid": UNKNOWN,
    }  # fmt: skip
    assert await world.retry.invoke_async(**kwargs, **ONCE) == UNKNOWN
    await world.retry.wait(UNKNOWN)
    world.calls.clear()
    changed = kwargs | other
    if changed["target"] == "orders.ping":
        del changed["payload"]
    with pytest.raises(CidConflict) as caught:
        await modes(world.retry)[mode](**changed, **ONCE)
    check(caught.value, [UNKNOWN, "another request", "another cid"])
    assert "any" not in world.calls
    assert sum((await world.retry.counts()).values()) == 1


@pytest.mark.parametrize("mode", ["fallback", "background"])
async def test_not_entered(mode: str) -> None:
    world = World()
    with pytest.raises(NotRunning) as caught:
        await modes(world.retry)[mode]("orders.ping", **ONCE)
    check(caught.value, ["not running", "async with"])
    async with world.retry:
        pass
    with pytest.raises(NotRunning) as caught:
        await modes(world.retry)[mode]("orders.ping", **ONCE)
    check(caught.value, ["ended", "another one"])
    assert world.calls == []


@pytest.mark.parametrize("mode", ["fallback", "background"])
async def test_bad_arguments_are_told_before_the_lack_of_a_background(mode: str) -> None:
    with pytest.raises(InvalidPolicy):
        await modes(World().retry)[mode]("orders.ping", repeats=-1, seconds=1)
    with pytest.raises(ServiceNotFound):
        await modes(World().retry)[mode]("orders.pin", **ONCE)


async def test_entered_twice(world: World) -> None:
    with pytest.raises(InvalidState, match=r"entered once.*another one"):
        await world.retry.__aenter__()


ASKING: dict[str, Callable[[InvokeRetry, str], Awaitable[Any]]] = {
    "get": lambda retry, cid: retry.get(cid),
    "wait": lambda retry, cid: retry.wait(cid),
    "cancel": lambda retry, cid: retry.cancel(cid),
    "run_now": lambda retry, cid: retry.run_now(cid),
    "redeliver": lambda retry, cid: retry.redeliver(cid),
    "resubmit": lambda retry, cid: retry.resubmit(cid),
    "search": lambda retry, cid: retry.search(after=cid),
}


class Colour(Enum):
    RED = "red"


class Moody(BaseModel):
    word: str

    @field_validator("word")
    @classmethod
    def _check(cls, word: str) -> str:
        raise KeyError(word)


def deep() -> Any:
    value: Any = 0
    for _ in range(5_000):
        value = [value]
    return value


@pytest.mark.parametrize("mode", ["inline", "fallback", "background"])
@pytest.mark.parametrize(
    ("annotation", "payload", "raised"),
    [(Colour, deep(), ""), (Moody, {"word": "x"}, "KeyError")],
    # an enum shows what it refuses: some Pythons show 5,000 levels, others raise RecursionError
    ids=["an enum", "a validator of its own"],
)
async def test_validating_may_raise_anything(
    world: World, mode: str, annotation: Any, payload: Any, raised: str
) -> None:
    async def take(payload: Any) -> None: ...

    take.__annotations__["payload"] = annotation
    world.services.register("take", take)
    with pytest.raises(InvalidPayload) as caught:
        await modes(world.retry)[mode]("take", payload, **ONCE)
    check(caught.value, ["'take'", annotation.__name__, raised])


@pytest.mark.parametrize("name", ASKING)
@pytest.mark.parametrize("cid", [UNKNOWN, "", "no cid at all", "x" * 300])
async def test_unknown_cid(world: World, name: str, cid: str) -> None:
    with pytest.raises(InvocationNotFound) as caught:
        async with asyncio.timeout(5):
            await ASKING[name](world.retry, cid)
    check(caught.value, [cid[:50]])


@pytest.mark.parametrize("name", ASKING)
async def test_asking_needs_to_have_entered(name: str) -> None:
    with pytest.raises(NotRunning, match="async with"):
        await ASKING[name](World().retry, UNKNOWN)


async def test_resubmit_of_a_success(world: World) -> None:
    cid = await world.retry.invoke_async("orders.ping", **ONCE)
    await world.retry.wait(cid)
    with pytest.raises(InvalidState) as caught:
        await world.retry.resubmit(cid)
    check(caught.value, [cid, "succeeded", "failed or was cancelled"])
    assert await world.retry.cancel(cid) is False
    assert await world.retry.run_now(cid) is False
    assert await world.retry.redeliver(cid) is False


@pytest.mark.parametrize("timeout", [-1, math.nan, math.inf, "5", True, [], timedelta(-1)])
async def test_wait_timeout(world: World, timeout: Any) -> None:
    cid = await world.retry.invoke_async("orders.ping", **ONCE)
    with pytest.raises(ValueError, match="timeout is ") as caught:
        await world.retry.wait(cid, timeout)
    check(caught.value, ["100 years", "timeout=5"])


@pytest.mark.parametrize(("kwargs", "words"), [
    ({"limit": 0}, ["limit", "0 (int)", "at least 1"]),
    ({"limit": -1}, ["limit", "-1", "at least 1"]),
    ({"limit": True}, ["limit", "True", "int"]),
    ({"limit": 1.0}, ["limit", "1.0", "int"]),
    ({"limit": None}, ["limit", "None", "int"]),
    ({"state": "done"}, ["state", "'done'", "waiting", "parked"]),
    ({"state": ""}, ["state", "''", "waiting"]),
    ({"state": 5}, ["state", "5 (int)", "waiting"]),
    ({"state": []}, ["state", "[] (list)", "waiting"]),
])  # fmt: skip
async def test_search(world: World, kwargs: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        await world.retry.search(**kwargs)
    check(caught.value, words)


@pytest.mark.parametrize(("args", "words"), [
    (("",), ["name", "''", "1 to 1,000"]),
    (("x" * 1_001,), ["name", "1 to 1,000"]),
    ((None,), ["name", "None", "str"]),
    ((b"orders",), ["name", "bytes", "str"]),
    (("\ud800",), ["name", "surrogate"]),
    (("a\x00b",), ["name", "NUL"]),
    (("api", ""), ["cid", "''", "1 to 1,000"]),
    (("api", "x" * 1_001), ["cid", "1 to 1,000"]),
    (("api", 5), ["cid", "5 (int)", "str"]),
    (("api", "\udfff"), ["cid", "surrogate"]),
])  # fmt: skip
def test_caller(args: tuple[Any, ...], words: list[str]) -> None:
    ran = False
    with pytest.raises(ValueError) as caught, World().retry.caller(*args):
        ran = True
    check(caught.value, words)
    assert not ran


def nothing(*args: object) -> None:
    pass


async def hook(event: object) -> None:
    pass


@pytest.mark.parametrize(("kwargs", "error", "words"), [
    ({"services": {}}, TypeError, ["services", "dict", "ServiceRegistry"]),
    ({"services": None}, TypeError, ["services", "None", "ServiceRegistry"]),
    ({"backend": None}, TypeError, ["backend", "NoneType", "URL"]),
    ({"backend": MemoryBackend}, TypeError, ["backend", "URL or a Backend"]),
    ({"backend": "postgres://u:secret@h/d"}, ValueError, ["postgres://***@h/d", "memory://"]),
    ({"name": ""}, ValueError, ["name", "''", "1 to 1,000"]),
    ({"name": 5}, ValueError, ["name", "5 (int)", "str"]),
    ({"name": "\ud800"}, ValueError, ["name", "surrogate"]),
    ({"max_running": 0}, ValueError, ["max_running", "0 (int)", "at least 1"]),
    ({"max_running": True}, ValueError, ["max_running", "True", "int"]),
    ({"max_running": 1.5}, ValueError, ["max_running", "1.5", "int"]),
    ({"max_running": None}, ValueError, ["max_running", "None", "int"]),
    ({"callback_policy": None}, TypeError, ["callback_policy", "None", "RetryPolicy"]),
    ({"callback_policy": {"repeats": 1}}, TypeError, ["callback_policy", "RetryPolicy"]),
    ({"grace": -1}, ValueError, ["grace", "-1", "100 years"]),
    ({"grace": math.nan}, ValueError, ["grace", "nan"]),
    ({"grace": math.inf}, ValueError, ["grace", "inf"]),
    ({"grace": "30"}, ValueError, ["grace", "'30' (str)", "grace=5"]),
    ({"grace": True}, ValueError, ["grace", "True"]),
    ({"hooks": [hook]}, TypeError, ["hook", "plain callable", "one event"]),
    ({"hooks": [None]}, TypeError, ["hook", "None", "plain callable"]),
    ({"hooks": nothing}, TypeError, []),
    ({"work": 5}, TypeError, ["work"]),
])  # fmt: skip
def test_coordinator(kwargs: dict[str, Any], error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as caught:
        cast("Any", InvokeRetry)(**{"services": ServiceRegistry(), **kwargs})
    check(caught.value, words)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("kwargs", "words"), [
    ({"max_waiting": 0}, ["max_waiting", "0 (int)", "at least 1"]),
    ({"max_waiting": True}, ["max_waiting", "True", "int"]),
    ({"max_waiting": 1.0}, ["max_waiting", "1.0", "int"]),
    ({"max_bytes": 0}, ["max_bytes", "0 (int)", "at least 1"]),
    ({"max_bytes": None}, ["max_bytes", "None", "int"]),
    ({"retention": -1}, ["retention", "-1", "100 years"]),
    ({"retention": math.inf}, ["retention", "inf", "100 years"]),
    ({"retention": None}, ["retention", "None", "timedelta"]),
    ({"dead_retention": "1"}, ["dead_retention", "'1'", "timedelta"]),
    ({"park_for": math.nan}, ["park_for", "nan", "timedelta"]),
    ({"keep": -1}, ["keep", "-1", "at least 0"]),
    ({"keep": False}, ["keep", "False", "int"]),
])  # fmt: skip
def test_memory_backend(kwargs: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        MemoryBackend(**kwargs)
    check(caught.value, words)


@pytest.mark.parametrize(("url", "words"), [
    ("", ["''", "memory://"]),
    ("memory", ["'memory'", "memory://"]),
    ("redis://u:secret@h:1/0", ["redis://***@h:1/0", "memory://"]),
    ("memory://host", ["memory://host", "no host or path"]),
    ("memory:///path", ["memory:///path", "no host or path"]),
    ("memory://?max_wating=5", ["max_wating", "max_waiting"]),
    ("memory://?max_waiting=five", ["max_waiting", "'five'", "number"]),
    ("memory://?max_waiting=", ["max_waiting", "''", "number"]),
    ("memory://?max_waiting=0", ["max_waiting", "at least 1"]),
    ("memory://?max_waiting=1.5", ["max_waiting", "1.5"]),
    ("memory://?retention=-1", ["retention", "-1"]),
    ("memory://?retention=nan", ["retention", "nan"]),
    ("memory://?keep=-1", ["keep", "-1"]),
    ("memory://?max_waiting=5&max_waiting=6", ["max_waiting", "twice"]),
    ("memory://#max_waiting=5", ["memory://#max_waiting=5"]),
    ("memory://[", ["memory://["]),
    ("memory://?max_waiting=" + 5_000 * "9", ["max_waiting", "number"]),
])  # fmt: skip
def test_backend_url(url: str, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        backend_from(url)
    check(caught.value, words)
    assert "secret" not in str(caught.value)


async def test_a_backend_of_another_coordinator(world: World) -> None:
    backend = MemoryBackend()
    async with InvokeRetry(world.services, backend=backend):
        with pytest.raises(InvokeRetryError, match="one for each"):
            async with InvokeRetry(world.services, backend=backend):
                pass


class Callable0:
    async def __call__(self) -> None: ...


class SyncCallable:
    def __call__(self) -> None: ...


async def two(first: int, second: int) -> None: ...


async def keyword_only(*, key: int) -> None: ...


async def unknown_type(payload: Any) -> None: ...


unknown_type.__annotations__["payload"] = "NoSuchType"


async def generator() -> AsyncIterator[int]:
    yield 1


OK: dict[str, Any] = {"name": "a", "function": unhelpful}


REGISTER: list[tuple[dict[str, Any], list[str]]] = [
    (OK | {"name": ""}, ["''", "letter", "name="]),
    (OK | {"name": None}, ["None", "letter"]),
    (OK | {"name": 5}, ["5 (int)", "letter"]),
    (OK | {"name": "a b"}, ["'a b'", "letter"]),
    (OK | {"name": "a\n"}, ["letter"]),
    (OK | {"name": ".a"}, ["'.a'", "letter"]),
    (OK | {"name": "é"}, ["ASCII"]),
    (OK | {"name": "x" * 201}, ["199"]),
    (OK | {"name": "\ud800"}, ["letter"]),
    (OK | {"function": None}, ["'a'", "None", "not callable"]),
    (OK | {"function": "unhelpful"}, ["'a'", "not callable"]),
    (OK | {"function": nothing}, ["'a'", "not async", "async def", "to_thread"]),
    (OK | {"function": lambda: None}, ["'a'", "not async"]),
    (OK | {"function": print}, ["'a'", "not async"]),
    (OK | {"function": SyncCallable()}, ["'a'", "not async"]),
    (OK | {"function": Callable0}, ["'a'", "not async"]),
    (OK | {"function": generator}, ["'a'", "not async"]),
    (OK | {"function": stranger}, ["'a'", "service already", "include()"]),
    (OK | {"function": two}, ["'a'", "'second'", "at most one", "model or dict"]),
    (OK | {"function": keyword_only}, ["'a'", "'key'", "at most one"]),
    (OK | {"function": unknown_type}, ["'a'", "NoSuchType", "TYPE_CHECKING"]),
    (OK | {"policy": {"repeats": 1}}, ["policy", "'a'", "dict", "RetryPolicy"]),
    (OK | {"retry_on": "ValueError"}, ["retry_on", "'ValueError'", "subclass of Exception"]),
    (OK | {"retry_on": ValueError()}, ["retry_on", "subclass of Exception"]),
    (OK | {"retry_on": [ValueError]}, ["retry_on", "list", "tuple"]),
    (OK | {"retry_on": (ValueError, 5)}, ["retry_on", "5 (int)"]),
    (OK | {"retry_on": KeyboardInterrupt}, ["retry_on", "KeyboardInterrupt", "Exception"]),
    (OK | {"retry_on": None}, ["retry_on", "None"]),
    (OK | {"give_up_on": int}, ["give_up_on", "int", "Exception"]),
    (OK | {"give_up_on": (asyncio.CancelledError,)}, ["give_up_on", "CancelledError"]),
    (OK | {"max_running": 0}, ["max_running", "'a'", "at least 1"]),
    (OK | {"max_running": True}, ["max_running", "True", "at least 1"]),
    (OK | {"max_running": 1.0}, ["max_running", "1.0", "int"]),
]  # fmt: skip


@pytest.mark.parametrize(("kwargs", "words"), REGISTER)
def test_register(kwargs: dict[str, Any], words: list[str]) -> None:
    services = ServiceRegistry()
    with pytest.raises(InvalidService) as caught:
        services.register(**kwargs)
    check(caught.value, words)
    assert len(services) == 0


@pytest.mark.parametrize(("kwargs", "words"), REGISTER)
def test_decorator(kwargs: dict[str, Any], words: list[str]) -> None:
    services = ServiceRegistry()
    options = {key: value for key, value in kwargs.items() if key != "function"}
    if options["name"] is None:  # which is the function's own name here
        return
    with pytest.raises(InvalidService) as caught:
        services.service(**options)(kwargs["function"])
    check(caught.value, [] if isinstance(options["name"], int) else words)
    assert len(services) == 0


NO_TYPES: list[tuple[Any, list[str]]] = [
    (5, ["5 (int)", "no type"]),
    ("5", ["5 (int)", "no type"]),
    (["int"], ["['int']", "no type"]),
    ((int, str), ["tuple", "no type"]),
    (any, ["function any", "no type", "typing.Any"]),
    (..., ["Ellipsis", "no type"]),
    (math, ["module", "no type"]),
    ({"type": "int"}, ["dict", "no type"]),
    ("asyncio.nope", ["AttributeError", "nope"]),
    ("list['asyncio.nope']", ["AttributeError", "nope"]),
    ("json.Nonsense", ["'json'", "not defined"]),
    ("int |", ["SyntaxError", "int |"]),
    ("not a type(", ["SyntaxError", "not a type("]),
    ("int, str", ["TypeError", "int"]),
    ("1 / 0", ["ZeroDivisionError"]),
    ("\ud800", ["\\ud800"]),
    ("x" * 5_000, ["xxx", "not defined"]),
    ("(" * 5_000, ["SyntaxError"]),
]


@pytest.mark.parametrize("where", ["payload", "return"])
@pytest.mark.parametrize(("annotation", "words"), NO_TYPES, ids=range(len(NO_TYPES)))
def test_an_annotation_that_is_no_type(where: str, annotation: Any, words: list[str]) -> None:
    async def target(payload: Any) -> Any: ...

    target.__annotations__[where] = annotation
    services = ServiceRegistry()
    with pytest.raises(InvalidService) as caught:
        services.register("a", target)
    check(caught.value, ["'a'", *words])
    with pytest.raises(InvalidService) as caught:
        services.service("a")(target)
    check(caught.value, ["'a'", *words])
    assert len(services) == 0


class Unfinished(BaseModel):
    value: "NoSuchType"  # type: ignore[name-defined]  # noqa: F821  # pyright: ignore[reportUndefinedVariable]


class Schemaless:
    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        raise RuntimeError("no schema\nto be had")


class Warned:
    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        warnings.warn("beware", stacklevel=1)


UNUSABLE = [(Unfinished, "Unfinished"), (Schemaless, "RuntimeError: no"), (Warned, "beware")]


@pytest.mark.parametrize(("annotation", "word"), UNUSABLE)
def test_a_payload_type_that_pydantic_cannot_use(annotation: Any, word: str) -> None:
    async def target(payload: Any) -> None: ...

    target.__annotations__["payload"] = annotation
    with pytest.raises(InvalidService) as caught:
        ServiceRegistry().register("a", target)
    check(caught.value, ["'a'", "payload annotation", word])


@pytest.mark.parametrize(("annotation", "word"), [*UNUSABLE, ("list[5]", "list[5]")])
async def test_a_success_needs_no_usable_return_type(
    world: World, annotation: Any, word: str
) -> None:
    async def target() -> Any:
        world.calls.append("target")
        return [5]

    target.__annotations__["return"] = annotation
    world.services.register("target", target)
    assert await world.retry.invoke("target", **ONCE) == [5]
    outcome = await world.retry.wait(await world.retry.invoke_async("target", **ONCE))
    assert (outcome.ok, outcome.response) == (True, None)
    for part in ("return annotation of 'target'", word):
        assert part in (outcome.response_omitted or "")
    assert world.calls == ["target", "target"]


def test_decorator_without_parentheses() -> None:
    services = ServiceRegistry()
    with pytest.raises(InvalidService, match=r"@services\.service\(\)"):
        services.service(cast("Any", unhelpful))
    assert len(services) == 0


def test_a_name_twice() -> None:
    services = ServiceRegistry()
    first = services.register("a", unhelpful)
    with pytest.raises(DuplicateService) as caught:
        services.register("a", unhelpful)
    check(caught.value, ["'a'", "another name"])
    assert dict(services) == {"a": first}


def test_include_takes_all_or_none() -> None:
    services, other = ServiceRegistry(), ServiceRegistry()
    first = services.register("b", unhelpful)
    other.register("a", unhelpful)
    other.register("b", unhelpful)
    with pytest.raises(DuplicateService, match="'b'"):
        services.include(other)
    assert dict(services) == {"b": first}


@pytest.mark.parametrize("other", [None, 5, "abc", ["a"], {"a": unhelpful}, {"a": stranger}])
def test_include_of_something_else(other: Any) -> None:
    services = ServiceRegistry()
    with pytest.raises((TypeError, InvalidService)) as caught:
        services.include(cast("ServiceRegistry", other))
    check(caught.value, ["ServiceRegistry"])
    assert len(services) == 0


@pytest.mark.parametrize("text", [
    "", "K", None, 5, b"K0" + b"0" * 26, UNKNOWN.lower(), UNKNOWN + "0", UNKNOWN[:-1],
    "K08" + "0" * 25, "K00" + "I" + "0" * 24, "K00" + "٣" * 25, UNKNOWN + "\n", " " + UNKNOWN,
])  # fmt: skip
def test_correlation_id(text: Any) -> None:
    with pytest.raises(ValueError) as caught:
        CorrelationId(text)
    check(caught.value, ["no correlation id", "K0", "from_key"])


@pytest.mark.parametrize("key", ["", None, 5, b"order", "\ud800"])
def test_key_of_a_correlation_id(key: Any) -> None:
    with pytest.raises(ValueError) as caught:
        CorrelationId.from_key(key)
    check(caught.value, ["key"])


@pytest.mark.parametrize("asked", [
    -1, math.nan, None, "soon", [], pytest.param(10**5000, id="int of 5001 digits"),
])  # fmt: skip
async def test_a_senseless_retry_after_is_ignored(world: World, asked: Any) -> None:
    async def ask() -> None:
        if asyncio.get_running_loop().time() < 5:
            raise RetryAfter(asked, "later")

    world.services.register("ask", ask)
    await world.retry.invoke("ask", repeats=1, seconds=5)
    assert asyncio.get_running_loop().time() == 5
    assert str(RetryAfter(asked)).isprintable()
