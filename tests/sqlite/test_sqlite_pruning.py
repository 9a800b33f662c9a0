"""Deleting what is finished because a person asks for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from store_help import Stage, ask, counted, fill, reaches, tamper, totals

from invoke_retry import BackendError, InvokeRetry, ServiceRegistry
from invoke_retry.backends import SQLiteBackend
from invoke_retry.backends.sqlite import finding, pruning
from invoke_retry.backends.sqlite.store import PAGE, Store

A = TypeVar("A")

KEPT_BY_STATE = {"failed": 60, "succeeded": 60, "waiting": 60, "cancelled": 60, "dead": 60}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "retries.db"
    fill(path, 300)
    return path


def opened(path: Path, *, read_only: bool = False) -> tuple[InvokeRetry, SQLiteBackend]:
    backend = SQLiteBackend(path, read_only=read_only)
    return InvokeRetry(ServiceRegistry(), backend=backend, work=False), backend


async def prune_all(backend: SQLiteBackend, older_than: float, *, dead: bool = False) -> list[int]:
    numbers: list[int] = []
    while number := await backend.prune(older_than, dead=dead):
        numbers.append(number)
    return numbers


@pytest.mark.parametrize("stretch", [1, 7, 20_000])
async def test_only_what_is_finished_and_old_enough_goes(
    path: Path, stretch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "STRETCH", stretch)
    monkeypatch.setattr(pruning, "PAGE", 5)
    (middle,) = ask(path, "SELECT outcome_at FROM invocation WHERE id = 151")[0]
    before = totals(path)
    retry, backend = opened(path)
    async with retry:
        assert await backend.prunable(middle) == 90
        assert sum(await prune_all(backend, middle)) == 90
        assert await backend.prunable(middle) == 0
        assert ask(path, "SELECT min(id) FROM invocation WHERE state = 'succeeded'") == [(152,)]
        assert await backend.prunable(middle, dead=True) == 30
        assert sum(await prune_all(backend, middle, dead=True)) == 30
        assert sum(await prune_all(backend, middle)) == 0
    assert counted(path) == {
        "failed": 30, "succeeded": 30, "waiting": 60, "cancelled": 30, "dead": 30,
    }  # fmt: skip
    assert totals(path) == before == KEPT_BY_STATE  # the books know of them
    for table in ("request", "response", "attempt"):
        orphans = f"SELECT count(*) FROM {table} WHERE id NOT IN (SELECT id FROM invocation)"
        assert ask(path, orphans) == [(0,)]


async def test_a_call_is_one_short_transaction(tmp_path: Path) -> None:
    path = tmp_path / "retries.db"
    fill(path, 3_000)
    retry, backend = opened(path)
    async with retry:
        numbers = await prune_all(backend, time.time() + 1)
    assert sum(numbers) == 1_800
    assert max(numbers) <= PAGE


async def test_a_slow_disk_makes_it_do_less_at_a_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "_MOST_SECONDS", -1.0)
    retry, backend = opened(path)
    async with retry:
        assert set(await prune_all(backend, time.time() + 1)) == {1}
    assert counted(path) == {"waiting": 60, "dead": 60}


async def test_what_was_changed_meanwhile_stays(path: Path) -> None:
    """Between the look and the deletion a dead letter may have been redelivered."""
    retry, backend = opened(path)
    ask = backend._ask  # pyright: ignore[reportPrivateUsage]
    write = backend._do  # pyright: ignore[reportPrivateUsage]

    async def ask_and_change(run: Callable[[Store], A]) -> A:
        answer = await ask(run)
        tamper(path, "UPDATE invocation SET state = 'notifying', due = 0 WHERE state = 'dead'")
        return answer

    async with retry:
        pruner = pruning.Pruner(ask_and_change, write)
        while await pruner.prune(time.time() + 1, dead=True):
            pass
    assert counted(path) == {"waiting": 60, "notifying": 60}


@pytest.mark.parametrize("spoilt", ["text", b"blob", None, float("inf")])
async def test_a_spoilt_time_is_no_old_one(path: Path, spoilt: object) -> None:
    tamper(path, "UPDATE invocation SET outcome_at = ? WHERE state = 'failed'", spoilt)
    retry, backend = opened(path)
    async with retry:
        assert await backend.prunable(time.time() + 1, dead=True) == 180
        assert sum(await prune_all(backend, time.time() + 1, dead=True)) == 180
    assert counted(path) == {"waiting": 60, "failed": 60}


async def test_a_store_that_is_only_looked_at_is_not_pruned(path: Path) -> None:
    retry, backend = opened(path, read_only=True)
    async with retry:
        assert await backend.prunable(time.time() + 1) == 180
        with pytest.raises(BackendError, match="read_only"):
            await backend.prune(time.time() + 1)
    assert counted(path) == KEPT_BY_STATE


async def test_pruning_goes_on_beside_work(path: Path) -> None:
    stage = Stage()
    async with stage.on(path) as retry:
        other, backend = opened(path)
        async with other:
            pruning_all = asyncio.ensure_future(prune_all(backend, time.time() - 10, dead=True))
            cids = [await retry.invoke_async("echo", i, repeats=0, seconds=0) for i in range(20)]
            assert sum(await pruning_all) >= 200
            for cid in cids:
                await reaches(retry, cid, "succeeded")
    assert counted(path)["succeeded"] >= 20
