"""Who works on a store, as it can be seen from outside."""

from __future__ import annotations

import json
import sqlite3
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from invoke_retry.backends.sqlite.files import beside, is_locked


@dataclass(frozen=True)
class Seat:
    """A process that works on the store, or did.

    Attributes:
        number: Which lock file it holds.
        pid: None if what stands there is no number.
        since: When it came, in seconds since the Unix epoch; as it stands there.
        services: What it can run.
        is_alive: None if that cannot be seen.
    """

    number: int
    pid: int | None
    since: object
    services: tuple[str, ...]
    is_alive: bool | None

    @property
    def is_stopped(self) -> bool:
        """Whether it lives, but does nothing (SIGSTOP, Ctrl-Z); only Linux tells."""
        if self.pid is None or not self.is_alive:
            return False
        with suppress(OSError, IndexError):
            told = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8", errors="replace")
            return told.rpartition(")")[2].split()[0] in ("T", "t")
        return False


def taken_seats(db: sqlite3.Connection, path: Path, *, alone: bool) -> list[Seat]:
    """All processes that say they work on the store, those that have died among them.

    Args:
        alone: There are no lock files: one process at a time.
    """
    told = db.execute("SELECT seat, pid, started_at, services FROM worker ORDER BY seat").fetchall()
    return [
        Seat(
            number,
            pid if isinstance(pid, int) else None,
            since,
            tuple(service_names(services)),
            None if alone else is_locked(beside(path, f"-seat{number}")),
        )
        for number, pid, since, services in told
    ]


def service_names(services: object) -> list[str]:
    """What a process can run; nothing, if somebody else has written that."""
    try:
        return [name for name in json.loads(services) if isinstance(name, str)]  # type: ignore[arg-type]
    except (TypeError, ValueError, RecursionError):
        return []
