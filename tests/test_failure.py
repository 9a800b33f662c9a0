"""Errors as text: bounded, printable, without locals, whatever the error does."""

import json
from typing import Any

import pytest

from invoke_retry.failure import (
    MESSAGE_LIMIT,
    TRACEBACK_LIMIT,
    describe,
    error_info,
    message_of,
    printable,
    render_traceback,
    type_name,
)


class Outer:
    class Inner(Exception):
        pass


class Unspeakable(Exception):
    def __init__(self, raises: BaseException) -> None:
        self.raises = raises

    def __str__(self) -> str:
        raise self.raises


class NoText(Exception):
    def __str__(self) -> str:
        text: Any = 5
        return text  # type: ignore[no-any-return]


def raised(error: BaseException) -> BaseException:
    """The same error with a traceback."""
    try:
        raise error
    except BaseException as caught:
        return caught


def chain(length: int) -> BaseException:
    error: BaseException = ValueError("link 0")
    for i in range(1, length):
        following = ValueError(f"link {i}")
        following.__cause__ = error
        error = following
    return error


# Text.


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("", ""),
        ("naïve 漢字 🙂", "naïve 漢字 🙂"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x1b[31mred\x00", "\\x1b[31mred\\x00"),
        ("\ud800", "\\ud800"),
        ("\u202eright to left\u2028", "\\u202eright to left\\u2028"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize("text", ["x" * 10**6, "\n" * 10**6, "\ud800" * 10**6, "漢" * 10**6])
def test_text_of_any_length_is_cut_and_marked(text: str) -> None:
    shown = printable(text)
    assert len(shown) < MESSAGE_LIMIT + 50
    assert shown.isprintable()
    assert shown.endswith("more characters)")


def test_text_within_the_limit_is_left_alone() -> None:
    assert printable("x" * MESSAGE_LIMIT) == "x" * MESSAGE_LIMIT
    assert printable("x" * (MESSAGE_LIMIT + 1)) == "x" * MESSAGE_LIMIT + "... (1 more characters)"
    assert printable("abcdef", 3) == "abc... (3 more characters)"


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (ValueError(), "ValueError"),
        (json.JSONDecodeError("", "", 0), "json.decoder.JSONDecodeError"),
        (Outer.Inner(), f"{__name__}.Outer.Inner"),
        (ExceptionGroup("g", [ValueError()]), "ExceptionGroup"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (type("a\nb", (Exception,), {"__module__": "m"})(), "m.a\\nb"),
    ],
)
def test_type_name(error: BaseException, name: str) -> None:
    assert type_name(error) == name


def test_type_name_is_bounded() -> None:
    assert len(type_name(type("x" * 100_000, (Exception,), {})())) < 600


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("no"), "no"),
        (ValueError(), ""),
        (ValueError("a", 1), "('a', 1)"),
        (KeyError("key"), "'key'"),
        (ValueError("two\nlines"), "two\\nlines"),
        (Unspeakable(ZeroDivisionError()), "<its text cannot be made: ZeroDivisionError>"),
        (Unspeakable(SystemExit()), "<its text cannot be made: SystemExit>"),
        (NoText(), "<its text cannot be made: TypeError>"),
    ],
)
def test_message(error: BaseException, message: str) -> None:
    assert message_of(error) == message
    assert error_info(error).message == message
    assert describe(error) == (f"{type_name(error)}: {message}" if message else type_name(error))


def test_a_keyboard_interrupt_is_never_swallowed() -> None:
    with pytest.raises(KeyboardInterrupt):
        message_of(Unspeakable(KeyboardInterrupt()))


@pytest.mark.parametrize("text", ["\ud800\x00\n", "x" * 10**6])
def test_what_is_stored_can_be_stored(text: str) -> None:
    info = error_info(ValueError(text))
    assert type(info).model_validate_json(info.model_dump_json()) == info
    info.message.encode()


# Tracebacks.


def test_it_ends_with_the_error_and_names_where_it_was_raised() -> None:
    text = render_traceback(raised(ValueError("no")))
    lines = text.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert "in raised" in lines[1]
    assert lines[2].strip() == "raise error"
    assert lines[-1] == "ValueError: no"


def test_an_error_that_was_never_raised_has_no_frames() -> None:
    assert render_traceback(ValueError("no")) == "ValueError: no"


def test_values_of_variables_are_not_in_it() -> None:
    def fail(password: str) -> None:
        token = password * 2
        raise ValueError(len(token))

    with pytest.raises(ValueError) as caught:
        fail("hunter")
    assert "hunterhunter" not in render_traceback(caught.value)
    assert "raise ValueError(len(token))" in render_traceback(caught.value)


def test_causes_come_first() -> None:
    text = render_traceback(chain(3))
    places = [text.index(f"link {i}") for i in range(3)]
    assert places == sorted(places)
    assert text.count("which was the direct cause of:") == 2


def test_what_was_handled_comes_first_unless_it_is_suppressed() -> None:
    for suppressed in (False, True):
        error = ValueError("second")
        error.__context__ = KeyError("first")
        error.__suppress_context__ = suppressed
        assert ("KeyError: 'first'" in render_traceback(error)) is not suppressed


@pytest.mark.parametrize("length", [6, 100, 5_000])
def test_of_a_long_chain_the_nearest_causes_are_shown(length: int) -> None:
    text = render_traceback(chain(length))
    shown = [i for i in range(length) if f"link {i}\n" in text + "\n"]
    assert shown == list(range(length - 5, length))
    assert text.startswith("(more causes are not shown)")


def circle(*kinds: str) -> BaseException:
    errors = [ValueError(f"link {i}") for i in range(len(kinds))]
    for i, kind in enumerate(kinds):
        following = errors[(i + 1) % len(errors)]
        if kind == "cause":
            errors[i].__cause__ = following
        else:
            errors[i].__context__ = following
    return errors[0]


@pytest.mark.parametrize(
    "kinds", [["cause"], ["cause"] * 2, ["context"] * 3, ["cause", "context"], ["cause"] * 9]
)
def test_a_circle_of_causes_ends(kinds: list[str]) -> None:
    text = render_traceback(circle(*kinds))
    assert text.endswith("ValueError: link 0")
    assert all(text.count(f"ValueError: link {i}") == 1 for i in range(min(5, len(kinds))))


def test_a_group_shows_some_of_its_members() -> None:
    text = render_traceback(ExceptionGroup("all", [ValueError(f"no {i}") for i in range(1_000)]))
    assert text.splitlines() == [
        "ExceptionGroup: all (1000 sub-exceptions)",
        *(f"  | ValueError: no {i}" for i in range(5)),
        "  | ... (995 more)",
    ]


def test_deep_groups_end() -> None:
    error: Exception = ValueError("leaf")
    for _ in range(5_000):
        members: list[Exception] = [error]
        error = ExceptionGroup("level", members)
    assert len(render_traceback(error)) < TRACEBACK_LIMIT


def test_the_newest_frames_are_kept() -> None:
    def down(levels: int) -> None:
        if not levels:
            raise ValueError("bottom")
        down(levels - 1)

    with pytest.raises(ValueError) as caught:
        down(500)
    text = render_traceback(caught.value)
    assert "Previous line repeated 16 more times" in text  # of 20
    assert "in test_the_newest_frames_are_kept" not in text
    assert 'raise ValueError("bottom")' in text


@pytest.mark.parametrize(
    "make",
    [
        lambda: ValueError("x" * 10**6),
        lambda: ExceptionGroup("x" * 10**6, [ValueError("\n" * 10**6) for _ in range(9)]),
        lambda: Unspeakable(ValueError("x" * 10**6)),
        lambda: chain(50),
    ],
)
def test_it_is_bounded_and_printable_line_by_line(make: Any) -> None:
    error = raised(make())
    error.__cause__ = raised(ExceptionGroup("\ud800" * 10**5, [make(), make()]))
    text = render_traceback(error)
    assert len(text) <= TRACEBACK_LIMIT + 50
    assert all(line.isprintable() for line in text.splitlines())
    text.encode()
