"""D11: an error at the k-th write or commit, for every k: told or durable, and work goes on."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from store_help import Stage, ask, counted, eventually, reaches, totals, until

from invoke_retry import BackendError, CorrelationId, InvokeRetry, work
from invoke_retry.backends.sqlite import claims, working
from invoke_retry.backends.sqlite.store import Store

WRITES = ("INSERT", "UPDATE", "DELETE")
FULL, BROKEN = "database or disk is full", "disk I/O error"


class Faults:
    """What goes wrong next, and what was seen.

    Attributes:
        at: The how manieth statement of that kind fails; 0: none.
        kind: `write`, `commit`, or `late commit`, which is made and fails all the same.
        often: How many in a row fail.
    """

    def __init__(self) -> None:
        self.at = 0
        self.kind = "write"
        self.error = FULL
        self.often = 1
        self.seen = 0
        self.failed: list[FaultyConnection] = []
        self.open: list[FaultyConnection] = []

    def may_fail(self, kind: str) -> bool:
        if self.at == 0 or kind not in self.kind:
            return False
        self.seen += 1
        return self.at <= self.seen < self.at + self.often


class FaultyConnection(sqlite3.Connection):
    faults: ClassVar[Faults]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.faults.open.append(self)

    def _fail(self) -> None:
        self.faults.failed.append(self)
        raise sqlite3.OperationalError(self.faults.error)

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        if statement.startswith(WRITES) and self.faults.may_fail("write"):
            self._fail()
        if statement == "COMMIT" and self.faults.may_fail("commit"):
            if self.faults.kind == "late commit":
                super().execute(statement)
            self._fail()
        return super().execute(statement, *values)

    def close(self) -> None:
        super().close()
        if self in self.faults.open:
            self.faults.open.remove(self)


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    found = FaultyConnection.faults = Faults()
    connect = sqlite3.connect

    def faulty(*args: Any, **options: Any) -> sqlite3.Connection:
        db: sqlite3.Connection = connect(*args, **{"factory": FaultyConnection, **options})
        return db

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", faulty)
        patch.setattr(working, "_TIDY_SECONDS", 0.05)
        patch.setattr(working, "_FIRST_PAUSE", 0.01)
        patch.setattr(work, "_FIRST_PAUSE", 0.01)
        yield found


CIDS = {name: CorrelationId.from_key(name) for name in ("a", "b", "c", "d")}


async def scripted(retry: InvokeRetry) -> dict[str, bool]:
    """A short life: which of the invocations were accepted, as the caller was told."""
    accepted: dict[str, bool] = {}
    requests = {
        "a": ("echo", {"repeats": 0, "seconds": 0, "callback": "tell", "context": "a"}),
        "b": ("fail", {"repeats": 1, "seconds": 0, "callback": "tell", "context": "b"}),
        "c": ("fail", {"repeats": 0, "seconds": 0}),
        "d": ("echo", {"repeats": 0, "seconds": 0, "callback": "tell", "context": "d"}),
    }
    for name, (target, options) in requests.items():
        try:
            await retry.invoke_async(target, name, cid=CIDS[name], **options)  # type: ignore[arg-type]
            accepted[name] = True
        except BackendError:
            accepted[name] = False
        if accepted[name]:
            await reaches_again(retry, CIDS[name], "succeeded", "failed")
    return accepted


async def reaches_again(retry: InvokeRetry, cid: str, *states: str) -> None:
    """As `reaches`, but asking may fail, too."""

    async def arrived() -> bool:
        try:
            return (await retry.get(cid)).state in states
        except BackendError:
            return False

    await eventually(arrived)


async def run_with(faults: Faults, path: Path, kind: str, error: str, k: int, often: int) -> bool:
    """Whether there was a k-th one to fail; what must hold, holds."""
    faults.kind, faults.error, faults.often = kind, error, often
    faults.at = faults.seen = 0
    faults.failed.clear()
    stage = Stage()
    async with stage.on(path, grace=5) as retry:
        faults.at = k
        accepted = await scripted(retry)
        was_reached = bool(faults.failed)
        known = {cid for (cid,) in ask(path, "SELECT cid FROM invocation")}
        for name, is_accepted in accepted.items():
            if is_accepted:
                assert CIDS[name] in known, name
            elif kind != "late commit":
                assert CIDS[name] not in known, name
        faults.at = 0
        for cid in known:  # also what was kept although the caller was told that it failed
            await reaches(retry, cid, "succeeded", "failed")
        await eventually(lambda: is_well(retry))
        for failed in faults.failed:
            assert failed not in faults.open, "a connection that has failed is used no more"
        # and without a restart the same store takes the next one
        cid = await retry.invoke_async("echo", "last", repeats=0, seconds=0, callback="tell")
        await reaches(retry, cid, "succeeded")
    told = [each.context for each in stage.told]
    for name in "abd":
        if CIDS[name] in known:
            assert name in told
    assert totals(path) == counted(path)
    assert ask(path, "SELECT count(*) FROM invocation WHERE owner IS NOT NULL") == [(0,)]
    assert ask(path, "PRAGMA integrity_check") == [("ok",)]
    async with Stage().on(path) as again:
        for name, is_accepted in accepted.items():
            if is_accepted:
                assert (await again.get(CIDS[name])).state in ("succeeded", "failed")
    return was_reached


async def is_well(retry: InvokeRetry) -> bool:
    counts = await retry.counts()
    return retry.health().ok and not (counts["waiting"] + counts["running"] + counts["notifying"])


@pytest.mark.slow
@pytest.mark.parametrize("error", [FULL, BROKEN])
@pytest.mark.parametrize("kind", ["write", "commit", "late commit"])
async def test_each_write_and_each_commit(
    kind: str, error: str, tmp_path: Path, faults: Faults
) -> None:
    k, misses = 1, 0
    while misses < 2:  # how many there are differs a little from run to run
        was_reached = await run_with(faults, tmp_path / f"{k}.db", kind, error, k, 1)
        misses = 0 if was_reached else misses + 1
        k += 1
    assert k > 8


@pytest.mark.parametrize("kind", ["write", "commit", "late commit"])
@pytest.mark.parametrize("k", [1, 3, 6, 9])
async def test_several_in_a_row(kind: str, k: int, tmp_path: Path, faults: Faults) -> None:
    await run_with(faults, tmp_path / "retries.db", kind, FULL, k, 5)


@contextmanager
def looking_in_vain(
    monkeypatch: pytest.MonkeyPatch, note: Callable[[Store], None]
) -> Generator[None]:
    """Whoever looks for what is due meets a full disk."""

    def full(store: Store, *_: object) -> None:
        note(store)
        raise sqlite3.OperationalError(FULL)

    with monkeypatch.context() as patch:
        patch.setattr(claims, "look", full)
        yield


async def test_what_fails_is_tried_again_after_pauses_that_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk was asked for room 95,000 times."""
    looks = list[float]()
    monkeypatch.setattr(working, "_FIRST_PAUSE", 0.02)
    monkeypatch.setattr(working, "_TIDY_SECONDS", 60)  # it looks as well
    async with Stage().on(tmp_path / "retries.db") as retry:
        with looking_in_vain(monkeypatch, lambda store: looks.append(store.clock.monotonic())):
            cid = await retry.invoke_async("fail", 1, repeats=1, seconds=0.2)
            await until(lambda: len(looks) >= 5)
        await reaches(retry, cid, "failed")
    # one of the five may have had another cause: what is begun, or other processes
    assert looks[4] - looks[0] >= 0.02 + 0.04 + 0.08


async def test_what_has_nothing_to_write_does_not_end_the_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_ok = list[bool]()
    monkeypatch.setattr(working, "_TIDY_SECONDS", 0.02)
    async with Stage().on(tmp_path / "retries.db") as retry:
        with looking_in_vain(monkeypatch, lambda _: is_ok.append(retry.health().ok)):
            cid = await retry.invoke_async("fail", 1, repeats=1, seconds=0.05)
            await until(lambda: len(is_ok) >= 6)
        await reaches(retry, cid, "failed")
        assert retry.health().ok
    assert not any(is_ok[1:])
