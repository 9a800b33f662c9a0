"""Serialisation: what is accepted can be read again; the rest is refused at once."""

# ruff: noqa: N802 (the names of the tests begin with those of the cases)
from __future__ import annotations

import asyncio
import json
import math
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import pytest
from fault_help import Failing, registry, running
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, SecretBytes, SecretStr, TypeAdapter, field_validator

from invoke_retry import InvalidPayload, InvokeRetryError, NotStorable
from invoke_retry.backends import MemoryBackend
from invoke_retry.failure import error_info
from invoke_retry.storable import Codec, dump_any, load_any

virtual = pytest.mark.virtual_time

LIMIT = 1_048_576

texts = st.text(st.characters(), max_size=20)
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | texts | st.binary(max_size=5)
    | st.integers(4_290, 4_310).map(lambda n: 10**n) | st.datetimes() | st.decimals() | st.uuids()
    | st.sampled_from(["NaN", "Infinity", "\\u0000", "\x00", "\\\\u0000", '"', "-0.0"])
)  # fmt: skip
keys: st.SearchStrategy[Any] = texts | st.integers() | st.none() | st.booleans()
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(keys, inner, max_size=5)
        | st.tuples(inner) | st.frozensets(st.integers(), max_size=3)
    ),
    max_leaves=20,
)  # fmt: skip


@pytest.mark.slow
@given(values)
@settings(max_examples=600, deadline=None)
def test_Z1_what_is_written_reads_back_equal_or_is_refused(value: Any) -> None:
    """Rows that could be written but never read poisoned every reader of the store."""
    try:
        data = dump_any(value, "context", LIMIT)
    except NotStorable as error:
        refusal = error
    else:
        assert repr(load_any(data)) == repr(value)  # which tells 1, 1.0 and True apart
        assert dump_any(load_any(data), "context", LIMIT) == data
        json.loads(data)
        assert b"\x00" not in data
        return
    assert refusal.path.startswith("context")
    assert str(refusal).encode()


AnyDecimal = Annotated[Decimal, Field(allow_inf_nan=True)]


class Line(BaseModel):
    sku: str
    price: Decimal
    rate: AnyDecimal = Decimal(0)
    weight: float
    tags: frozenset[str] = frozenset()
    parent: Line | None = None


class Order(BaseModel):
    id: UUID
    at: datetime
    span: timedelta
    lines: list[Line]
    pair: tuple[int, bytes]
    sizes: set[int | str] = set()
    rates: dict[int, tuple[AnyDecimal, float]] = {}
    extra: Any = None


line_parts: dict[str, st.SearchStrategy[Any]] = {
    "sku": texts, "price": st.decimals(allow_nan=False, allow_infinity=False),
    "rate": st.decimals() | st.just(Decimal("Infinity")), "weight": st.floats(),
    "tags": st.frozensets(texts, max_size=3),
}  # fmt: skip
lines = st.builds(Line, **line_parts, parent=st.none() | st.builds(Line, **line_parts))
orders = st.builds(
    Order, id=st.uuids(), at=st.datetimes(timezones=st.timezones() | st.none()),
    span=st.timedeltas(), lines=st.lists(lines, max_size=3),
    pair=st.tuples(st.integers(), st.binary(max_size=5)),
    sizes=st.sets(st.integers() | texts, max_size=4), extra=st.none() | values,
)  # fmt: skip


@pytest.mark.slow
@given(orders)
@settings(max_examples=300, deadline=None)
def test_Z1_a_model_reads_back_equal_or_is_refused(order: Order) -> None:
    """The same through an annotation."""
    codec = Codec(TypeAdapter(Order))
    try:
        data = codec.dump(order, "payload", LIMIT)
    except NotStorable as error:
        refusal = error
    else:
        again = codec.load(data)
        assert again == order
        assert codec.is_same(codec.dump(again, "payload", LIMIT), data)  # sets have no order
        return
    assert refusal.path.startswith("payload.")
    assert "reads back as another" not in refusal.problem  # which would be no help
    assert str(refusal).encode()


class Vault(BaseModel):
    place: tuple[int, int] = (1, 2)
    password: SecretStr | None = None
    token: SecretBytes | None = None
    keys: dict[str, tuple[SecretStr, ...]] = {}
    inner: list[Vault] = []
    extra: Any = None


@given(st.text(st.characters(exclude_categories=["C"]), min_size=1).map(lambda s: f"canary-{s}"))
@settings(max_examples=30, deadline=None)
def test_Z1_a_secret_is_refused_wherever_it_is(text: str) -> None:
    """Masked in one field of a nested model, and noticed when the password did not fit."""
    codec, secret = Codec(TypeAdapter(Vault)), SecretStr(text)
    cases = [
        (Vault(password=secret), "payload.password"),
        (Vault(token=SecretBytes(text.encode())), "payload.token"),
        (Vault(keys={"a": (SecretStr(""), secret)}), "payload.keys.a[1]"),
        (Vault(inner=[Vault(), Vault(password=secret)]), "payload.inner[1].password"),
        (Vault(extra=[{"a": secret}]), "payload.extra[0].a"),
    ]
    for vault, path in cases:
        with pytest.raises(NotStorable) as caught:
            codec.dump(vault, "payload", LIMIT)
        assert caught.value.path == path
        assert "secret" in caught.value.problem
        assert text not in str(caught.value)


@virtual
async def test_Z1_nothing_that_is_refused_reaches_anybody() -> None:
    """Refused in the caller's face, in every background mode, before anything is called."""
    target = Failing()
    services, mailbox = registry(target=target.call)

    async def takes(payload: Any) -> None:
        target.calls += 1

    services.register("takes", takes)
    deep: Any = 1
    for _ in range(101):
        deep = [deep]
    bad: list[Any] = [
        math.nan, math.inf, [{"a": -math.inf}], deep, 10**4_301, "\ud800", {"\udfff": 1}, "a\x00b",
        {"\x00": 1}, (1,), {1: 2}, {1, 2}, b"x", object(), SecretStr("s"), "x" * LIMIT,
    ]  # fmt: skip
    async with running(services) as retry:
        for value in bad:
            for mode in ("payload", "context"):
                payload = value if mode == "payload" else 1
                options: dict[str, Any] = {}
                if mode == "context":
                    options = {"context": value, "callback": "told"}
                with pytest.raises(NotStorable) as caught:
                    await retry.invoke_async("takes", payload, repeats=0, seconds=0, **options)
                assert caught.value.path.startswith(mode)
                with pytest.raises(NotStorable):
                    await retry.invoke(
                        "takes", payload, repeats=0, seconds=0, async_fallback=True, **options
                    )
        assert sum((await retry.counts()).values()) == 0
    assert target.calls == 0
    assert mailbox.told == []


class Prickly:
    """A lazy proxy: whoever asks it for anything gets an error of its own."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


@virtual
async def test_Z1_a_refusal_is_a_refusal_whatever_the_value_does() -> None:
    """The search for the fault met a fault: a stray error instead of the promised one."""
    services, _ = registry(target=Failing().call)
    async with running(services) as retry:
        for value in (Prickly(), [Prickly()], {"a": {"b": Prickly()}}):
            with pytest.raises(NotStorable):
                await retry.invoke_async("target", repeats=0, seconds=0, context=value)


@virtual
async def test_Z1_the_deepest_and_longest_that_is_allowed() -> None:
    """Off by one at the limits: accepted by the writer, refused by the reader."""
    deep: Any = 1
    for _ in range(100):
        deep = [deep]
    services, mailbox = registry(target=Failing().call)
    async with running(services) as retry:
        allowed: list[Any] = [deep, 10**4_299, "\U0010ffff", "NaN", "\\u0000", "", {"": {}}]
        for context in allowed:
            await retry.invoke_async(
                "target", repeats=0, seconds=0, callback="told", context=context
            )
            await asyncio.sleep(1)
            assert mailbox.told[-1].context == context


@virtual
async def test_Z3_odd_text_in_names_and_ids_is_refused() -> None:
    """Lone surrogates, NUL and control characters in ids and names broke the reader later."""
    services, _ = registry(target=Failing().call)
    async with running(services) as retry:
        for odd in ("\ud800", "a\x00b", "\x1b[31m", "a\nb", "", "x" * 10_000):
            kinds: list[dict[str, Any]] = [{"cid": odd}, {"callback": odd}]
            for how in kinds:
                with pytest.raises((ValueError, InvokeRetryError)) as caught:
                    await retry.invoke_async("target", repeats=0, seconds=0, **how)
                str(caught.value).encode()
                assert len(str(caught.value)) < 2_000
            with pytest.raises(InvokeRetryError) as missing:
                await retry.invoke(odd, repeats=0, seconds=0)
            str(missing.value).encode()
            for text in ("name", "cid"):
                if odd in ("\x1b[31m", "a\nb") or len(odd) == 10_000:
                    continue
                given = {"name": "ok", text: odd}
                with pytest.raises(ValueError), retry.caller(**given):
                    pass
        assert sum((await retry.counts()).values()) == 0


@virtual
async def test_Z3_odd_text_in_an_error_is_escaped_and_still_told() -> None:
    """An error message that was no valid UTF-8 could not be written: its callback never came."""
    for text in (
        "\ud800",
        "a\x00b",
        "\x1b[31mred",
        "line\nline",
        "\u202e",
        b"\xff".decode("latin-1"),
    ):
        target = Failing(lambda text=text: ValueError(text))  # type: ignore[misc]
        services, mailbox = registry(target=target.call)
        async with running(services) as retry:
            await retry.invoke_async("target", repeats=1, seconds=1, callback="told")
        assert mailbox.only.error is not None
        assert mailbox.only.error.message.isprintable()
        mailbox.only.model_dump_json().encode()


@virtual
@pytest.mark.parametrize("file", ["odd\x1b[2J.py"], ids=["escape"])
async def test_Z3_odd_text_in_a_traceback_is_escaped(file: str) -> None:
    """The name of a source file, or a line of it, may hold anything."""
    source = "async def target():\n    raise ValueError('\\x1b[31m')\n"
    names: dict[str, Any] = {}
    exec(compile(source, file, "exec"), names)
    services, mailbox = registry(target=names["target"])
    async with running(services) as retry:
        cid = await retry.invoke_async("target", repeats=0, seconds=0, callback="told")
        await retry.wait(cid)
        trace = (await retry.get(cid)).history[0].traceback
    assert trace is not None
    trace.encode()
    assert "\x1b" not in trace
    assert not mailbox.only.ok


@virtual
@pytest.mark.parametrize("what", ["payload", "context"])
async def test_Z5_one_byte_over_the_limit_is_refused_at_once(what: str) -> None:
    """Over the limit of the store counted as retryable: the job never failed."""

    async def target(payload: str) -> str:
        return payload

    services, mailbox = registry(target=target)
    async with running(services, backend=MemoryBackend(max_bytes=1_000)) as retry:
        for size in (999, 1_000, 1_001, 50_000_000):
            value = "x" * (size - 2)
            options: dict[str, Any] = {"context": value} if what == "context" else {}
            payload = value if what == "payload" else "x"
            if size <= 1_000:
                await retry.invoke_async(
                    "target", payload, repeats=3, seconds=1, callback="told", **options
                )
                continue
            with pytest.raises(NotStorable, match="1,000") as caught:
                await retry.invoke_async(
                    "target", payload, repeats=3, seconds=1, callback="told", **options
                )
            assert len(str(caught.value)) < 500
    assert [outcome.ok for outcome in mailbox.told] == [True, True]


@virtual
async def test_Z5_a_response_over_the_limit_is_still_a_success() -> None:
    """The report of success was too large to send, and so was the report of that."""
    calls = 0

    async def target() -> str:
        nonlocal calls
        calls += 1
        return "x" * 5_000_000

    services, mailbox = registry(target=target)
    async with running(services) as retry:
        await retry.invoke_async("target", repeats=3, seconds=1, callback="told")
    assert calls == 1
    assert (mailbox.only.ok, mailbox.only.response) == (True, None)
    assert "1,048,576" in (mailbox.only.response_omitted or "")


@virtual
async def test_Z5_an_error_text_of_any_length_is_cut_with_a_mark() -> None:
    """Even the error report was too large to send."""
    huge = ValueError("x" * 100_000_000)
    target = Failing(lambda: huge)
    services, mailbox = registry(target=target.call)
    async with running(services) as retry:
        cid = await retry.invoke_async("target", repeats=3, seconds=1, callback="told")
        await retry.wait(cid)
        assert len((await retry.get(cid)).model_dump_json()) < 100_000
    assert target.calls == 4
    assert mailbox.only.error is not None
    assert mailbox.only.error.message.endswith("more characters)")
    assert len(mailbox.only.error.message) < 3_000
    assert len(error_info(ExceptionGroup("y" * 10**6, [huge])).message) < 3_000


@virtual
async def test_Z5_a_type_name_of_any_length_is_cut() -> None:
    """Class names are made by programs, too."""
    kind = type("E" * 100_000, (Exception,), {})
    services, mailbox = registry(target=Failing(kind).call)
    async with running(services) as retry:
        await retry.invoke_async("target", repeats=0, seconds=1, callback="told")
    assert mailbox.only.error is not None
    assert len(mailbox.only.error.type) < 1_000


class Login(BaseModel):
    user: str
    password: SecretStr


@virtual
async def test_Z1_a_secret_is_refused_not_masked() -> None:
    """A masked secret was stored, and the target ran with asterisks for a password."""

    async def target(login: Login) -> None: ...

    services, _ = registry(target=target)
    async with running(services) as retry:
        login = Login(user="ann", password=SecretStr("canary-4711"))
        with pytest.raises(NotStorable) as caught:
            await retry.invoke_async("target", login, repeats=0, seconds=0)
        assert "canary" not in str(caught.value)
        assert "password" in caught.value.path
        with pytest.raises(InvalidPayload) as unfit:
            await retry.invoke_async(
                "target", {"user": 5, "password": "canary-4711"}, repeats=0, seconds=0
            )
        assert "canary" not in str(unfit.value)


class Narrowing(BaseModel):
    """A payload type that a later version of the code takes no longer."""

    n: int

    @field_validator("n")
    @classmethod
    def _check(cls, n: int) -> int:
        if n in refused:
            raise ValueError("no longer")
        return n


refused: set[int] = set()


@virtual
@pytest.mark.parametrize("then", ["fits again", "too long", "left", "cancelled"])
async def test_D14_a_payload_that_no_longer_fits_is_parked_never_dropped(then: str) -> None:
    """Unable to restore the job: it was removed, at warning level."""
    calls = 0

    async def target(payload: Narrowing) -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            refused.add(payload.n)
            raise ValueError("no")
        return payload.n

    refused.clear()
    services, mailbox = registry(target=target)
    try:
        async with running(services, backend=MemoryBackend(park_for=1_000)) as retry:
            cid = await retry.invoke_async(
                "target", Narrowing(n=7), repeats=3, seconds=1, callback="told"
            )
            await asyncio.sleep(10)
            found = await retry.get(cid)
            assert (found.state, found.attempts, calls) == ("parked", 1, 1)
            assert (await retry.counts())["parked"] == 1
            assert retry.health().running == 0
            assert found.parked_because
            assert await retry.run_now(cid)
            await asyncio.sleep(10)
            assert (await retry.get(cid)).state == "parked"
            if then == "fits again":
                refused.clear()
                assert await retry.run_now(cid)
            elif then == "cancelled":
                assert await retry.cancel(cid)
            elif then == "too long":
                await asyncio.sleep(2_000)
        found = await retry.get(cid)
    finally:
        refused.clear()
    reason = {"fits again": "succeeded", "too long": "parked", "left": "abandoned"}
    assert mailbox.only.reason == found.reason == reason.get(then, then)
    assert (mailbox.only.attempts, found.attempts) == (calls, calls)
