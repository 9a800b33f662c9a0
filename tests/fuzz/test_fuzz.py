"""Some rounds of each kind, always the same ones; more of them by `python -m tests.fuzz`."""

from __future__ import annotations

from itertools import count, islice

import pytest

from .__main__ import KINDS, fuzz

ROUNDS = {"rows": 10, "messages": 10, "arguments": 15}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
async def test_some_rounds(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    failed = await fuzz(kind, 20261124, islice(count(), ROUNDS.get(kind, 40)), float("inf"))
    assert failed == 0, capsys.readouterr().out
