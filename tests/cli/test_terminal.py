"""Through a real terminal: tables, colours where they are wanted, questions, an early end."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path

import pytest
from cli_help import (
    COMMAND,
    Terminal,
    ask,
    environment,
    multiply,
    run_outside,
    terminal,
    told,
    varied,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with one invocation of each state at rest."""
    path = tmp_path / "retries.db"
    varied(path)
    return path


def shown(text: str) -> str:
    """What is seen of what was written."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r\n", "\n")


def test_a_table_fits_the_terminal(path: Path) -> None:
    for columns in (60, 100, 200):
        with terminal("list", store=path, columns=columns) as screen:
            done = screen.ended()
        assert done.code == 0
        assert "\x1b[" in done.out
        lines = shown(done.out).splitlines()
        assert max(map(len, lines)) <= columns
        assert lines[0].startswith("cid")


def test_colours_only_where_they_are_wanted(path: Path) -> None:
    def is_coloured(screen: Terminal) -> bool:
        done = screen.ended()
        assert done.code == 0
        return re.search(r"\x1b\[[0-9;]*3[1-6]m", done.out) is not None

    with terminal("counts", store=path) as screen:
        assert is_coloured(screen)
    with terminal("counts", store=path, NO_COLOR="1") as screen:
        assert not is_coloured(screen)
    with terminal("counts", store=path, TERM="dumb") as screen:
        assert not is_coloured(screen)


@pytest.mark.parametrize("arguments", [["list"], ["watch", "--looks", "1"], ["list", "--json"]])
def test_a_pipe_is_no_terminal_whatever_is_forced(path: Path, arguments: list[str]) -> None:
    done = run_outside(*arguments, store=path, FORCE_COLOR="1", TTY_COMPATIBLE="1")
    assert done.code == 0
    assert "\x1b" not in done.out + done.err
    assert "\t" in done.out or "--json" in arguments


def test_show_draws_the_timeline(path: Path) -> None:
    (failed,) = told("list", "--state", "failed", store=path)["invocations"]
    with terminal("show", failed["call_cid"], store=path, columns=90) as screen:
        done = screen.ended()
    assert done.code == 0
    lines = shown(done.out).splitlines()
    bars = [line for line in lines if "█" in line]
    assert len(bars) == 3
    assert all(len(line) <= 90 for line in bars)


@pytest.mark.parametrize(("answer", "code", "waiting"), [("y\n", 0, 12), ("n\n", 1, 1)])
def test_many_are_asked_for(path: Path, answer: str, code: int, waiting: int) -> None:
    multiply(path, 10)
    with terminal("resubmit", "--state", "cancelled", store=path) as screen:
        screen.until("resubmit 11 invocations?")
        screen.type(answer)
        done = screen.ended()
    assert done.code == code
    assert told("counts", store=path)["counts"]["waiting"] == waiting


def test_ctrl_c_at_the_question_does_nothing(path: Path) -> None:
    with terminal("cancel", "--state", "waiting", store=path) as screen:
        screen.until("cancel 1 invocation?")
        screen.signal(signal.SIGINT)
        done = screen.ended()
    assert done.code in (1, 130)
    assert "Traceback" not in done.out
    assert told("counts", store=path)["counts"]["waiting"] == 1


def test_a_reader_that_has_seen_enough(path: Path) -> None:
    multiply(path, 20_000)
    command = subprocess.Popen(
        [*COMMAND, "list", "-n", "20000"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(path),
    )  # fmt: skip
    assert command.stdout is not None
    assert command.stderr is not None
    command.stdout.readline()
    command.stdout.close()
    with command.stderr as errors:
        assert errors.read() == b""
    assert command.wait(30) == 141


def test_hostile_text_acts_on_no_terminal(path: Path) -> None:
    acting = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202eevil\r[bold red]markup[/]"
    ask(path, "UPDATE invocation SET target = ?, source = ?, error_type = ?, error_message = ?, "
              "service = ?", *[acting] * 5)  # fmt: skip
    ask(path, "UPDATE attempt SET error_type = ?, error_message = ?, traceback = ?", *[acting] * 3)
    cid = told("list", store=path)["invocations"][0]["call_cid"]
    for arguments in (["list"], ["counts"], ["show", cid, "--traceback"], ["list", "--json"]):
        with terminal(*arguments, store=path, columns=300) as screen:
            done = screen.ended()
        assert done.code == 0
        for each in ("\x1b]", "\x1b[2J", "\x9b", "\u202e", "\x07", "\r["):
            assert each not in done.out
        assert "[bold red]markup[/]" in shown(done.out)
