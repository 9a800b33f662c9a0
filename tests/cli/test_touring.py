"""`demo`: it shows what it says, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest
from cli_help import run_outside, terminal

from invoke_retry.cli.options import STATES


def workers(text: str) -> list[int]:
    """The processes that the tour has spoken of."""
    return [int(pid) for pid in re.findall(r"^\[(\d+)\] runs", text, re.MULTILINE)]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_the_tour_in_a_pipe(tmp_path: Path) -> None:
    done = run_outside("demo", "--fast", TMPDIR=str(tmp_path))
    assert done.code == 0, done.err
    assert "\x1b" not in done.out
    for text in (
        "$ invoke-retry worker shop:retry &",
        "$ invoke-retry show K0",
        "ConnectionError: the CRM is down",
        "█",
        "$ invoke-retry run-now K0",
        "$ kill -9 ",
        "all 12 are done. ",
        "$ invoke-retry counts",
        "$ invoke-retry redeliver K0",
        "It was told.",
        "INVOKE_RETRY_STORE",
    ):
        assert text in done.out
    assert re.search(r"\tin (1 h|59 min 5\d s)\t", done.out)
    assert "Traceback" not in done.err
    calls = [line for line in done.out.splitlines() if "retry.invoke" in line]
    assert len(calls) == 4
    assert all("await retry.invoke" in line for line in calls)
    assert len(workers(done.out)) == 2
    assert not any(map(is_alive, workers(done.out)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_it_says_is_so(tmp_path: Path) -> None:
    done = run_outside("demo", "--fast", "--json", TMPDIR=str(tmp_path))
    assert done.code == 0, done.err
    assert done.err == ""
    shape = json.loads(done.out)
    assert (shape["command"], shape["ok"]) == ("demo", True)
    back, first, killed, dead, on = shape["data"]["acts"]
    (show,) = back["commands"]
    assert show["data"]["state"] == "succeeded"
    assert [each["error"] is None for each in show["data"]["history"]] == [False, False, True]
    waiting, now = first["commands"]
    (mail,) = waiting["data"]["invocations"]
    assert (mail["target"], mail["state"], mail["attempts"]) == ("mail.send", "waiting", 1)
    assert now["data"]["done"] == [{"cid": mail["call_cid"]}]
    running, counts = killed["commands"]
    assert 1 <= len(running["data"]["invocations"]) <= 4
    assert counts["data"]["services"]["stock.reserve"] == {"succeeded": 12}
    assert {state for state in STATES if counts["data"]["counts"][state]} == {"succeeded"}
    letters, told = dead["commands"]
    (letter,) = letters["data"]["invocations"]
    assert (letter["state"], letter["ok"], letter["attempts"]) == ("dead", True, 1)
    assert told["command"] == f"invoke-retry redeliver {letter['call_cid'][:7]}"
    assert on["commands"] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("worker shop", signal.SIGINT),
        ("crm.update, mail", signal.SIGTERM),
        ("kill -9", signal.SIGHUP),
        ("$ invoke-retry counts", signal.SIGINT),
    ],
)
def test_it_leaves_nothing_behind_when_it_is_interrupted(
    tmp_path: Path, moment: str, number: signal.Signals
) -> None:
    with terminal("demo", "--fast", TMPDIR=str(tmp_path)) as screen:
        screen.until(moment)
        # as a terminal does: to all that run in it
        os.killpg(screen.process.pid, number)
        done = screen.ended()
    assert done.code == 128 + number
    assert "Traceback" not in done.out
    assert list(tmp_path.iterdir()) == []
    assert not any(map(is_alive, workers(done.out)))
    assert done.out.rfind("\x1b[?25h") >= done.out.rfind("\x1b[?25l")


def test_impatience_does_not_help(tmp_path: Path) -> None:
    with terminal("demo", "--fast", TMPDIR=str(tmp_path)) as screen:
        screen.until("crm.update, mail")
        screen.signal(signal.SIGTERM)
        screen.signal(signal.SIGTERM)  # impatience
        done = screen.ended()
    assert done.code == 143
    assert list(tmp_path.iterdir()) == []
