"""The command line: whatever is typed, an exit code that is documented, and never a traceback."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Self

import anyio.to_thread
from cli_help import ask, make_varied, run
from typer.main import get_command

from invoke_retry.cli.app import app
from invoke_retry.cli.errors import ExitCode

from .kind import Kind, copied, expect
from .values import text

_AT_A_TIME = 5
# `watch` and `demo` would go on, and `worker` with a coordinator that is there; all others end
ENDLESS = ("watch", "demo")
STRANGE = ("lst", "", "--help", "--version", "-h", "--", "--nonsense", "-x", "--store", "--json")


def options() -> dict[str, list[str]]:
    """The names of the options of each command."""
    commands: Any = get_command(app)
    return {
        name: [each for parameter in command.params for each in parameter.opts if each[0] == "-"]
        for name, command in commands.commands.items()
        if name not in ENDLESS
    }


WORDS = (
    "failed", "waiting", "done", "0", "1", "-1", "1e999", "nan", "3", "10000000000000", "90s", "1h",
    "-5m", "7d", "99999999999999d", "exponential", "full", "echo", "fail", "tell", "K0", "K", "*",
    "sqlite:///nowhere/at-all.db", "memory://", "nats://", "nats://127.0.0.1:1/x", "redis://x",
    "sqlite://", "sqlite:///?x=1", "postgres://user:hunter2@host/db", "/dev/null", ".",
    "json:dumps", "no.such.module:x", "math:pi", "os:", ":x", "a.py:b", "\u0661", "\uff10",
    "\udce9", "[red]", "[/]",
)  # fmt: skip


class Arguments(Kind):
    """Each round types some commands at a copy of one store."""

    @asynccontextmanager
    async def entered(self) -> AsyncGenerator[Self]:
        self._options = options()
        self._prepared = self.folder / "prepared.db"
        self._cids = [*(await make_varied(self._prepared)).values()]
        ask(self._prepared, "PRAGMA wal_checkpoint(TRUNCATE)")
        yield self

    async def round(self, chance: Random) -> None:
        store = copied(self._prepared, self.folder / "retries.db")
        for _ in range(_AT_A_TIME):
            typed = self._typed(chance)
            # the command has a loop of its own
            await anyio.to_thread.run_sync(partial(self._run, typed, store))

    def _typed(self, chance: Random) -> list[str]:
        command = chance.choice([*self._options, *self._options, "lst", ""])
        words = [command]
        for _ in range(chance.randrange(5)):
            known = self._options.get(command, [])
            option = chance.choice(known if known and chance.random() < 0.9 else STRANGE)
            match chance.randrange(5):
                case 0:
                    words.append(option)
                case 1:
                    words.append(f"{option}={self._word(chance)}")
                case 2:
                    words += [option, self._word(chance)]
                case _:
                    words.append(self._word(chance))
        return words

    def _word(self, chance: Random) -> str:
        kind = chance.random()
        if kind < 0.4:
            return chance.choice(self._cids)[: chance.choice((28, 28, 6, 1))]
        return chance.choice(WORDS) if kind < 0.8 else _argument(text(chance))

    def _run(self, typed: list[str], store: Path) -> None:
        try:
            done = run(*typed, store=store)
        except Exception as error:
            raise AssertionError(f"{typed} raises {error!r}") from error
        expect(done.code in {*ExitCode}, f"{typed} ends with {done.code}")
        shown = done.out + done.err
        expect("Traceback (most recent call last):\n  File" not in done.err, f"{typed}: {done.err}")
        expect("\x1b" not in shown, f"{typed} acts on the terminal")
        expect(
            "hunter2" not in shown or "--reveal" in typed or "hunter2" in str(typed[1:]),
            f"{typed}: {shown}",
        )
        self.seen[f"exit code {done.code}"] += 1


def _argument(word: str) -> str:
    """As a process is given it: bytes without NUL, decoded by the interpreter."""
    return os.fsdecode(word.replace("\x00", "").encode(errors="surrogatepass"))
