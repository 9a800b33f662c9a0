"""The scripts of the tests: what they refuse, and what their help says."""

from __future__ import annotations

import re
import subprocess
import sys
from argparse import ArgumentTypeError
from pathlib import Path

import pytest
from arguments import above_zero, names, whole

ROOT = Path(__file__).parents[1]


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", script, *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def test_whole_numbers() -> None:
    assert [whole()("1"), whole(0)("0"), whole(2)("30")] == [1, 0, 30]
    for read, text in ((whole(), "0"), (whole(0), "-1"), (whole(2), "1")):
        with pytest.raises(ArgumentTypeError, match="or more"):
            read(text)
    for text in ("", "1.5", "many"):
        with pytest.raises(ArgumentTypeError, match="not a whole number"):
            whole()(text)


def test_numbers_above_zero() -> None:
    assert above_zero("0.3") == 0.3
    for text in ("0", "-1", "nan", "inf"):
        with pytest.raises(ArgumentTypeError, match="above 0, and finite"):
            above_zero(text)
    with pytest.raises(ArgumentTypeError, match="not a number"):
        above_zero("some")


def test_names() -> None:
    read = names("plant", ("A1", "D7"))
    assert read("D7,A1,D7") == ["D7", "A1"]
    for text in ("", "A1,", ",A1", "A1,,D7"):
        with pytest.raises(ArgumentTypeError, match="empty name"):
            read(text)
    with pytest.raises(ArgumentTypeError, match="no plant is named B2, a1; there are A1, D7"):
        read("A1,B2,a1")


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("tests.simulation --seeds 0", "argument --seeds: 0 is too little"),
        ("tests.bite --only A1,", "argument --only: 'A1,' has an empty name in it"),
        ("tests.fuzz --minutes nan", "argument --minutes: nan is out of range"),
        ("tests.soak --lives 1", "argument --lives: 1 is too little"),
        ("benchmarks --rounds -3", "argument --rounds: -3 is too little"),
        ("benchmarks --only success,", "argument --only: no section is named ''"),
    ],
)
def test_what_makes_no_sense_is_refused(command: str, complaint: str) -> None:
    script, *arguments = command.split()
    done = run(script, *arguments)
    assert done.returncode == 2
    assert f"python -m {script}: error: {complaint}" in " ".join(done.stderr.split())
    assert not done.stdout


@pytest.mark.parametrize(
    "script", ["tests.simulation", "tests.bite", "tests.fuzz", "tests.soak", "benchmarks"]
)
def test_each_option_has_help(script: str) -> None:
    shown = run(script, "--help").stdout
    assert f"usage: python -m {script} " in shown
    options = re.findall(r"^  (--[\w-]+.*(?:\n {8,}.*)*)", shown, re.MULTILINE)
    assert len(options) > 1
    for option in options:
        name, words = re.fullmatch(r"(--[\w-]+(?: \S+)?)\s+(\S.*)", option, re.DOTALL).groups()  # type: ignore[union-attr]
        assert len(words.split()) > 2, name
