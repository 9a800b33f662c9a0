"""The registry: names, the mapping, including, and everything that can be a service."""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial, wraps
from typing import Any

import pytest
from pydantic import BaseModel

from invoke_retry import (
    DuplicateService,
    InvalidPayload,
    InvokeRetry,
    RetryPolicy,
    Service,
    ServiceNotFound,
    ServiceRegistry,
)

pytestmark = pytest.mark.virtual_time

ONCE: dict[str, Any] = {"repeats": 0, "seconds": 0}


class Order(BaseModel):
    id: int


async def update(order: Order) -> int:
    return order.id


async def ping() -> str:
    return "pong"


def registry(*names: str) -> ServiceRegistry:
    services = ServiceRegistry()
    for name in names:
        services.register(name, ping)
    return services


# Names.


@pytest.mark.parametrize(
    "name", ["a", "7", "_private", "crm.update", "crm-update_2", "A..b", "x" * 200, "class"]
)
def test_names(name: str) -> None:
    service = registry(name)[name]
    assert (service.name, repr(service)) == (name, f"<Service {name}>")


def test_names_are_told_apart_by_case() -> None:
    assert list(registry("crm", "CRM", "Crm")) == ["crm", "CRM", "Crm"]


def test_the_name_is_the_functions_own_if_none_is_given() -> None:
    services = ServiceRegistry()
    assert services.service()(update).name == "update"
    assert services.service()(Crm("a").fetch).name == "fetch"
    assert list(services) == ["update", "fetch"]


# The mapping.


def test_it_is_a_mapping_in_the_order_of_registration() -> None:
    services = registry("b", "a", "c")
    assert isinstance(services, Mapping)
    assert (list(services), len(services)) == (["b", "a", "c"], 3)
    assert list(services.items()) == [(name, services[name]) for name in ("b", "a", "c")]
    assert ("a" in services, "d" in services) == (True, False)
    assert (services.get("a"), services.get("d")) == (services["a"], None)


@pytest.mark.parametrize("change", ["__setitem__", "__delitem__", "pop", "clear", "update"])
def test_it_is_read_only(change: str) -> None:
    assert not hasattr(ServiceRegistry(), change)


def test_registries_share_nothing() -> None:
    assert (len(registry("a")), len(ServiceRegistry())) == (1, 0)


async def test_a_coordinator_sees_what_is_registered_later() -> None:
    services = ServiceRegistry()
    retry = InvokeRetry(services)
    with pytest.raises(ServiceNotFound):
        await retry.invoke("ping", **ONCE)
    services.register("ping", ping)
    assert await retry.invoke("ping", **ONCE) == "pong"


# Not found.


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ("mial", "did you mean 'mail'?"),
        ("crm.upload", "did you mean 'crm.unload' or 'crm.reload' or 'crm.update'?"),
        ("zzz", "4 other services are registered"),
    ],
)
def test_close_matches(asked: str, hint: str) -> None:
    services = registry("crm.update", "crm.unload", "crm.reload", "mail")
    with pytest.raises(ServiceNotFound) as caught:
        services[asked]
    assert str(caught.value) == f"no service is named {asked!r}; {hint}"


def test_not_found_is_a_key_error_that_knows_the_name() -> None:
    with pytest.raises(KeyError) as caught:
        ServiceRegistry()["crm"]
    assert isinstance(caught.value, ServiceNotFound)
    assert caught.value.name == "crm"
    assert "the registry is empty" in str(caught.value)


# Twice, and from elsewhere.


def test_a_name_that_is_taken_keeps_its_service() -> None:
    services = registry("update")
    first = services["update"]
    with pytest.raises(DuplicateService, match="'update'"):
        services.service()(update)
    assert dict(services) == {"update": first}


def test_one_function_under_two_names() -> None:
    services = registry("a", "b")
    assert services["a"] is not services["b"]
    assert services["a"].function is services["b"].function


def test_include() -> None:
    services, other = registry("a"), registry("b", "c")
    services.include(other)
    assert list(services) == ["a", "b", "c"]
    assert services["b"] is other["b"]
    assert list(other) == ["b", "c"]


def test_include_again_and_by_two_ways_changes_nothing() -> None:
    base, services, left, right = registry("a"), registry(), registry("l"), registry("r")
    left.include(base)
    right.include(base)
    for other in (left, right, left, services):
        services.include(other)
    assert sorted(services) == ["a", "l", "r"]


async def test_a_service_of_an_included_registry_is_invoked_by_its_object() -> None:
    other, services = ServiceRegistry(), ServiceRegistry()
    service = other.service("crm.update")(update)
    services.include(other)
    assert await InvokeRetry(services).invoke(service, Order(id=7), **ONCE) == 7


# What can be a service.


class Crm:
    def __init__(self, name: str) -> None:
        self.name = name

    async def fetch(self, order: Order) -> str:
        return f"{self.name} {order.id}"

    async def __call__(self, order: Order) -> str:
        return f"{self.name} {order.id}"

    @classmethod
    async def by_class(cls, order: Order) -> str:
        return f"{cls.__name__} {order.id}"

    @staticmethod
    async def static(order: Order) -> str:
        return f"static {order.id}"


async def named(name: str, order: Order) -> str:
    return f"{name} {order.id}"


async def keyword(order: Order, *, name: str = "nobody") -> str:
    return f"{name} {order.id}"


def decorated(function: Callable[[Order], Awaitable[str]]) -> Callable[[Order], Awaitable[str]]:
    @wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> str:
        return "decorated " + await function(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize(
    ("function", "response"),
    [
        (Crm("eu").fetch, "eu 7"),
        (Crm("us").fetch, "us 7"),
        (Crm("eu"), "eu 7"),
        (Crm.by_class, "Crm 7"),
        (Crm("eu").static, "static 7"),
        (partial(named, "eu"), "eu 7"),
        (partial(keyword, name="eu"), "eu 7"),
        (partial(partial(keyword), name="eu"), "eu 7"),
        (partial(Crm("eu").fetch), "eu 7"),
        (keyword, "nobody 7"),
        (decorated(Crm("eu").fetch), "decorated eu 7"),
    ],
)
async def test_callables_of_every_kind(function: Any, response: str) -> None:
    services = ServiceRegistry()
    services.register("crm", function)
    async with InvokeRetry(services) as retry:
        assert await retry.invoke("crm", {"id": "7"}, **ONCE) == response  # so it was validated
        cid = await retry.invoke_async("crm", {"id": 7}, **ONCE)
        assert (await retry.wait(cid)).response == response
        with pytest.raises(InvalidPayload):
            await retry.invoke("crm", {"id": "x"}, **ONCE)


def test_two_objects_of_a_class_are_two_services() -> None:
    services = ServiceRegistry()
    for name in ("eu", "us"):
        services.register(f"crm.{name}", Crm(name).fetch)
    assert services["crm.eu"].function.__self__.name == "eu"  # type: ignore[attr-defined]


async def test_a_partial_with_its_payload_takes_none() -> None:
    services = ServiceRegistry()
    services.register("update", partial(update, Order(id=7)))
    assert await InvokeRetry(services).invoke("update", **ONCE) == 7
    with pytest.raises(InvalidPayload, match="no payload"):
        await InvokeRetry(services).invoke("update", {"id": 1}, **ONCE)


async def test_a_partial_of_a_callable_object() -> None:
    services = ServiceRegistry()
    services.register("crm", partial(Crm("eu"), Order(id=7)))
    assert await InvokeRetry(services).invoke("crm", **ONCE) == "eu 7"


async def test_a_service_can_still_be_awaited_directly() -> None:
    services = ServiceRegistry()
    assert await services.service()(update)(Order(id=7)) == 7
    assert await services.service()(ping)() == "pong"


async def test_awaited_directly_it_is_a_plain_call() -> None:
    calls: list[object] = []

    async def fails(payload: int) -> None:
        calls.append(payload)
        raise ConnectionError

    service = ServiceRegistry().service(policy=RetryPolicy(repeats=3, seconds=1))(fails)
    with pytest.raises(ConnectionError):
        await service("as it is")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert calls == ["as it is"]


def test_options_are_kept() -> None:
    policy = RetryPolicy(repeats=3, seconds=1)
    service = ServiceRegistry().register(
        "update", update, policy=policy, retry_on=(OSError, ValueError), give_up_on=KeyError,
        max_running=5,
    )  # fmt: skip
    assert isinstance(service, Service)
    assert (service.policy, service.max_running) == (policy, 5)
    assert (service.retry_on, service.give_up_on) == ((OSError, ValueError), KeyError)


def test_what_is_taken_if_nothing_is_said() -> None:
    service = ServiceRegistry().register("update", update)
    assert (service.policy, service.max_running) == (None, None)
    assert (service.retry_on, service.give_up_on) == (Exception, ())
