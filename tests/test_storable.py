"""What can be stored reads back equal; everything else is refused, with its path."""

import math
import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, NamedTuple, cast
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    SerializationInfo,
    TypeAdapter,
    field_validator,
    model_serializer,
)

from invoke_retry import NotStorable
from invoke_retry.storable import MAX_DEPTH, MAX_DIGITS, Codec, dump_any, load_any

LIMIT = 1_048_576

plain_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | plain_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(plain_text, inner, max_size=4),
    max_leaves=20,
)  # fmt: skip
huge = st.sampled_from([MAX_DIGITS - 1, MAX_DIGITS]).map(lambda digits: 10**digits)
any_text = st.text(st.characters())
odd_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text
    | st.sampled_from(["Infinity", "NaN", "-Infinity", "\\u0000", "\\\\u0000", "\x00", "[{", '"'])
    | st.binary(max_size=5) | st.decimals() | st.dates() | st.timedeltas() | st.uuids()
    | huge | st.builds(SecretStr, plain_text),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(any_text | st.integers() | st.none() | st.booleans(), inner, max_size=4)
    | st.tuples(inner)
    | st.frozensets(st.integers(), max_size=2),
    max_leaves=20,
)  # fmt: skip


def codec(annotation: Any) -> Codec:
    return Codec(TypeAdapter(annotation))


def round_trip(value: Any, annotation: Any = Any) -> Any:
    form = codec(annotation)
    data = form.dump(value, "payload", LIMIT)
    restored = form.load(data)
    assert restored == value
    assert form.dump(restored, "payload", LIMIT) == data
    return restored


def refusal(value: Any, annotation: Any = Any, limit: int = LIMIT) -> NotStorable:
    with pytest.raises(NotStorable) as caught:
        codec(annotation).dump(value, "payload", limit)
    error = caught.value
    assert str(error).startswith(error.path)
    assert len(str(error)) < 1_000
    str(error).encode()  # it can be logged
    assert isinstance(error, ValueError)
    return error


def nested(levels: int, as_list: bool = True) -> Any:
    value: Any = list[Any]() if as_list else dict[str, Any]()
    for _ in range(levels - 1):
        value = [value] if as_list else {"k": value}
    return value


@given(json_values)
def test_json_is_stored(value: Any) -> None:
    data = dump_any(value, "payload", LIMIT)
    assert load_any(data) == value
    assert dump_any(load_any(data), "payload", LIMIT) == data


@settings(max_examples=300)
@given(odd_values)
def test_stored_or_refused(value: Any) -> None:
    try:
        data = dump_any(value, "payload", LIMIT)
    except NotStorable as error:
        refused = error
    else:
        restored = load_any(data)
        assert restored == value
        assert dump_any(restored, "payload", LIMIT) == data
        return
    assert refused.path.startswith("payload")
    str(refused).encode()


@given(json_values, st.integers(0, 200))
def test_limit(value: Any, limit: int) -> None:
    size = len(dump_any(value, "payload", LIMIT))
    if size <= limit:
        assert dump_any(value, "payload", limit)
    else:
        with pytest.raises(NotStorable, match="more than the limit"):
            dump_any(value, "payload", limit)


def test_limit_at_the_edge() -> None:
    assert len(dump_any("x" * 98, "payload", 100)) == 100
    error = refusal("x" * 99, limit=100)
    assert error.path == "payload"
    for word in ("101 bytes", "limit of 100", "max_bytes"):
        assert word in str(error)
    assert dump_any("é" * 49, "payload", 100)  # bytes, not characters
    refusal("é" * 50, limit=100)


def test_nothing_stored_is_none() -> None:
    assert load_any(None) is None
    assert dump_any(None, "payload", LIMIT) == b"null"


def test_each_load_is_a_fresh_copy() -> None:
    data = dump_any([1], "payload", LIMIT)
    assert load_any(data) is not load_any(data)
    form = codec(list[int])
    assert form.load(data) is not form.load(data)


@pytest.mark.parametrize(("value", "path", "word"), [
    (math.nan, "payload", "nan"),
    (math.inf, "payload", "inf"),
    ([1, -math.inf], "payload[1]", "-inf"),
    ({"lines": [0, {"price": math.nan}]}, "payload.lines[1].price", "nan"),
    ({"a": math.inf, "b": "Infinity"}, "payload.a", "inf"),
    ("\ud800", "payload", "surrogate"),
    ({"a": ["x\udfffy"]}, "payload.a[0]", "surrogate"),
    ({"a": {"\ud800": 1}}, "payload.a", "surrogate"),
    ("a\x00b", "payload", "NUL"),
    ({"a": {"\x00": 1}}, "payload.a", "NUL"),
    ([{"a": "\\\x00"}], "payload[0].a", "NUL"),
    ((1, 2), "payload", "tuple"),
    ({"a": [(1,)]}, "payload.a[0]", "tuple"),
    ({1: 2}, "payload", "key 1 (int)"),
    ({"a": {None: 2}}, "payload.a", "key None"),
    ({"a": {True: 2}}, "payload.a", "key True"),
    ({"a": {(1, 2): 2}}, "payload.a", "key (1, 2)"),
    ({"a": b"bytes"}, "payload.a", "bytes"),
    ({"a": {1}}, "payload.a", "set"),
    ({"a": Decimal(1)}, "payload.a", "Decimal"),
    ([datetime(2015, 1, 21, tzinfo=UTC)], "payload[0]", "datetime"),
    ([UUID(int=1)], "payload[0]", "UUID"),
    ([object()], "payload[0]", "object"),
    ([math.sin], "payload[0]", "function"),
    ({"password": SecretStr("hunter2")}, "payload.password", "secret"),
    pytest.param(10**MAX_DIGITS, "payload", "4,300 digits", id="one digit too many"),
    ([-(10**MAX_DIGITS)], "payload[0]", "4,300 digits"),
])  # fmt: skip
def test_refused_with_its_path(value: Any, path: str, word: str) -> None:
    error = refusal(value)
    assert error.path == path
    assert word in str(error)
    assert "hunter2" not in str(error)


STORED: list[Any] = [
    10**MAX_DIGITS - 1, -(10**MAX_DIGITS - 1), 2**64, -(2**63), 0, -0.0, 5e-324, 1.7e308, 0.1,
    "Infinity", "NaN -Infinity", ["Infinity", {"Infinity": "x"}], "\\u0000", "\\\\u0000",
    "\\", '"[{', "\u2028\x7f\x1f\ufeff\U0010ffff", "", {"": ""}, {"a.b": {"[0]": 1}},
    OrderedDict(a=1), [[]] * 200, [{}] * 200, {"a": "[" * 500},
]  # fmt: skip


@pytest.mark.parametrize("value", STORED, ids=range(len(STORED)))
def test_stored(value: Any) -> None:
    round_trip(value)


def test_negative_zero_stays_one() -> None:
    assert math.copysign(1, round_trip(-0.0)) == -1


@pytest.mark.parametrize("as_list", [True, False])
def test_depth(as_list: bool) -> None:
    round_trip(nested(MAX_DEPTH, as_list))
    error = refusal(nested(MAX_DEPTH + 1, as_list))
    assert "more than 100 levels" in str(error)
    assert error.path.startswith("payload[0][0]" if as_list else "payload.k.k")


@pytest.mark.parametrize("levels", [120, 300, 5_000])
def test_far_too_deep(levels: int) -> None:
    assert "levels" in str(refusal(nested(levels)))


def test_depth_beside_much_else() -> None:
    round_trip([nested(MAX_DEPTH - 1), *([[1], {"a": []}] * 100), "]]}}[[" * 50])
    refusal([*([[1], {"a": []}] * 100), nested(MAX_DEPTH)])


def test_a_cycle() -> None:
    value: list[Any] = []
    value.append(value)
    refusal(value)


def test_long_paths_are_cut() -> None:
    error = refusal({"k" * 500: {"l" * 500: [{"m" * 500: {"n" * 500: {"o" * 500: math.nan}}}]}})
    assert len(error.path) < 400


class Colour(Enum):
    RED = "red"


class Point(NamedTuple):
    x: int
    y: int


@dataclass
class Line:
    price: Decimal
    at: datetime


class Order(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    number: Annotated[int, Field(alias="orderNumber")]
    lines: list[Line] = []
    corner: tuple[int, str] = (1, "a")
    colour: Colour = Colour.RED


class Account(BaseModel):
    password: SecretStr


class Forgetful(BaseModel):
    kept: int
    lost: Annotated[int, Field(exclude=True)] = 0


class Trap(BaseModel):
    value: int

    @field_validator("value")
    @classmethod
    def grow(cls, value: int) -> int:
        return value + 1


class Fussy(BaseModel):
    value: int

    @field_validator("value", mode="before")
    @classmethod
    def only_from_python(cls, value: object) -> object:
        if value == 5:
            raise RuntimeError("not like this")
        return value


class Incomparable:
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no")

    __hash__ = None  # type: ignore[assignment]


class Unwritable(BaseModel):
    value: int
    only_json: bool

    @model_serializer
    def write(self, info: SerializationInfo) -> dict[str, Any]:
        if info.mode == "json" or not self.only_json:
            raise RuntimeError("not like this")
        return {"value": self.value, "only_json": True}


class Broken(Mapping[str, int]):
    def __getitem__(self, key: str) -> int:
        raise RuntimeError("no")

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("no")

    def __len__(self) -> int:
        return 1


class TestAnnotations:
    @pytest.mark.parametrize(("value", "annotation"), [
        ((1, "a"), tuple[int, str]),
        ((1, 2, 3), tuple[int, ...]),
        ({"a": (1, 2)}, dict[str, tuple[int, int]]),
        ({1: "a"}, dict[int, str]),
        ({1, 2}, set[int]),
        (b"bytes", bytes),
        (Decimal("1.10"), Decimal),
        (datetime(2015, 1, 21, 20, 25, 25, 446454, UTC), datetime),
        (timedelta(days=1, microseconds=1), timedelta),
        (UUID(int=1), UUID),
        (Colour.RED, Colour),
        (Point(1, 2), Point),
        (Line(Decimal("0.1"), datetime(2015, 1, 21, tzinfo=UTC)), Line),
        (None, None),
        (5, int | str),
        ("5", int | str),
        ([Order(number=1)], list[Order]),
    ])  # fmt: skip
    def test_bring_back(self, value: Any, annotation: Any) -> None:
        assert type(round_trip(value, annotation)) is type(value)

    def test_alias(self) -> None:
        line = Line(Decimal("0.1"), datetime(2015, 1, 21, tzinfo=UTC))
        order = Order(number=5, lines=[line])
        data = codec(Order).dump(order, "payload", LIMIT)
        assert b'"orderNumber":5' in data
        assert b'"number"' not in data
        round_trip(order, Order)

    @pytest.mark.parametrize("annotation", [Account, Annotated[Account, "x"]])
    def test_secret(self, annotation: Any) -> None:
        error = refusal(Account(password=SecretStr("hunter2")), annotation)
        assert error.path == "payload.password"
        assert "secret" in str(error)
        assert "hunter2" not in str(error)

    def test_excluded_field(self) -> None:
        round_trip(Forgetful(kept=1), Forgetful)
        assert "excluded field" in str(refusal(Forgetful(kept=1, lost=2), Forgetful))

    def test_validator_that_changes_what_it_reads(self) -> None:
        error = refusal(Trap(value=1), Trap)
        assert error.path == "payload.value"
        assert "2 (int) reads back as 3 (int)" in str(error)

    def test_validator_that_raises_on_the_way_back(self) -> None:
        value = Fussy.model_construct(value=5)
        assert "RuntimeError" in str(refusal(value, Fussy))

    def test_form_that_is_not_accepted_back(self) -> None:
        error = refusal(cast("Any", Trap).model_construct(value="five"), Trap)
        assert "not accepted back: value: " in str(error)

    def test_serializer_that_raises(self) -> None:
        error = refusal(Unwritable(value=1, only_json=True), Unwritable)
        assert "cannot be written as JSON" in str(error)
        refusal(Unwritable(value=1, only_json=False), Unwritable)

    def test_broken_equality(self) -> None:
        refusal(Incomparable())
        refusal([Incomparable()])

    def test_broken_mapping(self) -> None:
        assert "RuntimeError" in str(refusal(Broken()))

    def test_nan_in_a_model(self) -> None:
        class Measured(BaseModel):
            value: float

        error = refusal(Measured(value=math.nan), Measured)
        assert error.path == "payload.value"

    def test_lone_surrogate_in_a_model(self) -> None:
        class Named(BaseModel):
            name: str

        error = refusal(Named.model_construct(name="\ud800"), Named)
        assert error.path == "payload.name"

    def test_load_of_what_no_longer_fits(self) -> None:
        with pytest.raises(ValueError):
            codec(int).load(b'"five"')
        with pytest.raises(ValueError):
            codec(int).load(b"{")


class Tagged(BaseModel):
    tags: set[str] = set()
    steps: list[Any] = []
    more: list["Tagged"] = []


@dataclass(slots=True)
class Slotted:
    tags: frozenset[int | str]


class Frozen(BaseModel, frozen=True):
    value: int


class Plain:
    """A class that pydantic knows nothing of."""


AnyDecimal = Annotated[Decimal, Field(allow_inf_nan=True)]


class Rich(BaseModel):
    """Much that only the annotations bring back, and then what they do not."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    pair: tuple[int, int] = (1, 2)
    told: Annotated[SecretStr, PlainSerializer(SecretStr.get_secret_value, when_used="json")] = (
        SecretStr("told")
    )
    tags: set[str] = {"a"}
    amounts: frozenset[AnyDecimal] = frozenset([Decimal("Infinity"), Decimal("0.1")])
    amount: Decimal = Decimal("0.10")
    keyed: dict[int, tuple[str]] = {1: ("a",)}
    at: datetime = datetime(2015, 1, 21, tzinfo=UTC)
    line: Line = Line(Decimal("0.1"), datetime(2015, 1, 21, tzinfo=UTC))
    point: Point = Point(1, 2)
    frozen: frozenset[Frozen] = frozenset()
    number: float | str = 0.5
    numbers: tuple[float, ...] = ()
    by_key: dict[int, float] = {}
    name: str = ""
    whole: int = 0
    password: SecretStr = SecretStr("")
    trap: Trap | None = None
    odd: Plain | None = None
    extra: Any = None


FAULTS: list[tuple[dict[str, Any], str, str]] = [
    ({"number": math.nan}, "payload.number", "nan"),
    ({"numbers": (1.0, math.inf)}, "payload.numbers[1]", "inf"),
    ({"by_key": {1: 1.0, 2: math.nan}}, "payload.by_key.2", "nan"),
    ({"amount": Decimal("-Infinity")}, "payload.amount", "-Infinity"),
    ({"amounts": frozenset([Decimal("nan")])}, "payload.amounts[0]", "NaN"),
    ({"amounts": frozenset([True])}, "payload.amounts[0]", "Decimal"),
    ({"extra": math.inf}, "payload.extra", "inf"),
    ({"extra": {"a": [math.nan]}}, "payload.extra.a[0]", "nan"),
    ({"extra": [{"a": (1, 2)}]}, "payload.extra[0].a", "tuple"),
    ({"extra": {1: 2}}, "payload.extra", "key 1"),
    ({"extra": {"a": {1, 2}}}, "payload.extra.a", "set"),
    ({"extra": [object()]}, "payload.extra[0]", "object"),
    ({"extra": [(1, object())]}, "payload.extra[0][1]", "object"),
    ({"extra": nested(MAX_DEPTH + 1)}, f"payload.extra{'[0]' * 63}...", "levels"),
    ({"extra": 10**MAX_DIGITS}, "payload.extra", "digits"),
    ({"whole": 10**MAX_DIGITS}, "payload.whole", "digits"),
    ({"name": "\ud800"}, "payload.name", "surrogate"),
    ({"name": "\x00"}, "payload.name", "NUL"),
    ({"password": SecretStr("hunter2")}, "payload.password", "secret"),
    ({"odd": Plain()}, "payload.odd", "Plain"),
    ({"tags": ("a",)}, "payload.tags", "tuple"),
    ({"trap": Trap.model_construct(value=1)}, "payload.trap.value", "reads back as 2"),
    (
        {"at": datetime(1850, 1, 1, tzinfo=timezone(timedelta(seconds=561)))},
        "payload.at",
        "reads back as",
    ),
    ({"trap": cast("Any", Trap).model_construct(value="x")}, "payload.trap.value", "trap.value: "),
]


@pytest.mark.parametrize(("fields", "path", "word"), FAULTS, ids=range(len(FAULTS)))
def test_what_an_annotation_brings_back_is_not_blamed(
    fields: dict[str, Any], path: str, word: str
) -> None:
    round_trip(Rich(), Rich)
    error = refusal(Rich.model_construct(**fields), Rich)
    assert error.path == path
    assert word in str(error)
    assert "hunter2" not in str(error)
    # not everything can be found beside these, which have no form but JSON
    frozen = frozenset([Frozen(value=1)])
    round_trip(Rich(frozen=frozen), Rich)
    error = refusal(Rich.model_construct(frozen=frozen, **fields), Rich)
    assert error.path in (path, "payload")
    assert "hunter2" not in str(error)


class TestSame:
    @pytest.mark.parametrize(("annotation", "a", "b", "same"), [
        (Any, b'{"a":1,"b":2}', b'{"b":2,"a":1}', True),
        (Any, b'{"a":1}', b'{"a":true}', False),
        (Any, b'[1,"a"]', b'["a",1]', False),
        (Any, b"[1,true]", b"[true,1]", False),
        (dict[str, list[Any]], b'{"a":[1,1.0]}', b'{"a":[1.0,1]}', False),
        (list[int], b"[1,2]", b"[2,1]", False),
        (set[int], b"[1,2]", b"[2,1]", True),
        (set[int], b"[1,2]", b"[1,3]", False),
        (frozenset[tuple[int, str]], b'[[1,"a"],[2,"b"]]', b'[[2,"b"],[1,"a"]]', True),
        (list[set[int]], b"[[1,2],[3]]", b"[[2,1],[3]]", True),
        (list[set[int]], b"[[1,2],[3]]", b"[[3],[1,2]]", False),
        (Slotted, b'{"tags":[1,"a"]}', b'{"tags":["a",1]}', True),
        (Tagged, b'{"tags":["a","b"]}', b'{"tags":["b","a"]}', True),
        (Tagged, b'{"steps":["a","b"]}', b'{"steps":["b","a"]}', False),
        (Tagged, b'{"steps":[1,true]}', b'{"steps":[true,1]}', False),
        (Tagged, b'{"more":[{"tags":["a","b"]}]}', b'{"more":[{"tags":["b","a"]}]}', True),
        (set[int], b'["x","y"]', b'["y","x"]', False),  # what fits no longer
    ])  # fmt: skip
    def test_stored_forms(self, annotation: Any, a: bytes, b: bytes, same: bool) -> None:
        form = codec(annotation)
        assert form.is_same(a, b) == form.is_same(b, a) == same
        assert form.is_same(a, a)

    def test_nothing_is_the_same_as_nothing_only(self) -> None:
        form = codec(Any)
        assert form.is_same(None, None)
        assert not form.is_same(None, b"null")
        assert not form.is_same(b"null", None)

    def test_sets_of_processes_with_other_hash_seeds(self) -> None:
        script = (
            "from pydantic import TypeAdapter; from invoke_retry.storable import Codec;"
            "value = {'tags': set('abcdefgh')};"
            "codec = Codec(TypeAdapter(dict[str, set[str]]));"
            "print(codec.dump(value, 'payload', 1000).decode())"
        )
        forms = [
            subprocess.run(
                [sys.executable, "-c", script],
                env={**os.environ, "PYTHONHASHSEED": seed},
                stdout=subprocess.PIPE,
                check=True,
            ).stdout
            for seed in ("1", "2")
        ]
        assert forms[0] != forms[1]
        assert codec(dict[str, set[str]]).is_same(*forms)
