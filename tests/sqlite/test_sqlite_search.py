"""X6: what is searched for is a value, never a part of a statement."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_help import Stage, make, reaches

from invoke_retry import CorrelationId, Invocation, InvocationNotFound, InvokeRetry
from invoke_retry.backends.base import Query
from invoke_retry.backends.sqlite import finding
from invoke_retry.backends.sqlite.store import Settings, Store
from invoke_retry.clock import SYSTEM_CLOCK

A = TypeVar("A")

NASTY = (
    "plain", "'", '"', "''", "%", "_", "\\", "' OR 1=1 --", "'; DROP TABLE invocation; --", "a%",
    "A", "a", "é", "É", "\u0130", "NULL", "?", ":name", "$.x", "1", "1.0", " ", "a ", "😀",
)  # fmt: skip
TARGETS = ("t", "T", "t_", "tx", "t.", "t-1")


async def fill(retry: InvokeRetry) -> list[Invocation]:
    await retry.__aenter__()
    for number, name in enumerate(NASTY * 2):
        with retry.caller(name):
            cid = await retry.invoke_async(
                TARGETS[number % len(TARGETS)], repeats=number % 2, seconds=3_600
            )
        await reaches(retry, cid, "failed", "waiting")
    return await retry.search(limit=1_000)


class Searched:
    """A store, and all that is in it, newest first."""

    def __init__(self, path: Path, runner: asyncio.Runner) -> None:
        stage = Stage("tell")
        for name in TARGETS:
            stage.services.register(name, stage._fail)  # pyright: ignore[reportPrivateUsage]
        self.retry = stage.on(path)
        self.run = runner.run
        self.every = runner.run(fill(self.retry))

    def search(self, **query: Any) -> list[CorrelationId]:
        return [each.call_cid for each in self.run(self.retry.search(**query))]

    def expected(self, *, limit: int = 100, **query: object) -> list[CorrelationId]:
        return [each.call_cid for each in self.every if fits(each, query)][:limit]


def fits(each: Invocation, query: dict[str, object]) -> bool:
    error_type = each.error.type if each.error else None
    return all(
        (error_type if name == "error_type" else getattr(each, name)) == value
        for name, value in query.items()
    )


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Searched]:
    with asyncio.Runner() as runner:
        found = Searched(tmp_path_factory.mktemp("searched") / "retries.db", runner)
        assert len(found.every) == 2 * len(NASTY)
        yield found
        runner.run(found.retry.__aexit__(None, None, None))


texts = st.sampled_from(NASTY) | st.sampled_from(TARGETS) | st.text(max_size=20)
queries = st.fixed_dictionaries(
    {},
    optional={
        "target": texts,
        "source": texts,
        "error_type": texts | st.just("ValueError"),
        "state": st.sampled_from(["waiting", "failed", "parked"]),
        "limit": st.integers(1, 60),
    },
)


@settings(max_examples=300, deadline=None, database=None)
@given(query=queries)
def test_search_is_a_plain_filter(searched: Searched, query: dict[str, Any]) -> None:
    assert searched.search(**query) == searched.expected(**query)


@pytest.mark.parametrize("column", ["target", "source", "error_type"])
def test_each_nasty_text_is_itself_alone(searched: Searched, column: str) -> None:
    for text in (*NASTY, *TARGETS):
        query: dict[str, Any] = {column: text}
        assert searched.search(**query) == searched.expected(**query), text


def test_pages_follow_each_other(searched: Searched) -> None:
    every = [each.call_cid for each in searched.every]
    for number, cid in enumerate(every, 1):
        assert searched.search(after=cid, limit=7) == every[number : number + 7]


@pytest.mark.parametrize("after", ["'", "' OR 1=1 --", "", "nul\0", "%"])
def test_after_what_is_not_known(searched: Searched, after: str) -> None:
    with pytest.raises(InvocationNotFound):
        searched.search(after=after)


@pytest.mark.parametrize("state", ["' OR 1=1 --", "Waiting", "", None.__class__])
def test_a_state_that_is_none(searched: Searched, state: Any) -> None:
    with pytest.raises(ValueError, match="must be one of"):
        searched.search(state=state)


class Recording:
    """A connection that keeps the statements that it is given."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.statements: list[str] = []
        self._db = db

    def execute(self, statement: str, values: Any = ()) -> sqlite3.Cursor:
        self.statements.append(statement)
        return self._db.execute(statement, values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)


async def test_no_statement_contains_what_was_asked_for(tmp_path: Path) -> None:
    """Values are bound; what is put into statements are constants of our own."""
    path = tmp_path / "retries.db"
    await make(path, waiting=2)
    store = Store(
        Settings(path, "full", 1, None, 1, 1, 1, alone=False, read_only=True),
        SYSTEM_CLOCK,
        works=False,
    )
    recording, canary = Recording(store.db), "'canary\" --"
    store._db = cast("sqlite3.Connection", recording)  # pyright: ignore[reportPrivateUsage]

    async def ask(run: Callable[[Store], A]) -> A:
        return run(store)

    asked = Query(
        state="failed", target=canary, source=canary, error_type=canary, created_from=123.75,
        created_before=987.25,
    )  # fmt: skip
    assert await finding.search(ask, asked) == []
    assert await finding.cids(ask, asked) == []
    assert await finding.count(ask, "state = ?", canary) == 0
    with pytest.raises(InvocationNotFound):
        await finding.search(ask, Query(after=canary))
    with pytest.raises(InvocationNotFound):
        store.get(canary)
    store.decided([canary])
    store.lost({canary: 1})
    store.close()
    asked_for = [each for each in recording.statements if "invocation" in each]
    assert len(asked_for) >= 7
    for text in ("canary", "123.75", "987.25"):
        assert not any(text in each for each in recording.statements)
