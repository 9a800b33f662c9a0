"""Rows that somebody has spoilt: every command answers, and none of them acts, leaks or crashes."""

from __future__ import annotations

import pickle
import sqlite3
from contextlib import suppress
from pathlib import Path

import pytest
from cli_help import ask, run, varied
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from invoke_retry.backends.sqlite.rows import COLUMNS

SPOILS = {
    "text": "\x1b[2Jnonsense",
    "blob": b"\xff\xfe\x00",
    "number": 2**62,
    "negative": -1,
    "infinite": float("inf"),
    "null": None,
    "long": "x" * 1_000_000,
}


class Bomb:
    """Says where it went off."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with one invocation of each state at rest."""
    path = tmp_path / "retries.db"
    varied(path)
    return path


def look_everywhere(path: Path) -> None:
    """Every command that looks answers, or says for people why not."""
    ((cid,),) = ask(path, "SELECT cid FROM invocation WHERE id = 2")
    commands = [["list"], ["list", "--json"], ["counts"]]
    if isinstance(cid, str):
        commands.append(["show", "--traceback", "--", cid])
    for command in commands:
        done = run(*command, store=path)
        assert done.code in (0, 4), (command, done)
        assert "\x1b" not in done.out + done.err
        assert "Traceback (most recent call last):\n  File" not in done.err


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("column", COLUMNS.split(", ")[1:])
def test_a_spoilt_row_is_shown_as_such(path: Path, column: str, spoil: str) -> None:
    with suppress(sqlite3.IntegrityError):  # what the schema itself refuses
        ask(path, f"UPDATE OR IGNORE invocation SET {column} = ? WHERE id = 2", SPOILS[spoil])
    look_everywhere(path)


def test_pickles_are_never_opened(path: Path) -> None:
    mark = path.parent / "went off"
    bomb = pickle.dumps(Bomb(mark))
    for table, columns in {
        "request": ("payload", "context"), "response": ("response",),
        "attempt": ("error_message", "traceback"),
        "invocation": ("policy", "error_message", "target"),
    }.items():  # fmt: skip
        for column in columns:
            ask(path, f"UPDATE {table} SET {column} = ?", bomb)
            look_everywhere(path)
    assert not mark.exists()


@pytest.mark.parametrize("option", ["--target", "--source", "--error-type"])
def test_a_filter_that_is_no_text(path: Path, option: str) -> None:
    done = run("list", option, "caf\udce9", store=path)
    assert done.code == 2
    assert "is no valid text" in done.err


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    option=st.sampled_from(["--target", "--source", "--error-type", "--after", "--state"]),
    text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=40)
    | st.sampled_from(["' OR 1=1 --", '"; DROP TABLE invocation; --', "$.key')", "%", "K0" * 14]),
)
def test_filters_are_never_part_of_a_statement(path: Path, option: str, text: str) -> None:
    done = run("list", f"{option}={text}", store=path)
    assert done.code in (0, 2, 4)
    if done.code == 0 and text not in ("shop", "fail", "echo", "hold"):
        assert done.out == ""
    assert ask(path, "SELECT count(*) FROM invocation") == [(5,)]
