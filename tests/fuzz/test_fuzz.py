"""Some rounds of each kind, by fixed seeds; `python -m tests.fuzz` goes on as long as wanted."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from . import __main__ as fuzz
from .memory import WARM_UP, Memory

ROUNDS = {
    "payloads": 40, "contexts": 30, "names": 20, "cids": 20, "rows": 10, "messages": 8,
    "arguments": 10,
}  # fmt: skip


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_some_rounds(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    rounds = iter(range(ROUNDS[kind]))
    failed = asyncio.run(fuzz.fuzz(kind, 1, rounds, time.monotonic() + 60))
    shown = capsys.readouterr().out
    assert failed == 0, shown
    assert f"{kind}: {ROUNDS[kind]} rounds, 0 failed" in shown


def test_a_round_that_fails_says_how_to_see_it_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def from_key(key: object) -> str:
        return "K"

    monkeypatch.setattr("invoke_retry.correlation.CorrelationId.from_key", from_key)
    assert fuzz.main(["--only", "cids", "--seed", "7", "--start", "3", "--rounds", "2"]) == 1
    shown = capsys.readouterr().out
    assert "--only cids --seed 7 --start 3 --rounds 1" in shown
    assert "its form" in shown


def test_the_same_seed_draws_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    shown = list[str]()
    for _ in range(2):
        assert fuzz.main(["--only", "contexts,cids", "--seed", "5", "--rounds", "5"]) == 0
        lines = capsys.readouterr().out.splitlines()
        shown.append("\n".join(line for line in lines if " rounds, " not in line))
    assert shown[0] == shown[1]


def test_a_leak_is_seen() -> None:
    memory, kept = Memory(), list[object]()
    for number in range(1, 2 * WARM_UP + 1):
        kept.append([[number] for _ in range(5_000)])
        memory.look(number)
    assert not memory.is_flat
    assert "NOT FLAT" in memory.shown()


def test_a_kind_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fuzz.main(["--only", "payloads,nonsense"])
    assert "no kind is named nonsense" in capsys.readouterr().err


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert fuzz.main(["--only", "rows", "--seed", "1", "--rounds", "2"]) == 0
    assert [*tmp_path.iterdir()] == []
