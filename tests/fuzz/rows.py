"""A SQLite file that somebody has been at: cells, whole rows, bytes of the file itself."""

from __future__ import annotations

import os
import pickle
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from random import Random
from typing import Any, Self

import anyio.to_thread
from cli_help import run

from invoke_retry import (
    BackendError,
    CorrelationId,
    InvocationNotFound,
    InvokeRetry,
    RetryPolicy,
)
from invoke_retry.backends import SQLiteBackend

from .kind import Kind, copied, decide_over, expect, plain_services, tried, until
from .values import NUMBERS, text

VICTIMS, NEIGHBOURS = 6, 3
TABLES = {
    "invocation": (
        "id", "cid", "target", "callback", "source", "orig_cid", "policy", "created_at",
        "resubmit_of", "service", "state", "token", "attempts", "deliveries", "due", "began",
        "deadline", "owner", "attempt_at", "first_at", "reason", "outcome_at", "response_omitted",
        "error_type", "error_message", "delivery_error_type", "delivery_error_message",
        "parked_because",
    ),
    "request": ("payload", "context"),
    "response": ("response",),
    "attempt": ("number", "started_at", "ended_at", "error_type", "error_message", "traceback"),
}  # fmt: skip
STATES = (
    "waiting", "running", "notifying", "succeeded", "failed", "cancelled", "dead", "parked", "gone"
)  # fmt: skip


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mknod, (self._path,)


class Rows(Kind):
    """Each round is at a copy of one file with invocations in many states."""

    @asynccontextmanager
    async def entered(self) -> AsyncGenerator[Self]:
        self._prepared = self.folder / "prepared.db"
        async with self._on(self._prepared) as retry:
            for number in range(VICTIMS):
                cid = await retry.invoke_async(
                    "fail", number, repeats=number % 3, seconds=3_600, callback="tell",
                    context={"n": number},
                )  # fmt: skip
                await until(lambda: self._has_begun(retry, cid), "the first attempt")
        with closing(sqlite3.connect(self._prepared, isolation_level=None)) as db:
            db.execute("UPDATE invocation SET due = 0 WHERE state = 'waiting'")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        yield self

    async def round(self, chance: Random) -> None:
        path, proof = copied(self._prepared, self.folder / "retries.db"), self.folder / "proof"
        if chance.random() < 0.2:
            await self._damage(path, chance)
        else:
            await self._spoil(path, proof, chance)
        expect(not proof.exists(), "a pickle was opened")

    def _on(self, path: Path) -> InvokeRetry:
        backend = SQLiteBackend(path, synchronous="normal")
        policy = RetryPolicy(repeats=1, seconds=0)
        return InvokeRetry(plain_services(), backend=backend, callback_policy=policy, grace=1)

    async def _has_begun(self, retry: InvokeRetry, cid: str) -> bool:
        found = await retry.get(cid)
        return bool(found.history) and found.state not in ("running", "notifying")

    # Cells.

    async def _spoil(self, path: Path, proof: Path, chance: Random) -> None:
        """Nothing vanishes, and the neighbours run through."""
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            for _ in range(chance.choice((1, 1, 2, 8))):
                with suppress(sqlite3.IntegrityError, UnicodeEncodeError):  # not even SQLite's own
                    _spoil_cell(db, proof, chance)
            _count_anew(db)
            db.text_factory = _text
            cids: list[Any] = [cid for (cid,) in db.execute("SELECT cid FROM invocation")]
        async with self._on(path) as retry:
            neighbours = [
                await retry.invoke_async("echo", n, repeats=0, seconds=0, callback="tell")
                for n in range(NEIGHBOURS)
            ]
            for cid in neighbours:
                await until(lambda: _is_over(retry, cid), "a neighbour")
            known = [each for each in cids if isinstance(each, str)]
            await self._look(retry, known)
            shown = await retry.search(limit=100)
            expect(len(shown) == len(cids) + NEIGHBOURS, f"{len(shown)} of {len(cids)} are shown")
            counts = await retry.counts()
            expect(sum(counts.values()) == len(shown), f"{len(shown)} are shown, counted {counts}")
            await retry.backend.examine(deep=True)
            await decide_over(retry, known[:2])
            expect(retry.health().ok, f"{retry.health()}")
        await anyio.to_thread.run_sync(self._ask_from_outside, path)

    async def _look(self, retry: InvokeRetry, cids: list[str]) -> None:
        for cid in cids:
            answer = await tried((InvocationNotFound,), lambda: retry.get(cid))
            expect(answer.error is None, f"{cid!r:.200} is not found")
            self.seen["parked" if answer.result.state == "parked" else "runs"] += 1

    def _ask_from_outside(self, path: Path) -> None:
        """In a thread, since a command has a loop of its own."""
        for command in ("doctor", "list", "counts"):
            done = run(command, store=path)
            expect(done.code in (0, 1, 3), f"{command} ends with {done.code}: {done.err}")
            expect("\x1b" not in done.out + done.err, f"{command} acts on the terminal")

    # Bytes.

    async def _damage(self, path: Path, chance: Random) -> None:
        """A file that is no whole database any more: it works, or says so."""
        data = bytearray(path.read_bytes())
        if chance.random() < 0.3:
            del data[chance.randrange(len(data)) :]
        for _ in range(chance.choice((1, 10, 1_000)) if data else 0):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(data)

        async def use() -> None:
            async with self._on(path) as retry:
                await retry.invoke_async("echo", 1, repeats=0, seconds=0)
                await retry.search(limit=100)
                await retry.counts()
                await retry.backend.examine(deep=True)

        answer = await tried((BackendError,), use)
        self.seen[f"file {answer.verdict}"] += 1
        await anyio.to_thread.run_sync(self._ask_from_outside, path)


async def _is_over(retry: InvokeRetry, cid: str) -> bool:
    return (await retry.get(cid)).state == "succeeded"


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:  # nobody can ask for it
        return data


def _spoil_cell(db: sqlite3.Connection, proof: Path, chance: Random) -> None:
    table = chance.choice([*TABLES])
    column = chance.choice(TABLES[table])
    row = chance.randrange(1, VICTIMS + 1)
    if chance.random() < 0.15:  # another one of its own cells, which may even be of its type
        other = chance.choice(TABLES[table])
        db.execute(f"UPDATE {table} SET {column} = {other} WHERE id = ?", (row,))
        return
    bomb = pickle.dumps(Bomb(proof), chance.choice((0, 4)))
    junk = chance.choice((
        None, "", text(chance), chance.randbytes(chance.randrange(40)), bomb, bomb.decode("latin1"),
        chance.choice(NUMBERS[:9]), chance.choice(NUMBERS[-9:]), chance.choice(STATES), "12", -1,
        2**63 - 1, CorrelationId.new(chance), b"[" * 10_000, b'{"a": ' * 200, "x" * 100_000,
        b"1" * 5_000, b"nan", b'"\\ud800"', '{"repeats": -1, "seconds": 1e999}',
    ))  # fmt: skip
    if isinstance(junk, int) and abs(junk) >= 2**63:
        junk = float(junk)
    as_text = "CAST(? AS TEXT)" if isinstance(junk, bytes) and chance.random() < 0.3 else "?"
    db.execute(f"UPDATE {table} SET {column} = {as_text} WHERE id = ?", (junk, row))


def _count_anew(db: sqlite3.Connection) -> None:
    """The totals are no promise of a file that others write to; the rows are."""
    db.execute("DELETE FROM total")
    db.execute(
        "INSERT INTO total SELECT state, count(*) FROM invocation WHERE typeof(state) = 'text' "
        "GROUP BY state"
    )
