"""Correlation ids, and who is running."""

import asyncio
import copy
import json
import random
import re
from collections import Counter
from random import Random
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from invoke_retry import (
    Call,
    CorrelationId,
    InvokeRetry,
    RetryPolicy,
    ServiceRegistry,
    current_call,
)

FORM = re.compile(r"^K0[0-7][0-9A-HJKMNP-TV-Z]{25}$")
ONCE: dict[str, Any] = {"repeats": 0, "seconds": 0}

# Ids.


def test_form() -> None:
    for _ in range(1_000):
        assert FORM.fullmatch(CorrelationId.new())


@pytest.mark.parametrize(
    ("key", "cid"),
    [
        ("order-4711", "K07XDVZ31KTEW6DZRMPMAC9GFTNJ"),
        ("a", "K02Q1JAVXAT2HKT3WD76FRMWEJS0"),
        ("é", "K02SNY0K3KX2B570QANSNZT650ZW"),
    ],
)
def test_ids_of_keys_never_change(key: str, cid: str) -> None:
    assert CorrelationId.from_key(key) == cid
    assert FORM.fullmatch(cid)


def test_keys_are_told_apart() -> None:
    keys = ["order-1", "order-2", "Order-1", "order-1 ", " order-1", "é", "e\u0301"]
    assert len({CorrelationId.from_key(key) for key in keys}) == len(keys)


def test_new_ones_are_unique() -> None:
    assert len({CorrelationId.new() for _ in range(100_000)}) == 100_000


def test_every_digit_is_drawn_from_all_its_values() -> None:
    ids = [CorrelationId.new(Random(i)) for i in range(5_000)]
    assert set(Counter(cid[2] for cid in ids)) == set("01234567")
    for place in range(3, 28):
        assert len({cid[place] for cid in ids}) == 32


def test_a_seed_of_the_application_does_not_repeat_them() -> None:
    ids: set[str] = set()
    for _ in range(2):
        random.seed(1)
        ids.add(CorrelationId.new())
        ids.add(InvokeRetry(ServiceRegistry()).new_cid())
    assert len(ids) == 4


def test_a_random_source_of_ones_own_repeats_them() -> None:
    ids = [InvokeRetry(ServiceRegistry(), random=Random(1)).new_cid() for _ in range(2)]
    assert ids[0] == ids[1] != InvokeRetry(ServiceRegistry(), random=Random(2)).new_cid()


def test_it_is_a_str_and_a_class_of_its_own() -> None:
    cid = CorrelationId("K07XDVZ31KTEW6DZRMPMAC9GFTNJ")
    assert isinstance(cid, str)
    assert cid == "K07XDVZ31KTEW6DZRMPMAC9GFTNJ"
    assert hash(cid) == hash("K07XDVZ31KTEW6DZRMPMAC9GFTNJ")
    assert json.dumps([cid]) == '["K07XDVZ31KTEW6DZRMPMAC9GFTNJ"]'


@pytest.mark.parametrize("duplicate", [CorrelationId, copy.copy, copy.deepcopy])
def test_a_copy_is_one_too(duplicate: Any) -> None:
    cid = CorrelationId.new()
    assert (type(duplicate(cid)), duplicate(cid)) == (CorrelationId, cid)


class Carrier(BaseModel):
    cid: CorrelationId


def test_pydantic_reads_and_writes_it() -> None:
    cid = CorrelationId.new()
    for read in (Carrier(cid=cid), Carrier.model_validate({"cid": str(cid)})):
        assert (type(read.cid), read.cid) == (CorrelationId, cid)
    assert Carrier(cid=cid).model_dump_json() == f'{{"cid":"{cid}"}}'
    assert Carrier.model_validate_json(f'{{"cid":"{cid}"}}').cid == cid


@pytest.mark.parametrize("text", ["", "K0", "order-4711", 5, None])
def test_pydantic_refuses_what_is_none(text: Any) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(CorrelationId).validate_python(text)


# Who is running.


def coordinator(**functions: Any) -> InvokeRetry:
    services = ServiceRegistry()
    for name, function in functions.items():
        services.register(name, function)
    return InvokeRetry(services, name="shop")


async def look() -> Call:
    return current_call()


def test_outside_nothing_is_running() -> None:
    with pytest.raises(LookupError, match="no service is running here"):
        current_call()


def test_a_callers_block_is_no_service() -> None:
    with coordinator().caller("orders.api"), pytest.raises(LookupError):
        current_call()


@pytest.mark.virtual_time
async def test_what_a_service_sees_inline() -> None:
    retry, cid = coordinator(look=look), CorrelationId.new()
    call = await retry.invoke("look", repeats=4, seconds=0, cid=cid)
    assert (call.service, call.cid, call.attempt, call.repeats) == ("look", cid, 1, 4)
    assert (call.retry, call.orig_cid) == (retry, retry.own_caller.cid)
    assert repr(call) == f"<Call look 1/5 {cid}>"


@pytest.mark.virtual_time
async def test_what_a_service_and_its_callback_see_in_the_background() -> None:
    seen: list[tuple[str, str, str, int, int]] = []

    async def note(payload: Any = None) -> None:
        call = current_call()
        seen.append((call.service, call.cid, call.orig_cid, call.attempt, call.repeats))
        assert call.retry is retry

    async with coordinator(target=note, told=note) as retry:
        with retry.caller("orders.api", cid="request 17"):
            cid = await retry.invoke_async("target", repeats=4, seconds=0, callback="told")
    assert seen == [("target", cid, "request 17", 1, 4), ("told", cid, "request 17", 1, 10)]


@pytest.mark.virtual_time
@pytest.mark.parametrize("mode", ["inline", "observed", "limited", "fallback", "background"])
async def test_what_was_seen_of_an_attempt_stays(mode: str) -> None:
    seen: list[Call] = []

    async def target() -> None:
        seen.append(current_call())
        if current_call().attempt < 4:
            raise ValueError

    services = ServiceRegistry()
    services.register("target", target)
    retry = InvokeRetry(services, hooks=[lambda event: None] if mode == "observed" else ())
    policy = RetryPolicy(3, 1, timeout=9 if mode == "limited" else None)
    async with retry:
        if mode == "fallback":
            await retry.invoke("target", policy=policy, async_fallback=True)
        elif mode == "background":
            await retry.invoke_async("target", policy=policy)
        else:
            await retry.invoke("target", policy=policy)
    assert [call.attempt for call in seen] == [1, 2, 3, 4]
    assert len({call.cid for call in reversed(seen)}) == 1
    assert {(call.service, call.repeats, call.retry) for call in seen} == {("target", 3, retry)}
    assert {call.orig_cid for call in seen} == {retry.own_caller.cid}


@pytest.mark.virtual_time
async def test_it_is_seen_in_what_the_service_awaits_and_starts() -> None:
    async def outer() -> bool:
        found = [await look(), await asyncio.create_task(look())]
        return all(call is current_call() for call in found)

    assert await coordinator(outer=outer).invoke("outer", **ONCE) is True


@pytest.mark.virtual_time
@pytest.mark.parametrize("fails", [False, True])
async def test_it_is_over_with_the_call(fails: bool) -> None:
    async def inner() -> None:
        if fails:
            raise ValueError

    async def outer() -> str:
        call = current_call()
        try:
            await call.retry.invoke("inner", repeats=2, seconds=1)
        except Exception:
            assert fails
        assert current_call() is call
        return call.service

    retry = coordinator(inner=inner, outer=outer)
    assert await retry.invoke("outer", **ONCE) == "outer"
    with pytest.raises(LookupError):
        current_call()


@pytest.mark.virtual_time
async def test_calls_side_by_side_see_themselves() -> None:
    async def sleepy(seconds: float) -> tuple[str, str]:
        before = current_call().cid
        await asyncio.sleep(seconds)
        return before, current_call().cid

    retry = coordinator(sleepy=sleepy)
    pairs = await asyncio.gather(*(retry.invoke("sleepy", 9 - i, **ONCE) for i in range(9)))
    assert all(before == after for before, after in pairs)
    assert len(set(pairs)) == 9


# Callers.


@pytest.mark.virtual_time
async def test_blocks_nest_and_end() -> None:
    async def orig() -> str:
        return current_call().orig_cid

    retry = coordinator(orig=orig)

    async def seen() -> str:
        found: str = await retry.invoke("orig", **ONCE)
        return found

    own = await seen()
    with retry.caller("a", cid="1"):
        assert await seen() == "1"
        with retry.caller("b", cid="2"):
            assert await seen() == "2"
        assert await seen() == "1"
    assert await seen() == own == retry.own_caller.cid
    with pytest.raises(KeyError), retry.caller("a", cid="1"):
        raise KeyError
    assert await seen() == own


@pytest.mark.virtual_time
async def test_a_block_without_a_cid_has_a_fresh_one() -> None:
    async def orig() -> str:
        return current_call().orig_cid

    retry = coordinator(orig=orig)
    seen: list[str] = []
    for _ in range(2):
        with retry.caller("orders.api"):
            seen += [await retry.invoke("orig", **ONCE) for _ in range(2)]
    assert seen[0] == seen[1] != seen[2] == seen[3]
    assert all(FORM.fullmatch(cid) for cid in seen)
