"""Stored text never acts on a terminal, and shows no secret."""

from __future__ import annotations

import json
import time
import unicodedata
from collections.abc import Iterator
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from invoke_retry.cli.safe import MASK, clean, is_secret, masked, masked_text

ACTING = ("\x1b[2J", "\x9b1m", "\r", "\x08", "\x07", "\u202e", "\u2066", "\u200f", "\u2028", "\x00")


@given(st.text(st.characters(exclude_categories=())))
def test_what_is_clean_only_shows(text: str) -> None:
    shown = clean(text)
    bad = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert not [each for each in shown if unicodedata.category(each) in bad]
    assert clean(shown) == shown
    shown.encode()


@pytest.mark.parametrize("acting", ACTING)
def test_what_acts_is_escaped_and_visible(acting: str) -> None:
    shown = clean(f"before{acting}after")
    assert shown.startswith("before\\")
    assert shown.endswith("after")


def test_line_ends_stay_where_lines_are_shown() -> None:
    assert clean("a\n\tb\x1b", lines=True) == "a\n\tb\\x1b"
    assert clean("a\nb") == "a\\nb"


def test_usual_text_is_untouched() -> None:
    for text in ("plain", "Grüße, 世界 🙂", "naïve — “quoted”", "[bold]no markup[/]"):
        assert clean(text) == text


@pytest.mark.parametrize(
    "name",
    ["password", "PASSWORD", "db_password", "dbPassword", "passwd", "secret", "client_secret",
     "clientSecret", "token", "access-token", "accessToken", "api_key", "apiKey", "API-KEY",
     "apikey", "Authorization", "credentials", "private_key", "Cookie", "set-cookie", "pin",
     "cvv", "card_number", "cardNumber", "passwordHash", "pass", "pw", "jwt", "session_id",
     "sessionKey", "PIN code", "creditCard"],
)  # fmt: skip
def test_names_of_secrets(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    ["order", "id", "passenger", "author", "spinning", "email", "key", "passport",
     "compass_heading", "sessions", "pinned", "card"],
)  # fmt: skip
def test_names_of_none(name: str) -> None:
    assert not is_secret(name)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda each: st.lists(each) | st.dictionaries(st.text() | st.just("password"), each),
)


def leaves(value: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Where values stand that hold no others, and of what type they are."""
    if isinstance(value, dict):
        for key, each in cast("dict[str, object]", value).items():
            yield from leaves(each, f"{path}/{key}")
    elif isinstance(value, list):
        for number, each in enumerate(cast("list[object]", value)):
            yield from leaves(each, f"{path}/{number}")
    else:
        yield path, type(value).__name__


@given(values)
@example({"AUTHORIZATION": [None]})
def test_masking_keeps_the_shape(value: Any) -> None:
    after = dict(leaves(masked(value)))
    secret = [path for path, _ in leaves(value) if path not in after]
    assert all(any(is_secret(name) for name in path.split("/")) for path in secret)
    for path, kind in leaves(value):
        assert after.get(path, kind) in (kind, "str")


def test_secrets_are_masked_however_deep() -> None:
    value = {"a": [{"b": {"token": ["x-canary"], "n": 1}}], "secret": {"k": "x-canary"}}
    assert "canary" not in json.dumps(masked(value))
    assert masked(value)["a"][0]["b"]["n"] == 1
    assert masked({"password": None}) == {"password": None}


@pytest.mark.parametrize(
    "text",
    ["GET https://joe:x-canary@host/ failed", "refused: password=x-canary", "token: 'x-canary'",
     'got {"api_key": "x-canary"}', "Authorization: Bearer x-canary-long", "Bearer x-canary.long",
     "?access_token=x-canary&b=1", "amqp://:x-canary@host", "https://u:p@x-canary@host/",
     "https://ghp_0123x-canary@host/", "X-Api-Key: x-canary", "AWS_SECRET_ACCESS_KEY=x-canary",
     "secret_key=x-canary", "private-key: x-canary", "passphrase=x-canary", "passcode=x-canary",
     "pwd=x-canary", "PIN: x-canary", "credentials=x-canary", "?X-Amz-Signature=x-canary",
     "https://host/?sig=x-canary", "Cookie: sid=1; session=x-canary",
     'Cookie: sid="x-canary"', "mysql --password x-canary",
     "--api-key x-canary", r'{\"password\": \"x-canary\"}', "{'password': b'x-canary'}",
     "password: 'x-canary", r'"password": "a\"x-canary"', "Proxy-Authorization: Negotiate x-canary",
     "-----BEGIN RSA PRIVATE KEY-----\nx-canary\n-----END RSA PRIVATE KEY-----",
     "-----BEGIN PRIVATE KEY-----\nx-canary"],
)  # fmt: skip
def test_secrets_in_text(text: str) -> None:
    assert "canary" not in masked_text(text)
    assert MASK in masked_text(text)


@pytest.mark.parametrize(
    "text",
    ["the token was refused", "https://host:80/path", "a@b", "max_tokens is too small",
     "spin=3", "https://host:80/a@b", "git@host:path", "pass --token", "to user@host"],
)  # fmt: skip
def test_no_secrets_in_text(text: str) -> None:
    assert masked_text(text) == text


@pytest.mark.parametrize(
    "part",
    [
        "a-",
        "a-b:",
        "token ",
        'token="',
        "token='",
        "://a",
        "://a:",
        "bearer ",
        "password:",
        "\x1b",
        "password\\",
        'password="\\',
        "--",
        "--a-",
        "--token ",
        "cookie=",
        "-----BEGIN PRIVATE KEY-----",
        "-----BEGIN ",
        "://a@",
        "aaaa",
        "secret_",
        'token=\\"',
        "token=b'",
        "pwd =",
        "\\",
    ],
)
def test_a_long_text_is_looked_at_once(part: str) -> None:
    """A hostile text of a megabyte must not hold the command up for hours."""
    text = part * (200_000 // len(part))
    begin = time.process_time()
    clean(masked_text(text))
    assert time.process_time() - begin < 5


def test_what_stands_beside_a_secret_is_kept() -> None:
    for text, kept in {
        r"{\"password\": \"x\", \"order\": 5}": r"\"order\": 5}",
        "{'password': 'x', 'order': 5}": "'order': 5}",
        "https://u:x@host/orders/5?sig=x&order=5": "@host/orders/5?sig=***&order=5",
        "Cookie: a=x\nOrder: 5": "\nOrder: 5",
        '{"cookie": "a=x", "order": 5}': ' "order": 5}',
        "-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY----- 5": "END PRIVATE KEY----- 5",
    }.items():
        assert masked_text(text).endswith(kept)
