"""SIGKILL at any time and at the worst of times: nothing lost, nothing flipped (D1c, D2, D9)."""

import subprocess
import sys
from pathlib import Path

import pytest

from . import kill_rounds
from .books import audit
from .children import environment
from .journal import Journal, Line

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="one process at a time there")


def run(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", kill_rounds.__name__, *arguments],
        capture_output=True, text=True, timeout=600, check=False, env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_one_process_is_killed_again_and_again() -> None:
    run("--rounds", "140")


def test_four_processes_on_one_file_are() -> None:
    run("--rounds", "70", "--processes", "4")


OUTCOME = '{"ok": true, "attempts": 1}'
GOOD = (
    Line("accepted", 7, 1.0, "K1", 0, ""),
    Line("began", 7, 1.1, "K1", 1, ""),
    Line("ended", 7, 1.2, "K1", 1, "ok"),
    Line("told", 7, 1.3, "K1", 1, OUTCOME),
)
CANCELLED = (
    Line("accepted", 7, 1.0, "K1", 0, ""),
    Line("told", 7, 1.3, "K1", 1, '{"ok": false, "attempts": 1, "reason": "cancelled"}'),
)
DOWN, UP = (Line(kind, 6, 0.1, "", 0, "") for kind in ("down", "up"))


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (GOOD, None),
        (GOOD[:3], "lost"),
        ((*GOOD, Line("seen", 7, 2.0, "K1", 0, '{"ok": false, "attempts": 1}')), "flipped"),
        ((*GOOD, Line("told", 8, 2.0, "K1", 2, OUTCOME)), "callbacks repeated without a death"),
        ((*GOOD, Line("killed", 6, 1.4, "", 7, ""), Line("told", 8, 2.0, "K1", 2, OUTCOME)), None),
        ((*GOOD, Line("paused", 6, 1.2, "", 7, ""), Line("told", 8, 2.0, "K1", 2, OUTCOME)), None),
        ((DOWN, UP, *GOOD, Line("told", 8, 2.0, "K1", 2, OUTCOME)), None),
        (
            (*GOOD, Line("paused", 6, 1.2, "", 8, ""), Line("told", 8, 2.0, "K1", 2, OUTCOME)),
            "callbacks repeated without a death",
        ),
        ((*GOOD, Line("told", 7, 2.0, "K1", 2, OUTCOME + " ")), "other content"),
        ((*GOOD, Line("began", 8, 2.0, "K1", 1, "")), "attempts made twice"),
        ((*GOOD, Line("began", 8, 2.0, "K1", 2, "")), "attempts after the outcome"),
        ((*CANCELLED, Line("began", 8, 2.0, "K1", 1, "")), None),
        ((*CANCELLED, Line("began", 8, 2.0, "K1", 2, "")), "attempts after the outcome"),
        ((*GOOD, Line("began", 8, 1.15, "K1", 2, "")), "attempts overlap"),
        ((*GOOD, Line("began", 8, 1.25, "K1", 6, "")), "too many attempts"),
        ((*GOOD, Line("error", 8, 2.0, "", 0, "why")), "errors"),
        ((GOOD[0], GOOD[3]), "success of nothing"),
    ],
)
def test_the_books_see_what_is_wrong(lines: tuple[Line, ...], problem: str | None) -> None:
    found = {name for name, wrong in audit(lines, repeats=4).problems.items() if wrong}
    assert (problem in found) if problem else not found, found


def test_lines_survive_a_torn_one(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.write("told", "K1", 1, '{"ok": true}')
    with journal.path.open("a") as torn:
        torn.write('["told", 7, 1.')
    journal.write("accepted", "K2")
    journal.close()
    assert [(line.kind, line.cid) for line in journal.lines()] == [
        ("told", "K1"),
        ("accepted", "K2"),
    ]
