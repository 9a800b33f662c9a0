"""`watch`: live counts, rates and failures, on a terminal that is given back as it was."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import struct
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_help import (
    COMMAND,
    SECRET,
    ask,
    coordinator,
    environment,
    run_outside,
    terminal,
    told,
    varied,
)

from invoke_retry.cli.looks import Rate, Rates, pause_after
from invoke_retry.cli.options import STATES
from invoke_retry.cli.watching import sparks

ENTERS, LEAVES = "\x1b[?1049h", "\x1b[?1049l"
HIDES, SHOWS = "\x1b[?25l", "\x1b[?25h"
NONE: dict[str, int] = {state: 0 for state in STATES}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with one invocation of each state at rest."""
    path = tmp_path / "retries.db"
    varied(path)
    return path


def is_given_back(written: str) -> bool:
    """Whether the terminal is as it was: the first screen, with its cursor."""
    return (
        written.count(ENTERS) == written.count(LEAVES) > 0
        and written.rfind(LEAVES) > written.rfind(ENTERS)
        and written.rfind(SHOWS) > written.rfind(HIDES) > -1
    )


def test_a_line_for_each_look_in_a_pipe(path: Path) -> None:
    done = run_outside("watch", "--looks", 3, "--interval", 0.1, store=path)
    assert (done.code, done.err) == (0, "")
    head, *looks = (line.split("\t") for line in done.out.splitlines())
    assert len(looks) == 3
    assert all(len(look) == len(head) for look in looks)
    first = dict(zip(head, looks[0], strict=True))
    assert {first[state] for state in ("waiting", "succeeded", "failed", "dead")} == {"1"}
    assert first["accepted/s"] == "-"
    assert looks[1][head.index("accepted/s")] == "0"


def test_an_object_for_each_look(path: Path) -> None:
    done = run_outside("watch", "--looks", 2, "-i", 0.1, "--json", store=path)
    assert done.code == 0
    assert done.out.isascii()
    first, second = (json.loads(line)["data"] for line in done.out.splitlines())
    assert set(first) == {"at", "counts", "services", "paused", "rates", "failures"}
    assert first["counts"] == told("counts", store=path)["counts"]
    assert first["services"] == told("counts", store=path)["services"]
    assert first["rates"]["failed"] == {"now": None, "minute": None}
    assert second["rates"]["failed"] == {"now": 0.0, "minute": 0.0}
    failures = {each["state"]: each for each in first["failures"]}
    assert set(failures) == {"failed", "dead", "waiting"}
    assert failures["dead"]["error"] == {"type": "TimeoutError", "message": "nobody listens"}
    assert SECRET not in done.out
    assert SECRET in run_outside("watch", "--looks", 1, "--json", "--reveal", store=path).out


def test_the_newest_failure_is_the_first(path: Path) -> None:
    (data,) = (
        json.loads(line)["data"]
        for line in run_outside("watch", "--looks", 1, "--json", store=path).out.splitlines()
    )
    times = [each["at"] for each in data["failures"]]
    assert times == sorted(times, reverse=True)


def test_an_empty_store(tmp_path: Path) -> None:
    path = tmp_path / "empty.db"

    async def make() -> None:
        async with coordinator(path):
            pass

    asyncio.run(make())
    done = run_outside("watch", "--looks", 1, "--json", store=path)
    data = json.loads(done.out)["data"]
    assert (done.code, data["counts"], data["failures"]) == (0, NONE, [])
    with terminal("watch", "--looks", 2, "-i", 0.1, store=path) as screen:
        done = screen.ended()
    assert done.code == 0
    assert is_given_back(done.out)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_terminal_is_given_back(path: Path, number: signal.Signals, code: int) -> None:
    with terminal("watch", store=path) as screen:
        screen.until("newest failures")
        screen.until("nobody listens")
        screen.signal(number)
        done = screen.ended()
    assert done.code == code
    assert is_given_back(done.out)
    assert "Traceback" not in done.out
    assert SECRET not in done.out


def test_it_ends_after_the_looks(path: Path) -> None:
    with terminal("watch", "--looks", 2, "--interval", 0.1, store=path) as screen:
        done = screen.ended()
    assert done.code == 0
    assert is_given_back(done.out)
    for text in ("invoke-retry", str(path), "service", "succeeded", "last minute", "echo"):
        assert text in done.out


def test_a_store_that_breaks_gives_the_terminal_back_and_says_why(path: Path) -> None:
    with terminal("watch", "--interval", 0.1, store=path) as screen:
        screen.until("newest failures")
        ask(path, "PRAGMA wal_checkpoint(TRUNCATE)")
        path.write_bytes(b"no database " * 10_000)
        done = screen.ended()
    assert done.code == 3
    assert is_given_back(done.out)
    assert "Traceback" not in done.out
    assert "invoke-retry: " in done.out[done.out.rfind(LEAVES) :]


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (20, 3), (40, 10), (300, 100)])
def test_every_size_works(path: Path, size: tuple[int, int]) -> None:
    columns, rows = size
    with terminal(
        "watch", "--looks", 2, "-i", 0.1, store=path, columns=columns, rows=rows
    ) as screen:
        done = screen.ended()
    assert done.code == 0
    assert is_given_back(done.out)


def test_it_follows_the_size(path: Path) -> None:
    with terminal("watch", "--interval", 60, store=path, columns=60, rows=5) as screen:
        screen.until("waiting")
        assert b"newest failures" not in screen.written
        fcntl.ioctl(screen.screen, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        screen.signal(signal.SIGWINCH)
        screen.until("newest failures")
        screen.signal(signal.SIGINT)
        assert is_given_back(screen.ended().out)


def test_while_it_is_stopped_the_terminal_is_somebody_elses(path: Path) -> None:
    with terminal("watch", "--interval", 60, store=path) as screen:
        screen.until("newest failures")
        screen.signal(signal.SIGTSTP)
        screen.until(LEAVES)
        os.waitid(os.P_PID, screen.process.pid, os.WSTOPPED | os.WNOWAIT)
        assert is_given_back(screen.written.decode())
        screen.written.clear()
        screen.signal(signal.SIGCONT)
        screen.until("newest failures")
        screen.signal(signal.SIGINT)
        done = screen.ended()
    assert done.code == 130
    assert is_given_back(done.out)


def test_a_terminal_that_cannot_gets_lines(path: Path) -> None:
    with terminal("watch", "--looks", 1, store=path, TERM="dumb") as screen:
        done = screen.ended()
    assert done.code == 0
    assert "\x1b" not in done.out
    assert done.out.startswith("at\twaiting")


def test_hostile_text_acts_on_no_terminal(path: Path) -> None:
    acting = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202eevil\r[bold red]markup[/]"
    ask(path, "UPDATE invocation SET target = ?, service = ?, error_type = ?, error_message = ?",
        *[acting] * 4)  # fmt: skip
    with terminal("watch", "--looks", 2, "-i", 0.1, store=path, columns=400) as screen:
        done = screen.ended()
    assert done.code == 0
    for each in ("\x1b]", "\x1b[2J", "\x9b", "\u202e", "\x07", "\r["):
        assert each not in done.out
    assert "[bold red]markup[/]" in done.out


def test_it_shows_what_happens_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "retries.db"

    async def work() -> None:
        async with coordinator(path) as retry:
            process = await asyncio.create_subprocess_exec(
                *COMMAND, "watch", "--json", "-i", "0.1", env=environment(path),
                stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            assert process.stdout is not None
            try:
                async with asyncio.timeout(30):
                    await process.stdout.readline()
                    await retry.pause("echo")
                    for n in range(20):
                        await retry.invoke_async("echo", n, repeats=0, seconds=0)
                    await _reads(process.stdout, lambda data: data["paused"] == ["echo"]
                                 and data["services"]["echo"] == {"waiting": 20})  # fmt: skip
                    await retry.resume("echo")
                    seen = await _reads(
                        process.stdout, lambda data: data["counts"]["succeeded"] == 20
                    )
                    assert seen["rates"]["succeeded"]["minute"] > 0
                    assert seen["rates"]["accepted"]["minute"] > 0
            finally:
                process.terminate()
                assert await process.wait() == 143

    asyncio.run(work())


async def _reads(lines: asyncio.StreamReader, fits: Callable[[Any], bool]) -> Any:
    async for line in lines:
        if fits(data := json.loads(line)["data"]):
            return data
    raise AssertionError


def test_wrong_options_are_told(path: Path) -> None:
    for options in (("--interval", 0), ("--looks", 0), ("--interval", "often")):
        assert run_outside("watch", *options, store=path).code == 2
    done = run_outside("watch", store=path.with_name("nothing.db"))
    assert done.code == 3
    assert "there is no store" in done.err


def test_rates() -> None:
    rates = Rates()
    assert rates.add(100.0, NONE)["accepted"] == Rate(None, None)
    seen = rates.add(102.0, {**NONE, "waiting": 4, "failed": 2})
    assert seen["accepted"] == Rate(3.0, 3.0)
    assert seen["failed"] == Rate(1.0, 1.0)
    seen = rates.add(104.0, {**NONE, "waiting": 4, "failed": 2, "dead": 4})
    assert seen["accepted"] == Rate(2.0, 2.5)
    assert seen["dead"] == Rate(2.0, 1.0)
    # redelivered
    assert rates.add(105.0, {**NONE, "waiting": 4, "failed": 6})["dead"] == Rate(0.0, 0.0)
    # what is longer ago than a minute counts no more
    assert rates.add(164.5, {**NONE, "waiting": 4, "failed": 6})["failed"].minute == 4 / 60.5
    assert rates.add(165.5, {**NONE, "waiting": 4, "failed": 6})["failed"] == Rate(0.0, 0.0)
    assert list(rates.trend["failed"])[:2] == [1.0, 0.0]


def test_a_long_look_is_followed_by_a_longer_pause() -> None:
    assert pause_after(1.0, 0.01) == 0.99
    assert pause_after(1.0, 0.5) == 4.5
    for took in (0.0, 0.05, 0.2, 3.0):
        assert took <= 0.1001 * (took + pause_after(1.0, took))


def test_sparks() -> None:
    assert sparks([]) == ""
    assert sparks([0, 0]) == "▁▁"
    assert sparks([0, 1, 7]) == "▁▂█"
